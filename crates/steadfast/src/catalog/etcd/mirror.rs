//! What a node knows of the rows in etcd without asking: a copy that one watch feeds, and its history for the watches of this node.
//!
//! Revisions only grow here. It must never show half of a revision, nor go back: an etcd that was restored from an older snapshot closes it.
//! Read next: `follow`, which feeds it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::super::engine::RaftNodeId;
use super::super::machine::Progress;
use super::super::table::Change;
use super::super::watch::{Feed, History, Reading};
use super::super::{CatalogError, Rows, Txn, Versioned};

/// The copy.
#[derive(Debug)]
pub(super) struct Mirror {
    node: RaftNodeId,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
    reason: Mutex<Option<String>>,
}

#[derive(Debug)]
struct State {
    rows: BTreeMap<String, Versioned>,
    bytes: u64,
    revision: u64,
    history: History,
}

impl Mirror {
    /// An empty copy, of before the first change.
    pub(super) fn new(node: RaftNodeId) -> Self {
        let state = State { rows: BTreeMap::new(), bytes: 0, revision: 0, history: History::new(0) };
        Self {
            node,
            state: Mutex::new(state),
            progress: watch::Sender::new(Progress::default()),
            reason: Mutex::default(),
        }
    }

    /// Takes over all rows as they were when `revision` was the last change.
    pub(super) fn replace(&self, revision: u64, rows: BTreeMap<String, Versioned>) {
        let mut state = self.lock();
        if revision < state.revision {
            let known = state.revision;
            drop(state);
            return self.close_gone_back(known, revision);
        }
        if revision > state.revision {
            state.bytes = rows.iter().map(|(key, row)| row_bytes(key, row)).sum();
            state.rows = rows;
            state.revision = revision;
            state.history = History::new(revision);
        }
        drop(state);
        self.show(revision);
    }

    /// Takes over the changes of one revision; one that is known already is passed over.
    pub(super) fn apply(&self, revision: u64, changes: Vec<Change>) {
        let mut state = self.lock();
        if revision <= state.revision {
            return;
        }
        for (key, row) in &changes {
            let before = match row {
                Some(row) => {
                    state.bytes += row_bytes(key, row);
                    state.rows.insert(key.clone(), row.clone())
                }
                None => state.rows.remove(key),
            };
            if let Some(before) = before {
                state.bytes = state.bytes.saturating_sub(row_bytes(key, &before));
            }
        }
        state.revision = revision;
        state.history.push(revision, changes);
        drop(state);
        self.show(revision);
    }

    /// Closes it because etcd, which was at `known` before, is at `now`.
    pub(super) fn close_gone_back(&self, known: u64, now: u64) {
        self.close(format!(
            "etcd went back from revision {known} to {now}: it was restored from a snapshot, or its data were lost; what it holds now is accepted when the agent starts again"
        ));
    }

    /// Whether all rows were received once.
    pub(super) fn is_filled(&self) -> bool {
        self.progress.borrow().applied_next > 0
    }

    /// Revision of the last change that is known here.
    pub(super) fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// The row of a key and the revision of the copy.
    pub(super) fn row(&self, key: &str) -> (u64, Option<Versioned>) {
        let state = self.lock();
        (state.revision, state.rows.get(key).cloned())
    }

    /// How many bytes all rows have now, and would have after a transaction that succeeds.
    pub(super) fn bytes_with(&self, txn: &Txn) -> (u64, u64) {
        let state = self.lock();
        let mut bytes = state.bytes;
        for (key, value) in &txn.puts {
            if let Some(row) = state.rows.get(key) {
                bytes = bytes.saturating_sub(row_bytes(key, row));
            }
            bytes += value.as_ref().map_or(0, |value| (key.len() + value.len()) as u64);
        }
        (state.bytes, bytes)
    }

    /// Ends all watches with a reason; the first reason stays.
    pub(super) fn close(&self, reason: String) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.progress.send_modify(|progress| progress.closed = true);
    }

    /// Why nothing will be received any more, if so.
    pub(super) fn closed(&self) -> Option<CatalogError> {
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(CatalogError::Closed { node: self.node, reason })
    }

    fn show(&self, revision: u64) {
        self.progress.send_modify(|progress| {
            progress.applied_next = revision + 1;
            progress.revision = revision;
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed for Mirror {
    fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn read_history(&self, prefix: &str, from: u64) -> Reading {
        self.lock().history.read(prefix, from)
    }

    fn rows_under(&self, prefix: &str) -> Rows {
        let state = self.lock();
        let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
        let rows = state.rows.range::<str, _>(from).take_while(|(key, _)| key.starts_with(prefix));
        Rows { revision: state.revision, rows: rows.map(|(key, row)| (key.clone(), row.clone())).collect() }
    }

    fn closed_error(&self, reason: &str) -> CatalogError {
        self.closed().unwrap_or_else(|| CatalogError::Closed { node: self.node, reason: reason.to_owned() })
    }
}

fn row_bytes(key: &str, row: &Versioned) -> u64 {
    (key.len() + row.value.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(version: u64) -> Versioned {
        Versioned { value: "v".into(), version }
    }

    #[test]
    fn a_copy_that_is_taken_over_again_unchanged_tells_nobody_anything() {
        let mirror = Mirror::new(1);
        assert!(!mirror.is_filled());
        mirror.replace(5, BTreeMap::from([("a".to_owned(), row(5))]));
        assert!(mirror.is_filled());
        assert_eq!(mirror.read_history("", 0), Reading::Behind);
        mirror.apply(9, vec![("b".to_owned(), Some(row(9)))]);
        mirror.replace(9, BTreeMap::new());
        assert_eq!(mirror.read_history("", 9), Reading::Nothing(9));
        assert!(matches!(mirror.read_history("", 5), Reading::Changed(_)), "its history is kept");
        assert_eq!(mirror.bytes_with(&Txn::delete("a")), (4, 2));
        assert_eq!(mirror.bytes_with(&Txn::put("c", "vvv")), (4, 8));
    }

    #[test]
    fn an_etcd_that_went_back_closes_it() {
        let mirror = Mirror::new(1);
        mirror.replace(9, BTreeMap::new());
        mirror.apply(9, vec![("a".to_owned(), Some(row(9)))]);
        assert_eq!(mirror.row("a"), (9, None), "a revision that is known is not applied again");
        mirror.replace(7, BTreeMap::new());
        let closed = mirror.closed().unwrap().to_string();
        assert!(closed.contains("from revision 9 to 7"), "{closed}");
    }
}
