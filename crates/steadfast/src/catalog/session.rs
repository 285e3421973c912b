//! Sessions: how the table knows a change that it has made already.
//!
//! A node that lost the reply to a change sends it again, perhaps to another leader. Each change carries the session of the process that
//! issued it and a number; the table remembers the numbers that are decided and not yet known to be received. It must never make a change
//! twice, nor one that it has refused, and never forget silently: what it can no longer tell it refuses as [`Seen::Forgotten`]. All limits
//! are part of the replicated state, so every node decides the same. Read next: `table`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Sessions remembered; the one used longest ago makes room.
const SESSIONS_MAX: usize = 1024;
/// The result of a change that was refused; no revision comes that far.
const REFUSED: u64 = u64::MAX;
/// Results remembered per session; a node has fewer changes than this under way at once.
const RESULTS_MAX: usize = 1024;

/// One run of one node's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct SessionId {
    /// The node.
    pub(crate) node: u64,
    /// Drawn at random when the agent started.
    pub(crate) boot: u64,
}

/// What identifies one change, however often it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) session: SessionId,
    /// Counts the changes of the session.
    pub(crate) number: u64,
    /// Every change of the session below this number has had its reply.
    pub(crate) oldest_pending: u64,
    /// What the issuer had applied when it issued the change: the change itself is later in the log.
    pub(crate) issued_at: u64,
}

/// Whether a change was made before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It was not made.
    New,
    /// It was made, with this revision.
    Done(u64),
    /// It was refused, and whoever asked may know that: it must not be made any more.
    Refused,
    /// It may have been made; the memory of it is gone.
    Forgotten,
}

/// All sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sessions {
    sessions: BTreeMap<SessionId, Session>,
    /// The last use of the session that was dropped last.
    dropped_at: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    /// Numbers below this one are finished, their results dropped.
    floor: u64,
    /// Number of each change and the revision that it made, or [`REFUSED`].
    done: BTreeMap<u64, u64>,
    used_at: u64,
}

impl Sessions {
    /// Whether the change with this stamp was made before.
    pub(crate) fn look(&self, stamp: &Stamp) -> Seen {
        let Some(session) = self.sessions.get(&stamp.session) else {
            // A change that was made and dropped with its session stands in the log after `issued_at` and not after `dropped_at`.
            return if stamp.issued_at < self.dropped_at { Seen::Forgotten } else { Seen::New };
        };
        if stamp.number < session.floor {
            return Seen::Forgotten;
        }
        match session.done.get(&stamp.number) {
            None => Seen::New,
            Some(&REFUSED) => Seen::Refused,
            Some(revision) => Seen::Done(*revision),
        }
    }

    /// Remembers at log position `at` that the change was made with `made`, or was refused (`None`).
    pub(crate) fn remember(&mut self, stamp: &Stamp, made: Option<u64>, at: u64) {
        let session = self.sessions.entry(stamp.session).or_default();
        session.used_at = at;
        session.done.insert(stamp.number, made.unwrap_or(REFUSED));
        if stamp.oldest_pending > session.floor {
            session.floor = stamp.oldest_pending;
            session.done = session.done.split_off(&session.floor);
        }
        while session.done.len() > RESULTS_MAX {
            let Some((number, _)) = session.done.pop_first() else { break };
            session.floor = number + 1;
        }
        if self.sessions.len() > SESSIONS_MAX {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used_at).map(|(id, _)| *id);
        let Some(dropped) = oldest.and_then(|id| self.sessions.remove(&id)) else { return };
        self.dropped_at = self.dropped_at.max(dropped.used_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(boot: u64, number: u64, oldest_pending: u64, issued_at: u64) -> Stamp {
        Stamp { session: SessionId { node: 1, boot }, number, oldest_pending, issued_at }
    }

    #[test]
    fn a_change_that_was_decided_is_not_decided_again() {
        let mut sessions = Sessions::default();
        sessions.remember(&stamp(1, 1, 1, 0), Some(7), 1);
        sessions.remember(&stamp(1, 2, 1, 0), None, 2);
        assert_eq!(sessions.look(&stamp(1, 1, 1, 0)), Seen::Done(7));
        assert_eq!(sessions.look(&stamp(1, 2, 1, 0)), Seen::Refused);
        assert_eq!(sessions.look(&stamp(1, 3, 1, 0)), Seen::New);
    }

    #[test]
    fn a_copy_that_arrives_after_its_reply_was_received_is_refused() {
        let mut sessions = Sessions::default();
        sessions.remember(&stamp(1, 1, 1, 0), Some(7), 1);
        sessions.remember(&stamp(1, 2, 2, 1), Some(8), 2);
        assert_eq!(sessions.look(&stamp(1, 1, 1, 0)), Seen::Forgotten);
    }

    #[test]
    fn a_copy_of_a_dropped_session_is_refused_and_a_new_session_is_not() {
        let mut sessions = Sessions::default();
        for boot in 0..=SESSIONS_MAX as u64 {
            sessions.remember(&stamp(boot, 1, 1, boot), Some(boot + 1), boot + 1);
        }
        assert_eq!(sessions.sessions.len(), SESSIONS_MAX);
        assert_eq!(sessions.look(&stamp(0, 1, 1, 0)), Seen::Forgotten);
        assert_eq!(sessions.look(&stamp(9_999, 1, 1, 5_000)), Seen::New);
    }

    #[test]
    fn results_are_bounded_even_if_the_issuer_never_confirms() {
        let mut sessions = Sessions::default();
        for number in 1..=2 * RESULTS_MAX as u64 {
            sessions.remember(&stamp(1, number, 1, 0), Some(number), number);
        }
        assert_eq!(sessions.look(&stamp(1, 1, 1, 0)), Seen::Forgotten);
        let last = 2 * RESULTS_MAX as u64;
        assert_eq!(sessions.look(&stamp(1, last, 1, 0)), Seen::Done(last));
    }
}
