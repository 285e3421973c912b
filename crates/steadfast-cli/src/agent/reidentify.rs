//! `reidentify`: gives a copied data folder an identity of its own (PROTOCOLS 4.5, U2).
//!
//! Only a folder that belongs to no cluster changes its id. A copy belongs to its original's cluster, and is recognised
//! by the marks under which its id was made; what it must not share is forgotten first, the membership before all, so
//! that a crash in between leaves a folder that is nobody's. It contacts nobody.

use std::path::Path;

use serde::Serialize;
use steadfast::identity::Identity;

use super::{planted, state};
use crate::codes::Code;
use crate::config::Config;
use crate::failure::{Failure, disk};

/// What of the folder speaks for the old identity, besides the membership.
const FORGOTTEN: [&str; 2] = ["catalog", "token"];

/// Whether a folder in its own place may be taken out of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// No: a member is refused.
    No,
    /// Yes: the cluster has removed this node for good.
    Yes,
}

/// What `reidentify` made of this node.
#[derive(Clone, Debug, Serialize)]
pub struct Reidentified {
    /// The id before.
    pub before: String,
    /// The id from now on.
    pub node_id: String,
}

/// Takes a new identity.
pub fn reidentify(config: &Config, removed: Removed) -> Result<Reidentified, Failure> {
    if !config.data.join("identity").exists() {
        let message = format!("{} holds no identity; `steadfast join` makes one", config.data.display());
        return Err(Failure::new(Code::NotConfigured, message));
    }
    let mut identity = state::open(&config.data)?;
    let before = identity.node();
    refuse_original(&identity, removed)?;
    let failed = |error| state::identity_failure(&error);
    identity.forget_membership().map_err(failed)?;
    planted::crash("reidentify:forgotten");
    for name in FORGOTTEN {
        forget(&config.data.join(name))?;
    }
    let node = identity.reidentify().map_err(failed)?;
    Ok(Reidentified { before: before.to_string(), node_id: node.to_string() })
}

/// Refuses a member in its own place: it would lose its place in the cluster, which goes on to count it.
fn refuse_original(identity: &Identity, removed: Removed) -> Result<(), Failure> {
    let Some(membership) = identity.membership() else { return Ok(()) };
    if identity.moved_from().is_some() || removed == Removed::Yes {
        return Ok(());
    }
    Err(Failure::new(
        Code::AlreadyMember,
        format!(
            "{} is where {} of cluster {} was made, so this is no copy, and a member keeps its identity; if the cluster has removed it for good, repeat this with --removed",
            identity.directory().display(),
            membership.node_name,
            membership.cluster_name,
        ),
    ))
}

fn forget(path: &Path) -> Result<(), Failure> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(disk("remove", path, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::found;
    use crate::config::{EXAMPLE, check_text};

    fn config(data: &Path) -> Config {
        Config { data: data.to_path_buf(), ..check_text("example", EXAMPLE, |_| None).unwrap() }
    }

    fn member(data: &Path) -> String {
        let config = config(data);
        let made = found::init(&config, "home", std::time::Duration::from_secs(1));
        crate::commands::block_on(made).unwrap().unwrap().node_id
    }

    #[test]
    fn a_member_in_its_own_place_keeps_its_identity() {
        let folder = tempfile::tempdir().unwrap();
        let node = member(folder.path());
        let refused = reidentify(&config(folder.path()), Removed::No).unwrap_err();
        assert_eq!(refused.code, Code::AlreadyMember);
        let identity = state::open(folder.path()).unwrap();
        assert_eq!(identity.node().to_string(), node);
        assert!(identity.membership().is_some());
        drop(identity);
        let done = reidentify(&config(folder.path()), Removed::Yes).unwrap();
        assert_eq!(done.before, node);
        assert!(state::open(folder.path()).unwrap().membership().is_none());
    }

    #[test]
    fn a_copy_forgets_what_was_the_originals_and_gets_an_id_of_its_own() {
        let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let node = member(folder.path());
        for name in ["identity", "incarnation", "membership"] {
            std::fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
        }
        std::fs::create_dir(copy.path().join("catalog")).unwrap();
        let done = reidentify(&config(copy.path()), Removed::No).unwrap();
        assert_eq!(done.before, node);
        assert_ne!(done.node_id, node);
        let identity = state::open(copy.path()).unwrap();
        assert_eq!(identity.node().to_string(), done.node_id);
        assert!(identity.membership().is_none() && identity.moved_from().is_none());
        assert!(!copy.path().join("catalog").exists());
        // Its own folder again, and nobody's: another new id does no harm.
        drop(identity);
        reidentify(&config(copy.path()), Removed::No).unwrap();
    }

    #[test]
    fn a_folder_without_an_identity_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        assert_eq!(reidentify(&config(&data), Removed::No).unwrap_err().code, Code::NotConfigured);
        assert!(!data.exists());
    }
}
