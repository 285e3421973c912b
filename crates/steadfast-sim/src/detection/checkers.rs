//! The invariants of PROTOCOLS 3 and 4.4, looked at after every step of every detector.
//!
//! Each check names its invariant. Those that hold under any fault are here; those that speak of one fault alone are
//! tests of their own. Must never change anything.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use steadfast_proto::detect::{Detector, Opinion, Output, Profile, Rule, Settings, Subject, Verdict};

use super::fault::{Kind, Struck};
use super::plan::{Plan, nanos};
use super::world::{duration, id_of, index_of};

/// How many violations are kept.
const KEPT_MAX: usize = 20;

/// For how long after a pause what an observer says is blamed on it.
const AFTER_PAUSE: Duration = Duration::from_secs(2);

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: &'static str,
    /// When, from the beginning.
    pub at: Duration,
    /// What was seen.
    pub seen: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} at {:?}: {}", self.invariant, self.at, self.seen)
    }
}

/// The checkers of one world.
#[derive(Debug)]
pub(super) struct Checkers {
    settings: Settings,
    networks: usize,
    /// Whether datagrams arrive, and evenly.
    is_clean: bool,
    resumed: BTreeMap<usize, u64>,
    violations: Vec<Violation>,
}

impl Checkers {
    pub(super) fn new(plan: &Plan) -> Checkers {
        Checkers {
            settings: plan.settings.clone(),
            networks: plan.networks.len(),
            is_clean: plan.networks.iter().all(|network| network.loss <= 0.0 && network.burst.is_none())
                && !plan.faults.iter().any(|fault| matches!(fault.kind, Kind::Loss | Kind::Delay)),
            resumed: BTreeMap::new(),
            violations: Vec::new(),
        }
    }

    /// A stopped agent goes on.
    pub(super) fn resumed(&mut self, now: u64, node: usize) {
        self.resumed.insert(node, now);
    }

    /// A detector took a step.
    pub(super) fn stepped(
        &mut self,
        now: u64,
        node: usize,
        detector: &Detector,
        output: &Output,
        faults: &[Struck],
    ) {
        self.check_interval(now, node, detector);
        let isolated_now = output.opinions.contains(&Opinion::Isolated);
        for opinion in &output.opinions {
            match opinion {
                Opinion::Suspected { peer, rule, silent, limit, .. } => {
                    let peer = index_of(*peer);
                    if detector.is_isolated() && !isolated_now && !matches!(rule, Rule::Kernel) {
                        self.violate("FD1", now, format!("{node} is isolated and suspects {peer}"));
                    }
                    self.check_pause(now, node, peer, faults);
                    self.check_limit(now, node, peer, *rule, (*silent, *limit));
                }
                Opinion::Verdict(verdict) => {
                    self.check_accusers(now, node, verdict);
                }
                Opinion::Cleared(_)
                | Opinion::Link { .. }
                | Opinion::NetworkSuspected { .. }
                | Opinion::NetworkCleared(_)
                | Opinion::Isolated
                | Opinion::Reconnected
                | Opinion::Over(_) => {}
            }
        }
    }

    /// G3: nobody is convicted without an accuser, except that a node may find itself cut off.
    fn check_accusers(&mut self, now: u64, node: usize, verdict: &Verdict) {
        let is_self = verdict.subject == Subject::Node(id_of(node));
        if verdict.evidence.is_empty() && !is_self {
            self.violate("G3", now, format!("{node} concludes {:?} from nothing", verdict.class));
        }
    }

    pub(super) fn finish(self) -> Vec<Violation> {
        self.violations
    }

    /// G2: the interval stays within its bounds.
    fn check_interval(&mut self, now: u64, node: usize, detector: &Detector) {
        let (interval, settings) = (detector.interval(), &self.settings);
        if interval < settings.interval || interval > settings.interval_max {
            self.violate("G2", now, format!("{node} beats every {interval:?}"));
        }
    }

    /// FD2: an observer's pause makes it suspect nobody who is well, where nothing else explains a silence.
    fn check_pause(&mut self, now: u64, node: usize, peer: usize, faults: &[Struck]) {
        if !self.is_clean {
            return;
        }
        let lately = self.resumed.get(&node).is_some_and(|at| now <= at + nanos(AFTER_PAUSE));
        let innocent = faults.iter().all(|struck| {
            let is_apart = struck.fault.kind != Kind::Split && !struck.nodes.is_empty();
            struck.began.is_none() || (is_apart && !struck.nodes.contains(&peer))
        });
        if lately && innocent {
            self.violate("FD2", now, format!("{node} was stopped and suspects {peer}"));
        }
    }

    /// G3, AT1: nobody is suspected for less silence than the rule asks, and what it asks has bounds.
    fn check_limit(
        &mut self,
        now: u64,
        node: usize,
        peer: usize,
        rule: Rule,
        (silent, limit): (Duration, Duration),
    ) {
        let settings = &self.settings;
        let is_short = match rule {
            Rule::Gossip | Rule::Timeout => silent <= limit,
            Rule::Relative => {
                silent <= settings.thresholds.process_lag.min(settings.thresholds.process_silence)
            }
            Rule::Kernel | Rule::Deaf => false,
        };
        if is_short {
            self.violate("G3", now, format!("{node} suspects {peer} after {silent:?} of {limit:?}"));
        }
        let (settings, timeout) = (&self.settings, &self.settings.timeout);
        let is_timeout = settings.profile == Profile::Timeout && rule == Rule::Timeout;
        if is_timeout && (limit < timeout.min || limit > timeout.max) {
            self.violate(
                "AT1",
                now,
                format!("{node} waits {limit:?} for {peer} ({} networks)", self.networks),
            );
        }
    }

    fn violate(&mut self, invariant: &'static str, now: u64, seen: String) {
        if self.violations.len() < KEPT_MAX {
            self.violations.push(Violation { invariant, at: duration(now), seen });
        }
    }
}
