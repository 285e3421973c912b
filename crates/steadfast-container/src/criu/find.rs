//! Decides which CRIU program this host uses, and whether it is new enough to be tried at all.
//!
//! Must never start a dump or a restore: a version says only that a program is worth testing, never that it works on
//! this kernel. That is what `self_test.rs` beside this file shows. `xtask` includes both files as they are, so they
//! use nothing but the standard library and `thiserror`.

use std::{
    env,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The variable that names the CRIU to use where the configuration names none.
pub const CRIU_VARIABLE: &str = "STEADFAST_CRIU";

/// Where set-up puts a private CRIU when the distribution's own does not pass the self-test.
pub const CRIU_PRIVATE: &str = "/opt/steadfast/criu/criu";

/// The oldest CRIU, as (major, minor), that can image TCP and UDP sockets on the kernels we run on.
pub const VERSION_MIN: (u32, u32) = (4, 2);

/// Why no CRIU can be used. Nothing was changed by the search.
#[derive(Debug, thiserror::Error)]
pub enum FindCriuError {
    /// A program that was named on purpose is not there, or is not a file. Correct the name.
    #[error("{origin} names {}, which is not there; give the path of a CRIU {}.{} or newer", .path.display(), VERSION_MIN.0, VERSION_MIN.1)]
    Missing {
        /// Who named it: the configuration or the environment.
        origin: &'static str,
        /// What was named.
        path: PathBuf,
    },
    /// The program could not be started. Check its permissions and its loader.
    #[error("{} could not be started ({source}); give the path of a working CRIU", .path.display())]
    NotStarted {
        /// The program.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The program ran, but its answer holds no version. It is probably not CRIU.
    #[error("{} answered `--version` with {answer:?}; a CRIU answers `Version: 4.2` or newer", .path.display())]
    NoVersion {
        /// The program.
        path: PathBuf,
        /// The first line of what it printed.
        answer: String,
    },
    /// The program is an old CRIU. Install a newer one, or run the set-up.
    #[error("{} is CRIU {}.{}.{}, too old for this kernel: it cannot image open sockets; CRIU {}.{} or newer is needed", .path.display(), .version.0, .version.1, .version.2, VERSION_MIN.0, VERSION_MIN.1)]
    TooOld {
        /// The program.
        path: PathBuf,
        /// What it says it is: (major, minor, patch).
        version: (u32, u32, u32),
    },
    /// Nothing was named and nothing was found. Install CRIU, or name one.
    #[error("no criu on PATH and none at {CRIU_PRIVATE}; install CRIU {}.{} or newer, or set {CRIU_VARIABLE} to its path", VERSION_MIN.0, VERSION_MIN.1)]
    NotFound,
}

/// The CRIU to use: the configured one, else `$STEADFAST_CRIU`, else the first of `PATH` and the private place that is
/// new enough. One that was named on purpose is used or refused, never silently replaced.
pub fn find_criu(configured: Option<&Path>) -> Result<PathBuf, FindCriuError> {
    if let Some(path) = configured {
        return accept_named("the configuration", path);
    }
    if let Some(path) = named_by_environment() {
        return accept_named(CRIU_VARIABLE, &path);
    }
    let mut refusal = FindCriuError::NotFound;
    for path in unnamed_candidates() {
        match accept(&path) {
            Ok(()) => return Ok(path),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

/// The version of a CRIU as (major, minor, patch), whatever it is; compare it with [`VERSION_MIN`].
pub fn version(criu: &Path) -> Result<(u32, u32, u32), FindCriuError> {
    let output = Command::new(criu)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| FindCriuError::NotStarted { path: criu.to_owned(), source })?;
    let answer = String::from_utf8_lossy(&output.stdout);
    answer.lines().find_map(parse_version).ok_or_else(|| FindCriuError::NoVersion {
        path: criu.to_owned(),
        answer: answer.lines().next().unwrap_or_default().to_owned(),
    })
}

/// The CRIU that `$STEADFAST_CRIU` names; an empty value names none.
pub fn named_by_environment() -> Option<PathBuf> {
    env::var_os(CRIU_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The programs to look at when none was named: every `criu` on `PATH`, then the private one; only those that exist.
pub fn unnamed_candidates() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = candidates_on(&path);
    candidates.push(PathBuf::from(CRIU_PRIVATE));
    candidates.retain(|candidate| candidate.is_file());
    candidates
}

fn candidates_on(path: &OsStr) -> Vec<PathBuf> {
    env::split_paths(path).filter(|folder| folder.is_absolute()).map(|folder| folder.join("criu")).collect()
}

fn accept_named(origin: &'static str, path: &Path) -> Result<PathBuf, FindCriuError> {
    if !path.is_file() {
        return Err(FindCriuError::Missing { origin, path: path.to_owned() });
    }
    accept(path)?;
    Ok(path.to_owned())
}

fn accept(path: &Path) -> Result<(), FindCriuError> {
    let version = version(path)?;
    if (version.0, version.1) < VERSION_MIN {
        return Err(FindCriuError::TooOld { path: path.to_owned(), version });
    }
    Ok(())
}

pub(crate) fn parse_version(line: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = line.strip_prefix("Version:")?.trim().split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next().map_or(Some(0), |number| number.parse().ok())?;
    let patch = numbers.next().map_or(Some(0), |number| number.parse().ok())?;
    Some((major, minor, patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_two_and_three_numbers_are_read() {
        assert_eq!(parse_version("Version: 4.2.1"), Some((4, 2, 1)));
        assert_eq!(parse_version("Version: 4.2"), Some((4, 2, 0)));
        assert_eq!(parse_version("Version: 4"), Some((4, 0, 0)));
        assert_eq!(parse_version("Version: four"), None);
        assert_eq!(parse_version("GitID: v4.2.1"), None);
    }

    #[test]
    fn a_configured_program_that_is_missing_is_refused_by_name() {
        let refusal = find_criu(Some(Path::new("/nowhere/criu"))).unwrap_err().to_string();
        assert!(refusal.contains("the configuration names /nowhere/criu"), "{refusal}");
    }

    #[test]
    fn a_program_that_is_not_criu_is_refused() {
        let refusal = find_criu(Some(Path::new("/bin/true"))).unwrap_err();
        assert!(matches!(refusal, FindCriuError::NoVersion { .. }), "{refusal}");
    }

    #[test]
    fn relative_folders_on_the_path_are_ignored() {
        let found = candidates_on(OsStr::new("bin:/usr/sbin:./x"));
        assert_eq!(found, [PathBuf::from("/usr/sbin/criu")]);
    }
}
