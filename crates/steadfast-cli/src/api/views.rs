//! The paths of the views that are kept: the list, and the stream.
//!
//! Both give records of this node's copy of the catalog, which is old while there is no majority. A stream goes on
//! after the view that its follower was told last. They decide nothing.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::convert;
use super::links::{event, last_event_id, sse};
use super::server::read_query;
use super::types::ErrorBody;
use super::view_types::ViewRecord;
use crate::agent::{Agent, WantedViews};
use crate::failure::Failure;

type Shared = State<Arc<Agent>>;
type Answer = Result<Response, Failure>;

/// Of which views.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ViewsQuery {
    /// The newest so many; all that are kept when absent. Without effect with `since`.
    limit: Option<u32>,
    /// All after this one.
    since: Option<u64>,
}

pub(super) async fn views(State(agent): Shared, request: Request) -> Answer {
    let query: ViewsQuery = read_query(request.uri())?;
    let names = agent.rows.names();
    let kept = agent.kept_views(wanted(&query, None))?;
    let shown: Vec<ViewRecord> = kept.iter().map(|record| convert::view_record(record, &names)).collect();
    Ok(axum::Json(shown).into_response())
}

pub(super) async fn views_events(State(agent): Shared, request: Request) -> Answer {
    let query: ViewsQuery = read_query(request.uri())?;
    let told = last_event_id(request.headers())?;
    let follow = agent.follow_views(wanted(&query, told))?;
    Ok(sse(futures_util::stream::unfold(Some((agent, follow)), |state| async move {
        let (agent, mut follow) = state?;
        match follow.next().await {
            Ok(record) => {
                let shown = convert::view_record(&record, &agent.rows.names());
                Some((event(shown.id, &shown), Some((agent, follow))))
            }
            Err(failure) => Some((last_event(&failure), None)),
        }
    })))
}

/// The event that says why a stream ends.
fn last_event(failure: &Failure) -> Result<Event, Infallible> {
    let body = ErrorBody { code: failure.code.to_string(), message: failure.message.clone() };
    let data = serde_json::to_string(&body).unwrap_or_default();
    Ok(Event::default().event("error").data(data))
}

fn wanted(query: &ViewsQuery, told: Option<u64>) -> WantedViews {
    match (told.or(query.since), query.limit) {
        (Some(told), _) => WantedViews::Since(told),
        (None, Some(limit)) => WantedViews::Newest(usize::try_from(limit).unwrap_or(usize::MAX)),
        (None, None) => WantedViews::Since(0),
    }
}

/// The entry for fuzzing: a request's target, with each set of parameters.
#[doc(hidden)]
pub fn read_queries(target: &str) {
    let Ok(uri) = target.parse() else { return };
    if let Ok(query) = read_query::<ViewsQuery>(&uri) {
        let _ = wanted(&query, None);
    }
}
