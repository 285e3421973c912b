//! Every interleaving of one message between two instances, by search over the very step functions that nodes run.
//!
//! At each state the faults may end: then all that was promised must come to pass, and nothing may be left over. Each variant of
//! PROTOCOLS 2.2 that is known to fail must fail here.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use steadfast_proto::episode::{
    Event, Failure, Next, Order, Outcome, Outgoing, Program, Record, Request, Settings, Task, Wait,
};
use steadfast_proto::exchange::{Blob, Name};
use steadfast_proto::flaw::{Flaw, plant};
use steadfast_proto::ids::NodeId;

use super::check;
use super::{Channel, Move, World};

const STATES_MAX: usize = 1_000_000;

/// What may go wrong, and how often.
#[derive(Clone, Copy, Debug, Hash)]
struct Faults {
    crashes: u8,
    copies: u8,
    losses: u8,
    ticks: u8,
}

/// All kinds together make more worlds than can be searched; each two of them do not.
const FAULTS: [Faults; 4] = [
    Faults { crashes: 2, copies: 0, losses: 0, ticks: 0 },
    Faults { crashes: 1, copies: 1, losses: 0, ticks: 1 },
    Faults { crashes: 1, copies: 0, losses: 1, ticks: 1 },
    Faults { crashes: 0, copies: 1, losses: 1, ticks: 2 },
];

/// Two names on two nodes.
fn names() -> [Name; 2] {
    let on = |node| {
        let all = (0..).map(|key| Name::parse(&format!("x/{key}")).expect("a name"));
        let world = world(Channel::Bag, Order::Lean);
        all.into_iter().find(|name| world.keeper(name) == NodeId(node)).expect("one of them")
    };
    [on(1), on(2)]
}

fn world(channel: Channel, order: Order) -> World {
    let programs = BTreeMap::from([("x".to_owned(), (Program::default(), Arc::new(episode) as super::Run))]);
    World::new(2, channel, Settings { order, ..Settings::default() }, programs)
}

/// Who is started says "go" to whom the payload names; who hears it counts.
fn episode(task: &Task) -> Result<Outcome, Failure> {
    let mut state = task.state.to_vec();
    let mut messages = Vec::new();
    if &*task.event.kind == Event::START && !task.event.payload.is_empty() {
        let to = std::str::from_utf8(&task.event.payload).ok().and_then(|name| Name::parse(name).ok());
        let to = to.expect("the payload is a name");
        let (kind, payload) = ("go".into(), Blob::empty());
        messages.push(Outgoing { to, kind, correlation: None, payload, begins: false, within: None });
    } else if &*task.event.kind == "go" {
        state.push(b'+');
    }
    Ok(Outcome { state: state.into(), messages, answer: None, next: Next::Wait(Wait::for_kind("go")) })
}

/// The world after both have begun, and nothing was said yet.
fn begun(channel: Channel, order: Order) -> World {
    let [sender, receiver] = names();
    let mut world = world(channel, order);
    world.request(
        1,
        Request::Start { name: receiver.clone(), payload: Blob::empty(), key: None, wait: false },
    );
    assert!(world.settle(1));
    for node in [1, 2] {
        world.apply(Move::Sync(NodeId(node)));
    }
    let payload = receiver.as_str().as_bytes().into();
    world.request(2, Request::Start { name: sender, payload, key: None, wait: false });
    world
}

/// Searches everything; gives the number of states, or the first thing that went wrong.
fn search(channel: Channel, order: Order) -> Result<usize, String> {
    FAULTS.iter().map(|faults| search_with(channel, order, *faults)).sum()
}

fn search_with(channel: Channel, order: Order, faults: Faults) -> Result<usize, String> {
    let start = begun(channel, order);
    let mut seen = BTreeSet::from([digest(&start, faults)]);
    let mut stack = vec![(start, faults)];
    let mut states = 0;
    while let Some((world, left)) = stack.pop() {
        states += 1;
        assert!(states < STATES_MAX, "{channel:?} {order:?} {faults:?} has too many states");
        if let Some(violation) = &world.violation {
            return Err(violation.to_string());
        }
        without_faults(&world)?;
        for (action, left) in choices(&world, left) {
            let mut next = world.clone();
            next.apply(action);
            if seen.insert(digest(&next, left)) {
                stack.push((next, left));
            }
        }
    }
    Ok(states)
}

fn digest(world: &World, faults: Faults) -> u64 {
    let mut hasher = DefaultHasher::new();
    (world, faults).hash(&mut hasher);
    hasher.finish()
}

fn choices(world: &World, left: Faults) -> Vec<(Move, Faults)> {
    let mut choices: Vec<_> = world.moves().into_iter().map(|action| (action, left)).collect();
    for index in 0..world.in_flight() {
        if left.copies > 0 && world.has_copies() {
            choices.push((Move::Copy(index), Faults { copies: left.copies - 1, ..left }));
        }
        if left.losses > 0 && world.is_next(index) {
            choices.push((Move::Lose(index), Faults { losses: left.losses - 1, ..left }));
        }
    }
    for node in [NodeId(1), NodeId(2)] {
        if left.crashes > 0 {
            let fewer = Faults { crashes: left.crashes - 1, ..left };
            choices.extend((0..=world.at_risk(node)).map(|kept| (Move::Crash(node, kept), fewer)));
        }
        if left.ticks > 0 {
            choices.push((Move::Tick(node), Faults { ticks: left.ticks - 1, ..left }));
        }
    }
    choices
}

/// E-L1, E-L2: from here on all goes well.
fn without_faults(world: &World) -> Result<(), String> {
    let mut world = world.clone();
    let is_settled = world.settle(100);
    if let Some(violation) = &world.violation {
        return Err(violation.to_string());
    }
    if !is_settled || !world.is_quiet() {
        return Err(format!("E-L1: {} bytes are left", world.bytes_of_messages()));
    }
    let sent = check::delivered(world.nodes.values().map(|node| node.log.as_slice()))
        .map_err(|wrong| wrong.to_string())?;
    let [_, receiver] = names();
    let logs = world.nodes.values().flat_map(|node| &node.log);
    let taken =
        logs.filter(|record| matches!(record, Record::Checkpoint { name, .. } if *name == receiver)).count();
    // The receiver's own start was the first.
    if taken as u64 != sent + 1 {
        return Err(format!("E-S3: {sent} messages were sent, and {} were consumed", taken - 1));
    }
    Ok(())
}

#[test]
fn nothing_goes_wrong_with_one_message_whatever_happens() {
    for channel in [Channel::Bag, Channel::Fenced, Channel::Fifo] {
        for order in [Order::Lean, Order::Full] {
            let states =
                search(channel, order).unwrap_or_else(|wrong| panic!("{channel:?} {order:?}: {wrong}"));
            println!("{channel:?} {order:?}: {states} states");
            assert!(states > 1_000, "{channel:?} {order:?}: only {states} states");
        }
    }
}

/// The failing variants of PROTOCOLS 2.2, with what carries the messages, what is durable first, and what then goes wrong.
const FAILING: [(Flaw, Channel, Order, &str); 9] = [
    (Flaw::ExchangeNoMark, Channel::Bag, Order::Full, "E-S1"),
    (Flaw::ExchangeNoMark, Channel::Fifo, Order::Lean, "E-S1"),
    (Flaw::ExchangeAckEarly, Channel::Fifo, Order::Lean, "E-S2"),
    (Flaw::ExchangeSendEarly, Channel::Fifo, Order::Lean, "E-S4"),
    (Flaw::ExchangeNoConfirmAck, Channel::Fifo, Order::Full, "E-L1"),
    (Flaw::ExchangeNoConfirmAck, Channel::Bag, Order::Lean, "E-L1"),
    (Flaw::ExchangeNoReminder, Channel::Fifo, Order::Lean, "E-L1"),
    (Flaw::ExchangeUnknownConfirm, Channel::Fifo, Order::Full, "E-L1"),
    (Flaw::ExchangeUnknownConfirm, Channel::Bag, Order::Lean, "E-L1"),
];

#[test]
fn each_variant_that_is_known_to_fail_is_caught() {
    for (flaw, channel, order, invariant) in FAILING {
        plant(Some(flaw));
        let found = search(channel, order);
        plant(None);
        let wrong = found.expect_err("the flaw is found");
        println!("{flaw:?} {channel:?} {order:?}: {wrong}");
        assert!(wrong.starts_with(invariant), "{flaw:?} {channel:?} {order:?}: {wrong}");
    }
}

/// The variant of 2.2 that is correct without a mark: in order, and with every step durable first.
#[test]
fn an_ordered_channel_and_four_writes_need_no_mark() {
    plant(Some(Flaw::ExchangeNoMark));
    let found = search(Channel::Fenced, Order::Full);
    plant(None);
    assert!(found.is_ok(), "{found:?}");
}
