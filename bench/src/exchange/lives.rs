//! What is measured on a process of its own: calls of the system counted from outside, kills, memory, starts.
//!
//! [`nodes`] and [`store`] are those processes, started by the benchmark with a folder that outlives them. They speak the
//! words of [`super::program`], and `stop`.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use steadfast::episodes::{Carrier, Deployment, Embedded, Keeper, Known, Parts, Runner};
use steadfast_proto::episode::{Effect, Event, Mode, Next, Outcome, Program, Request, Settings, Task, Wait};
use steadfast_proto::exchange::{Frame, Message, Name};
use steadfast_proto::ids::{Incarnation, NodeId};

use super::BYTES;
use super::histogram::Histogram;
use super::nodes::{Folder, Pair, Served};
use super::program::Process;
use super::restate::Restate;
use crate::report::{Report, median};

const ROUNDS: usize = 5;
/// How long the chains run before a kill.
const BEFORE_KILL: Duration = Duration::from_secs(4);
const WAITING: u64 = 100_000;
const TIMERS: u64 = 1_000_000;
/// How many of the timers are due soon after a start, one each 100 us.
const DUE: u64 = 10_000;
/// When the first of them is due, after it was asked for.
const DUE_AFTER: Duration = Duration::from_secs(30);
/// How many requests are under way at once while instances are begun.
const REQUESTS: usize = 4_096;

/// A process with two nodes: goes on with what is in the folder, and begins so many chains in an empty one.
pub fn nodes(folder: &Path, chains: usize) -> anyhow::Result<()> {
    let is_new = !folder.join("one").is_dir();
    let pair = Pair::start(folder, Mode::Strict, &Served::Here)?;
    if is_new {
        pair.begin_chains(chains)?;
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "count" => println!("{}", pair.chain.hops()),
            "stop" => {
                pair.hold()?;
                println!("{}", pair.chain.hops());
                return pair.stop();
            }
            other => bail!("the nodes are asked for '{other}', which they do not know"),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn ourselves(words: &[&str], folder: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(words).arg(folder);
    Ok(command)
}

/// Forced writes of the kernel, by strace, for each exchange: the child's whole life, its start and its end included.
pub fn syncs(report: &mut Report) -> anyhow::Result<()> {
    for chains in [1, 64, 1_024] {
        let mut figures = Vec::new();
        for round in 1..=3 {
            let folder = Folder::new("syncs")?;
            let counted = folder.path().join("counted");
            let mut command = Command::new("strace");
            command
                .args([
                    "-f",
                    "-c",
                    "--seccomp-bpf",
                    "-U",
                    "calls,name",
                    "-e",
                    "trace=fdatasync,fsync,sync_file_range",
                ])
                .arg("-o")
                .arg(&counted)
                .arg(std::env::current_exe()?)
                .args(["exchange-nodes", &chains.to_string()])
                .arg(folder.path().join("nodes"));
            let mut nodes = Process::start(&mut command)?;
            std::thread::sleep(Duration::from_secs(8));
            let hops: u64 = nodes.ask("stop")?.parse()?;
            nodes.wait()?;
            let calls = calls(&std::fs::read_to_string(&counted)?);
            println!("{chains} chains, round {round}: {calls} forced writes for {hops} exchanges");
            figures.push(calls as f64 / hops as f64);
        }
        report.figure(&format!("exchange.syncs.n{chains}"), median(&figures), "syncs");
    }
    Ok(())
}

/// The total of a summary of strace.
fn calls(summary: &str) -> u64 {
    let total = summary.lines().rev().find(|line| line.ends_with("total"));
    total
        .and_then(|line| line.split_whitespace().next())
        .and_then(|word| word.parse().ok())
        .unwrap_or_default()
}

/// From kill -9 to the first new effect, with 64 chains, ours and Restate's in turn.
pub fn recovery(report: &mut Report) -> anyhow::Result<()> {
    let folder = Folder::new("recovery")?;
    let nodes = folder.path().join("nodes");
    let mut theirs = Restate::start()?;
    theirs.go(64)?;
    let mut running = Process::start(&mut ourselves(&["exchange-nodes", "64"], &nodes)?)?;
    let (mut ours_ms, mut theirs_ms) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        std::thread::sleep(BEFORE_KILL);
        let start = Instant::now();
        running.kill()?;
        running = Process::start(&mut ourselves(&["exchange-nodes", "64"], &nodes)?)?;
        while running.count()? == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
        let ours = start.elapsed();
        let bytes = folder.bytes()?;
        let took = theirs.recover()?;
        println!(
            "round {round}: ours {ours:.1?} with folders of {:.0} MiB, Restate {took:.1?} with {:.0} MiB",
            bytes as f64 / 1048576.0,
            theirs.folder_bytes()? as f64 / 1048576.0
        );
        ours_ms.push(ours.as_secs_f64() * 1e3);
        theirs_ms.push(took.as_secs_f64() * 1e3);
    }
    running.ask("stop")?;
    report.figure("exchange.recovery_ms", median(&ours_ms), "ms");
    report.figure("exchange.recovery_ms.restate", median(&theirs_ms), "ms");
    report.time_ratio("exchange.recovery.vs_restate", median(&ours_ms), median(&theirs_ms), "ms");
    Ok(())
}

/// The memory of a process with one keeper and nothing to do, beside Restate's server, both fresh.
pub fn idle(report: &mut Report) -> anyhow::Result<()> {
    let folder = Folder::new("idle")?;
    let ours =
        Process::start(&mut ourselves(&["exchange-store", "waiting", "0"], &folder.path().join("store"))?)?;
    let theirs = Restate::start()?;
    std::thread::sleep(Duration::from_secs(3));
    let (mine, his) = (rss_mib(ours.id())?, theirs.rss_mib()?);
    report.figure("exchange.idle_rss_mib", mine, "MiB");
    report.figure("exchange.idle_rss_mib.restate", his, "MiB");
    report.figure("exchange.idle_folder_mib", folder.bytes()? as f64 / 1048576.0, "MiB");
    report.figure("exchange.idle_folder_mib.restate", theirs.folder_bytes()? as f64 / 1048576.0, "MiB");
    Ok(())
}

/// How long a start takes with 100,000 instances that wait.
pub fn waiting(report: &mut Report) -> anyhow::Result<()> {
    let folder = Folder::new("waiting")?;
    let store = folder.path().join("store");
    let started = |count: u64| -> anyhow::Result<(Process, Duration)> {
        let start = Instant::now();
        let process =
            Process::start(&mut ourselves(&["exchange-store", "waiting", &count.to_string()], &store)?)?;
        Ok((process, start.elapsed()))
    };
    let (mut first, begun) = started(WAITING)?;
    first.ask("stop")?;
    first.wait()?;
    let (mut second, took) = started(WAITING)?;
    let (memory, bytes) = (rss_mib(second.id())?, folder.bytes()?);
    println!(
        "{WAITING} instances begun in {begun:.1?}; started with them in {took:.2?}, {memory:.0} MiB, folder of {bytes} bytes"
    );
    report.figure("exchange.start_100k_waiting_ms", took.as_secs_f64() * 1e3, "ms");
    report.figure("exchange.rss_100k_waiting_mib", memory, "MiB");
    second.ask("stop")?;
    Ok(())
}

/// A million pending timers: memory, the time to start with them, and that those that come due fire in order.
pub fn timers(report: &mut Report) -> anyhow::Result<()> {
    let folder = Folder::new("timers")?;
    let store = folder.path().join("store");
    let start = Instant::now();
    let mut first =
        Process::start(&mut ourselves(&["exchange-store", "timers", &TIMERS.to_string()], &store)?)?;
    println!("{TIMERS} timers armed in {:.1?}, {:.0} MiB", start.elapsed(), rss_mib(first.id())?);
    first.ask("stop")?;
    first.wait()?;
    let start = Instant::now();
    let mut second = Process::start(&mut ourselves(&["exchange-store", "timers", "0"], &store)?)?;
    let (took, memory, bytes) = (start.elapsed(), rss_mib(second.id())?, folder.bytes()?);
    println!(
        "started with them in {took:.2?}, {memory:.0} MiB, folder of {:.0} MiB",
        bytes as f64 / 1048576.0
    );
    while second.count()? < DUE {
        if start.elapsed() > 4 * DUE_AFTER {
            bail!("{} of {DUE} timers fired within {:?}", second.count()?, start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(Duration::from_millis(500));
    let (count, disorder) = (second.count()?, second.ask("disorder")?);
    let (p50, p99) = second.latency_us()?;
    println!(
        "{count} fired, {disorder} of them before one that was due earlier; late by {p50:.0} us (p50), {p99:.0} us (p99)"
    );
    report.figure("exchange.start_1m_timers_ms", took.as_secs_f64() * 1e3, "ms");
    report.figure("exchange.rss_1m_timers_mib", memory, "MiB");
    report.figure("exchange.timers_fired", count as f64, "of 10000");
    report.figure("exchange.timers_out_of_order", disorder.parse()?, "timers");
    report.figure("exchange.timer_late_p50_us", p50, "us");
    report.figure("exchange.timer_late_p99_us", p99, "us");
    second.ask("stop")?;
    Ok(())
}

/// Memory of a process, in MiB.
pub fn rss_mib(process: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("it has memory")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// To nobody: these instances speak to none.
struct Nowhere;

impl Carrier for Nowhere {
    fn send(&mut self, _: NodeId, _: Frame) {}

    fn keep(&mut self, _: &Name, _: Vec<Message>) {}

    fn carry_out(&mut self, _: Effect) {}
}

/// What fired.
#[derive(Debug)]
struct Fired {
    count: AtomicU64,
    disorder: AtomicU64,
    latest: AtomicU64,
    late: Histogram,
    /// Whether those that are begun now are due soon.
    soon: AtomicBool,
}

/// A process with one node and so many instances that wait for an event, or for a time.
pub fn store(kind: &str, count: u64, folder: &Path) -> anyhow::Result<()> {
    let fired = Arc::new(Fired {
        count: AtomicU64::new(0),
        disorder: AtomicU64::new(0),
        latest: AtomicU64::new(0),
        late: Histogram::new(),
        soon: AtomicBool::new(false),
    });
    let is_new = !folder.is_dir();
    let (of_run, has_timers) = (Arc::clone(&fired), kind == "timers");
    let run = move |task: &Task| Ok(wait(task, has_timers, &of_run));
    let deployment =
        Deployment { program: Program::default(), runners: [(1, Runner::Here(Arc::new(run)))].into() };
    let life = Incarnation(std::time::UNIX_EPOCH.elapsed()?.as_secs());
    let parts = Parts { me: NodeId(1), settings: Settings::default(), carrier: Box::new(Nowhere), life };
    let known = Known {
        homes: vec![NodeId(1)],
        programs: [("waiter".into(), deployment)].into(),
        ..Known::default()
    };
    let keeper = Keeper::start(Embedded::open(folder, 7)?, parts, known)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    if is_new {
        let due = if has_timers { DUE.min(count) } else { 0 };
        runtime.block_on(begin(&keeper, due, count))?;
        fired.soon.store(true, Ordering::Relaxed);
        runtime.block_on(begin(&keeper, 0, due))?;
    }
    // Whoever starts it counts it as started when it has answered.
    let instances = runtime.block_on(keeper.look(|episodes| episodes.instances().count()))?;
    println!("ready {instances}");
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "count" => println!("{}", fired.count.load(Ordering::Relaxed)),
            "disorder" => println!("{}", fired.disorder.load(Ordering::Relaxed)),
            "latency" => {
                let (p50, p99) = fired.late.p50_p99_us();
                println!("{p50} {p99}");
            }
            "stop" => {
                keeper.stop()?;
                println!("stopped");
                return Ok(());
            }
            other => bail!("the store is asked for '{other}', which it does not know"),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

async fn begin(keeper: &Keeper, from: u64, to: u64) -> anyhow::Result<()> {
    let mut begun = tokio::task::JoinSet::new();
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            for number in from..to {
                let name = Name::parse(&format!("waiter/{number}"))?;
                let payload = number.to_le_bytes().as_slice().into();
                let keeper = keeper.clone();
                let start = Request::Start { name, payload, key: None, wait: false };
                begun.spawn_local(async move { keeper.ask(start).await });
                if begun.len() >= REQUESTS {
                    while let Some(one) = begun.join_next().await {
                        one???;
                    }
                }
            }
            while let Some(one) = begun.join_next().await {
                one???;
            }
            Ok(())
        })
        .await
}

/// Waits for an event, or for a time that is far or soon; what fires says how late it is.
fn wait(task: &Task, has_timers: bool, fired: &Fired) -> Outcome {
    let number = task.event.payload.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let mut state = vec![0; BYTES];
    let mut next = Wait::for_kind("hop");
    if &*task.event.kind == Event::START && has_timers {
        let is_soon = fired.soon.load(Ordering::Relaxed);
        let after = if is_soon {
            DUE_AFTER + Duration::from_micros(100) * u32::try_from(number).unwrap_or(0)
        } else {
            Duration::from_secs(86_400)
        };
        let due = task.now + after;
        state[..8].copy_from_slice(&due.as_nanos().to_le_bytes());
        next.deadline = Some(due);
    } else if &*task.event.kind == Event::TIMER {
        let due = task.state.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        fired.late.add(task.now.as_nanos().saturating_sub(due));
        if fired.latest.fetch_max(due, Ordering::Relaxed) > due {
            fired.disorder.fetch_add(1, Ordering::Relaxed);
        }
        fired.count.fetch_add(1, Ordering::Relaxed);
    }
    Outcome { state: state.into(), messages: Vec::new(), answer: None, next: Next::Wait(next) }
}
