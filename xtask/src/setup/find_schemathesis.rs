//! Where schemathesis is, which asks the HTTP API what its OpenAPI document promises.
//!
//! Must never install or start anything, and name nothing of the crate it stands in: set-up and tests share this file. What
//! installs it is `schemathesis`.

#![allow(unreachable_pub, reason = "what is public in one of them is not in another")]

use std::path::{Path, PathBuf};

/// The only version that is used: what a seed stands for differs between versions.
pub const SCHEMATHESIS_VERSION: &str = "4.32.5";

/// The folder that `cargo xtask setup` makes.
pub fn folder() -> PathBuf {
    Path::new("/opt/steadfast").join(format!("schemathesis-{SCHEMATHESIS_VERSION}"))
}

/// The program, if it is there.
pub fn find() -> Option<PathBuf> {
    Some(folder().join("bin/schemathesis")).filter(|file| file.is_file())
}
