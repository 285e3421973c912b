//! Eight ways in which users of other stores lose a cluster while they change its members; here each ends safe.
//!
//! The numbers in the names' comments are those of the reports at etcd (and one at our engine's library) that taught us.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod catalog_common;

use catalog_common::{Cluster, eventually, get, put, status_that};
use steadfast::catalog::{Catalog, CatalogError, EmbeddedConfig, InitializeError, Member, MembershipError};

fn nowhere(node: u64) -> Member {
    Member::new(vec![format!("node {node}")])
}

/// etcd 3505: `member add` of a member that does not run yet makes two votes necessary, and there is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_are_added_before_they_start_don_t_count() {
    let cluster = Cluster::of(1).await;
    let member = cluster.member(1);
    for node in 2..=4 {
        member.add_learner(node, nowhere(node)).await.unwrap();
        put(&member, "a", &node.to_string()).await;
    }
    cluster.kill(1).await;
    let member = cluster.start(1).await;
    assert_eq!(get(&member, "a").await.as_deref(), Some("4"), "also after a restart it needs nobody");
    // And the one that starts at last is promoted.
    cluster.start(3).await;
    member.promote(3).await.unwrap();
    assert_eq!(member.status().voters.len(), 2);
}

/// etcd 2115: the member that never started can't be removed, because removing it needs its vote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_never_started_is_removed_at_once() {
    let cluster = Cluster::of(2).await;
    let member = cluster.member(1);
    member.add_learner(9, nowhere(9)).await.unwrap();
    assert!(matches!(member.promote(9).await.unwrap_err(), MembershipError::Unreachable { node: 9, .. }));
    cluster.member(2).remove(9).await.unwrap();
    // Said again, it is still so.
    member.remove(9).await.unwrap();
    put(&member, "a", "1").await;
    assert!(cluster.leader().await.status().learners.is_empty());
}

/// etcd 3504: a member whose disk was lost starts again under its old number and promises again what it had promised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_under_an_old_number_gets_no_vote_and_stops_nobody() {
    let cluster = Cluster::of(3).await;
    put(&cluster.member(1), "a", "1").await;
    let leader = cluster.leader().await;
    let lost = leader.status().node % 3 + 1;
    cluster.kill(lost).await;
    std::fs::remove_dir_all(cluster.dir_of(lost)).unwrap();
    let wiped = cluster.start(lost).await;
    put(&leader, "a", "2").await;
    // The third voter is needed now: the wiped one must not stand in for it.
    let third = (1..=3).find(|node| *node != lost && *node != leader.status().node).unwrap();
    cluster.kill(third).await;
    wiped.campaign(leader.status().node).await;
    assert!(leader.txn(steadfast::catalog::Txn::put("a", "3")).await.is_err(), "no majority without it");
    assert!(wiped.status().voters.is_empty());
    cluster.start(third).await;
    eventually("the majority's return", || async { leader.get("a".into()).await.ok() }).await;
}

/// etcd 8486: a removed member can't be added again with its name and addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_address_joins_again_under_a_new_number() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let gone = leader.status().node % 3 + 1;
    leader.remove(gone).await.unwrap();
    cluster.kill(gone).await;
    cluster.start(14).await;
    leader.add_learner(14, nowhere(gone)).await.unwrap();
    leader.promote(14).await.unwrap();
    put(&cluster.member(14), "a", "1").await;
    let status = leader.status();
    assert!(!status.voters.contains_key(&gone) && status.voters.len() == 3);
    let taken = leader.add_learner(14, nowhere(15)).await.unwrap_err();
    assert!(matches!(taken, MembershipError::NumberTaken { node: 14 }), "{taken}");
}

/// etcd 2780: "member has already been bootstrapped".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_initialization_changes_nothing_and_says_so() {
    let cluster = Cluster::of(2).await;
    put(&cluster.member(1), "a", "1").await;
    for node in 1..=2 {
        let refused = cluster.member(node).initialize(vec!["again".into()]).await.unwrap_err();
        assert!(matches!(refused, InitializeError::AlreadyMember { .. }), "{refused}");
    }
    cluster.kill(2).await;
    let member = cluster.start(2).await;
    assert!(member.initialize(Vec::new()).await.is_err());
    assert_eq!(get(&member, "a").await.as_deref(), Some("1"));
    assert_eq!(cluster.leader().await.status().voters.len(), 2);
}

/// etcd 1488: a member that was removed starts again with its old data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_that_starts_again_disturbs_nobody() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let gone = leader.status().node % 3 + 1;
    cluster.kill(gone).await;
    leader.remove(gone).await.unwrap();
    put(&leader, "a", "1").await;
    let term = leader.status().term;
    let returned = cluster.start(gone).await;
    returned.campaign(leader.status().node).await;
    let refused = returned.txn(steadfast::catalog::Txn::put("a", "2")).await;
    // It may still forward as a client; what it must not do is vote or lead.
    if let Err(error) = refused {
        assert!(!matches!(error, CatalogError::Closed { .. }), "{error}");
    }
    put(&leader, "b", "1").await;
    assert_eq!(leader.status().term, term, "it made others elect");
    assert!(!leader.status().voters.contains_key(&gone));
}

/// etcd's `--strict-reconfig-check`, off for years: a change after which too few live voters are left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_would_lose_the_majority_are_refused() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let node = leader.status().node;
    let (dead, alive) = (node % 3 + 1, (node + 1) % 3 + 1);
    cluster.kill(dead).await;
    for victim in [alive, node] {
        let refused = leader.remove(victim).await.unwrap_err();
        assert!(matches!(refused, MembershipError::WouldLoseMajority { .. }), "{refused}");
    }
    leader.add_learner(8, nowhere(8)).await.unwrap();
    assert!(matches!(leader.promote(8).await.unwrap_err(), MembershipError::Unreachable { node: 8, .. }));
    put(&leader, "a", "1").await;
    leader.remove(dead).await.unwrap();
    assert_eq!(leader.status().voters.len(), 2);
}

/// openraft 1894: a cluster is made anew with the numbers of an old one, and a member of the old one speaks to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_an_earlier_cluster_with_the_same_numbers_is_refused() {
    let cluster = Cluster::of(2).await;
    put(&cluster.member(1), "a", "old").await;
    // A commit is a majority's word; the other one applies it when it is told.
    let follower = cluster.member(2);
    eventually("the follower's copy", async || follower.get_stale("a").1).await;
    drop(follower);
    cluster.kill(1).await;
    std::fs::remove_dir_all(cluster.dir_of(1)).unwrap();
    let config = EmbeddedConfig { cluster_id: 5 << 100, ..cluster.config(1) };
    let new = cluster.start_with(config).await;
    new.initialize(vec!["one".into()]).await.unwrap();
    new.add_learner(2, nowhere(2)).await.unwrap();
    let refused = new.promote(2).await.unwrap_err();
    assert!(matches!(refused, MembershipError::Unreachable { node: 2, .. }), "{refused}");
    put(&new, "a", "new").await;
    let old = cluster.member(2);
    old.campaign(1).await;
    assert_eq!(get(&new, "a").await.as_deref(), Some("new"));
    status_that(&old, "its old membership", |status| status.voters.len() == 2).await;
    assert_eq!(old.get_stale("a").1.unwrap().value, "old");
}
