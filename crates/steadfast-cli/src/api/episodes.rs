//! The paths of programs and their instances.
//!
//! A request about an instance is handed on to the agent that keeps it. They decide nothing else but what a request's
//! idempotency key stands for: everything that it asks for.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use steadfast_proto::episode;
use steadfast_proto::exchange::{Name as InstanceName, TEXT_BYTES_MAX, Text};

use super::episode_types::{DeployRequest, MigrateRequest, SendRequest, StartRequest};
use super::proxy;
use super::server::{Name, body, bytes_within, read_body, read_query};
use crate::agent::Agent;
use crate::agent::episodes::{Repeat, Wanted, digest, payload};
use crate::codes::Code;
use crate::failure::Failure;

type Shared = State<Arc<Agent>>;
type Answer = Result<Response, Failure>;

/// The largest body with a module, in bytes: one in base64.
const MODULE_BODY_BYTES_MAX: usize = 2 << 20;
/// How long an answer can be waited for.
const WAIT_SECONDS_MAX: u32 = 3_600;

pub(super) async fn programs(State(agent): Shared) -> Answer {
    Ok(axum::Json(agent.shown_programs().await?).into_response())
}

pub(super) async fn deploy(State(agent): Shared, Name(name): Name, request: Request) -> Answer {
    let asked: DeployRequest = read_body(&bytes_within(request, MODULE_BODY_BYTES_MAX).await?)?;
    Ok(axum::Json(agent.deploy(&name, asked).await?).into_response())
}

pub(super) async fn list(State(agent): Shared, request: Request) -> Answer {
    let wanted: Wanted = read_query(request.uri())?;
    Ok(axum::Json(agent.shown_instances(wanted).await?).into_response())
}

pub(super) async fn show(State(agent): Shared, instance: Instance, request: Request) -> Answer {
    if let Some(owner) = agent.episodes.kept_elsewhere(&instance.0) {
        return proxy::pass_on(&agent, owner, request).await;
    }
    let node = agent.node_name(agent.id);
    Ok(axum::Json(agent.episodes.instance(instance.0, node).await?).into_response())
}

pub(super) async fn history(State(agent): Shared, instance: Instance, request: Request) -> Answer {
    if let Some(owner) = agent.episodes.kept_elsewhere(&instance.0) {
        return proxy::pass_on(&agent, owner, request).await;
    }
    Ok(axum::Json(agent.episodes.history(instance.0).await?).into_response())
}

/// For how long the answer is waited for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WaitQuery {
    wait: Option<u32>,
}

pub(super) async fn start(State(agent): Shared, instance: Instance, request: Request) -> Answer {
    if let Some(owner) = agent.episodes.kept_elsewhere(&instance.0) {
        return proxy::pass_on(&agent, owner, request).await;
    }
    let (repeat, wait) = (repeat(request.headers())?, wait(&request)?);
    let asked: StartRequest = body(request).await?;
    let (name, payload) = (instance.0, payload(asked.payload.as_deref())?);
    let key = repeat
        .map(|repeat| repeat.key(digest(&[Some(b"start"), Some(name.as_str().as_bytes()), Some(&payload)])));
    let request = episode::Request::Start { name, payload, key, wait: wait.is_some() };
    Ok(axum::Json(agent.episodes.ask(request, wait).await?).into_response())
}

pub(super) async fn send(State(agent): Shared, instance: Instance, request: Request) -> Answer {
    if let Some(owner) = agent.episodes.kept_elsewhere(&instance.0) {
        return proxy::pass_on(&agent, owner, request).await;
    }
    let (repeat, wait) = (repeat(request.headers())?, wait(&request)?);
    let asked: SendRequest = body(request).await?;
    let (name, payload) = (instance.0, payload(asked.payload.as_deref())?);
    let kind = text("kind", &asked.kind)?;
    if kind.is_empty() {
        return Err(bad("kind: it is empty; give one, such as \"paid\""));
    }
    let correlation = asked.correlation.as_deref().map(|given| text("correlation", given)).transpose()?;
    let key = repeat.map(|repeat| {
        let correlation = correlation.as_ref().map(|text| text.as_bytes());
        let (name, kind) = (name.as_str().as_bytes(), kind.as_bytes());
        repeat.key(digest(&[Some(b"send"), Some(name), Some(kind), correlation, Some(&payload)]))
    });
    let request = episode::Request::Send { name, kind, correlation, payload, key, wait: wait.is_some() };
    Ok(axum::Json(agent.episodes.ask(request, wait).await?).into_response())
}

pub(super) async fn cancel(State(agent): Shared, instance: Instance, request: Request) -> Answer {
    steer(agent, instance, request, |name| episode::Request::Cancel { name }).await
}

pub(super) async fn pause(State(agent): Shared, instance: Instance, request: Request) -> Answer {
    steer(agent, instance, request, |name| episode::Request::Pause { name }).await
}

pub(super) async fn retry(State(agent): Shared, instance: Instance, request: Request) -> Answer {
    steer(agent, instance, request, |name| episode::Request::Retry { name }).await
}

pub(super) async fn migrate(State(agent): Shared, instance: Instance, request: Request) -> Answer {
    if let Some(owner) = agent.episodes.kept_elsewhere(&instance.0) {
        return proxy::pass_on(&agent, owner, request).await;
    }
    let asked: MigrateRequest = body(request).await?;
    let request = episode::Request::Migrate { name: instance.0, version: asked.version };
    Ok(axum::Json(agent.episodes.ask(request, None).await?).into_response())
}

async fn steer(
    agent: Arc<Agent>,
    instance: Instance,
    request: Request,
    asked: impl FnOnce(InstanceName) -> episode::Request,
) -> Answer {
    if let Some(owner) = agent.episodes.kept_elsewhere(&instance.0) {
        return proxy::pass_on(&agent, owner, request).await;
    }
    Ok(axum::Json(agent.episodes.ask(asked(instance.0), None).await?).into_response())
}

/// The entry for fuzzing, as in `server`.
pub(super) fn read_queries(uri: &Uri) {
    let _ = read_query::<Wanted>(uri);
    let _ = read_query::<WaitQuery>(uri);
}

/// What makes a repeated request the same request.
fn repeat(headers: &HeaderMap) -> Result<Option<Repeat>, Failure> {
    let Some(given) = headers.get("idempotency-key") else { return Ok(None) };
    Repeat::parse(&String::from_utf8_lossy(given.as_bytes())).map(Some)
}

fn wait(request: &Request) -> Result<Option<Duration>, Failure> {
    let query: WaitQuery = read_query(request.uri())?;
    if query.wait.is_some_and(|wait| wait == 0 || wait > WAIT_SECONDS_MAX) {
        return Err(bad(format!("wait: 1 to {WAIT_SECONDS_MAX} seconds are possible")));
    }
    Ok(query.wait.map(|wait| Duration::from_secs(wait.into())))
}

pub(super) fn text(field: &str, given: &str) -> Result<Text, Failure> {
    // What is cut would be another.
    if given.len() > TEXT_BYTES_MAX {
        return Err(bad(format!("{field}: it has {} bytes; {TEXT_BYTES_MAX} are possible", given.len())));
    }
    Ok(given.into())
}

fn bad(message: impl Into<String>) -> Failure {
    Failure::new(Code::BadRequest, message)
}

/// The instance in a path.
pub(super) struct Instance(InstanceName);

impl<S: Send + Sync> FromRequestParts<S> for Instance {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((program, key)) =
            path.map_err(|error| bad(format!("the path {}: {}", parts.uri.path(), error.body_text())))?;
        if program.contains('/') {
            let message = format!("{program:?} is no name of a program: it has a slash");
            return Err(Failure::new(Code::InstanceNameInvalid, message));
        }
        let name = InstanceName::parse(&format!("{program}/{key}"))
            .map_err(|error| Failure::new(Code::InstanceNameInvalid, error.to_string()))?;
        if name.is_outside() || name.is_effect() {
            let message = format!("{name} is a party that is no instance; nothing can be asked of it here");
            return Err(Failure::new(Code::InstanceNameInvalid, message));
        }
        Ok(Instance(name))
    }
}
