//! Two nodes in this process, each a keeper with a thread, a log and an index of its own, joined by one TCP connection.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use steadfast::episodes::{Carrier, Deployment, Embedded, Keeper, Known, Parts, Runner};
use steadfast_proto::episode::{
    Effect, Failure, Input, Instance, Mode, Next, Outcome, Outgoing, Program, Request, Settings, Task, Wait, home_of,
};
use steadfast_proto::exchange::{Blob, Frame, Message, Name};
use steadfast_proto::ids::{Incarnation, NodeId};

/// Bytes of each state and of each message.
const BYTES: usize = 512;
const PATIENCE: Duration = Duration::from_secs(60);

/// What was counted since the start.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Messages that have taken effect.
    pub hops: u64,
    /// Commits of both logs.
    pub syncs: u64,
}

/// A folder on the disk of the target folder, removed with this.
pub struct Folder(PathBuf);

impl Folder {
    /// Where.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it any more.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A new folder. Not in memory: what is measured is a disk.
pub fn folder(name: &str) -> anyhow::Result<Folder> {
    let base = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/exchange");
    let path = base.join(format!("{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path)?;
    Ok(Folder(path))
}

/// Both nodes, with chains between them.
pub struct Pair {
    keepers: [Keeper; 2],
    folders: [Folder; 2],
    hops: Arc<AtomicU64>,
    held: Arc<AtomicBool>,
    runtime: tokio::runtime::Runtime,
    chains: Vec<[Name; 2]>,
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
    /// Starts them and `chains` chains.
    pub fn start(chains: usize, mode: Mode) -> anyhow::Result<Pair> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        let (far, _) = listener.accept()?;
        let folders = [folder("one")?, folder("two")?];
        let nodes = [NodeId(1), NodeId(2)];
        let mut keepers = Vec::new();
        for ((stream, folder), me) in [near, far].into_iter().zip(&folders).zip(nodes) {
            stream.set_nodelay(true)?;
            let reader = stream.try_clone()?;
            let carrier = Box::new(Wire { stream, buffer: Vec::new() });
            let parts = Parts { me, settings: Settings::default(), carrier, life: Incarnation(1) };
            let keeper = Keeper::start(Embedded::open(folder.path(), 7)?, parts, Known::default())?;
            let (receiver, from) = (keeper.clone(), NodeId(3 - me.0));
            std::thread::spawn(move || read_frames(reader, from, &receiver));
            keepers.push(keeper);
        }
        let keepers: [Keeper; 2] = keepers.try_into().ok().context("there are two")?;
        let (hops, held) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        for keeper in &keepers {
            keeper.input(Input::Homes(nodes.to_vec()));
            let (hops, held) = (Arc::clone(&hops), Arc::clone(&held));
            let run = move |task: &Task| Ok::<Outcome, Failure>(hop(task, &hops, &held));
            let program = Program { mode, ..Program::default() };
            let runners = BTreeMap::from([(1, Runner::Here(Arc::new(run)))]);
            keeper.deploy(BTreeMap::from([("chain".into(), Deployment { program, runners })]));
        }
        let chains = pairs(chains);
        let pair = Pair { keepers, folders, hops, held, runtime, chains };
        for [one, two] in &pair.chains {
            for (place, name, peer) in [(1, two, one), (0, one, two)] {
                let mut payload = vec![u8::try_from(place).unwrap_or_default()];
                payload.extend_from_slice(peer.as_str().as_bytes());
                let payload = payload.into();
                let start = Request::Start { name: name.clone(), payload, key: None, wait: false };
                pair.runtime.block_on(pair.keepers[place].ask(start))??;
            }
        }
        Ok(pair)
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        let syncs = self.keepers.iter().map(Keeper::commits).sum();
        Counts { hops: self.hops.load(Ordering::Relaxed), syncs }
    }

    /// Lets the chains come to rest.
    pub fn hold(&self) -> anyhow::Result<()> {
        self.held.store(true, Ordering::Relaxed);
        let start = Instant::now();
        while self.bytes_of_messages()? > 0 {
            if start.elapsed() > PATIENCE {
                bail!("{} bytes of messages are left after {PATIENCE:?}", self.bytes_of_messages()?);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Lets them go on.
    pub fn go_on(&self) {
        self.held.store(false, Ordering::Relaxed);
        for [one, _] in &self.chains {
            let (kind, payload) = ("hop".into(), Blob::from(vec![0; BYTES]));
            let again =
                Request::Send { name: one.clone(), kind, correlation: None, payload, key: None, wait: false };
            let _ = self.runtime.block_on(self.keepers[0].ask(again));
        }
    }

    /// What is kept for messages that are not finished, in bytes.
    pub fn bytes_of_messages(&self) -> anyhow::Result<usize> {
        let mut total = 0;
        for keeper in &self.keepers {
            let look = keeper.look(|episodes| episodes.instances().map(Instance::bytes_of_messages).sum::<usize>());
            total += self.runtime.block_on(look)?;
        }
        Ok(total)
    }

    /// How large both folders are.
    pub fn folder_bytes(&self) -> anyhow::Result<u64> {
        fn size(path: &Path) -> std::io::Result<u64> {
            let mut total = 0;
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                total += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
            }
            Ok(total)
        }
        Ok(self.folders.iter().map(|folder| size(folder.path())).sum::<std::io::Result<u64>>()?)
    }

    /// Ends both.
    pub fn stop(self) -> anyhow::Result<()> {
        self.held.store(true, Ordering::Relaxed);
        for keeper in &self.keepers {
            keeper.stop()?;
        }
        Ok(())
    }
}

/// Names on node 1 and node 2, in pairs.
fn pairs(count: usize) -> Vec<[Name; 2]> {
    let names = (0..).filter_map(|key| Name::parse(&format!("chain/{key}")).ok());
    let (mut ones, mut twos) = (Vec::new(), Vec::new());
    for name in names {
        let side = if home_of(&name, 2) == 0 { &mut ones } else { &mut twos };
        if side.len() < count {
            side.push(name);
        } else if ones.len() == count && twos.len() == count {
            break;
        }
    }
    ones.into_iter().zip(twos).map(|(one, two)| [one, two]).collect()
}

/// The first of a pair is told 0 and the peer's name, and begins; the second is told 1.
fn hop(task: &Task, hops: &AtomicU64, held: &AtomicBool) -> Outcome {
    let next = Next::Wait(Wait::for_kind("hop"));
    let is_start = task.episode == 1;
    let peer = if is_start { task.event.payload.get(1..).unwrap_or_default() } else { peer_of(&task.state) };
    let mut state = vec![0; BYTES.max(peer.len() + 1)];
    state[0] = u8::try_from(peer.len()).unwrap_or_default();
    state[1..=peer.len()].copy_from_slice(peer);
    let says = if is_start { task.event.payload.first() == Some(&0) } else { !held.load(Ordering::Relaxed) };
    if !is_start {
        hops.fetch_add(1, Ordering::Relaxed);
    }
    let to = std::str::from_utf8(peer).ok().and_then(|peer| Name::parse(peer).ok());
    let message = |to| Outgoing {
        to,
        kind: "hop".into(),
        correlation: None,
        payload: vec![0; BYTES].into(),
        begins: false,
        within: None,
    };
    let messages = to.filter(|_| says).map(message).into_iter().collect();
    Outcome { state: state.into(), messages, answer: None, next }
}

fn peer_of(state: &[u8]) -> &[u8] {
    let length = state.first().copied().map_or(0, usize::from);
    state.get(1..=length).unwrap_or_default()
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
