//! The store on a node's own disk: a log of what happened, and an index of what is.
//!
//! Records go to the log, all of a group with one sync; what follows from them goes to the index now and then, and is trimmed
//! from the log once the index holds it durably. After a crash the index is loaded, and the log's records behind it are
//! carried out again. It decides nothing.

use std::collections::BTreeSet;
use std::path::Path;

use steadfast_proto::episode::{Episodes, Instance, Record};
use steadfast_proto::exchange::Name;

use super::{Folder, Index, Log, Records, Settings, Store, StoreError};

/// How many bytes of the log are replayed at a start at most, about.
const REPLAY_BYTES: u64 = 64 << 20;

/// The log and the index of one folder.
#[derive(Debug)]
pub struct Embedded {
    log: Log,
    index: Index,
    /// What the log held when it was opened, until it is loaded.
    found: Option<Records>,
    /// What the index does not know yet.
    changed: BTreeSet<Name>,
    /// Bytes that were logged since the index was brought up to the log.
    unindexed: u64,
}

impl Embedded {
    /// Opens what is in a folder, or begins it. `salt` is a random number, for a log that does not exist yet.
    ///
    /// # Errors
    /// What is in the folder can't be used, or is used by another program.
    pub fn open(folder: &Path, salt: u64) -> Result<Embedded, StoreError> {
        std::fs::create_dir_all(folder.join("log"))?;
        let (log, records) = Log::open(Box::new(Folder::open(&folder.join("log"))?), Settings::new(salt))?;
        let index = Index::open(&folder.join("index"))?;
        index.check(log.oldest(), log.committed())?;
        Ok(Embedded { log, index, found: Some(records), changed: BTreeSet::new(), unindexed: 0 })
    }

    /// Brings the index up to the log, and frees what the log need not have any more.
    fn save(&mut self, episodes: &Episodes) -> Result<(), StoreError> {
        let changes = std::mem::take(&mut self.changed).into_iter().map(|name| {
            let value = episodes.instance(&name).map(Instance::encode);
            (name.as_str().as_bytes().to_vec(), value)
        });
        self.index.save(changes.collect(), self.log.committed())?;
        let settled = self.index.settle()?;
        self.log.trim(settled)?;
        self.log.prepare()?;
        self.unindexed = 0;
        Ok(())
    }
}

impl Store for Embedded {
    fn load(&mut self, episodes: &mut Episodes) -> Result<(), StoreError> {
        for row in self.index.load() {
            let (_, bytes) = row?;
            episodes.restore(Instance::decode(&bytes)?);
        }
        for (lsn, bytes) in self.found.take().into_iter().flatten() {
            if lsn > self.index.upto() {
                let record = Record::decode(&bytes)?;
                self.changed.insert(record.name().clone());
                episodes.replay(&record);
            }
        }
        self.save(episodes)
    }

    fn append(&mut self, record: &Record) -> Result<(), StoreError> {
        let before = self.log.buffered_bytes();
        self.log.append(|out| record.encode(out))?;
        self.unindexed += (self.log.buffered_bytes() - before) as u64;
        self.changed.insert(record.name().clone());
        Ok(())
    }

    fn commit(&mut self, episodes: &Episodes) -> Result<(), StoreError> {
        self.log.commit()?;
        if self.unindexed > REPLAY_BYTES {
            self.save(episodes)?;
        }
        Ok(())
    }

    fn rest(&mut self) -> Result<(), StoreError> {
        self.log.seal()?;
        Ok(())
    }

    fn end(&mut self, episodes: &Episodes) -> Result<(), StoreError> {
        self.log.commit()?;
        self.save(episodes)?;
        self.rest()
    }
}
