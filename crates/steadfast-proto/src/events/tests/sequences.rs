//! What a consumer is given: order, gaps, replays, restarts and floods.

use super::*;

#[test]
fn a_slow_consumer_misses_a_range_that_it_is_told_and_nobody_else_misses_anything() {
    let settings = Settings { retained_events: 4, ..Settings::default() };
    let (mut world, topic) = (World::with(2, &settings), topic("user.tick"));
    let small = |interest: Interest| Interest { buffer: 4, ..interest };
    for id in [1, 2] {
        world.register(1, id, small(Interest::local(topic.clone())));
        world.register(2, id, small(from(1, &topic)));
    }
    for number in 1..=10 {
        world.happen(1, &topic, number);
        assert_eq!(world.take(1, 2), format!("1.{number}"));
        assert_eq!(world.take(2, 2), format!("1.{number}"));
    }
    for node in [1, 2] {
        assert_eq!(world.take(node, 1), "1.[1-6 Overrun] 1.7 1.8 1.9 1.10"); // EV5
    }
}

#[test]
fn a_silent_overrun_would_be_seen() {
    crate::flaw::plant(Some(crate::flaw::Flaw::EventsSilentOverrun));
    let settings = Settings { retained_events: 4, ..Settings::default() };
    let (mut world, topic) = (World::with(1, &settings), topic("user.tick"));
    world.register(1, 1, Interest { buffer: 4, ..Interest::local(topic.clone()) });
    for number in 1..=10 {
        world.happen(1, &topic, number);
    }
    assert_eq!(world.take(1, 1), "1.7 1.8 1.9 1.10");
    crate::flaw::plant(None);
}

#[test]
fn all_consumers_share_what_an_event_says() {
    let (mut world, topic) = (World::new(1), topic("user.tick"));
    for id in 1..=100 {
        world.register(1, id, Interest::local(topic.clone()));
    }
    world.happen(1, &topic, 1);
    let mut bodies = Vec::new();
    for id in 1..=100 {
        for delivery in world.take_some(1, id, 10) {
            let Delivery::Event(event) = delivery else { panic!("{delivery:?}") };
            bodies.push(event.what);
        }
    }
    assert_eq!(bodies.len(), 100);
    assert!(bodies.iter().all(|body| Arc::ptr_eq(body, &bodies[0])));
}

#[test]
fn a_flood_is_told_as_few_gaps_that_count_it() {
    let rate = Rate { per_second: 10, burst: 3 };
    let (mut world, topic) = (World::with(2, &Settings { rate, ..Settings::default() }), topic("user.flood"));
    world.register(2, 1, from(1, &topic));
    for number in 1..=100 {
        world.happen(1, &topic, number);
    }
    world.wait(Duration::from_secs(2));
    assert_eq!(world.take(2, 1), "1.1 1.2 1.3 1.[4-100 Suppressed]");
    assert_eq!(world.status(1, &topic).suppressed, 97);
    world.happen(1, &topic, 101);
    assert_eq!(world.take(2, 1), "1.101");
}

#[test]
fn what_is_too_big_or_lost_by_the_producer_is_a_gap() {
    let (mut world, topic) = (World::new(1), topic("file.change"));
    world.register(1, 1, Interest::local(topic.clone()));
    let text = Value::Text("x".repeat(TEXT_BYTES_MAX));
    let fields = (0..8).map(|number| (format!("field{number}"), text.clone())).collect();
    world.step(1, Input::Happened(vec![(topic.clone(), Occurrence { at_unix_us: 0, fields })]));
    world.step(1, Input::Missed { topic: topic.clone(), count: 5 });
    world.happen(1, &topic, 1);
    assert_eq!(world.take(1, 1), "1.[1-1 Producer] 1.[2-6 Producer] 1.7");
}

#[test]
fn retained_events_are_given_again_to_whoever_asks() {
    let (mut world, topic) = (World::new(2), topic("user.tick"));
    world.register(1, 9, Interest::local(topic.clone()));
    for number in 1..=50 {
        world.happen(1, &topic, number);
    }
    let all: Vec<String> = (1..=50).map(|number| format!("1.{number}")).collect();
    let after = |seq| {
        let position = Position { incarnation: Incarnation(1), seq };
        Since::After(BTreeMap::from([(NodeId(1), position)]))
    };
    let wishes = [
        (Since::Oldest, &all[..]),
        (Since::Time { unix_us: 41 }, &all[40..]),
        (after(45), &all[45..]),
        (Since::Now, &[][..]),
    ];
    for (id, (since, expected)) in (1..).zip(wishes) {
        for node in [1, 2] {
            // A replay is longer than the buffer, and misses nothing: it goes at the consumer's pace.
            let interest = Interest { since: since.clone(), buffer: 4, ..from(1, &topic) };
            world.register(node, id, interest);
            world.wait(Duration::from_secs(10));
            assert_eq!(world.take(node, id), expected.join(" "), "{since:?} on {node}");
        }
    }
    assert_eq!(world.nodes[&2].status().streams.len(), 1, "who has caught up joins the others");
    world.happen(1, &topic, 51);
    for id in 1..=4 {
        assert_eq!(world.take(1, id), "1.51");
        assert_eq!(world.take(2, id), "1.51");
    }
    for id in [1, 2, 3, 4, 9] {
        world.leave(1, id);
        world.leave(2, id);
    }
    assert!(world.is_active(&topic).is_empty());
}

#[test]
fn a_position_that_is_not_retained_any_more_is_a_gap() {
    let settings = Settings { retained_events: 5, ..Settings::default() };
    let (mut world, topic) = (World::with(2, &settings), topic("user.tick"));
    world.register(1, 9, Interest { buffer: 1, ..Interest::local(topic.clone()) });
    for number in 1..=20 {
        world.happen(1, &topic, number);
    }
    let position = Position { incarnation: Incarnation(1), seq: 10 };
    let since = Since::After(BTreeMap::from([(NodeId(1), position)]));
    for (node, reason) in [(1, "Overrun"), (2, "Retention")] {
        world.register(node, 1, Interest { since: since.clone(), ..from(1, &topic) });
        assert_eq!(world.take(node, 1), format!("1.[11-15 {reason}] 1.16 1.17 1.18 1.19 1.20"));
    }
}

#[test]
fn another_life_of_a_source_is_another_sequence() {
    let (mut world, topic) = (World::new(3), topic("user.tick"));
    world.register(2, 1, Interest::cluster(topic.clone(), Variant::Selective));
    world.happen(1, &topic, 1);
    world.nodes.insert(1, Events::new(life(1, 2), Settings::default()));
    world.register(1, 1, Interest::local(topic.clone()));
    world.happen(1, &topic, 2);
    for node in [1, 2, 3] {
        world.install(node, &[1, 2, 3]);
    }
    world.settle();
    world.happen(1, &topic, 3);
    assert_eq!(world.take(2, 1), "1.1 1.restarted2 1.1 1.2", "from its first event on");
    let position = Position { incarnation: Incarnation(1), seq: 7 };
    let since = Since::After(BTreeMap::from([(NodeId(1), position)]));
    for node in [1, 2] {
        world.register(node, 5, Interest { since: since.clone(), ..from(1, &topic) });
        assert_eq!(world.take(node, 5), "1.restarted2 1.1 1.2", "on {node}");
    }
}

#[test]
fn a_source_that_is_gone_is_told_and_goes_on_where_it_was() {
    let (mut world, topic) = (World::new(2), topic("user.tick"));
    world.register(2, 1, from(1, &topic));
    world.register(1, 1, Interest::local(topic.clone()));
    world.happen(1, &topic, 1);
    world.cut.insert(2);
    world.install(2, &[2]);
    world.install(1, &[1]);
    world.happen(1, &topic, 2);
    assert_eq!(world.take(2, 1), "1.1 1.down");
    world.cut.clear();
    world.install(2, &[1, 2]);
    world.install(1, &[1, 2]);
    world.wait(Duration::from_secs(6));
    world.happen(1, &topic, 3);
    assert_eq!(world.take(2, 1), "1.2 1.3");
}

#[test]
fn what_gets_lost_is_sent_again() {
    let (mut world, topic) = (World::new(2), topic("user.tick"));
    world.register(2, 1, from(1, &topic));
    for number in 1..=3 {
        world.step(1, Input::Happened(vec![(topic.clone(), occurrence(number))]));
    }
    world.flying.clear();
    world.happen(1, &topic, 4);
    assert_eq!(world.take(2, 1), "", "nothing is passed over");
    world.wait(Duration::from_secs(2));
    assert_eq!(world.take(2, 1), "1.1 1.2 1.3 1.4");
    world.step(1, Input::Happened(vec![(topic.clone(), occurrence(5))]));
    world.flying.clear();
    world.step(1, Input::Reconnected(NodeId(2)));
    world.settle();
    assert_eq!(world.take(2, 1), "1.5", "at once after a reconnection");
}

#[test]
fn many_events_at_once_travel_in_few_messages_within_what_may_be_under_way() {
    let settings = Settings { in_flight_bytes: 100 << 10, ..Settings::default() };
    let (mut world, topic) = (World::with(2, &settings), topic("user.tick"));
    world.register(2, 1, from(1, &topic));
    let all = (1..=4_000).map(|number| (topic.clone(), occurrence(number))).collect();
    world.step(1, Input::Happened(all));
    let sizes: Vec<usize> = world.flying.iter().map(|(_, _, message)| message.encode().len()).collect();
    assert!(sizes.len() <= 4 && sizes.iter().sum::<usize>() <= 100 << 10, "{sizes:?}");
    world.settle();
    world.wait(Duration::from_secs(1));
    assert_eq!(world.nodes[&2].status().streams[0].upto, 4_000);
}

#[test]
fn what_another_node_tells_is_no_event_of_this_one() {
    for flaw in [None, Some(crate::flaw::Flaw::EventsLoop)] {
        crate::flaw::plant(flaw);
        let (mut world, topic) = (World::new(2), topic("user.tick"));
        world.register(2, 1, Interest::cluster(topic.clone(), Variant::Replicated));
        world.happen(1, &topic, 1);
        let seen = world.take(2, 1);
        crate::flaw::plant(None);
        assert_eq!(seen == "1.1", flaw.is_none(), "{seen}");
    }
}
