//! `memory.oom_kill`: the kernel killed a process because memory had run out.
//!
//! The kernel counts such kills: for the machine, and for each cgroup. Those counters decide; what wakes this producer to read them
//! is only a hint: an entry in the kernel's log, a change of a version 2 cgroup's file, or the eventfd of a version 1 cgroup, which
//! comes before the kill. Because hints can fail, the counter is also read at intervals. It parses no log.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, SeekFrom, seek};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::time::Instant;

use super::cgroup::{Cgroup, counter};
use super::post::{self, Post, Watched, count, fields, text};
use super::{ActivateError, Work};

/// How often the counter is read when nothing hints at a kill, and when no hints can be had.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_WITHOUT_HINTS: Duration = Duration::from_secs(1);
/// After a hint the counter is read after this time, and after ever twice as long, up to [`LOOK`].
const LOOK_AFTER_HINT: Duration = Duration::from_millis(1);

/// Cgroups below one that are looked at at most.
const BELOW_MAX: usize = 256;

/// What is counted where.
struct Counter {
    file: PathBuf,
    /// Whether the file leaves out what lies below, as in version 1.
    is_own_only: bool,
    cgroup: Option<Cgroup>,
    container: Option<String>,
}

impl Counter {
    fn read(&self) -> io::Result<u64> {
        let kills = |file: &Path| {
            let file = fs::read_to_string(file)?;
            counter(&file, "oom_kill").ok_or_else(|| io::Error::other("it has no line oom_kill"))
        };
        let own = kills(&self.file)?;
        if !self.is_own_only {
            return Ok(own);
        }
        // What is removed in this moment counts no more.
        Ok(below(&self.file).iter().filter_map(|file| kills(file).ok()).fold(own, u64::saturating_add))
    }
}

/// The file of the same name in each cgroup below a file's own.
fn below(file: &Path) -> Vec<PathBuf> {
    let (Some(name), Some(top)) = (file.file_name(), file.parent()) else { return Vec::new() };
    let mut folders = vec![top.to_owned()];
    let mut at = 0;
    while let Some(folder) = folders.get(at).filter(|_| folders.len() < BELOW_MAX) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let inner: Vec<_> = inner.map(|entry| entry.path()).collect();
        folders.extend(inner);
        at += 1;
    }
    folders.iter().skip(1).take(BELOW_MAX).map(|folder| folder.join(name)).collect()
}

pub(super) fn open(post: Post) -> Result<Work, ActivateError> {
    let (field, given, cgroup) = match (post.about("cgroup"), post.about("container")) {
        (None, None) => ("", "", None),
        (Some(given), None) => ("cgroup", given, post.about_path("cgroup")?.map(Cgroup::named)),
        (None, Some(name)) => ("container", name, Some(Cgroup::named(&post.cgroup_of(name)?))),
        (Some(_), Some(_)) => {
            let wanted = "fix either cgroup or container, or neither for the whole machine";
            return Err(ActivateError::Open { kind: post.kind().clone(), wanted });
        }
    };
    let container = post.about("container").map(str::to_owned);
    let (file, is_own_only, hints) = match &cgroup {
        None => (PathBuf::from("/proc/vmstat"), false, kernel_log()),
        Some(cgroup) => {
            let unified = cgroup.unified().map(|folder| folder.join("memory.events"));
            let first = cgroup.memory_v1().map(|folder| folder.join("memory.oom_control"));
            if let Some(file) = unified.filter(|file| file.exists()) {
                let hints = written(&file);
                (file, false, hints)
            } else if let Some(file) = first.filter(|file| file.exists()) {
                let hints = out_of_memory(&file);
                (file, true, hints)
            } else {
                let wanted = "name a cgroup in a tree that has the memory controller, such as /steadfast/web";
                return Err(ActivateError::NotThere { field, given: given.to_owned(), wanted });
            }
        }
    };
    let counter = Counter { file, is_own_only, cgroup, container };
    let known = counter.read().map_err(ActivateError::refused(counter.file.to_string_lossy(), "read"))?;
    let hints = match hints {
        Ok(descriptor) => Some(post.watch_first(descriptor, Interest::READABLE)?),
        Err(error) => {
            tracing::debug!(file = %counter.file.display(), %error, "nothing hints at a kill: the counter is polled");
            None
        }
    };
    Ok(Box::pin(watch(post, counter, known, hints)))
}

async fn watch(post: Post, counter: Counter, mut known: u64, hints: Option<Watched>) -> String {
    let slow = if hints.is_some() { LOOK } else { LOOK_WITHOUT_HINTS };
    let mut pause = slow;
    let mut next = Instant::now() + pause;
    loop {
        let is_hint = tokio::select! {
            hint = post::changed(hints.as_ref()) => match hint {
                Ok(()) => true,
                Err(error) => return format!("{} can't be waited for: {error}", counter.file.display()),
            },
            () = tokio::time::sleep_until(next) => false,
        };
        if let Some(hints) = hints.as_ref().filter(|_| is_hint) {
            drain(hints);
        }
        let present = match counter.read() {
            Ok(present) => present,
            Err(error) => return format!("{} can't be read any more: {error}", counter.file.display()),
        };
        if present > known {
            tell(&post, &counter, present - known);
        }
        pause = if is_hint { LOOK_AFTER_HINT } else { (pause * 2).min(slow) };
        next = Instant::now() + pause;
        known = present;
    }
}

fn tell(post: &Post, counter: &Counter, kills: u64) {
    let mut fields = fields([("count", count(kills))]);
    if let Some(cgroup) = &counter.cgroup {
        fields.insert("cgroup".to_owned(), text(cgroup.path.to_string_lossy()));
    }
    if let Some(container) = &counter.container {
        fields.insert("container".to_owned(), text(container));
    }
    post.tell_all(fields);
}

/// Takes all that is there to be read; what it says does not matter.
fn drain(hints: &Watched) {
    let mut buffer = [0; 8 << 10];
    loop {
        match rustix::io::read(hints, &mut buffer) {
            // The second: entries of the log were overwritten before they were read.
            Ok(1..) | Err(Errno::INTR | Errno::PIPE) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// The end of the kernel's log. A kill is counted before its last entry is written.
fn kernel_log() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let log = rustix::fs::open("/dev/kmsg", flags, Mode::empty())?;
    seek(&log, SeekFrom::End(0))?;
    Ok(log)
}

/// Changes of a file that the kernel writes.
fn written(file: &Path) -> io::Result<OwnedFd> {
    let changes = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(&changes, file, WatchFlags::MODIFY)?;
    Ok(changes)
}

/// The eventfd that a version 1 cgroup and those below it signal when memory has run out, and when one is removed. Those made
/// later have to be found by looking.
fn out_of_memory(control: &Path) -> io::Result<OwnedFd> {
    let signal = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
    let register = |control: &Path| {
        let opened = fs::File::open(control)?;
        let registration = format!("{} {}", signal.as_raw_fd(), opened.as_raw_fd());
        fs::write(control.with_file_name("cgroup.event_control"), registration)
    };
    register(control)?;
    for control in below(control) {
        // It may be on its way out.
        let _ = register(&control);
    }
    Ok(signal)
}
