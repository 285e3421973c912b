//! The fence between lives of nodes: what a node takes from another is in order, once, and of both present lives.
//!
//! Whatever carries the frames may lose, double, delay and reorder them; after this it is a channel that only loses. That is
//! what allows a stream to be forgotten whole when it ends: no copy of its messages can come later.

use std::collections::BTreeMap;

use super::{Frame, Message};
use crate::flaw::{Flaw, is_planted};
use crate::ids::NodeId;

/// Of which life a node is known, and how far its frames and those to it have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Session {
    life: u64,
    received: u64,
    sent: u64,
}

/// One node's sessions with the others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sessions {
    life: u64,
    others: BTreeMap<NodeId, Session>,
}

/// Why a frame is not taken. Nothing is lost by it: what matters is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// It comes from an earlier life of the sender.
    #[error("it comes from an earlier life of its sender")]
    Sender,
    /// It was meant for an earlier life of this node; the sender is to be answered, so that it learns of this one.
    #[error("it was meant for an earlier life of this node")]
    Receiver,
    /// One that was sent later has come before, or it has come already.
    #[error("it was overtaken")]
    Overtaken,
}

impl Sessions {
    /// Of a node in this life, a number that rises with each start.
    pub fn new(life: u64) -> Sessions {
        Sessions { life, others: BTreeMap::new() }
    }

    /// Begins another life in the middle of one: whatever is on its way to this node is not heeded any more. Gives those who are
    /// to hear of it.
    pub fn renew(&mut self) -> Vec<NodeId> {
        self.life += 1;
        self.others.keys().copied().collect()
    }

    /// The frame that says `messages` to `to`.
    pub fn frame(&mut self, to: NodeId, messages: Vec<Message>) -> Frame {
        let session = self.others.entry(to).or_default();
        session.sent += 1;
        Frame { life: self.life, to_life: session.life, number: session.sent, messages }
    }

    /// Whether a frame is the first that is heard of a life of its sender: what was said to the one before it is lost.
    pub fn is_new(&self, from: NodeId, frame: &Frame) -> bool {
        self.others.get(&from).is_none_or(|session| session.life < frame.life)
    }

    /// The messages of a frame, if it is the next of this session or a later one.
    ///
    /// # Errors
    /// It is stale. On [`Stale::Receiver`] an empty frame to the sender tells it of this life.
    pub fn take(&mut self, from: NodeId, frame: Frame) -> Result<Vec<Message>, Stale> {
        if is_planted(Flaw::ExchangeNoFence) {
            return Ok(frame.messages);
        }
        let session = self.others.entry(from).or_default();
        if frame.life < session.life {
            return Err(Stale::Sender);
        }
        if frame.life > session.life {
            *session = Session { life: frame.life, received: 0, sent: session.sent };
        }
        if frame.number <= session.received {
            return Err(Stale::Overtaken);
        }
        if frame.to_life != self.life {
            return Err(Stale::Receiver);
        }
        session.received = frame.number;
        Ok(frame.messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);

    /// Two nodes that know each other.
    fn pair() -> (Sessions, Sessions) {
        let (mut one, mut two) = (Sessions::new(10), Sessions::new(20));
        let hello = one.frame(TWO, Vec::new());
        assert_eq!(two.take(ONE, hello), Err(Stale::Receiver));
        let answer = two.frame(ONE, Vec::new());
        assert_eq!(one.take(TWO, answer), Ok(Vec::new()));
        (one, two)
    }

    #[test]
    fn copies_and_overtaken_frames_are_dropped() {
        let (mut one, mut two) = pair();
        let (first, second) = (one.frame(TWO, Vec::new()), one.frame(TWO, Vec::new()));
        assert!(two.take(ONE, second.clone()).is_ok());
        assert_eq!(two.take(ONE, second), Err(Stale::Overtaken));
        assert_eq!(two.take(ONE, first), Err(Stale::Overtaken));
    }

    #[test]
    fn what_was_on_its_way_when_a_life_was_renewed_is_dropped() {
        let (mut one, mut two) = pair();
        let late = one.frame(TWO, Vec::new());
        assert_eq!(two.renew(), [ONE]);
        assert_eq!(two.take(ONE, late), Err(Stale::Receiver));
        let greeting = two.frame(ONE, Vec::new());
        assert!(one.take(TWO, greeting).is_ok());
        let next = one.frame(TWO, Vec::new());
        assert!(two.take(ONE, next).is_ok());
    }

    #[test]
    fn a_new_life_of_the_sender_fences_the_old_one() {
        let (mut one, mut two) = pair();
        let late = one.frame(TWO, Vec::new());
        let mut reborn = Sessions::new(11);
        assert_eq!(two.take(ONE, reborn.frame(TWO, Vec::new())), Err(Stale::Receiver));
        assert_eq!(two.take(ONE, late), Err(Stale::Sender));
        assert!(reborn.take(TWO, two.frame(ONE, Vec::new())).is_ok());
        assert!(two.take(ONE, reborn.frame(TWO, Vec::new())).is_ok());
    }

    #[test]
    fn a_life_is_new_once() {
        let (mut one, two) = pair();
        let mut reborn = Sessions::new(21);
        let hello = reborn.frame(ONE, Vec::new());
        assert!(one.is_new(TWO, &hello));
        // It is fenced, and is heard of all the same.
        assert_eq!(one.take(TWO, hello), Err(Stale::Receiver));
        let (next, late) = (reborn.frame(ONE, Vec::new()), two.clone().frame(ONE, Vec::new()));
        assert!(!one.is_new(TWO, &next) && !one.is_new(TWO, &late));
    }

    #[test]
    fn a_new_life_of_the_receiver_takes_nothing_meant_for_the_old_one() {
        let (mut one, _) = pair();
        let late = one.frame(TWO, Vec::new());
        let mut reborn = Sessions::new(21);
        assert_eq!(reborn.take(ONE, late), Err(Stale::Receiver));
        assert!(one.take(TWO, reborn.frame(ONE, Vec::new())).is_ok());
        assert!(reborn.take(ONE, one.frame(TWO, Vec::new())).is_ok());
    }
}
