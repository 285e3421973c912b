//! The program that the simulated group mirrors: a table of keys, and the means to see what it holds.
//!
//! A write carries a number of its own; the program remembers every number it ever applied and a digest of their order,
//! so that a checker can tell a lost write, or one applied in another order.

use std::collections::{BTreeMap, VecDeque};

use steadfast_proto::group::{Application, RestoreError};

/// A key-value table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Program {
    table: BTreeMap<u16, u64>,
    seen: Vec<u64>,
    /// How many records were applied.
    count: u64,
    digest: u64,
    /// The digests after the newest records, each with its count.
    recent: VecDeque<(u64, u64)>,
}

/// How many digests are remembered; more than a process applies beyond a cut in one step.
const RECENT_MAX: usize = 1_024;

impl Program {
    /// The record that writes `id` under a key that many writes share.
    pub(super) fn record(id: u64) -> Vec<u8> {
        id.to_le_bytes().to_vec()
    }

    /// The first of `wanted`, a set of numbers as bits, that was never applied.
    pub(super) fn lacks(&self, wanted: &[u64]) -> Option<u64> {
        wanted.iter().enumerate().find_map(|(index, bits)| {
            let missing = bits & !self.seen.get(index).copied().unwrap_or(0);
            (missing != 0).then(|| index as u64 * 64 + u64::from(missing.trailing_zeros()))
        })
    }

    /// The digest of the first `count` records, if it is remembered.
    pub(super) fn digest_after(&self, count: u64) -> Option<u64> {
        self.recent.iter().rev().find(|(after, _)| *after == count).map(|(_, digest)| *digest)
    }

    fn remember(&mut self) {
        if self.recent.len() >= RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((self.count, self.digest));
    }
}

/// Puts a number into a set of numbers as bits.
pub(super) fn insert(set: &mut Vec<u64>, id: u64) {
    let index = usize::try_from(id / 64).expect("few writes");
    if set.len() <= index {
        set.resize(index + 1, 0);
    }
    set[index] |= 1 << (id % 64);
}

impl Application for Program {
    fn apply(&mut self, record: &[u8]) -> Vec<u8> {
        let Ok(bytes) = <[u8; 8]>::try_from(record) else { return Vec::new() };
        let id = u64::from_le_bytes(bytes);
        let before = self.table.insert(u16::try_from(id % 97).expect("below 97"), id);
        insert(&mut self.seen, id);
        self.digest = (self.digest ^ id).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        self.count += 1;
        self.remember();
        before.unwrap_or(0).to_le_bytes().to_vec()
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = self.digest.to_le_bytes().to_vec();
        bytes.extend(self.count.to_le_bytes());
        bytes.extend((self.table.len() as u64).to_le_bytes());
        for (key, value) in &self.table {
            bytes.extend(u64::from(*key).to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(self.seen.iter().flat_map(|bits| bits.to_le_bytes()));
        bytes
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let error = || RestoreError { bytes: snapshot.len(), why: "it is cut short".into() };
        let (words, rest) = snapshot.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        if !rest.is_empty() {
            return Err(error());
        }
        self.digest = words.next().ok_or_else(error)?;
        self.count = words.next().ok_or_else(error)?;
        let rows = words.next().ok_or_else(error)?;
        self.table.clear();
        for _ in 0..rows {
            let key = words.next().ok_or_else(error)?;
            let value = words.next().ok_or_else(error)?;
            self.table.insert(u16::try_from(key).map_err(|_| error())?, value);
        }
        self.seen = words.collect();
        self.recent.clear();
        self.remember();
        Ok(())
    }
}
