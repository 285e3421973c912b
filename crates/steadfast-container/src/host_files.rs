//! Decides which files of the host a container depends on, and whether another host has the same: an image holds no
//! copy of them, so a program restored over other bytes would crash or worse.
//!
//! Must never hash a file twice that did not change: device, inode, size and time of change are the key.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    sync::Mutex,
};

use serde::{Deserialize, Serialize};

/// A file of the host that a program depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostFile {
    /// Its path on the host.
    pub path: PathBuf,
    /// BLAKE3 of its bytes.
    pub hash: Hash,
}

/// 256 bits, written as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let hash = blake3::Hash::from_hex(&text).map_err(serde::de::Error::custom)?;
        Ok(Self(*hash.as_bytes()))
    }
}

/// Why this host cannot carry on a program. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// The file is not there, or cannot be read.
    #[error("{} cannot be read here ({source}); the program needs it, install the same version", .path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has other bytes.
    #[error("{} differs from the file the program was started with; install the same version", .path.display())]
    Different {
        /// Which file.
        path: PathBuf,
    },
}

/// Checks that every file has the same bytes here.
pub fn verify_host_files(files: &[HostFile]) -> Result<(), Mismatch> {
    for file in files {
        let hash =
            hash(&file.path).map_err(|source| Mismatch::Missing { path: file.path.clone(), source })?;
        if hash != file.hash {
            return Err(Mismatch::Different { path: file.path.clone() });
        }
    }
    Ok(())
}

type Key = (u64, u64, u64, i64, i64);
const CACHE_ENTRIES_MAX: usize = 16_384;
static CACHE: Mutex<BTreeMap<Key, Hash>> = Mutex::new(BTreeMap::new());

/// The hash of a file's bytes.
pub(crate) fn hash(path: &Path) -> io::Result<Hash> {
    let file = File::open(path)?;
    let look = file.metadata()?;
    if !look.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let key = (look.dev(), look.ino(), look.size(), look.ctime(), look.ctime_nsec());
    let known = || CACHE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(hash) = known().get(&key) {
        return Ok(*hash);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    let hash = Hash(*hasher.finalize().as_bytes());
    let mut cache = known();
    if cache.len() >= CACHE_ENTRIES_MAX {
        cache.clear();
    }
    cache.insert(key, hash);
    Ok(hash)
}

/// The files of the lower layer that these processes have mapped, run or open, as paths below that layer. Files that
/// the upper layer holds travel with the image; files on other mounts are nobody's here.
pub(crate) fn in_use(pids: &[u32], upper: &Path, separate: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for pid in pids {
        let process = Path::new("/proc").join(pid.to_string());
        files.extend(mapped(&process));
        files.extend(open(&process));
    }
    files
        .retain(|path| !separate.iter().any(|mount| path.starts_with(mount)) && !below(upper, path).exists());
    files
}

/// Hashes files found by [`in_use`], whose paths are below `lower`.
pub(crate) fn describe(files: &BTreeSet<PathBuf>, lower: &Path) -> Vec<HostFile> {
    let entry = |path: &PathBuf| {
        let path = below(lower, path);
        // What is gone from the lower layer cannot be opened by CRIU either, which reports it better.
        let hash = hash(&path).ok()?;
        Some(HostFile { path, hash })
    };
    files.iter().filter_map(entry).collect()
}

fn mapped(process: &Path) -> Vec<PathBuf> {
    let text = fs::read(process.join("maps")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().filter_map(|line| line.find('/').and_then(|at| line.get(at..))).filter_map(plain).collect()
}

fn open(process: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(process.join("fd")) else { return Vec::new() };
    let targets = entries.flatten().filter_map(|entry| {
        let regular = fs::metadata(entry.path()).is_ok_and(|look| look.is_file());
        regular.then(|| fs::read_link(entry.path()).ok()).flatten()
    });
    targets.filter_map(|path| plain(path.to_str()?)).collect()
}

fn plain(text: &str) -> Option<PathBuf> {
    let wanted = text.starts_with('/')
        && !text.ends_with(" (deleted)")
        && !text.starts_with("/memfd:")
        && !text.starts_with("/SYSV");
    wanted.then(|| PathBuf::from(text))
}

fn below(top: &Path, path: &Path) -> PathBuf {
    let mut joined = top.to_owned();
    joined.extend(path.components().filter(|part| matches!(part, Component::Normal(_))));
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("library.so");
        fs::write(&path, "one").unwrap();
        let file = HostFile { path: path.clone(), hash: hash(&path).unwrap() };
        verify_host_files(std::slice::from_ref(&file)).unwrap();
        fs::write(&path, "two!").unwrap();
        let Err(Mismatch::Different { path: named }) = verify_host_files(std::slice::from_ref(&file)) else {
            panic!("not seen")
        };
        assert_eq!(named, path);
        fs::remove_file(&path).unwrap();
        assert!(matches!(verify_host_files(&[file]), Err(Mismatch::Missing { .. })));
    }

    #[test]
    fn own_libraries_are_found() {
        let found = in_use(&[std::process::id()], Path::new("/nonexistent"), &[PathBuf::from("/proc")]);
        assert!(found.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{found:?}");
    }
}
