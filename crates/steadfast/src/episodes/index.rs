//! The index of episodes: what is, by key, up to one record of the log.
//!
//! It decides nothing: the log is what counts until the index is settled. Each batch carries the number of the record up to
//! which it is complete, in the same keyspace and under the same checksum, so that what is loaded after a crash is one
//! batch's boundary with its own number, never newer values with an older number or the reverse. It never syncs for a
//! batch, and holds nothing that the log does not hold too before it is settled. Read next: [`super::log`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::Lsn;

/// Memory that caches what was read: everything is read once, at the start.
const CACHE_BYTES: u64 = 2 << 20;
/// Memory that collects what was saved before it is written as a table.
const TABLE_BYTES: u64 = 16 << 20;
/// The journal's bound on disk; the smallest that the store takes.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 65_000;
/// The first byte of the key of the number up to which all is there, and of the keys of the caller.
const UPTO: u8 = 0;
const ROW: u8 = 1;

/// Why the index can't be opened, read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The operating system refused. The index is closed; correct the cause and open it again.
    #[error("{}: the index of episodes could not be {doing}: {reason}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the operating system said.
        reason: String,
    },
    /// What it holds does not hold together. Nothing of it is served, and nothing was changed.
    #[error(
        "{}: the index of episodes is damaged ({what}): keep a copy of the folder, put it back from a backup, or move it away to start without the episodes that only this node has",
        path.display()
    )]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// Which part.
        what: String,
    },
    /// Another process has it open.
    #[error("{}: the index of episodes is in use by another process", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A key is too long. Nothing was saved.
    #[error("a key of {bytes} bytes is too long for the index of episodes, which takes {KEY_BYTES_MAX}")]
    KeyTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The index and the log don't belong together: records between them are missing. Nothing of either may be served.
    #[error(
        "the index of episodes is complete up to record {upto} and the log has records {oldest} to {newest}: one of the two was put back or lost alone; put both back from the same backup"
    )]
    Apart {
        /// Up to which record the index is complete.
        upto: Lsn,
        /// The first record of the log.
        oldest: Lsn,
        /// The last record of the log.
        newest: Lsn,
    },
}

/// The index of one node.
///
/// [`Index::open`], then [`Index::check`] it against the log, [`Index::load`] it, and carry out the log's records behind
/// [`Index::upto`]. From then on [`Index::save`] what follows from committed records, and now and then [`Index::settle`] and
/// trim the log up to what that gives. A crash of the process loses no batch; a loss of power at most those that were
/// not settled, of which the log has the records.
///
/// One thing the store behind it does not forgive: a loss of power that keeps later sectors of an unsettled batch and loses
/// earlier ones, inside of one value. It can't tell that from damage, and the index is refused as
/// [`IndexError::Damaged`] though nothing settled is lost. Settling often, with small values, makes that rarer.
pub struct Index {
    path: PathBuf,
    database: Database,
    rows: Keyspace,
    upto: Lsn,
    settled: Lsn,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Index { path, database: _, rows: _, upto, settled } = self;
        formatter
            .debug_struct("Index")
            .field("path", path)
            .field("upto", upto)
            .field("settled", settled)
            .finish_non_exhaustive()
    }
}

impl Index {
    /// Opens the index in a folder, or begins one.
    pub fn open(path: &Path) -> Result<Index, IndexError> {
        let opened = guarded(path, "opened", || {
            let database = Database::builder(path)
                .cache_size(CACHE_BYTES)
                .max_journaling_size(JOURNAL_BYTES_MAX)
                .open()?;
            let options = || KeyspaceCreateOptions::default().max_memtable_size(TABLE_BYTES);
            let rows = database.keyspace("episodes", options)?;
            let upto = rows.get([UPTO])?.map(|bytes| bytes.to_vec());
            Ok((database, rows, upto))
        });
        let (database, rows, upto) = opened?;
        let upto = match upto.as_deref().map(<[u8; 8]>::try_from) {
            None => Lsn(0),
            Some(Ok(bytes)) => Lsn(u64::from_be_bytes(bytes)),
            Some(Err(_)) => return Err(damaged(path, "the number up to which it is complete is no number")),
        };
        let mut index = Index { path: path.to_owned(), database, rows, upto, settled: Lsn(0) };
        if upto == Lsn(0) && index.load().next().is_some() {
            return Err(damaged(path, "the number up to which it is complete is missing"));
        }
        index.settle()?;
        Ok(index)
    }

    /// The last record of the log whose effects are all in here.
    pub fn upto(&self) -> Lsn {
        self.upto
    }

    /// The last record that the log need not have for the sake of this index.
    pub fn settled(&self) -> Lsn {
        self.settled
    }

    /// Whether this index and a log that has the records from `oldest` to `newest` are one store without a gap.
    pub fn check(&self, oldest: Lsn, newest: Lsn) -> Result<(), IndexError> {
        if oldest.0 > self.upto.0 + 1 || newest < self.upto {
            return Err(IndexError::Apart { upto: self.upto, oldest, newest });
        }
        Ok(())
    }

    /// Every key with its value, in the order of the keys.
    pub fn load(&self) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), IndexError>> + use<> {
        let path = self.path.clone();
        let mut rows = self.rows.prefix([ROW]);
        std::iter::from_fn(move || {
            let row = guarded(&path, "read", || rows.next().map(fjall::Guard::into_inner).transpose());
            let row = row.transpose()?;
            Some(row.map(|(key, value)| (key.get(1..).unwrap_or_default().to_vec(), value.to_vec())))
        })
    }

    /// Saves new values, and removes where there is none, as one batch that is complete up to a record. Of several
    /// changes of one key the last counts.
    pub fn save(
        &mut self,
        mut changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
        upto: Lsn,
    ) -> Result<(), IndexError> {
        assert!(upto >= self.upto, "the index is complete up to {}, which is behind {upto}", self.upto);
        if let Some((key, _)) = changes.iter().find(|(key, _)| key.len() > KEY_BYTES_MAX) {
            return Err(IndexError::KeyTooLong { bytes: key.len() });
        }
        // The store gives all of a batch one number, so that two changes of one key in it would have no order.
        changes.reverse();
        changes.sort_by(|(one, _), (other, _)| one.cmp(other));
        changes.dedup_by(|later, earlier| later.0 == earlier.0);
        let mut batch = self.database.batch();
        for (key, value) in changes {
            let key = [&[ROW], key.as_slice()].concat();
            match value {
                Some(value) => batch.insert(&self.rows, key, value),
                None => batch.remove(&self.rows, key),
            }
        }
        batch.insert(&self.rows, [UPTO], upto.0.to_be_bytes());
        guarded(&self.path, "written", || batch.commit())?;
        self.upto = upto;
        Ok(())
    }

    /// Makes everything durable that was saved, and says up to which record the log may be trimmed.
    pub fn settle(&mut self) -> Result<Lsn, IndexError> {
        guarded(&self.path, "made durable", || self.database.persist(PersistMode::SyncAll))?;
        self.settled = self.upto;
        Ok(self.settled)
    }
}

/// Runs something of the store, which says by a panic, too, that a file of it does not hold together.
fn guarded<T>(
    path: &Path,
    doing: &'static str,
    run: impl FnOnce() -> Result<T, fjall::Error>,
) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(fjall::Error::Locked)) => Err(IndexError::InUse { path: path.to_owned() }),
        Ok(Err(fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)))) => {
            Err(IndexError::Io { path: path.to_owned(), doing, reason: error.to_string() })
        }
        Ok(Err(fjall::Error::Poisoned)) => {
            let reason = "an earlier write failed".to_owned();
            Err(IndexError::Io { path: path.to_owned(), doing, reason })
        }
        Ok(Err(error)) => Err(damaged(path, &error.to_string())),
        Err(_) => Err(damaged(path, "the store gave up on it")),
    }
}

fn damaged(path: &Path, what: &str) -> IndexError {
    IndexError::Damaged { path: path.to_owned(), what: what.to_owned() }
}
