//! What travels between the two ends of streams, and the bounds of every frame.
//!
//! Must never believe a length or a name that somebody else wrote: [`Frame::decode`] refuses what is out of bounds, and the
//! machine counts what is out of place.

use serde::{Deserialize, Serialize};

use super::{Blob, Name, Text};

/// The longest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
const VERSION: u8 = 1;
/// No stream gets that far; numbers up to here can be added to.
const SEQ_MAX: u64 = 1 << 62;

/// What is said to an instance, without who says it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Letter {
    /// What it is, in the words of the programs, such as `order.placed`.
    pub kind: Text,
    /// What it belongs to.
    pub correlation: Option<Text>,
    /// What it says.
    pub payload: Blob,
    /// Whether it begins an instance where there is none.
    pub begins: bool,
}

/// The messages of one sender to one receiver (H1): numbers count within it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stream {
    /// Who sends.
    pub from: Name,
    /// The sender's epoch: which of the lives of that name.
    pub epoch: u64,
    /// Who receives.
    pub to: Name,
}

/// Neighbouring messages of one stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// Whose.
    pub stream: Stream,
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// Why a message is not taken by anybody.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error,
)]
pub enum Refusal {
    /// There is no such instance, and the message begins none.
    #[error("there is no such instance")]
    NoInstance,
    /// The instance has ended.
    #[error("the instance has ended")]
    Ended,
    /// The message begins an instance of a program that is not deployed.
    #[error("no such program is deployed")]
    NoProgram,
}

/// The four steps (PROTOCOLS 2.4) and what keeps them short.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Message {
    /// 1: something is said.
    Msg {
        /// In which stream.
        stream: Stream,
        /// Its number.
        seq: u64,
        /// The sender has finished everything up to here.
        floor: u64,
        /// What is said.
        letter: Letter,
    },
    /// 2: it is durable here, and will be consumed once. Also asks, after a crash, whether it is confirmed.
    Ack {
        /// Which messages.
        span: Span,
        /// The receiver's own epoch.
        epoch: u64,
    },
    /// 3: the acks have come (or the sender gave up): forget the messages.
    Confirm {
        /// Which messages.
        span: Span,
    },
    /// 4: they are forgotten.
    ConfirmAck {
        /// Which messages.
        span: Span,
    },
    /// Instead of 2: nobody here takes it.
    Refused {
        /// In which stream.
        stream: Stream,
        /// Its number.
        seq: u64,
        /// Why.
        why: Refusal,
    },
    /// The sender has ended and everything is finished: forget the stream.
    Close {
        /// Which.
        stream: Stream,
    },
    /// It is forgotten.
    Closed {
        /// Which.
        stream: Stream,
    },
}

/// What one node says to another at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// Which life of the sender.
    pub life: u64,
    /// Which life of the receiver it is meant for; zero: not known yet.
    pub to_life: u64,
    /// Counts the frames of this life to this receiver, from 1.
    pub number: u64,
    /// What is said.
    pub messages: Vec<Message>,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It was written by another version.
    #[error("a frame of exchanges has version {0}; this program reads version {VERSION}")]
    Version(u8),
    /// It is too long.
    #[error("a frame of exchanges has {0} bytes, more than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// Its fields make no sense.
    #[error("a frame of exchanges can not be read")]
    Malformed,
}

impl Frame {
    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.messages.iter().map(Message::weight).sum());
        out.push(VERSION);
        postcard::to_extend(self, out).expect("a vector takes everything")
    }

    /// The frame in `bytes`.
    ///
    /// # Errors
    /// Anything but one frame of this version within the bounds.
    pub fn decode(bytes: &[u8]) -> Result<Frame, DecodeError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(DecodeError::TooLong(bytes.len()));
        }
        let (version, body) = bytes.split_first().ok_or(DecodeError::Malformed)?;
        if *version != VERSION {
            return Err(DecodeError::Version(*version));
        }
        let (frame, rest) = postcard::take_from_bytes::<Frame>(body).map_err(|_| DecodeError::Malformed)?;
        let sound = frame.messages.iter().all(Message::is_sound);
        if rest.is_empty() && sound { Ok(frame) } else { Err(DecodeError::Malformed) }
    }
}

impl Message {
    /// Who is to get it.
    pub fn to(&self) -> &Name {
        match self {
            Message::Msg { stream, .. } | Message::Close { stream } => &stream.to,
            Message::Confirm { span } => &span.stream.to,
            Message::Ack { span, .. } | Message::ConfirmAck { span } => &span.stream.from,
            Message::Refused { stream, .. } | Message::Closed { stream } => &stream.from,
        }
    }

    /// Whose it is.
    pub fn from(&self) -> &Name {
        match self {
            Message::Msg { stream, .. } | Message::Close { stream } => &stream.from,
            Message::Confirm { span } => &span.stream.from,
            Message::Ack { span, .. } | Message::ConfirmAck { span } => &span.stream.to,
            Message::Refused { stream, .. } | Message::Closed { stream } => &stream.to,
        }
    }

    /// About how many bytes it takes in a frame.
    pub fn weight(&self) -> usize {
        const REST: usize = 48;
        let letter = if let Message::Msg { letter, .. } = self {
            letter.payload.len()
                + letter.kind.len()
                + letter.correlation.as_ref().map_or(0, |text| text.len())
        } else {
            0
        };
        letter + self.to().as_str().len() + self.from().as_str().len() + REST
    }

    fn is_sound(&self) -> bool {
        match self {
            Message::Msg { seq, floor, .. } => seq > floor && *seq <= SEQ_MAX,
            Message::Ack { span, .. } | Message::Confirm { span } | Message::ConfirmAck { span } => {
                span.first > 0 && span.first <= span.last && span.last <= SEQ_MAX
            }
            Message::Refused { seq, .. } => (1..=SEQ_MAX).contains(seq),
            Message::Close { .. } | Message::Closed { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Stream {
        let name = |text| Name::parse(text).expect("a name");
        Stream { from: name("a/1"), epoch: 7, to: name("b/2") }
    }

    fn frame(messages: Vec<Message>) -> Frame {
        Frame { life: 1, to_life: 2, number: 3, messages }
    }

    #[test]
    fn a_frame_survives_the_wire() {
        let letter = Letter {
            kind: "k".into(),
            correlation: Some("c".into()),
            payload: vec![0, 255].into(),
            begins: true,
        };
        let span = Span { stream: stream(), first: 1, last: 4 };
        let all = frame(vec![
            Message::Msg { stream: stream(), seq: 2, floor: 1, letter },
            Message::Ack { span: span.clone(), epoch: 9 },
            Message::Confirm { span: span.clone() },
            Message::ConfirmAck { span },
            Message::Refused { stream: stream(), seq: 1, why: Refusal::Ended },
            Message::Close { stream: stream() },
            Message::Closed { stream: stream() },
        ]);
        assert_eq!(Frame::decode(&all.encode()), Ok(all));
    }

    #[test]
    fn what_makes_no_sense_is_no_frame() {
        let span = Span { stream: stream(), first: 5, last: 4 };
        assert_eq!(
            Frame::decode(&frame(vec![Message::Confirm { span }]).encode()),
            Err(DecodeError::Malformed)
        );
        let mut bytes = frame(Vec::new()).encode();
        bytes.push(0);
        assert_eq!(Frame::decode(&bytes), Err(DecodeError::Malformed));
        bytes[0] = 9;
        assert_eq!(Frame::decode(&bytes), Err(DecodeError::Version(9)));
        assert_eq!(Frame::decode(&[]), Err(DecodeError::Malformed));
    }
}
