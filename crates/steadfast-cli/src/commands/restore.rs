//! `steadfast restore`: restart a container from a checkpoint.

use std::time::Duration;

use super::Context;
use super::wait::{self, Verdict};
use crate::api::client::segment;
use crate::api::types::{Container, RestoreRequest};
use crate::codes::Code;
use crate::failure::Failure;

/// Restart a container from a checkpoint
///
/// A running copy is ended first: what it did since the checkpoint is lost. Connections to the outside are closed,
/// listeners and connections inside stay.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast restore redis\n  steadfast restore redis --checkpoint 41 --node beta"
)]
pub struct Args {
    /// The container
    name: String,
    /// The checkpoint's number [default: the newest]
    #[arg(long, value_name = "NUMBER")]
    checkpoint: Option<u64>,
    /// The node to restore it on [default: the cluster chooses]
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// How long to wait until it runs
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = wait::timeout)]
    timeout: Duration,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let mut progress = context.output.progress(&format!("restoring {}", args.name));
    let path = format!("/v1/containers/{}/restore", segment(&args.name));
    let request = RestoreRequest { checkpoint: args.checkpoint, node: args.node };
    let asked: Container = context.client.post(&path, &request).await?;
    let container = wait::until(context, &args.name, args.timeout, &mut progress, |container| {
        let reason = || container.reason.clone().unwrap_or_else(|| "no reason was given".to_owned());
        match container.state.as_str() {
            "running" if container.epoch >= asked.epoch => Verdict::Reached,
            "failed" => Verdict::Never(Failure::new(
                Code::StartFailed,
                format!("{} could not be restored: {}", container.name, reason()),
            )),
            "lost" => Verdict::Never(Failure::new(
                Code::CheckpointLost,
                format!("{} can't be restored: {}", container.name, reason()),
            )),
            state => Verdict::Waiting(format!("{} is {state} on {}", container.name, container.node)),
        }
    })
    .await?;
    progress.done(&format!("{} runs on {} from its checkpoint", container.name, container.node));
    context.output.data(&container, |container| container.name.clone());
    Ok(())
}
