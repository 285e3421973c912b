//! Who watches whom: all pairs of a small cluster, eight neighbours each in a large one.
//!
//! Above nine members the graph is the union of four random rings, topped up to eight neighbours each: an expander,
//! so that a failed rack is watched from outside it and word spreads in a few hops (TARGETS 1, PROTOCOLS 6). A
//! ring is the order of its members' hashes, so every node computes the same graph from (members, seed) alone, and
//! a member that comes or goes changes only the edges near it. The seed is no secret, but must be the same at all.
//! How many of a member's watchers must agree is [`watermarks`]; what they then do is `view`'s.
//!
//! ```
//! use std::collections::BTreeSet;
//! use steadfast_proto::detect::graph::Graph;
//! use steadfast_proto::ids::NodeId;
//!
//! let members: BTreeSet<NodeId> = (0..1_000).map(NodeId).collect();
//! let graph = Graph::new(&members, 7);
//! assert_eq!(graph.neighbours(NodeId(3)).len(), 8);
//! ```

use std::collections::BTreeSet;

use crate::ids::NodeId;

/// Up to this many members watch one another all.
pub const ALL_PAIRS_MAX: usize = 9;

/// How many neighbours each member of a larger cluster has.
pub const DEGREE: usize = 8;

/// How many rings are laid, each of which gives two neighbours.
const RINGS: u64 = 4;

/// The seed that the nodes of a cluster use: all must know the same graph of the same members.
pub const SEED: u64 = 0x57ea_dfa5;

/// Whom each member watches and is watched by.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Graph {
    members: Vec<NodeId>,
    neighbours: Vec<Vec<NodeId>>,
}

impl Graph {
    /// The graph of `members` under `seed`, in O(N log N) for all of them.
    pub fn new(members: &BTreeSet<NodeId>, seed: u64) -> Graph {
        let members: Vec<NodeId> = members.iter().copied().collect();
        let edges =
            if members.len() <= ALL_PAIRS_MAX { all_pairs(members.len()) } else { rings(&members, seed) };
        let neighbours = (edges.of.iter())
            .map(|near| {
                let mut near: Vec<NodeId> =
                    near.iter().filter_map(|index| members.get(*index).copied()).collect();
                near.sort_unstable();
                near
            })
            .collect();
        Graph { members, neighbours }
    }

    /// Whom `node` watches, in order of their ids; they watch it as well. Nobody when it is no member.
    pub fn neighbours(&self, node: NodeId) -> &[NodeId] {
        let Ok(index) = self.members.binary_search(&node) else { return &[] };
        self.neighbours.get(index).map_or(&[], Vec::as_slice)
    }

    /// The members, in order.
    pub fn members(&self) -> &[NodeId] {
        &self.members
    }
}

/// Whom `me` watches; symmetric. For more than one member build a [`Graph`] once.
pub fn watched(members: &BTreeSet<NodeId>, seed: u64, me: NodeId) -> BTreeSet<NodeId> {
    Graph::new(members, seed).neighbours(me).iter().copied().collect()
}

/// How many of a member's `observers` must accuse it for a removal to be proposed, and from how many on a proposal
/// waits for it, since its removal too may be near: (high, low).
///
/// A small cluster wants a majority of its members, as far as there are observers; a large one 5 of 8, and 2.
pub fn watermarks(observers: usize, members: usize) -> (usize, usize) {
    if members <= ALL_PAIRS_MAX {
        return ((members / 2 + 1).min(observers).max(1), 1);
    }
    let high = (observers * 5).div_ceil(DEGREE).max(1);
    (high, high.min(2))
}

/// The edges among members that are known by their position.
struct Edges {
    of: Vec<Vec<usize>>,
}

impl Edges {
    fn new(count: usize) -> Edges {
        Edges { of: vec![Vec::new(); count] }
    }

    fn are_near(&self, a: usize, b: usize) -> bool {
        self.of[a].contains(&b)
    }

    fn can_join(&self, a: usize, b: usize) -> bool {
        a != b && !self.are_near(a, b)
    }

    fn join(&mut self, a: usize, b: usize) {
        self.of[a].push(b);
        self.of[b].push(a);
    }

    fn part(&mut self, a: usize, b: usize) {
        self.of[a].retain(|near| *near != b);
        self.of[b].retain(|near| *near != a);
    }

    fn lacks(&self, index: usize) -> bool {
        self.of[index].len() < DEGREE
    }
}

fn all_pairs(count: usize) -> Edges {
    Edges { of: (0..count).map(|index| (0..count).filter(|other| *other != index).collect()).collect() }
}

fn rings(members: &[NodeId], seed: u64) -> Edges {
    let mut edges = Edges::new(members.len());
    for ring in 0..RINGS {
        let order = ring_order(members, seed, ring);
        let next = order.iter().cycle().skip(1);
        for (a, b) in order.iter().zip(next) {
            if edges.can_join(*a, *b) {
                edges.join(*a, *b);
            }
        }
    }
    // Two rings may share an edge; those that lack one are few, and meet in an order as random as a ring's.
    let mut lacking = ring_order(members, seed, RINGS);
    lacking.retain(|index| edges.lacks(*index));
    top_up(&mut edges, &lacking);
    exchange(&mut edges, &lacking, members.len());
    edges
}

/// Joins those that lack neighbours with one another where they are not neighbours already.
fn top_up(edges: &mut Edges, lacking: &[usize]) {
    for (position, a) in lacking.iter().enumerate() {
        for b in lacking.iter().skip(position + 1) {
            if edges.lacks(*a) && edges.lacks(*b) && edges.can_join(*a, *b) {
                edges.join(*a, *b);
            }
        }
    }
}

/// Gives those that still lack neighbours both ends of an edge between others, which keep their number of
/// neighbours. Where no such edge exists, a few stay with seven.
fn exchange(edges: &mut Edges, lacking: &[usize], count: usize) {
    for a in lacking {
        while edges.lacks(*a) {
            let partner = lacking.iter().copied().find(|b| b != a && edges.lacks(*b));
            // Alone it lacks two, and takes both ends for itself.
            let b = partner.unwrap_or(*a);
            if partner.is_none() && edges.of[*a].len() + 2 > DEGREE {
                return;
            }
            let Some((u, v)) = loose_edge(edges, *a, b, count) else { break };
            edges.part(u, v);
            edges.join(*a, u);
            edges.join(b, v);
        }
    }
}

/// An edge (u, v) such that a and u, b and v, may become neighbours.
fn loose_edge(edges: &Edges, a: usize, b: usize, count: usize) -> Option<(usize, usize)> {
    // The search starts beside `a`, not at the first member, or that one would give an edge to everybody.
    let candidates = (a + 1..count).chain(0..a).filter(|u| edges.can_join(a, *u) && *u != b);
    candidates.into_iter().find_map(|u| {
        let v = edges.of[u].iter().copied().find(|v| *v != a && edges.can_join(b, *v))?;
        Some((u, v))
    })
}

/// The members' positions in the order of their hashes on one ring.
fn ring_order(members: &[NodeId], seed: u64, ring: u64) -> Vec<usize> {
    let ring_key = mixed(seed ^ mixed(ring));
    let mut order: Vec<(u64, usize)> =
        members.iter().enumerate().map(|(index, id)| (hashed(*id, ring_key), index)).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, index)| index).collect()
}

fn hashed(id: NodeId, key: u64) -> u64 {
    let [high, low] = [id.0 >> 64, id.0 & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or(0));
    mixed(mixed(key ^ low) ^ high)
}

/// The finalizer of splitmix64: a permutation of the numbers in which every bit of the input moves every bit of the
/// output.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    fn cluster(count: u128) -> BTreeSet<NodeId> {
        // Ids that differ in few bits are the hardest to mix.
        (1..=count).map(NodeId).collect()
    }

    fn is_sound(members: &BTreeSet<NodeId>, graph: &Graph) -> bool {
        members.iter().all(|a| {
            let near = graph.neighbours(*a);
            near.windows(2).all(|pair| pair[0] < pair[1])
                && near.iter().all(|b| b != a && members.contains(b) && graph.neighbours(*b).contains(a))
        })
    }

    /// How many hops each of `alive` is away from `from`, through `alive` only.
    fn distances(graph: &Graph, alive: &BTreeSet<NodeId>, from: NodeId) -> BTreeMap<NodeId, usize> {
        let mut hops = BTreeMap::from([(from, 0)]);
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            let next = hops[&node] + 1;
            for near in graph.neighbours(node).iter().filter(|near| alive.contains(near)) {
                hops.entry(*near).or_insert_with(|| {
                    queue.push_back(*near);
                    next
                });
            }
        }
        hops
    }

    /// The neighbours by position.
    fn positions(graph: &Graph) -> Vec<Vec<usize>> {
        let members = graph.members();
        let position = |id: &NodeId| members.binary_search(id).unwrap();
        members.iter().map(|id| graph.neighbours(*id).iter().map(position).collect()).collect()
    }

    /// How many hops the two members are apart that are furthest apart, or `None` when some are out of reach.
    fn diameter(near: &[Vec<usize>]) -> Option<usize> {
        let furthest = |from: usize| {
            let mut hops = vec![None; near.len()];
            hops[from] = Some(0);
            let mut queue = VecDeque::from([from]);
            while let Some(at) = queue.pop_front() {
                for next in &near[at] {
                    if hops[*next].is_none() {
                        hops[*next] = hops[at].map(|count: usize| count + 1);
                        queue.push_back(*next);
                    }
                }
            }
            hops.into_iter().try_fold(0, |most, count| count.map(|count| count.max(most)))
        };
        (0..near.len()).try_fold(0, |most, from| furthest(from).map(|count| count.max(most)))
    }

    /// The second largest eigenvalue of the adjacency, by power iteration on A + 8 across the uniform vector.
    fn second_eigenvalue(near: &[Vec<usize>]) -> f64 {
        let mut vector: Vec<f64> =
            (0..near.len()).map(|i| f64::from(u16::try_from(i % 17).unwrap())).collect();
        let mut value = 0.0;
        for _ in 0..300 {
            let mean = vector.iter().sum::<f64>() / f64::from(u32::try_from(vector.len()).unwrap());
            vector.iter_mut().for_each(|x| *x -= mean);
            let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
            vector.iter_mut().for_each(|x| *x /= norm);
            let image: Vec<f64> = (near.iter().zip(&vector))
                .map(|(near, own)| 8.0 * own + near.iter().map(|i| vector[*i]).sum::<f64>())
                .collect();
            value = vector.iter().zip(&image).map(|(x, y)| x * y).sum::<f64>() - 8.0;
            vector = image;
        }
        value
    }

    #[test]
    fn up_to_nine_members_watch_one_another_all() {
        for count in 0..=9 {
            let members = cluster(count);
            let graph = Graph::new(&members, 5);
            assert!(is_sound(&members, &graph));
            assert!(members.iter().all(|id| graph.neighbours(*id).len() == members.len() - 1));
        }
        assert!(watched(&cluster(5), 5, NodeId(77)).is_empty());
    }

    #[test]
    fn above_that_everybody_has_eight_neighbours() {
        for count in (10..=80).chain([100, 333, 1_000, 3_001]) {
            let members = cluster(count);
            for seed in 0..20 {
                let graph = Graph::new(&members, seed);
                assert!(is_sound(&members, &graph));
                let degrees: Vec<usize> = members.iter().map(|id| graph.neighbours(*id).len()).collect();
                assert!(degrees.iter().all(|degree| *degree == DEGREE), "{count} {seed} {degrees:?}");
            }
        }
    }

    #[test]
    fn a_thousand_are_five_hops_wide_and_well_mixed() {
        let members = cluster(1_000);
        for seed in 0..3 {
            let near = positions(&Graph::new(&members, seed));
            let (diameter, eigenvalue) = (diameter(&near).unwrap(), second_eigenvalue(&near));
            println!("seed {seed}: diameter {diameter}, second eigenvalue {eigenvalue:.3} of 8");
            assert!(diameter <= 5);
            // A random graph comes close to 2 * sqrt(7) = 5.29; one ring of eight neighbours has 7.99.
            assert!(eigenvalue < 5.8, "{eigenvalue}");
        }
    }

    #[test]
    fn the_rest_stays_connected_when_an_eighth_is_gone() {
        for count in [16u128, 64, 256, 1_000] {
            let members = cluster(count);
            for seed in 0..50u64 {
                let graph = Graph::new(&members, seed);
                let fates = ring_order(graph.members(), seed, 99);
                let gone: BTreeSet<NodeId> =
                    fates.iter().take(fates.len() / 8).map(|index| graph.members()[*index]).collect();
                let alive: BTreeSet<NodeId> = members.difference(&gone).copied().collect();
                let from = alive.first().copied().unwrap();
                assert_eq!(distances(&graph, &alive, from).len(), alive.len(), "{count} {seed}");
            }
        }
    }

    #[test]
    fn golden_vector_since_all_nodes_must_compute_the_same_graph() {
        let graph = Graph::new(&cluster(12), 1);
        let near = |id: u128| graph.neighbours(NodeId(id)).iter().map(|near| near.0).collect::<Vec<_>>();
        assert_eq!(near(1), [2, 4, 6, 7, 9, 10, 11, 12]);
        assert_eq!(near(12), [1, 3, 4, 5, 6, 7, 9, 11]);
        let large = Graph::new(&cluster(1_000), 42);
        let near = large.neighbours(NodeId(500)).iter().map(|near| near.0).collect::<Vec<_>>();
        assert_eq!(near, [76, 194, 209, 250, 405, 420, 745, 841]);
    }

    #[test]
    fn a_removal_wants_a_majority_of_few_and_five_of_eight() {
        let small: Vec<(usize, usize)> = (2..=9).map(|members| watermarks(members - 1, members)).collect();
        assert_eq!(small, [(1, 1), (2, 1), (3, 1), (3, 1), (4, 1), (4, 1), (5, 1), (5, 1)]);
        assert_eq!(watermarks(8, 100), (5, 2));
        assert_eq!(watermarks(7, 100), (5, 2));
        assert_eq!(watermarks(4, 100), (3, 2));
        assert_eq!(watermarks(1, 100), (1, 1));
        assert_eq!(watermarks(0, 100), (1, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_same_members_and_seed_give_the_same_symmetric_graph(
            ids in prop::collection::btree_set(any::<u128>(), 0..120), seed in any::<u64>(),
        ) {
            let members: BTreeSet<NodeId> = ids.into_iter().map(NodeId).collect();
            let graph = Graph::new(&members, seed);
            prop_assert!(is_sound(&members, &graph));
            prop_assert_eq!(&graph, &Graph::new(&members, seed));
            for id in members.iter().take(3) {
                prop_assert!(watched(&members, seed, *id).iter().eq(graph.neighbours(*id)));
            }
        }

        #[test]
        fn a_departure_leaves_most_of_the_graph_as_it_was(seed in any::<u64>(), gone in 1u128..=300) {
            let before = cluster(300);
            let mut after = before.clone();
            after.remove(&NodeId(gone));
            let (old, new) = (Graph::new(&before, seed), Graph::new(&after, seed));
            let changed = after.iter().filter(|id| old.neighbours(**id) != new.neighbours(**id)).count();
            prop_assert!(changed <= 100, "{} of 299 watch others", changed);
        }
    }
}
