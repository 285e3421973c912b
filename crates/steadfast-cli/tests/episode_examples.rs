//! The examples of durable programs: each writes the same shop, and is run as a deployment would run it.
//!
//! The machine of episodes is not here: this carries messages from one episode to the next itself, one at a time, and so
//! tests the programs alone.
#![allow(clippy::unwrap_used, reason = "in a test it is the assertion")]

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use steadfast_cli::episodes::filter;
use steadfast_cli::episodes::programs::{Limits, Prepared, Source};
use steadfast_proto::episode::{Event, EventId, Next, Task, Wait};
use steadfast_proto::exchange::{Blob, Name};
use steadfast_proto::time::Time;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const WASM: &str = "wasm32-unknown-unknown";

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/episodes").join(path)
}

fn deployed(source: Source) -> Prepared {
    Prepared::new(source, Limits::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// An instance between two episodes.
struct Waiting {
    state: Blob,
    episode: u64,
    wait: Wait,
    parent: Option<Name>,
}

/// Runs an order and all that it begins, and returns its answer and how many episodes that took.
async fn shop(program: &Prepared, order: &str) -> (String, u64) {
    let root = Name::parse("order/17").unwrap();
    let mut waiting: BTreeMap<Name, Waiting> = BTreeMap::new();
    let mut events = VecDeque::from([(root.clone(), event(Event::START, None, order.as_bytes().into()))]);
    let mut episodes = 0;
    while let Some((name, event)) = events.pop_front() {
        let before = waiting.remove(&name).unwrap_or_else(|| Waiting {
            state: Blob::empty(),
            episode: 0,
            wait: Wait::for_anything(),
            parent: event.source.clone(),
        });
        assert!(
            before.wait.any.iter().any(|one| one.is_met_by(&event, filter::matches)),
            "{name} waits in vain: {event:?}"
        );
        let episode = before.episode + 1;
        let now = Time::from_nanos(1_790_000_000_000_000_000);
        let task = Task { name: name.clone(), version: 1, run: 1, episode, state: before.state, event, now };
        let ran = program.run(&task).await;
        let outcome = ran.result.unwrap_or_else(|failure| panic!("{name}: {failure:?}"));
        episodes += 1;
        for message in outcome.messages {
            assert!(message.begins);
            let mut told = self::event(&message.kind, Some(name.clone()), message.payload);
            told.correlation = message.correlation;
            events.push_back((message.to, told));
        }
        match outcome.next {
            Next::Wait(wait) => {
                waiting.insert(name, Waiting { state: outcome.state, episode, wait, parent: before.parent });
            }
            Next::End(answer) if name == root => {
                assert!(waiting.is_empty() && events.is_empty(), "something is left");
                return (String::from_utf8(answer.to_vec()).unwrap(), episodes);
            }
            Next::End(answer) => {
                let parent = before.parent.expect("somebody began it");
                events.push_back((parent, self::event(Event::CHILD_ENDED, Some(name), answer)));
            }
        }
    }
    panic!("the order never ended");
}

fn event(kind: &str, source: Option<Name>, payload: Blob) -> Event {
    Event { id: EventId::Notice(1), kind: kind.into(), source, correlation: None, payload }
}

/// What each shop has to do, whatever it is written in.
async fn sells(program: &Prepared) {
    let (answer, episodes) = shop(program, r#"{"item":"book","amount":25}"#).await;
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer, serde_json::json!({"order": "delivered", "by": {"parcel": "P-17"}}));
    assert_eq!(episodes, 5, "an order has three, its payment and its shipment one each");
    let late = Task {
        name: Name::parse("order/17").unwrap(),
        version: 1,
        run: 1,
        episode: 2,
        state: br#"{"item":"book","amount":25}"#.as_slice().into(),
        event: event(Event::TIMER, None, Blob::empty()),
        now: Time::ZERO,
    };
    let Next::End(answer) = program.run(&late).await.result.unwrap().next else {
        panic!("it goes on waiting")
    };
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer, serde_json::json!({"order": "late"}));
}

/// What those do that look at the amount.
async fn refuses(program: &Prepared) {
    let (answer, episodes) = shop(program, r#"{"item":"house","amount":2500}"#).await;
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((answer, episodes), (serde_json::json!({"order": "refused"}), 3));
    let rubbish = Task {
        name: Name::parse("order/17").unwrap(),
        version: 1,
        run: 1,
        episode: 1,
        state: Blob::empty(),
        event: event(Event::START, None, b"{\"item\":".as_slice().into()),
        now: Time::ZERO,
    };
    let failure = program.run(&rubbish).await.result.unwrap_err();
    assert!(failure.lasting && failure.why.contains("an order is"), "{failure:?}");
}

#[tokio::test]
async fn the_shop_in_webassembly_text_sells() {
    sells(&deployed(Source::Wasm(std::fs::read(example("shop.wat")).unwrap()))).await;
}

#[tokio::test]
async fn the_shop_in_python_sells_as_a_command() {
    let argv = vec!["python3".to_owned(), example("shop.py").display().to_string()];
    let program = deployed(Source::Command { argv });
    sells(&program).await;
    refuses(&program).await;
}

/// A server of the example, ended with this, and where it listens.
async fn serve(arguments: &[&str]) -> (Child, String) {
    let mut child = Command::new("python3")
        .arg(example("shop.py"))
        .args(arguments)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let place = lines.next_line().await.unwrap().expect("it says where it listens");
    (child, place)
}

#[tokio::test]
async fn the_shop_in_python_sells_over_http() {
    let (mut child, port) = serve(&["--port", "0"]).await;
    let program = deployed(Source::Http { url: format!("http://127.0.0.1:{port}/") });
    sells(&program).await;
    refuses(&program).await;
    child.kill().await.unwrap();
}

#[tokio::test]
async fn the_shop_in_python_sells_behind_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("shop.sock").display().to_string();
    let (mut child, _) = serve(&["--socket", &socket]).await;
    let program = deployed(Source::Http { url: format!("unix:{socket}") });
    sells(&program).await;
    refuses(&program).await;
    child.kill().await.unwrap();
}

/// Whether this machine's compiler has Rust's library for WebAssembly.
async fn compiles_for_wasm() -> bool {
    let found =
        Command::new("rustc").args(["--print", "target-libdir", "--target", WASM]).output().await.unwrap();
    Path::new(String::from_utf8_lossy(&found.stdout).trim()).is_dir()
}

#[tokio::test]
async fn the_shop_in_rust_sells() {
    if !compiles_for_wasm().await {
        eprintln!("not tested: this compiler lacks {WASM}; `rustup target add {WASM}` installs it");
        return;
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("episodes");
    let built = Command::new("cargo")
        .args(["build", "--release", "--locked", "--target", WASM, "--manifest-path"])
        .arg(example("rust/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .output()
        .await
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let module = std::fs::read(target.join(WASM).join("release/shop.wasm")).unwrap();
    let program = deployed(Source::Wasm(module));
    sells(&program).await;
    refuses(&program).await;
}
