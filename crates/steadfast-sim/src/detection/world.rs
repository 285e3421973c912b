//! The world: takes one event after the other and does what the detectors want done.
//!
//! A stopped agent's datagrams wait in its kernel with their receive times, as many as fit; when it goes on it takes
//! them all before its deadline, as the agent does. Each node has a clock of its own. What kernels answer stands in
//! `kernel`, what the view does in `removal`, who is right in `truth`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use steadfast_proto::detect::{Detector, Evidence, Input, Members, Opinion, Output};
use steadfast_proto::ids::{Incarnation, NetworkId, NodeId};
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;

use super::baseline::Baseline;
use super::checkers::Checkers;
use super::fault::{Kind, Struck};
use super::medium::Medium;
use super::plan::{Plan, PlanError, nanos};
use super::queue::{Event, Letter, Queue};
use super::removal::Views;
use super::report::{Log, Report};
use crate::random::Random;

/// What a heartbeat costs beside its own bytes: seal, and IPv4 and UDP headers.
const OVERHEAD_BYTES: usize = 28 + 28;

/// What waits for a stopped agent.
#[derive(Debug)]
pub(super) enum Waiting {
    Letter(Box<Letter>, Time),
    Testimony { peer: u32, peer_life: u32, evidence: Evidence },
    View(u32),
}

/// A node: its host, its agent, and what waits for that.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) detector: Option<Detector>,
    /// Counts its starts, and is its incarnation.
    pub(super) life: u32,
    /// Whether its machine lives.
    pub(super) host_up: bool,
    /// How many faults hold it stopped.
    pub(super) stopped: u32,
    inbox: Vec<Waiting>,
    /// By how much its clock is ahead of the world's, in nanoseconds.
    offset: u64,
    /// When the next wake stands in the queue, in nanoseconds.
    wake_at: u64,
    /// Which view it has.
    pub(super) view: u32,
    /// Since when it has somebody to remove, and when it last proposed so.
    pub(super) condemned_since: Option<u64>,
    pub(super) proposed_at: Option<u64>,
}

/// A deterministic world of detectors.
#[derive(Debug)]
pub struct World {
    pub(super) plan: Plan,
    pub(super) now: u64,
    end: u64,
    pub(super) random: Random,
    pub(super) queue: Queue,
    pub(super) medium: Medium,
    pub(super) faults: Vec<Struck>,
    pub(super) agents: Vec<Agent>,
    pub(super) views: Views,
    /// Who asks its kernel about whom.
    pub(super) probing: BTreeSet<(u32, u32)>,
    pub(super) log: Log,
    baseline: Option<Baseline>,
    checkers: Option<Checkers>,
    output: Output,
    scratch: Vec<u8>,
}

/// The node with this number; ids are numbers from one.
pub(super) fn id_of(index: usize) -> NodeId {
    NodeId(index as u128 + 1)
}

/// The number of the node with this id.
pub(super) fn index_of(id: NodeId) -> usize {
    usize::try_from(id.0.saturating_sub(1)).unwrap_or(usize::MAX)
}

/// An index as events have it.
pub(super) fn small(index: usize) -> u32 {
    u32::try_from(index).expect("a world has fewer than 2^32 of anything")
}

impl World {
    /// A world of `plan` in which everything follows from `seed`.
    ///
    /// # Errors
    /// A plan that cannot be carried out is refused.
    pub fn new(plan: &Plan, seed: u64) -> Result<World, PlanError> {
        plan.check()?;
        let plan = plan.clone();
        let mut random = Random::new(seed);
        let members = (0..plan.nodes).map(|index| (id_of(index), Incarnation(1))).collect();
        let members = Arc::new(Members::new(members, seed));
        let faults = strike(&plan, &members, &mut random);
        let mut queue = Queue::default();
        let phase = nanos(plan.start_within.max(plan.settings.interval));
        let agents = (0..plan.nodes).map(|index| {
            queue.push(random.below(phase), Event::Start { node: small(index) });
            Agent {
                detector: None,
                life: 1,
                host_up: true,
                stopped: 0,
                inbox: Vec::new(),
                offset: random.between(3_600, 360_000) * 1_000_000_000,
                wake_at: u64::MAX,
                view: 0,
                condemned_since: None,
                proposed_at: None,
            }
        });
        let agents = agents.collect();
        for (index, struck) in faults.iter().enumerate() {
            queue.push(nanos(struck.fault.at), Event::Begin { fault: number(index) });
        }
        Ok(World {
            now: 0,
            end: nanos(plan.duration),
            random,
            queue,
            medium: Medium::new(plan.networks.clone()),
            agents,
            views: Views::new(members),
            probing: BTreeSet::new(),
            log: Log::new(&plan, seed, &faults),
            baseline: plan.plain.map(|timeout| Baseline::new(nanos(timeout))),
            checkers: plan.check.then(|| Checkers::new(&plan)),
            output: Output::default(),
            scratch: Vec::new(),
            faults,
            plan,
        })
    }

    /// Runs to the end.
    #[must_use]
    pub fn run(mut self) -> Report {
        while let Some((at, event)) = self.queue.pop(self.end) {
            self.now = at;
            self.handle(event);
        }
        self.now = self.end;
        let violations = self.checkers.take().map(Checkers::finish).unwrap_or_default();
        let accusations = self.baseline.take().map(Baseline::finish).unwrap_or_default();
        let alive: Vec<bool> = (self.agents.iter())
            .map(|agent| agent.detector.is_some() && agent.host_up && agent.stopped == 0)
            .collect();
        let standing = self.agents.iter().map(|agent| {
            let verdicts = agent.detector.iter().flat_map(|detector| detector.verdicts().values());
            verdicts.map(|verdict| (verdict.class, verdict.subject.clone())).collect()
        });
        self.log.finish(&alive, standing.collect(), self.views.count(), violations, accusations)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrival { to, place } => self.arrive(to as usize, place),
            Event::Wake { node, life } => self.wake(node as usize, life),
            Event::Start { node } => self.start(node as usize),
            Event::Testimony { observer, life, peer, peer_life, evidence, is_answer } => {
                if is_answer {
                    self.probing.remove(&(observer, peer));
                }
                self.testify(observer as usize, life, peer, peer_life, evidence);
            }
            Event::Begin { fault } => self.begin(fault),
            Event::End { fault } => self.finish(fault),
            Event::Turn { fault, stops } => self.turn(fault, stops),
            Event::Install { node, view } => self.install(node as usize, view),
            Event::Commit { change } => self.commit(change as usize),
        }
    }

    /// What a node's own clock shows.
    pub(super) fn clock(&self, node: usize) -> Time {
        Time::from_nanos(self.now + self.agents[node].offset)
    }

    fn start(&mut self, node: usize) {
        let now = self.clock(node);
        let networks = (0..self.plan.networks.len()).map(|network| NetworkId(number(network))).collect();
        let boot = self.random.between(1, u64::MAX - 1);
        let agent = &mut self.agents[node];
        if !agent.host_up || agent.detector.is_some() {
            return;
        }
        let incarnation = Incarnation(u64::from(agent.life));
        let settings = self.plan.settings.clone();
        agent.detector = Some(Detector::new(settings, id_of(node), incarnation, boot, networks, now));
        agent.view = self.views.newest();
        let members = Arc::clone(self.views.members(agent.view));
        if members.incarnations().get(&id_of(node)) != Some(&incarnation) {
            self.readmit(node, incarnation);
        }
        self.step(node, Input::Members(members));
    }

    /// Gives an agent one input, and does what it wants done.
    pub(super) fn step(&mut self, node: usize, input: Input) {
        let now = self.clock(node);
        let agent = &mut self.agents[node];
        let Some(detector) = &mut agent.detector else { return };
        let mut output = std::mem::take(&mut self.output);
        detector.step(now, input, &mut output);
        if let Some(checkers) = &mut self.checkers {
            checkers.stepped(self.now, node, detector, &output, &self.faults);
        }
        for (to, network, heartbeat) in output.send.drain(..) {
            self.send(node, index_of(to), network, heartbeat);
        }
        for peer in output.probe.drain(..) {
            self.probe(node, index_of(peer));
        }
        for opinion in output.opinions.drain(..) {
            self.heard_opinion(node, &opinion);
        }
        self.output = output;
        self.consider_removal(node);
        self.plan_wake(node);
    }

    fn heard_opinion(&mut self, node: usize, opinion: &Opinion) {
        let is_right = self.is_right(node, opinion);
        self.log.opinion(self.now, node, opinion, is_right);
    }

    /// Puts the agent's next deadline into the queue, unless an earlier one stands there.
    fn plan_wake(&mut self, node: usize) {
        let agent = &mut self.agents[node];
        let Some(due) = agent.detector.as_ref().and_then(Machine::deadline) else { return };
        let due = due.as_nanos().saturating_sub(agent.offset).max(self.now);
        if due < agent.wake_at {
            let late = self.random.around(nanos(self.plan.lag)) + 1;
            agent.wake_at = due + late;
            self.queue.push(agent.wake_at, Event::Wake { node: small(node), life: agent.life });
        }
    }

    fn wake(&mut self, node: usize, life: u32) {
        let now = self.clock(node);
        let agent = &mut self.agents[node];
        if agent.life != life || agent.wake_at > self.now {
            return;
        }
        agent.wake_at = u64::MAX;
        if agent.stopped > 0 {
            return;
        }
        if let (Some(baseline), Some(detector)) = (&mut self.baseline, &agent.detector) {
            baseline.wake(self.now, node, detector);
        }
        if agent.detector.as_ref().and_then(Machine::deadline).is_some_and(|due| due <= now) {
            self.step(node, Input::Deadline);
        } else {
            self.plan_wake(node);
        }
    }

    pub(super) fn send(
        &mut self,
        from: usize,
        to: usize,
        network: NetworkId,
        heartbeat: steadfast_proto::wire::Heartbeat,
    ) {
        self.scratch.clear();
        heartbeat.encode(&mut self.scratch);
        self.log.sent(self.now, from, self.scratch.len() + OVERHEAD_BYTES);
        let (now, random) = (self.now, &mut self.random);
        let Some(transit) = self.medium.transit(now, usize::from(network.0), from, to, random) else {
            return;
        };
        let incarnation = Incarnation(u64::from(self.agents[from].life));
        let place = self.queue.post(Letter { from: small(from), incarnation, network, heartbeat });
        self.queue.push(now + transit, Event::Arrival { to: small(to), place });
    }

    fn arrive(&mut self, to: usize, place: u32) {
        let Some(letter) = self.queue.open(place) else { return };
        let received_at = self.clock(to);
        let agent = &mut self.agents[to];
        if !agent.host_up {
            return;
        }
        if agent.detector.is_none() {
            self.refuse(to, letter.from as usize, usize::from(letter.network.0));
            return;
        }
        if agent.stopped > 0 {
            if agent.inbox.len() < self.plan.inbox_max * self.plan.networks.len() {
                agent.inbox.push(Waiting::Letter(Box::new(letter), received_at));
            }
            return;
        }
        self.hand_over(to, letter, received_at);
    }

    fn hand_over(&mut self, to: usize, letter: Letter, received_at: Time) {
        if let Some(baseline) = &mut self.baseline {
            baseline.heard(self.now, to, letter.from as usize);
        }
        let Letter { from, incarnation, network, heartbeat } = letter;
        let from = id_of(from as usize);
        self.step(to, Input::Heard { from, incarnation, network, received_at, heartbeat });
    }

    fn testify(&mut self, observer: usize, life: u32, peer: u32, peer_life: u32, evidence: Evidence) {
        let at = self.clock(observer);
        let agent = &mut self.agents[observer];
        if agent.life != life || agent.detector.is_none() || !agent.host_up {
            return;
        }
        if agent.stopped > 0 {
            agent.inbox.push(Waiting::Testimony { peer, peer_life, evidence });
            return;
        }
        let incarnation = Incarnation(u64::from(peer_life));
        self.step(observer, Input::Evidence { peer: id_of(peer as usize), incarnation, evidence, at });
    }

    fn install(&mut self, node: usize, view: u32) {
        let agent = &mut self.agents[node];
        if agent.detector.is_none() || !agent.host_up || agent.view >= view {
            return;
        }
        if agent.stopped > 0 {
            agent.inbox.push(Waiting::View(view));
            return;
        }
        if !self.is_served(node, view) {
            return;
        }
        self.agents[node].view = view;
        let members = Arc::clone(self.views.members(view));
        let is_member = |index: usize| members.incarnations().contains_key(&id_of(index));
        self.log.installed(self.now, node, is_member);
        self.step(node, Input::Members(members));
    }

    fn begin(&mut self, fault: u16) {
        let now = self.now;
        let struck = &mut self.faults[usize::from(fault)];
        struck.began = Some(now);
        let nodes: Vec<usize> = struck.nodes.iter().copied().collect();
        let (kind, lasts) = (struck.fault.kind, struck.fault.lasts);
        self.log.begin(now, usize::from(fault));
        self.medium.set_faults(self.faults.iter());
        if let Some(lasts) = lasts {
            self.queue.push(now + nanos(lasts), Event::End { fault });
        }
        match kind {
            Kind::Crash | Kind::Restart => nodes.iter().for_each(|node| self.crash(*node)),
            Kind::Leave => nodes.iter().for_each(|node| self.leave(*node)),
            Kind::Silent => nodes.iter().for_each(|node| self.die(*node)),
            Kind::Stall => nodes.iter().for_each(|node| self.agents[*node].stopped += 1),
            Kind::Stutter => self.turn(fault, true),
            Kind::Isolate
            | Kind::Deaf
            | Kind::Mute
            | Kind::OneWay
            | Kind::CutLink
            | Kind::Unplug
            | Kind::CutNetwork
            | Kind::Loss
            | Kind::Delay
            | Kind::Split => {}
        }
    }

    fn finish(&mut self, fault: u16) {
        let struck = &mut self.faults[usize::from(fault)];
        struck.ended = Some(self.now);
        let nodes: Vec<usize> = struck.nodes.iter().copied().collect();
        let kind = struck.fault.kind;
        self.medium.set_faults(self.faults.iter());
        match kind {
            Kind::Restart | Kind::Crash => nodes.iter().for_each(|node| self.restart(*node)),
            Kind::Silent => {
                for node in nodes {
                    self.agents[node].host_up = true;
                    self.restart(node);
                }
            }
            Kind::Stall => nodes.iter().for_each(|node| self.resume(*node)),
            Kind::Leave
            | Kind::Stutter
            | Kind::Isolate
            | Kind::Deaf
            | Kind::Mute
            | Kind::OneWay
            | Kind::CutLink
            | Kind::Unplug
            | Kind::CutNetwork
            | Kind::Loss
            | Kind::Delay
            | Kind::Split => {}
        }
    }

    /// Stops those who stutter, or lets them go on, until their fault is over.
    fn turn(&mut self, fault: u16, stops: bool) {
        let struck = &self.faults[usize::from(fault)];
        let nodes: Vec<usize> = struck.nodes.iter().copied().collect();
        if !struck.is_active() && stops {
            return;
        }
        let (off, on) = struck.fault.stutter;
        let length = nanos(if stops { off } else { on });
        // Each turn is a little longer or shorter than the last.
        let length = self.random.between(length * 3 / 4, length * 5 / 4);
        self.queue.push(self.now + length, Event::Turn { fault, stops: !stops });
        for node in nodes {
            if stops {
                self.agents[node].stopped += 1;
            } else {
                self.resume(node);
            }
        }
    }

    fn die(&mut self, node: usize) {
        let agent = &mut self.agents[node];
        agent.host_up = false;
        agent.detector = None;
        agent.inbox.clear();
    }

    fn crash(&mut self, node: usize) {
        self.close_connections(node, Evidence::Gone);
        let agent = &mut self.agents[node];
        agent.detector = None;
        agent.inbox.clear();
    }

    fn leave(&mut self, node: usize) {
        let now = self.clock(node);
        let Some(detector) = &mut self.agents[node].detector else { return };
        for (to, network, heartbeat) in detector.goodbye(now) {
            self.send(node, index_of(to), network, heartbeat);
        }
        self.close_connections(node, Evidence::Goodbye);
        self.agents[node].detector = None;
    }

    fn restart(&mut self, node: usize) {
        let agent = &mut self.agents[node];
        if agent.detector.is_some() {
            return;
        }
        agent.life += 1;
        agent.wake_at = u64::MAX;
        agent.inbox.clear();
        self.start(node);
    }

    /// Lets a stopped agent go on: it takes what waits, then serves its deadline.
    fn resume(&mut self, node: usize) {
        let agent = &mut self.agents[node];
        agent.stopped = agent.stopped.saturating_sub(1);
        if agent.stopped > 0 || agent.detector.is_none() {
            return;
        }
        if let (Some(baseline), Some(detector)) = (&mut self.baseline, &agent.detector) {
            // Its timers have run out; it serves them as they come.
            baseline.wake(self.now, node, detector);
        }
        if let Some(checkers) = &mut self.checkers {
            checkers.resumed(self.now, node);
        }
        for waiting in std::mem::take(&mut self.agents[node].inbox) {
            match waiting {
                Waiting::Letter(letter, received_at) => self.hand_over(node, *letter, received_at),
                Waiting::Testimony { peer, peer_life, evidence } => {
                    let life = self.agents[node].life;
                    self.testify(node, life, peer, peer_life, evidence);
                }
                Waiting::View(view) => self.install(node, view),
            }
        }
        self.agents[node].wake_at = u64::MAX;
        self.plan_wake(node);
    }
}

pub(super) fn number(index: usize) -> u16 {
    u16::try_from(index).expect("a world has fewer than 2^16 faults and networks")
}

/// Draws for each fault whom it strikes, and where: a link is one that is watched.
fn strike(plan: &Plan, members: &Members, random: &mut Random) -> Vec<Struck> {
    let mut all = Vec::new();
    for fault in &plan.faults {
        let mut order = fault.nodes.clone();
        let wanted = order.len() + fault.drawn(plan.nodes);
        while order.len() < wanted {
            let is_link = matches!(fault.kind, Kind::OneWay | Kind::CutLink);
            let near = order.first().filter(|_| is_link).map(|first| members.neighbours(id_of(*first)));
            let node = match near.and_then(|near| random.pick(near)) {
                Some(id) => index_of(*id),
                None => random.index(plan.nodes),
            };
            if !order.contains(&node) {
                order.push(node);
            }
        }
        let network = match fault.network {
            None if fault.draws_network() => Some(random.index(plan.networks.len())),
            named => named,
        };
        let nodes = order.iter().copied().collect();
        all.push(Struck { fault: fault.clone(), order, nodes, network, began: None, ended: None });
    }
    all
}

/// A duration of so many nanoseconds.
pub(super) fn duration(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}
