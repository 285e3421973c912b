//! The director: who is replaced by whom, who is killed when, and who is wrongly taken for dead.
//!
//! It keeps to one failure at a time: nobody else fails before the group has its full number again, for then even a
//! sound group may lose everything. Must never help: candidates apply, and members act, by themselves.

use std::collections::BTreeSet;

use steadfast_proto::group::{GroupView, Intent, Member, Reason, Row};
use steadfast_proto::ids::ViewId;

use super::world::{Event, MS, World, member, place};

/// After how long without a new view a world is stuck.
const STUCK: u64 = 120_000 * MS;

#[derive(Debug, Default)]
pub(super) struct Director {
    candidate: Option<Member>,
    /// The view at whose first installation a member is killed.
    kill_at: Option<ViewId>,
    /// Members of the present view that failed.
    failed: BTreeSet<Member>,
    /// Processes of no use any more, each with when it ends.
    retired: Vec<(u64, Member)>,
    last_view_at: u64,
    /// Until when writers are left alone.
    rest_until: u64,
    /// Until when a candidate that was killed may yet be promoted by a late swap, and nobody else may fail.
    grace_until: u64,
    tick: u64,
}

impl World {
    /// Looks after the candidate, every 50 ms.
    pub(super) fn direct(&mut self) {
        self.push(50 * MS, Event::Direct);
        let view = self.register.row.view.clone();
        let over: Vec<Member> =
            self.director.retired.iter().filter(|(at, _)| *at <= self.now).map(|(_, who)| *who).collect();
        self.director.retired.retain(|(at, _)| *at > self.now);
        for who in over {
            self.end(who);
        }
        if let Some(candidate) = self.director.candidate
            && (view.has(candidate) || self.process(candidate).is_none())
        {
            self.director.candidate = None;
        }
        let is_resting = self.director.rest_until > self.now;
        if is_resting
            || self.director.candidate.is_some()
            || self.director.kill_at.is_some()
            || self.has_failure()
        {
            return;
        }
        let mirrors = usize::try_from(view.mirrors).unwrap_or(usize::MAX);
        let intent = if view.full.len() < mirrors {
            Intent::Add
        } else {
            let Some(victim) = self.random.pick(&view.full).copied() else { return };
            Intent::Replace(victim)
        };
        let spare: Vec<usize> =
            (0..self.nodes.len()).filter(|node| self.nodes[*node].process.is_none()).collect();
        let Some(node) = self.random.pick(&spare).copied() else { return };
        self.director.candidate = Some(self.start(node, intent));
    }

    pub(super) fn direct_committed(&mut self, row: &Row) {
        self.director.last_view_at = self.now;
        self.director.tick += 1;
        self.director.rest_until = self.now + self.random.below(500 * MS);
        let view = &row.view;
        let before = self.report.views.iter().rev().nth(1).map(GroupView::members).unwrap_or_default();
        // Who left goes on for a while without knowing it.
        for left in before.difference(&view.members()) {
            let after = self.random.between(100 * MS, 1_500 * MS);
            self.director.retired.push((self.now + after, *left));
        }
        let is_unasked_removal = match &view.reason {
            Reason::Failed(gone) => {
                gone.iter().any(|member| self.process(*member).is_some() && !self.is_failed(*member))
            }
            Reason::Founded | Reason::Added(_) | Reason::Replaced { .. } => false,
        };
        self.director.failed.retain(|member| view.has(*member));
        let is_replacement = matches!(view.reason, Reason::Replaced { .. });
        self.report.replaced += u32::from(is_replacement);
        // Of the last one nothing would remain; a removal that nobody asked for gets no such mercy.
        let is_survivable = view.full.len() > 1 || is_unasked_removal;
        let is_due = (is_replacement || is_unasked_removal) && is_survivable;
        if self.plan.kills && is_due && !self.has_failure() {
            self.director.kill_at = Some(view.id);
        }
    }

    /// Kills a random remaining member in the instant in which the view is first in force anywhere.
    pub(super) fn direct_installed(&mut self, row: &Row) {
        if self.director.kill_at == Some(row.view.id) {
            self.director.kill_at = None;
            if let Some(who) = self.random.pick(&row.view.full).copied() {
                self.fail(who, true);
            }
        }
    }

    /// Lets something go wrong in the middle of some changes.
    pub(super) fn direct_attempted(&mut self) {
        if self.random.chance(self.plan.accidents) {
            let after = self.random.below(40 * MS);
            self.push(after, Event::Accident { tick: self.director.tick });
        }
    }

    pub(super) fn direct_eliminated(&mut self, who: Member) {
        self.director.retired.push((self.now, who));
    }

    pub(super) fn accident(&mut self, tick: u64) {
        let view = self.register.row.view.clone();
        let mirrors = usize::try_from(view.mirrors).unwrap_or(usize::MAX);
        let is_graced = self.director.grace_until > self.now;
        if tick != self.director.tick || is_graced || self.director.kill_at.is_some() || self.has_failure() {
            return;
        }
        // A group that is short of members would lose everything.
        if view.full.len() < mirrors || view.full.len() < 2 {
            return;
        }
        let candidate = self.director.candidate.filter(|who| self.process(*who).is_some());
        if self.random.chance(0.3)
            && let Some(candidate) = candidate
        {
            self.director.grace_until = self.now + 10_000 * MS;
            return self.fail(candidate, true);
        }
        let is_killed = self.random.chance(0.6);
        if let Some(who) = self.random.pick(&view.full).copied() {
            self.fail(who, is_killed);
        }
    }

    pub(super) fn check_progress(&mut self) {
        if self.now > self.director.last_view_at + STUCK {
            let row = self.register.row.clone();
            self.checkers.broken("VM-L1", format!("no new view after {row:?} for 120 s"));
        }
        let row = &self.register.row;
        if row.view.full.iter().all(|member| self.process(*member).is_none()) {
            let seen = format!("no member of {:?} is left", row.view);
            self.checkers.broken("NO-LOST-WRITE", seen);
        }
    }

    fn is_failed(&self, who: Member) -> bool {
        self.director.failed.contains(&who)
    }

    /// Whether some member of the present view failed.
    fn has_failure(&self) -> bool {
        let view = &self.register.row.view;
        view.full.iter().any(|member| self.is_failed(*member) || self.process(*member).is_none())
    }

    /// Ends a process, or only lets everybody else believe so.
    fn fail(&mut self, who: Member, is_killed: bool) {
        self.checkers.failed(who);
        self.director.failed.insert(who);
        if is_killed {
            self.report.kills += 1;
            self.end(who);
        } else {
            self.report.mistaken += 1;
        }
        for node in 0..self.nodes.len() {
            let to = member(node, self.nodes[node].incarnation);
            if to != who {
                let after = self.random.between(50 * MS, 400 * MS);
                self.push(after, Event::Fence { to, failed: who });
            }
        }
    }

    fn end(&mut self, who: Member) {
        if self.process(who).is_some() {
            self.nodes[place(who)].process = None;
        }
    }
}
