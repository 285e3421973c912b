//! The write-ahead log of one node: one for all of its instances, so that one sync makes the records of all durable.
//!
//! It decides when a record is durable, and that a record is served after a crash only if it is whole. It never tries a
//! failed write or sync again, never waits for zeros in a commit, and never takes back what it called durable.
//! Read next: `segment` (the form), `recovery` (what is read), `workshop` (where segments come from).

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;

use super::Lsn;
use super::disk::Disk;
use super::recovery::{self, Image};
use super::segment::{self, FRAME_BYTES, HEADER_BYTES, Header, Kind, Seed};
use super::workshop::{self, Plan, Workshop};

/// Largest record in bytes.
pub const RECORD_BYTES_MAX: usize = 4 << 20;
/// Smallest and largest segment in bytes.
const SEGMENT_BYTES_RANGE: std::ops::RangeInclusive<u64> = 1 << 10..=1 << 30;
/// Segments that wait to be used, beyond which a freed one is removed.
const WAITING_SEGMENTS_MAX: u64 = 2;
/// Memory that the buffer keeps between commits.
const BUFFER_BYTES_KEPT: usize = 4 << 20;

/// What a log is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of one segment, 1 KiB to 1 GiB: one twice as large is changed half as often, and is read whole at a start.
    /// 16 MiB unless told. Takes effect from the next segment on.
    pub segment_bytes: u64,
    /// A random number for a log that does not exist yet: what a program puts into a record can't pass for one. A log
    /// that exists has its own.
    pub salt: u64,
}

impl Settings {
    /// The usual settings, with a random number.
    pub fn new(salt: u64) -> Settings {
        Settings { segment_bytes: 16 << 20, salt }
    }
}

/// Why a log can't be opened. Nothing that it holds was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system refused; correct the cause and try again.
    #[error("the log of episodes can't be opened: {file} could not be {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        file: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something that was durable is not what it was. Nothing is served.
    #[error(
        "segment {segment:016x} of the log of episodes is damaged at byte {offset} ({what}): keep a copy of the folder, put the segment back from a backup, or move the folder away to start without the episodes that only this node has"
    )]
    Damaged {
        /// The number of the segment, which is the name of its file.
        segment: u64,
        /// Where in it.
        offset: u64,
        /// What does not hold together.
        what: &'static str,
    },
    /// A later version wrote it; start that version.
    #[error(
        "segment {segment:016x} of the log of episodes has format {found}, which this version can't read: start the version that wrote it"
    )]
    Version {
        /// The number of the segment.
        segment: u64,
        /// Its format.
        found: u32,
    },
    /// The settings can't be.
    #[error("a segment of the log of episodes can't have {bytes} bytes: 1 KiB to 1 GiB, a multiple of 4")]
    Settings {
        /// What was asked for.
        bytes: u64,
    },
}

impl OpenError {
    pub(super) fn damaged(segment: u64, offset: u64, what: &'static str) -> OpenError {
        OpenError::Damaged { segment, offset, what }
    }

    pub(super) fn io(doing: &'static str, file: &str) -> impl FnOnce(io::Error) -> OpenError {
        let file = file.to_owned();
        move |source| OpenError::Io { doing, file, source }
    }
}

/// Why a record was not taken or not made durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The disk refused. What was appended since the last commit may or may not be there when the log is opened again,
    /// and until then every call fails with this same error.
    #[error(
        "the log of episodes could not {doing}: {reason}; nothing is stored until the agent is restarted"
    )]
    Failed {
        /// What was tried.
        doing: &'static str,
        /// What kind of failure it was.
        kind: io::ErrorKind,
        /// What the operating system said.
        reason: String,
    },
    /// The record is too large. It was not taken, and the log goes on.
    #[error("a record of {bytes} bytes is too large for the log of episodes, which takes {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest that is taken.
        max: usize,
    },
}

/// A segment in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// The lsn of its first record.
    pub(super) first: u64,
    /// Its length.
    pub(super) bytes: u64,
}

/// A part of the buffer that goes into one segment.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Whether the segment is a new one, whose header is in the buffer too.
    opens: Option<Segment>,
    /// Where in the segment it goes.
    offset: usize,
    /// Where in the buffer it begins.
    start: usize,
}

/// The log of one node.
///
/// 1. [`Log::open`] gives the log and every record in it, in order.
/// 2. [`Log::append`] takes a record into memory and gives its number; append as many as there are, for all instances.
/// 3. [`Log::commit`] makes all of them durable with one write and one sync.
/// 4. [`Log::trim`] frees what an index holds durably, and [`Log::seal`] protects the last group while nothing follows.
///
/// # What a crash and a broken disk can do
///
/// After a loss of power every committed record is there, unchanged, and behind them at most a prefix of what was appended.
/// A changed bit is always noticed, and the record never served. Whether a hole is *damage* or a *torn write* is told by
/// what was written later: each record says how much was durable before it. So damage in anything but the last group is
/// told as [`OpenError::Damaged`]; in the last group it can't be told from a write that the power cut off, and the log ends
/// before it. Whoever commits seldom calls [`Log::seal`]: then the last group has something behind it too.
/// A whole last group that is gone without a trace, because a disk lied about a sync, can't be noticed here:
/// [`super::Index::check`] notices it as far as the index knows more.
///
/// ```
/// use steadfast::episodes::{Folder, Log, Settings};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let settings = Settings { segment_bytes: 1 << 16, salt: 7 };
/// let (mut log, _) = Log::open(Box::new(Folder::open(folder.path())?), settings)?;
/// log.append(|buffer| buffer.extend_from_slice(b"an order was paid"))?;
/// log.append(|buffer| buffer.extend_from_slice(b"it was shipped"))?;
/// let durable = log.commit()?;
/// drop(log);
///
/// let (log, records) = Log::open(Box::new(Folder::open(folder.path())?), settings)?;
/// assert_eq!(records.last().map(|(lsn, _)| lsn), Some(durable));
/// assert_eq!(log.committed(), durable);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Log {
    // Before the disk, whose lock must outlive the thread that it has a second handle in.
    workshop: Workshop,
    disk: Box<dyn Disk>,
    salt: u64,
    record_bytes_max: usize,
    /// The segments in use, oldest first; the last is the one that is written.
    live: VecDeque<Segment>,
    /// The name of the file that is written.
    name: String,
    /// How much of it was written, was written and synced, and was called durable by what it holds.
    written: usize,
    synced: usize,
    sealed: usize,
    /// What was appended and not yet written, with the place where the next record goes.
    buffer: Vec<u8>,
    parts: Vec<Part>,
    tail: Tail,
    /// The number of the next record.
    next: u64,
    committed: u64,
    fault: Option<LogError>,
}

/// Where the next record goes.
#[derive(Clone, Copy, Debug)]
struct Tail {
    /// The segment.
    number: u64,
    seed: Seed,
    offset: usize,
    length: usize,
}

impl Log {
    /// Opens the log in a folder, or begins one, and reads what it holds.
    pub fn open(mut disk: Box<dyn Disk>, settings: Settings) -> Result<(Log, Records), OpenError> {
        let bytes = settings.segment_bytes;
        if !SEGMENT_BYTES_RANGE.contains(&bytes) || !bytes.is_multiple_of(4) {
            return Err(OpenError::Settings { bytes });
        }
        let found = recovery::recover(disk.as_mut(), settings)?;
        let plan = Plan { bytes, salt: found.salt };
        let mut workshop = Workshop::open(disk.twin(), plan, found.highest)
            .map_err(OpenError::io("served by a thread", "the folder"))?;
        let (number, length) = found.live.back().map_or((0, 0), |segment| (segment.number, segment.bytes));
        if found.highest == number {
            workshop.order().map_err(OpenError::io("served by a thread", "the folder"))?;
        }
        let first = found.live.front().map_or(found.next, |segment| segment.first);
        let tail =
            Tail { number, seed: Seed::new(number, found.salt), offset: found.end, length: to_usize(length) };
        let log = Log {
            workshop,
            disk,
            salt: found.salt,
            record_bytes_max: RECORD_BYTES_MAX.min(to_usize(bytes) - HEADER_BYTES - FRAME_BYTES),
            live: found.live,
            name: workshop::name(number),
            written: found.end,
            synced: found.end,
            sealed: 0,
            buffer: Vec::new(),
            parts: Vec::new(),
            tail,
            next: found.next,
            committed: found.next - 1,
            fault: None,
        };
        Ok((log, Records { images: found.images.into_iter(), current: None, offset: 0, next: first }))
    }

    /// Takes a record, which `encode` writes behind what the buffer holds, and gives its number. Nothing is written yet.
    pub fn append(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<Lsn, LogError> {
        self.check()?;
        let start = self.buffer.len();
        self.buffer.resize(start + FRAME_BYTES, 0);
        encode(&mut self.buffer);
        let length = self.buffer.len().checked_sub(start + FRAME_BYTES);
        let length = length.expect("an encoder adds to the buffer and takes nothing from it");
        if length > self.record_bytes_max {
            self.buffer.truncate(start);
            return Err(LogError::TooLarge { bytes: length, max: self.record_bytes_max });
        }
        self.place(start, Kind::Record, length);
        let lsn = Lsn(self.next);
        self.next += 1;
        Ok(lsn)
    }

    /// Makes everything durable that was appended, and says up to which record.
    ///
    /// One write and one sync, however much it is, unless it goes over the end of a segment.
    pub fn commit(&mut self) -> Result<Lsn, LogError> {
        self.flush()?;
        self.sync()?;
        self.committed = self.next - 1;
        Ok(Lsn(self.committed))
    }

    /// Hands everything that was appended to the operating system: a crash of this process alone loses none of it.
    pub fn flush(&mut self) -> Result<(), LogError> {
        self.check()?;
        let polled = self.workshop.poll();
        self.latch("make a segment", polled)?;
        if self.parts.is_empty() {
            return Ok(());
        }
        let (mut buffer, mut parts) = (std::mem::take(&mut self.buffer), std::mem::take(&mut self.parts));
        for (place, part) in parts.iter().enumerate() {
            let end = parts.get(place + 1).map_or(buffer.len(), |follower| follower.start);
            self.write(*part, &buffer[part.start..end])?;
        }
        buffer.clear();
        buffer.shrink_to(BUFFER_BYTES_KEPT);
        parts.clear();
        (self.buffer, self.parts) = (buffer, parts);
        Ok(())
    }

    /// Commits, and writes behind the last group that it is durable: from then on damage to it is told as such.
    ///
    /// Worth its sync when nothing was committed for a while, and before the program ends.
    pub fn seal(&mut self) -> Result<Lsn, LogError> {
        self.commit()?;
        if self.sealed == self.synced {
            return Ok(Lsn(self.committed));
        }
        self.buffer.resize(FRAME_BYTES, 0);
        self.place(0, Kind::Mark, 0);
        self.commit()?;
        self.sealed = self.synced;
        Ok(Lsn(self.committed))
    }

    /// Frees the segments that hold nothing behind `upto`. A record that was not committed is never freed.
    pub fn trim(&mut self, upto: Lsn) -> Result<(), LogError> {
        self.check()?;
        let upto = upto.0.min(self.committed);
        let is_free = |live: &VecDeque<Segment>, committed| {
            // The segment behind it must hold something durable: it is what tells the number of the next record.
            live.get(1).is_some_and(|follower| follower.first <= upto + 1 && follower.first <= committed)
        };
        while is_free(&self.live, self.committed)
            && let Some(freed) = self.live.pop_front()
        {
            let waiting = self.workshop.ordered().saturating_sub(self.tail.number);
            let given = if waiting < WAITING_SEGMENTS_MAX && freed.bytes == self.workshop.segment_bytes() {
                self.workshop.recycle(freed.number)
            } else {
                self.workshop.remove(freed.number)
            };
            self.latch("free a segment", given)?;
        }
        Ok(())
    }

    /// Makes the segments that will be needed, and takes away those that are not, where no thread beside does so.
    pub fn prepare(&mut self) -> Result<(), LogError> {
        self.check()?;
        let done = self.workshop.catch_up(self.disk.as_mut());
        self.latch("make a segment", done)
    }

    /// The last record that is durable.
    pub fn committed(&self) -> Lsn {
        Lsn(self.committed)
    }

    /// The last record that was appended.
    pub fn appended(&self) -> Lsn {
        Lsn(self.next - 1)
    }

    /// The first record that was not trimmed, or the first that will be appended.
    pub fn oldest(&self) -> Lsn {
        Lsn(self.live.front().map_or(1, |segment| segment.first))
    }

    /// Bytes that were appended and not yet written.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes of the segments in use: how much a start has to read.
    pub fn live_bytes(&self) -> u64 {
        self.live.iter().map(|segment| segment.bytes).sum()
    }

    fn check(&self) -> Result<(), LogError> {
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// Keeps the first failure, after which nothing may be believed of the disk.
    fn latch<T>(&mut self, doing: &'static str, outcome: io::Result<T>) -> Result<T, LogError> {
        outcome.map_err(|error| {
            let fault = LogError::Failed { doing, kind: error.kind(), reason: error.to_string() };
            self.fault.get_or_insert(fault).clone()
        })
    }

    /// Gives the frame that begins in the buffer at `start` its padding, its place and its front.
    fn place(&mut self, mut start: usize, kind: Kind, length: usize) {
        let size = segment::framed(length);
        self.buffer.resize(start + size, 0);
        if self.tail.offset + size > self.tail.length {
            self.open_segment(start);
            start += HEADER_BYTES;
        } else if self.parts.is_empty() {
            self.parts.push(Part { opens: None, offset: self.tail.offset, start });
        }
        let written_now = self.live.back().map_or(0, |segment| segment.number);
        let synced = if written_now == self.tail.number { self.synced } else { 0 };
        let frame = &mut self.buffer[start..start + size];
        segment::close(frame, self.tail.seed, self.tail.offset, kind, self.next, synced, length);
        self.tail.offset += size;
    }

    /// Lets what begins in the buffer at `start` go into the next segment.
    fn open_segment(&mut self, start: usize) {
        let number = self.tail.number + 1;
        let bytes = self.workshop.segment_bytes();
        let header = Header { number, first: self.next, salt: self.salt, length: bytes };
        self.buffer.splice(start..start, header.encode());
        self.tail = Tail {
            number,
            seed: Seed::new(number, self.salt),
            offset: HEADER_BYTES,
            length: to_usize(bytes),
        };
        self.parts.push(Part { opens: Some(Segment { number, first: self.next, bytes }), offset: 0, start });
    }

    fn write(&mut self, part: Part, bytes: &[u8]) -> Result<(), LogError> {
        if let Some(segment) = part.opens {
            // That a later segment is in use proves this one durable: recovery relies on it.
            self.sync()?;
            let waited = self.workshop.wait_for(segment.number, self.disk.as_mut());
            self.latch("make a segment", waited)?;
            if self.workshop.ordered() == segment.number {
                let ordered = self.workshop.order();
                self.latch("make a segment", ordered)?;
            }
            self.live.push_back(segment);
            self.name = workshop::name(segment.number);
            (self.written, self.synced, self.sealed) = (0, 0, 0);
        }
        let outcome = self.disk.write_at(&self.name, part.offset as u64, bytes);
        self.latch("write", outcome)?;
        self.written = part.offset + bytes.len();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogError> {
        if self.synced < self.written {
            let outcome = self.disk.sync(&self.name);
            self.latch("make a write durable", outcome)?;
            self.synced = self.written;
        }
        Ok(())
    }
}

/// The records of a log in order, as they were when it was opened. They share the memory of their segment.
#[derive(Debug)]
pub struct Records {
    images: std::vec::IntoIter<Image>,
    current: Option<Image>,
    offset: usize,
    next: u64,
}

impl Iterator for Records {
    type Item = (Lsn, Bytes);

    fn next(&mut self) -> Option<(Lsn, Bytes)> {
        loop {
            if self.current.as_ref().is_none_or(|image| self.offset >= image.end) {
                self.current = Some(self.images.next()?);
                self.offset = HEADER_BYTES;
                continue;
            }
            let image = self.current.as_ref()?;
            let frame = segment::peek(&image.bytes, self.offset)?;
            let start = self.offset + FRAME_BYTES;
            self.offset = frame.end;
            if frame.kind == Kind::Record {
                let lsn = Lsn(self.next);
                self.next += 1;
                return Some((lsn, image.bytes.slice(start..start + frame.length)));
            }
        }
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a segment has at most 1 GiB")
}
