//! `effect/postgresql`: one statement, and the message's id beside it in the same transaction.
//!
//! ```json
//! {"connection": "shop", "statement": "insert into charges values ($1, $2)", "parameters": ["17", 25], "reply": "stored"}
//! ```
//! The table `steadfast_effects` of the same database has a row for each id, so that a repetition changes nothing and is
//! answered as the first time. Where the database is, and as whom it is asked, is said by the agent's configuration alone.
//! Parameters are texts in PostgreSQL's own form: `25`, `"2026-01-31"`, `{"a": 1}` for jsonb.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use steadfast_proto::exchange::{Blob, Text};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, NoTls};

use super::{Ended, attempt, form, reply, reply_kind};
use crate::config::episodes::{EpisodesConfig, PostgresqlConfig};
use crate::episodes::tls::Sealing;
use crate::events::sinks::connect::Trust;
use crate::failure::did_you_mean;

const EXAMPLE: &str =
    r#"{"connection": "shop", "statement": "insert into charges values ($1, $2)", "parameters": ["17", 25]}"#;
/// How many connections to one database are kept while nobody uses them.
const IDLE_MAX: usize = 8;
/// How long making a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How many parameters a statement has at most.
const PARAMETERS_MAX: usize = 1_000;

const FIND: &str = "select rows from steadfast_effects where id = $1";
const NOTE: &str = "insert into steadfast_effects (id) values ($1) on conflict (id) do nothing";
const COUNT: &str = "update steadfast_effects set rows = $2 where id = $1";
const IS_THERE: &str = "select to_regclass('steadfast_effects') is not null";
const MAKE: &str = "create table if not exists steadfast_effects (id text primary key, rows bigint not null default 0, at timestamptz not null default now())";

/// The adapter: the connections that the configuration names.
#[derive(Debug)]
pub(super) struct Connections {
    by_name: BTreeMap<String, Arc<Connection>>,
}

struct Connection {
    config: PostgresqlConfig,
    idle: Mutex<Vec<Client>>,
}

/// A statement that is to be carried out.
#[derive(Debug)]
pub(crate) struct Order {
    connection: String,
    statement: String,
    parameters: Vec<Parameter>,
    reply: Option<Text>,
    time_max: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    connection: String,
    statement: String,
    #[serde(default)]
    parameters: Vec<Value>,
    #[serde(default)]
    reply: Option<String>,
    #[serde(default)]
    timeout_ms: Option<u64>,
}

/// A value in the text form that PostgreSQL reads for whatever type the statement needs.
#[derive(Debug)]
struct Parameter(Option<String>);

impl ToSql for Parameter {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let Some(text) = &self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(text.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

impl Order {
    pub(super) fn read(payload: &Blob) -> Result<Order, String> {
        let form: Form = form(payload, EXAMPLE)?;
        if form.parameters.len() > PARAMETERS_MAX {
            let count = form.parameters.len();
            return Err(format!("parameters: there are {count}; {PARAMETERS_MAX} are possible"));
        }
        let text = |value: Value| match value {
            Value::Null => Parameter(None),
            Value::String(text) => Parameter(Some(text)),
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                Parameter(Some(value.to_string()))
            }
        };
        Ok(Order {
            connection: form.connection,
            statement: form.statement,
            parameters: form.parameters.into_iter().map(text).collect(),
            reply: reply_kind(form.reply.as_deref())?,
            time_max: attempt(form.timeout_ms)?,
        })
    }

    pub(super) fn target(&self) -> String {
        format!("the database {}", self.connection)
    }
}

/// Why nothing was changed.
#[derive(Debug)]
enum Unchanged {
    /// Not for what is asked for: there is no connection, or no table of effects.
    Before(String),
    Statement(tokio_postgres::Error),
}

impl From<tokio_postgres::Error> for Unchanged {
    fn from(error: tokio_postgres::Error) -> Unchanged {
        Unchanged::Before(words(&error))
    }
}

impl Connections {
    pub(super) fn new(config: &EpisodesConfig) -> Connections {
        let connection = |config: &PostgresqlConfig| {
            Arc::new(Connection { config: config.clone(), idle: Mutex::default() })
        };
        let by_name = config.postgresql.iter().map(|(name, config)| (name.clone(), connection(config)));
        Connections { by_name: by_name.collect() }
    }

    pub(super) async fn carry_out(&self, order: &Order, id: &str) -> Ended {
        let later = |why: String| Ended::Later { why, after: None };
        let Some(connection) = self.by_name.get(&order.connection) else {
            let hint = did_you_mean(&order.connection, self.by_name.keys().map(String::as_str));
            // It is in the configuration of this node that it is missing, which a person can mend.
            return later(format!(
                "this node's configuration has no [episodes.postgresql.{}]{hint}",
                order.connection
            ));
        };
        let name = &order.connection;
        match tokio::time::timeout(order.time_max, connection.commit(order, id)).await {
            Ok(Ok(rows)) => Ended::Done(reply(order.reply.as_ref(), &serde_json::json!({"rows": rows}))),
            Ok(Err(Unchanged::Before(why))) => later(format!("the database {name} can not be used: {why}")),
            Ok(Err(Unchanged::Statement(error))) => {
                let why = format!("the database {name} refuses it: {}", words(&error));
                if is_passing(&error) { later(why) } else { Ended::Never(why) }
            }
            Err(_) => {
                let time = humantime::format_duration(order.time_max);
                later(format!("the database {name} did not answer within {time}"))
            }
        }
    }
}

impl Connection {
    /// Carries the order out, unless that was done already; gives how many rows it changed.
    async fn commit(&self, order: &Order, id: &str) -> Result<i64, Unchanged> {
        let mut client = match self.take() {
            Some(client) => client,
            None => self.connect().await?,
        };
        let rows = transact(&mut client, order, id).await;
        if !client.is_closed() && !matches!(&rows, Err(Unchanged::Statement(error)) if error.is_closed()) {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_MAX {
                idle.push(client);
            }
        }
        rows
    }

    fn take(&self) -> Option<Client> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|client| !client.is_closed());
        idle.pop()
    }

    async fn connect(&self) -> Result<Client, Unchanged> {
        let failed = |error: &dyn std::fmt::Display| Unchanged::Before(error.to_string());
        let mut config = self.config.address.0.clone();
        config.application_name("steadfast");
        if let Some(path) = &self.config.password_file {
            let password = tokio::fs::read_to_string(path).await;
            let unread = |error: io::Error| failed(&format!("{}: {error}", path.display()));
            config.password(password.map_err(unread)?.trim_end_matches(['\r', '\n']));
        }
        let connected = async {
            match &self.config.ca {
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    tokio::spawn(async move { drop(connection.await) });
                    Ok(client)
                }
                Some(path) => {
                    let trust =
                        Trust::load(Some(path)).map_err(|error| Unchanged::Before(error.to_string()))?;
                    let (client, connection) = config.connect(Sealing(trust)).await?;
                    tokio::spawn(async move { drop(connection.await) });
                    Ok(client)
                }
            }
        };
        let client = match tokio::time::timeout(CONNECT, connected).await {
            Ok(Ok(client)) => client,
            Ok(Err(why)) => return Err(why),
            Err(_) => return Err(failed(&"it does not answer")),
        };
        let there: bool = client.query_one(IS_THERE, &[]).await?.try_get(0)?;
        if !there {
            client.batch_execute(MAKE).await?;
        }
        Ok(client)
    }
}

async fn transact(client: &mut Client, order: &Order, id: &str) -> Result<i64, Unchanged> {
    let transaction = client.transaction().await?;
    // First of all: whoever carries the same out just now is waited for, and what it has done is seen.
    if transaction.execute(NOTE, &[&id]).await? == 0 {
        return Ok(transaction.query_one(FIND, &[&id]).await?.try_get(0)?);
    }
    let parameters: Vec<&(dyn ToSql + Sync)> =
        order.parameters.iter().map(|parameter| parameter as &(dyn ToSql + Sync)).collect();
    let done = transaction.execute(order.statement.as_str(), &parameters).await;
    let rows = done.map_err(Unchanged::Statement)?;
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    if rows > 0 {
        transaction.execute(COUNT, &[&id, &rows]).await?;
    }
    // Some conditions are looked at only here.
    transaction.commit().await.map_err(Unchanged::Statement)?;
    Ok(rows)
}

/// Whether the same statement may succeed later: the server, not the statement, is in the way.
fn is_passing(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code() else {
        // Without a code it is not the server that says so: parameters that do not fit, or a broken connection.
        return error.is_closed()
            || std::error::Error::source(error).is_some_and(|source| source.is::<io::Error>());
    };
    // Classes of Appendix A of PostgreSQL's documentation: connections, rollbacks, resources, states, operators, the system.
    const PASSING: [&str; 7] = ["08", "40", "53", "55", "57", "58", "XX"];
    *code == SqlState::READ_ONLY_SQL_TRANSACTION || PASSING.iter().any(|class| code.code().starts_with(class))
}

/// What the server says; the library's own words are only what sort of error it is.
fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// Without what the clients hold.
impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("config", &self.config).finish_non_exhaustive()
    }
}
