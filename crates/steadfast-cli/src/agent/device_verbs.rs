//! What people ask of device names, as transactions on their rows, and what is shown of them.
//!
//! Who may have which name is decided by `steadfast_proto::devices::registry`; a decision is committed only on the rows that it
//! rests on, and taken anew when they have changed. A refused request changes nothing. Read `devices` for how names
//! reach the machines.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use steadfast::catalog::Txn;
use steadfast::devices::Unidentified;
use steadfast_proto::catalog::{ContainerRow, ContainerSpec};
use steadfast_proto::devices::plan::DeferredReason;
use steadfast_proto::devices::registry::{
    Decision, DeviceRows, NamingError, Sharing, assign, name, rename, unname,
};
use steadfast_proto::devices::{DeviceId, DeviceKey, DeviceName, DeviceRow};
use steadfast_proto::ids::NodeId;

use super::Agent;
use super::devices::Room;
use super::rows::{self, Rows};
use crate::api::convert::{self, now_unix_ms};
use crate::api::device_types as types;
use crate::codes::Code;
use crate::failure::{Failure, did_you_mean};

/// How often a decision is taken anew because rows change under it.
const ATTEMPTS: u32 = 20;

impl Agent {
    /// Every device that has a name or is seen, by this node's copy of the catalog, and how it stands here.
    pub(crate) fn shown_devices(&self) -> types::DeviceReport {
        let known = stale(&self.rows);
        let mut ids: BTreeSet<&DeviceId> = known.devices().map(|row| &row.id).collect();
        for row in known.seen().values() {
            ids.extend(row.devices.keys().chain(&row.duplicates));
        }
        let names = self.rows.names();
        let mut devices: Vec<types::Device> =
            ids.into_iter().map(|id| self.shown_device(&known, id, &names)).collect();
        devices.sort_by(|left, right| {
            let key =
                |device: &types::Device| (device.name.is_none(), device.name.clone(), device.id.clone());
            key(left).cmp(&key(right))
        });
        types::DeviceReport { devices, here: self.devices.as_deref().map(|room| here(&known, room)) }
    }

    /// Gives a device a name: the one asked for, the next automatic one, or one of this node alone.
    pub(crate) async fn name_device(&self, request: types::NameDevice) -> Result<types::Device, Failure> {
        let id = self.device_id(&request.device).await?;
        let wanted = request.name.as_deref().map(device_name).transpose()?;
        if request.local {
            return self.name_device_locally(id, wanted).await;
        }
        let now = now_unix_ms();
        let decide = |known: &DeviceRows| match &wanted {
            Some(wanted) => name(known, &id, wanted, now),
            None => match known.device(&id) {
                Some(row) if !row.is_retired => {
                    Err(NamingError::HasName { device: id.clone(), name: row.name.clone() })
                }
                // Its last name is its own for ever; an automatic one was meant to be given once.
                Some(row) => name(known, &id, &row.name, now),
                None => assign(known, &id, now),
            },
        };
        self.committed(decide).await
    }

    /// Gives a device another name; the old one stays its own.
    pub(crate) async fn rename_device(&self, request: types::RenameDevice) -> Result<types::Device, Failure> {
        let (old, new) = (device_name(&request.old)?, device_name(&request.new)?);
        self.committed(|known| rename(known, &old, &new)).await
    }

    /// Takes a device's name away, unless a container asks for it.
    pub(crate) async fn unname_device(&self, request: types::UnnameDevice) -> Result<types::Device, Failure> {
        let wanted = device_name(&request.name)?;
        let known = read(&self.rows).await?;
        if let Some(device) = known.named(&wanted) {
            let containers: Vec<(ContainerRow, u64)> = self.rows.all("container/").await?;
            let asks = |row: &ContainerRow| required(&known, &row.spec).iter().any(|id| **id == device.id);
            if let Some((row, _)) = containers.iter().find(|(row, _)| asks(row)) {
                return Err(Failure::new(
                    Code::DeviceNameRefused,
                    format!(
                        "container {} asks for {wanted}: remove it first with `steadfast rm {}`",
                        row.spec.name, row.spec.name
                    ),
                ));
            }
        }
        self.committed(|known| unname(known, &wanted)).await
    }

    /// For each node the devices that it surely sees, if `spec` asks for devices; refused where there is no such device.
    pub(super) async fn located_for(
        &self,
        spec: &ContainerSpec,
    ) -> Result<BTreeMap<NodeId, BTreeSet<DeviceName>>, Failure> {
        if spec.require.devices.is_empty() {
            return Ok(BTreeMap::new());
        }
        let known = read(&self.rows).await?;
        for text in &spec.require.devices {
            if known.ever_named(&device_name(text)?).is_none() {
                return Err(no_such_name(&known, text));
            }
        }
        Ok(known.located())
    }

    async fn name_device_locally(
        &self,
        id: DeviceId,
        wanted: Option<DeviceName>,
    ) -> Result<types::Device, Failure> {
        let unusable = |message: &str| Failure::new(Code::DevicesUnusable, message);
        let room = self.devices.as_deref();
        let room = room.ok_or_else(|| unusable("this node takes no part in device names"))?;
        let wanted = wanted.ok_or_else(|| {
            Failure::new(
                Code::DeviceNameInvalid,
                "automatic names are the cluster's: give a name with --local",
            )
        })?;
        let known = stale(&self.rows);
        if let Some(row) = known.device(&id).filter(|row| !row.is_retired) {
            let error = NamingError::HasName { device: id, name: row.name.clone() };
            return Err(self.naming_failure(&error));
        }
        room.name_locally(id.clone(), wanted, known.naming().prefix).await?;
        Ok(self.shown_device(&stale(&self.rows), &id, &self.rows.names()))
    }

    async fn committed<F>(&self, decide: F) -> Result<types::Device, Failure>
    where
        F: Fn(&DeviceRows) -> Result<Decision, NamingError>,
    {
        let outcome = commit(&self.rows, decide).await;
        let row = outcome.map_err(|failure| Failure::new(failure.code, self.with_names(&failure.message)))?;
        let known = read(&self.rows).await?;
        Ok(self.shown_device(&known, &row.id, &self.rows.names()))
    }

    /// The device behind an id, or behind the kernel's name for it on this node.
    async fn device_id(&self, text: &str) -> Result<DeviceId, Failure> {
        if text.contains(':') {
            let id: DeviceId =
                text.parse().map_err(|error: steadfast_proto::devices::ParseDeviceError| {
                    Failure::new(Code::DeviceNameInvalid, error.to_string())
                })?;
            if stale(&self.rows).sightings(&id).next().is_none()
                && let Some(room) = &self.devices
            {
                room.look_again().await;
            }
            return Ok(id);
        }
        let kernel_name = text.strip_prefix("/dev/").unwrap_or(text);
        let Some(room) = &self.devices else {
            return Err(Failure::new(
                Code::DeviceNotFound,
                format!(
                    "this node looks at no block devices, so {text} says nothing here; give the device's id, or ask on a node that sees it"
                ),
            ));
        };
        room.look_again().await;
        let seen = room.shown().kernel_names;
        match seen.get(kernel_name) {
            Some(Ok(id)) => Ok(id.clone()),
            Some(Err(why @ Unidentified::Duplicate { .. })) => {
                Err(Failure::new(Code::DevicesAlike, format!("{kernel_name} can't be named: {why}")))
            }
            Some(Err(why)) => {
                Err(Failure::new(Code::DeviceNotFound, format!("{kernel_name} can't be named: {why}")))
            }
            None => {
                let hint = did_you_mean(kernel_name, seen.keys().map(String::as_str));
                Err(Failure::new(
                    Code::DeviceNotFound,
                    format!(
                        "this node sees no block device {kernel_name}{hint}; `steadfast device list` shows what is seen"
                    ),
                ))
            }
        }
    }

    fn naming_failure(&self, error: &NamingError) -> Failure {
        let failure = naming_failure(error);
        Failure::new(failure.code, self.with_names(&failure.message))
    }

    fn shown_device(&self, known: &DeviceRows, id: &DeviceId, names: &convert::Names) -> types::Device {
        let row = known.device(id);
        let live = row.filter(|row| !row.is_retired);
        let nodes = known.sightings(id).map(|(node, sighting)| types::DeviceOnNode {
            node: convert::node_name(names, node),
            kernel_name: sighting.kernel_name.clone(),
            paths: sighting.paths,
            in_use: sighting.in_use,
        });
        let nodes: Vec<types::DeviceOnNode> = nodes.collect();
        let sharing = match known.sharing(id) {
            Sharing::Twins { .. } => "twins",
            Sharing::Proved(_) => "shared",
            Sharing::Claimed if id.is_worldwide() => "shared",
            Sharing::Claimed => "claimed",
            Sharing::NotShared if nodes.is_empty() => "unseen",
            Sharing::NotShared => "one-node",
        };
        let problem = match known.check(id) {
            // A device that was named and is away is no problem of its name.
            Ok(()) | Err(NamingError::Unseen { .. }) => None,
            Err(error) => Some(self.with_names(&error.to_string())),
        };
        types::Device {
            id: id.to_string(),
            name: live.map(|row| row.name.to_string()),
            retired: row.filter(|row| row.is_retired).map(|row| row.name.to_string()),
            bytes: known.sightings(id).map(|(_, sighting)| sighting.bytes).max(),
            sharing: sharing.to_owned(),
            nodes,
            problem,
        }
    }
}

/// Takes a decision on the rows as they are and commits it, anew while they change under it.
pub(super) async fn commit<F>(rows: &Rows, decide: F) -> Result<DeviceRow, Failure>
where
    F: Fn(&DeviceRows) -> Result<Decision, NamingError>,
{
    for _ in 0..ATTEMPTS {
        let known = read(rows).await?;
        let (claim, row) = match decide(&known).map_err(|error| naming_failure(&error))? {
            Decision::Already(row) => return Ok(row),
            Decision::Commit { claim, row } => (claim, row),
        };
        let puts = claim.puts.into_iter().map(|(key, bytes)| (key, Some(Bytes::from(bytes))));
        let txn = Txn { compare: claim.compare, puts: puts.collect() };
        if rows.commit(txn).await?.succeeded {
            return Ok(row);
        }
    }
    Err(Failure::new(
        Code::TimedOut,
        "the names of devices change faster than one could be written; try again",
    ))
}

/// The rows about devices as this node has them; they may be old.
pub(super) fn stale(rows: &Rows) -> DeviceRows {
    let found = rows.catalog().range_stale(DeviceKey::PREFIX);
    let mut known = DeviceRows::default();
    for (key, row) in &found.rows {
        // The follower logs what can't be read.
        let _ = known.learn(key, Some((row.version, &row.value[..])));
    }
    known
}

/// The rows about devices as of now.
async fn read(rows: &Rows) -> Result<DeviceRows, Failure> {
    let found = rows.catalog().range(DeviceKey::PREFIX.to_owned()).await;
    let found = found.map_err(|error| rows::catalog_failure(&error))?;
    let mut known = DeviceRows::default();
    for (key, row) in &found.rows {
        known
            .learn(key, Some((row.version, &row.value[..])))
            .map_err(|error| Failure::new(Code::Internal, format!("the catalog's row {key}: {error}")))?;
    }
    Ok(known)
}

/// The devices that a container asks for.
fn required<'a>(known: &'a DeviceRows, spec: &ContainerSpec) -> Vec<&'a DeviceId> {
    let names = spec.require.devices.iter().filter_map(|name| name.parse::<DeviceName>().ok());
    names.filter_map(|name| Some(&known.ever_named(&name)?.id)).collect()
}

fn device_name(text: &str) -> Result<DeviceName, Failure> {
    text.parse().map_err(|error: steadfast_proto::devices::ParseDeviceError| {
        Failure::new(Code::DeviceNameInvalid, error.to_string())
    })
}

fn no_such_name(known: &DeviceRows, text: &str) -> Failure {
    let live = known.devices().filter(|row| !row.is_retired);
    let names: Vec<&str> = live.map(|row| row.name.as_str()).collect();
    let hint = did_you_mean(text, names.iter().copied());
    Failure::new(
        Code::DeviceNotFound,
        format!("no device is named {text}{hint}; `steadfast device list` shows the names"),
    )
}

fn naming_failure(error: &NamingError) -> Failure {
    let code = match error {
        NamingError::Taken { .. } | NamingError::Retired { .. } | NamingError::HasName { .. } => {
            Code::DeviceNameRefused
        }
        NamingError::Full { .. } => Code::DeviceNameRefused,
        NamingError::Reserved { .. } | NamingError::Prefix { .. } => Code::DeviceNameInvalid,
        NamingError::Unseen { .. } | NamingError::NoSuchName { .. } => Code::DeviceNotFound,
        NamingError::DuplicateDeviceId { .. }
        | NamingError::SizesDiffer { .. }
        | NamingError::Twins { .. } => Code::DevicesAlike,
    };
    Failure::new(code, error.to_string())
}

/// How names stand on this node.
fn here(known: &DeviceRows, room: &Room) -> types::DevicesHere {
    let shown = room.shown();
    let named = |id: &DeviceId| known.device(id).map_or_else(|| id.to_string(), |row| row.name.to_string());
    let unidentified = shown.report.refused.iter().map(|(kernel_name, why)| types::Unidentified {
        kernel_name: kernel_name.clone(),
        why: why.to_string(),
    });
    let waiting = shown.report.deferred.iter().map(|one| types::Waiting {
        device: one.id.to_string(),
        name: one.wanted.as_ref().map(ToString::to_string),
        why: match &one.reason {
            DeferredReason::HeldBy(other) => {
                format!("{} bears that name and can't leave it yet", named(other))
            }
            reason @ (DeferredReason::InUse | DeferredReason::NameConflict(_) | DeferredReason::Full) => {
                reason.to_string()
            }
        },
    });
    types::DevicesHere {
        links: shown
            .report
            .links
            .iter()
            .map(|(name, node)| (name.clone(), node.display().to_string()))
            .collect(),
        unidentified: unidentified.collect(),
        waiting: waiting.collect(),
        in_the_way: shown.report.in_the_way.iter().map(ToString::to_string).collect(),
        failure: shown.failure,
    }
}
