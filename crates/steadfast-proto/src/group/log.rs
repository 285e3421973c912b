//! The records that a process of a group has: those that somebody may still lack, and some more for who lags.
//!
//! Decides what is kept. Must never drop a record above the stable one, and never holds a gap.

use std::collections::VecDeque;

use super::{MESSAGE_BYTES_MAX, Sequence};

/// Bytes of stable records that are kept at most.
const RETAINED_BYTES_MAX: usize = 8 << 20;

#[derive(Clone, Debug)]
pub(super) struct Log {
    records: VecDeque<Vec<u8>>,
    bytes: usize,
    last: Sequence,
    stable: Sequence,
    retained_max: u64,
}

impl Log {
    /// A log that begins after `last`.
    pub(super) fn after(last: Sequence, stable: Sequence, retained_max: u64) -> Log {
        Log { records: VecDeque::new(), bytes: 0, last, stable: stable.min(last), retained_max }
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
        let is_much =
            |log: &Log| log.records.len() as u64 > log.retained_max || log.bytes > RETAINED_BYTES_MAX;
        while is_much(self) && self.first() <= self.stable {
            let Some(dropped) = self.records.pop_front() else { return };
            self.bytes -= dropped.len();
        }
    }
}
