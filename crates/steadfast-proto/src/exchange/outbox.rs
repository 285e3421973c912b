//! What a sender keeps of its messages to one receiver, until the fourth step.
//!
//! Numbers are contiguous per receiver (H1); an entry goes when it is confirm-acked and everything before it has gone, so
//! the entries are exactly the numbers above [`Outbox::floor`].

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Letter, WINDOW};
use crate::time::Time;

/// How far a message has come. Never goes back (E-S6), but that a crash may lose an unforced step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// No ack has come.
    Sending,
    /// It was acknowledged: the receiver is to forget it.
    Confirming,
    /// It was given up: the receiver is to take it no more. Nobody waits for that.
    Burning,
    /// It was confirm-acked, before one in front of it was.
    Finished,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// What is said; gone when nobody needs it any more.
    pub letter: Option<Letter>,
    /// How far it has come.
    pub phase: Phase,
    /// When it counts as undeliverable.
    pub give_up: Option<Time>,
}

/// When a stream's unfinished messages are sent again; forgotten by a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flow {
    /// When anything was last sent.
    pub since: Time,
    /// When something was last sent first, or came further.
    pub moved_at: Time,
    /// How often everything was sent again since.
    pub attempts: u32,
    /// What is waited for.
    pub due: Option<Time>,
}

/// One sender's messages to one receiver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Outbox {
    /// The number of the last message.
    last: u64,
    entries: VecDeque<Entry>,
    /// The receiver's epoch as its acks said.
    pub peer_epoch: Option<u64>,
    /// When it is sent again.
    #[serde(skip)]
    pub flow: Flow,
}

impl Outbox {
    /// Everything up to here is finished at both ends.
    pub fn floor(&self) -> u64 {
        self.last - self.entries.len() as u64
    }

    /// The number of the last message.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Whether everything is finished.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many messages more fit the window.
    pub fn room(&self) -> u64 {
        WINDOW.saturating_sub(self.entries.len() as u64)
    }

    /// Adds a message, and gives its number.
    pub fn push(&mut self, letter: Letter, give_up: Option<Time>) -> u64 {
        self.last += 1;
        self.entries.push_back(Entry { letter: Some(letter), phase: Phase::Sending, give_up });
        self.last
    }

    /// The unfinished messages with their numbers.
    pub fn entries(&self) -> impl Iterator<Item = (u64, &Entry)> {
        (self.floor() + 1..).zip(&self.entries)
    }

    /// How far message `seq` has come; `None` if it is finished, or was never sent.
    pub fn phase(&self, seq: u64) -> Option<Phase> {
        let index = seq.checked_sub(self.floor() + 1)?;
        self.entries.get(usize::try_from(index).ok()?).map(|entry| entry.phase)
    }

    /// What message `seq` says, while it is being sent.
    pub fn letter(&self, seq: u64) -> Option<&Letter> {
        let index = seq.checked_sub(self.floor() + 1)?;
        self.entries.get(usize::try_from(index).ok()?)?.letter.as_ref()
    }

    /// These were acknowledged: they need no letter any more. Gives how many were being sent.
    pub fn acked(&mut self, first: u64, last: u64) -> u64 {
        self.leave_sending(first, last, Phase::Confirming)
    }

    /// These are given up. Gives how many were being sent.
    pub fn burn(&mut self, first: u64, last: u64) -> u64 {
        self.leave_sending(first, last, Phase::Burning)
    }

    fn leave_sending(&mut self, first: u64, last: u64, phase: Phase) -> u64 {
        let mut count = 0;
        for entry in self.span(first, last).filter(|entry| entry.phase == Phase::Sending) {
            entry.phase = phase;
            entry.letter = None;
            entry.give_up = None;
            count += 1;
        }
        count
    }

    /// These were confirm-acked. Gives how many were being confirmed.
    pub fn forget(&mut self, first: u64, last: u64) -> u64 {
        let mut count = 0;
        for entry in self.span(first, last) {
            match entry.phase {
                Phase::Sending | Phase::Finished => continue,
                Phase::Confirming => count += 1,
                Phase::Burning => {}
            }
            entry.phase = Phase::Finished;
        }
        while self.entries.front().is_some_and(|entry| entry.phase == Phase::Finished) {
            self.entries.pop_front();
        }
        if self.entries.is_empty() {
            self.entries = VecDeque::new();
        }
        count
    }

    fn span(&mut self, first: u64, last: u64) -> impl Iterator<Item = &mut Entry> {
        let floor = self.floor();
        let index = |seq: u64| usize::try_from(seq.saturating_sub(floor)).unwrap_or(usize::MAX);
        let end = index(last).min(self.entries.len());
        let start = index(first.max(1)).saturating_sub(1).min(end);
        self.entries.range_mut(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Blob;

    fn letter() -> Letter {
        Letter { kind: "x".into(), correlation: None, payload: Blob::empty(), begins: false }
    }

    #[test]
    fn entries_go_in_order_whatever_order_they_finish_in() {
        let mut outbox = Outbox::default();
        for seq in 1..=3 {
            assert_eq!(outbox.push(letter(), None), seq);
        }
        assert_eq!(outbox.acked(2, 3), 2);
        assert_eq!(outbox.forget(2, 2), 1);
        assert_eq!((outbox.floor(), outbox.phase(2)), (0, Some(Phase::Finished)));
        assert_eq!(outbox.forget(1, 1), 0, "a message that is still being sent is not forgotten");
        assert_eq!(outbox.acked(0, 1), 1);
        assert_eq!(outbox.forget(1, u64::MAX), 2);
        assert!(outbox.is_empty());
        assert_eq!((outbox.floor(), outbox.phase(3), outbox.phase(4)), (3, None, None));
    }

    #[test]
    fn spans_beyond_the_entries_touch_nothing() {
        let mut outbox = Outbox::default();
        outbox.push(letter(), None);
        assert_eq!(outbox.acked(2, 9), 0);
        assert_eq!(outbox.acked(9, 2), 0);
        assert_eq!(outbox.phase(1), Some(Phase::Sending));
    }
}
