//! The catalog as its users see it: three and more members, leaders that die, members that come and go.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod catalog_common;

use std::time::{Duration, Instant};

use catalog_common::{Cluster, PATIENCE, eventually, get, put, status_that};
use steadfast::catalog::{
    Catalog, CatalogError, Embedded, InvalidRequest, Member, MembershipError, Role, Txn, WatchItem,
    WatchStream,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_alone_keeps_rows_and_survives_a_restart() {
    let cluster = Cluster::of(1).await;
    let member = cluster.member(1);
    assert_eq!(get(&member, "a").await, None);
    let revision = put(&member, "a", "1").await;
    assert_eq!(get(&member, "a").await.as_deref(), Some("1"));
    let refused = member.txn(Txn::compare_and_set("a", revision + 7, "2")).await.unwrap();
    assert!(!refused.succeeded);
    assert_eq!(refused.conflicts[0].1.as_ref().unwrap().version, revision);
    cluster.kill(1).await;
    let member = cluster.start(1).await;
    assert_eq!(get(&member, "a").await.as_deref(), Some("1"));
    assert!(member.initialize(Vec::new()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_writes_and_reads_what_the_others_wrote() {
    let cluster = Cluster::of(3).await;
    for node in 1..=3 {
        put(&cluster.member(node), &format!("from/{node}"), "x").await;
        for reader in 1..=3 {
            let rows = cluster.member(reader).range("from/".into()).await.unwrap();
            assert_eq!(rows.rows.len() as u64, node);
        }
    }
    let taken = cluster.member(2).txn(Txn::compare_and_set("from/1", 0, "y")).await.unwrap();
    assert!(!taken.succeeded);
    assert_eq!(get(&cluster.member(3), "from/1").await.as_deref(), Some("x"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_break_a_limit_are_refused_by_name() {
    let cluster = Cluster::of(1).await;
    let member = cluster.member(1);
    let long = "k".repeat(600);
    let refused = member.txn(Txn::put(long.clone(), "v")).await.unwrap_err();
    assert!(
        matches!(refused, CatalogError::Invalid(InvalidRequest::KeyTooLong { length: 600, .. })),
        "{refused}"
    );
    let refused = member.txn(Txn::put("k", vec![0; (1 << 20) + 1])).await.unwrap_err();
    assert!(refused.to_string().contains("at most 1048576"), "{refused}");
    assert!(member.get(String::new()).await.is_err());
    assert!(member.txn(Txn::put("k", vec![0; 1 << 20])).await.unwrap().succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_member_may_restart_and_nothing_is_lost() {
    let cluster = Cluster::of(3).await;
    for round in 1..=3 {
        put(&cluster.leader().await, &format!("before/{round}"), "x").await;
        cluster.kill(round).await;
        put(&cluster.leader().await, &format!("during/{round}"), "x").await;
        let member = cluster.start(round).await;
        assert_eq!(get(&member, &format!("during/{round}")).await.as_deref(), Some("x"));
    }
    assert_eq!(cluster.member(1).range(String::new()).await.unwrap().rows.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_restart_at_once_and_the_rows_are_as_before() {
    let cluster = Cluster::of(3).await;
    for number in 0..50 {
        put(&cluster.member(1 + number % 3), &format!("row/{number}"), "x").await;
    }
    let before = cluster.leader().await.range(String::new()).await.unwrap();
    for node in 1..=3 {
        cluster.kill(node).await;
    }
    for node in 1..=3 {
        cluster.start(node).await;
    }
    for node in 1..=3 {
        assert_eq!(cluster.member(node).range(String::new()).await.unwrap(), before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_refuses_and_says_that_there_is_no_majority() {
    let mut cluster = Cluster::default();
    cluster.timings.request_timeout = Duration::from_secs(2);
    cluster.grow(3).await;
    put(&cluster.member(1), "a", "1").await;
    let leader = cluster.leader().await.status().node;
    cluster.network.isolate(leader, &[1, 2, 3]);
    let alone = cluster.member(leader);
    status_that(&alone, "the end of the lease", |status| !status.has_quorum).await;
    let refused = alone.txn(Txn::put("a", "2")).await.unwrap_err();
    assert!(matches!(refused, CatalogError::NoMajority { voters: 3, .. }), "{refused}");
    assert!(refused.to_string().contains("no majority"), "{refused}");
    let refused = alone.get("a".into()).await.unwrap_err();
    assert!(matches!(refused, CatalogError::NoMajority { .. }), "{refused}");
    let other = cluster.member(if leader == 1 { 2 } else { 1 });
    eventually("the majority's new leader", || async { other.txn(Txn::put("a", "3")).await.ok() }).await;
    cluster.network.heal();
    eventually("the member's return", || async { alone.get("a".into()).await.ok() }).await;
    assert_eq!(get(&alone, "a").await.as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_membership_grows_to_five_and_shrinks_to_one() {
    let cluster = Cluster::of(5).await;
    put(&cluster.member(5), "a", "1").await;
    for node in 1..=4 {
        let any = cluster.member(5);
        eventually("the removal", || async { any.remove(node).await.ok() }).await;
        cluster.kill(node).await;
        put(&any, "a", &format!("without {node}")).await;
    }
    let last = cluster.member(5);
    let status = last.status();
    assert_eq!(status.voters.len(), 1);
    assert!(matches!(last.remove(5).await.unwrap_err(), MembershipError::LastVoter { node: 5 }));
    assert_eq!(get(&last, "a").await.as_deref(), Some("without 4"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_follows_and_forwards_and_has_no_vote() {
    let cluster = Cluster::of(1).await;
    let learner = cluster.start(2).await;
    assert!(matches!(learner.get("a".into()).await.unwrap_err(), CatalogError::NotMember { node: 2 }));
    cluster.member(1).add_learner(2, Member::new(vec!["two".into()])).await.unwrap();
    let status = status_that(&learner, "its membership", |status| status.learners.contains_key(&2)).await;
    assert_eq!(status.role, Role::Learner);
    assert_eq!(status.learners[&2].addresses, ["two"]);
    put(&learner, "a", "1").await;
    assert_eq!(get(&learner, "a").await.as_deref(), Some("1"));
    cluster.kill(2).await;
    put(&cluster.member(1), "a", "2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_never_started_harms_nobody_and_is_removed_at_once() {
    let cluster = Cluster::of(1).await;
    let member = cluster.member(1);
    member.add_learner(9, Member::new(vec!["nowhere".into()])).await.unwrap();
    put(&member, "a", "1").await;
    let refused = member.promote(9).await.unwrap_err();
    assert!(matches!(refused, MembershipError::Unreachable { node: 9, .. }), "{refused}");
    put(&member, "a", "2").await;
    member.remove(9).await.unwrap();
    assert!(member.status().learners.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_would_lose_the_majority_is_refused() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let node = leader.status().node;
    let mut others = (1..=3).filter(|other| *other != node);
    let (dead, alive) = (others.next().unwrap(), others.next().unwrap());
    cluster.kill(dead).await;
    let refused = leader.remove(alive).await.unwrap_err();
    assert!(
        matches!(refused, MembershipError::WouldLoseMajority { remaining: 2, alive: 1, needed: 2, .. }),
        "{refused}"
    );
    leader.remove(dead).await.unwrap();
    put(&leader, "a", "1").await;
    // The number of a member is not given to another node.
    let taken = leader.add_learner(alive, Member::new(vec!["elsewhere".into()])).await.unwrap_err();
    assert!(matches!(taken, MembershipError::NumberTaken { .. }), "{taken}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_lost_its_disk_is_refused_under_its_old_number() {
    let cluster = Cluster::of(3).await;
    put(&cluster.member(1), "a", "1").await;
    let leader = cluster.leader().await;
    let lost = if leader.status().node == 3 { 2 } else { 3 };
    cluster.kill(lost).await;
    std::fs::remove_dir_all(cluster.dir_of(lost)).unwrap();
    let wiped = cluster.start(lost).await;
    // It is spoken to and does not take part: the others still have a majority, and no more than that.
    put(&leader, "a", "2").await;
    put(&leader, "a", "3").await;
    assert_eq!(wiped.status().voters.len(), 0);
    assert!(leader.status().voters.contains_key(&lost));
    leader.remove(lost).await.unwrap();
    cluster.kill(lost).await;
    cluster.start(7).await;
    leader.add_learner(7, Member::new(vec!["new disk".into()])).await.unwrap();
    leader.promote(7).await.unwrap();
    assert_eq!(get(&cluster.member(7), "a").await.as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_longer_than_the_log_is_given_a_checkpoint() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let away = if leader.status().node == 3 { 2 } else { 3 };
    cluster.kill(away).await;
    // Large values reach the byte limit of the log soon.
    let value = "v".repeat(700_000);
    for number in 0..24 {
        put(&leader, &format!("row/{}", number % 6), &value).await;
    }
    let returned = cluster.start(away).await;
    let mut watch = returned.watch("row/".into(), 0);
    let expected = leader.range(String::new()).await.unwrap();
    assert_eq!(returned.range(String::new()).await.unwrap(), expected);
    let mut rows = std::collections::BTreeMap::new();
    let mut resynced = false;
    follow(&mut watch, expected.revision, |item| match item {
        WatchItem::Resync { rows: all, .. } => {
            resynced = true;
            rows = all.into_iter().collect();
        }
        WatchItem::Changed(watched) => {
            for (key, row) in watched.changes {
                rows.insert(key, row.unwrap());
            }
        }
    })
    .await;
    assert!(resynced, "it was away longer than the log reaches back");
    assert_eq!(rows.into_iter().collect::<Vec<_>>(), expected.rows);
    // And it stands on its own feet afterwards.
    cluster.kill(away).await;
    let returned = cluster.start(away).await;
    assert_eq!(returned.range(String::new()).await.unwrap(), expected);
}

async fn follow(watch: &mut WatchStream, until: u64, mut take: impl FnMut(WatchItem)) {
    loop {
        let item = tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch stalled").unwrap();
        let revision = item.revision();
        take(item);
        if revision >= until {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_sees_every_revision_once_while_leaders_change_and_members_restart() {
    let cluster = Cluster::of(3).await;
    let mut seen: Vec<Vec<u64>> = vec![Vec::new(); 3];
    let mut last = 0;
    for round in 0_u64..4 {
        for number in 0..20 {
            last = put(&cluster.member(1 + number % 3), &format!("row/{number}"), &format!("{round}")).await;
            put(&cluster.member(1), "other", "x").await;
        }
        for node in 1..=3 {
            let seen = &mut seen[usize::try_from(node - 1).unwrap()];
            let mut watch = cluster.member(node).watch("row/".into(), seen.last().copied().unwrap_or(0));
            follow(&mut watch, last, |item| match item {
                WatchItem::Changed(watched) => seen.push(watched.revision),
                // Only what is no longer known is given as a whole; here everything is.
                WatchItem::Resync { .. } => panic!("the history reaches back"),
            })
            .await;
        }
        let node = cluster.leader().await.status().node;
        cluster.kill(node).await;
        cluster.leader().await;
        cluster.start(node).await;
    }
    assert_eq!(seen[0].len(), 80);
    assert!(seen[0].is_sorted());
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_says_so_when_its_member_is_shut_down() {
    let cluster = Cluster::of(1).await;
    let mut watch = cluster.member(1).watch(String::new(), 0);
    let waiting = tokio::spawn(async move { watch.next().await });
    cluster.kill(1).await;
    let ended = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(ended, CatalogError::Closed { node: 1, .. }), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_made_once_although_messages_and_answers_are_lost() {
    let cluster = Cluster::of(3).await;
    cluster.network.trouble(Duration::from_millis(1), 40);
    let mut tasks = tokio::task::JoinSet::new();
    for node in 1..=3 {
        let member = cluster.member(node);
        tasks.spawn(async move { count_up(&member, 20).await });
    }
    let mut added = 0;
    while let Some(done) = tasks.join_next().await {
        added += done.unwrap();
    }
    cluster.network.heal();
    let total: u64 = get(&cluster.leader().await, "counter").await.unwrap().parse().unwrap();
    assert_eq!(total, added, "a change was made twice or not at all");
}

/// Adds one to a counter; after an unknown outcome it reads back whose addition it was.
async fn count_up(member: &Embedded, times: u64) -> u64 {
    let name = format!("node {}", member.status().node);
    let mut added = 0;
    while added < times {
        let Ok(row) = member.get("counter".into()).await else { continue };
        let (value, version) = row.map_or((0, 0), |row| {
            (String::from_utf8(row.value.to_vec()).unwrap().parse().unwrap(), row.version)
        });
        let mine = format!("mine/{name}/{added}");
        let txn = Txn {
            compare: vec![("counter".into(), version), (mine.clone(), 0)],
            puts: vec![
                ("counter".into(), Some(format!("{}", value + 1).into())),
                (mine.clone(), Some("done".into())),
            ],
        };
        match member.txn(txn).await {
            Ok(reply) => added += u64::from(reply.succeeded),
            Err(CatalogError::Unknown { .. }) => {
                let made = eventually("an answer", || async { member.get(mine.clone()).await.ok() }).await;
                added += u64::from(made.is_some());
            }
            Err(_) => {}
        }
    }
    added
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_on_the_leader_elects_another_before_its_lease_is_over() {
    // Long time-outs: without the verdict nothing would happen for a minute.
    let mut cluster = Cluster::default();
    cluster.timings.election_min = Duration::from_secs(60);
    cluster.timings.election_max = Duration::from_secs(120);
    cluster.timings.request_timeout = PATIENCE;
    cluster.grow(3).await;
    put(&cluster.member(1), "a", "1").await;
    let dead = cluster.leader().await.status().node;
    cluster.kill(dead).await;
    let survivors = cluster.members();
    let started = Instant::now();
    let verdicts = survivors.iter().map(|member| member.campaign(dead));
    let written = survivors[0].txn(Txn::put("a", "2"));
    let (_, written) = tokio::join!(futures_util::future::join_all(verdicts), written);
    assert!(written.unwrap().succeeded);
    println!("verdict to commit: {:?}", started.elapsed());
    let leader = cluster.leader().await;
    // A verdict on a node that does not lead changes nothing.
    let term = leader.status().term;
    for member in &survivors {
        member.campaign(dead).await;
    }
    put(&leader, "a", "3").await;
    assert_eq!(leader.status().term, term);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_gets_an_answer_and_changes_nothing() {
    let cluster = Cluster::of(1).await;
    let member = cluster.member(1);
    put(&member, "a", "1").await;
    for length in 0..200_usize {
        let garbage: Vec<u8> =
            (0..length).map(|at| u8::try_from((at * 37 + length) % 251).unwrap()).collect();
        assert!(!member.handle(garbage.into()).await.is_empty());
    }
    assert_eq!(get(&member, "a").await.as_deref(), Some("1"));
}
