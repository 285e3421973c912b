//! A group's row in the catalog of a running cluster, reached through the agent of this machine.
//!
//! Decides nothing: the agent compares and swaps. It speaks the agent's HTTP API on its Unix socket. Must never take a
//! request that may have been carried out for one that was not. Read `docs/protocols/groups.md` for standbys.
//!
//! ```no_run
//! use steadfast::group::AgentRegister;
//! use steadfast_proto::group::{Member, Row};
//! # async fn three_lines(me: Member) -> Result<(), steadfast::group::RegisterError> {
//! let register = AgentRegister::new("/var/lib/steadfast/steadfast.sock", "kv");
//! let row = register.found(&Row::founded(vec![me])).await?;
//! // Then Group::founder(me, .., row) and GroupHandle::spawn with this register.
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use steadfast_proto::group::{Member, Row, Swapped};
use steadfast_proto::ids::{Incarnation, ViewId};
use tokio::net::UnixStream;

use super::register::{Register, RegisterError, Seen, row_from_text, row_to_text};
use crate::catalog::BoxFuture;

/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a process that waits says so.
const STAND_BY_EVERY: Duration = Duration::from_millis(500);

/// A group's row, kept by the cluster whose agent is behind a socket.
#[derive(Clone, Debug)]
pub struct AgentRegister {
    socket: PathBuf,
    path: String,
}

/// What an operator wants of a process that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Nothing yet.
    Wait,
    /// It is to take this member's place.
    Replace(Member),
    /// It is a full member.
    Full,
    /// It was named and is not wanted any more: only its next incarnation can be named.
    Withdrawn,
}

/// What became of a process that was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is a full member.
    Promoted,
    /// It is not wanted any more: end its group, and wait again in the next incarnation.
    Withdrawn,
}

impl AgentRegister {
    /// The row of the group of this name; connects at each request. A name that is not allowed is refused then.
    pub fn new(socket: impl Into<PathBuf>, group: &str) -> AgentRegister {
        AgentRegister { socket: socket.into(), path: format!("/v1/groups/{}", segment(group)) }
    }

    /// Writes the first row, unless there is one, and returns the row that is there.
    ///
    /// # Errors
    /// The agent did not answer (the row may have been written), or refuses the name or the row.
    pub async fn found(&self, first: &Row) -> Result<Row, RegisterError> {
        let swap = SwapBody { expected: None, next: row_to_text(first) };
        let answer: SwapAnswer = self.ask(Method::PUT, "", Some(&swap)).await?.ok_or_else(gone)?;
        let row = answer
            .row
            .ok_or_else(|| RegisterError::Unreachable("it is not known whether it was written".into()))?;
        Ok(row_from_text(&row)?)
    }

    /// Says once that `me` waits to be named, and what is wanted of it. To be repeated.
    ///
    /// # Errors
    /// The agent did not answer, or refuses.
    pub async fn stand_by(&self, me: Member) -> Result<Offer, RegisterError> {
        let Some(answer) = self.say_waiting(me).await? else { return Ok(Offer::Wait) };
        Ok(match answer.replaces.map(MemberText::member).transpose()? {
            _ if answer.full => Offer::Full,
            _ if answer.withdrawn => Offer::Withdrawn,
            Some(victim) => Offer::Replace(victim),
            None => Offer::Wait,
        })
    }

    /// Waits until an operator names `me`, also while the group is not founded yet; returns whose place it is to take, or
    /// `None` once that was withdrawn: then wait again in the next incarnation.
    ///
    /// # Errors
    /// The agent refuses, as for a life of `me` that is not its newest, or `me` is a full member already.
    pub async fn named(&self, me: Member) -> Result<Option<Member>, RegisterError> {
        loop {
            match self.stand_by(me).await {
                Ok(Offer::Replace(victim)) => return Ok(Some(victim)),
                Ok(Offer::Withdrawn) => return Ok(None),
                Ok(Offer::Full) => {
                    let why =
                        "an earlier process of this incarnation is a full member; start with a higher one";
                    return Err(RegisterError::Refused(why.to_owned()));
                }
                Err(error @ RegisterError::Refused(_)) => return Err(error),
                Err(error) => tracing::debug!(%error, "the agent does not hear now that this process waits"),
                Ok(Offer::Wait) => (),
            }
            tokio::time::sleep(STAND_BY_EVERY).await;
        }
    }

    /// Waits, after `me` was named, until it is a full member or is not wanted any more.
    pub async fn settled(&self, me: Member) -> Settled {
        loop {
            match self.stand_by(me).await {
                Ok(Offer::Full) => return Settled::Promoted,
                Ok(Offer::Wait | Offer::Withdrawn) | Err(RegisterError::Refused(_)) => {
                    return Settled::Withdrawn;
                }
                Err(error) => tracing::debug!(%error, "what became of this candidate can't be read now"),
                Ok(Offer::Replace(_)) => (),
            }
            tokio::time::sleep(STAND_BY_EVERY).await;
        }
    }

    async fn say_waiting(&self, me: Member) -> Result<Option<StandbyAnswer>, RegisterError> {
        let body = MemberText { id: me.node.to_string(), incarnation: me.incarnation.0 };
        self.ask(Method::PUT, "/standbys", Some(&body)).await
    }

    /// The answer, or `None` where there is no such group.
    async fn ask<T: for<'a> Deserialize<'a>>(
        &self,
        method: Method,
        below: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Option<T>, RegisterError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(unreachable)?;
        let path = format!("{}{below}", self.path);
        let asked = self.exchange(method, &path, body.map(Bytes::from));
        let late = || {
            RegisterError::Unreachable(format!("the agent did not answer within {} s", PATIENCE.as_secs()))
        };
        let (status, answer) = tokio::time::timeout(PATIENCE, asked).await.map_err(|_| late())??;
        if status.is_success() {
            return serde_json::from_slice(&answer).map(Some).map_err(unreachable);
        }
        let said = serde_json::from_slice::<ErrorText>(&answer).map(|error| error.message);
        let said = said.unwrap_or_else(|_| format!("the agent answered {status}"));
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::CONFLICT => {
                Err(RegisterError::Refused(said))
            }
            _ => Err(RegisterError::Unreachable(said)),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Bytes), RegisterError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
        // How the connection ends is seen by whoever reads the answer.
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(HOST, "steadfast");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(unreachable)?;
        let response = sender.send_request(request).await.map_err(unreachable)?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let answer = answer.map_err(|error| RegisterError::Unreachable(error.to_string()))?.to_bytes();
        connection.abort();
        Ok((status, answer))
    }
}

impl Register for AgentRegister {
    fn read(&self) -> BoxFuture<'_, Result<Option<Row>, RegisterError>> {
        Box::pin(async { Ok(self.look().await?.row) })
    }

    fn look(&self) -> BoxFuture<'_, Result<Seen, RegisterError>> {
        Box::pin(async {
            let Some(answer) = self.ask::<GroupAnswer>(Method::GET, "", None::<&()>).await? else {
                return Ok(Seen::default());
            };
            let promote =
                answer.request.filter(|request| request.state == "asked").map(|request| request.new);
            Ok(Seen {
                row: Some(row_from_text(&answer.row)?),
                promote: promote.map(MemberText::member).transpose()?,
                failed: answer.failed.into_iter().map(MemberText::member).collect::<Result<_, _>>()?,
            })
        })
    }

    fn swap(&self, expected: (ViewId, u64), next: Row) -> BoxFuture<'_, Swapped> {
        Box::pin(async move {
            let (view, renewal) = expected;
            let expected = Some(KeyText { view: view.0, renewal });
            let swap = SwapBody { expected, next: row_to_text(&next) };
            let answer = match self.ask::<SwapAnswer>(Method::PUT, "", Some(&swap)).await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Swapped::Unknown,
                Err(error) => {
                    tracing::warn!(%error, "it is not known whether the group's row was changed");
                    return Swapped::Unknown;
                }
            };
            match (answer.outcome.as_str(), answer.row.as_deref().map(row_from_text)) {
                ("swapped", _) => Swapped::Done,
                ("refused", Some(Ok(row))) => Swapped::Conflict(row),
                _ => Swapped::Unknown,
            }
        })
    }
}

#[derive(Serialize)]
struct SwapBody {
    expected: Option<KeyText>,
    next: String,
}

#[derive(Serialize)]
struct KeyText {
    view: u64,
    renewal: u64,
}

#[derive(Deserialize)]
struct SwapAnswer {
    outcome: String,
    row: Option<String>,
}

#[derive(Deserialize)]
struct GroupAnswer {
    row: String,
    request: Option<RequestAnswer>,
    failed: Vec<MemberText>,
}

#[derive(Deserialize)]
struct RequestAnswer {
    new: MemberText,
    state: String,
}

#[derive(Deserialize)]
struct StandbyAnswer {
    full: bool,
    replaces: Option<MemberText>,
    withdrawn: bool,
}

#[derive(Serialize, Deserialize)]
struct MemberText {
    id: String,
    incarnation: u64,
}

#[derive(Deserialize)]
struct ErrorText {
    message: String,
}

impl MemberText {
    fn member(self) -> Result<Member, RegisterError> {
        let node = self.id.parse().map_err(|_| {
            RegisterError::Unreachable(format!(
                "the agent names a member {:?}, which is no id of a node",
                self.id
            ))
        })?;
        Ok(Member { node, incarnation: Incarnation(self.incarnation) })
    }
}

fn unreachable(error: impl fmt::Display) -> RegisterError {
    RegisterError::Unreachable(error.to_string())
}

fn gone() -> RegisterError {
    RegisterError::Unreachable("it was deleted meanwhile".to_owned())
}

/// One part of a path, whatever the name is.
fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
