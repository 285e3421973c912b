//! What members say of members and links: the newest claim of each observer about each subject, and what is still
//! to be passed on.
//!
//! A claim travels as it was made: whoever learns of a newer one says it again a few times over its own watched
//! edges, so that it reaches everybody in a few hops although every link loses some (PROTOCOLS 4.4). Nothing is
//! judged here; see `verdict`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{Incarnation, NetworkId, NodeId};
use crate::time::Time;
use crate::wire::{Claim, LinkState, RUMOURS_MAX, Rumour};

/// In how many beats a claim is said again.
const REPEATS: u8 = 3;

/// How long a claim counts that its observer does not repeat.
const CLAIM_LIFE: Duration = Duration::from_secs(60);

/// How often an observer repeats a claim that is still true.
const CLAIM_RENEWAL: Duration = Duration::from_secs(20);

/// How many claims a node remembers at most; more are not learned until others end.
const CLAIMS_MAX: usize = 8_192;

/// What a claim is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    Health,
    Vouch,
    Link(NetworkId),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) rumour: Rumour,
    /// When this node learned of this version.
    pub(super) learned_at: Time,
    repeats: u8,
    urgent: bool,
}

/// The newest claims of all observers.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    held: BTreeMap<(NodeId, Slot, NodeId), Held>,
    /// How many claims are still to be repeated.
    waiting: usize,
    /// How many of them were never said and don't wait for the next beat.
    urgent: usize,
    version: u64,
}

fn slot(claim: &Claim) -> Slot {
    match claim {
        Claim::Down { .. } | Claim::Well => Slot::Health,
        Claim::Alive { .. } => Slot::Vouch,
        Claim::Link { network, .. } => Slot::Link(*network),
    }
}

impl Claims {
    /// Makes a claim of this node's own.
    pub(super) fn say(
        &mut self,
        now: Time,
        (observer, start): (NodeId, Incarnation),
        subject: NodeId,
        incarnation: Incarnation,
        claim: Claim,
    ) {
        // Beyond every version of an earlier start of this node.
        self.version = (self.version + 1).max(start.0 << 32);
        let version = self.version;
        self.learn(now, Rumour { observer, subject, incarnation, version, claim }, false);
    }

    /// Takes note of a rumour, and says whether it is news. Where its subject's case `is_closed`, one more is not
    /// pressing.
    pub(super) fn learn(&mut self, now: Time, rumour: Rumour, is_closed: bool) -> bool {
        let key = (rumour.subject, slot(&rumour.claim), rumour.observer);
        let news = match self.held.get(&key) {
            Some(held) => {
                (rumour.incarnation, rumour.version) > (held.rumour.incarnation, held.rumour.version)
            }
            None => self.held.len() < CLAIMS_MAX,
        };
        if news {
            // How well a link carries can wait for the next beat; whether it does is compared with other links.
            let can_wait = is_closed || matches!(rumour.claim, Claim::Link { state, .. } if state.carries());
            let held = Held { rumour, learned_at: now, repeats: REPEATS, urgent: !can_wait };
            let before = self.held.insert(key, held);
            self.urgent += usize::from(!can_wait);
            self.urgent -= usize::from(before.is_some_and(|held| held.urgent));
            self.waiting = self.held.len();
        }
        news
    }

    /// What an observer said last about a subject.
    pub(super) fn of(&self, observer: NodeId, subject: NodeId, slot: Slot) -> Option<&Held> {
        self.held.get(&(subject, slot, observer))
    }

    /// Every claim about `subject` in one slot.
    pub(super) fn about(&self, subject: NodeId, slot: Slot) -> impl Iterator<Item = &Held> {
        let first = (subject, slot, NodeId(0));
        let last = (subject, slot, NodeId(u128::MAX));
        self.held.range(first..=last).map(|(_, held)| held)
    }

    /// Every claim.
    pub(super) fn all(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    /// Whether something is to be passed on at once.
    pub(super) fn is_urgent(&self) -> bool {
        self.urgent > 0
    }

    /// What the next beat passes on; at most [`RUMOURS_MAX`].
    pub(super) fn next_rumours(&mut self) -> Vec<Rumour> {
        if self.waiting == 0 {
            return Vec::new();
        }
        let mut waiting: Vec<&mut Held> = self.held.values_mut().filter(|held| held.repeats > 0).collect();
        // What presses goes first, then what was said least often.
        waiting.sort_by_key(|held| std::cmp::Reverse((held.urgent, held.repeats)));
        self.waiting = waiting.len();
        let mut rumours = Vec::with_capacity(waiting.len().min(RUMOURS_MAX));
        for held in waiting.into_iter().take(RUMOURS_MAX) {
            held.repeats -= 1;
            self.waiting -= usize::from(held.repeats == 0);
            self.urgent -= usize::from(std::mem::take(&mut held.urgent));
            rumours.push(held.rumour);
        }
        rumours
    }

    /// Forgets what others said: this node was away, and what changed meanwhile may never have reached it.
    pub(super) fn forget_others(&mut self, own: NodeId) {
        self.held.retain(|_, held| held.rumour.observer == own);
        self.recount();
    }

    /// Says everything once more: somebody new listens.
    pub(super) fn repeat_all(&mut self) {
        for held in self.held.values_mut() {
            held.repeats = held.repeats.max(1);
        }
        self.waiting = self.held.len();
    }

    /// Forgets what is over, and what is about or by nodes that are not `known`; renews this node's own claims.
    pub(super) fn tidy(&mut self, now: Time, own: (NodeId, Incarnation), known: impl Fn(NodeId) -> bool) {
        let over = |held: &Held| {
            let age = now.since(held.learned_at);
            age > CLAIM_LIFE || (accuses_nobody(&held.rumour.claim) && age > CLAIM_RENEWAL / 2)
        };
        self.held.retain(|_, held| !over(held) && known(held.rumour.subject) && known(held.rumour.observer));
        let stale: Vec<Rumour> = (self.held.values())
            .filter(|held| held.rumour.observer == own.0 && now.since(held.learned_at) > CLAIM_RENEWAL)
            .filter(|held| !accuses_nobody(&held.rumour.claim))
            .map(|held| held.rumour)
            .collect();
        for rumour in stale {
            self.say(now, own, rumour.subject, rumour.incarnation, rumour.claim);
        }
        self.recount();
    }

    fn recount(&mut self) {
        self.waiting = self.waiting.min(self.held.len());
        self.urgent = self.held.values().filter(|held| held.urgent).count();
    }
}

/// Whether it says what everybody takes for granted anyway, so that it need not be kept up.
fn accuses_nobody(claim: &Claim) -> bool {
    match claim {
        Claim::Well | Claim::Alive { .. } => true,
        Claim::Link { state, .. } => matches!(state, LinkState::Up | LinkState::Unknown),
        Claim::Down { .. } => false,
    }
}
