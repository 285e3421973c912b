//! The words of events: which types there are, how one is filtered, written, printed and handed on.
//!
//! It decides what people and programs outside see of an event; it must never decide who gets one or in which order (that
//! is `steadfast_proto::events`), nor watch anything (that is `steadfast::events`). Read [`kinds`] first, the table of all
//! types; then [`filter`], [`cloud`] (the JSON), [`printing`] (a terminal) and [`sinks`] (programs, web hooks, NATS).

pub mod cloud;
pub mod emit;
pub(crate) mod event;
pub mod filter;
pub mod kinds;
pub mod printing;
pub mod sinks;

pub use event::{Delivery, EventView, Lost, Source, USER_ANY, parse_topic, shown, topic_text};
