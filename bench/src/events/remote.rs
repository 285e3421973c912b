//! From one agent to a consumer of another, over HTTP on both sides, with NATS publish to subscribe in turn; and a change
//! of a file until a consumer of the same agent's stream has it.

use std::time::Instant;

use steadfast_cli::bed::Bed;

use super::clients::{Emitter, Listener, warm_up};
use super::nats::Server;
use super::{ROUNDS, quantile, us_since};
use crate::report::{Report, median};
use crate::steadfast;

/// Events of one round.
const EVENTS: u64 = 1_000;
/// Changes of files.
const CHANGES: usize = 1_000;

/// All of it.
pub fn measure(report: &mut Report) -> anyhow::Result<()> {
    let bed = Bed::builder(steadfast()?).hosts(3).networks(2).build()?;
    bed.init_cluster("bench")?;
    let mut emitter = Emitter::open(&bed.host(0).socket())?;
    let mut listener = Listener::to_emitted(&bed.host(1).socket())?;
    let mut next = warm_up(&mut emitter, &mut listener, 1)?;
    let server = Server::start()?;
    let (mut publisher, mut subscriber) = (server.client()?, server.client()?);
    subscriber.subscribe("bench")?;
    let mut rounds = [[vec![], vec![]], [vec![], vec![]]];
    for round in 1..=ROUNDS {
        let mut ours = Vec::new();
        for _ in 0..EVENTS {
            let start = Instant::now();
            emitter.emit(next)?;
            listener.wait(next)?;
            ours.push(us_since(start));
            emitter.answer()?;
            next += 1;
        }
        let mut theirs = Vec::new();
        for number in 0..EVENTS {
            let event = [format!("{{\"type\":\"user.bench\",\"fields\":{{\"n\":{number}}}}}")];
            let start = Instant::now();
            publisher.publish("bench", &event)?;
            subscriber.next()?;
            theirs.push(us_since(start));
        }
        for (times, kept) in [&ours, &theirs].into_iter().zip(&mut rounds) {
            for (share, kept) in [0.5, 0.99].into_iter().zip(kept) {
                kept.push(quantile(times, share));
            }
        }
        println!("remote round {round}: ours p50 {:.0} us, NATS {:.0} us", median(&ours), median(&theirs));
    }
    let [[ours_p50, ours_p99], [theirs_p50, theirs_p99]] = rounds.map(|kept| kept.map(|one| median(&one)));
    report.time_ratio("events.remote_p50.vs_nats", ours_p50, theirs_p50, "us");
    report.time_ratio("events.remote_p99.vs_nats", ours_p99, theirs_p99, "us");
    measure_stream(&bed, report)
}

/// A file appears until a consumer of the agent's own stream has it.
fn measure_stream(bed: &Bed, report: &mut Report) -> anyhow::Result<()> {
    let folder = bed.base().join("watched");
    std::fs::create_dir_all(&folder)?;
    let filter = format!("type%3Dfile.change%20and%20path%3D{}", folder.display());
    let mut listener = Listener::open(&bed.host(2).socket(), &filter)?;
    let mut times = Vec::new();
    for number in 0..CHANGES {
        if number == 0 {
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        let name = format!("file-{number}-");
        let start = Instant::now();
        std::fs::File::create(folder.join(&name))?;
        while !listener.next()?.contains(&name) {}
        times.push(us_since(start));
    }
    report.figure("events.local_stream_p50_us", quantile(&times, 0.5), "us");
    report.figure("events.local_stream_p99_us", quantile(&times, 0.99), "us");
    Ok(())
}
