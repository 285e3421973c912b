//! The `config.json` of a bundle that somebody else made, and what runc is told because of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_container::fuzzing::bundle;

fuzz_target!(|bytes: &[u8]| {
    let Some(made) = bundle(bytes) else { return };
    let made: serde_json::Value = serde_json::from_slice(&made).expect("what was made is JSON");
    // A stranger chooses what runs, never with which rights or in which folder of the host.
    assert_eq!(made["root"]["path"], "rootfs");
    assert_eq!(made["process"]["noNewPrivileges"], false);
    assert_eq!(made["linux"]["namespaces"].as_array().map(Vec::len), Some(5));
});
