//! What must not be said, whatever happens: the rows of TARGETS 1 on wrong removals, and FD3 to FD8.
//!
//! A failure shows what was said wrongly. The seeds are fixed; `detection_seeds` draws others.

use std::time::Duration;

use steadfast_proto::detect::{Class, Profile};
use steadfast_sim::detection::{Burst, Fault, Kind, NetworkPlan, Plan, Report, World};

const PROFILES: [Profile; 3] = [Profile::Gossip, Profile::Relative, Profile::Timeout];

fn plan(nodes: usize, networks: usize, seconds: u64, faults: &[&str]) -> Plan {
    Plan {
        nodes,
        networks: vec![NetworkPlan::default(); networks],
        faults: faults.iter().map(|text| text.parse().expect("a fault")).collect(),
        duration: Duration::from_secs(seconds),
        check: true,
        ..Plan::default()
    }
}

fn run(plan: &Plan, seed: u64) -> Report {
    World::new(plan, seed).expect("the plan is right").run()
}

fn assert_nobody_wronged(report: &Report) {
    assert_eq!((report.wrong.verdicts, report.wrong.removals), (0, 0), "{:#?}", report.examples);
    assert_eq!(report.violations, []);
}

fn with_loss(loss: f64, burst: Option<Burst>) -> Plan {
    let mut plan = plan(16, 1, 30, &[]);
    plan.networks[0] = NetworkPlan { loss, burst, ..NetworkPlan::default() };
    plan
}

#[test]
fn ten_percent_loss_removes_nobody() {
    assert_nobody_wronged(&run(&with_loss(0.10, None), 1));
}

#[test]
fn a_quarter_lost_removes_nobody() {
    assert_nobody_wronged(&run(&with_loss(0.25, None), 1));
}

#[test]
fn forty_percent_loss_removes_nobody() {
    assert_nobody_wronged(&run(&with_loss(0.40, None), 1));
}

#[test]
fn bursts_of_300_ms_remove_nobody() {
    let burst = Burst { length: Duration::from_millis(300), every: Duration::from_secs(5) };
    assert_nobody_wronged(&run(&with_loss(0.0, Some(burst)), 1));
}

#[test]
fn a_dead_machine_is_found_behind_a_quarter_of_loss() {
    let mut plan = with_loss(0.25, None);
    plan.faults = vec!["silent@20s:3".parse().expect("a fault")];
    let report = run(&plan, 1);
    assert_nobody_wronged(&report);
    assert!(report.findings[0].last().is_some_and(|last| last < Duration::from_secs(3)), "{report:?}");
}

#[test]
fn fd2_an_observer_stopped_for_8_s_accuses_nobody() {
    for profile in PROFILES {
        let mut plan = plan(16, 1, 25, &["stall@5s:3,for=8s"]);
        plan.settings.profile = profile;
        let report = run(&plan, 2);
        assert_nobody_wronged(&report);
        assert_eq!(report.wrong.suspicions, 0, "{:#?}", report.examples);
        assert!(report.removed.is_empty());
        let stalled = report.findings[0].classes.get(&Class::ProcessStalled);
        assert_eq!(stalled, Some(&15), "{profile:?}: {:?}", report.findings[0].classes);
    }
}

#[test]
fn four_of_sixteen_that_stutter_bring_nothing_on_the_others() {
    let report = run(&plan(16, 1, 40, &["stutter@5s:1,5,9,13,for=30s"]), 3);
    assert_nobody_wronged(&report);
    assert_eq!(report.wrong.suspicions, 0, "{:#?}", report.examples);
    assert!(report.removed.keys().all(|node| [1, 5, 9, 13].contains(node)), "{:?}", report.removed);
}

#[test]
fn one_that_loses_80_percent_of_what_it_is_sent_touches_nobody_else() {
    let report = run(&plan(16, 1, 60, &["loss@5s:3,loss=80%"]), 4);
    assert_nobody_wronged(&report);
    assert!(report.removed.keys().all(|node| *node == 3), "{:?}", report.removed);
    assert!(report.views <= 1, "one decision, no flap: {} views", report.views);
}

#[test]
fn a_cut_between_two_nodes_leaves_both_in_the_view() {
    for (nodes, networks) in [(5, 1), (16, 1), (16, 2)] {
        let report = run(&plan(nodes, networks, 15, &["cut-link@5s"]), 5);
        assert_nobody_wronged(&report);
        assert_eq!(report.views, 0);
    }
}

#[test]
fn a_rack_that_dies_is_removed_in_one_view() {
    let report = run(&plan(16, 1, 10, &["silent@5s:0,5,9,13"]), 6);
    assert_nobody_wronged(&report);
    assert_eq!((report.views, report.removed.len()), (1, 4), "{:?}", report.removed);
}

#[test]
fn ten_of_a_thousand_that_die_at_once_are_removed_in_one_view() {
    let report = run(&plan(1_000, 1, 5, &["silent@3s:count=10"]), 7);
    assert_nobody_wronged(&report);
    assert_eq!((report.views, report.removed.len()), (1, 10), "{:?}", report.removed);
    for finding in &report.findings {
        assert!(finding.last().is_some_and(|last| last < Duration::from_millis(900)), "{finding:?}");
    }
}

#[test]
fn fd3_a_delay_that_is_added_for_all_accuses_no_process() {
    for profile in PROFILES {
        for delay in ["50ms", "200ms", "450ms", "900ms", "2s"] {
            let mut plan = plan(6, 1, 20, &[&format!("delay@6s:delay={delay}")]);
            plan.settings.profile = profile;
            let report = run(&plan, 8);
            assert_nobody_wronged(&report);
        }
    }
}

#[test]
fn fd4_a_dead_machine_is_suspected_in_time() {
    for profile in PROFILES {
        for networks in [1, 2] {
            let mut plan = plan(6, networks, 12, &["silent@5s:2"]);
            plan.settings.profile = profile;
            let report = run(&plan, 9);
            assert_nobody_wronged(&report);
            let thresholds = &plan.settings.thresholds;
            let limit = match (profile, networks) {
                (Profile::Relative, 2) => thresholds.process_silence,
                _ => thresholds.process_lag.max(plan.settings.timeout.initial),
            };
            let limit = limit + plan.settings.interval * 2;
            let last = report.findings[0].noticed.last().copied();
            assert!(
                last.is_some_and(|last| last <= limit),
                "{profile:?} on {networks}: {last:?} of {limit:?}"
            );
        }
    }
}

#[test]
fn fd5_a_cut_network_is_suspected_in_time() {
    let limit = Plan::default().settings.thresholds.network_silence + Plan::default().settings.interval / 2;
    for networks in [1, 2, 3] {
        let report = run(&plan(6, networks, 10, &["cut-network@5s:network=0"]), 10);
        assert_nobody_wronged(&report);
        let noticed = &report.findings[0].noticed;
        assert_eq!(noticed.len(), 6, "{report:?}");
        assert!(noticed.iter().all(|noticed| *noticed <= limit), "{noticed:?} of {limit:?}");
    }
}

#[test]
fn fd6_cutting_some_of_the_networks_accuses_no_process() {
    for profile in PROFILES {
        let cuts =
            ["cut-network@5s:network=0,for=5s", "cut-network@7s:network=2,for=9s", "unplug@12s:3,network=1"];
        let mut plan = plan(8, 3, 25, &cuts);
        plan.settings.profile = profile;
        let report = run(&plan, 11);
        assert_nobody_wronged(&report);
        assert_eq!(report.views, 0, "{profile:?}");
    }
}

#[test]
fn fd7_a_death_accuses_no_network() {
    for fault in ["crash@5s:2", "silent@5s:2", "stall@5s:2"] {
        for networks in [1, 2] {
            let mut plan = plan(4, networks, 12, &[fault]);
            plan.trace = true;
            let report = run(&plan, 12);
            assert_nobody_wronged(&report);
            let blamed: Vec<_> =
                report.lines.iter().filter(|line| line.what.contains("suspects network")).collect();
            assert!(blamed.is_empty(), "{blamed:#?}");
        }
    }
}

#[test]
fn fd8_the_same_seed_is_the_same_run() {
    for seed in 1..=5 {
        let mut plan = plan(9, 2, 12, &["silent@4s", "cut-link@5s", "stutter@6s:for=4s", "split@8s:for=2s"]);
        plan.networks[0].loss = 0.1;
        let (once, again) = (run(&plan, seed), run(&plan, seed));
        assert_eq!((once.digest, once.wrong, once.views), (again.digest, again.wrong, again.views));
    }
}

#[test]
fn a_split_that_heals_leaves_everybody_well() {
    let mut plan = plan(16, 1, 20, &["split@5s:count=8,for=6s"]);
    plan.removal = None;
    let report = run(&plan, 13);
    assert_nobody_wronged(&report);
    assert!(report.standing.iter().all(Vec::is_empty), "{:?}", report.standing);
}

#[test]
fn a_half_without_the_voters_removes_nobody_not_even_when_the_split_heals() {
    // Nodes 0 to 4 vote: the first half has all of them.
    let report = run(&plan(16, 1, 20, &["split@5s:0,1,2,3,4,5,6,7,for=6s"]), 13);
    assert_nobody_wronged(&report);
    assert_eq!(report.views, 1);
    assert!(report.removed.keys().all(|node| *node >= 8), "{:?}", report.removed);
}

#[test]
fn every_kind_of_fault_is_called_by_its_name() {
    let table = [
        (Kind::Crash, Class::ProcessCrashed),
        (Kind::Leave, Class::ProcessCrashed),
        (Kind::Restart, Class::ProcessCrashed),
        (Kind::Stall, Class::ProcessStalled),
        (Kind::Silent, Class::HostDead),
        (Kind::Isolate, Class::HostDead),
        (Kind::Mute, Class::HostDead),
        (Kind::Deaf, Class::NodeIsolated),
        (Kind::Unplug, Class::NetworkDownAtNode),
        (Kind::CutNetwork, Class::NetworkDown),
        (Kind::CutLink, Class::LinkCut),
        (Kind::OneWay, Class::LinkCut),
        (Kind::Split, Class::Split),
    ];
    let mut missed = Vec::new();
    for (kind, class) in table {
        let mut plan = plan(16, 2, 8, &[]);
        let mut fault = Fault::new(kind, Duration::from_secs(4));
        if matches!(kind, Kind::CutLink | Kind::OneWay) {
            fault.network = Some(1);
        }
        plan.faults = vec![fault];
        let report = run(&plan, 14);
        let finding = &report.findings[0];
        let (first, last) = (&finding.classes, &finding.classes_last);
        println!(
            "{:<12} wanted {class:?}, first {first:?}, last {last:?}, all after {:?}",
            kind.name(),
            finding.last()
        );
        if !last.keys().eq([&class]) || finding.missing > 0 {
            missed.push(format!("{}: wanted {class:?}, {last:?}, {} never", kind.name(), finding.missing));
        }
        assert_nobody_wronged(&report);
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
