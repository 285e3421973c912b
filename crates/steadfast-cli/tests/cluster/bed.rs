//! The bed itself: faults do what they say, power loss is silent and whole, and nothing stays behind.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use steadfast_cli::bed::{
    Bed, BedError, Direction, Fault, cleanup_stale, host_address, registered, wait_for,
};

use super::support::{BINARY, PATIENCE};

fn bare() -> Bed {
    Bed::builder(BINARY).hosts(3).networks(2).build().unwrap()
}

fn socket(bed: &Bed, host: usize, network: usize) -> UdpSocket {
    let address = SocketAddr::from((host_address(host, network).ip(), 9000));
    let socket = bed.host(host).with_spaces(|spaces| spaces.udp_bind(address)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Whether a datagram from `from` reaches `to`; tries until it does or `tries` are over.
fn reaches(from: &UdpSocket, to: &UdpSocket, tries: u32) -> bool {
    let address = to.local_addr().unwrap();
    let mut buffer = [0; 8];
    (0..tries).any(|_| {
        from.send_to(b"hello", address).unwrap();
        // What a veth delivers it delivers within the call; the pause only lets a neighbour question be answered.
        std::thread::sleep(Duration::from_millis(5));
        to.recv_from(&mut buffer).is_ok()
    })
}

#[test]
fn a_fault_cuts_what_it_names_and_nothing_else() {
    let bed = bare();
    let (alpha, beta, gamma) = (socket(&bed, 0, 0), socket(&bed, 1, 0), socket(&bed, 2, 0));
    let (alpha_back, beta_back) = (socket(&bed, 0, 1), socket(&bed, 1, 1));
    assert!(
        reaches(&alpha, &beta, 200) && reaches(&alpha, &gamma, 200) && reaches(&alpha_back, &beta_back, 200)
    );
    let front = || "front".to_owned();

    let pair = bed.inject(Fault::Pair { first: 0, second: 1, network: front() }).unwrap();
    assert!(!reaches(&alpha, &beta, 5) && !reaches(&beta, &alpha, 5));
    assert!(reaches(&alpha, &gamma, 200) && reaches(&alpha_back, &beta_back, 200));
    assert!(bed.heal(pair).unwrap());
    assert!(reaches(&alpha, &beta, 200));

    let one_way =
        bed.inject(Fault::Host { host: 0, network: front(), direction: Direction::ToHost }).unwrap();
    assert!(!reaches(&beta, &alpha, 5) && reaches(&alpha, &beta, 200));
    bed.heal(one_way).unwrap();

    bed.inject(Fault::Network { network: front() }).unwrap();
    assert!(
        !reaches(&alpha, &beta, 5) && !reaches(&gamma, &alpha, 5) && reaches(&alpha_back, &beta_back, 200)
    );
    bed.heal_all().unwrap();

    bed.split(&[&[0], &[1, 2]]).unwrap();
    assert!(
        !reaches(&alpha, &beta, 5) && !reaches(&alpha_back, &beta_back, 5) && reaches(&beta, &gamma, 200)
    );
    bed.heal_all().unwrap();

    bed.inject(Fault::Loss { host: 0, network: front(), percent: 100, direction: Direction::FromHost })
        .unwrap();
    assert!(!reaches(&alpha, &beta, 5) && reaches(&beta, &alpha, 200));
    bed.heal_all().unwrap();
    assert!(reaches(&alpha, &beta, 200) && bed.faults().is_empty());
}

#[test]
fn a_delay_holds_frames_back_and_ends_when_told() {
    let bed = bare();
    let (alpha, beta) = (socket(&bed, 0, 0), socket(&bed, 1, 0));
    let delay = Duration::from_millis(40);
    bed.set_delay(0, "front", delay, Duration::from_millis(10)).unwrap();
    beta.set_nonblocking(false).unwrap();
    beta.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = std::time::Instant::now();
    alpha.send_to(b"hello", beta.local_addr().unwrap()).unwrap();
    beta.recv_from(&mut [0; 8]).unwrap();
    // Only the lower bound is certain: that is what a delay promises.
    assert!(sent.elapsed() >= delay);

    let pair = bed.inject(Fault::Pair { first: 0, second: 1, network: "front".into() }).unwrap();
    beta.set_nonblocking(true).unwrap();
    assert!(!reaches(&alpha, &beta, 20));
    bed.heal(pair).unwrap();
    assert!(reaches(&alpha, &beta, 400));
    bed.set_delay(0, "front", Duration::ZERO, Duration::ZERO).unwrap();
    assert!(reaches(&alpha, &beta, 200));
}

#[test]
fn power_loss_takes_every_process_and_memory_but_not_the_disk() {
    let bed = bare();
    let beta = bed.host(1);
    std::fs::write(beta.data().join("disk"), "stays").unwrap();
    assert!(beta.exec(&["sh", "-c", "echo goes > /run/memory"]).unwrap().success());
    let mut orphan = beta.spawn(Command::new("sh").args(["-c", "setsid sleep 1000 & sleep 1000"])).unwrap();
    let sleepers = || beta.processes().len() >= 4;
    wait_for("the sleepers", PATIENCE, || sleepers().then_some(())).unwrap();
    let before = beta.processes();

    beta.power_off().unwrap();
    orphan.wait().unwrap();
    let gone = || before.iter().all(|id| !std::path::Path::new(&format!("/proc/{id}")).exists());
    wait_for("the burial of every process", PATIENCE, || gone().then_some(())).unwrap();
    assert!(matches!(beta.exec(&["true"]), Err(BedError::State { .. })));
    assert!(matches!(beta.power_off(), Err(BedError::State { .. })));

    beta.power_on().unwrap();
    assert_eq!(std::fs::read_to_string(beta.data().join("disk")).unwrap(), "stays");
    assert!(!beta.exec(&["test", "-e", "/run/memory"]).unwrap().success());
    let (alpha, beta) = (socket(&bed, 0, 0), socket(&bed, 1, 0));
    assert!(reaches(&alpha, &beta, 200), "the host is reachable again under its old hardware address");
}

/// Shell words that freeze a process of their host by the old kind of control groups, which holds back even SIGKILL.
fn freeze_words(scope: &str) -> String {
    format!(
        "D=/sys/fs/cgroup/freezer/steadfast/{scope}/held; mkdir -p $D; setsid sleep 1000 >/dev/null 2>&1 </dev/null & P=$!; \
         echo $P > $D/cgroup.procs && echo FROZEN > $D/freezer.state && until grep -q FROZEN $D/freezer.state; do :; done"
    )
}

fn frozen_group(scope: &str) -> PathBuf {
    PathBuf::from(format!("/sys/fs/cgroup/freezer/steadfast/{scope}"))
}

#[test]
fn power_loss_takes_frozen_processes_and_their_control_groups() {
    let bed = bare();
    let scope = format!("test-{}", bed.id());
    let frozen = bed.host(0).exec(&["sh", "-c", &freeze_words(&scope)]).unwrap();
    assert!(frozen.success() && frozen_group(&scope).is_dir(), "{frozen:?}");
    bed.host(0).power_off().unwrap();
    assert!(!frozen_group(&scope).exists());
}

#[test]
fn what_a_killed_owner_leaves_is_removed_by_the_next_bed() {
    let mut owner = Command::new(BINARY);
    let owner =
        owner.args(["bed", "up", "--bare", "--nodes", "2"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut owner = owner.spawn().unwrap();
    let mut line = String::new();
    // It stays open: the owner would end as soon as nobody listens to it.
    let mut talk = BufReader::new(owner.stdout.take().unwrap());
    talk.read_line(&mut line).unwrap();
    let bed = registered().into_iter().find(|bed| bed.owner == owner.id()).expect("the bed is registered");
    assert!(bed.is_alive() && bed.base.is_dir());

    let scope = format!("test-{}", bed.id);
    let mut exec = Command::new(BINARY);
    exec.args(["bed", "--bed", &bed.id, "exec", "alpha", "--", "sh", "-c", &freeze_words(&scope)]);
    wait_for("the owner's answer", PATIENCE, || exec.status().unwrap().success().then_some(())).unwrap();

    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(!bed.is_alive());
    let hosts = || {
        let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        ids.filter(|id| {
            let line = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
            line.contains("bed-init") && line.contains(&*bed.base.to_string_lossy())
        })
        .count()
    };
    wait_for("the end of the hosts", PATIENCE, || (hosts() == 0).then_some(())).unwrap();
    // Another test's bed may be quicker to clean up; then there is nothing to do here.
    cleanup_stale();
    wait_for("the end of what was left", PATIENCE, || {
        (!bed.base.exists() && !frozen_group(&scope).exists()).then_some(())
    })
    .unwrap();
}

/// Takes a bed of another process down, also when the test fails.
struct Down(String);

impl Drop for Down {
    fn drop(&mut self) {
        // It is down already when the test went well.
        let _ = Command::new(BINARY).args(["bed", "--bed", &self.0, "down"]).stderr(Stdio::null()).output();
    }
}

#[test]
fn a_bed_in_the_background_obeys_and_goes_down() {
    let steadfast = |words: &[&str]| {
        let output = Command::new(BINARY).args(words).stdin(Stdio::null()).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let before: Vec<String> = registered().into_iter().map(|bed| bed.id).collect();
    let (status, text) = steadfast(&["bed", "up", "--bare", "--keep"]);
    assert_eq!(status, Some(0), "{text}");
    let bed =
        registered().into_iter().find(|bed| !before.contains(&bed.id) && text.contains(&bed.id)).unwrap();
    let _down = Down(bed.id.clone());
    let on_bed = |words: &[&str]| steadfast(&[&["bed", "--bed", &bed.id], words].concat());

    assert_eq!(on_bed(&["exec", "beta", "--", "hostname"]), (Some(0), "beta\n".into()));
    assert_eq!(on_bed(&["exec", "beta", "--", "sh", "-c", "exit 7"]).0, Some(7));
    assert_eq!(on_bed(&["kill", "beta"]).0, Some(0));
    let (status, text) = on_bed(&["exec", "beta", "--", "hostname"]);
    assert!(status == Some(1) && text.contains("has no power"), "{text}");
    let (status, text) = on_bed(&["kill", "zeta"]);
    assert!(status == Some(1) && text.contains("alpha, beta, gamma"), "{text}");
    let (status, text) = on_bed(&["cut", "middle"]);
    assert!(status == Some(1) && text.contains("front, back, svc"), "{text}");
    assert_eq!(on_bed(&["down"]).0, Some(0));
    assert!(!bed.base.exists());
}
