//! Containers: what this node has, what the rows say it should have, and the steps between.
//!
//! A row is obeyed only as committed; what this node has in another epoch than its row says is destroyed. The
//! owner starts, checkpoints and ends; for an owner that was removed and fenced, the members plan the recovery.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Batch, Event, Job, JobId, Node, Outcome, Request, RequestId, Row};
use crate::catalog::{CheckpointRef, ContainerRow, ContainerState, Desired, Exit, Key};
use crate::flaw::{Flaw, is_planted};
use crate::ids::{ContainerId, Epoch, NodeId};
use crate::placement::Candidate;
use crate::recovery::{self, Plan};
use crate::time::Time;

/// How long a recovery's row is given to commit before the next in rank tries.
const STANDBY: Duration = Duration::from_millis(200);

/// The longest pause before a container that keeps failing is restarted.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A container that ran this long starts its restarts anew.
const STABLE: Duration = Duration::from_secs(10);

/// How long until a container that could not be ended or removed is ended or removed again.
const RETRY: Duration = Duration::from_millis(500);

/// How soon after a checkpoint another one may be taken only because a holder goes.
const MOVE_PAUSE: Duration = Duration::from_secs(1);

/// How many users may wait for one checkpoint.
const WAITING_MAX: usize = 64;

/// A container that this node has.
#[derive(Clone, Debug)]
pub struct Local {
    /// The epoch it was started in.
    pub epoch: Epoch,
    /// How far it is.
    pub phase: Phase,
    checkpoint: Option<Capture>,
    /// A sealed checkpoint that is not committed yet.
    pub(super) sealed: Option<CheckpointRef>,
    /// A sealed checkpoint for which the program stands still, until it is handed over.
    pub(super) held: Option<CheckpointRef>,
    /// It stands still until `sealed` is committed.
    pub(super) releasing: bool,
    /// When a copy of its checkpoint may next be made elsewhere for a holder that goes.
    moves_at: Option<Time>,
    next_checkpoint: Option<Time>,
    failures: u32,
    waiting: Vec<RequestId>,
    answering: Vec<RequestId>,
    /// The job that is to end it.
    ending: Option<JobId>,
    /// When to end or remove it again, after that failed.
    retry_at: Option<Time>,
}

/// How far a container on this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is being started or restored.
    Bringing(JobId),
    /// It runs, or is frozen.
    Up,
    /// It was told to end.
    Ending,
    /// Its first process ended.
    Ended(Exit),
    /// It could not be started; why.
    Broken(String),
    /// It is being removed.
    Destroying(JobId),
}

#[derive(Clone, Debug)]
struct Capture {
    job: JobId,
    lapses: u64,
    hold: bool,
}

/// How often a container was restarted in a row.
#[derive(Clone, Debug, Default)]
pub(super) struct Restarts {
    count: u32,
    not_before: Option<Time>,
    orphan_since: Option<(Time, Epoch)>,
}

impl Local {
    fn new(epoch: Epoch, phase: Phase) -> Local {
        Local {
            epoch,
            phase,
            checkpoint: None,
            sealed: None,
            held: None,
            releasing: false,
            moves_at: None,
            next_checkpoint: None,
            failures: 0,
            waiting: Vec::new(),
            answering: Vec::new(),
            ending: None,
            retry_at: None,
        }
    }
}

impl Node {
    pub(super) fn row_changed(
        &mut self,
        now: Time,
        revision: u64,
        id: ContainerId,
        row: Option<Box<ContainerRow>>,
        out: &mut Batch,
    ) {
        let before = self.containers.get(&id).map(|(_, row)| row.clone());
        let Some(row) = row else {
            self.containers.remove(&id);
            self.restarts.remove(&id);
            self.memory.forget(id);
            self.start_job(Job::Collect, out);
            return;
        };
        let moved = before
            .as_ref()
            .is_none_or(|old| (&old.state, old.owner, old.epoch) != (&row.state, row.owner, row.epoch));
        if moved {
            out.publish.push(Event::Moved { container: id, row: row.clone() });
        }
        if before.as_ref().is_none_or(|old| !old.checkpoints().eq(row.checkpoints())) {
            self.memory.look_through(now);
        }
        let latest_before = before.as_ref().and_then(|old| old.latest.as_ref()).map(|latest| latest.number);
        if let Some(latest) = &row.latest
            && latest_before.is_none_or(|number| number < latest.number)
        {
            out.publish.push(Event::Committed { container: id, checkpoint: latest.clone() });
            self.answer_committed(id, latest, out);
            self.start_job(Job::Collect, out);
        }
        if row.state == ContainerState::Running
            && let Some(restarts) = self.restarts.get_mut(&id)
        {
            restarts.orphan_since = None;
            restarts.not_before = restarts.not_before.max(Some(now));
        }
        // A hand-over rests on the row as it was: after any change of it none can commit any more.
        let (own, epoch) = (self.settings.id, row.epoch);
        let is_mine = row.owner == own && row.is_active();
        self.containers.insert(id, (revision, *row));
        if is_mine && self.local.get(&id).is_some_and(|local| local.releasing && local.epoch == epoch) {
            self.release(id, out);
        }
    }

    pub(super) fn adopted(&mut self, now: Time, container: ContainerId, epoch: Epoch, held: bool) {
        let mut local = Local::new(epoch, Phase::Up);
        local.next_checkpoint = Some(now);
        // The last agent may have proposed to hand it over.
        local.releasing = held;
        self.local.insert(container, local);
    }

    pub(super) fn exited(&mut self, container: ContainerId, epoch: Epoch, exit: Exit) {
        if let Some(local) = self.local.get_mut(&container)
            && local.epoch == epoch
        {
            match local.phase {
                Phase::Up | Phase::Ending => local.phase = Phase::Ended(exit),
                Phase::Bringing(_) | Phase::Ended(_) | Phase::Broken(_) | Phase::Destroying(_) => {}
            }
        }
    }

    pub(super) fn requested(&mut self, id: RequestId, request: Request, out: &mut Batch) {
        let Request::Checkpoint(container) = request;
        let refusal = match self.local.get_mut(&container) {
            Some(local) if local.phase == Phase::Up && local.waiting.len() < WAITING_MAX => {
                local.waiting.push(id);
                return;
            }
            Some(local) if local.phase == Phase::Up => {
                "too many requests wait for its next checkpoint already"
            }
            Some(_) => "it is not running here",
            None => "this node does not run it",
        };
        out.publish.push(Event::Answer(id, Err(refusal.to_owned())));
    }

    pub(super) fn job_done(&mut self, now: Time, job: JobId, outcome: Outcome, out: &mut Batch) {
        let lapses = self.lease.lapses;
        let Some((id, local)) = self.local.iter_mut().find(|(_, local)| local.awaits(job)) else { return };
        let id = *id;
        if local.ending == Some(job) {
            local.ending = None;
            if let (Outcome::Failed(_), Phase::Ending) = (&outcome, &local.phase) {
                local.phase = Phase::Up;
                local.retry_at = Some(now + RETRY);
            }
            return;
        }
        if local.phase == Phase::Destroying(job) {
            if let Outcome::Failed(_) = outcome {
                // It may still be there, frozen: forgetting it would leave it for ever.
                local.retry_at = Some(now + RETRY);
                return;
            }
            let local = self.local.remove(&id);
            let waiting =
                local.into_iter().flat_map(|local| local.waiting.into_iter().chain(local.answering));
            let gone = "the container was removed from this node before the checkpoint was committed";
            out.publish.extend(waiting.map(|request| Event::Answer(request, Err(gone.to_owned()))));
            return;
        }
        if local.phase == Phase::Bringing(job) {
            local.phase = match outcome {
                Outcome::Failed(reason) => Phase::Broken(reason),
                Outcome::Up | Outcome::Sealed(_) | Outcome::Finished => Phase::Up,
            };
            local.next_checkpoint = Some(now);
            return;
        }
        let Some(capture) = local.checkpoint.take() else { return };
        match outcome {
            Outcome::Sealed(checkpoint) if capture.lapses == lapses => {
                local.failures = 0;
                if capture.hold {
                    local.held = Some(*checkpoint);
                } else {
                    local.sealed = Some(*checkpoint);
                }
                return;
            }
            Outcome::Sealed(_) => {
                let reason = "the node's lease lapsed while it was taken; it was discarded";
                self.checkpoint_failed(now, id, reason, out);
            }
            Outcome::Failed(reason) => self.checkpoint_failed(now, id, &reason, out),
            Outcome::Up | Outcome::Finished => {
                self.checkpoint_failed(now, id, "its job ended without one", out)
            }
        }
        if capture.hold {
            // Nothing was proposed with it yet, so it can be let go on at once.
            self.release(id, out);
        }
    }

    /// The containers that may run on this node while its lease lives, each in its epoch.
    pub(super) fn runnable(&self) -> Vec<(ContainerId, Epoch)> {
        (self.local.iter())
            .filter(|(_, local)| local.held.is_none() && !local.releasing)
            .filter(|(id, local)| self.may_run(**id, local) || is_planted(Flaw::ThawWithoutFreshLease))
            .map(|(id, local)| (*id, local.epoch))
            .collect()
    }

    fn may_run(&self, id: ContainerId, local: &Local) -> bool {
        let is_member = self.view().is_some_and(|view| view.has(self.settings.id));
        let owns = self.owned(id).is_some_and(|row| row.epoch == local.epoch && row.is_active());
        is_member && owns && !matches!(local.phase, Phase::Destroying(_))
    }

    fn owned(&self, id: ContainerId) -> Option<&ContainerRow> {
        self.containers.get(&id).map(|(_, row)| row).filter(|row| row.owner == self.settings.id)
    }

    /// Takes every container one step closer to what its row says.
    pub(super) fn tend_containers(&mut self, now: Time, out: &mut Batch) {
        if !self.synced || !self.adopted_all {
            return;
        }
        let ids: BTreeSet<ContainerId> = self.local.keys().chain(self.containers.keys()).copied().collect();
        for id in ids {
            self.remove_strays(now, id, out);
            self.tend_owned(now, id, out);
            self.tend_checkpoint(now, id, out);
            self.tend_orphan(now, id, out);
            self.disown(now, id, out);
        }
        self.tend_memory(now, out);
    }

    /// When a checkpoint or a restart is due that is not due yet. One that is overdue waits for something else
    /// than time.
    pub(super) fn containers_deadline(&self, now: Time) -> Option<Time> {
        let checkpoints = self.local.values().filter_map(|local| {
            local.next_checkpoint.filter(|_| local.phase == Phase::Up && local.checkpoint.is_none())
        });
        let restarts = self.restarts.values().filter_map(|restarts| restarts.not_before);
        checkpoints.chain(restarts).filter(|at| *at > now).min()
    }

    /// Destroys what this node has and its row, as committed, does not say it should have.
    fn remove_strays(&mut self, now: Time, id: ContainerId, out: &mut Batch) {
        let Some(local) = self.local.get(&id) else { return };
        let wanted = self.owned(id).is_some_and(|row| row.epoch == local.epoch && row.is_active());
        let waits = match local.phase {
            // It stays frozen; and removed before it is there, it would come after its removal.
            Phase::Bringing(_) => true,
            Phase::Destroying(_) => local.retry_at.is_none_or(|at| now < at),
            Phase::Up | Phase::Ending | Phase::Ended(_) | Phase::Broken(_) => false,
        };
        if wanted || waits {
            return;
        }
        // A deposed owner may still have a sealed checkpoint in hand; the row's compare-and-set refuses it.
        if is_planted(Flaw::TwoRows) && local.sealed.is_some() && self.containers.contains_key(&id) {
            return;
        }
        let (epoch, forget) = (local.epoch, !self.containers.contains_key(&id));
        let job = self.start_job(Job::Destroy { container: id, epoch, forget }, out);
        if let Some(local) = self.local.get_mut(&id) {
            local.phase = Phase::Destroying(job);
            local.retry_at = None;
        }
    }

    fn tend_owned(&mut self, now: Time, id: ContainerId, out: &mut Batch) {
        let Some(row) = self.owned(id).cloned() else { return };
        if !row.is_active() || !self.lease.live || !self.view().is_some_and(|view| view.has(self.settings.id))
        {
            return;
        }
        let phase = self.local.get(&id).map(|local| local.phase.clone());
        match (phase, &row.state) {
            (None, ContainerState::Running) => self.plan(now, &row, true, out),
            (None, _) if matches!(row.desired, Desired::Stop { .. }) => {
                self.commit(now, recovery_stop(&row, Exit::Never), out);
            }
            (None, ContainerState::Starting) => {
                self.bring(id, Job::Start(Box::new(row.clone())), row.epoch, out)
            }
            (None, ContainerState::Recovering) => match row.restore_from() {
                Some(_) if recovery::holders_are_away(&row, &self.holder_ids()) => {}
                Some(checkpoint) if !checkpoint.copies.is_empty() => {
                    self.bring(id, Job::Restore(Box::new(row.clone())), row.epoch, out);
                }
                Some(_) | None => self.plan(now, &row, row.after_loss, out),
            },
            (Some(Phase::Up), _) => self.tend_up(now, id, &row, out),
            (Some(Phase::Ended(exit)), _) => self.tend_ended(now, &row, exit, out),
            (Some(Phase::Broken(reason)), _) => {
                let next = recovery::failed(&row, &self.holder_ids(), &self.takers(), &reason);
                self.commit(now, next, out);
            }
            (Some(Phase::Bringing(_) | Phase::Ending | Phase::Destroying(_)), _)
            | (None, ContainerState::Stopped(_) | ContainerState::Failed(_) | ContainerState::Lost(_)) => {}
        }
    }

    fn tend_up(&mut self, now: Time, id: ContainerId, row: &ContainerRow, out: &mut Batch) {
        if row.state != ContainerState::Running {
            self.commit(now, recovery::running(row), out);
            return;
        }
        let Desired::Stop { grace_ms } = row.desired else { return };
        if self.local.get(&id).and_then(|local| local.retry_at).is_some_and(|at| now < at) {
            return;
        }
        let grace = Duration::from_millis(u64::from(grace_ms));
        let job = self.start_job(Job::Stop { container: id, epoch: row.epoch, grace }, out);
        if let Some(local) = self.local.get_mut(&id) {
            local.phase = Phase::Ending;
            local.ending = Some(job);
        }
    }

    fn tend_ended(&mut self, now: Time, row: &ContainerRow, exit: Exit, out: &mut Batch) {
        if let Some(next) = recovery::exited(row, exit) {
            self.commit(now, next, out);
            return;
        }
        let restarts = self.restarts.entry(row.id).or_default();
        let due = *restarts.not_before.get_or_insert(now);
        if now < due {
            return;
        }
        if now.since(due) > STABLE {
            restarts.count = 0;
        }
        let pause = Duration::from_millis(100).saturating_mul(1 << restarts.count.min(16)).min(BACKOFF_MAX);
        let next = recovery::restarted(row);
        if self.commit(now, next, out)
            && let Some(restarts) = self.restarts.get_mut(&row.id)
        {
            restarts.count = restarts.count.saturating_add(1);
            restarts.not_before = Some(now + pause);
        }
    }

    fn bring(&mut self, id: ContainerId, job: Job, epoch: Epoch, out: &mut Batch) {
        let job = self.start_job(job, out);
        self.local.insert(id, Local::new(epoch, Phase::Bringing(job)));
    }

    /// Begins a checkpoint that is due, and commits one that is sealed.
    fn tend_checkpoint(&mut self, now: Time, id: ContainerId, out: &mut Batch) {
        let Some((revision, row)) = self.containers.get(&id).cloned() else { return };
        let Some(local) = self.local.get(&id) else { return };
        if let Some(sealed) = local.sealed.clone() {
            self.commit_checkpoint(now, revision, &row, sealed, out);
            return;
        }
        if local.releasing && self.owned(id).is_some_and(|row| row.epoch == local.epoch && row.is_active()) {
            self.commit(now, row, out);
            return;
        }
        let due = local.next_checkpoint.is_some_and(|at| now >= at) && row.spec.every_ms.is_some();
        let moves = local.moves_at.is_none_or(|at| now >= at) && self.moves_a_copy(&row);
        let wanted = ((due || moves) && row.desired == Desired::Run) || !local.waiting.is_empty();
        if wanted {
            self.capture(now, id, &row, false, out);
        }
    }

    /// Begins a checkpoint of a container that runs here, unless one is under way; afterwards it stands still if `hold`.
    pub(super) fn capture(
        &mut self,
        now: Time,
        id: ContainerId,
        row: &ContainerRow,
        hold: bool,
        out: &mut Batch,
    ) {
        let Some(local) = self.local.get(&id) else { return };
        let idle = local.phase == Phase::Up
            && local.checkpoint.is_none()
            && local.sealed.is_none()
            && local.held.is_none()
            && !local.releasing;
        let pauses = local.failures > 0 && local.next_checkpoint.is_some_and(|at| now < at);
        let mine = self.may_run(id, local) && row.state == ContainerState::Running && self.lease.live;
        if !(idle && mine) || (pauses && local.waiting.is_empty()) {
            return;
        }
        let (holders, number) = (self.holders(row), row.next_number());
        let every = row.spec.every_ms.map(|ms| Duration::from_millis(u64::from(ms)));
        let job = self.start_job(Job::Checkpoint { row: Box::new(row.clone()), number, holders, hold }, out);
        let lapses = self.lease.lapses;
        if let Some(local) = self.local.get_mut(&id) {
            local.checkpoint = Some(Capture { job, lapses, hold });
            local.next_checkpoint = every.map(|every| now + every);
            local.moves_at = Some(now + MOVE_PAUSE);
            local.answering = std::mem::take(&mut local.waiting);
        }
    }

    fn commit_checkpoint(
        &mut self,
        now: Time,
        revision: u64,
        row: &ContainerRow,
        sealed: CheckpointRef,
        out: &mut Batch,
    ) {
        let deposed = row.owner != self.settings.id || row.epoch != sealed.epoch || !row.is_active();
        let done = row.latest.as_ref().is_some_and(|latest| latest.number >= sealed.number);
        if done || (deposed && !is_planted(Flaw::TwoRows)) {
            if let Some(local) = self.local.get_mut(&row.id) {
                local.sealed = None;
            }
            if !done {
                self.checkpoint_failed(now, row.id, "this node no longer owns the container", out);
            }
            return;
        }
        let next = ContainerRow { parent: row.latest.clone(), latest: Some(sealed), ..row.clone() };
        let basis = vec![(Key::Container(row.id), revision)];
        self.propose(now, Key::Container(row.id), basis, vec![Row::Container(Box::new(next))], out);
    }

    fn answer_committed(&mut self, id: ContainerId, checkpoint: &CheckpointRef, out: &mut Batch) {
        let Some(local) = self.local.get_mut(&id) else { return };
        if local.sealed.as_ref().is_some_and(|sealed| sealed.manifest == checkpoint.manifest) {
            local.sealed = None;
            let answered = std::mem::take(&mut local.answering);
            out.publish.extend(answered.into_iter().map(|id| Event::Answer(id, Ok(checkpoint.clone()))));
        }
    }

    fn checkpoint_failed(&mut self, now: Time, id: ContainerId, reason: &str, out: &mut Batch) {
        let Some(local) = self.local.get_mut(&id) else { return };
        local.failures = local.failures.saturating_add(1);
        let pause = Duration::from_millis(500).saturating_mul(1 << local.failures.min(8)).min(BACKOFF_MAX);
        if local.next_checkpoint.is_some() {
            local.next_checkpoint = local.next_checkpoint.max(Some(now + pause));
        }
        let answered = std::mem::take(&mut local.answering);
        out.publish.extend(answered.into_iter().map(|id| Event::Answer(id, Err(reason.to_owned()))));
        out.publish.push(Event::CheckpointFailed { container: id, reason: reason.to_owned() });
    }

    /// Plans the recovery of a container whose owner is removed and fenced (PROTOCOLS 0.3).
    fn tend_orphan(&mut self, now: Time, id: ContainerId, out: &mut Batch) {
        let Some((_, row)) = self.containers.get(&id) else { return };
        let Some(view) = self.view() else { return };
        let on_own_verdict = is_planted(Flaw::ActOnOwnVerdict) && self.detector.is_suspected(row.owner);
        let lost = !view.has(row.owner) && view.has(self.settings.id) && self.fenced(now, row.owner);
        if !row.is_active() || !(lost || on_own_verdict) {
            return;
        }
        let (row, view) = (row.clone(), view.clone());
        let restarts = self.restarts.entry(id).or_default();
        if restarts.orphan_since.is_none_or(|(_, epoch)| epoch != row.epoch) {
            restarts.orphan_since = Some((now, row.epoch));
        }
        let since = restarts.orphan_since.map_or(now, |(since, _)| since);
        if self.is_my_turn(now, since, &view) && (now <= since + STANDBY || self.lease.live) {
            self.plan(now, &row, true, out);
        }
    }

    /// Proposes the recovery of `row`, if one can be planned.
    fn plan(&mut self, now: Time, row: &ContainerRow, after_loss: bool, out: &mut Batch) {
        match recovery::recover(row, &self.holder_ids(), &self.takers(), after_loss) {
            Plan::Commit(next) => {
                self.commit(now, *next, out);
            }
            Plan::Wait(_) => {}
        }
    }

    /// Proposes `next` for its container, on the row and the view that this node knows.
    fn commit(&mut self, now: Time, mut next: ContainerRow, out: &mut Batch) -> bool {
        let Some((revision, _)) = self.containers.get(&next.id) else { return false };
        let Some((view_revision, _)) = &self.view else { return false };
        let key = Key::Container(next.id);
        let mut basis = vec![(key.clone(), *revision)];
        if !is_planted(Flaw::ActOnOwnVerdict) {
            // Against the return of a lost owner: it is admitted by a new view, which refuses this proposal.
            basis.push((Key::View, *view_revision));
        }
        next.changed_unix_ms = self.unix_ms(now);
        self.propose(now, key, basis, vec![Row::Container(Box::new(next))], out)
    }

    /// The members that are well, with what is known of each.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let Some(view) = self.view() else { return Vec::new() };
        let mut owned: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (_, row) in self.containers.values().filter(|(_, row)| row.is_active()) {
            *owned.entry(row.owner).or_default() += 1;
        }
        (self.nodes.values())
            .filter(|row| view.has(row.id) && self.is_well(row.id))
            .map(|row| {
                let own = row.id == self.settings.id;
                let free = if own {
                    self.memory.free_bytes
                } else {
                    self.peers.get(&row.id).map_or(0, |peer| peer.free_bytes)
                };
                let devices = self.devices.get(&row.id).cloned().unwrap_or_default();
                Candidate::new(row, free, owned.get(&row.id).copied().unwrap_or(0)).seeing(devices)
            })
            .collect()
    }

    /// The containers that this node has.
    pub fn local(&self) -> impl Iterator<Item = (ContainerId, &Local)> {
        self.local.iter().map(|(id, local)| (*id, local))
    }
}

impl Local {
    fn awaits(&self, job: JobId) -> bool {
        let brings = matches!(self.phase, Phase::Bringing(own) | Phase::Destroying(own) if own == job);
        brings
            || self.ending == Some(job)
            || self.checkpoint.as_ref().is_some_and(|capture| capture.job == job)
    }
}

fn recovery_stop(row: &ContainerRow, exit: Exit) -> ContainerRow {
    ContainerRow { state: ContainerState::Stopped(exit), ..row.clone() }
}
