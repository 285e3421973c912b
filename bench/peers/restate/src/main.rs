//! A service behind a Restate server: virtual objects that send each other the same 512 bytes again and again.
//!
//! `a17` and `b17` are one chain: each hop reads its object's state of 512 bytes, writes it, and sends 512 bytes to the other
//! one-way. `add` is a counter for callers from outside. The benchmark speaks to this process by lines: `count`, `latency`,
//! `hold`, `go`; each is answered by one line.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use restate_sdk::prelude::*;

/// Bytes of each state and of each message.
const BYTES: usize = 512;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static HOPS: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicBool = AtomicBool::new(false);
/// Microseconds from each send to the hop that it caused.
static LATENCIES: Mutex<Vec<u64>> = Mutex::new(Vec::new());

struct Chain;

#[object]
impl Chain {
    #[handler]
    async fn hop(&self, ctx: ObjectContext<'_>, message: Bytes) -> Result<(), TerminalError> {
        if let Some(sent) =
            message.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)).filter(|sent| *sent > 0)
        {
            let took = now_us().saturating_sub(sent);
            LATENCIES.lock().unwrap_or_else(PoisonError::into_inner).push(took);
            HOPS.fetch_add(1, Ordering::Relaxed);
        }
        let state = ctx.get::<Bytes>("state").await?.unwrap_or_else(|| vec![0; BYTES].into());
        ctx.set("state", state);
        if HELD.load(Ordering::Relaxed) {
            return Ok(());
        }
        let other = match ctx.key().split_at(1) {
            ("a", number) => format!("b{number}"),
            (_, number) => format!("a{number}"),
        };
        let mut message = vec![0; BYTES];
        message[..8].copy_from_slice(&now_us().to_le_bytes());
        ctx.object_client::<ChainClient>(other).hop(message.into()).send();
        Ok(())
    }

    #[handler]
    async fn add(&self, ctx: ObjectContext<'_>, _message: Bytes) -> Result<(), TerminalError> {
        let state = ctx.get::<Bytes>("state").await?.unwrap_or_else(|| vec![0; BYTES].into());
        ctx.set("state", state);
        HOPS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn now_us() -> u64 {
    u64::try_from(START.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
}

/// Answers the benchmark, until it closes its end.
fn answer() {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let said = match line.as_str() {
            "count" => HOPS.load(Ordering::Relaxed).to_string(),
            "latency" => {
                let mut all = std::mem::take(&mut *LATENCIES.lock().unwrap_or_else(PoisonError::into_inner));
                all.sort_unstable();
                let at = |percent: usize| all.get(all.len() * percent / 100).copied().unwrap_or_default();
                format!("{} {}", at(50), at(99))
            }
            "hold" | "go" => {
                HELD.store(line == "hold", Ordering::Relaxed);
                line
            }
            _ => "unknown".to_owned(),
        };
        println!("{said}");
        let _ = std::io::stdout().flush();
    }
    std::process::exit(0);
}

#[tokio::main]
async fn main() {
    LazyLock::force(&START);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("it is bound").port());
    std::thread::spawn(answer);
    HttpServer::new(Endpoint::builder().bind(Chain).build()).serve(listener).await;
}
