//! What the detector is told by the kernel, and what it has to say.

use std::time::Duration;

use super::verdict::Verdict;
use crate::ids::{NetworkId, NodeId};
use crate::time::Time;
use crate::wire::{LinkState, Why};

/// What the kernel says of a peer; the caller vouches that it is about this incarnation (a keyed challenge).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Its kernel refused a datagram of ours, or ended our connection: the agent is gone.
    Gone,
    /// It said goodbye.
    Goodbye,
    /// Its kernel acknowledges, its agent says nothing.
    Acknowledges,
    /// Its kernel does not acknowledge either.
    Unreachable,
}

/// The rule that made a suspicion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It missed too many heartbeats (4.4).
    Gossip,
    /// It lagged too far behind the others (3.1, 3.2).
    Relative,
    /// Its timeout passed (3.3).
    Timeout,
    /// Its kernel testified.
    Kernel,
    /// It says that it hears nobody here.
    Deaf,
}

/// Why this node suspects a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// Since when.
    pub since: Time,
    /// What was noticed.
    pub why: Why,
    /// By which rule.
    pub rule: Rule,
    /// Since when it has been heard again, while it is not yet believed.
    pub(super) heard_since: Option<Time>,
}

/// A change of this node's opinion.
#[derive(Clone, Debug, PartialEq)]
pub enum Opinion {
    /// This node suspects a peer.
    Suspected {
        /// Who.
        peer: NodeId,
        /// What was noticed.
        why: Why,
        /// By which rule.
        rule: Rule,
        /// For how long it has been silent.
        silent: Duration,
        /// How long it may be.
        limit: Duration,
        /// The freshest other peer, and how long it was silent.
        fresh: Option<(NodeId, Duration)>,
    },
    /// A suspected peer is heard again.
    Cleared(NodeId),
    /// This node's link to a peer changed.
    Link {
        /// To whom.
        peer: NodeId,
        /// On which network.
        network: NetworkId,
        /// What it did.
        from: LinkState,
        /// What it does.
        to: LinkState,
    },
    /// Every peer that is heard on another network is silent on this one.
    NetworkSuspected {
        /// Which.
        network: NetworkId,
        /// Whether there is only one peer, so that it may be its link alone.
        or_link: bool,
    },
    /// A suspected network carries heartbeats again.
    NetworkCleared(NetworkId),
    /// No peer is heard on any network, or none hears us: this node is cut off, or every other one is.
    Isolated,
    /// A peer is heard again.
    Reconnected,
    /// What everybody's claims prove.
    Verdict(Verdict),
    /// A verdict holds no longer.
    Over(Verdict),
}

/// What one link does, and how well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// What it does.
    pub state: LinkState,
    /// Since when.
    pub since: Time,
    /// When something last came on it.
    pub heard_at: Time,
    /// The mean round trip, once one was measured.
    pub round_trip: Option<Duration>,
    /// How much round trips deviate from it.
    pub deviation: Duration,
    /// The share of heartbeats that it lost lately, in thousandths.
    pub loss_permille: u16,
}
