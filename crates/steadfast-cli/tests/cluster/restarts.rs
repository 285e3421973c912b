//! Everything at once: all agents killed, and all hosts without power.

use std::time::Instant;

use steadfast_cli::api::types::Checkpoint;

use super::support::{COUNTER, Trial};

/// What must be the same before and after, of one checkpoint.
fn essence(checkpoint: &Checkpoint) -> (u64, u64, String, String) {
    let Checkpoint { number, epoch, manifest, protection, .. } = checkpoint;
    (*number, *epoch, manifest.clone(), protection.clone())
}

#[test]
fn all_agents_killed_at_once_come_back_to_the_same_records_and_checkpoints() {
    let trial = Trial::new();
    trial.start_counter(1);
    trial.checkpoint();
    trial.checkpoint();
    let before = trial.counter();
    let host = trial.bed.host(0);
    let checkpoints: Vec<_> = host.checkpoints(COUNTER).unwrap().iter().map(essence).collect();
    assert!(checkpoints.iter().all(|(.., protection)| protection == "protected"), "{checkpoints:?}");

    for host in trial.bed.hosts() {
        host.kill_agent().unwrap();
    }
    for host in trial.bed.hosts() {
        host.start_agent().unwrap();
    }
    for host in trial.bed.hosts() {
        host.wait_ready().unwrap();
    }
    trial.bed.wait_members(3).unwrap();
    let after =
        trial.bed.wait_container(COUNTER, "running", |container| container.state == "running").unwrap();
    assert_eq!((after.id, after.node, after.epoch), (before.id, before.node, before.epoch));
    trial.wait("the same checkpoints, whole", || {
        let now: Vec<_> = host.checkpoints(COUNTER).ok()?.iter().map(essence).collect();
        (now == checkpoints).then_some(())
    });
    trial.wait_heard_since(Instant::now(), "the program goes on");
    trial.witness.assert_clean();
    assert_eq!(trial.witness.judge().epochs(), 1);
}

#[test]
fn checkpoints_whose_memory_is_gone_are_reported_lost() {
    let trial = Trial::new();
    trial.start_counter(1);
    let checkpoint = trial.checkpoint();

    for host in trial.bed.hosts() {
        host.power_off().unwrap();
    }
    for host in trial.bed.hosts() {
        host.power_on().unwrap();
        host.start_agent().unwrap();
    }
    for host in trial.bed.hosts() {
        host.wait_ready().unwrap();
    }
    trial.bed.wait_members(3).unwrap();
    let host = trial.bed.host(0);
    trial.wait("the checkpoint is reported lost", || {
        let found = host.checkpoints(COUNTER).ok()?;
        let lost = found.iter().find(|found| found.number == checkpoint.number)?;
        (lost.protection == "lost").then_some(())
    });
    trial.wait("the program is reported lost", || {
        (host.container(COUNTER).ok()??.state == "lost").then_some(())
    });
    // Nothing was started from nothing.
    trial.witness.assert_clean();
    assert_eq!(trial.witness.judge().epochs(), 1);
}
