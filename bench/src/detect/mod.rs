//! `cargo xtask bench detect`: failure detection beside Serf, chitchat and foca, in one run on one machine.
//!
//! Every agent is a process in a name space of its own behind a hub ([`hub`]); what it says is read by one journal
//! ([`journal`]); what is done to it is the same for all ([`scenarios`]). Systems take turns. A time is until the last
//! other agent knows. Nothing here knows a system but [`systems`] and [`ours`].

mod attribution;
pub mod cluster;
mod harms;
pub mod hub;
pub mod journal;
mod options;
pub mod ours;
mod scenarios;
pub mod systems;
mod table;

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, bail};

use crate::report::{self, Report};
use options::{Options, Part};
use ours::Steadfast;
use systems::{Crate, Serf, System};
use table::Table;

/// Runs the parts that `words` ask for.
pub fn run(words: &[&str]) -> anyhow::Result<()> {
    let options = Options::parse(words)?;
    report::describe_machine()?;
    let contenders = Contenders::find(&options);
    for line in contenders.settings() {
        println!("settings: {line}");
    }
    let mut bench =
        scenarios::Bench { options, contenders, table: Table::default(), report: Report::default() };
    let mut failures = Vec::new();
    for part in Part::ALL {
        if !bench.options.wants(part) {
            continue;
        }
        println!("\n== {part:?}");
        // One part that fails must not cost the others.
        if let Err(error) = perform(&mut bench, part) {
            println!("FAILED {part:?}: {error:#}");
            failures.push(format!("{part:?}: {error:#}"));
        }
    }
    bench.table.print();
    bench.report.print();
    if !failures.is_empty() {
        bail!("{} of the parts failed: {}", failures.len(), failures.join("; "));
    }
    Ok(())
}

fn perform(bench: &mut scenarios::Bench, part: Part) -> anyhow::Result<()> {
    match part {
        Part::Deaths16 => bench.deaths(16),
        Part::Matched => bench.matched(),
        Part::Loss => bench.loss(),
        Part::Pauses => bench.pauses(),
        Part::Paths => bench.paths(),
        Part::Deaths32 => bench.deaths(32),
        Part::Networks => bench.networks(),
        Part::Attribution => attribution::measure(bench),
        Part::Simulated => simulated(bench),
    }
}

/// Which systems take part; those that can't are named loudly.
pub struct Contenders {
    peers: Vec<Arc<dyn System>>,
    foca: Option<Crate>,
    chitchat: Option<Crate>,
    ours: bool,
}

impl Contenders {
    fn find(options: &Options) -> Contenders {
        let mut peers: Vec<Arc<dyn System>> = Vec::new();
        if options.has_system("serf")
            && let Some(serf) = loudly("serf", Serf::find("lan"))
        {
            peers.push(Arc::new(serf));
        }
        let built = |name| options.has_system(name).then(|| loudly(name, Crate::build(name, 1.0))).flatten();
        let (foca, chitchat) = (built("foca"), built("chitchat"));
        for one in [&foca, &chitchat].into_iter().flatten() {
            peers.push(Arc::new(one.at_speed(1.0)));
        }
        let ours = options.has_system(ours::NAME) && loudly(ours::NAME, crate::steadfast()).is_some();
        Contenders { peers, foca, chitchat, ours }
    }

    /// Everyone that takes part, ours first; a fresh folder for ours.
    pub fn all(&self) -> anyhow::Result<Vec<Arc<dyn System>>> {
        let mut all: Vec<Arc<dyn System>> = Vec::new();
        if self.ours {
            all.push(Arc::new(Steadfast::new()?));
        }
        all.extend(self.peers.iter().cloned());
        Ok(all)
    }

    /// Ours alone.
    pub fn ours(&self) -> anyhow::Result<Option<Arc<dyn System>>> {
        Ok(if self.ours { Some(Arc::new(Steadfast::new()?)) } else { None })
    }

    fn settings(&self) -> Vec<String> {
        self.peers.iter().map(|system| format!("{}: {}", system.name(), system.settings())).collect()
    }
}

fn loudly<T>(name: &str, found: anyhow::Result<T>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(error) => {
            println!("MISSING {name} takes no part in this run: {error:#}");
            None
        }
    }
}

/// The same at ten thousand nodes, in simulation.
fn simulated(bench: &mut scenarios::Bench) -> anyhow::Result<()> {
    let binary = crate::steadfast()?;
    let arguments = ["simulate", "--nodes", "10000", "--fault", "silent@5s", "-o", "json"];
    let output = Command::new(&binary).args(arguments).output()?;
    if !output.status.success() {
        let talk = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`steadfast {}` failed: {}",
            arguments.join(" "),
            talk.lines().next().unwrap_or("it said nothing")
        );
    }
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).context("simulate prints JSON")?;
    let ms = |name: &str| answer.pointer(name).and_then(serde_json::Value::as_f64);
    let p50 = ms("/silent/p50_ms").context("simulate's answer has no silent.p50_ms")?;
    bench.report.figure("detect.sim10000_silent.p50", p50, "ms");
    if let Some(p99) = ms("/silent/p99_ms") {
        bench.report.figure("detect.sim10000_silent.p99", p99, "ms");
    }
    Ok(())
}
