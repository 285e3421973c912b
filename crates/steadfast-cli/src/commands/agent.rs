//! `steadfast agent`: run a node.

use std::path::PathBuf;

use super::Context;
use crate::codes::Code;
use crate::config;
use crate::failure::Failure;
use crate::traces;

/// Run this machine's node
///
/// Needs `steadfast init` or `steadfast join` first. Containers go on when the agent ends for a short while; beyond
/// the lease they freeze.
#[derive(Debug, clap::Args)]
#[command(after_help = help())]
pub struct Args {
    /// The configuration file [default: /etc/steadfast/steadfast.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Examples, and the example of a configuration that a test loads.
fn help() -> String {
    format!(
        "Examples:
  systemctl start steadfast
  steadfast agent --config node.toml --log debug

A configuration (variables such as STEADFAST_NODE_NAME replace its keys):

{}",
        config::EXAMPLE
    )
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let config = config::load(args.config.as_deref())?;
    let export = config.traces.as_ref().map(|traces| traces::layer(traces, &config.name)).transpose()?;
    crate::logging::start(context.log_format, context.log.as_deref(), export)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::new(Code::DiskFailed, format!("can't start the runtime: {error}")))?;
    let outcome = runtime.block_on(crate::agent::run(config));
    // Blocking calls into runc may still be under way; the shims outlive us in any case.
    runtime.shutdown_background();
    traces::flush();
    outcome
}
