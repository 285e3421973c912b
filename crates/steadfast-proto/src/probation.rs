//! Whether a node may become a member: criteria over what is measured of it (PROTOCOLS 3.4).
//!
//! A candidate stands in the catalog's probation list, holds no duty and counts nowhere. Every member measures it and
//! says what it sees in its heartbeats; from those words and the candidate's own report anybody can evaluate it, and
//! the first in rank proposes what follows: a view with the candidate, or its elimination. Nothing is decided here
//! about duties: [`crate::node`] does.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, NodeId};
use crate::time::Time;

/// How many candidates are evaluated at a time; those with lower ids first.
pub const CANDIDATES_MAX: usize = 4;

/// What a candidate must show. In the order in which one that is late is told what it lacks: who is not heard has not told the
/// rest either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Criterion {
    /// It runs a program that the members understand.
    Version,
    /// It stands in a failure domain of its own.
    Domain,
    /// Every member has heard its heartbeats for long enough.
    Heartbeats,
    /// No member has missed it on any network for long enough.
    Clean,
    /// Its round trips are short enough on every network.
    Delay,
    /// It loses few enough heartbeats on every network.
    Loss,
    /// Its clock is near the others'.
    Clock,
    /// It lends memory enough.
    Memory,
    /// It follows the catalog.
    Lag,
    /// It has taken over the duties of the one that it replaces.
    Duties,
}

/// What a candidate must show, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// For how long every member must have heard it.
    pub seen: Duration,
    /// For how long no member may have missed it on any network.
    pub clean: Duration,
    /// When it is eliminated, counted from when its evaluation began. Of one that waits in readiness, counted from when it
    /// last was ready; of one that is to replace a member, from when that was asked.
    pub deadline: Duration,
    /// The longest round trip that all but one in a hundred may take.
    pub round_trip_max: Duration,
    /// The largest share of heartbeats that a network may lose, in thousandths.
    pub loss_permille_max: u16,
    /// How far its clock may be from the evaluator's.
    pub clock_max: Duration,
    /// The least checkpoint memory it must have free, in bytes.
    pub memory_bytes_min: u64,
    /// Whether no member may share its widest failure domain.
    pub distinct_domain: bool,
    /// How many of the catalog's revisions it may be behind.
    pub lag_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            seen: Duration::from_secs(3),
            clean: Duration::from_secs(10),
            deadline: Duration::from_secs(600),
            round_trip_max: Duration::from_millis(500),
            loss_permille_max: 50,
            clock_max: Duration::from_secs(5),
            memory_bytes_min: 0,
            distinct_domain: false,
            lag_max: 1_000,
        }
    }
}

/// Settings that no candidate could meet, or that mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    /// The deadline comes before what must be shown until then.
    #[error(
        "probation.deadline must be longer than probation.seen and probation.clean: a candidate could never pass"
    )]
    Deadline,
    /// A share of more than everything.
    #[error("probation.loss must be less than 1")]
    Loss,
}

impl Settings {
    /// Refuses settings that no candidate could meet.
    ///
    /// # Errors
    /// The relation that is broken.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        if self.deadline <= self.seen.max(self.clean) {
            return Err(InvalidSettings::Deadline);
        }
        if self.loss_permille_max >= 1_000 {
            return Err(InvalidSettings::Loss);
        }
        Ok(())
    }
}

/// What one member sees of a candidate; it travels in the member's heartbeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// The incarnation that it sees.
    pub incarnation: Incarnation,
    /// For how long it has heard it without a break, in milliseconds.
    pub heard_ms: u32,
    /// For how long it has missed it on no network, in milliseconds.
    pub clean_ms: u32,
    /// The round trip that one in a hundred exceeds, on the worst network, in microseconds.
    pub round_trip_us: u32,
    /// The share of heartbeats lost on the worst network, in thousandths.
    pub loss_permille: u16,
}

/// What a candidate says of itself; it travels in its heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The time by its clock, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The newest revision of the catalog that it has been handed.
    pub revision: u64,
}

/// Everything that an evaluation looks at.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The candidate's incarnation by its row.
    pub incarnation: Incarnation,
    /// What each member said last; those that said nothing too.
    pub sightings: BTreeMap<NodeId, Option<Sighting>>,
    /// The program's version here and there.
    pub versions: (&'a str, &'a str),
    /// How far its clock is from this node's, as far as a datagram's way lets it tell.
    pub clock_off: Option<Duration>,
    /// The checkpoint memory that it has free, in bytes.
    pub free_bytes: Option<u64>,
    /// What it must have free beside [`Settings::memory_bytes_min`]: what the one that it replaces holds.
    pub footprint_bytes: u64,
    /// The members that share its widest failure domain, but for the one that it replaces.
    pub neighbours: Vec<NodeId>,
    /// How many revisions it is behind; `None` before its first word.
    pub lag: Option<u64>,
    /// How many duties of the one that it replaces it has not taken over yet.
    pub duties_left: usize,
}

/// How a criterion stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is met.
    Pass,
    /// It may still be met.
    Pending,
    /// It is not met and will not be.
    Fail,
}

/// What was found about one criterion, in words too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Which.
    pub criterion: Criterion,
    /// How it stands.
    pub standing: Standing,
    /// What was measured, and what is asked for.
    pub measured: String,
}

/// What follows from all evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Some criteria may still be met.
    Pending,
    /// All are met.
    Ready,
    /// One is not met, or was not in time: which, and what was measured.
    Eliminated(Criterion, String),
}

impl Criterion {
    /// Its name for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Criterion::Version => "version",
            Criterion::Clock => "clock",
            Criterion::Memory => "memory",
            Criterion::Domain => "domain",
            Criterion::Heartbeats => "heartbeats",
            Criterion::Clean => "clean period",
            Criterion::Delay => "delay",
            Criterion::Loss => "loss",
            Criterion::Lag => "catalog",
            Criterion::Duties => "duties",
        }
    }

    /// What whoever runs the candidate can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Criterion::Version => "install the members' version on it and start its agent again",
            Criterion::Clock => "set its clock (NTP) and start its agent again",
            Criterion::Memory => "give it more `checkpoint.memory` and start its agent again",
            Criterion::Domain => "put it in another failure domain (`node.domain`) and start its agent again",
            Criterion::Heartbeats => {
                "see `steadfast links` for who can't hear it; mend that and start its agent again"
            }
            Criterion::Clean => {
                "see `steadfast links` for where it is missed; mend that network and start its agent again"
            }
            Criterion::Delay | Criterion::Loss => {
                "see `steadfast links` for the network; mend it, or move the limit in [probation]"
            }
            Criterion::Lag => "see its log for why it can't follow the catalog, and start its agent again",
            Criterion::Duties => "see `steadfast checkpoints` for what it could not take over",
        }
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How every criterion stands, in the order of [`Criterion`].
pub fn evaluate(settings: &Settings, context: &Context<'_>) -> Vec<Evidence> {
    let sightings = Sightings::of(context);
    vec![
        version(context),
        domain(settings, context),
        sightings.lasting(Criterion::Heartbeats, settings.seen, |sighting| sighting.heard_ms),
        sightings.lasting(Criterion::Clean, settings.clean, |sighting| sighting.clean_ms),
        sightings.delay(settings),
        sightings.loss(settings),
        clock(settings, context),
        memory(settings, context),
        lag(settings, context),
        duties(context),
    ]
}

/// What follows from `evidence`.
///
/// `asked_for` is how long it has been asked for what `evidence` tells of; [`Settings::deadline`] bounds it.
pub fn conclude(settings: &Settings, asked_for: Duration, evidence: &[Evidence]) -> Finding {
    let first = |wanted: Standing| evidence.iter().find(|one| one.standing == wanted);
    if let Some(failed) = first(Standing::Fail) {
        return Finding::Eliminated(failed.criterion, failed.measured.clone());
    }
    match first(Standing::Pending) {
        None => Finding::Ready,
        Some(late) if asked_for >= settings.deadline => {
            let measured = format!("{}, and {} were given for it", late.measured, seconds(settings.deadline));
            Finding::Eliminated(late.criterion, measured)
        }
        Some(_) => Finding::Pending,
    }
}

fn evidence(criterion: Criterion, standing: Standing, measured: String) -> Evidence {
    Evidence { criterion, standing, measured }
}

fn version(context: &Context<'_>) -> Evidence {
    let (own, candidate) = context.versions;
    // Of versions below 1.0 the second number says whether two understand one another.
    let series = |version: &str| -> Option<(u64, u64)> {
        let mut parts = version.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    };
    let is_one = |(a, b): ((u64, u64), (u64, u64))| a.0 == b.0 && (a.0 > 0 || a.1 == b.1);
    let standing = match series(own).zip(series(candidate)) {
        Some(both) if is_one(both) => Standing::Pass,
        Some(_) | None => Standing::Fail,
    };
    evidence(Criterion::Version, standing, format!("it runs {candidate:?}, the members run {own:?}"))
}

fn clock(settings: &Settings, context: &Context<'_>) -> Evidence {
    let Some(off) = context.clock_off else {
        return evidence(Criterion::Clock, Standing::Pending, "it has not told the time yet".to_owned());
    };
    let standing = if off <= settings.clock_max { Standing::Pass } else { Standing::Fail };
    let measured = format!("its clock is {} off; {} are allowed", seconds(off), seconds(settings.clock_max));
    evidence(Criterion::Clock, standing, measured)
}

fn memory(settings: &Settings, context: &Context<'_>) -> Evidence {
    let needed = settings.memory_bytes_min.saturating_add(context.footprint_bytes);
    let Some(free) = context.free_bytes else {
        return evidence(
            Criterion::Memory,
            Standing::Pending,
            "it has not told its free memory yet".to_owned(),
        );
    };
    let standing = if free >= needed { Standing::Pass } else { Standing::Fail };
    let measured =
        format!("{} of checkpoint memory are free, {} are needed", mebibytes(free), mebibytes(needed));
    evidence(Criterion::Memory, standing, measured)
}

fn domain(settings: &Settings, context: &Context<'_>) -> Evidence {
    let shared = context.neighbours.len();
    let (standing, measured) = match (settings.distinct_domain, shared) {
        (_, 0) => (Standing::Pass, "no member shares its widest failure domain".to_owned()),
        (false, _) => (Standing::Pass, format!("{shared} members share its widest failure domain; any may")),
        (true, _) => (Standing::Fail, format!("{shared} members share its widest failure domain; none may")),
    };
    evidence(Criterion::Domain, standing, measured)
}

fn lag(settings: &Settings, context: &Context<'_>) -> Evidence {
    let Some(lag) = context.lag else {
        return evidence(Criterion::Lag, Standing::Pending, "it has not told how far it is yet".to_owned());
    };
    let standing = if lag <= settings.lag_max { Standing::Pass } else { Standing::Pending };
    let measured = format!("it is {lag} changes of the catalog behind; {} are allowed", settings.lag_max);
    evidence(Criterion::Lag, standing, measured)
}

fn duties(context: &Context<'_>) -> Evidence {
    let (standing, measured) = match context.duties_left {
        0 => (Standing::Pass, "there is none left to take over".to_owned()),
        left => (Standing::Pending, format!("{left} copies are still to be made on it")),
    };
    evidence(Criterion::Duties, standing, measured)
}

/// What the members see, and who of them does not yet.
struct Sightings {
    seen: Vec<(NodeId, Sighting)>,
    unseen: Option<NodeId>,
}

impl Sightings {
    fn of(context: &Context<'_>) -> Sightings {
        let is_current = |sighting: &Sighting| sighting.incarnation == context.incarnation;
        let (mut seen, mut unseen) = (Vec::new(), None);
        for (member, sighting) in &context.sightings {
            match sighting.filter(is_current) {
                Some(sighting) => seen.push((*member, sighting)),
                None => unseen = unseen.or(Some(*member)),
            }
        }
        Sightings { seen, unseen }
    }

    /// A time that every member must have seen.
    fn lasting(&self, criterion: Criterion, needed: Duration, of: impl Fn(&Sighting) -> u32) -> Evidence {
        if let Some(member) = self.unseen {
            return evidence(criterion, Standing::Pending, format!("member {member} does not hear it"));
        }
        let least = self.seen.iter().map(|(member, sighting)| (of(sighting), *member)).min();
        let Some((ms, member)) = least else {
            return evidence(criterion, Standing::Pending, "there is no member to hear it".to_owned());
        };
        let lasted = Duration::from_millis(u64::from(ms));
        let standing = if lasted >= needed { Standing::Pass } else { Standing::Pending };
        let measured = format!("for {} by member {member}; {} are needed", seconds(lasted), seconds(needed));
        evidence(criterion, standing, measured)
    }

    fn delay(&self, settings: &Settings) -> Evidence {
        let worst = self.seen.iter().map(|(member, sighting)| (sighting.round_trip_us, *member)).max();
        let Some((us, member)) = worst.filter(|_| self.unseen.is_none()) else {
            return evidence(
                Criterion::Delay,
                Standing::Pending,
                "not every member has measured it".to_owned(),
            );
        };
        let round_trip = Duration::from_micros(u64::from(us));
        let is_short = round_trip <= settings.round_trip_max;
        let measured = format!(
            "round trips of {} to member {member}; {} are allowed",
            milliseconds(round_trip),
            milliseconds(settings.round_trip_max)
        );
        evidence(Criterion::Delay, if is_short { Standing::Pass } else { Standing::Pending }, measured)
    }

    fn loss(&self, settings: &Settings) -> Evidence {
        let worst = self.seen.iter().map(|(member, sighting)| (sighting.loss_permille, *member)).max();
        let Some((permille, member)) = worst.filter(|_| self.unseen.is_none()) else {
            return evidence(
                Criterion::Loss,
                Standing::Pending,
                "not every member has measured it".to_owned(),
            );
        };
        let is_low = permille <= settings.loss_permille_max;
        let percent = |permille: u16| format!("{}.{} %", permille / 10, permille % 10);
        let measured = format!(
            "{} of its heartbeats to member {member} are lost; {} are allowed",
            percent(permille),
            percent(settings.loss_permille_max)
        );
        evidence(Criterion::Loss, if is_low { Standing::Pass } else { Standing::Pending }, measured)
    }
}

fn seconds(duration: Duration) -> String {
    format!("{}.{} s", duration.as_secs(), duration.subsec_millis() / 100)
}

fn milliseconds(duration: Duration) -> String {
    format!("{}.{} ms", duration.as_millis(), duration.subsec_micros() % 1_000 / 100)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// What this node measures of one candidate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    incarnation: Incarnation,
    heard_since: Option<Time>,
    clean_since: Option<Time>,
    round_trip: Duration,
    loss_permille: u16,
}

/// One look at a candidate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) incarnation: Incarnation,
    /// Whether it is heard on some network.
    pub(crate) is_heard: bool,
    /// Whether it carries on every network.
    pub(crate) is_clean: bool,
    /// The round trip that one in a hundred exceeds, on the worst network.
    pub(crate) round_trip: Duration,
    /// The loss on the worst network, in thousandths.
    pub(crate) loss_permille: u16,
}

impl Watch {
    pub(crate) fn new(incarnation: Incarnation) -> Watch {
        Watch {
            incarnation,
            heard_since: None,
            clean_since: None,
            round_trip: Duration::ZERO,
            loss_permille: 0,
        }
    }

    pub(crate) fn look(&mut self, now: Time, look: Look) {
        if look.incarnation != self.incarnation {
            *self = Watch::new(look.incarnation);
        }
        let lasts = |is: bool, since: Option<Time>| is.then(|| since.unwrap_or(now));
        self.heard_since = lasts(look.is_heard, self.heard_since);
        self.clean_since = lasts(look.is_heard && look.is_clean, self.clean_since);
        self.round_trip = look.round_trip;
        self.loss_permille = look.loss_permille;
    }

    pub(crate) fn sighting(&self, now: Time) -> Sighting {
        let ms = |since: Option<Time>| {
            since.map_or(0, |since| u32::try_from(now.since(since).as_millis()).unwrap_or(u32::MAX))
        };
        Sighting {
            incarnation: self.incarnation,
            heard_ms: ms(self.heard_since),
            clean_ms: ms(self.clean_since),
            round_trip_us: u32::try_from(self.round_trip.as_micros()).unwrap_or(u32::MAX),
            loss_permille: self.loss_permille,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Sighting = Sighting {
        incarnation: Incarnation(3),
        heard_ms: 20_000,
        clean_ms: 20_000,
        round_trip_us: 300,
        loss_permille: 0,
    };

    fn context() -> Context<'static> {
        Context {
            incarnation: Incarnation(3),
            sightings: [1, 2, 3].map(|node| (NodeId(node), Some(GOOD))).into(),
            versions: ("0.1.0", "0.1.7"),
            clock_off: Some(Duration::from_millis(3)),
            free_bytes: Some(1 << 30),
            footprint_bytes: 1 << 20,
            neighbours: Vec::new(),
            lag: Some(2),
            duties_left: 0,
        }
    }

    /// Just after the start.
    fn finding(settings: &Settings, context: &Context<'_>) -> Finding {
        conclude(settings, Duration::ZERO, &evaluate(settings, context))
    }

    fn last_finding(settings: &Settings, context: &Context<'_>) -> Finding {
        conclude(settings, settings.deadline, &evaluate(settings, context))
    }

    #[test]
    fn all_criteria_met_is_ready_and_they_stand_in_their_order() {
        let settings = Settings::default();
        assert_eq!(finding(&settings, &context()), Finding::Ready);
        let order: Vec<Criterion> =
            evaluate(&settings, &context()).into_iter().map(|one| one.criterion).collect();
        assert!(order.is_sorted() && order.len() == 10, "{order:?}");
    }

    /// A context in which exactly `criterion` is not met.
    fn lacking(criterion: Criterion) -> (Settings, Context<'static>) {
        let (mut settings, mut context) = (Settings::default(), context());
        let worse = |change: fn(&mut Sighting)| {
            let mut sighting = GOOD;
            change(&mut sighting);
            Some(sighting)
        };
        match criterion {
            Criterion::Version => context.versions = ("0.1.0", "0.2.0"),
            Criterion::Clock => context.clock_off = Some(Duration::from_secs(6)),
            Criterion::Memory => context.free_bytes = Some((1 << 20) - 1),
            Criterion::Domain => {
                settings.distinct_domain = true;
                context.neighbours = vec![NodeId(2)];
            }
            Criterion::Heartbeats => {
                context.sightings.insert(NodeId(2), worse(|sighting| sighting.heard_ms = 2_999));
            }
            Criterion::Clean => {
                context.sightings.insert(NodeId(2), worse(|sighting| sighting.clean_ms = 9_999));
            }
            Criterion::Delay => {
                context.sightings.insert(NodeId(2), worse(|sighting| sighting.round_trip_us = 500_001));
            }
            Criterion::Loss => {
                context.sightings.insert(NodeId(2), worse(|sighting| sighting.loss_permille = 51));
            }
            Criterion::Lag => context.lag = Some(1_001),
            Criterion::Duties => context.duties_left = 1,
        }
        (settings, context)
    }

    #[test]
    fn each_criterion_alone_eliminates_for_exactly_that_reason() {
        let (settings, base) = (Settings::default(), context());
        for one in evaluate(&settings, &base) {
            let (settings, context) = lacking(one.criterion);
            let Finding::Eliminated(criterion, measured) = last_finding(&settings, &context) else {
                panic!("{} was not asked for", one.criterion)
            };
            assert_eq!(criterion, one.criterion, "{measured}");
            assert!(!criterion.advice().is_empty() && !measured.is_empty());
        }
    }

    #[test]
    fn what_time_may_mend_waits_for_the_deadline_and_what_it_may_not_fails_at_once() {
        use Criterion::{Clean, Delay, Duties, Heartbeats, Lag, Loss};
        for one in evaluate(&Settings::default(), &context()) {
            let (settings, context) = lacking(one.criterion);
            let waits = [Heartbeats, Clean, Delay, Loss, Lag, Duties].contains(&one.criterion);
            let found = finding(&settings, &context);
            assert_eq!(found == Finding::Pending, waits, "{} {found:?}", one.criterion);
        }
    }

    #[test]
    fn a_member_that_sees_another_incarnation_or_nothing_keeps_it_waiting() {
        let settings = Settings::default();
        for sighting in [None, Some(Sighting { incarnation: Incarnation(2), ..GOOD })] {
            let mut context = context();
            context.sightings.insert(NodeId(9), sighting);
            assert_eq!(finding(&settings, &context), Finding::Pending);
            let found = last_finding(&settings, &context);
            assert!(matches!(found, Finding::Eliminated(Criterion::Heartbeats, _)), "{found:?}");
        }
    }

    #[test]
    fn a_break_starts_the_times_again_and_so_does_a_new_incarnation() {
        let at = |ms: u64| Time::from_nanos(ms * 1_000_000);
        let look = |is_heard, is_clean| Look {
            incarnation: Incarnation(1),
            is_heard,
            is_clean,
            round_trip: Duration::from_micros(200),
            loss_permille: 3,
        };
        let mut watch = Watch::new(Incarnation(1));
        watch.look(at(0), look(true, true));
        watch.look(at(900), look(true, false));
        watch.look(at(1_000), look(true, true));
        let sighting = watch.sighting(at(1_500));
        assert_eq!((sighting.heard_ms, sighting.clean_ms), (1_500, 500));
        watch.look(at(1_600), look(false, true));
        watch.look(at(1_700), look(true, true));
        assert_eq!(watch.sighting(at(1_800)).heard_ms, 100);
        watch.look(at(1_900), Look { incarnation: Incarnation(2), ..look(true, true) });
        let sighting = watch.sighting(at(2_000));
        assert_eq!((sighting.incarnation, sighting.heard_ms), (Incarnation(2), 100));
    }

    #[test]
    fn settings_that_nobody_could_meet_are_refused() {
        assert_eq!(Settings::default().check(), Ok(()));
        let short = Settings { deadline: Duration::from_secs(10), ..Settings::default() };
        assert_eq!(short.check(), Err(InvalidSettings::Deadline));
        let all = Settings { loss_permille_max: 1_000, ..Settings::default() };
        assert_eq!(all.check(), Err(InvalidSettings::Loss));
    }
}
