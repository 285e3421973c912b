//! A deterministic world for the Steadfast core: N nodes, their hosts and networks, an ideal log, faults, checkers.
//!
//! Everything that happens follows from one seed: one queue of (time, sequence), one random source, no clock, no
//! thread. Must never decide what a node does: that is `steadfast_proto::node`, driven here as the agent drives
//! it. Read [`run`] for the two phases of a seed, then [`world`], then the checkers, one invariant each.

pub mod checkers;
pub mod detection;
pub mod episodes;
pub mod events;
pub mod group;
pub mod run;
pub mod scenario;
pub mod world;

mod agents;
mod catalog;
mod clock;
mod faults;
mod host;
mod jobs;
mod network;
mod random;
mod shims;
mod trace;
mod workload;
