//! How events get to consumers on this node and to other nodes.
//!
//! Consumers are woken once and then read at their own pace. Other nodes are sent what they registered for in as few
//! messages as that takes, topic by topic in turn, within what they said they have room for. Must never wait for
//! anybody, and never copy what an event says.

use std::sync::Arc;

use super::message::{NOTIFY_BYTES, Part};
use super::stream::{Key, Lane, Stream};
use super::{Batch, ConsumerId, Delivery, Events, Life, Message, Topic};
use crate::ids::NodeId;
use crate::time::Time;

impl Events {
    /// What there is for a consumer, at most `max`: in order for each source, and across sources as it came here.
    /// Nothing when it has taken everything, or is not registered.
    pub fn take(&mut self, now: Time, id: ConsumerId, max: usize, out: &mut Batch) -> Vec<Delivery> {
        let mut told = Vec::new();
        while told.len() < max {
            let Some((node, until)) = self.next_to_read(id) else { break };
            self.read(now, id, node, until, max, &mut told, out);
        }
        self.send_ready(now, out);
        told
    }

    /// The node whose next entry came first, and the stamp up to which no other has one.
    fn next_to_read(&self, id: ConsumerId) -> Option<(NodeId, u64)> {
        let consumer = self.consumers.get(&id)?;
        if let (Some(node), 1) = (consumer.ready.first(), consumer.ready.len()) {
            return Some((*node, u64::MAX));
        }
        let (mut first, mut until): (Option<(u64, NodeId)>, u64) = (None, u64::MAX);
        for node in &consumer.ready {
            let (lane, cursor) = consumer.places.get(node)?;
            let log = self.log(*node, &consumer.topic, *lane);
            let stamp = log.and_then(|log| log.next_stamp(cursor)).unwrap_or(0);
            match first {
                Some((least, _)) if least <= stamp => until = until.min(stamp),
                Some((least, _)) => {
                    until = least;
                    first = Some((stamp, *node));
                }
                None => first = Some((stamp, *node)),
            }
        }
        first.map(|(stamp, node)| (node, until.max(stamp)))
    }

    fn log(&self, node: NodeId, topic: &Arc<Topic>, lane: Lane) -> Option<&super::log::Log> {
        if node == self.me.node {
            return self.topics.get(topic).map(|watched| &watched.log);
        }
        self.streams.get(&Key { node, topic: topic.clone(), lane }).map(|stream| &stream.log)
    }

    #[expect(clippy::too_many_arguments, reason = "one place that reads, for one caller")]
    fn read(
        &mut self,
        now: Time,
        id: ConsumerId,
        node: NodeId,
        until: u64,
        max: usize,
        told: &mut Vec<Delivery>,
        out: &mut Batch,
    ) {
        let Some(consumer) = self.consumers.get(&id) else { return };
        let Some((lane, mut cursor)) = consumer.places.get(&node).copied() else { return };
        let topic = consumer.topic.clone();
        let mut is_drained = true;
        if let Some(log) = self.log(node, &topic, lane) {
            log.read(&mut cursor, until, max, told);
            is_drained = cursor.place >= log.end();
        }
        let Some(consumer) = self.consumers.get_mut(&id) else { return };
        consumer.places.insert(node, (lane, cursor));
        if is_drained {
            consumer.ready.remove(&node);
        }
        if lane != Lane::Shared {
            self.caught_up(now, &Key { node, topic, lane }, id, out);
        }
    }

    /// A consumer took from a stream of its own: there is room for more, or it joins the others.
    pub(super) fn caught_up(&mut self, now: Time, key: &Key, id: ConsumerId, out: &mut Batch) {
        let (Some(stream), Some(consumer)) = (self.streams.get_mut(key), self.consumers.get_mut(&id)) else {
            return;
        };
        let Some((_, cursor)) = consumer.places.get(&key.node).copied() else { return };
        stream.log.forget_before(cursor.place);
        stream.log.count(&mut self.bytes);
        if cursor.place < stream.log.end() || !stream.is_caught_up() {
            if stream.has_room_to_tell(key.lane, &self.settings) {
                self.acknowledge(key, out);
            }
            return;
        }
        let shared = Key { lane: Lane::Shared, ..key.clone() };
        let Some(everybody) = self.streams.get_mut(&shared) else {
            return self.promote(now, key, shared, id, out);
        };
        // What is in the others' log already and not told is read from there; what comes yet is passed over if told.
        let Some(cursor) = everybody.cursor_after(cursor.last) else { return };
        let buffer = consumer.interest.buffer;
        everybody.consumers.insert(id, buffer);
        let is_news = cursor.place < everybody.log.end();
        consumer.places.insert(key.node, (Lane::Shared, cursor));
        let was_idle = consumer.ready.is_empty();
        if is_news && consumer.ready.insert(key.node) && was_idle {
            out.news.push(id);
        }
        self.end_stream(key, out);
    }

    /// A consumer's own stream becomes everybody's.
    fn promote(&mut self, now: Time, key: &Key, shared: Key, id: ConsumerId, out: &mut Batch) {
        let (Some(stream), Some(consumer)) = (self.streams.remove(key), self.consumers.get_mut(&id)) else {
            return;
        };
        if let Some((lane, _)) = consumer.places.get_mut(&key.node) {
            *lane = Lane::Shared;
        }
        self.numbers.insert(stream.number, shared.clone());
        self.streams.insert(shared.clone(), stream);
        self.acknowledge(&shared, out);
        self.wake_by(Some(now + self.settings.renew));
    }

    /// There is something new in the log of a topic of this node.
    pub(super) fn wake_own(&mut self, topic: &Arc<Topic>, out: &mut Batch) {
        let Some(watched) = self.topics.get_mut(topic) else { return };
        watched.used = self.stamp;
        watched.trim(&self.settings);
        watched.log.count(&mut self.bytes);
        if self.bytes > self.settings.total_bytes {
            let excess = self.bytes - self.settings.total_bytes;
            watched.log.trim(usize::MAX, watched.log.bytes().saturating_sub(excess));
            watched.log.count(&mut self.bytes);
        }
        for (node, _) in watched.feeds.keys() {
            let Some(peer) = self.peers.get_mut(node) else { continue };
            if !peer.ready.contains(topic) {
                peer.ready.insert(topic.clone());
            }
            self.touched.insert(*node);
        }
        for id in watched.consumers.keys() {
            let Some(consumer) = self.consumers.get_mut(id) else { continue };
            if !consumer.places.contains_key(&self.me.node) {
                continue;
            }
            let was_idle = consumer.ready.is_empty();
            if consumer.ready.insert(self.me.node) && was_idle {
                out.news.push(*id);
            }
        }
    }

    /// There is something new in the log of a stream.
    pub(super) fn wake_stream(&mut self, key: &Key, out: &mut Batch) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.trim(key.lane, &self.settings);
        stream.log.count(&mut self.bytes);
        if self.bytes > self.settings.total_bytes {
            let excess = self.bytes - self.settings.total_bytes;
            stream.log.trim(usize::MAX, stream.log.bytes().saturating_sub(excess));
            stream.log.count(&mut self.bytes);
        }
        for id in stream.consumers.keys() {
            let Some(consumer) = self.consumers.get_mut(id) else { continue };
            let was_idle = consumer.ready.is_empty();
            if consumer.ready.insert(key.node) && was_idle {
                out.news.push(*id);
            }
        }
    }

    /// Brings the total of all logs up to date after one is gone.
    pub(super) fn recount(&mut self) {
        let own = self.topics.values().map(|watched| watched.log.bytes());
        let others = self.streams.values().map(|stream| stream.log.bytes());
        self.bytes = own.chain(others).sum();
        for log in self.topics.values_mut().map(|watched| &mut watched.log) {
            log.counted();
        }
        for log in self.streams.values_mut().map(|stream| &mut stream.log) {
            log.counted();
        }
    }

    /// Tells everybody whom this step touched what may be told.
    pub(super) fn send_ready(&mut self, now: Time, out: &mut Batch) {
        while let Some(node) = self.touched.pop_first() {
            self.send_to(now, node, out);
        }
    }

    fn send_to(&mut self, now: Time, node: NodeId, out: &mut Batch) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let to = Life { node, incarnation: peer.incarnation };
        let (mut draft, mut draft_bytes): (Vec<Part>, usize) = (Vec::new(), 0);
        let mut has_sent = false;
        while peer.in_flight < self.settings.in_flight_bytes {
            let after = peer.turn.take().and_then(|turn| {
                use std::ops::Bound::{Excluded, Unbounded};
                peer.ready.range((Excluded(turn), Unbounded)).next().cloned()
            });
            let Some(topic) = after.or_else(|| peer.ready.first().cloned()) else { break };
            peer.ready.remove(&topic);
            let Some(watched) = self.topics.get_mut(&topic) else { continue };
            let budget = (self.settings.in_flight_bytes - peer.in_flight).min(NOTIFY_BYTES);
            let (parts, is_more) = watched.parts(now, node, budget, &self.settings);
            if is_more && !parts.is_empty() {
                peer.ready.insert(topic.clone());
            }
            peer.turn = Some(topic);
            for (part, bytes) in parts {
                has_sent = true;
                peer.in_flight += bytes;
                if draft_bytes > 0 && draft_bytes + bytes > NOTIFY_BYTES {
                    out.send.push((to, Message::Notify { parts: std::mem::take(&mut draft) }));
                    draft_bytes = 0;
                }
                draft_bytes += bytes;
                draft.push(part);
            }
        }
        if !draft.is_empty() {
            out.send.push((to, Message::Notify { parts: draft }));
        }
        if has_sent {
            self.wake_by(Some(now + self.settings.retry));
        }
    }

    /// Says how far a stream is.
    pub(super) fn acknowledge(&mut self, key: &Key, out: &mut Batch) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let to = stream.source.life;
        let Some(progress) = stream.progress(key.lane, &self.settings) else { return };
        out.send.push((to, Message::Progress { streams: vec![progress] }));
    }

    /// Whether and how this stream is answered.
    pub(super) fn settle_stream(&mut self, key: &Key, first: u64, head: u64, out: &mut Batch) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let was_known = stream.expected.is_some();
        let is_new = stream.settle(first, head);
        let ids: Vec<ConsumerId> = stream.consumers.keys().copied().collect();
        if !was_known {
            self.begin_at(key, &ids);
        }
        if is_new {
            for id in ids {
                self.settle_consumer(id, out);
            }
        }
    }

    /// Consumers of a stream whose first number was not known begin there.
    fn begin_at(&mut self, key: &Key, ids: &[ConsumerId]) {
        let Some(last) = self.streams.get(key).and_then(Stream::last) else { return };
        for id in ids {
            let Some(consumer) = self.consumers.get_mut(id) else { continue };
            if let Some((_, cursor)) = consumer.places.get_mut(&key.node)
                && cursor.last.incarnation == last.incarnation
                && cursor.last.seq == 0
            {
                cursor.last = last;
            }
        }
    }

    /// Says so when every node that a consumer asks has answered.
    pub(super) fn settle_consumer(&mut self, id: ConsumerId, out: &mut Batch) {
        let is_waiting = !self.waiting_for(id).is_empty();
        let Some(consumer) = self.consumers.get_mut(&id) else { return };
        if !is_waiting && !consumer.settled {
            consumer.settled = true;
            out.settled.push(id);
        }
    }
}
