//! Messages: their bytes and their bounds, and that no message can upset a node.

use proptest::prelude::*;

use super::*;

fn sample() -> Message {
    let what = Arc::new(occurrence(7));
    let items =
        vec![Item::Event { seq: 3, what }, Item::Gap { from: 4, to: 9, reason: GapReason::Suppressed }];
    Message::Notify { parts: vec![Part { number: 1, attempt: 2, first: 3, head: 10, items }] }
}

#[test]
fn bytes_give_the_message_back() {
    assert_eq!(Message::decode(&sample().encode()), Ok(sample()));
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    assert_eq!(Message::decode(&[0; BODY_BYTES_MAX + 1]), Err(InvalidMessage::TooLong(BODY_BYTES_MAX + 1)));
    let mut bytes = sample().encode();
    bytes.push(0);
    assert_eq!(Message::decode(&bytes), Err(InvalidMessage::Malformed));
    let long = Message::Unknown { numbers: vec![1; LIST_MAX + 1] };
    assert_eq!(Message::decode(&long.encode()), Err(InvalidMessage::OutOfBounds("list")));
    let zero = Item::Gap { from: 0, to: 9, reason: GapReason::Overrun };
    let zero = Part { number: 1, attempt: 1, first: 1, head: 1, items: vec![zero] };
    let zero = Message::Notify { parts: vec![zero] };
    assert_eq!(Message::decode(&zero.encode()), Err(InvalidMessage::OutOfBounds("event")));
}

fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![0..6u64, Just(u64::MAX), Just(u64::MAX - 1), any::<u64>()]
}

fn messages() -> impl Strategy<Value = Message> {
    let start = prop_oneof![
        Just(Start::Now),
        Just(Start::Oldest),
        numbers().prop_map(|unix_us| Start::Time { unix_us }),
        (numbers(), numbers())
            .prop_map(|(life, seq)| Start::After(Position { incarnation: Incarnation(life), seq })),
    ];
    let register = (numbers(), numbers(), start, numbers(), any::<bool>()).prop_map(
        |(number, attempt, start, credit, is_replicated)| {
            let variant = if is_replicated { Variant::Replicated } else { Variant::Selective };
            let (topic, nature) = (topic("user.tick"), Nature::Level);
            Message::Register { number, attempt, topic, variant, nature, start, credit }
        },
    );
    let item = prop_oneof![
        (1..20u64).prop_map(|seq| Item::Event { seq, what: Arc::new(occurrence(1)) }),
        Just(Item::Event { seq: u64::MAX, what: Arc::new(occurrence(1)) }),
        (1..20u64, 0..9u64).prop_map(|(from, more)| Item::Gap {
            from,
            to: from + more,
            reason: GapReason::Producer
        }),
        (1..20u64).prop_map(|from| Item::Gap { from, to: u64::MAX, reason: GapReason::Producer }),
    ];
    let part = (0..4u64, 0..4u64, numbers(), numbers(), proptest::collection::vec(item, 0..4))
        .prop_map(|(number, attempt, first, head, items)| Part { number, attempt, first, head, items });
    let progress = (0..4u64, 0..4u64, numbers(), numbers())
        .prop_map(|(number, attempt, upto, credit)| Progress { number, attempt, upto, credit });
    prop_oneof![
        register,
        (0..4u64, 0..4u64, numbers(), numbers()).prop_map(|(number, attempt, first, head)| {
            Message::Registered { number, attempt, first, head }
        }),
        (0..4u64, 0..4u64).prop_map(|(number, attempt)| {
            Message::Refused { number, attempt, reason: Refusal::TooManyTopics }
        }),
        (0..4u64).prop_map(|number| Message::Deregister { numbers: vec![number] }),
        (0..4u64).prop_map(|number| Message::Unknown { numbers: vec![number] }),
        proptest::collection::vec(part, 1..3).prop_map(|parts| Message::Notify { parts }),
        proptest::collection::vec(progress, 1..3).prop_map(|streams| Message::Progress { streams }),
        (1..4u128, 0..3u64).prop_map(|(node, incarnation)| {
            let registrations = vec![(life(node, incarnation), topic("user.tick"))];
            Message::Replicate { registrations, is_all: incarnation > 0 }
        }),
        (1..4u128, 0..3u64).prop_map(|(node, incarnation)| {
            Message::Join { after: Some((life(node, incarnation), topic("user.tick"))) }
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Message::decode(&bytes);
    }

    #[test]
    fn no_message_upsets_a_node(messages in proptest::collection::vec((messages(), any::<bool>()), 1..40)) {
        let (mut world, topic) = (World::new(2), topic("user.tick"));
        let since = Since::Oldest;
        world.register(1, 1, Interest { since, ..Interest::cluster(topic.clone(), Variant::Selective) });
        world.register(1, 2, from(2, &topic));
        world.cut.insert(2);
        for (message, waits) in messages {
            world.step(1, Input::Received { from: life(2, 1), message });
            world.happen(1, &topic, 1);
            if waits {
                world.wait(Duration::from_secs(3));
            }
            let _ = world.take(1, 1);
            let _ = world.take(1, 2);
        }
        let status = world.nodes[&1].status();
        prop_assert!(status.streams.len() <= 2 && status.topics.len() == 1);
    }
}
