//! The records that a process of a group has: those that somebody may still lack, and some more for who lags.
//!
//! Decides what is kept. Must never drop a record above the stable one, and never holds a gap.

use std::collections::VecDeque;

use super::{MESSAGE_BYTES_MAX, Sequence};

/// Bytes of stable records that are kept at most.
const RETAINED_BYTES_MAX: usize = 8 << 20;
/// How many times as much is kept for a candidate that takes the state over: what is written meanwhile.
const HELD_FACTOR: u64 = 16;
const HELD_BYTES_MAX: usize = 64 << 20;

#[derive(Clone, Debug)]
pub(super) struct Log {
    records: VecDeque<Vec<u8>>,
    bytes: usize,
    last: Sequence,
    stable: Sequence,
    retained_max: u64,
    /// What somebody who is being fed has; more is kept after it.
    held: Option<Sequence>,
}

impl Log {
    /// A log that begins after `last`.
    pub(super) fn after(last: Sequence, stable: Sequence, retained_max: u64) -> Log {
        Log { records: VecDeque::new(), bytes: 0, last, stable: stable.min(last), retained_max, held: None }
    }

    pub(super) fn last(&self) -> Sequence {
        self.last
    }

    /// Up to where all full members have everything, as far as is known here.
    pub(super) fn stable(&self) -> Sequence {
        self.stable
    }

    /// The oldest record that is kept, or the next one when none is.
    pub(super) fn first(&self) -> Sequence {
        Sequence(self.last.0.saturating_sub(self.records.len() as u64) + 1)
    }

    pub(super) fn unstable(&self) -> u64 {
        self.last.0 - self.stable.0
    }

    pub(super) fn push(&mut self, record: Vec<u8>) -> Sequence {
        self.bytes += record.len();
        self.records.push_back(record);
        self.last = self.last.next();
        self.trim();
        self.last
    }

    pub(super) fn stabilise(&mut self, stable: Sequence) {
        self.stable = self.stable.max(stable.min(self.last));
        self.trim();
    }

    /// Keeps more of what comes after `held`, which a candidate has; nothing more than usual for `None`.
    pub(super) fn hold(&mut self, held: Option<Sequence>) {
        self.held = held;
        self.trim();
    }

    /// Records from `first` on, as many as one message carries and no more than `max`; none if they are not kept.
    pub(super) fn from(&self, first: Sequence, max: u64) -> Vec<Vec<u8>> {
        let Some(skipped) =
            first.0.checked_sub(self.first().0).and_then(|skipped| usize::try_from(skipped).ok())
        else {
            return Vec::new();
        };
        let mut bytes = 0usize;
        let fits = |record: &&Vec<u8>| {
            let is_first = bytes == 0;
            bytes += record.len() + 1;
            is_first || bytes <= MESSAGE_BYTES_MAX
        };
        let count = usize::try_from(max).unwrap_or(usize::MAX);
        self.records.iter().skip(skipped).take(count).take_while(fits).cloned().collect()
    }

    fn trim(&mut self) {
        while self.is_much() && self.first() <= self.stable {
            let Some(dropped) = self.records.pop_front() else { return };
            self.bytes -= dropped.len();
        }
    }

    fn is_much(&self) -> bool {
        let (records, is_held) =
            (self.records.len() as u64, self.held.is_some_and(|held| self.first() > held));
        if is_held {
            return records > self.retained_max.saturating_mul(HELD_FACTOR) || self.bytes > HELD_BYTES_MAX;
        }
        records > self.retained_max || self.bytes > RETAINED_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_kept_for_who_takes_the_state_over_and_no_more_than_that() {
        let mut log = Log::after(Sequence(0), Sequence(0), 4);
        let write = |log: &mut Log, count| {
            for _ in 0..count {
                let last = log.push(vec![7]);
                log.stabilise(last);
            }
        };
        write(&mut log, 10);
        assert_eq!(log.first(), Sequence(7));
        log.hold(Some(Sequence(10)));
        write(&mut log, 20);
        assert_eq!(log.first(), Sequence(11));
        write(&mut log, 1_000);
        assert_eq!((log.first(), log.last()), (Sequence(967), Sequence(1_030)));
        log.hold(None);
        assert_eq!(log.first(), Sequence(1_027));
    }
}
