//! Chooses the CRIU for this machine: the first candidate that passes the real self-test.
//!
//! Must never believe `criu check` or a version. What the test said is written down beside the prefix, with the program's
//! size and time and the kernel's release, so that the next set-up is instant and a new kernel or program is tested again.

use super::{find, private, self_test};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The CRIU to use, when an earlier self-test of the same program on the same kernel passed.
pub(super) fn known_good(prefix: &Path) -> Option<PathBuf> {
    let notes = Notes::load(prefix);
    // A candidate that was never tested ends the search: it comes first and may be the one to use.
    let mut candidates = candidates(prefix).into_iter();
    let first = candidates.find(|path| notes.verdict(path) != Some(Verdict::Failed))?;
    (notes.verdict(&first) == Some(Verdict::Passed)).then_some(first)
}

/// Tests the candidates in order, and installs a private CRIU when none of them passes.
pub(super) fn find_or_install(prefix: &Path) -> Result<PathBuf> {
    let mut notes = Notes::load(prefix);
    if let Some(named) = find::named_by_environment() {
        let hint = format!("correct or unset {}, then repeat `cargo xtask setup`", find::CRIU_VARIABLE);
        examine(&named, &mut notes).context(hint)?;
        return Ok(named);
    }
    for path in candidates(prefix) {
        match examine(&path, &mut notes) {
            Ok(()) => return Ok(path),
            Err(reason) => eprintln!("setup: {reason}; looking for another"),
        }
    }
    install(prefix, &mut notes)
}

/// In the order in which the product looks: what the environment names, `PATH`, the private one.
fn candidates(prefix: &Path) -> Vec<PathBuf> {
    if let Some(named) = find::named_by_environment() {
        return vec![named];
    }
    let mut candidates = find::unnamed_candidates();
    let private = prefix.join("criu/criu");
    candidates.retain(|path| *path != private && *path != Path::new(find::CRIU_PRIVATE));
    if private.is_file() {
        candidates.push(private);
    }
    candidates
}

fn examine(path: &Path, notes: &mut Notes) -> Result<()> {
    find::find_criu(Some(path))?;
    // A failure is not believed twice: the machine may have been at fault.
    if notes.verdict(path) == Some(Verdict::Passed) {
        return Ok(());
    }
    let result = self_test::self_test(path);
    notes.record(path, if result.is_ok() { Verdict::Passed } else { Verdict::Failed })?;
    let passed = result?;
    eprintln!(
        "setup: {} dumped and restored a program with an open TCP connection in {:.1} s",
        path.display(),
        passed.elapsed.as_secs_f64()
    );
    Ok(())
}

fn install(prefix: &Path, notes: &mut Notes) -> Result<PathBuf> {
    for suite in private::suites()? {
        eprintln!(
            "setup: looking for a CRIU in Debian's suite {suite}, to be kept apart under {}",
            prefix.display()
        );
        let unpacked = private::unpack(prefix, &suite);
        let passed = unpacked.and_then(|folder| examine(&folder.join("criu"), notes).map(|()| folder));
        match passed {
            Ok(folder) => {
                let lasting = private::choose(prefix, &folder)?;
                notes.record(&lasting, Verdict::Passed)?;
                return Ok(lasting);
            }
            Err(error) => eprintln!("setup: none from {suite}: {error:#}"),
        }
    }
    bail!(
        "no CRIU that works on this kernel could be had, for the reasons above; with one of version {}.{} or newer, run: {}=/path/to/criu cargo xtask setup",
        find::VERSION_MIN.0,
        find::VERSION_MIN.1,
        find::CRIU_VARIABLE
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
        }
    }
}

/// What earlier self-tests said: one line each, `passed KERNEL SIZE SECONDS.NANOSECONDS PATH`.
#[derive(Debug)]
struct Notes {
    file: PathBuf,
    kernel: String,
    lines: Vec<String>,
}

impl Notes {
    /// Notes that are missing or cannot be read say nothing, and the test is run again.
    fn load(prefix: &Path) -> Self {
        let file = prefix.join("criu-self-tests");
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let lines = fs::read_to_string(&file).unwrap_or_default().lines().map(str::to_owned).collect();
        Self { file, kernel: kernel.trim().to_owned(), lines }
    }

    fn verdict(&self, path: &Path) -> Option<Verdict> {
        let subject = self.subject(path)?;
        let says = |verdict: &Verdict| self.lines.contains(&format!("{} {subject}", verdict.word()));
        [Verdict::Passed, Verdict::Failed].into_iter().find(says)
    }

    fn record(&mut self, path: &Path, verdict: Verdict) -> Result<()> {
        let subject = self.subject(path).with_context(|| format!("{} is gone", path.display()))?;
        let same_path = format!(" {}", path.display());
        self.lines.retain(|line| !line.ends_with(&same_path));
        self.lines.push(format!("{} {subject}", verdict.word()));
        let text = self.lines.join("\n") + "\n";
        fs::write(&self.file, text).with_context(|| format!("could not write {}", self.file.display()))
    }

    fn subject(&self, path: &Path) -> Option<String> {
        let found = fs::metadata(path).ok()?;
        let (size, seconds, nanoseconds) = (found.size(), found.mtime(), found.mtime_nsec());
        Some(format!("{} {size} {seconds}.{nanoseconds:09} {}", self.kernel, path.display()))
    }
}
