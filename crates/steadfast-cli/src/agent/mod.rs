//! The agent: joins identity, catalog, network, checkpoint memory, containers and the core into one running node.
//!
//! This file decides the order in which they start and stop, and nothing else: what happens in the cluster is decided
//! by the core (`steadfast_proto::node`), what containers do by `steadfast-container`. Read `worker` for how jobs are
//! carried out and `verbs` for what users can ask.

pub(crate) mod admit;
mod catalog;
mod containers;
mod exec;
pub mod found;
#[doc(hidden)]
pub mod fuzzing;
mod holders;
pub mod join;
mod links;
mod listen;
mod logs;
mod machine;
mod memory;
mod report;
mod rows;
mod state;
#[cfg(test)]
mod tests;
mod verbs;
mod verdicts;
mod worker;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sd_notify::NotifyState;
use steadfast::catalog::{Catalog, Embedded};
use steadfast::identity::{Identity, Membership};
use steadfast::net::datagram;
use steadfast::net::rpc::{Limits, Listener, Peers, Services};
use steadfast::net::tls::Credentials;
use steadfast::node::{NodeHandle, Parts, Unanswered, WatchParts};
use steadfast_proto::catalog::{Key, NodeRow};
use steadfast_proto::ids::NodeId;
use steadfast_proto::node::Settings;
use tokio::signal::unix::{SignalKind, signal};

use self::admit::Inviter;
use self::catalog::PeersTransport;
use self::containers::Containers;
pub(crate) use self::containers::spec as container_spec;
pub(crate) use self::links::Registration;
pub(crate) use self::machine::on_path;
use self::memory::Memory;
use self::rows::Rows;
use self::state::State;
pub(crate) use self::verdicts::Held;
use crate::codes::Code;
use crate::config::{Config, Mode};
use crate::failure::Failure;

/// How often a node without a cluster looks whether it has one.
const WAIT_PAUSE: Duration = Duration::from_millis(300);

/// A running node, as the API sees it.
pub struct Agent {
    pub(crate) id: NodeId,
    pub(crate) networks: Vec<(String, SocketAddr)>,
    pub(crate) rows: Rows,
    pub(crate) embedded: Embedded,
    pub(crate) peers: Peers,
    pub(crate) node: NodeHandle,
    pub(crate) board: links::Board,
    pub(crate) memory: Memory,
    pub(crate) containers: Option<Arc<Containers>>,
    /// Whether it takes part in nothing that concerns containers.
    pub(crate) observes: bool,
    pub(crate) why_no_containers: Option<String>,
    pub(crate) inviter: Inviter,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Agent").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Agent {
    /// A node's name, by this node's copy of the catalog.
    pub(crate) fn node_name(&self, id: NodeId) -> String {
        crate::api::convert::node_name(&self.rows.names(), id)
    }

    /// The networks' names, in the order of their numbers.
    pub(crate) fn network_names(&self) -> Vec<String> {
        self.networks.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// Runs a node until it is told to end.
pub async fn run(config: Config) -> Result<(), Failure> {
    let mut end = Ending::new()?;
    let identity = tokio::select! {
        identity = configured(&config) => identity?,
        () = end.told() => return Ok(()),
    };
    let started = start(&config, identity).await?;
    let agent = Arc::clone(&started.agent);
    let _api = listen::api(&config.socket, crate::api::server::router(Arc::clone(&agent)))?;
    ready("running");
    tracing::info!(node = %agent.id, socket = %config.socket.display(), "the agent runs");
    let outcome = tokio::select! {
        () = end.told() => Ok(()),
        failure = started.failed() => Err(failure),
    };
    // Systemd may be absent.
    let _ = sd_notify::notify(false, &[NotifyState::Stopping]);
    tracing::info!("the agent ends; its containers go on until their lease is over");
    agent.node.stop().await;
    agent.embedded.shutdown().await;
    outcome
}

/// Waits until this node belongs to a cluster, answering meanwhile that it does not.
async fn configured(config: &Config) -> Result<Identity, Failure> {
    let mut waiting = None;
    loop {
        if config.data.join("membership").exists() {
            let identity = state::open(&config.data)?;
            if identity.membership().is_some() {
                return Ok(identity);
            }
        } else if waiting.is_none() {
            let router = crate::api::server::waiting_router(config.data.display().to_string());
            waiting = Some(listen::api(&config.socket, router)?);
            ready("waiting for `steadfast init` or `steadfast join`");
            tracing::info!(data = %config.data.display(), "this node belongs to no cluster yet; waiting for `steadfast init` or `steadfast join`");
        }
        tokio::time::sleep(WAIT_PAUSE).await;
    }
}

struct Started {
    agent: Arc<Agent>,
    _listeners: Vec<Listener>,
}

impl Started {
    /// Ends when a part that the node can't do without has failed.
    async fn failed(&self) -> Failure {
        let mut look = tokio::time::interval(Duration::from_secs(1));
        loop {
            look.tick().await;
            if let Some(reason) = self.agent.embedded.status().failure {
                return Failure::new(Code::DiskFailed, format!("the catalog on this node closed: {reason}"));
            }
            if let Err(error @ Unanswered::Stopped) = self.agent.node.status().await {
                return Failure::new(Code::Internal, format!("{error}"));
            }
        }
    }
}

async fn start(config: &Config, identity: Identity) -> Result<Started, Failure> {
    let Some(membership) = identity.membership().cloned() else {
        return Err(Failure::new(Code::NotConfigured, "this node belongs to no cluster"));
    };
    let (state, id) = (State::of(&membership), identity.node());
    let networks = config.addresses();
    let credentials = credentials(id, &membership)?;
    let peers = Peers::new(credentials.clone());
    let services = Services::new(Limits::default());
    let transport = Arc::new(PeersTransport::new(peers.clone()));
    learn_hints(&state, &peers, &transport);
    let embedded =
        catalog::open(&config.data, membership.cluster_id(), id, Arc::clone(&transport), &services).await?;
    let rows = Rows::new(Arc::new(embedded.clone()));
    learn_rows(&rows, id, &peers, &transport);
    let listeners = bind(&networks, &credentials, &services)?;
    let machine = machine::look(config);
    let own = own_row(config, &membership, &identity, &networks, &machine);
    if let Some(founder) = &state.founder {
        let cluster = (membership.cluster_id(), membership.cluster_name.as_str());
        catalog::found(&embedded, &rows, founder, cluster, own.clone(), identity.incarnation()).await?;
    }
    if identity.moved_from().is_some() {
        let others: Vec<NodeId> = rows.names().into_keys().filter(|other| *other != id).collect();
        catalog::refuse_clone(&peers, &others, &identity.fingerprint().short()).await?;
    }
    let inviter = Inviter { rows: rows.clone(), membership: membership.clone(), networks: networks.clone() };
    let memory = Memory::open(config, &membership, id, &services, &peers).await?;
    let why_no_containers = machine.why_not.clone();
    let containers = open_containers(config, &machine, id, &rows).await?;
    let incarnation = identity.incarnation();
    let identity = Arc::new(Mutex::new(Some(identity)));
    let worker = worker::Worker {
        containers: containers.clone(),
        memory: memory.clone(),
        embedded: embedded.clone(),
        identity: Arc::clone(&identity),
        rows: rows.clone(),
        machine,
        runtime: tokio::runtime::Handle::current(),
    };
    let watch = WatchParts { credentials: credentials.clone(), services: services.clone() };
    let parts = parts(&identity, &membership, config, &embedded, worker, watch)?;
    let node = steadfast::node::spawn(parts)
        .map_err(|error| Failure::new(Code::NetworkFailed, error.to_string()))?;
    let board = links::Board::new(incarnation);
    tokio::spawn(board.clone().follow(node.clone(), networks.len()));
    memory.attach(node.clone()).await;
    match &containers {
        Some(containers) => containers.attach(node.clone()).await?,
        None => node.adopted_all(),
    }
    let agent = Arc::new(Agent {
        id,
        networks,
        rows,
        embedded,
        peers,
        node,
        board,
        memory,
        containers,
        observes: config.mode == Mode::Observe,
        why_no_containers,
        inviter,
    });
    offer(&agent, &services);
    follow(&agent, &state, transport, own);
    Ok(Started { agent, _listeners: listeners })
}

/// The containers of this machine, unless something that they need is missing.
async fn open_containers(
    config: &Config,
    machine: &machine::Machine,
    id: NodeId,
    rows: &Rows,
) -> Result<Option<Arc<Containers>>, Failure> {
    match &machine.why_not {
        None => Containers::open(config, machine, id, rows.clone()).await.map(Some),
        Some(_) if config.mode == Mode::Observe => {
            tracing::info!("this node observes: it takes part in membership, detection, links and events");
            Ok(None)
        }
        Some(why) => {
            tracing::warn!(why, "this node runs no containers");
            Ok(None)
        }
    }
}

fn parts(
    identity: &Arc<Mutex<Option<Identity>>>,
    membership: &Membership,
    config: &Config,
    embedded: &Embedded,
    worker: worker::Worker,
    watch: WatchParts,
) -> Result<Parts, Failure> {
    let guard = identity.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let identity = guard.as_ref().ok_or_else(|| Failure::new(Code::Internal, "the identity is gone"))?;
    let boot = identity.salt().iter().fold(0u64, |sum, byte| sum.rotate_left(8) ^ u64::from(*byte)).max(1);
    let since_boot = Duration::from_nanos(datagram::now().as_nanos());
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let settings = Settings {
        id: identity.node(),
        incarnation: identity.incarnation(),
        boot,
        networks: Vec::new(),
        detect: config.detect.clone(),
        boot_unix_ms: u64::try_from(unix.saturating_sub(since_boot).as_millis()).unwrap_or_default(),
    };
    Ok(Parts {
        settings,
        addresses: config.addresses(),
        cluster: membership.cluster_id(),
        keys: membership.cluster_keys.clone(),
        boot_salt: identity.salt(),
        catalog: Arc::new(embedded.clone()),
        worker: Arc::new(worker),
        runtime: tokio::runtime::Handle::current(),
        watch: Some(watch),
    })
}

fn credentials(id: NodeId, membership: &Membership) -> Result<Credentials, Failure> {
    Credentials::new(id, &membership.ca_certificate, &membership.node_certificate, &membership.node_key)
        .map_err(|error| Failure::new(Code::StateCorrupt, error.to_string()))
}

fn bind(
    networks: &[(String, SocketAddr)],
    credentials: &Credentials,
    services: &Services,
) -> Result<Vec<Listener>, Failure> {
    let bound = networks.iter().map(|(name, address)| {
        Listener::bind(*address, credentials, services.clone()).map_err(|error| {
            Failure::new(
                Code::NetworkFailed,
                format!("network {name}: {error}; give this node an address that it has"),
            )
        })
    });
    bound.collect()
}

fn own_row(
    config: &Config,
    membership: &Membership,
    identity: &Identity,
    networks: &[(String, SocketAddr)],
    machine: &machine::Machine,
) -> NodeRow {
    NodeRow {
        id: identity.node(),
        name: membership.node_name.clone(),
        engine_id: state::engine_id(identity.node()),
        addresses: networks.to_vec(),
        fingerprint: identity.fingerprint().short(),
        domain: config.domain.clone(),
        memory_bytes: config.memory_bytes,
        criu: machine.criu.clone(),
        processor: machine.processor.clone(),
    }
}

fn learn_hints(state: &State, peers: &Peers, transport: &PeersTransport) {
    for hint in &state.hints {
        if let Ok(node) = hint.node.parse::<NodeId>() {
            transport.learn(hint.engine_id, node);
            peers.set_addresses(node, hint.addresses.clone());
        }
    }
}

/// Takes over where everybody is from this node's copy of the catalog.
fn learn_rows(rows: &Rows, own: NodeId, peers: &Peers, transport: &PeersTransport) {
    for (row, _) in rows.all_stale::<NodeRow>("node/") {
        transport.learn(row.engine_id, row.id);
        if row.id != own {
            peers.set_addresses(row.id, row.addresses.iter().map(|(_, address)| *address).collect());
        }
    }
}

/// Offers to others what needs the whole agent.
fn offer(agent: &Arc<Agent>, services: &Services) {
    catalog::offer_admission(services, &agent.embedded);
    let node = agent.node.clone();
    catalog::offer_greetings(services, &agent.rows, move |peer| {
        let node = node.clone();
        Box::pin(async move {
            let Ok(status) = node.status().await else { return false };
            status.peers.get(&peer).is_some_and(|peer| !peer.suspected && peer.silent <= peer.timeout)
        })
    });
    holders::offer(services, &agent.memory);
    let inside = Arc::clone(agent);
    services.set_streams(move |accepted| listen::stream(Arc::clone(&inside), accepted));
}

/// Starts what goes on beside the node: addresses, admission, this node's own row.
fn follow(agent: &Arc<Agent>, state: &State, transport: Arc<PeersTransport>, own: NodeRow) {
    let (rows, peers, id) = (agent.rows.clone(), agent.peers.clone(), agent.id);
    tokio::spawn(async move {
        let mut watch =
            rows.catalog().watch("node/".to_owned(), rows.catalog().range_stale("node/").revision);
        loop {
            learn_rows(&rows, id, &peers, &transport);
            if watch.next().await.is_err() {
                return;
            }
        }
    });
    let mut hints = state.hints.clone();
    for (row, _) in agent.rows.all_stale::<NodeRow>("node/") {
        if row.id != agent.id && !hints.iter().any(|hint| hint.node == row.id.to_string()) {
            hints.push(state::Hint {
                node: row.id.to_string(),
                engine_id: row.engine_id,
                addresses: row.addresses.iter().map(|(_, address)| *address).collect(),
            });
        }
    }
    let addresses = agent.networks.iter().map(|(_, address)| address.to_string()).collect();
    tokio::spawn(catalog::seek_admission(
        agent.embedded.clone(),
        agent.peers.clone(),
        hints,
        addresses,
        agent.id,
    ));
    tokio::spawn(refresh_own_row(agent.rows.clone(), own));
}

/// Writes this node's row anew when what it says has changed since the last start.
async fn refresh_own_row(rows: Rows, own: NodeRow) {
    let key = Key::Node(own.id);
    loop {
        match rows.get::<NodeRow>(&key).await {
            Ok(Some((row, _))) if row == own => return,
            Ok(found) => {
                let version = found.map_or(0, |(_, version)| version);
                let Ok(value) = rows::encode(&own) else { return };
                let txn = steadfast::catalog::Txn::compare_and_set(key.encode(), version, value);
                if let Err(failure) = rows.commit(txn).await {
                    tracing::debug!(%failure, "this node's row is not written yet");
                }
            }
            Err(failure) => tracing::debug!(%failure, "this node's row can't be read yet"),
        }
        tokio::time::sleep(WAIT_PAUSE).await;
    }
}

/// Tells systemd, where there is one.
fn ready(words: &str) {
    let _ = sd_notify::notify(false, &[NotifyState::Ready, NotifyState::Status(words)]);
}

/// The signals that end an agent.
struct Ending {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Ending {
    fn new() -> Result<Ending, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(Code::Internal, format!("signals can't be received: {error}")))
        };
        Ok(Ending {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Whether a folder is on a tmpfs.
pub(crate) fn is_tmpfs(path: &Path) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|statistics| statistics.f_type == TMPFS_MAGIC)
}
