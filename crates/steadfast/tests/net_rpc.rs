//! Calls between nodes over real sockets on loopback: who is served, what is refused, and what happens
//! when paths and peers go away. Read next: `src/net/rpc`.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use steadfast::net::rpc::{
    Accepted, BODY_BYTES_MAX, Class, Limits, Listener, Peers, RpcError, Services, connect_join,
};
use steadfast::net::tls::{Authority, Credentials, NodeKey, Protocol, fingerprint};
use steadfast_proto::ids::{ClusterId, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LONG: Duration = Duration::from_secs(20);
const ECHO: u8 = 1;
const A: NodeId = NodeId(0xa);
const B: NodeId = NodeId(0xb);

fn authority() -> Authority {
    Authority::create(ClusterId(1)).unwrap()
}

fn credentials(authority: &Authority, node: NodeId) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let certificate = authority.issue(node, &key.public()).unwrap();
    Credentials::new(node, authority.certificate(), &certificate, &key.private_pkcs8()).unwrap()
}

fn echo(limits: Limits) -> Services {
    let services = Services::new(limits);
    services.register(ECHO, |peer, body| {
        Box::pin(async move {
            assert_eq!(peer, A);
            Ok(body)
        })
    });
    services
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn listen(authority: &Authority, node: NodeId, services: &Services) -> Listener {
    Listener::bind(any_port(), &credentials(authority, node), services.clone()).unwrap()
}

async fn echoes(peers: &Peers, class: Class, body: &'static [u8]) -> Result<Bytes, RpcError> {
    peers.call(B, class, ECHO, Bytes::from_static(body), LONG).await
}

#[tokio::test]
async fn calls_of_every_class_and_size_are_answered() {
    let authority = authority();
    let listener = listen(&authority, B, &echo(Limits::default()));
    let peers = Peers::new(credentials(&authority, A));
    peers.set_addresses(B, vec![listener.address()]);
    for class in [Class::Control, Class::Raft, Class::Bulk] {
        assert_eq!(echoes(&peers, class, b"hello").await.unwrap(), &b"hello"[..]);
        assert_eq!(echoes(&peers, class, b"").await.unwrap(), &b""[..]);
    }
    let large = Bytes::from(vec![7; BODY_BYTES_MAX]);
    let answer = peers.call(B, Class::Bulk, ECHO, large.clone(), LONG).await.unwrap();
    assert_eq!(answer, large);
    let error = peers.call(B, Class::Bulk, ECHO, vec![0; BODY_BYTES_MAX + 1], LONG).await;
    assert!(matches!(error, Err(RpcError::TooLarge { .. })));
    assert_eq!(peers.connected(B, Class::Raft), Some(listener.address()));
}

#[tokio::test]
async fn many_calls_share_a_connection_and_keep_their_answers() {
    let authority = authority();
    let listener = listen(&authority, B, &echo(Limits { calls_max: 4, ..Limits::default() }));
    let peers = Peers::new(credentials(&authority, A));
    peers.set_addresses(B, vec![listener.address()]);
    let calls = (0..500_u32).map(|number| {
        let peers = peers.clone();
        tokio::spawn(async move {
            let body = Bytes::from(number.to_le_bytes().repeat(1 + number as usize * 7));
            assert_eq!(peers.call(B, Class::Bulk, ECHO, body.clone(), LONG).await.unwrap(), body);
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_an_unknown_service_and_a_panic_reach_the_caller_in_words() {
    let authority = authority();
    let services = echo(Limits::default());
    services.register(2, |_, _| Box::pin(async { Err("the budget is 1 MiB".into()) }));
    services.register(3, |_, _| Box::pin(async { panic!("a bug") }));
    let listener = listen(&authority, B, &services);
    let peers = Peers::new(credentials(&authority, A));
    peers.set_addresses(B, vec![listener.address()]);
    for (service, words) in [(2, "budget is 1 MiB"), (3, "internally"), (9, "not offered")] {
        let error = peers.call(B, Class::Control, service, Bytes::new(), LONG).await.unwrap_err();
        assert!(matches!(error, RpcError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(echoes(&peers, Class::Control, b"still up").await.is_ok());
}

#[tokio::test]
async fn another_clusters_node_and_an_impostor_are_not_served() {
    let (ours, theirs) = (authority(), authority());
    let calls = Arc::new(AtomicUsize::new(0));
    let services = Services::new(Limits::default());
    let counted = Arc::clone(&calls);
    services.register(ECHO, move |_, body| {
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move { Ok(body) })
    });
    let listener = listen(&ours, B, &services);
    let foreign = Peers::new(credentials(&theirs, A));
    foreign.set_addresses(B, vec![listener.address()]);
    foreign.call(B, Class::Raft, ECHO, Bytes::new(), LONG).await.unwrap_err();
    // The right cluster, but another node than the one that is called.
    let peers = Peers::new(credentials(&ours, A));
    peers.set_addresses(NodeId(0xc), vec![listener.address()]);
    let error = peers.call(NodeId(0xc), Class::Raft, ECHO, Bytes::new(), LONG).await.unwrap_err();
    assert!(matches!(error, RpcError::Unreachable { .. }), "{error}");
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_removed_node_is_turned_away_at_once() {
    let authority = authority();
    let services = echo(Limits::default());
    let member = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&member);
    services.set_allow(move |_| asked.load(Ordering::SeqCst));
    let listener = listen(&authority, B, &services);
    let peers = Peers::new(credentials(&authority, A));
    peers.set_addresses(B, vec![listener.address()]);
    echoes(&peers, Class::Control, b"in").await.unwrap();
    member.store(false, Ordering::SeqCst);
    assert!(matches!(echoes(&peers, Class::Control, b"out").await, Err(RpcError::Lost { .. })));
    member.store(true, Ordering::SeqCst);
    echoes(&peers, Class::Control, b"back").await.unwrap();
    services.close_peer(A);
    // The closed connection is noticed by the next call or before it; then a new one is made.
    while echoes(&peers, Class::Control, b"again").await.is_err() {}
}

#[tokio::test]
async fn a_dead_network_does_not_keep_a_call_from_the_other() {
    let authority = authority();
    let listener = listen(&authority, B, &echo(Limits::default()));
    // Accepts and never answers, as a path that swallows everything.
    let hole = TcpListener::bind(any_port()).await.unwrap();
    let closed = TcpListener::bind(any_port()).await.unwrap();
    let refused = closed.local_addr().unwrap();
    drop(closed);
    let peers = Peers::new(credentials(&authority, A));
    peers.set_addresses(B, vec![hole.local_addr().unwrap(), refused, listener.address()]);
    echoes(&peers, Class::Raft, b"over the third").await.unwrap();
    assert_eq!(peers.connected(B, Class::Raft), Some(listener.address()));
}

/// Forwards bytes until it is told to swallow them, like a network that is cut without a word.
async fn relay(to: SocketAddr, swallow: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((from, _)) = listener.accept().await {
            let swallow = Arc::clone(&swallow);
            tokio::spawn(async move {
                let Ok(to) = TcpStream::connect(to).await else { return };
                let (from_read, from_write) = from.into_split();
                let (to_read, to_write) = to.into_split();
                let back = pump(to_read, from_write, Arc::clone(&swallow));
                tokio::join!(pump(from_read, to_write, swallow), back);
            });
        }
    });
    address
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    swallow: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer).await {
            Ok(count) if count > 0 => {
                let pass = !swallow.load(Ordering::SeqCst);
                if pass && to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            Ok(_) | Err(_) => return,
        }
    }
}

#[tokio::test]
async fn a_path_that_falls_silent_is_given_up_for_the_other_network() {
    let authority = authority();
    let listener = listen(&authority, B, &echo(Limits::default()));
    let cut = Arc::new(AtomicBool::new(false));
    let front = relay(listener.address(), Arc::clone(&cut)).await;
    let peers = Peers::new(credentials(&authority, A));
    peers.set_addresses(B, vec![front, listener.address()]);
    for class in [Class::Raft, Class::Control] {
        echoes(&peers, class, b"front").await.unwrap();
        assert_eq!(peers.connected(B, class), Some(front));
    }
    cut.store(true, Ordering::SeqCst);
    for class in [Class::Raft, Class::Control] {
        // The call that was under way may be lost; the bound of its silence is far below its own.
        assert!(matches!(echoes(&peers, class, b"lost").await, Err(RpcError::Lost { .. })));
        echoes(&peers, class, b"back").await.unwrap();
        assert_eq!(peers.connected(B, class), Some(listener.address()));
    }
}

#[tokio::test]
async fn a_restarted_peer_is_found_again() {
    let authority = authority();
    let listener = listen(&authority, B, &echo(Limits::default()));
    let address = listener.address();
    let peers = Peers::new(credentials(&authority, A));
    peers.set_addresses(B, vec![address]);
    echoes(&peers, Class::Control, b"before").await.unwrap();
    drop(listener);
    peers.disconnect(B);
    let error = peers.call(B, Class::Raft, ECHO, Bytes::new(), LONG).await.unwrap_err();
    assert!(error.is_certainly_unsent(), "{error}");
    let services = echo(Limits::default());
    let restarted = async { Listener::bind(address, &credentials(&authority, B), services.clone()).unwrap() };
    let (answer, _listener) = tokio::join!(echoes(&peers, Class::Control, b"after"), restarted);
    answer.unwrap();
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let authority = authority();
    let listener = listen(&authority, B, &echo(Limits::default()));
    for _ in 0..20 {
        let mut stream = TcpStream::connect(listener.address()).await.unwrap();
        stream.write_all(&[0x16; 300]).await.unwrap();
    }
    let peers = Peers::new(credentials(&authority, A));
    peers.set_addresses(B, vec![listener.address()]);
    echoes(&peers, Class::Control, b"fine").await.unwrap();
}

#[tokio::test]
async fn api_and_join_connections_are_handed_over_with_who_they_are() {
    let authority = authority();
    let services = echo(Limits::default());
    services.set_streams(|mut accepted: Accepted| {
        Box::pin(async move {
            let who = format!("{:?} {:?}", accepted.protocol, accepted.peer);
            accepted.stream.write_all(who.as_bytes()).await.unwrap();
            accepted.stream.shutdown().await.unwrap();
        })
    });
    let listener = listen(&authority, B, &services);
    let peers = Peers::new(credentials(&authority, A));
    peers.set_addresses(B, vec![listener.address()]);
    let mut text = String::new();
    peers.connect_api(B).await.unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, format!("{:?} {:?}", Protocol::Api, Some(A)));
    let pinned = fingerprint(authority.certificate());
    let mut join = connect_join(&[listener.address()], pinned).await.unwrap();
    text.clear();
    join.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, format!("{:?} None", Protocol::Join));
    let error = connect_join(&[listener.address()], [0; 32]).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
}
