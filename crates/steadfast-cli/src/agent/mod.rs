//! The agent: joins identity, catalog, network, checkpoint memory, containers and the core into one running node.
//!
//! This file decides the order in which they start and stop, and nothing else: what happens in the cluster is decided
//! by the core (`steadfast_proto::node`), what containers do by `steadfast-container`. Read `worker` for how jobs are
//! carried out and `verbs` for what users can ask.

mod duties;
mod own_row;
mod picture;
mod addresses;
pub(crate) mod admit;
pub(crate) mod catalog;
mod containers;
mod device_verbs;
mod devices;
mod engine;
pub(crate) mod episodes;
pub(crate) mod events;
mod exec;
pub mod found;
mod groups;
mod inside;
#[doc(hidden)]
pub mod fuzzing;
mod holders;
pub mod join;
pub(crate) mod keys;
mod links;
mod listen;
mod logs;
mod machine;
pub(crate) mod memory;
mod notice;
pub(crate) mod operations;
mod planted;
pub mod reidentify;
mod report;
pub mod rescue;
mod rows;
mod sessions;
mod state;
mod survival;
mod tokens;
#[cfg(test)]
mod join_histories;
#[cfg(test)]
mod tests;
mod verbs;
mod verdicts;
mod views;
mod worker;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sd_notify::NotifyState;
use steadfast::events::hub::Hub;
use steadfast::identity::{Identity, Membership};
use steadfast::net::datagram;
use steadfast::net::rpc::{Limits, Listener, Peers, Services};
use steadfast::net::tls::Credentials;
use steadfast::node::{NodeHandle, Parts, Unanswered, WatchParts};
use steadfast_proto::catalog::{Intent, NodeRow};
use steadfast_proto::events::Life;
use steadfast_proto::ids::NodeId;
use steadfast_proto::node::Settings;
use tokio::signal::unix::{SignalKind, signal};

use self::admit::Inviter;
use self::catalog::PeersTransport;
use self::containers::Containers;
pub(crate) use self::containers::spec as container_spec;
use self::engine::Engine;
use self::keys::Keyring;
pub(crate) use self::links::Registration;
pub(crate) use self::machine::on_path;
use self::memory::Memory;
pub(crate) use self::rows::Rows;
use self::state::State;
pub(crate) use self::tokens::Shown;
pub(crate) use self::verdicts::Held;
pub(crate) use self::views::Wanted as WantedViews;
use crate::api::own;
use crate::api::page::Door;
use crate::api::roles::Caller;
use crate::codes::Code;
use crate::config::{Config, Mode};
use crate::failure::Failure;
use crate::traces::{self, Asked};

/// How often a node without a cluster looks whether it has one.
const WAIT_PAUSE: Duration = Duration::from_millis(300);

/// A running node, as the API sees it.
pub struct Agent {
    pub(crate) id: NodeId,
    pub(crate) networks: Vec<(String, SocketAddr)>,
    pub(crate) rows: Rows,
    pub(crate) engine: Engine,
    pub(crate) peers: Peers,
    pub(crate) node: NodeHandle,
    pub(crate) board: links::Board,
    pub(crate) memory: Memory,
    pub(crate) containers: Option<Arc<Containers>>,
    /// Absent where this node takes no part in device names.
    pub(crate) devices: Option<Arc<devices::Room>>,
    /// Whether it takes part in nothing that concerns containers.
    pub(crate) observes: bool,
    pub(crate) why_no_containers: Option<String>,
    pub(crate) inviter: Inviter,
    pub(crate) keys: Keyring,
    pub(crate) waiters: groups::Waiters,
    pub(crate) events: Hub,
    pub(crate) episodes: episodes::Room,
    pub(crate) operations: operations::Operations,
    cluster: String,
    /// Keep what happens for those who ask later.
    _journal: Vec<steadfast::events::hub::Subscription>,
    /// Where the page is; absent where none is served.
    pub(crate) door: Option<Door>,
    pub(crate) sessions: sessions::Sessions,
    pub(crate) pictures: picture::Pictures,
    pub(crate) asked: Asked,
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

    /// The cluster's name.
    pub(crate) fn cluster_name(&self) -> &str {
        &self.cluster
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
    let router = crate::api::server::router(Arc::clone(&agent)).layer(axum::Extension(Caller::Owner));
    let _api = listen::api(&config.socket, router)?;
    let _page = listen::page(&agent, &started.credentials).await?;
    ready("running");
    tracing::info!(node = %agent.id, socket = %config.socket.display(), "the agent runs");
    let outcome = tokio::select! {
        () = end.told() => Ok(()),
        failure = started.failed() => Err(failure),
    };
    // Systemd may be absent.
    let _ = sd_notify::notify(false, &[NotifyState::Stopping]);
    tracing::info!("the agent ends; its containers go on until their lease is over");
    agent.operations.stop().await;
    agent.episodes.stop().await;
    agent.node.stop().await;
    agent.engine.shutdown().await;
    outcome
}

/// Waits until this node belongs to a cluster, answering meanwhile that it does not.
async fn configured(config: &Config) -> Result<Identity, Failure> {
    let mut waiting = None;
    // Why the token that was left here brought no membership yet.
    let why = Arc::new(Mutex::new(None));
    loop {
        if config.data.join("membership").exists() {
            let identity = state::open(&config.data)?;
            if identity.membership().is_some() {
                join::forget_left(&config.data);
                return Ok(identity);
            }
        } else if waiting.is_none() {
            let router =
                crate::api::server::waiting_router(config.data.display().to_string(), Arc::clone(&why));
            waiting = Some(listen::api(&config.socket, router)?);
            ready("waiting for `steadfast init` or `steadfast join`");
            tracing::info!(data = %config.data.display(), "this node belongs to no cluster yet; waiting for `steadfast init` or `steadfast join`");
        }
        if join::left(&config.data).is_some() {
            // Opened once for all attempts, so that a notice costs this node no write.
            let mut identity = state::open(&config.data)?;
            join::wait_with(config, &mut identity, |token, failure| say_why(&why, token, failure)).await;
            if identity.membership().is_some() {
                return Ok(identity);
            }
        }
        tokio::time::sleep(WAIT_PAUSE).await;
    }
}

/// Keeps, and logs once, why a token brought no membership yet.
fn say_why(why: &Mutex<Option<String>>, token: &steadfast::token::Token, failure: &Failure) {
    let text = format!("waiting as {}: {} ({})", token.name, failure.message, failure.code);
    let mut why = why.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if why.as_ref() != Some(&text) {
        tracing::warn!(name = token.name, %failure, "the token that was left here brings no membership yet");
    }
    *why = Some(text);
}

struct Started {
    agent: Arc<Agent>,
    credentials: Credentials,
    _listeners: Vec<Listener>,
}

impl Started {
    /// Ends when a part that the node can't do without has failed.
    async fn failed(&self) -> Failure {
        let mut look = tokio::time::interval(Duration::from_secs(1));
        loop {
            look.tick().await;
            if let Some(reason) = self.agent.engine.status().failure {
                return Failure::new(Code::DiskFailed, format!("the catalog on this node closed: {reason}"));
            }
            if let Err(error @ Unanswered::Stopped) = self.agent.node.status().await {
                return Failure::new(Code::Internal, format!("{error}"));
            }
        }
    }
}

/// What a node is made of before its core runs.
struct Opened {
    id: NodeId,
    state: State,
    own: NodeRow,
    identity: Arc<Mutex<Option<Identity>>>,
    membership: Membership,
    credentials: Credentials,
    peers: Peers,
    services: Services,
    transport: Arc<PeersTransport>,
    engine: Engine,
    rows: Rows,
    keys: Keyring,
    machine: machine::Machine,
    listeners: Vec<Listener>,
    asked: Asked,
}

/// Opens the catalog and listens, unless this is a copy of a node that lives elsewhere.
async fn open(config: &Config, mut identity: Identity) -> Result<Opened, Failure> {
    let Some(membership) = identity.membership().cloned() else {
        return Err(Failure::new(Code::NotConfigured, "this node belongs to no cluster"));
    };
    let (state, id) = (State::of(&membership), identity.node());
    let networks = config.addresses();
    let credentials = credentials(id, &membership)?;
    let peers = Peers::new(credentials.clone());
    let services = Services::new(Limits::default());
    traces::attach(&peers, &services);
    let transport = Arc::new(PeersTransport::new(peers.clone()));
    learn_hints(&state, &peers, &transport);
    // Before the catalog is opened: a copy of a voter must not cast that voter's vote.
    let others: Vec<NodeId> = state.hints.iter().filter_map(|hint| hint.node.parse().ok()).collect();
    settle_place(&mut identity, &peers, &others).await?;
    let engine =
        catalog::open(config, membership.cluster_id(), id, Arc::clone(&transport), &services).await?;
    planted::crash("agent:catalog");
    let rows = Rows::new(engine.catalog());
    learn_rows(&rows, id, &peers, &transport);
    let listeners = bind(&networks, &credentials, &services)?;
    let machine = machine::look(config);
    let own = own_row(config, &membership, &identity, &networks, &machine);
    // A founder that knows other nodes has founded: with an empty catalog folder it asks them, and never makes a second catalog.
    if let Some(founder) = &state.founder
        && state.hints.is_empty()
    {
        let cluster = (membership.cluster_id(), membership.cluster_name.as_str());
        catalog::found(&engine, &rows, founder, cluster, own.clone(), identity.incarnation()).await?;
    }
    let identity = Arc::new(Mutex::new(Some(identity)));
    let keys = Keyring::new(
        Arc::clone(&identity),
        membership.clone(),
        credentials.clone(),
        rows.clone(),
        peers.clone(),
        services.clone(),
    );
    Ok(Opened {
        id,
        state,
        own,
        identity,
        membership,
        credentials,
        peers,
        services,
        transport,
        engine,
        rows,
        keys,
        machine,
        listeners,
        asked: Asked::default(),
    })
}

async fn start(config: &Config, identity: Identity) -> Result<Started, Failure> {
    let (networks, incarnation) = (config.addresses(), identity.incarnation());
    // Before the catalog: names stay while it is away.
    let devices = devices::Room::open(config, identity.node()).await?;
    let opened = open(config, identity).await?;
    let (id, rows, keys) = (opened.id, opened.rows.clone(), opened.keys.clone());
    let memory = Memory::open(config, &keys, id, &opened.services, &opened.peers).await?;
    let why_no_containers = opened.machine.why_not.clone();
    let containers = open_containers(config, &opened.machine, id, &rows, devices.as_ref()).await?;
    let hub = start_events(&opened, events::life(id, incarnation), containers.clone());
    let worker = worker::Worker {
        asked: opened.asked.clone(),
        containers: containers.clone(),
        memory: memory.clone(),
        engine: opened.engine.clone(),
        identity: Arc::clone(&opened.identity),
        rows: rows.clone(),
        machine: opened.machine.clone(),
        events: hub.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    let node = steadfast::node::spawn(parts(&opened, config, worker)?)
        .map_err(|error| Failure::new(Code::NetworkFailed, error.to_string()))?;
    planted::crash("agent:node");
    let board = links::Board::new(incarnation);
    tokio::spawn(board.clone().follow(node.clone(), networks.len()));
    memory.attach(node.clone()).await;
    match &containers {
        Some(containers) => containers.attach(node.clone()).await?,
        None => node.adopted_all(),
    }
    let names = networks.iter().map(|(name, _)| name.clone()).collect();
    let journal = events::journal(&hub);
    tokio::spawn(events::follow(hub.clone(), node.clone(), id, rows.clone(), names, board.boot_unix_ms()));
    let cluster = steadfast_proto::ids::ClusterId(opened.membership.cluster);
    let episodes =
        episodes::Room::new(config, (cluster, id, incarnation), &opened.peers, &opened.services, &rows, &hub);
    let inviter = inviter(config, &rows, &keys, networks.clone(), node.clone());
    let agent = Arc::new(Agent {
        id,
        networks,
        rows,
        engine: opened.engine,
        peers: opened.peers,
        node,
        board,
        memory,
        containers,
        devices,
        observes: config.mode == Mode::Observe,
        why_no_containers,
        inviter,
        keys,
        waiters: groups::Waiters::default(),
        _journal: journal,
        events: hub,
        episodes,
        operations: operations::Operations::default(),
        cluster: opened.membership.cluster_name.clone(),
        door: config.page.map(|listen| listen::door(listen, &opened.credentials)),
        sessions: sessions::Sessions::default(),
        pictures: picture::Pictures::default(),
        asked: opened.asked,
    });
    offer(&agent, &opened.services);
    serve_inside(&agent);
    tokio::spawn(Arc::clone(&agent).run_operations(incarnation));
    follow(&agent, &opened.state, opened.transport, opened.own);
    Ok(Started { agent, credentials: opened.credentials, _listeners: opened.listeners })
}

fn inviter(
    config: &Config,
    rows: &Rows,
    keys: &Keyring,
    networks: Vec<(String, SocketAddr)>,
    node: NodeHandle,
) -> Inviter {
    Inviter {
        rows: rows.clone(),
        membership: keys.shared(),
        networks,
        catalog: config.catalog.clone(),
        hears: hears(node),
    }
}

fn start_events(opened: &Opened, life: Life, containers: Option<Arc<Containers>>) -> Hub {
    let cgroup_of = move |name: &str| containers.as_ref()?.cgroup_of(name);
    events::start(life, &opened.peers, &opened.services, cgroup_of)
}

/// Ends here if somebody lives under this node's identity elsewhere. A folder that woke in another place than it was made
/// in, and that nobody disputes, takes that place for its own.
async fn settle_place(identity: &mut Identity, peers: &Peers, others: &[NodeId]) -> Result<(), Failure> {
    let moved = identity.moved_from().is_some();
    let undisputed = catalog::refuse_clone(peers, others, &identity.fingerprint().short(), moved).await?;
    if moved && undisputed && !others.is_empty() {
        identity.accept_move().map_err(|error| state::identity_failure(&error))?;
    }
    Ok(())
}

/// Whether a node hears another one alive now.
fn hears(node: NodeHandle) -> admit::Hears {
    Arc::new(move |peer| {
        let node = node.clone();
        Box::pin(async move {
            let Ok(status) = node.status().await else { return false };
            status.peers.get(&peer).is_some_and(|peer| !peer.suspected && peer.silent <= peer.timeout)
        })
    })
}

/// The containers of this machine, unless something that they need is missing.
async fn open_containers(
    config: &Config,
    machine: &machine::Machine,
    id: NodeId,
    rows: &Rows,
    devices: Option<&Arc<devices::Room>>,
) -> Result<Option<Arc<Containers>>, Failure> {
    match &machine.why_not {
        None => Containers::open(config, machine, id, rows.clone(), devices.cloned()).await.map(Some),
        Some(_) if config.mode == Mode::Observe => {
            tracing::info!("this node observes: it takes part in membership, detection, links and events");
            Ok(None)
        }
        Some(_) if config.mode == Mode::Witness => {
            tracing::info!("this node is a witness: it votes and grants leases, and runs nothing");
            Ok(None)
        }
        Some(why) => {
            tracing::warn!(why, "this node runs no containers");
            Ok(None)
        }
    }
}

fn parts(opened: &Opened, config: &Config, worker: worker::Worker) -> Result<Parts, Failure> {
    let guard = opened.identity.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let identity = guard.as_ref().ok_or_else(|| Failure::new(Code::Internal, "the identity is gone"))?;
    let watch = WatchParts { credentials: opened.credentials.clone(), services: opened.services.clone() };
    let boot = identity.salt().iter().fold(0u64, |sum, byte| sum.rotate_left(8) ^ u64::from(*byte)).max(1);
    let since_boot = Duration::from_nanos(datagram::now().as_nanos());
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let settings = Settings {
        id: identity.node(),
        incarnation: identity.incarnation(),
        boot,
        networks: Vec::new(),
        detect: config.detect.clone(),
        probation: config.probation.clone(),
        intent: if config.standby { Intent::Standby } else { Intent::Join },
        version: planted::version(),
        boot_unix_ms: u64::try_from(unix.saturating_sub(since_boot).as_millis()).unwrap_or_default(),
    };
    Ok(Parts {
        settings,
        addresses: config.addresses(),
        cluster: opened.membership.cluster_id(),
        keys: opened.keys.first_keys(),
        boot_salt: identity.salt(),
        catalog: opened.engine.catalog(),
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
    if let Some(embedded) = agent.engine.embedded() {
        catalog::offer_admission(services, embedded);
    }
    own_row::offer(services, &agent.rows);
    catalog::offer_greetings(services, &agent.rows, Arc::clone(&agent.inviter.hears));
    agent.keys.offer();
    holders::offer(services, &agent.memory);
    operations::offer(agent, services);
    let inside = Arc::clone(agent);
    services.set_streams(move |accepted| listen::stream(Arc::clone(&inside), accepted));
}

/// Serves the programs in this node's containers what concerns them.
fn serve_inside(agent: &Arc<Agent>) {
    let Some(containers) = &agent.containers else { return };
    // Not the agent itself, which has the containers.
    let agent = Arc::downgrade(agent);
    containers.serve_inside(move |id| {
        agent.upgrade().map_or_else(axum::Router::new, |agent| own::router(agent, id))
    });
}

/// Starts what goes on beside the node: addresses, admission, this node's own row.
fn follow(agent: &Arc<Agent>, state: &State, transport: Arc<PeersTransport>, own: NodeRow) {
    let (rows, peers, id) = (agent.rows.clone(), agent.peers.clone(), agent.id);
    let keys = agent.keys.clone();
    if let Some(room) = &agent.devices {
        tokio::spawn(devices::follow(Arc::clone(room), agent.rows.clone()));
        tokio::spawn(events::disks::follow(agent.events.clone(), Arc::clone(room)));
    }
    tokio::spawn(agent.keys.clone().follow(agent.node.clone()));
    tokio::spawn(agent.episodes.clone().follow());
    tokio::spawn(Arc::clone(agent).tend_voters());
    tokio::spawn(Arc::clone(agent).sweep_standbys());
    tokio::spawn(async move {
        let mut watch =
            rows.catalog().watch("node/".to_owned(), rows.catalog().range_stale("node/").revision);
        loop {
            learn_rows(&rows, id, &peers, &transport);
            if let Err(failure) = keys.remember_nodes(node_hints(&rows, id)).await {
                tracing::warn!(%failure, "where the other nodes are is not remembered");
            }
            if watch.next().await.is_err() {
                return;
            }
        }
    });
    let mut hints = state.hints.clone();
    for hint in node_hints(&agent.rows, agent.id) {
        if !hints.iter().any(|one| one.node == hint.node) {
            hints.push(hint);
        }
    }
    if let Some(embedded) = agent.engine.embedded() {
        let addresses = agent.networks.iter().map(|(_, address)| address.to_string()).collect();
        let (embedded, peers) = (embedded.clone(), agent.peers.clone());
        tokio::spawn(catalog::seek_admission(embedded, peers, hints, addresses, agent.id));
    }
    tokio::spawn(own_row::refresh(agent.rows.clone(), agent.peers.clone(), own));
}

/// Where the other nodes are, by this node's copy of the catalog.
fn node_hints(rows: &Rows, own: NodeId) -> Vec<state::Hint> {
    let others =
        rows.all_stale::<NodeRow>("node/").into_iter().map(|(row, _)| row).filter(|row| row.id != own);
    others
        .map(|row| state::Hint {
            node: row.id.to_string(),
            engine_id: row.engine_id,
            addresses: row.addresses.iter().map(|(_, address)| *address).collect(),
        })
        .collect()
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
