//! `steadfast episode`: durable programs and their instances, one verb per file.
//!
//! This one has what the verbs share: names of instances as they are typed, payloads, and what became of a request.

mod cancel;
mod deploy;
mod history;
mod list;
mod migrate;
mod pause;
mod retry;
mod send;
mod show;
mod start;

use std::time::Duration;

use clap::Subcommand;
use serde_json::value::RawValue;

use super::Context;
use crate::api::client::segment;
use crate::api::episode_types::EpisodeAnswer;
use crate::codes::Code;
use crate::failure::Failure;
use crate::units;

/// The longest wait for an answer.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

/// Deploy durable programs, start instances of them, and look after these
///
/// An instance waits for an event; the episode that follows changes its state and sends messages, exactly once, whatever
/// crashes. It is called PROGRAM/KEY, and is kept by one node; every node answers for all of them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast episode deploy order --command python3 /srv/order.py\n  steadfast episode start order/17 '{\"item\": \"book\"}'\n  steadfast episode send order/17 paid '{\"amount\": 25}' --wait\n  steadfast episode list --doing parked\n  steadfast episode show order/17"
)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "a doc line here would replace the verb's own help")]
enum What {
    Deploy(deploy::Args),
    Start(start::Args),
    Send(send::Args),
    List(list::Args),
    Show(show::Args),
    History(history::Args),
    Cancel(cancel::Args),
    Pause(pause::Args),
    Retry(retry::Args),
    Migrate(migrate::Args),
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    match args.what {
        What::Deploy(args) => deploy::run(args, context).await,
        What::Start(args) => start::run(args, context).await,
        What::Send(args) => send::run(args, context).await,
        What::List(args) => list::run(args, context).await,
        What::Show(args) => show::run(&args, context).await,
        What::History(args) => history::run(&args, context).await,
        What::Cancel(args) => cancel::run(&args, context).await,
        What::Pause(args) => pause::run(&args, context).await,
        What::Retry(args) => retry::run(&args, context).await,
        What::Migrate(args) => migrate::run(&args, context).await,
    }
}

/// The path of an instance.
fn path(name: &str) -> Result<String, Failure> {
    let (program, key) = name.split_once('/').ok_or_else(|| {
        let message = format!("{name:?} names no instance: write PROGRAM/KEY, such as order/17");
        Failure::new(Code::InstanceNameInvalid, message)
    })?;
    if program.is_empty() || key.is_empty() {
        let message = format!("{name:?} names no instance: write PROGRAM/KEY, such as order/17");
        return Err(Failure::new(Code::InstanceNameInvalid, message));
    }
    Ok(format!("/v1/episodes/{}/{}", segment(program), segment(key)))
}

/// What was typed as a payload.
fn payload(text: Option<&str>) -> Result<Option<Box<RawValue>>, Failure> {
    let Some(text) = text else { return Ok(None) };
    let read = serde_json::from_str::<Box<RawValue>>(text.trim());
    read.map(Some).map_err(|error| {
        let message = format!("the payload is no JSON: {error}; a text stands in quotes: '\"hello\"'");
        Failure::new(Code::BadRequest, message)
    })
}

/// `?wait=SECONDS`, where an answer is waited for.
fn query(wait: Option<&str>) -> Result<String, Failure> {
    let Some(wait) = wait else { return Ok(String::new()) };
    let wait = units::duration_within(wait, Duration::from_secs(1), WAIT_MAX)
        .map_err(|message| Failure::new(Code::BadRequest, format!("--wait: {message}")))?;
    Ok(format!("?wait={}", wait.as_secs()))
}

/// Says what became of a request.
fn told(context: &Context, answer: &EpisodeAnswer, taken: &str) {
    let is_answered = answer.outcome == "answered";
    if is_answered || context.output.is_json() {
        // An answer of nothing is null, which JSON can't tell from none.
        let people = |answer: &EpisodeAnswer| {
            answer.answer.as_ref().map_or_else(|| "null".to_owned(), |answer| answer.get().to_owned())
        };
        return context.output.data(answer, people);
    }
    context.output.say(answer.why.as_deref().unwrap_or(taken));
}

/// Asks an instance for something without a body.
async fn steer(context: &Context, name: &str, verb: &str, done: &str) -> Result<(), Failure> {
    let path = format!("{}/{verb}", path(name)?);
    let answer: EpisodeAnswer = context.client.post(&path, &serde_json::json!({})).await?;
    told(context, &answer, &format!("{name} {done}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_becomes_one_path_or_a_sentence() {
        assert_eq!(path("order/17/a").unwrap(), "/v1/episodes/order/17%2Fa");
        for text in ["order", "/1", "order/"] {
            assert_eq!(path(text).unwrap_err().code, Code::InstanceNameInvalid, "{text}");
        }
        assert_eq!(query(Some("90s")).unwrap(), "?wait=90");
        assert!(query(Some("2d")).unwrap_err().message.starts_with("--wait: "));
    }

    #[test]
    fn a_payload_stays_as_it_was_written() {
        assert_eq!(
            payload(Some(" {\"b\": 1.50, \"a\": 2} ")).unwrap().unwrap().get(),
            "{\"b\": 1.50, \"a\": 2}"
        );
        assert!(payload(Some("hello")).unwrap_err().message.contains("quotes"));
        assert!(payload(None).unwrap().is_none());
    }
}
