//! Shipping: one checkpoint from an image folder into the memory of other nodes.
//!
//! It decides which candidates hold it: all-or-nothing grants first, then one reading of the image feeds
//! all holders at once, then each seals. A holder that fails is replaced by the next candidate, which
//! gets the image by one more reading, or left out. It never commits anything (the catalog does), never
//! stops the program, and leaves nothing partial behind. Read next: `fetch`, the way back.
//!
//! Only a few chunks are in memory at a time: the slowest holder slows the reading.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use steadfast_proto::ids::{ContainerId, Digest, Epoch, NodeId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::key::{ContainerKey, TAG_BYTES};
use super::manifest::{CHUNK_BYTES, ChunkRef, Entry, EntryKind, Manifest};
use super::pool::{CheckpointId, GrantRefused, STORED_BYTES_MAX, Token, cost_of};
use super::service::{AskError, ask};
use super::tree::{self, TreeError, io_error, path_of};
use super::wire::{Request, Response};
use crate::buffers::Buffers;
use crate::identity::ClusterKey;
use crate::net::rpc::Peers;

/// Chunks on their way to one holder at a time.
const IN_FLIGHT: usize = 8;
/// Chunks that wait for one holder beside those.
const QUEUE: usize = 8;
/// How long one chunk, grant or seal may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a grant is renewed while nothing needs to be sent.
const RENEW_EVERY: Duration = Duration::from_secs(20);
/// Beside chunks and paths, what a manifest needs at most per entry and per chunk, in bytes.
const ENTRY_OVERHEAD: usize = 512;
const CHUNK_OVERHEAD: usize = 40;

/// What to ship, and to whom.
#[derive(Clone, Debug)]
pub struct ShipRequest {
    /// Whose checkpoint.
    pub container: ContainerId,
    /// Its run epoch; holders refuse one that is below what they hold (D7).
    pub epoch: Epoch,
    /// Its number, one more than the last.
    pub number: u64,
    /// Candidates in the order of preference, on distinct failure domains, this node not among them.
    pub holders: Vec<NodeId>,
    /// Copies wanted on other nodes.
    pub copies: usize,
    /// The current cluster key.
    pub key: ClusterKey,
    /// A revision of the catalog at which the container's row existed.
    pub revision: u64,
    /// Opaque bytes that come back with the image.
    pub meta: Vec<u8>,
}

/// A shipped checkpoint: sealed by its holders, and waiting for its commit.
#[derive(Clone, Debug)]
pub struct Shipped {
    /// The name under which it can be fetched.
    pub manifest: Digest,
    /// Bytes of the image's files.
    pub bytes_total: u64,
    /// Bytes of chunks that holders acknowledged, over all holders.
    pub bytes_sent: u64,
    /// Who sealed it.
    pub holders: Vec<NodeId>,
    /// Whether fewer nodes sealed it than were wanted.
    pub under_protected: bool,
    /// Candidates that were asked and don't hold it, with why.
    pub passed_over: Vec<Candidate>,
}

/// Why one candidate does not hold the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The candidate.
    pub node: NodeId,
    /// Bytes that it could grant, when that was the reason.
    pub free: Option<u64>,
    /// The reason in words.
    pub reason: String,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.free {
            Some(free) => write!(f, "{}: {free} bytes free", self.node),
            None => write!(f, "{}: {}", self.node, self.reason),
        }
    }
}

/// Why a checkpoint was not shipped. No node keeps any part of it, and the one before is untouched.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// No candidate has room for it, or none can be reached.
    #[error("no other node holds the checkpoint, {need} bytes are needed: {}", list(candidates))]
    NotEnoughMemory {
        /// Bytes that one holder needs.
        need: u64,
        /// What each candidate answered.
        candidates: Vec<Candidate>,
    },
    /// The image can't be read or is too large for a manifest.
    #[error(transparent)]
    Image(#[from] TreeError),
    /// The image is not the same at its second reading.
    #[error("the image {path} changed while it was shipped")]
    ImageChanged {
        /// The image folder.
        path: PathBuf,
    },
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Shutdown,
}

fn list(candidates: &[Candidate]) -> String {
    if candidates.is_empty() {
        return "there is no other node".to_owned();
    }
    candidates.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Ships the image folder, so that `copies` other nodes (or as many as there are, at least one) seal it.
///
/// # Errors
/// Says what was needed and what each candidate answered, or what is wrong with the image.
pub async fn ship(image: &Path, request: ShipRequest, peers: &Peers) -> Result<Shipped, ShipError> {
    let root = image.to_path_buf();
    let scanned = tokio::task::spawn_blocking(move || tree::scan(&root)).await;
    let entries = scanned.map_err(|_| ShipError::Shutdown)??;
    let need = need_of(&entries, &request.meta);
    let mut shipment = Shipment {
        image: image.into(),
        key: Arc::new(ContainerKey::derive(&request.key, request.container)),
        peers: peers.clone(),
        entries,
        request,
        need,
        sealed: Vec::new(),
        passed_over: Vec::new(),
        bytes_sent: 0,
        manifest: None,
    };
    let result = shipment.run().await;
    let (manifest, bytes_total) = match result {
        Ok(()) if !shipment.sealed.is_empty() => shipment.manifest.ok_or(ShipError::Shutdown)?,
        Ok(()) => {
            return Err(ShipError::NotEnoughMemory { need, candidates: shipment.passed_over });
        }
        Err(error) => return Err(error),
    };
    Ok(Shipped {
        manifest,
        bytes_total,
        bytes_sent: shipment.bytes_sent,
        under_protected: shipment.sealed.len() < shipment.request.copies,
        holders: shipment.sealed,
        passed_over: shipment.passed_over,
    })
}

struct Shipment {
    image: PathBuf,
    key: Arc<ContainerKey>,
    peers: Peers,
    entries: Vec<Entry>,
    request: ShipRequest,
    need: u64,
    sealed: Vec<NodeId>,
    passed_over: Vec<Candidate>,
    bytes_sent: u64,
    manifest: Option<(Digest, u64)>,
}

/// A node that granted the checkpoint its room.
struct Holder {
    node: NodeId,
    token: Token,
    held: BTreeSet<Digest>,
}

impl Shipment {
    async fn run(&mut self) -> Result<(), ShipError> {
        let mut rest = std::mem::take(&mut self.request.holders).into_iter();
        loop {
            let mut holders = Vec::new();
            // As many questions at a time as grants are missing: never more grants than wanted.
            while self.sealed.len() + holders.len() < self.request.copies.max(1) {
                let missing = self.request.copies.max(1) - self.sealed.len() - holders.len();
                let asked: Vec<NodeId> = rest.by_ref().take(missing).collect();
                if asked.is_empty() {
                    break;
                }
                let answers = join_all(asked.into_iter().map(|node| self.reserve(node))).await;
                for answer in answers {
                    match answer {
                        Ok(holder) => holders.push(holder),
                        Err(candidate) => self.passed_over.push(candidate),
                    }
                }
            }
            if holders.is_empty() {
                return Ok(());
            }
            let grants: Vec<(NodeId, Token)> =
                holders.iter().map(|holder| (holder.node, holder.token)).collect();
            if let Err(error) = self.pass(holders).await {
                join_all(grants.into_iter().map(|(node, token)| self.release(node, token))).await;
                return Err(error);
            }
        }
    }

    async fn reserve(&self, node: NodeId) -> Result<Holder, Candidate> {
        let request = Request::Reserve { id: self.id(), bytes: self.need };
        let failed = |reason: String| Candidate { node, free: None, reason };
        match ask(&self.peers, node, &request, Bytes::new(), ASK_TIMEOUT).await {
            Ok((Response::Granted { token, held }, _)) => {
                Ok(Holder { node, token, held: held.into_iter().collect() })
            }
            Ok((Response::Denied(refused), _)) => Err(Candidate {
                node,
                free: match &refused {
                    GrantRefused::NotEnough { free, .. } => Some(*free),
                    GrantRefused::StaleEpoch { .. } | GrantRefused::TooMany => None,
                },
                reason: refused.to_string(),
            }),
            Ok(_) => Err(failed(AskError::Unexpected { node }.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Reads the image once, feeds every holder, and has those seal that got everything.
    async fn pass(&mut self, holders: Vec<Holder>) -> Result<(), ShipError> {
        let mut senders = JoinSet::new();
        let mut outlets = Vec::new();
        for (rank, holder) in holders.into_iter().enumerate() {
            let (queue, items) = mpsc::channel(QUEUE);
            let (peers, node, token) = (self.peers.clone(), holder.node, holder.token);
            outlets.push(Outlet { held: holder.held, queue });
            senders.spawn(async move { (rank, node, token, send_all(&peers, node, token, items).await) });
        }
        let reader = Reader {
            image: self.image.clone(),
            key: Arc::clone(&self.key),
            entries: std::mem::take(&mut self.entries),
            outlets,
        };
        let read = tokio::task::spawn_blocking(move || reader.read()).await;
        let entries = read.map_err(|_| ShipError::Shutdown)??;
        let (manifest, bytes) = self.describe(&entries)?;
        self.entries = entries;
        let mut complete = BTreeMap::new();
        while let Some(done) = senders.join_next().await {
            let (rank, node, token, result) = done.map_err(|_| ShipError::Shutdown)?;
            match result {
                Ok(sent) => {
                    self.bytes_sent += sent;
                    complete.insert(rank, (node, token));
                }
                Err(error) => self.pass_over(node, token, error.to_string()).await,
            }
        }
        let complete: Vec<(NodeId, Token)> = complete.into_values().collect();
        let seals = complete.iter().map(|(node, token)| self.seal(*node, *token, manifest, &bytes));
        let seals = join_all(seals).await;
        for ((node, token), result) in complete.into_iter().zip(seals) {
            match result {
                Ok(()) => self.sealed.push(node),
                Err(reason) => self.pass_over(node, token, reason).await,
            }
        }
        Ok(())
    }

    fn describe(&mut self, entries: &[Entry]) -> Result<(Digest, Bytes), ShipError> {
        let request = &self.request;
        let manifest = Manifest::new(
            request.container,
            request.epoch,
            request.number,
            self.key.epoch(),
            entries.to_vec(),
            request.meta.clone(),
        );
        let (digest, bytes) = manifest.encode().map_err(TreeError::from)?;
        match self.manifest {
            Some((first, _)) if first != digest => Err(ShipError::ImageChanged { path: self.image.clone() }),
            Some(_) | None => {
                self.manifest = Some((digest, manifest.bytes()));
                Ok((digest, bytes.into()))
            }
        }
    }

    async fn seal(&self, node: NodeId, token: Token, manifest: Digest, bytes: &Bytes) -> Result<(), String> {
        let request = Request::Seal { token, revision: self.request.revision };
        match ask(&self.peers, node, &request, bytes.clone(), ASK_TIMEOUT).await {
            Ok((Response::Sealed(digest), _)) if digest == manifest => Ok(()),
            Ok((Response::Missing(digests), _)) => {
                Err(format!("{} chunks went missing before the seal", digests.len()))
            }
            Ok(_) => Err(AskError::Unexpected { node }.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn pass_over(&mut self, node: NodeId, token: Token, reason: String) {
        tracing::warn!(%node, reason, "a holder of a checkpoint is left out");
        self.release(node, token).await;
        self.passed_over.push(Candidate { node, free: None, reason });
    }

    async fn release(&self, node: NodeId, token: Token) {
        let request = Request::Release { token };
        let short = Duration::from_secs(1);
        // A holder that can't be told frees the grant when its lease ends.
        if let Err(error) = ask(&self.peers, node, &request, Bytes::new(), short).await {
            tracing::debug!(%node, %error, "a grant was not released, it will end by itself");
        }
    }

    const fn id(&self) -> CheckpointId {
        let request = &self.request;
        CheckpointId { container: request.container, epoch: request.epoch, number: request.number }
    }
}

/// What one holder is granted: every chunk as if it were new, and the manifest.
fn need_of(entries: &[Entry], meta: &[u8]) -> u64 {
    let mut manifest = meta.len() + ENTRY_OVERHEAD;
    let mut need = 0;
    for entry in entries {
        let attributes: usize =
            entry.attributes.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        manifest += entry.path.len() + attributes + ENTRY_OVERHEAD;
        if let EntryKind::File { size, .. } = entry.kind {
            for (_, length) in chunks_of(size) {
                need += cost_of(length + TAG_BYTES);
                manifest += CHUNK_OVERHEAD;
            }
        } else if let EntryKind::Link { target } = &entry.kind {
            manifest += target.len();
        }
    }
    need + cost_of(manifest)
}

/// Offsets and lengths of the chunks of a file.
fn chunks_of(size: u64) -> impl Iterator<Item = (u64, usize)> {
    let step = u64::try_from(CHUNK_BYTES).expect("one MiB fits");
    (0..size.div_ceil(step)).map(move |index| {
        let offset = index * step;
        let length = usize::try_from((size - offset).min(step)).expect("at most one MiB");
        (offset, length)
    })
}

#[derive(Clone)]
struct Item {
    digest: Digest,
    crc: u32,
    bytes: Bytes,
}

/// Sends what comes out of the queue, several chunks at a time, and gives the acknowledged bytes.
async fn send_all(
    peers: &Peers,
    node: NodeId,
    token: Token,
    mut items: mpsc::Receiver<Item>,
) -> Result<u64, AskError> {
    let mut sent = 0;
    let mut flights = FuturesUnordered::new();
    let mut is_open = true;
    let mut renew = tokio::time::interval(RENEW_EVERY);
    renew.tick().await;
    while is_open || !flights.is_empty() {
        tokio::select! {
            item = items.recv(), if is_open && flights.len() < IN_FLIGHT => match item {
                Some(item) => flights.push(put(peers, node, token, item)),
                None => is_open = false,
            },
            Some(done) = flights.next() => sent += done?,
            _ = renew.tick() => {
                ask(peers, node, &Request::Renew { token }, Bytes::new(), ASK_TIMEOUT).await?;
            }
        }
    }
    Ok(sent)
}

async fn put(peers: &Peers, node: NodeId, token: Token, item: Item) -> Result<u64, AskError> {
    let length = u64::try_from(item.bytes.len()).unwrap_or_default();
    let request = Request::Put { token, digest: item.digest, crc: item.crc };
    match ask(peers, node, &request, item.bytes, ASK_TIMEOUT).await? {
        (Response::Done, _) => Ok(length),
        _ => Err(AskError::Unexpected { node }),
    }
}

/// Where chunks for one holder go; closed when the holder failed.
struct Outlet {
    held: BTreeSet<Digest>,
    queue: mpsc::Sender<Item>,
}

/// Reads, names and encrypts the image's chunks on blocking threads.
struct Reader {
    image: PathBuf,
    key: Arc<ContainerKey>,
    entries: Vec<Entry>,
    outlets: Vec<Outlet>,
}

struct Piece {
    entry: usize,
    offset: u64,
    length: usize,
}

impl Reader {
    fn read(mut self) -> Result<Vec<Entry>, TreeError> {
        let mut pieces = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if let EntryKind::File { size, .. } = entry.kind {
                let piece = |(offset, length)| Piece { entry: index, offset, length };
                pieces.extend(chunks_of(size).map(piece));
            }
        }
        let next = AtomicUsize::new(0);
        let seen = Mutex::new(BTreeSet::new());
        let buffers = Buffers::default();
        // Half the processors: the others encrypt and send what these read.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (processors / 2).clamp(1, 4).min(pieces.len().max(1));
        let mut refs: Vec<(usize, ChunkRef)> = Vec::with_capacity(pieces.len());
        std::thread::scope(|scope| {
            let work = || self.work(&pieces, &next, &seen, &buffers);
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            for thread in running {
                refs.extend(thread.join().expect("a reading thread does not panic")?);
            }
            Ok::<(), TreeError>(())
        })?;
        refs.sort_by_key(|(index, _)| *index);
        for entry in &mut self.entries {
            if let EntryKind::File { chunks, .. } = &mut entry.kind {
                chunks.clear();
            }
        }
        for ((_, chunk), piece) in refs.into_iter().zip(&pieces) {
            let entry = self.entries.get_mut(piece.entry);
            if let Some(EntryKind::File { chunks, .. }) = entry.map(|entry| &mut entry.kind) {
                chunks.push(chunk);
            }
        }
        Ok(self.entries)
    }

    fn work(
        &self,
        pieces: &[Piece],
        next: &AtomicUsize,
        seen: &Mutex<BTreeSet<Digest>>,
        buffers: &Buffers,
    ) -> Result<Vec<(usize, ChunkRef)>, TreeError> {
        let mut refs = Vec::new();
        let mut open: Option<(usize, File)> = None;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(index) else {
                return Ok(refs);
            };
            let Some(entry) = self.entries.get(piece.entry) else {
                return Ok(refs);
            };
            let path = path_of(&self.image, entry);
            let file = match open.take() {
                Some((at, file)) if at == piece.entry => file,
                Some(_) | None => File::open(&path).map_err(io_error("open", &path))?,
            };
            let mut buffer = buffers.take(STORED_BYTES_MAX);
            buffer.resize(piece.length, 0);
            file.read_exact_at(&mut buffer, piece.offset).map_err(io_error("read", &path))?;
            open = Some((piece.entry, file));
            let length = u32::try_from(piece.length).expect("at most one MiB");
            refs.push((index, self.chunk(buffer, length, seen, buffers)));
        }
    }

    /// Names a chunk and hands it to every holder that lacks it.
    fn chunk(
        &self,
        mut buffer: Vec<u8>,
        length: u32,
        seen: &Mutex<BTreeSet<Digest>>,
        buffers: &Buffers,
    ) -> ChunkRef {
        if is_zero(&buffer) {
            buffers.give(buffer);
            return ChunkRef::Zero(length);
        }
        let digest = self.key.name(&buffer);
        let lacks = |outlet: &&Outlet| !outlet.queue.is_closed() && !outlet.held.contains(&digest);
        let mut lacking = self.outlets.iter().filter(lacks).peekable();
        let is_first = seen.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        if lacking.peek().is_none() || !is_first {
            buffers.give(buffer);
            return ChunkRef::Data(digest, length);
        }
        self.key.seal(digest, &mut buffer);
        let crc = crc32c::crc32c(&buffer);
        let item = Item { digest, crc, bytes: buffers.share(buffer) };
        for outlet in lacking {
            // A closed queue means that the holder failed; its sender says why.
            let _ = outlet.queue.blocking_send(item.clone());
        }
        ChunkRef::Data(digest, length)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}
