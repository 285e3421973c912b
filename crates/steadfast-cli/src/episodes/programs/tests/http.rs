//! End points: a real HTTP server in this process.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;

use super::super::{DeployError, json};
use super::*;

/// What a server has seen; it ends with this.
struct Server {
    url: String,
    connections: Arc<AtomicUsize>,
    heard: Arc<Mutex<Vec<(String, Value)>>>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers by path, and keeps the header and body of each request.
async fn serve() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (connections, heard) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<(String, Value)>>>::default());
    let (counted, kept) = (Arc::clone(&connections), Arc::clone(&heard));
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let kept = Arc::clone(&kept);
            let service = service_fn(move |request| reply(request, Arc::clone(&kept)));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Server { url, connections, heard, task: task.abort_handle() }
}

async fn reply(
    request: Request<Incoming>,
    heard: Arc<Mutex<Vec<(String, Value)>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let header = request.headers()["steadfast-episode"].to_str().unwrap().to_owned();
    assert_eq!(request.headers()["content-type"], "application/json");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    heard.lock().unwrap().push((header, serde_json::from_slice(&body).unwrap()));
    let (status, body) = match path.as_str() {
        "/fails" => (StatusCode::INTERNAL_SERVER_ERROR, "no\nbooks".to_owned()),
        "/elsewhere" => (StatusCode::MOVED_PERMANENTLY, String::new()),
        "/created" => (StatusCode::CREATED, r#"{"end": 1}"#.to_owned()),
        "/rubbish" => (StatusCode::OK, format!("<html>{}", "x".repeat(500))),
        "/misspelt" => (StatusCode::OK, r#"{"end": 1, "mesages": []}"#.to_owned()),
        "/large" => (StatusCode::OK, "x".repeat(3_000_000)),
        "/message" => {
            let payload = "x".repeat(300_000);
            (
                StatusCode::OK,
                format!(
                    r#"{{"end": 1, "messages": [{{"to": "a/1", "kind": "a", "payload": "{payload}"}}]}}"#
                ),
            )
        }
        "/slow" => std::future::pending().await,
        _ => (
            StatusCode::OK,
            r#"{"state": {"paid": true}, "wait": {"any": [{"kind": "shipped"}]}, "log": ["paid"]}"#
                .to_owned(),
        ),
    };
    Ok(Response::builder().status(status).body(Full::new(body.into())).unwrap())
}

fn at(url: impl Into<String>, limits: Limits) -> Prepared {
    prepared(Source::Http { url: url.into() }, limits)
}

#[tokio::test]
async fn an_end_point_hears_of_the_episode_and_its_answer_is_the_outcome() {
    let server = serve().await;
    let task = task(r#"{"amount": 25}"#);
    let ran = at(format!("{}/order?shop=1", server.url), limits()).run(&task).await;
    assert_eq!(ran.log, ["paid"]);
    let outcome = outcome(ran);
    assert_eq!(
        (&outcome.state, &waits_for(&outcome).any[..]),
        (&blob(r#"{"paid": true}"#), &[kind("shipped")][..])
    );
    let expected: Value = serde_json::from_slice(&json::task(&task)).unwrap();
    assert_eq!(*server.heard.lock().unwrap(), [("order/17/2".to_owned(), expected)]);
}

#[tokio::test]
async fn a_name_that_no_header_can_hold_is_escaped() {
    let server = serve().await;
    let task = Task { name: Name::parse("order/é%1").unwrap(), ..task("{}") };
    outcome(at(&server.url, limits()).run(&task).await);
    assert_eq!(server.heard.lock().unwrap()[0].0, "order/%C3%A9%251/2");
}

#[tokio::test]
async fn connections_are_used_again_and_as_many_made_as_run_at_once() {
    let server = serve().await;
    let program = at(&server.url, limits());
    for _ in 0..20 {
        outcome(program.run(&task("{}")).await);
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
    let task = task("{}");
    let runs = futures_util::future::join_all((0..8).map(|_| program.run(&task))).await;
    runs.into_iter().for_each(|ran| drop(outcome(ran)));
    assert!(server.connections.load(Ordering::Relaxed) <= 8);
}

#[tokio::test]
async fn each_way_to_go_wrong_fails_with_a_sentence_and_the_next_episode_succeeds() {
    let server = serve().await;
    let limits = Limits { answer_bytes_max: 2_000_000, ..limits() };
    for (path, expected) in [
        (
            "/fails",
            "/fails answered 500 Internal Server Error; 200 with an outcome would be right; its answer begins: no books",
        ),
        ("/elsewhere", "answered 301 Moved Permanently; 200 with an outcome would be right"),
        (
            "/created",
            "answered 201 Created; 200 with an outcome would be right; its answer begins: {\"end\": 1}",
        ),
        ("/rubbish", "not what an episode answers: expected value at line 1 column 1; it begins: <html>xxxx"),
        ("/misspelt", "unknown field `mesages`, expected one of `state`, `messages`"),
        ("/large", "/large answers more than 2000000 bytes, which is the limit"),
        ("/message", "the payload of a message has 300002 bytes; the limit is 262144"),
    ] {
        let program = at(format!("{}{path}", server.url), limits);
        let found = why(&program.run(&task("{}")).await);
        assert!(found.contains(expected), "{path}: {found}");
        outcome(at(&server.url, limits).run(&task("{}")).await);
    }
}

#[tokio::test]
async fn an_end_point_that_takes_too_long_is_given_up() {
    let server = serve().await;
    let limits = Limits { time_max: Duration::from_millis(100), ..limits() };
    let found = why(&at(format!("{}/slow", server.url), limits).run(&task("{}")).await);
    assert!(found.contains("longer than 100ms, which is the limit"), "{found}");
}

#[tokio::test]
async fn an_end_point_that_is_not_there_is_a_failure_that_may_pass() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let found = why(&at(format!("http://{address}/"), limits()).run(&task("{}")).await);
    assert!(found.contains("can not be reached: Connection refused"), "{found}");
    let found = why(&at("unix:/nowhere/at-all.sock", limits()).run(&task("{}")).await);
    assert!(found.contains("unix:/nowhere/at-all.sock can not be reached: No such file"), "{found}");
}

#[tokio::test]
async fn an_end_point_behind_a_unix_socket_is_asked_alike() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("order.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(|request| reply(request, Arc::default()));
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
    });
    let program = at(format!("unix:{}", path.display()), limits());
    outcome(program.run(&task("{}")).await);
    outcome(program.run(&task("{}")).await);
    drop(program);
    server.await.unwrap().unwrap();
}

/// Serves one request on each of this many connections, each closed behind its answer without a word.
async fn close_each(listener: TcpListener, connections: usize, answer: &'static str) -> usize {
    for _ in 0..connections {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        // The body of a task ends with its state, the last of its fields.
        while !heard.ends_with(b"\"state\":{\"item\":\"book\"}}") {
            assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0, "it broke off");
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    connections
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_no_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let program = at(format!("http://{}", listener.local_addr().unwrap()), limits());
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{\"end\": 1}";
    let server = tokio::spawn(close_each(listener, 5, answer));
    for _ in 0..5 {
        outcome(program.run(&task("{}")).await);
    }
    assert_eq!(server.await.unwrap(), 5);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let program = at(format!("http://{}", listener.local_addr().unwrap()), limits());
    let server =
        tokio::spawn(close_each(listener, 1, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"end\": 1}"));
    let found = why(&program.run(&task("{}")).await);
    assert!(found.contains("broke off its answer"), "{found}");
    server.await.unwrap();
}

#[test]
fn what_is_no_address_is_refused_with_what_would_be_right() {
    for (url, expected) in [
        ("", "http://127.0.0.1:8080/order"),
        ("127.0.0.1:80", "http://127.0.0.1:8080/order"),
        ("ftp://host/", "http:// and https:// are possible"),
        ("http://user:secret@host/", "leave them out"),
        ("unix:order.sock", "whole path, such as unix:/run/order.sock"),
    ] {
        let error = Prepared::new(Source::Http { url: url.to_owned() }, limits()).expect_err(url);
        assert!(matches!(error, DeployError::Url { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{url}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
