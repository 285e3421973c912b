//! A request of this node on its way to the leader.
//!
//! It finds the leader, asks, and asks again when the leader changed, until an answer or the deadline comes. Changes are stamped, so asking again
//! is safe. It must never report a change as refused when it may have been made, nor read rows before this node has applied what the leader had.
//! Read next: `session` for stamps, `serve` for the other side.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError};
use tokio::time::{Instant, timeout_at};

use super::embedded::Inner;
use super::engine::RaftNodeId;
use super::membership::{Change, MembershipError};
use super::network::AskError;
use super::session::{SessionId, Stamp};
use super::table::{Command, Reply};
use super::watch::Feed;
use super::wire::{ReadRefusal, Request, Response, WriteRefusal};
use super::{CatalogError, Txn, TxnReply, check_txn};

/// Changes of one node under way at once; more wait for their turn.
pub(super) const PENDING_MAX: usize = 512;
/// Entries and bytes that may wait to be applied on a leader.
const BACKLOG_ENTRIES_MAX: u64 = 16_384;
const BACKLOG_BYTES_MAX: u64 = 32 << 20;
/// Pause before the same leader is asked again.
const PAUSE: Duration = Duration::from_millis(20);

/// Numbers the changes of this node.
#[derive(Debug)]
pub(super) struct Stamps {
    session: SessionId,
    next: u64,
    pending: BTreeSet<u64>,
}

impl Stamps {
    pub(super) fn new(node: RaftNodeId, boot: u64) -> Self {
        Self { session: SessionId { node, boot }, next: 1, pending: BTreeSet::new() }
    }
}

/// A number in use; it is given back when the change has its answer or nobody waits for it any more.
struct Ticket<'a> {
    inner: &'a Inner,
    number: u64,
}

impl<'a> Ticket<'a> {
    fn draw(inner: &'a Inner) -> Self {
        let mut stamps = inner.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let number = stamps.next;
        stamps.next += 1;
        stamps.pending.insert(number);
        Self { inner, number }
    }

    fn stamp(&self, issued_at: u64) -> Stamp {
        let stamps = self.inner.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest_pending = stamps.pending.first().copied().unwrap_or(self.number);
        Stamp { session: stamps.session, number: self.number, oldest_pending, issued_at }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.inner.stamps.lock().unwrap_or_else(PoisonError::into_inner).pending.remove(&self.number);
    }
}

/// What one attempt at a change gave.
enum Attempt {
    Answered(Reply),
    Refused(WriteRefusal),
}

impl Inner {
    /// Makes a change through the leader.
    pub(super) async fn txn(&self, txn: Txn) -> Result<TxnReply, CatalogError> {
        check_txn(&txn)?;
        let started = Instant::now();
        let deadline = started + self.timings.request_timeout;
        let Ok(Ok(_permit)) = timeout_at(deadline, self.permits.acquire()).await else {
            return Err(CatalogError::Overloaded { pending: PENDING_MAX as u64, bytes: 0 });
        };
        let mut ticket = Ticket::draw(self);
        let mut command = Command { stamp: ticket.stamp(self.applied_index()), txn };
        let mut route = Route::default();
        let mut attempts = 0;
        let mut uncertain = false;
        loop {
            if let Some(closed) = self.shared.closed() {
                return Err(if uncertain { self.unknown(started) } else { closed });
            }
            let Some(leader) = self.find_leader(&mut route, deadline).await? else {
                return Err(if uncertain { self.unknown(started) } else { self.no_majority(started) });
            };
            attempts += 1;
            match self.attempt(leader, &command, deadline).await {
                Attempt::Answered(Reply::Txn(reply)) => return Ok(reply),
                Attempt::Answered(Reply::Invalid(problem)) => return Err(problem.into()),
                Attempt::Answered(Reply::Full { needed }) => {
                    return Err(CatalogError::Full { needed, max: super::TABLE_BYTES_MAX });
                }
                // Only this one copy exists and it was refused: a fresh stamp is as good as new.
                Attempt::Answered(Reply::Forgotten { index }) if attempts == 1 => {
                    ticket = Ticket::draw(self);
                    command.stamp = ticket.stamp(index);
                    attempts = 0;
                }
                Attempt::Answered(Reply::Forgotten { .. } | Reply::Nothing) => {
                    return Err(self.unknown(started));
                }
                Attempt::Refused(WriteRefusal::Overloaded { pending, bytes }) if !uncertain => {
                    return Err(CatalogError::Overloaded { pending, bytes });
                }
                Attempt::Refused(WriteRefusal::Unknown) => {
                    uncertain = true;
                    route.failed(leader, None);
                }
                Attempt::Refused(WriteRefusal::NotLeader(hint)) => route.failed(leader, hint),
                Attempt::Refused(WriteRefusal::NoMajority | WriteRefusal::Overloaded { .. }) => {
                    route.failed(leader, None)
                }
            }
        }
    }

    async fn attempt(&self, leader: RaftNodeId, command: &Command, deadline: Instant) -> Attempt {
        let left = deadline.saturating_duration_since(Instant::now());
        if leader == self.node {
            return attempt_of(self.write_as_leader(command.clone(), left).await);
        }
        let left = left.min(self.patience());
        let request = Request::Write { command: command.clone(), timeout_ms: millis(left) };
        let asked = tokio::select! {
            asked = self.peers.ask(leader, request, left) => asked,
            // Asked again at the new leader: the stamp makes that safe.
            () = self.leader_changed(leader) => return Attempt::Refused(WriteRefusal::Unknown),
        };
        match asked {
            Ok(Response::Written(result)) => attempt_of(result),
            Ok(_) => Attempt::Refused(WriteRefusal::Unknown),
            Err(error) => {
                tracing::debug!(leader, %error, "a change was not answered");
                Attempt::Refused(if error.not_delivered() {
                    WriteRefusal::NotLeader(None)
                } else {
                    WriteRefusal::Unknown
                })
            }
        }
    }

    /// Makes a change if this node leads.
    pub(super) async fn write_as_leader(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<Reply, WriteRefusal> {
        self.check_backlog()?;
        let Ok(written) = tokio::time::timeout(timeout, self.raft.client_write(command)).await else {
            return Err(WriteRefusal::Unknown);
        };
        match written {
            Ok(response) => Ok(response.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => match forward.reason {
                ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => {
                    Err(WriteRefusal::NotLeader(forward.leader_id))
                }
                ForwardReason::LeaseExpired => Err(WriteRefusal::NoMajority),
            },
            Err(RaftError::APIError(_) | RaftError::Fatal(_)) => Err(WriteRefusal::Unknown),
        }
    }

    fn check_backlog(&self) -> Result<(), WriteRefusal> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.map_or(0, |last| last + 1);
        let pending = last.saturating_sub(self.shared.progress().borrow().applied_next);
        let (_, bytes) = self.store.log_size();
        if pending > BACKLOG_ENTRIES_MAX || (pending > 64 && bytes > BACKLOG_BYTES_MAX) {
            return Err(WriteRefusal::Overloaded { pending, bytes });
        }
        Ok(())
    }

    /// Waits until this node has applied everything that was committed when the call began.
    pub(super) async fn read_barrier(&self) -> Result<(), CatalogError> {
        let started = Instant::now();
        let deadline = started + self.timings.request_timeout;
        let mut route = Route::default();
        let index = loop {
            if let Some(closed) = self.shared.closed() {
                return Err(closed);
            }
            let Some(leader) = self.find_leader(&mut route, deadline).await? else {
                return Err(self.no_majority(started));
            };
            match self.ask_read_index(leader, deadline).await {
                Ok(index) => break index,
                Err(ReadRefusal::NotLeader(hint)) => route.failed(leader, hint),
                Err(ReadRefusal::NoMajority) => route.failed(leader, None),
            }
        };
        let mut progress = self.shared.progress();
        let applied = progress.wait_for(|progress| progress.applied_next > index || progress.closed);
        match timeout_at(deadline, applied).await {
            Ok(Ok(progress)) if !progress.closed => Ok(()),
            Ok(_) => Err(self.shared.closed_error("it was shut down")),
            Err(_) => Err(self.no_majority(started)),
        }
    }

    async fn ask_read_index(&self, leader: RaftNodeId, deadline: Instant) -> Result<u64, ReadRefusal> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left.min(self.patience());
        if leader == self.node {
            return self.read_index_as_leader(left).await;
        }
        let asked = tokio::select! {
            asked = self.peers.ask(leader, Request::ReadIndex { timeout_ms: millis(left) }, left) => asked,
            () = self.leader_changed(leader) => return Err(ReadRefusal::NotLeader(None)),
        };
        match asked {
            Ok(Response::ReadIndex(result)) => result,
            Ok(_) | Err(_) => Err(ReadRefusal::NotLeader(None)),
        }
    }

    /// The index that a read must have seen, confirmed by a majority, if this node leads.
    pub(super) async fn read_index_as_leader(&self, timeout: Duration) -> Result<u64, ReadRefusal> {
        let Ok(read) = tokio::time::timeout(timeout, self.raft.get_read_log_id(ReadPolicy::ReadIndex)).await
        else {
            return Err(ReadRefusal::NoMajority);
        };
        match read {
            Ok((read_log_id, _)) => Ok(read_log_id.index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(ForwardToLeader {
                leader_id,
                ..
            }))) => Err(ReadRefusal::NotLeader(leader_id)),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) | RaftError::Fatal(_)) => {
                Err(ReadRefusal::NoMajority)
            }
        }
    }

    /// Changes the members through the leader.
    pub(super) async fn change(&self, change: Change, deadline: Instant) -> Result<(), MembershipError> {
        let started = Instant::now();
        let mut route = Route::default();
        let mut uncertain = false;
        loop {
            if let Some(closed) = self.shared.closed() {
                return Err(closed.into());
            }
            let Some(leader) = self.find_leader(&mut route, deadline).await? else {
                return Err(if uncertain { self.unknown(started) } else { self.no_majority(started) }.into());
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let result = if leader == self.node {
                super::membership::change(&self.raft, &self.peers, change.clone(), deadline).await
            } else {
                let request = Request::Change { change: change.clone(), timeout_ms: millis(left) };
                match self.peers.ask(leader, request, left).await {
                    Ok(Response::Changed(result)) => result,
                    Ok(_) | Err(AskError::Confused { .. }) => return Err(self.unknown(started).into()),
                    Err(error) => {
                        uncertain |= !error.not_delivered();
                        route.failed(leader, None);
                        continue;
                    }
                }
            };
            match result {
                // The node that was asked does not lead, or lost its majority. Each change may be repeated.
                Err(MembershipError::Catalog(CatalogError::NoMajority { .. })) => route.failed(leader, None),
                Err(MembershipError::Catalog(CatalogError::Unknown { .. })) => {
                    uncertain = true;
                    route.failed(leader, None);
                }
                other => return other,
            }
        }
    }

    /// The leader to ask next, or `None` at the deadline.
    async fn find_leader(
        &self,
        route: &mut Route,
        deadline: Instant,
    ) -> Result<Option<RaftNodeId>, CatalogError> {
        let mut metrics = self.raft.metrics();
        loop {
            let (known, voters) = {
                let metrics = metrics.borrow_and_update();
                (metrics.current_leader, metrics.membership_config.voter_ids().count())
            };
            // Right after a start the engine has not shown its members yet.
            if voters == 0 && matches!(self.raft.is_initialized().await, Ok(false)) {
                return Err(CatalogError::NotMember { node: self.node });
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            if let Some(hint) = route.hint.take() {
                return Ok(Some(hint));
            }
            let rested = route.again_at.is_none_or(|at| Instant::now() >= at);
            if let Some(leader) = known
                && (route.failed != Some(leader) || rested)
            {
                return Ok(Some(leader));
            }
            let wake = route.again_at.filter(|_| !rested).unwrap_or(deadline).min(deadline);
            if matches!(timeout_at(wake, metrics.changed()).await, Ok(Err(_))) {
                return Err(self.shared.closed_error("its engine ended"));
            }
        }
    }

    /// Returns once this node follows another leader.
    async fn leader_changed(&self, asked: RaftNodeId) {
        let mut metrics = self.raft.metrics();
        loop {
            if metrics.borrow_and_update().current_leader.is_some_and(|leader| leader != asked) {
                return;
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// How long one answer is waited for before the request is sent again: a leader that lives answers much sooner.
    fn patience(&self) -> Duration {
        self.timings.election_max * 2
    }

    fn applied_index(&self) -> u64 {
        self.shared.progress().borrow().applied_next.saturating_sub(1)
    }

    fn no_majority(&self, started: Instant) -> CatalogError {
        CatalogError::NoMajority {
            node: self.node,
            voters: self.raft.voter_ids().count(),
            waited_ms: waited(started),
        }
    }

    fn unknown(&self, started: Instant) -> CatalogError {
        CatalogError::Unknown { node: self.node, waited_ms: waited(started) }
    }
}

/// Which leader to ask next.
#[derive(Debug, Default)]
struct Route {
    failed: Option<RaftNodeId>,
    again_at: Option<Instant>,
    hint: Option<RaftNodeId>,
}

impl Route {
    fn failed(&mut self, leader: RaftNodeId, hint: Option<RaftNodeId>) {
        self.hint = hint.filter(|hint| *hint != leader && self.failed != Some(*hint));
        self.failed = Some(leader);
        self.again_at = Some(Instant::now() + PAUSE);
    }
}

fn attempt_of(result: Result<Reply, WriteRefusal>) -> Attempt {
    match result {
        Ok(reply) => Attempt::Answered(reply),
        Err(refusal) => Attempt::Refused(refusal),
    }
}

fn waited(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Whole milliseconds of a duration, for a message.
fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
