//! `steadfast episode list`: the instances of all nodes.

use std::time::Duration;

use super::super::Context;
use crate::api::client::segment;
use crate::api::convert::now_unix_ms;
use crate::api::episode_types::{InstanceList, InstanceRow};
use crate::failure::Failure;
use crate::output::table;
use crate::units::human_duration;

/// List instances
///
/// Those of all nodes, by name. UNFINISHED are messages that are not acknowledged, and those that are acknowledged and not
/// confirm-acked.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast episode list\n  steadfast episode list order --doing parked\n  steadfast episode list --limit 100 --after order/17\n  steadfast -o json episode list | jq -r '.instances[] | select(.inbox > 0) | .name'"
)]
pub(super) struct Args {
    /// Only instances of this program
    program: Option<String>,
    /// Only those that are running, waiting, sending, paused, failing, parked, ended or cancelled
    #[arg(long, value_name = "WORD")]
    doing: Option<String>,
    /// Only those behind this name
    #[arg(long, value_name = "PROGRAM/KEY")]
    after: Option<String>,
    /// At most so many [default: 200]
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let texts = [("program", args.program), ("doing", args.doing), ("after", args.after)];
    let texts =
        texts.into_iter().filter_map(|(name, text)| text.map(|text| format!("{name}={}", segment(&text))));
    let query: Vec<String> = texts.chain(args.limit.map(|limit| format!("limit={limit}"))).collect();
    let path = format!("/v1/episodes?{}", query.join("&"));
    let found: InstanceList = context.client.get(path.trim_end_matches('?')).await?;
    context.output.data(&found, |found| rows(&found.instances));
    if !found.silent.is_empty() {
        let nodes = found.silent.join(", ");
        context.output.say(&format!("what {nodes} keep is missing: there was no answer"));
    }
    if let (Some(next), false) = (&found.next, context.output.is_json()) {
        context.output.say(&format!("there are more: --after {next}"));
    }
    Ok(())
}

fn rows(instances: &[InstanceRow]) -> String {
    let now = now_unix_ms();
    let rows = instances.iter().map(|row| {
        [
            row.name.clone(),
            row.node.clone(),
            row.version.to_string(),
            row.doing.clone(),
            row.episode.to_string(),
            row.inbox.to_string(),
            format!("{}+{}", row.unacked, row.unconfirmed),
            human_duration(Duration::from_millis(now.saturating_sub(row.begun_unix_ms))),
        ]
    });
    table(["INSTANCE", "NODE", "VERSION", "DOES", "EPISODES", "INBOX", "UNFINISHED", "AGE"], rows)
}
