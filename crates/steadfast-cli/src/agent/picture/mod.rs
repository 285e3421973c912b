//! The picture of the cluster that the page shows: made once for all who look, while somebody looks.
//!
//! A picture is sections of items, each item a JSON value. A new one shares with the one before what did not change, so that
//! whoever follows compares pointers. It is made anew when something happened, ten times a second at most; followers that
//! are slow skip pictures and never slow it down. It decides nothing. Read `sections` for what is in it, `others` for the
//! links of the other nodes, `merge` for how changes are written.

mod merge;
mod others;
mod sections;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::{Map, Value};
use steadfast::catalog::WatchStream;
use steadfast_proto::catalog::VIEW_RECORDS;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use self::others::Others;
use super::Agent;
use crate::codes::Code;
use crate::failure::Failure;

/// How many may look at once.
const FOLLOWERS_MAX: usize = 64;
/// The shortest time between two pictures.
const PAUSE: Duration = Duration::from_millis(100);
/// How often what no event announces is taken over.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// What of the catalog a picture shows.
const PREFIXES: [&str; 3] = ["container/", "node/", VIEW_RECORDS];

/// Items by section and name.
pub(super) type Picture = BTreeMap<&'static str, BTreeMap<String, Arc<Value>>>;

/// The pictures of this node, while somebody looks.
#[derive(Debug)]
pub(crate) struct Pictures {
    current: Mutex<Weak<Making>>,
    places: Arc<Semaphore>,
}

impl Default for Pictures {
    fn default() -> Pictures {
        Pictures { current: Mutex::default(), places: Arc::new(Semaphore::new(FOLLOWERS_MAX)) }
    }
}

/// Pictures are made until the last who holds this lets go.
#[derive(Debug)]
struct Making {
    newest: watch::Sender<Arc<Picture>>,
    /// Ends the tasks with it.
    _tasks: JoinSet<()>,
}

/// Somebody who looks.
#[derive(Debug)]
pub(crate) struct FollowPicture {
    newest: watch::Receiver<Arc<Picture>>,
    told: Option<Arc<Picture>>,
    _making: Arc<Making>,
    _place: OwnedSemaphorePermit,
}

impl Agent {
    /// Follows the picture: first the whole, then what changes.
    pub(crate) fn follow_picture(agent: &Arc<Agent>) -> Result<FollowPicture, Failure> {
        let place = Arc::clone(&agent.pictures.places).try_acquire_owned().map_err(|_| {
            Failure::new(Code::TooMany, format!("{FOLLOWERS_MAX} pages are open already; close some of them"))
        })?;
        let mut current = agent.pictures.current.lock().unwrap_or_else(PoisonError::into_inner);
        let making = current.upgrade().unwrap_or_else(|| {
            let making = Arc::new(Making::start(agent));
            *current = Arc::downgrade(&making);
            making
        });
        let mut newest = making.newest.subscribe();
        newest.mark_changed();
        Ok(FollowPicture { newest, told: None, _making: making, _place: place })
    }
}

impl FollowPicture {
    /// Whether it is the whole, and the merge patch; waits until there is something to tell. `None` when the node has
    /// stopped.
    pub(crate) async fn next(&mut self) -> Option<(bool, Map<String, Value>)> {
        loop {
            self.newest.changed().await.ok()?;
            let newest = Arc::clone(&self.newest.borrow_and_update());
            if newest.is_empty() {
                continue;
            }
            let nothing = Picture::new();
            let change = merge::change(self.told.as_deref().unwrap_or(&nothing), &newest);
            let is_whole = self.told.replace(newest).is_none();
            if is_whole || !change.is_empty() {
                return Some((is_whole, change));
            }
        }
    }
}

impl Making {
    fn start(agent: &Arc<Agent>) -> Making {
        let newest = watch::Sender::new(Arc::new(Picture::new()));
        let mut tasks = JoinSet::new();
        let rows = watch::Sender::new(0u64);
        for prefix in PREFIXES {
            let revision = agent.rows.catalog().range_stale(prefix).revision;
            let stream = agent.rows.catalog().watch(prefix.to_owned(), revision);
            tasks.spawn(count(stream, rows.clone()));
        }
        tasks.spawn(make(Arc::clone(agent), rows.subscribe(), newest.clone()));
        Making { newest, _tasks: tasks }
    }
}

/// Counts changes of the catalog.
async fn count(mut stream: WatchStream, changes: watch::Sender<u64>) {
    while stream.next().await.is_ok() {
        changes.send_modify(|count| *count += 1);
    }
}

/// Makes pictures until the node stops.
async fn make(agent: Arc<Agent>, mut rows: watch::Receiver<u64>, newest: watch::Sender<Arc<Picture>>) {
    let mut events = agent.node.events();
    let mut board = agent.board.changes();
    let mut others = Others::default();
    let mut heard = others.changes();
    let mut period = tokio::time::interval(LOOK_PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // What happens from here on is seen by the next look.
        board.mark_unchanged();
        rows.mark_unchanged();
        heard.mark_unchanged();
        let before = Arc::clone(&newest.borrow());
        let picture = sections::picture(&agent, &mut others).await;
        let picture = Arc::new(merge::shared(&before, picture));
        newest.send_if_modified(|current| {
            let is_new = !merge::change(current, &picture).is_empty();
            if is_new {
                *current = picture;
            }
            is_new
        });
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            _ = period.tick() => {}
            changed = board.changed() => if changed.is_err() { return },
            // A catalog that has closed changes no more; the node's end is seen by its events.
            Ok(()) = rows.changed() => {}
            Ok(()) = heard.changed() => {}
            event = events.recv() => match event {
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
        }
        while events.try_recv().is_ok() {}
    }
}
