//! The types that the Raft engine works with.
//!
//! It decides what a log entry carries, how a member is described and what names a store. The engine never looks inside a command.
//! Read next: `store` for the log, `machine` for the state machine, `network` for the messages.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::table::{Command, Reply};

/// Number of a member in the catalog's engine. A number is never used for a second node, nor again after its store was lost.
pub type RaftNodeId = u64;

/// Names one store of one member, drawn at random when the store is made: a store that was lost and made anew has another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StoreId(pub u64);

impl StoreId {
    /// Stands for a store that nobody has asked yet.
    pub const UNKNOWN: Self = Self(0);
}

impl fmt::Display for StoreId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// A member of the catalog, as all members know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where its agent listens; the catalog does not look inside.
    pub addresses: Vec<String>,
    /// Its store. [`StoreId::UNKNOWN`] until it was reached for the first time; a voter's is always known.
    pub store: StoreId,
}

impl Member {
    /// A member that was not reached yet.
    pub fn new(addresses: Vec<String>) -> Self {
        Self { addresses, store: StoreId::UNKNOWN }
    }
}

openraft::declare_raft_types!(
    /// Our choice of the engine's types.
    pub(crate) Engine:
        D = Command,
        R = Reply,
        NodeId = RaftNodeId,
        Node = Member,
);

pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Engine>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<Engine>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Engine>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Engine>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Engine>;
pub(crate) type Raft = openraft::Raft<Engine, super::machine::Machine>;
