//! Scripts of a group: small worlds in which every message arrives at once and the catalog answers at once.

use std::collections::BTreeMap;

use super::*;
use crate::ids::{Incarnation, NodeId};
use crate::machine::Machine;
use crate::time::Time;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Journal(Vec<Vec<u8>>);

impl Application for Journal {
    fn apply(&mut self, record: &[u8]) -> Vec<u8> {
        self.0.push(record.to_vec());
        vec![u8::try_from(self.0.len()).unwrap_or(u8::MAX)]
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in &self.0 {
            bytes.push(u8::try_from(record.len()).expect("short"));
            bytes.extend(record);
        }
        bytes
    }

    fn restore(&mut self, mut snapshot: &[u8]) -> Result<(), RestoreError> {
        self.0.clear();
        while let Some((length, rest)) = snapshot.split_first() {
            let error = || RestoreError { bytes: snapshot.len(), why: "it is cut short".into() };
            let (record, rest) = rest.split_at_checked(usize::from(*length)).ok_or_else(error)?;
            self.0.push(record.to_vec());
            snapshot = rest;
        }
        Ok(())
    }
}

fn member(node: u128) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(1) }
}

struct Table {
    now: Time,
    row: Row,
    groups: BTreeMap<Member, Group<Journal>>,
    replies: Vec<(RequestId, Outcome)>,
    events: Vec<(Member, Event)>,
    views: Vec<ViewId>,
}

impl Table {
    fn new(founders: &[u128], settings: Settings) -> Table {
        let row = Row::founded(founders.iter().map(|node| member(*node)).collect());
        let founder = |me: Member| (me, Group::founder(me, settings, Journal::default(), row.clone()));
        let groups = row.view.full.iter().map(|me| founder(*me)).collect();
        let now = Time::from_nanos(1_000_000_000);
        Table { now, row, groups, replies: Vec::new(), events: Vec::new(), views: Vec::new() }
    }

    fn candidate(&mut self, node: u128, intent: Intent) {
        let me = member(node);
        self.groups.insert(me, Group::candidate(me, Settings::default(), Journal::default(), intent));
        self.step(me, Input::Committed(self.row.clone()));
    }

    fn step(&mut self, to: Member, input: Input) {
        let mut queue = vec![(to, input)];
        while !queue.is_empty() {
            let (to, input) = queue.remove(0);
            let Some(group) = self.groups.get_mut(&to) else { continue };
            let mut out = Output::default();
            group.step(self.now, input, &mut out);
            queue.extend(
                out.send.into_iter().map(|(other, message)| (other, Input::Received { from: to, message })),
            );
            if let Some(swap) = out.swap {
                let outcome = if self.row.key() == swap.expected {
                    self.row = swap.next;
                    self.views.push(self.row.view.id);
                    Swapped::Done
                } else {
                    Swapped::Conflict(self.row.clone())
                };
                queue.push((to, Input::Swapped { number: swap.number, outcome }));
            }
            self.replies.append(&mut out.replies);
            self.events.extend(out.events.into_iter().map(|event| (to, event)));
        }
    }

    /// Lets time pass, deadline by deadline.
    fn wait(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while let Some((at, who)) =
            self.groups.iter().filter_map(|(who, group)| Some((group.deadline()?, *who))).min()
            && at <= end
        {
            self.now = self.now.max(at);
            self.step(who, Input::Deadline);
            let next = self.groups[&who].deadline();
            assert!(next.is_none_or(|next| next > self.now), "{who:?} wants {next:?} at {:?}", self.now);
        }
        self.now = end;
    }

    fn write(&mut self, node: u128, number: u64) {
        let record = number.to_string().into_bytes();
        self.step(member(node), Input::Write { request: RequestId(number), record });
    }

    fn done(&self) -> Vec<u64> {
        let done = self.replies.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Done { .. }));
        done.map(|(request, _)| request.0).collect()
    }

    fn pass(&mut self, candidate: u128) {
        for who in self.groups.keys().copied().collect::<Vec<_>>() {
            self.step(who, Input::Evidence { candidate: member(candidate), standing: Standing::Pass });
        }
    }

    fn journal(&self, node: u128) -> &Journal {
        self.groups[&member(node)].application()
    }
}

#[test]
fn a_write_is_done_when_every_full_member_has_it() {
    let mut table = Table::new(&[1, 2, 3], Settings::default());
    table.write(1, 1);
    assert_eq!(table.done(), [1]);
    assert!((1..=3).all(|node| table.journal(node).0.len() == 1));
    table.groups.remove(&member(3));
    table.write(1, 2);
    assert_eq!(table.done(), [1]);
    table.step(member(1), Input::Fenced(member(3)));
    table.wait(10);
    assert_eq!(table.done(), [1, 2]);
    assert_eq!(table.row.view.full, [member(1), member(2)]);
    assert_eq!(table.row.view.reason, Reason::Failed([member(3)].into()));
}

#[test]
fn a_replacement_is_one_view_and_the_candidate_has_everything() {
    for victim in [1, 2] {
        let mut table = Table::new(&[1, 2], Settings::default());
        for number in 1..=50 {
            table.write(1, number);
        }
        table.candidate(3, Intent::Replace(member(victim)));
        table.wait(300);
        assert_eq!(table.row.view.id, ViewId(1), "nobody is promoted before all criteria are met");
        table.pass(3);
        table.wait(300);
        assert_eq!(table.views, [ViewId(2)]);
        assert_eq!(table.row.view.full, [member(3 - victim), member(3)]);
        assert_eq!(table.row.view.reason, Reason::Replaced { victim: member(victim), by: member(3) });
        assert_eq!(table.row.view.cut, Sequence(50));
        assert_eq!(table.journal(3).0.len(), 50);
        table.write(3 - victim, 51);
        assert_eq!(table.done().len(), 51);
        assert_eq!(table.journal(3), table.journal(3 - victim));
        assert_eq!(table.journal(victim).0.len(), 50);
    }
}

#[test]
fn a_candidate_takes_the_place_of_a_victim_that_fails_in_the_same_view() {
    let mut table = Table::new(&[1, 2], Settings::default());
    table.write(1, 1);
    table.candidate(3, Intent::Replace(member(1)));
    table.wait(300);
    table.groups.remove(&member(1));
    // The victim fails before anybody has said that the candidate may be promoted.
    table.step(member(2), Input::Evidence { candidate: member(3), standing: Standing::Pending });
    table.pass(3);
    table.step(member(2), Input::Fenced(member(1)));
    table.wait(2_000);
    assert_eq!(table.views.len(), 1);
    assert_eq!(table.row.view.full, [member(2), member(3)]);
    table.write(2, 2);
    assert_eq!(table.done(), [1, 2]);
}

#[test]
fn the_next_in_rank_does_what_the_coordinator_did_not() {
    let mut table = Table::new(&[1, 2, 3], Settings::default());
    table.groups.remove(&member(1));
    table.step(member(3), Input::Fenced(member(1)));
    table.step(member(2), Input::Fenced(member(1)));
    table.groups.remove(&member(2));
    table.step(member(3), Input::Fenced(member(2)));
    table.wait(2_000);
    assert_eq!(table.row.view.full, [member(3)]);
    table.write(3, 1);
    assert_eq!(table.done(), [1]);
}

#[test]
fn a_criterion_that_fails_eliminates_for_good() {
    let mut table = Table::new(&[1, 2], Settings::default());
    table.candidate(3, Intent::Replace(member(2)));
    table.wait(300);
    let failed = Input::Evidence { candidate: member(3), standing: Standing::Fail };
    table.step(member(1), failed);
    let eliminated = (member(3), Event::Eliminated(Elimination::Criterion));
    assert!(table.events.contains(&eliminated));
    table.pass(3);
    table.wait(2_000);
    assert_eq!(table.row.view.id, ViewId(1));
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let settings = Settings { parked_max: 2, ..Settings::default() };
    let mut table = Table::new(&[1, 2], settings);
    table.write(2, 1);
    assert_eq!(table.replies.pop(), Some((RequestId(1), Outcome::NotLeader(Some(member(1))))));
    let record = vec![0; RECORD_BYTES_MAX + 1];
    table.step(member(1), Input::Write { request: RequestId(2), record });
    assert_eq!(table.replies.pop(), Some((RequestId(2), Outcome::TooLarge)));
    for (candidate, intent, why) in
        [(3, Intent::Add, Elimination::GroupFull), (4, Intent::Replace(member(9)), Elimination::VictimGone)]
    {
        table.candidate(candidate, intent);
        table.wait(200);
        assert!(table.events.contains(&(member(candidate), Event::Eliminated(why))), "{:?}", table.events);
    }
    // A mirror is silent: the leader takes what it may, then parks, then refuses.
    table.groups.remove(&member(2));
    for number in 0..2_000 {
        table.write(1, number);
    }
    assert!(table.groups[&member(1)].holds_still());
    assert_eq!(table.replies.last(), Some(&(RequestId(1_999), Outcome::Busy)));
}
