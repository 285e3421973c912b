//! Effects on foreign systems: what an adapter is asked for, and how it ends.
//!
//! An instance sends a message to `effect/http`, `effect/postgresql` or `effect/event`; its payload is the order, in JSON.
//! An effect may be carried out again after a crash, always with the same [`id`], by which the foreign system makes one of
//! two. It decides which answers are final; when it is tried again is `agent::episodes::effects`'s.

mod event;
mod http;
mod postgresql;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use steadfast::events::hub::Hub;
use steadfast_proto::episode::{Effect, Event, Reply};
use steadfast_proto::exchange::{Blob, Stream, TEXT_BYTES_MAX, Text};

use crate::config::episodes::EpisodesConfig;
use crate::episodes::programs::json;
use crate::failure::did_you_mean;

/// The adapters, by the key of their name.
const ADAPTERS: [&str; 3] = ["http", "postgresql", "event"];
/// How long one attempt may take when the order does not say.
const ATTEMPT: Duration = Duration::from_secs(30);
/// The bounds of that.
const ATTEMPT_MS: std::ops::RangeInclusive<u64> = 100..=300_000;
/// What no reply can be called, since it means something to the machine.
const OWN_KINDS: [&str; 6] =
    [Event::START, Event::TIMER, Event::CANCEL, Event::UNDELIVERABLE, Event::PEER_RESET, Event::CHILD_ENDED];

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The effect is there; with a reply, if the order asked for one.
    Done(Option<Reply>),
    /// It may succeed later.
    Later {
        /// Why it did not now.
        why: String,
        /// The least time until it is tried again, as the foreign system wants it.
        after: Option<Duration>,
    },
    /// It never will.
    Never(String),
}

/// All adapters of one node.
#[derive(Debug)]
pub(crate) struct Adapters {
    http: http::Http,
    postgresql: postgresql::Connections,
    hub: Hub,
}

/// What is to be done, read and found possible.
#[derive(Debug)]
pub(crate) enum Order {
    /// A request.
    Http(http::Order),
    /// A statement.
    Postgresql(postgresql::Order),
    /// An event.
    Event(event::Order),
}

impl Adapters {
    pub(crate) fn new(config: &EpisodesConfig, hub: Hub) -> Adapters {
        Adapters { http: http::Http::default(), postgresql: postgresql::Connections::new(config), hub }
    }

    /// Makes one attempt.
    pub(crate) async fn carry_out(&self, order: &Order, id: &str) -> Ended {
        match order {
            Order::Http(order) => self.http.carry_out(order, id).await,
            Order::Postgresql(order) => self.postgresql.carry_out(order, id).await,
            Order::Event(order) => order.carry_out(&self.hub, id),
        }
    }
}

impl Order {
    /// The order of an effect.
    ///
    /// # Errors
    /// It is none, and never will be: one sentence for the instance.
    pub(crate) fn read(effect: &Effect) -> Result<Order, String> {
        let payload = &effect.letter.payload;
        match effect.stream.to.key() {
            "http" => http::Order::read(payload).map(Order::Http),
            "postgresql" => postgresql::Order::read(payload).map(Order::Postgresql),
            "event" => event::Order::read(payload).map(Order::Event),
            other => {
                let hint = did_you_mean(other, ADAPTERS);
                let all = ADAPTERS.map(|adapter| format!("effect/{adapter}")).join(", ");
                Err(format!("there is no adapter effect/{other}{hint}; there are {all}"))
            }
        }
    }

    /// The foreign system: what is bad there must not hold up anybody else.
    pub(crate) fn target(&self) -> String {
        match self {
            Order::Http(order) => order.target(),
            Order::Postgresql(order) => order.target(),
            Order::Event(_) => "the events of this node".to_owned(),
        }
    }
}

/// The id of an effect's message: the same however often it is carried out, and never that of another.
pub(crate) fn id(stream: &Stream, seq: u64) -> String {
    let mut hasher = blake3::Hasher::new();
    // A name has no such byte, so that no two ids come of one text.
    for part in [stream.from.as_str(), stream.to.as_str()] {
        hasher.update(part.as_bytes()).update(&[0]);
    }
    hasher.update(&stream.epoch.to_le_bytes()).update(&seq.to_le_bytes());
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// The form of an order.
fn form<T: DeserializeOwned>(payload: &Blob, example: &str) -> Result<T, String> {
    serde_json::from_slice(payload).map_err(|error| {
        format!("the payload is no order of this adapter: {error}; right would be {example}")
    })
}

/// What the instance wants to be told by, if it wants to.
fn reply_kind(given: Option<&str>) -> Result<Option<Text>, String> {
    let Some(kind) = given else { return Ok(None) };
    if kind.is_empty() || kind.len() > TEXT_BYTES_MAX || OWN_KINDS.contains(&kind) {
        return Err(format!("reply: {kind:?} can be the kind of no reply; choose a word of your own"));
    }
    Ok(Some(kind.into()))
}

fn attempt(timeout_ms: Option<u64>) -> Result<Duration, String> {
    match timeout_ms {
        None => Ok(ATTEMPT),
        Some(given) if ATTEMPT_MS.contains(&given) => Ok(Duration::from_millis(given)),
        Some(given) => Err(format!(
            "timeout_ms: {given} is out of range; {} to {} are possible",
            ATTEMPT_MS.start(),
            ATTEMPT_MS.end()
        )),
    }
}

/// The reply of that kind, if one is wanted.
fn reply(kind: Option<&Text>, payload: &serde_json::Value) -> Option<Reply> {
    let payload = Blob::from(payload.to_string().into_bytes());
    kind.map(|kind| Reply { kind: kind.clone(), payload })
}

/// The bytes of a piece of an order, and whether they are JSON.
fn bytes(what: &'static str, given: &RawValue) -> Result<(Vec<u8>, bool), String> {
    let bytes = json::bytes_of(what, given).map_err(|error| error.to_string())?;
    Ok((bytes.to_vec(), matches!(bytes, std::borrow::Cow::Borrowed(_))))
}
