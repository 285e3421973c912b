//! Gives an empty disk or an image file an identity: our own label, with a UUID drawn at random.
//!
//! It never overwrites anything: the area of the label must hold zeros only, and nothing may use the device. Read next:
//! `probe`, which finds the label again, and `proof`, which uses the room behind it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use steadfast_proto::devices::DeviceId;

use super::identify::{ALIGNMENT, aligned, read_at};
use super::probe::{START_BYTES, label_bytes, probe};

/// Bytes at the start that are the label's: itself, and the room for proofs.
const AREA_BYTES: usize = 8 << 10;
const BLOCK_BYTES: usize = 4096;

/// Why there is no label. Unless it says otherwise, nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// It can't be opened for itself alone, read or written.
    #[error("it can't be {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// It is neither a block device nor a file.
    #[error("it is neither a block device nor an image file")]
    Kind,
    /// It holds something that identifies it already.
    #[error("it holds {0} already, which identifies it: it needs no label")]
    Identified(String),
    /// There is something at its start.
    #[error(
        "its first 8 KiB are not empty, and nothing is overwritten: wipe it first if nothing of it is needed"
    )]
    NotEmpty,
    /// The label does not fit.
    #[error("it is smaller than 8 KiB, so a label does not fit")]
    TooSmall,
}

/// Writes a label; gives the identity that the device has from now on.
///
/// # Errors
/// See [`LabelError`].
pub fn write_label(path: &Path) -> Result<DeviceId, LabelError> {
    let error = |action| move |source| LabelError::Io { action, source };
    // On a block device this fails while it is mounted or part of another device.
    let exclusive = libc::O_EXCL | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(path);
    let file = file.map_err(error("opened for this alone"))?;
    let kind = file.metadata().map_err(error("looked at"))?.file_type();
    if !kind.is_block_device() && !kind.is_file() {
        return Err(LabelError::Kind);
    }
    let start = read_at(&file, 0, START_BYTES).map_err(error("read"))?;
    let content = probe(&start, &[]);
    if let Some(mark) = content.marks.first() {
        return Err(LabelError::Identified(mark.to_string()));
    }
    let area = start.get(..AREA_BYTES).ok_or(LabelError::TooSmall)?;
    if !content.damaged.is_empty() || area.iter().any(|byte| *byte != 0) {
        return Err(LabelError::NotEmpty);
    }
    let label = label_bytes(u128::from_be_bytes(crate::identity::random()));
    let mut buffer = vec![0; BLOCK_BYTES + ALIGNMENT];
    let block = aligned(&mut buffer, BLOCK_BYTES);
    for (to, from) in block.iter_mut().zip(&label) {
        *to = *from;
    }
    file.write_all_at(block, 0).and_then(|()| file.sync_all()).map_err(error("written"))?;
    let content = probe(block, &[]);
    let id = content.identity().ok().and_then(|mark| mark.to_string().parse().ok());
    Ok(id.expect("a label that was just made identifies"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_empty_gets_a_label_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let id = write_label(&path).unwrap();
        assert!(id.is_label());
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(probe(&bytes[..START_BYTES], &[]).identity().unwrap().to_string(), id.to_string());
        assert!(matches!(write_label(&path), Err(LabelError::Identified(mark)) if mark == id.to_string()));
        let mut used = vec![0; 1 << 20];
        used[5000] = 1;
        std::fs::write(&path, &used).unwrap();
        assert!(matches!(write_label(&path), Err(LabelError::NotEmpty)));
        assert_eq!(std::fs::read(&path).unwrap(), used, "nothing was written");
        std::fs::write(&path, [0; 4096]).unwrap();
        assert!(matches!(write_label(&path), Err(LabelError::TooSmall)));
        assert!(matches!(write_label(folder.path()), Err(LabelError::Io { .. })));
    }
}
