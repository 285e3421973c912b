//! `cargo xtask bench catalog`: the embedded engine beside a three-member etcd, in one run on one machine.
//!
//! Both are three processes with durable logs on the same disk; one generator in this process loads them in turns, over sockets of the
//! machine, ours over TLS. What happens when a leader dies, what an idle catalog writes and how long a change of the view takes are measured on
//! whole agents. Nothing here knows an engine but `member` (ours) and `theirs`.

mod agents;
mod load;
pub mod member;
mod theirs;

use std::time::Duration;

use anyhow::bail;

use crate::report::{self, Report, median};
use load::{Contender, Doing, Load};

/// Rounds of each figure against the peer.
const ROUNDS: usize = 5;
/// How long one load lasts.
const SPAN: Duration = Duration::from_secs(3);
/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 256;

/// Runs all parts, or the one that is named.
pub fn run(words: &[&str]) -> anyhow::Result<()> {
    let (load, failover, idle, views) = match words {
        [] => (true, true, true, true),
        ["load"] => (true, false, false, false),
        ["failover"] => (false, true, false, false),
        ["idle"] => (false, false, true, false),
        ["views"] => (false, false, false, true),
        other => bail!("the benchmark 'catalog' has the parts load, failover, idle and views, not {other:?}"),
    };
    report::describe_machine()?;
    println!("settings: etcd {} with its defaults; both without delay between processes", theirs::version()?);
    let mut report = Report::default();
    let mut failures = Vec::new();
    let mut part = |wanted: bool, name: &str, measure: &dyn Fn(&mut Report) -> anyhow::Result<()>| {
        if wanted && let Err(error) = measure(&mut report) {
            println!("FAILED {name}: {error:#}");
            failures.push(format!("{name}: {error:#}"));
        }
    };
    part(load, "load", &measure_load);
    part(failover, "failover", &agents::failover);
    part(idle, "idle", &agents::idle);
    part(views, "views", &agents::views);
    report.print();
    if !failures.is_empty() {
        bail!("{} of the parts failed: {}", failures.len(), failures.join("; "));
    }
    Ok(())
}

/// Writes and linearizable reads per second, and how long they take.
fn measure_load(report: &mut Report) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (ours, theirs) = (member::Ours::start().await?, theirs::Theirs::start(3)?);
        let contenders: [&dyn Contender; 2] = [&ours, &theirs];
        for contender in contenders {
            // So that nobody's first round pays for what is only done once.
            Load::of(contender, Doing::Put, 8, Duration::from_secs(1)).await?;
        }
        for (name, doing, clients) in [
            ("put1", Doing::Put, 1),
            ("put16", Doing::Put, 16),
            ("put64", Doing::Put, 64),
            ("read64", Doing::Read, 64),
        ] {
            let mut rates = [Vec::new(), Vec::new()];
            let mut p99s = [Vec::new(), Vec::new()];
            for round in 1..=ROUNDS {
                for ((contender, rates), p99s) in contenders.iter().zip(&mut rates).zip(&mut p99s) {
                    let load = Load::of(*contender, doing, clients, SPAN).await?;
                    println!(
                        "{name} round {round} {}: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms",
                        contender.name(),
                        load.per_second,
                        load.p50_ms,
                        load.p99_ms
                    );
                    rates.push(load.per_second);
                    p99s.push(load.p99_ms);
                }
            }
            let [ours_rates, their_rates] = &rates;
            let [ours_p99, their_p99] = &p99s;
            report.rate_ratio(
                &format!("catalog.{name}.vs_etcd"),
                median(ours_rates),
                median(their_rates),
                "1/s",
            );
            if name == "put64" {
                report.time_ratio("catalog.put64_p99.vs_etcd", median(ours_p99), median(their_p99), "ms");
            }
        }
        Ok(())
    })
}
