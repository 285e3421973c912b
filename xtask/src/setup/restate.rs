//! Installs the Restate server, of one version, into a folder of its own, for the benchmark of exchanges.
//!
//! Must never touch the system's node modules: everything goes into one folder, which is whole or not there. Where it is
//! looked for is in `find_restate`.

use super::{
    find_restate::{RESTATE_VERSION, find, folder},
    has_program, install_programs,
};
use crate::run::Run;
use anyhow::{Context, Result};
use std::fs;

/// Whether it is there.
pub(super) fn is_found() -> bool {
    find().is_some()
}

/// Installs it where it is not.
pub(super) fn find_or_install() -> Result<()> {
    if is_found() {
        return Ok(());
    }
    let folder = folder();
    eprintln!("setup: installing the Restate server into {}, to compare with", folder.display());
    if !has_program("npm") {
        install_programs(&[("npm", "brings the Restate server")])?;
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("could not remove {}", folder.display()))?;
    }
    let path = folder.to_str().context("the folder's name is text")?;
    let wanted = format!("@restatedev/restate-server@{RESTATE_VERSION}");
    let installed =
        Run::new("npm").words("install --no-audit --no-fund --prefix").args([path, &wanted]).read();
    if installed.is_err() {
        // A half one would pass for a whole one if its program were there already.
        let _ = fs::remove_dir_all(&folder);
    }
    installed?;
    find().map(drop).context("the package brought no program `restate-server` for this machine")
}
