//! The log beside a list of records, under random calls and crashes.

use proptest::prelude::*;

use super::super::Lsn;
use super::super::simulated::{Loss, SimulatedDisk};
use super::{append, open};

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Flush,
    Commit,
    Seal,
    Trim(u64),
    Prepare,
    Crash(Loss),
    /// The process ends, and the operating system keeps what it was given.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0_usize..900).prop_map(Step::Append),
        2 => Just(Step::Flush),
        4 => Just(Step::Commit),
        1 => Just(Step::Seal),
        2 => (0_u64..40).prop_map(Step::Trim),
        1 => Just(Step::Prepare),
        1 => prop_oneof![Just(Loss::Everything), Just(Loss::Nothing), any::<u64>().prop_map(Loss::Torn)].prop_map(Step::Crash),
        1 => Just(Step::Restart),
    ]
}

/// The model: every record that may still be there, and the first number after which none is promised.
#[derive(Default)]
struct Model {
    records: Vec<Vec<u8>>,
    committed: usize,
    flushed: usize,
    trimmed: u64,
}

impl Model {
    fn check(&mut self, oldest: Lsn, read: &[Vec<u8>], promised: usize) {
        let before = usize::try_from(oldest.0).unwrap() - 1;
        assert!(oldest.0 <= self.trimmed + 1, "what was not trimmed is there");
        let end = before + read.len();
        assert!((promised..=self.records.len()).contains(&end), "{end} of {promised}");
        assert_eq!(read, &self.records[before..end]);
        self.records.truncate(end);
        (self.committed, self.flushed) = (end, end);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_holds_what_a_list_holds(steps in proptest::collection::vec(step(), 1..160)) {
        let segment_bytes = 2 << 10;
        let mut disk = SimulatedDisk::new();
        let mut model = Model::default();
        let (mut log, _) = open(&disk, segment_bytes).unwrap();
        for step in steps {
            match step {
                Step::Append(length) => {
                    let fill = u8::try_from(model.records.len() % 256).unwrap();
                    model.records.push(vec![fill; length]);
                    let lsn = append(&mut log, &vec![fill; length]).unwrap();
                    prop_assert_eq!(lsn, model.records.len() as u64);
                }
                Step::Flush => {
                    log.flush().unwrap();
                    model.flushed = model.records.len();
                }
                Step::Commit | Step::Seal => {
                    let lsn = if matches!(step, Step::Seal) { log.seal() } else { log.commit() };
                    model.committed = model.records.len();
                    model.flushed = model.committed;
                    prop_assert_eq!(lsn.unwrap(), Lsn(model.committed as u64));
                }
                Step::Trim(kept) => {
                    model.trimmed = model.trimmed.max((model.committed as u64).saturating_sub(kept));
                    log.trim(Lsn(model.trimmed)).unwrap();
                }
                Step::Prepare => log.prepare().unwrap(),
                Step::Crash(loss) => {
                    drop(log);
                    disk.crash(loss);
                    disk = disk.restart();
                    let (again, read) = open(&disk, segment_bytes).unwrap();
                    log = again;
                    let promised = if loss == Loss::Nothing { model.flushed } else { model.committed };
                    model.check(log.oldest(), &read, promised);
                }
                Step::Restart => {
                    drop(log);
                    let (again, read) = open(&disk, segment_bytes).unwrap();
                    log = again;
                    let promised = model.flushed;
                    model.check(log.oldest(), &read, promised);
                }
            }
        }
    }
}
