//! The index: whole batches with their own number, whatever ends the process in between.

use std::path::Path;

use super::super::{Index, IndexError, Lsn};

fn load(index: &Index) -> Vec<(Vec<u8>, Vec<u8>)> {
    index.load().map(Result::unwrap).collect()
}

fn key(number: u64) -> Vec<u8> {
    format!("instance-{number:05}").into_bytes()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Batch `number` sets every key to its own number, and removes or adds one that tells its parity.
fn save(index: &mut Index, number: u64, keys: u64) {
    let mut changes: Vec<_> =
        (0..keys).map(|each| (key(each), Some([&number.to_be_bytes()[..], &[9; 300]].concat()))).collect();
    changes.push((b"odd".to_vec(), (number % 2 == 1).then(Vec::new)));
    index.save(changes, Lsn(number * 10)).unwrap();
}

fn assert_is_one_batch(index: &Index, keys: u64) -> u64 {
    let rows = load(index);
    let number = index.upto().0 / 10;
    assert_eq!(rows.len() as u64, if number == 0 { 0 } else { keys + number % 2 }, "batch {number}");
    for (key, value) in rows.iter().filter(|(key, _)| key != b"odd") {
        assert_eq!(value[..8], number.to_be_bytes(), "{} is of batch {number}", String::from_utf8_lossy(key));
    }
    number
}

#[test]
fn what_is_loaded_is_what_was_saved_in_the_order_of_the_keys() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = Index::open(folder.path()).unwrap();
    assert_eq!((index.upto(), load(&index).len()), (Lsn(0), 0));
    index.save(vec![(b"b".to_vec(), Some(b"2".to_vec())), (vec![], Some(vec![]))], Lsn(3)).unwrap();
    index.save(vec![(b"a".to_vec(), Some(b"1".to_vec()))], Lsn(4)).unwrap();
    let rows = vec![(vec![], vec![]), (b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())];
    assert_eq!(load(&index), rows);
    assert_eq!((index.settled(), index.settle(), index.settled()), (Lsn(0), Ok(Lsn(4)), Lsn(4)));
    drop(index);
    let mut index = Index::open(folder.path()).unwrap();
    assert_eq!((index.upto(), index.settled(), load(&index)), (Lsn(4), Lsn(4), rows));
    index.save(vec![(b"b".to_vec(), None), (b"nobody".to_vec(), None)], Lsn(4)).unwrap();
    assert_eq!(load(&index).len(), 2);
}

#[test]
fn the_last_change_of_a_key_counts() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = Index::open(folder.path()).unwrap();
    let change = |key: &[u8], value: Option<&[u8]>| (key.to_vec(), value.map(<[u8]>::to_vec));
    let changes = vec![
        change(b"x", Some(b"1")),
        change(b"y", None),
        change(b"x", None),
        change(b"y", Some(b"2")),
        change(b"x", Some(b"3")),
        change(b"z", Some(b"4")),
        change(b"z", None),
    ];
    index.save(changes, Lsn(1)).unwrap();
    let expected = [(b"x".to_vec(), b"3".to_vec()), (b"y".to_vec(), b"2".to_vec())];
    assert_eq!(load(&index), expected);
    drop(index);
    assert_eq!(load(&Index::open(folder.path()).unwrap()), expected);
}

#[test]
fn a_process_that_ends_between_any_two_batches_leaves_the_last_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let (path, snapshot) = (folder.path().join("index"), folder.path().join("snapshot"));
    let mut index = Index::open(&path).unwrap();
    for number in 1..=40 {
        save(&mut index, number, 30);
        // The files as a kill would leave them here, without anything that closing does.
        copy(&path, &snapshot);
        let left = Index::open(&snapshot).unwrap();
        assert_eq!(assert_is_one_batch(&left, 30), number);
        drop(left);
        std::fs::remove_dir_all(&snapshot).unwrap();
    }
}

/// The journal of an index whose process was killed after six batches, and how much of it is used.
struct Journal {
    folder: tempfile::TempDir,
    name: std::ffi::OsString,
    bytes: Vec<u8>,
    used: usize,
}

impl Journal {
    fn of_six_batches() -> Journal {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let mut index = Index::open(&path).unwrap();
        (1..=6).for_each(|number| save(&mut index, number, 3));
        drop(index);
        let mut names = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name());
        let name = names.find(|name| name.to_string_lossy().ends_with(".jnl")).expect("there is a journal");
        let mut bytes = std::fs::read(path.join(&name)).unwrap();
        let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        assert!(used > 5_000, "{used}");
        bytes.truncate(1 << 16);
        Journal { folder, name, bytes, used }
    }

    /// Which batch is loaded if the journal holds these bytes instead.
    fn batch_with(&self, bytes: &[u8]) -> Result<u64, IndexError> {
        let snapshot = self.folder.path().join("snapshot");
        copy(&self.folder.path().join("index"), &snapshot);
        std::fs::write(snapshot.join(&self.name), bytes).unwrap();
        let batch = Index::open(&snapshot).map(|index| assert_is_one_batch(&index, 3));
        std::fs::remove_dir_all(&snapshot).unwrap();
        batch
    }
}

#[test]
fn a_process_that_is_killed_in_the_middle_of_a_batch_leaves_the_one_before() {
    let journal = Journal::of_six_batches();
    let mut seen = std::collections::BTreeSet::new();
    let lengths = (0..journal.used).step_by(61).chain(journal.used - 3..=journal.used);
    for length in lengths {
        // The file was made longer than it is, so zeros follow what was written.
        let mut bytes = journal.bytes.clone();
        bytes[length..].fill(0);
        let batch = journal.batch_with(&bytes).unwrap_or_else(|error| panic!("{length}: {error}"));
        seen.insert(batch);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_journal_with_a_hole_gives_a_whole_batch_or_is_refused() {
    let journal = Journal::of_six_batches();
    let mut refused = 0;
    for place in (0..journal.used).step_by(97) {
        let mut bytes = journal.bytes.clone();
        bytes[place..place + 200].fill(0);
        match journal.batch_with(&bytes) {
            Ok(batch) => assert!(batch < 6, "{place}: batch {batch} has lost something"),
            Err(IndexError::Damaged { .. }) => refused += 1,
            Err(error) => panic!("{place}: {error}"),
        }
    }
    assert!(refused > 0, "a hole inside of one value is refused, and not cut off");
}

#[test]
fn an_index_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _index = Index::open(folder.path()).unwrap();
    let error = Index::open(folder.path()).unwrap_err();
    assert!(matches!(error, IndexError::InUse { .. }), "{error}");
}

#[test]
fn a_key_that_is_too_long_saves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = Index::open(folder.path()).unwrap();
    let changes = vec![(b"a".to_vec(), Some(vec![])), (vec![1; 65_001], Some(vec![]))];
    assert_eq!(index.save(changes, Lsn(1)), Err(IndexError::KeyTooLong { bytes: 65_001 }));
    assert_eq!((index.upto(), load(&index).len()), (Lsn(0), 0));
    index.save(vec![(vec![1; 65_000], Some(vec![]))], Lsn(1)).unwrap();
}

#[test]
#[should_panic(expected = "which is behind 4")]
fn an_index_never_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = Index::open(folder.path()).unwrap();
    index.save(Vec::new(), Lsn(5)).unwrap();
    let _ = index.save(Vec::new(), Lsn(4));
}

#[test]
fn batches_stay_whole_while_tables_are_written_behind_them() {
    let folder = tempfile::tempdir().unwrap();
    let (path, snapshot) = (folder.path().join("index"), folder.path().join("snapshot"));
    let mut index = Index::open(&path).unwrap();
    // More than one table's worth, so that tables are written and the journal begins anew while batches go on.
    for number in 1..=70 {
        let value = vec![u8::try_from(number).unwrap(); 512 << 10];
        let changes = vec![
            (key(number % 3), Some([&number.to_be_bytes()[..], &value].concat())),
            (b"number".to_vec(), Some(number.to_be_bytes().to_vec())),
        ];
        index.save(changes, Lsn(number)).unwrap();
    }
    assert_eq!(index.settle(), Ok(Lsn(70)));
    drop(index);
    copy(&path, &snapshot);
    let left = Index::open(&snapshot).unwrap();
    assert_eq!(left.upto(), Lsn(70));
    let rows = load(&left);
    assert_eq!(rows.len(), 4);
    assert_eq!(rows.last().unwrap().1, 70_u64.to_be_bytes());
    let newest = |place: usize| u64::from_be_bytes(rows[place].1[..8].try_into().unwrap());
    assert_eq!([newest(0), newest(1), newest(2)], [69, 70, 68]);
}
