//! When effects on foreign systems are carried out: how many at a time, after which pause again, and what people are shown.
//!
//! The core offers an effect until it is told how it ended, again and again, and after every restart; so nothing here
//! needs to last. One attempt at a time is made for each effect. What is bad at one foreign system never holds up
//! another: each has places of its own, one alone while it fails. `episodes::effects` has the adapters.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use steadfast_proto::episode::{Effect, EffectResult, Input};
use steadfast_proto::exchange::{Stream, Text};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::carrier::Keepers;
use crate::api::convert::now_unix_ms;
use crate::api::episode_types::EffectShown;
use crate::episodes::effects::{Adapters, Ended, Order, id};
use crate::events::sinks::pause_between;

/// Attempts at the same time for one foreign system.
const PLACES: usize = 8;
/// Attempts at the same time on one node.
const PLACES_ALL: usize = 256;
/// Effects that are known at the same time; one more is taken when it is offered again.
const KNOWN_MAX: usize = 4_096;
/// The pause after a first failure.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// An effect that was not offered for so long is wanted no more: the core offers what it wants every few seconds.
const FORGOTTEN: Duration = Duration::from_secs(30);

type Key = (Stream, u64);

/// The effects of one node; clones are the same.
#[derive(Clone)]
pub(super) struct Effects {
    inner: Arc<Inner>,
}

struct Inner {
    adapters: Adapters,
    runtime: Handle,
    keepers: Keepers,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    effects: BTreeMap<Key, One>,
    queue: VecDeque<Key>,
    targets: BTreeMap<String, Target>,
    running: usize,
}

/// A foreign system.
#[derive(Debug, Default)]
struct Target {
    running: usize,
    is_failing: bool,
}

/// One effect.
struct One {
    order: Arc<Order>,
    target: String,
    doing: Doing,
    attempts: u32,
    why: Option<String>,
    offered_at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Queued,
    Running,
    Waiting { until: Instant, until_unix_ms: u64 },
}

impl Effects {
    pub(super) fn new(adapters: Adapters, runtime: Handle, keepers: Keepers) -> Effects {
        let inner = Inner { adapters, runtime, keepers, known: Mutex::default() };
        Effects { inner: Arc::new(inner) }
    }

    /// Takes an effect that the core offers; returns at once.
    pub(super) fn offer(&self, effect: &Effect) {
        let now = Instant::now();
        let key = (effect.stream.clone(), effect.seq);
        let mut known = self.known();
        known.forget(now);
        if let Some(one) = known.effects.get_mut(&key) {
            one.offered_at = now;
            let is_due = matches!(one.doing, Doing::Waiting { until, .. } if until <= now);
            if !is_due {
                return;
            }
            one.doing = Doing::Queued;
        } else {
            if known.effects.len() >= KNOWN_MAX {
                return;
            }
            let order = match Order::read(effect) {
                Ok(order) => Arc::new(order),
                Err(why) => {
                    drop(known);
                    return self.tell(key, EffectResult::Never(Text::cut(&why)));
                }
            };
            let (target, doing) = (order.target(), Doing::Queued);
            let one = One { order, target, doing, attempts: 0, why: None, offered_at: now };
            known.effects.insert(key.clone(), one);
        }
        known.queue.push_back(key);
        self.begin(&mut known);
    }

    /// What became so far of one effect.
    pub(super) fn shown(&self, stream: &Stream, seq: u64) -> Option<EffectShown> {
        let known = self.known();
        let one = known.effects.get(&(stream.clone(), seq))?;
        let (doing, again_unix_ms) = match one.doing {
            Doing::Queued => ("queued", None),
            Doing::Running => ("running", None),
            Doing::Waiting { until_unix_ms, .. } => ("waiting", Some(until_unix_ms)),
        };
        Some(EffectShown {
            id: id(stream, seq),
            target: one.target.clone(),
            doing: doing.to_owned(),
            attempts: one.attempts,
            why: one.why.clone(),
            again_unix_ms,
        })
    }

    /// Begins all attempts for which there are places.
    fn begin(&self, known: &mut Known) {
        while let Some((key, order)) = known.next() {
            let effects = self.clone();
            self.inner.runtime.spawn(async move {
                // An attempt that panics must not keep its place.
                let mut attempt = Attempt { effects, key: Some(key) };
                let of = attempt.key.as_ref().map(|(stream, seq)| id(stream, *seq)).unwrap_or_default();
                let ended = attempt.effects.inner.adapters.carry_out(&order, &of).await;
                if let Some(key) = attempt.key.take() {
                    attempt.effects.ended(key, ended);
                }
            });
        }
    }

    fn ended(&self, key: Key, ended: Ended) {
        let mut known = self.known();
        let is_failing = matches!(ended, Ended::Later { .. });
        known.leave(&key, is_failing);
        let result = match ended {
            Ended::Done(reply) => EffectResult::Done(reply),
            Ended::Never(why) => {
                tracing::debug!(from = %key.0.from, to = %key.0.to, why, "an effect can not be carried out");
                EffectResult::Never(Text::cut(&why))
            }
            Ended::Later { why, after } => {
                if let Some(one) = known.effects.get_mut(&key) {
                    one.attempts = one.attempts.saturating_add(1);
                    let pause =
                        pause_between(PAUSE_MIN, PAUSE_MAX, one.attempts).max(after.unwrap_or_default());
                    let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                    let until_unix_ms = now_unix_ms().saturating_add(pause_ms);
                    one.doing = Doing::Waiting { until: Instant::now() + pause, until_unix_ms };
                    one.why = Some(why.clone());
                }
                EffectResult::Later(Text::cut(&why))
            }
        };
        if !is_failing {
            known.effects.remove(&key);
        }
        self.begin(&mut known);
        drop(known);
        self.tell(key, result);
    }

    fn tell(&self, (stream, seq): Key, result: EffectResult) {
        // One that does not keep the sender heeds it not; where this comes too early, the effect is offered again.
        for keeper in self.inner.keepers.all() {
            keeper.input(Input::Effected { stream: stream.clone(), seq, result: result.clone() });
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// The first in the queue for which there is a place; it takes that.
    fn next(&mut self) -> Option<(Key, Arc<Order>)> {
        if self.running >= PLACES_ALL {
            return None;
        }
        let has_place = |one: &One| {
            self.targets
                .get(&one.target)
                .is_none_or(|target| target.running < if target.is_failing { 1 } else { PLACES })
        };
        let place = self.queue.iter().position(|key| self.effects.get(key).is_some_and(has_place))?;
        let key = self.queue.remove(place)?;
        let one = self.effects.get_mut(&key)?;
        one.doing = Doing::Running;
        self.targets.entry(one.target.clone()).or_default().running += 1;
        self.running += 1;
        Some((key, Arc::clone(&one.order)))
    }

    /// An attempt gives its place back.
    fn leave(&mut self, key: &Key, is_failing: bool) {
        self.running = self.running.saturating_sub(1);
        let Some(one) = self.effects.get(key) else { return };
        if let Some(target) = self.targets.get_mut(&one.target) {
            target.running = target.running.saturating_sub(1);
            target.is_failing = is_failing;
            if target.running == 0 && !is_failing {
                self.targets.remove(&one.target);
            }
        }
    }

    /// What nobody offers any more was given up.
    fn forget(&mut self, now: Instant) {
        let is_wanted = |one: &One| {
            one.doing == Doing::Running || now.saturating_duration_since(one.offered_at) < FORGOTTEN
        };
        self.effects.retain(|_, one| is_wanted(one));
        self.queue.retain(|key| self.effects.contains_key(key));
        self.targets.retain(|name, target| {
            target.running > 0 || self.effects.values().any(|one| one.target == *name)
        });
    }
}

/// One attempt; gives its place back however it ends.
struct Attempt {
    effects: Effects,
    key: Option<Key>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let why = "the attempt broke off".to_owned();
            self.effects.ended(key, Ended::Later { why, after: None });
        }
    }
}
