//! A mirrored group under continuous writes: members are replaced and killed, and no acknowledged write is lost.

use steadfast_proto::group::Reason;
use steadfast_sim::group::{Plan, Report, run};

#[track_caller]
fn is_sound(plan: &Plan, seed: u64) -> Report {
    let report = run(plan, seed);
    println!("{report}");
    assert_eq!(report.violation, None, "{report}");
    assert_eq!(report.replaced, plan.replacements, "{report}");
    let ids: Vec<u64> = report.views.iter().map(|view| view.id.0).collect();
    assert!(ids.iter().zip(1..).all(|(id, expected)| *id == expected), "{ids:?}");
    report
}

#[test]
fn a_thousand_replacements_with_a_kill_right_after_each_lose_no_acknowledged_write() {
    let plan = Plan { replacements: 1_000, accidents: 0.0, ..Plan::default() };
    let report = is_sound(&plan, 1);
    assert!(report.acknowledged > 100_000, "{report}");
    assert!(report.kills >= 990, "{report}");
    assert_eq!(report.count(|reason| matches!(reason, Reason::Replaced { .. })), 1_000);
}

#[test]
fn accidents_in_the_middle_of_changes_lose_nothing_either() {
    for seed in 1..=200 {
        is_sound(&Plan { replacements: 25, ..Plan::default() }, seed);
    }
}

#[test]
fn three_mirrors_in_a_bad_network_lose_nothing() {
    for seed in 1..=100 {
        let plan =
            Plan { mirrors: 3, nodes: 7, loss: 0.15, straggling: 0.1, replacements: 15, ..Plan::default() };
        is_sound(&plan, seed);
    }
}

#[test]
fn a_seed_is_the_same_world_each_time() {
    let plan = Plan { replacements: 10, ..Plan::default() };
    assert_eq!(run(&plan, 7).digest, run(&plan, 7).digest);
    assert_ne!(run(&plan, 7).digest, run(&plan, 8).digest);
}
