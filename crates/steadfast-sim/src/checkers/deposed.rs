//! DEPOSED-COMMITS-NOTHING: a checkpoint is committed in the epoch in which it was taken, by the row's owner of that
//! epoch; epochs never decrease, and a change of owner is a new epoch. A hand-over commits the last checkpoint together
//! with the next epoch, which goes on from it and from no other.

use steadfast_proto::catalog::{ContainerRow, ContainerState};

use super::{Checker, Fact};

#[derive(Debug, Default)]
pub(super) struct DeposedCommitsNothing;

impl Checker for DeposedCommitsNothing {
    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Row { id, before: Some(before), after: Some(after), .. } = fact else { return Ok(()) };
        if after.epoch < before.epoch {
            return Err(format!("{id:?} went from {:?} back to {:?}", before.epoch, after.epoch));
        }
        if after.owner != before.owner && after.epoch == before.epoch {
            return Err(format!("{id:?} changed its owner within {:?}", after.epoch));
        }
        let number =
            |row: &ContainerRow| row.checkpoints().map(|checkpoint| checkpoint.number).max().unwrap_or(0);
        if number(after) <= number(before) {
            return Ok(());
        }
        let taken = after.latest.as_ref().map(|latest| latest.epoch);
        let is_handed_over = after.epoch == before.epoch.next()
            && after.state == ContainerState::Recovering
            && after.restore_number == after.latest.as_ref().map(|latest| latest.number);
        if taken != Some(before.epoch) || (before.epoch != after.epoch && !is_handed_over) {
            return Err(format!("{id:?} in {:?} was given a checkpoint of {taken:?}", before.epoch));
        }
        Ok(())
    }
}
