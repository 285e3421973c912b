//! The one thread that writes the store.
//!
//! It decides which jobs share a sync: whatever arrived while the last one ran is the next group; there is no timer. It must never acknowledge
//! a job before the sync that covers it returned, nor write anything after a failure. Jobs that need no sync wait for one that does.
//! Read next: `raft`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;

use openraft::storage::IOFlushed;
use redb::{Database, WriteTransaction};
use tokio::sync::oneshot;

use super::record::{
    self, CHECKPOINT, COMMITTED, CheckpointMark, Image, LINEAGE, LOG, META, PURGED, ROWS, VOTE,
};
use super::{StoreError, from_redb, guarded};
use crate::catalog::engine::{Engine, LogId, Vote};
use crate::catalog::table::Change;

/// Bytes after which a group is closed although more jobs wait.
const GROUP_BYTES_MAX: usize = 8 << 20;

type Done = oneshot::Sender<Result<(), StoreError>>;

/// What changed in the table since the last checkpoint.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) mark: CheckpointMark,
    pub(crate) rows: Rows,
}

/// The rows of a checkpoint.
#[derive(Debug)]
pub(crate) enum Rows {
    /// Only those that changed.
    Changed(Vec<Change>),
    /// All; whatever else is stored is dropped.
    All(Vec<Change>),
}

pub(super) enum Job {
    Append(Vec<(u64, Vec<u8>)>, IOFlushed<Engine>),
    Vote(Vote, Done),
    /// Drops all entries from this index on.
    Truncate(u64, Done),
    /// Drops all entries up to this one.
    Purge(LogId),
    Committed(Option<LogId>),
    Checkpoint(Box<Checkpoint>, Done),
    Lineage(u128, Done),
}

impl Job {
    /// Tells whoever waits for the job that it was not done.
    pub(super) fn fail(self, error: &StoreError) {
        self.finish(&Err(error.clone()));
    }

    fn finish(self, result: &Result<(), StoreError>) {
        match self {
            Self::Append(_, flushed) => flushed.io_completed(result.clone().map_err(io::Error::from)),
            // Whoever waited may have been dropped with the engine: then nobody needs the answer.
            Self::Vote(_, done)
            | Self::Truncate(_, done)
            | Self::Checkpoint(_, done)
            | Self::Lineage(_, done) => drop(done.send(result.clone())),
            Self::Purge(_) | Self::Committed(_) => {}
        }
    }

    fn needs_sync(&self) -> bool {
        match self {
            Self::Append(..)
            | Self::Vote(..)
            | Self::Truncate(..)
            | Self::Checkpoint(..)
            | Self::Lineage(..) => true,
            Self::Purge(_) | Self::Committed(_) => false,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Append(records, _) => records.iter().map(|(_, record)| record.len()).sum(),
            Self::Checkpoint(checkpoint, _) => match &checkpoint.rows {
                Rows::Changed(rows) | Rows::All(rows) => rows
                    .iter()
                    .map(|(key, row)| key.len() + row.as_ref().map_or(0, |row| row.value.len()))
                    .sum(),
            },
            Self::Vote(..) | Self::Truncate(..) | Self::Purge(_) | Self::Committed(_) | Self::Lineage(..) => {
                64
            }
        }
    }
}

/// Starts the writer. It ends when all senders are gone.
pub(super) fn spawn(
    path: PathBuf,
    database: Arc<Database>,
    jobs: mpsc::Receiver<Job>,
    latch: Arc<OnceLock<StoreError>>,
) -> Result<JoinHandle<()>, StoreError> {
    let name = path.clone();
    std::thread::Builder::new()
        .name("catalog-store".into())
        .spawn(move || run(&path, &database, &jobs, &latch))
        .map_err(|error| super::io_error(&name, "starting the writer thread", &error))
}

fn run(path: &Path, database: &Database, jobs: &mpsc::Receiver<Job>, latch: &OnceLock<StoreError>) {
    let mut group = Vec::new();
    while let Ok(job) = jobs.recv() {
        let mut bytes = job.bytes();
        let mut sync = job.needs_sync();
        group.push(job);
        while bytes < GROUP_BYTES_MAX
            && let Ok(job) = jobs.try_recv()
        {
            bytes += job.bytes();
            sync |= job.needs_sync();
            group.push(job);
        }
        if sync || group.len() > 1024 {
            write_group(path, database, latch, &mut group);
        }
    }
    if !group.is_empty() {
        write_group(path, database, latch, &mut group);
    }
}

fn write_group(path: &Path, database: &Database, latch: &OnceLock<StoreError>, group: &mut Vec<Job>) {
    let result = match latch.get() {
        Some(error) => Err(error.clone()),
        None => guarded(path, "writing", || commit(path, database, group)),
    };
    if let Err(error) = &result
        && latch.set(error.clone()).is_ok()
    {
        tracing::error!(%error, "the catalog store failed and stays closed");
    }
    for job in group.drain(..) {
        job.finish(&result);
    }
}

fn commit(path: &Path, database: &Database, group: &[Job]) -> Result<(), StoreError> {
    let transaction =
        database.begin_write().map_err(|error| from_redb(path, "starting a write", error.into()))?;
    for job in group {
        apply(&transaction, job).map_err(|error| from_redb(path, "writing", error))?;
    }
    // Redb's default durability returns after the file was synced.
    transaction.commit().map_err(|error| from_redb(path, "syncing", error.into()))
}

fn apply(transaction: &WriteTransaction, job: &Job) -> Result<(), redb::Error> {
    match job {
        Job::Append(records, _) => {
            let mut log = transaction.open_table(LOG)?;
            for (index, record) in records {
                log.insert(index, record.as_slice())?;
            }
        }
        Job::Vote(vote, _) => put_meta(transaction, VOTE, &record::meta_record(VOTE, vote))?,
        Job::Committed(Some(committed)) => {
            put_meta(transaction, COMMITTED, &record::meta_record(COMMITTED, committed))?
        }
        Job::Committed(None) => {
            transaction.open_table(META)?.remove(COMMITTED)?;
        }
        Job::Truncate(from, _) => transaction.open_table(LOG)?.retain_in(*from.., |_, _| false)?,
        Job::Purge(upto) => {
            transaction.open_table(LOG)?.retain_in(..=upto.index(), |_, _| false)?;
            put_meta(transaction, PURGED, &record::meta_record(PURGED, upto))?;
        }
        Job::Checkpoint(checkpoint, _) => write_checkpoint(transaction, checkpoint)?,
        Job::Lineage(lineage, _) => put_lineage(transaction, *lineage)?,
    }
    Ok(())
}

/// Writes what a planted store begins with, all at once.
pub(super) fn plant(
    path: &Path,
    database: &Database,
    mark: &CheckpointMark,
    image: Image,
    (vote, lineage): (&Vote, u128),
) -> Result<(), StoreError> {
    let failed = |error| from_redb(path, "writing", error);
    let transaction = database.begin_write().map_err(|error| failed(error.into()))?;
    let rows = Rows::All(image.rows.into_iter().map(|(key, row)| (key, Some(row))).collect());
    write_checkpoint(&transaction, &Checkpoint { mark: mark.clone(), rows }).map_err(failed)?;
    put_meta(&transaction, VOTE, &record::meta_record(VOTE, vote)).map_err(failed)?;
    if let Some(last) = &mark.meta.last_log_id {
        put_meta(&transaction, COMMITTED, &record::meta_record(COMMITTED, last)).map_err(failed)?;
        put_meta(&transaction, PURGED, &record::meta_record(PURGED, last)).map_err(failed)?;
    }
    put_lineage(&transaction, lineage).map_err(failed)?;
    transaction.commit().map_err(|error| from_redb(path, "syncing", error.into()))
}

fn put_lineage(transaction: &WriteTransaction, lineage: u128) -> Result<(), redb::Error> {
    put_meta(transaction, LINEAGE, &record::meta_record(LINEAGE, &lineage))
}

fn put_meta(transaction: &WriteTransaction, key: &str, record: &[u8]) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(key, record)?;
    Ok(())
}

fn write_checkpoint(transaction: &WriteTransaction, checkpoint: &Checkpoint) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(ROWS)?;
    let rows = match &checkpoint.rows {
        Rows::Changed(rows) => rows,
        Rows::All(rows) => {
            table.retain(|_, _| false)?;
            rows
        }
    };
    for (key, row) in rows {
        match row {
            Some(row) => drop(table.insert(key.as_str(), record::row_record(key, row).as_slice())?),
            None => drop(table.remove(key.as_str())?),
        }
    }
    put_meta(transaction, CHECKPOINT, &record::meta_record(CHECKPOINT, &checkpoint.mark))
}
