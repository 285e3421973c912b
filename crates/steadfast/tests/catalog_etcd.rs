//! What can go wrong between a node and etcd: members that die, fall silent or forget, wires that are cut, certificates.
//!
//! Every test runs a real etcd. What holds for every engine alike is in `catalog_contract`, long histories are in `catalog_history`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod catalog_common;

use std::time::Duration;

use catalog_common::etcds::{Etcds, ServerTls, Wire, config, file};
use catalog_common::{PATIENCE, eventually};
use rustix::process::Signal;
use steadfast::catalog::{Catalog, CatalogError, Etcd, EtcdConfig, EtcdTls, Role, Txn, WatchItem};

async fn put(door: &Etcd, key: &str, value: &str) -> u64 {
    let reply = door.txn(Txn::put(key, value.to_owned())).await.unwrap();
    assert!(reply.succeeded);
    reply.revision
}

/// Writes until it is certainly done: a member that dies may leave the outcome open.
async fn put_surely(door: &Etcd, key: &str, value: &str) -> u64 {
    eventually("a change", || async {
        door.txn(Txn::put(key, value.to_owned())).await.ok().map(|reply| reply.revision)
    })
    .await
}

async fn next(watch: &mut steadfast::catalog::WatchStream) -> WatchItem {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch stalled").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_not_there_yet_is_waited_for_and_named_meanwhile() {
    let mut etcds = Etcds::of(1).await;
    etcds.kill(1);
    let door = Etcd::open(EtcdConfig {
        request_timeout: Duration::from_millis(300),
        ..config(7, etcds.endpoints(), None)
    })
    .unwrap();
    let refused = door.get("a".into()).await.unwrap_err();
    assert!(matches!(refused, CatalogError::Unreachable { node: 7, .. }), "{refused}");
    assert!(refused.to_string().contains(&etcds.host(1)), "{refused}");
    let refused = door.txn(Txn::put("a", "1")).await.unwrap_err();
    assert!(matches!(refused, CatalogError::Unreachable { .. }), "nothing was sent: {refused}");
    assert!(door.wait_filled(Duration::from_millis(1)).await.is_err());
    let status = door.status();
    assert!(!status.has_quorum && status.unreachable.is_some(), "{status:?}");
    let mut watch = door.watch(String::new(), 0);
    etcds.start(1);
    etcds.serving(1).await;
    put_surely(&door, "a", "1").await;
    let item = next(&mut watch).await;
    let seen = match &item {
        WatchItem::Changed(watched) => watched.changes.first().map(|(key, _)| key),
        WatchItem::Resync { rows, .. } => rows.first().map(|(key, _)| key),
    };
    assert_eq!(seen.map(String::as_str), Some("a"));
    eventually("a status that says so", || async { door.status().has_quorum.then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_die_or_fall_silent_are_passed_over() {
    let mut etcds = Etcds::of(3).await;
    let door = etcds.open(1);
    let mut watch = door.watch("row/".into(), 0);
    let mut newest = put_surely(&door, "row/0", "x").await;
    for (number, member) in etcds.members().into_iter().enumerate() {
        if number % 2 == 0 {
            etcds.kill(member);
        } else {
            etcds.signal(member, Signal::STOP);
        }
        newest = put_surely(&door, &format!("row/{}", number + 1), "x").await;
        let row = eventually("a read", || async { door.get(format!("row/{}", number + 1)).await.ok() }).await;
        assert_eq!(row.unwrap().version, newest);
        if number % 2 == 0 {
            etcds.start(member);
        } else {
            etcds.signal(member, Signal::CONT);
        }
        etcds.serving(member).await;
    }
    let mut rows = std::collections::BTreeSet::new();
    let mut seen = 0;
    while seen < newest {
        let item = next(&mut watch).await;
        assert!(item.revision() > seen, "no revision comes twice");
        seen = item.revision();
        match item {
            WatchItem::Changed(watched) => rows.extend(watched.changes.into_iter().map(|(key, _)| key)),
            WatchItem::Resync { rows: all, .. } => rows.extend(all.into_iter().map(|(key, _)| key)),
        }
    }
    assert_eq!(rows.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_sent_and_not_answered_is_called_unknown() {
    let etcds = Etcds::of(1).await;
    let settings =
        EtcdConfig { request_timeout: Duration::from_millis(600), ..config(1, etcds.endpoints(), None) };
    let door = Etcd::open(settings).unwrap();
    put_surely(&door, "a", "1").await;
    etcds.signal(1, Signal::STOP);
    let outcome = door.txn(Txn::put("a", "2")).await.unwrap_err();
    assert!(matches!(outcome, CatalogError::Unknown { node: 1, .. }), "{outcome}");
    let refused = door.get("a".into()).await.unwrap_err();
    assert!(matches!(refused, CatalogError::Unreachable { .. }), "{refused}");
    etcds.signal(1, Signal::CONT);
    let row = eventually("a read", || async { door.get("a".into()).await.ok() }).await.unwrap();
    assert!(["1", "2"].map(str::as_bytes).contains(&&row.value[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_missed_changes_that_are_not_kept_gets_all_rows_afresh() {
    let etcds = Etcds::of(1).await;
    let wire = Wire::to(etcds.host(1)).await;
    let behind = etcds.open_at(1, vec![wire.endpoint()], None);
    let ahead = etcds.open(2);
    let from = put_surely(&behind, "row/kept", "1").await;
    put(&ahead, "row/gone", "1").await;
    let mut watch = behind.watch("row/".into(), from);
    assert!(matches!(next(&mut watch).await, WatchItem::Changed(_)));
    wire.cut();
    put(&ahead, "row/new", "1").await;
    ahead.txn(Txn::delete("row/gone")).await.unwrap();
    let newest = put(&ahead, "other", "1").await;
    etcds.compact(1, newest).await;
    wire.mend();
    let WatchItem::Resync { revision, rows } = next(&mut watch).await else { panic!("a gap went unnoticed") };
    let keys: Vec<_> = rows.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!((revision, keys), (newest, vec!["row/kept", "row/new"]));
    // And it goes on from there.
    let later = put(&ahead, "row/later", "1").await;
    let WatchItem::Changed(watched) = next(&mut watch).await else { panic!("nothing was missed") };
    assert_eq!(watched.revision, later);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_lost_its_memory_closes_the_catalog() {
    let mut etcds = Etcds::of(1).await;
    let door = etcds.open(1);
    for number in 0..5 {
        put_surely(&door, &format!("row/{number}"), "x").await;
    }
    let mut watch = door.watch(String::new(), door.range(String::new()).await.unwrap().revision);
    etcds.kill(1);
    std::fs::remove_dir_all(etcds.data(1)).unwrap();
    etcds.start(1);
    etcds.serving(1).await;
    // Somebody else's changes do not make it the old one again.
    let ended = tokio::time::timeout(PATIENCE, watch.next()).await;
    let ended = ended.unwrap_or_else(|_| panic!("nothing was noticed: {:?}", door.status())).unwrap_err();
    assert!(ended.to_string().contains("went back"), "{ended}");
    assert_eq!(door.status().role, Role::Closed);
    assert!(matches!(door.get("row/0".into()).await.unwrap_err(), CatalogError::Closed { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_of_another_etcd_is_not_believed() {
    let (mut ours, theirs) = (Etcds::of(1).await, Etcds::of(1).await);
    let endpoints = [ours.endpoints(), theirs.endpoints()].concat();
    let door =
        Etcd::open(EtcdConfig { request_timeout: Duration::from_secs(1), ..config(1, endpoints, None) })
            .unwrap();
    put_surely(&door, "a", "1").await;
    ours.kill(1);
    let refused = eventually("a refusal", || async { door.get("a".into()).await.err() }).await;
    let said = eventually("its reason", || async {
        let said = door.get("a".into()).await.err()?.to_string();
        said.contains("etcd cluster").then_some(said)
    })
    .await;
    assert!(said.contains("correct `endpoints`"), "{said}; before: {refused}");
    ours.start(1);
    let row = eventually("a read", || async { door.get("a".into()).await.ok() }).await;
    assert_eq!(&row.unwrap().value[..], b"1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcd_has_no_room_for_is_refused_and_changes_nothing() {
    let etcds = Etcds::of(1).await;
    let door = etcds.open(1);
    put_surely(&door, "a", "1").await;
    let puts = (0..200).map(|number| (format!("row/{number}"), Some("x".into()))).collect();
    let refused = door.txn(Txn { compare: Vec::new(), puts }).await.unwrap_err();
    assert!(
        matches!(&refused, CatalogError::Refused { reason } if reason.contains("too many operations")),
        "{refused}"
    );
    assert!(refused.to_string().contains("docs/operations/catalog.md"), "{refused}");
    assert_eq!(door.range(String::new()).await.unwrap().rows.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_another_user_of_the_same_etcd_are_not_seen_and_do_not_count() {
    let etcds = Etcds::of(1).await;
    let ours = etcds.open(1);
    let theirs =
        Etcd::open(EtcdConfig { prefix: "test/other".into(), ..config(2, etcds.endpoints(), None) }).unwrap();
    let revision = put_surely(&ours, "a", "1").await;
    put_surely(&theirs, "a", "2").await;
    put_surely(&theirs, "b", "2").await;
    let rows = ours.range(String::new()).await.unwrap();
    assert_eq!((rows.revision, rows.rows.len()), (revision, 1));
    eventually("a copy in step", || async { (ours.status().revision == revision).then_some(()) }).await;
    assert_eq!(ours.range_stale("").rows.len(), 1);
}

/// An authority, and a certificate of each side with its key, as PEM text.
struct Certificates {
    ca: String,
    server: (String, String),
    client: (String, String),
}

fn certificates(host: &str) -> Certificates {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let issue = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    Certificates { ca: ca_certificate.pem(), server: issue(host), client: issue("alpha.home") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_prove_who_they_are_over_tls() {
    let net = Etcds::next_net();
    let files = tempfile::tempdir().unwrap();
    let right = certificates(&format!("{net}.1"));
    let server = ServerTls {
        ca: file(files.path(), "ca", &right.ca),
        certificate: file(files.path(), "certificate", &right.server.0),
        key: file(files.path(), "key", &right.server.1),
    };
    let etcds = Etcds::with(1, Some((net, server))).await;
    let tls = |ca: &str, client: Option<&(String, String)>| EtcdTls {
        ca: ca.as_bytes().to_vec(),
        client: client.map(|(certificate, key)| (certificate.as_bytes().to_vec(), key.as_bytes().to_vec())),
    };
    let known = etcds.open_at(1, etcds.endpoints(), Some(tls(&right.ca, Some(&right.client))));
    known.wait_filled(PATIENCE).await.unwrap();
    put_surely(&known, "a", "1").await;
    let wrong = certificates("elsewhere");
    for (case, tls) in [
        ("no certificate", tls(&right.ca, None)),
        ("a certificate of another authority", tls(&right.ca, Some(&wrong.client))),
        ("another authority", tls(&wrong.ca, Some(&right.client))),
    ] {
        let settings = EtcdConfig {
            request_timeout: Duration::from_millis(500),
            ..config(2, etcds.endpoints(), Some(tls))
        };
        let door = Etcd::open(settings).unwrap();
        let refused = door.get("a".into()).await.unwrap_err();
        assert!(matches!(refused, CatalogError::Unreachable { .. }), "{case}: {refused}");
    }
}
