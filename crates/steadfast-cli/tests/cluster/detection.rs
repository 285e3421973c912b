//! What agents say when something fails: a truth table of cuts and crashes, stalls, deaf observers, stutter, delays, forgeries
//! and a long run under loss (PROTOCOLS 3.1, 3.2, 4.4; DESIGN 1).
//!
//! Each test breaks something and waits until the agents have concluded it; what they must never conclude is looked up
//! afterwards in everything that they told since. Read `conclusions.rs` for how verdicts are compared.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use steadfast_cli::bed::{Direction, Fault, Host};
use steadfast_proto::view::GRANTORS_MAX;

use super::conclusions::{Mark, blames, held, is_of_node, lines, mark, verdicts};
use super::support::{LEASE, Trial, builder};

/// One row of the truth table of PROTOCOLS 3.2: what is broken, and what every live node must say.
struct Row {
    faults: Vec<Fault>,
    gone: Option<Gone>,
    expected: &'static [&'static str],
}

/// How the last host goes.
#[derive(Clone, Copy)]
enum Gone {
    Killed,
    Dark,
}

fn whole(network: &str) -> Fault {
    Fault::Network { network: network.into() }
}

fn off(host: usize, network: &str) -> Fault {
    Fault::Host { host, network: network.into(), direction: Direction::Both }
}

fn between(first: usize, second: usize, network: &str) -> Fault {
    Fault::Pair { first, second, network: network.into() }
}

fn one_way(from: usize, to: usize, network: &str) -> Fault {
    Fault::OneWay { from, to, network: network.into() }
}

fn rows() -> Vec<Row> {
    let cuts = |faults: Vec<Fault>, expected| Row { faults, gone: None, expected };
    let with = |faults: Vec<Fault>, gone, expected| Row { faults, gone: Some(gone), expected };
    vec![
        cuts(vec![whole("front")], &["network-down front"]),
        cuts(vec![whole("back")], &["network-down back"]),
        cuts(vec![whole("side")], &["network-down side"]),
        cuts(vec![whole("front"), whole("back")], &["network-down back", "network-down front"]),
        cuts(vec![whole("back"), whole("side")], &["network-down back", "network-down side"]),
        cuts(vec![off(2, "side")], &["network-down-at-node gamma side"]),
        cuts(
            vec![off(1, "front"), off(1, "back")],
            &["network-down-at-node beta back", "network-down-at-node beta front"],
        ),
        cuts(vec![between(0, 1, "front")], &["link-cut alpha beta front"]),
        cuts(vec![one_way(0, 1, "back")], &["link-cut alpha beta back"]),
        cuts(
            vec![one_way(3, 2, "front"), whole("back")],
            &["link-cut delta gamma front", "network-down back"],
        ),
        cuts(
            vec![off(0, "side"), between(1, 2, "front")],
            &["link-cut beta gamma front", "network-down-at-node alpha side"],
        ),
        with(vec![], Gone::Killed, &["process-crashed delta"]),
        with(vec![whole("front")], Gone::Killed, &["network-down front", "process-crashed delta"]),
        with(
            vec![between(0, 1, "side")],
            Gone::Killed,
            &["link-cut alpha beta side", "process-crashed delta"],
        ),
        with(vec![whole("back")], Gone::Dark, &["host-dead delta", "network-down back"]),
    ]
}

#[test]
fn a_dozen_rows_of_the_truth_table_come_out_as_they_should() {
    let trial = Trial::with(builder().hosts(4).networks(3));
    let [.., delta] = trial.bed.hosts() else { panic!("a bed of four") };
    let settled = settled_view(&trial);
    trial.wait_held(trial.bed.hosts(), &[]);
    let mut problems = Vec::new();
    for row in rows() {
        let mark = mark(trial.bed.hosts());
        for fault in &row.faults {
            trial.bed.inject(fault.clone()).unwrap();
        }
        let Some(gone) = row.gone else {
            trial.wait_held(trial.bed.hosts(), row.expected);
            problems.extend(judge_row(&trial, &row, &mark, trial.bed.hosts()));
            let now = trial.bed.hosts().iter().map(view);
            assert!(
                now.clone().all(|now| now == settled),
                "no view change for a network fault: {:?}",
                now.collect::<Vec<_>>()
            );
            trial.bed.heal_all().unwrap();
            trial.wait_held(trial.bed.hosts(), &[]);
            continue;
        };
        let live = &trial.bed.hosts()[..3];
        let of_networks: Vec<&str> = row.expected.iter().copied().filter(|line| !is_of_node(line)).collect();
        trial.wait_held(live, &of_networks);
        match gone {
            Gone::Killed => delta.kill_agent().unwrap(),
            Gone::Dark => delta.power_off().map(|_| ()).unwrap(),
        }
        trial.wait_told(&mark, live, row.expected);
        trial.wait("its removal", || (trial.bed.host(0).members().ok()?.len() == 3).then_some(()));
        problems.extend(judge_row(&trial, &row, &mark, live));
        trial.bed.heal_all().unwrap();
        match gone {
            Gone::Killed => delta.start_agent().and_then(|()| delta.wait_ready()).unwrap(),
            Gone::Dark => trial.bring_back(delta),
        }
        trial.bed.wait_members(4).unwrap();
        trial.wait_held(trial.bed.hosts(), &[]);
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// Prints a row and what each host told since it began; returns what is wrong with it.
fn judge_row(trial: &Trial, row: &Row, mark: &Mark, live: &[Host]) -> Vec<String> {
    let what: Vec<String> = row.faults.iter().map(|fault| format!("{fault:?}")).collect();
    let gone = match row.gone {
        None => "",
        Some(Gone::Killed) => " + delta's agent killed",
        Some(Gone::Dark) => " + delta without power",
    };
    println!("{}{gone}\n    expected {:?}", what.join(" + "), lines(row.expected));
    let mut problems = Vec::new();
    for host in live {
        let told = trial.wait("what was told", || mark.told(host));
        println!("    {:<8} {told:?}", host.name());
        if told != lines(row.expected) {
            problems.push(format!("{} told {told:?}, not {:?}", host.name(), row.expected));
        }
    }
    problems
}

/// The view of a new cluster once nothing changes it any more: it has all its grantors, too.
fn settled_view(trial: &Trial) -> (u64, Vec<String>) {
    let host = trial.bed.host(0);
    trial.wait("all grantors", || {
        let timeline = host.status().ok()?.timeline;
        let made = timeline.iter().filter(|happening| happening.what == "grantor").count();
        (made + 1 == trial.bed.hosts().len().min(GRANTORS_MAX)).then_some(())
    });
    // Asked for once more: within one status the timeline may be ahead of the view.
    view(host)
}

fn view(host: &Host) -> (u64, Vec<String>) {
    let view = host.status().unwrap().view;
    (view.id, view.members)
}

#[test]
fn one_network_under_the_gossip_profile() {
    one_network("gossip");
}

#[test]
fn one_network_under_the_relative_profile() {
    one_network("relative");
}

#[test]
fn one_network_under_the_timeout_profile() {
    one_network("timeout");
}

/// The acceptance of PROTOCOLS 3.1: a process that stops, a network that drops everything, and an observer that stops.
fn one_network(profile: &str) {
    let setting = format!("profile = \"{profile}\"");
    let trial = Trial::with(builder().hosts(4).networks(1).setting("detect", &setting));
    let hosts = trial.bed.hosts();
    let settled = settled_view(&trial);

    // A process stops, which is also an observer that stops.
    let stopping = mark(hosts);
    let (stopped, others) = hosts.split_last().unwrap();
    let since = Instant::now();
    stopped.signal_agent(Signal::STOP).unwrap();
    trial.wait_held(others, &["process-stalled delta"]);
    trial.wait("five seconds", || (since.elapsed() > Duration::from_secs(5)).then_some(()));
    for host in others {
        assert_eq!(host.members().unwrap(), settled.1, "a stalled process stays until its own limit");
    }
    stopped.signal_agent(Signal::CONT).unwrap();
    trial.wait_held(hosts, &[]);
    let woken = stopping.accused(stopped, &["delta"]);
    assert_eq!(woken, [] as [String; 0], "an observer that wakes accuses nobody");
    for host in others {
        let told = stopping.told(host).unwrap();
        println!("{profile}, SIGSTOP of delta: {} told {told:?}", host.name());
        assert_eq!(told, lines(&["process-stalled delta"]));
        assert_eq!(stopping.accused(host, &["delta"]), [] as [String; 0]);
    }

    // The network drops everything: each is alone and blames nobody.
    let dropping = mark(hosts);
    let fault = trial.bed.inject(whole("front")).unwrap();
    for host in hosts {
        trial.wait("that it is alone", || held(host)?.contains(&alone(host)).then_some(()));
    }
    trial.let_pass(2 * LEASE);
    trial.bed.heal(fault).unwrap();
    trial.wait_held(hosts, &[]);
    for host in hosts {
        let told = dropping.told(host).unwrap();
        println!("{profile}, everything dropped: {} told {told:?}", host.name());
        assert_eq!(told, lines(&[&alone(host)]));
        assert_eq!(dropping.accused(host, &[host.name()]), [] as [String; 0]);
    }
    assert_eq!(view(trial.bed.host(0)), settled, "nobody was removed");
}

fn alone(host: &Host) -> String {
    format!("node-isolated {}", host.name())
}

#[test]
fn a_stalled_agent_is_removed_at_its_own_limit_and_not_before() {
    let limit = Duration::from_secs(3);
    let trial = Trial::with(builder().setting("detect", "stall_limit = \"3s\""));
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    let stopping = mark(trial.bed.hosts());
    beta.signal_agent(Signal::STOP).unwrap();
    let found = trial.wait("the verdict", || {
        let verdicts = [verdicts(alpha)?, verdicts(gamma)?];
        let since = |verdicts: &Vec<steadfast_cli::api::link_types::Verdict>| {
            let found = verdicts.iter().find(|verdict| verdict.class == "process-stalled")?;
            (found.nodes == ["beta"]).then_some(found.since_unix_ms)
        };
        verdicts.iter().map(since).collect::<Option<Vec<u64>>>()
    });
    trial.wait("the removal", || (gamma.members().ok()?.len() == 2).then_some(()));
    let happenings = [stopping.happenings(alpha), stopping.happenings(gamma)].concat();
    let removed = happenings.iter().filter(|happening| happening.what == "removed");
    let removed = removed.map(|happening| happening.at_unix_ms).fold(f64::INFINITY, f64::min);
    let first = *found.iter().min().unwrap();
    // Both are the agents' own times, to the millisecond; as f64 they are exact for 280,000 years.
    #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
    let waited_ms = removed - first as f64;
    println!("found stalled, removed {waited_ms:.0} ms later; the limit is {limit:?}");
    assert!(
        waited_ms + 5.0 >= limit.as_secs_f64() * 1000.0,
        "removed {waited_ms} ms after it was found stalled"
    );
    beta.signal_agent(Signal::CONT).unwrap();
    trial.bed.wait_members(3).unwrap();
    trial.wait_held(trial.bed.hosts(), &[]);
}

#[test]
fn an_agent_back_within_its_lease_keeps_its_place_and_one_that_leaves_says_goodbye() {
    let trial = Trial::with(builder().lease(Duration::from_secs(8)));
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    let others = [alpha, gamma];
    let settled = settled_view(&trial);

    let killing = mark(others);
    beta.kill_agent().unwrap();
    trial.wait_told(&killing, others, &["process-crashed beta"]);
    beta.start_agent().unwrap();
    beta.wait_ready().unwrap();
    trial.wait_held(trial.bed.hosts(), &[]);
    assert_eq!(view(alpha), (settled.0 + 1, settled.1.clone()), "one view, of the new start");
    for host in others {
        let happenings = killing.happenings(host);
        let count = |what: &str| happenings.iter().filter(|happening| happening.what == what).count();
        assert_eq!((count("removed"), count("admitted")), (0, 1), "{happenings:#?}");
        assert_eq!(killing.told(host).unwrap(), lines(&["process-crashed beta"]));
    }

    let leaving = mark(others);
    beta.signal_agent(Signal::TERM).unwrap();
    for host in others {
        trial.wait("the goodbye", || {
            let verdict = verdicts(host)?.into_iter().find(|verdict| verdict.class == "process-crashed")?;
            let is_goodbye = verdict.evidence.iter().any(|evidence| evidence.says == "it said goodbye");
            (is_goodbye && verdict.nodes == ["beta"]).then_some(())
        });
        assert_eq!(leaving.told(host).unwrap(), lines(&["process-crashed beta"]));
    }
}

#[test]
fn either_of_two_networks_may_go_under_a_running_program() {
    let trial = Trial::new();
    trial.start_counter(0);
    let hosts = trial.bed.hosts();
    let settled = settled_view(&trial);
    for network in ["front", "back"] {
        let cutting = mark(hosts);
        let fault = trial.bed.inject(whole(network)).unwrap();
        let expected = format!("network-down {network}");
        trial.wait_held(hosts, &[&expected]);
        for host in hosts {
            let shown = host.steadfast_text(&["links", "--network", network]).unwrap();
            assert_eq!(shown.matches(" down").count(), 2, "links on {} says:\n{shown}", host.name());
            assert_eq!(cutting.told(host).unwrap(), lines(&[&expected]));
        }
        trial.checkpoint();
        trial.bed.heal(fault).unwrap();
        trial.wait_held(hosts, &[]);
    }
    trial.wait_heard_since(Instant::now(), "the program goes on");
    assert_eq!(view(trial.bed.host(0)), settled, "no view change");
    assert_eq!(trial.witness.judge().epochs(), 1);
    trial.witness.assert_clean();
}

#[test]
fn a_stuttering_agent_gets_nobody_else_into_trouble() {
    let trial = Trial::with(builder().hosts(4));
    let [_, beta, ..] = trial.bed.hosts() else { panic!("a bed of four") };
    let stuttering = mark(trial.bed.hosts());
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(12) {
        beta.signal_agent(Signal::STOP).unwrap();
        trial.let_pass(Duration::from_secs(2));
        beta.signal_agent(Signal::CONT).unwrap();
        trial.let_pass(Duration::from_millis(250));
    }
    trial.bed.wait_members(4).unwrap();
    trial.wait_held(trial.bed.hosts(), &[]);
    for host in trial.bed.hosts() {
        let told = stuttering.told(host).unwrap();
        println!("{} told {told:?}", host.name());
        // The stutterer may have doubts of its own connection; of the others nobody has any.
        let is_of_beta =
            |line: &String| line == "process-stalled beta" || host.name() == "beta" && line.contains(" beta");
        assert!(told.iter().all(is_of_beta), "{} told {told:?}", host.name());
        let is_of_others = |line: &String| ["alpha", "gamma", "delta"].iter().any(|name| line.contains(name));
        assert!(!told.iter().any(is_of_others), "{} told {told:?}", host.name());
        assert_eq!(stuttering.accused(host, &["beta"]), [] as [String; 0], "on {}", host.name());
    }
}

#[test]
fn delays_that_rise_and_fall_blame_nobody_and_a_crash_among_them_is_found() {
    let trial = Trial::with(builder().networks(1).lease(Duration::from_secs(10)));
    let hosts = trial.bed.hosts();
    let delay = |delay_us: u64, jitter_us: u64| {
        for host in hosts {
            let (delay, jitter) = (Duration::from_micros(delay_us), Duration::from_micros(jitter_us));
            trial.bed.set_delay(host.number(), "front", delay, jitter).unwrap();
        }
    };
    // Each frame passes two relays: 1 ms, then 120 ms +- 30 ms, then 1 ms.
    delay(500, 0);
    trial.wait_held(hosts, &[]);
    let settled = settled_view(&trial);
    let began = mark(hosts);
    delay(45_000, 30_000);
    for host in hosts {
        let (host, network) = (host.number(), "front".to_owned());
        trial.bed.inject(Fault::Loss { host, network, percent: 5, direction: Direction::FromHost }).unwrap();
    }
    trial.let_pass(Duration::from_secs(10));
    let innocent = |phase: &str, guilty: &[&str]| {
        for host in hosts.iter().filter(|host| host.has_answering_agent()) {
            println!("{phase}: {} told {:?}", host.name(), began.told(host));
            let wrong = |line: &String| is_of_node(line) && !guilty.iter().any(|node| blames(line, node));
            let wrong: Vec<String> = began.told(host).unwrap().into_iter().filter(wrong).collect();
            assert_eq!(wrong, [] as [String; 0], "{phase}, on {}", host.name());
        }
    };
    innocent("slow", &[]);
    let [alpha, beta, gamma] = hosts else { panic!("a bed of three") };
    beta.kill_agent().unwrap();
    trial.wait_told(&began, [alpha, gamma], &["process-crashed beta"]);
    beta.start_agent().unwrap();
    beta.wait_ready().unwrap();
    innocent("crash among delays", &["beta"]);
    delay(500, 0);
    trial.bed.heal_all().unwrap();
    let healed = Instant::now();
    trial.wait_held(hosts, &[]);
    println!("all is well {:?} after the delays fell", healed.elapsed());
    innocent("fast again", &["beta"]);
    assert_eq!(view(alpha).1, settled.1, "nobody is missing");
    for host in [alpha, gamma] {
        assert!(began.happenings(host).iter().all(|happening| happening.what != "removed"));
    }
}

#[test]
fn a_long_run_under_loss_pauses_and_a_one_way_cut_removes_nobody() {
    let minutes = std::env::var_os("STEADFAST_SOAK").is_some();
    let length = if minutes { Duration::from_secs(600) } else { Duration::from_secs(30) };
    let trial = Trial::with(builder().hosts(8));
    let hosts = trial.bed.hosts();
    let (victim, rest) = hosts.split_last().unwrap();
    settled_view(&trial);
    let members = trial.bed.host(0).members().unwrap();
    let began = mark(hosts);
    for host in hosts {
        let (host, network) = (host.number(), "front".to_owned());
        trial.bed.inject(Fault::Loss { host, network, percent: 20, direction: Direction::FromHost }).unwrap();
    }
    trial.bed.inject(one_way(2, 3, "back")).unwrap();
    // A small generator with a fixed start, so that a failure can be repeated.
    let mut state = 20_261_122_u64;
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % bound
    };
    let start = Instant::now();
    while start.elapsed() < length {
        let paused = trial.bed.host(random(hosts.len()));
        paused.signal_agent(Signal::STOP).unwrap();
        trial.let_pass(Duration::from_secs(2));
        paused.signal_agent(Signal::CONT).unwrap();
        for host in hosts {
            let seen = trial.wait("an answer", || host.members().ok());
            assert_eq!(seen, members, "{} counts others after a pause of {}", host.name(), paused.name());
        }
    }
    for host in hosts {
        let removed = began.happenings(host).into_iter().filter(|happening| happening.what == "removed");
        let removed: Vec<String> = removed.map(|happening| format!("{:?}", happening.node)).collect();
        assert_eq!(removed, [] as [String; 0], "on {}", host.name());
        println!("{} told {:?}", host.name(), began.told(host));
    }
    let killing = mark(rest);
    victim.kill_agent().unwrap();
    trial.wait_told(&killing, rest, &[&format!("process-crashed {}", victim.name())]);
    for host in rest {
        trial.wait("its removal", || (host.members().ok()?.len() == members.len() - 1).then_some(()));
    }
}
