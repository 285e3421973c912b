//! What the node's thread writes to the log about what its core published: which event, at which level, with whose names.
//!
//! It keeps no more than the names that it needs for that, and decides nothing. A link that fails is one warning with its
//! cause; that it came up at the start is worth no more than a decision.

use std::collections::{BTreeMap, BTreeSet};

use steadfast_proto::catalog::Change;
use steadfast_proto::detect::{Opinion, Verdict};
use steadfast_proto::ids::{NetworkId, NodeId};
use steadfast_proto::node::{Event, Input};
use steadfast_proto::wire::LinkState;
use tracing::Level;

/// What the log calls nodes and networks.
pub(super) struct Journal {
    networks: Vec<String>,
    names: BTreeMap<NodeId, String>,
    /// The networks whose interface here is down.
    unplugged: BTreeSet<NetworkId>,
}

impl Journal {
    /// `networks` are this node's, in the order of their numbers.
    pub(super) fn new(networks: impl Iterator<Item = String>) -> Journal {
        Journal { networks: networks.collect(), names: BTreeMap::new(), unplugged: BTreeSet::new() }
    }

    /// Takes note of the names, and of the causes, that an input tells.
    pub(super) fn note(&mut self, input: &Input) {
        match input {
            Input::Committed { change: Change::Node(id, Some(row)), .. } => {
                self.names.insert(*id, row.name.clone());
            }
            Input::Committed { change: Change::Node(id, None), .. } => {
                self.names.remove(id);
            }
            Input::Interface { network, up: true } => {
                self.unplugged.remove(network);
            }
            Input::Interface { network, up: false } => {
                self.unplugged.insert(*network);
            }
            Input::Heard { .. }
            | Input::Testified { .. }
            | Input::Committed { .. }
            | Input::Synced
            | Input::Leader(_)
            | Input::Proposed { .. }
            | Input::Done { .. }
            | Input::Adopted { .. }
            | Input::Exited { .. }
            | Input::AdoptedAll
            | Input::Memory { .. }
            | Input::Renumbered(_)
            | Input::Request(..)
            | Input::Devices(_)
            | Input::Deadline => {}
        }
    }

    /// Writes an event to the log.
    pub(super) fn write(&self, event: &Event) {
        match event {
            Event::Opinion(opinion) => self.opinion(opinion),
            Event::Installed(view) => {
                tracing::info!(view = view.id.0, members = view.members.len(), reason = ?view.reason, "view installed");
            }
            Event::LeaseLapsed => tracing::warn!("the lease lapsed: containers freeze"),
            Event::LeaseRenewed => tracing::info!("the lease is fresh"),
            Event::Fenced(node) => tracing::info!(%node, "a removed node's lease is over"),
            Event::Moved { container, row } => tracing::info!(
                %container, name = row.spec.name, owner = %row.owner, epoch = row.epoch.0, state = ?row.state, "container"
            ),
            Event::Committed { container, checkpoint } => {
                tracing::debug!(%container, number = checkpoint.number, "checkpoint committed");
            }
            Event::CheckpointFailed { container, reason } => {
                tracing::warn!(%container, reason, "checkpoint failed");
            }
            Event::Answer(request, result) => {
                tracing::debug!(request = request.0, ok = result.is_ok(), "answer");
            }
        }
    }

    fn opinion(&self, opinion: &Opinion) {
        match opinion {
            Opinion::Link { peer, network, from, to } => self.link(*peer, *network, *from, *to),
            Opinion::Suspected { peer, why, rule, silent, limit, fresh } => {
                let peer = self.node(*peer);
                tracing::info!(peer, ?why, ?rule, ?silent, ?limit, ?fresh, "a peer is suspected");
            }
            Opinion::Cleared(peer) => {
                tracing::info!(peer = self.node(*peer), "the peer is suspected no longer");
            }
            Opinion::NetworkSuspected { network, or_link } => {
                let network = self.network(*network);
                tracing::warn!(network, or_link, "nobody is heard on a network that others are heard beside");
            }
            Opinion::NetworkCleared(network) => {
                tracing::info!(network = self.network(*network), "the network carries heartbeats again");
            }
            Opinion::Isolated => tracing::warn!("nobody is heard, or hears this node"),
            Opinion::Reconnected => tracing::info!("somebody is heard again"),
            Opinion::Verdict(verdict) => self.verdict(verdict),
            Opinion::Over(verdict) => {
                tracing::info!(class = ?verdict.class, subject = ?verdict.subject, "the verdict is over");
            }
        }
    }

    fn verdict(&self, verdict: &Verdict) {
        let accusers: BTreeSet<NodeId> = verdict.evidence.iter().map(|(id, _)| *id).collect();
        let accusers: Vec<String> = accusers.into_iter().map(|id| self.node(id)).collect();
        let accusers = accusers.join(", ");
        tracing::warn!(class = ?verdict.class, subject = ?verdict.subject, accusers, "verdict");
        tracing::debug!(subject = ?verdict.subject, evidence = ?verdict.evidence, "its evidence");
    }

    fn link(&self, peer: NodeId, network: NetworkId, from: LinkState, to: LinkState) {
        let cause = self.cause(network, to);
        let (peer, network) = (self.node(peer), self.network(network));
        match link_level(from, to) {
            Level::WARN => tracing::warn!(peer, network, ?from, ?to, cause, "a link fails"),
            Level::INFO => tracing::info!(peer, network, ?from, ?to, cause, "a link recovers"),
            _ => tracing::debug!(peer, network, ?from, ?to, cause, "a link changes"),
        }
    }

    /// Why a link does what it does, as far as this node knows.
    fn cause(&self, network: NetworkId, to: LinkState) -> &'static str {
        match to {
            LinkState::Down | LinkState::Mute if self.unplugged.contains(&network) => {
                "this node's own interface is down"
            }
            LinkState::Down => "nothing comes from the peer, and it is not known to hear this node",
            LinkState::Mute => "nothing comes from the peer, which hears this node",
            LinkState::Deaf => "the peer is heard, and does not hear this node",
            LinkState::Degraded => "it loses more than a twentieth, or takes four times its usual time",
            LinkState::Up => "it carries in both directions",
            LinkState::Unknown => "it was not heard yet",
        }
    }

    fn node(&self, id: NodeId) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    fn network(&self, id: NetworkId) -> String {
        let name = self.networks.get(usize::from(id.0));
        name.cloned().unwrap_or_else(|| format!("network number {}", id.0))
    }
}

/// How loud a link's change is: for the worse a warning, for the better an information, and neither a decision.
fn link_level(from: LinkState, to: LinkState) -> Level {
    match (badness(from), badness(to)) {
        (before, now) if now > before => Level::WARN,
        (before, now) if now < before => Level::INFO,
        _ => Level::DEBUG,
    }
}

/// A link that is cut is cut, in whichever direction it is noticed first; one that was never heard is no worse than one
/// that is.
fn badness(state: LinkState) -> u8 {
    match state {
        LinkState::Unknown | LinkState::Up => 0,
        LinkState::Degraded => 1,
        LinkState::Deaf | LinkState::Mute | LinkState::Down => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_one_warning_and_a_start_is_none() {
        use LinkState::{Deaf, Degraded, Down, Mute, Unknown, Up};
        let levels = |changes: &[LinkState]| -> Vec<Level> {
            changes.windows(2).map(|pair| link_level(pair[0], pair[1])).collect()
        };
        assert_eq!(levels(&[Unknown, Up]), [Level::DEBUG]);
        assert_eq!(
            levels(&[Up, Mute, Down, Deaf, Up]),
            [Level::WARN, Level::DEBUG, Level::DEBUG, Level::INFO]
        );
        assert_eq!(levels(&[Up, Degraded, Down]), [Level::WARN, Level::WARN]);
        assert_eq!(levels(&[Down, Degraded, Up]), [Level::INFO, Level::INFO]);
        assert_eq!(levels(&[Unknown, Down]), [Level::WARN]);
    }

    #[test]
    fn a_cause_is_this_nodes_own_interface_only_while_that_is_down() {
        let mut journal = Journal::new(["front".to_owned(), "back".to_owned()].into_iter());
        let (front, back) = (NetworkId(0), NetworkId(1));
        journal.note(&Input::Interface { network: front, up: false });
        assert!(journal.cause(front, LinkState::Down).contains("own interface"));
        assert!(!journal.cause(back, LinkState::Down).contains("own interface"));
        journal.note(&Input::Interface { network: front, up: true });
        assert!(!journal.cause(front, LinkState::Down).contains("own interface"));
        assert_eq!(journal.network(back), "back");
    }
}
