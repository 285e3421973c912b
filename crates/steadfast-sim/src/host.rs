//! A host as the world sees it: its clock, its power, its agent, its shims, its checkpoint memory.
//!
//! Losing the agent keeps shims and memory; losing power keeps only what was durable. See `agents` and `shims`
//! for what they do.

use std::collections::{BTreeMap, BTreeSet};

use steadfast_proto::catalog::ContainerRow;
use steadfast_proto::ids::{ContainerId, Digest, Epoch, Incarnation, NodeId};
use steadfast_proto::node::{Batch, JobId, Node};

use crate::clock::Clock;
use crate::shims::Shim;
use crate::world::Event;

/// The checkpoint memory of every host, in bytes.
pub(crate) const MEMORY_BYTES: u64 = 1_000;

/// One machine.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) node: NodeId,
    pub(crate) clock: Clock,
    pub(crate) powered: bool,
    /// Counts the host's boots, so that what was under way at a power loss is over.
    pub(crate) boots: u64,
    /// The durable incarnation of its node.
    pub(crate) incarnation: Incarnation,
    /// The revision up to which its disk knows the catalog for certain.
    pub(crate) durable: u64,
    pub(crate) agent: Option<Agent>,
    pub(crate) shims: BTreeMap<ContainerId, Shim>,
    pub(crate) shims_paused: bool,
    /// The highest epoch of each container that was ever started here.
    pub(crate) epochs: BTreeMap<ContainerId, Epoch>,
    pub(crate) memory: BTreeMap<Digest, Held>,
    /// How late processes are woken at worst while the host is slow, in nanoseconds.
    pub(crate) slow: u64,
    /// The worst lateness that its agent has measured lately, in nanoseconds, and when.
    pub(crate) measured: (u64, u64),
}

/// A sealed manifest in checkpoint memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) container: ContainerId,
    pub(crate) epoch: Epoch,
    pub(crate) number: u64,
    pub(crate) bytes: u64,
}

/// An agent process.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Tells this process from those before it, on whatever host.
    pub(crate) life: u64,
    pub(crate) node: Node,
    pub(crate) incarnation: Incarnation,
    /// The revision up to which its core knows the catalog.
    pub(crate) applied: u64,
    pub(crate) apply_scheduled: bool,
    /// The revision that a read through a majority gave; the core is in step when it knows it.
    pub(crate) sync_at: Option<u64>,
    pub(crate) wake_at: Option<u64>,
    pub(crate) paused: bool,
    /// What happened to it while it was paused.
    pub(crate) pending: Vec<Event>,
    /// What a step wanted done just before the pause.
    pub(crate) withheld: Vec<Batch>,
    /// The leader of the catalog as it was last told.
    pub(crate) leader: Option<NodeId>,
    /// Containers that are being started or restored by it.
    pub(crate) bringing: BTreeMap<JobId, Box<ContainerRow>>,
}

impl Host {
    /// Whether an agent runs here that answers at once.
    pub(crate) fn answers(&self) -> bool {
        self.agent.as_ref().is_some_and(|agent| !agent.paused)
    }

    pub(crate) fn is_life(&self, life: u64) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.life == life)
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        MEMORY_BYTES.saturating_sub(self.memory.values().map(|held| held.bytes).sum())
    }

    pub(crate) fn manifests(&self) -> BTreeSet<Digest> {
        self.memory.keys().copied().collect()
    }
}
