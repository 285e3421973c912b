//! The configuration of a node: one TOML file, few knobs, each with a sensible default.
//!
//! Two stages: [`RawConfig`] holds what was given (defaults < file < environment < flags), [`Config`] is checked and
//! is all that the agent sees. Every problem of a file is reported at once, with key and line. It never touches
//! the machine: whether an address exists is found out when it is bound. Read [`source`] for the machinery.

pub mod catalog;
pub mod detect;
pub mod episodes;
pub mod keys;
pub mod probation;
pub mod source;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use steadfast::devices::LINKS;
use steadfast_proto::detect::Settings;
use steadfast_proto::domains::LEVELS_MAX;

use crate::codes::Code;
use crate::failure::{Failure, did_you_mean};
use crate::units;
use catalog::{CatalogConfig, RawCatalog};
use detect::RawDetect;
use episodes::{EpisodesConfig, RawEpisodes};
use probation::RawProbation;
use source::{Given, Problems, Section};

/// Where the file is looked for when none is named.
pub const DEFAULT_FILE: &str = "/etc/steadfast/steadfast.toml";
/// The data folder when none is named.
pub const DEFAULT_DATA: &str = "/var/lib/steadfast";
/// The port that peers use when none is named.
pub const DEFAULT_PORT: u16 = 7400;
/// The port of the page when none is named.
pub const DEFAULT_PAGE_PORT: u16 = 7480;
/// Most networks that one node can have.
pub const NETWORKS_MAX: usize = 8;
/// Most patterns of devices.
pub const PATTERNS_MAX: usize = 64;

/// The environment variables that replace keys of the file.
pub const VARIABLES: [&str; 7] = [
    "STEADFAST_NODE_NAME",
    "STEADFAST_NODE_DATA",
    "STEADFAST_NODE_MODE",
    "STEADFAST_DETECT_INTERVAL",
    "STEADFAST_CHECKPOINT_MEMORY",
    "STEADFAST_CONTAINER_CRIU",
    "STEADFAST_CONTAINER_RUNC",
];

/// A whole example, shown by `steadfast agent --help`; a test loads it.
pub const EXAMPLE: &str = r#"[node]
name = "alpha"                 # default: the host name
data = "/var/lib/steadfast"
domain = ["rack-3"]            # failure domain, widest first
mode = "agent"                 # or "witness": votes only; or "observe": detection, links; neither needs root

[[network]]                    # one per independent network
name = "front"
address = "10.0.1.11:7400"

[[network]]
name = "back"
address = "10.0.2.11:7400"

[checkpoint]
memory = "8GiB"                # lent to the cluster; default: a quarter of this machine's memory

[detect]
profile = "gossip"             # which rule suspects: "gossip", "relative" or "timeout"
interval = "100ms"             # between heartbeats; shorter detects sooner and costs traffic
stall_limit = "10s"            # how long a process that is stopped on a live machine stays a member

[devices]
include = ["sd*", "nvme*"]     # the block devices that get names; "*" is any text; [] is none

[catalog]
engine = "embedded"            # the nodes keep it themselves; or "etcd", with `endpoints`

[container]
run = "/run/steadfast"         # a tmpfs
bridge = "sf0"                 # the containers' bridge, and the interface that takes it outside
uplink = "eth2"
"#;

/// One independent network as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Its name, the same on every node.
    pub name: String,
    /// This node's address on it; UDP and TCP.
    pub address: SocketAddr,
}

/// What a node takes part in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In everything.
    #[default]
    Agent,
    /// In membership, detection, links and events: it runs no containers, lends no memory and needs no root.
    Observe,
    /// In membership and the catalog: it votes and grants leases, lends no memory and runs no containers, so it needs no
    /// root either. Unlike an observer it takes commands about containers, which others carry out.
    Witness,
}

/// How this node runs containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerConfig {
    /// Folder on a tmpfs for sockets, bundles and images.
    pub run: PathBuf,
    /// The interface that connects the containers' bridge to the outside.
    pub uplink: Option<String>,
    /// The containers' bridge; none means loopback only.
    pub bridge: Option<String>,
    /// The runc to use; the first on PATH when absent.
    pub runc: Option<PathBuf>,
    /// The CRIU to use; the first that is new enough when absent.
    pub criu: Option<PathBuf>,
}

/// Which block devices this node knows by the cluster's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicesConfig {
    /// Patterns of the kernel's names of the devices that are looked at; none are when empty.
    pub include: Vec<String>,
    /// The folder of the links.
    pub links: PathBuf,
    /// Whether this node gives automatic names to devices that are surely shared.
    pub automatic: bool,
}

/// Where traces of operations are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    /// The collector's base address, without a slash at its end.
    pub endpoint: String,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The node's name for people.
    pub name: String,
    /// The data folder.
    pub data: PathBuf,
    /// Failure domain, widest first.
    pub domain: Vec<String>,
    /// What the node takes part in.
    pub mode: Mode,
    /// Whether it waits in readiness until a member is removed.
    pub standby: bool,
    /// How it judges silence.
    pub detect: Settings,
    /// Who keeps the catalog.
    pub catalog: CatalogConfig,
    /// What it asks of candidates.
    pub probation: steadfast_proto::probation::Settings,
    /// The networks, at least one.
    pub networks: Vec<NetworkConfig>,
    /// Checkpoint memory lent to the cluster, in bytes.
    pub memory_bytes: u64,
    /// Folder on a tmpfs for chunks.
    pub memory_folder: PathBuf,
    /// Containers on this node.
    pub container: ContainerConfig,
    /// Block devices on this node.
    pub devices: DevicesConfig,
    /// What effects of episodes need.
    pub episodes: EpisodesConfig,
    /// The API's socket.
    pub socket: PathBuf,
    /// Where the page is served; nowhere when absent.
    pub page: Option<SocketAddr>,
    /// Where traces are sent; nowhere when absent.
    pub traces: Option<Traces>,
}

impl Config {
    /// This node's address on each network, by the network's name.
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.networks.iter().map(|network| (network.name.clone(), network.address)).collect()
    }
}

/// What was given, as text, each with its place.
#[derive(Debug, Default)]
pub struct RawConfig {
    name: Option<Given>,
    data: Option<Given>,
    domain: Option<Vec<Given>>,
    mode: Option<Given>,
    standby: Option<Given>,
    detect: RawDetect,
    catalog: RawCatalog,
    probation: RawProbation,
    networks: Vec<(Option<Given>, Option<Given>, Given)>,
    memory: Option<Given>,
    memory_folder: Option<Given>,
    run: Option<Given>,
    uplink: Option<Given>,
    bridge: Option<Given>,
    runc: Option<Given>,
    criu: Option<Given>,
    include: Option<Vec<Given>>,
    device_links: Option<Given>,
    automatic: Option<Given>,
    episodes: RawEpisodes,
    socket: Option<Given>,
    page: Option<Given>,
    traces: Option<Given>,
}

impl RawConfig {
    /// Reads the file's text; what is wrong goes to `problems` and the rest is still read.
    pub fn read(text: &str, problems: &mut Problems) -> RawConfig {
        let table = source::parse(text, problems);
        let mut raw = RawConfig::default();
        let mut top = Section::top(&table);
        if let Some(mut node) = top.table("node", problems) {
            raw.name = node.text("name", problems);
            raw.data = node.text("data", problems);
            raw.domain = node.texts("domain", problems);
            raw.mode = node.text("mode", problems);
            raw.standby = node.scalar("standby", problems);
            node.finish(problems);
        }
        for (mut network, at) in top.tables("network", problems) {
            let name = network.text("name", problems);
            let address = network.text("address", problems);
            network.finish(problems);
            raw.networks.push((name, address, at));
        }
        if let Some(detect) = top.table("detect", problems) {
            raw.detect = RawDetect::read(detect, problems);
        }
        if let Some(catalog) = top.table("catalog", problems) {
            raw.catalog = RawCatalog::read(catalog, problems);
        }
        if let Some(section) = top.table("probation", problems) {
            raw.probation = RawProbation::read(section, problems);
        }
        if let Some(mut checkpoint) = top.table("checkpoint", problems) {
            raw.memory = checkpoint.scalar("memory", problems);
            raw.memory_folder = checkpoint.text("folder", problems);
            checkpoint.finish(problems);
        }
        if let Some(mut container) = top.table("container", problems) {
            raw.run = container.text("run", problems);
            raw.uplink = container.text("uplink", problems);
            raw.bridge = container.text("bridge", problems);
            raw.runc = container.text("runc", problems);
            raw.criu = container.text("criu", problems);
            container.finish(problems);
        }
        if let Some(mut devices) = top.table("devices", problems) {
            raw.include = devices.texts("include", problems);
            raw.device_links = devices.text("links", problems);
            raw.automatic = devices.scalar("automatic", problems);
            devices.finish(problems);
        }
        if let Some(section) = top.table("episodes", problems) {
            raw.episodes = RawEpisodes::read(section, problems);
        }
        if let Some(mut api) = top.table("api", problems) {
            raw.socket = api.text("socket", problems);
            api.finish(problems);
        }
        if let Some(mut page) = top.table("page", problems) {
            raw.page = page.text("listen", problems);
            page.finish(problems);
        }
        if let Some(mut traces) = top.table("traces", problems) {
            raw.traces = traces.text("endpoint", problems);
            traces.finish(problems);
        }
        top.finish(problems);
        raw
    }

    /// Lets environment variables replace what the file said.
    pub fn overlay_environment(&mut self, variable: impl Fn(&str) -> Option<String>) {
        let slots = [
            &mut self.name,
            &mut self.data,
            &mut self.mode,
            self.detect.interval(),
            &mut self.memory,
            &mut self.criu,
            &mut self.runc,
        ];
        for (name, slot) in VARIABLES.into_iter().zip(slots) {
            if let Some(text) = variable(name) {
                *slot = Some(Given::environment(name, text));
            }
        }
    }

    /// Checks everything that was given and fills in the defaults.
    pub fn check(&self, problems: &mut Problems) -> Option<Config> {
        let name = match &self.name {
            Some(given) => problems.check(given, units::name),
            None => default_name(problems),
        };
        let data = folder(self.data.as_ref(), DEFAULT_DATA, problems);
        let domain = self.check_domain(problems);
        let mode = self.mode.as_ref().map_or(Some(Mode::Agent), |given| problems.check(given, mode));
        let standby = self.standby.as_ref().map_or(Some(false), |given| {
            problems.check(given, |text| choice(text, &[("true", true), ("false", false)]))
        });
        let detect = self.detect.check(problems);
        let catalog = self.catalog.check(problems);
        let probation = self.probation.check(problems);
        let networks = self.check_networks(problems);
        let memory_bytes = match (&self.memory, mode) {
            (Some(given), Some(mode @ (Mode::Observe | Mode::Witness))) => {
                let mode = if mode == Mode::Observe { "observe" } else { "witness" };
                let message =
                    format!("a node with mode = \"{mode}\" lends no memory; remove the key, or the mode");
                problems.refuse(given, message);
                None
            }
            (None, Some(Mode::Observe | Mode::Witness)) => Some(0),
            (Some(given), Some(Mode::Agent) | None) => problems.check(given, memory_size),
            (None, Some(Mode::Agent) | None) => Some(machine_memory_bytes() / 4),
        };
        let run = folder(self.run.as_ref(), "/run/steadfast", problems);
        let default_chunks = run.as_deref().map(|run| run.join("chunks"));
        let memory_folder = match (&self.memory_folder, default_chunks) {
            (Some(given), _) => problems.check(given, absolute),
            (None, default) => default,
        };
        let bridge = self.bridge.as_ref().and_then(|given| problems.check(given, interface_name));
        let uplink = self.uplink.as_ref().and_then(|given| problems.check(given, interface_name));
        let runc = self.runc.as_ref().and_then(|given| problems.check(given, absolute));
        let criu = self.criu.as_ref().and_then(|given| problems.check(given, absolute));
        let devices = self.check_devices(problems);
        let socket = match (&self.socket, &data) {
            (Some(given), _) => problems.check(given, absolute),
            (None, Some(data)) => Some(data.join("steadfast.sock")),
            (None, None) => None,
        };
        Some(Config {
            name: name?,
            data: data?,
            domain,
            mode: mode?,
            standby: standby?,
            detect: detect?,
            catalog: catalog?,
            probation: probation?,
            networks,
            memory_bytes: memory_bytes?,
            memory_folder: memory_folder?,
            container: ContainerConfig {
                run: run?,
                bridge: bridge.or_else(|| uplink.as_ref().map(|_| "sf0".to_owned())),
                uplink,
                runc,
                criu,
            },
            devices: devices?,
            episodes: self.episodes.check(problems),
            socket: socket?,
            page: self.page.as_ref().and_then(|given| problems.check(given, page_address)),
            traces: self.traces.as_ref().and_then(|given| problems.check(given, traces)),
        })
    }

    fn check_devices(&self, problems: &mut Problems) -> Option<DevicesConfig> {
        let every = [Given::flag("devices.include", "*")];
        let given = self.include.as_deref().unwrap_or(&every);
        if let Some(surplus) = given.get(PATTERNS_MAX) {
            problems.refuse(surplus, format!("at most {PATTERNS_MAX} patterns are possible; use `*`"));
        }
        let include = given.iter().filter_map(|given| problems.check(given, device_pattern)).collect();
        let links = folder(self.device_links.as_ref(), LINKS, problems);
        let automatic = self.automatic.as_ref().map_or(Some(true), |given| {
            problems.check(given, |text| choice(text, &[("true", true), ("false", false)]))
        });
        Some(DevicesConfig { include, links: links?, automatic: automatic? })
    }

    fn check_domain(&self, problems: &mut Problems) -> Vec<String> {
        let given = self.domain.as_deref().unwrap_or_default();
        if let Some(surplus) = given.get(LEVELS_MAX) {
            problems.refuse(
                surplus,
                format!(
                    "a failure domain has at most {LEVELS_MAX} levels, widest first; leave the narrowest out"
                ),
            );
        }
        given.iter().filter_map(|given| problems.check(given, units::name)).collect()
    }

    fn check_networks(&self, problems: &mut Problems) -> Vec<NetworkConfig> {
        let mut networks: Vec<NetworkConfig> = Vec::new();
        if self.networks.is_empty() {
            problems.missing("no [[network]] is given; write at least one: [[network]] name = \"front\" address = \"10.0.1.11:7400\"");
        }
        for (index, (name, address, at)) in self.networks.iter().enumerate() {
            if index >= NETWORKS_MAX {
                problems.refuse(at, format!("more than {NETWORKS_MAX} networks; remove some"));
                break;
            }
            if name.is_none() {
                problems.refuse(at, "`name` is missing; write name = \"front\"");
            }
            if address.is_none() {
                problems.refuse(at, "`address` is missing; write address = \"10.0.1.11:7400\"");
            }
            let checked = name.as_ref().and_then(|given| problems.check(given, units::name));
            let parsed = address.as_ref().and_then(|given| problems.check(given, socket_address));
            let (Some(checked), Some(parsed)) = (checked, parsed) else { continue };
            if networks.iter().any(|network| network.name == checked) {
                problems.refuse(at, format!("two networks are named {checked:?}; each needs its own name"));
            }
            if networks.iter().any(|network| network.address.ip() == parsed.ip()) {
                let ip = parsed.ip();
                problems.refuse(at, format!("two networks have the address {ip}, so they would fail together; each needs an interface and a subnet of its own"));
            }
            networks.push(NetworkConfig { name: checked, address: parsed });
        }
        networks
    }
}

/// Loads and checks the configuration: the file named, else the default one when it exists.
pub fn load(path: Option<&Path>) -> Result<Config, Failure> {
    let path = path.map_or_else(|| PathBuf::from(DEFAULT_FILE), Path::to_path_buf);
    let text = source::read(&path, Code::ConfigInvalid)?;
    check_text(&path.display().to_string(), &text, |name| std::env::var(name).ok())
}

/// Checks a configuration's text; `file` is how people know it.
pub fn check_text(
    file: &str,
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Config, Failure> {
    let mut problems = Problems::new(file, text);
    let mut raw = RawConfig::read(text, &mut problems);
    raw.overlay_environment(variable);
    let config = raw.check(&mut problems);
    problems.finish(Code::ConfigInvalid)?;
    config
        .ok_or_else(|| Failure::new(Code::Internal, format!("{file} can't be used, and no reason was found")))
}

fn folder(given: Option<&Given>, default: &str, problems: &mut Problems) -> Option<PathBuf> {
    given.map_or_else(|| Some(PathBuf::from(default)), |given| problems.check(given, absolute))
}

fn default_name(problems: &mut Problems) -> Option<String> {
    let host = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    let label = host.split('.').next().unwrap_or_default().to_owned();
    let checked = units::name(&label);
    if checked.is_err() {
        problems.missing(format!(
            "node.name is not given, and the host name {host:?} can't be used; write [node] name = \"alpha\""
        ));
    }
    checked.ok()
}

fn mode(text: &str) -> Result<Mode, String> {
    choice(text, &[("agent", Mode::Agent), ("observe", Mode::Observe), ("witness", Mode::Witness)])
}

/// One of a few words; another one gets the nearest of them.
fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let names = || choices.iter().map(|(name, _)| *name);
    let chosen = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    chosen.ok_or_else(|| {
        let all = names().collect::<Vec<_>>().join("\", \"");
        format!("{text:?} is not one of \"{all}\"{}", did_you_mean(text, names()))
    })
}

/// The parser of a duration within bounds.
fn range(min: Duration, max: Duration) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| units::duration_within(text, min, max)
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err(format!("{text:?} is not a whole path; begin it with \"/\""));
    }
    if text.len() > 512 {
        return Err("the path is longer than 512 characters".to_owned());
    }
    Ok(path)
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let with_port = text
        .parse::<SocketAddr>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(|address| SocketAddr::new(address, DEFAULT_PORT)));
    let parsed = with_port
        .map_err(|_| format!("{text:?} is not an address with port; write for example \"10.0.1.11:7400\""))?;
    if parsed.ip().is_unspecified() || parsed.port() == 0 {
        return Err(format!(
            "{text:?} does not say where others reach this node; write its own address on that network"
        ));
    }
    Ok(parsed)
}

fn page_address(text: &str) -> Result<SocketAddr, String> {
    let with_port = text.parse::<SocketAddr>().or_else(|_| {
        text.parse::<std::net::IpAddr>().map(|address| SocketAddr::new(address, DEFAULT_PAGE_PORT))
    });
    let parsed = with_port
        .map_err(|_| format!("{text:?} is not an address with port; write for example \"127.0.0.1:7480\""))?;
    if parsed.ip().is_unspecified() || parsed.port() == 0 {
        return Err(format!("{text:?} is no address that a browser can open; write one that this node has"));
    }
    Ok(parsed)
}

fn traces(text: &str) -> Result<Traces, String> {
    if !crate::traces::ARE_BUILT_IN {
        return Err("this steadfast was built without traces; take one that was built with `--features otel`, or leave [traces] out".to_owned());
    }
    let example = "write for example \"http://127.0.0.1:4318\"";
    let uri: hyper::Uri = text.parse().map_err(|_| format!("{text:?} is no address; {example}"))?;
    if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
        return Err(format!(
            "{text:?} is not where a collector takes OTLP over plain HTTP; {example}, and let a collector on this machine pass traces on over TLS"
        ));
    }
    Ok(Traces { endpoint: text.trim_end_matches('/').to_owned() })
}

fn device_pattern(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("/dev/").unwrap_or(text);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"*?_-.!".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
        return Err(format!(
            "{text:?} is not a pattern of the kernel's names of block devices; write for example \"sd*\" or \"nvme0n1\""
        ));
    }
    Ok(name.to_owned())
}

fn memory_size(text: &str) -> Result<u64, String> {
    let bytes = units::size(text)?;
    if bytes < 1 << 20 {
        return Err(format!("{text:?} is too little to hold a checkpoint; at least \"1MiB\" is possible"));
    }
    Ok(bytes)
}

fn interface_name(text: &str) -> Result<String, String> {
    if text.is_empty()
        || text.len() > 15
        || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        return Err(format!("{text:?} is not an interface; `ip link` lists them, for example \"eth1\""));
    }
    Ok(text.to_owned())
}

fn machine_memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    u64::from(info.mem_unit).saturating_mul(info.totalram)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let failure = check_text("node.toml", text, |_| None).unwrap_err();
        assert_eq!(failure.code, Code::ConfigInvalid);
        failure.message.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_example_is_right() {
        let config = check_text("example", EXAMPLE, |_| None).unwrap();
        assert_eq!(config.name, "alpha");
        assert_eq!(config.memory_bytes, 8 << 30);
        assert_eq!(config.networks.len(), 2);
        assert_eq!(config.socket, Path::new("/var/lib/steadfast/steadfast.sock"));
    }

    #[test]
    fn every_problem_is_reported_with_key_and_line() {
        let found = problems(
            "[node]\nname = \"Alpha One\"\nadress = \"x\"\n\n[[network]]\nname = \"front\"\naddress = \"10.0.1.11:port\"\n\n[checkpoint]\nmemory = 8\n\n[chekpoint]\nmemory = \"1GiB\"\n",
        );
        assert_eq!(found.len(), 5, "{found:#?}");
        assert!(found[0].starts_with("node.toml:2: node.name:") && found[0].contains("alpha-one"));
        assert!(found[1].starts_with("node.toml:3: node.adress: unknown key"));
        assert!(
            found[2].starts_with("node.toml:7: network[0].address:") && found[2].contains("10.0.1.11:7400")
        );
        assert!(found[3].starts_with("node.toml:10: checkpoint.memory:") && found[3].contains("8GiB"));
        assert!(
            found[4].starts_with("node.toml:12: chekpoint: unknown key")
                && found[4].contains("\"checkpoint\"")
        );
    }

    #[test]
    fn a_size_with_a_unit_of_time_says_so_and_syntax_errors_have_a_line() {
        let found = problems(
            "[[network]]\nname=\"a\"\naddress=\"10.0.0.1:1\"\n[checkpoint]\nmemory = \"10s\"\nx = = 1\n",
        );
        assert!(
            found.iter().any(|line| line.contains("node.toml:5:") && line.contains("is a time")),
            "{found:?}"
        );
        assert!(found.iter().any(|line| line.starts_with("node.toml:6:")), "{found:?}");
    }

    #[test]
    fn the_environment_replaces_the_file_and_is_named_when_wrong() {
        let variable = |name: &str| (name == "STEADFAST_CHECKPOINT_MEMORY").then(|| "1 parsec".to_owned());
        let failure = check_text("example", EXAMPLE, variable).unwrap_err();
        assert!(failure.message.contains("STEADFAST_CHECKPOINT_MEMORY"), "{}", failure.message);
        let variable = |name: &str| (name == "STEADFAST_NODE_NAME").then(|| "beta".to_owned());
        assert_eq!(check_text("example", EXAMPLE, variable).unwrap().name, "beta");
    }

    #[test]
    fn networks_need_names_and_addresses_of_their_own() {
        let found = problems(
            "[[network]]\nname=\"a\"\naddress=\"10.0.0.1:1\"\n[[network]]\nname=\"a\"\naddress=\"10.0.0.1:1\"\n",
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(problems("[node]\nname=\"a\"\n")[0].contains("[[network]]"));
        let ports = "[[network]]\nname=\"a\"\naddress=\"10.0.0.1:1\"\n[[network]]\nname=\"b\"\naddress=\"10.0.0.1:2\"\n";
        assert!(problems(ports)[0].contains("would fail together"), "another port is no other path");
        let nine: String =
            (1..=9).map(|n| format!("[[network]]\nname=\"n{n}\"\naddress=\"10.0.0.{n}\"\n")).collect();
        assert!(problems(&nine)[0].contains("more than 8 networks"));
    }

    #[test]
    fn a_failure_domain_has_up_to_four_checked_names() {
        let network = "[[network]]\nname=\"a\"\naddress=\"::1\"\n";
        let with = |domain: &str| format!("[node]\nname=\"a\"\ndomain={domain}\n{network}");
        let config = check_text("node.toml", &with("[\"site-a\", \"rack-3\"]"), |_| None).unwrap();
        assert_eq!(config.domain, ["site-a", "rack-3"]);
        let found = problems(&with("[\"a\", \"b\", \"c\", \"d\", \"e\"]"));
        assert!(
            found.len() == 1 && found[0].contains("node.domain[4]: a failure domain has at most 4"),
            "{found:?}"
        );
        let found = problems(&with("[\"Rack 3\"]"));
        assert!(found.len() == 1 && found[0].starts_with("node.toml:3: node.domain[0]:"), "{found:?}");
        assert!(problems(&with("\"rack-3\""))[0].contains("is not a list"));
    }

    #[test]
    fn devices_are_chosen_by_patterns() {
        let network = "[[network]]\nname=\"a\"\naddress=\"::1\"\n";
        let with = |devices: &str| format!("[node]\nname=\"a\"\n{network}[devices]\n{devices}\n");
        let of =
            |devices: &str| check_text("node.toml", &with(devices), |_| None).map(|config| config.devices);
        let config = of("").unwrap();
        assert_eq!(
            (config.include, config.links, config.automatic),
            (vec!["*".to_owned()], LINKS.into(), true)
        );
        let config = of("include = [\"/dev/sd*\", \"loop7?\"]\nautomatic = false").unwrap();
        assert_eq!((config.include, config.automatic), (vec!["sd*".to_owned(), "loop7?".to_owned()], false));
        assert_eq!(of("include = []").unwrap().include, Vec::<String>::new());
        let found = problems(&with("include = [\"sd a\"]\nautomatic = \"perhaps\"\nlinks = \"x\""));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("devices.include[0]") && found[0].contains("nvme0n1"), "{found:?}");
        assert!(found[1].contains("\"true\", \"false\"") && found[2].contains("whole path"), "{found:?}");
    }

    #[test]
    fn the_page_is_off_unless_it_has_an_address() {
        let network = "[[network]]\nname=\"a\"\naddress=\"::1\"\n";
        let with = |page: &str| format!("[node]\nname=\"a\"\n{network}{page}");
        let of = |page: &str| check_text("node.toml", &with(page), |_| None).map(|config| config.page);
        assert_eq!(of("").unwrap(), None);
        assert_eq!(of("[page]\n").unwrap(), None);
        assert_eq!(of("[page]\nlisten=\"127.0.0.1\"").unwrap(), Some(([127, 0, 0, 1], 7480).into()));
        assert_eq!(of("[page]\nlisten=\"[::1]:80\"").unwrap(), Some("[::1]:80".parse().unwrap()));
        for wrong in ["0.0.0.0:7480", "127.0.0.1:0", "localhost:7480", "7480"] {
            let found = problems(&with(&format!("[page]\nlisten=\"{wrong}\"")));
            assert!(found.len() == 1 && found[0].starts_with("node.toml:7: page.listen:"), "{found:?}");
        }
    }

    #[test]
    fn traces_go_to_a_collector_where_they_are_built_in() {
        let with = |endpoint: &str| {
            format!(
                "[node]\nname=\"a\"\n[[network]]\nname=\"a\"\naddress=\"::1\"\n[traces]\nendpoint=\"{endpoint}\"\n"
            )
        };
        let good = with("http://collector:4318/");
        if crate::traces::ARE_BUILT_IN {
            let config = check_text("node.toml", &good, |_| None).unwrap();
            assert_eq!(config.traces.unwrap().endpoint, "http://collector:4318");
            for wrong in ["collector:4318", "https://collector:4318", "http://", "http://a/?b"] {
                let found = problems(&with(wrong));
                assert!(found.len() == 1 && found[0].contains("http://127.0.0.1:4318"), "{found:?}");
            }
        } else {
            let found = problems(&good);
            assert!(found[0].starts_with("node.toml:7: traces.endpoint:"), "{found:?}");
            assert!(found.len() == 1 && found[0].contains("--features otel"), "{found:?}");
        }
    }

    #[test]
    fn a_witness_lends_nothing() {
        let witness = "[node]\nname=\"a\"\nmode=\"witness\"\n[[network]]\nname=\"a\"\naddress=\"::1\"\n";
        let config = check_text("node.toml", witness, |_| None).unwrap();
        assert_eq!((config.mode, config.memory_bytes), (Mode::Witness, 0));
        let found = problems(&format!("{witness}[checkpoint]\nmemory=\"1GiB\"\n"));
        assert!(found.len() == 1 && found[0].contains("mode = \"witness\" lends no memory"), "{found:?}");
    }

    #[test]
    fn an_observer_lends_nothing() {
        let observer = "[node]\nname=\"a\"\ndata=\"/home/a\"\nmode=\"observe\"\n[[network]]\nname=\"a\"\naddress=\"::1\"\n";
        let config = check_text("node.toml", observer, |_| None).unwrap();
        assert_eq!((config.mode, config.memory_bytes), (Mode::Observe, 0));
        let found = problems(&format!("{observer}[checkpoint]\nmemory=\"1GiB\"\n"));
        assert!(found.len() == 1 && found[0].contains("lends no memory"), "{found:?}");
        assert!(problems(&observer.replace("observe", "obsevre"))[0].contains("did you mean \"observe\"?"));
    }
}
