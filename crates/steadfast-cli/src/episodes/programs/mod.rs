//! Programs: how one episode of what somebody deployed is run, whatever it is written in.
//!
//! A [`Source`] is checked once, as [`Prepared`], when it is deployed or when an agent learns of it; [`Prepared::run`] then
//! carries an episode out and says what came of it. It must never panic, never block the runtime, never outlast its limits
//! and never leave a process behind; it keeps nothing from one episode to the next but connections and compiled code.
//! Read [`json`] for what programs over HTTP and commands are told and answer, [`interface`] for the functions that
//! WebAssembly modules import.

mod command;
mod draft;
mod http;
pub mod json;
mod wasm;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use steadfast_proto::episode::{Failure, Outcome, Settings, Task};
use steadfast_proto::exchange::Text;

pub use draft::DraftError;
pub use wasm::interface;

use command::Program;
use http::EndPoint;
use wasm::Module;

/// What somebody deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A WebAssembly module, as its bytes or as text.
    Wasm(Vec<u8>),
    /// An end point that is asked by HTTP.
    Http {
        /// `http://HOST:PORT/PATH`, `https://…`, or `unix:/PATH/OF/SOCKET`.
        url: String,
    },
    /// A command that is run once for each episode.
    Command {
        /// The program, by its path or looked up in `PATH`, and its arguments.
        argv: Vec<String>,
    },
}

/// What one episode may use. What exceeds it is ended, and has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long it may take.
    pub time_max: Duration,
    /// How many instructions of WebAssembly it may execute, about: ten seconds' worth on a slow machine.
    pub fuel_max: u64,
    /// How much memory a WebAssembly module may have.
    pub memory_bytes_max: usize,
    /// The largest answer of an end point or a command.
    pub answer_bytes_max: usize,
    /// The largest state.
    pub state_bytes_max: usize,
    /// The largest payload of a message, and the largest answer within an outcome.
    pub payload_bytes_max: usize,
    /// How many messages it may send.
    pub messages_max: usize,
    /// How much it may log.
    pub log_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        // What the machine of episodes would refuse anyway is refused before it takes memory.
        let settings = Settings::default();
        Limits {
            time_max: Duration::from_secs(10),
            fuel_max: 2_000_000_000,
            memory_bytes_max: 64 << 20,
            answer_bytes_max: 16 << 20,
            state_bytes_max: settings.state_bytes_max,
            payload_bytes_max: settings.payload_bytes_max,
            messages_max: settings.messages_max,
            log_bytes_max: 64 << 10,
        }
    }
}

/// Why something can't be deployed. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeployError {
    /// These bytes are no module.
    #[error("this is no WebAssembly module that can be run here: {0}")]
    NotAModule(String),
    /// The module was compiled for another version of the functions that it imports.
    #[error(
        "the module was compiled for host interface version {found}, and this agent offers version {}; compile it for that, or update the agent",
        interface::VERSION
    )]
    HostInterface {
        /// Its version.
        found: String,
    },
    /// It imports what nobody offers.
    #[error(
        "the module imports {import}, which is not offered; a module may import from {}: {}",
        interface::MODULE,
        interface::names()
    )]
    UnknownImport {
        /// What it imports.
        import: String,
    },
    /// It imports something by a name that is right and a type that is not.
    #[error("the module imports {import} as {found}; it is {expected}")]
    ImportType {
        /// What it imports.
        import: String,
        /// As what.
        found: String,
        /// What it is.
        expected: String,
    },
    /// It lacks what an agent looks for, or has it as something else.
    #[error("the module exports no {name}; {what}")]
    NoExport {
        /// What.
        name: &'static str,
        /// What it should be.
        what: &'static str,
    },
    /// It wants more memory to begin with than it may have.
    #[error("the module can not be started: {0}")]
    Start(String),
    /// This is no address of an end point.
    #[error("{given:?} is no address of an end point: {problem}")]
    Url {
        /// What was given.
        given: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A command of no words.
    #[error("the command is empty; give a program and its arguments, such as python3 /srv/order.py")]
    NoCommand,
    /// A word of a command that can't be passed on.
    #[error("the command's argument {0:?} holds a zero byte, which no program can be given")]
    ZeroByte(String),
    /// No such program is on this node.
    #[error(
        "there is no program {program} on this node{}; install it on every node, or give its path",
        if *searched { ", in no folder of PATH" } else { "" }
    )]
    CommandMissing {
        /// What was looked for.
        program: String,
        /// Whether in the folders of `PATH`.
        searched: bool,
    },
    /// It is there and can't be executed.
    #[error("{0} can not be executed; it has to be a file with the permission to (chmod +x)")]
    CommandNotExecutable(String),
}

/// What came of running an episode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its outcome, or why there is none.
    pub result: Result<Outcome, Failure>,
    /// What the program logged: also of an episode that failed.
    pub log: Vec<String>,
}

/// A program that was checked and can be run; clones are the same program.
#[derive(Clone, Debug)]
pub struct Prepared {
    kind: Kind,
    limits: Limits,
}

#[derive(Clone, Debug)]
enum Kind {
    Wasm(Arc<Module>),
    Http(Arc<EndPoint>),
    Command(Arc<Program>),
}

impl Prepared {
    /// Checks a program. Compiles it if it is a module, which takes a second for each few megabytes: not on a runtime's thread.
    ///
    /// # Errors
    /// It can't be run, whatever it is asked.
    pub fn new(source: Source, limits: Limits) -> Result<Prepared, DeployError> {
        let kind = match source {
            Source::Wasm(bytes) => Kind::Wasm(Arc::new(Module::new(&bytes, limits)?)),
            Source::Http { url } => Kind::Http(Arc::new(EndPoint::new(&url)?)),
            Source::Command { argv } => Kind::Command(Arc::new(Program::new(&argv)?)),
        };
        Ok(Prepared { kind, limits })
    }

    /// Runs one episode. Dropping the future ends what it started: a command at once, a module when its time is over.
    ///
    /// No failure is ever [`Failure::lasting`] but one that the program itself declares so. A module that traps would do it
    /// again with the same event unless it asked for the time, yet its failure may come from what a person mends meanwhile
    /// in the state's source, an end point or a command even more so; trying again costs little, and twelve attempts with
    /// back-off end at a person as well.
    pub async fn run(&self, task: &Task) -> Ran {
        match &self.kind {
            Kind::Wasm(module) => {
                let (module, task, limits) = (Arc::clone(module), task.clone(), self.limits);
                let ran = tokio::task::spawn_blocking(move || module.run(task, limits)).await;
                ran.unwrap_or_else(|_| {
                    Ran::failed("the agent failed at running this module; its log says how")
                })
            }
            Kind::Http(end_point) => end_point.run(task, self.limits).await,
            Kind::Command(program) => program.run(task, self.limits).await,
        }
    }
}

impl Ran {
    /// It came to nothing, and may do better another time.
    fn failed(why: impl AsRef<str>) -> Ran {
        Ran { result: Err(failure(why)), log: Vec::new() }
    }
}

fn failure(why: impl AsRef<str>) -> Failure {
    Failure { why: Text::cut(why.as_ref()), lasting: false }
}

/// Now, for the episode, in milliseconds since 1970.
fn now_ms(task: &Task) -> u64 {
    task.now.as_nanos() / 1_000_000
}

/// The sentence about an episode that takes too long.
fn too_long(limits: Limits) -> String {
    format!(
        "the episode took longer than {}, which is the limit",
        humantime::format_duration(limits.time_max)
    )
}
