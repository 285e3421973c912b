//! What the cluster tests share: a cluster of three with a witness, and a program that reports to it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use steadfast_cli::api::types::{Checkpoint, Container};
use steadfast_cli::bed::witness::{REPORTER, Witness};
use steadfast_cli::bed::{Bed, BedBuilder, Host, client_address, service_address, wait_for};

#[path = "../../../../xtask/src/setup/find_etcd.rs"]
mod find_etcd;

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_steadfast");
/// Bound for what takes seconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// The lease of these tests' clusters.
pub(crate) const LEASE: Duration = Duration::from_secs(1);
/// The name of the program that reports.
pub(crate) const COUNTER: &str = "counter";
/// The witness's port.
pub(crate) const WITNESS_PORT: u16 = 9000;

/// A cluster, its outside witness, and moves on both.
pub(crate) struct Trial {
    // Before the bed: its thread ends first.
    pub(crate) witness: Witness,
    pub(crate) bed: Bed,
}

/// Three hosts, on whose nodes the catalog lies; with `STEADFAST_TEST_CATALOG=etcd` in an etcd beside them.
pub(crate) fn builder() -> BedBuilder {
    on_chosen_engine(Bed::builder(BINARY).hosts(3).networks(2).lease(LEASE))
}

/// The bed with the catalog where the environment wants it.
pub(crate) fn on_chosen_engine(builder: BedBuilder) -> BedBuilder {
    match std::env::var("STEADFAST_TEST_CATALOG").as_deref() {
        Ok("etcd") => builder.catalog_in_etcd(etcd()),
        Ok("embedded") | Err(_) => builder,
        Ok(other) => panic!("STEADFAST_TEST_CATALOG is {other:?}; it can be \"embedded\" or \"etcd\""),
    }
}

/// The program that the set-up unpacked.
pub(crate) fn etcd() -> std::path::PathBuf {
    find_etcd::find().expect("there is no etcd; `cargo xtask setup` unpacks one")
}

impl Trial {
    /// Three members, nothing running.
    pub(crate) fn new() -> Self {
        Self::with(builder())
    }

    pub(crate) fn with(builder: BedBuilder) -> Self {
        let bed = builder.build().unwrap();
        let address = SocketAddr::from((client_address(), WITNESS_PORT));
        let witness = Witness::listen(bed.client().udp_bind(address).unwrap()).unwrap();
        bed.init_cluster("trial").unwrap();
        Self { witness, bed }
    }

    /// Starts the reporting program on `host`; returns once the witness has heard it. Checkpoints are taken on demand only.
    pub(crate) fn start_counter(&self, host: usize) {
        self.start_counter_with(host, &[]);
    }

    /// The same with further arguments of `run`.
    pub(crate) fn start_counter_with(&self, host: usize, further: &[&str]) {
        let witness = client_address().to_string();
        let port = WITNESS_PORT.to_string();
        let address = format!("{}/24", service_address(10));
        let node = self.bed.host(host).name();
        let started = Instant::now();
        #[rustfmt::skip]
        let run = ["run", "--name", COUNTER, "--node", node, "--address", &address, "--every", "never"];
        let program = ["--", "/usr/bin/python3", "-c", REPORTER, &witness, &port, "7"];
        self.bed.host(0).steadfast_text(&[&run, further, &program].concat()).unwrap();
        self.wait_heard_since(started, "the program's first report");
    }

    /// A committed checkpoint of the program; the witness knows what it holds at least.
    pub(crate) fn checkpoint(&self) -> Checkpoint {
        let mark = self.witness.mark();
        assert!(mark > 0, "the program has been heard before its checkpoint is asked for");
        let ask = || self.some_host().steadfast_as(&["checkpoint", COUNTER, "-o", "json"]);
        let on_etcd = std::env::var("STEADFAST_TEST_CATALOG").as_deref() == Ok("etcd");
        let checkpoint = self.wait("a checkpoint", || match ask() {
            // After a cut etcd's members find each other on another network only when their connections time out.
            Err(_) if on_etcd => None,
            // On a busy machine a lease may lapse for a moment.
            Err(error) if error.to_string().contains("the container is frozen") => None,
            answer => Some(answer.unwrap()),
        });
        self.witness.commit(mark);
        checkpoint
    }

    /// Some host whose agent runs.
    pub(crate) fn some_host(&self) -> &Host {
        self.bed.hosts().iter().find(|host| host.has_answering_agent()).expect("an agent runs somewhere")
    }

    /// The program's row as some agent shows it.
    pub(crate) fn counter(&self) -> Container {
        self.bed.wait_container(COUNTER, "known", |_| true).unwrap()
    }

    /// Where the program runs now.
    pub(crate) fn owner(&self) -> &Host {
        let container = self.bed.wait_container(COUNTER, "running", |container| container.state == "running");
        self.bed.host_named(&container.unwrap().node).expect("a node of this bed")
    }

    /// Waits until the program runs in an epoch after `epoch` and has been heard from there.
    pub(crate) fn wait_recovered(&self, epoch: u64) -> Container {
        let what = format!("running in an epoch after {epoch}");
        let recovered = self
            .bed
            .wait_container(COUNTER, &what, |container| {
                container.state == "running" && container.epoch > epoch
            })
            .unwrap();
        self.wait("a report from the new epoch", || {
            self.witness.judge().last().is_some_and(|report| report.epoch > epoch).then_some(())
        });
        recovered
    }

    pub(crate) fn wait_heard_since(&self, instant: Instant, what: &str) {
        self.wait(what, || self.witness.heard_since(instant).then_some(()));
    }

    /// Waits until `host` itself says that its copy of the program is frozen.
    pub(crate) fn wait_frozen_on(&self, host: &Host) {
        self.wait(&format!("{COUNTER} frozen on {}", host.name()), || {
            let status = host.status().ok()?;
            let local = status.containers.iter().find(|container| container.name == COUNTER)?;
            (local.state == "frozen").then_some(())
        });
    }

    /// Waits until nothing of the program is left on `host`.
    pub(crate) fn wait_gone_from(&self, host: &Host) {
        self.wait(&format!("the end of the old copy on {}", host.name()), || {
            counter_processes(host).is_empty().then_some(())
        });
    }

    /// [`wait_for`] with this suite's bound; a failure panics, and the bed prints its agents' logs.
    pub(crate) fn wait<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> T {
        wait_for(what, PATIENCE, condition).unwrap()
    }

    /// The same without a verdict: `None` when the bound has run out.
    pub(crate) fn try_wait<T>(&self, condition: impl FnMut() -> Option<T>) -> Option<T> {
        wait_for("a condition", PATIENCE, condition).ok()
    }

    /// Lets this much time go by, as a fault that lasts needs it; nothing is concluded from how long it took.
    pub(crate) fn let_pass(&self, time: Duration) {
        let until = Instant::now() + time;
        self.wait("the time to pass", || (Instant::now() >= until).then_some(()));
    }

    /// Power for `host` again, its agent started, and all members in the view of everybody.
    pub(crate) fn bring_back(&self, host: &Host) {
        host.power_on().unwrap();
        host.start_agent().unwrap();
        host.wait_ready().unwrap();
        self.bed.wait_members(self.bed.hosts().len()).unwrap();
    }

    /// The cluster's word on everything that lasts: what a refused request must leave as it was.
    pub(crate) fn lasting_state(&self) -> String {
        let host = self.some_host();
        let mut nodes = host.nodes().unwrap();
        nodes.sort_by(|left, right| left.name.cmp(&right.name));
        let nodes: Vec<_> =
            nodes.into_iter().map(|node| (node.name, node.id, node.state, node.containers)).collect();
        let mut containers = host.containers().unwrap();
        containers.sort_by(|left, right| left.name.cmp(&right.name));
        let containers: Vec<_> = containers
            .into_iter()
            .map(|row| {
                (
                    row.name,
                    row.id,
                    row.node,
                    row.state,
                    row.epoch,
                    row.revision,
                    row.latest.map(|latest| latest.number),
                )
            })
            .collect();
        format!("{nodes:?}\n{containers:?}")
    }
}

/// Drops what comes to `host` and matches `what` (of nftables), until [`let_in`]: one direction of one link, without touching
/// anything else.
pub(crate) fn drop_incoming(host: &Host, what: &str) {
    let lines = [
        "add table inet cut",
        "add chain inet cut input { type filter hook input priority 0 ; }",
        &format!("add rule inet cut input {what} drop"),
    ];
    for line in lines {
        let finished = host.exec(&["nft", line]).unwrap();
        assert!(finished.success(), "{line}: {}", finished.stderr);
    }
}

/// Lets in again what [`drop_incoming`] dropped.
pub(crate) fn let_in(host: &Host) {
    assert!(host.exec(&["nft", "delete", "table", "inet", "cut"]).unwrap().success());
}

/// The processes of the reporting program on a host.
pub(crate) fn counter_processes(host: &Host) -> Vec<u32> {
    let is_counter = |id: &u32| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.first().is_some_and(|word| word.ends_with(b"python3")) && words.contains(&REPORTER.as_bytes())
    };
    host.processes().into_iter().filter(is_counter).collect()
}
