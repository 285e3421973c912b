//! A container's spec: what the TOML file and the flags of `run` say, checked.
//!
//! Same two stages as the configuration, with flags above the file. The result is the catalog's own
//! [`ContainerSpec`]; nothing here asks the cluster (whether the name is free is the catalog's to say).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use steadfast_proto::catalog::{ContainerSpec, Requirements, Restart, Root, Volume};
use steadfast_proto::devices::DeviceName;

use crate::codes::Code;
use crate::config::source::{self, Given, Problems, Section};
use crate::failure::{Failure, nearest};
use crate::units;

/// A whole example, shown by `steadfast run --help`; a test loads it.
pub const EXAMPLE: &str = r#"name = "training"
command = ["python3", "train.py"]
root = "host"                  # or "bundle:/srv/bundles/train"
every = "10s"                  # a checkpoint this often; "never": only on demand
protection = "mirror(2)"       # two copies on other nodes
restart = "latest"             # what follows an exit: "no", "latest" checkpoint, "fresh"
address = "10.0.9.5/24"        # moves with the container
volumes = ["/srv/data:/data"]  # SOURCE:TARGET or SOURCE:TARGET:ro
require = { domain = "rack-3", device = "data1" }  # only there, and only where data1 is seen; it gets it as /dev/steadfast/data1
user = "nobody"
working_directory = "/data"

[environment]
LANG = "C.UTF-8"

[resources]
memory = "2GiB"
cpu = 1.5
"#;

/// How often a checkpoint is taken when the spec does not say.
pub const EVERY_DEFAULT: Duration = Duration::from_secs(10);
/// The shortest interval.
pub const EVERY_MIN: Duration = Duration::from_millis(100);
/// Copies on other nodes when the spec does not say.
pub const COPIES_DEFAULT: u8 = 2;
const EVERY_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const COPIES_MAX: u32 = 8;
const WORDS_MAX: usize = 1024;
const DEVICES_MAX: usize = 64;
const SPEC_BYTES_MAX: usize = 128 * 1024;

/// What was given for a container, as text, each with its place.
#[derive(Debug, Default)]
pub struct RawSpec {
    /// The name.
    pub name: Option<Given>,
    /// Program and arguments.
    pub command: Option<Vec<Given>>,
    /// The engine; only `criu` is built.
    pub engine: Option<Given>,
    /// `host` or `bundle:PATH`.
    pub root: Option<Given>,
    /// A duration or `never`.
    pub every: Option<Given>,
    /// `mirror(n)`.
    pub protection: Option<Given>,
    /// The number in `mirror(n)`, from a flag.
    pub copies: Option<Given>,
    /// `no`, `latest`, `fresh`.
    pub restart: Option<Given>,
    /// Address with prefix length.
    pub address: Option<Given>,
    /// `SOURCE:TARGET[:ro]` each.
    pub volumes: Vec<Given>,
    /// A failure domain that its node must be in.
    pub require_domain: Option<Given>,
    /// Devices that its node must see.
    pub require_devices: Vec<Given>,
    /// Name or number.
    pub user: Option<Given>,
    /// Folder it starts in.
    pub working_directory: Option<Given>,
    /// Environment from the file.
    pub environment: Vec<(String, Given)>,
    /// Environment from flags, `KEY=VALUE` each; above the file's.
    pub environment_flags: Vec<Given>,
    /// A size.
    pub memory: Option<Given>,
    /// Processors.
    pub cpu: Option<Given>,
}

impl RawSpec {
    /// Reads a spec file's text; what is wrong goes to `problems` and the rest is still read.
    pub fn read(text: &str, problems: &mut Problems) -> RawSpec {
        let table = source::parse(text, problems);
        let mut top = Section::top(&table);
        let mut raw = RawSpec {
            name: top.text("name", problems),
            command: top.texts("command", problems),
            engine: top.text("engine", problems),
            root: top.text("root", problems),
            every: top.scalar("every", problems),
            protection: top.text("protection", problems),
            restart: top.scalar("restart", problems),
            address: top.text("address", problems),
            volumes: top.texts("volumes", problems).unwrap_or_default(),
            user: top.scalar("user", problems),
            working_directory: top.text("working_directory", problems),
            environment: top.map("environment", problems),
            ..RawSpec::default()
        };
        if let Some(mut require) = top.table("require", problems) {
            raw.require_domain = require.text("domain", problems);
            raw.require_devices = require.text_or_texts("device", problems);
            require.finish(problems);
        }
        if let Some(mut resources) = top.table("resources", problems) {
            raw.memory = resources.scalar("memory", problems);
            raw.cpu = resources.scalar("cpu", problems);
            resources.finish(problems);
        }
        top.finish(problems);
        raw
    }

    /// Lets `above` (the flags) replace what `self` (the file) said.
    #[must_use]
    pub fn overlaid_by(self, above: RawSpec) -> RawSpec {
        RawSpec {
            name: above.name.or(self.name),
            command: above.command.or(self.command),
            engine: above.engine.or(self.engine),
            root: above.root.or(self.root),
            every: above.every.or(self.every),
            protection: above.protection.or(self.protection),
            copies: above.copies.or(self.copies),
            restart: above.restart.or(self.restart),
            address: above.address.or(self.address),
            volumes: if above.volumes.is_empty() { self.volumes } else { above.volumes },
            require_domain: above.require_domain.or(self.require_domain),
            require_devices: if above.require_devices.is_empty() {
                self.require_devices
            } else {
                above.require_devices
            },
            user: above.user.or(self.user),
            working_directory: above.working_directory.or(self.working_directory),
            environment: self.environment,
            environment_flags: above.environment_flags,
            memory: above.memory.or(self.memory),
            cpu: above.cpu.or(self.cpu),
        }
    }

    /// Checks everything that was given and fills in the defaults. Without a name one is made from the command.
    pub fn check(&self, problems: &mut Problems) -> Option<ContainerSpec> {
        let command: Vec<String> = self.command.iter().flatten().map(|given| given.text.clone()).collect();
        let bundled = self.root.as_ref().is_some_and(|given| given.text.starts_with("bundle:"));
        if (command.is_empty() && !bundled) || command.first().is_some_and(String::is_empty) {
            problems.missing("no command is given; write it after `--`, or command = [\"python3\", \"train.py\"] in the spec");
        }
        if command.len() > WORDS_MAX {
            problems.missing(format!(
                "the command has {} words, at most {WORDS_MAX} are possible",
                command.len()
            ));
        }
        let name = match &self.name {
            Some(given) => problems.check(given, units::name),
            None => Some(name_from(&command)),
        };
        if let Some(engine) = &self.engine {
            problems.check(engine, |text| choice(text, &[("criu", ())]));
        }
        let root = checked(self.root.as_ref(), Root::Host, problems, parse_root);
        let every = checked(self.every.as_ref(), Some(EVERY_DEFAULT), problems, parse_every);
        let mut copies = checked(self.protection.as_ref(), COPIES_DEFAULT, problems, parse_protection);
        if let Some(given) = &self.copies {
            copies = problems.check(given, parse_copies);
        }
        let restart = checked(self.restart.as_ref(), Restart::Latest, problems, |text| {
            choice(text, &[("no", Restart::No), ("latest", Restart::Latest), ("fresh", Restart::Fresh)])
        });
        let address = self.address.as_ref().and_then(|given| problems.check(given, parse_address));
        let volumes = self.volumes.iter().filter_map(|given| problems.check(given, parse_volume)).collect();
        let working_directory =
            self.working_directory.as_ref().and_then(|given| problems.check(given, parse_absolute));
        let user = self.user.as_ref().and_then(|given| problems.check(given, parse_user));
        let environment = self.check_environment(problems);
        let require = self.check_requirements(problems);
        let memory_bytes_max = self.memory.as_ref().and_then(|given| problems.check(given, units::size));
        let cpu_milli_max = self.cpu.as_ref().and_then(|given| problems.check(given, parse_cpu));
        let spec = ContainerSpec {
            name: name?,
            command,
            environment,
            working_directory,
            user,
            root: root?,
            volumes,
            address,
            memory_bytes_max,
            cpu_milli_max,
            every_ms: every?.map(|every| u32::try_from(every.as_millis()).unwrap_or(u32::MAX)),
            copies: copies?,
            restart: restart?,
            nodes: BTreeSet::new(),
            require,
        };
        check_size(&spec, problems);
        // What the container crate would refuse is refused here already, before anything is written.
        let refused = crate::agent::container_spec(&spec)
            .and_then(|spec| spec.check().map_err(|error| error.to_string()));
        if let Err(reason) = refused {
            problems.missing(reason);
        }
        Some(spec)
    }

    fn check_requirements(&self, problems: &mut Problems) -> Requirements {
        if let Some(surplus) = self.require_devices.get(DEVICES_MAX) {
            problems.refuse(surplus, format!("at most {DEVICES_MAX} devices are possible"));
        }
        let device = |text: &str| text.parse::<DeviceName>().map_err(|error| error.to_string());
        let devices = self.require_devices.iter().filter_map(|given| problems.check(given, device));
        Requirements {
            devices: devices.map(String::from).collect(),
            domain: self.require_domain.as_ref().and_then(|given| problems.check(given, units::name)),
        }
    }

    fn check_environment(&self, problems: &mut Problems) -> BTreeMap<String, String> {
        let mut environment = BTreeMap::new();
        for (key, given) in &self.environment {
            if problems.check(given, |_| variable_name(key)).is_some() {
                environment.insert(key.clone(), given.text.clone());
            }
        }
        for given in &self.environment_flags {
            let pair = problems.check(given, |text| {
                let (key, value) = text
                    .split_once('=')
                    .ok_or_else(|| format!("{text:?} has no \"=\"; write for example LANG=C.UTF-8"))?;
                variable_name(key)?;
                Ok((key.to_owned(), value.to_owned()))
            });
            environment.extend(pair);
        }
        environment
    }
}

/// Reads a spec: the file's text if any, flags above it.
pub fn load(file: Option<(&str, &str)>, flags: RawSpec) -> Result<ContainerSpec, Failure> {
    let (name, text) = file.unwrap_or_default();
    let mut problems = Problems::new(name, text);
    let raw = if file.is_some() { RawSpec::read(text, &mut problems) } else { RawSpec::default() };
    let spec = raw.overlaid_by(flags).check(&mut problems);
    problems.finish(Code::SpecInvalid)?;
    spec.ok_or_else(|| Failure::new(Code::Internal, "the spec can't be used, and no reason was found"))
}

fn checked<T>(
    given: Option<&Given>,
    default: T,
    problems: &mut Problems,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    given.map_or(Some(default), |given| problems.check(given, parse))
}

fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let hint = nearest(text, names.iter().copied())
        .map_or_else(String::new, |near| format!("; did you mean \"{near}\"?"));
    Err(format!("{text:?} is not one of \"{}\"{hint}", names.join("\", \"")))
}

fn parse_root(text: &str) -> Result<Root, String> {
    if text == "host" {
        return Ok(Root::Host);
    }
    match text.split_once(':') {
        Some(("bundle", path)) if path.starts_with('/') => Ok(Root::Bundle(path.to_owned())),
        Some(("bundle", path)) => {
            Err(format!("the bundle's path {path:?} is not whole; begin it with \"/\""))
        }
        Some(_) | None => Err(format!("{text:?} is not a root; write \"host\" or \"bundle:/PATH\"")),
    }
}

fn parse_every(text: &str) -> Result<Option<Duration>, String> {
    if text == "never" {
        return Ok(None);
    }
    units::duration_within(text, EVERY_MIN, EVERY_MAX).map(Some)
}

fn parse_protection(text: &str) -> Result<u8, String> {
    let inner = text.strip_prefix("mirror(").and_then(|rest| rest.strip_suffix(')'));
    inner.map_or_else(
        || Err(format!("{text:?} is not a protection; write for example \"mirror(2)\"")),
        parse_copies,
    )
}

fn parse_copies(text: &str) -> Result<u8, String> {
    let copies = units::count(text, 1, COPIES_MAX)?;
    u8::try_from(copies).map_err(|_| format!("{text:?} is not a number of copies"))
}

fn parse_address(text: &str) -> Result<String, String> {
    let wrong =
        || format!("{text:?} is not an address with prefix length; write for example \"10.0.9.5/24\"");
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let address: std::net::Ipv4Addr = address.parse().map_err(|_| wrong())?;
    let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
    if prefix == 0 || prefix > 32 {
        return Err(format!("{text:?} has a prefix length outside 1 to 32"));
    }
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || address.is_broadcast() {
        return Err(format!("{text:?} is not an address that a machine can have"));
    }
    Ok(format!("{address}/{prefix}"))
}

fn parse_volume(text: &str) -> Result<Volume, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, read_only) = match parts.as_slice() {
        [source, target] | [source, target, "rw"] => (*source, *target, false),
        [source, target, "ro"] => (*source, *target, true),
        _ => {
            return Err(format!(
                "{text:?} is not a volume; write \"/SOURCE:/TARGET\" or \"/SOURCE:/TARGET:ro\""
            ));
        }
    };
    if !source.starts_with('/') || !target.starts_with('/') || target == "/" {
        return Err(format!("{text:?} needs two whole paths; write for example \"/srv/data:/data\""));
    }
    Ok(Volume { source: source.to_owned(), target: target.to_owned(), read_only })
}

fn parse_absolute(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a whole path; begin it with \"/\""))
    }
}

fn parse_user(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:$".contains(&byte);
    if text.is_empty() || text.len() > 64 || !text.bytes().all(legal) {
        return Err(format!(
            "{text:?} is not a user; write a name or number, for example \"nobody\" or \"1000:1000\""
        ));
    }
    Ok(text.to_owned())
}

fn parse_cpu(text: &str) -> Result<u32, String> {
    let milli = (units::cores(text)? * 1000.0).round().clamp(1.0, 4_096_000.0);
    // A float-to-integer `as` saturates, and the clamp keeps it within range anyway.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 1..=4,096,000 above"
    )]
    Ok(milli as u32)
}

fn variable_name(key: &str) -> Result<(), String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if key.is_empty() || key.as_bytes().first().is_some_and(u8::is_ascii_digit) || !key.bytes().all(legal) {
        return Err(format!("{key:?} is not a variable's name; letters, digits and \"_\" are possible"));
    }
    Ok(())
}

fn check_size(spec: &ContainerSpec, problems: &mut Problems) {
    let words = spec.command.iter().map(String::len).sum::<usize>();
    let variables = spec.environment.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    if words + variables > SPEC_BYTES_MAX {
        problems.missing(format!(
            "command and environment have {} bytes together, at most {SPEC_BYTES_MAX} are possible",
            words + variables
        ));
    }
    for text in spec.command.iter().chain(spec.environment.values()) {
        if text.contains('\0') {
            problems.missing(
                "a word of the command or environment contains a zero byte, which no program can be given",
            );
        }
    }
}

fn name_from(command: &[String]) -> String {
    let program = command.first().map_or("container", String::as_str);
    let stem = program.rsplit('/').next().unwrap_or(program);
    let base: String = stem
        .to_ascii_lowercase()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .take(40)
        .collect();
    let base = base.trim_matches('-');
    let suffix = uuid::Uuid::new_v4().simple().to_string();
    let short: String = suffix.chars().take(4).collect();
    if base.is_empty() { format!("container-{short}") } else { format!("{base}-{short}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<ContainerSpec, Failure> {
        load(Some(("c.toml", text)), RawSpec::default())
    }

    #[test]
    fn the_example_is_right() {
        let spec = of(EXAMPLE).unwrap();
        assert_eq!(spec.name, "training");
        assert_eq!((spec.every_ms, spec.copies, spec.restart), (Some(10_000), 2, Restart::Latest));
        assert_eq!((spec.memory_bytes_max, spec.cpu_milli_max), (Some(2 << 30), Some(1500)));
        assert_eq!(spec.volumes[0].target, "/data");
        assert_eq!(spec.require.domain.as_deref(), Some("rack-3"));
        assert_eq!(spec.require.devices, ["data1".to_owned()].into());
    }

    #[test]
    fn requirements_are_one_device_or_several_and_refused_with_the_reason() {
        let with = |require: &str| of(&format!("command = [\"x\"]\nrequire = {require}\n"));
        let several = with("{ device = [\"data1\", \"logs\"] }").unwrap();
        assert_eq!(several.require.devices.len(), 2);
        assert_eq!(with("{}").unwrap().require, Requirements::default());
        for (require, expected) in [
            ("{ device = \"../sda\" }", "c.toml:2: require.device: '../sda' can't be used"),
            ("{ device = [\"a\", \".b\"] }", "c.toml:2: require.device[1]:"),
            ("{ device = 5 }", "c.toml:2: require.device:"),
            ("{ devise = \"a\" }", "c.toml:2: require.devise: unknown key; did you mean \"device\"?"),
            ("{ domain = \"Rack 3\" }", "c.toml:2: require.domain:"),
            ("\"data1\"", "c.toml:2: require: a text is not a table"),
        ] {
            let refused = with(require).unwrap_err().message;
            assert!(refused.starts_with(expected), "{require}: {refused}");
        }
    }

    #[test]
    fn flags_replace_the_file() {
        let flags = RawSpec {
            name: Some(Given::flag("--name", "other")),
            every: Some(Given::flag("--every", "1s")),
            environment_flags: vec![Given::flag("--env", "LANG=de")],
            ..RawSpec::default()
        };
        let spec = load(Some(("c.toml", EXAMPLE)), flags).unwrap();
        assert_eq!((spec.name.as_str(), spec.every_ms), ("other", Some(1000)));
        assert_eq!(spec.environment.get("LANG").unwrap(), "de");
    }

    #[test]
    fn all_problems_are_named_with_what_would_be_right() {
        let failure = of("nam = \"x\"\ncommand = \"redis\"\nevery = 10\nprotection = \"mirror(0)\"\nrestart = \"lastest\"\naddress = \"10.0.0.5\"\nvolumes = [\"data\"]\n[resources]\nmemory = \"2s\"\ncpu = \"many\"\n").unwrap_err();
        let lines: Vec<&str> = failure.message.lines().collect();
        for expected in [
            "c.toml:1: nam: unknown key; did you mean \"name\"?",
            "c.toml:2: command:",
            "c.toml:3: every: \"10\" has no unit",
            "c.toml:4: protection:",
            "c.toml:5: restart: \"lastest\" is not one of \"no\", \"latest\", \"fresh\"; did you mean \"latest\"?",
            "c.toml:6: address:",
            "c.toml:7: volumes[0]:",
            "c.toml:9: resources.memory:",
            "c.toml:10: resources.cpu:",
        ] {
            assert!(lines.iter().any(|line| line.starts_with(expected)), "{expected} not in {lines:#?}");
        }
    }

    #[test]
    fn without_a_name_one_is_made_from_the_command() {
        let flags = RawSpec {
            command: Some(vec![Given::flag("CMD", "/usr/bin/Redis_Server")]),
            ..RawSpec::default()
        };
        let spec = load(None, flags).unwrap();
        assert!(spec.name.starts_with("redis-server-"), "{}", spec.name);
        assert!(units::name(&spec.name).is_ok());
    }
}
