//! The peers: how each is started with its documented LAN defaults, and what its lines mean.
//!
//! A system never decides what counts as good; it only says who counts whom among the living. [`super::ours`] is the
//! same for Steadfast.

#[path = "../../../xtask/src/setup/find_serf.rs"]
mod find_serf;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};

use super::cluster::Cluster;
use super::hub::{Hub, address, host_of};
use super::journal::{Instant, Reader, What};

/// The port of every peer's agents.
const PORT: u16 = 7946;
/// Through how many agents a new one joins.
const SEEDS: usize = 3;
/// How long agents may take to find each other.
const BOOT_MAX: Duration = Duration::from_secs(60);

/// One system under comparison.
pub trait System: Send + Sync {
    /// Its name in tables.
    fn name(&self) -> String;
    /// Its settings, for the record.
    fn settings(&self) -> String;
    /// How its agent on `host` is started.
    fn command(&self, hub: &Hub, host: usize) -> anyhow::Result<Command>;
    /// What its agents' lines mean.
    fn reader(&self) -> Reader;
    /// The hosts that the agent on `host` counts among the living now, itself aside.
    fn counts(&self, cluster: &Cluster, host: usize) -> BTreeSet<usize> {
        cluster.journal().members(host)
    }
    /// The hosts whose links to `host` the system watches, of `hosts`.
    fn watched(&self, hosts: usize, host: usize) -> BTreeSet<usize> {
        (0..hosts).filter(|other| *other != host).collect()
    }
    /// Starts all agents and waits until each counts all others.
    fn boot(&self, cluster: &mut Cluster) -> anyhow::Result<()> {
        for host in 0..cluster.hosts() {
            cluster.start(host)?;
        }
        cluster.wait_full(BOOT_MAX)
    }
}

/// Serf with one of its profiles; the agent offers no finer knobs.
#[derive(Debug)]
pub struct Serf {
    binary: PathBuf,
    profile: &'static str,
}

impl Serf {
    /// The installed Serf, else the one that the set-up unpacked.
    pub fn find(profile: &'static str) -> anyhow::Result<Serf> {
        let binary = find_serf::find();
        let binary = binary.context("there is no serf to compare with; `cargo xtask setup` unpacks one")?;
        Ok(Serf { binary, profile })
    }

    /// The program.
    pub fn binary(&self) -> &Path {
        &self.binary
    }
}

impl System for Serf {
    fn name(&self) -> String {
        if self.profile == "lan" { "serf".into() } else { format!("serf-{}", self.profile) }
    }

    fn settings(&self) -> String {
        format!("serf agent -profile={}", self.profile)
    }

    fn command(&self, hub: &Hub, host: usize) -> anyhow::Result<Command> {
        let mut command = hub.agent(host, &self.binary);
        command.args(["agent", "-log-level=info", "-retry-interval=1s"]);
        command.arg(format!("-node=n{host}")).arg(format!("-profile={}", self.profile));
        command.arg(format!("-bind={}", SocketAddr::new(address(host, 0), PORT)));
        command.args(seeds(host).map(|seed| format!("-retry-join={seed}")));
        Ok(command)
    }

    fn reader(&self) -> Reader {
        Arc::new(|line| {
            let node = |text: &str| text.split_whitespace().next()?.strip_prefix('n')?.parse::<usize>().ok();
            let meant = if let Some((_, rest)) = line.split_once("EventMemberJoin: ") {
                node(rest).map(What::Alive)
            } else if let Some((_, rest)) = line.split_once("EventMemberFailed: ") {
                node(rest).map(What::Gone)
            } else if let Some((_, rest)) = line.split_once("EventMemberLeave: ") {
                node(rest).map(What::Gone)
            } else if let Some((_, rest)) = line.split_once("memberlist: Suspect ") {
                node(rest).map(What::Suspects)
            } else {
                None
            };
            meant.map(|what| (None, what)).into_iter().collect()
        })
    }
}

/// One of the two agents of ours around a crate; see `bench/peers`.
#[derive(Debug)]
pub struct Crate {
    name: &'static str,
    binary: PathBuf,
    /// By what its intervals are divided; 1 is the documented default.
    speed: f64,
}

impl Crate {
    /// The agent around foca or chitchat, built when it is not there yet.
    pub fn build(name: &'static str, speed: f64) -> anyhow::Result<Crate> {
        let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers").join(name).join("Cargo.toml");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        run(Command::new(cargo)
            .args(["build", "--quiet", "--release", "--manifest-path"])
            .arg(manifest)
            .arg("--target-dir")
            .arg(peers_target()))?;
        Ok(Crate { name, binary: peers_target().join(format!("release/peer-{name}")), speed })
    }

    /// The same at another speed.
    pub fn at_speed(&self, speed: f64) -> Crate {
        Crate { name: self.name, binary: self.binary.clone(), speed }
    }
}

impl System for Crate {
    fn name(&self) -> String {
        if self.speed == 1.0 { self.name.to_owned() } else { format!("{}-matched", self.name) }
    }

    fn settings(&self) -> String {
        let defaults = match self.name {
            "foca" => "foca 2.0 Config::new_lan(N), PostcardCodec, no custom payload",
            _ => "chitchat 0.13, gossip 1 s, phi 8, defaults",
        };
        if self.speed == 1.0 {
            defaults.to_owned()
        } else {
            format!("{defaults}; its intervals divided by {:.2}", self.speed)
        }
    }

    fn command(&self, hub: &Hub, host: usize) -> anyhow::Result<Command> {
        let mut command = hub.agent(host, &self.binary);
        let own = SocketAddr::new(address(host, 0), PORT).to_string();
        if self.name == "foca" {
            command.args([own, hub.hosts().to_string()]);
        } else {
            command.args([format!("n{host}"), own]);
        }
        command.arg(self.speed.to_string()).args(seeds(host).map(|seed| seed.to_string()));
        Ok(command)
    }

    fn reader(&self) -> Reader {
        Arc::new(|line| {
            let mut words = line.split_whitespace();
            let (Some(at), Some(what), Some(other)) = (words.next(), words.next(), words.next()) else {
                return Vec::new();
            };
            let host = other.parse::<SocketAddr>().ok().and_then(|other| host_of(other.ip()));
            let (Ok(at), Some(host)) = (at.parse(), host) else { return Vec::new() };
            match what {
                "up" => vec![(Some(Instant(at)), What::Alive(host))],
                "down" => vec![(Some(Instant(at)), What::Gone(host))],
                _ => Vec::new(),
            }
        })
    }
}

fn seeds(host: usize) -> impl Iterator<Item = SocketAddr> {
    (0..SEEDS).filter(move |seed| *seed != host).map(|seed| SocketAddr::new(address(seed, 0), PORT))
}

/// Where peers are built.
fn peers_target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers")
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?} did not start"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
