//! `steadfast drain`: a node hands its containers over and takes on no more.

use super::Context;
use super::leave::show;
use crate::api::client::segment;
use crate::api::types::{Changed, DrainRequest};
use crate::failure::Failure;

/// Have a node hand over its containers and take on nothing more
///
/// Each stands still for a last checkpoint and goes on elsewhere; nothing it did is lost. The node stays a member, votes
/// and keeps copies until their containers' next checkpoints put them elsewhere. It stays drained, also through
/// restarts, until `--undo`, which also lets a node that left, or was replaced, apply again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steadfast drain beta\n  steadfast drain --undo beta")]
pub struct Args {
    /// The node
    node: String,
    /// Take it back
    #[arg(long)]
    undo: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let path = format!("/v1/nodes/{}/drain", segment(&args.node));
    let changed: Changed = context.client.post(&path, &DrainRequest { undo: args.undo }).await?;
    show(context, &changed);
    Ok(())
}
