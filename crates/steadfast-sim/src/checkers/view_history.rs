//! VIEW-HISTORY: every proposed view names exactly one basis, and what is kept of the views is what was committed, each
//! once, without a gap, none for longer than its bound.
//!
//! It reads what the transaction left in the catalog, never what an agent believes.

use std::collections::BTreeMap;

use steadfast_proto::catalog::{View, ViewReason};
use steadfast_proto::ids::ViewId;
use steadfast_proto::view::RECORDS_MAX;

use super::{Checker, Fact};

#[derive(Debug, Default)]
pub(super) struct ViewHistory {
    committed: BTreeMap<ViewId, View>,
}

impl Checker for ViewHistory {
    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::View { view } => {
                self.committed.insert(view.id, (*view).clone());
                Ok(())
            }
            Fact::Kept { view, bases, records } => {
                if *bases != 1 {
                    return Err(format!("view {} was committed on {bases} bases", view.id));
                }
                let oldest = view.id.0.saturating_sub(RECORDS_MAX) + 1;
                if !records.keys().map(|id| id.0).eq(oldest..=view.id.0) {
                    return Err(format!(
                        "with view {} committed, views {:?} are kept, and {oldest} to {} should be",
                        view.id,
                        records.keys(),
                        view.id
                    ));
                }
                let Some(newest) = records.get(&view.id) else { return Ok(()) };
                if self.committed.get(&view.id) != Some(&newest.view) {
                    return Err(format!("what is kept of view {} is not what was committed", view.id));
                }
                let unexplained = match &newest.view.reason {
                    ViewReason::Removed(removed) => {
                        removed.keys().find(|node| !newest.verdicts.contains_key(node))
                    }
                    ViewReason::Founded
                    | ViewReason::Admitted(_)
                    | ViewReason::Grantor(_)
                    | ViewReason::NoGrantor(_)
                    | ViewReason::Replaced { .. }
                    | ViewReason::Left(_) => None,
                };
                unexplained.map_or(Ok(()), |node| {
                    Err(format!("view {} removed {node:?} and does not say what it was found to be", view.id))
                })
            }
            Fact::Installed { .. }
            | Fact::Row { .. }
            | Fact::Copy { .. }
            | Fact::CopyGone { .. }
            | Fact::Captured { .. }
            | Fact::Sealed { .. }
            | Fact::Freed { .. }
            | Fact::MemoryGone { .. } => Ok(()),
        }
    }
}
