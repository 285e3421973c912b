//! The way to etcd: one connection at a time to one of its members, and another one when that does not serve.
//!
//! It decides which member is asked, how long, and what a failure means: whether a change was certainly not made, or may have been.
//! It must never make a change twice, nor believe a member of another etcd cluster than the first one that answered.
//! Read next: `grpc` for one connection, `mirror` for what a node knows without asking.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout_at};

use super::grpc::{Answers, CallError, Connection, Endpoint};
use super::proto::{Header, Malformed, RangeRequest, RangeResponse, TxnRequest, TxnResponse, watch_request};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// The largest answer that is accepted, in bytes: a page of rows, or the changes that a watch missed.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How long one member is given to accept a connection and to show that it has a leader.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How much later each further member is tried: one that is silent must not keep the others waiting.
const STAGGER: Duration = Duration::from_millis(100);
/// How long a change that is under way is waited for after its member was given up.
const GRACE: Duration = Duration::from_millis(500);
/// Between two rounds in which no member served; doubles up to the second.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What etcd says when it has certainly not made a change and another member may.
const NO_LEADER: [&str; 2] = ["etcdserver: no leader", "raft proposal dropped"];
/// What it says when it can take no more for the moment.
const TOO_MANY: &str = "etcdserver: too many requests";
/// What it says of a request that no member will carry out; it has changed nothing then.
const REFUSALS: [&str; 10] = [
    "etcdserver: request is too large",
    "etcdserver: too many operations in txn request",
    "etcdserver: duplicate key given in txn request",
    "etcdserver: key is not provided",
    "etcdserver: mvcc: database space exceeded",
    "etcdserver: permission denied",
    "etcdserver: user name is empty",
    "etcdserver: user name not found",
    "etcdserver: invalid auth token",
    "etcdserver: authentication failed",
];

/// Why etcd did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LinkError {
    /// No member answered in time; nothing was changed.
    Unreachable(String),
    /// The change may have been made.
    Unknown,
    /// etcd has too much to do; nothing was changed.
    Overloaded,
    /// etcd does not do such a thing; nothing was changed.
    Refused(String),
    /// etcd was at the first revision before, and is at the second now; nothing was changed, and nothing will be.
    WentBack(u64, u64),
}

/// Why a watch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WatchEnd {
    /// The connection or the member failed; another one goes on from where this one was.
    Broken(String),
    /// What was missed is not kept any more.
    Compacted,
}

/// The way to one etcd cluster.
#[derive(Debug)]
pub(super) struct Link {
    endpoints: Vec<Endpoint>,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// How long one member is waited for before another one is asked.
    patience: Duration,
    current: Mutex<Current>,
    /// Counts how often a connection was given up.
    moves: watch::Sender<u64>,
    /// The etcd cluster that answered first.
    cluster: AtomicU64,
    /// The newest revision that an answer bore.
    newest: AtomicU64,
    /// Set once an answer bore an older one than an answer before it.
    went_back: OnceLock<(u64, u64)>,
    /// A key that a member is asked for to show that it serves.
    probe: Vec<u8>,
}

#[derive(Debug, Default)]
struct Current {
    connection: Option<Arc<Connection>>,
    /// Which member is tried next.
    next: usize,
    /// When and why the last round of all members failed, and the pause after it.
    failed: Option<(Instant, String, Duration)>,
}

impl Link {
    pub(super) fn new(
        endpoints: Vec<Endpoint>,
        tls: Option<Arc<rustls::ClientConfig>>,
        request_timeout: Duration,
        probe: Vec<u8>,
    ) -> Self {
        let patience = (request_timeout / 4).clamp(Duration::from_millis(150), Duration::from_secs(1));
        Self {
            endpoints,
            tls,
            patience,
            current: Mutex::default(),
            moves: watch::Sender::new(0),
            cluster: AtomicU64::new(0),
            newest: AtomicU64::new(0),
            went_back: OnceLock::new(),
            probe,
        }
    }

    /// Reads through a majority, or as of the revision that is asked for.
    pub(super) async fn range(
        &self,
        request: &RangeRequest,
        deadline: Instant,
    ) -> Result<RangeResponse, LinkError> {
        self.read(RANGE, &request.encode(), deadline, |bytes| {
            RangeResponse::decode(bytes).map(|response| (response.header, response))
        })
        .await
    }

    /// Reads several ranges at one revision, through a majority.
    pub(super) async fn ranges(
        &self,
        request: &TxnRequest,
        deadline: Instant,
    ) -> Result<TxnResponse, LinkError> {
        self.read(TXN, &request.encode(), deadline, |bytes| {
            TxnResponse::decode(bytes).map(|response| (response.header, response))
        })
        .await
    }

    /// Makes a change, once.
    pub(super) async fn change(
        &self,
        request: &TxnRequest,
        deadline: Instant,
    ) -> Result<TxnResponse, LinkError> {
        let message = request.encode();
        loop {
            let moves = self.moves.subscribe();
            let connection = self.connection(deadline).await?;
            let call = match timeout_at(deadline, connection.ask(TXN, &message)).await {
                Ok(Ok(call)) => call,
                Ok(Err(error)) => {
                    self.give_up(&connection, &error).await;
                    continue;
                }
                Err(_) => {
                    return Err(LinkError::Unreachable(
                        "the connection has no room for another request".into(),
                    ));
                }
            };
            let error = match until_given_up(moves, deadline, call.answer(ANSWER_BYTES_MAX)).await {
                Some(Ok(answer)) => {
                    let response = TxnResponse::decode(&answer).map_err(|_| LinkError::Unknown)?;
                    self.newest.fetch_max(response.header.revision, Ordering::Relaxed);
                    return Ok(response);
                }
                Some(Err(error)) => error,
                None => CallError::Lost("it took too long".into()),
            };
            match &error {
                CallError::Status(said) if NO_LEADER.contains(&said.as_str()) => {}
                CallError::Status(said) if said == TOO_MANY => return Err(LinkError::Overloaded),
                CallError::Status(said) if is_refusal(said) => return Err(LinkError::Refused(said.clone())),
                CallError::Unsent(_) => {}
                CallError::Status(_) | CallError::Lost(_) => {
                    tracing::debug!(?error, "the outcome of a change is unknown");
                    self.give_up(&connection, &error).await;
                    return Err(LinkError::Unknown);
                }
            }
            self.give_up(&connection, &error).await;
        }
    }

    /// All changes of a range from a revision on.
    pub(super) async fn watch(
        &self,
        key: &[u8],
        range_end: &[u8],
        from: u64,
        deadline: Instant,
    ) -> Result<Watching, LinkError> {
        let moves = self.moves.subscribe();
        let connection = self.connection(deadline).await?;
        let begun = timeout_at(deadline, async {
            connection
                .follow(WATCH, &watch_request(key, range_end, from))
                .await?
                .answers(ANSWER_BYTES_MAX)
                .await
        });
        let error = match begun.await {
            Ok(Ok(answers)) => return Ok(Watching { answers, moves, _connection: connection }),
            Ok(Err(error)) => error,
            Err(_) => CallError::Lost("it took too long".into()),
        };
        self.give_up(&connection, &error).await;
        Err(LinkError::Unreachable(words(&error)))
    }

    /// Whether a member serves; another one is asked if the one in use does not.
    pub(super) async fn probe(&self, deadline: Instant) -> Result<(), LinkError> {
        let request = RangeRequest { key: self.probe.clone(), ..RangeRequest::default() };
        self.range(&request, deadline).await.map(drop)
    }

    async fn read<T>(
        &self,
        path: &'static str,
        message: &[u8],
        deadline: Instant,
        decode: impl Fn(&[u8]) -> Result<(Header, T), Malformed>,
    ) -> Result<T, LinkError> {
        loop {
            let connection = self.connection(deadline).await?;
            let patience = deadline.min(Instant::now() + self.patience);
            let known = self.newest.load(Ordering::Relaxed);
            let error = match timeout_at(patience, exchange(&connection, path, message)).await {
                Ok(Ok(answer)) => match decode(&answer) {
                    Ok((header, response)) => return self.check_not_back(known, header).map(|()| response),
                    Err(malformed) => CallError::Lost(malformed.to_string()),
                },
                Ok(Err(CallError::Status(said))) if is_refusal(&said) => {
                    return Err(LinkError::Refused(said));
                }
                Ok(Err(error)) => error,
                Err(_) => CallError::Lost("it took too long".into()),
            };
            self.give_up(&connection, &error).await;
            if Instant::now() >= deadline {
                return Err(LinkError::Unreachable(words(&error)));
            }
        }
    }

    /// Remembers the revision of an answer to a question that was asked when `known` was the newest.
    fn check_not_back(&self, known: u64, header: Header) -> Result<(), LinkError> {
        if header.revision < known {
            let (known, now) = *self.went_back.get_or_init(|| (known, header.revision));
            return Err(LinkError::WentBack(known, now));
        }
        self.newest.fetch_max(header.revision, Ordering::Relaxed);
        Ok(())
    }

    /// The connection in use, or a new one to the first member that serves.
    async fn connection(&self, deadline: Instant) -> Result<Arc<Connection>, LinkError> {
        let late = || LinkError::Unreachable("no member accepted a connection in time".to_owned());
        loop {
            if let Some((known, now)) = self.went_back.get() {
                return Err(LinkError::WentBack(*known, *now));
            }
            let mut current = timeout_at(deadline, self.current.lock()).await.map_err(|_| late())?;
            if let Some(connection) = current.connection.as_ref().filter(|connection| connection.is_open()) {
                return Ok(Arc::clone(connection));
            }
            let pause = match &current.failed {
                Some((at, reason, pause)) if Instant::now() < *at + *pause => {
                    if *at + *pause >= deadline {
                        return Err(LinkError::Unreachable(reason.clone()));
                    }
                    Some(*at + *pause)
                }
                Some(_) | None => None,
            };
            if let Some(until) = pause {
                drop(current);
                tokio::time::sleep_until(until).await;
                continue;
            }
            if let Some(connection) = self.connect(&mut current, deadline).await {
                return Ok(connection);
            }
            // The loop sees when and why.
        }
    }

    /// Tries every member, each a little after the one before, until one serves.
    async fn connect(&self, current: &mut Current, deadline: Instant) -> Option<Arc<Connection>> {
        current.connection = None;
        let count = self.endpoints.len();
        let mut trials: FuturesUnordered<_> = (0u32..)
            .zip(self.endpoints.iter().cycle().skip(current.next % count).take(count))
            .map(|(turn, endpoint)| async move {
                tokio::time::sleep(STAGGER * turn).await;
                (turn, self.open(endpoint).await)
            })
            .collect();
        let mut reasons = Vec::new();
        while let Ok(Some((turn, opened))) = timeout_at(deadline, trials.next()).await {
            match opened {
                Ok(connection) => {
                    let connection = Arc::new(connection);
                    current.connection = Some(Arc::clone(&connection));
                    current.next += usize::try_from(turn).unwrap_or(0);
                    current.failed = None;
                    return Some(connection);
                }
                Err(reason) => {
                    tracing::debug!(reason, "a member of etcd does not serve");
                    reasons.push(reason);
                }
            }
        }
        if reasons.is_empty() {
            reasons.push("no member accepted a connection in time".to_owned());
        }
        let pause = current.failed.as_ref().map_or(PAUSE, |(_, _, pause)| (*pause * 2).min(PAUSE_MAX));
        current.failed = Some((Instant::now(), reasons.join("; "), pause));
        None
    }

    /// Connects to a member and makes sure that it has a leader and is of the right etcd cluster.
    async fn open(&self, endpoint: &Endpoint) -> Result<Connection, String> {
        let connection = Connection::open(endpoint, self.tls.as_ref(), CONNECT_TIMEOUT).await?;
        let probe = RangeRequest { key: self.probe.clone(), ..RangeRequest::default() }.encode();
        let known = self.newest.load(Ordering::Relaxed);
        let answered = tokio::time::timeout(CONNECT_TIMEOUT, exchange(&connection, RANGE, &probe)).await;
        let header = match answered {
            Ok(Ok(answer)) => {
                RangeResponse::decode(&answer).map_err(|error| format!("{endpoint}: {error}"))?.header
            }
            // It serves, and not us: whoever asks is told by the member itself.
            Ok(Err(CallError::Status(said))) if is_refusal(&said) => return Ok(connection),
            Ok(Err(error)) => return Err(words(&error)),
            Err(_) => return Err(format!("{endpoint}: no answer within {} ms", CONNECT_TIMEOUT.as_millis())),
        };
        let first = self.cluster.compare_exchange(0, header.cluster, Ordering::Relaxed, Ordering::Relaxed);
        match first {
            Err(known) if known != header.cluster => Err(format!(
                "{endpoint}: it belongs to the etcd cluster {:x}, and the others to {known:x}; correct `endpoints`",
                header.cluster
            )),
            Ok(_) | Err(_) => match self.check_not_back(known, header) {
                Ok(()) => Ok(connection),
                Err(_) => {
                    Err(format!("{endpoint}: it went back from revision {known} to {}", header.revision))
                }
            },
        }
    }

    /// Asks another member from now on, if this connection is still the one in use.
    async fn give_up(&self, connection: &Arc<Connection>, error: &CallError) {
        let mut current = self.current.lock().await;
        if current.connection.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            tracing::debug!(?error, "another member of etcd is asked from now on");
            current.connection = None;
            current.next += 1;
            self.moves.send_modify(|moves| *moves += 1);
        }
    }
}

/// A watch on its connection.
#[derive(Debug)]
pub(super) struct Watching {
    answers: Answers,
    moves: watch::Receiver<u64>,
    _connection: Arc<Connection>,
}

impl Watching {
    /// The next changes, revision by revision. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Result<super::proto::WatchResponse, WatchEnd> {
        // A connection that was given up may have fallen silent without ending.
        let answer = tokio::select! {
            answer = self.answers.next() => answer,
            _ = self.moves.changed() => return Err(WatchEnd::Broken("another member is asked from now on".into())),
        };
        let answer: Bytes = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(WatchEnd::Broken("etcd ended the watch".into())),
            Err(error) => return Err(WatchEnd::Broken(words(&error))),
        };
        let response = super::proto::WatchResponse::decode(&answer)
            .map_err(|malformed| WatchEnd::Broken(malformed.to_string()))?;
        match (response.canceled, response.compact_revision) {
            (_, 1..) => Err(WatchEnd::Compacted),
            (true, 0) => Err(WatchEnd::Broken(format!("etcd ended the watch: {}", response.cancel_reason))),
            (false, 0) => Ok(response),
        }
    }
}

/// Waits for an answer until the deadline, or a little longer than its member is believed in.
async fn until_given_up<T>(
    mut moves: watch::Receiver<u64>,
    deadline: Instant,
    answer: impl Future<Output = T>,
) -> Option<T> {
    tokio::pin!(answer);
    tokio::select! {
        answered = timeout_at(deadline, &mut answer) => return answered.ok(),
        _ = moves.changed() => {}
    }
    timeout_at(deadline.min(Instant::now() + GRACE), answer).await.ok()
}

async fn exchange(connection: &Connection, path: &'static str, message: &[u8]) -> Result<Bytes, CallError> {
    connection.ask(path, message).await?.answer(ANSWER_BYTES_MAX).await
}

fn is_refusal(said: &str) -> bool {
    REFUSALS.iter().any(|refusal| said.starts_with(refusal))
}

fn words(error: &CallError) -> String {
    match error {
        CallError::Unsent(reason) | CallError::Lost(reason) | CallError::Status(reason) => reason.clone(),
    }
}
