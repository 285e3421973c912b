//! Programs are imaged and brought back, on the same host and on another one: memory, files, processes and connections
//! of the same instant.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::{fs, io::Write as _, path::PathBuf};

use common::{
    DRIFT_NS, Leases, World, create, eventually, exec, isolated, output, shell, spec, wait_output,
    wait_running, wait_state,
};
use steadfast_container::{
    CheckpointError, Container, FREEZE_MAX_NS, Host, Obstacle, RestoreMode, Spec, State, Volume, boottime_ns,
    verify_host_files,
};

fn image(host: &Host, name: &str) -> PathBuf {
    host.config().image_dir.join(name)
}

fn restore(
    host: &Host,
    id: &str,
    epoch: u64,
    spec: &Spec,
    image: &std::path::Path,
    mode: RestoreMode,
) -> Container {
    host.create(id, epoch, spec, Some(image), mode).expect("the image is restored")
}

/// Takes an image of `container`, and says what CRIU said when it cannot.
fn capture(container: &Container, into: &std::path::Path) -> steadfast_container::Capture {
    wait_running(container);
    container.checkpoint(into, false).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn redis_keeps_its_data_on_another_host() {
    isolated(|world| {
        let (a, b) = (world.host("a"), world.host("b"));
        let spec = spec("redis", &["redis-server", "--save", "", "--appendonly", "no"]);
        let container = create(&a, "c1", 1, &spec);
        let leases = Leases::keep(&container);
        wait_output(&container, "Ready to accept connections");
        exec(&container, &["redis-cli", "set", "answer", "42"]);
        assert_eq!(container.preflight().unwrap(), []);
        let image = image(&a, "one");
        let capture = capture(&container, &image);
        assert!(capture.frozen_ns > 0 && capture.criu_version >= (4, 2, 0), "{capture:?}");
        assert!(
            capture
                .host_files
                .iter()
                .any(|file| file.path.ends_with("redis-check-rdb") || file.path.ends_with("redis-server"))
        );
        verify_host_files(&capture.host_files).unwrap();
        // It goes on, and what it does now is lost with its host.
        exec(&container, &["redis-cli", "set", "answer", "43"]);
        drop(leases);
        container.destroy().unwrap();

        let container = restore(&b, "c1", 2, &spec, &image, RestoreMode::CloseOutside);
        let _leases = Leases::keep(&container);
        wait_running(&container);
        assert_eq!(exec(&container, &["redis-cli", "get", "answer"]), "42\n");
        assert_eq!(exec(&container, &["cat", "/run/steadfast/epoch"]), "2\n");
        exec(&container, &["redis-cli", "set", "answer", "44"]);
        // And once more from there: the image of a restored program is as good.
        let second = image.with_file_name("two");
        capture_again(&container, &second);
        container.destroy().unwrap();
        let container = restore(&a, "c1", 3, &spec, &second, RestoreMode::Keep);
        let _leases = Leases::keep(&container);
        wait_running(&container);
        assert_eq!(exec(&container, &["redis-cli", "get", "answer"]), "44\n");
        container.destroy().unwrap();
    });
}

#[test]
fn what_is_held_still_stays_as_it_is_in_the_image_whatever_its_lease_until_it_is_let_go() {
    isolated(|world| {
        let (a, b) = (world.host("a"), world.host("b"));
        let spec = shell("counter", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.001; done");
        let container = create(&a, "c1", 1, &spec);
        let _leases = Leases::keep(&container);
        wait_output(&container, "20");
        wait_running(&container);
        let (first, second) = (image(&a, "one"), image(&a, "two"));
        container.checkpoint(&first, true).unwrap();
        // Leases go on to come, longer than one lasts: none of them moves it.
        let last = || output(&container).last().unwrap().parse::<u64>().unwrap();
        let held = last();
        let status = wait_state(&container, |state| *state == State::Frozen);
        assert!(status.held && last() == held, "{} after {held}", last());
        container.release().unwrap();
        wait_output(&container, &(held + 20).to_string());
        assert!(!container.status().unwrap().held);
        wait_running(&container);
        container.checkpoint(&second, true).unwrap();
        let held = last();
        container.destroy().unwrap();

        let restored = restore(&b, "c1", 2, &spec, &second, RestoreMode::Keep);
        let _leases = Leases::keep(&restored);
        wait_running(&restored);
        let next: u64 = eventually("a line", || output(&restored).first().cloned()).parse().unwrap();
        assert_eq!(next, held + 1, "nothing ran after the image");
        restored.destroy().unwrap();
    });
}

fn capture_again(container: &Container, into: &std::path::Path) {
    capture(container, into);
}

#[test]
fn files_roll_back_with_memory() {
    isolated(|world| {
        let (a, b) = (world.host("a"), world.host("b"));
        let script = "exec 5>>/var/log/steadfast-test.log; n=0; while :; do n=$((n+1)); echo $n >&5; echo $n > /tmp/now; echo $n; sleep 0.02; done";
        let spec = shell("appender", script);
        let container = create(&a, "c1", 1, &spec);
        let leases = Leases::keep(&container);
        wait_output(&container, "3");
        let image = image(&a, "one");
        capture(&container, &image);
        let at = exec(&container, &["wc", "-l", "/var/log/steadfast-test.log"]);
        let at: u64 = at.split_whitespace().next().unwrap().parse().unwrap();
        wait_output(&container, &(at + 20).to_string());
        drop(leases);
        container.destroy().unwrap();

        let container = restore(&b, "c1", 2, &spec, &image, RestoreMode::Keep);
        let _leases = Leases::keep(&container);
        wait_running(&container);
        let first: u64 = eventually("a line", || output(&container).first().cloned()).parse().unwrap();
        assert!(first <= at + 1, "it went on at {first}, imaged before {at}");
        wait_output(&container, &(first + 5).to_string());
        // Every number once, in order, across the restore: the file went back as far as the counter.
        let numbers = exec(&container, &["cat", "/var/log/steadfast-test.log"]);
        for (expected, line) in (1..).zip(numbers.lines()) {
            assert_eq!(line.parse::<u64>().unwrap(), expected);
        }
        container.destroy().unwrap();
    });
}

const FAMILY: &str = r#"
import os, socket, threading, time
listener = socket.create_server(("127.0.0.1", 7777))
state = {"threads": 0}
def tick():
    while True:
        state["threads"] += 1
        time.sleep(0.01)
for _ in range(3):
    threading.Thread(target=tick, daemon=True).start()
read, write = os.pipe()
if os.fork() == 0:
    n = 0
    while True:
        n += 1
        os.write(write, b"%d\n" % n)
        time.sleep(0.01)
pipe = os.fdopen(read)
print("ready", flush=True)
while True:
    peer, _ = listener.accept()
    line = pipe.readline().strip()
    peer.sendall(f"child {line} threads {state['threads']}\n".encode())
    peer.close()
"#;

#[test]
fn several_processes_and_threads_with_a_listener_come_back() {
    isolated(|world| {
        let (a, b) = (world.host("a"), world.host("b"));
        let spec = spec("family", &["/usr/bin/python3", "-c", FAMILY]);
        let container = create(&a, "c1", 1, &spec);
        let leases = Leases::keep(&container);
        wait_output(&container, "ready");
        let ask = |container: &Container| {
            let client = "import socket; s = socket.create_connection(('127.0.0.1', 7777)); print(s.recv(100).decode(), end='')";
            let text = exec(container, &["/usr/bin/python3", "-c", client]);
            let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
            (words[1].parse::<u64>().unwrap(), words[3].parse::<u64>().unwrap())
        };
        let before = ask(&container);
        let image = image(&a, "one");
        capture(&container, &image);
        drop(leases);
        container.destroy().unwrap();
        let container = restore(&b, "c1", 2, &spec, &image, RestoreMode::CloseOutside);
        let _leases = Leases::keep(&container);
        wait_running(&container);
        let after = ask(&container);
        assert!(after.0 == before.0 + 1 && after.1 > before.1, "{before:?} {after:?}");
        assert_eq!(container.pids().unwrap().len(), 2);
        container.destroy().unwrap();
    });
}

#[test]
fn a_program_run_inside_is_no_obstacle_and_not_part_of_the_image() {
    isolated(|world| {
        let host = world.host("a");
        let spec = shell("box", "echo ready; while :; do sleep 0.05; done");
        let container = create(&host, "c1", 1, &spec);
        let leases = Leases::keep(&container);
        wait_output(&container, "ready");
        let guest = std::thread::spawn({
            let container = container.clone();
            move || {
                exec(
                    &container,
                    &[
                        "sh",
                        "-c",
                        "touch /tmp/guest; while test -e /tmp/guest; do sleep 0.02; done; echo left",
                    ],
                )
            }
        });
        eventually("the guest runs", || exec(&container, &["ls", "/tmp"]).contains("guest").then_some(()));
        let image = image(&host, "one");
        capture(&container, &image);
        exec(&container, &["rm", "/tmp/guest"]);
        assert_eq!(guest.join().unwrap(), "left\n");
        drop(leases);
        container.destroy().unwrap();
        let container = restore(&host, "c1", 2, &spec, &image, RestoreMode::CloseOutside);
        let _leases = Leases::keep(&container);
        wait_running(&container);
        let commands = exec(&container, &["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]);
        assert!(!commands.contains("test -e /tmp/guest"), "{commands}");
        container.destroy().unwrap();
    });
}

const RING: &str = r#"
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
params = (ctypes.c_uint32 * 30)()
fd = libc.syscall(425, 4, params)
print("ring" if fd >= 0 else "none", ctypes.get_errno(), flush=True)
while True: time.sleep(1)
"#;

#[test]
fn what_cannot_be_imaged_is_reported_and_keeps_running() {
    isolated(|world| {
        let host = world.host("a");
        let container = create(&host, "c1", 1, &spec("ring", &["/usr/bin/python3", "-c", RING]));
        let _leases = Leases::keep(&container);
        wait_output(&container, "ring");
        let findings = container.preflight().unwrap();
        assert!(
            findings
                .iter()
                .any(|f| matches!(&f.obstacle, Obstacle::KernelObject(name) if name == "io_uring")),
            "{findings:?}"
        );
        wait_running(&container);
        let into = image(&host, "never");
        let Err(CheckpointError::Refused(reason)) = container.checkpoint(&into, false) else {
            panic!("io_uring was imaged")
        };
        assert!(reason.contains("io_uring"), "{reason}");
        assert!(!into.exists(), "no half image is left");
        wait_running(&container);
        assert_eq!(exec(&container, &["echo", "alive"]), "alive\n");
        container.destroy().unwrap();
    });
}

const SOCKETS: &str = r#"
import socket, sys, time
if len(sys.argv) > 1:
    out = socket.socket(socket.AF_UNIX); out.connect(sys.argv[1])
else:
    waiting = socket.socket(socket.AF_UNIX); waiting.bind("/tmp/mine"); waiting.listen(5)
    mine = socket.socket(socket.AF_UNIX); mine.connect("/tmp/mine")
    pair = socket.socketpair()
    unbound = [socket.socket(), socket.socket(socket.AF_INET6), socket.socket(type=socket.SOCK_DGRAM)]
print("ready", flush=True)
while True: time.sleep(1)
"#;

#[test]
fn only_sockets_that_lead_outside_are_obstacles() {
    isolated(|world| {
        let host = world.host("a");
        let folder = host.config().run_dir.join("shared");
        fs::create_dir_all(&folder).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(folder.join("s")).unwrap();
        let harmless = create(&host, "c1", 1, &spec("harmless", &["/usr/bin/python3", "-c", SOCKETS]));
        let mut spec = spec("talker", &["/usr/bin/python3", "-c", SOCKETS, "/shared/s"]);
        spec.volumes = vec![Volume { source: folder, target: "/shared".into(), read_only: false }];
        let talker = create(&host, "c2", 1, &spec);
        let _leases = [Leases::keep(&harmless), Leases::keep(&talker)];
        wait_output(&harmless, "ready");
        wait_output(&talker, "ready");
        assert_eq!(harmless.preflight().unwrap(), []);
        capture(&harmless, &image(&host, "harmless"));
        // The connection waits to be accepted: nobody holds its other end until then.
        let (_accepted, _) = listener.accept().unwrap();
        let findings = talker.preflight().unwrap();
        assert!(
            matches!(findings.as_slice(), [f] if matches!(f.obstacle, Obstacle::OutsideSocket(_))),
            "{findings:?}"
        );
        wait_running(&talker);
        let refused = talker.checkpoint(&image(&host, "talker"), false).unwrap_err().to_string();
        assert!(refused.contains("outside"), "{refused}");
        harmless.destroy().unwrap();
        talker.destroy().unwrap();
    });
}

#[test]
fn a_program_whose_own_socket_was_closed_is_imaged_and_connects_anew_on_another_host() {
    const TALKER: &str = r#"
import os, socket, time
path = os.environ["STEADFAST_SOCKET"]
if os.fork() == 0:
    os.setuid(65534)
    socket.socket(socket.AF_UNIX).connect(path)
    print("anybody", flush=True)
    os._exit(0)
os.wait()
while True:
    try:
        own = socket.socket(socket.AF_UNIX)
        own.connect(path)
        print("connected", flush=True)
        while heard := own.recv(100):
            print("heard", heard.decode(), flush=True)
            while heard == b"wait" and not os.path.exists("/tmp/go"):
                time.sleep(0.01)
        print("over", flush=True)
    except OSError as error:
        print("refused", error.errno, flush=True)
    time.sleep(0.01)
"#;
    isolated(|world| {
        let (a, b) = (world.host("a"), world.host("b"));
        let spec = spec("talker", &["python3", "-c", TALKER]);
        let container = create(&a, "c1", 1, &spec);
        let listener = container.listen().unwrap();
        let leases = Leases::keep(&container);
        drop(listener.accept().unwrap());
        wait_output(&container, "anybody");
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"wait").unwrap();
        wait_output(&container, "heard wait");
        // What it has not read when the other end goes is in its image.
        stream.write_all(b"two").unwrap();
        assert!(!container.preflight().unwrap().is_empty());
        drop((stream, listener));
        assert_eq!(container.preflight().unwrap(), []);
        let image = image(&a, "one");
        capture(&container, &image);
        exec(&container, &["touch", "/tmp/go"]);
        wait_output(&container, "heard two");
        wait_output(&container, "over");
        // Its agent listens again where one listened before.
        let _listener = container.listen().unwrap();
        wait_output_after(&container, "over", "connected");
        drop(leases);
        container.destroy().unwrap();

        let container = restore(&b, "c1", 2, &spec, &image, RestoreMode::CloseOutside);
        let listener = container.listen().unwrap();
        let _leases = Leases::keep(&container);
        wait_running(&container);
        exec(&container, &["touch", "/tmp/go"]);
        wait_output(&container, "heard two");
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"three").unwrap();
        wait_output(&container, "heard three");
        container.destroy().unwrap();
    });
}

/// Waits for a line after the first of another.
fn wait_output_after(container: &Container, first: &str, line: &str) {
    eventually(&format!("{line:?} after {first:?}"), || {
        let lines = output(container);
        let at = lines.iter().position(|one| one == first)?;
        lines.iter().skip(at).any(|one| one == line).then_some(())
    });
}

#[test]
fn two_epochs_of_one_id_live_on_two_hosts_at_once() {
    isolated(|world| {
        let (a, b) = (world.host("a"), world.host("b"));
        let spec = shell("twice", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done");
        let old = create(&a, "c1", 1, &spec);
        let leases = Leases::keep(&old);
        wait_output(&old, "3");
        let image = image(&a, "one");
        capture(&old, &image);
        leases.pause();
        common::wait_state(&old, |state| *state == State::Frozen);
        let new = restore(&b, "c1", 2, &spec, &image, RestoreMode::CloseOutside);
        let _leases = Leases::keep(&new);
        wait_running(&new);
        let before = output(&old).len();
        let first: usize = eventually("a line", || output(&new).first().cloned()).parse().unwrap();
        wait_output(&new, &(first + 20).to_string());
        assert_eq!(output(&old).len(), before, "the old one stands still");
        assert_eq!(old.status().unwrap().state, State::Frozen);
        old.destroy().unwrap();
        wait_output(&new, &(first + 40).to_string());
        assert_eq!(new.status().unwrap().epoch, 2);
        new.destroy().unwrap();
    });
}

#[test]
fn images_are_never_written_to_a_disk_and_half_images_are_refused() {
    isolated(|world| {
        let host = world.host("a");
        let container = create(&host, "c1", 1, &shell("sleeper", "echo ready; sleep 1000"));
        let leases = Leases::keep(&container);
        wait_output(&container, "ready");
        wait_running(&container);
        let disk = host.config().data_dir.join("image");
        let refused = container.checkpoint(&disk, false).unwrap_err().to_string();
        assert!(refused.contains("tmpfs"), "{refused}");
        let full = image(&host, "full");
        fs::create_dir_all(&full).unwrap();
        fs::write(full.join("mine"), "").unwrap();
        let refused = container.checkpoint(&full, false).unwrap_err().to_string();
        assert!(refused.contains("not empty") && full.join("mine").exists(), "{refused}");
        let whole = image(&host, "whole");
        capture(&container, &whole);
        drop(leases);
        container.destroy().unwrap();
        fs::remove_file(whole.join("upper.tar")).unwrap();
        let refused = host
            .create("c1", 2, &shell("sleeper", "x"), Some(&whole), RestoreMode::Keep)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("upper.tar"), "{refused}");
    });
}

#[test]
fn a_lapse_during_a_checkpoint_discards_the_image() {
    isolated(|world: &World| {
        let host = world.host("a");
        // Enough memory that the image takes a while.
        let script = "import time\nx = bytearray(b'x') * (400 << 20)\nprint('ready', flush=True)\nwhile True: time.sleep(0.01)\n";
        let container = create(&host, "c1", 1, &spec("big", &["/usr/bin/python3", "-c", script]));
        let leases = Leases::keep(&container);
        wait_output(&container, "ready");
        let mut discarded = 0;
        // Begun earlier and earlier before the freeze, so that it comes at different stages of the dump.
        for before_ms in [5, 20, 40, 80, 120, 160, 200, 240] {
            let freeze_at = leases.pause() - DRIFT_NS - FREEZE_MAX_NS;
            eventually("the moment", || (boottime_ns() > freeze_at - before_ms * 1_000_000).then_some(()));
            let into = image(&host, "late");
            let taking = std::thread::spawn({
                let (container, into) = (container.clone(), into.clone());
                move || container.checkpoint(&into, false)
            });
            let status = common::wait_state(&container, |state| *state == State::Frozen);
            assert!(!status.fenced, "it had to be killed: {status:?}");
            leases.resume();
            match taking.join().unwrap() {
                // It ended before the lapse.
                Ok(_) => fs::remove_dir_all(&into).unwrap(),
                Err(CheckpointError::Lapsed) => discarded += 1,
                // The lapse came before it began.
                Err(CheckpointError::NotRunning(_)) => {}
                Err(e) => panic!("{e}"),
            }
            assert!(!into.exists());
            wait_running(&container);
            assert_eq!(exec(&container, &["echo", "alive"]), "alive\n");
        }
        assert!(discarded > 0, "no lapse came during a checkpoint: this test showed nothing");
        wait_running(&container);
        container.destroy().unwrap();
    });
}
