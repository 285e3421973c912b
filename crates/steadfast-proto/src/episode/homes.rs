//! Homes: where each instance is, by its name alone, and what happens when one comes or goes.
//!
//! The instances of a store belong to homes, by a hash of their names. In a store of one node all its homes are here for good. In
//! a store that nodes share, a home comes when this node may write it ([`Input::Adopted`](super::Input::Adopted)) and goes when another node
//! keeps it by the table: until the one and after the other nothing is said of its instances, since what is known of them
//! here may be old. Instances of another store are found by their programs.

use std::collections::BTreeSet;

use super::machine::{Place, Timer};
use super::{Batch, Destination, Episodes, Instance, RequestError};
use crate::exchange::{Name, Text};
use crate::ids::NodeId;
use crate::time::Time;

/// The instances of another store: whose programs they are, and who keeps which home of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Apart {
    /// All programs of that store.
    pub programs: BTreeSet<Text>,
    /// Who keeps which home, by number; nobody keeps any without them.
    pub homes: Vec<NodeId>,
}

/// Which of `count` homes the instance of that name belongs to.
pub fn home_of(name: &Name, count: usize) -> usize {
    usize::try_from(crc32c::crc32c(name.as_str().as_bytes()))
        .unwrap_or_default()
        .checked_rem(count)
        .unwrap_or_default()
}

/// Who of `members` keeps which of `count` homes: when one is lost or comes, only its own homes move. Nobody without members.
pub fn share_homes(members: &BTreeSet<NodeId>, count: usize) -> Vec<NodeId> {
    let weight = |home: usize, node: &NodeId| {
        let seed = crc32c::crc32c(&(home as u64).to_le_bytes());
        // A checksum is linear, and so would the order of the members be the same everywhere: it is mixed with its own product.
        let mixed = u64::from(crc32c::crc32c_append(seed, &node.0.to_le_bytes())).wrapping_add(1);
        let mixed = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9), *node)
    };
    let keeper = |home| members.iter().copied().max_by_key(|node| weight(home, node));
    (0..count).map_while(keeper).collect()
}

impl Episodes {
    /// The same machine for a store that nodes share: it keeps no home until that is adopted.
    #[must_use]
    pub fn sharing(mut self) -> Episodes {
        self.adopted = Some(BTreeSet::new());
        self
    }

    /// The homes of a shared store that this node may write.
    pub fn adopted_homes(&self) -> BTreeSet<usize> {
        self.adopted.clone().unwrap_or_default()
    }

    /// The homes that the table gives to this node and that have not come.
    pub fn missing_homes(&self) -> BTreeSet<usize> {
        let Some(adopted) = &self.adopted else { return BTreeSet::new() };
        let own = self.homes.iter().enumerate().filter(|(_, node)| **node == self.me);
        own.map(|(home, _)| home).filter(|home| !adopted.contains(home)).collect()
    }

    /// Who keeps which home, by number.
    pub fn homes(&self) -> &[NodeId] {
        &self.homes
    }

    /// What is kept in other stores.
    pub fn apart(&self) -> &[Apart] {
        &self.apart
    }

    /// Whether the instance of that name is kept here, or would be.
    pub fn is_kept_here(&self, name: &Name) -> bool {
        matches!(self.place(name), Place::Here)
    }

    /// Who keeps the instance of that name, or would; nobody while that is not known.
    pub fn keeper(&self, name: &Name) -> Option<NodeId> {
        match self.place(name) {
            Place::Elsewhere(Destination::Node(node)) => Some(node),
            Place::Here | Place::Effect | Place::Elsewhere(Destination::Outside(_)) => Some(self.me),
            Place::Nowhere => None,
        }
    }

    /// Whether what `node` says in the name of `speaker` is heeded: only who keeps an instance speaks for it. What one that kept
    /// it before has said may be old.
    pub fn may_speak(&self, node: NodeId, speaker: &Name) -> bool {
        matches!(self.place(speaker), Place::Elsewhere(Destination::Node(keeper)) if keeper == node)
    }

    pub(super) fn place(&self, name: &Name) -> Place {
        let program = match name.program() {
            Name::OUTSIDE => return Place::Elsewhere(Destination::Outside(name.clone())),
            Name::EFFECT => return Place::Effect,
            program => program,
        };
        if let Some(apart) = self.apart.iter().find(|apart| apart.programs.contains(program)) {
            let keeper = apart.homes.get(home_of(name, apart.homes.len()));
            return keeper.map_or(Place::Nowhere, |node| Place::Elsewhere(Destination::Node(*node)));
        }
        let home = home_of(name, self.homes.len());
        match (self.homes.get(home), &self.adopted) {
            (Some(node), _) if *node != self.me => Place::Elsewhere(Destination::Node(*node)),
            (Some(_), Some(adopted)) if adopted.contains(&home) => Place::Here,
            (Some(_) | None, None) => Place::Here,
            (Some(_) | None, Some(_)) => Place::Nowhere,
        }
    }

    /// Why nothing can be asked of an instance here.
    pub(super) fn not_here(&self, name: Name) -> RequestError {
        match self.place(&name) {
            Place::Nowhere => RequestError::Moving(name),
            Place::Here | Place::Effect | Place::Elsewhere(_) => RequestError::Elsewhere(name),
        }
    }

    /// Homes come with all that is in them. `epoch` is the highest that an instance of them ever had.
    pub(super) fn adopt(
        &mut self,
        now: Time,
        homes: BTreeSet<usize>,
        instances: Vec<Instance>,
        epoch: u64,
        out: &mut Batch,
    ) {
        let count = self.homes.len();
        let Some(adopted) = &mut self.adopted else { return };
        // The table may have changed while they were on their way.
        let kept = homes.into_iter().filter(|home| self.homes.get(*home) == Some(&self.me));
        let new: BTreeSet<usize> = kept.filter(|home| !adopted.contains(home)).collect();
        adopted.extend(&new);
        self.last_epoch = self.last_epoch.max(epoch);
        let come = instances.into_iter().filter(|one| new.contains(&home_of(&one.name, count)));
        let mut names = Vec::new();
        for instance in come {
            names.push(instance.name.clone());
            self.restore(instance);
        }
        self.recover_these(now, names, out);
    }

    /// Another table: what is kept elsewhere from now on is forgotten without a trace. All of it is durable.
    pub(super) fn rehome(&mut self, homes: Vec<NodeId>, out: &mut Batch) {
        let is_resized = homes.len() != self.homes.len();
        self.homes = homes;
        let Some(adopted) = &mut self.adopted else { return };
        let (table, me) = (&self.homes, self.me);
        adopted.retain(|home| !is_resized && table.get(*home) == Some(&me));
        let (adopted, count) = (adopted.clone(), self.homes.len());
        let is_gone = |name: &Name| !adopted.contains(&home_of(name, count));
        let gone: Vec<Name> = self.instances.keys().filter(|name| is_gone(name)).cloned().collect();
        if gone.is_empty() {
            return;
        }
        for name in gone {
            let Some(instance) = self.instances.remove(&name) else { continue };
            let awaiting = instance.live.awaiting.into_values().flatten();
            let tokens = awaiting.chain(instance.live.awaiting_end);
            out.answers.extend(tokens.map(|token| (token, Err(RequestError::Moved(name.clone())))));
        }
        self.timers.retain(|(_, timer)| !is_gone(timer.of()));
        for senders in self.parties.values_mut() {
            senders.retain(|name| !is_gone(name));
        }
        self.parties.retain(|_, senders| !senders.is_empty());
    }
}

impl Timer {
    /// The instance that it is for.
    fn of(&self) -> &Name {
        match self {
            Timer::Flow { from: name, .. }
            | Timer::Remind { to: name, .. }
            | Timer::Wake(name)
            | Timer::Retire(name) => name,
        }
    }
}
