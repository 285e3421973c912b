//! The catalog in an etcd that is there already, behind the same trait as the engine of our own.
//!
//! Rows lie under a prefix; a row's version is the revision that etcd gave its last change. Beside them lies one more key that every change
//! writes: its revision is the table's, so that other users of the same etcd don't count. Reads and changes go through etcd's majority,
//! what may be old comes from a copy that one watch feeds. It must never report a change as refused that may have happened.
//! Read next: `link` (which member is asked), `follow` and `mirror` (the copy), `proto` and `grpc` (the wire).

mod follow;
mod grpc;
mod link;
mod mirror;
mod proto;
mod raw;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use self::follow::PAGE_ROWS;
use self::grpc::Endpoint;
use self::link::{Link, LinkError};
use self::mirror::Mirror;
use self::proto::{Compare, KeyValue, Op, RangeRequest, TxnRequest, TxnResponse};
pub use self::raw::RawEtcd;
use super::engine::RaftNodeId;
use super::machine::Progress;
use super::watch::{Feed, LocalWatch, Reading};
use super::{
    BoxFuture, Catalog, CatalogError, CatalogStatus, EngineKind, Role, Rows, TABLE_BYTES_MAX, Txn, TxnReply,
    Versioned, WatchStream, check_key, check_txn,
};

/// Requests of this node that may be under way at once.
const PENDING_MAX: usize = 1024;

/// How etcd is reached, and what of it is ours.
#[derive(Clone)]
pub struct EtcdConfig {
    /// Its members' addresses, each `http://host:port` or `https://host:port`.
    pub endpoints: Vec<String>,
    /// What this cluster's keys begin with.
    pub prefix: String,
    /// Whom to believe, with `https`.
    pub tls: Option<EtcdTls>,
    /// Number of this node, for what it says.
    pub node: RaftNodeId,
    /// How long a request waits for an answer before it is refused.
    pub request_timeout: Duration,
}

impl std::fmt::Debug for EtcdConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Certificates and keys as PEM text.
#[derive(Clone)]
pub struct EtcdTls {
    /// The authority that etcd's certificates are checked against.
    pub ca: Vec<u8>,
    /// This node's certificate and key, where etcd asks for one.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for EtcdTls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("EtcdTls").finish_non_exhaustive()
    }
}

/// Why etcd can't be used with these settings. Nothing was asked yet.
#[derive(Debug, thiserror::Error)]
pub enum EtcdOpenError {
    /// An address is none, or there is none.
    #[error("{what}")]
    Endpoint {
        /// What is wrong.
        what: String,
    },
    /// A certificate or key can't be used.
    #[error("the {part} for etcd can't be used: {reason}")]
    Tls {
        /// Which part.
        part: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// This node's part in a catalog that etcd keeps. Clones are the same part.
///
/// Use: [`open`](Self::open) it, [`wait_filled`](Self::wait_filled) if the copy of the rows is needed at once, then use it as a [`Catalog`].
/// At the end [`shutdown`](Self::shutdown).
#[derive(Clone, Debug)]
pub struct Etcd {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: RaftNodeId,
    request_timeout: Duration,
    keys: Keys,
    link: Link,
    mirror: Mirror,
    permits: Semaphore,
    /// The revision of the last change that this node made.
    changed: AtomicU64,
    /// Asks for all rows again.
    begin_again: Notify,
    /// Why etcd does not answer, while it does not.
    unreachable: Mutex<Option<String>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// Where things lie in etcd.
#[derive(Debug)]
struct Keys {
    /// What the keys of rows begin with.
    rows: String,
    /// The key that every change writes.
    last: Vec<u8>,
    /// The first of all our keys, and the first that is not ours any more.
    all: Vec<u8>,
    all_end: Vec<u8>,
}

impl Keys {
    fn under(prefix: &str) -> Self {
        Self {
            rows: format!("{prefix}/row/"),
            last: format!("{prefix}/last").into_bytes(),
            all: format!("{prefix}/").into_bytes(),
            // The character after the slash.
            all_end: format!("{prefix}0").into_bytes(),
        }
    }

    fn of(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.rows).into_bytes()
    }

    fn name(&self, key: &[u8]) -> Option<String> {
        let name = key.strip_prefix(self.rows.as_bytes())?;
        String::from_utf8(name.to_vec()).ok()
    }

    fn read(&self, key: &str) -> RangeRequest {
        RangeRequest { key: self.of(key), ..RangeRequest::default() }
    }

    fn read_last(&self) -> RangeRequest {
        RangeRequest { key: self.last.clone(), ..RangeRequest::default() }
    }

    fn read_under(&self, prefix: &str) -> RangeRequest {
        let key = self.of(prefix);
        let range_end = after_prefix(&key);
        RangeRequest { key, range_end, limit: PAGE_ROWS, revision: 0 }
    }
}

/// The first key that does not begin with `prefix` and comes after all that do.
fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    // etcd's word for "to the end"; no key of ours consists of such bytes.
    vec![0]
}

impl Etcd {
    /// Begins to follow etcd. Must be called inside a tokio runtime; etcd need not answer yet.
    ///
    /// # Errors
    /// [`EtcdOpenError`] if an address or a certificate can't be used.
    pub fn open(config: EtcdConfig) -> Result<Self, EtcdOpenError> {
        let endpoints: Result<Vec<Endpoint>, String> =
            config.endpoints.iter().map(|text| Endpoint::parse(text)).collect();
        let endpoints = endpoints.map_err(|what| EtcdOpenError::Endpoint { what })?;
        if endpoints.is_empty() {
            return Err(EtcdOpenError::Endpoint { what: "no address of etcd is given".to_owned() });
        }
        let tls = config.tls.as_ref().map(tls_config).transpose()?;
        let keys = Keys::under(&config.prefix);
        let link = Link::new(endpoints, tls.map(Arc::new), config.request_timeout, keys.last.clone());
        let inner = Arc::new(Inner {
            node: config.node,
            request_timeout: config.request_timeout,
            keys,
            link,
            mirror: Mirror::new(config.node),
            permits: Semaphore::new(PENDING_MAX),
            changed: AtomicU64::new(0),
            begin_again: Notify::new(),
            unreachable: Mutex::new(Some("etcd has not answered yet".to_owned())),
            tasks: Mutex::default(),
        });
        let tasks = [
            tokio::spawn(follow::follow(Arc::clone(&inner))),
            tokio::spawn(follow::probe(Arc::clone(&inner))),
        ];
        inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend(tasks);
        Ok(Self { inner })
    }

    /// Waits until all rows were received once.
    ///
    /// # Errors
    /// [`CatalogError::Unreachable`] if etcd does not answer within `timeout`; it is asked on.
    pub async fn wait_filled(&self, timeout: Duration) -> Result<(), CatalogError> {
        let started = Instant::now();
        let mut progress = self.inner.mirror.progress();
        let filled = progress.wait_for(|progress| progress.applied_next > 0 || progress.closed);
        match timeout_at(started + timeout, filled).await {
            Ok(Ok(progress)) if !progress.closed => Ok(()),
            Ok(_) => Err(self.inner.mirror.closed_error("it was shut down")),
            Err(_) => {
                let reason = self.inner.why_unreachable();
                let reason = reason.unwrap_or_else(|| "not all rows came in time".to_owned());
                Err(self.inner.error(LinkError::Unreachable(reason), started))
            }
        }
    }

    /// Ends everything; watches end with [`CatalogError::Closed`]. What lies in etcd stays there.
    pub async fn shutdown(&self) {
        self.inner.mirror.close("it was shut down".to_owned());
        let tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
            // Aborted on purpose.
            let _ = task.await;
        }
    }
}

impl Inner {
    fn changed(&self) -> u64 {
        self.changed.load(Ordering::Relaxed)
    }

    fn say_reachable(&self) {
        let before = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner).take();
        if before.is_some() {
            tracing::info!("etcd answers");
        }
    }

    fn say_unreachable(&self, error: &LinkError) {
        let reason = match error {
            LinkError::Unreachable(reason) | LinkError::Refused(reason) => reason.clone(),
            LinkError::Overloaded => "it has too much to do".to_owned(),
            LinkError::WentBack(known, now) => return self.mirror.close_gone_back(*known, *now),
            LinkError::Unknown => return,
        };
        let mut unreachable = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        if unreachable.as_ref() != Some(&reason) {
            tracing::warn!(reason, "etcd does not answer");
        }
        *unreachable = Some(reason);
    }

    fn why_unreachable(&self) -> Option<String> {
        self.unreachable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn error(&self, error: LinkError, started: Instant) -> CatalogError {
        let node = self.node;
        let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match error {
            LinkError::Unreachable(reason) => CatalogError::Unreachable { node, waited_ms, reason },
            LinkError::Unknown => CatalogError::Unknown { node, waited_ms },
            LinkError::Overloaded => CatalogError::Overloaded { pending: 0, bytes: 0 },
            LinkError::Refused(reason) => CatalogError::Refused { reason },
            LinkError::WentBack(known, now) => {
                self.mirror.close_gone_back(known, now);
                self.mirror.closed_error("etcd went back")
            }
        }
    }

    /// Room for one more request, until the deadline.
    async fn permit(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, CatalogError> {
        if let Some(closed) = self.mirror.closed() {
            return Err(closed);
        }
        match timeout_at(deadline, self.permits.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(CatalogError::Overloaded { pending: PENDING_MAX as u64, bytes: 0 }),
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Versioned>, CatalogError> {
        check_key(key)?;
        let started = Instant::now();
        let deadline = started + self.request_timeout;
        let _permit = self.permit(deadline).await?;
        let read = self.link.range(&self.keys.read(key), deadline).await;
        let read = read.map_err(|error| self.error(error, started))?;
        Ok(read.rows.into_iter().next().map(versioned))
    }

    async fn range(&self, prefix: &str) -> Result<Rows, CatalogError> {
        let started = Instant::now();
        let deadline = started + self.request_timeout;
        let _permit = self.permit(deadline).await?;
        self.read_under(prefix, deadline).await.map_err(|error| self.error(error, started))
    }

    /// All rows under a prefix, and the table's revision, at one revision of etcd.
    async fn read_under(&self, prefix: &str, deadline: Instant) -> Result<Rows, LinkError> {
        let mut request = self.keys.read_under(prefix);
        let both = [Op::Range(self.keys.read_last()), Op::Range(request.clone())].to_vec();
        let first =
            self.link.ranges(&TxnRequest { success: both, ..TxnRequest::default() }, deadline).await?;
        request.revision = first.header.revision;
        let mut answers = first.ranges.into_iter();
        let (Some(last), Some(mut page)) = (answers.next(), answers.next()) else {
            return Err(LinkError::Unreachable("it answered another question".to_owned()));
        };
        let mut revision = last.rows.first().map_or(0, |last| last.mod_revision);
        let mut rows = BTreeMap::new();
        loop {
            if let Some(last) = page.rows.last() {
                // The next key that there can be.
                request.key = last.key.iter().copied().chain([0]).collect();
            }
            for row in page.rows {
                // Somebody may have written with a tool of etcd's.
                revision = revision.max(row.mod_revision);
                if let Some(key) = self.keys.name(&row.key) {
                    rows.insert(key, versioned(row));
                }
            }
            if !page.more {
                return Ok(Rows { revision, rows: rows.into_iter().collect() });
            }
            page = self.link.range(&request, deadline).await?;
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, CatalogError> {
        check_txn(&txn)?;
        let started = Instant::now();
        let deadline = started + self.request_timeout;
        let _permit = self.permit(deadline).await?;
        let (now, needed) = self.mirror.bytes_with(&txn);
        if needed > now && needed > TABLE_BYTES_MAX {
            return Err(CatalogError::Full { needed, max: TABLE_BYTES_MAX });
        }
        let request = self.request(&txn);
        // What changes nothing may be asked as often as it takes.
        let outcome = if txn.puts.is_empty() {
            self.link.ranges(&request, deadline).await
        } else {
            self.link.change(&request, deadline).await
        };
        let response = outcome.map_err(|error| self.error(error, started))?;
        let reply = reply(&txn, response);
        if reply.succeeded && !txn.puts.is_empty() {
            self.changed.fetch_max(reply.revision, Ordering::Relaxed);
        }
        Ok(reply)
    }

    fn request(&self, txn: &Txn) -> TxnRequest {
        let compare = |(key, version): &(String, u64)| Compare { key: self.keys.of(key), revision: *version };
        let put = |(key, value): &(String, Option<bytes::Bytes>)| match value {
            Some(value) => Op::Put(self.keys.of(key), value.clone()),
            None => Op::Delete(self.keys.of(key)),
        };
        let mut success: Vec<Op> = txn.puts.iter().map(put).collect();
        success.push(if success.is_empty() {
            Op::Range(self.keys.read_last())
        } else {
            Op::Put(self.keys.last.clone(), format!("{:016x}", self.node).into())
        });
        let mut failure: Vec<Op> =
            txn.compare.iter().map(|(key, _)| Op::Range(self.keys.read(key))).collect();
        failure.push(Op::Range(self.keys.read_last()));
        TxnRequest { compare: txn.compare.iter().map(compare).collect(), success, failure }
    }
}

fn reply(txn: &Txn, response: TxnResponse) -> TxnReply {
    let TxnResponse { header, succeeded, mut ranges } = response;
    let last = ranges.pop().and_then(|range| range.rows.into_iter().next());
    let revision = if succeeded && !txn.puts.is_empty() {
        header.revision
    } else {
        last.map_or(0, |last| last.mod_revision)
    };
    let found = ranges.into_iter().map(|range| range.rows.into_iter().next().map(versioned));
    let conflicts = txn.compare.iter().zip(found).filter_map(|((key, version), found)| {
        let there = found.as_ref().map_or(0, |row| row.version);
        (there != *version).then(|| (key.clone(), found))
    });
    let conflicts = if succeeded { Vec::new() } else { conflicts.collect() };
    TxnReply { succeeded, revision, conflicts }
}

fn versioned(row: KeyValue) -> Versioned {
    Versioned { value: row.value, version: row.mod_revision }
}

impl Catalog for Etcd {
    fn get(&self, key: String) -> BoxFuture<'_, Result<Option<Versioned>, CatalogError>> {
        Box::pin(async move { self.inner.get(&key).await })
    }

    fn range(&self, prefix: String) -> BoxFuture<'_, Result<Rows, CatalogError>> {
        Box::pin(async move { self.inner.range(&prefix).await })
    }

    fn get_stale(&self, key: &str) -> (u64, Option<Versioned>) {
        self.inner.mirror.row(key)
    }

    fn range_stale(&self, prefix: &str) -> Rows {
        self.inner.mirror.rows_under(prefix)
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, CatalogError>> {
        Box::pin(self.inner.txn(txn))
    }

    fn watch(&self, prefix: String, from: u64) -> WatchStream {
        WatchStream::new(Box::new(LocalWatch { feed: Arc::clone(&self.inner), prefix, from }))
    }

    fn leader(&self) -> Option<RaftNodeId> {
        None
    }

    fn status(&self) -> CatalogStatus {
        let inner = &self.inner;
        let failure = inner.mirror.closed().map(|error| error.to_string());
        let unreachable = inner.why_unreachable();
        let revision = inner.mirror.revision();
        CatalogStatus {
            engine: EngineKind::Etcd,
            node: inner.node,
            role: if failure.is_some() { Role::Closed } else { Role::Client },
            leader: None,
            term: 0,
            applied: revision,
            last_log: revision,
            revision,
            voters: BTreeMap::new(),
            learners: BTreeMap::new(),
            has_quorum: failure.is_none() && unreachable.is_none(),
            failure,
            unreachable,
        }
    }
}

impl Feed for Inner {
    fn progress(&self) -> watch::Receiver<Progress> {
        self.mirror.progress()
    }

    fn read_history(&self, prefix: &str, from: u64) -> Reading {
        self.mirror.read_history(prefix, from)
    }

    fn rows_under(&self, prefix: &str) -> Rows {
        self.mirror.rows_under(prefix)
    }

    fn closed_error(&self, reason: &str) -> CatalogError {
        self.mirror.closed_error(reason)
    }
}

fn tls_config(tls: &EtcdTls) -> Result<rustls::ClientConfig, EtcdOpenError> {
    let wrong = |part| move |reason: String| EtcdOpenError::Tls { part, reason };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&tls.ca).map_err(wrong("authority (ca)"))? {
        roots.add(certificate).map_err(|error| wrong("authority (ca)")(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("TLS library")(error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match &tls.client {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate).map_err(wrong("certificate"))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong("key")(error.to_string()))?;
            config
                .with_client_auth_cert(chain, key)
                .map_err(|error| wrong("certificate with its key")(error.to_string()))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The certificates of a PEM text, at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| error.to_string())?;
    if found.is_empty() {
        return Err("it has no certificate in PEM form".to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lie_under_the_prefix_and_come_back() {
        let keys = Keys::under("site/home");
        assert_eq!(keys.of("view"), b"site/home/row/view");
        assert_eq!(keys.name(b"site/home/row/node/1"), Some("node/1".to_owned()));
        assert_eq!(keys.name(&keys.last), None);
        assert_eq!(keys.name(b"site/home/row/\xff"), None);
        assert!(keys.all.as_slice() < keys.last.as_slice() && keys.last < keys.all_end);
        assert_eq!(after_prefix(b"a/"), b"a0");
        assert_eq!(after_prefix(b"a\xff"), b"b");
        assert_eq!(keys.read_under("").range_end, b"site/home/row0");
    }

    #[test]
    fn what_stood_against_a_transaction_is_told_and_nothing_else() {
        let row = |revision| KeyValue { key: b"k".to_vec(), value: "v".into(), mod_revision: revision };
        let range = |rows| proto::RangeResponse { rows, ..Default::default() };
        let txn = Txn {
            compare: vec![("a".into(), 3), ("b".into(), 0), ("c".into(), 5)],
            puts: vec![("a".into(), None)],
        };
        let ranges = vec![range(vec![row(3)]), range(vec![row(4)]), range(vec![]), range(vec![row(9)])];
        let reply = reply(&txn, TxnResponse { ranges, ..TxnResponse::default() });
        assert_eq!((reply.succeeded, reply.revision), (false, 9));
        let conflicts: Vec<_> = reply
            .conflicts
            .iter()
            .map(|(key, row)| (key.as_str(), row.as_ref().map(|row| row.version)))
            .collect();
        assert_eq!(conflicts, [("b", Some(4)), ("c", None)]);
    }

    #[test]
    fn settings_that_can_not_serve_are_refused_before_anything_is_asked() {
        let ca = |text: &str| EtcdTls { ca: text.as_bytes().to_vec(), client: None };
        let refused = tls_config(&ca("not a certificate")).unwrap_err().to_string();
        assert!(refused.contains("authority") && refused.contains("no certificate"), "{refused}");
        let config = EtcdConfig {
            endpoints: Vec::new(),
            prefix: "p".into(),
            tls: None,
            node: 1,
            request_timeout: Duration::from_secs(1),
        };
        assert!(Etcd::open(config.clone()).unwrap_err().to_string().contains("no address"));
        let wrong = EtcdConfig { endpoints: vec!["10.0.0.1:2379".into()], ..config };
        assert!(Etcd::open(wrong).unwrap_err().to_string().contains("http://host:port"));
    }
}
