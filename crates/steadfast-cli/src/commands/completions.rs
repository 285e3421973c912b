//! `steadfast completions`: completion scripts for shells.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::failure::Failure;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast completions bash > /etc/bash_completion.d/steadfast\n  steadfast completions zsh > ~/.zfunc/_steadfast"
)]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "steadfast", &mut script);
    crate::output::line(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}
