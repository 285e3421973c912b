//! The ideal log that stands in for the catalog's engine: linear, durable, and only as available as its voters.
//!
//! A change commits when its proposer reaches the leader and the leader a majority of voters. It may be refused,
//! its answer may be lost, and its proposer may die before the answer. Followers lag, and one that is far behind is
//! given the rows that differ instead of every change. Consensus itself is not modelled: nothing here reorders.

use std::collections::BTreeMap;

use steadfast_proto::catalog::{
    Change, ClusterRow, ContainerRow, DrainRow, Key, NodeRow, ProbationRow, View, ViewRecord,
};
use steadfast_proto::ids::{ClusterId, ContainerId, Incarnation, ViewId};
use steadfast_proto::node::{Input, Proposal, Row};

use crate::checkers::Fact;
use crate::scenario::{MS, Voters};
use crate::world::{Event, World};

/// How often a change that does not reach a leader is tried.
const TRIES_MAX: u8 = 15;

/// The committed rows and how they came to be.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// What each revision changed; revision 1 is the first.
    history: Vec<Vec<Change>>,
    rows: BTreeMap<Key, (u64, Change)>,
    /// What is kept of the views; no agent is told of it.
    records: BTreeMap<ViewId, ViewRecord>,
    pub(crate) leader: Option<usize>,
    /// No leader before this world time.
    pub(crate) hold_until: u64,
    term: u64,
    electing: bool,
}

impl Catalog {
    pub(crate) fn revision(&self) -> u64 {
        self.history.len() as u64
    }

    pub(crate) fn view(&self) -> Option<(u64, &View)> {
        match self.rows.get(&Key::View) {
            Some((revision, Change::View(view))) => Some((*revision, view)),
            Some(_) | None => None,
        }
    }

    pub(crate) fn container(&self, id: ContainerId) -> Option<(u64, &ContainerRow)> {
        match self.rows.get(&Key::Container(id)) {
            Some((revision, Change::Container(_, Some(row)))) => Some((*revision, row)),
            Some(_) | None => None,
        }
    }

    pub(crate) fn containers(&self) -> impl Iterator<Item = (u64, &ContainerRow)> {
        self.rows.values().filter_map(|(revision, change)| match change {
            Change::Container(_, Some(row)) => Some((*revision, &**row)),
            Change::Container(_, None)
            | Change::Cluster(_)
            | Change::View(_)
            | Change::Node(..)
            | Change::Probation(..)
            | Change::Drain(..) => None,
        })
    }

    /// The nodes that are to hand their duties over, or have.
    pub(crate) fn drains(&self) -> impl Iterator<Item = &DrainRow> {
        self.rows.values().filter_map(|(_, change)| match change {
            Change::Drain(_, row) => row.as_ref(),
            Change::Node(..)
            | Change::Cluster(_)
            | Change::View(_)
            | Change::Container(..)
            | Change::Probation(..) => None,
        })
    }

    /// The candidates that are not eliminated.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = &ProbationRow> {
        let rows = self.rows.values().filter_map(|(_, change)| match change {
            Change::Probation(_, row) => row.as_ref(),
            Change::Node(..)
            | Change::Cluster(_)
            | Change::View(_)
            | Change::Container(..)
            | Change::Drain(..) => None,
        });
        rows.filter(|row| row.eliminated.is_none())
    }

    pub(crate) fn node_rows(&self) -> impl Iterator<Item = &NodeRow> {
        self.rows.values().filter_map(|(_, change)| match change {
            Change::Node(_, Some(row)) => Some(row),
            Change::Node(_, None)
            | Change::Cluster(_)
            | Change::View(_)
            | Change::Container(..)
            | Change::Probation(..)
            | Change::Drain(..) => None,
        })
    }

    fn revision_of(&self, key: &Key) -> u64 {
        match self.rows.get(key) {
            // A row that was removed is as one that never was.
            None
            | Some((
                _,
                Change::Node(_, None)
                | Change::Probation(_, None)
                | Change::Drain(_, None)
                | Change::Container(_, None),
            )) => 0,
            Some((revision, _)) => *revision,
        }
    }

    /// What one revision changed.
    fn changes(&self, revision: u64) -> &[Change] {
        let index = usize::try_from(revision).ok().and_then(|revision| revision.checked_sub(1));
        index.and_then(|index| self.history.get(index)).map_or(&[], Vec::as_slice)
    }

    /// The rows that differ between two revisions, by the revision that last changed each.
    fn difference(&self, from: u64, to: u64) -> Vec<(u64, Change)> {
        let mut last: BTreeMap<Key, (u64, Change)> = BTreeMap::new();
        for revision in from + 1..=to {
            for change in self.changes(revision) {
                last.insert(key_of(change), (revision, change.clone()));
            }
        }
        let mut rows: Vec<(u64, Change)> = last.into_values().collect();
        rows.sort_by_key(|(revision, _)| *revision);
        rows
    }
}

fn key_of(change: &Change) -> Key {
    match change {
        Change::Cluster(_) => Key::Cluster,
        Change::View(_) => Key::View,
        Change::Node(id, _) => Key::Node(*id),
        Change::Probation(id, _) => Key::Probation(*id),
        Change::Drain(id, _) => Key::Drain(*id),
        Change::Container(id, _) => Key::Container(*id),
    }
}

impl World {
    /// Commits the rows with which a cluster begins.
    pub(crate) fn found_cluster(&mut self) {
        let lease_ms = u32::try_from(self.scenario.lease.as_millis()).unwrap_or(1_000);
        let id = ClusterId(1);
        self.commit(
            vec![Change::Cluster(ClusterRow { id, name: "sim".to_owned(), lease_ms, created_unix_ms: 0 })],
            false,
        );
        let first = Incarnation(1);
        let mut view = View::founded(self.hosts[0].node, first);
        if !self.scenario.founding {
            view.members = self.hosts.iter().map(|host| (host.node, first)).collect();
            view.grantors = view.members.keys().take(5).copied().collect();
        }
        self.catalog.records.insert(view.id, view.record(BTreeMap::new(), 0).0);
        self.commit(vec![Change::View(view)], false);
        for index in 0..self.hosts.len() {
            let node = self.hosts[index].node;
            let row = NodeRow {
                id: node,
                name: format!("n{}", index + 1),
                engine_id: index as u64 + 1,
                addresses: Vec::new(),
                fingerprint: String::new(),
                domain: vec![format!("rack-{}", index % 3)],
                memory_bytes: crate::host::MEMORY_BYTES,
                criu: "4.2.1".to_owned(),
                processor: "x".to_owned(),
            };
            self.commit(vec![Change::Node(node, Some(row))], false);
            self.hosts[index].durable = self.catalog.revision();
        }
    }

    /// Commits `changes` as the next revision.
    pub(crate) fn commit(&mut self, changes: Vec<Change>, by_user: bool) {
        let revision = self.catalog.revision() + 1;
        for change in &changes {
            let before = self.catalog.rows.insert(key_of(change), (revision, change.clone()));
            self.witness_commit(revision, before.map(|(_, before)| before), change, by_user);
        }
        self.catalog.history.push(changes);
        self.mix(revision);
        for host in 0..self.hosts.len() {
            self.schedule_apply(host);
        }
    }

    fn witness_commit(&mut self, revision: u64, before: Option<Change>, change: &Change, by_user: bool) {
        match change {
            Change::View(view) => {
                self.counts.views += 1;
                if matches!(view.reason, steadfast_proto::catalog::ViewReason::Removed(_)) {
                    self.counts.removals += 1;
                }
                let detail =
                    || format!("@{revision} view {} by {:?}: {:?}", view.id, view.proposer, view.reason);
                self.trace.line(self.now, None, "commit", detail);
                self.fact(&Fact::View { view });
            }
            Change::Container(id, row) => {
                let before = match &before {
                    Some(Change::Container(_, Some(row))) => Some(&**row),
                    Some(_) | None => None,
                };
                self.count_row(before, row.as_deref());
                self.trace.line(self.now, None, "commit", || match row {
                    None => format!("@{revision} {id:?} removed"),
                    Some(row) => format!(
                        "@{revision} {id:?} {:?} {:?} owner {:?} latest {:?} {:?}",
                        row.state,
                        row.epoch,
                        row.owner,
                        row.latest.as_ref().map(|latest| (latest.number, &latest.copies)),
                        row.desired
                    ),
                });
                self.fact(&Fact::Row { id: *id, before, after: row.as_deref(), by_user });
            }
            Change::Probation(id, row) => {
                self.trace
                    .line(self.now, None, "commit", || format!("@{revision} probation of {id:?}: {row:?}"));
            }
            Change::Cluster(_) | Change::Node(..) | Change::Drain(..) => {}
        }
    }

    fn count_row(&mut self, before: Option<&ContainerRow>, after: Option<&ContainerRow>) {
        use steadfast_proto::catalog::ContainerState as State;
        let (Some(before), Some(after)) = (before, after) else { return };
        if before.latest != after.latest
            && after.latest.as_ref().map(|c| c.number) > before.latest.as_ref().map(|c| c.number)
        {
            self.counts.checkpoints += 1;
        }
        if before.epoch < after.epoch {
            match after.state {
                State::Starting | State::Recovering if after.owner != before.owner => {
                    self.counts.recoveries += 1
                }
                State::Lost(_) => self.counts.lost += 1,
                State::Failed(_) => self.counts.failed += 1,
                State::Starting | State::Recovering | State::Running | State::Stopped(_) => {}
            }
        }
    }

    /// A change reaches the leader, or does not.
    pub(crate) fn proposed(&mut self, host: usize, life: u64, proposal: Box<Proposal>, tries: u8) {
        if self.is_paused(host, life) && self.random.chance(0.5) {
            self.defer(host, Event::Propose { host, life, proposal, tries });
            return;
        }
        // What left a process that has died since may still arrive.
        if !self.hosts[host].is_life(life) && self.random.chance(0.5) {
            return;
        }
        if !self.reaches_leader(host) {
            if tries < TRIES_MAX {
                self.after(100 * MS, Event::Propose { host, life, proposal, tries: tries + 1 });
            } else {
                self.answer(host, life, &proposal, false);
            }
            return;
        }
        let accepted =
            proposal.basis.iter().all(|(key, revision)| self.catalog.revision_of(key) == *revision)
                && !(self.faults_on && self.random.chance(0.01));
        if accepted {
            let changes = proposal.rows.iter().filter_map(|row| match row {
                Row::View(view) => Some(Change::View(view.clone())),
                Row::Container(row) => Some(Change::Container(row.id, Some(row.clone()))),
                Row::Probation(row) => Some(Change::Probation(row.node, Some(row.clone()))),
                Row::NoProbation(node) => Some(Change::Probation(*node, None)),
                Row::Drain(row) => Some(Change::Drain(row.node, Some(*row))),
                Row::Record(_) | Row::Forget(_) => None,
            });
            self.commit(changes.collect(), false);
            self.keep_records(&proposal);
            if self.faults_on && !self.scenario.networks_only && self.random.chance(0.003) {
                self.crash_for_a_while(host);
            }
        }
        self.answer(host, life, &proposal, accepted);
    }

    /// Keeps what a transaction says of its view.
    fn keep_records(&mut self, proposal: &Proposal) {
        for row in &proposal.rows {
            match row {
                Row::Record(record) => {
                    self.catalog.records.insert(record.view.id, (**record).clone());
                }
                Row::Forget(id) => {
                    self.catalog.records.remove(id);
                }
                Row::View(_)
                | Row::Container(_)
                | Row::Probation(_)
                | Row::NoProbation(_)
                | Row::Drain(_) => {}
            }
        }
        let Some(view) = proposal.rows.iter().find_map(|row| match row {
            Row::View(view) => Some(view),
            Row::Record(_)
            | Row::Forget(_)
            | Row::Container(_)
            | Row::Probation(_)
            | Row::NoProbation(_)
            | Row::Drain(_) => None,
        }) else {
            return;
        };
        let bases = proposal.basis.iter().filter(|(key, _)| *key == Key::View).count();
        let records = std::mem::take(&mut self.catalog.records);
        self.fact(&Fact::Kept { view, bases, records: &records });
        self.catalog.records = records;
    }

    fn answer(&mut self, host: usize, life: u64, proposal: &Proposal, accepted: bool) {
        let mut delay = self.scenario.delay + self.random.around(self.scenario.commit);
        let mut accepted = accepted;
        if self.faults_on && self.random.chance(0.02) {
            // The answer is lost: its runtime gives up and counts it as refused.
            (delay, accepted) = (1_000 * MS, false);
        }
        let input = Box::new(Input::Proposed { proposal: proposal.id, accepted });
        self.after(delay, Event::Input { host, life, input });
    }

    /// Whether a process on `host` can have a change committed now.
    pub(crate) fn reaches_leader(&self, host: usize) -> bool {
        self.catalog.leader.is_some_and(|leader| {
            self.hosts[host].powered && self.networks.connects(host, leader) && self.can_lead(leader)
        })
    }

    fn voters(&self) -> Vec<usize> {
        match (self.scenario.voters, self.catalog.view()) {
            (Voters::Grantors, Some((_, view))) => {
                view.grantors.iter().filter_map(|node| self.index_of(*node)).collect()
            }
            (Voters::Grantors, None) | (Voters::Fixed, _) => (0..self.hosts.len().min(5)).collect(),
        }
    }

    fn can_lead(&self, host: usize) -> bool {
        let voters = self.voters();
        let reached = voters
            .iter()
            .filter(|voter| self.hosts[**voter].answers() && self.networks.connects(host, **voter));
        self.now >= self.catalog.hold_until
            && self.hosts[host].answers()
            && voters.contains(&host)
            && reached.count() > voters.len() / 2
    }

    /// Looks after the leader, and tells agents of a new one.
    pub(crate) fn tick(&mut self) {
        self.after(50 * MS, Event::Tick);
        let leads = self.catalog.leader.is_some_and(|leader| self.can_lead(leader));
        if !leads && !self.catalog.electing {
            self.catalog.electing = true;
            let delay = self.random.between(100, 600) * MS;
            self.after(delay, Event::Election { term: self.catalog.term });
        }
        if !leads {
            return;
        }
        let leader = self.catalog.leader.map(|leader| self.hosts[leader].node);
        for host in 0..self.hosts.len() {
            let reached = self.reaches_leader(host);
            let Some(agent) = self.hosts[host].agent.as_mut().filter(|agent| !agent.paused) else { continue };
            if reached && agent.leader != leader {
                agent.leader = leader;
                self.step(host, Input::Leader(leader));
            }
        }
    }

    pub(crate) fn elect(&mut self, term: u64) {
        if term != self.catalog.term {
            return;
        }
        self.catalog.electing = false;
        let candidates: Vec<usize> =
            self.voters().into_iter().filter(|voter| self.can_lead(*voter)).collect();
        if let Some(leader) = self.random.pick(&candidates).copied() {
            self.lead(leader);
        }
    }

    /// A node stands for leader.
    pub(crate) fn campaign(&mut self, host: usize) {
        let leads = self.catalog.leader.is_some_and(|leader| self.can_lead(leader));
        if !leads && self.can_lead(host) {
            self.lead(host);
        }
    }

    fn lead(&mut self, leader: usize) {
        self.catalog.leader = Some(leader);
        self.catalog.term += 1;
        self.catalog.electing = false;
        self.trace.line(self.now, Some(leader), "leader", || format!("term {}", self.catalog.term));
    }

    fn schedule_apply(&mut self, host: usize) {
        let delay = self.scenario.delay + self.random.around(self.scenario.commit);
        let Some(agent) = &mut self.hosts[host].agent else { return };
        if !agent.apply_scheduled && agent.applied < self.catalog.revision() {
            agent.apply_scheduled = true;
            let life = agent.life;
            self.after(delay, Event::Apply { host, life });
        }
    }

    /// A follower learns what was committed.
    pub(crate) fn apply(&mut self, host: usize, life: u64) {
        if !self.hosts[host].is_life(life) {
            return;
        }
        if self.is_paused(host, life) {
            self.defer(host, Event::Apply { host, life });
            return;
        }
        if !self.reaches_leader(host) {
            let delay = 20 * MS + self.random.below(60 * MS);
            self.after(delay, Event::Apply { host, life });
            return;
        }
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.apply_scheduled = false;
        }
        let applied = self.applied(host);
        let behind = self.catalog.revision().saturating_sub(applied);
        if behind > 2 && self.random.chance(0.3) {
            self.resynchronise(host, life, applied, self.catalog.revision());
        } else {
            let upto = applied + 1 + self.random.below(behind);
            for revision in applied + 1..=upto.min(self.catalog.revision()) {
                self.learn(host, life, revision, self.catalog.changes(revision).to_vec());
            }
        }
        self.note_sync(host);
        self.schedule_apply(host);
    }

    /// Hands over the rows that differ between two revisions: what was removed, then all else in order.
    fn resynchronise(&mut self, host: usize, life: u64, from: u64, to: u64) {
        let (gone, there): (Vec<_>, Vec<_>) = (self.catalog.difference(from, to).into_iter())
            .partition(|(_, change)| matches!(change, Change::Container(_, None)));
        for (_, change) in gone {
            self.learn(host, life, to, vec![change]);
        }
        for (revision, change) in there {
            self.learn(host, life, revision, vec![change]);
        }
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.applied = to;
        }
    }

    fn learn(&mut self, host: usize, life: u64, revision: u64, changes: Vec<Change>) {
        if !self.hosts[host].is_life(life) {
            return;
        }
        for change in changes {
            self.step(host, Input::Committed { revision, change });
        }
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.applied = agent.applied.max(revision);
        }
    }

    fn applied(&self, host: usize) -> u64 {
        self.hosts[host].agent.as_ref().map_or(0, |agent| agent.applied)
    }

    /// A restarted agent first knows the catalog as its disk had it: all that was durable, or for a while less.
    pub(crate) fn replay_rows(&mut self, host: usize) {
        let durable = self.hosts[host].durable;
        let upto = if self.random.chance(0.5) { durable } else { self.random.below(durable + 1) };
        let Some(life) = self.hosts[host].agent.as_ref().map(|agent| agent.life) else { return };
        let rows = self.catalog.difference(0, upto);
        for (revision, change) in rows {
            if !matches!(change, Change::Container(_, None)) {
                self.learn(host, life, revision, vec![change]);
            }
        }
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.applied = upto;
        }
        self.schedule_apply(host);
    }

    /// An agent that has just started reads the catalog through a majority.
    pub(crate) fn sync(&mut self, host: usize, life: u64) {
        if !self.hosts[host].is_life(life) {
            return;
        }
        if self.is_paused(host, life) {
            self.defer(host, Event::Sync { host, life });
            return;
        }
        if !self.reaches_leader(host) {
            self.after(50 * MS, Event::Sync { host, life });
            return;
        }
        let revision = self.catalog.revision();
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.sync_at.get_or_insert(revision);
        }
        self.after(5_000 * MS, Event::Sync { host, life });
        self.note_sync(host);
    }

    fn note_sync(&mut self, host: usize) {
        let Some(agent) = &mut self.hosts[host].agent else { return };
        if agent.sync_at.is_some_and(|revision| agent.applied >= revision) {
            agent.sync_at = None;
            self.step(host, Input::Synced);
        }
    }
}
