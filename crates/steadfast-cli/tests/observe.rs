//! `mode = "observe"`: three agents on loopback, run by a user without any privilege.
//!
//! They form a cluster, see each other's links, refuse what concerns containers and name the one that is killed. Nothing
//! is installed or mounted; the test waits for conditions and ends what it started also when it fails.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a panic is the report; clippy knows only functions marked as tests"
)]

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::time::Duration;

use serde::de::DeserializeOwned;
use steadfast_cli::api::types::{Node, Status};
use steadfast_cli::bed::wait_for;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// `nobody` and `nogroup`, who own nothing.
const NOBODY: u32 = 65_534;

const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have been killed before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Observers {
    // Before the folder: they end first.
    agents: Vec<Option<Agent>>,
    folder: TempDir,
}

#[test]
fn agents_without_root_watch_each_other_and_run_nothing() {
    let mut observers = Observers::new();
    observers.text(0, &["init", "watch", "--config", &observers.config(0)]);
    observers.start(0);
    for (index, name) in NAMES.iter().enumerate().skip(1) {
        let token = observers.text(0, &["invite", name]);
        observers.text(index, &["join", token.trim(), "--config", &observers.config(index)]);
        observers.start(index);
    }
    wait_for("three members that hear each other on both networks", PATIENCE, || {
        let statuses = (0..NAMES.len()).map(|index| observers.status(index)).collect::<Option<Vec<_>>>()?;
        statuses.iter().all(hears_all).then_some(())
    })
    .unwrap();
    let nodes: Vec<Node> = observers.json(1, &["nodes"]).unwrap();
    assert!(nodes.iter().all(|node| node.memory_bytes == 0 && node.criu.is_empty()), "{nodes:?}");

    for verb in
        [&["run", "--name", "web", "--", "true"][..], &["stop", "web"], &["logs", "web"], &["rm", "web"]]
    {
        let refused = observers.command(1, verb);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("SF-0040") && said.contains("observe"), "{said}");
    }
    assert!(observers.command(1, &["ps"]).status.success(), "looking is allowed");

    observers.agents[2] = None;
    wait_for("the killed one removed from the view", PATIENCE, || {
        let view = observers.status(0)?.view;
        (view.members.len() == 2).then_some(())
    })
    .unwrap();
}

fn hears_all(status: &Status) -> bool {
    let heard = status.peers.iter().flat_map(|peer| &peer.networks).filter(|heard| heard.age_ms.is_some());
    status.view.members.len() == 3 && heard.count() == 4 && !status.peers.iter().any(|peer| peer.suspected)
}

impl Observers {
    fn new() -> Observers {
        let folder = tempfile::tempdir().unwrap();
        give_away(folder.path());
        let ports = free_ports();
        for (index, name) in NAMES.iter().enumerate() {
            let data = folder.path().join(name);
            fs::create_dir(&data).unwrap();
            give_away(&data);
            let port = ports + u16::try_from(index).unwrap();
            let data = data.display();
            let text = format!(
                "[node]\nname = \"{name}\"\ndata = \"{data}\"\nmode = \"observe\"\n\n[[network]]\nname = \"front\"\naddress = \"127.0.0.1:{port}\"\n\n[[network]]\nname = \"back\"\naddress = \"127.0.1.1:{port}\"\n"
            );
            fs::write(folder.path().join(format!("{name}.toml")), text).unwrap();
        }
        Observers { agents: NAMES.map(|_| None).into(), folder }
    }

    fn config(&self, index: usize) -> String {
        self.folder.path().join(format!("{}.toml", NAMES[index])).display().to_string()
    }

    fn socket(&self, index: usize) -> PathBuf {
        self.folder.path().join(NAMES[index]).join("steadfast.sock")
    }

    fn program(&self, index: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
        command.env("STEADFAST_SOCKET", self.socket(index)).current_dir(self.folder.path());
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    fn command(&self, index: usize, arguments: &[&str]) -> Output {
        self.program(index).args(arguments).output().unwrap()
    }

    fn text(&self, index: usize, arguments: &[&str]) -> String {
        let ended = self.command(index, arguments);
        assert!(ended.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8(ended.stdout).unwrap()
    }

    fn json<T: DeserializeOwned>(&self, index: usize, arguments: &[&str]) -> Option<T> {
        let ended = self.command(index, &[arguments, &["-o", "json"]].concat());
        serde_json::from_slice(&ended.stdout).ok()
    }

    fn status(&self, index: usize) -> Option<Status> {
        self.json(index, &["status"])
    }

    fn start(&mut self, index: usize) {
        let log = fs::File::create(self.folder.path().join(format!("{}.log", NAMES[index]))).unwrap();
        let mut agent = self.program(index);
        let agent = agent.args(["agent", "--config", &self.config(index)]).stderr(log).spawn().unwrap();
        self.agents[index] = Some(Agent(agent));
        let waited = wait_for("the agent's answer", PATIENCE, || self.status(index).map(drop));
        if waited.is_err() {
            let log = fs::read_to_string(self.folder.path().join(format!("{}.log", NAMES[index])));
            panic!("{} does not answer: {}", NAMES[index], log.unwrap_or_default());
        }
    }
}

fn give_away(path: &std::path::Path) {
    if rustix::process::geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// The first of as many ports as there are nodes, free on both networks.
fn free_ports() -> u16 {
    let is_free = |port: u16| {
        ["127.0.0.1", "127.0.1.1"]
            .iter()
            .all(|host| UdpSocket::bind((*host, port)).is_ok() && TcpListener::bind((*host, port)).is_ok())
    };
    let first = 20_000 + u16::try_from(std::process::id() % 12_000).unwrap();
    let count = u16::try_from(NAMES.len()).unwrap();
    (first..first + 500).find(|port| (0..count).all(|index| is_free(port + index))).unwrap()
}
