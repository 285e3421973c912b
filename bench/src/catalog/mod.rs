//! `cargo xtask bench catalog`: the embedded engine beside a three-member etcd, in one run on one machine.
//!
//! Both are three processes with durable logs on the same disk; one generator in this process loads them in turns, over sockets of the
//! machine, ours over TLS. What happens when a leader dies, what an idle catalog writes, how long a change of the view takes and whether a
//! replacement costs protection are measured on whole agents. Nothing here knows an engine but `member` (ours) and `theirs`.

mod agents;
mod events;
mod load;
pub mod member;
mod replace;
mod theirs;
mod watch;

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::report::{self, Report, median};
use load::{Contender, Doing, Load};

/// Rounds of each figure against the peer.
const ROUNDS: usize = 5;
/// How long one load lasts.
const SPAN: Duration = Duration::from_secs(2);
/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 256;

/// A part of this benchmark: its name, and what it does with further words.
type Part = (&'static str, fn(&[&str], &mut Report) -> anyhow::Result<()>);

const PARTS: [Part; 6] = [
    ("load", |_, report| {
        against_etcd(report, |contenders, report| Box::pin(measure_load(contenders, report)))
    }),
    ("watch", |_, report| {
        against_etcd(report, |contenders, report| Box::pin(watch::measure(contenders, report)))
    }),
    ("failover", |_, report| agents::failover(report)),
    ("idle", |_, report| agents::idle(report)),
    ("replace", |_, report| replace::measure(report)),
    ("views", agents::views),
];

/// Runs all parts, or the one that is named; `views` can be followed by numbers of nodes.
pub fn run(words: &[&str]) -> anyhow::Result<()> {
    let (wanted, further) = words.split_first().map_or((None, &[][..]), |(part, rest)| (Some(*part), rest));
    if let Some(part) = wanted
        && !PARTS.iter().any(|(name, _)| *name == part)
    {
        let names = PARTS.map(|(name, _)| name).join(", ");
        bail!("the benchmark 'catalog' has the parts {names}, and not '{part}'");
    }
    report::describe_machine()?;
    println!("settings: etcd {} with its defaults; both without delay between processes", theirs::version()?);
    println!("settings: agents with their defaults but for a short probation");
    let mut report = Report::default();
    let mut failures = Vec::new();
    for (name, measure) in PARTS.into_iter().filter(|(name, _)| wanted.is_none_or(|part| part == *name)) {
        let start = Instant::now();
        // One part that fails must not cost the others.
        if let Err(error) = measure(further, &mut report) {
            println!("FAILED {name}: {error:#}");
            failures.push(format!("{name}: {error:#}"));
        }
        println!("{name} took {:.0} s", start.elapsed().as_secs_f64());
    }
    report.print();
    if !failures.is_empty() {
        bail!("{} of the parts failed: {}", failures.len(), failures.join("; "));
    }
    Ok(())
}

/// A measurement under way.
type Measuring<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// Starts both systems and lets `measure` load them.
fn against_etcd(
    report: &mut Report,
    measure: for<'a> fn(&'a [&'a dyn Contender; 2], &'a mut Report) -> Measuring<'a>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (ours, theirs) = (member::Ours::start().await?, theirs::Theirs::start(3)?);
        let contenders: [&dyn Contender; 2] = [&ours, &theirs];
        for contender in contenders {
            // So that nobody's first round pays for what is only done once.
            Load::of(contender, Doing::Put, 8, Duration::from_secs(1)).await?;
        }
        measure(&contenders, report).await
    })
}

/// Writes and linearizable reads per second, and how long they take.
async fn measure_load(contenders: &[&dyn Contender; 2], report: &mut Report) -> anyhow::Result<()> {
    for (name, doing, clients) in [
        ("put1", Doing::Put, 1),
        ("put16", Doing::Put, 16),
        ("put64", Doing::Put, 64),
        ("read64", Doing::Read, 64),
    ] {
        let mut loads = [Vec::new(), Vec::new()];
        for round in 1..=ROUNDS {
            for (contender, loads) in contenders.iter().zip(&mut loads) {
                let load = Load::of(*contender, doing, clients, SPAN).await?;
                println!(
                    "{name} round {round} {}: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms",
                    contender.name(),
                    load.per_second,
                    load.p50_ms,
                    load.p99_ms
                );
                loads.push(load);
            }
        }
        let middle = |figure: fn(&Load) -> f64| {
            loads.each_ref().map(|loads| median(&loads.iter().map(figure).collect::<Vec<_>>()))
        };
        let [ours, theirs] = middle(|load| load.per_second);
        report.rate_ratio(&format!("catalog.{name}.vs_etcd"), ours, theirs, "1/s");
        let [ours, theirs] = middle(|load| load.p50_ms);
        report.time_ratio(&format!("catalog.{name}_p50.vs_etcd"), ours, theirs, "ms");
        let [ours, theirs] = middle(|load| load.p99_ms);
        report.time_ratio(&format!("catalog.{name}_p99.vs_etcd"), ours, theirs, "ms");
    }
    Ok(())
}
