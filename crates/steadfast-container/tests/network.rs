//! Containers on a network: addresses, the fence as outsiders see it, and what happens to connections.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use common::{Leases, World, create, eventually, exec, isolated, run_ok, spec, wait_output, wait_running};
use rustix::process::{Pid, Signal, kill_process};
use steadfast_container::{
    BridgeConfig, Container, CreateError, Host, RestoreMode, Spec, State, boottime_ns,
};

/// Two hosts with a bridge each, connected, and an outsider in a name space of its own on the first.
struct Net {
    a: Host,
    b: Host,
}

const OUTSIDE: &str = "10.7.0.1";
const CONTAINER: &str = "10.7.0.5";

fn net(world: &World) -> Net {
    run_ok("ip", &["link", "add", "ua", "type", "veth", "peer", "name", "ub"]);
    let host = |name: &str| {
        let mut config = world.config(name, None);
        config.bridge = Some(BridgeConfig { name: format!("br{name}"), uplink: Some(format!("u{name}")) });
        Host::open(config).expect("a host with a bridge")
    };
    let net = Net { a: host("a"), b: host("b") };
    run_ok("ip", &["netns", "add", "out"]);
    run_ok("ip", &["link", "add", "wo", "type", "veth", "peer", "name", "eth0", "netns", "out"]);
    run_ok("ip", &["link", "set", "wo", "master", "bra", "up"]);
    run_ok("ip", &["-n", "out", "addr", "add", &format!("{OUTSIDE}/24"), "dev", "eth0"]);
    run_ok("ip", &["-n", "out", "link", "set", "eth0", "up"]);
    run_ok("ip", &["-n", "out", "link", "set", "lo", "up"]);
    net
}

/// A Python program outside; killed with its handle.
struct Outsider(Child);

impl Drop for Outsider {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn outside(script: &str, output: &Path) -> Outsider {
    let file = fs::File::create(output).unwrap();
    let child = Command::new("ip")
        .args(["netns", "exec", "out", "/usr/bin/python3", "-u", "-c", script])
        .stdin(Stdio::null())
        .stdout(file)
        .spawn()
        .unwrap();
    Outsider(child)
}

/// Whether anything answers at the container's address, be it only its kernel with a refusal.
fn answers() -> bool {
    let script = r#"
import socket
try:
    socket.create_connection(("10.7.0.5", 1), 1)
except ConnectionRefusedError:
    print("refused")
except OSError:
    pass
"#;
    run_ok("ip", &["netns", "exec", "out", "/usr/bin/python3", "-c", script]).contains("refused")
}

fn with_address(mut spec: Spec) -> Spec {
    spec.address = Some(format!("{CONTAINER}/24").parse().unwrap());
    spec
}

/// Says the time, CLOCK_BOOTTIME in nanoseconds, to the outsider every few milliseconds.
const SPEAKER: &str = r#"
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try: s.sendto(b"%d" % time.clock_gettime_ns(time.CLOCK_BOOTTIME), ("10.7.0.1", 9000))
    except OSError: pass
    time.sleep(0.002)
"#;

/// Writes down what it hears: when each was sent, by the one clock of this machine. When it arrived would also count how
/// long a loaded machine takes from the fence to here.
const WITNESS: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.7.0.1", 9000))
print("listening")
while True:
    print(s.recv(100).decode())
"#;

struct Witness {
    _process: Outsider,
    path: PathBuf,
}

impl Witness {
    fn start(host: &Host) -> Self {
        let path = host.config().run_dir.join("witness");
        let process = outside(WITNESS, &path);
        let witness = Self { _process: process, path };
        eventually("the witness listens", || {
            fs::read_to_string(&witness.path).ok().filter(|text| text.contains("listening"))
        });
        witness
    }

    /// When everything heard was sent.
    fn heard(&self) -> Vec<u64> {
        let text = fs::read_to_string(&self.path).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().skip(1).map(|sent| sent.parse().unwrap()).collect()
    }

    fn wait_heard(&self, after: u64) {
        eventually("the witness hears", || self.heard().iter().any(|sent| *sent > after).then_some(()));
    }
}

/// Waits until well past an instant of CLOCK_BOOTTIME.
fn wait_past(ns: u64) {
    eventually("time passes", || (boottime_ns() > ns).then_some(()));
}

#[test]
fn a_lapsed_lease_silences_and_a_fresh_one_thaws() {
    isolated(|world| {
        let net = net(world);
        let witness = Witness::start(&net.a);
        let container =
            create(&net.a, "c1", 1, &with_address(spec("speaker", &["/usr/bin/python3", "-c", SPEAKER])));
        let leases = Leases::keep(&container);
        witness.wait_heard(0);
        for _ in 0..3 {
            let deadline = leases.pause();
            common::wait_state(&container, |state| *state == State::Frozen);
            wait_past(deadline + 300_000_000);
            let last = *witness.heard().last().unwrap();
            assert!(last <= deadline, "heard what was said {} ns after the deadline", last - deadline);
            // Not even its kernel answers: the neighbour is gone.
            assert!(!answers(), "a frozen container's kernel answered");
            leases.resume();
            witness.wait_heard(boottime_ns());
        }
        let lateness = container.status().unwrap().lateness;
        assert_eq!(lateness.woke_past_deadline, 0, "{lateness:?}");
        container.destroy().unwrap();
    });
}

#[test]
fn with_agent_and_shim_stopped_the_kernel_silences_it() {
    isolated(|world| {
        let net = net(world);
        let witness = Witness::start(&net.a);
        let container =
            create(&net.a, "c1", 1, &with_address(spec("speaker", &["/usr/bin/python3", "-c", SPEAKER])));
        let leases = Leases::keep(&container);
        witness.wait_heard(0);
        let shim = Pid::from_raw(i32::try_from(container.shim_pid().unwrap()).unwrap()).unwrap();
        kill_process(shim, Signal::STOP).unwrap();
        let deadline = leases.pause();
        wait_past(deadline + 500_000_000);
        let frozen =
            fs::read_to_string(world.group("a", "c1").join("cgroup.events")).unwrap().contains("frozen 1");
        assert!(!frozen, "the shim was stopped, nobody could freeze it: this test shows nothing");
        let last = *witness.heard().last().unwrap();
        assert!(last <= deadline, "heard what was said {} ns after the deadline", last - deadline);
        // Once it may go on, the shim freezes at once, says that it was late, and a fresh lease thaws.
        kill_process(shim, Signal::CONT).unwrap();
        let status = common::wait_state(&container, |state| *state == State::Frozen);
        assert_eq!(status.lateness.woke_past_deadline, 1);
        leases.resume();
        witness.wait_heard(boottime_ns());
        container.destroy().unwrap();
    });
}

#[test]
fn an_address_in_use_is_refused_with_who_has_it() {
    isolated(|world| {
        let net = net(world);
        let first = create(&net.a, "c1", 1, &with_address(spec("first", &["/bin/sleep", "1000"])));
        let _leases = Leases::keep(&first);
        wait_running(&first);
        let hardware = exec(&first, &["cat", "/sys/class/net/eth0/address"]);
        let second = with_address(spec("second", &["/bin/sleep", "1000"]));
        let Err(CreateError::AddressTaken { address, holder }) =
            net.b.create("c2", 1, &second, None, RestoreMode::Keep)
        else {
            panic!("one address twice")
        };
        assert_eq!((address.as_str(), holder.as_str()), ("10.7.0.5/24", hardware.trim()));
        assert!(!world.group("b", "c2").exists());
        // Frozen, it does not answer: the address can be taken over.
        first.destroy().unwrap();
        let second = create(&net.b, "c2", 1, &second);
        let _leases = Leases::keep(&second);
        wait_running(&second);
        eventually("the address answers", || answers().then_some(()));
        second.destroy().unwrap();
    });
}

/// Answers each byte of a connection with a count; keeps one connection to itself, and counts on both.
const SERVER: &str = r#"
import socket, threading
listener = socket.create_server(("0.0.0.0", 7000))
mine = socket.create_connection(("127.0.0.1", 7000))
def serve(peer, who):
    n = 0
    try:
        while peer.recv(1):
            n += 1
            peer.sendall(b"%d\n" % n)
        print(who, "closed", flush=True)
    except OSError as e:
        print(who, "aborted", e.errno, flush=True)
print("ready", flush=True)
while True:
    peer, address = listener.accept()
    who = "self" if address[0] == "127.0.0.1" else "peer"
    if who == "peer":
        mine.sendall(b"x")
        print("inside", mine.recv(10).decode().strip(), flush=True)
    threading.Thread(target=serve, args=(peer, who), daemon=True).start()
"#;

/// Connects, asks once, then once more for each line in the file `go`.
const CLIENT: &str = r#"
import os, socket, sys, time
s = socket.create_connection(("10.7.0.5", 7000))
def ask():
    try:
        s.sendall(b"x")
        line = s.recv(10).decode().strip()
        print("answer" if line else "closed", line)
    except OSError as e:
        print("error", e.errno)
ask()
seen = 0
while True:
    with open(sys.argv[1] if len(sys.argv) > 1 else "/run/go") as go: lines = len(go.readlines())
    while seen < lines:
        seen += 1
        ask()
    time.sleep(0.01)
"#;

fn moved(world: &World, mode: RestoreMode) -> (Net, Container, Leases, Outsider, PathBuf) {
    let net = net(world);
    let spec = with_address(spec("server", &["/usr/bin/python3", "-c", SERVER]));
    let container = create(&net.a, "c1", 1, &spec);
    let leases = Leases::keep(&container);
    wait_output(&container, "ready");
    fs::write("/run/go", "").unwrap();
    let answers = net.a.config().run_dir.join("answers");
    let client = outside(CLIENT, &answers);
    eventually("the first answer", || {
        fs::read_to_string(&answers).ok().filter(|text| text.contains("answer 1"))
    });
    wait_output(&container, "inside 1");
    let image = net.a.config().image_dir.join("one");
    wait_running(&container);
    container.checkpoint(&image, false).unwrap();
    drop(leases);
    container.destroy().unwrap();
    let container = net.b.create("c1", 2, &spec, Some(&image), mode).expect("restored");
    let leases = Leases::keep(&container);
    wait_running(&container);
    (net, container, leases, client, answers)
}

#[test]
fn a_move_keeps_connections() {
    isolated(|world| {
        let (_net, container, _leases, _client, answers) = moved(world, RestoreMode::Keep);
        fs::write("/run/go", "1\n").unwrap();
        eventually("the second answer", || {
            fs::read_to_string(&answers).ok().filter(|text| text.contains("answer 2"))
        });
        container.destroy().unwrap();
    });
}

#[test]
fn after_a_loss_outside_connections_are_closed_and_inside_ones_stay() {
    isolated(|world| {
        let (_net, container, _leases, _client, answers) = moved(world, RestoreMode::CloseOutside);
        wait_output(&container, "peer aborted 103");
        fs::write("/run/go", "1\n").unwrap();
        let text = eventually("the client is told", || {
            fs::read_to_string(&answers).ok().filter(|text| text.lines().count() >= 2)
        });
        assert!(text.contains("error") || text.contains("closed"), "{text}");
        // A new client is served, and the connection inside goes on counting.
        let again = container.spec().name.clone();
        let answers = answers.with_file_name(again);
        let _client = outside(CLIENT, &answers);
        eventually("a new client's answer", || {
            fs::read_to_string(&answers).ok().filter(|text| text.contains("answer 1"))
        });
        wait_output(&container, "inside 2");
        container.destroy().unwrap();
    });
}

#[test]
fn an_uplink_with_an_address_and_a_missing_bridge_are_refused() {
    isolated(|world| {
        run_ok("ip", &["link", "add", "ua", "type", "veth", "peer", "name", "ub"]);
        run_ok("ip", &["addr", "add", "10.8.0.1/24", "dev", "ua"]);
        let mut config = world.config("a", None);
        config.bridge = Some(BridgeConfig { name: "bra".into(), uplink: Some("ua".into()) });
        let refused = Host::open(config).unwrap_err().to_string();
        assert!(refused.contains("ua") && refused.contains("10.8.0.1/24"), "{refused}");
        let host = world.host("b");
        let refused = host
            .create("c1", 1, &with_address(spec("x", &["true"])), None, RestoreMode::Keep)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("no bridge"), "{refused}");
    });
}
