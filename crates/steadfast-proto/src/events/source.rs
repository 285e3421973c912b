//! One topic of this node: who wants it, whether the producer is active, and what other nodes are sent of it.
//!
//! The listener is the one registration on behalf of all other nodes (variant B). It steps back while somebody on this
//! node is registered too, and takes over before the last of them leaves (EV1, EV2). Must never change what is active
//! but through [`Watched::edit`]. Read `log.rs` for what is retained, `deliver.rs` for who is woken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::bucket::Bucket;
use super::log::{Cursor, Log};
use super::message::{
    NOTIFY_BYTES, Part, Progress, SMALL_BYTES, Start, gap_bytes, is_sound_occurrence, occurrence_bytes,
};
use super::{
    ConsumerId, Delivery, Event, Gap, GapReason, Item, Life, Listener, Occurrence, Order, Position, Settings,
    Since, Source, Topic, TopicStatus, Variant,
};
use crate::flaw::{Flaw, is_planted};
use crate::ids::{Incarnation, NodeId};
use crate::time::Time;

/// For how long a range that the rate does not let through is kept open at most before it is told.
const OPEN_MAX: Duration = Duration::from_secs(1);
/// The number of the registrations that a joining node is given on behalf of others; nothing is sent for these.
pub(super) const PROVISIONED: u64 = 0;

/// One topic of this node.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(super) struct Watched {
    pub(super) source: Arc<Source>,
    /// Consumers on this node, with their buffers.
    pub(super) consumers: BTreeMap<ConsumerId, usize>,
    /// Registrations of other nodes by their numbers.
    pub(super) feeds: BTreeMap<(NodeId, u64), Feed>,
    /// Whether the producer said that it can't watch this, and nobody registered since.
    pub(super) is_unwatchable: bool,
    listener: Listener,
    active: bool,
    was_active: bool,
    /// The number of the next event.
    next: u64,
    pub(super) log: Log,
    bucket: Bucket,
    /// What the rate did not let through and nobody was told of yet: the first number, and when to tell.
    open: Option<(u64, Time)>,
    suppressed: u64,
    /// Counts steps that touched it: the oldest unused one makes room.
    pub(super) used: u64,
}

/// One registration of another node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Feed {
    pub(super) incarnation: Incarnation,
    pub(super) variant: Variant,
    pub(super) lease_until: Time,
    pub(super) flow: Flow,
}

/// What was sent for a registration, and what of it arrived.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) attempt: u64,
    pub(super) first: u64,
    /// The number of the next event to send.
    cursor: u64,
    /// The number of the last event that arrived.
    acknowledged: u64,
    /// Up to which number it may be sent.
    limit: u64,
    /// Parts on their way: the number of the last event and the bytes of each.
    parts: VecDeque<(u64, usize)>,
    pub(super) retry_at: Option<Time>,
    retry_after: Duration,
}

/// What became of an occurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// There is something new in the log.
    News,
    /// The rate did not let it through.
    Suppressed,
    /// Nobody is registered.
    Stray,
}

impl Watched {
    /// A topic whose first event will have the number `next`.
    pub(super) fn new(source: Source, next: u64) -> Watched {
        let source = Arc::new(source);
        Watched {
            log: Log::begun(source.clone(), next),
            source,
            consumers: BTreeMap::new(),
            feeds: BTreeMap::new(),
            is_unwatchable: false,
            listener: Listener::Off,
            active: false,
            was_active: false,
            next,
            bucket: Bucket::default(),
            open: None,
            suppressed: 0,
            used: 0,
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.active
    }

    /// The number of the next event.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether anybody is registered in whatever way.
    pub(super) fn is_wanted(&self) -> bool {
        !self.consumers.is_empty() || !self.feeds.is_empty()
    }

    /// Changes who is registered. Whoever is needed takes over first and only then does anybody let go, so that the
    /// producer never stops in between (EV1, EV2). Says whether something new is in the log.
    pub(super) fn edit(
        &mut self,
        stamp: &mut u64,
        out: &mut Vec<Order>,
        change: impl FnOnce(&mut Watched),
    ) -> bool {
        if is_planted(Flaw::EventsGapInHandOver) {
            self.listener = Listener::Off;
            let mut is_news = self.settle(stamp, out);
            change(self);
            is_news |= self.settle(stamp, out);
            self.listener = self.listener_wanted();
            return self.settle(stamp, out) || is_news;
        }
        if self.listener != Listener::Off {
            self.listener = Listener::Registered;
        }
        let before = self.settle(stamp, out);
        change(self);
        self.listener = self.listener_wanted();
        self.settle(stamp, out) || before
    }

    fn has_own(&self) -> bool {
        !self.consumers.is_empty() || self.feeds.values().any(|feed| feed.variant == Variant::Replicated)
    }

    fn listener_wanted(&self) -> Listener {
        if self.feeds.values().all(|feed| feed.variant == Variant::Replicated) {
            Listener::Off
        } else if self.has_own() {
            Listener::Observing
        } else {
            Listener::Registered
        }
    }

    /// EV1. What happened while nobody was registered is a gap for whoever comes back.
    fn settle(&mut self, stamp: &mut u64, out: &mut Vec<Order>) -> bool {
        let is_active = self.has_own() || self.listener == Listener::Registered;
        if is_active == self.active {
            return false;
        }
        self.active = is_active;
        self.is_unwatchable = false;
        let topic = Topic::clone(&self.source.topic);
        if !is_active {
            out.push(Order::Deactivate(topic));
            return self.close(stamp);
        }
        out.push(Order::Activate(topic));
        let is_again = std::mem::replace(&mut self.was_active, true);
        is_again && self.skip(stamp, 1, GapReason::Unwatched)
    }

    /// Takes what a producer saw.
    pub(super) fn publish(
        &mut self,
        now: Time,
        stamp: &mut u64,
        what: Occurrence,
        settings: &Settings,
    ) -> Published {
        if !self.active {
            return Published::Stray;
        }
        if !is_sound_occurrence(&what) {
            self.skip(stamp, 1, GapReason::Producer);
            return Published::News;
        }
        if !self.bucket.admit(now, settings.rate_of(&self.source.topic.kind)) {
            let until = self.bucket.shut_until(now).unwrap_or(now).max(now + OPEN_MAX / 4);
            self.open.get_or_insert((self.next, until.min(now + OPEN_MAX)));
            self.next += 1;
            self.suppressed += 1;
            return Published::Suppressed;
        }
        self.close(stamp);
        let (seq, bytes) = (self.next, occurrence_bytes(&what));
        self.next += 1;
        let event = Event { source: self.source.clone(), seq, what: Arc::new(what) };
        self.append(stamp, bytes, Delivery::Event(event));
        Published::News
    }

    /// Notes that `count` events are missing. Says that there is something new.
    pub(super) fn skip(&mut self, stamp: &mut u64, count: u64, reason: GapReason) -> bool {
        self.close(stamp);
        let from = self.next;
        self.next = self.next.saturating_add(count.max(1));
        self.gap(stamp, from, reason);
        true
    }

    /// Tells what the rate did not let through, as one gap.
    pub(super) fn close(&mut self, stamp: &mut u64) -> bool {
        let Some((from, _)) = self.open.take() else { return false };
        self.gap(stamp, from, GapReason::Suppressed);
        true
    }

    /// When there is something to close.
    pub(super) fn close_at(&self) -> Option<Time> {
        self.open.map(|(_, at)| at)
    }

    fn gap(&mut self, stamp: &mut u64, from: u64, reason: GapReason) {
        let bytes = gap_bytes(&reason);
        let gap = Gap { source: self.source.clone(), from, to: self.next - 1, reason };
        self.append(stamp, bytes, Delivery::Gap(gap));
    }

    fn append(&mut self, stamp: &mut u64, bytes: usize, delivery: Delivery) {
        *stamp += 1;
        self.log.append(*stamp, bytes, delivery);
    }

    /// Lets go of what is beyond the bounds.
    pub(super) fn trim(&mut self, settings: &Settings) {
        let buffer = self.consumers.values().copied().max().unwrap_or(0);
        self.log.trim(buffer.max(settings.retained_events), settings.retained_bytes);
    }

    /// Where a consumer on this node begins.
    pub(super) fn cursor(&self, since: &Since) -> Cursor {
        let Life { node, incarnation } = self.source.life;
        let before = |start| Position { incarnation, seq: self.first(start).saturating_sub(1) };
        let now = Cursor { place: self.log.end(), last: before(Start::Now) };
        match since {
            Since::Now => now,
            Since::Oldest => Cursor { place: self.log.begin(), last: before(Start::Oldest) },
            Since::Time { unix_us } => {
                let start = Start::Time { unix_us: *unix_us };
                Cursor { place: self.log.place_since(*unix_us), last: before(start) }
            }
            Since::After(positions) => match positions.get(&node) {
                Some(last) if *last < now.last => {
                    let is_whole = self.log.reaches_back_to(*last) && last.incarnation == incarnation;
                    Cursor { place: if is_whole { self.log.place_after(*last) } else { 0 }, last: *last }
                }
                Some(_) | None => now,
            },
        }
    }

    /// The number of the first event that whoever starts in this way is told of.
    pub(super) fn first(&self, start: Start) -> u64 {
        let oldest = self.log.seq_at(self.log.begin()).unwrap_or_else(|| self.unlogged());
        match start {
            Start::Now => self.next,
            Start::Oldest => oldest,
            Start::Time { unix_us } => {
                self.log.seq_at(self.log.place_since(unix_us)).unwrap_or_else(|| self.unlogged())
            }
            Start::After(Position { incarnation, seq }) if incarnation == self.source.life.incarnation => {
                seq.saturating_add(1).min(self.next)
            }
            Start::After(_) => 1,
        }
    }

    /// The first number that is not in the log yet.
    fn unlogged(&self) -> u64 {
        self.open.map_or(self.next, |(from, _)| from)
    }

    /// What may be sent to `node` now, part by part, and whether there is more; at most `budget` bytes.
    pub(super) fn parts(
        &mut self,
        now: Time,
        node: NodeId,
        budget: usize,
        settings: &Settings,
    ) -> (Vec<(Part, usize)>, bool) {
        let (mut parts, mut left, mut is_more) = (Vec::new(), budget, false);
        let (head, unlogged) = (self.next, self.unlogged());
        let oldest = self.log.seq_at(self.log.begin()).unwrap_or(unlogged);
        for ((_, number), feed) in self.feeds.range_mut((node, PROVISIONED + 1)..=(node, u64::MAX)) {
            let flow = &mut feed.flow;
            let room = left.min(settings.flow_bytes.saturating_sub(flow.in_flight()));
            let (items, bytes) = flow.items(&self.log, oldest, unlogged, room.min(NOTIFY_BYTES));
            if items.is_empty() {
                is_more |= flow.may_send(unlogged) && flow.in_flight() < settings.flow_bytes;
                continue;
            }
            left = left.saturating_sub(bytes);
            flow.sent(now, bytes, settings);
            is_more |= flow.may_send(unlogged) && flow.in_flight() < settings.flow_bytes;
            let (number, attempt, first) = (*number, flow.attempt, flow.first);
            parts.push((Part { number, attempt, first, head, items }, bytes));
        }
        (parts, is_more)
    }

    /// Nodes that registered through the listener, or as the node's own.
    pub(super) fn nodes(&self, variant: Variant) -> BTreeSet<NodeId> {
        let feeds = self.feeds.iter().filter(|(_, feed)| feed.variant == variant);
        feeds.map(|((node, _), _)| *node).collect()
    }

    pub(super) fn status(&self) -> TopicStatus {
        TopicStatus {
            topic: Topic::clone(&self.source.topic),
            active: self.active,
            listener: self.listener,
            consumers: self.consumers.len(),
            replicated: self.nodes(Variant::Replicated).into_iter().collect(),
            selective: self.nodes(Variant::Selective).into_iter().collect(),
            next_seq: self.next,
            retained: self.log.len(),
            retained_bytes: self.log.bytes(),
            suppressed: self.suppressed,
        }
    }
}

impl Flow {
    /// A flow that begins with the event `first`.
    pub(super) fn new(attempt: u64, first: u64, credit: u64, settings: &Settings) -> Flow {
        Flow {
            attempt,
            first,
            cursor: first,
            acknowledged: first.saturating_sub(1),
            limit: first.saturating_add(credit),
            parts: VecDeque::new(),
            retry_at: None,
            retry_after: settings.retry,
        }
    }

    /// How many bytes are on their way.
    pub(super) fn in_flight(&self) -> usize {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    fn may_send(&self, unlogged: u64) -> bool {
        self.cursor < unlogged && self.cursor < self.limit
    }

    /// The next items, and their bytes.
    fn items(&mut self, log: &Log, oldest: u64, unlogged: u64, room: usize) -> (Vec<Item>, usize) {
        let (mut items, mut bytes) = (Vec::new(), 0);
        if !self.may_send(unlogged) || room == 0 {
            return (items, bytes);
        }
        if self.cursor < oldest {
            items.push(Item::Gap { from: self.cursor, to: oldest - 1, reason: GapReason::Retention });
            bytes += SMALL_BYTES;
            self.cursor = oldest;
        }
        for (delivery, size) in log.starting_at(self.cursor) {
            if self.cursor >= self.limit || (bytes > 0 && bytes + size > room) {
                break;
            }
            match delivery {
                Delivery::Event(event) => {
                    items.push(Item::Event { seq: event.seq, what: event.what.clone() });
                    self.cursor = event.seq + 1;
                }
                Delivery::Gap(gap) => {
                    let from = gap.from.max(self.cursor);
                    items.push(Item::Gap { from, to: gap.to, reason: gap.reason.clone() });
                    self.cursor = gap.to + 1;
                }
                Delivery::SourceRestarted(_) | Delivery::SourceDown(_) | Delivery::SourceRefused(..) => {
                    continue;
                }
            }
            bytes += size;
        }
        (items, bytes)
    }

    fn sent(&mut self, now: Time, bytes: usize, settings: &Settings) {
        self.parts.push_back((self.cursor - 1, bytes));
        if self.retry_at.is_none() {
            self.retry_after = settings.retry;
            self.retry_at = Some(now + self.retry_after);
        }
    }

    /// Takes an acknowledgement, and gives the bytes that are not on their way any more.
    pub(super) fn acknowledge(&mut self, now: Time, progress: &Progress, settings: &Settings) -> usize {
        if progress.attempt != self.attempt || progress.upto.saturating_add(1) < self.first {
            return 0;
        }
        // It may have received what was to be sent again.
        self.cursor = self.cursor.max(progress.upto.saturating_add(1));
        let is_further = progress.upto > self.acknowledged;
        self.acknowledged = self.acknowledged.max(progress.upto);
        self.limit = self.limit.max(progress.upto.saturating_add(progress.credit).saturating_add(1));
        let before = self.in_flight();
        while self.parts.front().is_some_and(|(upto, _)| *upto <= self.acknowledged) {
            self.parts.pop_front();
        }
        if self.parts.is_empty() {
            self.retry_at = None;
        } else if is_further {
            self.retry_after = settings.retry;
            self.retry_at = Some(now + self.retry_after);
        }
        before - self.in_flight()
    }

    /// Sends everything again that was not acknowledged; gives the bytes that are not counted as on their way now.
    pub(super) fn rewind(&mut self) -> usize {
        let bytes = self.in_flight();
        self.parts.clear();
        self.retry_at = None;
        self.cursor = self.acknowledged + 1;
        bytes
    }

    /// The same after a while without acknowledgement.
    pub(super) fn retry(&mut self, now: Time, settings: &Settings) -> usize {
        let bytes = self.rewind();
        if bytes == 0 {
            return 0;
        }
        self.retry_after = (self.retry_after * 2).min(settings.renew);
        self.retry_at = Some(now + self.retry_after);
        bytes
    }
}
