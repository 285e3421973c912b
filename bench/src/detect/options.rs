//! What one run measures, and for how long.

use std::time::Duration;

use anyhow::{Context, bail};

const USAGE: &str = "detect [PART...] [--systems A,B] [--seconds S] [--trials T] [--faults-per-class K] [--full]; \
    parts: deaths16 matched loss pauses paths deaths32 networks attribution simulated; \
    systems: steadfast serf foca chitchat";

/// The parts, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Cost at rest and deaths at 16 agents.
    Deaths16,
    /// Deaths with as much heartbeat traffic as ours.
    Matched,
    /// Wrong removals under loss, and deaths at 25 %.
    Loss,
    /// One agent paused, four that stutter.
    Pauses,
    /// A deaf agent, a cut link, a split.
    Paths,
    /// Cost at rest and deaths at 32 agents.
    Deaths32,
    /// One of two networks cut; ours only.
    Networks,
    /// Classes of failures; ours only.
    Attribution,
    /// Ten thousand nodes; ours only.
    Simulated,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 9] = [
        Part::Deaths16,
        Part::Matched,
        Part::Loss,
        Part::Pauses,
        Part::Paths,
        Part::Deaths32,
        Part::Networks,
        Part::Attribution,
        Part::Simulated,
    ];
}

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    parts: Vec<Part>,
    systems: Vec<String>,
    /// The lengths instead of short ones.
    full: bool,
    seconds: Option<u64>,
    trials: Option<usize>,
    faults_per_class: Option<usize>,
}

impl Options {
    /// Reads the words after `detect`.
    pub fn parse(words: &[&str]) -> anyhow::Result<Options> {
        let mut options = Options {
            parts: Vec::new(),
            systems: Vec::new(),
            full: false,
            seconds: None,
            trials: None,
            faults_per_class: None,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value =
                || words.next().copied().with_context(|| format!("`{word}` needs a value: {USAGE}"));
            match *word {
                "--full" => options.full = true,
                "--seconds" => {
                    options.seconds = Some(value()?.parse().context("--seconds takes a whole number")?)
                }
                "--trials" => {
                    options.trials = Some(value()?.parse().context("--trials takes a whole number")?)
                }
                "--faults-per-class" => {
                    options.faults_per_class =
                        Some(value()?.parse().context("--faults-per-class takes a whole number")?);
                }
                "--systems" => options.systems = value()?.split(',').map(str::to_owned).collect(),
                name => {
                    let part = Part::ALL.iter().find(|part| format!("{part:?}").eq_ignore_ascii_case(name));
                    let Some(part) = part else { bail!("`detect` has no part `{name}`: {USAGE}") };
                    options.parts.push(*part);
                }
            }
        }
        Ok(options)
    }

    /// Whether this part runs.
    pub fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    /// Whether this system takes part.
    pub fn has_system(&self, name: &str) -> bool {
        self.systems.is_empty() || self.systems.iter().any(|system| system == name)
    }

    /// Length of a scenario that lasts `full` seconds in the issue.
    pub fn length(&self, full: u64) -> Duration {
        let default = if self.full { full } else { full.min(30) };
        Duration::from_secs(self.seconds.unwrap_or(default))
    }

    /// Deaths of each peer's agents per scenario.
    pub fn trials(&self) -> usize {
        self.trials.unwrap_or(if self.full { 8 } else { 5 })
    }

    /// How many of ours die for each of a peer's: they take a moment only.
    pub fn ours_per_trial(&self) -> usize {
        if self.full { 7 } else { 2 }
    }

    /// Faults of each class.
    pub fn faults_per_class(&self) -> usize {
        self.faults_per_class.unwrap_or(if self.full { 50 } else { 3 })
    }
}
