//! Which peers are known to know this node's session, so that the short form is enough for them.
//!
//! It decides the form of each datagram from proofs alone: a peer's echo of something that was sealed in this
//! session and not long ago. It touches no clock, and forgets rather than guesses: an introduction too many costs
//! bytes, one too few makes this node unheard. Read next: `super` for what the forms are.

use std::collections::BTreeMap;
use std::time::Duration;

use steadfast_proto::ids::{NetworkId, NodeId};
use steadfast_proto::time::Time;

use super::{Form, NETWORKS_MAX, SOURCES_MAX};

/// For each peer and network, when the newest thing left here that the peer proved to have opened.
///
/// Per network, because a peer can complete a short form only on a network on which it heard this session. A
/// proof grows old, because the peer may have restarted meanwhile, and this node need not have heard of that.
///
/// ```
/// use std::time::Duration;
/// use steadfast::net::seal::{Form, Introduced};
/// use steadfast_proto::ids::{NetworkId, NodeId};
/// use steadfast_proto::time::Time;
///
/// let (peer, network) = (NodeId(7), NetworkId(0));
/// let at = |ms: u64| Time::from_nanos(ms * 1_000_000);
/// let mut introduced = Introduced::new(at(0), Duration::from_secs(1));
/// assert_eq!(introduced.form(at(100), peer, network), Form::Introduction);
/// introduced.echoed(at(150), peer, network, Some(at(100)));
/// assert_eq!(introduced.form(at(200), peer, network), Form::Short);
/// assert_eq!(introduced.form(at(1_200), peer, network), Form::Introduction);
/// ```
#[derive(Clone, Debug)]
pub struct Introduced {
    since: Time,
    age_max: Duration,
    proofs: BTreeMap<(NodeId, NetworkId), Time>,
}

impl Introduced {
    /// Nobody knows this session, which begins now; a proof counts for `age_max` after what it proves was sent.
    #[must_use]
    pub const fn new(now: Time, age_max: Duration) -> Self {
        Self { since: now, age_max, proofs: BTreeMap::new() }
    }

    /// Another session begins: the sealer was made anew or its key rotated.
    pub fn restart(&mut self, now: Time) {
        self.since = now;
        self.proofs.clear();
    }

    /// What a peer's newest fresh datagram echoes on this network: when what it heard of us was sent, on our own
    /// clock; nothing if it heard nothing. Only for datagrams that answered this start's challenge.
    pub fn echoed(&mut self, now: Time, peer: NodeId, network: NetworkId, sent_at: Option<Time>) {
        let place = (peer, network);
        // What was sent in the very moment of the start may have been sealed before it.
        let Some(sent_at) = sent_at.filter(|at| *at > self.since && *at <= now) else {
            self.proofs.remove(&place);
            return;
        };
        if self.proofs.len() < SOURCES_MAX * NETWORKS_MAX || self.proofs.contains_key(&place) {
            self.proofs.insert(place, sent_at);
        }
    }

    /// Forgets a peer that left.
    pub fn forget(&mut self, peer: NodeId) {
        self.proofs.retain(|(one, _), _| *one != peer);
    }

    /// The form in which to seal what is sent to a peer now.
    #[must_use]
    pub fn form(&self, now: Time, peer: NodeId, network: NetworkId) -> Form {
        match self.proofs.get(&(peer, network)) {
            Some(sent_at) if now.since(*sent_at) <= self.age_max => Form::Short,
            Some(_) | None => Form::Introduction,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId(7);
    const FRONT: NetworkId = NetworkId(0);
    const BACK: NetworkId = NetworkId(1);

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    fn introduced() -> Introduced {
        let mut introduced = Introduced::new(at(1_000), Duration::from_secs(1));
        introduced.echoed(at(1_200), PEER, FRONT, Some(at(1_100)));
        introduced
    }

    #[test]
    fn one_network_proves_nothing_for_another() {
        assert_eq!(introduced().form(at(1_200), PEER, FRONT), Form::Short);
        assert_eq!(introduced().form(at(1_200), PEER, BACK), Form::Introduction);
        assert_eq!(introduced().form(at(1_200), NodeId(8), FRONT), Form::Introduction);
    }

    #[test]
    fn a_peer_that_echoes_nothing_or_another_session_is_introduced_again() {
        for echo in [None, Some(at(999)), Some(at(1_000)), Some(at(1_301))] {
            let mut introduced = introduced();
            introduced.echoed(at(1_300), PEER, FRONT, echo);
            assert_eq!(introduced.form(at(1_300), PEER, FRONT), Form::Introduction, "{echo:?}");
        }
        let mut introduced = introduced();
        introduced.restart(at(1_300));
        assert_eq!(introduced.form(at(1_300), PEER, FRONT), Form::Introduction);
        introduced.echoed(at(1_400), PEER, FRONT, Some(at(1_299)));
        assert_eq!(introduced.form(at(1_400), PEER, FRONT), Form::Introduction);
    }

    #[test]
    fn a_peer_whose_proof_is_old_or_who_left_is_introduced_again() {
        assert_eq!(introduced().form(at(2_100), PEER, FRONT), Form::Short);
        assert_eq!(introduced().form(at(2_101), PEER, FRONT), Form::Introduction);
        let mut introduced = introduced();
        introduced.forget(PEER);
        assert_eq!(introduced.form(at(1_200), PEER, FRONT), Form::Introduction);
    }

    #[test]
    fn a_full_table_introduces_the_rest() {
        let mut introduced = introduced();
        for peer in 0..u128::try_from(SOURCES_MAX * NETWORKS_MAX).unwrap() {
            introduced.echoed(at(1_200), NodeId(1_000 + peer), FRONT, Some(at(1_100)));
        }
        let last = NodeId(999 + u128::try_from(SOURCES_MAX * NETWORKS_MAX).unwrap());
        assert_eq!(introduced.form(at(1_200), last, FRONT), Form::Introduction);
        introduced.echoed(at(1_300), PEER, FRONT, Some(at(1_200)));
        assert_eq!(introduced.form(at(2_150), PEER, FRONT), Form::Short);
    }
}
