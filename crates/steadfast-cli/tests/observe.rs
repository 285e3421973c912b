//! `mode = "observe"` and `"witness"`: three agents on loopback, run by a user without any privilege, alone and beside Serf.
//!
//! They form a cluster, see each other's links, refuse what concerns containers and name the one that is killed; Serf's
//! agents on the same hosts say the same, and neither disturbs the other. Nothing is installed or mounted; the tests
//! wait for conditions and end what they started also when they fail. A host is an address on each of two networks.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a panic is the report; clippy knows only functions marked as tests"
)]

#[path = "../../../xtask/src/setup/find_serf.rs"]
mod find_serf;

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;
use steadfast_cli::api::types::{Happening, Node, Status};
use steadfast_cli::api::view_types::ViewRecord;
use steadfast_cli::bed::wait_for;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// `nobody` and `nogroup`, who own nothing.
const NOBODY: u32 = 65_534;

/// What an agent notes when it holds something against a node or a network.
const ACCUSATIONS: [&str; 5] = ["suspected", "verdict", "removed", "isolated", "network_suspected"];

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
    serfs: Vec<Option<Agent>>,
    ports: Ports,
    folder: TempDir,
}

/// Ports that are free on every host.
#[derive(Clone, Copy)]
struct Ports {
    steadfast: u16,
    serf: u16,
    /// For questions to Serf.
    serf_rpc: u16,
}

/// What `serf members -format=json` prints, as far as it matters here.
#[derive(serde::Deserialize)]
struct SerfMembers {
    members: Vec<SerfMember>,
}

#[derive(serde::Deserialize)]
struct SerfMember {
    name: String,
    status: String,
}

#[test]
fn agents_without_root_watch_each_other_and_run_nothing() {
    let mut observers = Observers::new();
    observers.form_cluster();
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

#[test]
fn views_are_told_with_their_evidence_and_a_witness_votes_for_two_racks() {
    let mut nodes = Observers::of([
        "mode = \"observe\"\ndomain = [\"site\", \"rack-1\"]",
        "mode = \"observe\"\ndomain = [\"site\", \"rack-1\"]",
        "mode = \"witness\"\ndomain = [\"site\", \"rack-2\"]",
    ]);
    nodes.form_cluster();
    let status = wait_for("votes and leases of three", PATIENCE, || {
        nodes.status(0).filter(|status| status.survives.nodes == 1)
    })
    .unwrap();
    let said: BTreeMap<String, (usize, bool)> = (status.survives.domains.iter())
        .map(|domain| (domain.domain.join("/"), (domain.hosts.len(), domain.survived)))
        .collect();
    let expected = [("site", (3, false)), ("site/rack-1", (2, false)), ("site/rack-2", (1, true))];
    assert_eq!(said, expected.map(|(domain, is)| (domain.to_owned(), is)).into());
    assert!(status.survives.sentence.contains("not of site/rack-1"), "{}", status.survives.sentence);
    let shown: Vec<Node> = nodes.json(0, &["nodes"]).unwrap();
    assert!(shown.iter().any(|node| node.name == "gamma" && node.domain == ["site", "rack-2"]), "{shown:?}");

    // A witness takes commands; none of these three can carry this one out.
    let refused = nodes.command(2, &["run", "--name", "web", "--", "true"]);
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.contains("SF-0040") && refused.contains("no member can run containers"), "{refused}");

    let before: Vec<ViewRecord> = nodes.json(1, &["views"]).unwrap();
    assert!(before.iter().map(|view| view.id).eq(1..=before.len() as u64), "{before:?}");
    let changes: Vec<&str> = before.iter().map(|view| view.change.as_str()).collect();
    assert!(changes.iter().filter(|change| **change == "admitted").count() >= 2, "{changes:?}");
    assert!(changes.iter().filter(|change| **change == "grantor").count() >= 2, "{changes:?}");
    assert!(changes[0] == "founded" && before.iter().all(|view| view.proposed_unix_ms > 0));

    let followed = nodes.folder.path().join("views.json");
    let mut follower = nodes.program(0);
    follower.args(["-o", "json", "views", "--follow", "--limit", "1"]);
    let follower = follower.stdout(fs::File::create(&followed).unwrap()).spawn().unwrap();
    let _follower = Agent(follower);
    let told = || -> Vec<ViewRecord> {
        let text = fs::read_to_string(&followed).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    wait_for("the newest view told", PATIENCE, || told().first().map(drop)).unwrap();
    nodes.agents[2] = None;
    let removal =
        wait_for("the removal told", PATIENCE, || told().into_iter().find(|view| view.change == "removed"))
            .unwrap();
    let gone = &removal.nodes[0];
    assert!(removal.nodes.len() == 1 && gone.node == "gamma" && gone.class.is_some(), "{removal:?}");
    assert!(!gone.accusers.is_empty() && !gone.accusers.contains(&"gamma".to_owned()), "{removal:?}");
    assert!(removal.members.iter().all(|member| member.node != "gamma"), "{removal:?}");
    nodes.start(2);
    let back = wait_for("the return told", PATIENCE, || {
        let mut told = told();
        told.retain(|view| view.id > removal.id && view.change == "admitted");
        told.pop()
    })
    .unwrap();
    assert!(back.nodes[0].node == "gamma" && back.nodes[0].incarnation > Some(1), "{back:?}");
    let told: Vec<u64> = told().iter().map(|view| view.id).collect();
    assert!(told.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{told:?}");
}

#[test]
fn agents_stand_beside_serf_on_the_same_hosts_and_both_name_the_one_that_is_lost() {
    let mut observers = Observers::new();
    for index in 0..NAMES.len() {
        observers.start_serf(index);
    }
    observers.form_cluster();
    let (gone, left) = (2, 0..2);
    for index in 0..NAMES.len() {
        wait_for("Serf's three members, all alive", PATIENCE, || {
            let members = observers.serf_members(index)?;
            (members.len() == 3 && members.values().all(|status| status == "alive")).then_some(())
        })
        .unwrap();
    }
    let statuses: Vec<Status> = (0..NAMES.len()).map(|index| observers.status(index).unwrap()).collect();
    for status in &statuses {
        let accused = status.timeline.iter().find(|noted| ACCUSATIONS.contains(&noted.what.as_str()));
        assert!(accused.is_none(), "{} accuses while all are well: {accused:?}", status.node);
        assert!(hears_all(status), "{status:?}");
    }

    // The whole host, as far as it has agents.
    observers.agents[gone] = None;
    observers.serfs[gone] = None;
    for index in left {
        wait_for("the killed one removed from the view", PATIENCE, || {
            let status = observers.status(index)?;
            let members = &status.view.members;
            (members.len() == 2 && !members.iter().any(|name| name == NAMES[gone])).then_some(())
        })
        .unwrap();
        wait_for("the killed one failed in Serf's eyes", PATIENCE, || {
            let members = observers.serf_members(index)?;
            (members.get(NAMES[gone])? == "failed").then_some(())
        })
        .unwrap();
        let (status, members) = (observers.status(index).unwrap(), observers.serf_members(index).unwrap());
        let of_others = |noted: &&Happening| {
            ACCUSATIONS.contains(&noted.what.as_str())
                && noted.node.as_deref().is_some_and(|node| node != NAMES[gone])
        };
        let wrong = status.timeline.iter().find(of_others);
        assert!(wrong.is_none(), "{} accuses the living: {wrong:?}", status.node);
        let alive = members.values().filter(|status| *status == "alive").count();
        assert_eq!((alive, members.len()), (2, 3), "{members:?}");
    }
}

fn hears_all(status: &Status) -> bool {
    let heard = status.peers.iter().flat_map(|peer| &peer.networks).filter(|heard| heard.age_ms.is_some());
    status.view.members.len() == 3 && heard.count() == 4 && !status.peers.iter().any(|peer| peer.suspected)
}

impl Observers {
    fn new() -> Observers {
        Observers::of(["mode = \"observe\""; 3])
    }

    /// Three nodes, with these lines in their `[node]`.
    fn of(lines: [&str; 3]) -> Observers {
        let folder = tempfile::tempdir().unwrap();
        give_away(folder.path());
        let ports = Ports::free();
        for (index, (name, line)) in NAMES.iter().zip(lines).enumerate() {
            let data = folder.path().join(name);
            fs::create_dir(&data).unwrap();
            give_away(&data);
            let [front, back] = addresses(index).map(|address| format!("{address}:{}", ports.steadfast));
            let data = data.display();
            let text = format!(
                "[node]\nname = \"{name}\"\ndata = \"{data}\"\n{line}\n\n[[network]]\nname = \"front\"\naddress = \"{front}\"\n\n[[network]]\nname = \"back\"\naddress = \"{back}\"\n"
            );
            fs::write(folder.path().join(format!("{name}.toml")), text).unwrap();
        }
        Observers { agents: NAMES.map(|_| None).into(), serfs: NAMES.map(|_| None).into(), ports, folder }
    }

    /// Three members that hear each other on both networks.
    fn form_cluster(&mut self) {
        self.text(0, &["init", "watch", "--config", &self.config(0)]);
        self.start(0);
        for (index, name) in NAMES.iter().enumerate().skip(1) {
            let token = self.text(0, &["invite", name]);
            self.text(index, &["join", token.trim(), "--config", &self.config(index)]);
            self.start(index);
        }
        // Two of two voters, or grantors, are no majority without the other: all three take part before one is lost.
        wait_for("three members that hear each other on both networks and can lose one", PATIENCE, || {
            let statuses = (0..NAMES.len()).map(|index| self.status(index)).collect::<Option<Vec<_>>>()?;
            let founder = statuses.first()?;
            let added = founder.timeline.iter().filter(|happening| happening.what == "grantor").count();
            let is_safe = founder.survives.nodes >= 1 && added + 1 == NAMES.len();
            (is_safe && statuses.iter().all(hears_all)).then_some(())
        })
        .unwrap();
    }

    fn config(&self, index: usize) -> String {
        self.folder.path().join(format!("{}.toml", NAMES[index])).display().to_string()
    }

    fn socket(&self, index: usize) -> PathBuf {
        self.folder.path().join(NAMES[index]).join("steadfast.sock")
    }

    fn program(&self, index: usize) -> Command {
        let mut command = self.unprivileged(env!("CARGO_BIN_EXE_steadfast").as_ref());
        command.env("STEADFAST_SOCKET", self.socket(index));
        command
    }

    fn unprivileged(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path());
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

    /// Serf's own agent on a host, with its defaults for a local network.
    fn start_serf(&mut self, index: usize) {
        let log = fs::File::create(self.folder.path().join(format!("{}.serf.log", NAMES[index]))).unwrap();
        let [front, _] = addresses(index);
        let mut serf = self.serf();
        serf.args(["agent", "-retry-interval=1s", &format!("-node={}", NAMES[index])]);
        serf.arg(format!("-bind={front}:{}", self.ports.serf));
        serf.arg(format!("-rpc-addr={front}:{}", self.ports.serf_rpc));
        if index > 0 {
            serf.arg(format!("-retry-join={}:{}", addresses(0)[0], self.ports.serf));
        }
        let serf = serf.stdout(log).stderr(Stdio::null()).spawn().unwrap();
        self.serfs[index] = Some(Agent(serf));
    }

    /// Every member that Serf on a host knows, and what it makes of it.
    fn serf_members(&self, index: usize) -> Option<BTreeMap<String, String>> {
        let rpc = format!("-rpc-addr={}:{}", addresses(index)[0], self.ports.serf_rpc);
        let ended = self.serf().args(["members", "-format=json", &rpc]).output().unwrap();
        let answer: SerfMembers = serde_json::from_slice(&ended.stdout).ok()?;
        Some(answer.members.into_iter().map(|member| (member.name, member.status)).collect())
    }

    fn serf(&self) -> Command {
        let program =
            find_serf::find().expect("there is no serf to run beside; `cargo xtask setup` unpacks one");
        self.unprivileged(&program)
    }
}

fn give_away(path: &Path) {
    if rustix::process::geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// The address of a host on each of the two networks.
fn addresses(index: usize) -> [String; 2] {
    [0, 1].map(|network| format!("127.0.{network}.{}", index + 1))
}

impl Ports {
    fn free() -> Ports {
        let is_free = |port: &u16| {
            (0..NAMES.len()).flat_map(addresses).all(|host| {
                UdpSocket::bind((host.as_str(), *port)).is_ok() && TcpListener::bind((host, *port)).is_ok()
            })
        };
        let first = 20_000 + u16::try_from(std::process::id() % 12_000).unwrap();
        let mut free = (first..first + 500).filter(is_free);
        let mut next = || free.next().unwrap();
        Ports { steadfast: next(), serf: next(), serf_rpc: next() }
    }
}
