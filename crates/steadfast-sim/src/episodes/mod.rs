//! A world of durable programs: crashes at every commit, messages lost, doubled and overtaken, and programs of one's own.
//!
//! [`World`] is the ground; `ring` lets four instances pass on what they have, at random, and counts; `model` searches all
//! that can happen to one message; `shared` moves homes between nodes of one store. [`Kit`] is for everybody's own programs, from an ordinary
//! test. Must never decide anything that
//! `steadfast_proto::episode` decides.
//!
//! ```
//! let report = steadfast_sim::episodes::ring::run(&Default::default(), 1);
//! assert_eq!(report.violation, None, "{report}");
//! assert_eq!(report.bytes_left, 0);
//! ```

mod check;
mod kit;
#[cfg(test)]
mod model;
pub mod ring;
pub mod shared;
pub mod verify;
mod world;

pub use check::Violation;
pub use kit::{Kit, KitError};
pub use world::{Channel, Move, Node, Run, World};
