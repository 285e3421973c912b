//! Every Steadfast protocol as a pure state machine.
//!
//! This list is the map, in reading order: a module uses only modules above it. What a lower one decides reaches
//! a higher one as an input, never as a call. [`node`] joins all stages into the one machine that the runtime
//! and the simulator drive.

pub mod time;
pub mod ids;
pub mod machine;
pub mod probation;
pub mod wire;
pub mod flaw;
pub mod detect;
pub mod links;
pub mod catalog;
pub mod domains;
pub mod view;
pub mod devices;
pub mod events;
pub mod quiesce;
pub mod group;
pub mod lease;
pub mod placement;
pub mod survival;
pub mod exchange;
pub mod episode;
pub mod recovery;
pub mod node;
