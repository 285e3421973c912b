//! What the engine calls: the log and the vote.
//!
//! Reads are answered from memory, where the whole log is kept: it is short, because checkpoints purge it. Writes go to the writer in the
//! order of the calls. This file must never change the memory in an order other than that of the jobs it submits.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::oneshot;

use super::record;
use super::writer::Job;
use super::{Store, StoreError};
use crate::catalog::engine::{Engine, Entry, LogId, Vote};

impl Store {
    async fn wait(&self, done: oneshot::Receiver<Result<(), StoreError>>) -> Result<(), io::Error> {
        match done.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(StoreError::Closed { path: self.inner.path.clone() }.into()),
        }
    }
}

impl RaftLogReader<Engine> for Store {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        if let Some(failure) = self.failure() {
            return Err(failure.into());
        }
        if is_empty(&range) {
            return Ok(Vec::new());
        }
        Ok(self.memory().entries.range(range).map(|(_, (entry, _))| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.memory().vote)
    }
}

impl RaftLogStorage<Engine> for Store {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Engine>, io::Error> {
        let memory = self.memory();
        let last = memory.entries.last_key_value().map(|(_, (entry, _))| entry.log_id);
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: last.or(memory.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, receiver) = oneshot::channel();
        self.submit(Job::Vote(*vote, done));
        self.wait(receiver).await?;
        self.memory().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.memory().committed = committed;
        self.submit(Job::Committed(committed));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Engine>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        {
            let mut memory = self.memory();
            for entry in entries {
                let index = entry.log_id.index();
                let payload = record::encode(&entry);
                let bytes = payload.len() as u64;
                records.push((index, record::log_record(index, &payload)));
                if let Some((_, replaced)) = memory.entries.insert(index, (entry, bytes)) {
                    memory.bytes -= replaced;
                }
                memory.bytes += bytes;
            }
        }
        self.submit(Job::Append(records, callback));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index() + 1);
        {
            let mut memory = self.memory();
            let dropped = memory.entries.split_off(&from);
            memory.bytes -= dropped.values().map(|(_, bytes)| bytes).sum::<u64>();
        }
        let (done, receiver) = oneshot::channel();
        self.submit(Job::Truncate(from, done));
        self.wait(receiver).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        {
            let mut memory = self.memory();
            let kept = memory.entries.split_off(&(upto.index() + 1));
            let dropped = std::mem::replace(&mut memory.entries, kept);
            memory.bytes -= dropped.values().map(|(_, bytes)| bytes).sum::<u64>();
            memory.purged = memory.purged.max(Some(upto));
        }
        self.submit(Job::Purge(upto));
        Ok(())
    }
}

/// Bytes that an entry takes in a message, about.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    let EntryPayload::Normal(command) = &entry.payload else { return 512 };
    let compare: usize = command.txn.compare.iter().map(|(key, _)| key.len() + 16).sum();
    let puts: usize = command
        .txn
        .puts
        .iter()
        .map(|(key, value)| key.len() + 16 + value.as_ref().map_or(0, |value| value.len()))
        .sum();
    128 + compare + puts
}

/// Whether a range holds no index; a `BTreeMap` panics on one that ends before it begins.
fn is_empty(range: &impl RangeBounds<u64>) -> bool {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    match range.end_bound() {
        Bound::Included(end) => *end < start,
        Bound::Excluded(end) => *end <= start,
        Bound::Unbounded => false,
    }
}
