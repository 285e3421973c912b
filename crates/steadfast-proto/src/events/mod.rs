//! Events: what happened on which node, and who registered to be told of it (PROTOCOLS 4.3).
//!
//! Decides which producers are active, which node is told of what, and what each consumer is given: every event once
//! and in the producer's order, or the range that it missed. Must never take what another node tells for something
//! that happened here, and never let a slow consumer hold up a producer or another consumer.
//! Read [`Events`], then `source.rs` (own topics) and `stream.rs` (topics of other nodes);
//! `docs/protocols/events.md` has the rules and the invariants EV1-EV5.
//!
//! ```
//! use steadfast_proto::events::*;
//! use steadfast_proto::ids::{Incarnation, NodeId};
//! use steadfast_proto::machine::Machine;
//! use steadfast_proto::time::Time;
//!
//! let me = Life { node: NodeId(1), incarnation: Incarnation(1) };
//! let mut events = Events::new(me, Settings::default());
//! let (mut out, now) = (Batch::default(), Time::ZERO);
//! let topic = Topic::from("user.backup".parse::<EventType>().unwrap());
//! let (id, interest) = (ConsumerId(1), Interest::local(topic.clone()));
//! events.step(now, Input::Register { id, interest }, &mut out);
//! assert_eq!(out.producers, [Order::Activate(topic.clone())]);
//! let what = Occurrence { at_unix_us: 0, fields: Fields::new() };
//! events.step(now, Input::Happened(vec![(topic, what)]), &mut out);
//! assert_eq!(out.news, [id]);
//! let told = events.take(now, id, 10, &mut out);
//! assert!(matches!(&told[..], [Delivery::Event(event)] if event.seq == 1));
//! ```

mod bucket;
mod deliver;
mod log;
mod machine;
mod members;
mod message;
mod receive;
mod settings;
mod source;
mod status;
mod stream;
mod timers;
mod topic;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, NodeId};

pub use machine::{Events, Input};
pub use message::{
    BODY_BYTES_MAX, EVENT_BYTES_MAX, InvalidMessage, Item, LIST_MAX, Message, Part, Progress, Start,
    TOPIC_BYTES_MAX,
};
pub use settings::{Rate, Settings};
pub use status::{Listener, Status, StreamState, StreamStatus, TopicStatus};
pub use topic::{
    EventType, FIELDS_MAX, Fields, InvalidType, NAME_BYTES_MAX, Occurrence, TEXT_BYTES_MAX, Topic, Value,
};

/// One life of one node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Life {
    /// The node.
    pub node: NodeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
}

impl fmt::Debug for Life {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}/{}", self.node, self.incarnation)
    }
}

/// Names a consumer on its node; chosen by the caller, never used twice in one life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId(pub u64);

/// A place in a node's sequence of events of one topic; a later life of the node is later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Which life of the node.
    pub incarnation: Incarnation,
    /// The number of an event in it.
    pub seq: u64,
}

/// Where a consumer's events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// This node. What happens does not leave it on this consumer's account.
    Local,
    /// Every node of the cluster, present and future.
    Cluster,
    /// One node, whether it is a member now or becomes one.
    Node(NodeId),
}

/// How interest of the whole cluster is made known (PROTOCOLS 4.3); of no account where the scope is narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Variant {
    /// B: a listener on each node, which steps back while somebody there listens too.
    Selective,
    /// A: the registration is every node's own, and a node has it before it counts as up.
    Replicated,
}

/// What a type of events tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Nature {
    /// Something that happened.
    Edge,
    /// A level: whoever registers late is told the present one at once.
    Level,
}

/// From where on a consumer wants events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Since {
    /// From its registration on.
    #[default]
    Now,
    /// Everything that is still retained.
    Oldest,
    /// What is still retained and not older than this, by the clock of the node where it happened.
    Time {
        /// Microseconds since 1970.
        unix_us: u64,
    },
    /// After these; from other nodes as `Now`.
    After(BTreeMap<NodeId, Position>),
}

/// What a consumer registers for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Interest {
    /// The topic.
    pub topic: Topic,
    /// From which nodes.
    pub scope: Scope,
    /// How to make it known; a property of the type.
    pub variant: Variant,
    /// What the type tells; a property of the type.
    pub nature: Nature,
    /// From where on.
    pub since: Since,
    /// By how many events it may fall behind before it misses some; at least 1, at most [`Settings::buffer_max`].
    pub buffer: usize,
}

impl Interest {
    /// Interest in what happens on this node from now on, with a buffer of 1,024 events.
    pub fn local(topic: Topic) -> Interest {
        let (scope, variant, nature) = (Scope::Local, Variant::Selective, Nature::Edge);
        Interest { topic, scope, variant, nature, since: Since::Now, buffer: 1_024 }
    }

    /// The same of every node, made known in this way.
    pub fn cluster(topic: Topic, variant: Variant) -> Interest {
        Interest { scope: Scope::Cluster, variant, ..Interest::local(topic) }
    }
}

/// Where events come from: their place in the sequence of this life of the node and this topic is their identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The node, in which of its lives.
    pub life: Life,
    /// The topic.
    pub topic: Arc<Topic>,
}

/// Something that happened. A clone shares what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Where.
    pub source: Arc<Source>,
    /// Its number there, from 1.
    pub seq: u64,
    /// What and when.
    pub what: Arc<Occurrence>,
}

impl Event {
    /// `NODE-UUID/incarnation/topic/seq`, which no other event has.
    pub fn id(&self) -> String {
        let Source { life, topic } = &*self.source;
        format!("{}/{}/{}/{}", life.node, life.incarnation, topic, self.seq)
    }
}

/// By identity, which determines the rest.
impl Hash for Event {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source.hash(state);
        self.seq.hash(state);
    }
}

/// Events that a consumer misses, by their numbers; both ends belong to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gap {
    /// Whose.
    pub source: Arc<Source>,
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
    /// Why.
    pub reason: GapReason,
}

/// Why events are missing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GapReason {
    /// The consumer was slower than its buffer allows.
    Overrun,
    /// The source does not retain them any more.
    Retention,
    /// They were more than the rate of the topic allows; the range's length is their number.
    Suppressed,
    /// Nobody was registered for a while: one number stands for whatever happened then.
    Unwatched,
    /// The producer lost them, or they were too big; the range's length is their number as far as it is known.
    Producer,
    /// The node can't watch this, and why: one number stands for whatever happens until somebody registers again.
    Unwatchable(String),
}

/// What a consumer is given.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Delivery {
    /// An event.
    Event(Event),
    /// Events that the consumer misses.
    Gap(Gap),
    /// The node started again: a new sequence begins, and what was not told of the old one is lost with it.
    SourceRestarted(Arc<Source>),
    /// The node is no member any more. Its sequence goes on should it come back in the same life.
    SourceDown(Arc<Source>),
    /// The node refuses the registration. It is asked again; this is told once for each reason.
    SourceRefused(Arc<Source>, Refusal),
}

impl Delivery {
    /// Where it comes from.
    pub fn source(&self) -> &Arc<Source> {
        match self {
            Delivery::Event(event) => &event.source,
            Delivery::Gap(gap) => &gap.source,
            Delivery::SourceRestarted(source)
            | Delivery::SourceDown(source)
            | Delivery::SourceRefused(source, _) => source,
        }
    }
}

/// What a producer is to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Begin to watch.
    Activate(Topic),
    /// Watch no more.
    Deactivate(Topic),
    /// Tell the present level again, for somebody who registered late.
    Reannounce(Topic),
}

/// Why a registration is refused; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// As many consumers as there may be.
    #[error("as many consumers of events are registered on this node as are possible; end one")]
    TooManyConsumers,
    /// As many topics as there may be, all of them in use.
    #[error("as many topics of events are watched on the node as are possible; end a registration for one")]
    TooManyTopics,
    /// As many registrations of one node as another serves.
    #[error("the node has as many registrations for events on another as are possible; end one")]
    TooManyRegistrations,
    /// The topic fixes too much.
    #[error(
        "the topic takes more than {TOPIC_BYTES_MAX} bytes, or a name in it is empty or too long; fix fewer or shorter fields"
    )]
    TopicTooBig,
    /// The id is in use.
    #[error("a consumer with this id is registered already; give each a new id")]
    SameId,
}

/// What a step wants done; fields stand in the order in which to do it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// To producers, in this order.
    pub producers: Vec<Order>,
    /// Leaves now. May be lost, doubled or overtaken.
    pub send: Vec<(Life, Message)>,
    /// Registrations that were refused.
    pub refused: Vec<(ConsumerId, Refusal)>,
    /// Consumers whose registration every node that they ask has taken; told once for each.
    pub settled: Vec<ConsumerId>,
    /// Consumers that had nothing to take and have now. Each is told again only after it took everything.
    pub news: Vec<ConsumerId>,
    /// This node, which is no member yet, has every registration of the whole cluster and may count as up.
    pub provisioned: bool,
}
