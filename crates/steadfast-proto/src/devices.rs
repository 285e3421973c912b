//! Cluster-unique names of block devices (PROTOCOLS 4.2): what a device, its name and their rows are.
//!
//! A device is known by what it says of itself ([`DeviceId`]), never by the path under which one node happens to
//! see it. The catalog binds ids to names for ever; each node keeps a durable table of its own and follows. Nothing
//! here reads a device or a file. Read next: [`registry`] for who may have which name, then [`table`] and [`plan`]
//! for how one node's names become the cluster's.
//!
//! ```
//! use steadfast_proto::devices::{DeviceId, DeviceName};
//! let id: DeviceId = "naa:5000c500a1b2c3d4".parse()?;
//! let name: DeviceName = "data1".parse()?;
//! assert_eq!(format!("{name} is {id}"), "data1 is naa:5000c500a1b2c3d4");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod registry;
pub mod table;
pub mod plan;

#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

/// The longest device id, in bytes.
pub const ID_BYTES_MAX: usize = 128;
/// The longest device name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The most devices that one node tells the cluster of; more are not told.
pub const SEEN_MAX: usize = 1024;
/// The prefix of automatic names unless the cluster's naming row has another.
pub const PREFIX: &str = "disk-";

/// What a device says of itself, as `KIND:VALUE`: a worldwide name, a serial number, the UUID of what it holds.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceId(String);

impl DeviceId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What kind of identifier it is, such as `naa` or `gpt`.
    pub fn kind(&self) -> &str {
        self.0.split_once(':').map_or("", |(kind, _)| kind)
    }

    /// Whether makers of hardware see to it that no other device in the world has it. A copy of a disk takes every other
    /// kind along.
    pub fn is_worldwide(&self) -> bool {
        matches!(self.kind(), "nguid" | "eui" | "uuid" | "naa")
    }

    /// Whether it is our own label, on which a proof can be written.
    pub fn is_label(&self) -> bool {
        self.kind() == "label"
    }
}

impl FromStr for DeviceId {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<DeviceId, ParseDeviceError> {
        DeviceId::try_from(text.to_owned())
    }
}

impl TryFrom<String> for DeviceId {
    type Error = ParseDeviceError;

    fn try_from(text: String) -> Result<DeviceId, ParseDeviceError> {
        let is_kind = |kind: &str| {
            !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let is_value = |value: &str| {
            !value.is_empty()
                && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte))
        };
        let parts = text.split_once(':').filter(|(kind, value)| is_kind(kind) && is_value(value));
        if parts.is_none() || text.len() > ID_BYTES_MAX {
            return Err(ParseDeviceError {
                text: excerpt(&text),
                expected: "a device id such as naa:5000c500a1b2c3d4",
            });
        }
        Ok(DeviceId(text))
    }
}

/// A name of a device, the same on every node that sees it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName(String);

impl DeviceName {
    /// The name as text; it is also the name of a link, so it holds no `/` and does not begin with a dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The automatic name that `prefix` and `number` make.
    ///
    /// # Errors
    /// The prefix makes no name.
    pub fn numbered(prefix: &str, number: u64) -> Result<DeviceName, ParseDeviceError> {
        format!("{prefix}{number}").parse()
    }
}

impl FromStr for DeviceName {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<DeviceName, ParseDeviceError> {
        DeviceName::try_from(text.to_owned())
    }
}

impl TryFrom<String> for DeviceName {
    type Error = ParseDeviceError;

    fn try_from(text: String) -> Result<DeviceName, ParseDeviceError> {
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let fits = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !begins || !fits || text.len() > NAME_BYTES_MAX {
            return Err(ParseDeviceError {
                text: excerpt(&text),
                expected: "a device name: a letter or digit, then up to 63 letters, digits, '.', '_' or '-'",
            });
        }
        Ok(DeviceName(text))
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({})", stringify!($name), self.0)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
    };
}

as_text!(DeviceId);
as_text!(DeviceName);

impl Borrow<str> for DeviceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The text is no device id or name; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' can't be used: expected {expected}")]
pub struct ParseDeviceError {
    text: String,
    expected: &'static str,
}

/// How automatic names are made: a reserved prefix and a counter that only grows (N4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamingRow {
    /// What automatic names begin with; no other name may.
    pub prefix: String,
    /// The number of the last automatic name.
    pub counter: u64,
}

impl Default for NamingRow {
    fn default() -> NamingRow {
        NamingRow { prefix: PREFIX.to_owned(), counter: 0 }
    }
}

/// A device that was named. Its row is kept for ever, so that no other device is ever taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRow {
    /// The device.
    pub id: DeviceId,
    /// Its name; when it is retired, the last one it bore.
    pub name: DeviceName,
    /// When it was first named, in milliseconds since 1970, by the proposer's clock; for people only.
    pub added_unix_ms: u64,
    /// Whether its name was taken away.
    pub is_retired: bool,
}

/// The only device that ever bears a name (N1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNameRow {
    /// The device.
    pub device: DeviceId,
}

/// The devices that one node sees, as it told the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenRow {
    /// What it can tell apart; at most [`SEEN_MAX`].
    pub devices: BTreeMap<DeviceId, Sighting>,
    /// Ids that several of its devices claim: it uses none of them.
    pub duplicates: BTreeSet<DeviceId>,
}

/// One node's view of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// The kernel's name for it there, such as `sda`.
    pub kernel_name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// How many paths lead to it.
    pub paths: u16,
    /// Whether something uses it there.
    pub in_use: bool,
    /// What the node read when it was last asked whether it sees the same device as another.
    pub answer: Option<Answer>,
}

/// A number that one node wrote to a device, so that others can prove that they see the very same one. The row is put
/// once the number is on the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofRow {
    /// Who wrote it.
    pub node: NodeId,
    /// What it wrote, drawn at random.
    pub number: u128,
}

/// What a node read of the number that a [`ProofRow`] speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The number in the row that it answers.
    pub number: u128,
    /// Whether that number is on its device.
    pub is_there: bool,
}

/// Names a row about devices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKey {
    /// Holds the [`NamingRow`].
    Naming,
    /// Holds a [`DeviceRow`].
    Device(DeviceId),
    /// Holds a [`DeviceNameRow`].
    Name(DeviceName),
    /// Holds a node's [`SeenRow`].
    Seen(NodeId),
    /// Holds a [`ProofRow`].
    Proof(DeviceId),
}

impl DeviceKey {
    /// What all of these keys begin with.
    pub const PREFIX: &str = "devices/";

    /// The key as the catalog's engine stores it.
    pub fn encode(&self) -> String {
        match self {
            DeviceKey::Naming => "devices/naming".to_owned(),
            DeviceKey::Device(id) => format!("devices/id/{id}"),
            DeviceKey::Name(name) => format!("devices/name/{name}"),
            DeviceKey::Seen(node) => format!("devices/seen/{node}"),
            DeviceKey::Proof(id) => format!("devices/proof/{id}"),
        }
    }

    /// The key behind the engine's text, or `None` for a key of somebody else.
    pub fn decode(text: &str) -> Option<DeviceKey> {
        let rest = text.strip_prefix(DeviceKey::PREFIX)?;
        match rest.split_once('/') {
            None => (rest == "naming").then_some(DeviceKey::Naming),
            Some(("id", id)) => id.parse().ok().map(DeviceKey::Device),
            Some(("name", name)) => name.parse().ok().map(DeviceKey::Name),
            Some(("seen", node)) => node.parse().ok().map(DeviceKey::Seen),
            Some(("proof", id)) => id.parse().ok().map(DeviceKey::Proof),
            Some(_) => None,
        }
    }
}

/// The start of `text`, short enough for an error message.
fn excerpt(text: &str) -> String {
    text.chars().take(48).collect()
}
