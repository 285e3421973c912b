//! Decides from outside whether a program can be imaged: what it has open, mapped and connected.
//!
//! Says only what is known to stand in the way; an image that fails all the same is reported by CRIU. Must never stop or
//! change the program it looks at.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

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
/// Tables of /proc/PID/net whose sockets CRIU images, and the column that holds the inode.
const IMAGED_SOCKETS: [(&str, usize); 12] = [
    ("tcp", 9),
    ("tcp6", 9),
    ("udp", 9),
    ("udp6", 9),
    ("udplite", 9),
    ("udplite6", 9),
    ("raw", 9),
    ("raw6", 9),
    ("unix", 6),
    ("netlink", 9),
    ("packet", 8),
    ("icmp", 9),
];

/// Looks at these processes. `whole` says that they are all of a container, so that a Unix socket that leads to none of
/// them leads outside.
pub fn preflight(pids: &[u32], whole: bool) -> io::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut unix = UnixSockets::default();
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
    if whole {
        findings.extend(unix.outside());
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

fn descriptors(process: &Path, pid: u32, unix: &mut UnixSockets) -> io::Result<Vec<Obstacle>> {
    let mut obstacles = Vec::new();
    let mut sockets = Vec::new();
    for entry in fs::read_dir(process.join("fd"))? {
        let Ok(target) = entry.and_then(|entry| fs::read_link(entry.path())) else { continue };
        let text = target.to_string_lossy();
        if let Some(object) = text.strip_prefix("anon_inode:") {
            if !IMAGED_OBJECTS.contains(&object) {
                obstacles.push(Obstacle::KernelObject(object.trim_matches(['[', ']']).to_owned()));
            }
        } else if let Some(inode) = text.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
            sockets.extend(inode.parse::<u64>());
        } else if text.starts_with("/dev/") {
            let plain = PLAIN_DEVICES.contains(&text.as_ref())
                || text.starts_with("/dev/pts/")
                || text.starts_with("/dev/shm/")
                || text.starts_with("/dev/mqueue/");
            if !plain {
                obstacles.push(Obstacle::Device(target.clone()));
            }
        }
    }
    if sockets.is_empty() {
        return Ok(obstacles);
    }
    let known = socket_kinds(process, unix);
    for inode in sockets {
        unix.held.entry(inode).or_insert(pid);
        if !known.contains(&inode) {
            obstacles.push(Obstacle::Socket(format!("unknown (inode {inode})")));
        }
    }
    Ok(obstacles)
}

/// The inodes of all sockets in the process's name space of kinds that can be imaged.
fn socket_kinds(process: &Path, unix: &mut UnixSockets) -> BTreeSet<u64> {
    let mut known = BTreeSet::new();
    for (table, column) in IMAGED_SOCKETS {
        let text = fs::read_to_string(process.join("net").join(table)).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let Some(inode) = fields.get(column).and_then(|field| field.parse().ok()) else { continue };
            known.insert(inode);
            if table == "unix" {
                let connected = fields.get(5).is_some_and(|state| *state == "03");
                let name = fields.get(7).copied().unwrap_or_default();
                unix.known.insert(inode, (connected, name.to_owned()));
            }
        }
    }
    known
}

/// Unix sockets seen so far: a container's connected ones must come in pairs that it holds both of.
#[derive(Debug, Default)]
struct UnixSockets {
    /// Whether connected, and the name it is bound to.
    known: BTreeMap<u64, (bool, String)>,
    held: BTreeMap<u64, u32>,
}

impl UnixSockets {
    /// An odd connected socket out: both ends of a connection inside are held by the container's own processes. The
    /// kernel's table does not name the peer, so only the count of unpaired ends can be judged.
    fn outside(&self) -> Vec<Finding> {
        let connected: Vec<_> = self
            .held
            .iter()
            .filter_map(|(inode, pid)| {
                self.known.get(inode).filter(|(c, _)| *c).map(|(_, name)| (*pid, name))
            })
            .collect();
        if connected.len() % 2 == 0 {
            return Vec::new();
        }
        let odd = connected.iter().find(|(_, name)| name.is_empty()).or_else(|| connected.first());
        odd.map(|(pid, name)| Finding {
            pid: *pid,
            obstacle: Obstacle::OutsideSocket(if name.is_empty() {
                "(unnamed)".to_owned()
            } else {
                (*name).clone()
            }),
        })
        .into_iter()
        .collect()
    }
}
