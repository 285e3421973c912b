//! What is read when a log is opened: which segments there are, how far they hold together, and what is cut off.
//!
//! It tells a torn tail from damage. A segment is written only once the one before it is durable, so a hole in any but the
//! last is damage; in the last, a hole that a later frame calls durable is. A hole in what was written last, which nothing
//! later speaks of, is a torn tail: it is cut off, and what lies behind is overwritten so that it never comes back. It
//! never serves a byte behind a hole, and changes nothing where it finds damage.

use std::collections::VecDeque;

use bytes::Bytes;

use super::disk::Disk;
use super::log::{OpenError, Segment, Settings};
use super::segment::{self, HEADER_BYTES, Header, HeaderFault, Seed, Walked};
use super::workshop;

/// Zeros that are written at once.
const ZEROS_BYTES: usize = 64 << 10;

/// What a log is when it is opened.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) salt: u64,
    /// The segments in use, oldest first.
    pub(super) live: VecDeque<Segment>,
    /// The highest number of a segment that is there, in use or not.
    pub(super) highest: u64,
    /// Where the last segment in use ends, in bytes.
    pub(super) end: usize,
    /// The lsn of the next record.
    pub(super) next: u64,
    pub(super) images: Vec<Image>,
}

/// A segment that was read and found whole up to its end.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) bytes: Bytes,
    pub(super) end: usize,
}

/// A segment with what its header says.
struct Listed {
    number: u64,
    header: Header,
}

impl Listed {
    fn is_used(&self) -> bool {
        self.header.number == self.number && self.header.first != 0
    }
}

/// Reads a log, and makes its end durable.
pub(super) fn recover(disk: &mut dyn Disk, settings: Settings) -> Result<Found, OpenError> {
    let (listed, unfinished) = list(disk)?;
    let used = listed.iter().take_while(|segment| segment.is_used()).count();
    let (used, unused) = listed.split_at(used);
    check_order(used, unused)?;
    let salt = listed.first().map_or(settings.salt, |segment| segment.header.salt);
    let mut found = Found { salt, live: VecDeque::new(), highest: 0, end: 0, next: 1, images: Vec::new() };
    let mut tail = None;
    for (place, segment) in used.iter().enumerate() {
        let follower = used.get(place + 1).map(|follower| follower.header.first);
        let bytes = read(disk, segment)?;
        let walked = check(segment, &bytes, salt, follower)?;
        found.live.push_back(Segment {
            number: segment.number,
            first: segment.header.first,
            bytes: segment.header.length,
        });
        (found.end, found.next) = (walked.end, walked.next);
        tail = Some((segment.number, walked));
        found.images.push(Image { bytes: bytes.into(), end: walked.end });
    }
    for name in unfinished {
        disk.remove(&name).map_err(OpenError::io("removed", &name))?;
    }
    if let (Some((number, walked)), Some(image)) = (tail, found.images.last()) {
        make_durable(disk, number, walked, image, salt)?;
    }
    found.highest = used.last().map_or(0, |segment| segment.number);
    found.highest = keep_unused(disk, unused, &found, settings)?;
    Ok(found)
}

/// The segments by number, and the names of those that were not finished.
fn list(disk: &mut dyn Disk) -> Result<(Vec<Listed>, Vec<String>), OpenError> {
    let names = disk.list().map_err(OpenError::io("listed", "the folder"))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| workshop::number(name)).collect();
    numbers.sort_unstable();
    let mut listed = Vec::new();
    for (place, number) in numbers.iter().copied().enumerate() {
        if place > 0 && numbers[place - 1] + 1 != number {
            return Err(OpenError::damaged(number - 1, 0, "the segment is missing"));
        }
        listed.push(Listed { number, header: header(disk, number)? });
    }
    let unfinished = names.into_iter().filter(|name| workshop::is_unfinished(name)).collect();
    Ok((listed, unfinished))
}

fn header(disk: &mut dyn Disk, number: u64) -> Result<Header, OpenError> {
    let name = workshop::name(number);
    let length = disk.length(&name).map_err(OpenError::io("measured", &name))?;
    let mut bytes = [0; HEADER_BYTES];
    if length < HEADER_BYTES as u64 {
        return Err(OpenError::damaged(number, 0, "the segment is cut short"));
    }
    disk.read_at(&name, 0, &mut bytes).map_err(OpenError::io("read", &name))?;
    let header = Header::decode(&bytes).map_err(|fault| match fault {
        HeaderFault::Damaged => OpenError::damaged(number, 0, "the header does not match its checksum"),
        HeaderFault::Version(found) => OpenError::Version { segment: number, found },
    })?;
    if header.length != length {
        return Err(OpenError::damaged(
            number,
            length,
            "the segment has another length than its header says",
        ));
    }
    if header.number > number {
        return Err(OpenError::damaged(number, 0, "the segment is under a number that is not its own"));
    }
    Ok(header)
}

/// The segments in use come first, of one log, without a step back in their lsn.
fn check_order(used: &[Listed], unused: &[Listed]) -> Result<(), OpenError> {
    if let Some(late) = unused.iter().find(|segment| segment.is_used()) {
        return Err(OpenError::damaged(late.number, 0, "a segment before it has lost its header"));
    }
    let all = || used.iter().chain(unused);
    if let Some(stranger) = all().zip(all().skip(1)).find(|(one, other)| one.header.salt != other.header.salt)
    {
        return Err(OpenError::damaged(stranger.1.number, 0, "the segment is of another log"));
    }
    if let Some((_, late)) =
        used.iter().zip(used.iter().skip(1)).find(|(a, b)| a.header.first > b.header.first)
    {
        return Err(OpenError::damaged(late.number, 0, "its records are older than those before it"));
    }
    match unused.first() {
        Some(first) if used.is_empty() && first.number != 1 => Err(OpenError::damaged(
            first.number.saturating_sub(1),
            0,
            "the segments with records are missing",
        )),
        _ => Ok(()),
    }
}

fn read(disk: &mut dyn Disk, segment: &Listed) -> Result<Vec<u8>, OpenError> {
    let name = workshop::name(segment.number);
    let length = usize::try_from(segment.header.length).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    if bytes.try_reserve_exact(length).is_err() {
        return Err(OpenError::damaged(segment.number, 0, "the segment is larger than memory"));
    }
    bytes.resize(length, 0);
    disk.read_at(&name, 0, &mut bytes).map_err(OpenError::io("read", &name))?;
    Ok(bytes)
}

/// How far a segment in use holds together; `follower` is the first lsn of the one behind it.
fn check(segment: &Listed, bytes: &[u8], salt: u64, follower: Option<u64>) -> Result<Walked, OpenError> {
    let seed = Seed::new(segment.number, salt);
    let walked = segment::walk(bytes, seed, segment.header.first, follower);
    let damaged = match follower {
        Some(follower) => walked.next != follower,
        None => {
            segment::behind(bytes, seed, walked.end, walked.next).is_some_and(|behind| behind.was_durable)
        }
    };
    if damaged {
        let what = "a record does not match its checksum, and later ones are there";
        return Err(OpenError::damaged(segment.number, walked.end as u64, what));
    }
    Ok(walked)
}

/// Writes again what may never have reached the disk, and zeros over what was cut off.
///
/// A sync that failed in an earlier life can leave pages that read well and are not on the disk; only a new write and a
/// new sync make certain that what is served from here on stays.
fn make_durable(
    disk: &mut dyn Disk,
    number: u64,
    walked: Walked,
    image: &Image,
    salt: u64,
) -> Result<(), OpenError> {
    let name = workshop::name(number);
    let from = walked.synced.min(walked.end);
    let seed = Seed::new(number, salt);
    if from < walked.end {
        disk.write_at(&name, from as u64, &image.bytes[from..walked.end])
            .map_err(OpenError::io("written", &name))?;
    }
    let cut = segment::behind(&image.bytes, seed, walked.end, walked.next);
    if let Some(behind) = cut {
        erase(disk, &name, walked.end, behind.end)?;
    }
    disk.sync(&name).map_err(OpenError::io("synced", &name))
}

fn erase(disk: &mut dyn Disk, name: &str, from: usize, to: usize) -> Result<(), OpenError> {
    let zeros = vec![0; ZEROS_BYTES.min(to - from)];
    for place in (from..to).step_by(ZEROS_BYTES) {
        let piece = &zeros[..ZEROS_BYTES.min(to - place)];
        disk.write_at(name, place as u64, piece).map_err(OpenError::io("erased", name))?;
    }
    Ok(())
}

/// Keeps the segments that wait, without what a torn first write left in the next; the highest number that remains.
fn keep_unused(
    disk: &mut dyn Disk,
    unused: &[Listed],
    found: &Found,
    settings: Settings,
) -> Result<u64, OpenError> {
    let keep = unused.iter().take_while(|segment| segment.header.length == settings.segment_bytes).count();
    // From the highest down, so that a crash in between leaves no gap.
    for segment in unused[keep..].iter().rev() {
        let name = workshop::name(segment.number);
        disk.remove(&name).map_err(OpenError::io("removed", &name))?;
        disk.sync_folder().map_err(OpenError::io("synced", "the folder"))?;
    }
    let Some(next) = unused[..keep].first() else { return Ok(found.highest) };
    let bytes = read(disk, next)?;
    let seed = Seed::new(next.number, found.salt);
    if let Some(behind) = segment::behind(&bytes, seed, HEADER_BYTES, found.next) {
        let name = workshop::name(next.number);
        erase(disk, &name, HEADER_BYTES, behind.end)?;
        disk.sync(&name).map_err(OpenError::io("synced", &name))?;
    }
    Ok(unused[..keep].last().map_or(found.highest, |segment| segment.number))
}
