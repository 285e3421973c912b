//! The nodes, the network between them, who kills and splits them, and the consumers that come, lag and go.
//!
//! Two phases: faults while checkers look at every step, then none, after which everybody is told everything and, once
//! nobody listens, every producer is off within the lease (checked as EV1 at rest).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use steadfast_proto::events::{
    Batch, ConsumerId, Delivery, EventType, Events, Fields, Input, Interest, Life, Message, Nature,
    Occurrence, Order, Position, Rate, Scope, Settings, Since, Topic, Value, Variant,
};
use steadfast_proto::ids::{Incarnation, NodeId};
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;

use super::checkers::{Told, Violation, check_message, check_node};
use super::{Plan, Report};
use crate::random::Random;

/// How long nobody does anything before it is checked that everything was told, and that producers are off.
const REST_MS: u64 = 60_000;

pub(super) struct World {
    plan: Plan,
    random: Random,
    now_ms: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Act>,
    nodes: BTreeMap<NodeId, Node>,
    /// Those on the other side of a split.
    cut: BTreeSet<NodeId>,
    members: BTreeMap<NodeId, Incarnation>,
    provisioned: BTreeSet<Life>,
    topics: Vec<Topic>,
    next_consumer: u64,
    is_faulty: bool,
    report: Report,
}

struct Node {
    events: Events,
    life: Life,
    is_alive: bool,
    counts: BTreeMap<Topic, i64>,
    watchers: BTreeMap<ConsumerId, Watcher>,
    /// Where consumers that left had been.
    left: BTreeMap<Topic, BTreeMap<NodeId, Position>>,
    /// When its machine was last told to be woken.
    alarm: Option<Time>,
}

struct Watcher {
    topic: Topic,
    told: Told,
    pace_ms: u64,
    is_due: bool,
}

enum Act {
    Deliver { from: Life, to: Life, bytes: Vec<u8> },
    Happen { node: NodeId },
    Take { node: NodeId, id: ConsumerId },
    Alarm { node: NodeId },
    Consumer { node: NodeId },
    Install { node: NodeId, members: BTreeMap<NodeId, Incarnation> },
    Restart { node: NodeId },
    Heal,
    Fault,
    View,
}

fn settings() -> Settings {
    let flood: EventType = "user.flood".parse().expect("a type");
    Settings {
        retained_events: 64,
        retry: Duration::from_millis(500),
        credit: 32,
        rates: BTreeMap::from([(flood, Rate { per_second: 20, burst: 10 })]),
        ..Settings::default()
    }
}

impl World {
    pub(super) fn new(plan: &Plan, seed: u64) -> World {
        let topics = ["user.few", "user.flood", "disk.usage", "user.local"];
        let topics = topics.map(|name| Topic::from(name.parse::<EventType>().expect("a type")));
        let report = Report {
            seed,
            violation: None,
            happened: 0,
            events: 0,
            gaps: 0,
            marks: 0,
            consumers: 0,
            messages: 0,
        };
        let mut world = World {
            plan: plan.clone(),
            random: Random::new(seed),
            now_ms: 1,
            sequence: 0,
            queue: BTreeMap::new(),
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            members: BTreeMap::new(),
            provisioned: BTreeSet::new(),
            topics: topics.to_vec(),
            next_consumer: 1,
            is_faulty: true,
            report,
        };
        for node in (1..=plan.nodes).map(NodeId) {
            let life = Life { node, incarnation: Incarnation(1) };
            world.members.insert(node, life.incarnation);
            world.nodes.insert(node, Node::new(life));
            world.after(0, Act::Happen { node });
            world.after(10, Act::Consumer { node });
        }
        for node in (1..=plan.nodes).map(NodeId) {
            world.after(0, Act::Install { node, members: world.members.clone() });
        }
        world.after(0, Act::View);
        world.after(plan.fault_every_ms, Act::Fault);
        world
    }

    pub(super) fn run(mut self) -> Report {
        let ended = self.live();
        self.report.violation = ended.err();
        self.report
    }

    fn live(&mut self) -> Result<(), Violation> {
        self.until(self.plan.seconds * 1_000)?;
        self.is_faulty = false;
        self.cut.clear();
        let dead: Vec<NodeId> =
            self.nodes.iter().filter(|(_, node)| !node.is_alive).map(|(id, _)| *id).collect();
        for node in dead {
            self.restart(node);
        }
        self.until(self.now_ms + REST_MS)?;
        self.check_told()?;
        self.silence()
    }

    fn until(&mut self, end_ms: u64) -> Result<(), Violation> {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end_ms {
                break;
            }
            let ((at_ms, _), act) = entry.remove_entry();
            self.now_ms = at_ms;
            self.act(act)?;
        }
        self.now_ms = end_ms;
        Ok(())
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.now_ms * 1_000_000)
    }

    fn after(&mut self, ms: u64, act: Act) {
        self.sequence += 1;
        self.queue.insert((self.now_ms + ms, self.sequence), act);
    }

    fn act(&mut self, act: Act) -> Result<(), Violation> {
        match act {
            Act::Deliver { from, to, bytes } => {
                let is_parted = self.cut.contains(&from.node) != self.cut.contains(&to.node);
                let is_there = self.nodes.get(&to.node).is_some_and(|node| node.life == to && node.is_alive);
                if is_parted || !is_there {
                    return Ok(());
                }
                let message = Message::decode(&bytes)
                    .map_err(|error| Violation { invariant: "MESSAGE", what: error.to_string() })?;
                self.step(to.node, Input::Received { from, message })
            }
            Act::Happen { node } => self.happen(node),
            Act::Take { node, id } => self.take(node, id),
            Act::Alarm { node } => {
                let now = self.now();
                let Some(machine) = self.nodes.get_mut(&node).filter(|node| node.is_alive) else {
                    return Ok(());
                };
                machine.alarm = None;
                if machine.events.deadline().is_some_and(|deadline| deadline <= now) {
                    return self.step(node, Input::Deadline);
                }
                self.arm(node);
                Ok(())
            }
            Act::Consumer { node } => self.come_or_go(node),
            Act::Install { node, members } => self.step(node, Input::Members(members)),
            Act::Restart { node } => {
                self.restart(node);
                Ok(())
            }
            Act::Heal => self.heal(),
            Act::Fault => {
                self.fault();
                Ok(())
            }
            Act::View => self.view(),
        }
    }

    fn step(&mut self, id: NodeId, input: Input) -> Result<(), Violation> {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_alive) else { return Ok(()) };
        let mut out = Batch::default();
        node.events.step(now, input, &mut out);
        let status = node.events.status();
        self.carry_out(id, out)?;
        check_node(id, &status)
    }

    fn carry_out(&mut self, id: NodeId, out: Batch) -> Result<(), Violation> {
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let from = node.life;
        for (to, message) in out.send {
            if let Some(local) = self.topics.last() {
                check_message(local, &message)?;
            }
            self.report.messages += 1;
            let bytes = message.encode();
            for _ in 0..self.copies() {
                let delay = self.random.between(1, 4);
                self.after(delay, Act::Deliver { from, to, bytes: bytes.clone() });
            }
        }
        self.provisioned.extend(out.provisioned.then_some(from));
        for consumer in out.news {
            self.plan_take(id, consumer);
        }
        self.arm(id);
        for order in out.producers {
            if let Order::Reannounce(topic) = order {
                self.happen_once(id, &topic)?;
            }
        }
        Ok(())
    }

    fn copies(&mut self) -> u32 {
        if !self.is_faulty {
            return 1;
        }
        if self.random.chance(self.plan.loss) {
            return 0;
        }
        1 + u32::from(self.random.chance(self.plan.duplication))
    }

    fn arm(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(deadline) = node.events.deadline() else { return };
        if node.alarm.is_some_and(|alarm| alarm <= deadline) {
            return;
        }
        node.alarm = Some(deadline);
        let wait_ms = deadline.as_nanos().div_ceil(1_000_000).saturating_sub(self.now_ms);
        self.after(wait_ms, Act::Alarm { node: id });
    }

    fn happen(&mut self, id: NodeId) -> Result<(), Violation> {
        if !self.is_faulty {
            return Ok(());
        }
        let next = self.random.around(150);
        self.after(next, Act::Happen { node: id });
        let Some(topic) = self.random.pick(&self.topics).cloned() else { return Ok(()) };
        let many = if self.random.chance(0.2) { 20 } else { 2 };
        for _ in 0..=self.random.below(many) {
            self.happen_once(id, &topic)?;
        }
        Ok(())
    }

    fn happen_once(&mut self, id: NodeId, topic: &Topic) -> Result<(), Violation> {
        let at_unix_us = self.now_ms * 1_000;
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_alive) else { return Ok(()) };
        if !node.events.is_active(topic) {
            return Ok(());
        }
        let count = node.counts.entry(topic.clone()).or_default();
        *count += 1;
        let place = format!("{}/{}", node.life.node, node.life.incarnation);
        let fields = Fields::from([
            ("place".to_owned(), Value::Text(place)),
            ("topic".to_owned(), Value::Text(topic.to_string())),
            ("count".to_owned(), Value::Integer(*count)),
        ]);
        self.report.happened += 1;
        self.step(id, Input::Happened(vec![(topic.clone(), Occurrence { at_unix_us, fields })]))
    }

    fn plan_take(&mut self, id: NodeId, consumer: ConsumerId) {
        let watcher = self.nodes.get_mut(&id).and_then(|node| node.watchers.get_mut(&consumer));
        let Some(watcher) = watcher.filter(|watcher| !watcher.is_due) else { return };
        watcher.is_due = true;
        let pace_ms = if self.is_faulty { watcher.pace_ms } else { 1 };
        let wait = self.random.around(pace_ms);
        self.after(wait, Act::Take { node: id, id: consumer });
    }

    fn take(&mut self, id: NodeId, consumer: ConsumerId) -> Result<(), Violation> {
        let (now, max) = (self.now(), 1 + self.random.index(40));
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_alive) else { return Ok(()) };
        let Some(watcher) = node.watchers.get_mut(&consumer) else { return Ok(()) };
        let mut out = Batch::default();
        let told = node.events.take(now, consumer, max, &mut out);
        watcher.is_due = false;
        for delivery in &told {
            match delivery {
                Delivery::Event(_) => self.report.events += 1,
                Delivery::Gap(_) => self.report.gaps += 1,
                Delivery::SourceRestarted(_) | Delivery::SourceDown(_) | Delivery::SourceRefused(..) => {
                    self.report.marks += 1;
                }
            }
            watcher.told.check(delivery)?;
        }
        self.carry_out(id, out)?;
        if !told.is_empty() {
            self.plan_take(id, consumer);
        }
        Ok(())
    }

    fn come_or_go(&mut self, id: NodeId) -> Result<(), Violation> {
        if !self.is_faulty {
            return Ok(());
        }
        let next = self.random.around(3_000);
        self.after(next, Act::Consumer { node: id });
        let leaves = self.random.chance(0.45);
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_alive) else { return Ok(()) };
        let oldest = node.watchers.keys().next().copied().filter(|_| leaves || node.watchers.len() > 5);
        if let Some(consumer) = oldest {
            if let Some(watcher) = node.watchers.remove(&consumer) {
                node.left.insert(watcher.topic, watcher.told.positions());
            }
            return self.step(id, Input::Leave { id: consumer });
        }
        let interest = self.interest(id);
        let consumer = ConsumerId(self.next_consumer);
        self.next_consumer += 1;
        self.report.consumers += 1;
        let told = match &interest.since {
            Since::After(positions) => Told::resumed(positions),
            Since::Now | Since::Oldest | Since::Time { .. } => Told::default(),
        };
        let pace_ms = *self.random.pick(&[1, 20, 300, 4_000]).unwrap_or(&1);
        let watcher = Watcher { topic: interest.topic.clone(), told, pace_ms, is_due: false };
        if let Some(node) = self.nodes.get_mut(&id) {
            node.watchers.insert(consumer, watcher);
        }
        self.step(id, Input::Register { id: consumer, interest })
    }

    fn interest(&mut self, id: NodeId) -> Interest {
        let index = self.random.index(self.topics.len());
        let is_local = index + 1 == self.topics.len();
        let topic = self.topics[index].clone();
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        let variant = if index == 0 { Variant::Replicated } else { Variant::Selective };
        let nature = if index == 2 { Nature::Level } else { Nature::Edge };
        let scope = match self.random.below(4) {
            _ if is_local => Scope::Local,
            0 => Scope::Local,
            1 => Scope::Node(*self.random.pick(&all).unwrap_or(&id)),
            _ => Scope::Cluster,
        };
        let left = self.nodes.get(&id).and_then(|node| node.left.get(&topic)).cloned();
        let left = left.map(|mut left| {
            left.retain(|node, _| match scope {
                Scope::Local => *node == id,
                Scope::Node(wanted) => *node == wanted,
                Scope::Cluster => true,
            });
            left
        });
        let since = match self.random.below(4) {
            0 => Since::Oldest,
            1 => Since::Time { unix_us: self.now_ms.saturating_sub(3_000) * 1_000 },
            2 => left.map_or(Since::Now, Since::After),
            _ => Since::Now,
        };
        let buffer = *self.random.pick(&[1, 4, 16, 64]).unwrap_or(&1);
        Interest { topic, scope, variant, nature, since, buffer }
    }

    fn fault(&mut self) {
        if !self.is_faulty {
            return;
        }
        let next = self.random.around(self.plan.fault_every_ms);
        self.after(next, Act::Fault);
        let alive = self.nodes.iter().filter(|(_, node)| node.is_alive);
        let alive: Vec<NodeId> = alive.map(|(id, _)| *id).collect();
        let Some(victim) = self.random.pick(&alive).copied() else { return };
        let parted: BTreeSet<NodeId> = self.cut.iter().copied().chain([victim]).collect();
        if self.random.chance(0.5) && alive.len() > 3 {
            if let Some(node) = self.nodes.get_mut(&victim) {
                node.is_alive = false;
            }
            let wait = self.random.between(200, 8_000);
            self.after(wait, Act::Restart { node: victim });
        } else if parted.len() <= 2 {
            self.cut = parted;
            let wait = self.random.between(100, 30_000);
            self.after(wait, Act::Heal);
        }
    }

    fn restart(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.is_alive) else { return };
        let life = Life { node: id, incarnation: node.life.incarnation.next() };
        let mut left = std::mem::take(&mut node.left);
        for watcher in node.watchers.values() {
            left.insert(watcher.topic.clone(), watcher.told.positions());
        }
        *node = Node { left, ..Node::new(life) };
    }

    fn heal(&mut self) -> Result<(), Violation> {
        self.cut.clear();
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in &all {
            for other in all.iter().filter(|other| *other != node) {
                if self.random.chance(0.5) {
                    self.step(*node, Input::Reconnected(*other))?;
                }
            }
        }
        Ok(())
    }

    /// The larger side agrees on who is there, after a while; those who join are given the registrations first.
    fn view(&mut self) -> Result<(), Violation> {
        self.after(300, Act::View);
        let is_here = |(id, node): &(&NodeId, &Node)| node.is_alive && !self.cut.contains(id);
        let here: Vec<Life> = self.nodes.iter().filter(is_here).map(|(_, node)| node.life).collect();
        if here.len() * 2 <= self.nodes.len() {
            return Ok(());
        }
        let knows = |life: &Life| self.members.get(&life.node) == Some(&life.incarnation);
        let (old, new): (Vec<Life>, Vec<Life>) = here.iter().partition(|life| knows(life));
        let (ready, joining): (Vec<Life>, Vec<Life>) =
            new.into_iter().partition(|life| self.provisioned.contains(life) || old.is_empty());
        let members = old.iter().chain(&ready).map(|life| (life.node, life.incarnation)).collect();
        if members != self.members {
            self.members = members;
            for life in old.iter().chain(&ready) {
                let wait = self.random.between(1, 200);
                let members = self.members.clone();
                self.after(wait, Act::Install { node: life.node, members });
            }
        }
        for life in joining {
            self.step(life.node, Input::Members(self.members.clone()))?;
        }
        Ok(())
    }

    /// At rest everybody was told everything (EV5).
    fn check_told(&mut self) -> Result<(), Violation> {
        for node in self.nodes.values() {
            for watcher in node.watchers.values() {
                for other in self.nodes.values() {
                    let Some(status) = other.events.topic_status(&watcher.topic) else { continue };
                    let Life { node, incarnation } = other.life;
                    watcher.told.check_end(node, incarnation, status.next_seq)?;
                }
            }
        }
        Ok(())
    }

    /// Some nodes die without a word and without a new view, consumers on the others leave: producers get quiet.
    fn silence(&mut self) -> Result<(), Violation> {
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        self.queue.retain(|_, act| !matches!(act, Act::View));
        for id in all {
            let dies = self.random.chance(0.4);
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            node.is_alive = !dies;
            let watchers: Vec<ConsumerId> = node.watchers.keys().copied().collect();
            for consumer in watchers.into_iter().filter(|_| !dies) {
                self.step(id, Input::Leave { id: consumer })?;
            }
        }
        self.until(self.now_ms + REST_MS)?;
        for (id, node) in self.nodes.iter().filter(|(_, node)| node.is_alive) {
            if let Some(topic) = node.events.status().topics.iter().find(|topic| topic.active) {
                let what = format!("{id:?} is still active though nobody listens: {topic:?}");
                return Err(Violation { invariant: "EV1", what });
            }
        }
        Ok(())
    }
}

impl Node {
    fn new(life: Life) -> Node {
        Node {
            events: Events::new(life, settings()),
            life,
            is_alive: true,
            counts: BTreeMap::new(),
            watchers: BTreeMap::new(),
            left: BTreeMap::new(),
            alarm: None,
        }
    }
}
