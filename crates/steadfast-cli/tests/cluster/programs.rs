//! Real programs: a family of processes with threads and a listener, and the demo with its Redis server.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use steadfast_cli::bed::service_address;

use super::support::{BINARY, Trial};

/// Three processes: a parent with two threads and a listener, and two workers that count and tell it through pipes. A connection
/// between parent and worker inside the container stays open all the time. Asked on port 7000 it answers with every count.
const FAMILY: &str = r#"
import os, socket, socketserver, threading, time
counts, lock = {}, threading.Lock()
def worker(out):
    number = 0
    while True:
        number += 1
        out.write(f"{number}\n".encode()); out.flush()
        time.sleep(0.01)
def hear(name, lines):
    for line in lines:
        with lock:
            counts[name] = int(line)
inner = socket.create_server(("127.0.0.1", 7001))
for name in ("pipe", "tcp"):
    if name == "pipe":
        read, write = os.pipe()
        if os.fork() == 0:
            worker(os.fdopen(write, "wb"))
        lines = os.fdopen(read, "rb")
    else:
        if os.fork() == 0:
            worker(socket.create_connection(("127.0.0.1", 7001)).makefile("wb"))
        lines = inner.accept()[0].makefile("rb")
    threading.Thread(target=hear, args=(name, lines), daemon=True).start()
class Answer(socketserver.StreamRequestHandler):
    def handle(self):
        for _ in self.rfile:
            with lock:
                words = [str(counts.get(name, 0)) for name in ("pipe", "tcp")]
            self.wfile.write((" ".join(words + [str(os.getpid())]) + "\n").encode())
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer.daemon_threads = True
socketserver.ThreadingTCPServer(("0.0.0.0", 7000), Answer).serve_forever()
"#;

/// The family's counts over a fresh connection from outside; `None` while it can't be reached.
fn counts(trial: &Trial) -> Option<(u64, u64)> {
    let address = SocketAddr::from((service_address(20), 7000));
    let mut stream = trial.bed.client().tcp_connect(address, Duration::from_millis(200)).ok()?;
    ask(&mut stream)
}

fn ask(stream: &mut std::net::TcpStream) -> Option<(u64, u64)> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(b"?\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(|word| word.parse().ok());
    Some((words.next()??, words.next()??))
}

#[test]
fn a_family_of_processes_with_threads_and_a_listener_survives_power_loss() {
    let trial = Trial::new();
    let address = format!("{}/24", service_address(20));
    #[rustfmt::skip]
    let words = [
        "run", "--name", "family", "--node", "beta", "--address", &address, "--every", "never", "--",
        "/usr/bin/python3", "-c", FAMILY,
    ];
    trial.bed.host(0).steadfast_text(&words).unwrap();
    let enough = |counts: (u64, u64)| (counts.0 > 50 && counts.1 > 50).then_some(counts);
    let before = trial.wait("the family's counts", || enough(counts(&trial)?));
    trial.bed.host(0).steadfast_text(&["checkpoint", "family"]).unwrap();

    trial.bed.host(1).power_off().unwrap();
    let moved = trial
        .bed
        .wait_container("family", "running elsewhere", |row| row.state == "running" && row.node != "beta");
    let first = trial.wait("an answer from the new place", || counts(&trial));
    assert!(
        first.0 >= before.0 && first.1 >= before.1,
        "{first:?} continues {before:?}: the memory is there"
    );
    // Both workers go on counting: the pipe and the inner connection survived.
    let later = trial
        .wait("both workers go on", || counts(&trial).filter(|later| later.0 > first.0 && later.1 > first.1));
    assert!(later.0 > before.0);
    assert_ne!(moved.unwrap().node, "beta");
}

#[test]
fn clients_of_a_program_notice_nothing_of_its_agents_death() {
    let trial = Trial::new();
    let address = format!("{}/24", service_address(20));
    #[rustfmt::skip]
    let words = [
        "run", "--name", "family", "--node", "beta", "--address", &address, "--every", "never", "--",
        "/usr/bin/python3", "-c", FAMILY,
    ];
    trial.bed.host(0).steadfast_text(&words).unwrap();
    trial.wait("the family's counts", || counts(&trial));
    let target = SocketAddr::from((service_address(20), 7000));
    let mut open = trial.bed.client().tcp_connect(target, Duration::from_secs(5)).unwrap();
    let before = ask(&mut open).expect("an answer over the open connection");

    let beta = trial.bed.host(1);
    beta.kill_agent().unwrap();
    beta.start_agent().unwrap();
    beta.wait_ready().unwrap();
    let row = trial.bed.wait_container("family", "running", |row| row.state == "running").unwrap();
    assert_eq!((row.node.as_str(), row.epoch), ("beta", 1));
    let after = ask(&mut open).expect("the same connection still answers");
    assert!(after.0 >= before.0 && after.1 >= before.1);
}

/// What the demo prints with these words; it must end well.
fn demo(words: &[&str]) -> String {
    let mut demo = Command::new(BINARY);
    demo.args(["demo", "--keys", "5000"]).args(words).stdin(Stdio::null());
    let output = demo.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{talk}");
    assert!(text.contains("5000 keys checked"), "{text}");
    text
}

#[test]
fn the_demo_checks_every_key_and_leaves_nothing_behind() {
    let text = demo(&[]);
    for moment in [
        "last heartbeat",
        "power loss",
        "suspected",
        "removed",
        "fence over",
        "restoring",
        "running",
        "first answer",
    ] {
        assert!(text.contains(moment), "the time line has no {moment:?}:\n{text}");
    }
}

#[test]
fn the_demo_swaps_the_machine_under_a_server_that_is_written_to_and_every_write_is_there() {
    let text = demo(&["--swap"]);
    println!("{text}");
    assert!(text.contains("the last checkpoint, the view and the restore took"), "{text}");
    assert!(text.contains("never fewer copies than asked (checkpoint"), "{text}");
}
