//! Where etcd is: tests run the catalog on it, and the benchmarks compare the embedded engine with it.
//!
//! An installed one is taken first, then the one that the set-up unpacked. Must never install or start anything, and
//! name nothing of the crate it stands in: set-up, tests and benchmarks share this file. What unpacks it is `apart`.

#![allow(unreachable_pub, reason = "what is public in one of them is not in another")]

use std::{env, path::PathBuf};

/// The one that `cargo xtask setup` unpacks.
pub const ETCD_PRIVATE: &str = "/opt/steadfast/etcd/usr/bin/etcd";

/// The program, if there is one.
pub fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = env::split_paths(&path).map(|folder| folder.join("etcd"));
    installed.chain([PathBuf::from(ETCD_PRIVATE)]).find(|file| file.is_file())
}
