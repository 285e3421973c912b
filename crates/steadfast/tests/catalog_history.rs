//! What the catalog promises over time: one order that everybody sees, no writes when idle, no election under load.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod catalog_common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use catalog_common::{Cluster, eventually, put};
use steadfast::catalog::{Catalog, CatalogError, Embedded, Txn};

/// One finished operation on the one row, in real time.
#[derive(Clone, Debug)]
struct Operation {
    began: Instant,
    ended: Instant,
    /// The version that it wrote or saw.
    version: u64,
    wrote: bool,
    value: Option<String>,
}

/// Versions give each write its place; so a history is linearizable when every operation fits into real time by its version alone.
fn check(history: &[Operation]) {
    let mut writes: Vec<&Operation> = history.iter().filter(|operation| operation.wrote).collect();
    writes.sort_by_key(|operation| operation.version);
    for pair in writes.windows(2) {
        assert!(pair[0].version < pair[1].version, "two writes share a version: {pair:?}");
    }
    for earlier in history {
        for later in history.iter().filter(|later| later.began > earlier.ended) {
            assert!(later.version >= earlier.version, "went back: {earlier:?} then {later:?}");
            assert!(
                !later.wrote || later.version > earlier.version,
                "wrote over what was seen: {earlier:?} then {later:?}"
            );
        }
    }
    for read in history.iter().filter(|operation| !operation.wrote) {
        if let Some(write) = writes.iter().find(|write| write.version == read.version) {
            assert_eq!(write.value, read.value, "the value is not the one that was written");
            assert!(write.began < read.ended, "read before it was written: {read:?} {write:?}");
        }
    }
}

async fn client(member: Embedded, number: u64, history: Arc<Mutex<Vec<Operation>>>, stop: Arc<AtomicBool>) {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let began = Instant::now();
        let operation = if count % 3 == 0 {
            let value = format!("{number}/{count}");
            match member.txn(Txn::put("row", value.clone())).await {
                Ok(reply) => Some((reply.revision, true, Some(value))),
                // It may take effect later: then a read sees a version that no write of the history has.
                Err(_) => None,
            }
        } else {
            match member.get("row".into()).await {
                Ok(Some(row)) => {
                    Some((row.version, false, Some(String::from_utf8(row.value.to_vec()).unwrap())))
                }
                Ok(None) => Some((0, false, None)),
                Err(CatalogError::Closed { .. }) => return,
                Err(_) => None,
            }
        };
        if let Some((version, wrote, value)) = operation {
            history.lock().unwrap().push(Operation { began, ended: Instant::now(), version, wrote, value });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_with_cuts_losses_and_dead_leaders_is_linearizable() {
    let mut cluster = Cluster::default();
    cluster.timings.request_timeout = Duration::from_secs(3);
    cluster.grow(3).await;
    let history = Arc::new(Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    let mut enlist = |number: u64, member: Embedded| {
        clients.spawn(client(member, number, Arc::clone(&history), Arc::clone(&stop)));
    };
    for node in 1..=3 {
        enlist(node, cluster.member(node));
        enlist(node + 10, cluster.member(node));
    }
    let longer = |length: usize| {
        eventually("more operations", {
            let history = Arc::clone(&history);
            let goal = history.lock().unwrap().len() + length;
            move || {
                let reached = history.lock().unwrap().len() >= goal;
                async move { reached.then_some(()) }
            }
        })
    };
    for round in 0..3 {
        longer(200).await;
        let leader = cluster.leader().await.status().node;
        cluster.network.isolate(leader, &[1, 2, 3]);
        longer(200).await;
        cluster.network.heal();
        cluster.network.trouble(Duration::from_micros(300), 30);
        longer(200).await;
        cluster.network.heal();
        let dead = cluster.leader().await.status().node;
        cluster.kill(dead).await;
        for member in cluster.members() {
            member.campaign(dead).await;
        }
        longer(200).await;
        enlist(100 + round, cluster.start(dead).await);
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let history = history.lock().unwrap().clone();
    println!("{} operations", history.len());
    // The check compares all pairs: it looks at windows that overlap.
    for window in history.chunks(2000).chain(history.get(1000..).unwrap_or_default().chunks(2000)) {
        check(window);
    }
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
