//! The verdicts that hold on this node, with generations, so that whoever remembers one learns what changed since.
//!
//! The same idea as `steadfast_proto::links`: one row per subject, changes coalesce, those that are over are kept for a
//! while for readers that have not been told. It judges nothing.

use std::collections::BTreeMap;

use steadfast_proto::detect::{Subject, Verdict};
use steadfast_proto::ids::NodeId;

/// How many verdicts that are over are kept; whoever is further behind is given the whole again.
const OVER_MAX: usize = 128;

/// A verdict and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) verdict: Verdict,
    pub(crate) generation: u64,
    pub(crate) over: bool,
}

/// The verdicts of one node.
#[derive(Clone, Debug)]
pub(crate) struct Verdicts {
    held: BTreeMap<Subject, Held>,
    generation: u64,
    /// Whoever was told less than this can't be told what changed since.
    horizon: u64,
}

impl Verdicts {
    /// None yet; generations rise from `generation`.
    pub(crate) fn new(generation: u64) -> Verdicts {
        Verdicts { held: BTreeMap::new(), generation, horizon: generation }
    }

    /// Takes over what holds now, and says whether anything changed.
    pub(crate) fn update(&mut self, now: &[Verdict]) -> bool {
        let before = self.generation;
        for verdict in now {
            let is_known =
                self.held.get(&verdict.subject).is_some_and(|held| !held.over && held.verdict == *verdict);
            if !is_known {
                self.generation += 1;
                let held = Held { verdict: verdict.clone(), generation: self.generation, over: false };
                self.held.insert(verdict.subject.clone(), held);
            }
        }
        for (subject, held) in &mut self.held {
            if !held.over && !now.iter().any(|verdict| verdict.subject == *subject) {
                self.generation += 1;
                (held.over, held.generation) = (true, self.generation);
            }
        }
        self.forget();
        self.generation > before
    }

    /// Up to which generation it tells, whether it is the whole, and the verdicts: those that changed since
    /// `generation`, or all that hold when that is not known any more.
    pub(crate) fn since(&self, generation: Option<u64>) -> (u64, bool, Vec<Held>) {
        let told = generation.filter(|told| (self.horizon..=self.generation).contains(told));
        let is_news = |held: &&Held| told.map_or(!held.over, |told| held.generation > told);
        let mut news: Vec<Held> = self.held.values().filter(is_news).cloned().collect();
        news.sort_by_key(|held| held.generation);
        (self.generation, told.is_none(), news)
    }

    /// By which verdict each of these nodes was removed, as far as it is remembered: what is found of a node ends with
    /// its membership, and is still the reason why it is away.
    pub(crate) fn behind(&self, removed: impl Iterator<Item = NodeId>) -> Vec<Held> {
        let is_about = |held: &Held, node: NodeId| match &held.verdict.subject {
            Subject::Node(subject) => *subject == node,
            Subject::Nodes(subjects) => subjects.contains(&node),
            Subject::NodeNetwork(..) | Subject::Network(_) | Subject::Link { .. } => false,
        };
        let last = |node: NodeId| {
            let of_node = self.held.values().filter(|held| is_about(held, node));
            of_node.max_by_key(|held| held.generation).filter(|held| held.over)
        };
        // Several that were removed by one verdict have it in common.
        let behind: BTreeMap<u64, &Held> =
            removed.filter_map(last).map(|held| (held.generation, held)).collect();
        behind.into_values().cloned().collect()
    }

    fn forget(&mut self) {
        let over = self.held.iter().filter(|(_, held)| held.over);
        let mut over: Vec<(u64, Subject)> =
            over.map(|(subject, held)| (held.generation, subject.clone())).collect();
        over.sort();
        let surplus = over.len().saturating_sub(OVER_MAX);
        for (generation, subject) in over.into_iter().take(surplus) {
            self.held.remove(&subject);
            self.horizon = self.horizon.max(generation);
        }
    }
}

#[cfg(test)]
mod tests {
    use steadfast_proto::detect::Class;
    use steadfast_proto::time::Time;

    use super::*;

    fn dead(node: u128) -> Verdict {
        let subject = Subject::Node(NodeId(node));
        Verdict { class: Class::HostDead, subject, since: Time::ZERO, evidence: Vec::new() }
    }

    #[test]
    fn what_came_and_what_went_is_told_once() {
        let mut verdicts = Verdicts::new(5);
        let (start, whole, news) = verdicts.since(None);
        assert!(whole && news.is_empty());
        assert!(verdicts.update(&[dead(1), dead(2)]));
        assert!(!verdicts.update(&[dead(1), dead(2)]));
        assert!(verdicts.update(&[dead(2)]));
        let (end, whole, news) = verdicts.since(Some(start));
        assert!(!whole);
        let told: Vec<(bool, Subject)> =
            news.into_iter().map(|held| (held.over, held.verdict.subject)).collect();
        assert_eq!(told, [(false, Subject::Node(NodeId(2))), (true, Subject::Node(NodeId(1)))]);
        assert!(verdicts.since(Some(end)).2.is_empty());
        assert_eq!(verdicts.since(None).2.len(), 1, "one that is over is no part of the whole");
        assert!(verdicts.since(Some(4)).1, "a generation of an earlier start");
    }

    #[test]
    fn the_last_verdict_on_a_removed_node_stays_the_reason() {
        let split = Subject::Nodes([NodeId(1), NodeId(2)].into());
        let split = Verdict { class: Class::Split, subject: split, ..dead(0) };
        let mut verdicts = Verdicts::new(0);
        verdicts.update(std::slice::from_ref(&split));
        let behind = |verdicts: &Verdicts, removed: &[u128]| -> Vec<Subject> {
            let held = verdicts.behind(removed.iter().copied().map(NodeId));
            held.into_iter().map(|held| held.verdict.subject).collect()
        };
        assert_eq!(behind(&verdicts, &[1, 2]), [], "it still holds");
        verdicts.update(&[]);
        assert_eq!(behind(&verdicts, &[1, 2, 3]), std::slice::from_ref(&split.subject));
        // Both came back, and then one died.
        verdicts.update(&[dead(1)]);
        verdicts.update(&[]);
        assert_eq!(behind(&verdicts, &[1]), [Subject::Node(NodeId(1))]);
    }

    #[test]
    fn verdicts_that_come_and_go_leave_a_bounded_trace() {
        let mut verdicts = Verdicts::new(0);
        for node in 0..1_000 {
            verdicts.update(&[dead(node)]);
        }
        assert!(verdicts.held.len() <= OVER_MAX + 1);
        assert!(verdicts.since(Some(3)).1, "one that is too far behind is given the whole");
    }
}
