//! The timeout of one peer, which follows its longest recent gap: fast up, slowly down (PROTOCOLS 3.3).
//!
//! It learns from successes only. A heartbeat that comes after its expiry teaches nothing (AT3), or a dead peer's
//! return would lengthen the wait for its next death. It accuses nobody and reads no clock: the caller takes its
//! own pauses off a gap, compares silence with [`AdaptiveTimeout::current`], and calls [`AdaptiveTimeout::reset`]
//! when an accused peer is readmitted. Read `matrix.rs` next: it says when silence is a peer's fault.
//!
//! ```
//! use std::time::Duration;
//! use steadfast_proto::detect::timeout::{AdaptiveTimeout, TimeoutSettings};
//!
//! let mut timeout = AdaptiveTimeout::new(TimeoutSettings::of_interval(Duration::from_millis(100)));
//! (0..1_000).for_each(|_| timeout.observe(Duration::from_millis(100)));
//! assert!(timeout.current() < Duration::from_millis(301));
//! ```

use std::collections::VecDeque;
use std::time::Duration;

/// The most gaps that a window may hold, whatever the settings say.
const WINDOW_MAX: usize = 1_024;

/// How one timeout adapts; the defaults of [`TimeoutSettings::of_interval`] are PROTOCOLS 3.3's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeoutSettings {
    /// The first timeout, and that after a readmission. Ten intervals.
    pub initial: Duration,
    /// The shortest timeout; bounds how soon a silent death is seen. Three intervals.
    pub min: Duration,
    /// The nominal maximum, however slow a peer has been; bounds how late a death is seen. Fifty intervals.
    pub max: Duration,
    /// The timeout aims at this many times the longest recent gap. 2.
    pub margin: f64,
    /// How many recent gaps count. 16.
    pub window: usize,
    /// The share of the way to a longer timeout that one gap goes. 0.5.
    pub up: f64,
    /// The share of the way to a shorter timeout that one gap goes; below `up`, or a bursty peer flaps. 0.05.
    pub down: f64,
}

impl TimeoutSettings {
    /// The settings of PROTOCOLS 3.3 for heartbeats every `interval`.
    pub fn of_interval(interval: Duration) -> TimeoutSettings {
        TimeoutSettings {
            initial: interval.saturating_mul(10),
            min: interval.saturating_mul(3),
            max: interval.saturating_mul(50),
            margin: 2.0,
            window: 16,
            up: 0.5,
            down: 0.05,
        }
    }

    /// Refuses settings under which the timeout would not adapt as described, with the relation that is broken.
    pub fn check(&self) -> Result<(), TimeoutSettingsError> {
        let &TimeoutSettings { initial, min, max, margin, window, up, down } = self;
        if min.is_zero() || min > initial || initial > max {
            return Err(TimeoutSettingsError::Bounds { min, initial, max });
        }
        if !(margin.is_finite() && margin >= 1.0) {
            return Err(TimeoutSettingsError::Margin { margin });
        }
        if !(0.0 < down && down <= up && up <= 1.0) {
            return Err(TimeoutSettingsError::Gains { up, down });
        }
        if window == 0 || window > WINDOW_MAX {
            return Err(TimeoutSettingsError::Window { window });
        }
        Ok(())
    }
}

/// The settings contradict one another; nothing was changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TimeoutSettingsError {
    /// The first timeout lies outside the bounds, or the shortest is nothing.
    #[error(
        "the timeouts are min {min:?}, initial {initial:?}, max {max:?}, where 0 < min <= initial <= max is needed"
    )]
    Bounds {
        /// The shortest timeout.
        min: Duration,
        /// The first timeout.
        initial: Duration,
        /// The longest timeout.
        max: Duration,
    },
    /// The margin would make the timeout shorter than the gaps that were seen.
    #[error("the margin is {margin}, where a number of at least 1 is needed")]
    Margin {
        /// The margin that was given.
        margin: f64,
    },
    /// The gains are no shares, or it would shrink faster than it grows.
    #[error("the gains are up {up} and down {down}, where 0 < down <= up <= 1 is needed")]
    Gains {
        /// The share of the way up.
        up: f64,
        /// The share of the way down.
        down: f64,
    },
    /// The window holds no gap or more than is ever useful.
    #[error("the window is {window} gaps, where 1 to 1024 are possible")]
    Window {
        /// The number of gaps that was given.
        window: usize,
    },
}

/// The adaptive timeout of one peer.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptiveTimeout {
    settings: TimeoutSettings,
    current: Duration,
    gaps: VecDeque<Duration>,
}

impl AdaptiveTimeout {
    /// A timeout at its first value, which has seen no gap.
    pub fn new(settings: TimeoutSettings) -> AdaptiveTimeout {
        AdaptiveTimeout { settings, current: bounded(settings.initial, &settings), gaps: VecDeque::new() }
    }

    /// The timeout now; silence for longer is an expiry.
    pub fn current(&self) -> Duration {
        self.current
    }

    /// The settings it adapts by.
    pub fn settings(&self) -> &TimeoutSettings {
        &self.settings
    }

    /// Learns from a heartbeat that came `gap` after the last one; a late one teaches nothing (AT3). While the peer
    /// is accused this must not be called.
    pub fn observe(&mut self, gap: Duration) {
        if gap > self.current {
            return;
        }
        while self.gaps.len() >= self.settings.window.clamp(1, WINDOW_MAX) {
            self.gaps.pop_front();
        }
        self.gaps.push_back(gap);
        let longest = self.gaps.iter().max().copied().unwrap_or(gap);
        let target = bounded(scaled(longest, self.settings.margin), &self.settings);
        let next = if target > self.current {
            self.current.saturating_add(scaled(target - self.current, self.settings.up))
        } else {
            self.current.saturating_sub(scaled(self.current - target, self.settings.down))
        };
        self.current = bounded(next, &self.settings);
    }

    /// Starts afresh: the peer was readmitted or restarted, so what it did before says nothing.
    pub fn reset(&mut self) {
        self.gaps.clear();
        self.current = bounded(self.settings.initial, &self.settings);
    }
}

/// AT1; unlike `clamp` it does not panic on bounds in the wrong order.
fn bounded(timeout: Duration, settings: &TimeoutSettings) -> Duration {
    timeout.min(settings.max).max(settings.min)
}

/// `duration * factor` to the nearest nanosecond; the longest duration there is when that is no duration.
fn scaled(duration: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(duration.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    /// The law under test, or a law with one mistake in it.
    #[derive(Clone, Copy, PartialEq)]
    enum Law {
        Ours,
        /// Mutation: it shrinks as fast as it grows.
        SymmetricGains,
        /// Mutation: a heartbeat after expiry teaches as well.
        RecalculationAfterExpiry,
        /// A plain timeout, in heartbeat intervals.
        Fixed(u32),
    }

    struct Monitor {
        law: Law,
        timeout: AdaptiveTimeout,
    }

    impl Monitor {
        fn new(law: Law) -> Monitor {
            let mut settings = TimeoutSettings::of_interval(INTERVAL);
            if law == Law::SymmetricGains {
                settings.down = settings.up;
            }
            Monitor { law, timeout: AdaptiveTimeout::new(settings) }
        }

        fn current(&self) -> Duration {
            match self.law {
                Law::Fixed(intervals) => INTERVAL * intervals,
                Law::Ours | Law::SymmetricGains | Law::RecalculationAfterExpiry => self.timeout.current(),
            }
        }

        /// Returns whether the heartbeat came after expiry, so that the peer had been suspected.
        fn observe(&mut self, gap: Duration) -> bool {
            let late = gap > self.current();
            if self.law == Law::RecalculationAfterExpiry && late {
                // What `observe` would do without its first line: learn from the gap as from any other.
                let held = self.timeout.current;
                self.timeout.current = Duration::MAX;
                self.timeout.observe(gap);
                let settings = self.timeout.settings;
                let target = bounded(scaled(gap, settings.margin), &settings);
                self.timeout.current = bounded(held + scaled(target - held, settings.up), &settings);
                return late;
            }
            self.timeout.observe(gap);
            late
        }
    }

    /// The gaps of 3.3's acceptance: a minute steady, five minutes up to 900 ms, five minutes back, a minute steady.
    fn ramp() -> Vec<Duration> {
        let mut gaps = Vec::new();
        let mut at_ms = 0u64;
        while at_ms < 720_000 {
            let gap_ms = match at_ms {
                0..60_000 => 100,
                60_000..360_000 => 100 + (at_ms - 60_000) * 800 / 300_000,
                360_000..660_000 => 900 - (at_ms - 360_000) * 800 / 300_000,
                _ => 100,
            };
            gaps.push(Duration::from_millis(gap_ms));
            at_ms += gap_ms;
        }
        gaps
    }

    /// A peer that stalls for half a second every four seconds, as one with a busy disk does.
    fn bursts() -> Vec<Duration> {
        (0..20).flat_map(|_| [500].into_iter().chain([100; 35])).map(Duration::from_millis).collect()
    }

    fn suspicions(law: Law, gaps: &[Duration]) -> usize {
        let mut monitor = Monitor::new(law);
        gaps.iter().filter(|gap| monitor.observe(**gap)).count()
    }

    /// How long after its last heartbeat a peer is suspected that crashes after `gaps`.
    fn detection(law: Law, gaps: &[Duration]) -> Duration {
        let mut monitor = Monitor::new(law);
        gaps.iter().for_each(|gap| assert!(!monitor.observe(*gap)));
        monitor.current()
    }

    #[test]
    fn a_slow_ramp_is_followed_without_a_suspicion_and_a_crash_is_seen_by_the_timeout_of_its_moment() {
        let gaps = ramp();
        assert_eq!(suspicions(Law::Ours, &gaps), 0);
        assert_eq!(suspicions(Law::Fixed(10), &gaps), 0);
        assert!(suspicions(Law::Fixed(5), &gaps) > 100);

        let top = gaps.iter().position(|gap| *gap == Duration::from_millis(900)).unwrap_or(gaps.len());
        let at_top = detection(Law::Ours, &gaps[..top]);
        let decayed = detection(Law::Ours, &gaps);
        let ratio = at_top.as_secs_f64() / decayed.as_secs_f64();
        println!("crash at the top of the ramp: {at_top:?}; after decay: {decayed:?}; ratio {ratio:.2}");
        assert!(
            at_top > Duration::from_millis(1_750) && at_top <= Duration::from_millis(1_800),
            "{at_top:?}"
        );
        assert!(decayed >= Duration::from_millis(300) && decayed < Duration::from_millis(310), "{decayed:?}");
        assert!((5.6..6.1).contains(&ratio));
        assert_eq!(detection(Law::Fixed(10), &gaps), Duration::from_secs(1));
    }

    #[test]
    fn bursts_tell_slow_decay_from_symmetric_gains() {
        assert_eq!(suspicions(Law::Ours, &bursts()), 0);
        assert!(suspicions(Law::SymmetricGains, &bursts()) > 10);
        // The ramp alone would not tell them apart.
        assert_eq!(suspicions(Law::SymmetricGains, &ramp()), 0);
    }

    #[test]
    fn a_heartbeat_after_expiry_does_not_postpone_the_next_detection() {
        let after_outage: Vec<Duration> = ramp().into_iter().chain([Duration::from_secs(4)]).collect();
        let timeout_after = |law| {
            let mut monitor = Monitor::new(law);
            after_outage.iter().for_each(|gap| {
                monitor.observe(*gap);
            });
            monitor.current()
        };
        assert!(timeout_after(Law::Ours) < Duration::from_millis(310));
        assert!(timeout_after(Law::RecalculationAfterExpiry) > Duration::from_secs(2));
    }

    #[test]
    fn readmission_starts_at_the_first_value() {
        let mut timeout = AdaptiveTimeout::new(TimeoutSettings::of_interval(INTERVAL));
        (0..200).for_each(|_| timeout.observe(INTERVAL));
        assert!(timeout.current() < INTERVAL * 4);
        timeout.reset();
        assert_eq!(timeout, AdaptiveTimeout::new(TimeoutSettings::of_interval(INTERVAL)));
    }

    #[test]
    fn golden_vector_of_a_late_and_a_slow_heartbeat() {
        let mut timeout = AdaptiveTimeout::new(TimeoutSettings::of_interval(INTERVAL));
        let seen: Vec<u128> = [100, 100, 700, 100, 1_500, 100]
            .into_iter()
            .map(|gap_ms| {
                timeout.observe(Duration::from_millis(gap_ms));
                timeout.current().as_micros()
            })
            .collect();
        assert_eq!(seen, [965_000, 931_750, 1_165_875, 1_282_937, 1_282_937, 1_341_468]);
    }

    #[test]
    fn nonsense_is_refused_with_the_relation_that_is_broken() {
        let good = TimeoutSettings::of_interval(INTERVAL);
        assert_eq!(good.check(), Ok(()));
        let refused = |settings: TimeoutSettings| settings.check().unwrap_err().to_string();
        assert!(refused(TimeoutSettings { min: INTERVAL * 20, ..good }).contains("min <= initial"));
        assert!(refused(TimeoutSettings { min: Duration::ZERO, ..good }).contains("0 < min"));
        assert!(refused(TimeoutSettings { margin: f64::NAN, ..good }).contains("at least 1"));
        assert!(refused(TimeoutSettings { down: 0.9, ..good }).contains("down <= up"));
        assert!(refused(TimeoutSettings { window: 0, ..good }).contains("1 to 1024"));
    }

    fn settings() -> impl Strategy<Value = TimeoutSettings> {
        let times = (1u64..500, 0u64..2_000, 0u64..5_000);
        let shares = (1.0f64..4.0, 1usize..32, 0.001f64..=1.0, 0.001f64..=1.0);
        (times, shares).prop_map(|((min_ms, initial_ms, max_ms), (margin, window, up, ratio))| {
            TimeoutSettings {
                min: Duration::from_millis(min_ms),
                initial: Duration::from_millis(min_ms + initial_ms),
                max: Duration::from_millis(min_ms + initial_ms + max_ms),
                margin,
                window,
                up,
                down: up * ratio,
            }
        })
    }

    proptest! {
        #[test]
        fn at1_at2_at3_bounded_gradual_and_moved_only_by_heartbeats_in_time(
            settings in settings(),
            gaps_ms in prop::collection::vec(0u64..10_000, 1..200),
        ) {
            prop_assert_eq!(settings.check(), Ok(()));
            let mut timeout = AdaptiveTimeout::new(settings);
            // Half a nanosecond of rounding.
            let step_max = scaled(settings.max - settings.min, settings.up) + Duration::from_nanos(1);
            for gap in gaps_ms.into_iter().map(Duration::from_millis) {
                let before = timeout.clone();
                timeout.observe(gap);
                prop_assert!(settings.min <= timeout.current() && timeout.current() <= settings.max); // AT1
                prop_assert!(timeout.current().abs_diff(before.current()) <= step_max); // AT2
                if gap > before.current() {
                    prop_assert_eq!(&timeout, &before); // AT3
                }
            }
        }

        #[test]
        fn at4_a_longer_gap_in_the_same_history_never_gives_a_shorter_timeout(
            settings in settings(),
            shares in prop::collection::vec(0.0f64..=1.0, 1..100),
            changed in any::<prop::sample::Index>(),
            longer in 0.0f64..=1.0,
        ) {
            let mut original = AdaptiveTimeout::new(settings);
            let mut slower = AdaptiveTimeout::new(settings);
            let changed = changed.index(shares.len());
            for (index, share) in shares.into_iter().enumerate() {
                // Every gap is in time for both; the changed one is anything up to the expiry.
                let gap = scaled(original.current(), share).min(original.current());
                let grown = gap + scaled(original.current() - gap, longer);
                slower.observe(if index == changed { grown.min(slower.current()) } else { gap });
                original.observe(gap);
                prop_assert!(slower.current() >= original.current());
            }
        }

        #[test]
        fn no_settings_and_no_gap_make_it_panic(
            margin in any::<f64>(), up in any::<f64>(), down in any::<f64>(), window in any::<usize>(),
            gaps in prop::collection::vec((any::<u64>(), 0u32..1_000_000_000), 0..8),
        ) {
            let settings = TimeoutSettings { margin, up, down, window, ..TimeoutSettings::of_interval(INTERVAL) };
            let mut timeout = AdaptiveTimeout::new(settings);
            for (seconds, nanos) in gaps {
                timeout.observe(Duration::new(seconds, nanos));
                timeout.observe(Duration::from_nanos(nanos.into()));
            }
        }
    }
}
