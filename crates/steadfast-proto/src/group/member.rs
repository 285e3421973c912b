//! What every process of a group does with what it receives: take records, promise to stand still, apply to be promoted.
//!
//! Decides what is processed: only what comes from unfenced members of the view in force (Q5), and nothing beyond a
//! cut that was agreed to. A promise ends only with the attempt's own abort, a new view, or a renewal of the row,
//! never by time alone: a change that may still be committed must find everybody where they said they were.

use std::collections::BTreeSet;

use super::log::Log;
use super::{
    Application, AttemptId, Elimination, Event, Group, GroupView, Intent, MESSAGE_BYTES_MAX, Member, Message,
    Output, RECORD_BYTES_MAX, SNAPSHOT_BYTES_MAX, Sequence, Standing,
};
use crate::flaw::{Flaw, is_planted};
use crate::ids::ViewId;
use crate::machine::Machine;
use crate::quiesce::{Batch, ParticipantInput};
use crate::time::Time;

/// How many records that overtook others are kept.
const AHEAD_MAX: u64 = 256;

/// After how many times the wait for an answer a promise is brought to mind.
const NUDGE: u32 = 16;

/// That this process stands still for an attempt.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    pub(super) since: Time,
    /// The last record that it takes; `None` while that is being found out.
    cap: Option<Sequence>,
}

/// A snapshot that is arriving.
#[derive(Clone, Debug)]
pub(super) struct Assembly {
    at: Sequence,
    total: u64,
    state: Vec<u8>,
}

impl<A: Application> Group<A> {
    pub(super) fn receive(&mut self, now: Time, from: Member, message: Message, out: &mut Output) {
        match message {
            Message::Install(row) => return self.install(now, row, out),
            Message::Apply { intent, knows, last } => {
                return self.on_apply(now, from, (intent, knows, last), out);
            }
            Message::FeedAck { view, last } => return self.on_feed_ack(now, from, view, last),
            Message::SnapshotAck { at, offset } => return self.feed.acknowledge_snapshot(from, at, offset),
            Message::Ack { attempt, last } => return self.on_ack(from, attempt, last, out),
            Message::Refuse(attempt) => return self.on_refuse(now, from, attempt, out),
            Message::FlushInfo { attempt, last } => return self.on_flush_info(from, attempt, last),
            Message::Feed { .. }
            | Message::Snapshot { .. }
            | Message::Eliminate(_)
            | Message::Quiesce(_)
            | Message::FlushAsk { .. }
            | Message::Fetch { .. }
            | Message::Fill { .. }
            | Message::Propose { .. }
            | Message::Abort(_) => (),
        }
        let is_member = self.row.as_ref().is_some_and(|row| row.view.has(from));
        if is_member && !self.is_fenced(from) {
            self.receive_of_member(now, from, message, out);
        }
    }

    fn receive_of_member(&mut self, now: Time, from: Member, message: Message, out: &mut Output) {
        match message {
            Message::Feed { view, first, records, stable } => {
                self.on_feed(from, (view, first, stable), records, out);
            }
            Message::Snapshot { view, at, stable, total, offset, bytes } => {
                if self.is_at(view) {
                    self.on_snapshot(from, (at, stable), (total, offset), &bytes, out);
                }
            }
            Message::Eliminate(elimination) => self.on_eliminate(elimination, out),
            Message::Quiesce(message) => self.on_quiesce(now, from, message, out),
            Message::FlushAsk { attempt, gone } => self.on_flush_ask(now, from, attempt, gone, out),
            Message::Fetch { attempt, first } => {
                let records = self.log.from(first, u64::MAX);
                if self.promises.contains_key(&attempt) && !records.is_empty() {
                    self.post(from, Message::Fill { attempt, first, records }, out);
                }
            }
            Message::Fill { attempt, first, records } => {
                if self.promises.contains_key(&attempt) {
                    self.take(first, records);
                    if attempt.by == self.me {
                        self.ask_now();
                    } else {
                        self.post(attempt.by, Message::Ack { attempt, last: self.log.last() }, out);
                    }
                }
            }
            Message::Propose { attempt, next } => self.on_propose(now, from, attempt, &next, out),
            Message::Abort(attempt) => {
                if attempt.by == from {
                    self.promises.remove(&attempt);
                }
            }
            Message::Install(_)
            | Message::Apply { .. }
            | Message::FeedAck { .. }
            | Message::SnapshotAck { .. }
            | Message::Ack { .. }
            | Message::Refuse(_)
            | Message::FlushInfo { .. } => (),
        }
    }

    fn is_at(&self, view: ViewId) -> bool {
        self.row.as_ref().is_some_and(|row| row.view.id == view)
    }

    fn on_feed(
        &mut self,
        from: Member,
        (view, first, stable): (ViewId, Sequence, Sequence),
        records: Vec<Vec<u8>>,
        out: &mut Output,
    ) {
        let is_leader = self.row.as_ref().and_then(|row| row.view.leader()) == Some(from);
        if !self.is_at(view) || !is_leader || from == self.me || !self.has_state {
            return;
        }
        self.take(first, records);
        self.log.stabilise(stable);
        let last = self.log.last();
        self.participant.processed_up_to(from.node, last.0);
        self.post(from, Message::FeedAck { view, last }, out);
        let ready = self.promises.iter().filter(|(_, promise)| promise.cap == Some(last));
        for attempt in ready.map(|(attempt, _)| *attempt).collect::<Vec<_>>() {
            self.post(attempt.by, Message::Ack { attempt, last }, out);
        }
    }

    /// Takes records in order, keeps those that overtook others, and stops at what was agreed to.
    fn take(&mut self, first: Sequence, records: Vec<Vec<u8>>) {
        if !self.has_state || records.iter().any(|record| record.len() > RECORD_BYTES_MAX) {
            return;
        }
        let mut cap = self.promises.values().filter_map(|promise| promise.cap).min();
        if is_planted(Flaw::GroupAcceptAfterAck) {
            cap = None;
        }
        let takes = |sequence: Sequence| cap.is_none_or(|cap| sequence <= cap);
        let mut sequence = first;
        for record in records {
            if sequence > self.log.last() && takes(sequence) && sequence.0 - self.log.last().0 <= AHEAD_MAX {
                self.ahead.insert(sequence, record);
            }
            sequence = sequence.next();
        }
        while let Some(record) = self.ahead.remove(&self.log.last().next()) {
            self.application.apply(&record);
            self.log.push(record);
        }
        let last = self.log.last();
        self.ahead.retain(|sequence, _| *sequence > last);
    }

    fn on_feed_ack(&mut self, now: Time, from: Member, view: ViewId, last: Sequence) {
        if self.leads() && self.is_at(view) {
            self.feed.acknowledge(from, last, &self.log, &self.settings, now);
        }
    }

    fn on_snapshot(
        &mut self,
        from: Member,
        (at, stable): (Sequence, Sequence),
        (total, offset): (u64, u64),
        bytes: &[u8],
        out: &mut Output,
    ) {
        let is_right = usize::try_from(total).is_ok_and(|total| total <= SNAPSHOT_BYTES_MAX);
        if !self.is_candidate() || !self.promises.is_empty() || !is_right || bytes.len() > MESSAGE_BYTES_MAX {
            return;
        }
        if self.has_state && self.log.last() >= at {
            // An acknowledgement was lost, or this part was delayed.
            return self.post(from, Message::SnapshotAck { at, offset: total }, out);
        }
        if offset == 0 && self.assembly.as_ref().is_none_or(|assembly| assembly.at != at) {
            self.assembly = Some(Assembly { at, total, state: Vec::new() });
        }
        let Some(assembly) =
            self.assembly.as_mut().filter(|assembly| (assembly.at, assembly.total) == (at, total))
        else {
            return;
        };
        if assembly.state.len() as u64 == offset {
            assembly.state.extend_from_slice(bytes);
        }
        let offset = assembly.state.len() as u64;
        if offset < total {
            return self.post(from, Message::SnapshotAck { at, offset }, out);
        }
        let Some(assembly) = self.assembly.take() else { return };
        if offset > total || self.application.restore(&assembly.state).is_err() {
            return self.on_eliminate(Elimination::Snapshot, out);
        }
        self.log = Log::after(at, stable, self.settings.retained_max);
        self.ahead.clear();
        self.has_state = true;
        self.post(from, Message::SnapshotAck { at, offset }, out);
    }

    /// Makes this process a candidate without a state.
    pub(super) fn forget_state(&mut self) {
        self.has_state = false;
        self.ahead.clear();
        self.assembly = None;
        self.log = Log::after(Sequence(0), Sequence(0), self.settings.retained_max);
    }

    fn on_eliminate(&mut self, elimination: Elimination, out: &mut Output) {
        // Who has agreed to be promoted may be a member already (VM5).
        if self.is_candidate() && self.promises.is_empty() {
            self.intent = None;
            self.apply_at = None;
            self.forget_state();
            out.events.push(Event::Eliminated(elimination));
        }
    }

    fn on_apply(
        &mut self,
        now: Time,
        from: Member,
        (intent, knows, last): (Intent, (ViewId, u64), Option<Sequence>),
        out: &mut Output,
    ) {
        let Some(row) = self.row.clone().filter(|row| row.view.has(self.me)) else { return };
        if knows < row.key() || row.view.has(from) {
            out.send.push((from, Message::Install(row.clone())));
        }
        if knows.0 != row.view.id || row.view.has(from) || self.is_fenced(from) {
            return;
        }
        match self.probation.apply(now, from, intent, last, &row.view) {
            Ok(()) => {
                if self.leads() {
                    self.feed.candidate(from, last);
                }
            }
            Err(elimination) => {
                self.feed.drop_candidate(from);
                out.send.push((from, Message::Eliminate(elimination)));
            }
        }
    }

    pub(super) fn judge(&mut self, candidate: Member, standing: Standing, out: &mut Output) {
        if !self.probation.has(candidate) {
            return;
        }
        self.probation.judge(candidate, standing);
        if standing == Standing::Fail {
            self.feed.drop_candidate(candidate);
            out.send.push((candidate, Message::Eliminate(Elimination::Criterion)));
        }
    }

    /// Applies, when it is time to.
    pub(super) fn apply(&mut self, now: Time, out: &mut Output) {
        let (Some(intent), Some(row)) = (self.intent, &self.row) else { return };
        if self.apply_at.is_none_or(|at| at > now) || row.view.has(self.me) {
            return;
        }
        let last = self.has_state.then(|| self.log.last());
        let apply = Message::Apply { intent, knows: row.key(), last };
        out.send.extend(row.view.full.iter().map(|member| (*member, apply.clone())));
        self.apply_at = Some(now + self.settings.apply_every);
    }

    /// Whether an attempt is about the view in force here, and its coordinator speaks.
    fn is_current(&self, from: Member, attempt: AttemptId) -> bool {
        let is_key = self.row.as_ref().is_some_and(|row| row.key() == (attempt.basis, attempt.renewal));
        is_key && attempt.by == from
    }

    fn promise(&mut self, now: Time, attempt: AttemptId, cap: Option<Sequence>) {
        // A coordinator begins anew only after it has given up, so its older attempts are void.
        self.promises.retain(|other, _| other.by != attempt.by || other.number >= attempt.number);
        let promise = self.promises.entry(attempt).or_insert(Promise { since: now, cap });
        promise.cap = promise.cap.or(cap);
        self.ahead.clear();
        self.nudge_at = self.nudge_at.or(Some(now + self.settings.retry * NUDGE));
    }

    /// Tells the coordinators of what is promised that it still is: perhaps their word on it was lost.
    pub(super) fn nudge(&mut self, now: Time, out: &mut Output) {
        if self.nudge_at.is_none_or(|at| at > now) {
            return;
        }
        let last = self.log.last();
        let attempts: Vec<_> =
            self.promises.keys().filter(|attempt| attempt.by != self.me).copied().collect();
        self.nudge_at = (!attempts.is_empty()).then(|| now + self.settings.retry * NUDGE);
        for attempt in attempts {
            self.post(attempt.by, Message::Ack { attempt, last }, out);
        }
    }

    fn on_flush_ask(
        &mut self,
        now: Time,
        from: Member,
        attempt: AttemptId,
        gone: BTreeSet<Member>,
        out: &mut Output,
    ) {
        if !self.is_current(from, attempt) || !self.is_full() || gone.contains(&self.me) {
            return;
        }
        for member in gone {
            self.fence(now, member, out);
        }
        self.promise(now, attempt, None);
        self.post(from, Message::FlushInfo { attempt, last: self.log.last() }, out);
    }

    fn on_propose(
        &mut self,
        now: Time,
        from: Member,
        attempt: AttemptId,
        next: &GroupView,
        out: &mut Output,
    ) {
        let is_next = next.predecessor == attempt.basis && next.id == attempt.basis.next();
        let is_asked = self.is_full() || (self.is_candidate() && next.has(self.me));
        if !self.is_current(from, attempt) || !is_next || !is_asked {
            return;
        }
        let is_hasty = self.is_candidate() && is_planted(Flaw::GroupPromoteBeforeCut);
        if is_hasty && self.has_state {
            self.promise(now, attempt, Some(next.cut));
            return self.post(from, Message::Ack { attempt, last: next.cut }, out);
        }
        if !self.has_state {
            return;
        }
        let last = self.log.last();
        let is_unflushed = self.is_full() && is_planted(Flaw::GroupNoFlush);
        if last > next.cut && !is_unflushed {
            if !self.is_full() {
                self.forget_state();
            }
            return self.post(from, Message::Refuse(attempt), out);
        }
        self.promise(now, attempt, Some(next.cut));
        let last = if is_unflushed { next.cut } else { last };
        self.post(from, Message::Ack { attempt, last }, out);
    }

    fn on_quiesce(&mut self, now: Time, from: Member, message: crate::quiesce::Message, out: &mut Output) {
        if message.is_for_coordinator() {
            return self.coordinate(now, from, message, out);
        }
        let mut batch = Batch::default();
        self.participant.step(now, ParticipantInput::Received { from, message }, &mut batch);
        self.carry(batch, out);
    }

    /// Asks the catalog what became of an attempt that has been promised for too long, by renewing the row: then it
    /// is either committed already, or can't be any more.
    pub(super) fn doubt(&mut self, now: Time, out: &mut Output) {
        if self.doubt_at().is_none_or(|at| at > now) {
            return;
        }
        if is_planted(Flaw::GroupNoRenewal) {
            let promise_max = self.settings.promise_max;
            self.promises.retain(|_, promise| promise.since + promise_max > now);
            return;
        }
        if let Some(row) = &self.row {
            self.swap(row.renewed(), out);
        }
    }

    pub(super) fn doubt_at(&self) -> Option<Time> {
        // A candidate's promise ends with what it is told; it asks by applying.
        if !self.is_full() || self.swapping.is_some() {
            return None;
        }
        let oldest = self.promises.values().map(|promise| promise.since).min()?;
        let turn = if is_planted(Flaw::GroupNoRenewal) {
            std::time::Duration::ZERO
        } else {
            self.stand_by(&self.gone_members())
        };
        Some(oldest + self.settings.promise_max + turn)
    }
}
