//! Decides from outside whether a program can be imaged: what it has open, mapped and connected.
//!
//! Says only what is known to stand in the way; an image that fails all the same is reported by CRIU. Must never stop or
//! change the program it looks at.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    net::{AddressFamily, SocketType, sockopt},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use serde::{Deserialize, Serialize};

use crate::network;

/// One thing that stands in the way of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The process.
    pub pid: u32,
    /// What it is.
    pub obstacle: Obstacle,
}

/// What cannot be imaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Obstacle {
    /// A kernel object without a name, such as io_uring or userfaultfd.
    KernelObject(String),
    /// A device that has state of its own.
    Device(PathBuf),
    /// A socket of a family or protocol CRIU does not know.
    Socket(String),
    /// A Unix socket whose other end is outside of the container.
    OutsideSocket(String),
    /// Huge pages, or memory of a device, are mapped.
    Mapping(String),
    /// A debugger traces it.
    Traced {
        /// The debugger.
        by: u32,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid;
        match &self.obstacle {
            Obstacle::KernelObject(name) => write!(f, "process {pid} uses {name}, which cannot be imaged"),
            Obstacle::Device(path) => {
                write!(f, "process {pid} has {} open, a device whose state cannot be imaged", path.display())
            }
            Obstacle::Socket(kind) => {
                write!(f, "process {pid} has a socket of kind {kind} open, which cannot be imaged")
            }
            Obstacle::OutsideSocket(name) => {
                write!(f, "process {pid} is connected by Unix socket {name} to a process outside")
            }
            Obstacle::Mapping(name) => write!(f, "process {pid} has {name} mapped, which cannot be imaged"),
            Obstacle::Traced { by } => write!(
                f,
                "process {pid} is traced by process {by}; a program under a debugger cannot be imaged"
            ),
        }
    }
}

/// Anonymous kernel objects that CRIU images.
const IMAGED_OBJECTS: [&str; 7] =
    ["[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]", "inotify", "[fanotify]", "[pidfd]"];
/// Devices without state, and terminals.
const PLAIN_DEVICES: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/console",
];
/// IP (none named), TCP, UDP, UDP-Lite.
const IMAGED_PROTOCOLS: [u32; 4] = [0, 6, 17, 136];

/// Looks at these processes. `whole` says that they are all of a container, so that a Unix socket that leads to none of
/// them leads outside.
pub fn preflight(pids: &[u32], whole: bool) -> io::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut unix = BTreeMap::new();
    for pid in pids {
        let process = Path::new("/proc").join(pid.to_string());
        let mut obstacles = traced(&process);
        obstacles.extend(mappings(&process));
        match descriptors(&process, *pid, &mut unix) {
            Ok(found) => obstacles.extend(found),
            // It ended meanwhile: it stands in nobody's way.
            Err(e) if e.kind() == io::ErrorKind::NotFound && pids.len() > 1 => continue,
            Err(e) => return Err(e),
        }
        findings.extend(obstacles.into_iter().map(|obstacle| Finding { pid: *pid, obstacle }));
    }
    if let Some(pid) = pids.first().filter(|_| whole && !unix.is_empty()) {
        findings.extend(outside(*pid, &unix)?);
    }
    Ok(findings)
}

fn traced(process: &Path) -> Vec<Obstacle> {
    let text = fs::read_to_string(process.join("status")).unwrap_or_default();
    let tracer = text
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))
        .and_then(|value| value.trim().parse().ok());
    tracer.filter(|by| *by != 0).map(|by| Obstacle::Traced { by }).into_iter().collect()
}

fn mappings(process: &Path) -> Vec<Obstacle> {
    let text = fs::read(process.join("maps")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut names = BTreeSet::new();
    for name in text.lines().filter_map(|line| line.split_whitespace().nth(5)) {
        let huge = name.starts_with("/anon_hugepage") || name.starts_with("/dev/hugepages");
        let device =
            name.starts_with("/dev/") && !name.starts_with("/dev/shm/") && !name.starts_with("/dev/zero");
        if huge || device || name.contains("io_uring") {
            names.insert(name.to_owned());
        }
    }
    names.into_iter().map(Obstacle::Mapping).collect()
}

/// What is open. Unix sockets are put into `unix`, by inode, with who holds them.
fn descriptors(process: &Path, pid: u32, unix: &mut BTreeMap<u32, u32>) -> io::Result<Vec<Obstacle>> {
    let mut obstacles = Vec::new();
    let handle = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    let handle = pidfd_open(handle, PidfdFlags::empty())?;
    for entry in fs::read_dir(process.join("fd"))? {
        let Ok(entry) = entry else { continue };
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let text = target.to_string_lossy();
        if let Some(object) = text.strip_prefix("anon_inode:") {
            if !IMAGED_OBJECTS.contains(&object) {
                obstacles.push(Obstacle::KernelObject(object.trim_matches(['[', ']']).to_owned()));
            }
        } else if let Some(inode) = text.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            // A socket that was closed meanwhile stands in nobody's way.
            let Some(Ok(socket)) =
                number.map(|number| pidfd_getfd(&handle, number, PidfdGetfdFlags::empty()))
            else {
                continue;
            };
            match socket_kind(&socket)? {
                SocketKind::Imaged => {}
                SocketKind::Unix => unix.extend(inode.parse().ok().map(|inode| (inode, pid))),
                SocketKind::Other(kind) => obstacles.push(Obstacle::Socket(kind)),
            }
        } else if text.starts_with("/dev/") {
            let plain = PLAIN_DEVICES.contains(&text.as_ref())
                || ["/dev/pts/", "/dev/shm/", "/dev/mqueue/"].iter().any(|folder| text.starts_with(folder));
            if !plain {
                obstacles.push(Obstacle::Device(target.clone()));
            }
        }
    }
    Ok(obstacles)
}

enum SocketKind {
    Imaged,
    Unix,
    Other(String),
}

/// Asks the socket itself: the kernel's tables leave out those that are not bound yet.
fn socket_kind(socket: &OwnedFd) -> io::Result<SocketKind> {
    let domain = sockopt::socket_domain(socket)?;
    let protocol = sockopt::socket_protocol(socket)?.map_or(0, |protocol| protocol.as_raw().get());
    let raw = sockopt::socket_type(socket)? == SocketType::RAW;
    let kind = match domain {
        AddressFamily::UNIX => SocketKind::Unix,
        AddressFamily::NETLINK | AddressFamily::PACKET => SocketKind::Imaged,
        AddressFamily::INET | AddressFamily::INET6 if raw || IMAGED_PROTOCOLS.contains(&protocol) => {
            SocketKind::Imaged
        }
        AddressFamily::INET | AddressFamily::INET6 => SocketKind::Other(match protocol {
            1 | 58 => "ICMP".to_owned(),
            132 => "SCTP".to_owned(),
            262 => "MPTCP".to_owned(),
            other => format!("IP protocol {other}"),
        }),
        other => SocketKind::Other(format!("family {}", other.as_raw())),
    };
    Ok(kind)
}

/// Connected Unix sockets whose other end nobody of the container holds. A connection that waits to be accepted has an
/// end without an inode, and is imaged with its listener.
fn outside(pid: u32, held: &BTreeMap<u32, u32>) -> io::Result<Vec<Finding>> {
    let namespace = Path::new("/proc").join(pid.to_string()).join("ns/net");
    let peers = network::inside(&namespace, || {
        network::sockets::unix_peers().map_err(network::kernel("listing the Unix sockets"))
    });
    let peers = peers.map_err(|e| io::Error::other(e.to_string()))?;
    let leads_out =
        |(inode, peer): &(u32, u32)| *peer != 0 && held.contains_key(inode) && !held.contains_key(peer);
    let finding = |(inode, _): (u32, u32)| {
        let pid = *held.get(&inode)?;
        Some(Finding { pid, obstacle: Obstacle::OutsideSocket(format!("(inode {inode})")) })
    };
    Ok(peers.into_iter().filter(leads_out).filter_map(finding).collect())
}
