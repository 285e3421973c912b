//! What people are shown of a node: a snapshot of what it knows, as it knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Node, Phase};
use crate::catalog::{ClusterRow, ContainerRow, DrainRow, NodeRow, ProbationRow, View};
use crate::detect::{Link, Verdict};
use crate::ids::{ContainerId, Epoch, Incarnation, NetworkId, NodeId};
use crate::probation::Evidence;
use crate::time::Time;

/// A snapshot of one node's knowledge.
#[derive(Clone, Debug)]
pub struct Status {
    /// This node.
    pub id: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The cluster's settings, once known.
    pub cluster: Option<ClusterRow>,
    /// The installed view.
    pub view: Option<View>,
    /// The revision that installed it.
    pub view_revision: u64,
    /// Every node's row.
    pub nodes: BTreeMap<NodeId, NodeRow>,
    /// What is known of the others by their heartbeats.
    pub peers: BTreeMap<NodeId, PeerStatus>,
    /// The candidates for membership.
    pub candidates: BTreeMap<NodeId, CandidateStatus>,
    /// The nodes that hand over their duties.
    pub draining: BTreeMap<NodeId, DrainRow>,
    /// Every container's row and the revision that last changed it.
    pub containers: BTreeMap<ContainerId, (u64, ContainerRow)>,
    /// What this node itself has.
    pub local: BTreeMap<ContainerId, (Epoch, Phase)>,
    /// The leader of the catalog's engine.
    pub leader: Option<NodeId>,
    /// Whether everything committed before this node's start is known to it.
    pub synced: bool,
    /// Whether its own lease lives, so that its containers may run.
    pub lease_live: bool,
    /// How much of the lease is left.
    pub lease_left: Duration,
    /// Whether it hears nobody on any network.
    pub isolated: bool,
    /// The networks on which it hears nobody although it hears peers elsewhere.
    pub networks_suspected: BTreeSet<NetworkId>,
    /// Checkpoint memory it still has to lend, in bytes.
    pub free_bytes: u64,
    /// What everybody's testimony proves.
    pub verdicts: Vec<Verdict>,
    /// The networks whose interface here is down.
    pub unplugged: BTreeSet<NetworkId>,
    /// This node's clock when the snapshot was taken.
    pub now: Time,
}

/// What is known of a candidate.
#[derive(Clone, Debug)]
pub struct CandidateStatus {
    /// Its row.
    pub row: ProbationRow,
    /// The revision that last changed it.
    pub revision: u64,
    /// For how long this node has known of this life of it.
    pub age: Duration,
    /// How every criterion stands; empty once it is eliminated.
    pub evidence: Vec<Evidence>,
}

/// What is known of another node by its heartbeats.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// How long it has been silent on all networks.
    pub silent: Duration,
    /// How long it may be.
    pub timeout: Duration,
    /// What this node's link to it does on each network.
    pub links: BTreeMap<NetworkId, Link>,
    /// Whether this node suspects it.
    pub suspected: bool,
    /// Whom it suspects.
    pub suspects: BTreeSet<NodeId>,
    /// Checkpoint memory it still has to lend, in bytes.
    pub free_bytes: u64,
}

impl Node {
    /// What this node knows at `now`.
    pub fn status(&self, now: Time) -> Status {
        let peers = self.detector.peers().map(|id| {
            let (silent, timeout) = self.detector.silence(now, id).unwrap_or_default();
            let silent = self.detector.heard_at(id).map_or(silent, |heard_at| now.since(heard_at));
            let status = PeerStatus {
                incarnation: self.detector.incarnation_of(id).unwrap_or_default().0,
                silent,
                timeout,
                links: self.detector.links(id).collect(),
                suspected: self.detector.is_suspected(id),
                suspects: self.detector.suspects_of(id),
                free_bytes: self.peers.get(&id).map_or(0, |peer| peer.free_bytes),
            };
            (id, status)
        });
        Status {
            id: self.settings.id,
            incarnation: self.incarnation,
            cluster: self.cluster.clone(),
            view: self.view().cloned(),
            view_revision: self.view.as_ref().map_or(0, |(revision, _)| *revision),
            nodes: self.nodes.clone(),
            peers: peers.collect(),
            candidates: self.candidates_shown(now),
            draining: self.duties.draining().map(|row| (row.node, *row)).collect(),
            containers: self.containers.clone(),
            local: self.local.iter().map(|(id, local)| (*id, (local.epoch, local.phase.clone()))).collect(),
            leader: self.leader,
            synced: self.synced,
            lease_live: self.lease.live,
            lease_left: self.lease.deadline.map_or(Duration::ZERO, |deadline| deadline.since(now)),
            isolated: self.detector.is_isolated(),
            networks_suspected: self.detector.networks_suspected().clone(),
            free_bytes: self.memory.free_bytes,
            verdicts: self.detector.verdicts().values().cloned().collect(),
            unplugged: self.detector.unplugged().clone(),
            now,
        }
    }
}
