//! How fast a checkpoint reaches the memory of two other nodes, against one plain TCP stream on the same path.
//!
//! `main.ship.vs_tcp` counts the bytes that the two nodes have acknowledged, verified and sealed, each its own copy;
//! `main.ship_image.vs_tcp` counts each byte of the image once. TLS, encryption of the chunks, hashing and checksums
//! are on. Theirs reads the same file and writes it to a socket whose other end only
//! reads. Image and pools are on a tmpfs; the path is loopback.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use steadfast::identity::ClusterKey;
use steadfast::memory::{self, Pool, ShipRequest};
use steadfast::net::rpc::{Limits, Listener, Peers, Services};
use steadfast::net::tls::{Authority, Credentials, NodeKey};
use steadfast_proto::ids::{ClusterId, ContainerId, Epoch, NodeId};

use crate::report::{Report, median};

const BYTES: usize = 512 << 20;
const ROUNDS: u64 = 5;

/// Measures both, in turn.
pub fn measure(report: &mut Report) -> anyhow::Result<()> {
    println!("ship: an image of {} MiB to two nodes, {ROUNDS} rounds", BYTES >> 20);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let folder = Scratch::new()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let image = folder.0.join("image");
        write_image(&image, round)?;
        let own = runtime.block_on(ship(&folder.0, &image, round))?;
        let plain = plain_stream(&image.join("pages-1.img"))?;
        println!("ship: steadfast 2 x {own:.2} GB/s, one TCP stream {plain:.2} GB/s");
        // The first of each touches memory that nothing has touched before.
        if round > 0 {
            ours.push(own);
            theirs.push(plain);
        }
    }
    report.rate_ratio("main.ship.vs_tcp", 2.0 * median(&ours), median(&theirs), "GB/s");
    report.rate_ratio("main.ship_image.vs_tcp", median(&ours), median(&theirs), "GB/s");
    Ok(())
}

struct Node {
    id: NodeId,
    credentials: Credentials,
    listener: Listener,
    _pool: Pool,
}

async fn ship(folder: &Path, image: &Path, round: u64) -> anyhow::Result<f64> {
    let authority = Authority::create(ClusterId(1))?;
    let mut nodes = Vec::new();
    for number in 1..=3u128 {
        let id = NodeId(number);
        let key = NodeKey::generate()?;
        let certificate = authority.issue(id, &key.public())?;
        let credentials = Credentials::new(id, authority.certificate(), &certificate, &key.private_pkcs8())?;
        let pool = Pool::open(&folder.join(format!("pool-{number}")), 4 << 30)?;
        let services = Services::new(Limits::default());
        memory::register(&services, &pool);
        let listener = Listener::bind("127.0.0.1:0".parse()?, &credentials, services)?;
        nodes.push(Node { id, credentials, listener, _pool: pool });
    }
    let [source, holders @ ..] = nodes.as_slice() else { unreachable!("three nodes were made") };
    let peers = Peers::new(source.credentials.clone());
    for holder in holders {
        peers.set_addresses(holder.id, vec![holder.listener.address()]);
    }
    let request = ShipRequest {
        container: ContainerId(1),
        epoch: Epoch(1),
        number: round + 1,
        holders: holders.iter().map(|holder| holder.id).collect(),
        copies: 2,
        key: ClusterKey::generate(1),
        revision: 1,
        meta: Vec::new(),
    };
    let start = Instant::now();
    let shipped = memory::ship(image, request, &peers).await?;
    let seconds = start.elapsed().as_secs_f64();
    anyhow::ensure!(shipped.holders.len() == 2, "both nodes have it sealed");
    for number in 1..=3 {
        fs::remove_dir_all(folder.join(format!("pool-{number}")))?;
    }
    Ok(BYTES as f64 / seconds / 1e9)
}

fn plain_stream(file: &Path) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let reader = std::thread::spawn(move || -> std::io::Result<usize> {
        let (mut stream, _) = listener.accept()?;
        let mut buffer = vec![0; 1 << 20];
        let mut total = 0;
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                count => total += count,
            }
        }
        stream.write_all(&[1])?;
        Ok(total)
    });
    let mut source = File::open(file)?;
    let mut stream = TcpStream::connect(address)?;
    let mut buffer = vec![0; 1 << 20];
    let start = Instant::now();
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            count => stream.write_all(buffer.get(..count).unwrap_or_default())?,
        }
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    let seconds = start.elapsed().as_secs_f64();
    let total =
        reader.join().map_err(|_| anyhow::anyhow!("the reading end of the plain stream failed"))??;
    anyhow::ensure!(total == BYTES, "the plain stream carried the whole file");
    Ok(BYTES as f64 / seconds / 1e9)
}

fn write_image(folder: &Path, seed: u64) -> anyhow::Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    let mut file = File::create(folder.join("pages-1.img"))?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ (seed + 1);
    let mut block = vec![0u8; 1 << 20];
    for _ in 0..BYTES >> 20 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(())
}

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Scratch> {
        let path = PathBuf::from(format!("/dev/shm/steadfast-ship-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
