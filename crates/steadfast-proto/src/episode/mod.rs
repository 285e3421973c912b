//! Durable programs: an event comes, the state changes, messages leave; whatever crashes in between, once (PROTOCOLS 2).
//!
//! An *instance* waits for an event; the *episode* that follows is a pure function of the state and the event; its result is
//! one record, the checkpoint, from which its messages leave by the four steps of [`crate::exchange`]. This machine holds
//! all instances of one store on one node. It runs no program: it says what is to be run ([`Batch::run`]) and is told what
//! came of it. It writes no disk: it says what is to be recorded, and which words wait for that.
//! Read [`Episodes`], then `instance.rs` for what a record changes; `docs/protocols/exchange.md` has E-S1..E-S7, E-L1, E-L2.
//!
//! ```
//! use steadfast_proto::episode::*;
//! use steadfast_proto::exchange::{Blob, Name};
//! use steadfast_proto::ids::NodeId;
//! use steadfast_proto::machine::Machine;
//! use steadfast_proto::time::Time;
//!
//! let (now, mut out) = (Time::ZERO, Batch::default());
//! let mut episodes = Episodes::new(Settings::default(), NodeId(1), 1);
//! episodes.step(now, Input::Deployed([("counter".into(), Program::default())].into()), &mut out);
//! let name = Name::parse("counter/1").expect("a name");
//! let start = Request::Start { name: name.clone(), payload: Blob::empty(), key: None, wait: false };
//! episodes.step(now, Input::Request { token: 1, request: start }, &mut out);
//! let task = out.run.pop().expect("the first episode");
//! let outcome = Outcome { state: vec![1].into(), next: Next::Wait(Wait::for_kind("add")), ..Outcome::default() };
//! episodes.step(now, Input::Ran { name: task.name, run: task.run, result: Ok(outcome) }, &mut out);
//! assert_eq!(episodes.instance(&name).map(|instance| instance.episode), Some(1));
//! ```

mod homes;
mod instance;
mod machine;
mod record;
mod requests;
mod run;
mod settings;
mod traffic;
mod types;

#[cfg(test)]
mod tests;

pub use homes::{Apart, home_of, share_homes};
pub use instance::{Doing, Instance, Past, Status, Stopped};
pub use machine::{Batch, Counters, Destination, Effect, EffectResult, Episodes, Input, Reply};
pub use record::{DecodeError, RECORD_BYTES_MAX, Record, Sent, Steer};
pub use settings::{Filter, Order, Settings};
pub use types::{
    Answer, Event, EventId, Failure, Key, Match, Mode, Next, Outcome, Outgoing, Program, Request,
    RequestError, Task, Wait,
};
