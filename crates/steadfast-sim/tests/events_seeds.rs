//! Events under loss, restarts, splits, floods and slow consumers: EV1-EV5 hold after every step and at rest.

use steadfast_sim::events::{Plan, Report, run};

#[track_caller]
fn is_sound(plan: &Plan, seed: u64) -> Report {
    let report = run(plan, seed);
    println!("{report}");
    assert_eq!(report.violation, None, "{report}");
    report
}

#[test]
fn three_hundred_worlds_with_faults_miss_nothing_silently() {
    let (mut events, mut gaps, mut marks) = (0, 0, 0);
    for seed in 1..=300 {
        let report = is_sound(&Plan::default(), seed);
        events += report.events;
        gaps += report.gaps;
        marks += report.marks;
    }
    assert!(events > 100_000 && gaps > 1_000 && marks > 1_000, "{events} {gaps} {marks}");
}

#[test]
fn a_bad_network_misses_nothing_silently_either() {
    for seed in 1..=50 {
        is_sound(&Plan { loss: 0.3, duplication: 0.2, ..Plan::default() }, seed);
    }
}

#[test]
fn a_seed_is_the_same_world_each_time() {
    assert_eq!(run(&Plan::default(), 7), run(&Plan::default(), 7));
    assert_ne!(run(&Plan::default(), 7).messages, run(&Plan::default(), 8).messages);
}
