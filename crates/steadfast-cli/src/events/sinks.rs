//! Sinks: what takes events out of the cluster, each behind a bounded queue of its own.
//!
//! It decides when an event is tried again, and when it is given up on and reported. Handing one over never waits: a full
//! queue drops, and tells a gap as soon as there is room. An event that is waiting for its next attempt holds up no
//! other, so that events may overtake each other; their `sequence` says what was first. It must never lose an event
//! silently: each is delivered, given up on, told as missed, or counted as unfinished. Read [`exec`], [`webhook`], [`nats`].

pub(crate) mod connect;
pub mod exec;
pub mod nats;
mod queue;
pub mod webhook;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tracing::warn;
use uuid::Uuid;

use super::cloud::CloudEvent;
use queue::Queue;

pub use connect::{AddressError, TrustError};

/// How many events that were given up on a report names.
const NAMED_MAX: usize = 32;
/// How many of them may wait to be heard of.
const UNHEARD_MAX: usize = 256;

/// Takes one event to where it belongs.
pub trait Carrier: Send + Sync + 'static {
    /// Tries once; is dropped in the middle when that takes too long.
    fn carry(&self, event: &CloudEvent) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another attempt may succeed.
    #[error("{reason}")]
    Later {
        /// What went wrong, in one clause.
        reason: String,
        /// How long the other side wants to be left alone.
        after: Option<Duration>,
    },
    /// No other attempt can succeed.
    #[error("{reason}")]
    Never {
        /// What went wrong, in one clause.
        reason: String,
    },
}

impl Refusal {
    fn later(reason: impl ToString) -> Refusal {
        Refusal::Later { reason: reason.to_string(), after: None }
    }

    fn never(reason: impl ToString) -> Refusal {
        Refusal::Never { reason: reason.to_string() }
    }
}

/// How a sink behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many events wait at most; beyond that they are told as a gap. Default 1,024.
    pub queue_max: usize,
    /// How many are carried at the same time. Default 4.
    pub at_once_max: usize,
    /// How many may wait for another attempt beside those. Default 1,024.
    pub waiting_max: usize,
    /// How often one event is tried. Default 8, which are about two minutes.
    pub attempts_max: u32,
    /// How long one attempt may take. Default 30 s.
    pub attempt_time_max: Duration,
    /// The pause after the first attempt; each further one is twice as long, less up to a half by chance. Default 500 ms.
    pub pause_min: Duration,
    /// The longest pause. Default 60 s.
    pub pause_max: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            queue_max: 1_024,
            at_once_max: 4,
            waiting_max: 1_024,
            attempts_max: 8,
            attempt_time_max: Duration::from_secs(30),
            pause_min: Duration::from_millis(500),
            pause_max: Duration::from_secs(60),
        }
    }
}

/// An event that was given up on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// The event's id.
    pub id: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub reason: String,
}

/// What became of the events that a sink was handed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many arrived.
    pub delivered: u64,
    /// How many attempts were made beyond the first of each.
    pub retries: u64,
    /// How many were given up on.
    pub given_up: u64,
    /// The latest of those.
    pub latest_given_up: VecDeque<GivenUp>,
    /// How many found the queue full; told as gaps to whoever is behind the sink.
    pub missed: u64,
    /// How many were still waiting or under way when the sink was stopped.
    pub unfinished: u64,
}

/// A running sink; dropping it stops it without waiting.
#[derive(Debug)]
pub struct Sink {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    news: Notify,
    unheard: mpsc::Sender<GivenUp>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    report: Report,
    taken: u64,
    is_closed: bool,
}

impl Sink {
    /// Starts to carry; the receiver hears at once of every event that is given up on, as far as somebody listens.
    pub fn start<C: Carrier>(carrier: C, settings: Settings) -> (Sink, mpsc::Receiver<GivenUp>) {
        let (unheard, given_up) = mpsc::channel(UNHEARD_MAX);
        let queue = Queue::new(settings.queue_max);
        let state = State { queue, report: Report::default(), taken: 0, is_closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), news: Notify::new(), unheard });
        let task = tokio::spawn(run(Arc::clone(&shared), Arc::new(carrier), settings));
        (Sink { shared, task }, given_up)
    }

    /// Hands an event over; never waits.
    pub fn offer(&self, event: CloudEvent) {
        let mut state = self.shared.state();
        if state.is_closed {
            return;
        }
        if !state.queue.offer(event) {
            state.report.missed += 1;
        }
        drop(state);
        self.shared.news.notify_one();
    }

    /// What became of the events so far.
    pub fn report(&self) -> Report {
        self.shared.state().report.clone()
    }

    /// Takes no more, carries what is there to its end for as long as `patience`, and says what became of all.
    pub async fn close(mut self, patience: Duration) -> Report {
        self.shared.state().is_closed = true;
        self.shared.news.notify_one();
        if tokio::time::timeout(patience, &mut self.task).await.is_err() {
            self.task.abort();
            // It is cancelled: nothing else can come of it.
            let _ = (&mut self.task).await;
        }
        let mut state = self.shared.state();
        let settled = state.report.delivered + state.report.given_up;
        state.report.unfinished = state.taken.saturating_sub(settled) + state.queue.len();
        state.report.clone()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No step below leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is an event to take; `false` once the sink is closed and all is taken.
    async fn has_next(&self) -> bool {
        loop {
            {
                let state = self.state();
                if state.queue.len() > 0 {
                    return true;
                }
                if state.is_closed {
                    return false;
                }
            }
            self.news.notified().await;
        }
    }

    fn take(&self) -> Option<CloudEvent> {
        let mut state = self.state();
        let event = state.queue.take()?;
        state.taken += 1;
        Some(event)
    }

    fn give_up(&self, id: &str, attempts: u32, reason: String) {
        warn!(event = id, attempts, reason, "an event was given up on");
        let given_up = GivenUp { id: id.to_owned(), attempts, reason };
        // With nobody listening, or too slowly, the report still has it.
        let _ = self.unheard.try_send(given_up.clone());
        let report = &mut self.state().report;
        report.given_up += 1;
        if report.latest_given_up.len() >= NAMED_MAX {
            report.latest_given_up.pop_front();
        }
        report.latest_given_up.push_back(given_up);
    }
}

async fn run<C: Carrier>(shared: Arc<Shared>, carrier: Arc<C>, settings: Settings) {
    let turns = Arc::new(Semaphore::new(settings.at_once_max.max(1)));
    let under_way_max = settings.at_once_max.max(1) + settings.waiting_max;
    let mut under_way = JoinSet::new();
    loop {
        while under_way.try_join_next().is_some() {}
        while under_way.len() >= under_way_max {
            under_way.join_next().await;
        }
        if !shared.has_next().await {
            break;
        }
        // Only now: whoever waits for an event must hold no turn, which a second attempt may need.
        let turn = take_turn(&turns).await;
        let Some(event) = shared.take() else { continue };
        let (shared, carrier, turns) = (Arc::clone(&shared), Arc::clone(&carrier), Arc::clone(&turns));
        under_way.spawn(async move { carry(&shared, &*carrier, &turns, turn, &event, settings).await });
    }
    while under_way.join_next().await.is_some() {}
}

async fn take_turn(turns: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(turns).acquire_owned().await.expect("this semaphore is never closed")
}

/// Tries one event until it arrives or is given up on; while it waits, another has its turn.
async fn carry<C: Carrier>(
    shared: &Shared,
    carrier: &C,
    turns: &Arc<Semaphore>,
    mut turn: OwnedSemaphorePermit,
    event: &CloudEvent,
    settings: Settings,
) {
    let mut attempt = 1;
    loop {
        let tried = tokio::time::timeout(settings.attempt_time_max, carrier.carry(event)).await;
        drop(turn);
        let limit = settings.attempt_time_max.as_millis();
        let refusal = match tried {
            Ok(Ok(())) => {
                shared.state().report.delivered += 1;
                return;
            }
            Ok(Err(refusal)) => refusal,
            Err(_) => Refusal::later(format!("it took longer than {limit} ms and was stopped")),
        };
        let (reason, after) = match refusal {
            Refusal::Later { reason, after } if attempt < settings.attempts_max => (reason, after),
            Refusal::Later { reason, .. } | Refusal::Never { reason } => {
                return shared.give_up(&event.id, attempt, reason);
            }
        };
        tracing::debug!(event = event.id, attempt, reason, "an event is tried again");
        let wanted = after.unwrap_or_default().min(settings.pause_max);
        tokio::time::sleep(pause(&settings, attempt, random_share()).max(wanted)).await;
        turn = take_turn(turns).await;
        attempt += 1;
        shared.state().report.retries += 1;
    }
}

/// The pause after so many attempts: doubling, bounded, and shorter by up to a half, so that many who failed together do
/// not come back together.
fn pause(settings: &Settings, attempts: u32, share: f64) -> Duration {
    let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1));
    let longest = settings.pause_min.saturating_mul(doubled).min(settings.pause_max);
    longest.mul_f64(1.0 - share.clamp(0.0, 1.0) / 2.0)
}

/// The same between two bounds, with a share of its own.
pub(crate) fn pause_between(min: Duration, max: Duration, attempts: u32) -> Duration {
    let settings = Settings { pause_min: min, pause_max: max, ..Settings::default() };
    pause(&settings, attempts, random_share())
}

/// A random number from 0 to 1.
fn random_share() -> f64 {
    let (high, _) = Uuid::new_v4().as_u64_pair();
    // The version bits lie in the lower half of this word; the upper 32 bits are all random.
    f64::from(u32::try_from(high >> 32).expect("32 bits are left")) / f64::from(u32::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::events::Delivery;
    use crate::events::cloud::tests::event;

    /// Generous: a loaded machine is no failure.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

    pub(crate) fn quick() -> Settings {
        Settings {
            pause_min: Duration::from_millis(1),
            pause_max: Duration::from_millis(20),
            attempts_max: 4,
            ..Settings::default()
        }
    }

    pub(crate) fn numbered(sequence: u64) -> CloudEvent {
        CloudEvent::new("prod", &Delivery::Event(event("user.test", sequence, &[])))
    }

    /// Refuses each event as often as told, by its number.
    struct Moody {
        refusals: BTreeMap<u64, (u32, bool)>,
        tried: Mutex<BTreeMap<u64, u32>>,
        arrived: mpsc::UnboundedSender<CloudEvent>,
    }

    impl Carrier for Moody {
        async fn carry(&self, event: &CloudEvent) -> Result<(), Refusal> {
            let number: u64 = event.sequence.parse().unwrap();
            let attempt = {
                let mut tried = self.tried.lock().unwrap();
                let attempt = tried.entry(number).or_default();
                *attempt += 1;
                *attempt
            };
            match self.refusals.get(&number) {
                Some((_, true)) => Err(Refusal::never("unwanted")),
                Some((times, false)) if attempt <= *times => Err(Refusal::later("busy")),
                _ => {
                    self.arrived.send(event.clone()).unwrap();
                    Ok(())
                }
            }
        }
    }

    #[tokio::test]
    async fn what_fails_is_tried_again_then_reported_and_blocks_nobody() {
        let (arrived, mut arrivals) = mpsc::unbounded_channel();
        let refusals = [(1, (u32::MAX, false)), (2, (2, false)), (3, (0, true))].into();
        let moody = Moody { refusals, tried: Mutex::default(), arrived };
        let (sink, mut given_up) = Sink::start(moody, Settings { at_once_max: 1, ..quick() });
        (1..=5).for_each(|number| sink.offer(numbered(number)));
        let report = sink.close(PATIENCE).await;
        let mut numbers = Vec::new();
        while let Ok(event) = arrivals.try_recv() {
            numbers.push(event.sequence.parse::<u64>().unwrap());
        }
        numbers.sort_unstable();
        assert_eq!(numbers, [2, 4, 5]);
        assert_eq!((report.delivered, report.given_up, report.retries), (3, 2, 3 + 2));
        assert_eq!((report.missed, report.unfinished), (0, 0));
        let mut heard = Vec::new();
        while let Ok(event) = given_up.try_recv() {
            heard.push((event.id.rsplit('/').next().unwrap().to_owned(), event.attempts, event.reason));
        }
        heard.sort();
        assert_eq!(heard, [("1".into(), 4, "busy".into()), ("3".into(), 1, "unwanted".into())]);
    }

    /// Lets nothing pass before it is told to.
    struct Gate {
        open: Arc<Semaphore>,
        entered: Arc<AtomicU32>,
        arrived: mpsc::UnboundedSender<CloudEvent>,
    }

    impl Carrier for Gate {
        async fn carry(&self, event: &CloudEvent) -> Result<(), Refusal> {
            self.entered.fetch_add(1, Ordering::SeqCst);
            self.open.acquire().await.unwrap().forget();
            self.arrived.send(event.clone()).unwrap();
            Ok(())
        }
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what} did not come about");
    }

    #[tokio::test]
    async fn a_full_queue_is_told_as_a_gap_in_its_place() {
        let (arrived, mut arrivals) = mpsc::unbounded_channel();
        let (open, entered) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU32::new(0)));
        let gate = Gate { open: Arc::clone(&open), entered: Arc::clone(&entered), arrived };
        let (sink, _given_up) = Sink::start(gate, Settings { at_once_max: 1, queue_max: 2, ..quick() });
        sink.offer(numbered(1));
        until("the first attempt", || entered.load(Ordering::SeqCst) == 1).await;
        (2..=6).for_each(|number| sink.offer(numbered(number)));
        assert_eq!(sink.report().missed, 3);
        open.add_permits(100);
        until("room", || sink.report().delivered >= 4).await;
        sink.offer(numbered(7));
        let report = sink.close(PATIENCE).await;
        let mut seen = Vec::new();
        while let Ok(event) = arrivals.try_recv() {
            seen.push((event.short_type().to_owned(), event.delivery().unwrap()));
        }
        let words: Vec<String> = seen
            .iter()
            .map(|(kind, delivery)| match delivery {
                Delivery::Gap(lost) => format!("{kind} {}-{}", lost.from, lost.to),
                Delivery::Event(event) => event.sequence.to_string(),
                Delivery::Restarted { .. } | Delivery::Down { .. } | Delivery::Refused { .. } => {
                    panic!("nothing ended: {delivery:?}")
                }
            })
            .collect();
        assert_eq!(words, ["1", "2", "3", "gap 4-6", "7"]);
        assert_eq!((report.delivered, report.missed, report.unfinished), (5, 3, 0));
    }

    #[tokio::test]
    async fn at_most_so_many_are_carried_at_once_and_a_stop_counts_the_rest() {
        let (arrived, _arrivals) = mpsc::unbounded_channel();
        let (open, entered) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU32::new(0)));
        let gate = Gate { open, entered: Arc::clone(&entered), arrived };
        let (sink, _given_up) = Sink::start(gate, Settings { at_once_max: 3, ..quick() });
        (1..=10).for_each(|number| sink.offer(numbered(number)));
        until("three attempts", || entered.load(Ordering::SeqCst) == 3).await;
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(entered.load(Ordering::SeqCst), 3);
        let report = sink.close(Duration::ZERO).await;
        assert_eq!((report.delivered, report.given_up, report.unfinished), (0, 0, 10));
    }

    #[tokio::test]
    async fn an_attempt_that_takes_too_long_is_stopped_and_tried_again() {
        let (arrived, _arrivals) = mpsc::unbounded_channel();
        let (open, entered) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU32::new(0)));
        let gate = Gate { open, entered, arrived };
        let settings = Settings { attempt_time_max: Duration::from_millis(10), attempts_max: 2, ..quick() };
        let (sink, _given_up) = Sink::start(gate, settings);
        sink.offer(numbered(1));
        let report = sink.close(PATIENCE).await;
        assert_eq!((report.given_up, report.retries), (1, 1));
        assert!(report.latest_given_up[0].reason.contains("longer than 10 ms"));
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_differ() {
        let settings = Settings::default();
        let pauses: Vec<u128> = (1..=9).map(|attempts| pause(&settings, attempts, 0.0).as_millis()).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(pause(&settings, 1, 1.0).as_millis(), 250);
        assert_eq!(pause(&settings, u32::MAX, 0.5).as_millis(), 45_000);
    }
}
