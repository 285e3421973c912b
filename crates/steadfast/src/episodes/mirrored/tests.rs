//! Keepers that crash, are cut off and take homes from each other, in any order of the steps of what they do.
//!
//! A world runs the very futures that agents run, one step of one of them at a time, by a seed. Each commit writes its number into
//! all homes of its keeper; whoever takes one over must find it in all of them or in none, and always when it was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use futures_util::future::BoxFuture;
use oorandom::Rand64;
use steadfast_proto::exchange::{Blob, Name};
use steadfast_proto::flaw::{Flaw, plant};
use steadfast_proto::ids::NodeId;

use super::keeping::{Keeping, Taken};
use super::{Answer, Change, Cluster, Copies, Generation, MirrorError, Question, Table};
use crate::episodes::StoreError;

const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
const HOMES: u32 = 4;
const STEPS: usize = 600;

/// What all nodes see.
struct Common {
    random: Rand64,
    table: Table,
    version: u64,
    copies: BTreeMap<NodeId, Copies>,
    down: BTreeSet<NodeId>,
    /// Nodes that nobody reaches, and that reach nobody.
    cut: BTreeSet<NodeId>,
    is_lossy: bool,
}

impl Common {
    fn chance(&mut self, percent: u64) -> bool {
        self.is_lossy && self.random.rand_range(0..100) < percent
    }
}

#[derive(Clone)]
struct Link {
    me: NodeId,
    common: Arc<Mutex<Common>>,
}

impl Link {
    fn common(&self) -> MutexGuard<'_, Common> {
        self.common.lock().expect("nobody panics")
    }

    fn lost(&self) -> bool {
        let mut common = self.common();
        common.cut.contains(&self.me) || common.chance(2)
    }
}

/// Lets others go on.
async fn pause() {
    let mut is_over = false;
    std::future::poll_fn(
        |_| {
            if std::mem::replace(&mut is_over, true) { Poll::Ready(()) } else { Poll::Pending }
        },
    )
    .await;
}

impl Cluster for Link {
    fn ask(&self, node: NodeId, question: Question) -> BoxFuture<'_, Result<Answer, String>> {
        Box::pin(async move {
            pause().await;
            let answer = {
                let lost = self.lost();
                let common = self.common();
                if lost || common.down.contains(&node) || common.cut.contains(&node) {
                    return Err("it is lost".to_owned());
                }
                common.copies[&node].ask(question).map_err(|error| error.to_string())?
            };
            pause().await;
            if self.lost() { Err("the answer is lost".to_owned()) } else { Ok(answer) }
        })
    }

    fn holders(&self) -> Vec<NodeId> {
        let mut common = self.common();
        if common.chance(5) {
            return Vec::new();
        }
        let mut others: Vec<NodeId> = NODES.into_iter().filter(|node| *node != self.me).collect();
        if common.random.rand_range(0..2) == 0 {
            others.reverse();
        }
        others
    }

    fn table(&self) -> BoxFuture<'_, Result<(Table, u64), StoreError>> {
        Box::pin(async move {
            pause().await;
            if self.lost() {
                return Err(MirrorError::Holder("no catalog".to_owned()).into());
            }
            let common = self.common();
            Ok((common.table.clone(), common.version))
        })
    }

    fn swap(&self, version: u64, table: Table) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        Box::pin(async move {
            pause().await;
            let lost = || StoreError::from(MirrorError::Holder("no catalog".to_owned()));
            if self.lost() {
                return Err(lost());
            }
            let swapped = {
                let mut common = self.common();
                if common.version == version {
                    (common.table, common.version) = (table, version + 1);
                    Some(version + 1)
                } else {
                    None
                }
            };
            pause().await;
            if self.lost() { Err(lost()) } else { Ok(swapped) }
        })
    }
}

type Work<T> = Pin<Box<dyn Future<Output = (Keeping, Result<T, StoreError>)>>>;

enum Doing {
    Nothing,
    Idle(Keeping),
    Adopting(Work<Vec<Taken>>),
    Committing(usize, Work<()>),
    Releasing(BTreeSet<u32>, Work<()>),
}

#[derive(Debug, Default)]
struct Commit {
    homes: BTreeSet<u32>,
    is_acknowledged: bool,
    /// Whether it is in the homes, as whoever took one over found.
    is_there: Option<bool>,
}

struct World {
    common: Arc<Mutex<Common>>,
    doing: BTreeMap<NodeId, Doing>,
    /// What each keeper knows of its homes: the commits in them.
    known: BTreeMap<NodeId, BTreeMap<u32, Vec<u8>>>,
    commits: Vec<Commit>,
    lives: u64,
    lives_of: BTreeMap<NodeId, u64>,
    adopted: usize,
}

/// Why a run is wrong.
type Verdict = Result<(), String>;

impl World {
    fn new(seed: u64) -> World {
        let common = Common {
            random: Rand64::new(seed.into()),
            table: Table::default(),
            version: 0,
            copies: NODES.map(|node| (node, Copies::default())).into(),
            down: BTreeSet::new(),
            cut: BTreeSet::new(),
            is_lossy: true,
        };
        World {
            common: Arc::new(Mutex::new(common)),
            doing: NODES.map(|node| (node, Doing::Nothing)).into(),
            known: BTreeMap::new(),
            commits: Vec::new(),
            lives: 0,
            lives_of: BTreeMap::new(),
            adopted: 0,
        }
    }

    fn common(&self) -> MutexGuard<'_, Common> {
        self.common.lock().expect("nobody panics")
    }

    fn pick(&self, below: usize) -> usize {
        usize::try_from(self.common().random.rand_range(0..below as u64)).expect("it is small")
    }

    fn open(&mut self, node: NodeId) -> Keeping {
        self.lives += 1;
        self.lives_of.insert(node, self.lives);
        self.known.insert(node, BTreeMap::new());
        let copies = self.common().copies[&node].clone();
        let link = Link { me: node, common: Arc::clone(&self.common) };
        Keeping::new(node, self.lives << 32, copies, Arc::new(link))
    }

    fn step(&mut self, node: NodeId) -> Verdict {
        let doing = std::mem::replace(self.doing.get_mut(&node).expect("it is one"), Doing::Nothing);
        let next = match doing {
            Doing::Nothing => {
                if self.common().down.contains(&node) {
                    return Ok(());
                }
                Doing::Idle(self.open(node))
            }
            Doing::Idle(keeping) => self.begin(node, keeping),
            Doing::Adopting(mut work) => match poll(&mut work) {
                None => Doing::Adopting(work),
                Some((keeping, Ok(taken))) => {
                    for one in taken {
                        self.found(node, &one)?;
                    }
                    Doing::Idle(keeping)
                }
                Some((_, Err(_))) => Doing::Nothing,
            },
            Doing::Committing(number, mut work) => match poll(&mut work) {
                None => Doing::Committing(number, work),
                Some((keeping, Ok(()))) => {
                    let commit = &mut self.commits[number];
                    if commit.is_there == Some(false) {
                        return Err(format!("commit {number} is acknowledged, and was not found"));
                    }
                    commit.is_acknowledged = true;
                    Doing::Idle(keeping)
                }
                Some((_, Err(_))) => Doing::Nothing,
            },
            Doing::Releasing(homes, mut work) => match poll(&mut work) {
                None => Doing::Releasing(homes, work),
                Some((keeping, Ok(()))) => {
                    let known = self.known.entry(node).or_default();
                    known.retain(|home, _| !homes.contains(home));
                    Doing::Idle(keeping)
                }
                Some((_, Err(_))) => Doing::Nothing,
            },
        };
        self.doing.insert(node, next);
        Ok(())
    }

    fn begin(&mut self, node: NodeId, mut keeping: Keeping) -> Doing {
        let some = |world: &World| -> BTreeSet<u32> { (0..HOMES).filter(|_| world.pick(2) == 0).collect() };
        match self.pick(8) {
            0 | 1 => {
                let known = self.known.entry(node).or_default();
                let missing: BTreeSet<u32> = (0..HOMES).filter(|home| !known.contains_key(home)).collect();
                let homes: BTreeSet<u32> = some(self).intersection(&missing).copied().collect();
                let living: BTreeSet<NodeId> = NODES.into_iter().filter(|_| self.pick(3) > 0).collect();
                Doing::Adopting(Box::pin(async move {
                    let adopted = keeping.adopt(&homes, &living).await;
                    (keeping, adopted)
                }))
            }
            2 => {
                let homes = some(self);
                let given = homes.clone();
                Doing::Releasing(
                    given,
                    Box::pin(async move {
                        let released = keeping.release(&homes).await;
                        (keeping, released)
                    }),
                )
            }
            _ => self.begin_commit(node, keeping),
        }
    }

    fn begin_commit(&mut self, node: NodeId, keeping: Keeping) -> Doing {
        let number = self.commits.len();
        let known = self.known.entry(node).or_default();
        if known.is_empty() {
            return Doing::Idle(keeping);
        }
        self.commits.push(Commit { homes: known.keys().copied().collect(), ..Commit::default() });
        let changes = known.iter_mut().map(|(home, numbers)| {
            numbers.extend_from_slice(&u16::try_from(number).expect("few").to_le_bytes());
            Change { home: *home, name: name(*home), bytes: Some(Blob::from(numbers.as_slice())) }
        });
        let changes = changes.collect();
        Doing::Committing(
            number,
            Box::pin(async move {
                let committed = keeping.commit(changes, Vec::new()).await;
                (keeping, committed)
            }),
        )
    }

    /// A node has taken a home over.
    fn found(&mut self, node: NodeId, taken: &Taken) -> Verdict {
        let bytes = taken.instances.first().map(|(_, bytes)| bytes.to_vec()).unwrap_or_default();
        let nonce = self.common().table.generation(taken.home).nonce;
        if nonce >> 32 != self.lives_of[&node] {
            // It was overtaken between the change of the table and the answer, and will be told so.
            self.known.entry(node).or_default().insert(taken.home, bytes);
            return Ok(());
        }
        self.adopted += 1;
        let numbers: BTreeSet<usize> =
            bytes.chunks_exact(2).map(|two| usize::from(u16::from_le_bytes([two[0], two[1]]))).collect();
        // One that still runs and is a deposed keeper's is settled too: it is there, or never will be.
        for (number, commit) in self.commits.iter_mut().enumerate() {
            if !commit.homes.contains(&taken.home) {
                continue;
            }
            let is_there = numbers.contains(&number);
            if commit.is_there.is_some_and(|before| before != is_there) {
                return Err(format!("commit {number} is torn: {is_there} in home {}", taken.home));
            }
            if commit.is_acknowledged && !is_there {
                return Err(format!("commit {number} is lost from home {}", taken.home));
            }
            commit.is_there = Some(is_there);
        }
        self.known.entry(node).or_default().insert(taken.home, bytes);
        Ok(())
    }

    fn fault(&mut self) {
        let node = NODES[self.pick(NODES.len())];
        match self.pick(4) {
            0 => {
                self.common().down.insert(node);
                self.doing.insert(node, Doing::Nothing);
            }
            1 => drop(self.common().cut.insert(node)),
            _ => {
                let mut common = self.common();
                common.down.remove(&node);
                common.cut.remove(&node);
            }
        }
    }

    /// All is well from now on, and one node takes everything.
    fn gather(&mut self, node: NodeId) -> Verdict {
        for other in NODES {
            self.doing.insert(other, Doing::Nothing);
        }
        let mut keeping = Some(self.open(node));
        for _ in 0..10 {
            let (known, mut own) =
                (self.known.entry(node).or_default(), keeping.take().expect("it is there"));
            let homes: BTreeSet<u32> = (0..HOMES).filter(|home| !known.contains_key(home)).collect();
            if homes.is_empty() {
                return Ok(());
            }
            let mut work: Work<Vec<Taken>> = Box::pin(async move {
                let adopted = own.adopt(&homes, &BTreeSet::new()).await;
                (own, adopted)
            });
            let (own, adopted) = loop {
                if let Some(done) = poll(&mut work) {
                    break done;
                }
            };
            for one in adopted.map_err(|error| error.to_string())? {
                self.found(node, &one)?;
            }
            keeping = Some(own);
        }
        Err("some homes can't be had any more".to_owned())
    }

    /// Everybody is there again.
    fn heal(&mut self) {
        let mut common = self.common();
        common.is_lossy = false;
        common.down.clear();
        common.cut.clear();
    }
}

fn name(home: u32) -> Name {
    Name::parse(&format!("x/{home}")).expect("a name")
}

fn poll<T>(work: &mut Work<T>) -> Option<(Keeping, Result<T, StoreError>)> {
    match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

/// Gives how many homes were taken over and how many commits acknowledged.
fn run(seed: u64) -> Result<(usize, usize), String> {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        if world.pick(20) == 0 {
            world.fault();
        }
        let node = NODES[world.pick(NODES.len())];
        world.step(node)?;
    }
    world.heal();
    let last = NODES[world.pick(NODES.len())];
    let is_alone = world.common().table.homes.values().any(|kept| kept.copies == [last]);
    if is_alone || world.pick(2) == 0 {
        world.gather(last)?;
    }
    // No home is on that node alone: it is lost for good, perhaps in the middle of what is done.
    world.common().copies.insert(last, Copies::default());
    world.common().down.insert(last);
    let next = NODES.into_iter().find(|node| *node != last).expect("there are three");
    world.gather(next)?;
    let acknowledged = world.commits.iter().filter(|commit| commit.is_acknowledged).count();
    Ok((world.adopted, acknowledged))
}

#[test]
fn what_was_acknowledged_is_in_all_homes_whatever_fails() {
    let (mut adopted, mut acknowledged) = (0, 0);
    for seed in 0..20_000 {
        let (one, other) = run(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        (adopted, acknowledged) = (adopted + one, acknowledged + other);
    }
    println!("{adopted} homes taken over, {acknowledged} commits acknowledged");
    assert!(adopted > 300_000 && acknowledged > 100_000, "{adopted} {acknowledged}");
}

#[test]
fn a_take_over_that_is_broken_off_leaves_all_copies_counting() {
    for (steps, lost) in (0..40).flat_map(|steps| [(steps, NODES[0]), (steps, NODES[1])]) {
        let mut world = World::new(0);
        world.heal();
        // Node 1 keeps all homes, and node 2 has the other copies.
        world.common().cut.insert(NODES[2]);
        world.gather(NODES[0]).expect("nothing fails");
        let keepers: Vec<_> = world.common().table.homes.values().map(|kept| kept.copies.clone()).collect();
        assert_eq!(keepers, vec![NODES[..2].to_vec(); HOMES as usize]);
        world.common().cut.clear();
        let mut other = world.open(NODES[2]);
        let mut work: Work<Vec<Taken>> = Box::pin(async move {
            let adopted = other.adopt(&(0..HOMES).collect(), &BTreeSet::new()).await;
            (other, adopted)
        });
        let is_over = (0..steps).any(|_| poll(&mut work).is_some());
        drop(work);
        world.common().copies.insert(lost, Copies::default());
        world.common().down.insert(lost);
        let next = if lost == NODES[0] { NODES[1] } else { NODES[0] };
        world
            .gather(next)
            .unwrap_or_else(|wrong| panic!("{lost} lost after {steps} steps ({is_over}): {wrong}"));
    }
}

#[test]
fn an_attempt_that_fails_leaves_no_copies_behind() {
    let mut world = World::new(0);
    world.heal();
    world.common().cut.extend([NODES[1], NODES[2]]);
    let mut alone = world.open(NODES[0]);
    let generation = Generation { number: 1, nonce: (world.lives << 32) + 1 };
    let mut work: Work<Vec<Taken>> = Box::pin(async move {
        let adopted = alone.adopt(&(0..HOMES).collect(), &BTreeSet::new()).await;
        (alone, adopted)
    });
    let (_, adopted) = std::iter::repeat_with(|| poll(&mut work)).flatten().next().expect("it ends");
    assert!(
        matches!(adopted, Err(StoreError::Mirror(MirrorError::NoHolder))),
        "{:?}",
        adopted.map(|all| all.len())
    );
    for home in 0..HOMES {
        let read = Question::Read { home, generation, after: None };
        let found = world.common().copies[&NODES[0]].ask(read).expect("there is no disk");
        assert_eq!(found, Answer::Absent, "home {home}");
    }
}

#[test]
fn planted_bugs_are_seen() {
    for flaw in [Flaw::MirrorNoFence, Flaw::MirrorHomeByHome] {
        plant(Some(flaw));
        let found = (0..20_000).find_map(|seed| run(seed).err().map(|wrong| (seed, wrong)));
        plant(None);
        println!("{flaw:?}: {found:?}");
        assert!(found.is_some(), "{flaw:?} is not seen");
    }
}

#[test]
fn copies_outlast_their_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let generation = Generation { number: 3, nonce: 7 };
    let change = |text: &str, bytes: Option<&[u8]>| Change {
        home: 5,
        name: Name::parse(text).expect("a name"),
        bytes: bytes.map(Blob::from),
    };
    let commit = |changes| Question::Commit { homes: vec![(5, generation)], epochs: vec![(5, 12)], changes };
    {
        let copies = Copies::open(folder.path()).expect("a folder of its own");
        let instances = vec![change("x/1", Some(b"one")), change("x/2", Some(b"two"))];
        let stage = Question::Stage { homes: vec![(5, generation, 11)], instances, is_last: true };
        assert_eq!(copies.ask(stage).expect("it is written"), Answer::Done);
        let changes = vec![change("x/1", None), change("x/3", Some(b"three"))];
        assert_eq!(copies.ask(commit(changes)).expect("it is written"), Answer::Done);
        let fence = Question::Fence { homes: vec![(5, generation)] };
        assert_eq!(copies.ask(fence).expect("it is written"), Answer::Done);
    }
    let copies = Copies::open(folder.path()).expect("the same again");
    assert_eq!(copies.ask(commit(Vec::new())).expect("it is read"), Answer::Fenced);
    let read = Question::Read { home: 5, generation, after: None };
    let instances = [("x/2", "two"), ("x/3", "three")]
        .map(|(text, bytes)| (Name::parse(text).expect("a name"), Blob::from(bytes.as_bytes())));
    let page = Answer::Page { epoch: 12, instances: instances.into(), is_last: true };
    assert_eq!(copies.ask(read).expect("it is read"), page);
}
