//! Waits for the end of one process and finds out how it ended.
//!
//! The kernel makes a process's descriptor readable at its end. How it ended stands in `/proc` until its parent has taken note,
//! and afterwards (from Linux 6.15) with the descriptor: one of the two always answers there. Never waits for a process as its
//! parent would. Read next: `follow`.

use std::io;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;

use crate::events::producers::post::{Post, Watched};
use crate::net::os;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// By itself, with this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// The kernel does not say.
    Unknown,
}

impl Exit {
    /// From the form that `wait` uses.
    pub(super) fn from_wait(code: i32) -> Exit {
        match code & 0x7f {
            0 => Exit::Status((code >> 8) & 0xff),
            signal => Exit::Signal(signal),
        }
    }
}

/// A process that is held by a descriptor.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    watched: Watched,
}

impl Process {
    pub(super) fn open(post: &Post, pid: i32) -> io::Result<Process> {
        let id = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let watched = post.watch(pidfd_open(id, PidfdFlags::empty())?, Interest::READABLE)?;
        Ok(Process { pid, watched })
    }

    /// Waits for the end; gives how it ended, and its name where that still stands there.
    pub(super) async fn exit(self) -> io::Result<(Exit, Option<String>)> {
        self.watched.changed().await?;
        let described = || os::process_exit(rustix::fd::AsFd::as_fd(&self.watched));
        // Between the first question and the second its parent may have taken note; then the third has an answer.
        let known = described().map(|code| (code, None));
        let known = known.or_else(|| remains(self.pid).map(|(code, command)| (code, Some(command))));
        let known = known.or_else(|| described().map(|code| (code, None)));
        Ok(known.map_or((Exit::Unknown, None), |(code, command)| (Exit::from_wait(code), command)))
    }
}

/// The name of a process's program, as the kernel shows it: at most 15 bytes.
pub(super) fn command(pid: i32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
}

/// How a process ended that its parent has not taken note of yet.
pub(super) fn left_behind(pid: i32) -> Option<i32> {
    remains(pid).map(|(code, _)| code)
}

/// The same with the name of its program.
fn remains(pid: i32) -> Option<(i32, String)> {
    remains_in(&String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// The last field of `/proc/PID/stat` and the name, if the process has ended. The name may hold blanks and brackets.
fn remains_in(stat: &str) -> Option<(i32, String)> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, command) = before.split_once('(')?;
    let mut rest = after.split_ascii_whitespace();
    let state = rest.next()?;
    // The state is field 3, and the form of `wait` is field 52.
    let code = ["Z", "X"].contains(&state).then(|| rest.nth(48)?.parse().ok())?;
    Some((code?, command.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_read_from_the_forms_of_the_kernel() {
        assert_eq!(Exit::from_wait(0x300), Exit::Status(3));
        assert_eq!(Exit::from_wait(9), Exit::Signal(9));
        assert_eq!(Exit::from_wait(0x80 | 11), Exit::Signal(11), "with a core");
        let stat = |state: &str| {
            let numbers: Vec<_> = (4..=51).map(|field| field.to_string()).collect();
            format!("7 (a) Z (b) {state} {} 768\n", numbers.join(" "))
        };
        assert_eq!(remains_in(&stat("Z")), Some((0x300, "a) Z (b".to_owned())));
        assert_eq!(remains_in(&stat("S")), None);
        assert_eq!(remains_in("7 (a"), None);
    }
}
