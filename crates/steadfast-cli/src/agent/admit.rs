//! `invite` and the inviter's side of a join (PROTOCOLS 4.5).
//!
//! An invitation is a row; taking it up is one compare-and-set of that row together with the new node's row, so of
//! two nodes that race exactly one wins. A joiner that crashed after it is answered again, by its uuid and
//! fingerprint. Only a hash of the token's secret is stored. Whose an address is: `addresses`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use steadfast::catalog::{BoxFuture, Txn};
use steadfast::identity::Membership;
use steadfast::net::tls::{Authority, fingerprint};
use steadfast::token::{Token, hash_secret};
use steadfast_proto::catalog::{InviteRow, Key, NodeRow, Taken};
use steadfast_proto::flaw::{Flaw, is_planted};
use steadfast_proto::ids::{ClusterId, Digest, NodeId};

use super::found::tls_failure;
use super::join::{JoinReply, JoinRequest};
use super::keys::{self, SharedMembership};
use super::rows::{self, Rows};
use super::state::{Hint, engine_id};
use super::{addresses, notice, planted};
use crate::api::types::{Invitation, InviteRequest};
use crate::codes::Code;
use crate::config::catalog::CatalogConfig;
use crate::failure::Failure;
use crate::units;

/// Most nodes that one cluster may have.
const NODES_MAX: usize = steadfast_proto::node::NODES_MAX;
/// Most invitations that may be open or remembered.
const INVITES_MAX: usize = 256;
const VALID_MIN: Duration = Duration::from_secs(1);
const VALID_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often a join is tried on rows that change under it.
const ATTEMPTS: u32 = 8;

/// Whether this node hears a node alive now.
pub(crate) type Hears = Arc<dyn Fn(NodeId) -> BoxFuture<'static, bool> + Send + Sync>;

/// What an inviter needs.
#[derive(Clone)]
pub(crate) struct Inviter {
    pub(crate) rows: Rows,
    pub(crate) membership: SharedMembership,
    pub(crate) networks: Vec<(String, SocketAddr)>,
    /// Who keeps the catalog, which a new node must know too.
    pub(crate) catalog: CatalogConfig,
    pub(crate) hears: Hears,
}

/// What became of an invitation.
enum Stored {
    /// The new token is the one that counts.
    New,
    /// The token that was made before counts again.
    Renewed,
}

impl Inviter {
    /// The cluster that it invites to.
    pub(super) fn cluster(&self) -> ClusterId {
        self.membership().cluster_id()
    }

    /// Makes an invitation and its token.
    pub(crate) async fn invite(&self, request: InviteRequest) -> Result<Invitation, Failure> {
        let name = units::name(&request.name).map_err(|message| Failure::new(Code::NameInvalid, message))?;
        let valid = request.valid.as_deref().unwrap_or("1h");
        let valid = units::duration_within(valid, VALID_MIN, VALID_MAX)
            .map_err(|message| Failure::new(Code::BadRequest, format!("valid: {message}")))?;
        let notify = request.notify.as_deref().map(notice::address).transpose()?;
        let membership = self.membership();
        authority(&membership)?;
        let nodes: Vec<(NodeRow, u64)> = self.rows.all("node/").await?;
        if nodes.iter().any(|(row, _)| row.name == name) {
            return Err(Failure::new(
                Code::NameTaken,
                format!("a node named {name} belongs to the cluster already; choose another name"),
            ));
        }
        if nodes.len() >= NODES_MAX {
            return Err(Failure::new(
                Code::BadRequest,
                format!("the cluster has {} nodes, and more are not possible", nodes.len()),
            ));
        }
        let expires_unix_s = unix_s().saturating_add(valid.as_secs().max(1));
        let addresses = self.inviting_addresses(&nodes);
        let token = Token::new(
            membership.cluster_id(),
            &name,
            fingerprint(&membership.ca_certificate),
            addresses,
            expires_unix_s,
        )
        .map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
        let stored = self.store(&name, &token, expires_unix_s, notify.is_some()).await?;
        if let Some(address) = notify {
            notice::send(membership.cluster_id(), address).await?;
        }
        let token = match stored {
            Stored::New => Some(token.encode()),
            Stored::Renewed => None,
        };
        Ok(Invitation { name, token, expires_unix_ms: expires_unix_s.saturating_mul(1000) })
    }

    fn membership(&self) -> Membership {
        keys::read(&self.membership)
    }

    async fn store(
        &self,
        name: &str,
        token: &Token,
        expires_unix_s: u64,
        keep_open: bool,
    ) -> Result<Stored, Failure> {
        let invites: Vec<(InviteRow, u64)> = self.rows.all("invite/").await?;
        let key = Key::Invite(name.to_owned());
        // A second invitation of one name replaces the first, whose token is then worth nothing.
        // But a machine that is to be woken waits with the first: there the invitation itself is renewed.
        let before = invites.iter().find(|(row, _)| row.name == name);
        let version = before.map_or(0, |(_, version)| *version);
        let open = before.filter(|(row, _)| keep_open && row.taken.is_none());
        let (secret, stored) = match open {
            Some((row, _)) => (row.secret, Stored::Renewed),
            None => (Digest(token.secret_hash()), Stored::New),
        };
        let row = InviteRow { name: name.to_owned(), secret, expires_unix_s, taken: None };
        let mut txn = Txn::compare_and_set(key.encode(), version, rows::encode(&row)?);
        // Expired ones make room; taken ones answer a second use with its own sentence until then.
        let expired = invites.iter().filter(|(row, _)| row.expires_unix_s < unix_s() && row.name != name);
        let surplus = (invites.len() + 1).saturating_sub(INVITES_MAX);
        let removed: Vec<String> =
            expired.take(surplus.min(64)).map(|(row, _)| Key::Invite(row.name.clone()).encode()).collect();
        if removed.len() < surplus {
            return Err(Failure::new(
                Code::BadRequest,
                format!("{} invitations are open; let some expire first", invites.len()),
            ));
        }
        txn.puts.extend(removed.into_iter().map(|key| (key, None)));
        if self.rows.commit(txn).await?.succeeded {
            return Ok(stored);
        }
        Err(Failure::new(
            Code::NameTaken,
            format!("{name} was invited by somebody else at the same moment; try again"),
        ))
    }

    /// Takes up an invitation for the node that asks.
    pub(crate) async fn answer(&self, request: JoinRequest) -> Result<JoinReply, Failure> {
        let membership = self.membership();
        if request.cluster != membership.cluster_id().to_string() {
            return Err(Failure::new(
                Code::WrongCluster,
                format!(
                    "the token is of cluster {}, and this node is of {}",
                    request.cluster,
                    membership.cluster_id()
                ),
            ));
        }
        let node: NodeId = request.node.parse().map_err(|error: steadfast_proto::ids::ParseIdError| {
            Failure::new(Code::BadRequest, error.to_string())
        })?;
        self.check_networks(&request)?;
        self.check_catalog(&request)?;
        let authority = authority(&membership)?;
        let serial_min = keys::serial_min(&self.rows, node).await?;
        let certificate = authority
            .issue_from(node, &request.public_key, serial_min)
            .map_err(|error| tls_failure(&error))?;
        self.take(node, &request).await?;
        planted::crash("admit:taken");
        let nodes: Vec<(NodeRow, u64)> = self.rows.all("node/").await?;
        let hints = nodes.into_iter().filter(|(row, _)| row.id != node).map(|(row, _)| Hint {
            node: row.id.to_string(),
            engine_id: row.engine_id,
            addresses: row.addresses.into_iter().map(|(_, address)| address).collect(),
        });
        let sealing = keys::sealing_epoch(&self.rows, &membership);
        // A key that is still being handed out comes by the catalog, when everybody has it.
        let cluster_keys = membership.cluster_keys.iter().filter(|key| key.epoch <= sealing);
        Ok(JoinReply {
            cluster_name: membership.cluster_name.clone(),
            node_name: request.temporary_id,
            cluster_keys: cluster_keys.map(|key| (key.epoch, *key.secret())).collect(),
            ca_certificate: membership.ca_certificate.clone(),
            ca_key: membership.ca_key.clone(),
            node_certificate: certificate,
            hints: hints.collect(),
        })
    }

    /// One compare-and-set of the invitation, the node's row and its addresses, tried again while others change them.
    async fn take(&self, node: NodeId, request: &JoinRequest) -> Result<(), Failure> {
        for _ in 0..ATTEMPTS {
            let Some(txn) = self.taking(node, request).await? else { return Ok(()) };
            if self.rows.commit(txn).await?.succeeded {
                tracing::info!(%node, name = request.temporary_id, "an invitation was taken up");
                return Ok(());
            }
        }
        Err(Failure::new(
            Code::TimedOut,
            format!("the invitation of {} changes all the time; try again", request.temporary_id),
        ))
    }

    /// The transaction that takes the invitation up; `None` when this node took it already.
    async fn taking(&self, node: NodeId, request: &JoinRequest) -> Result<Option<Txn>, Failure> {
        let name = &request.temporary_id;
        let key = Key::Invite(name.clone());
        let found: Option<(InviteRow, u64)> = self.rows.get(&key).await?;
        let Some((invite, version)) = found else {
            return Err(Failure::new(
                Code::NotConfigured,
                format!("nobody invited {name:?}; make a token with `steadfast invite {name}`"),
            ));
        };
        if !same_secret(&invite.secret.0, &hash_secret(&request.secret)) {
            return Err(Failure::new(
                Code::TokenUsed,
                format!("the token for {name} is not valid any more: a newer one was made for the same name"),
            ));
        }
        if let Some(taken) = &invite.taken {
            return already_taken(name, taken, node, &request.fingerprint).map(|()| None);
        }
        if invite.expires_unix_s <= unix_s() {
            return Err(Failure::new(
                Code::TokenExpired,
                format!("the token for {name} has expired; make another with `steadfast invite {name}`"),
            ));
        }
        let (row_version, before) = match self.rows.get::<NodeRow>(&Key::Node(node)).await? {
            None => (0, Vec::new()),
            Some((row, version)) => {
                self.check_rebind(&row, request).await?;
                (version, row.addresses)
            }
        };
        let taken =
            InviteRow { taken: Some(Taken { node, fingerprint: request.fingerprint.clone() }), ..invite };
        let row = invited_row(node, request);
        let mut txn = Txn {
            compare: vec![(key.encode(), version), (Key::Node(node).encode(), row_version)],
            puts: vec![
                (key.encode(), Some(rows::encode(&taken)?)),
                (Key::Node(node).encode(), Some(rows::encode(&row)?)),
            ],
        };
        if is_planted(Flaw::InviteNotCompared) {
            txn.compare.retain(|(compared, _)| *compared != key.encode());
        }
        addresses::claim(&self.rows, &mut txn, node, &request.networks, &before).await?;
        Ok(Some(txn))
    }

    /// Refuses an identity that has a row already, unless its machine asks to bear the new name and nobody runs under it.
    async fn check_rebind(&self, row: &NodeRow, request: &JoinRequest) -> Result<(), Failure> {
        let name = &row.name;
        if !request.rebind {
            return Err(Failure::new(
                Code::AlreadyMember,
                format!(
                    "this node's identity belongs to {name} of the cluster already; if this machine is {name}, join with --rebind, and if its data folder was copied from {name}, run `steadfast reidentify` first"
                ),
            ));
        }
        if (self.hears)(row.id).await {
            return Err(Failure::new(
                Code::IdentityCloned,
                format!(
                    "{name} runs under this node's identity now, so this data folder is a copy; run `steadfast reidentify` here and join anew"
                ),
            ));
        }
        Ok(())
    }

    /// Networks are numbered by their order, so it must be the same everywhere.
    fn check_networks(&self, request: &JoinRequest) -> Result<(), Failure> {
        let theirs: Vec<&str> = request.networks.iter().map(|(name, _)| name.as_str()).collect();
        let ours: Vec<&str> = self.networks.iter().map(|(name, _)| name.as_str()).collect();
        if theirs != ours {
            return Err(Failure::new(
                Code::ConfigInvalid,
                format!(
                    "the cluster's networks are {}, in this order, and the new node's [[network]] sections are {}; make them the same",
                    ours.join(", "),
                    theirs.join(", ")
                ),
            ));
        }
        let mut seen = BTreeSet::new();
        for (_, address) in &request.networks {
            if !seen.insert(*address) {
                return Err(Failure::new(
                    Code::ConfigInvalid,
                    format!("the address {address} is given for two networks"),
                ));
            }
        }
        Ok(())
    }

    /// A node that looked for the catalog elsewhere would never find it.
    fn check_catalog(&self, request: &JoinRequest) -> Result<(), Failure> {
        let ours = self.catalog.etcd_prefix();
        if request.etcd_prefix == ours {
            return Ok(());
        }
        let words = |prefix: &Option<String>| match prefix {
            None => "engine = \"embedded\"".to_owned(),
            Some(prefix) => format!("engine = \"etcd\" with prefix = {prefix:?}"),
        };
        Err(Failure::new(
            Code::ConfigInvalid,
            format!(
                "the cluster's [catalog] has {}, and the new node's has {}; make them the same",
                words(&ours),
                words(&request.etcd_prefix)
            ),
        ))
    }

    /// This node's addresses first, then other nodes', as many as a token holds.
    fn inviting_addresses(&self, nodes: &[(NodeRow, u64)]) -> Vec<SocketAddr> {
        let own = self.networks.iter().map(|(_, address)| *address);
        let others = nodes.iter().flat_map(|(row, _)| row.addresses.iter().map(|(_, address)| *address));
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in own.chain(others) {
            if !addresses.contains(&address) && addresses.len() < 6 {
                addresses.push(address);
            }
        }
        addresses
    }
}

/// The cluster's authority, on a node that holds it.
pub(super) fn authority(membership: &Membership) -> Result<Authority, Failure> {
    let Some(key) = &membership.ca_key else {
        return Err(Failure::new(
            Code::NotAllowed,
            "this node does not hold the cluster's authority; invite from another node",
        ));
    };
    Authority::load(membership.cluster_id(), &membership.ca_certificate, key)
        .map_err(|error| tls_failure(&error))
}

fn invited_row(node: NodeId, request: &JoinRequest) -> NodeRow {
    NodeRow {
        id: node,
        name: request.temporary_id.clone(),
        engine_id: engine_id(node),
        addresses: request.networks.clone(),
        fingerprint: request.fingerprint.clone(),
        domain: request.domain.clone(),
        memory_bytes: request.memory_bytes,
        criu: request.criu.clone(),
        processor: request.processor.clone(),
    }
}

fn already_taken(name: &str, taken: &Taken, node: NodeId, fingerprint: &str) -> Result<(), Failure> {
    if taken.node != node {
        return Err(Failure::new(
            Code::TokenUsed,
            format!(
                "the token for {name} was used by node {} already; make one token per node: `steadfast invite NAME`",
                taken.node
            ),
        ));
    }
    if taken.fingerprint != fingerprint && !is_planted(Flaw::CloneAdmitted) {
        return Err(Failure::new(
            Code::IdentityCloned,
            format!(
                "node {node} joined as {name} from a machine with fingerprint {}, and this one has {fingerprint}: its data folder is a copy; run `steadfast reidentify` here and join anew with a token of its own",
                taken.fingerprint
            ),
        ));
    }
    // The joiner crashed before it stored the answer.
    Ok(())
}

/// Compares without telling by the time it takes where two secrets differ.
fn same_secret(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0u8, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
