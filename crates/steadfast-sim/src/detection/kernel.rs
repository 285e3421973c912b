//! What kernels say about agents: ends of connections, refusals, and whether one still acknowledges.
//!
//! Each pair that watches one another holds a connection. A killed agent's kernel ends it at once and refuses the
//! datagrams that come after; a stopped agent's kernel goes on acknowledging; a dead machine's says nothing. What is
//! said travels like a datagram, and is sent again after a moment when it is lost. Must never look into an agent.

use steadfast_proto::detect::{Detector, Evidence};

use super::queue::Event;
use super::world::{World, id_of, index_of, small};

/// How long a kernel waits before it sends a segment again.
const RETRANSMIT: u64 = 200_000_000;

/// How often it does, for what is said here.
const ATTEMPTS: u64 = 5;

impl World {
    /// The kernel of `node` ends every connection of its agent, which is gone.
    pub(super) fn close_connections(&mut self, node: usize, evidence: Evidence) {
        let Some(detector) = &self.agents[node].detector else { return };
        let observers: Vec<usize> =
            detector.members().neighbours(id_of(node)).iter().map(|id| index_of(*id)).collect();
        for observer in observers {
            let delay = (0..ATTEMPTS).find_map(|attempt| {
                let again = RETRANSMIT * ((1 << attempt) - 1);
                self.path(node, observer).map(|delay| again + delay)
            });
            if let Some(delay) = delay {
                self.tell(observer, node, evidence, delay, false);
            }
        }
    }

    /// The kernel of `to`, where nobody listens, refuses a datagram of `from`.
    pub(super) fn refuse(&mut self, to: usize, from: usize, network: usize) {
        // An agent knows of whom a refusal speaks only if it has heard that peer.
        let knows =
            |detector: &Detector| detector.incarnation_of(id_of(to)).is_some_and(|(_, boot)| boot != 0);
        if !self.agents[from].detector.as_ref().is_some_and(knows) {
            return;
        }
        let now = self.now;
        if let Some(delay) = self.medium.transit(now, network, to, from, &mut self.random) {
            self.tell(from, to, Evidence::Gone, delay, false);
        }
    }

    /// `observer` asks its kernel whether that of `peer` acknowledges; one question at a time.
    pub(super) fn probe(&mut self, observer: usize, peer: usize) {
        if peer >= self.agents.len() || !self.probing.insert((small(observer), small(peer))) {
            return;
        }
        let evidence = match &self.agents[peer] {
            agent if !agent.host_up => None,
            agent if agent.detector.is_none() => Some(Evidence::Gone),
            _ => Some(Evidence::Acknowledges),
        };
        let round_trip = evidence.and_then(|_| {
            (0..2).find_map(|attempt| {
                let there = self.path(observer, peer)?;
                let back = self.path(peer, observer)?;
                Some(attempt * RETRANSMIT + there + back)
            })
        });
        match (evidence, round_trip) {
            (Some(evidence), Some(round_trip)) => self.tell(observer, peer, evidence, round_trip, true),
            _ => self.tell(observer, peer, Evidence::Unreachable, RETRANSMIT, true),
        }
    }

    /// How long one segment takes on the first network that carries it.
    pub(super) fn path(&mut self, from: usize, to: usize) -> Option<u64> {
        let now = self.now;
        (0..self.medium.count())
            .find_map(|network| self.medium.transit(now, network, from, to, &mut self.random))
    }

    fn tell(&mut self, observer: usize, peer: usize, evidence: Evidence, delay: u64, is_answer: bool) {
        let event = Event::Testimony {
            observer: small(observer),
            life: self.agents[observer].life,
            peer: small(peer),
            peer_life: self.agents[peer].life,
            evidence,
            is_answer,
        };
        self.queue.push(self.now + delay, event);
    }
}
