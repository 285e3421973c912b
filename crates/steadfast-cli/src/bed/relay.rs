//! Delay and jitter on one host's cable: a relay in user space, since the machine's kernel may lack a queue that delays.
//!
//! The cable's end at the hub goes to a small bridge of its own with one TAP device; a second TAP device takes its place in the
//! network's bridge. Two threads carry each frame from one to the other after its delay, in order. Nothing is lost or changed. It is
//! off by default; dropping a [`Relay`] ends its threads and the devices vanish with their files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uuid::Uuid;

use super::lock;

/// Longest frame of the bed's networks, with room to spare.
const FRAME_BYTES_MAX: usize = 16 * 1024;
/// Frames under way in one direction; one that comes when it is full is dropped, as a full queue does.
const FRAMES_MAX: usize = 16_384;
/// How often a thread looks whether it shall end.
const LOOK: Duration = Duration::from_millis(50);

/// Two TAP devices and the threads between them.
#[derive(Debug)]
pub(super) struct Relay {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Queue {
    frames: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    filled: Condvar,
}

impl Relay {
    /// Begins to carry frames between the two devices, each way delayed by `delay` and up to `jitter` more.
    pub(super) fn start(one: File, other: File, delay: Duration, jitter: Duration) -> io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let mut relay = Self { ended, threads: Vec::new() };
        let (one_in, other_in) = (one.try_clone()?, other.try_clone()?);
        for (from, to) in [(one_in, other), (other_in, one)] {
            relay.carry(from, to, delay, jitter)?;
        }
        Ok(relay)
    }

    fn carry(&mut self, from: File, to: File, delay: Duration, jitter: Duration) -> io::Result<()> {
        let queue = Arc::new(Queue::default());
        let (filling, emptying) = (Arc::clone(&queue), queue);
        let (reader_ended, writer_ended) = (Arc::clone(&self.ended), Arc::clone(&self.ended));
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        self.threads
            .push(thread("relay-in").spawn(move || take_in(&from, &filling, &reader_ended, delay, jitter))?);
        self.threads.push(thread("relay-out").spawn(move || give_out(&to, &emptying, &writer_ended))?);
        Ok(())
    }
}

fn take_in(from: &File, queue: &Queue, ended: &AtomicBool, delay: Duration, jitter: Duration) {
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut latest = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        let mut watched = [PollFd::new(from, PollFlags::IN)];
        if !matches!(poll(&mut watched, Some(&timeout)), Ok(1)) {
            continue;
        }
        let mut reader = from;
        // A device without a carrier refuses reads for a moment; the next look tries again.
        let Ok(length) = reader.read(&mut buffer) else { continue };
        // A wire keeps the order: a frame never overtakes the one before it.
        latest = latest.max(Instant::now() + delay + jitter.mul_f64(random_share()));
        let mut frames = lock(&queue.frames);
        if frames.len() < FRAMES_MAX {
            frames.push_back((latest, buffer.get(..length).unwrap_or_default().to_vec()));
            queue.filled.notify_one();
        }
    }
}

fn give_out(to: &File, queue: &Queue, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        let mut frames = lock(&queue.frames);
        let Some((due, _)) = frames.front() else {
            drop(queue.filled.wait_timeout(frames, LOOK));
            continue;
        };
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            drop(queue.filled.wait_timeout(frames, left.min(LOOK)));
            continue;
        }
        let Some((_, frame)) = frames.pop_front() else { continue };
        drop(frames);
        let mut writer = to;
        // A device that is down drops what is written to it, as a cable without a plug does.
        let _ = writer.write_all(&frame);
    }
}

/// A random number from 0 to 1.
fn random_share() -> f64 {
    let (high, _) = Uuid::new_v4().as_u64_pair();
    // The version bits lie in the lower half of this word; the upper 32 bits are all random.
    f64::from(u32::try_from(high >> 32).expect("32 bits are left")) / f64::from(u32::MAX)
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // They look every few milliseconds whether they shall end.
            let _ = thread.join();
        }
    }
}
