//! `steadfast rm`: remove a container with its checkpoints.

use super::Context;
use crate::api::client::segment;
use crate::api::types::Done;
use crate::failure::Failure;

/// Remove a stopped container, its files and its checkpoints
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast rm redis\n  steadfast rm --force redis          # also while it runs"
)]
pub struct Args {
    /// The containers
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Remove it even while it runs
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    for name in &args.names {
        let path = format!("/v1/containers/{}?force={}", segment(name), args.force);
        let done: Done = context.client.delete(&path).await?;
        context.output.item(&serde_json::json!({"removed": name}), |_| name.clone());
        context.output.say(&done.done);
    }
    Ok(())
}
