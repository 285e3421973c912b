//! Three nodes with real sockets, seals and catalogs in one process, and a worker that only keeps books: the loop
//! around the core forms a cluster, survives the loss of a node, and takes it back.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod catalog_common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use catalog_common::{Cluster, eventually};
use steadfast::catalog::{Catalog, Embedded, RaftNodeId, Txn};
use steadfast::identity::ClusterKey;
use steadfast::node::{NodeHandle, Parts, QUESTIONS_MAX, Report, SpawnError, Unanswered, Worker, spawn};
use steadfast_proto::catalog::{
    CheckpointRef, ClusterRow, ContainerRow, ContainerSpec, ContainerState, Desired, Key, NodeRow,
    Requirements, Restart, Root, View, encode_row,
};
use steadfast_proto::ids::{ClusterId, ContainerId, Digest, Epoch, Incarnation, NodeId};
use steadfast_proto::node::{Job, Outcome, Settings};

const CLUSTER: ClusterId = ClusterId(7);
const CONTAINER: ContainerId = ContainerId(99);

/// What the nodes' workers did, by node.
#[derive(Default)]
struct Books {
    handles: BTreeMap<NodeId, NodeHandle>,
    held: BTreeMap<NodeId, BTreeSet<Digest>>,
    has: BTreeMap<NodeId, Epoch>,
    renewed: BTreeSet<NodeId>,
}

struct Bookkeeper {
    node: NodeId,
    books: Arc<Mutex<Books>>,
    catalog: Embedded,
}

impl Worker for Bookkeeper {
    fn run(&self, job: Job, report: Report) {
        let mut books = self.books.lock().unwrap();
        match job {
            Job::Release { .. } => {}
            Job::Renew { .. } => {
                books.renewed.insert(self.node);
            }
            Job::Start(row) | Job::Restore(row) => {
                books.has.insert(self.node, row.epoch);
                report.done(Outcome::Up);
            }
            Job::Checkpoint { row, number, holders, hold: _ } => {
                let manifest = Digest([u8::try_from(number % 256).unwrap(); 32]);
                let copies: BTreeSet<NodeId> = holders.into_iter().take(2).collect();
                for holder in &copies {
                    books.held.entry(*holder).or_default().insert(manifest);
                    let held = books.held.get(holder).cloned().unwrap_or_default();
                    if let Some(handle) = books.handles.get(holder) {
                        handle.memory(1 << 30, held);
                    }
                }
                report.done(Outcome::Sealed(Box::new(CheckpointRef {
                    number,
                    epoch: row.epoch,
                    manifest,
                    bytes: 1,
                    copies,
                    wanted: 2,
                    frozen_us: 1,
                    taken_unix_ms: 1,
                    criu: "4.2.1".into(),
                    processor: "p".into(),
                })));
            }
            Job::Destroy { .. } => {
                books.has.remove(&self.node);
                report.done(Outcome::Finished);
            }
            Job::Campaign => {
                let catalog = self.catalog.clone();
                tokio::spawn(async move {
                    if let Some(dead) = catalog.leader() {
                        catalog.campaign(dead).await;
                    }
                });
            }
            Job::Renumber => report.renumbered(Incarnation(2)),
            Job::Provision(_) => report.done(Outcome::Finished),
            Job::Stop { .. } | Job::Collect => {}
        }
    }
}

struct Nodes {
    cluster: Cluster,
    key: ClusterKey,
    addresses: BTreeMap<RaftNodeId, SocketAddr>,
    books: Arc<Mutex<Books>>,
}

impl Nodes {
    fn parts(&self, number: RaftNodeId, incarnation: u64) -> Parts {
        let id = NodeId(u128::from(number));
        let catalog = self.cluster.member(number);
        let worker = Bookkeeper { node: id, books: Arc::clone(&self.books), catalog: catalog.clone() };
        let mut salt = [0; 16];
        salt[0] = u8::try_from(number * 16 + incarnation).unwrap();
        Parts {
            settings: Settings {
                id,
                incarnation: Incarnation(incarnation),
                boot: u64::from(salt[0]),
                networks: Vec::new(),
                detect: steadfast_proto::detect::Settings::default(),
                probation: steadfast_proto::probation::Settings::default(),
                intent: steadfast_proto::catalog::Intent::Join,
                version: "0.1.0".to_owned(),
                boot_unix_ms: 0,
            },
            addresses: vec![("front".into(), self.addresses[&number])],
            cluster: CLUSTER,
            keys: vec![self.key.clone()],
            boot_salt: salt,
            catalog: Arc::new(catalog),
            worker: Arc::new(worker),
            runtime: tokio::runtime::Handle::current(),
            watch: None,
        }
    }

    fn start(&self, number: RaftNodeId, incarnation: u64) {
        let parts = self.parts(number, incarnation);
        let id = parts.settings.id;
        let handle = spawn(parts).unwrap();
        handle.memory(1 << 30, BTreeSet::new());
        handle.adopted_all();
        self.books.lock().unwrap().handles.insert(id, handle);
    }

    fn handle(&self, number: RaftNodeId) -> NodeHandle {
        self.books.lock().unwrap().handles.get(&NodeId(u128::from(number))).cloned().unwrap()
    }

    async fn wait_members(&self, seen_by: RaftNodeId, expected: &[u128]) {
        let handle = self.handle(seen_by);
        let expected: BTreeSet<NodeId> = expected.iter().copied().map(NodeId).collect();
        eventually("the view has the expected members", || async {
            let view = handle.status().await.unwrap().view?;
            (view.members.keys().copied().collect::<BTreeSet<_>>() == expected).then_some(())
        })
        .await;
    }

    async fn wait_row(&self, seen_by: RaftNodeId, what: &str, condition: impl Fn(&ContainerRow) -> bool) {
        let handle = self.handle(seen_by);
        eventually(what, || async {
            let status = handle.status().await.unwrap();
            status.containers.get(&CONTAINER).filter(|(_, row)| condition(row)).map(|_| ())
        })
        .await;
    }
}

/// One that nobody else takes: no other process uses the part of the loopback network that is named by this one's id.
fn own_address() -> SocketAddr {
    static NEXT_PORT: AtomicU16 = AtomicU16::new(4_000);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, high | 128, middle, low], NEXT_PORT.fetch_add(1, Ordering::Relaxed)))
}

async fn founded() -> Nodes {
    let cluster = Cluster::of(3).await;
    let addresses: BTreeMap<RaftNodeId, SocketAddr> = (1..=3).map(|number| (number, own_address())).collect();
    let nodes = Nodes { cluster, key: ClusterKey::generate(1), addresses, books: Arc::default() };
    let catalog = nodes.cluster.leader().await;
    let settings = ClusterRow { id: CLUSTER, name: "test".into(), lease_ms: 1_000, created_unix_ms: 0 };
    let put = |key: Key, bytes: Vec<u8>| Txn::put(key.encode(), bytes);
    catalog.txn(put(Key::Cluster, encode_row(&settings).unwrap())).await.unwrap();
    let view = View::founded(NodeId(1), Incarnation(1));
    catalog.txn(put(Key::View, encode_row(&view).unwrap())).await.unwrap();
    for (number, address) in &nodes.addresses {
        let row = NodeRow {
            id: NodeId(u128::from(*number)),
            name: format!("n{number}"),
            engine_id: *number,
            addresses: vec![("front".into(), *address)],
            fingerprint: String::new(),
            domain: Vec::new(),
            memory_bytes: 1 << 30,
            criu: "4.2.1".into(),
            processor: "p".into(),
        };
        catalog.txn(put(Key::Node(row.id), encode_row(&row).unwrap())).await.unwrap();
    }
    for number in 1..=3 {
        nodes.start(number, 1);
    }
    nodes
}

fn container() -> ContainerRow {
    ContainerRow {
        id: CONTAINER,
        spec: ContainerSpec {
            name: "cache".into(),
            command: vec!["true".into()],
            environment: BTreeMap::new(),
            working_directory: None,
            user: None,
            root: Root::Host,
            volumes: Vec::new(),
            address: None,
            memory_bytes_max: None,
            cpu_milli_max: None,
            every_ms: Some(500),
            copies: 2,
            restart: Restart::Latest,
            nodes: BTreeSet::new(),
            require: Requirements::default(),
        },
        owner: NodeId(3),
        epoch: Epoch(1),
        state: ContainerState::Starting,
        desired: Desired::Run,
        latest: None,
        parent: None,
        restore_number: None,
        after_loss: false,
        tried: BTreeSet::new(),
        changed_unix_ms: 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_nodes_container_goes_on_elsewhere_and_the_node_comes_back() {
    let nodes = founded().await;
    nodes.wait_members(1, &[1, 2, 3]).await;
    eventually("all three grant leases", || async {
        let view = nodes.handle(2).status().await.unwrap().view?;
        (view.grantors.len() == 3).then_some(())
    })
    .await;

    let row = encode_row(&container()).unwrap();
    nodes.cluster.leader().await.txn(Txn::put(Key::Container(CONTAINER).encode(), row)).await.unwrap();
    nodes
        .wait_row(1, "it runs and a checkpoint has two copies", |row| {
            row.state == ContainerState::Running
                && row.latest.as_ref().is_some_and(|latest| latest.copies.len() == 2)
        })
        .await;
    assert_eq!(nodes.books.lock().unwrap().has.get(&NodeId(3)), Some(&Epoch(1)));
    let asked = nodes.handle(3).checkpoint(CONTAINER).await.unwrap();
    assert!(asked.number >= 1, "a checkpoint on request is committed");

    nodes.handle(3).stop().await;
    nodes.cluster.kill(3).await;
    nodes.wait_members(1, &[1, 2]).await;
    nodes
        .wait_row(2, "it runs on a node that is left", |row| {
            row.state == ContainerState::Running
                && row.owner != NodeId(3)
                && row.epoch == Epoch(2)
                && row.after_loss
        })
        .await;

    nodes.cluster.start(3).await;
    nodes.start(3, 2);
    nodes.wait_members(1, &[1, 2, 3]).await;
    nodes.wait_row(3, "the returned node sees that it runs elsewhere", |row| row.owner != NodeId(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_what_does_not_run_here_is_refused() {
    let nodes = founded().await;
    nodes.wait_members(1, &[1, 2, 3]).await;
    let refused = nodes.handle(1).checkpoint(CONTAINER).await.unwrap_err().to_string();
    assert_eq!(refused, "this node does not run it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_questions_is_answered_or_refused_and_the_node_goes_on() {
    let nodes = founded().await;
    nodes.wait_members(1, &[1, 2, 3]).await;
    let handle = nodes.handle(1);
    let answers = futures_util::future::join_all((0..QUESTIONS_MAX * 4).map(|_| handle.datagrams())).await;
    let is_refused = |answer: &Result<_, Unanswered>| *answer == Err(Unanswered::Busy);
    assert!(answers.iter().all(|answer| answer.is_ok() || is_refused(answer)));
    assert!(answers.iter().filter(|answer| answer.is_ok()).count() >= QUESTIONS_MAX);
    nodes.wait_members(1, &[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_told() {
    let nodes = founded().await;
    let taken = UdpSocket::bind(own_address()).unwrap();
    let mut parts = nodes.parts(1, 2);
    parts.addresses = vec![("front".into(), taken.local_addr().unwrap())];
    assert!(matches!(spawn(parts), Err(SpawnError::Bind(_))));
}
