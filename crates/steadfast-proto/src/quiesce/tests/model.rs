//! Every interleaving of small worlds, by breadth-first search over the very step functions that nodes run.
//!
//! Channels are bags: any message may overtake any other. Handlers run beside each other and send before they end;
//! some messages lead to one more. The property is Q1: while the coordinator says quiesced, nothing relevant that
//! will be processed is in flight, queued or running, and nobody generates. Each planted flaw must break it.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};

use super::super::*;
use super::member;
use crate::flaw::{Flaw, plant};
use crate::machine::Machine;
use crate::time::Time;

#[derive(Clone, Copy)]
struct Bounds {
    nodes: u128,
    /// Relevant messages that nodes create of their own accord, altogether.
    spontaneous: u8,
    /// How many messages one message leads to, one after the other.
    depth: u8,
    /// Whether one member, not the coordinator, may crash and be fenced.
    crash: bool,
}

/// A relevant message on its way, queued or being handled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Relevant {
    from: u128,
    to: u128,
    leads_to: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Flying {
    Relevant(Relevant),
    Protocol { from: u128, to: u128, message: Message },
}

/// A handler: of a message, or of an own operation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Handler {
    node: u128,
    of: Option<u128>,
    /// Whether it still has to send, to whom, and what that leads to.
    sends: Option<(u128, u8)>,
}

#[derive(Clone, Hash)]
struct State {
    participants: Vec<Participant>,
    coordinator: Option<Coordinator>,
    flying: Vec<Flying>,
    queued: Vec<Relevant>,
    handlers: Vec<Handler>,
    spontaneous_left: u8,
    crashed: Option<u128>,
}

pub(super) struct Explored {
    states: usize,
    quiesced: usize,
    rounds_max: u32,
    violation: Option<String>,
}

impl State {
    fn new(bounds: Bounds) -> State {
        let scope: BTreeSet<Member> = (1..=bounds.nodes).map(member).collect();
        let participants = scope.iter().map(|one| Participant::new(*one, ViewId(1), &scope)).collect();
        State {
            participants,
            coordinator: None,
            flying: Vec::new(),
            queued: Vec::new(),
            handlers: Vec::new(),
            spontaneous_left: bounds.spontaneous,
            crashed: None,
        }
    }

    fn at(&mut self, node: u128) -> &mut Participant {
        &mut self.participants[usize::try_from(node - 1).expect("small")]
    }

    fn fingerprint(&mut self) -> u64 {
        self.flying.sort_unstable();
        self.queued.sort_unstable();
        self.handlers.sort_unstable();
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    fn coordinate(&mut self, input: CoordinatorInput) {
        let mut out = Batch::default();
        let Some(coordinator) = &mut self.coordinator else { return };
        coordinator.step(Time::ZERO, input, &mut out);
        let sent =
            out.send.into_iter().map(|(to, message)| Flying::Protocol { from: 1, to: to.node.0, message });
        self.flying.extend(sent);
    }

    fn participate(&mut self, node: u128, input: ParticipantInput) {
        let mut out = Batch::default();
        self.at(node).step(Time::ZERO, input, &mut out);
        let sent =
            out.send.into_iter().map(|(to, message)| Flying::Protocol { from: node, to: to.node.0, message });
        self.flying.extend(sent);
    }

    fn begin(&mut self, nodes: u128, number: u64) {
        let gone: BTreeSet<Member> = self.crashed.into_iter().map(member).collect();
        let scope = (1..=nodes).map(member).filter(|one| !gone.contains(one)).collect();
        let id = QuiesceId { initiator: member(1), number };
        self.coordinator = Some(Coordinator::new(Settings::default(), id, ViewId(1), scope, gone));
        self.coordinate(CoordinatorInput::Begin);
    }

    /// Every state that one event leads to.
    fn successors(&self, bounds: Bounds) -> Vec<State> {
        let mut next = Vec::new();
        let living = (1..=bounds.nodes).filter(|node| self.crashed != Some(*node));
        for node in living.clone() {
            for to in (1..=bounds.nodes).filter(|to| *to != node) {
                let mut state = self.clone();
                if self.spontaneous_left > 0 && state.at(node).may_generate() {
                    state.spontaneous_left -= 1;
                    state.at(node).began();
                    state.handlers.push(Handler { node, of: None, sends: Some((to, bounds.depth)) });
                    next.push(state);
                }
            }
        }
        if self.coordinator.is_none() {
            let mut state = self.clone();
            state.begin(bounds.nodes, 1);
            next.push(state);
        }
        if bounds.crash && self.crashed.is_none() {
            for node in 2..=bounds.nodes {
                next.push(self.after_crash(bounds, node));
            }
        }
        self.deliver(&mut next);
        self.dequeue(&mut next);
        self.run_handlers(bounds, &mut next);
        next
    }

    fn after_crash(&self, bounds: Bounds, node: u128) -> State {
        let mut state = self.clone();
        state.crashed = Some(node);
        state.queued.retain(|message| message.to != node);
        state.handlers.retain(|handler| handler.node != node);
        let lost = |flying: &Flying| match flying {
            Flying::Relevant(relevant) => relevant.to == node,
            Flying::Protocol { to, .. } => *to == node,
        };
        state.flying.retain(|flying| !lost(flying));
        if state.coordinator.is_some() {
            state.coordinate(CoordinatorInput::Gone(member(node)));
            let number = state.coordinator.as_ref().map_or(1, |coordinator| coordinator.id().number + 1);
            state.begin(bounds.nodes, number);
            state.flying.retain(|flying| !lost(flying));
        }
        state
    }

    fn deliver(&self, next: &mut Vec<State>) {
        for (index, flying) in self.flying.iter().enumerate() {
            let mut state = self.clone();
            state.flying.remove(index);
            match flying.clone() {
                Flying::Relevant(relevant) => {
                    if !state.at(relevant.to).admits(member(relevant.from)) {
                        next.push(state);
                        continue;
                    }
                    state.at(relevant.to).received(NodeId(relevant.from));
                    let to = relevant.to;
                    state.queued.push(relevant);
                    state.participate(to, ParticipantInput::Progressed);
                }
                Flying::Protocol { from, to, message } if message.is_for_coordinator() => {
                    debug_assert_eq!(to, 1);
                    state.coordinate(CoordinatorInput::Received { from: member(from), message });
                }
                Flying::Protocol { from, to, message } => {
                    state.participate(to, ParticipantInput::Received { from: member(from), message });
                }
            }
            next.push(state);
        }
    }

    fn dequeue(&self, next: &mut Vec<State>) {
        for (index, relevant) in self.queued.iter().enumerate() {
            let mut state = self.clone();
            state.queued.remove(index);
            let sends = (relevant.leads_to > 0).then(|| (relevant.from, relevant.leads_to - 1));
            state.handlers.push(Handler { node: relevant.to, of: Some(relevant.from), sends });
            next.push(state);
        }
    }

    fn run_handlers(&self, bounds: Bounds, next: &mut Vec<State>) {
        for (index, handler) in self.handlers.iter().enumerate() {
            let node = handler.node;
            if let Some((to, leads_to)) = handler.sends {
                // A derived message goes on to the third node where there is one.
                let derived = (1..=bounds.nodes).find(|other| *other != node && *other != to);
                let to = if handler.of.is_some() { derived.unwrap_or(to) } else { to };
                let mut state = self.clone();
                state.handlers[index].sends = None;
                state.at(node).sent(NodeId(to));
                if self.crashed != Some(to) {
                    state.flying.push(Flying::Relevant(Relevant { from: node, to, leads_to }));
                }
                next.push(state);
                continue;
            }
            let mut state = self.clone();
            state.handlers.remove(index);
            match handler.of {
                Some(from) => state.at(node).processed(NodeId(from)),
                None => state.at(node).ended(),
            }
            state.participate(node, ParticipantInput::Progressed);
            next.push(state);
        }
    }

    /// What breaks Q1, if anything.
    fn violation(&self) -> Option<String> {
        let coordinator = self.coordinator.as_ref()?;
        if coordinator.phase() != Phase::Quiesced {
            return None;
        }
        // What a dead member sent is in flight for ever where the fence does its work.
        let counts =
            |relevant: &Relevant| self.crashed != Some(relevant.from) || self.would_process(relevant);
        let flying = self.flying.iter().find(|flying| match flying {
            Flying::Relevant(relevant) => counts(relevant),
            Flying::Protocol { .. } => false,
        });
        let generates = self
            .participants
            .iter()
            .zip(1..)
            .find(|(participant, node)| participant.may_generate() && self.crashed != Some(*node));
        if let Some(flying) = flying {
            return Some(format!("quiesced with {flying:?}"));
        }
        if !self.queued.is_empty() || !self.handlers.is_empty() {
            return Some(format!("quiesced with {:?} {:?}", self.queued, self.handlers));
        }
        generates.map(|(_, node)| format!("quiesced while {node} generates"))
    }

    fn would_process(&self, relevant: &Relevant) -> bool {
        let index = usize::try_from(relevant.to - 1).expect("small");
        self.participants[index].admits(member(relevant.from))
    }
}

fn explore(bounds: Bounds, states_max: usize) -> Explored {
    let mut first = State::new(bounds);
    let mut seen = BTreeSet::from([first.fingerprint()]);
    let mut queue = VecDeque::from([first]);
    let mut explored = Explored { states: 1, quiesced: 0, rounds_max: 0, violation: None };
    while let Some(state) = queue.pop_front() {
        for mut next in state.successors(bounds) {
            if !seen.insert(next.fingerprint()) {
                continue;
            }
            explored.states += 1;
            if let Some(coordinator) = &next.coordinator
                && coordinator.phase() == Phase::Quiesced
            {
                explored.quiesced += 1;
                explored.rounds_max = explored.rounds_max.max(coordinator.round());
            }
            if let Some(violation) = next.violation() {
                explored.violation = Some(violation);
                return explored;
            }
            queue.push_back(next);
        }
        assert!(explored.states <= states_max, "more than {states_max} states; {} wait", queue.len());
    }
    explored
}

const TWO: Bounds = Bounds { nodes: 2, spontaneous: 2, depth: 2, crash: false };
const THREE: Bounds = Bounds { nodes: 3, spontaneous: 1, depth: 1, crash: false };
const CRASHING: Bounds = Bounds { nodes: 3, spontaneous: 1, depth: 0, crash: true };

#[track_caller]
fn is_sound(bounds: Bounds) {
    let explored = explore(bounds, 3_000_000);
    println!(
        "{} nodes, {} spontaneous, depth {}: {} states, {} quiesced, at most {} rounds",
        bounds.nodes,
        bounds.spontaneous,
        bounds.depth,
        explored.states,
        explored.quiesced,
        explored.rounds_max
    );
    assert_eq!(explored.violation, None);
    assert!(explored.quiesced > 0);
    // QL1; a message that overtakes another costs one round more.
    assert!(explored.rounds_max <= u32::from(bounds.depth) + 3, "{} rounds", explored.rounds_max);
}

#[track_caller]
fn is_caught(flaw: Flaw, bounds: Bounds) {
    plant(Some(flaw));
    let explored = explore(bounds, 3_000_000);
    plant(None);
    println!("{flaw:?}: {:?} after {} states", explored.violation, explored.states);
    assert!(explored.violation.is_some(), "{flaw:?} passed {} states", explored.states);
}

#[test]
fn two_nodes_exhaustively() {
    is_sound(TWO);
}

#[test]
fn three_nodes_exhaustively() {
    is_sound(THREE);
}

#[test]
fn three_nodes_of_which_one_crashes_exhaustively() {
    is_sound(CRASHING);
}

#[test]
fn counting_at_delivery_is_caught() {
    is_caught(Flaw::QuiesceDoneAtDelivery, TWO);
}

#[test]
fn reporting_while_handlers_run_is_caught() {
    is_caught(Flaw::QuiesceBusyIgnored, TWO);
}

#[test]
fn not_waiting_for_what_is_under_way_is_caught() {
    is_caught(Flaw::QuiesceNeedsIgnored, TWO);
}

#[test]
fn a_late_baseline_is_caught() {
    is_caught(Flaw::QuiesceLateBaseline, THREE);
}

#[test]
fn a_dead_member_that_is_still_heard_is_caught() {
    is_caught(Flaw::QuiesceNoFence, CRASHING);
}
