//! The client's side of events: following them over broken connections without missing what the cluster still knows.
//!
//! A follower remembers the place after the last event that it gave and goes on from there, on whichever node answers.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use serde_json::{Map, Value};

use super::client::{Client, segment};
use super::event_types::{EmitRequest, Emitted, EventsStatus};
use super::types::Done;
use crate::codes::Code;
use crate::events::cloud::CloudEvent;
use crate::failure::Failure;

/// How long a follower waits before it connects again.
const PAUSE: Duration = Duration::from_millis(300);

/// Which events.
#[derive(Clone, Debug, Default)]
pub struct EventsOf {
    /// What they must be like, in the filter language.
    pub filter: Option<String>,
    /// From when on: `oldest`, how long ago, or a time.
    pub since: Option<String>,
}

type Events = Pin<Box<dyn Stream<Item = Result<(String, CloudEvent), Failure>> + Send>>;

struct Follower {
    client: Client,
    wanted: EventsOf,
    after: Option<String>,
    events: Option<Events>,
}

impl Client {
    /// Follows events, over broken connections. What can't be asked for ends it.
    pub fn follow_events(&self, wanted: EventsOf) -> impl Stream<Item = Result<CloudEvent, Failure>> + use<> {
        let follower = Follower { client: self.clone(), wanted, after: None, events: None };
        futures_util::stream::unfold(Some(follower), |follower| async move {
            let mut follower = follower?;
            match follower.next().await {
                Ok(event) => Some((Ok(event), Some(follower))),
                Err(failure) => Some((Err(failure), None)),
            }
        })
    }

    /// Tells that something happened.
    ///
    /// # Errors
    /// The type or a field can't be taken, or the agent can't be reached; nobody was told.
    pub async fn emit_event(&self, kind: &str, fields: Map<String, Value>) -> Result<Done, Failure> {
        self.emit_events(vec![Emitted { kind: kind.to_owned(), fields }]).await
    }

    /// Tells that all of this happened, in this order; at most 1,000 at once.
    ///
    /// # Errors
    /// A type or a field can't be taken, or the agent can't be reached; nobody was told of any.
    pub async fn emit_events(&self, said: Vec<Emitted>) -> Result<Done, Failure> {
        self.post("/v1/events", &EmitRequest::Many(said)).await
    }

    /// What the node does for events.
    ///
    /// # Errors
    /// The agent can't be reached.
    pub async fn events_status(&self) -> Result<EventsStatus, Failure> {
        self.get("/v1/events/status").await
    }
}

impl Follower {
    async fn next(&mut self) -> Result<CloudEvent, Failure> {
        loop {
            if self.events.is_none() {
                match self.client.follow_with_ids(&self.path()).await {
                    Ok(events) => self.events = Some(Box::pin(events)),
                    Err(failure) if failure.code != Code::AgentUnreachable || self.after.is_none() => {
                        return Err(failure);
                    }
                    Err(_) => {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                }
            }
            let Some(events) = self.events.as_mut() else { continue };
            match events.next().await {
                Some(Ok((id, event))) => {
                    self.after = Some(id);
                    return Ok(event);
                }
                Some(Err(failure)) if failure.code != Code::AgentUnreachable => return Err(failure),
                Some(Err(_)) | None => {
                    self.events = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn path(&self) -> String {
        let given = [
            ("filter", self.wanted.filter.as_ref()),
            ("since", self.wanted.since.as_ref().filter(|_| self.after.is_none())),
            ("after", self.after.as_ref()),
        ];
        let query =
            given.iter().filter_map(|(name, value)| Some(format!("{name}={}", segment(value.as_ref()?))));
        format!("/v1/events?{}", query.collect::<Vec<_>>().join("&"))
    }
}
