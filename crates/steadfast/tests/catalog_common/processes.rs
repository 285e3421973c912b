//! Catalog members in processes of their own, so that they can be killed and stopped as a machine kills and stops them.
//!
//! The test program starts itself once more for each member. Members speak over Unix sockets; each member's own side of the wire cuts, loses,
//! delays (which reorders) and repeats messages as it is told. All processes end with the test, also when it panics or is killed.
//! Read next: `history`.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use steadfast::catalog::{
    BoxFuture, Catalog, CatalogError, Embedded, EmbeddedConfig, Etcd, Member, Role, Timings, Transport,
    TransportError, Txn, TxnReply, Versioned,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::{CLUSTER, PATIENCE, eventually};

const DIR: &str = "STEADFAST_TEST_MEMBER_DIR";
const NODE: &str = "STEADFAST_TEST_MEMBER";

/// What the wire does to messages.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Faults {
    /// Directed pairs that don't reach each other.
    pub cut: BTreeSet<(u64, u64)>,
    /// Of 1000 messages this many are lost, and as many arrive twice.
    pub loss: u32,
    /// Each message takes up to so long, drawn anew, so that messages overtake each other.
    pub delay_us_max: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Call {
    Engine(Bytes),
    Get(String),
    GetStale(String),
    Txn(Txn),
    Status,
    Initialize,
    AddAndPromote(u64),
    Campaign(u64),
    Faults(Faults),
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Engine(Bytes),
    Row(Result<Option<Versioned>, CatalogError>),
    Txn(Result<TxnReply, CatalogError>),
    /// Whether it leads with a majority.
    Status(bool),
    Done(Result<(), String>),
}

/// Draws numbers that look random, from a seed.
#[derive(Clone, Copy, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// Runs a member if this process was started to be one; never returns then.
pub fn run_as_member() {
    let (Ok(dir), Ok(node)) = (std::env::var(DIR), std::env::var(NODE)) else { return };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(PathBuf::from(dir), node.parse().unwrap()));
    std::process::exit(0);
}

async fn serve(dir: PathBuf, node: u64) {
    let faults = Arc::new(Mutex::new(Faults::default()));
    let wire =
        Wire { dir: dir.clone(), from: node, faults: Arc::clone(&faults), dice: Mutex::new(Dice(node)) };
    let config = EmbeddedConfig {
        dir: dir.join(node.to_string()),
        node,
        cluster_id: CLUSTER,
        transport: Arc::new(wire),
        timings: Timings { request_timeout: Duration::from_millis(700), ..Timings::default() },
    };
    let member = Embedded::open(config).await.unwrap();
    let path = socket(&dir, node);
    drop(std::fs::remove_file(&path));
    let listener = UnixListener::bind(path).unwrap();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (member, faults) = (member.clone(), Arc::clone(&faults));
        tokio::spawn(async move {
            while let Ok(call) = read_frame::<Call>(&mut stream).await {
                let reply = answer(&member, &faults, call).await;
                if write_frame(&mut stream, &reply).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn answer(member: &Embedded, faults: &Mutex<Faults>, call: Call) -> Reply {
    match call {
        Call::Engine(request) => Reply::Engine(member.handle(request).await),
        Call::Get(key) => Reply::Row(member.get(key).await),
        Call::GetStale(key) => Reply::Row(Ok(member.get_stale(&key).1)),
        Call::Txn(txn) => Reply::Txn(member.txn(txn).await),
        Call::Status => {
            let status = member.status();
            Reply::Status(status.role == Role::Leader && status.has_quorum)
        }
        Call::Initialize => {
            Reply::Done(member.initialize(Vec::new()).await.map_err(|error| error.to_string()))
        }
        Call::AddAndPromote(node) => Reply::Done(add(member, node).await.map_err(|error| error.to_string())),
        Call::Campaign(dead) => {
            member.campaign(dead).await;
            Reply::Done(Ok(()))
        }
        Call::Faults(new) => {
            *faults.lock().unwrap() = new;
            Reply::Done(Ok(()))
        }
    }
}

async fn add(member: &Embedded, node: u64) -> Result<(), steadfast::catalog::MembershipError> {
    member.add_learner(node, Member::new(Vec::new())).await?;
    member.promote(node).await
}

fn socket(dir: &Path, node: u64) -> PathBuf {
    dir.join(format!("{node}.sock"))
}

async fn write_frame<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let bytes = postcard::to_allocvec(message).unwrap();
    stream.write_u32(u32::try_from(bytes.len()).unwrap()).await?;
    stream.write_all(&bytes).await
}

async fn read_frame<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let length = stream.read_u32().await?;
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut bytes).await?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

async fn ask(path: PathBuf, call: Call) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(path).await?;
    write_frame(&mut stream, &call).await?;
    read_frame(&mut stream).await
}

struct Wire {
    dir: PathBuf,
    from: u64,
    faults: Arc<Mutex<Faults>>,
    dice: Mutex<Dice>,
}

impl Wire {
    fn draw(&self, end: u64) -> u64 {
        self.dice.lock().unwrap().below(end.max(1))
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.faults.lock().unwrap().cut.contains(&(from, to))
    }

    async fn delay(&self, delay_us_max: u64) {
        if delay_us_max > 0 {
            tokio::time::sleep(Duration::from_micros(self.draw(delay_us_max))).await;
        }
    }

    async fn exchange(&self, to: u64, request: Bytes) -> io::Result<Bytes> {
        let faults = self.faults.lock().unwrap().clone();
        if self.is_cut(self.from, to) {
            // Nobody says that a network is cut: the answer only never comes.
            return std::future::pending().await;
        }
        self.delay(faults.delay_us_max).await;
        let fate = self.draw(1000);
        let (lost, twice) = (fate < u64::from(faults.loss), fate >= 1000 - u64::from(faults.loss));
        if lost && fate.is_multiple_of(2) {
            return std::future::pending().await;
        }
        if twice {
            let (path, copy) = (socket(&self.dir, to), Call::Engine(request.clone()));
            let late = Duration::from_micros(self.draw(20_000));
            tokio::spawn(async move {
                tokio::time::sleep(late).await;
                drop(ask(path, copy).await);
            });
        }
        let reply = ask(socket(&self.dir, to), Call::Engine(request)).await?;
        if lost || self.is_cut(to, self.from) {
            return std::future::pending().await;
        }
        self.delay(faults.delay_us_max).await;
        let Reply::Engine(reply) = reply else { return Err(io::Error::other("another answer")) };
        Ok(reply)
    }
}

impl Transport for Wire {
    fn call(
        &self,
        to: u64,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move {
            let lost = |reason: String| TransportError::Lost { to, reason };
            match tokio::time::timeout(timeout, self.exchange(to, request)).await {
                Ok(Ok(reply)) => Ok(reply),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    Err(TransportError::Unreachable { to, reason: error.to_string() })
                }
                Ok(Err(error)) => Err(lost(error.to_string())),
                Err(_) => Err(lost("it took too long".into())),
            }
        })
    }
}

/// Members that are processes.
pub struct Processes {
    dir: tempfile::TempDir,
    children: Vec<Option<Child>>,
}

impl Processes {
    /// A catalog of `count` voters, numbered from 1. `entry` is the name of the test that calls [`run_as_member`].
    pub async fn of(count: u64, entry: &str) -> Self {
        let mut processes = Self { dir: tempfile::tempdir().unwrap(), children: Vec::new() };
        for node in 1..=count {
            processes.children.push(None);
            processes.start(node, entry);
            processes.running(node).await;
            if node == 1 {
                assert!(matches!(processes.ask(1, Call::Initialize).await, Some(Reply::Done(Ok(())))));
            } else {
                let added = processes.ask(1, Call::AddAndPromote(node)).await;
                assert!(matches!(added, Some(Reply::Done(Ok(())))), "{added:?}");
            }
        }
        processes
    }

    pub fn nodes(&self) -> Vec<u64> {
        (1..=self.children.len() as u64).collect()
    }

    pub fn start(&mut self, node: u64, entry: &str) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", entry, "--nocapture", "--ignored"]).stdout(Stdio::null());
        command.env(DIR, self.dir.path()).env(NODE, node.to_string());
        let at = usize::try_from(node - 1).unwrap();
        assert!(self.children[at].is_none());
        self.children[at] = Some(command.spawn().unwrap());
    }

    /// Waits until a member answers.
    pub async fn running(&self, node: u64) {
        eventually("a member's process", || async { self.ask(node, Call::Status).await }).await;
    }

    pub fn is_running(&self, node: u64) -> bool {
        self.children[usize::try_from(node - 1).unwrap()].is_some()
    }

    pub fn signal(&self, node: u64, signal: Signal) {
        if let Some(child) = &self.children[usize::try_from(node - 1).unwrap()] {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            kill_process(pid, signal).unwrap();
        }
    }

    pub fn kill(&mut self, node: u64) {
        if let Some(mut child) = self.children[usize::try_from(node - 1).unwrap()].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Where a member is asked, for tasks that outlive a borrow.
    pub fn door(&self, node: u64) -> Door {
        Door::Socket(socket(self.dir.path(), node))
    }

    pub async fn ask(&self, node: u64, call: Call) -> Option<Reply> {
        self.door(node).ask(call, PATIENCE / 6).await.ok()
    }

    pub async fn set_faults(&self, faults: &Faults) {
        for node in self.nodes() {
            if self.is_running(node) {
                self.ask(node, Call::Faults(faults.clone())).await;
            }
        }
    }

    /// The member that leads with a majority, among those that answer.
    pub async fn leader(&self) -> u64 {
        eventually("a leader", || async {
            for node in self.nodes() {
                if matches!(self.ask(node, Call::Status).await, Some(Reply::Status(true))) {
                    return Some(node);
                }
            }
            None
        })
        .await
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for node in self.nodes() {
            self.kill(node);
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Nobody was there to hear the question.
    NotSent,
    /// The question may have been heard, now or later.
    Unknown,
}

/// Where one member, or one client of etcd, is asked.
#[derive(Clone, Debug)]
pub enum Door {
    /// A member that is a process.
    Socket(PathBuf),
    /// A node's part in a catalog that etcd keeps.
    Etcd(Etcd),
}

impl Door {
    /// Asks, and waits for the answer no longer than this.
    pub async fn ask(&self, call: Call, patience: Duration) -> Result<Reply, Silence> {
        match self {
            Self::Socket(path) => Self::ask_at(path, call, patience).await,
            Self::Etcd(etcd) => {
                let asking = async {
                    match call {
                        Call::Get(key) => Reply::Row(etcd.get(key).await),
                        Call::GetStale(key) => Reply::Row(Ok(etcd.get_stale(&key).1)),
                        Call::Txn(txn) => Reply::Txn(etcd.txn(txn).await),
                        Call::Engine(_)
                        | Call::Status
                        | Call::Initialize
                        | Call::AddAndPromote(_)
                        | Call::Campaign(_)
                        | Call::Faults(_) => panic!("etcd is not asked such a thing"),
                    }
                };
                tokio::time::timeout(patience, asking).await.map_err(|_| Silence::Unknown)
            }
        }
    }

    async fn ask_at(path: &Path, call: Call, patience: Duration) -> Result<Reply, Silence> {
        let Ok(mut stream) = UnixStream::connect(path).await else { return Err(Silence::NotSent) };
        let exchange = async {
            write_frame(&mut stream, &call).await?;
            read_frame(&mut stream).await
        };
        match tokio::time::timeout(patience, exchange).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) | Err(_) => Err(Silence::Unknown),
        }
    }
}
