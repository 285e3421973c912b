//! Decides what a caller may say: how a host is set up, and what a container is. Checks every field of a spec before
//! anything is touched, so that a refused request changes nothing.
//!
//! Must never touch the world. Read `host.rs` next: it carries out what is described here.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// How containers are kept on one host. Everything that could collide with another host that shares this kernel carries `scope`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostConfig {
    /// Unique per node: prefix of every cgroup and interface name. Letters, digits, `-`, `_`; at most 40.
    pub scope: String,
    /// On a tmpfs: sockets, bundles, mounts, small state.
    pub run_dir: PathBuf,
    /// On a disk: upper layers and logs.
    pub data_dir: PathBuf,
    /// On a tmpfs: where images of checkpoints are written and read.
    pub image_dir: PathBuf,
    /// The runc program: a path, or a name to be found on `PATH`.
    pub runc: PathBuf,
    /// The CRIU program.
    pub criu: PathBuf,
    /// Program and leading arguments that end up in [`crate::shim::main`]; `/proc/self/exe` stands for the caller's own program.
    pub shim: Vec<OsString>,
    /// The bridge containers with an address are attached to. Without it, only loopback is possible.
    pub bridge: Option<BridgeConfig>,
    /// A log file is rotated when it has this many bytes.
    pub log_bytes_max: u64,
    /// How many log files are kept per container, the current one included. At least 1.
    pub log_files_max: u32,
    /// Absolute paths of the host that a container with root `host` must not see (keys, catalog); shown as empty folders.
    /// The three folders above are always hidden.
    pub hidden: Vec<PathBuf>,
}

/// The layer-2 bridge of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BridgeConfig {
    /// Its interface name; created when absent.
    pub name: String,
    /// An interface without addresses to be attached to it, which leads to the other hosts.
    pub uplink: Option<String>,
}

/// What a container is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The container's name; its host name inside.
    pub name: String,
    /// Program and arguments. May be empty with [`Root::Bundle`]: the bundle's own process is run then.
    pub command: Vec<String>,
    /// Environment variables, added to `PATH` and `HOME`.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Where the program starts; default `/`.
    #[serde(default)]
    pub working_directory: Option<PathBuf>,
    /// `user`, `user:group`, or numbers; default root.
    #[serde(default)]
    pub user: Option<String>,
    /// Where its files come from.
    #[serde(default)]
    pub root: Root,
    /// Folders or files of the host mounted inside; they do not roll back with a checkpoint.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Devices of the host that it may use, as `/dev/steadfast/NAME`.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Its own address on the host's bridge. None: loopback only.
    #[serde(default)]
    pub address: Option<Address>,
    /// Memory limit in bytes.
    #[serde(default)]
    pub memory_bytes_max: Option<u64>,
    /// CPU limit in cores.
    #[serde(default)]
    pub cpu_max: Option<f64>,
}

/// Where a container's files come from. Either way it gets a private upper layer over them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// The host's own root file system.
    #[default]
    Host,
    /// The root file system of an OCI bundle in this folder.
    Bundle(PathBuf),
}

/// One bind mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: PathBuf,
    /// Whether the container may not write to it.
    #[serde(default)]
    pub read_only: bool,
}

/// One device of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its node on this host, such as `/dev/sdb`; another host may have another.
    pub node: PathBuf,
    /// Its name inside.
    pub name: String,
}

impl Device {
    /// Where the container finds it.
    pub fn target(&self) -> PathBuf {
        Path::new("/dev/steadfast").join(&self.name)
    }
}

/// An IPv4 address with the length of its network's prefix, written `10.0.9.5/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    /// Bits of the network's prefix, 1 to 32.
    pub prefix: u8,
}

/// Why a text is not an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address; write an IPv4 address and a prefix length such as 10.0.9.5/24")]
pub struct AddressError(pub String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.to_owned());
        let (ip, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address =
            Self { ip: ip.parse().map_err(|_| wrong())?, prefix: prefix.parse().map_err(|_| wrong())? };
        let usable = (1..=32).contains(&address.prefix)
            && !address.ip.is_unspecified()
            && !address.ip.is_multicast()
            && !address.ip.is_broadcast()
            && !address.ip.is_loopback();
        if usable { Ok(address) } else { Err(wrong()) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What is wrong with a spec. Nothing was changed; correct the field and try again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The name cannot be a host name.
    #[error(
        "name {0:?} is not usable; use 1 to 63 letters, digits and hyphens, not beginning or ending with a hyphen"
    )]
    Name(String),
    /// The id cannot be a folder and cgroup name.
    #[error(
        "container id {0:?} is not usable; use 1 to 64 letters, digits, '-', '_' and '.', beginning with a letter or a digit"
    )]
    Id(String),
    /// There is nothing to run.
    #[error("command is empty; give the program to run, or a bundle whose config.json names one")]
    NoCommand,
    /// An argument or variable holds a NUL or a wrong name.
    #[error("{field} {value:?} is not usable; {right}")]
    Text {
        /// Which field.
        field: &'static str,
        /// What it held.
        value: String,
        /// What would be right.
        right: &'static str,
    },
    /// A path that must be absolute is not, or holds `..`.
    #[error("{field} {} is not usable; give an absolute path without '..'", .path.display())]
    Path {
        /// Which field.
        field: &'static str,
        /// What it held.
        path: PathBuf,
    },
    /// A volume would hide what the container needs to run.
    #[error("volume target {} is not usable; mount it below /, but not on or below /proc, /sys, /dev or /run/steadfast", .0.display())]
    VolumeTarget(PathBuf),
    /// A device's name that can't be one below `/dev/steadfast`.
    #[error(
        "device name {0:?} is not usable; use a letter or digit, then up to 63 letters, digits, '.', '_' or '-'"
    )]
    DeviceName(String),
    /// A limit that no program could run under.
    #[error("{field} {value} is not usable; {right}")]
    Limit {
        /// Which field.
        field: &'static str,
        /// What it held.
        value: String,
        /// What would be right.
        right: &'static str,
    },
}

/// Memory below which not even a shell starts reliably.
const MEMORY_BYTES_MIN: u64 = 4 << 20;
const VOLUMES_MAX: usize = 64;
const DEVICES_MAX: usize = 64;

impl Spec {
    /// Checks every field; the first problem found is returned.
    pub fn check(&self) -> Result<(), SpecError> {
        let name_ok = (1..=63).contains(&self.name.len())
            && self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !self.name.starts_with('-')
            && !self.name.ends_with('-');
        if !name_ok {
            return Err(SpecError::Name(self.name.clone()));
        }
        self.check_texts()?;
        self.check_paths()?;
        self.check_limits()
    }

    fn check_texts(&self) -> Result<(), SpecError> {
        let first = self.command.first().map_or("", String::as_str);
        if first.is_empty() && (self.root == Root::Host || !self.command.is_empty()) {
            return Err(SpecError::NoCommand);
        }
        for argument in &self.command {
            if argument.contains('\0') {
                let right = "an argument may not hold a NUL byte";
                return Err(SpecError::Text { field: "command argument", value: argument.clone(), right });
            }
        }
        for (name, value) in &self.environment {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                let right =
                    "a name is not empty and holds no '=', and neither name nor value holds a NUL byte";
                return Err(SpecError::Text { field: "environment variable", value: name.clone(), right });
            }
        }
        Ok(())
    }

    fn check_paths(&self) -> Result<(), SpecError> {
        if let Some(path) = &self.working_directory {
            absolute("working_directory", path)?;
        }
        if let Root::Bundle(path) = &self.root {
            absolute("root bundle", path)?;
        }
        if self.volumes.len() > VOLUMES_MAX {
            let value = self.volumes.len().to_string();
            return Err(SpecError::Limit { field: "volumes", value, right: "give at most 64" });
        }
        for volume in &self.volumes {
            absolute("volume source", &volume.source)?;
            absolute("volume target", &volume.target)?;
            let reserved = ["/proc", "/sys", "/dev", "/run/steadfast"];
            let taken =
                volume.target == Path::new("/") || reserved.iter().any(|top| volume.target.starts_with(top));
            if taken {
                return Err(SpecError::VolumeTarget(volume.target.clone()));
            }
        }
        self.check_devices()
    }

    fn check_devices(&self) -> Result<(), SpecError> {
        if self.devices.len() > DEVICES_MAX {
            let value = self.devices.len().to_string();
            return Err(SpecError::Limit { field: "devices", value, right: "give at most 64" });
        }
        for device in &self.devices {
            absolute("device node", &device.node)?;
            let name = &device.name;
            let fits = name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.len() <= 64
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            if !fits {
                return Err(SpecError::DeviceName(name.clone()));
            }
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), SpecError> {
        if let Some(bytes) =
            self.memory_bytes_max.filter(|bytes| *bytes < MEMORY_BYTES_MIN || i64::try_from(*bytes).is_err())
        {
            let value = bytes.to_string();
            return Err(SpecError::Limit {
                field: "memory_bytes_max",
                value,
                right: "give at least 4194304 (4 MiB)",
            });
        }
        if let Some(cores) = self.cpu_max.filter(|cores| !(0.01..=4096.0).contains(cores)) {
            let value = cores.to_string();
            return Err(SpecError::Limit {
                field: "cpu_max",
                value,
                right: "give a number of cores from 0.01 to 4096",
            });
        }
        Ok(())
    }
}

/// Checks that an id can be part of paths and names.
pub(crate) fn check_id(id: &str) -> Result<(), SpecError> {
    let fits = (1..=64).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && id.starts_with(|c: char| c.is_ascii_alphanumeric());
    if fits { Ok(()) } else { Err(SpecError::Id(id.to_owned())) }
}

fn absolute(field: &'static str, path: &Path) -> Result<(), SpecError> {
    let plain = path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir);
    if plain && !path.as_os_str().as_encoded_bytes().contains(&0) {
        Ok(())
    } else {
        Err(SpecError::Path { field, path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            name: "demo".into(),
            command: vec!["true".into()],
            environment: BTreeMap::new(),
            working_directory: None,
            user: None,
            root: Root::Host,
            volumes: Vec::new(),
            devices: Vec::new(),
            address: None,
            memory_bytes_max: None,
            cpu_max: None,
        }
    }

    #[test]
    fn a_plain_spec_is_accepted() {
        spec().check().unwrap();
    }

    #[test]
    fn each_wrong_field_is_named() {
        let wrong = [
            Spec { name: "-x".into(), ..spec() },
            Spec { command: Vec::new(), ..spec() },
            Spec { command: vec!["a\0".into()], ..spec() },
            Spec { working_directory: Some("relative".into()), ..spec() },
            Spec {
                volumes: vec![Volume { source: "/a".into(), target: "/proc/x".into(), read_only: false }],
                ..spec()
            },
            Spec { memory_bytes_max: Some(1), ..spec() },
            Spec { devices: vec![Device { node: "/dev/sda".into(), name: "../sda".into() }], ..spec() },
            Spec { devices: vec![Device { node: "sda".into(), name: "data1".into() }], ..spec() },
            Spec { cpu_max: Some(f64::NAN), ..spec() },
        ];
        for spec in wrong {
            let message = spec.check().unwrap_err().to_string();
            assert!(message.contains("not usable") || message.contains("empty"), "{message}");
        }
    }

    #[test]
    fn addresses_are_parsed_and_refused() {
        assert_eq!("10.0.9.5/24".parse::<Address>().unwrap().to_string(), "10.0.9.5/24");
        for wrong in ["10.0.9.5", "10.0.9.5/0", "10.0.9.5/33", "127.0.0.1/8", "::1/64", "0.0.0.0/8"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
