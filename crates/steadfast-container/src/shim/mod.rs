//! The small process beside each container: it owns the container's output, its fence and its exit status, and survives
//! the agent. The container does not survive it: a guard process kills what is left when the shim dies.
//!
//! Must never wait for a disk, a network or another program on the thread that keeps the fence. Parts: `plan` (what it is
//! told), `launch` (setting up and starting), `run` (the loop), `clients` (who talks to it), `wire` (the interface).

pub(crate) mod clients;
pub(crate) mod launch;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod wire;

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, getppid, pidfd_open},
};

use crate::criu::relay;

/// Runs what a host or a shim asked for by starting its own program again. The `steadfast` binary calls this from a
/// hidden sub-command with the arguments that follow it.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let verb = arguments.next().unwrap_or_default();
    let rest: Vec<_> = arguments.collect();
    match (verb.to_str(), rest.as_slice()) {
        (Some("run"), [plan]) => run::shim(&PathBuf::from(plan)),
        (Some("enter"), [procs, program, ..]) => {
            enter(&PathBuf::from(procs), program, rest.get(2..).unwrap_or(&[]))
        }
        (Some("guard"), [fence, shim]) => guard(&PathBuf::from(fence), shim),
        (Some("criu"), _) => relay::stand_in(rest),
        _ => {
            eprintln!("steadfast: the shim is started by the agent, not by hand; use `steadfast run`");
            ExitCode::from(2)
        }
    }
}

/// Joins a cgroup, then becomes `program`: so that the program never runs outside of the fence.
fn enter(procs: &Path, program: &OsString, arguments: &[OsString]) -> ExitCode {
    if let Err(e) = fs::write(procs, "0") {
        eprintln!("steadfast: joining {} failed: {e}", procs.display());
        return ExitCode::FAILURE;
    }
    let error = Command::new(program).args(arguments).exec();
    eprintln!("steadfast: {} could not be started: {error}", PathBuf::from(program).display());
    ExitCode::FAILURE
}

/// Waits for the end of the shim that started it, then kills everything behind the fence.
fn guard(fence: &Path, shim: &OsString) -> ExitCode {
    let pid = shim.to_str().and_then(|text| text.parse().ok()).and_then(Pid::from_raw);
    // A shim that ended before we looked is no longer our parent; its number may be somebody else's by now.
    if let Some(descriptor) =
        pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).filter(|_| getppid() == pid)
    {
        while poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], None).is_err() {}
    }
    match fs::write(fence.join("cgroup.kill"), "1") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
