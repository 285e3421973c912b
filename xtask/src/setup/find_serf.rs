//! Where Serf is: a test runs Steadfast beside it, and the benchmarks compare Steadfast with it.
//!
//! An installed one is taken first, then the one that the set-up unpacked. Must never install or start anything, and
//! name nothing of the crate it stands in: set-up, test and benchmark share this file. What unpacks it is `serf`.

#![allow(unreachable_pub, reason = "what is public in one of the three is not in another")]

use std::{env, path::PathBuf};

/// The one that `cargo xtask setup` unpacks.
pub const SERF_PRIVATE: &str = "/opt/steadfast/serf/usr/bin/serf";

/// The program, if there is one.
pub fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = env::split_paths(&path).map(|folder| folder.join("serf"));
    installed.chain([PathBuf::from(SERF_PRIVATE)]).find(|file| file.is_file())
}
