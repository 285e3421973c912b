//! What the networks do to a datagram: whether it arrives, and after how long.
//!
//! Must never know what a datagram says. Faults are looked at in the order of the plan; only those that are under
//! way count.

use std::collections::BTreeMap;

use super::fault::{Kind, Struck};
use super::plan::{Burst, NetworkPlan, nanos};
use crate::random::Random;

/// The networks of one world.
#[derive(Debug)]
pub(super) struct Medium {
    plans: Vec<NetworkPlan>,
    /// Per direction of a link, whether a burst is under way and until when that lasts.
    bursts: BTreeMap<(usize, usize, usize), (bool, u64)>,
    /// The faults under way that touch datagrams.
    active: Vec<Struck>,
}

impl Medium {
    pub(super) fn new(plans: Vec<NetworkPlan>) -> Medium {
        Medium { plans, bursts: BTreeMap::new(), active: Vec::new() }
    }

    pub(super) fn count(&self) -> usize {
        self.plans.len()
    }

    /// Takes note of which faults are under way.
    pub(super) fn set_faults<'a>(&mut self, faults: impl Iterator<Item = &'a Struck>) {
        self.active =
            faults.filter(|struck| struck.is_active() && touches_datagrams(struck)).cloned().collect();
    }

    /// After how long a datagram arrives, in nanoseconds, if it does.
    pub(super) fn transit(
        &mut self,
        now: u64,
        network: usize,
        from: usize,
        to: usize,
        random: &mut Random,
    ) -> Option<u64> {
        if self.is_blocked(network, from, to) {
            return None;
        }
        let plan = self.plans.get(network)?;
        if plan.loss > 0.0 && random.chance(plan.loss) {
            return None;
        }
        let mut delay = plan.delay.draw(random);
        if let Some(burst) = plan.burst {
            let state = self.bursts.entry((network, from, to)).or_insert((true, 0));
            if is_in_burst(now, burst, state, random) {
                return None;
            }
        }
        for struck in &self.active {
            if !strikes(struck, network, from, to) {
                continue;
            }
            if struck.fault.kind == Kind::Loss && random.chance(struck.fault.loss) {
                return None;
            }
            if struck.fault.kind == Kind::Delay {
                delay += struck.fault.delay.draw(random);
            }
        }
        Some(delay)
    }

    /// Whether a fault lets nothing through in this direction.
    pub(super) fn is_blocked(&self, network: usize, from: usize, to: usize) -> bool {
        self.active.iter().any(|struck| blocks(struck, network, from, to))
    }

    /// Whether each of two hears the other on some network.
    pub(super) fn connects(&self, one: usize, other: usize) -> bool {
        (0..self.count()).any(|network| self.connects_on(network, one, other))
    }

    /// Whether each of two hears the other on `network`.
    pub(super) fn connects_on(&self, network: usize, one: usize, other: usize) -> bool {
        !self.is_blocked(network, one, other) && !self.is_blocked(network, other, one)
    }
}

fn touches_datagrams(struck: &Struck) -> bool {
    match struck.fault.kind {
        Kind::Isolate
        | Kind::Deaf
        | Kind::Mute
        | Kind::OneWay
        | Kind::CutLink
        | Kind::Unplug
        | Kind::CutNetwork
        | Kind::Loss
        | Kind::Delay
        | Kind::Split => true,
        Kind::Crash | Kind::Silent | Kind::Stall | Kind::Leave | Kind::Restart | Kind::Stutter => false,
    }
}

fn blocks(struck: &Struck, network: usize, from: usize, to: usize) -> bool {
    if !struck.is_on(network) {
        return false;
    }
    let has = |node: usize| struck.nodes.contains(&node);
    match struck.fault.kind {
        Kind::Isolate | Kind::Unplug => has(from) || has(to),
        Kind::Deaf => has(to),
        Kind::Mute => has(from),
        Kind::OneWay => struck.is_nth(0, from) && struck.is_nth(1, to),
        Kind::CutLink => has(from) && has(to),
        Kind::CutNetwork => true,
        Kind::Split => has(from) != has(to),
        Kind::Loss
        | Kind::Delay
        | Kind::Crash
        | Kind::Silent
        | Kind::Stall
        | Kind::Leave
        | Kind::Restart
        | Kind::Stutter => false,
    }
}

/// Whether a loss or delay touches this direction: everywhere, to one node, or between two.
fn strikes(struck: &Struck, network: usize, from: usize, to: usize) -> bool {
    let is_here = match struck.nodes.len() {
        0 => true,
        1 => struck.nodes.contains(&to),
        _ => struck.nodes.contains(&from) && struck.nodes.contains(&to),
    };
    is_here && struck.is_on(network)
}

fn is_in_burst(now: u64, burst: Burst, state: &mut (bool, u64), random: &mut Random) -> bool {
    while state.1 <= now {
        let (was_in, until) = *state;
        let mean = if was_in { burst.every - burst.length } else { burst.length };
        *state = (!was_in, until.max(1) + random.around(nanos(mean)).max(1));
    }
    state.0
}
