//! What time does: leases end, registrations are renewed and repeated, acknowledgements fall due.
//!
//! One instant is kept, the earliest at which anything may be due; it may turn out too early, never too late. Must never
//! wake an idle node: with nobody registered here or from elsewhere there is no deadline but that of peers known.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::message::LIST_MAX;
use super::stream::{Key, State, Stream};
use super::{Batch, Events, Life, Message, Progress, Topic};
use crate::flaw::{Flaw, is_planted};
use crate::time::Time;

impl Events {
    /// Wants a deadline at `at` or earlier.
    pub(super) fn wake_by(&mut self, at: Option<Time>) {
        self.wake_at = match (self.wake_at, at) {
            (Some(earlier), Some(at)) => Some(earlier.min(at)),
            (earlier, at) => earlier.or(at),
        };
    }

    pub(super) fn expire(&mut self, now: Time, out: &mut Batch) {
        self.wake_at = None;
        let topics: Vec<Arc<Topic>> = self.topics.keys().cloned().collect();
        for topic in topics {
            self.expire_topic(now, &topic, out);
        }
        let due = |stream: &Stream| match stream.state {
            State::Asking { again_at } | State::Refused { again_at, .. } => again_at <= now,
            State::Live | State::Down => false,
        };
        let due: Vec<Key> =
            self.streams.iter().filter(|(_, stream)| due(stream)).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.ask_again(now, &key, out);
        }
        if self.asking.as_ref().is_some_and(|asking| asking.again_at <= now) {
            self.ask_next(now, out);
        }
        self.renew(now, out);
        self.send_ready(now, out);
        let next = self.next_deadline().map(|at| at.max(Time::from_nanos(now.as_nanos().saturating_add(1))));
        self.wake_at = next;
    }

    fn expire_topic(&mut self, now: Time, topic: &Arc<Topic>, out: &mut Batch) {
        let Some(watched) = self.topics.get_mut(topic) else { return };
        let is_news =
            watched.close_at().is_some_and(|close_at| close_at <= now) && watched.close(&mut self.stamp);
        for ((node, _), feed) in &mut watched.feeds {
            if feed.flow.retry_at.is_none_or(|retry_at| retry_at > now) {
                continue;
            }
            let bytes = feed.flow.retry(now, &self.settings);
            if let Some(peer) = self.peers.get_mut(node) {
                peer.in_flight = peer.in_flight.saturating_sub(bytes);
                peer.ready.insert(topic.clone());
            }
            self.touched.insert(*node);
        }
        if is_news {
            self.wake_own(topic, out);
        }
        if is_planted(Flaw::EventsEndlessLease) {
            let feeds = self.topics.get_mut(topic).map(|watched| watched.feeds.values_mut());
            feeds.into_iter().flatten().for_each(|feed| feed.lease_until = now + self.settings.lease);
        }
        self.drop_feed(topic, out, |_, feed| feed.lease_until <= now);
    }

    /// Acknowledges what is due, and renews every registration on nodes where that is due.
    pub(super) fn renew(&mut self, now: Time, out: &mut Batch) {
        let mut due: BTreeMap<Life, Vec<Progress>> = BTreeMap::new();
        for (key, stream) in &mut self.streams {
            let Some(peer) = self.peers.get(&key.node) else { continue };
            let is_owed = stream.owed_at.is_some_and(|owed_at| owed_at <= now);
            let is_followed = !matches!(stream.state, State::Down);
            if is_owed || (peer.renew_at <= now && is_followed) {
                let progress = stream.progress(key.lane, &self.settings);
                due.entry(stream.source.life).or_default().extend(progress);
            }
        }
        for peer in self.peers.values_mut().filter(|peer| peer.renew_at <= now) {
            peer.renew_at = now + self.settings.renew;
        }
        for (to, streams) in due {
            for some in streams.chunks(LIST_MAX / 4) {
                out.send.push((to, Message::Progress { streams: some.to_vec() }));
            }
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        let has_streams = !self.streams.is_empty();
        let topics = self.topics.values().flat_map(|watched| {
            let feeds = watched.feeds.values();
            let feeds = feeds.flat_map(|feed| [Some(feed.lease_until), feed.flow.retry_at]);
            feeds.chain([watched.close_at()])
        });
        let streams = self.streams.values().flat_map(|stream| {
            let asking = match stream.state {
                State::Asking { again_at } | State::Refused { again_at, .. } => Some(again_at),
                State::Live | State::Down => None,
            };
            [asking, stream.owed_at]
        });
        let peers = self.peers.values().map(|peer| Some(peer.renew_at).filter(|_| has_streams));
        let asking = [self.asking.as_ref().map(|asking| asking.again_at)];
        topics.chain(streams).chain(peers).chain(asking).flatten().min()
    }

    /// Begins an attempt to register for a stream.
    pub(super) fn ask(&mut self, now: Time, key: &Key, out: &mut Batch) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.attempt += 1;
        self.ask_again(now, key, out);
    }

    /// Repeats the present attempt.
    pub(super) fn ask_again(&mut self, now: Time, key: &Key, out: &mut Batch) {
        let again_at = now + self.settings.retry;
        let Some(peer) = self.peers.get(&key.node) else { return };
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.state = State::Asking { again_at };
        let to = Life { node: key.node, incarnation: peer.incarnation };
        let register = Message::Register {
            number: stream.number,
            attempt: stream.attempt,
            topic: Topic::clone(&key.topic),
            variant: stream.variant,
            nature: stream.nature,
            start: stream.start(),
            credit: stream.credit(key.lane, &self.settings),
        };
        out.send.push((to, register));
        self.wake_by(Some(again_at));
        self.wake_by(self.peers.get(&key.node).map(|peer| peer.renew_at));
    }
}
