//! Bounds and times (PROTOCOLS 2.8).

use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::{Event, Match};

/// Which records must be on the disk before the words that follow from them leave (PROTOCOLS 2.2, H3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// Those of the checkpoint and of the acceptance. What a crash takes of the others is asked again: two writes per exchange.
    #[default]
    Lean,
    /// All: four writes per exchange.
    Full,
}

/// Whether an event satisfies the filter of a match: a pure function, the same for all machines of a program.
#[derive(Clone, Copy, Debug)]
pub struct Filter(pub fn(&Match, &Event) -> bool);

impl PartialEq for Filter {
    fn eq(&self, _: &Filter) -> bool {
        true
    }
}

impl Eq for Filter {}

impl Hash for Filter {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// Bounds and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// After how long a message or a confirm is sent again; doubled each time.
    pub rto: Duration,
    /// The longest of those times.
    pub rto_max: Duration,
    /// After how long a message that is not confirmed is acknowledged again.
    pub reminder: Duration,
    /// How many events wait for one instance at most.
    pub inbox_max: usize,
    /// The largest state, in bytes.
    pub state_bytes_max: usize,
    /// The largest payload, in bytes.
    pub payload_bytes_max: usize,
    /// How many messages one episode sends at most.
    pub messages_max: usize,
    /// After how long a failed episode is run again; doubled each time.
    pub retry: Duration,
    /// The longest of those times.
    pub retry_max: Duration,
    /// After how many failures an instance waits for a person.
    pub attempts_max: u32,
    /// For how long an idempotency key and an instance that has ended are remembered.
    pub keep: Duration,
    /// How many episodes [`super::Instance::history`] goes back.
    pub history_max: usize,
    /// How many idempotency keys of one instance are remembered at most.
    pub keys_max: usize,
    /// What must be durable before what leaves.
    pub order: Order,
    /// Tells times apart that would be the same on all nodes.
    pub seed: u64,
    /// Reads the filters of waits.
    pub filter: Filter,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            rto: Duration::from_millis(200),
            rto_max: Duration::from_secs(5),
            reminder: Duration::from_secs(30),
            inbox_max: 16_384,
            state_bytes_max: 1 << 20,
            payload_bytes_max: 256 << 10,
            messages_max: 256,
            retry: Duration::from_millis(200),
            retry_max: Duration::from_secs(60),
            attempts_max: 12,
            keep: Duration::from_secs(24 * 3600),
            history_max: 16,
            keys_max: 1_024,
            order: Order::Lean,
            seed: 0,
            filter: Filter(|_, _| false),
        }
    }
}
