//! Decides how a container's output is kept: lines of `TIME stdout|stderr F|P TEXT` (F: the line is complete, P: it
//! goes on), in files that are rotated by size; and how they are read back, also while they grow.
//!
//! Must never hold up the program for longer than a write to the disk takes, nor grow without bound.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::event::{PollFd, PollFlags, poll};

/// A longer line is cut into parts of this many bytes.
const LINE_BYTES_MAX: usize = 16 << 10;
const CURRENT: &str = "container.log";

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Copies both streams into files until both end. Runs on a thread of its own.
#[derive(Debug)]
pub(crate) struct LogWriter {
    folder: PathBuf,
    bytes_max: u64,
    files_max: u32,
    file: Option<File>,
    bytes: u64,
    lost: Arc<AtomicU64>,
}

impl LogWriter {
    pub(crate) fn new(folder: &Path, bytes_max: u64, files_max: u32, lost: Arc<AtomicU64>) -> Self {
        Self {
            folder: folder.to_owned(),
            bytes_max: bytes_max.max(4096),
            files_max: files_max.max(1),
            file: None,
            bytes: 0,
            lost,
        }
    }

    pub(crate) fn run(mut self, stdout: OwnedFd, stderr: OwnedFd) {
        let mut open = vec![Source::new(Stream::Stdout, stdout), Source::new(Stream::Stderr, stderr)];
        while !open.is_empty() {
            let mut poll_fds: Vec<_> =
                open.iter().map(|source| PollFd::new(&source.pipe, PollFlags::IN)).collect();
            if poll(&mut poll_fds, None).is_err() {
                continue;
            }
            let ready: Vec<bool> = poll_fds.iter().map(|poll_fd| !poll_fd.revents().is_empty()).collect();
            drop(poll_fds);
            for (source, _) in open.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
                source.pump(&mut self);
            }
            open.retain(|source| !source.ended);
        }
    }

    fn line(&mut self, stream: Stream, part: &[u8], complete: bool) {
        let mut record = timestamp(SystemTime::now()).into_bytes();
        record.extend_from_slice(
            format!(" {} {} ", stream.name(), if complete { 'F' } else { 'P' }).as_bytes(),
        );
        record.extend_from_slice(part);
        record.push(b'\n');
        if self.append(&record).is_err() {
            // The disk is full or gone: the program goes on, the line does not, and the status says so.
            self.file = None;
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let length = u64::try_from(record.len()).unwrap_or(u64::MAX);
        if self.file.is_some() && self.bytes > 0 && self.bytes.saturating_add(length) > self.bytes_max {
            self.rotate()?;
        }
        if self.file.is_none() {
            fs::create_dir_all(&self.folder)?;
            let file = OpenOptions::new().create(true).append(true).open(self.folder.join(CURRENT))?;
            self.bytes = file.metadata()?.len();
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(record)?;
        self.bytes = self.bytes.saturating_add(length);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        self.bytes = 0;
        for number in (0..self.files_max).rev() {
            let from = numbered(&self.folder, number);
            if !from.exists() {
                continue;
            }
            if number + 1 >= self.files_max {
                fs::remove_file(&from)?;
            } else {
                fs::rename(&from, numbered(&self.folder, number + 1))?;
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Source {
    stream: Stream,
    pipe: OwnedFd,
    partial: Vec<u8>,
    ended: bool,
}

impl Source {
    fn new(stream: Stream, pipe: OwnedFd) -> Self {
        Self { stream, pipe, partial: Vec::new(), ended: false }
    }

    fn pump(&mut self, log: &mut LogWriter) {
        let mut buffer = [0; 16 << 10];
        match rustix::io::read(&self.pipe, &mut buffer[..]) {
            Ok(0) | Err(rustix::io::Errno::IO) => {
                self.ended = true;
                if !self.partial.is_empty() {
                    log.line(self.stream, &std::mem::take(&mut self.partial), true);
                }
            }
            Ok(length) => self.feed(buffer.get(..length).unwrap_or(&[]), log),
            Err(_) => {}
        }
    }

    fn feed(&mut self, bytes: &[u8], log: &mut LogWriter) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            self.partial.extend_from_slice(text);
            while self.partial.len() > LINE_BYTES_MAX {
                let rest = self.partial.split_off(LINE_BYTES_MAX);
                log.line(self.stream, &std::mem::replace(&mut self.partial, rest), false);
            }
            if complete {
                log.line(self.stream, &std::mem::take(&mut self.partial), true);
            }
        }
    }
}

fn numbered(folder: &Path, number: u32) -> PathBuf {
    if number == 0 { folder.join(CURRENT) } else { folder.join(format!("{CURRENT}.{number}")) }
}

/// RFC 3339 in UTC with nanoseconds.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let mut text = String::with_capacity(30);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    write!(
        text,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z",
        since.subsec_nanos()
    )
    .ok();
    text
}

/// The date of a day counted from 1970-01-01, by counting in eras of 400 years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// One line read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was read from the program: RFC 3339, UTC.
    pub time: String,
    /// Which stream.
    pub stream: Stream,
    /// Whether the line ends here; a long one comes in parts.
    pub complete: bool,
    /// The text, without the line end.
    pub text: Vec<u8>,
}

/// Reads a container's log from its oldest line, and goes on with what is written later.
#[derive(Debug)]
pub struct LogReader {
    folder: PathBuf,
    /// The file being read and its inode, which outlives a rotation.
    file: Option<(File, u64)>,
    partial: Vec<u8>,
}

impl LogReader {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), file: None, partial: Vec::new() }
    }

    /// The log's files, oldest first.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            (0..).map(|number| numbered(&self.folder, number)).take_while(|path| path.exists()).collect();
        files.reverse();
        files
    }

    /// The next lines, at most about 1 MiB; empty when there is nothing new yet.
    pub fn read(&mut self) -> io::Result<Vec<LogLine>> {
        let mut bytes = Vec::new();
        loop {
            if self.file.is_none() && !self.open_next(None)? {
                break;
            }
            let Some((file, inode)) = &mut self.file else { break };
            let inode = *inode;
            file.take(1 << 20).read_to_end(&mut bytes)?;
            if !bytes.is_empty() || !self.open_next(Some(inode))? {
                break;
            }
        }
        self.partial.extend_from_slice(&bytes);
        let whole = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let rest = self.partial.split_off(whole);
        let lines = std::mem::replace(&mut self.partial, rest);
        Ok(lines.split(|byte| *byte == b'\n').filter_map(parse).collect())
    }

    /// Opens the oldest file, or the one after `inode`.
    fn open_next(&mut self, inode: Option<u64>) -> io::Result<bool> {
        let mut files = Vec::new();
        for path in self.files() {
            match File::open(&path) {
                Ok(file) => files.push((file.metadata()?.ino(), file)),
                // Rotated away between listing and opening.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        let at = match inode {
            None => 0,
            Some(inode) => match files.iter().position(|(ino, _)| *ino == inode) {
                Some(at) => at + 1,
                None => 0,
            },
        };
        let Some((ino, file)) = files.into_iter().nth(at) else { return Ok(false) };
        self.file = Some((file, ino));
        Ok(true)
    }
}

pub(crate) fn parse(line: &[u8]) -> Option<LogLine> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = String::from_utf8(parts.next()?.to_vec()).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let complete = parts.next()? == b"F";
    Some(LogLine { time, stream, complete, text: parts.next()?.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(folder: &Path, bytes_max: u64) -> LogWriter {
        LogWriter::new(folder, bytes_max, 3, Arc::default())
    }

    #[test]
    fn lines_come_back_with_their_stream_also_across_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = writer(folder.path(), 4096);
        let mut reader = LogReader::new(folder.path());
        let mut seen = Vec::new();
        for number in 0..200 {
            log.line(Stream::Stderr, format!("line {number} {}", "x".repeat(40)).as_bytes(), true);
            seen.extend(reader.read().unwrap());
        }
        assert_eq!(seen.len(), 200);
        assert!(seen.iter().all(|line| line.stream == Stream::Stderr && line.complete));
        assert!(seen.last().unwrap().text.starts_with(b"line 199 "));
        assert_eq!(reader.files().len(), 3);
    }

    #[test]
    fn a_long_line_is_cut_and_marked() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = writer(folder.path(), 1 << 20);
        let (pipe, _write) = rustix::pipe::pipe().unwrap();
        let mut source = Source::new(Stream::Stdout, pipe);
        source.feed(&vec![b'a'; LINE_BYTES_MAX + 5], &mut log);
        source.feed(b"b\nc\n", &mut log);
        let lines = LogReader::new(folder.path()).read().unwrap();
        let shape: Vec<_> = lines.iter().map(|line| (line.text.len(), line.complete)).collect();
        assert_eq!(shape, [(LINE_BYTES_MAX, false), (6, true), (1, true)]);
    }

    #[test]
    fn dates_are_right() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(at(1_785_849_600), "2026-08-04T13:20:00.000000000Z");
    }
}
