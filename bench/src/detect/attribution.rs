//! Attribution: each class of fault injected again and again, and whether ours names it, at first and after two seconds.
//!
//! Sixteen nodes on two networks. A verdict is right when it names the class and the ones it befell. Everybody's
//! words count, the victim's too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustix::process::Signal;

use super::cluster::{Cluster, Death};
use super::hub::Fault;
use super::journal::{Class, Instant, Sighting, What};
use super::ours::NAME;
use super::scenarios::{Bench, RETURN_MAX, SETTLE, boot, show_ms};
use crate::report::median;

/// When the class must be right at the latest.
const SECOND_LOOK: Duration = Duration::from_secs(2);
/// Between two faults.
const CALM: Duration = Duration::from_secs(3);

/// What was said about one fault.
#[derive(Debug)]
struct Outcome {
    /// The first verdict of all, whether it was right, and after how many milliseconds.
    first: Option<(Class, bool, f64)>,
    /// What stands after two seconds: how many agents say so, and whether it is right.
    later: BTreeMap<(Vec<Class>, bool), usize>,
}

/// What happened, and to whom.
#[derive(Clone, Debug)]
struct Truth {
    class: Class,
    about: BTreeSet<usize>,
}

/// Injects every class, and reports the share of right first verdicts.
pub fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let Some(ours) = bench.contenders.ours()? else { return Ok(()) };
    let mut clusters = boot(vec![ours], 16, 2);
    let Some(mut cluster) = clusters.pop() else { return Ok(()) };
    std::thread::sleep(SETTLE);
    let (mut injected, mut first_right, mut later_right) = (0_usize, 0_usize, 0_usize);
    for class in Class::ALL {
        let (mut first_of_class, mut later_of_class) = (0_usize, 0_usize);
        let mut after_ms = Vec::new();
        let times = bench.options.faults_per_class();
        for number in 0..times {
            let outcome = inject(&mut cluster, class, number)?;
            let is_first_right = outcome.first.is_some_and(|(_, is_right, _)| is_right);
            let is_later_right =
                !outcome.later.is_empty() && outcome.later.keys().all(|(_, is_right)| *is_right);
            println!(
                "attribution {class:?} {number}: first {:?}, after 2 s {:?}",
                outcome.first, outcome.later
            );
            first_of_class += usize::from(is_first_right);
            later_of_class += usize::from(is_later_right);
            after_ms.extend(outcome.first.map(|(_, _, ms)| ms));
        }
        let said = if after_ms.is_empty() { "never".to_owned() } else { show_ms(median(&after_ms)) };
        let text =
            format!("first {first_of_class}/{times}, after 2 s {later_of_class}/{times}, first said {said}");
        bench.table.put(&format!("attribution: {class:?}"), NAME, text);
        injected += times;
        first_right += first_of_class;
        later_right += later_of_class;
    }
    let percent = |right: usize| 100.0 * right as f64 / injected as f64;
    bench.report.figure("detect.attribution_first_percent", percent(first_right), "%");
    bench.report.figure("detect.attribution_2s_percent", percent(later_right), "%");
    Ok(())
}

impl Truth {
    /// Whether a verdict names the right class and the right ones.
    fn is_told_by(&self, class: Class, about: &[usize]) -> bool {
        // A node that lost all its networks and one whose machine died look the same to everybody else.
        let twins = [Class::HostDead, Class::NodeIsolated];
        let same_class = self.class == class || (twins.contains(&self.class) && twins.contains(&class));
        let about: BTreeSet<usize> = about.iter().copied().collect();
        // Each side of a split may name either.
        same_class && (self.about == about || self.class == Class::Split)
    }
}

/// Injects one fault, listens for two seconds, heals it, and waits until all is as before.
fn inject(cluster: &mut Cluster, class: Class, number: usize) -> anyhow::Result<Outcome> {
    let hosts = cluster.hosts();
    let victim = 1 + number % (hosts - 1);
    let other = cluster.watched_by(victim);
    let network = number % cluster.hub().networks();
    cluster.journal().forget();
    let mut since = Instant::now();
    match class {
        Class::ProcessCrashed => since = cluster.end(victim, Death::Killed)?,
        Class::HostDead => since = cluster.end(victim, Death::Silent)?,
        Class::ProcessStalled => cluster.signal(victim, Signal::STOP)?,
        Class::NodeIsolated => cluster.hub().inject(&[Fault::Alone(victim, None)])?,
        Class::NetworkDownAtNode => cluster.hub().inject(&[Fault::Alone(victim, Some(network))])?,
        Class::NetworkDown => cluster.hub().inject(&[Fault::Network(network)])?,
        Class::LinkCut => cluster.hub().inject(&[Fault::Cut(victim, other, Some(network))])?,
        Class::LinkDegraded => cluster.hub().inject(&[Fault::LossBetween(victim, other, network, 30)])?,
        Class::Split => cluster.hub().inject(&[Fault::Split(hosts / 2)])?,
    }
    while since.elapsed() < SECOND_LOOK {
        std::thread::sleep(Duration::from_millis(10));
    }
    let about = match class {
        Class::LinkCut | Class::LinkDegraded => BTreeSet::from([victim, other]),
        Class::NetworkDown | Class::Split => BTreeSet::new(),
        Class::ProcessCrashed
        | Class::ProcessStalled
        | Class::HostDead
        | Class::NodeIsolated
        | Class::NetworkDownAtNode => BTreeSet::from([victim]),
    };
    let outcome = judge(since, &cluster.journal().since(since, |_| true), &Truth { class, about });
    match class {
        Class::ProcessCrashed | Class::HostDead => cluster.revive(victim, RETURN_MAX)?,
        Class::ProcessStalled => cluster.signal(victim, Signal::CONT)?,
        Class::NodeIsolated
        | Class::NetworkDownAtNode
        | Class::NetworkDown
        | Class::LinkCut
        | Class::LinkDegraded
        | Class::Split => cluster.hub().inject(&[])?,
    }
    cluster.wait_full(RETURN_MAX)?;
    std::thread::sleep(CALM);
    Ok(outcome)
}

/// The first verdict that anybody gave, and what stands at the end, agent by agent.
fn judge(since: Instant, said: &[Sighting], truth: &Truth) -> Outcome {
    let mut first: Option<(Instant, Class, bool)> = None;
    let mut standing: BTreeMap<usize, Vec<(Class, &[usize])>> = BTreeMap::new();
    for seen in said {
        let of_observer = standing.entry(seen.observer).or_default();
        match &seen.what {
            What::Verdict(class, about) => {
                if first.is_none_or(|(at, _, _)| seen.at < at) {
                    first = Some((seen.at, *class, truth.is_told_by(*class, about)));
                }
                of_observer.retain(|(_, same)| same != about);
                of_observer.push((*class, about));
            }
            // A verdict that led to a removal ends with it, and was not taken back.
            What::Over(class, about) if !is_removed(said, seen.observer, about) => {
                of_observer.retain(|(old, same)| !(old == class && same == about));
            }
            What::Over(..)
            | What::Started
            | What::Alive(_)
            | What::Gone(_)
            | What::Suspects(_)
            | What::Clears(_)
            | What::LinkDown(_)
            | What::LinkUp(_) => {}
        }
    }
    let mut later = BTreeMap::new();
    for verdicts in standing.into_values().filter(|verdicts| !verdicts.is_empty()) {
        let is_right = verdicts.iter().all(|(class, about)| truth.is_told_by(*class, about));
        let classes = verdicts.into_iter().map(|(class, _)| class).collect();
        *later.entry((classes, is_right)).or_default() += 1;
    }
    Outcome { first: first.map(|(at, class, is_right)| (class, is_right, at.ms_since(since))), later }
}

fn is_removed(said: &[Sighting], observer: usize, about: &[usize]) -> bool {
    let removed =
        |host: &usize| said.iter().any(|seen| seen.observer == observer && seen.what == What::Gone(*host));
    !about.is_empty() && about.iter().all(removed)
}
