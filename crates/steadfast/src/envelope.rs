//! The checked envelope around every small file and manifest: magic, version, length limit, checksum.
//!
//! It decides whether bytes are whole and of a kind and version this program reads. It never looks at
//! the body, and nothing behind it is parsed before the checksum agrees. `write_atomic` beside it is
//! the only way small state reaches a disk: a reader sees the old file or the new one, never a mixture.
//! Read next: `identity`, then `memory::manifest`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes that the envelope adds in front of a body.
pub const HEADER_BYTES: usize = 16;

/// What kind of body an envelope carries and how it is limited.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Four bytes that name the kind of file.
    pub magic: [u8; 4],
    /// Newest version this program writes; older ones down to `version_min` are read.
    pub version: u16,
    /// Oldest version this program still reads.
    pub version_min: u16,
    /// Largest body in bytes.
    pub body_bytes_max: u32,
}

/// Why bytes are not an envelope of the expected format. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The bytes end before the header or the body does.
    #[error("it is cut short: {found} bytes where {expected} were expected")]
    Truncated {
        /// Bytes found.
        found: usize,
        /// Bytes that the header promises, or that a header needs.
        expected: usize,
    },
    /// The first bytes name another kind of file.
    #[error("it does not begin with the mark of this kind of file")]
    Magic,
    /// Written by a version of steadfast that this one can't read.
    #[error("it has format version {found}, this program reads {min} to {max}")]
    Version {
        /// Version found.
        found: u16,
        /// Oldest version read.
        min: u16,
        /// Newest version read.
        max: u16,
    },
    /// The body is longer than this kind may be, or bytes follow it.
    #[error("its body has {found} bytes, at most {max} are allowed here")]
    TooLong {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The checksum does not agree with the bytes.
    #[error("its checksum is {found:08x} where the bytes give {expected:08x}, so it is damaged")]
    Checksum {
        /// Checksum that is stored.
        found: u32,
        /// Checksum of the bytes.
        expected: u32,
    },
}

impl Format {
    /// Puts `body` into an envelope.
    ///
    /// # Panics
    /// When `body` is longer than `body_bytes_max`: the caller bounds what it writes.
    #[must_use]
    pub fn wrap(&self, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).expect("callers bound their bodies");
        assert!(length <= self.body_bytes_max, "a body of {length} bytes is over its format's bound");
        let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
        out.extend_from_slice(&self.magic);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&length.to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&out), body);
        out.extend_from_slice(&sum.to_le_bytes());
        out.extend_from_slice(body);
        out
    }

    /// Checks an envelope and gives its version and body.
    ///
    /// # Errors
    /// Says in which way the bytes are not such an envelope.
    pub fn unwrap<'a>(&self, bytes: &'a [u8]) -> Result<(u16, &'a [u8]), EnvelopeError> {
        let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(EnvelopeError::Truncated { found: bytes.len(), expected: HEADER_BYTES });
        };
        let [m0, m1, m2, m3, v0, v1, _, _, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
        if [m0, m1, m2, m3] != self.magic {
            return Err(EnvelopeError::Magic);
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version < self.version_min || version > self.version {
            return Err(EnvelopeError::Version { found: version, min: self.version_min, max: self.version });
        }
        let max = self.body_bytes_max as usize;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > max || body.len() > length {
            return Err(EnvelopeError::TooLong { found: body.len().max(length), max: length.min(max) });
        }
        if body.len() < length {
            return Err(EnvelopeError::Truncated { found: bytes.len(), expected: HEADER_BYTES + length });
        }
        let found = u32::from_le_bytes([c0, c1, c2, c3]);
        let expected = crc32c::crc32c_append(
            crc32c::crc32c(&[m0, m1, m2, m3, v0, v1, header[6], header[7], l0, l1, l2, l3]),
            body,
        );
        if found != expected {
            return Err(EnvelopeError::Checksum { found, expected });
        }
        Ok((version, body))
    }
}

/// Replaces `path` by `bytes` so that a crash leaves the old file or the new one, durable on return.
///
/// # Errors
/// The operating system's error; the old file is untouched, a temporary neighbour may remain and is
/// overwritten by the next call.
pub fn write_atomic(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_name(path);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&temporary, path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMAT: Format = Format { magic: *b"TEST", version: 3, version_min: 2, body_bytes_max: 1000 };

    proptest! {
        #[test]
        fn any_single_damage_is_noticed(body in proptest::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = FORMAT.wrap(&body);
            prop_assert_eq!(FORMAT.unwrap(&bytes), Ok((3, body.as_slice())));
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(FORMAT.unwrap(&bytes).is_err());
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(FORMAT.unwrap(&bytes).is_err());
        }
    }

    #[test]
    fn a_cut_file_says_how_much_is_missing() {
        let bytes = FORMAT.wrap(b"hello");
        let error = FORMAT.unwrap(&bytes[..18]).unwrap_err();
        assert_eq!(error, EnvelopeError::Truncated { found: 18, expected: 21 });
    }

    #[test]
    fn an_atomic_write_replaces_and_leaves_no_neighbour() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write_atomic(&path, 0o600, b"one").unwrap();
        write_atomic(&path, 0o600, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
