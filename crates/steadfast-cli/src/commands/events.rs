//! `steadfast events`: what happens anywhere in the cluster, as it happens; and telling it of something oneself.
//!
//! It decides nothing: the filter is read here only to say what is left out, and applied by the agent.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;

use super::Context;
use crate::api::event_client::EventsOf;
use crate::api::event_types::EventsStatus;
use crate::codes::Code;
use crate::events::cloud::{self, CloudEvent};
use crate::events::emit;
use crate::events::filter::Filter;
use crate::events::kinds::{self, Included};
use crate::events::printing::Printer;
use crate::events::sinks::exec::Exec;
use crate::events::sinks::nats::Nats;
use crate::events::sinks::webhook::Webhook;
use crate::events::sinks::{Settings, Sink};
use crate::failure::Failure;
use crate::output::table;

/// Without `--follow`, the past is told when nothing more of it came for so long.
const QUIET: Duration = Duration::from_millis(700);
/// How long the end waits for what a sink still carries.
const FINISH_MAX: Duration = Duration::from_secs(120);

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
    /// Run this shell command for each, with the event as JSON on its standard input and as STEADFAST_EVENT_* in its
    /// environment; one that fails is run again, then reported
    #[arg(long, value_name = "CMD", conflicts_with_all = ["webhook", "nats"])]
    exec: Option<String>,
    /// Send each to this address by HTTP POST, signed with the secret of --secret-file
    #[arg(long, value_name = "URL", requires = "secret_file", conflicts_with = "nats")]
    webhook: Option<String>,
    /// What web hooks are signed with: a file of at least 16 bytes
    #[arg(long, value_name = "FILE", requires = "webhook")]
    secret_file: Option<PathBuf>,
    /// Publish each on this NATS server, as the subject steadfast.CLUSTER.NODE.TYPE
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// The certificates by which a https:// or tls:// address is believed, as PEM; the machine's when absent
    #[arg(long, value_name = "FILE")]
    authority: Option<PathBuf>,
    /// How many --exec or --webhook carry at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    at_once: u32,
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
    #[arg(value_name = "KEY=VALUE")]
    fields: Vec<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    match args.verb {
        Some(Verb::Emit(emit)) => {
            let fields = emit::fields(emit.fields.iter().map(String::as_str)).map_err(|error| bad(&error))?;
            let done = context.client.emit_event(&emit.kind, cloud::json(&fields)).await?;
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
    let sinks = Sinks::of(&args);
    let filter = combined(args.filter.as_deref(), args.node.as_deref());
    let read: Filter = match filter.as_deref() {
        Some(text) => text.parse().map_err(|error| bad(&error))?,
        None => Filter::default(),
    };
    let asked = read.registrations().map_err(|error| bad(&error))?;
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
    let sink = sink(&sinks, context)?;
    let mut printer = Printer::default();
    if sink.is_none() && !context.output.is_json() {
        crate::output::line(&printer.head());
    }
    loop {
        let next = if args.follow {
            events.next().await
        } else {
            match tokio::time::timeout(QUIET, events.next()).await {
                Ok(next) => next,
                Err(_) => return finish(sink, context).await,
            }
        };
        let Some(event) = next else { return finish(sink, context).await };
        let event: CloudEvent = event?;
        if let Some(sink) = &sink {
            sink.offer(event);
            continue;
        }
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

/// Where events go instead of to standard output.
struct Sinks {
    exec: Option<String>,
    webhook: Option<(String, PathBuf)>,
    nats: Option<String>,
    authority: Option<PathBuf>,
    at_once: usize,
}

impl Sinks {
    fn of(args: &Args) -> Sinks {
        Sinks {
            exec: args.exec.clone(),
            webhook: args.webhook.clone().zip(args.secret_file.clone()),
            nats: args.nats.clone(),
            authority: args.authority.clone(),
            at_once: usize::try_from(args.at_once).unwrap_or(1),
        }
    }
}

/// Starts what events are handed to, and says on stderr what it gives up on.
fn sink(sinks: &Sinks, context: &Context) -> Result<Option<Sink>, Failure> {
    let settings = Settings { at_once_max: sinks.at_once, ..Settings::default() };
    let authority = sinks.authority.as_deref();
    let (sink, mut given_up) = if let Some(line) = &sinks.exec {
        Sink::start(Exec::shell(line), settings)
    } else if let Some((address, file)) = &sinks.webhook {
        let secret = std::fs::read(file).map_err(|error| bad(&format!("{}: {error}", file.display())))?;
        let secret = secret.strip_suffix(b"\n").unwrap_or(&secret);
        Sink::start(Webhook::new(address, secret, authority).map_err(|error| bad(&error))?, settings)
    } else if let Some(address) = &sinks.nats {
        Sink::start(Nats::new(address, authority).map_err(|error| bad(&error))?, Nats::settings())
    } else {
        return Ok(None);
    };
    let output = context.output;
    tokio::spawn(async move {
        while let Some(one) = given_up.recv().await {
            output.say(&format!("gave up on {} after {} attempts: {}", one.id, one.attempts, one.reason));
        }
    });
    Ok(Some(sink))
}

/// What is left over at the end, when the past has been handed over.
async fn finish(sink: Option<Sink>, context: &Context) -> Result<(), Failure> {
    let Some(sink) = sink else { return Ok(()) };
    let report = sink.close(FINISH_MAX).await;
    context.output.say(&format!("{} delivered, {} given up on", report.delivered, report.given_up));
    if report.given_up + report.missed + report.unfinished == 0 {
        return Ok(());
    }
    let message = format!(
        "{} events were given up on, {} found the queue full and {} were not finished",
        report.given_up, report.missed, report.unfinished
    );
    Err(Failure::new(Code::Internal, message))
}

fn bad(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::BadRequest, error.to_string())
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
    fn a_node_and_a_filter_are_one_condition() {
        assert_eq!(combined(None, None), None);
        let both = combined(Some("type=disk.usage or type=clock.step"), Some("al\"pha")).unwrap();
        assert_eq!(both, "(type=disk.usage or type=clock.step) and node=\"al\\\"pha\"");
        assert!(both.parse::<Filter>().is_ok());
    }
}
