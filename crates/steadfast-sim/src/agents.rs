//! Agents: starting, killing, stopping and stepping them, and carrying out what a step wants done.
//!
//! An agent is its core and what the runtime around it knows. While it is stopped by SIGSTOP, datagrams wait in the
//! kernel with their true receive times, and everything else waits too. What a step wants is carried out in the
//! batch's own order.

use std::collections::BTreeMap;

use steadfast_proto::catalog::{Exit, Intent};
use steadfast_proto::detect::{self, Evidence};
use steadfast_proto::ids::{Incarnation, NetworkId, NodeId};
use steadfast_proto::machine::Machine;
use steadfast_proto::node::{Batch, Event as Published, Input, Job, Node, Settings};
use steadfast_proto::time::Time;
use steadfast_proto::wire::Heartbeat;

use crate::checkers::Fact;
use crate::host::Agent;
use crate::scenario::MS;
use crate::shims::State;
use crate::world::{Event, World};

/// How many datagrams a kernel keeps for an agent that does not read.
const KERNEL_QUEUE_MAX: usize = 2_000;

/// How long a measured lateness is taken to widen the drift: a little less than the core's own memory of it.
const MEASURED_FOR: u64 = 9_000 * MS;
/// The time of day at which worlds begin, in milliseconds since 1970: every host's clock shows it, whenever it was booted.
const UNIX_MS: u64 = 1_800_000_000_000;

impl World {
    /// Starts an agent on a host that has none.
    pub(crate) fn start_agent(&mut self, host: usize) {
        if !self.hosts[host].powered || self.hosts[host].agent.is_some() {
            return;
        }
        let life = self.number();
        let boot = self.random.below(u64::MAX - 1) + 1;
        let networks = self.networks.all().map(NetworkId).collect();
        let here = &mut self.hosts[host];
        here.incarnation = here.incarnation.next();
        let booted_ms = here.clock.read(self.now).as_nanos() / MS;
        let settings = Settings {
            id: here.node,
            incarnation: here.incarnation,
            boot,
            networks,
            detect: detect::Settings::default(),
            probation: self.scenario.probation.clone(),
            intent: Intent::Join,
            version: "0.1.0".to_owned(),
            boot_unix_ms: UNIX_MS.saturating_add(self.now / MS).saturating_sub(booted_ms),
        };
        here.agent = Some(Agent {
            life,
            node: Node::new(settings, here.clock.read(self.now)),
            incarnation: here.incarnation,
            applied: 0,
            apply_scheduled: false,
            sync_at: None,
            wake_at: None,
            paused: false,
            pending: Vec::new(),
            withheld: Vec::new(),
            leader: None,
            bringing: BTreeMap::new(),
        });
        let incarnation = here.incarnation;
        self.trace.line(self.now, Some(host), "agent", || format!("starts as incarnation {incarnation}"));
        self.tell_memory(host);
        if self.random.chance(0.5) {
            self.adopt(host);
            self.replay_rows(host);
        } else {
            self.replay_rows(host);
            self.adopt(host);
        }
        self.step(host, Input::Deadline);
        self.after(MS, Event::Sync { host, life });
    }

    fn adopt(&mut self, host: usize) {
        let shims: Vec<_> = (self.hosts[host].shims.iter())
            .map(|(container, shim)| (*container, shim.epoch, shim.state, shim.held))
            .collect();
        for (container, epoch, state, held) in shims {
            self.step(host, Input::Adopted { container, epoch, held });
            if let State::Exited(exit) = state {
                self.step(host, Input::Exited { container, epoch, exit });
            }
        }
        self.step(host, Input::AdoptedAll);
    }

    /// Kills an agent. Its shims go on; what it was starting may be there half-done, and then waits frozen.
    pub(crate) fn kill_agent(&mut self, host: usize) {
        let Some(agent) = self.hosts[host].agent.take() else { return };
        self.trace.line(self.now, Some(host), "agent", || "is killed".to_owned());
        self.hosts[host].durable = agent.applied;
        if self.hosts[host].powered {
            self.testify_end(host);
        }
        for row in agent.bringing.into_values() {
            if self.hosts[host].powered && self.random.chance(0.5) {
                let _ = self.bring_up(host, &row);
            }
        }
    }

    /// Stops an agent by SIGSTOP.
    pub(crate) fn pause_agent(&mut self, host: usize) {
        if !self.hosts[host].answers() {
            return;
        }
        self.trace.line(self.now, Some(host), "agent", || "is stopped".to_owned());
        // A pause may fall between a step and what it wants done.
        if self.random.chance(0.3) {
            let batch = self.step_core(host, Input::Deadline);
            let Some(agent) = &mut self.hosts[host].agent else { return };
            agent.withheld.extend(batch);
        }
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.paused = true;
        }
    }

    /// Lets a stopped agent go on: first what it had begun, then all that waits, and only then its deadline.
    pub(crate) fn resume_agent(&mut self, host: usize) {
        let Some(agent) = &mut self.hosts[host].agent else { return };
        if !agent.paused {
            return;
        }
        agent.paused = false;
        let life = agent.life;
        let withheld = std::mem::take(&mut agent.withheld);
        let mut pending = std::mem::take(&mut agent.pending);
        self.trace.line(self.now, Some(host), "agent", || format!("goes on; {} events wait", pending.len()));
        withheld.into_iter().for_each(|batch| self.carry_out(host, batch));
        if self.random.chance(0.5) {
            pending.sort_by_key(|event| matches!(event, Event::Datagram { .. }));
        }
        for event in pending {
            if self.hosts[host].is_life(life) {
                self.handle(event);
            }
        }
        self.after(0, Event::Wake { host, life });
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.wake_at = Some(self.now);
        }
    }

    pub(crate) fn is_paused(&self, host: usize, life: u64) -> bool {
        self.hosts[host].agent.as_ref().is_some_and(|agent| agent.life == life && agent.paused)
    }

    /// Keeps an event for an agent that is stopped.
    pub(crate) fn defer(&mut self, host: usize, event: Event) {
        let Some(agent) = &mut self.hosts[host].agent else { return };
        let is_datagram = matches!(event, Event::Datagram { .. });
        if !is_datagram || agent.pending.len() < KERNEL_QUEUE_MAX {
            agent.pending.push(event);
        }
    }

    pub(crate) fn datagram(&mut self, event: Event) {
        let Event::Datagram { to, from, network, incarnation, received_at, heartbeat } = event else {
            return;
        };
        let here = &self.hosts[to];
        let Some(agent) = &here.agent else { return };
        let received_at = received_at.unwrap_or(here.clock.read(self.now));
        if agent.paused {
            let received_at = Some(received_at);
            self.defer(to, Event::Datagram { to, from, network, incarnation, received_at, heartbeat });
            return;
        }
        let (from, network) = (self.hosts[from].node, NetworkId(network));
        self.step(to, Input::Heard { from, incarnation, network, received_at, heartbeat: *heartbeat });
    }

    pub(crate) fn deliver(&mut self, host: usize, life: u64, input: Input) {
        if !self.hosts[host].is_life(life) {
            return;
        }
        if let Input::Renumbered(incarnation) = input {
            self.renumber(host, incarnation);
        }
        self.step(host, input);
    }

    fn renumber(&mut self, host: usize, incarnation: Incarnation) {
        let here = &mut self.hosts[host];
        here.incarnation = here.incarnation.max(incarnation);
        if let Some(agent) = &mut here.agent {
            agent.incarnation = agent.incarnation.max(incarnation);
        }
    }

    pub(crate) fn wake(&mut self, host: usize, life: u64) {
        let Some(agent) = self.hosts[host].agent.as_mut().filter(|agent| agent.life == life) else { return };
        if agent.paused || agent.wake_at != Some(self.now) {
            return;
        }
        agent.wake_at = None;
        let deadline = agent.node.deadline();
        if deadline.is_some_and(|deadline| deadline <= self.hosts[host].clock.read(self.now)) {
            self.step(host, Input::Deadline);
        } else {
            self.schedule_wake(host);
        }
    }

    /// Steps an agent's core and carries out what it wants.
    pub(crate) fn step(&mut self, host: usize, input: Input) {
        if let Some(batch) = self.step_core(host, input) {
            self.carry_out(host, batch);
            self.schedule_wake(host);
        }
    }

    fn step_core(&mut self, host: usize, input: Input) -> Option<Batch> {
        let here = &mut self.hosts[host];
        let now = here.clock.read(self.now);
        let agent = here.agent.as_mut()?;
        if let Some(deadline) = agent.node.deadline() {
            let lag = u64::try_from(now.since(deadline).as_nanos()).unwrap_or(u64::MAX);
            if lag > here.measured.0 || self.now > here.measured.1 + MEASURED_FOR {
                here.measured = (lag, self.now);
            }
        }
        let mut batch = self.spare_batches.pop().unwrap_or_default();
        agent.node.step(now, input, &mut batch);
        Some(batch)
    }

    fn schedule_wake(&mut self, host: usize) {
        let here = &self.hosts[host];
        let Some(agent) = &here.agent else { return };
        let (life, scheduled) = (agent.life, agent.wake_at);
        let Some(deadline) = agent.node.deadline() else { return };
        let due = here.clock.when(deadline);
        if scheduled.is_some_and(|at| at <= due) {
            return;
        }
        let at = due.max(self.now) + self.random.below(MS / 2);
        if scheduled.is_some_and(|scheduled| scheduled <= at) {
            return;
        }
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.wake_at = Some(at);
        }
        self.at(at, Event::Wake { host, life });
    }

    fn carry_out(&mut self, host: usize, mut batch: Batch) {
        let Some(life) = self.hosts[host].agent.as_ref().map(|agent| agent.life) else { return };
        for (to, network, heartbeat) in batch.send.drain(..) {
            self.send(host, to, network, heartbeat);
        }
        for peer in batch.probe.drain(..) {
            self.probe(host, life, peer);
        }
        for proposal in batch.propose.drain(..) {
            let delay = self.random.around(self.scenario.commit) + self.scenario.delay;
            self.after(delay, Event::Propose { host, life, proposal: Box::new(proposal), tries: 0 });
        }
        for (id, job) in batch.run.drain(..) {
            self.run_job(host, life, id, job);
        }
        for published in batch.publish.drain(..) {
            self.published(host, life, &published);
        }
        self.spare_batches.push(batch);
    }

    fn send(&mut self, from: usize, to: NodeId, NetworkId(network): NetworkId, heartbeat: Heartbeat) {
        let Some(to) = self.index_of(to) else { return };
        let Some(incarnation) = self.hosts[from].agent.as_ref().map(|agent| agent.incarnation) else {
            return;
        };
        if heartbeat.sequence.is_multiple_of(16) {
            let mut bytes = Vec::new();
            heartbeat.encode(&mut bytes);
            assert_eq!(Heartbeat::decode(&bytes).as_ref(), Ok(&heartbeat), "what is sent can be read");
        }
        let link = (network, from, to);
        let mut heartbeat = Box::new(heartbeat);
        let copies = if self.scenario.duplication > 0.0 && self.random.chance(self.scenario.duplication) {
            2
        } else {
            1
        };
        for copy in 0..copies {
            let Some(delay) = self.networks.transit(link, &self.scenario, &mut self.random) else { continue };
            let heartbeat = if copy + 1 < copies {
                heartbeat.clone()
            } else {
                std::mem::replace(&mut heartbeat, Box::new(empty_heartbeat()))
            };
            self.after(
                delay,
                Event::Datagram { to, from, network, incarnation, received_at: None, heartbeat },
            );
        }
    }

    /// Asks the kernel of a peer, which answers although its agent may not, if the way there and back is free.
    fn probe(&mut self, host: usize, life: u64, peer: NodeId) {
        let Some(to) = self.index_of(peer) else { return };
        let networks: Vec<u16> = self.networks.all().collect();
        let ways: Vec<u64> = (networks.into_iter())
            .filter_map(|network| {
                let there = self.networks.transit((network, host, to), &self.scenario, &mut self.random)?;
                let back = self.networks.transit((network, to, host), &self.scenario, &mut self.random)?;
                Some(there + back)
            })
            .collect();
        let there = &self.hosts[to];
        let incarnation = there.incarnation;
        let answer = match (there.powered, ways.iter().min()) {
            (true, Some(delay)) if there.agent.is_some() => (*delay, Evidence::Acknowledges),
            (true, Some(delay)) => (*delay, Evidence::Gone),
            (false, _) | (true, None) => (200 * MS, Evidence::Unreachable),
        };
        self.testify(host, life, peer, incarnation, answer);
    }

    /// The kernel of `of` ends the connections of the agent that was there.
    pub(crate) fn testify_end(&mut self, of: usize) {
        let (peer, incarnation) = (self.hosts[of].node, self.hosts[of].incarnation);
        for host in 0..self.hosts.len() {
            let Some(life) = self.hosts[host].agent.as_ref().map(|agent| agent.life) else { continue };
            let networks: Vec<u16> = self.networks.all().collect();
            let delays = networks.into_iter().filter_map(|network| {
                self.networks.transit((network, of, host), &self.scenario, &mut self.random)
            });
            if let Some(delay) = delays.min() {
                self.testify(host, life, peer, incarnation, (delay, Evidence::Gone));
            }
        }
    }

    fn testify(
        &mut self,
        host: usize,
        life: u64,
        peer: NodeId,
        incarnation: Incarnation,
        (delay, evidence): (u64, Evidence),
    ) {
        let at = self.hosts[host].clock.read(self.now + delay);
        let input = Box::new(Input::Testified { peer, incarnation, evidence, at });
        self.after(delay, Event::Input { host, life, input });
    }

    fn run_job(&mut self, host: usize, life: u64, id: steadfast_proto::node::JobId, job: Job) {
        if let Job::Renew { deadline, drift, containers } = job {
            let lag_max = self.hosts[host].measured.0.max(2 * MS);
            let boots = self.hosts[host].boots;
            let delay = self.random.below(MS / 2);
            self.after(delay, Event::Renew { host, boots, deadline, drift, lag_max, containers });
            return;
        }
        self.begin_job(host, life, id, job);
    }

    fn published(&mut self, host: usize, life: u64, published: &Published) {
        match published {
            Published::Installed(view) => {
                let node = self.hosts[host].node;
                self.fact(&Fact::Installed { node, life, view });
                self.trace.line(self.now, Some(host), "view", || {
                    format!("installs {}: {:?}", view.id, view.reason)
                });
            }
            Published::Opinion(opinion) => {
                self.trace.line(self.now, Some(host), "opinion", || format!("{opinion:?}"))
            }
            Published::LeaseLapsed => self.trace.line(self.now, Some(host), "lease", || "lapsed".to_owned()),
            Published::LeaseRenewed => {
                self.trace.line(self.now, Some(host), "lease", || "is fresh".to_owned())
            }
            Published::Fenced(node) => {
                self.trace.line(self.now, Some(host), "fence", || format!("{node:?} is over"))
            }
            Published::Moved { .. } | Published::Committed { .. } => {}
            Published::CheckpointFailed { container, reason } => {
                self.trace
                    .line(self.now, Some(host), "checkpoint", || format!("{container:?} failed: {reason}"));
            }
            Published::Answer(id, answer) => {
                self.trace.line(self.now, Some(host), "answer", || format!("{id:?} {}", answer.is_ok()));
            }
        }
    }

    /// Tells a core what its host's checkpoint memory has.
    pub(crate) fn tell_memory(&mut self, host: usize) {
        let here = &self.hosts[host];
        let (free_bytes, held) = (here.free_bytes(), here.manifests());
        self.step(host, Input::Memory { free_bytes, held });
    }

    /// Tells an agent, if there is one, that a container ended.
    pub(crate) fn tell_exit(
        &mut self,
        host: usize,
        container: steadfast_proto::ids::ContainerId,
        exit: Exit,
    ) {
        let Some(epoch) = self.hosts[host].shims.get(&container).map(|shim| shim.epoch) else { return };
        let Some(life) = self.hosts[host].agent.as_ref().map(|agent| agent.life) else { return };
        let delay = self.random.below(MS);
        let input = Box::new(Input::Exited { container, epoch, exit });
        self.after(delay, Event::Input { host, life, input });
    }
}

fn empty_heartbeat() -> Heartbeat {
    Heartbeat {
        sequence: 0,
        sent_at: Time::ZERO,
        interval_ms: 0,
        boot: None,
        challenge: 0,
        echo: None,
        hears: 0,
        goodbye: false,
        sparse: false,
        asks: false,
        rumours: Vec::new(),
        rider: None,
    }
}
