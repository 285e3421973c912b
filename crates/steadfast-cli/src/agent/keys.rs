//! Cluster keys and certificates that change while everybody works: rotation, renewal, revocation.
//!
//! A rotation goes through three committed states, each true on every member before the next is committed: the new key
//! is *accepted* by all, all *seal* with it, the old one is *retired*. So at every moment each member opens what every
//! other one seals, and no heartbeat is lost. The catalog holds numbers and a hash; the key itself goes from node to node
//! over mutual TLS. It decides nothing about membership: `revoke` refuses a member of the view.
//! Read next: `steadfast::net::seal` (sessions under two keys), `steadfast::net::tls::live` (what a handshake refuses).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steadfast::catalog::Txn;
use steadfast::identity::{CLUSTER_KEYS_MAX, ClusterKey, Identity, Membership};
use steadfast::net::rpc::{Class, Peers, Services};
use steadfast::net::tls::{Credentials, NodeKey, RENEW_AGE, serial_of};
use steadfast::node::{Keys, NodeHandle};
use steadfast_proto::catalog::{Key, NodeRow};
use steadfast_proto::devices::DeviceKey;
use steadfast_proto::ids::{Digest, NodeId};
use tokio::task::spawn_blocking;

use super::rows::{self, Rows};
use super::state::{self, Hint, State};
use super::{Agent, admit, found::tls_failure};
use crate::api::types;
use crate::codes::Code;
use crate::failure::Failure;

/// The RPC service by which members hand keys to each other.
const SERVICE_KEYS: u8 = 21;
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long each step of a rotation may take until every member has taken it.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
const STEP_PAUSE: Duration = Duration::from_millis(50);
/// How soon a key that could not be fetched is asked for again.
const RETRY: Duration = Duration::from_millis(500);
/// How often the age of the own certificate is looked at.
const AGE_EVERY: Duration = Duration::from_secs(3600);
/// Clocks of nodes that issue certificates may differ by this much.
const CLOCKS_MAX: Duration = Duration::from_secs(3600);
/// How many keys before the newest are fetched by a node that missed them.
const KEYS_BEHIND_MAX: u32 = 4;
/// Most nodes whose certificates are revoked.
const REVOKED_MAX: usize = 256;

const ROW: &str = "keys";
const REVOKED: &str = "revoked/";

/// What of the membership changes while the agent runs, for all who need it.
pub(crate) type SharedMembership = Arc<RwLock<Membership>>;

/// The membership as it is now.
pub(super) fn read(shared: &SharedMembership) -> Membership {
    shared.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The catalog's word on cluster keys. Without a row the first key is all there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeysRow {
    /// The newest epoch.
    pub(super) newest: u32,
    /// A hash of the newest key, so that nobody takes another for it.
    pub(super) hash: Digest,
    /// The node that made it.
    pub(super) maker: NodeId,
    /// The epoch that seals.
    pub(super) sealing: u32,
    /// The oldest epoch that opens.
    pub(super) accepted_min: u32,
    /// When the row last changed, in milliseconds since 1970, by the proposer's clock; for people only.
    pub(super) changed_unix_ms: u64,
}

impl KeysRow {
    /// Whether this may be the key of its epoch: the newest is known by its hash, an older one is a member's word.
    fn admits(&self, key: &ClusterKey) -> bool {
        key.epoch < self.newest || (key.epoch == self.newest && hash(key) == self.hash)
    }
}

/// A node that was removed for good: its certificates up to a serial are worth nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RevokedRow {
    /// The node.
    pub(super) node: NodeId,
    /// The name that it bore.
    pub(super) name: String,
    /// The highest serial that is refused.
    pub(super) serial: u64,
}

/// What members ask each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Which keys the node has and uses.
    State,
    /// The key of this epoch.
    Key(u32),
    /// A certificate over this public key, for the node that asks.
    Certificate(Vec<u8>),
}

/// What a node's datagrams go by now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Using {
    /// Epochs that open, with a hash of each key.
    held: BTreeMap<u32, Digest>,
    /// The epoch that seals.
    sealing: u32,
    /// The oldest epoch that opens.
    accepted_min: u32,
}

/// The lowest serial that a new certificate of `node` may have.
pub(super) async fn serial_min(rows: &Rows, node: NodeId) -> Result<u64, Failure> {
    let revoked: Option<(RevokedRow, u64)> = rows.get_at(&format!("{REVOKED}{node}")).await?;
    Ok(revoked.map_or(0, |(row, _)| row.serial.saturating_add(1)))
}

/// The epoch that seals, as this node's copy of the catalog has it; before it has one, as it was told at its join.
pub(super) fn sealing_epoch(rows: &Rows, membership: &Membership) -> u32 {
    if let Some((row, _)) = rows.get_stale_at::<KeysRow>(ROW) {
        return row.sealing;
    }
    match State::of(membership).sealing_epoch {
        // Never the newest: that may be one whose rotation broke off before anybody heard of it.
        0 => membership.cluster_keys.iter().map(|key| key.epoch).min().unwrap_or(0),
        epoch => epoch,
    }
}

/// This node's keys and certificate: on disk, in use, and as told to others. Clones share them.
#[derive(Clone)]
pub(crate) struct Keyring {
    inner: Arc<Inner>,
}

struct Inner {
    own: NodeId,
    identity: Arc<Mutex<Option<Identity>>>,
    membership: SharedMembership,
    credentials: Credentials,
    rows: Rows,
    peers: Peers,
    services: Services,
    using: Mutex<Using>,
    /// Held through a rotation, so that one node takes one at a time.
    rotating: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Keyring").field("own", &self.inner.own).finish_non_exhaustive()
    }
}

impl Keyring {
    pub(super) fn new(
        identity: Arc<Mutex<Option<Identity>>>,
        membership: Membership,
        credentials: Credentials,
        rows: Rows,
        peers: Peers,
        services: Services,
    ) -> Keyring {
        let sealing = sealing_epoch(&rows, &membership);
        let inner = Inner {
            own: credentials.node(),
            identity,
            membership: Arc::new(RwLock::new(membership)),
            credentials,
            rows,
            peers,
            services,
            using: Mutex::new(Using { sealing, ..Using::default() }),
            rotating: tokio::sync::Mutex::default(),
        };
        let keyring = Keyring { inner: Arc::new(inner) };
        keyring.revoke_known();
        keyring
    }

    /// The membership, shared with those who must see it change.
    pub(super) fn shared(&self) -> SharedMembership {
        Arc::clone(&self.inner.membership)
    }

    /// Every key that this node holds: what was sealed under an old one is opened with it.
    pub(crate) fn keys(&self) -> Vec<ClusterKey> {
        read(&self.inner.membership).cluster_keys
    }

    /// The key that seals.
    pub(crate) fn sealing_key(&self) -> Option<ClusterKey> {
        let sealing = self.using().sealing;
        self.keys().into_iter().find(|key| key.epoch == sealing)
    }

    /// The keys that datagrams begin with: none that others may not have yet.
    pub(super) fn first_keys(&self) -> Vec<ClusterKey> {
        let sealing = self.using().sealing;
        let mut keys = self.keys();
        if keys.iter().any(|key| key.epoch <= sealing) {
            keys.retain(|key| key.epoch <= sealing);
        }
        keys
    }

    fn using(&self) -> Using {
        self.inner.using.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers other members.
    pub(super) fn offer(&self) {
        let keyring = self.clone();
        self.inner.services.register(SERVICE_KEYS, move |peer, request| {
            let keyring = keyring.clone();
            Box::pin(async move { keyring.answer(peer, &request).await })
        });
    }

    async fn answer(&self, peer: NodeId, request: &[u8]) -> Result<Bytes, String> {
        if self.inner.rows.get_stale::<NodeRow>(&Key::Node(peer)).is_none() {
            return Err(format!("node {peer} has no row in the catalog, so it gets no keys"));
        }
        let ask: Ask =
            serde_json::from_slice(request).map_err(|error| format!("not a question of keys: {error}"))?;
        match ask {
            Ask::State => {
                serde_json::to_vec(&self.using()).map(Bytes::from).map_err(|error| error.to_string())
            }
            Ask::Key(epoch) => {
                let key = self.keys().into_iter().find(|key| key.epoch == epoch);
                let key = key.ok_or_else(|| format!("this node does not hold the cluster key {epoch}"))?;
                Ok(Bytes::copy_from_slice(key.secret()))
            }
            Ask::Certificate(public) => {
                let membership = read(&self.inner.membership);
                let serial = serial_min(&self.inner.rows, peer).await.map_err(|failure| failure.message)?;
                let authority = admit::authority(&membership).map_err(|failure| failure.message)?;
                authority
                    .issue_from(peer, &public, serial)
                    .map(Bytes::from)
                    .map_err(|error| error.to_string())
            }
        }
    }

    /// Keeps this node in step with the catalog's word for as long as it runs.
    pub(super) async fn follow(self, node: NodeHandle) {
        let catalog = Arc::clone(self.inner.rows.catalog());
        let mut keys = catalog.watch(ROW.to_owned(), catalog.range_stale(ROW).revision);
        let mut revoked = catalog.watch(REVOKED.to_owned(), catalog.range_stale(REVOKED).revision);
        let mut age = tokio::time::interval(AGE_EVERY);
        let mut behind = false;
        loop {
            self.revoke_known();
            let failure = self.catch_up(&node).await.err();
            if let Some(failure) = &failure
                && !behind
            {
                tracing::warn!(%failure, "this node is behind with the cluster's keys");
            }
            behind = failure.is_some();
            let closed = tokio::select! {
                changed = keys.next() => changed.is_err(),
                changed = revoked.next() => changed.is_err(),
                _ = age.tick() => false,
                () = tokio::time::sleep(RETRY), if behind => false,
            };
            if closed {
                return;
            }
        }
    }

    /// Fetches, stores and uses what the catalog says; then renews the certificate if it is time.
    async fn catch_up(&self, node: &NodeHandle) -> Result<(), Failure> {
        let mut renew_for = 0;
        if let Some((row, _)) = self.inner.rows.get_stale_at::<KeysRow>(ROW) {
            self.fetch_missing(&row).await?;
            let (accepted, sealing, accepted_min) = (self.keys(), row.sealing, row.accepted_min);
            let held = accepted.iter().map(|key| (key.epoch, hash(key))).collect();
            node.set_keys(Keys { accepted, sealing, accepted_min });
            // Told to others only now: what this node says that it holds, its datagrams open with.
            let using = Using { held, sealing, accepted_min };
            *self.inner.using.lock().unwrap_or_else(PoisonError::into_inner) = using;
            renew_for = row.sealing;
        }
        self.renew(renew_for).await
    }

    /// Makes every key durable that others may seal with and this node does not hold: after a long absence several.
    async fn fetch_missing(&self, row: &KeysRow) -> Result<(), Failure> {
        let oldest = row.accepted_min.max(row.newest.saturating_sub(KEYS_BEHIND_MAX));
        for epoch in oldest..=row.newest {
            let held = self.keys().into_iter().any(|key| key.epoch == epoch && row.admits(&key));
            if !held {
                let key = self.fetch(row, epoch).await?;
                self.store(move |membership| keep_key(membership, key)).await?;
            }
        }
        Ok(())
    }

    /// A key from whoever has it, the newest one's maker first.
    async fn fetch(&self, row: &KeysRow, epoch: u32) -> Result<ClusterKey, Failure> {
        let nodes = self.inner.rows.all_stale::<NodeRow>("node/");
        let others = nodes.into_iter().map(|(row, _)| row.id).filter(|id| *id != row.maker);
        for node in std::iter::once(row.maker).chain(others).filter(|id| *id != self.inner.own) {
            let Some(answer) = self.ask(node, &Ask::Key(epoch)).await else { continue };
            let Ok(secret) = <[u8; 32]>::try_from(&answer[..]) else { continue };
            let key = ClusterKey::new(epoch, secret);
            if row.admits(&key) {
                return Ok(key);
            }
        }
        Err(Failure::new(
            Code::PeerUnreachable,
            format!("no node that can be reached holds the cluster key {epoch}"),
        ))
    }

    async fn ask(&self, node: NodeId, ask: &Ask) -> Option<Bytes> {
        let body = serde_json::to_vec(ask).ok()?;
        let answer = self.inner.peers.call(node, Class::Control, SERVICE_KEYS, body, ASK_TIMEOUT).await;
        answer.inspect_err(|error| tracing::debug!(%error, "a question of keys has no answer")).ok()
    }

    /// Changes the membership on disk, then in memory.
    async fn store(&self, change: impl FnOnce(&mut Membership) + Send + 'static) -> Result<(), Failure> {
        let inner = Arc::clone(&self.inner);
        let stored = spawn_blocking(move || {
            let mut slot = inner.identity.lock().unwrap_or_else(PoisonError::into_inner);
            let identity =
                slot.as_mut().ok_or_else(|| Failure::new(Code::Internal, "the identity is gone"))?;
            let mut membership = read(&inner.membership);
            change(&mut membership);
            identity.store_membership(membership.clone()).map_err(|error| state::identity_failure(&error))?;
            *inner.membership.write().unwrap_or_else(PoisonError::into_inner) = membership;
            Ok(())
        });
        stored.await.map_err(|error| Failure::new(Code::Internal, error.to_string()))?
    }

    /// Keeps on disk where the other nodes are: what this node asks before it opens its catalog.
    pub(super) async fn remember_nodes(&self, hints: Vec<Hint>) -> Result<(), Failure> {
        let state = State::of(&read(&self.inner.membership));
        if hints.is_empty() || state.hints == hints {
            return Ok(());
        }
        self.store(move |membership| change_state(membership, |state| state.hints = hints)).await
    }

    /// Takes a new certificate when the cluster's keys were rotated, or when the present one grows old.
    async fn renew(&self, epoch: u32) -> Result<(), Failure> {
        let membership = read(&self.inner.membership);
        let state = State::of(&membership);
        let serial = serial_of(&membership.node_certificate);
        let age = unix_ms().saturating_sub(serial);
        let is_old = u128::from(age) >= RENEW_AGE.as_millis();
        // The first key came with the certificate.
        let rotated = epoch > state.certificate_epoch.max(1);
        if !is_old && !rotated {
            return Ok(());
        }
        let key = NodeKey::generate().map_err(|error| tls_failure(&error))?;
        let certificate = self.certificate(&membership, &key).await?;
        let private = key.private_pkcs8();
        // Tried before it is stored: what can't be used must not replace what can.
        self.inner.credentials.replace(&certificate, &private).map_err(|error| tls_failure(&error))?;
        self.store(move |membership| {
            membership.node_certificate = certificate;
            membership.node_key = private;
            change_state(membership, |state| state.certificate_epoch = state.certificate_epoch.max(epoch));
        })
        .await?;
        tracing::info!("this node has a new certificate");
        Ok(())
    }

    async fn certificate(&self, membership: &Membership, key: &NodeKey) -> Result<Vec<u8>, Failure> {
        if membership.ca_key.is_some() {
            let serial = serial_min(&self.inner.rows, self.inner.own).await?;
            let authority = admit::authority(membership)?;
            return authority
                .issue_from(self.inner.own, &key.public(), serial)
                .map_err(|error| tls_failure(&error));
        }
        for (row, _) in self.inner.rows.all_stale::<NodeRow>("node/") {
            if row.id == self.inner.own {
                continue;
            }
            if let Some(answer) = self.ask(row.id, &Ask::Certificate(key.public())).await {
                return Ok(answer.to_vec());
            }
        }
        Err(Failure::new(Code::PeerUnreachable, "no node that holds the cluster's authority can be reached"))
    }

    /// Refuses what the catalog, as this node has it, says is revoked; closes what such nodes have open here.
    fn revoke_known(&self) {
        let revoked = self.inner.rows.all_stale::<RevokedRow>(REVOKED);
        let serials: BTreeMap<NodeId, u64> = revoked
            .iter()
            .map(|(row, _)| (row.node, row.serial))
            .filter(|(node, _)| *node != self.inner.own)
            .collect();
        let members: BTreeSet<NodeId> =
            self.inner.rows.all_stale::<NodeRow>("node/").into_iter().map(|(row, _)| row.id).collect();
        self.inner.credentials.set_revoked(serials.clone());
        for node in serials.into_keys().filter(|node| !members.contains(node)) {
            self.inner.services.close_peer(node);
            self.inner.peers.remove(node);
        }
    }

    /// Rotates the cluster key, and with it every member's certificate; returns when the old key is retired.
    pub(crate) async fn rotate(&self, node: &NodeHandle) -> Result<types::KeyStatus, Failure> {
        let Ok(_one) = self.inner.rotating.try_lock() else {
            return Err(Failure::new(Code::KeysBusy, "this node rotates the keys already; wait for it"));
        };
        let (row, version) = self.begin().await?;
        let (newest, hash) = (row.newest, row.hash);
        let accepts = move |using: &Using| using.held.get(&newest) == Some(&hash);
        self.wait_all(node, "accept the new key", accepts).await?;
        let sealing = KeysRow { sealing: newest, changed_unix_ms: unix_ms(), ..row };
        let version = self.put(&sealing, version).await?;
        self.wait_all(node, "seal with the new key", move |using| using.sealing == newest).await?;
        let retired = KeysRow { accepted_min: newest, changed_unix_ms: unix_ms(), ..sealing };
        self.put(&retired, version).await?;
        self.wait_all(node, "retire the old key", move |using| using.accepted_min == newest).await?;
        tracing::info!(epoch = newest, "the cluster's keys are rotated");
        Ok(self.shown())
    }

    /// A committed row whose newest key is not retired into place yet: an unfinished rotation's, or a new one.
    async fn begin(&self) -> Result<(KeysRow, u64), Failure> {
        let found: Option<(KeysRow, u64)> = self.inner.rows.get_at(ROW).await?;
        if let Some((row, version)) = &found
            && row.accepted_min < row.newest
        {
            let held = self.keys().iter().any(|key| key.epoch == row.newest && hash(key) == row.hash);
            if held || self.fetch_missing(row).await.is_ok() || row.sealing == row.newest {
                return Ok((row.clone(), *version));
            }
            // Nobody has the key that its maker committed: another takes its place under the next number.
        }
        let present = self.using().sealing;
        let (sealing, accepted_min) =
            found.as_ref().map_or((present, present), |(row, _)| (row.sealing, row.accepted_min));
        let newest = found.as_ref().map_or(present, |(row, _)| row.newest).saturating_add(1);
        let key = ClusterKey::generate(newest);
        let row = KeysRow {
            newest,
            hash: hash(&key),
            maker: self.inner.own,
            sealing,
            accepted_min,
            changed_unix_ms: unix_ms(),
        };
        // Durable before it is named: the maker must be able to hand it out.
        self.store(move |membership| keep_key(membership, key)).await?;
        let version = self.put(&row, found.map_or(0, |(_, version)| version)).await?;
        Ok((row, version))
    }

    async fn put(&self, row: &KeysRow, version: u64) -> Result<u64, Failure> {
        let reply = self.inner.rows.commit(Txn::compare_and_set(ROW, version, rows::encode(row)?)).await?;
        if reply.succeeded {
            return Ok(reply.revision);
        }
        Err(Failure::new(
            Code::KeysBusy,
            "another node rotates the keys at the same time; `steadfast keys` shows how far it is",
        ))
    }

    async fn wait_all(
        &self,
        node: &NodeHandle,
        step: &str,
        done: impl Fn(&Using) -> bool + Send,
    ) -> Result<(), Failure> {
        let deadline = tokio::time::Instant::now() + STEP_TIMEOUT;
        loop {
            // Asked anew each time: a member that is lost meanwhile need not take part, and a new one must.
            let all = members(node).await?;
            let mut missing = Vec::new();
            for node in all {
                if !self.using_of(node).await.is_some_and(|using| done(&using)) {
                    missing.push(node);
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                let names = self.inner.rows.names();
                let missing: Vec<String> =
                    missing.into_iter().map(|node| crate::api::convert::node_name(&names, node)).collect();
                return Err(Failure::new(
                    Code::TimedOut,
                    format!(
                        "{} did not {step} in time; both keys are accepted meanwhile, and `steadfast keys rotate` goes on where this one stopped",
                        missing.join(", ")
                    ),
                ));
            }
            tokio::time::sleep(STEP_PAUSE).await;
        }
    }

    async fn using_of(&self, node: NodeId) -> Option<Using> {
        if node == self.inner.own {
            return Some(self.using());
        }
        serde_json::from_slice(&self.ask(node, &Ask::State).await?).ok()
    }

    /// Removes a node for good: its row goes, its certificates are worth nothing, and its addresses are free.
    pub(crate) async fn revoke(&self, row: &NodeRow) -> Result<(), Failure> {
        let revoked: Vec<(RevokedRow, u64)> = self.inner.rows.all(REVOKED).await?;
        if revoked.len() >= REVOKED_MAX {
            return Err(Failure::new(
                Code::BadRequest,
                format!("{REVOKED_MAX} nodes are revoked, and more are not possible"),
            ));
        }
        let Some((found, version)) = self.inner.rows.get::<NodeRow>(&Key::Node(row.id)).await? else {
            return Err(Failure::new(Code::NodeNotFound, format!("{} is gone already", row.name)));
        };
        let clocks = u64::try_from(CLOCKS_MAX.as_millis()).unwrap_or(u64::MAX);
        let serial = unix_ms().saturating_add(clocks);
        let entry = RevokedRow { node: row.id, name: row.name.clone(), serial };
        let key = Key::Node(row.id).encode();
        let mut txn = Txn {
            compare: vec![(key.clone(), version)],
            puts: vec![
                (key, None),
                (format!("{REVOKED}{}", row.id), Some(rows::encode(&entry)?)),
                // What it saw of devices proves nothing any more.
                (DeviceKey::Seen(row.id).encode(), None),
            ],
        };
        super::addresses::claim(&self.inner.rows, &mut txn, row.id, &[], &found.addresses).await?;
        if self.inner.rows.commit(txn).await?.succeeded {
            tracing::info!(node = row.name, "its certificates are revoked");
            return Ok(());
        }
        Err(Failure::new(Code::NameTaken, format!("{} changed meanwhile; try again", row.name)))
    }

    /// How keys and certificates stand, for people.
    pub(crate) fn shown(&self) -> types::KeyStatus {
        let row: Option<(KeysRow, u64)> = self.inner.rows.get_stale_at(ROW);
        let Using { sealing, accepted_min, .. } = self.using();
        let membership = read(&self.inner.membership);
        let serial = serial_of(&membership.node_certificate);
        let validity = u64::try_from(steadfast::net::tls::VALIDITY.as_millis()).unwrap_or(u64::MAX);
        let newest = row.as_ref().map_or(sealing, |(row, _)| row.newest);
        types::KeyStatus {
            newest,
            sealing,
            accepted_min: if row.is_some() { accepted_min } else { sealing },
            settled: newest == sealing && row.as_ref().is_none_or(|(row, _)| row.accepted_min == newest),
            changed_unix_ms: row.map(|(row, _)| row.changed_unix_ms),
            certificate_issued_unix_ms: (serial > 0).then_some(serial),
            certificate_expires_unix_ms: (serial > 0).then(|| serial.saturating_add(validity)),
            revoked: self
                .inner
                .rows
                .all_stale::<RevokedRow>(REVOKED)
                .into_iter()
                .map(|(row, _)| row.name)
                .collect(),
            authority: pem(&membership.ca_certificate),
        }
    }
}

/// A certificate as text.
fn pem(certificate: &[u8]) -> String {
    let lines = certificate.chunks(48).map(|bytes| data_encoding::BASE64.encode(bytes) + "\n");
    format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", lines.collect::<String>())
}

/// The members of the view.
async fn members(node: &NodeHandle) -> Result<BTreeSet<NodeId>, Failure> {
    let status = node.status().await;
    let status = status.map_err(|error| Failure::new(super::report::unanswered(error), error.to_string()))?;
    let Some(view) = status.view else {
        return Err(Failure::new(Code::NoQuorum, "this node has no view yet; is any other node running?"));
    };
    Ok(view.members.into_keys().collect())
}

fn hash(key: &ClusterKey) -> Digest {
    Digest(key.hash())
}

/// Changes what the agent keeps beside its membership; what can't be written stays as it was.
fn change_state(membership: &mut Membership, change: impl FnOnce(&mut State)) {
    let mut state = State::of(membership);
    change(&mut state);
    if let Ok(extra) = state.encode() {
        membership.extra = extra;
    }
}

/// Adds a key, replacing another of its epoch; of too many the oldest goes.
fn keep_key(membership: &mut Membership, key: ClusterKey) {
    let keys = &mut membership.cluster_keys;
    keys.retain(|one| one.epoch != key.epoch);
    keys.push(key);
    keys.sort_by_key(|one| std::cmp::Reverse(one.epoch));
    keys.truncate(CLUSTER_KEYS_MAX);
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl Agent {
    /// Rotates the cluster's keys.
    pub(crate) async fn rotate_keys(&self) -> Result<types::KeyStatus, Failure> {
        self.keys.rotate(&self.node).await
    }

    /// Removes a node that is no member for good, and rotates the keys that it knew.
    pub(crate) async fn revoke_node(&self, name: &str) -> Result<types::KeyStatus, Failure> {
        let row = self.rows.node(name).await?;
        if members(&self.node).await?.contains(&row.id) {
            return Err(Failure::new(
                Code::NodeIsMember,
                format!("{} is a member of the view; stop its agent and wait until it is removed", row.name),
            ));
        }
        self.engine
            .remove(row.engine_id)
            .await
            .map_err(|error| Failure::new(Code::NoQuorum, format!("{}: {error}", row.name)))?;
        self.keys.revoke(&row).await?;
        self.rotate_keys().await
    }
}
