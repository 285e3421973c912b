//! Installs the Restate server, of one version, into a folder of its own, for the benchmark of exchanges.
//!
//! Must never touch the system's node modules: everything goes into one folder, which is whole or not there. Where it is
//! looked for is in `find_restate`.

use super::{
    find_restate::{RESTATE_VERSION, find, folder},
    has_program, install_programs, whole_or_not,
};
use crate::run::Run;
use anyhow::{Context, Result};

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
    whole_or_not(&folder, |path| {
        let wanted = format!("@restatedev/restate-server@{RESTATE_VERSION}");
        Run::new("npm").words("install --no-audit --no-fund --prefix").args([path, &wanted]).read().map(drop)
    })?;
    find().map(drop).context("the package brought no program `restate-server` for this machine")
}
