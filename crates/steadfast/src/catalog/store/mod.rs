//! The durable store of one member: its log, its vote and the last checkpoint of its table, in one redb file.
//!
//! It decides what is durable when: an append, a vote, a truncation and a checkpoint are acknowledged only after the file was synced; many of
//! them share one sync. Purges and commit marks ride along with the next of those, so an idle member writes nothing. After one failed write or
//! sync the store stays closed until it is opened again: it must never guess what reached the disk. Every record carries a checksum that binds
//! its table and key; a record that does not match is named and never served.
//! Read next: `writer` (the one thread that writes), `record` (the form of a record), `raft` (what the engine calls).

mod plant;
mod raft;
pub(super) mod record;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};

use redb::backends::FileBackend;
use redb::{Database, ReadTransaction, ReadableDatabase, StorageBackend};
use tokio::sync::oneshot;

pub(crate) use self::plant::{Contents, Plant, contents, exists, plant};
pub(crate) use self::raft::entry_bytes;
pub(crate) use self::record::{CheckpointMark, Image};
use self::record::{HEADER, LOG, META, ROWS};
use self::writer::Job;
pub(crate) use self::writer::{Checkpoint, Rows as CheckpointRows};
use super::engine::{Entry, LogId, RaftNodeId, SnapshotMeta, StoreId, Vote};
use super::table::Table;

/// Name of the file inside the directory of the catalog.
const FILE_NAME: &str = "catalog.redb";
/// Memory that redb may use to cache pages: what is read often is kept decoded elsewhere.
const CACHE_BYTES: usize = 1 << 20;

/// Why a store can't be opened, read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused. The store is closed; correct the cause and open it again.
    #[error("{}: {doing} failed: {reason}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the operating system said.
        reason: String,
    },
    /// The disk is full. The store is closed; free space and restart the agent.
    #[error("{}: no space is left on the disk while {doing}; free space and restart the agent", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
    },
    /// The file was altered or damaged. Nothing of it is used; remove this member and join again with an empty directory.
    #[error("{}: the catalog store is damaged: {what}; remove this node from the cluster and join it again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Which part does not hold together.
        what: String,
    },
    /// Another process has the store open.
    #[error("{}: the catalog store is in use by another process", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The store belongs to another cluster or member, or was written by a later version.
    #[error("{}: the catalog store was made for {found}, not for {wanted}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What was expected.
        wanted: String,
    },
    /// The store was closed.
    #[error("{}: the catalog store is closed", path.display())]
    Closed {
        /// The file.
        path: PathBuf,
    },
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        io::Error::other(error)
    }
}

/// Whose store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) cluster: u128,
    pub(crate) node: RaftNodeId,
}

/// A handle on the store; all clones are the same store.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    id: StoreId,
    /// `None` once the store is closed: then the file is closed too.
    database: Mutex<Option<Arc<Database>>>,
    /// `None` once the store is closed.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    memory: Mutex<Memory>,
    latch: Arc<OnceLock<StoreError>>,
}

/// The log as the engine reads it: all of it, with what is not yet durable.
#[derive(Debug, Default)]
struct Memory {
    entries: BTreeMap<u64, (Entry, u64)>,
    bytes: u64,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// 0 until the catalog was recovered from a survivor; then a number drawn at random.
    lineage: u128,
}

/// What a store holds for the state machine when it is opened.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) meta: SnapshotMeta,
    pub(crate) table: Table,
}

impl Store {
    /// Opens the store in a directory, or makes it durably.
    pub(crate) fn open(dir: &Path, owner: Owner, fresh_id: StoreId) -> Result<(Self, Restored), StoreError> {
        let path = dir.join(FILE_NAME);
        if !path.exists() {
            create(dir, &path, owner, fresh_id)?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| io_error(&path, "opening", &error))?;
        Self::open_backend(
            &path,
            FileBackend::new(file).map_err(|error| from_redb(&path, "opening", error.into()))?,
            owner,
        )
    }

    /// Opens the store on any backend; `path` only names it.
    pub(crate) fn open_backend(
        path: &Path,
        backend: impl StorageBackend,
        owner: Owner,
    ) -> Result<(Self, Restored), StoreError> {
        let database = open_database(path, backend)?;
        let loaded = guarded(path, "reading", || record::load(path, &database, owner))?;
        let latch = Arc::new(OnceLock::new());
        let (sender, receiver) = mpsc::channel();
        let database = Arc::new(database);
        let writer = writer::spawn(path.to_owned(), Arc::clone(&database), receiver, Arc::clone(&latch))?;
        let inner = Inner {
            path: path.to_owned(),
            id: loaded.id,
            database: Mutex::new(Some(database)),
            jobs: Mutex::new(Some(sender)),
            writer: Mutex::new(Some(writer)),
            memory: Mutex::new(loaded.memory),
            latch,
        };
        Ok((Self { inner: Arc::new(inner) }, loaded.restored))
    }

    /// The name of this store.
    pub(crate) fn id(&self) -> StoreId {
        self.inner.id
    }

    /// Which life of its cluster it belongs to.
    pub(crate) fn lineage(&self) -> u128 {
        self.memory().lineage
    }

    /// Takes a lineage, durably, if nothing was ever stored here; whether it has that lineage now.
    pub(crate) async fn adopt(&self, lineage: u128) -> Result<bool, StoreError> {
        let receiver = {
            let mut memory = self.memory();
            let blank = memory.entries.is_empty()
                && memory.purged.is_none()
                && memory.vote.is_none()
                && memory.committed.is_none();
            if memory.lineage == lineage || memory.lineage != 0 || !blank {
                return Ok(memory.lineage == lineage);
            }
            memory.lineage = lineage;
            let (done, receiver) = oneshot::channel();
            // Before the memory is free again: what follows from the lineage is written after it.
            self.submit(Job::Lineage(lineage, done));
            receiver
        };
        let closed = || StoreError::Closed { path: self.inner.path.clone() };
        receiver.await.unwrap_or_else(|_| Err(closed())).map(|()| true)
    }

    /// Why the store closed itself, if it did.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.inner.latch.get().cloned()
    }

    /// Entries in the log and their bytes.
    pub(crate) fn log_size(&self) -> (u64, u64) {
        let memory = self.memory();
        (memory.entries.len() as u64, memory.bytes)
    }

    /// Entries and bytes of the log after the last checkpoint.
    pub(crate) fn log_size_after_checkpoint(&self, checkpoint: Option<u64>) -> (u64, u64) {
        let memory = self.memory();
        let from = checkpoint.map_or(0, |checkpoint| checkpoint.saturating_add(1));
        // Counted from the short side: what is kept behind a checkpoint is bounded.
        let behind =
            memory.entries.range(..from).fold((0, 0), |sum, (_, (_, bytes))| (sum.0 + 1, sum.1 + bytes));
        (memory.entries.len() as u64 - behind.0, memory.bytes - behind.1)
    }

    /// The first index to keep, so that what is kept of the log up to `upto` has at most these entries and bytes.
    pub(crate) fn keep_from(&self, upto: u64, entries_max: u64, bytes_max: u64) -> Option<u64> {
        let memory = self.memory();
        let mut kept = (0, 0);
        for (index, (_, bytes)) in memory.entries.range(..=upto).rev() {
            kept = (kept.0 + 1, kept.1 + bytes);
            if kept.0 > entries_max || kept.1 > bytes_max {
                return Some(*index);
            }
        }
        None
    }

    /// Stores what changed in the table since the last checkpoint. The order of calls is the order on the disk.
    pub(crate) fn checkpoint(&self, checkpoint: Checkpoint) -> oneshot::Receiver<Result<(), StoreError>> {
        let (done, receiver) = oneshot::channel();
        self.submit(Job::Checkpoint(Box::new(checkpoint), done));
        receiver
    }

    /// A consistent view of the last checkpoint, or `None` if none was made.
    pub(crate) fn image(&self) -> Result<Option<(SnapshotMeta, StoredImage)>, StoreError> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let path = &self.inner.path;
        let database = self.inner.database.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let database = database.ok_or_else(|| StoreError::Closed { path: path.clone() })?;
        guarded(path, "reading", || {
            let view = database.begin_read().map_err(|error| from_redb(path, "reading", error.into()))?;
            let Some(mark) = record::read_mark(path, &view)? else { return Ok(None) };
            Ok(Some((mark.meta, StoredImage { path: path.clone(), view: Arc::new(view) })))
        })
    }

    /// Writes what rode along, and closes the store. Returns once the file is closed.
    pub(crate) fn close(&self) {
        drop(self.lock_jobs().take());
        let writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!(path = %self.inner.path.display(), "the writer of the catalog store panicked");
        }
        drop(self.inner.database.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn submit(&self, job: Job) {
        let jobs = self.lock_jobs();
        let refused = match jobs.as_ref() {
            Some(sender) => sender.send(job).err().map(|refused| refused.0),
            None => Some(job),
        };
        if let Some(job) = refused {
            job.fail(&self.failure().unwrap_or_else(|| StoreError::Closed { path: self.inner.path.clone() }));
        }
    }

    fn lock_jobs(&self) -> MutexGuard<'_, Option<mpsc::Sender<Job>>> {
        self.inner.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.inner.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A view of a checkpoint in the file; it stays as it was while later checkpoints are made.
#[derive(Clone, Debug)]
pub(crate) struct StoredImage {
    path: PathBuf,
    view: Arc<ReadTransaction>,
}

impl StoredImage {
    /// Reads the checkpoint and verifies every record.
    pub(crate) fn load(&self) -> Result<Image, StoreError> {
        guarded(&self.path, "reading", || record::read_image(&self.path, &self.view))
    }
}

/// Makes a store under a temporary name and gives it its name when it is complete and durable.
fn create(dir: &Path, path: &Path, owner: Owner, id: StoreId) -> Result<(), StoreError> {
    std::fs::create_dir_all(dir).map_err(|error| io_error(dir, "creating the directory", &error))?;
    let unfinished = path.with_extension("new");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&unfinished);
    let file = file.map_err(|error| io_error(&unfinished, "creating", &error))?;
    let backend = FileBackend::new(file).map_err(|error| from_redb(&unfinished, "creating", error.into()))?;
    let database = open_database(&unfinished, backend)?;
    initialize(&unfinished, &database, owner, id)?;
    drop(database);
    let file = File::open(&unfinished).map_err(|error| io_error(&unfinished, "opening", &error))?;
    file.sync_all().map_err(|error| io_error(&unfinished, "syncing", &error))?;
    std::fs::rename(&unfinished, path).map_err(|error| io_error(path, "renaming", &error))?;
    sync_directory(dir)?;
    dir.parent().map_or(Ok(()), sync_directory)
}

/// Writes the header of a new store.
pub(crate) fn initialize(
    path: &Path,
    database: &Database,
    owner: Owner,
    id: StoreId,
) -> Result<(), StoreError> {
    guarded(path, "creating", || {
        let failed = |error: redb::Error| from_redb(path, "creating", error);
        let transaction = database.begin_write().map_err(|error| failed(error.into()))?;
        {
            let mut meta = transaction.open_table(META).map_err(|error| failed(error.into()))?;
            meta.insert(HEADER, record::header(owner, id).as_slice())
                .map_err(|error| failed(error.into()))?;
            transaction.open_table(LOG).map_err(|error| failed(error.into()))?;
            transaction.open_table(ROWS).map_err(|error| failed(error.into()))?;
        }
        transaction.commit().map_err(|error| failed(error.into()))
    })
}

/// Opens the file and verifies the checksum of every page in it.
pub(crate) fn open_database(path: &Path, backend: impl StorageBackend) -> Result<Database, StoreError> {
    guarded(path, "opening", || {
        redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(|error| from_redb(path, "opening", error.into()))
    })
}

fn sync_directory(dir: &Path) -> Result<(), StoreError> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(|error| io_error(dir, "syncing the directory", &error))
}

/// Runs a redb operation; a damaged file can make redb panic, which is reported as damage.
fn guarded<T>(
    path: &Path,
    doing: &'static str,
    run: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(StoreError::Corrupt {
            path: path.to_owned(),
            what: format!("{doing} it panicked inside the database library"),
        })
    })
}

fn io_error(path: &Path, doing: &'static str, error: &io::Error) -> StoreError {
    if error.kind() == io::ErrorKind::StorageFull {
        return StoreError::NoSpace { path: path.to_owned(), doing };
    }
    StoreError::Io { path: path.to_owned(), doing, reason: error.to_string() }
}

fn from_redb(path: &Path, doing: &'static str, error: redb::Error) -> StoreError {
    let path = path.to_owned();
    if let redb::Error::Io(error) = &error {
        // The library reports a file that is not its own, or is cut short, as invalid data.
        if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) {
            return StoreError::Corrupt { path, what: format!("{doing}: {error}") };
        }
        return io_error(&path, doing, error);
    }
    if let redb::Error::Corrupted(what) = &error {
        return StoreError::Corrupt { path, what: format!("{doing}: {what}") };
    }
    if matches!(error, redb::Error::DatabaseAlreadyOpen) {
        return StoreError::InUse { path };
    }
    StoreError::Io { path, doing, reason: error.to_string() }
}

#[cfg(test)]
mod tests;
