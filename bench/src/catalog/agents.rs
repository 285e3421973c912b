//! What is measured on whole agents: the time without a leader, what an idle catalog writes, and how long a change of the view takes.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use steadfast_cli::bed::{Bed, Host};

use super::ROUNDS;
use super::theirs::Theirs;
use crate::detect::cluster::{Cluster, Death};
use crate::detect::journal::What;
use crate::detect::ours::Steadfast;
use crate::detect::systems::System;
use crate::report::{Report, median};
use crate::steadfast;

/// How long the idle are watched.
const WATCH: Duration = Duration::from_secs(20);
const SETTLE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);
/// From how many agents on fewer deaths are enough, and how many.
const MANY: usize = 64;
const ROUNDS_OF_MANY: usize = 3;
/// How long one write to an agent is waited for before it is made anew.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// The leader's agent is killed: how long until another agent has committed a write; etcd's leader beside it.
pub fn failover(report: &mut Report) -> anyhow::Result<()> {
    let bed = Bed::builder(steadfast()?).hosts(3).networks(2).build()?;
    bed.init_cluster("bench")?;
    let mut theirs = Theirs::start(3)?;
    let (mut ours_ms, mut theirs_ms) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let ours = our_failover_ms(&bed, round)?;
        let their = theirs.failover_ms()?;
        println!("failover round {round}: ours {ours:.0} ms, etcd {their:.0} ms");
        ours_ms.push(ours);
        theirs_ms.push(their);
    }
    report.time_ratio("catalog.failover.vs_etcd", median(&ours_ms), median(&theirs_ms), "ms");
    Ok(())
}

fn our_failover_ms(bed: &Bed, round: usize) -> anyhow::Result<f64> {
    let leader = bed.host(0).status()?.leader.context("the cluster has a leader")?;
    let leader = bed.host_named(&leader).context("the leader is on the bed")?;
    let others: Vec<&Host> = bed.hosts().iter().filter(|host| host.name() != leader.name()).collect();
    let socket = others.first().context("there are others")?.socket();
    leader.kill_agent()?;
    let killed = Instant::now();
    let mut attempt = 0;
    while !write_row(&socket, &format!("n{round}-{attempt}")) {
        attempt += 1;
        if killed.elapsed() > PATIENCE {
            bail!("nothing was committed after the leader's death");
        }
    }
    let gap = killed.elapsed().as_secs_f64() * 1e3;
    leader.start_agent()?;
    leader.wait_ready()?;
    bed.wait_members(3)?;
    Ok(gap)
}

/// Commits a row through an agent's API: an invitation.
fn write_row(socket: &Path, name: &str) -> bool {
    let asking = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(WRITE_MAX))?;
        let body = format!("{{\"name\":\"{name}\"}}");
        write!(
            stream,
            "POST /v1/invites HTTP/1.1\r\nhost: agent\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    asking().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// Synchronous writes of three idle agents, and of three idle members of etcd.
pub fn idle(report: &mut Report) -> anyhow::Result<()> {
    let bed = Bed::builder(steadfast()?).hosts(3).networks(2).build()?;
    bed.init_cluster("bench")?;
    let theirs = Theirs::start(3)?;
    std::thread::sleep(SETTLE);
    let agents: Vec<u32> = bed.hosts().iter().filter_map(Host::agent_pid).collect();
    let ours = syncs_per_second(&agents)?;
    let their = syncs_per_second(&theirs.pids())?;
    println!("idle: {ours:.3} syncs/s of three agents, {their:.3} of three members of etcd that nobody uses");
    report.figure("catalog.idle_fsync_per_s", ours, "1/s");
    report.figure("catalog.idle_fsync_per_s.etcd", their, "1/s");
    Ok(())
}

/// Counts the calls that make a disk durable, of all these processes together.
fn syncs_per_second(pids: &[u32]) -> anyhow::Result<f64> {
    let mut command = Command::new("timeout");
    command.args(["--signal=INT", &WATCH.as_secs().to_string(), "strace", "-f", "-qq"]);
    command.args(["-e", "trace=fsync,fdatasync,sync_file_range,msync,syncfs", "-e", "signal=none"]);
    for pid in pids {
        command.args(["-p", &pid.to_string()]);
    }
    let output = command.stdin(Stdio::null()).output().context("strace counts the calls; install it")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("attach:") {
        bail!("strace: {}", text.lines().next().unwrap_or_default());
    }
    let calls = text.lines().filter(|line| line.contains("sync") && line.contains('(')).count();
    Ok(calls as f64 / WATCH.as_secs_f64())
}

/// From the first agent's verdict on a dead one until the last of the others has the view without it.
pub fn views(sizes: &[&str], report: &mut Report) -> anyhow::Result<()> {
    let sizes: Vec<usize> = if sizes.is_empty() {
        vec![3, 16, 64]
    } else {
        sizes
            .iter()
            .map(|size| size.parse().context("'views' is followed by numbers of nodes"))
            .collect::<Result<_, _>>()?
    };
    for hosts in sizes {
        let deaths = if hosts < MANY { ROUNDS } else { ROUNDS_OF_MANY };
        let steadfast = Arc::new(Steadfast::new()?);
        let start = Instant::now();
        let mut cluster = Cluster::boot(Arc::clone(&steadfast) as Arc<dyn System>, hosts, 2)?;
        println!("views n{hosts}: all members after {:.0} s", start.elapsed().as_secs_f64());
        let mut times = Vec::new();
        for death in 0..deaths {
            let victim = 1 + death % (hosts - 1);
            steadfast.wait_settled(&cluster)?;
            // A machine: an agent that only crashed is given time to come back before it is removed.
            cluster.detect(victim, Death::Silent, PATIENCE)?;
            let time = change_ms(&cluster, victim)?;
            println!("views n{hosts} death {}: {time:.0} ms", death + 1);
            times.push(time);
            if death + 1 < deaths {
                cluster.revive(victim, PATIENCE * 2)?;
            }
        }
        report.figure(&format!("catalog.view_change_ms.n{hosts}"), median(&times), "ms");
    }
    Ok(())
}

/// Milliseconds from the first verdict on `victim` until everybody has installed the view without it; waits for that.
fn change_ms(cluster: &Cluster, victim: usize) -> anyhow::Result<f64> {
    let asked = Instant::now();
    let others = cluster.running().len();
    loop {
        let all = cluster.journal().since(crate::detect::journal::Instant(0), |_| true);
        let verdicts = all
            .iter()
            .filter(|seen| matches!(&seen.what, What::Verdict(_, about) if about.contains(&victim)));
        let first = verdicts.map(|seen| seen.at).min();
        let mut installed = BTreeMap::new();
        for seen in all.iter().filter(|seen| seen.what == What::Gone(victim)) {
            installed.entry(seen.observer).or_insert(seen.at);
        }
        if installed.len() >= others
            && let (Some(first), Some(last)) = (first, installed.values().max())
        {
            return Ok(last.ms_since(first));
        }
        if asked.elapsed() > PATIENCE {
            bail!("only {} of {others} agents installed the view without n{victim}", installed.len());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
