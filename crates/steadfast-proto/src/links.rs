//! The database of this node's links, and who is told of their changes (PROTOCOLS 4.6).
//!
//! One row per (peer, network) and one per peer in general, each with the generation of its last change. Whoever
//! remembers a generation learns what changed since, so a reader that stalls costs nothing while it does: changes of
//! one row coalesce into its last, and the last is never lost. It decides nothing about a link: that is
//! [`crate::detect`]'s. It removes nobody and forms no verdict.
//!
//! ```
//! use std::collections::{BTreeMap, BTreeSet};
//! use std::time::Duration;
//! use steadfast_proto::detect::Link;
//! use steadfast_proto::ids::{NetworkId, NodeId};
//! use steadfast_proto::links::{Interest, Links, Seen};
//! use steadfast_proto::time::Time;
//! use steadfast_proto::wire::LinkState;
//!
//! let link = |state| Link {
//!     state,
//!     since: Time::ZERO,
//!     heard_at: Time::ZERO,
//!     round_trip: Some(Duration::from_micros(300)),
//!     deviation: Duration::from_micros(20),
//!     loss_permille: 0,
//! };
//! let seen = |state| Seen {
//!     networks: vec![NetworkId(0)],
//!     peers: BTreeMap::from([(NodeId(2), BTreeMap::from([(NetworkId(0), link(state))]))]),
//!     unplugged: BTreeSet::new(),
//! };
//! let mut links = Links::new(0);
//! let id = links.register(Interest::default()).unwrap();
//! links.update(Time::from_nanos(1), &seen(LinkState::Up));
//! let snapshot = links.take(id).unwrap();
//! assert!(snapshot.whole);
//! links.update(Time::from_nanos(2), &seen(LinkState::Deaf));
//! let report = links.take(id).unwrap();
//! assert_eq!(report.changes[0].from, Some(LinkState::Up));
//! assert_eq!(report.changes[0].row.state, LinkState::Deaf);
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::detect::Link;
use crate::flaw::{Flaw, is_planted};
use crate::ids::{NetworkId, NodeId};
use crate::time::Time;
use crate::wire::LinkState;

/// How many registrations a node holds at most.
pub const REGISTRATIONS_MAX: usize = 1_024;

/// How many rows of peers that are gone are kept for those who have not been told yet; whoever is further behind is
/// given the whole again.
pub const GONE_MAX: usize = 256;

/// A change of loss smaller than this is no news, in thousandths.
const LOSS_STEP_PERMILLE: u16 = 10;

/// A change of delay smaller than this, or than a quarter of what it was, is no news.
const DELAY_STEP: Duration = Duration::from_millis(1);

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The other end.
    pub peer: NodeId,
    /// The network; `None` is the peer in general, over whichever network.
    pub network: Option<NetworkId>,
}

/// How well a link carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quality {
    /// The mean round trip, once one was measured.
    pub round_trip: Option<Duration>,
    /// How much round trips deviate from it.
    pub deviation: Duration,
    /// The share of heartbeats that were lost lately, in thousandths.
    pub loss_permille: u16,
}

/// Why a link does what it does, where that is known beside the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// This node's own interface has no carrier or no address.
    LocalInterface,
    /// Heartbeats are not exchanged with the peer any more: it is no member, or not watched from here.
    NotWatched,
}

/// One row of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What the link does.
    pub state: LinkState,
    /// Since when.
    pub since: Time,
    /// Why, where that is known.
    pub cause: Option<Cause>,
    /// When something last came on it.
    pub heard_at: Option<Time>,
    /// How well it carries; of a peer in general, over the network that does best.
    pub quality: Quality,
    /// The generation of the last change of state.
    pub state_generation: u64,
    /// The generation of the last change of quality that is worth telling.
    pub quality_generation: u64,
    /// The quality as of that change.
    noted: Quality,
    /// How often the state changed.
    turns: u64,
}

/// What a node sees of its links at one moment.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Every network of this node.
    pub networks: Vec<NetworkId>,
    /// Every peer with which heartbeats are exchanged, and its link on each network on which it was ever heard.
    pub peers: BTreeMap<NodeId, BTreeMap<NetworkId, Link>>,
    /// Networks whose interface here is down.
    pub unplugged: BTreeSet<NetworkId>,
}

/// Which rows of a peer are of interest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// The link on one network.
    Network(NetworkId),
    /// The peer in general.
    General,
    /// All of them.
    #[default]
    Any,
}

/// Which changes are of interest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conditions {
    /// Another state.
    State,
    /// A quality that differs noticeably.
    Quality,
    /// Both.
    #[default]
    Any,
}

/// What somebody wants to hear of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Which peer; all when absent.
    pub peer: Option<NodeId>,
    /// Which rows.
    pub scope: Scope,
    /// Which changes.
    pub conditions: Conditions,
}

/// Names a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegistrationId(pub u64);

/// One row that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Of what.
    pub place: Place,
    /// The state that was told last; `None` when none was.
    pub from: Option<LinkState>,
    /// The row now.
    pub row: Row,
    /// The generation of the change.
    pub generation: u64,
    /// How many changes of state before this one were left out because nobody took them in time.
    pub coalesced: u64,
}

/// What there is to tell somebody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Up to which generation this tells; the place to go on from.
    pub generation: u64,
    /// Whether this is every row of interest, and not only those that changed.
    pub whole: bool,
    /// The rows, by rising generation.
    pub changes: Vec<Change>,
}

/// Why nobody more can register; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{REGISTRATIONS_MAX} registrations for changes of links are open, and no more are possible; close one"
)]
pub struct TooManyRegistrations;

#[derive(Clone, Debug)]
struct Registration {
    interest: Interest,
    /// Up to which generation it was told; `None` before its first report.
    told: Option<u64>,
    /// The state of each row as it was told last, and how often it had changed by then.
    states: BTreeMap<Place, (LinkState, u64)>,
}

/// The links of one node, and who wants to hear of them.
#[derive(Clone, Debug)]
pub struct Links {
    rows: BTreeMap<Place, Row>,
    generation: u64,
    /// Whoever was told less than this can't be told what changed since.
    horizon: u64,
    registrations: BTreeMap<RegistrationId, Registration>,
    next_registration: u64,
}

impl Links {
    /// An empty database whose generations rise from `generation`, which must be beyond those of earlier starts.
    #[must_use]
    pub fn new(generation: u64) -> Links {
        Links {
            rows: BTreeMap::new(),
            generation,
            horizon: generation,
            registrations: BTreeMap::new(),
            next_registration: 1,
        }
    }

    /// Takes over what is seen at `now`, and says whether there is something to tell.
    pub fn update(&mut self, now: Time, seen: &Seen) -> bool {
        let before = self.generation;
        for (peer, known) in &seen.peers {
            let mut best: Option<Row> = None;
            for network in &seen.networks {
                let place = Place { peer: *peer, network: Some(*network) };
                let row = match known.get(network) {
                    Some(link) => Row::of(link, seen.unplugged.contains(network)),
                    None => self.never_heard(now, place),
                };
                self.put(place, row);
                if best.is_none_or(|best| row.is_better_than(&best)) {
                    best = Some(row);
                }
            }
            self.put_general(now, *peer, best);
        }
        self.forget(now, seen);
        self.generation > before
    }

    /// Every row, of links and of peers in general; those of peers that are gone are left out.
    pub fn rows(&self) -> impl Iterator<Item = (Place, &Row)> {
        self.rows.iter().filter(|(_, row)| !row.is_gone()).map(|(place, row)| (*place, row))
    }

    /// The row of one link, or of a peer in general.
    #[must_use]
    pub fn row(&self, place: Place) -> Option<&Row> {
        self.rows.get(&place).filter(|row| !row.is_gone())
    }

    /// The generation of the last change of anything.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What changed since `generation`, or everything when that is not known any more.
    #[must_use]
    pub fn since(&self, interest: &Interest, generation: Option<u64>) -> Report {
        let known = generation.filter(|told| (self.horizon..=self.generation).contains(told));
        let mut changes: Vec<Change> = (self.rows.iter())
            .filter(|(place, row)| interest.covers(**place) && (known.is_some() || !row.is_gone()))
            .map(|(place, row)| {
                let generation = row.generation(interest.conditions);
                Change { place: *place, from: None, row: *row, generation, coalesced: 0 }
            })
            .filter(|change| known.is_none_or(|told| change.generation > told))
            .collect();
        changes.sort_by_key(|change| change.generation);
        Report { generation: self.generation, whole: known.is_none(), changes }
    }

    /// Begins to keep somebody told. The first report is the whole, so nothing falls between asking and registering.
    ///
    /// # Errors
    /// When [`REGISTRATIONS_MAX`] are open.
    pub fn register(&mut self, interest: Interest) -> Result<RegistrationId, TooManyRegistrations> {
        self.register_from(interest, None)
    }

    /// The same for somebody who was told up to `generation` before, and goes on from there.
    ///
    /// # Errors
    /// When [`REGISTRATIONS_MAX`] are open.
    pub fn register_from(
        &mut self,
        interest: Interest,
        generation: Option<u64>,
    ) -> Result<RegistrationId, TooManyRegistrations> {
        if self.registrations.len() >= REGISTRATIONS_MAX {
            return Err(TooManyRegistrations);
        }
        let id = RegistrationId(self.next_registration);
        self.next_registration += 1;
        self.registrations.insert(id, Registration { interest, told: generation, states: BTreeMap::new() });
        Ok(id)
    }

    /// What there is to tell a registration since it was told last; `None` when there is no such registration. An
    /// empty report that is not whole says that nothing changed.
    pub fn take(&mut self, id: RegistrationId) -> Option<Report> {
        let registration = self.registrations.get(&id)?;
        let mut report = self.since(&registration.interest, registration.told);
        let rows = &self.rows;
        let registration = self.registrations.get_mut(&id)?;
        if report.whole {
            registration.states.clear();
        }
        for change in &mut report.changes {
            let told = (change.row.state, change.row.turns);
            if let Some((state, turns)) = registration.states.insert(change.place, told) {
                change.from = Some(state);
                change.coalesced = change.row.turns.saturating_sub(turns).saturating_sub(1);
            }
        }
        registration.states.retain(|place, _| rows.contains_key(place));
        registration.told = Some(report.generation);
        Some(report)
    }

    /// Ends a registration.
    pub fn deregister(&mut self, id: RegistrationId) {
        self.registrations.remove(&id);
    }

    /// How many registrations are open.
    #[must_use]
    pub fn registrations(&self) -> usize {
        self.registrations.len()
    }

    fn never_heard(&self, now: Time, place: Place) -> Row {
        let known = self.rows.get(&place).filter(|row| row.state == LinkState::Unknown && !row.is_gone());
        known.copied().unwrap_or_else(|| Row::unknown(now))
    }

    fn put_general(&mut self, now: Time, peer: NodeId, best: Option<Row>) {
        let Some(best) = best else { return };
        let place = Place { peer, network: None };
        let state = general(best.state);
        let known = self.rows.get(&place).filter(|row| row.state == state && !row.is_gone());
        let since = known.map_or(now, |row| row.since);
        let cause = best.cause.filter(|_| state == LinkState::Down);
        self.put(place, Row { state, since, cause, ..best });
    }

    /// Writes a row and gives it a generation if it differs from what was there.
    fn put(&mut self, place: Place, mut row: Row) {
        let Some(old) = self.rows.get(&place) else {
            self.generation += 1;
            (row.state_generation, row.quality_generation) = (self.generation, self.generation);
            self.rows.insert(place, Row { noted: row.quality, turns: 1, ..row });
            return;
        };
        let turned = (old.state, old.since, old.cause) != (row.state, row.since, row.cause);
        let is_news = old.noted.differs(&row.quality);
        self.generation += u64::from(turned || is_news);
        row.state_generation = if turned { self.generation } else { old.state_generation };
        row.quality_generation = if is_news { self.generation } else { old.quality_generation };
        row.turns = old.turns + u64::from(turned);
        row.noted = if is_news { row.quality } else { old.noted };
        self.rows.insert(place, row);
    }

    /// Marks the rows of peers and networks that are not there any more, and drops the oldest of those so marked.
    fn forget(&mut self, now: Time, seen: &Seen) {
        let is_seen = |place: &Place| {
            seen.peers.contains_key(&place.peer)
                && place.network.is_none_or(|network| seen.networks.contains(&network))
        };
        let lost = self.rows.iter().filter(|(place, row)| !is_seen(place) && !row.is_gone());
        let lost: Vec<Place> = lost.map(|(place, _)| *place).collect();
        for place in lost {
            self.put(place, Row { cause: Some(Cause::NotWatched), ..Row::unknown(now) });
        }
        let gone = self.rows.iter().filter(|(_, row)| row.is_gone());
        let mut gone: Vec<(u64, Place)> = gone.map(|(place, row)| (row.state_generation, *place)).collect();
        gone.sort_unstable();
        let surplus = gone.len().saturating_sub(GONE_MAX);
        for (generation, place) in gone.into_iter().take(surplus) {
            self.rows.remove(&place);
            self.horizon = self.horizon.max(generation);
        }
    }
}

impl Interest {
    /// Whether a row is of interest.
    #[must_use]
    pub fn covers(&self, place: Place) -> bool {
        let is_in_scope = match self.scope {
            Scope::Network(network) => place.network == Some(network),
            Scope::General => place.network.is_none(),
            Scope::Any => true,
        };
        is_in_scope && self.peer.is_none_or(|peer| peer == place.peer)
    }
}

impl Quality {
    /// Whether `other` differs by more than the noise of one measurement.
    fn differs(&self, other: &Quality) -> bool {
        let differ = |a: Duration, b: Duration| a.abs_diff(b) >= DELAY_STEP.max(a / 4);
        let round_trip = match (self.round_trip, other.round_trip) {
            (Some(a), Some(b)) => differ(a, b),
            (a, b) => a != b,
        };
        round_trip
            || differ(self.deviation, other.deviation)
            || self.loss_permille.abs_diff(other.loss_permille) >= LOSS_STEP_PERMILLE
    }
}

impl Row {
    fn of(link: &Link, unplugged: bool) -> Row {
        let is_one_sided = is_planted(Flaw::ReceiveOnlyUp) && link.state == LinkState::Deaf;
        let state = if is_one_sided { LinkState::Up } else { link.state };
        let is_unplugged = unplugged && !state.carries();
        let quality = Quality {
            round_trip: link.round_trip,
            deviation: link.deviation,
            loss_permille: link.loss_permille,
        };
        Row {
            state: if is_unplugged { LinkState::Down } else { state },
            since: link.since,
            cause: is_unplugged.then_some(Cause::LocalInterface),
            heard_at: Some(link.heard_at),
            quality,
            ..Row::unknown(link.since)
        }
    }

    fn unknown(since: Time) -> Row {
        Row {
            state: LinkState::Unknown,
            since,
            cause: None,
            heard_at: None,
            quality: Quality::default(),
            state_generation: 0,
            quality_generation: 0,
            noted: Quality::default(),
            turns: 0,
        }
    }

    /// The generation of the last change that `conditions` ask for.
    #[must_use]
    pub fn generation(&self, conditions: Conditions) -> u64 {
        match conditions {
            Conditions::State => self.state_generation,
            Conditions::Quality => self.quality_generation,
            Conditions::Any => self.state_generation.max(self.quality_generation),
        }
    }

    fn is_gone(&self) -> bool {
        self.cause == Some(Cause::NotWatched)
    }

    fn is_better_than(&self, other: &Row) -> bool {
        let rank = |row: &Row| {
            let state = match row.state {
                LinkState::Up => 0,
                LinkState::Degraded => 1,
                LinkState::Deaf | LinkState::Mute | LinkState::Down => 2,
                LinkState::Unknown => 3,
            };
            (state, row.quality.loss_permille, row.quality.round_trip.unwrap_or(Duration::MAX))
        };
        rank(self) < rank(other)
    }
}

/// What a peer's best link makes of the peer in general: a link that carries one way is no way to talk to it.
fn general(best: LinkState) -> LinkState {
    match best {
        LinkState::Up | LinkState::Degraded | LinkState::Unknown => best,
        LinkState::Deaf | LinkState::Mute | LinkState::Down => LinkState::Down,
    }
}

#[cfg(test)]
mod tests;
