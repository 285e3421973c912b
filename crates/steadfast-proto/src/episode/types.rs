//! What programs, their users and the machine say to each other.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exchange::{Blob, Name, Stream, Text};
use crate::time::Time;

/// Names one event within its instance, for ever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EventId {
    /// A message of an exchange.
    Message {
        /// Its sender and its epoch, and this instance.
        stream: Stream,
        /// Its number.
        seq: u64,
    },
    /// The number of a request from outside the exchanges, of this instance.
    Request(u64),
    /// The number of something that the machine tells this instance.
    Notice(u64),
    /// The deadline of the wait that episode number `_` left.
    Timer(u64),
}

/// Something that an instance may wait for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Event {
    /// Which.
    pub id: EventId,
    /// What it is; the machine's own kinds are constants of [`Event`].
    pub kind: Text,
    /// Which instance sent it, if one did.
    pub source: Option<Name>,
    /// What it belongs to.
    pub correlation: Option<Text>,
    /// What it says.
    pub payload: Blob,
}

impl Event {
    /// The first event of an instance; its payload is the instance's input.
    pub const START: &'static str = "start";
    /// The deadline of a wait has come.
    pub const TIMER: &'static str = "timer";
    /// The instance is to end; without a wait for this it ends by itself.
    pub const CANCEL: &'static str = "cancel";
    /// A message was refused, or not acknowledged by its deadline; the payload says which and why.
    pub const UNDELIVERABLE: &'static str = "undeliverable";
    /// A receiver has lost what it remembered: what was sent to it may have taken effect not at all, or twice.
    pub const PEER_RESET: &'static str = "peer.reset";
    /// A child has ended; the payload is its answer.
    pub const CHILD_ENDED: &'static str = "child.ended";
}

/// What one event must be like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Match {
    /// Of this kind; any without one.
    pub kind: Option<Text>,
    /// From this instance.
    pub source: Option<Name>,
    /// With this correlation.
    pub correlation: Option<Text>,
    /// True of this filter, in the language that the runtime understands.
    pub filter: Option<Text>,
}

/// What an instance waits for: any of these, or the deadline.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wait {
    /// Any of them; none means that only the deadline counts.
    pub any: Vec<Match>,
    /// Until when.
    pub deadline: Option<Time>,
}

impl Wait {
    /// For the next event of one kind.
    pub fn for_kind(kind: &str) -> Wait {
        Wait { any: vec![Match { kind: Some(kind.into()), ..Match::default() }], deadline: None }
    }

    /// For the next event, whatever it is.
    pub fn for_anything() -> Wait {
        Wait { any: vec![Match::default()], deadline: None }
    }
}

/// A message that an episode sends.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Outgoing {
    /// To whom.
    pub to: Name,
    /// What it is.
    pub kind: Text,
    /// What it belongs to.
    pub correlation: Option<Text>,
    /// What it says.
    pub payload: Blob,
    /// Whether it begins a child where there is no such instance.
    pub begins: bool,
    /// How long it may take until it is acknowledged; for ever without one.
    pub within: Option<Duration>,
}

/// What follows an episode.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Next {
    /// The next one, when this comes.
    Wait(Wait),
    /// Nothing: the instance has ended with this answer.
    End(Blob),
}

/// What came of an episode.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Outcome {
    /// The state that the next episode finds.
    pub state: Blob,
    /// What is sent, in this order per receiver.
    pub messages: Vec<Outgoing>,
    /// The answer to a request, if the event was one and its sender waits.
    pub answer: Option<Blob>,
    /// What follows.
    pub next: Next,
}

impl Default for Outcome {
    fn default() -> Outcome {
        let next = Next::Wait(Wait::for_anything());
        Outcome { state: Blob::empty(), messages: Vec::new(), answer: None, next }
    }
}

/// Why an episode came to nothing. It has changed nothing and is run again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Failure {
    /// One sentence for whoever has to mend it.
    pub why: Text,
    /// Whether it can't succeed however often it is tried.
    pub lasting: bool,
}

/// An episode that is to be run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Task {
    /// Of which instance.
    pub name: Name,
    /// Which version of its program.
    pub version: u32,
    /// Names this run; what comes of an earlier one is ignored.
    pub run: u64,
    /// Which episode of the instance it is, from 1.
    pub episode: u64,
    /// The state that the last one left.
    pub state: Blob,
    /// What has come.
    pub event: Event,
    /// Now, for this episode.
    pub now: Time,
}

/// When the next episode may begin (PROTOCOLS 2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// When all messages of the last one are confirm-acked.
    #[default]
    Strict,
    /// When all are acked.
    Pipelined,
}

/// What is known of a program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Program {
    /// The version that new instances run.
    pub current: u32,
    /// All that can be run here.
    pub versions: BTreeSet<u32>,
    /// When the next episode may begin.
    pub mode: Mode,
}

impl Default for Program {
    fn default() -> Program {
        Program { current: 1, versions: [1].into(), mode: Mode::Strict }
    }
}

/// Makes a repeated request the same request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// What the client calls it.
    pub text: Text,
    /// A digest of all that it asks for.
    pub digest: u128,
}

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Begin an instance.
    Start {
        /// What it is called.
        name: Name,
        /// Its input.
        payload: Blob,
        /// Makes a repetition harmless.
        key: Option<Key>,
        /// Whether the answer is awaited with which it ends.
        wait: bool,
    },
    /// Tell an instance something.
    Send {
        /// Which.
        name: Name,
        /// What it is.
        kind: Text,
        /// What it belongs to.
        correlation: Option<Text>,
        /// What it says.
        payload: Blob,
        /// Makes a repetition harmless.
        key: Option<Key>,
        /// Whether the answer to it is awaited.
        wait: bool,
    },
    /// Ask an instance and its children to end.
    Cancel {
        /// Which.
        name: Name,
    },
    /// Begin no more episodes of it.
    Pause {
        /// Which.
        name: Name,
    },
    /// Go on with one that is paused or parked, at once.
    Retry {
        /// Which.
        name: Name,
    },
    /// Let it run another version of its program from the next episode on.
    Migrate {
        /// Which.
        name: Name,
        /// Which version.
        version: u32,
    },
}

impl Request {
    /// Which instance it is about.
    pub fn name(&self) -> &Name {
        match self {
            Request::Start { name, .. }
            | Request::Send { name, .. }
            | Request::Cancel { name }
            | Request::Pause { name }
            | Request::Retry { name }
            | Request::Migrate { name, .. } => name,
        }
    }
}

/// What became of a request. Nothing is said before it is durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is taken, and nothing is awaited.
    Taken,
    /// The instance's answer.
    Answered(Blob),
    /// The instance ended otherwise: it was cancelled, or has no answer to give.
    Ended(Text),
}

/// Why a request is refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RequestError {
    /// Nobody is called so.
    #[error("there is no instance {0}; `steadfast episode list` shows those that there are")]
    NoInstance(Name),
    /// There is one already.
    #[error("there is an instance {0} already; choose another key, or send to it")]
    Exists(Name),
    /// The program is not deployed.
    #[error("no program {0} is deployed; `steadfast episode deploy` deploys one")]
    NoProgram(Text),
    /// The program has no such version.
    #[error("program {0} has no version {1}")]
    NoVersion(Text, u32),
    /// The instance has ended.
    #[error("instance {0} has ended")]
    Ended(Name),
    /// Too much waits for the instance.
    #[error("{0} events wait for instance {1}, which is the limit; try again when it has caught up")]
    Full(usize, Name),
    /// The key was used for something else.
    #[error("the idempotency key {0} was used for another request to {1}; use a new one")]
    KeyReused(Text, Name),
    /// Too many keys are remembered.
    #[error(
        "{0} idempotency keys are remembered of instance {1}, which is the limit; send without one, or later"
    )]
    Keys(usize, Name),
    /// It is too large.
    #[error("the message has {0} bytes; the limit is {1}")]
    TooLarge(usize, usize),
    /// It is kept by another node.
    #[error("instance {0} is kept by another node")]
    Elsewhere(Name),
    /// Nobody keeps it just now.
    #[error("instance {0} is on its way from one node to another; try again in a moment")]
    Moving(Name),
    /// It was taken, and the answer is given elsewhere.
    #[error(
        "instance {0} has moved to another node before it answered; with an idempotency key the same request waits on"
    )]
    Moved(Name),
}
