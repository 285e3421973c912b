//! Effects of episodes on foreign systems, on a real agent: carried out again with the same id until their end is known,
//! whatever is killed meanwhile, and never in anybody's way.

use std::fs::read_to_string;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use steadfast_cli::api::episode_types::Instance;
use steadfast_cli::bed::Host;
use steadfast_cli::bed::postgresql::Postgresql;

use super::events::{Listener, wait_active};
use super::support::{Trial, builder};

const PYTHON: &str = "/usr/bin/python3";

/// Sends what its input says, and ends with the first thing that it is told then.
const SENDER: &str = r#"
import json, sys
told = json.load(sys.stdin)
event = told["event"]
if event["kind"] == "start":
    messages = [{"kind": "effect", **message} for message in event["payload"]]
    out = {"messages": messages, "wait": {"any": [{"kind": "done"}, {"kind": "undeliverable"}]}}
else:
    out = {"end": {name: event[name] for name in ("kind", "source", "correlation", "payload")}}
print(json.dumps(out))
"#;

/// A server that notes each request's id, and does what a path says: `/busy` says 503 twice, `/hang` answers a first request
/// never, `/never` none at all, `/gone` says 404.
const SERVER: &str = r#"
import collections, http.server, json, sys, threading, time
seen, lock = collections.Counter(), threading.Lock()

class Shop(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        key = self.headers["idempotency-key"]
        with lock:
            seen[key] += 1
            times = seen[key]
            with open(sys.argv[2], "a") as log:
                log.write(f"{self.path} {key} {body.decode()}\n")
        if self.path == "/never" or (self.path == "/hang" and times == 1):
            time.sleep(3600)
        status = 404 if self.path == "/gone" else 503 if self.path == "/busy" and times < 3 else 201
        answer = json.dumps({"times": times}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *words):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

Server(("127.0.0.1", int(sys.argv[1])), Shop).serve_forever()
"#;
const PORT: u16 = 8_097;

/// The server, as it runs on one host; it is gone with it.
struct Shop {
    child: Child,
    log: PathBuf,
}

impl Shop {
    fn start(trial: &Trial, host: &Host) -> Shop {
        let log = trial.bed.base().join("shop.log");
        std::fs::write(&log, "").unwrap();
        let mut command = Command::new(PYTHON);
        command.args(["-c", SERVER, &PORT.to_string()]).arg(&log);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let shop = Shop { child: host.spawn(&mut command).unwrap(), log };
        let address = SocketAddr::from(([127, 0, 0, 1], PORT));
        trial.wait("the server", || {
            host.with_spaces(|spaces| spaces.tcp_connect(address, Duration::from_secs(1))).ok()
        });
        shop
    }

    /// The ids of the requests to that path, in order.
    fn ids(&self, path: &str) -> Vec<String> {
        let log = read_to_string(&self.log).unwrap();
        let lines = log.lines().filter_map(|line| line.split_once(' ')).filter(|(to, _)| *to == path);
        lines.map(|(_, rest)| rest.split_once(' ').unwrap().0.to_owned()).collect()
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        // It may have ended with its host.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn deploy(trial: &Trial, host: &Host) {
    let path = trial.bed.base().join("sender.py");
    std::fs::write(&path, SENDER).unwrap();
    let path = path.display().to_string();
    host.steadfast_text(&["episode", "deploy", "sender", "--command", PYTHON, &path]).unwrap();
}

/// Begins an instance that has one effect.
fn start(host: &Host, name: &str, to: &str, payload: &Value) {
    let sent = json!([{"to": to, "payload": payload, "correlation": name}]).to_string();
    host.steadfast_text(&["episode", "start", name, &sent]).unwrap();
}

fn by_http(path: &str) -> Value {
    json!({"url": format!("http://127.0.0.1:{PORT}{path}"), "body": {"amount": 25}, "reply": "done"})
}

fn try_show(host: &Host, name: &str) -> Option<Instance> {
    host.steadfast_as(&["-o", "json", "episode", "show", name]).ok()
}

fn show(host: &Host, name: &str) -> Instance {
    try_show(host, name).unwrap()
}

/// What the instance was told, when it has ended.
fn told(trial: &Trial, host: &Host, name: &str) -> Value {
    // An agent that has just begun may not know its programs yet.
    let answer = trial.try_wait(|| try_show(host, name)?.answer);
    let answer = answer.unwrap_or_else(|| {
        panic!("{name} does not end: {}", host.steadfast_text(&["episode", "show", name]).unwrap())
    });
    serde_json::from_str(answer.get()).unwrap()
}

#[test]
fn a_request_is_made_again_with_its_id_until_the_answer_is_final() {
    let trial = Trial::with(builder().hosts(1));
    let alpha = trial.bed.host(0);
    let shop = Shop::start(&trial, alpha);
    deploy(&trial, alpha);
    start(alpha, "sender/busy", "effect/http", &by_http("/busy"));
    let failing = trial.wait("a failure that show tells of", || {
        let shown = show(alpha, "sender/busy").outboxes.into_iter().next()?.effects.into_iter().next()?;
        (shown.attempts > 0).then_some(shown)
    });
    assert!(failing.why.unwrap().contains("answered 503"), "the reason is shown");
    assert_eq!(failing.target, format!("127.0.0.1:{PORT}"));
    let expected = json!({
        "kind": "done", "source": "effect/http", "correlation": "sender/busy",
        "payload": {"status": 201, "body": {"times": 3}}
    });
    assert_eq!(told(&trial, alpha, "sender/busy"), expected);
    assert_eq!(shop.ids("/busy"), vec![failing.id; 3], "three requests, one id");

    start(alpha, "sender/gone", "effect/http", &by_http("/gone"));
    let gone = told(&trial, alpha, "sender/gone");
    assert_eq!(gone["kind"], "undeliverable");
    assert!(gone["payload"].to_string().contains("404"), "{gone}");
    assert_eq!(shop.ids("/gone").len(), 1);
    for (name, to, payload, why) in [
        ("a", "effect/http", json!({"url": "ftp://x/"}), "http:// and https://"),
        ("b", "effect/http", json!({"url": "http://x/", "hedaers": {}}), "unknown field"),
        ("c", "effect/mail", json!({}), "effect/http, effect/postgresql, effect/event"),
        ("d", "effect/event", json!({"type": "disk.usage"}), "user."),
    ] {
        let name = format!("sender/{name}");
        start(alpha, &name, to, &payload);
        let refused = told(&trial, alpha, &name);
        assert_eq!(refused["kind"], "undeliverable");
        assert!(refused["payload"].to_string().contains(why), "{refused}");
    }
    trial.wait("nothing to be left over", || show(alpha, "sender/gone").is_quiet.then_some(()));
}

#[test]
fn a_request_that_an_agent_died_over_is_made_again_with_the_same_id() {
    let trial = Trial::with(builder().hosts(1));
    let alpha = trial.bed.host(0);
    let shop = Shop::start(&trial, alpha);
    deploy(&trial, alpha);
    start(alpha, "sender/1", "effect/http", &by_http("/hang"));
    trial.wait("the first request", || (shop.ids("/hang").len() == 1).then_some(()));
    let running = &show(alpha, "sender/1").outboxes[0];
    assert_eq!((running.effects[0].doing.as_str(), running.effects[0].attempts), ("running", 0));
    alpha.kill_agent().unwrap();
    alpha.start_agent().unwrap();
    alpha.wait_ready().unwrap();
    assert_eq!(told(&trial, alpha, "sender/1")["payload"]["body"], json!({"times": 2}));
    let ids = shop.ids("/hang");
    assert!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");
}

#[test]
fn a_system_that_does_not_answer_holds_up_no_other() {
    let trial = Trial::with(builder().hosts(1));
    let alpha = trial.bed.host(0);
    let shop = Shop::start(&trial, alpha);
    deploy(&trial, alpha);
    for number in 0..20 {
        let payload = json!({"url": format!("http://localhost:{PORT}/never"), "reply": "done"});
        start(alpha, &format!("sender/never-{number}"), "effect/http", &payload);
    }
    trial.wait("requests that hang", || (shop.ids("/never").len() == 8).then_some(()));
    let queued = trial.wait("one behind them", || {
        let shown = (0..20).map(|number| show(alpha, &format!("sender/never-{number}")));
        let effects = shown.flat_map(|shown| shown.outboxes).flat_map(|outbox| outbox.effects);
        effects.into_iter().find(|effect| effect.doing == "queued")
    });
    assert_eq!(queued.target, format!("localhost:{PORT}"));
    start(alpha, "sender/good", "effect/http", &by_http("/good"));
    assert_eq!(told(&trial, alpha, "sender/good")["payload"]["status"], 201);
    assert_eq!(shop.ids("/never").len(), 8, "no more at the same time than there are places");
}

/// Asks the database.
fn count(server: &Postgresql, statement: &str) -> i64 {
    let work = async {
        let (client, connection) = tokio_postgres::connect(&server.address(), tokio_postgres::NoTls).await?;
        let driver = tokio::spawn(connection);
        let row = client.query_one(statement, &[]).await?;
        let count = row.try_get(0)?;
        drop(client);
        // It ends with its client.
        let _ = driver.await;
        Ok::<i64, tokio_postgres::Error>(count)
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work).unwrap()
}

fn by_postgresql(connection: &str, statement: &str, parameters: &Value) -> Value {
    json!({"connection": connection, "statement": statement, "parameters": parameters, "reply": "done"})
}

#[test]
fn a_statement_takes_effect_once_though_agent_and_server_are_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Postgresql::start(folder.path()).unwrap();
    let address = format!("address = {:?}", server.address());
    let trial = Trial::with(builder().hosts(1).setting("episodes.postgresql.shop", &address));
    let alpha = trial.bed.host(0);
    deploy(&trial, alpha);
    let make = "create table charges (who text, amount int, at date, note jsonb)";
    start(alpha, "sender/make", "effect/postgresql", &by_postgresql("shop", make, &json!([])));
    assert_eq!(told(&trial, alpha, "sender/make")["payload"], json!({"rows": 0}));

    // Long enough for the agent to die over it.
    let slow = "insert into charges select $1, $2, $3, $4 from pg_sleep(2)";
    let parameters = json!(["O'Neil", 25, "2026-01-31", {"a": [1]}]);
    start(alpha, "sender/agent", "effect/postgresql", &by_postgresql("shop", slow, &parameters));
    let sleeping = "select count(*) from pg_stat_activity where query like 'insert into charges select%' and state = 'active'";
    trial.wait("the statement to run", || (count(&server, sleeping) > 0).then_some(()));
    alpha.kill_agent().unwrap();
    alpha.start_agent().unwrap();
    alpha.wait_ready().unwrap();
    assert_eq!(told(&trial, alpha, "sender/agent")["payload"], json!({"rows": 1}));
    assert_eq!(count(&server, "select count(*) from charges where who = 'O''Neil' and amount = 25"), 1);

    start(alpha, "sender/server", "effect/postgresql", &by_postgresql("shop", slow, &parameters));
    trial.wait("the statement to run", || (count(&server, sleeping) > 0).then_some(()));
    server.kill();
    let failing = trial.wait("the reason to be shown", || {
        let shown = show(alpha, "sender/server").outboxes.into_iter().next()?.effects.into_iter().next()?;
        (shown.attempts > 0).then_some(shown)
    });
    assert_eq!(failing.target, "the database shop");
    server.go_on().unwrap();
    assert_eq!(told(&trial, alpha, "sender/server")["payload"], json!({"rows": 1}));
    assert_eq!(count(&server, "select count(*) from charges"), 2, "each once");
    assert_eq!(count(&server, "select count(*) from steadfast_effects"), 3, "one row for each effect");

    start(
        alpha,
        "sender/wrong",
        "effect/postgresql",
        &by_postgresql("shop", "insert into nowhere values (1)", &json!([])),
    );
    let wrong = told(&trial, alpha, "sender/wrong");
    assert!(wrong["kind"] == "undeliverable" && wrong["payload"].to_string().contains("nowhere"), "{wrong}");
    start(alpha, "sender/unknown", "effect/postgresql", &by_postgresql("shp", "select 1", &json!([])));
    trial.wait("what is missing to be shown", || {
        let said = alpha.steadfast_text(&["episode", "show", "sender/unknown"]).ok()?;
        said.contains("no [episodes.postgresql.shp]; did you mean \"shop\"?").then_some(())
    });
    assert!(Path::new(&folder.path().join("data")).exists());
}

#[test]
fn an_event_of_an_episode_has_the_id_of_its_message() {
    let trial = Trial::with(builder().hosts(2));
    let [alpha, beta, ..] = trial.bed.hosts() else { panic!("a bed of two") };
    deploy(&trial, alpha);
    let listener = Listener::start(beta, "type=user.order.shipped", &[]);
    for host in [alpha, beta] {
        wait_active(&trial, host, "user", true);
    }
    let payload =
        json!({"type": "user.order.shipped", "fields": {"order": "17", "parcels": 2}, "reply": "done"});
    start(alpha, "sender/1", "effect/event", &payload);
    let replied = told(&trial, alpha, "sender/1");
    let event = trial.wait("the event", || {
        listener.told().into_iter().find(|event| event.short_type() == "user.order.shipped")
    });
    assert_eq!(json!(event.id), replied["payload"]["id"]);
    assert_eq!(serde_json::Value::Object(event.data), json!({"order": "17", "parcels": 2}));
}
