//! The links of the other nodes, as each tells them itself: one stream from every member, while somebody looks.
//!
//! A node that can't be asked, or is no member any more, has no links here: what is old is not shown as if it were new.
//! It decides nothing and asks for nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use steadfast::net::rpc::Peers;
use steadfast_proto::ids::NodeId;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::super::Agent;
use super::sections::shown_links;
use crate::api::client::take_event;
use crate::api::link_types::{Link, LinkReport};
use crate::api::types::Node;

/// How long to wait before a node is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// Whoever says nothing for so long is not there: streams are kept alive every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(40);
/// The longest report, in bytes.
const REPORT_BYTES_MAX: usize = 4 << 20;

/// The streams of the other nodes.
#[derive(Debug)]
pub(super) struct Others {
    tasks: JoinSet<()>,
    followed: BTreeMap<String, AbortHandle>,
    told: Told,
    /// This node's own, as they were when they last changed by enough to be told.
    own: BTreeMap<(String, String), Link>,
}

/// What they told; clones are the same.
#[derive(Clone, Debug)]
struct Told {
    links: Arc<Mutex<BTreeMap<String, Arc<Value>>>>,
    changes: watch::Sender<u64>,
}

impl Default for Others {
    fn default() -> Others {
        let told = Told { links: Arc::default(), changes: watch::Sender::new(0) };
        Others { tasks: JoinSet::new(), followed: BTreeMap::new(), told, own: BTreeMap::new() }
    }
}

impl Others {
    /// Follows every node that is a member and no other.
    pub(super) fn follow(&mut self, agent: &Agent, nodes: &[Node]) {
        while self.tasks.try_join_next().is_some() {}
        let is_followed =
            |node: &&Node| !node.this && ["member", "suspected", "draining"].contains(&node.state.as_str());
        let members: BTreeMap<&str, &str> =
            nodes.iter().filter(is_followed).map(|node| (node.name.as_str(), node.id.as_str())).collect();
        self.followed.retain(|name, task| {
            let stays = members.contains_key(name.as_str());
            if !stays {
                task.abort();
                self.told.forget(name);
            }
            stays
        });
        for (name, id) in members {
            let Ok(id) = id.parse::<NodeId>() else { continue };
            if !self.followed.contains_key(name) {
                let following = follow(agent.peers.clone(), id, name.to_owned(), self.told.clone());
                self.followed.insert(name.to_owned(), self.tasks.spawn(following));
            }
        }
    }

    /// Takes over this node's own links; figures of one that has not changed stay as they were told, as with the others'.
    pub(super) fn own_links(&mut self, links: impl Iterator<Item = Link>) {
        let mut before = std::mem::take(&mut self.own);
        self.own = links
            .map(|link| {
                let key = (link.peer.clone(), link.network.clone());
                let known = before.remove(&key).filter(|known| known.generation == link.generation);
                (key, known.unwrap_or(link))
            })
            .collect();
    }

    /// This node's own links by peer and network.
    pub(super) fn own(&self) -> &BTreeMap<(String, String), Link> {
        &self.own
    }

    /// The links of the others by node.
    pub(super) fn links(&self) -> BTreeMap<String, Arc<Value>> {
        let told = self.told.lock();
        let followed = told.iter().filter(|(name, _)| self.followed.contains_key(*name));
        followed.map(|(name, links)| (name.clone(), Arc::clone(links))).collect()
    }

    /// Counts the changes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.told.changes.subscribe()
    }
}

impl Told {
    fn tell(&self, name: &str, links: Value) {
        self.lock().insert(name.to_owned(), Arc::new(links));
        self.changes.send_modify(|count| *count += 1);
    }

    fn forget(&self, name: &str) {
        if self.lock().remove(name).is_some() {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Value>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn follow(peers: Peers, id: NodeId, name: String, told: Told) {
    loop {
        if let Err(why) = follow_once(&peers, id, &name, &told).await {
            tracing::debug!(node = name, why, "its links can't be shown now");
        }
        told.forget(&name);
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow_once(peers: &Peers, id: NodeId, name: &str, told: &Told) -> Result<(), String> {
    let stream = peers.connect_api(id).await.map_err(|error| error.to_string())?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let mut connection = JoinSet::from_iter([async move {
        // How it ends is seen by whoever reads the answer.
        let _ = connection.await;
    }]);
    let request =
        hyper::Request::get("/v1/links/events").header(HOST, "steadfast").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("it answers with {}", answer.status()));
    }
    let outcome = read(answer.into_body(), name, told).await;
    connection.abort_all();
    outcome
}

async fn read(mut body: Incoming, name: &str, told: &Told) -> Result<(), String> {
    let mut pending = Vec::new();
    let mut links: BTreeMap<(String, String), Link> = BTreeMap::new();
    loop {
        let frame = tokio::time::timeout(SILENCE_MAX, body.frame()).await;
        let frame = frame.map_err(|_| "it has gone silent".to_owned())?;
        let Some(frame) = frame else { return Ok(()) };
        if let Ok(bytes) = frame.map_err(|error| error.to_string())?.into_data() {
            pending.extend_from_slice(&bytes);
        }
        if pending.len() > REPORT_BYTES_MAX {
            return Err("it sent a report of more than 4 MiB".to_owned());
        }
        while let Some(event) = take_event::<LinkReport>(&mut pending) {
            let Some(report) = event.map_err(|failure| failure.message)? else { continue };
            if report.whole {
                links.clear();
            }
            links.extend(
                report.links.into_iter().map(|link| ((link.peer.clone(), link.network.clone()), link)),
            );
            told.tell(name, shown_links(links.values()));
        }
    }
}
