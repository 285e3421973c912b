//! Invitations and joins against a real catalog of one node: every refusal of PROTOCOLS 4.5, each its own code.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use steadfast::catalog::{
    BoxFuture, Embedded, EmbeddedConfig, RaftNodeId, Timings, Transport, TransportError,
};
use steadfast::identity::{ClusterKey, Membership};
use steadfast::net::tls::{Authority, NodeKey};
use steadfast::token::Token;
use steadfast_proto::catalog::{InviteRow, Key, NodeRow};
use steadfast_proto::ids::{ClusterId, Incarnation, NodeId};

use super::admit::Inviter;
use super::engine::Engine;
use super::join::JoinRequest;
use super::rows::Rows;
use super::state::{Founder, engine_id};
use super::{catalog, rows};
use crate::api::types::InviteRequest;
use crate::codes::Code;
use crate::config::catalog::CatalogConfig;

const CLUSTER: ClusterId = ClusterId(7);
const FOUNDER: NodeId = NodeId(1 << 90);
/// The node that the inviter hears alive.
const HEARD: NodeId = NodeId(77);

/// A catalog of one node calls nobody.
struct Nobody;

impl Transport for Nobody {
    fn call(&self, to: RaftNodeId, _: Bytes, _: Duration) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move { Err(TransportError::Unreachable { to, reason: "there is nobody".to_owned() }) })
    }
}

pub(super) struct Cluster {
    _folder: tempfile::TempDir,
    embedded: Embedded,
    pub(super) inviter: Inviter,
}

impl Cluster {
    async fn new() -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let config = EmbeddedConfig {
            dir: folder.path().join("catalog"),
            node: engine_id(FOUNDER),
            cluster_id: CLUSTER.0,
            transport: Arc::new(Nobody),
            timings: Timings::default(),
        };
        let embedded = Embedded::open(config).await.unwrap();
        let rows = Rows::new(Arc::new(embedded.clone()));
        let engine = Engine::Embedded(embedded.clone());
        let founder = Founder { lease_ms: 1000, created_unix_ms: 1 };
        let cluster = (CLUSTER, "home");
        catalog::found(&engine, &rows, &founder, cluster, row(FOUNDER, "alpha", 11), Incarnation(1))
            .await
            .unwrap();
        // Founding again, as after a crash, changes nothing.
        catalog::found(&engine, &rows, &founder, cluster, row(FOUNDER, "other", 12), Incarnation(2))
            .await
            .unwrap();
        let authority = Authority::create(CLUSTER).unwrap();
        let key = NodeKey::generate().unwrap();
        let membership = Membership {
            cluster: CLUSTER.0,
            cluster_name: "home".to_owned(),
            node_name: "alpha".to_owned(),
            cluster_keys: vec![ClusterKey::generate(1)],
            ca_certificate: authority.certificate().to_vec(),
            ca_key: Some(authority.key_pkcs8()),
            node_certificate: authority.issue(FOUNDER, &key.public()).unwrap(),
            node_key: key.private_pkcs8(),
            extra: Vec::new(),
        };
        let networks = vec![("front".to_owned(), address(11))];
        let inviter = Inviter {
            rows,
            membership: Arc::new(std::sync::RwLock::new(membership)),
            networks,
            catalog: CatalogConfig::Embedded,
            hears: Arc::new(|node| Box::pin(async move { node == HEARD })),
        };
        Cluster { _folder: folder, embedded, inviter }
    }

    pub(super) async fn token(&self, name: &str) -> Token {
        let request = InviteRequest { name: name.to_owned(), valid: None, notify: None };
        Token::decode(&self.inviter.invite(request).await.unwrap().token.unwrap()).unwrap()
    }

    async fn refusal(&self, request: JoinRequest) -> Code {
        let before = rows_of(&self.inviter.rows).await;
        let code = self.inviter.answer(request).await.unwrap_err().code;
        assert_eq!(rows_of(&self.inviter.rows).await, before, "a refused join changes nothing");
        code
    }
}

async fn rows_of(rows: &Rows) -> Vec<(String, Bytes)> {
    let all = rows.catalog().range(String::new()).await.unwrap();
    all.rows.into_iter().map(|(key, versioned)| (key, versioned.value)).collect()
}

fn address(host: u8) -> std::net::SocketAddr {
    std::net::SocketAddr::from(([10, 0, 1, host], 7400))
}

fn row(id: NodeId, name: &str, host: u8) -> NodeRow {
    NodeRow {
        id,
        name: name.to_owned(),
        engine_id: engine_id(id),
        addresses: vec![("front".to_owned(), address(host))],
        fingerprint: "f".to_owned(),
        domain: Vec::new(),
        memory_bytes: 1,
        criu: String::new(),
        processor: String::new(),
    }
}

pub(super) fn request(token: &Token, node: NodeId, fingerprint: &str, host: u8) -> JoinRequest {
    JoinRequest {
        cluster: token.cluster().to_string(),
        temporary_id: token.name.clone(),
        secret: *token.secret(),
        node: node.to_string(),
        fingerprint: fingerprint.to_owned(),
        public_key: NodeKey::generate().unwrap().public(),
        networks: vec![("front".to_owned(), address(host))],
        domain: Vec::new(),
        memory_bytes: 1,
        criu: String::new(),
        processor: String::new(),
        rebind: false,
        etcd_prefix: None,
    }
}

pub(super) fn run<T>(test: impl AsyncFnOnce(&Cluster) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let cluster = Cluster::new().await;
        let outcome = test(&cluster).await;
        cluster.embedded.shutdown().await;
        outcome
    })
}

#[test]
fn a_token_admits_one_node_and_a_crashed_joiner_is_answered_again() {
    run(async |cluster| {
        let token = cluster.token("beta").await;
        let reply = cluster.inviter.answer(request(&token, NodeId(2), "machine-2", 12)).await.unwrap();
        assert_eq!((reply.node_name.as_str(), reply.hints.len()), ("beta", 1));
        let again = cluster.inviter.answer(request(&token, NodeId(2), "machine-2", 12)).await.unwrap();
        assert_ne!(again.node_certificate, reply.node_certificate, "the crashed joiner has a new key");
        let (row, _) = cluster.inviter.rows.get::<NodeRow>(&Key::Node(NodeId(2))).await.unwrap().unwrap();
        assert_eq!((row.name.as_str(), row.engine_id), ("beta", engine_id(NodeId(2))));
        let (invite, _) =
            cluster.inviter.rows.get::<InviteRow>(&Key::Invite("beta".into())).await.unwrap().unwrap();
        assert!(
            !rows::encode(&invite).unwrap().windows(16).any(|part| part == token.secret()),
            "no secret is stored"
        );
    });
}

#[test]
fn each_refusal_has_its_own_code_and_changes_nothing() {
    run(async |cluster| {
        let token = cluster.token("beta").await;
        cluster.inviter.answer(request(&token, NodeId(2), "machine-2", 12)).await.unwrap();
        assert_eq!(cluster.refusal(request(&token, NodeId(3), "machine-3", 13)).await, Code::TokenUsed);
        assert_eq!(cluster.refusal(request(&token, NodeId(2), "copied", 12)).await, Code::IdentityCloned);

        let token = cluster.token("gamma").await;
        assert_eq!(cluster.refusal(request(&token, NodeId(2), "machine-2", 12)).await, Code::AlreadyMember);
        let mut other = request(&token, NodeId(3), "machine-3", 13);
        other.cluster = ClusterId(8).to_string();
        assert_eq!(cluster.refusal(other).await, Code::WrongCluster);
        let mut other = request(&token, NodeId(3), "machine-3", 13);
        other.secret = [0; 16];
        assert_eq!(cluster.refusal(other).await, Code::TokenUsed);
        let mut other = request(&token, NodeId(3), "machine-3", 13);
        other.temporary_id = "nobody".to_owned();
        assert_eq!(cluster.refusal(other).await, Code::NotConfigured);
        let mut other = request(&token, NodeId(3), "machine-3", 13);
        other.networks = vec![("frnt".to_owned(), address(13))];
        assert_eq!(cluster.refusal(other).await, Code::ConfigInvalid);
        assert_eq!(
            cluster.refusal(request(&token, NodeId(3), "machine-3", 12)).await,
            Code::IdentityConflict
        );
        let mut other = request(&token, NodeId(3), "machine-3", 13);
        other.rebind = true;
        other.networks.push(("front".to_owned(), address(13)));
        assert_eq!(cluster.refusal(other).await, Code::ConfigInvalid);
        let mut other = request(&token, NodeId(3), "machine-3", 13);
        other.public_key.pop();
        assert!(cluster.inviter.answer(other).await.is_err());
        cluster.inviter.answer(request(&token, NodeId(3), "machine-3", 13)).await.unwrap();
    });
}

#[test]
fn of_two_nodes_that_race_for_one_token_exactly_one_wins() {
    run(async |cluster| {
        let token = cluster.token("beta").await;
        let both = [(NodeId(2), 12), (NodeId(3), 13)];
        let joins = both.map(|(node, host)| cluster.inviter.answer(request(&token, node, "machine", host)));
        let outcomes = futures_util::future::join_all(joins).await;
        let codes: Vec<Code> =
            outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).map(|f| f.code).collect();
        assert_eq!(codes, [Code::TokenUsed]);
        let nodes: Vec<(NodeRow, u64)> = cluster.inviter.rows.all("node/").await.unwrap();
        assert_eq!(nodes.len(), 2);
    });
}

#[test]
fn of_two_nodes_with_one_address_exactly_one_gets_in_and_the_other_is_told_whose_it_is() {
    run(async |cluster| {
        let tokens = [cluster.token("beta").await, cluster.token("gamma").await];
        let joins = [(NodeId(2), &tokens[0]), (NodeId(3), &tokens[1])]
            .map(|(node, token)| cluster.inviter.answer(request(token, node, "machine", 12)));
        let outcomes = futures_util::future::join_all(joins).await;
        let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert_eq!(refused.iter().map(|failure| failure.code).collect::<Vec<_>>(), [Code::IdentityConflict]);
        assert!(
            refused[0].message.contains("beta") || refused[0].message.contains("gamma"),
            "{}",
            refused[0]
        );
        let nodes: Vec<(NodeRow, u64)> = cluster.inviter.rows.all("node/").await.unwrap();
        assert_eq!(nodes.len(), 2);
    });
}

#[test]
fn a_known_identity_takes_a_new_name_only_when_asked_to_and_while_nobody_runs_under_it() {
    run(async |cluster| {
        for (node, name, host) in [(NodeId(2), "beta", 12), (HEARD, "delta", 14)] {
            let token = cluster.token(name).await;
            cluster.inviter.answer(request(&token, node, "machine", host)).await.unwrap();
        }
        let token = cluster.token("gamma").await;
        assert_eq!(cluster.refusal(request(&token, NodeId(2), "machine", 12)).await, Code::AlreadyMember);
        let rebind = |node, host| JoinRequest { rebind: true, ..request(&token, node, "machine", host) };
        assert_eq!(cluster.refusal(rebind(HEARD, 14)).await, Code::IdentityCloned);
        let reply = cluster.inviter.answer(rebind(NodeId(2), 15)).await.unwrap();
        assert_eq!(reply.node_name, "gamma");
        let nodes: Vec<(NodeRow, u64)> = cluster.inviter.rows.all("node/").await.unwrap();
        let known: Vec<_> = nodes.iter().filter(|(row, _)| row.id == NodeId(2)).collect();
        assert_eq!(known.len(), 1, "a uuid has one row for ever");
        assert_eq!((known[0].0.name.as_str(), known[0].0.addresses[0].1), ("gamma", address(15)));
        // The address that it left is free again.
        let token = cluster.token("beta").await;
        cluster.inviter.answer(request(&token, NodeId(5), "machine-5", 12)).await.unwrap();
    });
}

#[test]
fn an_invitation_that_is_renewed_keeps_its_token() {
    run(async |cluster| {
        let token = cluster.token("beta").await;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let notify = Some(socket.local_addr().unwrap().to_string());
        let again = InviteRequest { name: "beta".to_owned(), valid: Some("2h".to_owned()), notify };
        assert_eq!(cluster.inviter.invite(again.clone()).await.unwrap().token, None);
        let mut notice = [0; 64];
        let length = socket.recv(&mut notice).unwrap();
        assert_eq!(super::notice::decode(&notice[..length]), Some(CLUSTER));
        cluster.inviter.answer(request(&token, NodeId(2), "machine-2", 12)).await.unwrap();
        let wrong = InviteRequest { notify: Some("beta".to_owned()), name: "gamma".to_owned(), ..again };
        assert_eq!(cluster.inviter.invite(wrong).await.unwrap_err().code, Code::BadRequest);
    });
}

#[test]
fn an_expired_invitation_and_a_wrong_name_are_refused() {
    run(async |cluster| {
        let token = cluster.token("beta").await;
        let key = Key::Invite("beta".to_owned());
        let (invite, _) = cluster.inviter.rows.get::<InviteRow>(&key).await.unwrap().unwrap();
        let expired = InviteRow { expires_unix_s: 1, ..invite };
        let txn = steadfast::catalog::Txn::put(key.encode(), rows::encode(&expired).unwrap());
        cluster.inviter.rows.commit(txn).await.unwrap();
        assert_eq!(cluster.refusal(request(&token, NodeId(2), "machine-2", 12)).await, Code::TokenExpired);
        let invite = |name: &str, valid: &str| {
            let (name, valid) = (name.to_owned(), Some(valid.to_owned()));
            cluster.inviter.invite(InviteRequest { name, valid, notify: None })
        };
        assert_eq!(invite("Beta", "1h").await.unwrap_err().code, Code::NameInvalid);
        assert_eq!(invite("alpha", "1h").await.unwrap_err().code, Code::NameTaken);
        assert_eq!(invite("beta", "1 fortnight").await.unwrap_err().code, Code::BadRequest);
    });
}
