//! Candidates: measuring them, telling what is seen of them, and proposing what becomes of them (PROTOCOLS 3.4).
//!
//! A candidate applies by a row of its own and waits. Every member measures it; the first in rank proposes the view
//! that it joins, or its elimination. The criteria are [`crate::probation`]'s; a view with it is `membership`'s to
//! propose, and what it takes over from another node is `handover`'s.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Batch, Node, Row};
use crate::catalog::{DrainRow, Intent, Key, ProbationRow, View};
use crate::ids::NodeId;
use crate::probation::{
    CANDIDATES_MAX, Context, Evidence, Finding, Look, Report, Sighting, Watch, conclude, evaluate,
};
use crate::time::Time;
use crate::wire::Rider;

/// How often candidates are judged: with many members each judgement is work, and every message would bring one.
const JUDGE_EVERY: Duration = Duration::from_millis(50);

/// Of how many candidates rows are kept.
const ROWS_MAX: usize = super::NODES_MAX;

/// The candidates that this node knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    all: BTreeMap<NodeId, Candidate>,
    judged_at: Option<Time>,
}

#[derive(Clone, Debug)]
struct Candidate {
    revision: u64,
    row: ProbationRow,
    /// When this node learned of this life of it.
    since: Time,
    /// What the deadline is counted from: when its evaluation began, or, of one that waits in readiness, when it last was ready.
    asked_since: Time,
    watch: Watch,
    /// By its own word: how far its clock is off, and how far it follows the catalog.
    report: Option<(Duration, u64)>,
    /// Since when something is to be proposed about it.
    due_since: Option<Time>,
}

impl Candidates {
    pub(super) fn changed(&mut self, now: Time, revision: u64, id: NodeId, row: Option<ProbationRow>) {
        let Some(row) = row else {
            self.all.remove(&id);
            return;
        };
        match self.all.get_mut(&id) {
            Some(known) if known.row.incarnation == row.incarnation => {
                if known.row.intent != row.intent {
                    known.asked_since = now;
                }
                known.revision = revision;
                known.row = row;
                known.due_since = None;
            }
            known => {
                if known.is_some() || self.all.len() < ROWS_MAX {
                    let watch = Watch::new(row.incarnation);
                    let candidate = Candidate {
                        revision,
                        row,
                        since: now,
                        asked_since: now,
                        watch,
                        report: None,
                        due_since: None,
                    };
                    self.all.insert(id, candidate);
                }
            }
        }
    }

    /// Those that are not evaluated yet are not asked for anything, however long they wait for their turn.
    fn put_off(&mut self, now: Time, evaluated: &[NodeId]) {
        let waiting = self.all.iter_mut().filter(|(id, _)| !evaluated.contains(id));
        waiting.for_each(|(_, candidate)| candidate.asked_since = now);
    }

    pub(super) fn row(&self, id: NodeId) -> Option<(u64, &ProbationRow)> {
        self.all.get(&id).map(|candidate| (candidate.revision, &candidate.row))
    }

    /// The candidate that is to take the place of `old`.
    pub(super) fn successor_of(&self, old: NodeId) -> Option<NodeId> {
        let running = self.all.values().filter(|candidate| candidate.row.eliminated.is_none());
        running
            .map(|candidate| &candidate.row)
            .find(|row| row.intent == Intent::Replace(old))
            .map(|row| row.node)
    }

    /// Takes note of what a candidate says of itself.
    pub(super) fn reported(&mut self, from: NodeId, report: Report, unix_ms: u64, way: Duration) {
        if let Some(candidate) = self.all.get_mut(&from) {
            let off = Duration::from_millis(unix_ms.abs_diff(report.unix_ms)).saturating_sub(way);
            candidate.report = Some((off, report.revision));
        }
    }
}

impl Node {
    /// The candidates that are evaluated now.
    pub(super) fn evaluated(&self) -> Vec<NodeId> {
        let Some(view) = self.view() else { return Vec::new() };
        let is_running = |candidate: &&Candidate| {
            candidate.row.eliminated.is_none()
                && !view.has(candidate.row.node)
                && self.nodes.contains_key(&candidate.row.node)
        };
        let running = self.candidates.all.values().filter(is_running);
        running.map(|candidate| candidate.row.node).take(CANDIDATES_MAX).collect()
    }

    /// Looks at every candidate, and puts what a heartbeat says of them, or of this one itself, into `rider`.
    pub(super) fn look_at_candidates(&mut self, now: Time, rider: &mut Rider) {
        let own = self.settings.id;
        let is_member = self.view().is_some_and(|view| view.has(own));
        // A candidate looks at the others too: once it is a member they need not begin anew for it.
        for id in self.evaluated().into_iter().filter(|id| *id != own) {
            let look = self.look(now, id);
            let Some(candidate) = self.candidates.all.get_mut(&id) else { continue };
            candidate.watch.look(now, look);
            if is_member {
                rider.seen.push((id, candidate.watch.sighting(now)));
            }
        }
        if is_member {
            return;
        }
        if self.candidates.row(own).is_some_and(|(_, row)| row.eliminated.is_none()) {
            rider.report = Some(Report { unix_ms: self.unix_ms(now), revision: self.revision });
        }
    }

    fn look(&self, now: Time, id: NodeId) -> Look {
        let incarnation = self.detector.incarnation_of(id).unwrap_or_default().0;
        let (silent, limit) = self.detector.silence(now, id).unwrap_or((Duration::MAX, Duration::ZERO));
        let is_heard = self.detector.heard_at(id).is_some() && silent <= limit;
        let links: BTreeMap<_, _> = self.detector.links(id).collect();
        let carries = links.values().filter(|link| link.state.carries()).count();
        let round_trip = links.values().filter_map(|link| Some(link.round_trip? + link.deviation * 3)).max();
        Look {
            incarnation,
            is_heard,
            is_clean: carries >= self.settings.networks.len(),
            round_trip: round_trip.unwrap_or_default(),
            loss_permille: links.values().map(|link| link.loss_permille).max().unwrap_or_default(),
        }
    }

    /// How every criterion stands for `id`, as this node knows it.
    pub(super) fn evidence(&self, now: Time, id: NodeId) -> Vec<Evidence> {
        let (Some(view), Some(candidate)) = (self.view(), self.candidates.all.get(&id)) else {
            return Vec::new();
        };
        let old = match candidate.row.intent {
            Intent::Replace(old) => Some(old),
            Intent::Join | Intent::Standby => None,
        };
        let sighting = |member: NodeId| -> Option<Sighting> {
            if member == self.settings.id {
                return Some(candidate.watch.sighting(now));
            }
            self.peers.get(&member)?.seen.get(&id).copied()
        };
        // Whom the members suspect can't be waited for: it is removed before long, or comes back.
        let asked = view.members.keys().filter(|member| self.is_well(**member));
        let domain = |node: NodeId| self.nodes.get(&node).and_then(|row| row.domain.first());
        let shares = |member: &&NodeId| {
            Some(**member) != old && domain(id).is_some() && domain(**member) == domain(id)
        };
        let context = Context {
            incarnation: candidate.row.incarnation,
            sightings: asked.map(|member| (*member, sighting(*member))).collect(),
            versions: (&self.settings.version, &candidate.row.version),
            clock_off: candidate.report.map(|(off, _)| off),
            // What its last life had says nothing of this one.
            free_bytes: (self.peers.get(&id))
                .filter(|peer| peer.incarnation == candidate.row.incarnation)
                .map(|peer| peer.free_bytes),
            footprint_bytes: old.map_or(0, |old| self.footprint(old, id)),
            neighbours: view.members.keys().filter(shares).copied().collect(),
            lag: candidate.report.map(|(_, revision)| self.revision.saturating_sub(revision)),
            duties_left: old.map_or(0, |old| self.duties_left(old, id)),
        };
        evaluate(&self.settings.probation, &context)
    }

    pub(super) fn finding(&self, now: Time, id: NodeId) -> Finding {
        let Some(candidate) = self.candidates.all.get(&id) else { return Finding::Pending };
        conclude(&self.settings.probation, now.since(candidate.asked_since), &self.evidence(now, id))
    }

    /// Proposes what has become of candidates. Says whether a view was proposed.
    pub(super) fn tend_candidates(&mut self, now: Time, revision: u64, view: &View, out: &mut Batch) -> bool {
        if self.candidates.judged_at.is_some_and(|at| now.since(at) < JUDGE_EVERY) {
            return false;
        }
        self.candidates.judged_at = Some(now);
        let evaluated = self.evaluated();
        self.candidates.put_off(now, &evaluated);
        for id in evaluated {
            let finding = self.finding(now, id);
            let Some(candidate) = self.candidates.all.get_mut(&id) else { continue };
            if finding == Finding::Pending {
                candidate.due_since = None;
                continue;
            }
            if finding == Finding::Ready && candidate.row.intent == Intent::Standby {
                candidate.asked_since = now;
            }
            let since = *candidate.due_since.get_or_insert(now);
            let (basis, row) = ((Key::Probation(id), candidate.revision), candidate.row.clone());
            // A member must know everything that was committed before the view that it joins (VM4).
            let is_behind = candidate.report.is_none_or(|(_, known)| known < revision);
            if !self.is_my_turn(now, since, view) {
                continue;
            }
            if let Finding::Eliminated(criterion, measured) = finding {
                let row = ProbationRow { eliminated: Some((criterion, measured)), ..row };
                self.propose(now, basis.0.clone(), vec![basis], vec![Row::Probation(row)], out);
                continue;
            }
            if is_behind {
                continue;
            }
            let own = self.settings.id;
            let mut rows = vec![Row::NoProbation(id)];
            let next = match row.intent {
                Intent::Join => Some(view.admit(id, row.incarnation, own)),
                Intent::Standby => view.vacancy().map(|old| view.replace(old, id, row.incarnation, own)),
                // One that still is a member hands its duties over itself.
                Intent::Replace(old) if view.has(old) => None,
                Intent::Replace(old) => {
                    rows.push(Row::Drain(DrainRow { node: old, leave: true }));
                    Some(view.replace(old, id, row.incarnation, own))
                }
            };
            if let Some(next) = next {
                self.propose_view(now, revision, next, vec![basis], rows, out);
                return true;
            }
        }
        false
    }

    /// Applies for membership: once in each life, and not at all after it was told to leave.
    pub(super) fn apply(&mut self, now: Time, view: &View, out: &mut Batch) {
        let (own, incarnation) = (self.settings.id, self.incarnation);
        if self.duties.is_leaving(own) {
            return;
        }
        let before = self.candidates.row(own).map(|(revision, row)| (revision, row.clone()));
        if before.as_ref().is_some_and(|(_, row)| row.incarnation == incarnation) {
            return;
        }
        // What an operator asked of the last life holds for this one.
        let intent = match before.as_ref().map(|(_, row)| row.intent) {
            Some(Intent::Replace(old)) => Intent::Replace(old),
            // Another one has its place.
            Some(Intent::Join | Intent::Standby) | None if view.successors.contains_key(&own) => {
                Intent::Standby
            }
            Some(Intent::Join | Intent::Standby) | None => self.settings.intent,
        };
        let row = ProbationRow {
            node: own,
            incarnation,
            version: self.settings.version.clone(),
            intent,
            eliminated: None,
            applied_unix_ms: self.unix_ms(now),
        };
        let basis = vec![(Key::Probation(own), before.map_or(0, |(revision, _)| revision))];
        self.propose(now, Key::Probation(own), basis, vec![Row::Probation(row)], out);
    }

    /// The candidates, each with its row and how its criteria stand.
    pub(super) fn candidates_shown(&self, now: Time) -> BTreeMap<NodeId, super::CandidateStatus> {
        let shown = self.candidates.all.iter().map(|(id, candidate)| {
            let evidence =
                if candidate.row.eliminated.is_some() { Vec::new() } else { self.evidence(now, *id) };
            let status = super::CandidateStatus {
                row: candidate.row.clone(),
                revision: candidate.revision,
                age: now.since(candidate.since),
                evidence,
            };
            (*id, status)
        });
        shown.collect()
    }

    /// Whether `id` must be heard as often as a member: it is measured.
    pub(super) fn is_measured(&self, id: NodeId) -> bool {
        self.candidates.all.get(&id).is_some_and(|candidate| candidate.row.eliminated.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Incarnation;

    #[test]
    fn the_deadline_begins_with_the_evaluation_and_again_with_what_is_asked_next() {
        let at = |seconds: u64| Time::from_nanos(seconds * 1_000_000_000);
        let row = |node: u128, intent| ProbationRow {
            node: NodeId(node),
            incarnation: Incarnation(1),
            version: "0.1.0".to_owned(),
            intent,
            eliminated: None,
            applied_unix_ms: 0,
        };
        let mut candidates = Candidates::default();
        for node in [1, 2] {
            candidates.changed(at(0), 1, NodeId(node), Some(row(node, Intent::Standby)));
        }
        let asked = |candidates: &Candidates, node| candidates.all[&NodeId(node)].asked_since;
        candidates.put_off(at(900), &[NodeId(1)]);
        assert_eq!((asked(&candidates, 1), asked(&candidates, 2)), (at(0), at(900)));
        candidates.changed(at(950), 2, NodeId(1), Some(row(1, Intent::Replace(NodeId(7)))));
        assert_eq!(asked(&candidates, 1), at(950));
        candidates.changed(at(960), 3, NodeId(1), Some(row(1, Intent::Replace(NodeId(7)))));
        assert_eq!(asked(&candidates, 1), at(950), "the same asked again gives no more time");
    }
}
