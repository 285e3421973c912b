//! The demo's keys: loading them, writing on in the background, and reading them back.
//!
//! A key's value follows from its number, so that reading back proves each value and not only its presence. A write counts only once
//! the server has acknowledged it. Connections are made by the caller's closure: only it knows in which network.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::resp::{Answer, Connection};

/// Keys in one batch.
const BATCH: u64 = 1000;

/// Makes connections to the server.
pub(super) type Connect = Arc<dyn Fn() -> io::Result<Connection> + Send + Sync>;

/// The name of key number `number`; `kind` tells the loaded ones from those written on.
fn key(kind: &str, number: u64) -> Vec<u8> {
    format!("{kind}:{number:09}").into_bytes()
}

/// The value of a key: 64 bytes that nobody writes by chance.
fn value(kind: &str, number: u64) -> Vec<u8> {
    let seed = key(kind, number).iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{seed:016x}").repeat(4).into_bytes()
}

/// Writes keys 0 to `count` of `kind`, in batches; `progress` hears how many are acknowledged.
pub(super) fn write(
    connection: &mut Connection,
    kind: &str,
    count: u64,
    mut progress: impl FnMut(u64),
) -> io::Result<()> {
    let mut next = 0;
    while next < count {
        let end = (next + BATCH).min(count);
        for number in next..end {
            connection.request(&[b"SET", &key(kind, number), &value(kind, number)]);
        }
        connection.flush()?;
        for _ in next..end {
            acknowledged(connection)?;
        }
        next = end;
        progress(next);
    }
    Ok(())
}

fn acknowledged(connection: &mut Connection) -> io::Result<()> {
    let answer = connection.answer()?;
    if answer == Answer::Simple("OK".into()) {
        return Ok(());
    }
    Err(io::Error::other(format!("a write was answered with {answer:?}")))
}

/// Reads keys 0 to `count` of `kind` back; an error names the first that is missing or wrong.
pub(super) fn check(
    connection: &mut Connection,
    kind: &str,
    count: u64,
    mut progress: impl FnMut(u64),
) -> io::Result<()> {
    let mut next = 0;
    while next < count {
        let end = (next + BATCH).min(count);
        (next..end).for_each(|number| connection.request(&[b"GET", &key(kind, number)]));
        connection.flush()?;
        for number in next..end {
            let name = || String::from_utf8_lossy(&key(kind, number)).into_owned();
            let answer = connection.answer()?;
            if answer == Answer::Value(None) {
                return Err(io::Error::other(format!("key {} is missing", name())));
            }
            if answer != Answer::Value(Some(value(kind, number))) {
                return Err(io::Error::other(format!("key {} holds {answer:?}", name())));
            }
        }
        next = end;
        progress(next);
    }
    Ok(())
}

/// Writes key after key until told to stop, one acknowledged before the next is sent, connecting again when the server is gone.
#[derive(Debug)]
pub(super) struct Writer {
    acknowledged: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    answers: Arc<Mutex<Answers>>,
    thread: Option<JoinHandle<()>>,
}

/// When the server acknowledged.
#[derive(Debug, Default)]
struct Answers {
    last: Option<Instant>,
    longest_wait: Duration,
}

impl Answers {
    fn another(&mut self, now: Instant) {
        let wait = self.last.map(|last| now.saturating_duration_since(last));
        self.longest_wait = self.longest_wait.max(wait.unwrap_or_default());
        self.last = Some(now);
    }
}

impl Writer {
    /// Begins to write keys of `kind`.
    pub(super) fn start(kind: &'static str, connect: Connect) -> io::Result<Self> {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let ended = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(Mutex::new(Answers::default()));
        let state = (Arc::clone(&acknowledged), Arc::clone(&ended), Arc::clone(&answers));
        let thread = std::thread::Builder::new().name("writer".into()).spawn(move || {
            let (acknowledged, ended, answers) = state;
            while !ended.load(Ordering::Relaxed) {
                let Ok(mut connection) = connect() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                while !ended.load(Ordering::Relaxed) {
                    let number = acknowledged.load(Ordering::Relaxed);
                    connection.request(&[b"SET", &key(kind, number), &value(kind, number)]);
                    if connection.flush().and_then(|()| self::acknowledged(&mut connection)).is_err() {
                        break;
                    }
                    acknowledged.store(number + 1, Ordering::Relaxed);
                    answers.lock().unwrap_or_else(PoisonError::into_inner).another(Instant::now());
                }
            }
        })?;
        Ok(Self { acknowledged, ended, answers, thread: Some(thread) })
    }

    /// How many of its keys the server has acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// When the server last acknowledged one.
    pub(super) fn last_answer(&self) -> Option<Instant> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    /// The longest time between two acknowledgements.
    pub(super) fn longest_wait(&self) -> Duration {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).longest_wait
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its connection has a time-out, so it ends soon.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::process::{Child, Command, Stdio};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A real server on loopback, gone with the test.
    struct Server(Child, Connect);

    impl Server {
        fn start() -> Self {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut command = Command::new("redis-server");
            command.args([
                "--save",
                "",
                "--appendonly",
                "no",
                "--bind",
                "127.0.0.1",
                "--port",
                &port.to_string(),
            ]);
            let child =
                command.stdout(Stdio::null()).spawn().expect("`cargo xtask setup` installs redis-server");
            let connect: Connect =
                Arc::new(move || Connection::new(TcpStream::connect(("127.0.0.1", port))?, PATIENCE));
            Self(child, connect)
        }

        fn connect(&self) -> Connection {
            crate::bed::wait_for("the server", PATIENCE, || (self.1)().ok()).unwrap()
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_key_that_is_missing_or_wrong_is_named() {
        let server = Server::start();
        let mut connection = server.connect();
        let mut seen = Vec::new();
        write(&mut connection, "key", 2500, |count| seen.push(count)).unwrap();
        assert_eq!(seen, [1000, 2000, 2500]);
        check(&mut connection, "key", 2500, |_| {}).unwrap();

        connection.ask(&[b"SET", &key("key", 2400), b"other"]).unwrap();
        assert!(
            check(&mut connection, "key", 2500, |_| {})
                .unwrap_err()
                .to_string()
                .contains("key:000002400 holds")
        );
        let mut connection = server.connect();
        connection.ask(&[b"DEL", &key("key", 7)]).unwrap();
        assert!(
            check(&mut connection, "key", 2500, |_| {})
                .unwrap_err()
                .to_string()
                .contains("key:000000007 is missing")
        );
    }

    #[test]
    fn the_writer_counts_only_what_was_acknowledged() {
        let server = Server::start();
        drop(server.connect());
        let writer = Writer::start("more", Arc::clone(&server.1)).unwrap();
        crate::bed::wait_for("writes", PATIENCE, || (writer.acknowledged() > 100).then_some(())).unwrap();
        let acknowledged = writer.acknowledged();
        assert!(writer.last_answer().is_some());
        check(&mut server.connect(), "more", acknowledged, |_| {}).unwrap();
    }
}
