//! Where a container runs and where the copies of its checkpoints lie.
//!
//! Pure choices over what the caller knows of each node; ties fall by id, so every node chooses alike from the
//! same facts. A choice binds nobody: the row's compare-and-set does (PROTOCOLS 0.3, 5).

use std::collections::BTreeMap;

use crate::catalog::{CheckpointRef, ContainerRow, ContainerSpec, NodeRow};
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
        }
    }

    fn can_run(&self, spec: &ContainerSpec) -> bool {
        !self.criu.is_empty() && (spec.nodes.is_empty() || spec.nodes.contains(&self.node))
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

/// The nodes to offer copies of `owner`'s checkpoint to, best first: other failure domains before the owner's,
/// then those that hold the last one (most of it is there already), then the most free memory.
pub fn holders(owner: NodeId, latest: Option<&CheckpointRef>, candidates: &[Candidate]) -> Vec<NodeId> {
    let domains: BTreeMap<NodeId, &[String]> =
        candidates.iter().map(|candidate| (candidate.node, candidate.domain.as_slice())).collect();
    let own = domains.get(&owner).copied().unwrap_or_default();
    let mut others: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.node != owner).collect();
    others.sort_by_key(|candidate| {
        let shares_domain = !own.is_empty() && candidate.domain.as_slice() == own;
        let holds = latest.is_some_and(|latest| latest.copies.contains(&candidate.node));
        (shares_domain, !holds, std::cmp::Reverse(candidate.free_bytes), candidate.node)
    });
    others.into_iter().map(|candidate| candidate.node).collect()
}
