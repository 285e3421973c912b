//! A bridge to NATS: each event is published under `steadfast.CLUSTER.NODE.TYPE`.
//!
//! It speaks the five verbs of NATS's text protocol that publishing takes, because a client library would add a seventh to
//! the packages of the whole product. An event counts as taken when the server has answered the ping behind it. It must
//! never go on with a connection that an attempt was dropped on. What the server does with the message is its own affair.

use std::fmt;
use std::io;
use std::path::Path;

use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Mutex;

use super::connect::{Address, Trust, Wire};
use super::{AddressError, Carrier, Refusal, Settings, TrustError};
use crate::events::cloud::CloudEvent;

/// The longest line of a server that is read, in bytes; its list of servers is the longest that is sent.
const LINE_BYTES_MAX: u64 = 256 * 1024;
/// What a server takes that does not say, in bytes.
const PAYLOAD_BYTES: u64 = 1 << 20;

/// Publishes events to one server.
pub struct Nats {
    address: Address,
    trust: Option<Trust>,
    /// Nobody is in it while an attempt uses it, so that a dropped attempt takes the connection with it.
    idle: Mutex<Option<Connection>>,
}

/// A bridge that can't be used; nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The authorities can't be read.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

struct Connection {
    stream: BufReader<Box<dyn Wire>>,
    payload_bytes_max: u64,
}

impl Nats {
    /// For `nats://[USER:PASSWORD@ or TOKEN@]HOST[:PORT]`, or `tls://…`, which is believed by `authority`, a file in PEM
    /// form, or by the machine's authorities.
    pub fn new(address: &str, authority: Option<&Path>) -> Result<Nats, NatsError> {
        let schemes = [("nats", 4_222), ("tls", 4_222)];
        let address = Address::parse(address, schemes, "nats://127.0.0.1:4222")?;
        let trust = if address.is_sealed { Some(Trust::load(authority)?) } else { None };
        Ok(Nats { address, trust, idle: Mutex::new(None) })
    }

    /// The usual settings, with one event at a time: subscribers see them in order as long as none fails.
    pub fn settings() -> Settings {
        Settings { at_once_max: 1, ..Settings::default() }
    }

    async fn open(&self) -> io::Result<Connection> {
        let stream: Box<dyn Wire> = Box::new(self.address.connect().await?);
        let mut stream = BufReader::new(stream);
        let greeting = line(&mut stream).await?;
        let information =
            greeting.strip_prefix("INFO ").and_then(|text| serde_json::from_str::<Json>(text).ok());
        let Some(information) = information else {
            return Err(io::Error::other("what answers there is no NATS server"));
        };
        let wants_tls = information.get("tls_required").and_then(Json::as_bool).unwrap_or(false);
        match &self.trust {
            // The server says nothing before the client does, so that no byte is left behind in the buffer.
            Some(trust) => stream = BufReader::new(self.address.seal(stream.into_inner(), trust).await?),
            None if wants_tls => {
                return Err(io::Error::other("the server wants TLS; write tls:// in its address"));
            }
            None => {}
        }
        stream.write_all(format!("CONNECT {}\r\nPING\r\n", self.introduction()).as_bytes()).await?;
        stream.flush().await?;
        let payload_bytes_max =
            information.get("max_payload").and_then(Json::as_u64).unwrap_or(PAYLOAD_BYTES);
        let mut connection = Connection { stream, payload_bytes_max };
        match connection.pong().await? {
            None => Ok(connection),
            Some(error) => Err(io::Error::other(error)),
        }
    }

    fn introduction(&self) -> Json {
        let mut words = json!({
            "verbose": false,
            "pedantic": false,
            "echo": false,
            "name": "steadfast",
            "lang": "rust",
            "version": env!("CARGO_PKG_VERSION"),
            "protocol": 1,
            "tls_required": self.trust.is_some(),
        });
        match self.address.credentials.as_deref().map(|text| text.split_once(':').ok_or(text)) {
            Some(Ok((user, password))) => {
                words["user"] = user.into();
                words["pass"] = password.into();
            }
            Some(Err(token)) => words["auth_token"] = token.into(),
            None => {}
        }
        words
    }
}

impl Carrier for Nats {
    async fn carry(&self, event: &CloudEvent) -> Result<(), Refusal> {
        let payload = serde_json::to_vec(event).map_err(Refusal::never)?;
        let subject = subject(event);
        let mut idle = self.idle.lock().await;
        if let Some(mut connection) = idle.take() {
            // A server that was restarted, or that ended a quiet connection, is met again below.
            if let Ok(refused) = connection.publish(&subject, &payload).await {
                *idle = Some(connection);
                return refused;
            }
        }
        let lost = |error: io::Error| {
            Refusal::later(format!("{} takes no events: {error}", self.address.authority()))
        };
        let mut connection = self.open().await.map_err(lost)?;
        let refused = connection.publish(&subject, &payload).await.map_err(lost)?;
        *idle = Some(connection);
        refused
    }
}

impl Connection {
    /// Publishes and waits until the server has read it; what it refuses is in the inner result.
    async fn publish(&mut self, subject: &str, payload: &[u8]) -> io::Result<Result<(), Refusal>> {
        if u64::try_from(payload.len()).unwrap_or(u64::MAX) > self.payload_bytes_max {
            let max = self.payload_bytes_max;
            return Ok(Err(Refusal::never(format!(
                "the event has {} bytes, and the server takes {max}",
                payload.len()
            ))));
        }
        self.stream.write_all(format!("PUB {subject} {}\r\n", payload.len()).as_bytes()).await?;
        self.stream.write_all(payload).await?;
        self.stream.write_all(b"\r\nPING\r\n").await?;
        self.stream.flush().await?;
        Ok(self.pong().await?.map_or(Ok(()), |error| Err(Refusal::never(error))))
    }

    /// Reads up to the answer to our ping; returns what the server refused without ending the connection.
    async fn pong(&mut self) -> io::Result<Option<String>> {
        let mut refused = None;
        loop {
            let line = line(&mut self.stream).await?;
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("PONG", _) => return Ok(refused),
                ("PING", _) => {
                    self.stream.write_all(b"PONG\r\n").await?;
                    self.stream.flush().await?;
                }
                ("-ERR", error) if error.starts_with("'Permissions Violation") => {
                    refused = Some(format!("the server refuses it: {error}"));
                }
                ("-ERR", error) => {
                    return Err(io::Error::other(format!("the server ended the connection: {error}")));
                }
                // News about the cluster, and agreement.
                _ => {}
            }
        }
    }
}

async fn line(stream: &mut BufReader<Box<dyn Wire>>) -> io::Result<String> {
    let mut line = String::new();
    stream.take(LINE_BYTES_MAX).read_line(&mut line).await?;
    if !line.ends_with('\n') {
        let why =
            if line.is_empty() { "the server ended the connection" } else { "the server's line has no end" };
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
    }
    Ok(line.trim_end().to_owned())
}

/// `steadfast.CLUSTER.NODE.TYPE`; what would be more than one word, or a wild card, is made plain.
pub fn subject(event: &CloudEvent) -> String {
    let word = |text: &str| -> String {
        let plain =
            |letter: char| if letter.is_ascii_alphanumeric() || "-_".contains(letter) { letter } else { '_' };
        if text.is_empty() { "_".to_owned() } else { text.chars().map(plain).collect() }
    };
    let (cluster, node) = event.cluster_and_node().unwrap_or_default();
    let kind: Vec<String> = event.short_type().split('.').map(word).collect();
    format!("steadfast.{}.{}.{}", word(cluster), word(node), kind.join("."))
}

/// Without a password.
impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nats").field("address", &self.address.authority()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use steadfast_proto::events::Value;

    use super::super::Sink;
    use super::super::tests::{PATIENCE, numbered, quick};
    use super::*;
    use crate::events::Delivery;
    use crate::events::cloud::tests::event;

    /// A server of the test's own, ended with it.
    struct Server {
        child: Child,
        port: u16,
        _folder: tempfile::TempDir,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            // Both fail only where it has ended already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// Starts the distribution's server on loopback; port 0 lets it choose.
    fn server(port: u16, further: &[&str]) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let port_text = if port == 0 { "-1".to_owned() } else { port.to_string() };
        let child = Command::new("nats-server")
            .args(["-a", "127.0.0.1", "-p", &port_text, "--ports_file_dir"])
            .arg(folder.path())
            .args(further)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is installed: `cargo xtask setup`");
        let mut server = Server { child, port, _folder: folder };
        let begun = Instant::now();
        server.port = loop {
            assert!(begun.elapsed() < PATIENCE, "the server does not come up");
            let file = server._folder.path().join(format!("nats-server_{}.ports", server.child.id()));
            let ports = std::fs::read_to_string(file).unwrap_or_default();
            if let Ok(ports) = serde_json::from_str::<Json>(&ports) {
                let address = ports["nats"][0].as_str().unwrap();
                break address.rsplit(':').next().unwrap().parse().unwrap();
            }
            std::thread::yield_now();
        };
        server
    }

    /// A second connection that has subscribed to everything of ours.
    async fn subscriber(port: u16) -> Connection {
        let nats = Nats::new(&format!("nats://127.0.0.1:{port}"), None).unwrap();
        let mut connection = nats.open().await.unwrap();
        connection.stream.write_all(b"SUB steadfast.> 1\r\nPING\r\n").await.unwrap();
        assert_eq!(connection.pong().await.unwrap(), None);
        connection
    }

    /// The next message: its subject and its event.
    async fn next(connection: &mut Connection) -> (String, CloudEvent) {
        let waiting = async {
            loop {
                let head = line(&mut connection.stream).await.unwrap();
                let words: Vec<&str> = head.split(' ').collect();
                if words[0] != "MSG" {
                    continue;
                }
                let mut body = vec![0; words.last().unwrap().parse::<usize>().unwrap() + 2];
                connection.stream.read_exact(&mut body).await.unwrap();
                return (words[1].to_owned(), serde_json::from_slice(&body[..body.len() - 2]).unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("a message comes")
    }

    #[tokio::test]
    async fn events_arrive_in_order_under_their_subjects_and_after_a_restart_of_the_server() {
        let mut running = server(0, &[]);
        let port = running.port;
        let mut subscribed = subscriber(port).await;
        let nats = Nats::new(&format!("nats://127.0.0.1:{port}"), None).unwrap();
        let settings = Settings { attempts_max: 1_000_000, ..quick() };
        let (sink, _given_up) = Sink::start(nats, Settings { at_once_max: 1, ..settings });
        let usage = CloudEvent::new(
            "prod",
            &Delivery::Event(event("disk.usage", 1, &[("percent", Value::Integer(91))])),
        );
        sink.offer(usage.clone());
        assert_eq!(next(&mut subscribed).await, ("steadfast.prod.alpha.disk.usage".to_owned(), usage));
        for number in 1..=100 {
            sink.offer(numbered(number));
        }
        for number in 1..=100 {
            assert_eq!(
                next(&mut subscribed).await,
                ("steadfast.prod.alpha.user.test".to_owned(), numbered(number))
            );
        }
        drop(running);
        sink.offer(numbered(101));
        let begun = Instant::now();
        while sink.report().retries == 0 {
            assert!(begun.elapsed() < PATIENCE, "{:?}", sink.report());
            tokio::task::yield_now().await;
        }
        // Until somebody listens there again, the event waits; the server must not take it before the subscriber is
        // there, since the bus keeps nothing. A new event goes the same way.
        running = server(port, &[]);
        let mut subscribed = subscriber(port).await;
        sink.offer(numbered(102));
        loop {
            if next(&mut subscribed).await.1 == numbered(102) {
                break;
            }
        }
        let report = sink.close(PATIENCE).await;
        assert_eq!((report.delivered, report.given_up, report.missed), (103, 0, 0), "{report:?}");
        drop(running);
    }

    #[tokio::test]
    async fn credentials_are_given_and_wrong_ones_are_reported() {
        let running = server(0, &["--user", "us", "--pass", "them"]);
        let settings = Settings { attempts_max: 1, ..quick() };
        for (credentials, delivered) in [("us:them@", 1), ("us:nobody@", 0), ("", 0)] {
            let nats = Nats::new(&format!("nats://{credentials}127.0.0.1:{}", running.port), None).unwrap();
            assert!(!format!("{nats:?}").contains("them"));
            let (sink, _given_up) = Sink::start(nats, settings);
            sink.offer(numbered(1));
            let report = sink.close(PATIENCE).await;
            assert_eq!(report.delivered, delivered, "{credentials}: {report:?}");
            let reason =
                report.latest_given_up.front().map(|given_up| given_up.reason.as_str()).unwrap_or_default();
            assert!(delivered == 1 || reason.contains("Authorization Violation"), "{reason}");
        }
    }

    #[tokio::test]
    async fn an_event_that_is_too_large_is_given_up_on_and_the_next_goes_through() {
        let running = server(0, &[]);
        let nats = Nats::new(&format!("nats://127.0.0.1:{}", running.port), None).unwrap();
        let (sink, _given_up) = Sink::start(nats, Settings { at_once_max: 1, ..quick() });
        let mut large = numbered(1);
        large.data.insert("text".into(), "x".repeat(2 << 20).into());
        sink.offer(large);
        sink.offer(numbered(2));
        let report = sink.close(PATIENCE).await;
        assert_eq!((report.delivered, report.given_up, report.retries), (1, 1, 0), "{report:?}");
        assert!(report.latest_given_up[0].reason.contains("the server takes 1048576"));
    }

    #[test]
    fn a_subject_has_plain_words_only() {
        let mut event = numbered(1);
        event.source = "/clusters/pr od/nodes/a.*>".into();
        assert_eq!(subject(&event), "steadfast.pr_od.a___.user.test");
    }
}
