//! What `steadfast events --status` shows of a node: its own topics, and those of others that it follows.
//!
//! Only reads. The listener's states are those of PROTOCOLS 4.3.

use super::{Life, Topic};
use crate::ids::NodeId;

/// The listener of a topic, which speaks for all other nodes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Listener {
    /// No other node asked.
    #[default]
    Off,
    /// It is the one registration that keeps the producer active.
    Registered,
    /// Others on this node keep the producer active; it takes copies.
    Observing,
}

/// One topic of this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TopicStatus {
    /// The topic.
    pub topic: Topic,
    /// Whether the producer is active.
    pub active: bool,
    /// What the listener does.
    pub listener: Listener,
    /// How many consumers on this node.
    pub consumers: usize,
    /// Nodes whose registration for the whole cluster is this node's own (variant A).
    pub replicated: Vec<NodeId>,
    /// Nodes for which the listener listens (variant B).
    pub selective: Vec<NodeId>,
    /// The number that the next event will have.
    pub next_seq: u64,
    /// How many events and gaps are retained.
    pub retained: usize,
    /// How many bytes they take.
    pub retained_bytes: usize,
    /// How many events the rate did not let through, in this life.
    pub suppressed: u64,
}

/// Whether another node tells what it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamState {
    /// Asked, not answered.
    Asking,
    /// It answered that it will tell.
    Live,
    /// It is no member.
    Down,
    /// It refused; it is asked again.
    Refused(super::Refusal),
}

/// One topic of another node that this one follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamStatus {
    /// The node, in which of its lives.
    pub life: Life,
    /// The topic.
    pub topic: Topic,
    /// Whether it tells.
    pub state: StreamState,
    /// How many consumers here.
    pub consumers: usize,
    /// Up to which number it is here.
    pub upto: u64,
    /// How many events, gaps and marks are retained here.
    pub retained: usize,
}

/// What a node does for events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Status {
    /// Its own topics.
    pub topics: Vec<TopicStatus>,
    /// Those of others.
    pub streams: Vec<StreamStatus>,
    /// How many consumers are registered.
    pub consumers: usize,
    /// How many messages were out of place or from nobody that is known.
    pub rejected: u64,
    /// How many occurrences nobody was registered for.
    pub stray: u64,
}
