//! The rows of the catalog: what all members agree on, as types.
//!
//! The engine stores opaque bytes under text keys and knows none of this. Here stand the row types, their keys
//! and their binary form: a version byte and postcard. A row is read whole or refused; a refused row is named by
//! its key. The rules over rows are in [`crate::view`] and [`crate::recovery`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::detect::Class;
use crate::ids::{ClusterId, ContainerId, Digest, Epoch, Incarnation, NodeId, ViewId};
use crate::probation::Criterion;

/// The largest encoded row, in bytes.
pub const ROW_BYTES_MAX: usize = 256 * 1024;

/// The keys of all [`ViewRecord`]s begin so.
pub const VIEW_RECORDS: &str = "history/";

/// The keys of all process groups begin so.
pub const GROUPS: &str = "group/";

/// The keys of all requests about process groups begin so.
pub const GROUP_REQUESTS: &str = "group-request/";

/// The keys of all processes that wait for a place in a group begin so.
pub const GROUP_STANDBYS: &str = "group-standby/";

const ROW_VERSION: u8 = 1;

/// Names a row of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The cluster's settings; holds a [`ClusterRow`].
    Cluster,
    /// The agreed list of members; holds a [`View`].
    View,
    /// What is kept of a committed view; holds a [`ViewRecord`].
    ViewRecord(ViewId),
    /// A node's row; holds a [`NodeRow`].
    Node(NodeId),
    /// A candidate for membership; holds a [`ProbationRow`].
    Probation(NodeId),
    /// A node that hands over its duties; holds a [`DrainRow`].
    Drain(NodeId),
    /// An invitation by its temporary identifier; holds an [`InviteRow`].
    Invite(String),
    /// A container's row; holds a [`ContainerRow`].
    Container(ContainerId),
    /// The container that bears a name; holds a [`NameRow`].
    Name(String),
    /// A process group by its name; holds a row of `crate::group`.
    Group(String),
    /// What an operator asks of a process group, by the group's name; holds a request of `crate::group`.
    GroupRequest(String),
    /// A process that waits, on a node, to be named a member of a group; holds a standby of `crate::group`.
    GroupStandby(String, NodeId),
}

impl Key {
    /// The key as the engine stores it.
    pub fn encode(&self) -> String {
        match self {
            Key::Cluster => "cluster".to_owned(),
            Key::View => "view".to_owned(),
            // The order of the keys is that of the views.
            Key::ViewRecord(id) => format!("{VIEW_RECORDS}{:020}", id.0),
            Key::Node(id) => format!("node/{id}"),
            Key::Probation(id) => format!("probation/{id}"),
            Key::Drain(id) => format!("drain/{id}"),
            Key::Invite(name) => format!("invite/{name}"),
            Key::Container(id) => format!("container/{id}"),
            Key::Name(name) => format!("name/{name}"),
            Key::Group(name) => format!("{GROUPS}{name}"),
            Key::GroupRequest(name) => format!("{GROUP_REQUESTS}{name}"),
            Key::GroupStandby(name, node) => format!("{GROUP_STANDBYS}{name}/{node}"),
        }
    }

    /// The key behind the engine's text, or `None` for a key of somebody else.
    pub fn decode(text: &str) -> Option<Key> {
        match text.split_once('/') {
            None if text == "cluster" => Some(Key::Cluster),
            None if text == "view" => Some(Key::View),
            Some(("history", id)) => id.parse().ok().map(|id| Key::ViewRecord(ViewId(id))),
            Some(("node", id)) => id.parse().ok().map(Key::Node),
            Some(("probation", id)) => id.parse().ok().map(Key::Probation),
            Some(("drain", id)) => id.parse().ok().map(Key::Drain),
            Some(("invite", name)) => Some(Key::Invite(name.to_owned())),
            Some(("container", id)) => id.parse().ok().map(Key::Container),
            Some(("name", name)) => Some(Key::Name(name.to_owned())),
            Some(("group", name)) => Some(Key::Group(name.to_owned())),
            Some(("group-request", name)) => Some(Key::GroupRequest(name.to_owned())),
            Some(("group-standby", rest)) => {
                let (name, node) = rest.rsplit_once('/')?;
                node.parse().ok().map(|node| Key::GroupStandby(name.to_owned(), node))
            }
            None | Some(_) => None,
        }
    }
}

/// The cluster's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRow {
    /// The cluster's identity, in every datagram and certificate.
    pub id: ClusterId,
    /// The name people gave it.
    pub name: String,
    /// How long a node may run containers after its last renewal, in milliseconds (PROTOCOLS 0.3).
    pub lease_ms: u32,
    /// When it was made, in milliseconds since 1970.
    pub created_unix_ms: u64,
}

impl ClusterRow {
    /// The lease as a duration.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(u64::from(self.lease_ms))
    }
}

/// The agreed, numbered list of members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its number; the next view has the next one.
    pub id: ViewId,
    /// The members, each with the incarnation that was admitted.
    pub members: BTreeMap<NodeId, Incarnation>,
    /// The nodes that were members and were removed, each with the view that removed it; who left on purpose had
    /// nothing left to fence.
    pub removed: BTreeMap<NodeId, ViewId>,
    /// Those of the removed whose place another node took, and which.
    pub successors: BTreeMap<NodeId, NodeId>,
    /// The nodes whose echoes make a lease; changed one at a time (PROTOCOLS 0.3).
    pub grantors: BTreeSet<NodeId>,
    /// The view in which `grantors` was last changed.
    pub grantors_since: ViewId,
    /// Who proposed this view.
    pub proposer: NodeId,
    /// Why it was proposed.
    pub reason: ViewReason,
}

/// Why a view replaced the one before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ViewReason {
    /// The cluster was made.
    Founded,
    /// A node was admitted, or came back in a new incarnation.
    Admitted(NodeId),
    /// Nodes were removed because a majority suspected them; each with its accusers.
    Removed(BTreeMap<NodeId, BTreeSet<NodeId>>),
    /// A member became a grantor of leases.
    Grantor(NodeId),
    /// A node that is no member any more grants leases no longer.
    NoGrantor(NodeId),
    /// A node took the place of another, with all its duties (PROTOCOLS 3.4).
    Replaced {
        /// Whose place.
        old: NodeId,
        /// By whom.
        new: NodeId,
    },
    /// A member left on purpose, after it had handed over its duties.
    Left(NodeId),
}

/// A committed view as it is kept when others have followed it, with what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewRecord {
    /// The view.
    pub view: View,
    /// What each node that it removed was found to be; its accusers stand in the view's reason.
    pub verdicts: BTreeMap<NodeId, Class>,
    /// When it was proposed, in milliseconds since 1970, by the proposer's clock; for people only.
    pub proposed_unix_ms: u64,
}

/// A candidate: a node that is evaluated before it becomes a member (PROTOCOLS 3.4). It holds no duty and counts nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbationRow {
    /// The candidate.
    pub node: NodeId,
    /// In which life it applied; another life must apply anew.
    pub incarnation: Incarnation,
    /// The version of the program that it runs.
    pub version: String,
    /// What it is to become.
    pub intent: Intent,
    /// Which criterion it failed and what was measured, once it is eliminated.
    pub eliminated: Option<(Criterion, String)>,
    /// When it applied, in milliseconds since 1970, by its own clock; for people only.
    pub applied_unix_ms: u64,
}

/// What a candidate is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// A member, as soon as it is ready.
    Join,
    /// A member in place of the next one that is removed.
    Standby,
    /// A member in place of this one, as soon as it is ready.
    Replace(NodeId),
}

/// A node that hands over its duties and takes on none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRow {
    /// The node.
    pub node: NodeId,
    /// Whether it leaves the view once it has none left.
    pub leave: bool,
}

/// What the cluster knows of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// The node's own id.
    pub id: NodeId,
    /// The name people gave it.
    pub name: String,
    /// Its number in the catalog's engine.
    pub engine_id: u64,
    /// One address per network, in the order of the networks.
    pub addresses: Vec<(String, SocketAddr)>,
    /// What tells its state folder from a copy of it (PROTOCOLS 4.5).
    pub fingerprint: String,
    /// Its failure domain, widest first.
    pub domain: Vec<String>,
    /// The checkpoint memory that it lends, in bytes.
    pub memory_bytes: u64,
    /// The version of its CRIU as `major.minor.patch`; empty where it can run no containers.
    pub criu: String,
    /// What a restored program needs of its processor, as one comparable word; empty where it can run none.
    pub processor: String,
}

/// An invitation that a token answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteRow {
    /// The temporary identifier, and the name that the node will bear.
    pub name: String,
    /// A BLAKE3 hash of the token's secret; the secret itself is stored nowhere.
    pub secret: Digest,
    /// When the invitation ends, in seconds since 1970.
    pub expires_unix_s: u64,
    /// Who took it up.
    pub taken: Option<Taken>,
}

/// Who took up an invitation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The node that joined.
    pub node: NodeId,
    /// The fingerprint of its state folder.
    pub fingerprint: String,
}

/// The container that bears a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRow {
    /// The container.
    pub container: ContainerId,
}

/// Everything that is agreed on about one container. Every change of it is one compare-and-set of the whole row,
/// so a deposed owner can commit nothing (PROTOCOLS 0.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRow {
    /// The container.
    pub id: ContainerId,
    /// What to run, and how to protect it.
    pub spec: ContainerSpec,
    /// The only node that may run it.
    pub owner: NodeId,
    /// The run epoch; one more with every change of owner and every restart.
    pub epoch: Epoch,
    /// What the owner is to do with it, or did.
    pub state: ContainerState,
    /// What its user wants of it.
    pub desired: Desired,
    /// The newest committed checkpoint.
    pub latest: Option<CheckpointRef>,
    /// The one before it, kept until the next is committed.
    pub parent: Option<CheckpointRef>,
    /// The checkpoint to restore while `Recovering`; `latest` unless a user asked for the parent.
    pub restore_number: Option<u64>,
    /// Whether the restore is of a loss, which closes connections to the outside.
    pub after_loss: bool,
    /// The nodes that failed to start it since it last ran.
    pub tried: BTreeSet<NodeId>,
    /// When the row last changed its state, in milliseconds since 1970, by the proposer's clock; for people only.
    pub changed_unix_ms: u64,
}

impl ContainerRow {
    /// The checkpoint that a restore uses.
    pub fn restore_from(&self) -> Option<&CheckpointRef> {
        let Some(number) = self.restore_number else { return self.latest.as_ref() };
        [&self.latest, &self.parent].into_iter().flatten().find(|checkpoint| checkpoint.number == number)
    }

    /// The nodes whose copies protect what the owner runs: its own copy is lost with it.
    pub fn protecting<'a>(&self, checkpoint: &'a CheckpointRef) -> impl Iterator<Item = NodeId> + use<'a> {
        let owner = self.owner;
        checkpoint.copies.iter().copied().filter(move |node| *node != owner)
    }

    /// The committed checkpoints, newest first.
    pub fn checkpoints(&self) -> impl Iterator<Item = &CheckpointRef> {
        [&self.latest, &self.parent].into_iter().flatten()
    }

    /// The number that the next checkpoint will bear.
    pub fn next_number(&self) -> u64 {
        self.checkpoints().map(|checkpoint| checkpoint.number).max().unwrap_or(0).saturating_add(1)
    }

    /// Whether its owner is meant to have it running.
    pub fn is_active(&self) -> bool {
        match self.state {
            ContainerState::Starting | ContainerState::Running | ContainerState::Recovering => true,
            ContainerState::Stopped(_) | ContainerState::Failed(_) | ContainerState::Lost(_) => false,
        }
    }

    /// Whether a sealed manifest must be kept: it is committed, or may still be (PROTOCOLS 5, D4).
    pub fn keeps(&self, epoch: Epoch, number: u64, manifest: Digest) -> bool {
        if self.checkpoints().any(|checkpoint| checkpoint.manifest == manifest) {
            return true;
        }
        // An epoch that ended commits nothing more, and a container comes back in a later one only.
        let may_commit = epoch > self.epoch || (epoch == self.epoch && self.is_active());
        may_commit && number >= self.next_number()
    }
}

/// What the owner is to do with a container, or did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// The owner is to start it afresh.
    Starting,
    /// The owner has it running.
    Running,
    /// The owner is to restore it from a checkpoint; the point of no return of a recovery.
    Recovering,
    /// It ended, or was stopped.
    Stopped(Exit),
    /// No node could start it; why the last one could not.
    Failed(String),
    /// The node that ran it is gone and so is every copy of its checkpoints; which.
    Lost(String),
}

/// How a container's first process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It was stopped on request before it ran.
    Never,
}

/// What its user wants of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Desired {
    /// To run.
    Run,
    /// To be stopped, killed after this many milliseconds.
    Stop {
        /// How long it may take to end by itself.
        grace_ms: u32,
    },
}

/// A committed checkpoint: sealed on its holders, named by its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRef {
    /// Counts a container's checkpoints from 1, across owners.
    pub number: u64,
    /// The run epoch it was taken in.
    pub epoch: Epoch,
    /// The content address of its manifest.
    pub manifest: Digest,
    /// Its size in bytes, before anything shared is taken off.
    pub bytes: u64,
    /// The nodes that hold a complete copy.
    pub copies: BTreeSet<NodeId>,
    /// How many copies its spec asked for.
    pub wanted: u8,
    /// How long the program was held still for it, in microseconds.
    pub frozen_us: u64,
    /// When the program was held still, in milliseconds since 1970, by its owner's clock.
    pub taken_unix_ms: u64,
    /// The CRIU version that wrote it.
    pub criu: String,
    /// What a node's processor must offer to restore it.
    pub processor: String,
}

/// What to run, and how to protect it: DESIGN 5's spec, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its name, unique in the cluster.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// The folder it starts in.
    pub working_directory: Option<String>,
    /// The user it runs as, by name or number.
    pub user: Option<String>,
    /// Its root file system.
    pub root: Root,
    /// Folders of the machine that it sees.
    pub volumes: Vec<Volume>,
    /// Its own address with prefix length, such as `10.0.9.5/24`.
    pub address: Option<String>,
    /// The memory it may use, in bytes.
    pub memory_bytes_max: Option<u64>,
    /// The processor time it may use, in thousandths of a core.
    pub cpu_milli_max: Option<u32>,
    /// How often a checkpoint is taken, in milliseconds; never by itself when absent.
    pub every_ms: Option<u32>,
    /// How many full copies on other nodes a checkpoint gets.
    pub copies: u8,
    /// What follows an exit.
    pub restart: Restart,
    /// The nodes it may run on; any when empty.
    pub nodes: BTreeSet<NodeId>,
    /// What a node must have to run it.
    pub require: Requirements,
}

impl ContainerSpec {
    /// How many nodes are to hold a checkpoint. One that hands the program over (`hold`) has one more: the copy of the node
    /// that goes on with it protects nothing.
    pub fn copies_for(&self, hold: bool) -> usize {
        usize::from(self.copies) + usize::from(hold)
    }
}

/// What a node must have to run a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirements {
    /// A failure domain that the node is in, at any level; any when absent.
    pub domain: Option<String>,
    /// Names of devices that the node sees; the container gets them.
    pub devices: BTreeSet<String>,
}

/// A container's root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// The machine's own files, read-only, under a private upper layer.
    Host,
    /// The root of an OCI bundle at this path on every node, under a private upper layer.
    Bundle(String),
}

/// A folder of the machine that a container sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Where it is on the machine.
    pub source: String,
    /// Where the container sees it.
    pub target: String,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// What follows the exit of a container's first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Nothing: it is stopped.
    No,
    /// It goes on from its latest checkpoint; afresh when there is none.
    Latest,
    /// It starts afresh.
    Fresh,
}

/// A committed change of one row, as the core is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The cluster's settings.
    Cluster(ClusterRow),
    /// A new view.
    View(View),
    /// A node's row, or its removal.
    Node(NodeId, Option<NodeRow>),
    /// A candidate's row, or its removal.
    Probation(NodeId, Option<ProbationRow>),
    /// A node is to hand over its duties, or need not any more.
    Drain(NodeId, Option<DrainRow>),
    /// A container's row, or its removal.
    Container(ContainerId, Option<Box<ContainerRow>>),
}

/// A row's bytes can't be used; the row is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The row is longer than any row may be.
    #[error("a row has {0} bytes, more than the {ROW_BYTES_MAX} that a row may have")]
    TooLong(usize),
    /// The row was written by another version.
    #[error("a row has format version {0}; this program reads version {ROW_VERSION}")]
    Version(u8),
    /// The bytes are no row of the kind that its key names.
    #[error("a row can't be read as what its key names: {0}")]
    Malformed(postcard::Error),
}

/// The binary form of a row.
///
/// # Errors
/// A row that would be longer than [`ROW_BYTES_MAX`] is refused.
pub fn encode_row<T: Serialize>(row: &T) -> Result<Vec<u8>, RowError> {
    let bytes = postcard::to_extend(row, vec![ROW_VERSION]).map_err(RowError::Malformed)?;
    if bytes.len() > ROW_BYTES_MAX {
        return Err(RowError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// The row behind `bytes`.
///
/// # Errors
/// Bytes that are no row, hold more than a row, or come from another version are refused.
pub fn decode_row<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RowError> {
    if bytes.len() > ROW_BYTES_MAX {
        return Err(RowError::TooLong(bytes.len()));
    }
    let Some((&version, body)) = bytes.split_first() else {
        return Err(RowError::Malformed(postcard::Error::DeserializeUnexpectedEnd));
    };
    if version != ROW_VERSION {
        return Err(RowError::Version(version));
    }
    let (row, rest) = postcard::take_from_bytes(body).map_err(RowError::Malformed)?;
    if !rest.is_empty() {
        return Err(RowError::Malformed(postcard::Error::DeserializeBadEncoding));
    }
    Ok(row)
}

/// The change that a committed row means: `None` for rows that the core has no use for.
///
/// # Errors
/// Bytes that are not what the key names are refused.
pub fn decode_change(key: &str, value: Option<&[u8]>) -> Result<Option<Change>, RowError> {
    Ok(match (Key::decode(key), value) {
        (Some(Key::Cluster), Some(bytes)) => Some(Change::Cluster(decode_row(bytes)?)),
        (Some(Key::View), Some(bytes)) => Some(Change::View(decode_row(bytes)?)),
        (Some(Key::Node(id)), value) => Some(Change::Node(id, value.map(decode_row).transpose()?)),
        (Some(Key::Probation(id)), value) => Some(Change::Probation(id, value.map(decode_row).transpose()?)),
        (Some(Key::Drain(id)), value) => Some(Change::Drain(id, value.map(decode_row).transpose()?)),
        (Some(Key::Container(id)), value) => {
            Some(Change::Container(id, value.map(decode_row).transpose()?.map(Box::new)))
        }
        (Some(Key::Cluster | Key::View), None)
        | (
            Some(
                Key::ViewRecord(_)
                | Key::Invite(_)
                | Key::Name(_)
                | Key::Group(_)
                | Key::GroupRequest(_)
                | Key::GroupStandby(..),
            )
            | None,
            _,
        ) => None,
    })
}
