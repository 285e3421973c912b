//! The JSON of programs and their instances.
//!
//! Part of the HTTP API like [`super::types`], with the same rules. States, payloads and answers are any JSON: bytes that
//! are none are `{"base64": "..."}`, and no bytes are null (`crate::episodes::programs::json` has the rule).

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// Asks for a version of a program to be deployed: one of `wasm`, `http` and `command`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// The bytes of a WebAssembly module, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wasm: Option<String>,
    /// The address of an end point: `http://HOST:PORT/PATH`, `https://...` or `unix:/PATH/OF/SOCKET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// A command that is run once for each episode, with its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Which version it is, from 1; the next one when absent. New instances run the version that was deployed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// When an episode may begin: `strict`, when all messages of the last one are finished, or `pipelined`, when all are
    /// acknowledged. As it was when absent; `strict` for a new program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Where its instances are kept: `local`, on the disk of one node each, `mirror`, on the disks of two, or `shared`, in the
    /// database that nodes reach; with both of these others go on with them when a node is lost. Never changes; `local` for a new
    /// program when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// The version that new instances run.
    pub current: u32,
    /// `strict` or `pipelined`.
    pub mode: String,
    /// `local`, `mirror` or `shared`: where its instances are kept.
    pub store: String,
    /// All that instances may run.
    pub versions: Vec<ProgramVersion>,
    /// In the answer to a deployment: the nodes that did not say that they know of it. They learn it when they are back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unaware: Vec<String>,
}

/// One version of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgramVersion {
    /// Which.
    pub version: u32,
    /// `wasm`, `http` or `command`.
    pub source: String,
    /// The module's digest and size, the address, or the command.
    pub what: String,
    /// When it was deployed.
    pub deployed_unix_ms: u64,
}

/// Begins an instance.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    /// Its input: any JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    pub payload: Option<Box<RawValue>>,
}

/// Tells an instance something.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SendRequest {
    /// What it is, in the words of the program.
    pub kind: String,
    /// What it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// What it says: any JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    pub payload: Option<Box<RawValue>>,
}

/// Lets an instance run another version of its program.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Which.
    pub version: u32,
}

/// What became of a request; it is durable.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EpisodeAnswer {
    /// `taken`: nothing was waited for; `answered`; or `ended`: there is no answer to give, and `why` says why.
    pub outcome: String,
    /// The answer of the instance: any JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    pub answer: Option<Box<RawValue>>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Instances, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceList {
    /// Those of this page.
    pub instances: Vec<InstanceRow>,
    /// What `after` is for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The nodes that did not answer: what they keep is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<String>,
}

/// An instance in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceRow {
    /// Its name.
    pub name: String,
    /// The node that keeps it.
    pub node: String,
    /// Which version of its program it runs.
    pub version: u32,
    /// `running`, `waiting`, `sending`, `paused`, `failing`, `parked`, `ended` or `cancelled`.
    pub doing: String,
    /// What it waits for, in a few words; empty when it has ended.
    #[serde(default)]
    pub waits_for: String,
    /// How many episodes it has had.
    pub episode: u64,
    /// How many events have come and were not consumed.
    pub inbox: u64,
    /// How many of its messages are not acknowledged.
    pub unacked: u64,
    /// How many are acknowledged and not confirm-acked.
    pub unconfirmed: u64,
    /// When it began.
    pub begun_unix_ms: u64,
}

/// An instance, with all that it waits for.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// What a list shows of it.
    #[serde(flatten)]
    pub row: InstanceRow,
    /// When its next episode may begin: `strict` or `pipelined`.
    pub mode: String,
    /// `local`, `mirror` or `shared`: where it is kept.
    pub store: String,
    /// Whether its program has this version on the node that keeps it.
    pub is_deployed: bool,
    /// Which of the lives of that name.
    pub epoch: u64,
    /// When this was so.
    pub now_unix_ms: u64,
    /// What its last episode left: any JSON.
    #[schema(value_type = Value)]
    pub state: Box<RawValue>,
    /// What it waits for: any of these.
    pub wait: Vec<WaitedFor>,
    /// Until when it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_unix_ms: Option<u64>,
    /// Why it begins no episodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<StoppedWhy>,
    /// What it said at its end: any JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    pub answer: Option<Box<RawValue>>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_unix_ms: Option<u64>,
    /// What has come and was not consumed, oldest first; the first few.
    pub events: Vec<EventShown>,
    /// What it sends and is not finished, by receiver.
    pub outboxes: Vec<OutboxShown>,
    /// Who has sent to it.
    pub peers: Vec<PeerShown>,
    /// Which instance began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Those that it began and that have not ended.
    pub children: Vec<String>,
    /// Whether nothing is remembered of any message: every exchange is finished at this end, and consumed.
    pub is_quiet: bool,
}

/// What one event must be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitedFor {
    /// Of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// From this instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// With this correlation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// True of this filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

/// Why an instance begins no episodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoppedWhy {
    /// How often in a row its episode failed; 0 when a person paused it.
    pub attempts: u32,
    /// Why, the last time.
    pub why: String,
    /// When it is tried again; absent where it waits for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_unix_ms: Option<u64>,
}

/// Something that has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventShown {
    /// What it is.
    pub kind: String,
    /// Which instance sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// How large its payload is.
    pub bytes: u64,
}

/// Messages to one receiver that are not finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutboxShown {
    /// The receiver.
    pub to: String,
    /// How many are not acknowledged.
    pub unacked: u64,
    /// How many are acknowledged and not confirm-acked.
    pub unconfirmed: u64,
    /// How many were given up, of which the receiver does not know yet.
    pub given_up: u64,
    /// What those say that are not acknowledged: their kinds; the first few.
    pub kinds: Vec<String>,
    /// How far each has come, the oldest first; the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<MessageShown>,
    /// Since when nothing of it came further.
    pub since_unix_ms: u64,
    /// How often it was sent again since.
    pub attempts: u32,
    /// When it is sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again_unix_ms: Option<u64>,
    /// To an adapter: what became of each so far; the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub effects: Vec<EffectShown>,
}

/// An effect on a foreign system that is not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EffectShown {
    /// The id of its message, which the foreign system is told.
    pub id: String,
    /// The foreign system.
    pub target: String,
    /// `running`; `queued`, behind others to the same system; or `waiting`, to be tried again.
    pub doing: String,
    /// How often it was tried in vain.
    pub attempts: u32,
    /// Why, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When it is tried again at the earliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again_unix_ms: Option<u64>,
}

/// Who has sent to an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PeerShown {
    /// The sender.
    pub name: String,
    /// How many of its messages are finished.
    pub finished: u64,
    /// How many are remembered.
    pub remembered: u64,
    /// Those that were acknowledged and are not confirmed, the oldest first; the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<MessageShown>,
}

/// A message that is not finished, as one of its ends knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageShown {
    /// Its number among those of its sender to its receiver.
    pub seq: u64,
    /// What it is, where that is still known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The last step that was made: `message`, `ack` or `confirm`; `given-up`; or `confirm-ack`, behind one that is not finished.
    pub step: String,
}

/// An episode that was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PastEpisode {
    /// Its number.
    pub episode: u64,
    /// What began it.
    pub kind: String,
    /// Which instance sent that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// When it ended.
    pub at_unix_ms: u64,
    /// How many messages it sent.
    pub sent: u32,
}
