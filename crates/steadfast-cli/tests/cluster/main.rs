//! Cluster tests: real agents on the test bed, with an outside witness.
//!
//! Each test makes a bed of its own, breaks something, and waits for conditions with generous bounds; none asserts on time. They need
//! root, runc and a CRIU that works (`cargo xtask setup`), and fail loudly without. `support.rs` has the moves that they share.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a panic is the report; clippy knows only functions marked as tests"
)]

mod access;
mod agents;
mod bed;
mod browser;
mod checkpoints;
mod conclusions;
mod detection;
mod devices;
mod effects;
mod episodes;
mod events;
mod events_failures;
mod forgeries;
mod groups;
mod identity;
mod inside;
mod links;
mod members;
mod on_etcd;
mod openapi;
mod operations;
mod outside;
mod page;
mod power;
mod programs;
mod refusals;
mod restarts;
mod rings;
mod shared;
mod splits;
mod support;
mod tokens;
mod top;
#[cfg(feature = "otel")]
mod traces;
