//! A world of nodes that tell each other what happens: loss, restarts, splits, floods and slow consumers.
//!
//! The nodes are the real core of `steadfast_proto::events`. The network loses, doubles and reorders; views follow what
//! happens with a delay, and a node that was split off is removed while it goes on. Must never tell a node anything that
//! an agent could not know. Read `world`, then `checkers` for EV1-EV5.
//!
//! ```
//! let plan = steadfast_sim::events::Plan { seconds: 5, ..Default::default() };
//! let report = steadfast_sim::events::run(&plan, 1);
//! assert_eq!(report.violation, None, "{report}");
//! ```

mod checkers;
mod world;

use std::fmt;

pub use checkers::Violation;

/// What a world does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many nodes there are.
    pub nodes: u128,
    /// How long faults go on, in seconds of the world.
    pub seconds: u64,
    /// The share of messages that are lost.
    pub loss: f64,
    /// The share of messages that arrive twice.
    pub duplication: f64,
    /// How long it takes on average until something breaks, in milliseconds.
    pub fault_every_ms: u64,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { nodes: 5, seconds: 40, loss: 0.03, duplication: 0.03, fault_every_ms: 2_000 }
    }
}

/// What became of a world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it was made of.
    pub seed: u64,
    /// The first invariant that did not hold.
    pub violation: Option<Violation>,
    /// How many things happened while a producer was active.
    pub happened: u64,
    /// How many events consumers were given.
    pub events: u64,
    /// How many gaps.
    pub gaps: u64,
    /// How many restarts and losses of sources.
    pub marks: u64,
    /// How many consumers there were.
    pub consumers: u64,
    /// How many messages were sent.
    pub messages: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { seed, happened, events, gaps, marks, consumers, messages, .. } = self;
        write!(
            formatter,
            "events seed {seed:>6}  happened {happened:>6}  events {events:>7}  gaps {gaps:>5}  marks {marks:>4}  \
             consumers {consumers:>4}  messages {messages:>7}  "
        )?;
        match &self.violation {
            None => formatter.write_str("ok"),
            Some(violation) => write!(formatter, "{violation}; repeat with events::run(&plan, {seed})"),
        }
    }
}

/// The world of `plan` that follows from `seed`, to its end or to the first invariant that does not hold.
pub fn run(plan: &Plan, seed: u64) -> Report {
    world::World::new(plan, seed).run()
}
