//! Datagrams: who is heard, what is told to whom, and the lease that echoes make.
//!
//! Nothing here waits for anything: a heartbeat is built from what is known and leaves at once. What peers say
//! of others is kept per peer and dies with the peer's next word. See `membership` for what follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Batch, Event, Job, Node};
use crate::detect::Opinion;
use crate::ids::{ContainerId, Epoch, Incarnation, NetworkId, NodeId, ViewId};
use crate::lease::FREEZE_MAX;
use crate::time::Time;
use crate::wire::{Echo, Heartbeat};

/// A lateness below this is the ordinary noise of a scheduler and excuses nobody.
const PAUSE_MIN: Duration = Duration::from_millis(30);

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

/// What another node last said.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) incarnation: Incarnation,
    /// The number it drew at its start; it goes back to it as our challenge.
    boot: u64,
    /// Per network, its newest heartbeat: its own send time, and our receive time.
    heard: BTreeMap<NetworkId, (Time, Time)>,
    /// The highest sequence heard: what an older heartbeat says of others is out of date.
    sequence: u64,
    pub(super) suspects: BTreeSet<NodeId>,
    pub(super) fenced: BTreeMap<NodeId, ViewId>,
    pub(super) view: ViewId,
    pub(super) free_bytes: u64,
    /// When it was last heard with the right challenge.
    pub(super) fresh_at: Option<Time>,
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
        if from == self.settings.id || !self.nodes.contains_key(&from) {
            return;
        }
        let fresh = Peer {
            incarnation,
            boot: heartbeat.boot,
            heard: BTreeMap::new(),
            sequence: 0,
            suspects: BTreeSet::new(),
            fenced: BTreeMap::new(),
            view: ViewId(0),
            free_bytes: 0,
            fresh_at: None,
        };
        let peer = self.peers.entry(from).or_insert_with(|| fresh.clone());
        if incarnation < peer.incarnation {
            return;
        }
        if incarnation > peer.incarnation {
            *peer = fresh;
            self.detector.restarted(now, from);
        }
        if heartbeat.challenge != self.settings.boot || heartbeat.boot != peer.boot {
            return;
        }
        let newest = peer.heard.get(&network).is_none_or(|(sent_at, _)| heartbeat.sent_at > *sent_at);
        if newest {
            peer.heard.insert(network, (heartbeat.sent_at, received_at));
        }
        if heartbeat.sequence >= peer.sequence {
            peer.sequence = heartbeat.sequence;
            peer.view = heartbeat.view;
            peer.suspects = heartbeat.suspects.into_iter().collect();
            peer.fenced = heartbeat.fenced.into_iter().collect();
            peer.free_bytes = heartbeat.free_bytes;
        }
        peer.fresh_at = peer.fresh_at.max(Some(received_at));
        self.detector.arrival(from, network, heartbeat.sequence, received_at);
        if let Some(Echo { sent_at, granted: true, .. }) = heartbeat.echo
            && sent_at <= now
        {
            self.holder.granted(from, sent_at, heartbeat.view);
        }
        if self.detector.is_suspected(from) {
            self.form_opinions(now, out);
        }
    }

    /// A deadline came: everything that waited has been handed over, so silence is silence.
    pub(super) fn woke(&mut self, now: Time, out: &mut Batch) {
        self.form_opinions(now, out);
    }

    fn form_opinions(&mut self, now: Time, out: &mut Batch) {
        for accused in self.accusations(now).into_values().flatten() {
            self.detector.doubt(accused);
        }
        let mut opinions = Vec::new();
        self.detector.evaluate(now, &mut opinions);
        if opinions.iter().any(|opinion| matches!(opinion, Opinion::Suspected { .. })) {
            // Tell the others at once: a removal waits for their agreement.
            self.next_heartbeat = now;
        }
        out.publish.extend(opinions.into_iter().map(Event::Opinion));
    }

    /// Notices how late this node is for its own deadline, and takes that off everybody's silence.
    pub(super) fn measure_lag(&mut self, now: Time) {
        let Some(wanted) = self.requested_deadline.take() else { return };
        let lag = now.since(wanted);
        self.lag.note(now, lag);
        if lag >= PAUSE_MIN {
            self.detector.paused(now, lag);
        }
    }

    /// Sends the heartbeats that are due.
    pub(super) fn beat(&mut self, now: Time, out: &mut Batch) {
        if now < self.next_heartbeat {
            return;
        }
        let last_beat = self.next_heartbeat.before(self.settings.detect.interval);
        self.next_heartbeat = now + self.settings.detect.interval;
        self.sequence += 1;
        let grants = self.grants();
        if grants && self.view().is_some_and(|view| view.has(self.settings.id)) {
            self.holder.granted(self.settings.id, now, self.view_id());
        }
        let fenced: Vec<(NodeId, ViewId)> = self.fences(now).into_iter().collect();
        let suspects: Vec<NodeId> = self.detector.suspects().collect();
        let others: Vec<NodeId> = self.nodes.keys().filter(|id| **id != self.settings.id).copied().collect();
        for to in others {
            let is_member = self.view().is_some_and(|view| view.has(to));
            for network in self.settings.networks.clone() {
                let peer = self.peers.get(&to);
                let echo =
                    peer.and_then(|peer| peer.heard.get(&network)).map(|(sent_at, received_at)| Echo {
                        sent_at: *sent_at,
                        held: now.since(*received_at),
                        // A heartbeat is granted by the first beat after it came. To grant the last one of a dead
                        // node again and again would push its fence away for nothing.
                        granted: grants && is_member && *received_at >= last_beat,
                    });
                if echo.is_some_and(|echo| echo.granted) {
                    self.grantor.grant(now, to);
                }
                let heartbeat = Heartbeat {
                    sequence: self.sequence,
                    sent_at: now,
                    interval_ms: u16::try_from(self.settings.detect.interval.as_millis()).unwrap_or(u16::MAX),
                    boot: self.settings.boot,
                    challenge: peer.map_or(0, |peer| peer.boot),
                    view: self.view_id(),
                    free_bytes: self.memory.free_bytes,
                    echo,
                    suspects: suspects.clone(),
                    fenced: fenced.clone(),
                };
                out.send.push((to, network, heartbeat));
            }
        }
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
