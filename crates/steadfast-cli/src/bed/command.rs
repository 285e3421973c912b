//! `steadfast bed` (hidden; `cargo xtask bed`): the test bed by hand.
//!
//! `up` owns a bed, in the foreground or the background; every other verb asks its owner through the control socket, except `exec`,
//! which enters the host by itself so that the program has the caller's terminal. Read `control.rs` next.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Subcommand;

use super::control::{self, Request};
use super::{Bed, Registered, cleanup_stale, registered, spaces};
use crate::codes::Code;
use crate::commands::Context;
use crate::failure::Failure;
use crate::output::line;

/// Make a small cluster of name spaces on this machine, and break it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  steadfast bed up --nodes 3 --networks 2 --keep
  steadfast bed exec alpha -- steadfast nodes
  steadfast bed kill beta; steadfast bed start beta
  steadfast bed cut front alpha; steadfast bed heal
  steadfast bed down")]
pub struct Args {
    /// The bed, where there are several
    #[arg(long, global = true, value_name = "ID")]
    bed: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a bed with a cluster in it; it goes away with Ctrl-C
    Up(UpArgs),
    /// The beds of this machine, their hosts and faults
    List,
    /// Take a bed down and remove everything of it
    Down {
        /// All beds
        #[arg(long)]
        all: bool,
    },
    /// Run a program on a host, or on `client`
    Exec {
        /// The host
        host: String,
        /// The program and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Power loss: every process of the host at once
    Kill {
        /// The host
        host: String,
    },
    /// Give a host power again and start its agent
    Start {
        /// The host
        host: String,
    },
    /// Do something to a host's agent alone: kill, start, stop, cont, term
    Agent {
        /// What
        what: String,
        /// The host
        host: String,
    },
    /// Cut a network for everybody, for one host, or between two
    Cut {
        /// The network
        network: String,
        /// None, one or two hosts
        hosts: Vec<String>,
        /// Only one way, seen from the one host: from, to, both
        #[arg(long, default_value = "both")]
        direction: String,
    },
    /// Drop a share of a host's packets on a network
    Loss {
        /// The host
        host: String,
        /// The network
        network: String,
        /// 0 to 100
        percent: u8,
    },
    /// Delay a host's packets on a network, each way; 0ms ends it
    Delay {
        /// The host
        host: String,
        /// The network
        network: String,
        /// The least delay
        #[arg(value_parser = delay)]
        delay: Duration,
        /// Up to this much more, at random
        #[arg(long, default_value = "0ms", value_parser = delay)]
        jitter: Duration,
    },
    /// Split the cluster: each word is one group, such as alpha,beta gamma
    Split {
        /// The groups
        #[arg(required = true)]
        groups: Vec<String>,
    },
    /// Undo one fault, or all
    Heal {
        /// The fault's number
        fault: Option<u64>,
    },
}

#[derive(Debug, clap::Args)]
struct UpArgs {
    /// Number of hosts
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Number of networks between them
    #[arg(long, default_value_t = 2)]
    networks: usize,
    /// The cluster's lease
    #[arg(long, default_value = "1s", value_parser = delay)]
    lease: Duration,
    /// Checkpoint memory of each node
    #[arg(long, default_value = "1GiB")]
    memory: String,
    /// Leave the bed in the background; `steadfast bed down` removes it
    #[arg(long, alias = "detach")]
    keep: bool,
    /// Only hosts and networks: no cluster, no agents
    #[arg(long)]
    bare: bool,
    /// Be the owner in the background.
    #[arg(long, hide = true)]
    report: Option<PathBuf>,
}

fn delay(text: &str) -> Result<Duration, String> {
    crate::units::duration_within(text, Duration::ZERO, Duration::from_secs(300))
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let bed = args.bed.as_deref();
    let request = match args.verb {
        Verb::Up(args) => return up(&args, context).map(|()| ExitCode::SUCCESS),
        Verb::List => return list().map(|()| ExitCode::SUCCESS),
        Verb::Down { all } => return down(bed, all).map(|()| ExitCode::SUCCESS),
        Verb::Exec { host, command } => return exec(&chosen(bed)?, host, &command),
        Verb::Kill { host } => Request::Kill { host },
        Verb::Start { host } => Request::Start { host },
        Verb::Agent { what, host } => Request::Agent { host, what },
        Verb::Cut { network, hosts, direction } => Request::Cut { network, hosts, direction },
        Verb::Loss { host, network, percent } => Request::Loss { host, network, percent },
        Verb::Delay { host, network, delay, jitter } => {
            Request::Delay { host, network, delay_ms: ms(delay), jitter_ms: ms(jitter) }
        }
        Verb::Split { groups } => {
            let names = |group: &String| group.split(',').map(str::to_owned).collect();
            Request::Split { groups: groups.iter().map(names).collect() }
        }
        Verb::Heal { fault } => Request::Heal { fault },
    };
    let answer = control::ask(&chosen(bed)?, &request)?;
    line(&answer.words);
    Ok(ExitCode::SUCCESS)
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn up(args: &UpArgs, context: &Context) -> Result<(), Failure> {
    if args.keep && args.report.is_none() {
        let (nodes, networks) = (args.nodes.to_string(), args.networks.to_string());
        let lease = format!("{}ms", args.lease.as_millis());
        #[rustfmt::skip]
        let mut words = vec![
            "bed", "up", "--keep", "--nodes", &nodes, "--networks", &networks, "--lease", &lease, "--memory", &args.memory,
        ];
        words.extend(args.bare.then_some("--bare"));
        return control::run_in_background(&words);
    }
    let made = make(args, context);
    match (&args.report, made) {
        (None, made) => control::serve(made?),
        (Some(report), Ok(bed)) => control::serve_in_background(bed, report, Ok(())),
        (Some(_), Err(failure)) => Err(failure),
    }
}

fn make(args: &UpArgs, context: &Context) -> Result<Bed, Failure> {
    let binary = std::env::current_exe();
    let binary =
        binary.map_err(|error| Failure::new(Code::BedFailed, format!("can't find this program: {error}")))?;
    let progress = context.output.progress("making the bed");
    let builder = Bed::builder(binary).hosts(args.nodes).networks(args.networks);
    let builder = builder.setting("page", "listen = \"127.0.0.1:7480\"");
    let bed = builder.lease(args.lease).memory(&args.memory).build()?;
    if !args.bare {
        bed.init_cluster("bed")?;
    }
    progress.done(&format!("bed {} is up: {}", bed.id(), bed.registered().hosts.join(", ")));
    line(&format!("in it: steadfast bed exec {} -- steadfast nodes", bed.host(0).name()));
    line("with a browser inside: the address that `steadfast page` prints there");
    line(if args.keep { "remove it: steadfast bed down" } else { "remove it: Ctrl-C" });
    Ok(bed)
}

fn list() -> Result<(), Failure> {
    for bed in registered() {
        if bed.is_alive() {
            line(&format!("{} owned by process {}", bed.id, bed.owner));
            // A bed that only a test owns serves no control socket.
            if let Ok(answer) = control::ask(&bed, &Request::Show) {
                line(&answer.words);
            }
        } else {
            line(&format!("{} is a leftover; the next bed removes it", bed.id));
        }
    }
    Ok(())
}

fn down(bed: Option<&str>, all: bool) -> Result<(), Failure> {
    let stale = cleanup_stale();
    if stale > 0 {
        line(&format!("{stale} leftovers removed"));
    }
    let beds = match (bed, all) {
        (None, true) => controllable(),
        (None, false) if controllable().is_empty() => return Ok(()),
        _ => vec![chosen(bed)?],
    };
    for bed in beds {
        control::ask(&bed, &Request::Down)?;
        let gone = || (!bed.base.exists()).then_some(());
        super::wait_for(&format!("the end of bed {}", bed.id), Duration::from_secs(60), gone)?;
        line(&format!("bed {} is gone", bed.id));
    }
    Ok(())
}

fn controllable() -> Vec<Registered> {
    registered().into_iter().filter(|bed| bed.is_alive() && bed.control().exists()).collect()
}

/// The bed that is meant: the one named, or the only one.
fn chosen(id: Option<&str>) -> Result<Registered, Failure> {
    let mut beds = controllable();
    if let Some(id) = id {
        let found = beds.into_iter().find(|bed| bed.id == id);
        return found.ok_or_else(|| {
            Failure::new(Code::BedFailed, format!("there is no bed {id:?}; `steadfast bed list` shows them"))
        });
    }
    match (beds.pop(), beds.is_empty()) {
        (Some(bed), true) => Ok(bed),
        (Some(_), false) => Err(Failure::new(
            Code::BedFailed,
            "there are several beds; choose one of `steadfast bed list` with --bed ID",
        )),
        (None, _) => {
            Err(Failure::new(Code::BedFailed, "there is no bed; `steadfast bed up --keep` makes one"))
        }
    }
}

fn exec(bed: &Registered, host: String, words: &[String]) -> Result<ExitCode, Failure> {
    let failed =
        |error| Failure::new(Code::BedFailed, format!("{} can't be run there: {error}", words.join(" ")));
    let answer = control::ask(bed, &Request::Enter { host })?;
    let pid = answer.number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default();
    let Some((program, arguments)) = words.split_first() else { return Ok(ExitCode::from(2)) };
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", path_with_us());
    if let Some(socket) = answer.socket {
        command.env("STEADFAST_SOCKET", socket);
    }
    let status = spaces::enter(pid, &mut command).and_then(|mut child| child.wait()).map_err(failed)?;
    // As a shell does it: a program that a signal ended has no status of its own.
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(128)))
}

/// `steadfast` inside is the program that this is.
fn path_with_us() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folder = std::env::current_exe().ok().and_then(|file| Some(file.parent()?.to_path_buf()));
    let folders = folder.into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(folders).unwrap_or(path.clone())
}
