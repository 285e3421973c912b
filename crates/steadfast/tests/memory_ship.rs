//! Checkpoint memory between in-process nodes over real sockets and a real tmpfs: whole checkpoints out
//! and back, holders that fail, memory that is full, and damage. Read next: `src/memory`.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use steadfast::identity::ClusterKey;
use steadfast::memory::{
    self, CHUNK_BYTES, FetchError, FetchRequest, Fetched, Live, Pool, ShipError, ShipRequest, Shipped,
};
use steadfast::net::rpc::{Limits, Listener, Peers, Services};
use steadfast::net::tls::{Authority, Credentials, NodeKey};
use steadfast_proto::ids::{ClusterId, ContainerId, Digest, Epoch, NodeId};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const CONTAINER: ContainerId = ContainerId(42);

struct Node {
    id: NodeId,
    folder: TempDir,
    pool: Pool,
    peers: Peers,
    services: Services,
    credentials: Credentials,
    listener: Option<Listener>,
}

struct Cluster {
    key: ClusterKey,
    nodes: Vec<Node>,
}

fn tmpfs() -> TempDir {
    tempfile::Builder::new().prefix("steadfast-test-").tempdir_in("/dev/shm").unwrap()
}

fn credentials(authority: &Authority, node: NodeId) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let certificate = authority.issue(node, &key.public()).unwrap();
    Credentials::new(node, authority.certificate(), &certificate, &key.private_pkcs8()).unwrap()
}

impl Cluster {
    fn start(budgets: &[u64]) -> Self {
        let authority = Authority::create(ClusterId(1)).unwrap();
        let mut nodes = Vec::new();
        for (index, budget) in budgets.iter().enumerate() {
            let id = NodeId(index as u128 + 1);
            let folder = tmpfs();
            let pool = Pool::open(&folder.path().join("pool"), *budget).unwrap();
            let services = Services::new(Limits::default());
            memory::register(&services, &pool);
            let credentials = credentials(&authority, id);
            let any_port = "127.0.0.1:0".parse().unwrap();
            let listener = Listener::bind(any_port, &credentials, services.clone()).unwrap();
            let peers = Peers::new(credentials.clone());
            let listener = Some(listener);
            nodes.push(Node { id, folder, pool, peers, services, credentials, listener });
        }
        for from in &nodes {
            for to in &nodes {
                let address = to.listener.as_ref().unwrap().address();
                from.peers.set_addresses(to.id, vec![address]);
            }
        }
        Self { key: ClusterKey::generate(1), nodes }
    }

    fn request(&self, epoch: u64, number: u64, holders: &[usize], copies: usize) -> ShipRequest {
        ShipRequest {
            container: CONTAINER,
            epoch: Epoch(epoch),
            number,
            holders: holders.iter().map(|index| self.nodes[*index].id).collect(),
            copies,
            key: self.key.clone(),
            revision: 1,
            meta: b"engine meta".to_vec(),
        }
    }

    async fn ship(&self, image: &Path, number: u64, holders: &[usize]) -> Result<Shipped, ShipError> {
        memory::ship(image, self.request(1, number, holders, 2), &self.nodes[0].peers).await
    }

    async fn fetch(
        &self,
        on: usize,
        manifest: Digest,
        holders: &[usize],
        into: &Path,
    ) -> Result<Fetched, FetchError> {
        let node = &self.nodes[on];
        let request = FetchRequest {
            manifest,
            holders: holders.iter().map(|index| self.nodes[*index].id).collect(),
            keys: vec![self.key.clone()],
            into: into.to_path_buf(),
        };
        memory::fetch(request, Some(&node.pool), &node.peers).await
    }

    /// The node is gone: nothing listens, and connections to it break.
    fn kill(&mut self, index: usize) {
        let dead = self.nodes[index].id;
        self.nodes[index].listener = None;
        self.nodes[index].services.shutdown();
        for node in &self.nodes {
            node.peers.disconnect(dead);
        }
    }
}

/// Bytes that look random but are the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut output = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    output.fill(&mut bytes);
    bytes
}

fn image(seed: u64, mib: usize) -> TempDir {
    let folder = tmpfs();
    let upper = folder.path().join("upper/var");
    std::fs::create_dir_all(&upper).unwrap();
    std::fs::write(upper.join("app.log"), b"line\n").unwrap();
    std::fs::write(folder.path().join("empty"), b"").unwrap();
    let mut pages = noise(seed, mib * CHUNK_BYTES + 1234);
    // A hole in the middle: zero pages cost nothing.
    pages[CHUNK_BYTES..2 * CHUNK_BYTES].fill(0);
    std::fs::write(folder.path().join("pages-1.img"), pages).unwrap();
    folder
}

fn content(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for item in std::fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let relative = path.strip_prefix(root).unwrap().to_path_buf();
                files.insert(relative, std::fs::read(path).unwrap());
            }
        }
    }
    files
}

fn chunk_files(node: &Node) -> Vec<PathBuf> {
    let root = node.folder.path().join("pool/chunks");
    content(&root).into_keys().map(|path| root.join(path)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_goes_out_and_comes_back_byte_for_byte() {
    let cluster = Cluster::start(&[64 * MIB; 3]);
    let image = image(1, 8);
    let shipped = cluster.ship(image.path(), 1, &[1, 2]).await.unwrap();
    assert_eq!(shipped.holders, [NodeId(2), NodeId(3)]);
    assert!(!shipped.under_protected && shipped.passed_over.is_empty());
    // Eight chunks of noise less the hole, the rest of the file, and the log, to two holders.
    assert_eq!(shipped.bytes_sent, 2 * (7 * (MIB + 16) + (1234 + 16) + (5 + 16)));
    let into = cluster.nodes[0].folder.path().join("remote");
    let fetched = cluster.fetch(0, shipped.manifest, &[1, 2], &into).await.unwrap();
    assert_eq!((fetched.chunks_local, fetched.chunks_remote), (0, 9));
    assert_eq!(fetched.manifest.meta, b"engine meta");
    assert_eq!(content(&into), content(image.path()));
    // A node that holds a copy needs nobody.
    let into = cluster.nodes[2].folder.path().join("local");
    let fetched = cluster.fetch(2, shipped.manifest, &[], &into).await.unwrap();
    assert_eq!((fetched.chunks_local, fetched.chunks_remote), (9, 0));
    assert_eq!(content(&into), content(image.path()));
    // No plain byte lies in another node's memory.
    let plain = noise(1, 64);
    for path in chunk_files(&cluster.nodes[1]) {
        let stored = std::fs::read(path).unwrap();
        assert!(!stored.windows(64).any(|window| window == plain));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_checkpoint_sends_only_what_changed_and_the_first_goes_after_the_commit() {
    let cluster = Cluster::start(&[64 * MIB; 3]);
    let image = image(1, 8);
    let first = cluster.ship(image.path(), 1, &[1, 2]).await.unwrap();
    let path = image.path().join("pages-1.img");
    let mut pages = std::fs::read(&path).unwrap();
    pages[5 * CHUNK_BYTES] ^= 1;
    std::fs::write(&path, pages).unwrap();
    let second = cluster.ship(image.path(), 2, &[1, 2]).await.unwrap();
    assert_eq!(second.bytes_sent, 2 * (MIB + 16));
    let pool = &cluster.nodes[1].pool;
    let used = pool.usage().used;
    let live = |number, manifests| [Live { container: CONTAINER, epoch: Epoch(1), number, manifests }];
    // Not committed yet: the row still names the first, and the newer one may be on its way.
    let freed = pool.retain(9, &live(1, vec![first.manifest]));
    assert_eq!(freed, memory::Freed::default());
    // Committed with one parent: both stay. Then the parent goes: what only it needed goes with it.
    pool.retain(9, &live(2, vec![second.manifest, first.manifest]));
    assert_eq!(pool.usage().used, used);
    let freed = pool.retain(9, &live(2, vec![second.manifest]));
    assert_eq!(freed.manifests, 1);
    assert!(pool.usage().used < used);
    let into = cluster.nodes[0].folder.path().join("image");
    cluster.fetch(0, second.manifest, &[1], &into).await.unwrap();
    assert_eq!(content(&into), content(image.path()));
    // The container's row is gone: so is everything of it, unless the rows are older than the seal.
    assert_eq!(pool.retain(0, &[]).manifests, 0);
    assert_eq!(pool.retain(1, &[]).manifests, 1);
    assert_eq!((pool.usage().used, pool.usage().chunks), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_without_room_is_passed_over_and_none_with_room_says_need_and_free() {
    let cluster = Cluster::start(&[64 * MIB, 3 * MIB, 64 * MIB, 64 * MIB]);
    let image = image(1, 8);
    let shipped = cluster.ship(image.path(), 1, &[1, 2, 3]).await.unwrap();
    assert_eq!(shipped.holders, [NodeId(3), NodeId(4)]);
    assert_eq!(shipped.passed_over[0].free, Some(3 * MIB));
    let shipped = cluster.ship(image.path(), 2, &[1, 2]).await.unwrap();
    assert_eq!((shipped.holders, shipped.under_protected), (vec![NodeId(3)], true));
    let error = cluster.ship(image.path(), 3, &[1]).await.unwrap_err();
    let ShipError::NotEnoughMemory { need, ref candidates } = error else { panic!("{error}") };
    assert!(need > 8 * MIB && candidates[0].free == Some(3 * MIB), "{error}");
    assert!(error.to_string().contains("3145728 bytes free"), "{error}");
    assert_eq!(cluster.nodes[1].pool.usage().reserved, 0);
    let error = cluster.ship(image.path(), 3, &[]).await.unwrap_err();
    assert!(error.to_string().contains("no other node"), "{error}");
}

/// Makes node `index` fail every call of checkpoint memory after the first `calls`.
fn fail_after(cluster: &Cluster, index: usize, calls: usize) {
    let node = &cluster.nodes[index];
    let left = Arc::new(AtomicUsize::new(calls));
    let is_dead = Arc::new(AtomicBool::new(false));
    let services = node.services.clone();
    services.set_allow(move |_| {
        let spent = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if spent.is_err() {
            is_dead.store(true, Ordering::SeqCst);
        }
        !is_dead.load(Ordering::SeqCst)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_dies_at_any_call_is_replaced_or_left_out() {
    // Connection, reserve, ten puts, seal: it dies before each of them.
    for calls in 0..14 {
        let cluster = Cluster::start(&[64 * MIB; 4]);
        let image = image(calls as u64, 8);
        fail_after(&cluster, 1, calls);
        let spare = if calls % 2 == 0 { &[1, 2, 3][..] } else { &[1, 2] };
        let shipped = cluster.ship(image.path(), 1, spare).await.unwrap();
        let is_alive = shipped.holders.contains(&NodeId(2));
        assert_eq!(shipped.under_protected, !is_alive && spare.len() == 2, "{shipped:?}");
        let holders: &[usize] = if is_alive { &[1] } else { &[2] };
        cluster.nodes[1].services.set_allow(|_| true);
        let into = cluster.nodes[0].folder.path().join("image");
        cluster.fetch(0, shipped.manifest, holders, &into).await.unwrap();
        assert_eq!(content(&into), content(image.path()));
        for node in &cluster.nodes[2..] {
            assert_eq!(node.pool.usage().reserved, 0);
        }
        if !is_alive {
            // What the dead one had got goes with its lease, if it was not released.
            cluster.nodes[1].pool.expire(steadfast::net::datagram::now() + memory::GRANT_LEASE);
            let usage = cluster.nodes[1].pool.usage();
            assert!(usage.used == 0 || usage.reserved == 0, "{usage:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_at_one_holder_is_made_good_by_another_and_everywhere_is_reported_lost() {
    let cluster = Cluster::start(&[64 * MIB; 3]);
    let image = image(1, 4);
    let shipped = cluster.ship(image.path(), 1, &[1, 2]).await.unwrap();
    let damage = |node: usize, path: &PathBuf| {
        let name = path.file_name().unwrap();
        let at = chunk_files(&cluster.nodes[node]);
        let at = at.iter().find(|one| one.file_name() == Some(name)).unwrap();
        let mut bytes = std::fs::read(at).unwrap();
        bytes[3] ^= 1;
        std::fs::write(at, bytes).unwrap();
    };
    let victim = chunk_files(&cluster.nodes[1])[0].clone();
    damage(1, &victim);
    let into = cluster.nodes[1].folder.path().join("image");
    let fetched = cluster.fetch(1, shipped.manifest, &[2], &into).await.unwrap();
    assert_eq!(fetched.chunks_remote, 1);
    assert_eq!(content(&into), content(image.path()));
    assert!(cluster.nodes[1].pool.sealed().is_empty(), "an incomplete one is not offered");
    damage(2, &victim);
    let into = cluster.nodes[0].folder.path().join("image");
    let error = cluster.fetch(0, shipped.manifest, &[1, 2], &into).await.unwrap_err();
    let FetchError::CheckpointLost { ref what, .. } = error else { panic!("{error}") };
    assert!(what.contains("1 of 5 chunks"), "{error}");
    assert!(what.contains(&victim.file_name().unwrap().to_str().unwrap()[..64]), "{error}");
    assert!(!into.exists() && !into.with_extension("partial").exists());
    let left: Vec<_> = std::fs::read_dir(cluster.nodes[0].folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the pool is left: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_holder_does_not_keep_a_fetch_from_the_living() {
    let mut cluster = Cluster::start(&[64 * MIB; 4]);
    let image = image(1, 8);
    let shipped = cluster.ship(image.path(), 1, &[1, 2]).await.unwrap();
    cluster.kill(1);
    let into = cluster.nodes[3].folder.path().join("image");
    cluster.fetch(3, shipped.manifest, &[1, 2], &into).await.unwrap();
    assert_eq!(content(&into), content(image.path()));
    cluster.kill(2);
    let into = cluster.nodes[3].folder.path().join("again");
    let error = cluster.fetch(3, shipped.manifest, &[1, 2], &into).await.unwrap_err();
    assert!(error.to_string().contains("its manifest is held by no reachable node"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_containers_ship_at_once() {
    let cluster = Cluster::start(&[256 * MIB; 3]);
    let images: Vec<TempDir> = (0..6).map(|seed| image(seed, 6)).collect();
    let ships = images.iter().enumerate().map(|(index, image)| {
        let mut request = cluster.request(1, 1, &[1, 2], 2);
        request.container = ContainerId(index as u128);
        memory::ship(image.path(), request, &cluster.nodes[0].peers)
    });
    for (index, shipped) in futures_util::future::join_all(ships).await.into_iter().enumerate() {
        let shipped = shipped.unwrap();
        assert_eq!(shipped.holders.len(), 2);
        let into = cluster.nodes[0].folder.path().join(format!("image-{index}"));
        cluster.fetch(0, shipped.manifest, &[2], &into).await.unwrap();
        assert_eq!(content(&into), content(images[index].path()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_owner_is_refused() {
    let cluster = Cluster::start(&[64 * MIB; 3]);
    let image = image(1, 2);
    let new = cluster.request(5, 1, &[1], 1);
    memory::ship(image.path(), new, &cluster.nodes[2].peers).await.unwrap();
    let old = cluster.request(4, 7, &[1], 1);
    let error = memory::ship(image.path(), old, &cluster.nodes[0].peers).await.unwrap_err();
    assert!(error.to_string().contains("epoch 5 is held"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_offers_what_it_still_has_and_names_what_is_damaged() {
    let mut cluster = Cluster::start(&[64 * MIB; 3]);
    let (image, other) = (image(1, 4), image(2, 4));
    let shipped = cluster.ship(image.path(), 1, &[1, 2]).await.unwrap();
    let mut request = cluster.request(1, 1, &[1], 1);
    request.container = ContainerId(7);
    let second = memory::ship(other.path(), request, &cluster.nodes[0].peers).await.unwrap();
    let before = cluster.nodes[1].pool.usage();
    let path = cluster.nodes[1].folder.path().join("pool");
    let error = Pool::open(&path, 64 * MIB).unwrap_err();
    assert!(error.to_string().contains("in use by another agent"), "{error}");
    cluster.kill(1);
    let node = cluster.nodes.remove(1);
    let Node { folder, pool, peers, services, credentials, .. } = node;
    drop((pool, peers, services));
    let pool = reopen(&path).await;
    assert_eq!(pool.usage(), before);
    assert_eq!((pool.sealed().len(), pool.damage().len()), (2, 0));
    let services = Services::new(Limits::default());
    memory::register(&services, &pool);
    let any_port = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(any_port, &credentials, services.clone()).unwrap();
    cluster.nodes[0].peers.set_addresses(NodeId(2), vec![listener.address()]);
    let request = FetchRequest {
        manifest: second.manifest,
        holders: vec![NodeId(2)],
        keys: vec![cluster.key.clone()],
        into: cluster.nodes[0].folder.path().join("image"),
    };
    let into = request.into.clone();
    memory::fetch(request, None, &cluster.nodes[0].peers).await.unwrap();
    assert_eq!(content(&into), content(other.path()));
    services.shutdown();
    drop((pool, listener));
    damage_one_of(&path, &cluster.nodes[1], shipped.manifest);
    let pool = reopen(&path).await;
    assert_eq!(pool.damage().len(), 1);
    assert!(pool.damage()[0].reason.contains("checksum"), "{:?}", pool.damage());
    let sealed = pool.sealed();
    assert_eq!(sealed.len(), 1);
    assert_eq!(sealed[0].manifest, second.manifest);
    drop(folder);
}

/// The tasks of the dead agent may hold the pool for a moment longer.
async fn reopen(path: &Path) -> Pool {
    loop {
        match Pool::open(path, 64 * MIB) {
            Ok(pool) => return pool,
            Err(memory::OpenError::Locked { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Damages a chunk in `pool` that checkpoint `manifest`, which `other` holds too, needs.
fn damage_one_of(pool: &Path, other: &Node, manifest: Digest) {
    let bytes = other.pool.manifest(manifest).unwrap();
    let manifest = memory::Manifest::decode(manifest, &bytes).unwrap();
    let chunk = manifest.chunks().into_iter().next().unwrap().to_string();
    let root = pool.join("chunks");
    let files = content(&root);
    let (path, stored) = files
        .iter()
        .find(|(path, _)| path.file_name().unwrap().to_str().unwrap().starts_with(&chunk))
        .unwrap();
    let mut stored = stored.clone();
    stored[0] ^= 0x80;
    std::fs::write(root.join(path), stored).unwrap();
}

#[test]
fn memory_on_a_disk_is_refused() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let error = Pool::open(folder.path(), MIB).unwrap_err();
    assert!(error.to_string().contains("not on a tmpfs"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
