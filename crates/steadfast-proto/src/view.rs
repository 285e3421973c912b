//! The agreed list of members: what a next view may be, and when one may be proposed.
//!
//! A view is a row of the catalog; a change is one compare-and-set on it, so that of two proposals one wins and
//! every member that installs view *n* installs the same one (PROTOCOLS 3.4, VM1). These functions make the next
//! view from the last; they never decide that somebody failed, and nothing here starts or stops a container.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{ContainerRow, NodeRow, View, ViewReason, ViewRecord};
use crate::detect::Class;
use crate::domains;
use crate::ids::{Incarnation, NodeId, ViewId};

/// How many grantors a cluster has at most.
pub const GRANTORS_MAX: usize = 5;

/// Of how many views a record is kept, the newest.
pub const RECORDS_MAX: u64 = 1_000;

impl View {
    /// The first view of a cluster, with its founder alone.
    pub fn founded(founder: NodeId, incarnation: Incarnation) -> View {
        View {
            id: ViewId(1),
            members: BTreeMap::from([(founder, incarnation)]),
            removed: BTreeMap::new(),
            successors: BTreeMap::new(),
            grantors: BTreeSet::from([founder]),
            grantors_since: ViewId(1),
            proposer: founder,
            reason: ViewReason::Founded,
        }
    }

    /// Whether `node` is a member, in whatever incarnation.
    pub fn has(&self, node: NodeId) -> bool {
        self.members.contains_key(&node)
    }

    /// Whether the newest checkpoint of a container that does not run would be lost with `node`: nobody takes another one,
    /// and no other member holds a copy.
    pub fn loses_with(&self, node: NodeId, row: &ContainerRow) -> bool {
        let Some(latest) = row.latest.as_ref().filter(|_| !row.is_active()) else { return false };
        let mut others = latest.copies.iter().filter(|holder| **holder != node);
        latest.copies.contains(&node) && !others.any(|holder| self.has(*holder))
    }

    /// The next view, in which `node` is a member in `incarnation`.
    #[must_use]
    pub fn admit(&self, node: NodeId, incarnation: Incarnation, proposer: NodeId) -> View {
        let mut next = self.next(proposer, ViewReason::Admitted(node));
        next.members.insert(node, incarnation);
        next.removed.remove(&node);
        next.successors.remove(&node);
        next
    }

    /// The next view, in which `new` has taken the place of `old`: in one step, so that no duty is ever without a
    /// holder. A member that is replaced proposes it itself, after it has let go of all it had; one that was removed
    /// stays fenced.
    #[must_use]
    pub fn replace(&self, old: NodeId, new: NodeId, incarnation: Incarnation, proposer: NodeId) -> View {
        let mut next = self.next(proposer, ViewReason::Replaced { old, new });
        next.members.remove(&old);
        next.members.insert(new, incarnation);
        next.removed.remove(&new);
        next.successors.remove(&new);
        if next.removed.contains_key(&old) {
            next.successors.insert(old, new);
        }
        next
    }

    /// The next view, without `node`, which proposes it itself after it has let go of all it had.
    #[must_use]
    pub fn leave(&self, node: NodeId) -> View {
        let mut next = self.next(node, ViewReason::Left(node));
        next.members.remove(&node);
        next
    }

    /// A removed node whose place nobody has taken yet; the one that was removed first.
    pub fn vacancy(&self) -> Option<NodeId> {
        let vacant = self.removed.iter().filter(|(node, _)| !self.successors.contains_key(*node));
        vacant.min_by_key(|(node, removed_in)| (**removed_in, **node)).map(|(node, _)| *node)
    }

    /// The next view, without `accused`; each comes with its accusers.
    #[must_use]
    pub fn remove(&self, accused: BTreeMap<NodeId, BTreeSet<NodeId>>, proposer: NodeId) -> View {
        let mut next = self.next(proposer, ViewReason::Removed(accused.clone()));
        for node in accused.into_keys() {
            if next.members.remove(&node).is_some() {
                next.removed.insert(node, next.id);
            }
        }
        next
    }

    /// The next view, in which member `node` grants leases too.
    #[must_use]
    pub fn add_grantor(&self, node: NodeId, proposer: NodeId) -> View {
        let mut next = self.next(proposer, ViewReason::Grantor(node));
        next.grantors.insert(node);
        next.grantors_since = next.id;
        next
    }

    /// The next view, in which `node`, no member any more, grants no leases.
    #[must_use]
    pub fn drop_grantor(&self, node: NodeId, proposer: NodeId) -> View {
        let mut next = self.next(proposer, ViewReason::NoGrantor(node));
        next.grantors.remove(&node);
        next.grantors_since = next.id;
        next
    }

    /// The grantor that should be dropped next: one that is no member and whose place is taken, or needed. Else it stays:
    /// it may come back, and fewer grantors tolerate less.
    pub fn stale_grantor(&self) -> Option<NodeId> {
        let has_spare = self.members.keys().any(|node| !self.grantors.contains(node));
        let is_needed = has_spare && self.grantors.len() >= GRANTORS_MAX;
        let is_over = |node: &NodeId| {
            is_needed || !self.removed.contains_key(node) || self.successors.contains_key(node)
        };
        self.grantors.iter().copied().find(|node| !self.has(*node) && is_over(node))
    }

    /// How many grantors make a lease, or end one.
    pub fn grantor_majority(&self) -> usize {
        self.grantors.len() / 2 + 1
    }

    /// The member that should grant leases next, if there is room: of those that don't yet the one whose failure domain
    /// has the fewest grantors, as far as `nodes` tells; the lowest of several.
    pub fn next_grantor(&self, nodes: &BTreeMap<NodeId, NodeRow>) -> Option<NodeId> {
        if self.grantors.len() >= GRANTORS_MAX {
            return None;
        }
        let domain = |node: &NodeId| nodes.get(node).map(|row| row.domain.as_slice()).unwrap_or_default();
        let candidates = self.members.keys().filter(|node| !self.grantors.contains(node));
        domains::furthest(candidates.map(|node| (*node, domain(node))), self.grantors.iter().map(domain))
    }

    /// The position of `node` among the members that are not in `except`: 0 acts, the others stand by.
    pub fn rank(&self, node: NodeId, except: &BTreeSet<NodeId>) -> usize {
        self.members.keys().filter(|id| !except.contains(id)).take_while(|id| **id != node).count()
    }

    /// What is kept of this view, and the record that makes room for it; both belong in the transaction that commits
    /// the view, so that what is kept is what was committed.
    pub fn record(
        &self,
        verdicts: BTreeMap<NodeId, Class>,
        proposed_unix_ms: u64,
    ) -> (ViewRecord, Option<ViewId>) {
        let surplus = self.id.0.checked_sub(RECORDS_MAX).filter(|id| *id > 0).map(ViewId);
        (ViewRecord { view: self.clone(), verdicts, proposed_unix_ms }, surplus)
    }

    fn next(&self, proposer: NodeId, reason: ViewReason) -> View {
        View { id: self.id.next(), proposer, reason, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Key;

    fn view(nodes: u128) -> View {
        (2..=nodes).fold(View::founded(NodeId(1), Incarnation(1)), |view, node| {
            view.admit(NodeId(node), Incarnation(1), NodeId(1))
        })
    }

    fn accusations(list: &[(u128, u128)]) -> BTreeMap<NodeId, BTreeSet<NodeId>> {
        let mut map: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for (accuser, accused) in list {
            map.entry(NodeId(*accuser)).or_default().insert(NodeId(*accused));
        }
        map
    }

    #[test]
    fn several_are_removed_in_one_view() {
        let view = view(5);
        let both = [(1, 4), (2, 4), (3, 4), (1, 5), (2, 5), (3, 5)];
        let mut accusers = BTreeMap::new();
        for (accuser, accused) in both {
            accusers.entry(NodeId(accused)).or_insert_with(BTreeSet::new).insert(NodeId(accuser));
        }
        let next = view.remove(accusers, NodeId(1));
        assert_eq!(next.id, view.id.next());
        assert_eq!(next.members.keys().copied().collect::<Vec<_>>(), [NodeId(1), NodeId(2), NodeId(3)]);
        assert_eq!(next.removed.get(&NodeId(4)), Some(&next.id));
    }

    #[test]
    fn coming_back_ends_the_removal() {
        let view = view(3);
        let without = view.remove(accusations(&[(3, 1), (3, 2)]), NodeId(1));
        let back = without.admit(NodeId(3), Incarnation(2), NodeId(3));
        assert!(back.removed.is_empty());
        assert_eq!(back.members.get(&NodeId(3)), Some(&Incarnation(2)));
    }

    #[test]
    fn the_newest_thousand_views_are_kept_and_the_record_of_each_says_all_of_it() {
        let mut view = View::founded(NodeId(1), Incarnation(1));
        let mut kept = BTreeMap::from([(view.id, view.record(BTreeMap::new(), 7).0)]);
        for change in 2..=RECORDS_MAX + 100 {
            view = view.admit(NodeId(2), Incarnation(change), NodeId(1));
            let (record, surplus) = view.record(BTreeMap::new(), change);
            assert_eq!(record.view, view);
            kept.insert(view.id, record);
            surplus.map(|id| kept.remove(&id).unwrap());
            assert!(kept.len() as u64 <= RECORDS_MAX);
        }
        assert!(kept.keys().map(|id| id.0).eq(101..=RECORDS_MAX + 100));
        let keys: Vec<String> = kept.keys().map(|id| Key::ViewRecord(*id).encode()).collect();
        assert!(keys.is_sorted(), "the engine's order is that of the views");
        assert!(keys.iter().zip(kept.keys()).all(|(key, id)| Key::decode(key) == Some(Key::ViewRecord(*id))));
    }

    #[test]
    fn grantors_grow_one_at_a_time_up_to_five() {
        let mut view = view(7);
        while let Some(node) = view.next_grantor(&BTreeMap::new()) {
            view = view.add_grantor(node, NodeId(1));
        }
        assert_eq!(view.grantors.len(), GRANTORS_MAX);
        assert_eq!(view.grantors_since, view.id);
    }

    #[test]
    fn grantors_stand_in_different_domains_where_they_can() {
        let row = |node: u128| NodeRow {
            id: NodeId(node),
            name: format!("n{node}"),
            engine_id: 1,
            addresses: Vec::new(),
            fingerprint: String::new(),
            domain: vec![format!("rack-{}", node.div_ceil(4))],
            memory_bytes: 0,
            criu: String::new(),
            processor: String::new(),
        };
        let nodes = (1..=12).map(|node| (NodeId(node), row(node))).collect();
        let mut view = view(12);
        while let Some(node) = view.next_grantor(&nodes) {
            view = view.add_grantor(node, NodeId(1));
        }
        assert_eq!(view.grantors, [1, 2, 5, 6, 9].map(NodeId).into());
    }
}
