//! What the instances do: chains of two that send each other the same message, and callers of one.
//!
//! State and message have 512 bytes each. A message carries when it was sent, so that whoever gets it knows how long that took.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use steadfast_proto::episode::{Event, Next, Outcome, Outgoing, Task, Wait};
use steadfast_proto::exchange::Name;

use super::BYTES;
use super::histogram::{Histogram, now_ns};

/// What an instance is to do, and with whom, as its input says it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Role<'a> {
    role: &'a str,
    peer: &'a str,
}

impl Role<'_> {
    /// It says something at once.
    pub const FIRST: &'static str = "first";
    /// It waits for that.
    pub const SECOND: &'static str = "second";

    /// The input of an instance.
    pub fn start(role: &str, peer: &Name) -> Vec<u8> {
        serde_json::to_vec(&Role { role, peer: peer.as_str() }).expect("two texts")
    }
}

/// The program, and what it counts.
#[derive(Debug)]
pub struct Chain {
    hops: AtomicU64,
    held: AtomicBool,
    latencies: Histogram,
}

impl Chain {
    /// Which has counted nothing.
    pub fn new() -> Chain {
        Chain { hops: AtomicU64::new(0), held: AtomicBool::new(false), latencies: Histogram::new() }
    }

    /// Messages that have taken effect.
    pub fn hops(&self) -> u64 {
        self.hops.load(Ordering::Relaxed)
    }

    /// From the end of an episode that sends to the beginning of the one that takes.
    pub fn latencies(&self) -> &Histogram {
        &self.latencies
    }

    /// Nobody says anything more.
    pub fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    /// All answer again.
    pub fn go_on(&self) {
        self.held.store(false, Ordering::Relaxed);
    }

    /// Whether nobody is to say anything.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// A message has taken effect that was sent then, or by nobody.
    pub fn note(&self, sent_ns: u64) {
        if sent_ns > 0 {
            self.hops.fetch_add(1, Ordering::Relaxed);
            self.latencies.add(now_ns().saturating_sub(sent_ns));
        }
    }

    /// One episode.
    pub fn run(&self, task: &Task) -> Outcome {
        let is_start = &*task.event.kind == Event::START;
        let role = if is_start { serde_json::from_slice::<Role<'_>>(&task.event.payload).ok() } else { None };
        let peer = role.as_ref().map_or_else(|| peer_of(&task.state), |role| role.peer.as_bytes());
        let mut state = vec![0; BYTES.max(peer.len() + 1)];
        state[0] = u8::try_from(peer.len()).unwrap_or_default();
        state[1..=peer.len()].copy_from_slice(peer);
        if &*task.event.kind == "hop" {
            self.note(task.event.payload.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes)));
        }
        let is_caller = task.name.program() == "caller";
        let says = match &role {
            Some(role) => role.role == Role::FIRST,
            None => !self.is_held() && task.name.program() != "hot",
        };
        let to = std::str::from_utf8(peer).ok().and_then(|peer| Name::parse(peer).ok());
        let messages = to.filter(|_| says).map(hop).into_iter().collect();
        // A caller goes on as soon as its exchange has ended.
        let again = Wait { any: Vec::new(), deadline: Some(task.now) };
        let wait = if is_caller && !self.is_held() { again } else { Wait::for_kind("hop") };
        Outcome { state: state.into(), messages, answer: None, next: Next::Wait(wait) }
    }
}

fn hop(to: Name) -> Outgoing {
    let mut payload = vec![0; BYTES];
    payload[..8].copy_from_slice(&now_ns().to_le_bytes());
    let payload = payload.into();
    Outgoing { to, kind: "hop".into(), correlation: None, payload, begins: false, within: None }
}

fn peer_of(state: &[u8]) -> &[u8] {
    let length = state.first().copied().map_or(0, usize::from);
    state.get(1..=length).unwrap_or_default()
}
