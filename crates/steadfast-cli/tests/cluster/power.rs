//! Power loss of the host that a program runs on, again and again.

use super::support::{COUNTER, Trial};

/// How often the host is killed in a row.
const KILLS: u64 = 20;

#[test]
fn twenty_power_losses_in_a_row_never_show_two_copies_or_a_step_back() {
    let trial = Trial::new();
    trial.start_counter(0);
    for round in 1..=KILLS {
        let checkpoint = trial.checkpoint();
        let before = trial.counter();
        let victim = trial.owner();
        assert_eq!(checkpoint.container, COUNTER);

        victim.power_off().unwrap();
        let after = trial.wait_recovered(before.epoch);
        assert_ne!(after.node, victim.name(), "round {round}");
        trial.witness.assert_clean();

        trial.bring_back(victim);
        trial.witness.assert_clean();
        eprintln!("round {round}: {} -> {}, epoch {}", victim.name(), after.node, after.epoch);
    }
    let judge = trial.witness.judge();
    assert_eq!(judge.epochs(), KILLS + 1, "each loss is one new epoch that was heard");
}
