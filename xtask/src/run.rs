//! Starts other programs, and says in one sentence which command failed and how to repeat it.
//!
//! Must never hand on the variables that cargo gave to xtask itself: build scripts of some crates watch them and would
//! build again on each change of door. Every other module starts programs through this one.

use anyhow::{Context, Result, bail};
use std::{
    env,
    ffi::OsStr,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A command that can print itself in a form that a shell takes.
#[derive(Debug)]
pub(crate) struct Run {
    command: Command,
    shown: String,
}

impl Run {
    /// A program by name or path, to be run in the repository.
    pub(crate) fn new(program: &str) -> Self {
        let mut command = Command::new(program);
        command.current_dir(repository());
        for (name, _) in env::vars_os() {
            if given_by_cargo(&name) {
                command.env_remove(&name);
            }
        }
        Self { command, shown: quoted(program) }
    }

    /// Cargo, with its arguments in one string of words.
    pub(crate) fn cargo(words: &str) -> Self {
        Self::new("cargo").words(words)
    }

    /// More arguments, in one string of words.
    pub(crate) fn words(self, words: &str) -> Self {
        self.args(words.split_whitespace())
    }

    /// More arguments.
    pub(crate) fn args<T: AsRef<str>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        for argument in arguments {
            self.command.arg(argument.as_ref());
            self.shown.push(' ');
            self.shown.push_str(&quoted(argument.as_ref()));
        }
        self
    }

    /// In another folder than the repository.
    pub(crate) fn inside(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// A variable of its environment, shown as part of the command.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value.as_ref());
        self.shown = format!("{name}={} {}", quoted(&value.as_ref().to_string_lossy()), self.shown);
        self
    }

    /// A variable that need not be repeated by hand.
    pub(crate) fn env_quietly(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// A shorter name for a command that nobody would type whole.
    pub(crate) fn known_as(mut self, name: String) -> Self {
        self.shown = name;
        self
    }

    /// The command as one would type it.
    #[cfg(test)]
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Runs it with our own input and output; a failure names the command.
    pub(crate) fn perform(mut self) -> Result<()> {
        let status = self.command.status().with_context(|| format!("could not start `{}`", self.shown))?;
        if !status.success() {
            bail!("`{}` failed ({status}); repeat it by hand to see more", self.shown);
        }
        Ok(())
    }

    /// Runs it in silence and returns what it printed; a failure names the command and its last words.
    pub(crate) fn read(mut self) -> Result<String> {
        let output = self
            .command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("could not start `{}`", self.shown))?;
        if !output.status.success() {
            let complaints = String::from_utf8_lossy(&output.stderr);
            // Apt ends with a summary; which address it could not reach stands before it.
            let unreachable = complaints.lines().rfind(|line| line.contains("Failed to fetch"));
            let last =
                unreachable.or_else(|| complaints.trim().lines().last()).unwrap_or("it printed no reason");
            bail!("`{}` failed ({}): {}", self.shown, output.status, last.trim());
        }
        String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no UTF-8", self.shown))
    }

    /// Whether it runs and succeeds, in silence.
    pub(crate) fn succeeds(mut self) -> bool {
        let status = self.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }
}

/// The top folder of the repository.
pub(crate) fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies inside the repository").to_owned()
}

fn given_by_cargo(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|prefix| name.starts_with(prefix))
        || ["CARGO", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"].contains(&name.as_ref())
}

fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    let mut shown = String::from("'");
    for character in word.chars() {
        match character {
            '\'' => shown.push_str("'\\''"),
            other => write!(shown, "{other}").expect("a String takes every character"),
        }
    }
    shown.push('\'');
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_would_take_it() {
        let run = Run::cargo("nextest run").args(["a b", "it's"]).env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(run.shown(), r"RUSTDOCFLAGS='-D warnings' cargo nextest run 'a b' 'it'\''s'");
    }

    #[test]
    fn a_failure_names_its_command_and_its_last_words() {
        let refusal = Run::new("sh").args(["-c", "echo wrong >&2; exit 3"]).read().unwrap_err().to_string();
        assert_eq!(refusal, "`sh -c 'echo wrong >&2; exit 3'` failed (exit status: 3): wrong");
    }
}
