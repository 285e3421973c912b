//! Who holds the catalog: one change at a time, decided by the leader.
//!
//! A node joins as a learner, is promoted when it has caught up, and may be removed at any time while the rest keeps a majority. It must never
//! let a majority depend on a member that was not seen alive, nor accept a store that is not the one that a number was given to. Whoever calls
//! it gives each number once. Read next: `embedded`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, RaftMetrics};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::CatalogError;
use super::engine::{Engine, Member, Raft, RaftNodeId, StoreId};
use super::machine::members;
use super::network::Peers;
use super::wire::{Request, Response};

/// Log entries by which a learner may trail when it is promoted.
const PROMOTE_LAG_MAX: u64 = 64;
const HELLO_TIMEOUT: Duration = Duration::from_millis(500);

/// One change of the members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    AddLearner(RaftNodeId, Member),
    Promote(RaftNodeId),
    Remove(RaftNodeId),
    Demote(RaftNodeId),
}

/// Why the members were not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MembershipError {
    /// The catalog did not answer.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The number belongs to a member already. Nothing changed; use another number.
    #[error(
        "number {node} belongs to a member of the catalog already; a node that lost its disk joins under a new number"
    )]
    NumberTaken {
        /// The number.
        node: RaftNodeId,
    },
    /// There is no such member. Nothing changed.
    #[error("number {node} is not a member of the catalog")]
    NotMember {
        /// The number.
        node: RaftNodeId,
    },
    /// The learner does not answer. Nothing changed; start its agent, or remove it.
    #[error("member {node} can't be promoted: it does not answer ({reason}); start its agent or remove it")]
    Unreachable {
        /// The learner.
        node: RaftNodeId,
        /// What happened when it was asked.
        reason: String,
    },
    /// The learner has not caught up in time. Nothing changed; try again later.
    #[error("member {node} can't be promoted yet: it is {lag} log entries behind")]
    NotCaughtUp {
        /// The learner.
        node: RaftNodeId,
        /// How many entries it lacks.
        lag: u64,
    },
    /// Too few of the remaining voters answer. Nothing changed; bring them back, or remove those that are gone first.
    #[error(
        "member {node} can't be removed: of the {remaining} voters that would remain only {alive} answer, and {needed} are needed"
    )]
    WouldLoseMajority {
        /// The member.
        node: RaftNodeId,
        /// Voters that would remain.
        remaining: usize,
        /// Those of them that answer.
        alive: usize,
        /// How many make a majority.
        needed: usize,
    },
    /// It is the last voter. Nothing changed.
    #[error("member {node} can't be removed: it is the only voter")]
    LastVoter {
        /// The member.
        node: RaftNodeId,
    },
    /// Another change is under way. Nothing changed; try again.
    #[error("another change of the members is under way; try again")]
    InProgress,
}

/// Carries out a change on the leader.
pub(crate) async fn change(
    raft: &Raft,
    peers: &Peers,
    change: Change,
    deadline: Instant,
) -> Result<(), MembershipError> {
    match change {
        Change::AddLearner(node, member) => add_learner(raft, node, member, deadline).await,
        Change::Promote(node) => promote(raft, peers, node, deadline).await,
        Change::Remove(node) => remove(raft, peers, node, false, deadline).await,
        Change::Demote(node) => remove(raft, peers, node, true, deadline).await,
    }
}

async fn add_learner(
    raft: &Raft,
    node: RaftNodeId,
    member: Member,
    deadline: Instant,
) -> Result<(), MembershipError> {
    let membership = raft.metrics().borrow_watched().membership_config.clone();
    match membership.get_node(&node) {
        // Asked again after a lost reply.
        Some(known)
            if *known == member
                || (known.addresses == member.addresses && member.store == StoreId::UNKNOWN) =>
        {
            return Ok(());
        }
        Some(_) => return Err(MembershipError::NumberTaken { node }),
        None => {}
    }
    submit(raft, ChangeMembers::AddNodes(BTreeMap::from([(node, member)])), false, deadline).await
}

async fn promote(
    raft: &Raft,
    peers: &Peers,
    node: RaftNodeId,
    deadline: Instant,
) -> Result<(), MembershipError> {
    let membership = raft.metrics().borrow_watched().membership_config.clone();
    let Some(member) = membership.get_node(&node) else {
        return Err(MembershipError::NotMember { node });
    };
    if membership.voter_ids().any(|voter| voter == node) {
        return Ok(());
    }
    let store = match peers.ask(node, Request::Hello, HELLO_TIMEOUT).await {
        Ok(Response::Hello { store, .. }) => store,
        Ok(_) => {
            return Err(MembershipError::Unreachable {
                node,
                reason: "it gave an answer to another question".into(),
            });
        }
        Err(error) => return Err(MembershipError::Unreachable { node, reason: error.to_string() }),
    };
    caught_up(raft, node, deadline).await?;
    if member.store != store {
        // Written before it may vote: from then on its messages count only if they come from this store.
        let member = Member { store, ..member.clone() };
        submit(raft, ChangeMembers::SetNodes(BTreeMap::from([(node, member)])), false, deadline).await?;
    }
    submit(raft, ChangeMembers::AddVoterIds(BTreeSet::from([node])), false, deadline).await
}

async fn caught_up(raft: &Raft, node: RaftNodeId, deadline: Instant) -> Result<(), MembershipError> {
    let mut metrics = raft.metrics();
    loop {
        let lag = lag(&metrics.borrow_and_update(), node);
        if lag <= PROMOTE_LAG_MAX {
            return Ok(());
        }
        match tokio::time::timeout_at(deadline, metrics.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(MembershipError::NotCaughtUp { node, lag }),
        }
    }
}

fn lag(metrics: &RaftMetrics<Engine>, node: RaftNodeId) -> u64 {
    let last = metrics.last_log_index.map_or(0, |last| last + 1);
    let matched = metrics.replication.as_ref().and_then(|all| all.get(&node)).and_then(|matched| *matched);
    last.saturating_sub(matched.map_or(0, |matched| matched.index() + 1))
}

/// Takes a node's vote; with `keeps_copy` it still follows.
async fn remove(
    raft: &Raft,
    peers: &Peers,
    node: RaftNodeId,
    keeps_copy: bool,
    deadline: Instant,
) -> Result<(), MembershipError> {
    let membership = raft.metrics().borrow_watched().membership_config.clone();
    if membership.get_node(&node).is_none() {
        return Ok(());
    }
    let voters: BTreeSet<RaftNodeId> = membership.voter_ids().collect();
    if !voters.contains(&node) {
        if keeps_copy {
            return Ok(());
        }
        return submit(raft, ChangeMembers::RemoveNodes(BTreeSet::from([node])), false, deadline).await;
    }
    let remaining: Vec<RaftNodeId> = voters.into_iter().filter(|voter| *voter != node).collect();
    if remaining.is_empty() {
        return Err(MembershipError::LastVoter { node });
    }
    let alive = count_alive(peers, &remaining).await;
    let needed = remaining.len() / 2 + 1;
    if alive < needed {
        return Err(MembershipError::WouldLoseMajority { node, remaining: remaining.len(), alive, needed });
    }
    submit(raft, ChangeMembers::RemoveVoters(BTreeSet::from([node])), keeps_copy, deadline).await
}

async fn count_alive(peers: &Peers, voters: &[RaftNodeId]) -> usize {
    let asked = voters.iter().map(|voter| async move {
        *voter == peers.node
            || matches!(peers.ask(*voter, Request::Hello, HELLO_TIMEOUT).await, Ok(Response::Hello { .. }))
    });
    futures_util::future::join_all(asked).await.into_iter().filter(|alive| *alive).count()
}

async fn submit(
    raft: &Raft,
    change: ChangeMembers<RaftNodeId, Member>,
    keeps_copy: bool,
    deadline: Instant,
) -> Result<(), MembershipError> {
    loop {
        let node = *raft.node_id();
        let unknown = || CatalogError::Unknown { node, waited_ms: 0 };
        let result =
            tokio::time::timeout_at(deadline, raft.change_membership(change.clone(), keeps_copy)).await;
        let refused = match result {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(RaftError::APIError(refused))) => refused,
            Ok(Err(RaftError::Fatal(fatal))) => {
                return Err(CatalogError::Closed { node, reason: fatal.to_string() }.into());
            }
            Err(_) => return Err(unknown().into()),
        };
        match refused {
            // The engine refuses while the last change is not committed: that ends by itself.
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
                let mut metrics = raft.metrics();
                drop(metrics.borrow_and_update());
                if tokio::time::timeout_at(deadline, metrics.changed()).await.is_err() {
                    return Err(MembershipError::InProgress);
                }
            }
            ClientWriteError::ChangeMembershipError(error) => {
                tracing::warn!(%error, "the engine refused a change of the members");
                return Err(MembershipError::InProgress);
            }
            ClientWriteError::ForwardToLeader(_) => {
                let voters = raft.voter_ids().count();
                return Err(CatalogError::NoMajority { node, voters, waited_ms: 0 }.into());
            }
            ClientWriteError::LogEntryDiscarded(_) => return Err(unknown().into()),
            ClientWriteError::PreconditionFailed(_) => return Err(MembershipError::InProgress),
        }
    }
}

/// Voters and learners of a membership.
pub(crate) fn split(
    membership: &super::engine::StoredMembership,
) -> (BTreeMap<RaftNodeId, Member>, BTreeMap<RaftNodeId, Member>) {
    let voters: BTreeSet<RaftNodeId> = membership.voter_ids().collect();
    members(membership).into_iter().partition(|(node, _)| voters.contains(node))
}
