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

/// A row that can't be a group's first, or can't follow the one that is there. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNext {
    /// It is no first row.
    #[error(
        "the first row of a group has view 1 after 0, cut 0 and no renewal, and 1 to {MIRRORS_MAX} full members on as many nodes, which is how many it should have; this one has view {0} and {1} members"
    )]
    First(ViewId, usize),
    /// It is neither a renewal of the row that is there nor its next view.
    #[error(
        "the group is at view {there}, renewal {renewal}: next is view {there} with the next renewal, or the view after it; not view {asked} after {predecessor}"
    )]
    Number {
        /// The view that is there.
        there: ViewId,
        /// Its renewal.
        renewal: u64,
        /// The view that was to be written.
        asked: ViewId,
        /// What it names as its predecessor.
        predecessor: ViewId,
    },
    /// Its members are not those of its predecessor with the change that it names.
    #[error(
        "view {0} does not have the members of the one before it with the change that it gives as its reason"
    )]
    Members(ViewId),
    /// Its cut lies before that of its predecessor.
    #[error("view {0} begins at record {1}, before the one that it follows")]
    Cut(ViewId, u64),
}

impl Row {
    /// Whether this can be the first row of a group.
    ///
    /// # Errors
    /// What stands against it.
    pub fn check_first(&self) -> Result<(), NotNext> {
        let count = self.view.full.len();
        let nodes: BTreeSet<_> = self.view.full.iter().map(|member| member.node).collect();
        let is_first = (1..=MIRRORS_MAX).contains(&count)
            && nodes.len() == count
            && *self == Row::founded(self.view.full.clone());
        if is_first { Ok(()) } else { Err(NotNext::First(self.view.id, count)) }
    }

    /// Whether `next` can follow this row: its renewal, or the next view with the change of members that it names.
    ///
    /// # Errors
    /// What stands against it.
    pub fn check_next(&self, next: &Row) -> Result<(), NotNext> {
        if *next == self.renewed() {
            return Ok(());
        }
        let (old, new) = (&self.view, &next.view);
        if new.id != old.id.next() || new.predecessor != old.id || next.renewal != 0 {
            return Err(NotNext::Number {
                there: old.id,
                renewal: self.renewal,
                asked: new.id,
                predecessor: new.predecessor,
            });
        }
        if new.cut < old.cut {
            return Err(NotNext::Cut(new.id, new.cut.0));
        }
        let has_node = |by: Member| old.full.iter().any(|member| member.node == by.node);
        let right = match &new.reason {
            Reason::Founded => None,
            Reason::Added(by) => (!has_node(*by)).then(|| old.add(*by, new.cut)),
            Reason::Replaced { victim, by } => {
                let is_right =
                    old.has(*victim) && !old.has(*by) && (!has_node(*by) || victim.node == by.node);
                is_right.then(|| old.replace(*victim, *by, new.cut))
            }
            Reason::Failed(gone) => {
                let is_right = !gone.is_empty() && gone.iter().all(|member| old.has(*member));
                is_right.then(|| old.fail(gone, new.cut))
            }
        };
        let has_room = usize::try_from(new.mirrors).is_ok_and(|mirrors| new.full.len() <= mirrors);
        if right.as_ref() == Some(new) && has_room && !new.full.is_empty() {
            return Ok(());
        }
        Err(NotNext::Members(new.id))
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
