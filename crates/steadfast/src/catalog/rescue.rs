//! Backups of the catalog, and two ways back: into a new cluster, and from one survivor of a lost majority.
//!
//! A backup is the table at one revision, linearizable when it is taken, behind a checksum. Both ways back make a cluster of one voter, in one
//! step that a crash does or does not do. Neither ever changes a store that is open, nor destroys one: it is kept under another name. A
//! recovered catalog has a new *lineage*, so that voters that were believed lost can't speak to it as if nothing had happened.
//! Read next: `store::plant`; `serve` for how a lineage is checked.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::embedded::Embedded;
use super::engine::{RaftNodeId, StoreId};
use super::session::Sessions;
use super::store::{self, Contents, Owner, Plant, StoreError};
use super::table::Table;
use super::watch::Feed;
use super::{CatalogError, Rows, TABLE_BYTES_MAX, VALUE_BYTES_MAX, Versioned, check_key};
use crate::envelope::write_atomic;

/// Largest file that is read as a backup, in bytes.
const BACKUP_BYTES_MAX: u64 = 2 * TABLE_BYTES_MAX;
const MAGIC: &[u8; 8] = b"SFCATBAK";
/// Version of the form; another one is refused.
const VERSION: u16 = 1;
const SUM_BYTES: usize = 32;

/// The catalog at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    cluster: u128,
    node: RaftNodeId,
    taken_unix_ms: u64,
    revision: u64,
    rows: BTreeMap<String, Versioned>,
}

/// Why a backup was not written or read. A file that can't be used is never used in part.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The operating system refused.
    #[error("{}: {doing} failed: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the operating system said.
        reason: String,
    },
    /// The file is no backup, or is damaged.
    #[error("{}: this can't be used as a backup of a catalog: {what}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// Why a catalog was not restored or recovered. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// There is a catalog already.
    #[error(
        "{}: there is a catalog already; a backup is restored only into a new cluster, before its first start",
        dir.display()
    )]
    Exists {
        /// The catalog's directory.
        dir: PathBuf,
    },
    /// There is no catalog to recover.
    #[error("{}: there is no catalog here to recover", dir.display())]
    Absent {
        /// The catalog's directory.
        dir: PathBuf,
    },
    /// This node was no voter, so it may lack anything.
    #[error(
        "member {node} was no voter when it stopped, so it may lack what others acknowledged; recover from a voter"
    )]
    NoVoter {
        /// This node.
        node: RaftNodeId,
    },
    /// The number of lost voters that was given is not that of the other voters.
    #[error(
        "the catalog has {others} other voters, and {given} were declared lost; recovery is for when all others are gone for good, and wrong in any other case"
    )]
    Others {
        /// How many other voters there are.
        others: usize,
        /// How many were declared lost.
        given: usize,
    },
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a recovery made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Revision of the table from now on.
    pub revision: u64,
    /// How many rows it has.
    pub rows: usize,
    /// The voters that don't belong to it any more.
    pub lost: Vec<RaftNodeId>,
    /// Entries at the end of the log that this node did not know to be committed; they are kept.
    pub uncertain: u64,
    /// Where the store is kept as it was.
    pub kept: Option<PathBuf>,
}

impl Backup {
    /// These rows of a cluster, as `node` read them.
    #[must_use]
    pub fn of(cluster: u128, node: RaftNodeId, taken_unix_ms: u64, rows: Rows) -> Self {
        Self { cluster, node, taken_unix_ms, revision: rows.revision, rows: rows.rows.into_iter().collect() }
    }

    /// The cluster whose catalog it is.
    #[must_use]
    pub fn cluster(&self) -> u128 {
        self.cluster
    }

    /// When it was taken, in milliseconds since 1970.
    #[must_use]
    pub fn taken_unix_ms(&self) -> u64 {
        self.taken_unix_ms
    }

    /// The revision at which it was taken.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Its rows in the order of their keys.
    #[must_use]
    pub fn rows(&self) -> &BTreeMap<String, Versioned> {
        &self.rows
    }

    /// Gives each row the value that `rewritten` says, and leaves out those without one: what names machines that are gone.
    ///
    /// # Errors
    /// The first error of `rewritten`; the backup is then as it was.
    pub fn rewrite<E>(
        &mut self,
        mut rewritten: impl FnMut(&str, &Versioned) -> Result<Option<Bytes>, E>,
    ) -> Result<(), E> {
        let mut rows = BTreeMap::new();
        for (key, row) in &self.rows {
            if let Some(value) = rewritten(key, row)? {
                rows.insert(key.clone(), Versioned { value, version: row.version });
            }
        }
        self.rows = rows;
        Ok(())
    }

    /// The backup as bytes, with mark, version and checksum.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(
            &postcard::to_allocvec(self).expect("a backup has a length before it is written"),
        );
        let sum = blake3::hash(&bytes);
        bytes.extend_from_slice(sum.as_bytes());
        bytes
    }

    /// Reads what [`Backup::encode`] wrote; an error says in one clause what is wrong.
    ///
    /// # Errors
    /// The bytes are damaged, of another kind or version, or break a limit of the catalog.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return Err("it does not begin with the mark of one".to_owned());
        };
        let Some((version, _)) = rest.split_first_chunk::<2>() else {
            return Err("it is cut short".to_owned());
        };
        let version = u16::from_le_bytes(*version);
        if version != VERSION {
            return Err(format!("it has version {version}, and this program reads version {VERSION}"));
        }
        let Some((body, sum)) = bytes.split_last_chunk::<SUM_BYTES>() else {
            return Err("it is cut short".to_owned());
        };
        if blake3::hash(body).as_bytes() != sum {
            return Err("its checksum does not match, so it is cut short or damaged".to_owned());
        }
        let Some(body) = body.get(MAGIC.len() + 2..) else { return Err("it is cut short".to_owned()) };
        let backup: Self = postcard::from_bytes(body)
            .map_err(|error| format!("its content is not what this program writes: {error}"))?;
        backup.check()?;
        Ok(backup)
    }

    fn check(&self) -> Result<(), String> {
        let mut bytes = 0;
        for (key, row) in &self.rows {
            check_key(key).map_err(|error| error.to_string())?;
            if row.value.len() > VALUE_BYTES_MAX || row.version > self.revision || row.version == 0 {
                return Err(format!("its row {key:?} is not one that a catalog can have"));
            }
            bytes += (key.len() + row.value.len()) as u64;
        }
        if bytes > TABLE_BYTES_MAX {
            return Err(format!("its rows have {bytes} bytes, and a catalog holds {TABLE_BYTES_MAX}"));
        }
        Ok(())
    }

    /// Writes it to a file of its owner alone, whole or not at all.
    ///
    /// # Errors
    /// The operating system's refusal; a file that was there is untouched.
    pub fn write(&self, path: &Path) -> Result<(), BackupError> {
        write_atomic(path, 0o600, &self.encode()).map_err(io_error(path, "writing"))
    }

    /// Reads and verifies a file.
    ///
    /// # Errors
    /// It can't be read, or is no whole backup.
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let file = std::fs::File::open(path).map_err(io_error(path, "opening"))?;
        let mut bytes = Vec::new();
        file.take(BACKUP_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io_error(path, "reading"))?;
        let unusable = |what| BackupError::Unusable { path: path.to_owned(), what };
        if bytes.len() as u64 > BACKUP_BYTES_MAX {
            return Err(unusable(format!("it has more than {BACKUP_BYTES_MAX} bytes")));
        }
        Self::decode(&bytes).map_err(unusable)
    }
}

impl Embedded {
    /// The catalog as of now, for a file; `taken_unix_ms` is kept for people.
    ///
    /// # Errors
    /// As for a read: no majority, or this node is closed.
    pub async fn backup(&self, taken_unix_ms: u64) -> Result<Backup, CatalogError> {
        self.inner.read_barrier().await?;
        let rows = self.inner.shared.rows_under("");
        Ok(Backup::of(self.inner.peers.cluster_id(), self.inner.node, taken_unix_ms, rows))
    }
}

/// Makes the catalog of a new cluster, with `node` as its only voter, from a backup. The cluster may have the id of the one that was backed up,
/// if all its catalogs are gone.
///
/// # Errors
/// There is a catalog in `dir`, or it can't be written; nothing was changed.
pub fn restore(
    dir: &Path,
    cluster: u128,
    node: RaftNodeId,
    addresses: Vec<String>,
    backup: &Backup,
) -> Result<(), RescueError> {
    if store::exists(dir) {
        return Err(RescueError::Exists { dir: dir.to_owned() });
    }
    // Changes that were under way in another cluster are no business of this one.
    let table = Table::restore(backup.rows.clone(), backup.revision, Sessions::default());
    // The same cluster once more: members that still have their old catalog must not take part in the new one.
    let lineage = if backup.cluster == cluster { super::embedded::random().into() } else { 0 };
    let plant = Plant { table, term: 0, index: 0, lineage, addresses };
    store::plant(dir, Owner { cluster, node }, StoreId(super::embedded::random()), plant)?;
    Ok(())
}

/// The store of the one voter that is left. Nothing is changed before [`recover`](Self::recover), and that happens in one step.
#[derive(Debug)]
pub struct Survivor {
    dir: PathBuf,
    owner: Owner,
    contents: Contents,
    others: Vec<RaftNodeId>,
    changes: BTreeMap<String, Bytes>,
}

impl Survivor {
    /// Reads the store of a voter that does not run and whose other voters, `lost` in number, are gone for good.
    ///
    /// # Errors
    /// The store can't be used, this member did not vote, or `lost` is not the number of its other voters.
    pub fn open(dir: &Path, cluster: u128, node: RaftNodeId, lost: usize) -> Result<Self, RescueError> {
        if !store::exists(dir) {
            return Err(RescueError::Absent { dir: dir.to_owned() });
        }
        let owner = Owner { cluster, node };
        let contents = store::contents(dir, owner)?;
        let voters: Vec<RaftNodeId> = contents.members.voter_ids().collect();
        if !voters.contains(&node) {
            return Err(RescueError::NoVoter { node });
        }
        let others: Vec<RaftNodeId> = voters.into_iter().filter(|voter| *voter != node).collect();
        if others.len() != lost {
            return Err(RescueError::Others { others: others.len(), given: lost });
        }
        Ok(Self { dir: dir.to_owned(), owner, contents, others, changes: BTreeMap::new() })
    }

    /// The row of a key, as this voter knew it.
    #[must_use]
    pub fn row(&self, key: &str) -> Option<&Versioned> {
        self.contents.table.row(key)
    }

    /// Sets a row in the recovered catalog: what must be true there from its first moment.
    pub fn put(&mut self, key: impl Into<String>, value: impl Into<Bytes>) {
        self.changes.insert(key.into(), value.into());
    }

    /// Makes this voter the only one. What others acknowledged and it never received is lost. Voters that come back are refused: empty their
    /// catalog first.
    ///
    /// # Errors
    /// The store can't be written; the catalog is then as it was.
    pub fn recover(self, addresses: Vec<String>) -> Result<Recovered, RescueError> {
        let Contents { table, term, index, uncertain, .. } = self.contents;
        let version = table.revision() + 1;
        let mut rows = table.rows().clone();
        rows.extend(self.changes.into_iter().map(|(key, value)| (key, Versioned { value, version })));
        let table = Table::restore(rows, version, table.sessions().clone());
        let rows = table.rows().len();
        let plant = Plant { table, term, index, lineage: super::embedded::random().into(), addresses };
        let kept = store::plant(&self.dir, self.owner, StoreId(super::embedded::random()), plant)?;
        // Read back before anybody relies on it.
        let planted = store::contents(&self.dir, self.owner)?;
        Ok(Recovered { revision: planted.table.revision(), rows, lost: self.others, uncertain, kept })
    }
}

fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> BackupError {
    move |error| BackupError::Io { path: path.to_owned(), doing, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backup() -> Backup {
        let row = |version| Versioned { value: "v".into(), version };
        let rows = BTreeMap::from([("a".to_owned(), row(3)), ("b/1".to_owned(), row(7))]);
        Backup { cluster: 5, node: 1, taken_unix_ms: 9, revision: 7, rows }
    }

    #[test]
    fn every_damaged_byte_and_every_cut_is_refused_with_a_reason() {
        let bytes = backup().encode();
        assert_eq!(Backup::decode(&bytes).unwrap(), backup());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x41;
            assert!(Backup::decode(&damaged).is_err(), "byte {at}");
            assert!(Backup::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        let mut later = bytes.clone();
        later[MAGIC.len()] = 9;
        assert!(Backup::decode(&later).unwrap_err().contains("version 9"));
    }

    #[test]
    fn rows_that_no_catalog_can_have_are_refused() {
        let mut wrong = backup();
        wrong.rows.insert("x".into(), Versioned { value: "v".into(), version: 8 });
        assert!(Backup::decode(&wrong.encode()).unwrap_err().contains("\"x\""));
        let mut wrong = backup();
        wrong.rows.insert(String::new(), Versioned { value: "v".into(), version: 1 });
        assert!(Backup::decode(&wrong.encode()).unwrap_err().contains("empty"));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Backup::decode(&bytes);
            let marked: Vec<u8> = MAGIC.iter().chain(&VERSION.to_le_bytes()).copied().chain(bytes).collect();
            let sum = blake3::hash(&marked);
            let sealed: Vec<u8> = marked.into_iter().chain(*sum.as_bytes()).collect();
            let _ = Backup::decode(&sealed);
        }
    }
}
