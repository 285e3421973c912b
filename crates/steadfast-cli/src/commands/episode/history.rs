//! `steadfast episode history`: the last episodes of an instance.

use std::time::Duration;

use super::super::Context;
use super::path;
use crate::api::convert::now_unix_ms;
use crate::api::episode_types::PastEpisode;
use crate::failure::Failure;
use crate::output::table;
use crate::units::human_duration;

/// Show the last episodes of an instance: what began each, and how many messages it sent
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast episode history order/17\n  steadfast -o json episode history order/17 | jq '.[-1]'"
)]
pub(super) struct Args {
    /// The instance
    #[arg(value_name = "PROGRAM/KEY")]
    name: String,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let past: Vec<PastEpisode> = context.client.get(&format!("{}/history", path(&args.name)?)).await?;
    context.output.data(&past, |past| {
        let now = now_unix_ms();
        let rows = past.iter().map(|past| {
            [
                past.episode.to_string(),
                past.kind.clone(),
                past.source.clone().unwrap_or_default(),
                past.sent.to_string(),
                human_duration(Duration::from_millis(now.saturating_sub(past.at_unix_ms))),
            ]
        });
        table(["EPISODE", "EVENT", "FROM", "SENT", "AGO"], rows)
    });
    Ok(())
}
