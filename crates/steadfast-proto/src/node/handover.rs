//! Duties that go over to another node: copies of checkpoints, and containers that are alive (PROTOCOLS 3.4).
//!
//! A node that is replaced, drained or leaves hands its containers over itself: each is checkpointed and held still, and
//! one compare-and-set commits the checkpoint together with the new owner, so a program runs in one place only and loses
//! nothing. What was held for a hand-over that does not happen goes on only after a commit has made the hand-over
//! impossible. The copies that such a node holds are made elsewhere by their containers' owners, by a new checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Batch, Job, Node, Row};
use crate::catalog::{CheckpointRef, ContainerRow, ContainerState, Desired, DrainRow, Key, View};
use crate::ids::{ContainerId, NodeId};
use crate::placement::{self, Candidate};
use crate::probation::Finding;
use crate::time::Time;

/// How long programs may be held still for a hand-over; then they go on here.
const HOLD_MAX: Duration = Duration::from_secs(10);

/// How long after a hand-over that failed the next one begins.
const PAUSE: Duration = Duration::from_secs(5);

/// What is known of nodes that hand their duties over.
#[derive(Clone, Debug, Default)]
pub(super) struct Duties {
    drains: BTreeMap<NodeId, DrainRow>,
    /// Since when programs are held still here.
    held_since: Option<Time>,
    not_before: Option<Time>,
}

impl Duties {
    pub(super) fn drain_changed(&mut self, node: NodeId, row: Option<DrainRow>) {
        match row {
            Some(row) if self.drains.len() < super::NODES_MAX || self.drains.contains_key(&node) => {
                self.drains.insert(node, row);
            }
            Some(_) => {}
            None => {
                self.drains.remove(&node);
            }
        }
    }

    /// Whether `node` was told to leave: it stays out until that is taken back.
    pub(super) fn is_leaving(&self, node: NodeId) -> bool {
        self.drains.get(&node).is_some_and(|row| row.leave)
    }

    pub(super) fn is_draining(&self, node: NodeId) -> bool {
        self.drains.contains_key(&node)
    }

    pub(super) fn draining(&self) -> impl Iterator<Item = &DrainRow> {
        self.drains.values()
    }
}

/// What this node hands its duties over for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// That node takes its place.
    Replaced(NodeId),
    /// It is drained.
    Drained {
        /// And leaves.
        leave: bool,
    },
}

impl Node {
    /// How many checkpoints `old` holds a copy of that `new` must still get.
    pub(super) fn duties_left(&self, old: NodeId, new: NodeId) -> usize {
        self.copies_to_move(old, new).count()
    }

    /// How many bytes `new` must hold instead of `old`.
    pub(super) fn footprint(&self, old: NodeId, new: NodeId) -> u64 {
        self.copies_to_move(old, new).map(|checkpoint| checkpoint.bytes).fold(0, u64::saturating_add)
    }

    fn copies_to_move(&self, old: NodeId, new: NodeId) -> impl Iterator<Item = &CheckpointRef> {
        let rows = self.containers.values().map(|(_, row)| row);
        // What no owner can take anew stays where it is until one can.
        let is_owned = |row: &&ContainerRow| {
            row.state == ContainerState::Running && self.view().is_some_and(|view| view.has(row.owner))
        };
        rows.filter(is_owned)
            .filter_map(|row| row.latest.as_ref())
            .filter(move |latest| latest.copies.contains(&old) && !latest.copies.contains(&new))
    }

    /// Whether a copy of `row`'s latest checkpoint is to go over to another node, which a new checkpoint of its owner does.
    pub(super) fn moves_a_copy(&self, row: &ContainerRow) -> bool {
        let Some(latest) = &row.latest else { return false };
        let owner = row.owner;
        let taker = |holder: NodeId| match self.candidates.successor_of(holder) {
            Some(new) => !latest.copies.contains(&new) && new != owner && self.is_taking(new),
            None => {
                self.duties.is_draining(holder)
                    && (self.placeable().iter())
                        .any(|other| other.node != owner && !latest.copies.contains(&other.node))
            }
        };
        let leaves_owner = self.candidates.successor_of(owner);
        latest.copies.iter().any(|holder| taker(*holder))
            || leaves_owner.is_some_and(|new| !latest.copies.contains(&new) && self.is_taking(new))
    }

    /// Whether this node is to stay for its copy of `row`'s latest checkpoint.
    fn is_held_by_copy(&self, view: &View, row: &ContainerRow) -> bool {
        let own = self.settings.id;
        if row.latest.as_ref().is_none_or(|latest| !latest.copies.contains(&own)) {
            return false;
        }
        match row.state {
            // Until its owner has put it elsewhere, if there is another place.
            ContainerState::Running if view.has(row.owner) => self.moves_a_copy(row),
            // It may be fetched from here.
            ContainerState::Running | ContainerState::Starting | ContainerState::Recovering => true,
            ContainerState::Stopped(_) | ContainerState::Failed(_) | ContainerState::Lost(_) => {
                view.loses_with(own, row)
            }
        }
    }

    /// The nodes from which copies can be had: the members, and the candidates that copies have been put on.
    pub(super) fn holder_ids(&self) -> BTreeSet<NodeId> {
        let mut all = self.member_ids();
        all.extend(self.evaluated());
        all
    }

    /// Whether `new` is there to take duties over.
    fn is_taking(&self, new: NodeId) -> bool {
        self.evaluated().contains(&new)
            && self.peers.get(&new).is_some_and(|peer| peer.free_bytes > 0)
            && self.detector.heard_at(new).is_some()
    }

    /// The nodes on which copies and containers may be put, with what is known of each: the members that are well and
    /// hand nothing over themselves.
    pub(super) fn placeable(&self) -> Vec<Candidate> {
        let mut all = self.candidates();
        all.retain(|one| {
            !self.duties.is_draining(one.node) && self.candidates.successor_of(one.node).is_none()
        });
        all
    }

    /// The nodes on which a container may be started: [`Node::placeable`], or all that are well where those are none.
    pub(super) fn takers(&self) -> Vec<Candidate> {
        let placeable = self.placeable();
        if placeable.is_empty() { self.candidates() } else { placeable }
    }

    /// The nodes to offer copies of `row`'s next checkpoint to, best first. Who takes this node's own place comes first.
    pub(super) fn holders(&self, row: &ContainerRow) -> Vec<NodeId> {
        let mut all = self.placeable();
        let mut successors: BTreeSet<NodeId> = BTreeSet::new();
        for old in self.member_ids() {
            let Some(new) = self.candidates.successor_of(old).filter(|new| self.is_taking(*new)) else {
                continue;
            };
            if let Some(node) = self.nodes.get(&new) {
                let free = self.peers.get(&new).map_or(0, |peer| peer.free_bytes);
                all.push(Candidate::new(node, free, 0));
                successors.insert(new);
            }
        }
        let own = self.settings.id;
        let mut holders = placement::holders(own, row.latest.as_ref(), &all);
        if let Some(new) = self.candidates.successor_of(own).filter(|new| successors.contains(new)) {
            holders.retain(|node| *node != new);
            holders.insert(0, new);
        }
        // Rather one that is about to go than none.
        let rest = placement::holders(own, row.latest.as_ref(), &self.candidates());
        let missing: Vec<NodeId> = rest.into_iter().filter(|node| !holders.contains(node)).collect();
        holders.extend(missing);
        holders
    }

    /// Hands over what this node has, step by step, or lets go on what it held for a hand-over that does not happen.
    pub(super) fn tend_handover(&mut self, now: Time, out: &mut Batch) {
        let purpose = self.purpose(now);
        let is_held = self.local.values().any(|local| local.held.is_some());
        if !is_held {
            self.duties.held_since = None;
        } else if now >= *self.duties.held_since.get_or_insert(now) + HOLD_MAX {
            self.duties.not_before = Some(now + PAUSE);
            self.let_go_on();
            return;
        }
        match purpose {
            None => {
                if is_held {
                    self.let_go_on();
                }
            }
            Some(Purpose::Replaced(new)) => self.hand_all_over(now, new, out),
            Some(Purpose::Drained { leave }) => self.drain(now, leave, out),
        }
    }

    fn purpose(&self, now: Time) -> Option<Purpose> {
        let own = self.settings.id;
        let may = self.synced && self.adopted_all && self.lease.live && self.view()?.has(own);
        if !may || self.duties.not_before.is_some_and(|at| now < at) {
            return None;
        }
        if let Some(new) = self.candidates.successor_of(own) {
            return (self.finding(now, new) == Finding::Ready).then_some(Purpose::Replaced(new));
        }
        let row = self.duties.drains.get(&own)?;
        Some(Purpose::Drained { leave: row.leave })
    }

    /// The containers that this node is to have running.
    fn active(&self) -> Vec<(ContainerId, u64, ContainerRow)> {
        let own = self.settings.id;
        let mine = self.containers.iter().filter(|(_, (_, row))| row.owner == own && row.is_active());
        mine.map(|(id, (revision, row))| (*id, *revision, row.clone())).collect()
    }

    /// Everything goes over in one step: the view that swaps the two nodes, and every container's row.
    fn hand_all_over(&mut self, now: Time, new: NodeId, out: &mut Batch) {
        let all = self.active();
        for (id, _, row) in &all {
            self.hold_still(now, *id, row, Some(new), out);
        }
        let Some((revision, view)) = self.view.clone() else { return };
        let Some((probation, row)) = self.candidates.row(new).map(|(at, row)| (at, row.clone())) else {
            return;
        };
        let mut basis = vec![(Key::Probation(new), probation)];
        let own = self.settings.id;
        let mut rows = vec![Row::NoProbation(new), Row::Drain(DrainRow { node: own, leave: true })];
        for (id, at, row) in all {
            let Some(held) = self.local.get(&id).and_then(|local| local.held.clone()) else { return };
            let Some(next) = self.handed(now, &row, held, new) else { return };
            basis.push((Key::Container(id), at));
            rows.push(Row::Container(Box::new(next)));
        }
        let next = view.replace(own, new, row.incarnation, own);
        self.propose_view(now, revision, next, basis, rows, out);
    }

    /// Containers go over one by one, to wherever there is room; then this node leaves, if it is to.
    fn drain(&mut self, now: Time, leave: bool, out: &mut Batch) {
        let all = self.active();
        for (id, revision, row) in &all {
            let Some(to) = self.taker_of(row) else { continue };
            self.hold_still(now, *id, row, None, out);
            let Some(held) = self.local.get(id).and_then(|local| local.held.clone()) else { continue };
            if let Some(next) = self.handed(now, row, held, to)
                && let Some((view_revision, _)) = &self.view
            {
                let key = Key::Container(*id);
                let basis = vec![(key.clone(), *revision), (Key::View, *view_revision)];
                self.propose(now, key, basis, vec![Row::Container(Box::new(next))], out);
            }
        }
        let own = self.settings.id;
        let Some((revision, view)) = self.view.clone() else { return };
        let holds = self.containers.values().any(|(_, row)| self.is_held_by_copy(&view, row));
        if leave && all.is_empty() && !holds && view.members.len() > 1 {
            self.propose_view(now, revision, view.leave(own), Vec::new(), Vec::new(), out);
        }
    }

    /// Where a container of this node can go.
    fn taker_of(&self, row: &ContainerRow) -> Option<NodeId> {
        let mut others = self.placeable();
        others.retain(|one| one.node != self.settings.id);
        placement::recover_on(row, &others)
    }

    /// Begins what holds a container still with a checkpoint: first an ordinary one, so that what is shipped while it
    /// stands still is little.
    fn hold_still(
        &mut self,
        now: Time,
        id: ContainerId,
        row: &ContainerRow,
        new: Option<NodeId>,
        out: &mut Batch,
    ) {
        let is_near = match (&row.latest, new) {
            (Some(latest), Some(new)) => latest.copies.contains(&new),
            (Some(_), None) => true,
            (None, _) => false,
        };
        if row.state == ContainerState::Running && row.desired == Desired::Run {
            self.capture(now, id, row, is_near, out);
        }
    }

    /// The row with `held` as its newest checkpoint and `to` as the owner that goes on from it.
    fn handed(&self, now: Time, row: &ContainerRow, held: CheckpointRef, to: NodeId) -> Option<ContainerRow> {
        if held.epoch != row.epoch {
            return None;
        }
        Some(ContainerRow {
            parent: row.latest.clone(),
            restore_number: Some(held.number),
            latest: Some(held),
            owner: to,
            epoch: row.epoch.next(),
            state: ContainerState::Recovering,
            after_loss: false,
            tried: BTreeSet::new(),
            changed_unix_ms: self.unix_ms(now),
            ..row.clone()
        })
    }

    /// Commits what was held as ordinary checkpoints: a hand-over that is still on its way can't commit after that, and
    /// the programs go on.
    fn let_go_on(&mut self) {
        for local in self.local.values_mut() {
            if let Some(held) = local.held.take() {
                local.sealed = Some(held);
                local.releasing = true;
            }
        }
    }

    /// Lets go on the container whose checkpoint has been committed, or given up.
    pub(super) fn release(&mut self, id: ContainerId, out: &mut Batch) {
        let Some(local) = self.local.get_mut(&id) else { return };
        local.releasing = false;
        let epoch = local.epoch;
        self.start_job(Job::Release { container: id, epoch }, out);
    }
}
