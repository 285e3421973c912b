//! `steadfast simulate`: the real failure detectors against a described network.
//!
//! Runs in this process, without an agent: [`steadfast_sim::detection`] is the world. This file has the arguments and
//! runs the trials; `settings` reads the plan, `summary` says what came of it, `plot` draws it. Never decides what is
//! a failure: the core does, and the world knows the truth.

mod plot;
mod settings;
mod summary;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use steadfast_sim::detection::{Plan, PlanError, Report, World};

use super::Context;
use crate::codes::Code;
use crate::config::source::{self, Given, Problems};
use crate::failure::{Failure, disk};
use settings::{Raw, Request};
use summary::Summary;

/// Simulate failure detection in a described network
///
/// The detectors are the agent's own; networks, clocks, kernels and faults are made up, from one seed. Says how long it
/// takes until the first, half, and all of the other nodes know of each fault by a verdict of their own, what was said
/// of nodes that were well, who was removed, and what it costs. The same seed gives the same run.
///
/// A fault is KIND@TIME[:ARG,...]; ARG is the number of a node (from 0) or KEY=VALUE. Kinds: crash, silent (machine
/// dies), stall, leave, restart, isolate, deaf, mute, one-way, cut-link, unplug, cut-network, loss, delay, stutter,
/// split. Keys: count, network, for, loss, delay, on, off. Whom a fault does not name is drawn from the seed.
///
/// A FILE has the same keys as the flags (`faults` is a list), and may describe each network by itself:
/// `[[network]]` with delay, jitter, loss and burst.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast simulate --fault silent@5s\n  steadfast simulate --nodes 1000 --fault silent@5s:count=10 --trials 20\n  steadfast simulate --nodes 10000 --fault silent@10s -o json | jq .silent.p99_ms\n  steadfast simulate --networks 2 --fault cut-network@5s:network=0 --trace\n  steadfast simulate --loss 25% --fault stall@20s:3,for=8s --duration 60s\n  steadfast simulate --delay 1ms --fault delay@20s:delay=120ms+-30ms,for=60s --fault silent@60s --duration 2m\n  steadfast simulate wan.toml --nodes 4096 --plot wan.svg"
)]
pub struct Args {
    /// A TOML file with the same keys; flags stand above it
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// How many nodes [default: 16]
    #[arg(long, value_name = "N")]
    nodes: Option<String>,
    /// How many independent networks, all alike [default: 1]
    #[arg(long, value_name = "K")]
    networks: Option<String>,
    /// How often each node beats [default: 100ms]
    #[arg(long, value_name = "TIME")]
    interval: Option<String>,
    /// Which rule suspects: gossip, relative, timeout [default: gossip]
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// How delays are averaged: source, smooth [default: source]
    #[arg(long, value_name = "NAME")]
    statistics: Option<String>,
    /// How long a datagram takes: 1ms, 1ms..5ms (uniform), 120ms+-30ms (normal), 1ms~2ms (with a tail of that mean)
    /// [default: 100us~50us]
    #[arg(long, value_name = "DELAY")]
    delay: Option<String>,
    /// The deviation of a delay that is one time
    #[arg(long, value_name = "TIME")]
    jitter: Option<String>,
    /// The share of datagrams lost at random, such as 10% [default: 0%]
    #[arg(long, value_name = "SHARE")]
    loss: Option<String>,
    /// Losses in bursts on each link: how long they last and how often they come, such as 300ms/10s
    #[arg(long, value_name = "LENGTH/EVERY")]
    burst: Option<String>,
    /// What goes wrong: KIND@TIME[:ARG,...]; may be repeated
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<String>,
    /// How many runs, each with the next seed [default: 1]
    #[arg(long, value_name = "T")]
    trials: Option<String>,
    /// The seed of the first run [default: drawn, and said]
    #[arg(long, value_name = "S")]
    seed: Option<String>,
    /// How long each run lasts [default: 5s after the last fault, 15s at least]
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,
    /// Compare with a plain time-out of this length that hears the same heartbeats
    #[arg(long, value_name = "TIME")]
    plain: Option<String>,
    /// Draw quantiles and cost over the number of nodes, from 8 to --nodes, into this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print what each node says, as it says it
    #[arg(long)]
    trace: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let request = request(args)?;
    let mut progress = context.output.progress(&request.words());
    let outcome = match &args.plot {
        Some(path) => {
            let rows = plot::rows(&request, |what| progress.step(what))?;
            let picture = plot::draw(&rows, &request)?;
            std::fs::write(path, picture).map_err(|error| disk("write", path, &error))?;
            rows.into_iter().next_back().map(|row| row.summary)
        }
        None => Some(Summary::of(&request, &trials(&request)?)),
    };
    drop(progress);
    let Some(summary) = outcome else { return Ok(()) };
    context.output.data(&summary, Summary::text);
    context.output.say(&format!("again: {}", summary.again()));
    Ok(())
}

/// Everything that was asked for, checked.
fn request(args: &Args) -> Result<Request, Failure> {
    let (name, text) = match &args.file {
        Some(path) => (path.display().to_string(), source::read(path, Code::PlanInvalid)?),
        None => (String::new(), String::new()),
    };
    let mut problems = Problems::new(name, text.clone());
    let raw = Raw::read(&text, &mut problems).overlaid_by(flags(args));
    let request = raw.check(&mut problems);
    if let (Some(path), true) = (&args.plot, problems_are_none(&request)) {
        check_plot(path, &mut problems);
    }
    problems.finish(Code::PlanInvalid)?;
    let mut request = request
        .ok_or_else(|| Failure::new(Code::Internal, "the plan can't be used, and no reason was found"))?;
    request.file = args.file.clone();
    request.plan.trace = args.trace;
    request.plan.check().map_err(|error| refusal(&error))?;
    Ok(request)
}

fn problems_are_none(request: &Option<Request>) -> bool {
    request.is_some()
}

fn check_plot(path: &Path, problems: &mut Problems) {
    if path.extension().is_none_or(|extension| extension != "svg") {
        let given = Given::flag("--plot", path.display().to_string());
        problems.refuse(&given, format!("{:?} is not an SVG file; end it with \".svg\"", path.display()));
    }
}

fn refusal(error: &PlanError) -> Failure {
    Failure::new(Code::PlanInvalid, error.to_string())
}

fn flags(args: &Args) -> Raw {
    let flag = |name: &'static str, text: &Option<String>| text.clone().map(|text| Given::flag(name, text));
    Raw {
        nodes: flag("--nodes", &args.nodes),
        networks: flag("--networks", &args.networks),
        interval: flag("--interval", &args.interval),
        profile: flag("--profile", &args.profile),
        statistics: flag("--statistics", &args.statistics),
        link: settings::RawNetwork {
            delay: flag("--delay", &args.delay),
            jitter: flag("--jitter", &args.jitter),
            loss: flag("--loss", &args.loss),
            burst: flag("--burst", &args.burst),
        },
        each: Vec::new(),
        faults: args.faults.iter().map(|text| Given::flag("--fault", text)).collect(),
        trials: flag("--trials", &args.trials),
        seed: flag("--seed", &args.seed),
        duration: flag("--duration", &args.duration),
        plain: flag("--plain", &args.plain),
    }
}

/// Runs every trial of a request, on as many processors as there are; the order of the reports is that of the seeds.
fn trials(request: &Request) -> Result<Vec<Report>, Failure> {
    let next = AtomicU64::new(0);
    let done: Mutex<Vec<(u64, Result<Report, PlanError>)>> = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        loop {
            let trial = next.fetch_add(1, Ordering::Relaxed);
            if trial >= u64::from(request.trials) {
                return;
            }
            let report = trial_of(&request.plan, request.seed.wrapping_add(trial));
            done.lock().unwrap_or_else(PoisonError::into_inner).push((trial, report));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers.min(request.trials as usize) {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(trial, _)| *trial);
    done.into_iter().map(|(_, report)| report.map_err(|error| refusal(&error))).collect()
}

fn trial_of(plan: &Plan, seed: u64) -> Result<Report, PlanError> {
    Ok(World::new(plan, seed)?.run())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn asked(words: &[&str]) -> Result<Request, Failure> {
        let line = Line::parse_from(["simulate"].iter().chain(words));
        request(&line.args)
    }

    #[test]
    fn the_same_seed_gives_the_same_figures() {
        let words = ["--nodes", "12", "--fault", "silent@3s", "--seed", "7", "--trials", "3"];
        let request = asked(&words).unwrap();
        let text = |summary: Summary| serde_json::to_string(&summary).unwrap();
        let once = text(Summary::of(&request, &trials(&request).unwrap()));
        let again = text(Summary::of(&request, &trials(&request).unwrap()));
        assert_eq!(once, again);
        let value: serde_json::Value = serde_json::from_str(&once).unwrap();
        assert!(value["silent"]["p99_ms"].as_f64().unwrap() < 1_000.0, "{once}");
        assert_eq!(value["wrong"]["verdicts"], 0, "{once}");
    }

    #[test]
    fn nonsense_is_refused_with_what_would_be_right() {
        let refusal = |words: &[&str]| asked(words).unwrap_err().message;
        assert!(refusal(&["--nodes", "1"]).contains("between 2 and"));
        assert!(refusal(&["--networks", "0"]).contains("from 1 to 8"));
        assert!(refusal(&["--fault", "crush@1s"]).contains("did you mean \"crash\"?"));
        assert!(refusal(&["--fault", "crash@1s:cuont=2"]).contains("did you mean \"count\"?"));
        assert!(refusal(&["--fault", "crash@20s", "--duration", "10s"]).contains("--duration"));
        assert!(refusal(&["--profile", "gosip"]).contains("did you mean \"gossip\"?"));
        assert!(refusal(&["--plain", "50ms"]).contains("shorter than the time-out"));
        assert!(refusal(&["--loss", "130%"]).contains("10%"));
        assert!(refusal(&["--plot", "a.png"]).contains(".svg"));
        assert!(refusal(&["--delay", "5ms..1ms"]).contains("ends before it begins"));
    }

    #[test]
    fn a_file_has_the_same_keys_and_unknown_ones_get_the_nearest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.toml");
        let path_text = path.to_str().unwrap();
        std::fs::write(&path, settings::EXAMPLE).unwrap();
        let request = asked(&[path_text, "--nodes", "5"]).unwrap();
        assert_eq!((request.plan.nodes, request.plan.networks.len()), (5, 2));
        assert_eq!(request.plan.faults.len(), 2);
        std::fs::write(&path, "nodse = 5\n[[network]]\ndeley = \"1ms\"\n").unwrap();
        let message = asked(&[path_text]).unwrap_err().message;
        assert!(message.contains("plan.toml:1: nodse: unknown key; did you mean \"nodes\"?"), "{message}");
        assert!(message.contains("did you mean \"delay\"?"), "{message}");
    }
}
