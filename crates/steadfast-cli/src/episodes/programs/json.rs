//! The JSON in which a program that is no WebAssembly is told of an episode and says what came of it.
//!
//! What it is told:
//! ```json
//! {
//!   "program": "order", "version": 1, "instance": "order/17", "episode": 2, "now_ms": 1790000000000,
//!   "event": {"kind": "paid", "source": "payment/17", "correlation": "17", "payload": {"amount": 25}},
//!   "state": {"item": "book"}
//! }
//! ```
//! `now_ms` is milliseconds since 1970, the same for whatever the episode does with it; `source` and `correlation` are null
//! where there is none; the payload of `undeliverable` is a text, why. What it answers, in which all is optional but one of `wait`, `end` and `fail`:
//! ```json
//! {
//!   "state": ANY,
//!   "messages": [{"to": "payment/17", "kind": "charge", "correlation": "17", "payload": ANY, "begins": true, "within_ms": 60000}],
//!   "answer": ANY,
//!   "wait": {"any": [{"kind": "paid", "source": "payment/17", "correlation": "17", "filter": "amount>20"}], "within_ms": 60000},
//!   "log": ["charged"]
//! }
//! ```
//! * without `state`, the state stays as it was;
//! * `answer` is the answer to whoever sent the event and waits;
//! * a part of an alternative of `wait` that is absent fits everything, so that `{"any": [{}]}` waits for whatever comes;
//! * `"end": ANY` in the place of `wait` ends the instance with this answer, which may be null;
//! * `{"fail": "why", "lasting": false}`, beside nothing but `log`, changes nothing: the episode is run again, or is left to a
//!   person at once if it is `lasting`;
//! * a field that is not named here is refused, so that none is ever misspelt in silence.
//!
//! ANY is one rule for states, payloads and answers, which are bytes: bytes that are JSON text are that JSON, as it was
//! written; no bytes are `null`; all others are `{"base64": "..."}`, an object with that one field, which always means bytes.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use data_encoding::BASE64;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use steadfast_proto::episode::{Event, EventId, Failure, Outcome, Task};
use steadfast_proto::exchange::Text;

use super::draft::{Draft, DraftError, Said, Wanted};
use super::{Limits, Ran};

/// How much of an answer that can't be read an error shows, in bytes.
const SHOWN_BYTES: usize = 200;

/// An answer that is none. Nothing of the episode is kept.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// It is not the JSON object that it should be.
    #[error("the answer is not what an episode answers: {problem}; it begins: {begins}")]
    Shape {
        /// What is wrong and what would be right.
        problem: String,
        /// The first of its bytes.
        begins: String,
    },
    /// It fails and says more.
    #[error("the answer has \"fail\" and also {0:?}; an episode that fails changes nothing")]
    FailsAndMore(&'static str),
    /// It says how it fails, and does not fail.
    #[error("the answer has \"lasting\" without \"fail\", the sentence that says why")]
    LastingAlone,
    /// Bytes are not written as bytes are.
    #[error("{what} is an object with the one field \"base64\", which is no base64 text: {problem}")]
    Base64 {
        /// Which of them.
        what: &'static str,
        /// What is wrong.
        problem: data_encoding::DecodeError,
    },
    /// A piece of it can't be.
    #[error(transparent)]
    Piece(#[from] DraftError),
}

#[derive(Serialize)]
struct TaskForm<'a> {
    program: &'a str,
    version: u32,
    instance: &'a str,
    episode: u64,
    now_ms: u64,
    event: EventForm<'a>,
    state: Any<'a>,
}

#[derive(Serialize)]
struct EventForm<'a> {
    kind: &'a str,
    source: Option<&'a str>,
    correlation: Option<&'a str>,
    payload: Payload<'a>,
}

/// What an event says.
#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Any(Any<'a>),
    /// Why something is undeliverable: the core writes a sentence, and knows no JSON.
    Sentence(Cow<'a, str>),
}

impl Payload<'_> {
    fn of(event: &Event) -> Payload<'_> {
        match event.id {
            EventId::Notice(_) if &*event.kind == Event::UNDELIVERABLE => {
                Payload::Sentence(String::from_utf8_lossy(&event.payload))
            }
            EventId::Notice(_) | EventId::Message { .. } | EventId::Request(_) | EventId::Timer(_) => {
                Payload::Any(Any(&event.payload))
            }
        }
    }
}

/// Bytes, by the rule.
struct Any<'a>(&'a [u8]);

impl Serialize for Any<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_empty() {
            return serializer.serialize_unit();
        }
        if let Ok(json) = serde_json::from_slice::<&RawValue>(self.0) {
            return json.serialize(serializer);
        }
        let mut object = serializer.serialize_map(Some(1))?;
        object.serialize_entry("base64", &BASE64.encode(self.0))?;
        object.end()
    }
}

/// Bytes as JSON, by the rule.
pub fn any(bytes: &[u8]) -> Box<RawValue> {
    serde_json::value::to_raw_value(&Any(bytes)).expect("maps have texts as keys, and nothing in it can fail")
}

/// What a program is told.
pub fn task(task: &Task) -> Vec<u8> {
    let event = &task.event;
    let form = TaskForm {
        program: task.name.program(),
        version: task.version,
        instance: task.name.as_str(),
        episode: task.episode,
        now_ms: super::now_ms(task),
        event: EventForm {
            kind: &event.kind,
            source: event.source.as_ref().map(|source| source.as_str()),
            correlation: event.correlation.as_ref().map(|correlation| correlation.as_str()),
            payload: Payload::of(event),
        },
        state: Any(&task.state),
    };
    serde_json::to_vec(&form).expect("maps have texts as keys, and nothing in it can fail")
}

/// What has to be written as an object: a struct alone may also be written as the list of its fields, without their names.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerForm<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    state: Option<&'a RawValue>,
    #[serde(borrow, default)]
    messages: Vec<Object<MessageForm<'a>>>,
    #[serde(borrow, default)]
    wait: Option<Object<WaitForm<'a>>>,
    #[serde(borrow, default, deserialize_with = "present")]
    end: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    answer: Option<&'a RawValue>,
    #[serde(borrow, default)]
    fail: Option<Cow<'a, str>>,
    #[serde(default)]
    lasting: Option<bool>,
    #[serde(borrow, default)]
    log: Vec<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageForm<'a> {
    #[serde(borrow)]
    to: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    correlation: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(default)]
    begins: bool,
    #[serde(default)]
    within_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WaitForm<'a> {
    #[serde(borrow, default)]
    any: Vec<Object<MatchForm<'a>>>,
    #[serde(default)]
    within_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MatchForm<'a> {
    #[serde(borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    source: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    correlation: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    filter: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BytesForm<'a> {
    #[serde(borrow)]
    base64: Cow<'a, str>,
}

/// A value that is there, `null` too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// What a program answered.
///
/// # Errors
/// It is no answer; nothing of it may be kept.
pub fn answer(bytes: &[u8], task: &Task, limits: Limits) -> Result<Ran, AnswerError> {
    let Object(form): Object<AnswerForm<'_>> = serde_json::from_slice(bytes)
        .map_err(|error| AnswerError::Shape { problem: problem(&error, bytes), begins: begins(bytes) })?;
    let mut draft = Draft::new(limits);
    for line in &form.log {
        draft.log(line)?;
    }
    if form.lasting.is_some() && form.fail.is_none() {
        return Err(AnswerError::LastingAlone);
    }
    let log = draft.take_log();
    let result = match &form.fail {
        Some(why) => Err(failed(&form, why)?),
        None => Ok(outcome(&form, draft, task)?),
    };
    Ok(Ran { result, log })
}

fn failed(form: &AnswerForm<'_>, why: &str) -> Result<Failure, AnswerError> {
    let more = [
        ("state", form.state.is_some()),
        ("messages", !form.messages.is_empty()),
        ("wait", form.wait.is_some()),
        ("end", form.end.is_some()),
        ("answer", form.answer.is_some()),
    ];
    if let Some((name, _)) = more.into_iter().find(|(_, is_there)| *is_there) {
        return Err(AnswerError::FailsAndMore(name));
    }
    Ok(Failure { why: Text::cut(why), lasting: form.lasting.unwrap_or(false) })
}

fn outcome(form: &AnswerForm<'_>, mut draft: Draft, task: &Task) -> Result<Outcome, AnswerError> {
    if let Some(state) = form.state {
        draft.state(&bytes_of("state", state)?)?;
    }
    for Object(message) in &form.messages {
        let payload = message.payload.map(|payload| bytes_of("the payload of a message", payload));
        draft.send(&Said {
            to: &message.to,
            kind: &message.kind,
            correlation: message.correlation.as_deref(),
            payload: &payload.transpose()?.unwrap_or_default(),
            begins: message.begins,
            within: message.within_ms.map(Duration::from_millis),
        })?;
    }
    if let Some(Object(wait)) = &form.wait {
        for Object(one) in &wait.any {
            draft.wait(&Wanted {
                kind: one.kind.as_deref(),
                source: one.source.as_deref(),
                correlation: one.correlation.as_deref(),
                filter: one.filter.as_deref(),
            })?;
        }
        if let Some(within_ms) = wait.within_ms {
            draft.within(Duration::from_millis(within_ms));
        }
    }
    if let Some(end) = form.end {
        draft.end(&bytes_of("end", end)?)?;
    }
    if let Some(answer) = form.answer {
        draft.answer(&bytes_of("answer", answer)?)?;
    }
    Ok(draft.finish(task)?)
}

/// The bytes that a value stands for, by the rule.
///
/// # Errors
/// It is an object that should be bytes and is not.
pub fn bytes_of<'a>(what: &'static str, json: &'a RawValue) -> Result<Cow<'a, [u8]>, AnswerError> {
    let text = json.get();
    if text == "null" {
        return Ok(Cow::Borrowed(&[]));
    }
    if !text.starts_with('{') {
        return Ok(Cow::Borrowed(text.as_bytes()));
    }
    // Anything but that one field makes it an object like any other.
    let Ok(form) = serde_json::from_str::<BytesForm<'_>>(text) else {
        return Ok(Cow::Borrowed(text.as_bytes()));
    };
    let decoded = BASE64.decode(form.base64.as_bytes());
    decoded.map(Cow::Owned).map_err(|problem| AnswerError::Base64 { what, problem })
}

fn problem(error: &serde_json::Error, bytes: &[u8]) -> String {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return "it is empty; an object with \"wait\" or \"end\" would be right".to_owned();
    }
    error.to_string()
}

/// The first bytes of what came, on one line, for an error.
pub(super) fn begins(bytes: &[u8]) -> String {
    let shown = String::from_utf8_lossy(bytes.get(..SHOWN_BYTES).unwrap_or(bytes));
    shown.replace(char::is_control, " ")
}
