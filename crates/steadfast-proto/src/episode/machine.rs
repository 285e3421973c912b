//! The machine: all instances of one store on one node, their timers, and where everybody else is.
//!
//! What a step decides is recorded, applied at once, and carried out after the record is durable where the rules ask for it;
//! so the memory may be ahead of the disk, and nobody can see it. Messages between instances of the same store need not
//! wait at all: their records stand in one log, of which a crash only takes the end. `traffic.rs` has the four steps, `run.rs`
//! the episodes, `requests.rs` what people ask for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::{
    Answer, Apart, Failure, Instance, Order, Outcome, Program, Record, Request, RequestError, Settings,
    Status, Task,
};
use crate::exchange::{Blob, Letter, Message, Name, Stream, Text};
use crate::ids::NodeId;
use crate::machine::Machine;
use crate::time::Time;

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Another node said this, and the session's fence let it pass.
    Received(Vec<Message>),
    /// Another node has begun a new life, or is heard of for the first time: what was said to it may be lost.
    Met(NodeId),
    /// A party that is no instance said this; nothing in another name than its own is heeded.
    Outside {
        /// Who.
        party: Name,
        /// What.
        messages: Vec<Message>,
    },
    /// That party asks for all that is unfinished between it and the instances here.
    Polled(Name),
    /// An episode has ended.
    Ran {
        /// Of which instance.
        name: Name,
        /// Which run.
        run: u64,
        /// What came of it.
        result: Result<Outcome, Failure>,
    },
    /// An adapter has ended.
    Effected {
        /// For which message.
        stream: Stream,
        /// Its number.
        seq: u64,
        /// What came of it.
        result: EffectResult,
    },
    /// Somebody asks for something; the answer carries the token.
    Request {
        /// Names the answer.
        token: u64,
        /// What is asked for.
        request: Request,
    },
    /// Nobody waits for this answer any more.
    Unasked {
        /// Which.
        token: u64,
        /// What instance it was about.
        name: Name,
    },
    /// These programs can be run here, and no others.
    Deployed(BTreeMap<Text, Program>),
    /// Who keeps which home, by number; all are kept here without any, unless the store is shared. All that is recorded is
    /// durable, since what is kept elsewhere from now on is forgotten.
    Homes(Vec<NodeId>),
    /// What is kept in other stores.
    Apart(Vec<Apart>),
    /// This node may write these homes of a shared store, and this is all that is in them.
    Adopted {
        /// Their numbers.
        homes: BTreeSet<usize>,
        /// All of them.
        instances: Vec<Instance>,
        /// The highest epoch that an instance of them ever had.
        epoch: u64,
    },
    /// All records were replayed: go on where the last life ended.
    Recovered,
    /// The time has come.
    Deadline,
}

/// What came of an effect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EffectResult {
    /// It is done; with a reply, the instance is told what came of it.
    Done(Option<Reply>),
    /// It may succeed later; it is tried again.
    Later(Text),
    /// It never will: the instance is told.
    Never(Text),
}

/// What an instance is told of an effect that it asked to be told of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reply {
    /// The kind of the event.
    pub kind: Text,
    /// What it says.
    pub payload: Blob,
}

/// An effect on a foreign system; whoever carries it out makes `stream` and `seq` its idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Effect {
    /// From whom, and to which adapter.
    pub stream: Stream,
    /// Its number.
    pub seq: u64,
    /// What is to be done.
    pub letter: Letter,
}

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// To another node's instances.
    Node(NodeId),
    /// To a party that is no instance, when it asks.
    Outside(Name),
}

/// What is to be done after a step. Fields stand in the order in which they must be carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Batch {
    /// Leaves now: nothing durable is promised by it.
    pub send: Vec<(Destination, Message)>,
    /// To be appended to the log, in this order; none may be lost if a later one is kept.
    pub persist: Vec<Record>,
    /// Whether something waits for the log to be durable; if nothing does, it may be written later.
    pub force: bool,
    /// Leaves when everything up to here is durable.
    pub send_durable: Vec<(Destination, Message)>,
    /// To be carried out when everything up to here is durable.
    pub effects: Vec<Effect>,
    /// To be said when everything up to here is durable.
    pub answers: Vec<(u64, Result<Answer, RequestError>)>,
    /// To be run; need not wait for the disk, since nothing but their checkpoint comes of them.
    pub run: Vec<Task>,
}

/// What was not as it should be, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counters {
    /// Messages of epochs that are over.
    pub stale: u64,
    /// Messages for instances that are kept elsewhere.
    pub misrouted: u64,
    /// Messages that were not taken because an inbox was full.
    pub full: u64,
    /// Messages that were too far ahead of their stream.
    pub too_far: u64,
    /// Acks of messages that were never sent: the sender's durable state was lost.
    pub acks_from_future: u64,
    /// Episodes that came to nothing.
    pub failures: u64,
    /// Messages of parties in another name than their own.
    pub impostors: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Timer {
    /// A stream's messages are sent again.
    Flow { from: Name, to: Name },
    /// A sender is reminded.
    Remind { from: Name, to: Name },
    /// The deadline of a wait, or the next try.
    Wake(Name),
    /// What has ended is forgotten.
    Retire(Name),
}

/// Where an instance is.
pub(super) enum Place {
    Here,
    Elsewhere(Destination),
    Effect,
    /// Nobody keeps it just now, or it is not known who: what is said to it is said again later.
    Nowhere,
}

/// All instances of one store on one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Episodes {
    pub(super) settings: Settings,
    pub(super) me: NodeId,
    pub(super) last_epoch: u64,
    pub(super) last_run: u64,
    /// Boxed, so that the names that are gone over to find one lie close together.
    pub(super) instances: BTreeMap<Name, Box<Instance>>,
    pub(super) programs: BTreeMap<Text, Program>,
    pub(super) homes: Vec<NodeId>,
    /// The homes that this node may write, where nodes share the store.
    pub(super) adopted: Option<BTreeSet<usize>>,
    pub(super) apart: Vec<Apart>,
    pub(super) timers: BTreeSet<(Time, Timer)>,
    /// Which instances have something unfinished for which outside party.
    pub(super) parties: BTreeMap<Name, BTreeSet<Name>>,
    /// What instances here say to each other.
    pub(super) local: VecDeque<Message>,
    /// Whom to see to, in the order in which they were woken: what is due first is run first.
    pub(super) woken: VecDeque<Name>,
    pub(super) counters: Counters,
}

impl Episodes {
    /// Without instances. `life` rises with every start and grows faster than instances begin: microseconds since 1970.
    pub fn new(settings: Settings, me: NodeId, life: u64) -> Episodes {
        Episodes {
            settings,
            me,
            last_epoch: life,
            last_run: 0,
            instances: BTreeMap::new(),
            programs: BTreeMap::new(),
            homes: Vec::new(),
            adopted: None,
            apart: Vec::new(),
            timers: BTreeSet::new(),
            parties: BTreeMap::new(),
            local: VecDeque::new(),
            woken: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Takes an instance from a store, before the records that followed it are replayed.
    pub fn restore(&mut self, instance: Instance) {
        self.last_epoch = self.last_epoch.max(instance.epoch);
        self.instances.insert(instance.name.clone(), Box::new(instance));
    }

    /// Takes a record from a log. [`Input::Recovered`] follows the last one.
    pub fn replay(&mut self, record: &Record) {
        self.apply(record);
    }

    /// One instance.
    pub fn instance(&self, name: &Name) -> Option<&Instance> {
        self.instances.get(name).map(Box::as_ref)
    }

    /// All, by name.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values().map(Box::as_ref)
    }

    /// What was not as it should be.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether a version of a program can be run here.
    pub fn can_run(&self, program: &str, version: u32) -> bool {
        self.programs.get(program).is_some_and(|program| program.versions.contains(&version))
    }

    /// Records something: applied now, written down by the caller.
    pub(super) fn record(&mut self, record: Record, out: &mut Batch) {
        self.apply(&record);
        out.persist.push(record);
    }

    fn apply(&mut self, record: &Record) {
        if let Some(instance) = Instance::begin(record) {
            self.last_epoch = self.last_epoch.max(instance.epoch);
            self.instances.insert(instance.name.clone(), Box::new(instance));
        } else if let Record::Retired { name } = record {
            self.instances.remove(name);
        } else if let Some(instance) = self.instances.get_mut(record.name()) {
            instance.apply(record, &self.settings);
        }
    }

    /// Sends what rests on what was recorded.
    pub(super) fn send_durable(&mut self, message: Message, out: &mut Batch) {
        match self.place(message.to()) {
            Place::Here => self.local.push_back(message),
            Place::Elsewhere(destination) => {
                self.note_party(&destination, &message);
                out.force = true;
                out.send_durable.push((destination, message));
            }
            Place::Nowhere => {}
            Place::Effect => {
                if let Message::Msg { stream, seq, letter, .. } = message {
                    out.force = true;
                    out.effects.push(Effect { stream, seq, letter });
                }
            }
        }
    }

    /// Sends what a crash may make untrue without harm.
    pub(super) fn send_lazily(&mut self, message: Message, out: &mut Batch) {
        if self.settings.order == Order::Full {
            return self.send_durable(message, out);
        }
        match self.place(message.to()) {
            Place::Here => self.local.push_back(message),
            Place::Elsewhere(destination) => {
                self.note_party(&destination, &message);
                out.send.push((destination, message));
            }
            Place::Effect | Place::Nowhere => {}
        }
    }

    fn note_party(&mut self, destination: &Destination, message: &Message) {
        if let Destination::Outside(party) = destination {
            self.parties.entry(party.clone()).or_default().insert(message.from().clone());
        }
    }

    pub(super) fn arm(&mut self, at: Time, timer: Timer) {
        self.timers.insert((at, timer));
    }

    /// Sees to an instance before the step ends.
    pub(super) fn wake(&mut self, name: &Name) {
        if self.woken.back() != Some(name) {
            self.woken.push_back(name.clone());
        }
    }

    /// Goes on with instances as a store gave them back.
    pub(super) fn recover_these(&mut self, now: Time, names: Vec<Name>, out: &mut Batch) {
        for name in names {
            self.ask_again(now, &name, out);
            let Some(instance) = self.instances.get(&name) else { continue };
            for to in instance.outboxes.keys().cloned().collect::<Vec<_>>() {
                self.send_again(now, &name, &to, out);
            }
            if self.instances.get(&name).is_some_and(|instance| !instance.is_active()) {
                self.arm(now + self.settings.rto_max, Timer::Retire(name.clone()));
            }
            self.wake(&name);
        }
    }

    /// Says again to the instances of a node what they have not answered, and asks them what they have not confirmed.
    fn met(&mut self, now: Time, node: NodeId, out: &mut Batch) {
        for name in self.instances.keys().cloned().collect::<Vec<_>>() {
            let Some(instance) = self.instances.get(&name) else { continue };
            let is_there = |other: &Name| match self.place(other) {
                Place::Elsewhere(Destination::Node(keeper)) => keeper == node,
                Place::Elsewhere(Destination::Outside(_)) | Place::Here | Place::Effect | Place::Nowhere => {
                    false
                }
            };
            let said = instance
                .outboxes
                .iter()
                .filter(|(to, outbox)| (!outbox.is_empty() || !instance.is_active()) && is_there(to));
            let said: Vec<Name> = said.map(|(to, _)| to.clone()).collect();
            let heard = instance.peers.iter().filter(|(from, inbound)| !inbound.is_empty() && is_there(from));
            let heard: Vec<Name> = heard.map(|(from, _)| from.clone()).collect();
            for to in said {
                self.progress(now, &name, &to);
                self.send_again(now, &name, &to, out);
            }
            heard.iter().for_each(|from| self.ask(now, from, &name, out));
        }
    }

    fn fire(&mut self, now: Time, timer: Timer, out: &mut Batch) {
        match timer {
            Timer::Flow { from, to } => self.flow_due(now, &from, &to, out),
            Timer::Remind { from, to } => self.remind_due(now, &from, &to, out),
            Timer::Wake(name) => {
                if let Some(instance) = self.instances.get_mut(&name) {
                    instance.live.wait_due = None;
                }
                self.wake(&name);
            }
            Timer::Retire(name) => self.retire(now, name, out),
        }
    }

    /// Forgets an instance that has ended, when nobody has anything unfinished with it.
    fn retire(&mut self, now: Time, name: Name, out: &mut Batch) {
        let Some(instance) = self.instances.get(&name) else { return };
        let ended_at = match instance.status {
            Status::Active => return,
            Status::Ended { at, .. } | Status::Cancelled { at } => at,
        };
        let settled = instance.outboxes.is_empty() && instance.is_quiet();
        if settled && now.since(ended_at) >= self.settings.keep {
            self.record(Record::Retired { name }, out);
        } else {
            let later = now + self.settings.rto_max;
            self.arm(later.max(ended_at + self.settings.keep), Timer::Retire(name));
        }
    }
}

impl Machine for Episodes {
    type Input = Input;
    type Output = Batch;

    fn step(&mut self, now: Time, input: Input, out: &mut Batch) {
        match input {
            Input::Received(messages) => {
                messages.into_iter().for_each(|message| self.hear(now, message, out))
            }
            Input::Met(node) => self.met(now, node, out),
            Input::Outside { party, messages } => {
                for message in messages {
                    if *message.from() == party {
                        self.hear(now, message, out);
                    } else {
                        self.counters.impostors += 1;
                    }
                }
            }
            Input::Polled(party) => self.polled(now, &party, out),
            Input::Ran { name, run, result } => self.ran(now, &name, run, result, out),
            Input::Effected { stream, seq, result } => self.effected(now, stream, seq, result, out),
            Input::Request { token, request } => self.asked(now, token, request, out),
            Input::Unasked { token, name } => self.unasked(token, &name),
            Input::Deployed(programs) => {
                self.programs = programs;
                self.woken.extend(self.instances.keys().cloned());
            }
            Input::Homes(homes) => self.rehome(homes, out),
            Input::Apart(apart) => self.apart = apart,
            Input::Adopted { homes, instances, epoch } => self.adopt(now, homes, instances, epoch, out),
            Input::Recovered => {
                self.timers.clear();
                self.recover_these(now, self.instances.keys().cloned().collect(), out);
                // Other nodes don't know of this life yet: what is for them is said as soon as they are met.
                let is_heard = |to: &(Destination, Message)| matches!(to.0, Destination::Outside(_));
                out.send.retain(is_heard);
                out.send_durable.retain(is_heard);
            }
            Input::Deadline => {
                while self.timers.first().is_some_and(|(at, _)| *at <= now) {
                    let Some((_, timer)) = self.timers.pop_first() else { break };
                    self.fire(now, timer, out);
                }
            }
        }
        loop {
            if let Some(message) = self.local.pop_front() {
                self.hear(now, message, out);
            } else if let Some(name) = self.woken.pop_front() {
                self.attend(now, &name, out);
            } else {
                break;
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }
}
