//! The invariants of PROTOCOLS 3 and 4.4, looked at after every step of every detector.
//!
//! Each check names its invariant. Those that hold under any fault are here; those that speak of one fault alone are
//! tests of their own. Must never change anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use steadfast_proto::detect::{
    Class, Detector, Members, Opinion, Output, Profile, Rule, Settings, Subject, Verdict,
};
use steadfast_proto::ids::{Incarnation, NodeId};
use steadfast_proto::wire::{Claim, Heartbeat};

use super::fault::{Kind, Struck};
use super::plan::{Plan, nanos};
use super::world::{duration, id_of, index_of};

/// How many violations are kept.
const KEPT_MAX: usize = 20;

/// For how long after a pause what an observer says is blamed on it.
const AFTER_PAUSE: Duration = Duration::from_secs(2);

/// For how long a denial certainly counts; detectors remember one for twice as long.
const DENIAL_COUNTS: Duration = Duration::from_secs(5);

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
    /// Which observer ever found which incarnation of a node to have failed, by its own rule.
    accused: BTreeSet<(usize, NodeId, Incarnation)>,
    /// What each detector knows and remembers as long as it runs.
    minds: BTreeMap<usize, Mind>,
    violations: Vec<Violation>,
}

/// What is known of one detector by what it was given and what it said.
#[derive(Debug, Default)]
struct Mind {
    /// Denials that it made or passed on, the newest by subject and by who denies.
    denials: BTreeMap<(NodeId, NodeId), Denial>,
    /// Whom it finds to be down.
    down: BTreeSet<NodeId>,
    /// Its members.
    members: Arc<Members>,
    /// Incarnations of nodes that a committed change took from its members.
    gone: BTreeSet<(NodeId, Incarnation)>,
}

/// That somebody heard a node after others lost it.
#[derive(Clone, Copy, Debug)]
struct Denial {
    incarnation: Incarnation,
    last_sequence: u64,
    version: u64,
    /// When it was first passed on here.
    at: u64,
}

impl Checkers {
    pub(super) fn new(plan: &Plan) -> Checkers {
        Checkers {
            settings: plan.settings.clone(),
            networks: plan.networks.len(),
            is_clean: plan.networks.iter().all(|network| network.loss <= 0.0 && network.burst.is_none())
                && !plan.faults.iter().any(|fault| matches!(fault.kind, Kind::Loss | Kind::Delay)),
            resumed: BTreeMap::new(),
            accused: BTreeSet::new(),
            minds: BTreeMap::new(),
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
        self.check_members(now, node, detector, output);
        self.note_denials(now, node, output);
        let isolated_now = output.opinions.contains(&Opinion::Isolated);
        for opinion in &output.opinions {
            match opinion {
                Opinion::Suspected { peer, rule, silent, limit, .. } => {
                    let incarnation = detector.incarnation_of(*peer).map(|(incarnation, _)| incarnation);
                    self.accused.extend(incarnation.map(|incarnation| (node, *peer, incarnation)));
                    let peer = index_of(*peer);
                    if detector.is_isolated() && !isolated_now && !matches!(rule, Rule::Kernel) {
                        self.violate("FD1", now, format!("{node} is isolated and suspects {peer}"));
                    }
                    self.check_pause(now, node, peer, faults);
                    self.check_limit(now, node, peer, *rule, (*silent, *limit));
                }
                Opinion::Verdict(verdict) => {
                    self.check_accusers(now, node, detector, verdict);
                    self.check_denials(now, node, detector, verdict);
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
        if !output.opinions.is_empty() {
            self.note_down(node, detector);
        }
    }

    /// G3: nobody is convicted without accusers, for each of whom the limit was passed; except that a node may find
    /// itself cut off.
    fn check_accusers(&mut self, now: u64, node: usize, detector: &Detector, verdict: &Verdict) {
        let is_self = verdict.subject == Subject::Node(id_of(node));
        if verdict.evidence.is_empty() && !is_self {
            self.violate("G3", now, format!("{node} concludes {:?} from nothing", verdict.class));
        }
        let nodes = nodes_of(&verdict.subject);
        if nodes.is_empty() || is_self {
            return;
        }
        let incarnations = detector.members().incarnations();
        let found = |observer: NodeId| {
            let passed = |id: &NodeId| {
                let accusation =
                    incarnations.get(id).map(|incarnation| (index_of(observer), *id, *incarnation));
                accusation.is_some_and(|accusation| self.accused.contains(&accusation))
            };
            nodes.iter().any(passed)
        };
        let stranger =
            verdict.evidence.iter().map(|(observer, _)| *observer).find(|observer| !found(*observer));
        if let Some(observer) = stranger {
            let seen = format!(
                "{node} convicts {:?} by {}, for whom no limit was passed",
                verdict.subject,
                index_of(observer)
            );
            self.violate("G3", now, seen);
        }
    }

    /// G4: nobody is convicted while an observer in good standing denies it who heard the node after its accusers.
    fn check_denials(&mut self, now: u64, node: usize, detector: &Detector, verdict: &Verdict) {
        // A kernel's word that an agent is gone is no matter of who heard it last; nor is being cut off oneself.
        if verdict.class == Class::ProcessCrashed || verdict.subject == Subject::Node(id_of(node)) {
            return;
        }
        let Some(mind) = self.minds.get(&node) else { return };
        let (members, is_new) = (detector.members(), |id: &NodeId| !mind.down.contains(id));
        let last = verdict.evidence.iter().filter_map(|(_, claim)| match claim {
            Claim::Down { last_sequence, .. } => Some(*last_sequence),
            Claim::Alive { .. } | Claim::Well | Claim::Link { .. } => None,
        });
        let last = last.max().unwrap_or_default();
        let recent = now.saturating_sub(nanos(DENIAL_COUNTS));
        let counts = |subject: NodeId, voter: NodeId, denial: &Denial| {
            denial.at >= recent
                && denial.last_sequence > last
                && members.incarnations().get(&subject) == Some(&denial.incarnation)
                && members.neighbours(subject).contains(&voter)
                && !verdict.evidence.iter().any(|(observer, _)| *observer == voter)
                && is_trusted(detector, voter)
        };
        let convicted: Vec<NodeId> = nodes_of(&verdict.subject).into_iter().filter(is_new).collect();
        let denied = mind.denials.iter().find(|((subject, voter), denial)| {
            *voter != *subject && convicted.contains(subject) && counts(*subject, *voter, denial)
        });
        if let Some(((subject, voter), denial)) = denied {
            let seen = format!(
                "{node} convicts {}, last heard at {last}, and {} denies it: {denial:?}",
                index_of(*subject),
                index_of(*voter)
            );
            self.violate("G4", now, seen);
        }
    }

    /// G5: an incarnation that a committed change took from the members is never one again, and nobody forms an
    /// opinion of it.
    fn check_members(&mut self, now: u64, node: usize, detector: &Detector, output: &Output) {
        if output.send.iter().any(|(_, _, heartbeat)| heartbeat.sequence == 1) {
            // It started anew and remembers nothing; what was committed stays so.
            let mind = self.minds.entry(node).or_default();
            mind.denials.clear();
            mind.down.clear();
        }
        let mind = self.minds.entry(node).or_default();
        let (before, after) = (Arc::clone(&mind.members), detector.members());
        let mut returned = None;
        if !Arc::ptr_eq(&before, after) {
            let is_left = |(id, incarnation): &(&NodeId, &Incarnation)| {
                after.incarnations().get(id) != Some(incarnation)
            };
            let left = before.incarnations().iter().filter(is_left);
            mind.gone.extend(left.map(|(id, incarnation)| (*id, *incarnation)));
            mind.members = Arc::clone(after);
            let all = after.incarnations().iter().map(|(id, incarnation)| (*id, *incarnation));
            returned = all.into_iter().find(|member| mind.gone.contains(member));
        }
        if let Some((id, incarnation)) = returned {
            self.violate("G5", now, format!("{node} has {} of {incarnation:?} again", index_of(id)));
        }
        let is_member = |id: &NodeId| after.incarnations().contains_key(id);
        for opinion in &output.opinions {
            let about = match opinion {
                Opinion::Suspected { peer, .. } | Opinion::Cleared(peer) => Some(*peer),
                Opinion::Verdict(verdict) => nodes_of(&verdict.subject).into_iter().find(|id| !is_member(id)),
                Opinion::Link { .. }
                | Opinion::NetworkSuspected { .. }
                | Opinion::NetworkCleared(_)
                | Opinion::Isolated
                | Opinion::Reconnected
                | Opinion::Over(_) => None,
            };
            if let Some(id) = about.filter(|id| !is_member(id) && index_of(*id) != node) {
                self.violate(
                    "G5",
                    now,
                    format!("{node} judges {}, which was removed: {opinion:?}", index_of(id)),
                );
            }
        }
    }

    /// Takes note of what this detector said that others deny, and of whom it found down until now.
    fn note_denials(&mut self, now: u64, node: usize, output: &Output) {
        let mind = self.minds.entry(node).or_default();
        // All of one step carry the same rumours.
        let said = output.send.first().map_or(&[][..], |(_, _, Heartbeat { rumours, .. })| rumours);
        for rumour in said {
            let Claim::Alive { last_sequence } = rumour.claim else { continue };
            let (incarnation, version) = (rumour.incarnation, rumour.version);
            let denial = Denial { incarnation, last_sequence, version, at: now };
            let known = mind.denials.entry((rumour.subject, rumour.observer)).or_insert(denial);
            if (known.incarnation, known.version) < (incarnation, version) {
                *known = denial;
            }
        }
    }

    /// Remembers whom a detector finds down after its step.
    fn note_down(&mut self, node: usize, detector: &Detector) {
        let mind = self.minds.entry(node).or_default();
        mind.down = detector.verdicts().keys().flat_map(nodes_of).collect();
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

/// The nodes that a verdict is about, not their links.
fn nodes_of(subject: &Subject) -> Vec<NodeId> {
    match subject {
        Subject::Node(node) => vec![*node],
        Subject::Nodes(nodes) => nodes.iter().copied().collect(),
        Subject::NodeNetwork(..) | Subject::Network(_) | Subject::Link { .. } => Vec::new(),
    }
}

/// Whether too few accuse `voter` for its own word to be in doubt.
fn is_trusted(detector: &Detector, voter: NodeId) -> bool {
    let members = detector.members();
    let accuses = |observer: &&NodeId| detector.suspects_of(**observer).contains(&voter);
    let (_, low) = members.watermarks(voter);
    members.neighbours(voter).iter().filter(accuses).count() < low
}
