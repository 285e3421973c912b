//! `steadfast stop`: stop a container; its checkpoints stay.

use std::time::Duration;

use super::Context;
use super::wait::{self, Verdict};
use crate::api::client::segment;
use crate::api::types::{Container, StopRequest};
use crate::failure::Failure;

/// Stop a container; its record and checkpoints stay
///
/// The program is asked to end (SIGTERM) and killed after the grace time. `steadfast restore` starts it again from a
/// checkpoint, `steadfast rm` removes it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steadfast stop redis\n  steadfast stop redis --grace 30s")]
pub struct Args {
    /// The container
    name: String,
    /// How long it may take to end by itself
    #[arg(long, value_name = "TIME", default_value = "10s")]
    grace: String,
    /// How long to wait until it is stopped
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = wait::timeout)]
    timeout: Duration,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let mut progress = context.output.progress(&format!("stopping {}", args.name));
    let path = format!("/v1/containers/{}/stop", segment(&args.name));
    let _: Container = context.client.post(&path, &StopRequest { grace: Some(args.grace) }).await?;
    let container =
        wait::until(context, &args.name, args.timeout, &mut progress, |container| {
            match container.state.as_str() {
                "stopped" | "failed" | "lost" => Verdict::Reached,
                state => Verdict::Waiting(format!("{} is {state}", container.name)),
            }
        })
        .await?;
    progress.done(&format!("{} is {}", container.name, container.state));
    context.output.data(&container, |container| container.name.clone());
    Ok(())
}
