//! What a node's own operating system reports: the local producers of events (PROTOCOLS 4.3).
//!
//! Who registered for what, and what leaves the node, is decided in `steadfast_proto::events`; here somebody only watches while
//! it is asked for. Read next: [`producers`].

pub mod producers;
