//! What will happen: one heap of (time, sequence), and the heartbeats that are under way.
//!
//! Two events of one instant come in the order in which they were put in, so a run depends on nothing but its seed.
//! Heartbeats stand in an arena whose places are used again: a world of ten thousand nodes sends a million a second.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use steadfast_proto::detect::Evidence;
use steadfast_proto::ids::{Incarnation, NetworkId};
use steadfast_proto::wire::Heartbeat;

/// Something that will happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A heartbeat reaches a host.
    Arrival { to: u32, place: u32 },
    /// An agent's deadline may have come.
    Wake { node: u32, life: u32 },
    /// An agent starts.
    Start { node: u32 },
    /// The kernel tells an agent something of a peer.
    Testimony { observer: u32, life: u32, peer: u32, peer_life: u32, evidence: Evidence, is_answer: bool },
    /// A fault begins.
    Begin { fault: u16 },
    /// A fault ends.
    End { fault: u16 },
    /// The nodes of a fault that stutter stop or go on.
    Turn { fault: u16, stops: bool },
    /// A view reaches a node.
    Install { node: u32, view: u32 },
    /// A change of the view is committed.
    Commit { change: u32 },
}

/// A heartbeat under way.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) from: u32,
    pub(super) incarnation: Incarnation,
    pub(super) network: NetworkId,
    pub(super) heartbeat: Heartbeat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    key: (u64, u64),
    event: Event,
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The queue of one world.
#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    sequence: u64,
    letters: Vec<Option<Letter>>,
    free: Vec<u32>,
}

impl Queue {
    /// Lets `event` happen at `at`, in nanoseconds since the world began.
    pub(super) fn push(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.heap.push(Reverse(Entry { key: (at, self.sequence), event }));
    }

    /// The next event, if it is not later than `end`.
    pub(super) fn pop(&mut self, end: u64) -> Option<(u64, Event)> {
        let Reverse(next) = self.heap.peek()?;
        if next.key.0 > end {
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        Some((entry.key.0, entry.event))
    }

    /// Keeps a heartbeat until it arrives.
    pub(super) fn post(&mut self, letter: Letter) -> u32 {
        if let Some(place) = self.free.pop() {
            self.letters[place as usize] = Some(letter);
            return place;
        }
        self.letters.push(Some(letter));
        u32::try_from(self.letters.len() - 1).expect("fewer than 2^32 heartbeats are under way")
    }

    /// Takes a heartbeat out; its place is free again.
    pub(super) fn open(&mut self, place: u32) -> Option<Letter> {
        let letter = self.letters.get_mut(place as usize)?.take()?;
        self.free.push(place);
        Some(letter)
    }
}
