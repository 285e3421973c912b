//! Keeps the copy of the rows in step with etcd: all rows once, then every change; all rows again when changes were missed.
//!
//! It decides when to begin again and notices when etcd falls silent. It must never skip a revision: whatever breaks, it goes on from the last
//! revision that the copy has. Read next: `mirror`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::Versioned;
use super::super::table::Change;
use super::link::{WatchEnd, Watching};
use super::proto::{Event, KeyValue, RangeRequest};
use super::{Inner, LinkError};

/// How often a node makes sure that etcd answers it.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Pause before a watch that broke is begun again; doubles up to the second.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Rows that are read at once: each may be as large as a value can be.
pub(super) const PAGE_ROWS: u64 = 48;

/// Follows etcd until the engine is closed.
pub(super) async fn follow(inner: Arc<Inner>) {
    let mut from = None;
    let mut pause = PAUSE;
    while inner.mirror.closed().is_none() {
        let outcome = match from {
            None => fill(&inner).await.map(Some),
            Some(revision) => watch(&inner, revision, &mut pause).await,
        };
        match outcome {
            Ok(reached) => from = reached,
            Err(error) => {
                inner.say_unreachable(&error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// Reads all rows; gives etcd's revision as of which they were read.
async fn fill(inner: &Inner) -> Result<u64, LinkError> {
    let deadline = Instant::now() + inner.request_timeout;
    let mut request = RangeRequest {
        key: inner.keys.all.clone(),
        range_end: inner.keys.all_end.clone(),
        limit: PAGE_ROWS,
        revision: 0,
    };
    let (mut rows, mut last_change) = (BTreeMap::new(), 0);
    loop {
        let page = inner.link.range(&request, deadline).await?;
        if request.revision == 0 {
            request.revision = page.header.revision;
        }
        if let Some(last) = page.rows.last() {
            // The next key that there can be.
            request.key = last.key.iter().copied().chain([0]).collect();
        }
        for row in page.rows {
            last_change = last_change.max(row.mod_revision);
            if let (Some(key), row) = named(inner, row) {
                rows.insert(key, row);
            }
        }
        if !page.more {
            inner.mirror.replace(last_change, rows);
            return Ok(request.revision);
        }
    }
}

/// Takes over changes after `from` until the watch ends; gives the revision to go on from, or `None` to begin again.
async fn watch(inner: &Inner, mut from: u64, pause: &mut Duration) -> Result<Option<u64>, LinkError> {
    let deadline = Instant::now() + inner.request_timeout;
    // An etcd that went back would let a watch wait until it has made other changes of the same numbers.
    inner.link.probe(deadline).await?;
    let mut watching: Watching =
        inner.link.watch(&inner.keys.all, &inner.keys.all_end, from + 1, deadline).await?;
    loop {
        let next = tokio::select! {
            next = watching.next() => next,
            () = inner.begin_again.notified() => return Ok(None),
        };
        match next {
            Ok(response) => {
                *pause = PAUSE;
                for (revision, changes) in by_revision(inner, response.events) {
                    inner.mirror.apply(revision, changes);
                    from = from.max(revision);
                }
            }
            Err(WatchEnd::Compacted) => return Ok(None),
            Err(WatchEnd::Broken(reason)) => {
                tracing::debug!(reason, "the watch on etcd broke");
                tokio::time::sleep(*pause).await;
                *pause = (*pause * 2).min(PAUSE_MAX);
                return Ok(Some(from));
            }
        }
    }
}

/// The changes of each revision, in order; etcd never splits a revision over two answers.
fn by_revision(inner: &Inner, events: Vec<Event>) -> BTreeMap<u64, Vec<Change>> {
    let mut revisions: BTreeMap<u64, Vec<Change>> = BTreeMap::new();
    for Event { is_delete, row } in events {
        let changes = revisions.entry(row.mod_revision).or_default();
        if let (Some(key), row) = named(inner, row) {
            changes.push((key, (!is_delete).then_some(row)));
        }
    }
    revisions
}

/// A row under the name that the catalog has for it; none for what is no row.
fn named(inner: &Inner, row: KeyValue) -> (Option<String>, Versioned) {
    let KeyValue { key, value, mod_revision } = row;
    (inner.keys.name(&key), Versioned { value, version: mod_revision })
}

/// Makes sure that etcd answers, and that the watch brings what this node changed itself.
pub(super) async fn probe(inner: Arc<Inner>) {
    let mut interval = tokio::time::interval(PROBE_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut owed = 0;
    while inner.mirror.closed().is_none() {
        interval.tick().await;
        match inner.link.probe(Instant::now() + inner.request_timeout).await {
            Ok(()) => inner.say_reachable(),
            Err(error) => inner.say_unreachable(&error),
        }
        if inner.mirror.is_filled() && inner.mirror.revision() < owed {
            tracing::warn!(
                known = inner.mirror.revision(),
                changed = owed,
                "etcd's watch did not bring a change that this node made a while ago; all rows are read again"
            );
            inner.begin_again.notify_one();
        }
        owed = inner.changed();
    }
}
