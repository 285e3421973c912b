//! One topic of another node as it is followed here, and the consumers that follow.
//!
//! Takes what the other node sends, in its order and without a hole, into one log that all consumers read. A consumer
//! that wants what the log does not have gets a stream of its own until it has caught up; then it joins the others.
//! Must never pass over a number without a gap (EV5). Read `log.rs` next, then `receive.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::log::{Cursor, Log};
use super::message::{Progress, SMALL_BYTES, Start, gap_bytes, occurrence_bytes};
use super::{
    ConsumerId, Delivery, Event, Gap, Interest, Item, Life, Nature, Position, Refusal, Settings, Source,
    StreamState, StreamStatus, Topic, Variant,
};
use crate::ids::NodeId;
use crate::time::Time;

/// Whose a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Lane {
    /// Everybody's.
    Shared,
    /// One consumer's, which catches up at its own pace.
    Replay(ConsumerId),
}

/// Names a stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) node: NodeId,
    pub(super) topic: Arc<Topic>,
    pub(super) lane: Lane,
}

/// What another node says to a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    Asking { again_at: Time },
    Live,
    Down,
    Refused { reason: Refusal, again_at: Time },
}

/// One topic of another node.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(super) struct Stream {
    pub(super) source: Arc<Source>,
    /// The registration's name at the other node.
    pub(super) number: u64,
    pub(super) attempt: u64,
    pub(super) state: State,
    /// Why it was refused when consumers were last told so.
    refused: Option<Refusal>,
    pub(super) variant: Variant,
    pub(super) nature: Nature,
    /// From where on, as long as the number of the first event is not known.
    start: Start,
    /// The number of the next event; `None` before that of the first is known.
    pub(super) expected: Option<u64>,
    /// The first number of this life that was ever wanted here.
    begun: Option<u64>,
    /// The number that the source's next event had when it last sent something.
    head: u64,
    pub(super) log: Log,
    /// Those who read the log, with their buffers.
    pub(super) consumers: BTreeMap<ConsumerId, usize>,
    /// How many events and bytes were received and not acknowledged, and when to do so.
    owed: u64,
    owed_bytes: usize,
    pub(super) owed_at: Option<Time>,
    /// The credit that was given last.
    credit: u64,
}

/// A consumer and its places.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Consumer {
    pub(super) interest: Interest,
    pub(super) topic: Arc<Topic>,
    pub(super) places: BTreeMap<NodeId, (Lane, Cursor)>,
    /// Nodes of which there is something to take.
    pub(super) ready: BTreeSet<NodeId>,
    pub(super) settled: bool,
}

impl Stream {
    /// A stream that asks from `start` on.
    pub(super) fn new(source: Source, number: u64, interest: &Interest, start: Start) -> Stream {
        Stream {
            source: Arc::new(source),
            number,
            attempt: 0,
            state: State::Down,
            refused: None,
            variant: interest.variant,
            nature: interest.nature,
            start,
            expected: None,
            begun: None,
            head: u64::MAX,
            log: Log::default(),
            consumers: BTreeMap::new(),
            owed: 0,
            owed_bytes: 0,
            owed_at: None,
            credit: 0,
        }
    }

    /// Whether the other node has yet to answer.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Asking { .. })
    }

    /// From where on to ask.
    pub(super) fn start(&self) -> Start {
        self.last().map_or(self.start, Start::After)
    }

    /// The last number that is here; `None` before that of the first is known.
    pub(super) fn last(&self) -> Option<Position> {
        let incarnation = self.source.life.incarnation;
        self.expected.map(|expected| Position { incarnation, seq: expected.saturating_sub(1) })
    }

    /// A consumer that joins now begins here.
    pub(super) fn cursor(&self) -> Cursor {
        let incarnation = self.source.life.incarnation;
        Cursor { place: self.log.end(), last: self.last().unwrap_or(Position { incarnation, seq: 0 }) }
    }

    /// The node started again as `life`: its sequence is another one, wanted from its first event on.
    pub(super) fn restart(&mut self, life: Life, stamp: &mut u64) {
        self.source = Arc::new(Source { life, topic: self.source.topic.clone() });
        self.start = Start::After(Position { incarnation: life.incarnation, seq: 0 });
        (self.expected, self.begun) = (None, None);
        self.mark(stamp, Delivery::SourceRestarted(self.source.clone()));
    }

    /// The node is no member any more.
    pub(super) fn down(&mut self, stamp: &mut u64) {
        self.state = State::Down;
        (self.owed, self.owed_bytes, self.owed_at) = (0, 0, None);
        self.mark(stamp, Delivery::SourceDown(self.source.clone()));
    }

    /// The other node refuses. Says whether that is news.
    pub(super) fn is_refused(&mut self, reason: Refusal, stamp: &mut u64) -> bool {
        let is_new = self.refused.replace(reason) != Some(reason);
        if is_new {
            self.mark(stamp, Delivery::SourceRefused(self.source.clone(), reason));
        }
        is_new
    }

    fn mark(&mut self, stamp: &mut u64, delivery: Delivery) {
        *stamp += 1;
        self.log.append(*stamp, SMALL_BYTES, delivery);
    }

    /// The other node named the first number of this attempt. Says whether that was not known before.
    pub(super) fn settle(&mut self, first: u64, head: u64) -> bool {
        self.head = head;
        let is_new = !matches!(self.state, State::Live);
        self.state = State::Live;
        self.refused = None;
        if self.expected.is_none() {
            (self.expected, self.begun) = (Some(first), Some(first));
        }
        is_new
    }

    /// Takes what comes next and passes over what is here; stops at a hole. Says whether there is something new.
    pub(super) fn accept(&mut self, head: u64, items: Vec<Item>, stamp: &mut u64) -> bool {
        let Some(mut expected) = self.expected else { return false };
        self.head = self.head.max(head);
        let before = expected;
        for item in items {
            let (from, to) = match &item {
                Item::Event { seq, .. } => (*seq, *seq),
                Item::Gap { from, to, .. } => (*from, *to),
            };
            if to < expected {
                continue; // EV3
            }
            if from > expected {
                break; // EV5: it is sent again
            }
            let source = self.source.clone();
            let (bytes, delivery) = match item {
                Item::Event { seq, what } => {
                    (occurrence_bytes(&what), Delivery::Event(Event { source, seq, what }))
                }
                Item::Gap { to, reason, .. } => {
                    (gap_bytes(&reason), Delivery::Gap(Gap { source, from: expected, to, reason }))
                }
            };
            *stamp += 1;
            self.log.append(*stamp, bytes, delivery);
            self.owed += 1;
            self.owed_bytes += bytes;
            expected = to.saturating_add(1);
        }
        self.expected = Some(expected);
        expected > before
    }

    /// Notes when to acknowledge, and says whether that is at once.
    pub(super) fn owe(&mut self, now: Time, settings: &Settings) -> bool {
        let is_much = self.owed >= settings.acknowledge_events.min(settings.credit / 2)
            || self.owed_bytes >= settings.flow_bytes / 4;
        if is_much || self.owed == 0 {
            return true;
        }
        self.owed_at.get_or_insert(now + settings.acknowledge_after);
        false
    }

    /// What to say of how far it is.
    pub(super) fn progress(&mut self, lane: Lane, settings: &Settings) -> Option<Progress> {
        let Position { seq: upto, .. } = self.last()?;
        (self.owed, self.owed_bytes, self.owed_at) = (0, 0, None);
        self.credit = self.credit(lane, settings);
        Some(Progress { number: self.number, attempt: self.attempt, upto, credit: self.credit })
    }

    /// How many events may come beyond those that are here. Who catches up is sent what it has room for.
    pub(super) fn credit(&self, lane: Lane, settings: &Settings) -> u64 {
        match lane {
            Lane::Shared => settings.credit,
            Lane::Replay(_) if self.log.bytes() >= settings.retained_bytes / 2 => 0,
            Lane::Replay(_) => {
                (self.buffer() as u64).saturating_sub(self.log.len() as u64).min(settings.credit)
            }
        }
    }

    /// Whether the room for more has grown so much that the other node should know.
    pub(super) fn has_room_to_tell(&self, lane: Lane, settings: &Settings) -> bool {
        let half = (self.buffer() as u64).min(settings.credit).div_ceil(2);
        self.credit.saturating_sub(self.owed) < half && self.credit(lane, settings) >= half
    }

    /// Where a consumer begins that was told up to `last`, if everything after that is here or yet to come.
    pub(super) fn cursor_after(&self, last: Position) -> Option<Cursor> {
        let is_here = last.incarnation == self.source.life.incarnation
            && self.begun.is_some_and(|begun| begun <= last.seq.saturating_add(1))
            && self.log.reaches_back_to(last);
        is_here.then(|| Cursor { place: self.log.place_after(last), last })
    }

    fn buffer(&self) -> usize {
        self.consumers.values().copied().max().unwrap_or(1).max(1)
    }

    /// Whether everything that had happened when the source last sent something is here.
    pub(super) fn is_caught_up(&self) -> bool {
        matches!(self.state, State::Live) && self.expected.is_some_and(|expected| expected >= self.head)
    }

    pub(super) fn trim(&mut self, lane: Lane, settings: &Settings) {
        // The other node may have sent one gap or mark for each event of the credit it has.
        let entries_max = match lane {
            Lane::Shared => self.buffer(),
            Lane::Replay(_) => self.buffer() * 2,
        };
        self.log.trim(entries_max, settings.retained_bytes.max(settings.flow_bytes * 2));
    }

    pub(super) fn status(&self) -> StreamStatus {
        StreamStatus {
            life: self.source.life,
            topic: Topic::clone(&self.source.topic),
            state: match self.state {
                State::Asking { .. } => StreamState::Asking,
                State::Live => StreamState::Live,
                State::Down => StreamState::Down,
                State::Refused { reason, .. } => StreamState::Refused(reason),
            },
            consumers: self.consumers.len(),
            upto: self.expected.map_or(0, |expected| expected - 1),
            retained: self.log.len(),
        }
    }
}

impl Consumer {
    pub(super) fn new(interest: Interest, topic: Arc<Topic>) -> Consumer {
        Consumer { interest, topic, places: BTreeMap::new(), ready: BTreeSet::new(), settled: false }
    }
}
