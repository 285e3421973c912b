//! The mirrored key-value program as real processes: twenty replacements under continuous writes, each followed by a
//! `kill -9` of a remaining member, and no acknowledged write is lost.
//!
//! The list of members is a row of a real catalog. The test reaps whom it kills and says so to the others, as the
//! cluster's detector would; it never sleeps, and ends what it started also when it fails. Cargo builds a package's
//! examples when it builds all of its tests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long one step may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(90);
const NODES: usize = 5;
const REPLACEMENTS: usize = 20;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A view as the catalog's process printed it.
#[derive(Clone, Debug)]
struct View {
    id: u64,
    why: String,
    full: Vec<String>,
}

struct Cluster {
    ports: Vec<u16>,
    register: Option<Process>,
    views: Receiver<String>,
    seen: Vec<View>,
    members: BTreeMap<usize, (String, Process)>,
    incarnations: [u64; NODES + 1],
    _dir: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let ports = free_ports(1 + 2 * NODES);
        let mut register = Command::new(example())
            .args(["register", dir.path().to_str().unwrap(), &ports[0].to_string(), "1,2"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(register.stdout.take().unwrap());
        let (sender, views) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let (members, incarnations, seen) = (BTreeMap::new(), [0; NODES + 1], Vec::new());
        let register = Some(Process(register));
        let mut cluster = Cluster { ports, register, views, seen, members, incarnations, _dir: dir };
        cluster.until("founded", |_| ());
        cluster.member(1, "founder");
        cluster.member(2, "founder");
        cluster
    }

    fn people(&self, node: usize) -> u16 {
        self.ports[node * 2]
    }

    fn member(&mut self, node: usize, role: &str) -> String {
        self.incarnations[node] += 1;
        let incarnation = self.incarnations[node].to_string();
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        let child = Command::new(example())
            .args(["member", &node.to_string(), &incarnation, &ports.join(","), role])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let name = format!("{node}/{incarnation}");
        self.members.insert(node, (name.clone(), Process(child)));
        name
    }

    fn spare(&self) -> usize {
        (1..=NODES).find(|node| !self.members.contains_key(node)).unwrap()
    }

    /// Says something to every running member; who does not listen yet, or any more, will be told again.
    fn tell(&self, line: &str) {
        for node in self.members.keys() {
            let _ = Client::default().ask(self.people(*node), line);
        }
    }

    /// Waits for the next view, which must come about for this reason, and does `meanwhile` again and again.
    fn until(&mut self, why: &str, meanwhile: impl Fn(&Cluster)) -> View {
        let end = Instant::now() + PATIENCE;
        loop {
            meanwhile(self);
            match self.views.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => {
                    println!("{line}");
                    let words: Vec<&str> = line.split(' ').collect();
                    let ["VIEW", id, reason, full] = words[..] else { panic!("{line}") };
                    let full = full.split(',').map(str::to_owned).collect();
                    let view = View { id: id.parse().unwrap(), why: reason.to_owned(), full };
                    self.seen.push(view.clone());
                    assert_eq!(view.why, why, "{:?}", self.seen);
                    return view;
                }
                Err(RecvTimeoutError::Timeout) => {
                    assert!(Instant::now() < end, "no view {why}: {:?}", self.seen)
                }
                Err(RecvTimeoutError::Disconnected) => panic!("the catalog's process ended"),
            }
        }
    }

    fn kill(&mut self, member: &str) {
        let node = node(member);
        let (name, mut process) = self.members.remove(&node).unwrap();
        assert_eq!(name, member);
        process.0.kill().unwrap();
        process.0.wait().unwrap();
    }
}

/// One connection to one member, made when it is needed.
#[derive(Default)]
struct Client {
    port: u16,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    fn ask(&mut self, port: u16, line: &str) -> std::io::Result<String> {
        if self.port != port || self.stream.is_none() {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.set_nodelay(true)?;
            self.port = port;
            self.stream = Some(BufReader::new(stream));
        }
        let answer = self.stream.as_mut().ok_or(std::io::ErrorKind::NotConnected.into()).and_then(|stream| {
            stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
            let mut answer = String::new();
            match stream.read_line(&mut answer)? {
                0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(answer.trim_end().to_owned()),
            }
        });
        if answer.is_err() {
            self.stream = None;
        }
        answer
    }
}

/// Writes one key after the other until told to stop; gives the keys that were acknowledged.
fn write(writer: usize, ports: Vec<u16>, stop: Arc<AtomicBool>, count: Arc<Mutex<usize>>) -> Vec<String> {
    let (mut client, mut acknowledged, mut to) = (Client::default(), Vec::new(), 1);
    while !stop.load(Ordering::Relaxed) {
        let key = format!("w{writer}-{}", acknowledged.len());
        match client.ask(ports[to * 2], &format!("PUT {key} of-{key}")) {
            Ok(answer) if answer.starts_with("DONE") => {
                acknowledged.push(key);
                *count.lock().unwrap() += 1;
            }
            Ok(answer) => match answer.strip_prefix("LEADER ").and_then(|leader| leader.parse().ok()) {
                Some(leader) if leader != to => to = leader,
                Some(_) | None => to = to % NODES + 1,
            },
            Err(_) => to = to % NODES + 1,
        }
    }
    acknowledged
}

#[test]
fn twenty_replacements_with_a_kill_after_each_lose_no_acknowledged_write() {
    let mut cluster = Cluster::start();
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(0)));
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let (ports, stop, count) = (cluster.ports.clone(), Arc::clone(&stop), Arc::clone(&count));
            std::thread::spawn(move || write(writer, ports, stop, count))
        })
        .collect();
    let written = || *count.lock().unwrap();

    let mut full = vec!["1/1".to_owned(), "2/1".to_owned()];
    for round in 0..REPLACEMENTS {
        let before = written();
        let end = Instant::now() + PATIENCE;
        while written() < before + 20 {
            assert!(Instant::now() < end, "no writes in {full:?}");
            std::thread::yield_now();
        }
        let victim = full[round % 2].clone();
        let candidate = cluster.member(cluster.spare(), &format!("replace:{victim}"));
        let view = cluster.until("replaced", |cluster| cluster.tell(&format!("PASS {candidate}")));
        assert!(view.full.contains(&candidate) && !view.full.contains(&victim) && view.full.len() == 2);

        let killed = view.full[(round / 2) % 2].clone();
        cluster.kill(&killed);
        cluster.kill(&victim);
        let view = cluster.until("failed", |cluster| cluster.tell(&format!("FENCED {killed}")));
        assert_eq!(view.full.len(), 1);

        let candidate = cluster.member(cluster.spare(), "add");
        full = cluster.until("added", |cluster| cluster.tell(&format!("PASS {candidate}"))).full;
    }

    stop.store(true, Ordering::Relaxed);
    let acknowledged: Vec<String> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    println!("{} writes acknowledged in {} views", acknowledged.len(), cluster.seen.len());
    for member in &full {
        let (mut client, port) = (Client::default(), cluster.people(node(member)));
        for key in &acknowledged {
            assert_eq!(
                client.ask(port, &format!("GET {key}")).unwrap(),
                format!("VALUE of-{key}"),
                "{member}"
            );
        }
    }
    let ids: Vec<u64> = cluster.seen.iter().map(|view| view.id).collect();
    assert_eq!(ids, (1..=1 + 3 * REPLACEMENTS as u64).collect::<Vec<_>>());
    cluster.register.take();
}

#[test]
fn wrong_usage_is_said_and_ends() {
    for arguments in [vec!["member", "1"], vec!["member", "1", "1", "1,2,3", "chief"], vec!["three"]] {
        let ended = Command::new(example()).args(&arguments).output().unwrap();
        assert!(!ended.status.success() && !ended.stderr.is_empty(), "{arguments:?}");
    }
}

fn node(member: &str) -> usize {
    member.split('/').next().and_then(|node| node.parse().ok()).unwrap()
}

/// Where Cargo puts the example that stands beside this test.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples/mirrored_kv");
    assert!(program.exists(), "build it first: cargo build -p steadfast --example mirrored_kv");
    program
}

fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}
