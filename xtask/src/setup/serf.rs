//! Unpacks Debian's Serf into a folder of its own, for the test and the benchmarks that run it.
//!
//! Must never install the package: its service would start, and start again with each boot. Nothing of it but the
//! program is used. Where it is looked for is in `find_serf`.

use super::{
    apt, find_serf,
    private::{Work, text},
    update,
};
use crate::run::Run;
use anyhow::{Context, Result};
use std::{fs, path::Path};

/// Where it goes, whatever prefix a private CRIU has.
const FOLDER: &str = "/opt/steadfast/serf";

/// Unpacks it where none is found.
pub(super) fn find_or_unpack() -> Result<()> {
    if find_serf::find().is_some() {
        return Ok(());
    }
    eprintln!("setup: unpacking serf, to run and to compare with, into {FOLDER}; it is not installed");
    let folder = Path::new(FOLDER);
    let work = Work::create(folder.parent().context("the folder lies in another")?)?;
    update();
    let archives = work.folder.join("archives");
    apt("-oAPT::Sandbox::User=root download serf").inside(&archives).read()?;
    let package = work.packages()?.pop().context("apt-get left no package of serf")?;
    let unpacked = work.folder.join("unpacked");
    Run::new("dpkg").args(["-x", text(&package)?, text(&unpacked)?]).read()?;
    if folder.exists() {
        fs::rename(folder, work.folder.join("replaced")).context("could not move the old serf away")?;
    }
    fs::rename(&unpacked, folder).with_context(|| format!("could not make {FOLDER}"))?;
    let found = find_serf::find();
    found.map(drop).with_context(|| format!("the package brought no {}", find_serf::SERF_PRIVATE))
}
