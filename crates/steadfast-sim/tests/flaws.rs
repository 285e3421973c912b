//! The checkers can fail: each planted bug is caught, within a bounded number of seeds, by the checker that should.
//!
//! The very seed that catches it passes without it.

use steadfast_proto::flaw::{Flaw, plant};
use steadfast_sim::run::{Options, run};
use steadfast_sim::scenario::Scenario;

/// The flaw breaks `invariant`; in some worlds one of `others`, which follow from it, is seen first.
fn caught(flaw: Flaw, invariant: &str, others: &[&str], seeds: impl Iterator<Item = u64>) {
    let mut tried = 0;
    for seed in seeds {
        tried += 1;
        plant(Some(flaw));
        let flawed = run(Options { seed, ..Options::default() });
        plant(None);
        let Some(violation) = flawed.violation else { continue };
        assert!(
            violation.invariant == invariant || others.contains(&violation.invariant),
            "seed {seed} with {flaw:?}: {} {}",
            violation.invariant,
            violation.seen
        );
        let sound = run(Options { seed, ..Options::default() });
        assert_eq!(sound.violation, None, "{sound}");
        if violation.invariant == invariant {
            return;
        }
    }
    panic!("{flaw:?} passed {tried} seeds");
}

#[test]
fn acting_on_ones_own_verdict_is_caught() {
    caught(Flaw::ActOnOwnVerdict, "NEVER-TWO", &[], 1..=60);
}

#[test]
fn not_waiting_for_the_lease_is_caught() {
    caught(Flaw::SkipFence, "NEVER-TWO", &[], 1..=60);
}

#[test]
fn no_allowance_for_drift_is_caught() {
    // Only where one host is slow is the allowance all that keeps two copies apart.
    let slow = (1..).filter(|seed| Scenario::of(*seed).slow_host);
    caught(Flaw::DriftZero, "NEVER-TWO", &[], slow.take(400));
}

#[test]
fn a_checkpoint_in_a_row_of_its_own_is_caught() {
    caught(Flaw::TwoRows, "DEPOSED-COMMITS-NOTHING", &["NO-LOST-CHECKPOINT"], 1..=100);
}

#[test]
fn a_view_that_names_no_basis_is_caught() {
    caught(Flaw::ViewWithoutBasis, "VIEW-HISTORY", &["ONE-LIST"], 1..=60);
}

#[test]
fn thawing_without_a_fresh_lease_is_caught() {
    caught(Flaw::ThawWithoutFreshLease, "NEVER-TWO", &["NO-STEP-BACK"], 1..=200);
}
