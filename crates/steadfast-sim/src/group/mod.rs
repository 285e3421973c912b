//! A world of one mirrored group: members are replaced without end while writes go on and processes are killed.
//!
//! The processes are the real core. The network loses, doubles, delays and reorders; the catalog's row is an ideal
//! register whose swaps may arrive late and whose answers may be lost. After each replacement one of the remaining
//! members is killed, at the instant in which the view is first installed anywhere. Must never tell a process anything
//! that an agent could not know. Read `world`, then `director`, then `checkers`.
//!
//! ```
//! let plan = steadfast_sim::group::Plan { replacements: 3, ..Default::default() };
//! let report = steadfast_sim::group::run(&plan, 1);
//! assert_eq!(report.violation, None, "{report}");
//! assert_eq!(report.replaced, 3);
//! ```

mod checkers;
mod director;
mod program;
mod register;
mod world;
mod writers;

use std::fmt;

use steadfast_proto::group::{GroupView, Reason};

pub use checkers::Violation;

/// What a world does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many full members the group has (k).
    pub mirrors: usize,
    /// How many nodes there are; those that are not needed are spare.
    pub nodes: usize,
    /// After how many replacements the world ends.
    pub replacements: u32,
    /// The share of messages that are lost.
    pub loss: f64,
    /// The share of messages that arrive twice.
    pub duplication: f64,
    /// The share of messages that are late by up to 400 ms.
    pub straggling: f64,
    /// The share of swaps that reach the catalog only seconds later, their answers lost.
    pub late_swaps: f64,
    /// The share of changes during which a process is killed or wrongly taken for dead.
    pub accidents: f64,
    /// Whether a remaining member is killed right after each replacement.
    pub kills: bool,
    /// The only invariant that is checked, if not all.
    pub only: Option<&'static str>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            mirrors: 2,
            nodes: 5,
            replacements: 20,
            loss: 0.03,
            duplication: 0.03,
            straggling: 0.02,
            late_swaps: 0.05,
            accidents: 0.3,
            kills: true,
            only: None,
        }
    }
}

/// What happened in a world.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed that repeats it.
    pub seed: u64,
    /// Replacements that were committed.
    pub replaced: u32,
    /// Every committed view.
    pub views: Vec<GroupView>,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Processes that were killed.
    pub kills: u32,
    /// Living processes that were taken for dead.
    pub mistaken: u32,
    /// Changes of view that were given up before their commit point.
    pub aborted: u32,
    /// Renewals of the row, which end the doubt about a change.
    pub renewals: u32,
    /// How long it took in the world's time, in nanoseconds.
    pub duration: u64,
    /// A digest of everything that happened.
    pub digest: u64,
    /// The first invariant that did not hold.
    pub violation: Option<Violation>,
}

impl Report {
    /// How many views were committed for this reason.
    pub fn count(&self, is_counted: impl Fn(&Reason) -> bool) -> usize {
        self.views.iter().filter(|view| is_counted(&view.reason)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "seed {}: {} replacements in {} views ({} failure views), {} writes acknowledged, {} killed, {} mistaken, \
             {} changes given up, {} renewals, {} s, digest {:016x}",
            self.seed,
            self.replaced,
            self.views.len(),
            self.count(|reason| matches!(reason, Reason::Failed(_))),
            self.acknowledged,
            self.kills,
            self.mistaken,
            self.aborted,
            self.renewals,
            self.duration / 1_000_000_000,
            self.digest,
        )?;
        match &self.violation {
            None => Ok(()),
            Some(violation) => write!(formatter, "; {} broken: {}", violation.invariant, violation.seen),
        }
    }
}

/// Runs the world of `seed` to its end, or to the first violation.
pub fn run(plan: &Plan, seed: u64) -> Report {
    world::World::new(plan, seed).run()
}
