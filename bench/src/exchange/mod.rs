//! Exchanges: how many a second between two nodes, how soon one takes effect, what they cost the disk, and what the disk can do.
//!
//! Chains: two instances send each other the same 512 bytes again and again, each with 512 bytes of state, each hop one whole
//! exchange of four steps. Both nodes are keepers of the library with a log and an index each, joined by TCP over loopback.
//! [`compare`] has the rates, beside Restate's; [`lives`] what is measured on processes that are traced, killed and started anew.

mod chain;
mod compare;
mod histogram;
mod lives;
mod nodes;
mod program;
mod restate;

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use steadfast_proto::episode::Mode;

use crate::report::{Report, describe_machine};
use nodes::{Folder, Pair, Served};

/// Bytes of each state and of each message.
const BYTES: usize = 512;
/// All parts but those that `restate` has too.
const PARTS: [&str; 7] = ["restate", "past", "syncs", "recovery", "idle", "waiting", "timers"];
/// After how many exchanges the store is measured.
const FEW: u64 = 10_000;
const MANY: u64 = 10_000_000;

/// Runs the named parts, or all.
pub fn run(parts: &[&str]) -> anyhow::Result<()> {
    describe_machine()?;
    let mut report = Report::default();
    let parts = if parts.is_empty() { &PARTS[..] } else { parts };
    let outcome = parts.iter().try_for_each(|part| measure(part, &mut report));
    report.print();
    outcome
}

/// What a process of this benchmark is that it starts itself.
pub fn child(words: &[&str]) -> anyhow::Result<()> {
    match words {
        ["exchange-program", socket] => program::serve(Path::new(socket)),
        ["exchange-nodes", chains, folder] => {
            lives::nodes(Path::new(folder), chains.parse().context("chains are counted")?)
        }
        ["exchange-store", kind, count, folder] => {
            lives::store(kind, count.parse().context("instances are counted")?, Path::new(folder))
        }
        _ => bail!("'{}' is no process of the benchmark 'exchange'", words.join(" ")),
    }
}

fn measure(part: &str, report: &mut Report) -> anyhow::Result<()> {
    match part {
        "inproc" => compare::in_process(report),
        "outproc" => compare::out_of_process(report),
        "restate" => compare::with_restate(report),
        "past" => past(report),
        "syncs" => lives::syncs(report),
        "recovery" => lives::recovery(report),
        "idle" => lives::idle(report),
        "waiting" => lives::waiting(report),
        "timers" => lives::timers(report),
        other => bail!(
            "the benchmark 'exchange' has no part '{other}'; it has {}, and inproc and outproc without Restate",
            PARTS.join(", ")
        ),
    }
}

/// What is left when everything has ended: bytes for messages, and how the folders have grown.
fn past(report: &mut Report) -> anyhow::Result<()> {
    const CHAINS: usize = 64;
    let folder = Folder::new("past")?;
    let pair = Pair::start(folder.path(), Mode::Pipelined, &Served::Here)?;
    // Not before all are there, or the first would have come far already.
    pair.chain.hold();
    pair.begin_chains(CHAINS)?;
    pair.hold()?;
    let start = Instant::now();
    let mut sizes = Vec::new();
    for hops in [FEW, MANY] {
        pair.go_on(CHAINS)?;
        while pair.chain.hops() < hops {
            std::thread::sleep(Duration::from_millis(1));
        }
        pair.hold()?;
        let (kept, size, done) = (pair.bytes_of_messages()?, folder.bytes()?, pair.chain.hops());
        println!(
            "after {done} exchanges and {:.0?}: {kept} bytes for messages, folders of {size} bytes",
            start.elapsed()
        );
        sizes.push(size);
        if hops == MANY {
            report.figure("exchange.bytes_per_past_message", kept as f64 / done as f64, "B");
        }
    }
    pair.stop()?;
    println!("after a stop: folders of {} bytes", folder.bytes()?);
    if let [small, large] = sizes[..] {
        report.figure("exchange.store_growth", large as f64 / small as f64, "x");
    }
    Ok(())
}

/// F: how often a second 512 bytes in a file of zeros can be made durable.
fn syncs_per_second() -> anyhow::Result<f64> {
    let folder = Folder::new("limit")?;
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
