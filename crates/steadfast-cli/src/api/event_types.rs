//! The JSON of events beside the events themselves, which are [`crate::events::cloud::CloudEvent`]s.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// What somebody says has happened: one event, or up to 1,000 in their order.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum EmitRequest {
    /// One.
    One(Emitted),
    /// All of these, or none when one can't be taken.
    Many(Vec<Emitted>),
}

/// By hand, so that what is wrong is named.
impl<'de> Deserialize<'de> for EmitRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let given = Value::deserialize(deserializer)?;
        let read = match given {
            Value::Array(_) => Vec::deserialize(given).map(EmitRequest::Many),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                Emitted::deserialize(given).map(EmitRequest::One)
            }
        };
        read.map_err(D::Error::custom)
    }
}

/// Something that somebody says has happened.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Emitted {
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
