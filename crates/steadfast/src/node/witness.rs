//! What the kernel testifies about the peers that this node watches, turned into evidence for the core.
//!
//! It keeps one watch connection to each of them, asks it when the core is in doubt, and tells refusals that are
//! about us from others. It decides nothing: the core binds evidence to incarnations and weighs it. Read next:
//! `crate::net::watch` and `crate::net::datagram` (refusals).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use steadfast_proto::detect::Evidence;
use steadfast_proto::ids::{Incarnation, NetworkId, NodeId};
use steadfast_proto::node::Input;
use steadfast_proto::time::Time;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::Addresses;
use crate::net::carrier::Carrier;
use crate::net::datagram::{Refusal, RefusalKind};
use crate::net::rpc::Services;
use crate::net::tls::Credentials;
use crate::net::watch::{Dialler, Testimony, Watches, What};

/// Testimonies that wait for the node's thread.
const TESTIMONIES_MAX: usize = 256;

/// A probe that has had no successor for so long belongs to an earlier doubt.
const DOUBT_MAX: Duration = Duration::from_millis(500);

/// How long after the first probe its acknowledgement is looked for.
const ANSWER_MIN: Duration = Duration::from_millis(20);

/// The kernel ages acknowledgements in whole milliseconds, by a clock that ticks every few.
const CLOCK_TICK: Duration = Duration::from_millis(8);

/// With what watch connections are made and taken.
#[derive(Clone, Debug)]
pub struct WatchParts {
    /// This node's certificate and keys.
    pub credentials: Credentials,
    /// Where the connections of others arrive.
    pub services: Services,
}

/// The kernel's testimony about the watched peers.
pub(super) struct Witness {
    watches: Option<Watches>,
    testimonies: mpsc::Receiver<Testimony>,
    wanted: BTreeMap<NodeId, (Incarnation, u64, Vec<SocketAddr>)>,
    /// When the present doubt about a peer began, and when it was last probed.
    doubts: BTreeMap<NodeId, (Time, Time)>,
}

impl Witness {
    pub(super) fn new(
        runtime: Handle,
        parts: Option<&WatchParts>,
        incarnation: Incarnation,
        boot: u64,
    ) -> Witness {
        let (events, testimonies) = mpsc::channel(TESTIMONIES_MAX);
        let watches = parts.map(|WatchParts { credentials, services }| {
            let dialler = Dialler { credentials: credentials.clone(), incarnation, boot };
            let watches = Watches::new(runtime, dialler, events);
            watches.offer(services);
            watches
        });
        Witness { watches, testimonies, wanted: BTreeMap::new(), doubts: BTreeMap::new() }
    }

    /// Watches exactly these peers.
    pub(super) fn watch(
        &mut self,
        peers: impl Iterator<Item = (NodeId, Incarnation, u64)>,
        addresses: &Addresses,
    ) {
        let wanted: BTreeMap<_, _> = peers
            .filter_map(|(id, incarnation, boot)| {
                let addresses = addresses.get(&id)?.iter().flatten().copied().collect();
                Some((id, (incarnation, boot, addresses)))
            })
            .collect();
        if wanted != self.wanted {
            self.wanted = wanted;
            if let Some(watches) = &self.watches {
                watches.set(self.wanted.clone());
            }
        }
    }

    pub(super) fn renumber(&self, incarnation: Incarnation) {
        if let Some(watches) = &self.watches {
            watches.renumber(incarnation);
        }
    }

    /// The next thing that a connection witnessed about a life that is still watched.
    pub(super) async fn next(&mut self) -> Option<Input> {
        loop {
            let testimony = self.testimonies.recv().await?;
            let evidence = match testimony.what {
                What::EndOfFile => Evidence::Gone,
                What::Goodbye => Evidence::Goodbye,
                What::Opened | What::PathLost => continue,
            };
            let Testimony { peer, incarnation, boot, at, .. } = testimony;
            let is_watched = self.wanted.get(&peer).is_some_and(|(known, known_boot, _)| {
                *known == incarnation && (*known_boot == 0 || *known_boot == boot)
            });
            if is_watched {
                return Some(Input::Testified { peer, incarnation, evidence, at });
            }
        }
    }

    /// Asks the kernel about `peer`, which is late: says what an earlier question brought to light.
    pub(super) fn probe(&mut self, now: Time, peer: NodeId) -> Option<Input> {
        let (since, last) = self.doubts.get(&peer).copied().unwrap_or((now, now));
        let since = if now.since(last) > DOUBT_MAX { now } else { since };
        self.doubts.insert(peer, (since, now));
        let watches = self.watches.as_ref()?;
        let evidence = answer(watches, peer, now.since(since));
        watches.probe(peer);
        let incarnation = self.wanted.get(&peer)?.0;
        Some(Input::Testified { peer, incarnation, evidence: evidence?, at: now })
    }

    /// What a refused datagram says: the machine at that address lives, and no agent listens there.
    pub(super) fn refused(&self, refusal: &Refusal, addresses: &Addresses) -> Option<Input> {
        if !refusal.genuine || refusal.kind != RefusalKind::Port {
            return None;
        }
        let owns =
            |addresses: &Vec<Option<SocketAddr>>| addresses.iter().flatten().any(|at| *at == refusal.peer);
        let (peer, _) = addresses.iter().find(|(_, addresses)| owns(addresses))?;
        let incarnation = self.wanted.get(peer)?.0;
        Some(Input::Testified { peer: *peer, incarnation, evidence: Evidence::Gone, at: refusal.received })
    }

    /// Says goodbye on every connection.
    pub(super) async fn goodbye(&self) {
        if let Some(watches) = &self.watches {
            watches.goodbye().await;
        }
    }
}

fn answer(watches: &Watches, peer: NodeId, asked_for: Duration) -> Option<Evidence> {
    let sample = watches.sample(peer)?;
    // What its agent sent answers all that was asked before; only what was asked since is open. An agent that lives
    // echoes each question, and then nothing is open: it lives, and only its heartbeats are missing.
    let asked_for = asked_for.min(sample.last_data_age);
    if asked_for < ANSWER_MIN {
        return None;
    }
    let has_answered = |age: Duration| age + CLOCK_TICK < asked_for;
    if has_answered(sample.last_ack_age) && sample.retransmits == 0 {
        return Some(Evidence::Acknowledges);
    }
    (sample.retransmits > 0).then_some(Evidence::Unreachable)
}

/// What the interfaces of this node do; nothing when the kernel does not tell.
pub(super) async fn interface(carrier: &mut Option<Carrier>) -> Input {
    loop {
        let Some(open) = carrier else { return std::future::pending().await };
        match open.next().await {
            Ok(event) => return Input::Interface { network: event.network, up: event.up },
            Err(error) => {
                tracing::warn!(%error, "the kernel tells of interfaces no more");
                *carrier = None;
            }
        }
    }
}

/// Opens the kernel's news of the interfaces that hold `addresses`.
pub(super) fn open_carrier(addresses: &[(NetworkId, SocketAddr)]) -> Option<Carrier> {
    let addresses: Vec<_> = addresses.iter().map(|(network, at)| (*network, at.ip())).collect();
    Carrier::open(&addresses)
        .inspect_err(|error| tracing::warn!(%error, "the kernel does not tell of interfaces"))
        .ok()
}
