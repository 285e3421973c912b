//! `steadfast events`: what happens anywhere in the cluster, as it happens; and telling it of something oneself.
//!
//! It decides nothing: the filter is read here only to say what is left out, and applied by the agent.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Map, Value};

use super::Context;
use crate::api::event_client::EventsOf;
use crate::api::event_types::EventsStatus;
use crate::codes::Code;
use crate::events::cloud::CloudEvent;
use crate::events::filter::Filter;
use crate::events::kinds::{self, Included};
use crate::events::printing::Printer;
use crate::failure::Failure;
use crate::output::table;

/// Without `--follow`, the past is told when nothing more of it came for so long.
const QUIET: Duration = Duration::from_millis(700);

/// Show what happened, and follow what happens, on any node
///
/// Without --follow it shows what is kept, and ends. Nothing is watched on any node unless somebody asks for it; what
/// the nodes agree on and what is emitted is kept for those who ask later. A filter names types, nodes and fields:
/// `type=disk.usage and node=alpha and percent>90`; `steadfast events types` lists them all. What was missed is told
/// as a gap, never left out.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  steadfast events --follow\n  steadfast events --follow --filter 'type=disk.usage and percent>90'\n  steadfast events --follow --filter 'type=process.exit and command=redis-server'\n  steadfast events --since 1h --filter 'type~container.* or type~node.*'\n  steadfast events emit user.backup size=12 ok=true\n  steadfast -o json events --follow | jq .data"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Go on and show each new one
    #[arg(long)]
    follow: bool,
    /// Only events like this
    #[arg(long, value_name = "EXPR")]
    filter: Option<String>,
    /// Only events of this node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// From when on: how long ago, a time, or "oldest" (default: "oldest" without --follow, now with it)
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Tell the cluster that something happened
    Emit(EmitArgs),
    /// Show what the agent watches for whom
    Status,
    /// List the types of events and their fields
    Types,
}

#[derive(Debug, clap::Args)]
struct EmitArgs {
    /// Its type: `user.` and more
    #[arg(value_name = "TYPE")]
    kind: String,
    /// Its fields; what is a number, true or false is taken as that
    #[arg(value_name = "KEY=VALUE", value_parser = field)]
    fields: Vec<(String, Value)>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    match args.verb {
        Some(Verb::Emit(emit)) => {
            let fields: Map<String, Value> = emit.fields.into_iter().collect();
            let done = context.client.emit_event(&emit.kind, fields).await?;
            context.output.say(&done.done);
            Ok(())
        }
        Some(Verb::Status) => {
            let status = context.client.events_status().await?;
            context.output.data(&status, shown_status);
            Ok(())
        }
        Some(Verb::Types) => {
            let kinds = kinds::all().iter().map(|kind| {
                let fields: Vec<&str> = kind.fields.iter().map(|field| field.name).collect();
                [kind.name.to_owned(), fields.join(", "), kind.sentence.to_owned()]
            });
            let rows: Vec<[String; 3]> = kinds.collect();
            context.output.data(&rows, |rows| table(["TYPE", "FIELDS", "SAYS"], rows.iter().cloned()));
            Ok(())
        }
        None => follow(args, context).await,
    }
}

async fn follow(args: Args, context: &Context) -> Result<(), Failure> {
    let filter = combined(args.filter.as_deref(), args.node.as_deref());
    let bad = |error: String| Failure::new(Code::BadRequest, format!("filter: {error}"));
    let read: Filter = filter.as_deref().unwrap_or_default().parse_or_all().map_err(bad)?;
    let asked = read.registrations().map_err(|error| bad(error.to_string()))?;
    if args.filter.is_some() {
        for left_out in &asked.left_out {
            context.output.say(&format!("left out: {}: {}", left_out.kind, left_out.reason));
        }
    } else if args.follow && !context.output.is_json() {
        let more = kinds::all().iter().filter(|kind| kind.included == Included::WhenAsked);
        let more: Vec<&str> = more.map(|kind| kind.name).collect();
        context
            .output
            .say(&format!("of these types events are shown when --filter names them: {}", more.join(", ")));
    }
    let since = args.since.or_else(|| (!args.follow).then(|| "oldest".to_owned()));
    let mut events = pin!(context.client.follow_events(EventsOf { filter, since }));
    let mut printer = Printer::default();
    if !context.output.is_json() {
        crate::output::line(&printer.head());
    }
    loop {
        let next = if args.follow {
            events.next().await
        } else {
            match tokio::time::timeout(QUIET, events.next()).await {
                Ok(next) => next,
                Err(_) => return Ok(()),
            }
        };
        let Some(event) = next else { return Ok(()) };
        let event: CloudEvent = event?;
        context.output.item(&event, |event| match event.delivery() {
            Ok(delivery) => printer.line(&delivery),
            Err(error) => error.to_string(),
        });
    }
}

/// Both conditions as one filter.
fn combined(filter: Option<&str>, node: Option<&str>) -> Option<String> {
    let quoted = |name: &str| format!("node=\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
    match (filter, node) {
        (Some(filter), Some(node)) => Some(format!("({filter}) and {}", quoted(node))),
        (Some(filter), None) => Some(filter.to_owned()),
        (None, Some(node)) => Some(quoted(node)),
        (None, None) => None,
    }
}

/// An empty text lets everything through.
trait ParseOrAll {
    fn parse_or_all(&self) -> Result<Filter, String>;
}

impl ParseOrAll for str {
    fn parse_or_all(&self) -> Result<Filter, String> {
        if self.is_empty() {
            Ok(Filter::default())
        } else {
            self.parse().map_err(|error: crate::events::filter::FilterError| error.to_string())
        }
    }
}

fn field(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is no KEY=VALUE"))?;
    if name.is_empty() {
        return Err(format!("{text:?} has no key before the ="));
    }
    let value = match value {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => match value.parse::<serde_json::Number>() {
            Ok(number) => Value::Number(number),
            Err(_) => Value::String(value.to_owned()),
        },
    };
    Ok((name.to_owned(), value))
}

fn shown_status(status: &EventsStatus) -> String {
    let topics = status.topics.iter().map(|topic| {
        [
            status.node.clone(),
            topic.topic.clone(),
            if topic.active { "active" } else { "inactive" }.to_owned(),
            topic.listener.clone(),
            topic.consumers.to_string(),
            topic.told_to.join(", "),
            topic.next.saturating_sub(1).to_string(),
            topic.why_not.clone().unwrap_or_default(),
        ]
    });
    let followed = status.followed.iter().map(|topic| {
        [
            topic.node.clone(),
            topic.topic.clone(),
            topic.state.clone(),
            String::new(),
            topic.consumers.to_string(),
            String::new(),
            topic.upto.to_string(),
            String::new(),
        ]
    });
    table(
        ["NODE", "TOPIC", "STATE", "LISTENER", "CONSUMERS HERE", "TOLD TO", "EVENTS", "WHY NOT"],
        topics.chain(followed),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_what_it_looks_like() {
        assert_eq!(field("size=12").unwrap(), ("size".to_owned(), Value::from(12)));
        assert_eq!(field("ok=true").unwrap().1, Value::Bool(true));
        assert_eq!(field("at=a=b").unwrap().1, Value::from("a=b"));
        assert!(field("size").is_err() && field("=3").is_err());
    }

    #[test]
    fn a_node_and_a_filter_are_one_condition() {
        assert_eq!(combined(None, None), None);
        let both = combined(Some("type=disk.usage or type=clock.step"), Some("al\"pha")).unwrap();
        assert_eq!(both, "(type=disk.usage or type=clock.step) and node=\"al\\\"pha\"");
        assert!(both.parse::<Filter>().is_ok());
    }
}
