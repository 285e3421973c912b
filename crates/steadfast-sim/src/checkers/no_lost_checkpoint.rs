//! NO-LOST-CHECKPOINT: each holder that a row names has the checkpoint, unless its host lost its memory since.
//!
//! So a committed checkpoint stays restorable while fewer of its holders than its copies lose their memory: nobody
//! frees it before a later one is committed, a holder that has it is not struck off, and a container is called lost
//! only when no holder has it.

use std::collections::{BTreeMap, BTreeSet};

use steadfast_proto::catalog::{CheckpointRef, ContainerRow, ContainerState};
use steadfast_proto::ids::{ContainerId, Digest, NodeId};

use super::{Checker, Fact};

#[derive(Debug, Default)]
pub(super) struct NoLostCheckpoint {
    held: BTreeSet<(NodeId, Digest)>,
    lost_with_host: BTreeSet<(NodeId, Digest)>,
    promised: BTreeMap<ContainerId, BTreeSet<(NodeId, Digest)>>,
}

impl NoLostCheckpoint {
    fn row(&mut self, before: Option<&ContainerRow>, after: &ContainerRow) -> Result<(), String> {
        let promised: BTreeSet<(NodeId, Digest)> = after.checkpoints().flat_map(promises).collect();
        let broken =
            promised.iter().find(|copy| !self.held.contains(copy) && !self.lost_with_host.contains(copy));
        if let Some((node, manifest)) = broken {
            return Err(format!("{:?} was committed with a copy {manifest:?} that {node:?} freed", after.id));
        }
        self.promised.insert(after.id, promised);
        let Some(before) = before else { return Ok(()) };
        for (old, new) in before.checkpoints().flat_map(|old| after.checkpoints().map(move |new| (old, new)))
        {
            let struck =
                old.copies.difference(&new.copies).find(|node| self.held.contains(&(**node, new.manifest)));
            if let Some(node) = struck.filter(|_| old.manifest == new.manifest) {
                return Err(format!("{:?} struck {node:?} off {:?}, which it has", after.id, new.manifest));
            }
        }
        let kept = |old: &CheckpointRef| after.checkpoints().any(|new| new.manifest == old.manifest);
        if before.latest.as_ref().is_some_and(|latest| !kept(latest)) {
            return Err(format!("{:?} dropped its latest checkpoint", after.id));
        }
        if let ContainerState::Lost(_) = after.state
            && let Some((node, _)) =
                before.checkpoints().flat_map(promises).find(|copy| self.held.contains(copy))
        {
            return Err(format!("{:?} was called lost, and {node:?} has a copy", after.id));
        }
        Ok(())
    }
}

impl Checker for NoLostCheckpoint {
    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Sealed { node, manifest } => {
                self.held.insert((*node, *manifest));
                Ok(())
            }
            Fact::MemoryGone { node } => {
                let gone: Vec<_> = self.held.iter().filter(|(holder, _)| holder == node).copied().collect();
                for copy in gone {
                    self.held.remove(&copy);
                    self.lost_with_host.insert(copy);
                }
                Ok(())
            }
            Fact::Freed { node, manifest } => {
                self.held.remove(&(*node, *manifest));
                let broken = self.promised.iter().find(|(_, copies)| copies.contains(&(*node, *manifest)));
                broken.map_or(Ok(()), |(id, _)| {
                    Err(format!("{node:?} freed {manifest:?}, which {id:?} counts on"))
                })
            }
            Fact::Row { before, after: Some(after), .. } => self.row(*before, after),
            Fact::Row { id, after: None, .. } => {
                self.promised.remove(id);
                Ok(())
            }
            Fact::Installed { .. }
            | Fact::View { .. }
            | Fact::Kept { .. }
            | Fact::Copy { .. }
            | Fact::CopyGone { .. }
            | Fact::Captured { .. } => Ok(()),
        }
    }
}

fn promises(checkpoint: &CheckpointRef) -> impl Iterator<Item = (NodeId, Digest)> {
    checkpoint.copies.iter().map(|node| (*node, checkpoint.manifest))
}
