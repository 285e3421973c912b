//! How much is kept, how fast events may come, and how long to wait.
//!
//! Every figure is a bound: memory follows from these alone, whatever producers, consumers and other nodes do.

use std::collections::BTreeMap;
use std::time::Duration;

use super::EventType;

/// How many events of a topic are let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// On average.
    pub per_second: u32,
    /// At once after a quiet time; at least 1.
    pub burst: u32,
}

/// Bounds and times.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// For how long a registration on another node lasts after its last renewal.
    pub lease: Duration,
    /// How often it is renewed.
    pub renew: Duration,
    /// After how long an unanswered registration, and events without acknowledgement, are sent again; events doubled
    /// each time up to `renew`.
    pub retry: Duration,
    /// For how long an acknowledgement may wait for company.
    pub acknowledge_after: Duration,
    /// How many events are acknowledged without waiting.
    pub acknowledge_events: u64,
    /// How many consumers there are at most.
    pub consumers_max: usize,
    /// How many topics of its own a node knows at most.
    pub topics_max: usize,
    /// How many registrations of one other node it serves at most.
    pub registrations_max: usize,
    /// By how many events a consumer may be allowed to fall behind at most.
    pub buffer_max: usize,
    /// How many events of a topic a source retains, or more where a consumer there has a larger buffer.
    pub retained_events: usize,
    /// How many bytes of events of one topic and node are retained.
    pub retained_bytes: usize,
    /// How many bytes of events are retained altogether; the topic that grows beyond it pays.
    pub total_bytes: usize,
    /// How many bytes may be unacknowledged on their way to one node.
    pub in_flight_bytes: usize,
    /// How many of these on account of one registration.
    pub flow_bytes: usize,
    /// How many events another node may send ahead of acknowledgement.
    pub credit: u64,
    /// What a topic is let through where its type has no rate of its own.
    pub rate: Rate,
    /// What topics of these types are let through.
    pub rates: BTreeMap<EventType, Rate>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(5),
            retry: Duration::from_secs(1),
            acknowledge_after: Duration::from_millis(20),
            acknowledge_events: 128,
            consumers_max: 4_096,
            topics_max: 1_024,
            registrations_max: 2_048,
            buffer_max: 65_536,
            retained_events: 4_096,
            retained_bytes: 1 << 20,
            total_bytes: 64 << 20,
            in_flight_bytes: 1 << 20,
            flow_bytes: 256 << 10,
            credit: 4_096,
            rate: Rate { per_second: 20_000, burst: 20_000 },
            rates: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// The rate of topics of this type.
    pub(super) fn rate_of(&self, kind: &EventType) -> Rate {
        self.rates.get(kind).copied().unwrap_or(self.rate)
    }
}
