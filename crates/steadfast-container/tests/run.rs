//! Containers on one host: they run, log, stop, are limited, outlive the agent and do not outlive their shim.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::{fs, path::Path, time::Duration};

use common::{
    Leases, create, eventually, exec, isolated, output, run_ok, shell, spec, wait_output, wait_over,
    wait_running,
};
use rustix::process::{Pid, Signal, kill_process};
use steadfast_container::{CreateError, Event, Exit, RestoreMode, Root, State, Stream, Volume};

#[test]
fn a_program_runs_logs_and_its_exit_status_is_kept() {
    isolated(|world| {
        let host = world.host("a");
        let script = "echo out; echo err >&2; hostname; cat /run/steadfast/epoch; exit 7";
        let container = create(&host, "c1", 5, &shell("greeter", script));
        assert_eq!(container.status().unwrap().state, State::Starting, "nothing runs before the first lease");
        let _leases = Leases::keep(&container);
        assert_eq!(wait_over(&container), State::Exited(Exit::Code(7)));
        wait_output(&container, "5");
        assert_eq!(output(&container).len(), 4);
        let lines = container.logs().read().unwrap();
        assert!(lines.iter().any(|line| line.text == b"err" && line.stream == Stream::Stderr));
        assert!(lines.iter().any(|line| line.text == b"greeter" && line.stream == Stream::Stdout));
        container.destroy().unwrap();
        assert!(!world.group("a", "c1").exists() && !world.data("a", "c1").exists());
        assert!(host.adopt().unwrap().is_empty());
        host.close().unwrap();
    });
}

#[test]
fn nothing_starts_without_a_lease_and_changes_are_told() {
    isolated(|world| {
        let host = world.host("a");
        let container = create(&host, "c1", 1, &shell("waiter", "echo started; sleep 1000"));
        assert_eq!(container.wait_change(Duration::from_secs(1)).unwrap(), None);
        // A lease that is over, and one for another epoch, start nothing.
        container.renew(steadfast_container::boottime_ns(), 0).unwrap();
        assert_eq!(container.status().unwrap().state, State::Starting);
        let leases = Leases::keep(&container);
        let running = eventually("running", || container.wait_change(Duration::from_secs(1)).unwrap());
        assert!(matches!(running, Event::Running { .. }), "{running:?}");
        leases.pause();
        let frozen = eventually("frozen", || container.wait_change(Duration::from_secs(1)).unwrap());
        assert!(matches!(frozen, Event::Frozen { .. }), "{frozen:?}");
        let events = fs::read_to_string(world.group("a", "c1").join("cgroup.events")).unwrap();
        assert!(events.contains("frozen 1"), "{events}");
        leases.resume();
        assert_eq!(
            eventually("thawed", || container.wait_change(Duration::from_secs(1)).unwrap()),
            Event::Thawed
        );
        container.kill().unwrap();
        let exited = eventually("exited", || container.wait_change(Duration::from_secs(1)).unwrap());
        assert_eq!(exited, Event::Exited(Exit::Signal(9)));
        container.destroy().unwrap();
    });
}

#[test]
fn programs_can_be_run_inside() {
    isolated(|world| {
        let host = world.host("a");
        let mut spec = shell("box", "echo ready; exec sleep 1000");
        spec.environment.insert("COLOUR".into(), "green".into());
        spec.working_directory = Some("/var".into());
        spec.user = Some("nobody".into());
        let container = create(&host, "c1", 1, &spec);
        let _leases = Leases::keep(&container);
        wait_output(&container, "ready");
        assert_eq!(exec(&container, &["cat", "/proc/1/cmdline"]), "sleep\u{0}1000\u{0}");
        let seen = exec(&container, &["sh", "-c", "echo $COLOUR; pwd; id -un; hostname"]);
        assert_eq!(seen, "green\n/var\nnobody\nbox\n");
        container.destroy().unwrap();
    });
}

#[test]
fn the_host_is_not_changed_and_its_secrets_are_hidden() {
    isolated(|world| {
        let host = world.host("a");
        let marker = format!("/etc/steadfast-test-{}", std::process::id());
        let data = host.config().data_dir.display().to_string();
        fs::write(host.config().data_dir.join("secret"), "key").unwrap();
        let container = create(
            &host,
            "c1",
            1,
            &shell("writer", &format!("echo x > {marker}; ls -A {data} | wc -l; echo done; sleep 1000")),
        );
        let _leases = Leases::keep(&container);
        wait_output(&container, "done");
        assert!(!fs::exists(&marker).unwrap());
        assert_eq!(output(&container).first().map(String::as_str), Some("0"));
        container.destroy().unwrap();
    });
}

#[test]
fn limits_hold() {
    isolated(|world| {
        let host = world.host("a");
        let script =
            "import sys\nprint('big', flush=True)\nx = bytearray(300 << 20)\nprint('survived', flush=True)\n";
        let mut spec = spec("hungry", &["/usr/bin/python3", "-c", script]);
        spec.memory_bytes_max = Some(64 << 20);
        spec.cpu_max = Some(0.5);
        let container = create(&host, "c1", 1, &spec);
        let _leases = Leases::keep(&container);
        assert_eq!(wait_over(&container), State::Exited(Exit::Signal(9)));
        wait_output(&container, "big");
        assert!(!output(&container).iter().any(|line| line == "survived"));
        container.destroy().unwrap();
    });
}

#[test]
fn volumes_are_shared_with_the_host() {
    isolated(|world| {
        let host = world.host("a");
        let folder = host.config().data_dir.join("shared");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("in"), "from host").unwrap();
        let mut spec = shell(
            "sharer",
            "cat /data/in; echo back > /data/out; echo no > /fixed/x || echo refused; echo done; sleep 1000",
        );
        spec.volumes = vec![
            Volume { source: folder.clone(), target: "/data".into(), read_only: false },
            Volume { source: folder.clone(), target: "/fixed".into(), read_only: true },
        ];
        let container = create(&host, "c1", 1, &spec);
        let _leases = Leases::keep(&container);
        wait_output(&container, "done");
        wait_output(&container, "refused");
        assert_eq!(fs::read_to_string(folder.join("out")).unwrap(), "back\n");
        container.destroy().unwrap();
        assert!(folder.join("out").exists(), "a volume is not the container's to remove");
    });
}

#[test]
fn stopping_asks_first_and_then_kills() {
    isolated(|world| {
        let host = world.host("a");
        let kind = create(
            &host,
            "kind",
            1,
            &shell("kind", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"),
        );
        let rude = create(
            &host,
            "rude",
            1,
            &shell("rude", "trap '' TERM; echo ready; while :; do sleep 0.05; done"),
        );
        let _leases = [Leases::keep(&kind), Leases::keep(&rude)];
        wait_output(&kind, "ready");
        wait_output(&rude, "ready");
        kind.stop(common::LONG).unwrap();
        rude.stop(Duration::from_millis(100)).unwrap();
        assert_eq!(wait_over(&kind), State::Exited(Exit::Code(3)));
        assert_eq!(wait_over(&rude), State::Exited(Exit::Signal(9)));
        kind.destroy().unwrap();
        rude.destroy().unwrap();
    });
}

#[test]
fn a_new_agent_adopts_what_runs() {
    isolated(|world| {
        let host = world.host("a");
        let container = create(&host, "c1", 9, &shell("keeper", "while :; do echo tick; sleep 0.05; done"));
        let leases = Leases::keep(&container);
        let before = wait_running(&container);
        drop(leases);
        drop(container);
        drop(host);
        let host = world.host("a");
        let adopted = host.adopt().unwrap();
        let [container] = adopted.as_slice() else { panic!("{adopted:?}") };
        let _leases = Leases::keep(container);
        let after = wait_running(container);
        assert_eq!((after.pid, after.epoch, container.spec().name.as_str()), (before.pid, 9, "keeper"));
        let Err(CreateError::Exists { epoch: 9, wanted: 10, .. }) =
            host.create("c1", 10, container.spec(), None, RestoreMode::Keep)
        else {
            panic!("two of one id on one host")
        };
        container.destroy().unwrap();
    });
}

#[test]
fn the_container_dies_with_its_shim() {
    isolated(|world| {
        let host = world.host("a");
        let container = create(&host, "c1", 1, &shell("orphan", "sleep 1000"));
        let _leases = Leases::keep(&container);
        let pid = wait_running(&container).pid.unwrap();
        let shim = container.shim_pid().unwrap();
        kill_process(Pid::from_raw(i32::try_from(shim).unwrap()).unwrap(), Signal::KILL).unwrap();
        eventually("its death", || (!fs::exists(format!("/proc/{pid}/root/etc")).unwrap()).then_some(()));
        assert!(container.status().is_err());
        assert!(host.adopt().unwrap().is_empty(), "what a dead shim left is removed");
        assert!(!world.group("a", "c1").exists() && !world.data("a", "c1").exists());
    });
}

#[test]
fn a_killed_guard_is_replaced() {
    isolated(|world| {
        let host = world.host("a");
        let container = create(&host, "c1", 1, &shell("guarded", "sleep 1000"));
        let _leases = Leases::keep(&container);
        let pid = wait_running(&container).pid.unwrap();
        let shim = container.shim_pid().unwrap();
        let guard = || -> Option<i32> {
            let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).ok()?;
            children.split_whitespace().filter_map(|child| child.parse().ok()).find(|child: &i32| {
                fs::read_to_string(format!("/proc/{child}/cmdline"))
                    .is_ok_and(|line| line.contains("\0guard\0"))
            })
        };
        let first = eventually("a guard", guard);
        kill_process(Pid::from_raw(first).unwrap(), Signal::KILL).unwrap();
        eventually("another guard", || guard().filter(|guard| *guard != first));
        kill_process(Pid::from_raw(i32::try_from(shim).unwrap()).unwrap(), Signal::KILL).unwrap();
        eventually("its death", || (!fs::exists(format!("/proc/{pid}/root/etc")).unwrap()).then_some(()));
        container.destroy().unwrap();
        assert!(!world.group("a", "c1").exists());
    });
}

/// A bundle with a shell and `sleep`, and the libraries they need.
fn bundle(folder: &Path) {
    let rootfs = folder.join("rootfs");
    let copy = |path: &str| {
        let target = rootfs.join(path.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    };
    for program in ["/bin/sh", "/bin/sleep", "/bin/cat"] {
        copy(program);
        let libraries = run_ok("ldd", &[program]);
        libraries.split_whitespace().filter(|word| word.starts_with('/')).for_each(copy);
    }
    let own = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"cwd":"/","user":{"uid":0,"gid":0},
        "env":["COLOUR=blue"],"args":["/bin/sh","-c","echo $COLOUR; echo x > /file; while :; do sleep 0.05; done"]}}"#;
    fs::write(folder.join("config.json"), own).unwrap();
}

#[test]
fn a_bundle_runs_is_imaged_and_is_not_written_to() {
    isolated(|world| {
        let host = world.host("a");
        let folder = host.config().data_dir.join("bundle");
        bundle(&folder);
        let mut spec = spec("bundled", &[]);
        spec.root = Root::Bundle(folder.clone());
        let container = create(&host, "c1", 1, &spec);
        let leases = Leases::keep(&container);
        wait_output(&container, "blue");
        eventually("the file", || exec(&container, &["/bin/cat", "/file"]).contains('x').then_some(()));
        assert!(!folder.join("rootfs/file").exists());
        let image = host.config().image_dir.join("one");
        let capture = container.checkpoint(&image, false).unwrap();
        assert!(
            capture.host_files.iter().any(|file| file.path == folder.join("rootfs/bin/sh")),
            "{capture:?}"
        );
        drop(leases);
        container.destroy().unwrap();
        let container = host.create("c1", 2, &spec, Some(&image), RestoreMode::CloseOutside).unwrap();
        let _leases = Leases::keep(&container);
        wait_running(&container);
        assert_eq!(exec(&container, &["/bin/cat", "/file"]), "x\n");
        container.destroy().unwrap();
        spec.root = Root::Bundle("/no/such/bundle".into());
        let refused = host.create("c2", 1, &spec, None, RestoreMode::Keep).unwrap_err().to_string();
        assert!(refused.contains("/no/such/bundle/config.json"), "{refused}");
    });
}

#[test]
fn a_program_that_cannot_be_started_is_reported() {
    isolated(|world| {
        let host = world.host("a");
        let container = create(&host, "c1", 1, &spec("nothing", &["/no/such/program"]));
        let _leases = Leases::keep(&container);
        let State::Failed { reason } = wait_over(&container) else { panic!("it started") };
        assert!(reason.contains("/no/such/program"), "{reason}");
        container.destroy().unwrap();
        let mut wrong = spec("wrong", &["true"]);
        wrong.user = Some("nosuchuser".into());
        let refused = host.create("c2", 1, &wrong, None, RestoreMode::Keep).unwrap_err().to_string();
        assert!(refused.contains("nosuchuser"), "{refused}");
        assert!(!world.group("a", "c2").exists());
    });
}
