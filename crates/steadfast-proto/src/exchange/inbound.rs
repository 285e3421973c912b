//! What a receiver remembers of one sender: everything up to a low-water mark is finished, and above it each message is
//! unknown, acknowledged, or confirmed (H2).
//!
//! It forgets by itself: a record goes as soon as everything before it is finished too, so when all is quiet one number
//! is left per live stream. [`Inbound::arrive`] asks and changes nothing; what follows from it is recorded first.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::WINDOW;
use crate::flaw::{Flaw, is_planted};
use crate::time::Time;

/// One sender's messages as the receiver remembers them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Inbound {
    /// The sender's epoch that the numbers belong to.
    epoch: u64,
    low: u64,
    /// The messages `low + 1..`; the first is never confirmed, the last never unknown.
    above: VecDeque<Record>,
    /// When the sender is reminded of what it did not confirm; forgotten by a crash.
    #[serde(skip)]
    pub remind_at: Option<Time>,
    /// How often it was asked what it did not confirm, since a crash made that doubtful; forgotten by a crash.
    #[serde(skip)]
    pub asked: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Record {
    Unknown,
    Acked,
    Confirmed,
}

/// What a message is to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It was never accepted.
    New,
    /// It was; it is acknowledged again and never delivered again.
    Known,
    /// It is too far ahead to be remembered: it is not taken, and comes again.
    TooFar,
}

impl Inbound {
    /// Of a sender whose messages up to `floor` are finished.
    pub fn new(epoch: u64, floor: u64) -> Inbound {
        Inbound { epoch, low: floor, above: VecDeque::new(), remind_at: None, asked: 0 }
    }

    /// The sender's epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Everything up to here is finished.
    pub fn low(&self) -> u64 {
        self.low
    }

    /// Whether nothing is remembered but the low-water mark.
    pub fn is_empty(&self) -> bool {
        self.above.is_empty()
    }

    /// How many records stand above the mark; never more than [`WINDOW`] (E-S7).
    pub fn len(&self) -> usize {
        self.above.len()
    }

    /// What message `seq` is, from a sender that has finished everything up to `floor`.
    pub fn arrive(&self, seq: u64, floor: u64) -> Arrival {
        let low = if is_planted(Flaw::ExchangeNoMark) { self.low } else { self.low.max(floor) };
        if seq <= low || self.record(seq).is_some_and(|record| record != Record::Unknown) {
            return Arrival::Known;
        }
        if seq > low.saturating_add(WINDOW) { Arrival::TooFar } else { Arrival::New }
    }

    /// Remembers a new message as acknowledged.
    pub fn accept(&mut self, seq: u64, floor: u64) {
        if !is_planted(Flaw::ExchangeNoMark) {
            self.finish_to(floor);
        }
        self.mark(seq, Record::Acked);
    }

    /// The sender has the acks of these, or has given them up: whatever they were, they never come in again.
    pub fn confirm(&mut self, first: u64, last: u64) {
        let last = last.min(self.low.saturating_add(WINDOW));
        for seq in first.max(self.low + 1)..=last {
            self.mark(seq, Record::Confirmed);
        }
        self.advance();
    }

    /// What is acknowledged and not confirmed, as spans of neighbours.
    pub fn unconfirmed(&self) -> Vec<(u64, u64)> {
        let mut spans: Vec<(u64, u64)> = Vec::new();
        for (seq, _) in (self.low + 1..).zip(&self.above).filter(|(_, record)| **record == Record::Acked) {
            match spans.last_mut() {
                Some((_, last)) if *last + 1 == seq => *last = seq,
                _ => spans.push((seq, seq)),
            }
        }
        spans
    }

    /// Whether message `seq` is finished.
    pub fn is_confirmed(&self, seq: u64) -> bool {
        seq <= self.low || self.record(seq) == Some(Record::Confirmed)
    }

    fn record(&self, seq: u64) -> Option<Record> {
        let index = seq.checked_sub(self.low + 1)?;
        self.above.get(usize::try_from(index).ok()?).copied()
    }

    fn forget_without_mark(&mut self) {
        self.above
            .iter_mut()
            .filter(|record| **record == Record::Confirmed)
            .for_each(|record| *record = Record::Unknown);
        while self.above.back() == Some(&Record::Unknown) {
            self.above.pop_back();
        }
    }

    fn finish_to(&mut self, floor: u64) {
        while self.low < floor {
            if self.above.pop_front().is_none() {
                self.low = floor;
                break;
            }
            self.low += 1;
        }
        self.advance();
    }

    fn mark(&mut self, seq: u64, record: Record) {
        let Some(index) = seq.checked_sub(self.low + 1) else { return };
        let index = usize::try_from(index).expect("a window fits the memory");
        if self.above.len() <= index {
            self.above.resize(index + 1, Record::Unknown);
        }
        self.above[index] = record;
    }

    fn advance(&mut self) {
        if is_planted(Flaw::ExchangeNoMark) {
            return self.forget_without_mark();
        }
        while self.above.front() == Some(&Record::Confirmed) {
            self.above.pop_front();
            self.low += 1;
        }
        if self.above.is_empty() {
            self.above = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_of_order_is_remembered_until_the_gap_closes() {
        let mut inbound = Inbound::new(1, 0);
        inbound.accept(3, 0);
        inbound.confirm(3, 3);
        assert_eq!((inbound.low(), inbound.len()), (0, 3));
        assert_eq!(inbound.arrive(3, 0), Arrival::Known);
        inbound.accept(1, 0);
        inbound.accept(2, 0);
        assert_eq!(inbound.unconfirmed(), vec![(1, 2)]);
        inbound.confirm(1, 2);
        assert_eq!((inbound.low(), inbound.is_empty()), (3, true));
    }

    #[test]
    fn a_senders_floor_closes_what_is_finished_there() {
        let mut inbound = Inbound::new(1, 0);
        inbound.accept(2, 0);
        assert_eq!(inbound.arrive(2, 2), Arrival::Known);
        assert_eq!(inbound.arrive(3, 2), Arrival::New);
        inbound.accept(3, 2);
        assert_eq!((inbound.low(), inbound.unconfirmed()), (2, vec![(3, 3)]));
    }

    #[test]
    fn the_window_bounds_what_is_remembered() {
        let mut inbound = Inbound::new(1, 10);
        assert_eq!(inbound.arrive(10 + WINDOW, 10), Arrival::New);
        assert_eq!(inbound.arrive(11 + WINDOW, 10), Arrival::TooFar);
        inbound.confirm(1, u64::MAX);
        assert_eq!((inbound.low(), inbound.is_empty()), (10 + WINDOW, true));
    }
}
