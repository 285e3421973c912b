//! What lies on a disk, what the kernel announces of it, and a node's own files of names. Whatever is found must make
//! an id that can be written and read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::devices::{probe, read_state, uevent::block_device};
use steadfast::envelope::Format;
use steadfast_proto::devices::{DeviceId, DeviceKey};

fuzz_target!(|bytes: &[u8]| {
    // The superblocks are far apart: the input is laid where each may begin.
    for place in [0, 512, 1024, 4086, 0x10000] {
        let mut start = vec![0; 68 << 10];
        let length = bytes.len().min(start.len() - place);
        start[place..place + length].copy_from_slice(&bytes[..length]);
        for mark in probe(&start, bytes).marks {
            let id: DeviceId = mark.to_string().parse().expect("a mark makes an id");
            assert_eq!(DeviceKey::decode(&DeviceKey::Device(id.clone()).encode()), Some(DeviceKey::Device(id)));
        }
    }
    let _ = probe(bytes, bytes);
    let _ = block_device(bytes);
    let _ = read_state(bytes);
    for magic in [*b"SFdt", *b"SFdj"] {
        let format = Format { magic, version: 1, version_min: 1, body_bytes_max: 1 << 20 };
        let _ = read_state(&format.wrap(bytes.get(..1 << 20).unwrap_or(bytes)));
    }
});
