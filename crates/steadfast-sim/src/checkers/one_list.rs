//! ONE-LIST: committed views are numbered one after the other, and whoever installs view *n* installs the same one.
//!
//! A node may skip views that it was never told of; it never goes back within one life of its agent.

use std::collections::BTreeMap;

use steadfast_proto::catalog::View;
use steadfast_proto::ids::{NodeId, ViewId};

use super::{Checker, Fact};

#[derive(Debug, Default)]
pub(super) struct OneList {
    committed: BTreeMap<ViewId, View>,
    installed: BTreeMap<NodeId, (u64, ViewId)>,
}

impl Checker for OneList {
    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::View { view } => {
                let last = self.committed.keys().next_back().copied().unwrap_or_default();
                self.committed.insert(view.id, (*view).clone());
                if view.id != last.next() {
                    return Err(format!("view {} was committed after view {last}", view.id));
                }
                Ok(())
            }
            Fact::Installed { node, life, view } => {
                if self.committed.get(&view.id) != Some(*view) {
                    return Err(format!("{node:?} installed a view {} that was not committed so", view.id));
                }
                let before = self.installed.insert(*node, (*life, view.id));
                match before {
                    Some((same, last)) if same == *life && last >= view.id => {
                        Err(format!("{node:?} installed view {} after view {last}", view.id))
                    }
                    Some(_) | None => Ok(()),
                }
            }
            Fact::Kept { .. }
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
