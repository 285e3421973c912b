//! Closes a container's TCP connections to the outside: after a loss the program wakes in its past, and its peers have
//! gone on without it. Listeners, and connections whose both ends are inside, stay.
//!
//! Must run inside the container's name space, before its processes may run. The program sees `ECONNABORTED`.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use rustix::net::netlink;

use super::netlink::{ACK, DUMP, Message, Socket, field};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const TCP: u8 = 6;
const FAMILIES: [u8; 2] = [2, 10];
/// All states but CLOSE (7), LISTEN (10) and TIME_WAIT (6), as a bit mask.
const CONNECTED: u32 = 0xfff & !(1 << 6) & !(1 << 7) & !(1 << 10) & !1;
/// Length of `struct inet_diag_sockid`.
const ID_BYTES: usize = 48;

/// One connection as the kernel lists it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    family: u8,
    id: [u8; ID_BYTES],
    local: IpAddr,
    remote: IpAddr,
}

/// Destroys every connection whose other end is not inside; returns how many.
pub(crate) fn close_outside() -> io::Result<usize> {
    let socket = Socket::open(Some(netlink::SOCK_DIAG))?;
    let mut connections = Vec::new();
    for (sequence, family) in (1..).zip(FAMILIES) {
        let message = Message::new(SOCK_DIAG_BY_FAMILY, DUMP, sequence)
            .raw(&request(family, CONNECTED, &[0; ID_BYTES]))
            .finish();
        socket.dump(&message, |bytes| connections.extend(connection(bytes)))?;
    }
    let inside: BTreeSet<IpAddr> = connections.iter().map(|c| c.local).collect();
    let mut closed = 0;
    for (sequence, outside) in
        (100..).zip(connections.iter().filter(|c| !c.remote.is_loopback() && !inside.contains(&c.remote)))
    {
        let message = Message::new(SOCK_DESTROY, ACK, sequence)
            .raw(&request(outside.family, u32::MAX, &outside.id))
            .finish();
        match socket.request(&message, sequence) {
            Ok(()) => closed += 1,
            // It ended by itself meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(closed)
}

/// Each Unix socket of the calling thread's name space and the inode of its other end; 0 where that has none.
pub(crate) fn unix_peers() -> io::Result<Vec<(u32, u32)>> {
    const UNIX: u8 = 1;
    const SHOW_PEER: u32 = 4;
    // struct unix_diag_req: family, protocol, pad, states, inode, what to show, cookie.
    let mut body = vec![UNIX, 0, 0, 0];
    for word in [u32::MAX, 0, SHOW_PEER, u32::MAX, u32::MAX] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    let mut peers = Vec::new();
    let message = Message::new(SOCK_DIAG_BY_FAMILY, DUMP, 1).raw(&body).finish();
    Socket::open(Some(netlink::SOCK_DIAG))?.dump(&message, |bytes| peers.extend(unix_peer(bytes)))?;
    Ok(peers)
}

/// Reads `struct unix_diag_msg` and its attribute that names the peer.
pub(crate) fn unix_peer(bytes: &[u8]) -> Option<(u32, u32)> {
    const PEER: u16 = 2;
    const MESSAGE_BYTES: usize = 16;
    let inode = u32::from_ne_bytes(field(bytes, 4)?);
    let mut rest = bytes.get(MESSAGE_BYTES..)?;
    while let (Some(length), Some(kind)) = (field::<2>(rest, 0), field::<2>(rest, 2)) {
        if u16::from_ne_bytes(kind) == PEER {
            return Some((inode, u32::from_ne_bytes(field(rest, 4)?)));
        }
        let length = usize::from(u16::from_ne_bytes(length)).max(4);
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, id: &[u8; ID_BYTES]) -> Vec<u8> {
    let mut bytes = vec![family, TCP, 0, 0];
    bytes.extend_from_slice(&states.to_ne_bytes());
    bytes.extend_from_slice(id);
    bytes
}

/// Reads `struct inet_diag_msg`.
pub(crate) fn connection(bytes: &[u8]) -> Option<Connection> {
    let family = *bytes.first()?;
    let id: [u8; ID_BYTES] = field(bytes, 4)?;
    let address = |at| -> Option<IpAddr> {
        if family == 2 {
            return Some(Ipv4Addr::from(field::<4>(&id, at)?).into());
        }
        let address = Ipv6Addr::from(field::<16>(&id, at)?);
        Some(address.to_ipv4_mapped().map_or(address.into(), IpAddr::from))
    };
    Some(Connection { family, local: address(4)?, remote: address(20)?, id })
}
