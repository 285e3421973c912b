//! NETWORK-IS-NOT-PROCESS: while every two nodes still share a working network, no member leaves the view.
//!
//! Fed only in worlds whose first network never fails and whose agents and hosts never do (FD6, FD7).

use steadfast_proto::catalog::ViewReason;

use super::{Checker, Fact};

#[derive(Debug, Default)]
pub(super) struct NetworkIsNotProcess;

impl Checker for NetworkIsNotProcess {
    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::View { view } = fact else { return Ok(()) };
        match &view.reason {
            ViewReason::Removed(removed) => Err(format!("view {} removed {:?}", view.id, removed.keys())),
            ViewReason::Founded
            | ViewReason::Admitted(_)
            | ViewReason::Grantor(_)
            | ViewReason::NoGrantor(_)
            | ViewReason::Replaced { .. }
            | ViewReason::Left(_) => Ok(()),
        }
    }
}
