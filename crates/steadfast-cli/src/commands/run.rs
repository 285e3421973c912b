//! `steadfast run`: run a program as a container.

use std::path::PathBuf;
use std::time::Duration;

use super::Context;
use super::wait::{self, Verdict};
use crate::api::types::{Container, RunRequest, Spec};
use crate::codes::Code;
use crate::config::source::{self, Given};
use crate::failure::Failure;
use crate::spec::{self, RawSpec};

/// Run a program as a container that survives its machine
///
/// The program runs on one node of the cluster. Its memory, files and connections are checkpointed into the memory of
/// other nodes; when its node is lost it goes on elsewhere from the last committed checkpoint. Flags replace what the
/// spec file says. Prints the container's name.
#[derive(Debug, clap::Args)]
#[command(after_help = help())]
pub struct Args {
    /// Its name, unique in the cluster [default: made from the command]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A TOML file that says what to run
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
    /// The node to start it on [default: the cluster chooses]
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Its own address, which moves with it, such as 10.0.9.5/24
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// How often a checkpoint is taken, such as 10s; never: only on demand [default: 10s]
    #[arg(long, value_name = "TIME")]
    every: Option<String>,
    /// Whole copies of each checkpoint on other nodes [default: 2]
    #[arg(long, value_name = "NUMBER")]
    copies: Option<String>,
    /// The memory it may use, such as 2GiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// The processors it may use, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    cpu: Option<String>,
    /// An environment variable; can be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// A folder of the machine that it sees; can be given several times
    #[arg(long, value_name = "SOURCE:TARGET[:ro]")]
    volume: Vec<String>,
    /// A device that it gets, by the cluster's name; it runs only where that is seen; can be given several times
    #[arg(long, value_name = "NAME")]
    device: Vec<String>,
    /// A failure domain that its node must be in
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// Its root file system: the machine's own files, or those of an OCI bundle [default: host]
    #[arg(long, value_name = "host|bundle:PATH")]
    root: Option<String>,
    /// What follows an exit [default: latest]
    #[arg(long, value_name = "no|latest|fresh")]
    restart: Option<String>,
    /// The user it runs as, by name or number
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The folder it starts in
    #[arg(long, value_name = "PATH")]
    workdir: Option<String>,
    /// How long to wait until it runs
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = wait::timeout)]
    timeout: Duration,
    /// The program and its arguments
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Examples, and the example of a spec that a test loads.
fn help() -> String {
    format!(
        "Examples:
  steadfast run --name redis --address 10.0.9.5/24 -- redis-server --save '' --bind 0.0.0.0
  steadfast run --spec training.toml --node beta
  steadfast run --device data1 -- ./store /dev/steadfast/data1
  steadfast run --every 1s --copies 1 --memory 512MiB --volume /srv/data:/data:ro -- ./server

Inside, {} ($STEADFAST_SOCKET) tells the program of itself, its links
and its events, and takes user events: see the guide of events.

A spec file:

{}",
        steadfast_container::OWN_SOCKET,
        spec::EXAMPLE
    )
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let (node, timeout) = (args.node.clone(), args.timeout);
    let spec = checked_spec(args)?;
    let name = spec.name.clone().unwrap_or_default();
    let mut progress = context.output.progress(&format!("asking for {name}"));
    let container: Container = context.client.post("/v1/containers", &RunRequest { spec, node }).await?;
    let container = wait::until(context, &name, timeout, &mut progress, judge)
        .await
        .inspect_err(|failure| {
            if failure.code == Code::StartFailed {
                context.output.say(&format!(
                    "its record stays, for `steadfast logs {name}`; remove it with `steadfast rm {name}`"
                ));
            }
        })
        .map(|reached| Container { revision: reached.revision.max(container.revision), ..reached })?;
    progress.done(&format!("{} runs on {}", container.name, container.node));
    context.output.data(&container, |container| container.name.clone());
    Ok(())
}

fn judge(container: &Container) -> Verdict {
    match container.state.as_str() {
        "running" => Verdict::Reached,
        "failed" | "lost" => Verdict::Never(Failure::new(
            Code::StartFailed,
            format!(
                "{} could not be started: {}",
                container.name,
                container.reason.as_deref().unwrap_or("no reason was given")
            ),
        )),
        // A program that is done at once ran all the same.
        "stopped" => Verdict::Reached,
        state => Verdict::Waiting(format!("{} is {state} on {}", container.name, container.node)),
    }
}

/// Checks the spec here, where file and lines are known; the agent checks it again.
fn checked_spec(args: Args) -> Result<Spec, Failure> {
    let text = match &args.spec {
        Some(path) => Some((path.display().to_string(), source::read(path, Code::SpecInvalid)?)),
        None => None,
    };
    let flags = flags(args);
    let spec = spec::load(text.as_ref().map(|(name, text)| (name.as_str(), text.as_str())), flags)?;
    Ok(crate::api::convert::spec(&spec))
}

fn flags(args: Args) -> RawSpec {
    let given = |flag: &'static str, text: Option<String>| text.map(|text| Given::flag(flag, text));
    let each = |flag: &'static str, texts: Vec<String>| {
        texts.into_iter().map(|text| Given::flag(flag, text)).collect::<Vec<_>>()
    };
    RawSpec {
        name: given("--name", args.name),
        command: (!args.command.is_empty()).then(|| each("CMD", args.command)),
        root: given("--root", args.root),
        every: given("--every", args.every),
        copies: given("--copies", args.copies),
        restart: given("--restart", args.restart),
        address: given("--address", args.address),
        volumes: each("--volume", args.volume),
        require_domain: given("--domain", args.domain),
        require_devices: each("--device", args.device),
        user: given("--user", args.user),
        working_directory: given("--workdir", args.workdir),
        environment_flags: each("--env", args.env),
        memory: given("--memory", args.memory),
        cpu: given("--cpu", args.cpu),
        ..RawSpec::default()
    }
}
