//! Sealed datagrams: who sent these bytes, unchanged and for the first time.
//!
//! It decides whether a datagram was made by a holder of the cluster key under the sender's id,
//! incarnation and boot salt, and whether it was seen before. It touches no socket and no clock, and
//! looks at nothing behind the seal before the seal holds. It proves origin, not liveness: a recorded
//! datagram of a sender we forgot opens once more, so a heartbeat counts only when it echoes a fresh
//! challenge. Read next: `datagram` (the sockets), `identity` (the keys).
//!
//! Layout, little endian, 68 bytes in the clear and authenticated, then cipher text, then a 16-byte tag:
//! magic 4, version 1, flags 1 (zero), network 2, key epoch 4, cluster tag 8, sender 16, incarnation 8,
//! boot salt 16, sequence 8. The key is HKDF-SHA256(cluster key; sender, incarnation, salt, key epoch);
//! the nonce is (network, sequence), so no (key, nonce) pair occurs twice.

use std::collections::BTreeMap;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use steadfast_proto::ids::{ClusterId, Incarnation, NetworkId, NodeId};

use crate::identity::ClusterKey;

/// Bytes of the clear header.
pub const HEADER_BYTES: usize = 68;
/// Bytes of the tag behind the cipher text.
pub const TAG_BYTES: usize = 16;
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
/// How far behind the newest sequence a late datagram may arrive.
pub const REPLAY_WINDOW: u64 = 1024;

const MAGIC: [u8; 4] = *b"SFdg";
const VERSION: u8 = 1;

/// Why a datagram was not opened. Nothing was learned from it and no state changed but a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Rejected {
    /// Shorter than header and tag, or longer than any datagram of ours.
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

const REASONS: usize = 10;

impl Rejected {
    /// Every reason, in the order of [`Counts`].
    pub const ALL: [Self; REASONS] = [
        Self::Length,
        Self::Magic,
        Self::Version,
        Self::Cluster,
        Self::KeyEpoch,
        Self::StaleIncarnation,
        Self::Replay,
        Self::Seal,
        Self::Cloned,
        Self::TableFull,
    ];
}

/// How many datagrams were opened and rejected, by reason.
#[derive(Clone, Copy, Debug, Default)]
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
}

/// The payload does not fit a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a payload of {found} bytes is over the {PAYLOAD_BYTES_MAX} that fit one datagram")]
pub struct PayloadTooLarge {
    /// Bytes given.
    pub found: usize,
}

/// Seals what one node sends in one incarnation.
///
/// ```
/// use steadfast::identity::ClusterKey;
/// use steadfast::net::seal::{Opener, Sealer};
/// use steadfast_proto::ids::{ClusterId, Incarnation, NetworkId, NodeId};
///
/// let (cluster, key) = (ClusterId(1), ClusterKey::generate(1));
/// let mut sealer = Sealer::new(cluster, &key, NodeId(7), Incarnation(1), [9; 16]);
/// let mut opener = Opener::new(cluster, &[key]);
/// let mut datagram = Vec::new();
/// sealer.seal(NetworkId(0), b"alive", &mut datagram)?;
/// let opened = opener.open(&mut datagram).expect("same cluster key");
/// assert_eq!((opened.source, opened.payload), (NodeId(7), &b"alive"[..]));
/// # Ok::<(), steadfast::net::seal::PayloadTooLarge>(())
/// ```
#[derive(Debug)]
pub struct Sealer {
    cluster_tag: [u8; 8],
    sender: Sender,
    key_epoch: u32,
    key: LessSafeKey,
    sequences: BTreeMap<u16, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sender {
    node: u128,
    incarnation: u64,
    salt: [u8; 16],
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
        let sender = Sender { node: node.0, incarnation: incarnation.0, salt };
        let cluster_tag = cluster_tag(cluster);
        let derived = derive(key, &sender);
        Self { cluster_tag, sender, key_epoch: key.epoch, key: derived, sequences: BTreeMap::new() }
    }

    /// Seals with another cluster key from now on; sequences go on.
    pub fn rotate(&mut self, key: &ClusterKey) {
        self.key_epoch = key.epoch;
        self.key = derive(key, &self.sender);
    }

    /// Appends one sealed datagram to `out` and gives its sequence (from 1, per network).
    ///
    /// # Errors
    /// The payload is too large; `out` and the sequence stay as they were.
    pub fn seal(
        &mut self,
        network: NetworkId,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<u64, PayloadTooLarge> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(PayloadTooLarge { found: payload.len() });
        }
        let sequence = self.sequences.entry(network.0).or_insert(0);
        *sequence += 1;
        let sequence = *sequence;
        let header = Header {
            network: network.0,
            key_epoch: self.key_epoch,
            cluster_tag: self.cluster_tag,
            sender: self.sender,
            sequence,
        }
        .encode();
        let start = out.len();
        out.extend_from_slice(&header);
        out.extend_from_slice(payload);
        let (_, body) = out.split_at_mut(start + HEADER_BYTES);
        let nonce = nonce(network.0, sequence);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), body)
            .expect("a payload is far below the cipher's limit");
        out.extend_from_slice(tag.as_ref());
        Ok(sequence)
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
    sources: BTreeMap<u128, Source>,
    counts: Counts,
}

#[derive(Debug)]
struct Source {
    sender: Sender,
    key_epoch: u32,
    key: LessSafeKey,
    windows: Vec<(u16, Window)>,
}

impl Opener {
    /// Accepts datagrams under any of `keys`; of more than [`KEY_EPOCHS_MAX`] the newest.
    #[must_use]
    pub fn new(cluster: ClusterId, keys: &[ClusterKey]) -> Self {
        let mut opener = Self {
            cluster_tag: cluster_tag(cluster),
            keys: BTreeMap::new(),
            sources: BTreeMap::new(),
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
        self.sources.remove(&node.0);
    }

    /// What was opened and rejected so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Opens one datagram in place.
    ///
    /// # Errors
    /// The reason, which is counted too. Only an authentic datagram changes any other state.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, Rejected> {
        match self.try_open(datagram) {
            Ok(opened) => {
                self.counts.opened += 1;
                Ok(opened)
            }
            Err(reason) => {
                let slots = Rejected::ALL.iter().zip(self.counts.rejected.iter_mut());
                for (_, count) in slots.filter(|(one, _)| **one == reason) {
                    *count += 1;
                }
                Err(reason)
            }
        }
    }

    fn try_open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, Rejected> {
        if datagram.len() > DATAGRAM_BYTES_MAX {
            return Err(Rejected::Length);
        }
        let (clear, body) = datagram.split_first_chunk_mut::<HEADER_BYTES>().ok_or(Rejected::Length)?;
        if body.len() < TAG_BYTES {
            return Err(Rejected::Length);
        }
        let header = Header::decode(clear)?;
        if header.cluster_tag != self.cluster_tag {
            return Err(Rejected::Cluster);
        }
        let cluster_key = self.keys.get(&header.key_epoch).ok_or(Rejected::KeyEpoch)?;
        let known = self.sources.get_mut(&header.sender.node);
        if known.as_ref().is_some_and(|source| source.sender.incarnation > header.sender.incarnation) {
            return Err(Rejected::StaleIncarnation);
        }
        let aad = Aad::from(*clear);
        let nonce = nonce(header.network, header.sequence);
        let same =
            known.filter(|source| source.sender == header.sender && source.key_epoch == header.key_epoch);
        let payload = if let Some(source) = same {
            source.check_fresh(&header)?;
            let payload = source.key.open_in_place(nonce, aad, body).map_err(|_| Rejected::Seal)?;
            source.mark(&header)?;
            payload
        } else {
            let key = derive(cluster_key, &header.sender);
            let payload = key.open_in_place(nonce, aad, body).map_err(|_| Rejected::Seal)?;
            admit(&mut self.sources, &header, key)?;
            payload
        };
        Ok(Opened {
            source: NodeId(header.sender.node),
            incarnation: Incarnation(header.sender.incarnation),
            network: NetworkId(header.network),
            sequence: header.sequence,
            payload,
        })
    }
}

/// Takes an authentic sender that the table does not hold in this form.
fn admit(sources: &mut BTreeMap<u128, Source>, header: &Header, key: LessSafeKey) -> Result<(), Rejected> {
    let room = sources.len() < SOURCES_MAX;
    let Some(source) = sources.get_mut(&header.sender.node) else {
        if !room {
            return Err(Rejected::TableFull);
        }
        let mut source =
            Source { sender: header.sender, key_epoch: header.key_epoch, key, windows: Vec::new() };
        source.mark(header)?;
        sources.insert(header.sender.node, source);
        return Ok(());
    };
    if source.sender == header.sender {
        // The same start under another cluster key: sequences go on, so the windows stay.
        source.check_fresh(header)?;
        source.mark(header)?;
        if header.key_epoch > source.key_epoch {
            (source.key_epoch, source.key) = (header.key_epoch, key);
        }
        return Ok(());
    }
    if source.sender.incarnation == header.sender.incarnation {
        return Err(Rejected::Cloned);
    }
    source.sender = header.sender;
    (source.key_epoch, source.key) = (header.key_epoch, key);
    source.windows.clear();
    source.mark(header)
}

impl Source {
    fn check_fresh(&self, header: &Header) -> Result<(), Rejected> {
        let window = self.windows.iter().find(|(network, _)| *network == header.network);
        match window {
            Some((_, window)) if window.seen(header.sequence) => Err(Rejected::Replay),
            Some(_) | None => Ok(()),
        }
    }

    fn mark(&mut self, header: &Header) -> Result<(), Rejected> {
        let found = self.windows.iter_mut().find(|(network, _)| *network == header.network);
        if let Some((_, window)) = found {
            window.mark(header.sequence);
            return Ok(());
        }
        if self.windows.len() == NETWORKS_MAX {
            return Err(Rejected::TableFull);
        }
        let mut window = Window::default();
        window.mark(header.sequence);
        self.windows.push((header.network, window));
        Ok(())
    }
}

const WORDS: usize = 16;

/// Which of the last [`REPLAY_WINDOW`] sequences arrived: a ring of bits, bit `s % 1024` for sequence `s`.
#[derive(Clone, Debug, Default)]
struct Window {
    newest: u64,
    bits: [u64; WORDS],
}

impl Window {
    fn seen(&self, sequence: u64) -> bool {
        if sequence > self.newest {
            return false;
        }
        if self.newest - sequence >= REPLAY_WINDOW {
            return true;
        }
        let (word, mask) = Self::place(sequence);
        self.bits.get(word).is_some_and(|bits| bits & mask != 0)
    }

    fn mark(&mut self, sequence: u64) {
        if sequence > self.newest {
            if sequence - self.newest >= REPLAY_WINDOW {
                self.bits = [0; WORDS];
            } else {
                for skipped in self.newest + 1..sequence {
                    self.set(skipped, false);
                }
            }
            self.newest = sequence;
        }
        self.set(sequence, true);
    }

    fn set(&mut self, sequence: u64, value: bool) {
        let (word, mask) = Self::place(sequence);
        if let Some(bits) = self.bits.get_mut(word) {
            *bits = if value { *bits | mask } else { *bits & !mask };
        }
    }

    fn place(sequence: u64) -> (usize, u64) {
        let bit = sequence % REPLAY_WINDOW;
        (usize::try_from(bit / 64).expect("below 16"), 1 << (bit % 64))
    }
}

struct Header {
    network: u16,
    key_epoch: u32,
    cluster_tag: [u8; 8],
    sender: Sender,
    sequence: u64,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[6..8].copy_from_slice(&self.network.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.key_epoch.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.cluster_tag);
        bytes[20..36].copy_from_slice(&self.sender.node.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.sender.incarnation.to_le_bytes());
        bytes[44..60].copy_from_slice(&self.sender.salt);
        bytes[60..].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Rejected> {
        let rest: &[u8] = bytes;
        let (magic, rest) = take::<4>(rest)?;
        if magic != MAGIC {
            return Err(Rejected::Magic);
        }
        let ([version, flags], rest) = take::<2>(rest)?;
        if version != VERSION || flags != 0 {
            return Err(Rejected::Version);
        }
        let (network, rest) = take(rest)?;
        let (key_epoch, rest) = take(rest)?;
        let (cluster_tag, rest) = take(rest)?;
        let (node, rest) = take(rest)?;
        let (incarnation, rest) = take(rest)?;
        let (salt, rest) = take(rest)?;
        let (sequence, _) = take(rest)?;
        let sender =
            Sender { node: u128::from_le_bytes(node), incarnation: u64::from_le_bytes(incarnation), salt };
        Ok(Self {
            network: u16::from_le_bytes(network),
            key_epoch: u32::from_le_bytes(key_epoch),
            cluster_tag,
            sender,
            sequence: u64::from_le_bytes(sequence),
        })
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), Rejected> {
    bytes.split_first_chunk().map(|(head, rest)| (*head, rest)).ok_or(Rejected::Length)
}

fn nonce(network: u16, sequence: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..2].copy_from_slice(&network.to_le_bytes());
    bytes[4..].copy_from_slice(&sequence.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn derive(key: &ClusterKey, sender: &Sender) -> LessSafeKey {
    let prk = Salt::new(HKDF_SHA256, b"steadfast datagram v1").extract(key.secret());
    let epoch = key.epoch.to_le_bytes();
    let node = sender.node.to_le_bytes();
    let incarnation = sender.incarnation.to_le_bytes();
    let info = [&epoch[..], &node, &incarnation, &sender.salt];
    let okm = prk.expand(&info, &AES_256_GCM).expect("one key is below HKDF's limit");
    LessSafeKey::new(UnboundKey::from(okm))
}

fn cluster_tag(cluster: ClusterId) -> [u8; 8] {
    let hash = blake3::derive_key("steadfast 2026 datagram cluster tag", &cluster.0.to_le_bytes());
    hash.first_chunk::<8>().copied().expect("a hash has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const CLUSTER: ClusterId = ClusterId(77);

    fn key(epoch: u32) -> ClusterKey {
        ClusterKey::new(epoch, [epoch.to_le_bytes()[0]; 32])
    }

    fn sealer(node: u128, incarnation: u64, salt: u8) -> Sealer {
        Sealer::new(CLUSTER, &key(1), NodeId(node), Incarnation(incarnation), [salt; 16])
    }

    fn datagram(sealer: &mut Sealer, network: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        sealer.seal(NetworkId(network), payload, &mut out).unwrap();
        out
    }

    fn opener() -> Opener {
        Opener::new(CLUSTER, &[key(1)])
    }

    #[test]
    fn a_datagram_opens_once_on_its_network() {
        let (mut sealer, mut opener) = (sealer(1, 1, 1), opener());
        let first = datagram(&mut sealer, 3, b"payload");
        let opened_bytes = &mut first.clone();
        let opened = opener.open(opened_bytes).unwrap();
        assert_eq!((opened.network, opened.sequence), (NetworkId(3), 1));
        assert_eq!(opened.payload, b"payload");
        assert_eq!(opener.open(&mut first.clone()), Err(Rejected::Replay));
        let other = datagram(&mut sealer, 4, b"");
        assert_eq!(opener.open(&mut other.clone()).unwrap().sequence, 1);
        assert_eq!((opener.counts().opened, opener.counts().rejected(Rejected::Replay)), (2, 1));
    }

    #[test]
    fn an_earlier_incarnation_is_stale_and_a_second_salt_is_a_clone() {
        let mut opener = opener();
        let late = datagram(&mut sealer(1, 1, 1), 0, b"");
        opener.open(&mut datagram(&mut sealer(1, 2, 2), 0, b"")).unwrap();
        assert_eq!(opener.open(&mut late.clone()), Err(Rejected::StaleIncarnation));
        let clone = datagram(&mut sealer(1, 2, 3), 0, b"");
        assert_eq!(opener.open(&mut clone.clone()), Err(Rejected::Cloned));
        opener.open(&mut datagram(&mut sealer(1, 3, 4), 0, b"")).unwrap();
    }

    #[test]
    fn other_clusters_keys_and_forgeries_are_rejected() {
        let mut opener = opener();
        let mut foreign = Sealer::new(ClusterId(78), &key(1), NodeId(1), Incarnation(1), [1; 16]);
        assert_eq!(opener.open(&mut datagram(&mut foreign, 0, b"")), Err(Rejected::Cluster));
        let mut newer = Sealer::new(CLUSTER, &key(2), NodeId(1), Incarnation(1), [1; 16]);
        assert_eq!(opener.open(&mut datagram(&mut newer, 0, b"")), Err(Rejected::KeyEpoch));
        let wrong = ClusterKey::new(1, [99; 32]);
        let mut forger = Sealer::new(CLUSTER, &wrong, NodeId(1), Incarnation(9), [1; 16]);
        assert_eq!(opener.open(&mut datagram(&mut forger, 0, b"")), Err(Rejected::Seal));
        assert!(opener.sources.is_empty());
    }

    #[test]
    fn a_rotation_keeps_the_replay_window() {
        let (mut sealer, mut opener) = (sealer(1, 1, 1), opener());
        let before = datagram(&mut sealer, 0, b"old key");
        opener.open(&mut before.clone()).unwrap();
        opener.accept_key(&key(2));
        sealer.rotate(&key(2));
        let after = datagram(&mut sealer, 0, b"new key");
        assert_eq!(opener.open(&mut after.clone()).unwrap().sequence, 2);
        assert_eq!(opener.open(&mut before.clone()), Err(Rejected::Replay));
        opener.retire_keys_before(2);
        assert_eq!(opener.open(&mut before.clone()), Err(Rejected::KeyEpoch));
        assert_eq!(opener.open(&mut after.clone()), Err(Rejected::Replay));
    }

    #[test]
    fn the_table_of_senders_is_bounded() {
        let mut opener = opener();
        for node in 0..SOURCES_MAX {
            opener.open(&mut datagram(&mut sealer(node as u128, 1, 1), 0, b"")).unwrap();
        }
        let one_more = datagram(&mut sealer(u128::MAX, 1, 1), 0, b"");
        assert_eq!(opener.open(&mut one_more.clone()), Err(Rejected::TableFull));
        opener.forget(NodeId(0));
        opener.open(&mut one_more.clone()).unwrap();
    }

    #[test]
    fn a_payload_that_does_not_fit_is_refused() {
        let mut out = Vec::new();
        let error = sealer(1, 1, 1).seal(NetworkId(0), &[0; PAYLOAD_BYTES_MAX + 1], &mut out);
        assert_eq!(error, Err(PayloadTooLarge { found: PAYLOAD_BYTES_MAX + 1 }));
        assert!(out.is_empty());
    }

    proptest! {
        #[test]
        fn any_changed_bit_is_rejected(payload in proptest::collection::vec(any::<u8>(), 0..100), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = datagram(&mut sealer(1, 1, 1), 0, &payload);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(opener().open(&mut bytes).is_err());
        }

        #[test]
        fn garbage_never_panics_nor_takes_a_place(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut opener = opener();
            prop_assert!(opener.open(&mut bytes).is_err());
            prop_assert!(opener.sources.is_empty());
        }

        #[test]
        fn the_window_agrees_with_a_set(sequences in proptest::collection::vec(1u64..5000, 1..300)) {
            let mut window = Window::default();
            let mut set = BTreeSet::new();
            let mut newest = 0;
            for sequence in sequences {
                let expected = set.contains(&sequence) || sequence + REPLAY_WINDOW <= newest;
                prop_assert_eq!(window.seen(sequence), expected);
                if !expected {
                    window.mark(sequence);
                    set.insert(sequence);
                    newest = newest.max(sequence);
                }
            }
        }
    }
}
