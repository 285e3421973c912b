//! The agent dies, stays away or stops while its host and its containers go on.

use std::time::Instant;

use rustix::process::Signal;

use super::support::{LEASE, Trial};

#[test]
fn an_agent_that_is_killed_and_restarted_disturbs_nobody() {
    let trial = Trial::new();
    trial.start_counter(1);
    trial.checkpoint();
    let before = trial.counter();
    let owner = trial.owner();

    owner.kill_agent().unwrap();
    owner.start_agent().unwrap();
    owner.wait_ready().unwrap();
    trial.bed.wait_members(3).unwrap();
    trial.wait_heard_since(Instant::now(), "a report after the agent is back");

    let after = trial.counter();
    assert_eq!((&after.node, after.epoch), (&before.node, before.epoch), "nothing was moved");
    trial.witness.assert_clean();
    assert_eq!(trial.witness.judge().epochs(), 1);
    // The adopted container is as good as before: it can be checkpointed.
    let checkpoint = trial.checkpoint();
    assert_eq!(checkpoint.number, before.latest.unwrap().number + 1);
}

#[test]
fn an_agent_kept_down_past_the_lease_loses_its_program_to_another_node() {
    let trial = Trial::new();
    trial.start_counter(1);
    trial.checkpoint();
    let before = trial.counter();
    let owner = trial.owner();

    owner.kill_agent().unwrap();
    let after = trial.wait_recovered(before.epoch);
    assert_ne!(after.node, owner.name());
    trial.witness.assert_clean();

    owner.start_agent().unwrap();
    owner.wait_ready().unwrap();
    trial.wait_gone_from(owner);
    trial.bed.wait_members(3).unwrap();
    trial.wait_heard_since(Instant::now(), "the new copy goes on");
    trial.witness.assert_clean();
}

#[test]
fn a_stopped_agent_gets_no_second_copy_seen() {
    stopped(|trial, signal| {
        let owner = trial.bed.host(1);
        owner.signal_agent(signal).unwrap();
    });
}

#[test]
fn a_stopped_agent_with_its_shim_gets_no_second_copy_seen() {
    stopped(|trial, signal| {
        let owner = trial.bed.host(1);
        let shims = owner.shims();
        assert!(!shims.is_empty(), "the program has a shim");
        // On the way down the agent stops first, so that it can't see its shim stop.
        match signal {
            Signal::STOP => owner.signal_agent(signal).and_then(|()| owner.signal(&shims, signal)).unwrap(),
            _ => owner.signal(&shims, signal).and_then(|()| owner.signal_agent(signal)).unwrap(),
        }
    });
}

fn stopped(signal: impl Fn(&Trial, Signal)) {
    let trial = Trial::new();
    trial.start_counter(1);
    trial.checkpoint();
    let before = trial.counter();
    let owner = trial.owner();

    let stopped_at = Instant::now();
    signal(&trial, Signal::STOP);
    let after = trial.wait_recovered(before.epoch);
    assert_ne!(after.node, owner.name());
    trial.wait("three leases", || (stopped_at.elapsed() > 3 * LEASE).then_some(()));
    trial.witness.assert_clean();

    signal(&trial, Signal::CONT);
    trial.wait_gone_from(owner);
    trial.bed.wait_members(3).unwrap();
    trial.wait_heard_since(Instant::now(), "the new copy goes on");
    trial.witness.assert_clean();
}
