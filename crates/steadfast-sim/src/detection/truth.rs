//! What is true in the world, against which opinions are held.
//!
//! An opinion is right when a fault that is under way, or ended a moment ago, accounts for it. Blaming a node whose
//! links alone are cut is wrong; so is blaming a peer while it is oneself who is cut off. Must never be asked by a
//! detector.

use std::time::Duration;

use steadfast_proto::detect::{Class, Opinion, Subject, Verdict};
use steadfast_proto::ids::NodeId;
use steadfast_proto::wire::LinkState;

use super::fault::{Kind, Struck};
use super::plan::nanos;
use super::world::{World, id_of, index_of};

/// For how long after a fault an opinion that it caused is still right.
const GRACE: Duration = Duration::from_secs(10);

/// Loss at one node from which on it may be called down.
const CRIPPLING_LOSS: f64 = 0.5;

impl World {
    /// Whether `opinion`, formed by `observer` now, accounts for what is going on. Good news is always right.
    pub(super) fn is_right(&self, observer: usize, opinion: &Opinion) -> bool {
        match opinion {
            Opinion::Suspected { peer, .. } => self.is_node_right(observer, *peer),
            Opinion::Verdict(verdict) => self.is_verdict_right(observer, verdict),
            Opinion::Link { peer, network, to, .. } => {
                let is_bad = matches!(to, LinkState::Deaf | LinkState::Mute | LinkState::Down);
                let network = usize::from(network.0);
                !is_bad
                    || self.recent().any(|struck| touches_link(struck, observer, index_of(*peer), network))
            }
            Opinion::NetworkSuspected { network, .. } => {
                self.recent().any(|struck| touches(struck, observer, usize::from(network.0)))
            }
            // When all take longer from some moment on, nothing comes for as long.
            Opinion::Isolated => {
                let is_slow = self.recent().any(|struck| struck.fault.kind == Kind::Delay);
                is_slow
                    || self.is_victim(observer)
                    || self.has_no_network(observer)
                    || self.lost_all_peers(observer)
            }
            Opinion::Cleared(_) | Opinion::NetworkCleared(_) | Opinion::Reconnected | Opinion::Over(_) => {
                true
            }
        }
    }

    fn is_verdict_right(&self, observer: usize, verdict: &Verdict) -> bool {
        let network = verdict.subject.network().map_or(0, |network| usize::from(network.0));
        match &verdict.subject {
            Subject::Node(node) if index_of(*node) == observer && verdict.class == Class::NodeIsolated => {
                self.is_right(observer, &Opinion::Isolated)
            }
            Subject::Node(node) => self.is_node_right(observer, *node),
            Subject::Nodes(nodes) => nodes.iter().all(|node| self.is_node_right(observer, *node)),
            Subject::NodeNetwork(node, _) => {
                let node = index_of(*node);
                let few = self.plan.nodes <= 3;
                self.recent().any(|struck| {
                    touches(struck, node, network)
                        || (few && struck.fault.kind == Kind::CutLink && struck.nodes.contains(&node))
                })
            }
            Subject::Network(_) => self.recent().any(|struck| {
                matches!(struck.fault.kind, Kind::CutNetwork | Kind::Split | Kind::Delay)
                    && struck.is_on(network)
            }),
            Subject::Link { low, high, .. } => {
                let (low, high) = (index_of(*low), index_of(*high));
                let is_lossy = self.plan.networks.iter().any(|plan| plan.loss > 0.01 || plan.burst.is_some());
                (is_lossy && verdict.class == Class::LinkDegraded)
                    || self.recent().any(|struck| touches_link(struck, low, high, network))
            }
        }
    }

    fn is_node_right(&self, observer: usize, node: NodeId) -> bool {
        let node = index_of(node);
        self.is_victim(node) || self.recent().any(|struck| parts(struck, observer, node))
    }

    /// Whether a fault of `node` itself is under way or lately was.
    pub(super) fn is_victim(&self, node: usize) -> bool {
        let is_only = self.medium.count() == 1;
        let is_struck = |struck: &Struck| strikes_node(struck, is_only) && struck.nodes.contains(&node);
        self.recent().any(is_struck) || self.is_unplugged(node)
    }

    /// Whether two hear each other on no network, or can't have done so yet since a split healed.
    pub(super) fn is_parted(&self, one: usize, other: usize) -> bool {
        let beat = nanos(self.plan.settings.interval * 3 / 2);
        let just_now = |struck: &Struck| {
            parts(struck, one, other) && struck.ended.is_some_and(|ended| self.now <= ended + beat)
        };
        !self.medium.connects(one, other) || self.recent().any(just_now)
    }

    /// Whether faults leave `node` no network, of which one at least names it.
    fn is_unplugged(&self, node: usize) -> bool {
        let names = |struck: &Struck| struck.fault.kind == Kind::Unplug && struck.nodes.contains(&node);
        self.recent().any(names) && self.has_no_network(node)
    }

    /// Whether faults leave `node` no network, be it together with everybody.
    fn has_no_network(&self, node: usize) -> bool {
        (0..self.medium.count()).all(|network| {
            self.recent().filter(|struck| struck.is_on(network)).any(|struck| {
                struck.fault.kind == Kind::CutNetwork
                    || (struck.fault.kind == Kind::Unplug && struck.nodes.contains(&node))
            })
        })
    }

    /// Whether everybody whom `node` watches is in trouble, or parted from it.
    fn lost_all_peers(&self, node: usize) -> bool {
        let Some(detector) = &self.agents[node].detector else { return false };
        let near = detector.members().neighbours(id_of(node)).iter().map(|id| index_of(*id));
        let is_lost = |other: usize| {
            self.is_victim(other)
                || self.recent().any(|struck| {
                    parts(struck, node, other)
                        || touches_link(struck, node, other, 0) && self.medium.count() == 1
                })
        };
        near.into_iter().all(is_lost)
    }

    fn recent(&self) -> impl Iterator<Item = &Struck> {
        let grace = nanos(GRACE);
        self.faults.iter().filter(move |struck| {
            struck.began.is_some() && struck.ended.is_none_or(|ended| self.now <= ended + grace)
        })
    }
}

/// Whether a fault puts a node itself in the wrong.
fn strikes_node(struck: &Struck, is_only_network: bool) -> bool {
    match struck.fault.kind {
        Kind::Crash
        | Kind::Silent
        | Kind::Stall
        | Kind::Leave
        | Kind::Restart
        | Kind::Isolate
        | Kind::Stutter => true,
        Kind::Deaf | Kind::Mute => struck.network.is_none() || is_only_network,
        Kind::Loss => struck.nodes.len() == 1 && struck.fault.loss >= CRIPPLING_LOSS,
        Kind::OneWay | Kind::CutLink | Kind::Unplug | Kind::CutNetwork | Kind::Delay | Kind::Split => false,
    }
}

/// Whether a fault parts two nodes that are both well.
fn parts(struck: &Struck, one: usize, other: usize) -> bool {
    struck.fault.kind == Kind::Split && struck.nodes.contains(&one) != struck.nodes.contains(&other)
}

/// Whether a fault touches a node's connection to a network.
fn touches(struck: &Struck, node: usize, network: usize) -> bool {
    if strikes_node(struck, false) {
        return struck.nodes.contains(&node);
    }
    let is_named = struck.nodes.is_empty() || struck.nodes.contains(&node);
    match struck.fault.kind {
        Kind::CutNetwork | Kind::Split => struck.is_on(network),
        Kind::OneWay | Kind::CutLink => false,
        Kind::Unplug | Kind::Deaf | Kind::Mute | Kind::Loss | Kind::Delay => {
            is_named && struck.is_on(network)
        }
        Kind::Crash
        | Kind::Silent
        | Kind::Stall
        | Kind::Leave
        | Kind::Restart
        | Kind::Isolate
        | Kind::Stutter => false,
    }
}

/// Whether a fault touches the link of two nodes on a network.
fn touches_link(struck: &Struck, one: usize, other: usize, network: usize) -> bool {
    let is_pair = matches!(struck.fault.kind, Kind::OneWay | Kind::CutLink)
        && struck.nodes.contains(&one)
        && struck.nodes.contains(&other);
    (is_pair && struck.is_on(network)) || touches(struck, one, network) || touches(struck, other, network)
}
