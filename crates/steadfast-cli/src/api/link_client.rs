//! The client's side of links and verdicts: typed calls, and following that survives a broken connection.
//!
//! A follower remembers the generation that it was told last and goes on from there, so it misses nothing that the
//! node still knows and is given the whole otherwise.
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use steadfast_cli::api::client::Client;
//! use steadfast_cli::api::link_client::LinksOf;
//!
//! # async fn example() -> Result<(), steadfast_cli::failure::Failure> {
//! let client = Client::new("/var/lib/steadfast/steadfast.sock");
//! let wanted = LinksOf { peer: Some("beta".to_owned()), ..LinksOf::default() };
//! let mut reports = std::pin::pin!(client.follow_links(wanted));
//! while let Some(report) = reports.next().await {
//!     for link in report?.links {
//!         println!("{} on {}: {}", link.peer, link.network, link.state);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use serde::de::DeserializeOwned;

use super::client::{Client, segment};
use super::link_types::{LinkReport, VerdictReport};
use super::view_types::ViewRecord;
use crate::codes::Code;
use crate::failure::Failure;

/// How long a follower waits before it connects again.
const PAUSE: Duration = Duration::from_millis(300);

/// Of which links.
#[derive(Clone, Debug, Default)]
pub struct LinksOf {
    /// The node whose links they are, by name; the one that is asked when absent.
    pub node: Option<String>,
    /// To one peer, by name.
    pub peer: Option<String>,
    /// On one network, by name; `general` for the peers in general only.
    pub network: Option<String>,
    /// Only in these states, with commas.
    pub state: Option<String>,
    /// `state` or `quality`: which changes are news.
    pub changes: Option<String>,
}

/// What a report says of how to go on.
trait Generation {
    fn generation(&self) -> u64;
}

impl Generation for LinkReport {
    fn generation(&self) -> u64 {
        self.generation
    }
}

impl Generation for VerdictReport {
    fn generation(&self) -> u64 {
        self.generation
    }
}

impl Generation for ViewRecord {
    fn generation(&self) -> u64 {
        self.id
    }
}

type Reports<T> = Pin<Box<dyn Stream<Item = Result<T, Failure>> + Send>>;

impl LinksOf {
    fn query(&self) -> Vec<(&'static str, String)> {
        let given = [
            ("node", &self.node),
            ("peer", &self.peer),
            ("network", &self.network),
            ("state", &self.state),
            ("changes", &self.changes),
        ];
        given.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect()
    }
}

impl Client {
    /// The links of a node, all that are wanted.
    ///
    /// # Errors
    /// The agent can't be reached, or a name is not known.
    pub async fn links(&self, wanted: &LinksOf) -> Result<LinkReport, Failure> {
        self.get(&path("/v1/links", &wanted.query())).await
    }

    /// What changed after `generation`; waits for news at most so long, and then says nothing new.
    ///
    /// # Errors
    /// The agent can't be reached, or a name is not known.
    pub async fn links_since(
        &self,
        wanted: &LinksOf,
        generation: u64,
        wait: Duration,
    ) -> Result<LinkReport, Failure> {
        let mut query = wanted.query();
        query.push(("since", generation.to_string()));
        query.push(("wait", format!("{}ms", wait.as_millis())));
        self.get(&path("/v1/links", &query)).await
    }

    /// Follows links: first the whole, then what changes, over broken connections. It ends with the first refusal.
    pub fn follow_links(&self, wanted: LinksOf) -> impl Stream<Item = Result<LinkReport, Failure>> + use<> {
        self.follow_on("/v1/links/events", wanted.query())
    }

    /// The verdicts that hold on a node, by name; on the one that is asked when absent.
    ///
    /// # Errors
    /// The agent can't be reached, or the name is not known.
    pub async fn verdicts(&self, node: Option<&str>) -> Result<VerdictReport, Failure> {
        let query: Vec<_> = node.map(|node| ("node", node.to_owned())).into_iter().collect();
        self.get(&path("/v1/verdicts", &query)).await
    }

    /// Follows verdicts: first those that hold, then what changes, over broken connections.
    pub fn follow_verdicts(&self) -> impl Stream<Item = Result<VerdictReport, Failure>> + use<> {
        self.follow_on("/v1/verdicts/events", Vec::new())
    }

    /// The newest `limit` views that are kept, oldest first.
    ///
    /// # Errors
    /// The agent can't be reached.
    pub async fn views(&self, limit: u32) -> Result<Vec<ViewRecord>, Failure> {
        self.get(&path("/v1/views", &[("limit", limit.to_string())])).await
    }

    /// Follows the views: first the newest `limit`, then each that is committed, over broken connections.
    pub fn follow_views(&self, limit: u32) -> impl Stream<Item = Result<ViewRecord, Failure>> + use<> {
        self.follow_on("/v1/views/events", vec![("limit", limit.to_string())])
    }

    fn follow_on<T>(
        &self,
        at: &'static str,
        query: Vec<(&'static str, String)>,
    ) -> impl Stream<Item = Result<T, Failure>> + use<T>
    where
        T: DeserializeOwned + Generation + Send + 'static,
    {
        let follower = Follower { client: self.clone(), at, query, told: None, reports: None };
        futures_util::stream::unfold(Some(follower), |follower| async move {
            let mut follower = follower?;
            match follower.next().await {
                Ok(report) => Some((Ok(report), Some(follower))),
                Err(failure) => Some((Err(failure), None)),
            }
        })
    }
}

struct Follower<T> {
    client: Client,
    at: &'static str,
    query: Vec<(&'static str, String)>,
    told: Option<u64>,
    reports: Option<Reports<T>>,
}

impl<T: DeserializeOwned + Generation + Send + 'static> Follower<T> {
    async fn next(&mut self) -> Result<T, Failure> {
        loop {
            let outcome = match &mut self.reports {
                Some(reports) => reports.next().await,
                None => match self.connect().await {
                    Ok(()) => continue,
                    Err(failure) => Some(Err(failure)),
                },
            };
            match outcome {
                Some(Ok(report)) => {
                    self.told = Some(report.generation());
                    return Ok(report);
                }
                // Before the first report nobody has been told anything, and it is said at once what is wrong.
                Some(Err(failure)) if self.told.is_none() || !is_passing(failure.code) => {
                    return Err(failure);
                }
                Some(Err(_)) | None => {
                    self.reports = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let mut query = self.query.clone();
        if let Some(told) = self.told {
            query.push(("since", told.to_string()));
        }
        let reports = self.client.follow::<T>(&path(self.at, &query)).await?;
        self.reports = Some(Box::pin(reports));
        Ok(())
    }
}

/// Whether a failure may pass by itself: the agent, or the one behind it, is starting or cut off.
fn is_passing(code: Code) -> bool {
    matches!(code, Code::AgentUnreachable | Code::PeerUnreachable | Code::NoQuorum | Code::NotConfigured)
}

fn path(at: &str, query: &[(&'static str, String)]) -> String {
    let pairs: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", segment(value))).collect();
    if pairs.is_empty() { at.to_owned() } else { format!("{at}?{}", pairs.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stands_in_the_query() {
        let wanted =
            LinksOf { peer: Some("b&c".into()), state: Some("up,down".into()), ..LinksOf::default() };
        assert_eq!(path("/v1/links", &wanted.query()), "/v1/links?peer=b%26c&state=up%2Cdown");
        assert_eq!(path("/v1/links", &[]), "/v1/links");
    }
}
