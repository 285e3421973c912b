//! Candidates: who wants to become a full member, how far each is, and who is ready.
//!
//! A candidate receives the feed and holds no duty: it never counts, votes or coordinates (VM3). Every full member
//! keeps this list from what the candidates themselves repeat, so that any of them can carry out a promotion. What is
//! measured outside comes in as [`Standing`]. Must never promote: that is `change`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{GroupView, Member, Sequence, Settings};
use crate::flaw::{Flaw, is_planted};
use crate::time::Time;

/// How many candidates a group evaluates at once.
pub const PROBATION_MAX: usize = 8;

/// What a candidate wants to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// One more full member, where the group has fewer than it should.
    Add,
    /// The successor of this member.
    Replace(Member),
}

/// How a candidate stands by the criteria that are measured outside the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not all criteria have been met for long enough.
    Pending,
    /// All are met now.
    Pass,
    /// One has failed for good.
    Fail,
}

/// Why a candidate will not be promoted. It may apply again in a new incarnation, or after its owner changed its intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Elimination {
    /// The member that it would have replaced is not in the view.
    VictimGone,
    /// The group has as many full members as it should.
    GroupFull,
    /// There are as many candidates as the group evaluates at once.
    TooMany,
    /// A criterion failed.
    Criterion,
    /// The snapshot could not be restored.
    Snapshot,
}

/// One candidate, as one full member sees it.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) intent: Intent,
    pub(super) last: Option<Sequence>,
    pub(super) heard_at: Time,
    pub(super) standing: Standing,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Probation {
    candidates: BTreeMap<Member, Candidate>,
}

impl Probation {
    /// Notes an application.
    pub(super) fn apply(
        &mut self,
        now: Time,
        member: Member,
        intent: Intent,
        last: Option<Sequence>,
        view: &GroupView,
    ) -> Result<(), Elimination> {
        if let Some(candidate) = self.candidates.get(&member)
            && candidate.standing == Standing::Fail
        {
            return Err(Elimination::Criterion); // VM5
        }
        if let Err(elimination) = fits(intent, view) {
            self.candidates.remove(&member);
            return Err(elimination);
        }
        // A new life of the same node takes the place of its older one.
        self.candidates
            .retain(|other, _| other.node != member.node || other.incarnation >= member.incarnation);
        if !self.candidates.contains_key(&member) && self.candidates.len() >= PROBATION_MAX {
            return Err(Elimination::TooMany);
        }
        let standing = Standing::Pending;
        let fresh = Candidate { intent, last, heard_at: now, standing };
        let candidate = self.candidates.entry(member).or_insert(fresh);
        candidate.intent = intent;
        candidate.last = last;
        candidate.heard_at = now;
        Ok(())
    }

    pub(super) fn judge(&mut self, member: Member, standing: Standing) {
        if let Some(candidate) = self.candidates.get_mut(&member)
            && candidate.standing != Standing::Fail
        {
            candidate.standing = standing;
        }
    }

    pub(super) fn remove(&mut self, member: Member) {
        self.candidates.remove(&member);
    }

    pub(super) fn has(&self, member: Member) -> bool {
        self.candidates.contains_key(&member)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.candidates.keys().copied()
    }

    /// Drops who does not apply any more or has become a member, and returns whose intent the view no longer fits.
    pub(super) fn review(
        &mut self,
        now: Time,
        view: &GroupView,
        settings: &Settings,
    ) -> Vec<(Member, Elimination)> {
        self.candidates.retain(|member, candidate| {
            now < candidate.heard_at + settings.apply_timeout && !view.has(*member)
        });
        let unfit =
            |(member, candidate): (&Member, &Candidate)| Some((*member, fits(candidate.intent, view).err()?));
        let unfit: Vec<_> = self.candidates.iter().filter_map(unfit).collect();
        for (member, _) in &unfit {
            self.candidates.remove(member);
        }
        unfit
    }

    /// When the first candidate will be forgotten.
    pub(super) fn deadline(&self, settings: &Settings) -> Option<Time> {
        self.candidates.values().map(|candidate| candidate.heard_at + settings.apply_timeout).min()
    }

    /// The first candidate that passes and lags no more than allowed, with the member that it would replace.
    pub(super) fn ready(&self, last: Sequence, settings: &Settings) -> Option<(Member, Intent)> {
        let is_ready = |candidate: &&Candidate| {
            let lags = candidate.last.map(|at| last.0.saturating_sub(at.0));
            candidate.standing == Standing::Pass && lags.is_some_and(|lag| lag <= settings.lag_max)
        };
        let ready = self.candidates.iter().find(|(_, candidate)| is_ready(candidate));
        ready.map(|(member, candidate)| (*member, candidate.intent))
    }
}

fn fits(intent: Intent, view: &GroupView) -> Result<(), Elimination> {
    let has_room = view.full.len() < usize::try_from(view.mirrors).unwrap_or(usize::MAX);
    match intent {
        Intent::Add if has_room => Ok(()),
        Intent::Add => Err(Elimination::GroupFull),
        Intent::Replace(victim) if view.has(victim) => Ok(()),
        Intent::Replace(_) if has_room && is_planted(Flaw::GroupTwoSteps) => Ok(()),
        Intent::Replace(_) => Err(Elimination::VictimGone),
    }
}
