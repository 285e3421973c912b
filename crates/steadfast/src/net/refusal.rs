//! What the kernel says about a datagram that did not get through, and whether to believe it.
//!
//! An ICMP error names the datagram that provoked it by returning its head. Anybody can send one, so it is
//! genuine only when that head is of something that we sent lately: the cipher text is a secret from who does
//! not see our packets. It decides nothing about the peer: a refusal is evidence, and others must agree.
//! Kernels limit how many they send: that none came means nothing. Read next: `datagram`, which fills and asks
//! this memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use steadfast_proto::ids::NetworkId;
use steadfast_proto::time::Time;

/// Bytes of a returned head that are handed out; a router may return less.
pub(super) const PAYLOAD_BYTES_MAX: usize = 548;

/// Datagrams per destination that are remembered.
const HEADS: usize = 8;
/// Bytes of each that are remembered: a whole clear header and some cipher text behind it.
const HEAD_BYTES: usize = 96;
/// Destinations that one network remembers; the one that waited longest makes room.
const DESTINATIONS_MAX: usize = 128;

/// What could not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalKind {
    /// The peer's own kernel says that nobody listens there: the process is gone, the machine lives.
    Port,
    /// The machine does not answer on that network, or somebody before it turns the datagram away.
    Host,
    /// There is no route.
    Network,
}

/// One report by the kernel that a datagram of ours was not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The network that the datagram was sent on.
    pub network: NetworkId,
    /// Whom it was sent to.
    pub peer: SocketAddr,
    /// What could not be reached.
    pub kind: RefusalKind,
    /// When the report came, on this node's clock.
    pub received: Time,
    /// The head of the datagram as it was returned, at most 548 bytes.
    pub payload: Vec<u8>,
    /// Whether that is the head of a datagram that we sent to this peer lately. Without it, it is no evidence.
    pub genuine: bool,
}

/// What was sent lately on one network, by destination.
#[derive(Debug, Default)]
pub(super) struct Recent {
    destinations: BTreeMap<SocketAddr, Ring>,
    sends: u64,
}

#[derive(Debug)]
struct Ring {
    heads: [Head; HEADS],
    next: usize,
    used: u64,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    /// Bytes of the whole datagram; zero when nothing was sent yet.
    length: usize,
    bytes: [u8; HEAD_BYTES],
}

impl Recent {
    /// Remembers what is about to be sent.
    pub(super) fn note(&mut self, to: SocketAddr, datagram: &[u8]) {
        self.sends = self.sends.wrapping_add(1);
        if self.destinations.len() >= DESTINATIONS_MAX && !self.destinations.contains_key(&to) {
            let oldest = self.destinations.iter().min_by_key(|(_, ring)| ring.used).map(|(at, _)| *at);
            oldest.map(|at| self.destinations.remove(&at));
        }
        let ring = self.destinations.entry(to).or_insert(Ring::EMPTY);
        ring.used = self.sends;
        if let Some(head) = ring.heads.get_mut(ring.next) {
            head.length = datagram.len();
            head.bytes.iter_mut().zip(datagram).for_each(|(to, from)| *to = *from);
        }
        ring.next = (ring.next + 1) % HEADS;
    }

    /// Whether `returned` is the head of something that was sent to `peer` lately.
    pub(super) fn is_ours(&self, peer: SocketAddr, returned: &[u8]) -> bool {
        self.destinations
            .get(&peer)
            .is_some_and(|ring| ring.heads.iter().any(|head| head.begins_as(returned)))
    }
}

impl Ring {
    const EMPTY: Self = Self { heads: [Head { length: 0, bytes: [0; HEAD_BYTES] }; HEADS], next: 0, used: 0 };
}

impl Head {
    fn begins_as(&self, returned: &[u8]) -> bool {
        // A head that shows less than what we remember could be guessed: it proves nothing.
        let known = self.bytes.get(..self.length).unwrap_or(&self.bytes);
        !known.is_empty() && returned.len() <= self.length && returned.starts_with(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn only_what_was_sent_lately_to_that_peer_is_ours() {
        let mut recent = Recent::default();
        let datagrams: Vec<Vec<u8>> = (0..=8_u8).map(|number| vec![number; 200]).collect();
        for datagram in &datagrams {
            recent.note(peer(1), datagram);
        }
        assert!(!recent.is_ours(peer(1), &datagrams[0]), "eight later ones took its place");
        for datagram in &datagrams[1..] {
            assert!(recent.is_ours(peer(1), datagram));
            assert!(recent.is_ours(peer(1), &datagram[..96]), "a router returns only a head");
            assert!(!recent.is_ours(peer(1), &datagram[..95]), "too little proves nothing");
            assert!(!recent.is_ours(peer(2), datagram), "it was not sent there");
        }
        let mut altered = datagrams[8].clone();
        altered[95] ^= 1;
        assert!(!recent.is_ours(peer(1), &altered));
        assert!(!recent.is_ours(peer(1), &[]));
        assert!(!recent.is_ours(peer(1), &[8; 201]), "longer than what was sent");
    }

    #[test]
    fn a_short_datagram_must_come_back_whole() {
        let mut recent = Recent::default();
        recent.note(peer(1), b"alive");
        assert!(recent.is_ours(peer(1), b"alive"));
        assert!(!recent.is_ours(peer(1), b"aliv"));
        assert!(!recent.is_ours(peer(1), b"alive!"));
        recent.note(peer(1), b"");
        assert!(!recent.is_ours(peer(1), b""));
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_who_was_spoken_to_last() {
        let mut recent = Recent::default();
        recent.note(peer(9999), b"long ago");
        for port in 0..300 {
            recent.note(peer(1), b"always");
            recent.note(peer(1000 + port), b"once");
        }
        assert_eq!(recent.destinations.len(), DESTINATIONS_MAX);
        assert!(recent.is_ours(peer(1), b"always"));
        assert!(recent.is_ours(peer(1299), b"once"));
        assert!(!recent.is_ours(peer(9999), b"long ago"));
    }
}
