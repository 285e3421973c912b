//! The truth tables and invariants of PROTOCOLS 3.1 and 3.2, on arrivals of a small simulated cluster.
//!
//! What is expected is computed from the faults alone ([`expected`]), what is observed from ages alone; mutations of
//! the rules are run through the same tables and must be told apart. It never reads a clock.

use proptest::prelude::*;

use super::*;

const INTERVAL_MS: u64 = 100;

type Judge = fn(&Table, &Thresholds) -> Judgement;

/// What may be broken, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Crash(u16),
    Cut(u16),
    /// Both directions between two nodes on one network.
    LinkCut(u16, u16, u16),
}

/// A fault and for how long it lasts, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Spell {
    fault: Fault,
    from_ms: u64,
    to_ms: u64,
}

#[derive(Clone, Debug)]
struct World {
    nodes: u16,
    networks: u16,
    spells: Vec<Spell>,
    /// When in its interval each node sends.
    phases_ms: Vec<u64>,
    /// From this instant on, everything arrives this much later.
    delay_ms: (u64, u64),
    /// The observer does not run from the first to the second instant.
    pause_ms: (u64, u64),
    /// Whether what waited while it did not run carries the time of its arrival.
    kernel_stamps: bool,
}

impl World {
    fn new(nodes: u16, networks: u16) -> World {
        World {
            nodes,
            networks,
            spells: Vec::new(),
            phases_ms: (0..u64::from(nodes)).map(|node| node * 31 % INTERVAL_MS).collect(),
            delay_ms: (0, 0),
            pause_ms: (0, 0),
            kernel_stamps: true,
        }
    }

    fn with(mut self, fault: Fault, from_ms: u64, to_ms: u64) -> World {
        self.spells.push(Spell { fault, from_ms, to_ms });
        self
    }

    fn active(&self, at_ms: u64) -> Vec<Fault> {
        let active = |spell: &&Spell| spell.from_ms <= at_ms && at_ms < spell.to_ms;
        self.spells.iter().filter(active).map(|spell| spell.fault).collect()
    }

    /// What reaches `observer` until `until_ms`: (when it was received, from whom, on which network).
    fn arrivals(&self, observer: u16, until_ms: u64) -> Vec<(u64, u16, u16)> {
        let mut arrivals = Vec::new();
        for tick in 0..until_ms / INTERVAL_MS {
            for peer in (0..self.nodes).filter(|peer| *peer != observer) {
                let sent_ms = tick * INTERVAL_MS + self.phases_ms[usize::from(peer)];
                let faults = self.active(sent_ms);
                let delay_ms = if sent_ms >= self.delay_ms.0 { self.delay_ms.1 } else { 0 };
                for network in (0..self.networks).filter(|network| reaches(&faults, observer, peer, *network))
                {
                    let at_ms = sent_ms + delay_ms + 1;
                    let paused = self.pause_ms.0 < at_ms && at_ms <= self.pause_ms.1;
                    let read_ms = if paused && !self.kernel_stamps { self.pause_ms.1 } else { at_ms };
                    arrivals.push((read_ms, peer, network));
                }
            }
        }
        arrivals.sort_unstable();
        arrivals
    }

    /// What `observer` finds, at each evaluation: every half interval and right after each arrival.
    fn observe(&self, observer: u16, until_ms: u64, judge: Judge) -> Vec<(u64, BTreeSet<Finding>)> {
        let arrivals = self.arrivals(observer, until_ms);
        let mut times_ms: BTreeSet<u64> = (0..until_ms).step_by(50).collect();
        times_ms.extend(arrivals.iter().map(|(at_ms, ..)| *at_ms).filter(|at_ms| *at_ms < until_ms));
        self.evaluate(observer, &arrivals, times_ms, judge)
    }

    /// What it finds in the end, evaluating every half interval only.
    fn settled(&self, observer: u16, until_ms: u64, judge: Judge) -> Vec<(u64, BTreeSet<Finding>)> {
        let times_ms = (0..until_ms).step_by(50).collect();
        self.evaluate(observer, &self.arrivals(observer, until_ms), times_ms, judge)
    }

    fn evaluate(
        &self,
        observer: u16,
        arrivals: &[(u64, u16, u16)],
        times_ms: BTreeSet<u64>,
        judge: Judge,
    ) -> Vec<(u64, BTreeSet<Finding>)> {
        let cells = (0..self.nodes).filter(|peer| *peer != observer);
        let cells = cells.flat_map(|peer| (0..self.networks).map(move |network| (peer, network)));
        let mut heard_ms: BTreeMap<(u16, u16), u64> = cells.map(|cell| (cell, 0)).collect();
        let mut waiting = arrivals.iter().peekable();
        let mut state = State::default();
        let mut found = Vec::new();
        for now_ms in times_ms {
            if self.pause_ms.0 < now_ms && now_ms < self.pause_ms.1 {
                continue;
            }
            while let Some((at_ms, peer, network)) = waiting.next_if(|(at_ms, ..)| *at_ms <= now_ms) {
                heard_ms.insert((*peer, *network), *at_ms);
            }
            let cells = heard_ms.iter().map(|(&(peer, network), at_ms)| {
                let age = Duration::from_millis(now_ms - at_ms);
                ((NodeId(peer.into()), NetworkId(network)), Cell { age })
            });
            let now = Time::from_nanos(now_ms * 1_000_000);
            let table = Table { now, cells: cells.collect(), previous: state };
            let judgement = judge(&table, &Thresholds::default());
            state = judgement.state;
            found.push((now_ms, judgement.findings));
        }
        found
    }
}

/// Whether what `peer` sends reaches `observer`.
fn reaches(faults: &[Fault], observer: u16, peer: u16, network: u16) -> bool {
    !faults.iter().any(|fault| match *fault {
        Fault::Crash(node) => node == peer,
        Fault::Cut(cut) => cut == network,
        Fault::LinkCut(a, b, cut) => cut == network && [(a, b), (b, a)].contains(&(observer, peer)),
    })
}

/// What `observer` must find in the end under these faults, by the words of PROTOCOLS 3.2.
fn expected(world: &World, faults: &[Fault], observer: u16) -> BTreeSet<Finding> {
    let peers = || (0..world.nodes).filter(|peer| *peer != observer);
    let on = |peer, network| reaches(faults, observer, peer, network);
    let is_heard = |peer: &u16| (0..world.networks).any(|network| on(*peer, network));
    let heard: Vec<u16> = peers().filter(is_heard).collect();
    if heard.is_empty() {
        return match (world.networks, world.nodes) {
            (1, 2) => BTreeSet::from([Finding::Indistinguishable]),
            (1, _) => BTreeSet::from([Finding::Network { network: NetworkId(0), or_link: false }]),
            _ => BTreeSet::from([Finding::Isolated]),
        };
    }
    let mut findings: BTreeSet<Finding> =
        peers().filter(|peer| !is_heard(peer)).map(|peer| Finding::Process(NodeId(peer.into()))).collect();
    for network in 0..world.networks {
        let silent: Vec<u16> = heard.iter().copied().filter(|peer| !on(*peer, network)).collect();
        if silent.len() == heard.len() {
            findings.insert(Finding::Network { network: NetworkId(network), or_link: heard.len() == 1 });
        } else {
            findings
                .extend(silent.iter().map(|peer| Finding::Link(NodeId((*peer).into()), NetworkId(network))));
        }
    }
    findings
}

/// A finding in a few letters, for tables.
fn brief(findings: &BTreeSet<Finding>) -> String {
    let words = findings.iter().map(|finding| match finding {
        Finding::Process(peer) => format!("process {}", peer.0),
        Finding::Link(peer, network) => format!("link {}/n{network}", peer.0),
        Finding::Network { network, or_link: false } => format!("network n{network}"),
        Finding::Network { network, or_link: true } => format!("network-or-link n{network}"),
        Finding::Isolated => "isolated".to_owned(),
        Finding::Indistinguishable => "indistinguishable".to_owned(),
    });
    let words = words.collect::<Vec<_>>().join(", ");
    if words.is_empty() { "nothing".to_owned() } else { words }
}

/// Mutation of 3.2: the verdict without the isolation row, whose place the process row takes.
fn without_isolation_row(table: &Table, thresholds: &Thresholds) -> Judgement {
    let mut judgement = judge(table, thresholds);
    if judgement.findings.remove(&Finding::Isolated) {
        judgement.findings = table.cells.keys().map(|(peer, _)| Finding::Process(*peer)).collect();
    }
    judgement
}

/// Mutation of 3.1: ages do not start anew on heal.
fn without_rebase(table: &Table, thresholds: &Thresholds) -> Judgement {
    let previous = State { standing: table.previous.standing.clone(), ..State::default() };
    judge(&Table { previous, ..table.clone() }, thresholds)
}

/// A plain timeout of five intervals per process, which is what others do.
fn plain_timeout(table: &Table, _: &Thresholds) -> Judgement {
    let late = |(_, cell): &(&(NodeId, NetworkId), &Cell)| cell.age > Duration::from_millis(5 * INTERVAL_MS);
    let findings = table.cells.iter().filter(late).map(|((peer, _), _)| Finding::Process(*peer)).collect();
    Judgement { findings, ..Judgement::default() }
}

/// All findings of a run.
fn all(found: &[(u64, BTreeSet<Finding>)]) -> BTreeSet<Finding> {
    found.iter().flat_map(|(_, findings)| findings.iter().copied()).collect()
}

fn accused(findings: &BTreeSet<Finding>) -> usize {
    findings.iter().filter(|finding| matches!(finding, Finding::Process(_))).count()
}

fn last(found: &[(u64, BTreeSet<Finding>)]) -> BTreeSet<Finding> {
    found.last().map(|(_, findings)| findings.clone()).unwrap_or_default()
}

/// Runs the whole truth table of 3.2 and returns how many verdicts were wrong, and prints it if asked to.
fn truth_table_of_three_networks(judge: Judge, print: bool) -> usize {
    let crashes = [None, Some(0), Some(1), Some(2), Some(3)];
    let mut links = vec![None];
    for network in 0..3 {
        links.extend((0..4).flat_map(|a| (a + 1..4).map(move |b| Some((a, b, network)))));
    }
    let (mut wrong, mut cells) = (0, 0);
    for cut in 0u16..8 {
        for (crash, link) in crashes.iter().flat_map(|crash| links.iter().map(move |link| (*crash, *link))) {
            let mut world = World::new(4, 3);
            let cuts = (0..3).filter(|network| cut & (1 << network) != 0).map(Fault::Cut);
            let crash = crash.map(Fault::Crash);
            let link = link.map(|(a, b, network)| Fault::LinkCut(a, b, network));
            for fault in cuts.chain(crash).chain(link) {
                world = world.with(fault, 500, u64::MAX);
            }
            let faults = world.active(500);
            for observer in (0..4).filter(|node| !faults.contains(&Fault::Crash(*node))) {
                let wanted = expected(&world, &faults, observer);
                let found = world.settled(observer, 2_300, judge);
                // Nothing else may be found on the way either.
                let is_right = last(&found) == wanted && all(&found).is_subset(&wanted);
                wrong += usize::from(!is_right);
                cells += 1;
                if print {
                    let (wanted, got) = (brief(&wanted), brief(&last(&found)));
                    let verdict = if is_right { "equal" } else { "WRONG" };
                    println!("{verdict} | node {observer} | {faults:?} | expected {wanted} | observed {got}");
                }
            }
        }
    }
    if print {
        println!("{cells} verdicts, {wrong} wrong");
    }
    wrong
}

#[test]
fn the_truth_table_of_three_networks_and_four_nodes_is_right_in_every_cell() {
    assert_eq!(truth_table_of_three_networks(judge, true), 0);
}

#[test]
fn a_verdict_without_the_isolation_row_is_caught_by_the_truth_table() {
    assert!(truth_table_of_three_networks(without_isolation_row, false) >= 19 * 16);
}

/// Rows of the truth table written out by hand, so that a mistake that both sides share is seen.
#[test]
fn a_dozen_rows_by_hand() {
    let [one, two, three] = [1u128, 2, 3].map(NodeId);
    let [a, b, c] = [0u16, 1, 2].map(NetworkId);
    let down = |network| Finding::Network { network, or_link: false };
    let rows: [(&[Fault], &[Finding]); 12] = [
        (&[], &[]),
        (&[Fault::Cut(0)], &[down(a)]),
        (&[Fault::Cut(0), Fault::Cut(1)], &[down(a), down(b)]),
        (&[Fault::Cut(0), Fault::Cut(1), Fault::Cut(2)], &[Finding::Isolated]),
        (&[Fault::Crash(1)], &[Finding::Process(one)]),
        (&[Fault::Crash(2), Fault::Cut(1)], &[Finding::Process(two), down(b)]),
        (&[Fault::LinkCut(0, 3, 2)], &[Finding::Link(three, c)]),
        (&[Fault::LinkCut(2, 3, 2)], &[]), // Not ours.
        (&[Fault::LinkCut(0, 3, 2), Fault::Cut(2)], &[down(c)]),
        (&[Fault::LinkCut(0, 3, 2), Fault::Cut(0)], &[down(a), Finding::Link(three, c)]),
        (
            &[Fault::LinkCut(0, 3, 2), Fault::Crash(1), Fault::Crash(2)],
            &[Finding::Process(one), Finding::Process(two), Finding::Network { network: c, or_link: true }],
        ),
        (&[Fault::Crash(1), Fault::Crash(2), Fault::Crash(3)], &[Finding::Isolated]),
    ];
    for (faults, wanted) in rows {
        let world = faults.iter().fold(World::new(4, 3), |world, fault| world.with(*fault, 500, u64::MAX));
        let found = world.observe(0, 2_300, judge);
        assert_eq!(last(&found), wanted.iter().copied().collect(), "{faults:?}");
    }
}

#[test]
fn of_two_nodes_silence_on_one_network_has_two_suspects_and_on_the_only_one_tells_nothing() {
    let cut = World::new(2, 2).with(Fault::Cut(1), 500, 5_000);
    let suspected = Finding::Network { network: NetworkId(1), or_link: true };
    assert_eq!(all(&cut.observe(0, 6_000, judge)), BTreeSet::from([suspected]));
    for fault in [Fault::Cut(0), Fault::Crash(1)] {
        let found = World::new(2, 1).with(fault, 500, u64::MAX).observe(0, 3_000, judge);
        assert_eq!(all(&found), BTreeSet::from([Finding::Indistinguishable]));
    }
}

/// 3.1's acceptance: three faults on one network, under our rule and under a plain timeout.
#[test]
fn one_network_names_process_network_and_nothing_where_a_plain_timeout_blames_processes() {
    let stopped = World::new(5, 1).with(Fault::Crash(2), 2_000, u64::MAX);
    let dropped = World::new(5, 1).with(Fault::Cut(0), 2_000, u64::MAX);
    let mut paused = World::new(5, 1);
    paused.pause_ms = (2_000, 7_000);
    let process = BTreeSet::from([Finding::Process(NodeId(2))]);
    let network = BTreeSet::from([Finding::Network { network: NetworkId(0), or_link: false }]);
    let rows = [
        ("SIGSTOP one process", stopped, process, 1),
        ("drop all packets", dropped, network, 4),
        ("SIGSTOP the observer", paused, BTreeSet::new(), 4),
    ];
    for (fault, world, wanted, blamed_wanted) in rows {
        let ours = all(&world.observe(0, 9_000, judge));
        // A plain timer fires on waking, before the queue is read: the table without what waited.
        let undrained = world.arrivals(0, 9_000).into_iter().map(|(at_ms, peer, network)| {
            let waits = world.pause_ms.0 < at_ms && at_ms <= world.pause_ms.1;
            (if waits { world.pause_ms.1 + 1 } else { at_ms }, peer, network)
        });
        let undrained: Vec<_> = undrained.collect();
        let times_ms: BTreeSet<u64> = (0..9_000).step_by(50).collect();
        let plain = all(&world.evaluate(0, &undrained, times_ms, plain_timeout));
        println!("{fault}: ours finds {}, a plain timeout blames {}", brief(&ours), brief(&plain));
        assert_eq!(ours, wanted);
        assert_eq!(accused(&plain), blamed_wanted);
    }
}

/// Trap 1 of 3.1, and its mutation "no drain".
#[test]
fn evaluating_while_draining_blames_the_network_and_after_draining_nothing() {
    let mut world = World::new(6, 1);
    world.pause_ms = (1_000, 4_000);
    let mut undrained = world.arrivals(0, 6_000);
    let waited = undrained.iter_mut().filter(|(at_ms, ..)| (1_001..=4_000).contains(at_ms));
    for ((at_ms, ..), waiting) in waited.zip(1..) {
        *at_ms = 4_000 + waiting; // One datagram is read and judged per millisecond.
    }
    let times_ms: BTreeSet<u64> = (0..1_000).step_by(50).chain(4_000..6_000).collect();
    assert!(!all(&world.evaluate(0, &undrained, times_ms, judge)).is_empty());
    assert_eq!(all(&world.observe(0, 6_000, judge)), BTreeSet::new());
}

/// Trap 2 of 3.1, and its mutation "no re-base".
#[test]
fn a_heal_without_rebase_accuses_the_healthy_and_with_it_nobody() {
    for networks in [1, 2] {
        let mut world = World::new(6, networks);
        for network in 0..networks {
            world = world.with(Fault::Cut(network), 1_000, 6_000);
        }
        assert_eq!(accused(&all(&world.observe(0, 9_000, judge))), 0);
        assert!(accused(&all(&world.observe(0, 9_000, without_rebase))) >= 4);
    }
}

#[test]
fn a_finding_stands_while_its_witnesses_lose_a_few_heartbeats() {
    let world = World::new(4, 2)
        .with(Fault::LinkCut(0, 3, 1), 500, u64::MAX)
        .with(Fault::Crash(2), 500, u64::MAX)
        .with(Fault::Cut(0), 4_000, 4_450)
        .with(Fault::Cut(1), 4_000, 4_450);
    let wanted = BTreeSet::from([Finding::Process(NodeId(2)), Finding::Link(NodeId(3), NetworkId(1))]);
    let found = world.observe(0, 8_000, judge);
    for (at_ms, findings) in found.into_iter().filter(|(at_ms, _)| *at_ms > 2_300) {
        assert_eq!(findings, wanted, "{at_ms} ms");
    }
}

#[test]
fn thresholds_that_blame_the_innocent_are_refused() {
    let interval = Duration::from_millis(INTERVAL_MS);
    let good = Thresholds::of_interval(interval);
    assert_eq!(good.check(interval), Ok(()));
    let refused = |thresholds: Thresholds| thresholds.check(interval).unwrap_err();
    let error = refused(Thresholds { process_lag: interval * 2, ..good });
    assert!(matches!(error, ThresholdsError::ProcessLag { .. }));
    let error = refused(Thresholds { network_silence: interval * 4, ..good });
    assert!(matches!(error, ThresholdsError::NetworkSilence { .. }));
    let error = refused(Thresholds { network_lag: interval * 4, ..good });
    assert!(matches!(error, ThresholdsError::NetworkLag { .. }));
    let error = refused(Thresholds { process_silence: interval * 6, ..good });
    assert!(matches!(error, ThresholdsError::ProcessSilence { .. }));
    assert!(good.check(interval * 3).is_err());
}

fn world(nodes: std::ops::Range<u16>, networks: std::ops::Range<u16>) -> impl Strategy<Value = World> {
    (nodes, networks, prop::collection::vec(0u64..INTERVAL_MS, 8))
        .prop_map(|(nodes, networks, phases_ms)| World { phases_ms, ..World::new(nodes, networks) })
}

/// Faults that come and go, each for long enough to be found or so short that it must not be.
fn spells(nodes: u16, networks: u16) -> impl Strategy<Value = Vec<Spell>> {
    let fault = prop_oneof![
        (1..nodes).prop_map(Fault::Crash),
        (0..networks).prop_map(Fault::Cut),
        (1..nodes, 0..networks).prop_map(|(peer, network)| Fault::LinkCut(0, peer, network)),
    ];
    let spell = (fault, 300u64..8_000, 50u64..5_000).prop_map(|(fault, from_ms, lasts_ms)| Spell {
        fault,
        from_ms,
        to_ms: from_ms + lasts_ms,
    });
    prop::collection::vec(spell, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever comes and goes: each finding is one that the truth table wants for what was broken shortly before,
    /// and when nothing has changed for long enough, it is exactly what the truth table wants.
    #[test]
    fn every_finding_is_explained_by_what_is_broken_and_all_that_is_broken_is_found(
        (mut world, spells) in (world(2..5, 2..4)).prop_flat_map(|world| {
            let spells = spells(world.nodes, world.networks);
            (Just(world), spells)
        }),
    ) {
        world.spells = spells;
        // L, a phase, half an interval, and the interval in which a fault is not yet felt.
        let steady_ms = 1_900;
        for (at_ms, findings) in world.observe(0, 14_000, judge) {
            // Changes that follow one another sooner than that form one story, as each may start ages anew.
            let mut changes: Vec<u64> =
                world.spells.iter().flat_map(|spell| [spell.from_ms, spell.to_ms]).filter(|c| *c <= at_ms).collect();
            changes.sort_unstable();
            let mut since_ms = at_ms.saturating_sub(steady_ms);
            let mut instants = BTreeSet::new();
            for change in changes.into_iter().rev() {
                if change < since_ms {
                    break;
                }
                since_ms = change.saturating_sub(steady_ms);
                instants.insert(change);
            }
            let is_steady = instants.is_empty() && since_ms > 0;
            instants.insert(since_ms);
            let states: Vec<Vec<Fault>> = instants.iter().map(|instant| world.active(*instant)).collect();
            let wanted: BTreeSet<Finding> =
                states.iter().flat_map(|faults| expected(&world, faults, 0)).collect();
            let explains = |finding: &Finding| match *finding {
                // How many witnesses there are changes sooner than what they testify.
                Finding::Network { network, .. } => wanted.iter().any(|other| is_about(other, network)),
                // A network that flickers leaves its peers with ages far apart, but a crash never blames a link.
                Finding::Link(peer, network) => states.iter().flatten().any(|fault| match *fault {
                    Fault::Crash(_) => false,
                    Fault::Cut(cut) => cut == network.0,
                    Fault::LinkCut(_, far, cut) => cut == network.0 && NodeId(far.into()) == peer,
                }),
                Finding::Process(_) | Finding::Isolated | Finding::Indistinguishable => wanted.contains(finding),
            };
            prop_assert!(findings.iter().all(explains), "{at_ms} ms: {findings:?} but {wanted:?}");
            if is_steady {
                prop_assert_eq!(findings, wanted, "{} ms", at_ms);
            }
        }
    }

    #[test]
    fn fd2_a_pause_of_the_observer_accuses_nobody(
        mut world in world(2..6, 1..4), from_ms in 300u64..2_000, lasts_ms in 0u64..20_000, kernel_stamps in any::<bool>(),
    ) {
        world.pause_ms = (from_ms, from_ms + lasts_ms);
        world.kernel_stamps = kernel_stamps;
        prop_assert_eq!(all(&world.observe(0, from_ms + lasts_ms + 3_000, judge)), BTreeSet::new());
    }

    #[test]
    fn fd3_the_same_delay_of_all_accuses_no_process_and_no_link(
        mut world in world(3..6, 1..4), from_ms in 300u64..2_000, delay_ms in 0u64..4_000,
    ) {
        world.delay_ms = (from_ms, delay_ms);
        let found = all(&world.observe(0, 9_000, judge));
        let blames = |finding: &Finding| matches!(finding, Finding::Process(_) | Finding::Link(..));
        prop_assert!(!found.iter().any(blames), "{found:?}");
    }

    #[test]
    fn fd1_fd4_a_crash_beside_a_live_sender_is_found_in_time_and_alone(
        world in world(3..6, 1..2), at_ms in 300u64..2_000,
    ) {
        let found = world.with(Fault::Crash(1), at_ms, u64::MAX).observe(0, 4_000, judge);
        let due_ms = at_ms + 350 + 2 * INTERVAL_MS;
        let wanted = BTreeSet::from([Finding::Process(NodeId(1))]);
        prop_assert!(found.iter().filter(|(at_ms, _)| *at_ms >= due_ms).all(|(_, findings)| *findings == wanted));
        prop_assert_eq!(all(&found), wanted);
    }

    #[test]
    fn fd1_fd5_a_cut_network_is_found_in_time_and_no_process(
        world in world(3..6, 1..2), at_ms in 300u64..2_000,
    ) {
        let found = world.with(Fault::Cut(0), at_ms, 6_000).observe(0, 8_000, judge);
        let due_ms = at_ms + 1_000 + INTERVAL_MS / 2;
        let wanted = BTreeSet::from([Finding::Network { network: NetworkId(0), or_link: false }]);
        let is_due = |at_ms: u64| (due_ms..6_000).contains(&at_ms);
        prop_assert!(found.iter().filter(|(at_ms, _)| is_due(*at_ms)).all(|(_, findings)| *findings == wanted));
        prop_assert_eq!(all(&found), wanted);
        prop_assert_eq!(last(&found), BTreeSet::new());
    }

    #[test]
    fn fd6_cutting_some_networks_accuses_no_process_and_not_this_node(
        world in world(2..6, 2..5), cuts in prop::collection::vec((0u16..3, 300u64..4_000, 50u64..4_000), 1..6),
    ) {
        // The last network is never cut.
        let cuts = cuts.into_iter().map(|(network, from_ms, lasts_ms)| (network % (world.networks - 1), from_ms, lasts_ms));
        let world = cuts.collect::<Vec<_>>().into_iter().fold(world, |world, (network, from_ms, lasts_ms)| {
            world.with(Fault::Cut(network), from_ms, from_ms + lasts_ms)
        });
        let found = all(&world.observe(0, 9_000, judge));
        let blames = |finding: &Finding| matches!(finding, Finding::Process(_) | Finding::Isolated);
        prop_assert!(!found.iter().any(blames), "{found:?}");
    }

    #[test]
    fn fd7_a_crash_blames_no_network_while_two_others_live(
        world in world(4..6, 1..4), at_ms in 300u64..2_000, back_ms in 0u64..4_000,
    ) {
        let found = all(&world.with(Fault::Crash(1), at_ms, at_ms + back_ms).observe(0, 8_000, judge));
        prop_assert!(found.iter().all(|finding| *finding == Finding::Process(NodeId(1))), "{found:?}");
    }

    /// FD1 and the exclusions of the truth table, on ages that no cluster would ever produce.
    #[test]
    fn any_ages_give_findings_that_agree_with_one_another(
        rounds in prop::collection::vec(prop::collection::vec(0u64..3_000, 12), 1..8), networks in 1usize..4,
    ) {
        let mut state = State::default();
        for (round, ages_ms) in rounds.into_iter().enumerate() {
            let cells = ages_ms.into_iter().enumerate().map(|(index, age_ms)| {
                let network = NetworkId(u16::try_from(index % networks).unwrap());
                let peer = NodeId(u128::try_from(index / networks).unwrap());
                ((peer, network), Cell { age: Duration::from_millis(age_ms) })
            });
            let now = Time::from_nanos(u64::try_from(round).unwrap() * 50_000_000 + 3_000_000_000);
            let table = Table { now, cells: cells.collect(), previous: state };
            let judgement = judge(&table, &Thresholds::default());
            // FD8: the same table anywhere in time gives the same verdict.
            prop_assert_eq!(&judge(&table, &Thresholds::default()), &judgement);
            let findings = &judgement.findings;
            let contradicts = |finding: &Finding| match *finding {
                Finding::Isolated | Finding::Indistinguishable => findings.len() > 1,
                Finding::Network { network, .. } => findings.iter().any(|other| match *other {
                    Finding::Process(_) => networks == 1, // FD1
                    Finding::Link(_, link) => link == network,
                    Finding::Network { network: same, .. } => same == network && other != finding,
                    Finding::Isolated | Finding::Indistinguishable => true,
                }),
                Finding::Link(peer, _) => findings.contains(&Finding::Process(peer)) || networks == 1,
                Finding::Process(_) => false,
            };
            prop_assert!(!findings.iter().any(contradicts), "{findings:?}");
            prop_assert!(!judgement.is_cut_off || accused(findings) == 0);
            state = judgement.state;
        }
    }

    #[test]
    fn fd8_a_trace_replays_to_the_same_verdicts_at_any_time(
        world in world(3..5, 1..4), crash_ms in 300u64..2_000, cut_ms in 300u64..2_000,
    ) {
        fn a_year_later(table: &Table, thresholds: &Thresholds) -> Judgement {
            let year = Duration::from_secs(365 * 86_400);
            let shifted = |time: Time| time + year;
            let mut previous = table.previous.clone();
            previous.bases.values_mut().chain(&mut previous.revived_at).for_each(|base| *base = shifted(*base));
            let mut judgement = judge(&Table { now: shifted(table.now), previous, ..table.clone() }, thresholds);
            let state = &mut judgement.state;
            state.bases.values_mut().chain(&mut state.revived_at).for_each(|base| *base = base.before(year));
            judgement
        }
        let world = world.with(Fault::Crash(1), crash_ms, crash_ms + 2_500).with(Fault::Cut(0), cut_ms, cut_ms + 2_500);
        prop_assert_eq!(world.observe(0, 7_000, judge), world.observe(0, 7_000, a_year_later));
    }
}
