//! The paths of outside parties: a device or another system takes part in the four steps itself, at any node.
//!
//! They turn JSON into the words of the core and back, and refuse what can't be meant, all of it or nothing; they decide
//! nothing about exchanges. Read `docs/protocols/exchange.md` for what a party must do.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use steadfast_proto::episode::{Event, Settings};
use steadfast_proto::exchange::{Letter, Message, Name as InstanceName, Refusal, Span, Stream, Text};

use super::episodes::text;
use super::exchange_types::{ExchangeHeard, ExchangeSaid, ExchangeWord};
use super::server::{Name, bytes_within, read_body, read_query};
use crate::agent::Agent;
use crate::agent::episodes::{Heard, payload};
use crate::codes::Code;
use crate::episodes::programs::json;
use crate::failure::{Failure, did_you_mean};

type Shared = State<Arc<Agent>>;
type Answer = Result<Response, Failure>;

/// The largest body, in bytes.
const BODY_BYTES_MAX: usize = 2 << 20;
/// How many words one request says at most.
const WORDS_MAX: usize = 256;
/// How long a party can wait for what is said to it.
const WAIT_SECONDS_MAX: u32 = 60;
/// How long it waits when it does not say.
const WAIT_SECONDS: u32 = 10;
/// The largest number of a message, or of an epoch, which JSON carries everywhere.
const NUMBER_MAX: u64 = (1 << 53) - 1;
/// What the machine alone tells instances.
const OWN_KINDS: [&str; 5] =
    [Event::START, Event::TIMER, Event::UNDELIVERABLE, Event::PEER_RESET, Event::CHILD_ENDED];
const STEPS: [&str; 4] = ["message", "ack", "confirm", "confirm-ack"];

/// For how long a party waits.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WaitQuery {
    wait: Option<u32>,
}

pub(super) async fn hear(State(agent): Shared, Name(name): Name, request: Request) -> Answer {
    let party = party(&name)?;
    let query: WaitQuery = read_query(request.uri())?;
    let wait = query.wait.unwrap_or(WAIT_SECONDS);
    if wait > WAIT_SECONDS_MAX {
        return Err(bad(format!("wait: 0 to {WAIT_SECONDS_MAX} seconds are possible")));
    }
    let heard = agent.hear_outside(&party, Duration::from_secs(wait.into())).await?;
    Ok(axum::Json(shown(&agent, heard)).into_response())
}

pub(super) async fn say(State(agent): Shared, Name(name): Name, request: Request) -> Answer {
    let party = party(&name)?;
    let said: ExchangeSaid = read_body(&bytes_within(request, BODY_BYTES_MAX).await?)?;
    if said.words.len() > WORDS_MAX {
        return Err(bad(format!("words: there are {}; {WORDS_MAX} are possible at once", said.words.len())));
    }
    let messages = said.words.iter().enumerate().map(|(index, word)| {
        message(&party, word)
            .map_err(|failure| Failure::new(failure.code, format!("words[{index}]: {}", failure.message)))
    });
    let heard = agent.say_outside(&party, messages.collect::<Result<_, _>>()?).await?;
    Ok(axum::Json(shown(&agent, heard)).into_response())
}

/// The entry for fuzzing, as in `server`.
pub(super) fn read_queries(uri: &Uri) {
    let _ = read_query::<WaitQuery>(uri);
}

/// The party of that name.
fn party(name: &str) -> Result<InstanceName, Failure> {
    named(&format!("{}/{name}", InstanceName::OUTSIDE))
}

fn named(text: &str) -> Result<InstanceName, Failure> {
    InstanceName::parse(text).map_err(|error| Failure::new(Code::InstanceNameInvalid, error.to_string()))
}

/// The word that a party says.
fn message(party: &InstanceName, word: &ExchangeWord) -> Result<Message, Failure> {
    let is_answer = match word.step.as_str() {
        "message" | "confirm" => false,
        "ack" | "confirm-ack" => true,
        other => {
            let hint = did_you_mean(other, STEPS);
            let message =
                format!("step: {other:?} is none that a party says{hint}; possible are {}", STEPS.join(", "));
            return Err(bad(message));
        }
    };
    let stream = stream(party, word, is_answer)?;
    let last = word.last.unwrap_or(word.seq);
    if word.seq == 0 || last < word.seq || last > NUMBER_MAX {
        let message =
            format!("seq: {} to {last} is no range of numbers of messages, which count from 1", word.seq);
        return Err(bad(message));
    }
    only(word)?;
    let span = Span { stream, first: word.seq, last };
    match word.step.as_str() {
        "message" => said(word, span),
        "ack" => {
            let missing =
                || bad("receiver_epoch: it is missing; it says which life of the party has the message");
            Ok(Message::Ack { span, epoch: word.receiver_epoch.ok_or_else(missing)? })
        }
        "confirm" => Ok(Message::Confirm { span }),
        _ => Ok(Message::ConfirmAck { span }),
    }
}

fn stream(party: &InstanceName, word: &ExchangeWord, is_answer: bool) -> Result<Stream, Failure> {
    let (from, to) = (named(&word.from)?, named(&word.to)?);
    let (own, own_field, other, other_field) =
        if is_answer { (&to, "to", &from, "from") } else { (&from, "from", &to, "to") };
    if own != party {
        let message = format!(
            "{own_field}: {own} is not {party}, in whose name this is said; of a {:?} that is {own_field}",
            word.step
        );
        return Err(bad(message));
    }
    if other.is_outside() || other.is_effect() {
        let message = format!("{other_field}: {other} is no instance; parties speak with instances alone");
        return Err(Failure::new(Code::InstanceNameInvalid, message));
    }
    if word.epoch > NUMBER_MAX {
        return Err(bad(format!("epoch: {} is larger than {NUMBER_MAX}, which JSON carries", word.epoch)));
    }
    Ok(Stream { from, epoch: word.epoch, to })
}

/// Refuses fields that this step does not have: they would be ignored otherwise.
fn only(word: &ExchangeWord) -> Result<(), Failure> {
    let is_message = word.step == "message";
    let surplus = [
        ("last", word.last.is_some() && is_message),
        ("floor", word.floor.is_some() && !is_message),
        ("kind", word.kind.is_some() && !is_message),
        ("correlation", word.correlation.is_some() && !is_message),
        ("payload", word.payload.is_some() && !is_message),
        ("begins", word.begins.is_some() && !is_message),
        ("receiver_epoch", word.receiver_epoch.is_some() && word.step != "ack"),
        ("why", word.why.is_some()),
    ];
    match surplus.into_iter().find(|(_, is_there)| *is_there) {
        Some((field, _)) => Err(bad(format!("{field}: a {:?} of a party has none; leave it out", word.step))),
        None => Ok(()),
    }
}

fn said(word: &ExchangeWord, span: Span) -> Result<Message, Failure> {
    let floor = word.floor.unwrap_or_default();
    if floor >= span.first {
        let message = format!("floor: {floor} is not below the message's own number, {}", span.first);
        return Err(bad(message));
    }
    let kind = text("kind", word.kind.as_deref().unwrap_or_default())?;
    if kind.is_empty() {
        return Err(bad("kind: it is missing; give one, such as \"reading\""));
    }
    if OWN_KINDS.contains(&kind.as_str()) {
        return Err(bad(format!("kind: {kind:?} is told by the nodes themselves; choose another word")));
    }
    let correlation = word.correlation.as_deref().map(|given| text("correlation", given)).transpose()?;
    let payload = payload(word.payload.as_deref())?;
    let max = Settings::default().payload_bytes_max;
    if payload.len() > max {
        return Err(bad(format!("payload: it has {} bytes; {max} are possible", payload.len())));
    }
    let letter = Letter { kind, correlation, payload, begins: word.begins.unwrap_or_default() };
    Ok(Message::Msg { stream: span.stream, seq: span.first, floor, letter })
}

fn shown(agent: &Agent, heard: Heard) -> ExchangeHeard {
    ExchangeHeard {
        words: heard.messages.iter().filter_map(word).collect(),
        silent: heard.silent.into_iter().map(|node| agent.node_name(node)).collect(),
    }
}

/// What is said to a party; nothing closes its streams.
fn word(message: &Message) -> Option<ExchangeWord> {
    match message {
        Message::Msg { stream, seq, floor, letter } => {
            let shown = |text: &Text| text.as_str().to_owned();
            Some(ExchangeWord {
                floor: Some(*floor),
                kind: Some(shown(&letter.kind)),
                correlation: letter.correlation.as_ref().map(shown),
                payload: Some(any(&letter.payload)),
                ..of("message", stream, *seq, *seq)
            })
        }
        Message::Ack { span, epoch } => Some(ExchangeWord {
            receiver_epoch: Some(*epoch),
            ..of("ack", &span.stream, span.first, span.last)
        }),
        Message::Confirm { span } => Some(of("confirm", &span.stream, span.first, span.last)),
        Message::ConfirmAck { span } => Some(of("confirm-ack", &span.stream, span.first, span.last)),
        Message::Refused { stream, seq, why } => {
            Some(ExchangeWord { why: Some(refusal(*why, stream)), ..of("refused", stream, *seq, *seq) })
        }
        Message::Close { .. } | Message::Closed { .. } => None,
    }
}

fn refusal(why: Refusal, stream: &Stream) -> String {
    format!("{} does not take it: {why}", stream.to)
}

fn any(bytes: &[u8]) -> Box<RawValue> {
    json::any(bytes)
}

fn of(step: &str, stream: &Stream, first: u64, last: u64) -> ExchangeWord {
    ExchangeWord {
        step: step.to_owned(),
        from: stream.from.as_str().to_owned(),
        epoch: stream.epoch,
        to: stream.to.as_str().to_owned(),
        seq: first,
        last: (last > first).then_some(last),
        floor: None,
        kind: None,
        correlation: None,
        payload: None,
        begins: None,
        receiver_epoch: None,
        why: None,
    }
}

fn bad(message: impl Into<String>) -> Failure {
    Failure::new(Code::BadRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Message, Failure> {
        let word: ExchangeWord = read_body(text.as_bytes())?;
        message(&party("meter").unwrap(), &word)
    }

    #[test]
    fn a_word_of_each_step_is_read_and_an_answer_repeats_the_id() {
        let said = read(
            r#"{"step": "message", "from": "outside/meter", "epoch": 7, "to": "home/1", "seq": 3, "floor": 2, "kind": "reading", "payload": {"kwh": 5}}"#,
        );
        let Ok(Message::Msg { stream, seq: 3, floor: 2, letter }) = said else { panic!("{said:?}") };
        assert_eq!(
            (stream.epoch, letter.kind.as_str(), &*letter.payload),
            (7, "reading", b"{\"kwh\": 5}".as_slice())
        );
        let ack = Message::Ack { span: Span { stream: stream.clone(), first: 3, last: 4 }, epoch: 9 };
        let shown = serde_json::to_value(word(&ack).unwrap()).unwrap();
        let expected = serde_json::json!({
            "step": "ack", "from": "outside/meter", "epoch": 7, "to": "home/1", "seq": 3, "last": 4, "receiver_epoch": 9
        });
        assert_eq!(shown, expected);
        let confirm = r#"{"step": "confirm", "from": "outside/meter", "epoch": 7, "to": "home/1", "seq": 3, "last": 4}"#;
        assert_eq!(read(confirm).unwrap(), Message::Confirm { span: Span { stream, first: 3, last: 4 } });
        let answer =
            r#"{"step": "confirm-ack", "from": "home/1", "epoch": 5, "to": "outside/meter", "seq": 1}"#;
        assert!(matches!(read(answer), Ok(Message::ConfirmAck { .. })));
    }

    #[test]
    fn what_a_party_can_not_mean_is_refused_with_the_field() {
        let word = |change: &str| {
            let mut word = serde_json::json!({
                "step": "message", "from": "outside/meter", "epoch": 7, "to": "home/1", "seq": 3, "kind": "reading"
            });
            let change: serde_json::Value = serde_json::from_str(change).unwrap();
            for (name, value) in change.as_object().unwrap() {
                word[name] = value.clone();
            }
            read(&word.to_string()).unwrap_err().message
        };
        for (change, said) in [
            (r#"{"step": "massage"}"#, "did you mean \"message\"?"),
            (r#"{"step": "refused"}"#, "none that a party says"),
            (r#"{"from": "outside/other"}"#, "in whose name"),
            (r#"{"from": "home/1"}"#, "in whose name"),
            (r#"{"to": "outside/other"}"#, "no instance"),
            (r#"{"to": "effect/http"}"#, "no instance"),
            (r#"{"to": "home"}"#, "PROGRAM/KEY"),
            (r#"{"seq": 0}"#, "count from 1"),
            (r#"{"seq": 9007199254740993}"#, "no range"),
            (r#"{"floor": 3}"#, "floor"),
            (r#"{"last": 4}"#, "last"),
            (r#"{"kind": ""}"#, "kind"),
            (r#"{"kind": "child.ended"}"#, "by the nodes themselves"),
            (r#"{"step": "ack", "from": "home/1", "to": "outside/meter", "kind": null}"#, "receiver_epoch"),
            (r#"{"step": "confirm"}"#, "kind: a \"confirm\""),
            (r#"{"why": "so"}"#, "why"),
        ] {
            assert!(word(change).contains(said), "{change}: {}", word(change));
        }
    }
}
