//! One foca agent as its documentation shows it: UDP, `Config::new_lan`, postcard, no custom payload.
//!
//! `peer-foca ADDRESS CLUSTER_SIZE SPEED [SEED...]`. SPEED divides the probe period, the probe's round trip, the time
//! from suspected to down and the gossip interval; 1 is the documented default. Each membership change is one line on
//! standard output: CLOCK_MONOTONIC in nanoseconds, `up` or `down`, the other's address. It decides nothing else.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::error::Error;
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use foca::{
    AccumulatingRuntime, Config, Foca, Identity, NoCustomBroadcast, OwnedNotification, PostcardCodec, Timer,
};
use rand::rngs::StdRng;

/// How often a lonely agent asks the seeds again.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Member {
    address: SocketAddr,
    generation: u64,
}

impl Identity for Member {
    type Addr = SocketAddr;

    fn renew(&self) -> Option<Self> {
        Some(Self { address: self.address, generation: self.generation.wrapping_add(1) })
    }

    fn addr(&self) -> SocketAddr {
        self.address
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.generation > adversary.generation
    }
}

struct Due {
    at: Instant,
    order: u64,
    timer: Timer<Member>,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Timers due at once are handled in the order that foca wants, as its documentation asks.
        self.at.cmp(&other.at).then_with(|| self.timer.cmp(&other.timer)).then(self.order.cmp(&other.order))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

struct Agent {
    foca: Foca<Member, PostcardCodec, StdRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Member>,
    socket: UdpSocket,
    due: BinaryHeap<Reverse<Due>>,
    scheduled: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "peer-foca ADDRESS CLUSTER_SIZE SPEED [SEED...]";
    let address: SocketAddr = arguments.next().ok_or(usage)?.parse()?;
    let size: NonZeroU32 = arguments.next().ok_or(usage)?.parse()?;
    let speed: f64 = arguments.next().ok_or(usage)?.parse()?;
    let seeds = arguments.map(|seed| seed.parse()).collect::<Result<Vec<SocketAddr>, _>>()?;
    let generation = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let identity = Member { address, generation: u64::try_from(generation)? };
    let rng: StdRng = rand::make_rng();
    let mut agent = Agent {
        foca: Foca::new(identity, config(size, speed), rng, PostcardCodec),
        runtime: AccumulatingRuntime::new(),
        socket: UdpSocket::bind(address)?,
        due: BinaryHeap::new(),
        scheduled: 0,
    };
    let mut announce_at = Instant::now();
    let mut buffer = [0; 2048];
    loop {
        let now = Instant::now();
        agent.run_timers(now);
        if now >= announce_at {
            announce_at = now + ANNOUNCE_EVERY;
            if agent.foca.num_members() == 0 {
                for seed in &seeds {
                    // Any generation will do: only the address is used to reach it.
                    let seed = Member { address: *seed, generation: 0 };
                    complain(agent.foca.announce(seed, &mut agent.runtime));
                }
            }
        }
        agent.flush()?;
        let next = agent.due.peek().map_or(announce_at, |Reverse(due)| due.at.min(announce_at));
        let wait = next.saturating_duration_since(Instant::now()).max(Duration::from_micros(100));
        agent.socket.set_read_timeout(Some(wait))?;
        match agent.socket.recv_from(&mut buffer) {
            Ok((length, _)) => {
                complain(agent.foca.handle_data(&buffer[..length], &mut agent.runtime));
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => eprintln!("receive: {error}"),
        }
    }
}

fn config(size: NonZeroU32, speed: f64) -> Config {
    let mut config = Config::new_lan(size);
    config.probe_period = config.probe_period.div_f64(speed);
    config.probe_rtt = config.probe_rtt.div_f64(speed);
    config.suspect_to_down_after = config.suspect_to_down_after.div_f64(speed);
    if let Some(gossip) = config.periodic_gossip.as_mut() {
        gossip.frequency = gossip.frequency.div_f64(speed);
    }
    config
}

/// Foca shrugs most errors off; so does its example.
fn complain(result: Result<(), foca::Error>) {
    if let Err(error) = result {
        eprintln!("foca: {error}");
    }
}

impl Agent {
    fn run_timers(&mut self, now: Instant) {
        while self.due.peek().is_some_and(|Reverse(due)| due.at <= now) {
            let Some(Reverse(due)) = self.due.pop() else { break };
            complain(self.foca.handle_timer(due.timer, &mut self.runtime));
            self.schedule();
        }
    }

    fn schedule(&mut self) {
        let now = Instant::now();
        while let Some((delay, timer)) = self.runtime.to_schedule() {
            self.scheduled += 1;
            self.due.push(Reverse(Due { at: now + delay, order: self.scheduled, timer }));
        }
    }

    /// Does what foca asked for: sends, timers, lines.
    fn flush(&mut self) -> Result<(), Box<dyn Error>> {
        while let Some((to, data)) = self.runtime.to_send() {
            if let Err(error) = self.socket.send_to(&data, to.address) {
                eprintln!("send to {}: {error}", to.address);
            }
        }
        self.schedule();
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(member) => say("up", &member)?,
                OwnedNotification::MemberDown(member) => say("down", &member)?,
                OwnedNotification::Rename(..)
                | OwnedNotification::Active
                | OwnedNotification::Idle
                | OwnedNotification::Defunct
                | OwnedNotification::Rejoin(_) => {}
                #[allow(unreachable_patterns, reason = "further ones exist under a feature")]
                _ => {}
            }
        }
        Ok(())
    }
}

fn say(what: &str, member: &Member) -> std::io::Result<()> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}{:09} {what} {}", now.tv_sec, now.tv_nsec, member.address)?;
    out.flush()
}
