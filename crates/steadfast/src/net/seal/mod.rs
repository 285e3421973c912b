//! Sealed datagrams: who sent these bytes, unchanged and for the first time.
//!
//! It decides whether a datagram was made by a holder of the cluster key under the sender's id,
//! incarnation and boot salt, and whether it was seen before. It touches no socket and no clock, and
//! looks at nothing behind the seal before the seal holds; it never answers. It proves origin, not
//! liveness: a recorded introduction of a sender we forgot opens once more, so a heartbeat counts only when
//! it echoes a fresh challenge. Bytes, and why they are sound: `docs/protocols/datagrams.md`.
//! Read next: `layout`, `window`, `sources`, `introduced` (which form to send), then `datagram` (the sockets).

mod introduced;
mod layout;
mod sources;
#[cfg(test)]
mod tests;
mod window;

use std::collections::BTreeMap;

use ring::aead::{Aad, LessSafeKey};
use steadfast_proto::ids::{ClusterId, Incarnation, NetworkId, NodeId};

use self::layout::{Header, Origin, SessionTag, Short, cluster_tag, session_key, session_tag};
use self::sources::Sources;
use crate::identity::ClusterKey;

pub use self::introduced::Introduced;
pub use self::layout::{HEADER_BYTES, SHORT_BYTES, TAG_BYTES};
pub use self::window::REPLAY_WINDOW;

/// Largest payload: with header, tag, UDP and IPv6 it fits a 1,500-byte frame.
pub const PAYLOAD_BYTES_MAX: usize = 1360;
/// Largest sealed datagram.
pub const DATAGRAM_BYTES_MAX: usize = HEADER_BYTES + PAYLOAD_BYTES_MAX + TAG_BYTES;
/// Senders that an opener remembers; a cluster has fewer members.
pub const SOURCES_MAX: usize = 1024;
/// Networks per sender.
pub const NETWORKS_MAX: usize = 16;
/// Key epochs that an opener accepts at a time.
pub const KEY_EPOCHS_MAX: usize = 8;

/// How much a sealed datagram says of its sender in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// Everything: opens at a node that never heard the sender. Costs [`Form::overhead`] = 84 bytes.
    Introduction,
    /// A session tag: opens only where an introduction of this session opened on the same network. Costs 28
    /// bytes. On a network whose number is 256 or higher an introduction is sent in its place.
    Short,
}

impl Form {
    /// Bytes that the form adds to a payload.
    #[must_use]
    pub const fn overhead(self) -> usize {
        match self {
            Self::Introduction => HEADER_BYTES + TAG_BYTES,
            Self::Short => SHORT_BYTES + TAG_BYTES,
        }
    }
}

/// Why a datagram was not opened. Nothing was learned from it and no state changed but a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Rejected {
    /// Shorter than clear part and tag, or longer than any datagram of ours.
    #[error("the datagram's length is not one of ours")]
    Length,
    /// Another protocol.
    #[error("the datagram is not of this protocol")]
    Magic,
    /// A version that this program does not read.
    #[error("the datagram has a version that this program does not read")]
    Version,
    /// Another cluster.
    #[error("the datagram belongs to another cluster")]
    Cluster,
    /// A key epoch that is retired or not known yet.
    #[error("the datagram uses a cluster key that is not accepted")]
    KeyEpoch,
    /// A short form of a session that was not introduced here on this network, or is over.
    #[error("the datagram belongs to a session that was not introduced on its network")]
    UnknownSession,
    /// A newer incarnation of the sender was heard.
    #[error("the datagram is from an earlier incarnation of its sender")]
    StaleIncarnation,
    /// Seen before, or older than the window.
    #[error("the datagram was seen before or is too late")]
    Replay,
    /// Damaged, or made without the key.
    #[error("the datagram's seal does not hold")]
    Seal,
    /// Sealed rightly under an incarnation whose boot salt is another one: two copies of one node run.
    #[error("two running copies share this node id and incarnation")]
    Cloned,
    /// Too many senders or networks.
    #[error("there are more senders or networks than the table holds")]
    TableFull,
}

const REASONS: usize = 11;

impl Rejected {
    /// Every reason, in the order of [`Counts`].
    pub const ALL: [Self; REASONS] = [
        Self::Length,
        Self::Magic,
        Self::Version,
        Self::Cluster,
        Self::KeyEpoch,
        Self::UnknownSession,
        Self::StaleIncarnation,
        Self::Replay,
        Self::Seal,
        Self::Cloned,
        Self::TableFull,
    ];

    /// The reason's name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Magic => "magic",
            Self::Version => "version",
            Self::Cluster => "cluster",
            Self::KeyEpoch => "key_epoch",
            Self::UnknownSession => "unknown_session",
            Self::StaleIncarnation => "stale_incarnation",
            Self::Replay => "replay",
            Self::Seal => "seal",
            Self::Cloned => "cloned",
            Self::TableFull => "table_full",
        }
    }
}

/// How many datagrams were opened and rejected, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Opened.
    pub opened: u64,
    rejected: [u64; REASONS],
}

impl Counts {
    /// Rejections for one reason.
    #[must_use]
    pub fn rejected(&self, reason: Rejected) -> u64 {
        Rejected::ALL.iter().zip(self.rejected).find(|(one, _)| **one == reason).map_or(0, |(_, n)| n)
    }

    /// Every reason's name with its rejections, also those that never happened.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Rejected::ALL.iter().map(|reason| reason.name()).zip(self.rejected)
    }

    fn count(&mut self, reason: Rejected) {
        let slots = Rejected::ALL.iter().zip(self.rejected.iter_mut());
        for (_, count) in slots.filter(|(one, _)| **one == reason) {
            *count += 1;
        }
    }
}

/// The payload does not fit a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a payload of {found} bytes is over the {PAYLOAD_BYTES_MAX} that fit one datagram")]
pub struct PayloadTooLarge {
    /// Bytes given.
    pub found: usize,
}

/// Seals what one node sends in one incarnation. It keeps nothing about receivers; [`Introduced`] does.
///
/// ```
/// use steadfast::identity::ClusterKey;
/// use steadfast::net::seal::{Form, Opener, Sealer};
/// use steadfast_proto::ids::{ClusterId, Incarnation, NetworkId, NodeId};
///
/// let (cluster, key) = (ClusterId(1), ClusterKey::generate(1));
/// let mut sealer = Sealer::new(cluster, &key, NodeId(7), Incarnation(1), [9; 16]);
/// let mut opener = Opener::new(cluster, &[key]);
/// for (form, bytes) in [(Form::Introduction, 84 + 5), (Form::Short, 28 + 5)] {
///     let mut datagram = Vec::new();
///     sealer.seal(NetworkId(0), form, b"alive", &mut datagram)?;
///     assert_eq!(datagram.len(), bytes);
///     let opened = opener.open(&mut datagram).expect("same cluster key");
///     assert_eq!((opened.source, opened.payload), (NodeId(7), &b"alive"[..]));
/// }
/// # Ok::<(), steadfast::net::seal::PayloadTooLarge>(())
/// ```
#[derive(Debug)]
pub struct Sealer {
    cluster_tag: [u8; 8],
    origin: Origin,
    key_epoch: u32,
    key: LessSafeKey,
    session_tag: SessionTag,
    sequences: BTreeMap<u16, u64>,
}

impl Sealer {
    /// Makes the sealer of this start; `salt` must be random and new at each start.
    #[must_use]
    pub fn new(
        cluster: ClusterId,
        key: &ClusterKey,
        node: NodeId,
        incarnation: Incarnation,
        salt: [u8; 16],
    ) -> Self {
        let origin = Origin { node: node.0, incarnation: incarnation.0, salt };
        Self {
            cluster_tag: cluster_tag(cluster),
            origin,
            key_epoch: key.epoch,
            key: session_key(key, &origin),
            session_tag: session_tag(key, &origin),
            sequences: BTreeMap::new(),
        }
    }

    /// Seals with another cluster key from now on; sequences go on. It is another session: introduce it.
    pub fn rotate(&mut self, key: &ClusterKey) {
        self.key_epoch = key.epoch;
        self.key = session_key(key, &self.origin);
        self.session_tag = session_tag(key, &self.origin);
    }

    /// Appends one sealed datagram to `out` and gives its sequence (from 1, per network, both forms together).
    ///
    /// # Errors
    /// The payload is too large; `out` and the sequence stay as they were.
    pub fn seal(
        &mut self,
        network: NetworkId,
        form: Form,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<u64, PayloadTooLarge> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(PayloadTooLarge { found: payload.len() });
        }
        let sequence = self.sequences.entry(network.0).or_insert(0);
        *sequence += 1;
        let header = Header {
            network: network.0,
            key_epoch: self.key_epoch,
            cluster_tag: self.cluster_tag,
            origin: self.origin,
            sequence: *sequence,
        };
        let short = match form {
            Form::Introduction => None,
            Form::Short => Short::of(&header, self.session_tag),
        };
        let authenticated = if let Some(short) = short {
            out.extend_from_slice(&short.encode());
            header.encode_for_short()
        } else {
            out.extend_from_slice(&header.encode());
            header.encode()
        };
        let start = out.len();
        out.extend_from_slice(payload);
        let (_, body) = out.split_at_mut(start);
        let tag = self
            .key
            .seal_in_place_separate_tag(header.nonce(), Aad::from(authenticated), body)
            .expect("a payload is far below the cipher's limit");
        out.extend_from_slice(tag.as_ref());
        Ok(header.sequence)
    }
}

/// One opened datagram; the payload lies in the buffer that was handed in.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Who sealed it.
    pub source: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The network it was sealed for.
    pub network: NetworkId,
    /// Its sequence on that network, from 1.
    pub sequence: u64,
    /// What was sealed.
    pub payload: &'a [u8],
}

/// Opens what all nodes of one cluster send to this one.
#[derive(Debug)]
pub struct Opener {
    cluster_tag: [u8; 8],
    keys: BTreeMap<u32, ClusterKey>,
    sources: Sources,
    counts: Counts,
}

impl Opener {
    /// Accepts datagrams under any of `keys`; of more than [`KEY_EPOCHS_MAX`] the newest.
    #[must_use]
    pub fn new(cluster: ClusterId, keys: &[ClusterKey]) -> Self {
        let mut opener = Self {
            cluster_tag: cluster_tag(cluster),
            keys: BTreeMap::new(),
            sources: Sources::default(),
            counts: Counts::default(),
        };
        for key in keys {
            opener.accept_key(key);
        }
        opener
    }

    /// Accepts one more key; the oldest goes when there are too many.
    pub fn accept_key(&mut self, key: &ClusterKey) {
        self.keys.insert(key.epoch, key.clone());
        while self.keys.len() > KEY_EPOCHS_MAX {
            self.keys.pop_first();
        }
    }

    /// Refuses every key older than `epoch` from now on.
    pub fn retire_keys_before(&mut self, epoch: u32) {
        self.keys.retain(|one, _| *one >= epoch);
    }

    /// Forgets a node that left, so that its place in the table is free.
    pub fn forget(&mut self, node: NodeId) {
        self.sources.forget(node.0);
    }

    /// What was opened and rejected so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Opens one datagram in place, in either form.
    ///
    /// # Errors
    /// The reason, which is counted too. Only an authentic datagram changes any other state.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, Rejected> {
        let opened = if Short::is_claimed_by(datagram) {
            self.open_short(datagram)
        } else {
            self.open_introduction(datagram)
        };
        match &opened {
            Ok(_) => self.counts.opened += 1,
            Err(reason) => self.counts.count(*reason),
        }
        opened
    }

    fn open_introduction<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, Rejected> {
        let (clear, body) = split::<HEADER_BYTES>(datagram)?;
        let header = Header::decode(clear)?;
        if header.cluster_tag != self.cluster_tag {
            return Err(Rejected::Cluster);
        }
        let cluster_key = self.keys.get(&header.key_epoch).ok_or(Rejected::KeyEpoch)?;
        let known = self.sources.of_node(header.origin.node);
        if known.as_ref().is_some_and(|source| source.origin.incarnation > header.origin.incarnation) {
            return Err(Rejected::StaleIncarnation);
        }
        let authenticated = Aad::from(*clear);
        let same =
            known.filter(|source| source.origin == header.origin && source.key_epoch == header.key_epoch);
        let payload = if let Some(source) = same {
            source.check_fresh(&header)?;
            let opened = source.key.open_in_place(header.nonce(), authenticated, body);
            let payload = opened.map_err(|_| Rejected::Seal)?;
            source.mark(&header)?;
            payload
        } else {
            let key = session_key(cluster_key, &header.origin);
            let opened = key.open_in_place(header.nonce(), authenticated, body);
            let payload = opened.map_err(|_| Rejected::Seal)?;
            let tag = session_tag(cluster_key, &header.origin);
            self.sources.admit(&header, key, tag)?;
            payload
        };
        Ok(Opened::new(&header, payload))
    }

    fn open_short<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, Rejected> {
        let (clear, body) = split::<SHORT_BYTES>(datagram)?;
        let short = Short::decode(clear)?;
        let (node, rival) = match *self.sources.holders(&short.tag) {
            [] => return Err(Rejected::UnknownSession),
            [node] => (node, None),
            // A failed attempt spoils the bytes, so the second holder's are put aside.
            [node, rival, ..] => (node, Some((rival, body.to_vec()))),
        };
        let mut opened = self.open_as(node, &short, body);
        if let (Err(_), Some((rival, spare))) = (&opened, rival) {
            body.copy_from_slice(&spare);
            opened = self.open_as(rival, &short, body);
        }
        let header = opened?;
        let (payload, _) = body.split_last_chunk::<TAG_BYTES>().ok_or(Rejected::Length)?;
        Ok(Opened::new(&header, payload))
    }

    /// Opens a short form as one of its tag's holders would have sealed it.
    fn open_as(&mut self, node: u128, short: &Short, body: &mut [u8]) -> Result<Header, Rejected> {
        let source = self.sources.of_node(node).ok_or(Rejected::UnknownSession)?;
        if !self.keys.contains_key(&source.key_epoch) {
            return Err(Rejected::KeyEpoch);
        }
        let header = source.complete(short, self.cluster_tag)?;
        source.check_fresh(&header)?;
        let authenticated = Aad::from(header.encode_for_short());
        source.key.open_in_place(header.nonce(), authenticated, body).map_err(|_| Rejected::Seal)?;
        source.mark(&header)?;
        Ok(header)
    }
}

impl<'a> Opened<'a> {
    fn new(header: &Header, payload: &'a [u8]) -> Self {
        Self {
            source: NodeId(header.origin.node),
            incarnation: Incarnation(header.origin.incarnation),
            network: NetworkId(header.network),
            sequence: header.sequence,
            payload,
        }
    }
}

/// The clear part and the rest of a datagram whose length is one that this form can have.
fn split<const CLEAR: usize>(datagram: &mut [u8]) -> Result<(&mut [u8; CLEAR], &mut [u8]), Rejected> {
    let (clear, body) = datagram.split_first_chunk_mut::<CLEAR>().ok_or(Rejected::Length)?;
    if body.len() < TAG_BYTES || body.len() > PAYLOAD_BYTES_MAX + TAG_BYTES {
        return Err(Rejected::Length);
    }
    Ok((clear, body))
}
