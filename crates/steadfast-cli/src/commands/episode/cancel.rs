//! `steadfast episode cancel`: an instance and its children are asked to end.

use super::super::Context;
use super::steer;
use crate::failure::Failure;

/// Ask an instance and its children to end
///
/// A program that waits for the event `cancel` sees it and ends in its own way; every other one ends at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steadfast episode cancel order/17")]
pub(super) struct Args {
    /// The instance
    #[arg(value_name = "PROGRAM/KEY")]
    name: String,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    steer(context, &args.name, "cancel", "is asked to end").await
}
