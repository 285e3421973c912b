//! Removes everything of one container from a host: processes, groups, mounts, interfaces, name space, folders.
//!
//! Works from names alone, so that it also cleans up after a shim, an agent or a set-up that died midway. Must never
//! remove a folder before the last process behind the fence is gone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{cgroup::FenceGroup, layout::Layout, network, root};

/// A killed process ends within milliseconds, unless it waits for a broken disk.
const END_MAX: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Why something of a container is left. Destroy it again when the cause is gone.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// A process does not end: it waits for a device that does not answer.
    #[error("processes of {} are still there 20 s after they were killed; they wait for a device", .0.display())]
    Unkillable(PathBuf),
    /// Something could not be removed.
    #[error("{} cannot be removed: {source}", .path.display())]
    Left {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Removes everything; what is already gone is no error.
pub(crate) fn remove(layout: &Layout, group: &FenceGroup) -> Result<(), RemoveError> {
    end_processes(group)?;
    root::unmount_root(layout);
    network::detach(&layout.interface);
    network::remove_namespace(&layout.netns()).map_err(left(&layout.netns()))?;
    if let Some(id) = layout.run.file_name() {
        remove_folder(&layout.runc_root.join(id))?;
    }
    // A process that just ended may hold its group for an instant.
    let until = Instant::now() + END_MAX;
    while let Err(source) = group.remove() {
        if Instant::now() >= until {
            return Err(RemoveError::Left { path: group.path().to_owned(), source });
        }
        group.kill().ok();
        thread::sleep(LOOK_AGAIN);
    }
    remove_folder(&layout.data)?;
    remove_folder(&layout.run)
}

fn end_processes(group: &FenceGroup) -> Result<(), RemoveError> {
    if !group.exists() {
        return Ok(());
    }
    let until = Instant::now() + END_MAX;
    while !group.is_empty() {
        // A frozen process dies too; one that joins late is caught by the next round.
        group.kill().map_err(left(group.path()))?;
        if Instant::now() >= until {
            return Err(RemoveError::Unkillable(group.path().to_owned()));
        }
        thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

fn remove_folder(path: &Path) -> Result<(), RemoveError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RemoveError::Left { path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn left(path: &Path) -> impl FnOnce(io::Error) -> RemoveError {
    let path = path.to_owned();
    move |source| RemoveError::Left { path, source }
}
