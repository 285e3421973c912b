//! The bytes of both forms, and what is derived from them: key, session tag, nonce, authenticated data.
//!
//! It decides nothing about who is known; a decoder here reads no byte behind the clear part. Layout in
//! `docs/protocols/datagrams.md`. Read next: `sources`.

use ring::aead::{AES_256_GCM, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use steadfast_proto::ids::ClusterId;

use super::Rejected;
use super::window::low_half;
use crate::identity::ClusterKey;

/// Bytes of the introduction's clear header.
pub const HEADER_BYTES: usize = 68;
/// Bytes of the short form's clear prefix.
pub const SHORT_BYTES: usize = 12;
/// Bytes of the tag behind the cipher text.
pub const TAG_BYTES: usize = 16;

const MAGIC: [u8; 4] = *b"SFdg";
const VERSION: u8 = 2;
/// The high half of a short form's first byte; the low half is the version. No introduction begins so.
const SHORT_KIND: u8 = 0xa0;
/// The flags byte in the authenticated data of a short form; in a true header it is zero.
const FLAG_SHORT: u8 = 1;

/// Names one session in the clear: (sender, incarnation, boot salt, key epoch) under one cluster key.
pub(super) type SessionTag = [u8; 6];

/// One start of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) node: u128,
    pub(super) incarnation: u64,
    pub(super) salt: [u8; 16],
}

/// What the introduction says in the clear, and what the short form means.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) network: u16,
    pub(super) key_epoch: u32,
    pub(super) cluster_tag: [u8; 8],
    pub(super) origin: Origin,
    pub(super) sequence: u64,
}

impl Header {
    /// The introduction's clear bytes, which are its authenticated data too.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[6..8].copy_from_slice(&self.network.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.key_epoch.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.cluster_tag);
        bytes[20..36].copy_from_slice(&self.origin.node.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.origin.incarnation.to_le_bytes());
        bytes[44..60].copy_from_slice(&self.origin.salt);
        bytes[60..].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    /// The authenticated data of the short form: the header that it stands for, marked so that neither form can
    /// be rewritten as the other.
    pub(super) fn encode_for_short(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = self.encode();
        bytes[5] = FLAG_SHORT;
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Rejected> {
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
        let origin =
            Origin { node: u128::from_le_bytes(node), incarnation: u64::from_le_bytes(incarnation), salt };
        Ok(Self {
            network: u16::from_le_bytes(network),
            key_epoch: u32::from_le_bytes(key_epoch),
            cluster_tag,
            origin,
            sequence: u64::from_le_bytes(sequence),
        })
    }

    pub(super) fn nonce(&self) -> Nonce {
        let mut bytes = [0; 12];
        bytes[..2].copy_from_slice(&self.network.to_le_bytes());
        bytes[4..].copy_from_slice(&self.sequence.to_le_bytes());
        Nonce::assume_unique_for_key(bytes)
    }
}

/// What the short form says in the clear.
#[derive(Clone, Copy, Debug)]
pub(super) struct Short {
    pub(super) network: u8,
    pub(super) tag: SessionTag,
    pub(super) sequence_low: u32,
}

impl Short {
    /// Whether a datagram claims to be of the short form, in whatever version.
    pub(super) fn is_claimed_by(datagram: &[u8]) -> bool {
        datagram.first().is_some_and(|first| first & 0xf0 == SHORT_KIND)
    }

    /// The short form of a header, or none: it has room only for networks below 256.
    pub(super) fn of(header: &Header, tag: SessionTag) -> Option<Self> {
        let network = u8::try_from(header.network).ok()?;
        Some(Self { network, tag, sequence_low: low_half(header.sequence) })
    }

    pub(super) fn encode(&self) -> [u8; SHORT_BYTES] {
        let mut bytes = [0; SHORT_BYTES];
        bytes[0] = SHORT_KIND | VERSION;
        bytes[1] = self.network;
        bytes[2..8].copy_from_slice(&self.tag);
        bytes[8..].copy_from_slice(&self.sequence_low.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; SHORT_BYTES]) -> Result<Self, Rejected> {
        let rest: &[u8] = bytes;
        let ([kind, network], rest) = take::<2>(rest)?;
        if kind != SHORT_KIND | VERSION {
            return Err(Rejected::Version);
        }
        let (tag, rest) = take(rest)?;
        let (sequence_low, _) = take(rest)?;
        Ok(Self { network, tag, sequence_low: u32::from_le_bytes(sequence_low) })
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), Rejected> {
    bytes.split_first_chunk().map(|(head, rest)| (*head, rest)).ok_or(Rejected::Length)
}

/// The key of one session.
pub(super) fn session_key(key: &ClusterKey, origin: &Origin) -> LessSafeKey {
    LessSafeKey::new(expand(key, origin, b"", &AES_256_GCM, |okm| UnboundKey::from(okm)))
}

/// The tag of one session; it tells nothing about its key.
pub(super) fn session_tag(key: &ClusterKey, origin: &Origin) -> SessionTag {
    expand(key, origin, b"session tag", TagLength, |okm| {
        let mut tag = SessionTag::default();
        okm.fill(&mut tag).expect("the output was asked for in this length");
        tag
    })
}

fn expand<L: KeyType, R>(
    key: &ClusterKey,
    origin: &Origin,
    label: &[u8],
    length: L,
    fill: impl FnOnce(ring::hkdf::Okm<'_, L>) -> R,
) -> R {
    let prk = Salt::new(HKDF_SHA256, b"steadfast datagram v2").extract(key.secret());
    let epoch = key.epoch.to_le_bytes();
    let node = origin.node.to_le_bytes();
    let incarnation = origin.incarnation.to_le_bytes();
    let info = [&epoch[..], &node, &incarnation, &origin.salt, label];
    fill(prk.expand(&info, length).expect("one key or tag is below HKDF's limit"))
}

#[derive(Clone, Copy, Debug)]
struct TagLength;

impl KeyType for TagLength {
    fn len(&self) -> usize {
        size_of::<SessionTag>()
    }
}

/// Names a cluster in the introduction.
pub(super) fn cluster_tag(cluster: ClusterId) -> [u8; 8] {
    let hash = blake3::derive_key("steadfast 2026 datagram cluster tag", &cluster.0.to_le_bytes());
    hash.first_chunk::<8>().copied().expect("a hash has 32 bytes")
}
