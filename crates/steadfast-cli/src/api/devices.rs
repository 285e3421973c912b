//! The paths of block devices and their names.
//!
//! They decide nothing: every refusal comes from the agent.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::server::body;
use crate::agent::Agent;
use crate::failure::Failure;

type Shared = State<Arc<Agent>>;
type Answer = Result<Response, Failure>;

pub(super) async fn devices(State(agent): Shared) -> Answer {
    Ok(Json(agent.shown_devices()).into_response())
}

pub(super) async fn name(State(agent): Shared, request: Request) -> Answer {
    let request = body(request).await?;
    Ok(Json(agent.name_device(request).await?).into_response())
}

pub(super) async fn rename(State(agent): Shared, request: Request) -> Answer {
    let request = body(request).await?;
    Ok(Json(agent.rename_device(request).await?).into_response())
}

pub(super) async fn unname(State(agent): Shared, request: Request) -> Answer {
    let request = body(request).await?;
    Ok(Json(agent.unname_device(request).await?).into_response())
}
