//! `[detect]`: how this node judges silence, from text to the detector's settings.
//!
//! Every key has a default that follows from the interval, so a file that sets nothing, or the interval alone, is right.
//! A combination under which the innocent would be blamed is refused with the relation that is broken. What the
//! settings do is said in `docs/reference/config.md`; the rules are `steadfast_proto::detect`.

use std::time::Duration;

use steadfast_proto::detect::delay;
use steadfast_proto::detect::{Profile, Settings};

use super::source::{Given, Problems, Section};
use super::{choice, range};

const INTERVAL_DEFAULT: Duration = Duration::from_millis(100);
const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(10);
/// A heartbeat says in 16 bits how many milliseconds pass until the next one.
const ADVERTISED_MAX: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// How many heartbeats must fit into a lease: one that renews, one that is lost, one that is late.
const BEATS_PER_LEASE: u32 = 3;

/// What was given.
#[derive(Debug, Default)]
pub(super) struct RawDetect {
    profile: Option<Given>,
    statistics: Option<Given>,
    interval: Option<Given>,
    interval_max: Option<Given>,
    timeout_min: Option<Given>,
    timeout_max: Option<Given>,
    stall_limit: Option<Given>,
}

impl RawDetect {
    /// Reads the section.
    pub(super) fn read(mut section: Section<'_>, problems: &mut Problems) -> RawDetect {
        let raw = RawDetect {
            profile: section.text("profile", problems),
            statistics: section.text("statistics", problems),
            interval: section.scalar("interval", problems),
            interval_max: section.scalar("interval_max", problems),
            timeout_min: section.scalar("timeout_min", problems),
            timeout_max: section.scalar("timeout_max", problems),
            stall_limit: section.scalar("stall_limit", problems),
        };
        section.finish(problems);
        raw
    }

    /// Lets an environment variable replace the interval.
    pub(super) fn interval(&mut self) -> &mut Option<Given> {
        &mut self.interval
    }

    /// Checks each value, then how they stand to each other.
    pub(super) fn check(&self, problems: &mut Problems) -> Option<Settings> {
        let profile = self.profile.as_ref().map(|given| problems.check(given, profile));
        let statistics = self.statistics.as_ref().map(|given| problems.check(given, statistics));
        let interval = duration(&self.interval, INTERVAL_MIN, INTERVAL_MAX, problems);
        let interval_max = duration(&self.interval_max, INTERVAL_MIN, ADVERTISED_MAX, problems);
        let timeout_min = duration(&self.timeout_min, INTERVAL_MIN, HOUR, problems);
        let timeout_max = duration(&self.timeout_max, INTERVAL_MIN, HOUR, problems);
        let stall_limit = duration(&self.stall_limit, INTERVAL_MIN, HOUR, problems);
        let mut settings = Settings::of_interval(interval.unwrap_or(Some(INTERVAL_DEFAULT))?);
        settings.profile = profile.unwrap_or(Some(settings.profile))?;
        settings.statistics = statistics.unwrap_or(Some(settings.statistics))?;
        settings.interval_max = interval_max.unwrap_or(Some(settings.interval_max.min(ADVERTISED_MAX)))?;
        let timeout = &mut settings.timeout;
        timeout.min = timeout_min.unwrap_or(Some(timeout.min))?;
        timeout.max = timeout_max.unwrap_or(Some(timeout.max))?;
        if timeout.min <= timeout.max {
            timeout.initial = timeout.initial.clamp(timeout.min, timeout.max);
        }
        let default_stall = settings.stall_limit.max(settings.interval * 10);
        settings.stall_limit = stall_limit.unwrap_or(Some(default_stall))?;
        self.check_relations(&settings, problems);
        Some(settings)
    }

    fn check_relations(&self, settings: &Settings, problems: &mut Problems) {
        let Settings { interval, interval_max, timeout, thresholds, stall_limit, .. } = settings;
        let interval_text = text(*interval);
        if interval_max < interval {
            refuse(
                &self.interval_max,
                problems,
                "interval_max",
                format!(
                    "\"{}\" is shorter than the interval, {interval_text}; give at least that",
                    text(*interval_max)
                ),
            );
        }
        let two = *interval * 2;
        if timeout.min <= two {
            let given = if self.timeout_min.is_some() { &self.timeout_min } else { &self.timeout_max };
            refuse(
                given,
                problems,
                "timeout_min",
                format!(
                    "\"{}\" is not longer than two intervals of {interval_text}, so that one heartbeat that is late would be a failure; give more than \"{}\", or a shorter interval",
                    text(timeout.min),
                    text(two)
                ),
            );
        }
        if let Err(error) = timeout.check() {
            let given = if self.timeout_max.is_some() { &self.timeout_max } else { &self.timeout_min };
            refuse(given, problems, "timeout_max", error.to_string());
        }
        if let Err(error) = thresholds.check(*interval) {
            refuse(&self.interval, problems, "interval", error.to_string());
        }
        let ten = *interval * 10;
        if *stall_limit < ten {
            refuse(
                &self.stall_limit,
                problems,
                "stall_limit",
                format!(
                    "\"{}\" is shorter than ten intervals of {interval_text}: a process would be removed for a stutter; give at least \"{}\"",
                    text(*stall_limit),
                    text(ten)
                ),
            );
        }
    }
}

/// Whether heartbeats this far apart can keep a lease of this length; if not, the relation that is broken.
pub fn check_lease(settings: &Settings, lease: Duration) -> Result<(), String> {
    let least = settings.interval * BEATS_PER_LEASE;
    if lease < least {
        return Err(format!(
            "a lease of {} is too short for heartbeats every {}: {BEATS_PER_LEASE} must fit, so give a lease of at least {}, or a shorter `interval` under [detect]",
            text(lease),
            text(settings.interval),
            text(least)
        ));
    }
    Ok(())
}

fn profile(text: &str) -> Result<Profile, String> {
    choice(
        text,
        &[("gossip", Profile::Gossip), ("relative", Profile::Relative), ("timeout", Profile::Timeout)],
    )
}

fn statistics(text: &str) -> Result<delay::Profile, String> {
    choice(text, &[("source", delay::Profile::Source), ("smooth", delay::Profile::Smooth)])
}

/// `None` when nothing was given, `Some(None)` when it was wrong.
fn duration(
    given: &Option<Given>,
    min: Duration,
    max: Duration,
    problems: &mut Problems,
) -> Option<Option<Duration>> {
    given.as_ref().map(|given| problems.check(given, range(min, max)))
}

fn refuse(given: &Option<Given>, problems: &mut Problems, key: &str, message: String) {
    match given {
        Some(given) => problems.refuse(given, message),
        None => problems.missing(format!("detect.{key}: {message}")),
    }
}

fn text(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(duration)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check_text;

    const NETWORK: &str = "[node]\nname=\"a\"\n[[network]]\nname=\"a\"\naddress=\"10.0.0.1:1\"\n[detect]\n";

    fn settings(detect: &str) -> Settings {
        check_text("node.toml", &format!("{NETWORK}{detect}"), |_| None).unwrap().detect
    }

    fn problems(detect: &str) -> Vec<String> {
        let failure = check_text("node.toml", &format!("{NETWORK}{detect}"), |_| None).unwrap_err();
        failure.message.lines().map(str::to_owned).collect()
    }

    #[test]
    fn nothing_given_is_the_default_and_the_rest_follows_from_the_interval() {
        assert_eq!(settings(""), Settings::default());
        assert_eq!(settings("interval = \"1s\"\n"), Settings::of_interval(Duration::from_secs(1)));
        let slow = settings("interval = \"10s\"\n");
        assert_eq!(slow.interval_max, ADVERTISED_MAX, "no longer than a heartbeat can say");
        assert_eq!(slow.stall_limit, Duration::from_secs(100));
    }

    #[test]
    fn every_key_takes_effect() {
        let given = settings(
            "profile = \"timeout\"\nstatistics = \"smooth\"\ninterval = \"50ms\"\ninterval_max = \"1s\"\ntimeout_min = \"200ms\"\ntimeout_max = \"400ms\"\nstall_limit = \"3s\"\n",
        );
        assert_eq!((given.profile, given.statistics), (Profile::Timeout, delay::Profile::Smooth));
        let times = [given.interval, given.interval_max, given.timeout.min, given.timeout.max];
        assert_eq!(times.map(|time| time.as_millis()), [50, 1_000, 200, 400]);
        assert_eq!(given.timeout.initial, given.timeout.max, "the first one lies within the bounds");
        assert_eq!(given.stall_limit, Duration::from_secs(3));
        assert_eq!(settings("profile = \"relative\"\n").profile, Profile::Relative);
    }

    #[test]
    fn all_wrong_values_are_reported_at_once_with_what_would_be_right() {
        let found = problems(
            "profile = \"gosip\"\nstatistics = \"rough\"\ninterval = \"1ms\"\ninterval_max = 2\nstal_limit = \"1s\"\nstall_limit = \"8GiB\"\n",
        );
        let wanted = [
            (7, "profile", "did you mean \"gossip\"?"),
            (8, "statistics", "\"source\", \"smooth\""),
            (9, "interval", "between \"10ms\" and \"10s\""),
            (10, "interval_max", "no unit"),
            (11, "stal_limit", "did you mean \"stall_limit\"?"),
            (12, "stall_limit", "is a size"),
        ];
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        for (line, key, part) in wanted {
            let begin = format!("node.toml:{line}: detect.{key}:");
            assert!(
                found.iter().any(|found| found.starts_with(&begin) && found.contains(part)),
                "{found:#?}"
            );
        }
    }

    #[test]
    fn a_broken_relation_is_named() {
        let one = |detect: &str, part: &str| {
            let found = problems(detect);
            assert!(found.len() == 1 && found[0].contains(part), "{detect}: {found:#?}");
        };
        one("interval = \"2s\"\ninterval_max = \"1s\"\n", "shorter than the interval, 2s");
        one("timeout_min = \"150ms\"\n", "not longer than two intervals of 100ms");
        one("interval = \"1s\"\ntimeout_min = \"900ms\"\n", "not longer than two intervals of 1s");
        one("timeout_min = \"3s\"\ntimeout_max = \"2s\"\n", "min <= initial <= max");
        one("timeout_max = \"250ms\"\n", "min <= initial <= max");
        one("stall_limit = \"500ms\"\n", "shorter than ten intervals of 100ms");
    }

    #[test]
    fn a_lease_holds_three_heartbeats_at_least() {
        let settings = Settings::default();
        assert_eq!(check_lease(&settings, Duration::from_millis(300)), Ok(()));
        let refused = check_lease(&settings, Duration::from_millis(299)).unwrap_err();
        assert!(refused.contains("at least 300ms"), "{refused}");
    }
}
