//! What other nodes say: registrations, events, acknowledgements.
//!
//! Decides nothing about who is there: whoever is not in the list of members, or is in another life, is not heard. What
//! another node tells goes to consumers here and nowhere else. Must never trust a number; what is out of place is
//! counted and dropped.

use super::message::{Part, Progress, Start, is_sound_topic};
use super::source::{Feed, Flow, PROVISIONED};
use super::stream::{Key, Lane, State};
use super::{Batch, Events, Item, Life, Message, Nature, Refusal, Topic, Variant};
use crate::flaw::{Flaw, is_planted};
use crate::time::Time;

/// What a registration of another node says.
struct Wish {
    number: u64,
    attempt: u64,
    topic: Topic,
    variant: Variant,
    nature: Nature,
    start: Start,
    credit: u64,
}

impl Events {
    pub(super) fn receive(&mut self, now: Time, from: Life, message: Message, out: &mut Batch) {
        // Whoever is to be a member asks before it is one.
        if let Message::Join { after } = message {
            return self.tell_registrations(from, after, out);
        }
        if self.peers.get(&from.node).is_none_or(|peer| peer.incarnation != from.incarnation) {
            self.rejected += 1;
            return;
        }
        match message {
            Message::Register { number, attempt, topic, variant, nature, start, credit } => {
                let wish = Wish { number, attempt, topic, variant, nature, start, credit };
                if let Err(reason) = self.registered(now, from, wish, out) {
                    out.send.push((from, Message::Refused { number, attempt, reason }));
                }
            }
            Message::Registered { number, attempt, first, head } => {
                let Some(key) = self.stream_of(from, number, attempt) else { return };
                self.settle_stream(&key, first, head, out);
                self.acknowledge(&key, out);
            }
            Message::Refused { number, attempt, reason } => {
                self.refused(now, from, (number, attempt), reason, out)
            }
            Message::Deregister { numbers } => self.deregistered(from, &numbers, out),
            Message::Notify { parts } => self.notified(now, from, parts, out),
            Message::Progress { streams } => self.progressed(now, from, &streams, out),
            Message::Unknown { numbers } => {
                for number in numbers {
                    let Some(key) = self.numbers.get(&number).filter(|key| key.node == from.node).cloned()
                    else {
                        continue;
                    };
                    let state = self.streams.get(&key).map(|stream| stream.state);
                    if state == Some(State::Live) {
                        self.ask(now, &key, out);
                    }
                }
            }
            Message::Replicate { registrations, is_all } => {
                self.told_registrations(now, from, registrations, is_all, out);
            }
            Message::Join { .. } => {}
        }
    }

    /// The stream that a registration of this node is for, if the attempt is the present one.
    fn stream_of(&mut self, from: Life, number: u64, attempt: u64) -> Option<Key> {
        let key = self.numbers.get(&number).filter(|key| key.node == from.node)?.clone();
        let stream = self.streams.get(&key)?;
        (stream.attempt == attempt && stream.source.life == from).then_some(key)
    }

    /// Another node registers.
    fn registered(&mut self, now: Time, from: Life, wish: Wish, out: &mut Batch) -> Result<(), Refusal> {
        let Wish { number, attempt, topic, variant, nature, start, credit } = wish;
        if number == PROVISIONED || !is_sound_topic(&topic) {
            return Err(Refusal::TopicTooBig);
        }
        let key = (from.node, number);
        let peer = self.peers.get(&from.node);
        if peer.and_then(|peer| peer.feeds.get(&number)).is_some_and(|known| **known != topic) {
            self.rejected += 1; // a number names one registration for as long as the node lives
            return Ok(());
        }
        let known = self.topics.get(&topic).and_then(|watched| watched.feeds.get(&key));
        let known_attempt = known.map(|feed| feed.flow.attempt);
        if known_attempt.is_some_and(|known| known > attempt) {
            return Ok(()); // overtaken
        }
        if known.is_none() && self.registrations_of(from) >= self.settings.registrations_max {
            return Err(Refusal::TooManyRegistrations);
        }
        let topic = self.watched(&topic)?;
        let (was_active, lease_until) = (self.is_active(&topic), now + self.settings.lease);
        if known_attempt != Some(attempt) {
            let settings = self.settings.clone();
            self.drop_in_flight(from, &topic, number);
            self.edit(&topic, out, |watched| {
                if variant == Variant::Replicated {
                    watched.feeds.remove(&(from.node, PROVISIONED));
                }
                let flow = Flow::new(attempt, watched.next(), credit, &settings);
                let feed = Feed { incarnation: from.incarnation, variant, lease_until, flow };
                watched.feeds.insert(key, feed);
            });
            // What the activation put into the log comes before a start of now.
            if let Some(watched) = self.topics.get_mut(&topic) {
                let first = watched.first(start);
                if let Some(feed) = watched.feeds.get_mut(&key) {
                    feed.flow = Flow::new(attempt, first, credit, &settings);
                }
            }
            if was_active {
                self.tell_late(&topic, nature, out);
            }
        }
        let Some(watched) = self.topics.get_mut(&topic) else { return Ok(()) };
        let head = watched.next();
        let Some(feed) = watched.feeds.get_mut(&key) else { return Ok(()) };
        feed.lease_until = feed.lease_until.max(lease_until);
        let first = feed.flow.first;
        out.send.push((from, Message::Registered { number, attempt, first, head }));
        if let Some(peer) = self.peers.get_mut(&from.node) {
            peer.feeds.insert(number, topic.clone());
            peer.ready.insert(topic);
        }
        self.touched.insert(from.node);
        self.wake_by(Some(lease_until));
        Ok(())
    }

    fn registrations_of(&self, life: Life) -> usize {
        let of = (life.node, 0)..=(life.node, u64::MAX);
        self.topics.values().map(|watched| watched.feeds.range(of.clone()).count()).sum()
    }

    fn drop_in_flight(&mut self, from: Life, topic: &Topic, number: u64) {
        let Some(watched) = self.topics.get_mut(topic) else { return };
        let Some(feed) = watched.feeds.get_mut(&(from.node, number)) else { return };
        let bytes = feed.flow.rewind();
        if let Some(peer) = self.peers.get_mut(&from.node) {
            peer.in_flight = peer.in_flight.saturating_sub(bytes);
        }
    }

    /// A joining node takes over a registration of the whole cluster; its origin will say from where on.
    pub(super) fn replicated(&mut self, now: Time, life: Life, topic: &Topic, out: &mut Batch) {
        let is_other_life =
            self.peers.get(&life.node).is_some_and(|peer| peer.incarnation != life.incarnation);
        let is_full = self.registrations_of(life) >= self.settings.registrations_max;
        if life.node == self.me.node || is_other_life || is_full || !is_sound_topic(topic) {
            return;
        }
        let Ok(topic) = self.watched(topic) else { return };
        let settings = self.settings.clone();
        let lease_until = now + settings.lease;
        let has_it = self.topics.get(&topic).is_some_and(|watched| {
            let feeds = watched.feeds.range((life.node, PROVISIONED + 1)..=(life.node, u64::MAX));
            feeds.into_iter().any(|(_, feed)| feed.variant == Variant::Replicated)
        });
        if !has_it {
            self.edit(&topic, out, |watched| {
                let flow = Flow::new(0, watched.next(), 0, &settings);
                let Life { node, incarnation } = life;
                let feed = Feed { incarnation, variant: Variant::Replicated, lease_until, flow };
                watched.feeds.insert((node, PROVISIONED), feed);
            });
            self.wake_by(Some(lease_until));
        }
    }

    fn refused(&mut self, now: Time, from: Life, which: (u64, u64), reason: Refusal, out: &mut Batch) {
        let Some(key) = self.stream_of(from, which.0, which.1) else { return };
        let again_at = now + self.settings.renew;
        let Some(stream) = self.streams.get_mut(&key) else { return };
        stream.state = State::Refused { reason, again_at };
        if stream.is_refused(reason, &mut self.stamp) {
            self.wake_stream(&key, out);
        }
        let Some(stream) = self.streams.get(&key) else { return };
        let ids: Vec<_> = stream.consumers.keys().copied().collect();
        for id in ids {
            self.settle_consumer(id, out);
        }
        self.wake_by(Some(again_at));
    }

    fn deregistered(&mut self, from: Life, numbers: &[u64], out: &mut Batch) {
        for number in numbers.iter().filter(|number| **number != PROVISIONED) {
            let key = (from.node, *number);
            let peer = self.peers.get(&from.node);
            let Some(topic) = peer.and_then(|peer| peer.feeds.get(number)).cloned() else { continue };
            self.drop_feed(&topic, out, |feed, _| *feed == key);
        }
    }

    /// Another node tells what happened there.
    fn notified(&mut self, now: Time, from: Life, parts: Vec<Part>, out: &mut Batch) {
        let (mut acknowledged, mut unknown) = (Vec::new(), Vec::new());
        for Part { number, attempt, first, head, items } in parts {
            let Some(key) = self.stream_of(from, number, attempt) else {
                if !self.numbers.contains_key(&number) {
                    unknown.push(number);
                }
                continue;
            };
            self.settle_stream(&key, first, head, out);
            if is_planted(Flaw::EventsLoop) {
                self.repeat(now, &key, &items, out);
            }
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            let is_news = stream.accept(head, items, &mut self.stamp);
            let is_due = stream.owe(now, &self.settings);
            let owed_at = stream.owed_at;
            if is_news {
                self.wake_stream(&key, out);
            }
            if is_due && let Some(stream) = self.streams.get_mut(&key) {
                acknowledged.extend(stream.progress(key.lane, &self.settings));
            }
            self.wake_by(owed_at);
            if let Lane::Replay(id) = key.lane {
                self.caught_up(now, &key, id, out);
            }
        }
        if !acknowledged.is_empty() {
            out.send.push((from, Message::Progress { streams: acknowledged }));
        }
        if !unknown.is_empty() {
            out.send.push((from, Message::Deregister { numbers: unknown }));
        }
    }

    /// The loop that must not be (4.3): only [`Flaw::EventsLoop`] gets here.
    fn repeat(&mut self, now: Time, key: &Key, items: &[Item], out: &mut Batch) {
        for item in items {
            if let Item::Event { what, .. } = item
                && self.topics.contains_key(&key.topic)
            {
                self.publish(now, &key.topic.clone(), super::Occurrence::clone(what), out);
            }
        }
    }

    /// Another node says how far it is, and that it wants more.
    fn progressed(&mut self, now: Time, from: Life, streams: &[Progress], out: &mut Batch) {
        let mut unknown = Vec::new();
        let lease_until = now + self.settings.lease;
        for progress in streams {
            let key = (from.node, progress.number);
            let Some(peer) = self.peers.get_mut(&from.node) else { return };
            let topic = peer.feeds.get(&progress.number);
            let watched = topic.and_then(|topic| self.topics.get_mut(topic));
            let (Some(topic), Some(watched)) = (topic, watched) else {
                unknown.push(progress.number);
                continue;
            };
            if progress.upto >= watched.next() {
                self.rejected += 1;
                continue;
            }
            let Some(feed) = watched.feeds.get_mut(&key) else { continue };
            feed.lease_until = feed.lease_until.max(lease_until);
            let arrived = feed.flow.acknowledge(now, progress, &self.settings);
            peer.in_flight = peer.in_flight.saturating_sub(arrived);
            peer.ready.insert(topic.clone());
            self.touched.insert(from.node);
        }
        if !unknown.is_empty() {
            out.send.push((from, Message::Unknown { numbers: unknown }));
        }
    }
}
