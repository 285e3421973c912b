//! One UDP socket per network: send without ever waiting, receive with the time of arrival.
//!
//! It decides nothing about a datagram's content (`seal` does). A send that would wait is dropped and
//! counted, because a late heartbeat is worse than a lost one. A receive drains every socket before it
//! hands anything over, and dates each datagram by the kernel's stamp, so that a pause of this process
//! does not look like a delay of the network. What the kernel reports about datagrams that were refused is
//! drained as well, the moment it comes. Read next: `seal`, `refusal`, `os`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::select_all;
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use steadfast_proto::ids::NetworkId;
use steadfast_proto::time::Time;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::os;
use super::refusal::{PAYLOAD_BYTES_MAX, Recent};
pub use super::refusal::{Refusal, RefusalKind};

/// Datagrams that one receive hands over at most; what is left is handed over by the next.
pub const RECEIVE_MAX: usize = 4096;

/// Refusals that wait to be taken at most; more are counted and forgotten.
pub const REFUSALS_MAX: usize = 256;

/// How often a send is tried that meets the report of another datagram's refusal.
const ATTEMPTS: usize = 3;
/// Bytes that the kernel may queue per socket, where it allows as much.
const QUEUE_BYTES: usize = 1 << 20;
/// The type of service of network control (CS6), honoured by switches and by the local queue.
const TYPE_OF_SERVICE: u32 = 0xc0;
/// The highest local queue priority that needs no privilege.
const PRIORITY: u32 = 6;

/// The sockets can't be made. None is left open.
#[derive(Debug, thiserror::Error)]
#[error("the address {address} of network {network} can't be used for datagrams: {source}")]
pub struct BindError {
    /// The network as configured.
    pub network: NetworkId,
    /// Its address.
    pub address: SocketAddr,
    /// The operating system's answer.
    pub source: io::Error,
}

/// What became of a datagram that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The kernel took it.
    Yes,
    /// The kernel's queue was full; it is lost.
    Dropped,
    /// The kernel refused (network down, no route, peer's port closed); it is lost.
    Refused(io::ErrorKind),
    /// There is no such network here.
    NoNetwork,
}

/// Counts of one network's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketCounts {
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Datagrams dropped because the kernel's queue was full.
    pub dropped: u64,
    /// Datagrams that the kernel refused.
    pub refused: u64,
    /// Datagrams received.
    pub received: u64,
    /// Reports that a datagram of ours was not delivered.
    pub refusals: u64,
    /// Reports about datagrams that we did not send: somebody forges, or they come very late.
    pub refusals_forged: u64,
}

#[derive(Debug)]
struct Network {
    id: NetworkId,
    socket: UdpSocket,
    local: SocketAddr,
    sent: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    received: AtomicU64,
    refusals: AtomicU64,
    refusals_forged: AtomicU64,
    recent: Mutex<Recent>,
}

/// The sending half: cheap to clone, never waits.
#[derive(Clone, Debug)]
pub struct Sender {
    networks: Arc<[Network]>,
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver {
    networks: Arc<[Network]>,
    datagrams: Vec<Datagram>,
    refusals: Vec<Refusal>,
    /// Used again for every report.
    report: os::Slot,
    /// When each network's socket was last seen empty: nothing newer can have arrived before that.
    drained: Vec<Time>,
}

/// One received datagram; its buffer is used again by the next receive.
#[derive(Debug)]
pub struct Datagram {
    network: NetworkId,
    received: Time,
    slot: os::Slot,
}

impl Datagram {
    /// The network whose socket it came in on.
    #[must_use]
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// Where it claims to come from.
    #[must_use]
    pub const fn from(&self) -> Option<SocketAddr> {
        self.slot.from
    }

    /// When the kernel received it, on this node's clock.
    #[must_use]
    pub const fn received(&self) -> Time {
        self.received
    }

    /// Its bytes, to be opened in place.
    pub fn bytes(&mut self) -> &mut [u8] {
        let length = self.slot.length;
        self.slot.buffer.get_mut(..length).unwrap_or_default()
    }
}

/// The node's clock: CLOCK_BOOTTIME, which goes on while the machine sleeps.
#[must_use]
pub fn now() -> Time {
    Time::from_nanos(read_clock(ClockId::Boottime))
}

/// Opens one socket per network.
///
/// # Errors
/// Names the network and address that can't be used. Must be called within a tokio runtime.
pub fn bind(networks: &[(NetworkId, SocketAddr)]) -> Result<(Sender, Receiver), BindError> {
    let mut opened = Vec::with_capacity(networks.len());
    for (id, address) in networks {
        let made = open(*address).and_then(|socket| Ok((socket.local_addr()?, socket)));
        let (local, socket) = made.map_err(|source| BindError { network: *id, address: *address, source })?;
        opened.push(Network::new(*id, socket, local));
    }
    let networks: Arc<[Network]> = opened.into();
    let drained = vec![now(); networks.len()];
    let sender = Sender { networks: Arc::clone(&networks) };
    let (datagrams, refusals) = (Vec::new(), Vec::new());
    Ok((sender, Receiver { networks, datagrams, refusals, report: os::Slot::new(), drained }))
}

impl Sender {
    /// Hands a datagram to the kernel, or drops it.
    pub fn send(&self, network: NetworkId, to: SocketAddr, bytes: &[u8]) -> Sent {
        let Some(network) = self.networks.iter().find(|one| one.id == network) else {
            return Sent::NoNetwork;
        };
        // Before it leaves: on loopback the refusal is there before the call returns.
        network.recent().note(to, bytes);
        // An error that an earlier datagram provoked (its peer's port was closed) is reported by the
        // next call and consumes nothing of this one, so it is tried again.
        let to = to.into();
        let mut attempt = 0;
        loop {
            attempt += 1;
            // Straight to the kernel: the runtime's own `try_send_to` refuses until it has polled once.
            match SockRef::from(&network.socket).send_to(bytes, &to) {
                Ok(_) => {
                    network.sent.fetch_add(1, Ordering::Relaxed);
                    return Sent::Yes;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    network.dropped.fetch_add(1, Ordering::Relaxed);
                    return Sent::Dropped;
                }
                Err(error) if is_report(error.kind()) && attempt < ATTEMPTS => {}
                Err(error) => {
                    network.refused.fetch_add(1, Ordering::Relaxed);
                    return Sent::Refused(error.kind());
                }
            }
        }
    }

    /// The address that a network's socket is bound to.
    #[must_use]
    pub fn local_address(&self, network: NetworkId) -> Option<SocketAddr> {
        self.networks.iter().find(|one| one.id == network).map(|one| one.local)
    }

    /// The counts of a network's socket.
    #[must_use]
    pub fn counts(&self, network: NetworkId) -> Option<SocketCounts> {
        let network = self.networks.iter().find(|one| one.id == network)?;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Some(SocketCounts {
            sent: read(&network.sent),
            dropped: read(&network.dropped),
            refused: read(&network.refused),
            received: read(&network.received),
            refusals: read(&network.refusals),
            refusals_forged: read(&network.refusals_forged),
        })
    }
}

impl Receiver {
    /// Waits until something arrives on any network, then gives everything that is there.
    ///
    /// What it gives may be empty: then the kernel reported refusals and nothing else, and they wait for
    /// [`Receiver::take_refusals`]. Cancelling loses nothing.
    ///
    /// # Errors
    /// A socket failed for good; errors that single datagrams provoked are passed over.
    pub async fn receive(&mut self) -> io::Result<&mut [Datagram]> {
        loop {
            self.wait_ready().await?;
            // Reports first: while one waits, the kernel answers the next receive with its error.
            let is_refused = self.drain_errors()?;
            let count = self.drain()?;
            if count > 0 || is_refused {
                return Ok(self.datagrams.get_mut(..count).unwrap_or_default());
            }
        }
    }

    /// Gives what the kernel reported about datagrams of ours since the last time, oldest first.
    pub fn take_refusals(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.refusals)
    }

    async fn wait_ready(&self) -> io::Result<()> {
        // A report alone makes a socket ready for nothing but errors.
        let interest = Interest::READABLE.add(Interest::ERROR);
        let waits = self.networks.iter().map(|network| Box::pin(network.socket.ready(interest)));
        let waits: Vec<_> = waits.collect();
        if waits.is_empty() {
            return std::future::pending().await;
        }
        select_all(waits).await.0.map(|_| ())
    }

    /// Empties the error queues; whether there was a refusal.
    fn drain_errors(&mut self) -> io::Result<bool> {
        let before = self.refusals.len();
        let networks = Arc::clone(&self.networks);
        for (network, drained) in networks.iter().zip(&self.drained) {
            // Bounded, so that a flood of reports does not keep the datagrams waiting.
            for _ in 0..REFUSALS_MAX {
                let slot = &mut self.report;
                let next = network
                    .socket
                    .try_io(Interest::ERROR, || os::receive_error(network.socket.as_fd(), slot));
                let report = match next {
                    Ok(Some(report)) => report,
                    Ok(None) => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if is_report(error.kind()) => continue,
                    Err(error) => return Err(error),
                };
                let Some(refusal) = network.refusal(&report, slot, *drained) else { continue };
                network.refusals.fetch_add(1, Ordering::Relaxed);
                if !refusal.genuine {
                    network.refusals_forged.fetch_add(1, Ordering::Relaxed);
                }
                if self.refusals.len() < REFUSALS_MAX {
                    self.refusals.push(refusal);
                }
            }
        }
        Ok(self.refusals.len() > before)
    }

    fn drain(&mut self) -> io::Result<usize> {
        let mut count = 0;
        let networks = Arc::clone(&self.networks);
        for (network, drained) in networks.iter().zip(&mut self.drained) {
            let first = count;
            let empty = loop {
                if count >= RECEIVE_MAX {
                    break false;
                }
                let end = count + os::BATCH;
                while self.datagrams.len() < end {
                    self.datagrams.push(Datagram::empty());
                }
                match receive_batch(network, self.datagrams.get_mut(count..end).unwrap_or_default())? {
                    Some(more) => count += more,
                    None => break true,
                }
            };
            let batch = self.datagrams.get_mut(first..count).unwrap_or_default();
            date(batch, network.id, *drained);
            if empty {
                *drained = now();
            }
            let received = u64::try_from(count - first).unwrap_or_default();
            network.received.fetch_add(received, Ordering::Relaxed);
        }
        Ok(count)
    }
}

impl Network {
    fn new(id: NetworkId, socket: UdpSocket, local: SocketAddr) -> Self {
        let zero = || AtomicU64::new(0);
        let recent = Mutex::default();
        let (sent, dropped, refused, received) = (zero(), zero(), zero(), zero());
        let (refusals, refusals_forged) = (zero(), zero());
        Self { id, socket, local, sent, dropped, refused, received, refusals, refusals_forged, recent }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one report; `None` when it says nothing about who can be reached.
    fn refusal(&self, report: &os::ErrorReport, slot: &os::Slot, earliest: Time) -> Option<Refusal> {
        let peer = slot.from?;
        let is_from_peer = report.offender.is_some_and(|offender| offender.ip() == peer.ip());
        let kind = match report.errno {
            // A firewall on the way may say that a port is closed; only the peer's own kernel knows.
            libc::ECONNREFUSED if report.is_icmp && is_from_peer => RefusalKind::Port,
            libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::EACCES => RefusalKind::Host,
            libc::ENETUNREACH | libc::ENETDOWN => RefusalKind::Network,
            _ => return None,
        };
        let returned = slot.buffer.get(..slot.length).unwrap_or_default();
        let genuine = self.recent().is_ours(peer, returned);
        let received = Clocks::read().date(slot.stamp_realtime_ns, earliest);
        let payload = returned.iter().copied().take(PAYLOAD_BYTES_MAX).collect();
        Some(Refusal { network: self.id, peer, kind, received, payload, genuine })
    }
}

impl Datagram {
    fn empty() -> Self {
        Self { network: NetworkId(0), received: Time::ZERO, slot: os::Slot::new() }
    }
}

impl AsMut<os::Slot> for Datagram {
    fn as_mut(&mut self) -> &mut os::Slot {
        &mut self.slot
    }
}

/// Fetches one batch; `None` when the socket is empty.
fn receive_batch(network: &Network, into: &mut [Datagram]) -> io::Result<Option<usize>> {
    let result = network.socket.try_io(Interest::READABLE, || os::receive(network.socket.as_fd(), into));
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        // The peer of an earlier datagram refused it: news about that peer, not about this socket.
        Err(error) if is_report(error.kind()) => Ok(Some(0)),
        Err(error) => Err(error),
    }
}

fn is_report(kind: io::ErrorKind) -> bool {
    [
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::HostUnreachable,
        io::ErrorKind::NetworkUnreachable,
        io::ErrorKind::NetworkDown,
        io::ErrorKind::Interrupted,
    ]
    .contains(&kind)
}

/// Both clocks, read together.
struct Clocks {
    boot_ns: u64,
    wall_ns: u64,
}

impl Clocks {
    fn read() -> Self {
        Self { boot_ns: read_clock(ClockId::Boottime), wall_ns: read_clock(ClockId::Realtime) }
    }

    /// Converts the kernel's wall-clock stamp to this node's clock.
    ///
    /// A stamp can't be later than now nor earlier than the moment the socket was last seen empty, which
    /// bounds what a step of the wall clock between arrival and here can do.
    fn date(&self, stamp_realtime_ns: Option<u64>, earliest: Time) -> Time {
        let age_ns = stamp_realtime_ns.map_or(0, |stamp| self.wall_ns.saturating_sub(stamp));
        Time::from_nanos(self.boot_ns.saturating_sub(age_ns)).max(earliest)
    }
}

fn date(batch: &mut [Datagram], network: NetworkId, earliest: Time) {
    if batch.is_empty() {
        return;
    }
    let clocks = Clocks::read();
    for datagram in batch {
        datagram.received = clocks.date(datagram.slot.stamp_realtime_ns, earliest);
        datagram.network = network;
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // Priorities and queue lengths are improvements; a kernel that refuses them still carries datagrams.
    let improvements = [
        match address.ip() {
            IpAddr::V4(_) => socket.set_tos_v4(TYPE_OF_SERVICE),
            IpAddr::V6(_) => socket.set_tclass_v6(TYPE_OF_SERVICE),
        },
        socket.set_priority(PRIORITY),
        socket.set_recv_buffer_size(QUEUE_BYTES),
        socket.set_send_buffer_size(QUEUE_BYTES),
        os::enable_time_stamps(socket.as_fd()),
        os::enable_error_queue(socket.as_fd(), address),
    ];
    for error in improvements.into_iter().filter_map(Result::err) {
        tracing::debug!(%address, %error, "a datagram socket goes without one of its options");
    }
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn read_clock(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}
