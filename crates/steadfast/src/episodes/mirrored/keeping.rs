//! Keeping homes of mirrored instances: taking them over, changing them, giving them back.
//!
//! A table in the catalog says of each home which generation of it counts, who keeps it, and which nodes have copies of it. A
//! commit counts when all copies have it. Who takes homes over deposes their keeper as a whole first: one node that has copies
//! of all its homes fences them, and the table says that these count. So a commit that some copies had and others had not is
//! either in all of the homes that it changed, or in none. Then the new keeper makes copies of its own, on this node and another,
//! under a new generation, and the table names them, compared with what it said when they were read. It rests on nothing but that
//! comparison and the copies' refusals: not on clocks, and not on who is thought to live.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::{BoxFuture, join};
use serde::{Deserialize, Serialize};
use steadfast_proto::exchange::{Blob, Name};
use steadfast_proto::flaw::{Flaw, is_planted};
use steadfast_proto::ids::NodeId;

use super::MirrorError;
use super::copies::{Answer, Change, Copies, Generation, PART_BYTES, Question};
use crate::episodes::StoreError;
use crate::episodes::store::HOMES;

/// How often homes are tried to be given back while others change the table.
const ATTEMPTS: usize = 64;

/// What the catalog says of one home.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The copies that count.
    pub generation: Generation,
    /// Who may change them: a keeper and its life. Nobody when it was given back.
    pub keeper: Option<(NodeId, u64)>,
    /// Who has them.
    pub copies: Vec<NodeId>,
}

/// What the catalog says of all homes, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub(super) homes: BTreeMap<u32, Kept>,
}

impl Table {
    /// The copies of a home that count.
    pub fn generation(&self, home: u32) -> Generation {
        self.homes.get(&home).map_or(Generation::default(), |kept| kept.generation)
    }

    /// The homes that this keeper keeps with one copy alone.
    pub fn alone(&self, keeper: NodeId) -> usize {
        let is_alone =
            |kept: &&Kept| kept.copies.len() < 2 && kept.keeper.is_some_and(|(node, _)| node == keeper);
        self.homes.values().filter(is_alone).count()
    }

    fn of(&self, keeper: (NodeId, u64)) -> Vec<(u32, Generation)> {
        let own = self.homes.iter().filter(|(_, kept)| kept.keeper == Some(keeper));
        own.map(|(home, kept)| (*home, kept.generation)).collect()
    }
}

/// What a keeper needs of its cluster.
pub trait Cluster: Send + Sync {
    /// Asks another node's copies.
    fn ask(&self, node: NodeId, question: Question) -> BoxFuture<'_, Result<Answer, String>>;
    /// The nodes that should hold a copy of what this one keeps, the best first; without this one.
    fn holders(&self) -> Vec<NodeId>;
    /// The table and its version.
    fn table(&self) -> BoxFuture<'_, Result<(Table, u64), StoreError>>;
    /// Changes the table unless it has changed since; gives its new version.
    fn swap(&self, version: u64, table: Table) -> BoxFuture<'_, Result<Option<u64>, StoreError>>;
}

/// A home that was taken over, with all that is in it.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) home: u32,
    pub(super) epoch: u64,
    pub(super) instances: Vec<(Name, Blob)>,
}

/// One keeper's homes.
pub(super) struct Keeping {
    me: NodeId,
    life: u64,
    attempts: u64,
    copies: Copies,
    cluster: Arc<dyn Cluster>,
    /// Who else has copies: one node for as long as this keeper lives.
    holder: Option<NodeId>,
    held: BTreeMap<u32, Generation>,
}

impl std::fmt::Debug for Keeping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeping")
            .field("me", &self.me)
            .field("held", &self.held.len())
            .finish_non_exhaustive()
    }
}

impl Keeping {
    /// `life` is a random number.
    pub(super) fn new(me: NodeId, life: u64, copies: Copies, cluster: Arc<dyn Cluster>) -> Keeping {
        Keeping { me, life, attempts: 0, copies, cluster, holder: None, held: BTreeMap::new() }
    }

    /// Takes those of `homes` that no other of `living` keeps, as far as their copies can be had.
    pub(super) async fn adopt(
        &mut self,
        homes: &BTreeSet<u32>,
        living: &BTreeSet<NodeId>,
    ) -> Result<Vec<Taken>, StoreError> {
        let (mut table, version) = self.cluster.table().await?;
        let own = (self.me, self.life);
        // What joins homes that were taken away would be deposed apart from them, perhaps with other copies.
        if table.of(own) != self.held.iter().map(|(home, one)| (*home, *one)).collect::<Vec<_>>() {
            return Err(StoreError::Fenced);
        }
        let keeper_of = |table: &Table, home: &u32| table.homes.get(home).and_then(|kept| kept.keeper);
        let may_go = |keeper: &(NodeId, u64)| keeper.0 == self.me || !living.contains(&keeper.0);
        let before = homes.iter().filter_map(|home| keeper_of(&table, home)).filter(may_go);
        let before: BTreeSet<(NodeId, u64)> = before.filter(|keeper| *keeper != own).collect();
        for keeper in before {
            self.depose(&mut table, keeper).await?;
        }
        let mut taken = Vec::new();
        for home in homes.iter().filter(|home| keeper_of(&table, home).is_none()) {
            let kept = table.homes.get(home).cloned().unwrap_or_default();
            taken.extend(self.read(*home, &kept).await?);
        }
        if taken.is_empty() {
            return Ok(taken);
        }
        self.attempts += 1;
        let nonce = self.life.wrapping_add(self.attempts);
        let new: BTreeMap<u32, Generation> = taken
            .iter()
            .map(|one| {
                (one.home, Generation { number: table.generation(one.home).number.saturating_add(1), nonce })
            })
            .collect();
        if let Err(error) = self.stage(&taken, &new).await {
            self.copies.forget(&new)?;
            return Err(error);
        }
        for (home, generation) in &new {
            let copies = std::iter::once(self.me).chain(self.holder).collect();
            table.homes.insert(*home, Kept { generation: *generation, keeper: Some(own), copies });
        }
        // In one change with the deposition: until then all copies count, and the loss of any one node loses nothing.
        if self.cluster.swap(version, table).await?.is_none() {
            self.copies.forget(&new)?;
            return Ok(Vec::new());
        }
        self.held.extend(new);
        Ok(taken)
    }

    /// Has one node's copies of all homes of a keeper fenced, and counts no others, if there is one that has them all.
    async fn depose(&self, table: &mut Table, keeper: (NodeId, u64)) -> Result<(), StoreError> {
        let mut homes = table.of(keeper);
        if is_planted(Flaw::MirrorHomeByHome) {
            homes.truncate(1);
        }
        let Some(kept) = homes.first().and_then(|(home, _)| table.homes.get(home)).cloned() else {
            return Ok(());
        };
        for source in self.in_order(&kept.copies) {
            if self.ask(source, Question::Fence { homes: homes.clone() }).await? == Some(Answer::Done) {
                for (home, _) in homes {
                    if let Some(kept) = table.homes.get_mut(&home) {
                        (kept.keeper, kept.copies) = (None, vec![source]);
                    }
                }
                return Ok(());
            }
        }
        tracing::debug!(keeper = %keeper.0, "nobody who has copies of its homes answers");
        Ok(())
    }

    /// All that is in a home that nobody keeps, unless nobody who has it answers.
    async fn read(&self, home: u32, kept: &Kept) -> Result<Option<Taken>, StoreError> {
        if kept.generation.number == 0 {
            return Ok(Some(Taken { home, ..Taken::default() }));
        }
        for source in self.in_order(&kept.copies) {
            let mut taken = Taken { home, ..Taken::default() };
            loop {
                let after = taken.instances.last().map(|(name, _)| name.clone());
                let page = Question::Read { home, generation: kept.generation, after };
                let Some(Answer::Page { epoch, instances, is_last }) = self.ask(source, page).await? else {
                    break;
                };
                taken.epoch = epoch;
                taken.instances.extend(instances);
                if is_last {
                    return Ok(Some(taken));
                }
            }
        }
        Ok(None)
    }

    /// Makes the copies of a new generation, here and on the holder; chooses one if there is none yet.
    async fn stage(
        &mut self,
        taken: &[Taken],
        generations: &BTreeMap<u32, Generation>,
    ) -> Result<(), StoreError> {
        let parts = staged(taken, generations);
        for part in &parts {
            if self.ask(self.me, part.clone()).await? != Some(Answer::Done) {
                return Err(StoreError::Fenced);
            }
        }
        // What is kept alone goes on alone until the next keeper of this node.
        let candidates = match self.holder {
            Some(holder) => vec![holder],
            None if self.held.is_empty() => self.cluster.holders(),
            None => Vec::new(),
        };
        let is_alone = candidates.is_empty();
        'next: for holder in candidates {
            for part in &parts {
                if self.ask(holder, part.clone()).await? != Some(Answer::Done) {
                    continue 'next;
                }
            }
            self.holder = Some(holder);
            return Ok(());
        }
        if is_alone { Ok(()) } else { Err(MirrorError::NoHolder.into()) }
    }

    /// Changes homes; without any change it asks whether they are still kept. It counts when all copies have it.
    pub(super) async fn commit(
        &self,
        changes: Vec<Change>,
        epochs: Vec<(u32, u64)>,
    ) -> Result<(), StoreError> {
        if self.held.is_empty() && changes.is_empty() {
            return Ok(());
        }
        let homes = self.held.iter().map(|(home, one)| (*home, *one)).collect();
        let question = Question::Commit { homes, epochs, changes };
        let elsewhere = async {
            let Some(holder) = self.holder else { return Ok(Answer::Done) };
            let asked = self.cluster.ask(holder, question.clone()).await;
            asked.map_err(|why| StoreError::from(MirrorError::Holder(why)))
        };
        // The question is on its way to the other node while this one writes.
        let here = async { Ok::<_, StoreError>(self.copies.ask(question.clone())?) };
        let (elsewhere, here) = join(elsewhere, here).await;
        if here? != Answer::Done || elsewhere? != Answer::Done {
            return Err(StoreError::Fenced);
        }
        Ok(())
    }

    /// Whether another node should have the copies.
    pub(super) fn is_misplaced(&self) -> bool {
        let holders = self.cluster.holders();
        !self.held.is_empty() && self.holder.map_or(!holders.is_empty(), |holder| !holders.contains(&holder))
    }

    /// Gives homes back of which everything is committed.
    pub(super) async fn release(&mut self, homes: &BTreeSet<u32>) -> Result<(), StoreError> {
        let given: Vec<u32> = homes.iter().copied().filter(|home| self.held.contains_key(home)).collect();
        let own = Some((self.me, self.life));
        for _ in 0..ATTEMPTS {
            let (mut table, version) = self.cluster.table().await?;
            let mut is_changed = false;
            for home in &given {
                if let Some(kept) = table.homes.get_mut(home).filter(|kept| kept.keeper == own) {
                    (kept.keeper, is_changed) = (None, true);
                }
            }
            if !is_changed || self.cluster.swap(version, table).await?.is_some() {
                self.held.retain(|home, _| !homes.contains(home));
                return Ok(());
            }
        }
        Err(MirrorError::Busy.into())
    }

    /// This node first: it need not be asked over the network.
    fn in_order(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        let (own, others): (Vec<NodeId>, Vec<NodeId>) = nodes.iter().partition(|node| **node == self.me);
        own.into_iter().chain(others).collect()
    }

    /// What a node answers; nothing if it does not.
    async fn ask(&self, node: NodeId, question: Question) -> Result<Option<Answer>, StoreError> {
        if node == self.me {
            return Ok(Some(self.copies.ask(question)?));
        }
        let asked = self.cluster.ask(node, question).await;
        Ok(asked.inspect_err(|why| tracing::debug!(%node, why, "copies of instances can't be had")).ok())
    }
}

/// The questions that make copies of this.
fn staged(taken: &[Taken], generations: &BTreeMap<u32, Generation>) -> Vec<Question> {
    let epochs: BTreeMap<u32, u64> = taken.iter().map(|one| (one.home, one.epoch)).collect();
    let epoch_of = |home: &u32| epochs.get(home).copied().unwrap_or_default();
    let homes: Vec<_> = generations.iter().map(|(home, one)| (*home, *one, epoch_of(home))).collect();
    let all = taken.iter().flat_map(|one| {
        let change = |(name, bytes): &(Name, Blob)| Change {
            home: one.home,
            name: name.clone(),
            bytes: Some(bytes.clone()),
        };
        one.instances.iter().map(change)
    });
    let parts = split(all.collect());
    let last = parts.len().saturating_sub(1);
    let part =
        |(number, instances)| Question::Stage { homes: homes.clone(), instances, is_last: number == last };
    parts.into_iter().enumerate().map(part).collect()
}

/// Changes in parts, at least one.
fn split(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let (mut parts, mut bytes) = (vec![Vec::new()], 0);
    for change in changes {
        let weight = change.name.as_str().len() + change.bytes.as_ref().map_or(0, |bytes| bytes.len());
        if bytes > 0 && bytes + weight > PART_BYTES {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += weight;
        if let Some(part) = parts.last_mut() {
            part.push(change);
        }
    }
    parts
}

/// The number of a home, as it is written down.
pub(super) fn number(home: usize) -> u32 {
    debug_assert!(home < HOMES);
    u32::try_from(home).unwrap_or(u32::MAX)
}
