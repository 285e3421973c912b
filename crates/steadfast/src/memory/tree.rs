//! Image folders: reading what lies in one, and making one again from a manifest.
//!
//! It decides how an entry of a file system is described and rebuilt: type, owner, permissions, times,
//! attributes, and the holes of sparse files. It never follows a link and never looks at content.
//! Hard links become separate files. Read next: `ship` and `fetch`, its callers.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, lgetxattr, llistxattr,
    lsetxattr, mknodat, utimensat,
};

use super::manifest::{Attribute, Entry, EntryKind, FILES_MAX, ManifestError};

/// Room for the names, and for one value, of an entry's attributes.
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;
/// Most attributes kept per entry.
const ATTRIBUTES_MAX: usize = 64;

/// A folder can't be read or made.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// It does not fit a manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    let path = path.to_path_buf();
    move |source| TreeError::Io { action, path, source }
}

/// Lists everything under `root`, parents first, in the order of names; files have no chunks yet.
pub(super) fn scan(root: &Path) -> Result<Vec<Entry>, TreeError> {
    let mut entries = Vec::new();
    scan_folder(root, Path::new(""), &mut entries)?;
    Ok(entries)
}

fn scan_folder(root: &Path, relative: &Path, entries: &mut Vec<Entry>) -> Result<(), TreeError> {
    let folder = root.join(relative);
    let listing = std::fs::read_dir(&folder).map_err(io_error("list", &folder))?;
    let mut names = Vec::new();
    for item in listing {
        names.push(item.map_err(io_error("list", &folder))?.file_name());
    }
    names.sort();
    for name in names {
        if entries.len() >= FILES_MAX {
            let found = entries.len() + 1;
            return Err(ManifestError::TooLarge { what: "files", found, max: FILES_MAX }.into());
        }
        let relative = relative.join(name);
        let path = root.join(&relative);
        let metadata = std::fs::symlink_metadata(&path).map_err(io_error("look at", &path))?;
        let is_folder = metadata.is_dir();
        entries.push(describe(&path, &relative, &metadata)?);
        if is_folder {
            scan_folder(root, &relative, entries)?;
        }
    }
    Ok(())
}

fn describe(path: &Path, relative: &Path, metadata: &Metadata) -> Result<Entry, TreeError> {
    let kind = metadata.file_type();
    let kind = if kind.is_dir() {
        EntryKind::Directory
    } else if kind.is_file() {
        EntryKind::File { size: metadata.len(), chunks: Vec::new() }
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path).map_err(io_error("read the link", path))?;
        EntryKind::Link { target: target.into_os_string().into_vec() }
    } else if kind.is_block_device() || kind.is_char_device() {
        EntryKind::Special { device: metadata.rdev() }
    } else {
        EntryKind::Special { device: 0 }
    };
    Ok(Entry {
        path: relative.as_os_str().as_bytes().to_vec(),
        mode: metadata.mode(),
        user: metadata.uid(),
        group: metadata.gid(),
        modified_ns: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
        attributes: read_attributes(path)?,
        kind,
    })
}

fn read_attributes(path: &Path) -> Result<Vec<Attribute>, TreeError> {
    // One small question first: most entries have no attributes, and the large buffer is not for free.
    let mut names = [0; 512];
    let length = match llistxattr(path, &mut names[..]) {
        Ok(0) | Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Ok(length) => length,
        Err(rustix::io::Errno::RANGE) => 0,
        Err(error) => return Err(io_error("read the attributes of", path)(error.into())),
    };
    let mut many = vec![0; ATTRIBUTE_BYTES_MAX];
    let list = if length > 0 {
        names.get(..length).unwrap_or_default().to_vec()
    } else {
        let length = llistxattr(path, &mut many[..])
            .map_err(|error| io_error("read the attributes of", path)(error.into()))?;
        many.get(..length).unwrap_or_default().to_vec()
    };
    let mut attributes = Vec::new();
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    for name in names.take(ATTRIBUTES_MAX) {
        let length = lgetxattr(path, name, &mut many[..])
            .map_err(|error| io_error("read the attributes of", path)(error.into()))?;
        attributes.push((name.to_vec(), many.get(..length).unwrap_or_default().to_vec()));
    }
    Ok(attributes)
}

/// Where `entry` lies under `root`.
pub(super) fn path_of(root: &Path, entry: &Entry) -> PathBuf {
    root.join(OsStr::from_bytes(&entry.path))
}

/// Makes every folder, link and special entry, and every file with its size but without content.
pub(super) fn make(root: &Path, entries: &[Entry]) -> Result<(), TreeError> {
    for entry in entries {
        let path = path_of(root, entry);
        match &entry.kind {
            EntryKind::Directory => {
                // Permissions come last: a folder may be one that its owner can't write to.
                let made = DirBuilder::new().mode(0o700).create(&path);
                made.map_err(io_error("make the folder", &path))?;
            }
            EntryKind::File { size, .. } => {
                let file = create(&path).map_err(io_error("make", &path))?;
                file.set_len(*size).map_err(io_error("size", &path))?;
            }
            EntryKind::Link { target } => {
                let target = OsString::from_vec(target.clone());
                symlink(target, &path).map_err(io_error("make the link", &path))?;
            }
            EntryKind::Special { device } => {
                let kind = FileType::from_raw_mode(entry.mode);
                mknodat(CWD, &path, kind, Mode::RUSR, *device)
                    .map_err(|error| io_error("make the device", &path)(error.into()))?;
            }
        }
    }
    Ok(())
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Gives every entry its owner, attributes, permissions and time, children before their folders.
pub(super) fn finish(root: &Path, entries: &[Entry]) -> Result<(), TreeError> {
    for entry in entries.iter().rev() {
        let path = path_of(root, entry);
        let is_link = matches!(entry.kind, EntryKind::Link { .. });
        let (user, group) = (Uid::from_raw(entry.user), Gid::from_raw(entry.group));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        chownat(CWD, &path, Some(user), Some(group), flags)
            .map_err(|error| io_error("give the owner to", &path)(error.into()))?;
        for (name, value) in &entry.attributes {
            lsetxattr(&path, name.as_slice(), value, XattrFlags::empty())
                .map_err(|error| io_error("set an attribute of", &path)(error.into()))?;
        }
        if !is_link {
            let mode = Mode::from_raw_mode(entry.mode);
            rustix::fs::chmodat(CWD, &path, mode, AtFlags::empty())
                .map_err(|error| io_error("set the permissions of", &path)(error.into()))?;
        }
        let time = Timespec {
            tv_sec: entry.modified_ns.div_euclid(1_000_000_000),
            tv_nsec: entry.modified_ns.rem_euclid(1_000_000_000),
        };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, &path, &times, flags)
            .map_err(|error| io_error("set the time of", &path)(error.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_is_described_and_made_again() {
        let from = tempfile::tempdir().unwrap();
        let upper = from.path().join("upper");
        std::fs::create_dir(&upper).unwrap();
        std::fs::write(upper.join("log"), b"x").unwrap();
        std::fs::set_permissions(upper.join("log"), std::fs::Permissions::from_mode(0o4750)).unwrap();
        lsetxattr(&upper, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        symlink("/nowhere", upper.join("link")).unwrap();
        mknodat(CWD, upper.join("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        mknodat(CWD, upper.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        chownat(CWD, upper.join("log"), Some(Uid::from_raw(7)), None, AtFlags::empty()).unwrap();
        std::fs::set_permissions(upper.join("log"), std::fs::Permissions::from_mode(0o4750)).unwrap();
        let entries = scan(from.path()).unwrap();
        assert_eq!(entries.len(), 5);
        let to = tempfile::tempdir().unwrap();
        make(to.path(), &entries).unwrap();
        std::fs::write(to.path().join("upper/log"), b"x").unwrap();
        finish(to.path(), &entries).unwrap();
        assert_eq!(scan(to.path()).unwrap(), entries);
    }
}
