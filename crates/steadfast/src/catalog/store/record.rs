//! The form of what is stored: tables, records, checksums.
//!
//! A record is a crc32c and a payload; the checksum also covers the table and the key, so a record that was moved is found as well.
//! This file must never return a record whose checksum does not match. Read next: `writer`.

use std::collections::BTreeMap;
use std::path::Path;

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Memory, Owner, Restored, StoreError, from_redb};
use crate::catalog::Versioned;
use crate::catalog::engine::{Entry, LogId, SnapshotMeta, StoreId, Vote};
use crate::catalog::session::Sessions;
use crate::catalog::table::Table;

pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub(super) const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rows");

pub(super) const HEADER: &str = "header";
pub(super) const VOTE: &str = "vote";
pub(super) const COMMITTED: &str = "committed";
pub(super) const PURGED: &str = "purged";
pub(super) const CHECKPOINT: &str = "checkpoint";
pub(super) const LINEAGE: &str = "lineage";

/// Version of this form; a store of another version is refused.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    cluster: u128,
    node: u64,
    store: StoreId,
}

/// What is stored about a checkpoint beside its rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CheckpointMark {
    pub(crate) meta: SnapshotMeta,
    pub(crate) revision: u64,
    /// How many rows there are, so that a missing one is noticed.
    pub(crate) rows: u64,
    pub(crate) sessions: Sessions,
}

/// A whole checkpoint, as it is sent to another member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Image {
    pub(crate) revision: u64,
    pub(crate) rows: BTreeMap<String, Versioned>,
    pub(crate) sessions: Sessions,
}

impl Image {
    /// The table that this is the image of.
    pub(crate) fn into_table(self) -> Table {
        Table::restore(self.rows, self.revision, self.sessions)
    }
}

/// Everything in a store.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) id: StoreId,
    pub(super) memory: Memory,
    pub(super) restored: Restored,
}

pub(super) fn log_record(index: u64, payload: &[u8]) -> Vec<u8> {
    seal(b'l', &index.to_le_bytes(), payload)
}

pub(super) fn meta_record<T: Serialize>(key: &str, value: &T) -> Vec<u8> {
    seal(b'm', key.as_bytes(), &encode(value))
}

pub(super) fn row_record(key: &str, row: &Versioned) -> Vec<u8> {
    seal(b'r', key.as_bytes(), &encode(row))
}

pub(super) fn header(owner: Owner, store: StoreId) -> Vec<u8> {
    meta_record(HEADER, &Header { format: FORMAT, cluster: owner.cluster, node: owner.node, store })
}

/// Encodes a value of ours.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value)
        .expect("our types have a length before they are written, which is all that postcard asks")
}

/// Reads and verifies the whole store.
pub(super) fn load(path: &Path, database: &Database, owner: Owner) -> Result<Loaded, StoreError> {
    let view = database.begin_read().map_err(|error| from_redb(path, "reading", error.into()))?;
    let Some(header) = read_meta::<Header>(path, &view, HEADER)? else {
        return Err(corrupt(path, "the header is missing"));
    };
    let foreign =
        |found: String, wanted: String| StoreError::Foreign { path: path.to_owned(), found, wanted };
    if header.format != FORMAT {
        return Err(foreign(format!("format {}", header.format), format!("format {FORMAT}")));
    }
    if header.cluster != owner.cluster {
        return Err(foreign(
            format!("cluster {:032x}", header.cluster),
            format!("cluster {:032x}", owner.cluster),
        ));
    }
    if header.node != owner.node {
        return Err(foreign(format!("member {}", header.node), format!("member {}", owner.node)));
    }
    let mut memory = Memory {
        vote: read_meta(path, &view, VOTE)?,
        committed: read_meta(path, &view, COMMITTED)?,
        purged: read_meta(path, &view, PURGED)?,
        lineage: read_meta(path, &view, LINEAGE)?.unwrap_or(0),
        ..Memory::default()
    };
    read_log(path, &view, &mut memory)?;
    let restored = match read_mark(path, &view)? {
        Some(mark) => Restored { meta: mark.meta, table: read_image(path, &view)?.into_table() },
        None => Restored { meta: SnapshotMeta::default(), table: Table::default() },
    };
    check_reach(path, &memory, restored.meta.last_log_id.as_ref())?;
    Ok(Loaded { id: header.store, memory, restored })
}

fn read_log(path: &Path, view: &ReadTransaction, memory: &mut Memory) -> Result<(), StoreError> {
    let failed = |error: redb::Error| from_redb(path, "reading the log", error);
    let table = view.open_table(LOG).map_err(|error| failed(error.into()))?;
    let mut expected = None;
    for item in table.iter().map_err(|error| failed(error.into()))? {
        let (index, bytes) = item.map_err(|error| failed(error.into()))?;
        let index = index.value();
        let what = || format!("log entry {index}");
        if *expected.get_or_insert(index) != index {
            return Err(corrupt(
                path,
                &format!("{} is missing", expected.map_or_else(what, |index| format!("log entry {index}"))),
            ));
        }
        expected = Some(index + 1);
        let payload = unseal(path, b'l', &index.to_le_bytes(), bytes.value(), what)?;
        let entry: Entry = decode(path, payload, what)?;
        if entry.log_id.index() != index {
            return Err(corrupt(path, &format!("{} says that it is entry {}", what(), entry.log_id.index())));
        }
        memory.bytes += payload.len() as u64;
        memory.entries.insert(index, (entry, payload.len() as u64));
    }
    Ok(())
}

/// The log must join what was purged, and what was purged must be in the checkpoint.
fn check_reach(path: &Path, memory: &Memory, checkpoint: Option<&LogId>) -> Result<(), StoreError> {
    if memory.purged.as_ref() > checkpoint {
        return Err(corrupt(path, "the log was purged further than the checkpoint reaches"));
    }
    let next = memory.purged.as_ref().map_or(0, |purged| purged.index() + 1);
    match memory.entries.first_key_value() {
        Some((first, _)) if *first != next => {
            Err(corrupt(path, &format!("log entries {next} to {} are missing", first.saturating_sub(1))))
        }
        Some(_) | None => Ok(()),
    }
}

/// Reads the mark of the last checkpoint.
pub(super) fn read_mark(path: &Path, view: &ReadTransaction) -> Result<Option<CheckpointMark>, StoreError> {
    read_meta(path, view, CHECKPOINT)
}

/// Reads the last checkpoint.
pub(super) fn read_image(path: &Path, view: &ReadTransaction) -> Result<Image, StoreError> {
    let failed = |error: redb::Error| from_redb(path, "reading the rows", error);
    let Some(mark) = read_mark(path, view)? else {
        return Err(corrupt(path, "the checkpoint is missing"));
    };
    let table = view.open_table(ROWS).map_err(|error| failed(error.into()))?;
    let mut rows = BTreeMap::new();
    for item in table.iter().map_err(|error| failed(error.into()))? {
        let (key, bytes) = item.map_err(|error| failed(error.into()))?;
        let key = key.value();
        let what = || format!("row {key:?}");
        let row: Versioned = decode(path, unseal(path, b'r', key.as_bytes(), bytes.value(), what)?, what)?;
        rows.insert(key.to_owned(), row);
    }
    if rows.len() as u64 != mark.rows {
        return Err(corrupt(
            path,
            &format!("the checkpoint has {} rows instead of {}", rows.len(), mark.rows),
        ));
    }
    Ok(Image { revision: mark.revision, rows, sessions: mark.sessions })
}

fn read_meta<T: DeserializeOwned>(
    path: &Path,
    view: &ReadTransaction,
    key: &str,
) -> Result<Option<T>, StoreError> {
    let failed = |error: redb::Error| from_redb(path, "reading", error);
    let table = match view.open_table(META) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    let Some(bytes) = table.get(key).map_err(|error| failed(error.into()))? else { return Ok(None) };
    let what = || format!("record {key:?}");
    decode(path, unseal(path, b'm', key.as_bytes(), bytes.value(), what)?, what).map(Some)
}

fn seal(tag: u8, key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(4 + payload.len());
    record.extend_from_slice(&checksum(tag, key, payload).to_le_bytes());
    record.extend_from_slice(payload);
    record
}

fn unseal<'a>(
    path: &Path,
    tag: u8,
    key: &[u8],
    record: &'a [u8],
    what: impl Fn() -> String,
) -> Result<&'a [u8], StoreError> {
    let Some((sum, payload)) = record.split_first_chunk::<4>() else {
        return Err(corrupt(path, &format!("{} is cut short", what())));
    };
    if u32::from_le_bytes(*sum) != checksum(tag, key, payload) {
        return Err(corrupt(path, &format!("the checksum of {} does not match", what())));
    }
    Ok(payload)
}

fn checksum(tag: u8, key: &[u8], payload: &[u8]) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&[tag]), key);
    crc32c::crc32c_append(sum, payload)
}

fn decode<T: DeserializeOwned>(
    path: &Path,
    payload: &[u8],
    what: impl Fn() -> String,
) -> Result<T, StoreError> {
    postcard::from_bytes(payload)
        .map_err(|error| corrupt(path, &format!("{} can't be decoded: {error}", what())))
}

fn corrupt(path: &Path, what: &str) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), what: what.to_owned() }
}

/// The entry for fuzzing: a payload as one of the kinds of record, sealed, read, and written again where it is accepted.
pub(in crate::catalog) fn rewrite(kind: u8, payload: &[u8]) -> Option<Vec<u8>> {
    fn read<T: Serialize + DeserializeOwned>(payload: &[u8]) -> Option<Vec<u8>> {
        let (path, key) = (Path::new("fuzz"), b"key");
        // As it lies on a damaged disk, then as something else with a good checksum.
        let _ = unseal(path, b'm', key, payload, String::new);
        let record = seal(b'm', key, payload);
        let payload = unseal(path, b'm', key, &record, String::new).expect("its checksum was just made");
        let value: T = decode(path, payload, String::new).ok()?;
        Some(encode(&value))
    }
    match kind {
        0 => read::<Entry>(payload),
        1 => read::<Header>(payload),
        2 => read::<Vote>(payload),
        3 => read::<LogId>(payload),
        4 => read::<CheckpointMark>(payload),
        _ => read::<Versioned>(payload),
    }
}
