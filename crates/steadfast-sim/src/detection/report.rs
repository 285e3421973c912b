//! What came of a run: who knew what when, what was said wrongly, and what it cost.
//!
//! A [`Finding`] stands for one thing that a fault broke (a node, a link, a network), with the time that passed until
//! each other node knew it, by a verdict of its own or by the view that followed from another's. Must never count an opinion as right by itself: `truth` says so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use steadfast_proto::detect::{Class, Opinion, Subject};

use super::checkers::Violation;
use super::fault::{Fault, Kind, Struck};
use super::plan::Plan;
use super::world::{duration, index_of};

/// How many lines are kept at most.
const LINES_MAX: usize = 20_000;

/// How many wrong opinions are kept to be shown.
const EXAMPLES_MAX: usize = 20;

/// The first second that counts as more than the start.
const WARM_SECONDS: usize = 2;

/// What one fault broke, and who came to know it.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The fault.
    pub fault: Fault,
    /// What it broke, in words.
    pub subject: String,
    /// How long each node that came to know needed for its verdict, shortest first.
    pub known: Vec<Duration>,
    /// How many never did.
    pub missing: usize,
    /// How long each node needed that noticed something by itself (a suspicion, a link), shortest first.
    pub noticed: Vec<Duration>,
    /// What each node said first.
    pub classes: BTreeMap<Class, usize>,
    /// What each node said last.
    pub classes_last: BTreeMap<Class, usize>,
}

/// Something that was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// When, from the beginning.
    pub at: Duration,
    /// By which node.
    pub node: usize,
    /// What.
    pub what: String,
    /// Whether it was right.
    pub is_right: bool,
}

/// What was said that was wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wrong {
    /// Peers suspected by one node although they were well.
    pub suspicions: usize,
    /// Verdicts about nodes that were well.
    pub verdicts: usize,
    /// Nodes that found themselves cut off and were not; nobody acts on that.
    pub isolations: usize,
    /// Verdicts about links and networks that were well.
    pub links: usize,
    /// Nodes that were well and were removed.
    pub removals: usize,
    /// Verdicts about nodes that were said again after they had been taken back.
    pub flaps: usize,
}

/// What it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Bytes that a node sent in a second, on average, seals and IP headers counted.
    pub bytes_per_s: f64,
    /// The same in the busiest second after the start.
    pub bytes_per_s_peak: f64,
    /// The same of the node that sent most.
    pub bytes_per_s_node_max: f64,
    /// Datagrams that a node sent in a second, on average.
    pub packets_per_s: f64,
    /// The same in the busiest second after the start.
    pub packets_per_s_peak: f64,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What it followed from.
    pub seed: u64,
    /// What each fault broke.
    pub findings: Vec<Finding>,
    /// What was said that was wrong.
    pub wrong: Wrong,
    /// Some of that.
    pub examples: Vec<Said>,
    /// Everything that was said, if it was asked for.
    pub lines: Vec<Said>,
    /// Who was removed, and when.
    pub removed: BTreeMap<usize, Duration>,
    /// The verdicts that each node holds at the end; none where no agent runs.
    pub standing: Vec<Vec<(Class, Subject)>>,
    /// How many views were installed after the first.
    pub views: usize,
    /// What it cost.
    pub cost: Cost,
    /// Whom the plain time-out accused, and when: (observer, subject).
    pub plain: BTreeMap<(usize, usize), Duration>,
    /// The invariants that did not hold.
    pub violations: Vec<Violation>,
    /// What tells this run from another.
    pub digest: u64,
}

/// Quantiles of durations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantiles {
    /// The median.
    pub p50: Duration,
    /// Nine of ten are not longer.
    pub p90: Duration,
    /// 99 of a hundred are not longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Quantiles {
    /// Those of `samples`; `None` when there are none.
    #[must_use]
    pub fn of(samples: impl IntoIterator<Item = Duration>) -> Option<Quantiles> {
        let mut sorted: Vec<Duration> = samples.into_iter().collect();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(Quantiles { p50: at(50)?, p90: at(90)?, p99: at(99)?, max: at(100)? })
    }
}

impl Finding {
    /// How long until the first other node knew.
    #[must_use]
    pub fn first(&self) -> Option<Duration> {
        self.known.first().copied()
    }

    /// How long until half of the others knew.
    #[must_use]
    pub fn median(&self) -> Option<Duration> {
        self.known.get(self.known.len().saturating_sub(1) / 2).copied()
    }

    /// How long until every other node knew; `None` when one never did.
    #[must_use]
    pub fn last(&self) -> Option<Duration> {
        self.known.last().copied().filter(|_| self.missing == 0)
    }
}

/// A class in words.
#[must_use]
pub fn class_name(class: Class) -> &'static str {
    match class {
        Class::ProcessCrashed => "process crashed",
        Class::ProcessStalled => "process stalled",
        Class::HostDead => "host dead",
        Class::NodeIsolated => "node isolated",
        Class::NetworkDownAtNode => "network down at node",
        Class::NetworkDown => "network down",
        Class::LinkCut => "link cut",
        Class::LinkDegraded => "link degraded",
        Class::Split => "split",
    }
}

fn subject_words(subject: &Subject) -> String {
    match subject {
        Subject::Node(node) => format!("node {}", index_of(*node)),
        Subject::NodeNetwork(node, network) => format!("node {} on network {network}", index_of(*node)),
        Subject::Network(network) => format!("network {network}"),
        Subject::Link { low, high, network } => {
            format!("link {}-{} on network {network}", index_of(*low), index_of(*high))
        }
        Subject::Nodes(nodes) => {
            let list: Vec<String> = nodes.iter().map(|id| index_of(*id).to_string()).collect();
            format!("nodes {}", list.join(","))
        }
    }
}

fn opinion_words(opinion: &Opinion) -> String {
    match opinion {
        Opinion::Suspected { peer, why, rule, silent, limit, fresh } => {
            let fresh = fresh.map_or_else(String::new, |(other, silent)| {
                format!(", freshest {} {}ms ago", index_of(other), silent.as_millis())
            });
            let (peer, silent, limit) = (index_of(*peer), silent.as_millis(), limit.as_millis());
            format!("suspects {peer} ({why:?} by {rule:?}: silent {silent}ms, limit {limit}ms{fresh})")
        }
        Opinion::Cleared(peer) => format!("clears {}", index_of(*peer)),
        Opinion::Link { peer, network, from, to } => {
            format!("link to {} on network {network}: {from:?} -> {to:?}", index_of(*peer))
        }
        Opinion::NetworkSuspected { network, or_link } => {
            format!("suspects network {network}{}", if *or_link { " (or the link)" } else { "" })
        }
        Opinion::NetworkCleared(network) => format!("clears network {network}"),
        Opinion::Isolated => "is isolated".to_owned(),
        Opinion::Reconnected => "is reconnected".to_owned(),
        Opinion::Verdict(verdict) => format!(
            "verdict: {}, {} by {} claims",
            subject_words(&verdict.subject),
            class_name(verdict.class),
            verdict.evidence.len()
        ),
        Opinion::Over(verdict) => {
            format!("over: {}, {}", subject_words(&verdict.subject), class_name(verdict.class))
        }
    }
}

/// What a fault breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Broken {
    Node(usize),
    Link(usize, usize, Option<usize>),
    NodeNetwork(usize, usize),
    Network(usize),
    Split(BTreeSet<usize>),
}

impl Broken {
    fn of(struck: &Struck) -> Vec<Broken> {
        let network = struck.network;
        match struck.fault.kind {
            Kind::Crash
            | Kind::Silent
            | Kind::Stall
            | Kind::Leave
            | Kind::Restart
            | Kind::Isolate
            | Kind::Stutter
            | Kind::Deaf
            | Kind::Mute => struck.nodes.iter().map(|node| Broken::Node(*node)).collect(),
            Kind::Unplug => {
                let network = network.unwrap_or(0);
                struck.nodes.iter().map(|node| Broken::NodeNetwork(*node, network)).collect()
            }
            Kind::CutNetwork => network.map(Broken::Network).into_iter().collect(),
            Kind::Split => vec![Broken::Split(struck.nodes.clone())],
            Kind::OneWay | Kind::CutLink | Kind::Loss | Kind::Delay => match struck.order[..] {
                [one, other] => vec![Broken::Link(one.min(other), one.max(other), network)],
                _ => Vec::new(),
            },
        }
    }

    fn words(&self) -> String {
        match self {
            Broken::Node(node) => format!("node {node}"),
            Broken::Link(low, high, Some(network)) => format!("link {low}-{high} on network {network}"),
            Broken::Link(low, high, None) => format!("link {low}-{high}"),
            Broken::NodeNetwork(node, network) => format!("node {node} on network {network}"),
            Broken::Network(network) => format!("network {network}"),
            Broken::Split(nodes) => format!("{} nodes from the rest", nodes.len()),
        }
    }

    /// Whether a verdict of `observer` about `subject` is about this.
    fn is_answered(&self, observer: usize, subject: &Subject, class: Class) -> bool {
        let is_self = |node: usize| node == observer && class == Class::NodeIsolated;
        match (self, subject) {
            (Broken::Node(broken), Subject::Node(node)) => index_of(*node) == *broken,
            (Broken::Node(broken), Subject::Nodes(nodes)) => nodes.iter().any(|id| index_of(*id) == *broken),
            (Broken::Link(low, high, on), Subject::Link { low: one, high: other, network }) => {
                let is_on = on.is_none_or(|on| on == usize::from(network.0));
                (index_of(*one), index_of(*other)) == (*low, *high) && is_on
            }
            (Broken::NodeNetwork(broken, on), Subject::NodeNetwork(node, network)) => {
                index_of(*node) == *broken && usize::from(network.0) == *on
            }
            (Broken::NodeNetwork(broken, _), Subject::Node(node)) => index_of(*node) == *broken,
            (Broken::Network(broken), Subject::Network(network)) => usize::from(network.0) == *broken,
            (Broken::Network(_), Subject::Node(node)) => is_self(index_of(*node)),
            (Broken::Split(nodes), Subject::Nodes(others)) => {
                others.iter().any(|id| nodes.contains(&index_of(*id)) != nodes.contains(&observer))
            }
            (Broken::Split(nodes), Subject::Node(node)) => {
                let node = index_of(*node);
                nodes.contains(&node) != nodes.contains(&observer) || is_self(node)
            }
            _ => false,
        }
    }

    /// Whether an opinion of `observer` shows that it noticed something of this by itself.
    fn is_noticed(&self, observer: usize, opinion: &Opinion) -> bool {
        match (self, opinion) {
            (Broken::Node(broken), Opinion::Suspected { peer, .. }) => index_of(*peer) == *broken,
            (Broken::Split(nodes), Opinion::Suspected { peer, .. }) => {
                nodes.contains(&index_of(*peer)) != nodes.contains(&observer)
            }
            (Broken::Link(low, high, on), Opinion::Link { peer, network, to, .. }) => {
                let peer = index_of(*peer);
                let is_on = on.is_none_or(|on| on == usize::from(network.0));
                (observer.min(peer), observer.max(peer)) == (*low, *high) && is_on && !to.carries()
            }
            (Broken::NodeNetwork(broken, on), Opinion::Link { peer, network, to, .. }) => {
                (index_of(*peer) == *broken || observer == *broken)
                    && usize::from(network.0) == *on
                    && !to.carries()
            }
            (Broken::Network(broken), Opinion::NetworkSuspected { network, .. }) => {
                usize::from(network.0) == *broken
            }
            (Broken::Network(_) | Broken::NodeNetwork(..), Opinion::Isolated) => true,
            _ => false,
        }
    }

    /// Whether `node` is expected to come to know this.
    fn concerns(&self, node: usize) -> bool {
        *self != Broken::Node(node)
    }
}

/// One thing that was broken, and what is known of it so far.
#[derive(Clone, Debug)]
struct Track {
    fault: usize,
    broken: Broken,
    began: Option<u64>,
    known: Vec<Option<u64>>,
    noticed: Vec<Option<u64>>,
    first: Vec<Option<Class>>,
    last: Vec<Option<Class>>,
}

/// What a world writes down.
#[derive(Debug)]
pub(super) struct Log {
    seed: u64,
    faults: Vec<Fault>,
    tracks: Vec<Track>,
    wrong: Wrong,
    examples: Vec<Said>,
    trace: Option<Vec<Said>>,
    removed: BTreeMap<usize, Duration>,
    taken_back: BTreeSet<(usize, Subject)>,
    seconds: Vec<(u64, u64)>,
    per_node: Vec<u64>,
    duration: Duration,
    digest: u64,
}

impl Log {
    pub(super) fn new(plan: &Plan, seed: u64, faults: &[Struck]) -> Log {
        let tracks = faults.iter().enumerate().flat_map(|(fault, struck)| {
            Broken::of(struck).into_iter().map(move |broken| Track {
                fault,
                broken,
                began: None,
                known: vec![None; plan.nodes],
                noticed: vec![None; plan.nodes],
                first: vec![None; plan.nodes],
                last: vec![None; plan.nodes],
            })
        });
        let seconds = usize::try_from(plan.duration.as_secs()).expect("a day has few seconds") + 1;
        Log {
            seed,
            faults: faults.iter().map(|struck| struck.fault.clone()).collect(),
            tracks: tracks.collect(),
            wrong: Wrong::default(),
            examples: Vec::new(),
            trace: plan.trace.then(Vec::new),
            removed: BTreeMap::new(),
            taken_back: BTreeSet::new(),
            seconds: vec![(0, 0); seconds],
            per_node: vec![0; plan.nodes],
            duration: plan.duration,
            digest: 0xcbf2_9ce4_8422_2325,
        }
    }

    pub(super) fn begin(&mut self, now: u64, fault: usize) {
        for track in self.tracks.iter_mut().filter(|track| track.fault == fault) {
            track.began = Some(now);
        }
    }

    pub(super) fn sent(&mut self, now: u64, node: usize, bytes: usize) {
        let second = usize::try_from(now / 1_000_000_000).expect("a day has few seconds");
        if let Some((total, packets)) = self.seconds.get_mut(second) {
            *total += bytes as u64;
            *packets += 1;
        }
        self.per_node[node] += bytes as u64;
    }

    pub(super) fn removed(&mut self, now: u64, proposer: usize, node: usize, is_right: bool) {
        self.removed.entry(node).or_insert(duration(now));
        if !is_right {
            self.wrong.removals += 1;
        }
        self.note(now, proposer, is_right, || format!("removes node {node}"));
    }

    /// A node was told a view: whom it lacks is known to be down.
    pub(super) fn installed(&mut self, now: u64, node: usize, is_member: impl Fn(usize) -> bool) {
        for track in &mut self.tracks {
            let Some(began) = track.began else { continue };
            if matches!(track.broken, Broken::Node(broken) if !is_member(broken)) {
                track.known[node].get_or_insert(now - began);
            }
        }
    }

    pub(super) fn opinion(&mut self, now: u64, node: usize, opinion: &Opinion, is_right: bool) {
        for track in &mut self.tracks {
            track.learn(now, node, opinion);
        }
        match opinion {
            Opinion::Suspected { .. } if !is_right => self.wrong.suspicions += 1,
            Opinion::Verdict(verdict) => {
                let is_node = matches!(verdict.subject, Subject::Node(_) | Subject::Nodes(_));
                let is_own = matches!(verdict.subject, Subject::Node(subject) if index_of(subject) == node);
                match (is_right, is_node) {
                    (false, true) if is_own => self.wrong.isolations += 1,
                    (false, true) => self.wrong.verdicts += 1,
                    (false, false) => self.wrong.links += 1,
                    (true, _) => {}
                }
                if is_node && self.taken_back.contains(&(node, verdict.subject.clone())) {
                    self.wrong.flaps += 1;
                }
            }
            Opinion::Over(verdict) => {
                self.taken_back.insert((node, verdict.subject.clone()));
            }
            Opinion::Suspected { .. }
            | Opinion::Cleared(_)
            | Opinion::Link { .. }
            | Opinion::NetworkSuspected { .. }
            | Opinion::NetworkCleared(_)
            | Opinion::Isolated
            | Opinion::Reconnected => {}
        }
        self.note(now, node, is_right, || opinion_words(opinion));
    }

    fn note(&mut self, now: u64, node: usize, is_right: bool, what: impl Fn() -> String) {
        let said = || Said { at: duration(now), node, what: what(), is_right };
        if !is_right && self.examples.len() < EXAMPLES_MAX {
            self.examples.push(said());
        }
        if let Some(trace) = &mut self.trace
            && trace.len() < LINES_MAX
        {
            trace.push(said());
        }
        for word in [now, node as u64, u64::from(is_right)] {
            self.digest = (self.digest ^ word).wrapping_mul(0x100_0000_01b3);
        }
    }

    pub(super) fn finish(
        self,
        alive: &[bool],
        standing: Vec<Vec<(Class, Subject)>>,
        views: usize,
        violations: Vec<Violation>,
        plain: BTreeMap<(usize, usize), u64>,
    ) -> Report {
        let findings = self.tracks.iter().filter(|track| track.began.is_some());
        let findings = findings.map(|track| track.finding(&self.faults, alive)).collect();
        let cost = self.cost(alive.len());
        Report {
            seed: self.seed,
            findings,
            wrong: self.wrong,
            examples: self.examples,
            lines: self.trace.unwrap_or_default(),
            removed: self.removed,
            standing,
            views,
            cost,
            plain: plain.into_iter().map(|(pair, at)| (pair, duration(at))).collect(),
            violations,
            digest: self.digest,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a mean for people needs no more than 52 bits")]
    fn cost(&self, nodes: usize) -> Cost {
        let per_node_second = |total: u64| total as f64 / nodes as f64;
        let lasted = self.duration.as_secs_f64();
        // The last second may be cut short.
        let whole = self.seconds.len().saturating_sub(1);
        let warm = self.seconds.get(WARM_SECONDS.min(whole)..whole).unwrap_or_default();
        let peak = |of: fn(&(u64, u64)) -> u64| per_node_second(warm.iter().map(of).max().unwrap_or(0));
        let sum = |of: fn(&(u64, u64)) -> u64| self.seconds.iter().map(of).sum::<u64>();
        Cost {
            bytes_per_s: per_node_second(sum(|second| second.0)) / lasted,
            bytes_per_s_peak: peak(|second| second.0),
            bytes_per_s_node_max: self.per_node.iter().max().map_or(0.0, |most| *most as f64 / lasted),
            packets_per_s: per_node_second(sum(|second| second.1)) / lasted,
            packets_per_s_peak: peak(|second| second.1),
        }
    }
}

impl Track {
    fn learn(&mut self, now: u64, node: usize, opinion: &Opinion) {
        let Some(began) = self.began else { return };
        if self.noticed[node].is_none() && self.broken.is_noticed(node, opinion) {
            self.noticed[node] = Some(now - began);
        }
        let Opinion::Verdict(verdict) = opinion else { return };
        if self.broken.is_answered(node, &verdict.subject, verdict.class) {
            self.known[node].get_or_insert(now - began);
            self.first[node].get_or_insert(verdict.class);
            self.last[node] = Some(verdict.class);
        }
    }

    fn finding(&self, faults: &[Fault], alive: &[bool]) -> Finding {
        let lives =
            |node: &usize| alive.get(*node).is_some_and(|alive| *alive) && self.broken.concerns(*node);
        let others: Vec<usize> = (0..alive.len()).filter(lives).collect();
        let times = |of: &[Option<u64>]| {
            let mut times: Vec<Duration> = others.iter().filter_map(|node| of[*node]).map(duration).collect();
            times.sort_unstable();
            times
        };
        let classes = |of: &[Option<Class>]| {
            let mut classes = BTreeMap::new();
            for class in others.iter().filter_map(|node| of[*node]) {
                *classes.entry(class).or_insert(0) += 1;
            }
            classes
        };
        let known = times(&self.known);
        Finding {
            fault: faults[self.fault].clone(),
            subject: self.broken.words(),
            missing: others.len() - known.len(),
            known,
            noticed: times(&self.noticed),
            classes: classes(&self.first),
            classes_last: classes(&self.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let ms = Duration::from_millis;
        let quantiles = Quantiles::of((1..=100).map(ms)).unwrap();
        assert_eq!((quantiles.p50, quantiles.p99, quantiles.max), (ms(50), ms(99), ms(100)));
        let one = Quantiles::of([ms(7)]).unwrap();
        assert_eq!((one.p50, one.p99), (ms(7), ms(7)));
        assert_eq!(Quantiles::of([]), None);
    }
}
