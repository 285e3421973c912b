//! How committed rows reach the core: all that is known at the start, then every change, then word that this
//! node is in step with a majority.
//!
//! A node that has just started first hands over what it had on its own disk, so that it knows its peers before
//! there is a quorum. Only a linearizable read makes it `Synced`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use steadfast_proto::catalog::decode_change;
use steadfast_proto::devices::DeviceName;
use steadfast_proto::devices::registry::DeviceRows;
use steadfast_proto::ids::NodeId;
use steadfast_proto::node::Input;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::catalog::{Catalog, CatalogError, Versioned, WatchItem, WatchStream};

/// The pause after a linearizable read that found no majority.
const RETRY: Duration = Duration::from_millis(100);

/// The committed rows as inputs of the core.
pub(super) struct Rows {
    watch: WatchStream,
    /// Up to which revision everything has been handed over.
    seen: u64,
    known: BTreeSet<String>,
    devices: DeviceRows,
    /// Whether a row about devices changed since the core was told where they are.
    are_devices_new: bool,
    located: BTreeMap<NodeId, BTreeSet<DeviceName>>,
    sync: Option<oneshot::Receiver<u64>>,
    synced_at: Option<u64>,
    catalog: Arc<dyn Catalog>,
}

impl Rows {
    /// Begins with what this node has on its disk, which `inputs` receives.
    pub(super) fn begin(catalog: Arc<dyn Catalog>, runtime: &Handle, inputs: &mut Vec<Input>) -> Rows {
        let stale = catalog.range_stale("");
        let watch = catalog.watch(String::new(), stale.revision);
        let (found, sync) = oneshot::channel();
        runtime.spawn(sync_with_majority(Arc::clone(&catalog), found));
        let mut rows = Rows {
            watch,
            seen: 0,
            known: BTreeSet::new(),
            devices: DeviceRows::default(),
            are_devices_new: false,
            located: BTreeMap::new(),
            sync: Some(sync),
            synced_at: None,
            catalog,
        };
        rows.replace(stale.revision, stale.rows, inputs);
        rows
    }

    /// Waits for the next committed changes. Cancelling loses nothing.
    pub(super) async fn next(&mut self, inputs: &mut Vec<Input>) -> Result<(), CatalogError> {
        loop {
            if self.synced_at.is_some_and(|revision| revision <= self.seen) {
                self.synced_at = None;
                inputs.push(Input::Synced);
                return Ok(());
            }
            let Some(sync) = &mut self.sync else {
                let item = self.watch.next().await?;
                self.take(item, inputs);
                return Ok(());
            };
            tokio::select! {
                found = sync => {
                    self.sync = None;
                    self.synced_at = found.ok();
                }
                item = self.watch.next() => {
                    self.take(item?, inputs);
                    return Ok(());
                }
            }
        }
    }

    /// The engine's number of its leader.
    pub(super) fn leader(&self) -> Option<u64> {
        self.catalog.leader()
    }

    fn take(&mut self, item: WatchItem, inputs: &mut Vec<Input>) {
        match item {
            WatchItem::Changed(watched) => {
                for (key, value) in watched.changes {
                    self.change(watched.revision, key, value, inputs);
                }
                self.seen = watched.revision;
                self.tell_devices(inputs);
            }
            WatchItem::Resync { revision, rows } => self.replace(revision, rows, inputs),
        }
    }

    fn replace(&mut self, revision: u64, mut rows: Vec<(String, Versioned)>, inputs: &mut Vec<Input>) {
        let present: BTreeSet<String> = rows.iter().map(|(key, _)| key.clone()).collect();
        let gone: Vec<String> = self.known.difference(&present).cloned().collect();
        for key in gone {
            self.change(revision, key, None, inputs);
        }
        rows.sort_by_key(|(_, row)| row.version);
        for (key, row) in rows {
            self.change(revision, key, Some(row), inputs);
        }
        self.seen = revision;
        self.tell_devices(inputs);
    }

    /// Tells the core where devices are, when that has changed.
    fn tell_devices(&mut self, inputs: &mut Vec<Input>) {
        if !std::mem::take(&mut self.are_devices_new) {
            return;
        }
        let located = self.devices.located();
        if located != self.located {
            self.located.clone_from(&located);
            inputs.push(Input::Devices(located));
        }
    }

    fn change(&mut self, revision: u64, key: String, value: Option<Versioned>, inputs: &mut Vec<Input>) {
        let bytes = value.as_ref().map(|row| &row.value[..]);
        let version = value.as_ref().map_or(revision, |row| row.version);
        match self.devices.learn(&key, value.as_ref().map(|row| (row.version, &row.value[..]))) {
            Ok(is_device) => self.are_devices_new |= is_device,
            Err(error) => tracing::error!(key, %error, "a row about devices can't be read and is ignored"),
        }
        match decode_change(&key, bytes) {
            Ok(Some(change)) => inputs.push(Input::Committed { revision: version, change }),
            Ok(None) => {}
            Err(error) => tracing::error!(key, %error, "a row of the catalog can't be read and is ignored"),
        }
        if value.is_some() {
            self.known.insert(key);
        } else {
            self.known.remove(&key);
        }
    }
}

/// Reads through a majority until it answers; gives the revision that was current then.
async fn sync_with_majority(catalog: Arc<dyn Catalog>, found: oneshot::Sender<u64>) {
    loop {
        if found.is_closed() {
            return;
        }
        match catalog.range("view".to_owned()).await {
            Ok(rows) => {
                let _ = found.send(rows.revision);
                return;
            }
            Err(CatalogError::Closed { .. }) => return,
            Err(error) => tracing::debug!(%error, "not in step with a majority yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}
