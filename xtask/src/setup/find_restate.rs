//! Where the Restate server is: the benchmarks compare exchanges with its one-way sends.
//!
//! Must never install or start anything, and name nothing of the crate it stands in: set-up and benchmarks share this file. What
//! installs it is `restate`.

#![allow(unreachable_pub, reason = "what is public in one of them is not in another")]

use std::path::{Path, PathBuf};

/// The version that is compared with.
pub const RESTATE_VERSION: &str = "1.7.12";

/// The folder that the set-up for benchmarks makes.
pub fn folder() -> PathBuf {
    Path::new("/opt/steadfast").join(format!("restate-{RESTATE_VERSION}"))
}

/// The program, if it is there.
pub fn find() -> Option<PathBuf> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    let package = format!("node_modules/@restatedev/restate-server-linux-{architecture}/bin/restate-server");
    Some(folder().join(package)).filter(|file| file.is_file())
}
