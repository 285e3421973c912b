//! `steadfast check`: whether this machine, and a program, qualify.
//!
//! Tries things rather than asking for versions: CRIU must pass its self-test, nft must make a set with a time-out.
//! Everything it makes for a trial is in name spaces of its own and gone when it ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use serde::Serialize;
use steadfast_container::criu::{find, self_test};
use steadfast_container::preflight;

use super::Context;
use crate::agent;
use crate::codes::Code;
use crate::failure::Failure;
use crate::output::table;

/// Say whether this machine, and a program, qualify
///
/// Without an argument this machine is looked at: root, kernel, runc, CRIU (by a real dump and restore), nftables,
/// tmpfs, control groups. With a process id that program is looked at too. With a command it is started, looked at
/// for a second, and ended again. Exit code 0 when all qualifies.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast check\n  steadfast check 4711\n  steadfast check redis-server --save ''\n  steadfast -o json check | jq '.[] | select(.verdict != \"ok\")'"
)]
pub struct Args {
    /// A process id, or a command with its arguments
    #[arg(value_name = "PID or CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<String>,
    /// The CRIU to test [default: the one that the agent would use]
    #[arg(long, value_name = "PATH")]
    criu: Option<PathBuf>,
}

/// What was looked at, and how it stands.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    what: String,
    /// `ok`, `warning` or `missing`.
    verdict: &'static str,
    detail: String,
    remedy: String,
}

impl Finding {
    fn ok(what: &str, detail: impl Into<String>) -> Finding {
        Finding { what: what.to_owned(), verdict: "ok", detail: detail.into(), remedy: String::new() }
    }

    fn missing(what: &str, detail: impl Into<String>, remedy: &str) -> Finding {
        Finding {
            what: what.to_owned(),
            verdict: "missing",
            detail: detail.into(),
            remedy: remedy.to_owned(),
        }
    }

    fn warning(what: &str, detail: impl Into<String>, remedy: &str) -> Finding {
        Finding { verdict: "warning", ..Finding::missing(what, detail, remedy) }
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<ExitCode, Failure> {
    let mut progress = context.output.progress("looking at this machine");
    let mut findings =
        vec![root(), capabilities(), kernel(), runc(), cgroups(), tmpfs(), overlay(), nftables()];
    progress.step("testing CRIU: a dump and a restore of a process with an open connection");
    findings.push(criu(args.criu.as_deref()));
    if let Some(first) = args.program.first() {
        progress.step("looking at the program");
        findings.extend(match first.parse::<u32>() {
            Ok(pid) if args.program.len() == 1 => program(pid)?,
            Ok(_) | Err(_) => trial(&args.program)?,
        });
    }
    drop(progress);
    context.output.data(&findings, |findings| {
        table(
            ["CHECKED", "VERDICT", "DETAIL", "WHAT TO DO"],
            findings.iter().map(|one| {
                [one.what.clone(), one.verdict.to_owned(), one.detail.clone(), one.remedy.clone()]
            }),
        )
    });
    let missing = findings.iter().filter(|finding| finding.verdict == "missing").count();
    if missing == 0 {
        context.output.say("everything qualifies");
        return Ok(ExitCode::SUCCESS);
    }
    context.output.say(&format!("{missing} of {} do not qualify; see what to do above", findings.len()));
    Ok(ExitCode::from(1))
}

fn root() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::ok("root", "yes");
    }
    Finding::missing("root", "this is another user", "run the agent as root (the packaged systemd unit does)")
}

/// Capabilities by number and name, and what each is needed for.
const CAPABILITIES: &[(u32, &str, &str)] = &[
    (12, "NET_ADMIN", "name spaces, bridges, the traffic gate"),
    (18, "SYS_CHROOT", "a root of their own for containers"),
    (19, "SYS_PTRACE", "reading a program's memory"),
    (21, "SYS_ADMIN", "name spaces, mounts, CRIU"),
    (25, "SYS_TIME", "time name spaces of restored programs"),
    (40, "CHECKPOINT_RESTORE", "restoring a program under its own process id"),
];

fn capabilities() -> Finding {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    let set = u64::from_str_radix(line.trim(), 16).unwrap_or(0);
    let absent: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(bit, ..)| set & (1 << bit) == 0)
        .map(|(_, name, need)| format!("CAP_{name} ({need})"))
        .collect();
    // A restore works without the last two where root has SYS_ADMIN.
    let essential = CAPABILITIES
        .iter()
        .filter(|(bit, ..)| ![25, 40].contains(bit))
        .all(|(bit, ..)| set & (1 << bit) != 0);
    match (absent.is_empty(), essential) {
        (true, _) => Finding::ok("capabilities", "all that are needed"),
        (false, true) => Finding::warning(
            "capabilities",
            format!("without {}", absent.join(", ")),
            "give them if the CRIU test below fails",
        ),
        (false, false) => Finding::missing(
            "capabilities",
            format!("without {}", absent.join(", ")),
            "run outside this sandbox, or give it these capabilities",
        ),
    }
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers =
        release.split(|letter: char| !letter.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if (major, minor) >= (5, 10) {
        return Finding::ok("kernel", release);
    }
    Finding::missing("kernel", format!("{release} is older than 5.10"), "boot a newer kernel")
}

fn runc() -> Finding {
    let Some(path) = agent::on_path("runc") else {
        return Finding::missing("runc", "not installed", "apt-get install runc");
    };
    match first_line(Command::new(&path).arg("--version")) {
        Ok(version) => Finding::ok("runc", format!("{version} ({})", path.display())),
        Err(reason) => Finding::missing(
            "runc",
            format!("{} does not start: {reason}", path.display()),
            "apt-get install --reinstall runc",
        ),
    }
}

fn criu(named: Option<&Path>) -> Finding {
    let remedy = "cargo xtask setup (unpacks one that works under /opt/steadfast), or name one: --criu PATH";
    let path = match find::find_criu(named) {
        Ok(path) => path,
        Err(error) => return Finding::missing("CRIU", error.to_string(), remedy),
    };
    match self_test::self_test(&path) {
        Ok(passed) => {
            let version = find::version(&path)
                .map(|(major, minor, patch)| format!("{major}.{minor}.{patch}"))
                .unwrap_or_default();
            Finding::ok(
                "CRIU",
                format!(
                    "{version} dumped and restored a connection in {} ms ({})",
                    passed.elapsed.as_millis(),
                    path.display()
                ),
            )
        }
        Err(error) => Finding::missing("CRIU", error.to_string(), remedy),
    }
}

fn cgroups() -> Finding {
    for tree in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let tree = Path::new(tree);
        if !tree.join("cgroup.controllers").exists() {
            continue;
        }
        let trial = tree.join(format!("steadfast-check-{}", std::process::id()));
        let made = std::fs::create_dir(&trial);
        let freezes = trial.join("cgroup.freeze").exists();
        // Made by this very call, so it is empty.
        let _ = std::fs::remove_dir(&trial);
        return match (made, freezes) {
            (Ok(()), true) => {
                Finding::ok("control groups", format!("version 2 with freezer at {}", tree.display()))
            }
            (Ok(()), false) => Finding::missing(
                "control groups",
                "version 2 without freezer",
                "boot a kernel of 5.2 or later",
            ),
            (Err(error), _) => Finding::missing(
                "control groups",
                format!("{} can't be written: {error}", tree.display()),
                "run as root, outside a sandbox",
            ),
        };
    }
    Finding::missing(
        "control groups",
        "no version 2 tree is mounted",
        "mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1",
    )
}

fn tmpfs() -> Finding {
    if agent::is_tmpfs(Path::new("/run")) {
        return Finding::ok("/run on a tmpfs", "yes");
    }
    Finding::warning(
        "/run on a tmpfs",
        "no",
        "mount -t tmpfs tmpfs /run, or name another tmpfs: [container] run = \"/PATH\"",
    )
}

fn overlay() -> Finding {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim() == "nodev\toverlay" || line.ends_with("overlay")) {
        return Finding::ok("overlay file system", "yes");
    }
    Finding::warning("overlay file system", "the kernel does not list it yet", "modprobe overlay")
}

fn nftables() -> Finding {
    const TRIAL: &str = "add table inet trial\nadd set inet trial lease { type inet_service; flags timeout; }\nadd element inet trial lease { 1 timeout 1s }\n";
    let remedy = "apt-get install nftables util-linux";
    let child = Command::new("unshare")
        .args(["--net", "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            return Finding::missing("nftables", format!("unshare does not start: {error}"), remedy);
        }
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended already is seen by its status.
        let _ = stdin.write_all(TRIAL.as_bytes());
    }
    match child.wait_with_output() {
        Ok(output) if output.status.success() => Finding::ok("nftables", "a set with time-outs works"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Finding::missing(
                "nftables",
                format!("a set with time-outs can't be made: {}", said.lines().next().unwrap_or("no reason")),
                remedy,
            )
        }
        Err(error) => Finding::missing("nftables", error.to_string(), remedy),
    }
}

/// Looks at a running program.
fn program(pid: u32) -> Result<Vec<Finding>, Failure> {
    if !Path::new(&format!("/proc/{pid}")).exists() {
        return Err(Failure::new(Code::BadRequest, format!("there is no process {pid}; `ps` lists them")));
    }
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let what = format!("program {} ({pid})", name.trim());
    let pids = with_descendants(pid);
    let found = preflight(&pids, false).map_err(|error| {
        Failure::new(Code::CheckpointFailed, format!("process {pid} can't be looked at: {error}"))
    })?;
    if found.is_empty() {
        return Ok(vec![Finding::ok(&what, "nothing in it stands against a checkpoint")]);
    }
    let remedy = "see whether the program can be told to do without it";
    Ok(found.iter().map(|one| Finding::missing(&what, one.to_string(), remedy)).collect())
}

/// A process and everything that it started.
fn with_descendants(pid: u32) -> Vec<u32> {
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        parents
            .extend(parent.and_then(|parent| parent.trim().parse().ok()).map(|parent: u32| (child, parent)));
    }
    let mut family = vec![pid];
    while let Some((child, _)) =
        parents.iter().copied().find(|(child, parent)| family.contains(parent) && !family.contains(child))
    {
        family.push(child);
    }
    family
}

/// Starts a program, looks at it, ends it.
fn trial(words: &[String]) -> Result<Vec<Finding>, Failure> {
    let Some((program_name, arguments)) = words.split_first() else { return Ok(Vec::new()) };
    let child = Command::new(program_name)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let child = child.map_err(|error| {
        Failure::new(
            Code::BadRequest,
            format!(
                "{program_name:?} can't be started: {error}; name a program on the PATH, or a process id"
            ),
        )
    })?;
    let mut child = Ended(child);
    std::thread::sleep(Duration::from_secs(1));
    if let Ok(Some(status)) = child.0.try_wait() {
        return Ok(vec![Finding::warning(
            &format!("program {program_name}"),
            format!("it ended within a second ({status})"),
            "check it while it runs: steadfast check PID",
        )]);
    }
    program(child.0.id())
}

/// A program that is killed when this is dropped.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn first_line(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
