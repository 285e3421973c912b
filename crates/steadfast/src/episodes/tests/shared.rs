//! The shared store against a real server: who is overtaken writes nothing, and homes that move, connections that are cut and
//! servers that crash lose and double nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use steadfast_proto::episode::{
    Answer, Episodes, Input, Instance, Key, Next, Outcome, Outgoing, Program, Record, Request, RequestError,
    Settings, Task, Wait, home_of, share_homes,
};
use steadfast_proto::exchange::{Blob, Name};
use steadfast_proto::ids::{ClusterId, Incarnation, NodeId};
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;
use tokio::runtime::Handle;
use tokio_postgres::NoTls;

use super::keeper::Lossy;
use super::server::Server;
use crate::episodes::store::HOMES;
use crate::episodes::{
    Deployment, Keeper, KeeperError, Known, Parts, Runner, Shared, SharedError, Store, StoreError,
};

const CLUSTER: ClusterId = ClusterId(77);
const PATIENCE: Duration = Duration::from_secs(120);
const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

/// Opens the store on a thread that may block.
async fn opened(server: &Server, cluster: ClusterId, me: NodeId) -> Result<Shared, StoreError> {
    let (runtime, config) = (Handle::current(), server.config());
    let opened =
        tokio::task::spawn_blocking(move || Shared::open(&runtime, &config, NoTls, (cluster, me))).await;
    opened.expect("it does not panic")
}

async fn open(server: &Server, me: NodeId) -> Shared {
    opened(server, CLUSTER, me).await.expect("the store can be opened")
}

/// Does something with a store on a thread that may block.
async fn with<T: Send + 'static>(
    mut store: Shared,
    act: impl FnOnce(&mut Shared) -> T + Send + 'static,
) -> (Shared, T) {
    let done = tokio::task::spawn_blocking(move || {
        let done = act(&mut store);
        (store, done)
    });
    done.await.expect("it does not panic")
}

fn all_homes() -> BTreeSet<usize> {
    (0..HOMES).collect()
}

fn bank(key: impl std::fmt::Display) -> Name {
    Name::parse(&format!("bank/{key}")).expect("a name")
}

/// A machine that keeps all homes, and the records with which `names` began on it.
fn begun(me: NodeId, names: &[Name]) -> (Episodes, Vec<Record>) {
    let mut machine = Episodes::new(Settings::default(), me, 1).sharing();
    let mut out = steadfast_proto::episode::Batch::default();
    machine.step(Time::ZERO, Input::Homes(vec![me; HOMES]), &mut out);
    machine.step(Time::ZERO, Input::Deployed([("bank".into(), Program::default())].into()), &mut out);
    let adopted = Input::Adopted { homes: all_homes(), instances: Vec::new(), epoch: 0 };
    machine.step(Time::ZERO, adopted, &mut out);
    for name in names {
        let request = Request::Start { name: name.clone(), payload: Blob::empty(), key: None, wait: false };
        machine.step(Time::ZERO, Input::Request { token: 1, request }, &mut out);
    }
    (machine, out.persist)
}

fn commit(store: &mut Shared, (machine, records): &(Episodes, Vec<Record>)) -> Result<(), StoreError> {
    for record in records {
        store.append(record).expect("it is only noted");
    }
    store.commit(machine)
}

fn names(instances: &[Instance]) -> BTreeSet<Name> {
    instances.iter().map(|instance| instance.name.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_overtaken_writes_nothing_and_says_nothing() {
    let server = Server::start();
    let first = open(&server, ONE).await;
    let (first, _) = with(first, |store| {
        store.adopt(&all_homes(), &BTreeSet::new()).expect("nobody holds them");
        commit(store, &begun(ONE, &[bank(1)])).expect("it holds all homes");
    })
    .await;
    let second = open(&server, TWO).await;
    let (second, refused) = with(second, |store| store.adopt(&all_homes(), &[ONE, TWO].into())).await;
    assert!(refused.expect("it was asked").homes.is_empty(), "who lives is asked for them first");
    let (second, taken) = with(second, |store| store.adopt(&all_homes(), &[TWO].into())).await;
    let taken = taken.expect("who does not live is not asked");
    assert_eq!((taken.homes, names(&taken.instances)), (all_homes(), [bank(1)].into()));
    assert!(taken.epoch > 0, "the next life of a name gets another epoch");

    let (first, refused) = with(first, |store| commit(store, &begun(ONE, &[bank(2)]))).await;
    assert!(matches!(refused, Err(StoreError::Fenced)), "{refused:?}");
    let (_, refused) = with(first, |store| commit(store, &begun(ONE, &[]))).await;
    let why = "what is answered rests on what is known";
    assert!(matches!(refused, Err(StoreError::Fenced)), "{why}: {refused:?}");

    let (_, again) = with(second, |store| {
        store.release(&all_homes()).expect("it holds them");
        store.adopt(&all_homes(), &[ONE, TWO].into()).expect("nobody holds them")
    })
    .await;
    assert_eq!(names(&again.instances), [bank(1)].into(), "nothing of the commit that failed is there");
}

/// A commit that has passed its fence and hangs is not overtaken: who takes the home over waits, and then sees it.
#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_waits_for_a_commit_that_has_begun() {
    let server = Server::start();
    let (first, _) = with(open(&server, ONE).await, |store| {
        store.adopt(&all_homes(), &BTreeSet::new()).expect("nobody holds them");
    })
    .await;
    let second = open(&server, TWO).await;
    let blocker = server.client().await;
    blocker.batch_execute("begin; lock table steadfast_instance in share mode").await.expect("a lock");
    let commits = tokio::spawn(with(first, |store| commit(store, &begun(ONE, &[bank(1)]))));
    wait_for_lock(&server, 1).await;
    let takes = tokio::spawn(with(second, |store| store.adopt(&all_homes(), &[TWO].into())));
    wait_for_lock(&server, 2).await;
    blocker.batch_execute("commit").await.expect("it holds the lock");
    let (_, committed) = commits.await.expect("it ends");
    committed.expect("it came first");
    let (_, taken) = takes.await.expect("it ends");
    assert_eq!(names(&taken.expect("nobody who lives holds them").instances), [bank(1)].into());
}

/// Waits until so many clients of the server wait for locks.
async fn wait_for_lock(server: &Server, count: i64) {
    let (client, begun) = (server.client().await, Instant::now());
    loop {
        let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
        let found: i64 = client.query_one(waiting, &[]).await.expect("it answers").get(0);
        if found >= count {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "nobody waits");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_another_cluster_or_version_are_not_touched() {
    let server = Server::start();
    open(&server, ONE).await;
    let refused = opened(&server, ClusterId(78), ONE).await;
    assert!(matches!(&refused, Err(StoreError::Shared(SharedError::OtherCluster(_)))), "{refused:?}");
    let client = server.client().await;
    client.batch_execute("update steadfast_store set version = 2").await.expect("it is there");
    let refused = opened(&server, CLUSTER, ONE).await;
    assert!(matches!(&refused, Err(StoreError::Shared(SharedError::Version(2, 64)))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_begin_together_make_one_set_of_tables() {
    let server = Server::start();
    let nodes = (1..=4).map(|node| opened(&server, CLUSTER, NodeId(node)));
    for store in futures_util::future::join_all(nodes).await {
        store.expect("each finds the tables or makes them");
    }
    let homes: i64 = server
        .client()
        .await
        .query_one("select count(*) from steadfast_home", &[])
        .await
        .expect("it is")
        .get(0);
    assert_eq!(homes, 64);
}

/// Takes what is in it, passes on what it is told to, and carries `weight` bytes about.
fn account(task: &Task, weight: usize) -> Outcome {
    let number = |bytes: &[u8], at: usize| {
        let word = bytes.get(at * 8..at * 8 + 8).and_then(|word| word.try_into().ok());
        word.map_or(0, u64::from_le_bytes)
    };
    let mut balance = number(&task.state, 0);
    let said = &task.event.payload;
    let mut messages = Vec::new();
    match task.event.kind.as_str() {
        "pass" => {
            let amount = number(said, 0);
            balance -= amount;
            let payload = Blob::from(amount.to_le_bytes().as_slice());
            let (to, kind) = (bank(number(said, 1)), "deposit".into());
            messages.push(Outgoing { to, kind, correlation: None, payload, begins: false, within: None });
        }
        _ => balance += number(said, 0),
    }
    let mut state = balance.to_le_bytes().to_vec();
    state.resize(8 + weight, 7);
    Outcome { state: state.into(), messages, answer: None, next: Next::Wait(Wait::for_anything()) }
}

/// Nodes that open a keeper whenever they have none.
struct Nodes {
    server: Mutex<Server>,
    carrier: Lossy,
    tables: Mutex<BTreeMap<NodeId, Vec<NodeId>>>,
    lives: Mutex<u64>,
    weight: usize,
}

impl Nodes {
    fn new(weight: usize) -> Arc<Nodes> {
        let lives = Mutex::new(0);
        let (server, carrier) = (Mutex::new(Server::start()), Lossy::default());
        Arc::new(Nodes { server, carrier, tables: Mutex::default(), lives, weight })
    }

    /// A keeper for the node with the table that it knows.
    async fn open(&self, me: NodeId) -> Result<Keeper, KeeperError> {
        let (runtime, config) = (Handle::current(), self.server.lock().expect("nobody panics").config());
        let homes = self.table(me);
        let life = {
            let mut lives = self.lives.lock().expect("nobody panics");
            *lives += 1;
            *lives << 32
        };
        let weight = self.weight;
        let runner = Runner::Here(Arc::new(move |task: &Task| Ok(account(task, weight))));
        let deployment = Deployment { program: Program::default(), runners: [(1, runner)].into() };
        let known = Known { homes, programs: [("bank".into(), deployment)].into(), ..Known::default() };
        let carrier = Box::new(Lossy { me: me.0, ..self.carrier.clone() });
        let parts = Parts { me, settings: Settings::default(), carrier, life: Incarnation(life) };
        let opened = tokio::task::spawn_blocking(move || {
            let store = Shared::open(&runtime, &config, NoTls, (CLUSTER, me))?;
            Keeper::start(store, parts, known)
        });
        let keeper = opened.await.expect("it does not panic")?;
        self.carrier.keepers.lock().expect("nobody panics").insert(me, keeper.clone());
        // What was told while it was opened.
        keeper.input(Input::Homes(self.table(me)));
        Ok(keeper)
    }

    fn table(&self, node: NodeId) -> Vec<NodeId> {
        self.tables.lock().expect("nobody panics").get(&node).cloned().unwrap_or_default()
    }

    fn keeper(&self, node: NodeId) -> Option<Keeper> {
        self.carrier.keepers.lock().expect("nobody panics").get(&node).cloned()
    }

    /// Opens a keeper again and again.
    async fn keep_open(self: Arc<Nodes>, me: NodeId) {
        loop {
            if let Ok(keeper) = self.open(me).await {
                while keeper.look(|_| ()).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                self.carrier.keepers.lock().expect("nobody panics").remove(&me);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A node hears of another table.
    fn tell(&self, node: NodeId, table: &[NodeId]) {
        self.tables.lock().expect("nobody panics").insert(node, table.to_vec());
        if let Some(keeper) = self.keeper(node) {
            keeper.input(Input::Homes(table.to_vec()));
        }
    }

    /// Asks whoever keeps the instance until it takes the request.
    async fn insist(&self, request: Request) {
        let begun = Instant::now();
        loop {
            for node in [ONE, TWO] {
                let Some(keeper) = self.keeper(node) else { continue };
                match keeper.ask(request.clone()).await {
                    Ok(Ok(Answer::Taken)) => return,
                    Ok(Err(RequestError::Elsewhere(_) | RequestError::Moving(_))) | Err(_) => {}
                    Ok(other) => panic!("{request:?}: {other:?}"),
                }
            }
            assert!(begun.elapsed() < PATIENCE, "nobody takes {request:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// All instances as the store has them.
    async fn stored(&self) -> Vec<Instance> {
        let config = self.server.lock().expect("nobody panics").config();
        let Ok((client, connection)) = config.connect(NoTls).await else { return Vec::new() };
        tokio::spawn(connection);
        let rows = client.query("select bytes from steadfast_instance order by name", &[]).await;
        let rows = rows.unwrap_or_default();
        rows.iter().map(|row| Instance::decode(row.get(0)).expect("an instance")).collect()
    }

    /// Waits until all accounts are quiet, and gives what they have.
    async fn settled(&self, count: usize) -> Vec<u64> {
        let begun = Instant::now();
        loop {
            let stored = self.stored().await;
            if stored.len() == count && stored.iter().all(Instance::is_quiet) {
                let left: usize = stored.iter().map(Instance::bytes_of_messages).sum();
                assert_eq!(left, 0, "bytes are left over");
                let first = |state: &Blob| state.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
                return stored.iter().map(|instance| first(&instance.state)).collect();
            }
            let restless: Vec<_> = stored.iter().filter(|one| !one.is_quiet()).take(3).collect();
            assert!(begun.elapsed() < PATIENCE, "{} of {count} are there, {restless:?}", stored.len());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn start(key: u64) -> Request {
    let (text, digest) = ("start".into(), 1);
    let payload = Blob::from(1_000_u64.to_le_bytes().as_slice());
    Request::Start { name: bank(key), payload, key: Some(Key { text, digest }), wait: false }
}

fn pass(from: u64, to: u64, amount: u64, number: u64) -> Request {
    let payload = [amount.to_le_bytes(), to.to_le_bytes()].concat().into();
    let key = Some(Key { text: number.to_string().as_str().into(), digest: 1 });
    Request::Send { name: bank(from), kind: "pass".into(), correlation: None, payload, key, wait: false }
}

/// Two nodes whose tables change at times of their own, so that both believe at times that they keep the same home, while
/// connections are cut in the middle of commits and the server is killed.
#[tokio::test(flavor = "multi_thread")]
async fn homes_that_are_fought_over_lose_and_double_nothing() {
    const ACCOUNTS: u64 = 12;
    const ROUNDS: u64 = 60;
    let nodes = Nodes::new(0);
    let tables: Vec<Vec<NodeId>> = [vec![ONE, TWO], vec![ONE], vec![TWO]]
        .map(|who| share_homes(&who.into_iter().collect(), HOMES))
        .into();
    for node in [ONE, TWO] {
        nodes.tell(node, &tables[0]);
    }
    let tasks: Vec<_> = [ONE, TWO].map(|node| tokio::spawn(Arc::clone(&nodes).keep_open(node))).into();
    let mut expected = vec![1_000; usize::try_from(ACCOUNTS).expect("it is small")];
    for key in 0..ACCOUNTS {
        nodes.insist(start(key)).await;
    }
    for round in 0..ROUNDS {
        disturb(&nodes, &tables, round).await;
        for key in 0..ACCOUNTS {
            let (to, amount) = ((key + 1 + round % (ACCOUNTS - 1)) % ACCOUNTS, 1 + (key * 7 + round) % 11);
            nodes.insist(pass(key, to, amount, round)).await;
            expected[usize::try_from(key).expect("it is small")] -= amount;
            expected[usize::try_from(to).expect("it is small")] += amount;
        }
    }
    for node in [ONE, TWO] {
        nodes.tell(node, &tables[0]);
    }
    let found = nodes.settled(expected.len()).await;
    let by_name: BTreeMap<Name, u64> = (0..ACCOUNTS).map(bank).zip(expected).collect();
    assert_eq!(found, by_name.into_values().collect::<Vec<_>>());
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    for node in [ONE, TWO] {
        if let Some(keeper) = nodes.keeper(node) {
            let ended = tokio::task::spawn_blocking(move || keeper.stop()).await.expect("it does not panic");
            // The last change of tables may have overtaken one that its task would have opened again.
            assert!(matches!(ended, Ok(()) | Err(KeeperError::Store(StoreError::Fenced))), "{ended:?}");
        }
    }
}

/// Something of everything, by the number of the round.
async fn disturb(nodes: &Arc<Nodes>, tables: &[Vec<NodeId>], round: u64) {
    let table = |number: u64| &tables[usize::try_from(number).unwrap_or_default() % tables.len()];
    match round % 5 {
        // Each believes that it keeps all; never may nobody, since requests would wait for ever.
        0 => {
            nodes.tell(ONE, table(1));
            tokio::time::sleep(Duration::from_millis(10)).await;
            nodes.tell(TWO, table(2));
        }
        1 => [ONE, TWO].into_iter().for_each(|node| nodes.tell(node, table(round / 5))),
        2 => nodes.tell(ONE, table(1)),
        3 => {
            let client = { nodes.server.lock().expect("nobody panics").config() }.connect(NoTls).await;
            let (client, connection) = client.expect("the server takes clients");
            tokio::spawn(connection);
            let cut = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'";
            client.execute(cut, &[]).await.expect("it may");
        }
        _ if round % 20 == 19 => {
            let nodes = Arc::clone(nodes);
            let again = tokio::task::spawn_blocking(move || {
                let mut server = nodes.server.lock().expect("nobody panics");
                server.kill();
                server.go_on();
            });
            again.await.expect("it comes up again");
        }
        _ => {
            for node in [ONE, TWO] {
                nodes.tell(node, table(0));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_larger_than_a_statement_is_one_commit() {
    const ACCOUNTS: u64 = 40;
    let nodes = Nodes::new(1 << 19);
    nodes.tell(ONE, &[ONE; HOMES]);
    let keeper = nodes.open(ONE).await.expect("it opens");
    let asked = (0..ACCOUNTS).map(|key| keeper.ask(start(key)));
    for answer in futures_util::future::join_all(asked).await {
        // Before the homes have come it says so.
        if matches!(answer, Ok(Err(RequestError::Moving(_)))) {
            continue;
        }
        assert_eq!(answer.expect("it runs"), Ok(Answer::Taken));
    }
    for key in 0..ACCOUNTS {
        nodes.insist(start(key)).await;
    }
    let found = nodes.settled(usize::try_from(ACCOUNTS).expect("it is small")).await;
    assert!(found.iter().all(|balance| *balance == 1_000));
    let sizes: BTreeSet<usize> = nodes.stored().await.iter().map(|one| home_of(&one.name, HOMES)).collect();
    assert!(sizes.len() > 10, "they are in many homes");
    tokio::task::spawn_blocking(move || keeper.stop())
        .await
        .expect("it does not panic")
        .expect("it ends well");
}
