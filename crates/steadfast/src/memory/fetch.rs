//! Fetching: one checkpoint from this node's or others' memory back into an image folder.
//!
//! It decides where each chunk comes from: this node's own memory first, then any holder; a damaged or
//! missing one is looked for at the next. The image appears whole under its name or not at all. It never
//! starts anything. Read next: `key` (why an opened chunk is the right one), `tree`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use steadfast_proto::ids::{Digest, NodeId};

use super::key::{ContainerKey, OpenChunkError};
use super::manifest::{ChunkRef, EntryKind, Manifest};
use super::pool::Pool;
use super::service::{AskError, ask};
use super::tree::{self, TreeError, io_error, path_of};
use super::wire::{Request, Response};
use crate::identity::ClusterKey;
use crate::net::rpc::Peers;

/// Chunks asked for at a time.
const IN_FLIGHT: usize = 12;
/// How long one chunk or manifest may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one holder is waited for before another is asked beside it.
const HEDGE_AFTER: Duration = Duration::from_millis(200);
/// Reasons and chunks that an error names at most.
const NAMED_MAX: usize = 8;

/// What to fetch, and from whom.
#[derive(Clone, Debug)]
pub struct FetchRequest {
    /// The name of the manifest, from the container's committed row.
    pub manifest: Digest,
    /// Who holds copies, nearest first, this node not among them.
    pub holders: Vec<NodeId>,
    /// The cluster keys of this node; the manifest says which one is needed.
    pub keys: Vec<ClusterKey>,
    /// The image folder to make, on a tmpfs; it must not exist, or be empty.
    pub into: PathBuf,
}

/// A fetched checkpoint.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its manifest, with the opaque bytes that were shipped along.
    pub manifest: Manifest,
    /// Chunks that came from this node's own memory.
    pub chunks_local: usize,
    /// Chunks that came from other nodes.
    pub chunks_remote: usize,
}

/// Why there is no image folder. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody has all of it.
    #[error("checkpoint {manifest} is lost: {what} is held by no reachable node ({})", reasons.join("; "))]
    CheckpointLost {
        /// The manifest.
        manifest: Digest,
        /// What is missing, with at most eight names.
        what: String,
        /// What the asked nodes answered, at most eight.
        reasons: Vec<String>,
    },
    /// The cluster key of its time is gone.
    #[error("the checkpoint is sealed with cluster key {epoch}, which this node does not have")]
    NoKey {
        /// The key's epoch.
        epoch: u32,
    },
    /// The image folder can't be made.
    #[error(transparent)]
    Image(#[from] TreeError),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Shutdown,
}

/// Fetches a checkpoint into `request.into`.
///
/// # Errors
/// Says what is lost, or why the folder can't be made; no partial state stays.
pub async fn fetch(
    request: FetchRequest,
    local: Option<&Pool>,
    peers: &Peers,
) -> Result<Fetched, FetchError> {
    let manifest = find_manifest(&request, local, peers).await?;
    let cluster_key = request.keys.iter().find(|key| key.epoch == manifest.key_epoch);
    let cluster_key = cluster_key.ok_or(FetchError::NoKey { epoch: manifest.key_epoch })?;
    let key = Arc::new(ContainerKey::derive(cluster_key, manifest.container()));
    let partial = Partial { path: partial_path(&request.into) };
    let plan = Arc::new(Plan { root: partial.path.clone(), key, manifest });
    let (work, pool) = (Arc::clone(&plan), local.cloned());
    let made = tokio::task::spawn_blocking(move || work.make_with(pool.as_ref())).await;
    let (chunks_local, missing) = made.map_err(|_| FetchError::Shutdown)??;
    let chunks_remote = missing.len();
    fetch_missing(&plan, missing, &request, peers).await?;
    let (work, into) = (Arc::clone(&plan), request.into.clone());
    let finished = tokio::task::spawn_blocking(move || {
        tree::finish(&work.root, &work.manifest.entries)?;
        std::fs::rename(&work.root, &into).map_err(io_error("name the image", &into))
    });
    finished.await.map_err(|_| FetchError::Shutdown)??;
    let manifest = Arc::unwrap_or_clone(plan).manifest;
    Ok(Fetched { manifest, chunks_local, chunks_remote })
}

/// Removes what was made so far unless it was renamed.
struct Partial {
    path: PathBuf,
}

impl Drop for Partial {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "a partial image stays behind");
            }
        }
    }
}

fn partial_path(into: &Path) -> PathBuf {
    let mut name = into.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    into.with_file_name(name)
}

async fn find_manifest(
    request: &FetchRequest,
    local: Option<&Pool>,
    peers: &Peers,
) -> Result<Manifest, FetchError> {
    let digest = request.manifest;
    let own = local.and_then(|pool| pool.manifest(digest));
    if let Some(manifest) = own.and_then(|bytes| Manifest::decode(digest, &bytes).ok()) {
        return Ok(manifest);
    }
    let question = Request::Manifest { digest };
    // All at once: the dead among the holders must not cost a time-out each.
    let asked = request.holders.iter().map(|node| {
        let question = &question;
        async move {
            let answer = ask(peers, *node, question, Bytes::new(), ASK_TIMEOUT).await;
            match answer.map_err(|error| error.to_string())? {
                (Response::Manifest, bytes) => {
                    Manifest::decode(digest, &bytes).map_err(|error| format!("node {node}: {error}"))
                }
                _ => Err(format!("node {node} does not hold it")),
            }
        }
    });
    let mut answers: FuturesUnordered<_> = asked.collect();
    let mut reasons = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(manifest) => return Ok(manifest),
            Err(reason) => reasons.push(reason),
        }
    }
    reasons.truncate(NAMED_MAX);
    let what = "its manifest".to_owned();
    Err(FetchError::CheckpointLost { manifest: digest, what, reasons })
}

#[derive(Clone)]
struct Plan {
    root: PathBuf,
    key: Arc<ContainerKey>,
    manifest: Manifest,
}

/// Where a chunk goes: entry and offset.
type Place = (usize, u64);

impl Plan {
    /// Makes the folder and fills in what this node holds; gives how much that was and what is missing.
    fn make_with(&self, local: Option<&Pool>) -> Result<(usize, BTreeMap<Digest, Vec<Place>>), TreeError> {
        match std::fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove the left-over", &self.root)(error));
            }
            Ok(()) | Err(_) => {}
        }
        std::fs::create_dir(&self.root).map_err(io_error("make", &self.root))?;
        tree::make(&self.root, &self.manifest.entries)?;
        let places: Vec<(Digest, Vec<Place>)> = self.places().into_iter().collect();
        let Some(pool) = local else {
            return Ok((0, places.into_iter().collect()));
        };
        let next = AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
        let mut missing = BTreeMap::new();
        std::thread::scope(|scope| {
            let work = || self.fill_from(pool, &places, &next);
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            for thread in running {
                missing.extend(thread.join().expect("a filling thread does not panic")?);
            }
            Ok::<(), TreeError>(())
        })?;
        Ok((places.len() - missing.len(), missing))
    }

    fn places(&self) -> BTreeMap<Digest, Vec<Place>> {
        let mut places: BTreeMap<Digest, Vec<Place>> = BTreeMap::new();
        for (index, entry) in self.manifest.entries.iter().enumerate() {
            let EntryKind::File { chunks, .. } = &entry.kind else {
                continue;
            };
            let mut offset = 0;
            for chunk in chunks {
                if let ChunkRef::Data(digest, _) = chunk {
                    places.entry(*digest).or_default().push((index, offset));
                }
                offset += u64::from(chunk.length());
            }
        }
        places
    }

    fn fill_from(
        &self,
        pool: &Pool,
        places: &[(Digest, Vec<Place>)],
        next: &AtomicUsize,
    ) -> Result<Vec<(Digest, Vec<Place>)>, TreeError> {
        let mut missing = Vec::new();
        while let Some((digest, at)) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
            let stored = pool.get(*digest).map(|(bytes, _)| self.key.open_bytes(*digest, bytes));
            match stored {
                Some(Ok(plain)) => self.write(&plain, at)?,
                Some(Err(_)) | None => missing.push((*digest, at.clone())),
            }
        }
        Ok(missing)
    }

    fn open(&self, digest: Digest, bytes: Bytes, at: &[Place]) -> Result<(), WriteError> {
        let plain = self.key.open_bytes(digest, bytes)?;
        Ok(self.write(&plain, at)?)
    }

    fn write(&self, plain: &[u8], at: &[Place]) -> Result<(), TreeError> {
        for (index, offset) in at {
            let Some(entry) = self.manifest.entries.get(*index) else {
                continue;
            };
            let path = path_of(&self.root, entry);
            let opened: io::Result<File> = OpenOptions::new().write(true).open(&path);
            let written = opened.and_then(|file| file.write_all_at(plain, *offset));
            written.map_err(io_error("write", &path))?;
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Chunk(#[from] OpenChunkError),
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A node to ask, until its path fails.
struct Source {
    node: NodeId,
    is_gone: AtomicBool,
}

async fn fetch_missing(
    plan: &Arc<Plan>,
    missing: BTreeMap<Digest, Vec<Place>>,
    request: &FetchRequest,
    peers: &Peers,
) -> Result<(), FetchError> {
    let sources: Vec<Source> =
        request.holders.iter().map(|node| Source { node: *node, is_gone: AtomicBool::new(false) }).collect();
    let total = missing.len();
    let mut rest = missing.into_iter().enumerate();
    let mut flights = FuturesUnordered::new();
    let (mut lost, mut reasons) = (Vec::new(), Vec::new());
    loop {
        while flights.len() < IN_FLIGHT {
            let Some((turn, (digest, at))) = rest.next() else {
                break;
            };
            flights.push(fetch_chunk(plan, &sources, turn, digest, at, peers));
        }
        let Some(done) = flights.next().await else {
            break;
        };
        if let Err((digest, why)) = done? {
            lost.push(digest);
            reasons.extend(why);
            reasons.sort();
            reasons.dedup();
            reasons.truncate(NAMED_MAX);
        }
    }
    if lost.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = lost.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let what = format!("{} of {total} chunks ({})", lost.len(), named.join(", "));
    Err(FetchError::CheckpointLost { manifest: request.manifest, what, reasons })
}

/// Gets one chunk from whichever holder has it whole; the turn spreads the load over the holders.
///
/// The next holder is asked when one fails, and also when one is slow: it may be the machine that died.
async fn fetch_chunk(
    plan: &Arc<Plan>,
    sources: &[Source],
    turn: usize,
    digest: Digest,
    at: Vec<Place>,
    peers: &Peers,
) -> Result<Result<(), (Digest, Vec<String>)>, FetchError> {
    let mut reasons = Vec::new();
    let turned = sources.iter().cycle().skip(turn % sources.len().max(1)).take(sources.len());
    let mut rest: Vec<&Source> = turned.collect();
    // The last is asked first; those that failed before come after all others.
    rest.reverse();
    rest.sort_by_key(|source| !source.is_gone.load(Ordering::Relaxed));
    let mut asked = FuturesUnordered::new();
    loop {
        if let Some(source) = rest.pop() {
            asked.push(fetch_from(source, digest, peers));
        }
        let bytes = tokio::select! {
            answer = asked.next() => match answer {
                Some(Ok(bytes)) => bytes,
                Some(Err(reason)) => {
                    reasons.push(reason);
                    continue;
                }
                None => return Ok(Err((digest, reasons))),
            },
            () = tokio::time::sleep(HEDGE_AFTER), if !rest.is_empty() => continue,
        };
        let (plan, at) = (Arc::clone(plan), at.clone());
        let opened = tokio::task::spawn_blocking(move || plan.open(digest, bytes, &at)).await;
        match opened.map_err(|_| FetchError::Shutdown)? {
            Ok(()) => return Ok(Ok(())),
            Err(WriteError::Tree(error)) => return Err(error.into()),
            Err(WriteError::Chunk(error)) => {
                tracing::error!(%digest, "a holder sent a damaged chunk");
                reasons.push(error.to_string());
            }
        }
    }
}

async fn fetch_from(source: &Source, digest: Digest, peers: &Peers) -> Result<Bytes, String> {
    let question = Request::Get { digest };
    match ask(peers, source.node, &question, Bytes::new(), ASK_TIMEOUT).await {
        Ok((Response::Chunk { .. }, bytes)) => Ok(bytes),
        Ok(_) => Err(format!("node {} lacks chunks", source.node)),
        Err(error) => {
            if matches!(error, AskError::Rpc(_)) {
                source.is_gone.store(true, Ordering::Relaxed);
            }
            Err(error.to_string())
        }
    }
}
