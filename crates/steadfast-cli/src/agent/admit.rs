//! `invite` and the inviter's side of a join (PROTOCOLS 4.5).
//!
//! An invitation is a row; taking it up is one compare-and-set of that row together with the new node's row, so of
//! two nodes that race exactly one wins. A joiner that crashed after it is answered again, by its uuid and
//! fingerprint. Only a hash of the token's secret is stored.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use steadfast::catalog::Txn;
use steadfast::identity::Membership;
use steadfast::net::tls::{Authority, fingerprint};
use steadfast::token::{Token, hash_secret};
use steadfast_proto::catalog::{InviteRow, Key, NodeRow, Taken};
use steadfast_proto::ids::{Digest, NodeId};

use super::found::tls_failure;
use super::join::{JoinReply, JoinRequest};
use super::rows::{self, Rows};
use super::state::{Hint, engine_id};
use crate::api::types::{Invitation, InviteRequest};
use crate::codes::Code;
use crate::failure::Failure;
use crate::units;

/// Most nodes that one cluster may have.
const NODES_MAX: usize = steadfast_proto::node::NODES_MAX;
/// Most invitations that may be open or remembered.
const INVITES_MAX: usize = 256;
const VALID_MIN: Duration = Duration::from_secs(1);
const VALID_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What an inviter needs.
#[derive(Clone)]
pub(crate) struct Inviter {
    pub(crate) rows: Rows,
    pub(crate) membership: Membership,
    pub(crate) networks: Vec<(String, SocketAddr)>,
}

impl Inviter {
    /// Makes an invitation and its token.
    pub(crate) async fn invite(&self, request: InviteRequest) -> Result<Invitation, Failure> {
        let name = units::name(&request.name).map_err(|message| Failure::new(Code::NameInvalid, message))?;
        let valid = request.valid.as_deref().unwrap_or("1h");
        let valid = units::duration_within(valid, VALID_MIN, VALID_MAX)
            .map_err(|message| Failure::new(Code::BadRequest, format!("valid: {message}")))?;
        self.authority()?;
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
            self.membership.cluster_id(),
            &name,
            fingerprint(&self.membership.ca_certificate),
            addresses,
            expires_unix_s,
        )
        .map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
        self.store(&name, &token, expires_unix_s).await?;
        Ok(Invitation { name, token: token.encode(), expires_unix_ms: expires_unix_s.saturating_mul(1000) })
    }

    async fn store(&self, name: &str, token: &Token, expires_unix_s: u64) -> Result<(), Failure> {
        let invites: Vec<(InviteRow, u64)> = self.rows.all("invite/").await?;
        let key = Key::Invite(name.to_owned());
        // A second invitation of one name replaces the first, whose token is then worth nothing.
        let version = invites.iter().find(|(row, _)| row.name == name).map_or(0, |(_, version)| *version);
        let row = InviteRow {
            name: name.to_owned(),
            secret: Digest(token.secret_hash()),
            expires_unix_s,
            taken: None,
        };
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
            return Ok(());
        }
        Err(Failure::new(
            Code::NameTaken,
            format!("{name} was invited by somebody else at the same moment; try again"),
        ))
    }

    /// Takes up an invitation for the node that asks.
    pub(crate) async fn answer(&self, request: JoinRequest) -> Result<JoinReply, Failure> {
        if request.cluster != self.membership.cluster_id().to_string() {
            return Err(Failure::new(
                Code::WrongCluster,
                format!(
                    "the token is of cluster {}, and this node is of {}",
                    request.cluster,
                    self.membership.cluster_id()
                ),
            ));
        }
        let node: NodeId = request.node.parse().map_err(|error: steadfast_proto::ids::ParseIdError| {
            Failure::new(Code::BadRequest, error.to_string())
        })?;
        self.check_networks(&request)?;
        let authority = self.authority()?;
        let certificate = authority.issue(node, &request.public_key).map_err(|error| tls_failure(&error))?;
        self.take(node, &request).await?;
        let nodes: Vec<(NodeRow, u64)> = self.rows.all("node/").await?;
        let hints = nodes.into_iter().filter(|(row, _)| row.id != node).map(|(row, _)| Hint {
            node: row.id.to_string(),
            engine_id: row.engine_id,
            addresses: row.addresses.into_iter().map(|(_, address)| address).collect(),
        });
        Ok(JoinReply {
            cluster_name: self.membership.cluster_name.clone(),
            node_name: request.temporary_id,
            cluster_keys: self.membership.cluster_keys.iter().map(|key| (key.epoch, *key.secret())).collect(),
            ca_certificate: self.membership.ca_certificate.clone(),
            ca_key: self.membership.ca_key.clone(),
            node_certificate: certificate,
            hints: hints.collect(),
        })
    }

    async fn take(&self, node: NodeId, request: &JoinRequest) -> Result<(), Failure> {
        let name = &request.temporary_id;
        let key = Key::Invite(name.clone());
        let found: Option<(InviteRow, u64)> = self.rows.get(&key).await?;
        let Some((invite, version)) = found else {
            return Err(Failure::new(
                Code::NotAllowed,
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
            return already_taken(name, taken, node, &request.fingerprint);
        }
        if invite.expires_unix_s <= unix_s() {
            return Err(Failure::new(
                Code::TokenExpired,
                format!("the token for {name} has expired; make another with `steadfast invite {name}`"),
            ));
        }
        if let Some((row, _)) = self.rows.get::<NodeRow>(&Key::Node(node)).await? {
            return Err(Failure::new(
                Code::AlreadyMember,
                format!(
                    "this node's identity belongs to {} of the cluster already; a copied data folder must be emptied before it joins",
                    row.name
                ),
            ));
        }
        let taken =
            InviteRow { taken: Some(Taken { node, fingerprint: request.fingerprint.clone() }), ..invite };
        let row = NodeRow {
            id: node,
            name: name.clone(),
            engine_id: engine_id(node),
            addresses: request.networks.clone(),
            fingerprint: request.fingerprint.clone(),
            domain: request.domain.clone(),
            memory_bytes: request.memory_bytes,
            criu: request.criu.clone(),
            processor: request.processor.clone(),
        };
        let txn = Txn {
            compare: vec![(key.encode(), version), (Key::Node(node).encode(), 0)],
            puts: vec![
                (key.encode(), Some(rows::encode(&taken)?)),
                (Key::Node(node).encode(), Some(rows::encode(&row)?)),
            ],
        };
        if self.rows.commit(txn).await?.succeeded {
            tracing::info!(%node, name, "an invitation was taken up");
            return Ok(());
        }
        // Somebody was faster: what is there now says who.
        match self.rows.get::<InviteRow>(&key).await? {
            Some((InviteRow { taken: Some(taken), .. }, _)) => {
                already_taken(name, &taken, node, &request.fingerprint)
            }
            Some(_) | None => Err(Failure::new(
                Code::TokenUsed,
                format!("the invitation of {name} changed meanwhile; make another token"),
            )),
        }
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
        for (name, address) in &request.networks {
            let taken = self.rows.all_stale::<NodeRow>("node/").into_iter().map(|(row, _)| row);
            let taken = taken.filter(|row| {
                row.id.to_string() != request.node && row.addresses.iter().any(|(_, other)| other == address)
            });
            if let Some(row) = taken.into_iter().next() {
                return Err(Failure::new(
                    Code::ConfigInvalid,
                    format!(
                        "the address {address} of network {name} belongs to {}; give the new node its own",
                        row.name
                    ),
                ));
            }
            if !seen.insert(*address) {
                return Err(Failure::new(
                    Code::ConfigInvalid,
                    format!("the address {address} is given for two networks"),
                ));
            }
        }
        Ok(())
    }

    fn authority(&self) -> Result<Authority, Failure> {
        let Some(key) = &self.membership.ca_key else {
            return Err(Failure::new(
                Code::NotAllowed,
                "this node does not hold the cluster's authority; invite from another node",
            ));
        };
        Authority::load(self.membership.cluster_id(), &self.membership.ca_certificate, key)
            .map_err(|error| tls_failure(&error))
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
    if taken.fingerprint != fingerprint {
        return Err(Failure::new(
            Code::IdentityCloned,
            format!(
                "node {node} joined as {name} from a machine with fingerprint {}, and this one has {fingerprint}: its data folder is a copy; empty it and join anew",
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
