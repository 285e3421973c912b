//! `[probation]`: what this node asks of candidates, from text to the core's settings.
//!
//! The first member in rank judges, so the section should be the same on every node. What the criteria mean is
//! `steadfast_proto::probation`.

use std::time::Duration;

use steadfast_proto::probation::Settings;

use super::source::{Given, Problems, Section};
use super::{choice, memory_size, range};

const SHORTEST: Duration = Duration::from_millis(100);
const DAY: Duration = Duration::from_secs(86_400);

/// What was given.
#[derive(Debug, Default)]
pub(super) struct RawProbation {
    seen: Option<Given>,
    clean: Option<Given>,
    deadline: Option<Given>,
    round_trip: Option<Given>,
    loss: Option<Given>,
    clock: Option<Given>,
    memory: Option<Given>,
    domain: Option<Given>,
    lag: Option<Given>,
}

impl RawProbation {
    /// Reads the section.
    pub(super) fn read(mut section: Section<'_>, problems: &mut Problems) -> RawProbation {
        let raw = RawProbation {
            seen: section.scalar("seen", problems),
            clean: section.scalar("clean", problems),
            deadline: section.scalar("deadline", problems),
            round_trip: section.scalar("round_trip", problems),
            loss: section.scalar("loss", problems),
            clock: section.scalar("clock", problems),
            memory: section.scalar("memory", problems),
            domain: section.text("domain", problems),
            lag: section.scalar("lag", problems),
        };
        section.finish(problems);
        raw
    }

    /// Checks each value, then how they stand to each other.
    pub(super) fn check(&self, problems: &mut Problems) -> Option<Settings> {
        let mut settings = Settings::default();
        let mut time = |given: &Option<Given>, slot: &mut Duration| -> Option<()> {
            if let Some(given) = given {
                *slot = problems.check(given, range(SHORTEST, DAY))?;
            }
            Some(())
        };
        time(&self.seen, &mut settings.seen)?;
        time(&self.clean, &mut settings.clean)?;
        time(&self.deadline, &mut settings.deadline)?;
        time(&self.clock, &mut settings.clock_max)?;
        if let Some(given) = &self.round_trip {
            settings.round_trip_max =
                problems.check(given, range(Duration::from_millis(1), Duration::from_secs(10)))?;
        }
        if let Some(given) = &self.loss {
            settings.loss_permille_max = problems.check(given, permille)?;
        }
        if let Some(given) = &self.memory {
            settings.memory_bytes_min = problems.check(given, memory_size)?;
        }
        if let Some(given) = &self.domain {
            settings.distinct_domain =
                problems.check(given, |text| choice(text, &[("any", false), ("distinct", true)]))?;
        }
        if let Some(given) = &self.lag {
            settings.lag_max = problems
                .check(given, |text| text.parse().map_err(|_| format!("{text:?} is no number of changes")))?;
        }
        if let Err(error) = settings.check() {
            match self.deadline.as_ref().or(self.clean.as_ref()).or(self.seen.as_ref()) {
                Some(given) => problems.refuse(given, error),
                None => problems.missing(error),
            }
            return None;
        }
        Some(settings)
    }
}

/// A share of heartbeats, such as 0.05, in thousandths.
fn permille(text: &str) -> Result<u16, String> {
    let wrong = || format!("{text:?} is no share; write one from 0 to below 1, such as 0.05");
    let share: f64 = text.parse().map_err(|_| wrong())?;
    if !(0.0..1.0).contains(&share) {
        return Err(wrong());
    }
    // Between 0 and 999 by the check above.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be below 1,000")]
    Ok((share * 1_000.0).floor() as u16)
}
