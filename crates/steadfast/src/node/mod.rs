//! The loop around the core: it feeds [`steadfast_proto::node::Node`] with what happens and carries out what it
//! decides.
//!
//! It runs on a thread of its own with the heartbeat sockets, and never waits for a disk, a lock or bulk traffic:
//! proposals and jobs go to the runtime that its caller names, and their outcomes come back as inputs. It decides
//! nothing itself. Read next: `driver` (the loop), `rows` (how committed rows reach the core),
//! `witness` (what the kernel testifies).

mod driver;
mod rows;
mod witness;

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use steadfast_proto::catalog::{CheckpointRef, Exit};
use steadfast_proto::ids::{ClusterId, ContainerId, Digest, Epoch, Incarnation, NetworkId, NodeId};
use steadfast_proto::node::{Event, Input, Job, Outcome, Request, RequestId, Settings, Status};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc, oneshot};

pub use witness::WatchParts;

use crate::catalog::Catalog;
use crate::identity::ClusterKey;
use crate::net::datagram::BindError;

/// How many past events a node remembers for those who come later.
pub const TIMELINE_MAX: usize = 4096;

/// What a node needs to run.
pub struct Parts {
    /// The core's settings; `networks` is taken from `addresses`.
    pub settings: Settings,
    /// This node's address on each network, by the network's name.
    pub addresses: Vec<(String, SocketAddr)>,
    /// The cluster.
    pub cluster: ClusterId,
    /// Keys for datagrams: the newest seals, all open.
    pub keys: Vec<ClusterKey>,
    /// Random, and new at each start.
    pub boot_salt: [u8; 16],
    /// The catalog.
    pub catalog: Arc<dyn Catalog>,
    /// Carries out the jobs.
    pub worker: Arc<dyn Worker>,
    /// Where proposals wait for the catalog, and watch connections live.
    pub runtime: Handle,
    /// With what watch connections are made and taken; without, the kernel testifies by refusals alone.
    pub watch: Option<WatchParts>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Parts").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Carries out jobs. What it does is the caller's: a node without containers refuses them.
pub trait Worker: Send + Sync + 'static {
    /// Begins `job` and returns at once; `report` is used when it has ended. A job without an outcome
    /// (`Renew`, `Collect`, `Campaign`) may drop it.
    fn run(&self, job: Job, report: Report);
}

/// Where a job's outcome goes.
#[derive(Debug)]
pub struct Report {
    id: steadfast_proto::node::JobId,
    inputs: mpsc::UnboundedSender<Command>,
}

impl Report {
    /// The job has ended.
    pub fn done(self, outcome: Outcome) {
        let input = Input::Done { job: self.id, outcome };
        // A node that has stopped needs no outcome.
        let _ = self.inputs.send(Command::Input(Box::new(input)));
    }

    /// The answer to `Job::Renumber`: `incarnation` is durable.
    pub fn renumbered(self, incarnation: Incarnation) {
        let _ = self.inputs.send(Command::Input(Box::new(Input::Renumbered(incarnation))));
    }
}

#[derive(Debug)]
enum Command {
    Input(Box<Input>),
    Status(oneshot::Sender<Status>),
    Datagrams(oneshot::Sender<DatagramCounts>),
    Keeps(Vec<(ContainerId, Epoch, u64, Digest)>, oneshot::Sender<Vec<bool>>),
    Request(Request, oneshot::Sender<Result<CheckpointRef, String>>),
    Stop(oneshot::Sender<()>),
}

/// An event and when it was noticed.
#[derive(Clone, Debug)]
pub struct Noticed {
    /// Milliseconds since 1970 by this node's clock; for people only.
    pub unix_ms: u64,
    /// Counts this node's events since its start, from 1.
    pub sequence: u64,
    /// What happened.
    pub event: Event,
}

/// What became of the datagrams that reached a node's heartbeat sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatagramCounts {
    /// Those that were authentic and heartbeats.
    pub opened: u64,
    /// Those that were authentic and no heartbeats.
    pub malformed: u64,
    /// Those that were rejected before anything behind their seal was read, by reason.
    pub rejected: std::collections::BTreeMap<&'static str, u64>,
}

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// An address can't be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The operating system gave no thread or runtime.
    #[error("the node's own thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// The node has stopped and answers no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node has stopped; start its agent again")]
pub struct Stopped;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The node has stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// It was refused or failed; why. Nothing was committed.
    #[error("{0}")]
    Refused(String),
}

/// A running node; clones speak to the same one.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    inputs: mpsc::UnboundedSender<Command>,
    events: broadcast::Sender<Noticed>,
    timeline: Arc<Mutex<VecDeque<Noticed>>>,
}

/// Starts a node on a thread of its own.
///
/// # Errors
/// An address that can't be bound, or no thread.
pub fn spawn(parts: Parts) -> Result<NodeHandle, SpawnError> {
    let (inputs, commands) = mpsc::unbounded_channel();
    let (events, _) = broadcast::channel(TIMELINE_MAX);
    let timeline = Arc::new(Mutex::new(VecDeque::new()));
    let handle =
        NodeHandle { inputs: inputs.clone(), events: events.clone(), timeline: Arc::clone(&timeline) };
    let publisher = driver::Publisher::new(events, timeline, parts.settings.boot_unix_ms);
    driver::start(parts, inputs, commands, publisher)?;
    Ok(handle)
}

impl NodeHandle {
    /// What the node knows now.
    ///
    /// # Errors
    /// The node has stopped.
    pub async fn status(&self) -> Result<Status, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Command::Status(reply)).map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// How many datagrams were opened and rejected since the start.
    ///
    /// # Errors
    /// The node has stopped.
    pub async fn datagrams(&self) -> Result<DatagramCounts, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Command::Datagrams(reply)).map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Takes a checkpoint of a container that this node runs, and returns once it is committed.
    ///
    /// # Errors
    /// The node has stopped, or why there is no checkpoint; the program runs on.
    pub async fn checkpoint(&self, container: ContainerId) -> Result<CheckpointRef, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Command::Request(Request::Checkpoint(container), reply)).map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)?.map_err(RequestError::Refused)
    }

    /// Which of these sealed manifests must be kept, by the committed rows.
    ///
    /// # Errors
    /// The node has stopped.
    pub async fn keeps(&self, sealed: Vec<(ContainerId, Epoch, u64, Digest)>) -> Result<Vec<bool>, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Command::Keeps(sealed, reply)).map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Tells the node what its checkpoint memory has. Must be called after every seal before the seal is
    /// acknowledged, or the node disowns what it holds.
    pub fn memory(&self, free_bytes: u64, held: BTreeSet<Digest>) {
        self.input(Input::Memory { free_bytes, held });
    }

    /// Tells the node of a container that an earlier agent started.
    pub fn adopted(&self, container: ContainerId, epoch: Epoch) {
        self.input(Input::Adopted { container, epoch });
    }

    /// Tells the node that all such containers have been told of.
    pub fn adopted_all(&self) {
        self.input(Input::AdoptedAll);
    }

    /// Tells the node that a container's first process ended.
    pub fn exited(&self, container: ContainerId, epoch: Epoch, exit: Exit) {
        self.input(Input::Exited { container, epoch, exit });
    }

    /// Every event from now on. A reader that falls behind by [`TIMELINE_MAX`] is told how many it missed.
    pub fn events(&self) -> broadcast::Receiver<Noticed> {
        self.events.subscribe()
    }

    /// The last [`TIMELINE_MAX`] events, oldest first.
    pub fn timeline(&self) -> Vec<Noticed> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Stops the node, which says goodbye to its peers; its containers freeze when their lease ends.
    pub async fn stop(&self) {
        let (stopped, wait) = oneshot::channel();
        if self.inputs.send(Command::Stop(stopped)).is_ok() {
            // A node that has stopped already does not answer.
            let _ = wait.await;
        }
    }

    fn input(&self, input: Input) {
        // A node that has stopped needs no input.
        let _ = self.inputs.send(Command::Input(Box::new(input)));
    }
}

/// Numbers the networks of this node in the order of its configuration.
fn network_ids(count: usize) -> Vec<NetworkId> {
    (0..count).filter_map(|index| u16::try_from(index).ok()).map(NetworkId).collect()
}

/// How often the engine's leader is looked at.
const LEADER_POLL: Duration = Duration::from_millis(100);

/// Waiting requests, by their number.
type Waiting = std::collections::BTreeMap<RequestId, oneshot::Sender<Result<CheckpointRef, String>>>;

/// Peers' addresses by node, one per network of ours that they are on.
type Addresses = std::collections::BTreeMap<NodeId, Vec<Option<SocketAddr>>>;
