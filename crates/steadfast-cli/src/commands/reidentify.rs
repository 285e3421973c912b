//! `steadfast reidentify`: give a copied data folder an identity of its own.

use std::path::PathBuf;

use super::Context;
use crate::agent::reidentify::{self, Removed};
use crate::config;
use crate::failure::Failure;

/// Give a copied data folder an identity of its own
///
/// For a machine whose disk was cloned from a node: its agent is refused (SF-0022) until the copy has an id of its own.
/// Forgets the cluster and its catalog in this folder, and takes a new id; then join with a new token. A member in its
/// own place is refused. The agent must not be running.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast reidentify && steadfast join \"$(ssh alpha steadfast invite gamma)\"\n  steadfast reidentify --removed              # after `steadfast keys revoke` of this node"
)]
pub struct Args {
    /// The configuration file [default: /etc/steadfast/steadfast.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The cluster has removed this node for good (`steadfast keys revoke`)
    #[arg(long)]
    removed: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let config = config::load(args.config.as_deref())?;
    let removed = if args.removed { Removed::Yes } else { Removed::No };
    let done = reidentify::reidentify(&config, removed)?;
    context.output.say(&format!("this folder was {}; next: steadfast join TOKEN", done.before));
    context.output.data(&done, |done| done.node_id.clone());
    Ok(())
}
