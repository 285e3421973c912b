//! Scripts of a quiesce, a random world with loss and duplication, and the exhaustive exploration in `model`.

mod model;
mod random;

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::machine::Machine;
use crate::time::Time;

pub(super) fn member(node: u128) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(1) }
}

fn at(ms: u64) -> Time {
    Time::from_nanos(ms * 1_000_000)
}

/// One coordinator and its participants, with every message delivered at once and in order.
struct Table {
    coordinator: Coordinator,
    participants: Vec<(Member, Participant)>,
    messages: usize,
    events: Vec<Event>,
}

impl Table {
    fn new(nodes: u128, settings: Settings) -> Table {
        let scope: BTreeSet<Member> = (1..=nodes).map(member).collect();
        let id = QuiesceId { initiator: member(1), number: 1 };
        let participants =
            scope.iter().map(|one| (*one, Participant::new(*one, ViewId(1), &scope))).collect();
        let coordinator = Coordinator::new(settings, id, ViewId(1), scope, BTreeSet::new());
        Table { coordinator, participants, messages: 0, events: Vec::new() }
    }

    fn participant(&mut self, node: u128) -> &mut Participant {
        &mut self.participants.iter_mut().find(|(one, _)| one.node == NodeId(node)).expect("it is there").1
    }

    fn coordinate(&mut self, now: Time, input: CoordinatorInput) {
        let mut out = Batch::default();
        self.coordinator.step(now, input, &mut out);
        self.events.append(&mut out.events);
        self.messages += out.send.len();
        for (to, message) in out.send {
            let from = self.coordinator.id().initiator;
            self.participate(now, to.node.0, ParticipantInput::Received { from, message });
        }
    }

    fn participate(&mut self, now: Time, node: u128, input: ParticipantInput) {
        let mut out = Batch::default();
        self.participant(node).step(now, input, &mut out);
        self.events.append(&mut out.events);
        self.messages += out.send.len();
        for (_, message) in out.send {
            self.coordinate(now, CoordinatorInput::Received { from: member(node), message });
        }
    }
}

#[test]
fn an_idle_group_is_quiet_after_four_messages_for_each_member() {
    for nodes in [2, 3, 64, 1_000] {
        let mut table = Table::new(nodes, Settings::default());
        table.coordinate(at(0), CoordinatorInput::Begin);
        assert_eq!(table.coordinator.phase(), Phase::Quiesced);
        assert_eq!(table.messages as u128, 4 * nodes);
        assert!(table.participants.iter().all(|(_, participant)| !participant.may_generate()));
        table.coordinate(at(1), CoordinatorInput::Release);
        assert!(table.participants.iter().all(|(_, participant)| participant.may_generate()));
    }
}

#[test]
fn messages_under_way_are_waited_for_and_what_they_lead_to_costs_a_round_each() {
    for depth in 0..5u64 {
        let mut table = Table::new(2, Settings::default());
        table.participant(1).sent(NodeId(2));
        table.coordinate(at(0), CoordinatorInput::Begin);
        let (mut from, mut to) = (1, 2);
        for _ in 0..depth {
            assert_eq!(table.coordinator.phase(), Phase::Collect);
            let participant = table.participant(to);
            participant.received(NodeId(from));
            participant.sent(NodeId(from));
            participant.processed(NodeId(from));
            table.participate(at(1), to, ParticipantInput::Progressed);
            (from, to) = (to, from);
        }
        assert_eq!(table.coordinator.phase(), Phase::Collect);
        table.participant(to).received(NodeId(from));
        table.participant(to).processed(NodeId(from));
        table.participate(at(1), to, ParticipantInput::Progressed);
        assert_eq!(table.coordinator.phase(), Phase::Quiesced, "depth {depth}");
        assert!(u64::from(table.coordinator.round()) <= depth + 1, "round {}", table.coordinator.round());
    }
}

#[test]
fn a_running_handler_is_waited_for() {
    let mut table = Table::new(2, Settings::default());
    table.participant(2).began();
    table.coordinate(at(0), CoordinatorInput::Begin);
    assert_eq!(table.coordinator.awaiting().collect::<Vec<_>>(), [member(2)]);
    table.participant(2).ended();
    table.participate(at(0), 2, ParticipantInput::Progressed);
    assert_eq!(table.coordinator.phase(), Phase::Quiesced);
}

#[test]
fn a_dead_coordinator_holds_nobody_longer_than_the_lease() {
    let settings = Settings { lease: Duration::from_secs(2), ..Settings::default() };
    let mut table = Table::new(3, settings);
    table.coordinate(at(0), CoordinatorInput::Begin);
    for node in 1..=3 {
        let participant = table.participant(node);
        assert_eq!(participant.deadline(), Some(at(2_000)));
        let mut out = Batch::default();
        participant.step(at(2_000), ParticipantInput::Deadline, &mut out);
        assert!(participant.may_generate());
        assert_eq!(participant.deadline(), None);
        assert!(matches!(out.events[..], [Event::Released(_, Reason::LeaseLost)]));
    }
    // Whoever believes the coordinator until then is right.
    assert!(table.coordinator.valid_until().is_some_and(|until| until < at(2_000)));
    table.coordinate(at(2_000), CoordinatorInput::Deadline);
    assert_eq!(table.coordinator.phase(), Phase::Failed(Reason::LeaseLost));
}

#[test]
fn a_living_coordinator_keeps_everybody_still() {
    let settings = Settings { lease: Duration::from_secs(2), ..Settings::default() };
    let mut table = Table::new(3, settings);
    table.coordinate(at(0), CoordinatorInput::Begin);
    for _ in 0..20 {
        let now = table.coordinator.deadline().expect("it holds");
        table.coordinate(now, CoordinatorInput::Deadline);
        for node in 1..=3 {
            table.participate(now, node, ParticipantInput::Deadline);
        }
        assert_eq!(table.coordinator.phase(), Phase::Quiesced);
        assert!(table.participants.iter().all(|(_, participant)| !participant.may_generate()));
    }
}

#[test]
fn who_let_go_does_not_report_and_the_quiesce_fails() {
    let mut table = Table::new(2, Settings::default());
    table.participant(1).sent(NodeId(2));
    table.coordinate(at(0), CoordinatorInput::Begin);
    table.participate(at(10_000), 1, ParticipantInput::Deadline);
    assert!(table.participant(1).may_generate());
    table.coordinate(at(10_001), CoordinatorInput::Deadline);
    assert_eq!(table.coordinator.phase(), Phase::Failed(Reason::LeaseLost));
    assert!(table.participant(2).may_generate());
}

#[test]
fn a_new_view_ends_it_and_an_old_start_does_not_suspend_again() {
    let mut table = Table::new(3, Settings::default());
    table.participant(1).sent(NodeId(3));
    table.coordinate(at(0), CoordinatorInput::Begin);
    let members: BTreeSet<Member> = [member(1), member(2)].into();
    let installed = ParticipantInput::Installed { view: ViewId(2), members };
    table.participate(at(1), 2, installed);
    assert!(table.participant(2).may_generate());
    let scope = (1..=3).map(member).collect();
    let id = table.coordinator.id();
    let (lease, stamp, fenced) = (Duration::from_secs(2), 0, BTreeSet::new());
    let message = Message::Start { id, view: ViewId(1), scope, fenced, lease, stamp };
    table.participate(at(1), 2, ParticipantInput::Received { from: member(1), message });
    assert!(table.participant(2).may_generate());
    assert_eq!(table.coordinator.phase(), Phase::Failed(Reason::ViewChanged));
}

#[test]
fn who_is_fenced_is_not_waited_for_and_not_heard() {
    let all: BTreeSet<Member> = (1..=3).map(member).collect();
    let mut table = Table::new(3, Settings::default());
    let scope = [member(1), member(2)].into();
    let id = table.coordinator.id();
    table.coordinator = Coordinator::new(Settings::default(), id, ViewId(1), scope, [member(3)].into());
    assert!(all.iter().all(|one| table.participant(1).admits(*one)));
    table.coordinate(at(0), CoordinatorInput::Begin);
    assert_eq!(table.coordinator.phase(), Phase::Quiesced);
    assert!(!table.participant(1).admits(member(3)) && !table.participant(2).admits(member(3)));
    assert!(table.participant(3).may_generate());
}

#[test]
fn what_others_send_is_refused_or_ignored() {
    let mut table = Table::new(2, Settings::default());
    let id = table.coordinator.id();
    let start = |scope: &[u128], id| Message::Start {
        id,
        view: ViewId(1),
        scope: scope.iter().map(|node| member(*node)).collect(),
        fenced: BTreeSet::new(),
        lease: Duration::from_secs(1),
        stamp: 0,
    };
    let mut out = Batch::default();
    let participant = table.participant(2);
    let stranger = QuiesceId { initiator: member(9), number: 1 };
    for (from, message) in
        [(9, start(&[1, 2], stranger)), (2, start(&[1, 2], id)), (1, start(&[1, 2, 9], id))]
    {
        let input = ParticipantInput::Received { from: member(from), message };
        participant.step(at(0), input, &mut out);
        assert!(participant.may_generate());
    }
    assert_eq!(out.send, [(member(1), Message::Abort { id, reason: super::AbortReason::Refused })]);
    for number in 1..=HOLDS_MAX as u64 + 5 {
        let id = QuiesceId { initiator: member(1), number };
        let input = ParticipantInput::Received { from: member(1), message: start(&[1, 2], id) };
        participant.step(at(0), input, &mut out);
    }
    assert_eq!(out.events.len(), HOLDS_MAX);
}
