//! The checkers of events can fail: each planted flaw of PROTOCOLS 4.3 is caught by the checker that should, and the very
//! seed that catches it passes without it.

use steadfast_proto::flaw::{Flaw, plant};
use steadfast_sim::events::{Plan, run};

#[track_caller]
fn caught(flaw: Flaw, invariants: &[&str]) {
    let plan = Plan::default();
    for seed in 1..=100 {
        plant(Some(flaw));
        let flawed = run(&plan, seed);
        plant(None);
        let Some(violation) = &flawed.violation else { continue };
        println!("{flaw:?}: {flawed}");
        assert!(invariants.contains(&violation.invariant), "{flaw:?}: {flawed}");
        let sound = run(&plan, seed);
        assert_eq!(sound.violation, None, "{sound}");
        return;
    }
    panic!("{flaw:?} passed 100 seeds");
}

#[test]
fn what_another_node_tells_taken_for_an_event_of_this_one_is_caught() {
    caught(Flaw::EventsLoop, &["LOOP"]);
}

#[test]
fn a_full_buffer_that_drops_silently_is_caught() {
    caught(Flaw::EventsSilentOverrun, &["EV5"]);
}

#[test]
fn a_lease_that_never_ends_is_caught() {
    caught(Flaw::EventsEndlessLease, &["EV1"]);
}
