//! What an operator asks of a group, and which swap of its row may be committed beside it.
//!
//! A request names a member and the process that shall have its place. The swap that does so takes the request away in the
//! same transaction; withdrawing it renews the row in the same transaction. So a request is either carried out or
//! withdrawn, never both. Must never let a candidate in whose request was withdrawn. Read `view` for the rows themselves.

use serde::{Deserialize, Serialize};

use super::{Member, NotNext, Reason, Row};
use crate::ids::{NodeId, ViewId};

/// What an operator asks of a group: one member for a process that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Whose place.
    pub victim: Member,
    /// Who takes it.
    pub by: Member,
    /// Whether it holds.
    pub state: RequestState,
    /// When it was asked, in milliseconds since 1970; for people only.
    pub asked_unix_ms: u64,
}

/// Whether a request holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestState {
    /// It is to be carried out.
    Asked,
    /// It is over without success; it is kept so that whoever has not heard of it can't carry it out.
    Withdrawn,
}

impl Request {
    /// Whether it holds and is about this pair.
    pub fn asks(&self, victim: Member, by: Member) -> bool {
        self.state == RequestState::Asked && (self.victim, self.by) == (victim, by)
    }
}

/// A process that waits to be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// The process.
    pub member: Member,
    /// The node whose agent hears it.
    pub host: NodeId,
    /// Since when, in milliseconds since 1970; for people only.
    pub since_unix_ms: u64,
}

/// What the catalog holds of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRows {
    /// The row.
    pub row: Row,
    /// The request, if there is one.
    pub request: Option<Request>,
}

/// What becomes of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwapDecision {
    /// The row is as asked already.
    Done,
    /// The row is another one than expected.
    Conflict,
    /// Write this row, and this request where the request changes.
    Write {
        /// The row.
        row: Box<Row>,
        /// The request to be there afterwards; `Some(None)` takes it away.
        request: Option<Option<Request>>,
        /// Whether this is what was asked, or a renewal that makes it fail for good.
        is_as_asked: bool,
    },
}

/// Why a request is refused. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The two are one.
    #[error("a member can't take its own place")]
    Itself,
    /// Who is to be replaced is not in the view.
    #[error("it is no full member, so there is no place to take")]
    NoMember,
    /// Who is to come is there.
    #[error("it is a full member already; name a process that waits")]
    MemberAlready,
    /// Nobody waits by that name.
    #[error("it does not wait for a place: start it as a standby of this group")]
    NotWaiting,
    /// A full member lives on the same node.
    #[error("its node has another full member already")]
    NodeTaken,
    /// Another request holds.
    #[error("another replacement is under way in this group")]
    UnderWay(Request),
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It holds already.
    Already,
    /// Write it.
    Write(Request),
}

impl GroupRows {
    /// What a swap to `next` does, which expects the row `expected`.
    ///
    /// # Errors
    /// `next` can't follow the row that is there.
    pub fn swap(&self, expected: (ViewId, u64), next: &Row) -> Result<SwapDecision, NotNext> {
        if self.row == *next {
            return Ok(SwapDecision::Done);
        }
        if self.row.key() != expected {
            return Ok(SwapDecision::Conflict);
        }
        self.row.check_next(next)?;
        let Some(request) = self.request else { return Ok(written(next, None)) };
        if let (Reason::Replaced { victim, by }, true) = (&next.view.reason, next.renewal == 0) {
            if request.asks(*victim, *by) {
                return Ok(written(next, Some(None)));
            }
            // Whoever wants it has not heard that it is not wanted (any more): the renewal is how the group gives it up.
            if request.by == *by {
                return Ok(SwapDecision::Write {
                    row: Box::new(self.row.renewed()),
                    request: None,
                    is_as_asked: false,
                });
            }
        }
        let is_over = !next.view.has(request.victim) || next.view.has(request.by);
        let gone = request.state == RequestState::Asked && is_over;
        let withdrawn = Request { state: RequestState::Withdrawn, ..request };
        Ok(written(next, gone.then_some(Some(withdrawn))))
    }

    /// What a request does that `by`, which waits or not, shall have the place of `victim`.
    ///
    /// # Errors
    /// What stands against it.
    pub fn ask(
        &self,
        victim: Member,
        by: Member,
        is_waiting: bool,
        now_unix_ms: u64,
    ) -> Result<Asked, RequestError> {
        let view = &self.row.view;
        if victim == by {
            return Err(RequestError::Itself);
        }
        if !view.has(victim) {
            return Err(RequestError::NoMember);
        }
        if view.has(by) {
            return Err(RequestError::MemberAlready);
        }
        if view.full.iter().any(|member| member.node == by.node && *member != victim) {
            return Err(RequestError::NodeTaken);
        }
        if let Some(request) = self.request.filter(|request| request.state == RequestState::Asked) {
            let is_same = request.asks(victim, by);
            return if is_same { Ok(Asked::Already) } else { Err(RequestError::UnderWay(request)) };
        }
        if !is_waiting || self.request.is_some_and(|request| request.by == by) {
            // Whose request was withdrawn comes back in a new incarnation.
            return Err(RequestError::NotWaiting);
        }
        Ok(Asked::Write(Request { victim, by, state: RequestState::Asked, asked_unix_ms: now_unix_ms }))
    }

    /// What is there once the request, which holds, is withdrawn.
    pub fn withdraw(&self) -> Option<GroupRows> {
        let request = self.request.filter(|request| request.state == RequestState::Asked)?;
        let request = Some(Request { state: RequestState::Withdrawn, ..request });
        Some(GroupRows { row: self.row.renewed(), request })
    }
}

fn written(next: &Row, request: Option<Option<Request>>) -> SwapDecision {
    SwapDecision::Write { row: Box::new(next.clone()), request, is_as_asked: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::Sequence;
    use crate::ids::Incarnation;

    fn member(node: u128) -> Member {
        Member { node: NodeId(node), incarnation: Incarnation(1) }
    }

    fn rows(request: Option<Request>) -> GroupRows {
        GroupRows { row: Row::founded(vec![member(1), member(2)]), request }
    }

    fn request(state: RequestState) -> Request {
        Request { victim: member(1), by: member(3), state, asked_unix_ms: 7 }
    }

    fn replaced(rows: &GroupRows, by: u128) -> Row {
        Row { view: rows.row.view.replace(member(1), member(by), Sequence(9)), renewal: 0 }
    }

    #[test]
    fn a_swap_that_was_asked_for_takes_the_request_away() {
        let rows = rows(Some(request(RequestState::Asked)));
        let next = replaced(&rows, 3);
        let expected =
            SwapDecision::Write { row: Box::new(next.clone()), request: Some(None), is_as_asked: true };
        assert_eq!(rows.swap(rows.row.key(), &next), Ok(expected));
        let after = GroupRows { row: next.clone(), request: None };
        assert_eq!(after.swap(rows.row.key(), &next), Ok(SwapDecision::Done));
        assert_eq!(after.swap(rows.row.key(), &replaced(&rows, 4)), Ok(SwapDecision::Conflict));
    }

    #[test]
    fn a_swap_whose_request_was_withdrawn_fails_for_good() {
        let asked = rows(Some(request(RequestState::Asked)));
        let withdrawn = asked.withdraw().unwrap();
        assert_eq!(withdrawn.withdraw(), None);
        // The one under way meets a renewed row.
        let next = replaced(&asked, 3);
        assert_eq!(withdrawn.swap(asked.row.key(), &next), Ok(SwapDecision::Conflict));
        // And one that was begun in ignorance renews it once more.
        let renewed = withdrawn.row.renewed();
        let expected = SwapDecision::Write { row: Box::new(renewed), request: None, is_as_asked: false };
        assert_eq!(withdrawn.swap(withdrawn.row.key(), &next), Ok(expected));
        // It may come back in a new life only.
        assert_eq!(withdrawn.ask(member(1), member(3), true, 8), Err(RequestError::NotWaiting));
        let by = Member { incarnation: Incarnation(2), ..member(3) };
        assert!(matches!(withdrawn.ask(member(1), by, true, 8), Ok(Asked::Write(_))));
    }

    #[test]
    fn a_request_that_can_not_be_met_any_more_is_over() {
        let rows = rows(Some(request(RequestState::Asked)));
        let failed = Row { view: rows.row.view.fail(&[member(1)].into(), Sequence(9)), renewal: 0 };
        let over = Some(Some(request(RequestState::Withdrawn)));
        let expected =
            SwapDecision::Write { row: Box::new(failed.clone()), request: over, is_as_asked: true };
        assert_eq!(rows.swap(rows.row.key(), &failed), Ok(expected));
        let other = Row { view: rows.row.view.fail(&[member(2)].into(), Sequence(9)), renewal: 0 };
        let expected = SwapDecision::Write { row: Box::new(other.clone()), request: None, is_as_asked: true };
        assert_eq!(rows.swap(rows.row.key(), &other), Ok(expected));
    }

    #[test]
    fn wrong_requests_are_refused() {
        let ask = |rows: &GroupRows, victim, by, waits| rows.ask(member(victim), member(by), waits, 8);
        let free = rows(None);
        assert_eq!(ask(&free, 1, 1, true), Err(RequestError::Itself));
        assert_eq!(ask(&free, 4, 3, true), Err(RequestError::NoMember));
        assert_eq!(ask(&free, 1, 2, true), Err(RequestError::MemberAlready));
        assert_eq!(ask(&free, 1, 3, false), Err(RequestError::NotWaiting));
        let by = Member { incarnation: Incarnation(2), ..member(2) };
        assert_eq!(free.ask(member(1), by, true, 8), Err(RequestError::NodeTaken));
        let asked = rows(Some(request(RequestState::Asked)));
        assert_eq!(ask(&asked, 1, 3, true), Ok(Asked::Already));
        assert_eq!(ask(&asked, 2, 4, true), Err(RequestError::UnderWay(request(RequestState::Asked))));
    }

    #[test]
    fn only_the_next_row_follows() {
        let row = rows(None).row;
        assert_eq!(row.check_first(), Ok(()));
        assert!(Row::founded(Vec::new()).check_first().is_err());
        assert!(Row::founded(vec![member(1), member(1)]).check_first().is_err());
        assert!(row.renewed().check_first().is_err());
        assert_eq!(row.check_next(&row.renewed()), Ok(()));
        let next = |view| Row { view, renewal: 0 };
        let good = row.view.replace(member(1), member(3), Sequence(9));
        assert_eq!(row.check_next(&next(good.clone())), Ok(()));
        let mut wrong = good.clone();
        wrong.id = ViewId(3);
        assert!(matches!(row.check_next(&next(wrong)), Err(NotNext::Number { .. })));
        let mut wrong = good.clone();
        wrong.full.push(member(5));
        assert!(matches!(row.check_next(&next(wrong)), Err(NotNext::Members(_))));
        let mut wrong = good.clone();
        wrong.mirrors = 9;
        assert!(matches!(row.check_next(&next(wrong)), Err(NotNext::Members(_))));
        assert!(matches!(
            row.check_next(&next(row.view.add(member(3), Sequence(9)))),
            Err(NotNext::Members(_))
        ));
        let all = [member(1), member(2)].into();
        assert!(matches!(row.check_next(&next(row.view.fail(&all, Sequence(9)))), Err(NotNext::Members(_))));
        let later = next(good);
        let back = Row { view: later.view.fail(&[member(2)].into(), Sequence(3)), renewal: 0 };
        assert!(matches!(later.check_next(&back), Err(NotNext::Cut(..))));
    }
}
