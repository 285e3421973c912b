//! The fault tables of PROTOCOLS 3.1, 3.2 and 4.4, on the real detectors in the world of detectors.
//!
//! Each prints what it expected and what it saw (`--nocapture`); a run that differs fails with the whole table.

use std::collections::BTreeSet;
use std::time::Duration;

use steadfast_proto::detect::{Class, Profile, Subject};
use steadfast_proto::ids::NodeId;
use steadfast_sim::detection::{Delay, Fault, Kind, NetworkPlan, Plan, Report, World, class_name};

const PROFILES: [Profile; 3] = [Profile::Gossip, Profile::Relative, Profile::Timeout];

fn run(plan: &Plan, seed: u64) -> Report {
    World::new(plan, seed).expect("the plan is right").run()
}

fn faults(list: &[&str]) -> Vec<Fault> {
    list.iter().map(|text| text.parse().expect("a fault")).collect()
}

fn networks(count: usize, network: NetworkPlan) -> Vec<NetworkPlan> {
    vec![network; count]
}

/// What a node believes, in words.
fn words((class, subject): &(Class, Subject)) -> String {
    let index = |id: &NodeId| id.0 - 1;
    let subject = match subject {
        Subject::Node(node) => format!("{}", index(node)),
        Subject::NodeNetwork(node, network) => format!("{} on {network}", index(node)),
        Subject::Network(network) => format!("{network}"),
        Subject::Link { low, high, network } => format!("{}-{} on {network}", index(low), index(high)),
        Subject::Nodes(nodes) => format!("{:?}", nodes.iter().map(index).collect::<Vec<_>>()),
    };
    format!("{} {subject}", class_name(*class))
}

/// One cell of the table of 3.2.
struct Cell {
    cut: Vec<usize>,
    crashed: Option<usize>,
    link: bool,
}

impl Cell {
    fn all() -> Vec<Cell> {
        let mut cells = Vec::new();
        for bits in 0..8_usize {
            for crashed in [None, Some(0), Some(1), Some(2), Some(3)] {
                for link in [false, true] {
                    let cut = (0..3).filter(|network| bits & (1 << network) != 0).collect();
                    cells.push(Cell { cut, crashed, link });
                }
            }
        }
        cells
    }

    fn faults(&self) -> Vec<Fault> {
        let at = Duration::from_secs(3);
        let cuts = self.cut.iter().map(|network| {
            let mut fault = Fault::new(Kind::CutNetwork, at);
            fault.network = Some(*network);
            fault
        });
        let crash = self.crashed.map(|node| {
            let mut fault = Fault::new(Kind::Crash, at);
            fault.nodes = vec![node];
            fault
        });
        let link = self.link.then(|| {
            let mut fault = Fault::new(Kind::CutLink, at);
            (fault.nodes, fault.network) = (vec![0, 1], Some(0));
            fault
        });
        cuts.chain(crash).chain(link).collect()
    }

    /// What `observer` must believe at the end.
    fn expected(&self, observer: usize) -> BTreeSet<String> {
        if self.cut.len() == 3 {
            return BTreeSet::from([format!("node isolated {observer}")]);
        }
        let networks = self.cut.iter().map(|network| format!("network down {network}"));
        let crash = self.crashed.map(|node| format!("process crashed {node}"));
        let shows = self.link && !self.cut.contains(&0) && !matches!(self.crashed, Some(0 | 1));
        let link = shows.then(|| "link cut 0-1 on 0".to_owned());
        networks.chain(crash).chain(link).collect()
    }

    fn name(&self) -> String {
        let link = if self.link { ", link 0-1 on network 0 cut" } else { "" };
        format!("networks {:?} cut, {:?} crashed{link}", self.cut, self.crashed)
    }
}

fn truth_table(profile: Profile) {
    let mut wrong = Vec::new();
    for cell in Cell::all() {
        let mut plan = Plan {
            nodes: 4,
            networks: networks(3, NetworkPlan::default()),
            faults: cell.faults(),
            duration: Duration::from_secs(8),
            removal: None,
            check: true,
            ..Plan::default()
        };
        plan.settings.profile = profile;
        let report = run(&plan, 11);
        for observer in (0..4).filter(|node| Some(*node) != cell.crashed) {
            let observed: BTreeSet<String> = report.standing[observer].iter().map(words).collect();
            let expected = cell.expected(observer);
            let is_equal = observed == expected && report.wrong.verdicts == 0 && report.violations.is_empty();
            let mark = if is_equal { "equal" } else { "DIFFERENT" };
            let line = format!(
                "{mark}: {}: node {observer} expected {expected:?}, observed {observed:?}",
                cell.name()
            );
            println!("{line}");
            if !is_equal {
                wrong
                    .push(format!("{line} {:?} {:?} {:?}", report.wrong, report.violations, report.examples));
            }
        }
    }
    assert!(wrong.is_empty(), "{profile:?}:\n{}", wrong.join("\n"));
}

#[test]
fn every_cell_of_three_networks_is_as_expected_under_gossip() {
    truth_table(Profile::Gossip);
}

#[test]
fn every_cell_of_three_networks_is_as_expected_under_relative() {
    truth_table(Profile::Relative);
}

#[test]
fn every_cell_of_three_networks_is_as_expected_under_timeout() {
    truth_table(Profile::Timeout);
}

#[test]
fn one_network_names_process_network_and_nothing_where_a_plain_timeout_blames_processes() {
    println!(
        "profile   fault             ours                                   plain time-out of 500 ms accuses"
    );
    for profile in PROFILES {
        for (name, fault) in [
            ("process stopped", "stall@4s:3"),
            ("network dead", "cut-network@4s"),
            ("observer stopped", "stall@4s:0,for=5s"),
        ] {
            let mut plan = Plan {
                nodes: 5,
                faults: faults(&[fault]),
                duration: Duration::from_secs(12),
                plain: Some(Duration::from_millis(500)),
                check: true,
                ..Plan::default()
            };
            plan.settings.profile = profile;
            let report = run(&plan, 5);
            let mut said: BTreeSet<String> = report.standing.iter().flatten().map(words).collect();
            // Those who watched the stopped observer rightly said so, and took it back.
            let of_observer = report.findings.iter().flat_map(|finding| finding.classes.keys());
            said.extend(of_observer.map(|class| format!("first {}", class_name(*class))));
            let accused: BTreeSet<usize> = report.plain.keys().map(|(_, subject)| *subject).collect();
            println!("{profile:<9?} {name:<17} {said:<38?} {accused:?}");
            assert_eq!(
                (report.wrong.suspicions, report.wrong.verdicts, report.wrong.removals),
                (0, 0, 0),
                "{report:?}"
            );
            assert_eq!(report.violations, []);
            assert!(!accused.is_empty(), "the plain time-out blames processes");
            match name {
                "process stopped" => assert!(said.contains("process stalled 3"), "{said:?}"),
                "network dead" => {
                    assert!((0..5).all(|node| said.contains(&format!("node isolated {node}"))), "{said:?}");
                    assert_eq!(accused.len(), 5);
                }
                _ => {
                    assert!(accused.len() == 5, "the stopped observer blames all, all blame it: {accused:?}");
                    assert!(report.removed.is_empty());
                }
            }
        }
    }
}

#[test]
fn a_path_that_becomes_slow_and_fast_again_accuses_nobody_and_hides_no_crash() {
    let path = NetworkPlan { delay: Delay::Constant(Duration::from_millis(1)), loss: 0.05, burst: None };
    let slow = "delay@20s:for=60s,delay=120ms+-30ms";
    let phases = [("fast", "silent@15s:2"), ("slow", "silent@60s:2"), ("fast again", "silent@170s:2")];
    println!("phase       every other node knew after   wrong   plain 500 ms accused wrongly   plain 7 s");
    for (phase, silent) in phases {
        let plan = |plain: u64| Plan {
            nodes: 6,
            networks: networks(1, path.clone()),
            faults: faults(&[slow, silent]),
            duration: Duration::from_secs(180),
            plain: Some(Duration::from_millis(plain)),
            check: true,
            ..Plan::default()
        };
        let (report, patient) = (run(&plan(500), 3), run(&plan(7_000), 3));
        let finding = report.findings.iter().find(|finding| finding.fault.kind == Kind::Silent);
        let finding = finding.expect("the dead machine is looked for");
        let last = finding.last();
        let hasty = report.plain.keys().filter(|(_, subject)| *subject != 2).count();
        let patience = patient.plain.keys().filter(|(_, subject)| *subject != 2).count();
        println!("{phase:<11} {last:<29?} {:<7} {hasty:<30} {patience}", report.wrong.verdicts);
        assert_eq!((report.wrong.verdicts, report.wrong.removals), (0, 0), "{phase}: {:?}", report.examples);
        assert_eq!(report.violations, [], "{phase}");
        let limit = Duration::from_secs(if phase == "slow" { 20 } else { 2 });
        assert!(last.is_some_and(|last| last < limit), "{phase}: {last:?}");
        assert!(hasty > 0, "a fixed time-out that is quick on the fast path is false on the slow one");
    }
}
