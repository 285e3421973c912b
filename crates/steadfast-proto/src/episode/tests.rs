//! What one machine answers, message by message. Whole exchanges are in the simulator (`steadfast_sim::episodes`).

use super::*;
use crate::exchange::{Blob, Letter, Message, Name, Span, Stream};
use crate::ids::NodeId;
use crate::machine::Machine;
use crate::time::Time;

const OTHER: NodeId = NodeId(2);

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

/// A receiver `b/N` that is kept here, and the stream to it from a sender that is kept elsewhere.
fn receiver() -> (Episodes, Stream) {
    let mut episodes = Episodes::new(Settings::default(), NodeId(1), 1);
    let homes = vec![NodeId(1), OTHER];
    let names = || (0..).map(|key| name(&format!("b/{key}")));
    let on = |node: usize| names().find(|name| home_of(name, 2) == node).expect("one of them");
    let (to, from) = (on(0), on(1));
    let mut out = Batch::default();
    episodes.step(Time::ZERO, Input::Homes(homes), &mut out);
    episodes.step(Time::ZERO, Input::Deployed([("b".into(), Program::default())].into()), &mut out);
    let start = Request::Start { name: to.clone(), payload: Blob::empty(), key: None, wait: false };
    episodes.step(Time::ZERO, Input::Request { token: 1, request: start }, &mut out);
    (episodes, Stream { from, epoch: 5, to })
}

fn hear(episodes: &mut Episodes, message: Message) -> Batch {
    let mut out = Batch::default();
    episodes.step(Time::ZERO, Input::Received(vec![message]), &mut out);
    out
}

fn msg(stream: &Stream, seq: u64, floor: u64) -> Message {
    let letter = Letter { kind: "k".into(), correlation: None, payload: Blob::empty(), begins: false };
    Message::Msg { stream: stream.clone(), seq, floor, letter }
}

fn span(stream: &Stream, first: u64, last: u64) -> Span {
    Span { stream: stream.clone(), first, last }
}

fn inbox_len(episodes: &Episodes, stream: &Stream) -> usize {
    // The first of them is the start.
    episodes.instance(&stream.to).map_or(0, |instance| instance.inbox.len()) - 1
}

/// The second message is given up before anything of the stream came; the first one is still to be delivered.
#[test]
fn a_message_that_was_given_up_takes_none_before_it_along() {
    let (mut episodes, stream) = receiver();
    hear(&mut episodes, Message::Confirm { span: span(&stream, 2, 2) });
    hear(&mut episodes, msg(&stream, 1, 0));
    assert_eq!(inbox_len(&episodes, &stream), 1);
    hear(&mut episodes, msg(&stream, 2, 0));
    assert_eq!(inbox_len(&episodes, &stream), 1, "a copy of what was given up is not delivered any more");
}

#[test]
fn a_message_of_an_epoch_that_is_over_is_not_heeded() {
    let (mut episodes, stream) = receiver();
    hear(&mut episodes, msg(&stream, 1, 0));
    let older = Stream { epoch: 4, ..stream.clone() };
    let out = hear(&mut episodes, msg(&older, 2, 0));
    assert_eq!((out.send_durable.len(), episodes.counters().stale), (0, 1));
    let newer = Stream { epoch: 6, ..stream.clone() };
    hear(&mut episodes, msg(&newer, 1, 0));
    assert_eq!(inbox_len(&episodes, &stream), 2, "the first message of a new epoch is no copy");
}

#[test]
fn an_ack_of_what_was_never_sent_is_counted_and_never_confirmed() {
    let (mut episodes, stream) = receiver();
    let back = Stream { from: stream.to.clone(), epoch: 2, to: stream.from };
    let out = hear(&mut episodes, Message::Ack { span: span(&back, 1, 1), epoch: 9 });
    assert_eq!((out.send.len() + out.send_durable.len(), episodes.counters().acks_from_future), (0, 1));
}

#[test]
fn a_full_inbox_takes_nothing_and_acknowledges_nothing() {
    let (mut episodes, stream) = receiver();
    episodes.settings.inbox_max = 2;
    assert_eq!(hear(&mut episodes, msg(&stream, 1, 0)).send_durable.len(), 1);
    assert_eq!(hear(&mut episodes, msg(&stream, 2, 0)).send_durable.len(), 0);
    assert_eq!((inbox_len(&episodes, &stream), episodes.counters().full), (1, 1));
}

/// The ack waits for the disk; the confirm-ack, which only lets the sender forget, does not.
#[test]
fn what_is_promised_waits_for_the_disk() {
    let (mut episodes, stream) = receiver();
    let out = hear(&mut episodes, msg(&stream, 1, 0));
    assert!(out.force && out.send.is_empty() && matches!(out.persist[..], [Record::Accepted { .. }]));
    assert!(matches!(&out.send_durable[..], [(Destination::Node(OTHER), Message::Ack { .. })]));
    let out = hear(&mut episodes, Message::Confirm { span: span(&stream, 1, 1) });
    assert!(!out.force && out.send_durable.is_empty());
    assert!(matches!(&out.send[..], [(Destination::Node(OTHER), Message::ConfirmAck { .. })]));
}

#[test]
fn a_span_as_long_as_a_stream_costs_nothing() {
    let (mut episodes, stream) = receiver();
    hear(&mut episodes, msg(&stream, 1 << 40, (1 << 40) - 1));
    let out = hear(&mut episodes, Message::Confirm { span: span(&stream, 1, 1 << 62) });
    assert_eq!(out.send.len(), 1);
}

/// An instance `b/1` that has sent one message to an adapter.
fn with_effect() -> (Episodes, Stream) {
    let mut episodes = Episodes::new(Settings::default(), NodeId(1), 1);
    let (mut out, to) = (Batch::default(), name("effect/http"));
    episodes.step(Time::ZERO, Input::Deployed([("b".into(), Program::default())].into()), &mut out);
    let start = Request::Start { name: name("b/1"), payload: Blob::empty(), key: None, wait: false };
    episodes.step(Time::ZERO, Input::Request { token: 1, request: start }, &mut out);
    let task = out.run.pop().expect("the first episode");
    let correlation = Some("c".into());
    let (kind, payload) = ("pay".into(), Blob::empty());
    let message = Outgoing { to: to.clone(), kind, correlation, payload, begins: false, within: None };
    let next = Next::Wait(Wait::for_kind("paid"));
    let outcome = Outcome { messages: vec![message], next, ..Outcome::default() };
    episodes.step(Time::ZERO, Input::Ran { name: task.name, run: task.run, result: Ok(outcome) }, &mut out);
    assert_eq!(out.effects.len(), 1, "{out:?}");
    let epoch = episodes.instance(&name("b/1")).expect("it is there").epoch;
    (episodes, Stream { from: name("b/1"), epoch, to })
}

/// What the adapter says of the first message, and the one event that follows from it, if one does.
fn effected(episodes: &mut Episodes, stream: &Stream, result: EffectResult) -> (Batch, Option<Event>) {
    let mut out = Batch::default();
    let input = Input::Effected { stream: stream.clone(), seq: 1, result };
    episodes.step(Time::ZERO, input, &mut out);
    let event = out.run.first().map(|task| task.event.clone());
    (out, event)
}

#[test]
fn what_came_of_an_effect_is_told_once_with_what_it_belongs_to() {
    let (mut episodes, stream) = with_effect();
    let reply = Reply { kind: "paid".into(), payload: Blob::from(b"20".as_slice()) };
    let (out, event) = effected(&mut episodes, &stream, EffectResult::Done(Some(reply.clone())));
    let event = event.expect("the instance waits for it");
    assert_eq!((event.source, event.correlation), (Some(stream.to.clone()), Some("c".into())));
    assert_eq!((event.kind, event.payload), (reply.kind.clone(), reply.payload.clone()));
    for record in &out.persist {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(Record::decode(&bytes), Ok(record.clone()));
    }
    let (again, _) = effected(&mut episodes, &stream, EffectResult::Done(Some(reply)));
    assert!(again.persist.is_empty(), "a repetition changes nothing: {again:?}");
    let instance = episodes.instance(&stream.from).expect("it is there");
    assert_eq!((instance.unacked, instance.unconfirmed), (0, 0));
    assert!(instance.outboxes.values().all(crate::exchange::Outbox::is_empty));
}

#[test]
fn an_effect_that_never_will_be_is_undeliverable_and_one_that_may_be_is_kept() {
    let (mut episodes, stream) = with_effect();
    let (later, _) = effected(&mut episodes, &stream, EffectResult::Later("busy".into()));
    assert!(later.persist.is_empty(), "{later:?}");
    effected(&mut episodes, &stream, EffectResult::Never("no such shop".into()));
    let instance = episodes.instance(&stream.from).expect("it is there");
    let event = instance.inbox.front().expect("a notice");
    assert_eq!((&*event.kind, &*event.payload), (Event::UNDELIVERABLE, b"no such shop".as_slice()));
    assert!(instance.outboxes.values().all(crate::exchange::Outbox::is_empty));
}

#[test]
fn deadlines_that_have_come_together_are_met_in_their_order() {
    let mut episodes = Episodes::new(Settings::default(), NodeId(1), 1);
    let mut out = Batch::default();
    episodes.step(Time::ZERO, Input::Deployed([("b".into(), Program::default())].into()), &mut out);
    let deadlines = [5, 2, 9, 1, 7].map(|second| Time::from_nanos(second * 1_000_000_000));
    for (key, deadline) in deadlines.into_iter().enumerate() {
        let name = name(&format!("b/{key}"));
        let request = Request::Start { name: name.clone(), payload: Blob::empty(), key: None, wait: false };
        episodes.step(Time::ZERO, Input::Request { token: 1, request }, &mut out);
        let run = out.run.pop().expect("it begins").run;
        let next = Next::Wait(Wait { any: Vec::new(), deadline: Some(deadline) });
        let result = Ok(Outcome { next, ..Outcome::default() });
        episodes.step(Time::ZERO, Input::Ran { name, run, result }, &mut out);
    }
    let mut due = Batch::default();
    episodes.step(Time::from_nanos(60_000_000_000), Input::Deadline, &mut due);
    let keys: Vec<&str> = due.run.iter().map(|task| task.name.key()).collect();
    assert_eq!(keys, ["3", "1", "0", "4", "2"]);
}
