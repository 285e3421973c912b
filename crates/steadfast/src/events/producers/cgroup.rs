//! Where the files of a cgroup are, in version 2's one tree or in version 1's several.
//!
//! A cgroup is named by its path below the top of its tree, as `/steadfast/web`; a path in the file system is understood as
//! well. Only reads. Read next: `pressure`, `oom` and `process`, its users.

use std::path::{Path, PathBuf};

use super::mounts::{self, Mount};

/// A place in every tree of cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroup {
    /// Below the top, beginning with `/`.
    pub(super) path: PathBuf,
    mounts: Vec<Mount>,
}

impl Cgroup {
    /// The place that `given` names: below the tops, or in the file system below one of the mounted trees.
    pub(super) fn named(given: &Path) -> Cgroup {
        let mut mounts = mounts::read().unwrap_or_default();
        mounts.retain(|mount| ["cgroup", "cgroup2"].contains(&mount.kind.as_str()));
        let below = mounts.iter().find_map(|mount| given.strip_prefix(&mount.at).ok());
        let path = Path::new("/").join(below.unwrap_or(given.strip_prefix("/").unwrap_or(given)));
        Cgroup { path, mounts }
    }

    /// Its folder in version 2's tree, where there is one.
    pub(super) fn unified(&self) -> Option<PathBuf> {
        self.folder(|mount| mount.kind == "cgroup2")
    }

    /// Its folder in the version 1 tree that limits memory, where there is one.
    pub(super) fn memory_v1(&self) -> Option<PathBuf> {
        self.folder(|mount| mount.kind == "cgroup" && mount.options.split(',').any(|one| one == "memory"))
    }

    /// Whether it is in any tree.
    pub(super) fn exists(&self) -> bool {
        self.folder(|_| true).is_some()
    }

    fn folder(&self, is_wanted: impl Fn(&Mount) -> bool) -> Option<PathBuf> {
        let below = self.path.strip_prefix("/").unwrap_or(&self.path);
        let mounts = self.mounts.iter().filter(|mount| is_wanted(mount));
        mounts.map(|mount| mount.at.join(below)).find(|folder| folder.is_dir())
    }

    /// Whether a process is in it or below, by what `/proc/PID/cgroup` says.
    pub(super) fn holds(&self, table: &str) -> bool {
        // number:controllers:path
        table.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| {
            let path = Path::new(path);
            self.path != Path::new("/") && path.starts_with(&self.path)
        })
    }
}

/// The number behind a word in a file of lines such as `oom_kill 3`.
pub(super) fn counter(file: &str, word: &str) -> Option<u64> {
    file.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_in_a_cgroup_or_below_it_in_any_tree() {
        let web = Cgroup { path: "/steadfast/web".into(), mounts: Vec::new() };
        assert!(web.holds("9:name=systemd:/\n4:memory:/steadfast/web/run\n0::/\n"));
        assert!(web.holds("0::/steadfast/web\n"));
        assert!(!web.holds("0::/steadfast/website\n4:memory:/\n"));
        assert!(!web.holds(""));
        assert_eq!(counter("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", "oom_kill"), Some(7));
        assert_eq!(counter("oom_kill_disable 0\n", "oom_kill"), None);
    }

    #[test]
    fn a_path_below_a_mounted_tree_is_the_same_as_one_below_the_top() {
        for mount in mounts::read().unwrap().iter().filter(|mount| mount.kind == "cgroup2") {
            assert_eq!(Cgroup::named(&mount.at.join("a/b")).path, Path::new("/a/b"));
        }
        assert_eq!(Cgroup::named(Path::new("/a/b")).path, Path::new("/a/b"));
    }
}
