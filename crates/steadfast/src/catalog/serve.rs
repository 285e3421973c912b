//! A message that came from another member.
//!
//! It checks for whom and from which store the message is, hands it to the engine or to this node as leader, and always answers. It must never
//! panic on what it is given, nor hold more of a checkpoint than the bound. Read next: `wire`.

use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use super::CatalogError;
use super::embedded::Inner;
use super::engine::{RaftNodeId, SnapshotMeta, StoreId, Vote};
use super::machine::{IMAGE_BYTES_MAX, SnapshotImage};
use super::membership::MembershipError;
use super::watch::Feed;
use super::wire::{Envelope, Refusal, Request, Response, SnapshotChunk};

/// Longest time that a member may ask this node to work for it.
const WORK_MAX: Duration = Duration::from_secs(30);

/// A checkpoint that is arriving in pieces.
#[derive(Debug)]
pub(super) struct Incoming {
    from: RaftNodeId,
    vote: Vote,
    meta: SnapshotMeta,
    total: u64,
    pub(super) bytes: Vec<u8>,
}

/// Answers a message.
pub(super) async fn serve(inner: &Inner, request: &[u8]) -> Bytes {
    let (to, body) = match open(inner, request).await {
        Ok(envelope) => {
            ((envelope.from, envelope.from_store), answer(inner, envelope.from, envelope.body).await)
        }
        Err((to, refusal)) => (to, Response::Refused(refusal)),
    };
    encode(inner, to, body)
}

fn encode<T: Serialize>(inner: &Inner, to: (RaftNodeId, StoreId), body: T) -> Bytes {
    let own = (inner.node, inner.store.id());
    // An empty answer is malformed, which is what the other side then reports.
    Envelope::new(inner.peers.cluster(), own, to, body).encode().unwrap_or_default()
}

type Sender = (RaftNodeId, StoreId);

async fn open(inner: &Inner, request: &[u8]) -> Result<Envelope<Request>, (Sender, Refusal)> {
    let envelope =
        Envelope::<Request>::decode(request).map_err(|refusal| ((0, StoreId::UNKNOWN), refusal))?;
    let sender = (envelope.from, envelope.from_store);
    let refuse = |refusal| Err((sender, refusal));
    let own = inner.peers.cluster();
    if envelope.cluster != own && !adopt(inner, envelope.cluster).await {
        return refuse(Refusal::Cluster { found: envelope.cluster, own });
    }
    if envelope.to != inner.node {
        return refuse(Refusal::Member { found: envelope.to, own: inner.node });
    }
    let own = inner.store.id();
    if envelope.to_store != StoreId::UNKNOWN && envelope.to_store != own {
        tracing::warn!(member = inner.node, known = %envelope.to_store, %own, "another member knows this member with another store");
        return refuse(Refusal::Store { member: inner.node, known: envelope.to_store, found: own });
    }
    let known = inner.peers.known_store(envelope.from);
    if known != StoreId::UNKNOWN && known != envelope.from_store {
        let refusal = Refusal::Store { member: envelope.from, known, found: envelope.from_store };
        tracing::warn!(%refusal, "a message of the catalog was refused");
        return refuse(refusal);
    }
    if inner.shared.closed().is_some() {
        return refuse(Refusal::Closed);
    }
    Ok(envelope)
}

/// Lets a store that has nothing yet take the lineage of the cluster that speaks to it; whether it did.
///
/// The transport lets only nodes of the same cluster through. Lineages differ in the lower half of the name, clusters in both.
async fn adopt(inner: &Inner, name: u128) -> bool {
    let lineage = inner.peers.cluster_id() ^ name;
    if lineage >> u64::BITS != 0 {
        return false;
    }
    match inner.store.adopt(lineage).await {
        Ok(true) => {
            tracing::info!(
                member = inner.node,
                "this store joins a catalog that was recovered from a survivor"
            );
            inner.peers.adopt(name);
            true
        }
        // A store that failed is reported with the next message.
        Ok(false) | Err(_) => false,
    }
}

async fn answer(inner: &Inner, from: RaftNodeId, request: Request) -> Response {
    let closed = |_| Response::Refused(Refusal::Closed);
    match request {
        Request::Append(request) => {
            inner.raft.append_entries(request).await.map_or_else(closed, Response::Append)
        }
        Request::Vote(request) => inner.raft.vote(request).await.map_or_else(closed, Response::Vote),
        Request::PreVote(request) => inner.raft.pre_vote(request).await.map_or_else(closed, Response::Vote),
        Request::TransferLeader(request) => match inner.raft.handle_transfer_leader(request).await {
            Ok(result) => Response::TransferLeader(result.is_ok()),
            Err(_) => Response::Refused(Refusal::Closed),
        },
        Request::Snapshot(chunk) => take_chunk(inner, from, *chunk).await,
        Request::Write { command, timeout_ms } => {
            Response::Written(inner.write_as_leader(command, work_time(timeout_ms)).await)
        }
        Request::ReadIndex { timeout_ms } => {
            Response::ReadIndex(inner.read_index_as_leader(work_time(timeout_ms)).await)
        }
        Request::Change { change, timeout_ms } => {
            let deadline = Instant::now() + work_time(timeout_ms);
            Response::Changed(change_as_leader(inner, change, deadline).await)
        }
        Request::Hello => Response::Hello {
            store: inner.store.id(),
            applied_next: inner.shared.progress().borrow().applied_next,
        },
    }
}

async fn change_as_leader(
    inner: &Inner,
    change: super::membership::Change,
    deadline: Instant,
) -> Result<(), MembershipError> {
    if !inner.raft.is_leader() {
        let voters = inner.raft.voter_ids().count();
        return Err(CatalogError::NoMajority { node: inner.node, voters, waited_ms: 0 }.into());
    }
    super::membership::change(&inner.raft, &inner.peers, change, deadline).await
}

async fn take_chunk(inner: &Inner, from: RaftNodeId, chunk: SnapshotChunk) -> Response {
    if chunk.total > IMAGE_BYTES_MAX as u64 {
        return Response::Refused(Refusal::TooLarge { total: chunk.total });
    }
    let complete = {
        let mut incoming = inner.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        match collect(&mut incoming, from, chunk) {
            Ok(Some(complete)) => complete,
            Ok(None) => return Response::SnapshotMore,
            Err(refusal) => return Response::Refused(refusal),
        }
    };
    let image = SnapshotImage::Received(complete.bytes.into());
    // Looked at before the engine trusts it: it has no way back from a damaged one.
    if let Err(error) = image.load() {
        tracing::warn!(%error, from, "a checkpoint was refused");
        return Response::Refused(Refusal::Malformed);
    }
    let snapshot = openraft::Snapshot { meta: complete.meta, snapshot: image };
    match inner.raft.install_full_snapshot(complete.vote, snapshot).await {
        Ok(response) => Response::SnapshotDone(response),
        Err(_) => Response::Refused(Refusal::Closed),
    }
}

/// Adds a piece; gives the whole once it is complete.
pub(super) fn collect(
    incoming: &mut Option<Incoming>,
    from: RaftNodeId,
    chunk: SnapshotChunk,
) -> Result<Option<Incoming>, Refusal> {
    if chunk.offset == 0 {
        *incoming = Some(Incoming {
            from,
            vote: chunk.vote,
            meta: chunk.meta.clone(),
            total: chunk.total,
            bytes: Vec::new(),
        });
    }
    let Some(mut current) = incoming.take() else { return Err(Refusal::OutOfOrder) };
    let same = current.from == from
        && current.vote == chunk.vote
        && current.meta == chunk.meta
        && current.total == chunk.total;
    let fits = current.bytes.len() as u64 + chunk.data.len() as u64 <= current.total;
    if !same || chunk.offset != current.bytes.len() as u64 || !fits {
        return Err(Refusal::OutOfOrder);
    }
    current.bytes.extend_from_slice(&chunk.data);
    if current.bytes.len() as u64 == current.total {
        return Ok(Some(current));
    }
    *incoming = Some(current);
    Ok(None)
}

fn work_time(timeout_ms: u32) -> Duration {
    Duration::from_millis(timeout_ms.into()).min(WORK_MAX)
}
