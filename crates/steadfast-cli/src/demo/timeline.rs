//! The demo's time line: what the surviving agents noted down and what the client saw, in one order.
//!
//! It only merges and words; every time stamp is an agent's or the client's own. All hosts of a bed share one clock.

use crate::api::types::Happening;

/// One line, relative to the power loss.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moment {
    /// Milliseconds after the power loss; negative before it.
    pub(super) after_ms: f64,
    /// What happened, in words.
    pub(super) what: String,
    /// Who saw it.
    pub(super) seen_by: String,
}

/// What agents note down, in the order in which it happens, and the words for it.
const WORDS: [(&str, &str); 6] = [
    ("last_heard", "last heartbeat"),
    ("suspected", "suspected"),
    ("removed", "removed from the view"),
    ("fence_over", "fence over"),
    ("recovering", "restoring"),
    ("running", "running"),
];

/// Heartbeats older than this have nothing to do with the loss, in milliseconds.
const BEFORE_MAX_MS: f64 = 5_000.0;

/// The time line of the loss of `node`, which owned `container`, at `lost_unix_ms`.
///
/// `seen` holds each surviving node's name with what it noted down. Of several notes of one kind the first counts, except
/// for the last heartbeat, of which the last does.
pub(super) fn merge(
    seen: &[(String, Vec<Happening>)],
    node: &str,
    container: &str,
    lost_unix_ms: f64,
) -> Vec<Moment> {
    let mut moments: Vec<Moment> = WORDS
        .iter()
        .filter_map(|(kind, words)| {
            let mut all: Vec<(f64, &str)> = seen
                .iter()
                .flat_map(|(by, happenings)| happenings.iter().map(move |happening| (by, happening)))
                .filter(|(_, happening)| happening.what == *kind && is_about(happening, node, container))
                .map(|(by, happening)| (happening.at_unix_ms - lost_unix_ms, by.as_str()))
                .filter(|(after, _)| *after > if *kind == "last_heard" { -BEFORE_MAX_MS } else { 0.0 })
                .collect();
            all.sort_by(|left, right| left.0.total_cmp(&right.0));
            let (after_ms, by) = if *kind == "last_heard" { all.last() } else { all.first() }?;
            Some(Moment { after_ms: *after_ms, what: (*words).to_owned(), seen_by: (*by).to_owned() })
        })
        .collect();
    moments.push(Moment { after_ms: 0.0, what: format!("power loss of {node}"), seen_by: "the demo".into() });
    moments
}

/// Each kind of note names the node, the container, or both.
fn is_about(happening: &Happening, node: &str, container: &str) -> bool {
    match (&happening.container, &happening.node) {
        (Some(about), _) => about == container,
        (None, Some(about)) => about == node,
        (None, None) => false,
    }
}

/// The time line for people, in the order of time.
pub(super) fn page(moments: &[Moment]) -> String {
    let mut sorted = moments.to_vec();
    sorted.sort_by(|left, right| left.after_ms.total_cmp(&right.after_ms));
    let lines = sorted
        .iter()
        .map(|moment| format!("  {:+8.0} ms  {:<24} {}", moment.after_ms, moment.what, moment.seen_by));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(at: f64, what: &str, node: &str, container: Option<&str>) -> Happening {
        Happening {
            at_unix_ms: at,
            what: what.into(),
            node: Some(node.into()),
            container: container.map(str::to_owned),
            detail: String::new(),
        }
    }

    #[test]
    fn the_first_note_of_each_kind_counts_and_the_last_heartbeat() {
        let beta = vec![
            note(990.0, "last_heard", "alpha", None),
            note(1300.0, "suspected", "alpha", None),
            note(1350.0, "suspected", "gamma", None),
        ];
        let gamma = vec![
            note(970.0, "last_heard", "alpha", None),
            note(1250.0, "suspected", "alpha", None),
            note(2300.0, "running", "gamma", Some("redis")),
            note(2200.0, "running", "gamma", Some("other")),
            note(100.0, "running", "alpha", Some("redis")),
        ];
        let seen = [("beta".to_owned(), beta), ("gamma".to_owned(), gamma)];
        let moments = merge(&seen, "alpha", "redis", 1000.0);
        let of = |what: &str| moments.iter().find(|moment| moment.what == what).map(|moment| moment.after_ms);
        assert_eq!(of("last heartbeat"), Some(-10.0));
        assert_eq!(of("suspected"), Some(250.0));
        assert_eq!(of("running"), Some(1300.0));
        assert_eq!(of("fence over"), None);
        let page = page(&moments);
        assert!(page.find("last heartbeat") < page.find("power loss"), "{page}");
        assert!(page.find("power loss") < page.find("running"), "{page}");
    }
}
