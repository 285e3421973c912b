//! One seed from beginning to end: faults with every checker on, then no faults until all is well again, then a member leaves.
//!
//! A failure names the seed and the command that repeats it. Must never let a wall clock decide anything.

use std::fmt;

use crate::checkers::{Violation, stays, unsettled};
use crate::scenario::{MS, SECOND};
use crate::trace::Trace;
use crate::world::{Counts, World};

/// How long a cluster may take to be well again after the last fault.
const LIVENESS_NS: u64 = 60 * SECOND;

/// How long a cluster must stay well to count as well.
const SETTLED_NS: u64 = 1_500 * MS;

/// What to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The seed; everything follows from it.
    pub seed: u64,
    /// How many nodes, instead of what the seed says.
    pub nodes: Option<usize>,
    /// Whether to keep a line for everything that happens.
    pub trace: bool,
}

/// How a seed ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// How many nodes, if not what the seed says.
    pub nodes: Option<usize>,
    /// The invariant that did not hold, if one did not.
    pub violation: Option<Violation>,
    /// What was counted.
    pub counts: Counts,
    /// What tells this run from another.
    pub digest: u64,
    /// The lines of the trace, if it was asked for.
    pub lines: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(violation) = &self.violation else { return write!(formatter, "seed {} passed", self.seed) };
        let (seconds, micros) = (violation.at / SECOND, violation.at % SECOND / 1_000);
        write!(formatter, "seed {} broke {} at {seconds}.{micros:06} s: ", self.seed, violation.invariant)?;
        write!(formatter, "{}\nrepeat it with: cargo xtask sim --seed {}", violation.seen, self.seed)?;
        self.nodes.map_or(Ok(()), |nodes| write!(formatter, " --nodes {nodes}"))?;
        write!(formatter, " --trace")
    }
}

/// Runs one seed.
pub fn run(options: Options) -> Outcome {
    let trace = if options.trace { Trace::recording() } else { Trace::silent() };
    let mut world = World::new(options.seed, options.nodes, trace);
    let end_of_faults = world.now + world.scenario.safety;
    while world.violation().is_none() && world.next(end_of_faults) {}
    let liveness = if world.violation().is_none() { settle(&mut world) } else { None };
    let well = world.violation().is_none() && liveness.is_none();
    let liveness = if well { leave(&mut world) } else { liveness };
    let violation = world.violation().cloned().or(liveness);
    world.counts.simulated_ns = world.now;
    if let Some(violation) = &violation {
        world
            .trace
            .line(violation.at, None, "VIOLATION", || format!("{}: {}", violation.invariant, violation.seen));
    }
    Outcome {
        seed: options.seed,
        nodes: options.nodes,
        violation,
        counts: world.counts,
        digest: world.digest(),
        lines: world.trace.into_lines(),
    }
}

/// The second phase: without faults, until all has been well for a while.
fn settle(world: &mut World) -> Option<Violation> {
    world.calm();
    let give_up = world.now + LIVENESS_NS;
    let mut well_since = None;
    loop {
        let until = world.now + 100 * MS;
        while world.violation().is_none() && world.next(until) {}
        if world.violation().is_some() {
            return None;
        }
        let wrong = unsettled(world);
        match (&wrong, well_since) {
            (None, Some(since)) if world.now >= since + SETTLED_NS => return None,
            (None, _) => _ = well_since.get_or_insert(world.now),
            (Some(_), _) => well_since = None,
        }
        if let Some(seen) = wrong
            && world.now >= give_up
        {
            return Some(Violation { invariant: "LIVE-AGAIN", at: world.now, seen });
        }
    }
}

/// The third phase: a member is told to leave.
fn leave(world: &mut World) -> Option<Violation> {
    let node = world.has_one_leave()?;
    let give_up = world.now + LIVENESS_NS;
    while stays(world, node) {
        if world.now >= give_up {
            let seen = format!("{node:?} was told to leave, and is still a member");
            return Some(Violation { invariant: "LIVE-LEAVE", at: world.now, seen });
        }
        let until = world.now + 100 * MS;
        while world.violation().is_none() && world.next(until) {}
        if world.violation().is_some() {
            return None;
        }
    }
    None
}
