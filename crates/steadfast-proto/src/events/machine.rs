//! The machine: one node's part in telling everybody what they registered for.
//!
//! Here are its state and what consumers and producers do to it; `members.rs` has who is there, `receive.rs` what
//! other nodes say, `timers.rs` what time does, `deliver.rs` how events get to consumers and to other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::message::{Start, is_sound_topic};
use super::source::{Published, Watched};
use super::stream::{Consumer, Key, Lane, Stream};
use super::{
    Batch, ConsumerId, GapReason, Interest, Life, Message, Nature, Occurrence, Order, Position, Refusal,
    Scope, Settings, Since, Source, Status, Topic,
};
use crate::ids::{Incarnation, NodeId};
use crate::machine::Machine;
use crate::time::Time;

/// The longest reason why something can't be watched, in bytes; what is longer is cut.
pub(super) const WHY_BYTES_MAX: usize = 512;

/// What can happen to a node's part in events.
#[derive(Clone, Debug)]
pub enum Input {
    /// A consumer on this node registers. It is refused, or settled at once or later.
    Register {
        /// Its name from now on.
        id: ConsumerId,
        /// For what.
        interest: Interest,
    },
    /// A consumer leaves.
    Leave {
        /// Which.
        id: ConsumerId,
    },
    /// What producers saw, in this order. Many at once go to other nodes in few messages.
    Happened(Vec<(Topic, Occurrence)>),
    /// A producer lost sight of so many events of its topic, or can't watch it.
    Missed {
        /// Which topic.
        topic: Topic,
        /// How many; at least 1.
        count: u64,
    },
    /// The producer of this topic can't watch it here, or no more, and why. It is told to begin again when somebody else
    /// registers.
    Unwatchable {
        /// Which topic.
        topic: Topic,
        /// One sentence, for people.
        why: String,
    },
    /// A message arrived from this life of a node, which the transport has made sure of.
    Received {
        /// Who sent it.
        from: Life,
        /// What it says.
        message: Message,
    },
    /// The list of members, this node among them or not. Whoever is not in it is gone. While this node, in its present
    /// life, is not in it, it asks them for all registrations of the whole cluster: only when it is `provisioned` may it
    /// be announced as up, otherwise its first events are missed.
    Members(BTreeMap<NodeId, Incarnation>),
    /// The way to this node works again: what was under way may be lost.
    Reconnected(NodeId),
    /// The time of [`Machine::deadline`] has come.
    Deadline,
}

/// One node's events: its producers, its consumers, and what it owes to and wants from other nodes.
///
/// Step it with inputs and carry out the [`Batch`]; when that names a consumer in `news`, [`take`](Events::take) what
/// there is until nothing is left. [`is_active`](Events::is_active) and [`status`](Events::status) only look.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Events {
    pub(super) me: Life,
    pub(super) settings: Arc<Settings>,
    pub(super) knows_members: bool,
    pub(super) peers: BTreeMap<NodeId, Peer>,
    /// What it asks for while it is no member.
    pub(super) asking: Option<Asking>,
    pub(super) topics: BTreeMap<Arc<Topic>, Watched>,
    pub(super) streams: BTreeMap<Key, Stream>,
    pub(super) numbers: BTreeMap<u64, Key>,
    pub(super) consumers: BTreeMap<ConsumerId, Consumer>,
    pub(super) next_number: u64,
    /// The first number of a topic's events that is certainly new in this life.
    pub(super) floor: u64,
    /// Counts what goes into logs.
    pub(super) stamp: u64,
    /// How many bytes all logs hold.
    pub(super) bytes: usize,
    /// Nodes for which there may be something to send; empty between steps.
    pub(super) touched: BTreeSet<NodeId>,
    pub(super) wake_at: Option<Time>,
    pub(super) rejected: u64,
    pub(super) stray: u64,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    pub(super) incarnation: Incarnation,
    /// Topics of which there is something to send.
    pub(super) ready: BTreeSet<Arc<Topic>>,
    /// The topic that was sent last: the one after it is next.
    pub(super) turn: Option<Arc<Topic>>,
    pub(super) in_flight: usize,
    /// What its registrations here are for.
    pub(super) feeds: BTreeMap<u64, Arc<Topic>>,
    pub(super) renew_at: Time,
}

/// What this node, which is no member yet, wants to know of one member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Asking {
    /// Whom it asked last; nobody if there is nobody else.
    pub(super) of: Option<NodeId>,
    /// The last registration that it was told.
    pub(super) after: Option<(Life, Topic)>,
    pub(super) again_at: Time,
}

impl Events {
    /// The events of a node that begins this life, with nobody registered and nobody known.
    pub fn new(me: Life, settings: Settings) -> Events {
        Events {
            me,
            settings: Arc::new(settings),
            knows_members: false,
            peers: BTreeMap::new(),
            asking: None,
            topics: BTreeMap::new(),
            streams: BTreeMap::new(),
            numbers: BTreeMap::new(),
            consumers: BTreeMap::new(),
            next_number: 1,
            floor: 1,
            stamp: 0,
            bytes: 0,
            touched: BTreeSet::new(),
            wake_at: None,
            rejected: 0,
            stray: 0,
        }
    }

    /// Whether the producer of `topic` is active here.
    pub fn is_active(&self, topic: &Topic) -> bool {
        self.topics.get(topic).is_some_and(Watched::is_active)
    }

    /// Nodes from which a consumer wants events and which have not answered yet.
    pub fn waiting_for(&self, id: ConsumerId) -> Vec<NodeId> {
        let Some(consumer) = self.consumers.get(&id) else { return Vec::new() };
        let is_waiting = |node: &NodeId, lane: Lane| {
            let key = Key { node: *node, topic: consumer.topic.clone(), lane };
            self.streams.get(&key).is_some_and(Stream::is_waiting)
        };
        let places = consumer.places.iter();
        places.filter(|(node, (lane, _))| is_waiting(node, *lane)).map(|(node, _)| *node).collect()
    }

    /// Up to where a consumer was told of each node, from which another can go on.
    pub fn positions(&self, id: ConsumerId) -> BTreeMap<NodeId, Position> {
        let places = self.consumers.get(&id).into_iter().flat_map(|consumer| &consumer.places);
        places.map(|(node, (_, cursor))| (*node, cursor.last)).collect()
    }

    /// What this node does for events.
    pub fn status(&self) -> Status {
        let topics = self.topics.values().map(Watched::status).collect();
        let streams = self.streams.values().map(Stream::status).collect();
        let (consumers, rejected, stray) = (self.consumers.len(), self.rejected, self.stray);
        Status { topics, streams, consumers, rejected, stray }
    }

    /// The state of one own topic.
    pub fn topic_status(&self, topic: &Topic) -> Option<super::TopicStatus> {
        self.topics.get(topic).map(Watched::status)
    }

    fn register(&mut self, now: Time, id: ConsumerId, mut interest: Interest, out: &mut Batch) {
        interest.buffer = interest.buffer.clamp(1, self.settings.buffer_max);
        let topic = match self.may_register(id, &interest) {
            Ok(topic) => topic,
            Err(refusal) => return out.refused.push((id, refusal)),
        };
        let scope = interest.scope;
        self.consumers.insert(id, Consumer::new(interest, topic));
        let wants = |node: NodeId| match scope {
            Scope::Local => false,
            Scope::Cluster => true,
            Scope::Node(wanted) => wanted == node,
        };
        if matches!(scope, Scope::Local | Scope::Cluster) || wants(self.me.node) {
            self.attach_own(id, out);
        }
        let members = self.peers.iter().filter(|(node, _)| wants(**node));
        let members: Vec<Life> =
            members.map(|(node, peer)| Life { node: *node, incarnation: peer.incarnation }).collect();
        for life in members {
            self.attach(now, id, life, Standing::Old, out);
        }
        self.settle_consumer(id, out);
    }

    fn may_register(&mut self, id: ConsumerId, interest: &Interest) -> Result<Arc<Topic>, Refusal> {
        if !is_sound_topic(&interest.topic) {
            return Err(Refusal::TopicTooBig);
        }
        if self.consumers.contains_key(&id) {
            return Err(Refusal::SameId);
        }
        if self.consumers.len() >= self.settings.consumers_max {
            return Err(Refusal::TooManyConsumers);
        }
        let known: BTreeSet<&Topic> = self.consumers.values().map(|consumer| &*consumer.topic).collect();
        if !known.contains(&interest.topic) && known.len() >= self.settings.topics_max {
            return Err(Refusal::TooManyTopics);
        }
        match interest.scope {
            Scope::Node(node) if node != self.me.node => Ok(Arc::new(interest.topic.clone())),
            Scope::Local | Scope::Cluster | Scope::Node(_) => self.watched(&interest.topic),
        }
    }

    /// Makes sure that a topic of this node is known.
    pub(super) fn watched(&mut self, topic: &Topic) -> Result<Arc<Topic>, Refusal> {
        if let Some((known, _)) = self.topics.get_key_value(topic) {
            return Ok(known.clone());
        }
        if self.topics.len() >= self.settings.topics_max {
            let unused = self.topics.iter().filter(|(_, watched)| !watched.is_wanted());
            let oldest = unused.min_by_key(|(_, watched)| watched.used).map(|(topic, _)| topic.clone());
            let oldest = oldest.ok_or(Refusal::TooManyTopics)?;
            if let Some(mut gone) = self.topics.remove(&oldest) {
                self.floor = self.floor.max(gone.next());
                gone.log = super::log::Log::default();
                self.recount();
            }
        }
        let topic = Arc::new(topic.clone());
        let source = Source { life: self.me, topic: topic.clone() };
        self.topics.insert(topic.clone(), Watched::new(source, self.floor));
        Ok(topic)
    }

    /// Gives a consumer its place in this node's own log.
    fn attach_own(&mut self, id: ConsumerId, out: &mut Batch) {
        let Some(consumer) = self.consumers.get(&id) else { return };
        let (topic, buffer) = (consumer.topic.clone(), consumer.interest.buffer);
        let was_active = self.is_active(&topic);
        self.edit(&topic, out, |watched| {
            watched.consumers.insert(id, buffer);
        });
        let (Some(watched), Some(consumer)) = (self.topics.get(&topic), self.consumers.get_mut(&id)) else {
            return;
        };
        let cursor = watched.cursor(&consumer.interest.since);
        consumer.places.insert(self.me.node, (Lane::Shared, cursor));
        if cursor.place < watched.log.end() && consumer.ready.insert(self.me.node) {
            out.news.push(id);
        }
        let nature = consumer.interest.nature;
        if was_active {
            self.tell_late(&topic, nature, out);
        }
    }

    /// Somebody registered for what a producer is active for already.
    pub(super) fn tell_late(&mut self, topic: &Arc<Topic>, nature: Nature, out: &mut Batch) {
        let Some(watched) = self.topics.get_mut(topic) else { return };
        if std::mem::take(&mut watched.is_unwatchable) {
            out.producers.push(Order::Activate(Topic::clone(topic)));
        } else if nature == Nature::Level {
            out.producers.push(Order::Reannounce(Topic::clone(topic)));
        }
    }

    /// Gives a consumer its place in what another node tells.
    pub(super) fn attach(
        &mut self,
        now: Time,
        id: ConsumerId,
        life: Life,
        standing: Standing,
        out: &mut Batch,
    ) {
        let Some(consumer) = self.consumers.get(&id) else { return };
        let topic = consumer.topic.clone();
        let shared = Key { node: life.node, topic: topic.clone(), lane: Lane::Shared };
        let of_life = |seq| Position { incarnation: life.incarnation, seq };
        let from_now_on = match standing {
            Standing::Old => Start::Now,
            Standing::New => Start::After(of_life(0)),
        };
        let known = consumer.places.get(&life.node).map(|(_, cursor)| Start::After(cursor.last));
        let start = match &consumer.interest.since {
            _ if known.is_some() => known.unwrap_or(from_now_on),
            Since::Now => return self.share(now, id, &shared, life, from_now_on, out),
            Since::Oldest => Start::Oldest,
            Since::Time { unix_us } => Start::Time { unix_us: *unix_us },
            Since::After(positions) => match positions.get(&life.node) {
                Some(last) if last.incarnation <= life.incarnation => Start::After(*last),
                Some(_) | None => return self.share(now, id, &shared, life, from_now_on, out),
            },
        };
        if let (Start::After(last), Some(stream)) = (start, self.streams.get_mut(&shared))
            && let Some(cursor) = stream.cursor_after(last)
        {
            stream.consumers.insert(id, consumer.interest.buffer);
            let is_news = cursor.place < stream.log.end();
            return self.place(id, life.node, Lane::Shared, cursor, is_news, out);
        }
        let key = Key { lane: Lane::Replay(id), ..shared };
        self.open(life, &key, id, start);
        let last = if let Start::After(last) = start { last } else { of_life(0) };
        let is_news = last.incarnation < life.incarnation;
        if let Some(stream) = self.streams.get_mut(&key).filter(|_| is_news) {
            stream.restart(life, &mut self.stamp);
        }
        let cursor = super::log::Cursor { place: 0, last };
        self.place(id, life.node, key.lane, cursor, is_news, out);
        self.ask(now, &key, out);
    }

    /// Lets a consumer join everybody's stream, from what comes next on.
    fn share(&mut self, now: Time, id: ConsumerId, key: &Key, life: Life, start: Start, out: &mut Batch) {
        let Some(consumer) = self.consumers.get(&id) else { return };
        let Interest { variant, nature, buffer, .. } = consumer.interest;
        let Some(stream) = self.streams.get_mut(key) else {
            self.open(life, key, id, start);
            let cursor = self.streams.get(key).map(Stream::cursor);
            let Some(cursor) = cursor else { return };
            self.place(id, life.node, key.lane, cursor, false, out);
            return self.ask(now, key, out);
        };
        stream.consumers.insert(id, buffer);
        let is_more = variant > stream.variant || nature == Nature::Level;
        stream.variant = stream.variant.max(variant);
        if nature == Nature::Level {
            stream.nature = Nature::Level;
        }
        let cursor = stream.cursor();
        self.place(id, life.node, key.lane, cursor, false, out);
        if is_more {
            self.ask(now, key, out);
        }
    }

    fn open(&mut self, life: Life, key: &Key, id: ConsumerId, start: Start) {
        let Some(consumer) = self.consumers.get(&id) else { return };
        let source = Source { life, topic: key.topic.clone() };
        let mut stream = Stream::new(source, self.next_number, &consumer.interest, start);
        stream.consumers.insert(id, consumer.interest.buffer);
        self.numbers.insert(self.next_number, key.clone());
        self.next_number += 1;
        self.streams.insert(key.clone(), stream);
    }

    fn place(
        &mut self,
        id: ConsumerId,
        node: NodeId,
        lane: Lane,
        cursor: super::log::Cursor,
        is_news: bool,
        out: &mut Batch,
    ) {
        let Some(consumer) = self.consumers.get_mut(&id) else { return };
        consumer.places.insert(node, (lane, cursor));
        let was_idle = consumer.ready.is_empty();
        if is_news && consumer.ready.insert(node) && was_idle {
            out.news.push(id);
        }
    }

    fn leave(&mut self, id: ConsumerId, out: &mut Batch) {
        let Some(consumer) = self.consumers.remove(&id) else { return };
        for (node, (lane, _)) in consumer.places {
            let topic = consumer.topic.clone();
            if node == self.me.node {
                self.edit(&topic, out, |watched| {
                    watched.consumers.remove(&id);
                });
                continue;
            }
            let key = Key { node, topic, lane };
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            stream.consumers.remove(&id);
            if stream.consumers.is_empty() {
                self.end_stream(&key, out);
            }
        }
    }

    /// Follows a topic of another node no more.
    pub(super) fn end_stream(&mut self, key: &Key, out: &mut Batch) {
        let Some(stream) = self.streams.remove(key) else { return };
        self.numbers.remove(&stream.number);
        self.recount();
        if self.peers.contains_key(&key.node) {
            out.send.push((stream.source.life, Message::Deregister { numbers: vec![stream.number] }));
        }
    }

    /// Changes who is registered for a topic of this node.
    pub(super) fn edit(&mut self, topic: &Arc<Topic>, out: &mut Batch, change: impl FnOnce(&mut Watched)) {
        let Some(watched) = self.topics.get_mut(topic) else { return };
        watched.used = self.stamp;
        if watched.edit(&mut self.stamp, &mut out.producers, change) {
            self.wake_own(topic, out);
        }
    }

    fn happened(&mut self, now: Time, topic: &Topic, what: Occurrence, out: &mut Batch) {
        let known = self.topics.get_key_value(topic).map(|(topic, _)| topic.clone());
        if let Some(topic) = known {
            self.publish(now, &topic, what, out);
        } else {
            self.stray += 1;
        }
    }

    pub(super) fn publish(&mut self, now: Time, topic: &Arc<Topic>, what: Occurrence, out: &mut Batch) {
        let Some(watched) = self.topics.get_mut(topic) else { return };
        match watched.publish(now, &mut self.stamp, what, &self.settings) {
            Published::News => self.wake_own(topic, out),
            Published::Stray => self.stray += 1,
            Published::Suppressed => {
                let close_at = watched.close_at();
                self.wake_by(close_at);
            }
        }
    }

    fn missed(&mut self, topic: &Topic, count: u64, reason: GapReason, out: &mut Batch) {
        let Some((topic, _)) = self.topics.get_key_value(topic) else { return };
        let topic = topic.clone();
        let Some(watched) = self.topics.get_mut(&topic).filter(|watched| watched.is_active()) else { return };
        watched.is_unwatchable = matches!(reason, GapReason::Unwatchable(_));
        watched.skip(&mut self.stamp, count, reason);
        self.wake_own(&topic, out);
    }
}

/// Whether a node was a member when this one first knew who is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Old,
    New,
}

impl Machine for Events {
    type Input = Input;
    type Output = Batch;

    fn step(&mut self, now: Time, input: Input, out: &mut Batch) {
        match input {
            Input::Register { id, interest } => self.register(now, id, interest, out),
            Input::Leave { id } => self.leave(id, out),
            Input::Happened(seen) => {
                for (topic, what) in seen {
                    self.happened(now, &topic, what, out);
                }
            }
            Input::Missed { topic, count } => self.missed(&topic, count, GapReason::Producer, out),
            Input::Unwatchable { topic, mut why } => {
                why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
                self.missed(&topic, 1, GapReason::Unwatchable(why), out);
            }
            Input::Received { from, message } => self.receive(now, from, message, out),
            Input::Members(members) => self.install(now, &members, out),
            Input::Reconnected(node) => self.reconnect(now, node, out),
            Input::Deadline => self.expire(now, out),
        }
        self.send_ready(now, out);
    }

    fn deadline(&self) -> Option<Time> {
        self.wake_at
    }
}
