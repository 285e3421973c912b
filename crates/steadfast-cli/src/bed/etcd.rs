//! An etcd beside the agents: one member on each of the first hosts, for beds whose catalog is not the nodes' own.
//!
//! A member lives and dies with its host's power and has its data on the host's disk; killing an agent leaves it alone. It decides only how
//! etcd is started, and never asks it for anything but whether it serves.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::cluster::{PATIENCE, wait_for};
use super::{Bed, BedError, Host, network};

/// Most members; further hosts only ask.
const MEMBERS_MAX: usize = 5;
/// Most addresses that a node is given.
const ENDPOINTS_MAX: usize = 16;
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const ANSWER_MAX: Duration = Duration::from_secs(2);

fn address(host: usize, network: usize, port: u16) -> SocketAddr {
    let mut address = network::host_address(host, network);
    address.set_port(port);
    address
}

fn urls(host: usize, networks: usize, port: u16) -> Vec<String> {
    (0..networks).map(|network| format!("http://{}", address(host, network, port))).collect()
}

/// How a node reaches etcd: its own member first, the others on each network.
pub(super) fn setting(host: usize, hosts: usize, networks: usize) -> String {
    let members = hosts.min(MEMBERS_MAX);
    let others = (0..members).filter(|other| *other != host);
    let own = (host < members).then_some(host);
    let all: Vec<String> = (own.into_iter().chain(others))
        .flat_map(|member| urls(member, networks, CLIENT_PORT))
        .take(ENDPOINTS_MAX)
        .map(|url| format!("{url:?}"))
        .collect();
    format!("engine = \"etcd\"\nendpoints = [{}]\n", all.join(", "))
}

/// Whether a host has a member.
pub(super) fn is_member(host: usize) -> bool {
    host < MEMBERS_MAX
}

/// The command that starts a host's member.
pub(super) fn command(
    program: &Path,
    folder: &Path,
    host: usize,
    (hosts, networks): (usize, usize),
) -> std::io::Result<Command> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("etcd.log"))?;
    let all: Vec<String> = (0..hosts.min(MEMBERS_MAX))
        .flat_map(|member| {
            urls(member, networks, PEER_PORT).into_iter().map(move |url| format!("m{member}={url}"))
        })
        .collect();
    let (clients, peers) =
        (urls(host, networks, CLIENT_PORT).join(","), urls(host, networks, PEER_PORT).join(","));
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(folder.join("etcd"));
    command.args(["--name", &format!("m{host}"), "--initial-cluster", &all.join(",")]);
    command.args(["--initial-cluster-state", "new", "--initial-cluster-token", "bed"]);
    command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    command.args(["--max-txn-ops", "512", "--max-request-bytes", "8388608"]);
    command.args(["--logger", "zap", "--log-level", "warn"]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

impl Bed {
    /// Waits until every member of etcd on a host with power answers that it has a leader; nothing to wait for where there is none.
    pub fn wait_etcd(&self) -> Result<(), BedError> {
        if self.shared.plan.etcd.is_none() {
            return Ok(());
        }
        let members = self.hosts().iter().filter(|host| is_member(host.number()) && host.is_on());
        for host in members {
            wait_for(&format!("etcd on {}", host.name()), PATIENCE, || {
                host.has_serving_etcd().then_some(())
            })?;
        }
        Ok(())
    }
}

impl Host {
    fn has_serving_etcd(&self) -> bool {
        let asked = self.with_spaces(|spaces| {
            let mut stream = spaces.tcp_connect(address(self.number(), 0, CLIENT_PORT), ANSWER_MAX)?;
            stream.set_read_timeout(Some(ANSWER_MAX))?;
            stream.write_all(b"GET /health HTTP/1.1\r\nhost: etcd\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        asked.is_ok_and(|answer| answer.contains("\"true\""))
    }

    /// Stops this host's etcd as a machine stops a process, or lets it go on.
    pub fn signal_etcd(&self, signal: rustix::process::Signal) -> Result<(), BedError> {
        let id = self.etcd_pid().ok_or(BedError::State {
            host: self.name().to_owned(),
            state: "without an etcd",
            right: "build the bed with one",
        })?;
        super::host::signal_process(id, signal)
    }
}

/// Collects a member that died with its host.
pub(super) fn bury(member: Option<Child>) {
    if let Some(mut member) = member {
        let _ = member.wait();
    }
}
