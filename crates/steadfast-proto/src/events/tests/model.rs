//! EV1, EV2, EV3 and EV5 in every interleaving of a small world, over the very step function that nodes run.
//!
//! A subscriber on one node follows a topic of another; there a local consumer comes and goes, and things happen.
//! Messages overtake each other and get lost; after a loss, and when all
//! is quiet too early, the connection is made again, which repeats what the retry timer would. Producers carry orders out one
//! by one, so that something may happen between two of them: that is what a careless hand-over loses.

use std::collections::VecDeque;

use stateright::{Checker, Model, Property};

use super::*;
use crate::flaw::{Flaw, plant};

const SOURCE: u128 = 1;
const SUBSCRIBER: u128 = 2;

#[derive(Clone, Copy)]
struct Bounds {
    happenings: u8,
    /// How often the local consumer comes.
    visits: u8,
    losses: u8,
    variant: Variant,
    flaw: Option<Flaw>,
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct State {
    source: Events,
    subscriber: Events,
    /// A bag: to whom, and the bytes.
    flying: Vec<(u128, Vec<u8>)>,
    /// What the producer has yet to carry out.
    orders: VecDeque<bool>,
    active: bool,
    was_active: bool,
    happened: u8,
    visits: u8,
    /// The visitor and the number of the last event it was told, once it was told one.
    visitor: Option<(ConsumerId, u64)>,
    losses: u8,
    /// Something was lost, and the connection was not made again since.
    broken: bool,
    /// How much the subscriber was told, and what was lost, when the connection was made again at rest.
    rested: Option<(u64, u8)>,
    /// How many events the subscriber was told.
    told: u64,
    violation: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Happen,
    CarryOut,
    Come,
    Go,
    Deliver(usize),
    Lose(usize),
    Reconnect,
}

impl State {
    fn step(&mut self, node: u128, input: Input) {
        let mut out = Batch::default();
        let events = if node == SOURCE { &mut self.source } else { &mut self.subscriber };
        events.step(Time::ZERO, input, &mut out);
        self.flying.extend(out.send.into_iter().map(|(to, message)| (to.node.0, message.encode())));
        self.flying.sort_unstable();
        for order in out.producers.into_iter().filter(|_| node == SOURCE) {
            match order {
                Order::Activate(_) => self.orders.push_back(true),
                Order::Deactivate(_) => self.orders.push_back(false),
                Order::Reannounce(_) => {}
            }
        }
        if !self.was_active && self.orders.pop_front().is_some() {
            (self.active, self.was_active) = (true, true); // the story begins when the producer is up
        }
        self.take();
        self.check();
    }

    fn take(&mut self) {
        let mut out = Batch::default();
        for delivery in self.subscriber.take(Time::ZERO, ConsumerId(1), 100, &mut out) {
            match delivery {
                Delivery::Event(event) if event.seq == self.told + 1 => self.told += 1,
                Delivery::Event(event) if event.seq <= self.told => self.violation = Some("EV3"),
                Delivery::Event(_) => self.violation = Some("EV5"),
                Delivery::Gap(_)
                | Delivery::SourceRestarted(_)
                | Delivery::SourceDown(_)
                | Delivery::SourceRefused(..) => {
                    self.violation = Some("the hand-over left a gap");
                }
            }
        }
        let Some((id, mut last)) = self.visitor else { return };
        for delivery in self.source.take(Time::ZERO, id, 100, &mut out) {
            match delivery {
                Delivery::Event(event) if last == 0 || event.seq == last + 1 => last = event.seq,
                Delivery::Event(_) => self.violation = Some("EV5 for the visitor"),
                Delivery::Gap(_)
                | Delivery::SourceRestarted(_)
                | Delivery::SourceDown(_)
                | Delivery::SourceRefused(..) => {
                    self.violation = Some("a gap for the visitor");
                }
            }
        }
        self.visitor = Some((id, last));
    }

    /// Nothing is under way, and the subscriber was not told everything: something was lost or overtaken.
    fn is_short(&self) -> bool {
        self.flying.is_empty() && self.told < u64::from(self.happened)
    }

    fn check(&mut self) {
        let Some(status) = self.source.topic_status(&topic("user.tick")) else { return };
        let has_own = status.consumers > 0 || !status.replicated.is_empty();
        if status.active != (has_own || status.listener == Listener::Registered) {
            self.violation = Some("EV1");
        }
        if status.listener == Listener::Registered && has_own {
            self.violation = Some("EV2");
        }
    }
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        plant(self.flaw);
        let settings = Settings { acknowledge_events: 1, ..Settings::default() };
        let events = |node| Events::new(life(node, 1), settings.clone());
        let mut state = State {
            source: events(SOURCE),
            subscriber: events(SUBSCRIBER),
            flying: Vec::new(),
            orders: VecDeque::new(),
            active: false,
            was_active: false,
            happened: 0,
            visits: 0,
            visitor: None,
            losses: 0,
            broken: false,
            rested: None,
            told: 0,
            violation: None,
        };
        let members = BTreeMap::from([SOURCE, SUBSCRIBER].map(|node| (NodeId(node), Incarnation(1))));
        for node in [SOURCE, SUBSCRIBER] {
            state.step(node, Input::Members(members.clone()));
        }
        let interest = match self.variant {
            Variant::Selective => from(SOURCE, &topic("user.tick")),
            Variant::Replicated => Interest::cluster(topic("user.tick"), self.variant),
        };
        state.step(SUBSCRIBER, Input::Register { id: ConsumerId(1), interest });
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.was_active && state.happened < self.happenings {
            actions.push(Action::Happen);
        }
        if !state.orders.is_empty() {
            actions.push(Action::CarryOut);
        }
        if state.visitor.is_some() {
            actions.push(Action::Go);
        } else if state.visits < self.visits && state.was_active {
            actions.push(Action::Come);
        }
        for index in 0..state.flying.len() {
            if index > 0 && state.flying[index] == state.flying[index - 1] {
                continue;
            }
            actions.push(Action::Deliver(index));
            if state.losses < self.losses {
                actions.push(Action::Lose(index));
            }
        }
        if state.broken || state.is_short() {
            actions.push(Action::Reconnect);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        plant(self.flaw); // the search runs in threads of its own
        let mut state = last.clone();
        match action {
            Action::Happen => {
                state.happened += 1;
                if state.active {
                    let what = occurrence(i64::from(state.happened));
                    state.step(SOURCE, Input::Happened(vec![(topic("user.tick"), what)]));
                } else {
                    state.violation = Some("the producer was off during a hand-over");
                }
            }
            Action::CarryOut => state.active = state.orders.pop_front()?,
            Action::Come => {
                state.visits += 1;
                let id = ConsumerId(100 + u64::from(state.visits));
                state.visitor = Some((id, 0));
                let interest = Interest::local(topic("user.tick"));
                state.step(SOURCE, Input::Register { id, interest });
            }
            Action::Go => {
                let (id, _) = state.visitor.take()?;
                state.step(SOURCE, Input::Leave { id });
            }
            Action::Deliver(index) => {
                let (to, bytes) = state.flying.remove(index);
                let from = life(if to == SOURCE { SUBSCRIBER } else { SOURCE }, 1);
                let message = Message::decode(&bytes).expect("what a node sends can be read");
                state.step(to, Input::Received { from, message });
            }
            Action::Lose(index) => {
                state.flying.remove(index);
                (state.losses, state.broken) = (state.losses + 1, true);
            }
            Action::Reconnect => {
                state.broken = false;
                if state.is_short() {
                    let rested = Some((state.told, state.losses));
                    if state.rested == rested {
                        state.violation = Some("EV5: what was overtaken or lost never comes");
                    }
                    state.rested = rested;
                }
                state.step(SOURCE, Input::Reconnected(NodeId(SUBSCRIBER)));
                state.step(SUBSCRIBER, Input::Reconnected(NodeId(SOURCE)));
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("EV1, EV2, EV3, EV5", |_, state: &State| state.violation.is_none()),
            Property::sometimes("everything is told", |model: &Bounds, state: &State| {
                state.told == u64::from(model.happenings) && state.visits == model.visits
            }),
        ]
    }
}

/// The states that there are, and what is wrong with one of them.
fn explore(bounds: Bounds) -> (usize, Option<&'static str>) {
    let checker = bounds.checker().threads(2).spawn_bfs().join();
    let broken = checker.discoveries().iter().find_map(|(name, path)| {
        let state = path.last_state();
        (*name != "everything is told").then(|| state.violation.unwrap_or("unknown"))
    });
    if broken.is_none() {
        checker.assert_properties();
    }
    (checker.unique_state_count(), broken)
}

const SMALL: Bounds = Bounds { happenings: 3, visits: 2, losses: 1, variant: Variant::Selective, flaw: None };

#[test]
fn no_interleaving_of_a_hand_over_leaves_a_gap() {
    for variant in [Variant::Selective, Variant::Replicated] {
        let (states, broken) = explore(Bounds { variant, ..SMALL });
        println!("{variant:?}: {states} states");
        assert_eq!(broken, None);
        assert!(states > 10_000, "{states}");
    }
}

#[test]
fn a_listener_that_lets_go_first_is_found_out() {
    let (_, broken) =
        explore(Bounds { happenings: 2, visits: 1, flaw: Some(Flaw::EventsGapInHandOver), ..SMALL });
    println!("{broken:?}");
    assert!(broken.is_some());
}
