//! A store that is not grown from a log: planted with a whole table, for one member alone.
//!
//! Restoring a backup and recovering from a survivor end here. The store is made under another name and takes its place by one rename, so a
//! crash leaves what was there before, or the whole new store. What it replaces must never be lost: it is kept beside it under another name.
//! Read next: `rescue`, which decides what is planted.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use openraft::vote::RaftLeaderId;
use redb::backends::FileBackend;

use super::record::{self, CheckpointMark, Image};
use super::{FILE_NAME, Owner, Restored, StoreError};
use super::{from_redb, initialize, io_error, open_database, sync_directory, writer};
use crate::catalog::engine::{Engine, LogId, Member, SnapshotMeta, StoreId, StoredMembership, Vote};
use crate::catalog::table::Table;

/// Largest step of the revision over what the source had: whoever saw a later, lost revision can't mistake a new one for it.
const REVISION_LEAP: u64 = 1 << 32;

/// What a store begins with.
#[derive(Debug)]
pub(crate) struct Plant {
    pub(crate) table: Table,
    /// The last term and index that the source may have had.
    pub(crate) term: u64,
    pub(crate) index: u64,
    pub(crate) lineage: u128,
    pub(crate) addresses: Vec<String>,
}

/// What is in a store that no member has open.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) table: Table,
    pub(crate) members: StoredMembership,
    pub(crate) term: u64,
    pub(crate) index: u64,
    /// Entries of the log after the last that this member knew to be committed.
    pub(crate) uncertain: u64,
}

/// Whether a directory has a store.
pub(crate) fn exists(dir: &Path) -> bool {
    dir.join(FILE_NAME).exists()
}

/// Reads a whole store, the end of its log included: an entry there may have been committed without this member hearing of it.
pub(crate) fn contents(dir: &Path, owner: Owner) -> Result<Contents, StoreError> {
    let path = dir.join(FILE_NAME);
    let file = File::options().read(true).write(true).open(&path);
    let file = file.map_err(|error| io_error(&path, "opening", &error))?;
    let backend = FileBackend::new(file).map_err(|error| from_redb(&path, "opening", error.into()))?;
    let database = open_database(&path, backend)?;
    let loaded = super::guarded(&path, "reading", || record::load(&path, &database, owner))?;
    let Restored { meta, mut table } = loaded.restored;
    let mut members = meta.last_membership.clone();
    let mut last = meta.last_log_id.max(loaded.memory.purged);
    let mut uncertain = 0;
    for (index, (entry, _)) in loaded.memory.entries {
        if meta.last_log_id.is_some_and(|applied| index <= applied.index()) {
            continue;
        }
        uncertain += u64::from(loaded.memory.committed.is_none_or(|committed| index > committed.index()));
        match entry.payload {
            openraft::EntryPayload::Blank => {}
            openraft::EntryPayload::Normal(command) => drop(table.apply(index, &command)),
            openraft::EntryPayload::Membership(membership) => {
                members = StoredMembership::new(Some(entry.log_id), membership);
            }
        }
        last = last.max(Some(entry.log_id));
    }
    let voted = loaded.memory.vote.map_or(0, |vote| vote.leader_id.term);
    let term = last.map_or(0, |last| last.leader_id.term).max(voted);
    Ok(Contents { table, members, term, index: last.map_or(0, |last| last.index()), uncertain })
}

/// Makes a store whose only voter is its owner; a store that is there already is kept under the name that is returned.
pub(crate) fn plant(
    dir: &Path,
    owner: Owner,
    id: StoreId,
    plant: Plant,
) -> Result<Option<PathBuf>, StoreError> {
    std::fs::create_dir_all(dir).map_err(|error| io_error(dir, "creating the directory", &error))?;
    let path = dir.join(FILE_NAME);
    let unfinished = path.with_extension("planted");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&unfinished);
    let file = file.map_err(|error| io_error(&unfinished, "creating", &error))?;
    let backend = FileBackend::new(file).map_err(|error| from_redb(&unfinished, "creating", error.into()))?;
    let database = open_database(&unfinished, backend)?;
    initialize(&unfinished, &database, owner, id)?;
    let (mark, image, vote) = first_checkpoint(owner, id, &plant);
    super::guarded(&unfinished, "writing", || {
        writer::plant(&unfinished, &database, &mark, image, (&vote, plant.lineage))
    })?;
    drop(database);
    let file = File::open(&unfinished).map_err(|error| io_error(&unfinished, "opening", &error))?;
    file.sync_all().map_err(|error| io_error(&unfinished, "syncing", &error))?;
    let kept = keep(&path, plant.lineage)?;
    std::fs::rename(&unfinished, &path).map_err(|error| io_error(&path, "renaming", &error))?;
    sync_directory(dir)?;
    dir.parent().map_or(Ok(()), sync_directory)?;
    Ok(kept)
}

/// Gives what is there a second name, so that the rename over it loses nothing.
fn keep(path: &Path, lineage: u128) -> Result<Option<PathBuf>, StoreError> {
    if !path.exists() {
        return Ok(None);
    }
    let kept = path.with_extension(format!("before-{lineage:032x}"));
    std::fs::hard_link(path, &kept).map_err(|error| io_error(&kept, "keeping the old store", &error))?;
    Ok(Some(kept))
}

fn first_checkpoint(owner: Owner, id: StoreId, plant: &Plant) -> (CheckpointMark, Image, Vote) {
    // One above everything that the source voted for or logged: nothing of then outranks what comes.
    let term = plant.term + 1;
    let leader = openraft::type_config::alias::LeaderIdOf::<Engine>::new(term, owner.node);
    let log_id = LogId::new(leader.to_committed(), plant.index + 1);
    let member = Member { addresses: plant.addresses.clone(), store: id };
    let membership = openraft::Membership::new(
        vec![BTreeSet::from([owner.node])],
        std::collections::BTreeMap::from([(owner.node, member)]),
    )
    .expect("the one voter is among the members");
    let meta = SnapshotMeta {
        last_log_id: Some(log_id),
        last_membership: StoredMembership::new(Some(log_id), membership),
    };
    let image = Image {
        revision: plant.table.revision() + REVISION_LEAP,
        rows: plant.table.rows().clone(),
        sessions: plant.table.sessions().clone(),
    };
    let mark = CheckpointMark {
        meta,
        revision: image.revision,
        rows: image.rows.len() as u64,
        sessions: image.sessions.clone(),
    };
    (mark, image, Vote::new(term, owner.node))
}
