//! etcd: three members with their documented defaults on loopback addresses, and clients with a connection each.

#[path = "../../../xtask/src/setup/find_etcd.rs"]
mod find_etcd;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use steadfast::catalog::RawEtcd;

use super::VALUE_BYTES;
use super::events;
use super::load::{Answer, Client, Connecting, Contender, Doing};
use super::watch::{self, Watchers};

const CONNECT_MAX: Duration = Duration::from_secs(2);
const BOOT_MAX: Duration = Duration::from_secs(30);
/// A client's patience while a leader is replaced.
const PATIENCE: Duration = Duration::from_millis(60);

/// The version, as the program says it.
pub fn version() -> anyhow::Result<String> {
    let output = Command::new(program()?).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().unwrap_or_default().replace("etcd Version: ", ""))
}

fn program() -> anyhow::Result<PathBuf> {
    find_etcd::find().context("there is no etcd; `cargo xtask setup` unpacks one")
}

/// Running members.
#[derive(Debug)]
pub struct Theirs {
    folder: PathBuf,
    members: Vec<Option<Child>>,
}

impl Theirs {
    /// Starts them and waits until all answer.
    pub fn start(count: usize) -> anyhow::Result<Theirs> {
        let folder = super::member::folder("etcd")?;
        let mut theirs = Theirs { folder, members: (0..count).map(|_| None).collect() };
        for member in 0..count {
            theirs.start_member(member)?;
        }
        theirs.wait_all()?;
        Ok(theirs)
    }

    /// Starts one.
    pub fn start_member(&mut self, member: usize) -> anyhow::Result<()> {
        let (client, peer) = (url(member, 2379), url(member, 2380));
        let all: Vec<String> =
            (0..self.members.len()).map(|other| format!("m{other}={}", url(other, 2380))).collect();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program()?);
        command.arg("--data-dir").arg(self.folder.join(member.to_string()));
        command.args(["--name", &format!("m{member}"), "--initial-cluster", &all.join(",")]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--logger", "zap", "--log-level", "error"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let slot = self.members.get_mut(member).context("there is such a member")?;
        *slot = Some(command.spawn()?);
        Ok(())
    }

    /// Waits until each answers a linearizable read.
    pub fn wait_all(&self) -> anyhow::Result<()> {
        let members = self.members.len();
        // On a thread of its own: the caller may be inside a runtime already.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let asked = Instant::now();
                    for member in 0..members {
                        while serves(member).await.is_none() {
                            if asked.elapsed() > BOOT_MAX {
                                bail!("etcd's member {member} does not answer");
                            }
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                    Ok(())
                })
            });
            waiting.join().map_err(|_| anyhow::anyhow!("waiting for etcd failed"))?
        })
    }

    /// The processes, for who looks at what they do.
    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().flatten().map(Child::id).collect()
    }

    /// Ends a member at once.
    pub fn kill(&mut self, member: usize) -> anyhow::Result<()> {
        if let Some(mut child) = self.members.get_mut(member).and_then(Option::take) {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// The member that leads: the one after whose death the others can't write for a while is found by asking the gateway.
    pub fn leader(&self) -> anyhow::Result<usize> {
        for member in 0..self.members.len() {
            let Ok(answer) = post(member, "/v3/maintenance/status") else { continue };
            let field = |name: &str| {
                let (_, rest) = answer.split_once(&format!("\"{name}\":\""))?;
                rest.split('"').next().map(str::to_owned)
            };
            if field("leader").is_some() && field("leader") == field("member_id") {
                return Ok(member);
            }
        }
        bail!("no member of etcd says that it leads")
    }

    /// Milliseconds from the kill of the leader to the next committed put on another member.
    pub fn failover_ms(&mut self) -> anyhow::Result<f64> {
        let leader = self.leader()?;
        let others: Vec<usize> = (0..self.members.len()).filter(|member| *member != leader).collect();
        self.kill(leader)?;
        let killed = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let value = Bytes::from(vec![7; VALUE_BYTES]);
        let gap = runtime.block_on(async {
            let mut clients = Vec::new();
            for member in &others {
                clients.push(
                    RawEtcd::connect(&url(*member, 2379), CONNECT_MAX).await.map_err(anyhow::Error::msg)?,
                );
            }
            loop {
                for client in &clients {
                    if let Ok(Ok(())) = tokio::time::timeout(PATIENCE, client.put("failover", &value)).await {
                        return anyhow::Ok(killed.elapsed().as_secs_f64() * 1e3);
                    }
                    if killed.elapsed() > BOOT_MAX {
                        bail!("etcd elected nobody");
                    }
                }
            }
        })?;
        self.start_member(leader)?;
        self.wait_all()?;
        Ok(gap)
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        for member in 0..self.members.len() {
            let _ = self.kill(member);
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn url(member: usize, port: u16) -> String {
    format!("http://127.79.0.{}:{port}", member + 1)
}

async fn serves(member: usize) -> Option<()> {
    let client = RawEtcd::connect(&url(member, 2379), CONNECT_MAX).await.ok()?;
    tokio::time::timeout(CONNECT_MAX, client.get("nothing")).await.ok()?.ok().map(drop)
}

fn post(member: usize, path: &str) -> anyhow::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(format!("127.79.0.{}:2379", member + 1))?;
    stream.set_read_timeout(Some(CONNECT_MAX))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: etcd\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

struct EtcdClient {
    connection: RawEtcd,
    value: Bytes,
}

impl Client for EtcdClient {
    fn ask(&self, doing: Doing, key: u64) -> Answer<'_> {
        Box::pin(async move {
            let key = format!("bench/{key}");
            let done = match doing {
                Doing::Put => self.connection.put(&key, &self.value).await,
                Doing::Read => self.connection.get(&key).await.map(drop),
            };
            done.map_err(anyhow::Error::msg)
        })
    }

    fn put<'a>(&'a self, key: &'a str, value: Bytes) -> Answer<'a> {
        Box::pin(async move { self.connection.put(key, &value).await.map_err(anyhow::Error::msg) })
    }
}

impl Contender for Theirs {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn client(&self, member: usize) -> Connecting<'_> {
        Box::pin(async move {
            let connection =
                RawEtcd::connect(&url(member, 2379), CONNECT_MAX).await.map_err(anyhow::Error::msg)?;
            let value = Bytes::from(vec![7; VALUE_BYTES]);
            Ok(Box::new(EtcdClient { connection, value }) as Box<dyn Client>)
        })
    }

    fn watchers(&self, member: usize, count: usize) -> Watchers<'_> {
        Box::pin(
            async move { events::watch(&format!("127.79.0.{}:2379", member + 1), watch::KEY, count).await },
        )
    }
}
