//! `process.exit`: a process ended, and how.
//!
//! One process by its id is watched through a descriptor of it, so that a later process of the same id is never taken for it.
//! Processes by their command or container are a set that changes: see `follow`. It never signals or waits for a process, whose
//! parent learns what it would have learned. Read next: `exit`, then `follow`.

use steadfast_proto::events::{Fields, Value};

use super::post::{Post, count, fields, text};
use super::{ActivateError, Work};

mod connector;
mod exit;
mod follow;

use exit::{Exit, Process};

pub(super) fn open(post: Post) -> Result<Work, ActivateError> {
    let open = |wanted| ActivateError::Open { kind: post.kind().clone(), wanted };
    match (post.about("pid"), post.about("command"), post.about("container")) {
        (Some(pid), None, None) => {
            let pid = parse(pid)?;
            by_id(post, pid)
        }
        (None, Some(_), None) | (None, None, Some(_)) => follow::open(post),
        (None, None, None) => Err(open("fix pid, command or container, such as pid=812")),
        _ => Err(open("fix only one of pid, command and container")),
    }
}

fn parse(given: &str) -> Result<i32, ActivateError> {
    given.parse().ok().filter(|pid| *pid > 0).ok_or_else(|| ActivateError::Malformed {
        field: "pid",
        given: given.to_owned(),
        wanted: "write a process id as a number, such as 812",
    })
}

fn by_id(post: Post, pid: i32) -> Result<Work, ActivateError> {
    let process = Process::open(&post, pid).map_err(|error| match error.raw_os_error() {
        // The second is a thread's answer.
        Some(libc::ESRCH | libc::EINVAL | libc::ENOENT) => ActivateError::NotThere {
            field: "pid",
            given: pid.to_string(),
            wanted: "name a process that runs; a thread's id is none",
        },
        _ => ActivateError::refused(format!("process {pid}"), "watched")(error),
    })?;
    let command = exit::command(pid).unwrap_or_default();
    Ok(Box::pin(async move {
        match process.exit().await {
            Ok((exit, last)) => {
                // It may have become another program since.
                let command = last.unwrap_or(command);
                post.tell_all(said(pid, &command, exit));
                format!("process {pid} has ended")
            }
            Err(error) => format!("process {pid} can't be waited for: {error}"),
        }
    }))
}

/// The fields of an event.
fn said(pid: i32, command: &str, exit: Exit) -> Fields {
    let mut said = fields([("pid", count(pid)), ("command", text(command))]);
    let (name, value) = match exit {
        Exit::Status(status) => ("status", status),
        Exit::Signal(signal) => ("signal", signal),
        Exit::Unknown => return said,
    };
    said.insert(name.to_owned(), Value::Integer(value.into()));
    said
}
