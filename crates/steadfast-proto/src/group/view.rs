//! The agreed list of a group's members, and what a next one may be.
//!
//! The list is one row of the catalog, changed only by compare-and-set; each view names its predecessor and the cut,
//! the last record of the view before. Must never be changed in place. Read `change` for how a next view comes about.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Member, Sequence};
use crate::ids::ViewId;

/// How many full members a group has at most.
pub const MIRRORS_MAX: usize = 16;

/// The agreed, numbered list of a group's full members.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupView {
    /// Its number; the next view has the next one (VM1).
    pub id: ViewId,
    /// The view that it replaced.
    pub predecessor: ViewId,
    /// The full members in order of rank; the first leads.
    pub full: Vec<Member>,
    /// How many full members the group should have.
    pub mirrors: u32,
    /// The last record of the view before; every member has it when the view is committed.
    pub cut: Sequence,
    /// Why it was proposed.
    pub reason: Reason,
}

/// Why a group's view replaced the one before.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The group was made.
    Founded,
    /// A candidate was promoted beside the others.
    Added(Member),
    /// A candidate took a member's place in one step.
    Replaced {
        /// Who left.
        victim: Member,
        /// Who came.
        by: Member,
    },
    /// A failure view: members were removed because they failed, and the group may have fewer than it should.
    Failed(BTreeSet<Member>),
}

/// What the catalog holds of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Row {
    /// The view in force.
    pub view: GroupView,
    /// How often the row was renewed in this view. A renewal changes no member; it makes every swap fail that was
    /// under way, so that members who stood still for it may go on.
    pub renewal: u64,
}

impl Row {
    /// The first row of a group whose members all begin empty. The order is the rank.
    pub fn founded(full: Vec<Member>) -> Row {
        let mirrors = u32::try_from(full.len()).unwrap_or(u32::MAX);
        let (id, predecessor, cut) = (ViewId(1), ViewId(0), Sequence(0));
        Row { view: GroupView { id, predecessor, full, mirrors, cut, reason: Reason::Founded }, renewal: 0 }
    }

    /// What a swap compares.
    pub fn key(&self) -> (ViewId, u64) {
        (self.view.id, self.renewal)
    }

    /// The same view, with every pending swap made void.
    #[must_use]
    pub fn renewed(&self) -> Row {
        Row { view: self.view.clone(), renewal: self.renewal.saturating_add(1) }
    }
}

impl GroupView {
    /// Who numbers writes.
    pub fn leader(&self) -> Option<Member> {
        self.full.first().copied()
    }

    /// Whether this very incarnation is a full member.
    pub fn has(&self, member: Member) -> bool {
        self.full.contains(&member)
    }

    /// The full members without order.
    pub fn members(&self) -> BTreeSet<Member> {
        self.full.iter().copied().collect()
    }

    /// The position of `member` among the full members that are not in `except`.
    pub fn rank(&self, member: Member, except: &BTreeSet<Member>) -> Option<u32> {
        let position =
            self.full.iter().filter(|other| !except.contains(other)).position(|other| *other == member)?;
        u32::try_from(position).ok()
    }

    /// The next view, in which `by` has the place of `victim`, last in rank.
    #[must_use]
    pub fn replace(&self, victim: Member, by: Member, cut: Sequence) -> GroupView {
        let mut next = self.next(cut, Reason::Replaced { victim, by });
        next.full.retain(|member| *member != victim);
        next.full.push(by);
        next
    }

    /// The next view, in which `by` is a full member too.
    #[must_use]
    pub fn add(&self, by: Member, cut: Sequence) -> GroupView {
        let mut next = self.next(cut, Reason::Added(by));
        next.full.push(by);
        next
    }

    /// The next view, a failure view, without `gone`.
    #[must_use]
    pub fn fail(&self, gone: &BTreeSet<Member>, cut: Sequence) -> GroupView {
        let mut next = self.next(cut, Reason::Failed(gone.clone()));
        next.full.retain(|member| !gone.contains(member));
        next
    }

    fn next(&self, cut: Sequence, reason: Reason) -> GroupView {
        GroupView { id: self.id.next(), predecessor: self.id, cut, reason, ..self.clone() }
    }
}
