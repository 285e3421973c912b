//! Who is there: what a new list of members, a joining node and a repaired connection mean for registrations.
//!
//! Decides when a source counts as down or restarted, whose registrations end with it, and that a joining node has
//! every registration of the whole cluster before it counts as up. Must never end anything on another ground than the
//! list it is given; leases are the business of `timers.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::machine::{Asking, Peer, Standing};
use super::message::{NOTIFY_BYTES, topic_bytes};
use super::source::Feed;
use super::stream::{Consumer, Key, State};
use super::{Batch, ConsumerId, Events, Life, Message, Scope, Topic, Variant};
use crate::ids::{Incarnation, NodeId};
use crate::time::Time;

/// Of how many topics of nodes that are gone it is kept what they told.
const GONE_MAX: usize = 1_024;

impl Events {
    /// Takes over the list of members.
    pub(super) fn install(&mut self, now: Time, members: &BTreeMap<NodeId, Incarnation>, out: &mut Batch) {
        let standing = if self.knows_members { Standing::New } else { Standing::Old };
        self.knows_members = true;
        let gone: Vec<NodeId> =
            self.peers.keys().filter(|node| !members.contains_key(node)).copied().collect();
        for node in gone {
            self.gone(node, out);
        }
        let me = self.me.node;
        for (node, incarnation) in members.iter().filter(|(node, _)| **node != me) {
            let life = Life { node: *node, incarnation: *incarnation };
            match self.peers.get_mut(node) {
                Some(peer) if peer.incarnation >= *incarnation => {}
                Some(_) => {
                    self.drop_feeds(*node, out);
                    self.meet(now, life);
                    self.appear(now, life, Standing::New, out);
                }
                None => {
                    self.meet(now, life);
                    self.appear(now, life, standing, out);
                }
            }
        }
        if members.get(&me) == Some(&self.me.incarnation) {
            self.asking = None;
        } else if self.asking.is_none() {
            self.ask_next(now, out);
        }
    }

    fn meet(&mut self, now: Time, life: Life) {
        let renew_at = now + self.settings.renew;
        let peer = Peer {
            incarnation: life.incarnation,
            ready: BTreeSet::new(),
            turn: None,
            in_flight: 0,
            feeds: BTreeMap::new(),
            renew_at,
        };
        self.peers.insert(life.node, peer);
        self.wake_by(Some(renew_at));
    }

    fn gone(&mut self, node: NodeId, out: &mut Batch) {
        self.drop_feeds(node, out);
        self.peers.remove(&node);
        for key in self.streams_of(node) {
            if let Some(stream) = self.streams.get_mut(&key) {
                stream.down(&mut self.stamp);
                self.wake_stream(&key, out);
            }
        }
        self.forget_gone(node, out);
    }

    /// Forgets what some of those who left long ago told. Should one come back, its consumers know where they were.
    fn forget_gone(&mut self, but: NodeId, out: &mut Batch) {
        let gone = self.streams.iter().filter(|(key, stream)| {
            key.node != but && matches!(stream.state, State::Down) && !self.peers.contains_key(&key.node)
        });
        let gone: Vec<Key> = gone.map(|(key, _)| key.clone()).collect();
        for key in gone.iter().take(gone.len().saturating_sub(GONE_MAX)) {
            self.end_stream(key, out);
        }
    }

    /// A node is a member: what was followed before goes on or begins anew, and whoever wants it gets its place.
    fn appear(&mut self, now: Time, life: Life, standing: Standing, out: &mut Batch) {
        for key in self.streams_of(life.node) {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            if stream.source.life.incarnation < life.incarnation {
                stream.restart(life, &mut self.stamp);
                self.wake_stream(&key, out);
            }
            self.ask(now, &key, out);
        }
        let wants = |scope: Scope| match scope {
            Scope::Local => false,
            Scope::Cluster => true,
            Scope::Node(node) => node == life.node,
        };
        let follows = |consumer: &Consumer| {
            consumer.places.get(&life.node).is_some_and(|(lane, _)| {
                let key = Key { node: life.node, topic: consumer.topic.clone(), lane: *lane };
                self.streams.contains_key(&key)
            })
        };
        let new = self
            .consumers
            .iter()
            .filter(|(_, consumer)| wants(consumer.interest.scope) && !follows(consumer));
        let new: Vec<ConsumerId> = new.map(|(id, _)| *id).collect();
        for id in new {
            self.attach(now, id, life, standing, out);
        }
    }

    fn streams_of(&self, node: NodeId) -> Vec<Key> {
        self.streams.keys().filter(|key| key.node == node).cloned().collect()
    }

    /// Ends every registration of a node.
    fn drop_feeds(&mut self, node: NodeId, out: &mut Batch) {
        let topics: Vec<Arc<Topic>> = self.topics.keys().cloned().collect();
        for topic in topics {
            self.drop_feed(&topic, out, |(of, _), _| *of == node);
        }
    }

    /// Ends registrations of other nodes for one topic.
    pub(super) fn drop_feed(
        &mut self,
        topic: &Arc<Topic>,
        out: &mut Batch,
        ends: impl Fn(&(NodeId, u64), &Feed) -> bool,
    ) {
        let Some(watched) = self.topics.get(topic) else { return };
        let ending = watched.feeds.iter().filter(|(key, feed)| ends(key, feed));
        let ending: Vec<((NodeId, u64), usize)> =
            ending.map(|(key, feed)| (*key, feed.flow.in_flight())).collect();
        if ending.is_empty() {
            return;
        }
        for ((node, number), bytes) in &ending {
            if let Some(peer) = self.peers.get_mut(node) {
                peer.feeds.remove(number);
                peer.in_flight = peer.in_flight.saturating_sub(*bytes);
                self.touched.insert(*node);
            }
        }
        self.edit(topic, out, |watched| {
            for (key, _) in &ending {
                watched.feeds.remove(key);
            }
        });
    }

    /// Asks the next of the members for what the whole cluster registered for. As that is repeated before leases end, a
    /// node that waits for long to be a member has what there is then.
    pub(super) fn ask_next(&mut self, now: Time, out: &mut Batch) {
        use std::ops::Bound::{Excluded, Unbounded};
        let last = self.asking.as_ref().and_then(|asking| asking.of);
        let next = last.and_then(|last| self.peers.range((Excluded(last), Unbounded)).next());
        let next = next.or_else(|| self.peers.first_key_value()).map(|(node, _)| *node);
        self.asking = Some(Asking { of: next, after: None, again_at: now });
        if next.is_some() {
            return self.ask_for_more(now, out);
        }
        // Nobody else is there whose registrations could be missed.
        self.provisioned(now, out);
    }

    fn ask_for_more(&mut self, now: Time, out: &mut Batch) {
        let Some(asking) = &mut self.asking else { return };
        let Some((node, peer)) = asking.of.and_then(|of| self.peers.get_key_value(&of)) else { return };
        let member = Life { node: *node, incarnation: peer.incarnation };
        out.send.push((member, Message::Join { after: asking.after.clone() }));
        asking.again_at = now + self.settings.retry;
        let again_at = asking.again_at;
        self.wake_by(Some(again_at));
    }

    fn provisioned(&mut self, now: Time, out: &mut Batch) {
        let Some(asking) = &mut self.asking else { return };
        asking.again_at = now + self.settings.renew;
        out.provisioned = true;
        let again_at = asking.again_at;
        self.wake_by(Some(again_at));
    }

    /// This node was told what it asked for, or some of it.
    pub(super) fn told_registrations(
        &mut self,
        now: Time,
        from: Life,
        registrations: Vec<(Life, Topic)>,
        is_all: bool,
        out: &mut Batch,
    ) {
        if self.asking.as_ref().and_then(|asking| asking.of) != Some(from.node) {
            return;
        }
        for (life, topic) in &registrations {
            self.replicated(now, *life, topic, out);
        }
        if is_all || registrations.is_empty() {
            return self.provisioned(now, out);
        }
        if let Some(asking) = &mut self.asking {
            asking.after = registrations.into_iter().next_back();
        }
        self.ask_for_more(now, out);
    }

    /// Tells a joining node what the whole cluster registered for, as far as it is known here; as much as a message takes.
    pub(super) fn tell_registrations(&self, to: Life, after: Option<(Life, Topic)>, out: &mut Batch) {
        let own = self.consumers.values().filter(|consumer| {
            consumer.interest.scope == Scope::Cluster && consumer.interest.variant == Variant::Replicated
        });
        let own = own.map(|consumer| (self.me, Topic::clone(&consumer.topic)));
        let others = self.topics.iter().flat_map(|(topic, watched)| {
            let feeds = watched.feeds.iter().filter(|(_, feed)| feed.variant == Variant::Replicated);
            let of = |(node, feed): (NodeId, &Feed)| Life { node, incarnation: feed.incarnation };
            feeds.map(move |((node, _), feed)| (of((*node, feed)), Topic::clone(topic)))
        });
        let left: BTreeSet<(Life, Topic)> =
            own.chain(others).filter(|one| after.as_ref().is_none_or(|after| one > after)).collect();
        let count = left.len();
        let mut bytes = 0;
        let fits = |(_, topic): &(Life, Topic)| {
            bytes += topic_bytes(topic) + size_of::<Life>();
            bytes <= NOTIFY_BYTES
        };
        let registrations: Vec<(Life, Topic)> = left.into_iter().take_while(fits).collect();
        let is_all = registrations.len() == count;
        out.send.push((to, Message::Replicate { registrations, is_all }));
    }

    /// Sends again what may have been lost with a connection.
    pub(super) fn reconnect(&mut self, now: Time, node: NodeId, out: &mut Batch) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.renew_at = now;
        for (topic, watched) in &mut self.topics {
            for (_, feed) in watched.feeds.range_mut((node, 0)..=(node, u64::MAX)) {
                let bytes = feed.flow.rewind();
                peer.in_flight = peer.in_flight.saturating_sub(bytes);
                peer.ready.insert(topic.clone());
            }
        }
        self.touched.insert(node);
        for key in self.streams_of(node) {
            let is_asking =
                self.streams.get(&key).is_some_and(|stream| matches!(stream.state, State::Asking { .. }));
            if is_asking {
                self.ask_again(now, &key, out);
            }
        }
        self.renew(now, out);
    }
}
