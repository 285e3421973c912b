//! The local producers: what watches the operating system while somebody wants to know, and only then.
//!
//! [`Producers`] starts one task per active topic and ends it again; while no topic is active no task runs and no descriptor
//! is open. What the tasks see goes into one bounded queue ([`Reports`]), which never makes them wait: what finds no room is
//! counted and told as [`Report::Lost`]. It decides nothing about who hears of it. A topic that can't be watched is refused at
//! once ([`ActivateError`]). Each producer has a file; read `post` next for what they share, then `clock`, the shortest.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use steadfast_proto::events::{EventType, Topic};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

mod refusal;
mod queue;
mod post;
mod mounts;
mod cgroup;
mod clock;
mod disk;
mod pressure;
mod process;
mod file;
mod interface;
mod oom;
mod bus;
mod unit;

pub use queue::{Report, Reports};
pub use refusal::ActivateError;

use post::Post;
use queue::Queue;

/// Topics that are active at most on one node.
pub const TOPICS_MAX: usize = 1_024;
/// Reports that may wait until somebody takes them; more are counted as lost.
pub const REPORTS_MAX: usize = 8_192;

/// What the kernel or systemd tells: every type that a node produces by itself, and what a topic of it may fix.
const KINDS: [Kind; 10] = [
    Kind { name: "clock.step", about: &[], is_level: false, open: clock::open },
    Kind { name: "disk.usage", about: &["path"], is_level: true, open: disk::open },
    Kind { name: "file.change", about: &["path"], is_level: false, open: file::open },
    Kind { name: "memory.oom_kill", about: &["cgroup", "container"], is_level: false, open: oom::open },
    Kind { name: "network.interface", about: &["interface"], is_level: false, open: interface::open },
    Kind { name: "pressure.cpu", about: &["cgroup"], is_level: true, open: pressure::open },
    Kind { name: "pressure.io", about: &["cgroup"], is_level: true, open: pressure::open },
    Kind { name: "pressure.memory", about: &["cgroup"], is_level: true, open: pressure::open },
    Kind {
        name: "process.exit",
        about: &["pid", "command", "container"],
        is_level: false,
        open: process::open,
    },
    Kind { name: "unit.state", about: &["unit"], is_level: false, open: unit::open },
];

struct Kind {
    name: &'static str,
    about: &'static [&'static str],
    /// Whether there is always a present level to tell.
    is_level: bool,
    open: fn(Post) -> Result<Work, ActivateError>,
}

/// A producer at work; it gives why it can't go on.
type Work = Pin<Box<dyn Future<Output = String> + Send>>;

/// Gives the cgroup of a container by its name, as a path below the top of each tree such as `/steadfast/web`.
pub type CgroupOf = dyn Fn(&str) -> Option<PathBuf> + Send + Sync;

/// Whether the operating system of a node can be watched for events of this type. User-defined types it never knows.
pub fn is_local(kind: &EventType) -> bool {
    kind_of(kind).is_some()
}

/// Whether events of this type tell a level that always is something, so that a late consumer is told the present one.
pub fn is_level(kind: &EventType) -> bool {
    kind_of(kind).is_some_and(|kind| kind.is_level)
}

fn kind_of(kind: &EventType) -> Option<&'static Kind> {
    KINDS.iter().find(|one| one.name == kind.as_str())
}

/// How much of the machine is being used for watching, for tests and for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Tasks that run or are about to end.
    pub tasks: usize,
    /// Descriptors that are open for longer than one call.
    pub descriptors: usize,
}

/// Starts and ends what watches the operating system. Dropping it ends all.
///
/// ```no_run
/// # use steadfast::events::producers::{Producers, Report};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let (producers, mut reports) = Producers::new(|_container| None);
/// let topic = "clock.step".parse::<steadfast_proto::events::EventType>()?.into();
/// producers.activate(&topic)?;
/// while let Some(report) = reports.next().await {
///     println!("{report:?}");
/// }
/// # Ok(())
/// # }
/// ```
pub struct Producers {
    runtime: Handle,
    queue: Arc<Queue>,
    tally: Arc<Tally>,
    cgroup_of: Arc<CgroupOf>,
    active: Mutex<BTreeMap<Topic, Active>>,
}

struct Active {
    task: JoinHandle<()>,
    asked: Arc<Notify>,
    /// The producer can't go on; set before that is reported, so that whoever hears of it can activate anew.
    is_over: Arc<AtomicBool>,
}

impl Active {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire) || self.task.is_finished()
    }
}

#[derive(Debug, Default)]
struct Tally {
    tasks: AtomicUsize,
    descriptors: AtomicUsize,
}

impl Producers {
    /// Nothing is active yet. `cgroup_of` says where a container's programs are. Must be called within a tokio runtime with
    /// time and I/O, on which all producers will run.
    pub fn new(cgroup_of: impl Fn(&str) -> Option<PathBuf> + Send + Sync + 'static) -> (Producers, Reports) {
        Producers::with_room(REPORTS_MAX, cgroup_of)
    }

    /// As [`Producers::new`], with room for so many reports.
    pub fn with_room(
        reports_max: usize,
        cgroup_of: impl Fn(&str) -> Option<PathBuf> + Send + Sync + 'static,
    ) -> (Producers, Reports) {
        let queue = Arc::new(Queue::new(reports_max));
        let producers = Producers {
            runtime: Handle::current(),
            queue: Arc::clone(&queue),
            tally: Arc::default(),
            cgroup_of: Arc::new(cgroup_of),
            active: Mutex::default(),
        };
        (producers, Reports(queue))
    }

    /// Watches from now on: what happens after the return is reported. A topic that is active already stays so. Asks the
    /// operating system, so that a path on a file system that hangs makes it wait.
    ///
    /// # Errors
    /// The topic can't be watched on this node; the error says why, and what would be right. Nothing was changed.
    pub fn activate(&self, topic: &Topic) -> Result<(), ActivateError> {
        let mut active = self.lock();
        active.retain(|_, one| !one.is_over());
        if active.contains_key(topic) {
            return Ok(());
        }
        if active.len() >= TOPICS_MAX {
            return Err(ActivateError::TooMany);
        }
        let kind = kind_of(&topic.kind).ok_or_else(|| ActivateError::unknown_type(&topic.kind))?;
        if let Some(field) = topic.about.keys().find(|field| !kind.about.contains(&field.as_str())) {
            return Err(ActivateError::unknown_field(&topic.kind, field, kind.about));
        }
        let asked = Arc::new(Notify::new());
        let post = Post::new(
            topic.clone(),
            Arc::clone(&self.queue),
            Arc::clone(&asked),
            Arc::clone(&self.tally),
            Arc::clone(&self.cgroup_of),
        );
        let shared = post.topic();
        let queue = Arc::clone(&self.queue);
        let held = Held::task(&self.tally);
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let entered = self.runtime.enter();
        let work = (kind.open)(post)?;
        drop(entered);
        let task = self.runtime.spawn(async move {
            let _held = held;
            let why = work.await;
            tracing::debug!(topic = %shared, why, "a producer can't go on");
            over.store(true, Ordering::Release);
            queue.push(Report::Ended { topic: shared, why });
        });
        active.insert(topic.clone(), Active { task, asked, is_over });
        Ok(())
    }

    /// Ends the watching of a topic. A report that was made before may still be in the queue.
    pub fn deactivate(&self, topic: &Topic) {
        if let Some(active) = self.lock().remove(topic) {
            active.task.abort();
        }
    }

    /// Has the present level of a topic told again, if it is one that has a level.
    pub fn reannounce(&self, topic: &Topic) {
        if let Some(active) = self.lock().get(topic) {
            active.asked.notify_one();
        }
    }

    /// The topics that are being watched.
    pub fn active(&self) -> Vec<Topic> {
        let active = self.lock();
        active.iter().filter(|(_, one)| !one.is_over()).map(|(topic, _)| topic.clone()).collect()
    }

    /// What is in use. All zeroes soon after nothing is active any more.
    pub fn activity(&self) -> Activity {
        Activity {
            tasks: self.tally.tasks.load(Ordering::Relaxed),
            descriptors: self.tally.descriptors.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Topic, Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Producers {
    fn drop(&mut self) {
        self.lock().values().for_each(|active| active.task.abort());
        self.queue.close();
    }
}

impl fmt::Debug for Producers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producers").field("active", &self.active()).finish_non_exhaustive()
    }
}

/// Counts a task or a descriptor for as long as it lives.
#[derive(Debug)]
struct Held {
    tally: Arc<Tally>,
    of: fn(&Tally) -> &AtomicUsize,
}

impl Held {
    fn task(tally: &Arc<Tally>) -> Held {
        Held::new(tally, |tally| &tally.tasks)
    }

    fn descriptor(tally: &Arc<Tally>) -> Held {
        Held::new(tally, |tally| &tally.descriptors)
    }

    fn new(tally: &Arc<Tally>, of: fn(&Tally) -> &AtomicUsize) -> Held {
        of(tally).fetch_add(1, Ordering::Relaxed);
        Held { tally: Arc::clone(tally), of }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.of)(&self.tally).fetch_sub(1, Ordering::Relaxed);
    }
}
