//! Installs schemathesis, of one version, into a folder of its own, for the test of the HTTP API.
//!
//! Must never touch the system's Python: everything goes into a virtual environment, which is whole or not there. Where it
//! is looked for is in `find_schemathesis`.

use super::{
    find_schemathesis::{SCHEMATHESIS_VERSION, find, folder},
    install_programs, whole_or_not,
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
    eprintln!("setup: installing schemathesis into {}, which tests the HTTP API", folder.display());
    // It has no program to look for; where it is installed nothing happens.
    install_programs(&[("python3-venv", "completes such folders")])?;
    whole_or_not(&folder, |path| {
        Run::new("/usr/bin/python3").args(["-m", "venv", path]).read()?;
        let wanted = format!("schemathesis=={SCHEMATHESIS_VERSION}");
        Run::new(&format!("{path}/bin/python"))
            .words("-m pip install --quiet")
            .args([&wanted])
            .read()
            .map(drop)
    })?;
    find().map(drop).context("the package brought no program `schemathesis`")
}
