//! What is simulated: nodes, networks, settings, faults, and how long.
//!
//! A plan is checked before it runs; [`PlanError`] names the relation that is broken. The seed is no part of it:
//! one plan is run under many. Must never draw anything itself. Read next: `fault`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use steadfast_proto::detect::Settings;
use steadfast_proto::wire::NETWORKS_MAX;

use super::fault::{Fault, FaultError};
use crate::random::Random;

/// How many nodes one world may have.
pub(super) const NODES_MAX: usize = 20_000;

/// How long a world may run at most.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(24 * 3_600);

/// How long a datagram takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// Always the same.
    Constant(Duration),
    /// Anything between two durations, all alike.
    Uniform {
        /// The shortest.
        low: Duration,
        /// The longest.
        high: Duration,
    },
    /// Bell-shaped, cut at zero and at three and a half deviations.
    Normal {
        /// The mean.
        mean: Duration,
        /// The standard deviation.
        deviation: Duration,
    },
    /// At least `base`, and an exponential tail of this mean above it, cut at eight means.
    Tail {
        /// The shortest.
        base: Duration,
        /// The mean of what is added.
        mean: Duration,
    },
}

/// A word that describes no delay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no delay; write for example \"1ms\", \"1ms..5ms\" (uniform), \"120ms+-30ms\" (normal) or \"1ms~2ms\" (a \
     tail of that mean)"
)]
pub struct ParseDelayError(String);

/// Losses that come in bursts, on each direction of each link by itself (Gilbert and Elliott).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// How long one lasts, on average; nothing gets through meanwhile.
    pub length: Duration,
    /// How long it is between two, on average.
    pub every: Duration,
}

/// One network.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkPlan {
    /// How long a datagram takes.
    pub delay: Delay,
    /// The share of datagrams that are lost at random, 0 to 1.
    pub loss: f64,
    /// Losses in bursts beside it.
    pub burst: Option<Burst>,
}

/// How those whom the verdicts condemn are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    /// How long a change of the view takes to be committed.
    pub commit: Duration,
}

/// What is simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// How many nodes, two at least.
    pub nodes: usize,
    /// The networks; every node is on each.
    pub networks: Vec<NetworkPlan>,
    /// How the detectors are set.
    pub settings: Settings,
    /// What goes wrong, and when.
    pub faults: Vec<Fault>,
    /// How long it runs.
    pub duration: Duration,
    /// Within which time all agents start, each at a moment of its own; one interval at least.
    pub start_within: Duration,
    /// How late an agent wakes for its deadlines, on average.
    pub lag: Duration,
    /// How many datagrams a kernel keeps per network for an agent that does not take them.
    pub inbox_max: usize,
    /// Whether and how nodes are removed from the view.
    pub removal: Option<Removal>,
    /// The time-out of a plain detector that hears the same heartbeats, for comparison.
    pub plain: Option<Duration>,
    /// Whether the invariants are checked at each step.
    pub check: bool,
    /// Whether a line is kept for everything that is said.
    pub trace: bool,
}

/// A plan that cannot be carried out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Too few or too many nodes.
    #[error("{0} nodes cannot be simulated; between 2 and {NODES_MAX} are possible")]
    Nodes(usize),
    /// Too few or too many networks.
    #[error("{0} networks cannot be simulated; between 1 and {NETWORKS_MAX} are possible")]
    Networks(usize),
    /// The interval between heartbeats is out of bounds.
    #[error("an interval of {0:?} is out of range; between 1ms and 60s is possible")]
    Interval(Duration),
    /// The interval is not below a time-out.
    #[error("the interval {interval:?} must be shorter than the time-out {timeout:?} that it is to feed")]
    Timeout {
        /// The interval.
        interval: Duration,
        /// The time-out.
        timeout: Duration,
    },
    /// The relative rules' limits contradict each other.
    #[error("{0}")]
    Thresholds(String),
    /// A share is none.
    #[error("a loss of {0} is no share; between 0 and 1 (100 %) is possible")]
    Loss(f64),
    /// A uniform delay ends before it begins.
    #[error("a delay from {low:?} to {high:?} ends before it begins; write the shorter one first")]
    Delay {
        /// Its lower end.
        low: Duration,
        /// Its upper end.
        high: Duration,
    },
    /// A burst lasts longer than the time between two.
    #[error(
        "bursts of {length:?} every {every:?} leave no time between them; LENGTH must be shorter than EVERY"
    )]
    Burst {
        /// Its length.
        length: Duration,
        /// The time between two.
        every: Duration,
    },
    /// The world ends at once, or never.
    #[error("a duration of {0:?} is out of range; above zero and up to 24h is possible")]
    Duration(Duration),
    /// A fault begins after the end.
    #[error("{fault} begins after the end of the simulation at {duration:?}; make --duration longer")]
    TooLate {
        /// The fault.
        fault: Box<Fault>,
        /// The end.
        duration: Duration,
    },
    /// A fault does not fit the plan.
    #[error("{fault}: {error}")]
    Fault {
        /// The fault.
        fault: Box<Fault>,
        /// Why it does not.
        error: FaultError,
    },
}

impl Default for NetworkPlan {
    fn default() -> NetworkPlan {
        let delay = Delay::Tail { base: Duration::from_micros(100), mean: Duration::from_micros(50) };
        NetworkPlan { delay, loss: 0.0, burst: None }
    }
}

impl Default for Removal {
    fn default() -> Removal {
        Removal { commit: Duration::from_millis(5) }
    }
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            nodes: 16,
            networks: vec![NetworkPlan::default()],
            settings: Settings::default(),
            faults: Vec::new(),
            duration: Duration::from_secs(15),
            start_within: Duration::ZERO,
            lag: Duration::from_micros(100),
            inbox_max: 500,
            removal: Some(Removal::default()),
            plain: None,
            check: false,
            trace: false,
        }
    }
}

impl Plan {
    /// Refuses what cannot be carried out, with the relation that is broken.
    ///
    /// # Errors
    /// The first that is found.
    pub fn check(&self) -> Result<(), PlanError> {
        if !(2..=NODES_MAX).contains(&self.nodes) {
            return Err(PlanError::Nodes(self.nodes));
        }
        if self.networks.is_empty() || self.networks.len() > usize::from(NETWORKS_MAX) {
            return Err(PlanError::Networks(self.networks.len()));
        }
        if self.duration.is_zero() || self.duration > DURATION_MAX {
            return Err(PlanError::Duration(self.duration));
        }
        self.check_settings()?;
        self.networks.iter().try_for_each(NetworkPlan::check)?;
        for fault in &self.faults {
            if fault.at >= self.duration {
                return Err(PlanError::TooLate { fault: Box::new(fault.clone()), duration: self.duration });
            }
            let fits = fault.check(self.nodes, self.networks.len());
            fits.map_err(|error| PlanError::Fault { fault: Box::new(fault.clone()), error })?;
        }
        Ok(())
    }

    fn check_settings(&self) -> Result<(), PlanError> {
        let (settings, interval) = (&self.settings, self.settings.interval);
        if interval < Duration::from_millis(1) || interval > Duration::from_secs(60) {
            return Err(PlanError::Interval(interval));
        }
        for timeout in [settings.timeout.min].into_iter().chain(self.plain) {
            if timeout <= interval {
                return Err(PlanError::Timeout { interval, timeout });
            }
        }
        let thresholds = settings.thresholds.check(interval);
        thresholds.map_err(|error| PlanError::Thresholds(error.to_string()))?;
        settings.timeout.check().map_err(|error| PlanError::Thresholds(error.to_string()))
    }
}

impl NetworkPlan {
    fn check(&self) -> Result<(), PlanError> {
        if !(0.0..=1.0).contains(&self.loss) {
            return Err(PlanError::Loss(self.loss));
        }
        if let Delay::Uniform { low, high } = self.delay
            && low > high
        {
            return Err(PlanError::Delay { low, high });
        }
        match self.burst {
            Some(Burst { length, every }) if length >= every => Err(PlanError::Burst { length, every }),
            Some(_) | None => Ok(()),
        }
    }
}

impl Delay {
    /// One delay, in nanoseconds.
    pub(super) fn draw(&self, random: &mut Random) -> u64 {
        match *self {
            Delay::Constant(delay) => nanos(delay),
            Delay::Uniform { low, high } => random.between(nanos(low), nanos(high)),
            Delay::Normal { mean, deviation } => bell(nanos(mean), nanos(deviation), random),
            Delay::Tail { base, mean } => nanos(base) + random.around(nanos(mean)),
        }
    }

    /// A delay around `base` whose jitter is `jitter`; none makes it constant.
    #[must_use]
    pub fn normal(base: Duration, jitter: Duration) -> Delay {
        if jitter.is_zero() {
            return Delay::Constant(base);
        }
        Delay::Normal { mean: base, deviation: jitter }
    }
}

/// The sum of four uniform draws is near enough to a bell, and the same on every machine.
fn bell(mean: u64, deviation: u64, random: &mut Random) -> u64 {
    const ONE: u64 = 1 << 20;
    let sum: u64 = (0..4).map(|_| random.below(ONE)).sum();
    // Four uniform draws deviate by the square root of a third of one.
    let spread = u128::from(deviation) * 1_732 / 1_000;
    let offset = u64::try_from(u128::from(sum) * spread / u128::from(ONE)).unwrap_or(u64::MAX);
    let middle = u64::try_from(spread * 2).unwrap_or(u64::MAX);
    mean.saturating_add(offset).saturating_sub(middle)
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl FromStr for Delay {
    type Err = ParseDelayError;

    fn from_str(text: &str) -> Result<Delay, ParseDelayError> {
        let wrong = || ParseDelayError(text.to_owned());
        let part = |part: &str| humantime::parse_duration(part.trim()).map_err(|_| wrong());
        if let Some((low, high)) = text.split_once("..") {
            return Ok(Delay::Uniform { low: part(low)?, high: part(high)? });
        }
        if let Some((mean, deviation)) = text.split_once("+-") {
            return Ok(Delay::Normal { mean: part(mean)?, deviation: part(deviation)? });
        }
        if let Some((base, mean)) = text.split_once('~') {
            return Ok(Delay::Tail { base: part(base)?, mean: part(mean)? });
        }
        part(text).map(Delay::Constant)
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |duration: Duration| humantime::format_duration(duration).to_string().replace(' ', "");
        match *self {
            Delay::Constant(delay) => write!(formatter, "{}", show(delay)),
            Delay::Uniform { low, high } => write!(formatter, "{}..{}", show(low), show(high)),
            Delay::Normal { mean, deviation } => write!(formatter, "{}+-{}", show(mean), show(deviation)),
            Delay::Tail { base, mean } => write!(formatter, "{}~{}", show(base), show(mean)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_read_as_they_are_written() {
        for text in ["1ms", "1ms..5ms", "120ms+-30ms", "100us~50us"] {
            assert_eq!(text.parse::<Delay>().unwrap().to_string(), text);
        }
        assert!("soon".parse::<Delay>().unwrap_err().to_string().contains("1ms..5ms"));
    }

    #[test]
    fn a_bell_has_its_mean_and_its_deviation() {
        let mut random = Random::new(1);
        let draws: Vec<u64> = (0..10_000).map(|_| bell(120_000, 30_000, &mut random)).collect();
        let mean = draws.iter().sum::<u64>() / 10_000;
        let variance = draws.iter().map(|draw| draw.abs_diff(mean).pow(2)).sum::<u64>() / 10_000;
        assert!(mean.abs_diff(120_000) < 1_000, "{mean}");
        assert!(variance.isqrt().abs_diff(30_000) < 1_000, "{}", variance.isqrt());
    }

    #[test]
    fn nonsense_is_refused_with_the_relation_that_is_broken() {
        let plan = |change: &dyn Fn(&mut Plan)| {
            let mut plan = Plan::default();
            change(&mut plan);
            plan.check().map_err(|error| error.to_string()).unwrap_err()
        };
        assert!(plan(&|plan| plan.nodes = 1).contains("between 2 and"));
        assert!(plan(&|plan| plan.networks.clear()).contains("0 networks"));
        assert!(plan(&|plan| plan.networks[0].loss = 1.5).contains("between 0 and 1"));
        assert!(
            plan(&|plan| plan.plain = Some(plan.settings.interval)).contains("shorter than the time-out")
        );
        assert!(plan(&|plan| plan.faults = vec!["crash@1h".parse().unwrap()]).contains("--duration"));
        assert!(plan(&|plan| plan.faults = vec!["crash@1s:99".parse().unwrap()]).contains("node 99"));
    }
}
