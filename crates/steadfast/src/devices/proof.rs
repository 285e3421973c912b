//! The proof that several nodes see one device: one writes a random number to it, and the others read it there.
//!
//! Names and serial numbers are claims; copies of a disk and careless vendors repeat them. Only a device that bears
//! our own label and nothing else is written to, and only in the block behind the label; one that is in use never
//! is. Everything goes past the cache, as another machine reads. Who asks and what follows is decided elsewhere.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;

use super::Seen;
use super::identify::{ALIGNMENT, aligned, open_direct, read_at};
use super::probe::{START_BYTES, Source, probe};
use super::sysfs::{self, Roots};
use crate::envelope::{Format, HEADER_BYTES};

const NUMBER: Format = Format { magic: *b"SFpf", version: 1, version_min: 1, body_bytes_max: 16 };
/// Where the number is: the second block of the label's area.
const PLACE: u64 = 4096;
const BLOCK_BYTES: usize = 4096;

/// Why a device can't take part in a proof. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// This node does not see it.
    #[error("this node does not see the device, or can't tell which it is")]
    Unseen,
    /// It has no label of ours, or other content too.
    #[error("the device does not bear our label alone, so there is no room on it that may be written")]
    NoRoom,
    /// Something uses it.
    #[error("the device is in use, so it is not written to")]
    InUse,
    /// The device refused. What was written of the number, if anything, is no number that anybody knows.
    #[error("the device can't be {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
}

/// Writes `number` to a device, durably.
pub(super) fn write(roots: &Roots, seen: &Seen, number: u128) -> Result<(), ProofError> {
    let error = |action| move |source| ProofError::Io { action, source };
    let file = open_direct(OpenOptions::new().read(true).write(true), &seen.node).map_err(error("opened"))?;
    // What was seen may have been replaced: the label is read through the very descriptor that is written to.
    let content = probe(&read_at(&file, 0, START_BYTES).map_err(error("read"))?, &[]);
    let is_ours = matches!(content.marks.as_slice(), [mark] if mark.source == Source::Label)
        && content.damaged.is_empty()
        && content.marks.iter().map(ToString::to_string).eq(seen.marks.iter().cloned());
    if !is_ours || sysfs::diskseq(roots, &seen.kernel_name) != seen.diskseq {
        return Err(ProofError::NoRoom);
    }
    let mut buffer = vec![0; BLOCK_BYTES + ALIGNMENT];
    let block = aligned(&mut buffer, BLOCK_BYTES);
    for (to, from) in block.iter_mut().zip(NUMBER.wrap(&number.to_be_bytes())) {
        *to = from;
    }
    file.write_all_at(block, PLACE).map_err(error("written"))?;
    file.sync_all().map_err(error("flushed"))
}

/// The number on a device, if there is one.
pub(super) fn read(seen: &Seen) -> Result<Option<u128>, ProofError> {
    let error = |action| move |source| ProofError::Io { action, source };
    let file = open_direct(OpenOptions::new().read(true), &seen.node).map_err(error("opened"))?;
    let block = read_at(&file, PLACE, BLOCK_BYTES).map_err(error("read"))?;
    let body = block.get(..HEADER_BYTES + 16).and_then(|whole| NUMBER.unwrap(whole).ok());
    Ok(body.and_then(|(_, body)| body.try_into().ok()).map(u128::from_be_bytes))
}
