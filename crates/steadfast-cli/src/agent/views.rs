//! The views that are kept, as this node's copy of the catalog has them, and following them.
//!
//! Views are never changed, only followed by others, so a follower needs no more than the number of the last one it
//! was told. It decides nothing; what is kept is decided in the transaction that commits a view.

use std::collections::VecDeque;

use steadfast::catalog::{Versioned, WatchItem, WatchStream};
use steadfast_proto::catalog::{VIEW_RECORDS, ViewRecord};

use super::Agent;
use super::rows;
use crate::failure::Failure;

/// Which of the kept views.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    /// All after this one.
    Since(u64),
    /// The newest so many.
    Newest(usize),
}

/// Follows the views.
pub(crate) struct FollowViews {
    pending: VecDeque<ViewRecord>,
    told: u64,
    watch: WatchStream,
}

impl Agent {
    /// The kept views, oldest first; they may be old without a majority.
    pub(crate) fn kept_views(&self, wanted: Wanted) -> Result<Vec<ViewRecord>, Failure> {
        let kept = self.rows.catalog().range_stale(VIEW_RECORDS);
        Ok(chosen(decoded(kept.rows.iter().map(|(key, row)| (key, row)))?, wanted))
    }

    /// The kept views that are wanted, then every one that is committed.
    pub(crate) fn follow_views(&self, wanted: Wanted) -> Result<FollowViews, Failure> {
        let kept = self.rows.catalog().range_stale(VIEW_RECORDS);
        let records = decoded(kept.rows.iter().map(|(key, row)| (key, row)))?;
        let told = records.last().map_or(0, |record| record.view.id.0);
        let watch = self.rows.catalog().watch(VIEW_RECORDS.to_owned(), kept.revision);
        Ok(FollowViews { pending: chosen(records, wanted).into(), told, watch })
    }
}

impl FollowViews {
    /// The next view; waits until there is one. Where more were committed than are kept while nobody listened, the
    /// numbers show the gap.
    pub(crate) async fn next(&mut self) -> Result<ViewRecord, Failure> {
        loop {
            if let Some(record) = self.pending.pop_front() {
                self.told = self.told.max(record.view.id.0);
                return Ok(record);
            }
            let item = self.watch.next().await.map_err(|error| rows::catalog_failure(&error))?;
            let news = match &item {
                WatchItem::Changed(watched) => decoded(
                    watched.changes.iter().filter_map(|(key, row)| row.as_ref().map(|row| (key, row))),
                )?,
                WatchItem::Resync { rows, .. } => decoded(rows.iter().map(|(key, row)| (key, row)))?,
            };
            self.pending = news.into_iter().filter(|record| record.view.id.0 > self.told).collect();
        }
    }
}

fn decoded<'a>(found: impl Iterator<Item = (&'a String, &'a Versioned)>) -> Result<Vec<ViewRecord>, Failure> {
    found.map(|(key, row)| rows::decode(key, row).map(|(record, _)| record)).collect()
}

fn chosen(mut records: Vec<ViewRecord>, wanted: Wanted) -> Vec<ViewRecord> {
    match wanted {
        Wanted::Since(told) => records.retain(|record| record.view.id.0 > told),
        Wanted::Newest(count) => {
            records.drain(..records.len().saturating_sub(count));
        }
    }
    records
}
