//! Exchanges: how many a second between two nodes, how soon one takes effect, what they cost the disk, and what the disk can do.
//!
//! Chains: two instances send each other the same 512 bytes again and again, each with 512 bytes of state, each hop one whole
//! exchange of four steps. Both nodes are keepers of the library with a log and an index each, joined by TCP over loopback.

mod nodes;

use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use anyhow::bail;
use steadfast_proto::episode::Mode;

use crate::report::{Report, describe_machine, median};
use nodes::Pair;

const ROUNDS: usize = 5;
/// How long one round of one contender lasts, after as long to warm up.
const ROUND: Duration = Duration::from_secs(2);
const CHAINS: [usize; 4] = [1, 16, 64, 1_024];

/// Runs the named parts, or all.
pub fn run(parts: &[&str]) -> anyhow::Result<()> {
    describe_machine()?;
    let mut report = Report::default();
    let parts = if parts.is_empty() { &["inproc", "past"][..] } else { parts };
    let outcome = parts.iter().try_for_each(|part| measure(part, &mut report));
    report.print();
    outcome
}

fn measure(part: &str, report: &mut Report) -> anyhow::Result<()> {
    match part {
        "inproc" => in_process(report),
        "past" => past(report),
        other => bail!("the benchmark 'exchange' has no part '{other}'; it has inproc and past"),
    }
}

fn in_process(report: &mut Report) -> anyhow::Result<()> {
    for chains in CHAINS {
        for mode in [Mode::Strict, Mode::Pipelined] {
            if mode == Mode::Pipelined && chains != 1_024 {
                continue;
            }
            let (mut rates, mut limits, mut latencies, mut syncs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for round in 1..=ROUNDS {
                let limit = syncs_per_second()?;
                let pair = Pair::start(chains, mode)?;
                std::thread::sleep(ROUND);
                let (before, start) = (pair.counts(), Instant::now());
                std::thread::sleep(ROUND);
                let (after, seconds) = (pair.counts(), start.elapsed().as_secs_f64());
                let hops = (after.hops - before.hops) as f64;
                pair.stop()?;
                let per_exchange = (after.syncs - before.syncs) as f64 / hops;
                println!(
                    "{mode:?} {chains} chains, round {round}: {:.0} exchanges/s, {per_exchange:.4} syncs each; the disk {limit:.0} syncs/s",
                    hops / seconds
                );
                rates.push(hops / seconds);
                limits.push(limit);
                syncs.push(per_exchange);
                latencies.push(seconds * 1e6 * chains as f64 / hops);
            }
            let name = if mode == Mode::Strict { format!("n{chains}") } else { format!("n{chains}.pipelined") };
            report.figure(&format!("exchange.per_s.{name}"), median(&rates), "exchanges/s");
            report.figure(&format!("exchange.hop_us.{name}"), median(&latencies), "us");
            report.figure(&format!("exchange.syncs.{name}"), median(&syncs), "syncs");
            report.rate_ratio(&format!("exchange.group.vs_fsync.{name}"), median(&rates), median(&limits), "1/s");
        }
    }
    Ok(())
}

/// What is left when everything has ended: bytes for messages, and how the folders have grown.
fn past(report: &mut Report) -> anyhow::Result<()> {
    let pair = Pair::start(64, Mode::Strict)?;
    let mut sizes = Vec::new();
    for hops in [10_000, 1_000_000] {
        while pair.counts().hops < hops {
            std::thread::sleep(Duration::from_millis(10));
        }
        pair.hold()?;
        let kept = pair.bytes_of_messages()?;
        let size = pair.folder_bytes()?;
        println!("after {} exchanges: {kept} bytes for messages, folders of {size} bytes", pair.counts().hops);
        sizes.push(size);
        if hops == 1_000_000 {
            report.figure("exchange.bytes_per_past_message", kept as f64 / pair.counts().hops as f64, "B");
        } else {
            pair.go_on();
        }
    }
    if let [small, large] = sizes[..] {
        report.figure("exchange.store_growth", large as f64 / small as f64, "x");
    }
    pair.stop()
}

/// F: how often a second 512 bytes in a file of zeros can be made durable.
fn syncs_per_second() -> anyhow::Result<f64> {
    let folder = nodes::folder("limit")?;
    let mut file = std::fs::File::create(folder.path().join("zeros"))?;
    file.write_all(&vec![0; 16 << 20])?;
    file.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    let (start, mut count) = (Instant::now(), 0u32);
    while start.elapsed() < Duration::from_millis(500) {
        if count % 32_768 == 0 {
            file.seek(SeekFrom::Start(0))?;
        }
        file.write_all(&[7; 512])?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}
