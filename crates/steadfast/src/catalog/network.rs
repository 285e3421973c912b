//! How members reach each other: the engine's messages over a transport that somebody else provides.
//!
//! It decides how a message is cut to size and what an answer means to the engine. It must never report a majority that did not answer, and it
//! treats a member whose store is not the known one as unreachable. Read next: `wire` for the messages.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::BoxFuture;
use super::engine::{Engine, Member, RaftNodeId, StoreId, Vote};
use super::machine::SnapshotImage;
use super::store::{Store, entry_bytes};
use super::wire::{CHUNK_BYTES, Envelope, Refusal, Request, Response, SnapshotChunk};

type Snapshot = openraft::Snapshot<
    openraft::type_config::alias::CommittedLeaderIdOf<Engine>,
    RaftNodeId,
    Member,
    SnapshotImage,
>;

/// Bytes of log entries in one message; a single larger entry still goes.
const APPEND_BYTES_MAX: usize = 4 << 20;
/// How long an answer to log entries may take: it includes a sync of the other member's disk.
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an answer to a piece of a checkpoint may take; the last one includes its installation.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(20);

/// Carries messages between members; implemented by whoever owns the connections.
pub trait Transport: Send + Sync + 'static {
    /// Sends a request to a member and returns its answer. Both have at most [`super::MESSAGE_BYTES_MAX`] bytes.
    fn call(
        &self,
        to: RaftNodeId,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>>;
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The request certainly did not arrive.
    #[error("member {to} can't be reached: {reason}")]
    Unreachable {
        /// The member.
        to: RaftNodeId,
        /// What the network said.
        reason: String,
    },
    /// The request may have arrived; no answer came.
    #[error("no answer came from member {to}: {reason}")]
    Lost {
        /// The member.
        to: RaftNodeId,
        /// What happened.
        reason: String,
    },
}

/// Why a member did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("member {to} refused: {refusal}")]
    Refused { to: RaftNodeId, refusal: Refusal },
    #[error("member {to} gave an answer to another question")]
    Confused { to: RaftNodeId },
    #[error("the message to member {to} is larger than a message may be")]
    TooLarge { to: RaftNodeId },
}

impl AskError {
    /// Whether the member certainly did not act on the message.
    pub(crate) fn not_delivered(&self) -> bool {
        match self {
            Self::Transport(TransportError::Unreachable { .. })
            | Self::Refused { .. }
            | Self::TooLarge { .. } => true,
            Self::Transport(TransportError::Lost { .. }) | Self::Confused { .. } => false,
        }
    }
}

/// All that is needed to reach the other members.
pub(crate) struct Peers {
    cluster: u128,
    /// Which life of the cluster this store belongs to; see [`Peers::cluster`].
    lineage: RwLock<u128>,
    pub(crate) node: RaftNodeId,
    pub(crate) store: StoreId,
    transport: Arc<dyn Transport>,
    members: RwLock<BTreeMap<RaftNodeId, Member>>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Peers").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Peers {
    pub(crate) fn new(cluster: u128, node: RaftNodeId, store: &Store, transport: Arc<dyn Transport>) -> Self {
        let lineage = RwLock::new(store.lineage());
        Self { cluster, lineage, node, store: store.id(), transport, members: RwLock::default() }
    }

    /// The cluster, whatever became of it.
    pub(crate) fn cluster_id(&self) -> u128 {
        self.cluster
    }

    /// The name under which messages are exchanged: that of the cluster until it is recovered from a survivor, and then another, so
    /// that members that stayed behind are refused.
    pub(crate) fn cluster(&self) -> u128 {
        self.cluster ^ *self.lineage.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lineage of a message that was exchanged under `name`.
    pub(crate) fn adopt(&self, name: u128) {
        *self.lineage.write().unwrap_or_else(PoisonError::into_inner) = self.cluster ^ name;
    }

    /// Learns the members of the latest membership.
    pub(crate) fn learn(&self, members: BTreeMap<RaftNodeId, Member>) {
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// The store that a member is known with.
    pub(crate) fn known_store(&self, member: RaftNodeId) -> StoreId {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.get(&member).map_or(StoreId::UNKNOWN, |member| member.store)
    }

    /// Asks a member and checks that the answer comes from the store that it is known with.
    pub(crate) async fn ask(
        &self,
        to: RaftNodeId,
        request: Request,
        timeout: Duration,
    ) -> Result<Response, AskError> {
        let known = self.known_store(to);
        let envelope = Envelope::new(self.cluster(), (self.node, self.store), (to, known), request);
        let bytes = envelope.encode().ok_or(AskError::TooLarge { to })?;
        let answer = self.transport.call(to, bytes, timeout).await?;
        let answer =
            Envelope::<Response>::decode(&answer).map_err(|refusal| AskError::Refused { to, refusal })?;
        if let Response::Refused(refusal @ Refusal::Cluster { .. }) = answer.body {
            return Err(AskError::Refused { to, refusal });
        }
        if answer.cluster != self.cluster() || answer.from != to {
            return Err(AskError::Confused { to });
        }
        if known != StoreId::UNKNOWN && answer.from_store != known {
            let refusal = Refusal::Store { member: to, known, found: answer.from_store };
            return Err(AskError::Refused { to, refusal });
        }
        if let Response::Refused(refusal) = answer.body {
            return Err(AskError::Refused { to, refusal });
        }
        Ok(answer.body)
    }
}

/// Makes the engine's connections.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) peers: Arc<Peers>,
}

impl RaftNetworkFactory<Engine> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: RaftNodeId, _member: &Member) -> Peer {
        Peer { peers: Arc::clone(&self.peers), to: target }
    }
}

/// The engine's connection to one member.
#[derive(Debug)]
pub(crate) struct Peer {
    peers: Arc<Peers>,
    to: RaftNodeId,
}

impl Peer {
    async fn ask(&self, request: Request, timeout: Duration) -> Result<Response, RPCError<Engine>> {
        self.peers.ask(self.to, request, timeout).await.map_err(|error| {
            tracing::debug!(to = self.to, %error, "a message of the catalog was not answered");
            // The engine pauses before it tries an unreachable member again, and does not otherwise.
            if error.not_delivered() {
                return RPCError::Unreachable(Unreachable::new(&error));
            }
            RPCError::Network(NetworkError::new(&error))
        })
    }

    fn confused(&self) -> RPCError<Engine> {
        RPCError::Unreachable(Unreachable::new(&AskError::Confused { to: self.to }))
    }
}

impl RaftNetworkV2<Engine> for Peer {
    type SnapshotData = SnapshotImage;

    async fn append_entries(
        &mut self,
        mut request: AppendEntriesRequest<Engine>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Engine>, RPCError<Engine>> {
        let count = entries_that_fit(&request);
        let sent_last =
            (count < request.entries.len()).then(|| request.entries.get(count - 1).map(|entry| entry.log_id));
        request.entries.truncate(count);
        let timeout = if request.entries.is_empty() { option.soft_ttl() } else { APPEND_TIMEOUT };
        match (self.ask(Request::Append(request), timeout).await?, sent_last) {
            (Response::Append(AppendEntriesResponse::Success), Some(last)) => {
                Ok(AppendEntriesResponse::PartialSuccess(last))
            }
            (Response::Append(response), _) => Ok(response),
            _ => Err(self.confused()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Engine>,
        option: RPCOption,
    ) -> Result<VoteResponse<Engine>, RPCError<Engine>> {
        let answer = self.ask(Request::Vote(request), option.soft_ttl()).await?;
        let Response::Vote(response) = answer else { return Err(self.confused()) };
        Ok(response)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Engine>,
        option: RPCOption,
    ) -> Result<VoteResponse<Engine>, RPCError<Engine>> {
        let answer = self.ask(Request::PreVote(request), option.soft_ttl()).await?;
        let Response::Vote(response) = answer else { return Err(self.confused()) };
        Ok(response)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Engine>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Engine>, RPCError<Engine>> {
        // A member that declined is left alone: the next election decides.
        let answer = self.ask(Request::TransferLeader(request), option.soft_ttl()).await?;
        let Response::TransferLeader(_) = answer else { return Err(self.confused()) };
        Ok(Ok(()))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Engine>, StreamingError<Engine>> {
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot) => sent,
        }
    }
}

impl Peer {
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<Engine>, StreamingError<Engine>> {
        let image = snapshot.snapshot;
        let read = tokio::task::spawn_blocking(move || image.to_bytes()).await;
        let bytes = read.unwrap_or_else(|error| Err(io::Error::other(error)));
        let bytes = bytes.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))?;
        let total = bytes.len() as u64;
        let mut offset = 0;
        loop {
            let end = bytes.len().min(offset + CHUNK_BYTES);
            let data = bytes.slice(offset..end);
            let chunk =
                SnapshotChunk { vote, meta: snapshot.meta.clone(), offset: offset as u64, total, data };
            let answer = self.ask(Request::Snapshot(Box::new(chunk)), CHUNK_TIMEOUT).await?;
            if let Response::SnapshotDone(response) = answer {
                // Also before the end: the other member follows a later leader.
                return Ok(response);
            }
            if !matches!(answer, Response::SnapshotMore) || end == bytes.len() {
                return Err(self.confused().into());
            }
            offset = end;
        }
    }
}

/// How many entries of a request go into one message: at least one.
fn entries_that_fit(request: &AppendEntriesRequest<Engine>) -> usize {
    let mut bytes = 0;
    for (count, entry) in request.entries.iter().enumerate() {
        bytes += entry_bytes(entry);
        if bytes > APPEND_BYTES_MAX && count > 0 {
            return count;
        }
    }
    request.entries.len()
}
