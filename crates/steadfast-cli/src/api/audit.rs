//! Every change that somebody asks for leaves an event: who, from where, what, and what came of it.
//!
//! It stands around all paths and decides nothing. What one agent passes on to another is told by the one that it was
//! asked of, which knows who asked. Whoever only looks leaves nothing.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use steadfast_proto::events::{EventType, Fields, Value};

use super::openapi::OPERATIONS;
use super::roles::{Caller, Guest, Who};
use crate::agent::Agent;
use crate::codes::Code;

/// The type of what is told.
const KIND: &str = "audit.change";

/// Tells of a request after it was answered, unless it only looked.
pub(super) async fn tell(State(agent): State<Arc<Agent>>, request: Request, next: Next) -> Response {
    let looks = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let caller = request.extensions().get::<Caller>().cloned();
    let template = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let (method, path) = (request.method().as_str().to_ascii_lowercase(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let Some(caller) = caller.filter(|caller| !looks && !matches!(caller, Caller::Member(_))) else {
        return response;
    };
    let summary = OPERATIONS
        .iter()
        .find(|operation| operation.method == method && Some(operation.path) == template.as_deref())
        .map_or_else(|| method.clone(), |operation| operation.summary.to_owned());
    let outcome = match response.extensions().get::<Code>() {
        Some(code) => code.to_string(),
        None if response.status().is_client_error() || response.status().is_server_error() => {
            response.status().as_u16().to_string()
        }
        None => "done".to_owned(),
    };
    let (who, from) = words(&caller);
    let fields = [("who", who), ("from", from), ("verb", summary), ("what", path), ("outcome", outcome)];
    let fields: Fields =
        fields.into_iter().map(|(name, text)| (name.to_owned(), Value::Text(text))).collect();
    if let Ok(kind) = KIND.parse::<EventType>() {
        agent.events.emit(&kind, &fields);
    }
    response
}

/// Who asked, and through which door.
fn words(caller: &Caller) -> (String, String) {
    match caller {
        Caller::Owner => ("the owner of the agent's socket".to_owned(), "this machine".to_owned()),
        Caller::Member(_) => ("a member".to_owned(), "the cluster".to_owned()),
        Caller::Guest(Guest { who, role, from, .. }) => {
            let who = match who {
                Who::Session => format!("a session with the role {role}"),
                Who::Token(name) => format!("the token {name} with the role {role}"),
                Who::Certificate(name) => format!("the certificate of {name} with the role {role}"),
            };
            (who, from.map_or_else(|| "the page's address".to_owned(), |from| from.to_string()))
        }
    }
}
