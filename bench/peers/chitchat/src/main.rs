//! One chitchat agent with the defaults of its failure detector (phi 8) and a gossip interval of one second.
//!
//! `peer-chitchat NAME ADDRESS SPEED [SEED...]`. SPEED divides the gossip interval and the detector's initial and longest
//! interval; 1 is the documented default. Each membership change is one line on standard output: CLOCK_MONOTONIC in
//! nanoseconds, `up` or `down`, the other's address. It decides nothing else.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chitchat::transport::UdpTransport;
use chitchat::{ChitchatConfig, ChitchatId, FailureDetectorConfig, ProtocolVersion, spawn_chitchat};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "peer-chitchat NAME ADDRESS SPEED [SEED...]";
    let name = arguments.next().ok_or(usage)?;
    let address: SocketAddr = arguments.next().ok_or(usage)?.parse()?;
    let speed: f64 = arguments.next().ok_or(usage)?.parse()?;
    let generation = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let mut detector = FailureDetectorConfig::default();
    detector.initial_interval = detector.initial_interval.div_f64(speed);
    detector.max_interval = detector.max_interval.div_f64(speed);
    let config = ChitchatConfig {
        chitchat_id: ChitchatId::new(name, generation, address),
        cluster_id: "bench".to_owned(),
        gossip_interval: Duration::from_secs(1).div_f64(speed),
        listen_addr: address,
        seed_nodes: arguments.collect(),
        failure_detector_config: detector,
        marked_for_deletion_grace_period: Duration::from_secs(15 * 60),
        catchup_callback: None,
        extra_liveness_predicate: None,
        protocol_version: ProtocolVersion::V0,
    };
    let handle = spawn_chitchat(config, Vec::new(), &UdpTransport).await?;
    let mut live = handle.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await;
    let mut known: BTreeSet<SocketAddr> = BTreeSet::new();
    loop {
        let now: BTreeSet<SocketAddr> =
            live.borrow_and_update().keys().map(|id| id.gossip_advertise_addr).collect();
        for gone in known.difference(&now) {
            say("down", *gone)?;
        }
        for new in now.difference(&known).filter(|new| **new != address) {
            say("up", *new)?;
        }
        known = now;
        live.changed().await?;
    }
}

fn say(what: &str, other: SocketAddr) -> std::io::Result<()> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}{:09} {what} {other}", now.tv_sec, now.tv_nsec)?;
    out.flush()
}
