//! One host of the bed: its power switch, its disk, its agent, and programs run on it.
//!
//! A host's disk (its folder below the bed's base) survives a power loss; its memory file systems, processes and kernel state do
//! not. Nothing here knows what an agent means by its answers; read `cluster.rs` for that.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::faults::Fault;
use super::{BedError, SERVICE, Shared, Spaces, UPLINK, cgroups, cluster, etcd, lock, network, registry};

/// What members ask of candidates unless a plan says otherwise: the same as ever, for a shorter time.
const PROBATION: &str = "seen = \"300ms\"\nclean = \"1s\"\n";

/// The sections that every node's configuration has.
const EVERY_CONFIG: [&str; 7] =
    ["node", "checkpoint", "container", "detect", "catalog", "probation", "devices"];

/// How long one command may run on a host before it is killed.
const COMMAND_MAX: Duration = Duration::from_secs(120);

/// What a program that ran to its end left.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Whether it ended with status 0.
    pub fn success(&self) -> bool {
        self.status == Some(0)
    }
}

/// One host.
#[derive(Debug)]
pub struct Host {
    shared: Arc<Shared>,
    number: usize,
    name: String,
    folder: PathBuf,
    power: Mutex<Power>,
}

#[derive(Debug, Default)]
struct Power {
    spaces: Option<Spaces>,
    agent: Option<Child>,
    etcd: Option<Child>,
}

impl Host {
    pub(super) fn create(shared: Arc<Shared>, number: usize, name: &str) -> Result<Self, BedError> {
        let folder = shared.base.join("hosts").join(name);
        let host = Self { shared, number, name: name.to_owned(), folder, power: Mutex::default() };
        let data = host.data();
        fs::create_dir_all(&data).map_err(|source| BedError::File { path: data, source })?;
        let path = host.config();
        fs::write(&path, host.config_text()).map_err(|source| BedError::File { path, source })?;
        Ok(host)
    }

    /// The host's name, which is also its node's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host's number, from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The node's data folder: the disk that survives a power loss.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The node's configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("steadfast.toml")
    }

    /// The agent's log.
    pub fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// The agent's local socket.
    pub fn socket(&self) -> PathBuf {
        self.data().join("steadfast.sock")
    }

    /// The agent's addresses, one per network.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        (0..self.shared.networks.len()).map(|network| network::host_address(self.number, network)).collect()
    }

    fn config_text(&self) -> String {
        let plan = &self.shared.plan;
        let extra = |section: &str| -> String {
            let lines = plan.settings.iter().filter(|(name, _)| name == section);
            lines.map(|(_, line)| format!("{line}\n")).collect()
        };
        // Sections that are only there when a plan says so.
        let others: BTreeSet<&str> = plan.settings.iter().map(|(name, _)| name.as_str()).collect();
        let others = others.into_iter().filter(|section| !EVERY_CONFIG.contains(section));
        let others: String = others.map(|section| format!("\n[{section}]\n{}", extra(section))).collect();
        let networks: String = self
            .shared
            .networks
            .iter()
            .zip(self.addresses())
            .map(|(name, address)| format!("[[network]]\nname = \"{name}\"\naddress = \"{address}\"\n\n"))
            .collect();
        format!(
            "[node]\nname = \"{name}\"\ndata = \"{data}\"\n{standby}{node}\n{networks}[checkpoint]\nmemory = \"{budget}\"\n{checkpoint}\n\
             [container]\nuplink = \"{UPLINK}\"\n{container}\n[detect]\n{detect}\n[catalog]\n{catalog}\n[probation]\n{probation}\n[devices]\n{devices}{others}",
            name = self.name,
            data = self.data().display(),
            standby = if self.number + plan.standbys >= plan.hosts { "standby = true\n" } else { "" },
            node = extra("node"),
            budget = plan.memory,
            checkpoint = extra("checkpoint"),
            container = extra("container"),
            detect = extra("detect"),
            catalog = match &plan.etcd {
                Some(_) => etcd::setting(self.number, plan.hosts, self.shared.networks.len()),
                None => extra("catalog"),
            },
            probation = match extra("probation") {
                given if given.is_empty() => PROBATION.to_owned(),
                given => given,
            },
            devices = self.devices_text(&extra("devices")),
        )
    }

    /// Block devices are the machine's and not the host's: a host looks at none unless the plan, or a test that edits its
    /// file, says at which. Links stay in a folder of its own.
    fn devices_text(&self, planned: &str) -> String {
        let include = if planned.contains("include") { "" } else { "include = []\n" };
        format!("{include}links = \"{}\"\n{planned}", self.device_links().display())
    }

    /// The folder of the links to this host's block devices.
    pub fn device_links(&self) -> PathBuf {
        self.folder.join("devices")
    }

    /// Whether the host has power.
    pub fn is_on(&self) -> bool {
        lock(&self.power).spaces.is_some()
    }

    /// The machine's id of the host's process 1.
    pub fn init_pid(&self) -> Option<u32> {
        lock(&self.power).spaces.as_ref().map(Spaces::pid)
    }

    /// Gives the host power: a new kernel state with its networks up and its disk as it was; no agent yet.
    pub fn power_on(&self) -> Result<(), BedError> {
        let mut power = lock(&self.power);
        if power.spaces.is_some() {
            return Err(self.wrong_state("on already", "power it off first"));
        }
        let folders = ["/run", "/dev/shm"];
        let log = append(&self.folder.join("init.log"))?;
        let spaces = Spaces::start(&self.shared.plan.binary, &self.shared.base, &self.name, &folders, log)?;
        registry::note_init(&self.folder, spaces.pid())?;
        let relayed = self.shared.relayed_networks(self.number);
        network::plug_in(&self.shared.hub, &spaces, self.number, &self.shared.networks, &relayed)?;
        if let Some(program) = &self.shared.plan.etcd
            && etcd::is_member(self.number)
        {
            let size = (self.shared.plan.hosts, self.shared.networks.len());
            let started = etcd::command(program, &self.folder, self.number, size)
                .and_then(|mut command| spaces.spawn(&mut command));
            let failed = |source| BedError::Program { program: "etcd".into(), source };
            power.etcd = Some(started.map_err(failed)?);
        }
        power.spaces = Some(spaces);
        Ok(())
    }

    /// The machine's id of the host's etcd, where it has one.
    pub(super) fn etcd_pid(&self) -> Option<u32> {
        lock(&self.power).etcd.as_ref().map(Child::id)
    }

    /// Power loss: silence on every network from one instant, then every process of the host is killed at once.
    ///
    /// Returns when nothing of the host is left; the instant of the silence is returned.
    pub fn power_off(&self) -> Result<Instant, BedError> {
        let mut power = lock(&self.power);
        if power.spaces.is_none() {
            return Err(self.wrong_state("off already", "power it on first"));
        }
        // First the silence: a dying kernel would close connections politely, which a machine without power does not.
        let networks = self.shared.networks.clone();
        let dark =
            self.shared.change_faults(|faults| faults.insert(Fault::Dark { host: self.number, networks }))?;
        let silent_since = Instant::now();
        let killed = kill_all(&mut power);
        self.unplug();
        self.shared.change_faults(|faults| faults.remove(dark))?;
        killed.map(|()| silent_since)
    }

    /// Ends the host for good, with its bed.
    pub(super) fn destroy(&self) -> Result<(), BedError> {
        kill_all(&mut lock(&self.power))
    }

    /// The dead host's cables vanish only when the kernel gets round to it; their names are needed before.
    fn unplug(&self) {
        for network in self.shared.networks.iter().map(String::as_str).chain([SERVICE]) {
            let line = format!("link delete {}", network::port(self.number, network));
            // It fails when the kernel was faster.
            let _ = network::ip(&self.shared.hub, &[line]);
        }
    }

    /// Starts `command` on the host.
    pub fn spawn(&self, command: &mut Command) -> Result<Child, BedError> {
        command.envs(self.shared.plan.environment.iter().map(|(name, value)| (name, value)));
        let power = lock(&self.power);
        let Some(spaces) = power.spaces.as_ref() else {
            return Err(self.wrong_state("off", "power it on first"));
        };
        let program = command.get_program().to_string_lossy().into_owned();
        spaces.spawn(command).map_err(|source| BedError::Program { program, source })
    }

    /// Lets `work` use the host's name spaces, to make sockets in its network for example.
    pub fn with_spaces<T>(&self, work: impl FnOnce(&Spaces) -> io::Result<T>) -> Result<T, BedError> {
        let power = lock(&self.power);
        let Some(spaces) = power.spaces.as_ref() else {
            return Err(self.wrong_state("off", "power it on first"));
        };
        work(spaces).map_err(|source| BedError::Program { program: "work on the host".into(), source })
    }

    /// Runs a program on the host to its end (at most two minutes).
    pub fn exec(&self, arguments: &[&str]) -> Result<Finished, BedError> {
        let Some((program, rest)) = arguments.split_first() else {
            return Err(BedError::Impossible { what: "an empty command".into(), right: "name a program" });
        };
        let mut command = Command::new(program);
        command.args(rest);
        self.run(&mut command)
    }

    /// Runs `steadfast` with these arguments against this host's agent.
    pub fn steadfast_raw(&self, arguments: &[&str]) -> Result<Finished, BedError> {
        let mut command = self.steadfast_command();
        command.args(arguments);
        self.run(&mut command)
    }

    /// The `steadfast` command line against this host's agent, ready for arguments and [`Host::spawn`].
    pub fn steadfast_command(&self) -> Command {
        let mut command = Command::new(&self.shared.plan.binary);
        command.arg("--socket").arg(self.socket());
        command
    }

    /// Runs `steadfast` with these arguments; any status but 0 is an error that quotes what it said.
    pub fn steadfast_text(&self, arguments: &[&str]) -> Result<String, BedError> {
        let finished = self.steadfast_raw(arguments)?;
        if finished.success() {
            return Ok(finished.stdout);
        }
        Err(BedError::Refused {
            host: self.name.clone(),
            command: arguments.join(" "),
            status: finished.status.unwrap_or(-1),
            talk: finished.stderr.trim().to_owned(),
        })
    }

    /// Runs `steadfast` with these arguments, which ask for JSON, and parses the answer.
    pub fn steadfast(&self, arguments: &[&str]) -> Result<serde_json::Value, BedError> {
        self.steadfast_as(arguments)
    }

    /// The cluster's lease, where the bed's plan sets one.
    pub(super) fn planned_lease(&self) -> Option<Duration> {
        self.shared.plan.lease
    }

    fn run(&self, command: &mut Command) -> Result<Finished, BedError> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.spawn(command)?;
        finish(child, COMMAND_MAX).map_err(|source| BedError::Program { program, source })
    }

    /// Starts the agent; returns at once. See [`Host::wait_ready`].
    pub fn start_agent(&self) -> Result<(), BedError> {
        self.start_agent_with(&[])
    }

    /// The same with further environment variables.
    pub fn start_agent_with(&self, environment: &[(&str, &str)]) -> Result<(), BedError> {
        if self.agent_pid().is_some() {
            return Err(self.wrong_state("running an agent already", "kill that one first"));
        }
        let log = append(&self.log())?;
        let errors = log.try_clone().map_err(|source| BedError::File { path: self.log(), source })?;
        let mut command = Command::new(&self.shared.plan.binary);
        command.args(["agent", "--config"]).arg(self.config());
        // A panic's own sentence tells where it was; a stack of an asynchronous runtime would push everything else out of a log's tail.
        command.env("RUST_BACKTRACE", "0");
        command.envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = self.spawn(&mut command)?;
        lock(&self.power).agent = Some(child);
        Ok(())
    }

    /// The machine's id of the running agent process.
    pub fn agent_pid(&self) -> Option<u32> {
        let mut power = lock(&self.power);
        let agent = power.agent.as_mut()?;
        match agent.try_wait() {
            Ok(None) => Some(agent.id()),
            Ok(Some(_)) | Err(_) => {
                power.agent = None;
                None
            }
        }
    }

    /// Whether the agent can answer: it runs and is not stopped by a signal.
    pub fn has_answering_agent(&self) -> bool {
        self.agent_pid().is_some_and(|id| cgroups::stat_field(id, 0).as_deref() != Some("T"))
    }

    /// How the agent ended, when it has.
    pub fn agent_exit(&self) -> Option<ExitStatus> {
        lock(&self.power).agent.as_mut()?.try_wait().ok()?
    }

    /// SIGKILL to the agent alone; returns when it is dead.
    pub fn kill_agent(&self) -> Result<(), BedError> {
        let Some(mut agent) = lock(&self.power).agent.take() else {
            return Err(self.wrong_state("without an agent", "start one first"));
        };
        let failed = |source| BedError::Program { program: "the agent".into(), source };
        agent.kill().map_err(failed)?;
        agent.wait().map_err(failed)?;
        Ok(())
    }

    /// Sends a signal (SIGSTOP, SIGCONT, SIGTERM, ...) to the agent alone.
    pub fn signal_agent(&self, signal: Signal) -> Result<(), BedError> {
        let Some(id) = self.agent_pid() else {
            return Err(self.wrong_state("without an agent", "start one first"));
        };
        signal_process(id, signal)
    }

    /// The machine's ids of the containers' shims on this host.
    pub fn shims(&self) -> Vec<u32> {
        let is_shim = |id: &u32| {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"shim")
        };
        self.processes().into_iter().filter(is_shim).collect()
    }

    /// The machine's ids of all processes of this host.
    pub fn processes(&self) -> Vec<u32> {
        self.init_pid().map(cgroups::processes_of).unwrap_or_default().into_iter().collect()
    }

    /// Sends a signal to each of these processes of the host.
    pub fn signal(&self, processes: &[u32], signal: Signal) -> Result<(), BedError> {
        let ours = self.processes();
        for id in processes {
            if !ours.contains(id) {
                return Err(self.wrong_state("not where that process runs", "name one of its processes"));
            }
            signal_process(*id, signal)?;
        }
        Ok(())
    }

    /// The last lines of the agent's log, without what the Raft engine repeats while a member is away.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let is_repetition = |line: &&str| line.contains(" WARN openraft::");
        let all: Vec<&str> = text.lines().filter(|line| !is_repetition(line)).collect();
        all.iter().skip(all.len().saturating_sub(lines)).copied().collect::<Vec<_>>().join("\n")
    }

    fn wrong_state(&self, state: &'static str, right: &'static str) -> BedError {
        BedError::State { host: self.name.clone(), state, right }
    }
}

fn kill_all(power: &mut Power) -> Result<(), BedError> {
    let Some(mut spaces) = power.spaces.take() else { return Ok(()) };
    let killed = spaces.kill();
    if let Some(mut agent) = power.agent.take() {
        // It died with its host; this only collects it.
        let _ = agent.wait();
    }
    etcd::bury(power.etcd.take());
    killed
}

pub(super) fn signal_process(id: u32, signal: Signal) -> Result<(), BedError> {
    let pid = i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .expect("the kernel's process ids are positive and fit");
    kill_process(pid, signal)
        .map_err(|error| BedError::Program { program: format!("process {id}"), source: error.into() })?;
    if signal != Signal::STOP {
        return Ok(());
    }
    // The threads of a process stop one after the other, a moment after the call.
    let stopped = || !matches!(cgroups::stat_field(id, 0).as_deref(), Some("R" | "S" | "D"));
    cluster::wait_for(&format!("process {id} to stop"), COMMAND_MAX, || stopped().then_some(()))
}

fn append(path: &Path) -> Result<File, BedError> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|source| BedError::File { path: path.to_path_buf(), source })
}

/// Collects a child's output until it ends; kills it after `max`.
pub(super) fn finish(mut child: Child, max: Duration) -> io::Result<Finished> {
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let give_up = Instant::now() + max;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > give_up {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it did not end within {max:?}")));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = |reader: Option<std::thread::JoinHandle<String>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    Ok(Finished { status: status.code(), stdout: text(stdout), stderr: text(stderr) })
}

fn collect(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is worth more than the error.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
