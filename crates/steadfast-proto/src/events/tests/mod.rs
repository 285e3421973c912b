//! Remote and local events on a few nodes whose messages arrive, are held back or get lost as a test says.
//!
//! `model.rs` searches small worlds exhaustively; the random simulation with loss, restarts and splits is in
//! `steadfast-sim`. The invariants EV1-EV5 are those of `docs/protocols/events.md`.

mod messages;
mod model;
mod sequences;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::*;
use crate::ids::{Incarnation, NodeId};
use crate::machine::Machine;
use crate::time::Time;

/// Nodes, and what flies between them.
struct World {
    now: Time,
    nodes: BTreeMap<u128, Events>,
    flying: VecDeque<(Life, Life, Message)>,
    orders: Vec<(u128, Order)>,
    settled: Vec<(u128, ConsumerId)>,
    refused: Vec<Refusal>,
    provisioned: Vec<Life>,
    /// Nodes that nobody hears and that hear nobody.
    cut: BTreeSet<u128>,
}

fn life(node: u128, incarnation: u64) -> Life {
    Life { node: NodeId(node), incarnation: Incarnation(incarnation) }
}

fn topic(name: &str) -> Topic {
    Topic::from(name.parse::<EventType>().unwrap())
}

fn occurrence(number: i64) -> Occurrence {
    let fields = Fields::from([("number".to_owned(), Value::Integer(number))]);
    Occurrence { at_unix_us: u64::try_from(number).unwrap(), fields }
}

/// Seen as a person would write it: `1.5` is event 5 of node 1, `1.[2-4 Overrun]` a gap.
fn told(deliveries: &[Delivery]) -> String {
    let words = deliveries.iter().map(|delivery| {
        let node = delivery.source().life.node.0;
        match delivery {
            Delivery::Event(event) => format!("{node}.{}", event.seq),
            Delivery::Gap(Gap { from, to, reason, .. }) => format!("{node}.[{from}-{to} {reason:?}]"),
            Delivery::SourceRestarted(source) => format!("{node}.restarted{}", source.life.incarnation),
            Delivery::SourceDown(_) => format!("{node}.down"),
            Delivery::SourceRefused(_, refusal) => format!("{node}.refused({refusal:?})"),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

impl World {
    fn new(nodes: u128) -> World {
        World::with(nodes, &Settings::default())
    }

    fn with(nodes: u128, settings: &Settings) -> World {
        let events = |node| (node, Events::new(life(node, 1), settings.clone()));
        let mut world = World {
            now: Time::from_nanos(1),
            nodes: (1..=nodes).map(events).collect(),
            flying: VecDeque::new(),
            orders: Vec::new(),
            settled: Vec::new(),
            refused: Vec::new(),
            provisioned: Vec::new(),
            cut: BTreeSet::new(),
        };
        let all: Vec<u128> = world.nodes.keys().copied().collect();
        for node in &all {
            world.install(*node, &all);
        }
        world
    }

    fn life_of(&self, node: u128) -> Life {
        self.nodes[&node].me
    }

    fn install(&mut self, node: u128, members: &[u128]) {
        let members = members.iter().map(|member| {
            let Life { node, incarnation } =
                self.nodes.get(member).map_or(life(*member, 1), |events| events.me);
            (node, incarnation)
        });
        let members = members.collect();
        self.step(node, Input::Members(members));
    }

    fn step(&mut self, node: u128, input: Input) {
        let mut out = Batch::default();
        self.nodes.get_mut(&node).unwrap().step(self.now, input, &mut out);
        self.carry_out(node, out);
    }

    fn carry_out(&mut self, node: u128, out: Batch) {
        let from = self.life_of(node);
        self.flying.extend(out.send.into_iter().map(|(to, message)| (from, to, message)));
        self.orders.extend(out.producers.into_iter().map(|order| (node, order)));
        self.settled.extend(out.settled.into_iter().map(|id| (node, id)));
        self.refused.extend(out.refused.into_iter().map(|(_, refusal)| refusal));
        self.provisioned.extend(out.provisioned.then_some(from));
    }

    /// Delivers everything, by way of its bytes.
    fn settle(&mut self) {
        let mut budget = 100_000;
        while let Some((from, to, message)) = self.flying.pop_front() {
            budget -= 1;
            assert!(budget > 0, "messages without end");
            let node = to.node.0;
            if self.cut.contains(&node) || self.cut.contains(&from.node.0) {
                continue;
            }
            if self.nodes.get(&node).is_none_or(|events| events.me != to) {
                continue;
            }
            let bytes = message.encode();
            let message = Message::decode(&bytes).unwrap();
            self.step(node, Input::Received { from, message });
        }
    }

    /// Lets time go by; everything that is sent meanwhile arrives at once.
    fn wait(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            self.settle();
            let next = self.nodes.iter().filter_map(|(node, events)| Some((events.deadline()?, *node))).min();
            let Some((at, node)) = next.filter(|(at, _)| *at <= until) else { break };
            self.now = self.now.max(at);
            self.step(node, Input::Deadline);
            assert!(self.nodes[&node].deadline().is_none_or(|deadline| deadline > self.now));
        }
        self.now = until;
    }

    fn register(&mut self, node: u128, id: u64, interest: Interest) {
        self.step(node, Input::Register { id: ConsumerId(id), interest });
        self.settle();
    }

    fn leave(&mut self, node: u128, id: u64) {
        self.step(node, Input::Leave { id: ConsumerId(id) });
        self.settle();
    }

    /// Something happens on a node, if its producer is active.
    fn happen(&mut self, node: u128, topic: &Topic, number: i64) {
        self.step(node, Input::Happened(vec![(topic.clone(), occurrence(number))]));
        self.settle();
    }

    fn take(&mut self, node: u128, id: u64) -> String {
        let mut all = Vec::new();
        loop {
            let some = self.take_some(node, id, 7);
            if some.is_empty() {
                return told(&all);
            }
            all.extend(some);
            self.settle();
        }
    }

    fn take_some(&mut self, node: u128, id: u64, max: usize) -> Vec<Delivery> {
        let mut out = Batch::default();
        let some = self.nodes.get_mut(&node).unwrap().take(self.now, ConsumerId(id), max, &mut out);
        self.carry_out(node, out);
        some
    }

    fn status(&self, node: u128, topic: &Topic) -> TopicStatus {
        self.nodes[&node].topic_status(topic).unwrap()
    }

    fn orders(&mut self) -> Vec<(u128, Order)> {
        std::mem::take(&mut self.orders)
    }

    fn is_active(&self, topic: &Topic) -> Vec<u128> {
        let active = self.nodes.iter().filter(|(_, events)| events.is_active(topic));
        active.map(|(node, _)| *node).collect()
    }
}

fn from(node: u128, topic: &Topic) -> Interest {
    Interest { scope: Scope::Node(NodeId(node)), ..Interest::local(topic.clone()) }
}

#[test]
fn a_producer_is_active_exactly_while_somebody_listens_and_the_listener_steps_back() {
    let (mut world, topic) = (World::new(2), topic("disk.usage"));
    assert!(world.is_active(&topic).is_empty());
    world.register(2, 1, from(1, &topic));
    assert_eq!(world.orders(), [(1, Order::Activate(topic.clone()))]);
    assert_eq!(world.settled, [(2, ConsumerId(1))]);
    let status = world.status(1, &topic);
    assert_eq!((status.listener, status.consumers, status.active), (Listener::Registered, 0, true));
    world.happen(1, &topic, 1);
    world.register(1, 1, Interest::local(topic.clone()));
    assert_eq!(world.status(1, &topic).listener, Listener::Observing); // EV2
    world.happen(1, &topic, 2);
    world.leave(1, 1);
    assert_eq!(world.status(1, &topic).listener, Listener::Registered);
    world.happen(1, &topic, 3);
    assert_eq!(world.orders(), [], "the producer never stops");
    assert_eq!(world.take(2, 1), "1.1 1.2 1.3");
    world.leave(2, 1);
    assert_eq!(world.orders(), [(1, Order::Deactivate(topic.clone()))]);
    assert_eq!(world.status(1, &topic).listener, Listener::Off);
}

#[test]
fn a_registration_of_the_whole_cluster_activates_producers_everywhere() {
    for variant in [Variant::Replicated, Variant::Selective] {
        let (mut world, topic) = (World::new(4), topic("node.suspected"));
        world.register(2, 1, Interest::cluster(topic.clone(), variant));
        assert_eq!(world.is_active(&topic), [1, 2, 3, 4]);
        let listener = if variant == Variant::Replicated { Listener::Off } else { Listener::Registered };
        assert_eq!(world.status(1, &topic).listener, listener);
        for node in 1..=4 {
            world.happen(node, &topic, 1);
        }
        assert_eq!(world.take(2, 1), "1.1 2.1 3.1 4.1");
        world.leave(2, 1);
        assert!(world.is_active(&topic).is_empty());
    }
}

#[test]
fn events_of_a_local_interest_stay_where_they_are() {
    let (mut world, topic) = (World::new(2), topic("user.secret"));
    world.register(1, 1, Interest::local(topic.clone()));
    world.step(1, Input::Happened(vec![(topic.clone(), occurrence(1))]));
    assert!(world.flying.is_empty()); // EV4
    assert_eq!(world.is_active(&topic), [1]);
}

#[test]
fn the_registrations_of_a_dead_subscriber_end() {
    let (mut world, topic) = (World::new(2), topic("disk.usage"));
    world.register(2, 1, from(1, &topic));
    world.wait(Duration::from_secs(60));
    assert_eq!(world.is_active(&topic), [1], "it is renewed");
    world.cut.insert(2);
    world.wait(Duration::from_secs(16));
    assert!(world.is_active(&topic).is_empty());
    world.cut.clear();
    world.wait(Duration::from_secs(6));
    assert_eq!(world.is_active(&topic), [1], "it registers again");
    assert_eq!(world.take(2, 1), "1.[1-1 Unwatched]", "and is told that nobody watched"); // EV5
    world.install(1, &[1]);
    assert!(world.is_active(&topic).is_empty(), "at once when the view says so");
}

#[test]
fn a_lease_that_never_ended_would_be_seen() {
    crate::flaw::plant(Some(crate::flaw::Flaw::EventsEndlessLease));
    let (mut world, topic) = (World::new(2), topic("disk.usage"));
    world.register(2, 1, from(1, &topic));
    world.cut.insert(2);
    world.wait(Duration::from_secs(600));
    assert_eq!(world.is_active(&topic), [1]);
    crate::flaw::plant(None);
}

#[test]
fn a_joining_node_has_what_the_cluster_wants_before_it_is_up() {
    let (mut world, topic) = (World::new(2), topic("container.failed"));
    world.register(2, 1, Interest::cluster(topic.clone(), Variant::Replicated));
    world.nodes.insert(3, Events::new(life(3, 1), Settings::default()));
    world.install(3, &[1, 2]);
    assert_eq!(world.provisioned, []);
    world.settle();
    assert_eq!(world.provisioned, [life(3, 1)]);
    assert_eq!(world.is_active(&topic), [1, 2, 3]);
    world.happen(3, &topic, 1);
    for node in 1..=3 {
        world.install(node, &[1, 2, 3]);
    }
    world.settle();
    world.happen(3, &topic, 2);
    assert_eq!(world.take(2, 1), "3.1 3.2", "its first event is not missed");
    assert_eq!(world.status(3, &topic).replicated, [NodeId(2)]);
}

#[test]
fn a_joining_node_asks_somebody_else_and_goes_on_to_ask_while_it_waits() {
    let (mut world, topic) = (World::new(3), topic("container.failed"));
    let mut topics = Vec::new();
    for number in 0..1_000 {
        let about = BTreeMap::from([("container".to_owned(), format!("{number:0>100}"))]);
        topics.push(Topic { about, ..topic.clone() });
        let interest = Interest::cluster(topics[number].clone(), Variant::Replicated);
        world.register(3, u64::try_from(number).unwrap(), interest);
    }
    world.cut.insert(1);
    world.nodes.insert(4, Events::new(life(4, 1), Settings::default()));
    world.install(4, &[1, 2, 3]);
    world.settle();
    assert_eq!(world.provisioned, [], "nobody answers");
    world.wait(Duration::from_secs(2));
    assert_eq!(world.provisioned, [life(4, 1)]);
    assert!(topics.iter().all(|topic| world.nodes[&4].is_active(topic)), "in several messages");
    world.cut.clear();
    world.wait(Duration::from_secs(60));
    assert!(world.nodes[&4].is_active(&topics[7]), "what it has does not end while it waits");
    world.install(4, &[1, 2, 3, 4]);
    world.wait(Duration::from_secs(60));
    assert_eq!(world.nodes[&4].deadline(), None, "nobody who counts it as a member renews them");
}

#[test]
fn whoever_is_refused_is_told_why_and_once() {
    let settings = Settings { registrations_max: 1, ..Settings::default() };
    let mut world = World::with(2, &settings);
    let (first, second) = (topic("disk.usage"), topic("file.change"));
    world.register(2, 1, from(1, &first));
    world.register(2, 2, from(1, &second));
    assert_eq!(world.take(2, 2), "1.refused(TooManyRegistrations)");
    world.wait(Duration::from_secs(30));
    assert_eq!(world.take(2, 2), "", "it was asked again, and nothing has changed");
    world.step(2, Input::Leave { id: ConsumerId(1) });
    world.wait(Duration::from_secs(30));
    world.happen(1, &second, 1);
    assert_eq!(world.take(2, 2), "1.1");
    world.orders();

    // What the producer can't do is told to all, and tried again for whoever comes next.
    let why = "no such path".repeat(100);
    world.step(1, Input::Unwatchable { topic: second.clone(), why });
    world.settle();
    let told = world.take(2, 2);
    assert!(told.starts_with("1.[2-2 Unwatchable(\"no such path") && told.len() < 600, "{told}");
    world.register(1, 3, Interest::local(second.clone()));
    assert_eq!(world.orders(), [(1, Order::Activate(second.clone()))]);
    world.happen(1, &second, 2);
    assert_eq!((world.take(1, 3), world.take(2, 2)), ("1.3".to_owned(), "1.3".to_owned()));
}

#[test]
fn levels_are_told_again_for_whoever_comes_late() {
    let (mut world, topic) = (World::new(2), topic("disk.usage"));
    let level = |interest: Interest| Interest { nature: Nature::Level, ..interest };
    world.register(2, 1, level(from(1, &topic)));
    assert_eq!(world.orders(), [(1, Order::Activate(topic.clone()))]);
    let again = [(1, Order::Reannounce(topic.clone()))];
    world.register(2, 2, level(from(1, &topic)));
    assert_eq!(world.orders(), again);
    world.register(1, 1, level(Interest::local(topic.clone())));
    assert_eq!(world.orders(), again);
    world.register(1, 2, Interest::local(topic.clone()));
    assert_eq!(world.orders(), [], "what only happens has no present level");
    world.happen(1, &topic, 1);
    for (node, id) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        assert_eq!(world.take(node, id), "1.1");
    }
}

#[test]
fn bounds_are_answered_with_refusals_and_numbers_are_never_used_twice() {
    let settings = Settings { consumers_max: 2, topics_max: 1, ..Settings::default() };
    let (mut world, one, two) = (World::with(2, &settings), topic("user.one"), topic("user.two"));
    world.register(1, 1, Interest::local(one.clone()));
    world.register(1, 1, Interest::local(one.clone()));
    world.register(1, 2, Interest::local(two.clone()));
    assert_eq!(world.refused, [Refusal::SameId, Refusal::TooManyTopics]);
    world.register(2, 1, from(1, &two));
    assert!(matches!(world.nodes[&2].status().streams[0].state, StreamState::Refused(_)));
    world.happen(1, &one, 1);
    world.leave(1, 1);
    world.wait(Duration::from_secs(6));
    assert_eq!(world.is_active(&two), [1], "there is room now");
    world.happen(1, &two, 1);
    assert_eq!(world.take(2, 1), "1.refused(TooManyTopics) 1.2");
}
