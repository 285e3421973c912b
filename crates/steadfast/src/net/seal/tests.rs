//! What the sealer and the opener promise together, in both forms. Arithmetic is tested beside its code.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

use Form::{Introduction, Short};

const CLUSTER: ClusterId = ClusterId(77);
const LAP: u64 = 1 << 32;

fn key(epoch: u32) -> ClusterKey {
    ClusterKey::new(epoch, [epoch.to_le_bytes()[0]; 32])
}

fn sealer(node: u128, incarnation: u64, salt: u8) -> Sealer {
    Sealer::new(CLUSTER, &key(1), NodeId(node), Incarnation(incarnation), [salt; 16])
}

fn sealed(sealer: &mut Sealer, network: u16, form: Form, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    sealer.seal(NetworkId(network), form, payload, &mut out).unwrap();
    out
}

fn datagram(sealer: &mut Sealer, network: u16, payload: &[u8]) -> Vec<u8> {
    sealed(sealer, network, Introduction, payload)
}

fn opener() -> Opener {
    Opener::new(CLUSTER, &[key(1)])
}

/// An opener that heard an introduction of this sealer on network 0.
fn acquainted(sealer: &mut Sealer) -> Opener {
    let mut opener = opener();
    opener.open(&mut datagram(sealer, 0, b"")).unwrap();
    opener
}

#[test]
fn the_forms_cost_84_and_28_bytes() {
    let mut sealer = sealer(1, 1, 1);
    for (form, overhead) in [(Introduction, 84), (Short, 28)] {
        for payload in [0, 1, 60, PAYLOAD_BYTES_MAX] {
            assert_eq!(sealed(&mut sealer, 0, form, &vec![7; payload]).len(), payload + overhead);
        }
        assert_eq!(form.overhead(), overhead);
    }
}

#[test]
fn a_datagram_opens_once_on_its_network() {
    let (mut sealer, mut opener) = (sealer(1, 1, 1), opener());
    for (form, sequence) in [(Introduction, 1), (Short, 2)] {
        let first = sealed(&mut sealer, 3, form, b"payload");
        let opened_bytes = &mut first.clone();
        let opened = opener.open(opened_bytes).unwrap();
        assert_eq!((opened.source, opened.incarnation), (NodeId(1), Incarnation(1)));
        assert_eq!((opened.network, opened.sequence), (NetworkId(3), sequence));
        assert_eq!(opened.payload, b"payload");
        assert_eq!(opener.open(&mut first.clone()), Err(Rejected::Replay));
    }
    let other = datagram(&mut sealer, 4, b"");
    assert_eq!(opener.open(&mut other.clone()).unwrap().sequence, 1);
    assert_eq!((opener.counts().opened, opener.counts().rejected(Rejected::Replay)), (3, 2));
}

#[test]
fn a_short_form_needs_an_introduction_on_its_network() {
    let mut sealer = sealer(1, 1, 1);
    let unheard = sealed(&mut sealer, 0, Short, b"");
    assert_eq!(opener().open(&mut unheard.clone()), Err(Rejected::UnknownSession));
    let mut opener = acquainted(&mut sealer);
    opener.open(&mut unheard.clone()).unwrap();
    let other_network = sealed(&mut sealer, 1, Short, b"");
    assert_eq!(opener.open(&mut other_network.clone()), Err(Rejected::UnknownSession));
    opener.open(&mut datagram(&mut sealer, 1, b"")).unwrap();
    opener.open(&mut other_network.clone()).unwrap();
    opener.forget(NodeId(1));
    assert_eq!(opener.open(&mut sealed(&mut sealer, 0, Short, b"")), Err(Rejected::UnknownSession));
    assert_eq!(opener.counts().rejected(Rejected::UnknownSession), 2);
    assert!(opener.sources.tags_agree());
}

#[test]
fn a_network_that_does_not_fit_the_short_form_is_introduced_each_time() {
    let (mut sealer, mut opener) = (sealer(1, 1, 1), opener());
    for (network, overhead) in [(255, 28), (256, 84)] {
        opener.open(&mut datagram(&mut sealer, network, b"")).unwrap();
        let mut bytes = sealed(&mut sealer, network, Short, b"");
        assert_eq!(bytes.len(), overhead);
        assert_eq!(opener.open(&mut bytes).unwrap().network, NetworkId(network));
    }
}

#[test]
fn an_earlier_incarnation_is_stale_and_a_second_salt_is_a_clone() {
    let mut opener = opener();
    let late = datagram(&mut sealer(1, 1, 1), 0, b"");
    opener.open(&mut datagram(&mut sealer(1, 2, 2), 0, b"")).unwrap();
    assert_eq!(opener.open(&mut late.clone()), Err(Rejected::StaleIncarnation));
    let clone = datagram(&mut sealer(1, 2, 3), 0, b"");
    assert_eq!(opener.open(&mut clone.clone()), Err(Rejected::Cloned));
    opener.open(&mut datagram(&mut sealer(1, 3, 4), 0, b"")).unwrap();
    assert!(opener.sources.tags_agree());
}

#[test]
fn another_incarnation_ends_the_session_of_the_earlier_one() {
    let (mut earlier, mut later) = (sealer(1, 1, 1), sealer(1, 2, 2));
    let mut opener = acquainted(&mut earlier);
    let in_time = sealed(&mut earlier, 0, Short, b"");
    let late = sealed(&mut earlier, 0, Short, b"");
    opener.open(&mut in_time.clone()).unwrap();
    opener.open(&mut datagram(&mut later, 0, b"")).unwrap();
    assert_eq!(opener.open(&mut late.clone()), Err(Rejected::UnknownSession));
    assert_eq!(opener.open(&mut in_time.clone()), Err(Rejected::UnknownSession));
    let opened = opener.open(&mut sealed(&mut later, 0, Short, b"")).unwrap().incarnation;
    assert_eq!(opened, Incarnation(2));
    assert!(opener.sources.tags_agree());
}

#[test]
fn other_clusters_keys_and_forgeries_are_rejected() {
    let mut opener = opener();
    let mut foreign = Sealer::new(ClusterId(78), &key(1), NodeId(1), Incarnation(1), [1; 16]);
    assert_eq!(opener.open(&mut datagram(&mut foreign, 0, b"")), Err(Rejected::Cluster));
    let mut newer = Sealer::new(CLUSTER, &key(2), NodeId(1), Incarnation(1), [1; 16]);
    assert_eq!(opener.open(&mut datagram(&mut newer, 0, b"")), Err(Rejected::KeyEpoch));
    let wrong = ClusterKey::new(1, [99; 32]);
    let mut forger = Sealer::new(CLUSTER, &wrong, NodeId(1), Incarnation(9), [1; 16]);
    assert_eq!(opener.open(&mut datagram(&mut forger, 0, b"")), Err(Rejected::Seal));
    assert_eq!(opener.sources.len(), 0);
}

#[test]
fn a_short_form_of_another_cluster_with_the_same_key_does_not_open() {
    let mut ours = sealer(1, 1, 1);
    let mut opener = acquainted(&mut ours);
    let mut foreign = Sealer::new(ClusterId(78), &key(1), NodeId(1), Incarnation(1), [1; 16]);
    foreign.sequences.insert(0, 1);
    assert_eq!(foreign.session_tag, ours.session_tag);
    assert_eq!(opener.open(&mut sealed(&mut foreign, 0, Short, b"")), Err(Rejected::Seal));
    opener.open(&mut sealed(&mut ours, 0, Short, b"")).unwrap();
}

#[test]
fn one_form_cannot_be_rewritten_as_the_other() {
    let mut sender = sealer(1, 1, 1);
    let mut opener = acquainted(&mut sender);
    let introduction = datagram(&mut sender, 0, b"payload");
    let short = sealed(&mut sender, 0, Short, b"payload");
    let mut twin = sealer(1, 1, 1);
    twin.sequences.insert(0, 1);
    let short_clear = sealed(&mut twin, 0, Short, b"payload")[..SHORT_BYTES].to_vec();
    let header = datagram(&mut twin, 0, b"payload")[..HEADER_BYTES].to_vec();
    let mut shortened = [&short_clear, &introduction[HEADER_BYTES..]].concat();
    let mut lengthened = [&header, &short[SHORT_BYTES..]].concat();
    assert_eq!(opener.open(&mut shortened), Err(Rejected::Seal));
    assert_eq!(opener.open(&mut lengthened), Err(Rejected::Seal));
    opener.open(&mut introduction.clone()).unwrap();
    opener.open(&mut short.clone()).unwrap();
}

#[test]
fn a_rotation_keeps_the_replay_window() {
    let (mut sealer, mut opener) = (sealer(1, 1, 1), opener());
    let before = datagram(&mut sealer, 0, b"old key");
    opener.open(&mut before.clone()).unwrap();
    opener.accept_key(&key(2));
    sealer.rotate(&key(2));
    let after = datagram(&mut sealer, 0, b"new key");
    assert_eq!(opener.open(&mut after.clone()).unwrap().sequence, 2);
    assert_eq!(opener.open(&mut before.clone()), Err(Rejected::Replay));
    opener.retire_keys_before(2);
    assert_eq!(opener.open(&mut before.clone()), Err(Rejected::KeyEpoch));
    assert_eq!(opener.open(&mut after.clone()), Err(Rejected::Replay));
}

#[test]
fn a_rotation_is_another_session_and_a_retired_key_ends_one() {
    let mut sender = sealer(1, 1, 1);
    let mut opener = acquainted(&mut sender);
    opener.accept_key(&key(2));
    let (seen, late) = (sealed(&mut sender, 0, Short, b""), sealed(&mut sender, 0, Short, b""));
    let late_introduction = datagram(&mut sender, 0, b"");
    opener.open(&mut seen.clone()).unwrap();
    sender.rotate(&key(2));
    let early = sealed(&mut sender, 0, Short, b"");
    assert_eq!(opener.open(&mut early.clone()), Err(Rejected::UnknownSession));
    opener.open(&mut datagram(&mut sender, 0, b"")).unwrap();
    opener.open(&mut early.clone()).unwrap();
    assert_eq!(opener.open(&mut late.clone()), Err(Rejected::UnknownSession));
    // An introduction of the earlier key still opens while that key is accepted, and ends nothing.
    opener.open(&mut late_introduction.clone()).unwrap();
    opener.open(&mut sealed(&mut sender, 0, Short, b"")).unwrap();
    assert!(opener.sources.tags_agree());
    opener.retire_keys_before(3);
    assert_eq!(opener.open(&mut sealed(&mut sender, 0, Short, b"")), Err(Rejected::KeyEpoch));
}

#[test]
fn the_table_of_senders_is_bounded() {
    let mut opener = opener();
    for node in 0..SOURCES_MAX {
        opener.open(&mut datagram(&mut sealer(node as u128, 1, 1), 0, b"")).unwrap();
    }
    let one_more = datagram(&mut sealer(u128::MAX, 1, 1), 0, b"");
    assert_eq!(opener.open(&mut one_more.clone()), Err(Rejected::TableFull));
    assert!(opener.sources.tags_agree());
    opener.forget(NodeId(0));
    opener.open(&mut one_more.clone()).unwrap();
    opener.open(&mut sealed(&mut sealer(5, 1, 1), 0, Short, b"")).unwrap_err();
    let mut known = sealer(5, 1, 1);
    known.sequences.insert(0, 1);
    opener.open(&mut sealed(&mut known, 0, Short, b"")).unwrap();
    assert!(opener.sources.tags_agree());
}

/// Two senders whose session tags are equal, found by a birthday search over 2^26 salts.
fn colliding() -> (Sealer, Sealer) {
    let salted =
        |node, salt: u128| Sealer::new(CLUSTER, &key(1), NodeId(node), Incarnation(1), salt.to_le_bytes());
    (salted(1, 52_036_568), salted(2, 51_026_583))
}

#[test]
fn two_senders_with_one_session_tag_are_told_apart_by_their_keys() {
    let (mut one, mut two) = colliding();
    assert_eq!(one.session_tag, [0x2c, 0x5c, 0x6c, 0xa4, 0x25, 0xe8]);
    assert_eq!(one.session_tag, two.session_tag);
    let mut opener = acquainted(&mut one);
    opener.open(&mut datagram(&mut two, 0, b"")).unwrap();
    for _ in 0..3 {
        // The second holder is ahead, so that it is tried under the first one's key before its own.
        for (node, sealer) in [(2, &mut two), (1, &mut one)] {
            let bytes = sealed(sealer, 0, Short, b"payload");
            let opened_bytes = &mut bytes.clone();
            let opened = opener.open(opened_bytes).unwrap();
            assert_eq!((opened.source, opened.payload), (NodeId(node), &b"payload"[..]));
            opener.open(&mut bytes.clone()).unwrap_err();
        }
    }
    opener.forget(NodeId(1));
    opener.open(&mut sealed(&mut two, 0, Short, b"")).unwrap();
    assert!(opener.sources.tags_agree());
}

#[test]
fn a_third_sender_with_one_session_tag_is_refused_whole() {
    let (mut one, mut two) = colliding();
    let mut opener = acquainted(&mut one);
    opener.sources.occupy(one.session_tag, 3);
    assert_eq!(opener.open(&mut datagram(&mut two, 0, b"")), Err(Rejected::TableFull));
    assert_eq!(opener.sources.len(), 1);
    opener.open(&mut sealed(&mut one, 0, Short, b"")).unwrap();
    // Nor does a known sender take such a tag: its present session goes on.
    let mut other = sealer(2, 0, 1);
    opener.open(&mut datagram(&mut other, 0, b"")).unwrap();
    assert_eq!(opener.open(&mut datagram(&mut two, 0, b"")), Err(Rejected::TableFull));
    opener.open(&mut sealed(&mut other, 0, Short, b"")).unwrap();
}

#[test]
fn a_payload_that_does_not_fit_is_refused() {
    for form in [Introduction, Short] {
        let mut out = Vec::new();
        let error = sealer(1, 1, 1).seal(NetworkId(0), form, &[0; PAYLOAD_BYTES_MAX + 1], &mut out);
        assert_eq!(error, Err(PayloadTooLarge { found: PAYLOAD_BYTES_MAX + 1 }));
        assert!(out.is_empty());
    }
}

#[test]
fn lengths_and_first_bytes_that_are_not_ours_are_told_apart() {
    let mut sealer = sealer(1, 1, 1);
    let mut opener = acquainted(&mut sealer);
    let short = sealed(&mut sealer, 0, Short, &[0; PAYLOAD_BYTES_MAX]);
    let mut too_long = [&short[..], &[0]].concat();
    assert_eq!(opener.open(&mut too_long), Err(Rejected::Length));
    assert_eq!(opener.open(&mut short.clone()[..27]), Err(Rejected::Length));
    assert_eq!(opener.open(&mut []), Err(Rejected::Length));
    let mut other_version = short.clone();
    other_version[0] = 0xa1;
    assert_eq!(opener.open(&mut other_version), Err(Rejected::Version));
    assert_eq!(opener.open(&mut [0x53; 84]), Err(Rejected::Magic));
    assert_eq!(opener.open(&mut [0; DATAGRAM_BYTES_MAX + 1]), Err(Rejected::Length));
    opener.open(&mut short.clone()).unwrap();
}

#[test]
fn every_reason_has_one_name_and_one_counter() {
    let names: BTreeSet<_> = Rejected::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Rejected::ALL.len());
    let mut opener = opener();
    opener.open(&mut []).unwrap_err();
    opener.open(&mut [0; 84]).unwrap_err();
    opener.open(&mut [0; 84]).unwrap_err();
    let counted: Vec<_> = opener.counts().iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [("length", 1), ("magic", 2)]);
    assert_eq!(opener.counts().iter().count(), Rejected::ALL.len());
}

/// One datagram that is sealed: how many sequences its sender passes over first (what others were sent), its
/// form, and how often and how late it arrives.
#[derive(Clone, Debug)]
struct Step {
    skip: u64,
    form: Form,
    copies: Vec<usize>,
}

fn step() -> impl Strategy<Value = Step> {
    let skip = prop_oneof![
        8 => 0..4_u64,
        3 => 0..REPLAY_WINDOW * 2,
        2 => 0..1_u64 << 31,
        1 => (1_u64 << 31) - 2..(1 << 31) + 2,
        1 => LAP - 2..LAP + 2,
    ];
    let form = prop_oneof![1 => Just(Introduction), 3 => Just(Short)];
    let copies = proptest::collection::vec(prop_oneof![3 => Just(0), 2 => 0..20_usize], 0..4);
    (skip, form, copies).prop_map(|(skip, form, copies)| Step { skip, form, copies })
}

/// What one opener may accept from one session on one network, told in the plainest way.
#[derive(Default)]
struct Model {
    accepted: BTreeSet<u64>,
}

impl Model {
    fn expects(&self, sequence: u64, form: Form) -> bool {
        let Some(newest) = self.accepted.last().copied() else { return form == Introduction };
        // Of all sequences with its low half, a short form means the nearest; of two equally near, the earlier.
        let alike = [sequence.checked_sub(LAP), Some(sequence), sequence.checked_add(LAP)];
        let nearest = alike.into_iter().flatten().min_by_key(|one| (one.abs_diff(newest), *one));
        let behind = newest.saturating_sub(sequence);
        let fresh = behind < REPLAY_WINDOW && !self.accepted.contains(&sequence);
        fresh && (form == Introduction || nearest == Some(sequence))
    }
}

proptest! {
    #[test]
    fn any_changed_bit_is_rejected(short: bool, payload in proptest::collection::vec(any::<u8>(), 0..100), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut sealer = sealer(1, 1, 1);
        let mut opener = acquainted(&mut sealer);
        let bytes = sealed(&mut sealer, 0, if short { Short } else { Introduction }, &payload);
        let mut changed = bytes.clone();
        let at = at.index(bytes.len());
        changed[at] ^= 1 << bit;
        prop_assert!(opener.open(&mut changed).is_err());
        // And it took nothing away from the true one.
        prop_assert!(opener.open(&mut bytes.clone()).is_ok());
    }

    #[test]
    fn garbage_never_panics_nor_takes_a_place(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut opener = opener();
        prop_assert!(opener.open(&mut bytes).is_err());
        prop_assert_eq!(opener.sources.len(), 0);
    }

    #[test]
    fn garbage_under_a_known_session_tag_does_not_open(low: u32, network in 0_u8..3, mut body in proptest::collection::vec(any::<u8>(), 0..60)) {
        let mut sealer = sealer(1, 1, 1);
        let mut opener = acquainted(&mut sealer);
        let clear = layout::Short { network, tag: sealer.session_tag, sequence_low: low }.encode();
        body.splice(0..0, clear);
        prop_assert!(opener.open(&mut body).is_err());
        prop_assert!(opener.open(&mut sealed(&mut sealer, 0, Short, b"")).is_ok());
    }

    #[test]
    fn mixed_forms_reordered_repeated_and_lost_over_many_laps_open_once_each(
        start in prop_oneof![Just(0), LAP - 50..LAP + 50, 5 * LAP - 50..5 * LAP + 50, any::<u32>().prop_map(u64::from)],
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut sealer = sealer(1, 1, 1);
        let (mut opener, mut model) = (opener(), Model::default());
        sealer.sequences.insert(0, start);
        let mut arrivals: Vec<(usize, u64, Form, Vec<u8>)> = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            *sealer.sequences.get_mut(&0).unwrap() += step.skip;
            let mut bytes = Vec::new();
            let sequence = sealer.seal(NetworkId(0), step.form, &at.to_le_bytes(), &mut bytes).unwrap();
            for late in &step.copies {
                arrivals.push((at + late, sequence, step.form, bytes.clone()));
            }
        }
        arrivals.sort_by_key(|(at, ..)| *at);
        for (_, sequence, form, bytes) in arrivals {
            let expected = model.expects(sequence, form);
            let mut buffer = bytes.clone();
            let opened = opener.open(&mut buffer);
            prop_assert_eq!(opened.is_ok(), expected, "{:?} {} {:?}", form, sequence, opened);
            if let Ok(opened) = opened {
                prop_assert_eq!((opened.source, opened.sequence), (NodeId(1), sequence));
                prop_assert!(model.accepted.insert(sequence));
            }
        }
    }

    #[test]
    fn sessions_of_several_nodes_restarts_and_keys_stay_apart(
        steps in proptest::collection::vec((0..3_u128, 0..6_u8, any::<bool>()), 1..80),
    ) {
        let mut opener = Opener::new(CLUSTER, &[key(1), key(2)]);
        let mut sealers: Vec<_> = (0..3).map(|node| (1_u64, 1_u32, sealer(node, 1, 1))).collect();
        for (node, action, short) in steps {
            let (incarnation, epoch, sealer) = &mut sealers[usize::try_from(node).unwrap()];
            match action {
                0 => {
                    *incarnation += 1;
                    let salt = [incarnation.to_le_bytes()[0]; 16];
                    *sealer = Sealer::new(CLUSTER, &key(*epoch), NodeId(node), Incarnation(*incarnation), salt);
                }
                1 => {
                    *epoch = 2;
                    sealer.rotate(&key(2));
                }
                2 => opener.forget(NodeId(node)),
                _ => {
                    let form = if short { Short } else { Introduction };
                    match opener.open(&mut sealed(sealer, 0, form, b"")) {
                        Ok(opened) => {
                            prop_assert_eq!((opened.source, opened.incarnation), (NodeId(node), Incarnation(*incarnation)));
                        }
                        Err(reason) => prop_assert_eq!((form, reason), (Short, Rejected::UnknownSession)),
                    }
                }
            }
            prop_assert!(opener.sources.tags_agree());
        }
    }
}
