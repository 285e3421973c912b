//! Datagrams that no member sent: replayed, truncated, changed, oversized, of a foreign cluster, and forged reports of refusal.
//!
//! They come from a host on the agents' own network, under its own address and under a member's. Nothing may follow: no
//! verdict, no suspicion, no answer, no end of an agent.

use std::fs;
use std::net::SocketAddr;

use steadfast_cli::bed::{Bed, Host};

use super::conclusions::mark;
use super::support::{PATIENCE, builder};

/// Prints datagrams from one address to another as the host sees them: `SOURCE DESTINATION COUNT`.
const LISTENER: &str = r#"
import socket, sys
source, destination, count = socket.inet_aton(sys.argv[1]), socket.inet_aton(sys.argv[2]), int(sys.argv[3])
heard = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
while count:
    packet, origin = heard.recvfrom(65535)
    if origin[1] != 0x0800 or packet[9] != 17 or packet[12:16] != source or packet[16:20] != destination:
        continue
    udp = packet[(packet[0] & 15) * 4:]
    if udp[2:4] == (7400).to_bytes(2, "big"):
        print(udp[8:int.from_bytes(udp[4:6], "big")].hex())
        count -= 1
"#;

/// Sends what it made of the datagrams in a file: `FILE VICTIM MEMBER`. Prints how many it sent and how many answers it got.
const FORGER: &str = r#"
import os, random, socket, struct, sys, time
genuine = [bytes.fromhex(line) for line in open(sys.argv[1])]
victim, member = sys.argv[2], sys.argv[3]
random.seed(7)
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
sent = 0

def ip(protocol, source, destination, payload):
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), random.getrandbits(16), 0, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(destination)) + payload

def udp(payload):
    return struct.pack("!HHHH", 7400, 7400, 8 + len(payload), 0) + payload

def send(payload):
    global sent
    own.sendto(payload, (victim, 7400))
    if len(payload) <= 1400:
        raw.sendto(ip(17, member, victim, udp(payload)), (victim, 0))
    sent += 2
    if sent % 100 == 0:
        time.sleep(0.005)

def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

for datagram in genuine * 5:
    send(datagram)
for datagram in genuine[:1] + genuine[-1:]:
    for length in range(len(datagram)):
        send(datagram[:length])
    for place in range(len(datagram)):
        send(datagram[:place] + bytes([datagram[place] ^ 1 << random.randrange(8)]) + datagram[place + 1:])
    send(datagram + b"x")
for _ in range(2000):
    send(os.urandom(random.randrange(1473)))
for length in (1473, 9000, 65507):
    send(genuine[0][:40] + os.urandom(length - 40))
for _ in range(200):
    quoted = ip(17, victim, member, udp(os.urandom(200)))
    for code in (0, 1, 3):
        body = struct.pack("!BBHI", 3, code, 0, 0) + quoted
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        raw.sendto(ip(1, member, victim, body), (victim, 0))
        sent += 1
own.settimeout(1)
answers = 0
try:
    while True:
        own.recv(65535)
        answers += 1
except (TimeoutError, ConnectionRefusedError):
    pass
print(sent, answers)
"#;

fn address(host: &Host) -> String {
    let Some(SocketAddr::V4(address)) = host.addresses().first().copied() else { panic!("an IPv4 address") };
    address.ip().to_string()
}

/// Makes a cluster of some of the bed's hosts.
fn found(hosts: &[Host], name: &str) {
    let [first, rest @ ..] = hosts else { panic!("a cluster has a first node") };
    for host in hosts {
        // With the catalog in etcd each cluster has a prefix of its own.
        let text = std::fs::read_to_string(host.config()).unwrap();
        let engine = "engine = \"etcd\"";
        let text = text.replace(engine, &format!("{engine}\nprefix = \"{name}\""));
        std::fs::write(host.config(), text).unwrap();
    }
    let config = first.config().display().to_string();
    first.steadfast_text(&["init", name, "--config", &config]).unwrap();
    first.start_agent().unwrap();
    first.wait_ready().unwrap();
    for host in rest {
        host.join_through(first).unwrap();
        host.start_agent().unwrap();
        host.wait_ready().unwrap();
    }
    for host in hosts {
        let is_whole = || (host.status().ok()?.view.members.len() == hosts.len()).then_some(());
        steadfast_cli::bed::wait_for("every member", PATIENCE, is_whole).unwrap();
    }
}

/// Datagrams from one host's agent to another's, as that one gets them.
fn overheard(from: &Host, to: &Host, count: usize) -> String {
    let count = count.to_string();
    let words = ["/usr/bin/python3", "-c", LISTENER, &address(from), &address(to), &count];
    let finished = to.exec(&words).unwrap();
    assert!(finished.success(), "{}", finished.stderr);
    finished.stdout
}

#[test]
fn datagrams_that_no_member_sent_change_nothing() {
    let bed: Bed = builder().hosts(5).networks(1).build().unwrap();
    let (ours, foreign) = bed.hosts().split_at(3);
    found(ours, "ours");
    found(foreign, "foreign");
    let [alpha, beta, _] = ours else { panic!("three of ours") };
    let [intruder, other] = foreign else { panic!("two of theirs") };
    let everybody_rests = || {
        let settled = |host: &Host| host.status().is_ok_and(|status| status.survives.nodes == 1);
        (ours.iter().all(settled)
            && bed
                .hosts()
                .iter()
                .all(|host| super::conclusions::held(host).is_some_and(|held| held.is_empty())))
        .then_some(())
    };
    steadfast_cli::bed::wait_for("two clusters at rest", PATIENCE, everybody_rests).unwrap();

    let file = bed.base().join("overheard");
    fs::write(&file, overheard(beta, alpha, 20) + &overheard(intruder, other, 20)).unwrap();
    let before = (alpha.agent_pid(), alpha.members().unwrap(), alpha.status().unwrap().view.id);
    let began = mark(bed.hosts());
    let file = file.display().to_string();
    let forged = ["/usr/bin/python3", "-c", FORGER, &file, &address(alpha), &address(beta)];
    let finished = intruder.exec(&forged).unwrap();
    assert!(finished.success(), "{}", finished.stderr);
    let words: Vec<u64> = finished.stdout.split_whitespace().map(|word| word.parse().unwrap()).collect();
    println!("{} forged datagrams, {} answers", words[0], words[1]);
    assert!(words[0] > 5_000, "{words:?}");
    assert_eq!(words[1], 0, "a datagram whose seal does not hold is not answered");

    // A heartbeat later than the flood has come both ways, so the flood was read by then.
    let heard_since = || {
        let peers = alpha.status().ok()?.peers;
        let fresh = |age: Option<u64>| age.is_some_and(|age| age < 500);
        peers.iter().all(|peer| peer.networks.iter().all(|heard| fresh(heard.age_ms))).then_some(())
    };
    steadfast_cli::bed::wait_for("everybody is heard", PATIENCE, heard_since).unwrap();
    assert_eq!((alpha.agent_pid(), alpha.members().unwrap(), alpha.status().unwrap().view.id), before);
    for host in bed.hosts() {
        let told = began.told(host).unwrap();
        assert!(told.is_empty(), "{} told {told:?}", host.name());
        assert_eq!(began.accused(host, &[]), [] as [String; 0], "on {}", host.name());
        let log = fs::read_to_string(host.log()).unwrap();
        assert!(!log.contains("panicked"), "{log}");
    }
    assert_eq!(alpha.status().unwrap().peers.len(), 2, "no foreigner became a peer");
}
