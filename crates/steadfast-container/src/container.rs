//! A container as its host sees it: a handle that talks to the shim. Handles are cheap to clone and may be used from
//! several threads; the container lives on when the last one is dropped.
//!
//! Must never keep state that the shim does not have: after a restart of the agent [`crate::Host::adopt`] makes the same
//! handle again.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
            process::ExitStatusExt,
        },
    },
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    net::sockopt::socket_peercred,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{
    cgroup::FenceGroup,
    clean::{self, RemoveError},
    config::Spec,
    criu::CheckpointError,
    layout::Layout,
    log::LogReader,
    preflight::{Finding, preflight},
    protocol::{Capture, Event, Exit, REPLY_BYTES_MAX, Reply, Request, Status, encode_line},
    shim::plan::Plan,
};

/// How long a healthy shim may take to answer. A stopped one never does.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Where a program inside finds the socket made by [`Container::listen`]; `STEADFAST_SOCKET` says so too.
pub const OWN_SOCKET: &str = "/run/steadfast/api.sock";

/// Why a shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// No shim lives: the container is dead too. Adopt again to clean up, or destroy it.
    #[error("the shim of container {id} is gone ({source}); the container died with it")]
    Gone {
        /// The container.
        id: String,
        /// What the socket said.
        source: io::Error,
    },
    /// The shim lives and does not answer: it is stopped, or the machine is overloaded.
    #[error("the shim of container {0} does not answer; it may be stopped")]
    Silent(String),
    /// The shim answered, but not what was asked.
    #[error("the shim of container {id} refused: {reason}")]
    Refused {
        /// The container.
        id: String,
        /// Its sentence.
        reason: String,
    },
}

/// Why a program could not be run inside.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The container is not running: a program in a frozen one would hang.
    #[error("the container is {0}; a program can be run only in a running one")]
    NotRunning(&'static str),
    /// There is nothing to run.
    #[error("the command is empty; give the program to run")]
    NoCommand,
    /// runc could not be started.
    #[error("runc could not be started: {0}")]
    Runc(#[source] io::Error),
    /// The shim did not say how the container stands.
    #[error(transparent)]
    Shim(#[from] ShimError),
}

/// A handle to one container.
#[derive(Clone, Debug)]
pub struct Container {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    plan: Plan,
    layout: Layout,
    group: FenceGroup,
    renewals: Mutex<Option<UnixStream>>,
    watch: Mutex<Option<Lines>>,
}

impl Container {
    pub(crate) fn new(plan: Plan, layout: Layout, group: FenceGroup) -> Self {
        Self {
            inner: Arc::new(Inner {
                plan,
                layout,
                group,
                renewals: Mutex::default(),
                watch: Mutex::default(),
            }),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.plan.id
    }

    /// The epoch it runs under.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner.plan.epoch
    }

    /// What it is.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.inner.plan.spec
    }

    /// Lets it run until `deadline_ns` (CLOCK_BOOTTIME, see [`crate::boottime_ns`]); it stands still `drift_ns` earlier.
    /// Never blocks and is not answered: a stopped shim reads it later, when it means nothing any more.
    pub fn renew(&self, deadline_ns: u64, drift_ns: u64) -> Result<(), ShimError> {
        let line = encode_line(&Request::Renew { epoch: self.epoch(), deadline_ns, drift_ns });
        let mut slot = lock(&self.inner.renewals);
        if slot.is_none() {
            let stream = self.connect()?;
            stream.set_nonblocking(true).map_err(|e| self.gone(e))?;
            *slot = Some(stream);
        }
        let Some(stream) = slot.as_mut() else { return Ok(()) };
        match stream.write(&line) {
            Ok(written) if written == line.len() => Ok(()),
            // The shim has not read for long: its buffer is full of leases that are over. Half a line would spoil the
            // next one, so the connection is made anew.
            Ok(_) => {
                *slot = None;
                Err(ShimError::Silent(self.id().to_owned()))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(ShimError::Silent(self.id().to_owned())),
            Err(e) => {
                *slot = None;
                Err(self.gone(e))
            }
        }
    }

    /// How it stands.
    pub fn status(&self) -> Result<Status, ShimError> {
        match self.ask(&Request::Status, Some(ANSWER_MAX))? {
            Reply::Status(status) => Ok(status),
            other @ (Reply::Done
            | Reply::Event(_)
            | Reply::Captured(_)
            | Reply::Uncaptured(_)
            | Reply::Refused { .. }) => Err(self.unexpected(&other)),
        }
    }

    /// Waits for the next change, at most `timeout`; `None` means there was none. The first call returns at once, with
    /// `None`, when it begins to watch: read the status after it. One thread per handle.
    pub fn wait_change(&self, timeout: Duration) -> Result<Option<Event>, ShimError> {
        let mut slot = lock(&self.inner.watch);
        if slot.is_none() {
            let mut stream = self.connect()?;
            stream.write_all(&encode_line(&Request::Watch)).map_err(|e| self.gone(e))?;
            let mut lines = Lines::new(stream);
            self.read(&mut lines, Some(ANSWER_MAX))?;
            *slot = Some(lines);
            return Ok(None);
        }
        let Some(lines) = slot.as_mut() else { return Ok(None) };
        match self.read(lines, Some(timeout)) {
            Ok(Reply::Event(event)) => Ok(Some(event)),
            Ok(_) | Err(ShimError::Silent(_)) => Ok(None),
            Err(e) => {
                *slot = None;
                Err(e)
            }
        }
    }

    /// Asks the program to end (SIGTERM); what is left after the grace period is killed. Returns at once.
    pub fn stop(&self, grace: Duration) -> Result<(), ShimError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.ask(&Request::Stop { grace_ms }, Some(ANSWER_MAX)).map(drop)
    }

    /// Kills every process of it. Works also when the shim is stopped.
    pub fn kill(&self) -> Result<(), ShimError> {
        self.inner.group.kill().map_err(|e| self.gone(e))
    }

    /// Writes an image into `into`, an empty or absent folder on a tmpfs. Afterwards the program runs on, or with `hold`
    /// stands still as it is in the image, whatever its lease, until [`Container::release`]. A refused checkpoint leaves
    /// it running, and leaves no image.
    pub fn checkpoint(&self, into: &Path, hold: bool) -> Result<Capture, CheckpointError> {
        match self.ask(&Request::Checkpoint { into: into.to_owned(), hold }, None) {
            Ok(Reply::Captured(capture)) => Ok(capture),
            Ok(Reply::Uncaptured(error)) => Err(error),
            Ok(other) => Err(self.unexpected(&other).into()),
            Err(e) => Err(e.into()),
        }
    }

    /// Lets the program go on that a checkpoint holds still; its lease decides as ever whether it may.
    pub fn release(&self) -> Result<(), ShimError> {
        self.ask(&Request::Release, Some(ANSWER_MAX)).map(drop)
    }

    /// Ends everything of it and removes what it left on this host: processes, groups, mounts, name space, upper layer.
    pub fn destroy(&self) -> Result<(), RemoveError> {
        // A shim that is stopped, or gone, cannot quit by itself.
        let quit = self.ask(&Request::Quit, Some(Duration::from_secs(1)));
        if let (Err(_), Some(descriptor)) = (quit, self.shim()) {
            pidfd_send_signal(&descriptor, Signal::KILL).ok();
        }
        clean::remove(&self.inner.layout, &self.inner.group)
    }

    /// Runs a program inside and waits for its end. With `terminal`, the three streams must be one terminal.
    pub fn exec(&self, command: &[String], stdio: [OwnedFd; 3], terminal: bool) -> Result<Exit, ExecError> {
        if command.is_empty() {
            return Err(ExecError::NoCommand);
        }
        let state = self.status()?.state;
        if state != crate::protocol::State::Running {
            return Err(ExecError::NotRunning(state.name()));
        }
        let [stdin, stdout, stderr] = stdio.map(Stdio::from);
        let mut runc = Command::new(&self.inner.plan.config.runc);
        runc.arg("--root").arg(&self.inner.layout.runc_root).arg("exec");
        if terminal {
            runc.arg("--tty");
        }
        let status = runc
            .arg(self.id())
            .args(command)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr)
            .status()
            .map_err(ExecError::Runc)?;
        // runc reports a death by signal as 128 + number, as shells do.
        Ok(status.code().map_or_else(|| Exit::Signal(status.signal().unwrap_or(0)), Exit::Code))
    }

    /// Reads its output from the oldest line kept.
    #[must_use]
    pub fn logs(&self) -> LogReader {
        LogReader::new(&self.inner.layout.logs())
    }

    /// Makes the socket that its programs find at [`OWN_SOCKET`], anew where an earlier one was left. Close every
    /// connection, and the listener, before a checkpoint: one that leads outside can't be imaged, one that has ended can.
    pub fn listen(&self) -> io::Result<UnixListener> {
        let folder = folder(&self.inner.layout.epoch_dir())?;
        // Through the folder, because the whole path may be too long for the kernel.
        let path = |name: &str| format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
        let (fresh, known) = (path("api.new"), path("api.sock"));
        if let Err(error) = fs::remove_file(&fresh)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let listener = UnixListener::bind(&fresh)?;
        // Whoever gets as far as this folder is inside.
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o666))?;
        fs::rename(&fresh, &known)?;
        Ok(listener)
    }

    /// Its processes, as this host numbers them.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        self.inner.group.container_pids()
    }

    /// What stands in the way of a checkpoint, as far as it can be seen from outside. Empty: nothing known.
    pub fn preflight(&self) -> io::Result<Vec<Finding>> {
        preflight(&self.pids()?, true)
    }

    /// The file under which its network name space is kept.
    #[must_use]
    pub fn network_namespace(&self) -> std::path::PathBuf {
        self.inner.layout.netns()
    }

    /// The shim's pid, while it lives.
    #[must_use]
    pub fn shim_pid(&self) -> Option<u32> {
        let credentials = socket_peercred(&self.connect().ok()?).ok()?;
        u32::try_from(credentials.pid.as_raw_nonzero().get()).ok()
    }

    fn shim(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.shim_pid()?).ok()?)?;
        pidfd_open(pid, PidfdFlags::empty()).ok()
    }

    fn connect(&self) -> Result<UnixStream, ShimError> {
        connect(&self.inner.layout).map_err(|e| self.gone(e))
    }

    fn ask(&self, request: &Request, timeout: Option<Duration>) -> Result<Reply, ShimError> {
        let mut stream = self.connect()?;
        stream.set_write_timeout(Some(ANSWER_MAX)).map_err(|e| self.gone(e))?;
        stream.write_all(&encode_line(request)).map_err(|e| self.gone(e))?;
        match self.read(&mut Lines::new(stream), timeout)? {
            Reply::Refused { reason } => Err(ShimError::Refused { id: self.id().to_owned(), reason }),
            reply @ (Reply::Done
            | Reply::Status(_)
            | Reply::Event(_)
            | Reply::Captured(_)
            | Reply::Uncaptured(_)) => Ok(reply),
        }
    }

    fn read(&self, lines: &mut Lines, timeout: Option<Duration>) -> Result<Reply, ShimError> {
        match lines.next(timeout) {
            Ok(reply) => Ok(reply),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(ShimError::Silent(self.id().to_owned()))
            }
            Err(e) => Err(self.gone(e)),
        }
    }

    fn gone(&self, source: io::Error) -> ShimError {
        ShimError::Gone { id: self.id().to_owned(), source }
    }

    fn unexpected(&self, reply: &Reply) -> ShimError {
        ShimError::Refused { id: self.id().to_owned(), reason: format!("it answered {reply:?}") }
    }
}

/// Connects to a shim through its folder, because a socket's own path may be too long for the kernel.
pub(crate) fn connect(layout: &Layout) -> io::Result<UnixStream> {
    let folder = folder(&layout.run)?;
    UnixStream::connect(format!("/proc/self/fd/{}/shim.sock", folder.as_raw_fd()))
}

fn folder(path: &Path) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replies as they come, one per line.
#[derive(Debug)]
struct Lines {
    reader: BufReader<UnixStream>,
    /// What was read of a line before the time was up.
    partial: Vec<u8>,
}

impl Lines {
    fn new(stream: UnixStream) -> Self {
        Self { reader: BufReader::new(stream), partial: Vec::new() }
    }

    fn next(&mut self, timeout: Option<Duration>) -> io::Result<Reply> {
        let end = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left =
                end.map(|end| end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
            self.reader.get_ref().set_read_timeout(left)?;
            let room = u64::try_from(REPLY_BYTES_MAX.saturating_sub(self.partial.len())).unwrap_or(0);
            let read = self.reader.by_ref().take(room).read_until(b'\n', &mut self.partial);
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if self.partial.last() == Some(&b'\n') => {
                    let line = std::mem::take(&mut self.partial);
                    return Ok(serde_json::from_slice(&line)?);
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}
