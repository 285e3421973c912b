//! Operations as people are shown them: what each does, how far it is, and how it ended.
//!
//! Made of the catalog's rows as this node has them, so that every node can show them, without a majority too.

use steadfast_proto::catalog::ContainerRow;
use steadfast_proto::episode::{Instance, Status};
use steadfast_proto::ids::{ContainerId, NodeId};
use steadfast_proto::time::Time;

use super::super::Agent;
use super::program::{Goal, Operation, What};
use super::{ROWS, ended, operation_of, read};
use crate::api::types;
use crate::codes::Code;
use crate::failure::{Failure, did_you_mean};

impl Agent {
    /// All operations, the oldest first; those that have ended for an hour.
    pub(crate) fn shown_operations(&self) -> Result<Vec<types::Operation>, Failure> {
        let found = self.rows.catalog().range_stale(ROWS);
        let rows = found.rows.iter().map(|(_, row)| read(row).and_then(|instance| self.shown_one(&instance)));
        let mut all = rows.collect::<Result<Vec<types::Operation>, Failure>>()?;
        all.sort_by(|one, other| (one.begun_unix_ms, &one.name).cmp(&(other.begun_unix_ms, &other.name)));
        Ok(all)
    }

    /// One operation.
    pub(crate) fn shown_operation(&self, name: &str) -> Result<types::Operation, Failure> {
        let all = self.shown_operations()?;
        if let Some(found) = all.iter().find(|one| one.name == name) {
            return Ok(found.clone());
        }
        let hint = did_you_mean(name, all.iter().map(|one| one.name.as_str()));
        let message =
            format!("there is no operation {name:?}{hint}; those that have ended are listed for an hour");
        Err(Failure::new(Code::OperationNotFound, message))
    }

    fn shown_one(&self, instance: &Instance) -> Result<types::Operation, Failure> {
        let operation = operation_of(instance);
        let operation =
            operation.ok_or_else(|| Failure::new(Code::Internal, "an operation's state can't be read"))?;
        let failed = ended(instance)?.flatten().map(Failure::from);
        let (state, ended_at) = match (&instance.status, &failed) {
            (Status::Active, _) => ("running", None),
            (Status::Ended { at, .. }, None) => ("done", Some(*at)),
            (Status::Ended { at, .. }, Some(_)) => ("failed", Some(*at)),
            (Status::Cancelled { at }, _) => ("failed", Some(*at)),
        };
        Ok(types::Operation {
            name: instance.name.key().to_owned(),
            verb: operation.what.verb().to_owned(),
            does: self.does(&operation.what),
            state: state.to_owned(),
            waits_for: instance.is_active().then(|| self.waits_for(&operation)).flatten(),
            step: operation.step.saturating_add(u8::from(instance.is_active())).min(operation.steps()),
            steps: operation.steps(),
            asked_at: operation.asked_at.map(|node| self.node_name(node)),
            begun_unix_ms: unix_ms(instance.begun_at),
            ended_unix_ms: ended_at.map(unix_ms),
            code: failed.as_ref().map(|failure| failure.code.to_string()),
            why: failed.map(|failure| failure.message),
        })
    }

    fn does(&self, what: &What) -> String {
        let node = |node: &NodeId| self.node_name(*node);
        match what {
            What::Replace { old, new } => format!("{} takes the place of {}", node(new), node(old)),
            What::Drain { node: drained, .. } => format!("{} hands over its containers", node(drained)),
            What::Leave { node: leaving, .. } => format!("{} leaves", node(leaving)),
            What::Checkpoint { container, .. } => {
                format!("a checkpoint of {} is taken", self.container_name(*container))
            }
            What::Restore { container, number, to, .. } => {
                let from = number
                    .map_or_else(|| "its newest checkpoint".to_owned(), |one| format!("checkpoint {one}"));
                let to = to.map_or_else(String::new, |to| format!(" on {}", node(&to)));
                format!("{} goes back to {from}{to}", self.container_name(*container))
            }
            What::Join { node: joining } => format!("{} becomes a member", node(joining)),
            What::Recover { container, .. } => {
                format!("{} goes on after the loss of its node", self.container_name(*container))
            }
        }
    }

    /// What the operation's step waits for.
    fn waits_for(&self, operation: &Operation) -> Option<String> {
        let waits = match (operation.goal()?, &operation.what) {
            (Goal::Replaced, _) => "a view with the one and without the other".to_owned(),
            (Goal::Drained, What::Drain { node, .. }) => {
                let all = self.rows.all_stale::<ContainerRow>("container/");
                let left = all.iter().filter(|(row, _)| row.owner == *node && row.is_active()).count();
                format!("{left} containers that are still there")
            }
            (Goal::Drained | Goal::Left, _) => "a view without it".to_owned(),
            (Goal::Checkpointed, _) => "copies on other nodes".to_owned(),
            (Goal::Ended, _) => "the end of what runs now".to_owned(),
            (Goal::Runs, _) => "its owner to have it running".to_owned(),
            (Goal::Joined, _) => "its probation to end (`steadfast nodes` shows what is measured)".to_owned(),
        };
        Some(waits)
    }

    fn container_name(&self, container: ContainerId) -> String {
        let all = self.rows.all_stale::<ContainerRow>("container/");
        let found = all.into_iter().find(|(row, _)| row.id == container);
        found.map_or_else(|| format!("container {container}"), |(row, _)| row.spec.name)
    }
}

fn unix_ms(at: Time) -> u64 {
    at.as_nanos() / 1_000_000
}
