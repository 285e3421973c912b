//! What nodes say to each other about events, and the bounds of every message.
//!
//! Must never believe a length or a name that another node wrote: [`Message::decode`] refuses what is out of bounds,
//! and the machine counts what is out of place. Read `receive.rs` for what each message does.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::machine::WHY_BYTES_MAX;
use super::{
    FIELDS_MAX, GapReason, Life, NAME_BYTES_MAX, Nature, Occurrence, Position, Refusal, TEXT_BYTES_MAX,
    Topic, Value, Variant,
};

/// The longest message, in bytes.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// The longest event, in bytes of a message.
pub const EVENT_BYTES_MAX: usize = 16 << 10;
/// The longest topic, in bytes of a message.
pub const TOPIC_BYTES_MAX: usize = 8 << 10;
/// The longest list in a message.
pub const LIST_MAX: usize = 4_096;
/// How many bytes of events a message takes before it leaves; one event more still fits the longest message.
pub(super) const NOTIFY_BYTES: usize = 40 << 10;
/// What anything but text takes at most, in bytes, with room to spare.
pub(super) const SMALL_BYTES: usize = 32;

/// From where on a registration wants events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Start {
    /// From the next one on.
    Now,
    /// From the oldest that is retained on.
    Oldest,
    /// From the first that is retained and not older than this.
    Time {
        /// Microseconds since 1970.
        unix_us: u64,
    },
    /// After this one; from the first of this life on, if it is one of an earlier life.
    After(Position),
}

/// A part of a sequence: what the registration `number` is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Which registration of the receiver.
    pub number: u64,
    /// Which of its attempts.
    pub attempt: u64,
    /// The number of the first event of this attempt.
    pub first: u64,
    /// The number that the source's next event will have.
    pub head: u64,
    /// Events and gaps, without a hole between them.
    pub items: Vec<Item>,
}

/// An event or a gap, without what the registration says already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Item {
    /// An event.
    Event {
        /// Its number.
        seq: u64,
        /// What and when.
        #[serde(with = "shared")]
        what: Arc<Occurrence>,
    },
    /// Events that are missing at the source.
    Gap {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
        /// Why.
        reason: GapReason,
    },
}

/// How far a registration has come. Renews its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Progress {
    /// Which registration of the sender.
    pub number: u64,
    /// Which of its attempts; nothing but the lease is meant when it is not the present one.
    pub attempt: u64,
    /// The number of the last event that is received, with everything before it.
    pub upto: u64,
    /// How many events more may be sent before the next acknowledgement.
    pub credit: u64,
}

/// What travels between nodes. Any of it may be lost, doubled or overtaken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Tell me of this (RegReq, RegReplicate).
    Register {
        /// Names the registration in this life of the sender.
        number: u64,
        /// Counts how often it began anew; a higher one replaces a lower one.
        attempt: u64,
        /// Of what.
        topic: Topic,
        /// As the node's own registration, or through a listener.
        variant: Variant,
        /// Whether the present level is wanted at once.
        nature: Nature,
        /// From where on.
        start: Start,
        /// How many events may be sent before the first acknowledgement.
        credit: u64,
    },
    /// You will be told (RegAck).
    Registered {
        /// Which registration of the receiver.
        number: u64,
        /// Which of its attempts.
        attempt: u64,
        /// The number of the first event of this attempt.
        first: u64,
        /// The number that the source's next event will have.
        head: u64,
    },
    /// You will not be told.
    Refused {
        /// Which registration of the receiver.
        number: u64,
        /// Which of its attempts.
        attempt: u64,
        /// Why not.
        reason: Refusal,
    },
    /// Tell me no more (Dereg).
    Deregister {
        /// Which registrations of the sender.
        numbers: Vec<u64>,
    },
    /// What happened here (Notify).
    Notify {
        /// At least one.
        parts: Vec<Part>,
    },
    /// What was received, and that more is wanted (NotifyAck, Renew).
    Progress {
        /// At least one.
        streams: Vec<Progress>,
    },
    /// These registrations are not known here: register again.
    Unknown {
        /// Which registrations of the receiver.
        numbers: Vec<u64>,
    },
    /// From a node that is no member yet: give me the registrations of the whole cluster.
    Join {
        /// Those after this one; it is what was told last.
        after: Option<(Life, Topic)>,
    },
    /// The answer to `Join`: registrations, which are to be the joining node's own before it counts as up.
    Replicate {
        /// Who wants to be told of what, in order.
        registrations: Vec<(Life, Topic)>,
        /// Whether there are no more.
        is_all: bool,
    },
}

/// Bytes that are no message about events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// More bytes than a message has.
    #[error("a message about events of {0} bytes; {BODY_BYTES_MAX} are possible")]
    TooLong(usize),
    /// Not in this format.
    #[error("a message about events that does not follow the format")]
    Malformed,
    /// A list, a name, a topic or an event beyond its bound.
    #[error("a message about events whose {0} is beyond the bound of it")]
    OutOfBounds(&'static str),
}

impl Message {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("these types have a form in bytes")
    }

    /// The message in `bytes`.
    ///
    /// # Errors
    /// When they are too many, follow another format or hold something beyond its bound.
    pub fn decode(bytes: &[u8]) -> Result<Message, InvalidMessage> {
        if bytes.len() > BODY_BYTES_MAX {
            return Err(InvalidMessage::TooLong(bytes.len()));
        }
        let (message, rest) =
            postcard::take_from_bytes::<Message>(bytes).map_err(|_| InvalidMessage::Malformed)?;
        if !rest.is_empty() {
            return Err(InvalidMessage::Malformed);
        }
        message.check()?;
        Ok(message)
    }

    fn check(&self) -> Result<(), InvalidMessage> {
        let bound = |holds: bool, what| if holds { Ok(()) } else { Err(InvalidMessage::OutOfBounds(what)) };
        match self {
            Message::Register { topic, .. } => bound(is_sound_topic(topic), "topic"),
            Message::Deregister { numbers } | Message::Unknown { numbers } => {
                bound(numbers.len() <= LIST_MAX, "list")
            }
            Message::Progress { streams } => bound(streams.len() <= LIST_MAX, "list"),
            Message::Replicate { registrations, .. } => {
                bound(registrations.len() <= LIST_MAX, "list")?;
                bound(registrations.iter().all(|(_, topic)| is_sound_topic(topic)), "topic")
            }
            Message::Notify { parts } => {
                bound(parts.len() <= LIST_MAX, "list")?;
                let is_sound = |item: &Item| match item {
                    Item::Event { seq, what } => *seq > 0 && is_sound_occurrence(what),
                    Item::Gap { from, to, reason } => {
                        *from > 0 && from <= to && gap_bytes(reason) <= SMALL_BYTES + WHY_BYTES_MAX
                    }
                };
                bound(parts.iter().all(|part| part.items.iter().all(is_sound)), "event")
            }
            Message::Join { after } => bound(after.iter().all(|(_, topic)| is_sound_topic(topic)), "topic"),
            Message::Registered { .. } | Message::Refused { .. } => Ok(()),
        }
    }
}

/// Whether a topic is within all bounds.
pub(super) fn is_sound_topic(topic: &Topic) -> bool {
    topic.about.len() <= FIELDS_MAX
        && topic.about.keys().all(|name| is_sound_name(name))
        && topic.about.values().all(|text| text.len() <= TEXT_BYTES_MAX)
        && topic_bytes(topic) <= TOPIC_BYTES_MAX
}

/// Whether an occurrence is within all bounds.
pub(super) fn is_sound_occurrence(what: &Occurrence) -> bool {
    let is_sound = |value: &Value| match value {
        Value::Text(text) => text.len() <= TEXT_BYTES_MAX,
        Value::Flag(_) | Value::Integer(_) | Value::Number(_) => true,
    };
    what.fields.len() <= FIELDS_MAX
        && what.fields.keys().all(|name| is_sound_name(name))
        && what.fields.values().all(is_sound)
        && occurrence_bytes(what) <= EVENT_BYTES_MAX
}

fn is_sound_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX
}

/// How many bytes a topic takes at most.
pub(super) fn topic_bytes(topic: &Topic) -> usize {
    let about = topic.about.iter().map(|(name, text)| name.len() + text.len() + SMALL_BYTES);
    topic.kind.as_str().len() + SMALL_BYTES + about.sum::<usize>()
}

/// How many bytes an occurrence takes at most, with its number.
pub(super) fn occurrence_bytes(what: &Occurrence) -> usize {
    let value = |value: &Value| match value {
        Value::Text(text) => text.len(),
        Value::Flag(_) | Value::Integer(_) | Value::Number(_) => 0,
    };
    let fields = what.fields.iter().map(|(name, field)| name.len() + value(field) + SMALL_BYTES / 2);
    SMALL_BYTES + fields.sum::<usize>()
}

/// How many bytes a gap takes at most.
pub(super) fn gap_bytes(reason: &GapReason) -> usize {
    match reason {
        GapReason::Unwatchable(why) => SMALL_BYTES + why.len(),
        GapReason::Overrun
        | GapReason::Retention
        | GapReason::Suppressed
        | GapReason::Unwatched
        | GapReason::Producer => SMALL_BYTES,
    }
}

/// Serde of something shared as of what is shared.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::super::Occurrence;

    pub(super) fn serialize<S: Serializer>(what: &Arc<Occurrence>, serializer: S) -> Result<S::Ok, S::Error> {
        Occurrence::serialize(what, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<Occurrence>, D::Error> {
        Occurrence::deserialize(deserializer).map(Arc::new)
    }
}
