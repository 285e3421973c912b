//! The durable half of a node's table of names: a file that is replaced whole, and a journal of the steps since.
//!
//! A step counts once the journal holds it durably, and nothing outside (no link) may change before that. What a
//! crash leaves is therefore the table after some first part of the steps, from which planning goes on. After a
//! failed write or sync nothing is believed any more until the files are opened again. Read next: `links`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use steadfast_proto::devices::DeviceId;
use steadfast_proto::devices::table::{ENTRIES_MAX, Entry, Step, Table};

use super::DevicesError;
use crate::envelope::{Format, HEADER_BYTES, write_atomic};

/// Bytes of one entry at most: an id, three names, and their lengths.
const ENTRY_BYTES_MAX: usize = 512;
const TABLE: Format = Format { magic: *b"SFdt", version: 1, version_min: 1, body_bytes_max: 2 << 20 };
const _: () = assert!(TABLE.body_bytes_max as usize >= ENTRY_BYTES_MAX * ENTRIES_MAX, "a full table fits");
const RECORD: Format = Format { magic: *b"SFdj", version: 1, version_min: 1, body_bytes_max: 1024 };
/// Journal bytes after which the table is written anew.
const JOURNAL_BYTES_MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct TableRecord {
    /// The last step that the entries contain.
    sequence: u64,
    entries: BTreeMap<DeviceId, Entry>,
}

#[derive(Serialize, Deserialize)]
struct JournalRecord {
    sequence: u64,
    step: Step,
}

/// The table and its files.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    journal: File,
    journal_bytes: u64,
    sequence: u64,
    table: Table,
    is_failed: bool,
}

impl Store {
    /// Reads the table and the journal behind it; makes both where there are none.
    ///
    /// # Errors
    /// The folder can't be used, or the table is damaged.
    pub(super) fn open(directory: &Path) -> Result<Store, DevicesError> {
        std::fs::create_dir_all(directory).map_err(DevicesError::io("make", directory))?;
        let path = directory.join("devices.table");
        let (sequence, table) = match std::fs::read(&path) {
            Ok(bytes) => decode_table(&bytes).ok_or_else(|| DevicesError::Corrupt { path: path.clone() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (0, Table::default()),
            Err(error) => return Err(DevicesError::io("read", &path)(error)),
        };
        let path = directory.join("devices.journal");
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let journal = options.open(&path).map_err(DevicesError::io("open", &path))?;
        let bytes = std::fs::read(&path).map_err(DevicesError::io("read", &path))?;
        let directory = directory.to_path_buf();
        let mut store = Store { directory, journal, journal_bytes: 0, sequence, table, is_failed: false };
        let kept = store.replay(&bytes);
        store.journal_bytes = bytes.len().try_into().unwrap_or(u64::MAX);
        if kept < bytes.len() {
            tracing::warn!(
                kept,
                found = bytes.len(),
                "the end of the journal of device names was not written whole"
            );
        }
        if !bytes.is_empty() {
            store.compact()?;
        }
        Ok(store)
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Makes steps durable, then part of the table: all of them, or after an error none that is seen.
    ///
    /// # Errors
    /// A step is not allowed, or the journal can't be written; in the second case the store is of no more use.
    pub(super) fn commit(&mut self, steps: &[Step]) -> Result<(), DevicesError> {
        if self.is_failed {
            return Err(DevicesError::Failed);
        }
        if steps.is_empty() {
            return Ok(());
        }
        let mut table = self.table.clone();
        let (mut bytes, mut sequence) = (Vec::new(), self.sequence);
        for step in steps {
            table.take(step)?;
            sequence = sequence.saturating_add(1);
            let record = JournalRecord { sequence, step: step.clone() };
            let body = postcard::to_allocvec(&record).expect("steps have no field that can't be written");
            bytes.extend(RECORD.wrap(&body));
        }
        self.is_failed = true;
        let path = self.directory.join("devices.journal");
        effect()
            .and_then(|()| self.journal.write_all(&bytes))
            .map_err(DevicesError::io("append to", &path))?;
        effect().and_then(|()| self.journal.sync_data()).map_err(DevicesError::io("flush", &path))?;
        self.is_failed = false;
        self.journal_bytes = self.journal_bytes.saturating_add(bytes.len().try_into().unwrap_or(u64::MAX));
        self.table = table;
        self.sequence = sequence;
        if self.journal_bytes > JOURNAL_BYTES_MAX {
            self.compact()?;
        }
        Ok(())
    }

    /// Takes the steps that the table does not contain; gives how much of the journal is sound.
    fn replay(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while let Some((record, tail)) = next_record(rest) {
            if record.sequence > self.sequence {
                // A gap, or a step that does not follow: what comes after belongs to another table.
                if record.sequence != self.sequence + 1 || self.table.take(&record.step).is_err() {
                    break;
                }
                self.sequence = record.sequence;
            }
            rest = tail;
        }
        bytes.len() - rest.len()
    }

    /// Writes the table whole, then empties the journal; in between the journal's steps are known by their numbers.
    fn compact(&mut self) -> Result<(), DevicesError> {
        self.is_failed = true;
        let record = TableRecord { sequence: self.sequence, entries: self.table.entries().clone() };
        let body = postcard::to_allocvec(&record).expect("entries have no field that can't be written");
        let path = self.directory.join("devices.table");
        effect()
            .and_then(|()| write_atomic(&path, 0o600, &TABLE.wrap(&body)))
            .map_err(DevicesError::io("write", &path))?;
        let path = self.directory.join("devices.journal");
        effect().and_then(|()| self.journal.set_len(0)).map_err(DevicesError::io("empty", &path))?;
        effect().and_then(|()| self.journal.sync_all()).map_err(DevicesError::io("flush", &path))?;
        self.journal_bytes = 0;
        self.is_failed = false;
        Ok(())
    }
}

fn decode_table(bytes: &[u8]) -> Option<(u64, Table)> {
    let (_, body) = TABLE.unwrap(bytes).ok()?;
    let (record, rest): (TableRecord, _) = postcard::take_from_bytes(body).ok()?;
    let table = Table::new(record.entries).ok()?;
    rest.is_empty().then_some((record.sequence, table))
}

fn next_record(bytes: &[u8]) -> Option<(JournalRecord, &[u8])> {
    let length: [u8; 4] = *bytes.get(8..)?.first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
    let (record, rest) = bytes.split_at_checked(HEADER_BYTES.checked_add(length)?)?;
    let (_, body) = RECORD.unwrap(record).ok()?;
    Some((postcard::from_bytes(body).ok()?, rest))
}

/// The entry for fuzzing: a table's file, or a journal behind an empty table; gives how many devices have names.
#[doc(hidden)]
#[must_use]
pub fn read_state(bytes: &[u8]) -> usize {
    if let Some((_, table)) = decode_table(bytes) {
        return table.entries().len();
    }
    let (mut rest, mut table) = (bytes, Table::default());
    while let Some((record, tail)) = next_record(rest) {
        let _ = table.take(&record.step);
        rest = tail;
    }
    table.entries().len()
}

/// Stands before each single change of a file or link, so that tests can end the world between any two.
pub(super) fn effect() -> io::Result<()> {
    #[cfg(test)]
    faults::spend()?;
    Ok(())
}

#[cfg(test)]
pub(super) mod faults {
    //! Lets the changes of files and links fail after a number of them, as a crash would.

    use std::cell::Cell;
    use std::io;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Lets `left` more changes happen; `None` lets all.
    pub(in super::super) fn allow(left: Option<u32>) {
        LEFT.set(left);
    }

    pub(in super::super) fn spend() -> io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the world ended here")),
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steadfast_proto::devices::table::LocalName;

    fn id(number: u32) -> DeviceId {
        format!("label:{number}").parse().unwrap()
    }

    fn steps() -> Vec<Step> {
        let name = |text: &str| LocalName::Named(text.parse().unwrap());
        let take =
            |number, text: &str| Step::Take { id: id(number), name: text.parse().unwrap(), is_local: true };
        let (aside, a, b) = (LocalName::Temporary(0), name("a"), name("b"));
        vec![
            take(1, "a"),
            take(2, "b"),
            Step::Move { id: id(1), from: a.clone(), to: aside.clone() },
            Step::Move { id: id(2), from: b.clone(), to: a },
            Step::Move { id: id(1), from: aside, to: b },
            Step::Alias { id: id(1), name: "c".parse().unwrap() },
        ]
    }

    fn prefixes() -> Vec<Table> {
        let mut table = Table::default();
        let mut all = vec![table.clone()];
        for step in steps() {
            table.take(&step).unwrap();
            all.push(table.clone());
        }
        all
    }

    #[test]
    fn a_journal_cut_anywhere_gives_the_table_after_some_first_steps() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.commit(&steps()).unwrap();
        drop(store);
        let journal = std::fs::read(folder.path().join("devices.journal")).unwrap();
        assert!(!journal.is_empty());
        let mut last = 0;
        for end in 0..=journal.len() {
            let other = tempfile::tempdir().unwrap();
            std::fs::write(other.path().join("devices.journal"), &journal[..end]).unwrap();
            for _ in 0..2 {
                let store = Store::open(other.path()).unwrap();
                let found = prefixes().iter().position(|table| table == store.table()).unwrap();
                assert!(found >= last);
                last = found;
            }
        }
        assert_eq!(last, steps().len());
    }

    #[test]
    fn a_crash_at_any_change_of_a_file_loses_no_more_than_the_steps_under_way() {
        for left in 0..12 {
            let folder = tempfile::tempdir().unwrap();
            let mut done = 0;
            faults::allow(Some(left));
            if let Ok(mut store) = Store::open(folder.path()) {
                for step in steps() {
                    if store.commit(&[step]).is_err() {
                        assert!(matches!(store.commit(&steps()), Err(DevicesError::Failed)));
                        break;
                    }
                    done += 1;
                }
            }
            // The machine comes back, crashing once more while it reads its files.
            for again in 0..4 {
                faults::allow(Some(again));
                let _ = Store::open(folder.path());
            }
            faults::allow(None);
            let store = Store::open(folder.path()).unwrap();
            let found = prefixes().iter().position(|table| table == store.table()).unwrap();
            assert!(found == done || found == done + 1, "{found} of {done}");
        }
    }

    #[test]
    fn a_damaged_table_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.commit(&steps()).unwrap();
        store.compact().unwrap();
        let path = folder.path().join("devices.table");
        let good = std::fs::read(&path).unwrap();
        assert_eq!(read_state(&good), 2);
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            if place == 6 || place == 7 {
                continue; // reserved
            }
            std::fs::write(&path, &bad).unwrap();
            let error = Store::open(folder.path()).unwrap_err();
            assert!(error.to_string().contains("devices.table"), "{error}");
        }
    }
}
