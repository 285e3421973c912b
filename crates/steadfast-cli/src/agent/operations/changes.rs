//! The changes that operations make: each finds out whether it was made already, and makes it once.
//!
//! What tells is what the operation found when it began: the epoch of a container, the number of its last checkpoint, the
//! version of a row. So a change may be asked for again after any crash, by any node. Each is one compare-and-set, or a
//! request to the owner of a container. What can't be made now is tried again; what never can be fails the operation.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steadfast::catalog::Txn;
use steadfast::net::rpc::{Class, RpcError, Services};
use steadfast_proto::catalog::{
    ContainerRow, ContainerState, Desired, DrainRow, Exit, Intent, Key, ProbationRow, decode_row, encode_row,
};
use steadfast_proto::ids::{ContainerId, Epoch, NodeId};
use steadfast_proto::placement::{self, Candidate};

use super::super::duties::{candidate, causes, check_pair, installed};
use super::super::verbs::{check_checkpoint, no_node};
use super::super::{Agent, rows};
use super::LOOK;
use super::program::{Change, Failed, Operation, What};
use crate::api::convert::now_unix_ms;
use crate::codes::Code;
use crate::failure::Failure;
use crate::traces;

/// The RPC service by which a container's owner takes a checkpoint.
const SERVICE_CHECKPOINT: u8 = 32;
/// How long a checkpoint may take.
const CHECKPOINT_MAX: Duration = Duration::from_secs(120);

/// What is wished of a container that goes back to a checkpoint, first.
const ENDS: Desired = Desired::Stop { grace_ms: 0 };

/// Why a change is not made.
pub(super) enum Undone {
    /// It may succeed later; why not now.
    Later(String),
    /// It never will.
    Never(Failure),
}

impl From<Failure> for Undone {
    fn from(failure: Failure) -> Undone {
        let is_passing =
            matches!(failure.code, Code::NoQuorum | Code::TimedOut | Code::PeerUnreachable | Code::NodeBusy);
        if is_passing { Undone::Later(failure.message) } else { Undone::Never(failure) }
    }
}

/// What the owner of a container answers.
#[derive(Serialize, Deserialize)]
enum Taken {
    Taken,
    /// It can't be taken.
    Refused(Failed),
}

/// Lets other nodes ask for checkpoints of what runs here.
pub(super) fn offer(agent: &std::sync::Arc<Agent>, services: &Services) {
    let agent = std::sync::Arc::downgrade(agent);
    services.register(SERVICE_CHECKPOINT, move |_, body| {
        let agent = agent.upgrade();
        Box::pin(async move {
            let agent = agent.ok_or_else(|| "the agent ends".to_owned())?;
            let container: ContainerId = decode_row(&body).map_err(|error| error.to_string())?;
            let taken = match agent.checkpoint_here(container).await {
                Ok(()) => Taken::Taken,
                Err(failure) => Taken::Refused(failure.into()),
            };
            encode_row(&taken).map(Bytes::from).map_err(|error| error.to_string())
        })
    });
}

impl Agent {
    /// Makes the change of the operation's step, unless it was made before.
    pub(super) async fn make(&self, operation: &Operation) -> Result<(), Undone> {
        match (&operation.what, operation.change()) {
            (What::Replace { old, new }, _) => self.make_replacement(*old, *new).await,
            (What::Drain { node, version }, _) => self.make_drain(*node, *version, false).await,
            (What::Leave { node, version }, _) => self.make_drain(*node, *version, true).await,
            (What::Checkpoint { container, epoch, after }, _) => {
                self.make_checkpoint((*container, *epoch), *after).await
            }
            (What::Restore { container, epoch, number, .. }, Some(Change::End)) => {
                self.make_end((*container, *epoch), *number).await
            }
            (What::Restore { container, epoch, number, to }, _) => {
                self.make_restore((*container, *epoch), *number, *to).await
            }
            (What::Join { .. } | What::Recover { .. }, _) => Ok(()),
        }
    }

    async fn make_replacement(&self, old: NodeId, new: NodeId) -> Result<(), Undone> {
        let status = self.status().await?;
        let view = installed(&status)?;
        let asked = status.candidates.get(&new).is_some_and(|one| one.row.intent == Intent::Replace(old));
        if asked || (view.has(new) && !view.has(old)) {
            return Ok(());
        }
        let row_of = |node: NodeId| {
            let row = status.nodes.get(&node);
            row.ok_or_else(|| Failure::new(Code::NodeNotFound, format!("node {node} was removed for good")))
        };
        let (old, new) = (row_of(old)?, row_of(new)?);
        check_pair(&status, view, old, new)?;
        let (row, revision) = candidate(&status, view, old, new)?;
        let next = ProbationRow { intent: Intent::Replace(old.id), ..row.clone() };
        // Against a change of members meanwhile: then the request is looked at anew.
        let mut txn = Txn::compare_and_set(Key::Probation(new.id).encode(), revision, rows::encode(&next)?);
        txn.compare.push((Key::View.encode(), status.view_revision));
        txn.puts.extend(causes(&status, old.id));
        self.commit_change(txn, &new.name).await?;
        tracing::info!(old = old.name, new = new.name, "a member is being replaced");
        Ok(())
    }

    async fn make_drain(&self, node: NodeId, version: u64, leave: bool) -> Result<(), Undone> {
        let row = DrainRow { node, leave };
        let key = Key::Drain(node);
        let found: Option<(DrainRow, u64)> = self.rows.get(&key).await?;
        // Another version is somebody's later word, or this operation's own.
        if found.map_or(0, |(_, found)| found) != version || found.is_some_and(|(found, _)| found == row) {
            return Ok(());
        }
        let status = self.status().await?;
        if !installed(&status)?.has(node) {
            return Ok(());
        }
        let mut txn = Txn::compare_and_set(key.encode(), version, rows::encode(&row)?);
        txn.puts.extend(causes(&status, node));
        self.commit_change(txn, &self.node_name(node)).await
    }

    async fn make_checkpoint(
        &self,
        (container, epoch): (ContainerId, Epoch),
        after: u64,
    ) -> Result<(), Undone> {
        let Some(row) = self.container_row(container).await? else { return Ok(()) };
        let is_taken = row.latest.as_ref().is_some_and(|latest| latest.number > after);
        if is_taken || !row.is_active() || row.epoch != epoch {
            return Ok(());
        }
        if row.state != ContainerState::Running {
            return Err(Undone::Later(format!("{} does not run yet", row.spec.name)));
        }
        let refused = match self.checkpoint_at(row.owner, container).await? {
            Taken::Taken => return Ok(()),
            Taken::Refused(failed) => Failure::from(failed),
        };
        // Of what moved, or fell, meanwhile the goal knows more.
        let now = self.container_row(container).await?;
        let is_same = now.is_some_and(|now| now.epoch == row.epoch && now.state == row.state);
        if is_same { Err(refused.into()) } else { Ok(()) }
    }

    async fn checkpoint_at(&self, owner: NodeId, container: ContainerId) -> Result<Taken, Undone> {
        if owner == self.id {
            return Ok(match self.checkpoint_here(container).await {
                Ok(()) => Taken::Taken,
                Err(failure) => Taken::Refused(failure.into()),
            });
        }
        let body = Bytes::from(encode_row(&container).map_err(|error| Undone::Later(error.to_string()))?);
        let asked = self.peers.call(owner, Class::Control, SERVICE_CHECKPOINT, body, CHECKPOINT_MAX);
        let asked = tokio::select! {
            asked = asked => asked,
            // Of a node that is gone no answer comes.
            () = self.moved(container, owner) => return Err(Undone::Later("its owner is another".to_owned())),
        };
        let answer = asked.map_err(|error: RpcError| Undone::Later(error.to_string()))?;
        decode_row(&answer).map_err(|error| Undone::Later(error.to_string()))
    }

    /// Ends when the container belongs to another node, or is there no more.
    async fn moved(&self, container: ContainerId, owner: NodeId) {
        let is_its = |(row, _): (ContainerRow, u64)| if row.owner == owner { Some(()) } else { None };
        while self.rows.get_stale(&Key::Container(container)).and_then(is_its).is_some() {
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn make_end(
        &self,
        (container, epoch): (ContainerId, Epoch),
        number: Option<u64>,
    ) -> Result<(), Undone> {
        let Some((row, version)) = self.rows.get::<ContainerRow>(&Key::Container(container)).await? else {
            return Ok(());
        };
        if row.epoch != epoch && row.desired != ENDS && number.is_some() {
            let message = format!("{} lost its node meanwhile, and goes on from its newest", row.spec.name);
            return Err(Undone::Never(Failure::new(Code::WrongState, message)));
        }
        if row.epoch != epoch || !row.is_active() || row.desired == ENDS {
            return Ok(());
        }
        let next = ContainerRow { desired: ENDS, changed_unix_ms: now_unix_ms(), ..row };
        self.commit_container(&next, version).await
    }

    async fn make_restore(
        &self,
        (container, epoch): (ContainerId, Epoch),
        number: Option<u64>,
        to: Option<NodeId>,
    ) -> Result<(), Undone> {
        let Some((row, version)) = self.rows.get::<ContainerRow>(&Key::Container(container)).await? else {
            return Ok(());
        };
        // Its node may have been lost just when it was to end here: then it stands still in the next epoch.
        let fell = row.epoch == epoch.next() && row.state == ContainerState::Stopped(Exit::Never);
        if row.epoch != epoch && !(fell && row.desired == ENDS) {
            return Ok(());
        }
        if row.is_active() {
            return Err(Undone::Later(format!("{} has not ended yet", row.spec.name)));
        }
        let number = check_checkpoint(&row, number)?;
        let candidates = self.candidates(&self.status().await?, &row.spec).await?;
        let candidates: Vec<Candidate> =
            candidates.into_iter().filter(|one| to.is_none_or(|to| one.node == to)).collect();
        let next = ContainerRow {
            epoch: row.epoch.next(),
            state: ContainerState::Recovering,
            desired: Desired::Run,
            restore_number: Some(number),
            after_loss: true,
            tried: BTreeSet::new(),
            changed_unix_ms: now_unix_ms(),
            ..row
        };
        let owner = placement::recover_on(&next, &candidates);
        let owner = owner.ok_or_else(|| no_node(&next.spec, &candidates))?;
        self.commit_container(&ContainerRow { owner, ..next }, version).await
    }

    async fn container_row(&self, container: ContainerId) -> Result<Option<ContainerRow>, Failure> {
        Ok(self.rows.get::<ContainerRow>(&Key::Container(container)).await?.map(|(row, _)| row))
    }

    async fn commit_container(&self, next: &ContainerRow, version: u64) -> Result<(), Undone> {
        let mut txn = Txn::compare_and_set(Key::Container(next.id).encode(), version, rows::encode(next)?);
        txn.puts.extend(traces::cause(next.id, next.epoch));
        self.commit_change(txn, &next.spec.name).await
    }

    /// What another change came before is looked at anew.
    async fn commit_change(&self, txn: Txn, name: &str) -> Result<(), Undone> {
        match self.rows.commit(txn).await?.succeeded {
            true => Ok(()),
            false => Err(Undone::Later(format!("{name} or the view changed meanwhile"))),
        }
    }
}
