//! What the kernel says of block devices: one reading of `/sys/class/block`, as it is, without any judgement.
//!
//! Roots are parameters, so that recorded trees of hardware that is not here can be read like the real one. Reads are
//! bounded, and an attribute that is not there or can't be read is absent. Nothing is executed, as asking `blkid`
//! costs milliseconds per device. Read next: `identify`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Devices that are looked at; a machine with more shows the first ones by name.
pub(super) const DEVICES_MAX: usize = 8192;
/// Bytes of one attribute; identification pages of SCSI are the longest.
const ATTRIBUTE_BYTES_MAX: u64 = 4096;

/// Where the kernel's view of devices is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// `/sys`, or a recorded tree.
    pub sys: PathBuf,
    /// `/dev`, where a device's node has the kernel's name for it.
    pub dev: PathBuf,
    /// `/proc/self/mountinfo`, or a recorded one.
    pub mountinfo: PathBuf,
    /// `/proc/swaps`, or a recorded one.
    pub swaps: PathBuf,
    /// Patterns of the kernel's names of the devices that are looked at; `*` stands for any text, `?` for one character.
    pub include: Vec<String>,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots {
            sys: "/sys".into(),
            dev: "/dev".into(),
            mountinfo: "/proc/self/mountinfo".into(),
            swaps: "/proc/swaps".into(),
            include: vec!["*".to_owned()],
        }
    }
}

/// One block device as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) name: String,
    /// `MAJOR:MINOR`.
    pub(super) number: String,
    pub(super) bytes: u64,
    /// Counts attachments, so that a name that was given to another device is noticed.
    pub(super) diskseq: Option<u64>,
    /// Which partition of `parent` it is.
    pub(super) partition: Option<u32>,
    pub(super) parent: Option<String>,
    /// A path that the kernel shows only for completeness, below a device that it made of several.
    pub(super) is_hidden: bool,
    /// What a loop device shows: file, offset and limit.
    pub(super) backing: Option<String>,
    /// The device mapper's or MD's own id.
    pub(super) mapped: Option<String>,
    pub(super) hardware: Hardware,
    pub(super) holders: Vec<String>,
    pub(super) slaves: Vec<String>,
}

/// What the hardware says of itself, as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hardware {
    pub(super) wwid: String,
    pub(super) uuid: String,
    pub(super) nguid: String,
    pub(super) eui: String,
    /// SCSI's identification page.
    pub(super) page_83: Vec<u8>,
    /// SCSI's serial number page.
    pub(super) page_80: Vec<u8>,
    pub(super) serial: String,
    pub(super) vendor: String,
    pub(super) model: String,
    /// The number of an NVMe name space.
    pub(super) namespace: String,
}

/// Reads all block devices, in the order of their names.
///
/// # Errors
/// The folder of block devices can't be read.
pub(super) fn read(roots: &Roots) -> io::Result<Vec<Block>> {
    let folder = roots.sys.join("class/block");
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&folder)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if roots.include.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes())) {
            names.insert(name);
        }
    }
    let blocks = names.into_iter().take(DEVICES_MAX).map(|name| block(&folder, name));
    Ok(blocks.filter(|block| block.bytes > 0).collect())
}

/// Whether `name` is one of those that `pattern` describes.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // Of all `*` only the last one that was passed has to be tried again with more text.
    let (mut place, mut begin, mut star) = (0, 0, None);
    while begin < name.len() {
        match (pattern.get(place), name.get(begin)) {
            (Some(b'*'), _) => {
                star = Some((place, begin));
                place += 1;
            }
            (Some(wanted), Some(found)) if *wanted == b'?' || wanted == found => {
                place += 1;
                begin += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                (place, begin) = (at + 1, from + 1);
            }
        }
    }
    pattern.iter().skip(place).all(|byte| *byte == b'*')
}

/// How often something was attached under this name, read afresh.
pub(super) fn diskseq(roots: &Roots, name: &str) -> Option<u64> {
    text(&roots.sys.join("class/block").join(name), "diskseq").parse().ok()
}

fn block(folder: &Path, name: String) -> Block {
    const SECTOR_BYTES: u64 = 512;
    let place = folder.join(&name);
    let partition = text(&place, "partition").parse().ok();
    let parent = || {
        let real = place.canonicalize().ok()?;
        Some(real.parent()?.file_name()?.to_str()?.to_owned())
    };
    // Partitions share the disk's attachment.
    let parent = partition.and_then(|_: u32| parent());
    let attached = parent.as_ref().map_or_else(|| place.clone(), |parent| folder.join(parent));
    let mapped =
        ["dm/uuid", "md/uuid"].into_iter().map(|name| text(&place, name)).find(|text| !text.is_empty());
    let hardware = if partition.is_some() { Hardware::default() } else { hardware(&place) };
    Block {
        number: text(&place, "dev"),
        bytes: text(&place, "size").parse().unwrap_or(0u64).saturating_mul(SECTOR_BYTES),
        diskseq: text(&attached, "diskseq").parse().ok(),
        partition,
        parent,
        is_hidden: text(&place, "hidden") == "1",
        backing: backing(&place),
        mapped,
        hardware,
        holders: listed(&place, "holders"),
        slaves: listed(&place, "slaves"),
        name,
    }
}

fn backing(place: &Path) -> Option<String> {
    let file = text(place, "loop/backing_file");
    if file.is_empty() || file.ends_with(" (deleted)") {
        // Another file may have the path by now.
        return None;
    }
    Some(format!("{file}\n{}\n{}", text(place, "loop/offset"), text(place, "loop/sizelimit")))
}

fn hardware(place: &Path) -> Hardware {
    let first = |names: [&str; 2]| {
        names.into_iter().map(|name| text(place, name)).find(|text| !text.is_empty()).unwrap_or_default()
    };
    Hardware {
        wwid: first(["wwid", "device/wwid"]),
        uuid: text(place, "uuid"),
        nguid: text(place, "nguid"),
        eui: text(place, "eui"),
        page_83: attribute(place, "device/vpd_pg83"),
        page_80: attribute(place, "device/vpd_pg80"),
        serial: first(["serial", "device/serial"]),
        vendor: text(place, "device/vendor"),
        model: text(place, "device/model"),
        namespace: text(place, "nsid"),
    }
}

fn listed(place: &Path, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(place.join(folder)).into_iter().flatten().take(DEVICES_MAX);
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn text(place: &Path, name: &str) -> String {
    String::from_utf8_lossy(&attribute(place, name)).trim_matches(['\0', ' ', '\n', '\t']).to_owned()
}

fn attribute(place: &Path, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read =
        File::open(place.join(name)).and_then(|file| file.take(ATTRIBUTE_BYTES_MAX).read_to_end(&mut bytes));
    if read.is_err() {
        bytes.clear();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_choose_names() {
        let is = |pattern: &str, name: &str| matches(pattern.as_bytes(), name.as_bytes());
        for (pattern, name) in
            [("*", "sda"), ("sd*", "sda1"), ("loop70??", "loop7012"), ("*p1", "nvme0n1p1"), ("**a", "a")]
        {
            assert!(is(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("", "sda"), ("sd", "sda"), ("loop70??", "loop701"), ("loop?", "loop12"), ("*p1", "nvme0n1p12")]
        {
            assert!(!is(pattern, name), "{pattern} {name}");
        }
    }
}
