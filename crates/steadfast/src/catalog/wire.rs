//! The messages between members.
//!
//! One envelope says from which store of which member of which cluster a message is and for whom. It decides what is refused before the engine
//! sees it: garbage, another cluster, another member, a store that is not the one the member had. Decoding is bounded and never panics.
//! Read next: `network` for who sends, `embedded` for who answers.

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::engine::{Engine, RaftNodeId, SnapshotMeta, StoreId, Vote};
use super::membership::{Change, MembershipError};
use super::table::{Command, Reply};

/// Largest message in bytes; a transport must carry that much.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes of a checkpoint in one message.
pub(crate) const CHUNK_BYTES: usize = 512 << 10;
/// Version of the messages; another one is refused.
const VERSION: u8 = 1;

/// A message with its sender and receiver.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope<T> {
    version: u8,
    pub(crate) cluster: u128,
    pub(crate) from: RaftNodeId,
    pub(crate) from_store: StoreId,
    pub(crate) to: RaftNodeId,
    /// The store that the sender means, or unknown.
    pub(crate) to_store: StoreId,
    pub(crate) body: T,
}

/// What one member asks another.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Append(AppendEntriesRequest<Engine>),
    Vote(VoteRequest<Engine>),
    PreVote(VoteRequest<Engine>),
    TransferLeader(TransferLeaderRequest<Engine>),
    Snapshot(Box<SnapshotChunk>),
    /// Only to a leader.
    Write {
        command: Command,
        timeout_ms: u32,
    },
    /// Only to a leader: the log index that a read must have seen.
    ReadIndex {
        timeout_ms: u32,
    },
    /// Only to a leader.
    Change {
        change: Change,
        timeout_ms: u32,
    },
    /// Which store is yours, and how far are you?
    Hello,
}

/// A piece of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotChunk {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) offset: u64,
    pub(crate) total: u64,
    pub(crate) data: Bytes,
}

/// What the other member answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    Append(AppendEntriesResponse<Engine>),
    Vote(VoteResponse<Engine>),
    TransferLeader(bool),
    /// The piece is kept; send the next.
    SnapshotMore,
    SnapshotDone(SnapshotResponse<Engine>),
    Written(Result<Reply, WriteRefusal>),
    ReadIndex(Result<u64, ReadRefusal>),
    Changed(Result<(), MembershipError>),
    Hello {
        store: StoreId,
        applied_next: u64,
    },
    Refused(Refusal),
}

/// Why a leader did not answer a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WriteRefusal {
    /// Not done: this node does not lead.
    NotLeader(Option<RaftNodeId>),
    /// Not done: no majority confirmed this leader lately.
    NoMajority,
    /// Not done: too much waits.
    Overloaded { pending: u64, bytes: u64 },
    /// Perhaps done.
    Unknown,
}

/// Why a leader did not answer a read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ReadRefusal {
    NotLeader(Option<RaftNodeId>),
    NoMajority,
}

/// Why a message was not looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub(crate) enum Refusal {
    #[error("the message can't be decoded")]
    Malformed,
    #[error("the message has version {found}; this node speaks version {VERSION}")]
    Version { found: u8 },
    #[error(
        "the message is for cluster {found:032x}; this node belongs to cluster {own:032x}: another cluster, or the same before it was recovered from a survivor (then empty the catalog's folder of the node that stayed behind)"
    )]
    Cluster { found: u128, own: u128 },
    #[error("the message is for member {found}; this node is member {own}")]
    Member { found: RaftNodeId, own: RaftNodeId },
    #[error(
        "member {member} is known with store {known} and has store {found}: its disk was lost or copied; remove it and join it as a new member"
    )]
    Store { member: RaftNodeId, known: StoreId, found: StoreId },
    #[error("the pieces of a checkpoint came out of order")]
    OutOfOrder,
    #[error("the checkpoint has {total} bytes, more than this node accepts")]
    TooLarge { total: u64 },
    #[error("the node is closed")]
    Closed,
}

impl<T: Serialize> Envelope<T> {
    /// Wraps a message.
    pub(crate) fn new(
        cluster: u128,
        from: (RaftNodeId, StoreId),
        to: (RaftNodeId, StoreId),
        body: T,
    ) -> Self {
        Self { version: VERSION, cluster, from: from.0, from_store: from.1, to: to.0, to_store: to.1, body }
    }

    /// Encodes it, unless it is larger than a message may be.
    pub(crate) fn encode(&self) -> Option<Bytes> {
        let bytes = postcard::to_allocvec(self).ok()?;
        (bytes.len() <= MESSAGE_BYTES_MAX).then(|| bytes.into())
    }
}

impl<T: DeserializeOwned> Envelope<T> {
    /// Decodes what another member sent.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        match bytes.first() {
            Some(&VERSION) => postcard::from_bytes(bytes).map_err(|_| Refusal::Malformed),
            Some(&found) => Err(Refusal::Version { found }),
            None => Err(Refusal::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Envelope::<Request>::decode(&bytes);
            let _ = Envelope::<Response>::decode(&bytes);
        }

        #[test]
        fn a_damaged_message_never_panics(position in 0_usize..60, value in any::<u8>()) {
            let hello = Envelope::new(7, (1, StoreId(2)), (3, StoreId(4)), Request::ReadIndex { timeout_ms: 9 });
            let mut bytes = hello.encode().unwrap().to_vec();
            if let Some(byte) = bytes.get_mut(position) {
                *byte = value;
            }
            let _ = Envelope::<Request>::decode(&bytes);
        }
    }

    #[test]
    fn another_version_is_named() {
        let hello = Envelope::new(7, (1, StoreId(2)), (3, StoreId(4)), Request::Hello);
        let mut bytes = hello.encode().unwrap().to_vec();
        bytes[0] = 9;
        assert_eq!(Envelope::<Request>::decode(&bytes).unwrap_err(), Refusal::Version { found: 9 });
    }
}
