//! Deaths: how long until every other agent knows, at rest and beside what it costs; and how systems take turns.
//!
//! Ours goes first in each round, alone; the peers of one round run side by side, because each of them waits for
//! seconds and does nothing meanwhile. Read [`super::harms`] for what must not happen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::Contenders;
use super::cluster::{Cluster, Cost, Death, Detection};
use super::options::Options;
use super::ours::NAME;
use super::systems::{Crate, Serf, System};
use super::table::Table;
use crate::report::{Report, median};

/// How long a death may stay unnoticed before it counts as missed.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long an agent may take to be counted again by all.
pub const RETURN_MAX: Duration = Duration::from_secs(120);
/// What every fresh cluster is given before anything is done to it.
pub const SETTLE: Duration = Duration::from_secs(20);
/// What it is given where nothing but agents that know each other is needed.
pub const SETTLE_SHORT: Duration = Duration::from_secs(8);

/// How often a peer's speed is corrected.
const TRIES: usize = 4;

/// One run.
pub struct Bench {
    /// What was asked for.
    pub options: Options,
    /// Who takes part.
    pub contenders: Contenders,
    /// For people.
    pub table: Table,
    /// For programs.
    pub report: Report,
}

/// What each system's agents' deaths gave.
type Deaths = BTreeMap<String, Vec<Detection>>;

impl Bench {
    /// Cost at rest, then both deaths, with `hosts` agents.
    pub fn deaths(&mut self, hosts: usize) -> anyhow::Result<()> {
        let mut clusters = boot(self.contenders.all()?, hosts, 1);
        std::thread::sleep(SETTLE);
        self.costs(&mut clusters, &format!("n{hosts}"))?;
        for death in [Death::Killed, Death::Silent] {
            let seen = self.rounds(&mut clusters, death, self.options.trials());
            self.tell(&format!("{} N={hosts}", word(death)), &seen);
            if hosts == 16 {
                self.figures(death, &seen);
            } else {
                self.percentiles(&format!("detect.{}.n{hosts}", word(death)), &seen);
            }
        }
        Ok(())
    }

    /// The peers that can be tuned, tuned until they send as many bytes as ours, and Serf's fastest profile.
    pub fn matched(&mut self) -> anyhow::Result<()> {
        let defaults: Vec<Arc<dyn System>> = [&self.contenders.foca, &self.contenders.chitchat]
            .into_iter()
            .flatten()
            .map(|one| Arc::new(one.at_speed(1.0)) as Arc<dyn System>)
            .collect();
        let ours =
            self.contenders.ours()?.context("nothing to match: steadfast takes no part in this run")?;
        let mut clusters = boot(std::iter::once(ours).chain(defaults).collect(), 16, 1);
        std::thread::sleep(SETTLE);
        let bytes: BTreeMap<String, f64> =
            measure_costs(&clusters).into_iter().map(|(name, cost)| (name, cost.bytes_per_s)).collect();
        clusters.retain(|cluster| cluster.name() == NAME);
        let target = *bytes.get(NAME).context("steadfast did not start, so there is nothing to match")?;
        let mut tuned: Vec<Arc<dyn System>> = Vec::new();
        for one in [&self.contenders.foca, &self.contenders.chitchat].into_iter().flatten() {
            let Some(own) = bytes.get(&one.name()) else { continue };
            let Some(speed) = calibrate(one, target / own, target) else {
                println!("MISSING {} can't send {target:.0} B/s per agent and hold together", one.name());
                continue;
            };
            println!("matched: {} is {speed:.2} times as fast as its defaults", one.name());
            tuned.push(Arc::new(one.at_speed(speed)));
        }
        if self.options.has_system("serf") {
            println!("matched: serf's agent offers profiles, not intervals; its fastest one stands in");
            tuned.extend(Serf::find("local").map(|serf| Arc::new(serf) as Arc<dyn System>));
        }
        clusters.extend(boot(tuned, 16, 1));
        std::thread::sleep(SETTLE_SHORT);
        self.costs(&mut clusters, "matched")?;
        for death in [Death::Killed, Death::Silent] {
            let seen = self.rounds(&mut clusters, death, self.options.trials());
            self.tell(&format!("{} N=16, bytes matched", word(death)), &seen);
            self.ratios(&format!("detect.{}.matched", word(death)), &seen);
        }
        // Whoever is that fast must also be right.
        self.wrong_at_loss(&clusters, 10, self.options.length(60), "bytes matched: ")?;
        Ok(())
    }

    /// Lets agents die in turns; a cluster whose victim does not come back is given up, loudly.
    pub fn rounds(&self, clusters: &mut Vec<Cluster>, death: Death, trials: usize) -> Deaths {
        let mut seen = Deaths::new();
        for round in 0..trials {
            let (ours, peers): (Vec<Cluster>, Vec<Cluster>) =
                clusters.drain(..).partition(|cluster| cluster.name() == NAME);
            let mut note = |outcome: (String, Vec<Detection>, Option<Cluster>)| {
                let (name, detections, cluster) = outcome;
                for detection in &detections {
                    println!("{} {name} round {round}: {}", word(death), account(detection));
                }
                seen.entry(name).or_default().extend(detections);
                clusters.extend(cluster);
            };
            for cluster in ours {
                let times = self.options.ours_per_trial();
                note(die(cluster, death, round * times, times));
            }
            let outcomes = std::thread::scope(|scope| {
                let running: Vec<_> = peers
                    .into_iter()
                    .map(|cluster| scope.spawn(move || die(cluster, death, round, 1)))
                    .collect();
                running
                    .into_iter()
                    .map(|thread| thread.join().expect("a trial does not panic"))
                    .collect::<Vec<_>>()
            });
            outcomes.into_iter().for_each(note);
        }
        seen
    }

    fn costs(&mut self, clusters: &mut [Cluster], label: &str) -> anyhow::Result<()> {
        for (name, cost) in measure_costs(clusters) {
            let Cost { bytes_per_s, cpu_percent, pss_mib, rss_mib } = cost;
            let text =
                format!("{bytes_per_s:.0} B/s, {cpu_percent:.2} %, PSS {pss_mib:.1} RSS {rss_mib:.1} MiB");
            self.table.put(&format!("at rest {label}: sent, CPU, memory per agent"), &name, text);
            if name == NAME {
                self.report.figure(&format!("detect.bytes_per_s.{label}"), bytes_per_s, "B/s");
                self.report.figure(&format!("detect.cpu_percent.{label}"), cpu_percent, "%");
                self.report.figure(&format!("detect.pss.{label}"), pss_mib, "MiB");
            }
        }
        Ok(())
    }

    /// Fills a row of the table.
    pub fn tell(&mut self, row: &str, seen: &Deaths) {
        for (name, detections) in seen.iter().filter(|(_, detections)| !detections.is_empty()) {
            let all = all_ms(detections);
            let missed: usize = detections.iter().map(|detection| detection.missed).sum();
            let wrong: usize = detections.iter().map(|detection| detection.wrong).sum();
            let first: Vec<f64> = detections.iter().filter_map(|one| one.known_ms.first().copied()).collect();
            let mut text = format!(
                "median {} max {} (first {}; {} deaths",
                show_ms(median(&all)),
                show_ms(quantile(&all, 1.0)),
                show_ms(median(&first)),
                all.len()
            );
            if missed > 0 {
                text += &format!("; {missed} agents never knew");
            }
            if wrong > 0 {
                text += &format!("; {wrong} WRONG removals meanwhile");
            }
            self.table.put(row, name, text + ")");
        }
    }

    fn figures(&mut self, death: Death, seen: &Deaths) {
        let name = format!("detect.{}", word(death));
        self.percentiles(&name, seen);
        self.ratios(&name, seen);
    }

    /// Our median and 99th percentile; with fewer than a hundred deaths that is the slowest.
    pub fn percentiles(&mut self, name: &str, seen: &Deaths) {
        let Some(ours) = seen.get(NAME).filter(|seen| !seen.is_empty()) else { return };
        let ours = all_ms(ours);
        self.report.figure(&format!("{name}.p50"), median(&ours), "ms");
        self.report.figure(&format!("{name}.p99"), quantile(&ours, 0.99), "ms");
    }

    fn ratios(&mut self, name: &str, seen: &Deaths) {
        let Some(ours) = seen.get(NAME).filter(|seen| !seen.is_empty()) else { return };
        let ours = median(&all_ms(ours));
        for (peer, theirs) in seen.iter().filter(|(peer, theirs)| *peer != NAME && !theirs.is_empty()) {
            let peer = peer.split('-').next().unwrap_or(peer);
            self.report.time_ratio(&format!("{name}.vs_{peer}"), ours, median(&all_ms(theirs)), "ms");
        }
    }
}

/// By what to divide a peer's intervals so that it sends `target` bytes per second: first `speed` by arithmetic, then
/// corrected by what is seen. The best of the speeds at which its agents were seen to hold together; not every peer
/// can be driven far enough.
fn calibrate(one: &Crate, mut speed: f64, target: f64) -> Option<f64> {
    let mut best: Option<(f64, f64)> = None;
    for _ in 0..TRIES {
        let cluster = boot(vec![Arc::new(one.at_speed(speed))], 16, 1).pop();
        std::thread::sleep(SETTLE_SHORT / 2);
        let cost = cluster.as_ref().map(|cluster| cluster.cost(Duration::from_secs(4)));
        let (Some(cluster), Some(Ok(cost))) = (cluster, cost) else {
            println!("matched: {} does not hold together at {speed:.1} times its defaults", one.name());
            speed /= 2.0;
            continue;
        };
        println!("matched: {} at {speed:.1} times sends {:.0} B/s", one.name(), cost.bytes_per_s);
        let missing = target / cost.bytes_per_s;
        let gap = missing.ln().abs();
        if cluster.is_full() && best.is_none_or(|(smallest, _)| gap < smallest) {
            best = Some((gap, speed));
        }
        if gap < 0.05 {
            break;
        }
        // Not all of its traffic follows its intervals.
        speed *= missing.clamp(0.5, 2.0);
    }
    best.map(|(_, speed)| speed)
}

/// Lets agents of one cluster die, one after the other, each brought back; `None` when one did not come back.
fn die(
    mut cluster: Cluster,
    death: Death,
    first: usize,
    times: usize,
) -> (String, Vec<Detection>, Option<Cluster>) {
    let name = cluster.name();
    let mut detections = Vec::new();
    for number in first..first + times {
        // The seeds stay, so that whoever comes back finds somebody.
        let victim = 3 + (number * 5) % (cluster.hosts() - 3);
        let outcome = cluster.detect(victim, death, PATIENCE).and_then(|detection| {
            detections.push(detection);
            cluster.revive(victim, RETURN_MAX)
        });
        if let Err(error) = outcome {
            println!("GIVEN UP {name}: {error:#}");
            return (name, detections, None);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    (name, detections, Some(cluster))
}

/// Boots a cluster of each system, side by side; those that don't start are named loudly and left out.
pub fn boot(systems: Vec<Arc<dyn System>>, hosts: usize, networks: usize) -> Vec<Cluster> {
    let booted = std::thread::scope(|scope| {
        let start = |system: Arc<dyn System>| {
            scope.spawn(move || (system.name(), Cluster::boot(system, hosts, networks)))
        };
        let running: Vec<_> = systems.into_iter().map(start).collect();
        running.into_iter().map(|thread| thread.join().expect("a start does not panic")).collect::<Vec<_>>()
    });
    let mut clusters = Vec::new();
    for (name, cluster) in booted {
        match cluster {
            Ok(cluster) => clusters.push(cluster),
            Err(error) => println!("MISSING {name} with {hosts} agents did not start: {error:#}"),
        }
    }
    clusters
}

fn measure_costs(clusters: &[Cluster]) -> Vec<(String, Cost)> {
    let window = Duration::from_secs(20);
    let costs = std::thread::scope(|scope| {
        let running: Vec<_> = clusters
            .iter()
            .map(|cluster| (cluster.name(), scope.spawn(move || cluster.cost(window))))
            .collect();
        running.into_iter().map(|(name, thread)| (name, thread.join())).collect::<Vec<_>>()
    });
    let mut good = Vec::new();
    for (name, cost) in costs {
        match cost.expect("taking a measure does not panic") {
            Ok(cost) => good.push((name, cost)),
            Err(error) => println!("GIVEN UP {name}'s cost at rest: {error:#}"),
        }
    }
    good
}

fn word(death: Death) -> &'static str {
    match death {
        Death::Killed => "killed",
        Death::Silent => "silent",
    }
}

fn all_ms(detections: &[Detection]) -> Vec<f64> {
    detections.iter().map(|detection| detection.all_ms(PATIENCE)).collect()
}

fn account(detection: &Detection) -> String {
    let at = |position: usize| detection.known_ms.get(position).copied().map_or("never".to_owned(), show_ms);
    format!(
        "suspected {}, first knew {}, half {}, all {} ({} missed, {} wrong)",
        detection.suspected_ms.map_or("-".to_owned(), show_ms),
        at(0),
        at(detection.known_ms.len() / 2),
        show_ms(detection.all_ms(PATIENCE)),
        detection.missed,
        detection.wrong
    )
}

/// Milliseconds as people read them.
pub fn show_ms(ms: f64) -> String {
    if ms >= 1000.0 { format!("{:.2} s", ms / 1e3) } else { format!("{ms:.1} ms") }
}

/// The smallest value that `share` of the values don't exceed.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((share * last as f64).ceil() as usize).copied().unwrap_or(f64::NAN)
}
