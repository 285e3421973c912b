//! One host that can run containers: checks that it can, creates containers, and finds those of an earlier agent.
//!
//! Must never touch a container of another scope. Read `shim/mod.rs` next: most of the work is done there.

use std::{
    fs::{self, OpenOptions},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use crate::{
    bundle::{self, BundleError},
    cgroup::{self, FenceGroup, NoFreezer},
    clean::{self, RemoveError},
    config::{HostConfig, Root, Spec, SpecError, check_id},
    container::{Container, connect},
    criu::{
        self, RestoreMode,
        find::{self, FindCriuError},
    },
    layout::{self, Layout},
    network::{self, NetworkError},
    protocol::Prepared,
    root::UPPER_ARCHIVE,
    shim::plan::Plan,
};

/// Why this host cannot run containers. Nothing was started; folders may have been made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not root.
    #[error(
        "containers need root: name spaces, mounts and cgroups are made; run the agent as root, or in mode observe"
    )]
    NotRoot,
    /// The scope cannot be part of names.
    #[error("scope {0:?} is not usable; use 1 to 40 letters, digits, '-' and '_'")]
    Scope(String),
    /// A folder that must be in memory is on a disk.
    #[error("{} is on a disk; it must be on a tmpfs: sockets and images must not outlive the machine's memory", .0.display())]
    NotInMemory(PathBuf),
    /// A folder cannot be made.
    #[error("{} cannot be created: {source}", .path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path of a socket would be too long for the kernel.
    #[error("{} is too long; the kernel allows 107 bytes for a socket's path, so give a run folder of at most 29", .0.display())]
    RunDirTooLong(PathBuf),
    /// runc is missing or broken.
    #[error("{} cannot be used: {reason}; install runc 1.1 or newer", .path.display())]
    Runc {
        /// The program.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// CRIU is missing, broken or too old.
    #[error(transparent)]
    Criu(#[from] FindCriuError),
    /// There is no freezer.
    #[error(transparent)]
    Freezer(#[from] NoFreezer),
    /// The bridge cannot be set up.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Why a container was not created. Everything that had been made was removed.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A field of the spec, or the id, is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The bundle is wrong.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A volume's source is not there.
    #[error("volume source {} is not there; create it first", .0.display())]
    VolumeSource(PathBuf),
    /// There is one already.
    #[error(
        "container {id} exists on this host with epoch {epoch}; destroy it before creating epoch {wanted}"
    )]
    Exists {
        /// Its id.
        id: String,
        /// The epoch it runs under.
        epoch: u64,
        /// The epoch that was asked for.
        wanted: u64,
    },
    /// The image is not whole.
    #[error("{} is not a whole image: {missing} is missing", .path.display())]
    Image {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        missing: &'static str,
    },
    /// Somebody has the address.
    #[error("address {address} is in use by {holder}; stop that one, or give another address")]
    AddressTaken {
        /// The address.
        address: String,
        /// A hardware address, or words.
        holder: String,
    },
    /// Setting up failed.
    #[error("setting up the {step} of container {id} failed: {reason}")]
    SetUp {
        /// The container.
        id: String,
        /// Which step.
        step: String,
        /// Why.
        reason: String,
    },
    /// What an earlier container left could not be removed.
    #[error(transparent)]
    Leftover(#[from] RemoveError),
}

/// Why the containers of an earlier agent could not be found.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The run folder cannot be read.
    #[error("{} cannot be read: {source}", .path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What a dead container left could not be removed.
    #[error(transparent)]
    Leftover(#[from] RemoveError),
    /// There is no freezer.
    #[error(transparent)]
    Freezer(#[from] NoFreezer),
}

/// A host that can run containers.
#[derive(Clone, Debug)]
pub struct Host {
    config: HostConfig,
}

impl Host {
    /// Checks that this machine can run containers, and makes the folders and the bridge.
    pub fn open(config: HostConfig) -> Result<Self, OpenError> {
        if !rustix::process::geteuid().is_root() {
            return Err(OpenError::NotRoot);
        }
        let scope = &config.scope;
        let plain = (1..=40).contains(&scope.len())
            && scope.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !plain {
            return Err(OpenError::Scope(scope.clone()));
        }
        for path in [&config.run_dir, &config.data_dir, &config.image_dir, &layout::containers(&config)] {
            fs::create_dir_all(path).map_err(|source| OpenError::Folder { path: path.clone(), source })?;
        }
        for path in [&config.run_dir, &config.image_dir] {
            if !criu::is_tmpfs(path) {
                return Err(OpenError::NotInMemory(path.clone()));
            }
        }
        if Layout::new(&config, &"x".repeat(64)).relay().as_os_str().len() > 107 {
            return Err(OpenError::RunDirTooLong(config.run_dir));
        }
        check_runc(&config.runc)?;
        find::version(&config.criu)?;
        cgroup::unified()?;
        if let Some(bridge) = &config.bridge {
            network::ensure_bridge(bridge, scope)?;
        }
        Ok(Self { config })
    }

    /// How this host was set up.
    #[must_use]
    pub fn config(&self) -> &HostConfig {
        &self.config
    }

    /// The cgroup of a container's programs, below the top of each tree.
    pub fn cgroup(&self, id: &str) -> PathBuf {
        Layout::new(&self.config, id).runc_cgroup()
    }

    /// The containers whose shims live. They are not disturbed. What dead ones left is removed.
    pub fn adopt(&self) -> Result<Vec<Container>, AdoptError> {
        let folder = layout::containers(&self.config);
        let entries = fs::read_dir(&folder).map_err(|source| AdoptError::Folder { path: folder, source })?;
        let mut ids: Vec<_> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        ids.extend(cgroup::ids_of_scope(&self.config.scope)?);
        ids.sort();
        ids.dedup();
        let mut living = Vec::new();
        for id in ids.iter().filter(|id| check_id(id).is_ok()) {
            let layout = Layout::new(&self.config, id);
            let group = FenceGroup::new(&layout.cgroup)?;
            match Plan::read(&layout.plan()) {
                Ok(plan) if connect(&layout).is_ok() => living.push(Container::new(plan, layout, group)),
                Ok(_) | Err(_) => clean::remove(&layout, &group)?,
            }
        }
        Ok(living)
    }

    /// Creates a container, from an image or afresh. It starts when the first lease is renewed.
    ///
    /// The image is read when it starts: keep it until the container runs.
    /// `id` names it on this host, `epoch` the run: an older run of the same id must be destroyed first.
    pub fn create(
        &self,
        id: &str,
        epoch: u64,
        spec: &Spec,
        from: Option<&Path>,
        mode: RestoreMode,
    ) -> Result<Container, CreateError> {
        check_id(id)?;
        spec.check()?;
        check_sources(spec)?;
        if let Some(image) = from {
            check_image(image)?;
        }
        let layout = Layout::new(&self.config, id);
        let set_up = |step: &str, reason: String| CreateError::SetUp {
            id: id.to_owned(),
            step: step.to_owned(),
            reason,
        };
        let group = FenceGroup::new(&layout.cgroup).map_err(|e| set_up("fence", e.to_string()))?;
        if let (Ok(old), Ok(_)) = (Plan::read(&layout.plan()), connect(&layout)) {
            return Err(CreateError::Exists { id: id.to_owned(), epoch: old.epoch, wanted: epoch });
        }
        clean::remove(&layout, &group)?;

        let plan = Plan {
            config: self.config.clone(),
            id: id.to_owned(),
            epoch,
            spec: spec.clone(),
            image: from.map(Path::to_owned),
            mode,
        };
        let prepared = write_plan(&plan, &layout).and_then(|()| start_shim(&self.config, &layout));
        let refused = match prepared {
            Ok(Prepared::Ready) => return Ok(Container::new(plan, layout, group)),
            Ok(Prepared::AddressTaken { holder }) => {
                let address = spec.address.map(|address| address.to_string()).unwrap_or_default();
                CreateError::AddressTaken { address, holder }
            }
            Ok(Prepared::Failed { step, reason }) => set_up(&step, reason),
            Err(e) => set_up("shim", e.to_string()),
        };
        clean::remove(&layout, &group)?;
        Err(refused)
    }

    /// Removes what the scope itself left, once its last container is destroyed.
    pub fn close(self) -> io::Result<()> {
        cgroup::remove_scope(&self.config.scope)
    }
}

fn check_runc(runc: &Path) -> Result<(), OpenError> {
    let wrong = |reason: String| OpenError::Runc { path: runc.to_owned(), reason };
    let output = Command::new(runc)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| wrong(e.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let first = text.lines().next().unwrap_or_default();
    if output.status.success() && first.starts_with("runc version") {
        Ok(())
    } else {
        Err(wrong(format!("`--version` answered {first:?}")))
    }
}

fn check_sources(spec: &Spec) -> Result<(), CreateError> {
    if let Some(missing) = spec.volumes.iter().find(|volume| !volume.source.exists()) {
        return Err(CreateError::VolumeSource(missing.source.clone()));
    }
    if let Root::Bundle(folder) = &spec.root {
        bundle::read_foreign(folder)?;
    }
    Ok(())
}

fn check_image(image: &Path) -> Result<(), CreateError> {
    for missing in ["inventory.img", "descriptors.json", UPPER_ARCHIVE] {
        if !image.join(missing).is_file() {
            return Err(CreateError::Image { path: image.to_owned(), missing });
        }
    }
    Ok(())
}

fn write_plan(plan: &Plan, layout: &Layout) -> io::Result<()> {
    for path in [&layout.run, &layout.data, &layout.bundle()] {
        fs::create_dir_all(path)?;
    }
    use std::os::unix::fs::PermissionsExt as _;
    for path in [&layout.run, &layout.data] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    plan.write(&layout.plan())
}

/// Starts the shim and waits until it has set everything up, or has given up.
fn start_shim(config: &HostConfig, layout: &Layout) -> io::Result<Prepared> {
    let mut words = config.shim.iter();
    let program = words
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no shim program is configured"))?;
    let talk = OpenOptions::new().create(true).append(true).open(layout.data.join("shim.log"))?;
    let mut child = Command::new(program)
        .args(words)
        .arg("run")
        .arg(layout.plan())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(talk)
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let prepared = serde_json::from_str(&line);
    match prepared {
        Ok(Prepared::Ready) => {
            // Somebody has to take note of its end while this process lives.
            thread::Builder::new().name("shim-end".into()).spawn(move || child.wait())?;
            Ok(Prepared::Ready)
        }
        Ok(failed) => {
            child.wait()?;
            Ok(failed)
        }
        Err(_) => {
            let status = child.wait()?;
            let talk = fs::read_to_string(layout.data.join("shim.log")).unwrap_or_default();
            let last = talk.lines().last().unwrap_or("it said nothing");
            Ok(Prepared::Failed { step: "shim".into(), reason: format!("it ended with {status}: {last}") })
        }
    }
}
