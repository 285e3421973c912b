//! The rules: from arrivals, evidence and claims to suspicions, link states and verdicts.
//!
//! Each function forms one kind of opinion from what is known at one instant and appends what changed. The veto
//! (PROTOCOLS 6) stands before every accusation: who is cut off itself, or hears nobody better, accuses nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::claims::Slot;
use super::peer::Peer;
use super::verdict::Class;
use super::{
    Detector, Evidence, Opinion, Output, PROBE_BEATS, Profile, Rule, Subject, Suspicion, Verdict, delay,
    matrix, verdict,
};
use crate::flaw::{Flaw, is_planted};
use crate::ids::{NetworkId, NodeId};
use crate::time::Time;
use crate::wire::{Claim, LinkState, Why};

/// How far a silent peer must lag behind the freshest one, in beats: more than senders are out of phase.
const LAG_MIN_BEATS: f64 = 1.5;

/// After how many beats of silence a peer may have fallen silent together with another that is down: one less than
/// that one, for the phase between them.
const LATE_BEATS: f64 = 1.9;

/// The longest that a peer that keeps relapsing must behave before it is believed.
const HOLD_MAX: Duration = Duration::from_secs(10);

impl Detector {
    pub(super) fn limit(&self, peer: &Peer) -> Duration {
        let settings = &self.settings;
        let limit = match settings.profile {
            Profile::Gossip => peer.patience(settings),
            Profile::Timeout => peer.timeout.current(),
            Profile::Relative if self.networks.len() > 1 => settings.thresholds.process_silence,
            Profile::Relative => settings.thresholds.process_lag,
        };
        if peer.sequence.is_none() && !peer.doubted {
            return limit.max(settings.start_grace.saturating_sub(peer.fresh_at.since(self.started)));
        }
        limit
    }

    /// Whether this node is cut off: it hears nobody, or nobody that it hears hears it.
    pub(super) fn judge_self(&mut self, now: Time, out: &mut Output) {
        let watched: Vec<&Peer> =
            self.peers.iter().filter(|(id, _)| self.is_watched(**id)).map(|(_, peer)| peer).collect();
        let is_gone = |peer: &Peer| matches!(peer.evidence, Some((Evidence::Gone | Evidence::Goodbye, _)));
        let hears = |peer: &&Peer| now.since(peer.fresh_at) <= self.limit(peer);
        let is_alone = watched.iter().all(|peer| !hears(peer));
        let is_mute = watched.len() > 1
            && watched
                .iter()
                .filter(|peer| hears(peer))
                .all(|peer| peer.deaf_since.is_some_and(|since| now.since(since) > self.limit(peer)));
        let testified = watched.iter().any(|peer| is_gone(peer));
        let isolated =
            !is_planted(Flaw::NoIsolation) && !watched.is_empty() && (is_alone || is_mute) && !testified;
        if isolated == self.isolated {
            return;
        }
        self.isolated = isolated;
        self.unjudged = true;
        out.opinions.push(if isolated { Opinion::Isolated } else { Opinion::Reconnected });
        if !isolated && !is_planted(Flaw::NoRebase) {
            // Re-base on heal (3.1): the first heartbeat after an outage must not make the others look dead.
            for peer in self.peers.values_mut() {
                peer.fresh_at = now;
                peer.deaf_since = None;
            }
            self.bench.release(now, &self.members);
            self.was_away(now);
        }
    }

    pub(super) fn judge_links(&mut self, now: Time, out: &mut Output) {
        for (id, peer) in &mut self.peers {
            let before: BTreeMap<NetworkId, LinkState> =
                peer.arrivals.iter().map(|(network, arrival)| (*network, arrival.state)).collect();
            for (network, to) in peer.judge_links(now, &self.unplugged, &self.settings) {
                let from = before.get(&network).copied().unwrap_or(LinkState::Unknown);
                out.opinions.push(Opinion::Link { peer: *id, network, from, to });
            }
        }
        self.judge_networks(now, out);
        self.tell_links(now);
    }

    /// Tells the others what became of links: at once where a whole network fell silent or the other end says the same,
    /// and otherwise as soon as it is beyond doubt. A peer that is down, or silent on all networks, is no matter of links unless others hear it.
    fn tell_links(&mut self, now: Time) {
        if self.isolated {
            return;
        }
        let down: BTreeSet<NodeId> = self.downs().map(|(id, _)| id).collect();
        let mut news = Vec::new();
        for (id, peer) in &mut self.peers {
            let is_heard = || {
                let vouchers = self.claims.about(*id, Slot::Vouch);
                let mut claims = vouchers.map(|held| held.rumour.claim);
                claims.any(|claim| matches!(claim, Claim::Alive { last_sequence } if Some(last_sequence) > peer.sequence))
            };
            if !self.members.neighbours(self.own).contains(id)
                || down.contains(id)
                || (peer.is_silent() && !is_heard())
            {
                continue;
            }
            for (network, arrival) in &mut peer.arrivals {
                let state = if arrival.state == LinkState::Unknown { LinkState::Up } else { arrival.state };
                let is_told =
                    arrival.is_plain(now, peer.interval) || self.networks_suspected.contains(network);
                if is_told && state != std::mem::replace(&mut arrival.told, state) {
                    let loss_permille = arrival.link().loss_permille;
                    news.push((*id, Claim::Link { network: *network, state, loss_permille }));
                }
            }
        }
        for (id, claim) in news {
            self.say(now, id, claim);
        }
    }

    fn judge_networks(&mut self, now: Time, out: &mut Output) {
        for network in self.networks.clone() {
            let fresh: Vec<&Peer> = (self.peers.iter())
                .filter(|(id, peer)| self.is_watched(**id) && now.since(peer.fresh_at) <= peer.interval * 3)
                .map(|(_, peer)| peer)
                .collect();
            let is_silent = |peer: &&Peer| {
                peer.arrivals
                    .get(&network)
                    .is_some_and(|arrival| matches!(arrival.state, LinkState::Mute | LinkState::Down))
            };
            let silent = fresh.iter().filter(|peer| is_silent(peer)).count();
            if silent > 0 && silent == fresh.len() {
                if self.networks_suspected.insert(network) {
                    out.opinions.push(Opinion::NetworkSuspected { network, or_link: fresh.len() == 1 });
                }
            } else if silent < fresh.len() && self.networks_suspected.remove(&network) {
                out.opinions.push(Opinion::NetworkCleared(network));
            }
        }
    }

    pub(super) fn judge_peers(&mut self, now: Time, out: &mut Output) {
        let mut silences: Vec<(Duration, NodeId)> = (self.peers.iter())
            .filter(|(id, peer)| peer.sequence.is_some() && self.is_watched(**id))
            .map(|(id, peer)| (now.since(peer.fresh_at), *id))
            .collect();
        silences.sort();
        let lagging = self.lagging(now);
        let ids: Vec<NodeId> = self.peers.keys().copied().filter(|id| self.is_watched(*id)).collect();
        for id in ids {
            let fresh =
                silences.iter().find(|(_, other)| *other != id).map(|(silent, other)| (*other, *silent));
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let is_late =
                now.since(peer.fresh_at) > peer.interval.mul_f64(PROBE_BEATS) && peer.sequence.is_some();
            if is_late && now >= peer.probed_at + self.settings.interval / 2 {
                peer.probed_at = now;
                out.probe.push(id);
            }
            let Some(peer) = self.peers.get(&id) else { continue };
            if self.is_suspected(id) {
                self.reconsider(now, id, out);
            } else if let Some((rule, why)) = self.grounds(now, peer, fresh, lagging.contains(&id)) {
                self.suspect(now, id, rule, why, fresh, out);
            }
        }
    }

    /// Whom the relative rules find to have failed (3.1, 3.2); nobody under another profile.
    fn lagging(&mut self, now: Time) -> BTreeSet<NodeId> {
        if self.settings.profile != Profile::Relative {
            return BTreeSet::new();
        }
        let mut cells = BTreeMap::new();
        for (id, peer) in self.peers.iter().filter(|(id, _)| self.is_watched(**id)) {
            let limit = self.limit(peer);
            for network in &self.networks {
                let age = peer.age(now, *network, limit, &self.settings);
                cells.insert((*id, *network), matrix::Cell { age });
            }
        }
        let table = matrix::Table { now, cells, previous: std::mem::take(&mut self.relative) };
        let judgement = matrix::judge(&table, &self.settings.thresholds);
        self.relative = judgement.state;
        let processes = judgement.findings.into_iter().filter_map(|finding| match finding {
            matrix::Finding::Process(id) => Some(id),
            matrix::Finding::Link(..)
            | matrix::Finding::Network { .. }
            | matrix::Finding::Isolated
            | matrix::Finding::Indistinguishable => None,
        });
        processes.collect()
    }

    /// Whether there are grounds to suspect `peer`, and which.
    fn grounds(
        &self,
        now: Time,
        peer: &Peer,
        fresh: Option<(NodeId, Duration)>,
        is_lagging: bool,
    ) -> Option<(Rule, Why)> {
        let silent = now.since(peer.fresh_at);
        match peer.evidence {
            Some((Evidence::Goodbye, _)) => return Some((Rule::Kernel, Why::Left)),
            Some((Evidence::Gone, _)) => return Some((Rule::Kernel, Why::Crashed)),
            Some((Evidence::Acknowledges | Evidence::Unreachable, _)) | None => {}
        }
        // The veto (PROTOCOLS 6): cut off from all, or silent like all, is nobody's fault.
        let (_, freshest) = fresh.filter(|_| !self.isolated)?;
        let limit = self.limit(peer);
        let lags = silent.saturating_sub(freshest) > self.settings.interval.mul_f64(LAG_MIN_BEATS);
        let rule = match self.settings.profile {
            Profile::Gossip => Rule::Gossip,
            Profile::Timeout => Rule::Timeout,
            Profile::Relative => Rule::Relative,
        };
        let is_late = match self.settings.profile {
            // A finding stands until it is contradicted, and one that was heard meanwhile has contradicted it.
            Profile::Relative => is_lagging && silent > limit,
            Profile::Gossip | Profile::Timeout => silent > limit && lags,
        };
        let answers = matches!(peer.evidence, Some((Evidence::Acknowledges, _)));
        if is_late {
            return Some((rule, if answers { Why::Stalled } else { Why::Silent }));
        }
        let is_deaf = peer.deaf_since.is_some_and(|since| now.since(since) > limit * 2);
        (is_deaf && silent <= limit).then_some((Rule::Deaf, Why::Deaf))
    }

    fn suspect(
        &mut self,
        now: Time,
        id: NodeId,
        rule: Rule,
        why: Why,
        fresh: Option<(NodeId, Duration)>,
        out: &mut Output,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let silent = now.since(peer.fresh_at);
        peer.suspicion = Some(Suspicion { since: now, why, rule, heard_since: None });
        peer.relapses = peer.relapses.saturating_add(1);
        peer.relapsed_at = now;
        let last_sequence = peer.sequence.unwrap_or_default();
        let limit = self.peers.get(&id).map_or(Duration::ZERO, |peer| self.limit(peer));
        let silent_ms = u32::try_from(silent.as_millis()).unwrap_or(u32::MAX);
        self.say(now, id, Claim::Down { why, last_sequence, silent_ms });
        out.opinions.push(Opinion::Suspected { peer: id, why, rule, silent, limit, fresh });
    }

    /// A suspected peer: it may be heard again, or more may be known of it.
    fn reconsider(&mut self, now: Time, id: NodeId, out: &mut Output) {
        let Some(peer) = self.peers.get(&id) else { return };
        let Some(mut suspicion) = peer.suspicion else { return };
        let silent = now.since(peer.fresh_at);
        let limit = self.limit(peer);
        let last_sequence = peer.sequence.unwrap_or_default();
        let silent_ms = u32::try_from(silent.as_millis()).unwrap_or(u32::MAX);
        let why = match peer.evidence {
            Some((Evidence::Goodbye, _)) => Why::Left,
            Some((Evidence::Gone, _)) => Why::Crashed,
            Some((Evidence::Acknowledges, _)) if suspicion.why == Why::Silent => Why::Stalled,
            Some((Evidence::Unreachable, _)) if suspicion.why == Why::Stalled => Why::Silent,
            Some((Evidence::Acknowledges | Evidence::Unreachable, _)) | None => suspicion.why,
        };
        let is_gone = matches!(why, Why::Left | Why::Crashed);
        let is_deaf = peer.deaf_since.is_some_and(|since| now.since(since) > limit);
        let is_heard = silent <= limit.min(peer.interval * 3) && !is_deaf;
        if why != suspicion.why {
            suspicion.why = why;
            self.set_suspicion(id, Some(suspicion));
            self.say(now, id, Claim::Down { why, last_sequence, silent_ms });
        }
        if !is_heard || (is_gone && peer_is_gone(self.peers.get(&id))) {
            suspicion.heard_since = None;
            self.set_suspicion(id, Some(suspicion));
            return;
        }
        // One that keeps stuttering must behave for longer each time, if it was found to be down: otherwise it is
        // believed at once, or accusations of different times would add up.
        let relapses = self.peers.get(&id).filter(|_| self.is_down(id)).map_or(0, |peer| peer.relapses);
        let hold = match relapses {
            0..=2 => Duration::ZERO,
            more => (self.settings.interval * 5).saturating_mul(1 << (more - 3).min(8)).min(HOLD_MAX),
        };
        let since = *suspicion.heard_since.get_or_insert(now);
        if now.since(since) < hold {
            self.set_suspicion(id, Some(suspicion));
            return;
        }
        self.set_suspicion(id, None);
        self.say(now, id, Claim::Well);
        out.opinions.push(Opinion::Cleared(id));
    }

    fn set_suspicion(&mut self, id: NodeId, suspicion: Option<Suspicion>) {
        if let Some(peer) = self.peers.get_mut(&id) {
            if suspicion.is_none() {
                peer.readmitted();
            }
            peer.suspicion = suspicion;
        }
    }

    pub(super) fn judge_claims(&mut self, now: Time, out: &mut Output) {
        self.unjudged = false;
        let refute = delay::refute_wait(self.peers.values().filter_map(Peer::best).map(|best| &best.delay));
        let is_late = |id: &NodeId, peer: &Peer| {
            self.is_watched(*id) && now.since(peer.fresh_at) > peer.interval.mul_f64(LATE_BEATS)
        };
        let late = self.peers.iter().filter(|(id, peer)| is_late(id, peer)).map(|(id, _)| *id).collect();
        let case = verdict::Case {
            now,
            late,
            members: &self.members,
            claims: &self.claims,
            refute,
            interval: self.settings.interval,
        };
        let mut findings = self.bench.judge(&case, &self.verdicts);
        if self.isolated {
            // What one hears of others while cut off is of the past; of oneself it is certain.
            findings.retain(|_, (class, _)| *class == Class::ProcessCrashed);
            findings.insert(Subject::Node(self.own), (Class::NodeIsolated, Vec::new()));
        }
        let before = std::mem::take(&mut self.verdicts);
        for (subject, (class, evidence)) in findings {
            let known = before.get(&subject).filter(|verdict| verdict.class == class);
            let since = known.map_or(now, |verdict| verdict.since);
            let is_news = known.is_none();
            let verdict = Verdict { class, subject: subject.clone(), since, evidence };
            if is_news {
                out.opinions.push(Opinion::Verdict(verdict.clone()));
            }
            self.verdicts.insert(subject, verdict);
        }
        if self.bench.is_pending() {
            // Only a case waits for the end of a denial; links settle slowly, and there are many.
            let tick = self.settings.interval / 8;
            let wait =
                if self.bench.has_case() { refute.clamp(Duration::from_millis(1), tick) } else { tick };
            let soon = now + wait;
            self.next_look = self.next_look.min(soon);
        }
        for (subject, verdict) in before {
            if !self.verdicts.contains_key(&subject) {
                out.opinions.push(Opinion::Over(verdict));
            }
        }
    }

    pub(super) fn when_to_look(&self, now: Time) -> Time {
        let tick = self.settings.interval / 8;
        if self.bench.is_pending() {
            return now + tick;
        }
        let peers = self.peers.iter().filter(|(id, _)| self.is_watched(**id));
        let times = peers.flat_map(|(_, peer)| peer.times_to_look(self.limit(peer)));
        // What should have come and did not is looked for now and then; the silence that counts, to the moment.
        let next = times.map(|at| if at > now { at } else { now + tick }).min();
        // A heartbeat can only bring the time forward, so it is looked for once in an interval at least.
        let latest = now + self.settings.interval;
        next.unwrap_or(latest).min(latest)
    }
}

fn peer_is_gone(peer: Option<&Peer>) -> bool {
    peer.is_some_and(|peer| matches!(peer.evidence, Some((Evidence::Gone | Evidence::Goodbye, _))))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Members, Settings};
    use super::*;
    use crate::ids::Incarnation;
    use crate::wire::{Heartbeat, Rumour};

    const BOOT: u64 = 7;
    const PEER: NodeId = NodeId(2);

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    fn detector() -> Detector {
        let networks = vec![NetworkId(0)];
        let mut detector =
            Detector::new(Settings::default(), NodeId(1), Incarnation(1), BOOT, networks, at(0));
        let members = [1, 2, 3].map(|id| (NodeId(id), Incarnation(1)));
        detector.set_members(at(0), Arc::new(Members::new(members.into(), 0)));
        detector
    }

    fn heartbeat() -> Heartbeat {
        Heartbeat {
            sequence: 1,
            sent_at: at(0),
            interval_ms: 100,
            boot: Some(9),
            challenge: BOOT,
            echo: None,
            hears: 1,
            goodbye: false,
            sparse: false,
            asks: false,
            rumours: Vec::new(),
            rider: None,
        }
    }

    fn refused(detector: &mut Detector, now: Time) -> bool {
        detector.testified(now, PEER, Incarnation(1), Evidence::Gone, now);
        detector.look(now, &mut Output::default());
        detector.is_suspected(PEER)
    }

    #[test]
    fn a_refusal_accuses_only_a_peer_that_was_heard() {
        let mut detector = detector();
        assert!(!refused(&mut detector, at(10)), "it may not have started yet");
        detector.heard(at(20), PEER, Incarnation(1), NetworkId(0), at(20), &heartbeat());
        assert!(refused(&mut detector, at(30)));
    }

    #[test]
    fn one_that_is_heard_after_a_refusal_is_cleared_and_its_timeout_starts_anew() {
        let mut detector = detector();
        detector.heard(at(20), PEER, Incarnation(1), NetworkId(0), at(20), &heartbeat());
        assert!(refused(&mut detector, at(30)));
        let again = Heartbeat { sequence: 2, ..heartbeat() };
        detector.heard(at(120), PEER, Incarnation(1), NetworkId(0), at(120), &again);
        detector.look(at(121), &mut Output::default());
        assert!(!detector.is_suspected(PEER));
        let timeout = detector.peers.get(&PEER).map(|peer| peer.timeout.current());
        assert_eq!(timeout, Some(Settings::default().timeout.initial));
    }

    #[test]
    fn one_that_ends_before_a_view_knows_that_it_was_started_again_is_found_dead_all_the_same() {
        let mut detector = detector();
        detector.heard(at(20), NodeId(3), Incarnation(1), NetworkId(0), at(20), &heartbeat());
        let again = Heartbeat { boot: Some(10), ..heartbeat() };
        detector.heard(at(30), PEER, Incarnation(2), NetworkId(0), at(30), &again);
        detector.testified(at(40), PEER, Incarnation(2), Evidence::Gone, at(40));
        let mut out = Output::default();
        detector.look(at(41), &mut out);
        assert!(detector.is_suspected(PEER));
        let claim = Claim::Down { why: Why::Crashed, last_sequence: 1, silent_ms: 10 };
        let (observer, subject) = (NodeId(3), PEER);
        let accuses = Rumour { observer, subject, incarnation: Incarnation(2), version: 1 << 32, claim };
        let beat = Heartbeat { sequence: 2, rumours: vec![accuses], ..heartbeat() };
        detector.heard(at(50), NodeId(3), Incarnation(1), NetworkId(0), at(50), &beat);
        detector.conclude(at(51), &mut out);
        assert!(detector.is_down(PEER), "{out:?}");
        assert!(detector.suspects_of(NodeId(3)).contains(&PEER));
    }

    #[test]
    fn who_was_away_forgets_what_others_said_and_asks_before_it_concludes_anything() {
        let mut detector = detector();
        for peer in [2, 3] {
            detector.heard(at(20), NodeId(peer), Incarnation(1), NetworkId(0), at(20), &heartbeat());
        }
        detector.beat(at(30));
        detector.paused(at(2_030), Duration::from_secs(2));
        // It finds in its queue what was said long ago, and taken back since.
        let claim = Claim::Down { why: Why::Silent, last_sequence: 1, silent_ms: 300 };
        let (observer, subject) = (NodeId(3), PEER);
        let rumour = Rumour { observer, subject, incarnation: Incarnation(1), version: 1 << 32, claim };
        let old = Heartbeat { sequence: 5, rumours: vec![rumour], ..heartbeat() };
        detector.heard(at(2_031), NodeId(3), Incarnation(1), NetworkId(0), at(2_031), &old);
        let mut out = Output::default();
        detector.conclude(at(2_031), &mut out);
        assert!(detector.away.is_some() && detector.condemned(at(2_400)).is_empty());
        detector.look(at(2_081), &mut out);
        assert!(detector.suspects_of(NodeId(3)).is_empty(), "forgotten");
        let asks = |beats: Option<Vec<(NodeId, NetworkId, Heartbeat)>>| {
            beats.unwrap().iter().all(|beat| beat.2.asks)
        };
        assert!(
            asks(detector.beat(at(2_131)))
                && asks(detector.beat(at(2_231)))
                && !asks(detector.beat(at(2_331)))
        );
        for peer in [2, 3] {
            let fresh = Heartbeat { sequence: 6, ..heartbeat() };
            detector.heard(at(2_335), NodeId(peer), Incarnation(1), NetworkId(0), at(2_335), &fresh);
        }
        detector.look(at(2_341), &mut out);
        assert!(detector.away.is_none());
        assert!(detector.verdicts().is_empty(), "{out:?}");
    }

    #[test]
    fn who_is_asked_says_everything_again() {
        let mut detector = detector();
        for peer in [2, 3] {
            detector.heard(at(20), NodeId(peer), Incarnation(1), NetworkId(0), at(20), &heartbeat());
        }
        assert!(refused(&mut detector, at(30)));
        let said = |detector: &mut Detector, ms| {
            detector.beat(at(ms)).unwrap().iter().any(|(_, _, beat)| !beat.rumours.is_empty())
        };
        for beat in 0..3 {
            assert!(said(&mut detector, 100 + beat * 100));
        }
        assert!(!said(&mut detector, 400));
        let asking = Heartbeat { sequence: 2, asks: true, ..heartbeat() };
        detector.heard(at(410), NodeId(3), Incarnation(1), NetworkId(0), at(410), &asking);
        assert!(said(&mut detector, 500));
    }

    #[test]
    fn a_stall_is_as_long_as_the_silence_and_not_as_the_distrust_after_it() {
        let mut detector = detector();
        let stalled = Verdict {
            class: Class::ProcessStalled,
            subject: Subject::Node(PEER),
            since: at(1_000),
            evidence: Vec::new(),
        };
        detector.verdicts.insert(stalled.subject.clone(), stalled);
        let stall_limit = Settings::default().stall_limit;
        detector.heard(at(9_000), PEER, Incarnation(1), NetworkId(0), at(9_000), &heartbeat());
        assert!(detector.condemned(at(1_001) + stall_limit).is_empty(), "it spoke meanwhile");
        assert!(detector.condemned(at(9_001) + stall_limit).contains_key(&PEER));
        let again = Heartbeat { sequence: 2, ..heartbeat() };
        let now = at(9_001) + stall_limit;
        detector.heard(now, PEER, Incarnation(1), NetworkId(0), now, &again);
        assert!(detector.condemned(now).is_empty(), "it speaks now");
    }

    #[test]
    fn a_lossy_link_is_well_again_after_two_seconds_without_loss() {
        let mut detector = detector();
        let mut states = Vec::new();
        for beat in 1..=80_u64 {
            let now = at(beat * 100);
            if ![40, 42, 55].contains(&beat) {
                let heartbeat = Heartbeat { sequence: beat, ..heartbeat() };
                detector.heard(now, PEER, Incarnation(1), NetworkId(0), now, &heartbeat);
            }
            detector.look(now, &mut Output::default());
            states.push(detector.peers.get(&PEER).unwrap().arrivals.get(&NetworkId(0)).unwrap().state);
        }
        let degraded: Vec<usize> =
            (1..=80).filter(|beat| states.get(beat - 1) == Some(&LinkState::Degraded)).collect();
        assert_eq!((degraded.first(), degraded.last()), (Some(&43), Some(&64)), "{degraded:?}");
        assert_eq!(degraded.len(), 22, "without a gap: {degraded:?}");
    }

    #[test]
    fn a_suspicion_is_taken_back_when_its_subject_begins_a_new_life_and_forgotten_with_one_that_is_removed() {
        let suspected = || {
            let mut detector = detector();
            detector.heard(at(20), PEER, Incarnation(1), NetworkId(0), at(20), &heartbeat());
            assert!(refused(&mut detector, at(30)));
            detector
        };
        let cleared = |detector: &mut Detector| {
            let mut out = Output::default();
            detector.conclude(at(50), &mut out);
            let cleared = |opinion: &&Opinion| **opinion == Opinion::Cleared(PEER);
            assert!(!detector.is_suspected(PEER));
            out.opinions.iter().filter(cleared).count()
        };
        let mut reborn = suspected();
        let anew = Heartbeat { boot: Some(10), ..heartbeat() };
        reborn.heard(at(40), PEER, Incarnation(2), NetworkId(0), at(40), &anew);
        assert_eq!(cleared(&mut reborn), 1);
        assert_eq!(cleared(&mut reborn), 0, "once");
        let mut removed = suspected();
        let others = [1, 3].map(|id| (NodeId(id), Incarnation(1)));
        removed.set_members(at(40), Arc::new(Members::new(others.into(), 0)));
        assert_eq!(cleared(&mut removed), 0, "nothing is said of one that was removed");
    }
}
