//! One connection per watched edge, on which almost nothing is said: what its end and its acknowledgements tell.
//!
//! The kernel of a killed process closes the connection within a millisecond; the kernel of a stalled one goes
//! on acknowledging; a dead machine or path does neither. This module reports that and decides nothing: one
//! connection is one witness. The connection is mutual TLS, so its handshake is the keyed challenge, and its
//! first record states node, incarnation and boot: an end counts only for the life that was stated. An end that
//! its agent announced is never reported as a crash.
//!
//! On the wire, after the handshake, each side sends 37 bytes: magic 4, version 1, node 16, incarnation 8, boot
//! 8, little endian. Then single bytes: 1 asks for an echo, 2 is one, 3 is a goodbye, 4 says that this
//! connection alone ends. Of two nodes the one with the lower id dials. Read next: `rpc` (the listener), `os`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use socket2::{SockRef, TcpKeepalive};
use steadfast_proto::ids::{Incarnation, NodeId};
use steadfast_proto::time::Time;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::datagram::now;
use super::os;
use super::rpc::{Accepted, Services, connect_any};
use super::tls::{Credentials, server_name};
use crate::identity::random;

/// Most edges that are watched, and most connections that are kept.
pub const EDGES_MAX: usize = 128;

/// Addresses per peer.
const ADDRESSES_MAX: usize = 16;
/// How long the peer's first record may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an ending may take to be said.
const ENDING_TIMEOUT: Duration = Duration::from_millis(300);
/// The first pause before an edge is dialled again; it doubles up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A connection that lasted so long ends the doubling.
const SETTLED: Duration = Duration::from_secs(5);
/// How long the kernel tries a path that acknowledges nothing.
const PATH_TIMEOUT: Duration = Duration::from_secs(8);
/// Bytes that may wait, encrypted, for the kernel to take them.
const WRITE_BYTES: usize = 4096;

const HELLO_BYTES: usize = 37;
const MAGIC: [u8; 4] = *b"SFwt";
const VERSION: u8 = 1;
const PROBE: u8 = 1;
const ECHO: u8 = 2;
const GOODBYE: u8 = 3;
const CLOSE: u8 = 4;

/// What one watch connection witnessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Testimony {
    /// Who is at the other end, by its certificate.
    pub peer: NodeId,
    /// The incarnation that it stated.
    pub incarnation: Incarnation,
    /// The boot number that it stated.
    pub boot: u64,
    /// When it was noticed, on this node's clock.
    pub at: Time,
    /// What.
    pub what: What,
}

/// What happened to a watch connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Both ends have said who they are.
    Opened,
    /// The peer's kernel closed the connection and its agent had not said goodbye: the process is gone.
    EndOfFile,
    /// The peer's agent stops in order.
    Goodbye,
    /// Nothing was acknowledged for 8 s, or the kernel has no way to the peer: says nothing about the process.
    PathLost,
}

/// What the kernel knows about one watch connection.
///
/// A stalled process: `last_ack_age` stays small while probes go out and `last_data_age` grows. A dead machine or
/// path: both grow, and `retransmits` is above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSample {
    /// Since the peer's kernel was last heard, which acknowledges with whatever it sends.
    pub last_ack_age: Duration,
    /// Since the peer's agent last sent something.
    pub last_data_age: Duration,
    /// How often the oldest unacknowledged byte was sent again; zero once it is acknowledged.
    pub retransmits: u32,
    /// Segments that were sent and not acknowledged.
    pub unacked: u32,
    /// The kernel's smoothed round-trip time.
    pub rtt: Duration,
    /// This end's address, which tells the network.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
}

/// Who watches: this node, as it states itself to peers.
#[derive(Clone, Debug)]
pub struct Dialler {
    /// The node's certificate and keys.
    pub credentials: Credentials,
    /// This agent's incarnation.
    pub incarnation: Incarnation,
    /// This agent's boot number.
    pub boot: u64,
}

/// The watch connections of one node. Cheap to clone; dropping the last handle ends them all without a word, as
/// the end of the process would.
#[derive(Clone)]
pub struct Watches {
    owner: Arc<Owner>,
}

struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.over = Some(Over::Silent);
        // Without the sender that would say how to end, each connection ends at once and silently.
        state.edges.values_mut().for_each(|edge| edge.ending = None);
    }
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers: Vec<_> = self.owner.0.lock().edges.keys().copied().collect();
        f.debug_struct("Watches").field("open", &peers).finish_non_exhaustive()
    }
}

struct Shared {
    runtime: Handle,
    credentials: Credentials,
    events: mpsc::Sender<Testimony>,
    state: Mutex<State>,
    /// An edge left the table.
    left: Notify,
}

struct State {
    own: Life,
    wanted: BTreeMap<NodeId, Wanted>,
    edges: BTreeMap<NodeId, Edge>,
    /// Peers that a task dials or keeps a dialled connection to.
    dialling: BTreeSet<NodeId>,
    next_number: u64,
    /// Set when this node watches nobody any more.
    over: Option<Over>,
}

/// How all of it came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// As the end of the process would.
    Silent,
    /// With a goodbye.
    Announced,
}

/// One life of one node's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    incarnation: Incarnation,
    boot: u64,
}

struct Wanted {
    incarnation: Incarnation,
    addresses: Vec<SocketAddr>,
}

/// An open connection.
struct Edge {
    number: u64,
    life: Life,
    /// A second descriptor of its socket, so that it can be asked about from any thread; it goes with the edge.
    socket: OwnedFd,
    local: SocketAddr,
    remote: SocketAddr,
    probe: Arc<Notify>,
    ending: Option<oneshot::Sender<u8>>,
}

impl Watches {
    /// Watches nobody yet. Connections live on `runtime`; what they witness goes to `events`.
    #[must_use]
    pub fn new(runtime: Handle, dialler: Dialler, events: mpsc::Sender<Testimony>) -> Self {
        let Dialler { credentials, incarnation, boot } = dialler;
        let state = State {
            own: Life { incarnation, boot },
            wanted: BTreeMap::new(),
            edges: BTreeMap::new(),
            dialling: BTreeSet::new(),
            next_number: 0,
            over: None,
        };
        let shared = Shared { runtime, credentials, events, state: Mutex::new(state), left: Notify::new() };
        Self { owner: Arc::new(Owner(Arc::new(shared))) }
    }

    /// Takes the connections that others dial from `services`.
    pub fn offer(&self, services: &Services) {
        let shared = Arc::downgrade(&self.owner.0);
        services.set_watches(move |accepted| {
            let shared = shared.upgrade();
            Box::pin(async move {
                if let Some(shared) = shared {
                    let inside = shared.runtime.clone();
                    inside.spawn(accept(shared, accepted));
                }
            })
        });
    }

    /// Says whom to watch: incarnation, boot number and addresses in network order.
    ///
    /// Dials those that are missing and whose id is higher than ours, and ends every connection to others or to
    /// an earlier incarnation. Those whose id is lower dial us. At most [`EDGES_MAX`] are watched.
    pub fn set(&self, peers: BTreeMap<NodeId, (Incarnation, u64, Vec<SocketAddr>)>) {
        let shared = &self.owner.0;
        let own = shared.credentials.node();
        let mut state = shared.lock();
        if state.over.is_some() {
            return;
        }
        let peers = peers.into_iter().filter(|(node, _)| *node != own).take(EDGES_MAX);
        state.wanted = peers
            .map(|(node, (incarnation, _boot, mut addresses))| {
                addresses.truncate(ADDRESSES_MAX);
                (node, Wanted { incarnation, addresses })
            })
            .collect();
        let State { wanted, edges, dialling, .. } = &mut *state;
        for (node, edge) in edges.iter_mut() {
            if wanted.get(node).is_none_or(|one| edge.life.incarnation < one.incarnation) {
                edge.end(CLOSE);
            }
        }
        for node in wanted.keys().filter(|node| **node > own) {
            if dialling.insert(*node) {
                shared.runtime.spawn(dial(Arc::clone(shared), *node));
            }
        }
    }

    /// Sends one byte to the peer, which its kernel acknowledges and its agent echoes. Never waits: what the
    /// socket does not take is left out, and so is a probe while another waits to be sent.
    pub fn probe(&self, peer: NodeId) {
        if let Some(edge) = self.owner.0.lock().edges.get(&peer) {
            edge.probe.notify_one();
        }
    }

    /// What the kernel knows about the connection to `peer`, while there is one.
    #[must_use]
    pub fn sample(&self, peer: NodeId) -> Option<TcpSample> {
        let state = self.owner.0.lock();
        let edge = state.edges.get(&peer)?;
        let tcp = os::tcp_state(edge.socket.as_fd()).ok()?;
        Some(TcpSample {
            last_ack_age: Duration::from_millis(tcp.last_ack_received_ms.into()),
            last_data_age: Duration::from_millis(tcp.last_data_received_ms.into()),
            retransmits: tcp.retransmits.into(),
            unacked: tcp.unacked,
            rtt: Duration::from_micros(tcp.rtt_us.into()),
            local: edge.local,
            remote: edge.remote,
        })
    }

    /// States another incarnation from now on: every connection ends, those that we dial are made anew.
    pub fn renumber(&self, incarnation: Incarnation) {
        let mut state = self.owner.0.lock();
        state.own.incarnation = incarnation;
        state.edges.values_mut().for_each(|edge| edge.end(CLOSE));
    }

    /// Says goodbye on every connection and ends them: this agent stops in order. Waits at most 300 ms.
    pub async fn goodbye(&self) {
        let shared = &self.owner.0;
        {
            let mut state = shared.lock();
            state.over = Some(Over::Announced);
            state.edges.values_mut().for_each(|edge| edge.end(GOODBYE));
        }
        let gone = async {
            loop {
                let left = shared.left.notified();
                if shared.lock().edges.is_empty() {
                    return;
                }
                left.await;
            }
        };
        // A peer that takes nothing will find out by itself.
        let _ = tokio::time::timeout(ENDING_TIMEOUT, gone).await;
    }
}

impl Edge {
    fn end(&mut self, word: u8) {
        if let Some(ending) = self.ending.take() {
            // It may be ending by itself already.
            let _ = ending.send(word);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to dial `peer`; without an answer the dialling task ends.
    fn targets(&self, peer: NodeId) -> Option<Vec<SocketAddr>> {
        let mut state = self.lock();
        let is_over = state.over.is_some();
        let wanted = state.wanted.get(&peer).filter(|_| !is_over).map(|one| one.addresses.clone());
        if wanted.is_none() {
            state.dialling.remove(&peer);
        }
        wanted
    }

    /// Puts an open connection into the table, unless it is not wanted or of a life that is over, at either end;
    /// then it gives the last word, if one is to be said.
    fn open(&self, peer: NodeId, stated: Life, mut edge: Edge) -> Result<u64, Option<u8>> {
        let mut state = self.lock();
        match state.over {
            None => {}
            Some(Over::Silent) => return Err(None),
            Some(Over::Announced) => return Err(Some(GOODBYE)),
        }
        let is_dialler = self.credentials.node() < peer;
        let is_right = match state.wanted.get(&peer) {
            Some(wanted) => edge.life.incarnation >= wanted.incarnation,
            // Who dialled us may have heard of the edge before we did; the next `set` decides.
            None => !is_dialler,
        };
        let has_place = state.edges.contains_key(&peer) || state.edges.len() < EDGES_MAX;
        if state.own != stated || !is_right || !has_place {
            return Err(Some(CLOSE));
        }
        state.next_number += 1;
        edge.number = state.next_number;
        let number = edge.number;
        if let Some(mut earlier) = state.edges.insert(peer, edge) {
            earlier.end(CLOSE);
        }
        Ok(number)
    }
}

/// Takes a connection out of the table when its task ends, however it ends.
struct Registered<'a> {
    shared: &'a Shared,
    peer: NodeId,
    number: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.edges.get(&self.peer).is_some_and(|edge| edge.number == self.number) {
            state.edges.remove(&self.peer);
        }
        drop(state);
        self.shared.left.notify_waiters();
    }
}

/// How a connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// This node ended it, or the peer did not want it any more.
    Unwitnessed,
    /// It is worth telling.
    Witnessed(What),
}

/// Keeps one edge connected as long as it is wanted.
async fn dial(shared: Arc<Shared>, peer: NodeId) {
    let (mut pause, mut first) = (PAUSE_FIRST, 0);
    while let Some(addresses) = shared.targets(peer) {
        let config = shared.credentials.watch_client();
        let first_known = first % addresses.len().max(1);
        match connect_any(&config, &server_name(peer), &addresses, first_known).await {
            Ok((mut stream, index)) => {
                stream.get_mut().1.set_buffer_limit(Some(WRITE_BYTES));
                let began = Instant::now();
                let wire = Socket::of(stream.get_ref().0.get_ref());
                let end = keep(&shared, peer, stream, wire).await;
                if began.elapsed() >= SETTLED {
                    pause = PAUSE_FIRST;
                }
                // A path that was lost is not the first to try again.
                first = if end == End::Witnessed(What::PathLost) { index + 1 } else { index };
            }
            Err(error) => tracing::debug!(%peer, %error, "an edge is not watched: its peer can't be dialled"),
        }
        let [jitter] = random::<1>();
        tokio::time::sleep(pause.mul_f64(0.5 + f64::from(jitter) / 512.0)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn accept(shared: Arc<Shared>, accepted: Accepted) {
    let Accepted { peer, mut stream, remote, .. } = accepted;
    let Some(peer) = peer.filter(|peer| *peer < shared.credentials.node()) else {
        tracing::debug!(%remote, "a watch connection was closed: the node with the lower id dials");
        return;
    };
    stream.get_mut().1.set_buffer_limit(Some(WRITE_BYTES));
    let wire = Socket::of(stream.get_ref().0.get_ref());
    keep(&shared, peer, stream, wire).await;
}

/// What the table needs to know about a connection's socket.
struct Socket {
    descriptor: OwnedFd,
    local: SocketAddr,
    remote: SocketAddr,
}

impl Socket {
    fn of(stream: &TcpStream) -> io::Result<Self> {
        tune(stream);
        let descriptor = stream.as_fd().try_clone_to_owned()?;
        Ok(Self { descriptor, local: stream.local_addr()?, remote: stream.peer_addr()? })
    }
}

/// A vanished path ends the connection in about [`PATH_TIMEOUT`], with and without probes.
fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let second = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new().with_time(2 * second).with_interval(second).with_retries(6);
    let improvements = [
        socket.set_tcp_nodelay(true),
        socket.set_tcp_keepalive(&keepalive),
        socket.set_tcp_user_timeout(Some(PATH_TIMEOUT)),
    ];
    for error in improvements.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "a watch connection goes without one of its options");
    }
}

/// Says who we are, hears who is there, and then witnesses what becomes of the connection.
async fn keep<S>(shared: &Arc<Shared>, peer: NodeId, mut stream: S, socket: io::Result<Socket>) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(socket) = socket else { return End::Unwitnessed };
    let own = shared.lock().own;
    let greeting = tokio::time::timeout(HELLO_TIMEOUT, greet(&mut stream, shared.credentials.node(), own));
    let life = match greeting.await {
        Ok(Ok((node, life))) if node == peer => life,
        Ok(Ok((node, _))) => {
            tracing::warn!(%peer, stated = %node, "a peer states another node id than its certificate");
            return End::Unwitnessed;
        }
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "a watch connection ended before it was open");
            return End::Unwitnessed;
        }
        Err(_) => {
            tracing::debug!(%peer, "the peer of a watch connection did not say who it is");
            return End::Unwitnessed;
        }
    };
    let probe = Arc::new(Notify::new());
    let (ending, told) = oneshot::channel();
    let Socket { descriptor, local, remote } = socket;
    let edge = Edge {
        number: 0,
        life,
        socket: descriptor,
        local,
        remote,
        probe: Arc::clone(&probe),
        ending: Some(ending),
    };
    let number = match shared.open(peer, own, edge) {
        Ok(number) => number,
        Err(word) => {
            if let Some(word) = word {
                say(&mut stream, word).await;
            }
            return End::Unwitnessed;
        }
    };
    let registered = Registered { shared, peer, number };
    let testify = |what| {
        let Life { incarnation, boot } = life;
        // Nobody listening is no error.
        shared.events.send(Testimony { peer, incarnation, boot, at: now(), what }).map(|_| ())
    };
    testify(What::Opened).await;
    let end = witness(&mut stream, &probe, told).await;
    // Both descriptors of the socket close here.
    drop((stream, registered));
    if let End::Witnessed(what) = end {
        testify(what).await;
    }
    end
}

async fn greet<S>(stream: &mut S, own: NodeId, life: Life) -> io::Result<(NodeId, Life)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&encode_hello(own, life)).await?;
    stream.flush().await?;
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello).await?;
    decode_hello(&hello).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the peer's first record is not of this protocol")
    })
}

async fn witness<S>(stream: &mut S, probe: &Notify, mut told: oneshot::Receiver<u8>) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = [0; 64];
    loop {
        tokio::select! {
            biased;
            read = stream.read(&mut buffer) => {
                let heard = match read {
                    Ok(count) => buffer.get(..count).unwrap_or_default(),
                    Err(error) => return End::Witnessed(meaning(error.kind())),
                };
                match hear(heard) {
                    Heard::Nothing => {}
                    // One echo for whatever was read together; a peer that takes none gets none.
                    Heard::Probe => { let _ = stream.write(&[ECHO]).now_or_never(); }
                    Heard::End(end) => return end,
                }
            }
            word = &mut told => {
                if let Ok(word) = word {
                    say(stream, word).await;
                }
                return End::Unwitnessed;
            }
            () = probe.notified() => { let _ = stream.write(&[PROBE]).now_or_never(); }
        }
    }
}

enum Heard {
    Nothing,
    Probe,
    End(End),
}

fn hear(bytes: &[u8]) -> Heard {
    if bytes.is_empty() {
        return Heard::End(End::Witnessed(What::EndOfFile));
    }
    let mut heard = Heard::Nothing;
    for byte in bytes {
        match *byte {
            PROBE => heard = Heard::Probe,
            ECHO => {}
            GOODBYE => return Heard::End(End::Witnessed(What::Goodbye)),
            CLOSE => return Heard::End(End::Unwitnessed),
            // No agent says that: whatever it is, it is not the death of the process.
            _ => return Heard::End(End::Witnessed(What::PathLost)),
        }
    }
    heard
}

/// What a failed read testifies: only what the peer's kernel sent itself counts as the end of the process.
fn meaning(kind: io::ErrorKind) -> What {
    let by_the_peer =
        [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
    if by_the_peer.contains(&kind) { What::EndOfFile } else { What::PathLost }
}

/// Says the last word, and waits a little until the peer has closed: a kernel that closes with unread bytes
/// resets the connection, and the word might not be read.
async fn say<S>(stream: &mut S, word: u8)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let said = async {
        stream.write_all(&[word]).await?;
        stream.shutdown().await?;
        let mut rest = [0; 64];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    // Whoever can't hear it notices the end of the connection by other means.
    let _ = tokio::time::timeout(ENDING_TIMEOUT, said).await;
}

fn encode_hello(node: NodeId, life: Life) -> [u8; HELLO_BYTES] {
    let mut hello = [0; HELLO_BYTES];
    let fields = MAGIC
        .into_iter()
        .chain([VERSION])
        .chain(node.0.to_le_bytes())
        .chain(life.incarnation.0.to_le_bytes())
        .chain(life.boot.to_le_bytes());
    hello.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    hello
}

fn decode_hello(hello: &[u8; HELLO_BYTES]) -> Option<(NodeId, Life)> {
    let rest = hello.strip_prefix(&MAGIC)?.strip_prefix(&[VERSION])?;
    let (node, rest) = rest.split_first_chunk::<16>()?;
    let (incarnation, rest) = rest.split_first_chunk::<8>()?;
    let (boot, _) = rest.split_first_chunk::<8>()?;
    let incarnation = Incarnation(u64::from_le_bytes(*incarnation));
    Some((NodeId(u128::from_le_bytes(*node)), Life { incarnation, boot: u64::from_le_bytes(*boot) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_record_survives_and_a_foreign_one_is_refused() {
        let life = Life { incarnation: Incarnation(7), boot: u64::MAX - 1 };
        let hello = encode_hello(NodeId(0xabc << 64), life);
        assert_eq!(decode_hello(&hello), Some((NodeId(0xabc << 64), life)));
        for place in 0..5 {
            let mut other = hello;
            other[place] ^= 1;
            assert_eq!(decode_hello(&other), None);
        }
    }

    #[test]
    fn what_was_announced_is_no_crash() {
        let end = |bytes: &[u8]| match hear(bytes) {
            Heard::End(end) => Some(end),
            Heard::Nothing | Heard::Probe => None,
        };
        assert_eq!(end(&[]), Some(End::Witnessed(What::EndOfFile)));
        assert_eq!(end(&[ECHO, PROBE, GOODBYE]), Some(End::Witnessed(What::Goodbye)));
        assert_eq!(end(&[PROBE, CLOSE]), Some(End::Unwitnessed));
        assert_eq!(end(b"GET / HTTP/1.1"), Some(End::Witnessed(What::PathLost)));
        assert!(matches!(hear(&[ECHO, PROBE, ECHO]), Heard::Probe));
        assert!(matches!(hear(&[ECHO]), Heard::Nothing));
    }

    #[test]
    fn a_path_that_dies_is_no_crash() {
        for kind in [io::ErrorKind::TimedOut, io::ErrorKind::HostUnreachable, io::ErrorKind::NetworkDown] {
            assert_eq!(meaning(kind), What::PathLost);
        }
        assert_eq!(meaning(io::ErrorKind::ConnectionReset), What::EndOfFile);
        // The TLS library's word for a close that no agent announced.
        assert_eq!(meaning(io::ErrorKind::UnexpectedEof), What::EndOfFile);
    }
}
