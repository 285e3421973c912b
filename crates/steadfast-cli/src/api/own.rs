//! What a container's program is served through the socket inside the container: itself, its links, its events.
//!
//! The same paths, JSON and streams as the node's own socket has, narrowed to what concerns this one container; every
//! other request is refused, so that nobody inside sees another container or changes anything. No role applies here.
//! Who listens is `agent::inside`; which events concern a container is `agent::events::own`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use steadfast_proto::catalog::{ContainerRow, Key};
use steadfast_proto::events::Value;
use steadfast_proto::ids::ContainerId;

use super::{events, links};
use crate::agent::Agent;
use crate::codes::Code;
use crate::failure::Failure;

/// Events that a container may emit at once, and per second in the long run.
const EMITTED_BURST: f64 = 200.0;
const EMITTED_PER_SECOND: f64 = 50.0;
/// The field that says which container an event is of.
const CONTAINER: &str = "container";

type Shared = State<Arc<Agent>>;
type Answer = Result<Response, Failure>;

/// Whose socket it is.
#[derive(Clone)]
struct Own {
    id: ContainerId,
    allowance: Arc<Mutex<Allowance>>,
}

/// How many events may be emitted now.
#[derive(Debug)]
struct Allowance {
    left: f64,
    at: Instant,
}

/// What is served to the programs of this container.
pub(crate) fn router(agent: Arc<Agent>, id: ContainerId) -> Router {
    let allowance = Allowance { left: EMITTED_BURST, at: Instant::now() };
    let own = Own { id, allowance: Arc::new(Mutex::new(allowance)) };
    Router::new()
        .route("/v1/containers", get(container))
        .route("/v1/links", get(links_here))
        .route("/v1/links/events", get(links_here_events))
        .route("/v1/events", get(own_events).post(emit))
        .fallback(refuse)
        .method_not_allowed_fallback(refuse)
        .layer(Extension(own))
        .with_state(agent)
}

/// The list of containers, as far as it concerns this one.
async fn container(State(agent): Shared, Extension(own): Extension<Own>) -> Answer {
    let (row, version) = own.row(&agent)?;
    Ok(axum::Json([agent.shown(&row, version)]).into_response())
}

async fn links_here(agent: Shared, request: Request) -> Answer {
    refuse_other_nodes(&request)?;
    links::links(agent, request).await
}

async fn links_here_events(agent: Shared, request: Request) -> Answer {
    refuse_other_nodes(&request)?;
    links::links_events(agent, request).await
}

async fn own_events(State(agent): Shared, Extension(own): Extension<Own>, request: Request) -> Answer {
    let (row, _) = own.row(&agent)?;
    events::stream(&agent, &request, Some(&row.spec.name))
}

async fn emit(State(agent): Shared, Extension(own): Extension<Own>, request: Request) -> Answer {
    let (row, _) = own.row(&agent)?;
    let mut said = events::emitted(request).await?;
    if said.iter().any(|(_, fields)| fields.contains_key(CONTAINER)) {
        let message = format!(
            "fields: {CONTAINER:?} can't be given: an event emitted in a container is always that container's"
        );
        return Err(Failure::new(Code::BadRequest, message));
    }
    own.take_allowance(said.len())?;
    for (_, fields) in &mut said {
        fields.insert(CONTAINER.to_owned(), Value::Text(row.spec.name.clone()));
    }
    events::tell(&agent, said)
}

async fn refuse(request: Request) -> Failure {
    let message = format!(
        "{} {} is not possible from inside a container: there is GET /v1/containers, /v1/links, /v1/links/events and /v1/events of the container itself, and POST /v1/events; give any other command on a node",
        request.method(),
        request.uri().path()
    );
    Failure::new(Code::NotAllowed, message)
}

/// Another node's links are none of a container's.
fn refuse_other_nodes(request: &Request) -> Result<(), Failure> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(request.uri());
    if query.is_ok_and(|Query(all)| all.iter().any(|(name, _)| name == "node")) {
        let message = "node: a program in a container hears of the links of the node that it runs on, and of no other's; leave the parameter out";
        return Err(Failure::new(Code::NotAllowed, message));
    }
    Ok(())
}

impl Own {
    /// Its row, as this node has it: what a program is told of itself needs no majority.
    fn row(&self, agent: &Agent) -> Result<(ContainerRow, u64), Failure> {
        let row = agent.rows.get_stale::<ContainerRow>(&Key::Container(self.id));
        row.ok_or_else(|| Failure::new(Code::ContainerNotFound, "this container has been removed"))
    }

    fn take_allowance(&self, events: usize) -> Result<(), Failure> {
        let mut allowance = self.allowance.lock().unwrap_or_else(PoisonError::into_inner);
        if allowance.take(events, Instant::now()) {
            return Ok(());
        }
        let message = format!(
            "a container may emit {EMITTED_BURST} events at once and {EMITTED_PER_SECOND} a second in the long run; nothing was told, try again in a moment"
        );
        Err(Failure::new(Code::NodeBusy, message))
    }
}

impl Allowance {
    fn take(&mut self, events: usize, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * EMITTED_PER_SECOND).min(EMITTED_BURST);
        self.at = now;
        let wanted = f64::from(u32::try_from(events).unwrap_or(u32::MAX));
        let is_left = self.left >= wanted;
        if is_left {
            self.left -= wanted;
        }
        is_left
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_ends_with_the_burst_and_time_brings_more() {
        let start = Instant::now();
        let mut allowance = Allowance { left: EMITTED_BURST, at: start };
        assert_eq!((0..1_000).filter(|_| allowance.take(1, start)).count(), 200);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..1_000).filter(|_| allowance.take(1, later)).count(), 50);
        let much_later = start + Duration::from_secs(3_600);
        assert!(!allowance.take(201, much_later), "more at once than possible");
        assert!(allowance.take(200, much_later) && !allowance.take(1, much_later));
    }

    #[test]
    fn links_of_other_nodes_are_asked_for_on_a_node() {
        let ask = |target: &str| {
            let request = Request::builder().uri(target).body(axum::body::Body::empty()).unwrap();
            refuse_other_nodes(&request).map_err(|failure| failure.code)
        };
        assert_eq!(ask("/v1/links?peer=beta&wait=1s"), Ok(()));
        assert_eq!(ask("/v1/links?peer=beta&node=beta"), Err(Code::NotAllowed));
        assert_eq!(ask("/v1/links?n%6fde=beta"), Err(Code::NotAllowed));
    }
}
