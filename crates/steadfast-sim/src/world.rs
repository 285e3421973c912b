//! The world: one queue of (time, sequence), one random source, and everything that stands in the queue.
//!
//! `World::next` takes the next event and carries it out; what follows from it goes back into the queue. The
//! parts stand in their own files: `agents`, `shims`, `jobs`, `catalog`, `network`, `faults`, `workload`. Must
//! never ask a node to do anything: nodes get inputs, and the world does what their batches say.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use steadfast_proto::ids::{ContainerId, Digest, Epoch, Incarnation, NodeId};
use steadfast_proto::node::{Batch, Input, JobId, Proposal};
use steadfast_proto::time::Time;
use steadfast_proto::wire::Heartbeat;

use crate::catalog::Catalog;
use crate::checkers::{Checkers, Fact, Violation};
use crate::clock::Clock;
use crate::faults::Undo;
use crate::host::Host;
use crate::jobs::Stage;
use crate::network::Networks;
use crate::random::Random;
use crate::scenario::{MS, SECOND, Scenario};
use crate::trace::Trace;

/// Something that will happen.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Datagram {
        to: usize,
        from: usize,
        network: u16,
        incarnation: Incarnation,
        /// The receiver's clock when its kernel had it.
        received_at: Option<Time>,
        heartbeat: Box<Heartbeat>,
    },
    Wake {
        host: usize,
        life: u64,
    },
    /// Something other than a datagram reaches an agent.
    Input {
        host: usize,
        life: u64,
        input: Box<Input>,
    },
    Apply {
        host: usize,
        life: u64,
    },
    Sync {
        host: usize,
        life: u64,
    },
    Propose {
        host: usize,
        life: u64,
        proposal: Box<Proposal>,
        tries: u8,
    },
    Election {
        term: u64,
    },
    /// The world looks after the catalog's leader.
    Tick,
    Renew {
        host: usize,
        boots: u64,
        deadline: Time,
        drift: Duration,
        lag_max: u64,
        containers: Vec<(ContainerId, Epoch)>,
    },
    Shim {
        host: usize,
        boots: u64,
        container: ContainerId,
        epoch: Epoch,
        what: ShimTimer,
    },
    Job {
        host: usize,
        life: u64,
        job: JobId,
        stage: Box<Stage>,
    },
    Fault,
    Undo {
        round: u64,
        undo: Box<Undo>,
    },
    User,
}

/// What a shim waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShimTimer {
    /// It is to begin to freeze unless it was renewed.
    Freeze,
    /// It is frozen, or killed because it could not be.
    Frozen,
    /// The kernel lets its packets through no longer.
    Silence,
}

/// What a sealed manifest holds, known to the world alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    pub(crate) value: u64,
    pub(crate) bytes: u64,
}

/// What a run counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events carried out.
    pub events: u64,
    /// Simulated time, in nanoseconds.
    pub simulated_ns: u64,
    /// Views committed.
    pub views: u64,
    /// Removals of members committed.
    pub removals: u64,
    /// Recoveries committed.
    pub recoveries: u64,
    /// Checkpoints committed.
    pub checkpoints: u64,
    /// Containers lost with the last copy of their checkpoints.
    pub lost: u64,
    /// Containers that no node could start.
    pub failed: u64,
    /// Faults injected.
    pub faults: u64,
    /// Times a container was frozen by its fence.
    pub freezes: u64,
}

impl Counts {
    /// Adds another run's.
    pub fn add(&mut self, other: &Counts) {
        self.events += other.events;
        self.simulated_ns += other.simulated_ns;
        self.views += other.views;
        self.removals += other.removals;
        self.recoveries += other.recoveries;
        self.checkpoints += other.checkpoints;
        self.lost += other.lost;
        self.failed += other.failed;
        self.faults += other.faults;
        self.freezes += other.freezes;
    }
}

/// One seed's world.
#[derive(Debug)]
pub struct World {
    pub(crate) now: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    next_sequence: u64,
    pub(crate) random: Random,
    pub(crate) scenario: Scenario,
    pub(crate) hosts: Vec<Host>,
    pub(crate) networks: Networks,
    pub(crate) catalog: Catalog,
    pub(crate) images: BTreeMap<Digest, Image>,
    pub(crate) checkers: Checkers,
    pub(crate) trace: Trace,
    pub(crate) counts: Counts,
    pub(crate) faults_on: bool,
    /// Counts the phases, so that what an older one was to undo is left alone.
    pub(crate) round: u64,
    pub(crate) next_number: u64,
    pub(crate) spare_batches: Vec<Batch>,
    pub(crate) user_containers: BTreeSet<ContainerId>,
    digest: u64,
}

#[derive(Debug)]
struct Queued {
    at: u64,
    sequence: u64,
    event: Event,
}

impl World {
    /// The world of `seed`, with every host up and the cluster founded.
    pub(crate) fn new(seed: u64, nodes: Option<usize>, trace: Trace) -> World {
        let mut random = Random::new(seed);
        let scenario = Scenario::draw(&mut random, nodes);
        let hosts = (0..scenario.nodes).map(|index| new_host(index, &scenario, &mut random)).collect();
        let mut world = World {
            now: SECOND,
            queue: BinaryHeap::new(),
            next_sequence: 0,
            networks: Networks::new(scenario.nodes, scenario.networks),
            checkers: Checkers::new(&scenario),
            catalog: Catalog::default(),
            random,
            scenario,
            hosts,
            images: BTreeMap::new(),
            trace,
            counts: Counts::default(),
            faults_on: true,
            round: 0,
            next_number: 1,
            spare_batches: Vec::new(),
            user_containers: BTreeSet::new(),
            digest: 0xcbf2_9ce4_8422_2325,
        };
        world.found_cluster();
        for host in 0..world.hosts.len() {
            world.start_agent(host);
        }
        if world.scenario.slow_host {
            let host = world.random.index(world.hosts.len());
            world.slow_down(host);
        }
        world.after(0, Event::Tick);
        world.after(500 * MS, Event::User);
        let first = world.random.below(4 * SECOND);
        world.after(first, Event::Fault);
        world
    }

    /// Carries out the next event, if it comes before `until`.
    pub(crate) fn next(&mut self, until: u64) -> bool {
        if self.queue.peek().is_none_or(|Reverse(queued)| queued.at >= until) {
            self.now = until;
            return false;
        }
        let Some(Reverse(queued)) = self.queue.pop() else { return false };
        self.now = queued.at;
        self.counts.events += 1;
        self.mix(queued.at ^ queued.sequence.rotate_left(32));
        self.handle(queued.event);
        true
    }

    /// What tells this run so far from another.
    pub(crate) fn digest(&self) -> u64 {
        let mut digest = self.digest;
        for host in &self.hosts {
            let agent = host.agent.as_ref().map(|agent| format!("{:?}", agent.node)).unwrap_or_default();
            digest = agent.bytes().fold(digest, |digest, byte| fnv(digest, u64::from(byte)));
        }
        digest
    }

    pub(crate) fn mix(&mut self, value: u64) {
        self.digest = fnv(self.digest, value);
    }

    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.next_sequence += 1;
        self.queue.push(Reverse(Queued { at: at.max(self.now), sequence: self.next_sequence, event }));
    }

    pub(crate) fn handle(&mut self, event: Event) {
        match event {
            Event::Datagram { .. } => self.datagram(event),
            Event::Wake { host, life } => self.wake(host, life),
            Event::Input { host, life, .. } if self.is_paused(host, life) => self.defer(host, event),
            Event::Input { host, life, input } => self.deliver(host, life, *input),
            Event::Apply { host, life } => self.apply(host, life),
            Event::Sync { host, life } => self.sync(host, life),
            Event::Propose { host, life, proposal, tries } => self.proposed(host, life, proposal, tries),
            Event::Election { term } => self.elect(term),
            Event::Tick => self.tick(),
            Event::Renew { .. } => self.renew(event),
            Event::Shim { host, boots, container, epoch, what } => {
                self.shim_timer(host, boots, container, epoch, what)
            }
            Event::Job { host, life, job, stage } => self.job_stage(host, life, job, stage),
            Event::Fault => self.fault(),
            Event::Undo { round, undo } => {
                if round == self.round {
                    self.undo(*undo);
                }
            }
            Event::User => self.user(),
        }
    }

    /// Shows every checker a fact.
    pub(crate) fn fact(&mut self, fact: &Fact<'_>) {
        self.checkers.observe(self.now, fact);
    }

    /// The first invariant that did not hold, if any.
    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.checkers.violation()
    }

    pub(crate) fn index_of(&self, node: NodeId) -> Option<usize> {
        let index = usize::try_from((node.0 >> 96).checked_sub(1)?).ok()?;
        (index < self.hosts.len()).then_some(index)
    }

    /// A number that no other thing in this world has.
    pub(crate) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

impl PartialEq for Queued {
    fn eq(&self, other: &Queued) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Queued) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Queued) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// A clock that booted at world time `now`.
pub(crate) fn new_clock(now: u64, scenario: &Scenario, random: &mut Random) -> Clock {
    let skew = i64::try_from(random.between(0, 2 * scenario.skew_ppm)).unwrap_or(0);
    let skew = skew - i64::try_from(scenario.skew_ppm).unwrap_or(0);
    Clock::new(now, SECOND + random.below(1_000 * SECOND), skew)
}

fn new_host(index: usize, scenario: &Scenario, random: &mut Random) -> Host {
    Host {
        node: NodeId((index as u128 + 1) << 96),
        clock: new_clock(0, scenario, random),
        powered: true,
        boots: 1,
        incarnation: Incarnation(0),
        durable: 0,
        agent: None,
        shims: BTreeMap::new(),
        shims_paused: false,
        epochs: BTreeMap::new(),
        memory: BTreeMap::new(),
        slow: 0,
        measured: (0, 0),
    }
}

fn fnv(digest: u64, value: u64) -> u64 {
    (digest ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17)
}
