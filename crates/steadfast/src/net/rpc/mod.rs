//! Calls between nodes: a request, one answer, over mutually authenticated TLS.
//!
//! It decides which connection a call takes, how many may be in flight, and when a silent path is given
//! up for another network. It never looks into a body and never repeats a call that may have been
//! carried out: the caller knows whether that is safe. One connection per peer and class keeps bulk from
//! delaying consensus. Read next: `frame` (bytes), `peers` (calling), `listener` (being called).

mod connection;
mod frame;
mod listener;
mod peers;
mod trace;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use steadfast_proto::ids::NodeId;

#[doc(hidden)]
pub use frame::read_frames;
pub use frame::{BODY_BYTES_MAX, FrameError, HEADER_BYTES, Header, Kind, decode_header};
pub use listener::{Accepted, Limits, ListenError, Listener, Services};
pub(super) use peers::connect_any;
pub use peers::{ApiStream, JoinConnectError, Peers, connect_join};
pub use trace::{NoTrace, Trace, Tracer};

/// What TLS runs over: a TCP connection whose reads are gathered, since the TLS library asks for a few
/// kilobytes at a time.
pub type Wire = tokio::io::BufReader<tokio::net::TcpStream>;

/// Bytes that one read of a connection asks the kernel for.
const READ_BYTES: usize = 256 << 10;
/// Bytes that may wait, encrypted, for the kernel to take them.
const WRITE_BYTES: usize = 256 << 10;

/// A boxed future that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a call is for; each class has its own connection to each peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Jobs, questions, joins: small and not urgent.
    Control,
    /// The catalog's consensus: small and urgent, fails fast.
    Raft,
    /// Chunks of checkpoints: large and patient.
    Bulk,
    /// Events: many, small and urgent; a flood of them must delay nothing else.
    Events,
}

impl Class {
    const ALL: [Self; 4] = [Self::Control, Self::Raft, Self::Bulk, Self::Events];

    /// How long a connection may be silent while an answer is awaited before it is given up.
    const fn silence_max(self) -> Duration {
        match self {
            Self::Control | Self::Events => Duration::from_millis(600),
            Self::Raft => Duration::from_millis(300),
            Self::Bulk => Duration::from_secs(3),
        }
    }
}

/// What is sent with a call: `head`, then `bulk`, which are joined on the wire without being copied.
#[derive(Clone, Default)]
pub struct Body {
    /// The first part.
    pub head: Bytes,
    /// The second part, usually large and usually empty.
    pub bulk: Bytes,
}

impl Body {
    /// Bytes of both parts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.bulk.len()
    }

    /// Whether both parts are empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} + {} bytes)", self.head.len(), self.bulk.len())
    }
}

impl From<Bytes> for Body {
    fn from(head: Bytes) -> Self {
        Self { head, bulk: Bytes::new() }
    }
}

impl From<Vec<u8>> for Body {
    fn from(head: Vec<u8>) -> Self {
        Self::from(Bytes::from(head))
    }
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// Nobody said where the peer listens. The call was not sent.
    #[error("no address is known for node {peer}")]
    NoAddress {
        /// The peer.
        peer: NodeId,
    },
    /// No network leads to the peer. The call was not sent.
    #[error("node {peer} can't be reached on any of its networks: {reason}")]
    Unreachable {
        /// The peer.
        peer: NodeId,
        /// What the last attempt met.
        reason: ConnectError,
    },
    /// The connection broke before the answer came. The peer may have carried the call out.
    #[error("the connection to node {peer} was lost before the answer came")]
    Lost {
        /// The peer.
        peer: NodeId,
    },
    /// The answer did not come in time. The peer may have carried the call out.
    #[error("node {peer} did not answer within {timeout_ms} ms")]
    TimedOut {
        /// The peer.
        peer: NodeId,
        /// The bound that the caller gave, in ms.
        timeout_ms: u128,
    },
    /// The peer answered that it did not carry the call out.
    #[error("node {peer} refused: {reason}")]
    Refused {
        /// The peer.
        peer: NodeId,
        /// The peer's words.
        reason: String,
    },
    /// The request is larger than a frame may be. The call was not sent.
    #[error("a request of {found} bytes is over the {BODY_BYTES_MAX} that one call carries")]
    TooLarge {
        /// Bytes given.
        found: usize,
    },
}

impl RpcError {
    /// Whether the peer certainly did not carry the call out.
    #[must_use]
    pub const fn is_certainly_unsent(&self) -> bool {
        matches!(self, Self::NoAddress { .. } | Self::Unreachable { .. } | Self::TooLarge { .. })
    }
}

/// Why no connection could be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The operating system or the TLS handshake refused.
    #[error("{address}: {reason}")]
    Failed {
        /// The address tried last.
        address: SocketAddr,
        /// What it met.
        reason: String,
    },
    /// Nothing answered in time.
    #[error("{address}: no answer within {timeout_ms} ms")]
    TimedOut {
        /// The address tried last.
        address: SocketAddr,
        /// How long it was tried, in ms.
        timeout_ms: u128,
    },
    /// The attempt was abandoned because the node is shutting down or the peer was removed.
    #[error("the attempt was abandoned")]
    Abandoned,
}

impl ConnectError {
    fn failed(address: SocketAddr, error: &io::Error) -> Self {
        Self::Failed { address, reason: error.to_string() }
    }
}
