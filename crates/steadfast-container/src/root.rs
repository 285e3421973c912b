//! Decides what a container sees as `/`: a read-only lower layer (the host's own root or a bundle's) under a private
//! upper layer, and how that upper layer goes into an image and comes out of one.
//!
//! Must never write to the lower layer. Kernel extensions that tie an upper layer to one disk (index, metacopy,
//! redirects) are off, so that it means the same on another host.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    fs::{Gid, Mode, Uid, XattrFlags, chmodat, chownat},
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount},
};

use crate::layout::Layout;

/// The file of an image that holds the upper layer.
pub(crate) const UPPER_ARCHIVE: &str = "upper.tar";

/// Why the root could not be set up. What had been made is removed with the container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    /// The kernel refused a step.
    #[error("{step} {} failed: {source}", .path.display())]
    Kernel {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// `tar` refused to pack or unpack the upper layer.
    #[error("tar could not {step} the upper layer {}: {reason}", .path.display())]
    Archive {
        /// `pack` or `unpack`.
        step: &'static str,
        /// The archive.
        path: PathBuf,
        /// What it printed.
        reason: String,
    },
}

fn kernel<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> RootError {
    let path = path.to_owned();
    move |source| RootError::Kernel { step, path, source: source.into() }
}

/// Mounts `lower` under the container's upper layer. Paths in `hidden` become empty folders inside.
pub(crate) fn mount_root(layout: &Layout, lower: &Path, hidden: &BTreeSet<PathBuf>) -> Result<(), RootError> {
    for path in [layout.lower(), layout.rootfs(), layout.upper(), layout.work()] {
        fs::create_dir_all(&path).map_err(kernel("creating", &path))?;
    }
    for path in hidden {
        hide(path, lower, &layout.upper())?;
    }
    // Not recursive: what is mounted below the host's root (/proc, /sys, tmpfs, other disks) stays out.
    let bind = layout.lower();
    mount_bind(lower, &bind).map_err(kernel("binding the lower layer", &bind))?;
    mount_change(&bind, MountPropagationFlags::PRIVATE).map_err(kernel("making private", &bind))?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off,metacopy=off,xino=off",
        escape(&bind)?,
        escape(&layout.upper())?,
        escape(&layout.work())?
    );
    let options = std::ffi::CString::new(options).map_err(kernel("naming", &bind))?;
    let target = layout.rootfs();
    mount("overlay", &target, "overlay", MountFlags::empty(), options.as_c_str())
        .map_err(kernel("mounting the overlay", &target))?;
    mount_change(&target, MountPropagationFlags::PRIVATE).map_err(kernel("making private", &target))
}

/// Undoes [`mount_root`], however far it came.
pub(crate) fn unmount_root(layout: &Layout) {
    for path in [layout.rootfs(), layout.lower()] {
        unmount(&path, UnmountFlags::DETACH).ok();
    }
}

/// The kernel splits mount options at commas and colons.
fn escape(path: &Path) -> Result<String, RootError> {
    let not_text = || kernel("naming", path)(io::Error::from(io::ErrorKind::InvalidFilename));
    let text = path.to_str().ok_or_else(not_text)?;
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '\\' | ',' | ':') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    Ok(escaped)
}

/// Puts an empty folder over `path` in the upper layer, its parents looking as they do below.
fn hide(path: &Path, lower: &Path, upper: &Path) -> Result<(), RootError> {
    let mut below = lower.to_owned();
    let mut above = upper.to_owned();
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        below.push(name);
        above.push(name);
        let Ok(look) = fs::symlink_metadata(&below) else { return Ok(()) };
        if !look.is_dir() {
            // A file or a link where a folder was expected: there is nothing to hide behind it.
            return Ok(());
        }
        if fs::symlink_metadata(&above).is_ok() {
            continue;
        }
        fs::create_dir(&above).map_err(kernel("creating", &above))?;
        let mode = Mode::from_raw_mode(look.mode() & 0o7777);
        let owner = (Some(Uid::from_raw(look.uid())), Some(Gid::from_raw(look.gid())));
        chownat(rustix::fs::CWD, &above, owner.0, owner.1, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .map_err(kernel("giving away", &above))?;
        chmodat(rustix::fs::CWD, &above, mode, rustix::fs::AtFlags::empty())
            .map_err(kernel("setting the mode of", &above))?;
    }
    rustix::fs::lsetxattr(&above, "trusted.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(kernel("hiding", &above))
}

/// Writes the upper layer into `archive`. The program must stand still.
pub(crate) fn pack_upper(upper: &Path, archive: &Path) -> Result<(), RootError> {
    // The file handle of the lower file says nothing on another disk.
    let options = [
        "--create",
        "--numeric-owner",
        "--sparse",
        "--acls",
        "--xattrs",
        "--xattrs-include=*",
        "--xattrs-exclude=trusted.overlay.origin",
    ];
    tar("pack", &options, upper, archive)
}

/// Fills an empty upper layer from `archive`.
pub(crate) fn unpack_upper(archive: &Path, upper: &Path) -> Result<(), RootError> {
    fs::create_dir_all(upper).map_err(kernel("creating", upper))?;
    let options = [
        "--extract",
        "--numeric-owner",
        "--same-owner",
        "--same-permissions",
        "--sparse",
        "--acls",
        "--xattrs",
        "--xattrs-include=*",
        "--delay-directory-restore",
    ];
    tar("unpack", &options, upper, archive)
}

fn tar(step: &'static str, options: &[&str], folder: &Path, archive: &Path) -> Result<(), RootError> {
    let mut command = Command::new("tar");
    command.args(options).arg("--file").arg(archive).arg("--directory").arg(folder);
    if step == "pack" {
        command.arg(".");
    }
    let output = command.stdin(Stdio::null()).output().map_err(kernel("starting tar for", archive))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(RootError::Archive { step, path: archive.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_options_are_escaped() {
        assert_eq!(escape(Path::new("/a,b:c\\d")).unwrap(), "/a\\,b\\:c\\\\d");
    }
}
