//! A ring of four instances that pass on a part of what they have (PROTOCOLS 2.9).
//!
//! Nothing may be lost or doubled: the sum is conserved, each transfer is applied once, and when all is quiet nobody
//! remembers any message.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use oorandom::Rand64;
use steadfast_proto::episode::{
    Event, Mode, Next, Order, Outcome, Outgoing, Program, Request, Settings, Task, Wait,
};
use steadfast_proto::exchange::{Blob, Name};
use steadfast_proto::ids::NodeId;

use super::check::{self, Violation};
use super::kit::pick;
use super::{Channel, Move, World};

const INSTANCES: u64 = 4;
const BALANCE: u64 = 1_000;
/// After so many deadlines without quiet something never ends.
const TICKS_MAX: usize = 2_000;

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many nodes there are.
    pub nodes: u128,
    /// How often the first transfer of each instance is passed on.
    pub hops: u64,
    /// What carries the messages.
    pub channel: Channel,
    /// When the next episode may begin.
    pub mode: Mode,
    /// What must be durable first.
    pub order: Order,
    /// How many faults there are at most.
    pub faults: u32,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { nodes: 2, hops: 5, channel: Channel::Bag, mode: Mode::Strict, order: Order::Lean, faults: 12 }
    }
}

impl Plan {
    /// One of all the combinations, by the seed.
    pub fn of(seed: u64) -> Plan {
        let choose = |divisor: u64, count: u64| seed / divisor % count;
        Plan {
            nodes: [2, 3, 4][usize::try_from(choose(12, 3)).unwrap_or_default()],
            channel: [Channel::Bag, Channel::Fenced, Channel::Fifo]
                [usize::try_from(choose(4, 3)).unwrap_or_default()],
            mode: if choose(2, 2) == 0 { Mode::Strict } else { Mode::Pipelined },
            order: if choose(1, 2) == 0 { Order::Lean } else { Order::Full },
            ..Plan::default()
        }
    }
}

/// What became of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it was made of.
    pub seed: u64,
    /// The first thing that was not as it must be.
    pub violation: Option<Violation>,
    /// How many transfers there were.
    pub transfers: u64,
    /// How many crashes.
    pub crashes: u32,
    /// How often something became durable.
    pub commits: u64,
    /// How many bytes are kept for messages at the end.
    pub bytes_left: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { seed, transfers, crashes, commits, bytes_left, .. } = self;
        write!(
            f,
            "seed {seed}: {transfers} transfers, {crashes} crashes, {commits} commits, {bytes_left} bytes left"
        )?;
        match &self.violation {
            Some(violation) => write!(f, ": {violation}"),
            None => Ok(()),
        }
    }
}

/// One random run.
pub fn run(plan: &Plan, seed: u64) -> Report {
    let mut random = Rand64::new(u128::from(seed));
    let mut world = begin(plan);
    let (mut faults, mut crashes) = (plan.faults, 0);
    while world.violation.is_none() {
        let moves = world.moves();
        let is_faulty = faults > 0 && random.rand_range(0..8) == 0;
        let action = if is_faulty {
            faults -= 1;
            fault(&world, plan, &mut random)
        } else if moves.is_empty() {
            break;
        } else {
            Some(moves[pick(&mut random, moves.len())])
        };
        let Some(action) = action else { continue };
        crashes += u32::from(matches!(action, Move::Crash(..)));
        world.apply(action);
    }
    finish(world, seed, crashes)
}

/// The same run again and again, with a crash at each commit in turn: before it, in the middle of it, and right after it.
/// Gives the reports of all.
pub fn crash_at_every_commit(plan: &Plan) -> Vec<Report> {
    let whole = scripted(plan, None);
    let mut reports = Vec::new();
    for at in 0..whole.commits {
        for kept in [0, 1, usize::MAX] {
            reports.push(scripted(plan, Some((at, kept))));
        }
    }
    reports.push(whole);
    reports
}

/// The run that takes the first possible move each time; the node that commits for the `at`-th time crashes, with so many of
/// the records kept.
fn scripted(plan: &Plan, crash: Option<(u64, usize)>) -> Report {
    let (world, crashes) = walk(plan, crash);
    finish(world, crash.map_or(0, |(at, _)| at), crashes)
}

/// The same up to where nothing goes on but by a timer.
fn walk(plan: &Plan, crash: Option<(u64, usize)>) -> (World, u32) {
    let mut world = begin(plan);
    let mut crashes = 0;
    while let Some(action) = world.moves().first().copied() {
        if let (Move::Sync(node), Some((at, kept))) = (action, crash)
            && world.commits == at
            && crashes == 0
        {
            crashes = 1;
            world.apply(Move::Crash(node, kept.min(world.at_risk(node))));
        } else {
            world.apply(action);
        }
        if world.violation.is_some() {
            break;
        }
    }
    (world, crashes)
}

fn begin(plan: &Plan) -> World {
    let program = Program { mode: plan.mode, ..Program::default() };
    let programs = BTreeMap::from([("ring".to_owned(), (program, Arc::new(episode) as super::Run))]);
    let settings = Settings { order: plan.order, ..Settings::default() };
    let mut world = World::new(plan.nodes, plan.channel, settings, programs);
    for index in 0..INSTANCES {
        let payload = words(&[BALANCE, plan.hops]);
        world.request(index, Request::Start { name: name(index), payload, key: None, wait: false });
    }
    // All have begun for good before anything is said, or a message would find nobody.
    (1..=plan.nodes).for_each(|node| world.apply(Move::Sync(NodeId(node))));
    world
}

fn name(index: u64) -> Name {
    Name::parse(&format!("ring/{}", index % INSTANCES)).expect("it is a name")
}

pub(super) fn words(words: &[u64]) -> Blob {
    words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>().into()
}

pub(super) fn word(bytes: &[u8], index: usize) -> u64 {
    let bytes = bytes.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

/// Takes what has come, and passes on a part of all there is.
fn episode(task: &Task) -> Result<Outcome, steadfast_proto::episode::Failure> {
    let is_start = &*task.event.kind == Event::START;
    let (come, hops) = (word(&task.event.payload, 0), word(&task.event.payload, 1));
    let (mut balance, applied) = (word(&task.state, 0) + come, word(&task.state, 1) + u64::from(!is_start));
    let mut messages = Vec::new();
    if hops > 0 {
        let index: u64 = task.name.key().parse().unwrap_or_default();
        // Which way and how much depends on what the instance has been through: a random walk that repeats itself.
        let chance = balance.wrapping_mul(0x9E37_79B9).wrapping_add(applied) >> 3;
        let amount = balance / (2 + chance % 3);
        balance -= amount;
        let to = name(index + if chance % 2 == 0 { 1 } else { INSTANCES - 1 });
        let payload = words(&[amount, hops - 1]);
        let kind = "transfer".into();
        messages.push(Outgoing { to, kind, correlation: None, payload, begins: false, within: None });
    }
    let next = Next::Wait(Wait::for_kind("transfer"));
    Ok(Outcome { state: words(&[balance, applied]), messages, answer: None, next })
}

fn fault(world: &World, plan: &Plan, random: &mut Rand64) -> Option<Move> {
    let node = NodeId(u128::from(random.rand_range(0..u64::try_from(plan.nodes).unwrap_or(1))) + 1);
    let flying = world.in_flight();
    match random.rand_range(0..6) {
        0 | 1 => Some(Move::Crash(node, pick(random, world.at_risk(node) + 1))),
        2 if flying > 0 => Some(Move::Lose(pick(random, flying))),
        3 if flying > 0 && world.has_copies() => Some(Move::Copy(pick(random, flying))),
        4 => Some(Move::Tick(node)),
        _ => None,
    }
}

fn finish(mut world: World, seed: u64, crashes: u32) -> Report {
    let is_quiet = world.violation.is_some() || world.settle(TICKS_MAX);
    let mut violation = world.violation.take();
    let mut transfers = 0;
    if violation.is_none() {
        let what = || format!("{} bytes of messages are left", world.bytes_of_messages());
        match check::delivered(world.nodes.values().map(|node| node.log.as_slice())) {
            _ if !is_quiet || !world.is_quiet() => {
                violation = Some(Violation { invariant: "E-L1", what: what() })
            }
            Err(wrong) => violation = Some(wrong),
            Ok(count) => transfers = count,
        }
        violation = violation.or_else(|| sums(&world, transfers).err());
    }
    let bytes_left = world.bytes_of_messages();
    Report { seed, violation, transfers, crashes, commits: world.commits, bytes_left }
}

/// All together have what they began with, and every transfer was applied.
fn sums(world: &World, transfers: u64) -> Result<(), Violation> {
    let instances = || world.nodes.values().flat_map(|node| node.episodes.instances());
    let total: u64 = instances().map(|instance| word(&instance.state, 0)).sum();
    let applied: u64 = instances().map(|instance| word(&instance.state, 1)).sum();
    if total != INSTANCES * BALANCE || applied != transfers {
        let what = format!("all have {total}, and {applied} of {transfers} transfers were applied");
        return Err(Violation { invariant: "E-S3", what });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut check: impl FnMut(Plan)) {
        for channel in [Channel::Bag, Channel::Fenced, Channel::Fifo] {
            for mode in [Mode::Strict, Mode::Pipelined] {
                for order in [Order::Lean, Order::Full] {
                    check(Plan { channel, mode, order, ..Plan::default() });
                }
            }
        }
    }

    #[test]
    fn a_crash_at_any_commit_loses_and_doubles_nothing() {
        all(|plan| {
            let reports = crash_at_every_commit(&plan);
            assert!(reports.len() > 40, "the run has {} commits", reports.len() / 3);
            for report in reports {
                assert_eq!((&report.violation, report.bytes_left), (&None, 0), "{plan:?} {report}");
            }
        });
    }

    /// The words of the first moment after a crash are fenced off, since nobody knows of the new life yet; they have to be said
    /// again as soon as that is known, and not only when some timer rings.
    #[test]
    fn after_a_crash_everything_goes_on_without_waiting_for_a_timer() {
        for channel in [Channel::Fenced, Channel::Fifo] {
            for mode in [Mode::Strict, Mode::Pipelined] {
                let plan = Plan { channel, mode, ..Plan::default() };
                for at in 0..walk(&plan, None).0.commits {
                    for kept in [0, 1, usize::MAX] {
                        let (world, _) = walk(&plan, Some((at, kept)));
                        assert_eq!(world.violation, None, "{plan:?}, commit {at}, {kept} kept");
                        assert!(world.is_quiet(), "{plan:?}, commit {at}, {kept} kept: {:?}", world.nodes);
                    }
                }
            }
        }
    }

    #[test]
    fn random_faults_lose_and_double_nothing() {
        all(|plan| {
            for nodes in [2, 3] {
                for seed in 0..100 {
                    let report = run(&Plan { nodes, ..plan }, seed);
                    assert_eq!((&report.violation, report.bytes_left), (&None, 0), "{plan:?} {report}");
                }
            }
        });
    }

    #[test]
    fn a_run_repeats_itself() {
        assert_eq!(run(&Plan::default(), 7), run(&Plan::default(), 7));
    }
}
