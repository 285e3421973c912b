//! Checkpoints that must not be committed: one whose owner's lease lapses while it is taken, and one of a deposed owner.

use std::process::Stdio;
use std::time::Instant;

use rustix::process::Signal;
use steadfast_cli::bed::Host;

use super::support::{COUNTER, Trial};

/// How often a checkpoint may win the race against the fault before the test gives up.
const TRIES: u32 = 16;

/// Whether a checkpoint is being taken on this host right now: its CRIU runs.
fn is_dumping(host: &Host) -> bool {
    host.processes().iter().any(|id| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        // The command that asks for it has the word `checkpoint` too, and is there before anything is under way.
        words.contains(&&b"swrk"[..])
    })
}

/// Asks for a checkpoint and calls `fault` while it is under way; `true` when it was refused in the end.
fn interrupted(trial: &Trial, owner: &Host, fault: impl Fn(), undo: impl Fn()) -> bool {
    let before = trial.counter();
    let mut command = owner.steadfast_command();
    command.args(["checkpoint", COUNTER]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mark = trial.witness.mark();
    let mut asked = owner.spawn(&mut command).unwrap();
    let under_way = trial.wait("a checkpoint under way", || match asked.try_wait().unwrap() {
        Some(_) => Some(false),
        None => is_dumping(owner).then_some(true),
    });
    if under_way {
        fault();
        trial.wait_recovered(before.epoch);
        undo();
    }
    let committed = asked.wait().unwrap().success();
    if committed {
        trial.witness.commit(mark);
    }
    under_way && !committed
}

#[test]
fn a_checkpoint_under_way_when_the_lease_lapses_is_not_committed() {
    let trial = Trial::new();
    trial.start_counter(1);
    for _ in 0..TRIES {
        trial.checkpoint();
        let before = trial.counter();
        let owner = trial.owner();
        let others: Vec<usize> = (0..3).filter(|number| *number != owner.number()).collect();
        let split = || {
            trial.bed.split(&[&[owner.number()], &others]).unwrap();
        };
        let refused = interrupted(&trial, owner, split, || trial.bed.heal_all().unwrap());
        trial.wait_gone_from_unless_owner(owner);
        trial.bed.wait_members(3).unwrap();
        if refused {
            let latest = trial.counter().latest.expect("the committed one is still there");
            assert_eq!(latest.number, before.latest.unwrap().number, "only the old one is committed");
            trial.wait_heard_since(Instant::now(), "the program goes on");
            trial.witness.assert_clean();
            return;
        }
    }
    panic!("the checkpoint was committed before the lease lapsed in each of {TRIES} tries");
}

#[test]
fn a_checkpoint_of_a_deposed_owner_is_not_committed() {
    let trial = Trial::new();
    trial.start_counter(1);
    for _ in 0..TRIES {
        trial.checkpoint();
        let before = trial.counter();
        let owner = trial.owner();
        let stop = || owner.signal_agent(Signal::STOP).unwrap();
        let refused = interrupted(&trial, owner, stop, || owner.signal_agent(Signal::CONT).unwrap());
        trial.wait_gone_from_unless_owner(owner);
        trial.bed.wait_members(3).unwrap();
        if refused {
            let after = trial.counter();
            let latest = after.latest.expect("the committed one is still there");
            assert_eq!(latest.number, before.latest.unwrap().number, "the deposed owner's is not committed");
            assert!(after.epoch > before.epoch);
            trial.wait_heard_since(Instant::now(), "the program goes on");
            trial.witness.assert_clean();
            return;
        }
    }
    panic!("the checkpoint was committed before its owner was deposed in each of {TRIES} tries");
}

impl Trial {
    /// Waits until the old copy is gone from `host`, unless the program still lives there by right.
    fn wait_gone_from_unless_owner(&self, host: &Host) {
        if self.counter().node != host.name() {
            self.wait_gone_from(host);
        }
    }
}
