//! The control groups that a host's agent made, found and freed from outside.
//!
//! All hosts of all beds share the machine's one control-group tree, and a group outlives its processes; after a host was
//! killed nobody inside is left to clean up. This file touches only groups below `steadfast/<scope>` whose scope a process of
//! that host was seen in. Read `spaces.rs` for when.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the machine mounts its control groups.
const ROOT: &str = "/sys/fs/cgroup";
/// The group under which every agent keeps its own.
const PARENT: &str = "steadfast";
/// How long emptied groups may take until the kernel lets them go.
const EMPTY_MAX: Duration = Duration::from_secs(5);
/// Nesting that is walked at most; ours is three deep.
const DEPTH_MAX: usize = 16;

/// The scopes that processes of the host whose process 1 is `init` are in now.
pub(super) fn scopes_of(init: u32) -> BTreeSet<String> {
    processes_of(init).into_iter().flat_map(scopes_of_process).collect()
}

/// The machine's ids of all processes of the host whose process 1 is `init`, those in nested name spaces too.
pub(super) fn processes_of(init: u32) -> BTreeSet<u32> {
    let Ok(home) = fs::read_link(format!("/proc/{init}/ns/pid")) else { return BTreeSet::new() };
    if fs::read_link("/proc/self/ns/pid").is_ok_and(|own| own == home) {
        // Not a host of a bed: the machine's own processes are never ours to touch.
        return BTreeSet::new();
    }
    let parents = parents();
    let in_home = |id: u32| fs::read_link(format!("/proc/{id}/ns/pid")).is_ok_and(|space| space == home);
    let mut known: BTreeSet<u32> = parents.keys().copied().filter(|id| in_home(*id)).collect();
    // A nested name space's processes descend from one of ours; each round finds one more generation.
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(id, parent)| known.contains(parent) && !known.contains(id))
            .map(|(id, _)| *id)
            .collect();
        if more.is_empty() {
            return known;
        }
        known.extend(more);
    }
}

/// Whether any process of the killed host, except its process 1, can still run.
pub(super) fn is_anything_alive(init: u32) -> bool {
    let mut others = processes_of(init);
    others.remove(&init);
    others.into_iter().any(|id| !matches!(stat_field(id, 0).as_deref(), None | Some("Z" | "X")))
}

fn parents() -> BTreeMap<u32, u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|id| Some((id, parent_of(id)?)))
        .collect()
}

fn parent_of(id: u32) -> Option<u32> {
    stat_field(id, 1)?.parse().ok()
}

/// A word of `/proc/<id>/stat` after the command: 0 is the state, 1 the parent, 19 the start time.
pub(super) fn stat_field(id: u32, index: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The command stands in brackets and may hold any byte.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(index).map(str::to_owned)
}

fn scopes_of_process(id: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap_or_default();
    text.lines().filter_map(scope_in_line).collect()
}

/// The scope in one line of `/proc/<id>/cgroup`, such as `5:freezer:/steadfast/alpha-1/training`.
fn scope_in_line(line: &str) -> Option<String> {
    let path = line.splitn(3, ':').nth(2)?;
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    while let Some(part) = parts.next() {
        if part == PARENT {
            return parts.next().map(str::to_owned);
        }
    }
    None
}

/// Thaws every group of the scopes, and kills what is in them: their host is dead.
pub(super) fn thaw(scopes: &BTreeSet<String>) {
    for group in scopes.iter().flat_map(|scope| folders_of(scope)).flat_map(|top| tree(&top)) {
        // Each kind of group has some of these files only; a missing one is not ours to write.
        write_if_there(&group.join("cgroup.kill"), "1");
        write_if_there(&group.join("cgroup.freeze"), "0");
        write_if_there(&group.join("freezer.state"), "THAWED");
    }
}

/// Removes the groups of the scopes once they are empty.
pub(super) fn remove(scopes: &BTreeSet<String>) {
    let give_up = Instant::now() + EMPTY_MAX;
    for top in scopes.iter().flat_map(|scope| folders_of(scope)) {
        for group in tree(&top).into_iter().rev() {
            while group.exists() && fs::remove_dir(&group).is_err() && Instant::now() < give_up {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn folders_of(scope: &str) -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    let mut hierarchies = vec![root.to_path_buf()];
    hierarchies.extend(fs::read_dir(root).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())));
    hierarchies.into_iter().map(|path| path.join(PARENT).join(scope)).filter(|path| path.is_dir()).collect()
}

/// A group and all below it, parents first.
fn tree(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![(top.to_path_buf(), 0)];
    let mut next = 0;
    while let Some((group, depth)) = found.get(next).cloned() {
        next += 1;
        if depth == DEPTH_MAX {
            continue;
        }
        let entries = fs::read_dir(&group).into_iter().flatten().filter_map(Result::ok);
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(below.map(|entry| (entry.path(), depth + 1)));
    }
    found.into_iter().map(|(group, _)| group).collect()
}

fn write_if_there(file: &Path, text: &str) {
    if file.exists() {
        // The group may vanish between the two calls; then there is nothing left to do.
        let _ = fs::write(file, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_scope_below_our_parent_only() {
        assert_eq!(scope_in_line("5:freezer:/steadfast/alpha-1/training").as_deref(), Some("alpha-1"));
        assert_eq!(scope_in_line("0::/outer/steadfast/beta/x/run").as_deref(), Some("beta"));
        assert_eq!(scope_in_line("0::/user.slice/steadfast").as_deref(), None);
        assert_eq!(scope_in_line("0::/").as_deref(), None);
        assert_eq!(scope_in_line("").as_deref(), None);
    }

    #[test]
    fn the_machines_own_processes_are_never_taken_for_a_host() {
        assert!(processes_of(std::process::id()).is_empty());
        assert!(processes_of(1).is_empty());
        assert_eq!(parent_of(std::process::id()), Some(std::os::unix::process::parent_id()));
    }
}
