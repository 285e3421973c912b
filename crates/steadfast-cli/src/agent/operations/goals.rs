//! When a step of an operation has reached its goal, by what the catalog says; and which operations nobody asked for.
//!
//! Pure functions of rows. A goal is looked at only after the step's change was made, and by rows that were read after
//! that: in older ones it would seem undone.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use steadfast::catalog::Rows as Found;
use steadfast_proto::catalog::{ContainerRow, ContainerState, DrainRow, Intent, Key, ProbationRow, View};
use steadfast_proto::ids::{ContainerId, Epoch, NodeId};

use super::super::rows::{Rows, catalog_failure, decode};
use super::program::{Goal, Operation, What};
use crate::api::convert::{Names, node_name};
use crate::codes::Code;
use crate::failure::Failure;

/// What the catalog says of all that operations wait for.
pub(super) struct Facts {
    candidates: BTreeMap<NodeId, ProbationRow>,
    draining: BTreeMap<NodeId, DrainRow>,
    containers: BTreeMap<ContainerId, ContainerRow>,
    view: Option<View>,
    names: Names,
}

impl Facts {
    /// As a majority of the voters has it. The view comes last: what is gone because a node was admitted or left is gone
    /// with it, or after it.
    pub(super) async fn read(rows: &Rows) -> Result<Facts, Failure> {
        let range = async |prefix: &str| {
            let found = rows.catalog().range(prefix.to_owned()).await;
            found.map_err(|error| catalog_failure(&error))
        };
        let candidates = range("probation/").await?;
        let draining = range("drain/").await?;
        let containers = range("container/").await?;
        let view = rows.get::<View>(&Key::View).await?.map(|(view, _)| view);
        Facts::of(rows, [&candidates, &draining, &containers], view)
    }

    /// As this node has it.
    pub(super) fn stale(rows: &Rows) -> Result<Facts, Failure> {
        let range = |prefix| rows.catalog().range_stale(prefix);
        let view = rows.get_stale::<View>(&Key::View).map(|(view, _)| view);
        Facts::of(rows, [&range("probation/"), &range("drain/"), &range("container/")], view)
    }

    fn of(
        rows: &Rows,
        [candidates, draining, containers]: [&Found; 3],
        view: Option<View>,
    ) -> Result<Facts, Failure> {
        Ok(Facts {
            candidates: by(candidates, |row: &ProbationRow| row.node)?,
            draining: by(draining, |row: &DrainRow| row.node)?,
            containers: by(containers, |row: &ContainerRow| row.id)?,
            view,
            names: rows.names(),
        })
    }

    fn named(&self, node: NodeId) -> String {
        node_name(&self.names, node)
    }

    fn container(&self, container: ContainerId) -> Result<&ContainerRow, Failure> {
        let found = self.containers.get(&container);
        found.ok_or_else(|| Failure::new(Code::ContainerNotFound, "the container was removed meanwhile"))
    }

    fn taken_back(&self, node: NodeId) -> Failure {
        let message = format!("somebody took back that {} hands over its duties", self.named(node));
        Failure::new(Code::ReplaceRefused, message)
    }

    fn applies_no_more(&self, node: NodeId) -> Failure {
        let message = format!("{} applies no more: its agent ended, or began anew", self.named(node));
        Failure::new(Code::CandidateNotReady, message)
    }

    fn refuse_eliminated(&self, node: NodeId) -> Result<(), Failure> {
        match self.candidates.get(&node).and_then(|row| row.eliminated.as_ref()) {
            Some((criterion, measured)) => {
                Err(super::super::duties::eliminated(&self.named(node), *criterion, measured))
            }
            None => Ok(()),
        }
    }

    /// What the cluster does by itself just now, each with the key under which it is begun once.
    pub(super) fn unasked(&self) -> Vec<(String, What)> {
        let joining = self.candidates.values().filter_map(|row| {
            let joins = row.intent == Intent::Join && row.eliminated.is_none();
            let key = format!("join-{}-{}", self.named(row.node), row.incarnation.0);
            joins.then_some((key, What::Join { node: row.node }))
        });
        let recovering = self.containers.values().filter_map(|row| {
            let recovers = row.after_loss && row.state == ContainerState::Recovering;
            let key = format!("recover-{}-{}", row.spec.name, row.epoch.0);
            recovers.then_some((key, What::Recover { container: row.id, epoch: row.epoch }))
        });
        joining.chain(recovering).collect()
    }
}

fn by<K: Ord, T: DeserializeOwned>(
    found: &Found,
    key_of: impl Fn(&T) -> K,
) -> Result<BTreeMap<K, T>, Failure> {
    let rows = found.rows.iter().map(|(key, row)| decode::<T>(key, row).map(|(row, _)| (key_of(&row), row)));
    rows.collect()
}

/// Whether the goal of the step is reached, if it ever can be.
pub(super) fn reached(facts: &Facts, operation: &Operation) -> Result<bool, Failure> {
    let (Some(view), Some(goal)) = (&facts.view, operation.goal()) else { return Ok(false) };
    match &operation.what {
        What::Replace { old, new } => {
            if is_replaced(view, *old, *new) {
                return Ok(true);
            }
            if view.has(*new) {
                let message = format!("{} took another one's place meanwhile", facts.named(*new));
                return Err(Failure::new(Code::NodeIsMember, message));
            }
            facts.refuse_eliminated(*new)?;
            let intent = facts.candidates.get(new).map(|row| row.intent);
            if intent == Some(Intent::Replace(*old)) { Ok(false) } else { Err(facts.applies_no_more(*new)) }
        }
        What::Join { node } => {
            if view.has(*node) {
                return Ok(true);
            }
            facts.refuse_eliminated(*node)?;
            if facts.candidates.contains_key(node) {
                return Ok(false);
            }
            Err(facts.applies_no_more(*node))
        }
        What::Drain { node, .. } => {
            if !view.has(*node) {
                return Err(Failure::new(Code::NodeNotFound, "it is no member any more"));
            }
            if !facts.draining.contains_key(node) {
                return Err(facts.taken_back(*node));
            }
            Ok(!facts.containers.values().any(|row| row.owner == *node && row.is_active()))
        }
        What::Leave { node, .. } => {
            if !view.has(*node) {
                return Ok(true);
            }
            let leaves = facts.draining.get(node).is_some_and(|row| row.leave);
            if leaves { Ok(false) } else { Err(facts.taken_back(*node)) }
        }
        What::Checkpoint { container, epoch, after } => {
            let row = facts.container(*container)?;
            if row.latest.as_ref().is_some_and(|latest| latest.number > *after) {
                return Ok(true);
            }
            if row.epoch == *epoch && row.is_active() {
                return Ok(false);
            }
            let message = format!(
                "no checkpoint of {}: it ended, or went back to an earlier one, while this was asked for",
                row.spec.name
            );
            Err(Failure::new(Code::CheckpointFailed, message))
        }
        What::Restore { container, epoch, .. } if goal == Goal::Ended => {
            let row = facts.container(*container)?;
            Ok(row.epoch != *epoch || !row.is_active())
        }
        What::Restore { container, epoch, .. } => runs(facts.container(*container)?, epoch.next()),
        What::Recover { container, epoch } => runs(facts.container(*container)?, *epoch),
    }
}

/// Whether the one took the other's place, though it may have failed since.
fn is_replaced(view: &View, old: NodeId, new: NodeId) -> bool {
    let has_failed_since = view.removed.contains_key(&new) && !view.removed.contains_key(&old);
    !view.has(old) && (view.has(new) || view.successors.get(&old) == Some(&new) || has_failed_since)
}

/// Whether it has come to run in this epoch, or in a later one if its node was lost before that.
fn runs(row: &ContainerRow, epoch: Epoch) -> Result<bool, Failure> {
    if row.epoch < epoch {
        return Ok(false);
    }
    match &row.state {
        ContainerState::Running | ContainerState::Stopped(_) => Ok(true),
        ContainerState::Starting | ContainerState::Recovering => Ok(false),
        ContainerState::Failed(why) | ContainerState::Lost(why) => {
            Err(Failure::new(Code::StartFailed, format!("{} does not run again: {why}", row.spec.name)))
        }
    }
}
