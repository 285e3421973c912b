//! The room of device names: what this node sees, told to the cluster, and the cluster's names, shown here.
//!
//! One thread of its own waits for disks ([`Keeper`]); one task joins it with the kernel's announcements and the catalog's rows
//! ([`follow`]). The table and its links are there before the catalog is, and stay while it is away. Nothing that fails here
//! ends the agent: it is logged, shown by `device list`, and tried again. Who may have which name is decided by
//! `steadfast_proto::devices`; read `device_verbs` for what people ask.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steadfast::catalog::Txn;
use steadfast::devices::uevent::Uevents;
use steadfast::devices::{Devices, DevicesError, Report, Roots, Unidentified};
use steadfast_proto::catalog::{ContainerRow, Key, View};
use steadfast_proto::devices::registry::{DeviceRows, assign};
use steadfast_proto::devices::{DeviceId, DeviceKey, DeviceName, ProofRow, SeenRow};
use steadfast_proto::ids::NodeId;
use tokio::sync::{Notify, oneshot, watch};

use super::containers::lock;
use super::device_verbs::commit;
use super::rows::{self, Rows};
use crate::api::convert::now_unix_ms;
use crate::codes::Code;
use crate::config::{Config, Mode};
use crate::failure::Failure;

/// How many may wait for the keeper at once.
const ASKS_MAX: usize = 64;
/// How long the start of the agent, or of a container, waits for a keeper that may be waiting for a disk.
const PATIENCE: Duration = Duration::from_secs(10);
/// After how long everything is looked at again: without udev the kernel does not announce that content has changed.
const CALM: Duration = Duration::from_secs(60);
/// The same while something is in the way, is in use, or failed.
const UNEASY: Duration = Duration::from_secs(2);

/// What the room shows of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    /// What came of following the catalog last.
    pub(crate) report: Arc<Report>,
    /// What each block device is, by the kernel's names of all paths.
    pub(crate) kernel_names: Arc<BTreeMap<String, Result<DeviceId, Unidentified>>>,
    /// Why names can't be kept just now.
    pub(crate) failure: Option<String>,
}

/// This node's names of devices, for the rest of the agent.
pub(crate) struct Room {
    own: NodeId,
    automatic: bool,
    asks: SyncSender<Ask>,
    shown: Mutex<Shown>,
    look: Notify,
    /// Counts the scans whose outcome was told to the cluster.
    scans: watch::Sender<u64>,
}

/// What the keeper is asked.
enum Ask {
    Turn(Turn, oneshot::Sender<Result<Turned, String>>),
    NameLocally(DeviceId, DeviceName, String, oneshot::Sender<Result<(), String>>),
    Node(DeviceId, SyncSender<Option<PathBuf>>),
}

/// One round: look, prove, follow.
#[derive(Default)]
struct Turn {
    looks: bool,
    /// The catalog's rows; none while they are not known.
    rows: Option<Arc<DeviceRows>>,
    /// Devices that containers here use.
    held: BTreeSet<DeviceId>,
    /// Devices that this node is to write a number to.
    challenges: Vec<DeviceId>,
}

/// What came of a round.
struct Turned {
    row: SeenRow,
    proofs: Vec<(DeviceId, u128)>,
    report: Report,
    kernel_names: BTreeMap<String, Result<DeviceId, Unidentified>>,
}

impl Room {
    /// Opens this node's table and shows its names; none where the configuration wants none.
    pub(super) async fn open(config: &Config, own: NodeId) -> Result<Option<Arc<Room>>, Failure> {
        let is_root = rustix::process::geteuid().is_root();
        if config.mode != Mode::Agent || config.devices.include.is_empty() || !is_root {
            return Ok(None);
        }
        let keeper = Keeper {
            own,
            directory: config.data.clone(),
            links: config.devices.links.clone(),
            roots: Roots { include: config.devices.include.clone(), ..Roots::default() },
            devices: None,
        };
        let (asks, asked) = mpsc::sync_channel(ASKS_MAX);
        let thread = std::thread::Builder::new().name("devices".to_owned());
        thread.spawn(move || keeper.run(&asked)).map_err(|error| {
            Failure::new(Code::DiskFailed, format!("no thread could be started: {error}"))
        })?;
        let automatic = config.devices.automatic;
        let (shown, look, scans) = (Mutex::default(), Notify::new(), watch::Sender::new(0));
        let room = Arc::new(Room { own, automatic, asks, shown, look, scans });
        if tokio::time::timeout(PATIENCE, room.turn(Turn::default())).await.is_err() {
            tracing::warn!("a block device does not answer; names of devices come later");
        }
        Ok(Some(room))
    }

    /// What is shown of it.
    pub(crate) fn shown(&self) -> Shown {
        lock(&self.shown).clone()
    }

    /// Counts the scans whose outcome was told to the cluster.
    pub(crate) fn scans(&self) -> watch::Receiver<u64> {
        self.scans.subscribe()
    }

    /// Looks at all devices again, and waits until the cluster was told or can't be.
    pub(super) async fn look_again(&self) {
        let mut scans = self.scans.subscribe();
        self.look.notify_one();
        // A device that does not answer leaves what is known as it is.
        let _ = tokio::time::timeout(PATIENCE, scans.changed()).await;
    }

    /// Gives a device a name of this node's own, until the cluster gives it one.
    pub(super) async fn name_locally(
        &self,
        id: DeviceId,
        name: DeviceName,
        prefix: String,
    ) -> Result<(), Failure> {
        let refused = |reason: String| Failure::new(Code::DeviceNameRefused, reason);
        let (reply, outcome) = oneshot::channel();
        self.ask(Ask::NameLocally(id, name, prefix, reply)).map_err(refused)?;
        outcome
            .await
            .unwrap_or_else(|_| Err("the thread of device names has ended".to_owned()))
            .map_err(refused)?;
        self.look_again().await;
        Ok(())
    }

    /// The node of a device here, for a container. Blocks.
    pub(super) fn node_of(&self, id: &DeviceId) -> Option<PathBuf> {
        let (reply, node) = mpsc::sync_channel(1);
        self.ask(Ask::Node(id.clone(), reply)).ok()?;
        node.recv_timeout(PATIENCE).ok().flatten()
    }

    async fn turn(&self, turn: Turn) -> Result<Turned, String> {
        let (reply, outcome) = oneshot::channel();
        self.ask(Ask::Turn(turn, reply))?;
        let turned = outcome.await.unwrap_or_else(|_| Err("the thread of device names has ended".to_owned()));
        let mut shown = lock(&self.shown);
        match turned {
            Ok(mut turned) => {
                shown.report = Arc::new(std::mem::take(&mut turned.report));
                shown.kernel_names = Arc::new(std::mem::take(&mut turned.kernel_names));
                if shown.failure.take().is_some() {
                    tracing::info!("names of devices are kept again");
                }
                Ok(turned)
            }
            Err(reason) => {
                if shown.failure.as_ref() != Some(&reason) {
                    tracing::error!(reason, "names of devices can't be kept");
                }
                shown.failure = Some(reason.clone());
                Err(reason)
            }
        }
    }

    fn ask(&self, ask: Ask) -> Result<(), String> {
        self.asks.try_send(ask).map_err(|_| "the thread of device names waits for a disk".to_owned())
    }
}

/// Owns what waits for disks.
struct Keeper {
    own: NodeId,
    directory: PathBuf,
    links: PathBuf,
    roots: Roots,
    /// None until it could be opened, and after a failure.
    devices: Option<Devices>,
}

impl Keeper {
    /// Answers until the room is gone. An answer that nobody waits for any more is dropped.
    fn run(mut self, asked: &Receiver<Ask>) {
        while let Ok(ask) = asked.recv() {
            match ask {
                Ask::Turn(turn, reply) => {
                    let turned = self.attempt(|devices, own| take_turn(devices, own, turn));
                    let _ = reply.send(turned);
                }
                Ask::NameLocally(id, name, prefix, reply) => {
                    let named = self.attempt(|devices, _| devices.name_locally(&id, &name, &prefix));
                    let _ = reply.send(named);
                }
                Ask::Node(id, reply) => {
                    let node = self.devices.as_ref().and_then(|devices| devices.node_of(&id));
                    let _ = reply.send(node.map(PathBuf::from));
                }
            }
        }
    }

    /// Works with the table, opened anew where it is not open; what failed with the disk is opened anew next time.
    fn attempt<T>(
        &mut self,
        work: impl FnOnce(&mut Devices, NodeId) -> Result<T, DevicesError>,
    ) -> Result<T, String> {
        let own = self.own;
        let outcome = self.opened().and_then(|devices| work(devices, own));
        outcome.map_err(|error| {
            if !matches!(error, DevicesError::Step(_) | DevicesError::LocalName(_)) {
                self.devices = None;
            }
            error.to_string()
        })
    }

    fn opened(&mut self) -> Result<&mut Devices, DevicesError> {
        let devices = match self.devices.take() {
            Some(devices) => devices,
            None => {
                let mut devices = Devices::open_at(&self.directory, &self.links, self.roots.clone())?;
                devices.scan()?;
                devices
            }
        };
        Ok(self.devices.insert(devices))
    }
}

fn take_turn(devices: &mut Devices, own: NodeId, turn: Turn) -> Result<Turned, DevicesError> {
    devices.hold(turn.held);
    if turn.looks {
        devices.scan()?;
    }
    let mut proofs = Vec::new();
    for id in turn.challenges {
        match devices.challenge(&id) {
            Ok(number) => proofs.push((id, number)),
            Err(error) => {
                tracing::debug!(device = %id, %error, "no proof that the device is shared is begun")
            }
        }
    }
    let report = match &turn.rows {
        Some(rows) => {
            devices.answer(own, rows);
            devices.apply(rows)?
        }
        None => devices.follow()?,
    };
    let each = |seen: &steadfast::devices::Seen| {
        let identity = seen.identity.clone();
        seen.paths.iter().map(|path| (path.clone(), identity.clone())).collect::<Vec<_>>()
    };
    let kernel_names = devices.seen().iter().flat_map(each).collect();
    Ok(Turned { row: devices.seen_row(), proofs, report, kernel_names })
}

/// Goes on as long as the agent: looks when the kernel says so, follows the catalog, tells it what is seen.
pub(super) async fn follow(room: Arc<Room>, rows: Rows) {
    let mut uevents = Uevents::open()
        .inspect_err(|error| tracing::warn!(%error, "a device that is plugged in is noticed late"))
        .ok();
    let catalog = Arc::clone(rows.catalog());
    let mut follower =
        Follower { room, rows, known: Arc::default(), revision: 0, own_revision: 0, redo: BTreeSet::new() };
    let mut looks = true;
    loop {
        follower.refresh();
        let held = follower.held();
        let is_calm = follower.turn(looks, held.clone()).await;
        let look_at = tokio::time::Instant::now() + if is_calm && uevents.is_some() { CALM } else { UNEASY };
        // What changed during the turn is there at once.
        let mut devices = catalog.watch(DeviceKey::PREFIX.to_owned(), follower.revision);
        let mut view = catalog.watch(Key::View.encode(), follower.revision);
        let mut containers = catalog.watch("container/".to_owned(), follower.revision);
        looks = loop {
            let changed = tokio::select! {
                is_open = announced(&mut uevents) => {
                    if !is_open {
                        uevents = None;
                    }
                    break true;
                }
                () = follower.room.look.notified() => break true,
                () = tokio::time::sleep_until(look_at) => break true,
                item = devices.next() => item.map(|_| true),
                item = view.next() => item.map(|_| true),
                // Most changes of containers are checkpoints, which concern no device.
                item = containers.next() => item.map(|_| follower.held() != held),
            };
            match changed {
                Ok(true) => break false,
                Ok(false) => {}
                // The catalog on this node is closed, and the agent ends.
                Err(_) => return,
            }
        };
    }
}

/// Waits for the kernel's next burst of announcements; false when there will be none.
async fn announced(uevents: &mut Option<Uevents>) -> bool {
    let Some(uevents) = uevents else { return std::future::pending().await };
    match uevents.next().await {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(%error, "a device that is plugged in is noticed late");
            false
        }
    }
}

/// What joins the room with the catalog.
struct Follower {
    room: Arc<Room>,
    rows: Rows,
    known: Arc<DeviceRows>,
    /// The revision of `known`.
    revision: u64,
    /// The last revision that this node itself made. Before `known` has it, nothing that it did may be done again.
    own_revision: u64,
    /// Devices on which this node wrote a number of which the catalog was not told.
    redo: BTreeSet<DeviceId>,
}

impl Follower {
    /// Takes over the catalog's rows as this node has them.
    fn refresh(&mut self) {
        let found = self.rows.catalog().range_stale(DeviceKey::PREFIX);
        let mut known = DeviceRows::default();
        for (key, row) in &found.rows {
            if let Err(error) = known.learn(key, Some((row.version, &row.value[..]))) {
                tracing::error!(key, %error, "a row about devices can't be read and is ignored");
            }
        }
        (self.known, self.revision) = (Arc::new(known), found.revision);
    }

    async fn commit(&mut self, txn: Txn) -> Result<bool, Failure> {
        let reply = self.rows.commit(txn).await?;
        self.own_revision = self.own_revision.max(reply.revision);
        Ok(reply.succeeded)
    }

    /// The devices that containers of this node use.
    fn held(&self) -> BTreeSet<DeviceId> {
        let rows = self.rows.all_stale::<ContainerRow>("container/").into_iter().map(|(row, _)| row);
        let own = rows.filter(|row| row.owner == self.room.own && row.is_active());
        own.flat_map(|row| row.spec.require.devices)
            .filter_map(|name| Some(self.known.ever_named(&name.parse().ok()?)?.id.clone()))
            .collect()
    }

    /// One round; whether nothing is left to be done soon.
    async fn turn(&mut self, looks: bool, held: BTreeSet<DeviceId>) -> bool {
        let is_behind = self.revision < self.own_revision;
        let challenges = if is_behind { Vec::new() } else { self.challenges() };
        let turn = Turn { looks, rows: Some(Arc::clone(&self.known)), held, challenges };
        let Ok(turned) = self.room.turn(turn).await else { return false };
        let told = self.tell(&turned.row).await;
        let proved = self.prove(turned.proofs).await;
        let named = if is_behind { Ok(()) } else { self.name_new(&turned.row).await };
        if looks {
            self.room.scans.send_modify(|count| *count += 1);
        }
        let is_settled = self.room.shown().report.deferred.is_empty();
        let failures = [told.err(), proved.err(), named.err()];
        for failure in failures.iter().flatten() {
            tracing::debug!(%failure, "what this node sees of devices is not told yet");
        }
        is_settled && !is_behind && failures.iter().all(Option::is_none) && self.redo.is_empty()
    }

    fn members(&self) -> BTreeSet<NodeId> {
        let view = self.rows.get_stale::<View>(&Key::View);
        view.map(|(view, _)| view.members.into_keys().collect()).unwrap_or_default()
    }

    fn challenges(&self) -> Vec<DeviceId> {
        let (own, members) = (self.room.own, self.members());
        let Some(seen) = self.known.seen().get(&own) else { return Vec::new() };
        let is_mine =
            |id: &&DeviceId| self.redo.contains(*id) || self.known.next_writer(id, &members) == Some(own);
        seen.devices.keys().filter(is_mine).cloned().collect()
    }

    /// Writes what this node sees, when it has changed.
    async fn tell(&mut self, row: &SeenRow) -> Result<(), Failure> {
        let key = DeviceKey::Seen(self.room.own).encode();
        let known = self.rows.get_stale_at::<SeenRow>(&key).map(|(known, _)| known);
        if known.unwrap_or_default() == *row {
            return Ok(());
        }
        self.commit(Txn::put(key, rows::encode(row)?)).await.map(drop)
    }

    /// Tells of the numbers that were written. Whoever wrote one of which the catalog does not hear writes another: the last
    /// number on a device has to be the one that the catalog names.
    async fn prove(&mut self, proofs: Vec<(DeviceId, u128)>) -> Result<(), Failure> {
        for (id, number) in proofs {
            let row = rows::encode(&ProofRow { node: self.room.own, number })?;
            let version = self.known.proof_version(&id);
            self.redo.insert(id.clone());
            let txn = Txn::compare_and_set(DeviceKey::Proof(id.clone()).encode(), version, row);
            if self.commit(txn).await? {
                self.redo.remove(&id);
            }
        }
        Ok(())
    }

    /// Gives automatic names to devices that are surely shared; the first node that sees one does.
    async fn name_new(&self, row: &SeenRow) -> Result<(), Failure> {
        if !self.room.automatic {
            return Ok(());
        }
        let members = self.members();
        for id in row.devices.keys().filter(|id| self.known.wants_name(id)) {
            let first = self.known.certain_on(id).into_iter().find(|node| members.contains(node));
            if first == Some(self.room.own) {
                let named = commit(&self.rows, |known| assign(known, id, now_unix_ms())).await?;
                tracing::info!(device = %id, name = %named.name, "a shared device has a name");
            }
        }
        Ok(())
    }
}
