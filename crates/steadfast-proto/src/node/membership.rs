//! Views: installing what is committed, and proposing removals, admissions, grantors and elections.
//!
//! Any member may propose; the compare-and-set on the view picks one. The lowest member that is not suspected
//! acts at once, the others stand by for a moment each, so that one silent proposer delays nobody for long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Batch, Event, Job, JobId, Node, Outcome, Row};
use crate::catalog::{Intent, Key, View, ViewReason};
use crate::detect::{Members, graph};
use crate::flaw::{Flaw, is_planted};
use crate::ids::{Incarnation, NodeId, ViewId};
use crate::lease::is_fenced;
use crate::time::Time;

/// How long the next in rank waits for the one before it.
const STANDBY: Duration = Duration::from_millis(150);

/// How long a proposal of admission, or a call for an election, is given before it is repeated.
const RETRY: Duration = Duration::from_millis(300);

/// How long ago a node may have been heard to count as present, in beats: those that nobody watches are heard at
/// every tenth.
const FRESH_BEATS: u32 = 25;

/// So many nodes found a cluster together: they are members without having been candidates.
const FOUNDING: usize = 3;

/// What this node remembers about views.
#[derive(Clone, Debug, Default)]
pub(super) struct Membership {
    /// The incarnation in which this node has seen itself in a view.
    admitted_as: Option<Incarnation>,
    /// Whether a new incarnation was asked for and has not come yet.
    renumbering: Option<JobId>,
    /// For which incarnation it got what it needs before it is a member, and the job that does so still.
    provisioned: Option<(Incarnation, Option<JobId>)>,
    /// Since when somebody is condemned.
    condemned_since: Option<Time>,
    /// Since when the catalog's leader is condemned.
    leaderless_since: Option<Time>,
    /// Since when all members have had the installed view.
    settled_since: Option<Time>,
    last_attempt: Option<Time>,
    last_campaign: Option<Time>,
    fenced: BTreeSet<NodeId>,
    /// The removed owners for which this node has begun to vouch.
    vouched: BTreeMap<NodeId, ViewId>,
}

impl Node {
    pub(super) fn install(&mut self, now: Time, revision: u64, view: View, out: &mut Batch) {
        if self.view().is_some_and(|installed| installed.id >= view.id) {
            return;
        }
        if self.view().is_some_and(|installed| installed.grantors_since != view.grantors_since) {
            self.grantor.grantors_changed(now);
        }
        let own = self.settings.id;
        let stayed = self.view().is_some_and(|installed| {
            let same = installed.members.get(&own) == view.members.get(&own);
            installed.has(own) && view.has(own) && (same || installed.id.next() == view.id)
        });
        if !stayed {
            // Back after a removal: what was granted before counts for nothing, as rows that moved in between may
            // still be on their way here.
            self.holder.clear();
        }
        if view.members.get(&own) == Some(&self.incarnation) {
            self.membership.admitted_as = Some(self.incarnation);
        }
        self.detector.set_members(now, Arc::new(Members::new(view.members.clone(), graph::SEED)));
        self.membership.settled_since = None;
        self.membership.fenced.retain(|node| view.removed.contains_key(node));
        out.publish.push(Event::Installed(view.clone()));
        self.view = Some((revision, view));
    }

    pub(super) fn renumbered(&mut self, incarnation: Incarnation) {
        self.incarnation = self.incarnation.max(incarnation);
        self.detector.set_incarnation(self.incarnation);
        self.membership.renumbering = None;
        self.membership.last_attempt = None;
    }

    /// A new incarnation could not be made durable: it is asked for again.
    pub(super) fn renumbering_done(&mut self, job: JobId, outcome: &Outcome) {
        if self.membership.renumbering == Some(job) && matches!(outcome, Outcome::Failed(_)) {
            self.membership.renumbering = None;
        }
    }

    pub(super) fn provisioning_done(&mut self, job: JobId) {
        if let Some((_, pending)) = &mut self.membership.provisioned
            && *pending == Some(job)
        {
            *pending = None;
        }
    }

    /// Whether this node has what it needs before it is a member in this life; sees to it if not.
    fn is_provisioned(&mut self, out: &mut Batch) -> bool {
        match self.membership.provisioned {
            Some((incarnation, pending)) if incarnation == self.incarnation => pending.is_none(),
            Some(_) | None => {
                let job = self.start_job(Job::Provision(self.incarnation), out);
                self.membership.provisioned = Some((self.incarnation, Some(job)));
                false
            }
        }
    }

    /// Proposes whatever the membership needs now.
    pub(super) fn tend_membership(&mut self, now: Time, out: &mut Batch) {
        let Some((revision, view)) = self.view.clone() else { return };
        self.note_fences(now, &view, out);
        let mut condemned = self.detector.condemned(now);
        condemned.retain(|node, _| view.has(*node));
        if !leaves_quorum(&view, &condemned, |node| self.grants_in(now, node, &view)) {
            condemned.clear();
        }
        self.tend_leader(now, &view, out);
        if !self.synced {
            return;
        }
        if !view.has(self.settings.id) || view.members.get(&self.settings.id) < Some(&self.incarnation) {
            self.seek_admission(now, revision, &view, out);
            return;
        }
        if condemned.is_empty() {
            self.membership.condemned_since = None;
            if !self.tend_candidates(now, revision, &view, out) {
                self.tend_grantors(now, revision, &view, out);
            }
            return;
        }
        let since = *self.membership.condemned_since.get_or_insert(now);
        if !condemned.contains_key(&self.settings.id) && self.is_my_turn(now, since, &view) {
            let next = view.remove(condemned, self.settings.id);
            self.propose_view(now, revision, next, Vec::new(), Vec::new(), out);
        }
    }

    /// Whether it is this node's turn to propose something that has been due `since` then.
    pub(super) fn is_my_turn(&self, now: Time, since: Time, view: &View) -> bool {
        let suspects: BTreeSet<NodeId> =
            view.members.keys().filter(|id| !self.is_well(**id)).copied().collect();
        let rank = u32::try_from(view.rank(self.settings.id, &suspects)).unwrap_or(u32::MAX);
        now >= since + STANDBY.saturating_mul(rank)
    }

    /// Whether `node`, removed, certainly holds no lease.
    pub(super) fn fenced(&self, now: Time, node: NodeId) -> bool {
        let Some(view) = self.view() else { return false };
        let mut vouchers: BTreeMap<NodeId, _> =
            self.peers.iter().map(|(id, peer)| (*id, peer.fenced.clone())).collect();
        vouchers.insert(self.settings.id, self.fences(now));
        is_fenced(view, node, &vouchers)
    }

    fn note_fences(&mut self, now: Time, view: &View, out: &mut Batch) {
        let vouched = self.fences(now);
        if vouched.iter().any(|(node, removed_in)| self.membership.vouched.get(node) != Some(removed_in)) {
            // Tell the others at once: a recovery waits for it.
            self.detector.hurry(now);
        }
        self.membership.vouched = vouched;
        for node in view.removed.keys() {
            if !self.membership.fenced.contains(node) && self.fenced(now, *node) {
                self.membership.fenced.insert(*node);
                out.publish.push(Event::Fenced(*node));
            }
        }
    }

    /// Whether neither this node nor a verdict finds `node` to have failed.
    pub(super) fn is_well(&self, node: NodeId) -> bool {
        !self.detector.is_suspected(node) && !self.detector.is_down(node)
    }

    fn is_fresh(&self, now: Time, node: NodeId) -> bool {
        // The more members there are, the more rarely some of them beat.
        let own = self.detector.silence(now, node).map_or(Duration::ZERO, |(_, limit)| limit);
        let limit = own.max(self.settings.detect.interval.saturating_mul(FRESH_BEATS));
        self.detector.heard_at(node).is_some_and(|heard_at| now.since(heard_at) <= limit)
    }

    /// Whether grantor `node` counts in `view`: as a member, or as one that left, or was replaced, and has installed it all the
    /// same: until its machine is turned off it grants, and vouches, as before.
    fn grants_in(&self, now: Time, node: NodeId, view: &View) -> bool {
        let follows = || self.peers.get(&node).is_some_and(|peer| peer.view == view.id);
        view.has(node) || (self.is_fresh(now, node) && follows())
    }

    /// Stands for leader of the catalog's engine when a majority agrees that the last leader is dead.
    fn tend_leader(&mut self, now: Time, view: &View, out: &mut Batch) {
        let is_dead = self.leader.is_some_and(|leader| self.detector.is_down(leader));
        if !is_dead || !view.grantors.contains(&self.settings.id) {
            self.membership.leaderless_since = None;
            return;
        }
        let since = *self.membership.leaderless_since.get_or_insert(now);
        let recently = self.membership.last_campaign.is_some_and(|last| now.since(last) < RETRY);
        if !recently && self.is_my_turn(now, since, view) {
            self.membership.last_campaign = Some(now);
            self.start_job(Job::Campaign, out);
        }
    }

    /// Proposes this node as a member, or applies for it, once it hears a majority of the grantors.
    fn seek_admission(&mut self, now: Time, revision: u64, view: &View, out: &mut Batch) {
        let recently = self.membership.last_attempt.is_some_and(|last| now.since(last) < RETRY);
        if self.membership.admitted_as == Some(self.incarnation) {
            // Removed while it ran: what it did under the old number is over (PROTOCOLS 0.2).
            if self.membership.renumbering.is_none() && !recently {
                self.membership.last_attempt = Some(now);
                self.membership.renumbering = Some(self.start_job(Job::Renumber, out));
            }
            return;
        }
        let own = self.settings.id;
        let reached = view.grantors.iter().filter(|id| **id == own || self.is_fresh(now, **id)).count();
        if reached < view.grantor_majority() || recently || !self.is_provisioned(out) {
            return;
        }
        self.membership.last_attempt = Some(now);
        // A member that was restarted keeps its place, and so does one that was removed and has duties that nobody took
        // over; and there is nobody yet to judge the first ones. Who is to stand by does so from the beginning.
        let was_removed = view.removed.contains_key(&own);
        let joins = self.settings.intent == Intent::Join;
        let is_founding = joins && view.members.len() + view.removed.len() < FOUNDING && !was_removed;
        let returns = was_removed && self.is_missed(view);
        if view.has(own) || ((is_founding || returns) && !self.duties.is_leaving(own)) {
            let next = view.admit(own, self.incarnation, own);
            self.propose_view(now, revision, next, Vec::new(), Vec::new(), out);
        } else {
            self.apply(now, view, out);
        }
    }

    /// Whether this node, removed, still owns what it ran, or holds the only copies of something.
    fn is_missed(&self, view: &View) -> bool {
        let own = self.settings.id;
        self.containers.values().map(|(_, row)| row).filter(|row| row.is_active()).any(|row| {
            let copies = row.restore_from().map(|checkpoint| &checkpoint.copies);
            let holds_last = copies
                .is_some_and(|copies| copies.contains(&own) && copies.iter().all(|node| !view.has(*node)));
            row.owner == own || (!view.has(row.owner) && holds_last)
        })
    }

    /// Adds a grantor once every member, and a majority of the grantors among them, has had the installed view for
    /// longer than a lease: nobody can then still hold a lease by grantors of long ago.
    fn tend_grantors(&mut self, now: Time, revision: u64, view: &View, out: &mut Batch) {
        let own = self.settings.id;
        // One whose row is gone, revoked for good, only makes the majority larger; one whose place was taken may still
        // grant, so another is added first.
        let gone =
            view.grantors.iter().copied().find(|node| !view.has(*node) && !self.nodes.contains_key(node));
        let next = match (gone, view.next_grantor(&self.nodes), view.stale_grantor()) {
            (Some(node), _, _) | (None, None, Some(node)) => view.drop_grantor(node, own),
            (None, Some(node), _) => view.add_grantor(node, own),
            (None, None, None) => return,
        };
        let settled = (view.members.keys()).all(|id| {
            *id == own
                || (self.is_fresh(now, *id) && self.peers.get(id).is_some_and(|peer| peer.view == view.id))
        });
        let grantors = view.grantors.iter().filter(|id| self.grants_in(now, **id, view)).count();
        if !settled || grantors < view.grantor_majority() {
            self.membership.settled_since = None;
            return;
        }
        let since = *self.membership.settled_since.get_or_insert(now);
        // The founder's own lease rests on nobody else, so the first addition need not wait for one to end.
        let wait = if view.grantors.len() == 1 { Duration::ZERO } else { self.lease_length() + self.drift() };
        if self.is_my_turn(now, since + wait, view) && now >= since + wait {
            self.propose_view(now, revision, next, Vec::new(), Vec::new(), out);
        }
    }

    /// Proposes `next` on the view that `revision` wrote, and on no other, together with `rows` on `basis`.
    pub(super) fn propose_view(
        &mut self,
        now: Time,
        revision: u64,
        next: View,
        basis: Vec<(Key, u64)>,
        rows: Vec<Row>,
        out: &mut Batch,
    ) {
        let verdicts = match &next.reason {
            ViewReason::Removed(removed) => {
                let classes = removed.keys().filter_map(|node| Some((*node, self.detector.why_down(*node)?)));
                classes.collect()
            }
            ViewReason::Founded
            | ViewReason::Admitted(_)
            | ViewReason::Grantor(_)
            | ViewReason::NoGrantor(_)
            | ViewReason::Replaced { .. }
            | ViewReason::Left(_) => BTreeMap::new(),
        };
        let (record, surplus) = next.record(verdicts, self.unix_ms(now));
        let mut all = vec![Row::View(next), Row::Record(Box::new(record))];
        all.extend(surplus.map(Row::Forget).into_iter().chain(rows));
        let mut bases = basis;
        if !is_planted(Flaw::ViewWithoutBasis) {
            bases.push((Key::View, revision));
        }
        self.propose(now, Key::View, bases, all, out);
    }
}

/// Whether a majority of the grantors would be left: without it a removal can't commit now, and must not do so later,
/// when the network is whole again and what it rests on is of the past.
fn leaves_quorum(
    view: &View,
    condemned: &BTreeMap<NodeId, BTreeSet<NodeId>>,
    grants: impl Fn(NodeId) -> bool,
) -> bool {
    let left = view.grantors.iter().filter(|id| grants(**id) && !condemned.contains_key(id));
    left.count() >= view.grantor_majority()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_leaves_a_majority_of_the_grantors() {
        let mut view = (2..=16).fold(View::founded(NodeId(1), Incarnation(1)), |view, node| {
            view.admit(NodeId(node), Incarnation(1), NodeId(1))
        });
        while let Some(node) = view.next_grantor(&BTreeMap::new()) {
            view = view.add_grantor(node, NodeId(1));
        }
        let condemned = |nodes: std::ops::RangeInclusive<u128>| {
            nodes.map(|node| (NodeId(node), BTreeSet::new())).collect::<BTreeMap<_, _>>()
        };
        let leaves = |condemned| leaves_quorum(&view, &condemned, |node| view.has(node));
        assert!(leaves(condemned(9..=16)));
        assert!(leaves(condemned(1..=2)));
        assert!(!leaves(condemned(1..=3)));
    }
}
