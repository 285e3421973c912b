//! Two thousand detectors that start within seconds of each other: whoever is there first accuses nobody that is still
//! to come, and nobody that came.

use std::time::Duration;

use steadfast_proto::detect::Settings;
use steadfast_sim::detection::{Plan, Report, World};

const WITHIN: Duration = Duration::from_secs(8);

/// All start within [`WITHIN`], under these settings; it lasts long enough for a silence to be found out.
fn started(nodes: usize, settings: Settings) -> Report {
    let duration = WITHIN + Duration::from_secs(4);
    let plan = Plan { nodes, settings, start_within: WITHIN, duration, check: true, ..Plan::default() };
    World::new(&plan, 11).expect("the plan is right").run()
}

#[test]
fn two_thousand_nodes_that_start_within_seconds_accuse_nobody() {
    let settings = Settings::default();
    assert!(WITHIN < settings.start_grace, "this is about a start within the grace");
    let report = started(2_000, settings);
    let wrong = &report.wrong;
    assert_eq!((wrong.suspicions, wrong.verdicts, wrong.removals), (0, 0, 0), "{:?}", report.examples);
    assert!(report.violations.is_empty(), "{:?}", report.violations);
    assert!(report.standing.iter().all(Vec::is_empty), "a verdict stands");
}

#[test]
fn without_the_grace_for_a_start_the_same_world_is_full_of_accusations() {
    let report = started(64, Settings { start_grace: Duration::ZERO, ..Settings::default() });
    assert!(report.wrong.suspicions > 64, "{:?}", report.wrong);
}
