//! The engine that images any program, unmodified: CRIU, driven by `runc checkpoint` and `runc restore`.
//!
//! `Engine` is the wall behind which another engine can take its place. Must never write an image to a disk, nor leave
//! a program stopped: a dump that fails lets it go on, and says why in plain words. Parts: `relay` (between runc and
//! CRIU, for what must happen while the program stands still), `rpc` (CRIU's messages), `reason` (its log in words).

pub mod find;
pub(crate) mod reason;
pub(crate) mod relay;
pub(crate) mod rpc;
pub mod self_test;

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use rustix::fs::statfs;
use serde::{Deserialize, Serialize};

use crate::{
    host_files, layout::Layout, network, preflight::preflight, protocol::Capture, root, shim::wire::Wire,
};

/// What happens to a program's TCP connections when it is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreMode {
    /// After a loss: connections to the outside are closed before the program runs; those inside, and listeners, stay.
    CloseOutside,
    /// A move: everything stays.
    Keep,
}

/// Why no image was written. The program goes on as before, unless it ended by itself.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointError {
    /// CRIU refused.
    #[error("the program cannot be checkpointed: {0}")]
    Refused(String),
    /// The folder is not on a tmpfs: images are never written to a disk.
    #[error("{} is not on a tmpfs; give a folder in memory, images are never written to a disk", .0.display())]
    NotInMemory(PathBuf),
    /// The folder holds something already.
    #[error("{} is not empty; give an empty or absent folder", .0.display())]
    NotEmpty(PathBuf),
    /// The lease lapsed while the image was written; it is not to be used.
    #[error("the lease lapsed during the checkpoint; the image was discarded")]
    Lapsed,
    /// The container does not run.
    #[error("the container is {0}; only a running one can be checkpointed")]
    NotRunning(String),
    /// Another one is being written.
    #[error("a checkpoint of this container is under way; wait for it")]
    Busy,
    /// A file or program that is needed failed.
    #[error("{what} {} failed: {reason}", .path.display())]
    System {
        /// What was tried.
        what: String,
        /// On what.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The shim did not answer.
    #[error(transparent)]
    #[serde(skip)]
    Shim(#[from] crate::container::ShimError),
}

/// What an engine needs to know of the container it works on.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) tools: &'a Tools,
    pub(crate) wire: &'a Wire,
    /// Where the lower layer is on this host.
    pub(crate) lower: &'a Path,
    /// Mount points inside that are not of the root.
    pub(crate) separate: &'a [PathBuf],
}

/// Freezes the container, while CRIU still holds its processes.
pub(crate) type Hold<'a> = dyn Fn() -> io::Result<()> + Sync + 'a;

/// How a container is imaged and brought back.
pub(crate) trait Engine {
    /// Writes an image into `into` and leaves the program running, or standing still if there is a `hold`. `pids` lists its processes; `lapsed` says whether the
    /// lease lapsed meanwhile.
    fn capture(
        &self,
        subject: &Subject<'_>,
        into: &Path,
        pids: &(dyn Fn() -> Vec<u32> + Sync),
        lapsed: &(dyn Fn() -> bool + Sync),
        hold: Option<&Hold<'_>>,
    ) -> Result<Capture, CheckpointError>;

    /// Brings the program back from `image`; its output goes to the given pipes. Returns when it may run.
    fn restore(
        &self,
        subject: &Subject<'_>,
        image: &Path,
        mode: RestoreMode,
        stdio: (Stdio, Stdio),
    ) -> Result<(), String>;
}

/// How helper programs are started: under the fence, with our CRIU first on the path.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// Program and arguments of the shim, as a child of the shim can start it.
    pub(crate) shim: Vec<OsString>,
    pub(crate) runc: PathBuf,
    pub(crate) criu: PathBuf,
    /// The file through which a process joins the fence.
    pub(crate) procs: PathBuf,
    pub(crate) id: String,
}

impl Tools {
    /// runc with this container's state folder and log, under the fence.
    pub(crate) fn runc(&self, layout: &Layout) -> Command {
        let mut words = self.shim.iter();
        let mut command = Command::new(words.next().map_or_else(|| "/proc/self/exe".into(), OsString::clone));
        command.args(words).arg("enter").arg(&self.procs).arg(&self.runc);
        command
            .arg("--root")
            .arg(&layout.runc_root)
            .arg("--log")
            .arg(layout.runc_log())
            .args(["--log-format", "json"]);
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        let mut first = layout.run.join("bin").into_os_string();
        first.push(":");
        first.push(path);
        command
            .env("PATH", first)
            .env(relay::SOCKET_VARIABLE, layout.relay())
            .env(relay::CRIU_VARIABLE, &self.criu);
        command.stdin(Stdio::null());
        command
    }

    /// Puts a program called `criu` where runc finds it first: it hands runc's connection to the relay.
    pub(crate) fn install_criu(&self, layout: &Layout) -> io::Result<()> {
        let folder = layout.run.join("bin");
        fs::create_dir_all(&folder)?;
        let words: Vec<_> = self
            .shim
            .iter()
            .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''")))
            .collect();
        let path = folder.join("criu");
        fs::write(&path, format!("#!/bin/sh\nexec {} criu \"$@\"\n", words.join(" ")))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
    }
}

/// [`Engine`] by CRIU.
#[derive(Debug)]
pub(crate) struct Criu;

impl Engine for Criu {
    fn capture(
        &self,
        subject: &Subject<'_>,
        into: &Path,
        pids: &(dyn Fn() -> Vec<u32> + Sync),
        lapsed: &(dyn Fn() -> bool + Sync),
        hold: Option<&Hold<'_>>,
    ) -> Result<Capture, CheckpointError> {
        prepare_image_folder(into)?;
        let captured = write_image(subject, into, pids, lapsed, hold);
        if captured.is_err() {
            // Half an image is of no use to anybody, and it is memory.
            fs::remove_dir_all(into).ok();
        }
        captured
    }

    fn restore(
        &self,
        subject: &Subject<'_>,
        image: &Path,
        mode: RestoreMode,
        stdio: (Stdio, Stdio),
    ) -> Result<(), String> {
        let Subject { layout, tools, .. } = subject;
        configure(layout, image)
            .map_err(|e| format!("writing {} failed: {e}", layout.criu_config().display()))?;
        let namespace = layout.netns();
        // Until then everything is held: a peer's packet that finds no socket yet would end its connection.
        let hook = |script: &str| -> Result<(), String> {
            if script != "pre-resume" {
                return Ok(());
            }
            if mode == RestoreMode::CloseOutside {
                let closing = || {
                    network::sockets::close_outside()
                        .map_err(network::kernel("closing connections to the outside"))
                };
                network::inside(&namespace, closing).map_err(|e| e.to_string())?;
            }
            subject.wire.release();
            Ok(())
        };
        let relay = relay::Relay::listen(&layout.relay())
            .map_err(|e| format!("listening on {} failed: {e}", layout.relay().display()))?;
        let mut command = tools.runc(layout);
        command.args(["restore", "--detach", "--tcp-established", "--file-locks", "--image-path"]).arg(image);
        command.arg("--work-path").arg(layout.criu_dir()).arg("--bundle").arg(layout.bundle());
        command.arg("--pid-file").arg(layout.pid_file()).arg(&tools.id).stdout(stdio.0).stderr(stdio.1);
        let outcome = relay
            .serve(&mut command, &hook)
            .map_err(|e| format!("starting {} failed: {e}", tools.runc.display()))?;
        if let Some(vetoed) = outcome.vetoed {
            return Err(vetoed);
        }
        if outcome.success {
            return Ok(());
        }
        Err(reason::explain(&layout.criu_dir().join("restore.log"), &layout.runc_log()))
    }
}

fn write_image(
    subject: &Subject<'_>,
    into: &Path,
    pids: &(dyn Fn() -> Vec<u32> + Sync),
    lapsed: &(dyn Fn() -> bool + Sync),
    hold: Option<&Hold<'_>>,
) -> Result<Capture, CheckpointError> {
    let Subject { layout, tools, .. } = subject;
    let began = Instant::now();
    let system = |what: &str, path: PathBuf| {
        let what = what.to_owned();
        move |e: io::Error| CheckpointError::System { what, path, reason: e.to_string() }
    };
    configure(layout, into).map_err(system("writing", layout.criu_config()))?;
    let version = find::version(&tools.criu).map_err(|e| CheckpointError::Refused(e.to_string()))?;
    let in_use = std::sync::Mutex::new(Default::default());
    let hook = |script: &str| -> Result<(), String> {
        match script {
            "network-lock" => {
                subject.wire.hold().map_err(|e| format!("holding the container's network failed: {e}"))?;
            }
            "network-unlock" if hold.is_none() => subject.wire.release(),
            "post-dump" if lapsed() => return Err(CheckpointError::Lapsed.to_string()),
            "post-dump" => {
                let archive = into.join(root::UPPER_ARCHIVE);
                root::pack_upper(&layout.upper(), &archive).map_err(|e| e.to_string())?;
                let files = host_files::in_use(&pids(), &layout.upper(), subject.separate);
                *in_use.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = files;
                // CRIU still holds every process: the freezer takes them over before any of them runs again.
                if let Some(hold) = hold {
                    hold().map_err(|e| format!("freezing the container failed: {e}"))?;
                }
            }
            _ => {}
        }
        Ok(())
    };
    let relay = relay::Relay::listen(&layout.relay()).map_err(system("listening on", layout.relay()))?;
    let mut command = tools.runc(layout);
    command
        .args(["checkpoint", "--leave-running", "--tcp-established", "--file-locks", "--image-path"])
        .arg(into);
    command.arg("--work-path").arg(layout.criu_dir()).arg(&tools.id);
    let served = relay.serve(&mut command, &hook);
    if hold.is_some() {
        // What arrives from now on would be acknowledged and then be in no image.
        subject.wire.close_now();
    }
    // A dump that failed after it took hold does not always say that it let go.
    subject.wire.release();
    let outcome = served.map_err(system("starting", tools.runc.clone()))?;
    if lapsed() {
        return Err(CheckpointError::Lapsed);
    }
    if let Some(refusal) = refusal(&outcome, layout, pids) {
        return Err(CheckpointError::Refused(refusal));
    }
    let stats = layout.criu_dir().join("stats-dump");
    let frozen_us = rpc::frozen_us(&fs::read(&stats).map_err(system("reading", stats.clone()))?).unwrap_or(0);
    let in_use = in_use.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(Capture {
        frozen_ns: frozen_us.saturating_mul(1000),
        elapsed_ns: u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX),
        files: list(into).map_err(system("listing", into.to_owned()))?,
        host_files: host_files::describe(&in_use, subject.lower),
        criu_version: version,
        cpu: cpu(),
    })
}

/// Why a dump that was served made no image.
fn refusal(outcome: &relay::Outcome, layout: &Layout, pids: &dyn Fn() -> Vec<u32>) -> Option<String> {
    if outcome.vetoed.is_some() || outcome.success {
        return outcome.vetoed.clone();
    }
    let reason = reason::explain(&layout.criu_dir().join("dump.log"), &layout.runc_log());
    let findings = preflight(&pids(), true).unwrap_or_default();
    Some(reason::with_findings(&findings, reason))
}

fn prepare_image_folder(into: &Path) -> Result<(), CheckpointError> {
    let system = |e: io::Error| CheckpointError::System {
        what: "creating".to_owned(),
        path: into.to_owned(),
        reason: e.to_string(),
    };
    fs::create_dir_all(into).map_err(system)?;
    if !is_tmpfs(into) {
        return Err(CheckpointError::NotInMemory(into.to_owned()));
    }
    if fs::read_dir(into).map_err(system)?.next().is_some() {
        return Err(CheckpointError::NotEmpty(into.to_owned()));
    }
    Ok(())
}

/// Whether a path is on a tmpfs.
pub(crate) fn is_tmpfs(path: &Path) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    statfs(path).is_ok_and(|info| u64::try_from(info.f_type).is_ok_and(|kind| kind == TMPFS_MAGIC))
}

/// Options that runc has no words for. The network is held by us, at once, where CRIU's own lock takes 20 ms each way. The folders are named here because CRIU would otherwise look for runc's
/// descriptors in the wrong process: the connection it serves was made by the relay.
fn configure(layout: &Layout, image: &Path) -> io::Result<()> {
    fs::create_dir_all(layout.criu_dir())?;
    for old in ["dump.log", "restore.log", "stats-dump"] {
        fs::remove_file(layout.criu_dir().join(old)).ok();
    }
    fs::remove_file(layout.runc_log()).ok();
    let text = format!(
        "images-dir {}\nwork-dir {}\nnetwork-lock skip\nmanage-cgroups ignore\nghost-limit 1073741824\nlink-remap\nskip-in-flight\nverbosity 2\n",
        image.display(),
        layout.criu_dir().display()
    );
    fs::write(layout.criu_config(), text)
}

fn list(folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((PathBuf::from(entry.file_name()), entry.metadata()?.len()));
    }
    files.sort();
    Ok(files)
}

/// Model and a digest of the features: an image runs only where the processor has them all.
pub fn cpu() -> String {
    processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

pub(crate) fn processor(text: &str) -> String {
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map_or("unknown", |(_, value)| value.trim())
    };
    let mut flags: Vec<_> = field("flags").split_whitespace().collect();
    flags.sort_unstable();
    let digest = blake3::hash(flags.join(" ").as_bytes()).to_hex();
    format!("{} {}", field("model name"), digest.get(..16).unwrap_or_default())
}
