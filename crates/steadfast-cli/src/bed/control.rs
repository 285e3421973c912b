//! A bed's control socket: how `steadfast bed kill alpha` in one terminal reaches the process that owns the bed.
//!
//! One request and one answer per connection, a line of JSON each. The socket lies in the bed's folder, which only root may enter.
//! The owner serves until it is told to take the bed down, or gets SIGINT or SIGTERM. Read `command.rs` for the requests' words.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::{Bed, BedError, Direction, Fault, FaultId, Host, Registered, wait_for};
use crate::codes::Code;
use crate::failure::Failure;

/// Longest request or answer, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// How long the owner may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// How long a bed in the background may take to be ready (the whole demo).
const READY_MAX: Duration = Duration::from_secs(600);

/// What can be asked of a bed's owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Power loss of a host.
    Kill {
        /// The host's name.
        host: String,
    },
    /// Power for a host, and its agent started.
    Start {
        /// The host's name.
        host: String,
    },
    /// A signal to a host's agent: `kill`, `stop`, `cont`, `term`; or `start`.
    Agent {
        /// The host's name.
        host: String,
        /// What shall happen.
        what: String,
    },
    /// Cut a whole network, or one host from it, or two hosts from each other.
    Cut {
        /// The network's name.
        network: String,
        /// None, one or two hosts.
        hosts: Vec<String>,
        /// `from`, `to` or `both`, seen from the one host.
        direction: String,
    },
    /// Drop a share of a host's frames on a network.
    Loss {
        /// The host's name.
        host: String,
        /// The network's name.
        network: String,
        /// 0 to 100.
        percent: u8,
    },
    /// Delay a host's frames on a network; zero takes the delay away again.
    Delay {
        /// The host's name.
        host: String,
        /// The network's name.
        network: String,
        /// The least delay, each way, in ms.
        delay_ms: u64,
        /// Up to this much more, at random, in ms.
        jitter_ms: u64,
    },
    /// Split the cluster into groups of hosts.
    Split {
        /// The groups of names.
        groups: Vec<Vec<String>>,
    },
    /// Undo one fault or all.
    Heal {
        /// The fault's number.
        fault: Option<u64>,
    },
    /// Say what is up.
    Show,
    /// Where a host's process 1 is, so that the asker can enter.
    Enter {
        /// The host's name, or `client`.
        host: String,
    },
    /// Take the bed down.
    Down,
}

/// The owner's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Whether it was done.
    pub done: bool,
    /// What was done or why it was not, in words.
    pub words: String,
    /// A process id, a fault's number: what the request asks for.
    pub number: Option<u64>,
    /// The local socket of the host's agent.
    pub socket: Option<PathBuf>,
}

impl Answer {
    fn done(words: impl Into<String>) -> Self {
        Self { done: true, words: words.into(), number: None, socket: None }
    }

    fn refused(words: impl Into<String>) -> Self {
        Self { done: false, words: words.into(), number: None, socket: None }
    }
}

/// Asks the owner of a bed.
pub fn ask(bed: &Registered, request: &Request) -> Result<Answer, Failure> {
    let answer = exchange(&bed.control(), request).map_err(|error| {
        Failure::new(Code::BedFailed, format!("the owner of bed {} does not answer: {error}", bed.id))
    })?;
    if answer.done { Ok(answer) } else { Err(Failure::new(Code::BedFailed, answer.words)) }
}

fn exchange(socket: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut text = serde_json::to_string(request)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// Serves the bed until it is told to take it down, then takes it down.
pub fn serve(bed: Bed) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::new(Code::BedFailed, format!("the bed can't be controlled: {error}"));
    let path = bed.registered().control();
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    down_on_signal(path).map_err(failed)?;
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        match serve_one(&bed, stream) {
            Ok(Next::Down) => break,
            // Who asked went away; the bed stays.
            Ok(Next::Serve) | Err(_) => {}
        }
    }
    drop(bed);
    Ok(())
}

enum Next {
    Serve,
    Down,
}

fn serve_one(bed: &Bed, mut stream: UnixStream) -> io::Result<Next> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_BYTES_MAX)).read_line(&mut line)?;
    let (answer, next) = match serde_json::from_str(&line) {
        Ok(Request::Down) => (Answer::done(format!("bed {} is gone", bed.id())), Next::Down),
        Ok(request) => (carry_out(bed, request), Next::Serve),
        Err(error) => (Answer::refused(format!("the request is malformed: {error}")), Next::Serve),
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    Ok(next)
}

fn down_on_signal(control: PathBuf) -> io::Result<()> {
    std::thread::Builder::new().name("bed-signals".into()).spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        let waited: io::Result<()> = runtime.block_on(async {
            let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => interrupted,
                _ = terminate.recv() => Ok(()),
            }
        });
        if waited.is_ok() {
            // The serving thread may be gone already, and the bed with it.
            let _ = exchange(&control, &Request::Down);
        }
    })?;
    Ok(())
}

fn carry_out(bed: &Bed, request: Request) -> Answer {
    match attempt(bed, request) {
        Ok(answer) => answer,
        Err(Refusal(words)) => Answer::refused(words),
    }
}

/// Why a request was not carried out, in words.
struct Refusal(String);

impl From<BedError> for Refusal {
    fn from(error: BedError) -> Self {
        Self(error.to_string())
    }
}

fn attempt(bed: &Bed, request: Request) -> Result<Answer, Refusal> {
    match request {
        Request::Kill { host } => {
            named(bed, &host)?.power_off()?;
            Ok(Answer::done(format!("{host} lost its power")))
        }
        Request::Start { host } => {
            let host = named(bed, &host)?;
            if !host.is_on() {
                host.power_on()?;
            }
            host.start_agent()?;
            host.wait_ready()?;
            Ok(Answer::done(format!("{} is up", host.name())))
        }
        Request::Agent { host, what } => agent(named(bed, &host)?, &what),
        Request::Cut { network, hosts, direction } => {
            inject(bed, cut(bed, known_network(bed, network)?, &hosts, &direction)?)
        }
        Request::Loss { host, network, percent } if percent <= 100 => {
            let (host, network) = (named(bed, &host)?.number(), known_network(bed, network)?);
            inject(bed, Fault::Loss { host, network, percent, direction: Direction::Both })
        }
        Request::Loss { percent, .. } => Err(Refusal(format!("{percent} % is more than all; give 0 to 100"))),
        Request::Delay { host, network, delay_ms, jitter_ms } => {
            let (host, network) = (named(bed, &host)?.number(), known_network(bed, network)?);
            let (delay, jitter) = (Duration::from_millis(delay_ms), Duration::from_millis(jitter_ms));
            bed.set_delay(host, &network, delay, jitter)?;
            Ok(Answer::done(format!("delayed by {delay_ms} to {} ms each way", delay_ms + jitter_ms)))
        }
        Request::Split { groups } => {
            let numbers = |group: &Vec<String>| -> Result<Vec<usize>, Refusal> {
                group.iter().map(|name| Ok(named(bed, name)?.number())).collect()
            };
            let groups = groups.iter().map(numbers).collect::<Result<_, _>>()?;
            inject(bed, Fault::Split { groups, networks: bed.all_networks() })
        }
        Request::Heal { fault: Some(number) } => match bed.heal(FaultId::from(number))? {
            true => Ok(Answer::done(format!("fault {number} is healed"))),
            false => Err(Refusal(format!("there is no fault {number}; see `steadfast bed list`"))),
        },
        Request::Heal { fault: None } => {
            bed.heal_all()?;
            Ok(Answer::done("every fault is healed"))
        }
        Request::Show => Ok(Answer::done(show(bed))),
        Request::Enter { host } => enter(bed, &host),
        Request::Down => Err(Refusal("the bed goes down by itself".into())),
    }
}

fn named<'a>(bed: &'a Bed, name: &str) -> Result<&'a Host, Refusal> {
    let names = || bed.hosts().iter().map(Host::name).collect::<Vec<_>>().join(", ");
    bed.host_named(name)
        .ok_or_else(|| Refusal(format!("there is no host {name:?}; the hosts are {}", names())))
}

fn known_network(bed: &Bed, name: String) -> Result<String, Refusal> {
    let known = bed.all_networks();
    if known.contains(&name) {
        return Ok(name);
    }
    Err(Refusal(format!("there is no network {name:?}; the networks are {}", known.join(", "))))
}

fn agent(host: &Host, what: &str) -> Result<Answer, Refusal> {
    let signal = match what {
        "start" => {
            host.start_agent()?;
            host.wait_ready()?;
            return Ok(Answer::done(format!("the agent on {} is up", host.name())));
        }
        "kill" => {
            host.kill_agent()?;
            return Ok(Answer::done(format!("the agent on {} is dead", host.name())));
        }
        "stop" => Signal::STOP,
        "cont" => Signal::CONT,
        "term" => Signal::TERM,
        other => {
            return Err(Refusal(format!(
                "{other:?} is nothing to do to an agent; say kill, start, stop, cont or term"
            )));
        }
    };
    host.signal_agent(signal)?;
    Ok(Answer::done(format!("the agent on {} got its signal", host.name())))
}

fn cut(bed: &Bed, network: String, hosts: &[String], direction: &str) -> Result<Fault, Refusal> {
    let direction = match direction {
        "both" => Direction::Both,
        "from" => Direction::FromHost,
        "to" => Direction::ToHost,
        other => return Err(Refusal(format!("{other:?} is no direction; say from, to or both"))),
    };
    match hosts {
        [] => Ok(Fault::Network { network }),
        [host] => Ok(Fault::Host { host: named(bed, host)?.number(), network, direction }),
        [first, second] => {
            let (first, second) = (named(bed, first)?.number(), named(bed, second)?.number());
            Ok(Fault::Pair { first, second, network })
        }
        more => Err(Refusal(format!("{} hosts can't be cut in one go; name none, one or two", more.len()))),
    }
}

fn inject(bed: &Bed, fault: Fault) -> Result<Answer, Refusal> {
    let id = bed.inject(fault)?;
    let number = id.to_string().parse().ok();
    Ok(Answer {
        number,
        ..Answer::done(format!("fault {id} is in force; `steadfast bed heal {id}` undoes it"))
    })
}

fn enter(bed: &Bed, name: &str) -> Result<Answer, Refusal> {
    if name == "client" {
        return Ok(Answer { number: Some(bed.client().pid().into()), ..Answer::done("the client") });
    }
    let host = named(bed, name)?;
    let Some(pid) = host.init_pid() else {
        return Err(Refusal(format!("{name} has no power; `steadfast bed start {name}` gives it some")));
    };
    Ok(Answer { number: Some(pid.into()), socket: Some(host.socket()), ..Answer::done(name) })
}

fn show(bed: &Bed) -> String {
    let host = |host: &Host| {
        let state = match (host.is_on(), host.agent_pid()) {
            (false, _) => "no power".to_owned(),
            (true, None) => "on, no agent".to_owned(),
            (true, Some(pid)) => format!("on, agent is process {pid}"),
        };
        let addresses: Vec<String> = host.addresses().iter().map(ToString::to_string).collect();
        format!("  {:<8} {state}; {}; log {}", host.name(), addresses.join(", "), host.log().display())
    };
    let mut lines: Vec<String> = bed.hosts().iter().map(host).collect();
    lines.extend(bed.faults().iter().map(|(id, fault)| format!("  fault {id}: {fault:?}")));
    lines.join("\n")
}

/// Starts this program again with `arguments` as the owner of a bed in the background, and waits until it says that it is ready.
///
/// The child gets `--report FILE` added and must end up in [`serve_in_background`].
pub fn run_in_background(arguments: &[&str]) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::new(Code::BedFailed, format!("the bed's owner did not start: {error}"));
    let binary = std::env::current_exe().map_err(failed)?;
    let report = std::env::temp_dir().join(format!("steadfast-bed-report-{}", std::process::id()));
    let mut command = Command::new(binary);
    command.args(arguments).arg("--report").arg(&report);
    // Its own process group: Ctrl-C here is not meant for a bed that stays. Its input ends with us; see there.
    command.stdin(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    let ready = wait_for("the bed in the background", READY_MAX, || {
        if let Ok(text) = std::fs::read_to_string(&report) {
            return Some(text.trim().parse::<u8>().unwrap_or(1));
        }
        child
            .try_wait()
            .ok()?
            .map(|status| status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    });
    // It may never have been written.
    let _ = std::fs::remove_file(&report);
    match ready? {
        0 => Ok(()),
        code => Err(Failure::new(
            Code::BedFailed,
            format!("the bed's owner ended with status {code}; it said why above"),
        )),
    }
}

/// Reports the outcome so far to who waits in [`run_in_background`], lets go of its terminal, and serves the bed when all is well.
pub fn serve_in_background(bed: Bed, report: &Path, outcome: Result<(), u8>) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::new(Code::BedFailed, format!("the bed's owner can't report: {error}"));
    let code = outcome.err().unwrap_or(0);
    if code != 0 {
        drop(bed);
        return std::fs::write(report, code.to_string()).map_err(failed);
    }
    let nowhere = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(failed)?;
    let log = std::fs::File::create(bed.base().join("owner.log")).map_err(failed)?;
    rustix::stdio::dup2_stdin(&nowhere).map_err(|error| failed(error.into()))?;
    rustix::stdio::dup2_stdout(&nowhere).map_err(|error| failed(error.into()))?;
    rustix::stdio::dup2_stderr(&log).map_err(|error| failed(error.into()))?;
    let draft = report.with_extension("new");
    std::fs::write(&draft, "0").and_then(|()| std::fs::rename(&draft, report)).map_err(failed)?;
    serve(bed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_way_and_unknown_ones_are_refused() {
        let request = Request::Split { groups: vec![vec!["alpha".into()], vec!["beta".into()]] };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"do":"split","groups":[["alpha"],["beta"]]}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        assert!(serde_json::from_str::<Request>(r#"{"do":"melt"}"#).is_err());
    }
}
