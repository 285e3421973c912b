//! Commands: real processes of a real shell.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use super::super::{DeployError, json};
use super::*;

/// How long what has to happen at once is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

fn shell(line: &str, limits: Limits) -> Prepared {
    command(&["/bin/sh", "-c", line], limits)
}

fn command(argv: &[&str], limits: Limits) -> Prepared {
    let argv = argv.iter().map(|&word| word.to_owned()).collect();
    prepared(Source::Command { argv }, limits)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Waits until the process whose id a file holds has ended.
async fn has_ended(pid: &Path) {
    let pid: i32 = read(pid).trim().parse().expect("the command came that far");
    let started = Instant::now();
    loop {
        // Nobody may have reaped it where this machine's first process does not.
        let status = read(Path::new(&format!("/proc/{pid}/status")));
        if !status.lines().any(|line| line.starts_with("State:") && !line.contains('Z')) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{pid} lives on");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_command_reads_of_the_episode_and_what_it_writes_is_the_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    let line = format!(
        r#"cat > {at}/in; echo working >&2; echo "{{\"state\": \"$STEADFAST_INSTANCE $STEADFAST_EPISODE\", \"end\": 5, \"log\": [\"done\"]}}""#
    );
    let ran = shell(&line, limits()).run(&task("{}")).await;
    assert_eq!(ran.log, ["working", "done"]);
    let outcome = outcome(ran);
    assert_eq!((outcome.state, outcome.next), (blob("\"order/17 2\""), Next::End(blob("5"))));
    let told: Value = serde_json::from_str(&read(&folder.path().join("in"))).unwrap();
    let expected: Value = serde_json::from_slice(&json::task(&task("{}"))).unwrap();
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_command_is_looked_up_in_the_path_and_need_not_read() {
    let mut task = task("{}");
    task.state = vec![b'x'; 1_000_000].into();
    let ran = command(&["echo", r#"{"end": 1}"#], limits()).run(&task).await;
    assert_eq!(outcome(ran).next, Next::End(blob("1")));
}

#[tokio::test]
async fn each_way_to_go_wrong_fails_with_a_sentence() {
    let limits = Limits { answer_bytes_max: 300_000, state_bytes_max: 1000, ..limits() };
    for (line, expected) in [
        (
            "echo '{\"end\": 1}'; echo no books >&2; exit 3",
            "/bin/sh ended with exit status: 3; 0 would be right; its last words: no books",
        ),
        ("kill -9 $$", "ended with signal: 9 (SIGKILL)"),
        ("true", "it is empty; an object with \"wait\" or \"end\" would be right"),
        ("echo hello", "not what an episode answers: expected value at line 1 column 1; it begins: hello"),
        ("echo '{\"end\": 1, \"x\": 1}'", "unknown field `x`"),
        ("yes", "/bin/sh writes more than 300000 bytes, which is the limit"),
        ("printf '{\"end\": 1, \"state\": \"%02000d\"}' 1", "the state has 2002 bytes; the limit is 1000"),
        (
            "printf '{\"end\": \"%0290000d\"}' 1",
            "the answer of the end has 290002 bytes; the limit is 262144",
        ),
    ] {
        let found = why(&shell(line, limits).run(&task("{}")).await);
        assert!(found.contains(expected), "{line}: {found}");
    }
}

#[tokio::test]
async fn of_what_a_command_says_the_last_is_kept() {
    let ran = shell("seq 1 5000 >&2; exit 1", limits()).run(&task("{}")).await;
    let found = why(&ran);
    assert!(found.contains("4999 5000"), "{found}");
    let kept: usize = ran.log.iter().map(|line| line.len() + 1).sum();
    assert!(kept <= 4096 && ran.log.last().is_some_and(|line| line == "5000"), "{kept}");
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed_with_what_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    let line = format!("echo starting >&2; sleep 1000 & echo $! > {at}/new; mv {at}/new {at}/pid; wait");
    let limits = Limits { time_max: Duration::from_secs(2), ..limits() };
    let ran = shell(&line, limits).run(&task("{}")).await;
    let found = why(&ran);
    assert!(found.contains("longer than 2s, which is the limit; its last words: starting"), "{found}");
    assert_eq!(ran.log, ["starting"]);
    has_ended(&folder.path().join("pid")).await;
}

#[tokio::test]
async fn what_a_command_leaves_behind_ends_with_it_and_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    let line = format!("sleep 1000 & echo $! > {at}/pid; echo '{{\"end\": 1}}'");
    assert_eq!(outcome(shell(&line, limits()).run(&task("{}")).await).next, Next::End(blob("1")));
    has_ended(&folder.path().join("pid")).await;
}

#[tokio::test]
async fn a_command_that_nobody_waits_for_any_more_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    let line = format!("sleep 1000 & echo $! > {at}/new; mv {at}/new {at}/pid; wait");
    let program = shell(&line, limits());
    let pid = folder.path().join("pid");
    let task = task("{}");
    let started = Instant::now();
    tokio::select! {
        ran = program.run(&task) => panic!("{ran:?}"),
        () = async {
            while !pid.exists() {
                assert!(started.elapsed() < PATIENCE, "it did not start");
                tokio::task::yield_now().await;
            }
        } => {}
    }
    has_ended(&pid).await;
}

#[tokio::test]
async fn a_command_that_has_gone_since_it_was_deployed_is_a_failure_that_may_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("order");
    std::fs::copy("/bin/true", &path).unwrap();
    let program = command(&[path.to_str().unwrap()], limits());
    std::fs::remove_file(&path).unwrap();
    let found = why(&program.run(&task("{}")).await);
    assert!(found.contains("order can not be started: No such file"), "{found}");
}

#[test]
fn what_can_not_be_run_is_refused_with_what_would_be_right() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "echo").unwrap();
    let plain = plain.display().to_string();
    for (argv, expected) in [
        (vec![], "the command is empty; give a program and its arguments"),
        (vec![String::new()], "the command is empty"),
        (vec!["true".to_owned(), "a\0b".to_owned()], "holds a zero byte"),
        (vec!["/nowhere/at-all".to_owned()], "there is no program /nowhere/at-all on this node; install it"),
        (
            vec!["no-such-program-here".to_owned()],
            "no program no-such-program-here on this node, in no folder of PATH",
        ),
        (
            vec![plain.clone()],
            "plain can not be executed; it has to be a file with the permission to (chmod +x)",
        ),
        (vec!["/usr".to_owned()], "/usr can not be executed"),
    ] {
        let error =
            Prepared::new(Source::Command { argv: argv.clone() }, limits()).expect_err("it can't be run");
        assert!(!matches!(error, DeployError::NotAModule(_)));
        assert!(error.to_string().contains(expected), "{argv:?}: {error}");
    }
}
