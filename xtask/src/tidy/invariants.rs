//! The rule on checkers: each one in the simulator names, in its opening words, the invariant that it checks.
//!
//! The ids are those of `docs/protocols`, so that a reader gets from a promise to the code that tries to break it, and
//! a checker whose promise was dropped does not outlive it.

use super::Source;
use std::collections::BTreeSet;

const CHECKERS: &str = "crates/steadfast-sim/src/checkers/";
const PROTOCOLS: &str = "docs/protocols/";

pub(super) fn breaches(sources: &[Source]) -> Vec<String> {
    let pages =
        sources.iter().filter(|source| source.path.starts_with(PROTOCOLS) && source.path.ends_with(".md"));
    let known: BTreeSet<&str> = pages.flat_map(|page| ids(page.text())).collect();
    let checkers = sources.iter().filter(|source| source.path.starts_with(CHECKERS) && source.is_rust());
    let mut breaches = Vec::new();
    for checker in checkers.filter(|checker| !checker.path.ends_with("/mod.rs")) {
        let opening = checker.text().lines().take_while(|line| line.starts_with("//!"));
        if !opening.flat_map(ids).any(|id| known.contains(id)) {
            breaches.push(format!(
                "{}:1: name the invariant that it checks in its `//!`, by an id that a page in {PROTOCOLS} lists",
                checker.path
            ));
        }
    }
    breaches
}

/// Words such as `FD1`, `Q2` or `E-S1`: capitals, then a number or a hyphen and more of the same.
fn ids(text: &str) -> impl Iterator<Item = &str> {
    let edge = |character: char| !character.is_ascii_alphanumeric() && character != '-';
    text.split(edge).filter(|word| {
        word.starts_with(|first: char| first.is_ascii_uppercase())
            && word.chars().all(|character| {
                character.is_ascii_uppercase() || character.is_ascii_digit() || character == '-'
            })
            && word.contains(|character: char| character.is_ascii_digit() || character == '-')
            && !word.ends_with('-')
    })
}

#[cfg(test)]
mod tests {
    use super::{super::source, *};

    fn checker(opening: &str) -> Vec<String> {
        let page = source(
            "docs/protocols/view.md",
            "**VM1** view ids are consecutive. NEVER-TWO: one node at most.",
        );
        breaches(&[page, source("crates/steadfast-sim/src/checkers/view.rs", opening)])
    }

    #[test]
    fn a_checker_names_a_known_invariant() {
        assert!(checker("//! VM1: ids are consecutive.\n").is_empty());
        assert!(checker("//! Holds (NEVER-TWO).\n").is_empty());
    }

    #[test]
    fn a_checker_without_one_or_with_an_unknown_one_is_found() {
        assert_eq!(checker("//! Checks the view.\n//! A UUID is an id.\n").len(), 1);
        assert_eq!(checker("//! VM9: something else.\n").len(), 1);
        assert_eq!(checker("//! The view.\n\n// VM1\n").len(), 1);
    }
}
