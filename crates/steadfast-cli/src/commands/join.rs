//! `steadfast join`: become a node of a cluster with a one-time token.

use std::path::PathBuf;

use super::Context;
use crate::agent::join::{self, Rebind};
use crate::config;
use crate::failure::Failure;

/// Join a cluster with the one-time token that `invite` printed on a member
///
/// Makes this node's id, takes up the invitation, and stores the cluster's keys. The agent must not be running; start
/// it afterwards. If it is interrupted, run it again with the same token. With --wait it contacts nobody: the token is
/// left for the agent, which joins by itself as soon as an inviting node answers and the invitation holds.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast join sfj1-... && systemctl start steadfast\n  steadfast join \"$(cat token)\" --config node.toml\n  steadfast join --wait sfj1-...              # the agent runs, or will\n  steadfast join --rebind sfj1-...            # the same machine under a new name"
)]
pub struct Args {
    /// The token
    token: String,
    /// The configuration file [default: /etc/steadfast/steadfast.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Leave the token for the agent, which joins when it can
    #[arg(long, conflicts_with = "rebind")]
    wait: bool,
    /// This machine is one that the cluster knows already: let it bear the token's name from now on
    #[arg(long)]
    rebind: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let token = join::parse(&args.token)?;
    let config = config::load(args.config.as_deref())?;
    if args.wait {
        join::leave_for_agent(&config, &token)?;
        context.output.say(&format!(
            "the agent joins as {} as soon as it can; `steadfast status` says how it stands",
            token.name
        ));
        return Ok(());
    }
    let rebind = if args.rebind { Rebind::Allow } else { Rebind::Refuse };
    let joined = join::join(&config, &token, rebind).await?;
    context.output.say(&format!(
        "{} belongs to cluster {} now; start the agent to become a member",
        joined.node, joined.cluster
    ));
    context.output.data(&joined, |joined| joined.node_id.clone());
    Ok(())
}
