//! What users ask of containers, as transactions on their rows.
//!
//! Each verb is one compare-and-set (the cores of all nodes act on the committed row) or, for a checkpoint, a request to
//! the core of the owner. A refused verb changes nothing. Nothing here starts or stops anything itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use steadfast::catalog::{Txn, WatchItem};
use steadfast_proto::catalog::{
    ContainerRow, ContainerSpec, ContainerState, Desired, Key, NameRow, NodeRow, View,
};
use steadfast_proto::ids::{ContainerId, Epoch, NodeId};
use steadfast_proto::node::Status;
use steadfast_proto::placement::{self, Candidate};

use super::Agent;
use super::operations::What;
use super::rows;
use crate::api::convert::{self, now_unix_ms};
use crate::api::types;
use crate::codes::Code;
use crate::failure::Failure;
use crate::traces;
use crate::units;

/// Most containers in one cluster.
const CONTAINERS_MAX: usize = 1024;
/// How often a verb is tried on a row that changes under it.
const ATTEMPTS: u32 = 20;
const GRACE_MAX: Duration = Duration::from_secs(3600);

impl Agent {
    /// Puts a new container into the catalog; its owner starts it.
    pub(crate) async fn run_container(
        &self,
        request: types::RunRequest,
    ) -> Result<types::Container, Failure> {
        let mut spec = convert::checked_spec(request.spec)?;
        self.refuse_taken(&spec).await?;
        let status = self.status().await?;
        if let Some(name) = &request.node {
            let node = self.rows.node(name).await?;
            self.check_can_run(&node, &status)?;
            spec.nodes = BTreeSet::from([node.id]);
        }
        let candidates = self.candidates(&status, &spec).await?;
        let Some(owner) = placement::start_on(&spec, &candidates) else {
            return Err(no_node(&spec, &candidates));
        };
        // The node asked for is where it starts; later it may go anywhere.
        spec.nodes = BTreeSet::new();
        let id = ContainerId(uuid::Uuid::new_v4().as_u128());
        let row = new_row(id, spec, owner);
        let name_key = Key::Name(row.spec.name.clone()).encode();
        let container_key = Key::Container(id).encode();
        let mut txn = Txn {
            compare: vec![(name_key.clone(), 0), (container_key.clone(), 0)],
            puts: vec![
                (name_key, Some(rows::encode(&NameRow { container: id })?)),
                (container_key, Some(rows::encode(&row)?)),
            ],
        };
        txn.puts.extend(traces::cause(id, row.epoch));
        let reply = self.rows.commit(txn).await?;
        if !reply.succeeded {
            return Err(name_taken(&row.spec.name));
        }
        Ok(self.shown(&row, reply.revision))
    }

    /// The members that are well, with the devices that `spec` may ask for.
    pub(super) async fn candidates(
        &self,
        status: &Status,
        spec: &ContainerSpec,
    ) -> Result<Vec<Candidate>, Failure> {
        let mut located = self.located_for(spec).await?;
        let seeing = |candidate: Candidate| {
            let devices = located.remove(&candidate.node).unwrap_or_default();
            candidate.seeing(Arc::new(devices))
        };
        Ok(candidates(status).into_iter().map(seeing).collect())
    }

    async fn refuse_taken(&self, spec: &ContainerSpec) -> Result<(), Failure> {
        let all: Vec<(ContainerRow, u64)> = self.rows.all("container/").await?;
        if all.iter().any(|(row, _)| row.spec.name == spec.name) {
            return Err(name_taken(&spec.name));
        }
        if all.len() >= CONTAINERS_MAX {
            return Err(Failure::new(
                Code::BadRequest,
                format!(
                    "the cluster has {CONTAINERS_MAX} containers, and more are not possible; remove some with `steadfast rm`"
                ),
            ));
        }
        let address = |spec: &ContainerSpec| {
            spec.address.as_ref().and_then(|text| text.split('/').next().map(str::to_owned))
        };
        let Some(wanted) = address(spec) else { return Ok(()) };
        match all.iter().find(|(row, _)| address(&row.spec).as_deref() == Some(wanted.as_str())) {
            Some((row, _)) => Err(Failure::new(
                Code::AddressTaken,
                format!("the address {wanted} belongs to container {}; choose another", row.spec.name),
            )),
            None => Ok(()),
        }
    }

    fn check_can_run(&self, node: &NodeRow, status: &Status) -> Result<(), Failure> {
        if !status.view.as_ref().is_some_and(|view| view.has(node.id)) {
            return Err(Failure::new(
                Code::NoEligibleNode,
                format!("{} is not in the view just now; `steadfast nodes` shows who is", node.name),
            ));
        }
        if node.criu.is_empty() {
            return Err(Failure::new(
                Code::NoEligibleNode,
                format!("{} can't run containers; `steadfast check` there says why", node.name),
            ));
        }
        Ok(())
    }

    /// Asks the owner to stop a container.
    pub(crate) async fn stop_container(
        &self,
        name: &str,
        request: types::StopRequest,
    ) -> Result<types::Container, Failure> {
        let grace = request.grace.as_deref().unwrap_or("10s");
        let grace = units::duration_within(grace, Duration::ZERO, GRACE_MAX)
            .map_err(|message| Failure::new(Code::BadRequest, format!("grace: {message}")))?;
        let desired = Desired::Stop { grace_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX) };
        self.change(name, |row| {
            if !row.is_active() {
                return Err(Failure::new(
                    Code::WrongState,
                    format!("{name} does not run, so there is nothing to stop"),
                ));
            }
            Ok(ContainerRow { desired, ..row.clone() })
        })
        .await
    }

    /// Removes a container's rows; its owner and holders clean up.
    pub(crate) async fn remove_container(&self, name: &str, force: bool) -> Result<types::Done, Failure> {
        for _ in 0..ATTEMPTS {
            let (row, version) = self.rows.container(name).await?;
            if row.is_active() && !force {
                return Err(Failure::new(
                    Code::WrongState,
                    format!(
                        "{name} is still running; stop it first (`steadfast stop {name}`), or remove it with --force"
                    ),
                ));
            }
            let key = Key::Container(row.id).encode();
            let mut txn = Txn {
                compare: vec![(key.clone(), version)],
                puts: vec![(key, None), (Key::Name(name.to_owned()).encode(), None)],
            };
            txn.puts.extend(traces::forget(&self.rows, row.id));
            if self.rows.commit(txn).await?.succeeded {
                return Ok(types::Done { done: format!("{name} is removed with its checkpoints") });
            }
        }
        Err(busy(name))
    }

    /// Restarts a container from a checkpoint; a running copy is ended first. Answers when its next owner is known.
    pub(crate) async fn restore_container(
        &self,
        name: &str,
        request: types::RestoreRequest,
    ) -> Result<types::Container, Failure> {
        let (row, _) = self.rows.container(name).await?;
        check_checkpoint(&row, request.checkpoint)?;
        let to = match &request.node {
            Some(node) => {
                let node = self.rows.node(node).await?;
                self.check_can_run(&node, &self.status().await?)?;
                Some(node.id)
            }
            None => None,
        };
        let (container, epoch, number) = (row.id, row.epoch, request.checkpoint);
        let operation = self.begin(What::Restore { container, epoch, number, to }, name).await?;
        let is_restored = || {
            let now = self.rows.get_stale::<ContainerRow>(&Key::Container(container));
            now.is_none_or(|(now, _)| now.epoch > epoch)
        };
        self.follow_operation(&operation, is_restored).await?;
        let (row, revision) = self.rows.container(name).await?;
        Ok(self.shown(&row, revision))
    }

    /// Takes a checkpoint of a container, wherever it runs.
    pub(crate) async fn checkpoint_container(&self, name: &str) -> Result<types::Checkpoint, Failure> {
        let (row, _) = self.rows.container(name).await?;
        if row.state != ContainerState::Running {
            let state = self.shown(&row, 0).state;
            return Err(Failure::new(
                Code::WrongState,
                format!("{name} is {state}, and only a running container can be checkpointed"),
            ));
        }
        let after = row.latest.as_ref().map_or(0, |latest| latest.number);
        self.operate(What::Checkpoint { container: row.id, epoch: row.epoch, after }, name).await?;
        let (row, _) = self.rows.container(name).await?;
        let Some(latest) = row.latest.clone() else {
            let message = format!("the checkpoint of {name} that was taken is gone already");
            return Err(Failure::new(Code::CheckpointNotFound, message));
        };
        Ok(convert::checkpoint(&row, &latest, &self.rows.names()))
    }

    /// Takes a checkpoint of a container that this node owns.
    pub(super) async fn checkpoint_here(&self, container: ContainerId) -> Result<(), Failure> {
        let named = self.rows.get_stale::<ContainerRow>(&Key::Container(container));
        let name = named.map_or_else(|| container.to_string(), |(row, _)| row.spec.name);
        let _asked = self.asked.during(container);
        let taken = self.node.checkpoint(container).await.map_err(|error| {
            let code = match &error {
                steadfast::node::RequestError::Unanswered(why) => super::report::unanswered(*why),
                steadfast::node::RequestError::Refused(reason) if reason.contains("checkpoint memory") => {
                    Code::NoCheckpointMemory
                }
                steadfast::node::RequestError::Refused(_) => Code::CheckpointFailed,
            };
            Failure::new(code, self.with_names(&format!("no checkpoint of {name}: {error}")))
        });
        taken.map(|_| ())
    }

    /// One compare-and-set of a container's row, repeated while others change it.
    async fn change<F>(&self, name: &str, next: F) -> Result<types::Container, Failure>
    where
        F: Fn(&ContainerRow) -> Result<ContainerRow, Failure>,
    {
        for _ in 0..ATTEMPTS {
            let (row, version) = self.rows.container(name).await?;
            let next = ContainerRow { changed_unix_ms: now_unix_ms(), ..next(&row)? };
            let mut txn =
                Txn::compare_and_set(Key::Container(row.id).encode(), version, rows::encode(&next)?);
            txn.puts.extend(traces::cause(row.id, next.epoch));
            let reply = self.rows.commit(txn).await?;
            if reply.succeeded {
                return Ok(self.shown(&next, reply.revision));
            }
        }
        Err(busy(name))
    }

    /// A row as the API shows it, by what this node knows of the others.
    pub(crate) fn shown(&self, row: &ContainerRow, revision: u64) -> types::Container {
        let view = self.rows.get_stale::<View>(&Key::View).map(|(view, _)| view);
        let shown = convert::container(row, revision, &self.rows.names(), view.as_ref(), now_unix_ms());
        types::Container { reason: shown.reason.map(|reason| self.with_names(&reason)), ..shown }
    }

    /// Every state of a container's row from now on, as this node has it.
    pub(crate) fn follow(&self, id: ContainerId) -> Follow {
        let key = Key::Container(id).encode();
        let rows = self.rows.catalog().range_stale(&key);
        let first = rows.rows.iter().find(|(found, _)| *found == key).map(|(_, versioned)| versioned.clone());
        Follow {
            first: Some(first.map(|versioned| rows::decode(&key, &versioned)).transpose()),
            watch: self.rows.catalog().watch(key.clone(), rows.revision),
            key,
        }
    }
}

/// Follows one row.
pub(crate) struct Follow {
    first: Option<Result<Option<(ContainerRow, u64)>, Failure>>,
    watch: steadfast::catalog::WatchStream,
    key: String,
}

impl Follow {
    /// The row as it is, then after each change; `None` when it is gone.
    pub(crate) async fn next(&mut self) -> Result<Option<(ContainerRow, u64)>, Failure> {
        if let Some(first) = self.first.take() {
            return first;
        }
        loop {
            let item = self.watch.next().await.map_err(|error| rows::catalog_failure(&error))?;
            let found: BTreeMap<String, Option<steadfast::catalog::Versioned>> = match item {
                WatchItem::Changed(watched) => watched.changes.into_iter().collect(),
                WatchItem::Resync { rows, .. } => {
                    let mut found: BTreeMap<String, _> =
                        rows.into_iter().map(|(key, row)| (key, Some(row))).collect();
                    found.entry(self.key.clone()).or_insert(None);
                    found
                }
            };
            match found.get(&self.key) {
                None => {}
                Some(None) => return Ok(None),
                Some(Some(versioned)) => return rows::decode(&self.key, versioned).map(Some),
            }
        }
    }
}

/// The members that are well, with what this node knows of each.
pub(crate) fn candidates(status: &Status) -> Vec<Candidate> {
    let Some(view) = &status.view else { return Vec::new() };
    let mut owned: BTreeMap<NodeId, usize> = BTreeMap::new();
    for (_, row) in status.containers.values().filter(|(_, row)| row.is_active()) {
        *owned.entry(row.owner).or_default() += 1;
    }
    let well = |id: &NodeId| view.has(*id) && !status.peers.get(id).is_some_and(|peer| peer.suspected);
    let rows = status.nodes.values().filter(|row| well(&row.id));
    rows.map(|row| {
        let free = if row.id == status.id {
            status.free_bytes
        } else {
            status.peers.get(&row.id).map_or(0, |peer| peer.free_bytes)
        };
        Candidate::new(row, free, owned.get(&row.id).copied().unwrap_or(0))
    })
    .collect()
}

fn new_row(id: ContainerId, spec: ContainerSpec, owner: NodeId) -> ContainerRow {
    ContainerRow {
        id,
        spec,
        owner,
        epoch: Epoch(1),
        state: ContainerState::Starting,
        desired: Desired::Run,
        latest: None,
        parent: None,
        restore_number: None,
        after_loss: false,
        tried: BTreeSet::new(),
        changed_unix_ms: now_unix_ms(),
    }
}

pub(super) fn check_checkpoint(row: &ContainerRow, number: Option<u64>) -> Result<u64, Failure> {
    let name = &row.spec.name;
    let kept: Vec<String> = row.checkpoints().map(|checkpoint| checkpoint.number.to_string()).collect();
    let chosen = match number {
        None => row.latest.as_ref(),
        Some(number) => row.checkpoints().find(|checkpoint| checkpoint.number == number),
    };
    match (chosen, number) {
        (Some(checkpoint), _) if checkpoint.copies.is_empty() => Err(Failure::new(
            Code::CheckpointLost,
            format!("no node holds a copy of checkpoint {} of {name} any more", checkpoint.number),
        )),
        (Some(checkpoint), _) => Ok(checkpoint.number),
        (None, Some(number)) if !kept.is_empty() => Err(Failure::new(
            Code::CheckpointNotFound,
            format!("{name} has no checkpoint {number}; kept are {}", kept.join(" and ")),
        )),
        (None, _) => Err(Failure::new(
            Code::CheckpointNotFound,
            format!(
                "{name} has no committed checkpoint; take one while it runs: `steadfast checkpoint {name}`"
            ),
        )),
    }
}

pub(super) fn no_node(spec: &ContainerSpec, candidates: &[Candidate]) -> Failure {
    let asked = |candidate: &&Candidate| spec.nodes.is_empty() || spec.nodes.contains(&candidate.node);
    let asked: Vec<&Candidate> = candidates.iter().filter(asked).collect();
    if !asked.is_empty() && !asked.iter().any(|candidate| candidate.meets(spec)) {
        return Failure::new(Code::NoEligibleNode, unmet(spec, &asked));
    }
    let able = candidates.iter().filter(|candidate| !candidate.criu.is_empty()).count();
    let message = match (candidates.len(), able) {
        (0, _) => "no member is well just now; `steadfast status` shows who is missing".to_owned(),
        (_, 0) => "no member can run containers; `steadfast check` on each says why".to_owned(),
        (members, able) => format!(
            "of {members} members that are well {able} can run containers, and none of them fits: the CRIU version or processor differs, or it failed to start there"
        ),
    };
    Failure::new(Code::NoEligibleNode, message)
}

/// Why none of these nodes has what a container requires.
fn unmet(spec: &ContainerSpec, candidates: &[&Candidate]) -> String {
    let in_domain = |candidate: &&&Candidate| {
        spec.require.domain.as_ref().is_none_or(|domain| candidate.domain.contains(domain))
    };
    let there: Vec<&&Candidate> = candidates.iter().filter(in_domain).collect();
    if let (Some(domain), true) = (&spec.require.domain, there.is_empty()) {
        return format!(
            "no member that is well and may run it is in the failure domain {domain}; `steadfast nodes` shows the domains"
        );
    }
    let sees = |device: &str| there.iter().any(|candidate| candidate.devices.contains(device));
    match spec.require.devices.iter().find(|device| !sees(device)) {
        Some(device) => format!(
            "no member that is well and may run it surely sees the device {device}; `steadfast device list` shows who sees it, and whether that is one device"
        ),
        None => "no member that is well and may run it sees all the devices that it asks for".to_owned(),
    }
}

fn name_taken(name: &str) -> Failure {
    Failure::new(
        Code::NameTaken,
        format!(
            "a container named {name} is there already; choose another name, or remove it with `steadfast rm {name}`"
        ),
    )
}

fn busy(name: &str) -> Failure {
    Failure::new(
        Code::TimedOut,
        format!("the row of {name} changes faster than it could be written; try again"),
    )
}
