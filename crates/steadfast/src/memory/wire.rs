//! What nodes ask each other's checkpoint memory, as bytes.
//!
//! It decides how a question and its answer are written: a length, a postcard head, then bulk bytes that
//! are never copied. Decoders are pure and bounded and never panic. Read next: `service`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steadfast_proto::ids::Digest;

use super::pool::{CheckpointId, GrantRefused, SealedCheckpoint, Token, Usage};
use crate::net::rpc::Body;

const LENGTH_BYTES: usize = 4;

/// Why bytes are not a question or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// They end too early.
    #[error("a message of checkpoint memory is cut short")]
    Truncated,
    /// The head can't be read.
    #[error("a message of checkpoint memory can't be read")]
    Content,
}

/// A decoded message: its head's debug text and its bulk (for fuzzing and traces).
#[derive(Clone, Debug)]
pub struct Message {
    /// The head, for people.
    pub head: String,
    /// The bulk behind it.
    pub bulk: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    Profile,
    Reserve {
        id: CheckpointId,
        bytes: u64,
    },
    Renew {
        token: Token,
    },
    Has {
        token: Token,
        digests: Vec<Digest>,
    },
    /// The chunk's cipher text follows.
    Put {
        token: Token,
        digest: Digest,
        crc: u32,
    },
    /// The manifest follows.
    Seal {
        token: Token,
        revision: u64,
    },
    Release {
        token: Token,
    },
    Get {
        digest: Digest,
    },
    Manifest {
        digest: Digest,
    },
    List,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Response {
    Usage(Usage),
    Granted {
        token: Token,
        held: Vec<Digest>,
    },
    Denied(GrantRefused),
    Done,
    Here(Vec<bool>),
    Sealed(Digest),
    Missing(Vec<Digest>),
    /// The chunk's cipher text follows.
    Chunk {
        crc: u32,
    },
    /// The manifest follows.
    Manifest,
    Absent,
    List(Vec<SealedCheckpoint>),
    /// Nothing was changed; the reason in words.
    Refused(String),
}

pub(super) fn encode(head: &impl Serialize, bulk: Bytes) -> Body {
    let head = postcard::to_extend(head, vec![0; LENGTH_BYTES]);
    let mut head = head.expect("messages have no unserializable field");
    let length = u32::try_from(head.len() - LENGTH_BYTES).expect("heads are bounded");
    if let Some(place) = head.first_chunk_mut() {
        *place = length.to_le_bytes();
    }
    Body { head: head.into(), bulk }
}

pub(super) fn decode<T: for<'de> Deserialize<'de>>(mut bytes: Bytes) -> Result<(T, Bytes), WireError> {
    let length = *bytes.first_chunk::<LENGTH_BYTES>().ok_or(WireError::Truncated)?;
    let length = u32::from_le_bytes(length) as usize;
    let mut rest = bytes.split_off(LENGTH_BYTES);
    if rest.len() < length {
        return Err(WireError::Truncated);
    }
    let bulk = rest.split_off(length);
    let head = postcard::from_bytes(&rest).map_err(|_| WireError::Content)?;
    Ok((head, bulk))
}

/// Decodes a question; pure, the entry for fuzzing.
///
/// # Errors
/// The bytes are none.
pub fn decode_request(bytes: Bytes) -> Result<Message, WireError> {
    decode::<Request>(bytes).map(|(head, bulk)| Message { head: format!("{head:?}"), bulk })
}

/// Decodes an answer; pure, the entry for fuzzing.
///
/// # Errors
/// The bytes are none.
pub fn decode_response(bytes: Bytes) -> Result<Message, WireError> {
    decode::<Response>(bytes).map(|(head, bulk)| Message { head: format!("{head:?}"), bulk })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_come_back_with_their_bulk() {
        let request = Request::Put { token: Token(7), digest: Digest([9; 32]), crc: 11 };
        let body = encode(&request, Bytes::from_static(b"cipher text"));
        let joined = Bytes::from([&body.head[..], &body.bulk].concat());
        let (head, bulk) = decode::<Request>(joined.clone()).unwrap();
        assert_eq!((head, &bulk[..]), (request, &b"cipher text"[..]));
        let error = decode::<Request>(joined.slice(..20)).unwrap_err();
        assert_eq!(error, WireError::Truncated);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let length = u32::try_from(bytes.len()).unwrap();
            let framed = Bytes::from([&length.to_le_bytes()[..], &bytes].concat());
            for bytes in [Bytes::from(bytes), framed] {
                let _ = decode_request(bytes.clone());
                let _ = decode_response(bytes);
            }
        }
    }
}
