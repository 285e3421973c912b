//! The paths of links and verdicts: the list, the long poll, and the stream.
//!
//! All three give the same report: first the whole, then what changed, each with the generation to go on from. Every
//! node answers for itself; `?node=NAME` passes the request on to that node. They decide nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use steadfast_proto::ids::{NetworkId, NodeId};
use steadfast_proto::links::{Conditions, Interest, Report, Scope};
use tokio::sync::watch;
use tokio::time::Instant;

use super::link_types::{LinkReport, Verdict, VerdictReport};
use super::link_words::{self, Dictionary};
use super::proxy;
use super::server::read_query;
use crate::agent::{Agent, Held, Registration};
use crate::codes::Code;
use crate::failure::{Failure, did_you_mean};
use crate::units;

type Shared = State<Arc<Agent>>;
type Answer = Result<Response, Failure>;

/// The longest that a request may wait for news.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Of which links, and how.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LinksQuery {
    /// Of one peer.
    peer: Option<String>,
    /// On one network; `general` for the peers in general only.
    network: Option<String>,
    /// Only in these states, or leaving them; a list with commas.
    state: Option<String>,
    /// `state` or `quality`: which changes are news; both when absent.
    changes: Option<String>,
    /// Only what changed after this generation.
    since: Option<u64>,
    /// Wait for news at most so long.
    wait: Option<String>,
    /// The node whose links they are.
    node: Option<String>,
}

/// Of which verdicts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct VerdictsQuery {
    since: Option<u64>,
    wait: Option<String>,
    node: Option<String>,
}

/// A query that was checked.
#[derive(Clone, Debug)]
struct Wanted {
    interest: Interest,
    states: Vec<String>,
    since: Option<u64>,
    wait: Duration,
}

pub(super) async fn links(State(agent): Shared, request: Request) -> Answer {
    let query: LinksQuery = read_query(request.uri())?;
    if let Some(other) = other_node(&agent, query.node.as_deref())? {
        return proxy::pass_on(&agent, other, request).await;
    }
    let wanted = Wanted::of(&agent, &query)?;
    let mut changes = agent.board.changes();
    let deadline = Instant::now() + wanted.wait;
    let mut since = wanted.since;
    loop {
        changes.mark_unchanged();
        let report = agent.board.links_since(&wanted.interest, since);
        let shown = wanted.shown(&agent, &report);
        if shown.whole || !shown.is_empty() || Instant::now() >= deadline {
            return json(&shown);
        }
        since = Some(shown.generation);
        wait_for_news(&mut changes, deadline).await;
    }
}

pub(super) async fn links_events(State(agent): Shared, request: Request) -> Answer {
    let query: LinksQuery = read_query(request.uri())?;
    if let Some(other) = other_node(&agent, query.node.as_deref())? {
        return proxy::pass_on(&agent, other, request).await;
    }
    let wanted = Wanted::of(&agent, &query)?;
    let told = last_event_id(request.headers())?.or(wanted.since);
    let changes = agent.board.changes();
    let registration = agent.board.register(wanted.interest, told);
    let registration = registration.map_err(|error| Failure::new(Code::TooMany, error.to_string()))?;
    let follower = LinkFollower { agent, wanted, registration, changes };
    Ok(sse(futures_util::stream::unfold(follower, |mut follower| async move {
        let report = follower.next().await?;
        Some((event(report.generation, &report), follower))
    })))
}

pub(super) async fn verdicts(State(agent): Shared, request: Request) -> Answer {
    let query: VerdictsQuery = read_query(request.uri())?;
    if let Some(other) = other_node(&agent, query.node.as_deref())? {
        return proxy::pass_on(&agent, other, request).await;
    }
    let mut changes = agent.board.changes();
    let deadline = Instant::now() + wait_of(query.wait.as_deref())?;
    loop {
        changes.mark_unchanged();
        let report = shown_verdicts(&agent, query.since);
        if report.whole || !report.verdicts.is_empty() || Instant::now() >= deadline {
            return json(&report);
        }
        wait_for_news(&mut changes, deadline).await;
    }
}

pub(super) async fn verdicts_events(State(agent): Shared, request: Request) -> Answer {
    let query: VerdictsQuery = read_query(request.uri())?;
    if let Some(other) = other_node(&agent, query.node.as_deref())? {
        return proxy::pass_on(&agent, other, request).await;
    }
    let told = last_event_id(request.headers())?.or(query.since);
    let changes = agent.board.changes();
    let start = (agent, changes, told, true);
    Ok(sse(futures_util::stream::unfold(start, |(agent, mut changes, told, is_first)| async move {
        loop {
            changes.mark_unchanged();
            let report = shown_verdicts(&agent, told);
            if is_first || report.whole || !report.verdicts.is_empty() {
                let next = (agent, changes, Some(report.generation), false);
                return Some((event(report.generation, &report), next));
            }
            changes.changed().await.ok()?;
        }
    })))
}

/// Every link and peer, as this node shows them.
pub(super) fn all_links(agent: &Agent) -> LinkReport {
    let report = agent.board.links_since(&Interest::default(), None);
    Wanted { interest: Interest::default(), states: Vec::new(), since: None, wait: Duration::ZERO }
        .shown(agent, &report)
}

/// The verdicts that changed since `generation`, or all that hold, as this node shows them.
fn shown_verdicts(agent: &Agent, generation: Option<u64>) -> VerdictReport {
    let (generation, whole, held) = agent.board.verdicts_since(generation);
    VerdictReport { node: agent.node_name(agent.id), generation, whole, verdicts: shown(agent, &held) }
}

/// Verdicts as this node shows them.
pub(crate) fn shown(agent: &Agent, held: &[Held]) -> Vec<Verdict> {
    let (names, networks) = (agent.rows.names(), agent.network_names());
    let words = Dictionary { names: &names, networks: &networks, boot_unix_ms: agent.board.boot_unix_ms() };
    let rules = agent.board.rules();
    let verdicts = held.iter().map(|held| {
        let nodes = link_words::nodes_of(&held.verdict.subject);
        // Links are judged by what goes through them; a rule suspects nodes.
        let is_of_nodes = held.verdict.subject.network().is_none();
        let rule = nodes.iter().find_map(|id| rules.get(id)).filter(|_| is_of_nodes);
        words.verdict(&held.verdict, rule.copied(), held.over, held.generation)
    });
    verdicts.collect()
}

/// Somebody who follows links.
struct LinkFollower {
    agent: Arc<Agent>,
    wanted: Wanted,
    registration: Registration,
    changes: watch::Receiver<u64>,
}

impl LinkFollower {
    /// What there is to tell; `None` when the node has stopped. It is asked for only when the last report has left,
    /// so whoever does not read costs no more than the registration.
    async fn next(&mut self) -> Option<LinkReport> {
        loop {
            self.changes.mark_unchanged();
            let report = self.registration.take();
            let shown = self.wanted.shown(&self.agent, &report);
            if shown.whole || !shown.is_empty() {
                return Some(shown);
            }
            self.changes.changed().await.ok()?;
        }
    }
}

impl Wanted {
    fn of(agent: &Agent, query: &LinksQuery) -> Result<Wanted, Failure> {
        let peer = query.peer.as_deref().map(|name| node_named(agent, name)).transpose()?;
        let scope = match query.network.as_deref() {
            None => Scope::Any,
            Some("general") => Scope::General,
            Some(name) => Scope::Network(network_named(agent, name)?),
        };
        let conditions = match query.changes.as_deref() {
            None => Conditions::Any,
            Some("state") => Conditions::State,
            Some("quality") => Conditions::Quality,
            Some(other) => {
                let message = format!("changes: {other:?} is neither \"state\" nor \"quality\"");
                return Err(Failure::new(Code::BadRequest, message));
            }
        };
        let states = query.state.as_deref().map(states_of).transpose()?.unwrap_or_default();
        let interest = Interest { peer, scope, conditions };
        Ok(Wanted { interest, states, since: query.since, wait: wait_of(query.wait.as_deref())? })
    }

    /// The report as this node shows it, without what is in other states than those wanted.
    fn shown(&self, agent: &Agent, report: &Report) -> LinkReport {
        let (names, networks) = (agent.rows.names(), agent.network_names());
        let words =
            Dictionary { names: &names, networks: &networks, boot_unix_ms: agent.board.boot_unix_ms() };
        let is_wanted = |state: &String, from: &Option<String>| {
            self.states.is_empty()
                || self.states.contains(state)
                || from.as_ref().is_some_and(|from| self.states.contains(from))
        };
        let mut shown = LinkReport {
            node: words.node(agent.id),
            generation: report.generation,
            whole: report.whole,
            links: report.changes.iter().filter_map(|change| words.link(change)).collect(),
            peers: report.changes.iter().filter_map(|change| words.general(change)).collect(),
        };
        shown.links.retain(|link| is_wanted(&link.state, &link.from));
        shown.peers.retain(|peer| is_wanted(&peer.state, &peer.from));
        shown
    }
}

/// The node that must answer when it is not this one.
fn other_node(agent: &Agent, name: Option<&str>) -> Result<Option<NodeId>, Failure> {
    let Some(name) = name else { return Ok(None) };
    Ok(Some(node_named(agent, name)?).filter(|id| *id != agent.id))
}

fn node_named(agent: &Agent, name: &str) -> Result<NodeId, Failure> {
    let names = agent.rows.names();
    let found = names.iter().find(|(id, known)| *known == name || id.to_string() == name);
    found.map(|(id, _)| *id).ok_or_else(|| {
        let hint = did_you_mean(name, names.values().map(String::as_str));
        Failure::new(Code::NodeNotFound, format!("there is no node named {name:?}{hint}"))
    })
}

fn network_named(agent: &Agent, name: &str) -> Result<NetworkId, Failure> {
    let names = agent.network_names();
    let index = names.iter().position(|known| known == name);
    index.and_then(|index| u16::try_from(index).ok()).map(NetworkId).ok_or_else(|| {
        let message = format!(
            "network: this node has no network named {name:?}; it has {}, and \"general\" means the peers over any",
            names.join(", ")
        );
        Failure::new(Code::BadRequest, message)
    })
}

fn states_of(text: &str) -> Result<Vec<String>, Failure> {
    let states: Vec<String> = text.split(',').map(|word| word.trim().to_owned()).collect();
    match states.iter().find(|word| !link_words::STATES.contains(&word.as_str())) {
        None => Ok(states),
        Some(wrong) => {
            let known = link_words::STATES.join(", ");
            let message = format!("state: {wrong:?} is no state of a link; the states are {known}");
            Err(Failure::new(Code::BadRequest, message))
        }
    }
}

fn wait_of(text: Option<&str>) -> Result<Duration, Failure> {
    let Some(text) = text else { return Ok(Duration::ZERO) };
    units::duration_within(text, Duration::ZERO, WAIT_MAX)
        .map_err(|message| Failure::new(Code::BadRequest, format!("wait: {message}")))
}

pub(super) fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| {
        let message = "the header last-event-id is not the id of an event of this stream, which is a number";
        Failure::new(Code::BadRequest, message)
    })
}

async fn wait_for_news(changes: &mut watch::Receiver<u64>, deadline: Instant) {
    // Whether news came or the time is over is seen by the caller's next look.
    let _ = tokio::time::timeout_at(deadline, changes.changed()).await;
}

fn json<T: Serialize>(value: &T) -> Answer {
    Ok(axum::Json(value).into_response())
}

pub(super) fn event<T: Serialize>(generation: u64, value: &T) -> Result<Event, Infallible> {
    let data = serde_json::to_string(value).unwrap_or_default();
    Ok(Event::default().id(generation.to_string()).data(data))
}

pub(super) fn sse(stream: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
}

/// The entry for fuzzing: a request's target, with each set of parameters.
#[doc(hidden)]
pub fn read_queries(target: &str) {
    let Ok(uri) = target.parse() else { return };
    let _ = read_query::<VerdictsQuery>(&uri);
    if let Ok(query) = read_query::<LinksQuery>(&uri) {
        let _ = query.state.as_deref().map(states_of);
        let _ = wait_of(query.wait.as_deref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_words_are_answered_with_the_right_ones() {
        assert_eq!(states_of("up, one-way").unwrap(), ["up", "one-way"]);
        let refused = states_of("up,deaf").unwrap_err();
        assert!(refused.message.contains("\"deaf\"") && refused.message.contains("one-way"), "{refused}");
        assert!(wait_of(Some("2h")).unwrap_err().message.starts_with("wait: "));
        assert_eq!(wait_of(Some("30s")).unwrap(), Duration::from_secs(30));
        let mut headers = HeaderMap::new();
        assert_eq!(last_event_id(&headers).unwrap(), None);
        headers.insert("last-event-id", "17".parse().unwrap());
        assert_eq!(last_event_id(&headers).unwrap(), Some(17));
        headers.insert("last-event-id", "x".parse().unwrap());
        assert_eq!(last_event_id(&headers).unwrap_err().code, Code::BadRequest);
    }
}
