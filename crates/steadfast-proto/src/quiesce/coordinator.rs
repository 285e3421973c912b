//! The coordinator: asks everybody in rounds, compares their counters, and says when nothing is in flight.
//!
//! Decides "quiesced": a round in which everybody had finished all that was sent by the round before, and nobody sent
//! anything since. Must never conclude from one wave, and must never be believed after [`Coordinator::valid_until`].
//! Read `docs/protocols/quiesce.md` for why two waves are enough.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{AbortReason, Batch, Event, Member, Message, QuiesceId, Reason, Settings};
use crate::ids::{NodeId, ViewId};
use crate::machine::Machine;
use crate::time::Time;

/// How often `Resume` is said; whoever misses all of them is released by its lease.
const RESUMES: u8 = 3;

/// How far a quiesce has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Reports are being collected.
    Collect,
    /// No relevant message of the scope is in flight, and none is generated.
    Quiesced,
    /// It was given up.
    Failed(Reason),
    /// It was let go after it had been reached.
    Released,
}

/// The one coordinator of one quiesce. Made for one [`QuiesceId`], begun with `Begin`, ended with `Release`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coordinator {
    settings: Settings,
    id: QuiesceId,
    view: ViewId,
    scope: BTreeSet<Member>,
    fenced: BTreeSet<Member>,
    round: u32,
    phase: Phase,
    reports: BTreeMap<Member, Report>,
    needs: BTreeMap<Member, BTreeMap<NodeId, u64>>,
    /// Per member, when the newest question left that it has answered.
    renewed: BTreeMap<Member, Time>,
    ask_at: Time,
    patience: Duration,
    hold_at: Time,
    resumes_left: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Report {
    active: u64,
    sent: BTreeMap<NodeId, u64>,
    done: BTreeMap<NodeId, u64>,
}

/// What can happen to a coordinator.
#[derive(Clone, Debug)]
pub enum CoordinatorInput {
    /// Ask everybody to hold still.
    Begin,
    /// A message arrived from this member.
    Received {
        /// Who sent it, as the transport knows it.
        from: Member,
        /// What it says.
        message: Message,
    },
    /// This member failed; if it is in the scope the quiesce is over.
    Gone(Member),
    /// Another list of members is in force.
    ViewChanged,
    /// Let everybody go.
    Release,
    /// The time of [`Machine::deadline`] has come.
    Deadline,
}

impl Coordinator {
    /// A coordinator for `scope`, members of `view`, that asks nothing yet.
    ///
    /// `fenced` are members of the view that are taken for dead: everybody drops what still comes from them.
    pub fn new(
        settings: Settings,
        id: QuiesceId,
        view: ViewId,
        scope: BTreeSet<Member>,
        fenced: BTreeSet<Member>,
    ) -> Coordinator {
        let (patience, resumes_left) = (settings.retry, RESUMES);
        Coordinator {
            settings,
            id,
            view,
            scope,
            fenced,
            round: 0,
            phase: Phase::Collect,
            reports: BTreeMap::new(),
            needs: BTreeMap::new(),
            renewed: BTreeMap::new(),
            ask_at: Time::ZERO,
            patience,
            hold_at: Time::ZERO,
            resumes_left,
        }
    }

    /// Which quiesce this is.
    pub fn id(&self) -> QuiesceId {
        self.id
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The round that is being asked, or that settled it.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// Who has not reported in this round.
    pub fn awaiting(&self) -> impl Iterator<Item = Member> + '_ {
        self.scope.iter().filter(|member| !self.reports.contains_key(member)).copied()
    }

    /// Until when everybody surely holds; check it before and after what rests on it. `None` unless quiesced.
    pub fn valid_until(&self) -> Option<Time> {
        if self.phase != Phase::Quiesced {
            return None;
        }
        let drift = self.settings.lease / 100;
        let oldest =
            self.scope.iter().map(|member| self.renewed.get(member).copied().unwrap_or(Time::ZERO)).min();
        oldest.map(|oldest| (oldest + self.settings.lease).before(drift))
    }

    fn receive(&mut self, now: Time, from: Member, message: Message, out: &mut Batch) {
        if message.id() != self.id || !self.scope.contains(&from) {
            return;
        }
        if matches!(self.phase, Phase::Failed(_) | Phase::Released) {
            if !matches!(message, Message::Abort { .. }) {
                out.send.push((from, Message::Resume { id: self.id }));
            }
            return;
        }
        match message {
            Message::Report { round, active, sent, done, stamp, .. } => {
                self.renew(from, stamp, now);
                if round == self.round && self.phase == Phase::Collect {
                    self.reports.entry(from).or_insert(Report { active, sent, done });
                    self.conclude(now, out);
                }
            }
            Message::Held { stamp, .. } => self.renew(from, stamp, now),
            Message::Abort { reason, .. } => {
                let reason = match reason {
                    AbortReason::ViewChanged => Reason::ViewChanged,
                    AbortReason::LeaseLost => Reason::LeaseLost,
                    AbortReason::Refused => Reason::Refused,
                };
                self.fail(now, reason, out);
            }
            Message::Start { .. }
            | Message::Continue { .. }
            | Message::Hold { .. }
            | Message::Resume { .. } => (),
        }
    }

    fn renew(&mut self, member: Member, stamp: u64, now: Time) {
        // Nobody can have heard a question that has not left yet.
        let stamp = Time::from_nanos(stamp).min(now);
        let renewed = self.renewed.entry(member).or_insert(stamp);
        *renewed = (*renewed).max(stamp);
    }

    fn conclude(&mut self, now: Time, out: &mut Batch) {
        if self.reports.len() < self.scope.len() {
            return;
        }
        if self.round > 0 && self.reports.values().all(|report| report.active == 0) {
            self.phase = Phase::Quiesced;
            out.events.push(Event::Quiesced { id: self.id, round: self.round });
            return;
        }
        if self.round >= self.settings.rounds_max {
            return self.fail(now, Reason::RoundLimit, out);
        }
        self.needs = self.outstanding();
        self.reports.clear();
        self.round += 1;
        self.patience = self.settings.retry;
        self.ask(now, out);
    }

    /// Per member, what was sent to it and was not finished when it reported.
    fn outstanding(&self) -> BTreeMap<Member, BTreeMap<NodeId, u64>> {
        let mut needs = BTreeMap::new();
        for (member, own) in &self.reports {
            let mut need = BTreeMap::new();
            for (peer, report) in self.reports.iter().filter(|(peer, _)| *peer != member) {
                let sent = report.sent.get(&member.node).copied().unwrap_or(0);
                if sent > own.done.get(&peer.node).copied().unwrap_or(0) {
                    need.insert(peer.node, sent);
                }
            }
            needs.insert(*member, need);
        }
        needs
    }

    fn ask(&mut self, now: Time, out: &mut Batch) {
        let (id, stamp) = (self.id, now.as_nanos());
        for member in self.scope.iter().filter(|member| !self.reports.contains_key(member)) {
            let question = if self.round == 0 {
                Message::Start {
                    id,
                    view: self.view,
                    scope: self.scope.clone(),
                    fenced: self.fenced.clone(),
                    lease: self.settings.lease,
                    stamp,
                }
            } else {
                let needs = self.needs.get(member).cloned().unwrap_or_default();
                Message::Continue { id, round: self.round, needs, stamp }
            };
            out.send.push((*member, question));
        }
        self.ask_at = now + self.patience;
        self.patience = (self.patience * 2).min(self.settings.retry * 20);
    }

    fn fail(&mut self, now: Time, reason: Reason, out: &mut Batch) {
        if matches!(self.phase, Phase::Failed(_) | Phase::Released) {
            return;
        }
        self.phase = Phase::Failed(reason);
        out.events.push(Event::Failed(self.id, reason));
        self.resume(now, out);
    }

    fn resume(&mut self, now: Time, out: &mut Batch) {
        out.send.extend(self.scope.iter().map(|member| (*member, Message::Resume { id: self.id })));
        self.resumes_left = self.resumes_left.saturating_sub(1);
        self.ask_at = now + self.settings.retry;
    }

    fn on_deadline(&mut self, now: Time, out: &mut Batch) {
        match self.phase {
            Phase::Collect => {
                if self.ask_at <= now {
                    self.ask(now, out);
                }
            }
            Phase::Quiesced => {
                if self.valid_until().is_some_and(|until| until <= now) {
                    return self.fail(now, Reason::LeaseLost, out);
                }
            }
            Phase::Failed(_) | Phase::Released => {
                if self.resumes_left > 0 && self.ask_at <= now {
                    self.resume(now, out);
                }
                return;
            }
        }
        if self.hold_at <= now {
            let hold = Message::Hold { id: self.id, stamp: now.as_nanos() };
            // Before its first answer a member may hold nothing, and would refuse.
            let known = self.scope.iter().filter(|member| self.renewed.contains_key(member));
            out.send.extend(known.map(|member| (*member, hold.clone())));
            self.hold_at = now + self.settings.lease / 3;
        }
    }
}

impl Machine for Coordinator {
    type Input = CoordinatorInput;
    type Output = Batch;

    fn step(&mut self, now: Time, input: CoordinatorInput, out: &mut Batch) {
        match input {
            CoordinatorInput::Begin => {
                self.hold_at = now + self.settings.lease / 3;
                self.ask(now, out);
            }
            CoordinatorInput::Received { from, message } => self.receive(now, from, message, out),
            CoordinatorInput::Gone(member) => {
                if self.scope.contains(&member) {
                    self.fail(now, Reason::MemberGone, out);
                }
            }
            CoordinatorInput::ViewChanged => self.fail(now, Reason::ViewChanged, out),
            CoordinatorInput::Release => {
                if matches!(self.phase, Phase::Collect | Phase::Quiesced) {
                    self.phase = Phase::Released;
                    self.resume(now, out);
                }
            }
            CoordinatorInput::Deadline => self.on_deadline(now, out),
        }
    }

    fn deadline(&self) -> Option<Time> {
        match self.phase {
            Phase::Collect => Some(self.ask_at.min(self.hold_at)),
            Phase::Quiesced => self.valid_until().map(|until| until.min(self.hold_at)),
            Phase::Failed(_) | Phase::Released => (self.resumes_left > 0).then_some(self.ask_at),
        }
    }
}
