//! Decides where the fence of a container lies in the kernel's control groups, and works it: create, freeze, kill, remove.
//!
//! The fence is a *parent* group in the version 2 tree that runc and CRIU never touch: runc puts the container into the
//! child `run`, our own helpers go into the child `tools`. Freezing and killing need no controller, so this works where
//! version 1 holds all controllers and the version 2 tree is empty. Must never name a group outside `steadfast/<scope>`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::statfs;

const CGROUP2_MAGIC: u64 = 0x6367_7270;
const CGROUP_TOP: &str = "/sys/fs/cgroup";

/// Why there is no fence on this host.
#[derive(Debug, thiserror::Error)]
#[error(
    "no cgroup version 2 tree at /sys/fs/cgroup or /sys/fs/cgroup/unified; mount one: it is what freezes a container"
)]
pub struct NoFreezer;

/// The top of the version 2 tree.
pub(crate) fn unified() -> Result<PathBuf, NoFreezer> {
    let places = [PathBuf::from(CGROUP_TOP), Path::new(CGROUP_TOP).join("unified")];
    places.into_iter().find(|path| is_cgroup2(path)).ok_or(NoFreezer)
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|info| u64::try_from(info.f_type).is_ok_and(|kind| kind == CGROUP2_MAGIC))
}

/// One container's fence.
#[derive(Clone, Debug)]
pub(crate) struct FenceGroup {
    /// Its folder in the version 2 tree.
    path: PathBuf,
    /// `steadfast/<scope>/<id>`, the same in every tree.
    relative: PathBuf,
}

impl FenceGroup {
    pub(crate) fn new(relative: &Path) -> Result<Self, NoFreezer> {
        Ok(Self { path: unified()?.join(relative), relative: relative.to_owned() })
    }

    /// Creates it, frozen.
    pub(crate) fn create_frozen(&self) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        self.freeze()?;
        fs::create_dir_all(self.path.join("tools"))?;
        fs::create_dir_all(self.path.join("run"))
    }

    pub(crate) fn freeze(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), "1")
    }

    pub(crate) fn thaw(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), "0")
    }

    /// Freezes the container alone, whatever its lease; our own helpers, which may hold its processes, go on.
    pub(crate) fn hold(&self) -> io::Result<()> {
        fs::write(self.path.join("run/cgroup.freeze"), "1")
    }

    /// Ends [`FenceGroup::hold`]; the lease alone decides again.
    pub(crate) fn let_go(&self) -> io::Result<()> {
        fs::write(self.path.join("run/cgroup.freeze"), "0")
    }

    /// Kills every process in it and below, also frozen ones.
    pub(crate) fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// The file whose change (POLLPRI) says that the group froze, thawed or became empty.
    pub(crate) fn events(&self) -> PathBuf {
        self.path.join("cgroup.events")
    }

    /// Where a process joins to be under the fence, outside the container's own group.
    pub(crate) fn tools_procs(&self) -> PathBuf {
        self.path.join("tools/cgroup.procs")
    }

    /// The container's processes as this host numbers them.
    pub(crate) fn container_pids(&self) -> io::Result<Vec<u32>> {
        let text = fs::read_to_string(self.path.join("run/cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid != 0).collect())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Whether no process is left in it.
    pub(crate) fn is_empty(&self) -> bool {
        fs::read_to_string(self.events()).map_or(true, |text| has_flag(&text, "populated 0"))
    }

    /// Removes the group from every tree. Its processes must be gone.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let mut first_error = Ok(());
        for top in trees()? {
            let removed = remove_tree(&top.join(&self.relative));
            if first_error.is_ok() {
                first_error = removed;
            }
        }
        first_error
    }
}

/// Removes the scope's own groups if they are empty.
pub(crate) fn remove_scope(scope: &str) -> io::Result<()> {
    for top in trees()? {
        match fs::remove_dir(top.join("steadfast").join(scope)) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy) => {}
            Err(e) => return Err(e),
        }
        // The top is shared with other scopes: it goes with the last of them.
        fs::remove_dir(top.join("steadfast")).ok();
    }
    Ok(())
}

/// The ids whose groups exist for this scope.
pub(crate) fn ids_of_scope(scope: &str) -> Result<Vec<String>, NoFreezer> {
    let Ok(entries) = fs::read_dir(unified()?.join("steadfast").join(scope)) else { return Ok(Vec::new()) };
    Ok(entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

/// Whether the text of `cgroup.events` has this line.
pub(crate) fn has_flag(text: &str, flag: &str) -> bool {
    text.lines().any(|line| line.trim() == flag)
}

/// The top of every tree: one where version 2 holds all, else one per mounted hierarchy.
fn trees() -> io::Result<Vec<PathBuf>> {
    let top = Path::new(CGROUP_TOP);
    if is_cgroup2(top) {
        return Ok(vec![top.to_owned()]);
    }
    Ok(fs::read_dir(top)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}
