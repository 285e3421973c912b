//! This node's links and verdicts, kept current beside the core, for the API and whoever follows it.
//!
//! One task looks at the core once a second and at every change that the core publishes; readers wait for the board's
//! count of changes. A reader that stalls holds no memory here but its registration. It decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use steadfast::net::datagram;
use steadfast::node::{NodeHandle, Unanswered};
use steadfast_proto::detect::{Opinion, Rule};
use steadfast_proto::ids::{Incarnation, NetworkId, NodeId};
use steadfast_proto::links::{Interest, Links, RegistrationId, Report, Seen, TooManyRegistrations};
use steadfast_proto::node::{Event, Status};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use super::verdicts::{Held, Verdicts};
use crate::api::convert::now_unix_ms;

/// How often figures that no event announces are taken over.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// How many generations one start of the agent may use: the next start's are beyond them.
const GENERATIONS_PER_START: u64 = 1_000_000_000;

/// The links and verdicts of this node; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
    /// When this machine booted, in ms since 1970.
    boot_unix_ms: u64,
}

#[derive(Debug)]
struct State {
    links: Links,
    verdicts: Verdicts,
    /// By which rule this node itself suspects whom.
    rules: BTreeMap<NodeId, Rule>,
}

impl Board {
    /// A board that shows nothing yet.
    pub(crate) fn new(incarnation: Incarnation) -> Board {
        let first = incarnation.0.saturating_mul(GENERATIONS_PER_START);
        let state =
            State { links: Links::new(first), verdicts: Verdicts::new(first), rules: BTreeMap::new() };
        Board {
            state: Arc::new(Mutex::new(state)),
            changes: watch::Sender::new(0),
            boot_unix_ms: now_unix_ms().saturating_sub(datagram::now().as_nanos() / 1_000_000),
        }
    }

    /// Follows the core until it stops.
    pub(crate) async fn follow(self, node: NodeHandle, networks: usize) {
        let mut events = node.events();
        let mut period = tokio::time::interval(LOOK_PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = period.tick() => {}
                event = events.recv() => match event {
                    Ok(noticed) if self.note(&noticed.event) => {}
                    Ok(_) => continue,
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
            }
            // One look is enough for all that has happened by now.
            while let Ok(noticed) = events.try_recv() {
                self.note(&noticed.event);
            }
            match node.status().await {
                Ok(status) => self.look(&status, networks),
                // The next look shows what this one would have.
                Err(Unanswered::Busy) => {}
                Err(Unanswered::Stopped) => return,
            }
        }
    }

    /// Takes note of an event, and says whether links or verdicts may have changed with it.
    fn note(&self, event: &Event) -> bool {
        let Event::Opinion(opinion) = event else { return false };
        match opinion {
            Opinion::Suspected { peer, rule, .. } => {
                self.lock().rules.insert(*peer, *rule);
            }
            Opinion::Cleared(peer) => {
                self.lock().rules.remove(peer);
            }
            Opinion::Link { .. }
            | Opinion::NetworkSuspected { .. }
            | Opinion::NetworkCleared(_)
            | Opinion::Isolated
            | Opinion::Reconnected
            | Opinion::Verdict(_)
            | Opinion::Over(_) => {}
        }
        true
    }

    fn look(&self, status: &Status, networks: usize) {
        let ids = (0..networks).filter_map(|index| u16::try_from(index).ok()).map(NetworkId);
        let seen = Seen {
            networks: ids.collect(),
            peers: status.peers.iter().map(|(id, peer)| (*id, peer.links.clone())).collect(),
            unplugged: status.unplugged.clone(),
        };
        let mut state = self.lock();
        state.rules.retain(|id, _| status.peers.get(id).is_some_and(|peer| peer.suspected));
        let links = state.links.update(status.now, &seen);
        let verdicts = state.verdicts.update(&status.verdicts);
        drop(state);
        if links || verdicts {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Counts the changes; wait for it before looking again.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The links that changed since `generation`, or all of them.
    pub(crate) fn links_since(&self, interest: &Interest, generation: Option<u64>) -> Report {
        self.lock().links.since(interest, generation)
    }

    /// The verdicts that changed since `generation`, or all that hold.
    pub(crate) fn verdicts_since(&self, generation: Option<u64>) -> (u64, bool, Vec<Held>) {
        self.lock().verdicts.since(generation)
    }

    /// By which verdict each of these nodes was removed.
    pub(crate) fn verdicts_behind(&self, removed: impl Iterator<Item = NodeId>) -> Vec<Held> {
        self.lock().verdicts.behind(removed)
    }

    /// By which rule this node itself suspects whom.
    pub(crate) fn rules(&self) -> BTreeMap<NodeId, Rule> {
        self.lock().rules.clone()
    }

    /// Keeps somebody told of links from `generation` on; until the registration is dropped.
    pub(crate) fn register(
        &self,
        interest: Interest,
        generation: Option<u64>,
    ) -> Result<Registration, TooManyRegistrations> {
        let id = self.lock().links.register_from(interest, generation)?;
        Ok(Registration { board: self.clone(), id })
    }

    /// When this machine booted, in ms since 1970.
    pub(crate) fn boot_unix_ms(&self) -> u64 {
        self.boot_unix_ms
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who is kept told of links.
#[derive(Debug)]
pub(crate) struct Registration {
    board: Board,
    id: RegistrationId,
}

impl Registration {
    /// What there is to tell since the last time.
    pub(crate) fn take(&self) -> Report {
        self.board.lock().links.take(self.id).unwrap_or_default()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.board.lock().links.deregister(self.id);
    }
}
