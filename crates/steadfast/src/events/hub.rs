//! The loop around the core of events: consumers, producers and other nodes meet here.
//!
//! Whoever brings an input steps the core under one lock and carries out at once what follows, so an event waits for
//! nobody between its producer and its consumers. Producers are told by a task of their own, since one may have to wait
//! for the operating system; other nodes by one task each, in order. It decides nothing about who is told of what:
//! that is [`steadfast_proto::events`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use steadfast_proto::events::{
    Batch, ConsumerId, Delivery, EventType, Events, Fields, Input, Interest, Life, Message, Occurrence,
    Order, Refusal, Settings, Since, Status, Topic, Value,
};
use steadfast_proto::ids::{Incarnation, NodeId};
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;
use tokio::sync::{Notify, mpsc, watch};

use super::now_unix_us;
use super::producers::{Producers, Report, Reports, is_local};
use crate::net::datagram;
use crate::net::rpc::{Class, Peers, Services};

/// The RPC service that takes other nodes' messages about events.
pub const SERVICE: u8 = 4;

/// How long another node may take to accept a message.
const SEND_MAX: Duration = Duration::from_secs(2);
/// How many deliveries a consumer takes under one lock.
const TAKE_MAX: usize = 512;
/// How many messages may wait for one node; the core's own bounds are reached long before.
const QUEUE_MAX: usize = 8_192;

/// What a hub is made of.
pub struct Parts {
    /// This node, in this life.
    pub life: Life,
    /// Bounds and times.
    pub settings: Settings,
    /// To call other nodes.
    pub peers: Peers,
    /// To be called by them.
    pub services: Services,
    /// What watches this machine.
    pub producers: Producers,
    /// What they see.
    pub reports: Reports,
}

/// One node's events; clones are the same hub.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    peers: Peers,
    producers: Producers,
    orders: mpsc::UnboundedSender<Order>,
    /// The core's deadline is sooner than the one that is waited for.
    sooner: Notify,
    /// In which life this node is a member, or has what it needs to become one.
    provisioned: watch::Sender<Option<Incarnation>>,
}

struct State {
    events: Events,
    me: Life,
    settings: Settings,
    members: BTreeMap<NodeId, Incarnation>,
    next_consumer: u64,
    consumers: BTreeMap<ConsumerId, Registered>,
    active: BTreeSet<Topic>,
    unwatchable: BTreeMap<Topic, String>,
    /// What `keep_time` waits for; without one, for ever.
    awaited: Option<Time>,
    outgoing: BTreeMap<NodeId, mpsc::Sender<(Life, Message)>>,
}

struct Registered {
    interest: Interest,
    news: Arc<Notify>,
    refused: Option<Refusal>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("life", &self.life).finish_non_exhaustive()
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl Hub {
    /// Starts. Must be called within a tokio runtime; it ends with it.
    pub fn start(parts: Parts) -> Hub {
        let (orders, to_carry_out) = mpsc::unbounded_channel();
        let state = State {
            events: Events::new(parts.life, parts.settings.clone()),
            me: parts.life,
            settings: parts.settings,
            members: BTreeMap::new(),
            next_consumer: 1,
            consumers: BTreeMap::new(),
            active: BTreeSet::new(),
            unwatchable: BTreeMap::new(),
            awaited: None,
            outgoing: BTreeMap::new(),
        };
        let inner = Inner {
            state: Mutex::new(state),
            peers: parts.peers,
            producers: parts.producers,
            orders,
            sooner: Notify::new(),
            provisioned: watch::Sender::new(None),
        };
        let hub = Hub { inner: Arc::new(inner) };
        tokio::spawn(hub.clone().carry_out(to_carry_out));
        tokio::spawn(hub.clone().keep_time());
        tokio::spawn(hub.clone().pass_reports(parts.reports));
        let receiver = hub.clone();
        parts.services.register(SERVICE, move |from, bytes| {
            receiver.receive(from, &bytes);
            Box::pin(async { Ok(Bytes::new()) })
        });
        hub
    }

    /// Registers a consumer, which leaves when the subscription is dropped.
    ///
    /// # Errors
    /// The registration is refused; nothing changed.
    pub fn subscribe(&self, interest: Interest) -> Result<Subscription, Refusal> {
        let news = Arc::new(Notify::new());
        let mut state = self.lock();
        let id = ConsumerId(state.next_consumer);
        state.next_consumer += 1;
        let registered = Registered { interest: interest.clone(), news: Arc::clone(&news), refused: None };
        state.consumers.insert(id, registered);
        self.step(&mut state, Input::Register { id, interest });
        let refused = state.consumers.get(&id).and_then(|registered| registered.refused);
        if let Some(refusal) = refused {
            state.consumers.remove(&id);
            return Err(refusal);
        }
        Ok(Subscription { id, hub: self.clone(), news })
    }

    /// Tells that something happened here, to everybody who registered for a topic that it belongs to: its type's, with
    /// fields fixed that it has. Costs next to nothing while nobody did.
    pub fn emit(&self, kind: &EventType, fields: &Fields) {
        self.emit_all(&[(kind.clone(), fields.clone())]);
    }

    /// The same of many, in this order, which leave for other nodes together.
    pub fn emit_all(&self, all: &[(EventType, Fields)]) {
        let mut state = self.lock();
        let at_unix_us = now_unix_us();
        let mut happened = Vec::new();
        for (kind, fields) in all {
            let of_kind =
                state.active.range(Topic::from(kind.clone())..).take_while(|topic| topic.kind == *kind);
            let concerned = of_kind.filter(|topic| holds(topic, fields));
            happened.extend(
                concerned.map(|topic| (topic.clone(), Occurrence { at_unix_us, fields: fields.clone() })),
            );
        }
        if !happened.is_empty() {
            self.step(&mut state, Input::Happened(happened));
        }
    }

    /// Takes note that events of this type were missed by whoever emits them.
    pub fn missed(&self, kind: &EventType, count: u64) {
        let mut state = self.lock();
        let concerned =
            state.active.range(Topic::from(kind.clone())..).take_while(|topic| topic.kind == *kind);
        for topic in concerned.cloned().collect::<Vec<_>>() {
            self.step(&mut state, Input::Missed { topic, count });
        }
    }

    /// Takes note of the list of members, and of this node's own life in it.
    pub fn members(&self, members: BTreeMap<NodeId, Incarnation>) {
        let mut state = self.lock();
        let own = members.get(&state.me.node).copied();
        if let Some(incarnation) = own.filter(|incarnation| *incarnation > state.me.incarnation) {
            self.begin_life(&mut state, incarnation);
        }
        if own == Some(state.me.incarnation) {
            self.inner.provisioned.send_replace(own);
        }
        state.members.clone_from(&members);
        state.outgoing.retain(|node, _| members.contains_key(node));
        self.step(&mut state, Input::Members(members));
    }

    /// Waits until this node, which is to be a member in this life, has every registration of the whole cluster.
    pub async fn provisioned(&self, incarnation: Incarnation) {
        let mut provisioned = self.inner.provisioned.subscribe();
        {
            let mut state = self.lock();
            if incarnation > state.me.incarnation {
                self.begin_life(&mut state, incarnation);
                let members = state.members.clone();
                self.step(&mut state, Input::Members(members));
            }
        }
        // The sender lives as long as the hub.
        let _ = provisioned.wait_for(|known| *known >= Some(incarnation)).await;
    }

    /// What this node does for events, and which topics can't be watched here, with the reason.
    pub fn status(&self) -> (Status, BTreeMap<Topic, String>) {
        let state = self.lock();
        (state.events.status(), state.unwatchable.clone())
    }

    /// This node was readmitted under a new incarnation without having ended: its sequences begin anew.
    fn begin_life(&self, state: &mut State, incarnation: Incarnation) {
        for topic in std::mem::take(&mut state.active) {
            // The task ends only with the hub.
            let _ = self.inner.orders.send(Order::Deactivate(topic));
        }
        // Whoever followed other nodes goes on where it was.
        let interests: Vec<(ConsumerId, Interest)> = (state.consumers.iter())
            .map(|(id, registered)| {
                let since = Since::After(state.events.positions(*id));
                (*id, Interest { since, ..registered.interest.clone() })
            })
            .collect();
        state.me.incarnation = incarnation;
        state.events = Events::new(state.me, state.settings.clone());
        for (id, interest) in interests {
            self.step(state, Input::Register { id, interest });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, state: &mut State, input: Input) {
        let mut out = Batch::default();
        state.events.step(datagram::now(), input, &mut out);
        self.perform(state, out);
    }

    fn perform(&self, state: &mut State, out: Batch) {
        for order in out.producers {
            match &order {
                Order::Activate(topic) => {
                    state.active.insert(topic.clone());
                    state.unwatchable.remove(topic);
                }
                Order::Deactivate(topic) => {
                    state.active.remove(topic);
                    state.unwatchable.remove(topic);
                }
                Order::Reannounce(_) => {}
            }
            let _ = self.inner.orders.send(order);
        }
        for (to, message) in out.send {
            self.send(state, to, message);
        }
        for (id, refusal) in out.refused {
            if let Some(registered) = state.consumers.get_mut(&id) {
                registered.refused = Some(refusal);
                registered.news.notify_one();
            }
        }
        for id in out.news {
            if let Some(registered) = state.consumers.get(&id) {
                registered.news.notify_one();
            }
        }
        if out.provisioned {
            self.inner.provisioned.send_replace(Some(state.me.incarnation));
        }
        // Most events move no deadline, and waking a task for nothing costs them as much as their consumer's.
        let is_sooner = |at| state.awaited.is_none_or(|awaited| at < awaited);
        if state.events.deadline().is_some_and(is_sooner) {
            self.inner.sooner.notify_one();
        }
    }

    fn send(&self, state: &mut State, to: Life, message: Message) {
        let from = state.me;
        let queue = state.outgoing.entry(to.node).or_insert_with(|| {
            let (queue, messages) = mpsc::channel(QUEUE_MAX);
            tokio::spawn(self.clone().speak_to(to.node, messages));
            queue
        });
        // What finds no room is as good as lost on the way: the core says it again.
        if queue.try_send((Life { node: to.node, incarnation: to.incarnation }, message)).is_err() {
            tracing::debug!(from = %from.node, to = %to.node, "a message about events found no room");
        }
    }

    /// Says to one node what there is to say, in order.
    async fn speak_to(self, node: NodeId, mut messages: mpsc::Receiver<(Life, Message)>) {
        let mut is_broken = false;
        while let Some((to, message)) = messages.recv().await {
            let own = self.lock().me.incarnation;
            let mut body = Vec::with_capacity(16 + 128);
            body.extend_from_slice(&own.0.to_le_bytes());
            body.extend_from_slice(&to.incarnation.0.to_le_bytes());
            body.extend_from_slice(&message.encode());
            match self.inner.peers.call(node, Class::Events, SERVICE, body, SEND_MAX).await {
                Ok(_) if is_broken => {
                    is_broken = false;
                    let mut state = self.lock();
                    self.step(&mut state, Input::Reconnected(node));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%node, %error, "a message about events was lost");
                    is_broken = true;
                }
            }
        }
    }

    fn receive(&self, from: NodeId, bytes: &[u8]) {
        let Some((header, body)) = bytes.split_first_chunk::<16>() else { return };
        let (sender, receiver) = header.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).map(Incarnation);
        let (Ok(sender), Ok(receiver)) = (number(sender), number(receiver)) else { return };
        let message = match Message::decode(body) {
            Ok(message) => message,
            Err(error) => return tracing::warn!(%from, %error, "a message about events was refused"),
        };
        let mut state = self.lock();
        // Said to an earlier life of this node.
        if receiver != state.me.incarnation {
            return;
        }
        let from = Life { node: from, incarnation: sender };
        self.step(&mut state, Input::Received { from, message });
    }

    /// Tells the producers what the core wants of them.
    async fn carry_out(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = orders.recv().await {
            let hub = self.clone();
            let done = tokio::task::spawn_blocking(move || hub.tell_producer(order)).await;
            if let Err(error) = done {
                tracing::error!(%error, "a producer of events could not be told");
            }
        }
    }

    fn tell_producer(&self, order: Order) {
        let producers = &self.inner.producers;
        match order {
            Order::Activate(topic) if is_local(&topic.kind) => {
                if let Err(error) = producers.activate(&topic) {
                    self.is_unwatchable(topic, error.to_string());
                }
            }
            Order::Deactivate(topic) if is_local(&topic.kind) => producers.deactivate(&topic),
            Order::Reannounce(topic) if is_local(&topic.kind) => producers.reannounce(&topic),
            Order::Activate(_) | Order::Deactivate(_) | Order::Reannounce(_) => {}
        }
    }

    /// Whoever registered learns why instead of waiting for what never comes.
    fn is_unwatchable(&self, topic: Topic, why: String) {
        tracing::warn!(%topic, why, "a topic of events can't be watched on this node");
        let mut state = self.lock();
        if !state.active.contains(&topic) {
            return;
        }
        state.unwatchable.insert(topic.clone(), why.clone());
        self.step(&mut state, Input::Unwatchable { topic, why });
    }

    async fn pass_reports(self, mut reports: Reports) {
        while let Some(first) = reports.next().await {
            let mut seen = Vec::new();
            let mut next = Some(first);
            while let Some(report) = next {
                match report {
                    Report::Seen { topic, occurrence } => seen.push((Topic::clone(&topic), occurrence)),
                    Report::Lost { topic, count } => {
                        self.happened(std::mem::take(&mut seen));
                        let mut state = self.lock();
                        let (topic, count) = (Topic::clone(&topic), count.unwrap_or(1).max(1));
                        self.step(&mut state, Input::Missed { topic, count });
                    }
                    Report::Ended { topic, why } => {
                        self.happened(std::mem::take(&mut seen));
                        self.is_unwatchable(Topic::clone(&topic), why);
                    }
                }
                next = if seen.len() < TAKE_MAX { reports.try_next() } else { None };
            }
            self.happened(seen);
        }
    }

    fn happened(&self, seen: Vec<(Topic, Occurrence)>) {
        if !seen.is_empty() {
            let mut state = self.lock();
            self.step(&mut state, Input::Happened(seen));
        }
    }

    async fn keep_time(self) {
        loop {
            let deadline = {
                let mut state = self.lock();
                state.awaited = state.events.deadline();
                state.awaited
            };
            let sooner = self.inner.sooner.notified();
            let Some(at) = deadline else {
                sooner.await;
                continue;
            };
            let left = at.since(datagram::now());
            if !left.is_zero() && tokio::time::timeout(left, sooner).await.is_ok() {
                continue;
            }
            let mut state = self.lock();
            if state.events.deadline().is_some_and(|at| at <= datagram::now()) {
                self.step(&mut state, Input::Deadline);
            }
        }
    }
}

/// A consumer; it leaves when this is dropped.
#[derive(Debug)]
pub struct Subscription {
    id: ConsumerId,
    hub: Hub,
    news: Arc<Notify>,
}

impl Subscription {
    /// Waits for what there is to take, in order; `Err` once another node or this one refuses to go on. Cancelling loses
    /// nothing.
    ///
    /// # Errors
    /// The registration ended.
    pub async fn next(&mut self) -> Result<Vec<Delivery>, Refusal> {
        loop {
            let news = Arc::clone(&self.news);
            let news = news.notified();
            let taken = self.take()?;
            if !taken.is_empty() {
                return Ok(taken);
            }
            news.await;
        }
    }

    /// What there is to take now.
    ///
    /// # Errors
    /// The registration ended.
    pub fn take(&mut self) -> Result<Vec<Delivery>, Refusal> {
        let mut state = self.hub.lock();
        if let Some(refused) = state.consumers.get(&self.id).and_then(|registered| registered.refused) {
            return Err(refused);
        }
        let mut out = Batch::default();
        let taken = state.events.take(datagram::now(), self.id, TAKE_MAX, &mut out);
        self.hub.perform(&mut state, out);
        Ok(taken)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        state.consumers.remove(&self.id);
        self.hub.step(&mut state, Input::Leave { id: self.id });
    }
}

/// Whether an event with these fields belongs to a topic.
fn holds(topic: &Topic, fields: &Fields) -> bool {
    let is = |value: &Value, text: &str| match value {
        Value::Flag(flag) => flag.to_string() == text,
        Value::Integer(integer) => integer.to_string() == text,
        Value::Number(number) => number.to_string() == text,
        Value::Text(value) => value == text,
    };
    topic.about.iter().all(|(name, text)| fields.get(name).is_some_and(|value| is(value, text)))
}
