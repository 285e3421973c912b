//! Each local producer of events, fired for real: full file systems, killed processes, scarce memory, links that go down.
//!
//! Needs root. What a test changes lives in name spaces, cgroups and folders of its own, which go also when it panics; the clock
//! is set to the time that it shows. Nothing here asserts how long something takes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use steadfast::events::producers::{ActivateError, Activity, Producers, Report, Reports};
use steadfast_proto::events::{EventType, Fields, Topic, Value};
use tokio::runtime::Runtime;

/// Says to a copy of this program that it has name spaces of its own.
const INSIDE: &str = "STEADFAST_TEST_INSIDE";
const LONG: Duration = Duration::from_secs(120);

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

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {words}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn ip(arguments: &str) {
    run("ip", &arguments.split(' ').collect::<Vec<_>>());
}

fn topic(kind: &str, about: &[(&str, &str)]) -> Topic {
    let mut topic = Topic::from(kind.parse::<EventType>().unwrap());
    topic.about = about.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    topic
}

/// Producers with what they have reported.
struct Node {
    producers: Producers,
    reports: Reports,
    kept: VecDeque<Report>,
}

impl Node {
    fn new() -> Node {
        Node::with_containers(BTreeMap::new())
    }

    fn with_containers(containers: BTreeMap<String, PathBuf>) -> Node {
        let (producers, reports) = Producers::new(move |name| containers.get(name).cloned());
        Node { producers, reports, kept: VecDeque::new() }
    }

    fn activate(&self, kind: &str, about: &[(&str, &str)]) -> Topic {
        let topic = topic(kind, about);
        self.producers.activate(&topic).unwrap();
        topic
    }

    fn refusal(&self, kind: &str, about: &[(&str, &str)]) -> ActivateError {
        self.producers.activate(&topic(kind, about)).unwrap_err()
    }

    async fn report(&mut self, what: &str) -> Report {
        match tokio::time::timeout(LONG, self.reports.next()).await {
            Ok(report) => report.unwrap(),
            Err(_) => panic!("nothing was reported of {what}"),
        }
    }

    /// Waits for an event on a topic that is as wanted, and passes over others of that topic. Those of other topics are kept.
    async fn event(&mut self, of: &Topic, what: &str, is_it: impl Fn(&Fields) -> bool) -> Fields {
        let mut passed = VecDeque::new();
        let mut kept = std::mem::take(&mut self.kept);
        let found = loop {
            let report = match kept.pop_front() {
                Some(report) => report,
                None => self.report(what).await,
            };
            match report {
                Report::Seen { topic, occurrence } if *topic == *of => {
                    assert!(occurrence.at_unix_us > 1_700_000_000_000_000);
                    if is_it(&occurrence.fields) {
                        break occurrence.fields;
                    }
                    println!("passed over: {occurrence:?}");
                }
                other @ (Report::Seen { .. } | Report::Lost { .. } | Report::Ended { .. }) => {
                    passed.push_back(other);
                }
            }
        };
        passed.append(&mut kept);
        self.kept = passed;
        found
    }

    /// Waits until a topic has ended by itself.
    async fn end(&mut self, of: &Topic) {
        let is_end = |report: &Report| matches!(report, Report::Ended { topic, why } if **topic == *of && !why.is_empty());
        let kept = std::mem::take(&mut self.kept);
        if !kept.iter().any(is_end) {
            while !is_end(&self.report("the end").await) {}
        }
    }

    /// Waits until nothing is in use.
    async fn quiet(&self) {
        let quiet = async {
            while self.producers.activity() != Activity::default() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, quiet).await.expect("producers without topics keep something open");
    }
}

fn is(fields: &Fields, name: &str, text: &str) -> bool {
    fields.get(name) == Some(&Value::Text(text.to_owned()))
}

fn number(fields: &Fields, name: &str) -> Option<i64> {
    match fields.get(name) {
        Some(Value::Integer(number)) => Some(*number),
        _ => None,
    }
}

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn start(program: impl AsRef<Path>, arguments: &[&str]) -> Process {
        let mut command = Command::new(program.as_ref());
        Process(command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn id(&self) -> String {
        self.0.id().to_string()
    }

    fn has_id(&self, fields: &Fields) -> bool {
        number(fields, "pid") == Some(self.0.id().into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cgroup of the same name in the trees that are given, until the test ends.
struct Cgroup {
    path: String,
    folders: Vec<PathBuf>,
}

impl Cgroup {
    fn make(name: &str, trees: &[PathBuf]) -> Cgroup {
        let path = format!("/steadfast-test-{}-{name}", std::process::id());
        let folders: Vec<_> = trees.iter().map(|tree| tree.join(&path[1..])).collect();
        folders.iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
        Cgroup { path, folders }
    }

    /// Runs a shell line in it.
    fn start(&self, line: &str) -> Process {
        let enter: Vec<_> = self
            .folders
            .iter()
            .map(|folder| format!("echo $$ > {}/cgroup.procs", folder.display()))
            .collect();
        Process::start("sh", &["-c", &format!("{}; {line}", enter.join("; "))])
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.folders.iter().for_each(|folder| remove_cgroup(folder));
    }
}

/// Removes a cgroup with what is below it and whoever is inside.
fn remove_cgroup(folder: &Path) {
    let below = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir()).for_each(|inner| remove_cgroup(&inner));
    for _ in 0..10_000 {
        let inside = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            let _ = Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status();
        }
        if fs::remove_dir(folder).is_ok() || !folder.exists() {
            return;
        }
        std::thread::yield_now();
    }
}

fn unified() -> PathBuf {
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .map(PathBuf::from)
        .find(|top| top.join("cgroup.controllers").exists())
        .unwrap()
}

/// The tree that limits memory, and the file in it that does.
fn memory() -> (PathBuf, &'static str) {
    let first = PathBuf::from("/sys/fs/cgroup/memory");
    if first.join("memory.limit_in_bytes").exists() {
        return (first, "memory.limit_in_bytes");
    }
    let top = unified();
    // Fails where it is done already.
    let _ = fs::write(top.join("cgroup.subtree_control"), "+memory");
    (top, "memory.max")
}

#[test]
fn nothing_is_open_while_nothing_is_active() {
    isolated("nothing_is_open_while_nothing_is_active", async {
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let mut node = Node::new();
        let before = open();
        assert_eq!(node.producers.activity(), Activity::default());
        let sleeper = Process::start("sleep", &["1000"]);
        let with_child = open();
        let topics = [
            node.activate("clock.step", &[]),
            node.activate("disk.usage", &[]),
            node.activate("disk.usage", &[("path", "/")]),
            node.activate("file.change", &[("path", "/tmp")]),
            node.activate("memory.oom_kill", &[]),
            node.activate("network.interface", &[]),
            node.activate("pressure.cpu", &[]),
            node.activate("process.exit", &[("pid", &sleeper.id())]),
            node.activate("process.exit", &[("command", "sleep")]),
        ];
        assert_eq!(node.producers.active().len(), topics.len());
        let activity = node.producers.activity();
        assert!(activity.tasks == topics.len() && activity.descriptors >= topics.len(), "{activity:?}");
        assert!(open() >= with_child + topics.len());
        // Once more changes nothing.
        topics.iter().for_each(|topic| node.producers.activate(topic).unwrap());
        assert_eq!(node.producers.activity(), activity);
        // A level is told at once, and again when somebody asks.
        node.event(&topics[2], "the present level", |fields| is(fields, "path", "/")).await;
        node.event(&topics[6], "the present level", |fields| fields.contains_key("some10")).await;
        node.producers.reannounce(&topics[2]);
        node.event(&topics[2], "the level once more", |fields| is(fields, "path", "/")).await;
        topics.iter().for_each(|topic| node.producers.deactivate(topic));
        assert_eq!(node.producers.active(), []);
        node.quiet().await;
        drop(sleeper);
        assert_eq!(open(), before);
        // What has ended can be had again.
        let again = node.activate("disk.usage", &[("path", "/")]);
        node.event(&again, "the present level", |fields| number(fields, "percent").is_some()).await;
        drop(node.producers);
        while node.reports.next().await.is_some() {}
    });
}

#[tokio::test]
async fn what_can_not_be_watched_is_refused_with_what_would_be_right() {
    let node = Node::new();
    let said = |kind: &str, about: &[(&str, &str)]| node.refusal(kind, about).to_string();
    assert!(said("disk.full", &[]).contains("disk.usage"));
    assert!(said("user.door", &[]).contains("no operating system"));
    assert!(said("clock.step", &[("path", "/")]).contains("as a whole"));
    assert!(said("disk.usage", &[("device", "sda")]).contains("they can by path"));
    assert!(said("disk.usage", &[("path", "var")]).contains("absolute path"));
    assert!(said("disk.usage", &[("path", "/no/such")]).contains("is not on this node"));
    assert!(said("file.change", &[]).contains("path=/etc/hosts"));
    assert!(said("file.change", &[("path", "/no/such")]).contains("is not on this node"));
    assert!(said("file.change", &[("path", "/tmp/..")]).contains("ends in a name"));
    assert!(said("process.exit", &[]).contains("pid=812"));
    assert!(said("process.exit", &[("pid", "1"), ("command", "init")]).contains("only one"));
    assert!(said("process.exit", &[("pid", "-4")]).contains("as a number"));
    assert!(said("process.exit", &[("pid", "2147483647")]).contains("is not on this node"));
    assert!(said("process.exit", &[("command", "/bin/sh")]).contains("without its folder"));
    assert!(said("process.exit", &[("container", "web")]).contains("container that runs here"));
    assert!(said("network.interface", &[("interface", "an interface of many letters")]).contains("15 bytes"));
    assert!(said("memory.oom_kill", &[("cgroup", "/no/such")]).contains("memory controller"));
    assert!(said("pressure.memory", &[("cgroup", "/no/such")]).contains("is not on this node"));
    assert!(said("unit.state", &[("unit", "nginx")]).contains("nginx.service"));
    if !Path::new("/run/systemd/system").exists() {
        assert!(matches!(node.refusal("unit.state", &[]), ActivateError::Unsupported { .. }));
    }
    assert_eq!(node.producers.activity(), Activity::default());
}

#[test]
fn a_file_system_that_fills_up_is_told_as_it_does() {
    isolated("a_file_system_that_fills_up_is_told_as_it_does", async {
        let folder = tempfile::tempdir().unwrap();
        let (image, at) = (folder.path().join("image"), folder.path().join("at"));
        fs::create_dir(&at).unwrap();
        fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        let (image, path) = (image.to_str().unwrap(), at.to_str().unwrap());
        run("mkfs.ext4", &["-q", "-m", "0", image]);
        let mut node = Node::new();
        let all = node.activate("disk.usage", &[]);
        run("mount", &["-o", "loop", image, path]);
        let first = node.event(&all, "a new mount", |fields| is(fields, "path", path)).await;
        assert!(number(&first, "percent").unwrap() < 50);
        assert!(matches!(&first["device"], Value::Text(device) if device.starts_with("/dev/loop")));
        let one = node.activate("disk.usage", &[("path", path)]);
        node.event(&one, "the present level", |fields| number(fields, "percent").unwrap() < 50).await;
        let mut file = fs::File::create(at.join("data")).unwrap();
        while file.write_all(&[7; 1 << 20]).is_ok() {}
        let full =
            node.event(&one, "a full file system", |fields| number(fields, "percent").unwrap() >= 95).await;
        assert!(number(&full, "used_bytes").unwrap() > number(&full, "size_bytes").unwrap() * 9 / 10);
        node.event(&all, "it among all", |fields| {
            is(fields, "path", path) && number(fields, "percent").unwrap() >= 95
        })
        .await;
        drop(file);
        fs::remove_file(at.join("data")).unwrap();
        node.event(&one, "room", |fields| number(fields, "percent").unwrap() < 50).await;
        run("umount", &[path]);
        // Its place belongs to the file system below now.
        node.event(&one, "another device", |fields| fields["device"] != full["device"]).await;
        fs::remove_dir(&at).unwrap();
        node.end(&one).await;
        assert_eq!(node.producers.active(), [all]);
    });
}

#[tokio::test]
async fn the_end_of_a_process_is_told_with_how_it_ended() {
    let mut node = Node::new();
    // Its parent, this test, takes no note before the event is there.
    let mut killed = Process::start("sleep", &["1000"]);
    // The kernel names it a moment after the call that started it has returned.
    while fs::read_to_string(format!("/proc/{}/comm", killed.id())).unwrap() != "sleep\n" {
        tokio::task::yield_now().await;
    }
    let first = node.activate("process.exit", &[("pid", &killed.id())]);
    killed.0.kill().unwrap();
    let fields = node.event(&first, "a killed process", |fields| killed.has_id(fields)).await;
    assert_eq!((number(&fields, "signal"), number(&fields, "status")), (Some(9), None));
    assert!(is(&fields, "command", "sleep"));
    node.end(&first).await;
    // Here its parent waits and takes note at once.
    let mut child = Process::start("sh", &["-c", "read word; exit 7"]);
    let second = node.activate("process.exit", &[("pid", &child.id())]);
    drop(child.0.stdin.take());
    child.0.wait().unwrap();
    let fields = node.event(&second, "a process that ended", |fields| child.has_id(fields)).await;
    assert_eq!((number(&fields, "signal"), number(&fields, "status")), (None, Some(7)));
    // A thread's id is no process's.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let living = std::thread::spawn(move || {
        tell.send(rustix::thread::gettid()).unwrap();
        let _ = stopped.recv();
    });
    let id = told.recv().unwrap().as_raw_nonzero().to_string();
    assert!(matches!(node.refusal("process.exit", &[("pid", &id)]), ActivateError::NotThere { .. }));
    drop(stop);
    living.join().unwrap();
    node.quiet().await;
}

/// Waits until a process has its own name, not still that of who made it: a parent goes on before that, and who is killed in
/// between was never of the command.
async fn named(pid: i64) {
    while !fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().starts_with("steadfast") {
        tokio::task::yield_now().await;
    }
}

/// Programs of one command begin and end in several ways.
async fn ends_of_a_command() {
    let folder = tempfile::tempdir().unwrap();
    // Longer than the 15 bytes that the kernel keeps of a name.
    let name = format!("steadfast-sleeper-{}", std::process::id());
    let program = folder.path().join(&name);
    fs::copy("/bin/sleep", &program).unwrap();
    let mut early = Process::start(&program, &["1000"]);
    named(early.0.id().into()).await;
    let mut node = Node::new();
    let ends = node.activate("process.exit", &[("command", &name)]);
    early.0.kill().unwrap();
    let fields = node.event(&ends, "one from before", |fields| early.has_id(fields)).await;
    assert_eq!(number(&fields, "signal"), Some(9));
    // Each is one program in its name and one in its shell's; only the first counts.
    let shell = format!("{} 1000 & echo $! >&2; wait; exit 5", program.display());
    let mut outer = Command::new("sh").args(["-c", &shell]).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(outer.stderr.take().unwrap()), &mut line)
        .unwrap();
    let pid: i64 = line.trim().parse().unwrap();
    named(pid).await;
    if env::var_os(INSIDE).is_some() {
        // Where nothing is announced it has to be looked at while it runs.
        let seen = async {
            while node.producers.activity().descriptors < 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, seen).await.unwrap();
    } else {
        // Announcements stand in order: whoever knows of this end knows of the other's beginning.
        let mut later = Process::start(&program, &["1000"]);
        named(later.0.id().into()).await;
        later.0.kill().unwrap();
        node.event(&ends, "one that was killed at once", |fields| later.has_id(fields)).await;
    }
    run("kill", &["-15", &pid.to_string()]);
    let fields = node.event(&ends, "a grandchild", |fields| number(fields, "pid") == Some(pid)).await;
    assert_eq!(number(&fields, "signal"), Some(15));
    assert_eq!(outer.wait().unwrap().code(), Some(5));
    node.producers.deactivate(&ends);
    node.quiet().await;
}

#[tokio::test]
async fn the_ends_of_a_command_s_processes_are_told_as_the_kernel_announces_them() {
    assert!(env::var_os(INSIDE).is_none());
    ends_of_a_command().await;
}

#[test]
fn the_ends_of_a_command_s_processes_are_told_where_the_kernel_announces_none() {
    // In a name space of processes of its own the kernel is silent.
    let name = "the_ends_of_a_command_s_processes_are_told_where_the_kernel_announces_none";
    isolated(name, ends_of_a_command());
}

#[tokio::test]
async fn a_process_ends_with_its_last_thread() {
    let mut node = Node::new();
    let folder = tempfile::tempdir().unwrap();
    let name = format!("sf-thread-{}", std::process::id());
    let program = folder.path().join(&name);
    fs::copy(run("python3", &["-c", "import os, sys; print(os.path.realpath(sys.executable))"]), &program)
        .unwrap();
    let ends = node.activate("process.exit", &[("command", &name)]);
    // The first thread leaves with 0 while the other goes on, and ends all with 6.
    let script = "import ctypes, os, sys, threading
def other():
    sys.stdin.read()
    os._exit(6)
threading.Thread(target=other).start()
ctypes.CDLL(None).pthread_exit(None)";
    let home = run("python3", &["-c", "import sys; print(sys.base_prefix)"]);
    let mut command = Command::new(&program);
    command.args(["-c", script]).env("PYTHONHOME", home).stdin(Stdio::piped());
    let mut child = Process(command.spawn().unwrap());
    let first = format!("/proc/{0}/task/{0}/stat", child.id());
    while !fs::read_to_string(&first).unwrap().contains(") Z ") {
        tokio::task::yield_now().await;
    }
    assert!(child.0.try_wait().unwrap().is_none(), "its first thread is gone, the process is not");
    drop(child.0.stdin.take());
    let fields = node.event(&ends, "the last thread", |fields| child.has_id(fields)).await;
    assert_eq!(number(&fields, "status"), Some(6));
}

#[tokio::test]
async fn the_ends_of_a_container_s_processes_are_told() {
    let cgroup = Cgroup::make("ends", &[unified()]);
    let mut node = Node::with_containers([("web".to_owned(), PathBuf::from(&cgroup.path))].into());
    let ends = node.activate("process.exit", &[("container", "web")]);
    let mut inside = cgroup.start("exec sleep 1000");
    let comm = format!("/proc/{}/comm", inside.id());
    while fs::read_to_string(&comm).unwrap() != "sleep\n" {
        tokio::task::yield_now().await;
    }
    let mut outside = Process::start("sleep", &["1000"]);
    outside.0.kill().unwrap();
    outside.0.wait().unwrap();
    inside.0.kill().unwrap();
    let report = node.report("a process of the container").await;
    let Report::Seen { occurrence, .. } = report else { panic!("{report:?}") };
    assert!(inside.has_id(&occurrence.fields), "only what is inside counts: {occurrence:?}");
    assert!(is(&occurrence.fields, "container", "web") && is(&occurrence.fields, "command", "sleep"));
    node.producers.deactivate(&ends);
}

#[tokio::test]
async fn changes_in_a_folder_are_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::new();
    let changes = node.activate("file.change", &[("path", folder.path().to_str().unwrap())]);
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let change = |name: &'static str, change: &'static str| {
        move |fields: &Fields| is(fields, "name", name) && is(fields, "change", change)
    };
    fs::write(&a, "one").unwrap();
    node.event(&changes, "creation", change("a", "created")).await;
    node.event(&changes, "writing", change("a", "modified")).await;
    fs::set_permissions(&a, fs::Permissions::from_mode(0o600)).unwrap();
    node.event(&changes, "attributes", change("a", "attributes")).await;
    fs::rename(&a, &b).unwrap();
    let fields = node.event(&changes, "a rename", change("b", "moved")).await;
    assert!(is(&fields, "from", "a"));
    fs::remove_file(&b).unwrap();
    node.event(&changes, "removal", change("b", "deleted")).await;
    // The folder itself goes and comes again.
    fs::remove_dir(folder.path()).unwrap();
    let own = folder.path().file_name().unwrap().to_str().unwrap().to_owned();
    node.event(&changes, "the folder's end", |fields| {
        is(fields, "name", &own) && is(fields, "change", "deleted")
    })
    .await;
    fs::create_dir(folder.path()).unwrap();
    node.event(&changes, "the folder again", |fields| {
        is(fields, "name", &own) && is(fields, "change", "created")
    })
    .await;
    fs::write(&a, "two").unwrap();
    node.event(&changes, "what is in it", change("a", "created")).await;
}

#[tokio::test]
async fn a_file_is_followed_when_another_takes_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (file, other) = (folder.path().join("config"), folder.path().join("config.new"));
    fs::write(&file, "one").unwrap();
    let mut node = Node::new();
    let changes = node.activate("file.change", &[("path", file.to_str().unwrap())]);
    let change = |change: &'static str| move |fields: &Fields| is(fields, "change", change);
    fs::write(&file, "two").unwrap();
    node.event(&changes, "writing", change("modified")).await;
    fs::write(&other, "three").unwrap();
    fs::rename(&other, &file).unwrap();
    node.event(&changes, "another file", change("moved")).await;
    fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(b"more").unwrap();
    node.event(&changes, "writing to the other file", change("modified")).await;
    fs::remove_file(&file).unwrap();
    node.event(&changes, "removal", change("deleted")).await;
    fs::write(&file, "four").unwrap();
    node.event(&changes, "a new file", change("created")).await;
    fs::write(&file, "five").unwrap();
    node.event(&changes, "writing to the new file", change("modified")).await;
    // Through another name it is the same file.
    let link = folder.path().join("link");
    fs::hard_link(&file, &link).unwrap();
    fs::write(&link, "six").unwrap();
    node.event(&changes, "writing through another name", change("modified")).await;
    drop(folder);
    node.end(&changes).await;
}

#[tokio::test]
async fn changes_that_found_no_room_are_told_as_lost() {
    // In a folder of its own, so that what others do beside it takes no room.
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("many");
    fs::create_dir(&folder).unwrap();
    let mut node = Node::new();
    let changes = node.activate("file.change", &[("path", folder.to_str().unwrap())]);
    let room: u64 =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    // On this runtime nobody reads while this goes on.
    for number in 0..room + 10 {
        fs::File::create(folder.join(number.to_string())).unwrap();
    }
    // What the kernel kept finds room in the queue or is counted; so is the kernel's word that it did not keep all.
    let (mut seen, mut lost, mut is_kernel_s) = (0, 0, false);
    while seen + lost < room || !is_kernel_s && seen + lost == room {
        match node.report("a loss").await {
            Report::Seen { .. } => seen += 1,
            Report::Lost { topic, count: Some(count) } if *topic == changes => lost += count,
            Report::Lost { topic, count: None } if *topic == changes => is_kernel_s = true,
            report @ (Report::Lost { .. } | Report::Ended { .. }) => panic!("{report:?}"),
        }
    }
    assert!(seen > 0 && lost > 0);
}

#[test]
fn what_happens_to_an_interface_is_told() {
    isolated("what_happens_to_an_interface_is_told", async {
        let mut node = Node::new();
        let all = node.activate("network.interface", &[]);
        let front = node.activate("network.interface", &[("interface", "front")]);
        let change = |interface: &'static str, change: &'static str| {
            move |fields: &Fields| is(fields, "interface", interface) && is(fields, "change", change)
        };
        ip("link add front type veth peer name back");
        node.event(&front, "a new interface", change("front", "added")).await;
        ip("link set front up");
        ip("link set back up");
        node.event(&front, "a link", change("front", "up")).await;
        ip("addr add 10.77.0.1/24 dev front");
        let fields = node.event(&front, "an address", change("front", "address_added")).await;
        assert!(matches!(&fields["address"], Value::Text(address) if address.contains('/')));
        ip("link set back down");
        node.event(&front, "a cable that is out", change("front", "down")).await;
        ip("addr del 10.77.0.1/24 dev front");
        node.event(&front, "an address less", |fields| {
            change("front", "address_removed")(fields) && is(fields, "address", "10.77.0.1/24")
        })
        .await;
        ip("link del front");
        node.event(&front, "its end", change("front", "removed")).await;
        node.event(&all, "the other end's", change("back", "removed")).await;
    });
}

#[tokio::test]
async fn a_clock_that_is_set_is_told() {
    let mut node = Node::new();
    let steps = node.activate("clock.step", &[]);
    // To the time that it shows: that is a step all the same.
    let clock = rustix::time::ClockId::Realtime;
    rustix::time::clock_settime(clock, rustix::time::clock_gettime(clock)).unwrap();
    let fields = node.event(&steps, "a step", |_| true).await;
    assert!(number(&fields, "by_ms").unwrap().abs() < 1_000, "{fields:?}");
    // And once more: the timer still runs.
    rustix::time::clock_settime(clock, rustix::time::clock_gettime(clock)).unwrap();
    node.event(&steps, "a second step", |_| true).await;
}

#[tokio::test]
async fn scarce_memory_in_a_cgroup_is_told() {
    // Not on a file system in memory, whose pages can't be given up and read again.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let file = folder.path().join("data");
    let (memory, limit) = memory();
    let mut trees = vec![unified(), memory];
    trees.dedup();
    let cgroup = Cgroup::make("pressure", &trees);
    fs::write(cgroup.folders.last().unwrap().join(limit), "8388608").unwrap();
    let mut node = Node::new();
    let pressure = node.activate("pressure.memory", &[("cgroup", &cgroup.path)]);
    node.event(&pressure, "the present level", |fields| is(fields, "level", "none")).await;
    // Whoever reads more than fits into memory, again and again, waits for it all the time.
    let file = file.display();
    let line = format!(
        "head -c 67108864 /dev/zero > {file}; for i in 1 2 3; do (while :; do cat {file} > /dev/null; done) & done; wait"
    );
    let _readers = cgroup.start(&line);
    let fields = node.event(&pressure, "pressure", |fields| !is(fields, "level", "none")).await;
    assert!(matches!(fields["some10"], Value::Number(share) if share >= 5.0), "{fields:?}");
    assert!(is(&fields, "cgroup", &cgroup.path));
    drop(cgroup);
    node.end(&pressure).await;
}

#[tokio::test]
async fn busy_processors_in_a_cgroup_are_told_and_that_they_are_free_again() {
    let cgroup = Cgroup::make("cpu", &[unified()]);
    let mut node = Node::new();
    let pressure = node.activate("pressure.cpu", &[("cgroup", &cgroup.path)]);
    let spin = "while :; do :; done";
    let line = format!("for i in 1 2 3 4 5 6; do ({spin}) & done; wait");
    let _spinners = cgroup.start(&line);
    node.event(&pressure, "pressure", |fields| is(fields, "level", "high") || is(fields, "level", "full"))
        .await;
    for pid in fs::read_to_string(cgroup.folders[0].join("cgroup.procs")).unwrap().lines() {
        let _ = Command::new("kill").args(["-9", pid]).status();
    }
    node.event(&pressure, "free processors", |fields| is(fields, "level", "none")).await;
}

#[tokio::test]
async fn a_kill_for_lack_of_memory_is_told() {
    let (memory, limit) = memory();
    let cgroup = Cgroup::make("oom", &[memory]);
    let inner = cgroup.folders[0].join("run");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join(limit), "16777216").unwrap();
    let mut node = Node::with_containers([("web".to_owned(), PathBuf::from(&cgroup.path))].into());
    let inner_path = format!("{}/run", cgroup.path);
    let one = node.activate("memory.oom_kill", &[("cgroup", &inner_path)]);
    let container = node.activate("memory.oom_kill", &[("container", "web")]);
    let machine = node.activate("memory.oom_kill", &[]);
    let line = format!("echo $$ > {}/cgroup.procs; exec tail /dev/zero", inner.display());
    let mut hungry = Process::start("sh", &["-c", &line]);
    let fields = node.event(&one, "a kill", |fields| number(fields, "count") == Some(1)).await;
    assert!(is(&fields, "cgroup", &inner_path));
    let mut again = Process::start("sh", &["-c", &line]);
    hungry.0.wait().unwrap();
    node.event(&one, "a second kill", |fields| number(fields, "count") == Some(1)).await;
    again.0.wait().unwrap();
    let fields =
        node.event(&container, "the container's", |fields| number(fields, "count").unwrap() >= 1).await;
    assert!(is(&fields, "container", "web") && is(&fields, "cgroup", &cgroup.path));
    node.event(&machine, "the machine's", |fields| number(fields, "count").unwrap() >= 1).await;
}

/// Boots systemd as process 1 of name spaces and a cgroup of its own. What it could write to is in memory or read-only there: it
/// would empty this machine's `/tmp` otherwise.
const BOOT: &str = r#"set -e
mount --make-rprivate /
mount --bind "$1" /mnt
mount -t cgroup2 none /sys/fs/cgroup
for folder in /run /tmp /var /etc/systemd /dev/shm; do mount -t tmpfs none $folder; done
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -o remount,bind,ro /
mkdir -p /etc/systemd/system
cp /mnt/*.service /mnt/*.target /etc/systemd/system/
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=probe.target
"#;

#[test]
fn states_of_units_are_told_by_systemd_itself() {
    let name = "states_of_units_are_told_by_systemd_itself";
    if env::var_os(INSIDE).is_some() {
        return Runtime::new().unwrap().block_on(states_of_units());
    }
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let bare = "[Unit]\nDefaultDependencies=no\n";
    write("boot", BOOT);
    write("probe.target", &format!("{bare}Wants=probe.service\n"));
    write("quick.service", &format!("{bare}[Service]\nExecStart=/bin/sleep 1000\n"));
    write("wrong.service", &format!("{bare}[Service]\nType=oneshot\nExecStart=/bin/false\n"));
    let probe = env::current_exe().unwrap();
    write(
        "probe.service",
        &format!(
            "{bare}SuccessAction=exit\nFailureAction=exit\nFailureActionExitStatus=1\n[Service]\nType=oneshot\n\
             Environment={INSIDE}=1\nExecStart={} --exact {name} --nocapture\n\
             StandardOutput=append:/mnt/log\nStandardError=append:/mnt/log\n",
            probe.display()
        ),
    );
    let cgroup = Cgroup::make("systemd", &[unified()]);
    let folder_name = folder.path().display();
    let mut booted = cgroup.start(&format!(
        "exec unshare --mount --pid --fork --kill-child --mount-proc --net --ipc --uts --cgroup sh {folder_name}/boot {folder_name}"
    ));
    let status = booted.0.wait().unwrap();
    let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    assert!(log.contains("1 passed"), "systemd ended with {status}: {log}");
}

async fn states_of_units() {
    let mut node = Node::new();
    let quick = node.activate("unit.state", &[("unit", "quick.service")]);
    let all = node.activate("unit.state", &[]);
    let state = |unit: &'static str, state: &'static str, sub: &'static str| {
        move |fields: &Fields| {
            is(fields, "unit", unit) && is(fields, "state", state) && is(fields, "sub", sub)
        }
    };
    run("systemctl", &["start", "quick.service"]);
    node.event(&quick, "a start", state("quick.service", "active", "running")).await;
    run("systemctl", &["stop", "quick.service"]);
    node.event(&quick, "a stop", state("quick.service", "inactive", "dead")).await;
    assert!(!Command::new("systemctl").args(["start", "wrong.service"]).status().unwrap().success());
    node.event(&all, "a failure", state("wrong.service", "failed", "failed")).await;
    [quick, all].iter().for_each(|topic| node.producers.deactivate(topic));
    node.quiet().await;
}
