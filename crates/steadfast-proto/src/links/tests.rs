//! L1 to L5 of PROTOCOLS 4.6: the database against random histories, and together with real detectors in a small
//! world whose links are cut in one direction or both. Read next: [`super`].

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::detect::{Detector, Input, Members, Output, Settings};
use crate::flaw::plant;
use crate::ids::Incarnation;
use crate::machine::Machine;
use crate::wire::Heartbeat;

const STATES: [LinkState; 6] = [
    LinkState::Unknown,
    LinkState::Up,
    LinkState::Degraded,
    LinkState::Deaf,
    LinkState::Mute,
    LinkState::Down,
];

fn at(ms: u64) -> Time {
    Time::from_nanos(ms * 1_000_000)
}

fn link(state: LinkState, since: Time, loss_permille: u16) -> Link {
    Link {
        state,
        since,
        heard_at: since,
        round_trip: Some(Duration::from_micros(400)),
        deviation: Duration::from_micros(30),
        loss_permille,
    }
}

/// What a node with two networks sees when its peers' links are as given.
fn seen_of(links: &BTreeMap<(NodeId, NetworkId), Link>) -> Seen {
    let mut seen = Seen {
        networks: vec![NetworkId(0), NetworkId(1)],
        peers: BTreeMap::new(),
        unplugged: BTreeSet::new(),
    };
    for ((peer, network), link) in links {
        seen.peers.entry(*peer).or_default().insert(*network, *link);
    }
    seen
}

/// One thing that happens to a database in the random histories.
#[derive(Clone, Debug)]
enum Act {
    /// A link does something.
    Turn(u128, u16, usize, u16),
    /// A peer is gone.
    Lose(u128),
    /// A registration is asked for its news.
    Take(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (1u128..5, 0u16..2, 0usize..6, 0u16..60).prop_map(|(p, n, s, l)| Act::Turn(p, n, s, l)),
        1 => (1u128..5).prop_map(Act::Lose),
        3 => (0usize..6).prop_map(Act::Take),
    ];
    proptest::collection::vec(act, 1..120)
}

fn interests() -> Vec<Interest> {
    let of = |peer, scope, conditions| Interest { peer, scope, conditions };
    vec![
        Interest::default(),
        of(Some(NodeId(1)), Scope::Network(NetworkId(1)), Conditions::State),
        of(Some(NodeId(2)), Scope::General, Conditions::State),
        of(None, Scope::Network(NetworkId(0)), Conditions::Quality),
        of(Some(NodeId(3)), Scope::Any, Conditions::Any),
        of(None, Scope::Any, Conditions::State),
    ]
}

/// Somebody who is told of a random history, in whatever rhythm that asks for news.
struct Consumer {
    interest: Interest,
    id: RegistrationId,
    reports: Vec<Report>,
}

impl Consumer {
    /// Takes the news; the last is never lost, and nothing is told twice.
    fn take(&mut self, links: &mut Links) {
        self.reports.push(links.take(self.id).unwrap());
    }

    /// What the reports alone say of each row.
    fn believes(&self) -> BTreeMap<Place, LinkState> {
        let mut believed = BTreeMap::new();
        for report in &self.reports {
            if report.whole {
                believed.clear();
            }
            believed.extend(report.changes.iter().map(|change| (change.place, change.row.state)));
        }
        believed
    }
}

/// A database after a random history, and those who were told of it, all up to date.
fn told(acts: Vec<Act>) -> (Links, Vec<Consumer>) {
    let mut links = Links::new(7);
    let consumers = interests().into_iter().map(|interest| {
        let id = links.register(interest).unwrap();
        Consumer { interest, id, reports: Vec::new() }
    });
    let mut consumers: Vec<Consumer> = consumers.collect();
    let mut world = BTreeMap::new();
    for (now, act) in (1..).zip(acts) {
        match act {
            Act::Turn(peer, network, state, loss) => {
                let state = STATES[state];
                let key = (NodeId(peer), NetworkId(network));
                let old: Option<&Link> = world.get(&key);
                let since = old.filter(|old| old.state == state).map_or(at(now), |old| old.since);
                world.insert(key, link(state, since, loss));
            }
            Act::Lose(peer) => world.retain(|(id, _), _| *id != NodeId(peer)),
            Act::Take(index) => consumers[index].take(&mut links),
        }
        links.update(at(now), &seen_of(&world));
    }
    consumers.iter_mut().for_each(|consumer| consumer.take(&mut links));
    (links, consumers)
}

proptest! {
    #[test]
    fn l1_the_same_sight_gives_the_same_states_whatever_was_seen_before(
        acts in acts(),
        sight in proptest::collection::btree_map((1u128..5, 0u16..2), (0usize..6, 0u16..60), 0..9),
    ) {
        let now = at(1_000);
        let world = sight.into_iter().map(|((peer, network), (state, loss))| {
            ((NodeId(peer), NetworkId(network)), link(STATES[state], now, loss))
        });
        let seen = seen_of(&world.collect());
        let (mut old, _) = told(acts);
        let mut fresh = Links::new(0);
        for links in [&mut old, &mut fresh] {
            links.update(now, &seen);
        }
        let shown = |links: &Links| -> Vec<(Place, LinkState, Option<Cause>)> {
            links.rows().map(|(place, row)| (place, row.state, row.cause)).collect()
        };
        prop_assert_eq!(shown(&old), shown(&fresh));
    }

    #[test]
    fn l2_reports_add_up_to_the_database_in_whatever_rhythm_they_are_taken(acts in acts()) {
        let (mut links, consumers) = told(acts);
        for consumer in &consumers {
            let again = links.take(consumer.id).unwrap();
            prop_assert!(again.changes.is_empty() && !again.whole, "nothing is told twice");
            let Consumer { interest, .. } = consumer;
            if interest.conditions == Conditions::Quality {
                continue;
            }
            let believed = consumer.believes();
            for (place, row) in links.rows().filter(|(place, _)| interest.covers(*place)) {
                prop_assert_eq!(believed.get(&place), Some(&row.state), "{:?} of {:?}", place, interest);
            }
        }
    }

    #[test]
    fn l3_generations_rise_strictly_from_change_to_change_and_a_report_goes_on_from_the_last(acts in acts()) {
        let (_, consumers) = told(acts);
        for Consumer { reports, .. } in &consumers {
            let mut last = 0;
            let mut believed: BTreeMap<Place, LinkState> = BTreeMap::new();
            for (index, report) in reports.iter().enumerate() {
                prop_assert!(report.whole || index > 0, "the first report is the whole");
                if report.whole {
                    last = 0;
                    believed.clear();
                }
                for change in &report.changes {
                    prop_assert!(change.generation > last, "{} after {}", change.generation, last);
                    if change.from.is_some() {
                        prop_assert_eq!(change.from, believed.get(&change.place).copied());
                    }
                    last = change.generation;
                    believed.insert(change.place, change.row.state);
                }
                prop_assert!(report.generation >= last);
                last = report.generation;
            }
        }
    }

    #[test]
    fn l4_nobody_is_told_of_a_link_that_was_not_asked_for(acts in acts()) {
        let (_, consumers) = told(acts);
        for Consumer { interest, reports, .. } in &consumers {
            for change in reports.iter().flat_map(|report| &report.changes) {
                prop_assert!(interest.covers(change.place), "{:?} to {interest:?}", change.place);
            }
        }
    }

    /// A reader that remembers nothing but a generation misses nothing either.
    #[test]
    fn a_generation_is_enough_to_go_on_from(acts in acts(), pause in 1usize..9) {
        let mut links = Links::new(0);
        let (mut world, mut believed, mut told) = (BTreeMap::new(), BTreeMap::new(), None);
        for (index, act) in acts.into_iter().enumerate() {
            if let Act::Turn(peer, network, state, loss) = act {
                let now = at(u64::try_from(index).unwrap());
                world.insert((NodeId(peer), NetworkId(network)), link(STATES[state], now, loss));
                links.update(now, &seen_of(&world));
            }
            if index.is_multiple_of(pause) {
                let report = links.since(&Interest::default(), told);
                prop_assert!(told.is_none_or(|told| report.changes.iter().all(|change| change.generation > told)));
                believed.extend(report.changes.iter().map(|change| (change.place, change.row)));
                told = Some(report.generation);
            }
        }
        let report = links.since(&Interest::default(), told);
        believed.extend(report.changes.iter().map(|change| (change.place, change.row)));
        let rows: BTreeMap<Place, Row> = links.rows().map(|(place, row)| (place, *row)).collect();
        prop_assert_eq!(believed.len(), rows.len());
        for (place, row) in rows {
            prop_assert_eq!(believed[&place].state, row.state);
            prop_assert!(!believed[&place].quality.differs(&row.noted));
        }
    }

}

proptest! {
    // Each case is a minute of three detectors.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn l1_the_state_follows_from_what_goes_through_whatever_did_before(
        history in history(),
        last in 0usize..4_096,
    ) {
        let mut world = after(history);
        world.cut = (0..12).filter(|path| (last >> path) & 1 == 1).map(path_of).collect();
        world.run(30_000);
        for (from, to, network) in (0..12).map(path_of) {
            let row = world.row(from, to, network);
            let (sends, hears) = (world.passes(from, to, network), world.passes(to, from, network));
            // A node learns what a peer hears over whichever network still carries the peer's words.
            let told = (0..2).any(|network| world.passes(to, from, network));
            let expected: &[LinkState] = match (sends, hears, told) {
                (true, true, _) => &[LinkState::Up],
                (false, true, _) => &[LinkState::Deaf],
                (true, false, true) => &[LinkState::Mute],
                (true, false, false) | (false, false, _) => &[LinkState::Down, LinkState::Unknown],
            };
            prop_assert!(expected.contains(&row.state), "{from}->{to} on {network}: {:?}, {expected:?}", row.state);
        }
        prop_assert_eq!(world.one_sided, 0, "L5");
    }

    #[test]
    fn l5_an_up_link_carried_both_ways_lately(history in history()) {
        let mut world = after(history);
        world.run(5_000);
        prop_assert_eq!(world.one_sided, 0);
    }
}

/// Which path is cut or healed, and how long it then stays so, in ms.
fn history() -> impl Strategy<Value = Vec<(usize, u64)>> {
    proptest::collection::vec((0usize..12, 200u64..2_500), 0..6)
}

fn after(history: Vec<(usize, u64)>) -> World {
    let mut world = World::new(3);
    world.run(1_500);
    for (path, for_ms) in history {
        world.toggle(path);
        world.run(for_ms);
    }
    world
}

#[test]
fn ten_thousand_flaps_cost_a_stalled_consumer_nothing_and_lose_nothing() {
    let mut links = Links::new(0);
    let stalled = links.register(Interest::default()).unwrap();
    let mut world = BTreeMap::new();
    for peer in 1..=3 {
        world.insert((NodeId(peer), NetworkId(0)), link(LinkState::Up, at(0), 0));
    }
    links.update(at(0), &seen_of(&world));
    assert!(links.take(stalled).unwrap().whole);
    let size = |links: &Links| (links.rows.len(), links.registrations[&stalled].states.len());
    let before = size(&links);
    for flap in 1..=10_000u64 {
        let state = if flap.is_multiple_of(2) { LinkState::Up } else { LinkState::Mute };
        world.insert((NodeId(2), NetworkId(0)), link(state, at(flap), 0));
        links.update(at(flap), &seen_of(&world));
    }
    world.insert((NodeId(2), NetworkId(0)), link(LinkState::Deaf, at(20_000), 0));
    links.update(at(20_000), &seen_of(&world));
    assert_eq!(size(&links), before, "a stalled consumer's share does not grow");
    let report = links.take(stalled).unwrap();
    assert!(!report.whole);
    let of = |network| {
        let place = Place { peer: NodeId(2), network };
        *report.changes.iter().find(|change| change.place == place).unwrap()
    };
    let changed = of(Some(NetworkId(0)));
    assert_eq!((changed.from, changed.row.state), (Some(LinkState::Up), LinkState::Deaf));
    assert_eq!((changed.row.since, changed.coalesced), (at(20_000), 10_000));
    assert_eq!(of(None).row.state, LinkState::Down);
    assert_eq!(report.changes.len(), 2, "the others did not change: {report:?}");
}

#[test]
fn peers_that_come_and_go_leave_a_bounded_trace() {
    let mut links = Links::new(0);
    let stalled = links.register(Interest::default()).unwrap();
    links.take(stalled).unwrap();
    for peer in 1..=2_000u128 {
        let now = at(u64::try_from(peer).unwrap());
        let world = BTreeMap::from([((NodeId(peer), NetworkId(0)), link(LinkState::Up, now, 0))]);
        links.update(now, &seen_of(&world));
    }
    assert!(links.rows.len() <= GONE_MAX + 3, "{}", links.rows.len());
    let report = links.take(stalled).unwrap();
    assert!(report.whole, "one that is too far behind is given the whole");
    assert_eq!(report.changes.len(), 3);
    assert!(report.changes.iter().all(|change| change.place.peer == NodeId(2_000)));
}

#[test]
fn a_generation_of_another_start_is_answered_with_the_whole() {
    let mut links = Links::new(2_000);
    let world = BTreeMap::from([((NodeId(1), NetworkId(0)), link(LinkState::Up, at(0), 0))]);
    links.update(at(0), &seen_of(&world));
    for strange in [0, 1_999, 9_999_999] {
        assert!(links.since(&Interest::default(), Some(strange)).whole, "{strange}");
    }
    assert!(!links.since(&Interest::default(), Some(2_001)).whole);
}

#[test]
fn registrations_are_bounded() {
    let mut links = Links::new(0);
    let first = links.register(Interest::default()).unwrap();
    for _ in 1..REGISTRATIONS_MAX {
        links.register(Interest::default()).unwrap();
    }
    assert_eq!(links.register(Interest::default()), Err(TooManyRegistrations));
    links.deregister(first);
    assert!(links.register(Interest::default()).is_ok());
    assert!(links.take(first).is_none());
}

#[test]
fn an_interface_without_carrier_is_named_as_the_cause() {
    let mut links = Links::new(0);
    let world = BTreeMap::from([
        ((NodeId(1), NetworkId(0)), link(LinkState::Up, at(0), 0)),
        ((NodeId(1), NetworkId(1)), link(LinkState::Mute, at(5), 0)),
    ]);
    let mut seen = seen_of(&world);
    seen.unplugged.insert(NetworkId(1));
    links.update(at(5), &seen);
    let row = links.row(Place { peer: NodeId(1), network: Some(NetworkId(1)) }).unwrap();
    assert_eq!((row.state, row.cause), (LinkState::Down, Some(Cause::LocalInterface)));
    let general = links.row(Place { peer: NodeId(1), network: None }).unwrap();
    assert_eq!((general.state, general.cause), (LinkState::Up, None));
}

/// 4.6's acceptance: one direction of one link of one pair, then the pair's second link, then healing.
#[test]
fn l4_one_way_is_heard_of_by_those_who_asked_for_that_link() {
    let mut world = World::new(3);
    world.run(1_500);
    let of = |peer, scope| Interest { peer: Some(NodeId(peer)), scope, conditions: Conditions::State };
    let any = Interest { conditions: Conditions::State, ..Interest::default() };
    let interests = [
        of(2, Scope::Network(NetworkId(0))),
        any,
        of(2, Scope::Network(NetworkId(1))),
        of(3, Scope::Any),
        of(2, Scope::General),
    ];
    let ids = interests.map(|interest| world.links[0].register(interest).unwrap());
    let take = |world: &mut World| {
        ids.map(|id| {
            let report = world.links[0].take(id).unwrap();
            report.changes.iter().map(|change| (change.place, change.row.state)).collect::<Vec<_>>()
        })
    };
    take(&mut world);
    world.cut.insert((0, 1, 0));
    world.run(3_000);
    let place = |network: Option<u16>| Place { peer: NodeId(2), network: network.map(NetworkId) };
    let deaf = vec![(place(Some(0)), LinkState::Deaf)];
    assert_eq!(take(&mut world), [deaf.clone(), deaf, vec![], vec![], vec![]]);
    assert_eq!(world.row(1, 0, 0).state, LinkState::Mute, "the other end says one-way too");
    assert_eq!(world.general(0, 1), LinkState::Up);
    world.cut.extend([(0, 1, 1), (1, 0, 1)]);
    world.run(3_000);
    let general = take(&mut world)[4].clone();
    assert_eq!(general, [(place(None), LinkState::Down)]);
    world.cut.clear();
    world.run(3_000);
    let [.., general] = take(&mut world);
    assert_eq!(general, [(place(None), LinkState::Up)]);
    assert_eq!([world.row(0, 1, 0).state, world.row(1, 0, 1).state], [LinkState::Up; 2]);
    assert_eq!(world.one_sided, 0, "L5");
}

#[test]
fn l5_a_link_that_is_up_by_receiving_alone_is_caught() {
    for (flaw, is_caught) in [(None, false), (Some(Flaw::ReceiveOnlyUp), true)] {
        plant(flaw);
        let mut world = World::new(3);
        world.run(1_500);
        world.cut.insert((0, 1, 0));
        world.run(5_000);
        assert_eq!(world.one_sided > 0, is_caught, "{flaw:?}: L5 was broken {} times", world.one_sided);
    }
    plant(None);
}

/// L5's `max_wait`: an up link has carried both ways within so many ms.
const BOTH_WAYS_MS_MAX: u64 = 1_500;

/// A few detectors, each with its links, on two networks whose paths can be cut in one direction.
struct World {
    detectors: Vec<Detector>,
    links: Vec<Links>,
    /// What does not go through: from, to, network.
    cut: BTreeSet<(usize, usize, u16)>,
    /// When something last went through.
    carried: BTreeMap<(usize, usize, u16), u64>,
    now_ms: u64,
    /// How often L5 was found broken.
    one_sided: usize,
}

/// The twelve directed paths among three nodes on two networks.
fn path_of(index: usize) -> (usize, usize, u16) {
    let (pair, network) = (index / 2, u16::from(index % 2 == 1));
    let (from, step) = (pair / 2, pair % 2 + 1);
    (from, (from + step) % 3, network)
}

fn id_of(index: usize) -> NodeId {
    NodeId(u128::try_from(index).unwrap() + 1)
}

impl World {
    fn new(count: usize) -> World {
        let ids: Vec<NodeId> = (0..count).map(id_of).collect();
        let members: BTreeMap<NodeId, Incarnation> = ids.iter().map(|id| (*id, Incarnation(1))).collect();
        let members = Arc::new(Members::new(members, 7));
        let networks = vec![NetworkId(0), NetworkId(1)];
        let detectors = ids.iter().map(|id| {
            let boot = u64::try_from(id.0).unwrap();
            let mut detector =
                Detector::new(Settings::default(), *id, Incarnation(1), boot, networks.clone(), at(0));
            detector.step(at(0), Input::Members(Arc::clone(&members)), &mut Output::default());
            detector
        });
        World {
            detectors: detectors.collect(),
            links: (0..count).map(|_| Links::new(0)).collect(),
            cut: BTreeSet::new(),
            carried: BTreeMap::new(),
            now_ms: 0,
            one_sided: 0,
        }
    }

    fn toggle(&mut self, path: usize) {
        let path = path_of(path);
        if !self.cut.remove(&path) {
            self.cut.insert(path);
        }
    }

    fn passes(&self, from: usize, to: usize, network: u16) -> bool {
        !self.cut.contains(&(from, to, network))
    }

    fn run(&mut self, for_ms: u64) {
        for now_ms in self.now_ms..self.now_ms + for_ms {
            self.now_ms = now_ms + 1;
            for from in 0..self.detectors.len() {
                // Nodes are out of phase, as real ones are.
                let is_due = self.detectors[from].deadline().is_some_and(|due| due <= at(now_ms));
                if is_due && (now_ms > 5 * u64::try_from(from).unwrap()) {
                    let mut output = Output::default();
                    self.detectors[from].step(at(now_ms), Input::Deadline, &mut output);
                    self.deliver(from, output.send);
                }
            }
            if now_ms.is_multiple_of(50) {
                self.look();
            }
        }
    }

    fn deliver(&mut self, from: usize, sends: Vec<(NodeId, NetworkId, Heartbeat)>) {
        let mut sends: Vec<(usize, _)> = sends.into_iter().map(|send| (from, send)).collect();
        while let Some((from, (to, network, heartbeat))) = sends.pop() {
            let to = usize::try_from(to.0).unwrap() - 1;
            if !self.passes(from, to, network.0) {
                continue;
            }
            self.carried.insert((from, to, network.0), self.now_ms);
            let now = at(self.now_ms - 1);
            let input = Input::Heard {
                from: id_of(from),
                incarnation: Incarnation(1),
                network,
                received_at: now,
                heartbeat,
            };
            let mut output = Output::default();
            self.detectors[to].step(now, input, &mut output);
            sends.extend(output.send.into_iter().map(|send| (to, send)));
        }
    }

    /// Brings every database up to date, and notes where L5 is broken.
    fn look(&mut self) {
        for (index, detector) in self.detectors.iter().enumerate() {
            let peers = detector.peers().map(|peer| (peer, detector.links(peer).collect()));
            let seen = Seen {
                networks: vec![NetworkId(0), NetworkId(1)],
                peers: peers.collect(),
                unplugged: BTreeSet::new(),
            };
            self.links[index].update(at(self.now_ms), &seen);
            for (place, row) in self.links[index].rows().filter(|(_, row)| row.state.carries()) {
                let Some(network) = place.network else { continue };
                let peer = usize::try_from(place.peer.0).unwrap() - 1;
                for path in [(index, peer, network.0), (peer, index, network.0)] {
                    let carried = self.carried.get(&path).copied().unwrap_or_default();
                    if self.now_ms > BOTH_WAYS_MS_MAX + carried {
                        self.one_sided += 1;
                    }
                }
                assert!(row.heard_at.is_some(), "an up link was heard");
            }
        }
    }

    fn row(&self, from: usize, to: usize, network: u16) -> Row {
        let place = Place { peer: id_of(to), network: Some(NetworkId(network)) };
        *self.links[from].row(place).unwrap()
    }

    fn general(&self, from: usize, to: usize) -> LinkState {
        self.links[from].row(Place { peer: id_of(to), network: None }).unwrap().state
    }
}
