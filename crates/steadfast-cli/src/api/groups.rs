//! The paths of process groups.
//!
//! They decide nothing: every refusal comes from the agent.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::server::{Name, body};
use crate::agent::Agent;
use crate::failure::Failure;

type Shared = State<Arc<Agent>>;
type Answer = Result<Response, Failure>;

pub(super) async fn groups(State(agent): Shared) -> Answer {
    Ok(Json(agent.shown_groups().await?).into_response())
}

pub(super) async fn group(State(agent): Shared, Name(name): Name) -> Answer {
    Ok(Json(agent.shown_group(&name).await?).into_response())
}

pub(super) async fn swap(State(agent): Shared, Name(name): Name, request: Request) -> Answer {
    let request = body(request).await?;
    Ok(Json(agent.swap_group(&name, &request).await?).into_response())
}

pub(super) async fn request(State(agent): Shared, Name(name): Name) -> Answer {
    Ok(Json(agent.shown_group(&name).await?.request).into_response())
}

pub(super) async fn ask(State(agent): Shared, Name(name): Name, request: Request) -> Answer {
    let request = body(request).await?;
    Ok(Json(agent.ask_group(&name, &request).await?).into_response())
}

pub(super) async fn withdraw(State(agent): Shared, Name(name): Name) -> Answer {
    Ok(Json(agent.withdraw_request(&name).await?).into_response())
}

pub(super) async fn stand_by(State(agent): Shared, Name(name): Name, request: Request) -> Answer {
    let request = body(request).await?;
    Ok(Json(agent.hear_standby(&name, &request).await?).into_response())
}
