//! `steadfast episode pause`: an instance begins no more episodes.

use super::super::Context;
use super::steer;
use crate::failure::Failure;

/// Begin no more episodes of an instance
///
/// What is sent to it is taken and kept, and what it has sent is finished. `retry` goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steadfast episode pause order/17\n  steadfast episode retry order/17")]
pub(super) struct Args {
    /// The instance
    #[arg(value_name = "PROGRAM/KEY")]
    name: String,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    steer(context, &args.name, "pause", "begins no more episodes").await
}
