//! Events on this node: joins the hub, what watches this machine, and what the cluster's core notices.
//!
//! Here are the registrations that a filter needs, and how what they bring becomes one stream with a place to resume
//! from. Which types there are and what a filter means is [`crate::events`]'s; who is told of what is decided in
//! `steadfast_proto::events`. Read `cluster` for the cluster's own producers.

mod cluster;
mod cursor;
pub(super) mod disks;
mod own;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::select_all;
use steadfast::events::hub::{Hub, Parts, Subscription};
use steadfast::events::now_unix_us;
use steadfast::events::producers::{self, Producers};
use steadfast::net::rpc::{Peers, Services};
use steadfast::node::NodeHandle;
use steadfast_proto::events::{
    self as core, EventType, Fields, GapReason, Interest, Life, Nature, Rate, Scope, Settings, Since, Topic,
    Value,
};
use steadfast_proto::ids::{Incarnation, NodeId};
use tokio::sync::broadcast::error::RecvError;

use super::Agent;
use super::rows::Rows;
use crate::api::convert::node_name;
use crate::api::link_words::Dictionary;
use crate::codes::Code;
use crate::events::filter::Filter;
use crate::events::kinds::{self, Reports, Variant};
use crate::events::{Delivery, EventView, Lost, Source, USER_ANY, emit};
use crate::failure::{Failure, did_you_mean};

pub(crate) use cursor::Cursor;
use own::Own;

/// How far a stream may fall behind, in events of each of its registrations.
const BUFFER: usize = 8_192;
/// How far the clocks of two nodes may be apart for a stream that goes on at the other one to miss nothing of what all
/// agreed on; what is so recent may come twice.
const CLOCKS_APART_US: u64 = 1_000_000;
/// How many registrations one filter may need.
const REGISTRATIONS_MAX: usize = 256;
/// Of how many nodes a stream remembers which of their lives it told of.
const LIVES_MAX: usize = 1_024;

/// Starts this node's hub. `cgroup_of` says where a container's programs are.
pub(crate) fn start(
    life: Life,
    peers: &Peers,
    services: &Services,
    cgroup_of: impl Fn(&str) -> Option<PathBuf> + Send + Sync + 'static,
) -> Hub {
    let (producers, reports) = Producers::new(cgroup_of);
    let rates = kinds::all().iter().filter_map(|kind| {
        let rate = Rate { per_second: kind.per_second_max, burst: kind.per_second_max };
        Some((kind.name.parse::<EventType>().ok()?, rate))
    });
    let settings = Settings { rates: rates.collect(), ..Settings::default() };
    let (peers, services) = (peers.clone(), services.clone());
    Hub::start(Parts { life, settings, peers, services, producers, reports })
}

/// Tells the hub who is a member and what the core notices, until the node stops.
pub(crate) async fn follow(
    hub: Hub,
    node: NodeHandle,
    own: NodeId,
    rows: Rows,
    networks: Vec<String>,
    boot_unix_ms: u64,
) {
    // Whatever is noticed from here on waits in the channel, and may be in the timeline too.
    let mut noticed = node.events();
    let mut teller = cluster::Teller::default();
    let mut last = 0;
    for past in node.timeline() {
        last = past.sequence;
        if let steadfast_proto::node::Event::Installed(view) = &past.event {
            hub.members(view.members.clone());
        }
        let names = rows.names();
        let words = Dictionary { names: &names, networks: &networks, boot_unix_ms };
        emit_told(&hub, teller.tell(own, past.unix_ms, &past.event, &words));
    }
    loop {
        let one = match noticed.recv().await {
            Ok(one) => one,
            Err(RecvError::Lagged(count)) => {
                for kind in kinds::all() {
                    if let Ok(kind) = kind.name.parse() {
                        hub.missed(&kind, count);
                    }
                }
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        if one.sequence <= last {
            continue;
        }
        if let steadfast_proto::node::Event::Installed(view) = &one.event {
            hub.members(view.members.clone());
        }
        let names = rows.names();
        let words = Dictionary { names: &names, networks: &networks, boot_unix_ms };
        emit_told(&hub, teller.tell(own, one.unix_ms, &one.event, &words));
    }
}

fn emit_told(hub: &Hub, told: Vec<cluster::Told>) {
    for (kind, fields) in told {
        if let Ok(kind) = kind.parse() {
            hub.emit(&kind, &fields);
        }
    }
}

/// Keeps what happens in the cluster for those who ask later: what costs nothing to watch is always registered for.
pub(crate) fn journal(hub: &Hub) -> Vec<Subscription> {
    let kept = kinds::all().iter().filter_map(|kind| kind.name.parse::<EventType>().ok());
    kept.filter(is_kept)
        .filter_map(|kind| hub.subscribe(Interest { buffer: 1, ..Interest::local(Topic::from(kind)) }).ok())
        .collect()
}

/// From where on a stream begins.
#[derive(Clone, Debug, Default)]
pub(crate) enum From {
    /// From now on.
    #[default]
    Now,
    /// Everything that is retained.
    Oldest,
    /// What is retained and not older, in microseconds since 1970.
    Time(u64),
    /// After what a stream like this one brought before.
    Cursor(Cursor),
}

impl Agent {
    /// Registers for what `filter` lets through; with a container, for what of it concerns that one.
    pub(crate) fn follow_events(
        self: &Arc<Self>,
        filter: Filter,
        from: &From,
        container: Option<&str>,
    ) -> Result<Follow, Failure> {
        let own = container.map(|name| Own { container: name.to_owned(), node: self.id });
        let mut asked =
            filter.registrations().map_err(|error| Failure::new(Code::BadRequest, error.to_string()))?;
        if let Some(own) = &own {
            asked.list.retain(|registration| own.may_hear(&registration.topic.kind));
            if asked.list.is_empty() {
                let message = "filter: a program in a container hears container.*, checkpoint.* and user.* events of its own container, link.state and network.state of its node, and nothing else";
                return Err(Failure::new(Code::NotAllowed, message));
            }
        }
        if asked.list.len() > REGISTRATIONS_MAX {
            let message = format!(
                "filter: it needs {} registrations and {REGISTRATIONS_MAX} are possible; name fewer types or values",
                asked.list.len()
            );
            return Err(Failure::new(Code::BadRequest, message));
        }
        let mut subscriptions = Vec::new();
        let mut registered = BTreeSet::new();
        for registration in asked.list {
            let topic = registered_as(registration.topic);
            let scopes = match &own {
                // Its node tells it everything but what users say, wherever they do.
                Some(_) if !kinds::is_user(topic.kind.as_str()) && topic.kind.as_str() != USER_ANY => {
                    vec![Scope::Local]
                }
                Some(_) | None => self.scopes(&topic.kind, registration.nodes.as_ref())?,
            };
            for scope in scopes {
                // Several user types are one topic.
                if !registered.insert((topic.clone(), format!("{scope:?}"))) {
                    continue;
                }
                let interest = interest(&topic, scope, from, self.id);
                let subscribed = self.events.subscribe(interest);
                subscriptions
                    .push(subscribed.map_err(|error| Failure::new(Code::TooMany, error.to_string()))?);
            }
        }
        Ok(Follow {
            agent: Arc::clone(self),
            filter,
            own,
            subscriptions,
            waiting: VecDeque::new(),
            cursor: if let From::Cursor(cursor) = from { cursor.clone() } else { Cursor::default() },
            restarted: BTreeMap::new(),
            down: BTreeMap::new(),
        })
    }

    /// On which nodes to register for a type.
    fn scopes(&self, kind: &EventType, nodes: Option<&BTreeSet<String>>) -> Result<Vec<Scope>, Failure> {
        // Every node tells its own consumers what all agreed on; which node it is about is a matter of the filter.
        if is_agreed(kind) {
            return Ok(vec![Scope::Local]);
        }
        let Some(nodes) = nodes else { return Ok(vec![Scope::Cluster]) };
        let names = self.rows.names();
        let scope = |name: &String| {
            let found = names.iter().find(|(id, known)| *known == name || id.to_string() == *name);
            let Some((id, _)) = found else {
                let hint = did_you_mean(name, names.values().map(String::as_str));
                let message = format!("filter: there is no node named {name:?}{hint}");
                return Err(Failure::new(Code::NodeNotFound, message));
            };
            Ok(if *id == self.id { Scope::Local } else { Scope::Node(*id) })
        };
        nodes.iter().map(scope).collect()
    }

    /// Tells what somebody says has happened: all of it, in this order, or nothing.
    pub(crate) fn emit_events(&self, said: Vec<(String, Fields)>) -> Result<(), Failure> {
        let refused = |error: &dyn std::fmt::Display| Failure::new(Code::BadRequest, error.to_string());
        let mut all = Vec::with_capacity(said.len() * 2);
        for (kind, fields) in said {
            let named = emit::kind(&kind).map_err(|error| refused(&error))?;
            emit::check(&fields).map_err(|error| refused(&error))?;
            all.extend(emit::topics(&named, &fields).map(|(topic, fields)| (topic.kind, fields)));
        }
        self.events.emit_all(&all);
        Ok(())
    }
}

/// Under which topic a log is kept that can be looked through later. All user-defined types are one topic: which there are
/// is known to whoever emits them alone. What costs nothing to watch is kept whole.
fn registered_as(topic: Topic) -> Topic {
    match USER_ANY.parse::<EventType>() {
        Ok(any) if kinds::is_user(topic.kind.as_str()) => Topic::from(any),
        Ok(_) | Err(_) if is_kept(&topic.kind) => Topic::from(topic.kind),
        Ok(_) | Err(_) => topic,
    }
}

/// Whether every node keeps events of this type, asked or not.
fn is_kept(kind: &EventType) -> bool {
    !producers::is_local(kind) && kind.as_str() != "catalog.changed"
}

fn interest(topic: &Topic, scope: Scope, from: &From, own: NodeId) -> Interest {
    let kind = kinds::find(topic.kind.as_str());
    let variant = match kind.map(|kind| kind.variant) {
        Some(Variant::All) => core::Variant::Replicated,
        Some(Variant::Selective | Variant::Agreed) | None => core::Variant::Selective,
    };
    let nature = match kind.map(|kind| kind.reports) {
        Some(Reports::Level) => Nature::Level,
        Some(Reports::Edge) | None => Nature::Edge,
    };
    let since = match from {
        From::Now => Since::Now,
        From::Oldest => Since::Oldest,
        From::Time(unix_us) => Since::Time { unix_us: *unix_us },
        From::Cursor(cursor) => {
            let positions = cursor.positions(topic);
            match cursor.newest_unix_us() {
                // Another node told it until now: the same facts, under numbers of its own.
                Some(unix_us) if is_agreed(&topic.kind) && !positions.contains_key(&own) => {
                    Since::Time { unix_us: unix_us.saturating_sub(CLOCKS_APART_US) }
                }
                Some(_) | None => Since::After(positions),
            }
        }
    };
    Interest { topic: topic.clone(), scope, variant, nature, since, buffer: BUFFER }
}

/// Somebody who follows events.
pub(crate) struct Follow {
    agent: Arc<Agent>,
    filter: Filter,
    /// The container that follows, where one does.
    own: Option<Own>,
    subscriptions: Vec<Subscription>,
    waiting: VecDeque<core::Delivery>,
    cursor: Cursor,
    /// Each node's life that was told to have begun, and the one that was told to be over: many registrations, one word.
    restarted: BTreeMap<NodeId, Incarnation>,
    down: BTreeMap<NodeId, Incarnation>,
}

impl Follow {
    /// The next thing that the filter lets through, and from where to resume after it; `None` when a registration ended.
    pub(crate) async fn next(&mut self) -> Option<(Delivery, Cursor)> {
        loop {
            while let Some(delivery) = self.waiting.pop_front() {
                self.cursor.note(&delivery, is_agreed(&delivery.source().topic.kind));
                if !self.is_news(&delivery) {
                    continue;
                }
                let seen = view(&delivery, &self.agent.rows.names());
                if self.filter.concerns(&seen) && self.own.as_ref().is_none_or(|own| own.concerns(&seen)) {
                    return Some((seen, self.cursor.clone()));
                }
            }
            if self.subscriptions.is_empty() {
                return std::future::pending().await;
            }
            let news = self.subscriptions.iter_mut().map(|one| Box::pin(one.next()));
            let (taken, ..) = select_all(news).await;
            self.waiting.extend(taken.ok()?);
        }
    }
}

impl Follow {
    /// Whether nobody was told yet: what holds for a whole node each of its topics says.
    fn is_news(&mut self, delivery: &core::Delivery) -> bool {
        let told = match delivery {
            core::Delivery::SourceRestarted(_) => &mut self.restarted,
            core::Delivery::SourceDown(_) => &mut self.down,
            core::Delivery::Event(_) | core::Delivery::Gap(_) | core::Delivery::SourceRefused(..) => {
                return true;
            }
        };
        let Life { node, incarnation } = delivery.source().life;
        if told.len() >= LIVES_MAX && !told.contains_key(&node) {
            told.clear();
        }
        told.insert(node, incarnation).is_none_or(|known| known < incarnation)
    }
}

/// What a consumer was given, with names.
fn view(delivery: &core::Delivery, names: &BTreeMap<NodeId, String>) -> Delivery {
    let from = delivery.source();
    let mut source = Source {
        node: node_name(names, from.life.node),
        node_id: from.life.node,
        incarnation: from.life.incarnation,
        topic: Topic::clone(&from.topic),
    };
    let at_unix_us = now_unix_us();
    match delivery {
        core::Delivery::Event(event) => {
            let mut fields = event.what.fields.clone();
            // What all agree on is told as the node's that it is about.
            if is_agreed(&source.topic.kind)
                && let Some(Value::Text(node)) = fields.remove("node")
            {
                source.node = node;
            }
            Delivery::Event(EventView::new(source, event.seq, event.what.at_unix_us, fields))
        }
        core::Delivery::Gap(core::Gap { to, reason: GapReason::Unwatchable(why), .. }) => {
            Delivery::Refused { source, sequence: *to, reason: why.clone(), at_unix_us }
        }
        core::Delivery::Gap(gap) => {
            let reason = gap_words(&gap.reason).to_owned();
            Delivery::Gap(Lost { source, from: gap.from, to: gap.to, reason, at_unix_us })
        }
        core::Delivery::SourceRestarted(_) => Delivery::Restarted { source, at_unix_us },
        core::Delivery::SourceDown(_) => Delivery::Down { source, at_unix_us },
        core::Delivery::SourceRefused(_, refusal) => {
            Delivery::Refused { source, sequence: 0, reason: refusal.to_string(), at_unix_us }
        }
    }
}

fn is_agreed(kind: &EventType) -> bool {
    kinds::find(kind.as_str()).is_some_and(|kind| kind.variant == Variant::Agreed)
}

fn gap_words(reason: &GapReason) -> &str {
    match reason {
        GapReason::Overrun => "they came faster than they were taken",
        GapReason::Retention => "the source does not keep them any more",
        GapReason::Suppressed => "they came faster than their type's rate allows",
        GapReason::Unwatched => "nobody was registered meanwhile",
        GapReason::Producer => "what watches for them lost some",
        GapReason::Unwatchable(why) => why,
    }
}

/// This node's life, as its events are numbered.
pub(crate) fn life(node: NodeId, incarnation: Incarnation) -> Life {
    Life { node, incarnation }
}
