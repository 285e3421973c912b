//! What the operating system testifies, with real sockets, processes and links: refusals, watch connections
//! and carriers. Read next: `src/net/refusal.rs`, `src/net/watch.rs`, `src/net/carrier.rs`.
//!
//! Tests that cut links run again in name spaces of their own: what they make there ends with them.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Protocol, Socket, Type};
use steadfast::net::carrier::Carrier;
use steadfast::net::datagram::{self, Receiver, Refusal, RefusalKind, Sender, Sent};
use steadfast::net::rpc::{Limits, Listener, Services};
use steadfast::net::tls::{Authority, Credentials, NodeKey};
use steadfast::net::watch::{Dialler, TcpSample, Testimony, Watches, What};
use steadfast_proto::ids::{ClusterId, Incarnation, NetworkId, NodeId};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc;

const LONG: Duration = Duration::from_secs(40);
const FRONT: NetworkId = NetworkId(0);
const BACK: NetworkId = NetworkId(1);
const A: NodeId = NodeId(0xa);
const B: NodeId = NodeId(0xb);
const BOOT: u64 = 77;
const INSIDE: &str = "STEADFAST_TEST_INSIDE";
const PEER: &str = "STEADFAST_TEST_PEER";

// Refusals.

async fn refusals(receiver: &mut Receiver) -> Vec<Refusal> {
    let none = tokio::time::timeout(LONG, receiver.receive()).await.expect("the report wakes").unwrap().len();
    assert_eq!(none, 0, "only the error queue has something");
    receiver.take_refusals()
}

fn closed_port(host: &str) -> SocketAddr {
    std::net::UdpSocket::bind((host, 0)).unwrap().local_addr().unwrap()
}

async fn is_refused_once(host: &str) {
    let (sender, mut receiver) =
        datagram::bind(&[(FRONT, SocketAddr::new(host.parse().unwrap(), 0))]).unwrap();
    let gone = closed_port(host);
    let before = datagram::now();
    assert_eq!(sender.send(FRONT, gone, b"are you there?"), Sent::Yes);
    let [refusal] = refusals(&mut receiver).await.try_into().unwrap();
    let Refusal { network, peer, kind, received, payload, genuine } = refusal;
    assert_eq!((network, peer, kind, genuine), (FRONT, gone, RefusalKind::Port, true));
    assert_eq!(payload, b"are you there?");
    assert!(before <= received && received <= datagram::now());
    let own = sender.local_address(FRONT).unwrap();
    assert_eq!(sender.send(FRONT, own, b"alive"), Sent::Yes);
    assert_eq!(receiver.receive().await.unwrap()[0].bytes(), b"alive");
    assert_eq!(receiver.take_refusals(), []);
    let counts = sender.counts(FRONT).unwrap();
    assert_eq!((counts.sent, counts.received, counts.refusals, counts.refusals_forged), (2, 1, 1, 0));
}

#[tokio::test]
async fn a_closed_port_is_reported_once_and_disturbs_nothing() {
    is_refused_once("127.0.0.1").await;
    is_refused_once("::1").await;
}

#[tokio::test]
async fn refusals_that_nobody_takes_are_bounded() {
    let (sender, mut receiver) = datagram::bind(&[(FRONT, "127.0.0.1:0".parse().unwrap())]).unwrap();
    let gone = closed_port("127.0.0.1");
    let flood = async {
        while sender.counts(FRONT).unwrap().refusals < 300 {
            sender.send(FRONT, gone, b"again");
            // The kernel limits how much it reports, so not every datagram has an answer.
            let report = tokio::time::timeout(millis(1), receiver.receive()).await;
            assert!(report.is_err() || report.unwrap().unwrap().is_empty());
        }
    };
    tokio::time::timeout(LONG, flood).await.expect("enough is reported");
    assert_eq!(receiver.take_refusals().len(), datagram::REFUSALS_MAX);
}

/// A "port unreachable" about a datagram from `from` to `to` that carried `payload`.
fn icmp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else { unreachable!() };
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let mut packet = vec![3, 3, 0, 0, 0, 0, 0, 0, 0x45, 0];
    packet.extend(length(28 + payload.len()));
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(length(8 + payload.len()));
    packet.extend([0, 0]);
    packet.extend(payload);
    let padded = packet.iter().copied().chain([0; 1].into_iter().take(packet.len() % 2)).collect::<Vec<_>>();
    let mut sum: u32 = padded.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[2..4].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    packet
}

#[tokio::test]
async fn a_forged_refusal_is_told_from_a_genuine_one() {
    let (sender, mut receiver) = datagram::bind(&[(FRONT, "127.0.0.1:0".parse().unwrap())]).unwrap();
    let listens = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = listens.local_addr().unwrap();
    let own = sender.local_address(FRONT).unwrap();
    let forger = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).expect("run the tests as root");
    let forge = |payload: &[u8]| forger.send_to(&icmp(own, peer, payload), &peer.into()).unwrap();
    let sealed: Vec<u8> = (0..140).collect();
    assert_eq!(sender.send(FRONT, peer, &sealed), Sent::Yes);
    let mut other = sealed.clone();
    other[70] ^= 1;
    for payload in [&other[..], &sealed[..28], b""] {
        forge(payload);
        let [refusal] = refusals(&mut receiver).await.try_into().unwrap();
        assert_eq!((refusal.peer, refusal.genuine), (peer, false), "{} bytes", payload.len());
        assert_eq!(refusal.payload, payload);
    }
    // Who saw the datagram itself can forge one; it takes the path to see it.
    forge(&sealed);
    let [refusal] = refusals(&mut receiver).await.try_into().unwrap();
    assert!(refusal.genuine);
    assert_eq!(sender.counts(FRONT).unwrap().refusals_forged, 3);
    assert_eq!(sender.send(FRONT, peer, b"still there"), Sent::Yes);
}

// Watch connections.

fn credentials(authority: &Authority, node: NodeId) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let certificate = authority.issue(node, &key.public()).unwrap();
    Credentials::new(node, authority.certificate(), &certificate, &key.private_pkcs8()).unwrap()
}

/// One end of watch connections.
struct Side {
    watches: Watches,
    events: mpsc::Receiver<Testimony>,
    listener: Option<Listener>,
}

impl Side {
    fn new(credentials: Credentials, incarnation: u64) -> Side {
        let (sender, events) = mpsc::channel(64);
        let dialler = Dialler { credentials, incarnation: Incarnation(incarnation), boot: BOOT };
        Side { watches: Watches::new(Handle::current(), dialler, sender), events, listener: None }
    }

    /// Listens at `address` as well.
    async fn listening(credentials: Credentials, incarnation: u64, address: SocketAddr) -> Side {
        let mut side = Side::new(credentials.clone(), incarnation);
        let services = Services::new(Limits::default());
        side.watches.offer(&services);
        // Whoever had the port before may still be about to close it.
        let bind = async {
            loop {
                match Listener::bind(address, &credentials, services.clone()) {
                    Ok(listener) => return listener,
                    Err(error) if error.source.kind() == ErrorKind::AddrInUse => {
                        tokio::task::yield_now().await
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        };
        side.listener = Some(tokio::time::timeout(LONG, bind).await.expect("the port is let go"));
        side
    }

    fn address(&self) -> SocketAddr {
        self.listener.as_ref().unwrap().address()
    }

    fn watch(&self, peer: NodeId, incarnation: u64, addresses: &[SocketAddr]) {
        self.watches.set([(peer, (Incarnation(incarnation), BOOT, addresses.to_vec()))].into());
    }

    async fn next(&mut self) -> Testimony {
        tokio::time::timeout(LONG, self.events.recv()).await.expect("something is witnessed").unwrap()
    }

    async fn expect(&mut self, peer: NodeId, incarnation: u64, what: What) {
        let Testimony { peer: from, incarnation: stated, boot, what: found, .. } = self.next().await;
        assert_eq!((from, stated.0, boot, found), (peer, incarnation, BOOT, what));
    }

    /// Probes until the kernel's knowledge fits.
    async fn probe_until(&self, peer: NodeId, what: &str, fits: impl Fn(&TcpSample) -> bool) {
        let wait = async {
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            loop {
                tick.tick().await;
                self.watches.probe(peer);
                if self.watches.sample(peer).is_some_and(|sample| fits(&sample)) {
                    return;
                }
            }
        };
        let waited = tokio::time::timeout(LONG, wait).await;
        waited.unwrap_or_else(|_| panic!("not {what}: {:?}", self.watches.sample(peer)));
    }

    async fn wait_closed(&self, peer: NodeId) {
        let wait = async {
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            while self.watches.sample(peer).is_some() {
                tick.tick().await;
            }
        };
        tokio::time::timeout(LONG, wait).await.expect("the connection closes");
    }
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test]
async fn both_ends_know_each_other_and_an_announced_end_is_no_crash() {
    let authority = Authority::create(ClusterId(1)).unwrap();
    let mut a = Side::new(credentials(&authority, A), 3);
    let mut b = Side::listening(credentials(&authority, B), 5, any_port()).await;
    b.watch(A, 3, &[]);
    a.watch(B, 5, &[b.address()]);
    a.expect(B, 5, What::Opened).await;
    b.expect(A, 3, What::Opened).await;
    let is_lively = |sample: &TcpSample| sample.last_data_age < Duration::from_secs(1);
    a.probe_until(B, "lively", is_lively).await;
    b.probe_until(A, "lively", is_lively).await;
    let sample = b.watches.sample(A).unwrap();
    assert_eq!((sample.local, sample.retransmits), (b.address(), 0));
    // An edge that is given up ends without any testimony.
    a.watches.set(BTreeMap::new());
    a.wait_closed(B).await;
    b.wait_closed(A).await;
    a.watch(B, 5, &[b.address()]);
    a.expect(B, 5, What::Opened).await;
    b.expect(A, 3, What::Opened).await;
    // Another incarnation is another connection, and again no crash.
    b.watches.renumber(Incarnation(6));
    a.expect(B, 6, What::Opened).await;
    b.expect(A, 3, What::Opened).await;
    b.watches.goodbye().await;
    a.expect(B, 6, What::Goodbye).await;
    a.wait_closed(B).await;
    assert!(b.events.is_empty());
}

#[tokio::test]
async fn the_end_of_a_process_is_the_end_of_its_incarnation_only() {
    let authority = Authority::create(ClusterId(1)).unwrap();
    let mut a = Side::new(credentials(&authority, A), 1);
    // A runtime that is shut down drops its tasks as the end of a process closes its descriptors.
    let process = Runtime::new().unwrap();
    let b_credentials = credentials(&authority, B);
    let first = b_credentials.clone();
    let b = process.spawn(Side::listening(first, 5, any_port())).await.unwrap();
    let address = b.address();
    a.watch(B, 5, &[address]);
    a.expect(B, 5, What::Opened).await;
    drop(b);
    process.shutdown_background();
    a.expect(B, 5, What::EndOfFile).await;
    let again = Side::listening(b_credentials.clone(), 6, address).await;
    a.expect(B, 6, What::Opened).await;
    // Who was told of a later life does not take an earlier one for it.
    a.watch(B, 7, &[address]);
    a.wait_closed(B).await;
    drop(again);
    let latest = Side::listening(b_credentials, 7, address).await;
    a.expect(B, 7, What::Opened).await;
    // The handles went, as in a crash that spares the kernel.
    drop(latest);
    a.expect(B, 7, What::EndOfFile).await;
}

#[tokio::test]
async fn foreign_nodes_and_the_wrong_dialler_witness_nothing() {
    let (ours, theirs) = (Authority::create(ClusterId(1)).unwrap(), Authority::create(ClusterId(1)).unwrap());
    let mut low = Side::listening(credentials(&ours, A), 1, any_port()).await;
    let mut high = Side::new(credentials(&ours, B), 1);
    high.watch(A, 1, &[low.address()]);
    let mut foreign = Side::new(credentials(&theirs, NodeId(1)), 1);
    foreign.watch(A, 1, &[low.address()]);
    let mut right = Side::new(credentials(&ours, NodeId(2)), 1);
    right.watch(A, 1, &[low.address()]);
    right.expect(A, 1, What::Opened).await;
    assert!(high.events.try_recv().is_err(), "the lower id dials");
    assert!(foreign.events.try_recv().is_err(), "another cluster");
    low.expect(NodeId(2), 1, What::Opened).await;
    assert!(low.events.is_empty());
}

/// Another process with the listening end as node B, incarnation 9.
struct Peer {
    child: Child,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().ok();
    }
}

impl Peer {
    /// Starts it, behind `wrapper` if there is one; it waits until it can listen at `address`.
    fn start(authority: &Authority, folder: &Path, address: &str, wrapper: &[&str]) -> Peer {
        let key = NodeKey::generate().unwrap();
        fs::write(folder.join("ca"), authority.certificate()).unwrap();
        fs::write(folder.join("certificate"), authority.issue(B, &key.public()).unwrap()).unwrap();
        fs::write(folder.join("key"), key.private_pkcs8()).unwrap();
        fs::write(folder.join("address"), address).unwrap();
        let program = env::current_exe().unwrap();
        let mut command = match wrapper {
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            [] => Command::new(program),
        };
        let test = "the_other_process_listens_when_it_is_asked_to";
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(PEER, folder);
        Peer { child: command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap() }
    }

    fn address(&mut self) -> SocketAddr {
        let lines = BufReader::new(self.child.stdout.take().unwrap()).lines();
        let mut found = lines.map(Result::unwrap).filter_map(|line| line.strip_prefix("at ")?.parse().ok());
        found.next().expect("the other process says where it listens")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

#[test]
fn the_other_process_listens_when_it_is_asked_to() {
    let Some(folder) = env::var_os(PEER) else { return };
    let read = |name: &str| fs::read(Path::new(&folder).join(name)).unwrap();
    let credentials = Credentials::new(B, &read("ca"), &read("certificate"), &read("key")).unwrap();
    let address: SocketAddr = String::from_utf8(read("address")).unwrap().parse().unwrap();
    // Whoever starts this process in a name space gives that its address afterwards.
    while std::net::UdpSocket::bind((address.ip(), 0)).is_err() {
        std::thread::yield_now();
    }
    let runtime = Runtime::new().unwrap();
    let side = runtime.block_on(Side::listening(credentials, 9, address));
    println!("\nat {}", side.address());
    std::io::stdout().flush().unwrap();
    // Until whoever started this process ends.
    std::io::stdin().read_to_end(&mut Vec::new()).ok();
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[tokio::test]
async fn a_stalled_process_is_acknowledged_by_its_kernel_and_a_killed_one_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::create(ClusterId(1)).unwrap();
    let mut peer = Peer::start(&authority, folder.path(), "127.0.0.1:0", &[]);
    let mut a = Side::new(credentials(&authority, A), 1);
    a.watch(B, 9, &[peer.address()]);
    a.expect(B, 9, What::Opened).await;
    a.probe_until(B, "lively", |sample| sample.last_data_age < millis(500)).await;
    peer.signal(Signal::STOP);
    let is_stalled = |sample: &TcpSample| {
        sample.last_data_age > millis(1500) && sample.last_ack_age < millis(500) && sample.retransmits == 0
    };
    a.probe_until(B, "stalled", is_stalled).await;
    assert!(a.events.is_empty(), "a stall is no end");
    peer.signal(Signal::CONT);
    a.probe_until(B, "lively again", |sample| sample.last_data_age < millis(500)).await;
    peer.signal(Signal::STOP);
    a.probe_until(B, "stalled again", is_stalled).await;
    // With probes unread the kernel resets instead of closing: it is the same news.
    peer.signal(Signal::KILL);
    a.expect(B, 9, What::EndOfFile).await;
}

// Tests with links of their own.

/// Runs `body` again as process 1 of new name spaces, where only it lives: nothing of it survives.
fn isolated(name: &str, body: impl Future<Output = ()>) {
    if env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        return Runtime::new().unwrap().block_on(body);
    }
    assert!(rustix::process::geteuid().is_root(), "these tests make name spaces: run them as root");
    let status = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare is part of util-linux");
    assert!(status.success(), "the test failed in its own name spaces: {status}");
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {words}", arguments.join(" "));
}

fn ip(arguments: &str) {
    run("ip", &arguments.split(' ').collect::<Vec<_>>());
}

#[test]
fn a_cut_path_is_not_acknowledged_and_is_no_end_of_a_process() {
    isolated("a_cut_path_is_not_acknowledged_and_is_no_end_of_a_process", async {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(ClusterId(1)).unwrap();
        let mut peer = Peer::start(&authority, folder.path(), "10.9.0.2:7400", &["unshare", "--net"]);
        let pid = peer.child.id().to_string();
        let inside = |arguments: &str| {
            let whole = format!("-t {pid} -n {arguments}");
            run("nsenter", &whole.split(' ').collect::<Vec<_>>());
        };
        wait_for_new_network(&pid);
        ip(&format!("link add here type veth peer name there netns {pid}"));
        ip("addr add 10.9.0.1/24 dev here");
        ip("link set here up");
        inside("ip link set there up");
        inside("ip addr add 10.9.0.2/24 dev there");
        let mut a = Side::new(credentials(&authority, A), 1);
        a.watch(B, 9, &[peer.address()]);
        a.expect(B, 9, What::Opened).await;
        a.probe_until(B, "lively", |sample| sample.last_data_age < millis(500)).await;
        assert_eq!(a.watches.sample(B).unwrap().local.ip().to_string(), "10.9.0.1");
        inside("nft add table inet cut");
        for way in ["input", "output"] {
            inside(&format!(
                "nft add chain inet cut {way} {{ type filter hook {way} priority 0; policy drop; }}"
            ));
        }
        let is_cut = |sample: &TcpSample| sample.last_ack_age > millis(1000) && sample.retransmits > 0;
        a.probe_until(B, "cut", is_cut).await;
        assert!(a.events.is_empty(), "silence is no end");
        a.expect(B, 9, What::PathLost).await;
        assert_eq!(a.watches.sample(B), None);
        inside("nft delete table inet cut");
        a.expect(B, 9, What::Opened).await;
        // A cable that is pulled here is not the end of the process there either.
        ip("link set here down");
        a.expect(B, 9, What::PathLost).await;
    });
}

fn wait_for_new_network(pid: &str) {
    let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let own = space("self");
    while space(pid) == own {
        std::thread::yield_now();
    }
}

#[test]
fn a_pulled_cable_and_a_lost_address_are_announced() {
    isolated("a_pulled_cable_and_a_lost_address_are_announced", async {
        ip("link add front type veth peer name front-peer");
        ip("link add back type veth peer name back-peer");
        for name in ["front", "front-peer", "back", "back-peer"] {
            ip(&format!("link set {name} up"));
        }
        ip("addr add 10.9.1.1/24 dev front");
        let back: IpAddr = "fd00:9::1".parse().unwrap();
        let networks = [(FRONT, "10.9.1.1".parse().unwrap()), (BACK, back)];
        let mut carrier = Carrier::open(&networks).unwrap();
        let mut expect = async |network, up| {
            let event = tokio::time::timeout(LONG, carrier.next()).await.expect("it is announced").unwrap();
            assert_eq!((event.network, event.up), (network, up));
            assert!(event.at <= datagram::now());
        };
        expect(FRONT, true).await;
        expect(BACK, false).await;
        ip("addr add fd00:9::1/64 dev back");
        expect(BACK, true).await;
        // The far end goes down: this end has no carrier.
        ip("link set front-peer down");
        expect(FRONT, false).await;
        ip("link set front-peer up");
        expect(FRONT, true).await;
        ip("link set front down");
        expect(FRONT, false).await;
        ip("link set front up");
        expect(FRONT, true).await;
        ip("addr del 10.9.1.1/24 dev front");
        expect(FRONT, false).await;
        ip("addr add 10.9.1.1/24 dev back");
        expect(FRONT, true).await;
        ip("link del back");
        let (one, other) = (carrier.next().await.unwrap(), carrier.next().await.unwrap());
        assert_eq!([one.network, other.network], [FRONT, BACK]);
        assert!(!one.up && !other.up);
    });
}

#[test]
fn many_changes_at_once_end_with_the_right_state() {
    isolated("many_changes_at_once_end_with_the_right_state", async {
        ip("link add front type veth peer name front-peer");
        ip("link set front-peer up");
        ip("addr add 10.9.1.1/24 dev front");
        let mut carrier = Carrier::open(&[(FRONT, "10.9.1.1".parse().unwrap())]).unwrap();
        let mut commands = String::new();
        for number in 0..1000 {
            let address = format!("10.8.{}.{}/32", number / 250, number % 250 + 1);
            commands += &format!("link set front up\naddr add {address} dev front\nlink set front down\n");
        }
        commands += "link set front up\n";
        let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        // More was announced than the kernel keeps for a reader that sleeps.
        let mut is_up = false;
        while let Ok(event) = tokio::time::timeout(LONG, carrier.next()).await.map(Result::unwrap) {
            is_up = event.up;
            if is_up {
                break;
            }
        }
        assert!(is_up);
    });
}

#[allow(dead_code, reason = "the sending half may move between threads")]
fn is_send(sender: Sender, watches: Watches) -> impl Send {
    (sender, watches)
}
