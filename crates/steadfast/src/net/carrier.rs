//! Whether this node's own interfaces can carry anything: up, with a carrier, and still holding our address.
//!
//! The kernel announces every change over netlink within milliseconds, long before any heartbeat is missed.
//! This module reports the state of each network first and every change afterwards; it decides nothing, and an
//! interface that is up proves nothing about what lies behind it. It never changes an interface. Read next:
//! `refusal` and `watch`, the other witnesses.
//!
//! When the kernel drops announcements because too many came at once, the whole state is asked for again, so
//! that the last report is always right.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use steadfast_proto::ids::NetworkId;
use steadfast_proto::time::Time;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::datagram::now;
use super::netlink::{
    ATTRIBUTE_ADDRESS, ATTRIBUTE_FLAGS, ATTRIBUTE_LOCAL, Attributes, DEL_ADDRESS, DEL_LINK, DONE, ERROR,
    FLAG_INTERRUPTED, GET_ADDRESS, GET_LINK, GROUP_IPV4_ADDRESS, GROUP_IPV6_ADDRESS, GROUP_LINK, Message,
    Messages, NEW_ADDRESS, NEW_LINK, ip, number, question_for_all, receive,
};
use super::os;

/// Networks that are looked after at most.
pub const NETWORKS_MAX: usize = 16;

/// Interfaces that are remembered at most; containers can make many.
const INTERFACES_MAX: usize = 16 << 10;
/// Bytes of one read; the kernel sends at most 32 KiB in answer to a question.
const READ_BYTES: usize = 64 << 10;
/// Bytes that the kernel may queue, where it allows as much.
const QUEUE_BYTES: usize = 1 << 20;

/// A network of this node became usable or ceased to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarrierEvent {
    /// The network as configured.
    pub network: NetworkId,
    /// Whether an interface that is up and has a carrier holds this node's address on it.
    pub up: bool,
    /// When the kernel's announcement was read, on this node's clock.
    pub at: Time,
}

/// Interfaces can't be looked after. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("the kernel's announcements about interfaces can't be {action}: {source}")]
pub struct CarrierError {
    /// What was tried.
    pub action: &'static str,
    /// The operating system's answer.
    pub source: io::Error,
}

impl CarrierError {
    fn new<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self { action, source: error.into() }
    }
}

/// Looks after the interfaces that hold this node's addresses.
///
/// ```no_run
/// # use steadfast::net::carrier::Carrier;
/// # use steadfast_proto::ids::NetworkId;
/// # async fn example() -> Result<(), steadfast::net::carrier::CarrierError> {
/// let mut carrier = Carrier::open(&[(NetworkId(0), "10.0.1.11".parse().expect("an address"))])?;
/// loop {
///     let event = carrier.next().await?;
///     println!("network {} is {}", event.network, if event.up { "up" } else { "down" });
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Carrier {
    socket: AsyncFd<OwnedFd>,
    table: Table,
    phase: Phase,
    /// What was reported last, by network.
    reported: Vec<(NetworkId, IpAddr, Option<bool>)>,
    events: VecDeque<CarrierEvent>,
    buffer: Box<[u8]>,
}

/// What the kernel is being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Interfaces,
    Addresses,
    Live,
}

impl Carrier {
    /// Listens to the kernel, for the first [`NETWORKS_MAX`] of `addresses`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel offers no netlink socket.
    pub fn open(addresses: &[(NetworkId, IpAddr)]) -> Result<Self, CarrierError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without a protocol it is the one for routes, addresses and interfaces.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
            .map_err(CarrierError::new("opened"))?;
        // More room is an improvement only: what overflows is asked for again.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, QUEUE_BYTES);
        let groups = GROUP_LINK | GROUP_IPV4_ADDRESS | GROUP_IPV6_ADDRESS;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))
            .map_err(CarrierError::new("subscribed to"))?;
        let socket = os::readable(socket).map_err(CarrierError::new("waited for"))?;
        let reported: Vec<_> = addresses
            .iter()
            .take(NETWORKS_MAX)
            .map(|(network, address)| (*network, *address, None))
            .collect();
        let ours = reported.iter().map(|(_, address, _)| *address).collect();
        let mut carrier = Self {
            socket,
            table: Table::new(ours),
            phase: Phase::Live,
            reported,
            events: VecDeque::new(),
            buffer: vec![0; READ_BYTES].into(),
        };
        carrier.ask_all()?;
        Ok(carrier)
    }

    /// Waits for the next change; first gives the state of every network as it is now.
    ///
    /// Cancelling loses nothing.
    ///
    /// # Errors
    /// The socket failed for good.
    pub async fn next(&mut self) -> Result<CarrierEvent, CarrierError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let buffer = &mut self.buffer;
            let read = self.socket.async_io(Interest::READABLE, |socket| receive(socket, buffer)).await;
            match read {
                Ok(Some(length)) => self.take(length)?,
                Ok(None) => {}
                // Announcements were lost.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.ask_all()?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CarrierError::new("read")(error)),
            }
        }
    }

    fn take(&mut self, length: usize) -> Result<(), CarrierError> {
        let Some(bytes) = self.buffer.get(..length) else {
            // Longer than the buffer: something of it is lost.
            return self.ask_all();
        };
        let mut is_answered = false;
        for message in Messages(bytes) {
            match self.table.apply(message) {
                Applied::Noted => {}
                Applied::Done => is_answered = true,
                Applied::Interrupted => {
                    self.phase = Phase::Live;
                    return self.ask_all();
                }
                Applied::Failed(errno) => {
                    let error = io::Error::from_raw_os_error(errno);
                    return Err(CarrierError::new("asked for")(error));
                }
            }
        }
        if is_answered {
            match self.phase {
                Phase::Interfaces => {
                    self.phase = Phase::Addresses;
                    self.ask(GET_ADDRESS, 8)?;
                }
                Phase::Addresses | Phase::Live => self.phase = Phase::Live,
            }
        }
        if self.phase == Phase::Live {
            self.report();
        }
        Ok(())
    }

    fn report(&mut self) {
        let at = now();
        for (network, address, reported) in &mut self.reported {
            let up = self.table.is_up(*address);
            if *reported != Some(up) {
                *reported = Some(up);
                self.events.push_back(CarrierEvent { network: *network, up, at });
            }
        }
    }

    fn ask_all(&mut self) -> Result<(), CarrierError> {
        if self.phase != Phase::Live {
            // The kernel answers one question at a time; an answer under way has to end first.
            self.table.is_stale = true;
            return Ok(());
        }
        self.table.clear();
        self.phase = Phase::Interfaces;
        self.ask(GET_LINK, 16)
    }

    /// Asks for all of one kind; the body of such a question is a header of zeroes.
    fn ask(&self, kind: u16, body_bytes: usize) -> Result<(), CarrierError> {
        rustix::net::send(self.socket.get_ref(), &question_for_all(kind, body_bytes), SendFlags::DONTWAIT)
            .map_err(CarrierError::new("asked for"))?;
        Ok(())
    }
}

const INTERFACE_UP: u32 = 1;
const INTERFACE_LOOPBACK: u32 = 8;
const INTERFACE_CARRIER: u32 = 0x1_0000;
/// An IPv6 address that is still being checked for a duplicate, or has one, carries nothing.
const ADDRESS_UNUSABLE: u32 = 0x40 | 0x08;

/// What is known about interfaces and our addresses; pure.
#[derive(Debug)]
struct Table {
    ours: BTreeSet<IpAddr>,
    interfaces: BTreeMap<u32, Interface>,
    /// Which interface holds which of our addresses.
    held: BTreeSet<(IpAddr, u32)>,
    /// Something was lost while an answer was under way.
    is_stale: bool,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    is_up: bool,
    is_loopback: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Applied {
    Noted,
    Done,
    Interrupted,
    Failed(i32),
}

impl Table {
    fn new(ours: BTreeSet<IpAddr>) -> Self {
        Self { ours, interfaces: BTreeMap::new(), held: BTreeSet::new(), is_stale: false }
    }

    fn clear(&mut self) {
        self.interfaces.clear();
        self.held.clear();
        self.is_stale = false;
    }

    fn is_up(&self, address: IpAddr) -> bool {
        if address.is_loopback() {
            // Every address of the loopback range is there as soon as the interface is.
            return self.interfaces.values().any(|one| one.is_loopback && one.is_up);
        }
        if address.is_unspecified() {
            return self.interfaces.values().any(|one| !one.is_loopback && one.is_up);
        }
        let holders = self.held.range((address, 0)..=(address, u32::MAX));
        holders.into_iter().any(|(_, index)| self.interfaces.get(index).is_some_and(|one| one.is_up))
    }

    fn apply(&mut self, message: Message<'_>) -> Applied {
        if message.flags & FLAG_INTERRUPTED != 0 {
            self.is_stale = true;
        }
        match message.kind {
            DONE if std::mem::take(&mut self.is_stale) => Applied::Interrupted,
            DONE => Applied::Done,
            ERROR => match number::<4>(message.body).map(i32::from_ne_bytes) {
                Some(0) | None => Applied::Noted,
                Some(errno) => Applied::Failed(errno.saturating_neg()),
            },
            NEW_LINK | DEL_LINK => {
                self.apply_link(message.kind == NEW_LINK, message.body);
                Applied::Noted
            }
            NEW_ADDRESS | DEL_ADDRESS => {
                self.apply_address(message.kind == NEW_ADDRESS, message.body);
                Applied::Noted
            }
            // The kernel may announce what we do not know.
            _ => Applied::Noted,
        }
    }

    fn apply_link(&mut self, is_there: bool, body: &[u8]) {
        let index = body.get(4..).and_then(number).map(u32::from_ne_bytes);
        let flags = body.get(8..).and_then(number).map(u32::from_ne_bytes);
        let (Some(family), Some(index), Some(flags)) = (body.first(), index, flags) else { return };
        if *family != 0 {
            // A bridge speaks about its ports, not about interfaces that come and go.
            return;
        }
        if !is_there {
            self.interfaces.remove(&index);
            self.held.retain(|(_, holder)| *holder != index);
            return;
        }
        if self.interfaces.len() >= INTERFACES_MAX && !self.interfaces.contains_key(&index) {
            tracing::warn!(index, "more than {INTERFACES_MAX} interfaces: this one is not looked after");
            return;
        }
        let is_up = flags & INTERFACE_UP != 0 && flags & INTERFACE_CARRIER != 0;
        self.interfaces.insert(index, Interface { is_up, is_loopback: flags & INTERFACE_LOOPBACK != 0 });
    }

    fn apply_address(&mut self, is_there: bool, body: &[u8]) {
        let Some(index) = body.get(4..).and_then(number).map(u32::from_ne_bytes) else { return };
        let (mut address, mut local, mut flags) = (None, None, 0);
        for (kind, value) in Attributes(body.get(8..).unwrap_or_default()) {
            match kind {
                ATTRIBUTE_ADDRESS => address = ip(value),
                ATTRIBUTE_LOCAL => local = ip(value),
                ATTRIBUTE_FLAGS => flags = number(value).map_or(0, u32::from_ne_bytes),
                _ => {}
            }
        }
        // Of a point-to-point interface the first is the other end's.
        let Some(address) = local.or(address).filter(|one| self.ours.contains(one)) else { return };
        if is_there && flags & ADDRESS_UNUSABLE == 0 {
            self.held.insert((address, index));
        } else {
            self.held.remove(&(address, index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: u32 = INTERFACE_UP | INTERFACE_CARRIER;

    fn ours() -> IpAddr {
        IpAddr::from([10, 0, 1, 11])
    }

    fn link(family: u8, index: u32, flags: u32) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend([0; 4]);
        body
    }

    fn address(index: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![2, 24, 0, 0];
        body.extend(index.to_ne_bytes());
        for (kind, value) in attributes {
            body.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        body
    }

    fn apply(table: &mut Table, kind: u16, body: &[u8]) -> Applied {
        table.apply(Message { kind, flags: 0, body })
    }

    #[test]
    fn a_network_is_up_while_an_interface_with_carrier_holds_its_address() {
        let mut table = Table::new([ours()].into());
        let held = address(7, &[(ATTRIBUTE_ADDRESS, &[10, 0, 1, 254]), (ATTRIBUTE_LOCAL, &[10, 0, 1, 11])]);
        apply(&mut table, NEW_ADDRESS, &held);
        assert!(!table.is_up(ours()), "its interface is not known");
        apply(&mut table, NEW_LINK, &link(0, 7, UP));
        assert!(table.is_up(ours()));
        apply(&mut table, NEW_LINK, &link(0, 7, INTERFACE_UP));
        assert!(!table.is_up(ours()), "the cable is out");
        apply(&mut table, NEW_LINK, &link(0, 7, UP));
        apply(&mut table, DEL_LINK, &link(7, 7, UP));
        assert!(table.is_up(ours()), "it only left a bridge");
        apply(&mut table, DEL_ADDRESS, &held);
        assert!(!table.is_up(ours()));
        apply(&mut table, NEW_ADDRESS, &address(7, &[(ATTRIBUTE_ADDRESS, &[10, 0, 1, 11])]));
        assert!(table.is_up(ours()));
        apply(&mut table, DEL_LINK, &link(0, 7, UP));
        assert!(!table.is_up(ours()));
        apply(&mut table, NEW_LINK, &link(0, 7, UP));
        assert!(!table.is_up(ours()), "an interface comes back without addresses");
    }

    #[test]
    fn an_address_that_is_still_being_checked_carries_nothing() {
        let six: IpAddr = "fd00::11".parse().unwrap();
        let IpAddr::V6(bytes) = six else { unreachable!() };
        let mut table = Table::new([six].into());
        apply(&mut table, NEW_LINK, &link(0, 3, UP));
        let with = |flags: u32| {
            address(3, &[(ATTRIBUTE_ADDRESS, &bytes.octets()), (ATTRIBUTE_FLAGS, &flags.to_ne_bytes())])
        };
        apply(&mut table, NEW_ADDRESS, &with(0x40));
        assert!(!table.is_up(six));
        apply(&mut table, NEW_ADDRESS, &with(0x80));
        assert!(table.is_up(six));
    }

    #[test]
    fn loopback_and_unspecified_addresses_follow_their_interfaces() {
        let (loopback, any) = (IpAddr::from([127, 0, 1, 7]), IpAddr::from([0, 0, 0, 0]));
        let mut table = Table::new([loopback, any].into());
        apply(&mut table, NEW_LINK, &link(0, 1, UP | INTERFACE_LOOPBACK));
        assert!(table.is_up(loopback) && !table.is_up(any));
        apply(&mut table, NEW_LINK, &link(0, 2, UP));
        apply(&mut table, NEW_LINK, &link(0, 1, INTERFACE_LOOPBACK));
        assert!(!table.is_up(loopback) && table.is_up(any));
    }

    #[test]
    fn an_answer_that_was_disturbed_is_asked_for_again() {
        let mut table = Table::new(BTreeSet::new());
        assert_eq!(apply(&mut table, DONE, &[]), Applied::Done);
        table.apply(Message { kind: NEW_LINK, flags: FLAG_INTERRUPTED, body: &link(0, 1, UP) });
        assert_eq!(apply(&mut table, DONE, &[]), Applied::Interrupted);
        assert_eq!(apply(&mut table, DONE, &[]), Applied::Done);
        assert_eq!(apply(&mut table, ERROR, &(-13_i32).to_ne_bytes()), Applied::Failed(13));
    }

    #[test]
    fn whatever_is_read_is_cut_into_messages_without_a_panic() {
        let mut read = Vec::new();
        for (kind, body) in [(NEW_LINK, link(0, 5, UP)), (DONE, vec![0; 3])] {
            read.extend(u32::try_from(body.len() + 16).unwrap().to_ne_bytes());
            read.extend(kind.to_ne_bytes());
            read.extend([0; 10]);
            read.extend(body);
            read.resize(read.len().next_multiple_of(4), 0);
        }
        let kinds: Vec<_> = Messages(&read).map(|one| one.kind).collect();
        assert_eq!(kinds, [NEW_LINK, DONE]);
        for end in 0..read.len() {
            assert!(Messages(&read[..end]).count() <= 2);
            for place in 0..end {
                let mut damaged = read[..end].to_vec();
                damaged[place] ^= 0xff;
                let mut table = Table::new([ours()].into());
                for message in Messages(&damaged).take(64) {
                    table.apply(message);
                }
            }
        }
        assert_eq!(Messages(&[0; 64]).count(), 0, "a length of zero does not spin");
    }
}
