//! The HTTP API answers only what its OpenAPI document says, and never fails: schemathesis makes the requests.
//!
//! It asks at the page's address, with an administrator's token. Left out are the streams, which end for nobody: each is
//! opened here by hand. It learns names from answers, so what would drain or remove the node under test, or revoke that token,
//! is asked of somebody who is not there.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use steadfast_cli::api::openapi::{Answer, OPERATIONS};
use steadfast_cli::api::types::ErrorBody;
use steadfast_cli::bed::Host;

use super::support::{COUNTER, PATIENCE, Trial, builder};

#[path = "../../../../xtask/src/setup/find_schemathesis.rs"]
mod find_schemathesis;

const ADDRESS: &str = "http://127.0.0.1:7480";
/// What schemathesis makes up comes from this number.
const SEED: &str = "20260131";
/// Requests that it makes up for each operation, beside those that cover the document's bounds.
const EXAMPLES: &str = "40";
const CHECKS: &str =
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
/// The streams.
const STREAMS: &str = "(/events|/changes|/logs)$";

/// Whom requests are about.
const CONFIGURATION: &str = r#"
[[operations]]
include-path-regex = "^/v1/(nodes|tokens)/"
parameters = { name = "nobody" }

[[operations]]
include-path-regex = "^/v1/containers/\\{name\\}(/stop)?$"
exclude-method = "GET"
parameters = { name = "nobody" }

[[operations]]
include-path-regex = "^/v1/containers/\\{name\\}(/checkpoints|/exec|/restore)?$"
exclude-method = "DELETE"
parameters = { name = "counter" }
"#;

#[test]
fn the_api_answers_what_its_document_says() {
    let program =
        find_schemathesis::find().expect("there is no schemathesis; `cargo xtask setup` installs it");
    assert_eq!(COUNTER, "counter");
    let trial = Trial::with(builder().hosts(1).setting("page", "listen = \"127.0.0.1:7480\""));
    let alpha = trial.bed.host(0);
    trial.start_counter(0);
    let token = alpha.steadfast_text(&["tokens", "create", "schemathesis", "--role", "admin"]).unwrap();
    let configuration = trial.bed.base().join("schemathesis.toml");
    std::fs::write(&configuration, CONFIGURATION).unwrap();

    let mut command = Command::new(program);
    command.arg("--config-file").arg(&configuration).arg("run");
    command.arg(format!("{ADDRESS}/v1/openapi.json"));
    command.args(["--header", &format!("Authorization: Bearer {}", token.trim())]);
    command.args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--continue-on-failure"]);
    command.args(["--seed", SEED, "--max-examples", EXAMPLES, "--generation-database", "none"]);
    command.args(["--exclude-path-regex", STREAMS, "--request-timeout", "30", "--no-color"]);
    command.current_dir(trial.bed.base()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = alpha.spawn(&mut command).unwrap().wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "seed {SEED}: {said}\n{}", alpha.log_tail(40));
    assert!(said.contains("Tested:") && !said.contains("Authentication failed"), "{said}");

    for operation in OPERATIONS.iter().filter(|one| matches!(one.answer, Answer::Events(_))) {
        let path = operation.path.replace("{name}", COUNTER);
        let (status, kind, _) = ask(alpha, &path);
        assert_eq!((status, kind.as_str()), (200, "text/event-stream"), "{path}");
        if !operation.query.is_empty() {
            assert_refused(alpha, &format!("{path}?nonsense=1"), 400);
        }
        if operation.path.contains("{name}") {
            assert_refused(alpha, &operation.path.replace("{name}", "nobody"), 404);
        }
    }
}

#[test]
fn what_is_no_operation_is_refused_in_the_same_form() {
    let trial = Trial::with(builder().hosts(1));
    let alpha = trial.bed.host(0);
    assert_refused(alpha, "/v1/statsu", 400);
    assert_refused(alpha, "/v1/keys/rotate", 405);
    assert_refused(alpha, "/v1/containers/%FF", 400);
    assert_refused(alpha, "/v1/views?limit=-1", 400);
}

fn assert_refused(host: &Host, path: &str, expected: u16) {
    let (status, kind, body) = ask(host, path);
    assert_eq!((status, kind.as_str()), (expected, "application/json"), "{path}");
    let body: ErrorBody = serde_json::from_slice(&body).unwrap();
    assert!(body.code.starts_with("SF-") && !body.message.is_empty(), "{path}: {body:?}");
}

/// Status, kind and, unless it is a stream, body of the answer to a reading request on the socket.
fn ask(host: &Host, path: &str) -> (u16, String, Vec<u8>) {
    let mut stream = UnixStream::connect(host.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: steadfast\r\nconnection: close\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    let (mut status, mut kind) = (String::new(), String::new());
    reader.read_line(&mut status).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-type") => kind = value.to_owned(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = Vec::new();
    if kind != "text/event-stream" {
        reader.read_to_end(&mut body).unwrap();
    }
    (status.split(' ').nth(1).unwrap().parse().unwrap(), kind, body)
}
