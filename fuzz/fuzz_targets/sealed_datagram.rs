//! Sealed datagrams of both forms from the network: bytes that nobody sealed never open, also under a session tag that
//! is known; a true datagram opens at most once, whatever arrived before it; a changed one never.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use steadfast::{
    identity::ClusterKey,
    net::seal::{Form, Opener, Rejected, SHORT_BYTES, Sealer},
};
use steadfast_proto::ids::{ClusterId, Incarnation, NetworkId, NodeId};

const CLUSTER: ClusterId = ClusterId(1);
const NETWORKS: u16 = 2;

fn key() -> ClusterKey {
    // Fixed, so that a corpus entry which holds a session tag means the same in the next run.
    ClusterKey::new(1, [7; 32])
}

fn sealed(sealer: &mut Sealer, network: u16, form: Form, payload: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    sealer.seal(NetworkId(network), form, payload, &mut bytes).ok().map(|_| bytes)
}

/// Nobody sealed these bytes: not as they are, and not behind the clear part of a session that is known.
fn inventions(bytes: &[u8]) {
    let mut opener = Opener::new(CLUSTER, &[key()]);
    assert!(opener.open(&mut bytes.to_vec()).is_err());
    let mut sealer = Sealer::new(CLUSTER, &key(), NodeId(7), Incarnation(1), [9; 16]);
    let mut first = sealed(&mut sealer, 0, Form::Introduction, b"").expect("nothing fits");
    opener.open(&mut first).expect("a true datagram opens");
    assert!(opener.open(&mut bytes.to_vec()).is_err());
    let clear = sealed(&mut sealer, 0, Form::Short, b"").expect("nothing fits");
    // The tag stays; the fuzzer owns what follows it: sequence, cipher text and tag.
    let mut behind_tag = [&clear[..SHORT_BYTES - 4], bytes].concat();
    assert!(opener.open(&mut behind_tag).is_err());
    let mut behind_clear = [&clear[..SHORT_BYTES], bytes].concat();
    assert!(opener.open(&mut behind_clear).is_err());
}

/// Four bytes at a time say what is sealed, for which network and in which form, and what of all that was sealed
/// arrives next, true or with one byte changed.
fn traffic(bytes: &[u8]) {
    let mut opener = Opener::new(CLUSTER, &[key()]);
    let mut sealers: Vec<_> =
        (0..2).map(|node| Sealer::new(CLUSTER, &key(), NodeId(node), Incarnation(1), [9; 16])).collect();
    let (mut flying, mut opened, mut introduced) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for step in bytes.chunks_exact(4).take(256) {
        let (node, network) = (usize::from(step[0] & 1), u16::from(step[0] >> 1) % NETWORKS);
        let form = if step[0] & 0x80 == 0 { Form::Introduction } else { Form::Short };
        let payload = vec![step[1]; usize::from(step[1])];
        let sent = sealed(&mut sealers[node], network, form, &payload).expect("255 bytes fit");
        flying.push((node, network, form, payload, sent));
        let which = usize::from(step[2]) % flying.len();
        let (node, network, form, payload, sent) = &flying[which];
        let mut arrived = sent.clone();
        if step[3] & 1 == 1 {
            let place = usize::from(step[3] >> 1) % arrived.len();
            arrived[place] ^= step[1] | 1;
            assert!(opener.open(&mut arrived).is_err(), "a changed datagram opened");
            continue;
        }
        match opener.open(&mut arrived) {
            Ok(heard) => {
                assert_eq!((heard.source, heard.network), (NodeId(*node as u128), NetworkId(*network)));
                assert_eq!(heard.payload, payload);
                assert!(opened.insert(which), "a datagram opened twice");
                assert!(*form == Form::Introduction || introduced.contains(&(*node, *network)));
                introduced.insert((*node, *network));
            }
            Err(Rejected::Replay) => assert!(opened.contains(&which)),
            Err(reason) => {
                assert_eq!((*form, reason), (Form::Short, Rejected::UnknownSession));
                assert!(!introduced.contains(&(*node, *network)));
            }
        }
    }
}

/// The whole input as one payload, in both forms, one byte changed at a place that the input names.
fn payload(bytes: &[u8]) {
    let mut opener = Opener::new(CLUSTER, &[key()]);
    let mut sealer = Sealer::new(CLUSTER, &key(), NodeId(7), Incarnation(1), [9; 16]);
    for form in [Form::Introduction, Form::Short] {
        let Some(datagram) = sealed(&mut sealer, 0, form, bytes) else { return };
        assert_eq!(datagram.len(), bytes.len() + form.overhead());
        if let [high, low, mask, ..] = *bytes {
            let mut tampered = datagram.clone();
            let place = usize::from(u16::from_be_bytes([high, low])) % tampered.len();
            tampered[place] ^= mask;
            assert!(mask == 0 || opener.open(&mut tampered).is_err());
        }
        let opened = opener.open(&mut datagram.clone()).expect("a true datagram opens").payload.to_vec();
        assert_eq!(opened, bytes);
        assert!(opener.open(&mut datagram.clone()).is_err(), "a datagram opened twice");
    }
}

fuzz_target!(|bytes: &[u8]| {
    inventions(bytes);
    traffic(bytes);
    payload(bytes);
});
