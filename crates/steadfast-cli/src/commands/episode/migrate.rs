//! `steadfast episode migrate`: an instance runs another version of its program.

use super::super::Context;
use super::{path, told};
use crate::api::episode_types::{EpisodeAnswer, MigrateRequest};
use crate::failure::Failure;

/// Let an instance run another version of its program from its next episode on
///
/// The version finds the state that the other one left.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steadfast episode migrate order/17 --to 2")]
pub(super) struct Args {
    /// The instance
    #[arg(value_name = "PROGRAM/KEY")]
    name: String,
    /// The version
    #[arg(long, value_name = "N")]
    to: u32,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let path = format!("{}/migrate", path(&args.name)?);
    let answer: EpisodeAnswer = context.client.post(&path, &MigrateRequest { version: args.to }).await?;
    told(context, &answer, &format!("{} runs version {} from its next episode on", args.name, args.to));
    Ok(())
}
