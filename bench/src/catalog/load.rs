//! The same load for everybody: clients that each wait for an answer before they ask again.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;

use super::watch::Watchers;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Writes a value of 256 bytes, durable on a majority.
    Put,
    /// Reads a value, linearizable.
    Read,
}

/// One question; an error ends the measurement.
pub type Answer<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>>;

/// A client that connects.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Box<dyn Client>>> + 'a>>;

/// A client of one of the systems.
pub trait Client: Send + Sync {
    /// Asks once, about the key of this number.
    fn ask(&self, doing: Doing, key: u64) -> Answer<'_>;
    /// Writes this value, durable on a majority.
    fn put<'a>(&'a self, key: &'a str, value: Bytes) -> Answer<'a>;
}

/// One of the systems.
pub trait Contender {
    /// Its name in what is printed.
    fn name(&self) -> &'static str;
    /// A client of the member with this number, from 0.
    fn client(&self, member: usize) -> Connecting<'_>;
    /// So many watchers, under way at the member with this number.
    fn watchers(&self, member: usize, count: usize) -> Watchers<'_>;
}

/// What a load showed.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Answers per second.
    pub per_second: f64,
    /// The middle one's milliseconds.
    pub p50_ms: f64,
    /// Milliseconds of the one that 99 of 100 are faster than.
    pub p99_ms: f64,
}

impl Load {
    /// Loads a system with so many clients, spread over its members.
    pub async fn of(
        contender: &dyn Contender,
        doing: Doing,
        clients: usize,
        span: Duration,
    ) -> anyhow::Result<Load> {
        let mut ready = Vec::new();
        for client in 0..clients {
            ready.push(contender.client(client % 3).await?);
        }
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for (number, client) in (0u64..).zip(ready) {
            tasks.spawn(async move {
                let mut times = Vec::new();
                for count in 0.. {
                    let asked = Instant::now();
                    if asked - start >= span {
                        break;
                    }
                    client.ask(doing, number * 16 + count % 16).await?;
                    times.push(asked.elapsed().as_secs_f64() * 1e3);
                }
                anyhow::Ok(times)
            });
        }
        let mut times = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            times.extend(ended??);
        }
        let seconds = start.elapsed().as_secs_f64();
        times.sort_by(f64::total_cmp);
        let at = |share: usize| times.get(times.len() * share / 100).copied().context("nothing was answered");
        Ok(Load { per_second: times.len() as f64 / seconds, p50_ms: at(50)?, p99_ms: at(99)? })
    }
}
