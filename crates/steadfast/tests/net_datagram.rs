//! Datagrams over real sockets on loopback: networks are told apart, arrivals are dated by the kernel,
//! and everything that is there is handed over at once. Read next: `src/net/datagram.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::net::SocketAddr;

use steadfast::identity::ClusterKey;
use steadfast::net::datagram::{self, Sent};
use steadfast::net::seal::{Form, Opener, Sealer};
use steadfast_proto::ids::{ClusterId, Incarnation, NetworkId, NodeId};

const FRONT: NetworkId = NetworkId(0);
const BACK: NetworkId = NetworkId(1);

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test]
async fn sealed_datagrams_arrive_on_their_network_with_a_date() {
    let (to, mut receiver) = datagram::bind(&[(FRONT, any_port()), (BACK, any_port())]).unwrap();
    let (sender, _idle) = datagram::bind(&[(FRONT, any_port()), (BACK, any_port())]).unwrap();
    let key = ClusterKey::generate(1);
    let mut sealer = Sealer::new(ClusterId(1), &key, NodeId(1), Incarnation(1), [1; 16]);
    let mut opener = Opener::new(ClusterId(1), &[key]);
    let before = datagram::now();
    let mut bytes = Vec::new();
    for round in 0..100_u32 {
        for network in [FRONT, BACK] {
            bytes.clear();
            let form = if round == 0 { Form::Introduction } else { Form::Short };
            sealer.seal(network, form, &round.to_le_bytes(), &mut bytes).unwrap();
            assert_eq!(bytes.len(), form.overhead() + 4);
            let address = to.local_address(network).unwrap();
            assert_eq!(sender.send(network, address, &bytes), Sent::Yes);
        }
    }
    let mut seen = [0_u32; 2];
    let mut receives = 0;
    while seen != [100, 100] {
        receives += 1;
        for datagram in receiver.receive().await.unwrap() {
            let (network, from, received) = (datagram.network(), datagram.from(), datagram.received());
            assert!(before <= received && received <= datagram::now());
            assert_eq!(from, sender.local_address(network));
            let opened = opener.open(datagram.bytes()).unwrap();
            assert_eq!(opened.network, network);
            let count = &mut seen[usize::from(network.0)];
            assert_eq!(opened.payload, count.to_le_bytes());
            *count += 1;
        }
    }
    assert!(receives <= 100, "{receives} receives for what lay ready");
    assert_eq!(to.counts(FRONT).unwrap().received, 100);
    assert_eq!(sender.counts(BACK).unwrap().sent, 100);
}

#[tokio::test]
async fn a_datagram_is_dated_by_its_arrival_and_not_by_its_reading() {
    let (to, mut receiver) = datagram::bind(&[(FRONT, any_port())]).unwrap();
    let address = to.local_address(FRONT).unwrap();
    // On a machine on which nobody asked for dates before, the kernel begins to give them a moment later.
    for attempt in 1.. {
        to.send(FRONT, address, b"early");
        let sent = datagram::now();
        // The process does something else for a while, as if it were stopped.
        while datagram::now().since(sent).as_millis() < 50 {
            std::hint::spin_loop();
        }
        let datagrams = receiver.receive().await.unwrap();
        let late = datagram::now().since(datagrams[0].received());
        assert_eq!(datagrams[0].bytes(), b"early");
        if late.as_millis() >= 50 {
            break;
        }
        assert!(attempt < 20, "dated {late:?} ago");
    }
}

#[tokio::test]
async fn a_closed_port_does_not_disturb_sending_or_receiving() {
    let (to, mut receiver) = datagram::bind(&[(FRONT, any_port())]).unwrap();
    let closed = std::net::UdpSocket::bind(any_port()).unwrap();
    let gone = closed.local_addr().unwrap();
    drop(closed);
    for _ in 0..10 {
        to.send(FRONT, gone, b"nobody");
    }
    let own = to.local_address(FRONT).unwrap();
    assert_eq!(to.send(FRONT, own, b"alive"), Sent::Yes);
    assert_eq!(receiver.receive().await.unwrap()[0].bytes(), b"alive");
    assert_eq!(to.send(BACK, own, b""), Sent::NoNetwork);
}

#[tokio::test]
async fn an_address_that_is_not_ours_is_named() {
    let error = datagram::bind(&[(BACK, "192.0.2.1:9".parse().unwrap())]).unwrap_err();
    assert!(error.to_string().contains("192.0.2.1:9 of network 1"), "{error}");
}
