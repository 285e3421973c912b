//! Failure domains: what may fail together, and choosing nodes that don't.
//!
//! A domain is a path of names, widest first: `["site-a", "rack-3"]`. Nodes that name none are taken to share one
//! unnamed domain when nodes are chosen, so that naming domains on some of them never makes a choice worse. These
//! functions only rank; how many are chosen, and what for, is decided by [`crate::view`] and [`crate::placement`].

use crate::ids::NodeId;

/// How many levels a failure domain has at most.
pub const LEVELS_MAX: usize = 4;

/// How many of the chosen share a candidate's domain, level by level, widest first: the lower, the further apart.
pub type Closeness = [usize; LEVELS_MAX];

/// How close `candidate` is to those that are `chosen` already.
pub fn closeness<'a>(candidate: &[String], chosen: impl Iterator<Item = &'a [String]>) -> Closeness {
    let mut shared = [0; LEVELS_MAX];
    for other in chosen {
        let levels = shared_levels(candidate, other);
        shared.iter_mut().take(levels).for_each(|count| *count += 1);
    }
    shared
}

/// Of `candidates` the one furthest from those that are `chosen` already; the lowest id of several.
pub fn furthest<'a>(
    candidates: impl Iterator<Item = (NodeId, &'a [String])>,
    chosen: impl Iterator<Item = &'a [String]> + Clone,
) -> Option<NodeId> {
    candidates.min_by_key(|(node, domain)| (closeness(domain, chosen.clone()), *node)).map(|(node, _)| node)
}

/// Up to how many levels, from the widest, two nodes are in the same domain.
fn shared_levels(a: &[String], b: &[String]) -> usize {
    if a.is_empty() && b.is_empty() {
        return 1;
    }
    a.iter().zip(b).take(LEVELS_MAX).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn domain(path: &str) -> Vec<String> {
        path.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// The first `count` in the order in which they are chosen.
    fn chosen(nodes: &BTreeMap<NodeId, Vec<String>>, count: usize) -> Vec<NodeId> {
        let mut chosen: Vec<NodeId> = Vec::new();
        while chosen.len() < count {
            let left = nodes.iter().filter(|(node, _)| !chosen.contains(node));
            let left = left.map(|(node, domain)| (*node, domain.as_slice()));
            let Some(next) = furthest(left, chosen.iter().map(|node| nodes[node].as_slice())) else { break };
            chosen.push(next);
        }
        chosen
    }

    #[test]
    fn the_widest_level_counts_first_and_then_the_next() {
        let paths = ["a/1", "a/1", "a/2", "b/1", "b/1", "a/2"];
        let nodes = (1..).map(NodeId).zip(paths.map(domain)).collect();
        assert_eq!(chosen(&nodes, 4), [1, 4, 3, 5].map(NodeId));
        let unnamed = (1..=4).map(|node| (NodeId(node), Vec::new())).collect();
        assert_eq!(chosen(&unnamed, 3), [1, 2, 3].map(NodeId), "without domains the lowest ids");
        assert_eq!(shared_levels(&domain("a"), &domain("a/1")), 1);
        assert_eq!(shared_levels(&domain("a"), &[]), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn no_domain_gets_a_second_before_every_other_has_one(
            racks in proptest::collection::vec(0u8..5, 1..12),
            count in 1usize..8,
        ) {
            let nodes: BTreeMap<NodeId, Vec<String>> =
                (1..).map(NodeId).zip(racks.iter().map(|rack| vec![format!("rack-{rack}")])).collect();
            let chosen = chosen(&nodes, count);
            prop_assert_eq!(chosen.len(), count.min(nodes.len()));
            let mut of: BTreeMap<&Vec<String>, (usize, usize)> = BTreeMap::new();
            for (node, rack) in &nodes {
                let entry = of.entry(rack).or_default();
                entry.0 += 1;
                entry.1 += usize::from(chosen.contains(node));
            }
            let most = of.values().map(|(_, taken)| *taken).max().unwrap_or_default();
            for (size, taken) in of.values() {
                prop_assert!(*taken == *size || *taken + 1 >= most, "{:?}", of);
            }
        }
    }
}
