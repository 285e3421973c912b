//! A command as a program: one process for each episode, which reads JSON and writes JSON.
//!
//! The process is the leader of a group of its own, and the whole group is killed when its leader ends, takes too long, says
//! too much, or when nobody waits for it any more: what an episode starts never outlives it, short of what makes itself a
//! session of its own. Exit status 0 means that what was written is the outcome; standard error is the program's log. What is
//! said in both directions is in [`super::json`].

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use steadfast_proto::episode::Task;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};

use super::{DeployError, Limits, Ran, failure, json, too_long};

/// How much of what it says on standard error is kept: the last of it.
const ERRORS_BYTES: usize = 4 << 10;
/// How much of that the sentence of a failure ends with.
const LAST_WORDS_BYTES: usize = 160;

/// What is run.
#[derive(Debug)]
pub(super) struct Program {
    argv: Vec<String>,
}

/// Why a run has no output.
enum Broken {
    Start(io::Error),
    TooMuch,
    Io(io::Error),
    Status(ExitStatus),
}

impl Program {
    pub(super) fn new(argv: &[String]) -> Result<Program, DeployError> {
        let Some(program) = argv.first().filter(|program| !program.is_empty()) else {
            return Err(DeployError::NoCommand);
        };
        if let Some(word) = argv.iter().find(|word| word.contains('\0')) {
            return Err(DeployError::ZeroByte(word.clone()));
        }
        let folders = std::env::var_os("PATH").unwrap_or_default();
        executable(program, &folders)?;
        Ok(Program { argv: argv.to_vec() })
    }

    pub(super) async fn run(&self, task: &Task, limits: Limits) -> Ran {
        let errors = Mutex::new(Vec::new());
        let ended = tokio::time::timeout(limits.time_max, self.output(task, limits, &errors)).await;
        let errors = errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        let log: Vec<String> = String::from_utf8_lossy(&errors).lines().map(str::to_owned).collect();
        let program = self.argv.first().map_or("", String::as_str);
        let why = match ended {
            Ok(Ok(output)) => match json::answer(&output, task, limits) {
                Ok(ran) => return Ran { log: log.into_iter().chain(ran.log).collect(), ..ran },
                Err(error) => format!("{program}: {error}"),
            },
            Ok(Err(broken)) => broken.sentence(program, limits, &errors),
            Err(_) => format!("{program}: {}{}", too_long(limits), last_words(&errors)),
        };
        Ran { result: Err(failure(why)), log }
    }

    /// What it writes, if it ends well.
    async fn output(&self, task: &Task, limits: Limits, errors: &Mutex<Vec<u8>>) -> Result<Vec<u8>, Broken> {
        let (program, arguments) =
            self.argv.split_first().ok_or_else(|| Broken::Start(io::ErrorKind::NotFound.into()))?;
        let mut child = Command::new(program)
            .args(arguments)
            .env("STEADFAST_INSTANCE", task.name.as_str())
            .env("STEADFAST_EPISODE", task.episode.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(Broken::Start)?;
        // Declared after the child and so dropped before it: the leader is not reaped, and its id means nobody else.
        let group = Group::of(&child).map_err(Broken::Start)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let input = json::task(task);
        let (written, output, kept, ended) = tokio::join!(
            write(stdin, &input),
            read(stdout, limits.answer_bytes_max, &group),
            keep_last(stderr, errors),
            end(&group),
        );
        ended.map_err(Broken::Io)?;
        drop(group);
        let status = child.wait().await.map_err(Broken::Io)?;
        let output = output?;
        if !status.success() {
            return Err(Broken::Status(status));
        }
        written.and(kept).map_err(Broken::Io)?;
        Ok(output)
    }
}

impl Broken {
    fn sentence(&self, program: &str, limits: Limits, errors: &[u8]) -> String {
        match self {
            Broken::Start(error) => format!("{program} can not be started: {error}"),
            Broken::TooMuch => {
                format!("{program} writes more than {} bytes, which is the limit", limits.answer_bytes_max)
            }
            Broken::Io(error) => format!("what {program} says can not be read: {error}"),
            Broken::Status(status) => {
                format!("{program} ended with {status}; 0 would be right{}", last_words(errors))
            }
        }
    }
}

/// The process group of a command, killed whole when this is dropped.
struct Group {
    leader: Pid,
}

impl Group {
    fn of(child: &Child) -> io::Result<Group> {
        let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        id.map(|leader| Group { leader }).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn kill(&self) {
        // All of it may have ended.
        let _ = kill_process_group(self.leader, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for the leader, and ends what it left behind: that would hold the pipes open.
///
/// The leader is left to be reaped, since until then its id is not given to another group. A thread waits, as the runtime
/// would reap it; the kill that follows whatever happens sets it free.
async fn end(group: &Group) -> io::Result<()> {
    let leader = WaitId::Pid(group.leader);
    let wait = move || waitid(leader, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).map(drop);
    let ended = tokio::task::spawn_blocking(wait).await.map_err(io::Error::other)?;
    group.kill();
    Ok(ended?)
}

/// A command need not read what it is given.
async fn write(stdin: Option<ChildStdin>, text: &[u8]) -> io::Result<()> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    match stdin.write_all(text).await {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn read(stdout: Option<impl AsyncRead + Unpin>, max: usize, group: &Group) -> Result<Vec<u8>, Broken> {
    let mut output = Vec::new();
    let Some(stdout) = stdout else { return Ok(output) };
    let room = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    stdout.take(room).read_to_end(&mut output).await.map_err(Broken::Io)?;
    if output.len() > max {
        group.kill();
        return Err(Broken::TooMuch);
    }
    Ok(output)
}

/// The last bytes of what is said, whenever the reading is broken off.
async fn keep_last(stderr: Option<impl AsyncRead + Unpin>, kept: &Mutex<Vec<u8>>) -> io::Result<()> {
    let Some(mut stderr) = stderr else { return Ok(()) };
    let mut piece = [0; 1024];
    loop {
        let count = stderr.read(&mut piece).await?;
        if count == 0 {
            return Ok(());
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(piece.iter().take(count));
        let surplus = kept.len().saturating_sub(ERRORS_BYTES);
        kept.drain(..surplus);
    }
}

/// How a failure's sentence ends: with the end of what the program said.
fn last_words(errors: &[u8]) -> String {
    let from = errors.len().saturating_sub(LAST_WORDS_BYTES);
    let text = String::from_utf8_lossy(errors.get(from..).unwrap_or_default());
    let text = text.trim().replace(char::is_control, " ");
    if text.is_empty() { String::new() } else { format!("; its last words: {text}") }
}

/// Refuses what can't be executed.
fn executable(program: &str, folders: &OsStr) -> Result<(), DeployError> {
    let is_file = |path: &Path| path.metadata().is_ok_and(|found| found.is_file());
    let may_run = |path: &Path| path.metadata().is_ok_and(|found| found.permissions().mode() & 0o111 != 0);
    let searched = !program.contains('/');
    let candidates: Vec<PathBuf> = if searched {
        std::env::split_paths(folders).map(|folder| folder.join(program)).collect()
    } else {
        vec![program.into()]
    };
    if candidates.iter().any(|path| is_file(path) && may_run(path)) {
        return Ok(());
    }
    match candidates.iter().find(|path| path.exists()) {
        Some(path) => Err(DeployError::CommandNotExecutable(path.display().to_string())),
        None => Err(DeployError::CommandMissing { program: program.to_owned(), searched }),
    }
}
