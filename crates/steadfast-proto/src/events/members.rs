//! Who is there: what a new list of members, a joining node and a repaired connection mean for registrations.
//!
//! Decides when a source counts as down or restarted, whose registrations end with it, and that a joining node has
//! every registration of the whole cluster before it counts as up. Must never end anything on another ground than the
//! list it is given; leases are the business of `timers.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::machine::{Peer, Provision, Standing};
use super::message::{NOTIFY_BYTES, topic_bytes};
use super::source::Feed;
use super::stream::{Consumer, Key, State};
use super::{Batch, ConsumerId, Events, Life, Message, Scope, Topic, Variant};
use crate::ids::{Incarnation, NodeId};
use crate::time::Time;

/// How many nodes join at once through one member at most.
const JOINING_MAX: usize = 16;
/// Of how many topics of nodes that are gone it is kept what they told.
const GONE_MAX: usize = 1_024;

impl Events {
    /// Takes over the list of members.
    pub(super) fn install(&mut self, now: Time, members: &BTreeMap<NodeId, Incarnation>, out: &mut Batch) {
        let standing = if self.knows_members { Standing::New } else { Standing::Old };
        self.knows_members = true;
        let is_gone = |(node, peer): &(&NodeId, &Peer)| !peer.is_joining && !members.contains_key(node);
        let gone: Vec<NodeId> = self.peers.iter().filter(is_gone).map(|(node, _)| *node).collect();
        for node in gone {
            self.gone(node, out);
        }
        let me = self.me.node;
        for (node, incarnation) in members.iter().filter(|(node, _)| **node != me) {
            let life = Life { node: *node, incarnation: *incarnation };
            match self.peers.get_mut(node) {
                Some(peer) if peer.incarnation > *incarnation => {}
                Some(peer) if peer.incarnation == *incarnation && !peer.is_joining => {}
                Some(peer) if peer.incarnation == *incarnation => {
                    peer.is_joining = false;
                    self.appear(now, life, Standing::New, out);
                }
                Some(_) => {
                    self.drop_feeds(*node, out);
                    self.meet(now, life, false);
                    self.appear(now, life, Standing::New, out);
                }
                None => {
                    self.meet(now, life, false);
                    self.appear(now, life, standing, out);
                }
            }
        }
    }

    fn meet(&mut self, now: Time, life: Life, is_joining: bool) {
        let renew_at = now + self.settings.renew;
        let peer = Peer {
            incarnation: life.incarnation,
            is_joining,
            ready: BTreeSet::new(),
            turn: None,
            in_flight: 0,
            feeds: BTreeMap::new(),
            renew_at,
            provision: None,
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

    /// Gives a joining node what the whole cluster registered for.
    pub(super) fn join(&mut self, now: Time, life: Life, out: &mut Batch) {
        if life.node == self.me.node {
            return;
        }
        let joining = self.peers.values().filter(|peer| peer.is_joining).count();
        match self.peers.get(&life.node) {
            Some(peer) if peer.incarnation > life.incarnation => return,
            Some(peer) if peer.incarnation == life.incarnation => {}
            Some(_) => {
                self.gone(life.node, out);
                self.meet(now, life, true);
            }
            None if joining >= JOINING_MAX => return self.rejected += 1,
            None => self.meet(now, life, true),
        }
        let pages = self.pages();
        let Some(peer) = self.peers.get_mut(&life.node) else { return };
        peer.provision = Some(Provision { pages, page: 0, again_at: now });
        self.provision(now, life, out);
    }

    /// Every registration of the whole cluster that is known here, in messages.
    fn pages(&self) -> Vec<Vec<(Life, Topic)>> {
        let own = self.consumers.values().filter(|consumer| {
            consumer.interest.scope == Scope::Cluster && consumer.interest.variant == Variant::Replicated
        });
        let own = own.map(|consumer| (self.me, consumer.topic.clone()));
        let others = self.topics.iter().flat_map(|(topic, watched)| {
            let feeds = watched.feeds.iter().filter(|(_, feed)| feed.variant == Variant::Replicated);
            feeds
                .map(|((node, _), feed)| (Life { node: *node, incarnation: feed.incarnation }, topic.clone()))
        });
        let all: BTreeSet<(Life, Arc<Topic>)> = own.chain(others).collect();
        let (mut pages, mut bytes): (Vec<Vec<(Life, Topic)>>, usize) = (Vec::new(), usize::MAX);
        for (life, topic) in all {
            let size = topic_bytes(&topic) + size_of::<Life>();
            if bytes.saturating_add(size) > NOTIFY_BYTES {
                pages.push(Vec::new());
                bytes = 0;
            }
            bytes += size;
            if let Some(page) = pages.last_mut() {
                page.push((life, Topic::clone(&topic)));
            }
        }
        pages
    }

    /// Sends a joining node its next message, or says that it has everything.
    pub(super) fn provision(&mut self, now: Time, life: Life, out: &mut Batch) {
        let again_at = now + self.settings.retry;
        let Some(peer) = self.peers.get_mut(&life.node) else { return };
        let Some(provision) = &mut peer.provision else { return };
        let index = usize::try_from(provision.page).unwrap_or(usize::MAX);
        let Some(registrations) = provision.pages.get(index).cloned() else {
            peer.provision = None;
            return out.provisioned.push(life);
        };
        provision.again_at = again_at;
        let page = provision.page;
        out.send.push((life, Message::Replicate { page, registrations }));
        self.wake_by(Some(again_at));
    }

    /// Sends again what may have been lost with a connection.
    pub(super) fn reconnect(&mut self, now: Time, node: NodeId, out: &mut Batch) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let life = Life { node, incarnation: peer.incarnation };
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
        self.provision(now, life, out);
        self.renew(now, out);
    }
}
