//! The store of mirrored instances: on this node's disk and on another node's, without any other system.
//!
//! Nothing leaves a keeper before both have what it rests on. When a node is lost, those that keep its homes from then on have
//! them from the other one. What two nodes do that both believe that they keep a home, and how homes move, is decided by
//! `keeping`; `copies` is what each node holds. A call that fails is the last one: the next [`Mirrored`] takes the homes of this
//! one over, with another holder if there is a better one. Read next: `keeping`, then [`super::keeper`].

mod copies;
mod keeping;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use steadfast_proto::episode::{Episodes, Instance, Record, home_of};
use steadfast_proto::exchange::{Blob, Name};
use steadfast_proto::ids::NodeId;
use tokio::runtime::Handle;

pub use self::copies::{Answer, Change, Copies, Generation, Question, Unreadable};
pub use self::keeping::{Cluster, Kept, Table};
use self::keeping::{Keeping, number};
use super::store::HOMES;
use super::{Adopted, Store, StoreError};

/// Why mirrored instances can't be kept on for a moment. Nothing that was committed is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// Whether it has the last commit is not known.
    #[error("the other node that holds mirrored instances does not answer: {0}")]
    Holder(String),
    /// Who keeps what was not changed.
    #[error("no other node takes copies of mirrored instances")]
    NoHolder,
    /// Everything is committed.
    #[error("others change who keeps mirrored instances all the time")]
    Busy,
    /// Everything is committed.
    #[error("another node is to hold mirrored instances from now on")]
    Misplaced,
}

/// One node's part of the store of mirrored instances.
#[derive(Debug)]
pub struct Mirrored {
    runtime: Handle,
    keeping: Keeping,
    /// What was recorded of since the last commit.
    changed: BTreeSet<Name>,
    /// The highest epoch of instances that began since then, by home.
    began: BTreeMap<u32, u64>,
}

impl Mirrored {
    /// As `me`, with what this node holds. `life` is a random number. Calls block: they are not for a task of `runtime`.
    pub fn new(
        runtime: &Handle,
        (me, life): (NodeId, u64),
        copies: Copies,
        cluster: Arc<dyn Cluster>,
    ) -> Mirrored {
        Mirrored {
            runtime: runtime.clone(),
            keeping: Keeping::new(me, life, copies, cluster),
            changed: BTreeSet::new(),
            began: BTreeMap::new(),
        }
    }
}

impl Store for Mirrored {
    fn load(&mut self, _: &mut Episodes) -> Result<(), StoreError> {
        Ok(())
    }

    fn append(&mut self, record: &Record) -> Result<(), StoreError> {
        if let Record::Began { name, epoch, .. } = record {
            let highest = self.began.entry(home_number(name)).or_default();
            *highest = (*highest).max(*epoch);
        }
        self.changed.insert(record.name().clone());
        Ok(())
    }

    fn commit(&mut self, episodes: &Episodes) -> Result<(), StoreError> {
        let changes = std::mem::take(&mut self.changed).into_iter().map(|name| Change {
            home: home_number(&name),
            bytes: episodes.instance(&name).map(|instance| Blob::from(instance.encode())),
            name,
        });
        let epochs = std::mem::take(&mut self.began).into_iter().collect();
        self.runtime.block_on(self.keeping.commit(changes.collect(), epochs))
    }

    fn rest(&mut self) -> Result<(), StoreError> {
        self.check()?;
        if self.keeping.is_misplaced() { Err(MirrorError::Misplaced.into()) } else { Ok(()) }
    }

    fn check(&mut self) -> Result<(), StoreError> {
        self.runtime.block_on(self.keeping.commit(Vec::new(), Vec::new()))
    }

    fn end(&mut self, episodes: &Episodes) -> Result<(), StoreError> {
        self.commit(episodes)?;
        self.release(&episodes.adopted_homes())
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn adopt(&mut self, homes: &BTreeSet<usize>, living: &BTreeSet<NodeId>) -> Result<Adopted, StoreError> {
        let homes = homes.iter().copied().map(number).collect();
        let taken = self.runtime.block_on(self.keeping.adopt(&homes, living))?;
        let instances = taken.iter().flat_map(|one| &one.instances);
        let instances = instances.map(|(_, bytes)| Instance::decode(bytes)).collect::<Result<_, _>>()?;
        Ok(Adopted {
            homes: taken.iter().filter_map(|one| usize::try_from(one.home).ok()).collect(),
            instances,
            epoch: taken.iter().map(|one| one.epoch).max().unwrap_or_default(),
        })
    }

    fn release(&mut self, homes: &BTreeSet<usize>) -> Result<(), StoreError> {
        let homes = homes.iter().copied().map(number).collect();
        self.runtime.block_on(self.keeping.release(&homes))
    }
}

fn home_number(name: &Name) -> u32 {
    number(home_of(name, HOMES))
}
