//! The catalog: a small replicated table that every full member holds, linearizable, with watches.
//!
//! This file decides the words of the catalog: what a row, a transaction, a watch and a refusal are, and which limits hold.
//! Two engines stand behind it: [`Embedded`], a Raft library on a durable log, and [`Etcd`], a database of somebody else's.
//! It must never interpret a value: what a row means is decided by the core.
//!
//! Read next: `table` (what one command does), `store` (what is durable when), `embedded` (how a node takes part), `etcd`.

mod client;
mod embedded;
mod engine;
mod etcd;
#[doc(hidden)]
pub mod fuzzing;
mod machine;
mod membership;
mod network;
mod rescue;
mod serve;
mod session;
mod store;
mod table;
mod watch;
mod wire;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use self::embedded::{Embedded, EmbeddedConfig, InitializeError, OpenError, Timings};
pub use self::engine::{Member, RaftNodeId, StoreId};
#[doc(hidden)]
pub use self::etcd::RawEtcd;
pub use self::etcd::{Etcd, EtcdConfig, EtcdOpenError, EtcdTls};
pub use self::membership::MembershipError;
pub use self::network::{Transport, TransportError};
pub use self::rescue::{Backup, BackupError, Recovered, RescueError, Survivor, restore};
pub use self::store::StoreError;
pub use self::watch::{WatchItem, WatchSource, WatchStream, Watched};
pub use self::wire::MESSAGE_BYTES_MAX;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most comparisons, and most changes, in one transaction.
pub const TXN_KEYS_MAX: usize = 256;
/// Most bytes of keys and values in one transaction.
pub const TXN_BYTES_MAX: usize = 4 << 20;
/// Most bytes of keys and values that the whole table may hold.
pub const TABLE_BYTES_MAX: u64 = 64 << 20;

/// A future on the heap, so that [`Catalog`] can be used as `Arc<dyn Catalog>`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A value and the revision of the last change of its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// The value; the catalog never looks inside.
    pub value: Bytes,
    /// Revision of the transaction that last changed this key; compare it in a [`Txn`].
    pub version: u64,
}

/// All rows under a prefix, and the revision of the table at which they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Revision of the table; give it to [`Catalog::watch`] to follow what comes after.
    pub revision: u64,
    /// Keys in byte order.
    pub rows: Vec<(String, Versioned)>,
}

/// Changes that happen together, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// Keys and the version that each must have; 0 means that the key must be absent.
    pub compare: Vec<(String, u64)>,
    /// Keys and their new values; `None` deletes.
    pub puts: Vec<(String, Option<Bytes>)>,
}

impl Txn {
    /// A transaction that writes `value` whatever was there.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { compare: Vec::new(), puts: vec![(key.into(), Some(value.into()))] }
    }

    /// A transaction that writes `value` only if the key still has `version` (0: is absent).
    pub fn compare_and_set(key: impl Into<String>, version: u64, value: impl Into<Bytes>) -> Self {
        let key = key.into();
        Self { compare: vec![(key.clone(), version)], puts: vec![(key, Some(value.into()))] }
    }

    /// A transaction that deletes a key whatever was there.
    pub fn delete(key: impl Into<String>) -> Self {
        Self { compare: Vec::new(), puts: vec![(key.into(), None)] }
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnReply {
    /// Whether all comparisons held and the changes were made.
    pub succeeded: bool,
    /// Revision of the table after the transaction: the version of every row it wrote.
    pub revision: u64,
    /// The comparisons that did not hold, with what is there instead.
    pub conflicts: Vec<(String, Option<Versioned>)>,
}

/// What a node does in the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads: all changes go through it.
    Leader,
    /// It votes and follows a leader.
    Follower,
    /// It votes and is trying to become the leader.
    Candidate,
    /// It holds a copy and has no vote.
    Learner,
    /// It asks a database that others keep.
    Client,
    /// Its store failed or it was shut down; it takes no part until it is opened again.
    Closed,
}

/// Who keeps the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// The nodes themselves.
    Embedded,
    /// An etcd beside them.
    Etcd,
}

impl EngineKind {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Etcd => "etcd",
        }
    }
}

/// What one node knows about the catalog, without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogStatus {
    /// Who keeps it.
    pub engine: EngineKind,
    /// This node.
    pub node: RaftNodeId,
    /// What it does.
    pub role: Role,
    /// The leader it follows, itself included.
    pub leader: Option<RaftNodeId>,
    /// The election it takes part in; grows with every election.
    pub term: u64,
    /// Index of the last log entry that is applied to its table.
    pub applied: u64,
    /// Index of the last log entry in its log.
    pub last_log: u64,
    /// Revision of its table.
    pub revision: u64,
    /// The members that vote.
    pub voters: BTreeMap<RaftNodeId, Member>,
    /// The members that only hold a copy.
    pub learners: BTreeMap<RaftNodeId, Member>,
    /// On a leader whether a majority answered within the last election time-out; elsewhere whether a leader is known; with etcd whether
    /// it answered when it was asked last. A hint, not a proof.
    pub has_quorum: bool,
    /// Why the node is closed, in one sentence.
    pub failure: Option<String>,
    /// Why etcd does not answer, while it does not.
    pub unreachable: Option<String>,
}

/// Why the catalog did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CatalogError {
    /// The request breaks a limit. Nothing changed; correct the request.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// No majority of the voters could be reached in time. Nothing changed; it may be asked again.
    #[error(
        "the catalog has no majority: node {node} found no leader that a majority of the {voters} voters confirms within {waited_ms} ms"
    )]
    NoMajority {
        /// The node that was asked.
        node: RaftNodeId,
        /// How many voters there are.
        voters: usize,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
    /// The change was handed to a leader and no reply came: it may have happened. Read back before doing it again.
    #[error(
        "the outcome of the change is unknown: no reply came to node {node} within {waited_ms} ms although a leader may have accepted it; read the rows back"
    )]
    Unknown {
        /// The node that was asked.
        node: RaftNodeId,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
    /// The table would grow past its limit. Nothing changed; delete rows first.
    #[error(
        "the catalog is full: the change needs {needed} bytes of the {max} that all rows together may use"
    )]
    Full {
        /// Bytes that all rows would use with the change.
        needed: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// Too many changes of this node wait for a reply. Nothing changed; try again later.
    #[error(
        "the catalog is overloaded: {pending} changes or {bytes} bytes already wait to be applied on this node"
    )]
    Overloaded {
        /// How many entries wait.
        pending: u64,
        /// How many bytes wait.
        bytes: u64,
    },
    /// This node has not been initialized or added to a catalog yet. Nothing changed.
    #[error("node {node} is not a member of a catalog yet: initialize it or add it from a member")]
    NotMember {
        /// The node that was asked.
        node: RaftNodeId,
    },
    /// This node was shut down, or its store failed and stays closed until it is opened again.
    #[error("the catalog on node {node} is closed: {reason}")]
    Closed {
        /// The node that was asked.
        node: RaftNodeId,
        /// What closed it.
        reason: String,
    },
    /// etcd did not answer in time, or has no leader. Nothing changed; it may be asked again.
    #[error("etcd did not answer node {node} within {waited_ms} ms: {reason}")]
    Unreachable {
        /// The node that asked.
        node: RaftNodeId,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
        /// What happened at last.
        reason: String,
    },
    /// etcd does not do what it was asked for: by a limit of its own, or because this node may not. Nothing changed.
    #[error(
        "etcd refused the request ({reason}); the limits and rights that it must give are in docs/operations/catalog.md"
    )]
    Refused {
        /// What it said.
        reason: String,
    },
}

/// Which limit a request breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum InvalidRequest {
    /// A key is empty.
    #[error("a catalog key is empty; it must have 1 to {KEY_BYTES_MAX} bytes")]
    KeyEmpty,
    /// A key is too long.
    #[error(
        "the catalog key that begins with {begin:?} has {length} bytes; at most {KEY_BYTES_MAX} are allowed"
    )]
    KeyTooLong {
        /// Its first characters.
        begin: String,
        /// Its length in bytes.
        length: usize,
    },
    /// A value is too large.
    #[error("the value of catalog key {key:?} has {length} bytes; at most {VALUE_BYTES_MAX} are allowed")]
    ValueTooLarge {
        /// The key.
        key: String,
        /// Length of the value in bytes.
        length: usize,
    },
    /// A key is changed twice, or compared twice, in one transaction.
    #[error("the catalog key {key:?} is named twice in one transaction; name it once")]
    KeyTwice {
        /// The key.
        key: String,
    },
    /// A transaction has too many keys.
    #[error("the transaction names {count} keys; at most {TXN_KEYS_MAX} are allowed")]
    TooManyKeys {
        /// How many it names.
        count: usize,
    },
    /// A transaction is too large.
    #[error("the transaction has {length} bytes; at most {TXN_BYTES_MAX} are allowed")]
    TooLarge {
        /// Bytes of its keys and values.
        length: usize,
    },
}

/// A small table store, the same on every node.
///
/// `get`, `range` and `txn` are linearizable from any member: they need a majority of the voters. `get_stale` and `range_stale`
/// answer from this node alone and may be old. Revisions grow with every transaction that changed something.
///
/// ```no_run
/// # async fn example(catalog: std::sync::Arc<dyn steadfast::catalog::Catalog>) -> Result<(), steadfast::catalog::CatalogError> {
/// use steadfast::catalog::Txn;
/// let reply = catalog.txn(Txn::compare_and_set("container/web", 0, "owner: a")).await?;
/// assert!(reply.succeeded);
/// let mut watch = catalog.watch("container/".into(), reply.revision);
/// let next = watch.next().await?;
/// # drop(next); Ok(()) }
/// ```
pub trait Catalog: Send + Sync + 'static {
    /// The row of `key` as of now, or `None` if there is none.
    fn get(&self, key: String) -> BoxFuture<'_, Result<Option<Versioned>, CatalogError>>;
    /// All rows whose key begins with `prefix` as of now (all rows if it is empty).
    fn range(&self, prefix: String) -> BoxFuture<'_, Result<Rows, CatalogError>>;
    /// The row of `key` on this node, and the revision of its table; it may be old.
    fn get_stale(&self, key: &str) -> (u64, Option<Versioned>);
    /// All rows under `prefix` on this node; they may be old.
    fn range_stale(&self, prefix: &str) -> Rows;
    /// Makes all changes if all comparisons hold, else none. It is applied at most once, whatever is lost on the way.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, CatalogError>>;
    /// Every change under `prefix` with a revision greater than `from`, in order and without a gap.
    fn watch(&self, prefix: String, from: u64) -> WatchStream;
    /// The leader that this node follows.
    fn leader(&self) -> Option<RaftNodeId>;
    /// What this node knows.
    fn status(&self) -> CatalogStatus;
}

/// Checks a transaction against the limits before it is sent, and again before it is applied.
pub(crate) fn check_txn(txn: &Txn) -> Result<(), InvalidRequest> {
    let count = txn.compare.len().max(txn.puts.len());
    if count > TXN_KEYS_MAX {
        return Err(InvalidRequest::TooManyKeys { count });
    }
    let mut length = 0;
    let mut seen = std::collections::BTreeSet::new();
    for (key, _) in &txn.compare {
        check_key(key)?;
        length += key.len();
        if !seen.insert(key.as_str()) {
            return Err(InvalidRequest::KeyTwice { key: key.clone() });
        }
    }
    seen.clear();
    for (key, value) in &txn.puts {
        check_key(key)?;
        let value_length = value.as_ref().map_or(0, Bytes::len);
        if value_length > VALUE_BYTES_MAX {
            return Err(InvalidRequest::ValueTooLarge { key: key.clone(), length: value_length });
        }
        length += key.len() + value_length;
        if !seen.insert(key.as_str()) {
            return Err(InvalidRequest::KeyTwice { key: key.clone() });
        }
    }
    if length > TXN_BYTES_MAX {
        return Err(InvalidRequest::TooLarge { length });
    }
    Ok(())
}

/// Checks the length of a key.
pub(crate) fn check_key(key: &str) -> Result<(), InvalidRequest> {
    if key.is_empty() {
        return Err(InvalidRequest::KeyEmpty);
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(InvalidRequest::KeyTooLong { begin: key.chars().take(32).collect(), length: key.len() });
    }
    Ok(())
}
