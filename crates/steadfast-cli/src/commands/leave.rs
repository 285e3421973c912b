//! `steadfast leave`: a member goes in good order.

use serde_json::json;

use super::Context;
use crate::api::client::segment;
use crate::api::types::{Changed, Status};
use crate::failure::Failure;
use crate::output::table;

/// Have a node hand over all its duties and leave the view
///
/// Its containers go on elsewhere from a last checkpoint, copies that it holds are made on others, then it is no member
/// any more. Its agent goes on and stays out; `steadfast drain --undo NODE` lets it apply again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steadfast leave                 # this node\n  steadfast leave gamma")]
pub struct Args {
    /// The node; this one when absent
    node: Option<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let node = match args.node {
        Some(node) => node,
        None => context.client.get::<Status>("/v1/status").await?.node,
    };
    let changed: Changed =
        context.client.post(&format!("/v1/nodes/{}/leave", segment(&node)), &json!({})).await?;
    show(context, &changed);
    Ok(())
}

/// Shows the view after a change of members.
pub(super) fn show(context: &Context, changed: &Changed) {
    context.output.data(changed, |changed| {
        let row = [changed.view.to_string(), changed.members.join(", "), changed.reason.clone()];
        table(["VIEW", "MEMBERS", "WHY"], [row])
    });
}
