//! One durable program: what it is, and what each record makes of it.
//!
//! [`Instance::apply`] is the only thing that changes what is durable, in life as in recovery, so that both agree. It decides
//! nothing: the machine decides, writes the record down, and applies it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::{
    DecodeError, Event, EventId, Key, Match, Mode, Next, Record, Reply, Sent, Settings, Steer, Wait,
};
use crate::exchange::{Blob, Inbound, Letter, Name, Outbox, Stream, Text};
use crate::time::Time;

const VERSION: u8 = 1;

/// How an instance is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// It waits, or runs.
    Active,
    /// It has ended by itself.
    Ended {
        /// Its last word.
        answer: Blob,
        /// When.
        at: Time,
    },
    /// It was cancelled.
    Cancelled {
        /// When.
        at: Time,
    },
}

/// Why an instance begins no episodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stopped {
    /// A person wants it.
    Paused,
    /// Its episode failed: it is tried again, or waits for a person.
    Failing {
        /// How often in a row.
        attempts: u32,
        /// Why, the last time.
        why: Text,
        /// When it is tried again; never by itself without one.
        until: Option<Time>,
    },
}

/// An episode that was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Past {
    /// Its number.
    pub episode: u64,
    /// What began it.
    pub kind: Text,
    /// Who sent that.
    pub source: Option<Name>,
    /// When it ended.
    pub at: Time,
    /// How many messages it sent.
    pub sent: u32,
}

/// A request that may be repeated.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) digest: u128,
    pub(super) number: u64,
    pub(super) at: Time,
    pub(super) answer: Option<Blob>,
    /// Whether the episode that consumed it has ended.
    pub(super) done: bool,
}

/// What an instance does, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doing {
    /// An episode runs.
    Running,
    /// It waits for an event.
    Waiting,
    /// It waits for this many messages to be finished before it looks at events again.
    Sending {
        /// Not acknowledged.
        unacked: u64,
        /// Acknowledged, and not confirm-acked.
        unconfirmed: u64,
    },
    /// It begins no episodes.
    Stopped,
    /// It has ended.
    Ended,
}

/// What a crash forgets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Live {
    /// The run whose outcome is awaited, and its event.
    pub(super) run: Option<(u64, EventId)>,
    /// So many events of the inbox do not match the wait.
    pub(super) scanned: usize,
    pub(super) wait_due: Option<Time>,
    /// Who awaits the answer to which request.
    pub(super) awaiting: BTreeMap<u64, Vec<u64>>,
    /// Who awaits the end.
    pub(super) awaiting_end: Vec<u64>,
}

/// A durable program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instance {
    /// What it is called.
    pub name: Name,
    /// Which of the lives of that name.
    pub epoch: u64,
    /// Which version of its program it runs.
    pub version: u32,
    /// When its next episode may begin.
    pub mode: Mode,
    /// Which instance began it.
    pub parent: Option<Name>,
    /// Those that it began and that have not ended.
    pub children: BTreeSet<Name>,
    /// When it began.
    pub begun_at: Time,
    /// How many episodes it has had.
    pub episode: u64,
    /// What the last one left.
    pub state: Blob,
    /// What it waits for.
    pub wait: Wait,
    /// How it is.
    pub status: Status,
    /// Why it begins no episodes.
    pub stopped: Option<Stopped>,
    /// What has come and was not consumed, oldest first.
    pub inbox: VecDeque<Event>,
    /// What is remembered of those who send to it.
    pub peers: BTreeMap<Name, Inbound>,
    /// What it sends.
    pub outboxes: BTreeMap<Name, Outbox>,
    /// How many of its messages are not acknowledged.
    pub unacked: u64,
    /// How many are acknowledged and not confirm-acked.
    pub unconfirmed: u64,
    /// Its last episodes, oldest first.
    pub history: VecDeque<Past>,
    pub(super) cancel: bool,
    pub(super) asked: BTreeMap<Text, Asked>,
    requests: u64,
    notices: u64,
    #[serde(skip)]
    pub(super) live: Live,
}

impl Instance {
    pub(super) fn begin(record: &Record) -> Option<Instance> {
        let Record::Began { name, epoch, version, mode, parent, input, at } = record else { return None };
        let mut instance = Instance {
            name: name.clone(),
            epoch: *epoch,
            version: *version,
            mode: *mode,
            parent: parent.clone(),
            children: BTreeSet::new(),
            begun_at: *at,
            episode: 0,
            state: Blob::empty(),
            wait: Wait::for_anything(),
            status: Status::Active,
            stopped: None,
            inbox: VecDeque::new(),
            peers: BTreeMap::new(),
            outboxes: BTreeMap::new(),
            unacked: 0,
            unconfirmed: 0,
            history: VecDeque::new(),
            cancel: false,
            asked: BTreeMap::new(),
            requests: 0,
            notices: 0,
            live: Live::default(),
        };
        if let Some((payload, key)) = input {
            instance.request(&Event::START.into(), None, payload, key.as_ref(), *at);
        }
        Some(instance)
    }

    /// What it does.
    pub fn doing(&self) -> Doing {
        if !self.is_active() {
            Doing::Ended
        } else if self.live.run.is_some() {
            Doing::Running
        } else if self.stopped.is_some() {
            Doing::Stopped
        } else if self.may_begin() {
            Doing::Waiting
        } else {
            Doing::Sending { unacked: self.unacked, unconfirmed: self.unconfirmed }
        }
    }

    /// Whether it has not ended.
    pub fn is_active(&self) -> bool {
        self.status == Status::Active
    }

    /// Whether nothing is remembered of any message: every exchange is finished at this end, and consumed.
    pub fn is_quiet(&self) -> bool {
        self.inbox.is_empty()
            && self.outboxes.values().all(Outbox::is_empty)
            && self.peers.values().all(Inbound::is_empty)
    }

    /// About how many bytes are kept for messages that are not finished, beside one mark per stream.
    pub fn bytes_of_messages(&self) -> usize {
        let entries = self.outboxes.values().flat_map(Outbox::entries);
        let letters =
            entries.map(|(_, entry)| 16 + entry.letter.as_ref().map_or(0, |letter| letter.payload.len()));
        let events = self.inbox.iter().map(|event| 64 + event.payload.len());
        letters.chain(events).chain(self.peers.values().map(Inbound::len)).sum()
    }

    /// Whether the messages of the last episode allow another one.
    pub(super) fn may_begin(&self) -> bool {
        match self.mode {
            Mode::Strict => self.unacked == 0 && self.unconfirmed == 0,
            Mode::Pipelined => self.unacked == 0,
        }
    }

    /// Whether the wait names the cancellation, so that the program wants to see it.
    pub(super) fn handles_cancel(&self) -> bool {
        self.wait.any.iter().any(|one| one.kind.as_deref() == Some(Event::CANCEL))
    }

    /// Its bytes, for a store that keeps instances rather than records.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("a vector takes everything")
    }

    /// The instance in `bytes`.
    ///
    /// # Errors
    /// Anything but one instance of this version.
    pub fn decode(bytes: &[u8]) -> Result<Instance, DecodeError> {
        let (version, body) = bytes.split_first().ok_or(DecodeError::Malformed)?;
        if *version != VERSION {
            return Err(DecodeError::Version(*version));
        }
        let (instance, rest) = postcard::take_from_bytes(body).map_err(|_| DecodeError::Malformed)?;
        if rest.is_empty() { Ok(instance) } else { Err(DecodeError::Malformed) }
    }

    /// Takes one record into account.
    pub(super) fn apply(&mut self, record: &Record, settings: &Settings) {
        match record {
            Record::Began { .. } | Record::Retired { .. } => {}
            Record::Accepted { stream, seq, floor, letter } => self.accept(stream, *seq, *floor, letter),
            Record::Requested { kind, correlation, payload, key, at, .. } => {
                if self.asked.len() >= settings.keys_max {
                    self.asked.retain(|_, asked| at.since(asked.at) < settings.keep);
                }
                self.request(kind, correlation.clone(), payload, key.as_ref(), *at);
            }
            Record::Checkpoint { consumed, state, sent, answer, next, at, .. } => {
                self.checkpoint(consumed, sent.len(), answer.as_ref(), *at, settings);
                self.state = state.clone();
                self.send(sent);
                match next {
                    Next::Wait(wait) => self.wait = wait.clone(),
                    Next::End(answer) => self.end(Status::Ended { answer: answer.clone(), at: *at }),
                }
            }
            Record::Failed { attempts, why, until, .. } => {
                self.stopped =
                    Some(Stopped::Failing { attempts: *attempts, why: why.clone(), until: *until });
            }
            Record::Acked { to, first, last, epoch, .. } => {
                let Some(outbox) = self.outboxes.get_mut(to) else { return };
                let count = outbox.acked(*first, *last);
                outbox.peer_epoch = Some(*epoch);
                self.unacked -= count;
                self.unconfirmed += count;
            }
            Record::Forgotten { to, first, last, .. } => {
                let Some(outbox) = self.outboxes.get_mut(to) else { return };
                self.unconfirmed -= outbox.forget(*first, *last);
            }
            Record::Replied { to, seq, correlation, reply, .. } => {
                self.replied(to, *seq, correlation.clone(), reply)
            }
            Record::GaveUp { to, seq, why, .. } => self.give_up(to, *seq, why),
            Record::Confirmed { stream, first, last } => {
                // What came before the first that was heard of may still be on its way.
                let fresh = || Inbound::new(stream.epoch, 0);
                self.peers.entry(stream.from.clone()).or_insert_with(fresh).confirm(*first, *last);
            }
            Record::PeerReset { peer, epoch, .. } => {
                if let Some(outbox) = self.outboxes.get_mut(peer) {
                    outbox.peer_epoch = Some(*epoch);
                }
                self.notice(Event::PEER_RESET, Some(peer.clone()), None, Blob::empty());
            }
            Record::Dropped { stream } => {
                self.peers.remove(&stream.from);
            }
            Record::Closed { to, .. } => {
                self.outboxes.remove(to);
            }
            Record::Steered { steer, .. } => match steer {
                Steer::Pause => self.stopped = Some(Stopped::Paused),
                Steer::Go => self.stopped = None,
                Steer::Version(version) => self.version = *version,
            },
            Record::Cancelled { sent, at, .. } => {
                self.send(sent);
                self.end(Status::Cancelled { at: *at });
            }
        }
    }

    fn replied(&mut self, to: &Name, seq: u64, correlation: Option<Text>, reply: &Reply) {
        let Some(outbox) = self.outboxes.get_mut(to) else { return };
        let count = outbox.acked(seq, seq);
        self.unacked -= count;
        self.unconfirmed += count;
        self.notice(&reply.kind, Some(to.clone()), correlation, reply.payload.clone());
    }

    fn give_up(&mut self, to: &Name, seq: u64, why: &Text) {
        let Some(outbox) = self.outboxes.get_mut(to) else { return };
        self.unacked -= outbox.burn(seq, seq);
        let correlation = Some(Text::from(seq.to_string().as_str()));
        self.notice(Event::UNDELIVERABLE, Some(to.clone()), correlation, Blob::from(why.as_bytes()));
    }

    fn accept(&mut self, stream: &Stream, seq: u64, floor: u64, letter: &Letter) {
        let inbound =
            self.peers.entry(stream.from.clone()).or_insert_with(|| Inbound::new(stream.epoch, floor));
        if inbound.epoch() < stream.epoch {
            *inbound = Inbound::new(stream.epoch, floor);
        }
        inbound.accept(seq, floor);
        if &*letter.kind == Event::CHILD_ENDED {
            self.children.remove(&stream.from);
        }
        self.receive(Event {
            id: EventId::Message { stream: stream.clone(), seq },
            kind: letter.kind.clone(),
            source: Some(stream.from.clone()),
            correlation: letter.correlation.clone(),
            payload: letter.payload.clone(),
        });
    }

    fn receive(&mut self, event: Event) {
        self.cancel |= &*event.kind == Event::CANCEL;
        self.inbox.push_back(event);
    }

    fn request(
        &mut self,
        kind: &Text,
        correlation: Option<Text>,
        payload: &Blob,
        key: Option<&Key>,
        at: Time,
    ) {
        self.requests += 1;
        let number = self.requests;
        if let Some(key) = key {
            let asked = Asked { digest: key.digest, number, at, answer: None, done: false };
            self.asked.insert(key.text.clone(), asked);
        }
        let id = EventId::Request(number);
        self.receive(Event { id, kind: kind.clone(), source: None, correlation, payload: payload.clone() });
    }

    /// The number of the last request.
    pub(super) fn last_request(&self) -> u64 {
        self.requests
    }

    fn notice(&mut self, kind: &str, source: Option<Name>, correlation: Option<Text>, payload: Blob) {
        self.notices += 1;
        let id = EventId::Notice(self.notices);
        self.receive(Event { id, kind: kind.into(), source, correlation, payload });
    }

    fn checkpoint(
        &mut self,
        consumed: &EventId,
        sent: usize,
        answer: Option<&Blob>,
        at: Time,
        settings: &Settings,
    ) {
        let place = self.inbox.iter().position(|event| event.id == *consumed);
        let event = place.and_then(|place| self.inbox.remove(place));
        self.episode += 1;
        if matches!(self.stopped, Some(Stopped::Failing { .. })) {
            self.stopped = None;
        }
        self.live.scanned = 0;
        self.cancel &= event.as_ref().is_none_or(|event| &*event.kind != Event::CANCEL);
        if let EventId::Request(number) = consumed
            && let Some(asked) = self.asked.values_mut().find(|asked| asked.number == *number)
        {
            asked.answer = answer.cloned();
            asked.done = true;
        }
        let (kind, source) =
            event.map_or_else(|| (Text::from(Event::TIMER), None), |event| (event.kind, event.source));
        let sent = u32::try_from(sent).unwrap_or(u32::MAX);
        self.history.push_back(Past { episode: self.episode, kind, source, at, sent });
        while self.history.len() > settings.history_max {
            self.history.pop_front();
        }
    }

    fn send(&mut self, sent: &[Sent]) {
        for Sent { to, letter, give_up } in sent {
            if letter.begins {
                self.children.insert(to.clone());
            }
            self.outboxes.entry(to.clone()).or_default().push(letter.clone(), *give_up);
            self.unacked += 1;
        }
    }

    fn end(&mut self, status: Status) {
        self.status = status;
        self.stopped = None;
        self.wait = Wait { any: Vec::new(), deadline: None };
        self.inbox.clear();
        self.children.clear();
        self.cancel = false;
    }

    /// The oldest event that it waits for, or the deadline if that has come.
    pub(super) fn next_event(&mut self, now: Time, filter: fn(&Match, &Event) -> bool) -> Option<Event> {
        let unseen = self.inbox.iter().skip(self.live.scanned);
        for event in unseen {
            if self.wait.any.iter().any(|one| one.is_met_by(event, filter)) {
                return Some(event.clone());
            }
            self.live.scanned += 1;
        }
        self.wait.deadline.filter(|deadline| *deadline <= now).map(|_| Event {
            id: EventId::Timer(self.episode),
            kind: Event::TIMER.into(),
            source: None,
            correlation: None,
            payload: Blob::empty(),
        })
    }
}

impl Match {
    /// Whether `event` is one of these.
    pub fn is_met_by(&self, event: &Event, filter: fn(&Match, &Event) -> bool) -> bool {
        self.kind.as_ref().is_none_or(|kind| *kind == event.kind)
            && self.source.as_ref().is_none_or(|source| Some(source) == event.source.as_ref())
            && self
                .correlation
                .as_ref()
                .is_none_or(|correlation| Some(correlation) == event.correlation.as_ref())
            && (self.filter.is_none() || filter(self, event))
    }
}
