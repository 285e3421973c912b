//! Steadfast under comparison: how its agents are started, and what their lines mean ([`meaning`] alone decides that).
//!
//! They are the release build's whole agents, with their catalog, leases and seals; nothing is switched off.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use steadfast_proto::detect::graph;
use steadfast_proto::ids::NodeId;
use steadfast_proto::view::GRANTORS_MAX;

use super::cluster::Cluster;
use super::hub::{Hub, address};
use super::journal::{Class, Instant, Reader, What};
use super::systems::System;

/// The name of Steadfast in tables.
pub const NAME: &str = "steadfast";
/// The port of our agents.
const PORT: u16 = 7400;
/// How long one step of the start may take.
const STEP_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// Where data folders lie, and how their names begin.
const MEMORY: &str = "/dev/shm";
const MARK: &str = "sfd";

/// What members ask of who comes back: the same as ever, for a shorter time. How long a node proves itself is no part of any figure.
const PROBATION: &str = "seen = \"200ms\"\nclean = \"300ms\"\n";

static RUNS: AtomicU32 = AtomicU32::new(0);

/// Which host a node id is, by the first eight digits of the id, which is how logs show it.
type Nodes = Arc<Mutex<BTreeMap<String, usize>>>;

/// Our system.
#[derive(Debug)]
pub struct Steadfast {
    binary: PathBuf,
    base: PathBuf,
    /// Further sections of every configuration.
    settings: &'static str,
    nodes: Nodes,
    /// The whole ids, for the graph of who watches whom.
    ids: Mutex<BTreeMap<usize, NodeId>>,
}

impl Steadfast {
    /// One cluster's worth of Steadfast; its data lie in memory and are removed with it.
    pub fn new() -> anyhow::Result<Steadfast> {
        Steadfast::with_settings("")
    }

    /// The same with further sections in every configuration.
    pub fn with_settings(settings: &'static str) -> anyhow::Result<Steadfast> {
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        remove_leftovers();
        // Short, because a socket's path must fit in 107 bytes.
        let base = PathBuf::from(format!("{MEMORY}/{MARK}{}-{run}", std::process::id()));
        fs::create_dir_all(&base)?;
        let binary = crate::steadfast()?;
        Ok(Steadfast { binary, base, settings, nodes: Nodes::default(), ids: Mutex::default() })
    }

    /// Waits until the cluster can do without as many nodes as so many members allow: a fresh member votes and grants leases only
    /// a moment after it became one.
    pub fn wait_settled(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let spare = (cluster.running().len().min(GRANTORS_MAX) - 1) / 2;
        let asked = Instant::now();
        loop {
            let status = self.status(cluster, 0);
            let survives = status.pointer("/survives/nodes").and_then(Value::as_u64);
            if survives.is_some_and(|nodes| nodes >= spare as u64) {
                return Ok(());
            }
            if asked.elapsed() > STEP_MAX {
                let sentence =
                    status.pointer("/survives/sentence").and_then(Value::as_str).unwrap_or_default();
                bail!("the cluster does not come to survive the loss of {spare} nodes: {sentence}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the first agent counts so many members.
    fn wait_counted(&self, cluster: &Cluster, members: usize) -> anyhow::Result<()> {
        let asked = Instant::now();
        while self.counts(cluster, 0).len() + 1 < members {
            if asked.elapsed() > STEP_MAX {
                bail!(
                    "the agent on n{} becomes no member: {}",
                    members - 1,
                    cluster.journal().tail(members - 1)
                );
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The status as the agent on `host` shows it; null when it shows none.
    fn status(&self, cluster: &Cluster, host: usize) -> Value {
        let status = self.command_line(cluster.hub(), host, &["status", "-o", "json"]).unwrap_or_default();
        serde_json::from_str(&status).unwrap_or_default()
    }

    /// An address that opens the first agent's page once.
    pub fn page_token(&self, cluster: &Cluster) -> anyhow::Result<String> {
        let token = self.command_line(cluster.hub(), 0, &["page", "-o", "json"])?;
        let token: Value = serde_json::from_str(&token)?;
        let address = token.get("address").and_then(Value::as_str);
        address.map(str::to_owned).context("the token stands in an address")
    }

    /// Where the agent on `host` answers.
    pub fn socket(&self, host: usize) -> PathBuf {
        self.folder(host).join("data/steadfast.sock")
    }

    fn folder(&self, host: usize) -> PathBuf {
        self.base.join(format!("n{host}"))
    }

    fn config(&self, host: usize) -> PathBuf {
        self.folder(host).join("steadfast.toml")
    }

    fn write_config(&self, hub: &Hub, host: usize) -> anyhow::Result<()> {
        let folder = self.folder(host);
        fs::create_dir_all(folder.join("data"))?;
        let networks: String = (0..hub.networks())
            .map(|network| {
                let address = address(host, network);
                format!("[[network]]\nname = \"net{network}\"\naddress = \"{address}:{PORT}\"\n\n")
            })
            .collect();
        let folder = folder.display();
        let text = format!(
            "[node]\nname = \"n{host}\"\ndata = \"{folder}/data\"\n\n{networks}\
             [checkpoint]\nmemory = \"16MiB\"\n\n[container]\nrun = \"{folder}/r\"\n\n\
             [probation]\n{PROBATION}\n[devices]\ninclude = []\n\n{}",
            self.settings
        );
        Ok(fs::write(self.config(host), text)?)
    }

    /// Runs a command of ours against the agent on `host`, and returns what it printed.
    fn command_line(&self, hub: &Hub, host: usize, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = hub.inside(host, &self.binary);
        command.arg("--socket").arg(self.folder(host).join("data/steadfast.sock")).args(arguments);
        let output = command.output()?;
        if !output.status.success() {
            bail!(
                "`steadfast {}` on n{host}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn note_id(&self, answer: &str, host: usize) -> anyhow::Result<()> {
        let answer: Value = serde_json::from_str(answer)?;
        let id = answer.get("node_id").and_then(Value::as_str).context("the answer names the node's id")?;
        let whole: NodeId = id.parse().context("the node's id is one")?;
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).insert(host, whole);
        let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(8).collect();
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(digits, host);
        Ok(())
    }

    fn wait_answer(&self, cluster: &Cluster, host: usize) -> anyhow::Result<()> {
        let asked = Instant::now();
        loop {
            match self.command_line(cluster.hub(), host, &["status", "-o", "json"]) {
                Ok(_) => return Ok(()),
                Err(error) if asked.elapsed() > STEP_MAX => {
                    bail!(
                        "the agent on n{host} does not answer: {error}; it said {}",
                        cluster.journal().tail(host)
                    )
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }
}

impl Drop for Steadfast {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.base);
    }
}

impl System for Steadfast {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn settings(&self) -> String {
        "steadfast agent, release build, defaults but for a short probation".to_owned()
    }

    fn command(&self, hub: &Hub, host: usize) -> anyhow::Result<Command> {
        let mut command = hub.agent(host, &self.binary);
        command.args(["agent", "--config"]).arg(self.config(host)).env("RUST_BACKTRACE", "0");
        Ok(command)
    }

    fn reader(&self) -> Reader {
        let nodes = Arc::clone(&self.nodes);
        Arc::new(move |line| {
            let nodes = nodes.lock().unwrap_or_else(PoisonError::into_inner);
            meaning(line, &nodes).into_iter().map(|what| (None, what)).collect()
        })
    }

    fn counts(&self, cluster: &Cluster, host: usize) -> BTreeSet<usize> {
        let status = self.status(cluster, host);
        let members = status.pointer("/view/members").and_then(Value::as_array);
        let hosts =
            members.into_iter().flatten().filter_map(|name| name.as_str()?.strip_prefix('n')?.parse().ok());
        hosts.filter(|other| *other != host).collect()
    }

    fn watched(&self, _hosts: usize, host: usize) -> BTreeSet<usize> {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = ids.get(&host) else { return BTreeSet::new() };
        let watched = graph::watched(&ids.values().copied().collect(), graph::SEED, *own);
        ids.iter().filter(|(_, id)| watched.contains(id)).map(|(host, _)| *host).collect()
    }

    fn boot(&self, cluster: &mut Cluster) -> anyhow::Result<()> {
        for host in 0..cluster.hosts() {
            self.write_config(cluster.hub(), host)?;
        }
        let config = |host| self.config(host).display().to_string();
        let answer =
            self.command_line(cluster.hub(), 0, &["init", "bench", "--config", &config(0), "-o", "json"])?;
        self.note_id(&answer, 0)?;
        cluster.start(0)?;
        self.wait_answer(cluster, 0)?;
        for host in 1..cluster.hosts() {
            let token = self.command_line(cluster.hub(), 0, &["invite", &format!("n{host}")])?;
            let arguments = ["join", token.trim(), "--config", &config(host), "-o", "json"];
            let answer = self.command_line(cluster.hub(), host, &arguments)?;
            self.note_id(&answer, host)?;
            cluster.start(host)?;
            // One after the other: a crowd of candidates on the few cores of one machine would be in each other's way.
            self.wait_counted(cluster, host + 1)?;
        }
        cluster.wait_full(STEP_MAX)
    }
}

/// Removes the data of benchmarks that no longer run.
fn remove_leftovers() {
    for entry in fs::read_dir(MEMORY).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(MARK).and_then(|rest| rest.split_once('-')).map(|(owner, _)| owner);
        let Some(Ok(owner)) = owner.map(str::parse::<u32>) else { continue };
        if !Path::new(&format!("/proc/{owner}")).exists() {
            // Another benchmark may remove it at the same time.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// What one line of our agent's log means: the only place that knows how it is written.
fn meaning(line: &str, nodes: &BTreeMap<String, usize>) -> Vec<What> {
    if let Some((_, reason)) =
        line.split_once("view installed ").and_then(|(_, rest)| rest.split_once("reason="))
    {
        return view_meaning(reason, nodes);
    }
    if let Some((_, verdict)) = line.split_once("verdict class=") {
        return verdict_meaning(verdict, "Verdict", nodes);
    }
    if let Some((_, verdict)) = line.split_once("the verdict is over class=") {
        return verdict_meaning(verdict, "Over", nodes);
    }
    let says = |words: &str| line.contains(words);
    let peer: Vec<usize> =
        field(line, "peer").and_then(|name| name.strip_prefix('n')?.parse().ok()).into_iter().collect();
    let carries = |state: &str| !["Deaf", "Mute", "Down"].contains(&state);
    if says("a peer is suspected") {
        peer.into_iter().map(What::Suspects).collect()
    } else if says("the peer is suspected no longer") {
        peer.into_iter().map(What::Clears).collect()
    } else if says("a link fails") {
        let state = field(line, "to").unwrap_or_default();
        if carries(state) { Vec::new() } else { vec![What::LinkDown(peer)] }
    } else if says("a link recovers") {
        vec![What::LinkUp(peer)]
    } else if says("nobody is heard on a network") {
        vec![What::LinkDown(Vec::new())]
    } else if says("the network carries heartbeats again") {
        vec![What::LinkUp(Vec::new())]
    } else {
        Vec::new()
    }
}

/// The value of `name=value` or `name="value"` in a line.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {name}="))?;
    rest.split_whitespace().next().map(|value| value.trim_matches('"'))
}

/// `Removed({NodeId(a): {NodeId(b), ..}, ..})`: the keys are the removed ones, the values their accusers.
fn view_meaning(reason: &str, nodes: &BTreeMap<String, usize>) -> Vec<What> {
    if reason.starts_with("Admitted") {
        return named(reason, nodes).into_iter().map(What::Alive).collect();
    }
    if !reason.starts_with("Removed") {
        return Vec::new();
    }
    let keys = reason.split("NodeId(").filter(|rest| rest.get(8..11) == Some("): "));
    keys.filter_map(|rest| nodes.get(rest.get(..8)?)).map(|host| What::Gone(*host)).collect()
}

/// `C subject=S evidence=..`, where only a verdict has evidence.
fn verdict_meaning(text: &str, name: &str, nodes: &BTreeMap<String, usize>) -> Vec<What> {
    let Some((class, rest)) = text.split_once(" subject=") else { return Vec::new() };
    let subject = rest.split_once(" evidence=").map_or(rest, |(subject, _)| subject);
    let Some(class) = Class::ALL.into_iter().find(|known| format!("{known:?}") == class) else {
        return Vec::new();
    };
    let about = named(subject, nodes);
    let is_path = match class {
        Class::NetworkDown | Class::NetworkDownAtNode | Class::LinkCut | Class::LinkDegraded => true,
        Class::ProcessCrashed
        | Class::ProcessStalled
        | Class::HostDead
        | Class::NodeIsolated
        | Class::Split => false,
    };
    let mut means = Vec::new();
    match (name, is_path) {
        ("Verdict", true) if class != Class::LinkDegraded => means.push(What::LinkDown(about.clone())),
        ("Over", true) => means.push(What::LinkUp(about.clone())),
        ("Over", false) => means.extend(about.iter().copied().map(What::Clears)),
        _ => {}
    }
    means.push(if name == "Over" { What::Over(class, about) } else { What::Verdict(class, about) });
    means
}

/// The hosts that a text names, in order.
fn named(text: &str, nodes: &BTreeMap<String, usize>) -> Vec<usize> {
    text.split("NodeId(").skip(1).filter_map(|rest| nodes.get(rest.get(..8)?)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_mean_what_they_say() {
        let nodes = BTreeMap::from([("00000001".to_owned(), 1), ("00000002".to_owned(), 2)]);
        let of = |line| meaning(line, &nodes);
        let removed =
            "INFO view installed view=4 members=2 reason=Removed({NodeId(00000002): {NodeId(00000001)}})";
        assert_eq!(of(removed), [What::Gone(2)]);
        assert_eq!(
            of("INFO view installed view=4 members=2 reason=Admitted(NodeId(00000001))"),
            [What::Alive(1)]
        );
        let verdict =
            "INFO verdict class=HostDead subject=Node(NodeId(00000001)) evidence=[(NodeId(00000002), x)]";
        assert_eq!(of(verdict), [What::Verdict(Class::HostDead, vec![1])]);
        let over = "INFO the verdict is over class=HostDead subject=Node(NodeId(00000001))";
        assert_eq!(of(over), [What::Clears(1), What::Over(Class::HostDead, vec![1])]);
        let cut = r#"WARN a link fails peer="n2" network="net0" from=Up to=Down cause="nothing comes""#;
        assert_eq!(of(cut), [What::LinkDown(vec![2])]);
        assert_eq!(of(r#"WARN a link fails peer="n2" network="net0" from=Up to=Degraded cause="loss""#), []);
        let whole =
            r#"INFO a link recovers peer="n2" network="net0" from=Down to=Up cause="it carries both ways""#;
        assert_eq!(of(whole), [What::LinkUp(vec![2])]);
        assert_eq!(of(r#"INFO a peer is suspected peer="n2" why=Silent rule=Gossip"#), [What::Suspects(2)]);
        assert_eq!(of(r#"INFO the peer is suspected no longer peer="n2""#), [What::Clears(2)]);
        let network =
            r#"WARN nobody is heard on a network that others are heard beside network="net1" or_link=false"#;
        assert_eq!(of(network), [What::LinkDown(Vec::new())]);
        assert_eq!(of("INFO something else"), []);
    }
}
