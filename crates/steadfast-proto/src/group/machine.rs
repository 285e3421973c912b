//! One process of a group: what it is made of, how a step goes, how writes enter, and how a view comes into force.
//!
//! Decides who numbers writes (the first full member), and when a write is done: when every full member of the view
//! has it. Must never reply earlier, and never number while it holds still. Read `member` for what is received, `change` for how views change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::change::{Change, Wanted};
use super::feed::Feed;
use super::log::Log;
use super::member::{Assembly, Promise};
use super::probation::Probation;
use super::{
    Application, AttemptId, Event, Input, Intent, Member, Message, Outcome, Output, RECORD_BYTES_MAX,
    RequestId, Row, Sequence, Settings, Swap,
};
use crate::ids::{Incarnation, NodeId, ViewId};
use crate::machine::Machine;
use crate::quiesce::{Batch, Participant, ParticipantInput};
use crate::time::Time;

/// How many nodes' failures are remembered at most.
const FENCED_MAX: usize = 4_096;

/// One process of a group, with the program that it mirrors.
///
/// A founder starts with [`founder`](Self::founder) and the row that was written to the catalog before; everybody
/// else starts as a [`candidate`](Self::candidate). The owner steps it with what arrives, carries out the
/// [`Output`], and steps it with `Deadline` when [`Machine::deadline`] has come. Every swap must be answered, be it
/// with `Unknown`; the catalog's row should be handed in when it changes, and must be at the start.
#[derive(Clone, Debug)]
pub struct Group<A> {
    pub(super) me: Member,
    pub(super) settings: Settings,
    pub(super) application: A,
    pub(super) row: Option<Row>,
    pub(super) log: Log,
    /// Whether the application holds a state that the log continues.
    pub(super) has_state: bool,
    /// Records that overtook others.
    pub(super) ahead: BTreeMap<Sequence, Vec<u8>>,
    pub(super) intent: Option<Intent>,
    pub(super) apply_at: Option<Time>,
    pub(super) assembly: Option<Assembly>,
    pub(super) participant: Participant,
    /// Per node, the newest incarnation that failed; also of nodes that may yet turn out to be members.
    fenced: BTreeMap<NodeId, Incarnation>,
    pub(super) promises: BTreeMap<AttemptId, Promise>,
    pub(super) nudge_at: Option<Time>,
    pub(super) probation: Probation,
    pub(super) change: Option<Change>,
    pub(super) wanted: Option<Wanted>,
    pub(super) attempts: u64,
    pub(super) quiesces: u64,
    pub(super) feed: Feed,
    unanswered: VecDeque<(Sequence, RequestId, Vec<u8>)>,
    parked: VecDeque<(RequestId, Vec<u8>)>,
    pub(super) swapping: Option<Swap>,
    swaps: u64,
    swap_again_at: Option<Time>,
    /// Messages to oneself.
    pub(super) inbox: VecDeque<Message>,
}

impl<A: Application> Group<A> {
    /// A founding member, with the group's first row as it stands in the catalog.
    pub fn founder(me: Member, settings: Settings, application: A, row: Row) -> Group<A> {
        let mut group = Group::new(me, settings, application);
        group.has_state = true;
        group.participant = Participant::new(me, row.view.id, &row.view.members());
        group.feed = Feed::begin(me, &row);
        group.row = Some(row);
        group
    }

    /// A candidate, empty until the leader feeds it; it applies as soon as it knows the row.
    pub fn candidate(me: Member, settings: Settings, application: A, intent: Intent) -> Group<A> {
        let mut group = Group::new(me, settings, application);
        group.intent = Some(intent);
        group.apply_at = Some(Time::ZERO);
        group
    }

    fn new(me: Member, settings: Settings, application: A) -> Group<A> {
        Group {
            me,
            settings,
            application,
            row: None,
            log: Log::after(Sequence(0), Sequence(0), settings.retained_max),
            has_state: false,
            ahead: BTreeMap::new(),
            intent: None,
            apply_at: None,
            assembly: None,
            participant: Participant::new(me, ViewId(0), &BTreeSet::new()),
            fenced: BTreeMap::new(),
            promises: BTreeMap::new(),
            nudge_at: None,
            probation: Probation::default(),
            change: None,
            wanted: None,
            attempts: 0,
            quiesces: 0,
            feed: Feed::default(),
            unanswered: VecDeque::new(),
            parked: VecDeque::new(),
            swapping: None,
            swaps: 0,
            swap_again_at: None,
            inbox: VecDeque::new(),
        }
    }

    /// This process.
    pub fn me(&self) -> Member {
        self.me
    }

    /// The program.
    pub fn application(&self) -> &A {
        &self.application
    }

    /// The row that is in force here.
    pub fn row(&self) -> Option<&Row> {
        self.row.as_ref()
    }

    /// The last record that the program has applied.
    pub fn last(&self) -> Sequence {
        self.log.last()
    }

    /// Whether this process is a full member of the view that it knows.
    pub fn is_full(&self) -> bool {
        self.row.as_ref().is_some_and(|row| row.view.has(self.me))
    }

    /// Whether this process numbers writes, as far as it knows.
    pub fn leads(&self) -> bool {
        self.row.as_ref().and_then(|row| row.view.leader()) == Some(self.me)
    }

    /// Whether this process wants to become a full member.
    pub fn is_candidate(&self) -> bool {
        self.intent.is_some() && !self.is_full()
    }

    /// Whether writes are held back now, for a change of view or because somebody is behind.
    pub fn holds_still(&self) -> bool {
        !self.may_number()
    }

    pub(super) fn post(&mut self, to: Member, message: Message, out: &mut Output) {
        if to == self.me {
            self.inbox.push_back(message);
        } else {
            out.send.push((to, message));
        }
    }

    fn write(&mut self, request: RequestId, record: Vec<u8>, out: &mut Output) {
        let refusal = if !self.leads() {
            Some(Outcome::NotLeader(self.row.as_ref().and_then(|row| row.view.leader())))
        } else if record.len() > RECORD_BYTES_MAX {
            Some(Outcome::TooLarge)
        } else if self.parked.len() >= self.settings.parked_max {
            Some(Outcome::Busy)
        } else {
            self.parked.push_back((request, record));
            None
        };
        if let Some(refusal) = refusal {
            out.replies.push((request, refusal));
        }
    }

    fn may_number(&self) -> bool {
        self.leads()
            && self.participant.may_generate()
            && self.promises.is_empty()
            && self.log.unstable() < self.settings.unstable_max
    }

    fn number(&mut self) {
        while self.may_number() {
            let Some((request, record)) = self.parked.pop_front() else { return };
            let reply = self.application.apply(&record);
            let sequence = self.log.push(record);
            self.unanswered.push_back((sequence, request, reply));
            let Some(row) = &self.row else { return };
            for other in row.view.full.iter().filter(|member| **member != self.me) {
                self.participant.sent_up_to(other.node, sequence.0);
            }
            self.settle_stable();
        }
    }

    fn settle_stable(&mut self) {
        if self.leads() {
            self.log.stabilise(self.feed.stable(&self.log));
        }
    }

    fn reply(&mut self, out: &mut Output) {
        while self.unanswered.front().is_some_and(|(at, _, _)| *at <= self.log.stable()) {
            let Some((at, request, reply)) = self.unanswered.pop_front() else { return };
            out.replies.push((request, Outcome::Done { at, reply }));
        }
    }

    /// Puts a row in force that the catalog holds, unless a newer one is.
    pub(super) fn install(&mut self, now: Time, row: Row, out: &mut Output) {
        let old = self.row.as_ref().map(Row::key);
        if old.is_some_and(|old| old >= row.key()) {
            return;
        }
        if self.swapping.as_ref().is_some_and(|swap| swap.expected < row.key()) {
            self.swapping = None;
            self.swap_again_at = None;
        }
        if old.is_some_and(|(view, _)| view == row.view.id) {
            self.promises.retain(|attempt, _| attempt.renewal >= row.renewal);
            self.row = Some(row);
            self.overtake(now, out);
            return;
        }
        let last = self.log.last();
        let is_next = self.row.as_ref().is_some_and(|old| old.view.id == row.view.predecessor);
        self.judge_state(&row, is_next);
        out.events.push(Event::Installed { row: row.clone(), last });
        self.row = Some(row.clone());
        self.promises.clear();
        self.change = None;
        self.wanted = None;
        self.ahead.clear();
        let installed = ParticipantInput::Installed { view: row.view.id, members: row.view.members() };
        self.participant.step(now, installed, &mut Batch::default());
        for member in self.gone_members() {
            self.participant.fence(member);
        }
        if row.view.has(self.me) {
            self.intent = None;
            self.apply_at = None;
            // Whoever agreed to the view had everything up to its cut, and all of them did.
            self.log.stabilise(row.view.cut);
            self.feed = Feed::begin(self.me, &row);
        } else {
            self.probation = Probation::default();
            self.apply_at = self.intent.map(|_| now);
            self.feed = Feed::default();
        }
        if !self.leads() {
            self.log.hold(None);
        }
        self.settle_requests(&row, is_next, out);
        for (member, elimination) in self.probation.review(now, &row.view, &self.settings) {
            out.send.push((member, Message::Eliminate(elimination)));
        }
    }

    /// Throws the state away if it holds records that the new view does not continue.
    fn judge_state(&mut self, row: &Row, is_next: bool) {
        let sure = if is_next { row.view.cut } else { self.log.stable() };
        if self.log.last() > sure && !(self.is_full() && row.view.has(self.me)) {
            self.forget_state();
        }
    }

    fn settle_requests(&mut self, row: &Row, is_next: bool, out: &mut Output) {
        self.reply(out);
        if self.leads() {
            return;
        }
        let leader = row.view.leader();
        for (at, request, reply) in std::mem::take(&mut self.unanswered) {
            // Everything up to the cut is in the new view; what lies beyond is in none, or its view was missed.
            let outcome =
                if is_next && at <= row.view.cut { Outcome::Done { at, reply } } else { Outcome::Unknown };
            out.replies.push((request, outcome));
        }
        out.replies.extend(self.parked.drain(..).map(|(request, _)| (request, Outcome::NotLeader(leader))));
    }

    pub(super) fn swap(&mut self, next: Row, out: &mut Output) {
        let Some(row) = &self.row else { return };
        self.swaps += 1;
        let swap = Swap { number: self.swaps, expected: row.key(), next };
        out.swap = Some(swap.clone());
        self.swapping = Some(swap);
    }

    fn swapped(&mut self, now: Time, number: u64, outcome: super::Swapped, out: &mut Output) {
        let Some(swap) = self.swapping.clone().filter(|swap| swap.number == number) else { return };
        let row = match outcome {
            super::Swapped::Done => swap.next,
            super::Swapped::Conflict(row) if row.key() > swap.expected => row,
            // A conflict with what was expected is no answer of a sound catalog: ask again, as after silence.
            super::Swapped::Conflict(_) | super::Swapped::Unknown => {
                self.swap_again_at = Some(now + self.settings.retry * 4);
                return;
            }
        };
        self.swapping = None;
        let mut told: BTreeSet<Member> = self.row.iter().flat_map(|row| row.view.members()).collect();
        told.extend(self.probation.members());
        told.extend(row.view.members());
        told.remove(&self.me);
        self.install(now, row.clone(), out);
        out.send.extend(told.into_iter().map(|member| (member, Message::Install(row.clone()))));
    }

    pub(super) fn fence(&mut self, now: Time, member: Member, out: &mut Output) {
        self.probation.remove(member);
        self.feed.drop_candidate(member);
        if member.node == self.me.node
            || (self.fenced.len() >= FENCED_MAX && !self.fenced.contains_key(&member.node))
        {
            return;
        }
        // It may be promoted in a view that has not been installed here yet.
        let fenced = self.fenced.entry(member.node).or_insert(member.incarnation);
        *fenced = (*fenced).max(member.incarnation);
        self.participant.fence(member);
        self.gone(now, member, out);
    }

    pub(super) fn is_fenced(&self, member: Member) -> bool {
        self.fenced.get(&member.node).is_some_and(|fenced| *fenced >= member.incarnation)
    }

    /// The full members that failed.
    pub(super) fn gone_members(&self) -> BTreeSet<Member> {
        let full = self.row.iter().flat_map(|row| &row.view.full);
        full.filter(|member| self.is_fenced(**member)).copied().collect()
    }

    fn settle(&mut self, now: Time, out: &mut Output) {
        loop {
            while let Some(message) = self.inbox.pop_front() {
                self.receive(now, self.me, message, out);
            }
            if self.participant.is_asked() {
                let mut batch = Batch::default();
                self.participant.step(now, ParticipantInput::Progressed, &mut batch);
                self.carry(batch, out);
            }
            self.advance(now, out);
            if self.inbox.is_empty() {
                break;
            }
        }
        self.settle_stable();
        self.number();
        self.reply(out);
        if self.leads()
            && let Some(row) = &self.row
        {
            let about = (row, &self.log, &self.settings);
            self.feed.pump(now, about, || self.application.snapshot(), &mut out.send);
            self.log.hold(self.feed.held());
        }
    }

    fn on_deadline(&mut self, now: Time, out: &mut Output) {
        let mut batch = Batch::default();
        self.participant.step(now, ParticipantInput::Deadline, &mut batch);
        self.carry(batch, out);
        if self.swap_again_at.is_some_and(|at| at <= now) {
            self.swap_again_at = None;
            self.swaps += 1;
            let number = self.swaps;
            if let Some(swap) = &mut self.swapping {
                swap.number = number;
                out.swap = Some(swap.clone());
            }
        }
        self.apply(now, out);
        self.nudge(now, out);
        self.doubt(now, out);
        if let Some(row) = self.row.clone().filter(|row| row.view.has(self.me)) {
            for (member, elimination) in self.probation.review(now, &row.view, &self.settings) {
                out.send.push((member, Message::Eliminate(elimination)));
            }
            self.feed.retain_candidates(|member| self.probation.has(member));
        }
        self.press(now, out);
    }

    pub(super) fn carry(&mut self, batch: Batch, out: &mut Output) {
        for (to, message) in batch.send {
            self.post(to, Message::Quiesce(message), out);
        }
    }

    /// How long to wait for those of lower rank among the full members without `except`.
    pub(super) fn stand_by(&self, except: &BTreeSet<Member>) -> Duration {
        let rank = self.row.as_ref().and_then(|row| row.view.rank(self.me, except));
        // Who sees to its own replacement is alone.
        self.settings.stand_by * rank.unwrap_or(0)
    }
}

impl<A: Application> Machine for Group<A> {
    type Input = Input;
    type Output = Output;

    fn step(&mut self, now: Time, input: Input, out: &mut Output) {
        match input {
            Input::Write { request, record } => self.write(request, record, out),
            Input::Received { from, message } => self.receive(now, from, message, out),
            Input::Committed(row) => self.install(now, row, out),
            Input::Swapped { number, outcome } => self.swapped(now, number, outcome, out),
            Input::Fenced(member) => self.fence(now, member, out),
            Input::Evidence { candidate, standing } => self.judge(candidate, standing, out),
            Input::Deadline => self.on_deadline(now, out),
        }
        self.settle(now, out);
    }

    fn deadline(&self) -> Option<Time> {
        let feeding = if self.leads() { self.feed.deadline() } else { None };
        let applying = if self.row.is_some() { self.apply_at } else { None };
        let forgetting = if self.is_full() { self.probation.deadline(&self.settings) } else { None };
        [
            self.participant.deadline(),
            self.swap_again_at,
            self.nudge_at,
            applying,
            forgetting,
            feeding,
            self.doubt_at(),
            self.press_at(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
