//! The parts of the `steadfast` binary: agent, commands, HTTP API.
//!
//! It knows all the other crates, JSON and people; it must never know a protocol's rules (those are in
//! `steadfast-proto`). Start at [`commands`], one verb per file; the agent behind them is in [`agent`].

pub mod agent;
pub mod api;
pub mod bed;
pub mod codes;
pub mod commands;
pub mod config;
pub mod demo;
pub mod episodes;
pub mod events;
pub mod failure;
pub mod logging;
pub mod output;
pub mod spec;
pub mod traces;
pub mod units;
pub mod verdicts;
