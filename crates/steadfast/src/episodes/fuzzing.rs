//! The log's decoder as `fuzz/` reaches it: the bytes of a segment in, and what is read of them.
//!
//! It decides nothing and is no part of the interface: only the fuzz targets call it. Read next: `segment`.

use super::log::{Log, OpenError, Settings};
use super::segment::{self, HEADER_BYTES, Header, Seed};
use super::simulated::SimulatedDisk;
use super::workshop;

/// The salt of the log that these functions make and read.
const SALT: u64 = 0x5EED;
/// Bytes of its segments.
pub const SEGMENT_BYTES: usize = 4 << 10;

/// Opens a log whose only segment has these bytes: its records, unless it is refused.
pub fn open(segment: &[u8]) -> Option<Vec<Vec<u8>>> {
    let disk = SimulatedDisk::new();
    disk.put(&workshop::name(1), segment.to_vec());
    records(&disk)
}

/// Writes records into a new log, a commit behind each `true`; the bytes of its first segment, and how many records of
/// it a later one says to be durable.
pub fn write(records: &[(Vec<u8>, bool)]) -> Option<(Vec<u8>, u64)> {
    let disk = SimulatedDisk::new();
    let (mut log, _) = Log::open(Box::new(disk.clone()), settings()).ok()?;
    let (mut committed, mut told) = (0, 0);
    for (record, commits) in records {
        let lsn = log.append(|buffer| buffer.extend_from_slice(record)).ok()?;
        told = committed.min(lsn.0 - 1);
        if *commits {
            committed = log.commit().ok()?.0;
        }
    }
    log.flush().ok()?;
    let mut files = disk.contents();
    let is_one_segment = log.live_bytes() == SEGMENT_BYTES as u64;
    let bytes = files.remove(&workshop::name(1)).filter(|_| is_one_segment)?;
    Some((bytes, told))
}

/// A header with a true checksum in front of these bytes, read as a segment: where the last frame ends.
pub fn frames(number: u64, first: u64, bytes: &[u8]) -> usize {
    let header = Header { number, first, salt: SALT, length: (HEADER_BYTES + bytes.len()) as u64 };
    let whole = [&header.encode()[..], bytes].concat();
    let Ok(header) = Header::decode(&whole) else { return HEADER_BYTES };
    let seed = Seed::new(header.number, header.salt);
    let walked = segment::walk(&whole, seed, header.first, None);
    if let Some(behind) = segment::behind(&whole, seed, walked.end, walked.next) {
        assert!(behind.end > walked.end && behind.end <= whole.len());
    }
    walked.end
}

fn records(disk: &SimulatedDisk) -> Option<Vec<Vec<u8>>> {
    match Log::open(Box::new(disk.restart()), settings()) {
        Ok((_, records)) => Some(records.map(|(_, bytes)| bytes.to_vec()).collect()),
        Err(OpenError::Damaged { .. } | OpenError::Version { .. }) => None,
        Err(error @ (OpenError::Io { .. } | OpenError::Settings { .. })) => panic!("{error}"),
    }
}

fn settings() -> Settings {
    Settings { segment_bytes: SEGMENT_BYTES as u64, salt: SALT }
}
