//! `steadfast checkpoints`: the committed ones, where each copy is, how protected.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Context;
use crate::api::client::segment;
use crate::api::types::Checkpoint;
use crate::failure::Failure;
use crate::output::table;
use crate::units;

/// List committed checkpoints: where each copy is, how protected
///
/// Every holder is asked: a copy is held, gone, or unknown when the holder can't be asked. A checkpoint without any
/// copy left is lost.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast checkpoints\n  steadfast checkpoints redis\n  steadfast -o json checkpoints | jq '.[] | select(.protection == \"lost\")'"
)]
pub struct Args {
    /// Only those of this container
    name: Option<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let path = match &args.name {
        Some(name) => format!("/v1/containers/{}/checkpoints", segment(name)),
        None => "/v1/checkpoints".to_owned(),
    };
    let checkpoints: Vec<Checkpoint> = context.client.get(&path).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    context.output.data(&checkpoints, |checkpoints| {
        let rows = checkpoints.iter().map(|checkpoint| {
            let age = now.saturating_sub(Duration::from_millis(checkpoint.taken_unix_ms));
            let copies = checkpoint.copies.iter().map(|copy| match copy.state.as_str() {
                "held" => copy.node.clone(),
                state => format!("{} ({state})", copy.node),
            });
            [
                checkpoint.container.clone(),
                format!("#{}", checkpoint.number),
                checkpoint.role.clone(),
                units::human_duration(age),
                units::human_size(checkpoint.bytes),
                format!("{:.1} ms", checkpoint.frozen_ms),
                checkpoint.protection.clone(),
                copies.collect::<Vec<_>>().join(", "),
            ]
        });
        table(["CONTAINER", "NUMBER", "ROLE", "AGE", "SIZE", "FROZEN", "PROTECTION", "COPIES ON"], rows)
    });
    Ok(())
}
