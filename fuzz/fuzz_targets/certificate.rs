//! Certificates and keys of others: any bytes, and true ones in which some bytes were changed. A changed certificate
//! must not name another node and pass.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use steadfast::net::tls::{Authority, Credentials, NodeKey, fingerprint};
use steadfast_proto::ids::{ClusterId, NodeId};

const NODE: NodeId = NodeId(7);

struct Truth {
    authority: Authority,
    key: Vec<u8>,
    certificate: Vec<u8>,
}

static TRUTH: LazyLock<Truth> = LazyLock::new(|| {
    let authority = Authority::create(ClusterId(1)).expect("an authority");
    let key = NodeKey::generate().expect("a key");
    let certificate = authority.issue(NODE, &key.public()).expect("a certificate");
    Truth { authority, key: key.private_pkcs8(), certificate }
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    let Truth { authority, key, certificate } = &*TRUTH;
    let _ = fingerprint(bytes);
    match kind % 6 {
        0 => drop(Credentials::new(NODE, authority.certificate(), bytes, key)),
        1 => drop(Credentials::new(NODE, authority.certificate(), &changed(certificate, bytes), key)),
        2 => drop(Credentials::new(NODE, &changed(authority.certificate(), bytes), certificate, key)),
        3 => drop(Credentials::new(NODE, authority.certificate(), certificate, &changed(key, bytes))),
        4 => drop(Authority::load(ClusterId(1), authority.certificate(), &changed(key, bytes))),
        _ => drop(authority.issue(NODE, bytes)),
    }
});

/// Each three bytes name a place and what to put there.
fn changed(original: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut changed = original.to_vec();
    for edit in edits.chunks_exact(3).take(8) {
        let place = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % changed.len();
        changed[place] = edit[2];
    }
    changed
}
