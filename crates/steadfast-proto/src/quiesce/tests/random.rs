//! A random world of up to six participants: loss, duplication, delay, a coordinator that dies, time that passes.
//!
//! Whenever the coordinator is believed, an omniscient look finds nothing in flight (Q1); whoever it no longer reaches
//! lets go within the lease.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::*;
use super::member;
use crate::machine::Machine;
use crate::time::Time;

#[derive(Clone, Debug)]
enum Act {
    Generate { node: usize, to: usize, leads_to: u8 },
    Deliver { index: usize },
    Lose { index: usize },
    Double { index: usize },
    Wait { ms: u64 },
    Begin,
    Release,
    Kill,
}

#[derive(Clone, Debug)]
enum Flying {
    /// The pair channel of PROTOCOLS 0.2 delivers each once; it only delays and reorders.
    Relevant {
        from: usize,
        to: usize,
        leads_to: u8,
    },
    Protocol {
        from: usize,
        to: usize,
        message: Message,
    },
}

struct World {
    now: Time,
    participants: Vec<Participant>,
    coordinator: Option<Coordinator>,
    dead: bool,
    number: u64,
    flying: Vec<Flying>,
}

const RETRY: Duration = Duration::from_millis(50);
const LEASE: Duration = Duration::from_millis(400);

impl World {
    fn scope(&self) -> BTreeSet<Member> {
        (1..=self.participants.len() as u128).map(member).collect()
    }

    fn coordinate(&mut self, input: CoordinatorInput) {
        let mut out = Batch::default();
        let Some(coordinator) = &mut self.coordinator else { return };
        coordinator.step(self.now, input, &mut out);
        for (to, message) in out.send {
            self.flying.push(Flying::Protocol { from: 0, to: place(to), message });
        }
    }

    fn participate(&mut self, node: usize, input: ParticipantInput) {
        let mut out = Batch::default();
        self.participants[node].step(self.now, input, &mut out);
        for (to, message) in out.send {
            self.flying.push(Flying::Protocol { from: node, to: place(to), message });
        }
    }

    fn deliver(&mut self, flying: Flying) {
        match flying {
            Flying::Relevant { from, to, leads_to } => {
                self.participants[to].received(id(from));
                if leads_to > 0 {
                    let on = (to + 1) % self.participants.len();
                    self.participants[to].sent(id(on));
                    self.flying.push(Flying::Relevant { from: to, to: on, leads_to: leads_to - 1 });
                }
                self.participants[to].processed(id(from));
                self.participate(to, ParticipantInput::Progressed);
            }
            Flying::Protocol { from, message, .. } if message.is_for_coordinator() => {
                let from = member(from as u128 + 1);
                self.coordinate(CoordinatorInput::Received { from, message });
            }
            Flying::Protocol { from, to, message } => {
                let from = member(from as u128 + 1);
                self.participate(to, ParticipantInput::Received { from, message });
            }
        }
    }

    fn act(&mut self, act: Act) {
        let count = self.participants.len();
        match act {
            Act::Generate { node, to, leads_to } => {
                let (node, to) = (node % count, to % count);
                if node != to && self.participants[node].may_generate() {
                    self.participants[node].sent(id(to));
                    self.flying.push(Flying::Relevant { from: node, to, leads_to });
                }
            }
            Act::Deliver { index } => {
                if !self.flying.is_empty() {
                    let flying = self.flying.remove(index % self.flying.len());
                    self.deliver(flying);
                }
            }
            Act::Lose { index } => {
                let protocol = |flying: &Flying| matches!(flying, Flying::Protocol { .. });
                if let Some(at) = self.flying.iter().skip(index % 7).position(protocol) {
                    self.flying.remove(at + index % 7);
                }
            }
            Act::Double { index } => {
                if let Some(Flying::Protocol { from, to, message }) = self.flying.get(index % count).cloned()
                {
                    self.flying.push(Flying::Protocol { from, to, message });
                }
            }
            Act::Wait { ms } => self.wait(Duration::from_millis(ms)),
            Act::Begin => {
                if self.coordinator.is_none() {
                    self.number += 1;
                    let id = QuiesceId { initiator: member(1), number: self.number };
                    let settings = Settings { retry: RETRY, lease: LEASE, ..Settings::default() };
                    let coordinator =
                        Coordinator::new(settings, id, ViewId(1), self.scope(), BTreeSet::new());
                    self.coordinator = Some(coordinator);
                    self.coordinate(CoordinatorInput::Begin);
                }
            }
            Act::Release => {
                self.coordinate(CoordinatorInput::Release);
                self.coordinator = None;
            }
            Act::Kill => {
                self.coordinator = None;
                self.dead = true;
            }
        }
    }

    fn wait(&mut self, duration: Duration) {
        self.now = self.now + duration;
        if self.coordinator.as_ref().and_then(Machine::deadline).is_some_and(|deadline| deadline <= self.now)
        {
            self.coordinate(CoordinatorInput::Deadline);
            let deadline = self.coordinator.as_ref().and_then(Machine::deadline);
            assert!(deadline.is_none_or(|deadline| deadline > self.now));
        }
        for node in 0..self.participants.len() {
            self.participate(node, ParticipantInput::Deadline);
            assert!(self.participants[node].deadline().is_none_or(|deadline| deadline > self.now));
        }
    }

    /// Q1, as long as the coordinator may be believed.
    fn check(&self) {
        let Some(coordinator) = &self.coordinator else { return };
        if coordinator.valid_until().is_none_or(|until| until <= self.now) {
            return;
        }
        let relevant = self.flying.iter().find(|flying| matches!(flying, Flying::Relevant { .. }));
        assert!(relevant.is_none(), "quiesced with {relevant:?}");
        assert!(self.participants.iter().all(|participant| !participant.may_generate()));
    }
}

fn place(member: Member) -> usize {
    usize::try_from(member.node.0 - 1).expect("small")
}

fn id(node: usize) -> NodeId {
    NodeId(node as u128 + 1)
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..6usize, 0..6usize, 0..4u8).prop_map(|(node, to, leads_to)| Act::Generate { node, to, leads_to }),
        24 => (0..64usize).prop_map(|index| Act::Deliver { index }),
        1 => (0..64usize).prop_map(|index| Act::Lose { index }),
        1 => (0..64usize).prop_map(|index| Act::Double { index }),
        4 => (1..120u64).prop_map(|ms| Act::Wait { ms }),
        2 => Just(Act::Begin),
        1 => Just(Act::Release),
        1 => Just(Act::Kill),
    ];
    proptest::collection::vec(act, 20..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_is_believed_is_right_and_nobody_is_held_for_ever(nodes in 2..=6u128, acts in acts()) {
        let scope: BTreeSet<Member> = (1..=nodes).map(member).collect();
        let participants = scope.iter().map(|one| Participant::new(*one, ViewId(1), &scope)).collect();
        let (coordinator, flying) = (None, Vec::new());
        let mut world =
            World { now: Time::ZERO, participants, coordinator, dead: false, number: 0, flying };
        for act in acts {
            if !matches!(act, Act::Begin) || !world.dead {
                world.act(act);
            }
            world.check();
        }
        // The coordinator dies. Whatever is still under way arrives; then the lease runs out.
        world.act(Act::Kill);
        while !world.flying.is_empty() {
            world.act(Act::Deliver { index: 0 });
        }
        world.wait(LEASE);
        prop_assert!(world.participants.iter().all(Participant::may_generate)); // QL2
    }
}
