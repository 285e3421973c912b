//! From an event of one agent until the last of sixteen has it: a consumer at each of ours, and Serf's user events, whose
//! agents say in their logs when they have one.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::clients::{Emitter, Listener, warm_up};
use super::{ROUNDS, quantile};
use crate::detect::cluster::Cluster;
use crate::detect::hub::Hub;
use crate::detect::journal::Reader;
use crate::detect::ours::Steadfast;
use crate::detect::systems::{Serf, System};
use crate::report::{Report, median};

const AGENTS: usize = 16;
/// Events of one round.
const EVENTS: u64 = 10;
const PATIENCE: Duration = Duration::from_secs(20);
/// How its agents log a user event.
const RECEIVED: &str = "agent: Received event: user-event: ";

/// All of it.
pub fn measure(report: &mut Report) -> anyhow::Result<()> {
    let ours = Arc::new(Steadfast::new()?);
    let _our_cluster = Cluster::boot(Arc::clone(&ours) as Arc<dyn System>, AGENTS, 2)?;
    let mut our_side = OurSide::open(&ours)?;
    let heard = Heard::default();
    let serf: Arc<dyn System> = Arc::new(Listening { serf: Serf::find("lan")?, heard: Arc::clone(&heard) });
    let their_cluster = Cluster::boot(serf, AGENTS, 1)?;
    let binary = Serf::find("lan")?.binary().to_owned();
    let (mut our_all, mut their_all) = (Vec::new(), Vec::new());
    let (mut our_medians, mut their_medians) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        // The last one may have been closed as idle: Serf's events can take as long as is waited for them.
        our_side.emitter = Emitter::open(&ours.socket(0))?;
        let our: Vec<f64> = (0..EVENTS).map(|_| our_side.event_ms()).collect::<Result<_, _>>()?;
        let mut their = Vec::new();
        for event in 0..EVENTS {
            let mut send = their_cluster.hub().inside(0, &binary);
            send.args(["event", &format!("e{round}x{event}")]);
            their.push(their_event_ms(send, &heard)?);
        }
        println!("all16 round {round}: ours {:.2} ms, serf {:.1} ms", median(&our), median(&their));
        our_medians.push(median(&our));
        their_medians.push(median(&their));
        our_all.extend(our);
        their_all.extend(their);
    }
    report.time_ratio("events.all16.vs_serf", median(&our_medians), median(&their_medians), "ms");
    let (ours_p99, theirs_p99) = (quantile(&our_all, 0.99), quantile(&their_all, 0.99));
    report.time_ratio("events.all16_p99.vs_serf", ours_p99, theirs_p99, "ms");
    Ok(())
}

/// A thread hears the stream of each agent; one connection emits.
struct OurSide {
    emitter: Emitter,
    arrived: mpsc::Receiver<(u64, Instant)>,
    next: u64,
}

impl OurSide {
    fn open(ours: &Steadfast) -> anyhow::Result<OurSide> {
        let mut emitter = Emitter::open(&ours.socket(0))?;
        let (sender, arrived) = mpsc::channel();
        let mut next = 1;
        for host in 0..AGENTS {
            let mut listener = Listener::to_emitted(&ours.socket(host))?;
            next = warm_up(&mut emitter, &mut listener, next)?;
            let sender = sender.clone();
            std::thread::spawn(move || {
                // It ends with its agent, or with whoever counts.
                while let Ok(number) = listener.number() {
                    if sender.send((number, Instant::now())).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(OurSide { emitter, arrived, next })
    }

    /// Milliseconds until the last one has the next event.
    fn event_ms(&mut self) -> anyhow::Result<f64> {
        self.next += 1;
        let start = Instant::now();
        self.emitter.emit(self.next)?;
        let (mut last, mut left) = (start, AGENTS);
        while left > 0 {
            let (number, at) = self.arrived.recv_timeout(PATIENCE).context("an event did not come to all")?;
            if number == self.next {
                left -= 1;
                last = last.max(at);
            }
        }
        self.emitter.answer()?;
        Ok((last - start).as_secs_f64() * 1e3)
    }
}

/// The lines of all agents that tell of a user event, and when they came.
type Heard = Arc<Mutex<Vec<(String, Instant)>>>;

/// Serf, whose lines about user events are kept.
struct Listening {
    serf: Serf,
    heard: Heard,
}

impl System for Listening {
    fn name(&self) -> String {
        self.serf.name()
    }

    fn settings(&self) -> String {
        self.serf.settings()
    }

    fn command(&self, hub: &Hub, host: usize) -> anyhow::Result<Command> {
        self.serf.command(hub, host)
    }

    fn reader(&self) -> Reader {
        let (inner, heard) = (self.serf.reader(), Arc::clone(&self.heard));
        Arc::new(move |line| {
            if let Some((_, name)) = line.split_once(RECEIVED) {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.push((name.trim().to_owned(), Instant::now()));
            }
            inner(line)
        })
    }

    fn watched(&self, hosts: usize, host: usize) -> BTreeSet<usize> {
        self.serf.watched(hosts, host)
    }
}

/// Milliseconds from the first agent, which was told, until the last one has the event: the command's own start is not counted.
fn their_event_ms(mut send: Command, heard: &Heard) -> anyhow::Result<f64> {
    heard.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let output = send.output()?;
    if !output.status.success() {
        bail!("`serf event` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let asked = Instant::now();
    loop {
        let times: Vec<Instant> =
            heard.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(_, at)| *at).collect();
        if times.len() >= AGENTS
            && let (Some(first), Some(last)) = (times.iter().min(), times.iter().max())
        {
            return Ok((*last - *first).as_secs_f64() * 1e3);
        }
        if asked.elapsed() > PATIENCE {
            // As long as was waited.
            println!("all16: only {} of {AGENTS} agents of serf have an event", times.len());
            return Ok(PATIENCE.as_secs_f64() * 1e3);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
