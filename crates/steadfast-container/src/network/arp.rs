//! Decides whether somebody on the bridge already has an address (RFC 5227, shortened), and tells the neighbours where
//! an address is now.
//!
//! Must never claim an address while asking: probes carry no sender address.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{RecvFlags, SendFlags, recv, send},
    time::Timespec,
};

use super::netlink::{field, interface_index};
use crate::sys;

const BROADCAST: [u8; 6] = [0xff; 6];
/// When probes leave, and when waiting ends: neighbours on a local bridge answer within a millisecond.
const PROBES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(30), Duration::from_millis(60)];
const WAIT: Duration = Duration::from_millis(110);

/// Writes a hardware address the usual way.
pub(crate) fn text(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// Who has `address` on `bridge`, if anybody answers.
pub(crate) fn holder(bridge: &str, address: Ipv4Addr, probe_from: [u8; 6]) -> io::Result<Option<String>> {
    if UdpSocket::bind((address, 0)).is_ok() {
        return Ok(Some("this host itself".to_owned()));
    }
    let socket = sys::arp_socket(interface_index(bridge)?)?;
    let probe = frame(1, probe_from, Ipv4Addr::UNSPECIFIED, [0; 6], address);
    let began = Instant::now();
    let mut probes = PROBES.iter();
    let mut next = probes.next();
    loop {
        let elapsed = began.elapsed();
        if elapsed >= WAIT {
            return Ok(None);
        }
        if next.is_some_and(|at| elapsed >= *at) {
            send(&socket, &probe, SendFlags::empty())?;
            next = probes.next();
        }
        let until = next.copied().unwrap_or(WAIT).saturating_sub(elapsed);
        let Ok(timeout) = Timespec::try_from(until) else { return Ok(None) };
        if poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout))? == 0 {
            continue;
        }
        let mut buffer = [0; 128];
        let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
        if let Some(sender) = buffer.get(..length).and_then(|bytes| conflict(bytes, address, probe_from)) {
            return Ok(Some(text(sender)));
        }
    }
}

/// Whether a received frame shows that somebody else uses or wants `address`.
pub(crate) fn conflict(bytes: &[u8], address: Ipv4Addr, own: [u8; 6]) -> Option<[u8; 6]> {
    let operation = u16::from_be_bytes(field(bytes, 20)?);
    let sender: [u8; 6] = field(bytes, 22)?;
    let sender_address = Ipv4Addr::from(field::<4>(bytes, 28)?);
    let target_address = Ipv4Addr::from(field::<4>(bytes, 38)?);
    let uses = sender_address == address;
    let wants =
        operation == 1 && sender_address.is_unspecified() && target_address == address && sender != own;
    (uses || wants).then_some(sender)
}

/// Tells the neighbours which hardware address has an address now, through a socket that stays open.
#[derive(Debug)]
pub(crate) struct Announcer {
    socket: OwnedFd,
    frames: [Vec<u8>; 2],
}

impl Announcer {
    /// On an interface of the calling thread's name space.
    pub(crate) fn open(interface: &str, address: Ipv4Addr, hardware: [u8; 6]) -> io::Result<Self> {
        let socket = sys::arp_socket(interface_index(interface)?)?;
        // As a request and as a reply: some neighbours listen to one only.
        let frames = [1, 2].map(|operation| frame(operation, hardware, address, BROADCAST, address));
        Ok(Self { socket, frames })
    }

    pub(crate) fn announce(&self) -> io::Result<()> {
        for frame in &self.frames {
            send(&self.socket, frame, SendFlags::empty())?;
        }
        Ok(())
    }
}

fn frame(
    operation: u16,
    sender: [u8; 6],
    sender_address: Ipv4Addr,
    target: [u8; 6],
    target_address: Ipv4Addr,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(42);
    bytes.extend_from_slice(&BROADCAST);
    bytes.extend_from_slice(&sender);
    bytes.extend_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4]);
    bytes.extend_from_slice(&operation.to_be_bytes());
    bytes.extend_from_slice(&sender);
    bytes.extend_from_slice(&sender_address.octets());
    bytes.extend_from_slice(&target);
    bytes.extend_from_slice(&target_address.octets());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_conflict_and_our_own_probe_is_not() {
        let address = Ipv4Addr::new(10, 0, 0, 1);
        let (own, other) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let answer = frame(2, other, address, own, Ipv4Addr::UNSPECIFIED);
        assert_eq!(conflict(&answer, address, own), Some(other));
        let probe = frame(1, own, Ipv4Addr::UNSPECIFIED, [0; 6], address);
        assert_eq!(conflict(&probe, address, own), None);
        assert_eq!(conflict(&probe, address, other), Some(own));
        assert_eq!(conflict(&answer[..30], address, own), None);
    }
}
