//! The world: one queue of (time, sequence), the nodes with their processes, the network, the catalog's row.
//!
//! Decides when what arrives. Each process has a clock of its own that began at another time. Must never step a
//! process that was killed, nor hand it a message for another incarnation. Read `director` for what happens to whom.

use std::collections::BTreeMap;

use steadfast_proto::group::{
    Event as Happened, Group, Input, Intent, Member, Message, Outcome, Output, Reason, RequestId, Row,
    Settings, Standing, Swap, Swapped,
};
use steadfast_proto::ids::{Incarnation, NodeId};
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;

use super::checkers::Checkers;
use super::director::Director;
use super::program::Program;
use super::register::Register;
use super::writers::{PATIENCE, Writers};
use super::{Plan, Report};
use crate::random::Random;

pub(super) const MS: u64 = 1_000_000;
const LANES: u64 = 8;

/// Something that will happen.
#[derive(Debug)]
pub(super) enum Event {
    Message { from: Member, to: Member, message: Message },
    Wake(Member),
    Write { to: Member, request: RequestId, id: u64 },
    Answer { request: RequestId, outcome: Outcome },
    Try { lane: usize },
    Impatient { lane: usize, request: RequestId },
    Swap { by: Member, swap: Swap, is_late: bool },
    Swapped { to: Member, number: u64, outcome: Swapped },
    Watch { node: usize },
    Fence { to: Member, failed: Member },
    Evidence,
    Direct,
    Accident { tick: u64 },
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) incarnation: u64,
    pub(super) process: Option<Group<Program>>,
    wake: Option<u64>,
}

/// The world of one seed.
#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    seed: u64,
    pub(super) now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub(super) random: Random,
    pub(super) nodes: Vec<Node>,
    pub(super) register: Register,
    writers: Writers,
    pub(super) checkers: Checkers,
    pub(super) director: Director,
    pub(super) report: Report,
}

impl World {
    pub(super) fn new(plan: &Plan, seed: u64) -> World {
        let founders = (0..plan.mirrors).map(|node| member(node, 1)).collect();
        let row = Row::founded(founders);
        let report = Report {
            seed,
            replaced: 0,
            views: vec![row.view.clone()],
            acknowledged: 0,
            kills: 0,
            mistaken: 0,
            aborted: 0,
            renewals: 0,
            duration: 0,
            digest: 0,
            violation: None,
        };
        let mut world = World {
            plan: plan.clone(),
            seed,
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            random: Random::new(seed),
            nodes: Vec::new(),
            register: Register::new(row.clone()),
            writers: Writers::new(LANES),
            checkers: Checkers::new(row.view.clone(), plan.only),
            director: Director::default(),
            report,
        };
        for node in 0..plan.nodes {
            let founder = || Group::founder(member(node, 1), settings(), Program::default(), row.clone());
            let process = (node < plan.mirrors).then(founder);
            world.nodes.push(Node { incarnation: 1, process, wake: None });
        }
        for node in 0..plan.mirrors {
            world.step(node, Input::Deadline);
        }
        for lane in 0..LANES {
            world.push(lane * MS, Event::Try { lane: usize::try_from(lane).expect("few lanes") });
        }
        world.push(50 * MS, Event::Direct);
        world.push(100 * MS, Event::Evidence);
        world
    }

    pub(super) fn run(mut self) -> Report {
        while self.report.replaced < self.plan.replacements && self.checkers.violation.is_none() {
            let Some(((at, _), event)) = self.queue.pop_first() else { break };
            self.now = at;
            self.report.digest =
                (self.report.digest ^ at).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
            self.happen(event);
            self.check_progress();
        }
        self.check_end();
        self.report.acknowledged = self.writers.count;
        self.report.duration = self.now;
        self.report.renewals = self.register.renewals;
        self.report.violation = self.checkers.violation.take();
        debug_assert_eq!(self.report.seed, self.seed);
        self.report
    }

    pub(super) fn push(&mut self, after: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Message { from, to, message } => self.to(to, Input::Received { from, message }),
            Event::Wake(who) => self.wake(who),
            Event::Write { to, request, id } => {
                self.to(to, Input::Write { request, record: Program::record(id) });
            }
            Event::Answer { request, outcome } => {
                let lane = self.writers.lane(request);
                if let Some(after) = self.writers.answer(request, &outcome) {
                    self.push(after, Event::Try { lane });
                }
            }
            Event::Try { lane } => self.try_write(lane),
            Event::Impatient { lane, request } => {
                if self.writers.is_current(request) {
                    self.writers.forget_leader(lane);
                    self.try_write(lane);
                }
            }
            Event::Swap { by, swap, is_late } => self.swap(by, &swap, is_late),
            Event::Swapped { to, number, outcome } => self.to(to, Input::Swapped { number, outcome }),
            Event::Watch { node } => {
                let row = self.register.row.clone();
                self.step(node, Input::Committed(row));
            }
            Event::Fence { to, failed } => self.to(to, Input::Fenced(failed)),
            Event::Evidence => self.show_evidence(),
            Event::Direct => self.direct(),
            Event::Accident { tick } => self.accident(tick),
        }
    }

    /// The living process of exactly this incarnation.
    pub(super) fn process(&self, who: Member) -> Option<&Group<Program>> {
        self.nodes
            .get(place(who))
            .and_then(|node| node.process.as_ref())
            .filter(|process| process.me() == who)
    }

    fn to(&mut self, who: Member, input: Input) {
        if self.process(who).is_some() {
            self.step(place(who), input);
        }
    }

    fn wake(&mut self, who: Member) {
        let node = place(who);
        if self.process(who).is_none() || self.nodes[node].wake != Some(self.now) {
            return;
        }
        self.nodes[node].wake = None;
        self.step(node, Input::Deadline);
        let clock = self.clock(node);
        let deadline = self.nodes[node].process.as_ref().and_then(Machine::deadline);
        if deadline.is_some_and(|at| at <= clock) {
            self.checkers.broken("DEADLINE", format!("{who:?} wants {deadline:?} at {clock:?}"));
        }
    }

    fn clock(&self, node: usize) -> Time {
        Time::from_nanos(self.now + node as u64 * 1_000_000 * MS)
    }

    /// Steps a process and carries out what it wants.
    pub(super) fn step(&mut self, node: usize, input: Input) {
        let clock = self.clock(node);
        let Some(process) = self.nodes[node].process.as_mut() else { return };
        let mut out = Output::default();
        process.step(clock, input, &mut out);
        let me = process.me();
        let view = process.row().map(|row| row.view.clone());
        if let Some(deadline) = process.deadline() {
            let at = self.now + deadline.since(clock).as_nanos().try_into().unwrap_or(u64::MAX / 2);
            if self.nodes[node].wake.is_none_or(|wake| wake > at || wake < self.now) {
                self.nodes[node].wake = Some(at);
                self.push(at - self.now, Event::Wake(me));
            }
        }
        for (to, message) in out.send {
            self.send(me, to, message);
        }
        if let Some(swap) = out.swap {
            self.ask_register(me, swap);
        }
        for (request, outcome) in out.replies {
            self.reply(&view, request, outcome);
        }
        for happened in out.events {
            self.note(node, me, happened);
        }
    }

    fn send(&mut self, from: Member, to: Member, message: Message) {
        if self.random.chance(self.plan.loss) {
            return;
        }
        if self.random.chance(self.plan.duplication) {
            let after = self.delay();
            self.push(after, Event::Message { from, to, message: message.clone() });
        }
        let after = self.delay();
        self.push(after, Event::Message { from, to, message });
    }

    fn delay(&mut self) -> u64 {
        let late = if self.random.chance(self.plan.straggling) { self.random.below(400 * MS) } else { 0 };
        MS / 5 + self.random.around(MS) + late
    }

    fn ask_register(&mut self, by: Member, swap: Swap) {
        let is_late = self.random.chance(self.plan.late_swaps);
        let after =
            if is_late { self.random.between(500 * MS, 6_000 * MS) } else { MS + self.random.around(4 * MS) };
        if is_late {
            let (number, outcome) = (swap.number, Swapped::Unknown);
            self.push(1_000 * MS, Event::Swapped { to: by, number, outcome });
        }
        self.push(after, Event::Swap { by, swap, is_late });
    }

    fn swap(&mut self, by: Member, swap: &Swap, is_late: bool) {
        let (outcome, is_changed) = self.register.swap(swap);
        if is_changed {
            self.committed();
        }
        if !is_late {
            let after = MS + self.random.around(4 * MS);
            self.push(after, Event::Swapped { to: by, number: swap.number, outcome });
        }
    }

    fn committed(&mut self) {
        let row = self.register.row.clone();
        for node in 0..self.nodes.len() {
            let slow = if self.random.chance(0.1) { self.random.below(2_000 * MS) } else { 0 };
            let after = 5 * MS + self.random.around(20 * MS) + slow;
            self.push(after, Event::Watch { node });
        }
        if self.report.views.last().is_some_and(|last| last.id == row.view.id) {
            return;
        }
        let promoted = match row.view.reason {
            Reason::Added(by) | Reason::Replaced { by, .. } => Some(by),
            Reason::Founded | Reason::Failed(_) => None,
        };
        let last = promoted.and_then(|by| self.process(by)).map(Group::last);
        self.checkers.committed(&row, last);
        self.report.views.push(row.view.clone());
        self.direct_committed(&row);
    }

    fn reply(
        &mut self,
        view: &Option<steadfast_proto::group::GroupView>,
        request: RequestId,
        outcome: Outcome,
    ) {
        if let (Outcome::Done { at, .. }, Some(view)) = (&outcome, view) {
            let last = |member: &Member| (*member, self.process(*member).map(Group::last));
            let lasts: Vec<_> = view.full.iter().map(last).collect();
            self.checkers.acknowledged(*at, view, &lasts);
        }
        if !self.random.chance(self.plan.loss) {
            let after = self.delay();
            self.push(after, Event::Answer { request, outcome });
        }
    }

    fn note(&mut self, node: usize, me: Member, happened: Happened) {
        match happened {
            Happened::Installed { row, last } => {
                self.checkers.settled(me);
                if row.view.has(me)
                    && let Some(process) = &self.nodes[node].process
                {
                    let program = process.application();
                    let lost = program.lacks(&self.writers.acknowledged);
                    let digest = program.digest_after(last.0);
                    self.checkers.installed(me, &row, last, digest, lost);
                }
                self.direct_installed(&row);
            }
            Happened::Attempted { attempt, asked, promoting } => {
                let view = self.nodes[node].process.as_ref().and_then(Group::row).map(|row| row.view.clone());
                if let Some(view) = view {
                    self.checkers.attempted(me, (attempt, &asked, promoting), &view);
                }
                self.direct_attempted();
            }
            Happened::Aborted { .. } => {
                self.checkers.settled(me);
                self.report.aborted += 1;
            }
            Happened::Eliminated(_) => {
                self.checkers.eliminated(me);
                self.direct_eliminated(me);
            }
        }
    }

    fn try_write(&mut self, lane: usize) {
        let living: Vec<Member> =
            self.nodes.iter().filter_map(|node| Some(node.process.as_ref()?.me())).collect();
        let (request, id, leader) = self.writers.attempt(lane);
        // Half of those who know no leader look into the catalog; the others ask anybody.
        let to = if leader.is_none() && self.random.chance(0.5) {
            self.register.row.view.leader()
        } else {
            leader.or_else(|| self.random.pick(&living).copied())
        };
        self.push(PATIENCE, Event::Impatient { lane, request });
        if let Some(to) = to
            && !self.random.chance(self.plan.loss)
        {
            let after = self.delay();
            self.push(after, Event::Write { to, request, id });
        }
    }

    fn show_evidence(&mut self) {
        self.push(100 * MS, Event::Evidence);
        let is_candidate = |process: &&Group<Program>| process.is_candidate();
        let living = || self.nodes.iter().filter_map(|node| node.process.as_ref());
        let candidates: Vec<Member> = living().filter(is_candidate).map(Group::me).collect();
        for candidate in candidates {
            for node in 0..self.nodes.len() {
                self.step(node, Input::Evidence { candidate, standing: Standing::Pass });
            }
        }
    }

    /// Starts a candidate on a node that has no process.
    pub(super) fn start(&mut self, node: usize, intent: Intent) -> Member {
        self.nodes[node].incarnation += 1;
        let me = member(node, self.nodes[node].incarnation);
        self.nodes[node].process = Some(Group::candidate(me, settings(), Program::default(), intent));
        self.nodes[node].wake = None;
        let row = self.register.row.clone();
        self.step(node, Input::Committed(row));
        me
    }

    /// The end of every run: whoever is a full member of the committed view has every acknowledged write.
    fn check_end(&mut self) {
        let row = self.register.row.clone();
        let full = row.view.full.iter();
        for member in full.copied().collect::<Vec<_>>() {
            let lacks = |process: &Group<Program>| process.application().lacks(&self.writers.acknowledged);
            let is_in_view =
                |process: &&Group<Program>| process.row().is_some_and(|own| own.key() == row.key());
            if let Some(id) = self.process(member).filter(is_in_view).and_then(lacks) {
                self.checkers.broken("NO-LOST-WRITE", format!("{member:?} ends without write {id}"));
            }
        }
    }
}

pub(super) fn member(node: usize, incarnation: u64) -> Member {
    Member { node: NodeId((node as u128 + 1) << 96), incarnation: Incarnation(incarnation) }
}

pub(super) fn place(member: Member) -> usize {
    usize::try_from(member.node.0 >> 96).expect("few nodes") - 1
}

fn settings() -> Settings {
    use std::time::Duration;
    Settings {
        promise_max: Duration::from_secs(2),
        change_timeout: Duration::from_millis(1_500),
        lease: Duration::from_millis(1_200),
        retained_max: 64,
        unstable_max: 256,
        ..Settings::default()
    }
}
