//! A small client of Redis: pipelined SET and GET over one connection, with the answers checked one by one.
//!
//! It knows as much of the protocol as the demo needs and refuses everything else; it never retries, because only the caller knows
//! what an unanswered write means. Read `load.rs` next.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longest value that is accepted, in bytes.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// One connection to a server.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    requests: Vec<u8>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// `+OK` and its like.
    Simple(String),
    /// A number.
    Number(i64),
    /// A value, or nothing under that key.
    Value(Option<Vec<u8>>),
}

impl Connection {
    /// Takes over a connected stream; an answer that takes longer than `patience` is an error.
    pub(super) fn new(stream: TcpStream, patience: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let reader = BufReader::new(stream.try_clone()?);
        let connection = Self { stream, reader, requests: Vec::new() };
        connection.set_patience(patience)?;
        Ok(connection)
    }

    /// From now on an answer that takes longer than `patience` is an error.
    pub(super) fn set_patience(&self, patience: Duration) -> io::Result<()> {
        // The reader's half is the same socket.
        self.stream.set_read_timeout(Some(patience))?;
        self.stream.set_write_timeout(Some(patience))
    }

    /// Adds a request to the next batch.
    pub(super) fn request(&mut self, words: &[&[u8]]) {
        let buffer = &mut self.requests;
        buffer.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            buffer.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            buffer.extend_from_slice(word);
            buffer.extend_from_slice(b"\r\n");
        }
    }

    /// Sends the batch; the answers come in the order of the requests. Whatever came beyond the last answer would be taken for
    /// one of them, so it is an error.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.reader.buffer().is_empty() {
            return Err(wrong(&String::from_utf8_lossy(self.reader.buffer())));
        }
        self.stream.write_all(&self.requests)?;
        self.requests.clear();
        Ok(())
    }

    /// The next answer. An error that the server reports is an error here.
    pub(super) fn answer(&mut self) -> io::Result<Answer> {
        answer(&mut self.reader)
    }

    /// One request and its answer.
    pub(super) fn ask(&mut self, words: &[&[u8]]) -> io::Result<Answer> {
        self.request(words);
        self.flush()?;
        self.answer()
    }
}

/// The next answer. An error that the server reports is an error here.
pub(super) fn answer(reader: &mut impl BufRead) -> io::Result<Answer> {
    let line = line(reader)?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| wrong(&line))?;
    match kind {
        "+" => Ok(Answer::Simple(rest.to_owned())),
        "-" => Err(io::Error::other(format!("the server refused: {rest}"))),
        ":" => rest.parse().map(Answer::Number).map_err(|_| wrong(&line)),
        "$" if rest == "-1" => Ok(Answer::Value(None)),
        "$" => {
            let length: usize = rest.parse().map_err(|_| wrong(&line))?;
            value(reader, length).map(|value| Answer::Value(Some(value)))
        }
        _ => Err(wrong(&line)),
    }
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    // An answer's first line is short; a longer one is not from a server of this kind.
    if reader.by_ref().take(4096).read_line(&mut line)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
    }
    line.strip_suffix("\r\n").map(str::to_owned).ok_or_else(|| wrong(&line))
}

fn value(reader: &mut impl BufRead, length: usize) -> io::Result<Vec<u8>> {
    if length > VALUE_BYTES_MAX {
        return Err(io::Error::other(format!("the server announced a value of {length} bytes")));
    }
    let mut value = vec![0; length + 2];
    reader.read_exact(&mut value)?;
    let end = value.split_off(length);
    if end != b"\r\n" {
        return Err(wrong(&String::from_utf8_lossy(&end)));
    }
    Ok(value)
}

fn wrong(line: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the server answered {line:?}, which is not its protocol"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn served(answers: &'static [u8]) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(answers));
        Connection::new(TcpStream::connect(address).unwrap(), Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn reads_every_kind_of_answer() {
        let mut connection = served(b"+OK\r\n:12\r\n$3\r\na\r\n\r\n$-1\r\n-ERR no\r\n");
        assert_eq!(connection.answer().unwrap(), Answer::Simple("OK".into()));
        assert_eq!(connection.answer().unwrap(), Answer::Number(12));
        assert_eq!(connection.answer().unwrap(), Answer::Value(Some(b"a\r\n".to_vec())));
        assert_eq!(connection.answer().unwrap(), Answer::Value(None));
        assert!(connection.answer().unwrap_err().to_string().contains("ERR no"));
        assert_eq!(connection.answer().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn refuses_what_is_not_the_protocol() {
        for answers in
            [&b"hello\r\n"[..], b"\r\n", b"$99999999\r\n", b"$x\r\n", b"$1\r\nabc\r\n", b"$1\r\na\n\r"]
        {
            assert!(served(answers).answer().is_err());
        }
    }

    #[test]
    fn what_comes_beyond_the_answer_is_taken_for_no_answer_to_the_next_request() {
        let mut connection = served(b"+PONG\r\n+OK\r\n");
        assert_eq!(connection.ask(&[b"PING"]).unwrap(), Answer::Simple("PONG".into()));
        assert!(connection.ask(&[b"PING"]).is_err());
    }
}
