//! What the catalog promises over time: one order that everybody sees, no writes when idle, no election under load.
//!
//! The histories come from members that are processes: killed, stopped, cut off, with messages lost, repeated and overtaking each other;
//! and from a real etcd whose members are killed, stopped and cut off from each other.
//! A failure prints its seed, and `STEADFAST_SEED` repeats the same choices. The long run lasts ten minutes under `cargo xtask soak`, else
//! one, or as many seconds as `STEADFAST_SOAK_SECONDS` says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod catalog_common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use catalog_common::etcds::{Etcds, config, in_a_network_of_its_own};
use catalog_common::history::{self, Act, Answer, Operation};
use catalog_common::processes::{Call, Dice, Door, Faults, Processes, Reply, Silence, run_as_member};
use catalog_common::{Cluster, PATIENCE, eventually, put};
use rustix::process::Signal;
use steadfast::catalog::{Catalog, CatalogError, Etcd, EtcdConfig, Txn, Versioned};

const ENTRY: &str = "a_member_as_a_process_of_its_own";

#[test]
#[ignore = "the other tests start it as a member"]
fn a_member_as_a_process_of_its_own() {
    run_as_member();
}

/// What all clients of one round share.
struct Round {
    clock: Instant,
    doors: Vec<Door>,
    /// Keys of one generation get a bounded number of operations, so that each search stays small.
    generation: AtomicU64,
    values: AtomicU64,
    stop: AtomicBool,
    /// The planted flaw: reads that ask nobody.
    stale: AtomicBool,
    history: Mutex<Vec<Operation>>,
}

/// Operations on the keys of one generation, and how many keys it has.
const GENERATION: u64 = 1200;
const KEYS: u64 = 4;
/// How long a client waits for an answer: longer than a member waits for its majority.
const ANSWER_PATIENCE: Duration = Duration::from_millis(1500);

fn value_of(bytes: &Bytes) -> u64 {
    std::str::from_utf8(bytes).unwrap().parse().unwrap()
}

fn saw(row: Option<Versioned>) -> Answer {
    row.map_or(Answer::Saw(0, 0), |row| Answer::Saw(value_of(&row.value), row.version))
}

/// Whether an error says that nothing was done.
fn nothing_done(error: &CatalogError) -> bool {
    match error {
        CatalogError::Unknown { .. } => false,
        CatalogError::Invalid(_)
        | CatalogError::NoMajority { .. }
        | CatalogError::Full { .. }
        | CatalogError::Overloaded { .. }
        | CatalogError::Unreachable { .. }
        | CatalogError::Refused { .. }
        | CatalogError::NotMember { .. }
        | CatalogError::Closed { .. } => true,
    }
}

impl Round {
    fn new(doors: Vec<Door>, clock: Instant) -> Arc<Self> {
        let round = Self {
            clock,
            doors,
            generation: AtomicU64::new(u64::try_from(clock.elapsed().as_nanos()).unwrap()),
            values: AtomicU64::new(1),
            stop: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            history: Mutex::default(),
        };
        Arc::new(round)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).unwrap()
    }

    /// One operation; `None` if it surely did nothing.
    async fn operate(&self, dice: &mut Dice, seen: &mut (String, u64)) -> Option<Operation> {
        let count = self.values.fetch_add(1, Ordering::Relaxed);
        let generation = self.generation.load(Ordering::Relaxed) + count / GENERATION;
        let key = format!("row/{generation}/{}", dice.below(KEYS));
        let act = match dice.below(10) {
            0..5 => Act::Read,
            5..7 => Act::Write(count),
            7 => Act::Write(0),
            _ if seen.0 == key => Act::Swap(seen.1, count),
            _ => Act::Swap(0, count),
        };
        let call = match act {
            Act::Read if self.stale.load(Ordering::Relaxed) => Call::GetStale(key.clone()),
            Act::Read => Call::Get(key.clone()),
            Act::Write(0) => Call::Txn(Txn::delete(key.clone())),
            Act::Write(value) => Call::Txn(Txn::put(key.clone(), value.to_string())),
            Act::Swap(version, value) => {
                Call::Txn(Txn::compare_and_set(key.clone(), version, value.to_string()))
            }
        };
        let door = &self.doors[usize::try_from(dice.below(self.doors.len() as u64)).unwrap()];
        let began = self.now();
        let reply = match door.ask(call, ANSWER_PATIENCE).await {
            Ok(reply) => Some(reply),
            Err(Silence::NotSent) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                return None;
            }
            Err(Silence::Unknown) => None,
        };
        let ended = self.now();
        let answer = match reply {
            Some(Reply::Row(Ok(row))) => Some(saw(row)),
            Some(Reply::Txn(Ok(reply))) if reply.succeeded => Some(Answer::Done(reply.revision)),
            Some(Reply::Txn(Ok(reply))) => {
                let found = reply.conflicts.first().and_then(|(_, row)| row.as_ref());
                Some(Answer::Conflict(found.map_or(0, |row| row.version)))
            }
            Some(Reply::Row(Err(_))) => return None,
            Some(Reply::Txn(Err(error))) if nothing_done(&error) => return None,
            Some(Reply::Txn(Err(_))) | None => None,
            Some(other) => panic!("another answer: {other:?}"),
        };
        match answer {
            Some(Answer::Saw(_, version) | Answer::Done(version) | Answer::Conflict(version)) => {
                *seen = (key.clone(), version);
            }
            None => {}
        }
        Some(Operation { key, act, began, ended: answer.map(|answer| (ended, answer)) })
    }

    async fn client(self: Arc<Self>, seed: u64) {
        let mut dice = Dice(seed);
        let mut seen = (String::new(), 0);
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(operation) = self.operate(&mut dice, &mut seen).await {
                self.history.lock().unwrap().push(operation);
            }
        }
    }

    fn answered(&self) -> usize {
        self.history.lock().unwrap().iter().filter(|operation| operation.ended.is_some()).count()
    }

    /// Waits until so many more operations were answered.
    async fn longer(&self, count: usize) {
        let goal = self.answered() + count;
        eventually("more operations", || async { (self.answered() >= goal).then_some(()) }).await;
    }
}

/// Does one kind of harm, waits while the clients go on, and undoes it.
async fn harm(processes: &mut Processes, round: &Round, dice: &mut Dice, kind: u64) {
    let leader = processes.leader().await;
    let nodes = processes.nodes();
    let any = nodes[usize::try_from(dice.below(nodes.len() as u64)).unwrap()];
    let victim = if dice.below(2) == 0 { leader } else { any };
    match kind {
        0 => {
            processes.kill(victim);
            for node in nodes.iter().filter(|node| **node != victim) {
                processes.ask(*node, Call::Campaign(victim)).await;
            }
            round.longer(150).await;
            processes.start(victim, ENTRY);
        }
        1 => {
            for node in &nodes {
                processes.kill(*node);
            }
            for node in &nodes {
                processes.start(*node, ENTRY);
            }
        }
        2 => {
            processes.signal(victim, Signal::STOP);
            // A verdict on a leader that only sleeps: it wakes up and must not believe that it still leads.
            for node in nodes.iter().filter(|node| **node != victim) {
                processes.ask(*node, Call::Campaign(victim)).await;
            }
            round.longer(100).await;
            processes.signal(victim, Signal::CONT);
        }
        3 => {
            let others = nodes.iter().filter(|node| **node != leader);
            let cut = others.flat_map(|other| [(leader, *other), (*other, leader)]).collect();
            processes.set_faults(&Faults { cut, ..Faults::default() }).await;
            round.longer(150).await;
        }
        4 => {
            // One way only, and only between two.
            let cut = [(leader, any), (any, leader % nodes.len() as u64 + 1)].into();
            processes.set_faults(&Faults { cut, loss: 20, delay_us_max: 500 }).await;
            round.longer(150).await;
        }
        _ => {
            processes.set_faults(&Faults { loss: 60, delay_us_max: 8_000, ..Faults::default() }).await;
            round.longer(150).await;
        }
    }
    for node in &nodes {
        processes.running(*node).await;
    }
    processes.set_faults(&Faults::default()).await;
}

fn seed() -> u64 {
    let given = std::env::var("STEADFAST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
    });
    println!("STEADFAST_SEED={seed}");
    seed
}

/// What is harmed.
enum Subject {
    /// The engine of our own.
    Members(Processes),
    /// etcd, and nodes that keep their catalog there.
    Etcd(Etcds, Vec<Etcd>),
}

impl Subject {
    async fn etcd() -> Self {
        let etcds = Etcds::that_can_be_cut(3).await;
        let nodes: Vec<Etcd> = (1..=3)
            .map(|node| {
                let settings = config(node, etcds.endpoints(), None);
                Etcd::open(EtcdConfig { request_timeout: Duration::from_millis(700), ..settings }).unwrap()
            })
            .collect();
        for node in &nodes {
            node.wait_filled(PATIENCE).await.unwrap();
        }
        Self::Etcd(etcds, nodes)
    }

    fn doors(&self) -> Vec<Door> {
        match self {
            Self::Members(processes) => {
                processes.nodes().into_iter().map(|node| processes.door(node)).collect()
            }
            Self::Etcd(_, nodes) => nodes.iter().cloned().map(Door::Etcd).collect(),
        }
    }

    async fn harm(&mut self, round: &Round, dice: &mut Dice, kind: u64) {
        match self {
            Self::Members(processes) => harm(processes, round, dice, kind).await,
            Self::Etcd(etcds, _) => harm_etcd(etcds, round, dice, kind).await,
        }
    }
}

/// The same kinds of harm to etcd's members.
async fn harm_etcd(etcds: &mut Etcds, round: &Round, dice: &mut Dice, kind: u64) {
    let members = etcds.members();
    let leader = etcds.leader().await;
    let any = members[usize::try_from(dice.below(members.len() as u64)).unwrap()];
    let victim = if dice.below(2) == 0 { leader } else { any };
    let others = || members.iter().copied().filter(|member| *member != victim);
    match kind {
        0 => {
            etcds.kill(victim);
            round.longer(150).await;
            etcds.start(victim);
        }
        1 => {
            for member in &members {
                etcds.kill(*member);
            }
            for member in &members {
                etcds.start(*member);
            }
        }
        2 => {
            etcds.signal(victim, Signal::STOP);
            round.longer(100).await;
            etcds.signal(victim, Signal::CONT);
        }
        3 => {
            others().for_each(|other| etcds.cut(victim, other));
            round.longer(150).await;
        }
        4 => {
            others().take(1).for_each(|other| etcds.cut_one_way(victim, other));
            round.longer(150).await;
        }
        _ => {
            // Nobody has a majority for a while.
            others().for_each(|other| etcds.signal(other, Signal::STOP));
            etcds.kill(victim);
            etcds.start(victim);
            others().for_each(|other| etcds.signal(other, Signal::CONT));
            round.longer(100).await;
        }
    }
    etcds.heal();
    for member in &members {
        etcds.serving(*member).await;
    }
}

/// Rounds of harm, each with its own history, until `done`; returns how many operations were checked.
async fn rounds(subject: &mut Subject, seed: u64, done: impl Fn(u64) -> bool) -> usize {
    let mut dice = Dice(seed);
    let clock = Instant::now();
    let (mut count, mut checked, mut unknown) = (0, 0, 0);
    while !done(count) {
        let round = Round::new(subject.doors(), clock);
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..16 {
            clients.spawn(Arc::clone(&round).client(dice.below(u64::MAX)));
        }
        round.longer(100).await;
        subject.harm(&round, &mut dice, count % 6).await;
        round.longer(100).await;
        round.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
        let history = std::mem::take(&mut *round.history.lock().unwrap());
        checked += history.len();
        unknown += history.iter().filter(|operation| operation.ended.is_none()).count();
        if let Err(problem) = history::check(&history) {
            panic!("STEADFAST_SEED={seed}, round {count}: {problem}");
        }
        count += 1;
    }
    println!("{count} rounds, {checked} operations, {unknown} of them without an answer: linearizable");
    checked
}

/// When a long run ends: ten minutes under `cargo xtask soak`, else one, or what is asked for.
fn end_of_a_long_run() -> Instant {
    let given = std::env::var("STEADFAST_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let usual = if std::env::var_os("STEADFAST_SOAK").is_some() { 600 } else { 60 };
    Instant::now() + Duration::from_secs(given.unwrap_or(usual))
}

/// Runs histories on etcd in a network of their own, where its members can be cut off from each other.
fn on_etcd(name: &str, done: impl Fn(u64) -> bool, checked_min: usize) {
    if !in_a_network_of_its_own(name) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let checked = runtime.block_on(async { rounds(&mut Subject::etcd().await, seed(), done).await });
    assert!(checked > checked_min, "{checked} operations");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_with_killed_stopped_and_cut_off_members_are_linearizable() {
    let mut subject = Subject::Members(Processes::of(3, ENTRY).await);
    assert!(rounds(&mut subject, seed(), |count| count >= 6).await > 1500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_run_of_histories_is_linearizable() {
    let end = end_of_a_long_run();
    let mut subject = Subject::Members(Processes::of(3, ENTRY).await);
    rounds(&mut subject, seed(), |_| Instant::now() >= end).await;
}

#[test]
fn histories_on_etcd_with_killed_stopped_and_cut_off_members_are_linearizable() {
    on_etcd(
        "histories_on_etcd_with_killed_stopped_and_cut_off_members_are_linearizable",
        |count| count >= 6,
        1500,
    );
}

#[test]
fn a_long_run_of_histories_on_etcd_is_linearizable() {
    let end = end_of_a_long_run();
    on_etcd("a_long_run_of_histories_on_etcd_is_linearizable", |_| Instant::now() >= end, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planted_stale_read_is_caught() {
    let processes = Processes::of(3, ENTRY).await;
    let doors: Vec<Door> = processes.nodes().into_iter().map(|node| processes.door(node)).collect();
    let round = Round::new(doors, Instant::now());
    round.stale.store(true, Ordering::Relaxed);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..16 {
        clients.spawn(Arc::clone(&round).client(client));
    }
    round.longer(100).await;
    // A member that hears nothing goes on answering with what it had.
    let cut = [(1, 3), (3, 1), (2, 3), (3, 2)].into();
    processes.set_faults(&Faults { cut, ..Faults::default() }).await;
    round.longer(300).await;
    round.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let history = round.history.lock().unwrap().clone();
    assert!(history::check(&history).is_err(), "stale reads were not noticed");
}

fn operation(act: Act, began: u64, ended: u64, answer: Answer) -> Operation {
    Operation { key: "a".into(), act, began, ended: Some((ended, answer)) }
}

#[test]
fn the_checker_accepts_what_has_an_order_and_refuses_what_has_none() {
    let write =
        |value, began, ended, revision| operation(Act::Write(value), began, ended, Answer::Done(revision));
    let read = |value, version, began, ended| operation(Act::Read, began, ended, Answer::Saw(value, version));
    let lost = |value, began| Operation { key: "a".into(), act: Act::Write(value), began, ended: None };
    // Overlapping reads may see either side of a write, in its order.
    let fine = [write(1, 0, 10, 1), write(2, 20, 50, 2), read(1, 1, 25, 30), read(2, 2, 31, 40)];
    assert_eq!(history::check(&fine), Ok(()));
    let back = [write(1, 0, 10, 1), write(2, 20, 50, 2), read(2, 2, 25, 30), read(1, 1, 31, 40)];
    assert!(history::check(&back).is_err(), "a read went back");
    let stale = [write(1, 0, 10, 1), write(2, 20, 30, 2), read(1, 1, 40, 50)];
    assert!(history::check(&stale).is_err(), "a read saw what was overwritten");
    let nothing = [write(1, 0, 10, 1), read(0, 0, 20, 30)];
    assert!(history::check(&nothing).is_err(), "an acknowledged write was lost");
    // A write without an answer may happen late, early or never, but not twice.
    let late = [write(1, 0, 10, 1), lost(7, 5), read(1, 1, 20, 30), read(7, 9, 40, 50)];
    assert_eq!(history::check(&late), Ok(()));
    assert_eq!(history::check(&[lost(7, 5), read(0, 0, 20, 30)]), Ok(()));
    let twice = [lost(7, 0), read(7, 2, 10, 20), write(8, 30, 40, 3), read(7, 4, 50, 60)];
    assert!(history::check(&twice).is_err(), "a write happened twice");
    let swap =
        |version, value, began, ended, answer| operation(Act::Swap(version, value), began, ended, answer);
    let both = [write(1, 0, 10, 1), swap(1, 2, 20, 40, Answer::Done(2)), swap(1, 3, 21, 41, Answer::Done(3))];
    assert!(history::check(&both).is_err(), "two swaps from one version");
    let one =
        [write(1, 0, 10, 1), swap(1, 2, 20, 40, Answer::Done(2)), swap(1, 3, 21, 41, Answer::Conflict(2))];
    assert_eq!(history::check(&one), Ok(()));
    let elsewhere = Operation { key: "b".into(), ..write(3, 20, 30, 1) };
    assert!(history::check(&[write(1, 0, 10, 2), elsewhere]).is_err(), "revisions went back across keys");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_catalog_writes_nothing_to_its_disks() {
    let cluster = Cluster::of(3).await;
    put(&cluster.member(1), "a", "1").await;
    for node in 1..=3 {
        cluster.member(node).get("a".into()).await.unwrap();
    }
    let seen = || -> Vec<_> {
        let file = |node| std::fs::metadata(cluster.dir_of(node).join("catalog.redb")).unwrap();
        (1..=3).map(|node| (file(node).modified().unwrap(), file(node).len())).collect()
    };
    let talk = |count: u64| {
        let goal = cluster.network.messages() + count;
        let network = cluster.network.clone();
        eventually("more heartbeats", move || {
            let reached = network.messages() >= goal;
            async move { reached.then_some(()) }
        })
    };
    // The last commit mark may still be on its way to a follower; it does not cause a write either, once it is there.
    talk(10).await;
    let before = seen();
    talk(100).await;
    assert_eq!(seen(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_elected_while_every_processor_and_the_disk_are_busy() {
    let cluster = Cluster::of(3).await;
    let term = cluster.leader().await.status().term;
    let stop = Arc::new(AtomicBool::new(false));
    let burners: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut sum = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    sum = std::hint::black_box(sum.wrapping_add(1));
                }
            })
        })
        .collect();
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..16_u64 {
        let member = cluster.member(1 + number % 3);
        // Large enough that checkpoints are made and sent through the same disk all the time.
        let value = "v".repeat(if number == 0 { 500_000 } else { 2000 });
        writers.spawn(async move {
            for count in 0..40 {
                put(&member, &format!("row/{number}/{}", count % 4), &value).await;
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    for burner in burners {
        burner.join().unwrap();
    }
    assert_eq!(cluster.leader().await.status().term, term, "somebody was elected although nobody died");
}
