//! The four steps, at both ends (PROTOCOLS 2.5: E3 to E5, R1 to R3).

use std::time::Duration;

use super::machine::{Place, Timer};
use super::{Batch, EffectResult, Episodes, Record, Settings};
use crate::exchange::{Arrival, Blob, Inbound, Letter, Message, Name, Outbox, Phase, Refusal, Span, Stream};
use crate::flaw::{Flaw, is_planted};
use crate::time::Time;

/// How many messages of one stream are sent again at once.
const AGAIN_MAX: usize = 64;
/// How much of a time is left to chance, as one part in so many.
const JITTER: u64 = 5;

impl Episodes {
    /// One message from whoever it may be.
    pub(super) fn hear(&mut self, now: Time, message: Message, out: &mut Batch) {
        if !matches!(self.place(message.to()), Place::Here) {
            self.counters.misrouted += 1;
            return;
        }
        match message {
            Message::Msg { stream, seq, floor, letter } => {
                let Some(answer) = self.hear_message(now, &stream, seq, floor, letter, out) else { return };
                if is_planted(Flaw::ExchangeAckEarly) {
                    self.send_lazily(answer, out);
                } else {
                    self.send_durable(answer, out);
                }
            }
            Message::Ack { span, epoch } => self.hear_ack(now, span, epoch, out),
            Message::Confirm { span } => self.hear_confirm(span, out),
            Message::ConfirmAck { span } => self.hear_confirm_ack(now, &span, out),
            Message::Refused { stream, seq, why } => self.hear_refused(now, &stream, seq, why, out),
            Message::Close { stream } => self.hear_close(stream, out),
            Message::Closed { stream } => self.hear_closed(&stream, out),
        }
    }

    /// R1, R1'.
    fn hear_message(
        &mut self,
        now: Time,
        stream: &Stream,
        seq: u64,
        floor: u64,
        letter: Letter,
        out: &mut Batch,
    ) -> Option<Message> {
        let to = &stream.to;
        let refuse = |why| Some(Message::Refused { stream: stream.clone(), seq, why });
        if !self.instances.contains_key(to) {
            if !letter.begins {
                return refuse(Refusal::NoInstance);
            }
            let began = self.beginning(now, to, Some(&stream.from), None);
            let Some(began) = began else { return refuse(Refusal::NoProgram) };
            self.record(began, out);
        }
        let instance = self.instances.get(to)?;
        let known = instance.peers.get(&stream.from);
        if known.is_some_and(|inbound| inbound.epoch() > stream.epoch) {
            self.counters.stale += 1;
            return None;
        }
        let known = known.filter(|inbound| inbound.epoch() == stream.epoch);
        let ack = Message::Ack {
            span: Span { stream: stream.clone(), first: seq, last: seq },
            epoch: instance.epoch,
        };
        match known.map_or(Arrival::New, |inbound| inbound.arrive(seq, floor)) {
            Arrival::Known => return Some(ack),
            Arrival::TooFar => {
                self.counters.too_far += 1;
                return None;
            }
            Arrival::New if !instance.is_active() => return refuse(Refusal::Ended),
            Arrival::New if instance.inbox.len() >= self.settings.inbox_max => {
                self.counters.full += 1;
                return None;
            }
            Arrival::New => {}
        }
        self.record(Record::Accepted { stream: stream.clone(), seq, floor, letter }, out);
        self.arm_reminder(now + self.settings.reminder, &stream.from, to);
        self.wake(to);
        Some(ack)
    }

    /// E4 and its variants.
    fn hear_ack(&mut self, now: Time, span: Span, epoch: u64, out: &mut Batch) {
        let (from, to) = (&span.stream.from, &span.stream.to);
        let Some(instance) = self.instances.get(from) else {
            self.counters.acks_from_future += 1;
            return;
        };
        if instance.epoch != span.stream.epoch {
            let counter = if instance.epoch > span.stream.epoch {
                &mut self.counters.stale
            } else {
                &mut self.counters.acks_from_future
            };
            *counter += 1;
            return;
        }
        let Some(outbox) = instance.outboxes.get(to).filter(|outbox| span.last <= outbox.last()) else {
            self.counters.acks_from_future += 1;
            return;
        };
        let known_epoch = outbox.peer_epoch;
        if known_epoch.is_some_and(|known| known > epoch) {
            self.counters.stale += 1;
            return;
        }
        // Only what is not finished is looked at one by one: a span may be as long as the stream.
        let phases = || (span.first.max(outbox.floor() + 1)..=span.last).map(|seq| outbox.phase(seq));
        let is_sending = phases().any(|phase| phase == Some(Phase::Sending));
        let is_finished =
            span.first <= outbox.floor() || phases().any(|phase| phase == Some(Phase::Finished));
        // A confirm that has just left is not repeated for a copy of the ack (E4').
        let is_due = now.since(outbox.flow.since) > self.settings.rto;
        let is_waited_for = is_sending || is_finished || is_due;
        if known_epoch.is_some_and(|known| known < epoch) {
            let reset = Record::PeerReset { name: from.clone(), peer: to.clone(), epoch };
            self.record(reset, out);
            self.wake(from);
        }
        if is_sending {
            let (name, to) = (from.clone(), to.clone());
            self.record(Record::Acked { name, to, first: span.first, last: span.last, epoch }, out);
            self.progress(now, from, &span.stream.to);
            self.wake(from);
        }
        if is_planted(Flaw::ExchangeNoConfirmAck) {
            let (name, to) = (span.stream.from.clone(), span.stream.to.clone());
            self.record(Record::Forgotten { name, to, first: span.first, last: span.last }, out);
            if !is_sending {
                return;
            }
        }
        if self.is_closing(&span.stream) {
            // A confirm that came after the close would bring back the mark that the close took away; the close says both.
            self.send_durable(Message::Close { stream: span.stream }, out);
        } else if is_waited_for {
            self.send_lazily(Message::Confirm { span }, out);
        }
    }

    /// Whether all that is left of a stream is that its receiver still has a mark.
    fn is_closing(&self, stream: &Stream) -> bool {
        self.instances.get(&stream.from).is_some_and(|instance| {
            !instance.is_active()
                && instance.epoch == stream.epoch
                && instance.outboxes.get(&stream.to).is_some_and(Outbox::is_empty)
                && !stream.to.is_effect()
                && !stream.to.is_outside()
        })
    }

    /// R2, R2'.
    fn hear_confirm(&mut self, span: Span, out: &mut Batch) {
        if let Some(instance) = self.instances.get(&span.stream.to) {
            let known = instance.peers.get(&span.stream.from);
            let is_over = known.is_some_and(|inbound| {
                inbound.epoch() > span.stream.epoch
                    || (span.first.max(inbound.low() + 1)..=span.last).all(|seq| inbound.is_confirmed(seq))
            });
            if is_over && is_planted(Flaw::ExchangeUnknownConfirm) {
                return;
            }
            if !is_over {
                let (stream, first, last) = (span.stream.clone(), span.first, span.last);
                self.record(Record::Confirmed { stream, first, last }, out);
            }
        }
        self.send_lazily(Message::ConfirmAck { span }, out);
    }

    /// E5, E5'.
    fn hear_confirm_ack(&mut self, now: Time, span: &Span, out: &mut Batch) {
        let (from, to) = (&span.stream.from, &span.stream.to);
        let Some(outbox) = self.outbox(&span.stream) else { return };
        let is_awaited = |seq| matches!(outbox.phase(seq), Some(Phase::Confirming | Phase::Burning));
        if (span.first.max(outbox.floor() + 1)..=span.last.min(outbox.last())).any(is_awaited) {
            let (name, to) = (from.clone(), to.clone());
            self.record(Record::Forgotten { name, to, first: span.first, last: span.last }, out);
            self.progress(now, from, &span.stream.to);
            self.wake(from);
        }
    }

    fn hear_refused(&mut self, now: Time, stream: &Stream, seq: u64, why: Refusal, out: &mut Batch) {
        let is_sending = self.outbox(stream).is_some_and(|outbox| outbox.phase(seq) == Some(Phase::Sending));
        if is_sending {
            self.give_up(stream, seq, &why.to_string(), out);
            self.progress(now, &stream.from, &stream.to);
        }
    }

    /// Tells the instance, and the receiver that the message never comes again (PROTOCOLS 2.8).
    fn give_up(&mut self, stream: &Stream, seq: u64, why: &str, out: &mut Batch) {
        let (name, to) = (stream.from.clone(), stream.to.clone());
        self.record(Record::GaveUp { name, to, seq, why: why.into() }, out);
        self.wake(&stream.from);
        if !stream.to.is_effect() {
            self.send_durable(
                Message::Confirm { span: Span { stream: stream.clone(), first: seq, last: seq } },
                out,
            );
        }
    }

    fn hear_close(&mut self, stream: Stream, out: &mut Batch) {
        let known = self.instances.get(&stream.to).and_then(|instance| instance.peers.get(&stream.from));
        if known.is_some_and(|inbound| inbound.epoch() == stream.epoch) {
            self.record(Record::Dropped { stream: stream.clone() }, out);
        }
        self.send_durable(Message::Closed { stream }, out);
    }

    fn hear_closed(&mut self, stream: &Stream, out: &mut Batch) {
        if self.is_closing(stream) {
            self.record(Record::Closed { name: stream.from.clone(), to: stream.to.clone() }, out);
        }
    }

    /// The sender's side of a stream, if it is of the sender's present epoch.
    fn outbox(&self, stream: &Stream) -> Option<&Outbox> {
        let instance = self.instances.get(&stream.from)?;
        if instance.epoch == stream.epoch { instance.outboxes.get(&stream.to) } else { None }
    }

    pub(super) fn effected(
        &mut self,
        now: Time,
        stream: Stream,
        seq: u64,
        result: EffectResult,
        out: &mut Batch,
    ) {
        let is_sending = self.outbox(&stream).is_some_and(|outbox| outbox.phase(seq) == Some(Phase::Sending));
        if !is_sending {
            return;
        }
        match result {
            EffectResult::Done(Some(reply)) => {
                let letter = self.outbox(&stream).and_then(|outbox| outbox.letter(seq));
                let correlation = letter.and_then(|letter| letter.correlation.clone());
                let (name, to) = (stream.from.clone(), stream.to.clone());
                self.record(Record::Replied { name, to, seq, correlation, reply }, out);
                self.progress(now, &stream.from, &stream.to);
            }
            EffectResult::Done(None) => {
                let (name, to) = (stream.from.clone(), stream.to.clone());
                self.record(Record::Acked { name, to, first: seq, last: seq, epoch: 0 }, out);
                self.progress(now, &stream.from, &stream.to);
            }
            // The flow's timer tries it again.
            EffectResult::Later(_) => return,
            EffectResult::Never(why) => self.give_up(&stream, seq, &why, out),
        }
        self.forget_effects(&stream.from, &stream.to, out);
        self.wake(&stream.from);
    }

    /// Everything unfinished between the party and instances here, once more.
    pub(super) fn polled(&mut self, now: Time, party: &Name, out: &mut Batch) {
        for name in self.parties.get(party).cloned().unwrap_or_default() {
            let is_over = self.instances.get(&name).is_none_or(|instance| {
                instance.outboxes.get(party).is_none_or(Outbox::is_empty)
                    && instance.peers.get(party).is_none_or(Inbound::is_empty)
            });
            if is_over {
                if let Some(senders) = self.parties.get_mut(party) {
                    senders.remove(&name);
                }
                continue;
            }
            self.send_again(now, &name, party, out);
            self.acknowledge(party, &name, out);
        }
        self.parties.retain(|_, senders| !senders.is_empty());
    }

    /// Asks every sender again about what it has not confirmed: after a crash the answer may be all that is missing.
    pub(super) fn ask_again(&mut self, now: Time, name: &Name, out: &mut Batch) {
        let Some(instance) = self.instances.get(name) else { return };
        let open = instance.peers.iter().filter(|(_, inbound)| !inbound.is_empty());
        for from in open.map(|(from, _)| from.clone()).collect::<Vec<_>>() {
            self.ask(now, &from, name, out);
        }
    }

    /// Asks a sender what it has not confirmed, soon again if the question or the answer is lost.
    pub(super) fn ask(&mut self, now: Time, from: &Name, to: &Name, out: &mut Batch) {
        self.acknowledge(from, to, out);
        let inbound = self.instances.get_mut(to).and_then(|instance| instance.peers.get_mut(from));
        let Some(inbound) = inbound else { return };
        inbound.asked = 1;
        if let Some(armed) = inbound.remind_at.take() {
            self.timers.remove(&(armed, Timer::Remind { from: from.clone(), to: to.clone() }));
        }
        self.arm_reminder(now + self.settings.rto, from, to);
    }

    /// Acknowledges once more what `from` has not confirmed.
    fn acknowledge(&mut self, from: &Name, to: &Name, out: &mut Batch) {
        let Some(instance) = self.instances.get(to) else { return };
        let Some(inbound) = instance.peers.get(from).filter(|_| !is_planted(Flaw::ExchangeNoReminder)) else {
            return;
        };
        let stream = Stream { from: from.clone(), epoch: inbound.epoch(), to: to.clone() };
        let epoch = instance.epoch;
        for (first, last) in inbound.unconfirmed() {
            self.send_durable(
                Message::Ack { span: Span { stream: stream.clone(), first, last }, epoch },
                out,
            );
        }
    }

    /// R3.
    pub(super) fn remind_due(&mut self, now: Time, from: &Name, to: &Name, out: &mut Batch) {
        let Some(inbound) = self.instances.get_mut(to).and_then(|instance| instance.peers.get_mut(from))
        else {
            return;
        };
        inbound.remind_at = None;
        if inbound.is_empty() {
            inbound.asked = 0;
            return;
        }
        let reminder = self.settings.reminder;
        let pause = match inbound.asked {
            0 => reminder,
            times => self.settings.rto.saturating_mul(1 << times.min(16)).min(reminder),
        };
        inbound.asked = if pause < reminder { inbound.asked.saturating_add(1) } else { 0 };
        self.acknowledge(from, to, out);
        self.arm_reminder(now + pause, from, to);
    }

    fn arm_reminder(&mut self, at: Time, from: &Name, to: &Name) {
        let inbound = self.instances.get_mut(to).and_then(|instance| instance.peers.get_mut(from));
        if let Some(inbound) = inbound.filter(|inbound| inbound.remind_at.is_none()) {
            inbound.remind_at = Some(at);
            self.arm(at, Timer::Remind { from: from.clone(), to: to.clone() });
        }
    }

    /// E3 for the first time: what the checkpoint has just added.
    pub(super) fn send_new(&mut self, now: Time, from: &Name, to: &Name, first: u64, out: &mut Batch) {
        let Some(instance) = self.instances.get_mut(from) else { return };
        let epoch = instance.epoch;
        let Some(outbox) = instance.outboxes.get_mut(to) else { return };
        if outbox.floor() + 1 == first {
            outbox.flow.since = now;
            outbox.flow.moved_at = now;
            outbox.flow.attempts = 0;
        }
        let stream = Stream { from: from.clone(), epoch, to: to.clone() };
        let floor = outbox.floor();
        let new = outbox.entries().skip_while(|(seq, _)| *seq < first);
        let letters: Vec<_> = new.filter_map(|(seq, entry)| Some((seq, entry.letter.clone()?))).collect();
        for (seq, letter) in letters {
            let message = Message::Msg { stream: stream.clone(), seq, floor, letter };
            if is_planted(Flaw::ExchangeSendEarly) {
                self.send_lazily(message, out);
            } else {
                self.send_durable(message, out);
            }
        }
        self.arm_flow(from, to);
    }

    /// Everything unfinished of a stream, once more.
    pub(super) fn send_again(&mut self, now: Time, from: &Name, to: &Name, out: &mut Batch) {
        if to.is_effect() {
            self.forget_effects(from, to, out);
        }
        let Some(instance) = self.instances.get_mut(from) else { return };
        let (epoch, is_over) = (instance.epoch, !instance.is_active());
        let Some(outbox) = instance.outboxes.get_mut(to) else { return };
        outbox.flow.since = now;
        if outbox.flow.moved_at == Time::ZERO {
            // What was before a crash is forgotten.
            outbox.flow.moved_at = now;
        }
        outbox.flow.attempts = outbox.flow.attempts.saturating_add(1);
        let stream = Stream { from: from.clone(), epoch, to: to.clone() };
        let floor = outbox.floor();
        let mut again = Vec::new();
        for (seq, entry) in outbox.entries().take(AGAIN_MAX) {
            match (entry.phase, &entry.letter) {
                (Phase::Sending, Some(letter)) => {
                    again.push(Message::Msg { stream: stream.clone(), seq, floor, letter: letter.clone() });
                }
                (Phase::Confirming | Phase::Burning, _) => {
                    again.push(Message::Confirm {
                        span: Span { stream: stream.clone(), first: seq, last: seq },
                    });
                }
                (Phase::Sending, None) | (Phase::Finished, _) => {}
            }
        }
        if outbox.is_empty() && is_over && !to.is_effect() && !to.is_outside() {
            again.push(Message::Close { stream });
        }
        let idle = again.is_empty();
        again.into_iter().for_each(|message| self.send_durable(message, out));
        if !idle {
            self.arm_flow(from, to);
        }
    }

    /// An adapter has nothing to forget: what it has done, or never will, is over at once.
    fn forget_effects(&mut self, from: &Name, to: &Name, out: &mut Batch) {
        let Some(outbox) = self.instances.get(from).and_then(|instance| instance.outboxes.get(to)) else {
            return;
        };
        let is_over = |phase| matches!(phase, Phase::Confirming | Phase::Burning);
        let over: Vec<u64> =
            outbox.entries().filter(|(_, entry)| is_over(entry.phase)).map(|(seq, _)| seq).collect();
        for seq in over {
            self.record(Record::Forgotten { name: from.clone(), to: to.clone(), first: seq, last: seq }, out);
        }
    }

    /// Something of a stream has finished: its times begin anew.
    pub(super) fn progress(&mut self, now: Time, from: &Name, to: &Name) {
        let outbox = self.instances.get_mut(from).and_then(|instance| instance.outboxes.get_mut(to));
        if let Some(outbox) = outbox {
            outbox.flow.since = now;
            outbox.flow.moved_at = now;
            outbox.flow.attempts = 0;
        }
    }

    pub(super) fn flow_due(&mut self, now: Time, from: &Name, to: &Name, out: &mut Batch) {
        let Some(instance) = self.instances.get_mut(from) else { return };
        let (epoch, is_over) = (instance.epoch, !instance.is_active());
        let Some(outbox) = instance.outboxes.get_mut(to) else { return };
        outbox.flow.due = None;
        if outbox.is_empty() {
            if is_over {
                self.close_streams(now, from, out);
            }
            return;
        }
        let is_late = |time: Option<Time>| time.is_some_and(|time| time <= now);
        let late = outbox.entries().filter(|(_, entry)| is_late(entry.give_up)).map(|(seq, _)| seq);
        let late: Vec<u64> = late.collect();
        let flow = outbox.flow;
        let stream = Stream { from: from.clone(), epoch, to: to.clone() };
        for seq in late {
            self.give_up(
                &stream,
                seq,
                "it was not acknowledged in time; whether it was received is not known",
                out,
            );
        }
        if to.is_effect() {
            self.forget_effects(from, to, out);
        }
        if now >= flow.since + interval(&self.settings, from, flow.attempts) {
            self.send_again(now, from, to, out);
        } else {
            self.arm_flow(from, to);
        }
    }

    pub(super) fn arm_flow(&mut self, from: &Name, to: &Name) {
        let outbox = self.instances.get_mut(from).and_then(|instance| instance.outboxes.get_mut(to));
        let Some(outbox) = outbox else { return };
        let give_up = outbox.entries().filter_map(|(_, entry)| entry.give_up).min();
        let flow = &mut outbox.flow;
        let again = flow.since + interval(&self.settings, from, flow.attempts);
        let due = give_up.map_or(again, |time| time.min(again));
        if flow.due.is_some_and(|armed| armed <= due) {
            return;
        }
        let timer = Timer::Flow { from: from.clone(), to: to.clone() };
        if let Some(armed) = flow.due.replace(due) {
            self.timers.remove(&(armed, timer.clone()));
        }
        self.arm(due, timer);
    }

    /// A stream of an instance that has ended, at its end.
    pub(super) fn close_streams(&mut self, now: Time, name: &Name, out: &mut Batch) {
        let Some(instance) = self.instances.get(name) else { return };
        let idle =
            instance.outboxes.iter().filter(|(_, outbox)| outbox.is_empty() && outbox.flow.due.is_none());
        for to in idle.map(|(to, _)| to.clone()).collect::<Vec<_>>() {
            if to.is_effect() || to.is_outside() {
                self.record(Record::Closed { name: name.clone(), to }, out);
            } else {
                self.send_again(now, name, &to, out);
            }
        }
    }

    /// What a parent or a child is told by the machine, not by a program.
    pub(super) fn own_letter(kind: &str, about: &Name, payload: Blob) -> Letter {
        let correlation = Some(about.as_str().into());
        Letter { kind: kind.into(), correlation, payload, begins: false }
    }
}

/// The time until the next try, doubled each time, a little different for each instance.
fn interval(settings: &Settings, name: &Name, attempts: u32) -> Duration {
    let whole = settings.rto.saturating_mul(1 << attempts.min(16)).min(settings.rto_max);
    let nanos = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
    let chance = u64::from(crc32c::crc32c_append(
        crc32c::crc32c(&settings.seed.to_le_bytes()) ^ attempts,
        name.as_str().as_bytes(),
    ));
    whole + Duration::from_nanos(nanos / JITTER * (chance % 1_024) / 1_024)
}
