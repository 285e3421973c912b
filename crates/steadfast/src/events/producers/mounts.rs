//! The mount table as the kernel gives it: what is mounted where, from which device.
//!
//! Only reads. It decides which file systems hold data of this machine (`is_real`). Read next: `disk` and `cgroup`, its users.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The kernel's table of this process.
pub(super) const TABLE: &str = "/proc/self/mountinfo";
/// Mounts that are read at most.
const MOUNTS_MAX: usize = 16_384;

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// The device's number, `254:0`.
    pub(super) number: String,
    /// The part of the file system that is mounted.
    pub(super) root: PathBuf,
    /// Where it is mounted.
    pub(super) at: PathBuf,
    /// The kind of file system.
    pub(super) kind: String,
    /// What it is mounted from: a device, or whatever whoever mounted it wrote.
    pub(super) source: String,
    /// Options of the file system, separated by commas.
    pub(super) options: String,
}

/// What is mounted, in the order of mounting.
pub(super) fn read() -> io::Result<Vec<Mount>> {
    let table = std::fs::read_to_string(TABLE)?;
    Ok(table.lines().take(MOUNTS_MAX).filter_map(parse).collect())
}

/// The mount that holds an absolute path without links.
pub(super) fn holder<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    // Of two mounts at one place the later one hides the earlier.
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.at))
        .max_by_key(|mount| mount.at.components().count())
}

/// Whether a file system keeps data of this machine that can fill up: on a device, or a pool of some.
pub(super) fn is_real(mount: &Mount) -> bool {
    // Images are always full.
    let is_image = ["squashfs", "iso9660", "erofs", "cramfs", "udf"].contains(&mount.kind.as_str());
    let is_pool = ["zfs", "btrfs", "bcachefs"].contains(&mount.kind.as_str());
    !is_image && (is_pool || mount.source.starts_with("/dev/"))
}

/// Whether asking about a file system may have to wait for another machine or program.
pub(super) fn is_remote(mount: &Mount) -> bool {
    let kinds = ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "afs", "virtiofs"];
    kinds.contains(&mount.kind.as_str()) || mount.kind.starts_with("fuse")
}

fn parse(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(2);
    let (number, root, at) = (before.next()?, before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (kind, source, options) = (after.next()?, after.next()?, after.next().unwrap_or_default());
    Some(Mount {
        number: number.to_owned(),
        root: unescape(root).into(),
        at: unescape(at).into(),
        kind: kind.to_owned(),
        source: unescape(source).to_string_lossy().into_owned(),
        options: options.to_owned(),
    })
}

/// Blanks and the like stand as a backslash and three octal digits.
fn unescape(text: &str) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.first_chunk::<3>().filter(|_| *first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_blanks() {
        let line =
            "36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!(mount.at, Path::new("/mnt/a b"));
        assert_eq!((mount.number.as_str(), mount.kind.as_str()), ("98:0", "ext3"));
        assert_eq!((mount.source.as_str(), mount.options.as_str()), ("/dev/root", "rw,errors=continue"));
        assert!(is_real(&mount) && !is_remote(&mount));
        assert_eq!(unescape("\\04"), "\\04");
        for end in 0..line.len() {
            let _ = parse(&line[..end]);
        }
    }

    #[test]
    fn the_last_mount_at_the_longest_path_holds_it() {
        let mount = |at: &str, source: &str| parse(&format!("1 1 0:1 / {at} rw - ext4 {source} rw")).unwrap();
        let mounts = [mount("/", "/dev/a"), mount("/var", "/dev/b"), mount("/var", "/dev/c")];
        let source = |path: &str| holder(&mounts, Path::new(path)).unwrap().source.as_str();
        assert_eq!(source("/var/log"), "/dev/c");
        assert_eq!(source("/variable"), "/dev/a");
    }
}
