//! Episodes: when one begins, and what its end is recorded as (PROTOCOLS 2.5: E1, E2).

use std::time::Duration;

use super::machine::Timer;
use super::{
    Answer, Batch, Episodes, Event, EventId, Failure, Instance, Mode, Next, Outcome, Outgoing,
    RECORD_BYTES_MAX, Record, Sent, Status, Stopped, Task, Wait,
};
use crate::exchange::{Blob, Letter, Name, Outbox, Text};
use crate::time::Time;

/// How many bytes one episode gives at most, so that its record fits a log with all names and kinds.
const OUTCOME_BYTES_MAX: usize = RECORD_BYTES_MAX / 2;
/// How many children of one instance may live at once: its cancellation is one record that names them all.
const CHILDREN_MAX: usize = 2_048;
/// How many alternatives one wait has at most.
const ALTERNATIVES_MAX: usize = 64;

impl Episodes {
    /// Does for an instance what can be done now: an episode, its end, its timers.
    pub(super) fn attend(&mut self, now: Time, name: &Name, out: &mut Batch) {
        let Some(instance) = self.instances.get(name) else { return };
        if !instance.is_active() {
            return self.close_streams(now, name, out);
        }
        if instance.cancel && !instance.handles_cancel() {
            return self.cancelled(now, name, out);
        }
        if instance.live.run.is_none() && self.is_ready(now, instance) {
            self.begin_episode(now, name, out);
        }
        self.arm_wake(now, name);
    }

    /// Whether nothing but a matching event is missing.
    fn is_ready(&self, now: Time, instance: &Instance) -> bool {
        let is_stopped = match &instance.stopped {
            None => false,
            Some(Stopped::Failing { until: Some(until), .. }) => *until > now,
            Some(Stopped::Paused | Stopped::Failing { until: None, .. }) => true,
        };
        // What is acknowledged and not confirmed takes room in the window, too.
        let has_room = instance.mode == Mode::Strict
            || instance.unconfirmed == 0
            || instance.outboxes.values().all(|outbox| outbox.room() >= self.settings.messages_max as u64);
        !is_stopped
            && instance.may_begin()
            && has_room
            && self.can_run(instance.name.program(), instance.version)
    }

    fn begin_episode(&mut self, now: Time, name: &Name, out: &mut Batch) {
        let filter = self.settings.filter.0;
        let Some(instance) = self.instances.get_mut(name) else { return };
        let Some(event) = instance.next_event(now, filter) else { return };
        self.last_run += 1;
        instance.live.run = Some((self.last_run, event.id.clone()));
        out.run.push(Task {
            name: name.clone(),
            version: instance.version,
            run: self.last_run,
            episode: instance.episode + 1,
            state: instance.state.clone(),
            event,
            now,
        });
    }

    /// The next time at which something may happen by itself.
    fn arm_wake(&mut self, now: Time, name: &Name) {
        let Some(instance) = self.instances.get_mut(name) else { return };
        let due = match &instance.stopped {
            Some(Stopped::Paused | Stopped::Failing { until: None, .. }) => None,
            Some(Stopped::Failing { until, .. }) => *until,
            // With a past deadline and no episode, what is missing wakes it.
            None => instance.wait.deadline,
        };
        let due = due.filter(|due| instance.live.run.is_none() && *due > now);
        let armed = std::mem::replace(&mut instance.live.wait_due, due);
        if armed == due {
            return;
        }
        if let Some(armed) = armed {
            self.timers.remove(&(armed, Timer::Wake(name.clone())));
        }
        if let Some(due) = due {
            self.arm(due, Timer::Wake(name.clone()));
        }
    }

    /// E2, or a failure.
    pub(super) fn ran(
        &mut self,
        now: Time,
        name: &Name,
        run: u64,
        result: Result<Outcome, Failure>,
        out: &mut Batch,
    ) {
        let Some(instance) = self.instances.get_mut(name) else { return };
        if instance.live.run.as_ref().is_none_or(|(awaited, _)| *awaited != run) {
            return;
        }
        let Some((_, consumed)) = instance.live.run.take() else { return };
        self.wake(name);
        match result.and_then(|outcome| self.checked(name, outcome)) {
            Ok(outcome) => self.checkpoint(now, name, consumed, outcome, out),
            Err(failure) => self.failed(now, name, failure, out),
        }
    }

    /// What an outcome must be like; nothing of one that is not is kept.
    fn checked(&self, name: &Name, outcome: Outcome) -> Result<Outcome, Failure> {
        let settings = &self.settings;
        let fail = |why: String| Err(Failure { why: Text::cut(&why), lasting: false });
        if outcome.state.len() > settings.state_bytes_max {
            let (size, max) = (outcome.state.len(), settings.state_bytes_max);
            return fail(format!("its state has {size} bytes; the limit is {max}"));
        }
        if outcome.messages.len() > settings.messages_max {
            let (count, max) = (outcome.messages.len(), settings.messages_max);
            return fail(format!("it sends {count} messages; the limit is {max}"));
        }
        let answers = outcome.answer.iter().chain(match &outcome.next {
            Next::End(answer) => Some(answer),
            Next::Wait(_) => None,
        });
        let payloads = outcome.messages.iter().map(|message| &message.payload).chain(answers);
        let (mut largest, mut all) = (0, outcome.state.len());
        for payload in payloads {
            largest = largest.max(payload.len());
            all += payload.len();
        }
        if largest > settings.payload_bytes_max {
            let max = settings.payload_bytes_max;
            return fail(format!("a message or an answer has {largest} bytes; the limit is {max}"));
        }
        if all > OUTCOME_BYTES_MAX {
            let max = OUTCOME_BYTES_MAX;
            return fail(format!("its state and its messages have {all} bytes together; the limit is {max}"));
        }
        if let Next::Wait(Wait { any, .. }) = &outcome.next
            && any.len() > ALTERNATIVES_MAX
        {
            return fail(format!("it waits for {} alternatives; the limit is {ALTERNATIVES_MAX}", any.len()));
        }
        let children = self.instances.get(name).map_or(0, |instance| instance.children.len());
        let children = children + outcome.messages.iter().filter(|message| message.begins).count();
        if children > CHILDREN_MAX {
            return fail(format!(
                "it has {children} children that have not ended; the limit is {CHILDREN_MAX}"
            ));
        }
        let nobody =
            |message: &&Outgoing| message.begins && (message.to.is_outside() || message.to.is_effect());
        if let Some(message) = outcome.messages.iter().find(nobody) {
            return fail(format!("it begins {}, which is no instance", message.to));
        }
        Ok(outcome)
    }

    fn checkpoint(&mut self, now: Time, name: &Name, consumed: EventId, outcome: Outcome, out: &mut Batch) {
        let Outcome { state, messages, answer, next } = outcome;
        let mut sent: Vec<Sent> = messages.into_iter().map(|message| sent(now, message)).collect();
        if let Next::End(answer) = &next {
            sent.extend(self.last_words(name, answer.clone()));
        }
        let firsts = self.firsts(name, &sent);
        let is_end = matches!(next, Next::End(_));
        let heard = answer.clone();
        let request = if let EventId::Request(number) = consumed { Some(number) } else { None };
        let record = Record::Checkpoint { name: name.clone(), consumed, state, sent, answer, next, at: now };
        self.record(record, out);
        if let Some(number) = request {
            self.answer_request(name, number, heard, out);
        }
        self.after_sending(now, name, firsts, is_end, out);
    }

    /// To the parent, that the instance has ended.
    fn last_words(&self, name: &Name, answer: Blob) -> Option<Sent> {
        let parent = self.instances.get(name)?.parent.clone()?;
        Some(Sent {
            to: parent,
            letter: Episodes::own_letter(Event::CHILD_ENDED, name, answer),
            give_up: None,
        })
    }

    /// The receivers of `sent`, each with the number that its first message gets.
    fn firsts(&self, name: &Name, sent: &[Sent]) -> Vec<(Name, u64)> {
        let mut firsts: Vec<(Name, u64)> = Vec::new();
        let outboxes = self.instances.get(name).map(|instance| &instance.outboxes);
        for Sent { to, .. } in sent {
            if firsts.iter().all(|(known, _)| known != to) {
                let last = outboxes.and_then(|outboxes| outboxes.get(to)).map_or(0, Outbox::last);
                firsts.push((to.clone(), last + 1));
            }
        }
        firsts
    }

    fn after_sending(
        &mut self,
        now: Time,
        name: &Name,
        firsts: Vec<(Name, u64)>,
        is_end: bool,
        out: &mut Batch,
    ) {
        for (to, first) in firsts {
            self.send_new(now, name, &to, first, out);
        }
        if is_end {
            self.answer_end(name, out);
            self.arm(now + self.settings.keep, Timer::Retire(name.clone()));
        }
        self.wake(name);
    }

    fn answer_request(&mut self, name: &Name, number: u64, answer: Option<Blob>, out: &mut Batch) {
        let Some(instance) = self.instances.get_mut(name) else { return };
        for token in instance.live.awaiting.remove(&number).unwrap_or_default() {
            out.force = true;
            out.answers.push((token, Ok(spoken(answer.clone()))));
        }
    }

    /// Everybody who still waits hears that it is over.
    fn answer_end(&mut self, name: &Name, out: &mut Batch) {
        let Some(instance) = self.instances.get_mut(name) else { return };
        let last = ended(&instance.status);
        let awaiting = std::mem::take(&mut instance.live.awaiting);
        let over = || Answer::Ended("the instance ended before it came to this".into());
        let answers = awaiting.into_values().flatten().map(|token| (token, Ok(over())));
        let ends = std::mem::take(&mut instance.live.awaiting_end)
            .into_iter()
            .map(|token| (token, Ok(last.clone())));
        let before = out.answers.len();
        out.answers.extend(answers.chain(ends));
        out.force |= out.answers.len() > before;
    }

    fn failed(&mut self, now: Time, name: &Name, failure: Failure, out: &mut Batch) {
        self.counters.failures += 1;
        let before = match self.instances.get(name).and_then(|instance| instance.stopped.as_ref()) {
            Some(Stopped::Failing { attempts, .. }) => *attempts,
            Some(Stopped::Paused) | None => 0,
        };
        let attempts = before.saturating_add(1);
        let is_parked = failure.lasting || attempts >= self.settings.attempts_max;
        let wait = self.settings.retry.saturating_mul(1 << before.min(16)).min(self.settings.retry_max);
        let until = if is_parked { None } else { Some(now + wait) };
        if !matches!(self.instances.get(name).map(|instance| &instance.stopped), Some(Some(Stopped::Paused)))
        {
            self.record(Record::Failed { name: name.clone(), attempts, why: failure.why, until }, out);
        }
    }

    /// Ends an instance whose program does not want to see the cancellation, and its children.
    fn cancelled(&mut self, now: Time, name: &Name, out: &mut Batch) {
        let Some(instance) = self.instances.get_mut(name) else { return };
        instance.live.run = None;
        let children = instance.children.iter().map(|child| Sent {
            to: child.clone(),
            letter: Episodes::own_letter(Event::CANCEL, name, Blob::empty()),
            give_up: None,
        });
        let mut sent: Vec<Sent> = children.collect();
        sent.extend(self.last_words(name, Blob::empty()));
        let firsts = self.firsts(name, &sent);
        self.record(Record::Cancelled { name: name.clone(), sent, at: now }, out);
        self.after_sending(now, name, firsts, true, out);
    }
}

fn sent(now: Time, message: Outgoing) -> Sent {
    let Outgoing { to, kind, correlation, payload, begins, within } = message;
    let give_up = within.map(|within: Duration| now + within);
    Sent { to, letter: Letter { kind, correlation, payload, begins }, give_up }
}

/// What whoever asked is told when the episode that consumed the request gave this answer.
pub(super) fn spoken(answer: Option<Blob>) -> Answer {
    answer.map_or_else(|| Answer::Ended("the instance took it and gave no answer".into()), Answer::Answered)
}

/// What whoever waits for the end is told.
pub(super) fn ended(status: &Status) -> Answer {
    match status {
        Status::Active => Answer::Taken,
        Status::Ended { answer, .. } => Answer::Answered(answer.clone()),
        Status::Cancelled { .. } => Answer::Ended("the instance was cancelled".into()),
    }
}
