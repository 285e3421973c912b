//! The pool on a real tmpfs: budgets, grants, and requests that are none. Read next: `src/memory/pool.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use steadfast::memory::{
    self, CheckpointId, ContainerKey, GRANT_LEASE, GrantRefused, Manifest, Pool, PutError, SealError, Token,
};
use steadfast::net::datagram::now;
use steadfast::net::rpc::{Class, Limits, Listener, Peers, RpcError, Services};
use steadfast::net::tls::{Authority, Credentials, NodeKey};
use steadfast_proto::ids::{ClusterId, ContainerId, Digest, Epoch, NodeId};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const OWNER: NodeId = NodeId(1);
const ID: CheckpointId = CheckpointId { container: ContainerId(1), epoch: Epoch(1), number: 1 };

fn pool(budget: u64) -> (TempDir, Pool) {
    let folder = tempfile::Builder::new().prefix("steadfast-test-").tempdir_in("/dev/shm").unwrap();
    let pool = Pool::open(folder.path(), budget).unwrap();
    (folder, pool)
}

fn chunk(seed: u8) -> (Digest, u32, Vec<u8>) {
    let key = steadfast::identity::ClusterKey::new(1, [1; 32]);
    let key = ContainerKey::derive(&key, ID.container);
    let mut bytes = vec![seed; 10_000];
    let digest = key.name(&bytes);
    key.seal(digest, &mut bytes);
    (digest, crc32c::crc32c(&bytes), bytes)
}

fn manifest() -> Vec<u8> {
    let manifest = Manifest::new(ID.container, ID.epoch, ID.number, 1, Vec::new(), Vec::new());
    manifest.encode().unwrap().1
}

#[test]
fn a_grant_is_all_or_nothing_and_holds_what_it_promised() {
    let (_folder, pool) = pool(MIB);
    let refused = pool.reserve(OWNER, ID, MIB + 1).unwrap_err();
    assert_eq!(refused, GrantRefused::NotEnough { need: MIB + 1, free: MIB });
    let granted = pool.reserve(OWNER, ID, 16_384).unwrap();
    let other = CheckpointId { container: ContainerId(2), ..ID };
    let refused = pool.reserve(OWNER, other, MIB).unwrap_err();
    assert_eq!(refused, GrantRefused::NotEnough { need: MIB, free: MIB - 16_384 });
    let (digest, crc, bytes) = chunk(1);
    for _ in 0..3 {
        pool.put(OWNER, granted.token, digest, crc, &bytes).unwrap();
    }
    assert_eq!((pool.usage().used, pool.usage().reserved), (12_288, 4096));
    let (digest, crc, bytes) = chunk(2);
    let error = pool.put(OWNER, granted.token, digest, crc, &bytes).unwrap_err();
    assert!(matches!(error, PutError::OverGrant { granted: 16_384, asked: 12_288 }), "{error}");
    // Asking again for the same checkpoint takes the first grant's place.
    pool.reserve(OWNER, ID, MIB).unwrap();
    assert_eq!((pool.usage().used, pool.usage().free), (0, 0));
}

#[test]
fn a_grant_ends_with_its_lease_unless_it_is_used() {
    let (_folder, pool) = pool(MIB);
    let granted = pool.reserve(OWNER, ID, MIB).unwrap();
    let (digest, crc, bytes) = chunk(1);
    pool.put(OWNER, granted.token, digest, crc, &bytes).unwrap();
    pool.expire(now() + (GRANT_LEASE - Duration::from_secs(10)));
    pool.renew(OWNER, granted.token).unwrap();
    pool.expire(now() + GRANT_LEASE);
    assert_eq!((pool.usage().used, pool.usage().reserved), (0, 0));
    assert!(matches!(pool.renew(OWNER, granted.token), Err(PutError::UnknownGrant)));
    assert!(pool.get(digest).is_none());
}

#[test]
fn another_nodes_grant_damaged_chunks_and_wrong_manifests_are_refused() {
    let (_folder, pool) = pool(MIB);
    let token = pool.reserve(OWNER, ID, MIB).unwrap().token;
    let (digest, crc, mut bytes) = chunk(1);
    let error = pool.put(NodeId(2), token, digest, crc, &bytes).unwrap_err();
    assert!(matches!(error, PutError::UnknownGrant));
    pool.release(NodeId(2), token);
    let error = pool.put(OWNER, token, digest, crc, &[0; 16]).unwrap_err();
    assert!(matches!(error, PutError::Length { found: 16 }));
    bytes[0] ^= 1;
    let error = pool.put(OWNER, token, digest, crc, &bytes).unwrap_err();
    assert!(matches!(error, PutError::Corrupt { .. }));
    let manifest = manifest();
    assert!(matches!(pool.seal(OWNER, Token(0), 1, &manifest), Err(SealError::UnknownGrant)));
    assert!(matches!(pool.seal(OWNER, token, 1, b"no manifest"), Err(SealError::Manifest(_))));
    let other = CheckpointId { number: 2, ..ID };
    let second = pool.reserve(OWNER, other, 8192).unwrap_err();
    assert!(matches!(second, GrantRefused::NotEnough { .. }));
    let digest = pool.seal(OWNER, token, 1, &manifest).unwrap();
    // The answer was lost and the question comes again, with a grant that is over.
    assert_eq!(pool.seal(OWNER, token, 1, &manifest).unwrap(), digest);
    assert_eq!(pool.sealed().len(), 1);
}

#[tokio::test]
async fn bytes_that_are_no_request_are_refused_in_words() {
    let (_folder, pool) = pool(MIB);
    let authority = Authority::create(ClusterId(1)).unwrap();
    let credentials = |node| {
        let key = NodeKey::generate().unwrap();
        let certificate = authority.issue(node, &key.public()).unwrap();
        Credentials::new(node, authority.certificate(), &certificate, &key.private_pkcs8()).unwrap()
    };
    let services = Services::new(Limits::default());
    memory::register(&services, &pool);
    let any_port = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(any_port, &credentials(NodeId(2)), services).unwrap();
    let peers = Peers::new(credentials(OWNER));
    peers.set_addresses(NodeId(2), vec![listener.address()]);
    for bytes in [&[][..], &[1, 0, 0], &[255; 40], &[1, 0, 0, 0, 99]] {
        let body = Bytes::from(bytes);
        let timeout = Duration::from_secs(20);
        let error = peers.call(NodeId(2), Class::Bulk, memory::SERVICE, body, timeout).await.unwrap_err();
        assert!(matches!(error, RpcError::Refused { .. }), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn used_and_reserved_never_exceed_the_budget(
        steps in proptest::collection::vec((0_u8..5, 0_u64..4, 0_u8..6), 1..40),
    ) {
        let (_folder, pool) = pool(100_000);
        let mut tokens = [Token(0); 4];
        for (step, number, seed) in steps {
            let slot = usize::try_from(number).unwrap();
            let id = CheckpointId { number, ..ID };
            let (digest, crc, bytes) = chunk(seed);
            match step {
                0 => if let Ok(granted) = pool.reserve(OWNER, id, 30_000) {
                    tokens[slot] = granted.token;
                },
                1 | 2 => { let _ = pool.put(OWNER, tokens[slot], digest, crc, &bytes); }
                3 => pool.release(OWNER, tokens[slot]),
                _ => {
                    let manifest = Manifest::new(id.container, id.epoch, number, 1, vec![], vec![]);
                    let _ = pool.seal(OWNER, tokens[slot], 1, &manifest.encode().unwrap().1);
                }
            }
            let usage = pool.usage();
            prop_assert!(usage.used + usage.reserved <= usage.budget, "{:?}", usage);
        }
    }
}
