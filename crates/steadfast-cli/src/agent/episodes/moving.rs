//! The keepers of instances whose homes move: when they are opened, who keeps what, and what happens while a store is away.
//!
//! Each agent that can keep instances of a kind says so in the catalog; who of those in the view keeps which home follows from the
//! two alone, so that a lost node's homes go to the others as soon as it is out of the view. A keeper whose store fails ends, and
//! the next one takes over all that it kept: requests are refused meanwhile, and the keeper of local instances does not
//! notice. It decides nothing about episodes. Read next: `mirror`, `shared`.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use steadfast::catalog::Txn;
use steadfast::episodes::store::HOMES;
use steadfast::episodes::{Keeper, KeeperError, Known, MirrorError, Mirrored, Parts, StoreError};
use steadfast_proto::catalog::{Key, View};
use steadfast_proto::episode::{Apart, share_homes};
use steadfast_proto::exchange::Text;
use steadfast_proto::ids::{Incarnation, NodeId};
use tokio::time::Instant;

use super::super::rows::{Rows, encode};
use super::carrier::{Wire, keeper_id};
use super::mirror::Others;
use super::rows::{Kind, SharingRow};
use super::{Room, Standing, salt, settings};
use crate::failure::Failure;

/// How soon a store is tried again at first.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest of these pauses.
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// How long a store may be away before others are to keep what this node kept.
const WITHDRAW: Duration = Duration::from_secs(5);
/// How often it is looked whether the keeper is there, and whether one is needed.
const LOOK: Duration = Duration::from_millis(200);
/// How often a row is tried to be changed that others change, too.
const ATTEMPTS: usize = 8;

/// Who is to keep which home of that kind, by what this node's copy of the catalog says.
pub(super) fn table(rows: &Rows, kind: Kind) -> Vec<NodeId> {
    share_homes(&sharers(rows, kind), HOMES)
}

/// The nodes among which homes of that kind move, by what this node's copy of the catalog says.
pub(super) fn sharers(rows: &Rows, kind: Kind) -> BTreeSet<NodeId> {
    let view = rows.get_stale::<View>(&Key::View).map(|(view, _)| view);
    let sharing = kind.sharing().and_then(|key| rows.get_stale_at::<SharingRow>(key));
    let sharing = sharing.map(|(row, _)| row).unwrap_or_default();
    let is_member = |node: &NodeId| view.as_ref().is_some_and(|view| view.has(*node));
    sharing.nodes.into_iter().filter(is_member).collect()
}

impl Room {
    /// Keeps a keeper of instances of that kind open for as long as a program has any. `was_any` says whether any node ever did.
    pub(super) async fn keep_moving(self, kind: Kind, was_any: bool) {
        let is_able = self.inner.may_keep && (kind != Kind::Shared || self.inner.shared.is_some());
        if !is_able {
            // Before this start it may have been.
            while was_any && !self.say_sharing(kind, false).await {
                tokio::time::sleep(PAUSE_MAX).await;
            }
            return;
        }
        let (mut pause, mut away_since, mut lives) = (PAUSE_MIN, None, 0_u64);
        while !self.inner.is_ending.load(Ordering::Relaxed) {
            let is_told = self.inner.told.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            if !is_told || self.programs_in(kind).is_empty() {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            lives += 1;
            let why = match self.open_moving(kind, lives).await {
                Ok(keeper) => {
                    let opened = Instant::now();
                    let why = self.serve_moving(kind, &keeper).await;
                    // One that fails as soon as it has homes leaves them to others, however often it can be opened.
                    if opened.elapsed() > WITHDRAW {
                        (pause, away_since) = (PAUSE_MIN, None);
                    }
                    why
                }
                Err(error) => error,
            };
            if let KeeperError::Store(
                why @ (StoreError::Fenced | StoreError::Mirror(MirrorError::Misplaced)),
            ) = &why
            {
                tracing::info!(kind = kind.word(), %why, "the keeper of instances reads again what is its own");
                *self.standing(kind) = Standing::Idle;
                // One that is overtaken as soon as it reads must not ask without end.
                tokio::time::sleep(PAUSE_MIN).await;
                continue;
            }
            if away_since.is_none() && !self.inner.is_ending.load(Ordering::Relaxed) {
                tracing::warn!(kind = kind.word(), error = %why, "a store of instances can't be used; it is tried again");
            }
            *self.standing(kind) = Standing::Failed(why.to_string());
            let since = *away_since.get_or_insert_with(Instant::now);
            if since.elapsed() > WITHDRAW {
                self.say_sharing(kind, false).await;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn open_moving(&self, kind: Kind, lives: u64) -> Result<Keeper, KeeperError> {
        let room = self.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let inner = &room.inner;
            let me = keeper_id(inner.me, kind);
            let (parties, effects) = (inner.parties.clone(), inner.effects.clone());
            let (net, own) = ((inner.peers.clone(), inner.runtime.clone()), (me, inner.keepers.clone()));
            let parts = Parts {
                me,
                settings: settings(me),
                carrier: Box::new(Wire::new(net, parties, effects, own)),
                // Above those of all keepers before it in this life of the node.
                life: Incarnation((inner.life.0 << 44) | (lives << 20)),
            };
            let known = inner.known(kind).unwrap_or_default();
            match (kind, &inner.shared) {
                (Kind::Shared, Some(store)) => Keeper::start(store.open(&inner.runtime, me)?, parts, known),
                (Kind::Mirror, _) => {
                    let copies = room.copies().map_err(StoreError::from)?;
                    // Who says that it keeps instances has a disk that takes them.
                    copies.prove().map_err(StoreError::from)?;
                    let cluster = Arc::new(Others::new(room.clone()));
                    let store = Mirrored::new(&inner.runtime, (me, salt()), copies, cluster);
                    Keeper::start(store, parts, known)
                }
                (Kind::Local | Kind::Shared, _) => Err(KeeperError::Ended),
            }
        });
        let keeper = opened.await.unwrap_or(Err(KeeperError::Ended))?;
        tracing::info!(kind = kind.word(), "this node can keep instances whose homes move");
        self.inner.keepers.set(kind, Some(keeper.clone()));
        *self.standing(kind) = Standing::Open(keeper.clone());
        // What was told while it was opened.
        self.tell_keeper(kind, &keeper);
        Ok(keeper)
    }

    /// Returns when the keeper has ended, with the reason.
    async fn serve_moving(&self, kind: Kind, keeper: &Keeper) -> KeeperError {
        let mut is_told = false;
        while keeper.look(|_| ()).await.is_ok() {
            if !is_told {
                is_told = self.say_sharing(kind, true).await;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.inner.keepers.set(kind, None);
        let keeper = keeper.clone();
        let ended = tokio::task::spawn_blocking(move || keeper.stop()).await;
        match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => KeeperError::Ended,
        }
    }

    /// Says in the catalog whether this node can keep instances of that kind; gives whether the catalog has it.
    async fn say_sharing(&self, kind: Kind, can: bool) -> bool {
        for _ in 0..ATTEMPTS {
            match self.try_say_sharing(kind, can).await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(failure) => {
                    tracing::debug!(%failure, "the catalog can't be told who keeps instances");
                    return false;
                }
            }
        }
        false
    }

    async fn try_say_sharing(&self, kind: Kind, can: bool) -> Result<bool, Failure> {
        let Some(key) = kind.sharing() else { return Ok(true) };
        let found = self.inner.rows.get_at::<SharingRow>(key).await?;
        let (mut row, version) = found.unwrap_or_default();
        let is_new = if can { row.nodes.insert(self.inner.me) } else { row.nodes.remove(&self.inner.me) };
        if !is_new {
            return Ok(true);
        }
        let members = self.inner.rows.names();
        row.nodes.retain(|node| members.contains_key(node));
        let txn = Txn::compare_and_set(key.to_owned(), version, encode(&row)?);
        Ok(self.inner.rows.commit(txn).await?.succeeded)
    }

    /// The programs whose instances are of that kind.
    pub(super) fn programs_in(&self, kind: Kind) -> BTreeSet<Text> {
        let all = self.programs().into_iter().filter(|row| row.store == kind);
        all.map(|row| row.name.as_str().into()).collect()
    }
}

impl super::Inner {
    /// What a keeper is to know, by this node's copy of the catalog.
    pub(super) fn known(&self, kind: Kind) -> Option<Known> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.as_ref()?;
        let homes = |kind: Kind| match kind {
            Kind::Local => told.homes.clone(),
            Kind::Mirror | Kind::Shared => {
                table(&self.rows, kind).into_iter().map(|node| keeper_id(node, kind)).collect()
            }
        };
        let of = |kind: Kind| told.programs.iter().filter(move |(name, _)| told.kind(name) == kind);
        let others = Kind::ALL.into_iter().filter(|other| *other != kind);
        let apart = others.map(|other| Apart {
            programs: of(other).map(|(name, _)| name.clone()).collect(),
            homes: homes(other),
        });
        let programs = of(kind).map(|(name, program)| (name.clone(), program.clone())).collect();
        Some(Known {
            homes: homes(kind),
            apart: apart.filter(|apart| !apart.programs.is_empty()).collect(),
            programs,
        })
    }
}
