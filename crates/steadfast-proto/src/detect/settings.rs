//! How the detector judges: intervals, limits, and which rule suspects.

use std::time::Duration;

use super::timeout::TimeoutSettings;
use super::{delay, matrix};

/// Which rule suspects a silent peer; the veto and the confirmation are the same for all (PROTOCOLS 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Missed heartbeats, as many as delay and loss call for (4.4).
    #[default]
    Gossip,
    /// Lag behind the other peers (3.1, 3.2).
    Relative,
    /// A timeout that follows the longest recent gap (3.3).
    Timeout,
}

/// How the detector judges; every default is PROTOCOLS 3's or 4.4's.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How often every node beats while round trips are short. 100 ms; shorter detects sooner and costs traffic.
    pub interval: Duration,
    /// How often it beats at least, however long round trips are.
    pub interval_max: Duration,
    /// Which rule suspects.
    pub profile: Profile,
    /// How delay statistics follow their samples.
    pub statistics: delay::Profile,
    /// The bounds and gains of the adaptive timeout.
    pub timeout: TimeoutSettings,
    /// The limits of the relative rules.
    pub thresholds: matrix::Thresholds,
    /// Loss may cause one wrong suspicion in so many beats of a link.
    pub false_one_in: u64,
    /// How long a peer that was never heard is given after this node's start.
    pub start_grace: Duration,
    /// How long a node may be stalled before it may be removed.
    pub stall_limit: Duration,
    /// How long an agent whose machine lives may be gone before it may be removed.
    pub crash_grace: Duration,
    /// Contacts that are not watched are sent every so many beats.
    pub slow_every: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings::of_interval(Duration::from_millis(100))
    }
}

impl Settings {
    /// The settings of PROTOCOLS 3 and 4.4 for heartbeats every `interval`.
    #[must_use]
    pub fn of_interval(interval: Duration) -> Settings {
        Settings {
            interval,
            interval_max: interval * 20,
            profile: Profile::default(),
            statistics: delay::Profile::Source,
            timeout: TimeoutSettings::of_interval(interval),
            thresholds: matrix::Thresholds::of_interval(interval),
            false_one_in: delay::FALSE_ONE_IN,
            start_grace: Duration::from_secs(10),
            stall_limit: Duration::from_secs(10),
            crash_grace: Duration::from_secs(1),
            slow_every: 10,
        }
    }
}
