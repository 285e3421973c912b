//! A scripted run that loses its power, or whose disk fails, at every call of the disk, and goes on.

use std::io::ErrorKind;
use std::time::Duration;

use super::super::Lsn;
use super::super::log::LogError;
use super::super::simulated::{Fault, Loss, SimulatedDisk};
use super::{append, open, record};

const SEGMENT_BYTES: u64 = 1 << 10;
const LOSSES: [Loss; 7] = [
    Loss::Everything,
    Loss::Nothing,
    Loss::Torn(1),
    Loss::Torn(2),
    Loss::Torn(3),
    Loss::Torn(4),
    Loss::Torn(5),
];

/// What a run knows of its log: every record by number, what was appended, and what was promised.
#[derive(Clone, Debug, Default)]
struct Known {
    records: Vec<Vec<u8>>,
    committed: u64,
    trimmed: u64,
}

/// Opens the log, and looks whether what it holds fits to what is known. What was lost is forgotten.
fn reopen(disk: &SimulatedDisk, known: &mut Known) -> Option<super::super::Log> {
    let (log, read) = match open(disk, SEGMENT_BYTES) {
        Ok(opened) => opened,
        Err(super::OpenError::Io { .. }) => return None,
        Err(error) => panic!("a crash is no damage: {error}"),
    };
    let oldest = log.oldest().0;
    assert!(oldest <= known.trimmed + 1, "{oldest}: what was not trimmed is there");
    assert!(
        log.committed().0 >= known.committed,
        "{log:?}: what was committed is there, up to {}",
        known.committed
    );
    assert!(log.committed().0 <= known.records.len() as u64, "nothing else is there");
    for (place, bytes) in read.iter().enumerate() {
        assert_eq!(
            *bytes,
            known.records[usize::try_from(oldest).unwrap() - 1 + place],
            "unchanged and in order"
        );
    }
    // From now on what was read is a promise.
    known.committed = log.committed().0;
    known.records.truncate(usize::try_from(known.committed).unwrap());
    Some(log)
}

/// Sixty records in groups of one to five, over several segments, with trims; up to the first failure.
fn run(disk: &SimulatedDisk, known: &mut Known, life: u64) -> Option<LogError> {
    let mut log = reopen(disk, known)?;
    let mut work = || -> Result<(), LogError> {
        for step in 0..60_u64 {
            let bytes = record(known.records.len() as u64 + 1, life);
            let lsn = append(&mut log, &bytes)?;
            known.records.push(bytes);
            assert_eq!(lsn, known.records.len() as u64);
            if step % 7 == 3 {
                log.flush()?;
            }
            if step % 5 == 4 || step % 11 == 0 {
                known.committed = log.commit()?.0.max(known.committed);
            }
            if step % 13 == 12 {
                // What is asked may happen from here on, whatever comes of the call.
                known.trimmed = known.committed.saturating_sub(8).max(known.trimmed);
                log.trim(Lsn(known.trimmed))?;
            }
            if step % 9 == 8 {
                log.prepare()?;
            }
        }
        known.committed = log.seal()?.0;
        Ok(())
    };
    work().err()
}

fn calls_of_a_run() -> u64 {
    let disk = SimulatedDisk::new();
    let mut known = Known::default();
    assert_eq!(run(&disk, &mut known, 0), None);
    let names: Vec<String> = disk.contents().into_keys().collect();
    assert!(
        names.iter().any(|name| name.as_str() > "0000000000000006"),
        "it goes over many segments: {names:?}"
    );
    assert!(!names.contains(&"0000000000000001.seg".to_owned()), "and frees the first: {names:?}");
    disk.calls()
}

#[test]
fn a_crash_at_any_call_loses_nothing_committed_and_the_log_goes_on() {
    let calls = calls_of_a_run();
    assert!(calls > 100, "{calls}");
    for loss in LOSSES {
        for call in 0..calls {
            let disk = SimulatedDisk::new();
            disk.plan(call, Fault::Crash(loss));
            let mut known = Known::default();
            run(&disk, &mut known, 0);
            assert!(disk.is_dead(), "the power was lost at call {call}");
            // The log goes on, is crashed again without any warning, and once more holds what it promised.
            let second = disk.restart();
            assert_eq!(run(&second, &mut known, 1), None, "{loss:?} at call {call}");
            second.crash(loss);
            let mut log = reopen(&second.restart(), &mut known).expect("nothing fails");
            assert_eq!(log.commit().unwrap(), Lsn(known.committed));
        }
    }
}

#[test]
fn a_crash_while_the_log_is_opened_after_a_crash_loses_nothing_either() {
    let calls = calls_of_a_run();
    for first in (0..calls).step_by(7) {
        for loss in [Loss::Nothing, Loss::Torn(first), Loss::Torn(first + 1)] {
            let disk = SimulatedDisk::new();
            disk.plan(first, Fault::Crash(loss));
            let mut known = Known::default();
            run(&disk, &mut known, 0);
            for later in 0..30 {
                let mut disk = disk.fork();
                let mut known = known.clone();
                disk.plan(disk.calls() + later, Fault::Crash(loss));
                run(&disk, &mut known, 1);
                disk = disk.restart();
                assert_eq!(run(&disk, &mut known, 2), None, "{first} {later} {loss:?}");
                disk.crash(loss);
                reopen(&disk.restart(), &mut known).expect("nothing fails");
            }
        }
    }
}

#[test]
fn a_record_that_was_cut_off_never_comes_back_behind_a_new_one_of_the_same_size() {
    for seed in 0..200 {
        let disk = SimulatedDisk::new();
        let (mut log, _) = open(&disk, 8 << 10).unwrap();
        append(&mut log, b"promised").unwrap();
        log.commit().unwrap();
        for group in 0..4 {
            append(&mut log, &[group; 900]).unwrap();
            log.flush().unwrap();
        }
        disk.crash(Loss::Torn(seed));
        let disk = disk.restart();
        let (mut log, read) = open(&disk, 8 << 10).unwrap();
        let kept = read.len();
        append(&mut log, &[9; 900]).unwrap();
        log.commit().unwrap();
        disk.crash(Loss::Nothing);
        let (_, again) = open(&disk.restart(), 8 << 10).unwrap();
        assert_eq!(again.len(), kept + 1, "seed {seed}");
        assert_eq!(again[kept], [9; 900]);
    }
}

#[test]
fn what_a_torn_first_write_left_in_the_next_segment_never_comes_back() {
    for seed in 0..200 {
        let disk = SimulatedDisk::new();
        let (mut log, _) = open(&disk, 4 << 10).unwrap();
        for _ in 0..4 {
            append(&mut log, &[1; 900]).unwrap();
        }
        log.commit().unwrap();
        // The fifth opens a segment; the power may take its header and leave the records behind it.
        for group in 5..8 {
            append(&mut log, &[group; 900]).unwrap();
            log.flush().unwrap();
        }
        disk.crash(Loss::Torn(seed));
        let disk = disk.restart();
        let (mut log, read) = open(&disk, 4 << 10).unwrap();
        let kept = read.len();
        append(&mut log, &[9; 900]).unwrap();
        log.commit().unwrap();
        disk.crash(Loss::Nothing);
        let (_, again) = open(&disk.restart(), 4 << 10).unwrap();
        assert_eq!(again.len(), kept + 1, "seed {seed}");
        assert_eq!(again[kept], [9; 900]);
    }
}

#[test]
fn the_last_durable_records_are_not_freed_for_a_segment_that_is_not_durable() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open(&disk, SEGMENT_BYTES).unwrap();
    append(&mut log, &[1; 400]).unwrap();
    append(&mut log, &[2; 400]).unwrap();
    log.commit().unwrap();
    append(&mut log, &[3; 400]).unwrap();
    log.flush().unwrap();
    log.trim(Lsn(u64::MAX)).unwrap();
    log.prepare().unwrap();
    disk.crash(Loss::Everything);
    let (mut log, _) = open(&disk.restart(), SEGMENT_BYTES).unwrap();
    assert_eq!(append(&mut log, b"next"), Ok(3), "no number is given twice");
}

#[test]
fn a_failure_at_any_call_is_told_for_ever_and_loses_nothing_committed() {
    let calls = calls_of_a_run();
    for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
        for call in 0..calls {
            let disk = SimulatedDisk::new();
            disk.plan(call, Fault::Fail(kind));
            let mut known = Known::default();
            let first = run_poisoned(&disk, &mut known);
            if let Some(LogError::Failed { kind: told, .. }) = first {
                assert_eq!(told, kind);
            }
            assert_eq!(run(&disk, &mut known, 1), None, "after {kind:?} at call {call}");
            disk.crash(Loss::Everything);
            reopen(&disk.restart(), &mut known).expect("nothing fails");
        }
    }
}

/// A run that, after the first failure, tries everything once more.
fn run_poisoned(disk: &SimulatedDisk, known: &mut Known) -> Option<LogError> {
    let mut log = reopen(disk, known)?;
    let mut failure = None;
    for step in 0..60_u64 {
        let bytes = record(known.records.len() as u64 + 1, 0);
        let outcome = append(&mut log, &bytes).and_then(|_| {
            known.records.push(bytes);
            if step % 4 == 3 { log.commit().map(|lsn| known.committed = lsn.0) } else { Ok(()) }
        });
        let outcome = outcome.and_then(|()| {
            if step % 10 == 9 {
                known.trimmed = known.committed.saturating_sub(5);
                log.trim(Lsn(known.trimmed)).and_then(|()| log.prepare())
            } else {
                Ok(())
            }
        });
        if let Err(error) = outcome {
            failure = Some(error);
            break;
        }
    }
    let error = failure?;
    let before = disk.calls();
    for outcome in [
        append(&mut log, b"more").map(|_| ()),
        log.commit().map(|_| ()),
        log.flush(),
        log.seal().map(|_| ()),
        log.trim(Lsn(1)),
        log.prepare(),
    ] {
        assert_eq!(outcome, Err(error.clone()), "the first failure is the only one that is told");
    }
    assert_eq!(disk.calls(), before, "nothing is tried again");
    Some(error)
}

#[test]
fn what_a_failed_sync_left_in_memory_is_made_durable_before_it_is_served() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open(&disk, SEGMENT_BYTES).unwrap();
    append(&mut log, b"promised").unwrap();
    log.commit().unwrap();
    append(&mut log, b"seen and not durable").unwrap();
    disk.plan(disk.calls() + 1, Fault::Fail(ErrorKind::Other));
    log.commit().unwrap_err();
    drop(log);
    let (_, read) = open(&disk, SEGMENT_BYTES).unwrap();
    assert_eq!(read.len(), 2, "the pages of the operating system still have it");
    disk.crash(Loss::Everything);
    let (_, read) = open(&disk.restart(), SEGMENT_BYTES).unwrap();
    assert_eq!(read.len(), 2, "what was served once is there for ever");
}

#[test]
fn a_stall_changes_nothing_but_the_time() {
    let disk = SimulatedDisk::new();
    for call in 0..40 {
        disk.plan(call, Fault::Stall(Duration::from_millis(250)));
    }
    let mut known = Known::default();
    assert_eq!(run(&disk, &mut known, 0), None);
    assert_eq!(disk.stalled(), Duration::from_secs(10));
    reopen(&disk, &mut known).expect("nothing fails");
}
