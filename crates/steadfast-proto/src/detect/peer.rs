//! What one node knows of one other: when it was heard on each network, how its heartbeats travel, and what the
//! kernel says of it.
//!
//! These are the arrivals of PROTOCOLS 6; every rule is a function of them and of the time. Nothing is decided
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::delay::{self, DelayStats, Loss, LossWindow};
use super::timeout::AdaptiveTimeout;
use super::{Evidence, Link, PROBE_BEATS, Settings, Suspicion};
use crate::ids::{Incarnation, NetworkId};
use crate::time::Time;
use crate::wire::{Heartbeat, LinkState};

/// How many missed heartbeats in a row silence one link, where no more are needed because of loss.
const LINK_MISSED_MIN: u32 = 2;

/// However small the jitter, a link is not silent before so many beats.
const LINK_SILENCE_MIN_BEATS: f64 = 2.2;

/// For how many beats a link must behave before it is called well again.
const HOLD_DOWN_BEATS: u32 = 3;

/// After how many beats of silence a link is cut, rather than losing much: of a third, so many are never lost.
const CUT_BEATS: u32 = 6;

/// For how many beats a link may take to carry both ways at first.
const MEETING_BEATS: u32 = 5;

/// Loss beyond which a link is degraded, in thousandths.
const DEGRADED_LOSS_PERMILLE: u16 = 50;

/// A mean round trip below this is never slow: schedulers alone make twenty milliseconds of it.
const SLOW_MIN: Duration = Duration::from_millis(30);

/// So many of so many beats lost are no accident on a path that loses one in a hundred.
const QUICK_BEATS: u32 = 10;
const QUICK_MISSING: u32 = 2;

/// A link that loses much is well again only after so many beats with fewer missing: losses come in clusters.
const CALM_BEATS: u32 = 2 * QUICK_BEATS;

/// A link that lost something within so many beats is given more time before it is called silent.
const LOSS_MEMORY_BEATS: u32 = 40;

/// The arrivals of one peer on one network.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    /// The newest heartbeat: the peer's own send time, which goes back to it, and our receive time.
    pub(super) sent_at: Time,
    pub(super) received_at: Time,
    /// The same with this node's own pauses taken off.
    fresh_at: Time,
    sequence: u64,
    pub(super) delay: DelayStats,
    pub(super) loss: LossWindow,
    /// The usual round trip, against which a slow one shows.
    usual: Option<Duration>,
    pub(super) state: LinkState,
    pub(super) since: Time,
    /// The state that the other members were told.
    pub(super) told: LinkState,
    /// Whether the newest heartbeat was one of those that are sent only now and then.
    sparse: bool,
    /// Since when the link has earned a better state than it has.
    better_since: Option<Time>,
}

/// What is known of one other node.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) incarnation: Incarnation,
    /// The number it drew at its start; it goes back to it as our challenge. Zero when unknown.
    pub(super) boot: u64,
    /// Whether its last heartbeat proved that it knows ours.
    pub(super) knows_us: bool,
    pub(super) arrivals: BTreeMap<NetworkId, Arrival>,
    /// The last arrival on any network, or the start of the watch.
    pub(super) fresh_at: Time,
    /// The same without allowances for this node's own pauses.
    pub(super) heard_at: Option<Time>,
    /// The highest sequence seen, which tells a new beat from its copy on a second network.
    pub(super) sequence: Option<u64>,
    /// Which beats came on no network at all.
    loss: LossWindow,
    /// How often it beats, by its own word.
    pub(super) interval: Duration,
    pub(super) timeout: AdaptiveTimeout,
    /// The networks on which it hears us, by its last word.
    pub(super) hears: u8,
    pub(super) deaf_since: Option<Time>,
    /// Whether a member that has known it for longer suspects it, which ends the grace of a start.
    pub(super) doubted: bool,
    pub(super) suspicion: Option<Suspicion>,
    /// How often it was suspected lately, and when last: one that stutters is believed more slowly.
    pub(super) relapses: u32,
    pub(super) relapsed_at: Time,
    pub(super) evidence: Option<(Evidence, Time)>,
    /// When its kernel was last asked about.
    pub(super) probed_at: Time,
}

impl Peer {
    pub(super) fn new(incarnation: Incarnation, settings: &Settings, now: Time) -> Peer {
        Peer {
            incarnation,
            boot: 0,
            knows_us: false,
            arrivals: BTreeMap::new(),
            fresh_at: now,
            heard_at: None,
            sequence: None,
            loss: LossWindow::default(),
            interval: settings.interval,
            timeout: AdaptiveTimeout::new(settings.timeout),
            hears: 0,
            deaf_since: None,
            doubted: false,
            suspicion: None,
            relapses: 0,
            relapsed_at: Time::ZERO,
            evidence: None,
            probed_at: Time::ZERO,
        }
    }

    /// Takes note of a heartbeat that proved to be of today, and says whether it is the newest.
    pub(super) fn arrived(
        &mut self,
        now: Time,
        network: NetworkId,
        received_at: Time,
        heartbeat: &Heartbeat,
        settings: &Settings,
    ) -> bool {
        let arrival = self.arrivals.entry(network).or_insert_with(|| Arrival {
            sent_at: heartbeat.sent_at,
            received_at,
            fresh_at: received_at,
            sequence: heartbeat.sequence,
            delay: DelayStats::new(settings.statistics),
            loss: LossWindow::default(),
            usual: None,
            state: LinkState::Unknown,
            since: received_at,
            told: LinkState::Up,
            sparse: heartbeat.sparse,
            better_since: None,
        });
        // What was never sent, or what a cut swallowed, says nothing of the quality.
        let is_gap_usual = heartbeat.sparse || arrival.sparse;
        if is_gap_usual || matches!(arrival.state, LinkState::Mute | LinkState::Down) {
            arrival.loss = LossWindow::default();
        }
        arrival.sparse = heartbeat.sparse;
        arrival.loss.observe(heartbeat.sequence);
        if heartbeat.sequence >= arrival.sequence {
            arrival.sequence = heartbeat.sequence;
            arrival.sent_at = heartbeat.sent_at;
        }
        arrival.received_at = received_at.max(arrival.received_at);
        arrival.fresh_at = received_at.max(arrival.fresh_at);
        if let Some(echo) = heartbeat.echo
            && let Some(round_trip) = received_at.since(echo.sent_at).checked_sub(echo.held)
        {
            arrival.delay.observe(round_trip);
            let usual = arrival.usual.unwrap_or(round_trip);
            arrival.usual = Some((usual * 63 + round_trip) / 64);
        }
        if is_gap_usual {
            self.loss = LossWindow::default();
        }
        self.loss.observe(heartbeat.sequence);
        let is_new = self.sequence.is_none_or(|last| heartbeat.sequence > last);
        if is_new {
            if self.sequence.is_some() && self.suspicion.is_none() {
                self.timeout.observe(received_at.since(self.fresh_at));
            }
            self.sequence = Some(heartbeat.sequence);
            self.interval =
                Duration::from_millis(u64::from(heartbeat.interval_ms)).max(settings.interval / 4);
            self.hears = heartbeat.hears;
            self.deaf_since = match heartbeat.hears {
                // Not from when it came: while this node did not run, nobody could hear it.
                0 => self.deaf_since.or(Some(now)),
                _ => None,
            };
            self.doubted = false;
            // A word that came after the kernel's testimony disproves it.
            self.evidence = self.evidence.filter(|(_, at)| *at >= received_at);
        }
        self.fresh_at = received_at.max(self.fresh_at);
        self.heard_at = self.heard_at.max(Some(received_at));
        is_new
    }

    /// Takes a pause of this node itself off every age: while it did not run it could not listen (3.3 d).
    pub(super) fn paused(&mut self, now: Time, lag: Duration) {
        self.fresh_at = (self.fresh_at + lag).min(now);
        for arrival in self.arrivals.values_mut() {
            arrival.fresh_at = (arrival.fresh_at + lag).min(now);
        }
        if let Some(since) = &mut self.deaf_since {
            *since = (*since + lag).min(now);
        }
    }

    /// How long ago it was heard on `network`; one that was never heard has the grace of this node's start.
    pub(super) fn age(
        &self,
        now: Time,
        network: NetworkId,
        limit: Duration,
        settings: &Settings,
    ) -> Duration {
        match self.arrivals.get(&network) {
            Some(arrival) => now.since(arrival.fresh_at),
            None if self.sequence.is_some() || self.doubted => now.since(self.fresh_at),
            None => now.since(self.fresh_at).min(limit).min(settings.thresholds.process_lag),
        }
    }

    /// It is no longer suspected: what it lost while it was silent says nothing of the time after, and its timeout is
    /// learned anew (3.3).
    pub(super) fn readmitted(&mut self) {
        self.loss = LossWindow::default();
        self.timeout.reset();
    }

    /// Whether nothing comes from it on any network.
    pub(super) fn is_silent(&self) -> bool {
        let is_silent = |arrival: &Arrival| matches!(arrival.state, LinkState::Mute | LinkState::Down);
        self.arrivals.values().all(is_silent)
    }

    /// On which of `networks` it is heard, as bits.
    pub(super) fn heard_on(&self, networks: &[NetworkId]) -> u8 {
        let is_heard = |network: &&NetworkId| {
            self.arrivals.get(network).is_some_and(|arrival| {
                matches!(
                    arrival.state,
                    LinkState::Unknown | LinkState::Up | LinkState::Degraded | LinkState::Deaf
                )
            })
        };
        networks.iter().filter(is_heard).fold(0, |bits, network| bits | bit(*network))
    }

    /// The times at which time alone may change what is thought of it, if it may be silent for `limit`. One that has
    /// passed may do so at any moment.
    pub(super) fn times_to_look(&self, limit: Duration) -> impl Iterator<Item = Time> {
        let beats = |count: f64| self.interval.mul_f64(count);
        let links = self.arrivals.values().filter_map(move |arrival| {
            let is_told = arrival.told != LinkState::Up;
            match (arrival.state, arrival.better_since) {
                (_, Some(_)) => Some(Time::ZERO),
                (LinkState::Mute | LinkState::Down, None) => {
                    (!is_told).then(|| arrival.fresh_at + self.interval * CUT_BEATS)
                }
                (LinkState::Unknown | LinkState::Up | LinkState::Degraded | LinkState::Deaf, None) => {
                    Some(arrival.fresh_at + beats(LINK_SILENCE_MIN_BEATS))
                }
            }
        });
        let (probe, silent) = match self.suspicion {
            Some(suspicion) => (suspicion.heard_since.map(|_| Time::ZERO), None),
            None => (
                self.sequence.map(|_| self.fresh_at + beats(PROBE_BEATS)),
                Some(self.fresh_at + limit + Duration::from_micros(1)),
            ),
        };
        links.chain(probe).chain(silent)
    }

    /// The statistics of the network that carries its heartbeats best.
    pub(super) fn best(&self) -> Option<&Arrival> {
        self.arrivals.values().max_by_key(|arrival| arrival.received_at)
    }

    /// The silence after which the `gossip` rule suspects it (PROTOCOLS 4.4).
    pub(super) fn patience(&self, settings: &Settings) -> Duration {
        let Some(arrival) = self.best() else { return settings.interval * 10 };
        let missed = missed_max(&arrival.delay, self.loss.loss(), self.interval, settings);
        let wait = delay::max_wait(self.interval, &arrival.delay);
        delay::missed_at(Time::ZERO, wait, self.interval, missed).since(Time::ZERO)
    }

    /// Brings the state of every link up to date, and names those that changed.
    pub(super) fn judge_links(
        &mut self,
        now: Time,
        unplugged: &BTreeSet<NetworkId>,
        settings: &Settings,
    ) -> Vec<(NetworkId, LinkState)> {
        let (interval, hears) = (self.interval, self.hears);
        let speaks = now.since(self.fresh_at) <= interval * 4;
        let mut changed = Vec::new();
        for (network, arrival) in &mut self.arrivals {
            let is_heard = !unplugged.contains(network) && !arrival.is_silent(now, interval, settings);
            // A silence that loss accounts for says nothing of the other direction either.
            let is_heard_there = (speaks || is_heard) && hears & bit(*network) != 0;
            let lossy = arrival.is_lossy();
            let next = match (is_heard, is_heard_there) {
                (true, true) if lossy || arrival.is_slow() => LinkState::Degraded,
                (true, true) => LinkState::Up,
                // Two that have just met do not hear each other yet.
                (true, false)
                    if arrival.state == LinkState::Unknown
                        && now.since(arrival.since) < interval * MEETING_BEATS =>
                {
                    LinkState::Unknown
                }
                (true, false) => LinkState::Deaf,
                (false, true) => LinkState::Mute,
                (false, false) => LinkState::Down,
            };
            // Loss is counted over a while; to wait once more would tell nothing.
            let is_sure = next == LinkState::Degraded && lossy;
            if arrival.turn(now, next, is_sure, interval) {
                changed.push((*network, next));
            }
        }
        changed
    }
}

/// How many missed heartbeats in a row make a peer suspect. Jitter that is small beside the interval between
/// heartbeats makes none of them miss, however it compares with the round trip.
fn missed_max(delay: &DelayStats, loss: Loss, interval: Duration, settings: &Settings) -> u32 {
    let is_steady = delay.deviation() < interval / 10;
    let steady = DelayStats::new(settings.statistics);
    delay::max_missed(if is_steady { &steady } else { delay }, loss, settings.false_one_in)
}

fn bit(network: NetworkId) -> u8 {
    1u8.checked_shl(u32::from(network.0)).unwrap_or_default()
}

impl Arrival {
    /// Whether what the link does is beyond doubt: a third of all lost may look like a cut for a while.
    pub(super) fn is_plain(&self, now: Time, interval: Duration) -> bool {
        match self.state {
            LinkState::Mute | LinkState::Down => now >= self.fresh_at + interval * CUT_BEATS,
            // The other end notices a cut; that it does not hear tells no more, and may be a while out of date.
            LinkState::Deaf => now >= self.since + interval * (2 * CUT_BEATS),
            LinkState::Unknown | LinkState::Up | LinkState::Degraded => true,
        }
    }

    /// What the link does now.
    pub(super) fn link(&self) -> Link {
        Link {
            state: self.state,
            since: self.since,
            heard_at: self.received_at,
            round_trip: self.delay.is_known().then(|| self.delay.mean()),
            deviation: self.delay.deviation(),
            loss_permille: self.loss_permille(),
        }
    }

    fn is_silent(&self, now: Time, interval: Duration, settings: &Settings) -> bool {
        let needed = if self.loss.recent(LOSS_MEMORY_BEATS).missing() == 0 {
            LINK_MISSED_MIN
        } else {
            missed_max(&self.delay, self.loss.loss(), interval, settings).max(2 * LINK_MISSED_MIN)
        };
        let wait = delay::max_wait(interval, &self.delay);
        let missed_at = delay::missed_at(self.fresh_at, wait, interval, needed);
        now > missed_at.max(self.fresh_at + interval.mul_f64(LINK_SILENCE_MIN_BEATS))
    }

    /// Whether it loses much, by the whole window or by its last second; by the last two if it did before.
    fn is_lossy(&self) -> bool {
        let beats = if self.state == LinkState::Degraded { CALM_BEATS } else { QUICK_BEATS };
        self.loss_permille() > DEGRADED_LOSS_PERMILLE || self.loss.recent(beats).missing() >= QUICK_MISSING
    }

    /// The share of heartbeats lost lately, in thousandths; zero while too few were sent to tell.
    fn loss_permille(&self) -> u16 {
        let loss = self.loss.loss();
        if loss.share().is_none() {
            return 0;
        }
        u16::try_from(loss.missing() * 1_000 / loss.of().max(1)).unwrap_or(1_000)
    }

    /// Whether it takes far longer than usual (PROTOCOLS 4.6), and longer than a busy scheduler explains.
    fn is_slow(&self) -> bool {
        let (mean, usual) = (self.delay.mean(), self.usual.unwrap_or(Duration::MAX));
        mean > usual.saturating_mul(4).max(SLOW_MIN)
    }

    /// Turns to `next`: at once for the worse, after a hold-down for the better or for a quality of which it is not
    /// sure yet. Says whether it did.
    fn turn(&mut self, now: Time, next: LinkState, is_sure: bool, interval: Duration) -> bool {
        if next == self.state {
            self.better_since = None;
            return false;
        }
        let is_quality = self.state.carries() && next.carries() && !is_sure;
        if self.state != LinkState::Unknown && (next < self.state || is_quality) {
            let since = *self.better_since.get_or_insert(now);
            if now.since(since) < interval * HOLD_DOWN_BEATS {
                return false;
            }
        }
        self.better_since = None;
        self.state = next;
        self.since = now;
        true
    }
}
