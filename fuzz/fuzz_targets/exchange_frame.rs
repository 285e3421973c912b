//! A frame of exchanges from another node. Whatever is accepted must be written the same way again, and a machine must bear it:
//! it has an instance that has sent, and one that has received.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_proto::episode::{Batch, Episodes, Input, Next, Outcome, Outgoing, Program, Request, Settings, Wait};
use steadfast_proto::exchange::{Blob, Frame, Name};
use steadfast_proto::ids::NodeId;
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;

fuzz_target!(|bytes: &[u8]| {
    let Ok(frame) = Frame::decode(bytes) else { return };
    assert_eq!(Frame::decode(&frame.encode()).as_ref(), Ok(&frame));
    let (mut episodes, mut out, now) = (Episodes::new(Settings::default(), NodeId(1), 1), Batch::default(), Time::ZERO);
    episodes.step(now, Input::Deployed([("a".into(), Program::default())].into()), &mut out);
    let name = Name::parse("a/1").expect("a name");
    let start = Request::Start { name: name.clone(), payload: Blob::empty(), key: None, wait: false };
    episodes.step(now, Input::Request { token: 1, request: start }, &mut out);
    let task = out.run.pop().expect("it begins");
    let to = Name::parse("outside/b").expect("a name");
    let message =
        Outgoing { to, kind: "k".into(), correlation: None, payload: Blob::empty(), begins: false, within: None };
    let next = Next::Wait(Wait::for_anything());
    let outcome = Outcome { messages: vec![message; 3], next, ..Outcome::default() };
    episodes.step(now, Input::Ran { name, run: task.run, result: Ok(outcome) }, &mut out);
    episodes.step(now, Input::Received(frame.messages), &mut out);
    if let Some(deadline) = episodes.deadline() {
        episodes.step(deadline, Input::Deadline, &mut out);
        assert!(episodes.deadline().is_none_or(|next| next > deadline));
    }
});
