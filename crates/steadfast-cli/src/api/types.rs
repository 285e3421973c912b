//! The JSON of the HTTP API: the only types that are written as JSON for people and programs.
//!
//! They are converted from the core's types at the edge ([`super::convert`]) so that a row may change without the
//! API changing. Times are milliseconds since 1970, durations say their unit in their name. Every type refuses
//! unknown fields on input, so that a misspelt one is told and not dropped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::link_types::Verdict;
use super::view_types::Survives;

/// Why a request was refused; the body of every answer that is not a success.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The code, `SF-0013`; `steadfast explain` has its page.
    pub code: String,
    /// What was wrong, where, and what would be right.
    pub message: String,
}

/// How the cluster stands, seen from one node.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The verdicts that hold, and, marked as `over`, those by which nodes were removed that are not back. What failed
    /// first comes first; empty while nothing is known to fail.
    #[serde(default)]
    pub verdicts: Vec<Verdict>,
    /// The cluster.
    pub cluster: Cluster,
    /// The node that answers.
    pub node: String,
    /// Its id.
    pub node_id: String,
    /// How often its agent was started.
    pub incarnation: u64,
    /// Whether a majority of the catalog's voters can be reached.
    pub quorum: bool,
    /// The catalog's leader, if one is known here; with etcd that is no node's.
    pub leader: Option<String>,
    /// Who keeps the catalog.
    pub catalog: CatalogState,
    /// The agreed list of members.
    pub view: View,
    /// What failure the cluster survives right now.
    pub survives: Survives,
    /// How much longer this node may run containers without a renewal, in ms; 0 when its lease has lapsed.
    pub lease_left_ms: u64,
    /// Every other node, as this one hears it.
    pub peers: Vec<Peer>,
    /// The containers that are meant to run on this node, as they are.
    pub containers: Vec<LocalContainer>,
    /// What happened here lately, oldest first.
    pub timeline: Vec<Happening>,
    /// What needs somebody's attention, a sentence each.
    pub warnings: Vec<String>,
    /// What became of the datagrams that reached this node's heartbeat sockets, by reason: `opened`, `malformed`, or
    /// why one was rejected before anything behind its seal was read.
    pub datagrams: BTreeMap<String, u64>,
}

/// Who keeps the catalog, and whether it answers.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CatalogState {
    /// `embedded` or `etcd`.
    pub engine: String,
    /// Whether a majority of it answers, as far as this node knows.
    pub reachable: bool,
    /// With etcd where it is asked.
    pub endpoints: Vec<String>,
    /// Why it does not answer.
    pub why: Option<String>,
}

/// The cluster's settings.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Cluster {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How long a node may run containers after its last renewal, in ms.
    pub lease_ms: u32,
    /// When it was made.
    pub created_unix_ms: u64,
}

/// The agreed list of members.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct View {
    /// Its number.
    pub id: u64,
    /// The names of its members.
    pub members: Vec<String>,
    /// Who proposed it.
    pub proposer: String,
    /// Why.
    pub reason: String,
}

/// Another node as this one hears it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Whether it is in the view.
    pub member: bool,
    /// Whether this node suspects it.
    pub suspected: bool,
    /// When it was last heard on each network.
    pub networks: Vec<Heard>,
}

/// When a peer was last heard on one network.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Heard {
    /// The network.
    pub network: String,
    /// How long ago, in ms; absent when never.
    pub age_ms: Option<u64>,
}

/// A container on this node, as its shim reports it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LocalContainer {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The run epoch.
    pub epoch: u64,
    /// `starting`, `running`, `frozen`, `exited` or `failed`.
    pub state: String,
    /// Why it is frozen or failed.
    pub why: Option<String>,
}

/// One thing that happened.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Happening {
    /// When, by this node's clock.
    pub at_unix_ms: f64,
    /// What kind: `last_heard`, `suspected`, `removed`, `fence_over`, `recovering`, `restoring`, `running`, ...
    pub what: String,
    /// The node it is about, by name.
    pub node: Option<String>,
    /// The container it is about, by name.
    pub container: Option<String>,
    /// More, in words.
    pub detail: String,
}

/// A node of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// `member`, `suspected`, `draining`, `removed`, `left`, `joining`, or, of a candidate, `probation`, `ready` or
    /// `eliminated`.
    pub state: String,
    /// Whether this is the node that answers.
    pub this: bool,
    /// Its address on each network.
    pub addresses: BTreeMap<String, String>,
    /// Its failure domain, widest first.
    pub domain: Vec<String>,
    /// Checkpoint memory that it lends, in bytes.
    pub memory_bytes: u64,
    /// The containers that it owns, by name.
    pub containers: Vec<String>,
    /// Its CRIU's version; empty where it can run no containers.
    pub criu: String,
    /// How it stands as a candidate; absent for members.
    #[serde(default)]
    pub probation: Option<Probation>,
}

/// How a candidate for membership stands.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Probation {
    /// What it is to become: `join`, `standby` or `replace`.
    pub intent: String,
    /// Whose place it is to take.
    pub replaces: Option<String>,
    /// Whether every criterion is met.
    pub ready: bool,
    /// When it applied, by its own clock.
    pub applied_unix_ms: u64,
    /// For how long the answering node has known of it, in seconds.
    pub seconds: f64,
    /// How each criterion stands; empty once it is eliminated.
    pub evidence: Vec<Evidence>,
    /// Why it was eliminated.
    pub eliminated: Option<Eliminated>,
}

/// How one criterion stands.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Evidence {
    /// Which.
    pub criterion: String,
    /// `pass`, `pending` or `fail`.
    pub standing: String,
    /// What was measured, and what is asked for.
    pub measured: String,
}

/// Why a candidate was eliminated.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Eliminated {
    /// Which criterion it did not meet.
    pub criterion: String,
    /// What was measured, and what is asked for.
    pub measured: String,
    /// What to do about it.
    pub advice: String,
}

/// Who takes whose place.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceRequest {
    /// The candidate that takes it.
    pub by: String,
}

/// How a node is drained.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DrainRequest {
    /// Take it back.
    pub undo: bool,
}

/// The view after a change of members.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// Its number.
    pub view: u64,
    /// The names of its members.
    pub members: Vec<String>,
    /// Why it replaced the one before it.
    pub reason: String,
}

/// Something that the cluster does in several steps. It goes on whatever ends meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its name.
    pub name: String,
    /// What it is: `join`, `replace`, `drain`, `leave`, `checkpoint`, `restore` or `recover`.
    pub verb: String,
    /// What it does, in one sentence.
    pub does: String,
    /// `running`, `done` or `failed`.
    pub state: String,
    /// Which of its steps it is at, or was last.
    pub step: u8,
    /// How many steps it has.
    pub steps: u8,
    /// What the step waits for, while it runs.
    pub waits_for: Option<String>,
    /// The node that was asked for it; none where the cluster began it by itself.
    pub asked_at: Option<String>,
    /// When it began, in milliseconds since 1970.
    pub begun_unix_ms: u64,
    /// When it ended.
    pub ended_unix_ms: Option<u64>,
    /// The code of what it failed for.
    pub code: Option<String>,
    /// Why it failed.
    pub why: Option<String>,
}

/// What to run: the same keys as the spec file, with the same texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Spec {
    /// Its name; one is made from the command when absent.
    pub name: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// The folder it starts in.
    pub working_directory: Option<String>,
    /// The user, by name or number.
    pub user: Option<String>,
    /// `host` or `bundle:PATH`.
    pub root: Option<String>,
    /// `SOURCE:TARGET[:ro]` each.
    pub volumes: Vec<String>,
    /// Its own address with prefix length.
    pub address: Option<String>,
    /// A failure domain that its node must be in.
    pub require_domain: Option<String>,
    /// Names of devices that its node must see; it gets them under `/dev/steadfast`.
    pub require_devices: Vec<String>,
    /// The memory it may use, such as `2GiB`.
    pub memory: Option<String>,
    /// The processors it may use, such as `1.5`.
    pub cpu: Option<String>,
    /// How often a checkpoint is taken, such as `10s`; `never`: only on demand.
    pub every: Option<String>,
    /// `mirror(n)`: n copies on other nodes.
    pub protection: Option<String>,
    /// `no`, `latest` or `fresh`.
    pub restart: Option<String>,
}

/// Asks for a container.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// What to run.
    pub spec: Spec,
    /// The node to start it on, by name; the cluster chooses when absent.
    #[serde(default)]
    pub node: Option<String>,
}

/// A container.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The node that owns it, by name.
    pub node: String,
    /// `starting`, `running`, `recovering`, `stopping`, `stopped`, `failed` or `lost`.
    pub state: String,
    /// What happened, where the state alone does not say: exit code, reason.
    pub reason: Option<String>,
    /// Whether its owner is in the view; a container of a removed owner is being recovered or can't be.
    pub owner_in_view: bool,
    /// The run epoch.
    pub epoch: u64,
    /// When its row last changed its state.
    pub changed_unix_ms: u64,
    /// The newest committed checkpoint.
    pub latest: Option<Checkpoint>,
    /// Since when what it did would be lost with its node: the instant of the last committed checkpoint.
    pub at_risk_since_unix_ms: Option<u64>,
    /// The age of that instant, in ms.
    pub at_risk_ms: Option<u64>,
    /// Copies of the newest checkpoint on other nodes of the view.
    pub copies: u32,
    /// Copies wanted.
    pub copies_wanted: u32,
    /// Its spec.
    pub spec: Spec,
    /// The catalog's revision of its row.
    pub revision: u64,
}

/// A committed checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// The container, by name.
    pub container: String,
    /// Its number, from 1.
    pub number: u64,
    /// The run epoch that it was taken in.
    pub epoch: u64,
    /// Whether it is the newest or its parent: `latest` or `parent`.
    pub role: String,
    /// The instant that it shows.
    pub taken_unix_ms: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// How long the program was held still for it, in ms.
    pub frozen_ms: f64,
    /// Where its copies are.
    pub copies: Vec<Copy>,
    /// Copies wanted on other nodes.
    pub copies_wanted: u32,
    /// `protected`, `under-protected` or `lost`.
    pub protection: String,
    /// The content address of its manifest.
    pub manifest: String,
}

/// One copy of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Copy {
    /// The node that holds it, by name.
    pub node: String,
    /// `held`: the node says that it has all of it; `gone`: it says that it has not; `unknown`: it can't be asked.
    pub state: String,
}

/// How to stop a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopRequest {
    /// How long it may take to end by itself, such as `10s`.
    pub grace: Option<String>,
}

/// From what and where to restart a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestoreRequest {
    /// The checkpoint's number; the newest when absent.
    pub checkpoint: Option<u64>,
    /// The node, by name; the cluster chooses when absent.
    pub node: Option<String>,
}

/// Asks for an invitation.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// The name that the new node will bear.
    pub name: String,
    /// How long the token is valid, such as `1h`.
    #[serde(default)]
    pub valid: Option<String>,
    /// The address of an agent that waits with a token of this name, to be woken; an invitation that is open is then
    /// renewed instead of replaced.
    #[serde(default)]
    pub notify: Option<String>,
}

/// An invitation.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Invitation {
    /// The name that the new node will bear.
    pub name: String,
    /// The one-time token: a secret. Absent where the invitation was renewed: the token made before counts again.
    pub token: Option<String>,
    /// When it ends.
    pub expires_unix_ms: u64,
}

/// How the cluster's keys and this node's certificate stand.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyStatus {
    /// The newest cluster key.
    pub newest: u32,
    /// The cluster key that seals datagrams and checkpoints.
    pub sealing: u32,
    /// The oldest cluster key whose datagrams are opened.
    pub accepted_min: u32,
    /// Whether no rotation is under way.
    pub settled: bool,
    /// When a rotation last came a step further, by the clock of the node that took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_unix_ms: Option<u64>,
    /// When this node's certificate was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_issued_unix_ms: Option<u64>,
    /// When it ends; it is replaced long before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires_unix_ms: Option<u64>,
    /// Nodes that were removed for good: no connection with a certificate of theirs is accepted.
    pub revoked: Vec<String>,
    /// The certificate of the cluster's authority as PEM, against which this node's certificate is checked.
    #[serde(default)]
    pub authority: String,
}

/// One line that a container printed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// When.
    pub at_unix_ms: u64,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line, without its end; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// A command to run inside a container. The answer is an upgrade to the framed stream of `frames`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether standard input is passed.
    #[serde(default)]
    pub stdin: bool,
    /// Whether it gets a terminal.
    #[serde(default)]
    pub tty: bool,
}

/// What was done, for requests that have nothing else to say.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Done {
    /// In words.
    pub done: String,
}
