//! What is retained of one topic of one node, in order, for everybody on this node who wants it.
//!
//! Consumers have a place in it each, nothing else: a slow one costs nothing and holds nobody up. Whatever leaves the
//! log before a consumer came by is told to it as a gap (EV5). Must never give the same event twice (EV3).

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Delivery, Gap, GapReason, Position, Source};
use crate::flaw::{Flaw, is_planted};

/// Of how many lives of a node it is kept which events left the log.
const LIVES_MAX: usize = 4;

/// Events, gaps and marks in the order in which consumers are given them.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(super) struct Log {
    /// The place of the first entry.
    base: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// How many bytes the node's total counts for this log.
    counted: usize,
    evicted: VecDeque<Evicted>,
}

/// Something in a log.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(super) struct Entry {
    /// Counts everything that this node put into any log: the order across logs.
    stamp: u64,
    bytes: usize,
    /// Up to where the sequence goes with it.
    upto: Position,
    delivery: Delivery,
}

/// What of a life of the node left the log.
#[derive(Clone, Debug, PartialEq, Hash)]
struct Evicted {
    source: Arc<Source>,
    first: u64,
    upto: u64,
}

/// Where a consumer is in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cursor {
    /// The place of the next entry for it.
    pub(super) place: u64,
    /// Up to where it was told, or did not want to be.
    pub(super) last: Position,
}

impl Log {
    /// The log of a life of this node itself, whose first event will have the number `next`.
    pub(super) fn begun(source: Arc<Source>, next: u64) -> Log {
        let evicted = VecDeque::from([Evicted { source, first: 1, upto: next.saturating_sub(1) }]);
        Log { base: 1, evicted, ..Log::default() }
    }

    /// The place after the last entry.
    pub(super) fn end(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// The place of the first entry.
    pub(super) fn begin(&self) -> u64 {
        self.base
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds something of `bytes` bytes.
    pub(super) fn append(&mut self, stamp: u64, bytes: usize, delivery: Delivery) {
        let at = |source: &Arc<Source>, seq| Position { incarnation: source.life.incarnation, seq };
        let upto = match &delivery {
            Delivery::Event(event) => at(&event.source, event.seq),
            Delivery::Gap(gap) => at(&gap.source, gap.to),
            Delivery::SourceRestarted(source) => at(source, 0),
            Delivery::SourceDown(source) | Delivery::SourceRefused(source, _) => {
                self.entries.back().map_or_else(|| at(source, 0), |entry| entry.upto)
            }
        };
        self.bytes += bytes;
        self.entries.push_back(Entry { stamp, bytes, upto, delivery });
    }

    /// Lets the oldest go until no more than this is left, but never the newest.
    pub(super) fn trim(&mut self, entries_max: usize, bytes_max: usize) {
        while self.entries.len() > 1 && (self.entries.len() > entries_max || self.bytes > bytes_max) {
            let Some(entry) = self.entries.pop_front() else { return };
            self.base += 1;
            self.bytes -= entry.bytes;
            self.note_evicted(&entry.delivery);
        }
    }

    /// Lets go of everything before `place`.
    pub(super) fn forget_before(&mut self, place: u64) {
        while self.base < place {
            let Some(entry) = self.entries.pop_front() else { return };
            self.base += 1;
            self.bytes -= entry.bytes;
            self.note_evicted(&entry.delivery);
        }
    }

    /// Brings the total of all logs up to date.
    pub(super) fn count(&mut self, total: &mut usize) {
        *total = *total + self.bytes - self.counted;
        self.counted = self.bytes;
    }

    /// Notes that the total counts this log as it is.
    pub(super) fn counted(&mut self) {
        self.counted = self.bytes;
    }

    fn note_evicted(&mut self, delivery: &Delivery) {
        let (source, first, upto) = match delivery {
            Delivery::Event(event) => (&event.source, event.seq, event.seq),
            Delivery::Gap(gap) => (&gap.source, gap.from, gap.to),
            Delivery::SourceRestarted(source) => (source, 1, 0),
            Delivery::SourceDown(_) | Delivery::SourceRefused(..) => return,
        };
        match self.evicted.back_mut() {
            Some(last) if last.source.life == source.life => last.upto = upto,
            Some(_) | None => {
                self.evicted.push_back(Evicted { source: source.clone(), first, upto });
                if self.evicted.len() > LIVES_MAX {
                    self.evicted.pop_front();
                }
            }
        }
    }

    /// The order in which the next entry for `cursor` came, of all that this node has; `None` when there is none.
    pub(super) fn next_stamp(&self, cursor: &Cursor) -> Option<u64> {
        self.entries.get(self.offset(cursor.place)).map(|entry| entry.stamp)
    }

    fn offset(&self, place: u64) -> usize {
        usize::try_from(place.saturating_sub(self.base)).unwrap_or(usize::MAX).min(self.entries.len())
    }

    /// Gives what comes next for `cursor`, up to the entry of this stamp and until `into` has `max` elements.
    pub(super) fn read(&self, cursor: &mut Cursor, until: u64, max: usize, into: &mut Vec<Delivery>) {
        if cursor.place < self.base {
            self.tell_evicted(cursor, into);
            cursor.place = self.base;
        }
        let offset = self.offset(cursor.place);
        for entry in self.entries.range(offset..) {
            if into.len() >= max || entry.stamp > until {
                return;
            }
            cursor.place += 1;
            let last = cursor.last;
            match &entry.delivery {
                Delivery::Event(_) | Delivery::SourceRestarted(_) if entry.upto <= last => continue, // EV3
                Delivery::Event(_) | Delivery::SourceRestarted(_) => into.push(entry.delivery.clone()),
                Delivery::SourceDown(_) | Delivery::SourceRefused(..) => {
                    into.push(entry.delivery.clone());
                    continue;
                }
                Delivery::Gap(_) if entry.upto <= last => continue,
                Delivery::Gap(gap) => {
                    let is_same = gap.source.life.incarnation == last.incarnation;
                    let from = if is_same { gap.from.max(last.seq + 1) } else { gap.from };
                    into.push(Delivery::Gap(Gap { from, ..gap.clone() }));
                }
            }
            cursor.last = entry.upto;
        }
    }

    /// EV5: what left the log before the consumer came by.
    fn tell_evicted(&self, cursor: &mut Cursor, into: &mut Vec<Delivery>) {
        if is_planted(Flaw::EventsSilentOverrun) {
            return;
        }
        for Evicted { source, first, upto } in &self.evicted {
            let incarnation = source.life.incarnation;
            if incarnation > cursor.last.incarnation {
                into.push(Delivery::SourceRestarted(source.clone()));
                cursor.last = Position { incarnation, seq: first - 1 };
            }
            if incarnation == cursor.last.incarnation && *upto > cursor.last.seq {
                let (source, from) = (source.clone(), cursor.last.seq + 1);
                into.push(Delivery::Gap(Gap { source, from, to: *upto, reason: GapReason::Overrun }));
                cursor.last.seq = *upto;
            }
        }
    }

    /// The place of the first entry after `position`.
    pub(super) fn place_after(&self, position: Position) -> u64 {
        self.base + self.entries.partition_point(|entry| entry.upto <= position) as u64
    }

    /// Whether everything after `position` is still here or yet to come.
    pub(super) fn reaches_back_to(&self, position: Position) -> bool {
        self.evicted.back().is_none_or(|evicted| {
            (evicted.source.life.incarnation, evicted.upto) <= (position.incarnation, position.seq)
        })
    }

    /// The place of the first event that is not older than this.
    pub(super) fn place_since(&self, unix_us: u64) -> u64 {
        let is_since = |entry: &Entry| match &entry.delivery {
            Delivery::Event(event) => event.what.at_unix_us >= unix_us,
            Delivery::Gap(_)
            | Delivery::SourceRestarted(_)
            | Delivery::SourceDown(_)
            | Delivery::SourceRefused(..) => false,
        };
        let found = self.entries.iter().position(is_since);
        self.base + found.unwrap_or(self.entries.len()) as u64
    }

    /// The number of the first event or gap at or after `place`.
    pub(super) fn seq_at(&self, place: u64) -> Option<u64> {
        self.entries.range(self.offset(place)..).find_map(|entry| match &entry.delivery {
            Delivery::Event(event) => Some(event.seq),
            Delivery::Gap(gap) => Some(gap.from),
            Delivery::SourceRestarted(_) | Delivery::SourceDown(_) | Delivery::SourceRefused(..) => None,
        })
    }

    /// What is here from `seq` on; only for a log with one life in it.
    pub(super) fn starting_at(&self, seq: u64) -> impl Iterator<Item = (&Delivery, usize)> {
        let offset = self.entries.partition_point(|entry| entry.upto.seq < seq);
        self.entries.range(offset..).map(|entry| (&entry.delivery, entry.bytes))
    }
}
