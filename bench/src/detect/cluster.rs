//! The agents of one system on one hub, and what can be done to them and asked of them.
//!
//! Agents are started by one thread that never ends, because the kernel kills them with the thread that started them.
//! Dropping a cluster kills its agents and removes its hub.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::hub::Hub;
use super::journal::{Instant, Journal, Sighting, What};
use super::systems::System;

/// How often a condition is looked at; no figure rests on it.
const LOOK: Duration = Duration::from_millis(10);

/// How an agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// SIGKILL to the agent; its machine answers for it.
    Killed,
    /// The machine's interfaces first, then the agent: nothing answers.
    Silent,
}

/// What became of one death.
#[derive(Clone, Debug)]
pub struct Detection {
    /// Milliseconds until each other agent knew, in order.
    pub known_ms: Vec<f64>,
    /// Milliseconds until the first other agent suspected it, where the system says so.
    pub suspected_ms: Option<f64>,
    /// Others that had not learned of it when the patience was over.
    pub missed: usize,
    /// How often a healthy agent was counted out meanwhile.
    pub wrong: usize,
}

impl Detection {
    /// Milliseconds until the last of the others knew; the patience when some never did.
    pub fn all_ms(&self, patience: Duration) -> f64 {
        if self.missed > 0 {
            return patience.as_secs_f64() * 1e3;
        }
        self.known_ms.last().copied().unwrap_or(f64::NAN)
    }
}

/// What agents cost while nothing happens, median over the agents.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Bytes sent per second, IP headers counted.
    pub bytes_per_s: f64,
    /// Percent of one core.
    pub cpu_percent: f64,
    /// Proportional set size.
    pub pss_mib: f64,
    /// Resident set size.
    pub rss_mib: f64,
}

struct Agent {
    child: Child,
    ear: Option<JoinHandle<()>>,
}

/// A running cluster of one system.
pub struct Cluster {
    // Before the hub: agents die before their name spaces go.
    agents: Vec<Option<Agent>>,
    journal: Journal,
    system: Arc<dyn System>,
    /// Those that were ended before and brought back.
    ended: BTreeSet<usize>,
    hub: Hub,
}

impl Cluster {
    /// Starts `hosts` agents of `system` and waits until each counts all others.
    pub fn boot(system: Arc<dyn System>, hosts: usize, networks: usize) -> anyhow::Result<Cluster> {
        let hub = Hub::build(hosts, networks)?;
        let agents = (0..hosts).map(|_| None).collect();
        let mut cluster = Cluster {
            agents,
            journal: Journal::default(),
            system: Arc::clone(&system),
            ended: BTreeSet::new(),
            hub,
        };
        system.boot(&mut cluster)?;
        Ok(cluster)
    }

    /// A host whose link to `host` the system watches; not the first, which holds the settings.
    pub fn watched_by(&self, host: usize) -> usize {
        let watched = self.system.watched(self.hosts(), host);
        watched.into_iter().find(|other| *other != 0).unwrap_or(0)
    }

    /// The system's name.
    pub fn name(&self) -> String {
        self.system.name()
    }

    /// Number of hosts.
    pub fn hosts(&self) -> usize {
        self.agents.len()
    }

    /// What was said.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Where the agents live.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Starts the agent of a host.
    pub fn start(&mut self, host: usize) -> anyhow::Result<()> {
        let mut command = self.system.command(&self.hub, host)?;
        let (output, input) = std::io::pipe()?;
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
        let child = spawn(command)?;
        let ear = self.journal.listen(host, output, self.system.reader());
        let slot = self.agents.get_mut(host).context("the cluster has that host")?;
        *slot = Some(Agent { child, ear: Some(ear) });
        Ok(())
    }

    /// The process of a host's agent.
    pub fn pid(&self, host: usize) -> Option<u32> {
        self.agents.get(host)?.as_ref().map(|agent| agent.child.id())
    }

    /// Hosts whose agent runs.
    pub fn running(&self) -> BTreeSet<usize> {
        (0..self.hosts()).filter(|host| self.pid(*host).is_some()).collect()
    }

    /// Ends an agent; returns the instant before.
    pub fn end(&mut self, host: usize, death: Death) -> anyhow::Result<Instant> {
        let mut agent = self.agents.get_mut(host).and_then(Option::take).context("that agent runs")?;
        let before = Instant::now();
        if death == Death::Silent {
            self.hub.interfaces_down(host)?;
        }
        agent.bury();
        self.ended.insert(host);
        Ok(before)
    }

    /// Gives a host back its interfaces and its agent, and waits until everybody counts everybody.
    pub fn revive(&mut self, host: usize, patience: Duration) -> anyhow::Result<()> {
        self.hub.interfaces_up(host)?;
        self.start(host)?;
        self.wait_full(patience)
    }

    /// Sends a signal to an agent.
    pub fn signal(&self, host: usize, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid(host).and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        Ok(kill_process(pid.context("that agent runs")?, signal)?)
    }

    /// Whether every running agent counts exactly the running ones.
    pub fn is_full(&self) -> bool {
        let running = self.running();
        running.iter().all(|host| {
            let members = self.system.counts(self, *host);
            members.len() + 1 == running.len() && members.iter().all(|member| running.contains(member))
        })
    }

    /// Waits until every running agent counts exactly the running ones.
    pub fn wait_full(&mut self, patience: Duration) -> anyhow::Result<()> {
        let asked = Instant::now();
        while !self.is_full() {
            self.complain_about_ended()?;
            if asked.elapsed() > patience {
                let counts: Vec<usize> =
                    self.running().iter().map(|host| self.system.counts(self, *host).len()).collect();
                bail!("{}: after {} s the agents count {counts:?} others", self.name(), patience.as_secs());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Whether every running agent counts exactly the running ones within that time.
    pub fn is_full_within(&self, patience: Duration) -> bool {
        let asked = Instant::now();
        while !self.is_full() {
            if asked.elapsed() > patience {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// An agent that ended by itself is an error with its last lines.
    fn complain_about_ended(&mut self) -> anyhow::Result<()> {
        for (host, slot) in self.agents.iter_mut().enumerate() {
            let Some(agent) = slot else { continue };
            if let Some(status) = agent.child.try_wait()? {
                bail!(
                    "{}: the agent on host {host} ended ({status}): {}",
                    self.system.name(),
                    self.journal.tail(host)
                );
            }
        }
        Ok(())
    }

    /// Lets an agent die and waits until all others know, at most for `patience`; it stays dead.
    pub fn detect(&mut self, victim: usize, death: Death, patience: Duration) -> anyhow::Result<Detection> {
        self.journal.forget();
        let before = self.end(victim, death)?;
        let others = self.running();
        let known = || self.journal.known_since(before, victim);
        while others.iter().any(|host| !known().contains_key(host)) && before.elapsed() < patience {
            std::thread::sleep(LOOK);
        }
        let known = known();
        let mut known_ms: Vec<f64> =
            others.iter().filter_map(|host| known.get(host)).map(|at| at.ms_since(before)).collect();
        known_ms.sort_by(f64::total_cmp);
        let suspected = self.journal.since(before, |seen| seen.what == What::Suspects(victim));
        let wrong =
            self.journal.since(before, |seen| matches!(seen.what, What::Gone(host) if host != victim));
        // Where much is lost, news of an earlier death, which was one, may come after everybody counted everybody again.
        let is_late = |seen: &&Sighting| matches!(seen.what, What::Gone(host) if self.ended.contains(&host));
        let (late, wrong): (Vec<&Sighting>, Vec<&Sighting>) = wrong.iter().partition(is_late);
        for seen in late.iter().chain(&wrong) {
            let ms = seen.at.ms_since(before);
            println!(
                "{}: agent {} says after {ms:.0} ms {:?}, not {victim}",
                self.name(),
                seen.observer,
                seen.what
            );
        }
        Ok(Detection {
            missed: others.len() - known_ms.len(),
            known_ms,
            suspected_ms: suspected.iter().map(|seen| seen.at.ms_since(before)).min_by(f64::total_cmp),
            wrong: wrong.len(),
        })
    }

    /// What the agents cost during `window`.
    pub fn cost(&self, window: Duration) -> anyhow::Result<Cost> {
        let hosts = self.running();
        let sample = |host: &usize| -> anyhow::Result<(u64, u64)> {
            let pid = self.pid(*host).context("that agent runs")?;
            Ok((self.hub.bytes_sent(*host)?, proc::cpu_ticks(pid)?))
        };
        let start = Instant::now();
        let before = hosts.iter().map(sample).collect::<anyhow::Result<Vec<_>>>()?;
        std::thread::sleep(window);
        // Each host's two samples are as far apart as the first host's.
        let seconds = start.elapsed().as_secs_f64();
        let after = hosts.iter().map(sample).collect::<anyhow::Result<Vec<_>>>()?;
        let spent = before.iter().zip(&after);
        let bytes: Vec<f64> =
            spent.clone().map(|(before, after)| (after.0 - before.0) as f64 / seconds).collect();
        let cpu: Vec<f64> = spent.map(|(before, after)| (after.1 - before.1) as f64 / seconds).collect();
        let pids = hosts.iter().filter_map(|host| self.pid(*host));
        let (pss, rss): (Vec<f64>, Vec<f64>) =
            pids.map(proc::memory_mib).collect::<anyhow::Result<Vec<_>>>()?.into_iter().unzip();
        Ok(Cost {
            bytes_per_s: bytes.iter().sum::<f64>() / bytes.len() as f64,
            cpu_percent: cpu.iter().sum::<f64>() / cpu.len() as f64,
            pss_mib: crate::report::median(&pss),
            rss_mib: crate::report::median(&rss),
        })
    }
}

impl Agent {
    fn bury(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(ear) = self.ear.take() {
            let _ = ear.join();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.bury();
    }
}

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts a program from the thread that never ends.
fn spawn(command: Command) -> anyhow::Result<Child> {
    static STARTER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                // Whoever asked waits for the answer.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (answer, answered) = mpsc::channel();
    let sent = starter.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer));
    sent.map_err(|_| anyhow!("the thread that starts agents has ended"))?;
    Ok(answered.recv().context("the thread that starts agents has ended")??)
}

mod proc {
    //! What the kernel says of a process.

    use std::fs;

    use anyhow::Context;

    /// Processor time in hundredths of a second: as a share of a second it is a percentage of one core.
    pub(super) fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("a stat line has a command in parentheses")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        Ok(field(11) + field(12))
    }

    /// Proportional and resident set size.
    pub(super) fn memory_mib(pid: u32) -> anyhow::Result<(f64, f64)> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let field = |name: &str| -> anyhow::Result<f64> {
            let line =
                rollup.lines().find_map(|line| line.strip_prefix(name)).context("a rollup has sizes")?;
            Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
        };
        Ok((field("Pss:")?, field("Rss:")?))
    }
}
