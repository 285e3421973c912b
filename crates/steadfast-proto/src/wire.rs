//! The heartbeat's binary form: one bounded, versioned frame that fits every network.
//!
//! The frame travels inside a sealed datagram, so whoever wrote it holds the cluster's key; still a decoder here
//! never panics, never reads past its input and never allocates more than the frame's own bounds. Numbers are
//! LEB128 (small ones are short), times are whole microseconds. A decoder accepts its own version and refuses
//! trailing bytes.

use std::time::Duration;

use crate::ids::{Incarnation, NetworkId, NodeId, ViewId};
use crate::probation::{CANDIDATES_MAX, Report, Sighting};
use crate::time::Time;

/// The largest frame, in bytes; with the seal and IP headers it stays below 1,500.
pub const HEARTBEAT_BYTES_MAX: usize = 1_300;

/// How many rumours one heartbeat can carry.
pub const RUMOURS_MAX: usize = 10;

/// How many fences one heartbeat can carry.
pub const FENCES_MAX: usize = 16;

/// How many networks a cluster has at most.
pub const NETWORKS_MAX: u16 = 8;

const VERSION: u8 = 3;
const FLAG_ECHO: u8 = 1;
const FLAG_BOOT: u8 = 2;
const FLAG_RUMOURS: u8 = 4;
const FLAG_RIDER: u8 = 8;
const FLAG_GRANTED: u8 = 16;
const FLAG_GOODBYE: u8 = 32;
const FLAG_SPARSE: u8 = 64;
const FLAG_ASKS: u8 = 128;

/// Beside the number of sightings in a rider: a report follows them.
const REPORT: u8 = 128;

/// The periodic datagram on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Counts the sender's beats; the same on all networks within one.
    pub sequence: u64,
    /// The sender's clock when it was sent, in whole microseconds; means something to the sender alone, who gets it
    /// back in an echo.
    pub sent_at: Time,
    /// How long until the sender's next heartbeat to this receiver, in milliseconds.
    pub interval_ms: u16,
    /// A number that the sender drew when it started; left out once the receiver has shown that it knows it.
    pub boot: Option<u64>,
    /// The receiver's `boot` as the sender last heard it, or zero: proof that this is no replay of older days.
    pub challenge: u64,
    /// The newest heartbeat that the sender heard from the receiver on this network.
    pub echo: Option<Echo>,
    /// Bit *n* is set when the sender hears the receiver on network *n*.
    pub hears: u8,
    /// Whether the sender stops on purpose, now.
    pub goodbye: bool,
    /// Whether the receiver gets only some of the sender's beats, so that a gap in their numbers is no loss.
    pub sparse: bool,
    /// Whether the sender missed what was said lately, and wants it said again.
    pub asks: bool,
    /// What members say of members and links, passed on; at most [`RUMOURS_MAX`].
    pub rumours: Vec<Rumour>,
    /// What the duties of the sender add.
    pub rider: Option<Rider>,
}

/// What a heartbeat says of the newest one heard from its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Its `sent_at`, unchanged.
    pub sent_at: Time,
    /// How long ago it had arrived when this heartbeat left, in whole microseconds.
    pub held: Duration,
}

/// What a member of a view adds to its heartbeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rider {
    /// The view that the sender has installed.
    pub view: ViewId,
    /// The checkpoint memory that the sender still has to lend, in bytes.
    pub free_bytes: u64,
    /// Whether the sender, as a grantor, renews the receiver's lease with the echo (PROTOCOLS 0.3).
    pub granted: bool,
    /// The removed nodes whose leases the sender knows to be over, each with the view that removed it; at most
    /// [`FENCES_MAX`].
    pub fenced: Vec<(NodeId, ViewId)>,
    /// What the sender, a member, sees of the candidates; at most [`CANDIDATES_MAX`] (PROTOCOLS 3.4).
    pub seen: Vec<(NodeId, Sighting)>,
    /// What the sender, a candidate, says of itself.
    pub report: Option<Report>,
}

/// One member's claim about another, or about its link to another; passed on as it is (PROTOCOLS 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rumour {
    /// Who says it.
    pub observer: NodeId,
    /// Of whom.
    pub subject: NodeId,
    /// The subject's incarnation of which it is true.
    pub incarnation: Incarnation,
    /// Rises with each of the observer's claims; a higher one takes the place of a lower.
    pub version: u64,
    /// What it says.
    pub claim: Claim,
}

/// What an observer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The subject is silent, or worse.
    Down {
        /// What was noticed.
        why: Why,
        /// The last sequence heard from it.
        last_sequence: u64,
        /// For how long it has been silent, in milliseconds.
        silent_ms: u32,
    },
    /// The subject was heard: an answer to `Down`.
    Alive {
        /// The last sequence heard from it.
        last_sequence: u64,
    },
    /// The observer takes back what it said.
    Well,
    /// The state of the observer's link to the subject on one network.
    Link {
        /// Which network.
        network: NetworkId,
        /// What the link does.
        state: LinkState,
        /// The share of heartbeats that it lost lately, in thousandths.
        loss_permille: u16,
    },
}

/// What an observer noticed of a node that it says is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Nothing comes, on any network, and nothing else is known.
    Silent,
    /// Its kernel answers and its agent does not: the agent is stopped or starved.
    Stalled,
    /// Its kernel says that the agent is gone.
    Crashed,
    /// Its agent said goodbye.
    Left,
    /// It speaks but hears nothing.
    Deaf,
}

/// What a link does, as its observer sees it (PROTOCOLS 4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkState {
    /// Nothing is known yet.
    Unknown,
    /// Heard in both directions.
    Up,
    /// Heard in both directions, but badly: loss or delay.
    Degraded,
    /// The peer is heard and does not hear.
    Deaf,
    /// The peer is not heard and hears.
    Mute,
    /// Neither direction is known to carry anything.
    Down,
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
    #[error("a heartbeat lists {0} entries, more than {1}")]
    TooMany(usize, usize),
    /// A flag is set without those that it needs.
    #[error("a heartbeat has flags {0:#04x}, which contradict each other")]
    Flags(u8),
    /// A number does not fit its field.
    #[error("a heartbeat has a number that is too large for its field")]
    Number,
    /// A claim is of a kind that this version does not know.
    #[error("a heartbeat makes a claim of unknown kind {0}")]
    Claim(u8),
}

impl Heartbeat {
    /// Appends the frame to `out`. Entries beyond the limits are left out; rumours are repeated, so nothing
    /// depends on one frame holding all.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let granted = self.rider.as_ref().is_some_and(|rider| rider.granted);
        let flags = [
            (self.echo.is_some(), FLAG_ECHO),
            (self.boot.is_some(), FLAG_BOOT),
            (!self.rumours.is_empty(), FLAG_RUMOURS),
            (self.rider.is_some(), FLAG_RIDER),
            (granted, FLAG_GRANTED),
            (self.goodbye, FLAG_GOODBYE),
            (self.sparse, FLAG_SPARSE),
            (self.asks, FLAG_ASKS),
        ];
        let flags = flags.into_iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag);
        out.extend_from_slice(&[VERSION, flags, self.hears]);
        number(out, self.sequence);
        number(out, self.sent_at.as_nanos() / 1_000);
        number(out, u64::from(self.interval_ms));
        out.extend_from_slice(&self.challenge.to_le_bytes());
        if let Some(boot) = self.boot {
            out.extend_from_slice(&boot.to_le_bytes());
        }
        if let Some(echo) = self.echo {
            number(out, echo.sent_at.as_nanos() / 1_000);
            number(out, u64::try_from(echo.held.as_micros()).unwrap_or(u64::MAX));
        }
        if !self.rumours.is_empty() {
            let rumours = self.rumours.iter().take(RUMOURS_MAX);
            out.push(u8::try_from(rumours.len()).expect("RUMOURS_MAX fits a byte"));
            rumours.for_each(|rumour| rumour.encode(out));
        }
        if let Some(rider) = &self.rider {
            rider.encode(out);
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
        let has = |flag: u8| flags & flag != 0;
        if has(FLAG_GRANTED) && !(has(FLAG_RIDER) && has(FLAG_ECHO)) {
            return Err(DecodeError::Flags(flags));
        }
        let hears = reader.u8()?;
        let sequence = reader.number()?;
        let sent_at = reader.time()?;
        let interval_ms = reader.small()?;
        let challenge = u64::from_le_bytes(reader.array()?);
        let boot = if has(FLAG_BOOT) { Some(u64::from_le_bytes(reader.array()?)) } else { None };
        let echo = if has(FLAG_ECHO) {
            Some(Echo { sent_at: reader.time()?, held: Duration::from_micros(reader.number()?) })
        } else {
            None
        };
        let rumours = if has(FLAG_RUMOURS) { reader.list(RUMOURS_MAX, Rumour::decode)? } else { Vec::new() };
        let rider = if has(FLAG_RIDER) { Some(Rider::decode(&mut reader, has(FLAG_GRANTED))?) } else { None };
        if !reader.bytes.is_empty() {
            return Err(DecodeError::Trailing);
        }
        let (goodbye, sparse, asks) = (has(FLAG_GOODBYE), has(FLAG_SPARSE), has(FLAG_ASKS));
        Ok(Heartbeat {
            sequence,
            sent_at,
            interval_ms,
            boot,
            challenge,
            echo,
            hears,
            goodbye,
            sparse,
            asks,
            rumours,
            rider,
        })
    }
}

impl Rider {
    fn encode(&self, out: &mut Vec<u8>) {
        number(out, self.view.0);
        number(out, self.free_bytes);
        let fenced = self.fenced.iter().take(FENCES_MAX);
        out.push(u8::try_from(fenced.len()).expect("FENCES_MAX fits a byte"));
        for (node, view) in fenced {
            out.extend_from_slice(&node.0.to_le_bytes());
            number(out, view.0);
        }
        let seen = self.seen.iter().take(CANDIDATES_MAX);
        let count = u8::try_from(seen.len()).expect("CANDIDATES_MAX fits a byte");
        out.push(count | if self.report.is_some() { REPORT } else { 0 });
        for (node, sighting) in seen {
            out.extend_from_slice(&node.0.to_le_bytes());
            number(out, sighting.incarnation.0);
            for value in [sighting.heard_ms, sighting.clean_ms, sighting.round_trip_us] {
                number(out, u64::from(value));
            }
            out.extend_from_slice(&sighting.loss_permille.to_le_bytes());
        }
        if let Some(report) = self.report {
            number(out, report.unix_ms);
            number(out, report.revision);
        }
    }

    fn decode(reader: &mut Reader<'_>, granted: bool) -> Result<Rider, DecodeError> {
        let view = ViewId(reader.number()?);
        let free_bytes = reader.number()?;
        let fenced = reader.list(FENCES_MAX, |reader| Ok((reader.node()?, ViewId(reader.number()?))))?;
        let [kinds] = reader.array()?;
        let count = usize::from(kinds & !REPORT);
        if count > CANDIDATES_MAX {
            return Err(DecodeError::TooMany(count, CANDIDATES_MAX));
        }
        let seen = (0..count).map(|_| Self::decode_sighting(reader)).collect::<Result<_, _>>()?;
        let report = match kinds & REPORT {
            0 => None,
            _ => Some(Report { unix_ms: reader.number()?, revision: reader.number()? }),
        };
        Ok(Rider { view, free_bytes, granted, fenced, seen, report })
    }

    fn decode_sighting(reader: &mut Reader<'_>) -> Result<(NodeId, Sighting), DecodeError> {
        let node = reader.node()?;
        let incarnation = Incarnation(reader.number()?);
        let mut small = || reader.number().map(|value| u32::try_from(value).unwrap_or(u32::MAX));
        let (heard_ms, clean_ms, round_trip_us) = (small()?, small()?, small()?);
        let loss_permille = u16::from_le_bytes(reader.array()?);
        Ok((node, Sighting { incarnation, heard_ms, clean_ms, round_trip_us, loss_permille }))
    }
}

impl Rumour {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.observer.0.to_le_bytes());
        out.extend_from_slice(&self.subject.0.to_le_bytes());
        number(out, self.incarnation.0);
        number(out, self.version);
        match self.claim {
            Claim::Well => out.push(0),
            Claim::Alive { last_sequence } => {
                out.push(1);
                number(out, last_sequence);
            }
            Claim::Link { network, state, loss_permille } => {
                out.extend_from_slice(&[2, state as u8]);
                number(out, u64::from(network.0));
                number(out, u64::from(loss_permille));
            }
            Claim::Down { why, last_sequence, silent_ms } => {
                out.extend_from_slice(&[3, why as u8]);
                number(out, last_sequence);
                number(out, u64::from(silent_ms));
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Rumour, DecodeError> {
        let (observer, subject) = (reader.node()?, reader.node()?);
        let incarnation = Incarnation(reader.number()?);
        let version = reader.number()?;
        let claim = match reader.u8()? {
            0 => Claim::Well,
            1 => Claim::Alive { last_sequence: reader.number()? },
            2 => {
                let state = reader.u8()?;
                let state = LinkState::ALL.get(usize::from(state)).ok_or(DecodeError::Claim(state))?;
                Claim::Link {
                    network: NetworkId(reader.small()?),
                    state: *state,
                    loss_permille: reader.small()?,
                }
            }
            3 => {
                let why = reader.u8()?;
                let why = Why::ALL.get(usize::from(why)).ok_or(DecodeError::Claim(why))?;
                Claim::Down { why: *why, last_sequence: reader.number()?, silent_ms: reader.small()? }
            }
            other => return Err(DecodeError::Claim(other)),
        };
        Ok(Rumour { observer, subject, incarnation, version, claim })
    }
}

impl Why {
    /// Every reason, in the order of its number on the wire.
    pub const ALL: [Why; 5] = [Why::Silent, Why::Stalled, Why::Crashed, Why::Left, Why::Deaf];
}

impl LinkState {
    /// Every state, in the order of its number on the wire.
    pub const ALL: [LinkState; 6] = [
        LinkState::Unknown,
        LinkState::Up,
        LinkState::Degraded,
        LinkState::Deaf,
        LinkState::Mute,
        LinkState::Down,
    ];

    /// Whether heartbeats go both ways.
    #[must_use]
    pub fn carries(self) -> bool {
        matches!(self, LinkState::Up | LinkState::Degraded)
    }
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("seven bits"));
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

    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(DecodeError::Number);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Number)
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Result<T, DecodeError> {
        T::try_from(self.number()?).map_err(|_| DecodeError::Number)
    }

    fn time(&mut self) -> Result<Time, DecodeError> {
        let micros = self.number()?;
        micros.checked_mul(1_000).map(Time::from_nanos).ok_or(DecodeError::Number)
    }

    fn node(&mut self) -> Result<NodeId, DecodeError> {
        self.array().map(u128::from_le_bytes).map(NodeId)
    }

    fn list<T>(
        &mut self,
        max: usize,
        mut entry: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = usize::from(self.u8()?);
        if count > max {
            return Err(DecodeError::TooMany(count, max));
        }
        (0..count).map(|_| entry(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claims() -> impl Strategy<Value = Claim> {
        prop_oneof![
            Just(Claim::Well),
            any::<u64>().prop_map(|last_sequence| Claim::Alive { last_sequence }),
            (0..Why::ALL.len(), any::<u64>(), any::<u32>()).prop_map(|(why, last_sequence, silent_ms)| {
                Claim::Down { why: Why::ALL[why], last_sequence, silent_ms }
            }),
            (any::<u16>(), 0..LinkState::ALL.len(), any::<u16>()).prop_map(
                |(network, state, loss_permille)| Claim::Link {
                    network: NetworkId(network),
                    state: LinkState::ALL[state],
                    loss_permille,
                }
            ),
        ]
    }

    fn rumours() -> impl Strategy<Value = Rumour> {
        (any::<[u128; 2]>(), any::<[u64; 2]>(), claims()).prop_map(
            |([observer, subject], [incarnation, version], claim)| Rumour {
                observer: NodeId(observer),
                subject: NodeId(subject),
                incarnation: Incarnation(incarnation),
                version,
                claim,
            },
        )
    }

    fn riders() -> impl Strategy<Value = Rider> {
        let fenced = proptest::collection::vec((any::<u128>(), any::<u64>()), 0..=FENCES_MAX);
        let sighting = (any::<u64>(), any::<[u32; 3]>(), any::<u16>()).prop_map(
            |(incarnation, [heard_ms, clean_ms, round_trip_us], loss_permille)| Sighting {
                incarnation: Incarnation(incarnation),
                heard_ms,
                clean_ms,
                round_trip_us,
                loss_permille,
            },
        );
        let seen = proptest::collection::vec((any::<u128>().prop_map(NodeId), sighting), 0..=CANDIDATES_MAX);
        let report = any::<[u64; 2]>().prop_map(|[unix_ms, revision]| Report { unix_ms, revision });
        let report = proptest::option::of(report);
        (any::<[u64; 2]>(), any::<bool>(), fenced, seen, report).prop_map(
            |([view, free_bytes], granted, fenced, seen, report)| Rider {
                view: ViewId(view),
                free_bytes,
                granted,
                fenced: fenced.into_iter().map(|(node, view)| (NodeId(node), ViewId(view))).collect(),
                seen,
                report,
            },
        )
    }

    fn heartbeats() -> impl Strategy<Value = Heartbeat> {
        let micros = 0..u64::MAX / 1_000;
        let echo = proptest::option::of((micros.clone(), any::<u32>()));
        let rumours = proptest::collection::vec(rumours(), 0..=RUMOURS_MAX);
        let numbers = (any::<u64>(), micros, any::<u16>(), any::<u64>(), any::<u8>(), any::<[bool; 3]>());
        let options = (proptest::option::of(any::<u64>()), echo, proptest::option::of(riders()));
        (numbers, options, rumours).prop_map(
            |(
                (sequence, sent_at, interval_ms, challenge, hears, [goodbye, sparse, asks]),
                (boot, echo, rider),
                rumours,
            )| {
                let echo = echo.map(|(sent_at, held)| Echo {
                    sent_at: Time::from_nanos(sent_at * 1_000),
                    held: Duration::from_micros(u64::from(held)),
                });
                let rider = rider.map(|rider| Rider { granted: rider.granted && echo.is_some(), ..rider });
                Heartbeat {
                    sequence,
                    sent_at: Time::from_nanos(sent_at * 1_000),
                    interval_ms,
                    boot,
                    challenge,
                    echo,
                    hears,
                    goodbye,
                    sparse,
                    asks,
                    rumours,
                    rider,
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
