//! The place where the agents of one system live: a name space per host, all of them on the bridges of a hub.
//!
//! Every packet between two hosts, UDP or TCP, crosses the hub, so what goes wrong on the way is decided there, by one
//! nftables transaction. Bytes are counted at each host as the kernel sends them, with their IP headers. Nothing leaves
//! the hub, everything is gone when it is dropped, and what a killed benchmark left is removed by the next one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};

/// How the names of all our name spaces begin.
const MARK: &str = "sfdetect-";
/// Where `ip netns` keeps name spaces.
const NETNS: &str = "/run/netns";

static HUBS: AtomicU32 = AtomicU32::new(0);

/// Counts what a host sends, IP headers included.
const COUNT_SENT: &str = "\
add table ip bench
add counter ip bench sent
add chain ip bench out { type filter hook output priority 100; }
add rule ip bench out oifname != lo counter name sent
";

/// What goes wrong on the way. Hosts and networks are numbered from 0.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Every packet is lost with this probability, in percent.
    Loss(u8),
    /// Every packet to this host is lost with this probability, in percent.
    LossTo(usize, u8),
    /// Packets between these two on this network are lost with this probability, in percent, each way.
    LossBetween(usize, usize, usize, u8),
    /// Nothing passes between these two hosts on this network (every network when absent).
    Cut(usize, usize, Option<usize>),
    /// Nothing passes to or from this host on this network (every network when absent).
    Alone(usize, Option<usize>),
    /// Nothing passes on this network.
    Network(usize),
    /// Nothing passes between hosts below this number and the others.
    Split(usize),
}

/// Hosts and the bridges between them.
#[derive(Debug)]
pub struct Hub {
    prefix: String,
    hosts: usize,
    networks: usize,
}

impl Hub {
    /// Makes the name spaces and their cables.
    pub fn build(hosts: usize, networks: usize) -> anyhow::Result<Hub> {
        remove_leftovers();
        let number = HUBS.fetch_add(1, Ordering::Relaxed);
        let hub = Hub { prefix: format!("{MARK}{}-{number}-", std::process::id()), hosts, networks };
        let mut spaces = format!("netns add {}\n", hub.hub());
        for host in 0..hosts {
            writeln!(spaces, "netns add {}", hub.host(host))?;
        }
        feed(Command::new("ip").args(["-batch", "-"]), &spaces)?;
        let mut lines = "link set lo up\n".to_owned();
        for network in 0..networks {
            writeln!(lines, "link add br{network} type bridge forward_delay 0 stp_state 0 mcast_snooping 0")?;
            writeln!(lines, "link set br{network} up")?;
            for host in 0..hosts {
                let port = port(host, network);
                let space = hub.host(host);
                let hardware = hardware(host, network);
                writeln!(
                    lines,
                    "link add {port} type veth peer name net{network} address {hardware} netns {space}"
                )?;
                writeln!(lines, "link set {port} master br{network} up")?;
            }
        }
        feed(Command::new("ip").args(["-n", &hub.hub(), "-batch", "-"]), &lines)?;
        for host in 0..hosts {
            hub.plug_in(host)?;
        }
        hub.inject(&[])?;
        Ok(hub)
    }

    fn plug_in(&self, host: usize) -> anyhow::Result<()> {
        let mut lines = "link set lo up\n".to_owned();
        for network in 0..self.networks {
            writeln!(lines, "address add {}/24 dev net{network}", address(host, network))?;
            writeln!(lines, "link set net{network} up")?;
        }
        lines += &self.neighbours(host);
        feed(Command::new("ip").args(["-n", &self.host(host), "-batch", "-"]), &lines)?;
        feed(self.inside(host, "nft").args(["-f", "-"]), COUNT_SENT)
    }

    /// Everybody's hardware address, told in advance: the kernel's table of neighbours that it learned itself is one
    /// for the whole machine, and a few clusters fill it.
    fn neighbours(&self, host: usize) -> String {
        let others = (0..self.hosts).filter(|other| *other != host);
        let pairs = others.flat_map(|other| (0..self.networks).map(move |network| (other, network)));
        let line = |(other, network)| {
            let (address, hardware) = (address(other, network), hardware(other, network));
            format!("neighbour replace {address} lladdr {hardware} dev net{network} nud permanent\n")
        };
        pairs.map(line).collect()
    }

    /// Number of hosts.
    pub fn hosts(&self) -> usize {
        self.hosts
    }

    /// Number of networks.
    pub fn networks(&self) -> usize {
        self.networks
    }

    /// Puts exactly these faults in force, in place of all others, at one instant.
    pub fn inject(&self, faults: &[Fault]) -> anyhow::Result<()> {
        let mut script = "add table bridge faults\nflush table bridge faults\n\
            add chain bridge faults pass { type filter hook forward priority 0; policy accept; }\n"
            .to_owned();
        for rule in faults.iter().flat_map(|fault| self.rules(fault)) {
            writeln!(script, "add rule bridge faults pass {rule} drop")?;
        }
        feed(Command::new("ip").args(["netns", "exec", &self.hub(), "nft", "-f", "-"]), &script)
    }

    fn rules(&self, fault: &Fault) -> Vec<String> {
        let by_chance = |percent: u8| format!("ether type ip numgen random mod 100 < {percent}");
        let networks = |only: Option<usize>| match only {
            Some(network) => network..network + 1,
            None => 0..self.networks,
        };
        let between = |one: usize, other: usize, network: usize| {
            let (one, other) = (port(one, network), port(other, network));
            [format!("iifname {one} oifname {other}"), format!("iifname {other} oifname {one}")]
        };
        match *fault {
            Fault::Loss(percent) => vec![by_chance(percent)],
            Fault::LossTo(host, percent) => networks(None)
                .map(|network| format!("oifname {} {}", port(host, network), by_chance(percent)))
                .collect(),
            Fault::LossBetween(one, other, network, percent) => {
                between(one, other, network).map(|rule| format!("{rule} {}", by_chance(percent))).to_vec()
            }
            Fault::Cut(one, other, only) => {
                networks(only).flat_map(|network| between(one, other, network)).collect()
            }
            Fault::Alone(host, only) => networks(only)
                .flat_map(|network| {
                    ["iifname", "oifname"].map(|end| format!("{end} {}", port(host, network)))
                })
                .collect(),
            Fault::Network(network) => vec![format!("iifname {}", ports(0..self.hosts, network))],
            Fault::Split(first) => networks(None)
                .flat_map(|network| {
                    let (low, high) = (ports(0..first, network), ports(first..self.hosts, network));
                    [format!("iifname {low} oifname {high}"), format!("iifname {high} oifname {low}")]
                })
                .collect(),
        }
    }

    /// Takes a host's interfaces down: from now on it is silent, and its kernel answers nobody.
    pub fn interfaces_down(&self, host: usize) -> anyhow::Result<()> {
        self.interfaces(host, "down")
    }

    /// Takes a host's interfaces up again.
    pub fn interfaces_up(&self, host: usize) -> anyhow::Result<()> {
        self.interfaces(host, "up")
    }

    fn interfaces(&self, host: usize, state: &str) -> anyhow::Result<()> {
        let mut lines: String =
            (0..self.networks).map(|network| format!("link set net{network} {state}\n")).collect();
        if state == "up" {
            // They went with the interfaces.
            lines += &self.neighbours(host);
        }
        feed(Command::new("ip").args(["-n", &self.host(host), "-batch", "-"]), &lines)
    }

    /// A command that will run on this host.
    pub fn inside(&self, host: usize, program: impl AsRef<OsStr>) -> Command {
        // Unlike `ip netns exec`, this leaves /sys as it is, which agents look at.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={NETNS}/{}", self.host(host))).arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// A command that will run on this host, and die with the thread that starts it.
    pub fn agent(&self, host: usize, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.inside(host, "setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    /// Bytes that this host has sent so far, IP headers counted, its own loopback not.
    pub fn bytes_sent(&self, host: usize) -> anyhow::Result<u64> {
        let output =
            self.inside(host, "nft").args(["-j", "list", "counter", "ip", "bench", "sent"]).output()?;
        let answer: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("nft answers with JSON")?;
        let items =
            answer.get("nftables").and_then(|items| items.as_array()).context("nft lists something")?;
        let counter = items.iter().find_map(|item| item.get("counter")).context("the counter is there")?;
        counter.get("bytes").and_then(serde_json::Value::as_u64).context("a counter counts bytes")
    }

    fn hub(&self) -> String {
        format!("{}hub", self.prefix)
    }

    fn host(&self, host: usize) -> String {
        format!("{}h{host}", self.prefix)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let names = (0..self.hosts).map(|host| self.host(host)).chain([self.hub()]);
        names.for_each(|name| delete(&name));
    }
}

/// The address of a host on a network.
pub fn address(host: usize, network: usize) -> IpAddr {
    let subnet = u8::try_from(network + 1).expect("a hub has few networks");
    let last = u8::try_from(host + 11).expect("a hub has few hosts");
    IpAddr::V4(Ipv4Addr::new(10, 79, subnet, last))
}

/// The host with this address.
pub fn host_of(address: IpAddr) -> Option<usize> {
    let IpAddr::V4(address) = address else { return None };
    let [10, 79, _, last] = address.octets() else { return None };
    usize::from(last).checked_sub(11)
}

fn hardware(host: usize, network: usize) -> String {
    format!("02:5f:00:00:{network:02x}:{host:02x}")
}

fn port(host: usize, network: usize) -> String {
    format!("h{host}n{network}")
}

/// The hub's ports to these hosts, as a set of nftables.
fn ports(hosts: Range<usize>, network: usize) -> String {
    let ports: Vec<String> = hosts.map(|host| port(host, network)).collect();
    format!("{{ {} }}", ports.join(", "))
}

fn delete(name: &str) {
    // It is gone already when the hub was never finished.
    let _ = Command::new("ip").args(["netns", "delete", name]).stderr(Stdio::null()).status();
}

/// Removes the name spaces of benchmarks that no longer run.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(NETNS) else { return };
    let mut alive: BTreeMap<String, bool> = BTreeMap::new();
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some((owner, _)) = name.strip_prefix(MARK).and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        let runs = *alive.entry(owner.to_owned()).or_insert_with(|| Path::new("/proc").join(owner).exists());
        if !runs {
            delete(&name);
        }
    }
}

/// Runs a program to its end with this on its standard input.
fn feed(command: &mut Command, input: &str) -> anyhow::Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{command:?} did not start"))?;
    let mut pipe = child.stdin.take().context("its standard input is a pipe")?;
    // A program that refuses its input early closes the pipe; its status tells more.
    let written = pipe.write_all(input.as_bytes());
    drop(pipe);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?} failed: {} about {input}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(written?)
}
