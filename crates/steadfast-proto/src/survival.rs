//! What failure the cluster survives now: how many hosts, and which failure domains.
//!
//! A failure is survived when a majority of the catalog's voters and of the grantors of leases is left, and for each
//! container its node or a copy of its newest checkpoint. Pure arithmetic over what the caller knows of now, compared
//! with brute force in the tests. It says what would be lost, never what to do about it.

use std::collections::{BTreeMap, BTreeSet};

use crate::domains::LEVELS_MAX;
use crate::ids::{ContainerId, NodeId};

/// Some that decide by majority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    /// Those that are there.
    pub there: BTreeSet<NodeId>,
    /// How many there are in all.
    pub total: usize,
}

impl Quorum {
    /// How many make a majority.
    pub fn majority(&self) -> usize {
        self.total / 2 + 1
    }

    /// How many of those that are there may be lost; `None` when they are too few already.
    pub fn spare(&self) -> Option<usize> {
        self.there.len().checked_sub(self.majority())
    }

    fn left(&self, lost: &BTreeSet<NodeId>) -> usize {
        self.there.difference(lost).count()
    }
}

/// What there is to lose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The voters of the catalog.
    pub voters: Quorum,
    /// The grantors of leases.
    pub grantors: Quorum,
    /// For each container with a committed checkpoint the nodes that are there and have what it would go on from: its
    /// owner, and the holders of the newest one. Those for which there is none are lost already and limit nothing.
    pub kept: BTreeMap<ContainerId, BTreeSet<NodeId>>,
    /// The failure domain of every node that is there, widest first.
    pub domains: BTreeMap<NodeId, Vec<String>>,
}

/// What a failure would take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The majority of the catalog's voters: nothing is started or moved any more.
    Voters {
        /// How many would be left.
        left: usize,
        /// How many are needed.
        needed: usize,
    },
    /// The majority of the grantors: containers freeze.
    Grantors {
        /// How many would be left.
        left: usize,
        /// How many are needed.
        needed: usize,
    },
    /// These containers with every copy of their newest checkpoint.
    Containers(BTreeSet<ContainerId>),
}

impl Standing {
    /// What would be lost if all of `lost` failed at once; `None` when that is survived.
    pub fn loss(&self, lost: &BTreeSet<NodeId>) -> Option<Loss> {
        let left = self.voters.left(lost);
        if left < self.voters.majority() {
            return Some(Loss::Voters { left, needed: self.voters.majority() });
        }
        let left = self.grantors.left(lost);
        if left < self.grantors.majority() {
            return Some(Loss::Grantors { left, needed: self.grantors.majority() });
        }
        let gone: BTreeSet<ContainerId> = (self.kept.iter())
            .filter(|(_, nodes)| !nodes.is_empty() && nodes.is_subset(lost))
            .map(|(container, _)| *container)
            .collect();
        (!gone.is_empty()).then_some(Loss::Containers(gone))
    }

    /// How many hosts, whichever they are, may fail at once.
    pub fn hosts(&self) -> usize {
        let each: Vec<BTreeSet<NodeId>> = self.domains.keys().map(|node| BTreeSet::from([*node])).collect();
        self.spare_of(&each)
    }

    /// How many of the widest failure domains, whichever they are, may fail at once; a host that names none counts as
    /// one of its own. `None` where no host names one.
    pub fn widest_domains(&self) -> Option<usize> {
        let mut named: BTreeMap<&String, BTreeSet<NodeId>> = BTreeMap::new();
        let mut groups: Vec<BTreeSet<NodeId>> = Vec::new();
        for (node, domain) in &self.domains {
            match domain.first() {
                Some(widest) => {
                    named.entry(widest).or_default().insert(*node);
                }
                None => groups.push(BTreeSet::from([*node])),
            }
        }
        if named.is_empty() {
            return None;
        }
        groups.extend(named.into_values());
        Some(self.spare_of(&groups))
    }

    /// Every failure domain of every level with the hosts in it, and what would be lost with it.
    pub fn domains(&self) -> BTreeMap<Vec<String>, (BTreeSet<NodeId>, Option<Loss>)> {
        let mut hosts: BTreeMap<Vec<String>, BTreeSet<NodeId>> = BTreeMap::new();
        for (node, domain) in &self.domains {
            for levels in 1..=domain.len().min(LEVELS_MAX) {
                hosts.entry(domain.iter().take(levels).cloned().collect()).or_default().insert(*node);
            }
        }
        hosts
            .into_iter()
            .map(|(domain, hosts)| {
                let loss = self.loss(&hosts);
                (domain, (hosts, loss))
            })
            .collect()
    }

    /// How many of `groups`, which have no node in common, may be lost at once, whichever they are.
    fn spare_of(&self, groups: &[BTreeSet<NodeId>]) -> usize {
        let quorums = [&self.voters, &self.grantors].map(|quorum| {
            let Some(mut spare) = quorum.spare() else { return 0 };
            let mut sizes: Vec<usize> =
                groups.iter().map(|group| group.intersection(&quorum.there).count()).collect();
            // The worst that so many groups can do is that those with the most voters go.
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            let fits = sizes.into_iter().take_while(|size| match spare.checked_sub(*size) {
                Some(left) => {
                    spare = left;
                    true
                }
                None => false,
            });
            fits.count()
        });
        // A container goes when all groups go that have something of it.
        let kept = self.kept.values().filter(|nodes| !nodes.is_empty()).map(|nodes| {
            if !nodes.iter().all(|node| groups.iter().any(|group| group.contains(node))) {
                return groups.len();
            }
            groups.iter().filter(|group| !group.is_disjoint(nodes)).count().saturating_sub(1)
        });
        quorums.into_iter().chain(kept).min().unwrap_or_default().min(groups.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(list: &[u128]) -> BTreeSet<NodeId> {
        list.iter().copied().map(NodeId).collect()
    }

    /// Hosts 1, 2, ... in these racks, all of them voters and grantors.
    fn racks(racks: &[&str]) -> Standing {
        let domains: BTreeMap<NodeId, Vec<String>> =
            (1..).map(NodeId).zip(racks.iter().map(|rack| vec![(*rack).to_owned()])).collect();
        let all = Quorum { there: domains.keys().copied().collect(), total: domains.len() };
        Standing { voters: all.clone(), grantors: all, kept: BTreeMap::new(), domains }
    }

    /// The same by trying every choice of groups.
    fn by_force(standing: &Standing, groups: &[BTreeSet<NodeId>]) -> usize {
        let mut survives = groups.len();
        for choice in 0..1usize << groups.len() {
            let taken = groups.iter().enumerate().filter(|(index, _)| choice & (1usize << index) != 0);
            let lost: BTreeSet<NodeId> = taken.clone().flat_map(|(_, group)| group.iter().copied()).collect();
            let count = taken.clone().count();
            if standing.loss(&lost).is_some() {
                survives = survives.min(count.saturating_sub(1));
            }
        }
        survives
    }

    #[test]
    fn a_rack_with_most_voters_is_named() {
        let standing = racks(&["rack-1", "rack-2", "rack-3", "rack-3", "rack-3"]);
        assert_eq!((standing.hosts(), standing.widest_domains()), (2, Some(0)));
        let domains = standing.domains();
        let (hosts, loss) = &domains[&vec!["rack-3".to_owned()]];
        assert_eq!((hosts, loss), (&nodes(&[3, 4, 5]), &Some(Loss::Voters { left: 2, needed: 3 })));
        assert_eq!(domains[&vec!["rack-1".to_owned()]].1, None);
    }

    #[test]
    fn copies_in_one_rack_with_their_owner_go_with_it() {
        let mut standing = racks(&["rack-1", "rack-1", "rack-2", "rack-3", "rack-4"]);
        standing.kept.insert(ContainerId(7), nodes(&[1, 2]));
        assert_eq!((standing.hosts(), standing.widest_domains()), (1, Some(0)));
        let gone = Some(Loss::Containers(BTreeSet::from([ContainerId(7)])));
        assert_eq!(standing.domains()[&vec!["rack-1".to_owned()]].1, gone);
        standing.kept.insert(ContainerId(7), nodes(&[1, 3]));
        assert_eq!((standing.hosts(), standing.widest_domains()), (1, Some(1)));
        // What is lost already can't be lost again.
        standing.kept.insert(ContainerId(7), BTreeSet::new());
        assert_eq!(standing.hosts(), 2);
    }

    prop_compose! {
        fn any_standing()(count in 1u8..7)(
            count in Just(count),
            racks in proptest::collection::vec(0u8..4, usize::from(count)),
            voters in proptest::collection::btree_set(1..=count, 0..=usize::from(count)),
            grantors in proptest::collection::btree_set(1..=count, 0..=usize::from(count)),
            away in (0usize..3, 0usize..3),
            kept in proptest::collection::vec(proptest::collection::btree_set(1..=count, 0..4), 0..4),
        ) -> Standing {
            let ids = |nodes: BTreeSet<u8>| nodes.into_iter().map(|node| NodeId(u128::from(node))).collect();
            let quorum = |there: BTreeSet<u8>, away| Quorum { total: there.len() + away, there: ids(there) };
            let domain = |rack: u8| if rack == 0 { Vec::new() } else { vec![format!("rack-{rack}")] };
            let kept = kept.into_iter().map(ids);
            Standing {
                voters: quorum(voters, away.0),
                grantors: quorum(grantors, away.1),
                kept: (1..).map(ContainerId).zip(kept).collect(),
                domains: (1..=u128::from(count)).map(NodeId).zip(racks.into_iter().map(domain)).collect(),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn hosts_and_domains_are_what_trying_every_choice_gives(standing in any_standing()) {
            let each: Vec<BTreeSet<NodeId>> =
                standing.domains.keys().map(|node| BTreeSet::from([*node])).collect();
            prop_assert_eq!(standing.hosts(), by_force(&standing, &each));
            let mut racks: BTreeMap<String, BTreeSet<NodeId>> = BTreeMap::new();
            for (node, domain) in &standing.domains {
                let rack = domain.first().cloned().unwrap_or_else(|| format!("host {node}"));
                racks.entry(rack).or_default().insert(*node);
            }
            let groups: Vec<BTreeSet<NodeId>> = racks.into_values().collect();
            if let Some(domains) = standing.widest_domains() {
                prop_assert_eq!(domains, by_force(&standing, &groups));
            }
        }

        #[test]
        fn what_is_survived_is_survived_with_less(standing in any_standing(), more in 0u32..64, less in 0u32..64) {
            let chosen = |choice: u32| -> BTreeSet<NodeId> {
                standing.domains.keys().zip(0..).filter(|(_, bit)| choice & (1 << bit) != 0).map(|(node, _)| *node).collect()
            };
            if standing.loss(&chosen(more)).is_none() {
                prop_assert_eq!(standing.loss(&chosen(more & less)), None);
            }
        }
    }
}
