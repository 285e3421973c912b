//! How fast checkpoints are shipped: image folders to two other in-process nodes over loopback, each run
//! beside one plain TCP stream of the same bytes. `cargo run --release --example ship_rate [MIB] [RUNS]`.
//! Prints MB/s of image; the last line is the ratio of the medians. Read next: `src/memory/ship.rs`.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use steadfast::identity::ClusterKey;
use steadfast::memory::{self, FetchRequest, Live, Pool, ShipRequest, Shipped};
use steadfast::net::rpc::{Limits, Listener, Peers, Services};
use steadfast::net::tls::{Authority, Credentials, NodeKey};
use steadfast_proto::ids::{ClusterId, ContainerId, Epoch, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const CONTAINER: ContainerId = ContainerId(1);

fn credentials(authority: &Authority, node: NodeId) -> Result<Credentials> {
    let key = NodeKey::generate()?;
    let certificate = authority.issue(node, &key.public())?;
    Ok(Credentials::new(node, authority.certificate(), &certificate, &key.private_pkcs8())?)
}

async fn plain_tcp(bytes: &[u8]) -> Result<Duration> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let sink = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let mut buffer = vec![0; 1 << 20];
        while stream.read(&mut buffer).await? > 0 {}
        stream.write_all(b"!").await
    });
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let start = Instant::now();
    for part in bytes.chunks(1 << 20) {
        stream.write_all(part).await?;
    }
    stream.shutdown().await?;
    stream.read_u8().await?;
    let taken = start.elapsed();
    sink.await??;
    Ok(taken)
}

/// Processor time of this process so far, all threads: it is steadier than the wall clock on a busy machine.
fn processor_time() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let fields = text.rsplit_once(") ").ok_or("no fields")?.1;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<std::result::Result<_, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// Fills the image with bytes that no earlier image had.
fn fill(image: &Path, bytes: &mut [u8], seed: u64) -> Result<()> {
    let mut output = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    output.fill(bytes);
    std::fs::write(image.join("pages-1.img"), &*bytes)?;
    Ok(())
}

type Holder = (NodeId, Pool, Listener);

fn start_holders(folder: &Path, authority: &Authority, budget: u64) -> Result<Vec<Holder>> {
    let mut holders = Vec::new();
    for node in [NodeId(2), NodeId(3)] {
        let pool = Pool::open(&folder.join(format!("pool-{}", node.0)), budget)?;
        let services = Services::new(Limits::default());
        memory::register(&services, &pool);
        let listener = Listener::bind("127.0.0.1:0".parse()?, &credentials(authority, node)?, services)?;
        holders.push((node, pool, listener));
    }
    Ok(holders)
}

async fn fetch(folder: &Path, shipped: Shipped, key: &ClusterKey, peers: &Peers) -> Result<Duration> {
    let start = Instant::now();
    let request = FetchRequest {
        manifest: shipped.manifest,
        holders: shipped.holders,
        keys: vec![key.clone()],
        into: folder.join("restored"),
    };
    memory::fetch(request, None, peers).await?;
    Ok(start.elapsed())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let mib = arguments.next().unwrap_or(Ok(512))?;
    let runs = arguments.next().unwrap_or(Ok(5))?;
    let folder = tempfile::Builder::new().prefix("steadfast-rate-").tempdir_in("/dev/shm")?;
    let authority = Authority::create(ClusterId(1))?;
    let peers = Peers::new(credentials(&authority, NodeId(1))?);
    let holders = start_holders(folder.path(), &authority, (mib as u64 * 3) << 20)?;
    for (node, _, listener) in &holders {
        peers.set_addresses(*node, vec![listener.address()]);
    }
    let image = folder.path().join("image");
    std::fs::create_dir(&image)?;
    let key = ClusterKey::generate(1);
    let mut bytes = vec![0; mib << 20];
    let rate = |taken: Duration| (mib << 20) as f64 / taken.as_secs_f64() / 1e6;
    let mut rows = Vec::new();
    for number in 1..=runs as u64 {
        fill(&image, &mut bytes, number)?;
        let begun = processor_time()?;
        let tcp = plain_tcp(&bytes).await?;
        let tcp_cost = processor_time()? - begun;
        let request = ShipRequest {
            container: CONTAINER,
            epoch: Epoch(1),
            number,
            holders: holders.iter().map(|(node, _, _)| *node).collect(),
            copies: 2,
            key: key.clone(),
            revision: 1,
            meta: Vec::new(),
        };
        let begun = processor_time()?;
        let start = Instant::now();
        let shipped = memory::ship(&image, request, &peers).await?;
        let ship = start.elapsed();
        let ship_cost = processor_time()? - begun;
        assert_eq!(shipped.holders.len(), 2);
        let row = Live { container: CONTAINER, epoch: Epoch(1), number, manifests: vec![shipped.manifest] };
        for (_, pool, _) in &holders {
            pool.retain(1, std::slice::from_ref(&row));
        }
        let cost = |spent: Duration| spent.as_secs_f64() * 1e9 / (mib << 20) as f64;
        println!(
            "run {number}: TCP {:.0}, ship to two {:.0} MB/s; processor ns/byte TCP {:.2}, ship {:.2}",
            rate(tcp),
            rate(ship),
            cost(tcp_cost),
            cost(ship_cost)
        );
        if number == runs as u64 {
            let fetch = fetch(folder.path(), shipped, &key, &peers).await?;
            println!("fetch {:.0} MB/s", rate(fetch));
        }
        rows.push((rate(tcp), rate(ship)));
    }
    let tcp = median(rows.iter().map(|row| row.0).collect());
    let ship = median(rows.iter().map(|row| row.1).collect());
    let ratio = ship / tcp;
    println!("ratio {ratio:.2} by bytes of the image, {:.2} by bytes acknowledged", 2.0 * ratio);
    Ok(())
}
