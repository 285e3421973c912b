//! What an agent costs when nothing happens: three nodes on two networks, no containers.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;
use steadfast_cli::bed::Bed;

use crate::report::{Report, median};
use crate::steadfast;

const SETTLE: Duration = Duration::from_secs(5);
const WATCH: Duration = Duration::from_secs(20);

/// Measures resident memory and processor time of each agent, and takes the median of the three.
pub fn measure(report: &mut Report) -> anyhow::Result<()> {
    println!("idle: three agents, {} s", WATCH.as_secs());
    let bed = Bed::builder(steadfast()?).hosts(3).networks(2).build()?;
    bed.init_cluster("bench")?;
    std::thread::sleep(SETTLE);
    let agents: Vec<u32> = bed.hosts().iter().filter_map(|host| host.agent_pid()).collect();
    let before = agents.iter().map(|pid| cpu_ticks(*pid)).collect::<anyhow::Result<Vec<_>>>()?;
    let start = Instant::now();
    std::thread::sleep(WATCH);
    let seconds = start.elapsed().as_secs_f64();
    let mut cpu_percent = Vec::new();
    let mut rss_mib = Vec::new();
    for (pid, before) in agents.iter().zip(before) {
        let used = cpu_ticks(*pid)?.saturating_sub(before);
        cpu_percent.push(used as f64 / seconds);
        rss_mib.push(rss_kib(*pid)? as f64 / 1024.0);
    }
    println!("idle: cpu {cpu_percent:.2?} %, rss {rss_mib:.1?} MiB");
    report.figure("main.idle_rss_mib", median(&rss_mib), "MiB");
    report.figure("main.idle_cpu_percent", median(&cpu_percent), "%");
    Ok(())
}

/// Processor time in hundredths of a second: as a share of a second it is a percentage of one core.
fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a stat line has a command in parentheses")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Ok(field(11) + field(12))
}

fn rss_kib(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a status has VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
