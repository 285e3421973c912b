//! What the kernel and the neighbours on a bridge send: netlink datagrams and ARP frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::Ipv4Addr;
use steadfast_container::fuzzing::{arp_conflict, kernel_datagram};

fuzz_target!(|bytes: &[u8]| {
    assert!(kernel_datagram(bytes) <= bytes.len() / 16);
    let length = u32::try_from(bytes.len() + 16).expect("inputs are short");
    let framed = [&length.to_ne_bytes()[..], &[0; 12], bytes].concat();
    assert_eq!(kernel_datagram(&framed), 1);
    let _ = arp_conflict(bytes, Ipv4Addr::new(10, 0, 9, 5), [2, 0, 0, 0, 0, 1]);
});
