//! A plain detector beside the real one: a fixed time-out per peer, served when its agent runs (PROTOCOLS 3.1).
//!
//! It hears the same heartbeats at the moment at which the agent takes them, without receive times and without
//! excuses. It exists to show what the rules are for; nothing acts on it.

use std::collections::BTreeMap;

use steadfast_proto::detect::Detector;

use super::world::index_of;

/// The plain detectors of all nodes.
#[derive(Debug)]
pub(super) struct Baseline {
    timeout: u64,
    heard: BTreeMap<(usize, usize), u64>,
    accusations: BTreeMap<(usize, usize), u64>,
}

impl Baseline {
    pub(super) fn new(timeout: u64) -> Baseline {
        Baseline { timeout, heard: BTreeMap::new(), accusations: BTreeMap::new() }
    }

    pub(super) fn heard(&mut self, now: u64, observer: usize, peer: usize) {
        self.heard.insert((observer, peer), now);
    }

    /// The agent of `observer` runs: it accuses whom it has not heard for too long.
    pub(super) fn wake(&mut self, now: u64, observer: usize, detector: &Detector) {
        for peer in detector.peers().map(index_of) {
            let silent = self.heard.get(&(observer, peer)).is_some_and(|at| now > at + self.timeout);
            if silent {
                self.accusations.entry((observer, peer)).or_insert(now);
            }
        }
    }

    /// Who accused whom, and when first.
    pub(super) fn finish(self) -> BTreeMap<(usize, usize), u64> {
        self.accusations
    }
}
