//! `steadfast checkpoint`: take one now.

use super::Context;
use crate::api::client::segment;
use crate::api::types::Checkpoint;
use crate::failure::Failure;
use crate::units;

/// Take a checkpoint of a container now; returns when it is committed
///
/// Committed means: whole copies are in the memory of other nodes and the catalog names it as the latest. The program
/// goes on running, also when the checkpoint fails.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast checkpoint redis\n  steadfast -o json checkpoint redis | jq .frozen_ms"
)]
pub struct Args {
    /// The container
    name: String,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let progress = context.output.progress(&format!("checkpointing {}", args.name));
    let path = format!("/v1/containers/{}/checkpoints", segment(&args.name));
    let checkpoint: Checkpoint = context.client.post(&path, &serde_json::json!({})).await?;
    let on: Vec<&str> = checkpoint.copies.iter().map(|copy| copy.node.as_str()).collect();
    progress.done(&format!(
        "checkpoint {} of {} is committed: {} on {}, held still for {:.1} ms",
        checkpoint.number,
        args.name,
        units::human_size(checkpoint.bytes),
        on.join(", "),
        checkpoint.frozen_ms,
    ));
    if checkpoint.protection == "under-protected" {
        context.output.say(&format!(
            "warning: it is under-protected: {} of {} copies",
            on.len(),
            checkpoint.copies_wanted
        ));
    }
    context.output.data(&checkpoint, |checkpoint| checkpoint.number.to_string());
    Ok(())
}
