//! Traces of what people ask for and of recoveries: one operation, its steps on all nodes under it.
//!
//! It decides what a step is part of. Between nodes that goes with the call ([`steadfast::net::rpc::Trace`]); where a
//! committed row makes another node act, it stands in a row beside that one. Without the feature `otel`, or without
//! `[traces]` in the configuration, there are no steps and nothing is written or sent. Read next: `export`.

#[cfg(feature = "otel")]
mod export;
#[cfg(not(feature = "otel"))]
mod none;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steadfast::net::rpc::Trace;
use steadfast_proto::catalog::ContainerRow;
use steadfast_proto::ids::{ContainerId, Epoch};
use tracing::{Instrument, Span};

#[cfg(feature = "otel")]
use self::export as backend;
#[cfg(not(feature = "otel"))]
use self::none as backend;
pub use backend::{Export, flush, layer};
pub(crate) use backend::{attach, current, failed, is_traced};

use crate::agent::Rows;

/// Whether this binary can send traces.
pub const ARE_BUILT_IN: bool = cfg!(feature = "otel");

/// The header of the W3C trace context.
const TRACEPARENT: &str = "traceparent";

/// What is known of a step: names and values.
pub(crate) type Attributes<'a> = &'a [(&'static str, &'a dyn Display)];

/// A step of what runs here now; none where that is no part of a traced operation.
pub(crate) fn step(name: &str, attributes: Attributes<'_>) -> Span {
    if current().is_some() { backend::child(name, attributes) } else { Span::none() }
}

/// A step of what `parent` names, on another node or earlier; without one a new operation begins.
pub(crate) fn step_of(parent: Option<Trace>, name: &str, attributes: Attributes<'_>) -> Span {
    backend::child_of(parent, name, attributes)
}

/// The operation or step that a request's headers name.
pub(crate) fn parent_of(headers: &HeaderMap) -> Option<Trace> {
    headers.get(TRACEPARENT)?.to_str().ok()?.parse().ok()
}

/// Has a request to another node say which step it is part of.
pub(crate) fn mark(headers: &mut HeaderMap) {
    if let Some(trace) = current()
        && let Ok(value) = HeaderValue::from_str(&trace.to_string())
    {
        headers.insert(TRACEPARENT, value);
    }
}

/// Makes an operation, or a step of the caller's, of each request that asks for work.
pub(crate) async fn tell(request: Request, next: Next) -> Response {
    let template = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let Some(name) = template.and_then(|template| operation(request.method(), template)) else {
        return next.run(request).await;
    };
    let span = step_of(parent_of(request.headers()), &name, &[("url.path", &request.uri().path())]);
    let response = next.run(request).instrument(span.clone()).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        failed(&span, &response.status());
    }
    response
}

/// What people call a request: the command's name.
fn operation(method: &Method, template: &str) -> Option<String> {
    let verb = template.rsplit('/').next()?;
    let name = match (method.as_str(), template) {
        ("POST", "/v1/containers") => "run",
        ("DELETE", "/v1/containers/{name}") => "rm",
        ("POST", "/v1/containers/{name}/checkpoints") => "checkpoint",
        ("POST", "/v1/containers/{name}/stop" | "/v1/containers/{name}/restore") => verb,
        ("POST", "/v1/invites") => "invite",
        ("POST", "/v1/join") => "admit",
        ("POST", "/v1/keys/rotate") => "keys rotate",
        ("POST", _) if template.starts_with("/v1/nodes/{name}/") => verb,
        _ => return None,
    };
    Some(name.to_owned())
}

/// Beside a container's row: what the change to an epoch of it is part of.
#[derive(Debug, Serialize, Deserialize)]
struct CauseRow {
    epoch: u64,
    trace: String,
}

fn key(container: ContainerId) -> String {
    format!("trace/{container}")
}

/// What a transaction that brings a container to this epoch must put too, so that its owner's work is part of this one.
pub(crate) fn cause(container: ContainerId, epoch: Epoch) -> Option<(String, Option<Bytes>)> {
    let row = CauseRow { epoch: epoch.0, trace: current()?.to_string() };
    Some((key(container), Some(Bytes::from(serde_json::to_vec(&row).ok()?))))
}

/// What removes it with its container.
pub(crate) fn forget(rows: &Rows, container: ContainerId) -> Option<(String, Option<Bytes>)> {
    rows.catalog().get_stale(&key(container)).1.map(|_| (key(container), None))
}

/// What the work towards an epoch of a container is part of, if somebody asked for it.
pub(crate) fn caused(rows: &Rows, row: &ContainerRow, epoch: Epoch) -> Option<Trace> {
    let found = rows.catalog().get_stale(&key(row.id)).1?;
    let cause: CauseRow = serde_json::from_slice(&found.value).ok()?;
    if cause.epoch == epoch.0 { cause.trace.parse().ok() } else { None }
}

/// The containers of which somebody asks something of this node's core now, and as part of what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked(Arc<Mutex<BTreeMap<ContainerId, Trace>>>);

impl Asked {
    /// What is done to the container until this is dropped is part of what runs here now.
    pub(crate) fn during(&self, container: ContainerId) -> During {
        if let Some(trace) = current() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(container, trace);
        }
        During { asked: self.clone(), container }
    }

    /// What work on the container is part of.
    pub(crate) fn of(&self, container: ContainerId) -> Option<Trace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&container).copied()
    }
}

/// Ends what [`Asked::during`] began.
#[derive(Debug)]
pub(crate) struct During {
    asked: Asked,
    container: ContainerId,
}

impl Drop for During {
    fn drop(&mut self) {
        self.asked.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.container);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_ask_for_work_are_operations_by_their_commands() {
        let named = |method: &str, template| operation(&method.parse().unwrap(), template);
        assert_eq!(named("POST", "/v1/containers").as_deref(), Some("run"));
        assert_eq!(named("POST", "/v1/containers/{name}/checkpoints").as_deref(), Some("checkpoint"));
        assert_eq!(named("POST", "/v1/nodes/{name}/drain").as_deref(), Some("drain"));
        assert_eq!(named("GET", "/v1/containers"), None);
        assert_eq!(named("POST", "/v1/containers/{name}/exec"), None);
    }

    #[test]
    fn a_header_that_is_no_trace_context_is_ignored() {
        let mut headers = HeaderMap::new();
        assert_eq!(parent_of(&headers), None);
        headers.insert(TRACEPARENT, HeaderValue::from_static("00-nonsense"));
        assert_eq!(parent_of(&headers), None);
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        headers.insert(TRACEPARENT, HeaderValue::from_static(text));
        assert_eq!(parent_of(&headers).unwrap().to_string(), text);
    }
}
