//! Durable programs on real agents (PROTOCOLS 2): deployed once and known everywhere, asked on any node, refused with one
//! sentence, mended by a person, and exactly once through kill -9.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use steadfast_cli::api::episode_types::{Instance, InstanceList, PastEpisode, Program};
use steadfast_cli::bed::Host;

use super::support::{BINARY, Trial, builder};

pub(super) const PYTHON: &str = "/usr/bin/python3";

/// An account: what is passed on goes round the accounts, one less at each, until it has gone far enough.
pub(super) const ACCOUNT: &str = r#"
import json, sys
told = json.load(sys.stdin)
event, state = told["event"], told["state"]
kind, said = event["kind"], event["payload"]
out = {"wait": {"any": [{"kind": "pass"}, {"kind": "deposit"}, {"kind": "balance"}]}, "messages": []}
if kind == "start":
    state = {"balance": 1000, "deposits": 0, "next": said["next"]}
elif kind == "balance":
    out["answer"] = state
else:
    if kind == "deposit":
        state["balance"] += said["amount"]
        state["deposits"] += 1
    if said["hops"] > 0:
        state["balance"] -= said["amount"]
        passed = {"amount": said["amount"], "hops": said["hops"] - 1}
        out["messages"] = [{"to": state["next"], "kind": "deposit", "payload": passed}]
    out["answer"] = state["balance"]
out["state"] = state
print(json.dumps(out))
"#;

/// Fails as the file beside it says, softly or for good, until it says that all is well.
const MOODY: &str = r#"
import json, pathlib, sys
told = json.load(sys.stdin)
mood = pathlib.Path(sys.argv[1]).read_text().strip()
if mood == "crash":
    sys.exit("the printer is out of paper")
if mood == "hard":
    print(json.dumps({"fail": "the account is closed", "lasting": True}))
else:
    print(json.dumps({"state": told["event"]["payload"], "end": {"seen": told["event"]["payload"]}}))
"#;

pub(super) fn script(trial: &Trial, name: &str, text: &str) -> PathBuf {
    let path = trial.bed.base().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

pub(super) fn deploy_account(trial: &Trial, host: &Host) -> Program {
    let path = script(trial, "account.py", ACCOUNT).display().to_string();
    host.steadfast_as(&["-o", "json", "episode", "deploy", "account", "--command", PYTHON, &path]).unwrap()
}

pub(super) fn show(host: &Host, name: &str) -> Instance {
    host.steadfast_as(&["-o", "json", "episode", "show", name]).unwrap()
}

/// What a refused command says, with its status.
pub(super) fn refused(host: &Host, arguments: &[&str], status: i32, words: &[&str]) {
    let finished = host.steadfast_raw(arguments).unwrap();
    assert_eq!(finished.status, Some(status), "{arguments:?}: {}{}", finished.stdout, finished.stderr);
    for word in words {
        assert!(finished.stderr.contains(word), "{arguments:?}: {}", finished.stderr);
    }
}

#[test]
fn a_program_runs_on_one_node() {
    let trial = Trial::with(builder().hosts(1));
    let alpha = trial.bed.host(0);
    assert!(!alpha.data().join("episodes").exists(), "who has no programs pays nothing");
    assert_eq!(deploy_account(&trial, alpha).current, 1);
    let started =
        alpha.steadfast_raw(&["episode", "start", "account/1", "{\"next\": \"account/2\"}"]).unwrap();
    assert!(started.success(), "{}", started.stderr);
    let answer = alpha.steadfast_text(&["episode", "send", "account/1", "balance", "--wait"]).unwrap();
    assert_eq!(answer.trim(), r#"{"balance": 1000, "deposits": 0, "next": "account/2"}"#);
    let shown = alpha.steadfast_text(&["episode", "show", "account/1"]).unwrap();
    assert!(shown.contains("waits for an event \"pass\", or an event \"deposit\""), "{shown}");
    assert!(shown.contains("is quiet"), "{shown}");
}

#[test]
fn every_node_answers_for_every_instance() {
    let trial = Trial::with(builder());
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    let deployed = deploy_account(&trial, alpha);
    assert_eq!((deployed.current, deployed.unaware.as_slice()), (1, [].as_slice()), "all know it");
    for number in 0..9 {
        let name = format!("account/{number}");
        let next = format!("{{\"next\": \"account/{}\"}}", (number + 1) % 9);
        beta.steadfast_text(&["episode", "start", &name, &next]).unwrap();
    }
    let list: InstanceList = gamma.steadfast_as(&["-o", "json", "episode", "list"]).unwrap();
    assert_eq!((list.instances.len(), list.silent.len(), &list.next), (9, 0, &None));
    let nodes: BTreeSet<&str> = list.instances.iter().map(|row| row.node.as_str()).collect();
    assert_eq!(nodes.len(), 3, "each node keeps some: {list:?}");
    let page: InstanceList = gamma
        .steadfast_as(&["-o", "json", "episode", "list", "account", "--limit", "4", "--after", "account/1"])
        .unwrap();
    let names: Vec<&str> = page.instances.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["account/2", "account/3", "account/4", "account/5"]);
    assert_eq!(page.next.as_deref(), Some("account/5"));
    let parked: InstanceList =
        gamma.steadfast_as(&["-o", "json", "episode", "list", "--doing", "parked"]).unwrap();
    assert!(parked.instances.is_empty());

    // Round the ring, over all nodes, and asked on one that keeps none of it.
    let pass = ["episode", "send", "account/0", "pass", "{\"amount\": 7, \"hops\": 9}", "--wait"];
    assert_eq!(gamma.steadfast_text(&pass).unwrap().trim(), "993");
    trial.wait("the money to come back", || {
        let ask = ["episode", "send", "account/0", "balance", "--wait"];
        alpha.steadfast_text(&ask).unwrap().contains("\"balance\": 1000").then_some(())
    });
    wait_quiet(&trial, 9);
    let history: Vec<PastEpisode> =
        beta.steadfast_as(&["-o", "json", "episode", "history", "account/1"]).unwrap();
    let kinds: Vec<(&str, u32)> = history.iter().map(|past| (past.kind.as_str(), past.sent)).collect();
    assert_eq!(kinds, [("start", 0), ("deposit", 1)]);
    assert_eq!(history.last().unwrap().source.as_deref(), Some("account/0"));
}

#[test]
fn a_repeated_request_is_one_and_what_can_not_be_is_refused() {
    let trial = Trial::with(builder().hosts(2));
    let [alpha, beta, ..] = trial.bed.hosts() else { panic!("a bed of two") };
    refused(alpha, &["episode", "start", "account/1"], 3, &["SF-0059", "account"]);
    deploy_account(&trial, alpha);
    let start = ["episode", "start", "account/1", "{\"next\": \"account/2\"}"];
    for host in [alpha, beta] {
        host.steadfast_text(&[start.as_slice(), &["--key", "once"]].concat()).unwrap();
    }
    refused(beta, &start, 5, &["SF-0060", "account/1"]);
    let pass = ["episode", "send", "account/1", "deposit", "{\"amount\": 5, \"hops\": 0}"];
    for host in [alpha, beta, alpha] {
        let answer = host.steadfast_text(&[pass.as_slice(), &["--key", "five", "--wait"]].concat()).unwrap();
        assert_eq!(answer.trim(), "1005", "it takes effect once");
    }
    let other = ["episode", "send", "account/1", "deposit", "{\"amount\": 6, \"hops\": 0}", "--key", "five"];
    refused(beta, &other, 5, &["SF-0061", "five"]);
    refused(alpha, &["episode", "show", "account/none"], 3, &["SF-0058", "account/none"]);
    refused(beta, &["episode", "send", "account/none", "x"], 3, &["SF-0058"]);
    refused(alpha, &["episode", "start", "acount/1"], 3, &["SF-0059", "did you mean \"account\"?"]);
    refused(alpha, &["episode", "migrate", "account/1", "--to", "9"], 3, &["SF-0059", "version 9"]);
    refused(alpha, &["episode", "start", "Account/1"], 2, &["SF-0065"]);
    refused(alpha, &["episode", "start", "account/3", "{oops"], 2, &["SF-0031", "JSON"]);
    refused(alpha, &["episode", "list", "--doing", "sleeping"], 2, &["SF-0031", "waiting"]);
    refused(
        alpha,
        &["episode", "deploy", "x", "--command", "/no/such/program"],
        2,
        &["SF-0063", "/no/such/program"],
    );
    refused(alpha, &["episode", "deploy", "x", "--http", "nonsense"], 2, &["SF-0063", "nonsense"]);
    refused(alpha, &["episode", "deploy", "effect", "--command", PYTHON], 2, &["SF-0065"]);
    refused(alpha, &["episode", "deploy", "account", "--version", "1", "--command", PYTHON], 5, &["SF-0064"]);
    let programs: Vec<Program> = beta.steadfast_as(&["-o", "json", "episode", "deploy"]).unwrap();
    assert_eq!(programs.len(), 1, "what was refused is not there: {programs:?}");
}

#[test]
fn a_program_that_fails_waits_for_a_person_and_goes_on() {
    let trial = Trial::with(builder().hosts(1));
    let alpha = trial.bed.host(0);
    let mood = script(&trial, "mood", "crash").display().to_string();
    let path = script(&trial, "moody.py", MOODY).display().to_string();
    alpha.steadfast_text(&["episode", "deploy", "moody", "--command", PYTHON, &path, &mood]).unwrap();
    alpha.steadfast_text(&["episode", "start", "moody/1", "[1, 2]"]).unwrap();
    trial.wait("it to be tried again", || {
        let stopped = show(alpha, "moody/1").stopped?;
        (stopped.attempts >= 2 && stopped.why.contains("out of paper")).then_some(())
    });
    script(&trial, "mood", "hard");
    trial.wait("it to be parked", || (show(alpha, "moody/1").row.doing == "parked").then_some(()));
    let shown = alpha.steadfast_text(&["episode", "show", "moody/1"]).unwrap();
    assert!(shown.contains("is parked after") && shown.contains("the account is closed"), "{shown}");
    script(&trial, "mood", "well");
    alpha.steadfast_text(&["episode", "retry", "moody/1"]).unwrap();
    trial.wait("it to end", || (show(alpha, "moody/1").row.doing == "ended").then_some(()));
    let ended = show(alpha, "moody/1");
    assert_eq!(ended.answer.unwrap().get(), r#"{"seen": [1, 2]}"#);
    refused(alpha, &["episode", "send", "moody/1", "more"], 5, &["SF-0060", "ended"]);

    // Paused by a person: nothing begins until somebody says so.
    alpha.steadfast_text(&["episode", "start", "moody/2", "0"]).unwrap();
    trial.wait("it to end", || (show(alpha, "moody/2").row.doing == "ended").then_some(()));
    deploy_account(&trial, alpha);
    alpha.steadfast_text(&["episode", "start", "account/1", "{\"next\": \"account/2\"}"]).unwrap();
    alpha.steadfast_text(&["episode", "pause", "account/1"]).unwrap();
    alpha
        .steadfast_text(&["episode", "send", "account/1", "deposit", "{\"amount\": 1, \"hops\": 0}"])
        .unwrap();
    assert_eq!(show(alpha, "account/1").row.doing, "paused");
    alpha.steadfast_text(&["episode", "retry", "account/1"]).unwrap();
    let answer = alpha.steadfast_text(&["episode", "send", "account/1", "balance", "--wait"]).unwrap();
    assert!(answer.contains("\"balance\": 1001"), "{answer}");
    alpha.steadfast_text(&["episode", "cancel", "account/1"]).unwrap();
    trial.wait("it to be cancelled", || (show(alpha, "account/1").row.doing == "cancelled").then_some(()));
}

/// All balances together, and how many deposits there were.
pub(super) fn totals(host: &Host, accounts: u64) -> Option<(u64, u64)> {
    (0..accounts).try_fold((0, 0), |(balance, deposits), number| {
        let name = format!("account/{number}");
        let shown = host.steadfast_as::<Instance>(&["-o", "json", "episode", "show", &name]).ok()?;
        let state: serde_json::Value = serde_json::from_str(shown.state.get()).ok()?;
        Some((balance + state["balance"].as_u64()?, deposits + state["deposits"].as_u64()?))
    })
}

/// Waits until nothing is remembered of any message, anywhere.
pub(super) fn wait_quiet(trial: &Trial, accounts: u64) {
    let host = trial.bed.host(0);
    for number in 0..accounts {
        let name = format!("account/{number}");
        trial.wait(&format!("{name} to be quiet"), || {
            let shown = host.steadfast_text(&["episode", "show", &name]).ok()?;
            shown.contains("is quiet: every exchange is finished").then_some(())
        });
    }
}

/// The guide, whose programs and commands are those that people are told to use.
const GUIDE: &str = include_str!("../../../../docs/guides/episodes.md");

/// The text of each fenced block of one language.
fn blocks(language: &str) -> Vec<&'static str> {
    let open = format!("```{language}\n");
    GUIDE.split(open.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn the_guide_builds_an_order_that_is_paid_for_and_shipped() {
    let trial = Trial::with(builder());
    let (rust, python, wat) = (blocks("rust"), blocks("python"), blocks("wat"));
    assert_eq!((rust.len(), python.len(), wat.len()), (1, 1, 1), "the guide has three programs");
    let source = include_str!("../../../steadfast/examples/order.rs");
    let (_, source) = source.split_once("\n\n").unwrap();
    assert_eq!(rust[0], source, "the guide's program is the example, which is built with the tests");
    let order = Path::new(BINARY).with_file_name("examples").join("order");
    assert!(order.exists(), "build it first: cargo build -p steadfast --example order");
    script(&trial, "payment.wat", wat[0]);
    let shipment = script(&trial, "shipment.py", python[0]);
    let mut served = Vec::new();
    for host in trial.bed.hosts() {
        served.push(Served::start(host, Command::new(&order)));
        let mut python = Command::new(PYTHON);
        python.arg(&shipment);
        served.push(Served::start(host, python));
    }
    let lines: Vec<&str> = blocks("console")[0].lines().collect();
    let mut said = String::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(typed) = line.strip_prefix("$ steadfast ") else {
            assert_eq!(said.trim(), *line, "what the guide shows");
            continue;
        };
        // Each on another node.
        let host = trial.bed.host(at % 3);
        let mut command = Command::new("/bin/sh");
        let typed = format!("{} --socket {} {typed}", BINARY, host.socket().display());
        command.arg("-c").arg(typed).current_dir(trial.bed.base());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = host.spawn(&mut command).unwrap().wait_with_output().unwrap();
        said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{line}: {said}{}", String::from_utf8_lossy(&output.stderr));
    }
    let shown = show(trial.bed.host(2), "order/17");
    assert_eq!((shown.row.doing.as_str(), shown.row.episode), ("ended", 3));
    drop(served);
}

/// A program of an end point, as it runs on one host.
pub(crate) struct Served(Child);

impl Served {
    pub(crate) fn start(host: &Host, mut command: Command) -> Served {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Served(host.spawn(&mut command).unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended with its host.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
