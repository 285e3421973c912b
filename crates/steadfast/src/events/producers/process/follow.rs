//! Follows all processes of a command or of a container, and tells how each ends.
//!
//! As root the kernel announces every process (`connector`); elsewhere `/proc` is read each second, so that a process that lives
//! shorter is not seen. A process belongs to a command when its name or the file name of its first argument is the command's; to
//! a container when it is in its cgroup or below. One that came and was gone before it could be looked at, within some 100 us, is
//! not known to belong. It never decides whether an end is a failure.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::connector::{Connector, Did, Look};
use super::exit::{self, Exit, Process};
use crate::events::producers::cgroup::Cgroup;
use crate::events::producers::post::{Post, text};
use crate::events::producers::{ActivateError, Work};

/// Processes that are followed at most for one topic.
const FOLLOWED_MAX: usize = 16_384;
/// Descriptors that are held at most for one topic where the kernel announces nothing.
const HELD_MAX: usize = 1_024;
const LOOK: Duration = Duration::from_secs(1);
/// Of a longer name the kernel keeps so much.
const NAME_BYTES_MAX: usize = 15;

/// Whose ends are wanted.
enum Whom {
    Command(String),
    Container { name: String, cgroup: Cgroup },
}

struct Followed {
    command: String,
    /// How its first thread ended, while others go on.
    first: Option<i32>,
}

struct Follower {
    post: Post,
    whom: Whom,
    followed: BTreeMap<i32, Followed>,
}

pub(super) fn open(post: Post) -> Result<Work, ActivateError> {
    let whom = whom(&post)?;
    let connector = Connector::open(&post);
    let mut follower = Follower { post, whom, followed: BTreeMap::new() };
    Ok(match connector {
        Ok(connector) => {
            // What ends from here on is announced, so that nothing falls in between.
            follower.scan();
            Box::pin(follower.listen(connector))
        }
        Err(error) => {
            tracing::debug!(topic = %follower.post.topic(), %error, "no process is announced here: /proc is polled");
            let held = FuturesUnordered::new();
            follower.hold_new(&held);
            Box::pin(follower.poll(held))
        }
    })
}

fn whom(post: &Post) -> Result<Whom, ActivateError> {
    if let Some(command) = post.about("command") {
        if command.is_empty() || command.contains(['/', '\0', '\n']) {
            return Err(ActivateError::Malformed {
                field: "command",
                given: command.to_owned(),
                wanted: "write the name of a program without its folder, such as redis-server",
            });
        }
        return Ok(Whom::Command(command.to_owned()));
    }
    let name = post.about("container").unwrap_or_default();
    let cgroup = Cgroup::named(&post.cgroup_of(name)?);
    if !cgroup.exists() {
        return Err(ActivateError::NotThere {
            field: "container",
            given: name.to_owned(),
            wanted: "its cgroup is not there; try again when the container runs",
        });
    }
    Ok(Whom::Container { name: name.to_owned(), cgroup })
}

impl Whom {
    fn covers(&self, pid: i32, command: &str) -> bool {
        match self {
            Whom::Command(wanted) => match first_argument(pid) {
                _ if wanted == command => true,
                Some(first) => first == *wanted,
                // What has ended has no arguments any more, and a name that was cut.
                None => command.len() == NAME_BYTES_MAX && wanted.starts_with(command),
            },
            Whom::Container { cgroup, .. } => {
                std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|table| cgroup.holds(&table))
            }
        }
    }
}

impl Follower {
    /// Tells what the kernel announces.
    async fn listen(mut self, mut connector: Connector) -> String {
        loop {
            // A machine that makes processes without end must not keep this thread from others.
            tokio::task::coop::consume_budget().await;
            match connector.next().await {
                Ok(Look::Did(did)) => did.into_iter().for_each(|did| self.take(did)),
                Ok(Look::Lost) => {
                    self.post.lost();
                    self.followed.clear();
                    self.scan();
                }
                Err(error) => return format!("the announcements of processes can't be read: {error}"),
            }
        }
    }

    fn take(&mut self, did: Did) {
        match did {
            Did::Answered(_) => {}
            Did::Began { pid, parent } => {
                // What ended already was in the same cgroup and had the same name as who made it.
                let parent = self.followed.get(&parent).map(|parent| parent.command.clone());
                if let Some(command) = exit::command(pid) {
                    self.follow(pid, command);
                } else if let Some(command) = parent {
                    self.insert(pid, command);
                }
            }
            Did::Changed { pid } => {
                // Without a name its end is on its way; what it was called before stays.
                if let Some(command) = exit::command(pid) {
                    self.follow(pid, command);
                }
            }
            Did::Ended { thread, pid, code } => self.end(thread, pid, code),
        }
    }

    /// Follows a process from now on if it is one of those wanted, and no more if it is not.
    fn follow(&mut self, pid: i32, command: String) {
        if self.whom.covers(pid, &command) {
            self.insert(pid, command);
        } else if exit::command(pid).is_some() {
            self.followed.remove(&pid);
        }
    }

    fn insert(&mut self, pid: i32, command: String) {
        if self.followed.len() < FOLLOWED_MAX || self.followed.contains_key(&pid) {
            self.followed.insert(pid, Followed { command, first: None });
        } else {
            tracing::warn!(topic = %self.post.topic(), pid, "more than {FOLLOWED_MAX} processes: this one is not followed");
            self.post.lost();
        }
    }

    /// A process has ended when its last thread has. How, the kernel says until its parent takes note; after that it is the last
    /// thread's end where all were ended together, and otherwise that of the first, which may have left early.
    fn end(&mut self, thread: i32, pid: i32, code: i32) {
        let Some(process) = self.followed.get_mut(&pid) else { return };
        if thread == pid {
            process.first = Some(code);
        }
        let Some(first) = process.first.filter(|_| !has_other_threads(pid)) else { return };
        let command = std::mem::take(&mut process.command);
        self.followed.remove(&pid);
        let code = exit::left_behind(pid).unwrap_or(if code == 0 { first } else { code });
        self.tell(pid, &command, Exit::from_wait(code));
    }

    fn tell(&self, pid: i32, command: &str, exit: Exit) {
        let mut said = super::said(pid, command, exit);
        if let Whom::Container { name, .. } = &self.whom {
            said.insert("container".to_owned(), text(name));
        }
        self.post.tell_all(said);
    }

    /// Takes all that run now.
    fn scan(&mut self) {
        for pid in running() {
            if let Some(command) = exit::command(pid).filter(|command| self.whom.covers(pid, command)) {
                self.insert(pid, command);
            }
        }
    }

    /// Tells the ends of those that are seen running at some full second.
    async fn poll(mut self, mut held: FuturesUnordered<Ending>) -> String {
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                Some((pid, exit)) = held.next() => {
                    let followed = self.followed.remove(&pid);
                    self.tell(pid, &followed.map(|one| one.command).unwrap_or_default(), exit.unwrap_or(Exit::Unknown));
                }
                _ = look.tick() => self.hold_new(&held),
            }
        }
    }

    /// Holds those that began since the last look.
    fn hold_new(&mut self, held: &FuturesUnordered<Ending>) {
        for pid in running().filter(|pid| !self.followed.contains_key(pid)).collect::<Vec<_>>() {
            let Some(command) = exit::command(pid).filter(|command| self.whom.covers(pid, command)) else {
                continue;
            };
            if held.len() >= HELD_MAX {
                tracing::warn!(topic = %self.post.topic(), pid, "more than {HELD_MAX} processes: this one is not followed");
                return;
            }
            match Process::open(&self.post, pid) {
                Ok(process) => {
                    held.push(Box::pin(async move { (pid, process.exit().await.map(|(exit, _)| exit)) }));
                    self.insert(pid, command);
                }
                Err(error) => tracing::debug!(pid, %error, "a process is not followed"),
            }
        }
    }
}

type Ending = std::pin::Pin<Box<dyn Future<Output = (i32, io::Result<Exit>)> + Send>>;

fn running() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn has_other_threads(pid: i32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).any(|thread: i32| thread != pid)
}

/// The file name of a process's first argument, which may be longer than its name.
fn first_argument(pid: i32) -> Option<String> {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let first = arguments.split(|byte| *byte == 0).next()?;
    let first = String::from_utf8_lossy(first).into_owned();
    Some(Path::new(&first).file_name()?.to_string_lossy().into_owned())
}
