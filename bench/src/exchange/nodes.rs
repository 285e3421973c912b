//! Two nodes in this process, each a keeper with a thread, a log and an index of its own, joined by one TCP connection.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use steadfast::episodes::{Carrier, Deployment, Embedded, Keeper, KeeperError, Known, Parts, Runner};
use steadfast_cli::episodes::programs::{Limits, Prepared, Source};
use steadfast_proto::episode::{Effect, Instance, Mode, Program, Request, Settings, home_of};
use steadfast_proto::exchange::{Blob, Frame, Message, Name, Text};
use steadfast_proto::ids::{Incarnation, NodeId};
use tokio::sync::Semaphore;

use super::chain::{Chain, Role};

const PATIENCE: Duration = Duration::from_secs(60);
/// How many episodes of a node run elsewhere at the same time, as in an agent.
const RUNS_MAX: usize = 64;
const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];

/// A folder on the disk of the target folder, removed with this.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one. Not in memory: what is measured is a disk.
    pub fn new(name: &str) -> anyhow::Result<Folder> {
        let base = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/exchange");
        let path = base.join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path)?;
        Ok(Folder(path))
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Bytes that all files in it take from the disk; the store reserves more than it writes.
    pub fn bytes(&self) -> anyhow::Result<u64> {
        fn size(path: &Path) -> std::io::Result<u64> {
            let mut total = 0;
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                total += if metadata.is_dir() { size(&entry.path())? } else { metadata.blocks() * 512 };
            }
            Ok(total)
        }
        Ok(size(&self.0)?)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it any more.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where the program of the chains runs.
#[derive(Clone, Debug)]
pub enum Served {
    /// In this process.
    Here,
    /// In another process, behind this address.
    Http(String),
}

/// Both nodes.
pub struct Pair {
    keepers: [Keeper; 2],
    runtime: tokio::runtime::Runtime,
    /// What the program of this process knows.
    pub chain: Arc<Chain>,
}

struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Carrier for Wire {
    fn send(&mut self, _: NodeId, frame: Frame) {
        let bytes = frame.encode();
        let length = u32::try_from(bytes.len()).expect("a frame is bounded");
        self.buffer.clear();
        self.buffer.extend_from_slice(&length.to_le_bytes());
        self.buffer.extend_from_slice(&bytes);
        // The other end reads until it ends; after that nobody misses it.
        let _ = self.stream.write_all(&self.buffer);
    }

    fn keep(&mut self, _: &Name, _: Vec<Message>) {}

    fn carry_out(&mut self, _: Effect) {}
}

impl Pair {
    /// Goes on with what is in the folder.
    pub fn start(folder: &Path, mode: Mode, served: &Served) -> anyhow::Result<Pair> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        let (far, _) = listener.accept()?;
        let chain = Arc::new(Chain::new());
        let runner = runner(served, &chain, &runtime)?;
        let life = Incarnation(std::time::UNIX_EPOCH.elapsed()?.as_secs());
        let mut opening = Vec::new();
        for ((stream, name), me) in [near, far].into_iter().zip(["one", "two"]).zip(NODES) {
            stream.set_nodelay(true)?;
            let reader = stream.try_clone()?;
            let carrier = Box::new(Wire { stream, buffer: Vec::new() });
            let parts = Parts { me, settings: Settings::default(), carrier, life };
            let known =
                Known { homes: NODES.to_vec(), programs: programs(mode, &runner), ..Known::default() };
            let folder = folder.join(name);
            // Each node starts by itself; none waits for the other.
            let open = std::thread::spawn(move || -> Result<Keeper, KeeperError> {
                let store = Embedded::open(&folder, 7)?;
                Keeper::start(store, parts, known)
            });
            opening.push((open, reader, NodeId(3 - me.0)));
        }
        let mut keepers = Vec::new();
        for (open, reader, from) in opening {
            let keeper = open.join().ok().context("a keeper panicked at its start")??;
            let receiver = keeper.clone();
            std::thread::spawn(move || read_frames(reader, from, &receiver));
            keepers.push(keeper);
        }
        let keepers: [Keeper; 2] = keepers.try_into().ok().context("there are two")?;
        Ok(Pair { keepers, runtime, chain })
    }

    /// Begins so many chains between the nodes.
    pub fn begin_chains(&self, count: usize) -> anyhow::Result<()> {
        for [one, two] in pairs("chain", "chain", count) {
            self.begin(1, &two, &Role::start(Role::SECOND, &one))?;
            self.begin(0, &one, &Role::start(Role::FIRST, &two))?;
        }
        Ok(())
    }

    /// Begins one instance on the second node, and so many callers of it on the first.
    pub fn begin_callers(&self, count: usize) -> anyhow::Result<()> {
        let names = pairs("caller", "hot", count);
        let [_, hot] = names.first().context("there is one caller at least")?;
        self.begin(1, hot, &Role::start(Role::SECOND, hot))?;
        names.iter().try_for_each(|[caller, _]| self.begin(0, caller, &Role::start(Role::FIRST, hot)))
    }

    fn begin(&self, place: usize, name: &Name, payload: &[u8]) -> anyhow::Result<()> {
        let start = Request::Start { name: name.clone(), payload: payload.into(), key: None, wait: false };
        self.runtime.block_on(self.keepers[place].ask(start))??;
        Ok(())
    }

    /// Commits of both logs, by our own count.
    pub fn commits(&self) -> u64 {
        self.keepers.iter().map(Keeper::commits).sum()
    }

    /// Lets the chains come to rest.
    pub fn hold(&self) -> anyhow::Result<()> {
        self.chain.hold();
        let start = Instant::now();
        while self.bytes_of_messages()? > 0 {
            if start.elapsed() > PATIENCE {
                bail!("{} bytes of messages are left after {PATIENCE:?}", self.bytes_of_messages()?);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Lets so many chains go on.
    pub fn go_on(&self, count: usize) -> anyhow::Result<()> {
        self.chain.go_on();
        for [one, _] in pairs("chain", "chain", count) {
            let payload = Blob::from(vec![0; super::BYTES]);
            let again = Request::Send {
                name: one,
                kind: "hop".into(),
                correlation: None,
                payload,
                key: None,
                wait: false,
            };
            self.runtime.block_on(self.keepers[0].ask(again))??;
        }
        Ok(())
    }

    /// What is kept for messages that are not finished, in bytes.
    pub fn bytes_of_messages(&self) -> anyhow::Result<usize> {
        let mut total = 0;
        for keeper in &self.keepers {
            let look =
                keeper.look(|episodes| episodes.instances().map(Instance::bytes_of_messages).sum::<usize>());
            total += self.runtime.block_on(look)?;
        }
        Ok(total)
    }

    /// Ends both.
    pub fn stop(self) -> anyhow::Result<()> {
        self.chain.hold();
        for keeper in &self.keepers {
            keeper.stop()?;
        }
        self.runtime.shutdown_background();
        Ok(())
    }
}

/// All roles are one program's.
fn programs(mode: Mode, runner: &Runner) -> BTreeMap<Text, Deployment> {
    let deployment = |mode| Deployment {
        program: Program { mode, ..Program::default() },
        runners: BTreeMap::from([(1, runner.clone())]),
    };
    ["chain", "caller", "hot"].into_iter().map(|name| (name.into(), deployment(mode))).collect()
}

fn runner(served: &Served, chain: &Arc<Chain>, runtime: &tokio::runtime::Runtime) -> anyhow::Result<Runner> {
    let url = match served {
        Served::Here => {
            let chain = Arc::clone(chain);
            return Ok(Runner::Here(Arc::new(move |task| Ok(chain.run(task)))));
        }
        Served::Http(url) => url.clone(),
    };
    // As an agent runs them.
    let prepared = Prepared::new(Source::Http { url }, Limits::default())?;
    let (runtime, places) = (runtime.handle().clone(), Arc::new(Semaphore::new(RUNS_MAX)));
    Ok(Runner::Elsewhere(Arc::new(move |task, done| {
        let (prepared, places) = (prepared.clone(), Arc::clone(&places));
        runtime.spawn(async move {
            let Ok(_place) = places.acquire().await else { return };
            done.tell(prepared.run(&task).await.result);
        });
    })))
}

/// Names on node 1 and node 2, in pairs.
fn pairs(first: &str, second: &str, count: usize) -> Vec<[Name; 2]> {
    let on = |program: &str, place: usize| -> Vec<Name> {
        let names = (0..).filter_map(|key| Name::parse(&format!("{program}/{key}")).ok());
        names.filter(|name| home_of(name, NODES.len()) == place).take(count).collect()
    };
    on(first, 0).into_iter().zip(on(second, 1)).map(|(one, two)| [one, two]).collect()
}

fn read_frames(mut stream: TcpStream, from: NodeId, keeper: &Keeper) {
    let mut length = [0; 4];
    while stream.read_exact(&mut length).is_ok() {
        let mut bytes = vec![0; usize::try_from(u32::from_le_bytes(length)).unwrap_or_default()];
        if stream.read_exact(&mut bytes).is_err() {
            return;
        }
        match Frame::decode(&bytes) {
            Ok(frame) => keeper.receive(from, frame),
            Err(error) => eprintln!("{error}"),
        }
    }
}
