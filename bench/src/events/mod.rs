//! Events: how soon whoever listens has one, on the same machine and on another, how many a second, and what Debian's
//! NATS and Serf do in the same run.
//!
//! What crosses nodes is measured on whole agents of the release build; what stays on a machine on the library's hub.

mod all;
mod clients;
mod fanout;
mod local;
mod nats;
mod page;
mod remote;

use anyhow::bail;

use crate::report::{Report, describe_machine};

/// Rounds of each contender, in turn.
const ROUNDS: usize = 5;

/// Runs the named parts, or all.
pub fn run(parts: &[&str]) -> anyhow::Result<()> {
    if parts == ["local-inside"] {
        return local::inside();
    }
    if let ["page-inside", address] = parts {
        return page::inside(address);
    }
    describe_machine()?;
    let mut report = Report::default();
    let parts = if parts.is_empty() { &["local", "remote", "fanout", "all16", "page"][..] } else { parts };
    let outcome = parts.iter().try_for_each(|part| measure(part, &mut report));
    // What was measured before something failed was measured.
    report.print();
    outcome
}

fn measure(part: &str, report: &mut Report) -> anyhow::Result<()> {
    match part {
        "local" => local::measure(report),
        "remote" => remote::measure(report),
        "fanout" => fanout::measure(report),
        "all16" => all::measure(report),
        "page" => page::measure(report),
        other => bail!(
            "the benchmark 'events' has no part '{other}'; it has local, remote, fanout, all16 and page"
        ),
    }
}

/// The value below which this share of the values lies.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

fn us_since(start: std::time::Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}
