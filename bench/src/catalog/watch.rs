//! The time from a put at one member until watchers at another member have it, ours and etcd's.
//!
//! Puts come one after another, each when all watchers have the one before; the clock starts before the put is sent. What a watcher
//! is given says which put it was, so a late one can't pass for a new one. Nothing here knows a system.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::load::Contender;
use super::{ROUNDS, VALUE_BYTES};
use crate::report::{Report, median};

/// The key that is written and watched.
pub const KEY: &str = "bench/watched";
/// What the number of a put stands after.
const MARK: &[u8] = b"put=";
const DIGITS: usize = 16;
/// How long one load lasts.
const SPAN: Duration = Duration::from_secs(2);
/// How long one put and its events are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// So that events can't come faster than they are taken.
const PENDING_MAX: usize = 1024;

/// What a watcher has been given, as the system wrapped it; an error ends the measurement.
pub type Given<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Bytes>> + Send + 'a>>;

/// A watcher of [`KEY`] at one member, which watches already.
pub trait Watcher: Send {
    /// The next thing that it is given.
    fn next(&mut self) -> Given<'_>;
}

/// Watchers under way.
pub type Watchers<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Vec<Box<dyn Watcher>>>> + 'a>>;

/// Measures both with one watcher and with a hundred.
pub async fn measure(contenders: &[&dyn Contender; 2], report: &mut Report) -> anyhow::Result<()> {
    let mut put = 0;
    for (name, watchers) in [("watch", 1), ("watch100", 100)] {
        let (mut p50s, mut p99s) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for round in 0..ROUNDS {
            for ((contender, p50s), p99s) in contenders.iter().zip(&mut p50s).zip(&mut p99s) {
                let times = delays(*contender, round % 3, watchers, &mut put).await?;
                let at =
                    |share: usize| times.get(times.len() * share / 100).copied().context("no event came");
                let (p50, p99) = (at(50)?, at(99)?);
                println!(
                    "{name} round {} {}: {} puts, p50 {p50:.2} ms, p99 {p99:.2} ms",
                    round + 1,
                    contender.name(),
                    times.len() / watchers,
                );
                p50s.push(p50);
                p99s.push(p99);
            }
        }
        let [ours, theirs] = &p50s;
        report.time_ratio(&format!("catalog.{name}.vs_etcd"), median(ours), median(theirs), "ms");
        let [ours, theirs] = &p99s;
        report.time_ratio(&format!("catalog.{name}_p99.vs_etcd"), median(ours), median(theirs), "ms");
    }
    Ok(())
}

/// Milliseconds of all events, in order, of puts at `member` and watchers at the next; `put` numbers the puts of the whole run.
async fn delays(
    contender: &dyn Contender,
    member: usize,
    watchers: usize,
    put: &mut u64,
) -> anyhow::Result<Vec<f64>> {
    let client = contender.client(member).await?;
    let (sender, mut events) = mpsc::channel(PENDING_MAX);
    // Aborted when this returns.
    let mut tasks = JoinSet::new();
    for mut watcher in contender.watchers((member + 1) % 3, watchers).await? {
        let sender = sender.clone();
        tasks.spawn(async move {
            loop {
                let given = watcher.next().await.map(|given| (number(&given), Instant::now()));
                let is_over = given.is_err();
                if sender.send(given).await.is_err() || is_over {
                    return;
                }
            }
        });
    }
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < SPAN {
        *put += 1;
        let sent = Instant::now();
        let collect = async {
            let mut missing = watchers;
            while missing > 0 {
                let (number, came) = events.recv().await.context("the watchers ended")??;
                if number == Some(*put) {
                    times.push((came - sent).as_secs_f64() * 1e3);
                    missing -= 1;
                }
            }
            anyhow::Ok(())
        };
        let writing = async { tokio::try_join!(client.put(KEY, value(*put)), collect) };
        match tokio::time::timeout(PATIENCE, writing).await {
            Ok(done) => drop(done?),
            Err(_) => bail!("{}: a put did not reach all {watchers} watchers", contender.name()),
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// A value of the usual size that says which put it is.
fn value(put: u64) -> Bytes {
    let mut value = MARK.to_vec();
    value.extend_from_slice(format!("{put:0DIGITS$}").as_bytes());
    value.resize(VALUE_BYTES, b'.');
    value.into()
}

/// Which put something says that it is of: the last, if of several.
fn number(given: &[u8]) -> Option<u64> {
    let at = given.windows(MARK.len()).rposition(|window| window == MARK)?;
    let digits = given.get(at + MARK.len()..)?.get(..DIGITS)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_says_which_put_it_is_also_inside_something() {
        let mut wrapped = b"header".to_vec();
        wrapped.extend_from_slice(&value(41));
        wrapped.extend_from_slice(&value(42));
        assert_eq!(number(&wrapped), Some(42));
        assert_eq!(number(b"put=12"), None);
        assert_eq!(number(b""), None);
    }
}
