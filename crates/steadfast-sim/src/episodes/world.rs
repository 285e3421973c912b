//! Nodes with a log that a crash takes the end of, a network that does what it likes, and programs.
//!
//! The nodes are the real machines of `steadfast_proto::episode`, driven as a runtime drives them: what rests on a record leaves
//! when the record is durable. Must never show a machine anything that a runtime could not know. What may happen next is
//! a list of [`Move`]s, so that a search, a random walk and a script use the same world.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use steadfast_proto::episode::{
    Answer, Batch, Destination, Effect, EffectResult, Episodes, Failure, Input, Outcome, Program, Record,
    Request, RequestError, Settings, Task,
};
use steadfast_proto::exchange::{Frame, Message, Name, Sessions, Stale, Text};
use steadfast_proto::ids::NodeId;
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;

use super::check::{self, Violation};

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Any message may be lost, doubled and overtaken, across lives of nodes too.
    Bag,
    /// Frames may be lost; the fence of sessions drops what is doubled or overtaken.
    Fenced,
    /// Frames are lost but never doubled or overtaken.
    Fifo,
}

/// Runs episodes: a program as the world sees it.
pub type Run = Arc<dyn Fn(&Task) -> Result<Outcome, Failure> + Send + Sync>;

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Move {
    /// Message `_` arrives.
    Deliver(usize),
    /// A copy of it arrives.
    Copy(usize),
    /// It is lost.
    Lose(usize),
    /// What a node recorded becomes durable.
    Sync(NodeId),
    /// A node's oldest task is run.
    Run(NodeId),
    /// A node crashes; `_` of its records that are not durable are kept.
    Crash(NodeId, usize),
    /// A node's next deadline comes.
    Tick(NodeId),
}

/// What is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Flying {
    Message(Message),
    Frame(Frame),
}

/// What waits until a node's log is durable up to somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Gated {
    Send(Destination, Message),
    Effect(Effect),
    Answer(u64, Result<Answer, RequestError>),
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Its machine.
    pub episodes: Episodes,
    /// All that it ever recorded and a crash did not take.
    pub log: Vec<Record>,
    /// So many of those are durable.
    pub durable: usize,
    sessions: Sessions,
    life: u64,
    gated: VecDeque<(usize, Gated)>,
    tasks: VecDeque<Task>,
}

/// All nodes and what is between them.
#[derive(Clone)]
pub struct World {
    /// The time, which only a deadline moves.
    pub now: Time,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// The answers to requests, by token.
    pub answers: BTreeMap<u64, Result<Answer, RequestError>>,
    /// The effects that were carried out, in order.
    pub effects: Vec<Effect>,
    /// How often something became durable, on any node.
    pub commits: u64,
    /// The first thing that was not as it must be.
    pub violation: Option<Violation>,
    pub(super) flying: Vec<(NodeId, NodeId, Flying)>,
    channel: Channel,
    settings: Settings,
    programs: Arc<BTreeMap<String, (Program, Run)>>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("now", &self.now).field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Where what is on its way stands among the rest is no part of the state, but in a channel that keeps the order.
        let mut flying: BTreeMap<(NodeId, NodeId), Vec<u64>> = BTreeMap::new();
        for (from, to, what) in self.flying.iter().filter(|flying| self.matters(flying)) {
            let mut hasher = DefaultHasher::new();
            what.hash(&mut hasher);
            flying.entry((*from, *to)).or_default().push(hasher.finish());
        }
        if self.channel != Channel::Fifo {
            flying.values_mut().for_each(|what| what.sort_unstable());
        }
        (self.now, &self.nodes, &flying, &self.violation).hash(state);
    }
}

impl World {
    /// Nodes 1 to `count`, each with one home, and these programs on all of them.
    pub fn new(
        count: u128,
        channel: Channel,
        settings: Settings,
        programs: BTreeMap<String, (Program, Run)>,
    ) -> World {
        let mut world = World {
            now: Time::from_nanos(1),
            nodes: BTreeMap::new(),
            answers: BTreeMap::new(),
            effects: Vec::new(),
            commits: 0,
            violation: None,
            flying: Vec::new(),
            channel,
            settings,
            programs: Arc::new(programs),
        };
        for id in (1..=count).map(NodeId) {
            let node = Node {
                episodes: Episodes::new(settings, id, 1),
                log: Vec::new(),
                durable: 0,
                sessions: Sessions::new(1),
                life: 1,
                gated: VecDeque::new(),
                tasks: VecDeque::new(),
            };
            world.nodes.insert(id, node);
        }
        for id in (1..=count).map(NodeId) {
            world.introduce(id, count);
        }
        world
    }

    fn introduce(&mut self, id: NodeId, count: u128) {
        let programs =
            self.programs.iter().map(|(name, (program, _))| (Text::from(name.as_str()), program.clone()));
        let programs = programs.collect();
        self.step(id, Input::Homes((1..=count).map(NodeId).collect()));
        self.step(id, Input::Deployed(programs));
    }

    /// The node that keeps `name`.
    pub fn keeper(&self, name: &Name) -> NodeId {
        self.nodes.values().next().and_then(|node| node.episodes.keeper(name)).unwrap_or(NodeId(1))
    }

    /// Asks for something, at the node that keeps the instance.
    pub fn request(&mut self, token: u64, request: Request) {
        let node = self.keeper(request.name());
        self.step(node, Input::Request { token, request });
    }

    /// Steps a node with `input`, and does what can be done at once.
    pub fn step(&mut self, id: NodeId, input: Input) {
        let mut out = Batch::default();
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let before = node.episodes.clone();
        node.episodes.step(now, input, &mut out);
        check::phases(&before, &node.episodes, &mut self.violation);
        let known = node.log.len();
        node.log.extend(out.persist);
        let upto = node.log.len();
        let sends = out.send_durable.into_iter().map(|(to, message)| Gated::Send(to, message));
        let gated = sends.chain(out.effects.into_iter().map(Gated::Effect));
        let gated = gated.chain(out.answers.into_iter().map(|(token, answer)| Gated::Answer(token, answer)));
        node.gated.extend(gated.map(|gated| (upto, gated)));
        node.tasks.extend(out.run);
        check::records(&node.log, known, &mut self.violation);
        self.launch(id, out.send);
    }

    fn launch(&mut self, from: NodeId, sends: Vec<(Destination, Message)>) {
        let mut frames: BTreeMap<NodeId, Vec<Message>> = BTreeMap::new();
        for (to, message) in sends {
            if let Some(node) = self.nodes.get(&from) {
                check::sent(&node.log[..node.durable], &message, self.settings.order, &mut self.violation);
            }
            match to {
                Destination::Node(to) if self.channel == Channel::Bag => {
                    self.fly(from, to, Flying::Message(message));
                }
                Destination::Node(to) => frames.entry(to).or_default().push(message),
                // Nobody is outside in this world.
                Destination::Outside(_) => {}
            }
        }
        for (to, messages) in frames {
            self.send_frame(from, to, messages);
        }
    }

    fn send_frame(&mut self, from: NodeId, to: NodeId, messages: Vec<Message>) {
        let Some(node) = self.nodes.get_mut(&from) else { return };
        let frame = node.sessions.frame(to, messages);
        self.fly(from, to, Flying::Frame(frame));
    }

    fn fly(&mut self, from: NodeId, to: NodeId, what: Flying) {
        // In a bag a second copy adds nothing: one can be delivered as often as one likes.
        let entry = (from, to, what);
        if self.channel != Channel::Bag || !self.flying.contains(&entry) {
            self.flying.push(entry);
        }
    }

    /// What can happen next, without faults.
    pub fn moves(&self) -> Vec<Move> {
        let mut moves: Vec<Move> =
            (0..self.flying.len()).filter(|index| self.is_next(*index)).map(Move::Deliver).collect();
        for (id, node) in &self.nodes {
            if !node.tasks.is_empty() {
                moves.push(Move::Run(*id));
            }
            if node.durable < node.log.len() || !node.gated.is_empty() {
                moves.push(Move::Sync(*id));
            }
        }
        moves
    }

    /// Whether anything would come of its arrival, now or later.
    fn matters(&self, (from, to, what): &(NodeId, NodeId, Flying)) -> bool {
        match (what, self.nodes.get(to)) {
            (Flying::Frame(frame), Some(node)) => {
                let taken = node.sessions.clone().take(*from, frame.clone());
                !matches!(taken, Err(Stale::Sender | Stale::Overtaken)) || node.sessions.is_new(*from, frame)
            }
            (Flying::Message(_), _) | (_, None) => true,
        }
    }

    /// Whether the channel may deliver it now.
    pub fn is_next(&self, index: usize) -> bool {
        let Some((from, to, _)) = self.flying.get(index) else { return false };
        self.channel != Channel::Fifo || !self.flying[..index].iter().any(|(a, b, _)| (a, b) == (from, to))
    }

    /// Whether the channel may deliver a copy.
    pub fn has_copies(&self) -> bool {
        self.channel != Channel::Fifo
    }

    /// How many messages or frames are on their way.
    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// Lets something happen.
    pub fn apply(&mut self, action: Move) {
        match action {
            Move::Deliver(index) => {
                let (from, to, what) = self.flying.remove(index);
                self.arrive(from, to, what);
            }
            Move::Copy(index) => {
                let Some((from, to, what)) = self.flying.get(index).cloned() else { return };
                self.arrive(from, to, what);
            }
            Move::Lose(index) => {
                self.flying.remove(index);
            }
            Move::Sync(id) => self.sync(id),
            Move::Run(id) => self.run(id),
            Move::Crash(id, kept) => self.crash(id, kept),
            Move::Tick(id) => {
                let Some(deadline) = self.nodes.get(&id).and_then(|node| node.episodes.deadline()) else {
                    return;
                };
                self.now = self.now.max(deadline);
                self.step(id, Input::Deadline);
            }
        }
    }

    fn arrive(&mut self, from: NodeId, to: NodeId, what: Flying) {
        let (is_new, messages) = match what {
            Flying::Message(message) => (false, Ok(vec![message])),
            Flying::Frame(frame) => {
                let Some(node) = self.nodes.get_mut(&to) else { return };
                (node.sessions.is_new(from, &frame), node.sessions.take(from, frame))
            }
        };
        match messages {
            Ok(messages) => self.step(to, Input::Received(messages)),
            Err(Stale::Receiver) => self.send_frame(to, from, Vec::new()),
            Err(Stale::Sender | Stale::Overtaken) => {}
        }
        if is_new {
            self.step(to, Input::Met(from));
        }
    }

    fn sync(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.durable = node.log.len();
        self.commits += 1;
        let mut sends = Vec::new();
        for (_, gated) in std::mem::take(&mut node.gated) {
            match gated {
                Gated::Send(to, message) => sends.push((to, message)),
                Gated::Answer(token, answer) => {
                    self.answers.insert(token, answer);
                }
                Gated::Effect(effect) => {
                    let (stream, seq) = (effect.stream.clone(), effect.seq);
                    self.effects.push(effect);
                    self.step(id, Input::Effected { stream, seq, result: EffectResult::Done(None) });
                }
            }
        }
        self.launch(id, sends);
    }

    fn run(&mut self, id: NodeId) {
        let Some(task) = self.nodes.get_mut(&id).and_then(|node| node.tasks.pop_front()) else { return };
        let Some((_, run)) = self.programs.get(task.name.program()) else { return };
        let result = run(&task);
        self.step(id, Input::Ran { name: task.name, run: task.run, result });
    }

    fn crash(&mut self, id: NodeId, kept: usize) {
        let count = self.nodes.len() as u128;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.log.truncate(node.durable + kept);
        node.durable = node.log.len();
        node.life += 1;
        node.sessions = Sessions::new(node.life);
        node.gated.clear();
        node.tasks.clear();
        node.episodes = Episodes::new(self.settings, id, node.life);
        for record in &node.log {
            node.episodes.replay(record);
        }
        self.introduce(id, count);
        self.step(id, Input::Recovered);
        for other in (1..=count).map(NodeId).filter(|other| *other != id) {
            match self.channel {
                Channel::Bag => self.step(id, Input::Met(other)),
                Channel::Fenced | Channel::Fifo => self.send_frame(id, other, Vec::new()),
            }
        }
    }

    /// How many records of a node a crash would take.
    pub fn at_risk(&self, id: NodeId) -> usize {
        self.nodes.get(&id).map_or(0, |node| node.log.len() - node.durable)
    }

    /// Goes on without faults until nothing happens any more but reminders of nothing; E-L1 and E-L2 are about what is then.
    /// Gives whether that came within `ticks` deadlines.
    pub fn settle(&mut self, ticks: usize) -> bool {
        for _ in 0..ticks {
            while let Some(action) = self.moves().first().copied() {
                self.apply(action);
                if self.violation.is_some() {
                    return true;
                }
            }
            let next =
                self.nodes.iter().filter_map(|(id, node)| Some((node.episodes.deadline()?, *id))).min();
            let Some((_, id)) = next else { return true };
            if self.is_quiet() {
                return true;
            }
            self.apply(Move::Tick(id));
        }
        false
    }

    /// Whether no instance remembers a message, and none runs.
    pub fn is_quiet(&self) -> bool {
        let nodes = || self.nodes.values();
        self.flying.is_empty()
            && nodes().all(|node| node.tasks.is_empty())
            && nodes()
                .flat_map(|node| node.episodes.instances())
                .all(steadfast_proto::episode::Instance::is_quiet)
    }

    /// How many bytes are kept for messages that are not finished, on all nodes.
    pub fn bytes_of_messages(&self) -> usize {
        let instances = self.nodes.values().flat_map(|node| node.episodes.instances());
        instances.map(steadfast_proto::episode::Instance::bytes_of_messages).sum()
    }
}
