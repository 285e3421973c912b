//! `steadfast replace` on whole agents: whether a checkpoint ever has fewer copies than asked while one node takes another's place.
//!
//! A node that takes no part is asked over and over, once every few milliseconds: who is in the view, and then which nodes hold the newest
//! checkpoint whole, which it asks of those nodes themselves. Only copies on members and on the one that comes count. An outside witness
//! hears the program all the while: it must lose nothing, and its longest silence is the stall.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use steadfast_cli::api::types::{Checkpoint, Container, Status};
use steadfast_cli::bed::witness::{REPORTER, Witness};
use steadfast_cli::bed::{Bed, Host, client_address, service_address, wait_for};

use super::ROUNDS;
use crate::report::{Report, median};
use crate::steadfast;

const HOSTS: usize = 4;
const PROGRAM: &str = "counter";
const WITNESS_PORT: u16 = 9000;
/// How often the program is checkpointed.
const EVERY: &str = "500ms";
/// Between two looks.
const LOOK: Duration = Duration::from_millis(3);
/// How long is looked on when the replacement is done.
const AFTER: Duration = Duration::from_secs(2);
const ANSWER_MAX: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// What the looks of one replacement showed.
#[derive(Debug, Default)]
struct Seen {
    looks: usize,
    /// How long fewer copies than asked were there.
    reduced: Duration,
    /// The longest time without an answer.
    blind: Duration,
    /// The longest time without a word of the program.
    silent: Duration,
    /// The first look that showed fewer.
    first: Option<String>,
}

impl fmt::Display for Seen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (blind, reduced, silent) = (ms(self.blind), ms(self.reduced), ms(self.silent));
        write!(
            formatter,
            "{} looks, {blind:.0} ms apart at most, {reduced:.0} ms with fewer copies",
            self.looks
        )?;
        write!(formatter, ", the program silent for {silent:.0} ms at most")?;
        self.first.as_ref().map_or(Ok(()), |first| write!(formatter, " ({first})"))
    }
}

/// Replaces the program's node and nodes with copies of its checkpoints in turns.
pub fn measure(report: &mut Report) -> anyhow::Result<()> {
    let bed = Bed::builder(steadfast()?).hosts(HOSTS).networks(2).build()?;
    let address = SocketAddr::from((client_address(), WITNESS_PORT));
    let witness = Witness::listen(bed.client().udp_bind(address)?)?;
    bed.init_cluster("bench")?;
    let mut spare = bed.host(HOSTS - 1);
    bed.host(0).steadfast_text(&["leave", spare.name()])?;
    run_program(&bed, &witness)?;
    let (mut took_ms, mut silent_ms, mut reduced_ms) = (Vec::new(), Vec::new(), 0.0);
    for round in 1..=ROUNDS {
        make_ready(&bed, spare)?;
        let old = old(&bed, spare, round)?;
        let observer = bed.hosts().iter().find(|host| ![old.name(), spare.name()].contains(&host.name()));
        let observer = observer.context("there is a third")?;
        let (seen, took) = look_on(&observer.socket(), spare.name(), &witness, || {
            Ok(observer.steadfast_text(&["replace", old.name(), spare.name()]).map(drop)?)
        })?;
        println!("replace round {round}: {} for {}: {:.0} ms; {seen}", spare.name(), old.name(), ms(took));
        took_ms.push(ms(took));
        reduced_ms += ms(seen.reduced);
        if round % 2 == 1 {
            silent_ms.push(ms(seen.silent));
        }
        spare = old;
    }
    let control = lose_a_holder(&bed, spare, &witness)?;
    println!("replace control, a holder of copies loses power and nobody takes its place: {control}");
    if control.reduced.is_zero() {
        bail!("the looks did not even see that a holder of copies was gone: they prove nothing");
    }
    let judge = witness.judge();
    if !judge.violations().is_empty() {
        bail!("the program lost something: {}", judge.account());
    }
    report.figure("catalog.replace_reduced_ms", reduced_ms, "ms");
    report.figure("catalog.replace_ms", median(&took_ms), "ms");
    report.figure("catalog.replace_stall_ms", median(&silent_ms), "ms");
    Ok(())
}

/// The same eyes on a holder of copies that loses power, with nobody to take its place: they must see that copies are missing.
fn lose_a_holder(bed: &Bed, spare: &Host, witness: &Witness) -> anyhow::Result<Seen> {
    spare.kill_agent()?;
    let owner = bed.wait_container(PROGRAM, "running", |container| container.state == "running")?.node;
    let mut others = bed.hosts().iter().filter(|host| ![spare.name(), &owner].contains(&host.name()));
    let (observer, lost) = others.next().zip(others.next()).context("there are two others")?;
    wait_survives(observer)?;
    let (seen, _) = look_on(&observer.socket(), spare.name(), witness, || Ok(lost.power_off().map(drop)?))?;
    Ok(seen)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A program that is checkpointed all the time, with the usual two copies.
fn run_program(bed: &Bed, witness: &Witness) -> anyhow::Result<()> {
    let (client, port) = (client_address().to_string(), WITNESS_PORT.to_string());
    let address = format!("{}/24", service_address(10));
    let node = bed.host(1).name();
    let started = Instant::now();
    #[rustfmt::skip]
    let run = ["run", "--name", PROGRAM, "--node", node, "--address", &address, "--every", EVERY, "--copies", "2"];
    let program = ["--", "/usr/bin/python3", "-c", REPORTER, &client, &port, "5"];
    bed.host(0).steadfast_text(&[&run[..], &program[..]].concat())?;
    wait_for("the program's first report", PATIENCE, || witness.heard_since(started).then_some(()))?;
    Ok(())
}

/// The node to be replaced: the program's in every other round, else one that holds copies.
fn old<'a>(bed: &'a Bed, spare: &Host, round: usize) -> anyhow::Result<&'a Host> {
    let owner = bed.wait_container(PROGRAM, "running", |container| container.state == "running")?.node;
    let is_wanted = |host: &&Host| host.name() != spare.name() && (host.name() == owner) == (round % 2 == 1);
    bed.hosts().iter().find(is_wanted).context("there is such a node")
}

/// Brings `spare`, which has left or was replaced, to where it waits in readiness, with all copies in place.
fn make_ready(bed: &Bed, spare: &Host) -> anyhow::Result<()> {
    let other = bed.hosts().iter().find(|host| host.name() != spare.name()).context("there are others")?;
    spare.kill_agent()?;
    let text = std::fs::read_to_string(spare.config())?;
    if !text.contains("standby = true") {
        std::fs::write(spare.config(), text.replacen("[node]\n", "[node]\nstandby = true\n", 1))?;
    }
    other.steadfast_text(&["drain", "--undo", spare.name()])?;
    spare.start_agent()?;
    spare.wait_ready()?;
    wait_for(&format!("{} to be ready", spare.name()), PATIENCE, || {
        let nodes = other.nodes().ok()?;
        let node = nodes.into_iter().find(|node| node.name == spare.name())?;
        node.probation.filter(|probation| probation.ready).map(drop)
    })?;
    wait_survives(other)?;
    wait_for("all copies of the newest checkpoint", PATIENCE, || {
        look(&other.socket(), spare.name()).ok()?.is_none().then_some(())
    })?;
    Ok(())
}

/// Waits until the duties of who was replaced are with the members: a vote in the catalog and grants of leases follow a moment later.
fn wait_survives(host: &Host) -> anyhow::Result<()> {
    wait_for("the cluster to survive a loss", PATIENCE, || {
        let status = host.status().ok()?;
        (status.view.members.len() == HOSTS - 1 && status.survives.nodes > 0).then_some(())
    })?;
    Ok(())
}

/// What is seen at the agent with this socket while `work` goes on, and a while after; and how long the work took.
fn look_on(
    socket: &Path,
    new: &str,
    witness: &Witness,
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<(Seen, Duration)> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| look_until(&ended, socket, new));
        // By itself: a look can take long.
        let listening = scope.spawn(|| silence_until(&ended, witness));
        let asked = Instant::now();
        let worked = work();
        let took = asked.elapsed();
        if worked.is_ok() {
            // What is too few only afterwards counts as well.
            std::thread::sleep(AFTER);
        }
        ended.store(true, Ordering::SeqCst);
        let mut seen = looking.join().map_err(|_| anyhow::anyhow!("the looks ended with a panic"))?;
        seen.silent = listening.join().map_err(|_| anyhow::anyhow!("listening ended with a panic"))?;
        worked.map(|()| (seen, took))
    })
}

/// The longest time without a word of the program.
fn silence_until(ended: &AtomicBool, witness: &Witness) -> Duration {
    let (mut silent, mut heard) = (Duration::ZERO, Instant::now());
    while !ended.load(Ordering::SeqCst) {
        if let Some(newest) = witness.judge().last_heard() {
            silent = silent.max(newest.saturating_duration_since(heard));
            heard = heard.max(newest);
        }
        std::thread::sleep(LOOK);
    }
    silent
}

fn look_until(ended: &AtomicBool, socket: &Path, new: &str) -> Seen {
    let mut seen = Seen::default();
    let start = Instant::now();
    let mut last = start;
    while !ended.load(Ordering::SeqCst) {
        let lack = look(socket, new);
        let now = Instant::now();
        let since_last = now - last;
        seen.blind = seen.blind.max(since_last);
        let Ok(lack) = lack else { continue };
        last = now;
        seen.looks += 1;
        if let Some(lack) = lack {
            seen.reduced += since_last;
            let ms = start.elapsed().as_millis();
            seen.first.get_or_insert_with(|| format!("after {ms} ms {lack}"));
        }
        std::thread::sleep(LOOK);
    }
    seen
}

/// What the newest checkpoint lacks, if it lacks copies.
fn look(socket: &Path, new: &str) -> anyhow::Result<Option<String>> {
    // In this order: one that was replaced meanwhile is not counted for less than it was.
    let status: Status = get(socket, "/v1/status")?;
    let program: Container = get(socket, &format!("/v1/containers/{PROGRAM}"))?;
    let checkpoints: Vec<Checkpoint> = get(socket, &format!("/v1/containers/{PROGRAM}/checkpoints"))?;
    let Some(newest) = checkpoints.iter().find(|checkpoint| checkpoint.role == "latest") else {
        return Ok(Some("there is no checkpoint".to_owned()));
    };
    let counts = |name: &String| *name != program.node && (status.view.members.contains(name) || name == new);
    let whole = newest.copies.iter().filter(|copy| copy.state == "held").map(|copy| &copy.node);
    let whole: BTreeSet<&String> = whole.filter(|name| counts(name)).collect();
    let wanted = usize::try_from(newest.copies_wanted)?;
    let lack = || {
        format!("checkpoint {} is on {:?}, members {:?}", newest.number, newest.copies, status.view.members)
    };
    Ok((whole.len() < wanted).then(lack))
}

/// Asks an agent through its socket, without the price of a process.
fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> anyhow::Result<T> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: agent\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    if !head.starts_with("HTTP/1.0 200") && !head.starts_with("HTTP/1.1 200") {
        bail!("{path}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(serde_json::from_str(body)?)
}
