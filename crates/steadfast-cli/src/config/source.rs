//! Reading TOML so that *all* problems are found, each with file, line and key.
//!
//! The raw stage of both the configuration and container specs: every key optional, every value still text, unknown
//! keys answered with the nearest known one. It never decides what a value means: [`super`] and [`crate::spec`] do.

use std::fmt;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use crate::codes::Code;
use crate::failure::{Failure, did_you_mean};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// An environment variable.
    Environment(&'static str),
    /// A flag of the command line.
    Flag(&'static str),
}

/// A value still as text, with the key and place it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Full key, `network[1].address`.
    pub key: String,
    /// The text of the value.
    pub text: String,
    /// Where it stood.
    pub at: Place,
}

impl Given {
    /// A value of a flag; `flag` as it is written, `--every`.
    pub fn flag(flag: &'static str, text: impl Into<String>) -> Given {
        Given { key: flag.to_owned(), text: text.into(), at: Place::Flag(flag) }
    }

    /// A value of an environment variable.
    pub fn environment(name: &'static str, text: impl Into<String>) -> Given {
        Given { key: name.to_owned(), text: text.into(), at: Place::Environment(name) }
    }
}

/// All that was found wrong so far, with the file it is about.
#[derive(Debug, Default)]
pub struct Problems {
    file: String,
    text: String,
    found: Vec<(usize, String)>,
}

impl Problems {
    /// For a file's text; `file` is how people know it.
    pub fn new(file: impl Into<String>, text: impl Into<String>) -> Problems {
        Problems { file: file.into(), text: text.into(), found: Vec::new() }
    }

    /// Notes that something is wrong with this value.
    pub fn refuse(&mut self, given: &Given, message: impl fmt::Display) {
        match given.at {
            Place::Line(line) => self.at_line(line, &given.key, message),
            Place::Environment(name) => {
                self.found.push((0, format!("environment variable {name}: {message}")))
            }
            Place::Flag(flag) => self.found.push((0, format!("{flag}: {message}"))),
        }
    }

    /// Notes that a key is missing or that something is wrong with the whole.
    pub fn missing(&mut self, message: impl fmt::Display) {
        let file = if self.file.is_empty() { String::new() } else { format!("{}: ", self.file) };
        self.found.push((0, format!("{file}{message}")));
    }

    /// Parses a value, or notes why it is wrong.
    pub fn check<T>(&mut self, given: &Given, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match parse(&given.text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.refuse(given, message);
                None
            }
        }
    }

    /// `Ok` when nothing was found, else all of it in one failure, in the order of the lines.
    pub fn finish(mut self, code: Code) -> Result<(), Failure> {
        if self.found.is_empty() {
            return Ok(());
        }
        self.found.sort_by_key(|(line, _)| *line);
        let lines: Vec<String> = self.found.into_iter().map(|(_, message)| message).collect();
        Err(Failure::new(code, lines.join("\n")))
    }

    fn at_line(&mut self, line: usize, key: &str, message: impl fmt::Display) {
        self.found.push((line, format!("{}:{line}: {key}: {message}", self.file)));
    }

    fn line_of(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }
}

/// The text of a file, or which file can't be read and why.
pub fn read(path: &Path, code: Code) -> Result<String, Failure> {
    const FILE_BYTES_MAX: u64 = 1 << 20;
    let size = std::fs::metadata(path).map(|metadata| metadata.len());
    if size.is_ok_and(|size| size > FILE_BYTES_MAX) {
        return Err(Failure::new(code, format!("{} is larger than 1 MiB; name a TOML file", path.display())));
    }
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(code, format!("can't read {}: {error}", path.display())))
}

/// Parses the whole text; syntax errors become problems and the rest is still read.
pub fn parse<'a>(text: &'a str, problems: &mut Problems) -> DeTable<'a> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let line = error.span().map_or(1, |span| problems.line_of(span.start));
        let message = error.message().lines().next().unwrap_or("not TOML").to_owned();
        let message = format!("{}:{line}: {message}", problems.file);
        problems.found.push((line, message));
    }
    table.into_inner()
}

/// One table of the file; remembers which keys were asked for.
#[derive(Debug)]
pub struct Section<'a> {
    table: &'a DeTable<'a>,
    path: String,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// The top of the file.
    pub fn top(table: &'a DeTable<'a>) -> Section<'a> {
        Section { table, path: String::new(), known: Vec::new() }
    }

    /// A string.
    pub fn text(&mut self, key: &'static str, problems: &mut Problems) -> Option<Given> {
        let (value, given) = self.take(key, problems)?;
        if let DeValue::String(text) = value {
            return Some(Given { text: text.to_string(), ..given });
        }
        problems.refuse(&given, format!("{} is not text; write it in quotes, \"...\"", type_of(value)));
        None
    }

    /// A string or a number, as text.
    pub fn scalar(&mut self, key: &'static str, problems: &mut Problems) -> Option<Given> {
        let (value, given) = self.take(key, problems)?;
        let text = match value {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => number.as_str().to_owned(),
            DeValue::Float(number) => number.as_str().to_owned(),
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                problems.refuse(&given, format!("{} is not a single value", type_of(value)));
                return None;
            }
        };
        Some(Given { text, ..given })
    }

    /// A list of strings.
    pub fn texts(&mut self, key: &'static str, problems: &mut Problems) -> Option<Vec<Given>> {
        let (value, given) = self.take(key, problems)?;
        let DeValue::Array(items) = value else {
            problems.refuse(&given, format!("{} is not a list; write [\"...\", \"...\"]", type_of(value)));
            return None;
        };
        let mut texts = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let at = Place::Line(problems.line_of(item.span().start));
            let entry = Given { key: format!("{}[{index}]", given.key), text: String::new(), at };
            let DeValue::String(text) = item.get_ref() else {
                let found = type_of(item.get_ref());
                problems.refuse(&entry, format!("{found} is not text; write it in quotes"));
                continue;
            };
            texts.push(Given { text: text.to_string(), ..entry });
        }
        Some(texts)
    }

    /// One string, or a list of strings.
    pub fn text_or_texts(&mut self, key: &'static str, problems: &mut Problems) -> Vec<Given> {
        match self.table.get(key).map(|value| value.get_ref()) {
            Some(DeValue::Array(_)) => self.texts(key, problems).unwrap_or_default(),
            Some(_) | None => self.text(key, problems).into_iter().collect(),
        }
    }

    /// A table of strings with keys of the author's own choice, such as the environment.
    pub fn map(&mut self, key: &'static str, problems: &mut Problems) -> Vec<(String, Given)> {
        let Some(section) = self.table(key, problems) else { return Vec::new() };
        let mut pairs = Vec::new();
        for (name, value) in section.table {
            let at = Place::Line(problems.line_of(name.span().start));
            let given =
                Given { key: format!("{}.{}", section.path, name.get_ref()), text: String::new(), at };
            let DeValue::String(text) = value.get_ref() else {
                let found = type_of(value.get_ref());
                problems.refuse(&given, format!("{found} is not text; write it in quotes"));
                continue;
            };
            pairs.push((name.get_ref().to_string(), Given { text: text.to_string(), ..given }));
        }
        pairs
    }

    /// A table within this one: `[key]`.
    pub fn table(&mut self, key: &'static str, problems: &mut Problems) -> Option<Section<'a>> {
        self.table_at(key, problems).map(|(section, _)| section)
    }

    /// As [`Section::table`], with the line it begins at.
    pub fn table_at(&mut self, key: &'static str, problems: &mut Problems) -> Option<(Section<'a>, Given)> {
        let (value, given) = self.take(key, problems)?;
        let DeValue::Table(table) = value else {
            problems.refuse(&given, format!("{} is not a table; write [{}]", type_of(value), given.key));
            return None;
        };
        Some((Section { table, path: given.key.clone(), known: Vec::new() }, given))
    }

    /// A list of tables: `[[key]]`, with the line each begins at.
    pub fn tables(&mut self, key: &'static str, problems: &mut Problems) -> Vec<(Section<'a>, Given)> {
        let Some((value, given)) = self.take(key, problems) else { return Vec::new() };
        let DeValue::Array(items) = value else {
            problems.refuse(
                &given,
                format!("{} is not a list of tables; write [[{}]]", type_of(value), given.key),
            );
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", given.key);
            let at = Place::Line(problems.line_of(item.span().start));
            let entry = Given { key: path.clone(), text: String::new(), at };
            let DeValue::Table(table) = item.get_ref() else {
                problems.refuse(&entry, format!("{} is not a table", type_of(item.get_ref())));
                continue;
            };
            sections.push((Section { table, path, known: Vec::new() }, entry));
        }
        sections
    }

    /// A table of tables with names of the author's own choice, `[key.NAME]`; each name stands as the text of its place.
    pub fn named_tables(&mut self, key: &'static str, problems: &mut Problems) -> Vec<(Section<'a>, Given)> {
        let Some(section) = self.table(key, problems) else { return Vec::new() };
        let mut sections = Vec::new();
        for (name, value) in section.table {
            let at = Place::Line(problems.line_of(name.span().start));
            let path = join(&section.path, name.get_ref());
            let given = Given { key: path.clone(), text: name.get_ref().to_string(), at };
            let DeValue::Table(table) = value.get_ref() else {
                let found = type_of(value.get_ref());
                problems.refuse(&given, format!("{found} is not a table; write [{path}]"));
                continue;
            };
            sections.push((Section { table, path, known: Vec::new() }, given));
        }
        sections
    }

    /// To be called last: every key that nobody asked for is unknown.
    pub fn finish(self, problems: &mut Problems) {
        for name in self.table.keys() {
            let word: &str = name.get_ref();
            if self.known.contains(&word) {
                continue;
            }
            let line = problems.line_of(name.span().start);
            let full = join(&self.path, word);
            let hint = did_you_mean(word, self.known.iter().copied());
            let all = if hint.is_empty() { format!("; known here: {}", self.known.join(", ")) } else { hint };
            problems.at_line(line, &full, format!("unknown key{all}"));
        }
    }

    fn take(&mut self, key: &'static str, problems: &Problems) -> Option<(&'a DeValue<'a>, Given)> {
        self.known.push(key);
        let (name, value) = self.table.get_key_value(key)?;
        let at = Place::Line(problems.line_of(name.span().start));
        Some((value.get_ref(), Given { key: join(&self.path, key), text: String::new(), at }))
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
