//! What a container printed, as a stream, also after it has ended.
//!
//! Reads the shim's log files; lines that come in parts are put together up to a bound. When a container is removed
//! from its node and its row stays, the end of its log is kept in one file of JSON lines in the data folder.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use steadfast_container::{Container, LogReader, Stream as Which};
use steadfast_proto::catalog::ContainerRow;
use steadfast_proto::ids::ContainerId;

use super::Agent;
use crate::api::types::LogLine;
use crate::codes::Code;
use crate::failure::Failure;

/// The longest line that is put together, in bytes.
const LINE_BYTES_MAX: usize = 256 << 10;
/// How much of the log of a container that was removed from its node is kept, in bytes.
const KEPT_BYTES_MAX: usize = 1 << 20;
/// How often new lines are looked for while following.
const LOOK: Duration = Duration::from_millis(100);

/// Where a reader stands.
struct Reading {
    reader: LogReader,
    ready: VecDeque<LogLine>,
    partial: [Vec<u8>; 2],
    follow: bool,
    tail: Option<usize>,
}

impl Agent {
    /// The lines of a container that this node has: the last `tail` or all that is kept, and what follows.
    pub(crate) fn logs(
        &self,
        row: &ContainerRow,
        follow: bool,
        tail: Option<u32>,
    ) -> Result<BoxStream<'static, Result<LogLine, Failure>>, Failure> {
        let Some(containers) = &self.containers else {
            return Err(Failure::new(
                Code::WrongState,
                format!("the node of {} runs no containers", row.spec.name),
            ));
        };
        let tail = tail.map_or(usize::MAX, |tail| usize::try_from(tail).unwrap_or(usize::MAX));
        let Some(container) = containers.handle(row.id) else {
            let kept = kept(&kept_file(containers.kept_logs(), row.id), tail);
            return Ok(futures_util::stream::iter(kept).map(Ok).boxed());
        };
        let reading = Reading::new(&container, follow, tail);
        let lines = futures_util::stream::try_unfold(reading, |mut reading| async move {
            loop {
                if let Some(line) = reading.ready.pop_front() {
                    return Ok(Some((line, reading)));
                }
                let (back, more) = tokio::task::spawn_blocking(move || reading.more())
                    .await
                    .map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
                reading = back;
                if more? {
                    continue;
                }
                if !reading.follow {
                    return Ok(None);
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Ok(lines.boxed())
    }
}

impl Reading {
    fn new(container: &Container, follow: bool, tail: usize) -> Reading {
        Reading {
            reader: container.logs(),
            ready: VecDeque::new(),
            partial: [Vec::new(), Vec::new()],
            follow,
            tail: Some(tail),
        }
    }

    /// Reads what there is; whether it found lines. The first call reads all that is kept, down to the tail.
    fn more(mut self) -> (Reading, Result<bool, Failure>) {
        let outcome = match self.tail.take() {
            None => self.read_once(),
            Some(tail) => self.read_all(tail),
        };
        (self, outcome)
    }

    fn read_all(&mut self, tail: usize) -> Result<bool, Failure> {
        while self.read_once()? {
            let surplus = self.ready.len().saturating_sub(tail);
            self.ready.drain(..surplus);
        }
        Ok(!self.ready.is_empty())
    }

    fn read_once(&mut self) -> Result<bool, Failure> {
        let lines = self
            .reader
            .read()
            .map_err(|error| Failure::new(Code::DiskFailed, format!("the log can't be read: {error}")))?;
        let found = !lines.is_empty();
        for line in lines {
            let (partial, stream) = match line.stream {
                Which::Stdout => (&mut self.partial[0], "stdout"),
                Which::Stderr => (&mut self.partial[1], "stderr"),
            };
            partial.extend_from_slice(&line.text);
            if !line.complete && partial.len() < LINE_BYTES_MAX {
                continue;
            }
            let text = std::mem::take(partial);
            let at = humantime::parse_rfc3339_weak(&line.time)
                .ok()
                .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
            self.ready.push_back(LogLine {
                at_unix_ms: at.map_or(0, |at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX)),
                stream: stream.to_owned(),
                text: String::from_utf8_lossy(&text).into_owned(),
            });
        }
        Ok(found)
    }
}

/// Keeps the end of a container's log before the container is removed from this node. Blocks.
pub(crate) fn keep(folder: &Path, id: ContainerId, container: &Container) {
    let mut reading = Reading::new(container, false, usize::MAX);
    if let Err(failure) = reading.read_all(usize::MAX) {
        tracing::warn!(%id, %failure, "what a container printed is not kept");
    }
    let file = kept_file(folder, id);
    let mut lines = VecDeque::from(kept(&file, usize::MAX));
    lines.extend(reading.ready);
    let mut bytes = 0usize;
    let mut texts: Vec<String> = Vec::new();
    for line in lines.iter().rev() {
        let Ok(text) = serde_json::to_string(line) else { continue };
        bytes += text.len() + 1;
        if bytes > KEPT_BYTES_MAX {
            break;
        }
        texts.push(text);
    }
    if texts.is_empty() {
        return;
    }
    texts.reverse();
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&file, texts.join("\n")));
    if let Err(error) = written {
        tracing::warn!(file = %file.display(), %error, "what a container printed is not kept");
    }
}

/// Removes the kept logs of containers that have no row any more.
pub(crate) fn forget_others(folder: &Path, known: &BTreeSet<ContainerId>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_suffix(".jsonl")).and_then(|id| id.parse().ok());
        if id.is_none_or(|id| !known.contains(&id)) {
            // Tried again at the next collection.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn kept_file(folder: &Path, id: ContainerId) -> PathBuf {
    folder.join(format!("{id}.jsonl"))
}

fn kept(file: &Path, tail: usize) -> Vec<LogLine> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut lines: Vec<LogLine> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let surplus = lines.len().saturating_sub(tail);
    lines.drain(..surplus);
    lines
}
