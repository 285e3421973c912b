//! Episodes on this node: when their keeper is opened, what it is told of the cluster, and how it ends.
//!
//! A node without episodes pays nothing: the keeper is opened when the catalog gives this node homes, and then knows them and
//! all programs before it goes on with anything, since a message to another node must not be taken for one to nobody. It
//! decides nothing about episodes. Read `deploy` for how programs come into the catalog, `requests` for what people ask,
//! `shared` for the second keeper, that of instances which all nodes can go on with.

mod carrier;
mod deploy;
mod effects;
mod list;
mod outside;
mod requests;
mod rows;
mod runners;
mod shared;
mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use steadfast::catalog::{Rows as CatalogRows, Versioned};
use steadfast::episodes::{Deployment, Embedded, Keeper, KeeperError, Parts};
use steadfast::events::hub::Hub;
use steadfast::net::rpc::{Class, Peers, Services};
use steadfast_proto::catalog::Key;
use steadfast_proto::episode::{Filter, Input, Settings, home_of};
use steadfast_proto::exchange::{Name, Text};
use steadfast_proto::ids::{ClusterId, Incarnation, NodeId};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use self::carrier::{Keepers, Wire};
use self::effects::Effects;
use self::outside::Parties;
use self::rows::{HomesRow, ProgramRow};
use self::runners::Runners;
use self::shared::SharedStore;
use super::rows::{Rows, decode};
use crate::codes::Code;
use crate::config::{Config, Mode};
use crate::episodes::effects::Adapters;
use crate::episodes::filter;
use crate::failure::Failure;

pub(crate) use self::list::Wanted;
pub(crate) use self::outside::Heard;
pub(crate) use self::requests::{Repeat, digest, payload};

/// The RPC service by which a node is asked whether it can keep instances, and whether it knows the newest programs.
const SERVICE_AWARE: u8 = 27;
/// How long a node is asked.
const ASK_MAX: Duration = Duration::from_secs(3);
/// How long a node waits for its copy of the catalog to have what it is asked about.
const AWARE_MAX: Duration = Duration::from_secs(2);
/// How long a request waits for the keeper to be opened.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether the keeper is there.
const LOOK: Duration = Duration::from_secs(1);
/// How often a request that waits for it looks.
const LOOK_OPEN: Duration = Duration::from_millis(20);
/// How soon a catalog that can't be followed is followed again.
const RETRY: Duration = Duration::from_secs(1);

/// The episodes of one node; clones are the same.
#[derive(Clone)]
pub(crate) struct Room {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    life: Incarnation,
    folder: PathBuf,
    peers: Peers,
    rows: Rows,
    runtime: Handle,
    /// Whether instances may be kept here: neither observers nor witnesses run anything.
    may_keep: bool,
    /// How the keepers are: of local instances, and of shared ones.
    standings: [Mutex<Standing>; 2],
    /// How shared instances are reached, if this node does.
    shared: Option<SharedStore>,
    /// What both are told; nothing before the catalog was read.
    told: Mutex<Option<Told>>,
    /// Up to which revision of the catalog the keeper knows programs and homes.
    aware: watch::Sender<u64>,
    parties: Parties,
    effects: Effects,
    keepers: Keepers,
    /// Whether no keeper is opened any more.
    is_ending: AtomicBool,
}

/// What the catalog says that keepers are to know.
#[derive(Default)]
struct Told {
    /// The homes of local instances.
    homes: Vec<NodeId>,
    programs: BTreeMap<Text, Deployment>,
    /// Those of them whose instances are shared.
    shared: BTreeSet<Text>,
}

/// How the keeper is.
#[derive(Clone)]
enum Standing {
    /// None is needed.
    Idle,
    Open(Keeper),
    /// Why there is none any more.
    Failed(String),
}

/// What the catalog says of episodes.
struct Seen {
    revision: u64,
    homes: Option<HomesRow>,
    programs: Vec<ProgramRow>,
}

impl Room {
    /// Offers to other nodes what they need; the keeper is opened by [`Room::follow`].
    pub(super) fn new(
        config: &Config,
        (cluster, me, life): (ClusterId, NodeId, Incarnation),
        peers: &Peers,
        services: &Services,
        rows: &Rows,
        hub: &Hub,
    ) -> Room {
        let keepers = Keepers::default();
        let adapters = Adapters::new(&config.episodes, hub.clone());
        let inner = Inner {
            me,
            life,
            folder: config.data.join("episodes"),
            peers: peers.clone(),
            rows: rows.clone(),
            runtime: Handle::current(),
            may_keep: config.mode == Mode::Agent,
            standings: [Mutex::new(Standing::Idle), Mutex::new(Standing::Idle)],
            shared: config.episodes.shared.clone().map(|config| SharedStore::new(config, cluster)),
            told: Mutex::default(),
            aware: watch::Sender::new(0),
            parties: Parties::new(),
            effects: Effects::new(adapters, Handle::current(), keepers.clone()),
            keepers,
            is_ending: AtomicBool::new(false),
        };
        let room = Room { inner: Arc::new(inner) };
        let frames = room.clone();
        services.register(carrier::SERVICE_FRAMES, move |from, body| {
            let keeper = frames.keeper(false);
            Box::pin(async move {
                let keeper = keeper.map_err(|failure| failure.message)?;
                let keeper = keeper.ok_or_else(|| "this node keeps no instances yet".to_owned())?;
                carrier::take(&keeper, from, body).await
            })
        });
        let keepers = room.inner.keepers.clone();
        services.register(carrier::SERVICE_SHARED, move |from, body| {
            let keepers = keepers.clone();
            Box::pin(async move { carrier::take_shared(&keepers, from, body).await })
        });
        let aware = room.clone();
        services.register(SERVICE_AWARE, move |_, body| {
            let aware = aware.clone();
            Box::pin(async move { aware.answer_aware(&body).await })
        });
        room.offer_lists(services);
        room.offer_parties(services);
        room
    }

    /// Keeps the keeper told of what the catalog says; ends with the catalog.
    pub(super) async fn follow(self) {
        let mut runners = Runners::new(self.inner.rows.clone(), self.inner.runtime.clone());
        let catalog = self.inner.rows.catalog().clone();
        // What others have deployed meanwhile must not be unknown here, unless nobody can say.
        let mut found = match catalog.range(rows::ALL.to_owned()).await {
            Ok(found) => found,
            Err(_) => catalog.range_stale(rows::ALL),
        };
        let is_shared = found.rows.iter().any(|(key, _)| key == rows::SHARING);
        tokio::spawn(self.clone().share(is_shared));
        loop {
            let mut watch = catalog.watch(rows::ALL.to_owned(), found.revision);
            // Who keeps shared instances follows from it.
            let mut views = catalog.watch(Key::View.encode(), found.revision);
            loop {
                self.tell(&mut runners, &seen(&found)).await;
                let changed = tokio::select! {
                    changed = watch.next() => changed,
                    changed = views.next() => changed,
                };
                if let Err(error) = changed {
                    tracing::debug!(%error, "the programs of episodes can't be followed");
                    break;
                }
                found = catalog.range_stale(rows::ALL);
            }
            tokio::time::sleep(RETRY).await;
            found = catalog.range_stale(rows::ALL);
        }
    }

    /// Tells the keeper, and opens it where there is none and one is needed.
    async fn tell(&self, runners: &mut Runners, seen: &Seen) {
        if let Some(homes) = &seen.homes
            && self.inner.may_keep
        {
            let shared = seen.programs.iter().filter(|row| row.is_shared);
            *self.inner.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(Told {
                homes: homes.nodes.clone(),
                programs: runners.deployments(&seen.programs),
                shared: shared.map(|row| row.name.as_str().into()).collect(),
            });
            let standing = self.standing(false).clone();
            match standing {
                Standing::Open(keeper) => self.tell_keeper(false, &keeper),
                Standing::Idle if homes.nodes.contains(&self.inner.me) || self.inner.folder.exists() => {
                    self.open().await;
                }
                Standing::Idle | Standing::Failed(_) => {}
            }
            let standing = self.standing(true).clone();
            if let Standing::Open(keeper) = standing {
                self.tell_keeper(true, &keeper);
            }
        }
        self.inner.aware.send_replace(seen.revision);
    }

    fn tell_keeper(&self, is_shared: bool, keeper: &Keeper) {
        let Some(known) = self.inner.known(is_shared) else { return };
        keeper.input(Input::Homes(known.homes));
        keeper.input(Input::Apart(known.apart));
        keeper.deploy(known.programs);
    }

    async fn open(&self) {
        let inner = Arc::clone(&self.inner);
        let opened = tokio::task::spawn_blocking(move || {
            let (parties, effects) = (inner.parties.clone(), inner.effects.clone());
            let (net, own) =
                ((inner.peers.clone(), inner.runtime.clone()), (inner.me, inner.keepers.clone()));
            let wire = Wire::new(net, parties, effects, own);
            let parts = Parts {
                me: inner.me,
                settings: settings(inner.me),
                carrier: Box::new(wire),
                life: Incarnation(inner.life.0 << 44),
            };
            let known = inner.known(false).unwrap_or_default();
            Keeper::start(Embedded::open(&inner.folder, salt())?, parts, known)
        });
        let opened = opened.await.unwrap_or(Err(KeeperError::Ended));
        let standing = match opened {
            Ok(keeper) => {
                tracing::info!(folder = %self.inner.folder.display(), "this node keeps instances");
                self.inner.keepers.set(false, Some(keeper.clone()));
                tokio::spawn(self.clone().notice_end(keeper.clone()));
                Standing::Open(keeper)
            }
            Err(error) => {
                tracing::error!(%error, "this node can keep no instances");
                Standing::Failed(error.to_string())
            }
        };
        *self.standing(false) = standing;
    }

    /// Notes why the keeper has ended, when it has.
    async fn notice_end(self, keeper: Keeper) {
        while keeper.look(|_| ()).await.is_ok() {
            tokio::time::sleep(LOOK).await;
        }
        let ended = tokio::task::spawn_blocking(move || keeper.stop()).await;
        if let Ok(Err(error)) = ended {
            self.inner.keepers.set(false, None);
            *self.standing(false) = Standing::Failed(error.to_string());
        }
    }

    /// Makes everything durable and ends.
    pub(super) async fn stop(&self) {
        self.inner.is_ending.store(true, Ordering::Relaxed);
        for is_shared in [true, false] {
            let standing = self.standing(is_shared).clone();
            let Standing::Open(keeper) = standing else { continue };
            let stopped = tokio::task::spawn_blocking(move || keeper.stop()).await;
            if let Ok(Err(error)) = stopped {
                tracing::error!(%error, "a keeper of instances did not end well; the next start goes on from what it had committed");
            }
        }
    }

    /// Why this node keeps no instances although it should.
    pub(super) fn failures(&self) -> Vec<String> {
        let words = ["this node runs no episodes", "this node runs no episodes of shared instances"];
        let failed = words.into_iter().zip([false, true]).filter_map(|(what, is_shared)| {
            match &*self.standing(is_shared) {
                Standing::Failed(why) => Some(format!("{what}: {why}")),
                Standing::Idle | Standing::Open(_) => None,
            }
        });
        failed.collect()
    }

    /// The keeper of local instances, or of shared ones, if one is needed here.
    pub(super) fn keeper(&self, is_shared: bool) -> Result<Option<Keeper>, Failure> {
        match &*self.standing(is_shared) {
            Standing::Idle => Ok(None),
            Standing::Open(keeper) => Ok(Some(keeper.clone())),
            Standing::Failed(why) if is_shared => Err(Failure::new(Code::SharedStore, why.clone())),
            Standing::Failed(why) => {
                let message = format!("this node keeps no instances any more: {why}");
                Err(Failure::new(Code::EpisodesFailed, message))
            }
        }
    }

    /// The keeper, once it is open, if one is needed here: after a start that takes a moment.
    pub(super) async fn opened(&self) -> Result<Option<Keeper>, Failure> {
        let mut aware = self.inner.aware.subscribe();
        let opened = aware.wait_for(|_| !self.is_opening());
        if tokio::time::timeout(OPEN_MAX, opened).await.is_err() {
            let message = "this node is still reading what its instances did; try again";
            return Err(Failure::new(Code::PeerUnreachable, message));
        }
        self.keeper(false)
    }

    /// The keeper that the instance of that name is, or would be, kept by, once it is open.
    pub(super) async fn opened_for(&self, name: &Name) -> Result<Option<Keeper>, Failure> {
        if !self.is_shared(name) {
            return self.opened().await;
        }
        let until = Instant::now() + OPEN_MAX;
        let why = loop {
            if let Some(keeper) = self.keeper(true)? {
                return Ok(Some(keeper));
            }
            if !self.inner.may_keep {
                break "this node keeps no instances, and no node of the cluster reaches it";
            }
            if self.inner.shared.is_none() {
                break "this node's configuration has no [episodes.shared], and no other node reaches it";
            }
            if Instant::now() > until {
                break "it has not answered this node yet";
            }
            tokio::time::sleep(LOOK_OPEN).await;
        };
        Err(Failure::new(Code::SharedStore, format!("{name} is in the shared store: {why}")))
    }

    /// The keepers that are open.
    pub(super) async fn all_opened(&self) -> Result<Vec<Keeper>, Failure> {
        let local = self.opened().await?;
        // Without the shared store its instances are missing, and the others there.
        let shared = self.keeper(true).unwrap_or_default();
        Ok(local.into_iter().chain(shared).collect())
    }

    /// Whether the instance of that name is, or would be, in the shared store.
    pub(super) fn is_shared(&self, name: &Name) -> bool {
        let key = format!("{}{}", rows::PROGRAMS, name.program());
        self.inner.rows.get_stale_at::<ProgramRow>(&key).is_some_and(|(row, _)| row.is_shared)
    }

    /// Whether a keeper is needed and not there yet.
    fn is_opening(&self) -> bool {
        let is_idle = matches!(&*self.standing(false), Standing::Idle);
        let homes = || self.inner.rows.get_stale_at::<HomesRow>(rows::HOMES);
        let is_home = || homes().is_some_and(|(homes, _)| homes.nodes.contains(&self.inner.me));
        is_idle && self.inner.may_keep && is_home()
    }

    /// The node that keeps the instance of that name, unless it is this one.
    pub(crate) fn kept_elsewhere(&self, name: &Name) -> Option<NodeId> {
        self.home(name).filter(|node| *node != self.inner.me)
    }

    /// The node that keeps the instance of that name, or would.
    pub(super) fn home(&self, name: &Name) -> Option<NodeId> {
        let nodes = if self.is_shared(name) {
            shared::table(&self.inner.rows)
        } else {
            self.inner.rows.get_stale_at::<HomesRow>(rows::HOMES)?.0.nodes
        };
        nodes.get(home_of(name, nodes.len())).copied()
    }

    /// All nodes that keep instances, unless there are no programs.
    pub(super) fn all_homes(&self) -> Option<BTreeSet<NodeId>> {
        let (homes, _) = self.inner.rows.get_stale_at::<HomesRow>(rows::HOMES)?;
        let shared =
            if self.shared_programs().is_empty() { Vec::new() } else { shared::table(&self.inner.rows) };
        Some(homes.nodes.into_iter().chain(shared).collect())
    }

    /// All programs, by name.
    fn programs(&self) -> Vec<ProgramRow> {
        self.inner.rows.all_stale::<ProgramRow>(rows::PROGRAMS).into_iter().map(|(row, _)| row).collect()
    }

    fn standing(&self, is_shared: bool) -> MutexGuard<'_, Standing> {
        self.inner.standings[usize::from(is_shared)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a node can keep instances, and knows the programs up to a revision of the catalog.
    async fn ask_aware(&self, node: NodeId, revision: u64) -> Aware {
        if node == self.inner.me {
            let body = revision.to_le_bytes();
            return self
                .answer_aware(&body)
                .await
                .map_or_else(|_| Aware::Silent, |answer| Aware::of(&answer));
        }
        let body = Bytes::copy_from_slice(&revision.to_le_bytes());
        match self.inner.peers.call(node, Class::Control, SERVICE_AWARE, body, ASK_MAX).await {
            Ok(answer) => Aware::of(&answer),
            Err(_) => Aware::Silent,
        }
    }

    async fn answer_aware(&self, body: &[u8]) -> Result<Bytes, String> {
        let revision = <[u8; 8]>::try_from(body).map(u64::from_le_bytes);
        let revision = revision.map_err(|_| "8 bytes are wanted".to_owned())?;
        if !self.inner.may_keep {
            return Ok(Bytes::from_static(&[Aware::NEVER]));
        }
        let mut aware = self.inner.aware.subscribe();
        let known = tokio::time::timeout(AWARE_MAX, aware.wait_for(|known| *known >= revision)).await;
        match known {
            Ok(Ok(_)) => Ok(Bytes::from_static(&[Aware::KNOWS])),
            Ok(Err(_)) | Err(_) => Err("this node's copy of the catalog is behind".to_owned()),
        }
    }
}

/// What a node says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aware {
    /// It keeps no instances and never will.
    Never,
    Knows,
    Silent,
}

impl Aware {
    const NEVER: u8 = 0;
    const KNOWS: u8 = 1;

    fn of(answer: &[u8]) -> Aware {
        match answer {
            [Aware::NEVER] => Aware::Never,
            [Aware::KNOWS] => Aware::Knows,
            _ => Aware::Silent,
        }
    }
}

/// What these rows say; one that can't be read is told and left out.
fn seen(found: &CatalogRows) -> Seen {
    fn read<T: serde::de::DeserializeOwned>(key: &str, row: &Versioned) -> Option<T> {
        let read = decode::<T>(key, row);
        read.inspect_err(|failure| tracing::error!(%failure, "a row of episodes can't be read"))
            .ok()
            .map(|(row, _)| row)
    }
    let homes = found.rows.iter().find(|(key, _)| key == rows::HOMES);
    let programs = found.rows.iter().filter(|(key, _)| key.starts_with(rows::PROGRAMS));
    Seen {
        revision: found.revision,
        homes: homes.and_then(|(key, row)| read(key, row)),
        programs: programs.filter_map(|(key, row)| read(key, row)).collect(),
    }
}

fn settings(me: NodeId) -> Settings {
    // Their retransmissions should not meet.
    let seed = u64::try_from(me.0 & u128::from(u64::MAX)).unwrap_or_default();
    Settings { seed, filter: Filter(filter::matches), ..Settings::default() }
}

/// A number that no other log has.
fn salt() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}
