//! The server of the HTTP API: paths, and what each does with the agent.
//!
//! The same router serves the Unix socket and, over mutual TLS, the other agents. A verb that only a container's owner
//! can carry out is passed on to that node's agent ([`super::proxy`]). It decides nothing itself.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::types::{
    DrainRequest, ErrorBody, ExecRequest, InviteRequest, ReplaceRequest, RestoreRequest, RunRequest,
    StopRequest,
};
use super::{
    audit, devices, episodes, events as event_paths, exchange, groups, links, metrics, page, proxy, tokens,
    views,
};
use crate::agent::Agent;
use crate::codes::Code;
use crate::failure::{Failure, nearest};
use crate::traces;
use crate::units::human_size;

/// The largest body of a request, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

type Shared = State<Arc<Agent>>;
type Answer = Result<Response, Failure>;

/// The API of an agent that belongs to a cluster.
pub fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/nodes", get(nodes))
        .route("/v1/links", get(links::links))
        .route("/v1/links/events", get(links::links_events))
        .route("/v1/verdicts", get(links::verdicts))
        .route("/v1/verdicts/events", get(links::verdicts_events))
        .route("/v1/views", get(views::views))
        .route("/v1/views/events", get(views::views_events))
        .route("/v1/events", get(event_paths::events).post(event_paths::emit))
        .route("/v1/events/status", get(event_paths::status))
        .route("/v1/programs", get(episodes::programs))
        .route("/v1/programs/{name}", put(episodes::deploy))
        .route("/v1/episodes", get(episodes::list))
        .route("/v1/episodes/{program}/{key}", get(episodes::show))
        .route("/v1/episodes/{program}/{key}/history", get(episodes::history))
        .route("/v1/episodes/{program}/{key}/start", post(episodes::start))
        .route("/v1/episodes/{program}/{key}/send", post(episodes::send))
        .route("/v1/episodes/{program}/{key}/cancel", post(episodes::cancel))
        .route("/v1/episodes/{program}/{key}/pause", post(episodes::pause))
        .route("/v1/episodes/{program}/{key}/retry", post(episodes::retry))
        .route("/v1/episodes/{program}/{key}/migrate", post(episodes::migrate))
        .route("/v1/exchange/{name}", get(exchange::hear).post(exchange::say))
        .route("/v1/catalog/backup", get(catalog_backup))
        .route("/v1/devices", get(devices::devices))
        .route("/v1/devices/name", post(devices::name))
        .route("/v1/devices/rename", post(devices::rename))
        .route("/v1/devices/unname", post(devices::unname))
        .route("/v1/groups", get(groups::groups))
        .route("/v1/groups/{name}", get(groups::group).put(groups::swap))
        .route("/v1/groups/{name}/request", get(groups::request).put(groups::ask).delete(groups::withdraw))
        .route("/v1/groups/{name}/standbys", put(groups::stand_by))
        .route("/v1/invites", post(invite))
        .route("/v1/keys", get(keys))
        .route("/v1/keys/rotate", post(rotate_keys))
        .route("/v1/nodes/{name}/revoke", post(revoke_node))
        .route("/v1/nodes/{name}/replace", post(replace_node))
        .route("/v1/nodes/{name}/drain", post(drain_node))
        .route("/v1/nodes/{name}/leave", post(leave_node))
        .route("/v1/operations", get(operations))
        .route("/v1/operations/{name}", get(operation))
        .route("/v1/containers", get(containers).post(run))
        .route("/v1/containers/{name}", get(container).delete(remove))
        .route("/v1/containers/{name}/changes", get(changes))
        .route("/v1/containers/{name}/stop", post(stop))
        .route("/v1/containers/{name}/restore", post(restore))
        .route("/v1/containers/{name}/checkpoints", get(checkpoints_of).post(checkpoint))
        .route("/v1/containers/{name}/logs", get(logs))
        .route("/v1/containers/{name}/exec", post(exec))
        .route("/v1/checkpoints", get(checkpoints))
        .route("/v1/tokens", get(tokens::tokens).post(tokens::make))
        .route("/v1/tokens/{name}", delete(tokens::revoke))
        .route("/v1/page/tokens", post(page::make_token))
        .route("/v1/page/session", get(page::session).post(page::sign_in).delete(page::sign_out))
        .route("/v1/page/events", get(page::events))
        .route("/v1/openapi.json", get(openapi))
        .route("/metrics", get(metrics::metrics))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&agent), refuse_if_observing))
        .layer(middleware::from_fn_with_state(Arc::clone(&agent), audit::tell))
        .layer(middleware::from_fn(traces::tell))
        .with_state(agent)
}

/// An observer shows what the catalog says of containers, and does nothing to them.
async fn refuse_if_observing(State(agent): Shared, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let concerns_containers = path.starts_with("/v1/containers");
    let only_looks = request.method() == Method::GET && !path.ends_with("/logs");
    if agent.observes && concerns_containers && !only_looks {
        let message = "this node only observes (mode = \"observe\"), so it neither runs nor manages containers; give the command on a node that does";
        return Failure::new(Code::ObservesOnly, message).into_response();
    }
    next.run(request).await
}

/// The API of an agent that waits for `init` or `join`.
pub fn waiting_router(data: String, why: Arc<Mutex<Option<String>>>) -> Router {
    let refuse = move || {
        let why = why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let why = why.unwrap_or_else(|| "run `steadfast init NAME` or `steadfast join TOKEN`".to_owned());
        let message = format!("this node belongs to no cluster yet: {why} (data folder {data})");
        async move { Failure::new(Code::NotConfigured, message).into_response() }
    };
    Router::new().route("/v1/openapi.json", get(openapi)).fallback(refuse)
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let by_code = self.code.exit().http_status();
        // The server is well; whoever asks has too much already.
        let status = if self.code == Code::TooMany { 429 } else { by_code };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = ErrorBody { code: self.code.to_string(), message: self.message };
        let mut response = (status, axum::Json(body)).into_response();
        response.extensions_mut().insert(self.code);
        response
    }
}

fn json<T: Serialize>(value: &T) -> Answer {
    Ok(axum::Json(value).into_response())
}

/// Reads a JSON body; what is wrong with it is said by field.
pub(super) async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Failure> {
    read_body(&bytes_within(request, BODY_BYTES_MAX).await?)
}

/// Reads a body of at most so many bytes.
pub(super) async fn bytes_within(request: Request, bytes_max: usize) -> Result<Bytes, Failure> {
    let bytes = Limited::new(request.into_body(), bytes_max).collect().await;
    let bytes = bytes.map_err(|error| {
        let max = human_size(bytes_max as u64);
        Failure::new(Code::BadRequest, format!("the body can't be read: {error}; at most {max} is possible"))
    })?;
    Ok(bytes.to_bytes())
}

/// Reads the text of a body; an empty one is an object without fields.
#[doc(hidden)]
pub fn read_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(text).map_err(|error| Failure::new(Code::BadRequest, format!("the body: {error}")))
}

async fn status(State(agent): Shared) -> Answer {
    json(&agent.shown_status().await?)
}

async fn nodes(State(agent): Shared) -> Answer {
    json(&agent.shown_nodes().await?)
}

async fn catalog_backup(State(agent): Shared) -> Answer {
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, agent.backup_catalog().await?).into_response())
}

async fn invite(State(agent): Shared, request: Request) -> Answer {
    let request: InviteRequest = body(request).await?;
    json(&agent.inviter.invite(request).await?)
}

async fn keys(State(agent): Shared) -> Answer {
    json(&agent.keys.shown())
}

async fn rotate_keys(State(agent): Shared) -> Answer {
    json(&agent.rotate_keys().await?)
}

async fn revoke_node(State(agent): Shared, Name(name): Name) -> Answer {
    json(&agent.revoke_node(&name).await?)
}

async fn replace_node(State(agent): Shared, Name(name): Name, request: Request) -> Answer {
    let request: ReplaceRequest = body(request).await?;
    json(&agent.replace_node(&name, &request.by).await?)
}

async fn drain_node(State(agent): Shared, Name(name): Name, request: Request) -> Answer {
    let request: DrainRequest = body(request).await?;
    json(&agent.drain_node(&name, request.undo).await?)
}

async fn leave_node(State(agent): Shared, Name(name): Name) -> Answer {
    json(&agent.leave_node(&name).await?)
}

async fn operations(State(agent): Shared) -> Answer {
    json(&agent.shown_operations()?)
}

async fn operation(State(agent): Shared, Name(name): Name) -> Answer {
    json(&agent.shown_operation(&name)?)
}

async fn containers(State(agent): Shared) -> Answer {
    json(&agent.shown_containers())
}

async fn run(State(agent): Shared, request: Request) -> Answer {
    let request: RunRequest = body(request).await?;
    json(&agent.run_container(request).await?)
}

async fn container(State(agent): Shared, Name(name): Name) -> Answer {
    let (row, version) = agent.rows.container_or_stale(&name).await?;
    json(&agent.shown(&row, version))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RemoveQuery {
    force: bool,
}

async fn remove(State(agent): Shared, Name(name): Name, query: Parameters<RemoveQuery>) -> Answer {
    json(&agent.remove_container(&name, query.0.force).await?)
}

async fn stop(State(agent): Shared, Name(name): Name, request: Request) -> Answer {
    let request: StopRequest = body(request).await?;
    json(&agent.stop_container(&name, request).await?)
}

async fn restore(State(agent): Shared, Name(name): Name, request: Request) -> Answer {
    let request: RestoreRequest = body(request).await?;
    json(&agent.restore_container(&name, request).await?)
}

async fn checkpoints(State(agent): Shared) -> Answer {
    json(&agent.shown_checkpoints(None).await?)
}

async fn checkpoints_of(State(agent): Shared, Name(name): Name) -> Answer {
    json(&agent.shown_checkpoints(Some(&name)).await?)
}

async fn checkpoint(State(agent): Shared, Name(name): Name) -> Answer {
    json(&agent.checkpoint_container(&name).await?)
}

async fn changes(State(agent): Shared, Name(name): Name) -> Answer {
    let (row, _) = agent.rows.container(&name).await?;
    let follow = agent.follow(row.id);
    let stream = futures_util::stream::unfold(Some(follow), move |follow| {
        let (agent, name) = (Arc::clone(&agent), name.clone());
        async move {
            let mut follow = follow?;
            match follow.next().await {
                Ok(Some((row, version))) => Some((Ok(agent.shown(&row, version)), Some(follow))),
                Ok(None) => {
                    Some((Err(Failure::new(Code::ContainerNotFound, format!("{name} was removed"))), None))
                }
                Err(failure) => Some((Err(failure), None)),
            }
        }
    });
    Ok(events(stream))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogsQuery {
    follow: bool,
    tail: Option<u32>,
}

async fn logs(
    State(agent): Shared,
    Name(name): Name,
    query: Parameters<LogsQuery>,
    request: Request,
) -> Answer {
    let (row, _) = agent.rows.container_or_stale(&name).await?;
    if row.owner != agent.id {
        return proxy::pass_on(&agent, row.owner, request).await;
    }
    let lines = agent.logs(&row, query.0.follow, query.0.tail)?;
    Ok(events(lines))
}

async fn exec(State(agent): Shared, Name(name): Name, mut request: Request) -> Answer {
    let (row, _) = agent.rows.container_or_stale(&name).await?;
    if row.owner != agent.id {
        return proxy::pass_on(&agent, row.owner, request).await;
    }
    let upgrade = proxy::upgrade_of(&mut request)?;
    let request: ExecRequest = body(request).await?;
    let running = agent.exec(&row, request)?;
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => running.serve(hyper_util::rt::TokioIo::new(upgraded)).await,
            Err(error) => tracing::debug!(%error, "an exec connection broke off"),
        }
    });
    Ok(proxy::switching(super::client::EXEC_PROTOCOL))
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], super::openapi::document()).into_response()
}

async fn unknown_path(request: Request) -> Failure {
    let path = request.uri().path().to_owned();
    let known = [
        "/v1/status",
        "/v1/nodes",
        "/v1/links",
        "/v1/verdicts",
        "/v1/views",
        "/v1/devices",
        "/v1/episodes",
        "/v1/programs",
        "/v1/exchange",
        "/v1/groups",
        "/v1/invites",
        "/v1/containers",
        "/v1/checkpoints",
        "/v1/tokens",
        "/v1/page/tokens",
        "/v1/page/session",
        "/v1/page/events",
        "/v1/openapi.json",
    ];
    let hint = nearest(&path, known).map_or_else(String::new, |near| format!("; did you mean {near}?"));
    Failure::new(Code::BadRequest, format!("nothing is at {} {path}{hint}", request.method()))
}

async fn unknown_method(request: Request) -> Response {
    let message = format!("{} can't be asked of {}", request.method(), request.uri().path());
    let mut response = Failure::new(Code::BadRequest, message).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// A stream of values as server-sent events; a failure is the last one, of the kind `error`.
fn events<T, S>(stream: S) -> Response
where
    T: Serialize + Send + 'static,
    S: Stream<Item = Result<T, Failure>> + Send + 'static,
{
    let stream = stream.map(|item| {
        let (name, data) = match item {
            Ok(value) => (None, serde_json::to_string(&value)),
            Err(failure) => (
                Some("error"),
                serde_json::to_string(&ErrorBody {
                    code: failure.code.to_string(),
                    message: failure.message,
                }),
            ),
        };
        let event = Event::default().data(data.unwrap_or_default());
        Ok::<Event, Infallible>(match name {
            Some(name) => event.event(name),
            None => event,
        })
    });
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
}

/// The name in a path.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Name {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, Failure> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        name.map(|Path(name)| Name(name)).map_err(|error| {
            Failure::new(Code::BadRequest, format!("the path {}: {}", parts.uri.path(), error.body_text()))
        })
    }
}

/// Query parameters; a wrong one is answered with what would be right.
struct Parameters<T>(T);

impl<T: DeserializeOwned + Send> axum::extract::FromRequestParts<Arc<Agent>> for Parameters<T> {
    type Rejection = Failure;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _: &Arc<Agent>,
    ) -> Result<Self, Failure> {
        read_query(&parts.uri).map(Parameters)
    }
}

pub(super) fn read_query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Failure> {
    let query = Query::<T>::try_from_uri(uri);
    query.map(|Query(value)| value).map_err(|error| {
        Failure::new(Code::BadRequest, format!("the query of {}: {}", uri.path(), error.body_text()))
    })
}

/// The entry for fuzzing: a request's target, with each set of parameters.
#[doc(hidden)]
pub fn read_queries(target: &str) {
    let Ok(uri) = target.parse::<Uri>() else { return };
    let _ = read_query::<RemoveQuery>(&uri);
    let _ = read_query::<LogsQuery>(&uri);
    episodes::read_queries(&uri);
    exchange::read_queries(&uri);
    links::read_queries(target);
    views::read_queries(target);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::openapi::OPERATIONS;

    #[test]
    fn every_route_is_described_and_every_description_has_a_route() {
        let source = include_str!("server.rs");
        let routes = source.split(".with_state(agent)").next().unwrap();
        for operation in OPERATIONS {
            let line = routes.lines().find(|line| line.contains(&format!("\"{}\"", operation.path)));
            let line = line.unwrap_or_else(|| panic!("{} has no route", operation.path));
            assert!(
                line.contains(&format!("{}(", operation.method)),
                "{} {} has no route",
                operation.method,
                operation.path
            );
        }
        for path in routes.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(OPERATIONS.iter().any(|operation| operation.path == path), "{path} is not described");
        }
    }

    #[test]
    fn a_waiting_agent_refuses_with_what_to_run() {
        let answer = crate::commands::block_on(async {
            let router = waiting_router("/var/lib/steadfast".to_owned(), Arc::default());
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("s");
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            tokio::spawn(async move { axum::serve(listener, router).await });
            let client = crate::api::client::Client::new(&socket);
            let status: Result<crate::api::types::Status, Failure> = client.get("/v1/status").await;
            let document: Result<serde_json::Value, Failure> = client.get("/v1/openapi.json").await;
            (status, document)
        })
        .unwrap();
        let refused = answer.0.unwrap_err();
        assert_eq!(refused.code, Code::NotConfigured);
        assert!(refused.message.contains("steadfast init"), "{refused}");
        assert_eq!(answer.1.unwrap()["info"]["title"], "Steadfast");
    }
}
