//! An outcome while a program says it, piece by piece: each piece is checked when it is said, whichever way it came.
//!
//! It decides which pieces make an outcome and in which words the others are refused. It must never keep more than the
//! limits allow, since a program may say one thing for ever. `json.rs` and `wasm/host.rs` fill it.

use std::time::Duration;

use steadfast_proto::episode::{Match, Next, Outcome, Outgoing, Task, Wait};
use steadfast_proto::exchange::{Blob, Name, NameError, TEXT_BYTES_MAX, Text};

use super::Limits;
use crate::episodes::filter;

/// How many alternatives one wait has at most.
const ALTERNATIVES_MAX: usize = 64;
/// How many characters of what was said an error shows.
const SHOWN_CHARS: usize = 80;

/// What of an outcome can't be. Nothing of the episode is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// No instance is called so.
    #[error("{of} is no name: {error}")]
    Name {
        /// Whose name it should be.
        of: &'static str,
        /// What is wrong.
        error: NameError,
    },
    /// A message without a kind.
    #[error("a message to {0} has no kind; give it one, such as \"charge\"")]
    NoKind(Text),
    /// A kind or the like is too long.
    #[error("{what} has {bytes} bytes; the limit is {TEXT_BYTES_MAX}")]
    LongText {
        /// What.
        what: &'static str,
        /// How long it is.
        bytes: usize,
    },
    /// The filter of a wait can't be read.
    #[error("the filter {filter:?} of a wait can not be read: at byte {at}, {wrong}")]
    Filter {
        /// It.
        filter: String,
        /// Where it is wrong.
        at: usize,
        /// What is wrong.
        wrong: String,
    },
    /// The state, a payload or an answer is too large.
    #[error("{what} has {bytes} bytes; the limit is {max}")]
    Size {
        /// Which of them.
        what: &'static str,
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        max: usize,
    },
    /// Too many messages, alternatives of a wait, or bytes of the log.
    #[error("the episode has more than {max} {what}, which is the limit")]
    Many {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        max: usize,
    },
    /// A child that can't be begun.
    #[error("the episode begins {0}, which is no instance; send to it without beginning it")]
    Begins(Name),
    /// It both ends and waits.
    #[error("the episode says that it ends and also what it waits for; say one of the two")]
    Both,
    /// It neither ends nor waits.
    #[error("the episode says neither that it ends nor what it waits for; say one of the two")]
    Neither,
}

/// An outcome of which not all has been said.
#[derive(Debug, Default)]
pub(super) struct Draft {
    limits: Limits,
    state: Option<Blob>,
    messages: Vec<Outgoing>,
    any: Vec<Match>,
    within: Option<Duration>,
    end: Option<Blob>,
    answer: Option<Blob>,
    log: Vec<String>,
    log_bytes: usize,
}

/// A message before it is checked.
#[derive(Debug)]
pub(super) struct Said<'a> {
    pub(super) to: &'a str,
    pub(super) kind: &'a str,
    pub(super) correlation: Option<&'a str>,
    pub(super) payload: &'a [u8],
    pub(super) begins: bool,
    pub(super) within: Option<Duration>,
}

/// An alternative of a wait before it is checked.
#[derive(Debug, Default)]
pub(super) struct Wanted<'a> {
    pub(super) kind: Option<&'a str>,
    pub(super) source: Option<&'a str>,
    pub(super) correlation: Option<&'a str>,
    pub(super) filter: Option<&'a str>,
}

impl Draft {
    pub(super) fn new(limits: Limits) -> Draft {
        Draft { limits, ..Draft::default() }
    }

    /// What the next episode finds; the last that is said counts.
    pub(super) fn state(&mut self, state: &[u8]) -> Result<(), DraftError> {
        self.state = Some(sized("the state", state, self.limits.state_bytes_max)?);
        Ok(())
    }

    pub(super) fn send(&mut self, said: &Said<'_>) -> Result<(), DraftError> {
        let to = name("the receiver of a message", said.to)?;
        if said.kind.is_empty() {
            return Err(DraftError::NoKind(to.as_str().into()));
        }
        if said.begins && (to.is_outside() || to.is_effect()) {
            return Err(DraftError::Begins(to));
        }
        let max = self.limits.messages_max;
        if self.messages.len() >= max {
            return Err(DraftError::Many { what: "messages", max });
        }
        let kind = text("the kind of a message", said.kind)?;
        let correlation =
            said.correlation.map(|given| text("the correlation of a message", given)).transpose()?;
        let payload = sized("the payload of a message", said.payload, self.limits.payload_bytes_max)?;
        self.messages.push(Outgoing {
            to,
            kind,
            correlation,
            payload,
            begins: said.begins,
            within: said.within,
        });
        Ok(())
    }

    /// One more alternative.
    pub(super) fn wait(&mut self, wanted: &Wanted<'_>) -> Result<(), DraftError> {
        if self.any.len() >= ALTERNATIVES_MAX {
            return Err(DraftError::Many { what: "alternatives of its wait", max: ALTERNATIVES_MAX });
        }
        if let Some(given) = wanted.filter {
            filter::check(given).map_err(|error| DraftError::Filter {
                filter: given.chars().take(SHOWN_CHARS).collect(),
                at: error.at(),
                wrong: error.wrong().to_owned(),
            })?;
        }
        let optional = |what, given: Option<&str>| given.map(|given| text(what, given)).transpose();
        self.any.push(Match {
            kind: optional("the kind of a wait", wanted.kind)?,
            source: wanted.source.map(|given| name("the source of a wait", given)).transpose()?,
            correlation: optional("the correlation of a wait", wanted.correlation)?,
            filter: optional("the filter of a wait", wanted.filter)?,
        });
        Ok(())
    }

    /// How long the wait lasts at most; the last that is said counts.
    pub(super) fn within(&mut self, within: Duration) {
        self.within = Some(within);
    }

    pub(super) fn end(&mut self, answer: &[u8]) -> Result<(), DraftError> {
        self.end = Some(sized("the answer of the end", answer, self.limits.payload_bytes_max)?);
        Ok(())
    }

    pub(super) fn answer(&mut self, answer: &[u8]) -> Result<(), DraftError> {
        self.answer = Some(sized("the answer", answer, self.limits.payload_bytes_max)?);
        Ok(())
    }

    pub(super) fn log(&mut self, line: &str) -> Result<(), DraftError> {
        // Empty lines cost memory, too.
        self.log_bytes = self.log_bytes.saturating_add(line.len()).saturating_add(1);
        let max = self.limits.log_bytes_max;
        if self.log_bytes > max {
            return Err(DraftError::Many { what: "bytes of log", max });
        }
        self.log.push(line.to_owned());
        Ok(())
    }

    /// What was logged, whatever comes of the rest.
    pub(super) fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// The outcome, if it is one. A state of which nothing was said stays as it was.
    pub(super) fn finish(self, task: &Task) -> Result<Outcome, DraftError> {
        let waits = !self.any.is_empty() || self.within.is_some();
        let next = match (self.end, waits) {
            (Some(_), true) => return Err(DraftError::Both),
            (None, false) => return Err(DraftError::Neither),
            (Some(answer), false) => Next::End(answer),
            (None, true) => {
                Next::Wait(Wait { any: self.any, deadline: self.within.map(|within| task.now + within) })
            }
        };
        let state = self.state.unwrap_or_else(|| task.state.clone());
        Ok(Outcome { state, messages: self.messages, answer: self.answer, next })
    }
}

fn name(of: &'static str, given: &str) -> Result<Name, DraftError> {
    if given.len() > TEXT_BYTES_MAX {
        return Err(DraftError::LongText { what: of, bytes: given.len() });
    }
    Name::parse(given).map_err(|error| DraftError::Name { of, error })
}

fn text(what: &'static str, given: &str) -> Result<Text, DraftError> {
    // `Text` cuts what is longer: a kind that nobody waits for.
    if given.len() > TEXT_BYTES_MAX {
        return Err(DraftError::LongText { what, bytes: given.len() });
    }
    Ok(given.into())
}

fn sized(what: &'static str, given: &[u8], max: usize) -> Result<Blob, DraftError> {
    if given.len() > max {
        return Err(DraftError::Size { what, bytes: given.len(), max });
    }
    Ok(given.into())
}
