//! Our engine: three members, each a process of this program, that speak to each other and to the load over TLS as agents do.
//!
//! A member is the library's engine on a durable store and nothing else; what the load asks comes over the same kind of connection as the
//! engine's own messages.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steadfast::catalog::{
    BoxFuture, Catalog, Embedded, EmbeddedConfig, Member, RaftNodeId, Timings, Transport, TransportError,
    Txn, WatchItem,
};
use steadfast::net::rpc::{Class, Limits, Listener, Peers, Services};
use steadfast::net::tls::{Authority, Credentials, NodeKey};
use steadfast_proto::ids::{ClusterId, NodeId};

use super::VALUE_BYTES;
use super::load::{Answer, Client, Connecting, Contender, Doing};
use super::watch::{self, Given, Watcher, Watchers};

const CLUSTER: ClusterId = ClusterId(0xca7a);
const MEMBERS: u64 = 3;
/// The node that asks.
const LOADER: NodeId = NodeId(100);
const ENGINE: u8 = 16;
const DOOR: u8 = 40;
const ANSWER_MAX: Duration = Duration::from_secs(10);
const BOOT_MAX: Duration = Duration::from_secs(30);
/// Those of the agent.
const TIMINGS: Timings = Timings {
    heartbeat: Duration::from_millis(300),
    election_min: Duration::from_millis(1000),
    election_max: Duration::from_millis(1600),
    request_timeout: Duration::from_secs(5),
};

/// What the load asks a member.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Put(String, Bytes),
    Get(String),
    /// What revision the member's rows are of.
    Revision,
    /// The next change of a row after a revision; answered when there is one.
    Next(String, u64),
    Initialize,
    Add(u64),
}

/// A folder of this run on the machine's disk.
pub fn folder(name: &str) -> anyhow::Result<PathBuf> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("steadfast-bench-{}-{run}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn address(member: u64) -> SocketAddr {
    SocketAddr::from(([127, 79, 1, u8::try_from(member).unwrap_or(u8::MAX)], 7400))
}

fn credentials(folder: &Path, node: NodeId) -> anyhow::Result<Credentials> {
    let certificate = std::fs::read(folder.join("ca"))?;
    let authority = Authority::load(CLUSTER, &certificate, &std::fs::read(folder.join("ca-key"))?)?;
    let key = NodeKey::generate()?;
    let issued = authority.issue(node, &key.public())?;
    Ok(Credentials::new(node, authority.certificate(), &issued, &key.private_pkcs8())?)
}

fn peers(credentials: Credentials) -> Peers {
    let peers = Peers::new(credentials);
    for member in 1..=MEMBERS {
        if NodeId(u128::from(member)) != peers.node() {
            peers.set_addresses(NodeId(u128::from(member)), vec![address(member)]);
        }
    }
    peers
}

struct OverTls(Peers);

impl Transport for OverTls {
    fn call(
        &self,
        to: RaftNodeId,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move {
            let answer = self.0.call(NodeId(u128::from(to)), Class::Raft, ENGINE, request, timeout).await;
            answer.map_err(|error| {
                let reason = error.to_string();
                if error.is_certainly_unsent() {
                    TransportError::Unreachable { to, reason }
                } else {
                    TransportError::Lost { to, reason }
                }
            })
        })
    }
}

/// Runs as a member until it is killed: `catalog-member FOLDER NUMBER`.
pub fn serve(folder: &Path, member: u64) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let credentials = credentials(folder, NodeId(u128::from(member)))?;
        let config = EmbeddedConfig {
            dir: folder.join(member.to_string()),
            node: member,
            cluster_id: CLUSTER.0,
            transport: Arc::new(OverTls(peers(credentials.clone()))),
            timings: TIMINGS,
        };
        let engine = Embedded::open(config).await?;
        let services = Services::new(Limits { calls_max: 512, ..Limits::default() });
        let inner = engine.clone();
        services.register(ENGINE, move |_, request| {
            let engine = inner.clone();
            Box::pin(async move { Ok(engine.handle(request).await) })
        });
        services.register(DOOR, move |_, request| {
            let engine = engine.clone();
            Box::pin(async move { answer(&engine, &request).await.map_err(|error| error.to_string()) })
        });
        let _listener = Listener::bind(address(member), &credentials, services)?;
        std::future::pending::<()>().await;
        Ok(())
    })
}

async fn answer(engine: &Embedded, request: &[u8]) -> anyhow::Result<Bytes> {
    match postcard::from_bytes(request)? {
        Ask::Put(key, value) => drop(engine.txn(Txn::put(key, value)).await?),
        Ask::Get(key) => return Ok(engine.get(key).await?.map(|row| row.value).unwrap_or_default()),
        Ask::Revision => return Ok(postcard::to_allocvec(&engine.get_stale("").0)?.into()),
        Ask::Next(key, from) => return next_change(engine, key, from).await,
        Ask::Initialize => engine.initialize(Vec::new()).await?,
        Ask::Add(member) => {
            engine.add_learner(member, Member::new(Vec::new())).await?;
            engine.promote(member).await?;
        }
    }
    Ok(Bytes::new())
}

/// What the row of `key` holds after the next change after revision `from`.
async fn next_change(engine: &Embedded, key: String, from: u64) -> anyhow::Result<Bytes> {
    let mut changes = engine.watch(key.clone(), from);
    loop {
        let item = changes.next().await?;
        let revision = item.revision();
        let held = match item {
            WatchItem::Changed(watched) => watched.changes.into_iter().find(|(changed, _)| *changed == key),
            WatchItem::Resync { rows, .. } => {
                rows.into_iter().find(|(found, _)| *found == key).map(|(found, row)| (found, Some(row)))
            }
        };
        if let Some((_, Some(row))) = held {
            return Ok(postcard::to_allocvec(&(revision, row.value))?.into());
        }
    }
}

/// Running members.
#[derive(Debug)]
pub struct Ours {
    folder: PathBuf,
    members: BTreeMap<u64, Child>,
    peers: Peers,
}

impl Ours {
    /// Starts them, all voters.
    pub async fn start() -> anyhow::Result<Ours> {
        let folder = folder("ours")?;
        let authority = Authority::create(CLUSTER)?;
        std::fs::write(folder.join("ca"), authority.certificate())?;
        std::fs::write(folder.join("ca-key"), authority.key_pkcs8())?;
        let peers = peers(credentials(&folder, LOADER)?);
        let mut ours = Ours { folder, members: BTreeMap::new(), peers };
        for member in 1..=MEMBERS {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL"]).arg(std::env::current_exe()?);
            command.arg("catalog-member").arg(&ours.folder).arg(member.to_string());
            command.stdin(Stdio::null());
            ours.members.insert(member, command.spawn()?);
            let first = if member == 1 { Ask::Initialize } else { Ask::Add(member) };
            let asked = Instant::now();
            while let Err(error) = ask(&ours.peers, 1, &first).await {
                if asked.elapsed() > BOOT_MAX {
                    bail!("our member {member} does not take part: {error}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(ours)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        for child in self.members.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn ask(peers: &Peers, member: u64, question: &Ask) -> anyhow::Result<Bytes> {
    let question = postcard::to_allocvec(question)?;
    let node = NodeId(u128::from(member));
    peers.call(node, Class::Control, DOOR, question, ANSWER_MAX).await.context("our member")
}

struct OurClient {
    peers: Peers,
    member: u64,
    value: Bytes,
}

impl Client for OurClient {
    fn ask(&self, doing: Doing, key: u64) -> Answer<'_> {
        Box::pin(async move {
            let key = format!("bench/{key}");
            let question = match doing {
                Doing::Put => Ask::Put(key, self.value.clone()),
                Doing::Read => Ask::Get(key),
            };
            ask(&self.peers, self.member, &question).await.map(drop)
        })
    }

    fn put<'a>(&'a self, key: &'a str, value: Bytes) -> Answer<'a> {
        Box::pin(
            async move { ask(&self.peers, self.member, &Ask::Put(key.to_owned(), value)).await.map(drop) },
        )
    }
}

/// Asks its member for the change after the last, which answers when there is one.
struct OurWatcher {
    peers: Peers,
    member: u64,
    revision: u64,
}

impl Watcher for OurWatcher {
    fn next(&mut self) -> Given<'_> {
        Box::pin(async move {
            let question = Ask::Next(watch::KEY.to_owned(), self.revision);
            let answer = ask(&self.peers, self.member, &question).await?;
            let (revision, value): (u64, Bytes) = postcard::from_bytes(&answer)?;
            self.revision = revision;
            Ok(value)
        })
    }
}

impl Contender for Ours {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn client(&self, member: usize) -> Connecting<'_> {
        Box::pin(async move {
            let value = Bytes::from(vec![7; VALUE_BYTES]);
            let client = OurClient { peers: self.peers.clone(), member: member as u64 + 1, value };
            Ok(Box::new(client) as Box<dyn Client>)
        })
    }

    fn watchers(&self, member: usize, count: usize) -> Watchers<'_> {
        Box::pin(async move {
            let member = member as u64 + 1;
            let revision = postcard::from_bytes(&ask(&self.peers, member, &Ask::Revision).await?)?;
            let watcher = || OurWatcher { peers: self.peers.clone(), member, revision };
            Ok((0..count).map(|_| Box::new(watcher()) as Box<dyn Watcher>).collect())
        })
    }
}
