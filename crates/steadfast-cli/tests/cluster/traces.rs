//! Traces of operations across nodes (cargo feature `otel`): what a collector receives of real agents, over OTLP.
//!
//! The collector is a small one, on a host of the bed; it reads with OpenTelemetry's own types. It is away at first: then
//! nothing waits for it and each agent says so once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use steadfast_cli::bed::{Host, host_address};

use super::support::{COUNTER, Trial, builder};

const COLLECTOR_PORT: u16 = 4318;
/// The host that has the collector, and the one that the container starts on.
const COLLECTOR: usize = 0;
const OWNER: usize = 1;

/// One span as it was received.
#[derive(Clone, Debug)]
struct Span {
    node: String,
    name: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    ended_after_start: bool,
}

/// Everything that was received.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    /// Receives from now on; the thread ends with the process.
    fn start(listener: TcpListener) -> Collector {
        let collector = Collector::default();
        let receiving = collector.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let spans = received(stream).unwrap();
                receiving.0.lock().unwrap().extend(spans);
            }
        });
        collector
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().clone()
    }
}

/// Takes one delivery and answers it.
fn received(stream: TcpStream) -> std::io::Result<Vec<Span>> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    assert!(first.starts_with("POST /v1/traces "), "{first}");
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(bytes) = line.strip_prefix("content-length:") {
            length = bytes.trim().parse().unwrap();
        }
        assert!(!line.starts_with("content-type:") || line.ends_with("application/x-protobuf"), "{line}");
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
    Ok(request.resource_spans.into_iter().flat_map(spans_of).collect())
}

fn spans_of(from: opentelemetry_proto::tonic::trace::v1::ResourceSpans) -> Vec<Span> {
    let resource = from.resource.unwrap();
    let attribute = |key: &str| {
        let found = resource.attributes.iter().find(|attribute| attribute.key == key).unwrap();
        let Some(Value::StringValue(text)) = found.value.clone().unwrap().value else {
            panic!("{key} is no text");
        };
        text
    };
    assert_eq!(attribute("service.name"), "steadfast");
    let node = attribute("service.instance.id");
    let spans = from.scope_spans.into_iter().flat_map(|scope| scope.spans);
    let span = |span: opentelemetry_proto::tonic::trace::v1::Span| Span {
        node: node.clone(),
        name: span.name,
        trace: span.trace_id,
        id: span.span_id,
        parent: span.parent_span_id,
        ended_after_start: span.start_time_unix_nano > 0
            && span.start_time_unix_nano <= span.end_time_unix_nano,
    };
    spans.map(span).collect()
}

/// A request to a host's agent by a client that traces; the status of the answer.
fn ask(host: &Host, path: &str, traceparent: &str) -> u16 {
    let mut stream = UnixStream::connect(host.socket()).unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: steadfast\r\ntraceparent: {traceparent}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The first span of this name under one of these parents.
fn under<'a>(spans: &'a [Span], parent: &Span, name: &str) -> Option<&'a Span> {
    spans.iter().find(|span| span.name == name && span.parent == parent.id && span.trace == parent.trace)
}

/// The span at the end of a path of names from `root`, and every node on it.
fn path<'a>(spans: &'a [Span], root: &'a Span, names: &[&str]) -> Option<&'a Span> {
    names.iter().try_fold(root, |parent, name| under(spans, parent, name))
}

fn root<'a>(spans: &'a [Span], name: &str) -> Option<&'a Span> {
    spans.iter().find(|span| span.name == name && span.parent.is_empty())
}

/// How often an agent said that its collector is away.
fn complaints(host: &Host) -> usize {
    let log = std::fs::read_to_string(host.log()).unwrap();
    log.lines().filter(|line| line.contains("the collector does not take traces")).count()
}

fn traced() -> (Trial, SocketAddr) {
    let collector = SocketAddr::new(host_address(COLLECTOR, 0).ip(), COLLECTOR_PORT);
    let endpoint = format!("endpoint = \"http://{collector}\"");
    (Trial::with(builder().setting("traces", &endpoint)), collector)
}

fn listen(trial: &Trial, address: SocketAddr) -> Collector {
    let host = trial.bed.host(COLLECTOR);
    Collector::start(host.with_spaces(|spaces| spaces.tcp_listen(address)).unwrap())
}

#[test]
fn a_checkpoint_is_one_trace_across_nodes_and_an_absent_collector_is_told_of_once() {
    let (trial, address) = traced();
    let asked = trial.bed.host(2);
    // Nobody collects yet: all the same things run, and each agent that had spans to send says so.
    trial.start_counter(OWNER);
    trial.wait("a word on the absent collector", || {
        (complaints(trial.bed.host(COLLECTOR)) > 0 && complaints(trial.bed.host(OWNER)) > 0).then_some(())
    });
    let collector = listen(&trial, address);
    let (operation, step) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let status =
        ask(asked, &format!("/v1/containers/{COUNTER}/checkpoints"), &format!("00-{operation}-{step}-01"));
    assert_eq!(status, 200);
    let bytes = |hex: &str| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
    let client = Span {
        node: "client".to_owned(),
        name: "client".to_owned(),
        trace: bytes(operation),
        id: bytes(step),
        parent: Vec::new(),
        ended_after_start: true,
    };
    let spans = trial.wait("the whole trace", || {
        let spans = collector.spans();
        let whole = ["checkpoint", "checkpoint", "take checkpoint", "ship", "checkpoint memory"];
        path(&spans, &client, &whole).is_some().then_some(spans)
    });
    let first = under(&spans, &client, "checkpoint").unwrap();
    assert_eq!(first.node, asked.name());
    let taken = path(&spans, first, &["checkpoint", "take checkpoint"]).unwrap();
    assert_eq!(taken.node, trial.bed.host(OWNER).name(), "the owner was passed the request and took it");
    let ship = under(&spans, taken, "ship").unwrap();
    assert_eq!(under(&spans, taken, "capture").unwrap().node, taken.node);
    let held = under(&spans, ship, "checkpoint memory").unwrap();
    assert_ne!(held.node, taken.node, "a holder's step is the holder's");
    let ours: Vec<&Span> = spans.iter().filter(|span| span.trace == client.trace).collect();
    assert!(ours.iter().all(|span| span.ended_after_start));
    assert!(ours.len() < 100, "chunks are no steps: {}", ours.len());
    for host in trial.bed.hosts() {
        assert!(complaints(host) <= 1, "{} complains {} times", host.name(), complaints(host));
    }
    trial.witness.assert_clean();
}

#[test]
fn what_a_committed_row_starts_on_another_node_is_part_of_the_request_and_a_recovery_is_its_own() {
    let (trial, address) = traced();
    let collector = listen(&trial, address);
    trial.start_counter(OWNER);
    let spans = trial.wait("the trace of the start", || {
        let spans = collector.spans();
        let run = root(&spans, "run")?;
        path(&spans, run, &["start", "shim: start"]).is_some().then_some(spans)
    });
    let run = root(&spans, "run").unwrap();
    assert_eq!(run.node, trial.bed.host(0).name(), "the node that was asked");
    assert_eq!(under(&spans, run, "start").unwrap().node, trial.bed.host(OWNER).name());

    trial.checkpoint();
    let epoch = trial.counter().epoch;
    trial.bed.host(OWNER).power_off().unwrap();
    trial.wait_recovered(epoch);
    let spans = trial.wait("the trace of the recovery", || {
        let spans = collector.spans();
        let recover = root(&spans, "recover")?;
        path(&spans, recover, &["shim: restore"]).is_some().then_some(spans)
    });
    let recover = root(&spans, "recover").unwrap();
    assert!(under(&spans, recover, "fetch").is_some() && under(&spans, recover, "prepare").is_some());
    assert_eq!(recover.node, trial.owner().name());
    trial.bring_back(trial.bed.host(OWNER));

    let (from, epoch) = (trial.owner().name().to_owned(), trial.counter().epoch);
    trial.some_host().steadfast_text(&["drain", &from]).unwrap();
    trial.wait_recovered(epoch);
    let spans = trial.wait("the trace of the drain", || {
        let spans = collector.spans();
        let drain = root(&spans, "drain")?;
        let whole = under(&spans, drain, "hand over").is_some()
            && path(&spans, drain, &["take over", "shim: restore"]).is_some();
        whole.then_some(spans)
    });
    let drain = root(&spans, "drain").unwrap();
    let (left, right) =
        (under(&spans, drain, "hand over").unwrap(), under(&spans, drain, "take over").unwrap());
    assert_eq!((left.node.as_str(), right.node.as_str()), (from.as_str(), trial.owner().name()));
    trial.witness.assert_clean();
}
