//! Nodes over one store that they share: homes move between them at any moment, by tables that the nodes hear of at times of
//! their own, and commits of those who were overtaken fail.
//!
//! Couriers each tell one counter something and end, so that the counters forget them whole: a copy that comes later than
//! that, by way of a node that kept one of the two before, would be counted twice. Must never decide anything that the
//! machine or its keeper decides: what a node does here is what `steadfast::episodes::keeper` does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use oorandom::Rand64;
use steadfast_proto::episode::{
    Answer, Batch, Destination, Episodes, Event, Input, Instance, Next, Outcome, Outgoing, Program, Record,
    Request, RequestError, Settings, Task, Wait, home_of, share_homes,
};
use steadfast_proto::exchange::{Blob, Frame, Message, Name, Sessions, Stale};
use steadfast_proto::ids::NodeId;
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;

use super::kit::pick;

const HOMES: usize = 8;
const COUNTERS: u64 = 2;
/// After so many moves without quiet something never ends.
const MOVES_MAX: usize = 200_000;

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many nodes there are.
    pub nodes: u128,
    /// How many couriers.
    pub couriers: u64,
    /// How many faults there are at most.
    pub faults: u32,
    /// What is left out that must not be.
    pub flaw: Option<Omission>,
}

/// A part of the argument that a run can leave out, to show that it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Omission {
    /// A commit that does not look whether its homes are still held.
    Fence,
    /// Sessions that go on when homes move.
    Renewal,
    /// Messages of nodes that do not keep the speaker.
    Speaker,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { nodes: 3, couriers: 5, faults: 60, flaw: None }
    }
}

/// What became of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it was made of.
    pub seed: u64,
    /// The first thing that was not as it must be.
    pub violation: Option<String>,
    /// How often homes were taken.
    pub taken: u64,
    /// How many commits failed because a home was not held any more.
    pub overtaken: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { seed, violation, taken, overtaken } = self;
        let violation = violation.as_deref().unwrap_or("all is well");
        write!(f, "seed {seed}: {taken} homes taken, {overtaken} commits overtaken: {violation}")
    }
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Deliver(usize),
    Copy(usize),
    Lose(usize),
    /// It stays on its way for long.
    Delay(usize),
    DeliverLate(usize),
    Sync(NodeId),
    /// It takes effect, and the node does not hear of it.
    Unheard(NodeId),
    Run(NodeId),
    Crash(NodeId),
    Tick(NodeId),
    /// A node hears of a table.
    Hear(NodeId, usize),
    Take(NodeId),
}

/// One row per home and one per instance.
#[derive(Debug)]
struct Database {
    instances: BTreeMap<Name, Vec<u8>>,
    homes: Vec<(u64, u64)>,
}

#[derive(Debug)]
enum Gated {
    Send(NodeId, Message),
    Answer(u64, Result<Answer, RequestError>),
}

#[derive(Debug)]
struct Node {
    episodes: Episodes,
    sessions: Sessions,
    life: u64,
    table: usize,
    held: BTreeMap<usize, u64>,
    changed: BTreeSet<Name>,
    epoch: u64,
    gated: Vec<Gated>,
    tasks: VecDeque<Task>,
}

struct World {
    plan: Plan,
    now: Time,
    nodes: BTreeMap<NodeId, Node>,
    tables: Vec<Vec<NodeId>>,
    database: Database,
    flying: Vec<(NodeId, NodeId, Frame)>,
    late: Vec<(NodeId, NodeId, Frame)>,
    begun: BTreeSet<u64>,
    report: Report,
}

/// One random run.
pub fn run(plan: &Plan, seed: u64) -> Report {
    let mut random = Rand64::new(u128::from(seed));
    let mut world = World::new(*plan, seed);
    let mut faults = plan.faults;
    while faults > 0 {
        world.ask();
        let moves = world.moves();
        let action = if moves.is_empty() || random.rand_range(0..6) == 0 {
            faults -= 1;
            world.fault(&mut random)
        } else {
            Some(moves[pick(&mut random, moves.len())])
        };
        if let Some(action) = action {
            world.apply(action);
        }
    }
    world.settle();
    world.report
}

impl World {
    fn new(plan: Plan, seed: u64) -> World {
        let all: BTreeSet<NodeId> = (1..=plan.nodes).map(NodeId).collect();
        let without = |node: &NodeId| all.iter().copied().filter(|other| other != node).collect();
        let tables = std::iter::once(all.clone()).chain(all.iter().map(without));
        let tables = tables.map(|members| share_homes(&members, HOMES)).collect();
        let mut world = World {
            plan,
            now: Time::from_nanos(1),
            nodes: BTreeMap::new(),
            tables,
            database: Database { instances: BTreeMap::new(), homes: vec![(0, 0); HOMES] },
            flying: Vec::new(),
            late: Vec::new(),
            begun: BTreeSet::new(),
            report: Report { seed, violation: None, taken: 0, overtaken: 0 },
        };
        all.into_iter().for_each(|id| world.restart(id, 1, 0));
        world
    }

    /// A node without memory; what it held is still its own, but by a generation that it does not know.
    fn restart(&mut self, id: NodeId, life: u64, table: usize) {
        let node = Node {
            episodes: Episodes::new(Settings::default(), id, life).sharing(),
            sessions: Sessions::new(life),
            life,
            table,
            held: BTreeMap::new(),
            changed: BTreeSet::new(),
            epoch: 0,
            gated: Vec::new(),
            tasks: VecDeque::new(),
        };
        self.nodes.insert(id, node);
        let programs = ["courier", "counter"].map(|name| (name.into(), Program::default()));
        self.step(id, Input::Homes(self.tables[table].clone()));
        self.step(id, Input::Deployed(programs.into()));
        self.step(id, Input::Recovered);
        let others = (1..=self.plan.nodes).map(NodeId).filter(|other| *other != id);
        others.for_each(|other| self.launch(id, other, Vec::new()));
    }

    /// Asks whoever thinks that it keeps an instance to begin it, until somebody has.
    fn ask(&mut self) {
        for token in 0..COUNTERS + self.plan.couriers {
            if self.begun.contains(&token) {
                continue;
            }
            let (name, payload) = match token.checked_sub(COUNTERS) {
                None => (counter(token), Blob::empty()),
                Some(number) if (0..COUNTERS).all(|one| self.begun.contains(&one)) => {
                    (courier(number), Blob::from(number.to_le_bytes().as_slice()))
                }
                Some(_) => continue,
            };
            let key = steadfast_proto::episode::Key { text: "start".into(), digest: 1 };
            let request = Request::Start { name: name.clone(), payload, key: Some(key), wait: false };
            let keeps = |(_, node): &(&NodeId, &Node)| node.episodes.is_kept_here(&name);
            let Some(id) = self.nodes.iter().find(keeps).map(|(id, _)| *id) else { continue };
            self.step(id, Input::Request { token, request });
        }
    }

    fn step(&mut self, id: NodeId, input: Input) {
        let mut out = Batch::default();
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.episodes.step(now, input, &mut out);
        for record in &out.persist {
            if let Record::Began { epoch, .. } = record {
                node.epoch = node.epoch.max(*epoch);
            }
            node.changed.insert(record.name().clone());
        }
        let sends = out.send_durable.into_iter().filter_map(|(to, message)| match to {
            Destination::Node(to) => Some(Gated::Send(to, message)),
            Destination::Outside(_) => None,
        });
        node.gated.extend(sends);
        node.gated.extend(out.answers.into_iter().map(|(token, answer)| Gated::Answer(token, answer)));
        node.tasks.extend(out.run);
        // What need not be durable says what is known here all the same, which may be old.
        if !out.send.is_empty() && !self.look(id) {
            return;
        }
        for (to, message) in out.send {
            if let Destination::Node(to) = to {
                self.launch(id, to, vec![message]);
            }
        }
    }

    fn launch(&mut self, from: NodeId, to: NodeId, messages: Vec<Message>) {
        let Some(node) = self.nodes.get_mut(&from) else { return };
        let frame = node.sessions.frame(to, messages);
        self.flying.push((from, to, frame));
    }

    fn renew(&mut self, id: NodeId) {
        if self.plan.flaw == Some(Omission::Renewal) {
            return;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.life += 1;
        for other in node.sessions.renew() {
            self.launch(id, other, Vec::new());
        }
    }

    fn moves(&self) -> Vec<Move> {
        let mut moves: Vec<Move> = (0..self.flying.len()).map(Move::Deliver).collect();
        for (id, node) in &self.nodes {
            if !node.tasks.is_empty() {
                moves.push(Move::Run(*id));
            }
            if !node.gated.is_empty() || !node.changed.is_empty() {
                moves.push(Move::Sync(*id));
            }
            if !node.episodes.missing_homes().is_empty() {
                moves.push(Move::Take(*id));
            }
        }
        moves
    }

    fn fault(&self, random: &mut Rand64) -> Option<Move> {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let (id, flying, late) = (ids[pick(random, ids.len())], self.flying.len(), self.late.len());
        match random.rand_range(0..14) {
            0 => Some(Move::Crash(id)),
            1 => Some(Move::Unheard(id)),
            2 if flying > 0 => Some(Move::Lose(pick(random, flying))),
            3 if flying > 0 => Some(Move::Copy(pick(random, flying))),
            4..=6 => Some(Move::Tick(id)),
            7..=11 => Some(Move::Hear(id, pick(random, self.tables.len()))),
            12 if flying > 0 => Some(Move::Delay(pick(random, flying))),
            13 if late > 0 => Some(Move::DeliverLate(pick(random, late))),
            _ => None,
        }
    }

    fn apply(&mut self, action: Move) {
        match action {
            Move::Deliver(index) => {
                let (from, to, frame) = self.flying.remove(index);
                self.arrive(from, to, frame);
            }
            Move::Copy(index) => {
                let (from, to, frame) = self.flying[index].clone();
                self.arrive(from, to, frame);
            }
            Move::Lose(index) => {
                self.flying.remove(index);
            }
            Move::Delay(index) => {
                let frame = self.flying.remove(index);
                self.late.push(frame);
            }
            Move::DeliverLate(index) => {
                let (from, to, frame) = self.late.remove(index);
                self.arrive(from, to, frame);
            }
            Move::Sync(id) => {
                if self.commit(id) {
                    self.let_out(id);
                }
            }
            Move::Unheard(id) => {
                if self.commit(id) {
                    self.crash(id);
                }
            }
            Move::Run(id) => {
                let Some(task) = self.nodes.get_mut(&id).and_then(|node| node.tasks.pop_front()) else {
                    return;
                };
                let result = Ok(episode(&task));
                self.step(id, Input::Ran { name: task.name, run: task.run, result });
            }
            Move::Crash(id) => self.crash(id),
            Move::Tick(id) => {
                let due = self.nodes.get(&id).and_then(|node| node.episodes.deadline());
                self.now = due.map_or(self.now, |due| due.max(self.now));
                self.step(id, Input::Deadline);
            }
            Move::Hear(id, table) => self.hear(id, table),
            Move::Take(id) => self.take(id),
        }
    }

    fn arrive(&mut self, from: NodeId, to: NodeId, frame: Frame) {
        let Some(node) = self.nodes.get_mut(&to) else { return };
        let is_new = node.sessions.is_new(from, &frame);
        match node.sessions.take(from, frame) {
            Ok(mut messages) => {
                if self.plan.flaw != Some(Omission::Speaker) {
                    messages.retain(|message| node.episodes.may_speak(from, message.from()));
                }
                self.step(to, Input::Received(messages));
            }
            Err(Stale::Receiver) => self.launch(to, from, Vec::new()),
            Err(Stale::Sender | Stale::Overtaken) => {}
        }
        if is_new {
            self.step(to, Input::Met(from));
        }
    }

    fn crash(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get(&id) {
            let (life, table) = (node.life + 1, node.table);
            self.restart(id, life, table);
        }
    }

    /// Whether all homes that a node keeps have the generation that it knows; a node that was overtaken begins anew.
    fn look(&mut self, id: NodeId) -> bool {
        let homes = &self.database.homes;
        let is_held = |node: &Node| node.held.iter().all(|(home, generation)| homes[*home].0 == *generation);
        if self.plan.flaw == Some(Omission::Fence) || self.nodes.get(&id).is_none_or(is_held) {
            return true;
        }
        self.report.overtaken += 1;
        self.crash(id);
        false
    }

    /// All or nothing.
    fn commit(&mut self, id: NodeId) -> bool {
        if !self.look(id) {
            return false;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        let database = &mut self.database;
        for name in std::mem::take(&mut node.changed) {
            let (_, epoch) = &mut database.homes[home_of(&name, HOMES)];
            *epoch = (*epoch).max(node.epoch);
            match node.episodes.instance(&name) {
                Some(instance) => database.instances.insert(name, instance.encode()),
                None => database.instances.remove(&name),
            };
        }
        true
    }

    fn let_out(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let mut frames: BTreeMap<NodeId, Vec<Message>> = BTreeMap::new();
        for gated in std::mem::take(&mut node.gated) {
            match gated {
                Gated::Send(to, message) => frames.entry(to).or_default().push(message),
                Gated::Answer(token, Ok(_)) => {
                    self.begun.insert(token);
                }
                Gated::Answer(..) => {}
            }
        }
        for (to, messages) in frames {
            self.launch(id, to, messages);
        }
    }

    fn hear(&mut self, id: NodeId, table: usize) {
        let Some(node) = self.nodes.get(&id) else { return };
        if node.table == table || !self.commit(id) {
            return;
        }
        self.let_out(id);
        let homes = self.tables[table].clone();
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.table = table;
        node.held.retain(|home, _| homes[*home] == id);
        self.step(id, Input::Homes(homes));
        self.renew(id);
    }

    fn take(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let homes = node.episodes.missing_homes();
        let mut epoch = 0;
        for home in &homes {
            let row = &mut self.database.homes[*home];
            row.0 += 1;
            epoch = epoch.max(row.1);
            node.held.insert(*home, row.0);
            self.report.taken += 1;
        }
        let rows = self.database.instances.iter().filter(|(name, _)| homes.contains(&home_of(name, HOMES)));
        let instances = rows.filter_map(|(_, bytes)| Instance::decode(bytes).ok()).collect();
        self.step(id, Input::Adopted { homes, instances, epoch });
        self.renew(id);
    }

    /// One table for all and no faults: then everything comes to an end.
    fn settle(&mut self) {
        self.flying.append(&mut self.late);
        self.calm(0, |world| world.moves().is_empty() && world.is_over());
        self.check();
    }

    /// Goes on without faults, all by one table, until it is done or nothing happens any more.
    fn calm(&mut self, table: usize, is_done: impl Fn(&World) -> bool) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for _ in 0..MOVES_MAX {
            for id in &ids {
                // Who has nothing to do asks now and then; who was overtaken has the table still that it had.
                self.look(*id);
                self.hear(*id, table);
            }
            self.ask();
            if is_done(self) {
                break;
            }
            if let Some(action) = self.moves().first().copied() {
                self.apply(action);
                continue;
            }
            let due = self.nodes.iter().filter_map(|(id, node)| Some((node.episodes.deadline()?, *id))).min();
            let Some((_, id)) = due else { break };
            self.apply(Move::Tick(id));
        }
    }

    fn stored(&self) -> impl Iterator<Item = Instance> {
        self.database.instances.values().filter_map(|bytes| Instance::decode(bytes).ok())
    }

    /// Whether all has begun, and nobody remembers any courier but as one that has ended.
    fn is_over(&self) -> bool {
        let all = COUNTERS + self.plan.couriers;
        self.begun.len() as u64 == all
            && self.stored().all(|one| one.is_quiet() && one.outboxes.is_empty() && one.peers.is_empty())
    }

    fn counted(&self) -> u64 {
        self.stored().map(|one| one.state.len() as u64).sum()
    }

    fn check(&mut self) {
        let counted = self.counted();
        let couriers = self.plan.couriers;
        if counted != couriers {
            self.report.violation = Some(format!("{counted} of {couriers} couriers were counted"));
        } else if !self.is_over() {
            let left: Vec<String> = self
                .stored()
                .filter(|one| !one.outboxes.is_empty() || !one.peers.is_empty())
                .map(|one| one.name.to_string())
                .collect();
            self.report.violation = Some(format!("something is left over at {}", left.join(", ")));
        }
    }
}

fn counter(number: u64) -> Name {
    Name::parse(&format!("counter/{number}")).expect("it is a name")
}

fn courier(number: u64) -> Name {
    Name::parse(&format!("courier/{number}")).expect("it is a name")
}

/// A counter's state has a byte for each courier that came; a courier has none.
fn episode(task: &Task) -> Outcome {
    let is_start = &*task.event.kind == Event::START;
    if task.name.program() == "counter" {
        let mut state = task.state.to_vec();
        state.extend((!is_start).then_some(1));
        let next = Next::Wait(Wait::for_kind("add"));
        return Outcome { state: state.into(), next, ..Outcome::default() };
    }
    let number = task.event.payload.first().copied().map_or(0, u64::from);
    let to = counter(number % COUNTERS);
    let (kind, payload) = ("add".into(), Blob::empty());
    let message = Outgoing { to, kind, correlation: None, payload, begins: false, within: None };
    Outcome { messages: vec![message], next: Next::End(Blob::empty()), ..Outcome::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_that_move_at_any_moment_lose_and_double_nothing() {
        let (mut taken, mut overtaken) = (0, 0);
        for nodes in [2, 3] {
            for seed in 0..1_000 {
                let report = run(&Plan { nodes, ..Plan::default() }, seed);
                assert_eq!(report.violation, None, "{nodes} nodes, {report}");
                taken += report.taken;
                overtaken += report.overtaken;
            }
        }
        assert!(taken > 10_000 && overtaken > 100, "{taken} homes were taken, {overtaken} commits overtaken");
    }

    /// Each part of the argument is needed.
    #[test]
    fn what_is_left_out_is_seen() {
        let plan = Plan { flaw: Some(Omission::Fence), ..Plan::default() };
        let seen = (0..1_000).map(|seed| run(&plan, seed)).find(|report| report.violation.is_some());
        assert!(seen.is_some(), "commits without a fence are not seen");
        assert_eq!(counted_with_a_late_copy(Heard::Later, Some(Omission::Renewal)), 2);
        assert_eq!(counted_with_a_late_copy(Heard::Before, Some(Omission::Speaker)), 2);
    }

    #[test]
    fn a_copy_of_what_a_node_said_that_kept_the_sender_before_is_not_heeded() {
        assert_eq!(counted_with_a_late_copy(Heard::Later, None), 1);
        assert_eq!(counted_with_a_late_copy(Heard::Before, None), 1);
    }

    /// When the receiver hears that another node is to keep the sender.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Heard {
        /// Before the first one has said anything.
        Before,
        /// Later, and then that the first one is to keep it again.
        Later,
    }

    /// How often a courier is counted that tells its counter from one node, then all over again from another, before what the
    /// first one had said comes.
    fn counted_with_a_late_copy(heard: Heard, flaw: Option<Omission>) -> u64 {
        let plan = Plan { nodes: 5, couriers: 20, flaw, ..Plan::default() };
        let mut world = World::new(plan, 0);
        let keeper = |world: &World, table: usize, name: Name| world.tables[table][home_of(&name, HOMES)];
        let ways = (0..plan.couriers).flat_map(|number| (1..=5).map(move |table| (number, table)));
        let nodes = |world: &World, (number, table): (u64, usize)| {
            let first = keeper(world, 0, courier(number));
            (first, keeper(world, table, courier(number)), keeper(world, 0, counter(number % COUNTERS)))
        };
        let is_apart = |way: &(u64, usize)| {
            let (first, second, receiver) = nodes(&world, *way);
            // The receiver keeps what it kept, and nothing else.
            let [before, after] = [0, way.1].map(|table| &world.tables[table]);
            let stays = before.iter().zip(after).all(|(was, is)| (*was == receiver) == (*is == receiver));
            first != second && first != receiver && second != receiver && stays
        };
        let (number, table) =
            ways.into_iter().find(is_apart).expect("one courier moves and its counter stays");
        let (first, _, receiver) = nodes(&world, (number, table));
        world.begun.extend((COUNTERS..COUNTERS + plan.couriers).filter(|token| *token != COUNTERS + number));

        let says = |(from, to, frame): &(NodeId, NodeId, Frame)| {
            let is_it = frame.messages.iter().any(|message| matches!(message, Message::Msg { .. }));
            (*from, *to) == (first, receiver) && frame.to_life > 0 && is_it
        };
        world.calm(0, |world| world.flying.iter().any(says));
        if heard == Heard::Before {
            world.flying.retain(|(_, to, _)| *to != receiver);
            world.hear(receiver, table);
            let greets = |(from, to, _): &(NodeId, NodeId, Frame)| (*from, *to) == (receiver, first);
            while let Some(index) = world.flying.iter().position(greets) {
                world.apply(Move::Deliver(index));
            }
            while !world.flying.iter().any(says) {
                world.apply(Move::Tick(first));
                world.apply(Move::Sync(first));
            }
        }
        let index = world.flying.iter().position(says).expect("the courier tells it");
        world.apply(Move::Delay(index));
        world.hear(first, table);
        world.flying.retain(|(from, to, _)| (*from, *to) != (first, receiver));
        world.calm(table, |world| world.moves().is_empty() && world.is_over());
        assert_eq!(world.counted(), 1);
        if heard == Heard::Later {
            world.hear(receiver, 0);
        }
        world.apply(Move::DeliverLate(0));
        world.settle();
        world.counted()
    }

    #[test]
    fn a_run_repeats_itself() {
        assert_eq!(run(&Plan::default(), 7), run(&Plan::default(), 7));
    }
}
