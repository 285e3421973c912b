//! Debian's nats-server with its defaults, and clients that speak its protocol of lines over one TCP connection each.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

const BOOT_MAX: Duration = Duration::from_secs(20);
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// A server of this benchmark's own.
pub struct Server {
    child: Child,
    address: SocketAddr,
}

/// A connection to it.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Server {
    /// Starts one and waits until it answers.
    pub fn start() -> anyhow::Result<Server> {
        let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new("nats-server")
            .args(["-a", "127.0.0.1", "-p", &free.port().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("there is no nats-server to compare with; install Debian's nats-server")?;
        let server = Server { child, address: free };
        let asked = Instant::now();
        while server.client().is_err() {
            if asked.elapsed() > BOOT_MAX {
                bail!("nats-server does not answer at {free}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// A new connection.
    pub fn client(&self) -> anyhow::Result<Client> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut client = Client { stream: BufReader::new(stream) };
        client.line()?;
        client.say("CONNECT {\"verbose\":false,\"pedantic\":false}\r\n")?;
        client.flush()?;
        Ok(client)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Client {
    /// Subscribes, and waits until the server knows.
    pub fn subscribe(&mut self, subject: &str) -> anyhow::Result<()> {
        self.say(&format!("SUB {subject} 1\r\n"))?;
        self.flush()
    }

    /// Publishes these events in one write.
    pub fn publish(&mut self, subject: &str, events: &[String]) -> anyhow::Result<()> {
        let text: String =
            events.iter().map(|event| format!("PUB {subject} {}\r\n{event}\r\n", event.len())).collect();
        self.say(&text)
    }

    /// The next message.
    pub fn next(&mut self) -> anyhow::Result<String> {
        loop {
            let line = self.line()?;
            if line == "PING" {
                self.say("PONG\r\n")?;
            } else if line.starts_with("MSG ") {
                let length: usize = line.rsplit(' ').next().unwrap_or_default().parse()?;
                let mut body = vec![0; length + 2];
                self.stream.read_exact(&mut body)?;
                body.truncate(length);
                return Ok(String::from_utf8(body)?);
            } else if line.starts_with("-ERR") {
                bail!("nats-server says {line}");
            }
        }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.say("PING\r\n")?;
        while self.line()? != "PONG" {}
        Ok(())
    }

    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.stream.get_mut().write_all(text.as_bytes())?)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("nats-server closed the connection");
        }
        Ok(line.trim().to_owned())
    }
}
