//! Users: what they ask, committed as the agent's API commits it.
//!
//! A user reaches the catalog through some node that reaches its leader; each change is one compare-and-set on the
//! row as it is. Must never change the owner of a container that may run somewhere.

use std::collections::{BTreeMap, BTreeSet};

use steadfast_proto::catalog::{
    Change, ContainerRow, ContainerSpec, ContainerState, Desired, DrainRow, Intent, ProbationRow,
    Requirements, Restart, Root,
};
use steadfast_proto::ids::{ContainerId, Epoch, NodeId};
use steadfast_proto::node::{Input, Request, RequestId};
use steadfast_proto::placement::{Candidate, recover_on, start_on};

use crate::scenario::MS;
use crate::world::{Event, World};

impl World {
    /// A user asks for something, and the next one is planned.
    pub(crate) fn user(&mut self) {
        if !self.faults_on {
            return;
        }
        let next = self.random.around(self.scenario.user_every);
        self.after(next, Event::User);
        let through = self.random.index(self.hosts.len());
        if !self.hosts[through].answers() || !self.reaches_leader(through) {
            return;
        }
        if self.random.chance(0.1) {
            self.operator_acts();
            return;
        }
        let rows: Vec<ContainerRow> = self.catalog.containers().map(|(_, row)| row.clone()).collect();
        if rows.len() < self.scenario.containers {
            self.user_runs();
            return;
        }
        let Some(row) = self.random.pick(&rows).cloned() else { return };
        match self.random.below(20) {
            0..=9 => self.user_checkpoints(&row),
            10..=12 if row.is_active() && row.desired == Desired::Run => {
                let grace_ms = u32::try_from(self.random.below(500)).unwrap_or(0);
                self.user_commits(row.id, Some(ContainerRow { desired: Desired::Stop { grace_ms }, ..row }));
            }
            13 => self.user_commits(row.id, None),
            10..=19 => self.user_restores(row),
            _ => {}
        }
    }

    /// An operator drains a node or has it leave, takes that back, or has a candidate take a node's place.
    fn operator_acts(&mut self) {
        let Some((_, view)) = self.catalog.view() else { return };
        let members: Vec<NodeId> = view.members.keys().copied().collect();
        let drained: Vec<NodeId> = self.catalog.drains().map(|row| row.node).collect();
        let candidates: Vec<ProbationRow> = self.catalog.candidates().cloned().collect();
        let Some(member) = self.random.pick(&members).copied() else { return };
        if let Some(candidate) = self.random.pick(&candidates).cloned().filter(|_| self.random.chance(0.7)) {
            let row = ProbationRow { intent: Intent::Replace(member), ..candidate };
            self.commit(vec![Change::Probation(row.node, Some(row))], true);
        } else if let Some(node) = self.random.pick(&drained).copied() {
            self.commit(vec![Change::Drain(node, None)], true);
        } else if members.len() > 2 {
            let row = DrainRow { node: member, leave: self.random.chance(0.5) };
            self.commit(vec![Change::Drain(member, Some(row))], true);
        }
    }

    /// An operator has a member leave.
    pub(crate) fn has_one_leave(&mut self) -> Option<NodeId> {
        let (_, view) = self.catalog.view()?;
        let members: Vec<NodeId> = view.members.keys().copied().collect();
        let node = self.random.pick(&members).copied().filter(|_| members.len() > 1)?;
        self.commit(vec![Change::Drain(node, Some(DrainRow { node, leave: true }))], true);
        Some(node)
    }

    /// Everything that operators asked of nodes is taken back.
    pub(crate) fn operators_undo(&mut self) {
        let drained: Vec<Change> = self.catalog.drains().map(|row| Change::Drain(row.node, None)).collect();
        if !drained.is_empty() {
            self.commit(drained, true);
        }
    }

    fn user_commits(&mut self, id: ContainerId, row: Option<ContainerRow>) {
        self.commit(vec![Change::Container(id, row.map(Box::new))], true);
    }

    pub(crate) fn user_candidates(&self) -> Vec<Candidate> {
        let mut owned: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (_, row) in self.catalog.containers().filter(|(_, row)| row.is_active()) {
            *owned.entry(row.owner).or_default() += 1;
        }
        let Some((_, view)) = self.catalog.view() else { return Vec::new() };
        (self.catalog.node_rows())
            .filter(|row| view.has(row.id))
            .map(|row| Candidate::new(row, 0, owned.get(&row.id).copied().unwrap_or(0)))
            .collect()
    }

    fn user_runs(&mut self) {
        let id = ContainerId(u128::from(self.number()) << 96);
        let every_ms = u32::try_from(self.random.between(200, 3_000)).ok();
        let spec = ContainerSpec {
            name: format!("c{}", id.0 >> 96),
            command: vec!["count".to_owned()],
            environment: BTreeMap::new(),
            working_directory: None,
            user: None,
            root: Root::Host,
            volumes: Vec::new(),
            address: None,
            memory_bytes_max: None,
            cpu_milli_max: None,
            every_ms: every_ms.filter(|_| self.random.chance(0.9)),
            copies: if self.random.chance(0.5) { 1 } else { 2 },
            restart: match self.random.below(6) {
                0 => Restart::No,
                1 => Restart::Fresh,
                _ => Restart::Latest,
            },
            nodes: BTreeSet::new(),
            require: Requirements::default(),
        };
        let Some(owner) = start_on(&spec, &self.user_candidates()) else { return };
        let row = ContainerRow {
            id,
            spec,
            owner,
            epoch: Epoch(1),
            state: ContainerState::Starting,
            desired: Desired::Run,
            latest: None,
            parent: None,
            restore_number: None,
            after_loss: false,
            tried: BTreeSet::new(),
            changed_unix_ms: self.now / MS,
        };
        self.user_containers.insert(id);
        self.user_commits(id, Some(row));
    }

    fn user_checkpoints(&mut self, row: &ContainerRow) {
        let Some(owner) = self.index_of(row.owner) else { return };
        let Some(life) = self.hosts[owner].agent.as_ref().map(|agent| agent.life) else { return };
        let id = RequestId(self.number());
        let input = Box::new(Input::Request(id, Request::Checkpoint(row.id)));
        self.after(MS, Event::Input { host: owner, life, input });
    }

    fn user_restores(&mut self, row: ContainerRow) {
        let numbers: Vec<u64> =
            row.checkpoints().filter(|checkpoint| !checkpoint.copies.is_empty()).map(|c| c.number).collect();
        let Some(number) = self.random.pick(&numbers).copied() else { return };
        let mut next = row.clone();
        next.restore_number = Some(number);
        next.epoch = row.epoch.next();
        next.state = ContainerState::Recovering;
        next.desired = Desired::Run;
        next.after_loss = false;
        next.tried.clear();
        if !row.is_active() {
            // Nothing runs it any more, so it may go anywhere.
            let Some(owner) = recover_on(&next, &self.user_candidates()) else { return };
            next.owner = owner;
        }
        self.user_commits(row.id, Some(next));
    }
}
