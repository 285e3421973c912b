//! The catalog in etcd: what must hold as it does with the nodes' own engine, and what is different.
//!
//! These few run always; `STEADFAST_TEST_CATALOG=etcd` runs the whole suite so, as `cargo xtask test --all` does.

use std::time::Instant;

use rustix::process::Signal;
use steadfast_cli::bed::Bed;

use super::support::{BINARY, COUNTER, Trial, builder, etcd};

#[test]
fn a_container_on_etcd_is_recovered_once_from_a_host_without_power() {
    let trial = Trial::with(builder().catalog_in_etcd(etcd()));
    trial.start_counter(1);
    trial.checkpoint();
    let before = trial.counter();
    let host = trial.bed.host(1);
    host.power_off().unwrap();
    let after = trial.wait_recovered(before.epoch);
    assert_ne!(after.node, host.name());
    trial.bring_back(host);
    trial.wait_gone_from(host);
    trial.wait_heard_since(Instant::now(), "the program goes on");
    trial.witness.assert_clean();
}

#[test]
fn without_a_majority_of_etcd_containers_go_on_and_nothing_else_changes() {
    let trial = Trial::with(builder().catalog_in_etcd(etcd()));
    trial.start_counter(0);
    let status = trial.bed.host(0).status().unwrap();
    assert_eq!((status.catalog.engine.as_str(), status.catalog.reachable), ("etcd", true));
    assert!(!status.catalog.endpoints.is_empty() && status.leader.is_none());
    for number in [1, 2] {
        trial.bed.host(number).signal_etcd(Signal::STOP).unwrap();
    }
    let said = trial.wait("a status that says so", || {
        let status = trial.bed.host(0).status().ok()?;
        (!status.catalog.reachable && !status.quorum).then_some(status)
    });
    assert!(said.catalog.why.is_some(), "{said:?}");
    assert!(
        said.warnings.iter().any(|warning| warning.contains("etcd does not answer")),
        "{:?}",
        said.warnings
    );
    let refused = trial.bed.host(0).steadfast_raw(&["invite", "delta"]).unwrap();
    assert!(!refused.success() && refused.stderr.contains("etcd did not answer"), "{refused:?}");
    // Leases are the grantors' business, so what runs goes on.
    trial.wait_heard_since(Instant::now(), "the program goes on without etcd");
    for number in [1, 2] {
        trial.bed.host(number).signal_etcd(Signal::CONT).unwrap();
    }
    trial.wait("the catalog again", || trial.bed.host(0).status().ok()?.quorum.then_some(()));
    trial.checkpoint();
    trial.witness.assert_clean();
    assert_eq!(trial.witness.judge().epochs(), 1);
}

#[test]
fn a_prefix_has_one_cluster_and_a_cluster_one_engine() {
    let bed = Bed::builder(BINARY).hosts(2).networks(2).catalog_in_etcd(etcd()).build().unwrap();
    bed.wait_etcd().unwrap();
    let (first, second) = (bed.host(0), bed.host(1));
    let config = |number: usize| bed.host(number).config().display().to_string();
    first.steadfast_text(&["init", "home", "--config", &config(0)]).unwrap();
    first.start_agent().unwrap();
    first.wait_ready().unwrap();

    let refused = second.steadfast_raw(&["init", "other", "--config", &config(1)]).unwrap();
    assert!(!refused.success() && refused.stderr.contains("holds cluster home"), "{refused:?}");
    assert!(!second.data().join("membership").exists(), "a refused init makes nothing");

    let on_etcd = std::fs::read_to_string(second.config()).unwrap();
    let (embedded, _) = on_etcd.split_once("[catalog]").unwrap();
    std::fs::write(second.config(), embedded).unwrap();
    let token = first.steadfast_text(&["invite", second.name()]).unwrap();
    let join = ["join", token.trim(), "--config", &config(1)];
    let refused = second.steadfast_raw(&join).unwrap();
    assert!(!refused.success() && refused.stderr.contains("make them the same"), "{refused:?}");

    std::fs::write(second.config(), &on_etcd).unwrap();
    second.steadfast_text(&join).unwrap();
    second.start_agent().unwrap();
    second.wait_ready().unwrap();
    bed.wait_members(2).unwrap();

    let saved = bed.host(0).data().join("backup");
    let file = saved.display().to_string();
    second.steadfast_text(&["catalog", "backup", &file]).unwrap();
    assert!(std::fs::metadata(&saved).unwrap().len() > 100);
    for verb in [vec!["restore", &file], vec!["recover", "--from-survivor", "--lost", "1"]] {
        let path = config(1);
        let arguments = [vec!["catalog"], verb, vec!["--config", &path]].concat();
        let refused = second.steadfast_raw(&arguments).unwrap();
        assert!(!refused.success() && refused.stderr.contains("catalog is in etcd"), "{refused:?}");
    }
}

#[test]
fn an_agent_starts_without_etcd_and_finds_its_way_back() {
    let trial = Trial::with(builder().catalog_in_etcd(etcd()));
    trial.start_counter(1);
    for host in trial.bed.hosts() {
        host.signal_etcd(Signal::STOP).unwrap();
    }
    let host = trial.bed.host(2);
    host.kill_agent().unwrap();
    host.start_agent().unwrap();
    trial.wait("an agent that answers", || {
        host.steadfast_raw(&["status"]).ok().filter(|_| host.agent_pid().is_some())
    });
    for host in trial.bed.hosts() {
        host.signal_etcd(Signal::CONT).unwrap();
    }
    host.wait_ready().unwrap();
    trial.bed.wait_members(3).unwrap();
    assert_eq!(trial.bed.wait_container(COUNTER, "running", |row| row.state == "running").unwrap().epoch, 1);
    trial.witness.assert_clean();
}
