//! One node's opinion of who has failed: a process, a link, a network, or this node itself.
//!
//! One arrival table per (peer, network) is kept; everything else is a function of it (PROTOCOLS 3.1, 3.2, 3.3).
//! A peer is suspected when its heartbeats stay away longer than an adaptive timeout *and* it lags behind another
//! peer: when all peers fall silent together, the observer or its network is at fault, and nobody is accused.
//! An opinion here never removes anybody: [`crate::view`] says what a removal needs.
//!
//! ```
//! use std::time::Duration;
//! use steadfast_proto::detect::{Detector, Opinion, Settings};
//! use steadfast_proto::ids::{NetworkId, NodeId};
//! use steadfast_proto::time::Time;
//!
//! let (silent, alive) = (NodeId(1), NodeId(2));
//! let mut detector = Detector::new(Settings::default(), Time::ZERO);
//! detector.watch(Time::ZERO, [silent, alive]);
//! let mut opinions = Vec::new();
//! for tick in 1..60u64 {
//!     let now = Time::from_nanos(tick * 100_000_000);
//!     detector.arrival(alive, NetworkId(0), tick, now);
//!     if tick < 20 {
//!         detector.arrival(silent, NetworkId(0), tick, now);
//!     }
//!     detector.evaluate(now + Duration::from_millis(1), &mut opinions);
//! }
//! assert!(matches!(opinions.as_slice(), [Opinion::Suspected { peer, .. }] if *peer == silent));
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::ids::{NetworkId, NodeId};
use crate::time::Time;

/// How the detector judges; every default is PROTOCOLS 3's.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How often every node sends. 100 ms; shorter detects sooner and costs traffic.
    pub interval: Duration,
    /// The first timeout for a peer. Ten intervals.
    pub timeout_initial: Duration,
    /// The shortest timeout; bounds how soon a silent death is seen. Three intervals.
    pub timeout_min: Duration,
    /// The longest timeout, however slow a peer has been. Fifty intervals.
    pub timeout_max: Duration,
    /// The timeout aims at this many times the longest recent gap.
    pub margin: f64,
    /// How many recent gaps count.
    pub window: usize,
    /// The share of the way to a longer timeout that one gap goes.
    pub up: f64,
    /// The share of the way to a shorter timeout that one gap goes; well below `up`, or a bursty peer flaps.
    pub down: f64,
    /// How far a peer must lag behind the freshest one; more than two intervals, as senders are out of phase.
    pub lag_min: Duration,
    /// How far one network must lag behind another for a link to be suspected.
    pub network_lag: Duration,
    /// How long a peer that was never heard is given after this node's start.
    pub start_grace: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings::of_interval(Duration::from_millis(100))
    }
}

impl Settings {
    /// The settings of PROTOCOLS 3 for heartbeats every `interval`.
    pub fn of_interval(interval: Duration) -> Settings {
        Settings {
            interval,
            timeout_initial: interval * 10,
            timeout_min: interval * 3,
            timeout_max: interval * 50,
            margin: 2.0,
            window: 16,
            up: 0.5,
            down: 0.05,
            lag_min: interval.mul_f64(2.5),
            network_lag: interval * 5,
            start_grace: Duration::from_secs(10),
        }
    }
}

/// A change of this node's opinion.
#[derive(Clone, Debug, PartialEq)]
pub enum Opinion {
    /// A peer is silent on all networks while another is not.
    Suspected {
        /// Who.
        peer: NodeId,
        /// For how long it has been silent.
        silent: Duration,
        /// Its timeout, which that exceeds.
        timeout: Duration,
        /// The freshest other peer, and how long it was silent.
        fresh: (NodeId, Duration),
    },
    /// A suspected peer was heard again.
    Cleared(NodeId),
    /// One peer is silent on this network and heard on another.
    LinkSuspected(NodeId, NetworkId),
    /// That peer is heard on this network again.
    LinkCleared(NodeId, NetworkId),
    /// Every peer that is heard on another network is silent on this one.
    NetworkSuspected(NetworkId),
    /// A suspected network carries heartbeats again.
    NetworkCleared(NetworkId),
    /// No peer is heard on any network: this node is cut off, or every other one is.
    Isolated,
    /// A peer is heard again.
    Reconnected,
}

/// The adaptive timeout of one peer (PROTOCOLS 3.3): it follows the longest recent gap, fast up and slowly down.
#[derive(Clone, Debug)]
pub struct AdaptiveTimeout {
    current: Duration,
    gaps: VecDeque<Duration>,
}

impl AdaptiveTimeout {
    /// A timeout at its first value.
    pub fn new(settings: &Settings) -> AdaptiveTimeout {
        AdaptiveTimeout { current: settings.timeout_initial, gaps: VecDeque::new() }
    }

    /// The timeout now.
    pub fn current(&self) -> Duration {
        self.current
    }

    /// Learns from a heartbeat that came `gap` after the last one; a late one teaches nothing (AT3).
    pub fn observe(&mut self, gap: Duration, settings: &Settings) {
        if gap > self.current {
            return;
        }
        if self.gaps.len() >= settings.window {
            self.gaps.pop_front();
        }
        self.gaps.push_back(gap);
        let longest = self.gaps.iter().max().copied().unwrap_or(gap);
        let target = longest.mul_f64(settings.margin).clamp(settings.timeout_min, settings.timeout_max);
        let next = if target > self.current {
            self.current + (target - self.current).mul_f64(settings.up)
        } else {
            self.current - (self.current - target).mul_f64(settings.down)
        };
        self.current = next.clamp(settings.timeout_min, settings.timeout_max);
    }
}

/// The failure detector of one node.
#[derive(Clone, Debug)]
pub struct Detector {
    settings: Settings,
    started: Time,
    peers: BTreeMap<NodeId, Peer>,
    networks_suspected: BTreeSet<NetworkId>,
    isolated: bool,
}

#[derive(Clone, Debug)]
struct Peer {
    /// The last arrival on each network.
    arrivals: BTreeMap<NetworkId, Time>,
    /// The last arrival on any network, or the start of the watch.
    fresh_at: Time,
    /// The highest sequence seen, which tells a new tick from its copy on a second network.
    sequence: Option<u64>,
    timeout: AdaptiveTimeout,
    /// Whether a member that has known it for longer suspects it, which ends the grace of a start.
    doubted: bool,
    suspected: bool,
    links_suspected: BTreeSet<NetworkId>,
}

impl Detector {
    /// A detector that watches nobody yet.
    pub fn new(settings: Settings, now: Time) -> Detector {
        Detector {
            settings,
            started: now,
            peers: BTreeMap::new(),
            networks_suspected: BTreeSet::new(),
            isolated: false,
        }
    }

    /// Watches exactly `peers` from now on; those that are new start afresh.
    pub fn watch(&mut self, now: Time, peers: impl IntoIterator<Item = NodeId>) {
        let wanted: BTreeSet<NodeId> = peers.into_iter().collect();
        self.peers.retain(|id, _| wanted.contains(id));
        for id in wanted {
            self.peers.entry(id).or_insert_with(|| Peer {
                arrivals: BTreeMap::new(),
                fresh_at: now,
                sequence: None,
                timeout: AdaptiveTimeout::new(&self.settings),
                doubted: false,
                suspected: false,
                links_suspected: BTreeSet::new(),
            });
        }
    }

    /// Forgets what is known of `peer`, which has started again.
    pub fn restarted(&mut self, now: Time, peer: NodeId) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.sequence = None;
            peer.arrivals.clear();
            peer.fresh_at = now;
            peer.timeout = AdaptiveTimeout::new(&self.settings);
        }
    }

    /// Takes note that another member suspects `peer`: if this node has never heard it, the grace of its own start
    /// is over, since that member has listened for longer.
    pub fn doubt(&mut self, peer: NodeId) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.doubted = true;
        }
    }

    /// Takes note of a heartbeat that arrived at `received_at`. All that is waiting must be handed over before
    /// [`Detector::evaluate`] (3.1, drain first).
    pub fn arrival(&mut self, peer: NodeId, network: NetworkId, sequence: u64, received_at: Time) {
        let Some(peer) = self.peers.get_mut(&peer) else { return };
        let arrival = peer.arrivals.entry(network).or_insert(received_at);
        *arrival = received_at.max(*arrival);
        let is_new = peer.sequence.is_none_or(|last| sequence > last);
        if is_new {
            if peer.sequence.is_some() && !peer.suspected {
                peer.timeout.observe(received_at.since(peer.fresh_at), &self.settings);
            }
            peer.sequence = Some(sequence);
            peer.doubted = false;
        }
        peer.fresh_at = received_at.max(peer.fresh_at);
    }

    /// Takes this node's own pause of `lag` off every age: while it did not run it could not listen (3.3 d).
    pub fn paused(&mut self, now: Time, lag: Duration) {
        for peer in self.peers.values_mut() {
            peer.fresh_at = (peer.fresh_at + lag).min(now);
            for arrival in peer.arrivals.values_mut() {
                *arrival = (*arrival + lag).min(now);
            }
        }
    }

    /// Forms opinions at `now` and appends those that changed to `out`.
    pub fn evaluate(&mut self, now: Time, out: &mut Vec<Opinion>) {
        self.evaluate_isolation(now, out);
        if !self.isolated {
            self.evaluate_networks(now, out);
        }
        self.evaluate_peers(now, out);
    }

    /// When an opinion may next change without a new arrival.
    pub fn deadline(&self, now: Time) -> Option<Time> {
        self.peers
            .values()
            .filter(|peer| !peer.suspected)
            .map(|peer| peer.fresh_at + peer.timeout.current())
            .min()
            .map(|at| at.max(now + self.settings.interval / 4))
    }

    /// Whether `peer` is suspected.
    pub fn is_suspected(&self, peer: NodeId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.suspected)
    }

    /// The peers that are suspected.
    pub fn suspects(&self) -> impl Iterator<Item = NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.suspected).map(|(id, _)| *id)
    }

    /// Whether no peer is heard on any network.
    pub fn is_isolated(&self) -> bool {
        self.isolated
    }

    /// The networks on which nobody is heard although peers are heard elsewhere.
    pub fn networks_suspected(&self) -> &BTreeSet<NetworkId> {
        &self.networks_suspected
    }

    /// How long `peer` has been silent on all networks, and its timeout.
    pub fn silence(&self, now: Time, peer: NodeId) -> Option<(Duration, Duration)> {
        self.peers.get(&peer).map(|peer| (now.since(peer.fresh_at), peer.timeout.current()))
    }

    /// When `peer` was last heard on each network.
    pub fn arrivals(&self, peer: NodeId) -> impl Iterator<Item = (NetworkId, Time)> {
        self.peers.get(&peer).into_iter().flat_map(|peer| peer.arrivals.iter().map(|(id, at)| (*id, *at)))
    }

    fn evaluate_isolation(&mut self, now: Time, out: &mut Vec<Opinion>) {
        let heard = self.peers.values().any(|peer| now.since(peer.fresh_at) <= peer.timeout.current());
        let isolated = !self.peers.is_empty() && !heard;
        if isolated == self.isolated {
            return;
        }
        self.isolated = isolated;
        if isolated {
            out.push(Opinion::Isolated);
            return;
        }
        out.push(Opinion::Reconnected);
        // Re-base on heal (3.1): the first heartbeat after an outage must not make the others look dead.
        for peer in self.peers.values_mut() {
            peer.fresh_at = now;
        }
    }

    fn evaluate_networks(&mut self, now: Time, out: &mut Vec<Opinion>) {
        let settings = &self.settings;
        let networks: BTreeSet<NetworkId> =
            self.peers.values().flat_map(|peer| peer.arrivals.keys().copied()).collect();
        for network in networks {
            let lags = |peer: &Peer| {
                let arrived = peer.arrivals.get(&network).copied().unwrap_or(Time::ZERO);
                peer.fresh_at.since(arrived) > settings.network_lag
            };
            let fresh: Vec<NodeId> = (self.peers.iter())
                .filter(|(_, peer)| now.since(peer.fresh_at) <= settings.network_lag && !peer.suspected)
                .map(|(id, _)| *id)
                .collect();
            let lagging = fresh.iter().filter(|id| self.peers.get(id).is_some_and(lags)).count();
            let down = lagging > 0 && lagging == fresh.len();
            if down && self.networks_suspected.insert(network) {
                out.push(Opinion::NetworkSuspected(network));
            } else if lagging < fresh.len() && self.networks_suspected.remove(&network) {
                out.push(Opinion::NetworkCleared(network));
            }
            for id in fresh {
                let Some(peer) = self.peers.get_mut(&id) else { continue };
                let late = lags(peer);
                if late && !down && peer.links_suspected.insert(network) {
                    out.push(Opinion::LinkSuspected(id, network));
                } else if !late && peer.links_suspected.remove(&network) {
                    out.push(Opinion::LinkCleared(id, network));
                }
            }
        }
    }

    fn evaluate_peers(&mut self, now: Time, out: &mut Vec<Opinion>) {
        let freshest = |except: NodeId, peers: &BTreeMap<NodeId, Peer>| {
            (peers.iter())
                .filter(|(id, peer)| **id != except && peer.sequence.is_some())
                .map(|(id, peer)| (*id, now.since(peer.fresh_at)))
                .min_by_key(|(_, silent)| *silent)
        };
        let ids: Vec<NodeId> = self.peers.keys().copied().collect();
        for id in ids {
            let fresh = freshest(id, &self.peers);
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let silent = now.since(peer.fresh_at);
            let mut timeout = peer.timeout.current();
            if peer.sequence.is_none() && !peer.doubted {
                timeout =
                    timeout.max(self.settings.start_grace.saturating_sub(peer.fresh_at.since(self.started)));
            }
            if peer.suspected {
                if silent <= timeout {
                    peer.suspected = false;
                    out.push(Opinion::Cleared(id));
                }
                continue;
            }
            // The veto (PROTOCOLS 6): cut off from all, or silent like all, is nobody's fault.
            let Some(fresh) = fresh else { continue };
            let lags = silent.saturating_sub(fresh.1) > self.settings.lag_min;
            if silent > timeout && lags && !self.isolated {
                peer.suspected = true;
                out.push(Opinion::Suspected { peer: id, silent, timeout, fresh });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIVE: NodeId = NodeId(1);
    const DEAD: NodeId = NodeId(2);

    fn suspected_at(doubt_at_ms: Option<u64>) -> Option<u64> {
        let mut detector = Detector::new(Settings::default(), Time::ZERO);
        detector.watch(Time::ZERO, [ALIVE, DEAD]);
        for tick in 1..200u64 {
            let now = Time::from_nanos(tick * 100_000_000);
            detector.arrival(ALIVE, NetworkId(0), tick, now);
            if doubt_at_ms.is_some_and(|at| tick * 100 >= at) {
                detector.doubt(DEAD);
            }
            let mut opinions = Vec::new();
            detector.evaluate(now, &mut opinions);
            if detector.is_suspected(DEAD) {
                return Some(tick * 100);
            }
        }
        None
    }

    #[test]
    fn a_peer_never_heard_has_the_grace_of_this_nodes_start_unless_others_doubt_it() {
        assert!(suspected_at(None).is_some_and(|at_ms| at_ms >= 10_000));
        assert!(suspected_at(Some(1_500)).is_some_and(|at_ms| at_ms <= 2_000));
    }

    #[test]
    fn silence_of_all_accuses_nobody() {
        let mut detector = Detector::new(Settings::default(), Time::ZERO);
        detector.watch(Time::ZERO, [ALIVE, DEAD]);
        let mut opinions = Vec::new();
        for tick in 1..100u64 {
            let now = Time::from_nanos(tick * 100_000_000);
            if tick < 20 {
                detector.arrival(ALIVE, NetworkId(0), tick, now);
                detector.arrival(DEAD, NetworkId(0), tick, now);
            }
            detector.evaluate(now, &mut opinions);
        }
        assert!(detector.is_isolated());
        assert_eq!(detector.suspects().count(), 0);
    }

    #[test]
    fn the_timeout_stays_within_its_bounds_and_learns_from_nothing_late() {
        let settings = Settings::default();
        let mut timeout = AdaptiveTimeout::new(&settings);
        for gap_ms in [90, 110, 100, 700, 100, 5_000, 100] {
            let before = timeout.current();
            timeout.observe(Duration::from_millis(gap_ms), &settings);
            assert!(timeout.current() >= settings.timeout_min && timeout.current() <= settings.timeout_max);
            if Duration::from_millis(gap_ms) > before {
                assert_eq!(timeout.current(), before);
            }
        }
    }
}
