//! etcd as its other users meet it: one put, one read, one connection. For comparisons only; the catalog itself goes through `link`.
//!
//! It must not do anything for its user: no other member is asked, nothing is repeated.

use std::time::Duration;

use bytes::Bytes;

use super::grpc::{CallError, Connection, Endpoint};
use super::proto::{RangeRequest, RangeResponse, put_request};

const ANSWER_BYTES_MAX: usize = 8 << 20;

/// One connection to one member.
#[derive(Debug)]
pub struct RawEtcd {
    connection: Connection,
}

impl RawEtcd {
    /// Connects to `http://host:port`.
    ///
    /// # Errors
    /// One clause that says why not.
    pub async fn connect(endpoint: &str, timeout: Duration) -> Result<Self, String> {
        let connection = Connection::open(&Endpoint::parse(endpoint)?, None, timeout).await?;
        Ok(Self { connection })
    }

    /// Writes one key.
    ///
    /// # Errors
    /// What etcd said, or that it said nothing.
    pub async fn put(&self, key: &str, value: &Bytes) -> Result<(), String> {
        self.ask("/etcdserverpb.KV/Put", &put_request(key.as_bytes(), value)).await.map(drop)
    }

    /// Reads one key, through a majority.
    ///
    /// # Errors
    /// What etcd said, or that it said nothing.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, String> {
        let request = RangeRequest { key: key.as_bytes().to_vec(), ..RangeRequest::default() };
        let answer = self.ask("/etcdserverpb.KV/Range", &request.encode()).await?;
        let answer = RangeResponse::decode(&answer).map_err(|error| error.to_string())?;
        Ok(answer.rows.into_iter().next().map(|row| row.value))
    }

    async fn ask(&self, path: &'static str, message: &[u8]) -> Result<Bytes, String> {
        let asking = async { self.connection.ask(path, message).await?.answer(ANSWER_BYTES_MAX).await };
        asking.await.map_err(|error| match error {
            CallError::Unsent(reason) | CallError::Lost(reason) | CallError::Status(reason) => reason,
        })
    }
}
