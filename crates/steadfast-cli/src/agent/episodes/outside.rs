//! Parties that are no instances and speak the four steps themselves, through any node.
//!
//! What a party says is handed to the nodes that keep the instances it is for; what is said to it is handed to whoever
//! asks in its name just then, and to nobody otherwise: the core says it again when the party asks. So nothing is kept
//! here for a party. It decides nothing about exchanges; `api::exchange` has the words.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use steadfast::net::rpc::{Class, Services};
use steadfast_proto::episode::Input;
use steadfast_proto::exchange::{Frame, Message, Name};
use steadfast_proto::ids::NodeId;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::super::Agent;
use super::Room;
use super::rows::{HOMES, HomesRow};
use crate::codes::Code;
use crate::failure::Failure;

/// The RPC service through which a party's words reach the nodes that they are for.
const SERVICE_PARTY: u8 = 29;
/// How long answers to what was said are waited for: those of an instance that takes nothing now never come.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// How long a party that does not want to wait is answered after: the node that keeps an instance looks at its disk.
const LOOK: Duration = Duration::from_millis(200);
/// How long one node waits for another in one call; a party that has gone occupies a place no longer.
const ROUND: Duration = Duration::from_secs(5);
/// How long what comes together is waited for.
const TOGETHER: Duration = Duration::from_millis(5);
/// How much longer than its work a call may take.
const CALL_SLACK: Duration = Duration::from_secs(3);
/// How many requests in the name of parties one node serves at the same time.
const REQUESTS_MAX: usize = 64;
/// Groups of messages that wait for one request at most.
const QUEUE: usize = 64;
/// How many bytes one answer carries, about.
const ANSWER_BYTES: usize = 4 << 20;

/// Who asks in the name of which party just now.
#[derive(Clone)]
pub(super) struct Parties {
    asking: Arc<Mutex<Asking>>,
    places: Arc<Semaphore>,
}

#[derive(Default)]
struct Asking {
    next: u64,
    by_party: BTreeMap<Name, Vec<Listener>>,
}

/// Where what is said goes, and the number of the request.
type Listener = (u64, mpsc::Sender<Vec<Message>>);

/// One request in the name of a party.
struct Listening {
    parties: Parties,
    party: Name,
    id: u64,
    said: mpsc::Receiver<Vec<Message>>,
}

impl Parties {
    pub(super) fn new() -> Parties {
        Parties { asking: Arc::default(), places: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }

    /// Tells those who ask in the name of the party.
    pub(super) fn tell(&self, party: &Name, messages: &[Message]) {
        for (_, listener) in self.asking().by_party.get(party).into_iter().flatten() {
            // Who has too much already, or has gone, is told again when it asks again.
            let _ = listener.try_send(messages.to_vec());
        }
    }

    fn listen(&self, party: &Name) -> Listening {
        let (listener, said) = mpsc::channel(QUEUE);
        let mut asking = self.asking();
        asking.next += 1;
        let id = asking.next;
        asking.by_party.entry(party.clone()).or_default().push((id, listener));
        drop(asking);
        Listening { parties: self.clone(), party: party.clone(), id, said }
    }

    fn asking(&self) -> MutexGuard<'_, Asking> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut asking = self.parties.asking();
        if let Some(listeners) = asking.by_party.get_mut(&self.party) {
            listeners.retain(|(id, _)| *id != self.id);
            if listeners.is_empty() {
                asking.by_party.remove(&self.party);
            }
        }
    }
}

/// What a party wants of one node.
#[derive(Serialize, Deserialize)]
struct Asked {
    party: Name,
    /// For how long what is said to it is waited for; it says something itself without.
    wait_ms: Option<u64>,
    frame: Vec<u8>,
}

/// What was said to a party.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// What.
    pub(crate) messages: Vec<Message>,
    /// The nodes that did not answer: what they have to say is missing.
    pub(crate) silent: Vec<NodeId>,
}

impl Agent {
    /// Says this in the name of a party, to the nodes that it is for; gives the answers that are there now.
    pub(crate) async fn say_outside(&self, party: &Name, messages: Vec<Message>) -> Result<Heard, Failure> {
        let _place = self.place_outside()?;
        if self.outside_homes().await?.is_none() {
            return Err(self.episodes.no_program(first_program(&messages)));
        }
        let mut by_node: BTreeMap<NodeId, Vec<Message>> = BTreeMap::new();
        for message in messages {
            let home = self.episodes.home(message.to()).unwrap_or(self.id);
            by_node.entry(home).or_default().push(message);
        }
        let asked = by_node.into_iter().map(|(node, messages)| async move {
            (node, self.ask_outside(node, party, messages, None).await)
        });
        let mut heard = Heard::default();
        for (node, said) in futures_util::future::join_all(asked).await {
            match said {
                Some(said) => heard.messages.extend(said),
                None => heard.silent.push(node),
            }
        }
        Ok(heard)
    }

    /// What is said to a party by instances of all nodes, as soon as there is something.
    pub(crate) async fn hear_outside(&self, party: &Name, wait: Duration) -> Result<Heard, Failure> {
        let _place = self.place_outside()?;
        let until = Instant::now() + wait.max(LOOK);
        loop {
            let nodes: Vec<NodeId> = self.outside_homes().await?.unwrap_or_default().into_iter().collect();
            let begun = Instant::now();
            let wait = until.saturating_duration_since(begun).min(ROUND);
            let heard = self.hear_round(party, &nodes, wait).await;
            if !heard.messages.is_empty() || Instant::now() >= until {
                return Ok(heard);
            }
            // Nodes that can say nothing yet are not asked without a pause.
            tokio::time::sleep_until((begun + LOOK).min(until)).await;
        }
    }

    async fn hear_round(&self, party: &Name, nodes: &[NodeId], wait: Duration) -> Heard {
        let mut asked: FuturesUnordered<_> = nodes
            .iter()
            .map(|node| async move { (*node, self.ask_outside(*node, party, Vec::new(), Some(wait)).await) })
            .collect();
        let mut heard = Heard::default();
        while let Some((node, said)) = if heard.messages.is_empty() {
            asked.next().await
        } else {
            tokio::time::timeout(TOGETHER, asked.next()).await.unwrap_or_default()
        } {
            match said {
                Some(said) => heard.messages.extend(said),
                None => heard.silent.push(node),
            }
        }
        heard
    }

    async fn ask_outside(
        &self,
        node: NodeId,
        party: &Name,
        messages: Vec<Message>,
        wait: Option<Duration>,
    ) -> Option<Vec<Message>> {
        if node == self.id {
            return self.episodes.serve_party(party, messages, wait).await.ok();
        }
        let frame = wrapped(messages);
        let wait_ms = wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let body = postcard::to_extend(&Asked { party: party.clone(), wait_ms, frame }, Vec::new()).ok()?;
        let call_max = wait.unwrap_or(ANSWER_MAX) + CALL_SLACK;
        let call = self.peers.call(node, Class::Events, SERVICE_PARTY, Bytes::from(body), call_max);
        let answer = call.await.inspect_err(|error| tracing::debug!(%node, %error, "a node can't be asked"));
        Frame::decode(&answer.ok()?).ok().map(|frame| frame.messages)
    }

    /// Who keeps instances, if there are programs.
    async fn outside_homes(&self) -> Result<Option<BTreeSet<NodeId>>, Failure> {
        if let Some(known) = self.episodes.all_homes() {
            return Ok(Some(known));
        }
        // An agent that has just begun may not have them yet.
        let known = self.rows.get_at::<HomesRow>(HOMES).await?;
        Ok(known.map(|(homes, _)| homes.nodes.into_iter().collect()))
    }

    fn place_outside(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Failure> {
        self.episodes.inner.parties.places.try_acquire().map_err(|_| {
            let message = format!(
                "{REQUESTS_MAX} requests of outside parties are being served by this node, which is the limit; ask another node, or try again"
            );
            Failure::new(Code::TooMany, message)
        })
    }
}

impl Room {
    /// Answers other nodes.
    pub(super) fn offer_parties(&self, services: &Services) {
        let room = self.clone();
        services.register(SERVICE_PARTY, move |_, body| {
            let room = room.clone();
            Box::pin(async move {
                let asked: Asked = postcard::from_bytes(&body).map_err(|error| error.to_string())?;
                let frame = Frame::decode(&asked.frame).map_err(|error| error.to_string())?;
                let wait = asked.wait_ms.map(Duration::from_millis).map(|wait| wait.min(ROUND));
                let said = room.serve_party(&asked.party, frame.messages, wait).await;
                said.map(|said| Bytes::from(wrapped(said))).map_err(|failure| failure.message)
            })
        });
    }

    /// Tells the instances that this node keeps, or asks them what they have to say to the party.
    async fn serve_party(
        &self,
        party: &Name,
        messages: Vec<Message>,
        wait: Option<Duration>,
    ) -> Result<Vec<Message>, Failure> {
        let keepers = self.all_opened().await?;
        if keepers.is_empty() {
            return Ok(Vec::new());
        }
        let mut listening = self.inner.parties.listen(party);
        let mut awaited: Vec<Awaited> = messages.iter().filter_map(Awaited::of).collect();
        let (input, patience) = match wait {
            Some(wait) => (Input::Polled(party.clone()), wait),
            None => (Input::Outside { party: party.clone(), messages }, ANSWER_MAX),
        };
        // What is for an instance of the other one is not heeded.
        keepers.iter().for_each(|keeper| keeper.input(input.clone()));
        if wait.is_none() && awaited.is_empty() {
            return Ok(Vec::new());
        }
        let until = Instant::now() + patience;
        let (mut said, mut bytes) = (Vec::new(), 0);
        loop {
            let is_enough = if wait.is_some() { !said.is_empty() } else { awaited.is_empty() };
            let until = if is_enough { until.min(Instant::now() + TOGETHER) } else { until };
            let Ok(Some(more)) = tokio::time::timeout_at(until, listening.said.recv()).await else { break };
            for message in more {
                awaited.retain(|one| !one.is_answered_by(&message));
                bytes += message.weight();
                // A request that was sent again meanwhile brings the same words twice.
                if !said.contains(&message) {
                    said.push(message);
                }
            }
            if bytes > ANSWER_BYTES {
                break;
            }
        }
        Ok(said)
    }
}

/// Something a party said to which an answer comes.
enum Awaited {
    Ack(Name, u64),
    ConfirmAck(Name, u64),
    Confirm(Name, u64),
}

impl Awaited {
    fn of(message: &Message) -> Option<Awaited> {
        match message {
            Message::Msg { stream, seq, .. } => Some(Awaited::Ack(stream.to.clone(), *seq)),
            Message::Confirm { span } => Some(Awaited::ConfirmAck(span.stream.to.clone(), span.first)),
            Message::Ack { span, .. } => Some(Awaited::Confirm(span.stream.from.clone(), span.first)),
            Message::ConfirmAck { .. }
            | Message::Refused { .. }
            | Message::Close { .. }
            | Message::Closed { .. } => None,
        }
    }

    fn is_answered_by(&self, message: &Message) -> bool {
        match (self, message) {
            (Awaited::Ack(to, seq), Message::Ack { span, .. }) => {
                span.stream.to == *to && span.first <= *seq && *seq <= span.last
            }
            (Awaited::Ack(to, seq), Message::Refused { stream, seq: refused, .. }) => {
                stream.to == *to && refused == seq
            }
            (Awaited::ConfirmAck(to, first), Message::ConfirmAck { span }) => {
                span.stream.to == *to && span.first == *first
            }
            (Awaited::Confirm(from, first), Message::Confirm { span }) => {
                span.stream.from == *from && span.first == *first
            }
            (Awaited::Ack(..) | Awaited::ConfirmAck(..) | Awaited::Confirm(..), _) => false,
        }
    }
}

fn wrapped(messages: Vec<Message>) -> Vec<u8> {
    // A party has no life and no session: its streams alone count.
    Frame { life: 0, to_life: 0, number: 0, messages }.encode()
}

fn first_program(messages: &[Message]) -> &str {
    messages.first().map_or(Name::OUTSIDE, |message| message.to().program())
}
