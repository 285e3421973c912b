//! `steadfast replace`: one node for another, in one view.

use super::Context;
use super::leave::show;
use crate::api::client::segment;
use crate::api::types::{Changed, ReplaceRequest};
use crate::failure::Failure;

/// Have a candidate take a node's place, with all its duties, in one view
///
/// OLD may be healthy, failing, or removed already. NEW must be a candidate that is ready: a node with `standby = true`
/// whose probation is over (`steadfast nodes --evidence`). Copies of checkpoints that OLD holds are made on NEW first; the
/// containers of an OLD that is alive stand still for a last checkpoint and go on at NEW; then one view swaps the two.
/// At no moment are there fewer copies than asked. Until that view nothing is lost by giving up. OLD stays out until
/// `steadfast drain --undo OLD`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steadfast replace beta delta\n  steadfast nodes --evidence")]
pub struct Args {
    /// The node whose place is taken
    old: String,
    /// The candidate that takes it
    new: String,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let path = format!("/v1/nodes/{}/replace", segment(&args.old));
    let changed: Changed = context.client.post(&path, &ReplaceRequest { by: args.new }).await?;
    show(context, &changed);
    Ok(())
}
