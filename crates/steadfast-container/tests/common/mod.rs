//! What the tests of this crate share: a world of its own for each test, leases kept up in the background, and waiting
//! for conditions with a generous bound.
//!
//! Each test runs again in new mount, network and process name spaces with a tmpfs on /run: whatever happens, its
//! processes, mounts and interfaces end with it. Only cgroups and folders on the disk are left to the guards here.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this one")]

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use steadfast_container::{
    BridgeConfig, Container, Host, HostConfig, RestoreMode, Root, Spec, State, Status, boottime_ns,
};

pub const LONG: Duration = Duration::from_secs(60);
const INSIDE: &str = "STEADFAST_TEST_INSIDE";

/// Runs `body` in a world of its own: this test binary again, for this test alone, in new name spaces.
pub fn isolated(body: impl FnOnce(&World)) {
    let name = thread::current().name().expect("tests run on named threads").to_owned();
    if let Some(scope) = env::var_os(INSIDE) {
        let world = World::new(scope.into_string().unwrap());
        run_ok("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
        run_ok("ip", &["link", "set", "lo", "up"]);
        return body(&world);
    }
    assert!(rustix::process::geteuid().is_root(), "these tests make containers: run them as root");
    let scope = format!("t{}-{}", std::process::id(), name.len());
    // Its guard cleans up also when the inner process is killed.
    let outer = World::new(scope.clone());
    let status = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "private",
        ])
        .arg(env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, &scope)
        .status()
        .expect("unshare is part of util-linux");
    drop(outer);
    assert!(status.success(), "the test failed in its own world: {status}");
}

pub struct World {
    scope: String,
    disk: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        // The groups outlive the name spaces; kill what is behind them, then remove them.
        let unified = unified();
        for host in ["a", "b"] {
            let scope = format!("{}-{host}", self.scope);
            for entry in fs::read_dir(unified.join("steadfast").join(&scope)).into_iter().flatten().flatten()
            {
                fs::write(entry.path().join("cgroup.kill"), "1").ok();
            }
            for top in fs::read_dir("/sys/fs/cgroup")
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .chain(["/sys/fs/cgroup".into()])
            {
                let path = top.join("steadfast").join(&scope);
                let until = Instant::now() + Duration::from_secs(10);
                while path.exists() && !remove_groups(&path) && Instant::now() < until {
                    thread::yield_now();
                }
                fs::remove_dir(top.join("steadfast")).ok();
            }
        }
        fs::remove_dir_all(&self.disk).ok();
    }
}

fn remove_groups(path: &Path) -> bool {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    fs::remove_dir(path).is_ok()
}

pub fn unified() -> PathBuf {
    let hybrid = PathBuf::from("/sys/fs/cgroup/unified");
    if hybrid.exists() { hybrid } else { "/sys/fs/cgroup".into() }
}

impl World {
    fn new(scope: String) -> Self {
        let disk = PathBuf::from("/var/tmp").join(format!("steadfast-{scope}"));
        Self { scope, disk }
    }

    /// One of two hosts of this world, `a` or `b`.
    pub fn config(&self, host: &str, bridge: Option<&str>) -> HostConfig {
        let run = PathBuf::from("/run/sf").join(host);
        HostConfig {
            scope: format!("{}-{host}", self.scope),
            image_dir: run.join("images"),
            run_dir: run,
            data_dir: self.disk.join(host),
            runc: "runc".into(),
            criu: steadfast_container::criu::find::find_criu(None)
                .expect("a CRIU is needed: run `cargo xtask setup`"),
            shim: vec![env!("CARGO_BIN_EXE_steadfast-shim").into()],
            bridge: bridge.map(|name| BridgeConfig { name: name.to_owned(), uplink: None }),
            log_bytes_max: 1 << 20,
            log_files_max: 3,
            hidden: Vec::new(),
        }
    }

    pub fn host(&self, host: &str) -> Host {
        Host::open(self.config(host, None))
            .expect("this machine can run containers: run `cargo xtask setup` first")
    }

    pub fn host_with_bridge(&self, host: &str, bridge: &str) -> Host {
        Host::open(self.config(host, Some(bridge)))
            .expect("this machine can run containers: run `cargo xtask setup` first")
    }

    pub fn group(&self, host: &str, id: &str) -> PathBuf {
        unified().join("steadfast").join(format!("{}-{host}", self.scope)).join(id)
    }

    pub fn data(&self, host: &str, id: &str) -> PathBuf {
        self.disk.join(host).join("c").join(id)
    }
}

pub fn spec(name: &str, command: &[&str]) -> Spec {
    Spec {
        name: name.to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        environment: BTreeMap::new(),
        working_directory: None,
        user: None,
        root: Root::Host,
        volumes: Vec::new(),
        devices: Vec::new(),
        address: None,
        memory_bytes_max: None,
        cpu_max: None,
    }
}

pub fn shell(name: &str, script: &str) -> Spec {
    spec(name, &["/bin/sh", "-c", script])
}

pub fn create(host: &Host, id: &str, epoch: u64, spec: &Spec) -> Container {
    host.create(id, epoch, spec, None, RestoreMode::Keep).expect("the container is created")
}

/// Renews leases of one second every tenth of a second until told to pause or dropped.
pub struct Leases {
    container: Container,
    on: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    last: Arc<Mutex<u64>>,
    thread: Option<JoinHandle<()>>,
}

pub const LEASE_NS: u64 = 1_000_000_000;
pub const DRIFT_NS: u64 = 15_000_000;

impl Leases {
    pub fn keep(container: &Container) -> Self {
        let (on, end, last) =
            (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(0)));
        let thread = thread::spawn({
            let (container, on, end, last) =
                (container.clone(), Arc::clone(&on), Arc::clone(&end), Arc::clone(&last));
            move || {
                while !end.load(Ordering::SeqCst) {
                    let mut last = last.lock().unwrap();
                    if on.load(Ordering::SeqCst) {
                        let deadline = boottime_ns() + LEASE_NS;
                        container.renew(deadline, DRIFT_NS).ok();
                        *last = deadline;
                    }
                    drop(last);
                    thread::park_timeout(Duration::from_millis(100));
                }
            }
        });
        Self { container: container.clone(), on, end, last, thread: Some(thread) }
    }

    /// Stops renewing; returns the deadline of the last lease.
    pub fn pause(&self) -> u64 {
        let last = self.last.lock().unwrap();
        self.on.store(false, Ordering::SeqCst);
        *last
    }

    pub fn resume(&self) {
        self.on.store(true, Ordering::SeqCst);
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            thread.join().ok();
        }
        let _ = &self.container;
    }
}

/// Waits until `condition` gives something.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LONG;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "never happened: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

pub fn wait_state(container: &Container, wanted: impl Fn(&State) -> bool) -> Status {
    let mut last = None;
    let until = Instant::now() + LONG;
    while Instant::now() < until {
        let status = container.status().expect("the shim answers");
        if wanted(&status.state) {
            return status;
        }
        if status.state.is_over() {
            panic!("the container is over: {status:?}");
        }
        last = Some(status);
        thread::park_timeout(Duration::from_millis(5));
    }
    panic!("never in the wanted state: {last:?}");
}

pub fn wait_running(container: &Container) -> Status {
    wait_state(container, |state| *state == State::Running)
}

pub fn wait_over(container: &Container) -> State {
    eventually("the end of the program", || {
        container.status().ok().map(|status| status.state).filter(State::is_over)
    })
}

/// All its output so far, as text, one line per line.
pub fn output(container: &Container) -> Vec<String> {
    let mut reader = container.logs();
    let mut lines = Vec::new();
    loop {
        let next = reader.read().expect("the log can be read");
        if next.is_empty() {
            return lines;
        }
        lines.extend(next.into_iter().map(|line| String::from_utf8_lossy(&line.text).into_owned()));
    }
}

pub fn wait_output(container: &Container, wanted: &str) {
    eventually(&format!("{wanted:?} in the output"), || {
        output(container).iter().any(|line| line.contains(wanted)).then_some(())
    });
}

pub fn run_ok(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program inside and returns what it printed.
pub fn exec(container: &Container, command: &[&str]) -> String {
    // It may speak a moment before runc has said that it runs.
    wait_running(container);
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let null = || std::os::fd::OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let command: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
    let errors = write.try_clone().unwrap();
    let exit = container.exec(&command, [null(), write, errors], false).unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut fs::File::from(read), &mut text).unwrap();
    assert_eq!(exit, steadfast_container::Exit::Code(0), "{command:?}: {text}");
    text
}
