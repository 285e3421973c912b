//! What the store must survive: the engine's own suite, and our crash suite.
//!
//! The crash suite runs a script of appends, votes, truncations, purges and checkpoints on a disk made of memory and breaks it at every single
//! input or output call in every way it knows. Afterwards the store must be as after some prefix of the script that holds everything that was
//! acknowledged; or refuse to open. Which disk is found after a crash (what was not synced may be there, partly or not at all) is drawn from
//! a seed that a failure prints.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, StorageError};

use super::*;
use crate::catalog::engine::{Engine, Entry, StoredMembership};
use crate::catalog::machine::Machine;
use crate::catalog::session::{SessionId, Sessions, Stamp};
use crate::catalog::table::Command;
use crate::catalog::{Txn, Versioned};

const OWNER: Owner = Owner { cluster: 9, node: 1 };

struct Builder;

impl StoreBuilder<Engine, Store, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, Store, Machine), StorageError<Engine>> {
        let dir = tempfile::tempdir().unwrap();
        let (store, restored) = Store::open(dir.path(), OWNER, StoreId(1)).unwrap();
        Ok((dir, store.clone(), Machine::new(1, store, restored)))
    }
}

#[test]
fn the_engines_own_suite_passes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}

#[test]
fn a_store_of_another_member_or_cluster_is_refused_and_so_is_a_second_process() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path(), OWNER, StoreId(5)).unwrap();
    let twice = Store::open(dir.path(), OWNER, StoreId(6)).unwrap_err();
    assert!(matches!(twice, StoreError::InUse { .. }), "{twice}");
    store.close();
    let foreign = Store::open(dir.path(), Owner { cluster: 8, node: 1 }, StoreId(6)).unwrap_err();
    assert!(matches!(foreign, StoreError::Foreign { .. }), "{foreign}");
    let foreign = Store::open(dir.path(), Owner { cluster: 9, node: 2 }, StoreId(6)).unwrap_err();
    assert!(foreign.to_string().contains("made for member 1, not for member 2"), "{foreign}");
    let (store, _) = Store::open(dir.path(), OWNER, StoreId(6)).unwrap();
    assert_eq!(store.id(), StoreId(5));
}

/// A disk in memory that breaks on demand.
#[derive(Debug, Default)]
struct Disk {
    /// What a process sees.
    content: Vec<u8>,
    /// What was there at the last sync.
    synced: Vec<u8>,
    /// What happened since.
    unsynced: Vec<Op>,
    calls: u64,
    syncs: u64,
    fault: Option<(u64, Fault)>,
    broken: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The machine loses its power: this call and all later ones fail.
    Power,
    /// The same, and half of this write reaches the disk.
    Torn,
    /// The call fails; later ones would work.
    Error,
    /// There is no space; later calls would work.
    NoSpace,
}

#[derive(Clone, Debug)]
struct Backend(Arc<Mutex<Disk>>);

impl Backend {
    fn of(content: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Disk { synced: content.clone(), content, ..Disk::default() })))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }
}

impl Disk {
    /// Counts a call that changes the disk; says whether it fails.
    fn call(&mut self, torn: impl FnOnce(&mut Self)) -> io::Result<()> {
        self.calls += 1;
        let lost = || Err(io::Error::other("the power is lost"));
        if self.broken {
            return lost();
        }
        let Some((_, fault)) = self.fault.filter(|(at, _)| *at == self.calls) else { return Ok(()) };
        match fault {
            Fault::Power => {
                self.broken = true;
                lost()
            }
            Fault::Torn => {
                torn(self);
                self.broken = true;
                lost()
            }
            Fault::Error => Err(io::Error::other("the disk does not answer")),
            Fault::NoSpace => Err(io::Error::from(io::ErrorKind::StorageFull)),
        }
    }

    fn apply(content: &mut Vec<u8>, op: &Op) {
        match op {
            Op::Write(offset, data) => {
                if content.len() < offset + data.len() {
                    content.resize(offset + data.len(), 0);
                }
                content[*offset..offset + data.len()].copy_from_slice(data);
            }
            Op::Length(length) => content.resize(*length, 0),
        }
    }

    fn change(&mut self, op: Op) {
        Self::apply(&mut self.content, &op);
        self.unsynced.push(op);
    }

    /// What is found after the power comes back.
    fn after_crash(&self, dice: &mut Dice) -> Vec<u8> {
        let mut found = self.synced.clone();
        let keep_of_eight = [0, 8, dice.below(8)][usize::try_from(dice.below(3)).unwrap()];
        for op in &self.unsynced {
            match op {
                Op::Length(_) => Self::apply(&mut found, op),
                Op::Write(offset, data) if dice.below(8) < keep_of_eight => {
                    // Sectors of one write are kept or lost alone.
                    let torn = dice.below(4) == 0;
                    for (number, sector) in data.chunks(512).enumerate() {
                        if !torn || dice.below(2) == 0 {
                            Self::apply(&mut found, &Op::Write(offset + number * 512, sector.to_vec()));
                        }
                    }
                }
                Op::Write(..) => {}
            }
        }
        found
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk().content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.disk();
        let offset = usize::try_from(offset).unwrap();
        let Some(data) = disk.content.get(offset..offset + out.len()) else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        };
        out.copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk();
        disk.call(|_| {})?;
        disk.change(Op::Length(usize::try_from(len).unwrap()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk();
        disk.call(|_| {})?;
        disk.syncs += 1;
        disk.synced = disk.content.clone();
        disk.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let offset = usize::try_from(offset).unwrap();
        disk.call(|disk| disk.change(Op::Write(offset, data[..data.len() / 2].to_vec())))?;
        disk.change(Op::Write(offset, data.to_vec()));
        Ok(())
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Everything that a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, u64>,
    checkpoint: Option<LogId>,
    rows: BTreeMap<String, Versioned>,
}

#[derive(Clone, Debug)]
enum Step {
    Vote(u64),
    Append { term: u64, first: u64, count: u64 },
    Committed(u64, u64),
    Truncate(u64, u64),
    Purge(u64, u64),
    Checkpoint { term: u64, index: u64, rows: Vec<(&'static str, Option<&'static str>)>, all: bool },
}

fn script() -> Vec<Step> {
    vec![
        Step::Vote(1),
        Step::Append { term: 1, first: 0, count: 1 },
        Step::Append { term: 1, first: 1, count: 4 },
        Step::Committed(1, 3),
        Step::Checkpoint { term: 1, index: 3, rows: vec![("a", Some("1")), ("b", Some("1"))], all: false },
        Step::Append { term: 1, first: 5, count: 3 },
        Step::Vote(2),
        Step::Truncate(1, 5),
        Step::Append { term: 2, first: 6, count: 2 },
        Step::Purge(1, 2),
        Step::Committed(2, 6),
        Step::Append { term: 2, first: 8, count: 30 },
        Step::Checkpoint { term: 2, index: 20, rows: vec![("a", None), ("c", Some("2"))], all: false },
        Step::Purge(2, 18),
        Step::Vote(4),
        Step::Append { term: 4, first: 38, count: 1 },
        Step::Checkpoint { term: 4, index: 50, rows: vec![("d", Some("installed"))], all: true },
        Step::Purge(4, 50),
        Step::Append { term: 4, first: 51, count: 2 },
        Step::Committed(4, 52),
        Step::Vote(5),
    ]
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(leader(term).to_committed(), index)
}

fn leader(term: u64) -> openraft::type_config::alias::LeaderIdOf<Engine> {
    openraft::type_config::alias::LeaderIdOf::<Engine>::new(term, 1)
}

fn vote(term: u64) -> Vote {
    Vote::new(term, 1)
}

fn entry(term: u64, index: u64) -> Entry {
    let stamp =
        Stamp { session: SessionId { node: 1, boot: 1 }, number: index, oldest_pending: 0, issued_at: 0 };
    let txn = Txn::put(format!("row/{index}"), vec![b'v'; 300]);
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(Command { stamp, txn }) }
}

fn rows_of(index: u64, rows: &[(&str, Option<&str>)]) -> Vec<(String, Option<Versioned>)> {
    let row = |value: &str| Versioned { value: value.to_owned().into(), version: index };
    rows.iter().map(|(key, value)| ((*key).to_owned(), value.map(row))).collect()
}

impl Content {
    fn after(mut self, step: &Step) -> Self {
        match step {
            Step::Vote(term) => self.vote = Some(vote(*term)),
            Step::Append { term, first, count } => {
                self.entries.extend((*first..first + count).map(|index| (index, *term)))
            }
            Step::Committed(term, index) => self.committed = Some(log_id(*term, *index)),
            Step::Truncate(_, last) => drop(self.entries.split_off(&(last + 1))),
            Step::Purge(term, upto) => {
                self.entries = self.entries.split_off(&(upto + 1));
                self.purged = Some(log_id(*term, *upto));
            }
            Step::Checkpoint { term, index, rows, all } => {
                if *all {
                    self.rows.clear();
                }
                for (key, row) in rows_of(*index, rows) {
                    match row {
                        Some(row) => drop(self.rows.insert(key, row)),
                        None => drop(self.rows.remove(&key)),
                    }
                }
                self.checkpoint = Some(log_id(*term, *index));
            }
        }
        self
    }
}

async fn perform(store: &mut Store, step: &Step, rows_after: u64) -> io::Result<()> {
    match step {
        Step::Vote(term) => store.save_vote(&vote(*term)).await,
        Step::Append { term, first, count } => {
            let (sender, receiver) = Engine::oneshot();
            let entries: Vec<Entry> = (*first..first + count).map(|index| entry(*term, index)).collect();
            store.append(entries, IOFlushed::signal(sender)).await?;
            receiver.await.unwrap()
        }
        Step::Committed(term, index) => store.save_committed(Some(log_id(*term, *index))).await,
        Step::Truncate(term, last) => store.truncate_after(Some(log_id(*term, *last))).await,
        Step::Purge(term, upto) => store.purge(log_id(*term, *upto)).await,
        Step::Checkpoint { term, index, rows, all } => {
            let meta = SnapshotMeta {
                last_log_id: Some(log_id(*term, *index)),
                last_membership: StoredMembership::default(),
            };
            let mark =
                CheckpointMark { meta, revision: *index, rows: rows_after, sessions: Sessions::default() };
            let rows = rows_of(*index, rows);
            let rows = if *all { writer::Rows::All(rows) } else { writer::Rows::Changed(rows) };
            Ok(store.checkpoint(Checkpoint { mark, rows }).await.unwrap()?)
        }
    }
}

async fn content_of(store: &mut Store, restored: &Restored) -> Content {
    let entries = store.try_get_log_entries(..).await.unwrap();
    Content {
        vote: store.read_vote().await.unwrap(),
        committed: store.read_committed().await.unwrap(),
        purged: store.get_log_state().await.unwrap().last_purged_log_id,
        entries: entries.iter().map(|entry| (entry.log_id.index(), entry.log_id.leader_id.term)).collect(),
        checkpoint: restored.meta.last_log_id,
        rows: restored.table.rows().clone(),
    }
}

/// A new store, as bytes.
fn fresh() -> Vec<u8> {
    let backend = Backend::of(Vec::new());
    let database = open_database(Path::new("memory"), backend.clone()).unwrap();
    initialize(Path::new("memory"), &database, OWNER, StoreId(3)).unwrap();
    drop(database);
    backend.disk().content.clone()
}

struct Run {
    backend: Backend,
    /// Steps that were handed over, and of those the last that was acknowledged.
    submitted: usize,
    acknowledged: usize,
}

/// Runs the script until something fails; then checks that everything fails.
async fn run(start: &[u8], contents: &[Content], fault: Option<(u64, Fault)>) -> Run {
    let backend = Backend::of(start.to_vec());
    let opened = Store::open_backend(Path::new("memory"), backend.clone(), OWNER);
    let (mut store, _) = opened.unwrap();
    {
        let mut disk = backend.disk();
        disk.calls = 0;
        disk.fault = fault;
    }
    let mut done = Run { backend, submitted: 0, acknowledged: 0 };
    let mut failed = false;
    for (number, step) in script().iter().enumerate() {
        done.submitted = number + 1;
        let rows = contents[number + 1].rows.len() as u64;
        let needs_sync = !matches!(step, Step::Committed(..) | Step::Purge(..));
        match perform(&mut store, step, rows).await {
            Ok(()) if needs_sync => {
                assert!(!failed, "a store that failed acknowledged {step:?}");
                done.acknowledged = number + 1;
            }
            Ok(()) => {}
            Err(_) => {
                assert!(store.failure().is_some());
                failed = true;
            }
        }
    }
    store.close();
    done
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_wherever_the_disk_fails() {
    let start = fresh();
    let mut contents = vec![Content::default()];
    for step in &script() {
        contents.push(contents.last().unwrap().clone().after(step));
    }
    let whole = run(&start, &contents, None).await;
    let calls = whole.backend.disk().calls;
    assert_eq!(whole.acknowledged, script().len());
    let mut points = 0;
    for at in 1..=calls {
        for fault in [Fault::Power, Fault::Torn, Fault::Error, Fault::NoSpace] {
            let done = run(&start, &contents, Some((at, fault))).await;
            for seed in 0..20 {
                let mut dice = Dice(at * 1000 + seed);
                let found = done.backend.disk().after_crash(&mut dice);
                let what = format!("call {at} of {calls}, {fault:?}, seed {seed}");
                let opened = Store::open_backend(Path::new("memory"), Backend::of(found), OWNER);
                let (mut store, restored) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
                let content = content_of(&mut store, &restored).await;
                let allowed = &contents[done.acknowledged..=done.submitted];
                assert!(
                    allowed.contains(&content),
                    "{what}: acknowledged {}, submitted {}, found {content:?}",
                    done.acknowledged,
                    done.submitted
                );
                store.close();
                points += 1;
            }
        }
    }
    println!("{points} crash points over {calls} calls");
    assert!(points >= 10_000, "the script became too short: {points} crash points");
}

#[tokio::test]
async fn a_full_disk_is_named_and_closes_the_store() {
    let backend = Backend::of(fresh());
    let (mut store, _) = Store::open_backend(Path::new("/somewhere"), backend.clone(), OWNER).unwrap();
    let next = backend.disk().calls + 1;
    backend.disk().fault = Some((next, Fault::NoSpace));
    let refused = store.save_vote(&vote(1)).await.unwrap_err();
    assert!(refused.to_string().contains("no space is left on the disk"), "{refused}");
    assert!(matches!(store.failure(), Some(StoreError::NoSpace { .. })));
    backend.disk().fault = None;
    assert!(
        store.save_vote(&vote(2)).await.is_err(),
        "space came back, and still nobody knows what is on the disk"
    );
    assert!(store.try_get_log_entries(..).await.is_err());
}

#[tokio::test]
async fn a_changed_byte_is_noticed_or_does_not_matter() {
    let start = fresh();
    let mut contents = vec![Content::default()];
    for step in &script() {
        contents.push(contents.last().unwrap().clone().after(step));
    }
    let whole = run(&start, &contents, None).await;
    let good = whole.backend.disk().content.clone();
    let expected = contents.last().unwrap();
    // Every bit of the file's own header, and one of the bytes that hold something or might.
    let header = (0..320).flat_map(|at| (0..8).map(move |bit| (at, 1_u8 << bit)));
    let used: Vec<usize> = (320..good.len()).filter(|at| good[*at] != 0 || at % 4099 == 0).collect();
    let step = (used.len() / 2000).max(1);
    let rest = used.iter().step_by(step).map(|at| (*at, 0x10));
    let (mut noticed, mut unharmed) = (0, 0);
    for (at, bits) in header.chain(rest) {
        let mut bad = good.clone();
        bad[at] ^= bits;
        match Store::open_backend(Path::new("memory"), Backend::of(bad), OWNER) {
            Ok((mut store, restored)) => {
                assert_eq!(
                    &content_of(&mut store, &restored).await,
                    expected,
                    "byte {at} was changed by {bits:#x}"
                );
                store.close();
                unharmed += 1;
            }
            Err(error) => {
                assert!(!matches!(error, StoreError::NoSpace { .. }), "byte {at}: {error}");
                noticed += 1;
            }
        }
    }
    println!("{noticed} noticed, {unharmed} unharmed");
    assert!(noticed > 0);
}

#[tokio::test]
async fn an_idle_store_writes_nothing_and_marks_ride_along() {
    let backend = Backend::of(fresh());
    let (mut store, _) = Store::open_backend(Path::new("memory"), backend.clone(), OWNER).unwrap();
    store.save_vote(&vote(1)).await.unwrap();
    let counted = |backend: &Backend| {
        let disk = backend.disk();
        (disk.syncs, disk.calls)
    };
    let before = counted(&backend);
    for _ in 0..10 {
        store.save_committed(None).await.unwrap();
    }
    store.save_committed(Some(log_id(1, 0))).await.unwrap();
    assert_eq!(counted(&backend), before);
    store.save_vote(&vote(2)).await.unwrap();
    assert_eq!(counted(&backend).0, before.0 + 1);
    store.close();
    let content = backend.disk().content.clone();
    let (mut store, _) = Store::open_backend(Path::new("memory"), Backend::of(content), OWNER).unwrap();
    assert_eq!(store.read_committed().await.unwrap(), Some(log_id(1, 0)));
}
