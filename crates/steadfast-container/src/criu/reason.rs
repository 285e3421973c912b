//! Decides what a person is told when CRIU refuses: the first error of its log, with what it means in plain words
//! where we know it.
//!
//! Must never hide CRIU's own line: it is always quoted.

use std::{fs, path::Path};

use serde_json::Value;

use crate::preflight::Finding;

/// What is in CRIU's line, and what that means.
const MEANINGS: [(&str, &str); 15] = [
    ("io_uring", "it uses io_uring, which cannot be imaged"),
    ("userfaultfd", "it uses userfaultfd, which cannot be imaged"),
    ("perf_event", "it has performance counters open, which cannot be imaged"),
    ("anon_inode:[bpf", "it has a BPF object open, which cannot be imaged"),
    ("external socket is used", "it has a Unix socket connected to a process outside of the container"),
    ("Unix socket", "it has a Unix socket that leads outside of the container"),
    ("Can't lookup mount", "it has a file open that is not in its own root or volumes"),
    ("Can't dump file", "it has a file open of a kind that cannot be imaged"),
    ("Unsupported socket", "it has a socket of a kind that cannot be imaged"),
    ("has bad size", "a file changed since the checkpoint"),
    ("has bad mode", "a file changed since the checkpoint"),
    ("is traced", "it is being traced by a debugger"),
    ("Can't open file", "a file it had open is not here"),
    ("Can't restore netns", "its network name space could not be restored"),
    ("No space left", "there is not enough memory for the image"),
];

/// Errors that CRIU logs and goes on from.
const NOISE: [&str; 1] = ["rlimit: Can't setup RLIMIT_NOFILE for self"];

/// Says why, from CRIU's log, or from runc's where CRIU did not get that far.
pub(crate) fn explain(criu_log: &Path, runc_log: &Path) -> String {
    let log = fs::read(criu_log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    if let Some(text) = explain_text(&log) {
        return text;
    }
    runc_error(runc_log).unwrap_or_else(|| "CRIU and runc ended without saying why".to_owned())
}

/// Puts what can be seen from outside before CRIU's own words, which for some causes say nothing to anybody.
pub(crate) fn with_findings(findings: &[Finding], reason: String) -> String {
    if findings.is_empty() {
        return reason;
    }
    let findings: Vec<_> = findings.iter().map(Finding::to_string).collect();
    format!("{} ({reason})", findings.join("; "))
}

pub(crate) fn explain_text(log: &str) -> Option<String> {
    let mut errors = log
        .lines()
        .filter(|line| line.contains("Error (") && !NOISE.iter().any(|noise| line.contains(noise)))
        .map(message);
    let first = errors.next()?;
    let all: Vec<_> = std::iter::once(first).chain(errors).collect();
    for line in &all {
        if let Some((_, meaning)) = MEANINGS.iter().find(|(part, _)| line.contains(part)) {
            return Some(format!("{meaning} (CRIU: {line})"));
        }
    }
    Some(format!("CRIU: {first}"))
}

/// The line without its time and source position.
fn message(line: &str) -> &str {
    line.split_once("): ").map_or(line, |(_, message)| message).trim()
}

/// The last error runc wrote into its JSON log.
pub(crate) fn runc_error(log: &Path) -> Option<String> {
    last_error(&fs::read_to_string(log).ok()?)
}

pub(crate) fn last_error(text: &str) -> Option<String> {
    let mut errors = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let last = errors.rfind(|line| line.get("level").and_then(Value::as_str) == Some("error"))?;
    Some(last.get("msg").and_then(Value::as_str)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_errors_are_explained_and_quoted() {
        let log = "(00.01) Error (criu/files-ext.c:98): Can't dump file 5 of that type [600] (unknown /dev/kvm)\n(00.02) Error (criu/cr-dump.c:1): Dumping FAILED.\n";
        let text = explain_text(log).unwrap();
        assert!(text.starts_with("it has a file open of a kind") && text.contains("/dev/kvm"), "{text}");
    }

    #[test]
    fn unknown_errors_are_quoted() {
        assert_eq!(
            explain_text("(0.1) Error (criu/x.c:1): strange: thing\n").unwrap(),
            "CRIU: strange: thing"
        );
        assert_eq!(explain_text("all fine\n"), None);
    }
}
