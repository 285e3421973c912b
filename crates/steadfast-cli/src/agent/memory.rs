//! This node's part in checkpoint memory: what it lends, and its containers' checkpoints out and back.
//!
//! It keeps the core told of what is held (a holder that is asked to refresh answers only when its core knows), and
//! frees only what the committed rows no longer need. It decides neither where copies go nor that a checkpoint counts.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steadfast::memory::{
    self, FetchError, FetchRequest, Live, OpenError, Pool, ShipError, ShipRequest, Shipped,
};
use steadfast::net::rpc::{Class, Peers, Services};
use steadfast::node::NodeHandle;
use steadfast_container::HostFile;
use steadfast_proto::catalog::{CheckpointRef, ContainerRow};
use steadfast_proto::ids::{Digest, Epoch, NodeId};
use tokio::task::spawn_blocking;

use super::keys::Keyring;
use super::rows::Rows;
use crate::codes::Code;
use crate::config::{Config, Mode};
use crate::failure::{Failure, disk};
use crate::units::human_size;

/// The RPC service by which an owner makes a holder's core know of a seal before it is committed.
pub(crate) const SERVICE_REFRESH: u8 = 20;
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);
/// How often grants that nobody sealed are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(5);

/// Checkpoint memory, as this node takes part in it.
#[derive(Clone)]
pub(crate) struct Memory {
    inner: Arc<Inner>,
}

struct Inner {
    /// What this node lends; an observer or a witness lends nothing.
    pool: Option<Pool>,
    peers: Peers,
    own: NodeId,
    keys: Keyring,
    node: OnceLock<NodeHandle>,
}

/// What travels with an image.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// Files of the machine that the program depends on.
    pub(crate) host_files: Vec<HostFile>,
}

impl Memory {
    /// Opens what this node lends and offers it.
    pub(crate) async fn open(
        config: &Config,
        keys: &Keyring,
        own: NodeId,
        services: &Services,
        peers: &Peers,
    ) -> Result<Memory, Failure> {
        let pool = match config.mode {
            Mode::Agent => Some(open_pool(config, services).await?),
            Mode::Observe | Mode::Witness => None,
        };
        let inner = Inner { pool, peers: peers.clone(), own, keys: keys.clone(), node: OnceLock::new() };
        let memory = Memory { inner: Arc::new(inner) };
        let refreshed = memory.clone();
        services.register(SERVICE_REFRESH, move |_, _| {
            let memory = refreshed.clone();
            Box::pin(async move {
                memory.tell().await;
                Ok(Bytes::new())
            })
        });
        Ok(memory)
    }

    /// Whose core is to be told.
    pub(crate) async fn attach(&self, node: NodeHandle) {
        // Attached once, at the start.
        let _ = self.inner.node.set(node);
        self.tell().await;
        let Some(pool) = self.inner.pool.clone() else { return };
        let memory = self.clone();
        tokio::spawn(async move {
            let mut every = tokio::time::interval(EXPIRE_EVERY);
            loop {
                every.tick().await;
                let pool = pool.clone();
                if spawn_blocking(move || pool.expire(steadfast::net::datagram::now())).await.is_err() {
                    return;
                }
                memory.tell().await;
            }
        });
    }

    /// The manifests that are held whole.
    pub(crate) async fn held(&self) -> BTreeSet<Digest> {
        let Some(pool) = self.inner.pool.clone() else { return BTreeSet::new() };
        let sealed = spawn_blocking(move || pool.sealed()).await.unwrap_or_default();
        sealed.into_iter().map(|sealed| sealed.manifest).collect()
    }

    /// How much of the memory that this node lends is used; absent where it lends none.
    pub(crate) async fn usage(&self) -> Option<steadfast::memory::Usage> {
        let pool = self.inner.pool.clone()?;
        spawn_blocking(move || pool.usage()).await.ok()
    }

    async fn tell(&self) {
        let Some(pool) = self.inner.pool.clone() else { return };
        let looked = spawn_blocking(move || (pool.usage().free, pool.sealed())).await;
        let (Ok((free, sealed)), Some(node)) = (looked, self.inner.node.get()) else { return };
        node.memory(free, sealed.into_iter().map(|sealed| sealed.manifest).collect());
    }

    /// Frees what the committed rows do not need.
    pub(crate) async fn collect(&self, rows: &Rows) {
        let Some(pool) = self.inner.pool.clone() else { return };
        let Some((revision, live)) = live(rows) else { return };
        match spawn_blocking(move || pool.retain(revision, &live)).await {
            Ok(freed) if freed.manifests > 0 => tracing::debug!(?freed, "checkpoint memory freed"),
            Ok(_) | Err(_) => {}
        }
        self.tell().await;
    }

    /// Ships an image to so many of these nodes, as far as there are; when this returns their cores know that they hold it.
    pub(crate) async fn ship(
        &self,
        image: &Path,
        row: &ContainerRow,
        number: u64,
        (holders, copies): (Vec<NodeId>, usize),
        revision: u64,
        meta: &Meta,
    ) -> Result<Shipped, String> {
        let key = self.inner.keys.sealing_key().ok_or("this node has no cluster key")?;
        let request = ShipRequest {
            container: row.id,
            epoch: row.epoch,
            number,
            holders,
            copies,
            key,
            revision,
            meta: serde_json::to_vec(meta).map_err(|error| error.to_string())?,
        };
        let shipped =
            memory::ship(image, request, &self.inner.peers).await.map_err(|error| ship_words(&error))?;
        for candidate in &shipped.passed_over {
            tracing::info!(%candidate, "a node does not hold the checkpoint");
        }
        let refreshed = shipped.holders.iter().map(|holder| {
            self.inner.peers.call(*holder, Class::Control, SERVICE_REFRESH, Bytes::new(), REFRESH_TIMEOUT)
        });
        for answer in futures_util::future::join_all(refreshed).await {
            if let Err(error) = answer {
                tracing::info!(%error, "a holder sealed the checkpoint and does not answer any more");
            }
        }
        Ok(shipped)
    }

    /// Fetches a checkpoint into a folder.
    pub(crate) async fn fetch(&self, checkpoint: &CheckpointRef, into: &Path) -> Result<Meta, String> {
        let request = FetchRequest {
            manifest: checkpoint.manifest,
            holders: checkpoint.copies.iter().copied().filter(|holder| *holder != self.inner.own).collect(),
            keys: self.inner.keys.keys(),
            into: into.to_path_buf(),
        };
        let fetched = memory::fetch(request, self.inner.pool.as_ref(), &self.inner.peers).await;
        let fetched = fetched.map_err(|error: FetchError| error.to_string())?;
        tracing::info!(
            number = checkpoint.number,
            local = fetched.chunks_local,
            remote = fetched.chunks_remote,
            "checkpoint fetched"
        );
        serde_json::from_slice(&fetched.manifest.meta)
            .map_err(|error| format!("the checkpoint's description can't be read: {error}"))
    }
}

async fn open_pool(config: &Config, services: &Services) -> Result<Pool, Failure> {
    let (folder, budget) = (config.memory_folder.clone(), config.memory_bytes);
    std::fs::create_dir_all(&folder).map_err(|error| disk("make the folder", &folder, &error))?;
    let opened = spawn_blocking(move || Pool::open(&folder, budget)).await;
    let opened = opened.map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
    let pool = opened.map_err(|error| pool_failure(&error))?;
    for damage in pool.damage() {
        tracing::warn!(?damage, "checkpoint memory was damaged; the damaged part was dropped");
    }
    memory::register(services, &pool);
    Ok(pool)
}

/// What the committed rows, as this node has them, need kept; `None` when one can't be read, so nothing may be freed.
fn live(rows: &Rows) -> Option<(u64, Vec<Live>)> {
    let stale = rows.catalog().range_stale("container/");
    let mut live = Vec::new();
    for (key, versioned) in &stale.rows {
        let (row, _): (ContainerRow, u64) = super::rows::decode(key, versioned).ok()?;
        let newest = row.latest.as_ref();
        live.push(Live {
            container: row.id,
            epoch: newest.map_or(Epoch(0), |newest| newest.epoch),
            number: newest.map_or(0, |newest| newest.number),
            manifests: row.checkpoints().map(|checkpoint| checkpoint.manifest).collect(),
        });
    }
    Some((stale.revision, live))
}

fn ship_words(error: &ShipError) -> String {
    let ShipError::NotEnoughMemory { need, candidates } = error else { return error.to_string() };
    let nodes: Vec<String> = candidates
        .iter()
        .map(|candidate| match candidate.free {
            Some(free) => format!("{} has {} free", candidate.node, human_size(free)),
            None => format!("{}: {}", candidate.node, candidate.reason),
        })
        .collect();
    let nodes =
        if nodes.is_empty() { "there is no other node that is well".to_owned() } else { nodes.join("; ") };
    format!("not enough checkpoint memory on other nodes: {} are needed; {nodes}", human_size(*need))
}

fn pool_failure(error: &OpenError) -> Failure {
    Failure::new(Code::DiskFailed, format!("checkpoint memory: {error}"))
}
