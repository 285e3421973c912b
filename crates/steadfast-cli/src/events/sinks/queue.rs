//! The bounded queue in front of a sink: what finds it full is told as a gap, in its place in the order.
//!
//! It decides what is kept. Events are bounded by the given number; gaps, restarts and ends of sources, which stand for
//! many events each, have some room of their own. It must never wait.

use std::collections::{BTreeMap, VecDeque};

use crate::events::cloud::{CloudEvent, DOWN, GAP, RESTARTED, TYPE_PREFIX};

/// How many gaps and other words about sources may wait beside the events.
const WORDS_MAX: usize = 256;
/// Why a consumer behind a sink misses events.
const REASON: &str = "the queue to what takes events on was full";

#[derive(Debug)]
pub(super) struct Queue {
    events_max: usize,
    waiting: VecDeque<CloudEvent>,
    /// By the part of the id that names the sequence: the first and last number that found no room, and the last event.
    missed: BTreeMap<String, Missed>,
}

#[derive(Debug)]
struct Missed {
    from: u64,
    to: u64,
    last: CloudEvent,
}

impl Queue {
    pub(super) fn new(events_max: usize) -> Queue {
        Queue { events_max: events_max.max(1), waiting: VecDeque::new(), missed: BTreeMap::new() }
    }

    /// Takes an event in; `false` when there is no room for it.
    pub(super) fn offer(&mut self, event: CloudEvent) -> bool {
        let is_word = matches!(event.short_type(), GAP | RESTARTED | DOWN);
        let room = if is_word { self.events_max + WORDS_MAX } else { self.events_max };
        if self.waiting.len() >= room {
            self.miss(event);
            return false;
        }
        self.tell_missed();
        self.waiting.push_back(event);
        true
    }

    pub(super) fn take(&mut self) -> Option<CloudEvent> {
        if self.waiting.is_empty() {
            self.tell_missed();
        }
        self.waiting.pop_front()
    }

    pub(super) fn len(&self) -> u64 {
        let all = self.waiting.len() + self.missed.len();
        u64::try_from(all).expect("a length fits into 64 bits")
    }

    fn miss(&mut self, event: CloudEvent) {
        let Some((sequence_of, number)) = event.id.rsplit_once('/') else { return };
        let (from, to) = match number.strip_prefix("gap-").and_then(|range| range.split_once('-')) {
            Some((from, to)) => (from.parse().unwrap_or(0), to.parse().unwrap_or(0)),
            None => match number.parse() {
                Ok(number) => (number, number),
                // A restart or an end that finds even its own room full is seen by the count alone.
                Err(_) => return,
            },
        };
        if let Some(missed) = self.missed.get_mut(sequence_of) {
            missed.to = to;
            missed.last = event;
        } else if self.missed.len() < WORDS_MAX {
            self.missed.insert(sequence_of.to_owned(), Missed { from, to, last: event });
        }
    }

    fn tell_missed(&mut self) {
        for (sequence_of, Missed { from, to, last }) in std::mem::take(&mut self.missed) {
            let mut gap = last;
            let of = sequence_of.splitn(3, '/').nth(2).unwrap_or_default().to_owned();
            gap.id = format!("{sequence_of}/gap-{from}-{to}");
            gap.kind = format!("{TYPE_PREFIX}{GAP}");
            gap.sequence = format!("{to:020}");
            gap.data = [
                ("of".to_owned(), of.into()),
                ("from".to_owned(), from.into()),
                ("to".to_owned(), to.into()),
                ("reason".to_owned(), REASON.into()),
            ]
            .into_iter()
            .collect();
            self.waiting.push_back(gap);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::numbered;
    use super::*;
    use crate::events::Delivery;
    use crate::events::cloud::tests::source;

    #[test]
    fn a_word_about_a_source_has_room_beside_events_and_comes_after_what_was_missed() {
        let mut queue = Queue::new(1);
        assert!(queue.offer(numbered(1)));
        assert!(!queue.offer(numbered(2)) && !queue.offer(numbered(3)));
        let down = Delivery::Down { source: source("user.test"), at_unix_us: 0 };
        assert!(queue.offer(CloudEvent::new("prod", &down)));
        let kinds: Vec<String> =
            std::iter::from_fn(|| queue.take()).map(|event| event.short_type().to_owned()).collect();
        assert_eq!(kinds, ["user.test", GAP, DOWN]);
    }

    #[test]
    fn what_is_kept_of_a_flood_is_bounded() {
        let mut queue = Queue::new(4);
        for topic in 0..1_000_u64 {
            for number in 0..4 {
                let mut event = numbered(number);
                event.id = format!("node/1/user.t{topic}/{number}");
                queue.offer(event);
            }
        }
        assert!(queue.len() <= 4 + 256);
    }
}
