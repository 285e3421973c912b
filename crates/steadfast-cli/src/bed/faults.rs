//! What goes wrong on the bed's networks: cuts, losses and splits, all in the hub, so a host sees only silence.
//!
//! The active faults are a list; after each change the whole list is written as one nftables transaction, so there is no
//! moment at which half of a split is in force. A fault never touches a host's own rules or interfaces. Delays are in `relay.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::network::{SERVICE, port, relayed_port};

/// Which way frames are lost, seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the host sends.
    FromHost,
    /// What is sent to the host.
    ToHost,
    /// Both.
    Both,
}

/// One fault of the networks. Hosts are numbered from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing passes on this network any more, for nobody.
    Network {
        /// The network's name.
        network: String,
    },
    /// One host is cut from one network.
    Host {
        /// The host's number.
        host: usize,
        /// The network's name.
        network: String,
        /// Which way is cut.
        direction: Direction,
    },
    /// Two hosts no longer hear each other on one network.
    Pair {
        /// One end.
        first: usize,
        /// The other end.
        second: usize,
        /// The network's name.
        network: String,
    },
    /// One host's frames reach another no longer on one network; the way back is whole.
    OneWay {
        /// Whose frames are lost.
        from: usize,
        /// Whom they don't reach.
        to: usize,
        /// The network's name.
        network: String,
    },
    /// A share of a host's frames on one network is dropped at random.
    Loss {
        /// The host's number.
        host: usize,
        /// The network's name.
        network: String,
        /// Share of frames dropped, 0 to 100.
        percent: u8,
        /// Which way frames are lost.
        direction: Direction,
    },
    /// Hosts of different groups no longer hear each other; a host in no group hears everybody, as the client does.
    Split {
        /// The groups of host numbers.
        groups: Vec<Vec<usize>>,
        /// The networks concerned.
        networks: Vec<String>,
    },
    /// A host is cut from everything, the service network too: what a power loss looks like from outside.
    Dark {
        /// The host's number.
        host: usize,
        /// The networks concerned.
        networks: Vec<String>,
    },
}

/// Names one injected fault, to heal it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId(u64);

impl std::fmt::Display for FaultId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

impl From<u64> for FaultId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// The faults in force, by id.
#[derive(Debug, Default, Clone)]
pub(super) struct Faults {
    next: u64,
    active: BTreeMap<FaultId, Fault>,
    relayed: Relayed,
}

/// The hosts whose frames on a network pass a relay: another port stands for them in the network's bridge.
type Relayed = BTreeSet<(usize, String)>;

impl Faults {
    pub(super) fn insert(&mut self, fault: Fault) -> FaultId {
        self.next += 1;
        let id = FaultId(self.next);
        self.active.insert(id, fault);
        id
    }

    pub(super) fn remove(&mut self, id: FaultId) -> bool {
        self.active.remove(&id).is_some()
    }

    pub(super) fn clear(&mut self) {
        self.active.clear();
    }

    pub(super) fn set_relayed(&mut self, relayed: Relayed) {
        self.relayed = relayed;
    }

    pub(super) fn active(&self) -> impl Iterator<Item = (FaultId, &Fault)> {
        self.active.iter().map(|(id, fault)| (*id, fault))
    }

    /// The whole chain as one transaction.
    pub(super) fn script(&self) -> String {
        let mut script = "flush chain bridge faults forward\n".to_owned();
        for line in self.active.values().flat_map(|fault| rules(fault, &self.relayed)) {
            writeln!(script, "add rule bridge faults forward {line}")
                .expect("writing to a string cannot fail");
        }
        script
    }
}

fn rules(fault: &Fault, relayed: &Relayed) -> Vec<String> {
    match fault {
        Fault::Network { network } => vec![format!("iifname \"{network}-*\" drop")],
        Fault::Host { host, network, direction } => one_port(&port(*host, network), *direction, "drop"),
        Fault::Pair { first, second, network } => pair(*first, *second, network, relayed),
        Fault::OneWay { from, to, network } => vec![one_way(*from, *to, network, relayed)],
        Fault::Loss { host, network, percent: 100.., direction } => {
            one_port(&port(*host, network), *direction, "drop")
        }
        Fault::Loss { host, network, percent, direction } => {
            one_port(&port(*host, network), *direction, &format!("numgen random mod 100 < {percent} drop"))
        }
        Fault::Split { groups, networks } => split(groups, networks, relayed),
        Fault::Dark { host, networks } => networks
            .iter()
            .map(String::as_str)
            .chain([SERVICE])
            .flat_map(|network| one_port(&port(*host, network), Direction::Both, "drop"))
            .collect(),
    }
}

fn one_port(port: &str, direction: Direction, verdict: &str) -> Vec<String> {
    let from = format!("iifname \"{port}\" {verdict}");
    let to = format!("oifname \"{port}\" {verdict}");
    match direction {
        Direction::FromHost => vec![from],
        Direction::ToHost => vec![to],
        Direction::Both => vec![from, to],
    }
}

fn pair(first: usize, second: usize, network: &str, relayed: &Relayed) -> Vec<String> {
    vec![one_way(first, second, network, relayed), one_way(second, first, network, relayed)]
}

fn one_way(from: usize, to: usize, network: &str, relayed: &Relayed) -> String {
    let in_bridge = |host: usize| match relayed.contains(&(host, network.to_owned())) {
        true => relayed_port(host, network),
        false => port(host, network),
    };
    format!("iifname \"{}\" oifname \"{}\" drop", in_bridge(from), in_bridge(to))
}

fn split(groups: &[Vec<usize>], networks: &[String], relayed: &Relayed) -> Vec<String> {
    let mut lines = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        for other in groups.iter().skip(index + 1) {
            let pairs = group.iter().flat_map(|first| other.iter().map(move |second| (*first, *second)));
            for (first, second) in pairs {
                lines.extend(networks.iter().flat_map(|network| pair(first, second, network, relayed)));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_cuts_every_pair_across_and_none_within() {
        let fault = Fault::Split { groups: vec![vec![0, 1], vec![2]], networks: vec!["front".into()] };
        let lines = rules(&fault, &Relayed::new()).join("\n");
        assert_eq!(lines.lines().count(), 4);
        assert!(lines.contains(r#"iifname "front-h0" oifname "front-h2" drop"#));
        assert!(!lines.contains(r#"iifname "front-h0" oifname "front-h1""#));
    }

    #[test]
    fn healing_removes_only_the_named_fault() {
        let mut faults = Faults::default();
        let first = faults.insert(Fault::Network { network: "front".into() });
        faults.insert(Fault::Network { network: "back".into() });
        assert!(faults.remove(first));
        assert!(!faults.remove(first));
        assert_eq!(faults.script().lines().count(), 2);
        assert!(faults.script().contains("back-*"));
    }
}
