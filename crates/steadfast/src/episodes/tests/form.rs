//! What the log refuses, how it keeps to its segments, and that its form stays what it is.

use super::super::Lsn;
use super::super::log::{Log, LogError, OpenError};
use super::super::simulated::SimulatedDisk;
use super::{append, open, settings};

#[test]
fn the_form_on_disk_is_the_one_that_earlier_versions_wrote() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open(&disk, 1 << 10).unwrap();
    append(&mut log, b"first").unwrap();
    append(&mut log, b"").unwrap();
    log.commit().unwrap();
    append(&mut log, b"third").unwrap();
    log.seal().unwrap();
    let bytes = disk.contents().remove("0000000000000001.seg").unwrap();
    let hex: String = bytes[..160].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, FIXTURE);
    assert!(bytes[160..].iter().all(|byte| *byte == 0));
}

/// Worked out from the description of the form, with another implementation of the checksum.
const FIXTURE: &str = concat!(
    "53464550494c4f47010000000000000001000000000000000100000000000000ce110a00000000000004000000000000",
    "00000000000000000000000069063ed5e232675d050000000100000000000000000000006669727374000000a9ab61ba",
    "00000000020000000000000000000000c54de2cc05000000030000000000000070000000746869726400000080edb425",
    "0000008004000000000000008c000000",
);

#[test]
fn a_log_that_an_earlier_version_wrote_is_read() {
    let mut bytes: Vec<u8> = (0..FIXTURE.len() / 2)
        .map(|place| u8::from_str_radix(&FIXTURE[2 * place..2 * place + 2], 16).unwrap())
        .collect();
    bytes.resize(1 << 10, 0);
    let disk = SimulatedDisk::new();
    disk.put("0000000000000001.seg", bytes);
    let (_, read) = open(&disk, 1 << 10).unwrap();
    assert_eq!(read, [&b"first"[..], b"", b"third"]);
}

#[test]
fn a_record_that_is_too_large_is_refused_and_the_log_goes_on() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open(&disk, 2 << 10).unwrap();
    let max = (2 << 10) - 64 - 20;
    append(&mut log, b"before").unwrap();
    let error = append(&mut log, &vec![1; max + 1]).unwrap_err();
    assert_eq!(error, LogError::TooLarge { bytes: max + 1, max });
    assert_eq!(append(&mut log, &vec![2; max]), Ok(2));
    assert_eq!(append(&mut log, b"after"), Ok(3));
    assert_eq!(log.commit(), Ok(Lsn(3)));
    let (_, read) = open(&disk.restart(), 2 << 10).unwrap();
    assert_eq!(read, [&b"before"[..], &vec![2; max], b"after"]);
}

#[test]
fn records_of_four_mebibytes_fit_into_the_usual_segments() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open(&disk, 16 << 20).unwrap();
    for fill in 0..9 {
        append(&mut log, &vec![fill; 4 << 20]).unwrap();
    }
    assert!(append(&mut log, &vec![0; (4 << 20) + 1]).is_err());
    assert_eq!(log.commit(), Ok(Lsn(9)), "one commit goes over several segments");
    assert!(log.live_bytes() >= 48 << 20);
    let (_, read) = open(&disk.restart(), 16 << 20).unwrap();
    assert!(read.iter().zip(0..).all(|(bytes, fill)| bytes.len() == 4 << 20 && bytes[77] == fill));
    assert_eq!(read.len(), 9);
}

#[test]
fn a_commit_is_one_write_and_one_sync_however_many_records_it_has() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open(&disk, 1 << 20).unwrap();
    append(&mut log, b"the first makes the segment").unwrap();
    log.commit().unwrap();
    for records in [1, 10, 1000] {
        for _ in 0..records {
            append(&mut log, &[3; 100]).unwrap();
        }
        let before = disk.calls();
        log.commit().unwrap();
        assert_eq!(disk.calls() - before, 2, "{records} records");
    }
    let before = disk.calls();
    log.commit().unwrap();
    assert_eq!(disk.calls(), before, "nothing was appended, and nothing is done");
}

#[test]
fn a_segment_that_was_prepared_costs_a_commit_nothing_but_its_writes() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open(&disk, 1 << 10).unwrap();
    for _ in 0..12 {
        append(&mut log, &[4; 400]).unwrap();
        log.prepare().unwrap();
        let before = disk.calls();
        log.commit().unwrap();
        assert!(disk.calls() - before <= 2, "one write, and one sync");
    }
}

#[test]
fn freed_segments_are_used_again_and_their_number_is_bounded() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open(&disk, 1 << 10).unwrap();
    for round in 0..50 {
        for _ in 0..20 {
            append(&mut log, &[5; 90]).unwrap();
        }
        let upto = log.commit().unwrap();
        log.trim(upto).unwrap();
        log.prepare().unwrap();
        assert!(disk.contents().len() <= 4, "round {round}: {:?}", disk.contents().keys());
        assert_eq!(log.live_bytes(), 1 << 10);
    }
    let lsn = log.committed();
    let (log, read) = open(&disk.restart(), 1 << 10).unwrap();
    assert_eq!(log.committed(), lsn);
    assert!(read.len() < 20 && read.iter().all(|bytes| *bytes == [5; 90]));
}

#[test]
fn trimming_frees_no_record_that_was_not_committed_or_not_named() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open(&disk, 1 << 10).unwrap();
    log.trim(Lsn(u64::MAX)).unwrap();
    for _ in 0..30 {
        append(&mut log, &[6; 90]).unwrap();
    }
    log.flush().unwrap();
    log.trim(Lsn(u64::MAX)).unwrap();
    assert_eq!(log.oldest(), Lsn(1), "nothing is committed");
    log.commit().unwrap();
    log.trim(Lsn(11)).unwrap();
    assert!(log.oldest() <= Lsn(12) && log.oldest() > Lsn(1));
    let (_, read) = open(&disk.restart(), 1 << 10).unwrap();
    assert!(read.len() >= 19);
}

#[test]
fn another_segment_size_takes_effect_without_losing_anything() {
    let disk = SimulatedDisk::new();
    let mut written = Vec::new();
    for segment_bytes in [1 << 10, 4 << 10, 2 << 10, 1 << 10] {
        let (mut log, read) = open(&disk, segment_bytes).unwrap();
        assert_eq!(read, written);
        for _ in 0..20 {
            written.push(vec![7; 200]);
            append(&mut log, &[7; 200]).unwrap();
        }
        log.commit().unwrap();
        log.prepare().unwrap();
    }
    assert_eq!(open(&disk, 1 << 20).unwrap().1, written);
}

#[test]
fn sizes_that_can_not_be_are_refused() {
    for bytes in [0, 1 << 9, (1 << 10) + 2, (1 << 30) + 4] {
        let error = Log::open(Box::new(SimulatedDisk::new()), settings(bytes)).unwrap_err();
        assert!(matches!(error, OpenError::Settings { .. }), "{error}");
    }
}

#[test]
fn a_log_without_records_has_none_after_any_number_of_starts() {
    let disk = SimulatedDisk::new();
    for _ in 0..3 {
        let (mut log, read) = open(&disk, 1 << 10).unwrap();
        assert!(read.is_empty());
        assert_eq!((log.commit(), log.seal()), (Ok(Lsn(0)), Ok(Lsn(0))));
        log.prepare().unwrap();
        assert_eq!((log.oldest(), log.appended()), (Lsn(1), Lsn(0)));
    }
}
