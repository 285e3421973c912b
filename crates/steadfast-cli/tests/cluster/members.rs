//! Probation and single-view replacement (PROTOCOLS 3.4) with real agents: who may become a member, and how one takes the
//! place of another while a program goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use steadfast_cli::api::types::{Node, Probation};
use steadfast_cli::api::view_types::ViewRecord;
use steadfast_cli::bed::{Direction, Fault, Host};

use super::support::{COUNTER, Trial, builder, drop_incoming, let_in};

/// The machine that waits in readiness.
const SPARE: usize = 3;

/// Criteria that are soon met, and soon too late.
const SHORT: [(&str, &str); 3] =
    [("probation", "seen = \"500ms\""), ("probation", "clean = \"1s\""), ("probation", "deadline = \"6s\"")];

/// Three members, and a fourth host that is to wait in readiness and whose agent does not run yet.
fn with_spare(settings: &[(&str, &str)]) -> Trial {
    let bed = builder().hosts(SPARE + 1).standbys(1);
    let trial = Trial::with(settings.iter().fold(bed, |bed, (section, line)| bed.setting(section, line)));
    trial.bed.host(SPARE).kill_agent().unwrap();
    trial
}

fn node(trial: &Trial, name: &str) -> Node {
    let nodes: Vec<Node> = trial.some_host().steadfast_as(&["nodes", "-o", "json"]).unwrap();
    nodes.into_iter().find(|node| node.name == name).unwrap()
}

fn probation(trial: &Trial) -> Option<Probation> {
    node(trial, trial.bed.host(SPARE).name()).probation
}

fn wait_ready(trial: &Trial) {
    let ready = trial.try_wait(|| probation(trial).filter(|probation| probation.ready));
    assert!(ready.is_some(), "{:?}", probation(trial));
}

fn start(host: &Host) {
    start_with(host, &[]);
}

fn start_with(host: &Host, environment: &[(&str, &str)]) {
    host.start_agent_with(environment).unwrap();
    host.wait_ready().unwrap();
}

/// Writes `line` into the `[node]` section of a host's configuration, for its next start.
fn configure(host: &Host, line: &str) {
    let text = std::fs::read_to_string(host.config()).unwrap();
    std::fs::write(host.config(), text.replacen("[node]\n", &format!("[node]\n{line}\n"), 1)).unwrap();
}

fn views(trial: &Trial) -> Vec<ViewRecord> {
    trial.some_host().steadfast_as(&["views", "-o", "json"]).unwrap()
}

/// Takes note, while `work` goes on, that nothing which the witness has heard may be lost.
fn losing_nothing<T>(trial: &Trial, work: impl FnOnce() -> T) -> T {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                trial.witness.commit(trial.witness.mark());
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        ended.store(true, Ordering::SeqCst);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_ready_machine_takes_a_living_ones_place_in_one_view_and_its_program_loses_nothing() {
    let trial = with_spare(&[]);
    let (old, spare) = (trial.bed.host(1), trial.bed.host(SPARE));
    trial.start_counter(1);
    trial.checkpoint();
    let first = trial.bed.host(0);
    let refused = |arguments: &[&str], code: &str| {
        let error = first.steadfast_text(arguments).unwrap_err().to_string();
        assert!(error.contains(code), "{arguments:?}: {error}");
    };
    refused(&["replace", old.name(), spare.name()], "SF-0052");
    start(spare);
    wait_ready(&trial);
    let before = views(&trial);
    refused(&["replace", old.name(), old.name()], "SF-0053");
    refused(&["replace", old.name(), trial.bed.host(2).name()], "SF-0045");
    refused(&["replace", "nobody", spare.name()], "SF-0011");
    assert_eq!(views(&trial).len(), before.len(), "what was refused changed nothing");

    let epoch = trial.counter().epoch;
    losing_nothing(&trial, || {
        first.steadfast_text(&["replace", old.name(), spare.name()]).unwrap();
        trial.wait_recovered(epoch);
    });
    trial.witness.assert_clean();
    let after = trial.counter();
    assert_eq!((after.node.as_str(), after.epoch), (spare.name(), epoch + 1));
    // The copy of the node that runs it protects nothing: as many as asked lie on others.
    let copies = after.latest.as_ref().unwrap().copies.iter();
    let elsewhere = copies.filter(|copy| copy.node != after.node).count();
    assert_eq!((elsewhere, after.copies, after.copies_wanted), (2, 2, 2));
    let swap: Vec<ViewRecord> = views(&trial).into_iter().filter(|view| view.change == "replaced").collect();
    let [swap] = swap.as_slice() else { panic!("{swap:?}") };
    let swapped: Vec<&str> = swap.nodes.iter().map(|node| node.node.as_str()).collect();
    assert_eq!(swapped, [old.name(), spare.name()]);
    assert_eq!(swap.members.len(), 3);
    assert_eq!(swap.id, before.last().unwrap().id + 1, "one view, and none between");
    assert_eq!(node(&trial, old.name()).state, "left");
    // The duties of a grantor follow, one at a time; then the cluster survives the loss of what ran there as before.
    trial.wait("the old one's grants to end", || {
        let views = views(&trial);
        views.iter().any(|view| view.change == "no_grantor").then_some(())
    });
    trial.checkpoint();
    let epoch = trial.counter().epoch;
    spare.power_off().unwrap();
    let recovered = trial.wait_recovered(epoch);
    assert_ne!(recovered.node, old.name(), "it stays out");
    trial.witness.assert_clean();
}

#[test]
fn a_ready_machine_takes_a_dead_ones_place_and_a_standby_takes_it_by_itself() {
    let trial = with_spare(&[]);
    let (dead, spare) = (trial.bed.host(2), trial.bed.host(SPARE));
    start(spare);
    wait_ready(&trial);
    dead.power_off().unwrap();
    trial.wait("the standby to take the dead one's place", || {
        let state = node(&trial, spare.name()).state;
        (state == "member").then_some(())
    });
    let swap = views(&trial).into_iter().find(|view| view.change == "replaced").unwrap();
    assert_eq!(swap.reason, format!("{} took the place of {}", spare.name(), dead.name()));
    // Back again, it is a candidate like any other, and there is no place to take.
    dead.power_on().unwrap();
    start(dead);
    trial.wait("the one that is back to be ready", || {
        let probation = node(&trial, dead.name()).probation?;
        (probation.ready && probation.intent == "standby").then_some(())
    });
    assert_eq!(node(&trial, dead.name()).state, "ready");
    // An operator may have it take a living one's place.
    trial.bed.host(0).steadfast_text(&["replace", spare.name(), dead.name()]).unwrap();
    assert_eq!(node(&trial, dead.name()).state, "member");
    assert_eq!(node(&trial, spare.name()).state, "left");
}

#[test]
fn a_machine_that_waits_in_readiness_outlives_the_deadline_and_a_short_cut() {
    let trial = with_spare(&[
        ("probation", "seen = \"500ms\""),
        ("probation", "clean = \"1s\""),
        ("probation", "deadline = \"5s\""),
    ]);
    let spare = trial.bed.host(SPARE);
    trial.start_counter(0);
    let holder = holder_of(&trial);
    start(spare);
    wait_ready(&trial);
    trial.let_pass(Duration::from_secs(6));
    let network = trial.bed.networks()[0].clone();
    trial.bed.inject(Fault::Pair { first: 1, second: SPARE, network }).unwrap();
    trial.wait("the cut to be seen", || probation(&trial).filter(|probation| !probation.ready));
    trial.bed.heal_all().unwrap();
    wait_ready(&trial);
    trial.let_pass(Duration::from_secs(6));
    // What it is to take over now is not late either.
    trial.bed.host(0).steadfast_text(&["replace", &holder, spare.name()]).unwrap();
    assert_eq!(node(&trial, spare.name()).state, "member");
}

#[test]
fn what_the_members_measure_eliminates_for_exactly_that_reason() {
    let trial = with_spare(&[&SHORT[..], &[("probation", "round_trip = \"40ms\"")]].concat());
    let spare = trial.bed.host(SPARE);
    let network = trial.bed.networks()[0].clone();
    let cut = |first: usize| Fault::Pair { first, second: SPARE, network: network.clone() };
    let everywhere = |first: usize| {
        let networks = trial.bed.networks().to_vec();
        networks.into_iter().map(move |network| Fault::Pair { first, second: SPARE, network })
    };
    let lossy =
        Fault::Loss { host: SPARE, network: network.clone(), percent: 15, direction: Direction::FromHost };
    let cases: [(&str, Vec<Fault>); 3] =
        [("heartbeats", everywhere(2).collect()), ("clean period", vec![cut(1)]), ("loss", vec![lossy])];
    for (criterion, faults) in cases {
        for fault in faults {
            trial.bed.inject(fault).unwrap();
        }
        eliminated(&trial, criterion, &[]);
        trial.bed.heal_all().unwrap();
    }
    trial.bed.set_delay(SPARE, &network, Duration::from_millis(40), Duration::from_millis(2)).unwrap();
    eliminated(&trial, "delay", &[]);
    trial.bed.set_delay(SPARE, &network, Duration::ZERO, Duration::ZERO).unwrap();
    // Nothing of that lasts: in its next life it is as good as any.
    start(spare);
    wait_ready(&trial);
}

#[test]
fn what_a_candidate_is_eliminates_for_exactly_that_reason() {
    let trial = with_spare(
        &[&SHORT[..], &[("probation", "memory = \"64MiB\""), ("probation", "domain = \"distinct\"")]]
            .concat(),
    );
    let spare = trial.bed.host(SPARE);
    let text = std::fs::read_to_string(spare.config()).unwrap();
    let (before, rest) = text.split_once("[checkpoint]\nmemory = \"").unwrap();
    let (lent, rest) = rest.split_once('"').unwrap();
    let poor = format!("{before}[checkpoint]\nmemory = \"8MiB\"{rest}");
    assert_ne!(lent, "8MiB");
    std::fs::write(spare.config(), poor).unwrap();
    eliminated(&trial, "memory", &[]);
    std::fs::write(spare.config(), &text).unwrap();

    eliminated(&trial, "version", &[("STEADFAST_TELLS_VERSION", "9.0.0")]);
    let ahead = [
        ("LD_PRELOAD", "/usr/$LIB/faketime/libfaketime.so.1"),
        ("FAKETIME", "+60s"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_DISABLE_SHM", "1"),
    ];
    eliminated(&trial, "clock", &ahead);

    let neighbour = trial.bed.host(2);
    neighbour.kill_agent().unwrap();
    configure(neighbour, "domain = [\"rack-1\"]");
    start(neighbour);
    configure(spare, "domain = [\"rack-1\"]");
    eliminated(&trial, "domain", &[]);
    std::fs::write(spare.config(), &text).unwrap();
    configure(spare, "domain = [\"rack-2\"]");
    start(spare);
    wait_ready(&trial);
}

#[test]
fn what_a_candidate_can_not_take_over_eliminates_for_exactly_that_reason() {
    let trial = with_spare(&[&SHORT[..], &[("probation", "lag = 20")]].concat());
    let spare = trial.bed.host(SPARE);
    // The catalog must reach the candidate while the copies don't.
    let leader = trial.some_host().status().unwrap().leader;
    let owner = trial.bed.hosts().iter().find(|host| Some(host.name()) != leader.as_deref()).unwrap();
    trial.start_counter(owner.number());
    let holder = holder_of(&trial);
    start(spare);
    wait_ready(&trial);
    drop_incoming(spare, "meta l4proto tcp");
    for _ in 0..25 {
        trial.checkpoint();
    }
    wait_eliminated(&trial, "catalog", None);
    let_in(spare);
    spare.kill_agent().unwrap();

    start(spare);
    wait_ready(&trial);
    for address in owner.addresses() {
        drop_incoming(spare, &format!("ip saddr {} meta l4proto tcp", address.ip()));
    }
    let before = views(&trial);
    let error = owner.steadfast_text(&["replace", &holder, spare.name()]).unwrap_err().to_string();
    assert!(error.contains("duties") && error.contains("SF-0052"), "{error}");
    assert_eq!(probation(&trial).unwrap().eliminated.unwrap().criterion, "duties");
    assert_eq!(views(&trial).len(), before.len(), "nothing was given up for it");
    trial.checkpoint();
}

/// Takes a checkpoint; gives a node that holds a copy of it.
fn holder_of(trial: &Trial) -> String {
    let owner = trial.counter().node;
    let copies = trial.checkpoint().copies.into_iter().map(|copy| copy.node);
    copies.into_iter().find(|node| *node != owner).unwrap()
}

/// Gives the spare a life in which it is eliminated for `criterion`.
fn eliminated(trial: &Trial, criterion: &str, environment: &[(&str, &str)]) {
    let spare = trial.bed.host(SPARE);
    let before = probation(trial).map(|probation| probation.applied_unix_ms);
    start_with(spare, environment);
    wait_eliminated(trial, criterion, before);
    spare.kill_agent().unwrap();
}

/// Waits until the spare's life is eliminated for `criterion`, but for the life that applied at `before`.
fn wait_eliminated(trial: &Trial, criterion: &str, before: Option<u64>) {
    let found = trial.wait(&format!("an elimination for {criterion}"), || {
        let probation = probation(trial).filter(|probation| Some(probation.applied_unix_ms) != before)?;
        probation.eliminated
    });
    assert_eq!(found.criterion, criterion, "{found:?}");
    assert!(!found.advice.is_empty());
}

#[test]
fn a_drained_node_hands_its_program_over_and_takes_it_back_when_it_may() {
    let trial = Trial::new();
    trial.start_counter(0);
    trial.checkpoint();
    let (first, second) = (trial.bed.host(0), trial.bed.host(1));
    let epoch = trial.counter().epoch;
    losing_nothing(&trial, || {
        second.steadfast_text(&["drain", first.name()]).unwrap();
        trial.wait_recovered(epoch);
    });
    trial.witness.assert_clean();
    assert_ne!(trial.counter().node, first.name());
    assert_eq!(node(&trial, first.name()).state, "draining");
    second.steadfast_text(&["drain", "--undo", first.name()]).unwrap();
    assert_eq!(node(&trial, first.name()).state, "member");
    assert_eq!(trial.counter().name, COUNTER);
}

#[test]
fn a_node_leaves_though_there_is_no_other_place_for_its_copies_but_not_with_the_last_one() {
    let trial = Trial::new();
    let [owner, holder, other] = trial.bed.hosts() else { panic!("a bed of three") };
    trial.start_counter(owner.number());
    // Both others hold a copy: there is no place for a third.
    assert_eq!(trial.checkpoint().copies.len(), 2);
    owner.steadfast_text(&["leave", holder.name()]).unwrap();
    assert_eq!(node(&trial, holder.name()).state, "left");
    trial.checkpoint();

    owner.steadfast_text(&["stop", COUNTER]).unwrap();
    let before = views(&trial).len();
    let error = owner.steadfast_text(&["leave", other.name()]).unwrap_err().to_string();
    assert!(
        error.contains("SF-0053") && error.contains(&format!("{} holds the only copy", other.name())),
        "{error}"
    );
    assert_eq!((node(&trial, other.name()).state.as_str(), views(&trial).len()), ("member", before));
    owner.steadfast_text(&["rm", COUNTER]).unwrap();
    owner.steadfast_text(&["leave", other.name()]).unwrap();
}
