//! Instances as people are shown them: what one waits for, what its outboxes hold, why it is stopped.
//!
//! Decides nothing; the words are made of it by `api::episode_words`.

use serde_json::value::RawValue;
use steadfast_proto::episode::{Doing, Episodes, Event, EventId, Instance, Match, Status, Stopped};
use steadfast_proto::exchange::{Blob, Entry, Inbound, Name, Outbox, Phase, Stream, Text};
use steadfast_proto::time::Time;

use super::effects::Effects;
use super::rows::mode_word;
use crate::api::convert::now_unix_ms;
use crate::api::episode_types as types;
use crate::episodes::programs::json;

/// How many of what has come or is sent are shown.
const SHOWN_MAX: usize = 20;
/// How many kinds of events a list names.
const KINDS_MAX: usize = 4;

/// What an instance does, in one word; all of them are in [`DOING`].
pub(super) fn doing(instance: &Instance) -> &'static str {
    match (instance.doing(), &instance.status, &instance.stopped) {
        (_, Status::Cancelled { .. }, _) => "cancelled",
        (_, _, Some(Stopped::Paused)) => "paused",
        (_, _, Some(Stopped::Failing { until: None, .. })) => "parked",
        (Doing::Stopped, _, _) => "failing",
        (Doing::Running, _, _) => "running",
        (Doing::Waiting, _, _) => "waiting",
        (Doing::Sending { .. }, _, _) => "sending",
        (Doing::Ended, _, _) => "ended",
    }
}

/// All words for what an instance does.
pub(super) const DOING: [&str; 8] =
    ["running", "waiting", "sending", "paused", "failing", "parked", "ended", "cancelled"];

/// A row of a list.
pub(super) fn row(instance: &Instance, node: &str) -> types::InstanceRow {
    types::InstanceRow {
        name: instance.name.as_str().to_owned(),
        node: node.to_owned(),
        version: instance.version,
        doing: doing(instance).to_owned(),
        waits_for: waits_for(instance),
        episode: instance.episode,
        inbox: instance.inbox.len() as u64,
        unacked: instance.unacked,
        unconfirmed: instance.unconfirmed,
        begun_unix_ms: unix_ms(instance.begun_at),
    }
}

/// The kinds of events that an instance waits for, and whether it waits for a time.
fn waits_for(instance: &Instance) -> String {
    let kind = |one: &Match| one.kind.as_ref().map_or("any event", |kind| kind.as_str()).to_owned();
    let mut words: Vec<String> = instance.wait.any.iter().take(KINDS_MAX).map(kind).collect();
    words.dedup();
    if instance.wait.any.len() > KINDS_MAX {
        words.push("...".to_owned());
    }
    words.extend(instance.wait.deadline.map(|_| "a time".to_owned()));
    words.join(", ")
}

/// All of one.
pub(super) fn instance(
    episodes: &Episodes,
    name: &Name,
    (node, store): (&str, &str),
    effects: &Effects,
) -> Option<types::Instance> {
    let instance = episodes.instance(name)?;
    let (answer, ended_at) = match &instance.status {
        Status::Active => (None, None),
        Status::Ended { answer, at } => (Some(any(answer)), Some(*at)),
        Status::Cancelled { at } => (None, Some(*at)),
    };
    let outboxes = instance.outboxes.iter().filter(|(_, outbox)| !outbox.is_empty());
    let events = instance.inbox.iter().take(SHOWN_MAX).map(|event| types::EventShown {
        kind: event.kind.as_str().to_owned(),
        source: event.source.as_ref().map(|source| source.as_str().to_owned()),
        correlation: text(event.correlation.as_ref()),
        bytes: event.payload.len() as u64,
    });
    let peers = instance.peers.iter().map(|(from, peer)| shown_peer(instance, from, peer));
    Some(types::Instance {
        row: row(instance, node),
        mode: mode_word(instance.mode).to_owned(),
        store: store.to_owned(),
        is_deployed: episodes.can_run(name.program(), instance.version),
        epoch: instance.epoch,
        now_unix_ms: now_unix_ms(),
        state: any(&instance.state),
        wait: instance.wait.any.iter().map(waited_for).collect(),
        deadline_unix_ms: instance.wait.deadline.map(unix_ms),
        stopped: instance.stopped.as_ref().map(stopped),
        answer,
        ended_unix_ms: ended_at.map(unix_ms),
        events: events.collect(),
        outboxes: outboxes.map(|(to, outbox)| shown_outbox(instance, to, outbox, effects)).collect(),
        peers: peers.collect(),
        parent: instance.parent.as_ref().map(|parent| parent.as_str().to_owned()),
        children: instance.children.iter().map(|child| child.as_str().to_owned()).collect(),
        is_quiet: instance.is_quiet(),
    })
}

/// Its last episodes, oldest first.
pub(super) fn history(instance: &Instance) -> Vec<types::PastEpisode> {
    let past = instance.history.iter().map(|past| types::PastEpisode {
        episode: past.episode,
        kind: past.kind.as_str().to_owned(),
        source: past.source.as_ref().map(|source| source.as_str().to_owned()),
        at_unix_ms: unix_ms(past.at),
        sent: past.sent,
    });
    past.collect()
}

fn shown_outbox(instance: &Instance, to: &Name, outbox: &Outbox, effects: &Effects) -> types::OutboxShown {
    let stream = || Stream { from: instance.name.clone(), epoch: instance.epoch, to: to.clone() };
    let known = outbox.entries().take(if to.is_effect() { SHOWN_MAX } else { 0 });
    let count = |phase| outbox.entries().filter(|(_, entry)| entry.phase == phase).count() as u64;
    let kinds = outbox.entries().filter_map(|(_, entry)| entry.letter.as_ref());
    types::OutboxShown {
        to: to.as_str().to_owned(),
        unacked: count(Phase::Sending),
        unconfirmed: count(Phase::Confirming),
        given_up: count(Phase::Burning),
        kinds: kinds.take(SHOWN_MAX).map(|letter| letter.kind.as_str().to_owned()).collect(),
        messages: outbox.entries().take(SHOWN_MAX).map(shown_message).collect(),
        since_unix_ms: unix_ms(outbox.flow.moved_at),
        attempts: outbox.flow.attempts,
        again_unix_ms: outbox.flow.due.map(unix_ms),
        effects: known.filter_map(|(seq, _)| effects.shown(&stream(), seq)).collect(),
    }
}

fn shown_peer(instance: &Instance, from: &Name, peer: &Inbound) -> types::PeerShown {
    let open = peer.unconfirmed().into_iter().flat_map(|(first, last)| first..=last);
    let kind = |seq: u64| {
        let is_it = |event: &&Event| matches!(&event.id, EventId::Message { stream, seq: other } if stream.from == *from && *other == seq);
        instance.inbox.iter().take(SHOWN_MAX).find(is_it).map(|event| event.kind.as_str().to_owned())
    };
    let messages =
        open.take(SHOWN_MAX).map(|seq| types::MessageShown { seq, kind: kind(seq), step: "ack".to_owned() });
    types::PeerShown {
        name: from.as_str().to_owned(),
        finished: peer.low(),
        remembered: peer.len() as u64,
        messages: messages.collect(),
    }
}

fn shown_message((seq, entry): (u64, &Entry)) -> types::MessageShown {
    let step = match entry.phase {
        Phase::Sending => "message",
        Phase::Confirming => "confirm",
        Phase::Burning => "given-up",
        Phase::Finished => "confirm-ack",
    };
    let kind = entry.letter.as_ref().map(|letter| letter.kind.as_str().to_owned());
    types::MessageShown { seq, kind, step: step.to_owned() }
}

fn waited_for(one: &Match) -> types::WaitedFor {
    types::WaitedFor {
        kind: text(one.kind.as_ref()),
        source: one.source.as_ref().map(|source| source.as_str().to_owned()),
        correlation: text(one.correlation.as_ref()),
        filter: text(one.filter.as_ref()),
    }
}

fn stopped(stopped: &Stopped) -> types::StoppedWhy {
    match stopped {
        Stopped::Paused => {
            types::StoppedWhy { attempts: 0, why: "it is paused".to_owned(), until_unix_ms: None }
        }
        Stopped::Failing { attempts, why, until } => types::StoppedWhy {
            attempts: *attempts,
            why: why.as_str().to_owned(),
            until_unix_ms: until.map(unix_ms),
        },
    }
}

fn text(text: Option<&Text>) -> Option<String> {
    text.map(|text| text.as_str().to_owned())
}

/// Bytes as JSON, by the rule of programs.
pub(super) fn any(bytes: &Blob) -> Box<RawValue> {
    json::any(bytes)
}

fn unix_ms(at: Time) -> u64 {
    at.as_nanos() / 1_000_000
}
