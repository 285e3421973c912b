//! Checkpoint memory: what this node holds for others, what it must keep, and what it owes them when it lost it.
//!
//! A sealed manifest is freed only by a committed change (PROTOCOLS 5, D4). A row that this node does not know may
//! be one that it has not been told of yet, so what it does not know it keeps. What is freed is said here; freeing
//! is the runtime's.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Batch, Job, Node, Row};
use crate::catalog::Key;
use crate::ids::{ContainerId, Digest, Epoch};
use crate::recovery;
use crate::time::Time;

/// How long a manifest that no row names may stay before this node looks whether one still may.
const COLLECT_EVERY: Duration = Duration::from_secs(10);

/// How many removed containers are remembered. What is forgotten costs memory until the next start, nothing else.
const FORGOTTEN_MAX: usize = 4_096;

/// What is known of this node's checkpoint memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    pub(super) free_bytes: u64,
    held: Option<BTreeSet<Digest>>,
    /// What it held when this agent started, or when it was last in step but one: every container that this is of
    /// had its row before, so one that is unknown now is removed.
    old: BTreeSet<Digest>,
    held_when_in_step: BTreeSet<Digest>,
    /// Containers that this agent saw removed.
    forgotten: BTreeSet<ContainerId>,
    collect_at: Option<Time>,
}

impl Memory {
    /// Takes note that a container's row was removed; no other container will ever bear its id.
    pub(super) fn forget(&mut self, container: ContainerId) {
        if self.forgotten.len() >= FORGOTTEN_MAX {
            self.forgotten.pop_first();
        }
        self.forgotten.insert(container);
    }

    /// Has what it holds looked through before long: what a row names has changed, or what it holds has.
    pub(super) fn look_through(&mut self, now: Time) {
        self.collect_at.get_or_insert(now + COLLECT_EVERY);
    }
}

impl Node {
    /// Whether a sealed manifest in this node's memory must be kept, by the rows that it knows.
    pub fn keeps(&self, container: ContainerId, epoch: Epoch, number: u64, manifest: Digest) -> bool {
        if !self.synced {
            return true;
        }
        match self.containers.get(&container) {
            Some((_, row)) => row.keeps(epoch, number, manifest),
            // Unknown: removed if its manifest is old, and else its row may still be on its way.
            None => !self.memory.forgotten.contains(&container) && !self.memory.old.contains(&manifest),
        }
    }

    /// A read through a majority began after the last one had ended, and all that it saw is known now.
    pub(super) fn in_step(&mut self, now: Time) {
        if self.synced {
            self.memory.old = std::mem::take(&mut self.memory.held_when_in_step);
            self.memory.look_through(now);
        }
        self.synced = true;
        self.memory.held_when_in_step = self.memory.held.clone().unwrap_or_default();
    }

    pub(super) fn memory_changed(&mut self, now: Time, free_bytes: u64, held: BTreeSet<Digest>) {
        self.memory.free_bytes = free_bytes;
        if self.memory.held.is_none() {
            self.memory.old.clone_from(&held);
        }
        self.memory.held = Some(held);
        self.memory.look_through(now);
    }

    /// Has what no row names looked through now and then: a seal may come after the change that made it useless.
    pub(super) fn tend_memory(&mut self, now: Time, out: &mut Batch) {
        if self.memory.collect_at.is_none_or(|at| now < at) {
            return;
        }
        let named: BTreeSet<Digest> = self
            .containers
            .values()
            .flat_map(|(_, row)| row.checkpoints())
            .map(|named| named.manifest)
            .collect();
        let leftover = self.memory.held.as_ref().is_some_and(|held| !held.is_subset(&named));
        self.memory.collect_at = leftover.then(|| now + COLLECT_EVERY);
        if leftover {
            self.start_job(Job::Collect, out);
        }
    }

    /// Takes this node off the holders of checkpoints that its memory does not have.
    pub(super) fn disown(&mut self, now: Time, id: ContainerId, out: &mut Batch) {
        let Some(held) = &self.memory.held else { return };
        let Some((revision, row)) = self.containers.get(&id) else { return };
        let Some(next) = recovery::disowned(row, self.settings.id, |manifest| held.contains(&manifest))
        else {
            return;
        };
        let basis = vec![(Key::Container(id), *revision)];
        self.propose(now, Key::Container(id), basis, vec![Row::Container(Box::new(next))], out);
    }
}
