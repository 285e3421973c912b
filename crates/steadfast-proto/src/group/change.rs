//! Changing the view: hold still, find the cut, let everybody agree, and commit by one compare-and-set.
//!
//! Decides which view to propose, and when it may be committed: when every survivor and the candidate have everything
//! up to the cut and will take nothing beyond it. Must never swap before that, and never give up after it has asked
//! the catalog: from then on only the catalog knows. Read `docs/protocols/groups.md` for the abort paths.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    AbortReason, Application, AttemptId, Event, Group, GroupView, Intent, Member, Message, Output, Row,
    Sequence,
};
use crate::flaw::{Flaw, is_planted};
use crate::machine::Machine;
use crate::quiesce::{
    self, Batch, Coordinator, CoordinatorInput, Phase, QuiesceId, Settings as QuiesceSettings,
};
use crate::time::Time;

/// What should change, and when this process will see to it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    plan: Plan,
    due: Time,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    /// Members that failed; no answer of theirs is waited for.
    gone: BTreeSet<Member>,
    victim: Option<Member>,
    by: Option<Member>,
}

/// An attempt that this process coordinates.
#[derive(Clone, Debug)]
pub(super) struct Change {
    attempt: AttemptId,
    plan: Plan,
    survivors: BTreeSet<Member>,
    /// Whose agreement is needed: the coordinator, the survivors that stay, and the candidate.
    asked: BTreeSet<Member>,
    step: Step,
    quiesce: Option<Coordinator>,
    ask_at: Time,
    give_up_at: Time,
}

#[derive(Clone, Debug)]
enum Step {
    Quiesce,
    Flush(BTreeMap<Member, Sequence>),
    Propose { next: GroupView, acked: BTreeMap<Member, Sequence> },
    Swap,
}

impl<A: Application> Group<A> {
    /// Carries the change on as far as it goes, or begins one that is due.
    pub(super) fn advance(&mut self, now: Time, out: &mut Output) {
        let Some(change) = &self.change else { return self.consider(now, out) };
        match &change.step {
            Step::Quiesce => {
                if change.quiesce.as_ref().is_some_and(|quiesce| quiesce.phase() == Phase::Quiesced) {
                    self.propose(now, out);
                }
            }
            Step::Flush(infos) => {
                let is_complete = change.survivors.iter().all(|member| infos.contains_key(member));
                let most = infos.values().max().copied().unwrap_or_default();
                if is_complete && (self.log.last() >= most || is_planted(Flaw::GroupNoFlush)) {
                    self.propose(now, out);
                }
            }
            Step::Propose { next, acked } => {
                if change.asked.iter().all(|member| acked.get(member) == Some(&next.cut)) {
                    let next = Row { view: next.clone(), renewal: 0 };
                    if let Some(change) = &mut self.change {
                        change.step = Step::Swap;
                    }
                    self.swap(next, out); // the commit point
                }
            }
            Step::Swap => (),
        }
    }

    fn consider(&mut self, now: Time, out: &mut Output) {
        if self.swapping.is_some() || !self.has_state {
            return;
        }
        let Some(plan) = self.plan() else {
            self.wanted = None;
            return;
        };
        if self.wanted.as_ref().is_none_or(|wanted| wanted.plan != plan) {
            let mut except = plan.gone.clone();
            except.extend(plan.victim);
            let due = now + self.stand_by(&except);
            self.wanted = Some(Wanted { plan: plan.clone(), due });
        }
        let stand_by = self.settings.stand_by;
        let Some(wanted) = &mut self.wanted else { return };
        if wanted.due > now {
            return;
        }
        let is_free = self.promises.is_empty() && self.participant.may_generate();
        if plan.gone.is_empty() && !is_free {
            wanted.due = now + stand_by;
            return;
        }
        self.begin(now, plan, out);
    }

    /// What should change now, as far as this process knows.
    fn plan(&self) -> Option<Plan> {
        let view = &self.row.as_ref()?.view;
        if !view.has(self.me) {
            return None;
        }
        let gone = self.gone_members();
        let ready = self.probation.ready(self.log.last(), &self.settings);
        if !gone.is_empty() {
            let successor = ready.and_then(|(by, intent)| match intent {
                Intent::Replace(victim) if gone == BTreeSet::from([victim]) => Some((victim, by)),
                Intent::Replace(_) | Intent::Add => None,
            });
            let (victim, by) = successor.unzip();
            return Some(Plan { gone, victim, by });
        }
        let (by, intent) = ready?;
        // Who is to be replaced leaves it to the others, unless there are none.
        let may_replace = |victim: Member| victim != self.me || view.full.len() == 1;
        match intent {
            Intent::Add => Some(Plan { gone, victim: None, by: Some(by) }),
            Intent::Replace(victim) if is_planted(Flaw::GroupTwoSteps) => {
                let is_first = view.has(victim);
                let plan = Plan { gone, victim: is_first.then_some(victim), by: (!is_first).then_some(by) };
                may_replace(victim).then_some(plan)
            }
            Intent::Replace(victim) => {
                may_replace(victim).then_some(Plan { gone, victim: Some(victim), by: Some(by) })
            }
        }
    }

    fn begin(&mut self, now: Time, plan: Plan, out: &mut Output) {
        let Some(row) = self.row.clone() else { return };
        self.attempts += 1;
        let (basis, renewal) = row.key();
        let attempt = AttemptId { basis, renewal, by: self.me, number: self.attempts };
        let survivors: BTreeSet<Member> = row.view.members().difference(&plan.gone).copied().collect();
        let mut asked = survivors.clone();
        asked.extend(plan.by);
        if let Some(victim) = plan.victim.filter(|victim| *victim != self.me) {
            asked.remove(&victim);
        }
        // A failure view never waits for the group to be quiet, and a dead leader generates nothing.
        let is_planned = plan.by.is_some() || plan.gone.is_empty();
        let leads = row.view.leader().is_some_and(|leader| survivors.contains(&leader));
        let step = if is_planned && leads { Step::Quiesce } else { Step::Flush(BTreeMap::new()) };
        out.events.push(Event::Attempted { attempt, asked: asked.clone(), promoting: plan.by });
        let give_up_at = now + self.settings.change_timeout;
        let mut quiesce = None;
        if matches!(step, Step::Quiesce) {
            self.quiesces += 1;
            let id = QuiesceId { initiator: self.me, number: self.quiesces };
            let settings = QuiesceSettings {
                retry: self.settings.retry,
                lease: self.settings.lease,
                ..QuiesceSettings::default()
            };
            quiesce = Some(Coordinator::new(settings, id, basis, survivors.clone(), plan.gone.clone()));
        }
        let change = Change { attempt, plan, survivors, asked, step, quiesce, ask_at: now, give_up_at };
        self.change = Some(change);
        self.step_quiesce(now, CoordinatorInput::Begin, out);
        self.ask(now, out);
    }

    /// Asks whoever has not answered.
    fn ask(&mut self, now: Time, out: &mut Output) {
        let Some(change) = &mut self.change else { return };
        change.ask_at = now + self.settings.retry * 2;
        let attempt = change.attempt;
        let mut questions = Vec::new();
        match &change.step {
            Step::Quiesce | Step::Swap => (),
            Step::Flush(infos) => {
                let silent = change.survivors.iter().filter(|member| !infos.contains_key(member));
                let question = Message::FlushAsk { attempt, gone: change.plan.gone.clone() };
                questions.extend(silent.map(|member| (*member, question.clone())));
                let most = infos.iter().max_by_key(|(_, last)| **last);
                if let Some((holder, last)) = most
                    && questions.is_empty()
                    && *last > self.log.last()
                {
                    questions.push((*holder, Message::Fetch { attempt, first: self.log.last().next() }));
                }
            }
            Step::Propose { next, acked } => {
                // The victim is told too, where it lives, but its answer is not needed.
                let told = change.asked.union(&change.survivors);
                let silent = told.filter(|member| acked.get(member) != Some(&next.cut));
                let question = Message::Propose { attempt, next: next.clone() };
                questions.extend(silent.map(|member| (*member, question.clone())));
            }
        }
        for (to, question) in questions {
            self.post(to, question, out);
        }
    }

    fn propose(&mut self, now: Time, out: &mut Output) {
        let (Some(change), Some(row)) = (&mut self.change, &self.row) else { return };
        let (plan, cut) = (&change.plan, self.log.last());
        let next = match (plan.victim, plan.by) {
            (Some(victim), Some(by)) => row.view.replace(victim, by, cut),
            (None, Some(by)) => row.view.add(by, cut),
            (Some(victim), None) => row.view.fail(&BTreeSet::from([victim]), cut),
            (None, None) => row.view.fail(&plan.gone, cut),
        };
        change.step = Step::Propose { next, acked: BTreeMap::new() };
        self.ask(now, out);
    }

    pub(super) fn on_flush_info(&mut self, from: Member, attempt: AttemptId, last: Sequence) {
        if let Some(change) = self.change.as_mut().filter(|change| change.attempt == attempt)
            && let Step::Flush(infos) = &mut change.step
            && change.survivors.contains(&from)
        {
            infos.insert(from, last);
            // Perhaps it is the last one, and something must be fetched.
            change.ask_at = if infos.len() == change.survivors.len() { Time::ZERO } else { change.ask_at };
        }
    }

    pub(super) fn on_ack(&mut self, from: Member, attempt: AttemptId, last: Sequence, out: &mut Output) {
        let Some(change) = self.change.as_mut().filter(|change| change.attempt == attempt) else {
            return self.remind(from, attempt, out);
        };
        let Step::Propose { next, acked } = &mut change.step else { return };
        let before = acked.entry(from).or_insert(last);
        *before = (*before).max(last);
        if last < next.cut {
            let first = last.next();
            let records = self.log.from(first, next.cut.0 - last.0);
            if !records.is_empty() {
                self.post(from, Message::Fill { attempt, first, records }, out);
            }
        }
    }

    /// Tells somebody who still stands still for an attempt of this process what became of it.
    fn remind(&mut self, to: Member, attempt: AttemptId, out: &mut Output) {
        let Some(row) = self.row.clone().filter(|_| attempt.by == self.me && attempt.number <= self.attempts)
        else {
            return;
        };
        // In the same row it was given up, as it was never asked of the catalog; else it is decided.
        let is_void = row.key() == (attempt.basis, attempt.renewal);
        self.post(to, if is_void { Message::Abort(attempt) } else { Message::Install(row) }, out);
    }

    /// Lets the next question leave at once.
    pub(super) fn ask_now(&mut self) {
        if let Some(change) = &mut self.change {
            change.ask_at = Time::ZERO;
        }
    }

    pub(super) fn on_refuse(&mut self, now: Time, from: Member, attempt: AttemptId, out: &mut Output) {
        let Some(change) = self.change.as_ref().filter(|change| change.attempt == attempt) else { return };
        if change.asked.contains(&from) {
            self.abort(now, AbortReason::Refused(from), out);
        }
    }

    /// What a failure means for the change under way.
    pub(super) fn gone(&mut self, now: Time, member: Member, out: &mut Output) {
        let Some(change) = &self.change else { return };
        let is_held =
            matches!(change.step, Step::Quiesce | Step::Flush(_)) && change.survivors.contains(&member);
        if change.asked.contains(&member) || is_held {
            self.abort(now, AbortReason::MemberGone(member), out);
            if self.change.is_none() {
                self.wanted = None;
            }
        }
    }

    /// Another row is in force in the same view: what was asked before it can't be committed any more.
    pub(super) fn overtake(&mut self, now: Time, out: &mut Output) {
        let renewal = self.row.as_ref().map_or(0, |row| row.renewal);
        if let Some(change) = &mut self.change
            && change.attempt.renewal < renewal
        {
            change.step = Step::Quiesce;
            self.abort(now, AbortReason::Overtaken, out);
        }
    }

    pub(super) fn coordinate(
        &mut self,
        now: Time,
        from: Member,
        message: quiesce::Message,
        out: &mut Output,
    ) {
        self.step_quiesce(now, CoordinatorInput::Received { from, message }, out);
    }

    fn step_quiesce(&mut self, now: Time, input: CoordinatorInput, out: &mut Output) {
        let Some(quiesce) = self.change.as_mut().and_then(|change| change.quiesce.as_mut()) else { return };
        let mut batch = Batch::default();
        quiesce.step(now, input, &mut batch);
        let phase = quiesce.phase();
        self.carry(batch, out);
        if let Phase::Failed(reason) = phase {
            self.abort(now, AbortReason::Quiesce(reason), out);
        }
    }

    /// Gives the change up, unless the catalog has been asked.
    fn abort(&mut self, now: Time, why: AbortReason, out: &mut Output) {
        if self.change.as_ref().is_none_or(|change| matches!(change.step, Step::Swap)) {
            return;
        }
        let Some(mut change) = self.change.take() else { return };
        if let Some(quiesce) = &mut change.quiesce {
            let mut batch = Batch::default();
            quiesce.step(now, CoordinatorInput::Release, &mut batch);
            self.carry(batch, out);
        }
        let attempt = change.attempt;
        for member in change.asked.union(&change.survivors) {
            self.post(*member, Message::Abort(attempt), out);
        }
        out.events.push(Event::Aborted { attempt, why });
        self.wanted = Some(Wanted { plan: change.plan, due: now + self.settings.stand_by * 2 });
    }

    /// Does what is due for the change under way.
    pub(super) fn press(&mut self, now: Time, out: &mut Output) {
        let Some(change) = &self.change else { return };
        if !matches!(change.step, Step::Swap) && change.give_up_at <= now {
            return self.abort(now, AbortReason::TimedOut, out);
        }
        if change.quiesce.as_ref().and_then(Machine::deadline).is_some_and(|at| at <= now) {
            self.step_quiesce(now, CoordinatorInput::Deadline, out);
        }
        if self.change.as_ref().is_some_and(|change| change.ask_at <= now) {
            self.ask(now, out);
        }
    }

    /// When [`press`](Self::press) has something to do, or a change that is wanted is due.
    pub(super) fn press_at(&self) -> Option<Time> {
        let Some(change) = &self.change else {
            return self.wanted.as_ref().filter(|_| self.swapping.is_none()).map(|wanted| wanted.due);
        };
        if matches!(change.step, Step::Swap) {
            return None;
        }
        let holding = change.quiesce.as_ref().and_then(Machine::deadline);
        Some(
            holding.map_or(change.ask_at.min(change.give_up_at), |at| {
                at.min(change.ask_at).min(change.give_up_at)
            }),
        )
    }
}
