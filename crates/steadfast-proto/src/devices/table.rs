//! One node's own table of names, and the single steps by which it may change.
//!
//! The table outlives the agent and the catalog being down: links follow it, and it follows the catalog when that
//! can be reached. It decides which step is allowed: none gives a name to a device while another bears it (N3), and
//! each may be repeated (N5). It never decides which step to take; that is `plan`'s.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{DeviceId, DeviceName};

/// The most devices that one node keeps names of.
pub const ENTRIES_MAX: usize = 4096;

/// A name in one node's table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LocalName {
    /// A name for people and programs.
    Named(DeviceName),
    /// Where a device waits while its name is still another's.
    Temporary(u32),
}

impl LocalName {
    /// The name, unless it is a temporary one.
    pub fn named(&self) -> Option<&DeviceName> {
        match self {
            LocalName::Named(name) => Some(name),
            LocalName::Temporary(_) => None,
        }
    }
}

impl fmt::Display for LocalName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LocalName::Named(name) => name.fmt(formatter),
            // No device name has a '!', whatever the cluster's prefix is.
            LocalName::Temporary(number) => write!(formatter, "{}!tmp{number}", super::PREFIX),
        }
    }
}

/// What the table says of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name here.
    pub name: LocalName,
    /// The name that it is to have and already answers to, while something uses it under the old one.
    pub alias: Option<DeviceName>,
    /// The name that this node gave it by itself; it gets it back when the cluster's is taken away.
    pub local: Option<DeviceName>,
}

/// One node's names of devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    entries: BTreeMap<DeviceId, Entry>,
    /// Who bears each name and alias.
    bearers: BTreeMap<LocalName, DeviceId>,
}

/// One change of the table. Every state between two steps is a sound one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// A device that has no entry gets one.
    Take {
        /// The device.
        id: DeviceId,
        /// Its name.
        name: DeviceName,
        /// Whether this node chose the name by itself.
        is_local: bool,
    },
    /// A device gets another name.
    Move {
        /// The device.
        id: DeviceId,
        /// What it is called before.
        from: LocalName,
        /// What it is called then.
        to: LocalName,
    },
    /// A device loses its name and its entry.
    Release {
        /// The device.
        id: DeviceId,
        /// What it was called.
        from: LocalName,
    },
    /// A device also answers to the name that it is to have.
    Alias {
        /// The device.
        id: DeviceId,
        /// The second name.
        name: DeviceName,
    },
    /// A device no longer answers to a second name.
    DropAlias {
        /// The device.
        id: DeviceId,
        /// The second name.
        name: DeviceName,
    },
}

impl Step {
    /// The device that the step is about.
    pub fn id(&self) -> &DeviceId {
        match self {
            Step::Take { id, .. }
            | Step::Move { id, .. }
            | Step::Release { id, .. }
            | Step::Alias { id, .. }
            | Step::DropAlias { id, .. } => id,
        }
    }
}

/// A step that can't be taken. The table is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Another device bears the name (N3).
    #[error("{id} can't be called {name}: {bearer} is")]
    Occupied {
        /// The device.
        id: DeviceId,
        /// The name.
        name: LocalName,
        /// Who bears it.
        bearer: DeviceId,
    },
    /// The table is not as the step expects.
    #[error("{id} is not called what the step expects: the table has changed")]
    Differs {
        /// The device.
        id: DeviceId,
    },
    /// The table has no room.
    #[error("the table has {ENTRIES_MAX} devices, the most it keeps")]
    Full,
}

/// A name that this node may not give by itself. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalNameError {
    /// Only the cluster gives names that begin like this.
    #[error("the name {name} begins with {prefix}, which is reserved for the cluster's automatic names")]
    Reserved {
        /// The name.
        name: DeviceName,
        /// The reserved prefix.
        prefix: String,
    },
    /// The device has an entry, or another bears the name.
    #[error(transparent)]
    Step(#[from] StepError),
}

impl Table {
    /// A table with these entries.
    ///
    /// # Errors
    /// Two devices bear one name, or there are too many.
    pub fn new(entries: BTreeMap<DeviceId, Entry>) -> Result<Table, StepError> {
        if entries.len() > ENTRIES_MAX {
            return Err(StepError::Full);
        }
        let mut table = Table::default();
        for (id, entry) in &entries {
            table.occupy(id, &entry.name)?;
            if let Some(alias) = &entry.alias {
                table.occupy(id, &LocalName::Named(alias.clone()))?;
            }
        }
        table.entries = entries;
        Ok(table)
    }

    /// All devices that have a name here.
    pub fn entries(&self) -> &BTreeMap<DeviceId, Entry> {
        &self.entries
    }

    /// Who bears a name or has it as an alias.
    pub fn bearer(&self, name: &LocalName) -> Option<&DeviceId> {
        self.bearers.get(name)
    }

    /// The lowest number that no device waits under.
    pub fn free_temporary(&self) -> LocalName {
        let taken = |number: &u32| self.bearers.contains_key(&LocalName::Temporary(*number));
        LocalName::Temporary((0..=u32::MAX).find(|number| !taken(number)).expect("there are fewer entries"))
    }

    /// The step that gives a device a name of this node's own choice.
    ///
    /// # Errors
    /// The name is reserved or borne, or the device has one.
    pub fn name_locally(
        &self,
        id: &DeviceId,
        name: &DeviceName,
        prefix: &str,
    ) -> Result<Step, LocalNameError> {
        if name.as_str().starts_with(prefix) {
            return Err(LocalNameError::Reserved { name: name.clone(), prefix: prefix.to_owned() });
        }
        let step = Step::Take { id: id.clone(), name: name.clone(), is_local: true };
        self.clone().take(&step)?;
        Ok(step)
    }

    /// Takes one step; gives whether it changed anything, which a repeated one does not (N5).
    ///
    /// # Errors
    /// The step is not allowed; the table is as it was.
    pub fn take(&mut self, step: &Step) -> Result<bool, StepError> {
        match step {
            Step::Take { id, name, is_local } => self.insert(id, name, *is_local),
            Step::Move { id, from, to } => self.rename(id, from, to),
            Step::Release { id, from } => self.release(id, from),
            Step::Alias { id, name } => self.alias(id, name),
            Step::DropAlias { id, name } => Ok(self.drop_alias(id, name)),
        }
    }

    fn insert(&mut self, id: &DeviceId, name: &DeviceName, is_local: bool) -> Result<bool, StepError> {
        let named = LocalName::Named(name.clone());
        if let Some(entry) = self.entries.get(id) {
            return if entry.name == named { Ok(false) } else { Err(StepError::Differs { id: id.clone() }) };
        }
        if self.entries.len() >= ENTRIES_MAX {
            return Err(StepError::Full);
        }
        self.occupy(id, &named)?;
        let entry = Entry { name: named, alias: None, local: is_local.then(|| name.clone()) };
        self.entries.insert(id.clone(), entry);
        Ok(true)
    }

    fn rename(&mut self, id: &DeviceId, from: &LocalName, to: &LocalName) -> Result<bool, StepError> {
        let differs = || StepError::Differs { id: id.clone() };
        let name = &self.entries.get(id).ok_or_else(differs)?.name;
        if name == to {
            return Ok(false);
        }
        if name != from {
            return Err(differs());
        }
        self.occupy(id, to)?;
        self.bearers.remove(from);
        let entry = self.entries.get_mut(id).ok_or_else(differs)?;
        entry.name = to.clone();
        if entry.alias.as_ref() == to.named() {
            entry.alias = None;
        }
        Ok(true)
    }

    fn release(&mut self, id: &DeviceId, from: &LocalName) -> Result<bool, StepError> {
        match self.entries.get(id) {
            None => return Ok(false),
            Some(entry) if entry.name != *from => return Err(StepError::Differs { id: id.clone() }),
            Some(_) => {}
        }
        self.entries.remove(id);
        self.bearers.retain(|_, bearer| bearer != id);
        Ok(true)
    }

    fn alias(&mut self, id: &DeviceId, name: &DeviceName) -> Result<bool, StepError> {
        let differs = || StepError::Differs { id: id.clone() };
        let entry = self.entries.get(id).ok_or_else(differs)?;
        if entry.alias.as_ref() == Some(name) {
            return Ok(false);
        }
        if entry.alias.is_some() || entry.name.named() == Some(name) {
            return Err(differs());
        }
        self.occupy(id, &LocalName::Named(name.clone()))?;
        self.entries.get_mut(id).ok_or_else(differs)?.alias = Some(name.clone());
        Ok(true)
    }

    fn drop_alias(&mut self, id: &DeviceId, name: &DeviceName) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        if entry.alias.as_ref() != Some(name) {
            return false;
        }
        entry.alias = None;
        self.bearers.remove(&LocalName::Named(name.clone()));
        true
    }

    /// Makes `id` the bearer of `name`, unless another is (N3).
    fn occupy(&mut self, id: &DeviceId, name: &LocalName) -> Result<(), StepError> {
        match self.bearers.get(name) {
            Some(bearer) if bearer != id => {
                let (id, name, bearer) = (id.clone(), name.clone(), bearer.clone());
                Err(StepError::Occupied { id, name, bearer })
            }
            Some(_) => Ok(()),
            None => {
                self.bearers.insert(name.clone(), id.clone());
                Ok(())
            }
        }
    }
}
