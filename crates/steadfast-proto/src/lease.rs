//! Run leases: until when this node may run containers, and when another node's right has certainly ended.
//!
//! PROTOCOLS 0.3. [`Holder`] counts what grantors echoed to this node; [`Grantor`] remembers what this node
//! echoed to others. A lease costs no disk write and is never stored. Deadlines are absolute on the holder's own
//! clock, so one that is late arrives already expired; no clock is ever compared with another node's.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::catalog::View;
use crate::flaw::{Flaw, is_planted};
use crate::ids::{NodeId, ViewId};
use crate::time::Time;

/// How long a fence takes at most to freeze a container; it begins this much before the deadline, less drift.
pub const FREEZE_MAX: Duration = Duration::from_millis(100);

/// What clocks and schedulers may differ by within one lease, given the measured scheduling lag.
pub fn drift(lease: Duration, lag: Duration) -> Duration {
    if is_planted(Flaw::DriftZero) {
        return Duration::ZERO;
    }
    lease / 100 + Duration::from_millis(5) + lag
}

/// The holder's side: which of this node's heartbeats each grantor has renewed the lease with.
#[derive(Clone, Debug, Default)]
pub struct Holder {
    /// Per grantor, when the newest heartbeat that it granted was sent, and the view it had installed then.
    grants: BTreeMap<NodeId, (Time, ViewId)>,
    /// The longest lease so far.
    reached: Option<Time>,
}

impl Holder {
    /// Takes note that `grantor`, having installed `view`, granted the heartbeat sent at `sent_at`.
    pub fn granted(&mut self, grantor: NodeId, sent_at: Time, view: ViewId) {
        let grant = self.grants.entry(grantor).or_insert((sent_at, view));
        if sent_at >= grant.0 {
            *grant = (sent_at, view.max(grant.1));
        }
    }

    /// Until when this node may run containers: the send time of its newest heartbeat that a majority of
    /// grantors has granted, plus `lease`. `None` before that ever happened.
    ///
    /// A grant by a node that knows a newer view than `view` does not count: this node might have been removed
    /// and taken back since, and its rows have moved without it noticing yet.
    ///
    /// What was reached under an earlier view holds to its end: who grants in the new one waits out every lease that
    /// was granted before, as this node may learn of the view later than they do.
    pub fn deadline(&mut self, view: &View, lease: Duration) -> Option<Time> {
        self.reached = self.reached.max(self.granted_by_majority(view, lease));
        self.reached
    }

    fn granted_by_majority(&self, view: &View, lease: Duration) -> Option<Time> {
        let mut sent: Vec<Time> = (view.grantors.iter())
            .filter_map(|grantor| self.grants.get(grantor))
            .filter(|(_, known)| *known <= view.id || is_planted(Flaw::ThawWithoutFreshLease))
            .map(|(sent_at, _)| *sent_at)
            .collect();
        sent.sort_unstable_by(|a, b| b.cmp(a));
        sent.get(view.grantor_majority().saturating_sub(1)).map(|sent_at| *sent_at + lease)
    }

    /// Forgets every grant: the next lease is a fresh one.
    pub fn clear(&mut self) {
        *self = Holder::default();
    }
}

/// The grantor's side: when this node last granted each other node's lease.
#[derive(Clone, Debug)]
pub struct Grantor {
    /// This node's start, or the last change of the grantors: any node may have been granted up to then.
    floor: Time,
    granted: BTreeMap<NodeId, Time>,
}

impl Grantor {
    /// A grantor that has just started, and so must assume that it granted everybody until now.
    pub fn new(now: Time) -> Grantor {
        Grantor { floor: now, granted: BTreeMap::new() }
    }

    /// Takes note of a grant that leaves now. The table holds at most one entry per node of the cluster.
    pub fn grant(&mut self, now: Time, holder: NodeId) {
        self.granted.insert(holder, now);
    }

    /// The set of grantors changed at `now`: waits start again.
    pub fn grantors_changed(&mut self, now: Time) {
        self.floor = now;
    }

    /// When this node may vouch that `holder`, which it grants no more, holds no lease that rests on it.
    pub fn over_at(&self, holder: NodeId, lease: Duration, drift: Duration) -> Time {
        let last = self.granted.get(&holder).copied().unwrap_or(self.floor).max(self.floor);
        last + lease + drift
    }
}

/// Whether enough grantors vouch that `holder`, removed in the view that `view` records, holds no lease.
pub fn is_fenced(view: &View, holder: NodeId, vouchers: &BTreeMap<NodeId, BTreeMap<NodeId, ViewId>>) -> bool {
    let Some(removed_in) = view.removed.get(&holder) else { return false };
    if is_planted(Flaw::SkipFence) {
        return true;
    }
    let count = (view.grantors.iter())
        .filter(|grantor| **grantor != holder)
        .filter(|grantor| vouchers.get(grantor).and_then(|fenced| fenced.get(&holder)) == Some(removed_in))
        .count();
    count >= view.grantor_majority()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Incarnation;

    const LEASE: Duration = Duration::from_secs(1);

    fn view() -> View {
        let mut view = View::founded(NodeId(1), Incarnation(1));
        for node in [NodeId(2), NodeId(3)] {
            view = view.admit(node, Incarnation(1), node).add_grantor(node, NodeId(1));
        }
        view
    }

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn the_deadline_counts_from_what_a_majority_granted() {
        let (mut holder, view) = (Holder::default(), view());
        holder.granted(NodeId(3), at(500), view.id);
        assert_eq!(holder.deadline(&view, LEASE), None);
        holder.granted(NodeId(1), at(300), view.id);
        assert_eq!(holder.deadline(&view, LEASE), Some(at(1_300)));
        holder.granted(NodeId(1), at(100), view.id);
        assert_eq!(holder.deadline(&view, LEASE), Some(at(1_300)), "an old echo takes nothing back");
    }

    #[test]
    fn a_new_grantor_that_has_granted_nothing_yet_shortens_no_lease() {
        let mut holder = Holder::default();
        let alone = View::founded(NodeId(1), Incarnation(1)).admit(NodeId(2), Incarnation(1), NodeId(1));
        holder.granted(NodeId(1), at(300), alone.id);
        assert_eq!(holder.deadline(&alone, LEASE), Some(at(1_300)));
        let both = alone.add_grantor(NodeId(2), NodeId(1));
        assert_eq!(holder.deadline(&both, LEASE), Some(at(1_300)));
        holder.granted(NodeId(1), at(400), both.id);
        assert_eq!(holder.deadline(&both, LEASE), Some(at(1_300)), "one of two lengthens nothing");
        holder.clear();
        assert_eq!(holder.deadline(&both, LEASE), None);
    }

    #[test]
    fn a_grantor_that_is_ahead_grants_nothing() {
        let (mut holder, view) = (Holder::default(), view());
        holder.granted(NodeId(1), at(300), view.id.next());
        holder.granted(NodeId(3), at(300), view.id);
        assert_eq!(holder.deadline(&view, LEASE), None);
    }

    #[test]
    fn a_restarted_grantor_counts_its_start_as_its_last_grant() {
        let grantor = Grantor::new(at(700));
        assert_eq!(grantor.over_at(NodeId(3), LEASE, Duration::from_millis(15)), at(1_715));
    }

    #[test]
    fn a_fence_needs_a_majority_and_the_same_removal() {
        let view = view();
        let removed = view.remove(BTreeMap::from([(NodeId(3), [NodeId(1), NodeId(2)].into())]), NodeId(1));
        let vouch = |node, view| (NodeId(node), BTreeMap::from([(NodeId(3), view)]));
        let one = BTreeMap::from([vouch(1, removed.id)]);
        assert!(!is_fenced(&removed, NodeId(3), &one));
        let stale = BTreeMap::from([vouch(1, removed.id), vouch(2, view.id)]);
        assert!(!is_fenced(&removed, NodeId(3), &stale));
        let own = BTreeMap::from([vouch(1, removed.id), vouch(3, removed.id)]);
        assert!(!is_fenced(&removed, NodeId(3), &own), "nobody vouches for itself");
        let both = BTreeMap::from([vouch(1, removed.id), vouch(2, removed.id)]);
        assert!(is_fenced(&removed, NodeId(3), &both));
    }
}
