//! Runs a program as a container, images it while it runs, and brings it back under another host's folders; prints how
//! long each step took. Needs root, runc, CRIU and a tmpfs on /dev/shm.
//!
//! `cargo run --release -p steadfast-container --example relocate -- [ROUNDS] PROGRAM [ARGUMENT…]`

use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use steadfast_container::{
    Container, Host, HostConfig, RestoreMode, Root, Spec, State, boottime_ns, criu::find::find_criu, shim,
};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1).peekable();
    // The shim of each container is this program again.
    if arguments.next_if(|word| word == "shim").is_some() {
        return shim::main(arguments);
    }
    let mut words: Vec<_> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    let rounds = words.first().and_then(|word| word.parse().ok());
    if rounds.is_some() {
        words.remove(0);
    }
    match relocate(rounds.unwrap_or(3), words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("relocate: {e}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;

fn relocate(rounds: u32, command: Vec<String>) -> Result<(), Failure> {
    let hosts = [host("a")?, host("b")?];
    let spec = Spec {
        name: "relocated".into(),
        command,
        environment: BTreeMap::new(),
        working_directory: None,
        user: None,
        root: Root::Host,
        volumes: Vec::new(),
        devices: Vec::new(),
        address: None,
        memory_bytes_max: None,
        cpu_max: None,
    };
    let began = Instant::now();
    let [first, _] = &hosts;
    let mut container = first.create("relocate", 1, &spec, None, RestoreMode::Keep)?;
    let running = run(&container);
    println!("created and running after {:?}", began.elapsed());
    running?;
    thread::sleep(Duration::from_secs(1));
    for (round, host) in (0..rounds).zip(hosts.iter().rev().cycle()) {
        let image = host.config().image_dir.join(format!("round-{round}"));
        run(&container)?;
        let capture = container.checkpoint(&image, false)?;
        let bytes: u64 = capture.files.iter().map(|(_, bytes)| bytes).sum();
        let (took, frozen) =
            (Duration::from_nanos(capture.elapsed_ns), Duration::from_nanos(capture.frozen_ns));
        println!(
            "imaged {bytes} bytes in {took:?}, frozen {frozen:?}, {} host files",
            capture.host_files.len()
        );
        container.destroy()?;
        let began = Instant::now();
        container =
            host.create("relocate", u64::from(round) + 2, &spec, Some(&image), RestoreMode::CloseOutside)?;
        let prepared = began.elapsed();
        run(&container)?;
        println!("prepared after {prepared:?}, running elsewhere after {:?}", began.elapsed());
        fs::remove_dir_all(&image)?;
    }
    container.destroy()?;
    for host in hosts {
        host.close()?;
    }
    fs::remove_dir_all(top())?;
    Ok(fs::remove_dir_all(disk())?)
}

/// Gives it a lease of a minute and waits until it runs.
fn run(container: &Container) -> Result<(), Failure> {
    container.renew(boottime_ns() + 60_000_000_000, 0)?;
    loop {
        match container.status()?.state {
            State::Running => return Ok(()),
            State::Starting | State::Frozen => thread::sleep(Duration::from_millis(1)),
            over @ (State::Exited(_) | State::Failed { .. }) => {
                return Err(format!("it is over: {over:?}").into());
            }
        }
    }
}

fn host(name: &str) -> Result<Host, Failure> {
    let run_dir = top().join(name);
    let config = HostConfig {
        scope: format!("relocate-{name}"),
        image_dir: run_dir.join("images"),
        run_dir,
        data_dir: disk().join(name),
        runc: "runc".into(),
        criu: find_criu(None)?,
        shim: vec!["/proc/self/exe".into(), "shim".into()],
        bridge: None,
        log_bytes_max: 1 << 20,
        log_files_max: 2,
        hidden: Vec::new(),
    };
    let host = Host::open(config)?;
    // What an interrupted run left.
    for container in host.adopt()? {
        container.destroy()?;
    }
    Ok(host)
}

fn top() -> PathBuf {
    "/dev/shm/sf-relocate".into()
}

fn disk() -> PathBuf {
    "/var/tmp/steadfast-relocate".into()
}
