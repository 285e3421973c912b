//! What the agents of one system said, and when: the only source of every figure about detection.
//!
//! A thread per agent reads its lines; a [`Reader`] of the system says what a line means. Times are CLOCK_MONOTONIC,
//! which all processes of a machine share: the agent's own where it prints one, else the line's arrival.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, PipeReader};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Lines kept of each agent for the account of a failure.
const TAIL_MAX: usize = 12;

/// Nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub u64);

impl Instant {
    /// This instant.
    pub fn now() -> Instant {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).expect("the monotonic clock starts at zero");
        Instant(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).expect("nanoseconds are positive"))
    }

    /// Milliseconds from `earlier` to this.
    pub fn ms_since(self, earlier: Instant) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / 1e6
    }

    /// How long ago this was.
    pub fn elapsed(self) -> Duration {
        Duration::from_nanos(Instant::now().0.saturating_sub(self.0))
    }
}

/// What an agent learned or believes. Hosts are numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The agent (re)started and knows nothing.
    Started,
    /// It counts that host among the living members.
    Alive(usize),
    /// It counts that host out: failed, dead, removed.
    Gone(usize),
    /// It suspects that host.
    Suspects(usize),
    /// It suspects that host no longer.
    Clears(usize),
    /// It said of which class a failure is, and whom it concerns.
    Verdict(Class, Vec<usize>),
    /// What it said in a verdict holds no longer.
    Over(Class, Vec<usize>),
    /// A link between these hosts fails; of its own links it names the other end, of a whole network nobody.
    LinkDown(Vec<usize>),
    /// A link between these hosts, or a network, works again.
    LinkUp(Vec<usize>),
}

/// The classes of failures, in the order of DESIGN 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The agent's process ended, its machine lives.
    ProcessCrashed,
    /// The agent's process does not run, its machine lives.
    ProcessStalled,
    /// The machine is gone.
    HostDead,
    /// The machine lost all its networks.
    NodeIsolated,
    /// One machine lost one of its networks.
    NetworkDownAtNode,
    /// A network fails for everybody.
    NetworkDown,
    /// Two machines lost one network between them.
    LinkCut,
    /// A link loses packets or is slow.
    LinkDegraded,
    /// Groups of machines don't hear each other.
    Split,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 9] = [
        Class::ProcessCrashed,
        Class::ProcessStalled,
        Class::HostDead,
        Class::NodeIsolated,
        Class::NetworkDownAtNode,
        Class::NetworkDown,
        Class::LinkCut,
        Class::LinkDegraded,
        Class::Split,
    ];
}

impl What {
    /// Whether it says that `subject` is gone: counted out, or named as what failed.
    pub fn tells_of(&self, subject: usize) -> bool {
        match self {
            What::Gone(host) => *host == subject,
            What::Verdict(Class::ProcessCrashed | Class::HostDead | Class::NodeIsolated, about) => {
                about.as_slice() == [subject]
            }
            What::Verdict(..)
            | What::Over(..)
            | What::Started
            | What::Alive(_)
            | What::Suspects(_)
            | What::Clears(_)
            | What::LinkDown(_)
            | What::LinkUp(_) => false,
        }
    }
}

/// One thing that one agent said.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// When.
    pub at: Instant,
    /// Who said it.
    pub observer: usize,
    /// What it said.
    pub what: What,
}

/// Says what one line of an agent means; with the agent's own time where the line bears one.
pub type Reader = Arc<dyn Fn(&str) -> Vec<(Option<Instant>, What)> + Send + Sync>;

#[derive(Debug, Default)]
struct Inner {
    sightings: Vec<Sighting>,
    members: BTreeMap<usize, BTreeSet<usize>>,
    suspects: BTreeMap<usize, BTreeSet<usize>>,
    tails: BTreeMap<usize, VecDeque<String>>,
}

/// What was said so far.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<Inner>>);

impl Journal {
    /// Reads `pipe`, the output of the agent on host `observer`, until it ends.
    pub fn listen(&self, observer: usize, pipe: PipeReader, reader: Reader) -> JoinHandle<()> {
        let journal = self.clone();
        journal.note(Instant::now(), observer, What::Started);
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let arrival = Instant::now();
                let line = String::from_utf8_lossy(&line).into_owned();
                for (own, what) in reader(&line) {
                    journal.note(own.unwrap_or(arrival), observer, what);
                }
                let mut inner = journal.lock();
                let tail = inner.tails.entry(observer).or_default();
                if tail.len() == TAIL_MAX {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
        })
    }

    fn note(&self, at: Instant, observer: usize, what: What) {
        let mut inner = self.lock();
        let members = inner.members.entry(observer).or_default();
        match &what {
            What::Started => members.clear(),
            What::Alive(host) => drop(members.insert(*host)),
            What::Gone(host) => drop(members.remove(host)),
            What::Suspects(_)
            | What::Clears(_)
            | What::Verdict(..)
            | What::Over(..)
            | What::LinkDown(_)
            | What::LinkUp(_) => {}
        }
        let suspects = inner.suspects.entry(observer).or_default();
        match &what {
            What::Started => suspects.clear(),
            What::Suspects(host) => drop(suspects.insert(*host)),
            What::Clears(host) | What::Alive(host) | What::Gone(host) => drop(suspects.remove(host)),
            What::Verdict(..) | What::Over(..) | What::LinkDown(_) | What::LinkUp(_) => {}
        }
        inner.sightings.push(Sighting { at, observer, what });
    }

    /// The hosts that `observer` counts among the living, itself aside.
    pub fn members(&self, observer: usize) -> BTreeSet<usize> {
        let mut members = self.lock().members.get(&observer).cloned().unwrap_or_default();
        members.remove(&observer);
        members
    }

    /// What was said from `since` on that `wanted` picks, in the order of arrival.
    pub fn since(&self, since: Instant, wanted: impl Fn(&Sighting) -> bool) -> Vec<Sighting> {
        let inner = self.lock();
        inner.sightings.iter().filter(|sighting| sighting.at >= since && wanted(sighting)).cloned().collect()
    }

    /// The hosts that `observer` suspects.
    pub fn suspects(&self, observer: usize) -> BTreeSet<usize> {
        self.lock().suspects.get(&observer).cloned().unwrap_or_default()
    }

    /// When each observer first knew from `since` on that `subject` is gone.
    pub fn known_since(&self, since: Instant, subject: usize) -> BTreeMap<usize, Instant> {
        let mut first = BTreeMap::new();
        for sighting in self.since(since, |sighting| sighting.what.tells_of(subject)) {
            first.entry(sighting.observer).or_insert(sighting.at);
        }
        first
    }

    /// The last lines of an agent, for people.
    pub fn tail(&self, observer: usize) -> String {
        let inner = self.lock();
        inner
            .tails
            .get(&observer)
            .map(|tail| tail.iter().cloned().collect::<Vec<_>>().join("\n"))
            .unwrap_or_default()
    }

    /// Forgets what was said; who counts whom stays.
    pub fn forget(&self) {
        self.lock().sightings.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
