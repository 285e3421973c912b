//! The heartbeat's binary form: one bounded, versioned frame that fits every network.
//!
//! The frame travels inside a sealed datagram, so whoever wrote it holds the cluster's key; still a decoder here
//! never panics, never reads past its input and never allocates more than the frame's own bounds. Integers are
//! little-endian. A decoder accepts its own version and refuses trailing bytes.

use std::time::Duration;

use crate::ids::{NodeId, ViewId};
use crate::time::Time;

/// The largest frame, in bytes; with the seal and IP headers it stays below 1,500.
pub const HEARTBEAT_BYTES_MAX: usize = 1_300;

/// How many suspicions, and how many fences, one heartbeat can carry.
pub const ENTRIES_MAX: usize = 24;

const VERSION: u8 = 1;
const FLAG_ECHO: u8 = 1;
const FLAG_GRANTED: u8 = 2;

/// The periodic datagram on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Counts the sender's ticks; the same on all networks within one tick.
    pub sequence: u64,
    /// The sender's clock when it was sent; means something to the sender alone, who gets it back in an echo.
    pub sent_at: Time,
    /// How long until the sender's next heartbeat, in milliseconds.
    pub interval_ms: u16,
    /// A number that the sender drew when it started.
    pub boot: u64,
    /// The receiver's `boot` as the sender last heard it, or zero: proof that this is no replay of older days.
    pub challenge: u64,
    /// The view that the sender has installed.
    pub view: ViewId,
    /// The checkpoint memory that the sender still has to lend, in bytes.
    pub free_bytes: u64,
    /// The newest heartbeat that the sender heard from the receiver on this network.
    pub echo: Option<Echo>,
    /// The members that the sender suspects; at most [`ENTRIES_MAX`].
    pub suspects: Vec<NodeId>,
    /// The removed nodes whose leases the sender knows to be over, each with the view that removed it; at most
    /// [`ENTRIES_MAX`].
    pub fenced: Vec<(NodeId, ViewId)>,
}

/// What a heartbeat says of the newest one heard from its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Its `sent_at`, unchanged.
    pub sent_at: Time,
    /// How long ago it had arrived when this heartbeat left.
    pub held: Duration,
    /// Whether the sender, as a grantor, renews the receiver's lease with it (PROTOCOLS 0.3).
    pub granted: bool,
}

/// Why bytes are no heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The frame was written by another version.
    #[error("a heartbeat has version {0}; this program reads version {VERSION}")]
    Version(u8),
    /// The frame ends early.
    #[error("a heartbeat ends before its fields do")]
    Truncated,
    /// The frame is longer than its fields.
    #[error("a heartbeat has bytes after its last field")]
    Trailing,
    /// A list is longer than allowed.
    #[error("a heartbeat lists {0} entries, more than {ENTRIES_MAX}")]
    TooMany(usize),
    /// A flag is set that this version does not know.
    #[error("a heartbeat has unknown flags {0:#04x}")]
    Flags(u8),
}

impl Heartbeat {
    /// Appends the frame to `out`. Entries beyond [`ENTRIES_MAX`] are left out; the next heartbeat carries the
    /// same lists, so nothing depends on one frame holding all.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let flags = match self.echo {
            None => 0,
            Some(Echo { granted: false, .. }) => FLAG_ECHO,
            Some(Echo { granted: true, .. }) => FLAG_ECHO | FLAG_GRANTED,
        };
        out.extend_from_slice(&[VERSION, flags]);
        out.extend_from_slice(&self.interval_ms.to_le_bytes());
        for number in
            [self.sequence, self.sent_at.as_nanos(), self.boot, self.challenge, self.view.0, self.free_bytes]
        {
            out.extend_from_slice(&number.to_le_bytes());
        }
        if let Some(echo) = self.echo {
            out.extend_from_slice(&echo.sent_at.as_nanos().to_le_bytes());
            let held = u64::try_from(echo.held.as_nanos()).unwrap_or(u64::MAX);
            out.extend_from_slice(&held.to_le_bytes());
        }
        let suspects = self.suspects.iter().take(ENTRIES_MAX);
        out.push(u8::try_from(suspects.len()).expect("ENTRIES_MAX fits a byte"));
        for node in suspects {
            out.extend_from_slice(&node.0.to_le_bytes());
        }
        let fenced = self.fenced.iter().take(ENTRIES_MAX);
        out.push(u8::try_from(fenced.len()).expect("ENTRIES_MAX fits a byte"));
        for (node, view) in fenced {
            out.extend_from_slice(&node.0.to_le_bytes());
            out.extend_from_slice(&view.0.to_le_bytes());
        }
    }

    /// The heartbeat in `bytes`.
    ///
    /// # Errors
    /// Anything but exactly one frame of this version is refused.
    pub fn decode(bytes: &[u8]) -> Result<Heartbeat, DecodeError> {
        let mut reader = Reader { bytes };
        let version = reader.u8()?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let flags = reader.u8()?;
        if flags & !(FLAG_ECHO | FLAG_GRANTED) != 0 || flags == FLAG_GRANTED {
            return Err(DecodeError::Flags(flags));
        }
        let interval_ms = u16::from_le_bytes(reader.array()?);
        let sequence = reader.u64()?;
        let sent_at = Time::from_nanos(reader.u64()?);
        let boot = reader.u64()?;
        let challenge = reader.u64()?;
        let view = ViewId(reader.u64()?);
        let free_bytes = reader.u64()?;
        let echo = if flags & FLAG_ECHO == 0 {
            None
        } else {
            let sent_at = Time::from_nanos(reader.u64()?);
            let held = Duration::from_nanos(reader.u64()?);
            Some(Echo { sent_at, held, granted: flags & FLAG_GRANTED != 0 })
        };
        let suspects = reader.list(|reader| reader.node())?;
        let fenced = reader.list(|reader| Ok((reader.node()?, ViewId(reader.u64()?))))?;
        if !reader.bytes.is_empty() {
            return Err(DecodeError::Trailing);
        }
        Ok(Heartbeat {
            sequence,
            sent_at,
            interval_ms,
            boot,
            challenge,
            view,
            free_bytes,
            echo,
            suspects,
            fenced,
        })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.bytes.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.bytes = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[byte]| byte)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    fn node(&mut self) -> Result<NodeId, DecodeError> {
        self.array().map(u128::from_le_bytes).map(NodeId)
    }

    fn list<T>(
        &mut self,
        mut entry: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = usize::from(self.u8()?);
        if count > ENTRIES_MAX {
            return Err(DecodeError::TooMany(count));
        }
        (0..count).map(|_| entry(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn heartbeats() -> impl Strategy<Value = Heartbeat> {
        let echo = proptest::option::of((any::<u64>(), any::<u64>(), any::<bool>()));
        let suspects = proptest::collection::vec(any::<u128>().prop_map(NodeId), 0..=ENTRIES_MAX);
        let fenced = proptest::collection::vec((any::<u128>(), any::<u64>()), 0..=ENTRIES_MAX);
        (any::<[u64; 6]>(), any::<u16>(), echo, suspects, fenced).prop_map(
            |(
                [sequence, sent_at, boot, challenge, view, free_bytes],
                interval_ms,
                echo,
                suspects,
                fenced,
            )| {
                Heartbeat {
                    sequence,
                    sent_at: Time::from_nanos(sent_at),
                    interval_ms,
                    boot,
                    challenge,
                    view: ViewId(view),
                    free_bytes,
                    echo: echo.map(|(sent_at, held, granted)| Echo {
                        sent_at: Time::from_nanos(sent_at),
                        held: Duration::from_nanos(held),
                        granted,
                    }),
                    suspects,
                    fenced: fenced.into_iter().map(|(node, view)| (NodeId(node), ViewId(view))).collect(),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(heartbeat in heartbeats()) {
            let mut bytes = Vec::new();
            heartbeat.encode(&mut bytes);
            prop_assert!(bytes.len() <= HEARTBEAT_BYTES_MAX);
            prop_assert_eq!(Heartbeat::decode(&bytes), Ok(heartbeat));
        }

        #[test]
        fn a_cut_or_lengthened_frame_is_refused(heartbeat in heartbeats(), cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            heartbeat.encode(&mut bytes);
            let kept = cut.index(bytes.len());
            prop_assert!(Heartbeat::decode(&bytes[..kept]).is_err());
            bytes.push(0);
            prop_assert_eq!(Heartbeat::decode(&bytes), Err(DecodeError::Trailing));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let _ = Heartbeat::decode(&bytes);
        }
    }
}
