//! A node with its disk, driven as `steadfast::episodes::Keeper` drives one: a group of inputs, its tasks, one commit, its tails.
//!
//! A kill takes all but what is on the disk: what was forced, and as much of the rest as had got there, record by record, so that
//! a group may be torn. Must never let anything leave before what it rests on is forced.

use std::collections::{BTreeMap, VecDeque};

use steadfast_proto::episode::{
    Answer, Batch, Destination, Effect, Episodes, Input, Instance, Program, Record, RequestError, Settings,
    Task,
};
use steadfast_proto::exchange::{Frame, Message, Sessions, Stale, Text};
use steadfast_proto::ids::NodeId;
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;

/// How many inputs one group has at most.
const GROUP_MAX: usize = 256;

/// What comes to a node.
#[derive(Clone, Debug)]
pub(super) enum Arrival {
    /// A frame from another node.
    Frame(NodeId, Frame),
    /// Anything else.
    Input(Input),
}

/// What leaves a node.
#[derive(Debug, Default)]
pub(super) struct Tails {
    pub(super) frames: Vec<(NodeId, Frame)>,
    pub(super) effects: Vec<Effect>,
    pub(super) answers: Vec<(u64, Result<Answer, RequestError>)>,
}

/// One node.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) id: NodeId,
    /// Counts its lives; what was meant for an earlier one is nothing to this one.
    pub(super) life: u64,
    pub(super) is_up: bool,
    pub(super) episodes: Episodes,
    /// When the next look at the inbox is due; not known while a commit is under way.
    pub(super) turn: Option<Time>,
    pub(super) is_committing: bool,
    /// Since when something was written that is not forced.
    pub(super) dirty_since: Option<Time>,
    inbox: VecDeque<Arrival>,
    sessions: Sessions,
    settings: Settings,
    /// All instances as the forced records give them.
    disk: Episodes,
    /// What was written since.
    tail: Vec<Record>,
    batch: Batch,
    held: Batch,
    /// Who is to be told of this life.
    greeted: Vec<NodeId>,
}

impl Host {
    pub(super) fn new(id: NodeId, settings: Settings) -> Host {
        Host {
            id,
            life: 0,
            is_up: false,
            episodes: Episodes::new(settings, id, 0),
            turn: None,
            is_committing: false,
            dirty_since: None,
            inbox: VecDeque::new(),
            sessions: Sessions::new(0),
            settings,
            disk: Episodes::new(settings, id, 0),
            tail: Vec::new(),
            batch: Batch::default(),
            held: Batch::default(),
            greeted: Vec::new(),
        }
    }

    /// Begins a life with what is on the disk.
    pub(super) fn start(&mut self, now: Time, homes: &[NodeId], programs: &BTreeMap<Text, Program>) {
        self.life += 1;
        self.is_up = true;
        self.sessions = Sessions::new(self.life);
        // The same number as the keeper gives: microseconds.
        self.episodes = Episodes::new(self.settings, self.id, now.as_nanos() / 1_000);
        let (episodes, batch) = (&mut self.episodes, &mut self.batch);
        episodes.step(now, Input::Homes(homes.to_vec()), batch);
        episodes.step(now, Input::Deployed(programs.clone()), batch);
        for instance in self.disk.instances() {
            let instance = Instance::decode(&instance.encode()).expect("it was encoded here");
            self.episodes.restore(instance);
        }
        self.greeted.extend(homes.iter().copied().filter(|home| *home != self.id));
        self.episodes.step(now, Input::Recovered, &mut self.batch);
    }

    /// How many records a kill may take.
    pub(super) fn at_risk(&self) -> usize {
        self.tail.len()
    }

    /// Ends its life, with so many of the records that were not forced on the disk all the same.
    pub(super) fn kill(&mut self, kept: usize) {
        self.is_up = false;
        self.is_committing = false;
        self.dirty_since = None;
        self.turn = None;
        self.inbox.clear();
        self.batch = Batch::default();
        self.held = Batch::default();
        self.greeted.clear();
        let mut bytes = Vec::new();
        for record in self.tail.drain(..).take(kept) {
            bytes.clear();
            record.encode(&mut bytes);
            self.disk.replay(&Record::decode(&bytes).expect("it was encoded here"));
        }
    }

    pub(super) fn arrive(&mut self, arrival: Arrival) {
        self.inbox.push_back(arrival);
    }

    /// Whether there is anything to look at.
    pub(super) fn is_busy(&self) -> bool {
        !self.inbox.is_empty() || self.batch != Batch::default() || !self.greeted.is_empty()
    }

    /// Looks at what has come, and gives the tasks that follow.
    pub(super) fn look(&mut self, now: Time) -> Vec<Task> {
        let count = self.inbox.len().min(GROUP_MAX);
        for arrival in self.inbox.drain(..count).collect::<Vec<_>>() {
            match arrival {
                Arrival::Input(input) => self.episodes.step(now, input, &mut self.batch),
                Arrival::Frame(from, frame) => self.take(now, from, frame),
            }
        }
        if self.episodes.deadline().is_some_and(|deadline| deadline <= now) {
            self.episodes.step(now, Input::Deadline, &mut self.batch);
        }
        std::mem::take(&mut self.batch.run)
    }

    fn take(&mut self, now: Time, from: NodeId, frame: Frame) {
        let is_new = self.sessions.is_new(from, &frame);
        match self.sessions.take(from, frame) {
            Ok(messages) => self.episodes.step(now, Input::Received(messages), &mut self.batch),
            // An empty frame tells the sender of this life.
            Err(Stale::Receiver) => self.greeted.push(from),
            Err(Stale::Sender | Stale::Overtaken) => {}
        }
        if is_new {
            self.episodes.step(now, Input::Met(from), &mut self.batch);
        }
    }

    /// What came of a task at once; gives the tasks that follow.
    pub(super) fn ran(&mut self, now: Time, input: Input) -> Vec<Task> {
        self.episodes.step(now, input, &mut self.batch);
        std::mem::take(&mut self.batch.run)
    }

    /// Writes what the group gave; gives what leaves without waiting for the disk. [`Host::is_committing`] says whether
    /// [`Host::committed`] has to follow.
    pub(super) fn write(&mut self, now: Time) -> Tails {
        let mut batch = std::mem::take(&mut self.batch);
        if !batch.persist.is_empty() {
            self.dirty_since = self.dirty_since.or(Some(now));
        }
        self.tail.append(&mut batch.persist);
        let greetings = std::mem::take(&mut self.greeted);
        let mut frames: Vec<_> =
            greetings.into_iter().map(|to| (to, self.sessions.frame(to, Vec::new()))).collect();
        frames.extend(self.frames(std::mem::take(&mut batch.send)));
        self.is_committing = batch.force;
        self.held = batch;
        Tails { frames, ..Tails::default() }
    }

    /// Everything written is on the disk: gives what waited for that.
    pub(super) fn committed(&mut self) -> Tails {
        self.is_committing = false;
        self.dirty_since = None;
        for record in self.tail.drain(..) {
            self.disk.replay(&record);
        }
        let Batch { send_durable, effects, answers, .. } = std::mem::take(&mut self.held);
        Tails { frames: self.frames(send_durable), effects, answers }
    }

    fn frames(&mut self, sends: Vec<(Destination, Message)>) -> Vec<(NodeId, Frame)> {
        let mut frames: BTreeMap<NodeId, Vec<Message>> = BTreeMap::new();
        for (to, message) in sends {
            // Nobody is outside in this world.
            let Destination::Node(to) = to else { continue };
            frames.entry(to).or_default().push(message);
        }
        frames.into_iter().map(|(to, messages)| (to, self.sessions.frame(to, messages))).collect()
    }
}
