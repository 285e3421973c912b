//! `steadfast episode retry`: an instance goes on that is paused, or whose episodes fail.

use super::super::Context;
use super::steer;
use crate::failure::Failure;

/// Go on with an instance that is paused or failing, at once
///
/// One whose episodes failed again and again is parked until somebody has mended what was wrong.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast episode retry order/17\n  steadfast -o json episode list --doing parked | jq -r '.instances[].name' | xargs -n1 steadfast episode retry"
)]
pub(super) struct Args {
    /// The instance
    #[arg(value_name = "PROGRAM/KEY")]
    name: String,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    steer(context, &args.name, "retry", "goes on").await
}
