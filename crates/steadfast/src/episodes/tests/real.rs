//! The log in a folder of the operating system, with the thread beside it that makes segments.

use super::super::disk::{Disk, Folder};
use super::super::log::{Log, OpenError};
use super::super::{Index, IndexError, Lsn};
use super::settings;

fn open(path: &std::path::Path) -> (Log, Vec<(Lsn, Vec<u8>)>) {
    let (log, records) = Log::open(Box::new(Folder::open(path).unwrap()), settings(64 << 10)).unwrap();
    (log, records.map(|(lsn, bytes)| (lsn, bytes.to_vec())).collect())
}

#[test]
fn a_folder_keeps_what_was_committed_over_many_starts_and_segments() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut expected: Vec<(Lsn, Vec<u8>)> = Vec::new();
    let mut trimmed = Lsn(0);
    for start in 0..6_u8 {
        let (mut log, read) = open(&path);
        assert!(log.oldest().0 <= trimmed.0 + 1);
        let from = usize::try_from(log.oldest().0).unwrap() - 1;
        assert_eq!(read, expected[from..]);
        for _ in 0..400 {
            let bytes = vec![start; 512];
            let lsn = log.append(|buffer| buffer.extend_from_slice(&bytes)).unwrap();
            expected.push((lsn, bytes));
            if lsn.0 % 50 == 0 {
                log.commit().unwrap();
            }
        }
        trimmed = Lsn(log.commit().unwrap().0 - 100);
        log.trim(trimmed).unwrap();
        log.seal().unwrap();
    }
    let files = std::fs::read_dir(&path).unwrap().count();
    assert!(files <= 5, "freed segments are gone or used again: {files} files");
}

#[test]
fn a_folder_is_one_process_alone() {
    let folder = tempfile::tempdir().unwrap();
    let first = Folder::open(folder.path()).unwrap();
    let error = Folder::open(folder.path()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    drop(first);
    Folder::open(folder.path()).unwrap();
}

#[test]
fn a_folder_reads_and_writes_like_the_simulated_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut real: Box<dyn Disk> = Box::new(Folder::open(folder.path()).unwrap());
    let mut simulated: Box<dyn Disk> = Box::new(super::SimulatedDisk::new());
    for disk in [&mut real, &mut simulated] {
        disk.create("a", 3000).unwrap();
        assert_eq!(disk.create("a", 1).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        disk.write_at("a", 2990, b"0123456789").unwrap();
        disk.sync("a").unwrap();
        disk.rename("a", "b").unwrap();
        disk.sync_folder().unwrap();
        let mut bytes = [1; 12];
        disk.read_at("b", 2988, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\x000123456789");
        assert_eq!(
            disk.read_at("b", 2995, &mut bytes).unwrap_err().kind(),
            std::io::ErrorKind::UnexpectedEof
        );
        assert_eq!(disk.length("b").unwrap(), 3000);
        assert_eq!(disk.length("a").unwrap_err().kind(), std::io::ErrorKind::NotFound);
        assert_eq!(disk.list().unwrap(), ["b"]);
        disk.remove("b").unwrap();
        assert!(disk.list().unwrap().is_empty());
    }
}

#[test]
fn a_folder_that_is_a_file_is_refused_and_says_so() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(Folder::open(file.path()).is_err());
}

#[test]
fn a_segment_that_cannot_be_made_beside_closes_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = open(folder.path());
    // Something else has the name that the segment after next will need.
    std::fs::create_dir(folder.path().join("0000000000000003.new")).unwrap();
    let mut outcome = Ok(Lsn(0));
    for _ in 0..600 {
        outcome = log.append(|buffer| buffer.resize(buffer.len() + 512, 1)).and_then(|_| log.commit());
        if outcome.is_err() {
            break;
        }
    }
    let error = outcome.unwrap_err();
    assert!(error.to_string().contains("could not make a segment"), "{error}");
    assert_eq!(log.commit(), Err(error));
    let committed = log.committed();
    drop(log);
    std::fs::remove_dir(folder.path().join("0000000000000003.new")).unwrap();
    let (_, read) = open(folder.path());
    assert!(read.last().map(|(lsn, _)| *lsn) >= Some(committed));
}

#[test]
fn the_index_and_the_log_are_one_store_after_each_start() {
    let folder = tempfile::tempdir().unwrap();
    let (index_path, log_path) = (folder.path().join("index"), folder.path().join("log"));
    let mut sum = 0_u64;
    for start in 0..4_u64 {
        let mut index = Index::open(&index_path).unwrap();
        let (mut log, read) = open(&log_path);
        index.check(log.oldest(), log.committed()).unwrap();
        let mut value = index.load().next().map_or(0, |row| {
            let (key, value) = row.unwrap();
            assert_eq!(key, b"sum");
            u64::from_be_bytes(value.try_into().unwrap())
        });
        for (_, bytes) in read.iter().filter(|(lsn, _)| *lsn > index.upto()) {
            value += u64::from_be_bytes(bytes.as_slice().try_into().unwrap());
        }
        assert_eq!(value, sum, "start {start}");
        for number in 0..200 {
            log.append(|buffer| buffer.extend_from_slice(&u64::to_be_bytes(number))).unwrap();
            sum += number;
            let lsn = log.commit().unwrap();
            if number == 120 {
                index.save(vec![(b"sum".to_vec(), Some(sum.to_be_bytes().to_vec()))], lsn).unwrap();
                log.trim(index.settle().unwrap()).unwrap();
            }
        }
    }
    let index = Index::open(&index_path).unwrap();
    let error = index.check(Lsn(1), Lsn(3)).unwrap_err();
    assert!(matches!(error, IndexError::Apart { newest: Lsn(3), .. }), "{error}");
    index.check(Lsn(index.upto().0 + 2), Lsn(9999)).unwrap_err();
    index.check(Lsn(index.upto().0 + 1), index.upto()).unwrap();
}

#[test]
fn a_file_of_the_folder_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = open(folder.path());
    log.append(|buffer| buffer.push(1)).unwrap();
    log.commit().unwrap();
    drop(log);
    let name = "0000000000000001.seg";
    std::fs::remove_file(folder.path().join(name)).unwrap();
    std::fs::create_dir(folder.path().join(name)).unwrap();
    // A folder is no segment: it is passed over, and the gap is told.
    let disk = Box::new(Folder::open(folder.path()).unwrap());
    match Log::open(disk, settings(64 << 10)) {
        Err(OpenError::Damaged { segment: 1, .. }) => {}
        other => panic!("{other:?}"),
    }
}
