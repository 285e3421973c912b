//! Episodes on this node: when their keeper is opened, what it is told of the cluster, and how it ends.
//!
//! A node without episodes pays nothing: the keeper is opened when the catalog gives this node homes, and then knows them and
//! all programs before it goes on with anything, since a message to another node must not be taken for one to nobody. It
//! decides nothing about episodes. Read `deploy` for how programs come into the catalog, `requests` for what people ask,
//! `moving` for the other keepers, those of instances which several nodes can go on with.

mod carrier;
mod deploy;
mod effects;
mod list;
mod mirror;
mod moving;
mod outside;
mod parts;
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
use steadfast::episodes::mirrored::Copies;
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
use self::rows::{HomesRow, Kind, ProgramRow};
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
    /// How the keepers are, by the kind of their instances.
    standings: [Mutex<Standing>; 3],
    /// What this node holds of mirrored instances, once it was needed.
    copies: Mutex<Option<Copies>>,
    /// What other nodes are asking of them.
    asking: parts::Open,
    /// How shared instances are reached, if this node does.
    shared: Option<SharedStore>,
    /// What all are told; nothing before the catalog was read.
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
    /// Where the instances of those are that are not local.
    kinds: BTreeMap<Text, Kind>,
}

impl Told {
    fn kind(&self, program: &Text) -> Kind {
        self.kinds.get(program).copied().unwrap_or_default()
    }
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
            standings: [const { Mutex::new(Standing::Idle) }; 3],
            copies: Mutex::default(),
            asking: parts::Open::default(),
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
            let keeper = frames.keeper(Kind::Local);
            Box::pin(async move {
                let keeper = keeper.map_err(|failure| failure.message)?;
                let keeper = keeper.ok_or_else(|| "this node keeps no instances yet".to_owned())?;
                carrier::take(&keeper, from, body).await
            })
        });
        let keepers = room.inner.keepers.clone();
        services.register(carrier::SERVICE_MOVING, move |from, body| {
            let keepers = keepers.clone();
            Box::pin(async move { carrier::take_moving(&keepers, from, body).await })
        });
        let aware = room.clone();
        services.register(SERVICE_AWARE, move |_, body| {
            let aware = aware.clone();
            Box::pin(async move { aware.answer_aware(&body).await })
        });
        room.offer_copies(services);
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
        for kind in Kind::MOVING {
            let was_any = found.rows.iter().any(|(key, _)| Some(key.as_str()) == kind.sharing());
            tokio::spawn(self.clone().keep_moving(kind, was_any));
        }
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
            *self.inner.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(Told {
                homes: homes.nodes.clone(),
                programs: runners.deployments(&seen.programs),
                kinds: seen.programs.iter().map(|row| (row.name.as_str().into(), row.store)).collect(),
            });
            let standing = self.standing(Kind::Local).clone();
            match standing {
                Standing::Open(keeper) => self.tell_keeper(Kind::Local, &keeper),
                Standing::Idle if homes.nodes.contains(&self.inner.me) || self.inner.folder.exists() => {
                    self.open().await;
                }
                Standing::Idle | Standing::Failed(_) => {}
            }
            for kind in Kind::MOVING {
                let standing = self.standing(kind).clone();
                if let Standing::Open(keeper) = standing {
                    self.tell_keeper(kind, &keeper);
                }
            }
            self.tidy_copies();
        }
        self.inner.aware.send_replace(seen.revision);
    }

    fn tell_keeper(&self, kind: Kind, keeper: &Keeper) {
        let Some(known) = self.inner.known(kind) else { return };
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
            let known = inner.known(Kind::Local).unwrap_or_default();
            Keeper::start(Embedded::open(&inner.folder, salt())?, parts, known)
        });
        let opened = opened.await.unwrap_or(Err(KeeperError::Ended));
        let standing = match opened {
            Ok(keeper) => {
                tracing::info!(folder = %self.inner.folder.display(), "this node keeps instances");
                self.inner.keepers.set(Kind::Local, Some(keeper.clone()));
                tokio::spawn(self.clone().notice_end(keeper.clone()));
                Standing::Open(keeper)
            }
            Err(error) => {
                tracing::error!(%error, "this node can keep no instances");
                Standing::Failed(error.to_string())
            }
        };
        *self.standing(Kind::Local) = standing;
    }

    /// Notes why the keeper has ended, when it has.
    async fn notice_end(self, keeper: Keeper) {
        while keeper.look(|_| ()).await.is_ok() {
            tokio::time::sleep(LOOK).await;
        }
        let ended = tokio::task::spawn_blocking(move || keeper.stop()).await;
        if let Ok(Err(error)) = ended {
            self.inner.keepers.set(Kind::Local, None);
            *self.standing(Kind::Local) = Standing::Failed(error.to_string());
        }
    }

    /// Makes everything durable and ends.
    pub(super) async fn stop(&self) {
        self.inner.is_ending.store(true, Ordering::Relaxed);
        for kind in Kind::ALL.into_iter().rev() {
            let standing = self.standing(kind).clone();
            let Standing::Open(keeper) = standing else { continue };
            let stopped = tokio::task::spawn_blocking(move || keeper.stop()).await;
            if let Ok(Err(error)) = stopped {
                tracing::error!(%error, "a keeper of instances did not end well; the next start goes on from what it had committed");
            }
        }
    }

    /// Why this node keeps no instances although it should.
    pub(super) fn failures(&self) -> Vec<String> {
        let failed = Kind::ALL.into_iter().filter_map(|kind| match &*self.standing(kind) {
            Standing::Failed(why) => {
                Some(format!("this node runs no episodes of {} instances: {why}", kind.word()))
            }
            Standing::Idle | Standing::Open(_) => None,
        });
        failed.chain(self.unmirrored()).collect()
    }

    /// The keeper of instances of that kind, if one is needed here.
    fn keeper(&self, kind: Kind) -> Result<Option<Keeper>, Failure> {
        let why = match &*self.standing(kind) {
            Standing::Idle => return Ok(None),
            Standing::Open(keeper) => return Ok(Some(keeper.clone())),
            Standing::Failed(why) => why.clone(),
        };
        Err(match kind {
            Kind::Local => {
                Failure::new(Code::EpisodesFailed, format!("this node keeps no instances any more: {why}"))
            }
            Kind::Mirror => Failure::new(Code::Mirror, why),
            Kind::Shared => Failure::new(Code::SharedStore, why),
        })
    }

    /// The keeper, once it is open, if one is needed here: after a start that takes a moment.
    pub(super) async fn opened(&self) -> Result<Option<Keeper>, Failure> {
        let mut aware = self.inner.aware.subscribe();
        let opened = aware.wait_for(|_| !self.is_opening());
        if tokio::time::timeout(OPEN_MAX, opened).await.is_err() {
            let message = "this node is still reading what its instances did; try again";
            return Err(Failure::new(Code::PeerUnreachable, message));
        }
        self.keeper(Kind::Local)
    }

    /// The keeper that the instance of that name is, or would be, kept by, once it is open.
    pub(super) async fn opened_for(&self, name: &Name) -> Result<Option<Keeper>, Failure> {
        let kind = self.kind(name);
        let (code, place) = match kind {
            Kind::Local => return self.opened().await,
            Kind::Mirror => (Code::Mirror, "mirrored"),
            Kind::Shared => (Code::SharedStore, "in the shared store"),
        };
        let until = Instant::now() + OPEN_MAX;
        let why = loop {
            if let Some(keeper) = self.keeper(kind)? {
                return Ok(Some(keeper));
            }
            if !self.inner.may_keep {
                break "this node keeps no instances, and no node that does can go on with it now";
            }
            if kind == Kind::Shared && self.inner.shared.is_none() {
                break "this node's configuration has no [episodes.shared], and no other node reaches it";
            }
            if Instant::now() > until {
                break "this node can't go on with it yet";
            }
            tokio::time::sleep(LOOK_OPEN).await;
        };
        Err(Failure::new(code, format!("{name} is {place}: {why}")))
    }

    /// The keepers that are open.
    pub(super) async fn all_opened(&self) -> Result<Vec<Keeper>, Failure> {
        let local = self.opened().await?;
        // Without another store its instances are missing, and the others there.
        let moving = Kind::MOVING.into_iter().filter_map(|kind| self.keeper(kind).unwrap_or_default());
        Ok(local.into_iter().chain(moving).collect())
    }

    /// Where the instance of that name is kept, or would be.
    fn kind(&self, name: &Name) -> Kind {
        let key = format!("{}{}", rows::PROGRAMS, name.program());
        self.inner.rows.get_stale_at::<ProgramRow>(&key).map(|(row, _)| row.store).unwrap_or_default()
    }

    /// Whether a keeper is needed and not there yet.
    fn is_opening(&self) -> bool {
        let is_idle = matches!(&*self.standing(Kind::Local), Standing::Idle);
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
        let nodes = match self.kind(name) {
            Kind::Local => self.inner.rows.get_stale_at::<HomesRow>(rows::HOMES)?.0.nodes,
            kind @ (Kind::Mirror | Kind::Shared) => moving::table(&self.inner.rows, kind),
        };
        nodes.get(home_of(name, nodes.len())).copied()
    }

    /// All nodes that keep instances, unless there are no programs.
    pub(super) fn all_homes(&self) -> Option<BTreeSet<NodeId>> {
        let (homes, _) = self.inner.rows.get_stale_at::<HomesRow>(rows::HOMES)?;
        let used = Kind::MOVING.into_iter().filter(|kind| !self.programs_in(*kind).is_empty());
        let moving = used.flat_map(|kind| moving::sharers(&self.inner.rows, kind));
        Some(homes.nodes.into_iter().chain(moving).collect())
    }

    /// All programs, by name.
    fn programs(&self) -> Vec<ProgramRow> {
        self.inner.rows.all_stale::<ProgramRow>(rows::PROGRAMS).into_iter().map(|(row, _)| row).collect()
    }

    fn standing(&self, kind: Kind) -> MutexGuard<'_, Standing> {
        self.inner.standings[kind as usize].lock().unwrap_or_else(PoisonError::into_inner)
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
