//! A divided network: the side without a majority holds still, the other goes on, and afterwards there is one of everything.

use std::time::Instant;

use steadfast_cli::bed::Fault;

use super::support::{Trial, builder};

#[test]
fn a_program_on_the_minority_side_freezes_and_is_destroyed_when_it_was_moved() {
    let trial = Trial::new();
    trial.start_counter(2);
    trial.checkpoint();
    let before = trial.counter();
    let owner = trial.owner();

    trial.bed.split(&[&[2], &[0, 1]]).unwrap();
    trial.wait_frozen_on(owner);
    let recovered = trial.bed.host(0);
    trial.wait("the move to the majority", || {
        let row = recovered.container(super::support::COUNTER).ok()??;
        (row.state == "running" && row.epoch > before.epoch).then_some(())
    });
    trial.wait("the minority knows that it has no quorum", || (!owner.status().ok()?.quorum).then_some(()));
    trial.wait("a report from the majority", || {
        trial.witness.judge().last().is_some_and(|report| report.epoch > before.epoch).then_some(())
    });
    trial.witness.assert_clean();

    trial.bed.heal_all().unwrap();
    trial.wait_gone_from(owner);
    trial.bed.wait_members(3).unwrap();
    trial.wait_heard_since(Instant::now(), "the moved program goes on");
    trial.witness.assert_clean();
}

#[test]
fn a_program_on_the_minority_side_thaws_when_it_could_not_be_moved() {
    // Of five nodes two are cut off: the owner and the only holder of its checkpoint, so nobody else can go on from it.
    let trial = Trial::with(builder().hosts(5));
    trial.start_counter_with(2, &["--copies", "1"]);
    let checkpoint = trial.checkpoint();
    let before = trial.counter();
    let owner = trial.owner();
    let [copy] = &checkpoint.copies[..] else { panic!("one copy was asked for: {checkpoint:?}") };
    let holder = trial.bed.host_named(&copy.node).unwrap();
    let minority = [owner.number(), holder.number()];
    let majority: Vec<usize> = (0..5).filter(|number| !minority.contains(number)).collect();

    let both = trial.bed.split(&[&minority, &majority]).unwrap();
    trial.wait_frozen_on(owner);
    let survivor = trial.bed.host(majority[0]);
    trial.wait("the removal of the minority", || (survivor.members().ok()?.len() == 3).then_some(()));
    let frozen_at = trial.witness.judge().count();

    // The owner comes back before the holder does; the other way round the program would rightly go on at the holder.
    let others: Vec<usize> = (0..5).filter(|number| *number != holder.number()).collect();
    trial.bed.split(&[&[holder.number()], &others]).unwrap();
    trial.bed.heal(both).unwrap();
    trial.wait("the return of the owner", || (survivor.members().ok()?.len() == 4).then_some(()));
    trial.bed.heal_all().unwrap();
    trial.bed.wait_members(5).unwrap();
    trial.wait_heard_since(Instant::now(), "the thawed program");
    assert!(trial.witness.judge().count() > frozen_at);
    let after = trial.counter();
    assert_eq!((after.node, after.epoch), (before.node, before.epoch));
    trial.witness.assert_clean();
    assert_eq!(trial.witness.judge().epochs(), 1);
}

#[test]
fn without_a_majority_everything_freezes_and_nothing_moves() {
    let trial = Trial::new();
    trial.start_counter(0);
    trial.checkpoint();
    let before = trial.counter();
    let owner = trial.owner();

    trial.bed.split(&[&[0], &[1], &[2]]).unwrap();
    trial.wait_frozen_on(owner);
    let frozen_at = trial.witness.judge().count();
    for host in trial.bed.hosts() {
        trial.wait(&format!("{} says that there is no quorum", host.name()), || {
            (!host.status().ok()?.quorum).then_some(())
        });
        assert_eq!(host.members().unwrap().len(), 3, "no view is installed without a majority");
    }
    assert_eq!(trial.witness.judge().count(), frozen_at, "a frozen program says nothing");

    trial.bed.heal_all().unwrap();
    trial.wait("a report after the majority is back", || {
        (trial.witness.judge().count() > frozen_at).then_some(())
    });
    trial.bed.wait_members(3).unwrap();
    let after = trial.counter();
    assert_eq!((after.node, after.epoch), (before.node, before.epoch), "nothing was moved");
    trial.witness.assert_clean();
}

#[test]
fn the_loss_of_one_of_two_networks_moves_nobody() {
    let trial = Trial::new();
    trial.start_counter(0);
    let view = trial.bed.host(0).status().unwrap().view;
    for network in ["front", "back"] {
        let fault = trial.bed.inject(Fault::Network { network: network.into() }).unwrap();
        for host in trial.bed.hosts() {
            // Every other node is heard on the network that is left, and on that one only.
            trial.wait(&format!("{} sees {network} silent", host.name()), || {
                let peers = host.status().ok()?.peers;
                let silent = |peer: &steadfast_cli::api::types::Peer| {
                    peer.networks.iter().all(|heard| {
                        let lately = heard.age_ms.is_some_and(|age| age < 1500);
                        lately == (heard.network != network)
                    })
                };
                (peers.len() == 2 && peers.iter().all(silent)).then_some(())
            });
        }
        // A checkpoint still goes through: connections move to the network that is left.
        trial.checkpoint();
        trial.bed.heal(fault).unwrap();
        trial.wait("both networks heard again", || {
            let peers = trial.bed.host(0).status().ok()?.peers;
            let heard = peers
                .iter()
                .flat_map(|peer| &peer.networks)
                .all(|heard| heard.age_ms.is_some_and(|age| age < 1500));
            heard.then_some(())
        });
    }
    let now = trial.bed.host(0).status().unwrap().view;
    assert_eq!((now.id, now.members), (view.id, view.members), "no member left the view");
    assert_eq!(trial.witness.judge().epochs(), 1);
    trial.witness.assert_clean();
}
