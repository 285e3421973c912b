//! One node's opinion of who has failed: a process, a link, a network, or this node itself.
//!
//! One arrival table per (peer, network) is kept; everything else is a function of it and of what the kernel
//! testifies (PROTOCOLS 3.1, 3.2, 3.3, 4.4, 6). Each node watches a few others; when one falls silent while others
//! don't, its observers say so to everybody, and enough of them together make a [`Verdict`]. When all fall silent
//! together the observer or its network is at fault, and nobody is accused. A verdict never removes anybody:
//! [`crate::view`] says what a removal needs. Read next: `peer` (arrivals), `claims` (what is passed on), `verdict`.
//!
//! A detector is a [`Machine`]: give it what arrives, send what it makes.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::Arc;
//! use steadfast_proto::detect::{Class, Detector, Input, Members, Opinion, Output, Settings};
//! use steadfast_proto::ids::{Incarnation, NetworkId, NodeId};
//! use steadfast_proto::machine::Machine;
//! use steadfast_proto::time::Time;
//!
//! let ids = [NodeId(1), NodeId(2), NodeId(3)];
//! let members = Arc::new(Members::new(ids.map(|id| (id, Incarnation(1))).into(), 7));
//! let at = |ms: u64| Time::from_nanos(ms * 1_000_000);
//! let mut detectors = ids.map(|id| {
//!     let boot = u64::try_from(id.0).unwrap();
//!     Detector::new(Settings::default(), id, Incarnation(1), boot, vec![NetworkId(0)], at(0))
//! });
//! let (mut mail, mut verdicts) = (Vec::new(), Vec::new());
//! for ms in 0..4_000 {
//!     let now = at(ms);
//!     let mut inputs: Vec<(usize, Input)> = std::mem::take(&mut mail);
//!     for index in 0..3 {
//!         let first = Input::Members(Arc::clone(&members));
//!         inputs.push((index, if ms == 0 { first } else { Input::Deadline }));
//!     }
//!     for (index, input) in inputs {
//!         if ms >= 3_000 && index == 2 {
//!             continue; // The third is dead.
//!         }
//!         let mut output = Output::default();
//!         detectors[index].step(now, input, &mut output);
//!         for (to, network, heartbeat) in output.send {
//!             let (from, incarnation) = (ids[index], Incarnation(1));
//!             let to = ids.iter().position(|id| *id == to).unwrap();
//!             mail.push((to, Input::Heard { from, incarnation, network, received_at: now, heartbeat }));
//!         }
//!         verdicts.extend(output.opinions.into_iter().filter_map(|opinion| match opinion {
//!             Opinion::Verdict(verdict) => Some(verdict.class),
//!             _ => None,
//!         }));
//!     }
//! }
//! assert_eq!(verdicts, [Class::HostDead, Class::HostDead]);
//! ```

pub mod delay;
pub mod graph;
pub mod matrix;
pub mod timeout;

mod claims;
mod judge;
mod opinion;
mod peer;
mod settings;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::flaw::{Flaw, is_planted};
use crate::ids::{Incarnation, NetworkId, NodeId};
use crate::machine::Machine;
use crate::time::Time;
use crate::wire::{Claim, Echo, Heartbeat};

use claims::{Claims, Slot};
use peer::Peer;

pub use opinion::{Evidence, Link, Opinion, Rule, Suspicion};
pub use settings::{Profile, Settings};
pub use verdict::{Class, Members, Subject, Verdict};

/// A lateness below this is the ordinary noise of a scheduler and excuses nobody.
pub const PAUSE_MIN: Duration = Duration::from_millis(30);

/// The shortest time between two beats of one node, however much it has to say.
const URGENT_GAP: Duration = Duration::from_millis(1);

/// After how many beats of silence the kernel is asked about a peer.
const PROBE_BEATS: f64 = 1.5;

/// After so many beats without running, this node may have missed what was said.
const AWAY_MIN_BEATS: u32 = 3;

/// In how many beats it asks for what it missed.
const ASKING_BEATS: u8 = 2;

/// How many slow contacts get a heartbeat in one turn.
const SLOW_AT_ONCE: usize = 8;

/// How long relapses are remembered.
const RELAPSE_MEMORY: Duration = Duration::from_secs(60);

/// How often a contact that is not watched is sent a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pace {
    /// Every so many beats ([`Settings::slow_every`]), or more rarely where there are many.
    Slow,
    /// At every beat.
    Full,
}

/// What can happen to a detector.
#[derive(Clone, Debug)]
pub enum Input {
    /// These are the members now.
    Members(Arc<Members>),
    /// An authentic heartbeat arrived. All that wait must be handed over before a `Deadline` (3.1, drain first).
    Heard {
        /// Its sender, by the seal.
        from: NodeId,
        /// Its sender's incarnation, by the seal.
        incarnation: Incarnation,
        /// The network it came on.
        network: NetworkId,
        /// When the kernel had it.
        received_at: Time,
        /// What it says.
        heartbeat: Heartbeat,
    },
    /// The kernel says something of a peer.
    Evidence {
        /// Of whom.
        peer: NodeId,
        /// The incarnation it is about.
        incarnation: Incarnation,
        /// What.
        evidence: Evidence,
        /// When.
        at: Time,
    },
    /// The time that [`Machine::deadline`] named has come.
    Deadline,
}

/// What a detector wants done.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// Leaves now, on this network.
    pub send: Vec<(NodeId, NetworkId, Heartbeat)>,
    /// Peers of whom the kernel should be asked.
    pub probe: Vec<NodeId>,
    /// What changed.
    pub opinions: Vec<Opinion>,
}

/// What became of a heartbeat that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Its sender is nobody's business here, or of the past.
    Ignored,
    /// It did not prove to be of today; our answer will let the next one do so.
    Unproven,
    /// It counts; whether it is the newest of its sender.
    Counted {
        /// Whether no later one of this sender was heard.
        newest: bool,
    },
}

/// The failure detector of one node.
#[derive(Clone, Debug)]
pub struct Detector {
    settings: Settings,
    own: NodeId,
    incarnation: Incarnation,
    boot: u64,
    networks: Vec<NetworkId>,
    started: Time,
    members: Arc<Members>,
    contacts: BTreeMap<NodeId, Pace>,
    peers: BTreeMap<NodeId, Peer>,
    /// Peers whose suspicion ended without their being heard; not told yet, at most one entry for each peer.
    unsuspected: BTreeSet<NodeId>,
    claims: Claims,
    bench: verdict::Bench,
    relative: matrix::State,
    verdicts: BTreeMap<Subject, Verdict>,
    networks_suspected: BTreeSet<NetworkId>,
    /// Networks whose interface here is down.
    unplugged: BTreeSet<NetworkId>,
    isolated: bool,
    sequence: u64,
    interval: Duration,
    next_beat: Time,
    last_beat: Time,
    next_look: Time,
    next_tidy: Time,
    /// Whether claims changed since verdicts were last formed.
    unjudged: bool,
    requested: Option<Time>,
    away: Option<Away>,
    /// In how many more beats it asks the others to say everything again.
    asking: u8,
}

/// What follows a time in which this node did not run, or heard nobody: it may have missed what was said, so it forgets,
/// asks, and concludes nothing until it is answered.
#[derive(Clone, Copy, Debug)]
struct Away {
    /// When what had waited for it has been read, all of the past.
    forget_at: Option<Time>,
    until: Time,
}

impl Detector {
    /// A detector that watches nobody yet. `boot` is a number drawn for this start, not zero.
    #[must_use]
    pub fn new(
        settings: Settings,
        own: NodeId,
        incarnation: Incarnation,
        boot: u64,
        networks: Vec<NetworkId>,
        now: Time,
    ) -> Detector {
        Detector {
            interval: settings.interval,
            settings,
            own,
            incarnation,
            boot,
            networks,
            started: now,
            members: Arc::default(),
            contacts: BTreeMap::new(),
            peers: BTreeMap::new(),
            unsuspected: BTreeSet::new(),
            claims: Claims::default(),
            bench: verdict::Bench::default(),
            relative: matrix::State::default(),
            verdicts: BTreeMap::new(),
            networks_suspected: BTreeSet::new(),
            unplugged: BTreeSet::new(),
            isolated: false,
            sequence: 0,
            next_beat: now,
            last_beat: Time::ZERO,
            next_look: now,
            next_tidy: now,
            unjudged: false,
            requested: None,
            away: None,
            asking: 0,
        }
    }

    /// Watches by these members' graph from now on; those that are new start afresh.
    pub fn set_members(&mut self, now: Time, members: Arc<Members>) {
        self.members = members;
        self.unjudged = true;
        self.choose_peers(now);
        self.tidy(now);
    }

    /// Exchanges heartbeats with these nodes too, without watching those that are no neighbours.
    pub fn set_contacts(&mut self, now: Time, contacts: BTreeMap<NodeId, Pace>) {
        if contacts != self.contacts {
            self.contacts = contacts;
            self.choose_peers(now);
        }
    }

    /// This node's own incarnation is another one.
    pub fn set_incarnation(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
    }

    /// Leases of this length ride on the heartbeats: an agent whose machine lives may be gone for so long, and beats
    /// are never so rare that a few lost ones end a lease.
    pub fn set_lease(&mut self, lease: Duration) {
        self.settings.crash_grace = lease;
        self.settings.interval_max = self.settings.interval_max.min(lease / 6).max(self.settings.interval);
    }

    /// Takes note of a heartbeat.
    pub fn heard(
        &mut self,
        now: Time,
        from: NodeId,
        incarnation: Incarnation,
        network: NetworkId,
        received_at: Time,
        heartbeat: &Heartbeat,
    ) -> Heard {
        let Some(peer) = self.peers.get_mut(&from) else { return Heard::Ignored };
        if incarnation < peer.incarnation {
            return Heard::Ignored;
        }
        if incarnation > peer.incarnation {
            // What was suspected was its last life.
            self.unsuspected.extend(peer.suspicion.map(|_| from));
            *peer = Peer::new(incarnation, &self.settings, now);
            self.unjudged = true;
        }
        if let Some(boot) = heartbeat.boot {
            if peer.boot != 0 && boot != peer.boot {
                return Heard::Ignored;
            }
            peer.boot = boot;
        }
        let is_first = !peer.knows_us;
        peer.knows_us = heartbeat.challenge == self.boot;
        if !peer.knows_us {
            return Heard::Unproven;
        }
        let newest = peer.arrived(now, network, received_at, heartbeat, &self.settings);
        if peer.suspicion.is_some() {
            self.next_look = now;
        }
        if is_first || heartbeat.asks {
            // It may have missed what was said before it came.
            self.claims.repeat_all();
        }
        for rumour in &heartbeat.rumours {
            let is_closed = self.is_down(rumour.subject);
            if rumour.observer != self.own && self.claims.learn(now, *rumour, is_closed) {
                self.learned(now, rumour.subject, rumour.claim);
            }
        }
        if heartbeat.goodbye {
            self.testified(now, from, incarnation, Evidence::Goodbye, received_at);
        }
        Heard::Counted { newest }
    }

    /// Takes note of what the kernel says about `incarnation` of a peer.
    pub fn testified(
        &mut self,
        now: Time,
        peer: NodeId,
        incarnation: Incarnation,
        evidence: Evidence,
        at: Time,
    ) {
        let Some(peer) = self.peers.get_mut(&peer) else { return };
        // Testimony older than the last word proves nothing, and of another incarnation neither.
        if peer.incarnation != incarnation || peer.heard_at.is_some_and(|heard| heard > at) {
            return;
        }
        // Nobody listens where nobody has started yet: whoever never heard it leaves it to those that did.
        if evidence == Evidence::Gone && peer.sequence.is_none() && !peer.doubted {
            return;
        }
        let is_more = match peer.evidence {
            // That its port is closed then goes without saying.
            Some((Evidence::Goodbye, _)) => evidence == Evidence::Goodbye,
            Some((Evidence::Gone, _)) => matches!(evidence, Evidence::Gone | Evidence::Goodbye),
            Some((Evidence::Acknowledges | Evidence::Unreachable, _)) | None => true,
        };
        if is_more {
            let is_news = peer.evidence.is_none_or(|(known, _)| known != evidence);
            peer.evidence = Some((evidence, at));
            if is_news {
                self.next_look = self.next_look.min(now);
            }
        }
    }

    /// Takes this node's own pause of `lag` off every age: while it did not run it could not listen (3.3 d).
    pub fn paused(&mut self, now: Time, lag: Duration) {
        for peer in self.peers.values_mut() {
            peer.paused(now, lag);
        }
        if lag >= self.settings.interval * AWAY_MIN_BEATS {
            self.was_away(now);
        }
    }

    pub(super) fn was_away(&mut self, now: Time) {
        let interval = self.settings.interval;
        self.away =
            Some(Away { forget_at: Some(now + interval / 2), until: now + interval * AWAY_MIN_BEATS });
        self.next_look = now;
    }

    /// Whether this node still waits to be told what it missed.
    fn is_away(&mut self, now: Time) -> bool {
        let Some(away) = &mut self.away else { return false };
        if away.forget_at.is_some_and(|at| now >= at) {
            away.forget_at = None;
            self.claims.forget_others(self.own);
            self.asking = ASKING_BEATS;
        }
        if now >= away.until {
            self.away = None;
        }
        self.away.is_some()
    }

    /// Forms opinions at `now`, if it is time to: nothing may wait to be handed over.
    pub fn look(&mut self, now: Time, out: &mut Output) {
        self.tell_unsuspected(out);
        if now >= self.next_tidy {
            self.next_tidy = now + Duration::from_secs(1);
            self.tidy(now);
        }
        if now >= self.next_look {
            self.judge_self(now, out);
            self.judge_links(now, out);
            self.judge_peers(now, out);
            self.next_look = self.when_to_look(now);
        }
        if self.is_away(now) {
            self.next_look = self.next_look.min(now + self.settings.interval / 4);
        } else if self.unjudged || self.bench.is_pending() {
            self.judge_claims(now, out);
        }
    }

    /// Forms verdicts now if claims changed: what others say need not wait for what is still to be handed over.
    pub fn conclude(&mut self, now: Time, out: &mut Output) {
        self.tell_unsuspected(out);
        if self.unjudged && self.away.is_none() {
            self.judge_claims(now, out);
        }
    }

    fn tell_unsuspected(&mut self, out: &mut Output) {
        let over = std::mem::take(&mut self.unsuspected);
        out.opinions.extend(over.into_iter().map(Opinion::Cleared));
    }

    /// An interface of this node lost its carrier or its address, or has both again.
    pub fn interface(&mut self, now: Time, network: NetworkId, up: bool) {
        let changed = if up { self.unplugged.remove(&network) } else { self.unplugged.insert(network) };
        if changed {
            self.next_look = now;
        }
    }

    /// Makes the heartbeats that are due; `None` when none are.
    pub fn beat(&mut self, now: Time) -> Option<Vec<(NodeId, NetworkId, Heartbeat)>> {
        let is_urgent = self.claims.is_urgent() && now >= self.last_beat + URGENT_GAP;
        let is_due = now >= self.next_beat;
        if !is_due && !is_urgent {
            return None;
        }
        self.sequence += 1;
        self.last_beat = now;
        if is_due {
            self.adapt_interval();
            self.next_beat = now + self.interval;
        }
        let is_slow_turn = self.sequence.is_multiple_of(self.settings.slow_every);
        let rumours = self.claims.next_rumours();
        let asks = self.asking > 0;
        self.asking = self.asking.saturating_sub(1);
        let hidden = is_planted(Flaw::IntervalNotAdvertised);
        let interval = if hidden { self.settings.interval } else { self.interval };
        let interval_ms = u16::try_from(interval.as_millis()).unwrap_or(u16::MAX);
        let slow_groups = self.slow_groups();
        let slow_ms = u64::from(interval_ms) * self.settings.slow_every * slow_groups;
        let slow_ms = u16::try_from(slow_ms).unwrap_or(u16::MAX);
        let slow_group = self.sequence / self.settings.slow_every.max(1) % slow_groups;
        let mut slow_count = 0;
        let mut beats = Vec::with_capacity(self.peers.len() * self.networks.len());
        for (to, peer) in &self.peers {
            let pace = self.pace(*to);
            if pace == Pace::Slow {
                let group = slow_count % slow_groups;
                slow_count += 1;
                if !is_slow_turn || group != slow_group {
                    continue;
                }
            }
            let hears = peer.heard_on(&self.networks);
            for network in &self.networks {
                let echo = peer.arrivals.get(network).map(|arrival| Echo {
                    sent_at: arrival.sent_at,
                    held: whole_micros(now.since(arrival.received_at)),
                });
                let heartbeat = Heartbeat {
                    sequence: self.sequence,
                    sent_at: Time::from_nanos(now.as_nanos() / 1_000 * 1_000),
                    interval_ms: if pace == Pace::Full { interval_ms } else { slow_ms },
                    boot: (!peer.knows_us).then_some(self.boot),
                    challenge: peer.boot,
                    echo,
                    hears,
                    goodbye: false,
                    sparse: pace == Pace::Slow,
                    asks,
                    rumours: rumours.clone(),
                    rider: None,
                };
                beats.push((*to, *network, heartbeat));
            }
        }
        Some(beats)
    }

    /// The last heartbeats of a node that stops on purpose.
    pub fn goodbye(&mut self, now: Time) -> Vec<(NodeId, NetworkId, Heartbeat)> {
        self.next_beat = now;
        let mut beats = self.beat(now).unwrap_or_default();
        beats.iter_mut().for_each(|(_, _, heartbeat)| heartbeat.goodbye = true);
        beats
    }

    /// Asks for a beat now.
    pub fn hurry(&mut self, now: Time) {
        self.next_beat = self.next_beat.min(now);
    }

    /// When the next beat or opinion is due.
    #[must_use]
    pub fn due(&self) -> Time {
        let urgent = if self.claims.is_urgent() { self.last_beat + URGENT_GAP } else { self.next_beat };
        self.next_beat.min(self.next_look).min(urgent)
    }

    /// How often this node beats now.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// When the last beat left.
    #[must_use]
    pub fn last_beat(&self) -> Time {
        self.last_beat
    }

    /// The members by whose graph this node watches.
    #[must_use]
    pub fn members(&self) -> &Arc<Members> {
        &self.members
    }

    /// Whether this node itself suspects `peer`.
    #[must_use]
    pub fn is_suspected(&self, peer: NodeId) -> bool {
        self.suspicion(peer).is_some()
    }

    /// Why this node itself suspects `peer`, if it does.
    #[must_use]
    pub fn suspicion(&self, peer: NodeId) -> Option<&Suspicion> {
        self.peers.get(&peer).and_then(|peer| peer.suspicion.as_ref())
    }

    /// The peers that this node itself suspects.
    pub fn suspects(&self) -> impl Iterator<Item = NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.suspicion.is_some()).map(|(id, _)| *id)
    }

    /// Whom `observer` says to be down.
    #[must_use]
    pub fn suspects_of(&self, observer: NodeId) -> BTreeSet<NodeId> {
        let members = self.members.incarnations().iter();
        let says = |subject: NodeId, incarnation: Incarnation| {
            self.claims.of(observer, subject, Slot::Health).is_some_and(|held| {
                held.rumour.incarnation >= incarnation && matches!(held.rumour.claim, Claim::Down { .. })
            })
        };
        members.filter(|(id, incarnation)| says(**id, **incarnation)).map(|(id, _)| *id).collect()
    }

    /// Whether no peer is heard on any network, or hears us.
    #[must_use]
    pub fn is_isolated(&self) -> bool {
        self.isolated
    }

    /// The networks on which nobody is heard although peers are heard elsewhere.
    #[must_use]
    pub fn networks_suspected(&self) -> &BTreeSet<NetworkId> {
        &self.networks_suspected
    }

    /// The networks whose interface here is down.
    #[must_use]
    pub fn unplugged(&self) -> &BTreeSet<NetworkId> {
        &self.unplugged
    }

    /// What everybody's claims prove, by subject.
    #[must_use]
    pub fn verdicts(&self) -> &BTreeMap<Subject, Verdict> {
        &self.verdicts
    }

    /// Whether `node` is down by verdict, whatever of.
    #[must_use]
    pub fn is_down(&self, node: NodeId) -> bool {
        self.downs().any(|(id, _)| id == node)
    }

    /// What a verdict finds `node` to be, when it is down.
    #[must_use]
    pub fn why_down(&self, node: NodeId) -> Option<Class> {
        self.downs().find(|(id, _)| *id == node).map(|(_, verdict)| verdict.class)
    }

    /// The members that may be removed now, each with its accusers: those whose verdict has stood for as long as its
    /// class calls for. Nobody while a case is doubtful, so that a group that dies together is removed in one view.
    #[must_use]
    pub fn condemned(&self, now: Time) -> BTreeMap<NodeId, BTreeSet<NodeId>> {
        if self.away.is_some() || self.bench.is_open(now, self.settings.interval * 3) {
            return BTreeMap::new();
        }
        let mut condemned = BTreeMap::new();
        let (interval, newest) =
            (self.settings.interval, self.downs().map(|(_, verdict)| verdict.since).max());
        for (node, verdict) in self.downs() {
            let peer = self.peers.get(&node).filter(|peer| peer.sequence.is_some());
            // One that behaves again is distrusted for a while; that is no reason to remove it.
            let is_heard = peer.is_some_and(|peer| now.since(peer.fresh_at) <= peer.interval * 3);
            if is_heard && verdict.class != Class::NodeIsolated {
                continue;
            }
            let silent_since = peer.map_or(Time::ZERO, |peer| peer.fresh_at);
            let due = match verdict.class {
                Class::ProcessCrashed => verdict.since + self.settings.crash_grace,
                Class::ProcessStalled => verdict.since.max(silent_since) + self.settings.stall_limit,
                // Those that die together fall silent within one beat of each other: the last one ends the wait.
                Class::HostDead
                | Class::NodeIsolated
                | Class::NetworkDownAtNode
                | Class::NetworkDown
                | Class::LinkCut
                | Class::LinkDegraded
                | Class::Split => (newest.unwrap_or(now) + interval).min(verdict.since + interval * 3),
            };
            if now >= due {
                let accusers = self.accusers(node);
                condemned.insert(node, accusers);
            }
        }
        condemned
    }

    /// How long `peer` has been silent on all networks, and how long it may be.
    #[must_use]
    pub fn silence(&self, now: Time, peer: NodeId) -> Option<(Duration, Duration)> {
        self.peers.get(&peer).map(|peer| (now.since(peer.fresh_at), self.limit(peer)))
    }

    /// When `peer` was last heard with the right challenge.
    #[must_use]
    pub fn heard_at(&self, peer: NodeId) -> Option<Time> {
        self.peers.get(&peer).and_then(|peer| peer.heard_at)
    }

    /// The incarnation of `peer` that was last heard, and the number it drew at its start.
    #[must_use]
    pub fn incarnation_of(&self, peer: NodeId) -> Option<(Incarnation, u64)> {
        self.peers.get(&peer).map(|peer| (peer.incarnation, peer.boot))
    }

    /// What this node's link to `peer` does on each network.
    pub fn links(&self, peer: NodeId) -> impl Iterator<Item = (NetworkId, Link)> {
        let arrivals = self.peers.get(&peer).into_iter().flat_map(|peer| peer.arrivals.iter());
        arrivals.map(|(network, arrival)| (*network, arrival.link()))
    }

    /// The peers that this node watches, each with the incarnation last heard and the number that it drew at its
    /// start, zero when unknown.
    pub fn watched(&self) -> impl Iterator<Item = (NodeId, Incarnation, u64)> {
        let watched = self.peers.iter().filter(|(id, _)| self.is_watched(**id));
        watched.map(|(id, peer)| (*id, peer.incarnation, peer.boot))
    }

    /// Every node with which heartbeats are exchanged.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> {
        self.peers.keys().copied()
    }

    fn downs(&self) -> impl Iterator<Item = (NodeId, &Verdict)> {
        self.verdicts.values().flat_map(|verdict| {
            let nodes: Vec<NodeId> = match &verdict.subject {
                Subject::Node(node) if *node != self.own => vec![*node],
                Subject::Nodes(nodes) => nodes.iter().copied().collect(),
                Subject::Node(_) | Subject::NodeNetwork(..) | Subject::Network(_) | Subject::Link { .. } => {
                    Vec::new()
                }
            };
            nodes.into_iter().map(move |node| (node, verdict))
        })
    }

    fn accusers(&self, node: NodeId) -> BTreeSet<NodeId> {
        let claims = self.claims.about(node, Slot::Health);
        let accuses = claims.filter(|held| matches!(held.rumour.claim, Claim::Down { .. }));
        accuses.map(|held| held.rumour.observer).collect()
    }

    fn is_watched(&self, node: NodeId) -> bool {
        self.members.neighbours(self.own).contains(&node)
    }

    fn pace(&self, node: NodeId) -> Pace {
        let asked = self.contacts.get(&node).copied().unwrap_or(Pace::Slow);
        if self.is_watched(node) { Pace::Full } else { asked }
    }

    /// In how many turns all slow contacts are served, so that a beat costs the same in a cluster of any size.
    fn slow_groups(&self) -> u64 {
        let slow = self.peers.keys().filter(|id| self.pace(**id) == Pace::Slow).count();
        u64::try_from(slow.div_ceil(SLOW_AT_ONCE)).unwrap_or(u64::MAX).max(1)
    }

    fn choose_peers(&mut self, now: Time) {
        let members = Arc::clone(&self.members);
        let neighbours = members.neighbours(self.own).iter();
        let wanted: BTreeSet<NodeId> =
            neighbours.chain(self.contacts.keys()).filter(|id| **id != self.own).copied().collect();
        // A member that is not watched any more is never looked at again: what is thought of it must not stay for ever. Of a
        // node that was removed nothing more is said (G5).
        let is_member = |id: &NodeId| members.incarnations().contains_key(id);
        for (id, peer) in &mut self.peers {
            let is_left = is_member(&self.own) && is_member(id) && !members.neighbours(self.own).contains(id);
            if is_left && peer.suspicion.take().is_some() {
                self.unsuspected.insert(*id);
            }
        }
        self.peers.retain(|id, _| wanted.contains(id));
        for id in wanted {
            let incarnation = self.members.incarnations().get(&id).copied().unwrap_or_default();
            let settings = &self.settings;
            let peer = self.peers.entry(id).or_insert_with(|| Peer::new(incarnation, settings, now));
            // One that others found silent before it came to be watched here has no grace left.
            let accuses = |held: &claims::Held| matches!(held.rumour.claim, Claim::Down { .. });
            peer.doubted |= peer.sequence.is_none() && self.claims.about(id, Slot::Health).any(accuses);
        }
        self.next_look = now;
    }

    fn tidy(&mut self, now: Time) {
        let (members, own) = (Arc::clone(&self.members), (self.own, self.incarnation));
        self.claims.tidy(now, own, |id| members.incarnations().contains_key(&id));
        for peer in self.peers.values_mut() {
            if now.since(peer.relapsed_at) > RELAPSE_MEMORY {
                peer.relapses = 0;
            }
        }
        self.unjudged = true;
    }

    fn say(&mut self, now: Time, subject: NodeId, claim: Claim) {
        let Some(peer) = self.peers.get(&subject) else { return };
        self.claims.say(now, (self.own, self.incarnation), subject, peer.incarnation, claim);
        self.learned(now, subject, claim);
    }

    fn learned(&mut self, now: Time, subject: NodeId, claim: Claim) {
        self.unjudged = true;
        match claim {
            Claim::Down { last_sequence, .. } => self.doubt(now, subject, last_sequence),
            Claim::Link { network, .. } => self.bench.unsettle(now, network),
            Claim::Alive { .. } | Claim::Well => {}
        }
    }

    /// Somebody says that `subject` is down: denies it if it was heard here since, and otherwise ends the grace that
    /// a peer never heard has after this node's own start.
    fn doubt(&mut self, now: Time, subject: NodeId, last_sequence: u64) {
        if !self.is_watched(subject) {
            return;
        }
        let Some(peer) = self.peers.get_mut(&subject) else { return };
        peer.doubted = true;
        self.next_look = self.next_look.min(now);
        let Some(sequence) = peer.sequence else { return };
        if peer.suspicion.is_none() && peer.evidence.is_none() && sequence > last_sequence {
            let (incarnation, claim) = (peer.incarnation, Claim::Alive { last_sequence: sequence });
            self.claims.say(now, (self.own, self.incarnation), subject, incarnation, claim);
        }
    }

    /// Adapts how often this node beats to how long its round trips take (4.4): longer at once, shorter slowly.
    fn adapt_interval(&mut self) {
        // The limits of the other rules are multiples of the interval that is configured.
        if self.settings.profile != Profile::Gossip {
            return;
        }
        let known = self.peers.values().filter_map(Peer::best).filter(|best| best.delay.is_known());
        let Some(median) = delay::median(known.map(|best| best.delay.mean())) else { return };
        let bounds = delay::IntervalBounds { min: self.settings.interval, max: self.settings.interval_max };
        self.interval = bounds.interval(median, self.interval);
    }
}

fn whole_micros(duration: Duration) -> Duration {
    Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

impl Machine for Detector {
    type Input = Input;
    type Output = Output;

    fn step(&mut self, now: Time, input: Input, out: &mut Output) {
        if let Some(wanted) = self.requested.take()
            && now.since(wanted) >= PAUSE_MIN
            && !is_planted(Flaw::NoDrain)
        {
            self.paused(now, now.since(wanted));
        }
        let is_deadline = matches!(input, Input::Deadline);
        match input {
            Input::Members(members) => self.set_members(now, members),
            Input::Heard { from, incarnation, network, received_at, heartbeat } => {
                let received_at = if is_planted(Flaw::NoDrain) { now } else { received_at };
                self.heard(now, from, incarnation, network, received_at, &heartbeat);
                if is_planted(Flaw::NoDrain) {
                    self.next_look = now;
                    self.look(now, out);
                }
                self.conclude(now, out);
            }
            Input::Evidence { peer, incarnation, evidence, at } => {
                self.testified(now, peer, incarnation, evidence, at);
                self.look(now, out);
            }
            Input::Deadline => self.look(now, out),
        }
        if let Some(beats) = self.beat(now) {
            out.send.extend(beats);
        }
        // What is due stays due until the deadline is served, however much arrives before.
        let due = self.due();
        self.requested = Some(if is_deadline { due.max(now + Duration::from_micros(100)) } else { due });
    }

    fn deadline(&self) -> Option<Time> {
        self.requested
    }
}
