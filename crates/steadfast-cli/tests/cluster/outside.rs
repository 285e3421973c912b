//! Parties outside the cluster that speak the four steps themselves, on real agents: a peer in Python that is killed at each
//! step, what a mode `strict` waits for, and what is refused.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use serde_json::{Value, json};
use steadfast_cli::api::client::{Client, segment};
use steadfast_cli::api::episode_types::Instance;
use steadfast_cli::bed::Host;
use steadfast_cli::failure::Failure;

use super::support::{Trial, builder};

const PYTHON: &str = "/usr/bin/python3";

/// Bills each reading to the meter that sent it.
const HOME: &str = r#"
import json, sys
told = json.load(sys.stdin)
event = told["event"]
state = told["state"] or {"count": 0, "kwh": 0, "resets": 0}
out = {"state": state, "wait": {"any": [{"kind": "reading"}, {"kind": "peer.reset"}]}}
if event["kind"] == "reading":
    reading = event["payload"]
    state["count"] += 1
    state["kwh"] += reading["kwh"]
    to = event["source"] or reading["to"]
    out["messages"] = [{"to": to, "kind": "bill", "payload": reading["number"]}]
elif event["kind"] == "peer.reset":
    state["resets"] += 1
print(json.dumps(out))
"#;

/// The meter of the examples, which kills itself with SIGKILL at the moment that it is told.
const CRASHING: &str = r#"
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import meter

class Crashing(meter.Meter):
    def step(self, verb, step):
        if f"{verb} {step}" == os.environ.get("DIE_AT"):
            os.kill(os.getpid(), signal.SIGKILL)

meter.main(Crashing)
"#;

/// Every moment of an exchange at the peer: of one that it sends, then of one that it is sent.
const MOMENTS: [&str; 13] = [
    "recorded message",
    "said message",
    "heard ack",
    "took ack",
    "said confirm",
    "heard confirm-ack",
    "took confirm-ack",
    "heard message",
    "took message",
    "said ack",
    "heard confirm",
    "took confirm",
    "said confirm-ack",
];

fn deploy_home(trial: &Trial) {
    let path = trial.bed.base().join("home.py");
    std::fs::write(&path, HOME).unwrap();
    let path = path.display().to_string();
    trial.bed.host(0).steadfast_text(&["episode", "deploy", "home", "--command", PYTHON, &path]).unwrap();
}

fn show(host: &Host, name: &str) -> Instance {
    host.steadfast_as(&["-o", "json", "episode", "show", name]).unwrap()
}

fn state(instance: &Instance) -> Value {
    serde_json::from_str(instance.state.get()).unwrap()
}

/// A meter of the examples with its memory.
struct Meter<'a> {
    trial: &'a Trial,
    memory: PathBuf,
}

impl Meter<'_> {
    /// Lets it run against this node until it dies at that moment, or has so many bills.
    fn run(&self, host: &Host, die_at: Option<&str>, readings: u64) -> (ExitStatus, String) {
        let program = self.trial.bed.base().join("crashing.py");
        std::fs::write(&program, CRASHING).unwrap();
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/episodes");
        let mut command = Command::new(PYTHON);
        command.arg("-B").arg(program).arg(examples);
        command.args(["--api", &format!("unix:{}", host.socket().display()), "--name", "meter-1"]);
        command.arg("--file").arg(&self.memory).args(["--to", "home/1"]);
        command.args(["--readings", &readings.to_string()]);
        if let Some(moment) = die_at {
            command.env("DIE_AT", moment);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = host.spawn(&mut command).unwrap().wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
        (output.status, said)
    }

    fn memory(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(&self.memory).unwrap()).unwrap()
    }

    /// Nothing of any message is left over here.
    fn assert_empty(&self) {
        let memory = self.memory();
        for (field, part) in [("out", "entries"), ("in", "above")] {
            for (name, stream) in memory[field].as_object().unwrap() {
                assert_eq!(stream[part], json!({}), "{field} {name}: {memory}");
            }
        }
    }
}

#[test]
fn a_peer_that_is_killed_at_each_step_takes_part_exactly_once() {
    let trial = Trial::with(builder());
    deploy_home(&trial);
    let meter = Meter { trial: &trial, memory: trial.bed.base().join("meter-1.json") };
    for (at, moment) in MOMENTS.iter().enumerate() {
        // Each time at another node; now and then that node's agent is killed too.
        let host = trial.bed.host(at % 3);
        let (status, said) = meter.run(host, Some(moment), 1_000);
        assert_eq!(status.signal(), Some(9), "at {moment:?}: {status} {said}");
        if at % 4 == 3 {
            host.kill_agent().unwrap();
            host.start_agent().unwrap();
            host.wait_ready().unwrap();
        }
    }
    let readings = meter.memory()["state"]["taken"].as_u64().unwrap() + 2;
    let (status, said) = meter.run(trial.bed.host(0), None, readings);
    assert!(status.success(), "{said}");
    let bills: Vec<u64> = (1..=readings).collect();
    assert_eq!(meter.memory()["state"]["bills"], json!(bills), "each reading is billed once");
    meter.assert_empty();
    // The instance hears the last confirm-ack after the peer has said it.
    let home = trial.wait("the instance to be quiet", || {
        let home = show(trial.bed.host(1), "home/1");
        home.is_quiet.then_some(home)
    });
    let kwh: u64 = (1..=readings).map(|number| 100 + number).sum();
    assert_eq!(state(&home), json!({"count": readings, "kwh": kwh, "resets": 0}));
    assert!(home.outboxes.is_empty() && home.peers.iter().all(|peer| peer.remembered == 0), "{home:?}");

    // A peer that loses its memory is another life: the instance is told, and takes its messages from 1 on.
    std::fs::remove_file(&meter.memory).unwrap();
    let (status, said) = meter.run(trial.bed.host(2), None, 2);
    assert!(status.success(), "{said}");
    trial.wait("the instance to be told", || {
        let home = show(trial.bed.host(0), "home/1");
        let expected = json!({"count": readings + 2, "kwh": kwh + 203, "resets": 1});
        (home.is_quiet && state(&home) == expected).then_some(())
    });
    meter.assert_empty();
}

/// A party whose every word the test says itself.
struct Party {
    client: Client,
    path: String,
}

impl Party {
    fn new(host: &Host, name: &str) -> Party {
        Party { client: Client::new(host.socket()), path: format!("/v1/exchange/{}", segment(name)) }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    /// What is said to it.
    fn hear(&self) -> Vec<Value> {
        let heard: Value = Party::block_on(self.client.get(&format!("{}?wait=20", self.path))).unwrap();
        heard["words"].as_array().unwrap().clone()
    }

    fn try_say(&self, words: &Value) -> Result<Vec<Value>, Failure> {
        let said = json!({"words": words});
        let heard: Value = Party::block_on(self.client.post(&self.path, &said))?;
        Ok(heard["words"].as_array().unwrap().clone())
    }

    fn say(&self, word: Value) -> Vec<Value> {
        self.try_say(&json!([word])).unwrap()
    }
}

/// The word of that step, with the fields that name its message.
fn answer(step: &str, word: &Value) -> Value {
    json!({"step": step, "from": word["from"], "epoch": word["epoch"], "to": word["to"], "seq": word["seq"]})
}

#[test]
fn a_matching_event_before_the_last_confirm_ack_begins_no_episode_and_show_says_why() {
    let trial = Trial::with(builder());
    deploy_home(&trial);
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    let party = Party::new(beta, "desk");
    let reading = |number: u64| json!({"number": number, "kwh": 1, "to": "outside/desk"}).to_string();
    let send = |number: u64| {
        alpha.steadfast_text(&["episode", "send", "home/7", "reading", &reading(number)]).unwrap()
    };
    // The message of a party begins it; its own first event bills nothing to the desk.
    let first = json!({
        "step": "message", "from": "outside/desk", "epoch": 1, "to": "home/7", "seq": 1, "kind": "reading",
        "payload": {"number": 1, "kwh": 1}, "begins": true
    });
    let heard = party.say(first.clone());
    assert!(heard.iter().any(|word| word["step"] == "ack" && word["to"] == "home/7"), "{heard:?}");
    assert_eq!(party.say(answer("confirm", &first))[0]["step"], "confirm-ack");

    let bill = trial.wait("the bill", || party.hear().into_iter().find(|word| word["step"] == "message"));
    assert_eq!(
        (&bill["from"], &bill["kind"], &bill["payload"]),
        (&json!("home/7"), &json!("bill"), &json!(1))
    );
    send(2);
    let held = show(gamma, "home/7");
    assert_eq!((held.row.episode, held.row.inbox, held.row.unacked), (1, 1, 1), "{held:?}");
    let said = gamma.steadfast_text(&["episode", "show", "home/7"]).unwrap();
    let why = "begins no episode: 1 message to outside/desk is not acknowledged (mode strict)";
    assert!(said.contains(why), "{said}");

    let mut ack = answer("ack", &bill);
    ack["receiver_epoch"] = json!(1);
    let heard = party.say(ack);
    assert!(heard.contains(&answer("confirm", &bill)), "{heard:?}");
    send(3);
    let held = show(gamma, "home/7");
    assert_eq!((held.row.episode, held.row.inbox, held.row.unconfirmed), (1, 2, 1), "{held:?}");
    let said = gamma.steadfast_text(&["episode", "show", "home/7"]).unwrap();
    let why =
        "begins no episode: 1 message to outside/desk is acknowledged and not confirm-acked (mode strict)";
    assert!(said.contains(why) && said.contains("2 events that it does not wait for now"), "{said}");
    assert!(said.contains("is confirming 1 message to outside/desk"), "{said}");

    party.say(answer("confirm-ack", &bill));
    trial.wait("the next episode", || (show(gamma, "home/7").row.episode == 2).then_some(()));
    let next = trial.wait("its bill", || party.hear().into_iter().find(|word| word["step"] == "message"));
    assert_eq!((&next["payload"], &next["seq"]), (&json!(2), &json!(2)));
}

#[test]
fn what_a_party_can_not_say_is_refused_and_changes_nothing() {
    let trial = Trial::with(builder().hosts(2));
    let [alpha, beta, ..] = trial.bed.hosts() else { panic!("a bed of two") };
    let party = Party::new(alpha, "desk");
    let word = |to: &str| json!({"step": "message", "from": "outside/desk", "epoch": 1, "to": to, "seq": 1, "kind": "reading", "payload": 1});
    let refused = |words: Value| party.try_say(&words).unwrap_err().to_string();
    assert!(refused(json!([word("home/1")])).contains("no program home is deployed"));
    deploy_home(&trial);
    // Whom nobody begins.
    for party in [&party, &Party::new(beta, "desk")] {
        let heard = party.say(word("home/1"));
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert_eq!(heard[0]["step"], "refused");
        assert!(heard[0]["why"].as_str().unwrap().contains("there is no such instance"), "{heard:?}");
    }
    // All of it or nothing.
    let other = json!({"step": "message", "from": "outside/other", "epoch": 1, "to": "home/1", "seq": 1, "kind": "x"});
    let mut begins = word("home/1");
    begins["begins"] = json!(true);
    assert!(refused(json!([begins, other])).contains("words[1]: from: outside/other is not outside/desk"));
    assert!(!alpha.steadfast_raw(&["episode", "show", "home/1"]).unwrap().success());
    let many: Vec<Value> = (0..257).map(|_| word("home/1")).collect();
    assert!(refused(json!(many)).contains("256 are possible"));
    assert!(refused(json!([{"step": "message"}])).contains("missing field"));
    assert!(Party::new(alpha, "a b").try_say(&json!([])).unwrap_err().to_string().contains("blanks"));
    let late: Result<Value, Failure> = Party::block_on(party.client.get(&format!("{}?wait=61", party.path)));
    assert!(late.unwrap_err().to_string().contains("60 seconds"));
    let nothing: Value = Party::block_on(party.client.get(&format!("{}?wait=0", party.path))).unwrap();
    assert_eq!(nothing, json!({"words": []}));
}
