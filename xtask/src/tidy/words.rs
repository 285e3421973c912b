//! Rules on files of any kind: no large blobs, and no name of a package registry's host.
//!
//! The hosts are spelled in pieces here, so that this file keeps its own rule. Lock files are written by cargo and hold
//! what cargo puts there.

use super::Source;

const SIZE_BYTES_MAX: u64 = 512 * 1024;

/// Machines reach registries through their own clients and settings; a host in a file would go round both.
const HOSTS: [[&str; 2]; 4] =
    [["deb.debian", ".org"], ["crates", ".io"], ["pypi", ".org"], ["registry.npmjs", ".org"]];

pub(super) fn breaches(sources: &[Source]) -> Vec<String> {
    sources.iter().flat_map(|source| blob(source).into_iter().chain(hosts(source))).collect()
}

fn blob(source: &Source) -> Option<String> {
    let Source { path, size_bytes, .. } = source;
    (*size_bytes > SIZE_BYTES_MAX).then(|| {
        format!("{path}: {size_bytes} bytes; a file in the repository has at most {SIZE_BYTES_MAX}, make it on demand")
    })
}

fn hosts(source: &Source) -> Vec<String> {
    if source.path.ends_with("Cargo.lock") {
        return Vec::new();
    }
    let names: Vec<String> = HOSTS.iter().map(|pieces| pieces.concat()).collect();
    let mut breaches = Vec::new();
    for (line, text) in source.text().lines().enumerate() {
        for name in names.iter().filter(|name| text.contains(name.as_str())) {
            breaches.push(format!(
                "{}:{}: names {name}; registries are named by no file",
                source.path,
                line + 1
            ));
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::{super::source, *};

    #[test]
    fn a_registry_host_is_found_with_its_line() {
        let text = format!("first\nfetch from {}\n", HOSTS[2].concat());
        let found = breaches(&[source("docs/x.md", &text), source("Cargo.lock", &text)]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("docs/x.md:2: names "), "{found:?}");
    }

    #[test]
    fn a_blob_is_found() {
        let blob = Source { path: "a.bin".to_owned(), size_bytes: SIZE_BYTES_MAX + 1, text: None };
        assert_eq!(breaches(&[blob]).len(), 1);
    }
}
