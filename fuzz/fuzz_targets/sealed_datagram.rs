//! A sealed datagram from the network: arbitrary bytes never open, a true one opens once, a changed one never.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use steadfast::{
    identity::ClusterKey,
    net::seal::{Opener, Sealer},
};
use steadfast_proto::ids::{ClusterId, Incarnation, NetworkId, NodeId};

const CLUSTER: ClusterId = ClusterId(1);
static KEY: LazyLock<ClusterKey> = LazyLock::new(|| ClusterKey::generate(1));

fuzz_target!(|bytes: &[u8]| {
    let mut opener = Opener::new(CLUSTER, std::slice::from_ref(&*KEY));
    assert!(opener.open(&mut bytes.to_vec()).is_err());

    let mut sealer = Sealer::new(CLUSTER, &KEY, NodeId(7), Incarnation(1), [9; 16]);
    let mut datagram = Vec::new();
    if sealer.seal(NetworkId(0), bytes, &mut datagram).is_err() {
        return;
    }
    let mut tampered = datagram.clone();
    if let [high, low, mask, ..] = *bytes {
        let place = usize::from(u16::from_be_bytes([high, low])) % tampered.len();
        tampered[place] ^= mask;
        if mask != 0 {
            assert!(opener.open(&mut tampered).is_err());
        }
    }
    let opened = opener.open(&mut datagram.clone()).expect("a true datagram opens").payload.to_vec();
    assert_eq!(opened, bytes);
    assert!(opener.open(&mut datagram).is_err(), "a datagram opened twice");
});
