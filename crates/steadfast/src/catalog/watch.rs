//! Watches: the changes of the table in order, without a gap.
//!
//! The node keeps a bounded history of what it applied. A watch only remembers how far it has read, so a slow one costs no memory;
//! one that fell behind the history is given all rows afresh ([`WatchItem::Resync`]) and goes on from there. It must never skip a change
//! silently and never end without saying why. Read next: `machine`, which feeds the history.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::machine::Progress;
use super::table::Change;
use super::{BoxFuture, CatalogError, Rows, Versioned};

/// Revisions kept.
const HISTORY_ITEMS_MAX: usize = 8192;
/// Bytes of keys and values kept; values that are still in the table are shared with it.
const HISTORY_BYTES_MAX: usize = 4 << 20;

/// The changes that one transaction made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Revision of the transaction.
    pub revision: u64,
    /// Keys under the watched prefix, and what they hold now; `None` means deleted.
    pub changes: Vec<(String, Option<Versioned>)>,
}

/// What a watch gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// The next transaction that changed something under the prefix.
    Changed(Watched),
    /// The history no longer reaches back far enough: forget what you know, these are all rows.
    Resync {
        /// Revision of the table at which the rows were read.
        revision: u64,
        /// All rows under the prefix; a key that is not here does not exist.
        rows: Vec<(String, Versioned)>,
    },
}

impl WatchItem {
    /// The revision up to which a consumer of this item knows everything under the prefix.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Changed(watched) => watched.revision,
            Self::Resync { revision, .. } => *revision,
        }
    }
}

/// Where the items of a watch come from.
pub trait WatchSource: Send {
    /// The next item; waits until there is one. Nothing is lost if the future is dropped. An error ends the watch and says why.
    fn next(&mut self) -> BoxFuture<'_, Result<WatchItem, CatalogError>>;
}

/// A watch on all keys under a prefix.
pub struct WatchStream {
    source: Box<dyn WatchSource>,
}

impl WatchStream {
    /// A watch fed by `source`; an engine makes it.
    pub fn new(source: Box<dyn WatchSource>) -> Self {
        Self { source }
    }

    /// The next item; waits until there is one. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// [`CatalogError::Closed`] once this node's catalog is shut down or failed: the watch never ends silently.
    pub async fn next(&mut self) -> Result<WatchItem, CatalogError> {
        self.source.next().await
    }
}

impl fmt::Debug for WatchStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("WatchStream").finish_non_exhaustive()
    }
}

/// What was applied lately, revision by revision.
#[derive(Debug)]
pub(crate) struct History {
    /// Everything after this revision is here.
    base: u64,
    /// The last revision that was added.
    newest: u64,
    /// Revision and changes; revisions grow, and another user of the same database may have used those between.
    items: VecDeque<(u64, Vec<Change>)>,
    bytes: usize,
}

/// Where a reader of the history stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The next changes.
    Changed(Watched),
    /// Nothing is there yet; everything up to this revision was read.
    Nothing(u64),
    /// The reader fell behind.
    Behind,
}

impl History {
    /// An empty history of a table that stands at `revision`.
    pub(crate) fn new(revision: u64) -> Self {
        Self { base: revision, newest: revision, items: VecDeque::new(), bytes: 0 }
    }

    /// Adds all changes of the next revision.
    pub(crate) fn push(&mut self, revision: u64, changes: Vec<Change>) {
        assert!(revision > self.newest, "revisions grow");
        self.newest = revision;
        self.bytes += changes.iter().map(change_bytes).sum::<usize>();
        self.items.push_back((revision, changes));
        while self.items.len() > HISTORY_ITEMS_MAX || (self.bytes > HISTORY_BYTES_MAX && self.items.len() > 1)
        {
            let Some((revision, dropped)) = self.items.pop_front() else { break };
            self.bytes -= dropped.iter().map(change_bytes).sum::<usize>();
            self.base = revision;
        }
    }

    /// The first changes under `prefix` after revision `from`. A revision that changed nothing counts for who watches everything.
    pub(crate) fn read(&self, prefix: &str, from: u64) -> Reading {
        if from < self.base {
            return Reading::Behind;
        }
        let first = self.items.partition_point(|(revision, _)| *revision <= from);
        for (revision, changes) in self.items.iter().skip(first) {
            let mine: Vec<Change> =
                changes.iter().filter(|(key, _)| key.starts_with(prefix)).cloned().collect();
            if !mine.is_empty() || prefix.is_empty() {
                return Reading::Changed(Watched { revision: *revision, changes: mine });
            }
        }
        Reading::Nothing(from.max(self.newest))
    }
}

fn change_bytes(change: &Change) -> usize {
    64 + change.0.len() + change.1.as_ref().map_or(0, |row| row.value.len())
}

/// A node's copy of the table, as a watch reads it.
pub(crate) trait Feed: Send + Sync + 'static {
    /// Follows how far the copy is.
    fn progress(&self) -> watch::Receiver<Progress>;
    /// The first change under a prefix after a revision.
    fn read_history(&self, prefix: &str, from: u64) -> Reading;
    /// All rows under a prefix.
    fn rows_under(&self, prefix: &str) -> Rows;
    /// The error of a copy that is closed, with its reason or else `reason`.
    fn closed_error(&self, reason: &str) -> CatalogError;
}

/// A watch that reads the history of this node.
pub(crate) struct LocalWatch<F> {
    pub(crate) feed: Arc<F>,
    pub(crate) prefix: String,
    pub(crate) from: u64,
}

impl<F: Feed> WatchSource for LocalWatch<F> {
    fn next(&mut self) -> BoxFuture<'_, Result<WatchItem, CatalogError>> {
        Box::pin(async move {
            // Subscribed before the first look: a change between look and wait then ends the wait.
            let mut progress = self.feed.progress();
            loop {
                progress.mark_unchanged();
                match self.feed.read_history(&self.prefix, self.from) {
                    Reading::Changed(watched) => {
                        self.from = watched.revision;
                        return Ok(WatchItem::Changed(watched));
                    }
                    Reading::Nothing(read) => self.from = read,
                    Reading::Behind => {
                        let rows = self.feed.rows_under(&self.prefix);
                        self.from = rows.revision;
                        return Ok(WatchItem::Resync { revision: rows.revision, rows: rows.rows });
                    }
                }
                let closed = progress.borrow().closed;
                if closed || progress.changed().await.is_err() {
                    return Err(self.feed.closed_error("the catalog was dropped"));
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, revision: u64) -> Change {
        (key.to_owned(), Some(Versioned { value: "v".into(), version: revision }))
    }

    #[test]
    fn a_reader_sees_every_revision_of_its_prefix_once() {
        let mut history = History::new(10);
        for revision in 11..=20 {
            history.push(revision, vec![change(if revision % 2 == 0 { "a/x" } else { "b/x" }, revision)]);
        }
        let mut from = 10;
        let mut seen = Vec::new();
        while let Reading::Changed(watched) = history.read("a/", from) {
            from = watched.revision;
            seen.push(watched.revision);
        }
        assert_eq!(seen, [12, 14, 16, 18, 20]);
        assert_eq!(history.read("a/", 5), Reading::Behind);
        assert_eq!(history.read("c/", 10), Reading::Nothing(20));
        assert_eq!(history.read("c/", 99), Reading::Nothing(99));
    }

    #[test]
    fn revisions_that_others_used_are_no_gap() {
        let mut history = History::new(10);
        history.push(14, vec![change("a", 14)]);
        history.push(20, Vec::new());
        assert!(matches!(history.read("a", 10), Reading::Changed(watched) if watched.revision == 14));
        assert_eq!(history.read("a", 14), Reading::Nothing(20));
        assert!(matches!(history.read("", 14), Reading::Changed(watched) if watched.revision == 20));
        assert_eq!(history.read("", 20), Reading::Nothing(20));
        assert_eq!(history.read("a", 9), Reading::Behind);
    }

    #[test]
    fn the_history_is_bounded_and_a_reader_that_fell_behind_is_told() {
        let mut history = History::new(0);
        let count = HISTORY_ITEMS_MAX as u64 + 5;
        for revision in 1..=count {
            history.push(revision, vec![change("a", revision)]);
        }
        assert_eq!(history.read("a", 4), Reading::Behind);
        assert!(matches!(history.read("a", 5), Reading::Changed(watched) if watched.revision == 6));
        let large = Versioned { value: vec![0; HISTORY_BYTES_MAX].into(), version: count + 1 };
        history.push(count + 1, vec![("a".into(), Some(large))]);
        assert_eq!(history.items.len(), 1);
    }
}
