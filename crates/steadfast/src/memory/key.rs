//! How a chunk is named and encrypted before it leaves its node.
//!
//! It decides the name of a chunk (keyed BLAKE3 of its plain content, so equal content of one container
//! is stored once and a holder learns nothing from a name) and its cipher text (AES-256-GCM, nonce from
//! the name, so equal content stays equal). It never stores a key. Read next: `manifest`.
//!
//! Opening checks the GCM tag with the whole name as associated data: only bytes that were sealed under
//! that very name by a holder of the key pass, so the plain content need not be hashed again.

use std::fmt;

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use steadfast_proto::ids::{ContainerId, Digest};

use crate::identity::ClusterKey;

/// Bytes that encryption adds to a chunk.
pub(super) const TAG_BYTES: usize = 16;

/// The chunk was not sealed under this name with this key, or is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk {digest} is damaged or was sealed with another key")]
pub struct OpenChunkError {
    /// The chunk.
    pub digest: Digest,
}

/// The keys of one container's chunks under one cluster key.
pub struct ContainerKey {
    cipher: LessSafeKey,
    name_key: [u8; 32],
    epoch: u32,
}

impl fmt::Debug for ContainerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerKey").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

struct Bytes32;

impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

impl ContainerKey {
    /// Derives the keys of `container`.
    #[must_use]
    pub fn derive(cluster_key: &ClusterKey, container: ContainerId) -> Self {
        let prk = Salt::new(HKDF_SHA256, b"steadfast checkpoint v1").extract(cluster_key.secret());
        let id = container.0.to_le_bytes();
        let info = [&b"cipher"[..], &id];
        let cipher = prk.expand(&info, &AES_256_GCM).expect("one key is below HKDF's limit");
        let info = [&b"name"[..], &id];
        let mut name_key = [0; 32];
        prk.expand(&info, Bytes32)
            .and_then(|okm| okm.fill(&mut name_key))
            .expect("one key is below HKDF's limit");
        let cipher = LessSafeKey::new(UnboundKey::from(cipher));
        Self { cipher, name_key, epoch: cluster_key.epoch }
    }

    /// The epoch of the cluster key behind it.
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The name of a chunk with this plain content.
    #[must_use]
    pub fn name(&self, plain: &[u8]) -> Digest {
        Digest(*blake3::keyed_hash(&self.name_key, plain).as_bytes())
    }

    /// Encrypts a chunk in place and appends its tag.
    pub fn seal(&self, digest: Digest, chunk: &mut Vec<u8>) {
        let tag = self
            .cipher
            .seal_in_place_separate_tag(nonce(digest), Aad::from(digest.0), chunk)
            .expect("a chunk is far below the cipher's limit");
        chunk.extend_from_slice(tag.as_ref());
    }

    /// Decrypts a chunk in place and checks that it is the one named `digest`.
    ///
    /// # Errors
    /// The bytes are not that chunk; they are garbage afterwards.
    pub fn open<'a>(&self, digest: Digest, chunk: &'a mut [u8]) -> Result<&'a mut [u8], OpenChunkError> {
        self.cipher
            .open_in_place(nonce(digest), Aad::from(digest.0), chunk)
            .map_err(|_| OpenChunkError { digest })
    }

    /// As `open`, for shared bytes: decrypts in place when nobody else holds them, else in a copy.
    pub(super) fn open_bytes(&self, digest: Digest, chunk: Bytes) -> Result<Bytes, OpenChunkError> {
        let mut chunk = bytes::BytesMut::from(chunk);
        let length = self.open(digest, &mut chunk)?.len();
        chunk.truncate(length);
        Ok(chunk.freeze())
    }
}

fn nonce(digest: Digest) -> Nonce {
    let bytes = digest.0.first_chunk::<NONCE_LEN>().expect("12 is below 32");
    Nonce::assume_unique_for_key(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_is_equal_and_only_its_own_name_opens_it() {
        let cluster = ClusterKey::new(1, [1; 32]);
        let key = ContainerKey::derive(&cluster, ContainerId(1));
        let plain = vec![5; 1000];
        let digest = key.name(&plain);
        let (mut first, mut second) = (plain.clone(), plain.clone());
        key.seal(digest, &mut first);
        key.seal(digest, &mut second);
        assert_eq!(first, second);
        assert_eq!(key.open(digest, &mut second).unwrap(), plain);
        let mut other = digest;
        other.0[31] ^= 1;
        key.open(other, &mut first.clone()).unwrap_err();
        let stranger = ContainerKey::derive(&cluster, ContainerId(2));
        assert_ne!(stranger.name(&plain), digest);
        stranger.open(digest, &mut first.clone()).unwrap_err();
        let mut damaged = first.clone();
        damaged[17] ^= 1;
        key.open(digest, &mut damaged).unwrap_err();
        assert_eq!(key.open_bytes(digest, first.into()).unwrap(), plain);
    }
}
