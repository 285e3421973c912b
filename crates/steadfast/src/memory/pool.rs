//! The memory this node lends: chunks and manifests as files on a tmpfs, within a budget.
//!
//! It decides what fits, what is whole, and what may go. A grant that was not sealed ends with its lease;
//! what was sealed goes only when the catalog's committed rows show that nothing needs it (D4), never
//! with time. Which chunks are needed is read from the manifests that are held, not from counters. A
//! killed agent loses nothing: the next one checks every chunk and offers what is whole. It never sees a
//! key, so it checks cipher text by CRC-32C, which stands in the file's name. Read next: `service`.
//!
//! Files: `chunks/AB/<digest>.<crc>`, `manifests/<digest>.<revision>`, and `spare/<n>`: files that wait
//! to be overwritten, because pages that were used before cost a fifth of fresh ones.

mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steadfast_proto::ids::{ContainerId, Digest, Epoch, NodeId};
use steadfast_proto::time::Time;

use super::key::TAG_BYTES;
use super::manifest::{CHUNK_BYTES, MANIFEST_BYTES_MAX, Manifest, ManifestError};
use crate::identity::random;
use crate::net::datagram::now;

pub use load::{Damage, OpenError};

/// How long an unsealed grant lives after its last use.
pub const GRANT_LEASE: Duration = Duration::from_secs(60);
/// Most grants at a time.
const GRANTS_MAX: usize = 256;
/// Bytes of a full chunk as it is stored.
pub(super) const STORED_BYTES_MAX: usize = CHUNK_BYTES + TAG_BYTES;
/// Missing chunks that one refusal names at most.
const MISSING_MAX: usize = 4096;

/// Most chunks that a grant names as held: what fits one answer.
const HELD_MAX: usize = 1 << 18;
const PAGE_BYTES: u64 = 4096;

/// Which checkpoint: the epoch makes a deposed owner's distinguishable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CheckpointId {
    /// Whose.
    pub container: ContainerId,
    /// The run epoch in which it was taken.
    pub epoch: Epoch,
    /// Its number, counted by the owner.
    pub number: u64,
}

/// Names a grant; known to its owner only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Token(pub u64);

/// A grant and what of the container is here already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// To be shown with every put.
    pub token: Token,
    /// Chunks of the container's earlier checkpoints: they need not be sent and stay while the grant does.
    pub held: Vec<Digest>,
}

/// Why nothing was granted. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum GrantRefused {
    /// The budget does not allow it.
    #[error("{need} bytes are needed, {free} of the lent memory are free")]
    NotEnough {
        /// Bytes asked for.
        need: u64,
        /// Bytes that could be granted.
        free: u64,
    },
    /// A checkpoint of a higher epoch is held: the asker was deposed (D7).
    #[error("a checkpoint of epoch {newest} is held, {asked} is an earlier one")]
    StaleEpoch {
        /// The epoch asked for.
        asked: u64,
        /// The newest epoch held.
        newest: u64,
    },
    /// Too many grants are open.
    #[error("{GRANTS_MAX} checkpoints are being stored here already")]
    TooMany,
}

/// Why a chunk was not stored. Nothing changed unless the operating system failed half way, which is
/// undone.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The grant ended, was released, or is another node's.
    #[error("the grant is not known here: it ended or is another node's")]
    UnknownGrant,
    /// The grant is used up.
    #[error("the grant of {granted} bytes does not hold {asked} more")]
    OverGrant {
        /// Bytes granted.
        granted: u64,
        /// Bytes of the chunk.
        asked: u64,
    },
    /// The bytes are not what was sent.
    #[error("chunk {digest} arrived damaged")]
    Corrupt {
        /// The chunk.
        digest: Digest,
    },
    /// It is no chunk.
    #[error("a chunk has {TAG_BYTES} to {STORED_BYTES_MAX} bytes, not {found}")]
    Length {
        /// Bytes given.
        found: usize,
    },
    /// The operating system refused, for example because the tmpfs is full.
    #[error("chunk {digest} could not be stored: {source}")]
    Io {
        /// The chunk.
        digest: Digest,
        /// The operating system's answer.
        source: io::Error,
    },
}

/// Why a checkpoint was not sealed. The grant stays.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The grant ended, was released, or is another node's.
    #[error("the grant is not known here: it ended or is another node's")]
    UnknownGrant,
    /// Chunks are not there.
    #[error("{} chunks of the checkpoint are missing", digests.len())]
    Missing {
        /// Which, at most 4096 of them.
        digests: Vec<Digest>,
    },
    /// The manifest is not one, or of another checkpoint than the grant.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest names another checkpoint than the grant.
    #[error("the manifest is of {found:?}, the grant is for {expected:?}")]
    OtherCheckpoint {
        /// The manifest's.
        found: CheckpointId,
        /// The grant's.
        expected: CheckpointId,
    },
    /// The grant is used up.
    #[error("the grant of {granted} bytes does not hold the manifest of {asked} bytes too")]
    OverGrant {
        /// Bytes granted.
        granted: u64,
        /// Bytes of the manifest.
        asked: u64,
    },
    /// The operating system refused.
    #[error("the manifest could not be stored: {0}")]
    Io(#[source] io::Error),
}

/// What the catalog's committed row of one container needs kept.
#[derive(Clone, Debug)]
pub struct Live {
    /// The container.
    pub container: ContainerId,
    /// Epoch of its newest committed checkpoint.
    pub epoch: Epoch,
    /// Number of its newest committed checkpoint.
    pub number: u64,
    /// The manifests to keep: the newest and its parents.
    pub manifests: Vec<Digest>,
}

/// What a `retain` freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Manifests.
    pub manifests: usize,
    /// Bytes of chunks and manifests.
    pub bytes: u64,
}

/// How much is lent and used, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Lent in all.
    pub budget: u64,
    /// Held by chunks and manifests.
    pub used: u64,
    /// Promised to open grants and not used yet.
    pub reserved: u64,
    /// What could be granted now.
    pub free: u64,
    /// Chunks held.
    pub chunks: u64,
}

/// A complete, checked checkpoint that is held here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedCheckpoint {
    /// The name of its manifest.
    pub manifest: Digest,
    /// Which checkpoint.
    pub id: CheckpointId,
    /// Bytes of its files.
    pub bytes: u64,
}

/// The checkpoint memory of this node. Cheap to clone; its calls do file operations, so an asynchronous
/// caller moves them to a blocking thread.
#[derive(Clone, Debug)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    budget: u64,
    state: Mutex<State>,
    damage: Vec<Damage>,
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    chunks: BTreeMap<Digest, Chunk>,
    manifests: BTreeMap<Digest, Held>,
    grants: BTreeMap<Token, Grant>,
    /// Numbers of the files that wait to be overwritten.
    spares: Vec<u64>,
    next_spare: u64,
    used: u64,
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    length: usize,
    crc: u32,
}

#[derive(Debug)]
struct Held {
    id: CheckpointId,
    revision: u64,
    chunks: BTreeSet<Digest>,
    bytes: u64,
    cost: u64,
}

#[derive(Debug)]
struct Grant {
    owner: NodeId,
    id: CheckpointId,
    granted: u64,
    spent: u64,
    pinned: BTreeSet<Digest>,
    ends: Time,
}

impl Pool {
    /// Opens the pool in `directory`, which must be on a tmpfs, and checks everything that lies there.
    ///
    /// Takes as long as reading all of it; damaged chunks are deleted and named by [`Pool::damage`].
    ///
    /// # Errors
    /// The folder is not on a tmpfs, is in use by another agent, or can't be read.
    pub fn open(directory: &Path, budget: u64) -> Result<Self, OpenError> {
        let loaded = load::load(directory)?;
        let inner = Inner {
            directory: directory.to_path_buf(),
            budget,
            state: Mutex::new(loaded.state),
            damage: loaded.damage,
            _lock: loaded.lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What was found damaged when the pool was opened.
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        &self.inner.damage
    }

    /// Promises `bytes` for a checkpoint, all or nothing, until the lease ends.
    ///
    /// # Errors
    /// Says how much is free, or that the asker was deposed.
    pub fn reserve(&self, owner: NodeId, id: CheckpointId, bytes: u64) -> Result<Granted, GrantRefused> {
        self.expire(now());
        let mut state = self.inner.lock();
        let ours = state.manifests.values().filter(|held| held.id.container == id.container);
        let newest = ours.map(|held| held.id.epoch).max();
        if let Some(newest) = newest.filter(|newest| *newest > id.epoch) {
            return Err(GrantRefused::StaleEpoch { asked: id.epoch.0, newest: newest.0 });
        }
        let earlier = state.grants.iter().find(|(_, one)| one.owner == owner && one.id == id);
        if let Some(earlier) = earlier.map(|(token, _)| *token) {
            // The answer to the first question was lost: its grant would only stand in the way.
            self.inner.end_grant(&mut state, owner, earlier);
        }
        if state.grants.len() >= GRANTS_MAX {
            return Err(GrantRefused::TooMany);
        }
        let free = self.inner.budget.saturating_sub(state.used + state.reserved());
        if bytes > free {
            return Err(GrantRefused::NotEnough { need: bytes, free });
        }
        let ours = state.manifests.values().filter(|held| held.id.container == id.container);
        let held: BTreeSet<Digest> = ours
            .flat_map(|held| held.chunks.iter().copied())
            .filter(|digest| state.chunks.contains_key(digest))
            .take(HELD_MAX)
            .collect();
        let token = Token(u64::from_le_bytes(random()));
        let pinned = held.clone();
        let ends = now() + GRANT_LEASE;
        state.grants.insert(token, Grant { owner, id, granted: bytes, spent: 0, pinned, ends });
        Ok(Granted { token, held: held.into_iter().collect() })
    }

    /// Makes the lease of a grant begin anew.
    ///
    /// # Errors
    /// The grant is not known.
    pub fn renew(&self, owner: NodeId, token: Token) -> Result<(), PutError> {
        self.inner.lock().grant(owner, token).map(|_| ())
    }

    /// Which of `digests` are held; those stay while the grant does.
    ///
    /// # Errors
    /// The grant is not known.
    pub fn has(&self, owner: NodeId, token: Token, digests: &[Digest]) -> Result<Vec<bool>, PutError> {
        let mut state = self.inner.lock();
        let here: Vec<bool> = digests.iter().map(|digest| state.chunks.contains_key(digest)).collect();
        let grant = state.grant(owner, token)?;
        let held = digests.iter().zip(&here).filter(|(_, here)| **here);
        grant.pinned.extend(held.map(|(digest, _)| *digest));
        Ok(here)
    }

    /// Stores one chunk under a grant; the same chunk may come any number of times.
    ///
    /// # Errors
    /// Says why it was not stored.
    pub fn put(
        &self,
        owner: NodeId,
        token: Token,
        digest: Digest,
        crc: u32,
        bytes: &[u8],
    ) -> Result<(), PutError> {
        if bytes.len() <= TAG_BYTES || bytes.len() > STORED_BYTES_MAX {
            return Err(PutError::Length { found: bytes.len() });
        }
        if crc32c::crc32c(bytes) != crc {
            return Err(PutError::Corrupt { digest });
        }
        let cost = cost_of(bytes.len());
        let spare = {
            let mut state = self.inner.lock();
            let here = state.chunks.contains_key(&digest);
            let grant = state.grant(owner, token)?;
            if here {
                grant.pinned.insert(digest);
                return Ok(());
            }
            if grant.spent + cost > grant.granted {
                return Err(PutError::OverGrant { granted: grant.granted, asked: cost });
            }
            grant.spent += cost;
            self.inner.take_spare(&mut state, bytes.len(), cost)
        };
        let chunk = Chunk { length: bytes.len(), crc };
        let path = self.inner.chunk_path(digest, crc);
        let written = self.inner.write(spare, bytes).and_then(|from| std::fs::rename(from, &path));
        let mut state = self.inner.lock();
        if let Err(source) = written {
            if let Ok(grant) = state.grant(owner, token) {
                grant.spent = grant.spent.saturating_sub(cost);
            }
            return Err(PutError::Io { digest, source });
        }
        let is_new = state.chunks.insert(digest, chunk).is_none();
        state.used += if is_new { cost } else { 0 };
        match state.grant(owner, token) {
            Ok(grant) => {
                grant.pinned.insert(digest);
                // Two puts of one chunk crossed: it counts once.
                grant.spent = grant.spent.saturating_sub(if is_new { 0 } else { cost });
                Ok(())
            }
            Err(error) => {
                self.inner.sweep(&mut state, [digest]);
                Err(error)
            }
        }
    }

    /// Ends a grant by keeping its checkpoint: from here on only [`Pool::retain`] frees it.
    ///
    /// `revision` is a revision of the catalog at which the container's row existed. Sealing the same
    /// manifest again succeeds, so a lost answer may be asked for again.
    ///
    /// # Errors
    /// Says what is missing; the grant stays.
    pub fn seal(
        &self,
        owner: NodeId,
        token: Token,
        revision: u64,
        bytes: &[u8],
    ) -> Result<Digest, SealError> {
        let manifest = Manifest::decode_unnamed(bytes)?;
        let digest = super::manifest::digest_of(bytes);
        let found = id_of(&manifest);
        let mut state = self.inner.lock();
        if state.manifests.contains_key(&digest) {
            self.inner.end_grant(&mut state, owner, token);
            return Ok(digest);
        }
        let chunks = manifest.chunks();
        let missing: Vec<Digest> = chunks
            .iter()
            .filter(|digest| !state.chunks.contains_key(digest))
            .take(MISSING_MAX)
            .copied()
            .collect();
        let grant = state.grant(owner, token).map_err(|_| SealError::UnknownGrant)?;
        if grant.id != found {
            return Err(SealError::OtherCheckpoint { found, expected: grant.id });
        }
        if !missing.is_empty() {
            return Err(SealError::Missing { digests: missing });
        }
        let cost = cost_of(bytes.len());
        if grant.spent + cost > grant.granted {
            return Err(SealError::OverGrant { granted: grant.granted, asked: cost });
        }
        let spare = state.number();
        let path = self.inner.manifest_path(digest, revision);
        let written = self.inner.write_new(spare, bytes);
        written.and_then(|from| std::fs::rename(from, path)).map_err(SealError::Io)?;
        state.used += cost;
        let bytes = manifest.bytes();
        state.manifests.insert(digest, Held { id: found, revision, chunks, bytes, cost });
        self.inner.end_grant(&mut state, owner, token);
        Ok(digest)
    }

    /// Gives a grant up and frees what nothing else needs. Unknown grants are passed over.
    pub fn release(&self, owner: NodeId, token: Token) {
        let mut state = self.inner.lock();
        self.inner.end_grant(&mut state, owner, token);
    }

    /// Ends the grants whose lease is over.
    pub fn expire(&self, now: Time) {
        let mut state = self.inner.lock();
        let over = state.grants.iter().filter(|(_, grant)| grant.ends <= now);
        let over: Vec<(NodeId, Token)> = over.map(|(token, grant)| (grant.owner, *token)).collect();
        for (owner, token) in over {
            tracing::debug!(%owner, "a grant of checkpoint memory ended before its seal");
            self.inner.end_grant(&mut state, owner, token);
        }
    }

    /// Frees the manifests that the committed rows, as of catalog `revision`, show to be superseded, and
    /// every chunk that nothing needs any more.
    ///
    /// A checkpoint newer than its container's row may be on its way to being committed, and one sealed
    /// at a later revision than these rows may belong to a container they don't show yet: both stay.
    pub fn retain(&self, revision: u64, live: &[Live]) -> Freed {
        let rows: BTreeMap<ContainerId, &Live> = live.iter().map(|live| (live.container, live)).collect();
        let is_needed = |digest: &Digest, held: &Held| match rows.get(&held.id.container) {
            Some(row) => {
                let committed = (row.epoch, row.number);
                row.manifests.contains(digest) || (held.id.epoch, held.id.number) > committed
            }
            None => held.revision > revision,
        };
        let mut state = self.inner.lock();
        let before = state.used;
        let manifests = std::mem::take(&mut state.manifests);
        let (kept, freed): (BTreeMap<_, _>, BTreeMap<_, _>) =
            manifests.into_iter().partition(|(digest, held)| is_needed(digest, held));
        state.manifests = kept;
        for (digest, held) in &freed {
            state.used = state.used.saturating_sub(held.cost);
            remove(&self.inner.manifest_path(*digest, held.revision));
        }
        let candidates: BTreeSet<Digest> =
            freed.values().flat_map(|held| held.chunks.iter().copied()).collect();
        self.inner.sweep(&mut state, candidates);
        Freed { manifests: freed.len(), bytes: before.saturating_sub(state.used) }
    }

    /// The stored bytes of a chunk and their checksum, checked; `None` when it is not held.
    ///
    /// A chunk that became damaged is deleted, named in the log and not offered again.
    #[must_use]
    pub fn get(&self, digest: Digest) -> Option<(Bytes, u32)> {
        let chunk = *self.inner.lock().chunks.get(&digest)?;
        let path = self.inner.chunk_path(digest, chunk.crc);
        match std::fs::read(&path) {
            Ok(bytes) if bytes.len() == chunk.length && crc32c::crc32c(&bytes) == chunk.crc => {
                Some((bytes.into(), chunk.crc))
            }
            Ok(_) | Err(_) => {
                let mut state = self.inner.lock();
                // It may have been freed rightly since it was looked up.
                if state.chunks.contains_key(&digest) {
                    tracing::error!(%digest, "a chunk in checkpoint memory is damaged; it is dropped");
                    self.inner.forget(&mut state, digest);
                    remove(&path);
                }
                None
            }
        }
    }

    /// The bytes of a manifest that is held.
    #[must_use]
    pub fn manifest(&self, digest: Digest) -> Option<Bytes> {
        let revision = self.inner.lock().manifests.get(&digest)?.revision;
        let bytes = std::fs::read(self.inner.manifest_path(digest, revision)).ok()?;
        (super::manifest::digest_of(&bytes) == digest).then(|| bytes.into())
    }

    /// The checkpoints that are held whole.
    #[must_use]
    pub fn sealed(&self) -> Vec<SealedCheckpoint> {
        let state = self.inner.lock();
        let whole = state
            .manifests
            .iter()
            .filter(|(_, held)| held.chunks.iter().all(|digest| state.chunks.contains_key(digest)));
        whole
            .map(|(manifest, held)| SealedCheckpoint { manifest: *manifest, id: held.id, bytes: held.bytes })
            .collect()
    }

    /// How much is lent, used and free.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let state = self.inner.lock();
        let (budget, reserved) = (self.inner.budget, state.reserved());
        let free = budget.saturating_sub(state.used + reserved);
        let chunks = u64::try_from(state.chunks.len()).unwrap_or(u64::MAX);
        Usage { budget, used: state.used, reserved, free, chunks }
    }
}

impl State {
    fn reserved(&self) -> u64 {
        self.grants.values().map(|grant| grant.granted.saturating_sub(grant.spent)).sum()
    }

    /// Every use makes the lease begin anew.
    fn grant(&mut self, owner: NodeId, token: Token) -> Result<&mut Grant, PutError> {
        let grant = self.grants.get_mut(&token).filter(|grant| grant.owner == owner);
        let grant = grant.ok_or(PutError::UnknownGrant)?;
        grant.ends = now() + GRANT_LEASE;
        Ok(grant)
    }

    fn number(&mut self) -> u64 {
        self.next_spare += 1;
        self.next_spare
    }
}

/// A file to write a chunk into.
enum Spare {
    /// One of full length whose pages are there.
    Used(u64),
    /// None yet.
    Fresh(u64),
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chunk_path(&self, digest: Digest, crc: u32) -> PathBuf {
        load::chunk_path(&self.directory, digest, crc)
    }

    fn manifest_path(&self, digest: Digest, revision: u64) -> PathBuf {
        self.directory.join(load::MANIFESTS).join(format!("{digest}.{revision}"))
    }

    fn spare_path(&self, number: u64) -> PathBuf {
        self.directory.join(load::SPARE).join(number.to_string())
    }

    fn take_spare(&self, state: &mut State, length: usize, cost: u64) -> Spare {
        if length == STORED_BYTES_MAX
            && let Some(number) = state.spares.pop()
        {
            return Spare::Used(number);
        }
        // Spares lie within the budget too: one goes when this file would not fit beside them.
        let spare_cost = cost_of(STORED_BYTES_MAX);
        let spares = u64::try_from(state.spares.len()).unwrap_or(u64::MAX);
        if state.used + spares * spare_cost + cost > self.budget
            && let Some(number) = state.spares.pop()
        {
            remove(&self.spare_path(number));
        }
        Spare::Fresh(state.number())
    }

    /// Writes into a spare file and gives its path; a failed write leaves none.
    fn write(&self, spare: Spare, bytes: &[u8]) -> io::Result<PathBuf> {
        let number = match spare {
            Spare::Fresh(number) => return self.write_new(number, bytes),
            Spare::Used(number) => number,
        };
        let path = self.spare_path(number);
        let written = OpenOptions::new().write(true).open(&path).and_then(|file| file.write_all_at(bytes, 0));
        if written.is_err() {
            remove(&path);
        }
        written.map(|()| path)
    }

    fn write_new(&self, number: u64, bytes: &[u8]) -> io::Result<PathBuf> {
        let path = self.spare_path(number);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&path).and_then(|file| file.write_all_at(bytes, 0));
        if written.is_err() {
            remove(&path);
        }
        written.map(|()| path)
    }

    fn end_grant(&self, state: &mut State, owner: NodeId, token: Token) {
        if state.grants.get(&token).is_none_or(|grant| grant.owner != owner) {
            return;
        }
        if let Some(grant) = state.grants.remove(&token) {
            self.sweep(state, grant.pinned);
        }
    }

    /// Frees those of `candidates` that no manifest and no grant needs.
    fn sweep(&self, state: &mut State, candidates: impl IntoIterator<Item = Digest>) {
        let needed: BTreeSet<Digest> = state
            .manifests
            .values()
            .flat_map(|held| &held.chunks)
            .chain(state.grants.values().flat_map(|grant| &grant.pinned))
            .copied()
            .collect();
        for digest in candidates {
            if needed.contains(&digest) {
                continue;
            }
            let Some(chunk) = self.forget(state, digest) else {
                continue;
            };
            let path = self.chunk_path(digest, chunk.crc);
            let number = state.number();
            let is_kept =
                chunk.length == STORED_BYTES_MAX && std::fs::rename(&path, self.spare_path(number)).is_ok();
            if is_kept {
                state.spares.push(number);
            } else {
                remove(&path);
            }
        }
    }

    fn forget(&self, state: &mut State, digest: Digest) -> Option<Chunk> {
        let chunk = state.chunks.remove(&digest)?;
        state.used = state.used.saturating_sub(cost_of(chunk.length));
        Some(chunk)
    }
}

/// Bytes of whole pages that a file of `length` occupies.
pub(super) fn cost_of(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX).div_ceil(PAGE_BYTES) * PAGE_BYTES
}

fn id_of(manifest: &Manifest) -> CheckpointId {
    CheckpointId { container: manifest.container(), epoch: manifest.epoch(), number: manifest.number }
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a file of checkpoint memory stays behind");
        }
    }
}

const _: () = assert!(MANIFEST_BYTES_MAX < crate::net::rpc::BODY_BYTES_MAX);
