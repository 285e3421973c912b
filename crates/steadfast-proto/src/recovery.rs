//! What becomes of a container's row: after a loss, a failed start, an exit or a request.
//!
//! Each function takes the committed row and returns the next one, for one compare-and-set; none of them may be
//! called on a verdict that is not committed. The change to a new owner with `epoch + 1` is the point of no
//! return of a recovery (PROTOCOLS 0.3): before it the old owner may thaw, after it never again.

use std::collections::BTreeSet;

use crate::catalog::{ContainerRow, ContainerState, Desired, Exit, Restart};
use crate::ids::NodeId;
use crate::placement::{Candidate, recover_on, start_on};

/// What to do with a row whose owner no longer runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Commit this row.
    Commit(Box<ContainerRow>),
    /// Nothing can be done until a node that could help is back; why.
    Wait(&'static str),
}

/// The next row of a container whose owner was lost, or has it no more. `members` are the nodes of the view,
/// `candidates` those of them that are well.
pub fn recover(
    row: &ContainerRow,
    members: &BTreeSet<NodeId>,
    candidates: &[Candidate],
    after_loss: bool,
) -> Plan {
    let mut next = row.clone();
    next.epoch = row.epoch.next();
    next.after_loss = after_loss;
    if let Desired::Stop { .. } = row.desired {
        next.state = ContainerState::Stopped(Exit::Never);
        return Plan::Commit(Box::new(next));
    }
    if row.latest.is_none() {
        let Some(owner) = start_on(&row.spec, &untried(row, candidates)) else {
            return Plan::Wait("no member that is well can run it");
        };
        next.owner = owner;
        next.state = ContainerState::Starting;
        return Plan::Commit(Box::new(next));
    }
    let Some(checkpoint) =
        row.restore_from().into_iter().chain(row.checkpoints()).find(|c| !c.copies.is_empty())
    else {
        next.state = ContainerState::Lost("no node holds a copy of its checkpoints any more".to_owned());
        return Plan::Commit(Box::new(next));
    };
    if checkpoint.copies.is_disjoint(members) {
        return Plan::Wait("no member holds a copy of its checkpoint; a node that does is away");
    }
    next.restore_number = Some(checkpoint.number);
    let Some(owner) = recover_on(&next, candidates) else {
        return Plan::Wait("no member that is well can restore it");
    };
    next.owner = owner;
    next.state = ContainerState::Recovering;
    Plan::Commit(Box::new(next))
}

/// The next row after its owner failed to start or restore it because of `reason`: another node's turn, or the end.
/// While every holder of its checkpoint is away nobody can restore it, and its owner waits for one of them.
pub fn failed(
    row: &ContainerRow,
    members: &BTreeSet<NodeId>,
    candidates: &[Candidate],
    reason: &str,
) -> ContainerRow {
    let mut tried = row.clone();
    tried.tried.insert(row.owner);
    let untried = untried(&tried, candidates);
    if !untried.is_empty()
        && let Plan::Commit(next) = recover(&tried, members, &untried, row.after_loss)
    {
        return *next;
    }
    tried.epoch = row.epoch.next();
    if row.state == ContainerState::Recovering && holders_are_away(row, members) {
        tried.tried.clear();
        return tried;
    }
    tried.state = ContainerState::Failed(reason.to_owned());
    tried
}

/// The next row after its first process ended by itself or on request; `None` for one that is to come back, as
/// its owner then plans a recovery.
pub fn exited(row: &ContainerRow, exit: Exit) -> Option<ContainerRow> {
    let stops = match (row.desired, exit, row.spec.restart) {
        (Desired::Stop { .. }, _, _) | (Desired::Run, Exit::Code(0), _) | (Desired::Run, _, Restart::No) => {
            true
        }
        (Desired::Run, _, Restart::Latest | Restart::Fresh) => false,
    };
    stops.then(|| ContainerRow { state: ContainerState::Stopped(exit), ..row.clone() })
}

/// The row as a restart by its own owner wants it, before [`recover`]: afresh, or from the latest checkpoint.
pub fn restarted(row: &ContainerRow) -> ContainerRow {
    let mut next = row.clone();
    next.restore_number = None;
    match row.spec.restart {
        Restart::Fresh => {
            next.epoch = row.epoch.next();
            next.state = ContainerState::Starting;
        }
        Restart::No | Restart::Latest if row.latest.is_none() => {
            next.epoch = row.epoch.next();
            next.state = ContainerState::Starting;
        }
        Restart::No | Restart::Latest => {
            next.epoch = row.epoch.next();
            next.after_loss = false;
            next.state = ContainerState::Recovering;
        }
    }
    next
}

/// Whether its checkpoint has copies, and no member holds one.
pub fn holders_are_away(row: &ContainerRow, members: &BTreeSet<NodeId>) -> bool {
    let checkpoint = row.restore_from().filter(|checkpoint| !checkpoint.copies.is_empty());
    checkpoint.is_some_and(|checkpoint| checkpoint.copies.is_disjoint(members))
}

/// The row once its owner has it running. The checkpoint that it goes on from is its latest then: one that was
/// passed over must not come back at the next loss.
pub fn running(row: &ContainerRow) -> ContainerRow {
    let mut next = row.clone();
    next.state = ContainerState::Running;
    next.tried.clear();
    let number = next.restore_number.take();
    if number.is_some() && next.parent.as_ref().map(|parent| parent.number) == number {
        std::mem::swap(&mut next.latest, &mut next.parent);
    }
    next
}

/// The row without `node` among the holders of checkpoints that `node` no longer has: what a node that lost its
/// memory owes the others. `None` when the row promises nothing wrong.
pub fn disowned(
    row: &ContainerRow,
    node: NodeId,
    holds: impl Fn(crate::ids::Digest) -> bool,
) -> Option<ContainerRow> {
    let mut next = row.clone();
    for checkpoint in [&mut next.latest, &mut next.parent].into_iter().flatten() {
        if checkpoint.copies.contains(&node) && !holds(checkpoint.manifest) {
            checkpoint.copies.remove(&node);
        }
    }
    (next != *row).then_some(next)
}

fn untried(row: &ContainerRow, candidates: &[Candidate]) -> Vec<Candidate> {
    candidates.iter().filter(|candidate| !row.tried.contains(&candidate.node)).cloned().collect()
}
