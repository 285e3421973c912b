//! The bed's networks: one hub with a bridge per network, a port per host on each, and a client beside the hosts.
//!
//! Everything lives in the hub's own network name space, so nothing leaves the machine and two beds never meet, whatever
//! addresses they use. A port keeps its host's traffic whole; what goes wrong on the way is decided in `faults.rs`.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::{Command, Stdio};

use super::{BedError, Spaces};

/// The network that carries the containers' own traffic; hosts have no address on it.
pub const SERVICE: &str = "svc";
/// The name of each host's interface on the service network: the uplink of the containers' bridge.
pub const UPLINK: &str = "svc0";
/// The UDP and TCP port of every agent.
pub const AGENT_PORT: u16 = 7400;

/// The first byte pair of every address in a bed.
const PREFIX: [u8; 2] = [10, 77];
/// Third byte of the service network's addresses.
const SERVICE_SUBNET: u8 = 200;
/// Last byte of the client's address.
const CLIENT_LAST: u8 = 254;
/// Last byte of the first host's addresses.
const HOST_FIRST: u8 = 11;

/// The address of host number `host` (from 0) on network number `network` (from 0), for agents.
pub fn host_address(host: usize, network: usize) -> SocketAddr {
    let subnet = u8::try_from(network + 1).expect("a bed has few networks");
    let last = HOST_FIRST + u8::try_from(host).expect("a bed has few hosts");
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(PREFIX[0], PREFIX[1], subnet, last), AGENT_PORT))
}

/// The address of a container (or anything else) on the service network; `last` from 1 to 253.
pub fn service_address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(PREFIX[0], PREFIX[1], SERVICE_SUBNET, last)
}

/// The client's address on the service network.
pub fn client_address() -> Ipv4Addr {
    service_address(CLIENT_LAST)
}

/// The name of the hub's port to `host` on `network`.
pub(super) fn port(host: usize, network: &str) -> String {
    format!("{network}-h{host}")
}

/// Names of what a relay puts between a host's port and the network's bridge: a bridge of its own and two TAP devices.
pub(super) struct RelayNames {
    pub(super) bridge: String,
    /// Beside the host's port.
    pub(super) near: String,
    /// In the network's bridge, in place of the host's port.
    pub(super) far: String,
}

pub(super) fn relay_names(host: usize, network: &str) -> RelayNames {
    RelayNames {
        bridge: format!("{network}-m{host}"),
        near: format!("{network}-n{host}"),
        far: relayed_port(host, network),
    }
}

/// The name of what stands for a relayed host in the network's bridge.
pub(super) fn relayed_port(host: usize, network: &str) -> String {
    format!("{network}-f{host}")
}

/// Puts the two TAP devices of a relay, which exist already, between a host's port and the network's bridge.
pub(super) fn put_between(hub: &Spaces, host: usize, network: &str) -> Result<(), BedError> {
    let RelayNames { bridge, near, far } = relay_names(host, network);
    let port = port(host, network);
    ip(
        hub,
        &[
            format!("link add {bridge} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"),
            format!("link set {bridge} up"),
            format!("link set {near} master {bridge} up"),
            format!("link set {far} master br-{network} up"),
            format!("link set {port} master {bridge}"),
        ],
    )
}

/// Gives a host's port back to the network's bridge; the TAP devices vanish with their files.
pub(super) fn take_away(hub: &Spaces, host: usize, network: &str) -> Result<(), BedError> {
    let RelayNames { bridge, .. } = relay_names(host, network);
    let port = port(host, network);
    ip(hub, &[format!("link set {port} master br-{network}"), format!("link delete {bridge}")])
}

/// The name of the hub's port to the client.
pub(super) const CLIENT_PORT: &str = "svc-client";

/// Makes the bridges, the client's cable, and the empty table of faults.
pub(super) fn build_hub(hub: &Spaces, client: &Spaces, networks: &[String]) -> Result<(), BedError> {
    let mut lines = vec!["link set lo up".to_owned()];
    for network in networks.iter().map(String::as_str).chain([SERVICE]) {
        lines.push(format!("link add br-{network} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"));
        lines.push(format!("link set br-{network} up"));
    }
    lines.push(format!("link add {CLIENT_PORT} type veth peer name {UPLINK} netns {}", client.pid()));
    lines.push(format!("link set {CLIENT_PORT} master br-{SERVICE} up"));
    ip(hub, &lines)?;
    ip(
        client,
        &[
            "link set lo up".to_owned(),
            format!("address add {}/24 dev {UPLINK}", client_address()),
            format!("link set {UPLINK} up"),
        ],
    )?;
    nft(
        hub,
        "add table bridge faults\nadd chain bridge faults forward { type filter hook forward priority 0; policy accept; }\n",
    )
}

/// Gives host number `number` its cables: one interface per network, named like it, and the service uplink.
///
/// `relayed` are the networks on which its port belongs to a relay.
pub(super) fn plug_in(
    hub: &Spaces,
    host: &Spaces,
    number: usize,
    networks: &[String],
    relayed: &[String],
) -> Result<(), BedError> {
    let mut at_hub = Vec::new();
    let mut at_host = vec!["link set lo up".to_owned()];
    for (index, network) in networks.iter().enumerate() {
        at_hub.extend(cable(number, index, network, network, host.pid()));
        at_host.push(format!("address add {}/24 dev {network}", host_address(number, index).ip()));
        at_host.push(format!("link set {network} up"));
    }
    at_hub.extend(cable(number, networks.len(), SERVICE, UPLINK, host.pid()));
    at_host.push(format!("link set {UPLINK} up"));
    for network in relayed {
        at_hub.push(format!(
            "link set {} master {}",
            port(number, network),
            relay_names(number, network).bridge
        ));
    }
    ip(hub, &at_hub)?;
    ip(host, &at_host)
}

fn cable(host: usize, index: usize, network: &str, interface: &str, pid: u32) -> [String; 2] {
    let port = port(host, network);
    // A machine keeps its hardware addresses across a power loss; neighbours would send to the old ones else.
    let hardware = format!("02:5f:00:00:{index:02x}:{host:02x}");
    [
        format!("link add {port} type veth peer name {interface} address {hardware} netns {pid}"),
        format!("link set {port} master br-{network} up"),
    ]
}

/// Runs a batch of `ip` commands in the network name space of `place`.
pub(super) fn ip(place: &Spaces, lines: &[String]) -> Result<(), BedError> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]);
    run_with_input(place, command, &(lines.join("\n") + "\n"))
}

/// Runs an nftables script, as one transaction, in the network name space of `place`.
pub(super) fn nft(place: &Spaces, script: &str) -> Result<(), BedError> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]);
    run_with_input(place, command, script)
}

fn run_with_input(place: &Spaces, mut command: Command, input: &str) -> Result<(), BedError> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| BedError::Program { program: program.clone(), source };
    let mut child = place.in_network(|| command.spawn()).map_err(failed)?;
    let mut pipe = child.stdin.take().expect("its standard input was asked to be a pipe");
    // A program that refuses its input early closes the pipe; its exit status tells more than this error.
    let written = pipe.write_all(input.as_bytes());
    drop(pipe);
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let talk = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(io::Error::other(format!("it said {talk:?} about {input:?}"))));
    }
    written.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_hosts_networks_and_client_differ() {
        assert_eq!(host_address(0, 0).to_string(), "10.77.1.11:7400");
        assert_eq!(host_address(2, 1).to_string(), "10.77.2.13:7400");
        assert_eq!(client_address().to_string(), "10.77.200.254");
        assert!(port(12, "longest8").len() <= 15);
    }
}
