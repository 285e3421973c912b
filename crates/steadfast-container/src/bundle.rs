//! Decides what runc is told: the OCI configuration of a container, from its spec.
//!
//! Must never give a container more than the default rights: no CAP_NET_ADMIN (it could open its own gate), devices only
//! the harmless ones, own name spaces for mounts, processes, host name, IPC and network.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    config::{Root, Spec},
    container::OWN_SOCKET,
    layout::Layout,
};

/// What containers may do by default elsewhere, without CAP_NET_ADMIN, which they do not have there either.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PERIOD_US: f64 = 100_000.0;

/// Why no configuration could be made. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file could not be read or written.
    #[error("{} cannot be used: {source}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What should be a device is none.
    #[error("{} is no block device, so the container can't have it", .0.display())]
    NoDevice(PathBuf),
    /// The bundle's config.json is not one.
    #[error("{} is not an OCI configuration: {reason}", .path.display())]
    Configuration {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The user is not known inside the container.
    #[error(
        "user {0:?} is not in the container's /etc/passwd or /etc/group; use a name from there, or numbers such as 1000:1000"
    )]
    User(String),
}

/// A bundle somebody else made, as far as we use it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Foreign {
    /// Its root file system.
    pub(crate) rootfs: PathBuf,
    process: Value,
}

/// Reads the bundle in `folder`.
pub(crate) fn read_foreign(folder: &Path) -> Result<Foreign, BundleError> {
    let path = folder.join("config.json");
    let bytes = fs::read(&path).map_err(|source| BundleError::File { path: path.clone(), source })?;
    let foreign = parse_foreign(folder, &bytes)?;
    if !foreign.rootfs.is_dir() {
        let reason = format!("its root {} is not a folder", foreign.rootfs.display());
        return Err(BundleError::Configuration { path, reason });
    }
    Ok(foreign)
}

/// Reads the text of the `config.json` in `folder`.
pub(crate) fn parse_foreign(folder: &Path, text: &[u8]) -> Result<Foreign, BundleError> {
    let wrong = |reason: String| BundleError::Configuration { path: folder.join("config.json"), reason };
    let config: Value = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
    let root = config.pointer("/root/path").and_then(Value::as_str);
    let rootfs = folder.join(root.ok_or_else(|| wrong("it has no root.path".to_owned()))?);
    let process = config.get("process").cloned().unwrap_or(Value::Null);
    Ok(Foreign { rootfs, process })
}

/// The folder that becomes the lower layer, and the bundle's own process where there is one.
pub(crate) fn lower(spec: &Spec) -> Result<Foreign, BundleError> {
    match &spec.root {
        Root::Host => Ok(Foreign { rootfs: PathBuf::from("/"), process: Value::Null }),
        Root::Bundle(folder) => read_foreign(folder),
    }
}

/// Writes the container's own bundle. The root must be mounted: users are looked up in it.
pub(crate) fn write(layout: &Layout, spec: &Spec, foreign: &Foreign) -> Result<(), BundleError> {
    let configuration = configuration(layout, spec, foreign)?;
    let path = layout.bundle().join("config.json");
    let bytes = serde_json::to_vec_pretty(&configuration).expect("a JSON value can be written");
    fs::write(&path, bytes).map_err(|source| BundleError::File { path, source })
}

pub(crate) fn configuration(layout: &Layout, spec: &Spec, foreign: &Foreign) -> Result<Value, BundleError> {
    let user = user(spec, foreign, &layout.rootfs())?;
    let arguments = if spec.command.is_empty() {
        foreign.process.get("args").cloned().ok_or_else(|| BundleError::Configuration {
            path: layout.bundle(),
            reason: "it names no process.args and the spec gives no command".to_owned(),
        })?
    } else {
        json!(spec.command)
    };
    let cwd = match (&spec.working_directory, foreign.process.get("cwd")) {
        (Some(path), _) => json!(path),
        (None, Some(cwd)) => cwd.clone(),
        (None, None) => json!("/"),
    };
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": user,
            "args": arguments,
            "env": environment(spec, foreign),
            "cwd": cwd,
            "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
            "noNewPrivileges": false,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": spec.name,
        "mounts": mounts(layout, spec),
        "annotations": { "org.criu.config": layout.criu_config() },
        "linux": {
            "cgroupsPath": layout.runc_cgroup(),
            "resources": resources(spec)?,
            "namespaces": [
                { "type": "pid" },
                { "type": "network", "path": layout.netns() },
                { "type": "ipc" },
                { "type": "uts" },
                { "type": "mount" },
            ],
            // Folders are masked by a tmpfs each, which every image would have to carry: only what leaks is listed.
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
}

fn environment(spec: &Spec, foreign: &Foreign) -> Vec<String> {
    let mut variables = std::collections::BTreeMap::from([
        ("PATH".to_owned(), PATH.to_owned()),
        ("HOME".to_owned(), "/root".to_owned()),
        ("STEADFAST_SOCKET".to_owned(), OWN_SOCKET.to_owned()),
    ]);
    let own =
        foreign.process.get("env").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    variables.extend(
        own.filter_map(|text| text.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    variables.extend(spec.environment.clone());
    variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn mounts(layout: &Layout, spec: &Spec) -> Vec<Value> {
    let fresh = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        fresh("/proc", "proc", &[]),
        fresh("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        fresh(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        fresh("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777"]),
        fresh("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        fresh("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        fresh("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
        fresh("/run", "tmpfs", &["nosuid", "nodev", "mode=755"]),
        json!({ "destination": "/run/steadfast", "type": "bind", "source": layout.epoch_dir(), "options": ["bind", "ro", "nosuid", "nodev", "noexec"] }),
    ];
    mounts.extend(spec.volumes.iter().map(|volume| {
        let access = if volume.read_only { "ro" } else { "rw" };
        json!({ "destination": volume.target, "type": "bind", "source": volume.source, "options": ["bind", access] })
    }));
    // Bound and not made: an image would carry the numbers that a made node had on another host.
    mounts.extend(spec.devices.iter().map(|device| {
        json!({ "destination": device.target(), "type": "bind", "source": device.node, "options": ["bind", "rw"] })
    }));
    mounts
}

fn resources(spec: &Spec) -> Result<Value, BundleError> {
    let mut devices = vec![json!({ "allow": false, "access": "rwm" })];
    for device in &spec.devices {
        let path = &device.node;
        let found = fs::metadata(path).map_err(|source| BundleError::File { path: path.clone(), source })?;
        if !found.file_type().is_block_device() {
            return Err(BundleError::NoDevice(path.clone()));
        }
        let (major, minor) = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
        // Without "m": with CAP_MKNOD the container could make nodes of it, and needs none.
        devices.push(json!({ "allow": true, "type": "b", "major": major, "minor": minor, "access": "rw" }));
    }
    let mut resources = json!({ "devices": devices });
    if let Some(bytes) = spec.memory_bytes_max {
        resources["memory"] = json!({ "limit": bytes });
    }
    if let Some(cores) = spec.cpu_max {
        // The spec was checked: 0.01 to 4096 cores fit without loss.
        #[allow(
            clippy::cast_possible_truncation,
            reason = "a float to integer cast saturates, and the value is bounded"
        )]
        let quota = (cores * PERIOD_US).round() as i64;
        resources["cpu"] = json!({ "quota": quota, "period": 100_000 });
    }
    Ok(resources)
}

fn user(spec: &Spec, foreign: &Foreign, rootfs: &Path) -> Result<Value, BundleError> {
    let Some(text) = &spec.user else {
        return Ok(foreign.process.get("user").cloned().unwrap_or_else(|| json!({ "uid": 0, "gid": 0 })));
    };
    let unknown = || BundleError::User(text.clone());
    let (name, group) =
        text.split_once(':').map_or((text.as_str(), None), |(name, group)| (name, Some(group)));
    let entry = lookup(&rootfs.join("etc/passwd"), name);
    let uid =
        name.parse::<u32>().ok().or_else(|| entry.as_ref()?.get(2)?.parse().ok()).ok_or_else(unknown)?;
    let gid = match group {
        Some(group) => group
            .parse::<u32>()
            .ok()
            .or_else(|| lookup(&rootfs.join("etc/group"), group)?.get(2)?.parse().ok())
            .ok_or_else(unknown)?,
        None => entry.and_then(|fields| fields.get(3)?.parse().ok()).unwrap_or(0),
    };
    Ok(json!({ "uid": uid, "gid": gid }))
}

fn lookup(path: &Path, name: &str) -> Option<Vec<String>> {
    account(&fs::read_to_string(path).ok()?, name)
}

/// The fields of the first line whose first field is `name`.
pub(crate) fn account(text: &str, name: &str) -> Option<Vec<String>> {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    text.lines().map(fields).find(|fields| fields.first().is_some_and(|first| first == name))
}
