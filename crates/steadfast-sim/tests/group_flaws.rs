//! The checkers of a group can fail: each planted flaw of PROTOCOLS 3.4 is caught by the checker that should, and the
//! very seed that catches it passes without it.

use steadfast_proto::flaw::{Flaw, plant};
use steadfast_sim::group::{Plan, run};

#[track_caller]
fn caught(flaw: Flaw, plan: &Plan, invariants: &[&str]) {
    for seed in 1..=200 {
        plant(Some(flaw));
        let flawed = run(plan, seed);
        plant(None);
        let Some(violation) = &flawed.violation else { continue };
        println!("{flaw:?}: {flawed}");
        assert!(invariants.contains(&violation.invariant), "{flaw:?}: {flawed}");
        let sound = run(plan, seed);
        assert_eq!(sound.violation, None, "{sound}");
        return;
    }
    panic!("{flaw:?} passed 200 seeds");
}

#[test]
fn replacing_in_two_steps_loses_an_acknowledged_write() {
    let plan = Plan { only: Some("NO-LOST-WRITE"), ..Plan::default() };
    caught(Flaw::GroupTwoSteps, &plan, &["NO-LOST-WRITE"]);
}

#[test]
fn replacing_in_two_steps_is_caught_as_a_view_with_too_few() {
    caught(Flaw::GroupTwoSteps, &Plan::default(), &["VM2"]);
}

#[test]
fn promotion_before_the_cut_is_applied_is_caught() {
    caught(Flaw::GroupPromoteBeforeCut, &Plan::default(), &["VM4"]);
}

#[test]
fn a_candidate_that_counts_is_caught() {
    caught(Flaw::GroupCandidateCounts, &Plan::default(), &["VM3"]);
    let plan = Plan { only: Some("NO-LOST-WRITE"), loss: 0.1, ..Plan::default() };
    caught(Flaw::GroupCandidateCounts, &plan, &["NO-LOST-WRITE"]);
}

#[test]
fn taking_records_beyond_an_agreed_cut_is_caught() {
    caught(Flaw::GroupAcceptAfterAck, &busy(), &["VM4", "NO-LOST-WRITE", "VIRTUAL-SYNCHRONY"]);
}

#[test]
fn survivors_that_do_not_exchange_what_they_have_are_caught() {
    let plan = Plan { mirrors: 3, nodes: 6, loss: 0.15, ..Plan::default() };
    caught(Flaw::GroupNoFlush, &plan, &["VM4", "NO-LOST-WRITE", "VIRTUAL-SYNCHRONY"]);
}

#[test]
fn going_on_while_a_change_may_still_be_committed_is_caught() {
    // Two mirrors are safe without it: the coordinator itself stands still until it knows.
    let plan = Plan { mirrors: 3, nodes: 6, ..busy() };
    caught(Flaw::GroupNoRenewal, &plan, &["VM4", "NO-LOST-WRITE", "VIRTUAL-SYNCHRONY"]);
}

/// A world in which the catalog is slow and coordinators lose their way.
fn busy() -> Plan {
    Plan { late_swaps: 0.6, straggling: 0.15, replacements: 40, accidents: 0.6, ..Plan::default() }
}
