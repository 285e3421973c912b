//! This node's part in the catalog: opening it, carrying its messages, founding it, and being admitted to it.
//!
//! A node that founded the cluster writes the first rows at its first start, idempotently. Every other node asks
//! known ones until it votes: first a copy, then a vote (or only a copy beyond [`VOTERS_MAX`]); free votes
//! are spread over failure domains. It never decides who belongs to the cluster: the node rows that invitations made do.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use steadfast::catalog::{
    BoxFuture, Catalog, Embedded, EmbeddedConfig, InitializeError, Member, OpenError, RaftNodeId, Role,
    StoreError, Timings, Transport, TransportError, Txn,
};
use steadfast::net::rpc::{Class, Peers, RpcError, Services};
use steadfast_proto::catalog::{ClusterRow, Key, NodeRow, View};
use steadfast_proto::domains;
use steadfast_proto::ids::{ClusterId, Incarnation, NodeId};

use super::admit::Hears;
use super::engine::{self, Engine};
use super::rows::{self, Rows};
use super::state::{Founder, Hint, engine_id};
use crate::codes::Code;
use crate::config::Config;
use crate::config::catalog::CatalogConfig;
use crate::failure::Failure;

/// The RPC service that carries the engine's messages.
pub(crate) const SERVICE_ENGINE: u8 = 16;
/// The RPC service through which a node asks to be admitted to the engine.
const SERVICE_ADMIT: u8 = 17;
/// The RPC service through which a node that starts asks whether another one claims its identity.
const SERVICE_GREET: u8 = 18;
/// Most voters; further nodes hold a copy.
const VOTERS_MAX: usize = 5;
/// The detector's verdict triggers an election when a leader dies, so the engine's own time-outs can be patient: few
/// heartbeats, which are most of what an idle cluster sends over TCP, and no election because of a busy machine.
const TIMINGS: Timings = Timings {
    heartbeat: Duration::from_millis(300),
    election_min: Duration::from_millis(1000),
    election_max: Duration::from_millis(1600),
    request_timeout: Duration::from_secs(5),
};
const ADMIT_PAUSE: Duration = Duration::from_millis(300);
/// How often a node looks whether it still has its vote.
const VOTE_PAUSE: Duration = Duration::from_secs(2);
const ADMIT_TIMEOUT: Duration = Duration::from_secs(12);
const GREET_TIMEOUT: Duration = Duration::from_millis(1500);

/// Carries the engine's messages over the pool of connections.
#[derive(Debug)]
pub(crate) struct PeersTransport {
    peers: Peers,
    nodes: RwLock<BTreeMap<RaftNodeId, NodeId>>,
}

impl PeersTransport {
    pub(crate) fn new(peers: Peers) -> PeersTransport {
        PeersTransport { peers, nodes: RwLock::default() }
    }

    /// Tells which node has which number in the engine.
    pub(crate) fn learn(&self, engine_id: RaftNodeId, node: NodeId) {
        self.nodes.write().unwrap_or_else(PoisonError::into_inner).insert(engine_id, node);
    }

    /// The node behind a number.
    pub(crate) fn node(&self, engine_id: RaftNodeId) -> Option<NodeId> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(&engine_id).copied()
    }
}

impl Transport for PeersTransport {
    fn call(
        &self,
        to: RaftNodeId,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move {
            let Some(node) = self.node(to) else {
                return Err(TransportError::Unreachable {
                    to,
                    reason: "its address is not known here yet".to_owned(),
                });
            };
            let answer = self.peers.call(node, Class::Raft, SERVICE_ENGINE, request, timeout).await;
            answer.map_err(|error| {
                let reason = error.to_string();
                if error.is_certainly_unsent() || matches!(error, RpcError::Refused { .. }) {
                    TransportError::Unreachable { to, reason }
                } else {
                    TransportError::Lost { to, reason }
                }
            })
        })
    }
}

/// Opens the engine that is configured.
pub(crate) async fn open(
    config: &Config,
    cluster: ClusterId,
    node: NodeId,
    transport: Arc<PeersTransport>,
    services: &Services,
) -> Result<Engine, Failure> {
    match &config.catalog {
        CatalogConfig::Embedded => {
            open_embedded(&config.data, cluster, node, transport, services).await.map(Engine::Embedded)
        }
        CatalogConfig::Etcd(settings) => {
            let etcd = engine::open_etcd(settings, cluster, node).await?;
            Ok(Engine::Etcd(etcd, settings.clone()))
        }
    }
}

/// Opens this node's store and offers it to the others.
async fn open_embedded(
    data: &std::path::Path,
    cluster: ClusterId,
    node: NodeId,
    transport: Arc<PeersTransport>,
    services: &Services,
) -> Result<Embedded, Failure> {
    let config = EmbeddedConfig {
        dir: data.join("catalog"),
        node: engine_id(node),
        cluster_id: cluster.0,
        transport,
        timings: TIMINGS,
    };
    let embedded = Embedded::open(config).await.map_err(|error| open_failure(&error))?;
    let engine = embedded.clone();
    services.register(SERVICE_ENGINE, move |_, request| {
        let engine = engine.clone();
        Box::pin(async move { Ok(engine.handle(request).await) })
    });
    Ok(embedded)
}

fn open_failure(error: &OpenError) -> Failure {
    let code = match error {
        OpenError::Store(StoreError::Io { .. }) => Code::DiskFailed,
        OpenError::Store(_) => Code::StateCorrupt,
        OpenError::Timings { .. } | OpenError::Engine { .. } => Code::Internal,
    };
    Failure::new(code, error.to_string())
}

/// Makes the catalog of a new cluster and its first rows; does nothing where they are there already.
pub(crate) async fn found(
    engine: &Engine,
    rows: &Rows,
    founder: &Founder,
    cluster: (ClusterId, &str),
    own: NodeRow,
    incarnation: Incarnation,
) -> Result<(), Failure> {
    if let Some(embedded) = engine.embedded() {
        let addresses = own.addresses.iter().map(|(_, address)| address.to_string()).collect();
        match embedded.initialize(addresses).await {
            Ok(()) | Err(InitializeError::AlreadyMember { .. }) => {}
            Err(InitializeError::Catalog(error)) => return Err(rows::catalog_failure(&error)),
        }
    }
    if rows.catalog().get_stale(&Key::Cluster.encode()).1.is_some() {
        return Ok(());
    }
    let cluster_row = ClusterRow {
        id: cluster.0,
        name: cluster.1.to_owned(),
        lease_ms: founder.lease_ms,
        created_unix_ms: founder.created_unix_ms,
    };
    let view = View::founded(own.id, incarnation);
    let (record, _) = view.record(BTreeMap::new(), founder.created_unix_ms);
    let txn = Txn {
        compare: vec![(Key::Cluster.encode(), 0)],
        puts: vec![
            (Key::Cluster.encode(), Some(rows::encode(&cluster_row)?)),
            (Key::View.encode(), Some(rows::encode(&view)?)),
            (Key::ViewRecord(view.id).encode(), Some(rows::encode(&record)?)),
            (Key::Node(own.id).encode(), Some(rows::encode(&own)?)),
        ],
    };
    let reply = rows.commit(txn).await?;
    let (false, Engine::Etcd(_, settings)) = (reply.succeeded, engine) else { return Ok(()) };
    // A comparison that fails means that an earlier start did it, or another cluster at the same moment.
    match rows.get::<ClusterRow>(&Key::Cluster).await? {
        Some((row, _)) if row.id != cluster.0 => Err(engine::holds_another(settings, &row)),
        Some(_) | None => Ok(()),
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AdmitRequest {
    engine_id: u64,
    addresses: Vec<String>,
}

/// Offers admission to the engine to nodes that have a row.
pub(crate) fn offer_admission(services: &Services, embedded: &Embedded) {
    let engine = embedded.clone();
    services.register(SERVICE_ADMIT, move |peer, request| {
        let engine = engine.clone();
        Box::pin(async move { admit(&engine, peer, &request).await })
    });
}

async fn admit(engine: &Embedded, peer: NodeId, request: &[u8]) -> Result<Bytes, String> {
    let request: AdmitRequest =
        serde_json::from_slice(request).map_err(|error| format!("not a request for admission: {error}"))?;
    let row = engine.get(Key::Node(peer).encode()).await.map_err(|error| error.to_string())?;
    let row =
        row.ok_or_else(|| format!("node {peer} has no row in the catalog; it must join with a token first"))?;
    let row: NodeRow = steadfast_proto::catalog::decode_row(&row.value).map_err(|error| error.to_string())?;
    if row.engine_id != request.engine_id {
        return Err(format!(
            "node {peer} asks under number {}, and its row says {}",
            request.engine_id, row.engine_id
        ));
    }
    let status = engine.status();
    if !status.voters.contains_key(&row.engine_id) && !status.learners.contains_key(&row.engine_id) {
        engine
            .add_learner(row.engine_id, Member::new(request.addresses))
            .await
            .map_err(|error| error.to_string())?;
    }
    if has_vote_for(engine, &row) {
        engine.promote(row.engine_id).await.map_err(|error| error.to_string())?;
    }
    Ok(Bytes::new())
}

/// Whether there is a vote for `applicant`: votes that are free go to members in failure domains of their own first.
fn has_vote_for(engine: &Embedded, applicant: &NodeRow) -> bool {
    let status = engine.status();
    let rows: Vec<NodeRow> = (engine.range_stale("node/").rows.iter())
        .filter_map(|(_, row)| steadfast_proto::catalog::decode_row(&row.value).ok())
        .collect();
    let view = engine.get_stale(&Key::View.encode()).1;
    let view: Option<View> = view.and_then(|row| steadfast_proto::catalog::decode_row(&row.value).ok());
    // Who is no member yet, or no longer, follows the catalog and counts nowhere (PROTOCOLS 3.4, VM3).
    if !view.as_ref().is_some_and(|view| view.has(applicant.id)) {
        return false;
    }
    // One that is away would keep its vote free for nobody.
    let is_there = |row: &NodeRow| {
        status.learners.contains_key(&row.engine_id) && view.as_ref().is_some_and(|view| view.has(row.id))
    };
    let (voters, others): (Vec<NodeRow>, Vec<NodeRow>) =
        rows.into_iter().partition(|row| status.voters.contains_key(&row.engine_id));
    let mut candidates: BTreeMap<NodeId, Vec<String>> = (others.into_iter())
        .filter(|row| row.id == applicant.id || is_there(row))
        .map(|row| (row.id, row.domain))
        .collect();
    let mut chosen: Vec<Vec<String>> = voters.into_iter().map(|row| row.domain).collect();
    for _ in status.voters.len()..VOTERS_MAX {
        let left = candidates.iter().map(|(node, domain)| (*node, domain.as_slice()));
        match domains::furthest(left, chosen.iter().map(Vec::as_slice)) {
            Some(next) if next == applicant.id => return true,
            Some(next) => chosen.extend(candidates.remove(&next)),
            None => return false,
        }
    }
    false
}

/// Asks known nodes for admission until this node follows the catalog, and for a vote whenever it has none and there is room:
/// who asks is told nothing wrong, as only members get one.
pub(crate) async fn seek_admission(
    embedded: Embedded,
    peers: Peers,
    hints: Vec<Hint>,
    addresses: Vec<String>,
    own: NodeId,
) {
    let request = AdmitRequest { engine_id: engine_id(own), addresses };
    let Ok(body) = serde_json::to_vec(&request) else { return };
    let mut said = None;
    loop {
        let status = embedded.status();
        let (follows, votes) = match status.role {
            Role::Leader | Role::Follower | Role::Candidate => (true, true),
            Role::Learner => (status.learners.contains_key(&request.engine_id), false),
            Role::Client | Role::Closed => return,
        };
        let votes = votes && status.voters.contains_key(&request.engine_id);
        // What this node has of the membership may be of before it was taken off: then nobody leads it.
        let is_led = embedded.leader().is_some();
        if follows && said != Some(votes) {
            tracing::info!(voters = status.voters.len(), votes, "this node takes part in the catalog");
            said = Some(votes);
        }
        if is_led && (votes || (follows && status.voters.len() >= VOTERS_MAX)) {
            tokio::time::sleep(VOTE_PAUSE).await;
            continue;
        }
        for hint in &hints {
            let Ok(node) = hint.node.parse::<NodeId>() else { continue };
            if node == own {
                continue;
            }
            match peers.call(node, Class::Control, SERVICE_ADMIT, body.clone(), ADMIT_TIMEOUT).await {
                Ok(_) => break,
                Err(error) => tracing::info!(%error, "not admitted to the catalog yet"),
            }
        }
        tokio::time::sleep(ADMIT_PAUSE).await;
    }
}

/// Answers nodes that start: who else lives under their identity, in words, or nothing. `hears` says whether this node hears
/// the node id alive now.
pub(crate) fn offer_greetings(services: &Services, rows: &Rows, hears: Hears) {
    let rows = rows.clone();
    services.register(SERVICE_GREET, move |peer, request| {
        let (rows, hears) = (rows.clone(), Arc::clone(&hears));
        Box::pin(async move {
            let fingerprint = String::from_utf8_lossy(&request).into_owned();
            let Some((row, _)) = rows.get_stale::<NodeRow>(&Key::Node(peer)) else { return Ok(Bytes::new()) };
            if row.fingerprint == fingerprint || !hears(peer).await {
                return Ok(Bytes::new());
            }
            Ok(Bytes::from(format!(
                "{} lives on a machine with fingerprint {} already, and this one has {fingerprint}",
                row.name, row.fingerprint
            )))
        })
    });
}

/// Asks the others whether somebody lives under this node's identity; refuses to start then (4.5, ClonedIdentity).
///
/// A folder in its own place waits for half of them only: it asks because a copy may have been taken for the moved
/// original while it was down. Says whether so many answered.
pub(crate) async fn refuse_clone(
    peers: &Peers,
    others: &[NodeId],
    fingerprint: &str,
    moved: bool,
) -> Result<bool, Failure> {
    let ask = |other: NodeId| async move {
        peers.call(other, Class::Control, SERVICE_GREET, fingerprint.as_bytes().to_vec(), GREET_TIMEOUT).await
    };
    let mut asked: FuturesUnordered<_> = others.iter().map(|other| ask(*other)).collect();
    let mut answered = 0;
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(claim) if claim.is_empty() => answered += 1,
            Ok(claim) => {
                let reason = String::from_utf8_lossy(&claim);
                return Err(Failure::new(
                    Code::IdentityCloned,
                    format!(
                        "{reason}: this data folder is a copy; run `steadfast reidentify` here and join anew with a token of its own"
                    ),
                ));
            }
            // One that is starting itself, or can't be reached, claims nothing.
            Err(_) => {}
        }
        if !moved && 2 * answered >= others.len() {
            break;
        }
    }
    Ok(2 * answered >= others.len())
}
