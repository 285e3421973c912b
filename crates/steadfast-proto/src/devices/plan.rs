//! How one node's names become the cluster's: an ordered list of single steps.
//!
//! It decides the order, in which no name is given while another device bears it: a name is first left, then taken;
//! a ring of names is broken by letting one device wait under a temporary name. It never moves a device that is in
//! use (that one answers to its new name as well until it is free), and never invents a name. The plan of a node
//! that has carried out its plan is empty, and the plan made after a crash between two steps ends where the first
//! one would have (N5).

use std::collections::{BTreeMap, BTreeSet};

use super::registry::DeviceRows;
use super::table::{ENTRIES_MAX, LocalName, Step, Table};
use super::{DeviceId, DeviceName};
use crate::flaw::{Flaw, is_planted};

/// Whether something uses a device here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nothing does: its name may change.
    Idle,
    /// A mount, a swap area, another device or a container does.
    Busy,
}

/// What is to be done, in this order, and what can't be done yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// The devices that can't have the name they should have.
    pub deferred: Vec<Deferred>,
}

/// A device that can't have the name that it should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deferred {
    /// The device.
    pub id: DeviceId,
    /// The name it should have; none when it should lose the one it has.
    pub wanted: Option<DeviceName>,
    /// Why it has to wait.
    pub reason: DeferredReason,
}

/// Why a device has to wait for its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeferredReason {
    /// Something uses it.
    #[error("it is in use; it answers to its new name too, and keeps the old one until it is free")]
    InUse,
    /// A device that has to wait itself bears the name.
    #[error("{0} bears that name and can't leave it yet")]
    HeldBy(DeviceId),
    /// The catalog gives the name to this device as well.
    #[error("the catalog gives that name to {0} as well, so neither gets it")]
    NameConflict(DeviceId),
    /// The table has no room for it.
    #[error("this node has names of {ENTRIES_MAX} devices, the most it keeps")]
    Full,
}

/// The steps from `table` to what `rows` say of the devices in it and of those that are `seen`.
///
/// Devices whose identity is in doubt must not be among `seen`.
pub fn reconcile(table: &Table, rows: &DeviceRows, seen: &BTreeMap<DeviceId, Use>) -> Plan {
    let mut planner = Planner {
        table: table.clone(),
        pending: BTreeMap::new(),
        by_target: BTreeMap::new(),
        plan: Plan::default(),
    };
    let wants = planner.wants(rows, seen);
    planner.drop_stale_aliases(&wants);
    let pinned = planner.sort_out(wants, seen);
    planner.hold_back();
    planner.order();
    planner.add_aliases(pinned);
    planner.plan
}

/// Carries out a plan while making it, so that every step is known to be allowed.
struct Planner {
    table: Table,
    /// Devices that are to get a name, and which.
    pending: BTreeMap<DeviceId, DeviceName>,
    /// The same by the name; no two devices want one name.
    by_target: BTreeMap<DeviceName, DeviceId>,
    plan: Plan,
}

impl Planner {
    /// The name that each device should have here: the cluster's, or else the one that this node gave it.
    fn wants(
        &mut self,
        rows: &DeviceRows,
        seen: &BTreeMap<DeviceId, Use>,
    ) -> BTreeMap<DeviceId, Option<DeviceName>> {
        let mut given: BTreeMap<&DeviceName, &DeviceId> = BTreeMap::new();
        let mut conflicts: BTreeMap<&DeviceId, &DeviceId> = BTreeMap::new();
        for row in rows.devices().filter(|row| !row.is_retired) {
            // The catalog's name rows make this impossible; a damaged catalog must still do no harm.
            if let Some(other) = given.insert(&row.name, &row.id) {
                conflicts.insert(&row.id, other);
                conflicts.insert(other, &row.id);
            }
        }
        let ids: BTreeSet<&DeviceId> = self.table.entries().keys().chain(seen.keys()).collect();
        let mut claimed = BTreeSet::new();
        let mut wants = BTreeMap::new();
        for id in ids {
            let entry = self.table.entries().get(id);
            let row = rows.device(id).filter(|row| !row.is_retired);
            let want = match (row, conflicts.get(id)) {
                (Some(row), None) => Some(row.name.clone()),
                (Some(row), Some(other)) => {
                    let reason = DeferredReason::NameConflict((*other).clone());
                    let wanted = Some(row.name.clone());
                    self.plan.deferred.push(Deferred { id: id.clone(), wanted, reason });
                    continue;
                }
                (None, _) => entry.and_then(|entry| entry.local.clone()).filter(|local| {
                    let bearer = self.table.bearer(&LocalName::Named(local.clone()));
                    !given.contains_key(local)
                        && bearer.is_none_or(|bearer| bearer == id)
                        && claimed.insert(local.clone())
                }),
            };
            wants.insert(id.clone(), want);
        }
        wants
    }

    fn drop_stale_aliases(&mut self, wants: &BTreeMap<DeviceId, Option<DeviceName>>) {
        let stale: Vec<_> = self
            .table
            .entries()
            .iter()
            .filter_map(|(id, entry)| Some((id.clone(), entry.alias.clone()?)))
            .filter(|(id, alias)| wants.get(id).and_then(Option::as_ref) != Some(alias))
            .collect();
        for (id, name) in stale {
            self.push(Step::DropAlias { id, name });
        }
    }

    /// Releases what loses its name, notes who is to get one, and gives those in use that should have another.
    fn sort_out(
        &mut self,
        wants: BTreeMap<DeviceId, Option<DeviceName>>,
        seen: &BTreeMap<DeviceId, Use>,
    ) -> Vec<(DeviceId, Option<DeviceName>)> {
        let mut pinned = Vec::new();
        for (id, want) in wants {
            let name = self.table.entries().get(&id).map(|entry| entry.name.clone());
            let current = name.as_ref().and_then(LocalName::named);
            if current == want.as_ref() && (current.is_some() || name.is_none()) {
                continue;
            }
            if current.is_some() && seen.get(&id) == Some(&Use::Busy) {
                pinned.push((id, want));
                continue;
            }
            match (want, name) {
                (Some(want), _) => {
                    self.by_target.insert(want.clone(), id.clone());
                    self.pending.insert(id, want);
                }
                (None, Some(from)) => self.push(Step::Release { id, from }),
                (None, None) => {}
            }
        }
        pinned
    }

    /// Takes those out of the plan whose names stay with devices that do not move.
    fn hold_back(&mut self) {
        let mut held: Vec<(DeviceId, DeviceId)> = Vec::new();
        for (id, target) in &self.pending {
            let named = LocalName::Named(target.clone());
            let Some(bearer) = self.table.bearer(&named).filter(|bearer| *bearer != id) else { continue };
            let leaves = self.pending.contains_key(bearer)
                && self.table.entries().get(bearer).is_some_and(|entry| entry.name == named);
            if !leaves {
                held.push((id.clone(), bearer.clone()));
            }
        }
        while let Some((id, bearer)) = held.pop() {
            let Some(target) = self.pending.remove(&id) else { continue };
            self.by_target.remove(&target);
            // Whoever wanted the name that this one now keeps has to wait as well.
            let kept = self.table.entries().get(&id).and_then(|entry| entry.name.named());
            if let Some(next) = kept.and_then(|kept| self.by_target.get(kept)) {
                held.push((next.clone(), id.clone()));
            }
            let reason = DeferredReason::HeldBy(bearer);
            self.plan.deferred.push(Deferred { id, wanted: Some(target), reason });
        }
    }

    /// Moves everybody who is left, each when its name is free.
    fn order(&mut self) {
        let is_free = |id: &DeviceId, target: &DeviceName| {
            let bearer = self.table.bearer(&LocalName::Named(target.clone()));
            bearer.is_none_or(|bearer| bearer == id)
        };
        let mut ready: Vec<DeviceId> = self
            .pending
            .iter()
            .filter(|(id, target)| is_free(id, target))
            .map(|(id, _)| id.clone())
            .collect();
        loop {
            while let Some(id) = ready.pop() {
                let Some(target) = self.pending.remove(&id) else { continue };
                ready.extend(self.move_to(&id, LocalName::Named(target)));
            }
            // What is left bears each other's names in rings: one of each ring steps aside.
            let Some(id) = self.pending.keys().next().cloned() else { return };
            if is_planted(Flaw::NoTemporaryNames) {
                return self.move_at_once();
            }
            let aside = self.table.free_temporary();
            ready.extend(self.move_to(&id, aside));
        }
    }

    /// The planted flaw: every device of a ring takes its name, whoever bears it.
    fn move_at_once(&mut self) {
        for (id, target) in std::mem::take(&mut self.pending) {
            let Some(entry) = self.table.entries().get(&id) else { continue };
            let (from, to) = (entry.name.clone(), LocalName::Named(target));
            self.plan.steps.push(Step::Move { id, from, to });
        }
    }

    /// Gives a device a name that is free; gives who waited for the name that it left.
    fn move_to(&mut self, id: &DeviceId, to: LocalName) -> Option<DeviceId> {
        let from = self.table.entries().get(id).map(|entry| entry.name.clone());
        let (step, left) = match (from, to) {
            (Some(from), to) => {
                let left = from.named().cloned();
                (Step::Move { id: id.clone(), from, to }, left)
            }
            (None, LocalName::Named(name)) if self.table.entries().len() < ENTRIES_MAX => {
                (Step::Take { id: id.clone(), name, is_local: false }, None)
            }
            (None, to) => {
                let wanted = to.named().cloned();
                self.plan.deferred.push(Deferred { id: id.clone(), wanted, reason: DeferredReason::Full });
                return None;
            }
        };
        self.push(step);
        left.and_then(|left| self.by_target.get(&left))
            .filter(|next| self.pending.contains_key(*next))
            .cloned()
    }

    /// Lets those in use answer to their new names, where these are free.
    fn add_aliases(&mut self, pinned: Vec<(DeviceId, Option<DeviceName>)>) {
        for (id, wanted) in pinned {
            let bearer =
                wanted.as_ref().and_then(|name| self.table.bearer(&LocalName::Named(name.clone()))).cloned();
            let reason = match bearer {
                Some(bearer) if bearer != id => DeferredReason::HeldBy(bearer),
                Some(_) => DeferredReason::InUse,
                None => {
                    if let Some(name) = wanted.clone() {
                        self.push(Step::Alias { id: id.clone(), name });
                    }
                    DeferredReason::InUse
                }
            };
            self.plan.deferred.push(Deferred { id, wanted, reason });
        }
    }

    fn push(&mut self, step: Step) {
        let changed = self.table.take(&step).expect("a plan has only steps that its table allows");
        debug_assert!(changed, "a plan has no step in vain: {step:?}");
        self.plan.steps.push(step);
    }
}
