//! Events on a running node: what watches its operating system, and the loop around the core that decides who is told.
//!
//! Who registered for what, and what leaves the node, is decided in `steadfast_proto::events` (PROTOCOLS 4.3). Read next:
//! [`hub`], then [`producers`].

pub mod hub;
pub mod producers;
