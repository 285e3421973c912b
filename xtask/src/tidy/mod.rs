//! The house rules that no compiler checks, as a check that only reads and as a test.
//!
//! Decides what counts as a breach and words it so that the next step is plain. Must never rewrite anything: that is
//! `cargo xtask fix`. Each rule is one function from the repository's files to breaches; the rules themselves, with
//! their reasons, are in CONTRIBUTING.md.

mod invariants;
mod order;
mod shape;
mod words;

use crate::run::{Run, repository};
use anyhow::{Context, Result, bail};
use std::{fs, path::Path};

/// A file of the repository: tracked, or new and not ignored.
#[derive(Debug)]
struct Source {
    /// Its path from the top of the repository.
    path: String,
    /// Its size in bytes.
    size_bytes: u64,
    /// Its text; `None` when it is not UTF-8.
    text: Option<String>,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }
}

pub(crate) fn task(arguments: &[String]) -> Result<()> {
    if let Some(argument) = arguments.first() {
        bail!("`tidy` takes no arguments, not `{argument}`");
    }
    check()
}

/// Prints every breach of every rule, and fails if there is one.
pub(crate) fn check() -> Result<()> {
    let breaches = breaches(&repository())?;
    for breach in &breaches {
        eprintln!("{breach}");
    }
    match breaches.len() {
        0 => Ok(()),
        1 => bail!("one house rule is broken, see above; check again with `cargo xtask tidy`"),
        count => bail!("{count} house rules are broken, see above; check again with `cargo xtask tidy`"),
    }
}

fn breaches(top: &Path) -> Result<Vec<String>> {
    let sources = sources(top)?;
    let mut breaches = words::breaches(&sources);
    breaches.extend(shape::breaches(&sources));
    breaches.extend(order::breaches(&sources));
    breaches.extend(invariants::breaches(&sources));
    breaches.sort();
    Ok(breaches)
}

fn sources(top: &Path) -> Result<Vec<Source>> {
    let listed = Run::new("git")
        .words("-c safe.directory=* ls-files -z --cached --others --exclude-standard")
        .read()?;
    // What others wrote keeps their ways.
    let ours = |path: &&str| !path.is_empty() && !path.starts_with("vendor/");
    let mut paths: Vec<&str> = listed.split('\0').filter(ours).collect();
    paths.sort_unstable();
    paths.dedup();
    let mut sources = Vec::new();
    for path in paths {
        let full = top.join(path);
        // What git lists may just have been removed, and a link is checked where it leads.
        if !fs::symlink_metadata(&full).is_ok_and(|found| found.is_file()) {
            continue;
        }
        let bytes = fs::read(&full).with_context(|| format!("could not read {path}"))?;
        let size_bytes = bytes.len() as u64;
        sources.push(Source { path: path.to_owned(), size_bytes, text: String::from_utf8(bytes).ok() });
    }
    Ok(sources)
}

#[cfg(test)]
fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), size_bytes: text.len() as u64, text: Some(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_keeps_its_house_rules() {
        let breaches = breaches(&repository()).unwrap();
        assert!(breaches.is_empty(), "{}", breaches.join("\n"));
    }
}
