//! The paths of tokens that last.
//!
//! They decide that only the owner of a node's socket makes tokens: whoever got hold of one can't make a second, so
//! revoking it is enough. The rest is decided by the agent.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};

use super::roles::Caller;
use super::server::{Name, body};
use super::token_types::NewToken;
use crate::agent::Agent;
use crate::codes::Code;
use crate::failure::Failure;

type Shared = State<Arc<Agent>>;
type Answer = Result<Response, Failure>;

pub(super) async fn tokens(State(agent): Shared) -> Answer {
    Ok(axum::Json(agent.shown_tokens().await?).into_response())
}

pub(super) async fn make(
    State(agent): Shared,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Answer {
    only_owner(caller.as_deref(), "steadfast tokens create")?;
    let asked: NewToken = body(request).await?;
    Ok(axum::Json(agent.make_token(&asked).await?).into_response())
}

pub(super) async fn revoke(State(agent): Shared, Name(name): Name) -> Answer {
    Ok(axum::Json(agent.revoke_token(&name).await?).into_response())
}

/// Refuses whoever does not come through the socket.
pub(super) fn only_owner(caller: Option<&Caller>, command: &str) -> Result<(), Failure> {
    if matches!(caller, Some(Caller::Owner)) {
        return Ok(());
    }
    let message = format!("tokens are made by the owner of a node's socket only: `{command}`");
    Err(Failure::new(Code::NotAllowed, message))
}
