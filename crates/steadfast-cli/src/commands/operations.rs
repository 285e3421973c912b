//! `steadfast operations`: what the cluster does in several steps, how far each is, and how those of the last hour ended.

use std::time::Duration;

use super::Context;
use crate::api::client::segment;
use crate::api::convert::now_unix_ms;
use crate::api::types::Operation;
use crate::failure::Failure;
use crate::output::table;

/// Show what the cluster does in several steps: joins, replacements, drains, checkpoints, restores, recoveries
///
/// An operation is durable from the moment it is begun: a command that is broken off, or an agent that ends at any step,
/// leaves it to be finished by the others. Those that have ended are shown for an hour.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast operations\n  steadfast operations replace-n4-7f3a90c1\n  steadfast -o json operations | jq '.[] | select(.state == \"running\")'"
)]
pub struct Args {
    /// Only this one, with all that is known of it
    name: Option<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    match args.name {
        Some(name) => {
            let path = format!("/v1/operations/{}", segment(&name));
            let operation: Operation = context.client.get(&path).await?;
            context.output.data(&operation, told);
        }
        None => {
            let all: Vec<Operation> = context.client.get("/v1/operations").await?;
            context.output.data(&all, |all| {
                table(["OPERATION", "STATE", "STEP", "SINCE", "WHAT"], all.iter().map(row))
            });
        }
    }
    Ok(())
}

fn row(operation: &Operation) -> [String; 5] {
    let what = match (&operation.waits_for, &operation.why) {
        (Some(waits_for), _) => format!("{}: waits for {waits_for}", operation.does),
        (None, Some(why)) => format!("{}: {why}", operation.does),
        (None, None) => operation.does.clone(),
    };
    let step = format!("{} of {}", operation.step, operation.steps);
    [operation.name.clone(), operation.state.clone(), step, took(operation), what]
}

/// All of one.
fn told(operation: &Operation) -> String {
    let by = match &operation.asked_at {
        Some(node) => format!("asked for at {node}"),
        None => "begun by the cluster".to_owned(),
    };
    let mut text = format!(
        "{}: {}\n{by}, {} for {}, step {} of {}",
        operation.name,
        operation.does,
        operation.state,
        took(operation),
        operation.step,
        operation.steps
    );
    if let Some(waits_for) = &operation.waits_for {
        text.push_str(&format!("\nwaits for {waits_for}"));
    }
    if let (Some(code), Some(why)) = (&operation.code, &operation.why) {
        text.push_str(&format!("\n{code}: {why}"));
    }
    text
}

/// How long it runs, or ran.
fn took(operation: &Operation) -> String {
    let until = operation.ended_unix_ms.unwrap_or_else(now_unix_ms);
    let took = Duration::from_millis(until.saturating_sub(operation.begun_unix_ms));
    let shown = if took < Duration::from_secs(1) { took } else { Duration::from_secs(took.as_secs()) };
    humantime::format_duration(shown).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_one_line_with_what_it_waits_for_or_why_it_failed() {
        let running = Operation {
            name: "drain-n2-1".into(),
            verb: "drain".into(),
            does: "n2 hands over its containers".into(),
            state: "running".into(),
            step: 1,
            steps: 1,
            waits_for: Some("2 containers that are still there".into()),
            asked_at: Some("n1".into()),
            begun_unix_ms: 1_000,
            ended_unix_ms: Some(4_500),
            code: None,
            why: None,
        };
        let [name, state, step, took, what] = row(&running);
        assert_eq!([&*name, &*state, &*step, &*took], ["drain-n2-1", "running", "1 of 1", "3s"]);
        assert_eq!(what, "n2 hands over its containers: waits for 2 containers that are still there");
        let why = Some("it is no member any more".to_owned());
        let failed = Operation { waits_for: None, why, code: Some("SF-0011".into()), ..running };
        assert!(told(&failed).ends_with("SF-0011: it is no member any more"));
    }
}
