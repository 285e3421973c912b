//! Links and verdicts in words: from the core's types to the API's.
//!
//! The one place that says `one-way`, and that turns ids of nodes and networks into names. It decides nothing.

use std::time::Duration;

use steadfast_proto::detect::{Class, Rule, Subject, Verdict};
use steadfast_proto::ids::{NetworkId, NodeId};
use steadfast_proto::links::{Cause, Change, Place};
use steadfast_proto::time::Time;
use steadfast_proto::wire::{Claim, LinkState, Why};

use super::convert::{Names, node_name};
use super::link_types;
use crate::verdicts;

/// Every word for the state of a link.
pub const STATES: [&str; 5] = ["up", "degraded", "one-way", "down", "unknown"];

/// What a node calls its peers and networks, and when its clock started.
#[derive(Clone, Copy, Debug)]
pub struct Dictionary<'a> {
    /// The nodes' names.
    pub names: &'a Names,
    /// This node's networks, in the order of their numbers.
    pub networks: &'a [String],
    /// When this machine booted, in ms since 1970.
    pub boot_unix_ms: u64,
}

/// The word for what a link does.
pub fn state(state: LinkState) -> &'static str {
    match state {
        LinkState::Up => "up",
        LinkState::Degraded => "degraded",
        LinkState::Deaf | LinkState::Mute => "one-way",
        LinkState::Down => "down",
        LinkState::Unknown => "unknown",
    }
}

/// What people call a class.
pub fn words(class: Class) -> &'static str {
    verdicts::page_of(class).words
}

/// The name of a class, as programs take it.
pub fn class(class: Class) -> &'static str {
    verdicts::page_of(class).name
}

/// The name of the rule that made a suspicion.
pub fn rule(rule: Rule) -> &'static str {
    match rule {
        Rule::Gossip => "gossip",
        Rule::Relative => "relative",
        Rule::Timeout => "timeout",
        Rule::Kernel => "kernel",
        Rule::Deaf => "deaf",
    }
}

impl Dictionary<'_> {
    /// A node's name.
    pub fn node(&self, id: NodeId) -> String {
        node_name(self.names, id)
    }

    /// A network's name.
    pub fn network(&self, id: NetworkId) -> String {
        let name = self.networks.get(usize::from(id.0));
        name.cloned().unwrap_or_else(|| format!("network number {}", id.0))
    }

    fn unix_ms(&self, time: Time) -> u64 {
        self.boot_unix_ms.saturating_add(time.as_nanos() / 1_000_000)
    }

    /// One link that changed, or is part of the whole; `None` when it is about a peer in general.
    pub fn link(&self, change: &Change) -> Option<link_types::Link> {
        let Change { place: Place { peer, network: Some(network) }, row, .. } = change else { return None };
        let (heard, hears) = ends(row.state);
        Some(link_types::Link {
            peer: self.node(*peer),
            network: self.network(*network),
            state: state(row.state).to_owned(),
            from: change.from.map(|from| state(from).to_owned()),
            heard,
            hears,
            detail: detail(row.state, row.cause),
            since_unix_ms: self.unix_ms(row.since),
            heard_unix_ms: row.heard_at.map(|at| self.unix_ms(at)),
            round_trip_ms: row.quality.round_trip.map(milliseconds),
            jitter_ms: milliseconds(row.quality.deviation),
            loss_percent: f64::from(row.quality.loss_permille) / 10.0,
            generation: change.generation,
            coalesced: change.coalesced,
        })
    }

    /// A peer in general; `None` when it is about one link.
    pub fn general(&self, change: &Change) -> Option<link_types::General> {
        if change.place.network.is_some() {
            return None;
        }
        Some(link_types::General {
            peer: self.node(change.place.peer),
            state: state(change.row.state).to_owned(),
            from: change.from.map(|from| state(from).to_owned()),
            since_unix_ms: self.unix_ms(change.row.since),
            generation: change.generation,
        })
    }

    /// A verdict with its evidence; `own_rule` is the one by which this node suspects the same itself.
    pub fn verdict(
        &self,
        verdict: &Verdict,
        own_rule: Option<Rule>,
        over: bool,
        generation: u64,
    ) -> link_types::Verdict {
        let nodes = nodes_of(&verdict.subject);
        let mut accusers: Vec<String> = verdict.evidence.iter().map(|(id, _)| self.node(*id)).collect();
        accusers.sort();
        accusers.dedup();
        let mut evidence: Vec<link_types::Evidence> = Vec::new();
        for (accuser, claim) in &verdict.evidence {
            let said = self.evidence(*accuser, claim, &nodes);
            // One that says the same of several links says it once.
            if !evidence.contains(&said) {
                evidence.push(said);
            }
        }
        link_types::Verdict {
            class: class(verdict.class).to_owned(),
            sentence: self.sentence(verdict),
            nodes: nodes.iter().map(|id| self.node(*id)).collect(),
            network: verdict.subject.network().map(|network| self.network(network)),
            since_unix_ms: self.unix_ms(verdict.since),
            rule: own_rule.map(|own| rule(own).to_owned()),
            accusers,
            evidence,
            over,
            generation,
        }
    }

    /// What failed, in one sentence: the class in its own words, its subject, and what that means.
    pub fn sentence(&self, verdict: &Verdict) -> String {
        let network = verdict.subject.network().map(|network| self.network(network)).unwrap_or_default();
        let nodes: Vec<String> = nodes_of(&verdict.subject).into_iter().map(|id| self.node(id)).collect();
        let nodes = nodes.join(" and ");
        let what = match verdict.class {
            Class::ProcessCrashed => format!("{nodes}; its agent ended and its machine lives"),
            Class::ProcessStalled => format!("{nodes}; its agent does not run and its machine lives"),
            Class::HostDead => format!("{nodes}, or every path to it"),
            Class::NodeIsolated => format!("{nodes}; it hears nobody"),
            Class::NetworkDownAtNode => format!("{nodes} on {network}; others still use it"),
            Class::NetworkDown => format!("{network}; it carries nothing between any nodes"),
            Class::LinkCut => format!("{nodes} on {network}{}", self.direction(verdict)),
            Class::LinkDegraded => format!("{nodes} on {network}; it loses or delays much"),
            Class::Split => format!("{nodes} are not heard on this side"),
        };
        format!("{}: {what}", words(verdict.class))
    }

    /// In which direction a cut link still carries, if both ends or one say so.
    fn direction(&self, verdict: &Verdict) -> String {
        let Subject::Link { low, high, .. } = verdict.subject else { return String::new() };
        let deaf = verdict.evidence.iter().find_map(|(observer, claim)| match claim {
            Claim::Link { state: LinkState::Deaf, .. } => Some(if *observer == low { high } else { low }),
            Claim::Link { state: LinkState::Mute, .. } => Some(*observer),
            Claim::Link { .. } | Claim::Down { .. } | Claim::Alive { .. } | Claim::Well => None,
        });
        deaf.map_or_else(String::new, |deaf| {
            let other = if deaf == low { high } else { low };
            format!(", one way: {} does not hear {}", self.node(deaf), self.node(other))
        })
    }

    fn evidence(&self, accuser: NodeId, claim: &Claim, subject: &[NodeId]) -> link_types::Evidence {
        let (network, link) = match claim {
            Claim::Link { network, state, .. } => (Some(self.network(*network)), Some(*state)),
            Claim::Down { .. } | Claim::Alive { .. } | Claim::Well => (None, None),
        };
        let other = subject.iter().find(|id| **id != accuser).filter(|_| subject.len() <= 2);
        let other = other.map_or_else(|| "others".to_owned(), |id| self.node(*id));
        link_types::Evidence {
            accuser: self.node(accuser),
            says: self.says(claim, &other),
            network,
            state: link.map(|link| state(link).to_owned()),
        }
    }

    fn says(&self, claim: &Claim, other: &str) -> String {
        match claim {
            Claim::Down { why, silent_ms, .. } => match why {
                Why::Silent => format!("heard nothing of it for {silent_ms} ms"),
                Why::Stalled => {
                    format!("its kernel answers and its agent said nothing for {silent_ms} ms")
                }
                Why::Crashed => "its kernel says that the agent is gone".to_owned(),
                Why::Left => "it said goodbye".to_owned(),
                Why::Deaf => "it speaks and does not hear".to_owned(),
            },
            Claim::Alive { .. } => "heard it since".to_owned(),
            Claim::Well => "takes back what it said".to_owned(),
            Claim::Link { network, state, loss_permille } => {
                let network = self.network(*network);
                match state {
                    LinkState::Unknown => format!("has not heard {other} on {network} yet"),
                    LinkState::Up => format!("hears {other} on {network} and is heard"),
                    LinkState::Degraded if *loss_permille > 0 => {
                        let percent = f64::from(*loss_permille) / 10.0;
                        format!("{network} loses {percent:.1} % to {other}")
                    }
                    LinkState::Degraded => format!("{network} is slow to {other}"),
                    LinkState::Deaf => format!("hears {other} on {network} and is not heard"),
                    LinkState::Mute => format!("is heard by {other} on {network} and does not hear it"),
                    LinkState::Down => format!("neither hears {other} on {network} nor is heard"),
                }
            }
        }
    }
}

/// The nodes that a verdict is about.
pub fn nodes_of(subject: &Subject) -> Vec<NodeId> {
    match subject {
        Subject::Node(node) | Subject::NodeNetwork(node, _) => vec![*node],
        Subject::Network(_) => Vec::new(),
        Subject::Link { low, high, .. } => vec![*low, *high],
        Subject::Nodes(nodes) => nodes.iter().copied().collect(),
    }
}

/// Whether the peer is heard, and whether it hears, as far as is known.
fn ends(state: LinkState) -> (Option<bool>, Option<bool>) {
    match state {
        LinkState::Up | LinkState::Degraded => (Some(true), Some(true)),
        LinkState::Deaf => (Some(true), Some(false)),
        LinkState::Mute => (Some(false), Some(true)),
        LinkState::Down => (Some(false), None),
        LinkState::Unknown => (None, None),
    }
}

fn detail(state: LinkState, cause: Option<Cause>) -> Option<String> {
    let words = match (cause, state) {
        (Some(Cause::LocalInterface), _) => "this node's own interface is down",
        (Some(Cause::NotWatched), _) => "no heartbeats are exchanged with it any more",
        (None, LinkState::Deaf) => "it does not hear us",
        (None, LinkState::Mute) => "we do not hear it",
        (None, LinkState::Unknown) => "never heard here",
        (None, LinkState::Up | LinkState::Degraded | LinkState::Down) => return None,
    };
    Some(words.to_owned())
}

fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as exact as heartbeats are.
    (duration.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dictionary<'a>(names: &'a Names, networks: &'a [String]) -> Dictionary<'a> {
        Dictionary { names, networks, boot_unix_ms: 1_000 }
    }

    #[test]
    fn a_cut_in_one_direction_says_which() {
        let names = Names::from([(NodeId(1), "alpha".to_owned()), (NodeId(2), "beta".to_owned())]);
        let networks = ["front".to_owned()];
        let words = dictionary(&names, &networks);
        let says = |state| Claim::Link { network: NetworkId(0), state, loss_permille: 0 };
        let subject = Subject::Link { low: NodeId(1), high: NodeId(2), network: NetworkId(0) };
        let verdict = |evidence| Verdict {
            class: Class::LinkCut,
            subject: subject.clone(),
            since: Time::from_nanos(5_000_000),
            evidence,
        };
        let from_deaf = words.verdict(&verdict(vec![(NodeId(2), says(LinkState::Mute))]), None, false, 1);
        let expected = "link cut: alpha and beta on front, one way: beta does not hear alpha";
        assert_eq!(from_deaf.sentence, expected);
        let from_heard = verdict(vec![(NodeId(1), says(LinkState::Deaf))]);
        assert_eq!(words.sentence(&from_heard), expected);
        assert_eq!(from_deaf.evidence[0].says, "is heard by alpha on front and does not hear it");
        assert_eq!((from_deaf.since_unix_ms, from_deaf.accusers), (1_005, vec!["beta".to_owned()]));
        let both = verdict(vec![(NodeId(1), says(LinkState::Down))]);
        assert_eq!(words.sentence(&both), "link cut: alpha and beta on front");
    }

    #[test]
    fn every_class_is_said_in_its_own_words_with_its_subject() {
        let names = Names::from([(NodeId(1), "alpha".to_owned()), (NodeId(2), "beta".to_owned())]);
        let networks = ["front".to_owned()];
        let said = dictionary(&names, &networks);
        let network = NetworkId(0);
        for page in verdicts::PAGES {
            let (subject, named) = match page.class {
                Class::ProcessCrashed | Class::ProcessStalled | Class::HostDead | Class::NodeIsolated => {
                    (Subject::Node(NodeId(2)), "beta")
                }
                Class::NetworkDownAtNode => (Subject::NodeNetwork(NodeId(2), network), "beta on front"),
                Class::NetworkDown => (Subject::Network(network), "front"),
                Class::LinkCut | Class::LinkDegraded => {
                    (Subject::Link { low: NodeId(1), high: NodeId(2), network }, "alpha and beta on front")
                }
                Class::Split => (Subject::Nodes([NodeId(1), NodeId(2)].into()), "alpha and beta"),
            };
            let verdict = Verdict { class: page.class, subject, since: Time::ZERO, evidence: Vec::new() };
            let sentence = said.sentence(&verdict);
            assert!(sentence.starts_with(&format!("{}: {named}", page.words)), "{sentence}");
        }
    }

    #[test]
    fn a_node_verdict_names_its_accusers_once() {
        let names = Names::from([(NodeId(3), "gamma".to_owned())]);
        let words = dictionary(&names, &[]);
        let says = |why| Claim::Down { why, last_sequence: 4, silent_ms: 320 };
        let verdict = Verdict {
            class: Class::HostDead,
            subject: Subject::Node(NodeId(3)),
            since: Time::ZERO,
            evidence: vec![(NodeId(1), says(Why::Silent)), (NodeId(1), says(Why::Stalled))],
        };
        let shown = words.verdict(&verdict, Some(Rule::Gossip), true, 9);
        assert_eq!(shown.class, "host-dead");
        assert_eq!(shown.nodes, ["gamma"]);
        assert_eq!(shown.accusers.len(), 1);
        assert_eq!(shown.rule.as_deref(), Some("gossip"));
        assert!(shown.over && shown.evidence[0].says.contains("320 ms"));
    }

    #[test]
    fn an_accuser_that_says_the_same_of_several_links_says_it_once() {
        let names = Names::from([(NodeId(1), "alpha".to_owned())]);
        let networks = ["front".to_owned()];
        let words = dictionary(&names, &networks);
        let says = Claim::Link { network: NetworkId(0), state: LinkState::Down, loss_permille: 0 };
        let verdict = Verdict {
            class: Class::NetworkDown,
            subject: Subject::Network(NetworkId(0)),
            since: Time::ZERO,
            evidence: vec![(NodeId(1), says), (NodeId(1), says)],
        };
        let shown = words.verdict(&verdict, None, false, 1);
        assert_eq!(shown.evidence.len(), 1);
        assert_eq!(shown.evidence[0].says, "neither hears others on front nor is heard");
    }
}
