//! The networks between the hosts: what is cut, how slow, and how much is lost.
//!
//! Cuts are counted per (network, from, to), so that overlapping faults end one by one. Must never know what a
//! datagram says.

use crate::random::Random;
use crate::scenario::{MS, Scenario};

/// One direction between two hosts on one network.
pub(crate) type Link = (u16, usize, usize);

/// The networks of one world.
#[derive(Debug)]
pub(crate) struct Networks {
    hosts: usize,
    count: u16,
    cuts: Vec<u16>,
    /// Per network, what faults add to the delay, in nanoseconds.
    pub(crate) extra_delay: Vec<u64>,
    /// Per network, what faults add to the loss.
    pub(crate) extra_loss: Vec<f64>,
}

impl Networks {
    pub(crate) fn new(hosts: usize, count: u16) -> Networks {
        Networks {
            hosts,
            count,
            cuts: vec![0; hosts * hosts * usize::from(count)],
            extra_delay: vec![0; usize::from(count)],
            extra_loss: vec![0.0; usize::from(count)],
        }
    }

    pub(crate) fn all(&self) -> std::ops::Range<u16> {
        0..self.count
    }

    pub(crate) fn is_up(&self, (network, from, to): Link) -> bool {
        self.cuts[self.slot((network, from, to))] == 0
    }

    /// Whether each of the two hears the other on one network.
    pub(crate) fn connects(&self, one: usize, other: usize) -> bool {
        one == other
            || self
                .all()
                .any(|network| self.is_up((network, one, other)) && self.is_up((network, other, one)))
    }

    pub(crate) fn cut(&mut self, links: &[Link]) {
        for link in links {
            let slot = self.slot(*link);
            self.cuts[slot] += 1;
        }
    }

    pub(crate) fn mend(&mut self, links: &[Link]) {
        for link in links {
            let slot = self.slot(*link);
            self.cuts[slot] = self.cuts[slot].saturating_sub(1);
        }
    }

    pub(crate) fn mend_all(&mut self) {
        self.cuts.fill(0);
        self.extra_delay.fill(0);
        self.extra_loss.fill(0.0);
    }

    /// After how long a datagram on `link` arrives, if it does.
    pub(crate) fn transit(&self, link: Link, scenario: &Scenario, random: &mut Random) -> Option<u64> {
        let network = usize::from(link.0);
        if !self.is_up(link) || random.chance(scenario.loss + self.extra_loss[network]) {
            return None;
        }
        let mut delay = scenario.delay + random.around(scenario.jitter);
        if self.extra_delay[network] > 0 {
            delay += random.around(self.extra_delay[network]);
        }
        if scenario.straggling > 0.0 && random.chance(scenario.straggling) {
            delay += random.below(1_500 * MS);
        }
        Some(delay)
    }

    fn slot(&self, (network, from, to): Link) -> usize {
        (usize::from(network) * self.hosts + from) * self.hosts + to
    }
}
