//! How commands speak: data on stdout as a table or JSON, talk on stderr, progress bars only on a terminal.
//!
//! Every command prints through [`Output`], so that `-o json` works everywhere and a script never has to filter talk
//! out of data. A closed pipe ends the process quietly.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

/// The form of data on stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Where a command's words go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    format: Format,
}

impl Output {
    /// In this form.
    pub fn new(format: Format) -> Output {
        Output { format }
    }

    /// Whether data goes out as JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a command's data: the value as JSON, or what `people` makes of it.
    pub fn data<T: Serialize>(&self, value: &T, people: impl FnOnce(&T) -> String) {
        let text = match self.format {
            Format::Json => {
                serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("null // {error}"))
            }
            Format::Table => people(value),
        };
        line(&text);
    }

    /// Prints one item of a stream: a line of JSON, or what `people` makes of it.
    pub fn item<T: Serialize>(&self, value: &T, people: impl FnOnce(&T) -> String) {
        let text = match self.format {
            Format::Json => serde_json::to_string(value).unwrap_or_else(|error| format!("null // {error}")),
            Format::Table => people(value),
        };
        line(&text);
    }

    /// Says something to people on stderr.
    pub fn say(&self, text: &str) {
        // Nothing can be told to anybody when stderr is closed.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Says why the command ends without success: sentence, code, where to read more.
    pub fn failure(&self, failure: &Failure) {
        if self.is_json() {
            let body =
                serde_json::json!({"error": {"code": failure.code.to_string(), "message": failure.message}});
            self.say(&body.to_string());
            return;
        }
        self.say(&format!("error: {}", failure.message));
        self.say(&format!(
            "  ({}: {}; more: steadfast explain {})",
            failure.code,
            failure.code.title(),
            failure.code
        ));
    }

    /// Begins to show a piece of work that takes long.
    pub fn progress(&self, what: &str) -> Progress {
        if !io::stderr().is_terminal() {
            self.say(what);
            return Progress { bar: None, last: what.to_owned() };
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress { bar: Some(bar), last: what.to_owned() }
    }
}

/// A piece of work under way; a spinner on a terminal, plain lines in a pipe.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    /// Says how far it is; the same words twice are said once.
    pub fn step(&mut self, what: &str) {
        if self.last == what {
            return;
        }
        what.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => {
                let _ = writeln!(io::stderr(), "{what}");
            }
        }
    }

    /// Ends it with these words.
    pub fn done(self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let _ = writeln!(io::stderr(), "{what}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A plain table without borders, which `cut` and `awk` can read.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    columns(&head.map(str::to_owned), rows.into_iter().map(|row| row.to_vec()))
}

/// The same with as many columns as the head has.
pub fn columns(head: &[String], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(head);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// One line on stdout; ends the process quietly when the reader is gone, as every filter does.
pub fn line(text: &str) {
    let mut stdout = io::stdout().lock();
    if writeln!(stdout, "{text}").and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_have_no_borders() {
        let text = table(["NAME", "NODE"], [["web".into(), "alpha".into()], ["training".into(), "b".into()]]);
        assert_eq!(text, "NAME      NODE\nweb       alpha\ntraining  b");
    }
}
