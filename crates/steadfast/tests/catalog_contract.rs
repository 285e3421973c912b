//! What every engine of the catalog promises to those who use it: one suite, run on the engine of our own and on a real etcd.
//!
//! Each promise is a function over three doors to one catalog. What only one engine has (votes, elections, a history of its own) is tested in
//! `catalog_cluster` and `catalog_etcd`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod catalog_common;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use catalog_common::etcds::Etcds;
use catalog_common::{Cluster, PATIENCE, eventually};
use steadfast::catalog::{
    Catalog, CatalogError, EngineKind, Etcd, InvalidRequest, Role, Txn, TxnReply, WatchItem, WatchStream,
};

/// Three doors to one catalog, and what they stand on.
struct Doors {
    doors: Vec<Arc<dyn Catalog>>,
    engine: EngineKind,
    stands_on: Ground,
}

enum Ground {
    Members(Cluster),
    Database(Vec<Etcd>, #[allow(dead_code, reason = "it ends when it is dropped")] Etcds),
}

impl Doors {
    async fn embedded() -> Self {
        let cluster = Cluster::of(3).await;
        let doors =
            cluster.members().into_iter().map(|member| Arc::new(member) as Arc<dyn Catalog>).collect();
        Self { doors, engine: EngineKind::Embedded, stands_on: Ground::Members(cluster) }
    }

    async fn etcd() -> Self {
        let etcds = Etcds::of(1).await;
        let parts: Vec<Etcd> = (1..=3).map(|node| etcds.open(node)).collect();
        for part in &parts {
            part.wait_filled(PATIENCE).await.unwrap();
        }
        let doors = parts.iter().map(|part| Arc::new(part.clone()) as Arc<dyn Catalog>).collect();
        Self { doors, engine: EngineKind::Etcd, stands_on: Ground::Database(parts, etcds) }
    }

    fn first(&self) -> &dyn Catalog {
        self.doors.first().unwrap().as_ref()
    }
}

macro_rules! on_every_engine {
    ($($promise:ident)*) => {
        mod embedded {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    super::$promise(super::Doors::embedded().await).await;
                }
            )*
        }
        mod etcd {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    super::$promise(super::Doors::etcd().await).await;
                }
            )*
        }
    };
}

on_every_engine! {
    every_door_reads_what_any_other_wrote
    a_comparison_that_fails_changes_nothing_and_says_what_is_there
    all_changes_of_a_transaction_share_a_revision
    a_row_that_was_deleted_can_be_made_again_and_only_as_a_new_one
    requests_that_break_a_limit_are_refused_by_name
    rows_under_a_prefix_come_whole_and_in_order_however_many_they_are
    a_watch_brings_every_change_of_its_prefix_once_and_in_order
    a_watch_of_everything_reaches_the_revision_of_any_read
    additions_by_everybody_at_once_are_counted_once
    a_door_that_is_shut_says_so
}

async fn put(door: &dyn Catalog, key: &str, value: &str) -> u64 {
    let reply = door.txn(Txn::put(key, value.to_owned())).await.unwrap();
    assert!(reply.succeeded && reply.conflicts.is_empty());
    reply.revision
}

async fn get(door: &dyn Catalog, key: &str) -> Option<(String, u64)> {
    let row = door.get(key.to_owned()).await.unwrap()?;
    Some((String::from_utf8(row.value.to_vec()).unwrap(), row.version))
}

async fn next(watch: &mut WatchStream) -> WatchItem {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch stalled").unwrap()
}

async fn every_door_reads_what_any_other_wrote(doors: Doors) {
    assert_eq!(get(doors.first(), "a").await, None);
    let mut newest = 0;
    for (number, writer) in doors.doors.iter().enumerate() {
        let value = number.to_string();
        let revision = put(writer.as_ref(), "a", &value).await;
        assert!(revision > newest, "revisions grow");
        newest = revision;
        for reader in &doors.doors {
            assert_eq!(get(reader.as_ref(), "a").await, Some((value.clone(), revision)));
            let rows = reader.range(String::new()).await.unwrap();
            assert_eq!((rows.revision, rows.rows.len()), (revision, 1));
        }
    }
    for door in &doors.doors {
        let caught_up = || async {
            (door.get_stale("a") == (newest, door.range_stale("").rows.pop().map(|row| row.1))).then_some(())
        };
        eventually("a copy that is in step", caught_up).await;
        let status = door.status();
        assert_eq!(
            (status.engine, status.revision, status.has_quorum),
            (doors.engine, newest, true),
            "{status:?}"
        );
        assert_eq!((status.failure, status.unreachable), (None, None));
        match doors.engine {
            EngineKind::Embedded => assert!(door.leader().is_some()),
            EngineKind::Etcd => assert_eq!((door.leader(), status.role), (None, Role::Client)),
        }
    }
}

async fn a_comparison_that_fails_changes_nothing_and_says_what_is_there(doors: Doors) {
    let door = doors.first();
    let made = door.txn(Txn::compare_and_set("a", 0, "1")).await.unwrap();
    assert!(made.succeeded);
    let txn = Txn {
        compare: vec![("a".into(), made.revision), ("b".into(), 0), ("a/missing".into(), 7)],
        puts: vec![("a".into(), Some("2".into())), ("b".into(), Some("2".into()))],
    };
    let TxnReply { succeeded, revision, conflicts } = door.txn(txn.clone()).await.unwrap();
    assert_eq!((succeeded, revision, conflicts), (false, made.revision, vec![("a/missing".into(), None)]));
    let taken = door.txn(Txn::compare_and_set("a", 0, "2")).await.unwrap();
    assert!(!taken.succeeded);
    let [(key, Some(there))] = taken.conflicts.as_slice() else { panic!("{taken:?}") };
    assert_eq!((key.as_str(), &there.value[..], there.version), ("a", &b"1"[..], made.revision));
    assert_eq!(get(door, "a").await, Some(("1".into(), made.revision)));
    assert_eq!(get(door, "b").await, None);
    let fits = Txn { compare: txn.compare.into_iter().take(2).collect(), puts: txn.puts };
    assert!(door.txn(fits).await.unwrap().succeeded);
    let asks_only = Txn { compare: vec![("a".into(), made.revision)], puts: Vec::new() };
    assert!(!door.txn(asks_only).await.unwrap().succeeded);
}

async fn all_changes_of_a_transaction_share_a_revision(doors: Doors) {
    let door = doors.first();
    put(door, "gone", "1").await;
    let puts = vec![("a".into(), Some("1".into())), ("b".into(), Some(Bytes::new())), ("gone".into(), None)];
    let made = door.txn(Txn { compare: Vec::new(), puts }).await.unwrap();
    let rows = door.range(String::new()).await.unwrap();
    let shown: Vec<_> = rows.rows.iter().map(|(key, row)| (key.as_str(), row.version)).collect();
    assert_eq!(shown, [("a", made.revision), ("b", made.revision)]);
    assert_eq!(rows.revision, made.revision);
    assert_eq!(get(door, "b").await, Some((String::new(), made.revision)), "an empty value is a value");
}

async fn a_row_that_was_deleted_can_be_made_again_and_only_as_a_new_one(doors: Doors) {
    let door = doors.first();
    let old = put(door, "a", "1").await;
    assert!(door.txn(Txn::delete("a")).await.unwrap().succeeded);
    assert_eq!(get(door, "a").await, None);
    let late = door.txn(Txn::compare_and_set("a", old, "2")).await.unwrap();
    assert_eq!((late.succeeded, late.conflicts), (false, vec![("a".into(), None)]));
    let anew = door.txn(Txn::compare_and_set("a", 0, "3")).await.unwrap();
    assert!(anew.succeeded && anew.revision > old);
}

async fn requests_that_break_a_limit_are_refused_by_name(doors: Doors) {
    let door = doors.first();
    let refused = door.txn(Txn::put("k".repeat(600), "v")).await.unwrap_err();
    assert!(
        matches!(refused, CatalogError::Invalid(InvalidRequest::KeyTooLong { length: 600, .. })),
        "{refused}"
    );
    let refused = door.txn(Txn::put("k", vec![0; (1 << 20) + 1])).await.unwrap_err();
    assert!(refused.to_string().contains("at most 1048576"), "{refused}");
    let twice = Txn { compare: Vec::new(), puts: vec![("k".into(), None), ("k".into(), Some("v".into()))] };
    assert!(matches!(
        door.txn(twice).await.unwrap_err(),
        CatalogError::Invalid(InvalidRequest::KeyTwice { .. })
    ));
    assert!(matches!(
        door.get(String::new()).await.unwrap_err(),
        CatalogError::Invalid(InvalidRequest::KeyEmpty)
    ));
    assert!(
        door.txn(Txn::put("k", vec![7; 1 << 20])).await.unwrap().succeeded,
        "the limit itself is allowed"
    );
    assert_eq!(door.get("k".into()).await.unwrap().unwrap().value.len(), 1 << 20);
}

async fn rows_under_a_prefix_come_whole_and_in_order_however_many_they_are(doors: Doors) {
    let door = doors.first();
    for outside in ["row", "row0", "s", "ro"] {
        put(door, outside, "x").await;
    }
    let mut writes = tokio::task::JoinSet::new();
    for number in 0..130 {
        let door = Arc::clone(doors.doors.get(number % 3).unwrap());
        writes
            .spawn(async move { put(door.as_ref(), &format!("row/{number:03}"), &number.to_string()).await });
    }
    let newest = writes.join_all().await.into_iter().max().unwrap();
    let rows = door.range("row/".into()).await.unwrap();
    assert_eq!(rows.revision, newest);
    let keys: Vec<_> = rows.rows.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(keys, (0..130).map(|number| format!("row/{number:03}")).collect::<Vec<_>>());
    assert_eq!(door.range("none/".into()).await.unwrap().rows, []);
    assert_eq!(door.range(String::new()).await.unwrap().rows.len(), 134);
}

async fn a_watch_brings_every_change_of_its_prefix_once_and_in_order(doors: Doors) {
    let writer = doors.first();
    let mut from = Vec::new();
    for door in &doors.doors {
        from.push(door.range("row/".into()).await.unwrap().revision);
    }
    let mut watches: Vec<WatchStream> =
        (doors.doors.iter()).zip(&from).map(|(door, from)| door.watch("row/".into(), *from)).collect();
    let mut made = Vec::new();
    for number in 0..40 {
        put(writer, "other", "x").await;
        let value = (number % 4 != 3).then(|| Bytes::from(number.to_string()));
        let key = format!("row/{}", number % 5);
        let before = get(writer, &key).await;
        let revision = writer
            .txn(Txn { compare: Vec::new(), puts: vec![(key.clone(), value.clone())] })
            .await
            .unwrap()
            .revision;
        // What deletes nothing is no change.
        if value.is_some() || before.is_some() {
            made.push((revision, key, value));
        }
    }
    for watch in &mut watches {
        let mut seen = Vec::new();
        while seen.len() < made.len() {
            let WatchItem::Changed(watched) = next(watch).await else { panic!("nothing was missed") };
            for (key, row) in watched.changes {
                assert!(row.as_ref().is_none_or(|row| row.version == watched.revision));
                seen.push((watched.revision, key, row.map(|row| row.value)));
            }
        }
        assert_eq!(seen, made);
    }
    // One that begins in the middle sees the rest.
    let (middle, _, _) = made.get(10).unwrap();
    let mut late = doors.first().watch("row/".into(), *middle);
    let WatchItem::Changed(first) = next(&mut late).await else { panic!("nothing was missed") };
    assert_eq!(first.revision, made.get(11).unwrap().0);
}

async fn a_watch_of_everything_reaches_the_revision_of_any_read(doors: Doors) {
    let door = doors.first();
    let mut watch = door.watch(String::new(), door.range(String::new()).await.unwrap().revision);
    put(door, "a", "1").await;
    for nothing in ["b", "c"] {
        door.txn(Txn::delete(nothing)).await.unwrap();
    }
    let read = door.range("view".into()).await.unwrap().revision;
    let (mut seen, mut rows) = (0, BTreeMap::new());
    while seen < read {
        let item = next(&mut watch).await;
        seen = item.revision();
        if let WatchItem::Changed(watched) = item {
            rows.extend(watched.changes.into_iter().map(|(key, row)| (key, row.map(|row| row.value))));
        }
    }
    assert_eq!(rows, BTreeMap::from([("a".to_owned(), Some(Bytes::from("1")))]));
}

async fn additions_by_everybody_at_once_are_counted_once(doors: Doors) {
    let mut adders = tokio::task::JoinSet::new();
    for door in &doors.doors {
        let door = Arc::clone(door);
        adders.spawn(async move {
            let mut added = 0;
            while added < 20 {
                let (value, version) = get(door.as_ref(), "sum").await.unwrap_or(("0".into(), 0));
                let more = (value.parse::<u64>().unwrap() + 1).to_string();
                added +=
                    u64::from(door.txn(Txn::compare_and_set("sum", version, more)).await.unwrap().succeeded);
            }
        });
    }
    adders.join_all().await;
    assert_eq!(get(doors.first(), "sum").await.unwrap().0, "60");
}

async fn a_door_that_is_shut_says_so(doors: Doors) {
    let Doors { doors, stands_on, .. } = doors;
    let door = doors.into_iter().next().unwrap();
    let mut watch = door.watch(String::new(), door.range(String::new()).await.unwrap().revision);
    let waiting = tokio::spawn(async move { watch.next().await });
    match &stands_on {
        Ground::Members(cluster) => cluster.kill(door.status().node).await,
        Ground::Database(parts, _) => parts.first().unwrap().shutdown().await,
    }
    let ended = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(ended, CatalogError::Closed { .. }), "{ended}");
    assert!(matches!(door.get("a".into()).await.unwrap_err(), CatalogError::Closed { .. }));
    assert!(matches!(door.txn(Txn::put("a", "1")).await.unwrap_err(), CatalogError::Closed { .. }));
    assert_eq!(door.status().role, Role::Closed);
}
