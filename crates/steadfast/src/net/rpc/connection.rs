//! One connection on which this node calls a peer: numbering, answers, and noticing a silent path.
//!
//! It decides which answer belongs to which call and when the connection is over; then every call that
//! waits learns so at once. It never opens a connection (`peers` does) and never repeats a call.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::frame::{Frame, FrameReader, FrameWriter, Kind};
use super::{Body, Class, Trace};

/// Frames that may wait for the writer.
pub(super) const QUEUE_FRAMES: usize = 256;
/// Request bytes that may be in flight on one connection, in KiB.
const IN_FLIGHT_KIB: u32 = 64 << 10;

/// The connection ended before the answer came.
#[derive(Debug)]
pub(super) struct Gone;

type Answer = Result<Bytes, String>;

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    closed: bool,
}

/// A connection to one peer. Dropping the last handle closes it.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 3],
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    silence_max: Duration,
    opened: Instant,
    /// When the path last showed life, in ns after `opened`.
    heard_ns: AtomicU64,
    silent: AtomicBool,
    pending: Mutex<Pending>,
    awaiting: Notify,
    outgoing: mpsc::Sender<Frame>,
    in_flight: Semaphore,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.close();
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Connection {
    pub(super) fn start<R, W>(class: Class, address: SocketAddr, reader: R, writer: W) -> Self
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let (outgoing, queue) = mpsc::channel(QUEUE_FRAMES);
        let shared = Arc::new(Shared {
            address,
            silence_max: class.silence_max(),
            opened: Instant::now(),
            heard_ns: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            pending: Mutex::default(),
            awaiting: Notify::new(),
            outgoing,
            in_flight: Semaphore::new(IN_FLIGHT_KIB as usize),
        });
        let tasks = [
            tokio::spawn(read_answers(Arc::clone(&shared), reader)),
            tokio::spawn(write_requests(Arc::clone(&shared), writer, queue, class)),
            tokio::spawn(watch(Arc::clone(&shared))),
        ];
        Self { shared, tasks }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.shared.address
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shared.lock().closed
    }

    /// Whether it was given up because the path fell silent: the reason to try another network first.
    pub(super) fn fell_silent(&self) -> bool {
        self.shared.silent.load(Ordering::Relaxed)
    }

    pub(super) fn close(&self) {
        self.shared.close();
    }

    /// Sends a request and waits for its answer. Dropping the future forgets the call.
    pub(super) async fn call(&self, service: u8, body: Body, trace: Option<Trace>) -> Result<Answer, Gone> {
        let shared = &self.shared;
        let kib = u32::try_from(body.len() / 1024).unwrap_or(IN_FLIGHT_KIB) + 1;
        let permit = shared.in_flight.acquire_many(kib.min(IN_FLIGHT_KIB)).await;
        let _permit = permit.map_err(|_| Gone)?;
        let (waiting, answer) = shared.register()?;
        let request = Frame::new(Kind::Request, service, waiting.call, body).traced(trace);
        shared.outgoing.send(request).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}

/// Forgets a call when its caller gives up.
struct Waiting<'a> {
    shared: &'a Shared,
    call: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.call);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self) -> Result<(Waiting<'_>, oneshot::Receiver<Answer>), Gone> {
        let (sender, receiver) = oneshot::channel();
        let mut pending = self.lock();
        if pending.closed {
            return Err(Gone);
        }
        if pending.waiting.is_empty() {
            // Nothing was awaited until now, so earlier silence means nothing.
            self.hear();
            self.awaiting.notify_one();
        }
        let call = pending.next;
        pending.next += 1;
        pending.waiting.insert(call, sender);
        Ok((Waiting { shared: self, call }, receiver))
    }

    fn hear(&self) {
        let now_ns = u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.heard_ns.fetch_max(now_ns, Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        let heard = Duration::from_nanos(self.heard_ns.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(heard)
    }

    fn close(&self) {
        let waiting = {
            let mut pending = self.lock();
            pending.closed = true;
            std::mem::take(&mut pending.waiting)
        };
        // Dropping the senders tells every caller.
        drop(waiting);
        self.in_flight.close();
        self.awaiting.notify_one();
    }
}

async fn read_answers<R: AsyncRead + Unpin>(shared: Arc<Shared>, reader: R) {
    let mut frames = FrameReader::new(reader);
    while let Ok((header, _, body)) = frames.next().await {
        shared.hear();
        let answer = match header.kind {
            Kind::Response => Ok(body),
            Kind::Failure => Err(String::from_utf8_lossy(&body).into_owned()),
            Kind::Pong => continue,
            // A server never calls back on a connection that we opened.
            Kind::Request | Kind::Ping => break,
        };
        if let Some(waiting) = shared.lock().waiting.remove(&header.call) {
            // The caller may have given up meanwhile.
            let _ = waiting.send(answer);
        }
    }
    shared.close();
}

async fn write_requests<W: AsyncWrite + Unpin>(
    shared: Arc<Shared>,
    writer: W,
    mut queue: mpsc::Receiver<Frame>,
    class: Class,
) {
    let mut frames = FrameWriter::new(writer);
    while let Some(frame) = queue.recv().await {
        let mut next = Some(frame);
        while let Some(frame) = next {
            if frames.write(&frame).await.is_err() {
                return shared.close();
            }
            if class == Class::Bulk && frame.kind() != Kind::Ping {
                // On a slow path a pong waits behind megabytes; that the kernel takes them shows life. That it
                // takes a ping shows nothing: a dead path has room for many.
                shared.hear();
            }
            next = queue.try_recv().ok();
        }
        if frames.flush().await.is_err() {
            return shared.close();
        }
    }
}

/// Pings while answers are awaited, and gives the connection up when nothing is heard for too long.
async fn watch(shared: Arc<Shared>) {
    let tick = shared.silence_max / 3;
    loop {
        shared.awaiting.notified().await;
        loop {
            {
                let pending = shared.lock();
                if pending.closed {
                    return;
                }
                if pending.waiting.is_empty() {
                    break;
                }
            }
            let silence = shared.silence();
            if silence >= shared.silence_max {
                shared.silent.store(true, Ordering::Relaxed);
                return shared.close();
            }
            if silence >= tick {
                // A full queue shows that much waits to be written already; a ping would add nothing.
                let _ = shared.outgoing.try_send(Frame::new(Kind::Ping, 0, 0, Body::default()));
            }
            tokio::time::sleep(tick).await;
        }
    }
}
