//! `steadfast shim` (hidden): the process that holds one container and its fence.
//!
//! The agent starts it; people never do. What it does is `steadfast_container::shim`.

use std::ffi::OsString;
use std::process::ExitCode;

/// Hold one container (started by the agent)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the agent hands over.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(super) fn run(args: Args) -> ExitCode {
    steadfast_container::shim::main(args.args)
}
