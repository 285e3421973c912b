//! The socket inside a container: its program hears of itself wherever it runs, and of nobody else.

use serde_json::Value;
use steadfast_cli::api::types::Container;
use steadfast_cli::bed::Host;
use steadfast_cli::events::cloud::CloudEvent;

use super::support::{BINARY, COUNTER, Trial, builder};

/// Follows what concerns it, as any program would: connects again where it was cut off, and goes on after the last event
/// that it had. Each event is a line of its output.
const FOLLOWER: &str = r#"
import os, socket, time
last = None
while True:
    try:
        own = socket.socket(socket.AF_UNIX)
        own.connect(os.environ["STEADFAST_SOCKET"])
        resume = f"Last-Event-ID: {last}\r\n" if last else ""
        own.sendall(f"GET /v1/events HTTP/1.1\r\nHost: own\r\n{resume}\r\n".encode())
        for line in own.makefile("rb"):
            line = line.decode().strip()
            if line.startswith("HTTP/"):
                print("connected", line.split()[1], flush=True)
            elif line.startswith("id:"):
                place = line[3:].strip()
            elif line.startswith("data:"):
                last = place
                print(line[5:].strip(), flush=True)
    except OSError:
        pass
    time.sleep(0.02)
"#;

/// Asks its own socket once: METHOD PATH [BODY]. Prints the status and what was answered.
const ASK: &str = r#"
import http.client, os, socket, sys
class Own(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["STEADFAST_SOCKET"])
own = Own("own")
own.request(sys.argv[1], sys.argv[2], *sys.argv[3:])
answer = own.getresponse()
print(answer.status, answer.read().decode())
"#;

const NAME: &str = "follower";

/// The follower's output, as some host has it.
fn lines(trial: &Trial) -> Vec<String> {
    let text = trial.some_host().steadfast_text(&["logs", NAME]).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn connected(trial: &Trial) -> usize {
    lines(trial).iter().filter(|line| *line == "connected 200").count()
}

/// What it heard.
fn heard(trial: &Trial) -> Vec<CloudEvent> {
    lines(trial).iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn wait_heard(trial: &Trial, kind: &str) -> CloudEvent {
    trial.wait(&format!("{kind} to be heard inside"), || {
        heard(trial).into_iter().find(|event| event.short_type() == kind)
    })
}

/// What its own socket answers to a program inside: the status, and the body.
fn ask(trial: &Trial, words: &[&str]) -> (u16, Value) {
    let all = [&["exec", NAME, "--", "/usr/bin/python3", "-c", ASK], words].concat();
    // A connection is refused while a checkpoint is taken.
    let text = trial.wait("an answer of its own socket", || trial.some_host().steadfast_text(&all).ok());
    let (status, body) = text.trim().split_once(' ').unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap())
}

fn start(trial: &Trial, host: &Host) {
    #[rustfmt::skip]
    let run = [
        "run", "--name", NAME, "--node", host.name(), "--every", "never", "--", "/usr/bin/python3", "-c", FOLLOWER,
    ];
    host.steadfast_text(&run).unwrap();
    trial.wait("the follower to be connected", || (connected(trial) == 1).then_some(()));
}

#[test]
fn a_program_inside_hears_of_itself_wherever_it_runs_and_of_nobody_else() {
    let trial = Trial::with(builder());
    let [alpha, beta, _] = trial.bed.hosts() else { panic!("a bed of three") };
    start(&trial, beta);
    trial.start_counter(1);

    // Words of users reach the container that they name, from any node, and no other.
    let said = |host: &Host, words: &[&str]| {
        host.steadfast_text(&[&["events", "emit"], words].concat()).unwrap();
    };
    said(alpha, &["user.other", "container=counter"]);
    said(alpha, &["user.nobody"]);
    trial.checkpoint();
    trial.wait("the word for it to be heard inside", || {
        said(alpha, &["user.word", "container=follower"]);
        heard(&trial).into_iter().find(|event| event.short_type() == "user.word")
    });
    // What it says itself is heard everywhere, in its name.
    let emit = ["exec", NAME, "--", BINARY, "events", "emit", "user.step", "done=7"];
    alpha.steadfast_text(&emit).unwrap();
    let step = wait_heard(&trial, "user.step");
    assert_eq!((&step.data["container"], &step.data["done"]), (&NAME.into(), &7.into()), "{step:?}");
    trial.wait("its word to be kept on its node", || {
        let told = beta.steadfast_text(&["events", "--since", "1h", "--filter", "type=user.step"]).ok()?;
        told.contains("container=follower").then_some(())
    });

    // Its agent dies: the container lives, and the next agent answers in its stead.
    beta.kill_agent().unwrap();
    beta.start_agent().unwrap();
    beta.wait_ready().unwrap();
    trial.wait("the follower to be connected again", || (connected(&trial) >= 2).then_some(()));

    // It is connected when it is imaged, and goes on where it was.
    let before = connected(&trial);
    let number = trial.wait("a checkpoint", || {
        let taken = alpha.steadfast(&["checkpoint", NAME, "-o", "json"]).ok()?;
        taken["number"].as_u64()
    });
    let committed = wait_heard(&trial, "checkpoint.committed");
    assert_eq!(committed.data["checkpoint"], number.to_string(), "{committed:?}");
    assert!(connected(&trial) > before, "it was cut off, and connected again");
    let others = |event: &CloudEvent| {
        event.data.get("container").is_some_and(|name| name != NAME)
            || ["user.other", "user.nobody"].contains(&event.short_type())
    };
    assert!(!heard(&trial).iter().any(&others), "{:?}", heard(&trial));

    beta.power_off().unwrap();
    let restored = wait_heard(&trial, "container.restored");
    assert_eq!((&restored.data["container"], &restored.data["from"]), (&NAME.into(), &"beta".into()));
    trial.wait("the other one to be restored", || (trial.counter().state == "running").then_some(()));
    assert!(!heard(&trial).iter().any(others), "{:?}", heard(&trial));
    let (_, own) = ask(&trial, &["GET", "/v1/containers"]);
    assert_eq!((own[0]["name"].as_str(), own[0]["epoch"].as_u64()), (Some(NAME), Some(2)), "{own}");
    assert_ne!(own[0]["node"], "beta");
    // Nobody had asked for this container's events on alpha: what is kept is found all the same.
    let filter = "type=container.restored and container=follower";
    let later = alpha.steadfast_text(&["events", "--since", "1h", "--filter", filter]).unwrap();
    assert!(later.contains("container=follower"), "{later}");
}

#[test]
fn a_program_inside_sees_itself_and_its_links_and_can_not_operate() {
    let trial = Trial::with(builder());
    let [_, beta, _] = trial.bed.hosts() else { panic!("a bed of three") };
    start(&trial, beta);
    trial.start_counter(1);

    // The command line works inside, on what there is.
    let text = trial.some_host().steadfast_text(&["exec", NAME, "--", BINARY, "-o", "json", "ps"]).unwrap();
    let seen: Vec<Container> = serde_json::from_str(&text).unwrap();
    assert!(matches!(seen.as_slice(), [own] if own.name == NAME && own.node == "beta"), "{text}");
    let (status, links) = ask(&trial, &["GET", "/v1/links?wait=1s"]);
    assert_eq!((status, &links["node"]), (200, &"beta".into()), "{links}");
    assert!(links["links"].as_array().is_some_and(|links| links.len() == 4), "{links}");

    let state = trial.lasting_state();
    let refused = [
        ("POST", "/v1/containers/counter/stop", "{}"),
        ("POST", "/v1/containers/follower/stop", "{}"),
        ("POST", "/v1/containers/follower/checkpoints", "{}"),
        ("DELETE", "/v1/containers/counter?force=true", ""),
        ("POST", "/v1/containers", "{}"),
        ("POST", "/v1/nodes/gamma/drain", "{}"),
        ("POST", "/v1/tokens", "{}"),
        ("GET", "/v1/containers/counter", ""),
        ("GET", "/v1/containers/counter/logs", ""),
        ("GET", "/v1/catalog/backup", ""),
        ("GET", "/v1/status", ""),
        ("GET", "/v1/links?node=gamma", ""),
        ("GET", "/v1/events?filter=type%3Dprocess.exit%20and%20command%3Dpython3", ""),
        ("GET", "/metrics", ""),
    ];
    for (method, path, body) in refused {
        let (status, answer) = ask(&trial, &[method, path, body]);
        let message = answer["message"].as_str().unwrap_or_default();
        assert!((400..500).contains(&status), "{method} {path}: {status} {answer}");
        assert_eq!(answer["code"], "SF-0032", "{method} {path}: {answer}");
        assert!(message.contains("container") && !message.contains('\n'), "{method} {path}: {answer}");
    }
    let forged = r#"{"type": "user.step", "fields": {"container": "counter"}}"#;
    let (_, answer) = ask(&trial, &["POST", "/v1/events", forged]);
    assert_eq!(answer["code"], "SF-0031", "{answer}");
    let reserved = r#"{"type": "container.stopped"}"#;
    let (_, answer) = ask(&trial, &["POST", "/v1/events", reserved]);
    assert_eq!(answer["code"], "SF-0031", "{answer}");
    assert_eq!(trial.lasting_state(), state, "nothing was changed by {COUNTER}'s neighbour");
}
