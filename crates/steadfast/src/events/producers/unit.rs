//! `unit.state`: a unit of systemd went into another state.
//!
//! systemd says so itself, over its own socket (`bus`), as soon as somebody has subscribed. A report is made when the pair of state
//! and sub-state of a unit changes. It never starts or stops a unit. Where systemd is not the first process there is nothing to watch.

use std::collections::BTreeMap;

use super::bus::{Bus, Changed};
use super::post::{Post, text};
use super::{ActivateError, Work};

/// Units whose last state is remembered, so that repetitions are not told.
const UNITS_MAX: usize = 16_384;
const SUFFIXES: [&str; 11] = [
    "service",
    "socket",
    "device",
    "mount",
    "automount",
    "swap",
    "target",
    "path",
    "timer",
    "slice",
    "scope",
];

pub(super) fn open(post: Post) -> Result<Work, ActivateError> {
    if let Some(unit) = post.about("unit") {
        let is_unit = unit.rsplit_once('.').is_some_and(|(name, suffix)| {
            !name.is_empty()
                && SUFFIXES.contains(&suffix)
                && unit.len() <= 255
                && !unit.contains(['/', ' ', '\0'])
        });
        if !is_unit {
            return Err(ActivateError::Malformed {
                field: "unit",
                given: unit.to_owned(),
                wanted: "write a unit's whole name, such as nginx.service",
            });
        }
    }
    if !Bus::is_there() {
        let why = "systemd does not run it; watch process.exit by command instead";
        return Err(ActivateError::Unsupported { kind: post.kind().clone(), why });
    }
    let mut bus = Bus::open(&post).map_err(ActivateError::refused("systemd", "subscribed to"))?;
    Ok(Box::pin(async move {
        let mut told = BTreeMap::new();
        loop {
            tokio::task::coop::consume_budget().await;
            let Changed { unit, state, sub } = match bus.next().await {
                Ok(changed) => changed,
                Err(error) => return format!("systemd can't be heard any more: {error}"),
            };
            let is_wanted = post.about("unit").is_none_or(|wanted| wanted == unit);
            let present = (state, sub);
            if !is_wanted || told.get(&unit) == Some(&present) {
                continue;
            }
            post.tell([("unit", text(&unit)), ("state", text(&present.0)), ("sub", text(&present.1))]);
            if told.len() >= UNITS_MAX {
                told.clear();
            }
            told.insert(unit, present);
        }
    }))
}
