//! The loop around the core: it feeds [`steadfast_proto::node::Node`] with what happens and carries out what it
//! decides.
//!
//! It runs on a thread of its own with the heartbeat sockets, and never waits for a disk, a lock or bulk traffic:
//! proposals and jobs go to the runtime that its caller names, and their outcomes come back as inputs. It decides
//! nothing itself. Read next: `driver` (the loop), `rows` (how committed rows reach the core),
//! `witness` (what the kernel testifies), `log`.

mod driver;
mod log;
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
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub use witness::WatchParts;

use crate::catalog::Catalog;
use crate::identity::ClusterKey;
use crate::net::datagram::BindError;

/// How many past events a node remembers for those who come later.
pub const TIMELINE_MAX: usize = 4096;

/// How many questions may wait for the node's thread; one more is refused with [`Unanswered::Busy`].
pub const QUESTIONS_MAX: usize = 1024;

/// What a node needs to run.
pub struct Parts {
    /// The core's settings; `networks` is taken from `addresses`.
    pub settings: Settings,
    /// This node's address on each network, by the network's name.
    pub addresses: Vec<(String, SocketAddr)>,
    /// The cluster.
    pub cluster: ClusterId,
    /// Keys for datagrams: the newest seals, all open. [`NodeHandle::set_keys`] changes them.
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
    notices: mpsc::UnboundedSender<Notice>,
}

impl Report {
    /// The job has ended.
    pub fn done(self, outcome: Outcome) {
        let input = Input::Done { job: self.id, outcome };
        // A node that has stopped needs no outcome.
        let _ = self.notices.send(Notice::Input(Box::new(input)));
    }

    /// The answer to `Job::Renumber`: `incarnation` is durable.
    pub fn renumbered(self, incarnation: Incarnation) {
        let _ = self.notices.send(Notice::Input(Box::new(Input::Renumbered(incarnation))));
    }
}

/// What the node must be told. Each has one cause on this node, a job, a proposal, a probe, a container, and each cause
/// ends with it: so they are as few as their causes, and none may be refused.
#[derive(Debug)]
enum Notice {
    Input(Box<Input>),
    Keys(Keys),
    Stop(oneshot::Sender<()>),
}

/// Which keys datagrams are sealed and opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Those that open, in any order; an epoch below `accepted_min` is dropped.
    pub accepted: Vec<ClusterKey>,
    /// The epoch that seals; one that is not among `accepted` changes nothing.
    pub sealing: u32,
    /// The oldest epoch that opens.
    pub accepted_min: u32,
}

/// What somebody wants to know or to have done: outsiders may ask without end, so only [`QUESTIONS_MAX`] wait.
#[derive(Debug)]
enum Question {
    Status(oneshot::Sender<Status>),
    Datagrams(oneshot::Sender<DatagramCounts>),
    Keeps(Vec<(ContainerId, Epoch, u64, Digest)>, oneshot::Sender<Vec<bool>>),
    Request(Request, oneshot::Sender<Result<CheckpointRef, String>>),
}

/// What checkpoint memory has. Other nodes' seals change it, so only the newest report waits.
#[derive(Clone, Debug, Default)]
struct MemoryReport {
    free_bytes: u64,
    held: BTreeSet<Digest>,
}

/// The node's ends of what its handles speak into.
struct Inbox {
    notices: mpsc::UnboundedReceiver<Notice>,
    questions: mpsc::Receiver<Question>,
    memory: watch::Receiver<MemoryReport>,
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

/// Why a question has no answer. Nothing was changed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The node has stopped and answers no more.
    #[error("this node has stopped; start its agent again")]
    Stopped,
    /// As many questions as it keeps wait already; ask again.
    #[error("this node has {QUESTIONS_MAX} questions to answer already; ask again in a moment")]
    Busy,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The node did not take it.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    /// It was refused or failed; why. Nothing was committed.
    #[error("{0}")]
    Refused(String),
}

/// A running node; clones speak to the same one.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    notices: mpsc::UnboundedSender<Notice>,
    questions: mpsc::Sender<Question>,
    memory: watch::Sender<MemoryReport>,
    events: broadcast::Sender<Noticed>,
    timeline: Arc<Mutex<VecDeque<Noticed>>>,
}

/// Starts a node on a thread of its own.
///
/// # Errors
/// An address that can't be bound, or no thread.
pub fn spawn(parts: Parts) -> Result<NodeHandle, SpawnError> {
    let timeline = Arc::new(Mutex::new(VecDeque::new()));
    let (handle, inbox) = connect(Arc::clone(&timeline));
    let publisher = driver::Publisher::new(handle.events.clone(), timeline, parts.settings.boot_unix_ms);
    driver::start(parts, handle.notices.clone(), inbox, publisher)?;
    Ok(handle)
}

/// A handle and the inbox that it speaks into.
fn connect(timeline: Arc<Mutex<VecDeque<Noticed>>>) -> (NodeHandle, Inbox) {
    let (notices, noticed) = mpsc::unbounded_channel();
    let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
    let (memory, reported) = watch::channel(MemoryReport::default());
    let (events, _) = broadcast::channel(TIMELINE_MAX);
    let inbox = Inbox { notices: noticed, questions: asked, memory: reported };
    (NodeHandle { notices, questions, memory, events, timeline }, inbox)
}

impl NodeHandle {
    /// What the node knows now.
    ///
    /// # Errors
    /// The node has stopped, or has too much to answer.
    pub async fn status(&self) -> Result<Status, Unanswered> {
        self.ask(Question::Status).await
    }

    /// How many datagrams were opened and rejected since the start.
    ///
    /// # Errors
    /// The node has stopped, or has too much to answer.
    pub async fn datagrams(&self) -> Result<DatagramCounts, Unanswered> {
        self.ask(Question::Datagrams).await
    }

    /// Takes a checkpoint of a container that this node runs, and returns once it is committed.
    ///
    /// # Errors
    /// The node has stopped or has too much to answer, or why there is no checkpoint; the program runs on.
    pub async fn checkpoint(&self, container: ContainerId) -> Result<CheckpointRef, RequestError> {
        let request = Request::Checkpoint(container);
        self.ask(|reply| Question::Request(request, reply)).await?.map_err(RequestError::Refused)
    }

    /// Which of these sealed manifests must be kept, by the committed rows.
    ///
    /// # Errors
    /// The node has stopped, or has too much to answer.
    pub async fn keeps(
        &self,
        sealed: Vec<(ContainerId, Epoch, u64, Digest)>,
    ) -> Result<Vec<bool>, Unanswered> {
        self.ask(|reply| Question::Keeps(sealed, reply)).await
    }

    /// Tells the node what its checkpoint memory has. Must be called after every seal before the seal is
    /// acknowledged, or the node disowns what it holds.
    pub fn memory(&self, free_bytes: u64, held: BTreeSet<Digest>) {
        self.memory.send_replace(MemoryReport { free_bytes, held });
    }

    /// Tells the node of a container that an earlier agent started, and whether a checkpoint holds it still.
    pub fn adopted(&self, container: ContainerId, epoch: Epoch, held: bool) {
        self.input(Input::Adopted { container, epoch, held });
    }

    /// Tells the node that all such containers have been told of.
    pub fn adopted_all(&self) {
        self.input(Input::AdoptedAll);
    }

    /// Tells the node that a container's first process ended.
    pub fn exited(&self, container: ContainerId, epoch: Epoch, exit: Exit) {
        self.input(Input::Exited { container, epoch, exit });
    }

    /// Seals and opens datagrams with these keys from now on.
    pub fn set_keys(&self, keys: Keys) {
        // A node that has stopped needs no keys.
        let _ = self.notices.send(Notice::Keys(keys));
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
        if self.notices.send(Notice::Stop(stopped)).is_ok() {
            // A node that has stopped already does not answer.
            let _ = wait.await;
        }
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Unanswered> {
        let (reply, answer) = oneshot::channel();
        self.questions.try_send(question(reply)).map_err(|error| match error {
            TrySendError::Full(_) => Unanswered::Busy,
            TrySendError::Closed(_) => Unanswered::Stopped,
        })?;
        answer.await.map_err(|_| Unanswered::Stopped)
    }

    fn input(&self, input: Input) {
        // A node that has stopped needs no input.
        let _ = self.notices.send(Notice::Input(Box::new(input)));
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn one_question_too_many_is_refused_and_a_notice_never_is() {
        let (handle, mut inbox) = connect(Arc::default());
        let mut waiting: Vec<_> = (0..QUESTIONS_MAX).map(|_| Box::pin(handle.datagrams())).collect();
        poll_fn(|ctx| {
            assert!(waiting.iter_mut().all(|question| question.as_mut().poll(ctx).is_pending()));
            Poll::Ready(())
        })
        .await;
        assert_eq!(handle.status().await.unwrap_err(), Unanswered::Busy);
        let refused = handle.checkpoint(ContainerId(1)).await.unwrap_err();
        assert_eq!(refused, RequestError::Unanswered(Unanswered::Busy));
        handle.adopted_all();
        assert!(matches!(inbox.notices.recv().await, Some(Notice::Input(_))));

        let Some(Question::Datagrams(reply)) = inbox.questions.recv().await else { panic!("the first one") };
        reply.send(DatagramCounts::default()).unwrap();
        assert_eq!(waiting.remove(0).await, Ok(DatagramCounts::default()));
        drop(inbox);
        assert_eq!(handle.datagrams().await, Err(Unanswered::Stopped));
    }

    #[tokio::test]
    async fn of_reports_of_memory_only_the_newest_waits() {
        let (handle, mut inbox) = connect(Arc::default());
        for free_bytes in 0..10_000 {
            handle.memory(free_bytes, BTreeSet::new());
        }
        inbox.memory.changed().await.unwrap();
        assert_eq!(inbox.memory.borrow_and_update().free_bytes, 9_999);
        assert!(!inbox.memory.has_changed().unwrap());
    }
}
