//! What must not happen: healthy agents counted out under loss, pauses, stutter, deafness, a cut link or a split.
//!
//! Each scenario happens to fresh clusters of all systems at the same time. A removal is one agent that counts another
//! out, so one decision that all of sixteen share is fifteen of them, whatever the system.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustix::process::Signal;

use super::cluster::{Cluster, Death};
use super::hub::Fault;
use super::journal::{Class, Instant, Sighting, What};
use super::ours::NAME;
use super::scenarios::{Bench, RETURN_MAX, SETTLE, SETTLE_SHORT, boot, show_ms};

const LOOK: Duration = Duration::from_millis(10);
/// How long a failing link may stay unreported.
const LINKS_MAX: Duration = Duration::from_secs(10);
/// How long a split may take to heal.
const HEAL_MAX: Duration = Duration::from_secs(80);
/// The four that stutter.
const STUTTERERS: [usize; 4] = [3, 6, 9, 12];
/// The one that is paused, or deaf.
const SICK: usize = 5;

/// How often agents were wronged, among those that `judged` by (observer, subject).
struct Harm {
    removals: usize,
    subjects: BTreeSet<usize>,
    observers: BTreeSet<usize>,
    suspicions: usize,
}

fn harm(cluster: &Cluster, since: Instant, judged: impl Fn(usize, usize) -> bool) -> Harm {
    let mut harm = Harm { removals: 0, subjects: BTreeSet::new(), observers: BTreeSet::new(), suspicions: 0 };
    for seen in cluster.journal().since(since, |_| true) {
        // Whoever learns of its own removal accuses nobody.
        let judged = |observer: usize, subject: usize| observer != subject && judged(observer, subject);
        match seen.what {
            What::Gone(subject) if judged(seen.observer, subject) => {
                harm.removals += 1;
                harm.subjects.insert(subject);
                harm.observers.insert(seen.observer);
            }
            What::Suspects(subject) if judged(seen.observer, subject) => harm.suspicions += 1,
            What::Verdict(Class::HostDead | Class::ProcessCrashed, about)
                if about.first().is_some_and(|subject| judged(seen.observer, *subject)) =>
            {
                harm.suspicions += 1;
            }
            What::Gone(_)
            | What::Suspects(_)
            | What::Verdict(..)
            | What::Over(..)
            | What::Started
            | What::Alive(_)
            | What::Clears(_)
            | What::LinkDown(_)
            | What::LinkUp(_) => {}
        }
    }
    harm
}

impl Harm {
    fn text(&self) -> String {
        if self.removals == 0 {
            return format!("0 ({} suspicions)", self.suspicions);
        }
        format!(
            "{} removals of {} agents at {} agents ({} suspicions)",
            self.removals,
            self.subjects.len(),
            self.observers.len(),
            self.suspicions
        )
    }
}

impl Bench {
    /// Wrong removals at 10, 25 and 40 % loss, and deaths at 25 %.
    pub fn loss(&mut self) -> anyhow::Result<()> {
        for (percent, full) in [(10, 150), (25, 150), (40, 120)] {
            let mut clusters = boot(self.contenders.all()?, 16, 1);
            std::thread::sleep(SETTLE_SHORT);
            let length = self.options.length(full);
            for (name, removals) in self.wrong_at_loss(&clusters, percent, length, "")? {
                if name == NAME {
                    self.report.figure(&format!("detect.wrong.loss{percent}"), removals as f64, "removals");
                }
            }
            if percent == 25 {
                // Where views no longer agree under loss, a death means nothing and a return never ends.
                clusters.retain(|cluster| {
                    let agreed = cluster.is_full_within(SETTLE);
                    if !agreed {
                        let text = "not measured: the agents did not agree on who lives".to_owned();
                        self.table.put("killed N=16 at 25 % loss", &cluster.name(), text);
                    }
                    agreed
                });
                let trials = self.options.trials().div_ceil(3);
                for (death, word) in [(Death::Killed, "killed"), (Death::Silent, "silent")] {
                    let seen = self.rounds(&mut clusters, death, trials);
                    self.tell(&format!("{word} N=16 at 25 % loss"), &seen);
                    self.percentiles(&format!("detect.{word}.loss25"), &seen);
                }
            }
        }
        Ok(())
    }

    /// Lets that share of all packets be lost for so long; how often each system counted somebody out. The loss stays.
    pub fn wrong_at_loss(
        &mut self,
        clusters: &[Cluster],
        percent: u8,
        length: Duration,
        prefix: &str,
    ) -> anyhow::Result<Vec<(String, usize)>> {
        let since = Instant::now();
        for cluster in clusters {
            cluster.hub().inject(&[Fault::Loss(percent)])?;
        }
        std::thread::sleep(length);
        let mut removals = Vec::new();
        for cluster in clusters {
            let harm = harm(cluster, since, |_, _| true);
            let row = format!("{prefix}wrongly removed in {} s at {percent} % loss", length.as_secs());
            self.table.put(&row, &cluster.name(), harm.text());
            removals.push((cluster.name(), harm.removals));
        }
        Ok(removals)
    }

    /// One agent paused for eight seconds; four of sixteen that stutter.
    pub fn pauses(&mut self) -> anyhow::Result<()> {
        let clusters = boot(self.contenders.all()?, 16, 1);
        std::thread::sleep(SETTLE);
        let since = Instant::now();
        for cluster in &clusters {
            cluster.signal(SICK, Signal::STOP)?;
        }
        std::thread::sleep(Duration::from_secs(8));
        for cluster in &clusters {
            cluster.signal(SICK, Signal::CONT)?;
        }
        std::thread::sleep(Duration::from_secs(12));
        for cluster in &clusters {
            let by_sleeper = harm(cluster, since, |observer, _| observer == SICK);
            let others = harm(cluster, since, |observer, subject| observer != SICK && subject != SICK);
            let sleeper = harm(cluster, since, |_, subject| subject == SICK);
            self.table.put("paused 8 s: accuses healthy ones on waking", &cluster.name(), by_sleeper.text());
            self.table.put("paused 8 s: others removed by others", &cluster.name(), others.text());
            self.table.put("paused 8 s: itself removed", &cluster.name(), sleeper.text());
            let stalled = cluster.journal().since(since, |seen| {
                matches!(&seen.what, What::Verdict(Class::ProcessStalled, about) if about.as_slice() == [SICK])
            });
            let mut first: Vec<f64> = stalled.iter().map(|seen| seen.at.ms_since(since)).collect();
            first.sort_by(f64::total_cmp);
            if let Some(ms) = first.first() {
                self.table.put("paused 8 s: reported as stalled", &cluster.name(), show_ms(*ms));
                self.report.figure("detect.stalled.first", *ms, "ms");
            }
            if cluster.name() == NAME {
                let wrong = by_sleeper.removals + others.removals + sleeper.removals;
                self.report.figure("detect.wrong.paused8s", wrong as f64, "removals");
            }
        }
        self.stutter(clusters)
    }

    fn stutter(&mut self, mut clusters: Vec<Cluster>) -> anyhow::Result<()> {
        clusters.retain(|cluster| {
            let agreed = cluster.is_full_within(RETURN_MAX);
            if !agreed {
                println!("GIVEN UP {}: its agents did not agree again after the pause", cluster.name());
            }
            agreed
        });
        let length = self.options.length(120);
        let since = Instant::now();
        while since.elapsed() < length {
            for (signal, pause) in [(Signal::STOP, 2048), (Signal::CONT, 256)] {
                for cluster in &clusters {
                    for host in STUTTERERS {
                        cluster.signal(host, signal)?;
                    }
                }
                std::thread::sleep(Duration::from_millis(pause));
            }
        }
        for cluster in &clusters {
            let healthy = harm(cluster, since, |_, subject| !STUTTERERS.contains(&subject));
            let four = harm(cluster, since, |_, subject| STUTTERERS.contains(&subject));
            let seconds = length.as_secs();
            self.table.put(
                &format!("4 of 16 stutter {seconds} s: healthy removed"),
                &cluster.name(),
                healthy.text(),
            );
            self.table.put(
                &format!("4 of 16 stutter {seconds} s: the four removed"),
                &cluster.name(),
                four.text(),
            );
            if cluster.name() == NAME {
                self.report.figure("detect.wrong.stutter", healthy.removals as f64, "removals");
            }
        }
        Ok(())
    }

    /// A deaf agent, a cut link, a split that heals.
    pub fn paths(&mut self) -> anyhow::Result<()> {
        let mut clusters = boot(self.contenders.all()?, 16, 1);
        std::thread::sleep(SETTLE);
        self.cut_link(&clusters)?;
        self.split(&clusters)?;
        clusters.clear();
        let clusters = boot(self.contenders.all()?, 16, 1);
        std::thread::sleep(SETTLE_SHORT);
        let length = self.options.length(90);
        let since = Instant::now();
        for cluster in &clusters {
            cluster.hub().inject(&[Fault::LossTo(SICK, 80)])?;
        }
        std::thread::sleep(length);
        for cluster in &clusters {
            let others = harm(cluster, since, |_, subject| subject != SICK);
            let sick = harm(cluster, since, |_, subject| subject == SICK);
            let back = cluster.journal().since(since, |seen| seen.what == What::Alive(SICK)).len();
            let row = format!("80 % inbound loss at one, {} s", length.as_secs());
            self.table.put(&format!("{row}: healthy removed"), &cluster.name(), others.text());
            self.table.put(
                &format!("{row}: itself removed"),
                &cluster.name(),
                format!("{}, {back} returns", sick.text()),
            );
            if cluster.name() == NAME {
                self.report.figure("detect.wrong.deaf", others.removals as f64, "removals");
            }
        }
        Ok(())
    }

    fn cut_link(&mut self, clusters: &[Cluster]) -> anyhow::Result<()> {
        for cluster in clusters {
            let since = Instant::now();
            let other = cluster.watched_by(SICK);
            cluster.hub().inject(&[Fault::Cut(SICK, other, None)])?;
            if cluster.name() == NAME {
                let ms = wait_links(cluster, since, &[SICK, other], Failing::Link);
                let text = ms.map_or("never".to_owned(), show_ms);
                self.table.put("one link cut: known at both ends", &cluster.name(), text);
                if let Some(ms) = ms {
                    self.report.figure("detect.link_cut.both_ends", ms, "ms");
                }
            }
        }
        let since = Instant::now();
        std::thread::sleep(self.options.length(90).min(Duration::from_secs(30)));
        for cluster in clusters {
            self.table.put(
                "one link cut: removed",
                &cluster.name(),
                harm(cluster, since, |_, _| true).text(),
            );
            if cluster.name() != NAME {
                let text = "not supported".to_owned();
                self.table.put("one link cut: known at both ends", &cluster.name(), text);
            }
            cluster.hub().inject(&[])?;
        }
        Ok(())
    }

    fn split(&mut self, clusters: &[Cluster]) -> anyhow::Result<()> {
        std::thread::sleep(SETTLE_SHORT);
        for cluster in clusters {
            cluster.hub().inject(&[Fault::Split(8)])?;
        }
        std::thread::sleep(self.options.length(60).max(Duration::from_secs(30)));
        let healed = std::thread::scope(|scope| {
            let running: Vec<_> = clusters.iter().map(|cluster| scope.spawn(move || heal(cluster))).collect();
            running
                .into_iter()
                .map(|thread| thread.join().expect("a wait does not panic"))
                .collect::<Vec<_>>()
        });
        for (cluster, healed) in clusters.iter().zip(healed) {
            let text = match healed? {
                Some(ms) if cluster.name() == NAME => {
                    self.report.figure("detect.split_heals", ms, "ms");
                    show_ms(ms)
                }
                Some(ms) => show_ms(ms),
                None => format!("not within {} s", HEAL_MAX.as_secs()),
            };
            self.table.put("split 8/8 heals: all count all again after", &cluster.name(), text);
        }
        Ok(())
    }

    /// One of two networks cut for everybody; ours only, nobody else has two.
    pub fn networks(&mut self) -> anyhow::Result<()> {
        let Some(ours) = self.contenders.ours()? else { return Ok(()) };
        for cluster in boot(vec![ours], 16, 2) {
            std::thread::sleep(SETTLE);
            let since = Instant::now();
            cluster.hub().inject(&[Fault::Network(1)])?;
            let everybody: Vec<usize> = (0..cluster.hosts()).collect();
            let ms = wait_links(&cluster, since, &everybody, Failing::Network);
            self.table.put(
                "one of two networks cut: known everywhere",
                NAME,
                ms.map_or("never".to_owned(), show_ms),
            );
            if let Some(ms) = ms {
                self.report.figure("detect.network_cut.everywhere", ms, "ms");
            }
            std::thread::sleep(self.options.length(30).min(Duration::from_secs(30)));
            let harm = harm(&cluster, since, |_, _| true);
            self.table.put("one of two networks cut: removed", NAME, harm.text());
            self.report.figure("detect.network_cut.removed", harm.removals as f64, "removals");
        }
        Ok(())
    }
}

/// Heals a split; milliseconds until every agent counts every other again and suspects nobody.
fn heal(cluster: &Cluster) -> anyhow::Result<Option<f64>> {
    let since = Instant::now();
    cluster.hub().inject(&[])?;
    let calm = || cluster.running().iter().all(|host| cluster.journal().suspects(*host).is_empty());
    while since.elapsed() < HEAL_MAX {
        if calm() && cluster.is_full() {
            // The last thing that an agent said of another is when it was whole; looking is slower.
            let said =
                cluster.journal().since(since, |seen| matches!(seen.what, What::Alive(_) | What::Clears(_)));
            return Ok(Some(said.iter().map(|seen| seen.at.ms_since(since)).fold(0.0, f64::max)));
        }
        std::thread::sleep(LOOK);
    }
    for host in cluster.running() {
        let suspects = cluster.journal().suspects(host);
        if !suspects.is_empty() {
            println!("{}: agent {host} has not taken back that it suspects {suspects:?}", cluster.name());
        }
    }
    println!("{}: whole again by its agents' own word: {}", cluster.name(), cluster.is_full());
    Ok(None)
}

/// What a report of a failing link must be about.
#[derive(Clone, Copy, Debug)]
enum Failing {
    /// The link between the sick one and the other.
    Link,
    /// A whole network.
    Network,
}

/// Milliseconds until each of these agents has said that it fails.
fn wait_links(cluster: &Cluster, since: Instant, observers: &[usize], failing: Failing) -> Option<f64> {
    let is_it = |seen: &Sighting| {
        let What::LinkDown(about) = &seen.what else { return false };
        match failing {
            Failing::Network => about.is_empty(),
            Failing::Link => {
                let ends: BTreeSet<usize> = about.iter().copied().chain([seen.observer]).collect();
                ends == observers.iter().copied().collect()
            }
        }
    };
    loop {
        let mut first = BTreeMap::new();
        for seen in cluster.journal().since(since, is_it) {
            first.entry(seen.observer).or_insert(seen.at);
        }
        let known: Vec<f64> =
            observers.iter().filter_map(|host| first.get(host)).map(|at| at.ms_since(since)).collect();
        if known.len() == observers.len() {
            return Some(known.into_iter().fold(0.0, f64::max));
        }
        if since.elapsed() > LINKS_MAX {
            return None;
        }
        std::thread::sleep(LOOK);
    }
}
