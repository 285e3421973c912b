//! What `simulate` is asked for: flags above a file, as text first, then checked.
//!
//! All problems are reported at once, each with its flag or its line. Whether the parts fit together is the plan's
//! own to say. Never runs anything.

use std::path::PathBuf;
use std::time::Duration;

use steadfast_proto::detect::{Profile, Settings, delay};
use steadfast_sim::detection::{Burst, Delay, Fault, FaultError, Kind, NetworkPlan, Plan};

use crate::config::source::{self, Given, Problems, Section};
use crate::failure::did_you_mean;
use crate::units;

/// A whole example; a test loads it.
#[cfg(test)]
pub(super) const EXAMPLE: &str = r#"nodes = 16
interval = "100ms"
profile = "gossip"
faults = ["silent@10s", "cut-link@5s:1,2,network=0,for=3s"]
trials = 20
seed = 7

[[network]]
delay = "200us~100us"

[[network]]
delay = "20ms"
jitter = "5ms"
loss = "1%"
burst = "300ms/30s"
"#;

/// How long a run lasts at least, and goes on after its last fault, unless told.
const DURATION_MIN: Duration = Duration::from_secs(15);
const AFTER_LAST: Duration = Duration::from_secs(5);

/// Most runs of one request.
const TRIALS_MAX: u32 = 100_000;

/// One network, as text.
#[derive(Clone, Debug, Default)]
pub(super) struct RawNetwork {
    pub(super) delay: Option<Given>,
    pub(super) jitter: Option<Given>,
    pub(super) loss: Option<Given>,
    pub(super) burst: Option<Given>,
}

/// Everything, as text.
#[derive(Clone, Debug, Default)]
pub(super) struct Raw {
    pub(super) nodes: Option<Given>,
    pub(super) networks: Option<Given>,
    pub(super) interval: Option<Given>,
    pub(super) profile: Option<Given>,
    pub(super) statistics: Option<Given>,
    /// What all networks are like.
    pub(super) link: RawNetwork,
    /// What each is like, where they differ.
    pub(super) each: Vec<RawNetwork>,
    pub(super) faults: Vec<Given>,
    pub(super) trials: Option<Given>,
    pub(super) seed: Option<Given>,
    pub(super) duration: Option<Given>,
    pub(super) plain: Option<Given>,
}

/// What is to be run.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) plan: Plan,
    pub(super) trials: u32,
    pub(super) seed: u64,
    pub(super) file: Option<PathBuf>,
    /// The flags that make this request again, without nodes, seed and file.
    pub(super) flags: Vec<String>,
}

impl RawNetwork {
    fn read(section: &mut Section<'_>, problems: &mut Problems) -> RawNetwork {
        RawNetwork {
            delay: section.text("delay", problems),
            jitter: section.text("jitter", problems),
            loss: section.scalar("loss", problems),
            burst: section.text("burst", problems),
        }
    }

    fn overlaid_by(self, above: RawNetwork) -> RawNetwork {
        RawNetwork {
            delay: above.delay.or(self.delay),
            jitter: above.jitter.or(self.jitter),
            loss: above.loss.or(self.loss),
            burst: above.burst.or(self.burst),
        }
    }

    fn check(&self, problems: &mut Problems) -> Option<NetworkPlan> {
        let usual = NetworkPlan::default();
        let mut network = NetworkPlan {
            delay: given_or(self.delay.as_ref(), usual.delay, problems, |text| {
                text.parse().map_err(|error: steadfast_sim::detection::ParseDelayError| error.to_string())
            })?,
            loss: given_or(self.loss.as_ref(), usual.loss, problems, share)?,
            burst: given_or(self.burst.as_ref(), None, problems, |text| burst(text).map(Some))?,
        };
        let Some(jitter) = &self.jitter else { return Some(network) };
        let deviation = problems.check(jitter, units::duration)?;
        match network.delay {
            Delay::Constant(base) => network.delay = Delay::normal(base, deviation),
            Delay::Tail { base, .. } if self.delay.is_none() => {
                network.delay = Delay::normal(base, deviation)
            }
            Delay::Uniform { .. } | Delay::Normal { .. } | Delay::Tail { .. } => {
                let wanted = "the delay varies already; write it as one time, or leave the jitter out";
                problems.refuse(jitter, wanted);
            }
        }
        Some(network)
    }
}

impl Raw {
    /// Reads a file's text; what is wrong goes to `problems` and the rest is still read.
    pub(super) fn read(text: &str, problems: &mut Problems) -> Raw {
        let table = source::parse(text, problems);
        let mut top = Section::top(&table);
        let raw = Raw {
            nodes: top.scalar("nodes", problems),
            networks: top.scalar("networks", problems),
            interval: top.text("interval", problems),
            profile: top.text("profile", problems),
            statistics: top.text("statistics", problems),
            link: RawNetwork::read(&mut top, problems),
            each: (top.tables("network", problems).into_iter())
                .map(|(mut section, _)| {
                    let network = RawNetwork::read(&mut section, problems);
                    section.finish(problems);
                    network
                })
                .collect(),
            faults: top.texts("faults", problems).unwrap_or_default(),
            trials: top.scalar("trials", problems),
            seed: top.scalar("seed", problems),
            duration: top.text("duration", problems),
            plain: top.text("plain", problems),
        };
        top.finish(problems);
        raw
    }

    /// Lets `above` (the flags) replace what `self` (the file) said.
    #[must_use]
    pub(super) fn overlaid_by(self, above: Raw) -> Raw {
        Raw {
            nodes: above.nodes.or(self.nodes),
            networks: above.networks.or(self.networks),
            interval: above.interval.or(self.interval),
            profile: above.profile.or(self.profile),
            statistics: above.statistics.or(self.statistics),
            link: self.link.overlaid_by(above.link),
            each: self.each,
            faults: if above.faults.is_empty() { self.faults } else { above.faults },
            trials: above.trials.or(self.trials),
            seed: above.seed.or(self.seed),
            duration: above.duration.or(self.duration),
            plain: above.plain.or(self.plain),
        }
    }

    /// Checks everything that was given and fills in the defaults.
    pub(super) fn check(&self, problems: &mut Problems) -> Option<Request> {
        let nodes = given_or(self.nodes.as_ref(), 16, problems, |text| units::count(text, 0, 1_000_000));
        let networks = self.check_networks(problems);
        let settings = self.check_settings(problems);
        let faults: Vec<Fault> =
            self.faults.iter().filter_map(|given| problems.check(given, fault)).collect();
        let plain = given_or(self.plain.as_ref(), None, problems, |text| units::duration(text).map(Some));
        let last = faults.iter().map(|fault| fault.at + fault.lasts.unwrap_or_default()).max();
        let usual = DURATION_MIN.max(last.unwrap_or_default() + AFTER_LAST);
        let duration = given_or(self.duration.as_ref(), usual, problems, units::duration);
        let trials = given_or(self.trials.as_ref(), 1, problems, |text| units::count(text, 1, TRIALS_MAX));
        let seed = match &self.seed {
            Some(given) => problems.check(given, |text| {
                text.trim().parse().map_err(|_| format!("{text:?} is not a seed; write a whole number"))
            }),
            None => Some(u64::from(uuid::Uuid::new_v4().as_fields().0)),
        };
        let plan = Plan {
            nodes: nodes? as usize,
            networks: networks?,
            settings: settings?,
            faults,
            duration: duration?,
            plain: plain?,
            ..Plan::default()
        };
        Some(Request { plan, trials: trials?, seed: seed?, file: None, flags: self.flags() })
    }

    fn check_networks(&self, problems: &mut Problems) -> Option<Vec<NetworkPlan>> {
        let alike = self.link.check(problems);
        let count = given_or(self.networks.as_ref(), 1, problems, |text| units::count(text, 1, 8))?;
        if self.each.is_empty() {
            return Some(vec![alike?; count as usize]);
        }
        if let Some(given) = self.networks.as_ref().filter(|_| count as usize != self.each.len()) {
            let found = self.each.len();
            problems.refuse(
                given,
                format!("{count} networks are asked for and {found} described by [[network]]"),
            );
        }
        let each =
            self.each.iter().map(|network| self.link.clone().overlaid_by(network.clone()).check(problems));
        each.collect()
    }

    fn check_settings(&self, problems: &mut Problems) -> Option<Settings> {
        let usual = Settings::default();
        let interval = given_or(self.interval.as_ref(), usual.interval, problems, units::duration)?;
        let profiles =
            [("gossip", Profile::Gossip), ("relative", Profile::Relative), ("timeout", Profile::Timeout)];
        let statistics = [("source", delay::Profile::Source), ("smooth", delay::Profile::Smooth)];
        let interval = interval.max(Duration::from_nanos(1));
        Some(Settings {
            profile: given_or(self.profile.as_ref(), usual.profile, problems, |text| {
                choice(text, &profiles)
            })?,
            statistics: given_or(self.statistics.as_ref(), usual.statistics, problems, |text| {
                choice(text, &statistics)
            })?,
            ..Settings::of_interval(interval)
        })
    }

    fn flags(&self) -> Vec<String> {
        use crate::config::source::Place;
        let one = [
            &self.networks,
            &self.interval,
            &self.profile,
            &self.statistics,
            &self.link.delay,
            &self.link.jitter,
            &self.link.loss,
            &self.link.burst,
            &self.trials,
            &self.duration,
            &self.plain,
        ];
        let given = one.into_iter().flatten().chain(&self.faults);
        let flags = given.filter(|given| matches!(given.at, Place::Flag(_)));
        flags.map(|given| format!("{} {}", given.key, given.text)).collect()
    }
}

impl Request {
    /// What is about to be done, in one line.
    pub(super) fn words(&self) -> String {
        let (nodes, networks) = (self.plan.nodes, self.plan.networks.len());
        let duration = humantime::format_duration(self.plan.duration);
        format!(
            "simulating {nodes} nodes on {networks} network{} for {duration}, {} time{}, seed {}",
            plural(networks),
            self.trials,
            plural(self.trials as usize),
            self.seed
        )
    }
}

/// `s` unless there is one.
pub(super) fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn given_or<T>(
    given: Option<&Given>,
    usual: T,
    problems: &mut Problems,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    given.map_or(Some(usual), |given| problems.check(given, parse))
}

fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let hint = did_you_mean(text, names.iter().copied());
        format!("{text:?} is not one of {}{hint}", names.join(", "))
    })
}

/// A share from `10%` or `0.1`.
fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = text.trim().strip_suffix('%').map_or((text.trim(), 1.0), |number| (number, 100.0));
    match number.trim().parse::<f64>() {
        Ok(number) if (0.0..=1.0).contains(&(number / unit)) => Ok(number / unit),
        _ => Err(format!("{text:?} is not a share; write for example 10% or 0.1")),
    }
}

fn burst(text: &str) -> Result<Burst, String> {
    let Some((length, every)) = text.split_once('/') else {
        return Err(format!("{text:?} does not say how often; write LENGTH/EVERY, for example 300ms/10s"));
    };
    Ok(Burst { length: units::duration(length)?, every: units::duration(every)? })
}

fn fault(text: &str) -> Result<Fault, String> {
    text.parse::<Fault>().map_err(|error| {
        let hint = match &error {
            FaultError::Kind(word) => did_you_mean(word, Kind::names()),
            FaultError::Key(word) => did_you_mean(word, Kind::keys().iter().copied()),
            FaultError::NoTime(_)
            | FaultError::Value { .. }
            | FaultError::Node { .. }
            | FaultError::Network { .. }
            | FaultError::Count { .. }
            | FaultError::NoLength => String::new(),
        };
        format!("{error}{hint}")
    })
}
