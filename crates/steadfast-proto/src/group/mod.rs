//! A process group with mirrors: one leads, all hold the same state, and members change in single views (PROTOCOLS 3.4).
//!
//! [`Group`] is one process of it: it numbers writes, feeds them to the other full members and to candidates,
//! acknowledges what all full members hold, and swaps a member for a candidate by one compare-and-set. Must never
//! decide who failed ([`Input::Fenced`] says so), never count a candidate, and never touch a disk: a process that
//! restarts comes back in a new incarnation, empty. Read `machine`, then `change`; `docs/protocols/groups.md` has the
//! argument and the invariants VM1-VM6.
//!
//! ```
//! use steadfast_proto::group::*;
//! use steadfast_proto::ids::{Incarnation, NodeId};
//! use steadfast_proto::machine::Machine;
//! use steadfast_proto::time::Time;
//!
//! #[derive(Default)]
//! struct Last(Vec<u8>);
//! impl Application for Last {
//!     fn apply(&mut self, record: &[u8]) -> Vec<u8> {
//!         std::mem::replace(&mut self.0, record.to_vec())
//!     }
//!     fn snapshot(&self) -> Vec<u8> {
//!         self.0.clone()
//!     }
//!     fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
//!         self.0 = snapshot.to_vec();
//!         Ok(())
//!     }
//! }
//!
//! let me = Member { node: NodeId(1), incarnation: Incarnation(1) };
//! let row = Row::founded(vec![me]);
//! let mut group = Group::founder(me, Settings::default(), Last::default(), row);
//! let mut out = Output::default();
//! group.step(Time::ZERO, Input::Write { request: RequestId(7), record: b"hello".to_vec() }, &mut out);
//! assert_eq!(out.replies, [(RequestId(7), Outcome::Done { at: Sequence(1), reply: Vec::new() })]);
//! ```

mod change;
mod feed;
mod log;
mod machine;
mod member;
mod probation;
mod request;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::ViewId;
use crate::quiesce;

pub use crate::quiesce::Member;
pub use machine::Group;
pub use probation::{Elimination, Intent, PROBATION_MAX, Standing};
pub use request::{Asked, GroupRows, Request, RequestError, RequestState, Standby, SwapDecision};
pub use view::{GroupView, MIRRORS_MAX, NotNext, Reason, Row};

/// The largest record, in bytes.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;
/// The largest snapshot, in bytes.
pub const SNAPSHOT_BYTES_MAX: usize = 1 << 30;
/// How many bytes of records or of a snapshot one message carries at most, one record excepted.
pub const MESSAGE_BYTES_MAX: usize = 32 * 1024;

/// The number of a record in the feed, from 1 and without a gap through all views.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Sequence {
        Sequence(self.0.saturating_add(1))
    }
}

/// The caller's name for a write, returned with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// The program that is mirrored: a deterministic function of its records.
pub trait Application {
    /// Applies the next record and returns what its writer is told. Must depend on nothing but the records before.
    fn apply(&mut self, record: &[u8]) -> Vec<u8>;

    /// The whole state, at most [`SNAPSHOT_BYTES_MAX`] bytes.
    fn snapshot(&self) -> Vec<u8>;

    /// Replaces the whole state.
    ///
    /// # Errors
    /// The bytes are no snapshot of this program; the candidate is then eliminated.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError>;
}

/// The bytes are no snapshot of the program that should restore them; its state is unspecified now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a snapshot of {bytes} bytes can't be restored: {why}")]
pub struct RestoreError {
    /// How long it is.
    pub bytes: usize,
    /// What is wrong with it.
    pub why: String,
}

/// Times and bounds of a group; all members should have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// After how long something unanswered is sent again; doubled each time up to 8 times as long.
    pub retry: Duration,
    /// How often a candidate applies, which is also how it says how far it is.
    pub apply_every: Duration,
    /// After how long a candidate that does not apply any more is forgotten.
    pub apply_timeout: Duration,
    /// How much longer each next member waits before it does what a lower-ranked one should have done.
    pub stand_by: Duration,
    /// After how long a change of view is given up that has not reached its commit point.
    pub change_timeout: Duration,
    /// After how long a member that promised to stand still for a change asks the catalog what became of it.
    pub promise_max: Duration,
    /// For how long a quiesce holds after its coordinator's last word.
    pub lease: Duration,
    /// How many records a candidate may lag behind and still be ready (`lag_max`).
    pub lag_max: u64,
    /// How many records that some full member lacks the leader allows; more wait.
    pub unstable_max: u64,
    /// How many records that everybody holds are kept for candidates that lag.
    pub retained_max: u64,
    /// How many writes wait at the leader while it may not number them; more are refused.
    pub parked_max: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            retry: Duration::from_millis(20),
            apply_every: Duration::from_millis(100),
            apply_timeout: Duration::from_secs(3),
            stand_by: Duration::from_millis(300),
            change_timeout: Duration::from_secs(5),
            promise_max: Duration::from_secs(8),
            lease: Duration::from_secs(2),
            lag_max: 1_000,
            unstable_max: 1_024,
            retained_max: 4_096,
            parked_max: 65_536,
        }
    }
}

/// Names one attempt to change the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The view that it would replace.
    pub basis: ViewId,
    /// How often that view's row has been renewed; a pending swap of an older one fails.
    pub renewal: u64,
    /// Who coordinates it.
    pub by: Member,
    /// Counts this member's attempts.
    pub number: u64,
}

/// What processes of a group tell one another. Any of it may be lost, doubled or overtaken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Records, from the leader.
    Feed {
        /// The leader's view.
        view: ViewId,
        /// The number of the first record; also of the next one when there are none.
        first: Sequence,
        /// The records.
        records: Vec<Vec<u8>>,
        /// Up to where all full members have everything.
        stable: Sequence,
    },
    /// What the receiver of a feed has, without a gap.
    FeedAck {
        /// Its view.
        view: ViewId,
        /// The number of its last record.
        last: Sequence,
    },
    /// A part of the state, for a candidate that is behind what the feed retains.
    Snapshot {
        /// The leader's view.
        view: ViewId,
        /// The last record that the state contains.
        at: Sequence,
        /// Up to where all full members had everything when it was taken.
        stable: Sequence,
        /// Length of the whole state.
        total: u64,
        /// Where this part begins.
        offset: u64,
        /// The part.
        bytes: Vec<u8>,
    },
    /// How much of a snapshot has arrived.
    SnapshotAck {
        /// Which snapshot.
        at: Sequence,
        /// Where the next part begins.
        offset: u64,
    },
    /// A candidate's application, repeated until it is full or eliminated.
    Apply {
        /// What it wants to become.
        intent: Intent,
        /// The view and renewal that it knows.
        knows: (ViewId, u64),
        /// Its last record; `None` before it has a state.
        last: Option<Sequence>,
    },
    /// The candidate will not be promoted.
    Eliminate(Elimination),
    /// Holding still, before a planned change.
    Quiesce(quiesce::Message),
    /// Stop for a change without `gone`, fence them, and say what you have.
    FlushAsk {
        /// The attempt.
        attempt: AttemptId,
        /// Who is gone.
        gone: BTreeSet<Member>,
    },
    /// The answer to `FlushAsk`.
    FlushInfo {
        /// The attempt.
        attempt: AttemptId,
        /// The number of the last record, without a gap.
        last: Sequence,
    },
    /// The coordinator lacks records that the receiver has.
    Fetch {
        /// The attempt.
        attempt: AttemptId,
        /// The first that it lacks.
        first: Sequence,
    },
    /// Records for whoever lacks them, within an attempt.
    Fill {
        /// The attempt.
        attempt: AttemptId,
        /// The number of the first.
        first: Sequence,
        /// The records.
        records: Vec<Vec<u8>>,
    },
    /// The view that would be next.
    Propose {
        /// The attempt.
        attempt: AttemptId,
        /// The view.
        next: GroupView,
    },
    /// The sender takes no record beyond the proposed view's cut; it counts when `last` is the cut.
    Ack {
        /// The attempt.
        attempt: AttemptId,
        /// The number of its last record.
        last: Sequence,
    },
    /// The sender can't take part in the attempt.
    Refuse(AttemptId),
    /// The attempt is given up; it was not and will not be committed.
    Abort(AttemptId),
    /// What is committed.
    Install(Row),
}

/// What can happen to a process of a group.
#[derive(Clone, Debug)]
pub enum Input {
    /// Somebody asks for a record to be written.
    Write {
        /// The caller's name for it.
        request: RequestId,
        /// The record, at most [`RECORD_BYTES_MAX`] bytes.
        record: Vec<u8>,
    },
    /// A message for this incarnation arrived.
    Received {
        /// Who sent it, as the transport knows it.
        from: Member,
        /// What it says.
        message: Message,
    },
    /// The group's row in the catalog, as read or watched.
    Committed(Row),
    /// What became of a [`Swap`].
    Swapped {
        /// The swap's number.
        number: u64,
        /// What became of it.
        outcome: Swapped,
    },
    /// The cluster says that this member failed. Final: that incarnation never comes back.
    Fenced(Member),
    /// How a candidate stands by the criteria that are measured outside (PROTOCOLS 3.4).
    Evidence {
        /// The candidate.
        candidate: Member,
        /// How it stands.
        standing: Standing,
    },
    /// The time of `deadline` has come.
    Deadline,
}

/// What became of a swap of the group's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The row is as asked.
    Done,
    /// The row was another one than expected, this one, and still is.
    Conflict(Row),
    /// Nobody knows. The group asks again.
    Unknown,
}

/// A compare-and-set of the group's row: the commit point of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// Returned with the outcome.
    pub number: u64,
    /// The view and renewal that the row must have.
    pub expected: (ViewId, u64),
    /// The row to write.
    pub next: Row,
}

/// What a step wants done; fields stand in the order in which to do it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Leaves now, each for one incarnation only.
    pub send: Vec<(Member, Message)>,
    /// To the catalog.
    pub swap: Option<Swap>,
    /// To the writers.
    pub replies: Vec<(RequestId, Outcome)>,
    /// What happened.
    pub events: Vec<Event>,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every full member has it.
    Done {
        /// Its number.
        at: Sequence,
        /// What the program answered.
        reply: Vec<u8>,
    },
    /// This process does not lead; nothing was written. The leader is given if one is known.
    NotLeader(Option<Member>),
    /// Too many writes wait; nothing was written.
    Busy,
    /// The record is longer than [`RECORD_BYTES_MAX`]; nothing was written.
    TooLarge,
    /// Leadership was lost while the record was under way: it may or may not have taken effect.
    Unknown,
}

/// What happened to a process of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A view is in force here.
    Installed {
        /// Its row.
        row: Row,
        /// The last record that this process had applied.
        last: Sequence,
    },
    /// This process coordinates a change of view.
    Attempted {
        /// The attempt.
        attempt: AttemptId,
        /// Whose answers it needs.
        asked: BTreeSet<Member>,
        /// Who would be promoted.
        promoting: Option<Member>,
    },
    /// The attempt was given up; the view is as before.
    Aborted {
        /// The attempt.
        attempt: AttemptId,
        /// Why.
        why: AbortReason,
    },
    /// This candidate was eliminated.
    Eliminated(Elimination),
}

/// Why a change of view was given up before its commit point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortReason {
    /// Holding still failed.
    Quiesce(quiesce::Reason),
    /// Somebody whose answer was needed failed.
    MemberGone(Member),
    /// Somebody could not take part.
    Refused(Member),
    /// Answers did not come in time.
    TimedOut,
    /// Another change was committed first.
    Overtaken,
}
