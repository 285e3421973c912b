//! The JSON of block devices and their names.
//!
//! Part of the HTTP API like [`super::types`], with the same rules. What each field says is decided by the core; read
//! `docs/protocols/devices.md` for the words.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The devices that the cluster knows, and how their names stand on the node that answers.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceReport {
    /// Every device that has a name or is seen.
    pub devices: Vec<Device>,
    /// How it stands on the node that answers; absent where it takes no part in device names.
    pub here: Option<DevicesHere>,
}

/// A block device.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// What it says of itself, such as `naa:5000c500a1b2c3d4`.
    pub id: String,
    /// The cluster's name for it.
    pub name: Option<String>,
    /// The name that was taken away from it; no other device ever gets it.
    pub retired: Option<String>,
    /// Its size in bytes, where a node sees it.
    pub bytes: Option<u64>,
    /// `one-node`; `shared`: it is surely one device; `claimed`: several nodes see a device that says this of itself, which is
    /// no proof; `twins`: these are several devices; `unseen`.
    pub sharing: String,
    /// Where it is seen.
    pub nodes: Vec<DeviceOnNode>,
    /// Why it can get no name.
    pub problem: Option<String>,
}

/// A device as one node sees it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceOnNode {
    /// The node, by name.
    pub node: String,
    /// The kernel's name for it there, such as `sda`.
    pub kernel_name: String,
    /// How many paths lead to it.
    pub paths: u16,
    /// Whether something uses it there.
    pub in_use: bool,
}

/// How device names stand on one node.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct DevicesHere {
    /// The names that lead to a device, and to which.
    pub links: BTreeMap<String, String>,
    /// The block devices that can't be identified.
    pub unidentified: Vec<Unidentified>,
    /// The devices that can't have the name that they should have yet.
    pub waiting: Vec<Waiting>,
    /// What is in the way of links.
    pub in_the_way: Vec<String>,
    /// Why names can't be kept just now.
    pub failure: Option<String>,
}

/// A block device that can't be identified.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Unidentified {
    /// The kernel's name for it.
    pub kernel_name: String,
    /// Why.
    pub why: String,
}

/// A device that can't have the name that it should have yet.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Waiting {
    /// The device's id.
    pub device: String,
    /// The name it should have; absent when it should lose the one it has.
    pub name: Option<String>,
    /// Why it waits.
    pub why: String,
}

/// Asks for a device to be named.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NameDevice {
    /// The device's id, or the kernel's name for it on the node that answers.
    pub device: String,
    /// Its name; the next automatic one when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether only this node shall use the name, until the cluster gives the device one.
    #[serde(default)]
    pub local: bool,
}

/// Asks for another name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameDevice {
    /// The name that it has.
    pub old: String,
    /// The name that it is to have.
    pub new: String,
}

/// Asks for a name to be taken away.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnnameDevice {
    /// The name.
    pub name: String,
}
