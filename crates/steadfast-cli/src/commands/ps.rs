//! `steadfast ps`: every container, where it is and how protected.

use std::time::Duration;

use super::Context;
use crate::api::types::Container;
use crate::failure::Failure;
use crate::output::table;
use crate::units;

/// List the containers: node, state, and what would be lost with the node
///
/// AT RISK is the age of the last committed checkpoint: what the program did since would be lost with its node.
/// COPIES counts whole copies of that checkpoint on other nodes, and how many are wanted.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast ps\n  steadfast -o json ps | jq '.[] | {name, node, state, at_risk_ms}'"
)]
pub struct Args {
    /// Only the container of this name
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let containers: Vec<Container> = match args.name {
        Some(name) => {
            vec![context.client.get(&format!("/v1/containers/{}", crate::api::client::segment(&name))).await?]
        }
        None => context.client.get("/v1/containers").await?,
    };
    context.output.data(&containers, |containers| {
        table(
            ["NAME", "NODE", "STATE", "EPOCH", "CHECKPOINT", "AT RISK", "COPIES", "ADDRESS"],
            containers.iter().map(row),
        )
    });
    Ok(())
}

fn row(container: &Container) -> [String; 8] {
    let state = match &container.reason {
        Some(reason) => format!("{} ({})", container.state, first_line(reason)),
        None => container.state.clone(),
    };
    let at_risk = match container.at_risk_ms {
        Some(age) => units::human_duration(Duration::from_millis(age)),
        None if container.latest.is_none() => "everything".to_owned(),
        None => "-".to_owned(),
    };
    let number =
        container.latest.as_ref().map_or_else(|| "none".to_owned(), |latest| format!("#{}", latest.number));
    [
        container.name.clone(),
        if container.owner_in_view { container.node.clone() } else { format!("{} (gone)", container.node) },
        state,
        container.epoch.to_string(),
        number,
        at_risk,
        format!("{}/{}", container.copies, container.copies_wanted),
        container.spec.address.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
