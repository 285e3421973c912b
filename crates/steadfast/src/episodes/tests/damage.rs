//! Every byte of a small log of several segments, changed; segments that are cut short, lost, exchanged or of another log.

use super::super::Lsn;
use super::super::log::{Log, OpenError};
use super::super::simulated::SimulatedDisk;
use super::{append, open, record, settings};

const SEGMENT_BYTES: u64 = 1 << 10;

struct Written {
    disk: SimulatedDisk,
    records: Vec<Vec<u8>>,
    /// How many of them are in groups with something behind.
    told: usize,
    /// The oldest segment.
    name: String,
}

/// A log of several segments, of which one was used before.
fn written(seal: bool) -> Written {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open(&disk, SEGMENT_BYTES).unwrap();
    let mut records = Vec::new();
    let (mut told, mut last) = (0, 0);
    for lsn in 1..=44_u64 {
        records.push(record(lsn, 0));
        append(&mut log, records.last().unwrap()).unwrap();
        if lsn % 3 == 2 {
            told = last;
            last = usize::try_from(log.commit().unwrap().0).unwrap();
        }
        if lsn == 22 {
            log.trim(Lsn(15)).unwrap();
        }
    }
    assert_eq!(last, records.len(), "the last group is committed");
    if seal {
        log.seal().unwrap();
        told = last;
    }
    let first = usize::try_from(log.oldest().0).unwrap() - 1;
    assert!(first > 0 && log.live_bytes() >= 3 * SEGMENT_BYTES, "{log:?}");
    let name = disk.contents().into_keys().next().unwrap();
    Written { disk: disk.fork(), records: records.split_off(first), told: told - first, name }
}

/// Opens a changed log: nothing wrong is served, and what is missing is told or was in the last group. Whether it was told.
fn is_told(disk: &SimulatedDisk, written: &Written, what: &str) -> bool {
    let before = disk.contents();
    match open(disk, SEGMENT_BYTES) {
        Ok((_, read)) => {
            assert!(read.len() >= written.told, "{what}: {} of {} served", read.len(), written.told);
            assert_eq!(read, written.records[..read.len()], "{what}: what is served is unchanged");
            false
        }
        Err(OpenError::Damaged { .. } | OpenError::Version { .. }) => {
            assert_eq!(disk.contents(), before, "{what}: nothing is changed where damage is told");
            true
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

/// Changes every byte of every file; how many changes were told.
fn change_everything(written: &Written, masks: &[u8]) -> usize {
    let mut told = 0;
    for (name, bytes) in written.disk.contents() {
        for offset in 0..bytes.len() {
            for mask in masks {
                let disk = written.disk.fork();
                disk.flip(&name, offset, *mask);
                told += usize::from(is_told(&disk, written, &format!("{name} {offset} {mask:#x}")));
            }
        }
    }
    told
}

#[test]
fn a_changed_byte_is_never_served_and_is_told_before_the_last_group() {
    let written = written(false);
    assert!(written.told < written.records.len(), "the last group has nothing behind it");
    let frames: usize = written.records.iter().map(|record| record.len()).sum();
    assert!(change_everything(&written, &[0x01, 0x80, 0xFF]) > frames, "most changes are told");
}

#[test]
fn every_single_bit_of_a_sealed_log_is_protected() {
    let written = written(true);
    assert_eq!(written.told, written.records.len());
    let masks: Vec<u8> = (0..8).map(|bit| 1 << bit).collect();
    change_everything(&written, &masks);
}

#[test]
fn damage_is_told_with_its_place_and_what_to_do() {
    let written = written(true);
    let disk = written.disk.fork();
    disk.flip(&written.name, 64 + 30, 0x10);
    let error = open(&disk, SEGMENT_BYTES).unwrap_err();
    let OpenError::Damaged { segment, offset, .. } = &error else { panic!("{error}") };
    assert_eq!(format!("{segment:016x}.seg"), written.name);
    assert_eq!(*offset, 64, "the damaged record begins behind the header");
    assert!(error.to_string().contains("keep a copy of the folder"), "{error}");
}

#[test]
fn a_segment_that_is_cut_short_is_damage_wherever_it_is_cut() {
    let written = written(false);
    for (name, bytes) in written.disk.contents() {
        for length in (0..bytes.len()).step_by(13) {
            let disk = written.disk.fork();
            disk.put(&name, bytes[..length].to_vec());
            assert!(is_told(&disk, &written, &format!("{name} {length}")));
        }
    }
}

#[test]
fn a_segment_that_is_missing_or_another_ones_is_damage() {
    let written = written(false);
    let files: Vec<(String, Vec<u8>)> = written.disk.contents().into_iter().collect();
    for (missing, _) in &files[1..files.len() - 1] {
        let disk = SimulatedDisk::new();
        for (name, bytes) in files.iter().filter(|(name, _)| name != missing) {
            disk.put(name, bytes.clone());
        }
        assert!(is_told(&disk, &written, &format!("without {missing}")));
    }
    let disk = written.disk.fork();
    disk.put(&files[0].0, files[1].1.clone());
    assert!(is_told(&disk, &written, "a later segment in the place of an earlier one"));
    let stranger = SimulatedDisk::new();
    let mut other = settings(SEGMENT_BYTES);
    other.salt += 1;
    let (mut log, _) = Log::open(Box::new(stranger.clone()), other).unwrap();
    append(&mut log, b"of another log").unwrap();
    log.commit().unwrap();
    for (place, (name, _)) in files.iter().enumerate() {
        let disk = written.disk.fork();
        disk.put(name, stranger.contents().into_values().next().unwrap());
        assert!(is_told(&disk, &written, &format!("{place}: a segment of another log")));
    }
}

#[test]
fn a_later_format_is_named() {
    let written = written(false);
    let mut bytes = written.disk.contents().remove(&written.name).unwrap();
    bytes[8] = 9;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    written.disk.put(&written.name, bytes);
    let error = open(&written.disk, SEGMENT_BYTES).unwrap_err();
    assert!(matches!(error, OpenError::Version { found: 9, .. }), "{error}");
}

/// A log whose second record, which the power tore, holds what a log with another salt would have at its place.
fn imitated(other_salt: u64) -> Result<(Log, Vec<Vec<u8>>), OpenError> {
    let other = SimulatedDisk::new();
    let mut settings = settings(8 << 10);
    settings.salt += other_salt;
    let (mut log, _) = Log::open(Box::new(other.clone()), settings).unwrap();
    for _ in 0..20 {
        append(&mut log, &[7; 100]).unwrap();
        log.commit().unwrap();
    }
    let image = other.contents().remove("0000000000000001.seg").unwrap();
    let disk = SimulatedDisk::new();
    let (mut log, _) = open(&disk, 8 << 10).unwrap();
    append(&mut log, b"promised").unwrap();
    log.commit().unwrap();
    // Behind the header, the first record with its frame, and the frame of this one.
    let at = 64 + 28 + 20;
    append(&mut log, &image[at..4000]).unwrap();
    log.commit().unwrap();
    let disk = disk.fork();
    disk.flip("0000000000000001.seg", at - 12, 1);
    open(&disk, 8 << 10)
}

#[test]
fn a_record_that_imitates_later_records_is_no_evidence_unless_it_knows_the_salt() {
    assert_eq!(imitated(1).unwrap().1, [b"promised"], "a torn record is cut off, whatever it says");
    assert!(matches!(imitated(0), Err(OpenError::Damaged { .. })), "which is what the salt prevents");
}
