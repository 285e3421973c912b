//! Which link, seen from programs: one direction of one pair is cut, and only those who asked for that link hear of it
//! (PROTOCOLS 4.6).

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;

use steadfast_cli::api::client::Client;
use steadfast_cli::api::link_client::LinksOf;
use steadfast_cli::api::link_types::{Link, LinkReport, VerdictReport};
use steadfast_cli::bed::{Fault, Host, host_address};
use steadfast_cli::commands::block_on;

use super::support::{PATIENCE, Trial, builder, drop_incoming, let_in};

/// A program that follows links through its node's API: `steadfast links --watch`, which uses the public stream alone.
struct Follower {
    child: Child,
    reports: Arc<Mutex<Vec<LinkReport>>>,
    reader: Option<JoinHandle<()>>,
}

impl Follower {
    fn start(host: &Host, filter: &[&str]) -> Follower {
        let mut command: Command = host.steadfast_command();
        command.args(["-o", "json", "links", "--watch"]).args(filter);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = host.spawn(&mut command).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reports = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&reports);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Follower { child, reports, reader: Some(reader) }
    }

    /// Every state that it was told of each link, in order, as `peer/network: state`; the peers in general as `peer: state`.
    fn told(&self) -> Vec<String> {
        let reports = self.reports.lock().unwrap();
        let mut told: Vec<(u64, String)> = Vec::new();
        for report in reports.iter() {
            let links = report.links.iter();
            told.extend(links.map(|l| (l.generation, format!("{}/{}: {}", l.peer, l.network, l.state))));
            let peers = report.peers.iter();
            told.extend(peers.map(|peer| (peer.generation, format!("{}: {}", peer.peer, peer.state))));
        }
        told.sort();
        told.into_iter().map(|(_, what)| what).collect()
    }

    fn last(&self) -> Option<String> {
        self.told().pop()
    }

    fn has_begun(&self) -> bool {
        self.reports.lock().unwrap().first().is_some_and(|report| report.whole)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn link(host: &Host, peer: &str, network: &str) -> Option<Link> {
    let arguments = ["-o", "json", "links", "--peer", peer, "--network", network];
    host.steadfast_as::<LinkReport>(&arguments).ok()?.links.pop()
}

fn general(host: &Host, peer: &str) -> Option<String> {
    let report: LinkReport = host.steadfast_as(&["-o", "json", "links", "--peer", peer]).ok()?;
    report.peers.first().map(|general| general.state.clone())
}

/// Drops what comes to `host` from `from` on one network.
fn drop_from(host: &Host, from: &Host, network: usize) {
    let address = host_address(from.number(), network).ip().to_string();
    drop_incoming(host, &format!("ip saddr {address}"));
}

#[test]
fn only_those_who_asked_for_a_link_hear_that_it_goes_one_way() {
    let trial = Trial::with(builder());
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    for (host, peer) in [(alpha, beta), (alpha, gamma), (beta, alpha)] {
        for network in ["front", "back"] {
            trial
                .wait("every link is up", || (link(host, peer.name(), network)?.state == "up").then_some(()));
        }
    }
    let view = alpha.status().unwrap().view;
    let front = ["--peer", beta.name(), "--network", "front"];
    let back = ["--peer", beta.name(), "--network", "back"];
    let in_general = ["--peer", beta.name(), "--network", "general"];
    let to_gamma = ["--peer", gamma.name()];
    let followers =
        [&front[..], &back, &in_general, &to_gamma, &[]].map(|filter| Follower::start(alpha, filter));
    let [of_front, of_back, of_general, of_gamma, of_any] = &followers;
    trial.wait("every follower has its snapshot", || followers.iter().all(Follower::has_begun).then_some(()));
    let [quiet_back, quiet_general, quiet_gamma] = [of_back, of_general, of_gamma].map(Follower::told);

    // One direction of one link of one pair: alpha's words reach beta no more on front.
    drop_from(beta, alpha, 0);
    let one_way = format!("{}/front: one-way", beta.name());
    for follower in [of_front, of_any] {
        trial.wait("who asked hears of it", || follower.told().contains(&one_way).then_some(()));
    }
    trial.wait("the other end says one-way too", || {
        (link(beta, alpha.name(), "front")?.state == "one-way").then_some(())
    });
    let (here, there) =
        (link(alpha, beta.name(), "front").unwrap(), link(beta, alpha.name(), "front").unwrap());
    assert_eq!((here.heard, here.hears), (Some(true), Some(false)), "alpha hears and is not heard");
    assert_eq!((there.heard, there.hears), (Some(false), Some(true)), "beta is heard and does not hear");
    assert_eq!(general(alpha, beta.name()).as_deref(), Some("up"), "the second network carries");
    let compared = alpha.steadfast_text(&["links", "compare", beta.name()]).unwrap();
    let means = format!("carries from {} to {} only", beta.name(), alpha.name());
    assert!(compared.contains(&means) && compared.contains("carries both ways"), "{compared}");
    trial.wait("a verdict that names the link", || {
        let first = gamma.steadfast_text(&["status"]).ok()?.lines().next()?.to_owned();
        (first.starts_with("verdict   link cut: ") && first.contains(" on front")).then_some(())
    });
    let matrix = gamma.steadfast_text(&["links", "--all"]).unwrap();
    assert!(matrix.contains("one-way: hears not") && matrix.contains("one-way: not heard"), "{matrix}");

    // Those who did not ask for it: told nothing but what they were, unless a figure moved.
    assert_eq!(changed_states(&quiet_back, of_back), [] as [String; 0]);
    assert_eq!(changed_states(&quiet_general, of_general), [] as [String; 0]);
    assert_eq!(changed_states(&quiet_gamma, of_gamma), [] as [String; 0]);

    // The second link as well: the peer in general is down, for alpha and beta, and nobody else.
    let (first, second) = (alpha.number(), beta.number());
    trial.bed.inject(Fault::Pair { first, second, network: "back".into() }).unwrap();
    let down = format!("{}: down", beta.name());
    trial.wait("in general it is down", || (of_general.last()? == down).then_some(()));
    assert_eq!(changed_states(&quiet_gamma, of_gamma), [] as [String; 0]);

    let_in(beta);
    trial.bed.heal_all().unwrap();
    let up = format!("{}: up", beta.name());
    trial.wait("in general it is up again", || (of_general.last()? == up).then_some(()));
    trial.wait("and so is the link", || (link(alpha, beta.name(), "front")?.state == "up").then_some(()));
    trial.wait("no verdict holds any more", || {
        let report: VerdictReport = {
            let status = gamma.steadfast(&["-o", "json", "status"]).ok()?;
            let verdicts = serde_json::from_value(status["verdicts"].clone()).ok()?;
            VerdictReport { node: String::new(), generation: 0, whole: true, verdicts }
        };
        report.verdicts.is_empty().then_some(())
    });
    assert_eq!(alpha.status().unwrap().view.id, view.id, "a link that fails removes nobody");
}

/// What a follower was told since, leaving out links that are told again because a figure moved.
fn changed_states(before: &[String], follower: &Follower) -> Vec<String> {
    let told = follower.told();
    told.into_iter().filter(|what| !before.contains(what)).collect()
}

#[test]
fn a_reader_that_stalls_ends_with_the_right_state() {
    let trial = Trial::with(builder().hosts(2));
    let [alpha, beta] = trial.bed.hosts() else { panic!("a bed of two") };
    trial.wait("the link is up", || (link(alpha, beta.name(), "front")?.state == "up").then_some(()));
    let follower = Follower::start(alpha, &["--network", "front", "--peer", beta.name()]);
    trial.wait("its snapshot", || follower.has_begun().then_some(()));
    let stalled = follower.child.id();
    alpha.signal(&[stalled], Signal::STOP).unwrap();
    for _ in 0..3 {
        drop_from(beta, alpha, 0);
        trial.wait("one-way", || (link(alpha, beta.name(), "front")?.state == "one-way").then_some(()));
        let_in(beta);
        trial.wait("up again", || (link(alpha, beta.name(), "front")?.state == "up").then_some(()));
    }
    drop_from(beta, alpha, 0);
    trial.wait("one-way", || (link(alpha, beta.name(), "front")?.state == "one-way").then_some(()));
    alpha.signal(&[stalled], Signal::CONT).unwrap();
    let one_way = format!("{}/front: one-way", beta.name());
    trial.wait("the last state, after all", || (follower.last()? == one_way).then_some(()));
}

#[test]
fn a_long_poll_is_answered_by_the_change_and_by_nothing_before_it() {
    let trial = Trial::with(builder().hosts(2));
    let [alpha, beta] = trial.bed.hosts() else { panic!("a bed of two") };
    trial.wait("the link is up", || (link(alpha, beta.name(), "front")?.state == "up").then_some(()));
    let client = Client::new(alpha.socket());
    let wanted = LinksOf {
        peer: Some(beta.name().to_owned()),
        network: Some("front".to_owned()),
        changes: Some("state".to_owned()),
        ..LinksOf::default()
    };
    let before = block_on(client.links(&wanted)).unwrap().unwrap();
    assert!(before.whole && before.links.len() == 1, "{before:?}");
    let nothing = block_on(client.links_since(&wanted, before.generation, Duration::from_millis(300)));
    let nothing = nothing.unwrap().unwrap();
    assert!(!nothing.whole && nothing.is_empty(), "{nothing:?}");
    let poll = std::thread::spawn({
        let (client, wanted) = (client.clone(), wanted.clone());
        move || block_on(client.links_since(&wanted, nothing.generation, PATIENCE)).unwrap()
    });
    drop_from(beta, alpha, 0);
    let report = poll.join().unwrap().unwrap();
    assert!(!report.whole && report.generation > before.generation, "{report:?}");
    assert_eq!(report.links[0].state, "one-way");
    // The same of another node, through this one.
    let of_beta = LinksOf { node: Some(beta.name().to_owned()), peer: None, ..wanted };
    let there = block_on(client.links(&of_beta)).unwrap().unwrap();
    assert_eq!((there.node.as_str(), there.links[0].peer.as_str()), (beta.name(), alpha.name()));
}
