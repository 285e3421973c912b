//! The example that embeds only the detector: real processes and sockets on loopback, one of them killed.
//!
//! Cargo builds a package's examples when it builds all of its tests. The test waits for lines, never for a time, and ends
//! what it started also when it fails.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test that runs processes needs threads and a bound on its patience"
)]

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

/// How long all of it may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_killed_process_is_found_crashed_and_a_restarted_one_well() {
    let (sender, lines) = mpsc::channel();
    let port = free_port();
    let mut nodes: Vec<Node> = (1..=3).map(|index| start(index, port, &sender)).collect();
    let mut seen = Seen { lines, all: Vec::new(), until: Instant::now() + PATIENCE };
    for (observer, subject) in [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)] {
        for network in ["NetworkId(0)", "NetworkId(1)"] {
            let link = format!("node {observer}: Link {{ peer: {}, network: {network}", name(subject));
            seen.wait(&[&link, "to: Up"]);
        }
    }

    drop(nodes.remove(1));
    let crashed = |index| format!("Verdict {{ class: ProcessCrashed, subject: Node({})", name(index));
    for survivor in [1, 3] {
        seen.wait(&[&format!("node {survivor}: Verdict({}", crashed(2)), "why: Crashed"]);
    }

    nodes.push(start(2, port, &sender));
    for survivor in [1, 3] {
        seen.wait(&[&format!("node {survivor}: Over({}", crashed(2))]);
    }
    let wrong = seen.all.iter().find(|line| line.contains(&crashed(1)) || line.contains(&crashed(3)));
    assert_eq!(wrong, None, "the kernel refuses for nobody else");
}

#[test]
fn wrong_usage_is_said_and_ends() {
    for arguments in [vec!["1"], vec!["3", "4", "7500"], vec!["three"]] {
        let ended = Command::new(example()).args(&arguments).output().unwrap();
        assert!(!ended.status.success() && !ended.stderr.is_empty(), "{arguments:?}");
    }
}

/// Lines of all nodes, as they come.
struct Seen {
    lines: Receiver<String>,
    all: Vec<String>,
    until: Instant,
}

impl Seen {
    /// Waits for a line that has all these parts.
    fn wait(&mut self, parts: &[&str]) {
        while !self.all.iter().any(|line| parts.iter().all(|part| line.contains(part))) {
            let left = self.until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.all.push(line),
                Err(_) => {
                    panic!("{parts:?} was not said within {PATIENCE:?}, but:\n{}", self.all.join("\n"))
                }
            }
        }
    }
}

fn start(index: u16, port: u16, lines: &Sender<String>) -> Node {
    let arguments = [3, index, port].map(|number| number.to_string());
    let mut child = Command::new(example()).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let (stdout, lines) = (child.stdout.take().unwrap(), lines.clone());
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    Node(child)
}

/// The program that Cargo built beside this test.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples/detect_udp");
    assert!(program.exists(), "build it first: cargo build -p steadfast-proto --example detect_udp");
    program
}

/// A port after which three more are free on both networks.
fn free_port() -> u16 {
    let is_free =
        |port: u16| ["127.0.0.1", "127.0.1.1"].iter().all(|host| UdpSocket::bind((*host, port)).is_ok());
    let first = 20_000 + u16::try_from(std::process::id() % 30_000).unwrap();
    (first..first + 1_000).find(|port| (1..=3).all(|index| is_free(port + index))).unwrap()
}

fn name(index: u16) -> String {
    format!("NodeId({index:08x})")
}
