//! The state machine: committed log entries become rows, watches and checkpoints.
//!
//! The table lives in memory. A checkpoint writes what changed since the last one; after a restart the engine applies the log from there.
//! It must never show a state to a watch that is not committed, and a checkpoint must be the state at exactly one log entry.
//! Read next: `table` for what a command does, `store` for what a checkpoint is on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::{oneshot, watch};

use super::engine::{Engine, LogId, RaftNodeId, SnapshotMeta, StoredMembership};
use super::store::{
    Checkpoint, CheckpointMark, CheckpointRows, Image, Restored, Store, StoreError, StoredImage,
};
use super::table::{Reply, Table};
use super::watch::{Feed, History, Reading};
use super::{CatalogError, Rows, Versioned};

type Snapshot = openraft::Snapshot<
    openraft::type_config::alias::CommittedLeaderIdOf<Engine>,
    RaftNodeId,
    super::Member,
    SnapshotImage,
>;

/// Largest checkpoint that is accepted from another member, in bytes.
pub(crate) const IMAGE_BYTES_MAX: usize = 128 << 20;
const IMAGE_MAGIC: &[u8; 8] = b"SFCATIM1";

/// How far the table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Number of log entries applied: the index of the next one.
    pub(crate) applied_next: u64,
    pub(crate) revision: u64,
    /// Set once nothing will be applied any more.
    pub(crate) closed: bool,
}

/// The table of this node, as reads and watches see it.
#[derive(Debug)]
pub(crate) struct Shared {
    node: RaftNodeId,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
    reason: Mutex<Option<String>>,
}

#[derive(Debug)]
struct State {
    table: Table,
    history: History,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// Keys that changed since the last checkpoint was ordered.
    dirty: BTreeSet<String>,
}

impl Shared {
    fn new(node: RaftNodeId, restored: Restored) -> Self {
        let progress = Progress {
            applied_next: restored.meta.last_log_id.map_or(0, |applied| applied.index() + 1),
            revision: restored.table.revision(),
            closed: false,
        };
        let state = State {
            history: History::new(restored.table.revision()),
            table: restored.table,
            applied: restored.meta.last_log_id,
            membership: restored.meta.last_membership,
            dirty: BTreeSet::new(),
        };
        Self {
            node,
            state: Mutex::new(state),
            progress: watch::Sender::new(progress),
            reason: Mutex::new(None),
        }
    }

    /// The row of a key and the revision of the table.
    pub(crate) fn row(&self, key: &str) -> (u64, Option<Versioned>) {
        let state = self.lock();
        (state.table.revision(), state.table.row(key).cloned())
    }

    /// Ends all watches and waits with a reason; the first reason stays.
    pub(crate) fn close(&self, reason: String) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.progress.send_modify(|progress| progress.closed = true);
    }

    /// Why nothing will be applied any more, if so.
    pub(crate) fn closed(&self) -> Option<CatalogError> {
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(CatalogError::Closed { node: self.node, reason })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed for Shared {
    fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn read_history(&self, prefix: &str, from: u64) -> Reading {
        self.lock().history.read(prefix, from)
    }

    fn rows_under(&self, prefix: &str) -> Rows {
        let state = self.lock();
        Rows { revision: state.table.revision(), rows: state.table.rows_under(prefix) }
    }

    fn closed_error(&self, reason: &str) -> CatalogError {
        self.closed().unwrap_or_else(|| CatalogError::Closed { node: self.node, reason: reason.to_owned() })
    }
}

/// The state machine that the engine drives.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    shared: Arc<Shared>,
    store: Store,
}

impl Machine {
    /// A state machine that goes on from what the store holds.
    pub(crate) fn new(node: RaftNodeId, store: Store, restored: Restored) -> Self {
        Self { shared: Arc::new(Shared::new(node, restored)), store }
    }

    /// The table that it keeps.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    fn apply_entry(
        state: &mut State,
        log_id: LogId,
        payload: EntryPayload<super::table::Command, RaftNodeId, super::Member>,
    ) -> Reply {
        state.applied = Some(log_id);
        match payload {
            EntryPayload::Blank => Reply::Nothing,
            EntryPayload::Membership(membership) => {
                state.membership = StoredMembership::new(Some(log_id), membership);
                Reply::Nothing
            }
            EntryPayload::Normal(command) => {
                let applied = state.table.apply(log_id.index(), &command);
                if !applied.changes.is_empty() {
                    state.dirty.extend(applied.changes.iter().map(|(key, _)| key.clone()));
                    state.history.push(state.table.revision(), applied.changes);
                }
                applied.reply
            }
        }
    }
}

impl RaftStateMachine<Engine> for Machine {
    type SnapshotData = SnapshotImage;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.shared.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Engine>, io::Error>> + Unpin + OptionalSend,
    {
        let mut progress = None;
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let reply = {
                let mut state = self.shared.lock();
                let reply = Self::apply_entry(&mut state, entry.log_id, entry.payload);
                progress = Some((entry.log_id.index() + 1, state.table.revision()));
                reply
            };
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        if let Some((applied_next, revision)) = progress {
            self.shared.progress.send_modify(|shown| {
                shown.applied_next = applied_next;
                shown.revision = revision;
            });
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let checkpoint = {
            let mut state = self.shared.lock();
            let dirty = std::mem::take(&mut state.dirty);
            let rows = dirty
                .into_iter()
                .map(|key| {
                    let row = state.table.row(&key).cloned();
                    (key, row)
                })
                .collect();
            Checkpoint { mark: mark(&state), rows: CheckpointRows::Changed(rows) }
        };
        // Ordered here, where the engine calls in the order of the log: builders may run at the same time.
        Builder { done: Some(self.store.checkpoint(checkpoint)), store: self.store.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotImage,
    ) -> Result<(), io::Error> {
        let image = snapshot.load()?;
        let rows = image.rows.iter().map(|(key, row)| (key.clone(), Some(row.clone()))).collect();
        let mark = CheckpointMark {
            meta: meta.clone(),
            revision: image.revision,
            rows: image.rows.len() as u64,
            sessions: image.sessions.clone(),
        };
        let done = self.store.checkpoint(Checkpoint { mark, rows: CheckpointRows::All(rows) });
        done.await.map_err(|_| io::Error::other("the catalog store was closed"))??;
        let progress = {
            let mut state = self.shared.lock();
            state.table = image.into_table();
            state.history = History::new(state.table.revision());
            state.applied = meta.last_log_id;
            state.membership = meta.last_membership.clone();
            state.dirty.clear();
            (meta.last_log_id.map_or(0, |applied| applied.index() + 1), state.table.revision())
        };
        self.shared.progress.send_modify(|shown| (shown.applied_next, shown.revision) = progress);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let image = self.store.image()?;
        Ok(image.map(|(meta, image)| Snapshot { meta, snapshot: SnapshotImage::Stored(image) }))
    }
}

fn mark(state: &State) -> CheckpointMark {
    CheckpointMark {
        meta: SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() },
        revision: state.table.revision(),
        rows: state.table.rows().len() as u64,
        sessions: state.table.sessions().clone(),
    }
}

/// Waits for a checkpoint that was ordered when the builder was made.
#[derive(Debug)]
pub(crate) struct Builder {
    done: Option<oneshot::Receiver<Result<(), StoreError>>>,
    store: Store,
}

impl RaftSnapshotBuilder<Engine> for Builder {
    type SnapshotData = SnapshotImage;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        if let Some(done) = self.done.take() {
            done.await.map_err(|_| io::Error::other("the catalog store was closed"))??;
        }
        let Some((meta, image)) = self.store.image()? else {
            return Err(io::Error::other("the checkpoint that was just written is not there"));
        };
        Ok(Snapshot { meta, snapshot: SnapshotImage::Stored(image) })
    }
}

/// A whole table on its way between store, engine and network.
#[derive(Clone, Debug)]
pub(crate) enum SnapshotImage {
    /// In the store of this node.
    Stored(StoredImage),
    /// As it came from another member.
    Received(Bytes),
}

impl SnapshotImage {
    /// Decodes and verifies it.
    pub(crate) fn load(&self) -> Result<Image, io::Error> {
        match self {
            Self::Stored(image) => Ok(image.load()?),
            Self::Received(bytes) => decode_image(bytes),
        }
    }

    /// Encodes it for the way to another member.
    pub(crate) fn to_bytes(&self) -> Result<Bytes, io::Error> {
        match self {
            Self::Received(bytes) => Ok(bytes.clone()),
            Self::Stored(image) => encode_image(&image.load()?),
        }
    }
}

fn encode_image(image: &Image) -> Result<Bytes, io::Error> {
    let mut bytes = postcard::to_extend(image, IMAGE_MAGIC.to_vec()).map_err(io::Error::other)?;
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    Ok(bytes.into())
}

fn decode_image(bytes: &[u8]) -> Result<Image, io::Error> {
    let invalid = |what: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("the received catalog checkpoint {what}"))
    };
    let Some((body, sum)) = bytes.split_last_chunk::<4>() else { return Err(invalid("is cut short")) };
    if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
        return Err(invalid("does not match its checksum"));
    }
    let Some(body) = body.strip_prefix(IMAGE_MAGIC) else { return Err(invalid("has an unknown format")) };
    let image: Image = postcard::from_bytes(body).map_err(|_| invalid("can't be decoded"))?;
    Ok(image)
}

/// The entry for fuzzing: an image that was received, written again where it is accepted.
pub(super) fn rewrite_image(bytes: &[u8]) -> Option<Vec<u8>> {
    encode_image(&decode_image(bytes).ok()?).ok().map(|bytes| bytes.to_vec())
}

/// All members of a membership, by number.
pub(crate) fn members(membership: &StoredMembership) -> BTreeMap<RaftNodeId, super::Member> {
    membership.nodes().map(|(id, member)| (*id, member.clone())).collect()
}
