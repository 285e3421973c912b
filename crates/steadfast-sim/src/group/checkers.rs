//! The checkers of a mirrored group: VM1 to VM6 of PROTOCOLS 3.4, and that no acknowledged write is lost.
//!
//! They are fed with facts; none asks a process what it believes. VIRTUAL-SYNCHRONY is the second half of VM4: whoever
//! installs a view has applied the same records in the same order.

use std::collections::{BTreeMap, BTreeSet};

use steadfast_proto::group::{AttemptId, GroupView, Member, Reason, Row, Sequence};
use steadfast_proto::ids::ViewId;

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its id.
    pub invariant: &'static str,
    /// What was seen, and when.
    pub seen: String,
}

#[derive(Debug)]
pub(super) struct Checkers {
    only: Option<&'static str>,
    last: GroupView,
    /// Members that were killed, or of which the group was told that they failed.
    failed: BTreeSet<Member>,
    eliminated: BTreeSet<Member>,
    promoting: BTreeMap<Member, AttemptId>,
    digests: BTreeMap<ViewId, u64>,
    pub(super) violation: Option<Violation>,
}

impl Checkers {
    pub(super) fn new(first: GroupView, only: Option<&'static str>) -> Checkers {
        Checkers {
            only,
            last: first,
            failed: BTreeSet::new(),
            eliminated: BTreeSet::new(),
            promoting: BTreeMap::new(),
            digests: BTreeMap::new(),
            violation: None,
        }
    }

    pub(super) fn broken(&mut self, invariant: &'static str, seen: String) {
        if self.only.is_none_or(|only| only == invariant) {
            self.violation.get_or_insert(Violation { invariant, seen });
        }
    }

    pub(super) fn failed(&mut self, member: Member) {
        self.failed.insert(member);
    }

    pub(super) fn eliminated(&mut self, member: Member) {
        self.eliminated.insert(member);
    }

    pub(super) fn attempted(
        &mut self,
        by: Member,
        (attempt, asked, promoting): (AttemptId, &BTreeSet<Member>, Option<Member>),
        view: &GroupView,
    ) {
        let strangers: Vec<_> =
            asked.iter().filter(|member| !view.has(**member) && Some(**member) != promoting).collect();
        if !view.has(by) || !strangers.is_empty() {
            self.broken("VM3", format!("{by:?} coordinates {attempt:?} in {view:?}, asking {strangers:?}"));
        }
        if let Some(other) = self.promoting.get(&by) {
            self.broken("VM6", format!("{by:?} promotes in {attempt:?} and in {other:?}"));
        }
        if promoting.is_some() {
            self.promoting.insert(by, attempt);
        }
    }

    pub(super) fn settled(&mut self, by: Member) {
        self.promoting.remove(&by);
    }

    /// A view was committed; `promoted_last` is what the promoted process has applied by then, if it lives.
    pub(super) fn committed(&mut self, row: &Row, promoted_last: Option<Sequence>) {
        let (before, view) = (self.last.clone(), &row.view);
        if view.id == before.id {
            return;
        }
        if view.id != before.id.next() || view.predecessor != before.id {
            self.broken("VM1", format!("{view:?} follows {before:?}"));
        }
        let came: BTreeSet<Member> = view.members().difference(&before.members()).copied().collect();
        let left: BTreeSet<Member> = before.members().difference(&view.members()).copied().collect();
        let is_right = match &view.reason {
            Reason::Founded => false,
            Reason::Added(by) => came == [*by].into() && left.is_empty() && view.full.len() <= mirrors(view),
            Reason::Replaced { victim, by } => came == [*by].into() && left == [*victim].into(),
            Reason::Failed(gone) => came.is_empty() && left == *gone && gone.is_subset(&self.failed),
        };
        if !is_right || view.full.is_empty() {
            self.broken("VM2", format!("{view:?} follows {before:?}; failed are {:?}", self.failed));
        }
        if came.len() > 1 {
            self.broken("VM6", format!("{came:?} are promoted at once"));
        }
        if let Some(unfit) = came.iter().find(|member| self.eliminated.contains(member)) {
            self.broken("VM5", format!("{unfit:?} was eliminated and is promoted by {view:?}"));
        }
        if !came.is_empty() && promoted_last.is_some_and(|last| last != view.cut) {
            self.broken("VM4", format!("{came:?} has {promoted_last:?} and is promoted at {:?}", view.cut));
        }
        self.last = view.clone();
    }

    /// A full member installed a view; `lost` is an acknowledged write that it does not have.
    pub(super) fn installed(
        &mut self,
        member: Member,
        row: &Row,
        last: Sequence,
        digest: Option<u64>,
        lost: Option<u64>,
    ) {
        if last != row.view.cut {
            self.broken("VM4", format!("{member:?} installs {:?} with {last:?}", row.view));
        }
        let first = digest.map(|digest| *self.digests.entry(row.view.id).or_insert(digest));
        if first != digest {
            self.broken(
                "VIRTUAL-SYNCHRONY",
                format!("{member:?} installs {:?} with other records", row.view),
            );
        }
        if let Some(id) = lost {
            self.broken("NO-LOST-WRITE", format!("{member:?} installs {:?} without write {id}", row.view));
        }
    }

    /// A write is acknowledged in this view; `lasts` is what each full member has by then, as far as it lives.
    pub(super) fn acknowledged(
        &mut self,
        at: Sequence,
        view: &GroupView,
        lasts: &[(Member, Option<Sequence>)],
    ) {
        let without = lasts.iter().find(|(_, last)| last.is_some_and(|last| last < at));
        if let Some((member, last)) = without {
            self.broken(
                "VM3",
                format!("record {at:?} is acknowledged in {view:?}; {member:?} has only {last:?}"),
            );
        }
    }
}

fn mirrors(view: &GroupView) -> usize {
    usize::try_from(view.mirrors).unwrap_or(usize::MAX)
}
