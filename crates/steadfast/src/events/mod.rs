//! Events on a running node: what watches its operating system, and the loop around the core that decides who is told.
//!
//! Who registered for what, and what leaves the node, is decided in `steadfast_proto::events` (PROTOCOLS 4.3). Read next:
//! [`hub`], then [`producers`].

pub mod hub;
pub mod producers;

use std::time::{SystemTime, UNIX_EPOCH};

/// What events are dated with: this machine's clock, in microseconds since 1970.
pub fn now_unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
