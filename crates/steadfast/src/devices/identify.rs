//! Which devices this machine sees: one entry for each, however many paths lead to it, and what it is or why not.
//!
//! Identifiers are collected from hardware and content; the strongest kind that is there counts, and no weaker one
//! takes its place when it is in doubt. Devices that claim one identity and can't be paths to one device are all
//! refused, never chosen among: a copy of a disk looks exactly like the disk. Read next: `hardware`, `probe`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use steadfast_proto::devices::DeviceId;

use super::hardware::{self, Named};
use super::probe::{self, Content, END_BYTES, START_BYTES, Source, Unclear};
use super::sysfs::{self, Block, Roots};

/// Bytes of the tables of mounts and swap areas that are looked at.
const TABLE_BYTES_MAX: u64 = 8 << 20;
/// Where direct reads may begin and end.
pub(super) const ALIGNMENT: usize = 4096;

/// One device as this machine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it is, or why that can't be said.
    pub identity: Result<DeviceId, Unidentified>,
    /// The kernel's name for the path that is used.
    pub kernel_name: String,
    /// Its node.
    pub node: PathBuf,
    /// The kernel's names for all paths to it.
    pub paths: Vec<String>,
    /// Its size in bytes.
    pub bytes: u64,
    /// What else is known of it: identifiers of its content.
    pub marks: Vec<String>,
    /// Counts attachments under the kernel's name.
    pub diskseq: Option<u64>,
    /// Whether it, or a part of it, is mounted, swapped to, or part of another device.
    pub in_use: bool,
}

/// Why a device is not identified; it gets no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// It says nothing of itself.
    #[error(
        "it has no worldwide name, no serial number and no content that identifies it: write a partition table or a label to it"
    )]
    Nothing,
    /// Its serial number is one that many devices share.
    #[error(
        "its serial number '{serial}' is one that many devices share, and its content does not identify it: write a partition table or a label to it"
    )]
    Worthless {
        /// The serial number.
        serial: String,
    },
    /// Several devices say that they are the same.
    #[error("{} all say that they are {id}, as copies of a disk do: remove the copy or give it an identity of its own", others.join(", "))]
    Duplicate {
        /// What they claim to be.
        id: DeviceId,
        /// The kernel's names of all of them.
        others: Vec<String>,
    },
    /// It holds several things at once.
    #[error("it holds {} at once: wipe what is left over", marks.join(" and "))]
    Several {
        /// What was found.
        marks: Vec<String>,
    },
    /// What would identify it is damaged.
    #[error("its {} structure is damaged", source_kind.kind())]
    Damaged {
        /// What is damaged.
        source_kind: Source,
    },
    /// The devices that it is made of are not one.
    #[error("the paths that it is made of do not lead to one device")]
    PathsDiffer,
    /// The disk that it is a part of is not identified.
    #[error("the disk {disk} that it is a part of is not identified")]
    Disk {
        /// The kernel's name of the disk.
        disk: String,
    },
    /// It can't be read.
    #[error("it can't be read: {reason}")]
    Unreadable {
        /// The operating system's answer.
        reason: String,
    },
    /// Something else was attached under its name while it was looked at.
    #[error("it was replaced while it was looked at; the next scan will see what is there")]
    Replaced,
}

/// A device with what it says of itself, before it is compared with others.
struct Candidate {
    block: Block,
    marks: Vec<String>,
    id: Result<DeviceId, Unidentified>,
    /// Whether several devices that say this are paths to one.
    is_worldwide: bool,
}

/// Identifies all block devices.
///
/// # Errors
/// The kernel's list of devices can't be read.
pub(super) fn scan(roots: &Roots) -> io::Result<Vec<Seen>> {
    let blocks: Vec<Block> =
        sysfs::read(roots)?.into_iter().filter(|block| !is_passed_over(&block.name)).collect();
    let busy = Busy::read(roots, &blocks);
    let mapped: BTreeMap<String, (String, Vec<String>)> = blocks
        .iter()
        .filter_map(|block| Some((block.name.clone(), (block.mapped.clone()?, block.slaves.clone()))))
        .collect();
    let is_path = |block: &Block| {
        let holds = |holder| mapped.get(holder).is_some_and(|(uuid, _)| is_multipath(uuid));
        block.is_hidden || block.holders.iter().any(holds)
    };
    let mut disks: Vec<Candidate> = Vec::new();
    let mut parts: Vec<(Block, u32, String)> = Vec::new();
    for block in blocks {
        let part = part_of(&block);
        match part {
            Some((number, disk)) => parts.push((block, number, disk)),
            None => disks.push(candidate(roots, block, is_path)),
        }
    }
    join_multipath(&mut disks);
    let mut seen = Vec::new();
    let mut resolved: BTreeMap<String, Result<DeviceId, Unidentified>> = BTreeMap::new();
    group(roots, &busy, disks, &mut resolved, &mut seen);
    let parts = parts.into_iter().map(|(block, number, disk)| {
        let id = match resolved.get(&disk) {
            Some(Ok(id)) => format!("{id}-part{number}").parse().map_err(|_| Unidentified::Nothing),
            Some(Err(_)) | None => Err(Unidentified::Disk { disk }),
        };
        Candidate { block, marks: Vec::new(), id, is_worldwide: true }
    });
    let parts: Vec<Candidate> = parts.collect();
    group(roots, &busy, parts, &mut resolved, &mut seen);
    Ok(seen)
}

/// Memory and removable media, which are never shared.
fn is_passed_over(name: &str) -> bool {
    let kind = name.trim_end_matches(|character: char| character.is_ascii_digit());
    matches!(kind, "ram" | "zram" | "fd" | "sr")
}

fn is_multipath(uuid: &str) -> bool {
    uuid.starts_with("mpath-") || part_number(uuid).is_some()
}

/// The partition's number and its disk, for the kernel's partitions and for those that tools map onto a multipath.
fn part_of(block: &Block) -> Option<(u32, String)> {
    if let (Some(number), Some(parent)) = (block.partition, &block.parent) {
        return Some((number, parent.clone()));
    }
    let number = part_number(block.mapped.as_deref()?)?;
    Some((number, block.slaves.first()?.clone()))
}

fn part_number(uuid: &str) -> Option<u32> {
    let (number, _) = uuid.strip_prefix("part")?.split_once("-mpath-")?;
    number.parse().ok()
}

fn candidate(roots: &Roots, block: Block, is_path: impl Fn(&Block) -> bool) -> Candidate {
    let named = match &block.mapped {
        Some(uuid) => match hardware::id("mapped", uuid) {
            Some(id) => Named::Worldwide(id),
            None => Named::Nothing,
        },
        None => hardware::weigh(&block.hardware),
    };
    // A path may be failing, and says nothing that the whole does not say.
    let content = if is_path(&block) { Ok(Content::default()) } else { read_content(roots, &block) };
    let marks = content
        .as_ref()
        .map_or(Vec::new(), |content| content.marks.iter().map(ToString::to_string).collect());
    let is_worldwide = matches!(named, Named::Worldwide(_));
    let id = match (named, content) {
        (Named::Worldwide(id) | Named::Serial(id), _) => Ok(id),
        (Named::Worthless(_) | Named::Nothing, Err(error)) => Err(error),
        (named @ (Named::Worthless(_) | Named::Nothing), Ok(content)) => by_content(named, &content),
    };
    Candidate { block, marks, id, is_worldwide }
}

fn by_content(named: Named, content: &Content) -> Result<DeviceId, Unidentified> {
    match content.identity() {
        Ok(mark) => mark.to_string().parse().map_err(|_| Unidentified::Nothing),
        Err(Unclear::Several) => {
            Err(Unidentified::Several { marks: content.marks.iter().map(ToString::to_string).collect() })
        }
        Err(Unclear::Damaged(source_kind)) => Err(Unidentified::Damaged { source_kind }),
        Err(Unclear::Empty) => Err(match named {
            Named::Worthless(serial) => Unidentified::Worthless { serial },
            Named::Worldwide(_) | Named::Serial(_) | Named::Nothing => Unidentified::Nothing,
        }),
    }
}

/// Gives what is made of several paths the identity that all of them have.
fn join_multipath(disks: &mut [Candidate]) {
    let by_name: BTreeMap<String, Result<DeviceId, Unidentified>> =
        disks.iter().map(|disk| (disk.block.name.clone(), disk.id.clone())).collect();
    for disk in disks.iter_mut() {
        if !disk.block.mapped.as_deref().is_some_and(|uuid| uuid.starts_with("mpath-")) {
            continue;
        }
        let ids: BTreeSet<Option<&DeviceId>> = disk
            .block
            .slaves
            .iter()
            .map(|slave| by_name.get(slave).and_then(|id| id.as_ref().ok()))
            .collect();
        let mut ids = ids.into_iter();
        disk.id = match (ids.next(), ids.next()) {
            (Some(Some(id)), None) => Ok(id.clone()),
            _ => Err(Unidentified::PathsDiffer),
        };
    }
}

/// Makes one entry of all paths to a device, and refuses devices that claim one identity and are not one.
fn group(
    roots: &Roots,
    busy: &Busy,
    candidates: Vec<Candidate>,
    resolved: &mut BTreeMap<String, Result<DeviceId, Unidentified>>,
    seen: &mut Vec<Seen>,
) {
    let mut groups: BTreeMap<DeviceId, Vec<Candidate>> = BTreeMap::new();
    for candidate in candidates {
        match candidate.id.clone() {
            Ok(id) => groups.entry(id).or_default().push(candidate),
            Err(error) => {
                resolved.insert(candidate.block.name.clone(), Err(error.clone()));
                if !candidate.block.is_hidden {
                    seen.push(entry(roots, busy, Err(error), &[candidate]));
                }
            }
        }
    }
    for (id, mut paths) in groups {
        // What the kernel or a tool made of several paths comes first, then the shortest name.
        paths.sort_by_key(|path| {
            let block = &path.block;
            (block.is_hidden, block.mapped.is_none(), block.name.len(), block.name.clone())
        });
        let names = || paths.iter().map(|path| path.block.name.clone());
        if is_one_device(&paths) {
            resolved.extend(names().map(|name| (name, Ok(id.clone()))));
            seen.push(entry(roots, busy, Ok(id), &paths));
            continue;
        }
        let error = Unidentified::Duplicate { id: id.clone(), others: names().collect() };
        resolved.extend(names().map(|name| (name, Err(error.clone()))));
        for path in &paths {
            seen.push(entry(roots, busy, Err(error.clone()), std::slice::from_ref(path)));
        }
    }
}

/// Whether all of these lead to one device.
fn is_one_device(paths: &[Candidate]) -> bool {
    let [first, rest @ ..] = paths else { return false };
    let content = |path: &Candidate| (!path.marks.is_empty()).then(|| path.marks.clone());
    let contents: BTreeSet<Vec<String>> = paths.iter().filter_map(content).collect();
    rest.iter().all(|other| {
        let is_same_file = first.block.backing.is_some() && first.block.backing == other.block.backing;
        let is_path = first.is_worldwide && other.is_worldwide && first.block.backing.is_none();
        other.block.bytes == first.block.bytes && contents.len() <= 1 && (is_same_file || is_path)
    })
}

fn entry(roots: &Roots, busy: &Busy, identity: Result<DeviceId, Unidentified>, paths: &[Candidate]) -> Seen {
    let lead = paths.first().map(|path| path.block.clone()).unwrap_or_default();
    let names: BTreeSet<&str> = paths.iter().map(|path| path.block.name.as_str()).collect();
    Seen {
        identity,
        node: roots.dev.join(&lead.name),
        paths: paths.iter().map(|path| path.block.name.clone()).collect(),
        bytes: lead.bytes,
        marks: paths.iter().find(|path| !path.marks.is_empty()).map_or(Vec::new(), |path| path.marks.clone()),
        diskseq: lead.diskseq,
        in_use: paths.iter().any(|path| busy.is_busy(&path.block, &names)),
        kernel_name: lead.name,
    }
}

/// What is mounted, swapped to, or held by other devices.
struct Busy {
    numbers: BTreeSet<String>,
    names: BTreeSet<String>,
    /// The disks of which a partition is busy.
    disks: BTreeSet<String>,
}

impl Busy {
    fn read(roots: &Roots, blocks: &[Block]) -> Busy {
        let mut busy = Busy { numbers: BTreeSet::new(), names: BTreeSet::new(), disks: BTreeSet::new() };
        for line in table(&roots.mountinfo).lines() {
            busy.numbers.extend(line.split(' ').nth(2).map(str::to_owned));
            // File systems over several devices have a number of their own; their source is one of the devices.
            let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1));
            busy.names.extend(source.and_then(|source| kernel_name(roots, source)));
        }
        for line in table(&roots.swaps).lines().skip(1) {
            busy.names.extend(line.split_whitespace().next().and_then(|path| kernel_name(roots, path)));
        }
        let parts = blocks.iter().filter_map(|block| Some((block, block.parent.clone()?)));
        busy.disks =
            parts.filter(|(block, _)| busy.is_busy(block, &BTreeSet::new())).map(|(_, disk)| disk).collect();
        busy
    }

    /// Whether something other than the device's own other names uses it.
    fn is_busy(&self, block: &Block, own: &BTreeSet<&str>) -> bool {
        let is_held = block.holders.iter().any(|holder| !own.contains(holder.as_str()));
        is_held
            || self.numbers.contains(&block.number)
            || self.names.contains(&block.name)
            || self.disks.contains(&block.name)
    }
}

/// The kernel's name behind a path of a device.
fn kernel_name(roots: &Roots, path: &str) -> Option<String> {
    let path = Path::new(path);
    if !path.starts_with(&roots.dev) {
        return None;
    }
    let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    Some(real.file_name()?.to_str()?.to_owned())
}

fn table(path: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(TABLE_BYTES_MAX).read_to_string(&mut text));
    if let Err(error) = read {
        tracing::warn!(path = %path.display(), %error, "what is in use can't be read in full");
    }
    text
}

/// Reads a device's content, past the cache where the device allows it: another node may have written.
fn read_content(roots: &Roots, block: &Block) -> Result<Content, Unidentified> {
    let unreadable = |error: io::Error| Unidentified::Unreadable { reason: error.to_string() };
    let file = open(&roots.dev.join(&block.name)).map_err(unreadable)?;
    let start = read_at(&file, 0, START_BYTES).map_err(unreadable)?;
    let end = if probe::wants_end(&start) {
        let place = block.bytes.saturating_sub(END_BYTES.try_into().unwrap_or(u64::MAX));
        read_at(&file, place, END_BYTES).map_err(unreadable)?
    } else {
        Vec::new()
    };
    if block.diskseq != sysfs::diskseq(roots, &block.name) {
        return Err(Unidentified::Replaced);
    }
    Ok(probe::probe(&start, &end))
}

fn open(path: &Path) -> io::Result<File> {
    open_direct(OpenOptions::new().read(true), path)
}

/// Opens past the cache where the device allows it.
pub(super) fn open_direct(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let mut with = |flags: i32| options.custom_flags(flags | libc::O_NONBLOCK).open(path);
    with(libc::O_DIRECT).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => with(0),
        Some(_) | None => Err(error),
    })
}

/// Reads up to `length` bytes, fewer at the end of a device.
pub(super) fn read_at(file: &File, place: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; length + ALIGNMENT];
    let aligned = aligned(&mut buffer, length);
    let mut done = 0;
    while let Some(rest) = aligned.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, place + u64::try_from(done).unwrap_or(u64::MAX)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A size that is no multiple of what direct reads want ends early.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(aligned.get(..done).unwrap_or_default().to_vec())
}

/// The part of a buffer that direct reads and writes can use; the buffer has [`ALIGNMENT`] more bytes than that.
pub(super) fn aligned(buffer: &mut [u8], length: usize) -> &mut [u8] {
    let skip = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    buffer.get_mut(skip..skip + length).unwrap_or_default()
}

#[cfg(test)]
#[path = "identify_tests.rs"]
pub(super) mod tests;
