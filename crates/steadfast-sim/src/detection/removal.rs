//! How those whom the verdicts condemn leave the view: an ideal catalog with a compare-and-set.
//!
//! The member that is first in rank proposes, as `steadfast_proto::node` does; a proposal needs a majority of the
//! catalog's voters within reach, and may not be about such a majority; one that was overtaken is void. Every view reaches each member after a
//! while, and later if it can't be reached. Must never judge anybody by itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use steadfast_proto::detect::Members;
use steadfast_proto::ids::{Incarnation, NodeId};

use super::plan::nanos;
use super::queue::Event;
use super::world::{World, id_of, index_of, small};

/// How long the next in rank waits for the one before it, in nanoseconds.
const STANDBY: u64 = 150_000_000;

/// How long a proposal is given before it is repeated.
const RETRY: u64 = 300_000_000;

/// How soon a view is offered again to a member that can't be reached.
const OFFER: u64 = 100_000_000;

/// How far down in rank anybody proposes.
const RANKS: usize = 6;

/// How many members vote in the catalog.
const VOTERS_MAX: usize = 5;

/// What the graph is made with after each change.
const GRAPH_SEED: u64 = 0x57ea_dfa5;

/// A change of the view that is on its way.
#[derive(Clone, Debug)]
struct Change {
    base: u32,
    proposer: usize,
    removed: BTreeSet<NodeId>,
    admitted: Option<(NodeId, Incarnation)>,
}

/// Every view so far.
#[derive(Debug)]
pub(super) struct Views {
    all: Vec<(usize, Arc<Members>)>,
    changes: Vec<Change>,
    /// Who votes in the catalog.
    voters: Vec<NodeId>,
}

impl Views {
    pub(super) fn new(first: Arc<Members>) -> Views {
        let voters = first.incarnations().keys().take(VOTERS_MAX).copied().collect();
        Views { all: vec![(0, first)], changes: Vec::new(), voters }
    }

    pub(super) fn newest(&self) -> u32 {
        small(self.all.len() - 1)
    }

    pub(super) fn members(&self, view: u32) -> &Arc<Members> {
        &self.all[view as usize].1
    }

    /// How many were installed after the first.
    pub(super) fn count(&self) -> usize {
        self.all.len() - 1
    }
}

impl World {
    /// Lets `node` propose a removal if it has somebody to remove and it is its turn.
    pub(super) fn consider_removal(&mut self, node: usize) {
        let Some(removal) = self.plan.removal else { return };
        let now = self.clock(node);
        let Some(detector) = &self.agents[node].detector else { return };
        if detector.verdicts().is_empty() {
            self.agents[node].condemned_since = None;
            return;
        }
        let own = id_of(node);
        let others = detector.members().incarnations().keys().take_while(|id| **id < own);
        let well = others.filter(|id| !detector.is_suspected(**id) && !detector.is_down(**id));
        let rank = well.take(RANKS).count();
        let is_member = detector.members().incarnations().contains_key(&own);
        if rank == RANKS || !is_member {
            return;
        }
        let mut condemned = detector.condemned(now);
        condemned.retain(|id, _| detector.members().incarnations().contains_key(id));
        let agent = &mut self.agents[node];
        if condemned.is_empty() || condemned.contains_key(&own) {
            agent.condemned_since = None;
            return;
        }
        let since = *agent.condemned_since.get_or_insert(self.now);
        let waited = agent.proposed_at.is_some_and(|at| self.now < at + RETRY);
        if waited || self.now < since + STANDBY * rank as u64 {
            return;
        }
        agent.proposed_at = Some(self.now);
        let base = agent.view;
        let removed: BTreeSet<NodeId> = condemned.into_keys().collect();
        if self.has_majority(node, &removed) {
            let change = Change { base, proposer: node, removed, admitted: None };
            self.propose(change, nanos(removal.commit));
        }
    }

    /// A node that started again takes its own place, under its new incarnation.
    pub(super) fn readmit(&mut self, node: usize, incarnation: Incarnation) {
        let commit = self.plan.removal.unwrap_or_default().commit;
        let admitted = Some((id_of(node), incarnation));
        let base = u32::MAX;
        self.propose(Change { base, proposer: node, removed: BTreeSet::new(), admitted }, nanos(commit));
    }

    fn propose(&mut self, change: Change, commit: u64) {
        let number = small(self.views.changes.len());
        self.views.changes.push(change);
        self.queue.push(self.now + commit, Event::Commit { change: number });
    }

    /// Whether `node` reaches more than half of the voters, and does not think them to be down.
    fn has_majority(&self, node: usize, condemned: &BTreeSet<NodeId>) -> bool {
        let reaches = |id: &&NodeId| {
            let other = index_of(**id);
            let agent = &self.agents[other];
            let runs = agent.host_up && agent.stopped == 0 && agent.detector.is_some();
            runs && !condemned.contains(*id) && (other == node || self.medium.connects(node, other))
        };
        self.views.voters.iter().filter(reaches).count() * 2 > self.views.voters.len()
    }

    pub(super) fn commit(&mut self, change: usize) {
        let Change { base, proposer, removed, admitted } = self.views.changes[change].clone();
        let newest = self.views.newest();
        // An admission is made again on whatever view there is.
        if base != newest && admitted.is_none() {
            return;
        }
        let mut incarnations = self.views.members(newest).incarnations().clone();
        for id in &removed {
            if incarnations.remove(id).is_some() {
                let is_right = self.is_victim(index_of(*id)) || self.is_parted(proposer, index_of(*id));
                self.log.removed(self.now, proposer, index_of(*id), is_right);
            }
        }
        incarnations.extend(admitted);
        self.views.all.push((proposer, Arc::new(Members::new(incarnations, GRAPH_SEED))));
        let view = self.views.newest();
        for node in 0..self.agents.len() {
            let delay = self.path(proposer, node).unwrap_or(OFFER);
            self.queue.push(self.now + delay, Event::Install { node: small(node), view });
        }
    }

    /// Whether a view reaches `node` now; if not, it is offered again.
    pub(super) fn is_served(&mut self, node: usize, view: u32) -> bool {
        let proposer = self.views.all[view as usize].0;
        let is_served = node == proposer || self.medium.connects(proposer, node);
        if !is_served {
            self.queue.push(self.now + OFFER, Event::Install { node: small(node), view });
        }
        is_served
    }
}
