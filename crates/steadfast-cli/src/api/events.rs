//! The paths of events: the stream, what somebody emits, and what a node does for them.
//!
//! The stream is server-sent events: each a CloudEvent 1.0 whose id is the place to resume from by `Last-Event-ID`, on any
//! node of the cluster. They decide nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use steadfast_proto::events::{Fields, Listener, StreamState};

use super::convert::node_name;
use super::event_types::{EmitRequest, Emitted, EventsStatus, FollowedTopic, WatchedTopic};
use super::links::sse;
use super::server::{body, read_query};
use super::types::Done;
use crate::agent::Agent;
use crate::agent::events::{Cursor, From};
use crate::codes::Code;
use crate::events::cloud::{self, CloudEvent};
use crate::events::filter::Filter;
use crate::events::topic_text;
use crate::failure::Failure;
use crate::units;

type Shared = State<Arc<Agent>>;
type Answer = Result<Response, Failure>;

/// How many events one request may tell.
const EMIT_MAX: usize = 1_000;
/// How long ago a stream may begin.
const SINCE_MAX: Duration = Duration::from_secs(7 * 86_400);

/// Which events.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EventsQuery {
    /// What they must be like.
    filter: Option<String>,
    /// From when on: `oldest`, how long ago, or a time.
    since: Option<String>,
    /// The id of the event to go on after, where the header can't be given.
    after: Option<String>,
}

pub(super) async fn events(State(agent): Shared, request: Request) -> Answer {
    stream(&agent, &request, None)
}

/// The stream that is asked for; with a container, what of it concerns that one.
pub(super) fn stream(agent: &Arc<Agent>, request: &Request, container: Option<&str>) -> Answer {
    let query: EventsQuery = read_query(request.uri())?;
    let filter: Filter = match query.filter.as_deref() {
        Some(text) => text.parse().map_err(|error| bad(format!("filter: {error}")))?,
        None => Filter::default(),
    };
    let from = match resumed(request.headers(), query.after.as_deref())? {
        Some(cursor) => From::Cursor(cursor),
        None => query.since.as_deref().map(since).transpose()?.unwrap_or_default(),
    };
    let cluster = agent.cluster_name().to_owned();
    let follow = agent.follow_events(filter, &from, container)?;
    Ok(sse(futures_util::stream::unfold((follow, cluster), |(mut follow, cluster)| async move {
        let (delivery, cursor) = follow.next().await?;
        let event = CloudEvent::new(&cluster, &delivery);
        let data = serde_json::to_string(&event).unwrap_or_default();
        let sent: Result<Event, Infallible> = Ok(Event::default().id(cursor.text()).data(data));
        Some((sent, (follow, cluster)))
    })))
}

pub(super) async fn emit(State(agent): Shared, request: Request) -> Answer {
    let said = emitted(request).await?;
    tell(&agent, said)
}

/// What somebody wants to be told: types with their fields, one at least.
pub(super) async fn emitted(request: Request) -> Result<Vec<(String, Fields)>, Failure> {
    let said = match body(request).await? {
        EmitRequest::One(one) => vec![one],
        EmitRequest::Many(many) => many,
    };
    if said.is_empty() {
        return Err(bad("an empty list tells nothing; give one event at least"));
    }
    if said.len() > EMIT_MAX {
        return Err(bad(format!("{} events are given; {EMIT_MAX} are possible at once", said.len())));
    }
    let with_fields = |one: Emitted| {
        let mut fields = Fields::new();
        for (name, given) in &one.fields {
            let value = cloud::value(given).ok_or_else(|| {
                bad(format!(
                    "fields: {name:?} is {given}; a text of up to 4 KiB, a number, true or false is possible"
                ))
            })?;
            fields.insert(name.clone(), value);
        }
        Ok((one.kind, fields))
    };
    said.into_iter().map(with_fields).collect()
}

/// Tells it.
pub(super) fn tell(agent: &Agent, said: Vec<(String, Fields)>) -> Answer {
    let done = match &said[..] {
        [(kind, _)] => format!("{kind} was told"),
        many => format!("{} events were told", many.len()),
    };
    agent.emit_events(said)?;
    Ok(axum::Json(Done { done }).into_response())
}

pub(super) async fn status(State(agent): Shared) -> Answer {
    let (status, why_not) = agent.events.status();
    let names = agent.rows.names();
    let topics = status.topics.iter().map(|one| WatchedTopic {
        topic: topic_text(&one.topic),
        active: one.active,
        listener: match one.listener {
            Listener::Off => "off",
            Listener::Registered => "registered",
            Listener::Observing => "observing",
        }
        .to_owned(),
        consumers: one.consumers,
        told_to: one.replicated.iter().chain(&one.selective).map(|node| node_name(&names, *node)).collect(),
        next: one.next_seq,
        retained: one.retained,
        suppressed: one.suppressed,
        why_not: why_not.get(&one.topic).cloned(),
    });
    let followed = status.streams.iter().map(|one| FollowedTopic {
        node: node_name(&names, one.life.node),
        topic: topic_text(&one.topic),
        state: match one.state {
            StreamState::Asking => "asking",
            StreamState::Live => "live",
            StreamState::Down => "down",
            StreamState::Refused(_) => "refused",
        }
        .to_owned(),
        consumers: one.consumers,
        upto: one.upto,
    });
    let shown = EventsStatus {
        node: agent.node_name(agent.id),
        topics: topics.collect(),
        followed: followed.collect(),
        consumers: status.consumers,
    };
    Ok(axum::Json(shown).into_response())
}

fn resumed(headers: &HeaderMap, after: Option<&str>) -> Result<Option<Cursor>, Failure> {
    let given = headers.get("last-event-id").map(|value| value.to_str().unwrap_or_default());
    let Some(text) = given.or(after) else { return Ok(None) };
    Cursor::parse(text.trim())
        .map(Some)
        .ok_or_else(|| bad("last-event-id: that is not the id of an event of this stream"))
}

fn since(text: &str) -> Result<From, Failure> {
    if text == "oldest" {
        return Ok(From::Oldest);
    }
    let unix_us = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    };
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(From::Time(unix_us(time)));
    }
    let ago = units::duration_within(text, Duration::ZERO, SINCE_MAX).map_err(|message| {
        bad(format!("since: {message}; a time such as 2026-01-31T12:00:00Z and \"oldest\" are possible too"))
    })?;
    Ok(From::Time(unix_us(SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH))))
}

fn bad(message: impl Into<String>) -> Failure {
    Failure::new(Code::BadRequest, message)
}
