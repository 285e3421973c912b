//! Whether a history of the catalog is linearizable: the search of Wing and Gong with Lowe's memory of what was tried.
//!
//! Each key is a register with versions and is searched alone, which is enough because linearizability is local. An operation without an
//! answer may have happened at any later moment or never. What spans keys, the order of revisions, is checked by real time beside it.
//! It never looks at how the engine works. Read next: `processes` for where histories come from.

use std::collections::{BTreeMap, HashSet};

/// What was asked of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Read,
    /// Writes a value that nobody else writes; 0 deletes.
    Write(u64),
    /// The same if the key has this version (0: is absent).
    Swap(u64, u64),
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Value and version, both 0 if there is no row.
    Saw(u64, u64),
    /// Done, at this revision.
    Done(u64),
    /// Not done: this version was there.
    Conflict(u64),
}

/// One operation in real time.
#[derive(Clone, Debug)]
pub struct Operation {
    pub key: String,
    pub act: Act,
    /// Nanoseconds on one clock.
    pub began: u64,
    /// When and what; `None` if no answer came, or one that says that it may have happened.
    pub ended: Option<(u64, Answer)>,
}

/// What a key may hold at a moment of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    value: u64,
    version: Version,
    /// Revision of the last change that is known.
    floor: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Version {
    Is(u64),
    /// Written by an operation whose answer was lost.
    Above(u64),
}

impl State {
    const EMPTY: Self = Self { value: 0, version: Version::Is(0), floor: 0 };

    /// The state after learning that the version is this one, unless it can't be.
    fn with_version(self, version: u64) -> Option<Self> {
        match self.version {
            Version::Is(known) => (known == version).then_some(self),
            Version::Above(floor) if version > floor => {
                Some(Self { version: Version::Is(version), floor: version, ..self })
            }
            Version::Above(_) => None,
        }
    }

    fn step(self, act: Act, answer: Option<Answer>) -> Option<Self> {
        match (act, answer) {
            (Act::Read, Some(Answer::Saw(value, version))) if value == self.value => {
                self.with_version(version)
            }
            (Act::Write(value), Some(Answer::Done(revision))) => self.written(value, Some(revision)),
            (Act::Write(value), None) => self.written(value, None),
            (Act::Swap(expected, value), Some(Answer::Done(revision))) => {
                self.with_version(expected)?.written(value, Some(revision))
            }
            (Act::Swap(expected, value), None) => self.with_version(expected)?.written(value, None),
            (Act::Swap(expected, _), Some(Answer::Conflict(found))) if found != expected => {
                self.with_version(found)
            }
            (Act::Read, None) => Some(self),
            _ => None,
        }
    }

    fn written(self, value: u64, revision: Option<u64>) -> Option<Self> {
        let deletes_nothing = value == 0 && self.value == 0;
        let floor = match revision {
            Some(revision) if revision > self.floor || (deletes_nothing && revision >= self.floor) => {
                revision
            }
            Some(_) => return None,
            None => self.floor,
        };
        let version = match revision {
            _ if value == 0 => Version::Is(0),
            Some(revision) => Version::Is(revision),
            None => Version::Above(floor),
        };
        Some(Self { value, version, floor })
    }
}

/// Checks a history; the error names the key and the operations around which no order was found.
pub fn check(history: &[Operation]) -> Result<(), String> {
    check_revisions(history)?;
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        keys.entry(&operation.key).or_default().push(operation);
    }
    for (key, operations) in keys {
        check_key(&operations).map_err(|stuck| format!("key {key}: no order fits before {stuck:#?}"))?;
    }
    Ok(())
}

/// A change that began after another had ended has the greater revision, on whatever key.
fn check_revisions(history: &[Operation]) -> Result<(), String> {
    let mut changes: Vec<(u64, u64, u64)> = history
        .iter()
        // What deletes nothing changes nothing, and shares its revision with the change before.
        .filter(|operation| !matches!(operation.act, Act::Write(0) | Act::Swap(_, 0)))
        .filter_map(|operation| match operation.ended {
            Some((ended, Answer::Done(revision))) => Some((operation.began, ended, revision)),
            _ => None,
        })
        .collect();
    changes.sort_unstable();
    let mut by_end = changes.clone();
    by_end.sort_unstable_by_key(|change| change.1);
    let (mut ended, mut newest) = (by_end.iter().peekable(), 0);
    let mut seen = HashSet::new();
    for (began, _, revision) in changes {
        while let Some(earlier) = ended.next_if(|earlier| earlier.1 < began) {
            newest = newest.max(earlier.2);
        }
        if revision <= newest || !seen.insert(revision) {
            return Err(format!(
                "a change of revision {revision} began after revision {newest} was acknowledged"
            ));
        }
    }
    Ok(())
}

/// Searches for an order; gives the operations at which the longest attempt was stuck.
fn check_key(operations: &[&Operation]) -> Result<(), Vec<Operation>> {
    let mut order: Vec<&Operation> = operations.to_vec();
    order.sort_by_key(|operation| operation.began);
    let mut search = Search {
        taken: vec![0; order.len().div_ceil(64)],
        left: order.iter().filter(|operation| operation.ended.is_some()).count(),
        order: &order,
        first: 0,
        tried: HashSet::new(),
    };
    let mut state = State::EMPTY;
    let mut path: Vec<(usize, State, usize, Vec<usize>)> = Vec::new();
    let mut candidates = search.candidates();
    let (mut fewest, mut stuck) = (usize::MAX, Vec::new());
    while search.left > 0 {
        let next = loop {
            let Some(candidate) = candidates.pop() else { break None };
            let operation = order[candidate];
            let Some(after) = state.step(operation.act, operation.ended.map(|ended| ended.1)) else {
                continue;
            };
            if search.take(candidate, after) {
                break Some((candidate, after));
            }
        };
        if let Some((candidate, after)) = next {
            path.push((candidate, state, search.first, std::mem::take(&mut candidates)));
            state = after;
            search.advance();
            candidates = search.candidates();
            continue;
        }
        if search.left < fewest {
            fewest = search.left;
            stuck = search.candidates().into_iter().map(|at| order[at].clone()).collect();
        }
        let Some((undone, before, first, rest)) = path.pop() else { return Err(stuck) };
        search.give_back(undone);
        (state, search.first, candidates) = (before, first, rest);
    }
    Ok(())
}

struct Search<'a> {
    order: &'a [&'a Operation],
    taken: Vec<u64>,
    /// Answered operations that have no place yet.
    left: usize,
    /// Everything before it has its place.
    first: usize,
    tried: HashSet<(Vec<u64>, State)>,
}

impl Search<'_> {
    fn is_taken(&self, at: usize) -> bool {
        self.taken[at / 64] & (1 << (at % 64)) != 0
    }

    /// The operations that may be next: begun before the first answer among those that are left. The likeliest last.
    fn candidates(&self) -> Vec<usize> {
        let mut first_end = u64::MAX;
        let mut found: Vec<usize> = Vec::new();
        for at in self.first..self.order.len() {
            if self.is_taken(at) {
                continue;
            }
            let operation = self.order[at];
            if operation.began > first_end {
                break;
            }
            first_end = first_end.min(operation.ended.map_or(u64::MAX, |ended| ended.0));
            found.push(at);
        }
        found.retain(|at| self.order[*at].began <= first_end);
        self.drop_unseen(&mut found);
        found.sort_by_key(|at| std::cmp::Reverse(self.order[*at].ended.map_or(u64::MAX, |ended| ended.0)));
        found
    }

    /// Drops operations without an answer that nothing here could have seen: an order with one of them is an order without it as well.
    /// What follows such an operation at once is a read of its value or a swap that met it; a swap from its version can't, because whoever
    /// swaps has seen that version before.
    fn drop_unseen(&self, found: &mut Vec<usize>) {
        let others: Vec<(Act, Option<Answer>)> = found
            .iter()
            .map(|at| (self.order[*at].act, self.order[*at].ended.map(|(_, answer)| answer)))
            .collect();
        found.retain(|at| {
            let operation = self.order[*at];
            let value = match operation.act {
                _ if operation.ended.is_some() => return true,
                Act::Read => return false,
                Act::Write(value) | Act::Swap(_, value) => value,
            };
            others.iter().any(|(act, answer)| match (act, answer) {
                (Act::Read, Some(Answer::Saw(seen, _))) => *seen == value,
                (Act::Swap(..), Some(Answer::Conflict(met))) => (*met == 0) == (value == 0),
                (Act::Swap(0, _), _) => value == 0,
                _ => false,
            })
        });
    }

    /// Takes an operation unless the same was tried before.
    fn take(&mut self, at: usize, after: State) -> bool {
        self.taken[at / 64] |= 1 << (at % 64);
        if !self.tried.insert((self.taken.clone(), after)) {
            self.taken[at / 64] &= !(1 << (at % 64));
            return false;
        }
        self.left -= usize::from(self.order[at].ended.is_some());
        true
    }

    fn give_back(&mut self, at: usize) {
        self.taken[at / 64] &= !(1 << (at % 64));
        self.left += usize::from(self.order[at].ended.is_some());
    }

    fn advance(&mut self) {
        while self.first < self.order.len() && self.is_taken(self.first) {
            self.first += 1;
        }
    }
}
