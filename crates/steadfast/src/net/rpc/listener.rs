//! The called side: accept, authenticate, dispatch by protocol, and answer calls within bounds.
//!
//! It decides who is served: a peer with this cluster's certificate that the `allow` hook still knows.
//! API and join connections are handed to a handler of the caller, because HTTP is not this crate's
//! matter. One peer can occupy only its own share of calls and bytes. Read next: `frame`, `peers`.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use rustls::ServerConfig;
use socket2::{Domain, Socket, Type};
use steadfast_proto::ids::NodeId;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{Instrument, Span};

use super::connection::QUEUE_FRAMES;
use super::frame::{Frame, FrameReader, FrameWriter, Kind};
use super::peers::tune;
use super::{BODY_BYTES_MAX, Body, BoxFuture, READ_BYTES, Trace, Tracer, WRITE_BYTES, Wire};
use crate::net::tls::{Credentials, Protocol, node_of};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a failed accept, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How much of this node its peers may occupy.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls carried out at a time per connection; more wait. Default 128.
    pub calls_max: usize,
    /// Request bytes held at a time per connection; more wait. Default 64 MiB, at least 16 MiB.
    pub bytes_max: usize,
    /// Connections per peer; one more closes the oldest. Default 12.
    pub connections_per_peer_max: usize,
    /// Handshakes under way at a time; more wait. Default 64.
    pub handshakes_max: usize,
    /// API and join connections at a time; more are closed. Default 256.
    pub streams_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            calls_max: 128,
            bytes_max: 64 << 20,
            connections_per_peer_max: 12,
            handshakes_max: 64,
            streams_max: 256,
        }
    }
}

/// An accepted connection that is not for calls.
#[derive(Debug)]
pub struct Accepted {
    /// `Api`, `Watch` or `Join`.
    pub protocol: Protocol,
    /// Who it is; always set for `Api` and `Watch`.
    pub peer: Option<NodeId>,
    /// Where it comes from.
    pub remote: SocketAddr,
    /// The connection itself.
    pub stream: TlsStream<Wire>,
}

type Handler = dyn Fn(NodeId, Bytes) -> BoxFuture<Result<Body, String>> + Send + Sync;
type Allow = dyn Fn(NodeId) -> bool + Send + Sync;
type StreamHandler = dyn Fn(Accepted) -> BoxFuture<()> + Send + Sync;

/// What this node offers to others, on all its listeners. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    inner: Arc<Inner>,
}

struct Inner {
    limits: Limits,
    handlers: RwLock<BTreeMap<u8, Arc<Handler>>>,
    allow: RwLock<Arc<Allow>>,
    streams: RwLock<Option<Arc<StreamHandler>>>,
    watches: RwLock<Option<Arc<StreamHandler>>>,
    connections: Mutex<BTreeMap<NodeId, VecDeque<AbortHandle>>>,
    handshakes: Arc<Semaphore>,
    stream_places: Arc<Semaphore>,
    tracer: OnceLock<Arc<dyn Tracer>>,
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").field("limits", &self.inner.limits).finish_non_exhaustive()
    }
}

impl Services {
    /// Offers nothing yet, to anybody with a certificate of the cluster.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let inner = Inner {
            limits,
            handlers: RwLock::default(),
            allow: RwLock::new(Arc::new(|_| true)),
            streams: RwLock::new(None),
            watches: RwLock::new(None),
            connections: Mutex::default(),
            handshakes: Arc::new(Semaphore::new(limits.handshakes_max)),
            stream_places: Arc::new(Semaphore::new(limits.streams_max)),
            tracer: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Offers `service`; an earlier handler of that number is replaced.
    ///
    /// An `Err` answer reaches the caller as [`super::RpcError::Refused`]: it must mean that nothing
    /// was changed.
    pub fn register<F>(&self, service: u8, handler: F)
    where
        F: Fn(NodeId, Bytes) -> BoxFuture<Result<Bytes, String>> + Send + Sync + 'static,
    {
        self.register_bulk(service, move |peer, request| {
            let answer = handler(peer, request);
            Box::pin(async move { answer.await.map(Body::from) })
        });
    }

    /// As [`Services::register`], for answers whose second part is large: it is not copied.
    pub fn register_bulk<F>(&self, service: u8, handler: F)
    where
        F: Fn(NodeId, Bytes) -> BoxFuture<Result<Body, String>> + Send + Sync + 'static,
    {
        let mut handlers = self.inner.handlers.write().unwrap_or_else(PoisonError::into_inner);
        handlers.insert(service, Arc::new(handler));
    }

    /// Has calls that are part of a traced operation be steps of it. To be set once; a second one is ignored.
    pub fn set_tracer(&self, tracer: Arc<dyn Tracer>) {
        let _ = self.inner.tracer.set(tracer);
    }

    /// Asks `allow` before each call and connection whether the peer is still a member.
    pub fn set_allow(&self, allow: impl Fn(NodeId) -> bool + Send + Sync + 'static) {
        *self.inner.allow.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(allow);
    }

    /// Hands every API and join connection to `handler`.
    pub fn set_streams<F>(&self, handler: F)
    where
        F: Fn(Accepted) -> BoxFuture<()> + Send + Sync + 'static,
    {
        *self.inner.streams.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(handler));
    }

    /// Hands every watch connection to `handler`, which bounds them itself: they must not wait for a place.
    pub fn set_watches<F>(&self, handler: F)
    where
        F: Fn(Accepted) -> BoxFuture<()> + Send + Sync + 'static,
    {
        *self.inner.watches.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(handler));
    }

    /// Closes every connection on which `node` calls: it was removed.
    pub fn close_peer(&self, node: NodeId) {
        let handles = self.inner.lock_connections().remove(&node);
        handles.into_iter().flatten().for_each(|handle| handle.abort());
    }

    /// Closes every connection for calls and offers nothing any more: the node stops.
    pub fn shutdown(&self) {
        self.set_allow(|_| false);
        self.inner.handlers.write().unwrap_or_else(PoisonError::into_inner).clear();
        *self.inner.streams.write().unwrap_or_else(PoisonError::into_inner) = None;
        *self.inner.watches.write().unwrap_or_else(PoisonError::into_inner) = None;
        let connections = std::mem::take(&mut *self.inner.lock_connections());
        connections.into_values().flatten().for_each(|handle| handle.abort());
    }

    fn is_allowed(&self, node: NodeId) -> bool {
        let allow = Arc::clone(&self.inner.allow.read().unwrap_or_else(PoisonError::into_inner));
        allow(node)
    }

    /// The step of a traced operation that a call is; none where nobody traces.
    fn span(&self, peer: NodeId, service: u8, trace: Option<Trace>) -> Span {
        let serving = || Some(self.inner.tracer.get()?.serving(service, peer, trace?));
        serving().unwrap_or_else(Span::none)
    }

    async fn answer(&self, peer: NodeId, service: u8, request: Bytes) -> Result<Body, String> {
        let handler = {
            let handlers = self.inner.handlers.read().unwrap_or_else(PoisonError::into_inner);
            handlers.get(&service).cloned()
        };
        let Some(handler) = handler else {
            return Err(format!("service {service} is not offered by this node"));
        };
        let answer = AssertUnwindSafe(async move { handler(peer, request).await }).catch_unwind();
        match answer.await {
            Ok(Ok(body)) if body.len() > BODY_BYTES_MAX => {
                Err(format!("the answer of {} bytes does not fit a frame", body.len()))
            }
            Ok(answer) => answer,
            Err(_) => {
                tracing::error!(%peer, service, "a handler panicked; its call failed");
                Err("the node failed internally while it carried the call out".into())
            }
        }
    }
}

impl Inner {
    fn lock_connections(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, VecDeque<AbortHandle>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, peer: NodeId, task: AbortHandle) {
        let mut connections = self.lock_connections();
        let handles = connections.entry(peer).or_default();
        handles.retain(|handle| !handle.is_finished());
        handles.push_back(task);
        while handles.len() > self.limits.connections_per_peer_max {
            // A peer that lost a path without a word comes back on another: the oldest is the dead one.
            if let Some(oldest) = handles.pop_front() {
                oldest.abort();
            }
        }
    }
}

/// The address can't be listened on. Nothing was opened.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address}: {source}")]
pub struct ListenError {
    /// The address as given.
    pub address: SocketAddr,
    /// The operating system's answer.
    pub source: io::Error,
}

/// Accepts connections on one address until it is dropped; connections already accepted go on.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    /// Listens on `address`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The address is taken or not one of this machine's.
    pub fn bind(
        address: SocketAddr,
        credentials: &Credentials,
        services: Services,
    ) -> Result<Self, ListenError> {
        let opened = open(address).and_then(|socket| Ok((socket.local_addr()?, socket)));
        let (local, socket) = opened.map_err(|source| ListenError { address, source })?;
        let task = tokio::spawn(accept(socket, credentials.server(), services));
        Ok(Self { address: local, task })
    }

    /// The address that it listens on, with the port that the system chose when none was given.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(256)?;
    TcpListener::from_std(socket.into())
}

async fn accept(socket: TcpListener, config: Arc<ServerConfig>, services: Services) {
    loop {
        let Ok(place) = Arc::clone(&services.inner.handshakes).acquire_owned().await else {
            return;
        };
        let (stream, remote) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        tune(&stream);
        let (config, services) = (Arc::clone(&config), services.clone());
        tokio::spawn(async move {
            let handshake = TlsAcceptor::from(config).accept(Wire::with_capacity(READ_BYTES, stream));
            let result = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
            drop(place);
            match result {
                Ok(Ok(mut stream)) => {
                    stream.get_mut().1.set_buffer_limit(Some(WRITE_BYTES));
                    dispatch(stream, remote, &services);
                }
                Ok(Err(error)) => tracing::debug!(%remote, %error, "a handshake failed"),
                Err(_) => tracing::debug!(%remote, "a handshake took too long"),
            }
        });
    }
}

fn dispatch(stream: TlsStream<Wire>, remote: SocketAddr, services: &Services) {
    let (_, session) = stream.get_ref();
    let protocol = session.alpn_protocol().and_then(Protocol::from_alpn);
    let peer = session.peer_certificates().and_then(|chain| node_of(chain.first()?));
    match (protocol, peer) {
        (Some(Protocol::Rpc), Some(peer)) if services.is_allowed(peer) => {
            let task = tokio::spawn(serve(stream, peer, services.clone()));
            services.inner.admit(peer, task.abort_handle());
        }
        (Some(Protocol::Api), Some(peer)) if services.is_allowed(peer) => {
            hand_over(Accepted { protocol: Protocol::Api, peer: Some(peer), remote, stream }, services);
        }
        (Some(Protocol::Watch), Some(peer)) if services.is_allowed(peer) => {
            let handler = services.inner.watches.read().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(handler) = handler {
                tokio::spawn(handler(Accepted {
                    protocol: Protocol::Watch,
                    peer: Some(peer),
                    remote,
                    stream,
                }));
            }
        }
        (Some(Protocol::Join), peer) => {
            hand_over(Accepted { protocol: Protocol::Join, peer, remote, stream }, services);
        }
        (Some(Protocol::Rpc | Protocol::Api | Protocol::Watch), Some(peer)) => {
            tracing::debug!(%remote, %peer, "a node that is no member was turned away");
        }
        (Some(Protocol::Rpc | Protocol::Api | Protocol::Watch) | None, _) => {
            tracing::debug!(%remote, "a connection without certificate or protocol was closed");
        }
    }
}

fn hand_over(accepted: Accepted, services: &Services) {
    let handler = services.inner.streams.read().unwrap_or_else(PoisonError::into_inner).clone();
    let place = Arc::clone(&services.inner.stream_places).try_acquire_owned();
    let (Some(handler), Ok(place)) = (handler, place) else {
        tracing::debug!(remote = %accepted.remote, "no place for one more API or join connection");
        return;
    };
    tokio::spawn(async move {
        handler(accepted).await;
        drop(place);
    });
}

/// Answers one peer's calls on one connection until it ends.
async fn serve(stream: TlsStream<Wire>, peer: NodeId, services: Services) {
    let limits = services.inner.limits;
    let (reader, writer) = tokio::io::split(stream);
    let (answers, queue) = mpsc::channel(QUEUE_FRAMES);
    let _writer = AbortOnDrop(tokio::spawn(write_answers(writer, queue)));
    let calls = Arc::new(Semaphore::new(limits.calls_max));
    let kib_max = limits.bytes_max.max(BODY_BYTES_MAX) / 1024 + 1;
    let kib = Arc::new(Semaphore::new(kib_max));
    let mut frames = FrameReader::new(reader);
    while let Ok((header, trace, request)) = frames.next().await {
        match header.kind {
            Kind::Request => {}
            Kind::Ping => {
                let pong = Frame::new(Kind::Pong, 0, header.call, Body::default());
                if answers.send(pong).await.is_err() {
                    return;
                }
                continue;
            }
            Kind::Response | Kind::Failure | Kind::Pong => return,
        }
        if !services.is_allowed(peer) {
            tracing::debug!(%peer, "a connection was closed: its node is no member any more");
            return;
        }
        let weight = header.length / 1024 + 1;
        let Ok(call) = Arc::clone(&calls).acquire_owned().await else { return };
        let Ok(bytes) = Arc::clone(&kib).acquire_many_owned(weight).await else { return };
        let (services, answers) = (services.clone(), answers.clone());
        let span = services.span(peer, header.service, trace);
        tokio::spawn(async move {
            let answer = services.answer(peer, header.service, request).instrument(span).await;
            let (kind, body) = match answer {
                Ok(body) => (Kind::Response, body),
                Err(reason) => (Kind::Failure, Body::from(reason.into_bytes())),
            };
            // The connection may have ended meanwhile; then nobody waits for the answer.
            let _ = answers.send(Frame::new(kind, header.service, header.call, body)).await;
            drop((call, bytes));
        });
    }
}

async fn write_answers<W: tokio::io::AsyncWrite + Unpin>(writer: W, mut queue: mpsc::Receiver<Frame>) {
    let mut frames = FrameWriter::new(writer);
    while let Some(frame) = queue.recv().await {
        let mut next = Some(frame);
        while let Some(frame) = next {
            if frames.write(&frame).await.is_err() {
                return;
            }
            next = queue.try_recv().ok();
        }
        if frames.flush().await.is_err() {
            return;
        }
    }
    frames.close().await;
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
