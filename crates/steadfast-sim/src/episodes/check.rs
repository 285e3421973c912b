//! What must hold of every log and of every message that leaves: E-S1 to E-S6 of PROTOCOLS 2.7.
//!
//! They look at what was recorded, not at what a machine says of itself.

use std::collections::{BTreeMap, BTreeSet};

use steadfast_proto::episode::{Episodes, EventId, Order, Record, Sent};
use steadfast_proto::exchange::{Entry, Message, Name};

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Violation {
    /// Its id in `docs/protocols/exchange.md`.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

fn report(violation: &mut Option<Violation>, invariant: &'static str, what: String) {
    violation.get_or_insert(Violation { invariant, what });
}

/// The records of a log from `first` on, each against those before it.
pub(super) fn records(log: &[Record], first: usize, violation: &mut Option<Violation>) {
    for index in first..log.len() {
        record(&log[index], &log[..index], violation);
    }
}

fn record(newest: &Record, before: &[Record], violation: &mut Option<Violation>) {
    if let Record::Accepted { stream, seq, .. } = newest {
        let is_same = |record: &Record| matches!(record, Record::Accepted { stream: other, seq: number, .. } if other == stream && number == seq);
        if before.iter().any(is_same) {
            report(violation, "E-S1", format!("{stream:?} {seq} enters the inbox twice"));
        }
    }
    if let Record::Checkpoint { name, consumed, .. } = newest
        && !matches!(consumed, EventId::Timer(_))
    {
        // An earlier life of the name has nothing to do with this one.
        let is_begin =
            |record: &&Record| matches!(record, Record::Began { name: other, .. } if other == name);
        let is_same = |record: &Record| matches!(record, Record::Checkpoint { name: other, consumed: event, .. } if other == name && event == consumed);
        if before.iter().rev().take_while(|record| !is_begin(record)).any(is_same) {
            report(violation, "E-S3", format!("{name} consumes {consumed:?} twice"));
        }
    }
}

/// How far each message has come after a step, against how far it had come before.
pub(super) fn phases(before: &Episodes, after: &Episodes, violation: &mut Option<Violation>) {
    for instance in before.instances() {
        for (to, outbox) in &instance.outboxes {
            let now = after.instance(&instance.name).and_then(|instance| instance.outboxes.get(to));
            let Some(now) = now else { continue };
            let back =
                |(seq, entry): &(u64, &Entry)| now.phase(*seq).is_some_and(|phase| phase < entry.phase);
            if let Some((seq, entry)) = outbox.entries().find(back) {
                let phase = now.phase(seq);
                report(
                    violation,
                    "E-S6",
                    format!("{} -> {to} {seq} was {:?} and is {phase:?}", instance.name, entry.phase),
                );
            }
        }
    }
}

/// A message that leaves against what is durable of its sender.
pub(super) fn sent(durable: &[Record], message: &Message, order: Order, violation: &mut Option<Violation>) {
    if let Message::Msg { stream, seq, .. } = message
        && messages_to(durable, &stream.from, &stream.to) < *seq
    {
        report(violation, "E-S4", format!("{stream:?} {seq} leaves before its checkpoint is durable"));
    }
    if let Message::Confirm { span } = message
        && order == Order::Full
    {
        let known = confirmable(durable, &span.stream.from, &span.stream.to);
        if let Some(seq) = (span.first..=span.last).find(|seq| !known.contains(seq)) {
            let what = format!("{:?} {seq} is confirmed before its ack is durable", span.stream);
            report(violation, "E-S5", what);
        }
    }
    if let Message::Ack { span, .. } = message {
        let is_accepted =
            |record: &Record| matches!(record, Record::Accepted { stream, .. } if *stream == span.stream);
        if !durable.iter().any(is_accepted) {
            let what = format!("{:?} is acknowledged before its acceptance is durable", span.stream);
            report(violation, "E-S2", what);
        }
    }
}

fn messages_to(durable: &[Record], from: &Name, to: &Name) -> u64 {
    let sent = durable.iter().filter(|record| record.name() == from).flat_map(sends);
    sent.filter(|sent| sent.to == *to).count() as u64
}

/// What a record sends.
fn sends(record: &Record) -> &[Sent] {
    if let Record::Checkpoint { sent, .. } | Record::Cancelled { sent, .. } = record { sent } else { &[] }
}

fn confirmable(durable: &[Record], from: &Name, to: &Name) -> BTreeSet<u64> {
    let mut known = BTreeSet::new();
    for record in durable.iter().filter(|record| record.name() == from) {
        if let Record::Acked { to: receiver, first, last, .. } = record
            && receiver == to
        {
            known.extend(*first..=*last);
        }
        if let Record::GaveUp { to: receiver, seq, .. } = record
            && receiver == to
        {
            known.insert(*seq);
        }
    }
    known
}

/// How often each receiver's log says that it took what each sender's log says that it sent: once each, when all is quiet (E-S2).
pub(super) fn delivered<'a>(logs: impl Iterator<Item = &'a [Record]>) -> Result<u64, Violation> {
    let mut sent: BTreeMap<(Name, Name), u64> = BTreeMap::new();
    let mut taken: BTreeMap<(Name, Name), BTreeSet<u64>> = BTreeMap::new();
    for record in logs.flatten() {
        for message in sends(record) {
            *sent.entry((record.name().clone(), message.to.clone())).or_default() += 1;
        }
        if let Record::Accepted { stream, seq, .. } = record {
            taken.entry((stream.from.clone(), stream.to.clone())).or_default().insert(*seq);
        }
    }
    let mut total = 0;
    for ((from, to), count) in sent {
        let got = taken.get(&(from.clone(), to.clone())).map_or(0, BTreeSet::len) as u64;
        if got != count {
            let what = format!("{from} sent {count} messages to {to}, which took {got}");
            return Err(Violation { invariant: "E-S2", what });
        }
        total += count;
    }
    Ok(total)
}
