//! Where the instances of a keeper outlast it.
//!
//! A keeper gives a store every record of its machine, in order, and lets nothing out that rests on a record before the store
//! has committed it. A store that keeps what happened writes the records; one that keeps what is asks the machine for the
//! instances that the records changed: at a commit both are the same. It decides nothing about episodes. Read next:
//! [`super::embedded`], the one on a node's own disk, [`super::mirrored`], that of two nodes, `super::shared`, the one of all nodes, and [`super::in_catalog`], that of the
//! cluster itself.

use std::collections::BTreeSet;
use std::fmt;

use steadfast_proto::episode::{DecodeError, Episodes, Instance, Record};
use steadfast_proto::ids::NodeId;

use super::{IndexError, LogError, MirrorError, OpenError};

/// How many homes a store has whose homes come and go.
pub const HOMES: usize = 64;

/// Why a store can't be opened, or must not be used any more. Nothing that it has committed is lost.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder can't be used.
    #[error("the folder of episodes can not be opened: {0}")]
    Folder(#[from] std::io::Error),
    /// The log can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The index can't be used.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A record, or an instance, can't be read: another program wrote it.
    #[error("the store of episodes holds something that this version can not read: {0}")]
    Decode(#[from] DecodeError),
    /// A row of the catalog can't be read.
    #[error(transparent)]
    Row(#[from] steadfast_proto::catalog::RowError),
    /// The catalog does not answer.
    #[error(transparent)]
    Catalog(#[from] crate::catalog::CatalogError),
    /// Another node has taken these instances over; what was not committed did not happen.
    #[error("another node keeps these instances now")]
    Fenced,
    /// The other copy of mirrored instances can't be kept.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The store that nodes share can't be used.
    #[cfg(feature = "postgresql")]
    #[error(transparent)]
    Shared(#[from] super::SharedError),
}

/// Homes of a shared store that this node alone may write from now on, with all that is in them.
#[derive(Debug, Default)]
pub struct Adopted {
    /// Their numbers.
    pub homes: BTreeSet<usize>,
    /// All instances of them.
    pub instances: Vec<Instance>,
    /// The highest epoch that an instance of them ever had.
    pub epoch: u64,
}

/// Where the instances of one keeper outlast it. A call that fails is the last one.
pub trait Store: Send + fmt::Debug {
    /// Gives the machine all that is durable; called once, before everything else.
    ///
    /// # Errors
    /// It can't be read.
    fn load(&mut self, episodes: &mut Episodes) -> Result<(), StoreError>;

    /// Takes a record, which is durable with the next commit or lost with all that follow it.
    ///
    /// # Errors
    /// It can't be written.
    fn append(&mut self, record: &Record) -> Result<(), StoreError>;

    /// Makes everything durable that was appended, at once. The machine has carried out exactly those records. In a shared
    /// store it also is what says that this node still keeps its homes, even when nothing was appended.
    ///
    /// # Errors
    /// It is not known to be durable; nothing may rest on it.
    fn commit(&mut self, episodes: &Episodes) -> Result<(), StoreError>;

    /// Nothing has happened for a while, and everything is committed.
    ///
    /// # Errors
    /// As [`Store::commit`].
    fn rest(&mut self) -> Result<(), StoreError>;

    /// Nothing follows.
    ///
    /// # Errors
    /// As [`Store::commit`].
    fn end(&mut self, episodes: &Episodes) -> Result<(), StoreError>;

    /// Whether nodes share it, so that homes come and go; then nothing is loaded before it is adopted.
    fn is_shared(&self) -> bool {
        false
    }

    /// Whether this node still keeps all homes of a shared store that it has adopted; nothing is written.
    ///
    /// # Errors
    /// As [`Store::commit`].
    fn check(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Takes those of `homes` that no other of `living` holds, and fences off whoever held them.
    ///
    /// # Errors
    /// As [`Store::commit`].
    fn adopt(&mut self, homes: &BTreeSet<usize>, living: &BTreeSet<NodeId>) -> Result<Adopted, StoreError> {
        let _ = (homes, living);
        Ok(Adopted::default())
    }

    /// Gives homes back of which everything is committed, so that others need not wait for them.
    ///
    /// # Errors
    /// As [`Store::commit`].
    fn release(&mut self, homes: &BTreeSet<usize>) -> Result<(), StoreError> {
        let _ = homes;
        Ok(())
    }
}
