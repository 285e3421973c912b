//! From claims to verdicts: what failed, by whose testimony (PROTOCOLS 3.2, 6; DESIGN 1).
//!
//! One observer convicts nobody: a node is down when enough of those that watch it say so and nobody who heard it
//! later disagrees. Links are judged by how many of a node's links fail together. A verdict is still an opinion;
//! [`crate::view`] says what a removal needs. Everything here is a function of the claims and the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::claims::{Claims, Held, Slot};
use super::graph::{self, Graph};
use crate::flaw::{Flaw, is_planted};
use crate::ids::{Incarnation, NetworkId, NodeId};
use crate::time::Time;
use crate::wire::{Claim, LinkState, Why};

/// How many observers that have it from the kernel convict a node, where more would have to notice its silence.
const CRASHED_MIN: usize = 3;

/// The members of a view, and who of them watches whom.
#[derive(Clone, Debug, Default)]
pub struct Members {
    incarnations: BTreeMap<NodeId, Incarnation>,
    graph: Graph,
}

impl Members {
    /// The members of one view; every node that has the same ones and the same `seed` knows the same graph.
    #[must_use]
    pub fn new(incarnations: BTreeMap<NodeId, Incarnation>, seed: u64) -> Members {
        let graph = Graph::new(&incarnations.keys().copied().collect(), seed);
        Members { incarnations, graph }
    }

    /// Whether what is said of a member's incarnation concerns it today. Of one that was started again and is not admitted in
    /// its new incarnation yet, that counts too: it may end before it ever is.
    pub(super) fn is_todays(&self, member: NodeId, incarnation: Incarnation) -> bool {
        self.incarnations.get(&member).is_some_and(|admitted| incarnation >= *admitted)
    }

    /// Each member and its incarnation.
    #[must_use]
    pub fn incarnations(&self) -> &BTreeMap<NodeId, Incarnation> {
        &self.incarnations
    }

    /// Whom `node` watches, and who watches it.
    #[must_use]
    pub fn neighbours(&self, node: NodeId) -> &[NodeId] {
        self.graph.neighbours(node)
    }

    /// How many of its observers convict `node`, and how many make its case doubtful.
    #[must_use]
    pub fn watermarks(&self, node: NodeId) -> (usize, usize) {
        graph::watermarks(self.neighbours(node).len(), self.incarnations.len())
    }
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Class {
    /// An agent ended while its machine lives.
    ProcessCrashed,
    /// An agent does not run although its machine lives.
    ProcessStalled,
    /// A machine, or every path to it, is gone.
    HostDead,
    /// A node hears nobody.
    NodeIsolated,
    /// A node is off one network.
    NetworkDownAtNode,
    /// A whole network carries nothing.
    NetworkDown,
    /// Two nodes don't hear each other on one network, in one direction or both.
    LinkCut,
    /// A link loses or delays much.
    LinkDegraded,
    /// The members fell into groups that don't hear each other.
    Split,
}

/// Where it failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A node.
    Node(NodeId),
    /// A node's connection to one network.
    NodeNetwork(NodeId, NetworkId),
    /// A network.
    Network(NetworkId),
    /// The link between two nodes; the lower id comes first.
    Link {
        /// One end.
        low: NodeId,
        /// The other.
        high: NodeId,
        /// On which network.
        network: NetworkId,
    },
    /// The nodes on the other side of a split.
    Nodes(BTreeSet<NodeId>),
}

/// How many beats the links of a node that is heard again are given until they are judged.
const LINKS_RETURN_BEATS: u32 = 10;

/// For how many beats those found dead after a split are counted to it.
const SPLIT_BEATS: u32 = 30;

/// What a node concludes from everybody's claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What failed.
    pub class: Class,
    /// Where.
    pub subject: Subject,
    /// Since when it has been known here.
    pub since: Time,
    /// Who says what: the accusers and their evidence.
    pub evidence: Vec<(NodeId, Claim)>,
}

/// What is concluded at one moment, by subject.
pub(super) type Findings = BTreeMap<Subject, (Class, Vec<(NodeId, Claim)>)>;

/// What the judgement of nodes needs to remember from one evaluation to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Bench {
    /// Who is down, by the last judgement.
    convicted: BTreeSet<NodeId>,
    /// Since when enough accuse a node that is not convicted.
    reached: BTreeMap<NodeId, Time>,
    /// Since when a node that was convicted is so no longer.
    released: BTreeMap<NodeId, Time>,
    /// When claims about links on a network last changed, and since when they have been changing.
    unsettled: BTreeMap<NetworkId, (Time, Time)>,
    /// Whether a node's case is doubtful, and since when.
    doubtful: BTreeMap<NodeId, Time>,
    /// When members last fell into groups: those found dead soon after are of the same split, with fewer observers.
    split_at: Option<Time>,
}

/// What an evaluation looks at.
pub(super) struct Case<'a> {
    pub(super) now: Time,
    pub(super) members: &'a Members,
    pub(super) claims: &'a Claims,
    /// Peers of this node that are late enough to have fallen silent together with others.
    pub(super) late: BTreeSet<NodeId>,
    /// How long a denial may still be on its way.
    pub(super) refute: Duration,
    pub(super) interval: Duration,
}

impl Bench {
    /// A claim about a link on `network` changed.
    pub(super) fn unsettle(&mut self, now: Time, network: NetworkId) {
        self.unsettled.entry(network).and_modify(|(last, _)| *last = now).or_insert((now, now));
    }

    /// This node was cut off until now: what is known of anybody's links is of the past.
    pub(super) fn release(&mut self, now: Time, members: &Members) {
        self.released.extend(members.incarnations.keys().map(|id| (*id, now)));
    }

    /// Whether time alone can change what is concluded.
    pub(super) fn is_pending(&self) -> bool {
        !self.unsettled.is_empty() || !self.reached.is_empty() || !self.released.is_empty()
    }

    /// Whether enough accuse a node that is not convicted yet.
    pub(super) fn has_case(&self) -> bool {
        !self.reached.is_empty()
    }

    /// Whether a case is open that may end as others just did: enough or nearly enough accuse a node, and not for
    /// longer than `patience`.
    pub(super) fn is_open(&self, now: Time, patience: Duration) -> bool {
        self.reached.values().chain(self.doubtful.values()).any(|since| now.since(*since) < patience)
    }

    /// Everything that the claims prove now. `before` is what was concluded last.
    pub(super) fn judge(&mut self, case: &Case<'_>, before: &BTreeMap<Subject, Verdict>) -> Findings {
        let mut findings = Findings::new();
        self.judge_nodes(case, before, &mut findings);
        self.judge_networks(case, before, &mut findings);
        findings
    }

    fn judge_nodes(&mut self, case: &Case<'_>, before: &BTreeMap<Subject, Verdict>, findings: &mut Findings) {
        let accused = accusations(case);
        let mut reached = BTreeMap::new();
        let mut doubtful = BTreeMap::new();
        let mut down = BTreeMap::new();
        let mut pending = BTreeSet::new();
        for (subject, accusers) in &accused {
            let (mut high, low) = case.members.watermarks(*subject);
            if count_of(accusers, Why::Crashed) >= CRASHED_MIN {
                high = high.min(CRASHED_MIN);
            }
            let count = accusers.len() + implied(case, &accused, *subject);
            if count < high {
                if count >= low && case.members.incarnations.len() > 3 {
                    doubtful.insert(*subject, *self.doubtful.get(subject).unwrap_or(&case.now));
                }
                continue;
            }
            let since = *self.reached.get(subject).unwrap_or(&case.now);
            let mut class = class_of(accusers);
            // While accusers take it back one by one, what is left of them does not make it worse.
            let silent = accusers.len() - count_of(accusers, Why::Stalled);
            let was_stalled = before
                .get(&Subject::Node(*subject))
                .is_some_and(|verdict| verdict.class == Class::ProcessStalled);
            if class == Class::HostDead && was_stalled && silent < high {
                class = Class::ProcessStalled;
            }
            let known = self.convicted.contains(subject);
            let refuted = class != Class::ProcessCrashed && is_refuted(case, &accused, *subject);
            let is_certain = class == Class::ProcessCrashed
                || (case.now >= since + case.refute && !awaits_others(case, &accused, self, since));
            if known || (is_certain && !refuted) {
                let evidence: Vec<(NodeId, Claim)> =
                    accusers.iter().map(|(id, held)| (*id, held.rumour.claim)).collect();
                down.insert(*subject, (class, evidence));
            }
            pending.extend((!refuted).then_some(*subject));
            reached.insert(*subject, if refuted { case.now } else { since });
        }
        // A case that is decided needs no more time.
        self.reached = reached;
        self.reached.retain(|subject, _| !down.contains_key(subject));
        self.doubtful = doubtful;
        let released = self.convicted.iter().filter(|id| !down.contains_key(*id));
        self.released.extend(released.map(|id| (*id, case.now)));
        self.convicted = down.keys().copied().collect();
        let silent: BTreeSet<NodeId> =
            down.iter().filter(|(_, (class, _))| *class == Class::HostDead).map(|(id, _)| *id).collect();
        // In a split some of the other side have few observers on this one: they are as silent as the rest.
        let gone = silent.iter().chain(self.doubtful.keys()).chain(&pending).collect::<BTreeSet<_>>().len();
        let is_many = gone >= 2 && gone * 3 >= case.members.incarnations.len();
        let is_rest = self.split_at.is_some_and(|at| case.now < at + case.interval * SPLIT_BEATS);
        let is_split = !silent.is_empty() && (is_many || is_rest);
        if is_split && is_many {
            self.split_at = Some(case.now);
        }
        if is_split {
            let evidence = silent.iter().filter_map(|id| down.get(id)).flat_map(|(_, list)| list.clone());
            findings.insert(Subject::Nodes(silent.clone()), (Class::Split, evidence.collect()));
        }
        for (node, (class, evidence)) in down {
            if !(is_split && silent.contains(&node)) {
                findings.insert(Subject::Node(node), (class, evidence));
            }
        }
    }

    fn judge_networks(
        &mut self,
        case: &Case<'_>,
        before: &BTreeMap<Subject, Verdict>,
        findings: &mut Findings,
    ) {
        // The links of a node that is down, is about to be found so, or was until now say nothing of a network: they
        // come up again one by one.
        self.released.retain(|id, since| {
            case.members.incarnations.contains_key(id)
                && case.now < *since + case.interval * LINKS_RETURN_BEATS
        });
        let down = self.convicted.iter().chain(self.reached.keys()).chain(self.released.keys());
        let down: BTreeSet<NodeId> = down.copied().collect();
        let down = &down;
        let mut networks: BTreeMap<NetworkId, Vec<Edge>> = BTreeMap::new();
        for edge in edges(case, down) {
            networks.entry(edge.network).or_default().push(edge);
        }
        self.unsettled.retain(|_, (last, first)| {
            case.now < *last + case.interval * 2 && case.now < *first + case.interval * 5
        });
        for (network, edges) in &networks {
            if self.unsettled.contains_key(network) {
                // Claims are still coming in: what was concluded stays until they have.
                let kept = before.iter().filter(|(subject, _)| subject.network() == Some(*network));
                findings.extend(
                    kept.map(|(subject, verdict)| {
                        (subject.clone(), (verdict.class, verdict.evidence.clone()))
                    }),
                );
            } else {
                judge_network(case, *network, edges, down, findings);
            }
        }
    }
}

impl Subject {
    /// The network that it is about, if it is about one.
    #[must_use]
    pub fn network(&self) -> Option<NetworkId> {
        match self {
            Subject::Node(_) | Subject::Nodes(_) => None,
            Subject::NodeNetwork(_, network) | Subject::Network(network) | Subject::Link { network, .. } => {
                Some(*network)
            }
        }
    }
}

type Accused<'a> = BTreeMap<NodeId, BTreeMap<NodeId, &'a Held>>;

/// Who accuses whom, among members and of today's incarnations.
fn accusations<'a>(case: &Case<'a>) -> Accused<'a> {
    let mut accused = Accused::new();
    for held in case.claims.all() {
        let rumour = &held.rumour;
        let is_current = case.members.is_todays(rumour.subject, rumour.incarnation);
        let watches = case.members.neighbours(rumour.subject).contains(&rumour.observer);
        if matches!(rumour.claim, Claim::Down { .. }) && is_current && watches {
            accused.entry(rumour.subject).or_default().insert(rumour.observer, held);
        }
    }
    accused
}

/// How many observers of `subject` say nothing because their own case is at least doubtful: they count as accusers
/// where few watch each node, so that a group that dies together is convicted together (Rapid, ATC 2018, 4.2).
fn implied(case: &Case<'_>, accused: &Accused<'_>, subject: NodeId) -> usize {
    let observers = case.members.neighbours(subject);
    let own = accused.get(&subject);
    let (_, low) = case.members.watermarks(subject);
    // Silence adds to accusations and never stands in for them: one bad link convicts nobody.
    if observers.len() + 1 >= case.members.incarnations.len() || own.map_or(0, BTreeMap::len) < low {
        return 0;
    }
    let is_silent = |observer: &&NodeId| {
        let (_, low) = case.members.watermarks(**observer);
        own.is_none_or(|accusers| !accusers.contains_key(*observer))
            && accused.get(*observer).is_some_and(|accusers| accusers.len() >= low)
            && case.claims.of(**observer, subject, Slot::Vouch).is_none()
    };
    observers.iter().filter(is_silent).count()
}

/// Whether a conviction waits a moment because others seem to have fallen silent at the same time, to this node or to
/// those whose accusations came: they may be one group, which is one verdict.
fn awaits_others(case: &Case<'_>, accused: &Accused<'_>, bench: &Bench, since: Time) -> bool {
    let is_undecided = |node: &&NodeId| {
        let (high, _) = case.members.watermarks(**node);
        let is_reached = accused
            .get(*node)
            .is_some_and(|accusers| accusers.len() + implied(case, accused, **node) >= high);
        let is_due = bench.reached.get(*node).is_some_and(|since| case.now >= *since + case.refute);
        !(bench.convicted.contains(*node) || is_reached && is_due)
    };
    // One accuser may be the first of many; an accusation of long ago that came to nothing is not.
    let is_accused = |(node, accusers): (&NodeId, &BTreeMap<NodeId, &Held>)| {
        let newest = accusers.values().map(|held| held.learned_at).max()?;
        let is_new = case.now < newest + case.interval * 3 && !is_refuted(case, accused, *node);
        is_new.then_some((*node, newest))
    };
    let group: BTreeMap<NodeId, Time> = accused.iter().filter_map(is_accused).collect();
    // Those that fall silent together are all accused within one beat.
    let is_growing =
        group.len() >= 2 && group.values().max().is_some_and(|newest| case.now < *newest + case.interval);
    let mut others = case.late.iter().chain(group.keys());
    case.now < since + case.interval * 3 && (is_growing || others.any(|node| is_undecided(&node)))
}

/// Whether an observer in good standing heard `subject` after all its accusers did (PROTOCOLS 4.4).
fn is_refuted(case: &Case<'_>, accused: &Accused<'_>, subject: NodeId) -> bool {
    let Some(accusers) = accused.get(&subject) else { return false };
    if is_planted(Flaw::NoRefutation) {
        return false;
    }
    let last = accusers.values().filter_map(|held| match held.rumour.claim {
        Claim::Down { last_sequence, .. } => Some(last_sequence),
        Claim::Alive { .. } | Claim::Well | Claim::Link { .. } => None,
    });
    let last = last.max().unwrap_or_default();
    let is_current = |held: &&Held| {
        case.members.is_todays(subject, held.rumour.incarnation)
            && matches!(held.rumour.claim, Claim::Alive { last_sequence } if last_sequence > last)
    };
    case.claims.about(subject, Slot::Vouch).filter(is_current).any(|held| {
        let voter = held.rumour.observer;
        let (_, low) = case.members.watermarks(voter);
        let is_trusted = accused.get(&voter).is_none_or(|accusers| accusers.len() < low);
        is_trusted && !accusers.contains_key(&voter) && case.members.neighbours(subject).contains(&voter)
    })
}

fn count_of(accusers: &BTreeMap<NodeId, &Held>, wanted: Why) -> usize {
    let is = |held: &&&Held| matches!(held.rumour.claim, Claim::Down { why, .. } if why == wanted);
    accusers.values().filter(is).count()
}

fn class_of(accusers: &BTreeMap<NodeId, &Held>) -> Class {
    let count = |wanted: Why| count_of(accusers, wanted);
    // What one kernel says may be a mistake of one path; two agree, unless there is only one observer.
    let enough = accusers.len().min(2);
    if count(Why::Left) > 0 || count(Why::Crashed) >= enough {
        Class::ProcessCrashed
    } else if count(Why::Stalled) >= enough {
        Class::ProcessStalled
    } else if count(Why::Deaf) * 2 > accusers.len() {
        Class::NodeIsolated
    } else {
        Class::HostDead
    }
}

/// What one end says of a link that does not carry as it should.
struct Edge {
    observer: NodeId,
    subject: NodeId,
    network: NetworkId,
    claim: Claim,
    carries: bool,
}

impl Edge {
    fn ends(&self) -> (NodeId, NodeId) {
        (self.observer.min(self.subject), self.observer.max(self.subject))
    }
}

fn edges<'a>(case: &'a Case<'_>, down: &'a BTreeSet<NodeId>) -> impl Iterator<Item = Edge> {
    let lives = |id: &NodeId| case.members.incarnations.contains_key(id) && !down.contains(id);
    case.claims.all().filter_map(move |held| {
        let rumour = &held.rumour;
        let Claim::Link { network, state, .. } = rumour.claim else { return None };
        let is_current = case.members.is_todays(rumour.subject, rumour.incarnation);
        if !is_current || !lives(&rumour.observer) || !lives(&rumour.subject) {
            return None;
        }
        match state {
            LinkState::Unknown | LinkState::Up => None,
            LinkState::Degraded | LinkState::Deaf | LinkState::Mute | LinkState::Down => Some(Edge {
                observer: rumour.observer,
                subject: rumour.subject,
                network,
                claim: rumour.claim,
                carries: state.carries(),
            }),
        }
    })
}

fn judge_network(
    case: &Case<'_>,
    network: NetworkId,
    edges: &[Edge],
    down: &BTreeSet<NodeId>,
    findings: &mut Findings,
) {
    let mut broken: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
    for edge in edges.iter().filter(|edge| !edge.carries) {
        broken.entry(edge.observer).or_default().insert(edge.subject);
        broken.entry(edge.subject).or_default().insert(edge.observer);
    }
    let off: BTreeSet<NodeId> = (broken.iter())
        .filter(|(node, peers)| {
            let live = case.members.neighbours(**node).iter().filter(|id| !down.contains(id)).count();
            peers.len() >= 2 && peers.len() * 4 >= live * 3 || live == 1
        })
        .map(|(node, _)| *node)
        .collect();
    // One that says so alone may be losing everything: then it is silent before the others agree.
    let (off, alone): (BTreeSet<NodeId>, BTreeSet<NodeId>) =
        off.into_iter().partition(|node| edges.iter().any(|edge| edge.subject == *node && !edge.carries));
    let live = case.members.incarnations.len().saturating_sub(down.len());
    let evidence = |wanted: &dyn Fn(&Edge) -> bool| -> Vec<(NodeId, Claim)> {
        edges.iter().filter(|edge| wanted(edge)).map(|edge| (edge.observer, edge.claim)).collect()
    };
    if !off.is_empty() && off.len() * 3 >= live * 2 {
        findings.insert(Subject::Network(network), (Class::NetworkDown, evidence(&|edge| !edge.carries)));
        return;
    }
    for node in &off {
        let of_node = |edge: &Edge| !edge.carries && (edge.observer == *node || edge.subject == *node);
        let finding = (Class::NetworkDownAtNode, evidence(&of_node));
        findings.insert(Subject::NodeNetwork(*node, network), finding);
    }
    let is_explained = |node: &NodeId| off.contains(node) || alone.contains(node);
    let rest = edges.iter().filter(|edge| !is_explained(&edge.observer) && !is_explained(&edge.subject));
    let mut pairs: BTreeMap<(NodeId, NodeId), Vec<&Edge>> = BTreeMap::new();
    for edge in rest {
        pairs.entry(edge.ends()).or_default().push(edge);
    }
    for ((low, high), edges) in pairs {
        let class = if edges.iter().all(|edge| edge.carries) { Class::LinkDegraded } else { Class::LinkCut };
        let evidence = edges.iter().map(|edge| (edge.observer, edge.claim)).collect();
        findings.insert(Subject::Link { low, high, network }, (class, evidence));
    }
}
