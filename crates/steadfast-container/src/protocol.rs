//! Decides what a shim and its callers say to each other: one JSON value per line over a Unix socket that only the
//! owner can open. Decoding is a pure function with a bound on the line, so that it can be fuzzed.
//!
//! Must never carry a secret. `shim/run.rs` answers, `container.rs` asks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{criu::CheckpointError, fence::Lateness, host_files::HostFile};

/// Longest request line in bytes, the line end not counted.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Longest reply line in bytes: a capture names every mapped file.
pub(crate) const REPLY_BYTES_MAX: usize = 8 << 20;

/// What a caller asks of a shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The container may run until `deadline_ns` (CLOCK_BOOTTIME). Not answered.
    Renew {
        /// The epoch the lease is for; another one is ignored.
        epoch: u64,
        /// Absolute end of the lease.
        deadline_ns: u64,
        /// Safety margin the caller computed.
        drift_ns: u64,
    },
    /// Answered by [`Reply::Status`].
    Status,
    /// Answered by [`Reply::Status`], then a [`Reply::Event`] for every change.
    Watch,
    /// SIGTERM, and after the grace period SIGKILL to everything. Answered by [`Reply::Done`] at once.
    Stop {
        /// Milliseconds.
        grace_ms: u64,
    },
    /// SIGKILL to everything. Answered by [`Reply::Done`].
    Kill,
    /// Write an image. Answered by [`Reply::Captured`] or [`Reply::Uncaptured`] when it is complete.
    Checkpoint {
        /// An empty or absent folder on a tmpfs.
        into: PathBuf,
        /// Whether the program stands still afterwards, as in the image, until [`Request::Release`].
        #[serde(default)]
        hold: bool,
    },
    /// Let go on what a checkpoint holds still. Answered by [`Reply::Done`], also when nothing is held.
    Release,
    /// Kill everything and end. Answered by [`Reply::Done`].
    Quit,
}

/// What a shim answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It was done, or is being done.
    Done,
    /// How the container stands.
    Status(Status),
    /// Something changed.
    Event(Event),
    /// An image is complete.
    Captured(Capture),
    /// No image was written, and why.
    Uncaptured(CheckpointError),
    /// Nothing was done, and why.
    Refused {
        /// One sentence.
        reason: String,
    },
}

/// The first and only line a shim writes to its standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Prepared {
    /// Everything is in place; the program starts with the first lease.
    Ready,
    /// Another station has the address.
    AddressTaken {
        /// Who answered, as a hardware address or in words.
        holder: String,
    },
    /// Set-up failed.
    Failed {
        /// Which step.
        step: String,
        /// Why.
        reason: String,
    },
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Being created or restored, or waiting for its first lease to begin that.
    Starting,
    /// Its processes run.
    Running,
    /// Its lease lapsed; a fresh one thaws it.
    Frozen,
    /// Its first process ended.
    Exited(Exit),
    /// It never ran, or could not be kept.
    Failed {
        /// One sentence.
        reason: String,
    },
}

impl State {
    /// One word for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Exited(_) => "exited",
            Self::Failed { .. } => "failed",
        }
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self {
            Self::Exited(_) | Self::Failed { .. } => true,
            Self::Starting | Self::Running | Self::Frozen => false,
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// How a container stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its id.
    pub id: String,
    /// The epoch it runs under.
    pub epoch: u64,
    /// What it is doing.
    pub state: State,
    /// Its first process, as the host numbers it.
    pub pid: Option<u32>,
    /// When it began to run, milliseconds since 1970.
    pub started_at_unix_ms: Option<u64>,
    /// How well the fence kept its times.
    pub lateness: Lateness,
    /// Whether it came from an image.
    pub restored: bool,
    /// Whether a checkpoint is under way.
    pub checkpointing: bool,
    /// Whether a checkpoint holds it still; no lease thaws it then.
    #[serde(default)]
    pub held: bool,
    /// Whether the fence had to kill it because it would not freeze.
    pub fenced: bool,
    /// Log lines that could not be written.
    pub log_lines_lost: u64,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It runs for the first time under this epoch.
    Running {
        /// Its first process.
        pid: u32,
    },
    /// Its lease lapsed and nothing of it runs.
    Frozen {
        /// Nanoseconds after `deadline - drift`; 0 is in time.
        late_ns: u64,
    },
    /// A fresh lease let it go on.
    Thawed,
    /// Its first process ended.
    Exited(Exit),
    /// It never ran, or could not be kept.
    Failed {
        /// One sentence.
        reason: String,
    },
}

/// A complete image of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// How long the program stood still, nanoseconds.
    pub frozen_ns: u64,
    /// How long the whole took, nanoseconds.
    pub elapsed_ns: u64,
    /// Every file of the image: name below the image's folder, bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// Files of the host that the program has mapped or open: they must be the same where it is restored.
    pub host_files: Vec<HostFile>,
    /// The CRIU that wrote it: (major, minor, patch).
    pub criu_version: (u32, u32, u32),
    /// Model and features of the processor it ran on.
    pub cpu: String,
}

/// Why a line is not a request. The connection is closed.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The line is too long.
    #[error("the line has {bytes} bytes; at most {REQUEST_BYTES_MAX} are accepted")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The line is not one of the requests.
    #[error("the line is not a request: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Reads one request from one line without its end.
pub fn decode_request(line: &[u8]) -> Result<Request, LineError> {
    if line.len() > REQUEST_BYTES_MAX {
        return Err(LineError::TooLong { bytes: line.len() });
    }
    Ok(serde_json::from_slice(line)?)
}

/// Writes one value as one line with its end.
pub(crate) fn encode_line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("these types hold nothing that JSON cannot");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_line() {
        let request = Request::Renew { epoch: 3, deadline_ns: u64::MAX, drift_ns: 5 };
        let line = encode_line(&request);
        assert_eq!(decode_request(line.strip_suffix(b"\n").unwrap()).unwrap(), request);
    }

    #[test]
    fn foreign_lines_are_refused() {
        for line in
            [&b"{}"[..], b"", b"\"Status2\"", b"{\"renew\":{\"epoch\":1}}", &[b'x'; REQUEST_BYTES_MAX + 1]]
        {
            assert!(decode_request(line).is_err());
        }
    }
}
