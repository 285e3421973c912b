//! A fault: what goes wrong, whom it strikes, when, and for how long; and its short form in words.
//!
//! The short form is `KIND@TIME[:ARG,ARG...]`, where an argument is the number of a node (from 0) or `KEY=VALUE`:
//! `silent@10s`, `stall@5s:3,for=8s`, `cut-link@5s:1,2,network=0`, `split@5s:count=8,for=20s`. A fault that names no
//! nodes strikes as many as its kind needs, drawn from the seed. Read next: `medium`, which carries out those of
//! the networks, and `world`, which carries out those of nodes.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::plan::Delay;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An agent is killed; its machine lives and says so.
    Crash,
    /// A machine dies, and its kernel with it.
    Silent,
    /// An agent is stopped (SIGSTOP); with `for` it goes on afterwards.
    Stall,
    /// An agent stops in order and says goodbye.
    Leave,
    /// An agent is killed and started again after `for`.
    Restart,
    /// A node is cut off from everybody, in both directions.
    Isolate,
    /// A node hears nobody and is heard.
    Deaf,
    /// A node is heard by nobody and hears.
    Mute,
    /// Nothing goes from the first node to the second.
    OneWay,
    /// Nothing goes between two nodes.
    CutLink,
    /// A node is off one network.
    Unplug,
    /// A network carries nothing.
    CutNetwork,
    /// Datagrams are lost: everywhere, to one node, or between two.
    Loss,
    /// Datagrams take longer: everywhere, to one node, or between two.
    Delay,
    /// Agents stop and go on, again and again.
    Stutter,
    /// Some nodes and the rest do not hear each other.
    Split,
}

/// A fault of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What goes wrong.
    pub kind: Kind,
    /// When, from the beginning.
    pub at: Duration,
    /// For how long; for ever when absent.
    pub lasts: Option<Duration>,
    /// Whom it strikes; drawn when empty.
    pub nodes: Vec<usize>,
    /// How many are drawn.
    pub count: Option<usize>,
    /// On which network; all when absent, except that one is drawn for kinds that strike one.
    pub network: Option<usize>,
    /// The share of datagrams that it loses, 0 to 1.
    pub loss: f64,
    /// What it adds to each delay.
    pub delay: Delay,
    /// How long a stutterer stops, and how long it runs in between.
    pub stutter: (Duration, Duration),
}

/// A fault that can't be understood, or does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// There is no such kind.
    #[error("{0:?} is no kind of fault; known are {names}", names = Kind::names().join(", "))]
    Kind(String),
    /// There is no such argument.
    #[error("{0:?} is no argument of a fault; known are node numbers and {names}", names = KEYS.join(", "))]
    Key(String),
    /// The time is missing.
    #[error("{0:?} does not say when; write KIND@TIME, for example \"crash@10s\"")]
    NoTime(String),
    /// A value can't be read.
    #[error("{value:?} is no value of {key}; write for example {key}={example}")]
    Value {
        /// Of which key.
        key: &'static str,
        /// The value.
        value: String,
        /// A right one.
        example: &'static str,
    },
    /// A node that is not there.
    #[error("there is no node {node}; {nodes} nodes are numbered from 0")]
    Node {
        /// Which.
        node: usize,
        /// How many there are.
        nodes: usize,
    },
    /// A network that is not there.
    #[error("there is no network {network}; {networks} networks are numbered from 0")]
    Network {
        /// Which.
        network: usize,
        /// How many there are.
        networks: usize,
    },
    /// Too few or too many nodes.
    #[error("it strikes {found} nodes, and its kind needs {min} to {max}")]
    Count {
        /// How many were given.
        found: usize,
        /// At least so many.
        min: usize,
        /// At most so many.
        max: usize,
    },
    /// It needs to be told how long.
    #[error("it ends at once: give it a time above zero, for example for=500ms")]
    NoLength,
}

/// The arguments that have a name.
const KEYS: [&str; 7] = ["count", "network", "for", "loss", "delay", "on", "off"];

const NAMES: [(Kind, &str); 16] = [
    (Kind::Crash, "crash"),
    (Kind::Silent, "silent"),
    (Kind::Stall, "stall"),
    (Kind::Leave, "leave"),
    (Kind::Restart, "restart"),
    (Kind::Isolate, "isolate"),
    (Kind::Deaf, "deaf"),
    (Kind::Mute, "mute"),
    (Kind::OneWay, "one-way"),
    (Kind::CutLink, "cut-link"),
    (Kind::Unplug, "unplug"),
    (Kind::CutNetwork, "cut-network"),
    (Kind::Loss, "loss"),
    (Kind::Delay, "delay"),
    (Kind::Stutter, "stutter"),
    (Kind::Split, "split"),
];

impl Kind {
    /// Its name in words.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| *name)
    }

    /// Every name.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        NAMES.iter().map(|(_, name)| *name).collect()
    }

    /// The names of the arguments.
    #[must_use]
    pub fn keys() -> &'static [&'static str] {
        &KEYS
    }

    /// How many nodes it strikes at least and at most, of so many, and how many unless told.
    fn strikes(self, nodes: usize) -> (usize, usize, usize) {
        match self {
            Kind::OneWay | Kind::CutLink => (2, 2, 2),
            Kind::CutNetwork => (0, 0, 0),
            Kind::Loss | Kind::Delay => (0, 2, 0),
            Kind::Split => (1, nodes - 1, nodes / 2),
            Kind::Crash
            | Kind::Silent
            | Kind::Stall
            | Kind::Leave
            | Kind::Restart
            | Kind::Isolate
            | Kind::Deaf
            | Kind::Mute
            | Kind::Unplug
            | Kind::Stutter => (1, nodes, 1),
        }
    }
}

impl Fault {
    /// A fault of this kind at this time, with nothing else said.
    #[must_use]
    pub fn new(kind: Kind, at: Duration) -> Fault {
        let lasts = (kind == Kind::Restart).then_some(Duration::from_millis(500));
        let stutter = (Duration::from_millis(600), Duration::from_millis(400));
        Fault {
            kind,
            at,
            lasts,
            nodes: Vec::new(),
            count: None,
            network: None,
            loss: if kind == Kind::Loss { 0.25 } else { 0.0 },
            delay: Delay::Constant(if kind == Kind::Delay {
                Duration::from_millis(100)
            } else {
                Duration::ZERO
            }),
            stutter,
        }
    }

    /// How many nodes are drawn for it, of so many.
    pub(super) fn drawn(&self, nodes: usize) -> usize {
        if self.nodes.is_empty() { self.count.unwrap_or(self.kind.strikes(nodes).2) } else { 0 }
    }

    /// Whether it strikes one network alone although none is named.
    pub(super) fn draws_network(&self) -> bool {
        matches!(self.kind, Kind::CutNetwork | Kind::Unplug) && self.network.is_none()
    }

    pub(super) fn check(&self, nodes: usize, networks: usize) -> Result<(), FaultError> {
        if let Some(node) = self.nodes.iter().find(|node| **node >= nodes) {
            return Err(FaultError::Node { node: *node, nodes });
        }
        if let Some(network) = self.network.filter(|network| *network >= networks) {
            return Err(FaultError::Network { network, networks });
        }
        let (min, max, _) = self.kind.strikes(nodes);
        let distinct = self.nodes.iter().collect::<BTreeSet<_>>().len();
        let found = if self.nodes.is_empty() { self.drawn(nodes) } else { distinct };
        if found < min || found > max {
            return Err(FaultError::Count { found, min, max });
        }
        let (on, off) = self.stutter;
        if self.lasts.is_some_and(|lasts| lasts.is_zero()) || on.is_zero() || off.is_zero() {
            return Err(FaultError::NoLength);
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), FaultError> {
        let wrong = |key, example| FaultError::Value { key, value: value.to_owned(), example };
        let time = |key, example| humantime::parse_duration(value).map_err(|_| wrong(key, example));
        match key {
            "count" => self.count = Some(value.parse().map_err(|_| wrong("count", "4"))?),
            "network" => self.network = Some(value.parse().map_err(|_| wrong("network", "0"))?),
            "for" => self.lasts = Some(time("for", "5s")?),
            "loss" => self.loss = share(value).ok_or_else(|| wrong("loss", "25%"))?,
            "delay" => self.delay = value.parse().map_err(|_| wrong("delay", "120ms+-30ms"))?,
            "on" => self.stutter.1 = time("on", "400ms")?,
            "off" => self.stutter.0 = time("off", "600ms")?,
            _ => return Err(FaultError::Key(key.to_owned())),
        }
        Ok(())
    }
}

/// A share from `25%` or `0.25`.
fn share(text: &str) -> Option<f64> {
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    let share = number.trim().parse::<f64>().ok()? / unit;
    (0.0..=1.0).contains(&share).then_some(share)
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Fault, FaultError> {
        let (head, arguments) = text.split_once(':').map_or((text, ""), |(head, rest)| (head, rest));
        let (name, at) = head.split_once('@').ok_or_else(|| FaultError::NoTime(text.to_owned()))?;
        let kind = NAMES.iter().find(|(_, known)| *known == name.trim()).map(|(kind, _)| *kind);
        let kind = kind.ok_or_else(|| FaultError::Kind(name.to_owned()))?;
        let at = humantime::parse_duration(at.trim()).map_err(|_| FaultError::Value {
            key: "TIME",
            value: at.to_owned(),
            example: "10s",
        })?;
        let mut fault = Fault::new(kind, at);
        for argument in arguments.split(',').map(str::trim).filter(|argument| !argument.is_empty()) {
            match argument.split_once('=') {
                Some((key, value)) => fault.set(key.trim(), value.trim())?,
                None => {
                    fault.nodes.push(argument.parse().map_err(|_| FaultError::Key(argument.to_owned()))?);
                }
            }
        }
        Ok(fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |duration: Duration| humantime::format_duration(duration).to_string().replace(' ', "");
        let usual = Fault::new(self.kind, self.at);
        let mut arguments: Vec<String> = self.nodes.iter().map(ToString::to_string).collect();
        arguments.extend(self.count.map(|count| format!("count={count}")));
        arguments.extend(self.network.map(|network| format!("network={network}")));
        arguments.extend(self.lasts.map(|lasts| format!("for={}", show(lasts))));
        if self.loss != usual.loss {
            arguments.push(format!("loss={}", self.loss));
        }
        if self.delay != usual.delay {
            arguments.push(format!("delay={}", self.delay));
        }
        if self.stutter != usual.stutter {
            arguments.push(format!("off={},on={}", show(self.stutter.0), show(self.stutter.1)));
        }
        write!(formatter, "{}@{}", self.kind.name(), show(self.at))?;
        if arguments.is_empty() { Ok(()) } else { write!(formatter, ":{}", arguments.join(",")) }
    }
}

/// A fault of one world, with all that was drawn for it.
#[derive(Clone, Debug)]
pub(super) struct Struck {
    pub(super) fault: Fault,
    /// Whom it strikes, in the order in which they were named.
    pub(super) order: Vec<usize>,
    pub(super) nodes: BTreeSet<usize>,
    pub(super) network: Option<usize>,
    /// When it began, in nanoseconds; before that it is nothing.
    pub(super) began: Option<u64>,
    pub(super) ended: Option<u64>,
}

impl Struck {
    pub(super) fn is_active(&self) -> bool {
        self.began.is_some() && self.ended.is_none()
    }

    pub(super) fn is_on(&self, network: usize) -> bool {
        self.network.is_none_or(|own| own == network)
    }

    /// Whether `node` is the `place`th that was named.
    pub(super) fn is_nth(&self, place: usize, node: usize) -> bool {
        self.order.get(place) == Some(&node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_as_they_are_written() {
        for text in [
            "silent@10s",
            "stall@5s:3,for=8s",
            "cut-link@5s:1,2,network=0",
            "split@5s:count=8,for=20s",
            "loss@5s:3,loss=0.8",
            "delay@1s:for=1m,delay=120ms+-30ms",
            "stutter@5s:count=4,off=1s,on=300ms",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        let refusal = |text: &str| text.parse::<Fault>().unwrap_err().to_string();
        assert!(refusal("crush@1s").contains("crash"));
        assert!(refusal("crash").contains("crash@10s"));
        assert!(refusal("crash@soon").contains("TIME=10s"));
        assert!(refusal("crash@1s:cuont=3").contains("count"));
        assert!(refusal("loss@1s:loss=130").contains("25%"));
        let fits = |text: &str| text.parse::<Fault>().unwrap().check(4, 2).unwrap_err().to_string();
        assert!(fits("crash@1s:7").contains("node 7"));
        assert!(fits("unplug@1s:network=2").contains("network 2"));
        assert!(fits("cut-link@1s:2").contains("needs 2 to 2"));
        assert!(fits("stall@1s:for=0s").contains("above zero"));
    }
}
