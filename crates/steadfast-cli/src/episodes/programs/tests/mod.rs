//! Tests of programs with real modules, a real HTTP server and real processes.

mod command;
mod http;
mod json;
mod wasm;

use std::time::Duration;

use steadfast_proto::episode::{Event, EventId, Match, Next, Outcome, Task, Wait};
use steadfast_proto::exchange::{Blob, Name};
use steadfast_proto::time::Time;

use super::{Limits, Prepared, Ran, Source};

/// An episode whose event carries this payload.
fn task(payload: &str) -> Task {
    Task {
        name: Name::parse("order/17").unwrap(),
        version: 3,
        run: 9,
        episode: 2,
        state: b"{\"item\":\"book\"}".as_slice().into(),
        event: Event {
            id: EventId::Request(1),
            kind: "paid".into(),
            source: Some(Name::parse("payment/17").unwrap()),
            correlation: Some("c17".into()),
            payload: payload.as_bytes().into(),
        },
        now: Time::from_nanos(1_790_000_000_123_456_789),
    }
}

/// Limits of tests that must not take long.
fn limits() -> Limits {
    Limits { time_max: Duration::from_secs(60), fuel_max: 20_000_000, ..Limits::default() }
}

fn prepared(source: Source, limits: Limits) -> Prepared {
    Prepared::new(source, limits).unwrap_or_else(|error| panic!("{error}"))
}

/// The outcome of an episode that has to succeed.
fn outcome(ran: Ran) -> Outcome {
    ran.result.unwrap_or_else(|failure| panic!("{failure:?}, having logged {:?}", ran.log))
}

/// Why an episode that has to fail failed; it is to be run again.
fn why(ran: &Ran) -> String {
    let failure = ran.result.as_ref().expect_err("it should have failed");
    assert!(!failure.lasting, "{failure:?}");
    failure.why.to_string()
}

fn waits_for(outcome: &Outcome) -> &Wait {
    match &outcome.next {
        Next::Wait(wait) => wait,
        Next::End(answer) => panic!("it ended with {answer:?}"),
    }
}

fn blob(text: &str) -> Blob {
    text.as_bytes().into()
}

fn kind(kind: &str) -> Match {
    Match { kind: Some(kind.into()), ..Match::default() }
}
