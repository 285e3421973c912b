//! Comparisons of Steadfast with its peers and with the machine's limits.
//!
//! `cargo xtask bench [NAME]` runs one or all. Each prints, last, one line per figure: `RATIO name value ours
//! theirs unit` (more is better, 1 is a draw) and `FIGURE name value unit`. Peers and limits are measured in the
//! same run, interleaved; medians of at least five. A bad figure is recorded like a good one.

mod ballast;
mod catalog;
mod detect;
mod events;
mod exchange;
mod freeze;
mod idle;
mod loss;
mod report;
mod ship;

use std::path::PathBuf;

use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["ballast", mib, report] => {
            ballast::run(mib.parse().context("the size is a whole number of MiB")?, report.as_ref())
        }
        ["detect", rest @ ..] => detect::run(rest),
        ["events", rest @ ..] => events::run(rest),
        ["exchange", rest @ ..] => exchange::run(rest),
        ["exchange-program" | "exchange-nodes" | "exchange-store", ..] => exchange::child(&words),
        ["catalog", rest @ ..] => catalog::run(rest),
        ["catalog-member", folder, member] => {
            catalog::member::serve(folder.as_ref(), member.parse().context("a member has a number")?)
        }
        [] => main_bench()
            .and_then(|()| catalog::run(&[]))
            .and_then(|()| detect::run(&[]))
            .and_then(|()| events::run(&[]))
            .and_then(|()| exchange::run(&[])),
        ["main"] => main_bench(),
        ["main", part] => main_part(part),
        [name, ..] => {
            bail!(
                "there is no benchmark '{name}'; there are: main [loss|freeze|ship|idle], catalog [load|watch|failover|idle|replace|views], detect [PART...], events [local|remote|fanout|all16|page], exchange [restate|past|syncs|recovery|idle|waiting|timers|inproc|outproc]"
            )
        }
    }
}

fn main_bench() -> anyhow::Result<()> {
    report::describe_machine()?;
    let mut report = report::Report::default();
    idle::measure(&mut report)?;
    ship::measure(&mut report)?;
    freeze::measure(&mut report)?;
    loss::measure(&mut report)?;
    report.print();
    Ok(())
}

fn main_part(part: &str) -> anyhow::Result<()> {
    let mut report = report::Report::default();
    match part {
        "loss" => loss::measure(&mut report)?,
        "freeze" => freeze::measure(&mut report)?,
        "ship" => ship::measure(&mut report)?,
        "idle" => idle::measure(&mut report)?,
        other => bail!("the benchmark 'main' has no part '{other}'; it has loss, freeze, ship and idle"),
    }
    report.print();
    Ok(())
}

/// The `steadfast` program that is measured: the release build of this tree.
fn steadfast() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("STEADFAST_BINARY") {
        return Ok(path.into());
    }
    let tree = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = tree.join("target/release/steadfast");
    if !path.is_file() {
        bail!("{} is not there; build it with `cargo build --release -p steadfast-cli`", path.display());
    }
    Ok(path.canonicalize()?)
}
