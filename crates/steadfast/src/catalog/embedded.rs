//! One node's part in the catalog: the engine on a durable store, behind the [`Catalog`] trait.
//!
//! It opens and closes the store, forms and changes the membership, keeps the log short and the term moving when a leader is dead.
//! It must never answer for a majority that did not answer, nor go on after its store failed.
//! Read next: `client` (a request of this node on its way to the leader), `serve` (a message that came), `membership`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{InitializeError as EngineInitializeError, RaftError};
use openraft::raft::TransferLeaderRequest;
use openraft::{Config, Instant as _, RaftMetrics, ServerState, SnapshotPolicy};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::client::{PENDING_MAX, Stamps};
use super::engine::{Engine, Member, Raft, RaftNodeId, StoreId};
use super::machine::{Machine, Shared, members};
use super::membership::{Change, MembershipError, split};
use super::network::{Network, Peers, Transport};
use super::serve::Incoming;
use super::store::{Owner, Restored, Store, StoreError};
use super::watch::{Feed, LocalWatch};
use super::{
    BoxFuture, Catalog, CatalogError, CatalogStatus, EngineKind, Role, Rows, Txn, TxnReply, Versioned,
    WatchStream, check_key,
};

/// Entries and bytes of log after which a checkpoint is made.
const CHECKPOINT_ENTRIES: u64 = 4096;
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// Entries and bytes of log that are kept behind a checkpoint, for members that are a little late.
const KEEP_ENTRIES: u64 = 1024;
const KEEP_BYTES: u64 = 2 << 20;
/// What each further voter waits before it stands in the place of a dead leader, so that they do not take votes from each other.
const CAMPAIGN_STEP: Duration = Duration::from_millis(60);

/// What a node needs to take part.
#[derive(Clone)]
pub struct EmbeddedConfig {
    /// Directory of the store; made if it is not there.
    pub dir: PathBuf,
    /// Number of this member; never given twice.
    pub node: RaftNodeId,
    /// The cluster; messages and stores of another one are refused.
    pub cluster_id: u128,
    /// How other members are reached.
    pub transport: Arc<dyn Transport>,
    /// When to expect what.
    pub timings: Timings,
}

impl std::fmt::Debug for EmbeddedConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("EmbeddedConfig")
            .field("dir", &self.dir)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// Times of the catalog. All members should have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// How often a leader is heard. Default 50 ms; shorter costs processor time while idle.
    pub heartbeat: Duration,
    /// Shortest silence after which a voter stands for election. Default 300 ms; at least three heartbeats.
    pub election_min: Duration,
    /// Longest such silence, and how long a leader may act on its last majority. Default 600 ms.
    pub election_max: Duration,
    /// How long a request waits for a majority before it is refused. Default 5 s.
    pub request_timeout: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
            request_timeout: Duration::from_secs(5),
        }
    }
}

/// Why a node can't take part.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The timings contradict each other.
    #[error(
        "the catalog timings are wrong: heartbeat {heartbeat_ms} ms < election_min {election_min_ms} ms < election_max {election_max_ms} ms must hold"
    )]
    Timings {
        /// Given heartbeat in milliseconds.
        heartbeat_ms: u64,
        /// Given shortest silence in milliseconds.
        election_min_ms: u64,
        /// Given longest silence in milliseconds.
        election_max_ms: u64,
    },
    /// The engine did not start.
    #[error("the catalog engine did not start: {reason}")]
    Engine {
        /// What it said.
        reason: String,
    },
}

/// Why a new catalog was not formed.
#[derive(Debug, thiserror::Error)]
pub enum InitializeError {
    /// This node belongs to a catalog already. Nothing changed.
    #[error("node {node} is a member of a catalog already; a catalog is initialized once, on one node")]
    AlreadyMember {
        /// This node.
        node: RaftNodeId,
    },
    /// The catalog closed meanwhile.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// One member of the catalog. Clones are the same member.
///
/// Use: [`open`](Self::open) it; on the first node of a cluster [`initialize`](Self::initialize); on others nothing: a member calls
/// [`add_learner`](Self::add_learner) and, when they should vote, [`promote`](Self::promote). Give every message that the transport receives to
/// [`handle`](Self::handle). Then use it as a [`Catalog`]. At the end [`shutdown`](Self::shutdown).
#[derive(Clone, Debug)]
pub struct Embedded {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) node: RaftNodeId,
    pub(super) raft: Raft,
    pub(super) store: Store,
    pub(super) shared: Arc<Shared>,
    pub(super) peers: Arc<Peers>,
    pub(super) timings: Timings,
    pub(super) stamps: Mutex<Stamps>,
    pub(super) permits: Semaphore,
    pub(super) incoming: Mutex<Option<Incoming>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Embedded {
    /// Opens the store and takes part with what it holds. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`OpenError`] if the store is damaged, foreign or in use, or the timings are wrong; nothing was changed then.
    pub async fn open(config: EmbeddedConfig) -> Result<Self, OpenError> {
        let owner = Owner { cluster: config.cluster_id, node: config.node };
        let dir = config.dir.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(&dir, owner, StoreId(random()))).await;
        let (store, restored) = opened.map_err(|error| OpenError::Engine { reason: error.to_string() })??;
        Self::start(config, store, restored).await
    }

    /// Takes part with a store that is open.
    pub(super) async fn start(
        config: EmbeddedConfig,
        store: Store,
        restored: Restored,
    ) -> Result<Self, OpenError> {
        let engine_config = engine_config(&config)?;
        let peers = Arc::new(Peers::new(config.cluster_id, config.node, &store, config.transport));
        peers.learn(members(&restored.meta.last_membership));
        let machine = Machine::new(config.node, store.clone(), restored);
        let shared = machine.shared();
        let network = Network { peers: Arc::clone(&peers) };
        let raft = Raft::new(config.node, Arc::new(engine_config), network, store.clone(), machine).await;
        let raft = raft.map_err(|error| OpenError::Engine { reason: error.to_string() })?;
        let keeper = tokio::spawn(keep(raft.clone(), store.clone(), Arc::clone(&shared), Arc::clone(&peers)));
        let inner = Inner {
            node: config.node,
            raft,
            store,
            shared,
            peers,
            timings: config.timings,
            stamps: Mutex::new(Stamps::new(config.node, random())),
            permits: Semaphore::new(PENDING_MAX),
            incoming: Mutex::new(None),
            keeper: Mutex::new(Some(keeper)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The name of this member's store.
    #[must_use]
    pub fn store_id(&self) -> StoreId {
        self.inner.store.id()
    }

    /// Forms a new catalog with this node as its only voter. Called once, on the first node of a cluster.
    ///
    /// # Errors
    /// [`InitializeError::AlreadyMember`] if this node belongs to a catalog.
    pub async fn initialize(&self, addresses: Vec<String>) -> Result<(), InitializeError> {
        let node = self.inner.node;
        let member = Member { addresses, store: self.inner.store.id() };
        match self.inner.raft.initialize(BTreeMap::from([(node, member)])).await {
            Ok(()) => {
                // It elects itself at once; until that shows it would still call itself no member.
                let deadline = Instant::now() + self.inner.timings.request_timeout;
                let mut metrics = self.inner.raft.metrics();
                while metrics.borrow_and_update().current_leader.is_none() {
                    if !matches!(tokio::time::timeout_at(deadline, metrics.changed()).await, Ok(Ok(()))) {
                        return Err(self
                            .inner
                            .shared
                            .closed_error("its engine did not start to lead")
                            .into());
                    }
                }
                Ok(())
            }
            Err(RaftError::APIError(
                EngineInitializeError::NotAllowed(_) | EngineInitializeError::NotInMembers(_),
            )) => Err(InitializeError::AlreadyMember { node }),
            Err(RaftError::Fatal(fatal)) => Err(self.inner.shared.closed_error(&fatal.to_string()).into()),
        }
    }

    /// Adds a node that holds a copy and has no vote. It need not run yet. Any member may call this.
    ///
    /// # Errors
    /// [`MembershipError::NumberTaken`] if the number belongs to another node or store.
    pub async fn add_learner(&self, node: RaftNodeId, member: Member) -> Result<(), MembershipError> {
        self.change(Change::AddLearner(node, member)).await
    }

    /// Gives a learner a vote once it has caught up; waits for that within the request time-out. Any member may call this.
    ///
    /// # Errors
    /// [`MembershipError::Unreachable`] or [`MembershipError::NotCaughtUp`]: it stays a learner.
    pub async fn promote(&self, node: RaftNodeId) -> Result<(), MembershipError> {
        self.change(Change::Promote(node)).await
    }

    /// Removes a member, whether it runs or not. Any member may call this, also the one that leaves.
    ///
    /// # Errors
    /// [`MembershipError::WouldLoseMajority`] if the remaining voters that answer would be no majority.
    pub async fn remove(&self, node: RaftNodeId) -> Result<(), MembershipError> {
        self.change(Change::Remove(node)).await
    }

    /// Takes a member's vote; it goes on to follow. Nothing happens to one that has none.
    ///
    /// # Errors
    /// [`MembershipError::WouldLoseMajority`] if the remaining voters that answer would be no majority.
    pub async fn demote(&self, node: RaftNodeId) -> Result<(), MembershipError> {
        self.change(Change::Demote(node)).await
    }

    /// Elects a new leader now, because the detector's verdict is that `dead` is dead. Does nothing if another node leads, or if this node has no
    /// vote. Every voter may call it at the same time. A wrong verdict costs an election and no data.
    pub async fn campaign(&self, dead: RaftNodeId) {
        let rank = {
            let metrics = self.inner.raft.metrics();
            let metrics = metrics.borrow_watched();
            let mut voters: Vec<RaftNodeId> =
                metrics.membership_config.voter_ids().filter(|voter| *voter != dead).collect();
            voters.sort_unstable();
            voters.iter().position(|voter| *voter == self.inner.node)
        };
        let Some(rank) = rank else { return };
        let patience = CAMPAIGN_STEP * u32::try_from(rank).unwrap_or(u32::MAX);
        if self.other_leader_within(patience, dead).await {
            return;
        }
        let vote = self.inner.raft.metrics().borrow_watched().vote;
        tracing::info!(dead, node = self.inner.node, "standing for election in the place of a dead leader");
        // The engine's own way to vote before the leader's lease is over: as if that leader had asked for it.
        let transfer = TransferLeaderRequest::new(vote, self.inner.node, None);
        if !matches!(self.inner.raft.handle_transfer_leader(transfer).await, Ok(Ok(()))) {
            // Nobody led, so there is no lease either. The error of a closed node is seen by the next request.
            let _ = self.inner.raft.trigger().elect(false).await;
        }
    }

    /// Answers a message that another member sent. Never fails: what can't be answered is refused in the answer.
    pub async fn handle(&self, request: Bytes) -> Bytes {
        super::serve::serve(&self.inner, &request).await
    }

    /// Leaves nothing half written and closes the store. Watches end with [`CatalogError::Closed`].
    pub async fn shutdown(&self) {
        // An engine that stopped because of its store is down already.
        let _ = self.inner.raft.shutdown().await;
        self.inner.shared.close("it was shut down".into());
        let keeper = self.inner.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            keeper.abort();
            // Aborted on purpose.
            let _ = keeper.await;
        }
        let store = self.inner.store.clone();
        if tokio::task::spawn_blocking(move || store.close()).await.is_err() {
            tracing::error!("closing the catalog store panicked");
        }
    }

    async fn change(&self, change: Change) -> Result<(), MembershipError> {
        let deadline = Instant::now() + self.inner.timings.request_timeout;
        self.inner.change(change, deadline).await
    }

    /// Waits until somebody else than `dead` leads, at most so long.
    async fn other_leader_within(&self, patience: Duration, dead: RaftNodeId) -> bool {
        let mut metrics = self.inner.raft.metrics();
        let deadline = Instant::now() + patience;
        loop {
            if metrics.borrow_and_update().current_leader.is_some_and(|leader| leader != dead) {
                return true;
            }
            if !matches!(tokio::time::timeout_at(deadline, metrics.changed()).await, Ok(Ok(()))) {
                return false;
            }
        }
    }
}

impl Catalog for Embedded {
    fn get(&self, key: String) -> BoxFuture<'_, Result<Option<Versioned>, CatalogError>> {
        Box::pin(async move {
            check_key(&key)?;
            self.inner.read_barrier().await?;
            Ok(self.inner.shared.row(&key).1)
        })
    }

    fn range(&self, prefix: String) -> BoxFuture<'_, Result<Rows, CatalogError>> {
        Box::pin(async move {
            self.inner.read_barrier().await?;
            Ok(self.inner.shared.rows_under(&prefix))
        })
    }

    fn get_stale(&self, key: &str) -> (u64, Option<Versioned>) {
        self.inner.shared.row(key)
    }

    fn range_stale(&self, prefix: &str) -> Rows {
        self.inner.shared.rows_under(prefix)
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, CatalogError>> {
        Box::pin(self.inner.txn(txn))
    }

    fn watch(&self, prefix: String, from: u64) -> WatchStream {
        WatchStream::new(Box::new(LocalWatch { feed: Arc::clone(&self.inner.shared), prefix, from }))
    }

    fn leader(&self) -> Option<RaftNodeId> {
        self.inner.raft.metrics().borrow_watched().current_leader
    }

    fn status(&self) -> CatalogStatus {
        let failure = self.inner.shared.closed().map(|error| error.to_string());
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (voters, learners) = split(&metrics.membership_config);
        let role = match metrics.state {
            _ if failure.is_some() => Role::Closed,
            ServerState::Leader => Role::Leader,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Learner => Role::Learner,
            ServerState::Shutdown => Role::Closed,
        };
        CatalogStatus {
            engine: EngineKind::Embedded,
            node: self.inner.node,
            role,
            leader: metrics.current_leader,
            term: metrics.current_term,
            applied: metrics.last_applied.map_or(0, |applied| applied.index()),
            last_log: metrics.last_log_index.unwrap_or(0),
            revision: self.inner.shared.progress().borrow().revision,
            has_quorum: role != Role::Closed
                && has_quorum(&metrics, voters.len(), self.inner.timings.election_max),
            voters,
            learners,
            failure,
            unreachable: None,
        }
    }
}

fn has_quorum(metrics: &RaftMetrics<Engine>, voters: usize, lease: Duration) -> bool {
    if metrics.current_leader != Some(metrics.id) {
        return metrics.current_leader.is_some();
    }
    voters == 1 || metrics.last_quorum_acked.is_some_and(|acked| acked.elapsed() <= lease)
}

fn engine_config(config: &EmbeddedConfig) -> Result<Config, OpenError> {
    let timings = &config.timings;
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let wrong = || OpenError::Timings {
        heartbeat_ms: ms(timings.heartbeat),
        election_min_ms: ms(timings.election_min),
        election_max_ms: ms(timings.election_max),
    };
    let engine = Config {
        cluster_name: format!("{:032x}", config.cluster_id),
        heartbeat_interval: ms(timings.heartbeat),
        election_timeout_min: ms(timings.election_min),
        election_timeout_max: ms(timings.election_max),
        // The keeper decides by entries and by bytes.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        // A leader that comes back must win an election: what it had committed it learns from that alone.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    engine.validate().map_err(|_| wrong())
}

/// Follows the engine: learns members, makes checkpoints, drops old log, notices the end.
async fn keep(raft: Raft, store: Store, shared: Arc<Shared>, peers: Arc<Peers>) {
    let mut metrics = raft.metrics();
    let mut membership = None;
    let mut asked_for = None;
    loop {
        let seen = metrics.borrow_and_update().clone();
        if let Err(fatal) = &seen.running_state {
            let reason = store.failure().map_or_else(|| fatal.to_string(), |failure| failure.to_string());
            shared.close(reason);
            return;
        }
        if membership.as_ref() != Some(seen.membership_config.log_id()) {
            membership = Some(*seen.membership_config.log_id());
            peers.learn(members(&seen.membership_config));
        }
        tidy_log(&raft, &store, &seen, &mut asked_for).await;
        if metrics.changed().await.is_err() {
            shared.close("its engine ended".into());
            return;
        }
    }
}

/// Makes a checkpoint when the log since the last one is long, and drops the log behind it.
async fn tidy_log(raft: &Raft, store: &Store, seen: &RaftMetrics<Engine>, asked_for: &mut Option<u64>) {
    let checkpoint = seen.snapshot.map(|id| id.index());
    let applied = seen.last_applied.map(|id| id.index());
    let (entries, bytes) = store.log_size_after_checkpoint(checkpoint);
    if (entries > CHECKPOINT_ENTRIES || bytes > CHECKPOINT_BYTES)
        && applied > checkpoint
        && *asked_for <= checkpoint
    {
        *asked_for = applied;
        // An engine that stopped is noticed by the keeper's next look.
        let _ = raft.trigger().snapshot().await;
    }
    if let Some(upto) =
        checkpoint.and_then(|checkpoint| store.keep_from(checkpoint, KEEP_ENTRIES, KEEP_BYTES))
    {
        let _ = raft.trigger().purge_log(upto).await;
    }
}

/// A number that nobody else draws.
pub(super) fn random() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    // Some bits of a UUID are fixed; the halves together have none. Zero stands for an unknown store.
    (high ^ low.rotate_left(32)).max(1)
}
