//! Clients of an agent's API that cost little beside what they measure: one connection that emits event after event, and
//! one that hears the stream.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

/// How long an answer or an event is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// The type of what is emitted.
const KIND: &str = "user.bench";

/// Emits events, over one connection.
pub struct Emitter {
    stream: BufReader<UnixStream>,
}

/// Hears what is emitted, over one connection.
pub struct Listener {
    stream: BufReader<UnixStream>,
}

impl Emitter {
    /// Connects to an agent.
    pub fn open(socket: &Path) -> anyhow::Result<Emitter> {
        Ok(Emitter { stream: connect(socket)? })
    }

    /// Emits the event of this number.
    pub fn emit(&mut self, number: u64) -> anyhow::Result<()> {
        let body = format!("{{\"type\":\"{KIND}\",\"fields\":{{\"n\":{number}}}}}");
        let request = format!(
            "POST /v1/events HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        Ok(())
    }

    /// Waits until the agent has answered the last one.
    pub fn answer(&mut self) -> anyhow::Result<()> {
        let (status, length) = read_head(&mut self.stream)?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        if !status.contains(" 200 ") {
            bail!("the agent answered {}: {}", status.trim(), String::from_utf8_lossy(&body));
        }
        Ok(())
    }
}

impl Listener {
    /// Listens at an agent to what is emitted anywhere.
    pub fn to_emitted(socket: &Path) -> anyhow::Result<Listener> {
        Listener::open(socket, &format!("type%3D{KIND}"))
    }

    /// Listens at an agent with this filter, percent-encoded.
    pub fn open(socket: &Path, filter: &str) -> anyhow::Result<Listener> {
        let mut stream = connect(socket)?;
        let request = format!(
            "GET /v1/events?filter={filter} HTTP/1.1\r\nhost: agent\r\naccept: text/event-stream\r\n\r\n"
        );
        stream.get_mut().write_all(request.as_bytes())?;
        let (status, _) = read_head(&mut stream)?;
        if !status.contains(" 200 ") {
            bail!("the agent refuses to let its events be followed: {}", status.trim());
        }
        Ok(Listener { stream })
    }

    /// The next event, as JSON.
    pub fn next(&mut self) -> anyhow::Result<String> {
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).context("no event came")? == 0 {
                bail!("the agent ended its stream of events");
            }
            if let Some(data) = line.strip_prefix("data:") {
                return Ok(data.trim().to_owned());
            }
        }
    }

    /// Waits for the event of this number or a later one; others are passed over.
    pub fn wait(&mut self, number: u64) -> anyhow::Result<()> {
        while number_of(&self.next()?).is_none_or(|found| found < number) {}
        Ok(())
    }

    /// The number of the next event, however long it takes.
    pub fn number(&mut self) -> anyhow::Result<u64> {
        self.stream.get_ref().set_read_timeout(None)?;
        loop {
            if let Some(number) = number_of(&self.next()?) {
                return Ok(number);
            }
        }
    }

    /// The number of the next event; absent where the wait was too long, within `patience`.
    pub fn number_within(&mut self, patience: Duration) -> anyhow::Result<Option<u64>> {
        self.stream.get_ref().set_read_timeout(Some(patience))?;
        let found = self.next();
        self.stream.get_ref().set_read_timeout(Some(ANSWER_MAX))?;
        Ok(found.ok().as_deref().and_then(number_of))
    }
}

/// Emits until the listener hears it: from then on, whoever listens is known where it happens. Returns the next number.
pub fn warm_up(emitter: &mut Emitter, listener: &mut Listener, first: u64) -> anyhow::Result<u64> {
    for number in first..first + 200 {
        emitter.emit(number)?;
        emitter.answer()?;
        if listener.number_within(Duration::from_millis(100))?.is_some() {
            return Ok(number + 1);
        }
    }
    bail!("an event of one agent never came to a listener of another");
}

/// What an event says its number is.
fn number_of(event: &str) -> Option<u64> {
    let (_, rest) = event.split_once("\"n\":")?;
    let digits = rest.find(|sign: char| !sign.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..digits)?.parse().ok()
}

fn connect(socket: &Path) -> anyhow::Result<BufReader<UnixStream>> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    Ok(BufReader::new(stream))
}

/// The first line of an answer, and how long its body is.
fn read_head(stream: &mut impl BufRead) -> anyhow::Result<(String, usize)> {
    let mut status = String::new();
    stream.read_line(&mut status)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            bail!("the agent closed the connection");
        }
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            return Ok((status, length));
        }
        if let Some(given) = line.strip_prefix("content-length:") {
            length = given.trim().parse()?;
        }
    }
}
