//! One set of name spaces: process, network, mount, host name, IPC. Hosts, the hub of the networks and the outside
//! client are each one of these.
//!
//! It never outlives its value: dropping it kills process 1, and with it the kernel kills everything inside. Read `init.rs`
//! for what process 1 does, `cgroups.rs` for what can keep a killed process from dying.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::ThreadNameSpaceType;

use super::{BedError, cgroups, init, os};

/// A running set of name spaces.
#[derive(Debug)]
pub struct Spaces {
    name: String,
    pid: u32,
    /// Until it is killed.
    init: Option<Child>,
    pidfd: OwnedFd,
}

/// All the name spaces that a host has of its own.
const ALL_SPACES: ThreadNameSpaceType = ThreadNameSpaceType::MOUNT
    .union(ThreadNameSpaceType::PROCESS_ID)
    .union(ThreadNameSpaceType::NETWORK)
    .union(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME)
    .union(ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION);

/// How long the kernel may take to bury a killed set of name spaces.
const BURIAL_MAX: Duration = Duration::from_secs(20);

impl Spaces {
    /// Starts a set called `name` of the bed in `base` with `binary bed-init`; each of `memory_folders` becomes an empty private tmpfs inside.
    pub(super) fn start(
        binary: &Path,
        base: &Path,
        name: &str,
        memory_folders: &[&str],
        log: File,
    ) -> Result<Self, BedError> {
        let failed = |source| BedError::Start { host: name.to_owned(), source };
        let mut command = Command::new(binary);
        command.arg(init::SUBCOMMAND).arg(base).arg(name).args(memory_folders);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = os::spawn_in_new_spaces(&mut command).map_err(failed)?;
        let output = child.stdout.take().expect("its standard output was asked to be a pipe");
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        let opened = read.and_then(|_| Ok(pidfd_open(pid_of(&child), PidfdFlags::empty())?));
        match opened {
            Ok(pidfd) if line == "ready\n" => {
                Ok(Self { name: name.to_owned(), pid: child.id(), init: Some(child), pidfd })
            }
            Ok(_) => {
                let _ = child.kill();
                let _ = child.wait();
                let reason = format!("its first process said {line:?} in place of `ready`; see its init.log");
                Err(failed(io::Error::other(reason)))
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(failed(error))
            }
        }
    }

    /// The process id of process 1, as the machine sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Starts `command` inside; the child's id is the machine's, and waiting for it works as for any child.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        os::in_spaces(self.pidfd.as_fd(), ALL_SPACES, || command.spawn())
    }

    /// Runs `work` on a thread inside the network name space only: sockets it makes stay there, files are the machine's.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        os::in_spaces(self.pidfd.as_fd(), ThreadNameSpaceType::NETWORK, work)
    }

    /// A UDP socket inside, bound to `address`.
    pub fn udp_bind(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.in_network(|| UdpSocket::bind(address))
    }

    /// A TCP listener inside.
    pub fn tcp_listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.in_network(|| TcpListener::bind(address))
    }

    /// A TCP connection from inside.
    pub fn tcp_connect(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.in_network(|| TcpStream::connect_timeout(&address, timeout))
    }

    /// Kills everything inside at once, waits until the kernel has buried it, and removes its control groups.
    pub(super) fn kill(&mut self) -> Result<(), BedError> {
        let Some(mut init) = self.init.take() else { return Ok(()) };
        if !matches!(init.try_wait(), Ok(None)) {
            // Dead and collected: its process id may be another's by now.
            return Ok(());
        }
        let scopes = cgroups::scopes_of(self.pid());
        // A failed signal means that process 1 is gone already, which is what was wanted.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let give_up = Instant::now() + BURIAL_MAX;
        loop {
            // A frozen process of the first version of control groups takes no signal, not even this one, until it is thawed.
            cgroups::thaw(&scopes);
            // Process 1 itself is gone only when everybody who started a process inside has collected it; that may be our
            // caller, later. Dead is when nothing inside can run any more.
            if !matches!(init.try_wait(), Ok(None)) || !cgroups::is_anything_alive(self.pid()) {
                break;
            }
            if Instant::now() > give_up {
                return Err(BedError::TimedOut {
                    what: format!("the death of host {}", self.name),
                    seconds: BURIAL_MAX.as_secs(),
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        cgroups::remove(&scopes);
        // Whoever started a process inside may take his time; meanwhile process 1 must not stay uncollected for ever.
        let collector = std::thread::Builder::new().name("bed-collect".into());
        let collected = collector.spawn(move || init.wait()).map(drop);
        collected.map_err(|source| BedError::Start { host: self.name.clone(), source })
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("test bed: {error}");
        }
    }
}

/// Starts `command` in all name spaces of the process `pid`, which is process 1 of a host.
pub(super) fn enter(pid: u32, command: &mut Command) -> io::Result<Child> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the host has no first process"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    os::in_spaces(pidfd.as_fd(), ALL_SPACES, || command.spawn())
}

/// The id of a child as the kernel interface wants it.
pub(super) fn pid_of(child: &Child) -> Pid {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .expect("the kernel's process ids are positive and fit")
}
