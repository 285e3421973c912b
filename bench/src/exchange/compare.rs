//! Chains of exchanges, in process and out of process, beside Restate's one-way sends and what the disk can do, round by round.

use std::process::Command;
use std::time::{Duration, Instant};

use steadfast_proto::episode::Mode;

use super::nodes::{Folder, Pair, Served};
use super::program::Process;
use super::restate::Restate;
use super::syncs_per_second;
use crate::report::{Report, median};

const ROUNDS: usize = 5;
/// How long one round of one contender warms up, and how long it is measured.
const WARM: Duration = Duration::from_secs(1);
const ROUND: Duration = Duration::from_millis(1_500);
const CHAINS: [usize; 4] = [1, 16, 64, 1_024];
/// Callers of the hot instance.
const CALLERS: usize = 64;
/// The goals, as the ratios' names say them, are for this many chains.
const MANY: usize = 1_024;

/// What one contender did in one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    per_s: f64,
    p50_us: f64,
    p99_us: f64,
    /// Commits of the logs for each exchange, by our own count.
    commits: f64,
}

/// All rounds of one contender at one number of chains.
#[derive(Debug, Default)]
struct Rounds(Vec<Round>);

impl Rounds {
    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(&self.0.iter().map(of).collect::<Vec<_>>())
    }

    fn add(&mut self, name: &str, chains: usize, round: Round) {
        let Round { per_s, p50_us, p99_us, commits } = round;
        println!(
            "{chains} chains, {name}: {per_s:.0} exchanges/s, p50 {p50_us:.0} us, p99 {p99_us:.0} us, {commits:.4} commits each"
        );
        self.0.push(round);
    }

    fn report(&self, name: &str, chains: usize, report: &mut Report) {
        report.figure(
            &format!("exchange.{name}.per_s.n{chains}"),
            self.median(|round| round.per_s),
            "exchanges/s",
        );
        report.figure(&format!("exchange.{name}.p50_us.n{chains}"), self.median(|round| round.p50_us), "us");
        report.figure(&format!("exchange.{name}.p99_us.n{chains}"), self.median(|round| round.p99_us), "us");
    }
}

/// Ours alone, in process.
pub fn in_process(report: &mut Report) -> anyhow::Result<()> {
    for chains in CHAINS {
        let (mut strict, mut pipelined, mut limits) = (Rounds::default(), Rounds::default(), Vec::new());
        for _ in 0..ROUNDS {
            limits.push(syncs_per_second()?);
            strict.add("strict", chains, ours(chains, Mode::Strict)?);
            pipelined.add("pipelined", chains, ours(chains, Mode::Pipelined)?);
        }
        against_the_disk(report, chains, &strict, &limits);
        strict.report("inproc", chains, report);
        pipelined.report("pipelined", chains, report);
    }
    Ok(())
}

/// Ours alone, out of process.
pub fn out_of_process(report: &mut Report) -> anyhow::Result<()> {
    for chains in CHAINS {
        let mut rounds = Rounds::default();
        for _ in 0..ROUNDS {
            rounds.add("out of process", chains, theirs_of_ours(chains)?);
        }
        rounds.report("outproc", chains, report);
    }
    Ok(())
}

/// All, in turn.
pub fn with_restate(report: &mut Report) -> anyhow::Result<()> {
    println!(
        "Restate {} with its default settings; its service with the Rust SDK in another process",
        Restate::version()
    );
    let mut peer = Restate::start()?;
    for chains in CHAINS {
        let mut all = [Rounds::default(), Rounds::default(), Rounds::default(), Rounds::default()];
        let mut limits = Vec::new();
        for round in 1..=ROUNDS {
            let limit = syncs_per_second()?;
            println!("round {round}: the disk {limit:.0} syncs/s");
            limits.push(limit);
            all[0].add("strict", chains, ours(chains, Mode::Strict)?);
            all[1].add("pipelined", chains, ours(chains, Mode::Pipelined)?);
            all[2].add("out of process", chains, theirs_of_ours(chains)?);
            all[3].add("Restate", chains, restate(&mut peer, chains)?);
        }
        let [strict, pipelined, outside, theirs] = &all;
        against_the_disk(report, chains, strict, &limits);
        for (name, rounds) in
            [("inproc", strict), ("pipelined", pipelined), ("outproc", outside), ("restate", theirs)]
        {
            rounds.report(name, chains, report);
        }
        let rate = |rounds: &Rounds| rounds.median(|round| round.per_s);
        for (name, rounds) in [("inproc", strict), ("outproc", outside)] {
            report.rate_ratio(
                &format!("exchange.{name}.n{chains}.vs_restate"),
                rate(rounds),
                rate(theirs),
                "1/s",
            );
        }
        if chains == 1 {
            report.rate_ratio("exchange.serial.vs_restate", rate(strict), rate(theirs), "1/s");
        }
        if chains == MANY {
            report.rate_ratio("exchange.inproc.vs_restate", rate(strict), rate(theirs), "1/s");
            report.rate_ratio("exchange.outproc.vs_restate", rate(outside), rate(theirs), "1/s");
        }
    }
    hot(report, &mut peer)?;
    report.figure("exchange.rss_after_mib.restate", peer.rss_mib()?, "MiB");
    Ok(())
}

/// One hot instance, and the same callers with one each.
fn hot(report: &mut Report, peer: &mut Restate) -> anyhow::Result<()> {
    let (mut hot, mut many, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        many.push(ours(CALLERS, Mode::Strict)?.per_s);
        hot.push(measured(Mode::Strict, |pair| pair.begin_callers(CALLERS))?.per_s);
        theirs.push(peer.hot_per_s(CALLERS, ROUND)?);
        println!(
            "round {round}: {:.0}/s to one instance, {:.0}/s to many, Restate {:.0}/s to one",
            hot[round - 1],
            many[round - 1],
            theirs[round - 1]
        );
    }
    report.rate_ratio("exchange.hot.vs_many", median(&hot), median(&many), "1/s");
    report.rate_ratio("exchange.hot.vs_restate", median(&hot), median(&theirs), "1/s");
    Ok(())
}

fn against_the_disk(report: &mut Report, chains: usize, rounds: &Rounds, limits: &[f64]) {
    let limit = median(limits);
    let rate = rounds.median(|round| round.per_s);
    report.rate_ratio(&format!("exchange.group.vs_fsync.n{chains}"), rate, limit, "1/s");
    if chains == MANY {
        report.rate_ratio("exchange.group.vs_fsync", rate, limit, "1/s");
    }
    // How often the time of one forced write goes into that of one exchange: 2 would be two writes and nothing else.
    let p50 = rounds.median(|round| round.p50_us);
    report.figure(&format!("exchange.inproc.p50_in_syncs.n{chains}"), p50 * limit / 1e6, "syncs");
}

fn ours(chains: usize, mode: Mode) -> anyhow::Result<Round> {
    measured(mode, |pair| pair.begin_chains(chains))
}

fn measured(mode: Mode, begin: impl FnOnce(&Pair) -> anyhow::Result<()>) -> anyhow::Result<Round> {
    let folder = Folder::new("nodes")?;
    let pair = Pair::start(folder.path(), mode, &Served::Here)?;
    begin(&pair)?;
    std::thread::sleep(WARM);
    pair.chain.latencies().clear();
    let (hops, commits, start) = (pair.chain.hops(), pair.commits(), Instant::now());
    std::thread::sleep(ROUND);
    let (hops, commits) = ((pair.chain.hops() - hops) as f64, (pair.commits() - commits) as f64);
    let per_s = hops / start.elapsed().as_secs_f64();
    let (p50_us, p99_us) = pair.chain.latencies().p50_p99_us();
    pair.stop()?;
    Ok(Round { per_s, p50_us, p99_us, commits: commits / hops })
}

/// Our nodes, with the program in another process.
fn theirs_of_ours(chains: usize) -> anyhow::Result<Round> {
    let folder = Folder::new("nodes")?;
    let socket = folder.path().join("program");
    let mut program =
        Process::start(Command::new(std::env::current_exe()?).arg("exchange-program").arg(&socket))?;
    let url = format!("unix:{}", socket.display());
    let pair = Pair::start(folder.path(), Mode::Strict, &Served::Http(url))?;
    pair.begin_chains(chains)?;
    std::thread::sleep(WARM);
    program.latency_us()?;
    let (hops, commits, start) = (program.count()?, pair.commits(), Instant::now());
    std::thread::sleep(ROUND);
    let (hops, commits) = ((program.count()? - hops) as f64, (pair.commits() - commits) as f64);
    let per_s = hops / start.elapsed().as_secs_f64();
    let (p50_us, p99_us) = program.latency_us()?;
    program.ask("hold")?;
    pair.stop()?;
    Ok(Round { per_s, p50_us, p99_us, commits: commits / hops })
}

fn restate(peer: &mut Restate, chains: usize) -> anyhow::Result<Round> {
    peer.go(chains)?;
    std::thread::sleep(WARM);
    peer.service.latency_us()?;
    let (hops, start) = (peer.service.count()?, Instant::now());
    std::thread::sleep(ROUND);
    let per_s = (peer.service.count()? - hops) as f64 / start.elapsed().as_secs_f64();
    let (p50_us, p99_us) = peer.service.latency_us()?;
    peer.hold()?;
    Ok(Round { per_s, p50_us, p99_us, commits: f64::NAN })
}
