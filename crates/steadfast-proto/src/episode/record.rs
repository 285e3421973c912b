//! What is recorded: every change of an instance, whole. Replaying the records gives the instances back.
//!
//! Each record is about one instance, and each is one atomic step (PROTOCOLS 2.5, the column of durable actions).

use serde::{Deserialize, Serialize};

use super::{EventId, Key, Mode, Next, Reply};
use crate::exchange::{Blob, Letter, Name, Stream, Text};
use crate::time::Time;

/// The longest record, in bytes: that of a checkpoint with the largest state and all messages.
pub const RECORD_BYTES_MAX: usize = 4 << 20;
const VERSION: u8 = 1;

/// One change of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Record {
    /// There is one more.
    Began {
        /// Which.
        name: Name,
        /// Which of the lives of that name.
        epoch: u64,
        /// Which version of its program it runs.
        version: u32,
        /// When its next episode may begin.
        mode: Mode,
        /// Which instance began it.
        parent: Option<Name>,
        /// Its input, and what makes a repeated request harmless, when it was begun by a request.
        input: Option<(Blob, Option<Key>)>,
        /// When.
        at: Time,
    },
    /// R1: a message has come in.
    Accepted {
        /// In which stream; its receiver is the instance.
        stream: Stream,
        /// Its number.
        seq: u64,
        /// Up to where the sender has finished.
        floor: u64,
        /// What it says.
        letter: Letter,
    },
    /// A request has come in.
    Requested {
        /// For which instance.
        name: Name,
        /// What it is.
        kind: Text,
        /// What it belongs to.
        correlation: Option<Text>,
        /// What it says.
        payload: Blob,
        /// Makes a repetition harmless.
        key: Option<Key>,
        /// When.
        at: Time,
    },
    /// E2: an episode has ended; all of it or nothing.
    Checkpoint {
        /// Of which instance.
        name: Name,
        /// The event that is gone from the inbox.
        consumed: EventId,
        /// The new state.
        state: Blob,
        /// What is to be sent.
        sent: Vec<Sent>,
        /// The answer to the event.
        answer: Option<Blob>,
        /// What follows.
        next: Next,
        /// When.
        at: Time,
    },
    /// An episode came to nothing.
    Failed {
        /// Of which instance.
        name: Name,
        /// How often in a row, by now.
        attempts: u32,
        /// Why.
        why: Text,
        /// When it is tried again; never by itself without one.
        until: Option<Time>,
    },
    /// E4: messages were acknowledged.
    Acked {
        /// Their sender, the instance.
        name: Name,
        /// Their receiver.
        to: Name,
        /// The first.
        first: u64,
        /// The last.
        last: u64,
        /// The receiver's epoch.
        epoch: u64,
    },
    /// E5: messages were confirm-acked.
    Forgotten {
        /// Their sender, the instance.
        name: Name,
        /// Their receiver.
        to: Name,
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// A message was refused, or its time is over; the instance is told.
    GaveUp {
        /// Its sender, the instance.
        name: Name,
        /// Its receiver.
        to: Name,
        /// Which.
        seq: u64,
        /// Why.
        why: Text,
    },
    /// R2: messages were confirmed.
    Confirmed {
        /// In which stream; its receiver is the instance.
        stream: Stream,
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// A receiver has lost its memory; the instance is told.
    PeerReset {
        /// The instance.
        name: Name,
        /// The receiver.
        peer: Name,
        /// The receiver's new epoch.
        epoch: u64,
    },
    /// The sender of a stream has ended: it is forgotten.
    Dropped {
        /// Which; its receiver is the instance.
        stream: Stream,
    },
    /// The receiver of a stream has forgotten it.
    Closed {
        /// Its sender, the instance.
        name: Name,
        /// Its receiver.
        to: Name,
    },
    /// A person changed something.
    Steered {
        /// Of which instance.
        name: Name,
        /// What.
        steer: Steer,
    },
    /// It was cancelled and has ended.
    Cancelled {
        /// Which.
        name: Name,
        /// What it sends nevertheless: to its parent and its children.
        sent: Vec<Sent>,
        /// When.
        at: Time,
    },
    /// An instance that has ended is forgotten.
    Retired {
        /// Which.
        name: Name,
    },
    /// An effect was carried out, and the instance is told what came of it: both or neither.
    Replied {
        /// The instance.
        name: Name,
        /// The adapter.
        to: Name,
        /// Which message.
        seq: u64,
        /// What the message belonged to.
        correlation: Option<Text>,
        /// What it is told.
        reply: Reply,
    },
}

/// A message of a checkpoint; its number follows from those before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sent {
    /// To whom.
    pub to: Name,
    /// What it says.
    pub letter: Letter,
    /// When it counts as undeliverable.
    pub give_up: Option<Time>,
}

/// What a person changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Steer {
    /// No more episodes.
    Pause,
    /// Episodes again, at once.
    Go,
    /// Another version of the program.
    Version(u32),
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It was written by another version.
    #[error("a record of episodes has version {0}; this program reads version {VERSION}")]
    Version(u8),
    /// Its fields make no sense.
    #[error("a record of episodes can not be read")]
    Malformed,
}

impl Record {
    /// The instance that it changes.
    pub fn name(&self) -> &Name {
        match self {
            Record::Accepted { stream, .. }
            | Record::Confirmed { stream, .. }
            | Record::Dropped { stream } => &stream.to,
            Record::Began { name, .. }
            | Record::Requested { name, .. }
            | Record::Checkpoint { name, .. }
            | Record::Failed { name, .. }
            | Record::Acked { name, .. }
            | Record::Forgotten { name, .. }
            | Record::GaveUp { name, .. }
            | Record::PeerReset { name, .. }
            | Record::Closed { name, .. }
            | Record::Steered { name, .. }
            | Record::Cancelled { name, .. }
            | Record::Replied { name, .. }
            | Record::Retired { name } => name,
        }
    }

    /// Appends its bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        let taken = std::mem::take(out);
        *out = postcard::to_extend(self, taken).expect("a vector takes everything");
    }

    /// The record in `bytes`.
    ///
    /// # Errors
    /// Anything but one record of this version.
    pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
        let (version, body) = bytes.split_first().ok_or(DecodeError::Malformed)?;
        if *version != VERSION {
            return Err(DecodeError::Version(*version));
        }
        let (record, rest) = postcard::take_from_bytes(body).map_err(|_| DecodeError::Malformed)?;
        if rest.is_empty() { Ok(record) } else { Err(DecodeError::Malformed) }
    }
}
