//! The test bed: hosts made of name spaces on private networks, real agents in them, and everything that can go wrong.
//!
//! The demo, the cluster tests and the benchmarks all stand on it. It starts what a machine would start and breaks what
//! breaks in the world; it never reaches into an agent. Nothing leaves the machine, and everything is gone when the [`Bed`]
//! is dropped, also after a panic or a SIGKILL of its owner. Needs root. Reading order: `spaces.rs` (a host's walls), `network.rs`,
//! `faults.rs`, `host.rs`, `cluster.rs` (a cluster on the hosts), `witness.rs` (who sees whether a program ran twice).
//!
//! ```no_run
//! # fn main() -> Result<(), steadfast_cli::bed::BedError> {
//! let bed = steadfast_cli::bed::Bed::builder("target/debug/steadfast").hosts(3).networks(2).build()?;
//! bed.init_cluster("trial")?;
//! bed.host(0).power_off()?; // every process of the host at once, and silence on every network
//! # Ok(()) }
//! ```

mod cgroups;
mod cluster;
pub mod command;
pub mod control;
mod etcd;
mod faults;
mod host;
pub mod init;
mod network;
mod os;
pub mod postgresql;
mod registry;
mod relay;
mod spaces;
pub mod witness;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use cluster::wait_for;
pub use faults::{Direction, Fault, FaultId};
pub use host::{Finished, Host};
pub use network::{AGENT_PORT, SERVICE, UPLINK, client_address, host_address, service_address};
pub use registry::{Registered, cleanup_stale, registered};
pub use spaces::Spaces;

/// Names of the hosts, in order.
const HOST_NAMES: [&str; 9] = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota"];
/// Names of the networks, in order.
const NETWORK_NAMES: [&str; 4] = ["front", "back", "side", "spare"];

/// Why the bed could not do what it was asked for. Unless a variant says otherwise, the bed is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum BedError {
    /// Name spaces are made by root only.
    #[error("the test bed makes name spaces, which needs root: run it as root")]
    NotRoot,
    /// The builder was given what no bed can have.
    #[error("a test bed cannot have {what}: {right}")]
    Impossible {
        /// What was asked for.
        what: String,
        /// What would be right.
        right: &'static str,
    },
    /// A host, the hub or the client did not start.
    #[error("{host} of the test bed did not start: {source}")]
    Start {
        /// Its name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// A host is not in the state that the request needs.
    #[error("host {host} is {state}: {right}")]
    State {
        /// Its name.
        host: String,
        /// Its state.
        state: &'static str,
        /// What would be right.
        right: &'static str,
    },
    /// A helper program failed; what it was asked for may be half done.
    #[error("{program} failed: {source}")]
    Program {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A file of the bed could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A steadfast command ended with an error.
    #[error("on {host}, `steadfast {command}` ended with status {status}: {talk}")]
    Refused {
        /// The host it ran on.
        host: String,
        /// The arguments.
        command: String,
        /// Exit status (-1: killed by a signal).
        status: i32,
        /// What it said on standard error.
        talk: String,
    },
    /// A command answered with something that is not the JSON it promises.
    #[error("on {host}, `steadfast {command}` answered {answer:?}: {problem}")]
    Answer {
        /// The host it ran on.
        host: String,
        /// The arguments.
        command: String,
        /// What it said on standard output.
        answer: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A condition did not come true in time.
    #[error("waited {seconds} s in vain for {what}")]
    TimedOut {
        /// The condition.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
}

/// What a bed is made of; see [`Bed::builder`].
#[derive(Debug, Clone)]
pub struct BedBuilder {
    binary: PathBuf,
    hosts: usize,
    standbys: usize,
    networks: usize,
    lease: Option<Duration>,
    memory: String,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    etcd: Option<PathBuf>,
}

impl BedBuilder {
    /// Number of hosts, 1 to 9 (default 3).
    #[must_use]
    pub fn hosts(mut self, count: usize) -> Self {
        self.hosts = count;
        self
    }

    /// How many of the hosts, the last ones, stand by and are no members (default 0).
    #[must_use]
    pub fn standbys(mut self, count: usize) -> Self {
        self.standbys = count;
        self
    }

    /// Number of independent networks between the hosts, 1 to 4 (default 2), besides the service network.
    #[must_use]
    pub fn networks(mut self, count: usize) -> Self {
        self.networks = count;
        self
    }

    /// The cluster's lease, where it shall differ from the default.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Checkpoint memory of each node, as the configuration writes it (default `"1GiB"`).
    #[must_use]
    pub fn memory(mut self, memory: &str) -> Self {
        memory.clone_into(&mut self.memory);
        self
    }

    /// A further setting `key = value` (in TOML) in section `section` of every node's configuration.
    #[must_use]
    pub fn setting(mut self, section: &str, line: &str) -> Self {
        self.settings.push((section.to_owned(), line.to_owned()));
        self
    }

    /// A further environment variable of every agent and command.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Keeps the catalog in an etcd of which the first five hosts have a member each; `program` is etcd.
    #[must_use]
    pub fn catalog_in_etcd(mut self, program: impl Into<PathBuf>) -> Self {
        self.etcd = Some(program.into());
        self
    }

    /// Makes the bed: hub, client and hosts up, no agent running yet. Leftovers of dead owners are removed first.
    pub fn build(self) -> Result<Bed, BedError> {
        if !rustix::process::geteuid().is_root() {
            return Err(BedError::NotRoot);
        }
        self.check()?;
        cleanup_stale();
        Bed::start(self)
    }

    fn check(&self) -> Result<(), BedError> {
        if !(1..=HOST_NAMES.len()).contains(&self.hosts) {
            return Err(BedError::Impossible {
                what: format!("{} hosts", self.hosts),
                right: "ask for 1 to 9",
            });
        }
        if self.standbys >= self.hosts {
            let what = format!("{} hosts of which {} stand by", self.hosts, self.standbys);
            return Err(BedError::Impossible { what, right: "leave one at least to be a member" });
        }
        if !(1..=NETWORK_NAMES.len()).contains(&self.networks) {
            let what = format!("{} networks", self.networks);
            return Err(BedError::Impossible { what, right: "ask for 1 to 4" });
        }
        if !self.binary.is_file() {
            let what = format!("{} as its binary", self.binary.display());
            return Err(BedError::Impossible { what, right: "name the built steadfast binary" });
        }
        Ok(())
    }
}

/// What hosts share: who they are and the hub they hang on.
#[derive(Debug)]
struct Shared {
    base: PathBuf,
    plan: BedBuilder,
    networks: Vec<String>,
    hub: Spaces,
    faults: Mutex<faults::Faults>,
    relays: Mutex<BTreeMap<(usize, String), relay::Relay>>,
}

impl Shared {
    fn relayed_networks(&self, host: usize) -> Vec<String> {
        let relays = lock(&self.relays);
        relays.keys().filter(|(number, _)| *number == host).map(|(_, network)| network.clone()).collect()
    }

    fn change_faults<T>(&self, change: impl FnOnce(&mut faults::Faults) -> T) -> Result<T, BedError> {
        let mut faults = lock(&self.faults);
        let before = faults.clone();
        let outcome = change(&mut faults);
        if let Err(error) = network::nft(&self.hub, &faults.script()) {
            // The transaction did not happen, so neither did the change.
            *faults = before;
            return Err(error);
        }
        Ok(outcome)
    }
}

/// A running bed; dropping it removes everything that it made.
#[derive(Debug)]
pub struct Bed {
    hosts: Vec<Host>,
    client: Arc<Spaces>,
    shared: Arc<Shared>,
    // Last: the folder goes when nothing runs in it any more.
    entry: registry::Entry,
}

impl Bed {
    /// Starts describing a bed whose hosts run `binary` (the `steadfast` binary) as agent and command line.
    pub fn builder(binary: impl AsRef<Path>) -> BedBuilder {
        BedBuilder {
            binary: binary.as_ref().to_path_buf(),
            hosts: 3,
            standbys: 0,
            networks: 2,
            lease: None,
            memory: "1GiB".into(),
            settings: Vec::new(),
            environment: Vec::new(),
            etcd: None,
        }
    }

    fn start(mut plan: BedBuilder) -> Result<Self, BedError> {
        plan.binary = fs::canonicalize(&plan.binary)
            .map_err(|source| BedError::File { path: plan.binary.clone(), source })?;
        let mut entry = registry::Entry::create()?;
        let base = entry.base().to_path_buf();
        let networks: Vec<String> =
            NETWORK_NAMES.iter().take(plan.networks).map(|name| (*name).to_owned()).collect();
        let hub = start_spaces(&plan.binary, &base, "hub")?;
        let client = start_spaces(&plan.binary, &base, "client")?;
        network::build_hub(&hub, &client, &networks)?;
        let count = plan.hosts;
        let shared = Arc::new(Shared {
            base,
            plan,
            networks,
            hub,
            faults: Mutex::default(),
            relays: Mutex::default(),
        });
        let mut hosts = Vec::new();
        for (number, name) in HOST_NAMES.iter().take(count).enumerate() {
            let host = Host::create(Arc::clone(&shared), number, name)?;
            host.power_on()?;
            hosts.push(host);
        }
        entry.record(&hosts)?;
        Ok(Self { hosts, client: Arc::new(client), shared, entry })
    }

    /// The bed's id, as `steadfast bed list` prints it.
    pub fn id(&self) -> &str {
        self.entry.id()
    }

    /// What other processes can know about this bed.
    pub fn registered(&self) -> &Registered {
        self.entry.registered()
    }

    /// The folder with the hosts' disks, configurations and logs.
    pub fn base(&self) -> &Path {
        &self.shared.base
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Host number `number`, from 0.
    ///
    /// # Panics
    /// When the bed has no such host.
    pub fn host(&self, number: usize) -> &Host {
        self.hosts.get(number).expect("the caller knows how many hosts it asked for")
    }

    /// The host of this name.
    pub fn host_named(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name() == name)
    }

    /// The outside world: a place on the service network that is no member of anything.
    pub fn client(&self) -> &Spaces {
        &self.client
    }

    /// The client, for threads that outlive the borrow; it lives as long as the last of these.
    pub fn client_shared(&self) -> Arc<Spaces> {
        Arc::clone(&self.client)
    }

    /// The networks between the hosts, without the service network.
    pub fn networks(&self) -> &[String] {
        &self.shared.networks
    }

    /// The networks between the hosts and the service network.
    pub fn all_networks(&self) -> Vec<String> {
        self.shared.networks.iter().cloned().chain([SERVICE.to_owned()]).collect()
    }

    /// Lets something go wrong until it is healed.
    pub fn inject(&self, fault: Fault) -> Result<FaultId, BedError> {
        self.shared.change_faults(|faults| faults.insert(fault))
    }

    /// Splits the cluster into groups of host numbers, on every network. The client still hears every group.
    pub fn split(&self, groups: &[&[usize]]) -> Result<FaultId, BedError> {
        let groups = groups.iter().map(|group| group.to_vec()).collect();
        self.inject(Fault::Split { groups, networks: self.all_networks() })
    }

    /// Undoes one fault; `false` when it was not in force.
    pub fn heal(&self, id: FaultId) -> Result<bool, BedError> {
        self.shared.change_faults(|faults| faults.remove(id))
    }

    /// Undoes every fault.
    pub fn heal_all(&self) -> Result<(), BedError> {
        self.shared.change_faults(faults::Faults::clear)
    }

    /// The faults in force.
    pub fn faults(&self) -> Vec<(FaultId, Fault)> {
        lock(&self.shared.faults).active().map(|(id, fault)| (id, fault.clone())).collect()
    }

    /// Takes the carrier of one host's cable away or gives it back (a pulled plug, which the host itself notices).
    pub fn set_carrier(&self, host: usize, network: &str, carrier: Carrier) -> Result<(), BedError> {
        let state = match carrier {
            Carrier::Present => "up",
            Carrier::Lost => "down",
        };
        network::ip(&self.shared.hub, &[format!("link set {} {state}", network::port(host, network))])
    }

    /// Delays one host's frames on one network, each way, by `delay` and up to `jitter` more; both zero ends it.
    pub fn set_delay(
        &self,
        host: usize,
        network: &str,
        delay: Duration,
        jitter: Duration,
    ) -> Result<(), BedError> {
        let hub = &self.shared.hub;
        let key = (host, network.to_owned());
        let mut relays = lock(&self.shared.relays);
        if let Some(relay) = relays.remove(&key) {
            network::take_away(hub, host, network)?;
            drop(relay);
        }
        if !(delay.is_zero() && jitter.is_zero()) {
            let failed = |source| BedError::Program { program: "the relay".into(), source };
            let names = network::relay_names(host, network);
            let near = hub.in_network(|| os::open_tap(&names.near)).map_err(failed)?;
            let far = hub.in_network(|| os::open_tap(&names.far)).map_err(failed)?;
            network::put_between(hub, host, network)?;
            relays.insert(key, relay::Relay::start(near, far, delay, jitter).map_err(failed)?);
        }
        let relayed = relays.keys().cloned().collect();
        self.shared.change_faults(|faults| faults.set_relayed(relayed))
    }

    /// Copies every agent's whole log to the folder that `STEADFAST_BED_LOGS` names, when it names one.
    fn save_logs(&self) {
        let Some(folder) = std::env::var_os("STEADFAST_BED_LOGS").map(PathBuf::from) else { return };
        for host in &self.hosts {
            let name = format!("{}-{}.log", self.id(), host.name());
            let saved = fs::create_dir_all(&folder).and_then(|()| fs::copy(host.log(), folder.join(&name)));
            if let Err(error) = saved {
                eprintln!("test bed: {name} could not be saved in {}: {error}", folder.display());
            }
        }
    }

    /// The last lines of every agent's log, for a failed test.
    pub fn log_tails(&self, lines: usize) -> String {
        let tail = |host: &Host| format!("----- agent log of {}\n{}\n", host.name(), host.log_tail(lines));
        self.hosts.iter().map(tail).collect()
    }
}

/// Whether a cable has a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The plug is in.
    Present,
    /// The plug is pulled.
    Lost,
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tails(60));
            self.save_logs();
        }
        for host in &self.hosts {
            if let Err(error) = host.destroy() {
                eprintln!("test bed: {error}");
            }
        }
    }
}

fn start_spaces(binary: &Path, base: &Path, name: &str) -> Result<Spaces, BedError> {
    let log = base.join(format!("{name}.log"));
    let file = fs::File::create(&log).map_err(|source| BedError::File { path: log, source })?;
    Spaces::start(binary, base, name, &["/run"], file)
}

/// A poisoned lock means that a test panicked while it held it; the bed must still be removable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
