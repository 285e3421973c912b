//! The writers: each has one write under way, and writes the next when it is acknowledged.
//!
//! A write that gets no answer, or an uncertain one, is written again. Only what was acknowledged may never be lost.

use steadfast_proto::group::{Member, Outcome, RequestId};

use super::program;

/// How long a writer waits for an answer, in nanoseconds.
pub(super) const PATIENCE: u64 = 400_000_000;

#[derive(Debug)]
pub(super) struct Writers {
    lanes: Vec<Lane>,
    next: u64,
    /// The numbers of the writes that were acknowledged, as bits.
    pub(super) acknowledged: Vec<u64>,
    pub(super) count: u64,
}

#[derive(Debug)]
struct Lane {
    id: u64,
    tries: u64,
    leader: Option<Member>,
}

impl Writers {
    pub(super) fn new(lanes: u64) -> Writers {
        let lane = |id| Lane { id, tries: 0, leader: None };
        Writers { lanes: (0..lanes).map(lane).collect(), next: lanes, acknowledged: Vec::new(), count: 0 }
    }

    /// The next try of a lane: its request, what it writes, and to whom it would go.
    pub(super) fn attempt(&mut self, lane: usize) -> (RequestId, u64, Option<Member>) {
        let count = self.lanes.len() as u64;
        let this = &mut self.lanes[lane];
        this.tries += 1;
        (RequestId(this.tries * count + lane as u64), this.id, this.leader)
    }

    pub(super) fn lane(&self, request: RequestId) -> usize {
        usize::try_from(request.0 % self.lanes.len() as u64).expect("few lanes")
    }

    pub(super) fn is_current(&self, request: RequestId) -> bool {
        self.lanes[self.lane(request)].tries == request.0 / self.lanes.len() as u64
    }

    /// Takes an answer, and says after how many nanoseconds the lane goes on, if the answer concerns it.
    pub(super) fn answer(&mut self, request: RequestId, outcome: &Outcome) -> Option<u64> {
        if !self.is_current(request) {
            return None;
        }
        let lane = self.lane(request);
        match outcome {
            Outcome::Done { .. } => {
                program::insert(&mut self.acknowledged, self.lanes[lane].id);
                self.count += 1;
                self.lanes[lane].id = self.next;
                self.next += 1;
                Some(8_000_000)
            }
            Outcome::NotLeader(leader) => {
                self.lanes[lane].leader = *leader;
                Some(10_000_000)
            }
            Outcome::Busy | Outcome::TooLarge | Outcome::Unknown => {
                self.lanes[lane].leader = None;
                Some(10_000_000)
            }
        }
    }

    pub(super) fn forget_leader(&mut self, lane: usize) {
        self.lanes[lane].leader = None;
    }
}
