//! Deliveries a second to 1, 10 and 100 consumers: of the library's hub in this process, and of NATS, each with a connection
//! of its own in this process. Both in bursts, the next one once everybody has the last.

use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context, bail};
use steadfast_proto::events::{Delivery, EventType, Fields, Interest, Topic, Value};
use tokio::runtime::Runtime;

use super::ROUNDS;
use super::local::start_hub;
use super::nats::Server;
use crate::report::{Report, median};

/// Events of a burst.
const BURST: usize = 512;
/// Deliveries of one round, all consumers together.
const DELIVERIES: usize = 1_000_000;

/// All of it.
pub fn measure(report: &mut Report) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for consumers in [1, 10, 100] {
        let bursts = (DELIVERIES / consumers / BURST).clamp(10, 200);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            let (our, their) = (of_hub(&runtime, consumers, bursts)?, of_nats(consumers, bursts)?);
            println!("fanout to {consumers}, round {round}: ours {our:.0}/s, NATS {their:.0}/s");
            ours.push(our);
            theirs.push(their);
        }
        let name = format!("events.fanout{consumers}.vs_nats");
        report.rate_ratio(&name, median(&ours), median(&theirs), "1/s");
        if consumers == 100 {
            report.rate_ratio("events.fanout.vs_nats", median(&ours), median(&theirs), "1/s");
        }
    }
    Ok(())
}

fn of_hub(runtime: &Runtime, consumers: usize, bursts: usize) -> anyhow::Result<f64> {
    runtime.block_on(async {
        let hub = start_hub()?;
        let kind: EventType = "user".parse()?;
        let (done, mut all_done) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for _ in 0..consumers {
            let subscribed = hub.subscribe(Interest::local(Topic::from(kind.clone())));
            let mut heard = subscribed.map_err(|refusal| anyhow::anyhow!("refused: {refusal:?}"))?;
            let done = done.clone();
            tasks.push(tokio::spawn(async move {
                for _ in 0..bursts {
                    let mut left = BURST;
                    while left > 0 {
                        let Ok(taken) = heard.next().await else { return };
                        if taken.iter().any(|one| !matches!(one, Delivery::Event(_))) {
                            return;
                        }
                        left -= taken.len();
                    }
                    if done.send(()).is_err() {
                        return;
                    }
                }
            }));
        }
        drop(done);
        let fields = Fields::from([("n".to_owned(), Value::Integer(1))]);
        let start = Instant::now();
        for _ in 0..bursts {
            for _ in 0..BURST {
                hub.emit(&kind, &fields);
            }
            for _ in 0..consumers {
                all_done.recv().await.context("a consumer missed events")?;
            }
        }
        let rate = (bursts * BURST * consumers) as f64 / start.elapsed().as_secs_f64();
        for task in tasks {
            task.await?;
        }
        Ok(rate)
    })
}

fn of_nats(consumers: usize, bursts: usize) -> anyhow::Result<f64> {
    let server = Server::start()?;
    let (done, all_done) = mpsc::channel();
    let mut threads = Vec::new();
    for _ in 0..consumers {
        let mut client = server.client()?;
        client.subscribe("bench")?;
        let done = done.clone();
        threads.push(std::thread::spawn(move || -> anyhow::Result<()> {
            for _ in 0..bursts {
                for _ in 0..BURST {
                    client.next()?;
                }
                done.send(())?;
            }
            Ok(())
        }));
    }
    drop(done);
    let mut publisher = server.client()?;
    let burst: Vec<String> = (0..BURST).map(|_| "{\"n\":1}".to_owned()).collect();
    let start = Instant::now();
    for _ in 0..bursts {
        publisher.publish("bench", &burst)?;
        for _ in 0..consumers {
            all_done.recv().context("a subscriber of NATS missed events")?;
        }
    }
    let rate = (bursts * BURST * consumers) as f64 / start.elapsed().as_secs_f64();
    for thread in threads {
        if thread.join().is_err() {
            bail!("a subscriber of NATS failed");
        }
    }
    Ok(rate)
}
