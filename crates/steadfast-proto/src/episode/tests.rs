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

/// The first key of program `b` whose home of 64 is the given one.
fn in_home(home: usize) -> Name {
    (0..).map(|key| name(&format!("b/{key}"))).find(|name| home_of(name, 64) == home).expect("one of them")
}

/// A machine of a shared store, whose table gives it all 64 homes but the last.
fn sharing() -> Episodes {
    let mut episodes = Episodes::new(Settings::default(), NodeId(1), 1).sharing();
    let homes: Vec<NodeId> = (0..64).map(|home| if home == 63 { OTHER } else { NodeId(1) }).collect();
    let mut out = Batch::default();
    episodes.step(Time::ZERO, Input::Homes(homes), &mut out);
    episodes.step(Time::ZERO, Input::Deployed([("b".into(), Program::default())].into()), &mut out);
    episodes
}

fn adopt(episodes: &mut Episodes, home: usize, instances: Vec<Instance>, epoch: u64) -> Batch {
    let mut out = Batch::default();
    episodes.step(Time::ZERO, Input::Adopted { homes: [home].into(), instances, epoch }, &mut out);
    out
}

fn ask(episodes: &mut Episodes, request: Request) -> Batch {
    let mut out = Batch::default();
    episodes.step(Time::ZERO, Input::Request { token: 1, request }, &mut out);
    out
}

fn begin(name: &Name, wait: bool) -> Request {
    Request::Start { name: name.clone(), payload: Blob::empty(), key: None, wait }
}

fn to_elsewhere() -> Outgoing {
    let (to, kind, payload) = (in_home(63), "k".into(), Blob::empty());
    Outgoing { to, kind, correlation: None, payload, begins: false, within: None }
}

#[test]
fn nothing_is_said_of_a_home_that_has_not_come() {
    let mut episodes = sharing();
    let (to, from) = (in_home(0), in_home(63));
    let stream = Stream { from, epoch: 5, to: to.clone() };
    let out = hear(&mut episodes, msg(&stream, 1, 0));
    assert_eq!(out, Batch::default(), "not even that there is no such instance");
    let out = ask(&mut episodes, begin(&to, false));
    assert_eq!(out.answers, [(1, Err(RequestError::Moving(to.clone())))]);
    adopt(&mut episodes, 0, Vec::new(), 0);
    let out = hear(&mut episodes, msg(&stream, 1, 0));
    assert!(matches!(&out.send_durable[..], [(_, Message::Refused { .. })]), "{out:?}");
}

#[test]
fn an_instance_that_comes_goes_on_and_one_that_goes_leaves_nothing() {
    let mut episodes = sharing();
    let (one, other) = (in_home(1), in_home(2));
    adopt(&mut episodes, 1, Vec::new(), 0);
    let task = ask(&mut episodes, begin(&one, true)).run.pop().expect("its first episode");
    let wait = Wait { any: Vec::new(), deadline: Some(Time::from_nanos(9)) };
    let outcome = Outcome { messages: vec![to_elsewhere()], next: Next::Wait(wait), ..Outcome::default() };
    let mut out = Batch::default();
    episodes.step(Time::ZERO, Input::Ran { name: task.name, run: task.run, result: Ok(outcome) }, &mut out);
    let kept = episodes.instance(&one).expect("it is there").clone();
    let kept = Instance::decode(&kept.encode()).expect("a store gives it back");

    let mut out = Batch::default();
    let homes = episodes.homes().to_vec();
    let away = homes.iter().enumerate().map(|(home, node)| if home == 1 { OTHER } else { *node }).collect();
    episodes.step(Time::ZERO, Input::Homes(away), &mut out);
    assert_eq!(out.answers, [(1, Err(RequestError::Moved(one.clone())))]);
    assert_eq!((episodes.instances().count(), episodes.deadline()), (0, None));
    assert!(out.persist.is_empty(), "it is still in the store");

    episodes.step(Time::ZERO, Input::Homes(homes), &mut out);
    let out = adopt(&mut episodes, 1, vec![kept], 0);
    assert!(matches!(&out.send_durable[..], [(Destination::Node(OTHER), Message::Msg { .. })]), "{out:?}");
    assert!(episodes.deadline().is_some_and(|deadline| deadline <= Time::from_nanos(9)));
    assert!(episodes.instance(&other).is_none());
}

/// The receiver's record of the confirm was lost. A close may be under way, and no confirm may come after it: it would bring back
/// the mark that nobody takes away any more.
#[test]
fn an_ack_at_the_end_of_a_stream_is_answered_by_the_close() {
    let mut episodes = sharing();
    let from = in_home(1);
    adopt(&mut episodes, 1, Vec::new(), 0);
    let task = ask(&mut episodes, begin(&from, false)).run.pop().expect("its first episode");
    let next = Next::End(Blob::empty());
    let outcome = Outcome { messages: vec![to_elsewhere()], next, ..Outcome::default() };
    let mut out = Batch::default();
    episodes.step(Time::ZERO, Input::Ran { name: task.name, run: task.run, result: Ok(outcome) }, &mut out);
    let epoch = episodes.instance(&from).expect("it is there until it is retired").epoch;
    let stream = Stream { from, epoch, to: in_home(63) };
    let ack = Message::Ack { span: span(&stream, 1, 1), epoch: 9 };
    let out = hear(&mut episodes, ack.clone());
    assert!(matches!(&out.send[..], [(_, Message::Confirm { .. })]), "{out:?}");
    hear(&mut episodes, Message::ConfirmAck { span: span(&stream, 1, 1) });
    let out = hear(&mut episodes, ack);
    assert!(out.send.is_empty(), "{out:?}");
    assert!(matches!(&out.send_durable[..], [(_, Message::Close { .. })]), "{out:?}");
}

/// Two lives of a name on two nodes must differ although neither node knows of the other's.
#[test]
fn an_instance_of_a_home_that_came_gets_an_epoch_that_none_of_it_had() {
    let mut episodes = sharing();
    adopt(&mut episodes, 3, Vec::new(), 1_000);
    ask(&mut episodes, begin(&in_home(3), false));
    assert_eq!(episodes.instance(&in_home(3)).map(|instance| instance.epoch), Some(1_001));
}

#[test]
fn instances_of_another_store_are_found_by_their_program() {
    let (mut episodes, _) = receiver();
    let shared = name("shared/1");
    let apart = |homes| vec![Apart { programs: ["shared".into()].into(), homes }];
    let mut out = Batch::default();
    episodes.step(Time::ZERO, Input::Apart(apart(Vec::new())), &mut out);
    assert_eq!(episodes.keeper(&shared), None);
    let out = ask(&mut episodes, begin(&shared, false));
    assert_eq!(out.answers, [(1, Err(RequestError::Moving(shared.clone())))]);
    let mut out = Batch::default();
    episodes.step(Time::ZERO, Input::Apart(apart(vec![NodeId(7)])), &mut out);
    assert_eq!(episodes.keeper(&shared), Some(NodeId(7)));
    assert!(episodes.may_speak(NodeId(7), &shared) && !episodes.may_speak(OTHER, &shared));
}

#[test]
fn a_loss_moves_only_the_homes_of_the_lost_node() {
    let all: std::collections::BTreeSet<NodeId> = (1..=5).map(|id| NodeId(id << 90 | id)).collect();
    let before = share_homes(&all, 64);
    for lost in &all {
        let kept = before.iter().filter(|node| *node == lost).count();
        assert!((4..=26).contains(&kept), "about a fifth each: {kept}");
        let rest = all.iter().copied().filter(|node| node != lost).collect();
        for (was, is) in before.iter().zip(share_homes(&rest, 64)) {
            assert!(*was == is || was == lost);
        }
    }
    assert_eq!(share_homes(&std::collections::BTreeSet::new(), 64), []);
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

/// A receiver that has forgotten the stream takes a confirm for one of a new stream, and would remember that for ever.
#[test]
fn an_ack_that_comes_while_a_stream_is_closed_is_not_confirmed() {
    let (mut episodes, other) = receiver();
    let mut out = Batch::default();
    let (kind, payload, to) = ("k".into(), Blob::empty(), other.from.clone());
    let message = Outgoing { to, kind, correlation: None, payload, begins: false, within: None };
    let next = Next::End(Blob::empty());
    let outcome = Outcome { messages: vec![message], next, ..Outcome::default() };
    episodes.step(Time::ZERO, Input::Ran { name: other.to.clone(), run: 1, result: Ok(outcome) }, &mut out);
    let epoch = episodes.instance(&other.to).expect("it is there").epoch;
    let stream = Stream { from: other.to, epoch, to: other.from };
    let ack = || Message::Ack { span: span(&stream, 1, 1), epoch: 9 };
    let says = |batch: &Batch| {
        batch.send.iter().chain(&batch.send_durable).map(|(_, message)| message.clone()).collect::<Vec<_>>()
    };
    assert_eq!(says(&hear(&mut episodes, ack())), [Message::Confirm { span: span(&stream, 1, 1) }]);
    hear(&mut episodes, Message::ConfirmAck { span: span(&stream, 1, 1) });
    assert_eq!(says(&hear(&mut episodes, ack())), [Message::Close { stream: stream.clone() }]);
    hear(&mut episodes, Message::Closed { stream: stream.clone() });
    assert!(says(&hear(&mut episodes, ack())).is_empty(), "nothing is known of it any more");
}

/// After a crash it is not known who forgot what; a lost question would otherwise be repeated only with the next reminder.
#[test]
fn after_a_crash_a_sender_is_asked_again_soon() {
    let (mut episodes, stream) = receiver();
    hear(&mut episodes, msg(&stream, 1, 0));
    let at = |episodes: &Episodes| episodes.deadline().map(|at| at.since(Time::ZERO).as_millis());
    assert_eq!(at(&episodes), Some(30_000), "in life there is no hurry");
    let mut out = Batch::default();
    episodes.step(Time::ZERO, Input::Met(OTHER), &mut out);
    assert!(matches!(&out.send_durable[..], [(Destination::Node(OTHER), Message::Ack { .. })]));
    for due in [200, 600, 1_400] {
        assert_eq!(at(&episodes), Some(due));
        let (now, mut out) = (episodes.deadline().expect("a reminder"), Batch::default());
        episodes.step(now, Input::Deadline, &mut out);
        assert_eq!(out.send_durable.len(), 1);
    }
}
