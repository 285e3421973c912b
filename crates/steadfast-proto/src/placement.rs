//! Where a container runs and where the copies of its checkpoints lie.
//!
//! Pure choices over what the caller knows of each node; ties fall by id, so every node chooses alike from the
//! same facts. A choice binds nobody: the row's compare-and-set does (PROTOCOLS 0.3, 5).

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::catalog::{CheckpointRef, ContainerRow, ContainerSpec, NodeRow};
use crate::devices::DeviceName;
use crate::domains::closeness;
use crate::ids::NodeId;

/// What a choice looks at of one node that is a member and not suspected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// The checkpoint memory it still has to lend, in bytes.
    pub free_bytes: u64,
    /// How many containers it owns.
    pub containers: usize,
    /// Its CRIU version; empty where it can run no containers.
    pub criu: String,
    /// What its processor offers.
    pub processor: String,
    /// Its failure domain, widest first.
    pub domain: Vec<String>,
    /// The names under which it surely sees the devices of these names.
    pub devices: Arc<BTreeSet<DeviceName>>,
}

impl Candidate {
    /// What is known of the node behind `row`.
    pub fn new(row: &NodeRow, free_bytes: u64, containers: usize) -> Candidate {
        Candidate {
            node: row.id,
            free_bytes,
            containers,
            criu: row.criu.clone(),
            processor: row.processor.clone(),
            domain: row.domain.clone(),
            devices: Arc::default(),
        }
    }

    /// The same with the devices that it sees.
    #[must_use]
    pub fn seeing(self, devices: Arc<BTreeSet<DeviceName>>) -> Candidate {
        Candidate { devices, ..self }
    }

    /// Whether it has what the container requires of a node.
    pub fn meets(&self, spec: &ContainerSpec) -> bool {
        let require = &spec.require;
        require.domain.as_ref().is_none_or(|domain| self.domain.contains(domain))
            && require.devices.iter().all(|device| self.devices.contains(device.as_str()))
    }

    fn can_run(&self, spec: &ContainerSpec) -> bool {
        let is_asked_for = spec.nodes.is_empty() || spec.nodes.contains(&self.node);
        !self.criu.is_empty() && is_asked_for && self.meets(spec)
    }

    fn can_restore(&self, checkpoint: &CheckpointRef) -> bool {
        self.criu == checkpoint.criu && self.processor == checkpoint.processor
    }
}

/// The node on which a new container starts: of those that may run it the one with the fewest.
pub fn start_on(spec: &ContainerSpec, candidates: &[Candidate]) -> Option<NodeId> {
    (candidates.iter())
        .filter(|candidate| candidate.can_run(spec))
        .min_by_key(|candidate| (candidate.containers, candidate.node))
        .map(|candidate| candidate.node)
}

/// The node on which `row` goes on: one that holds a copy first, then the one with the fewest containers; never
/// one that has tried and failed.
pub fn recover_on(row: &ContainerRow, candidates: &[Candidate]) -> Option<NodeId> {
    let checkpoint = row.restore_from();
    (candidates.iter())
        .filter(|candidate| candidate.can_run(&row.spec) && !row.tried.contains(&candidate.node))
        .filter(|candidate| checkpoint.is_none_or(|checkpoint| candidate.can_restore(checkpoint)))
        .min_by_key(|candidate| {
            let holds = checkpoint.is_some_and(|checkpoint| checkpoint.copies.contains(&candidate.node));
            (!holds, candidate.containers, candidate.node)
        })
        .map(|candidate| candidate.node)
}

/// The nodes to offer copies of `owner`'s checkpoint to, best first: each as far as can be from the owner and from those
/// before it by failure domain, then those that hold the last one (most of it is there already), then the most free
/// memory. So the first few are spread as well as so many can be.
pub fn holders(owner: NodeId, latest: Option<&CheckpointRef>, candidates: &[Candidate]) -> Vec<NodeId> {
    let own = candidates.iter().find(|candidate| candidate.node == owner);
    let mut chosen: Vec<&Candidate> = Vec::new();
    let mut left: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.node != owner).collect();
    while !left.is_empty() {
        let best = left.iter().enumerate().min_by_key(|(_, candidate)| {
            let domains = own.into_iter().chain(chosen.iter().copied()).map(|other| other.domain.as_slice());
            let holds = latest.is_some_and(|latest| latest.copies.contains(&candidate.node));
            // Whoever has no room, as a witness, is asked last and takes no domain's place.
            let has_no_room = candidate.free_bytes == 0 && !holds;
            let closeness = closeness(&candidate.domain, domains);
            (has_no_room, closeness, !holds, Reverse(candidate.free_bytes), candidate.node)
        });
        let Some((index, _)) = best else { break };
        chosen.push(left.swap_remove(index));
    }
    chosen.into_iter().map(|candidate| candidate.node).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::catalog::{ContainerState, Desired, Requirements, Restart, Root};
    use crate::ids::{ContainerId, Digest, Epoch};

    fn candidate(node: u128, free_bytes: u64, domain: &[&str]) -> Candidate {
        Candidate {
            node: NodeId(node),
            free_bytes,
            containers: 0,
            criu: "4.2.1".to_owned(),
            processor: "x".to_owned(),
            domain: domain.iter().map(|name| (*name).to_owned()).collect(),
            devices: Arc::default(),
        }
    }

    fn spec(domain: Option<&str>, devices: &[&str]) -> ContainerSpec {
        ContainerSpec {
            name: "c".to_owned(),
            command: vec!["c".to_owned()],
            environment: BTreeMap::new(),
            working_directory: None,
            user: None,
            root: Root::Host,
            volumes: Vec::new(),
            address: None,
            memory_bytes_max: None,
            cpu_milli_max: None,
            every_ms: None,
            copies: 1,
            restart: Restart::Latest,
            nodes: BTreeSet::new(),
            require: Requirements {
                domain: domain.map(str::to_owned),
                devices: devices.iter().map(|name| (*name).to_owned()).collect(),
            },
        }
    }

    fn row(spec: ContainerSpec, latest: CheckpointRef) -> ContainerRow {
        ContainerRow {
            id: ContainerId(1),
            spec,
            owner: NodeId(9),
            epoch: Epoch(1),
            state: ContainerState::Running,
            desired: Desired::Run,
            latest: Some(latest),
            parent: None,
            restore_number: None,
            after_loss: true,
            tried: BTreeSet::new(),
            changed_unix_ms: 0,
        }
    }

    #[test]
    fn a_container_goes_only_where_its_devices_are_seen_and_into_its_domain() {
        let sees = |node, domain: &[&str], devices: &[&str]| {
            let devices = devices.iter().map(|name| name.parse().unwrap()).collect();
            candidate(node, 1, domain).seeing(Arc::new(devices))
        };
        let candidates = [
            sees(1, &["site-a", "rack-1"], &[]),
            sees(2, &["site-a", "rack-2"], &["data1"]),
            sees(3, &["site-b", "rack-3"], &["data1", "data2"]),
        ];
        let started = |domain, devices: &[&str]| start_on(&spec(domain, devices), &candidates);
        assert_eq!(started(None, &[]), Some(NodeId(1)));
        assert_eq!(started(None, &["data1"]), Some(NodeId(2)));
        assert_eq!(started(None, &["data1", "data2"]), Some(NodeId(3)));
        assert_eq!(started(Some("site-b"), &["data1"]), Some(NodeId(3)));
        assert_eq!(started(Some("rack-1"), &["data1"]), None);
        assert_eq!(started(None, &["data3"]), None);
        // The holder of the checkpoint does not see the device, so it goes elsewhere.
        let row = row(spec(None, &["data2"]), held_by(&[1]));
        assert_eq!(recover_on(&row, &candidates), Some(NodeId(3)));
    }

    fn held_by(copies: &[u128]) -> CheckpointRef {
        CheckpointRef {
            number: 1,
            epoch: Epoch(1),
            manifest: Digest([0; 32]),
            bytes: 1,
            copies: copies.iter().copied().map(NodeId).collect(),
            wanted: 2,
            frozen_us: 0,
            taken_unix_ms: 0,
            criu: "4.2.1".to_owned(),
            processor: "x".to_owned(),
        }
    }

    #[test]
    fn copies_go_to_racks_of_their_own_before_to_the_most_memory() {
        let candidates = [
            candidate(1, 9, &["a"]),
            candidate(2, 90, &["a"]),
            candidate(3, 80, &["b"]),
            candidate(4, 70, &["b"]),
            candidate(5, 10, &["c"]),
        ];
        assert_eq!(holders(NodeId(1), None, &candidates), [3, 5, 2, 4].map(NodeId));
        // Where the last one is, the next one stays, as long as it is as far away.
        assert_eq!(holders(NodeId(1), Some(&held_by(&[4, 5])), &candidates)[..2], [4, 5].map(NodeId));
        assert_eq!(holders(NodeId(1), Some(&held_by(&[3, 4])), &candidates)[..2], [3, 5].map(NodeId));
    }

    #[test]
    fn a_witness_in_a_rack_of_its_own_is_asked_last() {
        let candidates = [
            candidate(1, 9, &["a"]),
            candidate(2, 0, &["b"]),
            candidate(3, 8, &["a"]),
            candidate(4, 7, &["b"]),
        ];
        assert_eq!(holders(NodeId(1), None, &candidates), [4, 3, 2].map(NodeId));
        let full = holders(NodeId(1), Some(&held_by(&[2])), &candidates);
        assert_eq!(
            full,
            [2, 3, 4].map(NodeId),
            "a full one that has most of it already has room for the rest"
        );
    }

    #[test]
    fn a_rack_of_another_site_is_further_than_another_rack() {
        let candidates = [
            candidate(1, 1, &["east", "r1"]),
            candidate(2, 9, &["east", "r2"]),
            candidate(3, 8, &["west", "r1"]),
            candidate(4, 7, &["west", "r2"]),
        ];
        assert_eq!(holders(NodeId(1), None, &candidates), [3, 2, 4].map(NodeId));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn the_first_copies_are_in_as_many_domains_as_there_are(
            racks in proptest::collection::vec(0u8..5, 2..12),
            free in proptest::collection::vec(1u64..4, 12),
            held in proptest::collection::btree_set(1u128..12, 0..3),
            count in 1usize..4,
        ) {
            let candidates: Vec<Candidate> = (racks.iter().zip(&free).zip(1..))
                .map(|((rack, free), node)| candidate(node, *free, &[&format!("rack-{rack}")]))
                .collect();
            let held: Vec<u128> = held.into_iter().collect();
            let order = holders(NodeId(1), Some(&held_by(&held)), &candidates);
            let everybody: BTreeSet<NodeId> = candidates.iter().skip(1).map(|candidate| candidate.node).collect();
            prop_assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), everybody, "each once, the owner never");
            prop_assert_eq!(order.len(), candidates.len() - 1);
            let rack: BTreeMap<NodeId, &Vec<String>> =
                candidates.iter().map(|candidate| (candidate.node, &candidate.domain)).collect();
            let own = rack[&NodeId(1)];
            let others: BTreeSet<&Vec<String>> = rack.values().copied().filter(|rack| *rack != own).collect();
            let taken: Vec<&Vec<String>> = order.iter().take(count).map(|node| rack[node]).collect();
            let distinct: BTreeSet<&Vec<String>> = taken.iter().copied().filter(|rack| *rack != own).collect();
            prop_assert_eq!(distinct.len(), others.len().min(taken.len()), "{:?} of {:?}", taken, rack);
        }
    }
}
