//! `steadfast reference` (hidden): the generated reference pages.
//!
//! `docs/reference/{cli.md,config.md,errors.md,events.md,openapi.json,verdicts.md}` are what this prints; a test fails when they are stale and
//! `cargo xtask fix` writes them.

use std::path::PathBuf;

use clap::CommandFactory;

use crate::codes;
use crate::failure::{Failure, disk};

/// Print a generated reference page
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which
    #[arg(value_enum)]
    page: Page,
    /// Write it to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
}

/// A generated page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Page {
    /// Every command's help.
    Cli,
    /// Every key of the configuration.
    Config,
    /// Every error code.
    Errors,
    /// Every type of events.
    Events,
    /// The HTTP API.
    Openapi,
    /// Every class of verdicts.
    Verdicts,
}

impl Page {
    /// All of them.
    pub const ALL: [Page; 6] =
        [Page::Cli, Page::Config, Page::Errors, Page::Events, Page::Openapi, Page::Verdicts];

    /// Its file under `docs/reference/`.
    pub fn file(self) -> &'static str {
        match self {
            Page::Cli => "cli.md",
            Page::Config => "config.md",
            Page::Errors => "errors.md",
            Page::Events => "events.md",
            Page::Openapi => "openapi.json",
            Page::Verdicts => "verdicts.md",
        }
    }

    /// Its whole text.
    pub fn text(self) -> String {
        match self {
            Page::Cli => cli(),
            Page::Config => crate::config::keys::reference(),
            Page::Errors => codes::reference(),
            Page::Events => crate::events::kinds::reference(),
            Page::Openapi => crate::api::openapi::document(),
            Page::Verdicts => crate::verdicts::reference(),
        }
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let text = args.page.text();
    match &args.into {
        Some(path) => std::fs::write(path, text).map_err(|error| disk("write", path, &error)),
        None => {
            crate::output::line(text.trim_end());
            Ok(())
        }
    }
}

fn cli() -> String {
    let mut command = super::Cli::command().term_width(100);
    command.build();
    let mut text = String::from(
        "# Command line\n\nGenerated from `crates/steadfast-cli/src/commands`; `--help` prints the same.\n\n| command | does |\n|---|---|\n",
    );
    let visible: Vec<clap::Command> =
        command.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned().collect();
    for verb in &visible {
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!("| [`{0}`](#{0}) | {about} |\n", verb.get_name()));
    }
    text.push_str("\nEvery command takes these:\n\n");
    let global = [
        ("--socket PATH", "the agent's socket (or STEADFAST_SOCKET)"),
        ("-o, --output table|json", "the form of data on stdout"),
        ("--log-format plain|json", "the form of log lines on stderr"),
        ("--log LEVEL", "how much is logged (or STEADFAST_LOG)"),
    ];
    for (flag, about) in global {
        text.push_str(&format!("- `{flag}`: {about}\n"));
    }
    text.push_str("\n| exit code | means |\n|---|---|\n| 0 | done |\n| 1 | refused or failed |\n| 2 | wrong usage |\n| 3 | not found |\n| 4 | no quorum, or not reachable now |\n| 5 | conflict |\n\n`exec` ends with the command's own exit code.\n");
    for verb in visible {
        let name = verb.get_name().to_owned();
        let mut verb = verb
            .bin_name(format!("steadfast {name}"))
            .mut_args(|arg| if arg.is_global_set() { arg.hide(true) } else { arg });
        let help = verb.render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        text.push_str(&format!("\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end()));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_reference_pages_are_fresh() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference");
        for page in Page::ALL {
            let path = folder.join(page.file());
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(found == page.text(), "{} is stale: run `cargo xtask fix`", path.display());
        }
    }

    #[test]
    fn the_verbs_of_the_design_are_there_and_no_others() {
        let design = [
            "check",
            "agent",
            "init",
            "invite",
            "join",
            "reidentify",
            "keys",
            "catalog",
            "status",
            "nodes",
            "links",
            "views",
            "events",
            "page",
            "tokens",
            "top",
            "replace",
            "leave",
            "drain",
            "operations",
            "device",
            "groups",
            "episode",
            "run",
            "ps",
            "logs",
            "exec",
            "stop",
            "checkpoint",
            "checkpoints",
            "restore",
            "rm",
            "simulate",
            "explain",
            "demo",
            "completions",
        ];
        let command = super::super::Cli::command();
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            assert!(design.contains(&verb.get_name()), "{} is not in the design's table", verb.get_name());
        }
        for verb in design.iter().filter(|verb| **verb != "demo") {
            assert!(command.find_subcommand(verb).is_some(), "{verb} is missing");
        }
    }

    #[test]
    fn every_verb_has_help_with_examples() {
        super::super::Cli::command().debug_assert();
        for verb in super::super::Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            assert!(verb.get_about().is_some(), "{} has no help", verb.get_name());
            let after = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains("Example"), "{} has no examples", verb.get_name());
        }
    }
}
