//! `steadfast episode start`: an instance begins.

use super::super::Context;
use super::{path, payload, query, told};
use crate::api::episode_types::{EpisodeAnswer, StartRequest};
use crate::failure::Failure;

/// Begin an instance
///
/// Its first event is `start`, with the JSON as payload. It is on a disk when the command returns.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast episode start order/17\n  steadfast episode start order/17 '{\"item\": \"book\"}' --wait=5m\n  steadfast episode start order/17 --key 4b1c       # again and again, once"
)]
pub(super) struct Args {
    /// The instance
    #[arg(value_name = "PROGRAM/KEY")]
    name: String,
    /// Its input
    #[arg(value_name = "JSON")]
    payload: Option<String>,
    /// Wait until it ends, and print its answer [default: 60s]
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "60s")]
    wait: Option<String>,
    /// A key of your own, so that the command can be repeated and takes effect once
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let path = format!("{}/start{}", path(&args.name)?, query(args.wait.as_deref())?);
    let request = StartRequest { payload: payload(args.payload.as_deref())? };
    let answer: EpisodeAnswer = match &args.key {
        None => context.client.post(&path, &request).await?,
        Some(key) => context.client.post_once(&path, &request, key).await?,
    };
    told(context, &answer, &format!("{} has begun", args.name));
    Ok(())
}
