//! The keeper of shared instances on this node: when it is opened, who else keeps some, and what happens while PostgreSQL is away.
//!
//! Each agent that reaches the store says so in the catalog; who of those in the view keeps which home follows from the two
//! alone, so that a lost node's homes go to the others as soon as it is out of the view. A keeper whose store fails ends, and
//! the next one takes over all that it kept: requests are refused meanwhile, and the keeper of local instances does not
//! notice. It decides nothing about episodes; `steadfast::episodes::shared` says why two nodes that both believe that they keep a
//! home are harmless.

use std::collections::BTreeSet;
use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use steadfast::catalog::Txn;
use steadfast::episodes::store::HOMES;
use steadfast::episodes::{Keeper, KeeperError, Known, Parts, Shared, SharedError, StoreError};
use steadfast_proto::catalog::{Key, View};
use steadfast_proto::episode::{Apart, share_homes};
use steadfast_proto::exchange::Text;
use steadfast_proto::ids::{ClusterId, Incarnation, NodeId};
use tokio::time::Instant;
use tokio_postgres::NoTls;

use super::super::rows::{Rows, encode};
use super::carrier::{Wire, shared_id};
use super::rows::{SHARING, SharingRow};
use super::{Room, Standing, settings};
use crate::config::episodes::PostgresqlConfig;
use crate::episodes::tls::Sealing;
use crate::events::sinks::connect::Trust;
use crate::failure::Failure;

/// How soon the store is tried again at first.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest of these pauses.
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// How long the store may be away before others are to keep what this node kept.
const WITHDRAW: Duration = Duration::from_secs(5);
/// How often it is looked whether the keeper is there, and whether one is needed.
const LOOK: Duration = Duration::from_millis(200);
/// How often a row is tried to be changed that others change, too.
const ATTEMPTS: usize = 8;

/// The store that nodes share, as this node reaches it.
#[derive(Clone, Debug)]
pub(super) struct SharedStore {
    config: PostgresqlConfig,
    cluster: ClusterId,
}

impl SharedStore {
    pub(super) fn new(config: PostgresqlConfig, cluster: ClusterId) -> SharedStore {
        SharedStore { config, cluster }
    }

    /// Connects; blocks.
    pub(super) fn open(&self, runtime: &tokio::runtime::Handle, me: NodeId) -> Result<Shared, StoreError> {
        let unread = |what: &dyn std::fmt::Display, error: &dyn std::fmt::Display| {
            SharedError::Unreachable(format!("{what}: {error}"))
        };
        let mut config = self.config.address.0.clone();
        config.application_name("steadfast");
        if let Some(path) = &self.config.password_file {
            let password = std::fs::read_to_string(path);
            let password = password.map_err(|error: io::Error| unread(&path.display(), &error))?;
            config.password(password.trim_end_matches(['\r', '\n']));
        }
        let own = (self.cluster, me);
        match &self.config.ca {
            None => Shared::open(runtime, &config, NoTls, own),
            Some(path) => {
                let trust = Trust::load(Some(path)).map_err(|error| unread(&path.display(), &error))?;
                Shared::open(runtime, &config, Sealing(trust), own)
            }
        }
    }
}

/// Who keeps which home of the shared store: the nodes of the view that reach it, by what this node's copy of the catalog says.
pub(super) fn table(rows: &Rows) -> Vec<NodeId> {
    let view = rows.get_stale::<View>(&Key::View).map(|(view, _)| view);
    let sharing = rows.get_stale_at::<SharingRow>(SHARING).map(|(row, _)| row).unwrap_or_default();
    let is_member = |node: &NodeId| view.as_ref().is_some_and(|view| view.has(*node));
    share_homes(&sharing.nodes.into_iter().filter(is_member).collect(), HOMES)
}

impl Room {
    /// Keeps a keeper of shared instances open for as long as a program has any. `is_shared` says whether any node ever did.
    pub(super) async fn share(self, is_shared: bool) {
        let Some(store) = self.inner.shared.clone().filter(|_| self.inner.may_keep) else {
            // Before this start it may have reached it.
            while is_shared && !self.say_sharing(false).await {
                tokio::time::sleep(PAUSE_MAX).await;
            }
            return;
        };
        let (mut pause, mut away_since, mut lives) = (PAUSE_MIN, None, 0_u64);
        while !self.inner.is_ending.load(Ordering::Relaxed) {
            let is_told = self.inner.told.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            if !is_told || self.shared_programs().is_empty() {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            lives += 1;
            let why = match self.open_shared(&store, lives).await {
                Ok(keeper) => {
                    (pause, away_since) = (PAUSE_MIN, None);
                    self.serve_shared(&keeper).await
                }
                Err(error) => error,
            };
            if matches!(why, KeeperError::Store(StoreError::Fenced)) {
                tracing::info!(
                    "another node keeps shared instances that this one kept; it reads again what is its own"
                );
                *self.standing(true) = Standing::Idle;
                continue;
            }
            if away_since.is_none() && !self.inner.is_ending.load(Ordering::Relaxed) {
                tracing::warn!(error = %why, "the shared store of instances can't be used; it is tried again");
            }
            *self.standing(true) = Standing::Failed(why.to_string());
            let since = *away_since.get_or_insert_with(Instant::now);
            if since.elapsed() > WITHDRAW {
                self.say_sharing(false).await;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn open_shared(&self, store: &SharedStore, lives: u64) -> Result<Keeper, KeeperError> {
        let (room, store) = (self.clone(), store.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let inner = &room.inner;
            let me = shared_id(inner.me);
            let opened = store.open(&inner.runtime, me)?;
            let (parties, effects) = (inner.parties.clone(), inner.effects.clone());
            let (net, own) = ((inner.peers.clone(), inner.runtime.clone()), (me, inner.keepers.clone()));
            let parts = Parts {
                me,
                settings: settings(me),
                carrier: Box::new(Wire::new(net, parties, effects, own)),
                // Above those of all keepers before it in this life of the node.
                life: Incarnation((inner.life.0 << 44) | (lives << 20)),
            };
            Keeper::start(opened, parts, inner.known(true).unwrap_or_default())
        });
        let keeper = opened.await.unwrap_or(Err(KeeperError::Ended))?;
        tracing::info!("this node reaches the shared store of instances");
        self.inner.keepers.set(true, Some(keeper.clone()));
        *self.standing(true) = Standing::Open(keeper.clone());
        // What was told while it was opened.
        self.tell_keeper(true, &keeper);
        Ok(keeper)
    }

    /// Returns when the keeper has ended, with the reason.
    async fn serve_shared(&self, keeper: &Keeper) -> KeeperError {
        let mut is_told = false;
        while keeper.look(|_| ()).await.is_ok() {
            if !is_told {
                is_told = self.say_sharing(true).await;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.inner.keepers.set(true, None);
        let keeper = keeper.clone();
        let ended = tokio::task::spawn_blocking(move || keeper.stop()).await;
        match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => KeeperError::Ended,
        }
    }

    /// Says in the catalog whether this node reaches the store; gives whether the catalog has it.
    async fn say_sharing(&self, reaches: bool) -> bool {
        for _ in 0..ATTEMPTS {
            match self.try_say_sharing(reaches).await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(failure) => {
                    tracing::debug!(%failure, "the catalog can't be told who reaches the shared store");
                    return false;
                }
            }
        }
        false
    }

    async fn try_say_sharing(&self, reaches: bool) -> Result<bool, Failure> {
        let found = self.inner.rows.get_at::<SharingRow>(SHARING).await?;
        let (mut row, version) = found.unwrap_or_default();
        let is_new = if reaches { row.nodes.insert(self.inner.me) } else { row.nodes.remove(&self.inner.me) };
        if !is_new {
            return Ok(true);
        }
        let members = self.inner.rows.names();
        row.nodes.retain(|node| members.contains_key(node));
        let txn = Txn::compare_and_set(SHARING.to_owned(), version, encode(&row)?);
        Ok(self.inner.rows.commit(txn).await?.succeeded)
    }

    /// The programs whose instances are in the shared store.
    pub(super) fn shared_programs(&self) -> BTreeSet<Text> {
        let all = self.programs().into_iter().filter(|row| row.is_shared);
        all.map(|row| row.name.as_str().into()).collect()
    }

    /// Tries whether a program can be given to the shared store.
    pub(super) async fn try_shared(&self) -> Result<(), String> {
        let Some(store) = self.inner.shared.clone() else {
            return Err("this node's configuration has no [episodes.shared]".to_owned());
        };
        let (runtime, me) = (self.inner.runtime.clone(), shared_id(self.inner.me));
        let opened = tokio::task::spawn_blocking(move || store.open(&runtime, me).map(drop)).await;
        opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

impl super::Inner {
    /// What a keeper is to know, by this node's copy of the catalog.
    pub(super) fn known(&self, is_shared: bool) -> Option<Known> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.as_ref()?;
        let shared: Vec<NodeId> = table(&self.rows).into_iter().map(shared_id).collect();
        let (local, programs) = (told.homes.clone(), told.programs.clone());
        let (ours, others): (Vec<_>, Vec<_>) =
            programs.into_iter().partition(|(name, _)| told.shared.contains(name) == is_shared);
        let others = others.into_iter().map(|(name, _)| name).collect();
        let (homes, away) = if is_shared { (shared, local) } else { (local, shared) };
        let apart = Apart { programs: others, homes: away };
        Some(Known { homes, apart, programs: ours.into_iter().collect() })
    }
}
