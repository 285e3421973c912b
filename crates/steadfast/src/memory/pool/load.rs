//! Opening a pool: what an agent that was killed left behind is checked and offered again.
//!
//! It decides which files are whole: a manifest by its hash, a chunk by its checksum. What is damaged is
//! deleted and named; what no manifest needs becomes spare. It never changes a whole, needed file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use steadfast_proto::ids::Digest;

use super::{Chunk, Held, STORED_BYTES_MAX, State, cost_of, id_of, remove};
use crate::memory::manifest::Manifest;

pub(super) const CHUNKS: &str = "chunks";
pub(super) const MANIFESTS: &str = "manifests";
pub(super) const SPARE: &str = "spare";

/// `statfs` types of file systems that live in memory.
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;

/// Why the pool can't be opened. Nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is on a disk.
    #[error(
        "checkpoint memory at {path} is not on a tmpfs, so it would be slow and outlive the machine: mount a tmpfs there or name a folder under /dev/shm or /run"
    )]
    NotMemory {
        /// The folder.
        path: PathBuf,
    },
    /// Another agent uses it.
    #[error(
        "checkpoint memory at {path} is in use by another agent: stop that agent, or give this one its own folder"
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("checkpoint memory: {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
}

/// Something damaged that was found and deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// What was wrong with it, as a sentence's end.
    pub reason: String,
}

pub(super) struct Loaded {
    pub(super) state: State,
    pub(super) damage: Vec<Damage>,
    pub(super) lock: File,
}

pub(super) fn chunk_path(directory: &Path, digest: Digest, crc: u32) -> PathBuf {
    let [first, ..] = digest.0;
    directory.join(CHUNKS).join(format!("{first:02x}")).join(format!("{digest}.{crc:08x}"))
}

pub(super) fn load(directory: &Path) -> Result<Loaded, OpenError> {
    make_folder(directory)?;
    let status =
        rustix::fs::statfs(directory).map_err(|error| io_error("look at", directory)(error.into()))?;
    #[allow(clippy::unnecessary_cast, reason = "the field's type differs between architectures")]
    let kind = status.f_type as i64;
    if kind != TMPFS && kind != RAMFS {
        return Err(OpenError::NotMemory { path: directory.to_path_buf() });
    }
    let lock = lock(directory)?;
    for name in [CHUNKS, MANIFESTS, SPARE] {
        make_folder(&directory.join(name))?;
    }
    for first in 0..=u8::MAX {
        make_folder(&directory.join(CHUNKS).join(format!("{first:02x}")))?;
    }
    let mut damage = Vec::new();
    let manifests = load_manifests(directory, &mut damage)?;
    let mut state = State { manifests, ..State::default() };
    let needed: BTreeSet<Digest> =
        state.manifests.values().flat_map(|held| held.chunks.iter().copied()).collect();
    load_chunks(directory, &needed, &mut state, &mut damage)?;
    load_spares(directory, &mut state)?;
    state.used = state.manifests.values().map(|held| held.cost).sum::<u64>()
        + state.chunks.values().map(|chunk| cost_of(chunk.length)).sum::<u64>();
    for one in &damage {
        tracing::error!(path = %one.path.display(), reason = one.reason, "damaged checkpoint memory was dropped");
    }
    Ok(Loaded { state, damage, lock })
}

fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join("lock");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(io_error("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked { path: directory.to_path_buf() }),
        Err(error) => Err(io_error("lock", &path)(error.into())),
    }
}

fn load_manifests(directory: &Path, damage: &mut Vec<Damage>) -> Result<BTreeMap<Digest, Held>, OpenError> {
    let mut manifests = BTreeMap::new();
    for path in list(&directory.join(MANIFESTS))? {
        let bytes = std::fs::read(&path).map_err(io_error("read", &path))?;
        let named =
            split_name(&path).and_then(|(digest, revision)| Some((digest, revision.parse::<u64>().ok()?)));
        let checked = match named {
            Some((digest, revision)) => Manifest::decode(digest, &bytes)
                .map(|manifest| (digest, revision, manifest))
                .map_err(|error| error.to_string()),
            None => Err("its name is not that of a manifest".to_owned()),
        };
        match checked {
            Ok((digest, revision, manifest)) => {
                let held = Held {
                    id: id_of(&manifest),
                    revision,
                    chunks: manifest.chunks(),
                    bytes: manifest.bytes(),
                    cost: cost_of(bytes.len()),
                };
                manifests.insert(digest, held);
            }
            Err(reason) => {
                remove(&path);
                damage.push(Damage { path, reason });
            }
        }
    }
    Ok(manifests)
}

fn load_chunks(
    directory: &Path,
    needed: &BTreeSet<Digest>,
    state: &mut State,
    damage: &mut Vec<Damage>,
) -> Result<(), OpenError> {
    let mut checks = Vec::new();
    for folder in list(&directory.join(CHUNKS))? {
        for path in list(&folder)? {
            match split_name(&path).filter(|(digest, _)| needed.contains(digest)) {
                Some((digest, crc)) => {
                    let crc = u32::from_str_radix(crc, 16).ok();
                    checks.push((digest, crc, path));
                }
                // A put that was never sealed: its grant ended with the agent.
                None => remove(&path),
            }
        }
    }
    for (result, (digest, _, path)) in check_all(&checks).into_iter().zip(&checks) {
        match result {
            Ok(chunk) => {
                state.chunks.insert(*digest, chunk);
            }
            Err(reason) => {
                remove(path);
                damage.push(Damage { path: path.clone(), reason });
            }
        }
    }
    Ok(())
}

type Check = (Digest, Option<u32>, PathBuf);

/// Reads and checks every chunk, on as many threads as there are processors (at most 4).
fn check_all(checks: &[Check]) -> Vec<Result<Chunk, String>> {
    let unchecked = || Err("it was not checked".to_owned());
    let results: Vec<Mutex<Result<Chunk, String>>> = checks.iter().map(|_| Mutex::new(unchecked())).collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(checks.len()) {
            scope.spawn(|| {
                let mut buffer = Vec::with_capacity(STORED_BYTES_MAX);
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let (Some((_, crc, path)), Some(result)) = (checks.get(index), results.get(index)) else {
                        return;
                    };
                    if let Ok(mut result) = result.lock() {
                        *result = check(path, *crc, &mut buffer);
                    }
                }
            });
        }
    });
    let unlocked = results.into_iter().map(std::sync::Mutex::into_inner);
    unlocked.map(|result| result.unwrap_or_else(|_| unchecked())).collect()
}

fn check(path: &Path, crc: Option<u32>, buffer: &mut Vec<u8>) -> Result<Chunk, String> {
    let expected = crc.ok_or("its name carries no checksum")?;
    buffer.clear();
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    io::Read::read_to_end(&mut file, buffer).map_err(|error| error.to_string())?;
    let found = crc32c::crc32c(buffer);
    if found != expected {
        return Err(format!("its checksum is {found:08x} where {expected:08x} was stored"));
    }
    Ok(Chunk { length: buffer.len(), crc: expected })
}

fn load_spares(directory: &Path, state: &mut State) -> Result<(), OpenError> {
    for path in list(&directory.join(SPARE))? {
        let number = path.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
        let length = std::fs::metadata(&path).map_err(io_error("look at", &path))?.len();
        match number {
            Some(number) if usize::try_from(length) == Ok(STORED_BYTES_MAX) => {
                state.spares.push(number);
                state.next_spare = state.next_spare.max(number);
            }
            Some(_) | None => remove(&path),
        }
    }
    Ok(())
}

/// Splits `<digest>.<rest>`.
fn split_name(path: &Path) -> Option<(Digest, &str)> {
    let (digest, rest) = path.file_name()?.to_str()?.split_once('.')?;
    Some((digest.parse().ok()?, rest))
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let listing = std::fs::read_dir(folder).map_err(io_error("list", folder))?;
    listing.map(|item| item.map(|item| item.path()).map_err(io_error("list", folder))).collect()
}

fn make_folder(path: &Path) -> Result<(), OpenError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(io_error("make", path))
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |source| OpenError::Io { action, path: path.clone(), source }
}
