//! The verification runner: random programs over three layers of keyed instances, while either node is killed every 50 ms.
//!
//! `script.rs` writes the programs and says what they must come to, `interpreter.rs` runs them as durable programs, `host.rs` is a
//! node with a disk, `world.rs` the time between. A run is sound if every counter is exact, everything is over soon
//! after the last kill, and nothing is kept of what was.

mod host;
mod interpreter;
mod script;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use steadfast_proto::exchange::Name;
use steadfast_proto::time::Time;

use self::interpreter::State;
use self::script::{Counter, LAYERS, Script};
use self::world::World;
use super::check::Violation;
use crate::random::Random;

/// How often one of the nodes is killed.
pub const KILL_EVERY: Duration = Duration::from_millis(50);
/// After the last kill, everything is over within this time.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many programs run in one world.
    pub programs: u64,
    /// How many keys there are in each layer.
    pub keys: u64,
    /// Within which time all programs are begun; the kills go on for as long.
    pub load: Duration,
    /// How likely a frame is lost; as likely it is doubled, or late.
    pub lost: f64,
    /// How likely an episode fails.
    pub failing: f64,
    /// How likely an episode ends later, as one does that runs in another process.
    pub late: f64,
}

impl Default for Plan {
    fn default() -> Plan {
        let load = Duration::from_millis(1_500);
        Plan { programs: 500, keys: 64, load, lost: 0.005, failing: 0.002, late: 0.2 }
    }
}

impl Plan {
    /// Until when nodes are killed, and other things go wrong.
    fn faults_end(&self) -> Time {
        Time::ZERO + KILL_EVERY + self.load
    }
}

/// What became of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it was made of.
    pub seed: u64,
    /// The first thing that was not as it must be.
    pub violation: Option<Violation>,
    /// How many programs ran.
    pub programs: u64,
    /// How many commands they had.
    pub commands: u64,
    /// How many episodes were run, those of which nothing came included.
    pub episodes: u64,
    /// How often a node was killed.
    pub kills: u64,
    /// How often something became durable.
    pub commits: u64,
    /// How long after the last kill all was over.
    pub drained: Duration,
    /// How many bytes are kept for messages at the end.
    pub bytes_left: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { seed, programs, commands, episodes, kills, commits, drained, bytes_left, .. } = self;
        write!(
            f,
            "seed {seed}: {programs} programs, {commands} commands, {episodes} episodes, {kills} kills, {commits} commits, \
             drained in {drained:.2?}, {bytes_left} bytes left"
        )?;
        match &self.violation {
            Some(violation) => write!(f, ": {violation}"),
            None => Ok(()),
        }
    }
}

/// What became of many runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    worlds: u64,
    programs: u64,
    commands: u64,
    episodes: u64,
    kills: u64,
    commits: u64,
    drained_max: Duration,
    bytes_left: usize,
    /// In how many of them something was not as it must be.
    pub failed: u64,
}

impl Total {
    /// Takes one more into account.
    pub fn add(&mut self, report: &Report) {
        self.worlds += 1;
        self.programs += report.programs;
        self.commands += report.commands;
        self.episodes += report.episodes;
        self.kills += report.kills;
        self.commits += report.commits;
        self.drained_max = self.drained_max.max(report.drained);
        self.bytes_left += report.bytes_left;
        self.failed += u64::from(report.violation.is_some());
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Total { worlds, programs, commands, episodes, kills, commits, .. } = self;
        let Total { drained_max, bytes_left, failed, .. } = self;
        write!(
            f,
            "{programs} programs in {worlds} worlds  {commands} commands  {episodes} episodes  {kills} kills  \
             {commits} commits  drained in {drained_max:.2?} at most  {bytes_left} bytes left  {failed} failed"
        )
    }
}

/// One world full of random programs.
pub fn run(plan: &Plan, seed: u64) -> Report {
    let mut random = Random::new(seed);
    let scripts: Vec<Script> = (0..plan.programs).map(|_| Script::random(&mut random, plan.keys)).collect();
    let mut totals = BTreeMap::new();
    scripts.iter().for_each(|script| script.count(&mut totals));
    let commands = scripts.iter().map(Script::len).sum::<usize>() as u64;
    let payments = scripts.iter().map(Script::payments).sum();
    let mut world = World::new(plan, seed, scripts);
    world.go(plan.faults_end());
    world.end_faults();
    let killed = world.counted.last_kill;
    // Some more than is allowed, so that a failure says how long it takes.
    let drained = world.drain(killed + DRAIN_MAX * 4).map_or(Duration::MAX, |at| at.since(killed));
    let mut violation = world.violation.take();
    if violation.is_none() {
        violation = over_in_time(drained, &world).or_else(|| wrong_counter(&world, &totals, payments));
    }
    if violation.is_none() {
        world.forget();
        violation = world.violation.take().or_else(|| left_over(&world));
    }
    let bytes_left = world.instances().map(steadfast_proto::episode::Instance::bytes_of_messages).sum();
    let world::Counted { kills, commits, episodes, .. } = world.counted;
    Report {
        seed,
        violation,
        programs: plan.programs,
        commands,
        episodes,
        kills,
        commits,
        drained,
        bytes_left,
    }
}

fn over_in_time(drained: Duration, world: &World) -> Option<Violation> {
    let what = match drained {
        Duration::MAX => world.unfinished(),
        late if late > DRAIN_MAX => format!("it took {late:.2?} after the last kill until all was over"),
        _ => return None,
    };
    Some(Violation { invariant: "E-L1", what })
}

/// Every counter against what the programs must come to, and the payments.
fn wrong_counter(world: &World, totals: &BTreeMap<Counter, u64>, payments: usize) -> Option<Violation> {
    let found: BTreeMap<&Name, u64> =
        world.instances().map(|instance| (&instance.name, State::read(&instance.state).counter)).collect();
    let mut wrong = Vec::new();
    for (layer, key) in (0..LAYERS).flat_map(|layer| totals.keys().filter(move |counter| counter.0 == layer))
    {
        let name = interpreter::layer_name(*layer, *key);
        let (expected, counted) = (totals.get(&(*layer, *key)), found.get(&name));
        if expected != counted {
            wrong.push(format!("{name} has counted {counted:?} where {expected:?} is due"));
        }
    }
    if world.paid.len() != payments {
        wrong.push(format!("{} of {payments} payments were carried out", world.paid.len()));
    }
    if wrong.is_empty() { None } else { Some(Violation { invariant: "E-S3", what: wrong.join("; ") }) }
}

/// What is still there of what has ended.
fn left_over(world: &World) -> Option<Violation> {
    let is_keyed = |name: &Name| name.program().starts_with("layer");
    let mut left = Vec::new();
    for instance in world.instances() {
        let name = &instance.name;
        if !is_keyed(name) {
            left.push(format!("{name} is not forgotten"));
        }
        left.extend(
            instance
                .peers
                .keys()
                .filter(|peer| !is_keyed(peer))
                .map(|peer| format!("{name} remembers {peer}")),
        );
    }
    let what = format!(
        "{} things are left: {}",
        left.len(),
        left.iter().take(8).cloned().collect::<Vec<_>>().join("; ")
    );
    if left.is_empty() { None } else { Some(Violation { invariant: "E-L1", what }) }
}

#[cfg(test)]
mod tests {
    use steadfast_proto::flaw::{Flaw, plant};

    use super::*;

    #[test]
    fn every_counter_is_exact_whatever_is_killed() {
        for seed in 1..=8 {
            let report = run(&Plan::default(), seed);
            assert_eq!((&report.violation, report.bytes_left), (&None, 0), "{report}");
            assert!(report.kills >= 30, "{report}");
        }
    }

    /// A message that leaves too early is not among them: these programs say the same again, under the same number.
    #[test]
    fn a_planted_bug_is_seen() {
        for flaw in [Flaw::ExchangeAckEarly, Flaw::ExchangeNoMark] {
            plant(Some(flaw));
            let found = (1..=20).find_map(|seed| run(&Plan::default(), seed).violation);
            plant(None);
            assert!(found.is_some(), "{flaw:?} makes no counter wrong");
        }
    }

    #[test]
    fn a_run_repeats_itself() {
        let plan = Plan { programs: 100, ..Plan::default() };
        assert_eq!(run(&plan, 7), run(&plan, 7));
    }
}
