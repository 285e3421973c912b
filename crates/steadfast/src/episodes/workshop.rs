//! Where segments are made before they are needed, used again, and removed.
//!
//! It carries out its jobs in the order in which they were given, in a thread beside the log where the disk has a second
//! handle, and else when the log asks. Names change one at a time, each durable before the next, so that after any crash
//! the numbers of the segments have no gap. It never touches a segment that holds something needed.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use super::disk::Disk;
use super::segment::Header;

/// The name of a segment's file.
pub(super) fn name(number: u64) -> String {
    format!("{number:016x}.seg")
}

/// The name that a segment has until it is all there.
pub(super) fn unfinished_name(number: u64) -> String {
    format!("{number:016x}.new")
}

/// The number of the segment that a file is.
pub(super) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (self::name(number) == *name).then_some(number)
}

/// Whether a file is what is left of a segment that was not finished.
pub(super) fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(".new").is_some_and(|digits| u64::from_str_radix(digits, 16).is_ok())
}

/// How a new segment begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) bytes: u64,
    pub(super) salt: u64,
}

#[derive(Clone, Copy, Debug)]
enum Job {
    Make(u64, Plan),
    Recycle { from: u64, to: u64 },
    Remove(u64),
}

/// The segments ahead of the one that is written.
#[derive(Debug)]
pub(super) struct Workshop {
    plan: Plan,
    /// The highest number that is there.
    ready: u64,
    /// The highest number that is there or was ordered.
    ordered: u64,
    workplace: Workplace,
}

#[derive(Debug)]
enum Workplace {
    /// What was ordered, until somebody comes by with a disk.
    Inline(VecDeque<Job>),
    Beside(Beside),
}

#[derive(Debug)]
struct Beside {
    /// `None` only while it is dropped.
    jobs: Option<Sender<Job>>,
    /// What came of each job, in order: the segment that is ready, if it was about one.
    done: Receiver<io::Result<Option<u64>>>,
    thread: Option<JoinHandle<()>>,
}

impl Workshop {
    /// `ready` is the highest number that is there.
    pub(super) fn open(twin: Option<Box<dyn Disk>>, plan: Plan, ready: u64) -> io::Result<Workshop> {
        let workplace = match twin {
            None => Workplace::Inline(VecDeque::new()),
            Some(disk) => Workplace::Beside(Beside::spawn(disk)?),
        };
        Ok(Workshop { plan, ready, ordered: ready, workplace })
    }

    /// Bytes of the segments that it makes.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.plan.bytes
    }

    /// The highest number that is there or was ordered.
    pub(super) fn ordered(&self) -> u64 {
        self.ordered
    }

    /// Orders one more segment.
    pub(super) fn order(&mut self) -> io::Result<()> {
        self.ordered += 1;
        self.give(Job::Make(self.ordered, self.plan))
    }

    /// Gives a segment that nobody needs the number behind the highest.
    pub(super) fn recycle(&mut self, from: u64) -> io::Result<()> {
        self.ordered += 1;
        self.give(Job::Recycle { from, to: self.ordered })
    }

    /// Removes a segment that nobody needs.
    pub(super) fn remove(&mut self, number: u64) -> io::Result<()> {
        self.give(Job::Remove(number))
    }

    /// Takes note of what was done; where there is no thread beside, does it now.
    pub(super) fn catch_up(&mut self, disk: &mut dyn Disk) -> io::Result<()> {
        while let Some(outcome) = self.workplace.next_if_any(disk) {
            self.note(outcome?);
        }
        Ok(())
    }

    /// Takes note of what a thread beside has done by now.
    pub(super) fn poll(&mut self) -> io::Result<()> {
        while let Workplace::Beside(beside) = &self.workplace {
            let Some(outcome) = beside.poll() else { break };
            self.note(outcome?);
        }
        Ok(())
    }

    /// Returns when a segment is ready.
    pub(super) fn wait_for(&mut self, number: u64, disk: &mut dyn Disk) -> io::Result<()> {
        while self.ready < number {
            if self.ordered < number {
                self.order()?;
            }
            let outcome = match &mut self.workplace {
                Workplace::Inline(_) => self.workplace.next_if_any(disk).expect("the segment was ordered"),
                Workplace::Beside(beside) => beside.done.recv().unwrap_or_else(|_| Err(thread_ended())),
            };
            self.note(outcome?);
        }
        Ok(())
    }

    fn note(&mut self, made: Option<u64>) {
        self.ready = made.unwrap_or(self.ready);
    }

    fn give(&mut self, job: Job) -> io::Result<()> {
        match &mut self.workplace {
            Workplace::Inline(jobs) => jobs.push_back(job),
            Workplace::Beside(beside) => {
                let sent = beside.jobs.as_ref().map(|jobs| jobs.send(job));
                sent.and_then(Result::ok).ok_or_else(thread_ended)?;
            }
        }
        Ok(())
    }
}

impl Workplace {
    fn next_if_any(&mut self, disk: &mut dyn Disk) -> Option<io::Result<Option<u64>>> {
        match self {
            Workplace::Inline(jobs) => jobs.pop_front().map(|job| carry_out(disk, job)),
            Workplace::Beside(beside) => beside.poll(),
        }
    }
}

impl Beside {
    fn spawn(mut disk: Box<dyn Disk>) -> io::Result<Beside> {
        let (jobs, receive_jobs) = channel();
        let (send_done, done) = channel();
        let thread = std::thread::Builder::new().name("segments".to_owned()).spawn(move || {
            for job in receive_jobs {
                let outcome = carry_out(disk.as_mut(), job);
                let failed = outcome.is_err();
                if send_done.send(outcome).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Beside { jobs: Some(jobs), done, thread: Some(thread) })
    }

    fn poll(&self) -> Option<io::Result<Option<u64>>> {
        match self.done.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(thread_ended())),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has told so; the folder must be free of it in either case.
            let _ = thread.join();
        }
    }
}

fn thread_ended() -> io::Error {
    io::Error::other("the thread that makes segments has ended")
}

/// Does one job, whole and durably.
fn carry_out(disk: &mut dyn Disk, job: Job) -> io::Result<Option<u64>> {
    match job {
        Job::Make(number, plan) => {
            let (unfinished, finished) = (unfinished_name(number), name(number));
            let header = Header { number, first: 0, salt: plan.salt, length: plan.bytes };
            disk.create(&unfinished, plan.bytes)?;
            disk.write_at(&unfinished, 0, &header.encode())?;
            disk.sync(&unfinished)?;
            disk.rename(&unfinished, &finished)?;
            disk.sync_folder()?;
            Ok(Some(number))
        }
        Job::Recycle { from, to } => {
            disk.rename(&name(from), &name(to))?;
            disk.sync_folder()?;
            Ok(Some(to))
        }
        Job::Remove(number) => {
            disk.remove(&name(number))?;
            disk.sync_folder()?;
            Ok(None)
        }
    }
}
