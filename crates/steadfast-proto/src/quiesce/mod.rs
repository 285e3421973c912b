//! Holding still: stop generating relevant messages, prove that none is in flight, and let go again (PROTOCOLS 1).
//!
//! This is the counters form: every participant counts what it sent to and finished from each peer, and one
//! coordinator compares. It needs no ordered channel, and as many messages for each of its two waves as a roll-call.
//! Must never decide who failed, and must never hold anybody longer than the lease after the coordinator's last word.
//! Read [`Participant`], then [`Coordinator`]; `docs/protocols/quiesce.md` has the argument and the invariants Q1-Q6.
//!
//! ```
//! use steadfast_proto::ids::{Incarnation, NodeId, ViewId};
//! use steadfast_proto::machine::Machine;
//! use steadfast_proto::quiesce::*;
//! use steadfast_proto::time::Time;
//!
//! let one = Member { node: NodeId(1), incarnation: Incarnation(1) };
//! let two = Member { node: NodeId(2), incarnation: Incarnation(1) };
//! let scope = [one, two].into();
//! let mut participants = [one, two].map(|member| Participant::new(member, ViewId(1), &scope));
//! let id = QuiesceId { initiator: one, number: 1 };
//! let mut coordinator = Coordinator::new(Settings::default(), id, ViewId(1), scope, [].into());
//! let (mut out, now) = (Batch::default(), Time::ZERO);
//! coordinator.step(now, CoordinatorInput::Begin, &mut out);
//! while let Some((to, message)) = out.send.pop() {
//!     if message.is_for_coordinator() {
//!         let from = to; // in this example the answer's sender is known from what was asked
//!         coordinator.step(now, CoordinatorInput::Received { from, message }, &mut out);
//!         continue;
//!     }
//!     let participant = if to == one { &mut participants[0] } else { &mut participants[1] };
//!     let mut answers = Batch::default();
//!     participant.step(now, ParticipantInput::Received { from: one, message }, &mut answers);
//!     out.send.extend(answers.send.into_iter().map(|(_, answer)| (to, answer)));
//! }
//! assert_eq!(coordinator.phase(), Phase::Quiesced);
//! assert!(participants.iter().all(|participant| !participant.may_generate()));
//! ```

mod coordinator;
mod participant;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, NodeId, ViewId};

pub use coordinator::{Coordinator, CoordinatorInput, Phase};
pub use participant::{HOLDS_MAX, Participant, ParticipantInput};

/// One life of one node: what a scope, a quorum or a list of members is made of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
}

impl fmt::Debug for Member {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}/{}", self.node, self.incarnation)
    }
}

/// Names one quiesce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QuiesceId {
    /// Who coordinates it.
    pub initiator: Member,
    /// Counts the quiesces of this life of the initiator, from 1; never used twice.
    pub number: u64,
}

/// How long to wait and how often to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// After how long an unanswered question is asked again; doubled each time up to 20 times as long.
    pub retry: Duration,
    /// For how long a participant holds still after the coordinator's last word.
    pub lease: Duration,
    /// After how many dirty rounds the coordinator gives up.
    pub rounds_max: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { retry: Duration::from_millis(100), lease: Duration::from_secs(10), rounds_max: 64 }
    }
}

/// Why a quiesce ended without success, or a participant let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The coordinator let go.
    Resumed,
    /// The list of members is another one now.
    ViewChanged,
    /// A member of the scope is gone, and was not fenced when the quiesce began.
    MemberGone,
    /// Relevant messages went on in every round that was allowed.
    RoundLimit,
    /// A participant did not hear the coordinator for the length of the lease, or its answers did not arrive.
    LeaseLost,
    /// The participant can't hold for one more quiesce, or the scope names somebody who is no member.
    Refused,
}

/// What travels between the coordinator and the participants. Any of it may be lost, doubled or overtaken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Message {
    /// Generate no more, and report (round 0).
    Start {
        /// Which quiesce.
        id: QuiesceId,
        /// The view that the scope is a part of.
        view: ViewId,
        /// Whose relevant messages to one another must stand still.
        scope: BTreeSet<Member>,
        /// Members of the view from whom nothing may be processed any more.
        fenced: BTreeSet<Member>,
        /// For how long to hold.
        lease: Duration,
        /// The coordinator's clock in nanoseconds, to be returned; nobody else's business.
        stamp: u64,
    },
    /// Report again, once you have finished what is known to have been sent to you.
    Continue {
        /// Which quiesce.
        id: QuiesceId,
        /// The round, from 1.
        round: u32,
        /// How many relevant messages each peer had sent to the receiver when it last reported.
        needs: BTreeMap<NodeId, u64>,
        /// The coordinator's clock in nanoseconds, to be returned; nobody else's business.
        stamp: u64,
    },
    /// A participant's answer to `Start` and `Continue`, given when none of its handlers runs.
    Report {
        /// Which quiesce.
        id: QuiesceId,
        /// The round that it answers.
        round: u32,
        /// How many relevant messages it has sent within the scope since its previous report; 0 in round 0.
        active: u64,
        /// Per peer, how many it has sent altogether.
        sent: BTreeMap<NodeId, u64>,
        /// Per peer, how many from there it has finished.
        done: BTreeMap<NodeId, u64>,
        /// The stamp up to which its hold was extended.
        stamp: u64,
    },
    /// Go on holding still.
    Hold {
        /// Which quiesce.
        id: QuiesceId,
        /// The coordinator's clock in nanoseconds, to be returned; nobody else's business.
        stamp: u64,
    },
    /// The answer to `Hold`.
    Held {
        /// Which quiesce.
        id: QuiesceId,
        /// The stamp of the `Hold`.
        stamp: u64,
    },
    /// Generate again.
    Resume {
        /// Which quiesce.
        id: QuiesceId,
    },
    /// A participant does not hold for this quiesce.
    Abort {
        /// Which quiesce.
        id: QuiesceId,
        /// Why not.
        reason: AbortReason,
    },
}

/// Why a participant does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AbortReason {
    /// Its view is another one.
    ViewChanged,
    /// It has let go, because it did not hear from the coordinator for too long.
    LeaseLost,
    /// It holds for too many others, or the scope is wrong.
    Refused,
}

impl Message {
    /// Whether the coordinator is meant; all others are for participants.
    pub fn is_for_coordinator(&self) -> bool {
        match self {
            Message::Report { .. } | Message::Held { .. } | Message::Abort { .. } => true,
            Message::Start { .. }
            | Message::Continue { .. }
            | Message::Hold { .. }
            | Message::Resume { .. } => false,
        }
    }

    /// Which quiesce it belongs to.
    pub fn id(&self) -> QuiesceId {
        match self {
            Message::Start { id, .. }
            | Message::Continue { id, .. }
            | Message::Report { id, .. }
            | Message::Hold { id, .. }
            | Message::Held { id, .. }
            | Message::Resume { id }
            | Message::Abort { id, .. } => *id,
        }
    }
}

/// What a step wants done; fields stand in the order in which to do it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Leaves now. A message to oneself is handed back as received.
    pub send: Vec<(Member, Message)>,
    /// What happened.
    pub events: Vec<Event>,
}

/// What happened to a quiesce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// This participant generates no more.
    Suspended(QuiesceId),
    /// This participant does not hold for this quiesce any longer.
    Released(QuiesceId, Reason),
    /// The coordinator knows that no relevant message of the scope is in flight.
    Quiesced {
        /// Which quiesce.
        id: QuiesceId,
        /// In which round that was known; 1 is the least.
        round: u32,
    },
    /// The coordinator gave up, and lets everybody go.
    Failed(QuiesceId, Reason),
}
