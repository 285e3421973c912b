//! Unpacks a Debian package into a folder of its own, for the tests and the benchmarks that run its program.
//!
//! Must never install the package: its service would start, and start again with each boot. Nothing of it but the
//! program is used. Where each is looked for is in `find_serf` and `find_etcd`.

use super::{
    apt, find_etcd, find_serf,
    private::{Work, text},
    update,
};
use crate::run::Run;
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A program that is used and not installed.
struct Program {
    package: &'static str,
    purpose: &'static str,
    /// Where it goes, whatever prefix a private CRIU has.
    folder: &'static str,
    /// Where it is then.
    file: &'static str,
    find: fn() -> Option<PathBuf>,
}

const PROGRAMS: [Program; 2] = [
    Program {
        package: "serf",
        purpose: "to run and to compare with",
        folder: "/opt/steadfast/serf",
        file: find_serf::SERF_PRIVATE,
        find: find_serf::find,
    },
    Program {
        package: "etcd-server",
        purpose: "to keep the catalog in and to compare with",
        folder: "/opt/steadfast/etcd",
        file: find_etcd::ETCD_PRIVATE,
        find: find_etcd::find,
    },
];

/// Whether all of them are there.
pub(super) fn are_found() -> bool {
    PROGRAMS.iter().all(|program| (program.find)().is_some())
}

/// Unpacks those that are not found.
pub(super) fn find_or_unpack() -> Result<()> {
    PROGRAMS.iter().filter(|program| (program.find)().is_none()).try_for_each(unpack)
}

fn unpack(program: &Program) -> Result<()> {
    let Program { package, purpose, folder, file, .. } = program;
    eprintln!("setup: unpacking {package}, {purpose}, into {folder}; it is not installed");
    let folder = Path::new(folder);
    let work = Work::create(folder.parent().context("the folder lies in another")?)?;
    update();
    let archives = work.folder.join("archives");
    apt("-oAPT::Sandbox::User=root download").args([*package]).inside(&archives).read()?;
    let archive = work.packages()?.pop().with_context(|| format!("apt-get left no package of {package}"))?;
    let unpacked = work.folder.join("unpacked");
    Run::new("dpkg").args(["-x", text(&archive)?, text(&unpacked)?]).read()?;
    if folder.exists() {
        fs::rename(folder, work.folder.join("replaced"))
            .with_context(|| format!("could not move the old {package} away"))?;
    }
    fs::rename(&unpacked, folder).with_context(|| format!("could not make {}", folder.display()))?;
    (program.find)().map(drop).with_context(|| format!("the package brought no {file}"))
}
