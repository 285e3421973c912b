//! The calling side: which address of a peer a connection takes, when it is tried again, and calls.
//!
//! It decides among a peer's networks: it stays with the one that works, tries the others soon after the
//! first does not answer, and moves on when a path falls silent. It never learns membership by itself:
//! the agent sets and removes addresses. Read next: `connection`, `listener`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use steadfast_proto::ids::NodeId;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::connection::Connection;
use super::{
    BODY_BYTES_MAX, Body, Class, ConnectError, READ_BYTES, RpcError, Trace, Tracer, WRITE_BYTES, Wire,
};
use crate::identity::random;
use crate::net::tls::{self, Credentials};

/// A TLS connection for the API or a join, ready for HTTP.
pub type ApiStream = tokio_rustls::client::TlsStream<Wire>;

/// Most peers that are remembered.
const PEERS_MAX: usize = 1024;
/// Most addresses per peer.
const ADDRESSES_MAX: usize = 16;
/// How long the first network may take before the next is tried beside it.
const STAGGER: Duration = Duration::from_millis(100);
/// How long one address may take, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// The first pause after a failed attempt; it doubles up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Calls to other nodes. Cheap to clone.
///
/// ```no_run
/// # use std::time::Duration;
/// # use steadfast::net::rpc::{Class, Peers};
/// # use steadfast::net::tls::Credentials;
/// # use steadfast_proto::ids::NodeId;
/// # async fn example(credentials: Credentials, peer: NodeId) -> Result<(), Box<dyn std::error::Error>> {
/// let peers = Peers::new(credentials);
/// peers.set_addresses(peer, vec!["10.0.1.12:7400".parse()?, "10.0.2.12:7400".parse()?]);
/// let answer = peers.call(peer, Class::Control, 1, vec![42], Duration::from_secs(1)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    credentials: Credentials,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    tracer: OnceLock<Arc<dyn Tracer>>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("node", &self.inner.credentials.node()).finish_non_exhaustive()
    }
}

struct Peer {
    node: NodeId,
    addresses: Mutex<Vec<SocketAddr>>,
    /// Which of the addresses is tried first.
    preferred: AtomicUsize,
    slots: [Slot; Class::ALL.len()],
}

#[derive(Default)]
struct Slot {
    /// Held while a connection is made, so that callers share one attempt.
    state: tokio::sync::Mutex<SlotState>,
    current: Mutex<Option<Arc<Connection>>>,
}

#[derive(Default)]
struct SlotState {
    failures: u32,
    retry_at: Option<Instant>,
    error: Option<ConnectError>,
}

impl Peers {
    /// Makes an empty set of peers for this node.
    #[must_use]
    pub fn new(credentials: Credentials) -> Self {
        Self { inner: Arc::new(Inner { credentials, peers: RwLock::default(), tracer: OnceLock::new() }) }
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.inner.credentials.node()
    }

    /// Has calls say which traced operation they are part of. To be set once; a second one is ignored.
    pub fn set_tracer(&self, tracer: Arc<dyn Tracer>) {
        let _ = self.inner.tracer.set(tracer);
    }

    /// Says where `node` listens, in network order (at most 16). A connection to an address that is no
    /// longer listed is closed; others stay.
    pub fn set_addresses(&self, node: NodeId, mut addresses: Vec<SocketAddr>) {
        addresses.truncate(ADDRESSES_MAX);
        let peer = {
            let mut peers = self.inner.peers.write().unwrap_or_else(PoisonError::into_inner);
            if peers.len() >= PEERS_MAX && !peers.contains_key(&node) {
                tracing::warn!(%node, "more than {PEERS_MAX} peers: this one is not remembered");
                return;
            }
            Arc::clone(peers.entry(node).or_insert_with(|| Arc::new(Peer::new(node))))
        };
        for slot in &peer.slots {
            let mut current = lock(&slot.current);
            if current.as_ref().is_some_and(|one| !addresses.contains(&one.address())) {
                *current = None;
            }
        }
        let mut known = lock(&peer.addresses);
        if *known != addresses {
            let was = known.get(peer.preferred.load(Ordering::Relaxed)).copied();
            let stays = addresses.iter().position(|one| Some(*one) == was);
            peer.preferred.store(stays.unwrap_or(0), Ordering::Relaxed);
            *known = addresses;
        }
    }

    /// Where `node` listens, as last set.
    #[must_use]
    pub fn addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        self.peer(node).map(|peer| lock(&peer.addresses).clone()).unwrap_or_default()
    }

    /// Forgets `node` and closes every connection to it; calls that wait fail at once.
    pub fn remove(&self, node: NodeId) {
        let removed = self.inner.peers.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
        if let Some(peer) = removed {
            peer.disconnect();
        }
    }

    /// Closes every connection to `node` without forgetting where it listens: calls that wait fail now,
    /// and the next call connects anew. For when the detector knows that a path or a process is gone.
    pub fn disconnect(&self, node: NodeId) {
        if let Some(peer) = self.peer(node) {
            peer.disconnect();
        }
    }

    /// The address over which calls of `class` go at the moment, if a connection is open.
    #[must_use]
    pub fn connected(&self, node: NodeId, class: Class) -> Option<SocketAddr> {
        self.peer(node)?.slot(class).live().map(|connection| connection.address())
    }

    /// Calls `service` on `to` and gives its answer.
    ///
    /// A connection is made when there is none. `Class::Control` tries again until `timeout`; the others
    /// fail with the attempt, because their callers have another node to turn to.
    ///
    /// # Errors
    /// See [`RpcError`]; only [`RpcError::is_certainly_unsent`] errors allow a blind repetition.
    pub async fn call(
        &self,
        to: NodeId,
        class: Class,
        service: u8,
        body: impl Into<Body>,
        timeout: Duration,
    ) -> Result<Bytes, RpcError> {
        let trace = self.inner.tracer.get().and_then(|tracer| tracer.current());
        self.call_as(trace, to, class, (service, body.into()), timeout).await
    }

    /// The same, and never a step of a traced operation: for one of very many calls.
    ///
    /// # Errors
    /// As [`Peers::call`].
    pub async fn call_untraced(
        &self,
        to: NodeId,
        class: Class,
        service: u8,
        body: impl Into<Body>,
        timeout: Duration,
    ) -> Result<Bytes, RpcError> {
        self.call_as(None, to, class, (service, body.into()), timeout).await
    }

    async fn call_as(
        &self,
        trace: Option<Trace>,
        to: NodeId,
        class: Class,
        (service, body): (u8, Body),
        timeout: Duration,
    ) -> Result<Bytes, RpcError> {
        if body.len() > BODY_BYTES_MAX {
            return Err(RpcError::TooLarge { found: body.len() });
        }
        let peer = self.peer(to).ok_or(RpcError::NoAddress { peer: to })?;
        let deadline = Instant::now() + timeout;
        let connection = self.connection(&peer, class, deadline).await?;
        match tokio::time::timeout_at(deadline, connection.call(service, body, trace)).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(reason))) => Err(RpcError::Refused { peer: to, reason }),
            Ok(Err(_)) => Err(RpcError::Lost { peer: to }),
            Err(_) => Err(RpcError::TimedOut { peer: to, timeout_ms: timeout.as_millis() }),
        }
    }

    /// Opens a connection to the API of `to`, for one HTTP client.
    ///
    /// # Errors
    /// No address is known or none answers.
    pub async fn connect_api(&self, to: NodeId) -> Result<ApiStream, RpcError> {
        let peer = self.peer(to).ok_or(RpcError::NoAddress { peer: to })?;
        let (addresses, first) = peer.targets();
        let config = self.inner.credentials.api_client();
        let name = tls::server_name(to);
        match connect_any(&config, &name, &addresses, first).await {
            Ok((stream, _)) => Ok(stream),
            Err(reason) => Err(RpcError::Unreachable { peer: to, reason }),
        }
    }

    fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.inner.peers.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    async fn connection(
        &self,
        peer: &Arc<Peer>,
        class: Class,
        deadline: Instant,
    ) -> Result<Arc<Connection>, RpcError> {
        loop {
            if let Some(connection) = peer.slot(class).live() {
                return Ok(connection);
            }
            let config = self.inner.credentials.rpc_client();
            // The attempt goes on when this caller's time is over: the next one profits from it.
            let attempt = tokio::spawn(connect(Arc::clone(peer), class, config));
            let reason = match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Ok(Ok(connection))) => return Ok(connection),
                Ok(Ok(Err(reason))) => reason,
                Ok(Err(_)) => ConnectError::Abandoned,
                Err(_) => {
                    let (addresses, first) = peer.targets();
                    let Some(address) = addresses.get(first).copied() else {
                        return Err(RpcError::NoAddress { peer: peer.node });
                    };
                    let timeout_ms = CONNECT_TIMEOUT.as_millis();
                    ConnectError::TimedOut { address, timeout_ms }
                }
            };
            let retry_at = peer.slot(class).state.lock().await.retry_at;
            let retry_at = retry_at.unwrap_or_else(Instant::now);
            if class != Class::Control || retry_at >= deadline || Instant::now() >= deadline {
                return Err(RpcError::Unreachable { peer: peer.node, reason });
            }
            tokio::time::sleep_until(retry_at).await;
        }
    }
}

/// Opens a connection for a join to whichever inviter answers; `ca_fingerprint` is the token's.
///
/// # Errors
/// No address answers with a certificate under the pinned CA.
pub async fn connect_join(
    addresses: &[SocketAddr],
    ca_fingerprint: [u8; 32],
) -> Result<ApiStream, JoinConnectError> {
    let config = tls::join_client(ca_fingerprint)?;
    let name = ServerName::try_from("join.steadfast").expect("a constant valid name");
    let (stream, _) = connect_any(&config, &name, addresses, 0).await?;
    Ok(stream)
}

/// Why a joiner found no inviter. Nothing was sent but the handshake.
#[derive(Debug, thiserror::Error)]
pub enum JoinConnectError {
    /// No inviter could be reached, or none belongs to the token's cluster.
    #[error("no inviting node can be reached: {0}")]
    Connect(#[from] ConnectError),
    /// The TLS library can't be set up.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

impl Peer {
    fn new(node: NodeId) -> Self {
        let slots = std::array::from_fn(|_| Slot::default());
        Self { node, addresses: Mutex::default(), preferred: AtomicUsize::new(0), slots }
    }

    fn slot(&self, class: Class) -> &Slot {
        let [control, raft, bulk, events] = &self.slots;
        match class {
            Class::Control => control,
            Class::Raft => raft,
            Class::Bulk => bulk,
            Class::Events => events,
        }
    }

    fn targets(&self) -> (Vec<SocketAddr>, usize) {
        (lock(&self.addresses).clone(), self.preferred.load(Ordering::Relaxed))
    }

    fn disconnect(&self) {
        for slot in &self.slots {
            if let Some(connection) = lock(&slot.current).take() {
                connection.close();
            }
        }
    }
}

impl Slot {
    fn live(&self) -> Option<Arc<Connection>> {
        lock(&self.current).as_ref().filter(|connection| !connection.is_closed()).cloned()
    }
}

async fn connect(
    peer: Arc<Peer>,
    class: Class,
    config: Arc<ClientConfig>,
) -> Result<Arc<Connection>, ConnectError> {
    let slot = peer.slot(class);
    let mut state = slot.state.lock().await;
    if let Some(connection) = slot.live() {
        return Ok(connection);
    }
    if let (Some(retry_at), Some(error)) = (state.retry_at, &state.error)
        && Instant::now() < retry_at
    {
        return Err(error.clone());
    }
    let (addresses, mut first) = peer.targets();
    let silent = lock(&slot.current).take().filter(|connection| connection.fell_silent());
    if silent.is_some_and(|connection| addresses.get(first) == Some(&connection.address())) {
        first = (first + 1) % addresses.len().max(1);
    }
    let name = tls::server_name(peer.node);
    match connect_any(&config, &name, &addresses, first).await {
        Ok((stream, index)) => {
            *state = SlotState::default();
            let address = addresses.get(index).copied().ok_or(ConnectError::Abandoned)?;
            // The peer's addresses may have changed meanwhile; then the number means another one.
            if lock(&peer.addresses).get(index) == Some(&address) {
                peer.preferred.store(index, Ordering::Relaxed);
            }
            let (reader, writer) = tokio::io::split(stream);
            let connection = Arc::new(Connection::start(class, address, reader, writer));
            *lock(&slot.current) = Some(Arc::clone(&connection));
            Ok(connection)
        }
        Err(error) => {
            let pause = PAUSE_FIRST * 2_u32.pow(state.failures.min(8));
            let [jitter] = random::<1>();
            let pause = pause.min(PAUSE_MAX).mul_f64(0.5 + f64::from(jitter) / 512.0);
            state.failures = state.failures.saturating_add(1);
            state.retry_at = Some(Instant::now() + pause);
            state.error = Some(error.clone());
            Err(error)
        }
    }
}

/// Tries the addresses from `first` on, each a little after the one before it; the first to answer wins.
pub(in crate::net) async fn connect_any(
    config: &Arc<ClientConfig>,
    name: &ServerName<'static>,
    addresses: &[SocketAddr],
    first: usize,
) -> Result<(ApiStream, usize), ConnectError> {
    let order = (0..addresses.len()).map(|step| (first + step) % addresses.len());
    let mut rest = order.filter_map(|index| Some((index, *addresses.get(index)?))).peekable();
    let mut attempts = JoinSet::new();
    let mut last = ConnectError::Abandoned;
    loop {
        if let Some((index, address)) = rest.next() {
            let (config, name) = (Arc::clone(config), name.clone());
            attempts.spawn(async move { (index, connect_one(config, name, address).await) });
        }
        let more = rest.peek().is_some();
        loop {
            tokio::select! {
                done = attempts.join_next() => match done {
                    Some(Ok((index, Ok(stream)))) => return Ok((stream, index)),
                    Some(Ok((_, Err(error)))) => last = error,
                    Some(Err(_)) => {}
                    None => return Err(last),
                },
                () = tokio::time::sleep(STAGGER), if more => {}
            }
            if more {
                break;
            }
        }
    }
}

async fn connect_one(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    address: SocketAddr,
) -> Result<ApiStream, ConnectError> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        tune(&stream);
        let wire = Wire::with_capacity(READ_BYTES, stream);
        let mut stream = TlsConnector::from(config).connect(name, wire).await?;
        stream.get_mut().1.set_buffer_limit(Some(WRITE_BYTES));
        Ok(stream)
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(ConnectError::failed(address, &error)),
        Err(_) => Err(ConnectError::TimedOut { address, timeout_ms: CONNECT_TIMEOUT.as_millis() }),
    }
}

/// Small answers leave at once, and a dead path is noticed in seconds. Buffer sizes stay with the
/// kernel: its own tuning goes further than what a process may ask for.
pub(super) fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    let improvements = [
        socket.set_tcp_nodelay(true),
        socket.set_tcp_keepalive(&keepalive),
        socket.set_tcp_user_timeout(Some(Duration::from_secs(10))),
    ];
    for error in improvements.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "a connection goes without one of its options");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
