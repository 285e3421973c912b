//! `steadfast init`: make this node the first of a new cluster.

use std::path::PathBuf;
use std::time::Duration;

use super::Context;
use crate::agent::found;
use crate::config;
use crate::failure::Failure;
use crate::units;

/// Make this node the first of a new cluster
///
/// Makes the node's id, the cluster's certificate authority and keys, and a catalog with this node as its only voter.
/// The agent must not be running; start it afterwards.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast init home && systemctl start steadfast\n  steadfast init lab --config node.toml --lease 450ms"
)]
pub struct Args {
    /// The cluster's name
    name: String,
    /// The configuration file [default: /etc/steadfast/steadfast.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long a node may run containers after its last renewal: shorter recovers faster, longer forgives longer stalls
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = lease)]
    lease: Duration,
}

fn lease(text: &str) -> Result<Duration, String> {
    units::duration_within(text, Duration::from_millis(300), Duration::from_secs(300))
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let config = config::load(args.config.as_deref())?;
    let founded = super::block_on(found::init(&config, &args.name, args.lease))??;
    context.output.say(&format!("cluster {} is made; {} is its first node", founded.cluster, founded.node));
    context.output.say("next: start the agent (systemctl start steadfast, or steadfast agent), then `steadfast invite NAME` for each further node");
    context.output.data(&founded, |founded| founded.cluster_id.clone());
    Ok(())
}
