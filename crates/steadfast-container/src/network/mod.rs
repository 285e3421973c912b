//! Decides how a container reaches the network: its own name space, one pair of interfaces to the host's bridge, a
//! hardware address that moves with it, and a gate that the kernel closes by itself.
//!
//! Must never touch an interface or name space that this crate did not make (the bridge's uplink is only attached).
//! Parts: `netlink` (framing), `gate` (the timed gate), `arp` (is an address taken, and telling the neighbours),
//! `sockets` (closing connections to the outside).

pub(crate) mod arp;
pub(crate) mod gate;
pub(crate) mod netlink;
pub(crate) mod sockets;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::AsFd as _,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use rustix::{
    mount::{UnmountFlags, mount_bind, unmount},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{
    config::{Address, BridgeConfig},
    sys,
};

/// The interface inside a container.
pub(crate) const INSIDE: &str = "eth0";

/// Why the network could not be set up. What had been made is removed with the container.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused a step.
    #[error("{step} failed: {source}")]
    Kernel {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A tool refused a step.
    #[error("{tool} refused to {step}: {reason}")]
    Tool {
        /// `ip` or `nft`.
        tool: &'static str,
        /// What was tried.
        step: &'static str,
        /// What it printed.
        reason: String,
    },
    /// The uplink has an address of its own, which would stop working.
    #[error(
        "uplink {uplink} has address {address}; move it to bridge {bridge} first, or name an interface without one"
    )]
    UplinkHasAddress {
        /// The interface.
        uplink: String,
        /// Its address.
        address: String,
        /// The bridge.
        bridge: String,
    },
    /// The container has an address and the host has no bridge.
    #[error("the container has address {0}, but this host has no bridge; set one, or leave the address out")]
    NoBridge(Address),
}

pub(crate) fn kernel(step: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Kernel { step, source }
}

/// Makes sure that the bridge is there, up, and attached to its uplink.
pub(crate) fn ensure_bridge(config: &BridgeConfig, scope: &str) -> Result<(), NetworkError> {
    let name = &config.name;
    if !interface_exists(name) {
        let [a, b, c, d, e, ..] = *blake3::hash(format!("bridge/{scope}/{name}").as_bytes()).as_bytes();
        let address = arp::text([0x02, a, b, c, d, e]);
        ip(&format!("link add {name} address {address} type bridge forward_delay 0\n"), "create the bridge")?;
    }
    ip(&format!("link set {name} up\n"), "raise the bridge")?;
    let Some(uplink) = &config.uplink else { return Ok(()) };
    let attached = show(uplink)?
        .split_once(" master ")
        .is_some_and(|(_, rest)| rest.split_whitespace().next() == Some(name));
    if attached {
        return ip(&format!("link set {uplink} up\n"), "raise the uplink");
    }
    if let Some(address) = first_address(uplink)? {
        return Err(NetworkError::UplinkHasAddress { uplink: uplink.clone(), address, bridge: name.clone() });
    }
    ip(&format!("link set {uplink} master {name}\nlink set {uplink} up\n"), "attach the uplink to the bridge")
}

fn interface_exists(name: &str) -> bool {
    netlink::interface_index(name).is_ok()
}

/// One line of facts about an interface. Not from /sys, which may show another name space's interfaces.
fn show(interface: &str) -> Result<String, NetworkError> {
    query(&["-o", "link", "show", "dev", interface], "show the uplink")
}

fn first_address(interface: &str) -> Result<Option<String>, NetworkError> {
    let text = query(&["-4", "-o", "addr", "show", "dev", interface], "show the uplink's addresses")?;
    Ok(text.split_whitespace().skip_while(|word| *word != "inet").nth(1).map(str::to_owned))
}

fn query(arguments: &[&str], step: &'static str) -> Result<String, NetworkError> {
    let output = Command::new("ip").args(arguments).output().map_err(kernel("starting ip"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NetworkError::Tool { tool: "ip", step, reason })
}

/// Makes a network name space and keeps it under `path`.
pub(crate) fn create_namespace(path: &Path) -> Result<(), NetworkError> {
    File::create(path).map_err(kernel("creating the file for the network name space"))?;
    let path = path.to_owned();
    on_thread(move || {
        sys::unshare_network().map_err(kernel("making a network name space"))?;
        mount_bind("/proc/thread-self/ns/net", &path)
            .map_err(|e| kernel("keeping the network name space")(e.into()))?;
        // No address is made by the kernel itself: nothing but the spec's address may speak.
        fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").ok();
        // The first question for a neighbour may be lost while bridges learn of the newcomer; the next shall not
        // wait for a second.
        fs::write("/proc/sys/net/ipv4/neigh/default/retrans_time_ms", "100").ok();
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok();
        ip("link set lo up\n", "raise loopback")
    })
}

/// Lets go of a name space; it ends with its last process.
pub(crate) fn remove_namespace(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // A name space that was never bound here leaves a plain file.
    unmount(path, UnmountFlags::DETACH).ok();
    fs::remove_file(path)
}

/// Runs `work` on a thread of its own inside the name space kept under `path`; processes it starts are inside too.
pub(crate) fn inside<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let namespace = File::open(path).map_err(kernel("opening the network name space"))?;
    on_thread(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| kernel("entering the network name space")(e.into()))?;
        work()
    })
}

fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let thread =
        thread::Builder::new().name("netns".into()).spawn(work).map_err(kernel("starting a thread"))?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Connects the name space to the bridge. The host's side stays down until the first lease.
pub(crate) fn attach(
    namespace: &Path,
    outside: &str,
    bridge: &str,
    hardware: [u8; 6],
    address: Address,
) -> Result<(), NetworkError> {
    let hardware = arp::text(hardware);
    let path = namespace.display();
    let batch = format!(
        "link add {outside} type veth peer name {INSIDE} address {hardware} netns {path}\nlink set {outside} master {bridge}\n"
    );
    ip(&batch, "connect the container to the bridge")?;
    inside(namespace, move || {
        ip(
            &format!("addr add {address} brd + dev {INSIDE}\nlink set {INSIDE} up\n"),
            "give the container its address",
        )
    })
}

/// Removes the pair of interfaces.
pub(crate) fn detach(outside: &str) {
    if interface_exists(outside) {
        ip(&format!("link del {outside}\n"), "remove the container's interface").ok();
    }
}

/// Runs a batch of `ip` commands in the calling thread's name space.
fn ip(batch: &str, step: &'static str) -> Result<(), NetworkError> {
    feed("ip", &["-batch", "-"], batch, step)
}

/// Runs a tool with `input` on its standard input.
pub(crate) fn feed(
    tool: &'static str,
    arguments: &[&str],
    input: &str,
    step: &'static str,
) -> Result<(), NetworkError> {
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(kernel("starting ip or nft"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ends before it read everything says why on its standard error.
        stdin.write_all(input.as_bytes()).ok();
    }
    let output = child.wait_with_output().map_err(kernel("waiting for ip or nft"))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NetworkError::Tool { tool, step, reason })
}
