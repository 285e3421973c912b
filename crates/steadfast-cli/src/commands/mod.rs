//! The command line: one verb per file.
//!
//! Each file holds its verb's arguments, help with examples, and what it does through the API. This one joins them,
//! chooses the runtime, and turns the outcome into an exit code (see [`crate::codes::Exit`]).

pub mod agent;
pub mod catalog;
pub mod check;
pub mod checkpoint;
pub mod checkpoints;
pub mod completions;
pub mod device;
pub mod drain;
pub mod episode;
pub mod events;
pub mod exec;
pub mod explain;
pub mod groups;
pub mod init;
pub mod invite;
pub mod join;
pub mod keys;
pub mod leave;
pub mod links;
pub mod logs;
pub mod nodes;
pub mod operations;
pub mod page;
pub mod ps;
pub mod reference;
pub mod reidentify;
pub mod replace;
pub mod restore;
pub mod rm;
pub mod run;
pub mod shim;
pub mod simulate;
pub mod status;
pub mod stop;
pub mod tokens;
pub mod top;
pub mod views;
pub mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::api::client::Client;
use crate::codes::Code;
use crate::failure::Failure;
use crate::logging::LogFormat;
use crate::output::{Format, Output};

/// Keeps stateful programs running when machines don't.
#[derive(Debug, Parser)]
#[command(name = "steadfast", version, arg_required_else_help = true, disable_help_subcommand = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const AFTER_HELP: &str = "\
A cluster of three, and a program in it:
  alpha$ steadfast init alpha-cluster && systemctl start steadfast
  alpha$ steadfast invite beta                  # prints a one-time token
  beta$  steadfast join TOKEN && systemctl start steadfast
  alpha$ steadfast run --name redis --address 10.0.9.5/24 -- redis-server --save ''
  alpha$ steadfast ps

Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 not found; 4 no quorum or not reachable; 5 conflict.";

/// What every command takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Global {
    /// The agent's socket
    #[arg(
        long,
        global = true,
        env = "STEADFAST_SOCKET",
        value_name = "PATH",
        default_value = "/var/lib/steadfast/steadfast.sock",
        hide_default_value = false
    )]
    pub socket: PathBuf,
    /// The form of data on stdout
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// The form of log lines on stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Plain)]
    pub log_format: LogFormat,
    /// How much is logged, such as "debug" or "info,steadfast=trace"
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log: Option<String>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "a doc line here would replace the verb's own help")]
#[allow(clippy::large_enum_variant, reason = "one value per process")]
pub enum Verb {
    Check(check::Args),
    Agent(agent::Args),
    Init(init::Args),
    Invite(invite::Args),
    Join(join::Args),
    Reidentify(reidentify::Args),
    Keys(keys::Args),
    Catalog(catalog::Args),
    Status(status::Args),
    Nodes(nodes::Args),
    Links(links::Args),
    Views(views::Args),
    Events(events::Args),
    Page(page::Args),
    Tokens(tokens::Args),
    Top(top::Args),
    Device(device::Args),
    Groups(groups::Args),
    Episode(episode::Args),
    Replace(replace::Args),
    Leave(leave::Args),
    Drain(drain::Args),
    Operations(operations::Args),
    Run(run::Args),
    Ps(ps::Args),
    Logs(logs::Args),
    Exec(exec::Args),
    Stop(stop::Args),
    Checkpoint(checkpoint::Args),
    Checkpoints(checkpoints::Args),
    Restore(restore::Args),
    Rm(rm::Args),
    Simulate(simulate::Args),
    Explain(explain::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Reference(reference::Args),
    #[command(hide = true)]
    Shim(shim::Args),
    Demo(crate::demo::Args),
    #[command(hide = true)]
    Bed(crate::bed::command::Args),
    #[command(hide = true)]
    BedInit(crate::bed::init::Args),
}

/// What a command works with.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where its words go.
    pub output: Output,
    /// The agent.
    pub client: Client,
    /// The form of log lines.
    pub log_format: LogFormat,
    /// How much is logged.
    pub log: Option<String>,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.global.output);
    match dispatch(cli, output) {
        Ok(code) => code,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.code.exit().number())
        }
    }
}

fn dispatch(cli: Cli, output: Output) -> Result<ExitCode, Failure> {
    let context = Context {
        output,
        client: Client::new(cli.global.socket),
        log_format: cli.global.log_format,
        log: cli.global.log,
    };
    let context = &context;
    let done = |()| ExitCode::SUCCESS;
    match cli.verb {
        // The shim stays free of threads and runtimes of ours.
        Verb::Shim(args) => Ok(shim::run(args)),
        Verb::BedInit(args) => Ok(crate::bed::init::run(&args)),
        Verb::Bed(args) => crate::bed::command::run(args, context),
        Verb::Demo(args) => crate::demo::run(&args, context).map(done),
        Verb::Agent(args) => agent::run(&args, context).map(done),
        Verb::Check(args) => check::run(&args, context),
        Verb::Init(args) => init::run(&args, context).map(done),
        Verb::Reidentify(args) => reidentify::run(&args, context).map(done),
        Verb::Keys(args) => block_on(keys::run(args, context))?.map(done),
        Verb::Catalog(args) => block_on(catalog::run(args, context))?.map(done),
        Verb::Simulate(args) => simulate::run(&args, context).map(done),
        Verb::Explain(args) => explain::run(&args, context).map(done),
        Verb::Completions(args) => completions::run(&args).map(done),
        Verb::Reference(args) => reference::run(&args).map(done),
        Verb::Join(args) => block_on(join::run(args, context))?.map(done),
        Verb::Invite(args) => block_on(invite::run(args, context))?.map(done),
        Verb::Status(args) => block_on(status::run(args, context))?.map(done),
        Verb::Nodes(args) => block_on(nodes::run(args, context))?.map(done),
        Verb::Links(args) => block_on(links::run(args, context))?.map(done),
        Verb::Operations(args) => block_on(operations::run(args, context))?.map(done),
        Verb::Views(args) => block_on(views::run(args, context))?.map(done),
        Verb::Events(args) => block_on(events::run(args, context))?.map(done),
        Verb::Page(args) => block_on(page::run(args, context))?.map(done),
        Verb::Tokens(args) => block_on(tokens::run(args, context))?.map(done),
        Verb::Top(args) => block_on(top::run(args, context))?.map(done),
        Verb::Device(args) => device::run(args, context).map(done),
        Verb::Groups(args) => block_on(groups::run(args, context))?.map(done),
        Verb::Episode(args) => block_on(episode::run(args, context))?.map(done),
        Verb::Replace(args) => block_on(replace::run(args, context))?.map(done),
        Verb::Leave(args) => block_on(leave::run(args, context))?.map(done),
        Verb::Drain(args) => block_on(drain::run(args, context))?.map(done),
        Verb::Run(args) => block_on(run::run(args, context))?.map(done),
        Verb::Ps(args) => block_on(ps::run(args, context))?.map(done),
        Verb::Logs(args) => block_on(logs::run(args, context))?.map(done),
        Verb::Exec(args) => block_on(exec::run(args, context))?,
        Verb::Stop(args) => block_on(stop::run(args, context))?.map(done),
        Verb::Checkpoint(args) => block_on(checkpoint::run(args, context))?.map(done),
        Verb::Checkpoints(args) => block_on(checkpoints::run(args, context))?.map(done),
        Verb::Restore(args) => block_on(restore::run(args, context))?.map(done),
        Verb::Rm(args) => block_on(rm::run(args, context))?.map(done),
    }
}

/// Runs a command's future on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::new(Code::DiskFailed, format!("can't start the runtime: {error}")))?;
    let outcome = runtime.block_on(future);
    // A read of standard input may wait for ever on a thread of its own.
    runtime.shutdown_background();
    Ok(outcome)
}
