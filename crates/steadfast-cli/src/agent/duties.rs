//! What operators ask of members and candidates: replace one by another, drain one, have one leave.
//!
//! Each is an operation ([`super::operations`]): the cores act on the row that it changes, and the answer comes when it has ended,
//! or says that it goes on. A refused request changes nothing. What it takes is decided in [`steadfast_proto::node`].

use std::time::Duration;

use bytes::Bytes;
use steadfast::catalog::{Catalog, Txn};
use steadfast_proto::catalog::{DrainRow, Intent, Key, NodeRow, ProbationRow, View};
use steadfast_proto::ids::NodeId;
use steadfast_proto::node::{CandidateStatus, Status};
use steadfast_proto::probation::{Criterion, Standing};

use super::Agent;
use super::operations::What;
use crate::api::convert::{Names, node_name};
use crate::api::types;
use crate::codes::Code;
use crate::failure::Failure;
use crate::traces;

/// How often the engine's voters are compared with the members.
const VOTERS_EVERY: Duration = Duration::from_secs(2);

/// Most containers whose moves are part of the trace of one request.
const TRACED_MOVES_MAX: usize = 128;

impl Agent {
    /// Has `new`, a candidate that is ready, take the place of `old` in one view; answers when it has.
    pub(crate) async fn replace_node(&self, old: &str, new: &str) -> Result<types::Changed, Failure> {
        let (old, new) = (self.rows.node(old).await?, self.rows.node(new).await?);
        let status = self.status().await?;
        let view = installed(&status)?;
        check_pair(&status, view, &old, &new)?;
        candidate(&status, view, &old, &new)?;
        self.operate(What::Replace { old: old.id, new: new.id }, &new.name).await?;
        self.changed().await
    }

    /// Has `name` hand over its containers and take on nothing more, or takes that back; answers when it has none left.
    pub(crate) async fn drain_node(&self, name: &str, undo: bool) -> Result<types::Changed, Failure> {
        let node = self.rows.node(name).await?;
        let found: Option<(DrainRow, u64)> = self.rows.get(&Key::Drain(node.id)).await?;
        let version = found.map_or(0, |(_, version)| version);
        if !undo {
            self.operate(What::Drain { node: node.id, version }, &node.name).await?;
            return self.changed().await;
        }
        if found.is_some() {
            let key = Key::Drain(node.id).encode();
            let txn = Txn { compare: vec![(key.clone(), version)], puts: vec![(key, None)] };
            if !self.rows.commit(txn).await?.succeeded {
                let message = format!("what {name} was asked for changed meanwhile; try again");
                return Err(Failure::new(Code::NameTaken, message));
            }
        }
        self.changed().await
    }

    /// Has `name` hand over all its duties and leave the view; answers when it is no member any more.
    pub(crate) async fn leave_node(&self, name: &str) -> Result<types::Changed, Failure> {
        let node = self.rows.node(name).await?;
        let status = self.status().await?;
        let view = installed(&status)?;
        if view.has(node.id) && view.members.len() == 1 {
            let message = format!("{} is the only member; a cluster without members is none", node.name);
            return Err(Failure::new(Code::ReplaceRefused, message));
        }
        check_last_copies(&status, view, &node)?;
        let found: Option<(DrainRow, u64)> = self.rows.get(&Key::Drain(node.id)).await?;
        let version = found.map_or(0, |(_, version)| version);
        self.operate(What::Leave { node: node.id, version }, &node.name).await?;
        self.changed().await
    }

    async fn changed(&self) -> Result<types::Changed, Failure> {
        let status = self.status().await?;
        let view = installed(&status)?;
        let names: Names = status.nodes.iter().map(|(id, row)| (*id, row.name.clone())).collect();
        let shown = crate::api::convert::view(view, &names);
        Ok(types::Changed { view: shown.id, members: shown.members, reason: shown.reason })
    }

    /// Takes the votes in the engine from nodes that left or were replaced: only its leader does, and only while more
    /// than half of the voters that stay are members.
    pub(super) async fn tend_voters(self: std::sync::Arc<Self>) {
        // In etcd no node votes.
        let Some(embedded) = self.engine.embedded().cloned() else { return };
        loop {
            tokio::time::sleep(VOTERS_EVERY).await;
            let Ok(status) = self.status().await else { continue };
            let Some(view) = &status.view else { continue };
            let engine = embedded.status();
            if embedded.leader() != Some(super::state::engine_id(self.id)) {
                continue;
            }
            let is_over = |row: &&NodeRow| {
                engine.voters.contains_key(&row.engine_id)
                    && !view.has(row.id)
                    && (!view.removed.contains_key(&row.id) || view.successors.contains_key(&row.id))
                    && status.draining.get(&row.id).is_none_or(|drain| drain.leave)
                    && !status.candidates.contains_key(&row.id)
            };
            let Some(over) = status.nodes.values().find(is_over) else { continue };
            let there = status.nodes.values().filter(|row| {
                row.id != over.id && engine.voters.contains_key(&row.engine_id) && view.has(row.id)
            });
            if there.count() * 2 <= engine.voters.len().saturating_sub(1) {
                continue;
            }
            match embedded.demote(over.engine_id).await {
                Ok(()) => tracing::info!(node = over.name, "it votes no longer: it is no member"),
                Err(error) => tracing::debug!(node = over.name, %error, "its vote is not taken yet"),
            }
        }
    }
}

/// What has the moves of a node's containers be part of what runs here now.
pub(super) fn causes(status: &Status, owner: NodeId) -> impl Iterator<Item = (String, Option<Bytes>)> {
    let owned = status.containers.values().filter(move |(_, row)| row.owner == owner && row.is_active());
    owned.filter_map(|(_, row)| traces::cause(row.id, row.epoch.next())).take(TRACED_MOVES_MAX)
}

pub(super) fn installed(status: &Status) -> Result<&View, Failure> {
    status
        .view
        .as_ref()
        .ok_or_else(|| Failure::new(Code::NoQuorum, "this node has no view yet; is any other node running?"))
}

/// That no checkpoint is lost with `node` that nobody can take anew.
fn check_last_copies(status: &Status, view: &View, node: &NodeRow) -> Result<(), Failure> {
    let mut rows = status.containers.values().map(|(_, row)| row);
    let Some(row) = rows.find(|row| view.loses_with(node.id, row)) else { return Ok(()) };
    let (name, own) = (&row.spec.name, &node.name);
    let message = format!(
        "{own} holds the only copy of the checkpoint of {name}, which does not run; \
         `steadfast restore {name}` it, or `steadfast rm {name}`, first"
    );
    Err(Failure::new(Code::ReplaceRefused, message))
}

pub(super) fn check_pair(status: &Status, view: &View, old: &NodeRow, new: &NodeRow) -> Result<(), Failure> {
    let refuse = |code, message: String| Err(Failure::new(code, message));
    if old.id == new.id {
        return refuse(Code::ReplaceRefused, format!("{} can't take its own place", new.name));
    }
    if view.has(new.id) {
        return refuse(
            Code::NodeIsMember,
            format!("{} is a member already; name a candidate (`steadfast nodes`)", new.name),
        );
    }
    if !view.has(old.id) && !view.removed.contains_key(&old.id) {
        return refuse(
            Code::ReplaceRefused,
            format!("{} has no place to take: it is no member and was not removed", old.name),
        );
    }
    let other = view.successors.get(&old.id).or_else(|| {
        let same = |candidate: &&CandidateStatus| {
            candidate.row.intent == Intent::Replace(old.id)
                && candidate.row.node != new.id
                && candidate.row.eliminated.is_none()
        };
        status.candidates.values().find(same).map(|candidate| &candidate.row.node)
    });
    if let Some(other) = other.filter(|_| !view.has(old.id) || !view.successors.contains_key(&old.id)) {
        let names: Names = status.nodes.iter().map(|(id, row)| (*id, row.name.clone())).collect();
        return refuse(
            Code::ReplaceRefused,
            format!("{} takes the place of {} already", node_name(&names, *other), old.name),
        );
    }
    Ok(())
}

/// The row of a candidate that is ready but for what it must take over.
pub(super) fn candidate<'a>(
    status: &'a Status,
    view: &View,
    old: &NodeRow,
    new: &NodeRow,
) -> Result<(&'a ProbationRow, u64), Failure> {
    let Some(candidate) = status.candidates.get(&new.id) else {
        return Err(Failure::new(
            Code::CandidateNotReady,
            format!(
                "{} is not in probation: start its agent with `standby = true` in its [node], so that it waits in readiness",
                new.name
            ),
        ));
    };
    if let Some((criterion, measured)) = &candidate.row.eliminated {
        return Err(eliminated(&new.name, *criterion, measured));
    }
    let waits: Vec<String> = (candidate.evidence.iter())
        .filter(|one| one.standing != Standing::Pass && one.criterion != Criterion::Duties)
        .map(|one| format!("{}: {}", one.criterion, one.measured))
        .collect();
    if !waits.is_empty() {
        return Err(Failure::new(
            Code::CandidateNotReady,
            format!("{} is not ready: {}", new.name, waits.join("; ")),
        ));
    }
    let runs = |row: &NodeRow| !row.criu.is_empty();
    if view.has(old.id) && runs(old) && (old.criu != new.criu || old.processor != new.processor) {
        let owns = status.containers.values().any(|(_, row)| row.owner == old.id && row.is_active());
        if owns {
            return Err(Failure::new(
                Code::ReplaceRefused,
                format!(
                    "{} can't go on with what runs on {}: its CRIU or its processor is another; `steadfast drain {}` first",
                    new.name, old.name, old.name
                ),
            ));
        }
    }
    Ok((&candidate.row, candidate.revision))
}

pub(super) fn eliminated(name: &str, criterion: Criterion, measured: &str) -> Failure {
    Failure::new(
        Code::CandidateNotReady,
        format!("{name} was eliminated for {criterion}: {measured}; {}", criterion.advice()),
    )
}

/// How a node that is no member stands, and its evidence.
pub(super) fn probation(status: &Status, node: NodeId) -> Option<types::Probation> {
    let candidate = status.candidates.get(&node)?;
    let names: Names = status.nodes.iter().map(|(id, row)| (*id, row.name.clone())).collect();
    let evidence = candidate.evidence.iter().map(|one| types::Evidence {
        criterion: one.criterion.name().to_owned(),
        standing: match one.standing {
            Standing::Pass => "pass",
            Standing::Pending => "pending",
            Standing::Fail => "fail",
        }
        .to_owned(),
        measured: worded(&one.measured, &names),
    });
    let eliminated = candidate.row.eliminated.as_ref().map(|(criterion, measured)| types::Eliminated {
        criterion: criterion.name().to_owned(),
        measured: worded(measured, &names),
        advice: criterion.advice().to_owned(),
    });
    let (intent, replaces) = match candidate.row.intent {
        Intent::Join => ("join", None),
        Intent::Standby => ("standby", None),
        Intent::Replace(old) => ("replace", Some(node_name(&names, old))),
    };
    let is_ready = eliminated.is_none()
        && !candidate.evidence.is_empty()
        && candidate.evidence.iter().all(|one| one.standing == Standing::Pass);
    Some(types::Probation {
        intent: intent.to_owned(),
        replaces,
        ready: is_ready,
        applied_unix_ms: candidate.row.applied_unix_ms,
        seconds: candidate.age.as_secs_f64(),
        evidence: evidence.collect(),
        eliminated,
    })
}

/// The core names members by their ids; people know them by name.
fn worded(measured: &str, names: &Names) -> String {
    names.iter().fold(measured.to_owned(), |text, (id, name)| text.replace(&id.to_string(), name))
}
