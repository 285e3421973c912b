//! One process per event: the event as JSON on its standard input, and in its environment.
//!
//! It decides how a command is started, and that a process group which outlives its time is killed whole. It must never
//! leave a process behind when an attempt is dropped. Exit status 0 means that the event was dealt with. Output goes
//! where the command's own goes.

use std::ffi::OsString;
use std::io;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStdin, Command};

use super::{Carrier, Refusal};
use crate::events::cloud::CloudEvent;

/// Runs a command for each event.
#[derive(Clone, Debug)]
pub struct Exec {
    program: OsString,
    arguments: Vec<OsString>,
}

impl Exec {
    /// Runs this program with these arguments.
    pub fn new(program: impl Into<OsString>, arguments: impl IntoIterator<Item = OsString>) -> Exec {
        Exec { program: program.into(), arguments: arguments.into_iter().collect() }
    }

    /// Runs a line as a shell would.
    pub fn shell(line: &str) -> Exec {
        Exec::new("/bin/sh", ["-c".into(), line.into()])
    }
}

impl Carrier for Exec {
    async fn carry(&self, event: &CloudEvent) -> Result<(), Refusal> {
        let mut text = serde_json::to_vec(event).map_err(Refusal::never)?;
        text.push(b'\n');
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(environment(event)).stdin(Stdio::piped());
        // A group of its own, so that what the command starts ends with it when it takes too long.
        let mut child =
            command.process_group(0).kill_on_drop(true).spawn().map_err(|error| self.unstarted(&error))?;
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let stdin = child.stdin.take();
        let (written, ended) = tokio::join!(write(stdin, &text), child.wait());
        group.0 = None;
        let status = ended.map_err(Refusal::later)?;
        if !status.success() {
            return Err(Refusal::later(format!("{} ended with {status}", self.program.display())));
        }
        written.map_err(Refusal::later)
    }
}

impl Exec {
    #[allow(clippy::wildcard_enum_match_arm, reason = "the kinds of I/O errors are not ours and many")]
    fn unstarted(&self, error: &io::Error) -> Refusal {
        let reason = format!("{} can't be started: {error}", self.program.display());
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Refusal::never(reason),
            // Among them are too many processes and too little memory, which pass.
            _ => Refusal::later(reason),
        }
    }
}

/// A command need not read what it is given.
async fn write(stdin: Option<ChildStdin>, text: &[u8]) -> io::Result<()> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    match stdin.write_all(text).await {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// `STEADFAST_EVENT_TYPE` and its like, and each field as `STEADFAST_EVENT_DATA_NAME`.
fn environment(event: &CloudEvent) -> Vec<(String, String)> {
    let node = event.cluster_and_node().map(|(_, node)| node).unwrap_or_default();
    let cluster = event.cluster_and_node().map(|(cluster, _)| cluster).unwrap_or_default();
    let attributes = [
        ("ID", event.id.as_str()),
        ("TYPE", event.short_type()),
        ("CLUSTER", cluster),
        ("NODE", node),
        ("TIME", &event.time),
        ("SUBJECT", event.subject.as_deref().unwrap_or_default()),
        ("SEQUENCE", event.sequence.trim_start_matches('0')),
        ("INCARNATION", &event.incarnation),
    ];
    let attributes = attributes.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned()));
    let fields = event.data.iter().map(|(name, value)| {
        let name: String = name
            .chars()
            .map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_uppercase() } else { '_' })
            .collect();
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (format!("DATA_{name}"), text)
    });
    let all = attributes.chain(fields);
    // The kernel ends a variable at a zero byte.
    all.map(|(name, text)| (format!("STEADFAST_EVENT_{name}"), text.replace('\0', ""))).collect()
}

/// Kills a process group when it is dropped before its leader was seen to end.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // It may just have ended.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use steadfast_proto::events::Value;

    use super::super::tests::{PATIENCE, numbered, quick};
    use super::super::{Settings, Sink};
    use super::*;
    use crate::events::Delivery;
    use crate::events::cloud::tests::event;

    fn told() -> CloudEvent {
        let fields = [("percent", Value::Integer(91)), ("path", Value::Text("/var/a\0b".into()))];
        CloudEvent::new("prod", &Delivery::Event(event("disk.usage[path=/var]", 100, &fields)))
    }

    async fn run(line: &str, events: &[CloudEvent], settings: Settings) -> super::super::Report {
        let (sink, _given_up) = Sink::start(Exec::shell(line), settings);
        events.iter().for_each(|event| sink.offer(event.clone()));
        sink.close(PATIENCE).await
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_process_gets_the_event_as_json_and_in_its_environment() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let line = format!("cat > {at}/in; env | grep ^STEADFAST_EVENT_ | LC_ALL=C sort > {at}/env");
        let report = run(&line, &[told()], quick()).await;
        assert_eq!(report.delivered, 1, "{report:?}");
        let read_back: CloudEvent = serde_json::from_str(&read(&folder.path().join("in"))).unwrap();
        assert_eq!(read_back, told());
        let environment = read(&folder.path().join("env"));
        for wanted in [
            "STEADFAST_EVENT_CLUSTER=prod",
            "STEADFAST_EVENT_DATA_PATH=/var/ab",
            "STEADFAST_EVENT_DATA_PERCENT=91",
            "STEADFAST_EVENT_NODE=alpha",
            "STEADFAST_EVENT_SEQUENCE=100",
            "STEADFAST_EVENT_SUBJECT=path=/var",
            "STEADFAST_EVENT_TYPE=disk.usage",
        ] {
            assert!(environment.lines().any(|line| line == wanted), "{wanted}: {environment}");
        }
    }

    #[tokio::test]
    async fn a_command_that_fails_is_run_again_and_then_reported() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        // The first event fails twice; the second always.
        let line = format!(
            "n=$STEADFAST_EVENT_SEQUENCE; echo x >> {at}/$n; [ $n = 1 ] && [ $(wc -l < {at}/1) -gt 2 ] || exit 3"
        );
        let report = run(&line, &[numbered(1), numbered(2)], quick()).await;
        assert_eq!((report.delivered, report.given_up), (1, 1), "{report:?}");
        assert_eq!(read(&folder.path().join("1")).lines().count(), 3);
        assert_eq!(read(&folder.path().join("2")).lines().count(), 4);
        let given_up = &report.latest_given_up[0];
        assert!(given_up.attempts == 4 && given_up.reason.contains("exit status: 3"), "{given_up:?}");
    }

    #[tokio::test]
    async fn a_command_that_reads_nothing_is_no_failure_however_large_the_event() {
        let mut large = told();
        large.data.insert("text".into(), "x".repeat(100_000).into());
        let report = run("exec true", &[large], quick()).await;
        assert_eq!(report.delivered, 1, "{report:?}");
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_not_tried_again() {
        let (sink, mut given_up) = Sink::start(Exec::new("/nowhere/at-all", []), quick());
        sink.offer(numbered(1));
        let report = sink.close(PATIENCE).await;
        assert_eq!((report.given_up, report.retries), (1, 0));
        assert!(given_up.recv().await.unwrap().reason.contains("/nowhere/at-all can't be started"));
    }

    #[tokio::test]
    async fn a_command_that_takes_too_long_is_killed_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let line = format!("sleep 1000 & echo $! > {at}/new; mv {at}/new {at}/pid; wait");
        let settings = Settings { attempt_time_max: Duration::from_secs(2), attempts_max: 1, ..quick() };
        let report = run(&line, &[numbered(1)], settings).await;
        assert_eq!(report.given_up, 1);
        let sleeper: i32 =
            read(&folder.path().join("pid")).trim().parse().expect("the command came that far");
        let started = std::time::Instant::now();
        let is_alive = || {
            // Nobody may have reaped it where this machine's first process does not.
            let status = std::fs::read_to_string(format!("/proc/{sleeper}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
        };
        while is_alive() {
            assert!(started.elapsed() < PATIENCE, "{sleeper} lives on");
            tokio::task::yield_now().await;
        }
    }
}
