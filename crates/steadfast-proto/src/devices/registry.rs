//! Who may have which name: pure decisions over the catalog's rows, each one transaction or a refusal.
//!
//! It decides; it never writes. A [`Claim`] names the version of every row that the decision rested on, so whichever
//! of two deciders comes second is refused by the catalog and decides again on what is there then. A name is bound
//! to one device for ever (N1), also after the device lost it, and the counter only grows (N4). Read next: `table`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{
    DeviceId, DeviceKey, DeviceName, DeviceNameRow, DeviceRow, NamingRow, ProofRow, SeenRow, Sighting,
};
use crate::catalog::{RowError, decode_row, encode_row};
use crate::flaw::{Flaw, is_planted};
use crate::ids::NodeId;

/// The most devices that a cluster ever names.
pub const DEVICES_MAX: usize = 16 << 10;
/// The most names that a cluster ever gives, old ones included.
pub const NAMES_MAX: usize = 64 << 10;

/// A row and the catalog's version of it.
#[derive(Clone, Debug)]
struct Kept<T> {
    version: u64,
    row: T,
}

/// All rows about devices, as the catalog last told them.
#[derive(Clone, Debug, Default)]
pub struct DeviceRows {
    naming: Option<Kept<NamingRow>>,
    devices: BTreeMap<DeviceId, Kept<DeviceRow>>,
    names: BTreeMap<DeviceName, Kept<DeviceNameRow>>,
    seen: BTreeMap<NodeId, SeenRow>,
    proofs: BTreeMap<DeviceId, Kept<ProofRow>>,
}

/// Whether nodes see one device or several that say the same of themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// At most one node sees it.
    NotShared,
    /// Several nodes see a device that says this of itself, and not all of them have proved that it is one.
    Claimed,
    /// These nodes read on it what one of them wrote there: it is one device.
    Proved(BTreeSet<NodeId>),
    /// What `writer` wrote is not on the device of `reader`: these are two.
    Twins {
        /// Who wrote.
        writer: NodeId,
        /// Who read something else.
        reader: NodeId,
    },
}

/// Changes that happen together, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Keys and the version that each must have; 0 means that the key must be absent.
    pub compare: Vec<(String, u64)>,
    /// Keys and their new values.
    pub puts: Vec<(String, Vec<u8>)>,
}

/// What follows from a request that is not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is so already; there is nothing to write.
    Already(DeviceRow),
    /// This would make it so.
    Commit {
        /// What to write; when a comparison fails, learn what is there and decide again.
        claim: Claim,
        /// The device's row afterwards.
        row: DeviceRow,
    },
}

/// Why a device does not get or lose a name. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamingError {
    /// Another device bears the name.
    #[error("the name {name} is taken by {device}: choose another, names are never given to a second device")]
    Taken {
        /// The name.
        name: DeviceName,
        /// Who bears it.
        device: DeviceId,
    },
    /// Another device bore the name once.
    #[error(
        "the name {name} was {device}'s and is retired: choose another, names are never given to a second device"
    )]
    Retired {
        /// The name.
        name: DeviceName,
        /// Who bore it.
        device: DeviceId,
    },
    /// Only automatic names begin like this.
    #[error("the name {name} begins with {prefix}, which is reserved for automatic names: choose another")]
    Reserved {
        /// The name.
        name: DeviceName,
        /// The reserved prefix.
        prefix: String,
    },
    /// No node sees the device.
    #[error("no node sees a device {device}: `steadfast device list` shows what is seen")]
    Unseen {
        /// The device asked for.
        device: DeviceId,
    },
    /// Several devices of one node claim the id.
    #[error(
        "several devices of node {node} say that they are {device}, as copies of a disk do: remove the copy or give it an identity of its own"
    )]
    DuplicateDeviceId {
        /// The id.
        device: DeviceId,
        /// Where it is claimed more than once.
        node: NodeId,
    },
    /// Nodes see devices of different sizes under one id, so they are not one device.
    #[error(
        "{device} has {bytes} bytes on node {node} and {other_bytes} on node {other}, so these are two devices: give each an identity of its own"
    )]
    SizesDiffer {
        /// The id.
        device: DeviceId,
        /// One node.
        node: NodeId,
        /// The size there.
        bytes: u64,
        /// Another node.
        other: NodeId,
        /// The size there.
        other_bytes: u64,
    },
    /// Nodes see different devices that say the same of themselves.
    #[error(
        "what node {writer} wrote to {device} is not on the device that node {reader} sees, so these are two devices: give each an identity of its own"
    )]
    Twins {
        /// The id.
        device: DeviceId,
        /// Who wrote.
        writer: NodeId,
        /// Who read something else.
        reader: NodeId,
    },
    /// The device has a name.
    #[error("{device} is named {name} already: `steadfast device rename {name} NEW` changes that")]
    HasName {
        /// The device.
        device: DeviceId,
        /// Its name.
        name: DeviceName,
    },
    /// No device bears the name.
    #[error("no device is named {name}")]
    NoSuchName {
        /// The name asked for.
        name: DeviceName,
    },
    /// The cluster can't name more.
    #[error("the cluster has {found} names or devices on record, the most it keeps")]
    Full {
        /// How many there are.
        found: usize,
    },
    /// The cluster's naming row makes no names.
    #[error("the reserved prefix '{prefix}' and the number {number} make no device name")]
    Prefix {
        /// The reserved prefix.
        prefix: String,
        /// The number that follows it.
        number: u64,
    },
}

impl DeviceRows {
    /// Takes note of a row, or of its absence; gives whether the key is one of devices.
    ///
    /// # Errors
    /// The bytes are not what the key names; what was known of that key stays.
    pub fn learn(&mut self, key: &str, row: Option<(u64, &[u8])>) -> Result<bool, RowError> {
        let Some(decoded) = DeviceKey::decode(key) else { return Ok(false) };
        match decoded {
            DeviceKey::Naming => self.naming = row.map(kept).transpose()?,
            DeviceKey::Device(id) => keep(&mut self.devices, id, row.map(kept).transpose()?),
            DeviceKey::Name(name) => keep(&mut self.names, name, row.map(kept).transpose()?),
            DeviceKey::Seen(node) => {
                keep(&mut self.seen, node, row.map(|(_, bytes)| decode_row(bytes)).transpose()?);
            }
            DeviceKey::Proof(id) => {
                keep(&mut self.proofs, id, row.map(kept).transpose()?);
            }
        }
        Ok(true)
    }

    /// The row of a device that was ever named.
    pub fn device(&self, id: &DeviceId) -> Option<&DeviceRow> {
        self.devices.get(id).map(|kept| &kept.row)
    }

    /// Every device that was ever named, retired ones included.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceRow> {
        self.devices.values().map(|kept| &kept.row)
    }

    /// The device that bears `name` now.
    pub fn named(&self, name: &DeviceName) -> Option<&DeviceRow> {
        let owner = &self.names.get(name)?.row.device;
        self.device(owner).filter(|row| !row.is_retired && row.name == *name)
    }

    /// How automatic names are made.
    pub fn naming(&self) -> NamingRow {
        self.naming.as_ref().map(|kept| kept.row.clone()).unwrap_or_default()
    }

    /// The nodes that see a device, and how.
    pub fn sightings(&self, id: &DeviceId) -> impl Iterator<Item = (NodeId, &Sighting)> {
        self.seen.iter().filter_map(move |(node, row)| row.devices.get(id).map(|sighting| (*node, sighting)))
    }

    /// What each node told.
    pub fn seen(&self) -> &BTreeMap<NodeId, SeenRow> {
        &self.seen
    }

    /// The number by which nodes can prove that they see one device.
    pub fn proof(&self, id: &DeviceId) -> Option<&ProofRow> {
        self.proofs.get(id).map(|kept| &kept.row)
    }

    /// The catalog's version of the row of [`DeviceRows::proof`]; 0 where there is none.
    pub fn proof_version(&self, id: &DeviceId) -> u64 {
        self.proofs.get(id).map_or(0, |kept| kept.version)
    }

    /// Whether the nodes that see `id` see one device. Only answers to the newest number count.
    pub fn sharing(&self, id: &DeviceId) -> Sharing {
        let seers: BTreeSet<NodeId> = self.sightings(id).map(|(node, _)| node).collect();
        let answers = |proof: &ProofRow| {
            let number = proof.number;
            let answered = move |(node, sighting): (NodeId, &Sighting)| {
                let answer = sighting.answer.filter(|answer| answer.number == number)?;
                Some((node, answer.is_there))
            };
            self.sightings(id).filter_map(answered).collect::<BTreeMap<NodeId, bool>>()
        };
        let is_good = |proof: &&ProofRow| seers.contains(&proof.node) && !self.is_spoiled(id, proof);
        let Some(proof) = self.proof(id).filter(is_good) else {
            return if seers.len() < 2 { Sharing::NotShared } else { Sharing::Claimed };
        };
        let answers = answers(proof);
        if let Some((reader, _)) = answers.iter().find(|(_, is_there)| !**is_there) {
            return Sharing::Twins { writer: proof.node, reader: *reader };
        }
        match seers.len() {
            0 | 1 => Sharing::NotShared,
            count if answers.len() == count => Sharing::Proved(seers),
            _ => Sharing::Claimed,
        }
    }

    /// The nodes of which it is sure that what they see under `id` is one and the same device: all of them where the id is
    /// worldwide, the only one, or else those that read on it what one of them wrote there. Nobody is, once one of them
    /// read something else: nothing tells which of the two devices the name was meant for.
    pub fn certain_on(&self, id: &DeviceId) -> BTreeSet<NodeId> {
        let sightings: BTreeMap<NodeId, &Sighting> = self.sightings(id).collect();
        let sizes: BTreeSet<u64> = sightings.values().map(|sighting| sighting.bytes).collect();
        if sizes.len() > 1 || self.has_twins(id) {
            return BTreeSet::new();
        }
        if sightings.len() < 2 || id.is_worldwide() {
            return sightings.into_keys().collect();
        }
        let Some(proof) = self.proof(id) else { return BTreeSet::new() };
        let has_read = |sighting: &Sighting| {
            sighting.answer.is_some_and(|answer| answer.number == proof.number && answer.is_there)
        };
        sightings.into_iter().filter(|(_, sighting)| has_read(sighting)).map(|(node, _)| node).collect()
    }

    /// Whether nodes see different devices that say of themselves that they are `id`.
    pub fn has_twins(&self, id: &DeviceId) -> bool {
        matches!(self.sharing(id), Sharing::Twins { .. })
    }

    /// For each node every name, old ones too, of the devices that it surely sees; for the choice of a node that a
    /// container can run on. A name that was taken away is none.
    pub fn located(&self) -> BTreeMap<NodeId, BTreeSet<DeviceName>> {
        let mut on: BTreeMap<&DeviceId, BTreeSet<NodeId>> = BTreeMap::new();
        let mut located: BTreeMap<NodeId, BTreeSet<DeviceName>> = BTreeMap::new();
        for (name, kept) in &self.names {
            let id = &kept.row.device;
            if self.device(id).is_none_or(|row| row.is_retired) {
                continue;
            }
            for node in on.entry(id).or_insert_with(|| self.certain_on(id)).iter() {
                located.entry(*node).or_default().insert(name.clone());
            }
        }
        located
    }

    /// The device that ever bore `name`, under whatever name now; none when its name was taken away.
    pub fn ever_named(&self, name: &DeviceName) -> Option<&DeviceRow> {
        let owner = &self.names.get(name)?.row.device;
        self.device(owner).filter(|row| !row.is_retired)
    }

    /// Whether several nodes surely see one device that was never named, so that it is to get an automatic name.
    pub fn wants_name(&self, id: &DeviceId) -> bool {
        self.device(id).is_none() && self.certain_on(id).len() > 1 && is_one_device(self, id).is_ok()
    }

    /// Whether `id` lacks a proof that it is one device, and who of `members` is to begin one: the first that sees it and
    /// does not use it.
    pub fn next_writer(&self, id: &DeviceId, members: &BTreeSet<NodeId>) -> Option<NodeId> {
        let seers: BTreeMap<NodeId, &Sighting> =
            self.sightings(id).filter(|(node, _)| members.contains(node)).collect();
        let is_good = |proof: &ProofRow| seers.contains_key(&proof.node) && !self.is_spoiled(id, proof);
        let has_begun = self.proof(id).is_some_and(is_good);
        if !id.is_label() || seers.len() < 2 || has_begun {
            return None;
        }
        seers.into_iter().find(|(_, sighting)| !sighting.in_use).map(|(node, _)| node)
    }

    /// Whether the writer itself does not read its number any more: another's came after it, so it proves nothing.
    fn is_spoiled(&self, id: &DeviceId, proof: &ProofRow) -> bool {
        let own = self.seen.get(&proof.node).and_then(|row| row.devices.get(id)?.answer);
        own.is_some_and(|answer| answer.number == proof.number && !answer.is_there)
    }

    /// Why no name can be given to `id` now.
    ///
    /// # Errors
    /// No node sees it, or nodes see different devices under it; see [`NamingError`].
    pub fn check(&self, id: &DeviceId) -> Result<(), NamingError> {
        is_one_device(self, id)
    }

    fn name_version(&self, name: &DeviceName) -> u64 {
        self.names.get(name).map_or(0, |kept| kept.version)
    }
}

/// Gives a device the next automatic name, unless it was ever named.
///
/// # Errors
/// See [`NamingError`].
pub fn assign(rows: &DeviceRows, id: &DeviceId, now_unix_ms: u64) -> Result<Decision, NamingError> {
    if let Some(row) = rows.device(id) {
        return Ok(Decision::Already(row.clone()));
    }
    is_one_device(rows, id)?;
    let mut naming = rows.naming();
    let is_flawed = is_planted(Flaw::CounterReused);
    if is_flawed {
        let live = rows.devices().filter(|row| !row.is_retired).count();
        naming.counter = live.try_into().unwrap_or(u64::MAX);
    }
    let name = loop {
        let number = naming.counter.checked_add(1).ok_or(NamingError::Full { found: rows.names.len() })?;
        naming.counter = number;
        let error = |_| NamingError::Prefix { prefix: naming.prefix.clone(), number };
        let name = DeviceName::numbered(&naming.prefix, number).map_err(error)?;
        // A name from before the prefix was reserved keeps its device.
        if is_flawed || !rows.names.contains_key(&name) {
            break name;
        }
    };
    let row = DeviceRow { id: id.clone(), name, added_unix_ms: now_unix_ms, is_retired: false };
    let mut claim = Claim::default();
    let version = rows.naming.as_ref().map_or(0, |kept| kept.version);
    if !is_flawed {
        claim.set(DeviceKey::Naming, version, &naming);
    }
    bind(rows, claim, row)
}

/// Gives a device that has no name the name that its user chose.
///
/// # Errors
/// See [`NamingError`].
pub fn name(
    rows: &DeviceRows,
    id: &DeviceId,
    name: &DeviceName,
    now_unix_ms: u64,
) -> Result<Decision, NamingError> {
    let before = rows.device(id);
    if let Some(row) = before.filter(|row| !row.is_retired) {
        if row.name == *name {
            return Ok(Decision::Already(row.clone()));
        }
        return Err(NamingError::HasName { device: id.clone(), name: row.name.clone() });
    }
    is_one_device(rows, id)?;
    is_free_for(rows, id, name)?;
    let added_unix_ms = before.map_or(now_unix_ms, |row| row.added_unix_ms);
    let row = DeviceRow { id: id.clone(), name: name.clone(), added_unix_ms, is_retired: false };
    bind(rows, Claim::default(), row)
}

/// Gives the device that bears `old` the name `new`; `old` stays its own and goes to no other.
///
/// # Errors
/// See [`NamingError`].
pub fn rename(rows: &DeviceRows, old: &DeviceName, new: &DeviceName) -> Result<Decision, NamingError> {
    let row = rows.named(old).ok_or_else(|| NamingError::NoSuchName { name: old.clone() })?;
    if old == new {
        return Ok(Decision::Already(row.clone()));
    }
    is_one_device(rows, &row.id)?;
    is_free_for(rows, &row.id, new)?;
    bind(rows, Claim::default(), DeviceRow { name: new.clone(), ..row.clone() })
}

/// Takes a device's name away; its row stays, and the name goes to no other.
///
/// # Errors
/// No device bears or last bore the name.
pub fn unname(rows: &DeviceRows, name: &DeviceName) -> Result<Decision, NamingError> {
    let owner = rows.names.get(name).and_then(|kept| rows.device(&kept.row.device));
    let row = owner.filter(|row| row.name == *name);
    let row = row.ok_or_else(|| NamingError::NoSuchName { name: name.clone() })?;
    if row.is_retired {
        return Ok(Decision::Already(row.clone()));
    }
    bind(rows, Claim::default(), DeviceRow { is_retired: true, ..row.clone() })
}

/// Whether what nodes see under `id` can be one device.
fn is_one_device(rows: &DeviceRows, id: &DeviceId) -> Result<(), NamingError> {
    if let Some((node, _)) = rows.seen.iter().find(|(_, row)| row.duplicates.contains(id)) {
        return Err(NamingError::DuplicateDeviceId { device: id.clone(), node: *node });
    }
    let mut sightings = rows.sightings(id);
    let Some((node, first)) = sightings.next() else {
        return Err(NamingError::Unseen { device: id.clone() });
    };
    if let Some((other, sighting)) = sightings.find(|(_, sighting)| sighting.bytes != first.bytes) {
        let (device, bytes, other_bytes) = (id.clone(), first.bytes, sighting.bytes);
        return Err(NamingError::SizesDiffer { device, node, bytes, other, other_bytes });
    }
    match rows.sharing(id) {
        Sharing::Twins { writer, reader } => Err(NamingError::Twins { device: id.clone(), writer, reader }),
        Sharing::NotShared | Sharing::Claimed | Sharing::Proved(_) => Ok(()),
    }
}

/// Whether `id` may bear `name` (N1).
fn is_free_for(rows: &DeviceRows, id: &DeviceId, name: &DeviceName) -> Result<(), NamingError> {
    if let Some(kept) = rows.names.get(name) {
        let device = kept.row.device.clone();
        if device == *id {
            // Its own from before; an automatic one too.
            return Ok(());
        }
        return Err(match rows.named(name) {
            Some(_) => NamingError::Taken { name: name.clone(), device },
            None => NamingError::Retired { name: name.clone(), device },
        });
    }
    let prefix = rows.naming().prefix;
    if name.as_str().starts_with(&prefix) {
        return Err(NamingError::Reserved { name: name.clone(), prefix });
    }
    Ok(())
}

/// Completes `claim` by what makes `row` the device's row and its name its own.
fn bind(rows: &DeviceRows, mut claim: Claim, row: DeviceRow) -> Result<Decision, NamingError> {
    let is_new = !rows.devices.contains_key(&row.id) && rows.devices.len() >= DEVICES_MAX;
    let is_new_name = !rows.names.contains_key(&row.name) && rows.names.len() >= NAMES_MAX;
    if is_new || is_new_name {
        return Err(NamingError::Full { found: rows.devices.len().max(rows.names.len()) });
    }
    let version = rows.devices.get(&row.id).map_or(0, |kept| kept.version);
    claim.set(DeviceKey::Device(row.id.clone()), version, &row);
    let name_row = DeviceNameRow { device: row.id.clone() };
    claim.set(DeviceKey::Name(row.name.clone()), rows.name_version(&row.name), &name_row);
    Ok(Decision::Commit { claim, row })
}

impl Claim {
    fn set<T: Serialize>(&mut self, key: DeviceKey, version: u64, row: &T) {
        let key = key.encode();
        let bytes = encode_row(row).expect("ids, names and prefixes are far shorter than a row may be");
        self.compare.push((key.clone(), version));
        self.puts.push((key, bytes));
    }
}

fn kept<T: serde::de::DeserializeOwned>((version, bytes): (u64, &[u8])) -> Result<Kept<T>, RowError> {
    Ok(Kept { version, row: decode_row(bytes)? })
}

fn keep<K: Ord, T>(map: &mut BTreeMap<K, T>, key: K, value: Option<T>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
