//! What agents conclude about failures, read through their public API: which verdicts hold, and which came or went since a mark.
//!
//! A verdict is written as one line, `link-cut alpha beta front`: its class, the nodes and the network that it is about. It
//! decides nothing; `detection.rs` says what ought to be concluded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use steadfast_cli::api::client::Client;
use steadfast_cli::api::link_types::{Verdict, VerdictReport};
use steadfast_cli::api::types::Happening;
use steadfast_cli::bed::Host;
use steadfast_cli::commands::block_on;

use super::support::Trial;

/// Verdicts as lines.
pub(crate) type Findings = BTreeSet<String>;

/// Verdicts that say that a node, not a path, failed.
const OF_NODES: [&str; 5] = ["process-crashed", "process-stalled", "host-dead", "node-isolated", "split"];

/// How much each host had told at one moment.
pub(crate) struct Mark {
    told: BTreeMap<String, u64>,
    unix_ms: f64,
}

/// The lines that are expected.
pub(crate) fn lines(expected: &[&str]) -> Findings {
    expected.iter().map(|line| (*line).to_owned()).collect()
}

/// Whether the verdict, as a line or in words, says that a node failed.
pub(crate) fn is_of_node(line: &str) -> bool {
    let line = line.replace(' ', "-");
    OF_NODES.iter().any(|class| line.starts_with(class))
}

/// Whether the verdict says that this node failed.
pub(crate) fn blames(line: &str, node: &str) -> bool {
    is_of_node(line) && line.split(' ').skip(1).any(|word| word == node)
}

fn line(verdict: &Verdict) -> String {
    let mut nodes = verdict.nodes.clone();
    nodes.sort();
    let words = [verdict.class.clone()].into_iter().chain(nodes).chain(verdict.network.clone());
    words.collect::<Vec<_>>().join(" ")
}

fn report(host: &Host, since: Option<u64>) -> Option<VerdictReport> {
    let path = since.map_or_else(|| "/v1/verdicts".to_owned(), |since| format!("/v1/verdicts?since={since}"));
    block_on(Client::new(host.socket()).get(&path)).unwrap().ok()
}

/// The verdicts that hold on a host; `None` while its agent does not answer.
pub(crate) fn verdicts(host: &Host) -> Option<Vec<Verdict>> {
    report(host, None).map(|report| report.verdicts)
}

/// The same as lines.
pub(crate) fn held(host: &Host) -> Option<Findings> {
    verdicts(host).map(|verdicts| verdicts.iter().map(line).collect())
}

/// Remembers what these hosts have told until now.
pub(crate) fn mark<'a>(hosts: impl IntoIterator<Item = &'a Host>) -> Mark {
    let told = hosts.into_iter().map(|host| (host.name().to_owned(), report(host, None).unwrap().generation));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Mark { told: told.collect(), unix_ms: now.as_secs_f64() * 1000.0 }
}

impl Mark {
    /// Every verdict that came, or went, on `host` since; `None` while its agent does not answer. Of an agent that was
    /// started since, only what holds.
    pub(crate) fn told(&self, host: &Host) -> Option<Findings> {
        let report = report(host, Some(self.told[host.name()]))?;
        Some(report.verdicts.iter().map(line).collect())
    }

    /// What happened on `host` since, without when somebody was last heard before it fell silent.
    pub(crate) fn happenings(&self, host: &Host) -> Vec<Happening> {
        let timeline = host.status().unwrap().timeline;
        let is_since =
            |happening: &Happening| happening.at_unix_ms >= self.unix_ms && happening.what != "last_heard";
        timeline.into_iter().filter(is_since).collect()
    }

    /// Every suspicion or verdict on `host` since that says of a node other than those of `guilty` that it failed.
    pub(crate) fn accused(&self, host: &Host, guilty: &[&str]) -> Vec<String> {
        let is_guilty = |happening: &Happening| {
            happening.node.as_ref().is_some_and(|node| guilty.contains(&node.as_str()))
        };
        let is_accusation = |happening: &Happening| {
            happening.what == "suspected"
                || happening.what == "removed"
                || happening.what == "verdict" && is_of_node(&happening.detail)
        };
        let accusations = self.happenings(host).into_iter();
        accusations
            .filter(|happening| is_accusation(happening) && !is_guilty(happening))
            .map(|happening| format!("{} {:?}: {}", happening.what, happening.node, happening.detail))
            .collect()
    }
}

impl Trial {
    /// Waits until every one of these hosts holds exactly these verdicts, and goes on to for several looks.
    pub(crate) fn wait_held<'a>(&self, hosts: impl IntoIterator<Item = &'a Host> + Clone, expected: &[&str]) {
        let expected = lines(expected);
        let mut seen = BTreeMap::new();
        let mut looks = 0;
        let waited = self.try_wait(|| {
            seen = hosts.clone().into_iter().map(|host| (host.name().to_owned(), held(host))).collect();
            let is_so = seen.values().all(|held| held.as_ref() == Some(&expected));
            looks = if is_so { looks + 1 } else { 0 };
            (looks == LOOKS).then_some(())
        });
        assert!(waited.is_some(), "expected everywhere: {expected:?}; observed: {seen:#?}");
    }

    /// Waits until every one of these hosts has concluded each of these since the mark.
    pub(crate) fn wait_told<'a>(
        &self,
        mark: &Mark,
        hosts: impl IntoIterator<Item = &'a Host> + Clone,
        expected: &[&str],
    ) {
        let expected = lines(expected);
        let mut seen = BTreeMap::new();
        let waited = self.try_wait(|| {
            seen = hosts.clone().into_iter().map(|host| (host.name().to_owned(), mark.told(host))).collect();
            let is_told =
                |told: &Option<Findings>| told.as_ref().is_some_and(|told| told.is_superset(&expected));
            seen.values().all(is_told).then_some(())
        });
        assert!(waited.is_some(), "expected everywhere: {expected:?}; observed: {seen:#?}");
    }
}

/// How many looks in a row must show the same, so that nothing is taken for settled that only passes by.
const LOOKS: usize = 12;
