//! The JSON of events beside the events themselves, which are [`crate::events::cloud::CloudEvent`]s.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Something that somebody says has happened.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EmitRequest {
    /// Its type: `user.` and more.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its fields: texts, numbers, `true` or `false`.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub fields: Map<String, Value>,
}

/// What a node does for events.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventsStatus {
    /// The node that answers.
    pub node: String,
    /// What is, or was, registered for on it.
    pub topics: Vec<WatchedTopic>,
    /// What it follows of other nodes.
    pub followed: Vec<FollowedTopic>,
    /// How many consumers are registered on it.
    pub consumers: usize,
}

/// One topic on the node that answers.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WatchedTopic {
    /// The type, and what of it: `process.exit[pid=812]`.
    pub topic: String,
    /// Whether what tells of it is active.
    pub active: bool,
    /// What the listener for other nodes does: `off`, `registered` or `observing`.
    pub listener: String,
    /// How many consumers on this node.
    pub consumers: usize,
    /// Other nodes that it is told to.
    pub told_to: Vec<String>,
    /// The number that the next event will have.
    pub next: u64,
    /// How many are kept.
    pub retained: usize,
    /// How many came faster than the type's rate allows.
    pub suppressed: u64,
    /// Why it can't be watched here.
    pub why_not: Option<String>,
}

/// One topic of another node that the node that answers follows.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FollowedTopic {
    /// The other node.
    pub node: String,
    /// The type, and what of it.
    pub topic: String,
    /// `asking`, `live`, `down` or `refused`.
    pub state: String,
    /// How many consumers on this node.
    pub consumers: usize,
    /// Up to which number it is here.
    pub upto: u64,
}
