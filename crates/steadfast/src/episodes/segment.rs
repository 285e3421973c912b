//! The form of one segment of the log: a header, then frames without gaps, each with a record or a mark.
//!
//! ```text
//! header, 64 bytes:  magic 8, version 4, 0 4, number 8, first lsn 8 (0: unused), salt 8, length 8, 0 12, crc32c 4
//! frame, 20 bytes:   crc32c 4, length 4 (top bit: a mark), lsn 8, synced 4; then the record, and zeros to a multiple of 4
//! ```
//!
//! All numbers are little-endian. A frame's checksum begins with the segment's number, the log's salt and the frame's
//! offset: a frame of an earlier use of the file, at another place, or inside of a record, is never taken for one.
//! `synced` says how many bytes of the segment were durable before the frame was written. It is the evidence that tells
//! damage from a torn write: a hole *before* a later frame's `synced` was durable once, so it is damage.

/// Bytes of a segment's header.
pub(super) const HEADER_BYTES: usize = 64;
/// Bytes of a frame in front of its record.
pub(super) const FRAME_BYTES: usize = 20;
/// Frames begin at multiples of this.
const ALIGNMENT: usize = 4;
const MAGIC: [u8; 8] = *b"SFEPILOG";
const VERSION: u32 = 1;
/// Set in a frame's length: the frame is a mark, and `lsn` the next record's.
const MARK: u32 = 1 << 31;

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The number under which it was used last; a file that waits to be used again has a higher one in its name.
    pub(super) number: u64,
    /// The lsn of its first record, or 0 while it has none.
    pub(super) first: u64,
    /// The log's salt.
    pub(super) salt: u64,
    /// Bytes of the whole file.
    pub(super) length: u64,
}

/// Why a header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// Its checksum, its magic or its size is wrong.
    Damaged,
    /// It was written by another version of the format.
    Version(u32),
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        for (place, value) in [(16, self.number), (24, self.first), (32, self.salt), (40, self.length)] {
            bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Header, HeaderFault> {
        let bytes = bytes.get(..HEADER_BYTES).ok_or(HeaderFault::Damaged)?;
        if bytes[..8] != MAGIC || u32_at(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
            return Err(HeaderFault::Damaged);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(HeaderFault::Version(version));
        }
        let [number, first, salt, length] = [16, 24, 32, 40].map(|place| u64_at(bytes, place));
        // Nobody counts that far; a header that says so would make every sum behind it overflow.
        if number.max(first) > u64::MAX / 2 {
            return Err(HeaderFault::Damaged);
        }
        Ok(Header { number, first, salt, length })
    }
}

/// The beginning of the checksums of one segment's frames.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed(u32);

impl Seed {
    pub(super) fn new(number: u64, salt: u64) -> Seed {
        Seed(crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &number.to_le_bytes()))
    }

    fn checksum(self, offset: usize, covered: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0 ^ narrow(offset), covered)
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It carries a record, which has its lsn.
    Record,
    /// It carries nothing but what it says of the bytes before it.
    Mark,
}

/// A frame that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) lsn: u64,
    pub(super) synced: usize,
    /// Bytes of its record.
    pub(super) length: usize,
    /// Where the next frame begins.
    pub(super) end: usize,
}

/// How many bytes a record takes with its frame.
pub(super) fn framed(length: usize) -> usize {
    FRAME_BYTES + length.next_multiple_of(ALIGNMENT)
}

/// Fills in the front of a frame whose record and padding stand already; `offset` is where it goes in the segment.
pub(super) fn close(
    frame: &mut [u8],
    seed: Seed,
    offset: usize,
    kind: Kind,
    lsn: u64,
    synced: usize,
    length: usize,
) {
    let mark = if kind == Kind::Mark { MARK } else { 0 };
    frame[4..8].copy_from_slice(&(narrow(length) | mark).to_le_bytes());
    frame[8..16].copy_from_slice(&lsn.to_le_bytes());
    frame[16..20].copy_from_slice(&narrow(synced).to_le_bytes());
    let crc = seed.checksum(offset, &frame[4..]);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
}

/// The frame at an offset, whose checksum was not looked at.
pub(super) fn peek(segment: &[u8], offset: usize) -> Option<Frame> {
    let front = segment.get(offset..)?.get(..FRAME_BYTES)?;
    let word = u32_at(front, 4);
    let length = (word & !MARK) as usize;
    let end = offset.checked_add(framed(length))?;
    if end > segment.len() {
        return None;
    }
    let kind = if word & MARK == 0 { Kind::Record } else { Kind::Mark };
    Some(Frame { kind, lsn: u64_at(front, 8), synced: u32_at(front, 16) as usize, length, end })
}

/// The frame at an offset, if it is one.
pub(super) fn frame(segment: &[u8], offset: usize, seed: Seed) -> Option<Frame> {
    let found = peek(segment, offset)?;
    let covered = segment.get(offset + 4..found.end)?;
    (u32_at(segment.get(offset..offset + 4)?, 0) == seed.checksum(offset, covered)).then_some(found)
}

/// How far a segment can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Walked {
    /// Where the first byte is that belongs to no frame.
    pub(super) end: usize,
    /// The lsn of the record that would follow.
    pub(super) next: u64,
    /// How many bytes were durable for certain.
    pub(super) synced: usize,
}

/// Reads the frames of a segment in order, up to the first that is not valid or the record `until`.
pub(super) fn walk(segment: &[u8], seed: Seed, first: u64, until: Option<u64>) -> Walked {
    let mut walked = Walked { end: HEADER_BYTES, next: first, synced: 0 };
    while until != Some(walked.next) {
        let Some(found) = frame(segment, walked.end, seed).filter(|found| found.lsn == walked.next) else {
            break;
        };
        walked.end = found.end;
        walked.synced = walked.synced.max(found.synced);
        walked.next += u64::from(found.kind == Kind::Record);
    }
    walked
}

/// What lies behind the place where reading stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    /// Where the last valid frame ends.
    pub(super) end: usize,
    /// Whether one of them says that the place was durable: then it is damaged, and not torn.
    pub(super) was_durable: bool,
}

/// Looks for frames from an offset on. Their records may follow `next`, because records in between can be lost.
pub(super) fn behind(segment: &[u8], seed: Seed, offset: usize, next: u64) -> Option<Behind> {
    let mut found: Option<Behind> = None;
    let mut place = offset;
    // No more records than fit into a segment can be lost: everything else is chance, and no checksum is spent on it.
    let possible = next..=next.saturating_add((segment.len() / FRAME_BYTES) as u64);
    while place + FRAME_BYTES <= segment.len() {
        let Some(valid) =
            possible.contains(&u64_at(segment, place + 8)).then(|| frame(segment, place, seed)).flatten()
        else {
            place += ALIGNMENT;
            continue;
        };
        let was_durable = valid.synced > offset || found.is_some_and(|found| found.was_durable);
        found = Some(Behind { end: valid.end, was_durable });
        place = valid.end;
    }
    found
}

fn narrow(value: usize) -> u32 {
    u32::try_from(value).expect("a segment has at most 1 GiB, and its settings were checked")
}

fn u32_at(bytes: &[u8], place: usize) -> u32 {
    u32::from_le_bytes(bytes[place..place + 4].try_into().expect("four bytes are four bytes"))
}

fn u64_at(bytes: &[u8], place: usize) -> u64 {
    u64::from_le_bytes(bytes[place..place + 8].try_into().expect("eight bytes are eight bytes"))
}
