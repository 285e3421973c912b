//! `steadfast join`: become a node of a cluster with a one-time token.

use std::path::PathBuf;

use super::Context;
use crate::agent::join;
use crate::config;
use crate::failure::Failure;

/// Join a cluster with the one-time token that `invite` printed on a member
///
/// Makes this node's id, takes up the invitation, and stores the cluster's keys. The agent must not be running; start
/// it afterwards. If it is interrupted, run it again with the same token.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast join sfj1-... && systemctl start steadfast\n  steadfast join \"$(cat token)\" --config node.toml"
)]
pub struct Args {
    /// The token
    token: String,
    /// The configuration file [default: /etc/steadfast/steadfast.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let token = join::parse(&args.token)?;
    let config = config::load(args.config.as_deref())?;
    let joined = join::join(&config, &token).await?;
    context.output.say(&format!(
        "{} belongs to cluster {} now; start the agent to become a member",
        joined.node, joined.cluster
    ));
    context.output.data(&joined, |joined| joined.node_id.clone());
    Ok(())
}
