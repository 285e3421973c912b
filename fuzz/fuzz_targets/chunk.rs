//! A chunk from another node's memory: arbitrary bytes never open, a true one opens, a changed one never.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use steadfast::{identity::ClusterKey, memory::ContainerKey};
use steadfast_proto::ids::{ContainerId, Digest};

static KEY: LazyLock<ContainerKey> =
    LazyLock::new(|| ContainerKey::derive(&ClusterKey::generate(1), ContainerId(1)));

fuzz_target!(|bytes: &[u8]| {
    let name = KEY.name(bytes);
    assert!(KEY.open(name, &mut bytes.to_vec()).is_err());

    let mut chunk = bytes.to_vec();
    KEY.seal(name, &mut chunk);
    if let [high, low, mask, ..] = *bytes {
        let place = usize::from(u16::from_be_bytes([high, low])) % chunk.len();
        let mut tampered = chunk.clone();
        tampered[place] ^= mask;
        assert_eq!(KEY.open(name, &mut tampered).is_ok(), mask == 0);
        let mut other = name;
        other.0[place % 32] ^= mask;
        assert_eq!(KEY.open(Digest(other.0), &mut chunk.clone()).is_ok(), mask == 0);
    }
    assert_eq!(KEY.open(name, &mut chunk).expect("a true chunk opens"), bytes);
});
