//! The participant: counts relevant messages, stops generating, and reports when it has finished what was sent to it.
//!
//! Decides when it may report and when it lets go. Must never report while a handler runs, never clear a counter
//! because it was read, and never hold longer than the lease after the coordinator's last word.
//! Read [`super::Coordinator`] next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{AbortReason, Batch, Event, Member, Message, QuiesceId, Reason};
use crate::flaw::{Flaw, is_planted};
use crate::ids::{NodeId, ViewId};
use crate::machine::Machine;
use crate::time::Time;

/// For how many quiesces a participant holds at once.
pub const HOLDS_MAX: usize = 16;

/// One member's part in every quiesce of its view.
///
/// The owner tells it about relevant messages with the counting methods ([`sent`](Self::sent),
/// [`received`](Self::received), [`processed`](Self::processed), [`began`](Self::began), [`ended`](Self::ended)),
/// asks [`may_generate`](Self::may_generate) before it creates one of its own accord and [`admits`](Self::admits)
/// before it processes one, and steps it with `Progressed` when counts have moved while it
/// [`is_asked`](Self::is_asked).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Participant {
    me: Member,
    view: ViewId,
    members: BTreeSet<Member>,
    fenced: BTreeSet<Member>,
    sent: BTreeMap<NodeId, u64>,
    done: BTreeMap<NodeId, u64>,
    /// Relevant messages received and not finished, and own operations that may still send.
    busy: u64,
    holds: BTreeMap<QuiesceId, Holding>,
    /// Per initiator, the newest quiesce that it ever started here: what is delayed does not suspend again.
    newest: BTreeMap<Member, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Holding {
    scope: BTreeSet<NodeId>,
    round: u32,
    needs: BTreeMap<NodeId, u64>,
    /// How many it had sent within the scope at its previous report.
    base: u64,
    /// The report of this round, once given; repeated word for word.
    answer: Option<Answer>,
    lease: Duration,
    until: Time,
    stamp: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Answer {
    active: u64,
    sent: BTreeMap<NodeId, u64>,
    done: BTreeMap<NodeId, u64>,
}

/// What can happen to a participant.
#[derive(Clone, Debug)]
pub enum ParticipantInput {
    /// A message arrived from this member.
    Received {
        /// Who sent it, as the transport knows it.
        from: Member,
        /// What it says.
        message: Message,
    },
    /// Counters moved: a report may be due.
    Progressed,
    /// A new list of members is in force; quiesces of the old one are over.
    Installed {
        /// Its number.
        view: ViewId,
        /// Its members.
        members: BTreeSet<Member>,
    },
    /// The time of [`Machine::deadline`] has come.
    Deadline,
}

impl Participant {
    /// A participant that has sent and received nothing yet.
    pub fn new(me: Member, view: ViewId, members: &BTreeSet<Member>) -> Participant {
        Participant {
            me,
            view,
            members: members.clone(),
            fenced: BTreeSet::new(),
            sent: BTreeMap::new(),
            done: BTreeMap::new(),
            busy: 0,
            holds: BTreeMap::new(),
            newest: BTreeMap::new(),
        }
    }

    /// Whether a relevant message may be created that no other relevant message led to.
    pub fn may_generate(&self) -> bool {
        self.holds.is_empty()
    }

    /// Whether a relevant message of `from` may be processed (Q5).
    pub fn admits(&self, from: Member) -> bool {
        self.members.contains(&from) && (!self.fenced.contains(&from) || is_planted(Flaw::QuiesceNoFence))
    }

    /// Whether some report waits for counters to move.
    pub fn is_asked(&self) -> bool {
        self.holds.values().any(|holding| holding.answer.is_none())
    }

    /// Counts one relevant message to `peer`, and gives its number.
    pub fn sent(&mut self, peer: NodeId) -> u64 {
        let count = self.sent.entry(peer).or_default();
        *count += 1;
        *count
    }

    /// Counts relevant messages to `peer` where these carry numbers of their own: all up to `number` are sent.
    pub fn sent_up_to(&mut self, peer: NodeId, number: u64) {
        let count = self.sent.entry(peer).or_default();
        *count = (*count).max(number);
    }

    /// Notes a relevant message of `peer` that is here and will be processed.
    pub fn received(&mut self, peer: NodeId) {
        if is_planted(Flaw::QuiesceDoneAtDelivery) {
            *self.done.entry(peer).or_default() += 1;
            return;
        }
        self.busy += 1;
    }

    /// Counts a relevant message of `peer` as finished: whatever it leads to is sent and counted.
    pub fn processed(&mut self, peer: NodeId) {
        if is_planted(Flaw::QuiesceDoneAtDelivery) {
            return;
        }
        self.busy = self.busy.saturating_sub(1);
        *self.done.entry(peer).or_default() += 1;
    }

    /// Counts relevant messages of `peer` that carry numbers of their own: all up to `number` are finished.
    pub fn processed_up_to(&mut self, peer: NodeId, number: u64) {
        let count = self.done.entry(peer).or_default();
        *count = (*count).max(number);
    }

    /// Notes an own operation that may yet send relevant messages; begun only while generation is allowed.
    pub fn began(&mut self) {
        self.busy += 1;
    }

    /// Notes the end of an own operation.
    pub fn ended(&mut self) {
        self.busy = self.busy.saturating_sub(1);
    }

    /// Fences `member`: nothing of it is processed from now on.
    pub fn fence(&mut self, member: Member) {
        if self.members.contains(&member) && member != self.me {
            self.fenced.insert(member);
        }
    }

    fn receive(&mut self, now: Time, from: Member, message: Message, out: &mut Batch) {
        if message.id().initiator != from || !self.members.contains(&from) {
            return;
        }
        match message {
            Message::Start { id, view, scope, fenced, lease, stamp } => {
                if let Err(reason) = self.start(now, (id, view), (scope, fenced), (lease, stamp), out) {
                    out.send.push((from, Message::Abort { id, reason }));
                }
            }
            Message::Continue { id, round, needs, stamp } => {
                let Some(holding) = self.holds.get_mut(&id) else {
                    return refuse_lapsed(from, id, out);
                };
                holding.extend(now, stamp);
                if round == holding.round + 1 && holding.answer.is_some() {
                    holding.round = round;
                    holding.needs = needs;
                    holding.answer = None;
                    if is_planted(Flaw::QuiesceLateBaseline) {
                        holding.base = total(&self.sent, &holding.scope);
                    }
                }
                self.answer(id, out);
            }
            Message::Hold { id, stamp } => {
                let Some(holding) = self.holds.get_mut(&id) else {
                    return refuse_lapsed(from, id, out);
                };
                holding.extend(now, stamp);
                out.send.push((from, Message::Held { id, stamp: holding.stamp }));
            }
            Message::Resume { id } => self.release(id, Reason::Resumed, out),
            Message::Report { .. } | Message::Held { .. } | Message::Abort { .. } => (),
        }
    }

    fn start(
        &mut self,
        now: Time,
        (id, view): (QuiesceId, ViewId),
        (scope, fenced): (BTreeSet<Member>, BTreeSet<Member>),
        (lease, stamp): (Duration, u64),
        out: &mut Batch,
    ) -> Result<(), AbortReason> {
        if view > self.view {
            // It will be asked again, by when the view is installed here too.
            return Ok(());
        }
        if view < self.view {
            return Err(AbortReason::ViewChanged);
        }
        if let Some(holding) = self.holds.get_mut(&id) {
            holding.extend(now, stamp);
            self.answer_if_round(id, 0, out);
            return Ok(());
        }
        if self.newest.get(&id.initiator).is_some_and(|newest| *newest >= id.number) {
            return Err(AbortReason::LeaseLost);
        }
        let is_right =
            scope.is_subset(&self.members) && scope.contains(&self.me) && scope.is_disjoint(&fenced);
        if !is_right || self.holds.len() >= HOLDS_MAX {
            return Err(AbortReason::Refused);
        }
        for member in fenced {
            self.fence(member);
        }
        self.newest.insert(id.initiator, id.number);
        let scope: BTreeSet<NodeId> = scope.iter().map(|member| member.node).collect();
        let base = total(&self.sent, &scope);
        let (until, needs) = (now + lease, BTreeMap::new());
        let holding = Holding { scope, round: 0, needs, base, answer: None, lease, until, stamp };
        self.holds.insert(id, holding);
        out.events.push(Event::Suspended(id));
        self.answer(id, out);
        Ok(())
    }

    fn answer_if_round(&mut self, id: QuiesceId, round: u32, out: &mut Batch) {
        if self.holds.get(&id).is_some_and(|holding| holding.round == round) {
            self.answer(id, out);
        }
    }

    /// Reports, if nothing runs and everything that the round asks for is finished.
    fn answer(&mut self, id: QuiesceId, out: &mut Batch) {
        let Some(holding) = self.holds.get_mut(&id) else { return };
        if holding.answer.is_none() {
            let has_finished =
                |(peer, need): (&NodeId, &u64)| self.done.get(peer).copied().unwrap_or(0) >= *need;
            let is_idle = self.busy == 0 || is_planted(Flaw::QuiesceBusyIgnored);
            let is_met = holding.needs.iter().all(has_finished) || is_planted(Flaw::QuiesceNeedsIgnored);
            if !is_idle || !is_met {
                return;
            }
            let within = |counts: &BTreeMap<NodeId, u64>| {
                counts
                    .iter()
                    .filter(|(peer, _)| holding.scope.contains(peer))
                    .map(|(a, b)| (*a, *b))
                    .collect()
            };
            let sent = total(&self.sent, &holding.scope);
            let active = if holding.round == 0 { 0 } else { sent - holding.base };
            holding.answer = Some(Answer { active, sent: within(&self.sent), done: within(&self.done) });
            holding.base = sent;
        }
        let Some(Answer { active, sent, done }) = holding.answer.clone() else { return };
        let (round, stamp) = (holding.round, holding.stamp);
        out.send.push((id.initiator, Message::Report { id, round, active, sent, done, stamp }));
    }

    fn release(&mut self, id: QuiesceId, reason: Reason, out: &mut Batch) {
        if self.holds.remove(&id).is_some() {
            out.events.push(Event::Released(id, reason));
        }
    }

    fn install(&mut self, view: ViewId, members: BTreeSet<Member>, out: &mut Batch) {
        if view <= self.view {
            return;
        }
        let stays = |member: &Member| members.contains(member);
        for gone in self.members.iter().filter(|member| !stays(member)) {
            self.sent.remove(&gone.node);
            self.done.remove(&gone.node);
        }
        self.fenced.clear();
        self.newest.retain(|member, _| stays(member));
        self.view = view;
        self.members = members;
        for id in std::mem::take(&mut self.holds).into_keys() {
            out.events.push(Event::Released(id, Reason::ViewChanged));
        }
    }
}

impl Holding {
    fn extend(&mut self, now: Time, stamp: u64) {
        // An old question that was overtaken says nothing new about the coordinator.
        if stamp >= self.stamp {
            self.stamp = stamp;
            self.until = now + self.lease;
        }
    }
}

impl Machine for Participant {
    type Input = ParticipantInput;
    type Output = Batch;

    fn step(&mut self, now: Time, input: ParticipantInput, out: &mut Batch) {
        match input {
            ParticipantInput::Received { from, message } => self.receive(now, from, message, out),
            ParticipantInput::Progressed => {
                let waiting = self.holds.iter().filter(|(_, holding)| holding.answer.is_none());
                for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.answer(id, out);
                }
            }
            ParticipantInput::Installed { view, members } => self.install(view, members, out),
            ParticipantInput::Deadline => (),
        }
        let lapsed = self.holds.iter().filter(|(_, holding)| holding.until <= now);
        for id in lapsed.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.release(id, Reason::LeaseLost, out);
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.holds.values().map(|holding| holding.until).min()
    }
}

fn total(counts: &BTreeMap<NodeId, u64>, scope: &BTreeSet<NodeId>) -> u64 {
    counts.iter().filter(|(peer, _)| scope.contains(peer)).map(|(_, count)| count).sum()
}

fn refuse_lapsed(to: Member, id: QuiesceId, out: &mut Batch) {
    out.send.push((to, Message::Abort { id, reason: AbortReason::LeaseLost }));
}
