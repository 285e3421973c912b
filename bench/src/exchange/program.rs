//! The chains' program in a process of its own, behind HTTP on a socket, and the hands by which the benchmark steers it.
//!
//! It speaks the JSON that `steadfast_cli::episodes::programs::json` describes, with hyper and serde_json and nothing of ours, as a
//! program in Rust would. `count`, `latency`, `hold` and `go` on its standard input are answered by one line each; the service
//! behind Restate's server speaks the same words.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

use super::BYTES;
use super::chain::{Chain, Role};
use super::histogram::now_ns;

#[derive(Deserialize)]
struct Told<'a> {
    #[serde(borrow)]
    event: EventTold<'a>,
    #[serde(borrow)]
    state: Option<State<'a>>,
}

#[derive(Deserialize)]
struct EventTold<'a> {
    #[serde(borrow)]
    payload: Payload<'a>,
}

/// Of the first event the role and the peer, of any other when it was sent.
#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(default)]
    sent: u64,
    #[serde(borrow, default)]
    role: Option<&'a str>,
    #[serde(borrow, default)]
    peer: Option<&'a str>,
}

#[derive(Serialize, Deserialize)]
struct State<'a> {
    peer: &'a str,
    fill: &'a str,
}

#[derive(Serialize)]
struct Said<'a> {
    state: State<'a>,
    messages: Vec<Message<'a>>,
    wait: Wait,
}

#[derive(Serialize)]
struct Message<'a> {
    to: &'a str,
    kind: &'static str,
    payload: Sent<'a>,
}

#[derive(Serialize)]
struct Sent<'a> {
    sent: u64,
    fill: &'a str,
}

#[derive(Serialize)]
struct Wait {
    any: [Kind; 1],
}

#[derive(Serialize)]
struct Kind {
    kind: &'static str,
}

/// Serves at this socket until standard input ends.
pub fn serve(socket: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let chain = Arc::new(Chain::new());
    let serving = Arc::clone(&chain);
    let listener = {
        let _inside = runtime.enter();
        UnixListener::bind(socket)?
    };
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let chain = Arc::clone(&serving);
            let service = service_fn(move |request| answer(request, Arc::clone(&chain)));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "count" => println!("{}", chain.hops()),
            "latency" => {
                let (p50, p99) = chain.latencies().p50_p99_us();
                chain.latencies().clear();
                println!("{p50} {p99}");
            }
            "hold" => {
                chain.hold();
                println!("hold");
            }
            "go" => {
                chain.go_on();
                println!("go");
            }
            other => bail!("the program is asked for '{other}', which it does not know"),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

async fn answer(
    request: Request<Incoming>,
    chain: Arc<Chain>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let (status, body) = match said(&body, &chain) {
        Ok(said) => (200, said),
        Err(error) => (500, error.to_string().into_bytes()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    Ok(response)
}

fn said(body: &[u8], chain: &Chain) -> Result<Vec<u8>, serde_json::Error> {
    let told: Told<'_> = serde_json::from_slice(body)?;
    let fill = "0".repeat(BYTES - 40);
    let Payload { sent, role, peer } = told.event.payload;
    chain.note(sent);
    let peer = peer.or(told.state.map(|state| state.peer)).unwrap_or_default();
    let says = role.map_or(!chain.is_held(), |role| role == Role::FIRST);
    let message = || Message { to: peer, kind: "hop", payload: Sent { sent: now_ns(), fill: &fill } };
    serde_json::to_vec(&Said {
        state: State { peer, fill: &fill },
        messages: says.then(message).into_iter().collect(),
        wait: Wait { any: [Kind { kind: "hop" }] },
    })
}

/// Another process that runs episodes, ours or the one behind Restate's server.
#[derive(Debug)]
pub struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// What it said first.
    pub first: String,
}

impl Process {
    /// Starts one, and waits for its first line.
    pub fn start(command: &mut Command) -> anyhow::Result<Process> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("it has an input")?;
        let output = BufReader::new(child.stdout.take().context("it has an output")?);
        let mut process = Process { child, input, output, first: String::new() };
        process.first = process.line()?;
        Ok(process)
    }

    /// Asks for one of its words.
    pub fn ask(&mut self, word: &str) -> anyhow::Result<String> {
        writeln!(self.input, "{word}")?;
        self.line()
    }

    /// The next line that it says.
    pub fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("a process of the benchmark ended before it was told to");
        }
        Ok(line.trim().to_owned())
    }

    /// Hops so far.
    pub fn count(&mut self) -> anyhow::Result<u64> {
        Ok(self.ask("count")?.parse()?)
    }

    /// Half of the hops since the last call took no longer, and 99 of 100, in microseconds.
    pub fn latency_us(&mut self) -> anyhow::Result<(f64, f64)> {
        let said = self.ask("latency")?;
        let (p50, p99) = said.split_once(' ').context("two numbers")?;
        Ok((p50.parse()?, p99.parse()?))
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> anyhow::Result<()> {
        self.child.wait()?;
        Ok(())
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
