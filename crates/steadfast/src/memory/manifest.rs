//! What a checkpoint consists of: the list of its files and, for each, its chunks.
//!
//! It decides whether bytes are a manifest within bounds whose paths stay inside the image. A manifest
//! is named by the hash of its bytes and never changed. Read next: `tree` (folders), `pool` (chunks).

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use steadfast_proto::ids::{ContainerId, Digest, Epoch};

use crate::envelope::{EnvelopeError, Format};

/// Plain bytes of a chunk; the last of a file may be shorter.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Most files, folders and links of one checkpoint.
pub const FILES_MAX: usize = 1 << 18;
/// Largest encoded manifest: it travels in one call.
pub const MANIFEST_BYTES_MAX: usize = 15 << 20;
/// Longest path or link target in bytes.
const PATH_BYTES_MAX: usize = 4096;

const FORMAT: Format = Format { magic: *b"SFmf", version: 1, version_min: 1, body_bytes_max: 15 << 20 };

/// Why bytes are not a manifest, or a manifest can't be encoded.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The envelope fails.
    #[error("the manifest can't be trusted: {0}")]
    Envelope(#[from] EnvelopeError),
    /// The bytes have another hash than the name.
    #[error("the manifest's bytes are those of {found}, not of {expected}")]
    Digest {
        /// Hash of the bytes.
        found: Digest,
        /// The name that was asked for.
        expected: Digest,
    },
    /// The checksum agrees but the content can't be read.
    #[error("the manifest's content is not what this program writes")]
    Content,
    /// A path leaves the image, is too long, or comes twice.
    #[error("the manifest's path {path:?} is not a plain relative path, or comes twice")]
    Path {
        /// The path.
        path: String,
    },
    /// A file's chunks don't add up to its size.
    #[error("the manifest gives {path:?} {size} bytes, its chunks have {found}")]
    Size {
        /// The file.
        path: String,
        /// Its size.
        size: u64,
        /// The sum over its chunks.
        found: u64,
    },
    /// Too many files or bytes.
    #[error("the checkpoint's {what} are {found}, at most {max} are possible")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        found: usize,
        /// What is possible.
        max: usize,
    },
}

/// One chunk of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkRef {
    /// So many zero bytes: stored nowhere.
    Zero(u32),
    /// So many bytes under that name.
    Data(Digest, u32),
}

impl ChunkRef {
    /// Plain bytes of the chunk.
    #[must_use]
    pub const fn length(self) -> u32 {
        match self {
            Self::Zero(length) | Self::Data(_, length) => length,
        }
    }
}

/// What an entry of the image folder is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A folder.
    Directory,
    /// A regular file.
    File {
        /// Its size in bytes.
        size: u64,
        /// Its content, in order.
        chunks: Vec<ChunkRef>,
    },
    /// A symbolic link.
    Link {
        /// Where it points; never followed.
        target: Vec<u8>,
    },
    /// A device, socket or pipe, such as the white-outs of an overlay's upper layer.
    Special {
        /// The device number, 0 for sockets and pipes.
        device: u64,
    },
}

/// Name and value of an extended attribute.
pub type Attribute = (Vec<u8>, Vec<u8>);

/// One entry of the image folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Path relative to the folder, `/` between parts, in the file system's bytes; parents come first.
    pub path: Vec<u8>,
    /// Type and permission bits as the kernel gives them.
    pub mode: u32,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Time of the last change of content, ns since 1970.
    pub modified_ns: i64,
    /// Extended attributes.
    pub attributes: Vec<Attribute>,
    /// What it is.
    pub kind: EntryKind,
}

/// A whole checkpoint by the names of its chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    container: u128,
    epoch: u64,
    /// Number of the checkpoint, counted by the container's owner.
    pub number: u64,
    /// Epoch of the cluster key that its chunks are sealed under.
    pub key_epoch: u32,
    /// Everything in the image folder.
    pub entries: Vec<Entry>,
    /// Opaque to checkpoint memory: what the engine needs beside the files.
    pub meta: Vec<u8>,
}

impl Manifest {
    /// Makes a manifest of what `tree` read.
    #[must_use]
    pub const fn new(
        container: ContainerId,
        epoch: Epoch,
        number: u64,
        key_epoch: u32,
        entries: Vec<Entry>,
        meta: Vec<u8>,
    ) -> Self {
        Self { container: container.0, epoch: epoch.0, number, key_epoch, entries, meta }
    }

    /// Whose checkpoint it is.
    #[must_use]
    pub const fn container(&self) -> ContainerId {
        ContainerId(self.container)
    }

    /// The run epoch in which it was taken.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// The names of all chunks that must be stored, each once.
    #[must_use]
    pub fn chunks(&self) -> BTreeSet<Digest> {
        let files = self.entries.iter().filter_map(|entry| match &entry.kind {
            EntryKind::File { chunks, .. } => Some(chunks),
            EntryKind::Directory | EntryKind::Link { .. } | EntryKind::Special { .. } => None,
        });
        files
            .flatten()
            .filter_map(|chunk| match chunk {
                ChunkRef::Data(digest, _) => Some(*digest),
                ChunkRef::Zero(_) => None,
            })
            .collect()
    }

    /// Bytes of all files, zeroes included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let sizes = self.entries.iter().map(|entry| match &entry.kind {
            EntryKind::File { size, .. } => *size,
            EntryKind::Directory | EntryKind::Link { .. } | EntryKind::Special { .. } => 0,
        });
        sizes.fold(0, u64::saturating_add)
    }

    /// The bytes that are stored and sent, and their name.
    ///
    /// # Errors
    /// It is too large for one call.
    pub fn encode(&self) -> Result<(Digest, Vec<u8>), ManifestError> {
        let body = postcard::to_allocvec(self).map_err(|_| ManifestError::Content)?;
        let max = FORMAT.body_bytes_max as usize;
        if body.len() > max {
            return Err(ManifestError::TooLarge { what: "manifest bytes", found: body.len(), max });
        }
        let bytes = FORMAT.wrap(&body);
        Ok((digest_of(&bytes), bytes))
    }

    /// Reads a manifest that must be the one named `expected`.
    ///
    /// # Errors
    /// Says why the bytes are not that manifest.
    pub fn decode(expected: Digest, bytes: &[u8]) -> Result<Self, ManifestError> {
        let found = digest_of(bytes);
        if found != expected {
            return Err(ManifestError::Digest { found, expected });
        }
        Self::decode_unnamed(bytes)
    }

    /// Reads a manifest of whatever name; pure, never panics (the entry for fuzzing).
    ///
    /// # Errors
    /// Says why the bytes are not a manifest.
    pub fn decode_unnamed(bytes: &[u8]) -> Result<Self, ManifestError> {
        let (_, body) = FORMAT.unwrap(bytes)?;
        let manifest: Self = postcard::from_bytes(body).map_err(|_| ManifestError::Content)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let found = self.entries.len();
        if found > FILES_MAX {
            return Err(ManifestError::TooLarge { what: "files", found, max: FILES_MAX });
        }
        let mut seen = BTreeSet::new();
        for entry in &self.entries {
            if !is_plain(&entry.path) || !seen.insert(entry.path.as_slice()) {
                return Err(ManifestError::Path { path: entry.name() });
            }
            match &entry.kind {
                EntryKind::File { size, chunks } => check_size(entry, *size, chunks)?,
                EntryKind::Link { target } if target.len() > PATH_BYTES_MAX => {
                    return Err(ManifestError::Path { path: entry.name() });
                }
                EntryKind::Link { .. } | EntryKind::Directory | EntryKind::Special { .. } => {}
            }
        }
        // A link among the parents of a file would lead out of the image when it is written.
        let folders: BTreeSet<&[u8]> = self
            .entries
            .iter()
            .filter(|entry| entry.kind == EntryKind::Directory)
            .map(|entry| entry.path.as_slice())
            .collect();
        for entry in &self.entries {
            let parent = entry.path.iter().rposition(|byte| *byte == b'/');
            let parent = parent.and_then(|end| entry.path.get(..end));
            if parent.is_some_and(|parent| !folders.contains(parent)) {
                return Err(ManifestError::Path { path: entry.name() });
            }
        }
        Ok(())
    }
}

fn check_size(entry: &Entry, size: u64, chunks: &[ChunkRef]) -> Result<(), ManifestError> {
    let mut found = 0_u64;
    for (index, chunk) in chunks.iter().enumerate() {
        let length = chunk.length() as usize;
        let is_last = index + 1 == chunks.len();
        if length == 0 || length > CHUNK_BYTES || (!is_last && length != CHUNK_BYTES) {
            return Err(ManifestError::Size { path: entry.name(), size, found });
        }
        found += u64::from(chunk.length());
    }
    if found != size {
        return Err(ManifestError::Size { path: entry.name(), size, found });
    }
    Ok(())
}

fn is_plain(path: &[u8]) -> bool {
    path.len() <= PATH_BYTES_MAX
        && !path.contains(&0)
        && path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

impl Entry {
    /// The path for people.
    pub(super) fn name(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: path.into(),
            mode: 0o100_600,
            user: 0,
            group: 0,
            modified_ns: 1,
            attributes: vec![],
            kind,
        }
    }

    fn manifest(entries: Vec<Entry>) -> Manifest {
        Manifest::new(ContainerId(1), Epoch(2), 3, 1, entries, b"meta".to_vec())
    }

    fn file(size: u64, chunks: Vec<ChunkRef>) -> EntryKind {
        EntryKind::File { size, chunks }
    }

    #[test]
    fn a_manifest_comes_back_under_its_name_only() {
        let chunks = vec![ChunkRef::Data(Digest([1; 32]), 1 << 20), ChunkRef::Zero(5)];
        let entries =
            vec![entry("up", EntryKind::Directory), entry("up/pages-1.img", file((1 << 20) + 5, chunks))];
        let manifest = manifest(entries);
        let (digest, bytes) = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(digest, &bytes).unwrap(), manifest);
        assert_eq!(manifest.chunks().len(), 1);
        assert_eq!(manifest.bytes(), (1 << 20) + 5);
        let error = Manifest::decode(Digest([0; 32]), &bytes).unwrap_err();
        assert!(matches!(error, ManifestError::Digest { .. }));
    }

    #[test]
    fn paths_that_leave_the_image_and_wrong_sizes_are_refused() {
        for path in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "x\0"] {
            let (_, bytes) = manifest(vec![entry(path, EntryKind::Directory)]).encode().unwrap();
            let error = Manifest::decode_unnamed(&bytes).unwrap_err();
            assert!(matches!(error, ManifestError::Path { .. }), "{path}: {error}");
        }
        let link = EntryKind::Link { target: b"/etc".to_vec() };
        let through_link = vec![entry("a", link), entry("a/passwd", file(0, vec![]))];
        let twice = vec![entry("a", EntryKind::Directory), entry("a", file(0, vec![]))];
        for entries in [through_link, twice] {
            let (_, bytes) = manifest(entries).encode().unwrap();
            let error = Manifest::decode_unnamed(&bytes).unwrap_err();
            assert!(matches!(error, ManifestError::Path { .. }), "{error}");
        }
        for kind in [
            file(7, vec![ChunkRef::Zero(6)]),
            file(12, vec![ChunkRef::Zero(6), ChunkRef::Zero(6)]),
            file(u64::MAX, vec![ChunkRef::Zero(u32::MAX)]),
            file(0, vec![ChunkRef::Zero(0)]),
        ] {
            let (_, bytes) = manifest(vec![entry("a", kind)]).encode().unwrap();
            let error = Manifest::decode_unnamed(&bytes).unwrap_err();
            assert!(matches!(error, ManifestError::Size { .. }), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_body_behind_a_good_checksum_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::decode_unnamed(&FORMAT.wrap(&body));
            let _ = Manifest::decode_unnamed(&body);
        }
    }
}
