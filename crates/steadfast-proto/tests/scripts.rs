//! Protocols told as transcripts: each file of `tests/scripts` is a story of commands and of what followed.
//!
//! The runner carries out the commands on real cores in a small, exact world: one network, 5 ms a step, an ideal log
//! that needs a majority, jobs that end at the next step. What follows stands indented below each command; `UPDATE=1`
//! writes it anew. Adversity in depth is the simulator's; this is to be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use steadfast_proto::catalog::{
    Change, CheckpointRef, ClusterRow, ContainerRow, ContainerSpec, ContainerState, Desired, DrainRow, Key,
    NodeRow, Requirements, Restart, Root, View, ViewReason,
};
use steadfast_proto::detect::{self, Evidence, Opinion, Subject};
use steadfast_proto::ids::{ClusterId, ContainerId, Digest, Epoch, Incarnation, NetworkId, NodeId};
use steadfast_proto::lease::FREEZE_MAX;
use steadfast_proto::machine::Machine;
use steadfast_proto::node::{Batch, Event, Input, Job, JobId, Node, Outcome, Proposal, Row, Settings};
use steadfast_proto::time::Time;
use steadfast_proto::wire::Heartbeat;

const STEP_MS: u64 = 5;

#[derive(Default)]
struct Host {
    powered: bool,
    agent: Option<Node>,
    starts: u64,
    applied: usize,
    inbox: Vec<(usize, Incarnation, Heartbeat)>,
    done: Vec<(JobId, Outcome)>,
    shims: BTreeMap<ContainerId, Shim>,
    memory: BTreeSet<Digest>,
}

struct Shim {
    epoch: Epoch,
    runs: bool,
    freeze_at: Time,
}

#[derive(Default)]
struct World {
    now_ms: u64,
    hosts: Vec<Host>,
    log: Vec<Change>,
    rows: BTreeMap<Key, (u64, Change)>,
    /// The side of the split that each host is on.
    side: Vec<usize>,
    made: u8,
    said: String,
}

fn id(host: usize) -> NodeId {
    NodeId(host as u128 + 1)
}

fn index(node: NodeId) -> usize {
    usize::try_from(node.0).expect("the world numbers its nodes from 1") - 1
}

fn name(node: NodeId) -> String {
    format!("n{}", node.0)
}

fn names<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    nodes.into_iter().map(|node| name(*node)).collect::<Vec<_>>().join(" ")
}

impl World {
    fn now(&self) -> Time {
        Time::from_nanos(self.now_ms * 1_000_000)
    }

    fn say(&mut self, line: &str) {
        writeln!(self.said, "  {:>6} ms  {line}", self.now_ms).expect("a string takes all");
    }

    fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let host = |word: &str| word.trim_start_matches('n').parse::<usize>().expect("a node such as n1") - 1;
        match words.as_slice() {
            ["cluster", count] => self.cluster(count.parse().expect("a number of nodes")),
            ["run", container, "on", node] => self.run(container, host(node)),
            ["wait", ms] => self.wait(ms.parse().expect("a number of milliseconds")),
            ["kill-agent", node] => self.kill_agent(host(node)),
            ["start-agent", node] => self.start(host(node)),
            ["power-off", node] => self.power_off(host(node)),
            ["power-on", node] => {
                self.hosts[host(node)].powered = true;
                self.start(host(node));
            }
            ["leave", node] => {
                let node = id(host(node));
                self.commit(Change::Drain(node, Some(DrainRow { node, leave: true })));
            }
            ["cut-off", node] => self.side[host(node)] = 1,
            ["heal"] => self.side.fill(0),
            ["show"] => self.show(),
            _ => panic!("'{line}' is no command"),
        }
    }

    fn cluster(&mut self, count: usize) {
        self.side = vec![0; count];
        self.hosts = (0..count).map(|_| Host { powered: true, ..Host::default() }).collect();
        let cluster =
            ClusterRow { id: ClusterId(1), name: "story".to_owned(), lease_ms: 1_000, created_unix_ms: 0 };
        self.commit(Change::Cluster(cluster));
        let mut view = View::founded(id(0), Incarnation(1));
        view.members = (0..count).map(|host| (id(host), Incarnation(1))).collect();
        view.grantors = view.members.keys().copied().collect();
        self.commit(Change::View(view));
        for host in 0..count {
            let row = NodeRow {
                id: id(host),
                name: name(id(host)),
                engine_id: host as u64,
                addresses: Vec::new(),
                fingerprint: String::new(),
                domain: Vec::new(),
                memory_bytes: 1_000,
                criu: "4.2.1".to_owned(),
                processor: "x".to_owned(),
            };
            self.commit(Change::Node(id(host), Some(row)));
        }
        (0..count).for_each(|host| self.start(host));
    }

    fn run(&mut self, container: &str, owner: usize) {
        let number: u128 = container.trim_start_matches('c').parse().expect("a container such as c1");
        let spec = ContainerSpec {
            name: container.to_owned(),
            command: vec!["count".to_owned()],
            environment: BTreeMap::new(),
            working_directory: None,
            user: None,
            root: Root::Host,
            volumes: Vec::new(),
            address: None,
            memory_bytes_max: None,
            cpu_milli_max: None,
            every_ms: Some(2_000),
            copies: 1,
            restart: Restart::Latest,
            nodes: BTreeSet::new(),
            require: Requirements::default(),
        };
        let row = ContainerRow {
            id: ContainerId(number),
            spec,
            owner: id(owner),
            epoch: Epoch(1),
            state: ContainerState::Starting,
            desired: Desired::Run,
            latest: None,
            parent: None,
            restore_number: None,
            after_loss: false,
            tried: BTreeSet::new(),
            changed_unix_ms: 0,
        };
        self.commit(Change::Container(row.id, Some(Box::new(row))));
    }

    fn start(&mut self, host: usize) {
        let now = self.now();
        let here = &mut self.hosts[host];
        here.starts += 1;
        let settings = Settings {
            id: id(host),
            incarnation: Incarnation(here.starts),
            boot: here.starts * 100 + host as u64 + 1,
            networks: vec![NetworkId(0)],
            detect: detect::Settings::default(),
            probation: steadfast_proto::probation::Settings {
                seen: Duration::from_millis(300),
                clean: Duration::from_millis(500),
                ..Default::default()
            },
            intent: steadfast_proto::catalog::Intent::Join,
            version: "0.1.0".to_owned(),
            boot_unix_ms: 0,
        };
        here.agent = Some(Node::new(settings, now));
        (here.applied, here.inbox, here.done) = (0, Vec::new(), Vec::new());
        let adopted: Vec<_> = here.shims.iter().map(|(container, shim)| (*container, shim.epoch)).collect();
        self.tell_memory(host);
        for (container, epoch) in adopted {
            self.step(host, Input::Adopted { container, epoch, held: false });
        }
        self.step(host, Input::AdoptedAll);
        self.follow(host);
        self.step(host, Input::Synced);
    }

    /// The agent ends and its machine's kernel says so to those that hold a connection.
    fn kill_agent(&mut self, host: usize) {
        let incarnation = Incarnation(self.hosts[host].starts);
        self.hosts[host].agent = None;
        let (peer, at, evidence) = (id(host), self.now(), Evidence::Gone);
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            if self.side[other] == self.side[host] {
                self.step(other, Input::Testified { peer, incarnation, evidence, at });
            }
        }
    }

    fn power_off(&mut self, host: usize) {
        self.hosts[host] = Host { starts: self.hosts[host].starts, ..Host::default() };
    }

    fn wait(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while self.now_ms < until {
            self.now_ms += STEP_MS;
            for host in 0..self.hosts.len() {
                self.advance(host);
            }
        }
    }

    fn advance(&mut self, host: usize) {
        self.freeze_what_is_due(host);
        self.follow(host);
        let (inbox, done) =
            (std::mem::take(&mut self.hosts[host].inbox), std::mem::take(&mut self.hosts[host].done));
        for (from, incarnation, heartbeat) in inbox {
            let (from, network, received_at) = (id(from), NetworkId(0), self.now());
            self.step(host, Input::Heard { from, incarnation, network, received_at, heartbeat });
        }
        for (job, outcome) in done {
            self.step(host, Input::Done { job, outcome });
        }
        let now = self.now();
        if self.hosts[host].agent.as_ref().is_some_and(|agent| agent.deadline().is_some_and(|at| at <= now)) {
            self.step(host, Input::Deadline);
        }
    }

    fn freeze_what_is_due(&mut self, host: usize) {
        let now = self.now();
        let due = self.hosts[host].shims.iter_mut().filter(|(_, shim)| shim.runs && shim.freeze_at <= now);
        let frozen: Vec<ContainerId> =
            due.map(|(container, shim)| (shim.runs = false, *container).1).collect();
        frozen
            .into_iter()
            .for_each(|container| self.say(&format!("{} freezes c{}", name(id(host)), container.0)));
    }

    fn has_majority(&self, host: usize) -> bool {
        let reached = (0..self.hosts.len())
            .filter(|other| self.hosts[*other].agent.is_some() && self.side[*other] == self.side[host]);
        reached.count() > self.hosts.len() / 2
    }

    fn follow(&mut self, host: usize) {
        while self.hosts[host].applied < self.log.len() && (self.has_majority(host) || self.now_ms == 0) {
            let revision = self.hosts[host].applied;
            self.hosts[host].applied += 1;
            let change = self.log[revision].clone();
            self.step(host, Input::Committed { revision: revision as u64 + 1, change });
        }
    }

    fn step(&mut self, host: usize, input: Input) {
        let now = self.now();
        let Some(agent) = &mut self.hosts[host].agent else { return };
        let mut batch = Batch::default();
        agent.step(now, input, &mut batch);
        let incarnation = agent.status(now).incarnation;
        for (to, _, heartbeat) in batch.send {
            let to = index(to);
            if self.side[host] == self.side[to] {
                self.hosts[to].inbox.push((host, incarnation, heartbeat));
            }
        }
        batch.publish.iter().for_each(|event| self.tell(host, event));
        batch.propose.into_iter().for_each(|proposal| self.propose(host, proposal));
        batch.run.into_iter().for_each(|(id, job)| self.work(host, id, job));
    }

    fn tell(&mut self, host: usize, event: &Event) {
        let who = name(id(host));
        match event {
            Event::Opinion(Opinion::Suspected { peer, silent, limit, .. }) => {
                let (silent, limit) = (silent.as_millis(), limit.as_millis());
                self.say(&format!("{who} suspects {}, silent {silent} ms of {limit} ms", name(*peer)));
            }
            Event::Opinion(Opinion::Cleared(peer)) => self.say(&format!("{who} hears {} again", name(*peer))),
            Event::Opinion(Opinion::Isolated) => self.say(&format!("{who} is isolated")),
            Event::Opinion(Opinion::Reconnected) => self.say(&format!("{who} is reconnected")),
            Event::LeaseLapsed => self.say(&format!("{who}'s lease lapses")),
            Event::LeaseRenewed => self.say(&format!("{who}'s lease is fresh")),
            Event::Fenced(node) => self.say(&format!("{who} knows that {}'s lease is over", name(*node))),
            Event::CheckpointFailed { reason, .. } => {
                self.say(&format!("{who}: checkpoint failed: {reason}"))
            }
            Event::Opinion(Opinion::Verdict(verdict)) => {
                self.say(&format!("{who} concludes {:?} of {}", verdict.class, subject(&verdict.subject)));
            }
            Event::Opinion(Opinion::Over(verdict)) => {
                self.say(&format!(
                    "{who} no longer concludes {:?} of {}",
                    verdict.class,
                    subject(&verdict.subject)
                ));
            }
            Event::Opinion(
                Opinion::Link { .. } | Opinion::NetworkSuspected { .. } | Opinion::NetworkCleared(_),
            )
            | Event::Installed(_)
            | Event::Moved { .. }
            | Event::Committed { .. }
            | Event::Answer(..) => {}
        }
    }

    fn propose(&mut self, host: usize, proposal: Proposal) {
        let current = |(key, revision): &(Key, u64)| self.rows.get(key).map_or(0, |row| row.0) == *revision;
        let accepted = self.has_majority(host) && proposal.basis.iter().all(current);
        if accepted {
            for row in proposal.rows {
                let change = match row {
                    Row::View(view) => Change::View(view),
                    Row::Container(row) => Change::Container(row.id, Some(row)),
                    Row::Probation(row) => Change::Probation(row.node, Some(row)),
                    Row::NoProbation(node) => Change::Probation(node, None),
                    Row::Drain(row) => Change::Drain(row.node, Some(row)),
                    Row::Record(_) | Row::Forget(_) => continue,
                };
                self.commit(change);
            }
        }
        // An answer is an input of its own; the world gives it at once, after the batch that asked.
        if let Some(agent) = &mut self.hosts[host].agent {
            let mut batch = Batch::default();
            let now = Time::from_nanos(self.now_ms * 1_000_000);
            agent.step(now, Input::Proposed { proposal: proposal.id, accepted }, &mut batch);
            batch.run.into_iter().for_each(|(id, job)| self.work(host, id, job));
        }
    }

    fn commit(&mut self, change: Change) {
        let revision = self.log.len() as u64 + 1;
        let key = match &change {
            Change::Cluster(_) => Key::Cluster,
            Change::View(view) => {
                let members = names(view.members.keys());
                let why = match &view.reason {
                    ViewReason::Founded => "founded".to_owned(),
                    ViewReason::Admitted(node) => format!("{} is admitted", name(*node)),
                    ViewReason::Removed(removed) => format!("{} is removed", names(removed.keys())),
                    ViewReason::Grantor(node) => format!("{} grants leases", name(*node)),
                    ViewReason::NoGrantor(node) => format!("{} grants no leases", name(*node)),
                    ViewReason::Replaced { old, new } => format!("{} for {}", name(*new), name(*old)),
                    ViewReason::Left(node) => format!("{} leaves", name(*node)),
                };
                self.say(&format!("view {} of {members}: {why}", view.id));
                Key::View
            }
            Change::Node(id, _) => Key::Node(*id),
            Change::Probation(id, row) => {
                if row.as_ref().is_some_and(|row| row.eliminated.is_none()) {
                    self.say(&format!("{} is in probation", name(*id)));
                }
                Key::Probation(*id)
            }
            Change::Drain(id, _) => Key::Drain(*id),
            Change::Container(id, row) => {
                if let Some(row) = row {
                    let latest = row.latest.as_ref().map_or("no checkpoint".to_owned(), |latest| {
                        format!("checkpoint {} on {}", latest.number, names(&latest.copies))
                    });
                    self.say(&format!(
                        "c{} {:?} on {} in epoch {}, {latest}",
                        id.0,
                        row.state,
                        name(row.owner),
                        row.epoch
                    ));
                }
                Key::Container(*id)
            }
        };
        self.rows.insert(key, (revision, change.clone()));
        self.log.push(change);
    }

    fn work(&mut self, host: usize, job: JobId, what: Job) {
        let outcome = match what {
            Job::Renew { deadline, drift, containers } => {
                return self.renew(host, deadline, drift, &containers);
            }
            Job::Start(row) | Job::Restore(row) => {
                let shim = Shim { epoch: row.epoch, runs: false, freeze_at: Time::ZERO };
                self.hosts[host].shims.insert(row.id, shim);
                Outcome::Up
            }
            Job::Checkpoint { row, number, holders, hold: _ } => self.checkpoint(&row, number, &holders),
            Job::Destroy { container, .. } => {
                self.hosts[host].shims.remove(&container);
                self.say(&format!("{} destroys c{}", name(id(host)), container.0));
                Outcome::Finished
            }
            Job::Renumber => {
                self.hosts[host].starts += 1;
                let incarnation = Incarnation(self.hosts[host].starts);
                self.step(host, Input::Renumbered(incarnation));
                Outcome::Finished
            }
            Job::Release { .. } => return,
            Job::Stop { .. } | Job::Collect | Job::Campaign | Job::Provision(_) => Outcome::Finished,
        };
        self.hosts[host].done.push((job, outcome));
    }

    fn renew(&mut self, host: usize, deadline: Time, drift: Duration, containers: &[(ContainerId, Epoch)]) {
        let now = self.now();
        for (container, epoch) in containers {
            let Some(shim) = self.hosts[host].shims.get_mut(container) else { continue };
            shim.freeze_at = deadline.before(drift + FREEZE_MAX);
            let thaws = shim.epoch == *epoch && !shim.runs && shim.freeze_at > now;
            shim.runs |= thaws;
            if thaws {
                self.say(&format!("{} runs c{} in epoch {epoch}", name(id(host)), container.0));
            }
        }
    }

    fn checkpoint(&mut self, row: &ContainerRow, number: u64, holders: &[NodeId]) -> Outcome {
        self.made += 1;
        let manifest = Digest([self.made; 32]);
        let owner = index(row.owner);
        let reached = holders.iter().find(|holder| {
            let holder = index(**holder);
            self.hosts[holder].agent.is_some() && self.side[holder] == self.side[owner]
        });
        let Some(holder) = reached.copied() else { return Outcome::Failed("no holder answers".to_owned()) };
        let index = index(holder);
        self.hosts[index].memory.insert(manifest);
        self.tell_memory(index);
        Outcome::Sealed(Box::new(CheckpointRef {
            number,
            epoch: row.epoch,
            manifest,
            bytes: 1,
            copies: BTreeSet::from([holder]),
            wanted: 1,
            frozen_us: 0,
            taken_unix_ms: 0,
            criu: "4.2.1".to_owned(),
            processor: "x".to_owned(),
        }))
    }

    fn tell_memory(&mut self, host: usize) {
        let held = self.hosts[host].memory.clone();
        self.step(host, Input::Memory { free_bytes: 1_000, held });
    }

    fn show(&mut self) {
        let lines: Vec<String> = (self.hosts.iter().enumerate())
            .map(|(host, here)| {
                let shims = here.shims.iter().map(|(container, shim)| {
                    let doing = if shim.runs { "runs" } else { "frozen" };
                    format!(" c{} {doing} in epoch {}", container.0, shim.epoch)
                });
                let agent = if here.agent.is_some() { "" } else { " has no agent" };
                let shims: Vec<String> = shims.collect();
                format!("{}:{agent}{}", name(id(host)), shims.concat())
            })
            .collect();
        lines.iter().for_each(|line| self.say(line));
    }
}

/// Carries out a story and returns it with what followed.
fn tell(story: &str) -> String {
    let mut world = World::default();
    let mut told = String::new();
    for line in story.lines().filter(|line| !line.starts_with(' ')) {
        writeln!(told, "{line}").expect("a string takes all");
        if !line.is_empty() && !line.starts_with('#') {
            world.command(line);
            told.push_str(&std::mem::take(&mut world.said));
        }
    }
    told
}

fn check(story: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(story);
    let written = std::fs::read_to_string(&path).expect("the story is there");
    let told = tell(&written);
    if std::env::vars().any(|(key, value)| key == "UPDATE" && value == "1") {
        std::fs::write(&path, &told).expect("the story can be written");
        return;
    }
    assert_eq!(told, written, "{story} tells another story now; if it is the right one, UPDATE=1 writes it");
}

#[test]
fn a_silent_death_ends_in_a_recovery() {
    check("silent-death.txt");
}

#[test]
fn a_death_just_after_another_node_left_is_a_removal() {
    check("leave-and-death.txt");
}

#[test]
fn a_split_that_heals_moves_nothing_and_thaws() {
    check("split-and-heal.txt");
}

#[test]
fn an_agent_back_within_its_lease_disturbs_nobody() {
    check("agent-restart.txt");
}

#[test]
fn a_host_that_boots_again_owns_nothing_and_is_a_member() {
    check("host-reboot.txt");
}

#[test]
fn a_container_whose_last_copy_is_gone_is_lost() {
    check("last-copy-lost.txt");
}

fn subject(subject: &Subject) -> String {
    match subject {
        Subject::Node(node) => name(*node),
        Subject::Nodes(nodes) => names(nodes.iter()),
        Subject::NodeNetwork(node, network) => format!("{} on {}", name(*node), network.0),
        Subject::Network(network) => format!("network {}", network.0),
        Subject::Link { low, high, network } => format!("{}-{} on {}", name(*low), name(*high), network.0),
    }
}
