//! `steadfast-sim`: runs seeds on the real core and says which broke an invariant.
//!
//! Prints the result on stdout, one line for all seeds or one block per failure; exits with 1 when one failed. See
//! `steadfast_sim::run` for what a seed does.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clap::Parser;
use steadfast_sim::episodes;
use steadfast_sim::run::{Options, Outcome, run};
use steadfast_sim::world::Counts;

/// How many of the first seeds run twice, to see that both runs are the same.
const TWICE: u64 = 20;

/// How many lines of a failure's trace are shown.
const LINES_SHOWN: usize = 60;

/// Runs the protocol cores in a simulated cluster with faults, and checks that its promises hold.
#[derive(Debug, Parser)]
#[command(
    name = "steadfast-sim",
    after_help = "Examples:\n  steadfast-sim --seeds 1000\n  steadfast-sim --seed 42 --trace\n  steadfast-sim --group 1000 --seed 1\n  steadfast-sim --ring --seeds 100000\n  steadfast-sim --verify --programs 1000000"
)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100, value_name = "K")]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1, value_name = "S")]
    from: u64,
    /// Runs this one seed only.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// How many nodes every world has; each seed's own choice of 3 to 9 without it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: Option<u8>,
    /// Prints what happens, one line each.
    #[arg(long)]
    trace: bool,
    /// Plants a known bug: ActOnOwnVerdict, SkipFence, DriftZero, TwoRows, ThawWithoutFreshLease or
    /// ViewWithoutBasis.
    #[arg(long, value_name = "NAME", value_parser = flaw)]
    flaw: Option<Flaw>,
    /// Runs a mirrored group instead, until so many of its members were replaced, under continuous writes and kills.
    #[arg(long, value_name = "K", conflicts_with_all = ["nodes", "trace", "flaw"])]
    group: Option<u32>,
    /// Runs a ring of durable programs instead, over every channel, mode and order in turn.
    #[arg(long, conflicts_with_all = ["nodes", "trace", "flaw", "group"])]
    ring: bool,
    /// Runs random programs over three layers of keyed instances instead, either node killed every 50 ms, and compares every
    /// counter with what it must be.
    #[arg(long, conflicts_with_all = ["nodes", "trace", "flaw", "group", "ring", "seeds"])]
    verify: bool,
    /// How many programs --verify runs, in as many worlds as it takes; with --seed, that world only.
    #[arg(long, default_value_t = 100_000, value_name = "N", requires = "verify")]
    programs: u64,
    /// How many seeds run at once.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
}

#[cfg(feature = "planted-flaws")]
type Flaw = steadfast_proto::flaw::Flaw;

/// Without the feature there is no flaw to plant.
#[cfg(not(feature = "planted-flaws"))]
type Flaw = std::convert::Infallible;

/// Prints one line for each seed of a mirrored group.
fn group(arguments: &Arguments, replacements: u32) -> ExitCode {
    let first = arguments.seed.unwrap_or(arguments.from);
    let count = if arguments.seed.is_some() { 1 } else { arguments.seeds };
    let plan = steadfast_sim::group::Plan { replacements, ..Default::default() };
    let mut is_sound = true;
    for seed in first..first.saturating_add(count) {
        let report = steadfast_sim::group::run(&plan, seed);
        println!("{report}");
        is_sound &= report.violation.is_none();
    }
    if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(replacements) = arguments.group {
        return group(&arguments, replacements);
    }
    if arguments.ring {
        return ring(&arguments);
    }
    if arguments.verify {
        return verify(&arguments);
    }
    if arguments.seed.is_some() { one(&arguments) } else { many(&arguments) }
}

/// Runs seeds `first..first + count`, several at once.
fn each(jobs: u8, first: u64, count: u64, run: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    run(first.saturating_add(index));
                }
            });
        }
    });
}

/// Prints one line for each world in which something was wrong, and one for all.
fn verify(arguments: &Arguments) -> ExitCode {
    let plan = episodes::verify::Plan::default();
    let first = arguments.seed.unwrap_or(arguments.from);
    let count = if arguments.seed.is_some() { 1 } else { arguments.programs.div_ceil(plan.programs) };
    let total = Mutex::new(episodes::verify::Total::default());
    each(arguments.jobs, first, count, |seed| {
        let report = episodes::verify::run(&plan, seed);
        if report.violation.is_some() {
            println!("{report}\n  repeat it: steadfast-sim --verify --seed {seed}");
        }
        total.lock().expect("no thread panics while it adds").add(&report);
    });
    let total = total.into_inner().expect("every thread has ended");
    println!("{total}");
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints one line for each seed that failed, and one for all.
fn ring(arguments: &Arguments) -> ExitCode {
    let first = arguments.seed.unwrap_or(arguments.from);
    let count = if arguments.seed.is_some() { 1 } else { arguments.seeds };
    let failed = AtomicU64::new(0);
    let [transfers, crashes, commits, bytes] = [const { AtomicU64::new(0) }; 4];
    each(arguments.jobs, first, count, |seed| {
        let report = episodes::ring::run(&episodes::ring::Plan::of(seed), seed);
        transfers.fetch_add(report.transfers, Ordering::Relaxed);
        crashes.fetch_add(report.crashes.into(), Ordering::Relaxed);
        commits.fetch_add(report.commits, Ordering::Relaxed);
        bytes.fetch_add(report.bytes_left as u64, Ordering::Relaxed);
        if report.violation.is_some() {
            failed.fetch_add(1, Ordering::Relaxed);
            println!("{report}\n  repeat it: steadfast-sim --ring --seed {seed}");
        }
    });
    let [transfers, crashes, commits, bytes] =
        [transfers, crashes, commits, bytes].map(AtomicU64::into_inner);
    println!(
        "{count} rings  {transfers} transfers  {crashes} crashes  {commits} commits  {bytes} bytes left  {} failed",
        failed.load(Ordering::Relaxed)
    );
    if failed.into_inner() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(arguments: &Arguments) -> ExitCode {
    plant(arguments.flaw);
    let outcome = run(options(arguments, arguments.seed.unwrap_or(1), arguments.trace));
    outcome.lines.iter().for_each(|line| println!("{line}"));
    println!("{outcome}");
    println!("{}", summary(1, &outcome.counts));
    if outcome.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn many(arguments: &Arguments) -> ExitCode {
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let total = Mutex::new((0u64, Counts::default()));
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                plant(arguments.flaw);
                while !failed.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= arguments.seeds {
                        return;
                    }
                    let outcome = checked(arguments, index);
                    if outcome.violation.is_some() {
                        failed.store(true, Ordering::Relaxed);
                        report(arguments, &outcome);
                    }
                    let mut total = total.lock().expect("no thread panics while it adds");
                    total.0 += 1;
                    total.1.add(&outcome.counts);
                }
            });
        }
    });
    let (seeds, counts) = total.into_inner().expect("every thread has ended");
    println!("{}", summary(seeds, &counts));
    if failed.into_inner() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs a seed; the first few twice.
fn checked(arguments: &Arguments, index: u64) -> Outcome {
    let seed = arguments.from.wrapping_add(index);
    let outcome = run(options(arguments, seed, false));
    if index < TWICE {
        let again = run(options(arguments, seed, false));
        assert_eq!(
            outcome.digest, again.digest,
            "two runs of seed {seed} differ: the world is not deterministic"
        );
    }
    outcome
}

fn report(arguments: &Arguments, outcome: &Outcome) {
    let traced = run(options(arguments, outcome.seed, true));
    let skipped = traced.lines.len().saturating_sub(LINES_SHOWN);
    let lines = traced.lines.iter().skip(skipped);
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    println!("{text}{outcome}");
}

fn options(arguments: &Arguments, seed: u64, trace: bool) -> Options {
    Options { seed, nodes: arguments.nodes.map(usize::from), trace }
}

fn summary(seeds: u64, counts: &Counts) -> String {
    format!(
        "{seeds} seeds  {} s simulated  {} events  {} faults  {} views  {} removals  {} recoveries  \
         {} checkpoints  {} freezes  {} lost  {} failed",
        counts.simulated_ns / 1_000_000_000,
        counts.events,
        counts.faults,
        counts.views,
        counts.removals,
        counts.recoveries,
        counts.checkpoints,
        counts.freezes,
        counts.lost,
        counts.failed,
    )
}

#[cfg(feature = "planted-flaws")]
fn plant(flaw: Option<Flaw>) {
    steadfast_proto::flaw::plant(flaw);
}

#[cfg(not(feature = "planted-flaws"))]
fn plant(_: Option<Flaw>) {}

#[cfg(feature = "planted-flaws")]
fn flaw(name: &str) -> Result<Flaw, String> {
    [
        Flaw::ActOnOwnVerdict,
        Flaw::SkipFence,
        Flaw::DriftZero,
        Flaw::TwoRows,
        Flaw::ThawWithoutFreshLease,
        Flaw::ViewWithoutBasis,
    ]
    .into_iter()
    .find(|flaw| format!("{flaw:?}") == name)
    .ok_or_else(|| format!("'{name}' is no flaw; see --help for the six"))
}

#[cfg(not(feature = "planted-flaws"))]
fn flaw(_: &str) -> Result<Flaw, String> {
    Err("this simulator was built without flaws: add `--features planted-flaws` to cargo run".to_owned())
}
