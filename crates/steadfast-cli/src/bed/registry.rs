//! Who owns which bed, in a file in each bed's base folder, so that leftovers of a killed owner can be found and removed.
//!
//! A bed is stale only when the process that owned it is gone (id *and* start time); nothing else is ever removed. The hosts
//! of a killed owner are dead by themselves (`init.rs`); what remains is files, control groups, and processes that were frozen.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{BedError, Host, cgroups};

/// Where beds live, and what their folders' names begin with.
const PARENT: &str = "/tmp";
const PREFIX: &str = "steadfast-bed-";
const FILE: &str = "bed.json";

/// One bed as its owner noted it down.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registered {
    /// The bed's id.
    pub id: String,
    /// Process id of the owner.
    pub owner: u32,
    /// The owner's start time, in clock ticks since boot: with the id it names one process for ever.
    pub owner_started: u64,
    /// The bed's folder.
    pub base: PathBuf,
    /// Names of the hosts, in order.
    pub hosts: Vec<String>,
}

impl Registered {
    /// Whether the owner still runs.
    pub fn is_alive(&self) -> bool {
        start_time(self.owner) == Some(self.owner_started)
    }

    /// The owner's control socket, where it serves one.
    pub fn control(&self) -> PathBuf {
        self.base.join("control.sock")
    }
}

/// This process's note about its own bed.
#[derive(Debug)]
pub(super) struct Entry {
    registered: Registered,
}

impl Entry {
    pub(super) fn create() -> Result<Self, BedError> {
        let id: String = uuid::Uuid::new_v4().simple().to_string().chars().take(8).collect();
        let base = Path::new(PARENT).join(format!("{PREFIX}{id}"));
        fs::create_dir_all(&base).map_err(|source| BedError::File { path: base.clone(), source })?;
        let owner = std::process::id();
        let owner_started = start_time(owner).expect("this process runs");
        let entry = Self { registered: Registered { id, owner, owner_started, base, hosts: Vec::new() } };
        entry.write()?;
        Ok(entry)
    }

    pub(super) fn id(&self) -> &str {
        &self.registered.id
    }

    pub(super) fn base(&self) -> &Path {
        &self.registered.base
    }

    pub(super) fn registered(&self) -> &Registered {
        &self.registered
    }

    pub(super) fn record(&mut self, hosts: &[Host]) -> Result<(), BedError> {
        self.registered.hosts = hosts.iter().map(|host| host.name().to_owned()).collect();
        self.write()
    }

    fn write(&self) -> Result<(), BedError> {
        let path = self.base().join(FILE);
        let text = serde_json::to_vec_pretty(&self.registered).expect("plain strings and numbers");
        // Readers see the old note or the new one, never half of one.
        let draft = self.base().join("bed.json.new");
        let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &path));
        written.map_err(|source| BedError::File { path, source })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        remove_folder(self.base());
    }
}

/// The beds of this machine, stale ones too.
pub fn registered() -> Vec<Registered> {
    let entries = fs::read_dir(PARENT).into_iter().flatten().filter_map(Result::ok);
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    let mut beds: Vec<Registered> = ours
        .filter_map(|entry| {
            let bed: Registered = serde_json::from_slice(&fs::read(entry.path().join(FILE)).ok()?).ok()?;
            // A note that speaks of another folder is not to be trusted with a removal.
            (bed.base == entry.path()).then_some(bed)
        })
        .collect();
    beds.sort_by(|left, right| left.id.cmp(&right.id));
    beds
}

/// Removes what beds left behind whose owner was killed; returns how many.
pub fn cleanup_stale() -> usize {
    let stale: Vec<Registered> = registered().into_iter().filter(|bed| !bed.is_alive()).collect();
    for bed in &stale {
        let scopes: BTreeSet<String> = inits_of(bed).into_iter().flat_map(cgroups::scopes_of).collect();
        cgroups::thaw(&scopes);
        cgroups::remove(&scopes);
        remove_folder(&bed.base);
    }
    stale.len()
}

/// The file in a host's folder that names its process 1.
const INIT_FILE: &str = "init";

/// Notes down which process is a host's process 1, for the day when nobody else remembers.
pub(super) fn note_init(folder: &Path, init: u32) -> Result<(), BedError> {
    let path = folder.join(INIT_FILE);
    let text = format!("{init} {}", start_time(init).unwrap_or_default());
    fs::write(&path, text).map_err(|source| BedError::File { path, source })
}

/// Process 1 of each of the bed's hosts that cannot end because something in it is frozen.
fn inits_of(bed: &Registered) -> Vec<u32> {
    let folders = fs::read_dir(bed.base.join("hosts")).into_iter().flatten().filter_map(Result::ok);
    let notes = folders.filter_map(|folder| fs::read_to_string(folder.path().join(INIT_FILE)).ok());
    let inits = notes.filter_map(|note| {
        let (init, started) = note.split_once(' ')?;
        let (init, started) = (init.parse().ok()?, started.parse().ok()?);
        (start_time(init) == Some(started)).then_some(init)
    });
    inits.collect()
}

fn remove_folder(base: &Path) {
    if let Err(error) = fs::remove_dir_all(base)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("test bed: {} could not be removed: {error}", base.display());
    }
}

/// When a process started, in clock ticks since boot; `None` when there is no such process.
pub(super) fn start_time(id: u32) -> Option<u64> {
    cgroups::stat_field(id, 19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_told_from_a_later_process_with_its_id() {
        let id = std::process::id();
        let mut bed = Registered {
            id: "x".into(),
            owner: id,
            owner_started: start_time(id).unwrap(),
            base: PathBuf::from("/nonexistent"),
            hosts: Vec::new(),
        };
        assert!(bed.is_alive());
        bed.owner_started += 1;
        assert!(!bed.is_alive());
    }
}
