//! Why a topic can't be watched on this node, in sentences that say what would be right.
//!
//! It must never be used for what goes wrong later: that is `Report::Ended`. Read next: `post`.

use std::io;

use steadfast_proto::events::EventType;

use super::{KINDS, TOPICS_MAX};

/// A topic can't be watched on this node. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The operating system tells nothing of that kind; perhaps the cluster or a user does.
    #[error("no operating system reports events of type {kind}; a node watches for {known}")]
    UnknownType {
        /// The type asked for.
        kind: EventType,
        /// All that there are.
        known: String,
    },
    /// The topic fixes a field that such events can't be chosen by. Leave it out, or filter what arrives.
    #[error("events of type {kind} can't be watched by {field}; {allowed}")]
    UnknownField {
        /// The type.
        kind: EventType,
        /// The field.
        field: String,
        /// What can be fixed instead.
        allowed: String,
    },
    /// The topic leaves open what to watch. Fix the field that is named.
    #[error("{kind} needs to know what to watch: {wanted}")]
    Open {
        /// The type.
        kind: EventType,
        /// What to write.
        wanted: &'static str,
    },
    /// A field's text is not of the form that it needs.
    #[error("{field}={given:?} can't be watched: {wanted}")]
    Malformed {
        /// The field.
        field: &'static str,
        /// Its text.
        given: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// What is to be watched is not on this node now. It may be later: try again then.
    #[error("{field}={given:?} is not on this node: {wanted}")]
    NotThere {
        /// The field.
        field: &'static str,
        /// Its text.
        given: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// This node's operating system can't tell such a thing at all.
    #[error("this node can't watch for {kind}: {why}")]
    Unsupported {
        /// The type.
        kind: EventType,
        /// What is missing, and what would help.
        why: &'static str,
    },
    /// The operating system refuses.
    #[error("{what} can't be {action}: {source}{advice}")]
    Refused {
        /// A path, or a part of the operating system.
        what: String,
        /// What was tried.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
        /// What would help, with a separator before it; or nothing.
        advice: &'static str,
    },
    /// The node watches as much as it may.
    #[error("{TOPICS_MAX} topics are active on this node, which is the limit; end a registration first")]
    TooMany,
}

impl ActivateError {
    pub(super) fn unknown_type(kind: &EventType) -> ActivateError {
        let known: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        ActivateError::UnknownType { kind: kind.clone(), known: known.join(", ") }
    }

    pub(super) fn unknown_field(kind: &EventType, field: &str, allowed: &[&'static str]) -> ActivateError {
        let allowed = match allowed {
            [] => "they can only be watched as a whole".to_owned(),
            some => format!("they can by {}", some.join(", ")),
        };
        ActivateError::UnknownField { kind: kind.clone(), field: field.chars().take(64).collect(), allowed }
    }

    /// The operating system's refusal, with what helps against the commonest ones.
    pub(super) fn refused<E: Into<io::Error>>(
        what: impl Into<String>,
        action: &'static str,
    ) -> impl FnOnce(E) -> ActivateError {
        move |error| {
            let source = error.into();
            let advice = match source.raw_os_error() {
                Some(libc::ENOSPC) => "; raise fs.inotify.max_user_watches",
                Some(libc::EMFILE) => {
                    "; raise the agent's limit of open files or fs.inotify.max_user_instances"
                }
                Some(libc::EACCES | libc::EPERM) => "; run the agent as root",
                _ => "",
            };
            ActivateError::Refused { what: what.into(), action, source, advice }
        }
    }
}
