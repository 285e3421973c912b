//! What a program answers to an episode. Whatever is taken keeps the limits, and a refusal is one sentence; the filters of the
//! waits that are taken can be evaluated.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_cli::episodes::filter;
use steadfast_cli::episodes::programs::{Limits, json};
use steadfast_proto::episode::{Event, EventId, Next, Task};
use steadfast_proto::exchange::{Blob, Name};
use steadfast_proto::time::Time;

fuzz_target!(|bytes: &[u8]| {
    let event = Event {
        id: EventId::Notice(1),
        kind: "a".into(),
        source: None,
        correlation: None,
        payload: bytes.into(),
    };
    let name = Name::parse("order/1").expect("this is a name");
    let task = Task { name, version: 1, run: 1, episode: 1, state: Blob::empty(), event, now: Time::ZERO };
    let limits = Limits { state_bytes_max: 64, payload_bytes_max: 32, messages_max: 2, ..Limits::default() };
    assert!(!json::task(&task).is_empty());
    match json::answer(bytes, &task, limits) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(ran) => {
            let Ok(outcome) = ran.result else { return };
            assert!(outcome.state.len() <= 64 && outcome.messages.len() <= 2);
            assert!(outcome.messages.iter().all(|message| message.payload.len() <= 32));
            if let Next::Wait(wait) = outcome.next {
                assert!(!wait.any.is_empty() || wait.deadline.is_some());
                for one in &wait.any {
                    assert!(one.filter.as_ref().is_none_or(|text| filter::check(text).is_ok()));
                    let _ = one.is_met_by(&task.event, filter::matches);
                }
            }
        }
    }
});
