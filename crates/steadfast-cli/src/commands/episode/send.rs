//! `steadfast episode send`: an instance is told something.

use super::super::Context;
use super::{path, payload, query, told};
use crate::api::episode_types::{EpisodeAnswer, SendRequest};
use crate::failure::Failure;

/// Tell an instance something
///
/// It is on a disk when the command returns, and is consumed by one episode, once. With --wait the answer of that episode
/// is printed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast episode send order/17 paid\n  steadfast episode send order/17 paid '{\"amount\": 25}' --wait\n  steadfast episode send order/17 paid '{\"amount\": 25}' --correlation 17 --key 4b1c --wait=5m"
)]
pub(super) struct Args {
    /// The instance
    #[arg(value_name = "PROGRAM/KEY")]
    name: String,
    /// What it is, in the words of the program
    kind: String,
    /// What it says
    #[arg(value_name = "JSON")]
    payload: Option<String>,
    /// What it belongs to
    #[arg(long, value_name = "TEXT")]
    correlation: Option<String>,
    /// Wait for the answer, and print it [default: 60s]
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "60s")]
    wait: Option<String>,
    /// A key of your own, so that the command can be repeated and takes effect once
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let path = format!("{}/send{}", path(&args.name)?, query(args.wait.as_deref())?);
    let payload = payload(args.payload.as_deref())?;
    let request = SendRequest { kind: args.kind, correlation: args.correlation, payload };
    let answer: EpisodeAnswer = match &args.key {
        None => context.client.post(&path, &request).await?,
        Some(key) => context.client.post_once(&path, &request, key).await?,
    };
    told(context, &answer, &format!("{} has it", args.name));
    Ok(())
}
