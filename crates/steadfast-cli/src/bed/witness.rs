//! The outside witness: hears what a program in a container says about itself, and judges whether it ever ran twice or forgot
//! what a committed checkpoint held.
//!
//! The program ([`REPORTER`], or any that speaks like it) sends a datagram every few milliseconds: the random id of its process
//! image, its run epoch, a number that it counts up in its memory. [`Judge`] is pure and decides; [`Witness`] listens for it.
//! It knows nothing of the cluster: what was committed is told to it by the test, as a mark taken *before* the checkpoint began.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::net::UdpSocket;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::lock;

/// A Python program that reports to a witness: `python3 -c REPORTER ADDRESS PORT PERIOD_MS`.
///
/// Its number lives in memory only. It makes its socket anew when a send fails, as a program does that woke in its past.
pub const REPORTER: &str = r#"
import os, socket, sys, time
address, port, period = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1000
image, number, out = os.urandom(8).hex(), 0, None
def epoch():
    try:
        with open("/run/steadfast/epoch") as file:
            return int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return 0
while True:
    number += 1
    try:
        if out is None:
            out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        out.sendto(f"{image} {epoch()} {number}".encode(), (address, port))
    except OSError:
        out = None
    time.sleep(period)
"#;

/// Violations kept; one is enough to fail, more only help to understand.
const VIOLATIONS_MAX: usize = 32;
/// Reports kept for the account of a failure.
const RECENT_MAX: usize = 64;

/// One datagram of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Random id made when the process started: a program that starts afresh has another one.
    pub image: String,
    /// The run epoch as the program reads it from its epoch file.
    pub epoch: u64,
    /// Counted up in memory, once per report.
    pub number: u64,
}

impl FromStr for Report {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no report: it has the form IMAGE EPOCH NUMBER");
        let mut words = text.split_ascii_whitespace();
        let (Some(image), Some(epoch), Some(number), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(wrong());
        };
        let epoch = epoch.parse().map_err(|_| wrong())?;
        let number = number.parse().map_err(|_| wrong())?;
        Ok(Self { image: image.to_owned(), epoch, number })
    }
}

/// What must never be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A copy of an earlier epoch spoke after a later one had spoken: two ran at once, or the old one ran on.
    OldCopySpoke {
        /// What it said.
        report: Report,
        /// The later epoch that had been heard.
        newest_epoch: u64,
    },
    /// Within one epoch a number was said twice: two copies, or memory was put back without a new epoch.
    StepBackWithinEpoch {
        /// What it said.
        report: Report,
        /// The number heard before.
        before: u64,
    },
    /// A new epoch began before the point that a committed checkpoint held.
    BehindCommitted {
        /// What it said.
        report: Report,
        /// The number that the committed checkpoint held at least.
        committed: u64,
    },
    /// The program started afresh: its memory was lost.
    StartedAfresh {
        /// What it said.
        report: Report,
        /// The image heard before.
        before: String,
    },
    /// Something spoke that is not the program.
    Garbage {
        /// What is wrong with it.
        problem: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OldCopySpoke { report, newest_epoch } => {
                write!(
                    formatter,
                    "two copies: epoch {} said {} after epoch {newest_epoch} had spoken",
                    report.epoch, report.number
                )
            }
            Self::StepBackWithinEpoch { report, before } => {
                write!(formatter, "epoch {} said {} after {before}", report.epoch, report.number)
            }
            Self::BehindCommitted { report, committed } => {
                let Report { epoch, number, .. } = report;
                write!(
                    formatter,
                    "epoch {epoch} began at {number}, behind the committed checkpoint's {committed}"
                )
            }
            Self::StartedAfresh { report, before } => {
                write!(formatter, "image {} spoke in place of {before}: the memory was lost", report.image)
            }
            Self::Garbage { problem } => formatter.write_str(problem),
        }
    }
}

/// How long an assertion waits for the report that decides about a doubtful one.
const DOUBT_MAX: Duration = Duration::from_secs(10);

/// Decides what the reports mean; pure.
#[derive(Debug, Clone, Default)]
pub struct Judge {
    last: Option<(Instant, Report)>,
    committed: u64,
    /// The numbers heard in the newest epoch.
    heard: BTreeSet<u64>,
    /// What was committed when the newest epoch was first heard: nothing it says lies behind that.
    floor: u64,
    count: u64,
    epochs: u64,
    violations: Vec<Violation>,
    /// An old word that may have been on the program's tongue when its checkpoint was taken: right if the very next
    /// report goes on from it in a new epoch.
    doubtful: Option<(Report, Violation)>,
    recent: VecDeque<(Instant, Report)>,
    longest_silence: Duration,
}

impl Judge {
    /// Takes one report that arrived at `now`.
    pub fn hear(&mut self, now: Instant, report: Report) {
        self.count += 1;
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((now, report.clone()));
        let Some((last_at, last)) = self.last.clone() else {
            self.epochs = 1;
            self.heard.insert(report.number);
            self.last = Some((now, report));
            return;
        };
        if let Some((word, violation)) = self.doubtful.take()
            && !(report.epoch > last.epoch && report.number > word.number)
        {
            self.note(violation);
        }
        match self.violation(&last, &report) {
            Some(violation @ (Violation::OldCopySpoke { .. } | Violation::StepBackWithinEpoch { .. })) => {
                self.doubtful = Some((report, violation));
                return;
            }
            Some(violation) => self.note(violation),
            None => {}
        }
        if report.epoch > last.epoch {
            self.epochs += 1;
            self.heard.clear();
            self.floor = self.committed;
        }
        self.heard.insert(report.number);
        self.longest_silence = self.longest_silence.max(now.saturating_duration_since(last_at));
        self.last = Some((now, report));
    }

    fn violation(&self, last: &Report, report: &Report) -> Option<Violation> {
        let report = report.clone();
        if report.image != last.image {
            return Some(Violation::StartedAfresh { report, before: last.image.clone() });
        }
        if report.epoch < last.epoch {
            return Some(Violation::OldCopySpoke { report, newest_epoch: last.epoch });
        }
        // A number may come late: while a neighbour's address is asked for, the kernel lets a fresh datagram overtake
        // those that wait. What a second copy says has been said already.
        if report.epoch == last.epoch && self.heard.contains(&report.number) {
            return Some(Violation::StepBackWithinEpoch { report, before: last.number });
        }
        let floor = if report.epoch > last.epoch { self.committed } else { self.floor };
        if report.number < floor {
            return Some(Violation::BehindCommitted { report, committed: floor });
        }
        None
    }

    /// Takes note of a datagram that is no report.
    pub fn hear_garbage(&mut self, problem: String) {
        self.note(Violation::Garbage { problem });
    }

    fn note(&mut self, violation: Violation) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(violation);
        }
    }

    /// A checkpoint was committed that began after the report with this number had been heard.
    pub fn commit(&mut self, mark: u64) {
        self.committed = self.committed.max(mark);
    }

    /// The newest report.
    pub fn last(&self) -> Option<&Report> {
        self.last.as_ref().map(|(_, report)| report)
    }

    /// When the newest report came.
    pub fn last_heard(&self) -> Option<Instant> {
        self.last.as_ref().map(|(at, _)| *at)
    }

    /// Reports heard.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Epochs heard.
    pub fn epochs(&self) -> u64 {
        self.epochs
    }

    /// The longest time between two reports so far.
    pub fn longest_silence(&self) -> Duration {
        self.longest_silence
    }

    /// What was seen that must never be seen, and what will be unless the next report excuses it.
    pub fn violations(&self) -> Vec<Violation> {
        let doubtful = self.doubtful.iter().map(|(_, violation)| violation);
        self.violations.iter().chain(doubtful).cloned().collect()
    }

    /// Whether the next report decides about the last.
    fn is_in_doubt(&self) -> bool {
        self.doubtful.is_some()
    }

    /// The violations and the last reports before them, for people.
    pub fn account(&self) -> String {
        let violations: Vec<String> = self.violations().iter().map(ToString::to_string).collect();
        let first = self.recent.front().map(|(at, _)| *at);
        let recent = self.recent.iter().map(|(at, report)| {
            let after = first.map_or(0, |first| at.saturating_duration_since(first).as_millis());
            format!("+{after} ms: epoch {} number {}", report.epoch, report.number)
        });
        format!("{}\nlast reports:\n{}", violations.join("\n"), recent.collect::<Vec<_>>().join("\n"))
    }
}

/// Listens on a socket and lets a [`Judge`] decide.
#[derive(Debug)]
pub struct Witness {
    judge: Arc<Mutex<Judge>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Begins to listen on `socket`, which the caller made where the program's datagrams arrive.
    pub fn listen(socket: UdpSocket) -> io::Result<Self> {
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let judge = Arc::new(Mutex::new(Judge::default()));
        let ended = Arc::new(AtomicBool::new(false));
        let (their_judge, their_ended) = (Arc::clone(&judge), Arc::clone(&ended));
        let thread = std::thread::Builder::new().name("witness".into()).spawn(move || {
            let mut buffer = [0_u8; 256];
            while !their_ended.load(Ordering::Relaxed) {
                // A time-out is the chance to look whether the test has ended.
                let Ok((length, _)) = socket.recv_from(&mut buffer) else { continue };
                let now = Instant::now();
                let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
                match text.parse() {
                    Ok(report) => lock(&their_judge).hear(now, report),
                    Err(problem) => lock(&their_judge).hear_garbage(problem),
                }
            }
        })?;
        Ok(Self { judge, ended, thread: Some(thread) })
    }

    /// A copy of what was seen so far.
    pub fn judge(&self) -> Judge {
        lock(&self.judge).clone()
    }

    /// The newest number: take it before a checkpoint is asked for and hand it to [`Witness::commit`] once it is committed.
    pub fn mark(&self) -> u64 {
        lock(&self.judge).last().map_or(0, |report| report.number)
    }

    /// See [`Judge::commit`].
    pub fn commit(&self, mark: u64) {
        lock(&self.judge).commit(mark);
    }

    /// Whether a report came after `instant`.
    pub fn heard_since(&self, instant: Instant) -> bool {
        lock(&self.judge).last_heard().is_some_and(|at| at > instant)
    }

    /// Panics with the whole account when anything was seen that must never be.
    ///
    /// # Panics
    /// As it says: this is an assertion.
    pub fn assert_clean(&self) {
        let asked = Instant::now();
        let mut judge = self.judge();
        while judge.is_in_doubt() && asked.elapsed() < DOUBT_MAX {
            std::thread::sleep(Duration::from_millis(5));
            judge = self.judge();
        }
        assert!(judge.violations().is_empty(), "the witness saw:\n{}", judge.account());
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It panics only if the judge does; the test has failed by then.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(reports: &[(&str, u64, u64)], committed: u64) -> Vec<Violation> {
        let mut judge = Judge::default();
        judge.commit(committed);
        for (image, epoch, number) in reports {
            judge.hear(Instant::now(), Report { image: (*image).into(), epoch: *epoch, number: *number });
        }
        judge.violations()
    }

    #[test]
    fn a_recovery_from_a_committed_checkpoint_is_clean() {
        assert_eq!(judged(&[("a", 1, 10), ("a", 1, 11), ("a", 2, 8), ("a", 2, 9), ("a", 3, 9)], 8), []);
    }

    #[test]
    fn two_interleaved_copies_are_seen() {
        let seen = judged(&[("a", 1, 10), ("a", 2, 8), ("a", 1, 11), ("a", 2, 9), ("a", 1, 12)], 0);
        assert_eq!(seen.len(), 2);
        assert!(
            matches!(&seen[0], Violation::OldCopySpoke { newest_epoch: 2, report } if report.number == 11)
        );
    }

    #[test]
    fn a_word_on_its_tongue_when_the_checkpoint_was_taken_is_no_second_copy() {
        assert_eq!(judged(&[("a", 1, 10), ("a", 1, 11), ("a", 1, 9), ("a", 2, 10), ("a", 2, 11)], 8), []);
        let later = judged(&[("a", 1, 10), ("a", 2, 11), ("a", 1, 9), ("a", 3, 10), ("a", 3, 11)], 8);
        assert_eq!(later, []);
        let twice = judged(&[("a", 1, 10), ("a", 1, 11), ("a", 1, 10), ("a", 1, 11), ("a", 2, 12)], 8);
        assert_eq!(twice.len(), 1, "only one word can be on its tongue");
    }

    #[test]
    fn a_datagram_that_is_overtaken_is_no_second_copy() {
        assert_eq!(judged(&[("a", 1, 10), ("a", 2, 14), ("a", 2, 9), ("a", 2, 10), ("a", 2, 15)], 8), []);
    }

    #[test]
    fn two_copies_of_one_epoch_are_seen() {
        let seen = judged(&[("a", 1, 10), ("a", 1, 11), ("a", 1, 10), ("a", 1, 12), ("a", 1, 11)], 0);
        assert!(seen.iter().all(|violation| matches!(violation, Violation::StepBackWithinEpoch { .. })));
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn a_step_back_behind_a_committed_checkpoint_is_seen() {
        let seen = judged(&[("a", 1, 10), ("a", 2, 7)], 8);
        assert!(matches!(seen[..], [Violation::BehindCommitted { committed: 8, .. }]));
        let overtaken = judged(&[("a", 1, 10), ("a", 2, 14), ("a", 2, 7)], 8);
        assert!(matches!(overtaken[..], [Violation::BehindCommitted { committed: 8, .. }]));
    }

    #[test]
    fn a_program_that_started_afresh_is_seen() {
        assert!(matches!(judged(&[("a", 1, 10), ("b", 2, 1)], 0)[..], [Violation::StartedAfresh { .. }]));
    }

    #[test]
    fn garbage_is_no_report() {
        for text in ["", "a 1", "a 1 x", "a 1 2 3", "a -1 2"] {
            assert!(text.parse::<Report>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn datagrams_reach_the_judge() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let witness = Witness::listen(socket).unwrap();
        let program = UdpSocket::bind("127.0.0.1:0").unwrap();
        program.send_to(b"a 1 5", address).unwrap();
        program.send_to(b"a 1 5", address).unwrap();
        super::super::wait_for("two reports", Duration::from_secs(20), || {
            (witness.judge().count() == 2).then_some(())
        })
        .unwrap();
        assert_eq!(witness.mark(), 5);
        let asserted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| witness.assert_clean()));
        assert!(asserted.is_err());
    }
}
