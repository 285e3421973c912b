//! NO-STEP-BACK: an outside witness never sees a container behind its last committed checkpoint, nor an older epoch
//! after a newer one.
//!
//! A user may ask for an older checkpoint or a fresh start, and a checkpoint whose every holder lost its memory is
//! followed by the one before it; nothing else lowers the floor.

use std::collections::BTreeMap;

use steadfast_proto::catalog::{ContainerRow, ContainerState, Restart};
use steadfast_proto::ids::{ContainerId, Digest, Epoch};

use super::{Checker, Fact};

#[derive(Debug, Default)]
pub(super) struct NoStepBack {
    values: BTreeMap<Digest, u64>,
    floors: BTreeMap<ContainerId, u64>,
    heard: BTreeMap<ContainerId, Epoch>,
}

impl NoStepBack {
    fn row(&mut self, before: &ContainerRow, after: &ContainerRow, by_user: bool) -> Result<(), String> {
        let (id, floor) = (after.id, self.floors.get(&after.id).copied().unwrap_or(0));
        let number = |row: &ContainerRow| row.latest.as_ref().map_or(0, |latest| latest.number);
        if number(after) > number(before)
            && let Some(latest) = &after.latest
        {
            let value = self.values.get(&latest.manifest).copied().unwrap_or(0);
            self.floors.insert(id, value);
            if value < floor {
                return Err(format!("{id:?} commits a checkpoint at {value}, behind its last at {floor}"));
            }
            return Ok(());
        }
        if after.epoch == before.epoch {
            return Ok(());
        }
        let latest_is_gone = before.latest.as_ref().is_none_or(|latest| latest.copies.is_empty());
        let (value, excused) = match &after.state {
            ContainerState::Starting => {
                (0, by_user || latest_is_gone || after.spec.restart == Restart::Fresh)
            }
            ContainerState::Recovering => {
                let from = after.restore_from().and_then(|checkpoint| self.values.get(&checkpoint.manifest));
                (from.copied().unwrap_or(0), by_user || latest_is_gone)
            }
            ContainerState::Running
            | ContainerState::Stopped(_)
            | ContainerState::Failed(_)
            | ContainerState::Lost(_) => return Ok(()),
        };
        if value >= floor {
            return Ok(());
        }
        self.floors.insert(id, value);
        if excused {
            Ok(())
        } else {
            Err(format!("{id:?} is to go on from {value}, behind its checkpoint at {floor}"))
        }
    }
}

impl Checker for NoStepBack {
    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Captured { manifest, value } => {
                self.values.insert(*manifest, *value);
                Ok(())
            }
            Fact::Row { before: Some(before), after: Some(after), by_user, .. } => {
                self.row(before, after, *by_user)
            }
            Fact::Copy { container, epoch, heard: true, value, .. } => {
                let floor = self.floors.get(container).copied().unwrap_or(0);
                let newest = self.heard.entry(*container).or_default();
                if *epoch < *newest {
                    return Err(format!("{container:?} is heard in {epoch:?} after {newest:?}"));
                }
                *newest = *epoch;
                if *value < floor {
                    return Err(format!(
                        "{container:?} {epoch:?} is heard at {value}, behind its checkpoint at {floor}"
                    ));
                }
                Ok(())
            }
            Fact::Installed { .. }
            | Fact::View { .. }
            | Fact::Kept { .. }
            | Fact::Row { .. }
            | Fact::Copy { .. }
            | Fact::CopyGone { .. }
            | Fact::Sealed { .. }
            | Fact::Freed { .. }
            | Fact::MemoryGone { .. } => Ok(()),
        }
    }
}
