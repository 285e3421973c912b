//! Datagrams: who is heard, what is told to whom, and the lease that echoes make.
//!
//! Nothing here waits for anything: a heartbeat is built from what is known and leaves at once. What peers say
//! of others is kept per peer and dies with the peer's next word. See `membership` for what follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Batch, Event, Job, Node};
use crate::detect::{self, Evidence, Heard, Output, Pace, graph};
use crate::ids::{ContainerId, Epoch, Incarnation, NetworkId, NodeId, ViewId};
use crate::lease::FREEZE_MAX;
use crate::probation::Sighting;
use crate::time::Time;
use crate::wire::{Echo, Heartbeat, Rider};

/// How often what a node's duties say is said again after it changed.
const RIDER_REPEATS: u8 = 3;

/// In every so many beats it is said although it did not change.
const RIDER_EVERY: u64 = 10;

/// How long a measured lateness widens the drift.
const LAG_MEMORY: Duration = Duration::from_secs(10);

/// The worst lateness of at least the last [`LAG_MEMORY`], and of at most twice that: of this span and of the last.
#[derive(Clone, Debug)]
pub(super) struct Lag {
    since: Time,
    current: Duration,
    previous: Duration,
}

impl Lag {
    pub(super) fn new(now: Time) -> Lag {
        Lag { since: now, current: Duration::ZERO, previous: Duration::ZERO }
    }

    pub(super) fn worst(&self) -> Duration {
        self.current.max(self.previous)
    }

    fn note(&mut self, now: Time, lag: Duration) {
        if now.since(self.since) > LAG_MEMORY {
            self.previous = std::mem::take(&mut self.current);
            self.since = now;
        }
        self.current = self.current.max(lag);
    }
}

/// What the duties of another node add to its heartbeats, as last heard.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    pub(super) incarnation: Incarnation,
    pub(super) fenced: BTreeMap<NodeId, ViewId>,
    pub(super) view: ViewId,
    pub(super) free_bytes: u64,
    pub(super) seen: BTreeMap<NodeId, Sighting>,
}

/// What this node's own duties added to its last heartbeats.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    rider: Option<Rider>,
    /// In how many more beats the same is said again.
    repeats: u8,
}

/// This node's own right to run containers.
#[derive(Clone, Debug, Default)]
pub(super) struct Lease {
    /// Until when, without the allowance for drift.
    pub(super) deadline: Option<Time>,
    drift: Duration,
    pub(super) live: bool,
    /// How often it has lapsed; work that spans a lapse is void.
    pub(super) lapses: u64,
    told: (Time, Vec<(ContainerId, Epoch)>),
}

impl Lease {
    pub(super) fn lapses_at(&self) -> Option<Time> {
        let deadline = self.deadline.filter(|_| self.live)?;
        Some(deadline.before(self.drift))
    }
}

impl Node {
    #[expect(clippy::too_many_arguments, reason = "the fields of one input, which has no other home")]
    pub(super) fn heard(
        &mut self,
        now: Time,
        from: NodeId,
        incarnation: Incarnation,
        network: NetworkId,
        received_at: Time,
        heartbeat: Heartbeat,
        out: &mut Batch,
    ) {
        let heard = self.detector.heard(now, from, incarnation, network, received_at, &heartbeat);
        let Heard::Counted { newest } = heard else { return };
        if let Some(rider) = heartbeat.rider {
            if let Some(Echo { sent_at, .. }) = heartbeat.echo
                && rider.granted
                && sent_at <= now
            {
                self.holder.granted(from, sent_at, rider.view);
            }
            if let Some(report) = rider.report {
                let way = self.detector.links(from).filter_map(|(_, link)| link.round_trip).max();
                let unix_ms = self.unix_ms(received_at);
                self.candidates.reported(from, report, unix_ms, way.unwrap_or_default());
            }
            let peer = self.peers.entry(from).or_default();
            if newest || incarnation > peer.incarnation {
                let (fenced, seen) = (rider.fenced.into_iter().collect(), rider.seen.into_iter().collect());
                *peer = Peer { incarnation, fenced, view: rider.view, free_bytes: rider.free_bytes, seen };
            }
        }
        let mut output = Output::default();
        self.detector.conclude(now, &mut output);
        take(output, out);
    }

    /// The kernel says something of a peer.
    pub(super) fn testified(
        &mut self,
        now: Time,
        peer: NodeId,
        incarnation: Incarnation,
        evidence: Evidence,
        at: Time,
        out: &mut Batch,
    ) {
        self.detector.testified(now, peer, incarnation, evidence, at);
        self.woke(now, out);
    }

    /// A deadline came: everything that waited has been handed over, so silence is silence.
    pub(super) fn woke(&mut self, now: Time, out: &mut Batch) {
        let mut output = Output::default();
        self.detector.look(now, &mut output);
        take(output, out);
    }

    /// Notices how late this node is for its own deadline, and takes that off everybody's silence.
    pub(super) fn measure_lag(&mut self, now: Time) {
        let Some(wanted) = self.requested_deadline.take() else { return };
        let lag = now.since(wanted);
        self.lag.note(now, lag);
        if lag >= detect::PAUSE_MIN {
            self.detector.paused(now, lag);
        }
    }

    /// Sends the heartbeats that are due.
    pub(super) fn beat(&mut self, now: Time, out: &mut Batch) {
        let last_beat = self.detector.last_beat();
        let Some(beats) = self.detector.beat(now) else { return };
        let grants = self.grants();
        if grants && self.view().is_some_and(|view| view.has(self.settings.id)) {
            self.holder.granted(self.settings.id, now, self.view_id());
        }
        let mut rider = Rider {
            view: self.view_id(),
            free_bytes: self.memory.free_bytes,
            granted: false,
            fenced: self.fences(now).into_iter().collect(),
            seen: Vec::new(),
            report: None,
        };
        self.look_at_candidates(now, &mut rider);
        if self.told.rider.as_ref() != Some(&rider) {
            self.told = Told { rider: Some(rider.clone()), repeats: RIDER_REPEATS };
        }
        let is_news = self.told.repeats > 0;
        self.told.repeats = self.told.repeats.saturating_sub(1);
        for (to, network, mut heartbeat) in beats {
            let is_member = self.view().is_some_and(|view| view.has(to));
            // A heartbeat is granted by the first beat after it came. To grant the last one of a dead node again
            // and again would push its fence away for nothing.
            let granted =
                grants && is_member && heartbeat.echo.is_some_and(|echo| now.before(echo.held) >= last_beat);
            if granted {
                self.grantor.grant(now, to);
            }
            if granted || is_news || heartbeat.sequence.is_multiple_of(RIDER_EVERY) {
                heartbeat.rider = Some(Rider { granted, ..rider.clone() });
            }
            out.send.push((to, network, heartbeat));
        }
    }

    /// Whom this node exchanges heartbeats with beside those that it watches: everybody now and then, and at full
    /// pace where a lease or an admission hangs on it.
    pub(super) fn choose_contacts(&mut self, now: Time) {
        let Some((_, view)) = &self.view else { return };
        let own = self.settings.id;
        let owners: BTreeSet<NodeId> = self.active_owners().collect();
        let needs = |node: &NodeId| !view.has(*node) || owners.contains(node);
        let contacts = self.nodes.keys().filter(|id| **id != own).map(|id| {
            let is_full = self.is_measured(*id)
                || self.is_measured(own)
                || (view.grantors.contains(&own) && needs(id))
                || (view.grantors.contains(id) && needs(&own))
                || self.nodes.len() <= graph::ALL_PAIRS_MAX;
            (*id, if is_full { Pace::Full } else { Pace::Slow })
        });
        let contacts = contacts.collect();
        self.detector.set_contacts(now, contacts);
    }

    /// Whether this node's echoes renew leases. One that has just started does not know yet whom the others have
    /// removed, and for whose fence it has vouched itself: it grants nothing until it is in step.
    fn grants(&self) -> bool {
        self.synced && self.view().is_some_and(|view| view.grantors.contains(&self.settings.id))
    }

    /// The removed owners for the end of whose leases this node vouches, each with the view that removed it.
    pub(super) fn fences(&self, now: Time) -> BTreeMap<NodeId, ViewId> {
        let over = self.leases_over().filter(|(_, _, over_at)| now >= *over_at);
        over.map(|(node, removed_in, _)| (node, removed_in)).collect()
    }

    /// When this node may next vouch for the end of a lease that it can't vouch for yet.
    pub(super) fn next_fence(&self, now: Time) -> Option<Time> {
        self.leases_over().map(|(_, _, over_at)| over_at).filter(|over_at| *over_at > now).min()
    }

    /// The removed owners, each with the view that removed it and when this node may vouch for it.
    fn leases_over(&self) -> impl Iterator<Item = (NodeId, ViewId, Time)> {
        let view =
            self.view().filter(|view| !view.removed.is_empty() && self.grants() && self.cluster.is_some());
        let owners: BTreeSet<NodeId> = match view {
            Some(_) => self.active_owners().collect(),
            None => BTreeSet::new(),
        };
        let (lease, drift) = (self.lease_length(), self.drift());
        let removed = view.into_iter().flat_map(|view| view.removed.iter());
        removed
            .filter(move |(node, _)| owners.contains(node))
            .map(move |(node, removed_in)| (*node, *removed_in, self.grantor.over_at(*node, lease, drift)))
    }

    fn active_owners(&self) -> impl Iterator<Item = NodeId> {
        self.containers.values().filter(|(_, row)| row.is_active()).map(|(_, row)| row.owner)
    }

    /// Passes a longer lease on to the containers, or notices that it has lapsed.
    pub(super) fn renew(&mut self, now: Time, out: &mut Batch) {
        // Without the cluster's row the lease's length is a guess, and a guess may be too long.
        let (Some((_, view)), Some(_)) = (&self.view, &self.cluster) else { return };
        self.lease.deadline = self.holder.deadline(view, self.lease_length());
        self.lease.drift = self.drift();
        let drift = self.lease.drift;
        let deadline = self.lease.deadline.unwrap_or(Time::ZERO);
        let left = deadline.since(now);
        if self.lease.live && left <= drift {
            self.lease.live = false;
            self.lease.lapses += 1;
            out.publish.push(Event::LeaseLapsed);
        } else if !self.lease.live && left > drift + FREEZE_MAX {
            self.lease.live = true;
            out.publish.push(Event::LeaseRenewed);
        }
        if !self.lease.live {
            return;
        }
        let containers = self.runnable();
        let (told, known) = &self.lease.told;
        if containers.is_empty()
            || (deadline <= *told + self.settings.detect.interval / 2 && containers == *known)
        {
            return;
        }
        self.lease.told = (deadline, containers.clone());
        self.start_job(Job::Renew { deadline, drift, containers }, out);
    }
}

fn take(output: Output, out: &mut Batch) {
    out.probe.extend(output.probe);
    out.publish.extend(output.opinions.into_iter().map(Event::Opinion));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_lateness_of_the_last_ten_seconds_is_forgotten() {
        let at = |ms: u64| Time::from_nanos(ms * 1_000_000);
        let mut lag = Lag::new(at(0));
        lag.note(at(100), Duration::from_millis(400));
        lag.note(at(9_900), Duration::from_millis(350));
        lag.note(at(10_200), Duration::ZERO);
        assert_eq!(lag.worst(), Duration::from_millis(400));
        lag.note(at(19_000), Duration::ZERO);
        assert!(lag.worst() >= Duration::from_millis(350));
        lag.note(at(31_000), Duration::ZERO);
        assert_eq!(lag.worst(), Duration::ZERO);
    }
}
