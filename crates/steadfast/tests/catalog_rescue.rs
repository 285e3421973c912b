//! Backups, restores and recovery from a survivor, on real stores and with members that come back from before.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod catalog_common;

use std::path::Path;

use catalog_common::{CLUSTER, Cluster, eventually, get, put, status_that};
use steadfast::catalog::{
    Backup, BackupError, Catalog, EmbeddedConfig, Member, RescueError, Role, StoreError, Survivor, Txn,
    restore,
};

/// Another cluster: both halves of its id differ.
const OTHER: u128 = 0xabcd_0000_0000_0000_0000_0000_0000_0007;

async fn backup_of(cluster: &Cluster, file: &Path) -> Backup {
    let backup = cluster.leader().await.backup(77).await.unwrap();
    backup.write(file).unwrap();
    assert_eq!(Backup::read(file).unwrap(), backup);
    backup
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_restored_into_a_new_cluster_has_every_row_and_grows() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup");
    let cluster = Cluster::of(3).await;
    let mut version = 0;
    for number in 0..40 {
        version = put(&cluster.member(1 + number % 3), &format!("row/{number:02}"), "x").await;
    }
    let before = cluster.leader().await.range(String::new()).await.unwrap();
    backup_of(&cluster, &file).await;
    // Changes after the backup are not in it.
    put(&cluster.member(1), "later", "x").await;
    drop(cluster);

    let cluster = Cluster::default();
    let backup = Backup::read(&file).unwrap();
    assert_eq!((backup.cluster(), backup.taken_unix_ms(), backup.revision()), (CLUSTER, 77, before.revision));
    restore(&cluster.dir_of(1), OTHER, 1, vec!["one".into()], &backup).unwrap();
    let twice = restore(&cluster.dir_of(1), OTHER, 1, Vec::new(), &backup).unwrap_err();
    assert!(matches!(twice, RescueError::Exists { .. }), "{twice}");
    let config = |node| EmbeddedConfig { cluster_id: OTHER, ..cluster.config(node) };
    let first = cluster.start_with(config(1)).await;
    let after = first.range(String::new()).await.unwrap();
    assert_eq!(after.rows, before.rows);
    assert!(after.revision > before.revision + 1000, "no revision is used twice");
    assert!(first.txn(Txn::compare_and_set("row/39", version, "y")).await.unwrap().succeeded);
    assert!(first.initialize(Vec::new()).await.is_err(), "it is a cluster already");
    for node in 2..=3 {
        cluster.start_with(config(node)).await;
        first.add_learner(node, Member::new(vec![format!("node {node}")])).await.unwrap();
        first.promote(node).await.unwrap();
    }
    // And it lives on without the node that was restored.
    cluster.kill(1).await;
    assert_eq!(get(&cluster.leader().await, "row/39").await.as_deref(), Some("y"));
    assert_eq!(get(&cluster.member(2), "later").await, None);
    drop(cluster.member(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_damaged_is_refused_with_its_name_and_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup");
    let cluster = Cluster::of(1).await;
    put(&cluster.member(1), "a", "1").await;
    backup_of(&cluster, &file).await;
    let whole = std::fs::read(&file).unwrap();
    for (bytes, part) in [
        (whole[..whole.len() - 1].to_vec(), "checksum"),
        (b"another file".to_vec(), "mark"),
        (Vec::new(), "mark"),
        ([whole.clone(), vec![0]].concat(), "checksum"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let refused = Backup::read(&file).unwrap_err();
        assert!(matches!(refused, BackupError::Unusable { .. }), "{refused}");
        assert!(refused.to_string().contains(part) && refused.to_string().contains("backup"), "{refused}");
    }
    assert!(matches!(Backup::read(folder.path()).unwrap_err(), BackupError::Io { .. }));
    assert!(matches!(Backup::read(&folder.path().join("no")).unwrap_err(), BackupError::Io { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_needs_a_majority_and_one_survivor_becomes_a_cluster_of_one() {
    let mut cluster = Cluster::default();
    cluster.timings.request_timeout = std::time::Duration::from_secs(2);
    cluster.grow(3).await;
    for number in 0..30 {
        put(&cluster.leader().await, &format!("row/{number}"), "x").await;
    }
    let before = cluster.member(2).range(String::new()).await.unwrap();
    let dir = cluster.dir_of(2);
    let running = Survivor::open(&dir, CLUSTER, 2, 2).unwrap_err();
    assert!(matches!(running, RescueError::Store(StoreError::InUse { .. })), "{running}");
    cluster.kill(1).await;
    cluster.kill(3).await;
    let survivor = cluster.member(2);
    assert!(survivor.backup(0).await.is_err(), "what a minority has may be old");
    cluster.kill(2).await;
    drop(survivor);

    let wrong = Survivor::open(&dir, CLUSTER, 2, 1).unwrap_err();
    assert!(matches!(wrong, RescueError::Others { others: 2, given: 1 }), "{wrong}");
    let nowhere = Survivor::open(&cluster.dir_of(9), CLUSTER, 9, 2).unwrap_err();
    assert!(matches!(nowhere, RescueError::Absent { .. }), "{nowhere}");
    // What a crash in the middle of an earlier attempt left.
    std::fs::write(dir.join("catalog.planted"), b"half a store").unwrap();
    let mut survivor = Survivor::open(&dir, CLUSTER, 2, 2).unwrap();
    assert_eq!(survivor.row("row/0").unwrap().value, "x");
    survivor.put("row/0", "seen to");
    let recovered = survivor.recover(vec!["two".to_owned()]).unwrap();
    assert_eq!((recovered.rows, recovered.lost.as_slice()), (30, [1, 3].as_slice()));
    assert!(recovered.kept.unwrap().exists(), "the store is kept as it was");
    let alone = cluster.start(2).await;
    let after = alone.range(String::new()).await.unwrap();
    assert_eq!(after.rows[0].1.value, "seen to");
    assert_eq!(after.rows[1..], before.rows[1..]);
    assert!(after.revision > before.revision + 1000, "no revision is used twice");
    put(&alone, "new", "life").await;

    // The others were not gone after all, and are a majority among themselves: they neither disturb nor are believed.
    cluster.start(1).await;
    cluster.start(3).await;
    eventually("the old majority's leader", || async {
        [1, 3].into_iter().find(|node| cluster.member(*node).status().role == Role::Leader)
    })
    .await;
    put(&cluster.member(1), "old", "life").await;
    put(&alone, "still", "here").await;
    assert_eq!(get(&alone, "old").await, None);
    assert_eq!(alone.status().voters.keys().copied().collect::<Vec<_>>(), [2]);

    // With their catalog removed they join again, even under their old numbers.
    for node in [1, 3] {
        cluster.kill(node).await;
        std::fs::remove_dir_all(cluster.dir_of(node)).unwrap();
        cluster.start(node).await;
        alone.add_learner(node, Member::new(vec![format!("node {node}")])).await.unwrap();
        alone.promote(node).await.unwrap();
    }
    // The life that they took is durable.
    cluster.kill(1).await;
    let returned = cluster.start(1).await;
    assert_eq!(get(&returned, "new").await.as_deref(), Some("life"));
    cluster.kill(2).await;
    put(&cluster.leader().await, "without", "the survivor").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_is_no_survivor() {
    let cluster = Cluster::of(1).await;
    let learner = cluster.start(2).await;
    cluster.member(1).add_learner(2, Member::new(vec!["two".into()])).await.unwrap();
    put(&cluster.member(1), "a", "1").await;
    status_that(&learner, "its copy", |status| status.revision == 1).await;
    cluster.kill(2).await;
    drop(learner);
    let refused = Survivor::open(&cluster.dir_of(2), CLUSTER, 2, 1).unwrap_err();
    assert!(matches!(refused, RescueError::NoVoter { node: 2 }), "{refused}");
}
