//! The bounded queue between the producers and whoever takes their reports.
//!
//! A producer never waits: what finds no room is counted by topic, and the count stands in the queue at the place where the
//! reports would have stood. It must never grow without bound and never lose silently. Read next: `post`, its writer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use steadfast_proto::events::{Occurrence, Topic};
use tokio::sync::Notify;

/// What a producer says.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// Something happened, or this is the present level.
    Seen {
        /// What was watched.
        topic: Arc<Topic>,
        /// What happened.
        occurrence: Occurrence,
    },
    /// Something may have happened here that nobody will be told of.
    Lost {
        /// What was watched.
        topic: Arc<Topic>,
        /// How many reports; `None` when the kernel had no room and does not say how many.
        count: Option<u64>,
    },
    /// The topic is not active any more: what was watched is gone, or can't be watched any longer.
    Ended {
        /// What was watched.
        topic: Arc<Topic>,
        /// Why, in one sentence.
        why: String,
    },
}

impl Report {
    /// What the report is about.
    pub fn topic(&self) -> &Arc<Topic> {
        match self {
            Report::Seen { topic, .. } | Report::Lost { topic, .. } | Report::Ended { topic, .. } => topic,
        }
    }
}

/// Takes what the producers report, in the order in which they saw it.
#[derive(Debug)]
pub struct Reports(pub(super) Arc<Queue>);

impl Reports {
    /// Waits for the next report; `None` after the last, when the producers were dropped. Cancelling loses nothing.
    pub async fn next(&mut self) -> Option<Report> {
        loop {
            let news = self.0.news.notified();
            {
                let mut state = self.0.lock();
                if let Some(report) = state.pop() {
                    return Some(report);
                }
                if state.is_closed {
                    return None;
                }
            }
            news.await;
        }
    }

    /// The next report if there is one now.
    pub fn try_next(&mut self) -> Option<Report> {
        self.0.lock().pop()
    }
}

#[derive(Debug)]
pub(super) struct Queue {
    reports_max: usize,
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    reports: VecDeque<Report>,
    /// Reports that found no room behind the last one of their topic in the queue.
    dropped: BTreeMap<Arc<Topic>, u64>,
    is_closed: bool,
}

impl Queue {
    pub(super) fn new(reports_max: usize) -> Queue {
        Queue { reports_max, state: Mutex::default(), news: Notify::new() }
    }

    /// Never waits, but for another who is here for some instructions.
    pub(super) fn push(&self, report: Report) {
        let mut state = self.lock();
        if state.is_closed {
            return;
        }
        let topic = Arc::clone(report.topic());
        let earlier = state.dropped.get(&topic).copied();
        let wanted = 1 + usize::from(earlier.is_some());
        // There is one end to a topic, so that ends need no bound of their own.
        let is_end = matches!(report, Report::Ended { .. });
        if state.reports.len() + wanted > self.reports_max && !is_end {
            *state.dropped.entry(topic).or_default() += 1;
        } else {
            if let Some(count) = earlier {
                state.dropped.remove(&topic);
                state.reports.push_back(Report::Lost { topic, count: Some(count) });
            }
            state.reports.push_back(report);
        }
        drop(state);
        self.news.notify_one();
    }

    /// Nothing more is said.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pop(&mut self) -> Option<Report> {
        if let Some(report) = self.reports.pop_front() {
            return Some(report);
        }
        let (topic, count) = self.dropped.pop_first()?;
        Some(Report::Lost { topic, count: Some(count) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(topic: &Arc<Topic>, at_unix_us: u64) -> Report {
        let occurrence = Occurrence { at_unix_us, fields: BTreeMap::new() };
        Report::Seen { topic: Arc::clone(topic), occurrence }
    }

    #[tokio::test]
    async fn what_finds_no_room_is_counted_where_it_would_have_stood() {
        let queue = Arc::new(Queue::new(3));
        let mut reports = Reports(Arc::clone(&queue));
        let clock =
            Arc::new(Topic::from("clock.step".parse::<steadfast_proto::events::EventType>().unwrap()));
        let disk = Arc::new(Topic::from("disk.usage".parse::<steadfast_proto::events::EventType>().unwrap()));
        for at in 1..=5 {
            queue.push(seen(&clock, at));
        }
        queue.push(seen(&disk, 1));
        assert_eq!(reports.next().await, Some(seen(&clock, 1)));
        // One place is free, but the loss has to stand before the next one of its topic.
        queue.push(seen(&clock, 6));
        assert_eq!(reports.next().await, Some(seen(&clock, 2)));
        queue.push(seen(&clock, 7));
        let rest: Vec<_> = std::iter::from_fn(|| reports.try_next()).collect();
        let lost = |topic: &Arc<Topic>, count| Report::Lost { topic: Arc::clone(topic), count: Some(count) };
        assert_eq!(rest, [seen(&clock, 3), lost(&clock, 3), seen(&clock, 7), lost(&disk, 1)]);
        queue.push(Report::Ended { topic: Arc::clone(&disk), why: "it is over".to_owned() });
        queue.close();
        assert!(matches!(reports.next().await, Some(Report::Ended { .. })));
        assert_eq!(reports.next().await, None);
    }
}
