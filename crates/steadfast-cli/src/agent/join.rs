//! `join`: takes up an invitation with its one-time token (PROTOCOLS 4.5, the joiner's side).
//!
//! In order, each step idempotent: own id durable (U3); one request over a connection that pins the cluster's CA,
//! which the inviter turns into one compare-and-set of the invitation; certificates and keys stored atomically. A
//! crash anywhere is cured by the same command again. An agent that waits with a token (`join --wait`) does the same by
//! itself, and reads the catalog through its inviters alone. The other side is `admit`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use steadfast::envelope::write_atomic;
use steadfast::identity::{ClusterKey, Identity, Membership};
use steadfast::net::rpc::{JoinConnectError, connect_join};
use steadfast::net::tls::{Credentials, NodeKey, fingerprint};
use steadfast::token::{Token, TokenError};
use tracing::Instrument;

use super::found::tls_failure;
use super::notice::Listener;
use super::state::{self, Hint, State};
use super::{machine, planted};
use crate::api::types::ErrorBody;
use crate::codes::Code;
use crate::config::Config;
use crate::failure::{Failure, disk};
use crate::traces;

/// The largest answer of an inviter, in bytes.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// The pauses of an agent that waits with a token, which double (PROTOCOLS 4.5).
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What `join` made of this node.
#[derive(Clone, Debug, Serialize)]
pub struct Joined {
    /// The cluster's name.
    pub cluster: String,
    /// Its id.
    pub cluster_id: String,
    /// The name that this node bears now.
    pub node: String,
    /// Its id.
    pub node_id: String,
}

/// What a joiner sends, over a connection that pins the cluster's CA.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JoinRequest {
    pub(crate) cluster: String,
    pub(crate) temporary_id: String,
    pub(crate) secret: [u8; 16],
    pub(crate) node: String,
    pub(crate) fingerprint: String,
    pub(crate) public_key: Vec<u8>,
    pub(crate) networks: Vec<(String, SocketAddr)>,
    pub(crate) domain: Vec<String>,
    pub(crate) memory_bytes: u64,
    pub(crate) criu: String,
    pub(crate) processor: String,
    /// Whether a node that has a row already asks to bear the token's name from now on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) rebind: bool,
    /// The prefix of the catalog in etcd; none with the nodes' own engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) etcd_prefix: Option<String>,
}

/// Whether an identity that the cluster knows may take another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebind {
    /// No: it is refused.
    Refuse,
    /// Yes: this machine is the one that the cluster knows.
    Allow,
}

/// What the inviter answers once the invitation is taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JoinReply {
    pub(crate) cluster_name: String,
    pub(crate) node_name: String,
    pub(crate) cluster_keys: Vec<(u32, [u8; 32])>,
    pub(crate) ca_certificate: Vec<u8>,
    pub(crate) ca_key: Option<Vec<u8>>,
    pub(crate) node_certificate: Vec<u8>,
    pub(crate) hints: Vec<Hint>,
}

/// Reads a token; whether it can be used is the inviter's to say.
pub fn parse(text: &str) -> Result<Token, Failure> {
    Token::decode(text).map_err(|error| Failure::new(Code::TokenInvalid, error.to_string()))
}

/// Joins.
pub async fn join(config: &Config, token: &Token, rebind: Rebind) -> Result<Joined, Failure> {
    planted::crash("join:begin");
    let mut identity = state::open(&config.data)?;
    planted::crash("join:identity");
    state::refuse_member(&identity)?;
    check_expiry(token)?;
    take_up(config, &mut identity, token, rebind).await
}

/// Leaves the token for the agent, which joins with it by itself as soon as it can.
pub fn leave_for_agent(config: &Config, token: &Token) -> Result<(), Failure> {
    if config.data.join("membership").exists() {
        state::refuse_member(&state::open(&config.data)?)?;
    }
    std::fs::create_dir_all(&config.data).map_err(|error| disk("make the folder", &config.data, &error))?;
    let path = token_path(&config.data);
    write_atomic(&path, 0o600, token.encode().as_bytes()).map_err(|error| disk("write", &path, &error))
}

/// The token that was left for the agent.
pub(super) fn left(data: &Path) -> Option<Token> {
    let text = std::fs::read_to_string(token_path(data)).ok()?;
    match Token::decode(&text) {
        Ok(token) => Some(token),
        Err(error) => {
            tracing::warn!(%error, "the token that was left for this agent can't be read");
            None
        }
    }
}

/// Removes the token that was left; a member has no use for it, and one that stays does no harm.
pub(super) fn forget_left(data: &Path) {
    let _ = std::fs::remove_file(token_path(data));
}

fn token_path(data: &Path) -> PathBuf {
    data.join("token")
}

/// Joins with the token that was left, asking again until it succeeds; `say` is told why it did not yet.
///
/// Only the inviters named in the token are asked, and only by them is it said what holds: a notice wakes, no more.
pub(super) async fn wait_with(
    config: &Config,
    identity: &mut Identity,
    mut say: impl FnMut(&Token, &Failure),
) {
    let notices = Listener::bind(config.addresses().into_iter().map(|(_, address)| address)).await;
    let mut pause = WAIT_FIRST;
    // Read again each time: another token may have been left meanwhile, or this one taken away.
    while let Some(token) = left(&config.data) {
        let span = traces::step_of(None, "join", &[("name", &token.name)]);
        let outcome = take_up(config, identity, &token, Rebind::Refuse).instrument(span.clone()).await;
        match outcome {
            Ok(joined) => {
                tracing::info!(
                    cluster = joined.cluster,
                    name = joined.node,
                    "joined with the token that was left"
                );
                return forget_left(&config.data);
            }
            Err(failure) => {
                traces::failed(&span, &failure);
                say(&token, &failure);
            }
        }
        notices.wait(token.cluster(), pause).await;
        pause = (pause * 2).min(WAIT_MAX);
    }
}

async fn take_up(
    config: &Config,
    identity: &mut Identity,
    token: &Token,
    rebind: Rebind,
) -> Result<Joined, Failure> {
    let key = NodeKey::generate().map_err(|error| tls_failure(&error))?;
    let machine = machine::look(config);
    let request = JoinRequest {
        cluster: token.cluster().to_string(),
        temporary_id: token.name.clone(),
        secret: *token.secret(),
        node: identity.node().to_string(),
        fingerprint: identity.fingerprint().short(),
        public_key: key.public(),
        networks: config.networks.iter().map(|network| (network.name.clone(), network.address)).collect(),
        domain: config.domain.clone(),
        memory_bytes: config.memory_bytes,
        criu: machine.criu,
        processor: machine.processor,
        rebind: rebind == Rebind::Allow,
        etcd_prefix: config.catalog.etcd_prefix(),
    };
    let reply = ask(token, &request).await?;
    planted::crash("join:answered");
    let joined = store(identity, token, &key, reply)?;
    planted::crash("join:stored");
    Ok(joined)
}

fn check_expiry(token: &Token) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let Err(error) = token.check_expiry(now) else { return Ok(()) };
    let TokenError::Expired { expired_unix_s, .. } = error else {
        return Err(Failure::new(Code::TokenInvalid, error.to_string()));
    };
    let ago = std::time::Duration::from_secs(now.saturating_sub(expired_unix_s));
    let ago = crate::units::human_duration(ago);
    let name = &token.name;
    let message =
        format!("the token for {name} expired {ago} ago; make another with `steadfast invite {name}`");
    Err(Failure::new(Code::TokenExpired, message))
}

async fn ask(token: &Token, request: &JoinRequest) -> Result<JoinReply, Failure> {
    let stream = connect_join(&token.addresses, token.ca_fingerprint).await.map_err(|error| match error {
        JoinConnectError::Connect(_) => Failure::new(
            Code::PeerUnreachable,
            format!("{error}; is the agent that made the token running, and is it of that cluster?"),
        ),
        JoinConnectError::Tls(_) => Failure::new(Code::Internal, error.to_string()),
    })?;
    let broken = |error: String| {
        Failure::new(
            Code::PeerUnreachable,
            format!("the inviting node did not answer ({error}); run the same command again"),
        )
    };
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| broken(error.to_string()))?;
    tokio::spawn(connection);
    let body =
        serde_json::to_vec(request).map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
    let http =
        Request::post("/v1/join").header("host", "steadfast").header("content-type", "application/json");
    let mut http = http
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
    traces::mark(http.headers_mut());
    planted::crash("join:asking");
    let response = sender.send_request(http).await.map_err(|error| broken(error.to_string()))?;
    let accepted = response.status().is_success();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| broken(error.to_string()))?;
    let body = body.to_bytes();
    if accepted {
        return serde_json::from_slice(&body).map_err(|error| {
            Failure::new(
                Code::BadRequest,
                format!("the inviting node's answer can't be understood ({error}); has it another version?"),
            )
        });
    }
    let refusal: ErrorBody = serde_json::from_slice(&body).map_err(|error| broken(error.to_string()))?;
    Err(Failure::new(refusal.code.parse().unwrap_or(Code::Internal), refusal.message))
}

fn store(identity: &mut Identity, token: &Token, key: &NodeKey, reply: JoinReply) -> Result<Joined, Failure> {
    if fingerprint(&reply.ca_certificate) != token.ca_fingerprint {
        return Err(Failure::new(
            Code::WrongCluster,
            "the inviting node handed out another certificate authority than the token names; nothing was stored",
        ));
    }
    Credentials::new(identity.node(), &reply.ca_certificate, &reply.node_certificate, &key.private_pkcs8())
        .map_err(|error| {
        Failure::new(
            Code::WrongCluster,
            format!("the certificate that the inviting node made can't be used: {error}"),
        )
    })?;
    let sealing_epoch = reply.cluster_keys.iter().map(|(epoch, _)| *epoch).max().unwrap_or(0);
    let state = State { hints: reply.hints, sealing_epoch, ..State::default() };
    let membership = Membership {
        cluster: token.cluster().0,
        cluster_name: reply.cluster_name.clone(),
        node_name: reply.node_name.clone(),
        cluster_keys: reply
            .cluster_keys
            .into_iter()
            .map(|(epoch, secret)| ClusterKey::new(epoch, secret))
            .collect(),
        ca_certificate: reply.ca_certificate,
        ca_key: reply.ca_key,
        node_certificate: reply.node_certificate,
        node_key: key.private_pkcs8(),
        extra: state.encode()?,
    };
    identity.store_membership(membership).map_err(|error| state::identity_failure(&error))?;
    Ok(Joined {
        cluster: reply.cluster_name,
        cluster_id: token.cluster().to_string(),
        node: reply.node_name,
        node_id: identity.node().to_string(),
    })
}
