//! The machine that joins all protocols: what one node does about everything that happens to it.
//!
//! The runtime and the simulator drive it alike: they step it with [`Input`]s and carry out the [`Batch`] that
//! each step fills. **A verdict is one node's opinion; only a committed change starts, stops or moves a
//! container.** The parts: `heartbeat` (datagrams, detection, leases), `membership` (views), `probation`
//! (candidates), `handover` (duties that go over to another node), `containers` (jobs
//! and rows), `memory` (checkpoint memory), `status` (what people are shown).

mod containers;
mod handover;
mod heartbeat;
mod membership;
mod memory;
mod probation;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::{
    Change, CheckpointRef, ClusterRow, ContainerRow, DrainRow, Exit, Intent, Key, NodeRow, ProbationRow,
    View, ViewRecord,
};
use crate::detect::{self, Detector, Evidence, Opinion};
use crate::devices::DeviceName;
use crate::ids::{ContainerId, Digest, Epoch, Incarnation, NetworkId, NodeId, ViewId};
use crate::lease::{self, Grantor, Holder};
use crate::machine::Machine;
use crate::time::Time;
use crate::wire::Heartbeat;

pub use containers::{Local, Phase};
pub use status::{CandidateStatus, PeerStatus, Status};

/// How many nodes one cluster may have; rows beyond it are ignored.
pub const NODES_MAX: usize = 64;

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub id: NodeId,
    /// The number of this start.
    pub incarnation: Incarnation,
    /// A number drawn for this start; not zero.
    pub boot: u64,
    /// The networks it is on.
    pub networks: Vec<NetworkId>,
    /// How it judges the others.
    pub detect: detect::Settings,
    /// What it asks of candidates.
    pub probation: crate::probation::Settings,
    /// What it wants to become where it is no member.
    pub intent: Intent,
    /// The version of the program.
    pub version: String,
    /// Milliseconds since 1970 at this machine's boot; for time stamps that people read, and nothing else.
    pub boot_unix_ms: u64,
}

/// Numbers the jobs of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// Numbers the proposals of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProposalId(pub u64);

/// Numbers the requests that a node's users make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Everything that can happen to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// An authentic heartbeat arrived. All that wait must be handed over before a `Deadline`.
    Heard {
        /// Its sender, by the seal.
        from: NodeId,
        /// Its sender's incarnation, by the seal.
        incarnation: Incarnation,
        /// The network it came on.
        network: NetworkId,
        /// When the kernel had it.
        received_at: Time,
        /// What it says.
        heartbeat: Heartbeat,
    },
    /// The kernel says something of a peer.
    Testified {
        /// Of whom.
        peer: NodeId,
        /// The incarnation it is about.
        incarnation: Incarnation,
        /// What.
        evidence: Evidence,
        /// When.
        at: Time,
    },
    /// An interface of this node lost its carrier or its address, or has both again.
    Interface {
        /// The network it joins.
        network: NetworkId,
        /// Whether it is usable.
        up: bool,
    },
    /// A row changed; rows come in the order of their revisions. Where changes were skipped, the removed rows come
    /// first and then the others in that order, with no other input between them.
    Committed {
        /// The revision that changed it.
        revision: u64,
        /// What it is now.
        change: Change,
    },
    /// The names of the devices that each node surely sees, by the committed rows about devices.
    Devices(BTreeMap<NodeId, BTreeSet<DeviceName>>),
    /// Everything has been handed over that a read through a majority saw, which began after this node's start and
    /// after its last `Synced`. One is needed; one a minute lets this node free what removed containers left.
    Synced,
    /// The catalog's engine has a leader, or has none.
    Leader(Option<NodeId>),
    /// The catalog answered a proposal; what is unknown counts as refused, for the rows tell.
    Proposed {
        /// Which.
        proposal: ProposalId,
        /// Whether it was committed.
        accepted: bool,
    },
    /// A job ended.
    Done {
        /// Which.
        job: JobId,
        /// How.
        outcome: Outcome,
    },
    /// A container that an earlier agent of this node started is still here.
    Adopted {
        /// Which.
        container: ContainerId,
        /// The epoch it was started in.
        epoch: Epoch,
        /// Whether a checkpoint holds it still.
        held: bool,
    },
    /// A container's first process ended.
    Exited {
        /// Which.
        container: ContainerId,
        /// The epoch it ran in.
        epoch: Epoch,
        /// How.
        exit: Exit,
    },
    /// All containers of earlier agents have been adopted.
    AdoptedAll,
    /// What this node's checkpoint memory has: free bytes and the complete manifests. The first comes before any
    /// checkpoint is sealed here; each later one before the seal that changed it is acknowledged.
    Memory {
        /// Bytes it still has to lend.
        free_bytes: u64,
        /// The manifests whose chunks are all there.
        held: BTreeSet<Digest>,
    },
    /// A new incarnation of this node is durable.
    Renumbered(Incarnation),
    /// A user asks something that only the core can do.
    Request(RequestId, Request),
    /// The time that [`Machine::deadline`] named has come.
    Deadline,
}

/// What a user can ask of the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Take a checkpoint of a container that this node runs, now.
    Checkpoint(ContainerId),
}

/// What a step wants done, in the order in which it must be carried out.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Leaves now; must never wait for a disk.
    pub send: Vec<(NodeId, NetworkId, Heartbeat)>,
    /// Peers that are late: the kernel is asked whether their machines answer, and says so by
    /// [`Input::Testified`].
    pub probe: Vec<NodeId>,
    /// To the catalog.
    pub propose: Vec<Proposal>,
    /// Work for the operating system; its outcome returns as an input.
    pub run: Vec<(JobId, Job)>,
    /// What happened, for people and programs that listen.
    pub publish: Vec<Event>,
}

/// A compare-and-set on the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Names it in the answer.
    pub id: ProposalId,
    /// It is refused unless each of these rows was last changed by this revision.
    pub basis: Vec<(Key, u64)>,
    /// The rows it writes.
    pub rows: Vec<Row>,
}

/// A row to be written, or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// The next view.
    View(View),
    /// What is kept of it.
    Record(Box<ViewRecord>),
    /// Nothing is kept of this view any more.
    Forget(ViewId),
    /// A candidate's next row.
    Probation(ProbationRow),
    /// This candidate is none any more.
    NoProbation(NodeId),
    /// A node that has handed its duties over stays out.
    Drain(DrainRow),
    /// A container's next row.
    Container(Box<ContainerRow>),
}

/// Work for the operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Let these containers run until `deadline`, on this node's clock; no outcome returns.
    Renew {
        /// When they must be frozen.
        deadline: Time,
        /// How much earlier, for what clocks and schedulers may differ by.
        drift: Duration,
        /// Which, each in the epoch that its row says.
        containers: Vec<(ContainerId, Epoch)>,
    },
    /// Start it afresh; it stays frozen until a renewal.
    Start(Box<ContainerRow>),
    /// Restore it from [`ContainerRow::restore_from`]; it stays frozen until a renewal.
    Restore(Box<ContainerRow>),
    /// Capture it, ship it, and have it sealed by `copies` of these nodes, tried in this order.
    Checkpoint {
        /// The row as it is now.
        row: Box<ContainerRow>,
        /// The checkpoint's number.
        number: u64,
        /// Nodes that may hold it, best first.
        holders: Vec<NodeId>,
        /// Whether the program is to stand still afterwards, until [`Job::Release`].
        hold: bool,
    },
    /// Let a container that a checkpoint holds still go on; no outcome returns.
    Release {
        /// Which.
        container: ContainerId,
        /// The epoch it runs in.
        epoch: Epoch,
    },
    /// End its first process, with force after `grace`; its exit returns as an input.
    Stop {
        /// Which.
        container: ContainerId,
        /// The epoch it runs in.
        epoch: Epoch,
        /// How long it may take to end by itself.
        grace: Duration,
    },
    /// Remove every trace of it from this node; its logs too when `forget`.
    Destroy {
        /// Which.
        container: ContainerId,
        /// The epoch it was started in.
        epoch: Epoch,
        /// Whether its row is gone.
        forget: bool,
    },
    /// Free what checkpoint memory holds for nobody: whatever [`Node::keeps`] does not keep.
    Collect,
    /// Make this node stand for leader of the catalog's engine now: the last leader is dead.
    Campaign,
    /// Make the next incarnation durable; it returns as [`Input::Renumbered`].
    Renumber,
    /// Get what a node must have before it is a member in this life: the registrations of the whole cluster for events
    /// (PROTOCOLS 4.3). It must end; whatever its outcome, the node goes on to be a member.
    Provision(Incarnation),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It runs, or will as soon as it is let.
    Up,
    /// It could not be done; why, in one sentence. Nothing of it is left.
    Failed(String),
    /// The checkpoint is sealed on its holders.
    Sealed(Box<CheckpointRef>),
    /// It is done, and there is nothing to tell.
    Finished,
}

/// Something that happened on this node, or that it learned of.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// This node's opinion of another changed.
    Opinion(Opinion),
    /// A view was installed.
    Installed(View),
    /// This node's lease lapsed; its containers freeze.
    LeaseLapsed,
    /// This node's lease is fresh again.
    LeaseRenewed,
    /// A removed node certainly holds no lease any more.
    Fenced(NodeId),
    /// A container's row changed its state, owner or epoch.
    Moved {
        /// Which.
        container: ContainerId,
        /// The row now.
        row: Box<ContainerRow>,
    },
    /// A checkpoint was committed.
    Committed {
        /// Of which container.
        container: ContainerId,
        /// The checkpoint.
        checkpoint: CheckpointRef,
    },
    /// A checkpoint could not be taken, shipped or committed; the program runs on.
    CheckpointFailed {
        /// Of which container.
        container: ContainerId,
        /// Why.
        reason: String,
    },
    /// The answer to a request.
    Answer(RequestId, Result<CheckpointRef, String>),
}

/// One node's part of the cluster.
#[derive(Clone, Debug)]
pub struct Node {
    settings: Settings,
    incarnation: Incarnation,
    cluster: Option<ClusterRow>,
    view: Option<(u64, View)>,
    nodes: BTreeMap<NodeId, NodeRow>,
    devices: BTreeMap<NodeId, Arc<BTreeSet<DeviceName>>>,
    containers: BTreeMap<ContainerId, (u64, ContainerRow)>,
    synced: bool,
    leader: Option<NodeId>,
    told: heartbeat::Told,
    peers: BTreeMap<NodeId, heartbeat::Peer>,
    detector: Detector,
    holder: Holder,
    grantor: Grantor,
    /// How late this node was for its own deadlines lately.
    lag: heartbeat::Lag,
    requested_deadline: Option<Time>,
    lease: heartbeat::Lease,
    membership: membership::Membership,
    candidates: probation::Candidates,
    duties: handover::Duties,
    /// The newest revision of the catalog that was handed over.
    revision: u64,
    local: BTreeMap<ContainerId, Local>,
    adopted_all: bool,
    restarts: BTreeMap<ContainerId, containers::Restarts>,
    memory: memory::Memory,
    next_job: u64,
    next_proposal: u64,
    proposals: BTreeMap<ProposalId, (Key, Time)>,
}

impl Node {
    /// A node that has just started and knows nothing yet.
    pub fn new(settings: Settings, now: Time) -> Node {
        Node {
            incarnation: settings.incarnation,
            cluster: None,
            view: None,
            nodes: BTreeMap::new(),
            devices: BTreeMap::new(),
            containers: BTreeMap::new(),
            synced: false,
            leader: None,
            told: heartbeat::Told::default(),
            peers: BTreeMap::new(),
            detector: Detector::new(
                settings.detect.clone(),
                settings.id,
                settings.incarnation,
                settings.boot,
                settings.networks.clone(),
                now,
            ),
            holder: Holder::default(),
            grantor: Grantor::new(now),
            lag: heartbeat::Lag::new(now),
            requested_deadline: None,
            lease: heartbeat::Lease::default(),
            membership: membership::Membership::default(),
            candidates: probation::Candidates::default(),
            duties: handover::Duties::default(),
            revision: 0,
            local: BTreeMap::new(),
            adopted_all: false,
            restarts: BTreeMap::new(),
            memory: memory::Memory::default(),
            next_job: 1,
            next_proposal: 1,
            proposals: BTreeMap::new(),
            settings,
        }
    }

    fn view(&self) -> Option<&View> {
        self.view.as_ref().map(|(_, view)| view)
    }

    fn lease_length(&self) -> Duration {
        self.cluster.as_ref().map_or(Duration::from_secs(1), ClusterRow::lease)
    }

    /// What this node allows for differences of clocks and for its own late wake-ups.
    fn drift(&self) -> Duration {
        let lease = self.lease_length();
        lease::drift(lease, self.lag.worst().min(lease / 5))
    }

    fn unix_ms(&self, now: Time) -> u64 {
        self.settings.boot_unix_ms.saturating_add(now.as_nanos() / 1_000_000)
    }

    fn start_job(&mut self, job: Job, out: &mut Batch) -> JobId {
        let id = JobId(self.next_job);
        self.next_job += 1;
        out.run.push((id, job));
        id
    }

    /// Proposes `rows` unless a proposal on `key` is still under way. One that is never answered is given up
    /// after two seconds: the rows tell what became of it.
    fn propose(
        &mut self,
        now: Time,
        key: Key,
        basis: Vec<(Key, u64)>,
        rows: Vec<Row>,
        out: &mut Batch,
    ) -> bool {
        self.proposals.retain(|_, (_, since)| now.since(*since) < Duration::from_secs(2));
        if self.proposals.values().any(|(busy, _)| *busy == key) {
            return false;
        }
        let id = ProposalId(self.next_proposal);
        self.next_proposal += 1;
        self.proposals.insert(id, (key, now));
        out.propose.push(Proposal { id, basis, rows });
        true
    }

    fn committed(&mut self, now: Time, revision: u64, change: Change, out: &mut Batch) {
        self.revision = self.revision.max(revision);
        match change {
            Change::Cluster(row) => {
                self.detector.set_lease(row.lease());
                self.cluster = Some(row);
            }
            Change::View(view) => self.install(now, revision, view, out),
            Change::Node(id, Some(row)) => {
                if self.nodes.len() < NODES_MAX || self.nodes.contains_key(&id) {
                    self.nodes.insert(id, row);
                }
            }
            Change::Node(id, None) => {
                self.nodes.remove(&id);
                self.peers.remove(&id);
            }
            Change::Probation(id, row) => self.candidates.changed(now, revision, id, row),
            Change::Drain(id, row) => self.duties.drain_changed(id, row),
            Change::Container(id, row) => self.row_changed(now, revision, id, row, out),
        }
        self.choose_contacts(now);
    }

    fn done(&mut self, now: Time, job: JobId, outcome: Outcome, out: &mut Batch) {
        self.renumbering_done(job, &outcome);
        self.provisioning_done(job);
        self.job_done(now, job, outcome, out);
    }
}

impl Machine for Node {
    type Input = Input;
    type Output = Batch;

    fn step(&mut self, now: Time, input: Input, out: &mut Batch) {
        self.measure_lag(now);
        let is_deadline = matches!(input, Input::Deadline);
        match input {
            Input::Heard { from, incarnation, network, received_at, heartbeat } => {
                self.heard(now, from, incarnation, network, received_at, heartbeat, out);
            }
            Input::Testified { peer, incarnation, evidence, at } => {
                self.testified(now, peer, incarnation, evidence, at, out);
            }
            Input::Interface { network, up } => self.detector.interface(now, network, up),
            Input::Committed { revision, change } => self.committed(now, revision, change, out),
            Input::Devices(seen) => {
                self.devices = seen.into_iter().map(|(node, names)| (node, Arc::new(names))).collect();
            }
            Input::Synced => self.in_step(now),
            Input::Leader(leader) => self.leader = leader,
            Input::Proposed { proposal, accepted: _ } => {
                self.proposals.remove(&proposal);
            }
            Input::Done { job, outcome } => self.done(now, job, outcome, out),
            Input::Adopted { container, epoch, held } => self.adopted(now, container, epoch, held),
            Input::AdoptedAll => self.adopted_all = true,
            Input::Exited { container, epoch, exit } => self.exited(container, epoch, exit),
            Input::Memory { free_bytes, held } => self.memory_changed(now, free_bytes, held),
            Input::Renumbered(incarnation) => self.renumbered(incarnation),
            Input::Request(id, request) => self.requested(id, request, out),
            Input::Deadline => self.woke(now, out),
        }
        self.beat(now, out);
        self.renew(now, out);
        self.tend_membership(now, out);
        self.tend_containers(now, out);
        self.tend_handover(now, out);
        // What is due stays due until the deadline is served, however much arrives before.
        let soon = if is_deadline { now + Duration::from_millis(1) } else { Time::ZERO };
        self.requested_deadline = self.next_deadline(now).map(|due| due.max(soon));
    }

    fn deadline(&self) -> Option<Time> {
        self.requested_deadline
    }
}

impl Node {
    fn next_deadline(&self, now: Time) -> Option<Time> {
        let deadlines = [
            Some(self.detector.due()),
            self.lease.lapses_at(),
            self.next_fence(now),
            self.containers_deadline(now),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// The id of this node.
    pub fn id(&self) -> NodeId {
        self.settings.id
    }

    /// The peers that this node watches, each with the life that was last heard.
    pub fn watched(&self) -> impl Iterator<Item = (NodeId, Incarnation, u64)> {
        self.detector.watched()
    }

    /// The last heartbeats of a node that stops on purpose.
    pub fn goodbye(&mut self, now: Time) -> Vec<(NodeId, NetworkId, Heartbeat)> {
        self.detector.goodbye(now)
    }

    /// The view that this node has installed.
    pub fn installed(&self) -> Option<&View> {
        self.view()
    }

    /// The container rows that this node knows, each with the revision that last changed it.
    pub fn rows(&self) -> impl Iterator<Item = (u64, &ContainerRow)> {
        self.containers.values().map(|(revision, row)| (*revision, row))
    }

    fn member_ids(&self) -> BTreeSet<NodeId> {
        self.view().map(|view| view.members.keys().copied().collect()).unwrap_or_default()
    }

    fn view_id(&self) -> ViewId {
        self.view().map(|view| view.id).unwrap_or_default()
    }
}
