//! `steadfast demo`: a real Redis server keeps its data when the machine under it loses power.
//!
//! Three nodes on two networks in a test bed, real agents, nothing simulated. Every claim it prints was checked: it reads every key
//! back that was acknowledged before the last committed checkpoint began, and ends with status 1 and one sentence when anything is
//! off. It uses the command line and the API as a user would, and never reaches into an agent. Reading order: this file, `load.rs`, `timeline.rs`,
//! `swap.rs`.

mod load;
mod resp;
mod swap;
mod timeline;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::api::types::Checkpoint;
use crate::bed::{Bed, BedError, Host, Spaces, control, service_address, wait_for};
use crate::codes::Code;
use crate::commands::Context;
use crate::failure::Failure;
use crate::output::{Output, line};
use load::{Connect, Writer};
use resp::{Answer, Connection};

/// The container's name.
const NAME: &str = "redis";
/// The kinds of keys: loaded at the beginning, and written on all the time.
const LOADED: &str = "key";
const WRITTEN: &str = "more";
/// How long anything may take that takes a second or two.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one attempt to connect may take. TCP repeats a lost packet only after 200 ms, and a lost first one after a second: a
/// new attempt is sooner, so the first answer is never seen later than this.
const CONNECT_PATIENCE: Duration = Duration::from_millis(50);

/// The entry for fuzzing: how many answers a server sent before it broke off or refused.
#[doc(hidden)]
pub fn read_answers(mut bytes: &[u8]) -> usize {
    std::iter::from_fn(|| resp::answer(&mut bytes).ok()).count()
}

/// See a stateful program survive the loss of its machine
///
/// Makes three machines out of name spaces on this one, starts a Redis server with its persistence switched off, loads it, takes a
/// checkpoint into the memory of the other machines, cuts the power of the one that it runs on, and checks that nothing is missing.
/// Nothing leaves this machine and nothing stays behind.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast demo\n  steadfast demo --swap      # replace the machine under the server while it is written to\n  steadfast demo --keep      # the cluster stays up; `steadfast bed down` removes it"
)]
pub struct Args {
    /// Leave the cluster up and say how to use it
    #[arg(long)]
    keep: bool,
    /// Swap the machine for one that stands by, instead of cutting its power
    #[arg(long)]
    swap: bool,
    /// How many keys to load
    #[arg(long, value_name = "NUMBER", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    keys: u64,
    /// The cluster's lease
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = lease)]
    lease: Duration,
    /// Be the process in the background that owns the bed.
    #[arg(long, hide = true, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn lease(text: &str) -> Result<Duration, String> {
    crate::units::duration_within(text, Duration::from_millis(300), Duration::from_secs(300))
}

/// Runs the demo.
pub fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    match (&args.report, args.keep) {
        (None, true) => {
            let keys = args.keys.to_string();
            let lease = format!("{}ms", args.lease.as_millis());
            let mut words = vec!["demo", "--keep", "--keys", &keys, "--lease", &lease];
            words.extend(args.swap.then_some("--swap"));
            control::run_in_background(&words)
        }
        (None, false) => {
            let bed = build(args)?;
            show(&bed, args, context.output)?;
            farewell();
            Ok(())
        }
        (Some(report), _) => {
            let bed = build(args)?;
            let shown = show(&bed, args, context.output).map(|()| how_to_use(&bed));
            if let Err(failure) = &shown {
                context.output.failure(failure);
            }
            control::serve_in_background(bed, report, shown.map_err(|failure| failure.code.exit().number()))
        }
    }
}

fn build(args: &Args) -> Result<Bed, Failure> {
    if !program_exists("redis-server") {
        let sentence =
            "there is no redis-server on this machine; install it with `apt-get install redis-server`";
        return Err(Failure::new(Code::ToolMissing, sentence));
    }
    let binary = std::env::current_exe()
        .map_err(|error| off(format!("can't find this program's own file: {error}")))?;
    let standbys = usize::from(args.swap);
    Ok(Bed::builder(binary).hosts(3 + standbys).standbys(standbys).networks(2).lease(args.lease).build()?)
}

fn program_exists(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// The demo itself, from an empty bed to the last line.
fn show(bed: &Bed, args: &Args, output: Output) -> Result<(), Failure> {
    let progress = output.progress("making a cluster of three machines on two networks");
    bed.init_cluster("demo")?;
    let standby = if args.swap { "; delta stands by" } else { "" };
    progress.done(&format!("three nodes: alpha, beta, gamma; two networks between them{standby}"));

    let address = service_address(5);
    start_redis(bed.host(0), address, output)?;
    let connect = connector(bed, SocketAddr::from((address, 6379)), PATIENCE);
    load_keys(&connect, args.keys, output)?;

    let impatient = connector(bed, SocketAddr::from((address, 6379)), Duration::from_millis(250));
    let started = Writer::start(WRITTEN, Arc::clone(&impatient));
    let writer = started.map_err(|error| off(format!("the writer did not start: {error}")))?;
    wait_for("the first key that is written on", PATIENCE, || (writer.acknowledged() > 0).then_some(()))?;

    let written = writer.acknowledged();
    let checkpoint = take_checkpoint(bed.host(0), output)?;
    wait_for("writes after the checkpoint", PATIENCE, || {
        (writer.acknowledged() > written + 50).then_some(())
    })?;

    let kept = if args.swap {
        swap::machine(bed, writer, output)?
    } else {
        lose_power(bed, &writer, written, &checkpoint, output)?;
        drop(writer);
        Kept { count: written, when: "while the checkpoint was still to come" }
    };
    read_back(&connect, args.keys, &kept, output)
}

/// How many of the keys that were written on must be there, and when they were written.
struct Kept {
    count: u64,
    when: &'static str,
}

fn start_redis(host: &Host, address: Ipv4Addr, output: Output) -> Result<(), Failure> {
    let progress = output.progress("starting redis-server as a container, its persistence switched off");
    let address = format!("{address}/24");
    #[rustfmt::skip]
    let words = [
        "run", "--name", NAME, "--address", &address, "--every", "never", "--",
        "redis-server", "--save", "", "--appendonly", "no", "--bind", "0.0.0.0", "--protected-mode", "no",
    ];
    host.steadfast_text(&words)?;
    let Some(container) = host.container(NAME)? else {
        return Err(off(format!("`ps` does not show {NAME}, which `run` said was started")));
    };
    progress.done(&format!("{NAME} runs on {} and answers at {address}", container.node));
    Ok(())
}

fn load_keys(connect: &Connect, keys: u64, output: Output) -> Result<(), Failure> {
    let mut progress = output.progress(&format!("loading {keys} keys"));
    let mut connection = wait_for("an answer of redis", PATIENCE, || connect().ok())?;
    let quarter = (keys / 4).max(1);
    let done = load::write(&mut connection, LOADED, keys, |count| {
        if count % quarter == 0 {
            progress.step(&format!("loaded {count} of {keys} keys"));
        }
    });
    done.map_err(|error| off(format!("loading the keys failed: {error}")))?;
    progress.done(&format!("{keys} keys loaded; a client keeps writing more"));
    Ok(())
}

fn take_checkpoint(host: &Host, output: Output) -> Result<Checkpoint, Failure> {
    let progress = output.progress("taking a checkpoint into the memory of the other nodes");
    let checkpoint: Checkpoint = host.steadfast_as(&["checkpoint", NAME, "-o", "json"])?;
    let holders: Vec<&str> = checkpoint.copies.iter().map(|copy| copy.node.as_str()).collect();
    progress.done(&format!(
        "checkpoint {} committed: {} in the memory of {}; the server stood still for {:.0} ms",
        checkpoint.number,
        crate::units::human_size(checkpoint.bytes),
        holders.join(" and "),
        checkpoint.frozen_ms,
    ));
    Ok(checkpoint)
}

/// Cuts the power of the node that the server runs on, waits for the next answer, and prints the time line.
fn lose_power(
    bed: &Bed,
    writer: &Writer,
    written: u64,
    checkpoint: &Checkpoint,
    output: Output,
) -> Result<(), Failure> {
    let container = bed.wait_container(NAME, "running", |container| container.state == "running")?;
    let Some(victim) = bed.host_named(&container.node) else {
        return Err(off(format!(
            "`ps` says that {NAME} runs on {}, which is no node of this cluster",
            container.node
        )));
    };
    let acknowledged = writer.acknowledged();
    let progress = output.progress(&format!("cutting the power of {}", victim.name()));
    let silent_since = victim.power_off()?;
    let lost_unix_ms = unix_ms() - silent_since.elapsed().as_secs_f64() * 1000.0;
    let answer = wait_for("an answer of redis after the power loss", PATIENCE, || {
        writer.last_answer().filter(|at| *at > silent_since)
    })?;
    let after_ms = answer.saturating_duration_since(silent_since).as_secs_f64() * 1000.0;
    let container = bed.wait_container(NAME, "running on another node", |container| {
        container.state == "running" && container.node != victim.name()
    })?;
    progress.done(&format!(
        "{} lost its power; {NAME} answers again, from {}",
        victim.name(),
        container.node
    ));

    let mut seen = Vec::new();
    for host in bed.hosts().iter().filter(|host| host.has_answering_agent()) {
        seen.push((host.name().to_owned(), host.status()?.timeline));
    }
    let mut moments = timeline::merge(&seen, victim.name(), NAME, lost_unix_ms);
    moments.push(timeline::Moment { after_ms, what: "first answer".into(), seen_by: "the client".into() });
    line("\ntime line, in milliseconds from the power loss:");
    line(&timeline::page(&moments));
    let at_risk = acknowledged.saturating_sub(written);
    line(&format!(
        "\n{NAME} went on from checkpoint {}; {at_risk} writes since it began were at risk, as `ps` says at any time",
        checkpoint.number
    ));
    Ok(())
}

fn read_back(connect: &Connect, keys: u64, kept: &Kept, output: Output) -> Result<(), Failure> {
    let mut progress = output.progress("reading every key back");
    let mut connection = wait_for("a connection to redis", PATIENCE, || connect().ok())?;
    let quarter = (keys / 4).max(1);
    let loaded = load::check(&mut connection, LOADED, keys, |count| {
        if count % quarter == 0 {
            progress.step(&format!("checked {count} of {keys} keys"));
        }
    });
    loaded.map_err(|error| off(format!("a key that the checkpoint held is not there: {error}")))?;
    let Kept { count, when } = kept;
    let more = load::check(&mut connection, WRITTEN, *count, |_| {});
    more.map_err(|error| off(format!("a key written {when} is not there: {error}")))?;
    progress.done(&format!("every key is there, also the {count} written {when}"));
    line(&format!("{keys} keys checked"));
    Ok(())
}

/// Makes connections from the bed's client; each has answered a PING, and has `patience` from then on.
fn connector(bed: &Bed, address: SocketAddr, patience: Duration) -> Connect {
    let client: Arc<Spaces> = bed.client_shared();
    Arc::new(move || {
        let stream = client.tcp_connect(address, CONNECT_PATIENCE)?;
        let mut connection = Connection::new(stream, CONNECT_PATIENCE)?;
        let answer = connection.ask(&[b"PING"])?;
        if answer != Answer::Simple("PONG".into()) {
            return Err(io::Error::other(format!("PING was answered with {answer:?}")));
        }
        connection.set_patience(patience)?;
        Ok(connection)
    })
}

fn farewell() {
    line("\nwhat to try next:");
    line("  steadfast demo --keep             the same, and the cluster stays up for you");
    line("  steadfast demo --swap             replace the machine under the server instead");
    line("  steadfast demo --lease 450ms      recovery in less time");
    line("  steadfast run --help              run your own program");
}

fn how_to_use(bed: &Bed) {
    line(&format!("\nthe cluster stays up as bed {}; what to try next:", bed.id()));
    line("  steadfast bed exec beta -- steadfast ps              what runs where, and what is at risk");
    line(
        "  steadfast bed exec beta -- steadfast status          who is up, what failure the cluster survives",
    );
    line("  steadfast bed kill NODE && steadfast bed start NODE  power loss again, and back");
    line("  steadfast bed down                                   remove everything");
}

fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0
}

/// Something that the demo relies on is off.
fn off(sentence: String) -> Failure {
    Failure::new(Code::BedFailed, sentence)
}

impl From<BedError> for Failure {
    fn from(error: BedError) -> Self {
        let code = match &error {
            BedError::NotRoot => Code::NotRoot,
            BedError::TimedOut { .. } => Code::TimedOut,
            BedError::Impossible { .. }
            | BedError::Start { .. }
            | BedError::State { .. }
            | BedError::Program { .. }
            | BedError::File { .. }
            | BedError::Refused { .. }
            | BedError::Answer { .. } => Code::BedFailed,
        };
        Failure::new(code, error.to_string())
    }
}
