//! The checks on detectors can fail: each way to get the detector wrong that PROTOCOLS 7 names for 3.1, 3.2 and 4.4
//! is caught, and the very same world passes without it.

use std::time::Duration;

use steadfast_proto::detect::{Class, Subject};
use steadfast_proto::flaw::{Flaw, plant};
use steadfast_proto::ids::NodeId;
use steadfast_sim::detection::{Delay, NetworkPlan, Plan, Report, World};

fn plan(nodes: usize, seconds: u64, faults: &[&str]) -> Plan {
    Plan {
        nodes,
        faults: faults.iter().map(|text| text.parse().expect("a fault")).collect(),
        duration: Duration::from_secs(seconds),
        check: true,
        ..Plan::default()
    }
}

/// Whether anything is wrong with the world of `plan` while `flaw` is planted, and nothing without it.
fn caught(flaw: Flaw, plan: &Plan, is_wrong: impl Fn(&Report) -> bool) {
    let run = || World::new(plan, 3).expect("the plan is right").run();
    let sound = run();
    assert!(!is_wrong(&sound), "without {flaw:?}: {:?} {:?}", sound.wrong, sound.examples);
    plant(Some(flaw));
    let flawed = run();
    plant(None);
    println!("{flaw:?}: {:?}, sound {:?}", flawed.wrong, sound.wrong);
    assert!(is_wrong(&flawed), "{flaw:?} is not caught: {:?}", flawed.wrong);
}

fn accuses_the_innocent(report: &Report) -> bool {
    report.wrong.suspicions + report.wrong.verdicts + report.wrong.removals > 0
        || !report.violations.is_empty()
}

#[test]
fn judging_before_the_queues_are_empty_is_caught() {
    caught(Flaw::NoDrain, &plan(5, 15, &["stall@4s:0,for=3s"]), accuses_the_innocent);
}

#[test]
fn keeping_the_ages_of_an_outage_is_caught() {
    caught(Flaw::NoRebase, &plan(5, 15, &["cut-network@4s:for=5s"]), accuses_the_innocent);
}

#[test]
fn a_verdict_without_the_isolation_row_is_caught() {
    let knows = |node: u128, standing: &[(Class, Subject)]| {
        standing.contains(&(Class::NodeIsolated, Subject::Node(NodeId(node + 1))))
    };
    let blind = |report: &Report| {
        !(0..).zip(&report.standing).all(|(node, standing)| knows(node, standing))
            || accuses_the_innocent(report)
    };
    caught(Flaw::NoIsolation, &plan(5, 10, &["cut-network@4s"]), blind);
}

#[test]
fn an_interval_that_is_not_advertised_is_caught() {
    let mut plan = plan(6, 60, &["delay@10s:delay=120ms+-30ms,for=40s"]);
    plan.networks =
        vec![NetworkPlan { delay: Delay::Constant(Duration::from_millis(1)), loss: 0.05, burst: None }];
    // Single nodes may err where a twentieth is lost; they do not err all the time.
    let errs = |report: &Report| accuses_the_innocent_nodes(report) || report.wrong.suspicions > 20;
    caught(Flaw::IntervalNotAdvertised, &plan, errs);
}

#[test]
fn a_denial_that_does_not_count_is_caught() {
    // Three of the four that watch node 4 lose it; one hears it.
    let cuts = ["cut-link@4s:0,4", "cut-link@4s:1,4", "cut-link@4s:2,4"];
    caught(Flaw::NoRefutation, &plan(5, 12, &cuts), accuses_the_innocent_nodes);
    caught(Flaw::NoRefutation, &plan(5, 12, &cuts), |report| {
        report.violations.iter().any(|violation| violation.invariant == "G4")
    });
}

fn accuses_the_innocent_nodes(report: &Report) -> bool {
    report.wrong.verdicts + report.wrong.removals > 0
}
