//! What a path's round trips, deviations and losses say about how long to wait for it (PROTOCOLS 4.4).
//!
//! Everything is a function of samples in integer nanoseconds, so that a trace replays to the same numbers on any
//! machine. Two profiles of the deviation exist: [`Profile::Source`] weighs the newest error most, so that it opens
//! wide for one sample and closes again; [`Profile::Smooth`] is the usual one and suits sparse heartbeats. Nothing
//! here accuses anybody: `missed >= max_missed` is the caller's evidence, to be confirmed by others.
//!
//! ```
//! use std::time::Duration;
//! use steadfast_proto::detect::delay::{DelayStats, FALSE_ONE_IN, LossWindow, Profile, max_missed, max_wait};
//!
//! let (mut stats, mut loss) = (DelayStats::new(Profile::Source), LossWindow::default());
//! for sequence in (1..200).filter(|sequence| sequence % 5 != 0) {
//!     stats.observe(Duration::from_millis(10));
//!     loss.observe(sequence);
//! }
//! assert_eq!(max_wait(Duration::from_millis(100), &stats), Duration::from_millis(105));
//! assert_eq!(max_missed(&stats, loss.loss(), FALSE_ONE_IN), 9); // 0.2^9 < 10^-6
//! ```

use std::time::Duration;

use crate::time::Time;

/// A path's false alarms by random loss are kept below one in this many heartbeats.
pub const FALSE_ONE_IN: u64 = 1_000_000;

/// The fewest heartbeats in a row whose absence says that a peer is down, on however good a path.
pub const MISSED_MIN: u32 = 3;

/// The most heartbeats in a row that are waited for, on however bad a path.
pub const MISSED_MAX: u32 = 12;

/// The longest round trip that is believed; more is a broken echo, and must not disable detection.
pub const DELAY_MAX: Duration = Duration::from_secs(60);

/// How many sequence numbers a [`LossWindow`] looks back.
pub const LOSS_WINDOW: u32 = 128;

/// How many sequence numbers must have passed before the absence of some is evidence of loss.
pub const LOSS_EVIDENCE_MIN: u32 = 32;

/// How the deviation of a path's round trips is averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Profile {
    /// `D' = 0.125 D + 0.875 |MRT - T|`, the source's gains.
    #[default]
    Source,
    /// `D' = 0.75 D + 0.25 |MRT - T|`, the customary gains.
    Smooth,
}

/// The mean round trip MRT of a path and its mean deviation D.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DelayStats {
    profile: Profile,
    mean_nanos: u64,
    deviation_nanos: u64,
    is_known: bool,
}

impl DelayStats {
    /// Statistics of a path that was not measured yet.
    pub fn new(profile: Profile) -> DelayStats {
        DelayStats { profile, ..DelayStats::default() }
    }

    /// Learns from one round trip T. The first gives MRT = T and D = T/2; from then on
    /// `MRT' = 0.875 MRT + 0.125 T`, and D' follows the profile with the error against the old MRT (G1).
    pub fn observe(&mut self, round_trip: Duration) {
        let sample = nanos(round_trip.min(DELAY_MAX));
        if !self.is_known {
            *self = DelayStats { mean_nanos: sample, deviation_nanos: sample / 2, is_known: true, ..*self };
            return;
        }
        let error = self.mean_nanos.abs_diff(sample);
        self.mean_nanos = eighths(7, self.mean_nanos, sample);
        self.deviation_nanos = match self.profile {
            Profile::Source => eighths(1, self.deviation_nanos, error),
            Profile::Smooth => eighths(6, self.deviation_nanos, error),
        };
    }

    /// MRT; zero before the first round trip.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.mean_nanos)
    }

    /// D; zero before the first round trip.
    pub fn deviation(&self) -> Duration {
        Duration::from_nanos(self.deviation_nanos)
    }

    /// Whether a round trip was measured.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// Which gains are in use.
    pub fn profile(&self) -> Profile {
        self.profile
    }
}

/// How many heartbeats of those sent lately never came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Loss {
    missing: u32,
    of: u32,
}

impl Loss {
    /// `missing` of `of` heartbeats; neither counts beyond [`LOSS_WINDOW`], nor more missing than sent.
    pub fn new(missing: u32, of: u32) -> Loss {
        let of = of.min(LOSS_WINDOW);
        Loss { missing: missing.min(of), of }
    }

    /// How many are missing.
    pub fn missing(self) -> u32 {
        self.missing
    }

    /// How many were sent.
    pub fn of(self) -> u32 {
        self.of
    }

    /// The share that is missing, 0 to 1, or `None` while too few were sent to tell.
    pub fn share(self) -> Option<f64> {
        (self.of >= LOSS_EVIDENCE_MIN).then(|| f64::from(self.missing) / f64::from(self.of))
    }
}

/// Which of the last [`LOSS_WINDOW`] sequence numbers of one sender on one path were seen, in any order.
///
/// Only numbers below the highest one seen can be missing, so a sender that falls silent does not count as lossy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LossWindow {
    /// The highest number seen; none before the first.
    highest: Option<u64>,
    /// Bit i stands for `highest - i`.
    seen: u128,
    /// How many numbers have passed since the first one, at most the window.
    passed: u32,
}

impl LossWindow {
    /// Takes note of a heartbeat, which may be late or a copy. A sender that starts again needs a new window.
    pub fn observe(&mut self, sequence: u64) {
        let Some(highest) = self.highest else {
            *self = LossWindow { highest: Some(sequence), seen: 1, passed: 1 };
            return;
        };
        if sequence > highest {
            let ahead = u32::try_from(sequence - highest).unwrap_or(u32::MAX);
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
            self.passed = self.passed.saturating_add(ahead).min(LOSS_WINDOW);
            self.highest = Some(sequence);
            return;
        }
        let behind = u32::try_from(highest - sequence).unwrap_or(u32::MAX);
        if behind < self.passed {
            self.seen |= 1u128.checked_shl(behind).unwrap_or(0);
        }
    }

    /// What is missing now.
    pub fn loss(&self) -> Loss {
        Loss::new(self.passed.saturating_sub(self.seen.count_ones()), self.passed)
    }

    /// What is missing of the last `count` numbers, for a quick look at a path that has just become lossy.
    pub fn recent(&self, count: u32) -> Loss {
        let of = count.min(self.passed).min(LOSS_WINDOW);
        let mask = if of >= LOSS_WINDOW { u128::MAX } else { (1u128 << of) - 1 };
        Loss::new(of.saturating_sub((self.seen & mask).count_ones()), of)
    }

    /// The highest sequence number seen.
    pub fn highest(&self) -> Option<u64> {
        self.highest
    }
}

/// How long after the last heartbeat the next one is not yet missed: `peer_interval + MRT/2 + 4 D`.
pub fn max_wait(peer_interval: Duration, stats: &DelayStats) -> Duration {
    peer_interval.saturating_add(stats.mean() / 2).saturating_add(stats.deviation().saturating_mul(4))
}

/// How many missed heartbeats in a row make a peer suspect: `max(3 + ceil(D/MRT), ceil(ln p / ln loss))`, within
/// [`MISSED_MIN`] and [`MISSED_MAX`] (G2). `false_one_in` is 1/p, and few heartbeats are no evidence of loss.
pub fn max_missed(stats: &DelayStats, loss: Loss, false_one_in: u64) -> u32 {
    let unsteady = if stats.mean_nanos == 0 { 0 } else { stats.deviation_nanos.div_ceil(stats.mean_nanos) };
    let by_delay = MISSED_MIN.saturating_add(u32::try_from(unsteady).unwrap_or(MISSED_MAX)).min(MISSED_MAX);
    if loss.of < LOSS_EVIDENCE_MIN {
        return by_delay;
    }
    // loss^run <= p in whole numbers, since logarithms are not the same on every machine.
    let is_rare = |run: &u32| {
        let missing = u128::from(loss.missing).saturating_pow(*run);
        missing.saturating_mul(u128::from(false_one_in)) <= u128::from(loss.of).saturating_pow(*run)
    };
    (by_delay..MISSED_MAX).find(is_rare).unwrap_or(MISSED_MAX)
}

/// How many heartbeats were missed by `now`:
/// `floor((now - last_rx - (max_wait - peer_interval)) / peer_interval)`, and never less than none.
pub fn missed(now: Time, last_rx: Time, max_wait: Duration, peer_interval: Duration) -> u32 {
    let silent = now.since(last_rx).saturating_sub(max_wait.saturating_sub(peer_interval));
    let intervals = nanos(silent).checked_div(nanos(peer_interval)).unwrap_or(0);
    u32::try_from(intervals).unwrap_or(u32::MAX)
}

/// The first instant at which [`missed`] reaches `count`, if nothing is heard until then.
pub fn missed_at(last_rx: Time, max_wait: Duration, peer_interval: Duration, count: u32) -> Time {
    last_rx + max_wait.saturating_sub(peer_interval) + peer_interval.saturating_mul(count)
}

/// How long a suspicion waits to be refuted: `max MRT + 4 max D` over the peers that may refute it.
pub fn refute_wait<'a>(peers: impl IntoIterator<Item = &'a DelayStats>) -> Duration {
    let (mean, deviation) =
        peers.into_iter().fold((Duration::ZERO, Duration::ZERO), |(mean, deviation), stats| {
            (stats.mean().max(mean), stats.deviation().max(deviation))
        });
    mean.saturating_add(deviation.saturating_mul(4))
}

/// The median of the peers' round trips, the lower of two; `None` without peers.
pub fn median(round_trips: impl IntoIterator<Item = Duration>) -> Option<Duration> {
    let mut sorted: Vec<Duration> = round_trips.into_iter().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

/// Between which values a node's heartbeat interval moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntervalBounds {
    /// The shortest, I_min. 100 ms.
    pub min: Duration,
    /// The longest, I_max. 2 s.
    pub max: Duration,
}

impl Default for IntervalBounds {
    fn default() -> IntervalBounds {
        IntervalBounds { min: Duration::from_millis(100), max: Duration::from_secs(2) }
    }
}

impl IntervalBounds {
    /// The interval to advertise in the next heartbeat: ten times the median round trip within the bounds, reached
    /// at once when that is longer than `previous` and by at most 10 % per heartbeat when it is shorter (G2).
    pub fn interval(&self, median_round_trip: Duration, previous: Duration) -> Duration {
        let target = median_round_trip.saturating_mul(10);
        let shortened = previous.saturating_sub(previous / 10);
        self.bounded(if target < previous { target.max(shortened) } else { target })
    }

    /// `interval` within the bounds, as one that a peer advertised must be made before it is used.
    pub fn bounded(&self, interval: Duration) -> Duration {
        interval.min(self.max).max(self.min)
    }
}

/// `(parts * old + (8 - parts) * new) / 8`, to the nearest nanosecond.
fn eighths(parts: u64, old: u64, new: u64) -> u64 {
    let weighed = parts.saturating_mul(old).saturating_add(8u64.saturating_sub(parts).saturating_mul(new));
    weighed.saturating_add(4) / 8
}

/// The duration in nanoseconds, capped at the 584 years that a `u64` holds.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    fn of_samples(profile: Profile, samples_us: &[u64]) -> DelayStats {
        let mut stats = DelayStats::new(profile);
        samples_us.iter().for_each(|sample| stats.observe(Duration::from_micros(*sample)));
        stats
    }

    /// D in microseconds after an outlier of 200 ms on a path of 10 ms and three ordinary samples.
    fn outlier(profile: Profile) -> Vec<u128> {
        let mut stats = of_samples(profile, &[10_000; 10]);
        [200, 10, 10, 10]
            .map(|sample_ms| {
                stats.observe(Duration::from_millis(sample_ms));
                stats.deviation().as_micros()
            })
            .to_vec()
    }

    #[test]
    fn the_last_numbers_show_a_loss_before_the_window_does() {
        let mut window = LossWindow::default();
        (0..100).for_each(|sequence| window.observe(sequence));
        (100..120).filter(|sequence| sequence % 2 == 1).for_each(|sequence| window.observe(sequence));
        assert_eq!(window.recent(20), Loss::new(10, 20));
        assert_eq!(window.loss(), Loss::new(10, 120));
        assert_eq!(LossWindow::default().recent(20), Loss::new(0, 0));
    }

    #[test]
    fn golden_vectors_of_one_outlier_under_both_profiles() {
        let rounded = |micros: Vec<u128>| micros.iter().map(|d| (d + 500) / 1_000).collect::<Vec<_>>();
        assert_eq!(rounded(outlier(Profile::Source)), [166, 42, 23, 19]);
        assert_eq!(rounded(outlier(Profile::Smooth)), [48, 42, 37, 32]);
        assert_eq!(outlier(Profile::Source), [166_250, 41_562, 23_378, 18_833]);
        assert_eq!(outlier(Profile::Smooth), [47_781, 41_773, 36_525, 31_940]);
    }

    #[test]
    fn golden_vectors_of_the_mean_and_of_the_first_samples() {
        let stats = of_samples(Profile::Source, &[8_000]);
        assert_eq!((stats.mean(), stats.deviation()), (Duration::from_millis(8), Duration::from_millis(4)));
        // MRT = 0.875 * 8 + 0.125 * 16 = 9; D = 0.125 * 4 + 0.875 * 8 = 7.5.
        let stats = of_samples(Profile::Source, &[8_000, 16_000]);
        assert_eq!(
            (stats.mean(), stats.deviation()),
            (Duration::from_millis(9), Duration::from_micros(7_500))
        );
        // MRT = 0.875 * 9 + 0.125 * 1 = 8; D = 0.75 * (0.75 * 4 + 0.25 * 8) + 0.25 * 8 = 5.75.
        let stats = of_samples(Profile::Smooth, &[8_000, 16_000, 1_000]);
        assert_eq!(
            (stats.mean(), stats.deviation()),
            (Duration::from_millis(8), Duration::from_micros(5_750))
        );
    }

    /// Mutations of 4.4: the error against the new mean, and swapped profiles, are no longer the golden vectors.
    #[test]
    fn a_recurrence_with_the_new_mean_or_the_other_gains_is_told_apart_by_the_golden_vectors() {
        let mutated = |old: f64, new: f64, against_new_mean: bool| {
            let (mut mean, mut deviation) = (10.0f64, 0.0f64);
            [200.0, 10.0, 10.0, 10.0].map(|sample| {
                let next = 0.875 * mean + 0.125 * sample;
                deviation =
                    old * deviation + new * (if against_new_mean { next } else { mean } - sample).abs();
                mean = next;
                deviation.round()
            })
        };
        assert_eq!(mutated(0.125, 0.875, false), [166.0, 42.0, 23.0, 19.0]);
        assert_ne!(mutated(0.125, 0.875, true), [166.0, 42.0, 23.0, 19.0]);
        assert_ne!(mutated(0.875, 0.125, false), [166.0, 42.0, 23.0, 19.0]);
    }

    #[test]
    fn a_window_counts_what_never_came_and_forgives_what_came_late() {
        let mut window = LossWindow::default();
        (1..=200).filter(|sequence| sequence % 4 != 0).for_each(|sequence| window.observe(sequence));
        // Of 72 to 199: 200 is not known to have been sent.
        assert_eq!(window.loss(), Loss::new(32, 128));
        (100..200).step_by(4).for_each(|sequence| window.observe(sequence));
        assert_eq!(window.loss(), Loss::new(7, 128));
        window.observe(3); // Far behind the window.
        assert_eq!(window.loss(), Loss::new(7, 128));
        window.observe(10_000);
        assert_eq!(window.loss(), Loss::new(127, 128));
        assert_eq!(window.highest(), Some(10_000));
    }

    #[test]
    fn few_heartbeats_are_no_evidence_of_loss() {
        let stats = of_samples(Profile::Smooth, &[10_000; 100]);
        let mut window = LossWindow::default();
        [1, 31].into_iter().for_each(|sequence| window.observe(sequence));
        assert_eq!((window.loss().missing(), window.loss().share()), (29, None));
        assert_eq!(max_missed(&stats, window.loss(), FALSE_ONE_IN), 4);
        window.observe(32);
        assert!(window.loss().share().is_some_and(|share| share > 0.9));
        assert_eq!(max_missed(&stats, window.loss(), FALSE_ONE_IN), MISSED_MAX);
        // What was sent before the window's first is not missing from it.
        let mut late = LossWindow::default();
        [500, 499, 400].into_iter().for_each(|sequence| late.observe(sequence));
        assert_eq!(late.loss(), Loss::new(0, 1));
    }

    #[test]
    fn golden_vectors_of_the_number_of_missed_heartbeats() {
        let steady = DelayStats::new(Profile::Source);
        let by_loss = |missing| max_missed(&steady, Loss::new(missing, 100), FALSE_ONE_IN);
        // ceil(ln 10^-6 / ln loss) of 1, 5, 10, 20, 25, 30 and 40 %.
        assert_eq!([1, 5, 10, 20, 25, 30, 40].map(by_loss), [3, 5, 6, 9, 10, 12, 12]);
        assert_eq!([0, 100].map(by_loss), [MISSED_MIN, MISSED_MAX]);
        let unsteady = of_samples(Profile::Source, &[10_000, 10_000, 60_000]); // D = 44, MRT = 16 ms
        assert_eq!(max_missed(&unsteady, Loss::default(), FALSE_ONE_IN), 6);
    }

    /// The mutation of 4.4 that drops the loss term: at 20 % loss a live peer is missed often, with the term never.
    #[test]
    fn without_the_loss_term_a_lossy_path_is_taken_for_a_dead_peer() {
        let steady = DelayStats::new(Profile::Source);
        let (mut window, mut random, mut run) = (LossWindow::default(), 1u64, 0);
        let (mut with_term, mut without_term) = (0, 0);
        for sequence in 1..=30_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if (random >> 33) % 5 != 0 {
                window.observe(sequence);
                run = 0;
                continue;
            }
            run += 1;
            if sequence > 200 {
                with_term += u32::from(run == max_missed(&steady, window.loss(), FALSE_ONE_IN));
                without_term += u32::from(run == max_missed(&steady, Loss::default(), FALSE_ONE_IN));
            }
        }
        assert_eq!(with_term, 0);
        assert!(without_term > 100, "{without_term}");
    }

    #[test]
    fn a_wait_is_an_interval_half_a_round_trip_and_four_deviations() {
        let stats = of_samples(Profile::Smooth, &[8_000, 16_000, 1_000]);
        assert_eq!(max_wait(INTERVAL, &stats), Duration::from_millis(127));
        let other = of_samples(Profile::Source, &[8_000, 16_000]);
        assert_eq!(refute_wait([&stats, &other]), Duration::from_millis(9 + 30));
        assert_eq!(refute_wait([]), Duration::ZERO);
        let at = |ms: u64| Time::from_nanos(ms * 1_000_000);
        let missed_by = |ms: u64| missed(at(1_000 + ms), at(1_000), Duration::from_millis(127), INTERVAL);
        assert_eq!([0, 126, 127, 226, 227, 527].map(missed_by), [0, 0, 1, 1, 2, 5]);
        assert_eq!(missed(at(5), at(9), INTERVAL, INTERVAL), 0);
        assert_eq!(missed(at(5_000), at(9), INTERVAL, Duration::ZERO), 0);
    }

    #[test]
    fn an_interval_lengthens_at_once_and_shortens_by_a_tenth() {
        let ms = Duration::from_millis;
        let bounds = IntervalBounds::default();
        let next = |median_ms, previous_ms| bounds.interval(ms(median_ms), ms(previous_ms));
        assert_eq!(next(120, 100), ms(1_200));
        assert_eq!(next(1, 1_200), ms(1_080));
        assert_eq!(next(100, 1_050), ms(1_000));
        assert_eq!(next(900, 100), ms(2_000));
        assert_eq!(next(1, 101), ms(100));
        assert_eq!(median([ms(5), ms(1), ms(9), ms(7)]), Some(ms(5)));
        assert_eq!(median([]), None);
    }

    /// The mutation of 4.4 that adapts the interval without saying so.
    #[test]
    fn an_interval_that_is_adapted_but_not_advertised_makes_a_live_peer_miss_heartbeats() {
        let stats = of_samples(Profile::Source, &[120_000; 20]);
        let adapted = IntervalBounds::default().interval(stats.mean(), INTERVAL);
        let missed_when_believing = |believed: Duration| {
            // The next heartbeat is just about to arrive.
            missed(Time::ZERO + adapted, Time::ZERO, max_wait(believed, &stats), believed)
        };
        let enough = max_missed(&stats, Loss::default(), FALSE_ONE_IN);
        assert!(missed_when_believing(INTERVAL) >= enough);
        assert_eq!(missed_when_believing(adapted), 0);
    }

    proptest! {
        #[test]
        fn g1_mean_and_deviation_follow_the_recurrences(
            samples_us in prop::collection::vec(0u64..10_000_000, 1..200),
            smooth in any::<bool>(),
        ) {
            let (profile, old, new) =
                if smooth { (Profile::Smooth, 0.75, 0.25) } else { (Profile::Source, 0.125, 0.875) };
            let mut stats = DelayStats::new(profile);
            let mut reference: Option<(f64, f64)> = None;
            for sample in samples_us {
                stats.observe(Duration::from_micros(sample));
                let sample = Duration::from_micros(sample).as_secs_f64();
                let (mean, deviation) = match reference {
                    None => (sample, sample / 2.0),
                    Some((mean, deviation)) => {
                        (0.875 * mean + 0.125 * sample, old * deviation + new * (mean - sample).abs())
                    }
                };
                reference = Some((mean, deviation));
                // Half a nanosecond of rounding per sample adds up to 4 ns in the mean, and so on.
                prop_assert!((stats.mean().as_secs_f64() - mean).abs() < 10e-9);
                prop_assert!((stats.deviation().as_secs_f64() - deviation).abs() < 20e-9);
            }
        }

        #[test]
        fn g2_missed_and_interval_stay_within_their_bounds(
            samples in prop::collection::vec(any::<u64>(), 0..20),
            (missing, of, false_one_in) in (any::<u32>(), any::<u32>(), any::<u64>()),
            previous in any::<u64>(),
        ) {
            let mut stats = DelayStats::new(Profile::Source);
            samples.into_iter().for_each(|sample| stats.observe(Duration::from_nanos(sample)));
            let count = max_missed(&stats, Loss::new(missing, of), false_one_in);
            prop_assert!((MISSED_MIN..=MISSED_MAX).contains(&count));
            let bounds = IntervalBounds::default();
            let next = bounds.interval(stats.mean(), Duration::from_nanos(previous));
            prop_assert!(bounds.min <= next && next <= bounds.max);
        }

        #[test]
        fn the_loss_term_is_the_logarithm_of_the_specification(missing in 0u32..=128, of in 32u32..=128) {
            let loss = Loss::new(missing, of);
            let share = loss.share().unwrap_or(0.0);
            let quotient = 1e-6f64.ln() / share.ln();
            let wanted = if share < 1.0 { quotient.ceil().clamp(3.0, 12.0) } else { 12.0 };
            let count = max_missed(&DelayStats::default(), loss, FALSE_ONE_IN);
            // The logarithms are inexact where the quotient is a whole number.
            prop_assert!(f64::from(count) == wanted || (quotient - quotient.round()).abs() < 1e-6);
        }

        #[test]
        fn a_window_knows_what_a_set_of_all_numbers_knows(
            steps in prop::collection::vec((1u64..6, 0u64..8), 1..300),
        ) {
            let mut window = LossWindow::default();
            let (mut sequence, mut first, mut seen) = (10u64, None, std::collections::BTreeSet::new());
            for (ahead, back) in steps {
                sequence += ahead;
                for heard in [sequence, sequence - back] {
                    window.observe(heard);
                    let first = *first.get_or_insert(heard);
                    let highest = sequence.max(first);
                    let from = highest.saturating_sub(127).max(first);
                    if heard >= from {
                        seen.insert(heard);
                    }
                    let of = u32::try_from(highest - from + 1).unwrap();
                    let there = u32::try_from(seen.range(from..=highest).count()).unwrap();
                    prop_assert_eq!(window.loss(), Loss::new(of - there, of));
                }
            }
        }

        #[test]
        fn missed_at_is_the_first_instant_of_its_count(
            interval_ms in 1u64..2_000, wait_ms in 0u64..5_000, count in 1u32..13, last in 0u64..1_000_000_000,
        ) {
            let interval = Duration::from_millis(interval_ms);
            let wait = interval + Duration::from_millis(wait_ms);
            let last = Time::from_nanos(last);
            let at = missed_at(last, wait, interval, count);
            prop_assert_eq!(missed(at, last, wait, interval), count);
            prop_assert_eq!(missed(at.before(Duration::from_nanos(1)), last, wait, interval), count - 1);
        }
    }
}
