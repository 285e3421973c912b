//! Restate's server with its default settings, and the service behind it that `bench/peers/restate` is.

#[path = "../../../xtask/src/setup/find_restate.rs"]
mod find_restate;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::BYTES;
use super::nodes::Folder;
use super::program::Process;

/// How long it may take to start, and to come to rest.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing may happen before it counts as at rest.
const QUIET: Duration = Duration::from_millis(500);

/// A server with its service.
#[derive(Debug)]
pub struct Restate {
    server: Child,
    /// Where the chains run.
    pub service: Process,
    ingress: u16,
    admin: u16,
    fabric: u16,
    folder: Folder,
}

impl Restate {
    /// Which version.
    pub fn version() -> &'static str {
        find_restate::RESTATE_VERSION
    }

    /// Starts both, and tells the server of the service.
    pub fn start() -> anyhow::Result<Restate> {
        let folder = Folder::new("restate")?;
        let [ingress, admin, fabric] = [free_port()?, free_port()?, free_port()?];
        let service = Process::start(&mut Command::new(peer()?))?;
        let server = serve(folder.path(), ingress, admin, fabric)?;
        let restate = Restate { server, service, ingress, admin, fabric, folder };
        restate.wait()?;
        let deployment = format!("{{\"uri\":\"http://127.0.0.1:{}\"}}", restate.service.first);
        post(admin, "/deployments", "application/json", deployment.as_bytes())?;
        // What is deployed is known to the ingress a little later.
        let start = Instant::now();
        while let Err(error) = restate.add("warm") {
            if start.elapsed() > PATIENCE {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(restate)
    }

    fn wait(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        while get(self.admin, "/health").is_err() || get(self.ingress, "/restate/health").is_err() {
            if start.elapsed() > PATIENCE {
                bail!(
                    "Restate's server does not answer after {PATIENCE:?}; its log is in {}",
                    self.folder.path().display()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Lets so many chains run.
    pub fn go(&mut self, chains: usize) -> anyhow::Result<()> {
        self.service.ask("go")?;
        (0..chains).try_for_each(|chain| {
            post(self.ingress, &format!("/Chain/a{chain}/hop/send"), "application/octet-stream", &[0; BYTES])
        })
    }

    /// Lets them come to rest.
    pub fn hold(&mut self) -> anyhow::Result<()> {
        self.service.ask("hold")?;
        let start = Instant::now();
        let mut before = self.service.count()?;
        loop {
            std::thread::sleep(QUIET);
            let now = self.service.count()?;
            if now == before {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("chains of Restate run on after {PATIENCE:?}");
            }
            before = now;
        }
    }

    /// One call of the counter of that name, to its end.
    pub fn add(&self, key: &str) -> anyhow::Result<()> {
        post(self.ingress, &format!("/Chain/{key}/add"), "application/octet-stream", &[0; BYTES])
    }

    /// How many calls a second so many callers get out of one counter.
    pub fn hot_per_s(&self, callers: usize, time: Duration) -> anyhow::Result<f64> {
        let start = Instant::now();
        let counts: Vec<anyhow::Result<u32>> = std::thread::scope(|scope| {
            let call = || {
                let mut count = 0;
                while start.elapsed() < time {
                    self.add("hot")?;
                    count += 1;
                }
                Ok(count)
            };
            let callers: Vec<_> = (0..callers).map(|_| scope.spawn(call)).collect();
            callers.into_iter().filter_map(|caller| caller.join().ok()).collect()
        });
        let total = counts.into_iter().sum::<anyhow::Result<u32>>()?;
        Ok(f64::from(total) / start.elapsed().as_secs_f64())
    }

    /// Kills the server while chains run, starts it again, and says how long it took from the kill to the first new hop.
    pub fn recover(&mut self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        self.server.kill()?;
        self.server.wait()?;
        let before = self.service.count()?;
        self.server = serve(self.folder.path(), self.ingress, self.admin, self.fabric)?;
        while self.service.count()? <= before {
            if start.elapsed() > PATIENCE {
                bail!("no hop within {PATIENCE:?} after Restate's server was started again");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(start.elapsed())
    }

    /// Memory of the server, in MiB.
    pub fn rss_mib(&self) -> anyhow::Result<f64> {
        super::lives::rss_mib(self.server.id())
    }

    /// Bytes that it keeps on the disk.
    pub fn folder_bytes(&self) -> anyhow::Result<u64> {
        self.folder.bytes()
    }
}

impl Drop for Restate {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn serve(folder: &Path, ingress: u16, admin: u16, fabric: u16) -> anyhow::Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("server.log"))?;
    let program =
        find_restate::find().context("there is no Restate server; `cargo xtask bench` installs one")?;
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program)
        .args(["--no-logo", "--listen-mode", "tcp", "--node-name", "bench", "--base-dir"])
        .arg(folder.join("data"))
        .arg("--bind-address")
        .arg(format!("127.0.0.1:{fabric}"))
        .env("RESTATE_INGRESS__BIND_ADDRESS", format!("127.0.0.1:{ingress}"))
        .env("RESTATE_ADMIN__BIND_ADDRESS", format!("127.0.0.1:{admin}"))
        .env("RESTATE_DISABLE_TELEMETRY", "true")
        .stdin(Stdio::null())
        .stderr(log.try_clone()?)
        .stdout(log)
        .spawn()?;
    Ok(child)
}

/// The service, built when it is not there yet.
fn peer() -> anyhow::Result<PathBuf> {
    let bench = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--manifest-path"])
        .arg(bench.join("peers/restate/Cargo.toml"))
        .arg("--target-dir")
        .arg(bench.join("target/peers"))
        .status()?;
    if !built.success() {
        bail!("the service behind Restate's server can not be built");
    }
    Ok(bench.join("target/peers/release/peer-restate"))
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn post(port: u16, path: &str, kind: &str, body: &[u8]) -> anyhow::Result<()> {
    let head = format!("POST {path} HTTP/1.1\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n", body.len());
    exchange(port, &head, body)
}

fn get(port: u16, path: &str) -> anyhow::Result<()> {
    exchange(port, &format!("GET {path} HTTP/1.1\r\n"), &[])
}

/// One request on a connection of its own.
fn exchange(port: u16, head: &str, body: &[u8]) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = format!("{head}host: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n").into_bytes();
    request.extend_from_slice(body);
    stream.write_all(&request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    match text.split(' ').nth(1) {
        Some(status) if status.starts_with('2') => Ok(()),
        _ => bail!("Restate's server answers {}", text.lines().next().unwrap_or("nothing")),
    }
}
