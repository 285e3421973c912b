//! The store that nodes share: one set of tables in PostgreSQL, in which each home has one keeper at a time.
//!
//! A home's row has a *generation*. Who takes the home over raises it; who keeps it names it in every commit, in the same
//! transaction that writes its instances. So a commit of whoever was overtaken changes nothing, whatever clocks say and however
//! late it comes, and since a keeper lets nothing out before the commit, nobody hears of what it did meanwhile. It decides
//! nothing: who should keep which home is told ([`Store::adopt`]). A call that fails is the last one; the next [`Shared`] takes its
//! homes over again, which settles what became of a commit whose answer was lost. Read next: [`super::keeper`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, TryStreamExt};
use steadfast_proto::episode::{Episodes, Instance, Record, home_of};
use steadfast_proto::exchange::Name;
use steadfast_proto::ids::{ClusterId, NodeId};
use tokio::runtime::Handle;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Error, Row, Socket, Statement};

use super::store::HOMES;
use super::{Adopted, Store, StoreError};

/// The version of the tables that this program reads and writes.
const VERSION: i32 = 1;
/// How long one answer of the server is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many bytes of instances one statement writes, about.
const STATEMENT_BYTES: usize = 16 << 20;
/// How many statements are sent at once; so few are surely sent in their order.
const AT_ONCE_MAX: usize = 16;

/// Read-committed is what makes a fence see the last generation; without waiting for the disk nothing may be promised.
const SESSION: &str = "set default_transaction_isolation = 'read committed'; set default_transaction_read_only = off; \
    set lock_timeout = '10s'; set statement_timeout = 0; \
    select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off'";
const IS_THERE: &str = "select to_regclass('steadfast_store') is not null";
/// The lock keeps nodes that begin at the same time from making the tables twice.
const MAKE: &str = "begin; select pg_advisory_xact_lock(7235421); \
    create table if not exists steadfast_store (one boolean primary key default true check (one), \
      version integer not null, cluster text not null, homes integer not null); \
    create table if not exists steadfast_home (home integer primary key, generation bigint not null default 0, \
      holder text, epoch bigint not null default 0) with (fillfactor = 50); \
    create table if not exists steadfast_instance (home integer not null, name text collate \"C\" not null, \
      bytes bytea not null, primary key (home, name))";
const NOTE: &str =
    "insert into steadfast_store (version, cluster, homes) values ($1, $2, $3) on conflict do nothing";
const FILL: &str =
    "insert into steadfast_home (home) select generate_series(0, $1::integer - 1) on conflict do nothing";
const READ: &str = "select version, cluster, homes from steadfast_store";

/// Rows are always locked in their order, so that nodes that take and write the same homes never wait for each other in a ring.
const TAKE: &str = "with free as (select home from steadfast_home \
      where home = any($1::integer[]) and (holder is null or holder = $2 or holder <> all($3::text[])) \
      order by home for no key update) \
    update steadfast_home as kept set generation = kept.generation + 1, holder = $2 \
      from free where kept.home = free.home returning kept.home, kept.generation, kept.epoch";
const LOAD: &str = "select bytes from steadfast_instance where home = any($1::integer[])";
const GIVE_BACK: &str = "with mine as (select kept.home from steadfast_home as kept \
      join unnest($1::integer[], $2::bigint[]) as own(home, generation) using (home, generation) \
      order by kept.home for no key update of kept) \
    update steadfast_home as kept set holder = null from mine where kept.home = mine.home";
/// An error takes the whole transaction back, also what was sent behind it without waiting: so a home that is not held any
/// more divides by zero.
const FENCE: &str = "select 1 / (case when count(*) = cardinality($1::integer[]) then 1 else 0 end) \
    from (select home, generation from steadfast_home where home = any($1::integer[]) \
      order by home for no key update) as kept \
    join unnest($1::integer[], $2::bigint[]) as own(home, generation) using (home, generation)";
const HELD: &str = "select 1 / (case when count(*) = cardinality($1::integer[]) then 1 else 0 end) \
    from steadfast_home as kept \
    join unnest($1::integer[], $2::bigint[]) as own(home, generation) using (home, generation)";
const RAISE: &str = "update steadfast_home set epoch = $2 where home = any($1::integer[]) and epoch < $2";
const PUT: &str = "insert into steadfast_instance (home, name, bytes) \
    select * from unnest($1::integer[], $2::text[], $3::bytea[]) \
    on conflict (home, name) do update set bytes = excluded.bytes";
const REMOVE: &str = "delete from steadfast_instance as kept using unnest($1::integer[], $2::text[]) as gone(home, name) \
    where kept.home = gone.home and kept.name = gone.name";

/// Why the shared store can't be used. Nothing that it has committed is lost.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// There is no connection. Nothing has changed.
    #[error("the shared store of episodes can not be reached: {0}")]
    Unreachable(String),
    /// The server refused or broke off; whether the last commit took effect is not known.
    #[error("the shared store of episodes failed: {0}")]
    Failed(String),
    /// The server is silent; whether the last commit took effect is not known.
    #[error("the shared store of episodes did not answer within {} seconds", PATIENCE.as_secs())]
    Silent,
    /// Nothing has changed.
    #[error(
        "the tables of episodes in this database belong to another cluster, {0}; give this cluster a database of its own"
    )]
    OtherCluster(String),
    /// Nothing has changed.
    #[error(
        "the tables of episodes in this database have version {0} and {1} homes; this program reads version {VERSION} with {HOMES}"
    )]
    Version(i32, i32),
    /// Nothing has changed.
    #[error("the shared store of episodes has an instance {0} in a home that is not its own")]
    Misplaced(Name),
}

impl From<Error> for StoreError {
    fn from(error: Error) -> StoreError {
        let why = match error.as_db_error() {
            Some(said) if *said.code() == SqlState::DIVISION_BY_ZERO => return StoreError::Fenced,
            Some(said) => format!("{} ({})", said.message(), said.code().code()),
            None => whole(&error),
        };
        SharedError::Failed(why).into()
    }
}

/// An error with what caused it.
fn whole(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        // The outer one often quotes it already.
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

#[derive(Debug)]
struct Statements {
    take: Statement,
    load: Statement,
    give_back: Statement,
    fence: Statement,
    held: Statement,
    raise: Statement,
    put: Statement,
    remove: Statement,
}

/// One node's connection to the shared store, and the homes that it holds there.
pub struct Shared {
    runtime: Handle,
    client: Client,
    statements: Statements,
    me: String,
    /// The generation of each home that is held.
    held: BTreeMap<i32, i64>,
    /// What was recorded of since the last commit.
    changed: BTreeSet<Name>,
    /// The highest epoch of instances that began since the last commit, and their homes.
    began: (u64, BTreeSet<i32>),
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("me", &self.me).field("held", &self.held.len()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Connects as `me` to the store of `cluster`, and makes its tables where there are none. Blocks: not to be called by a task of
    /// `runtime`, which carries the connection.
    ///
    /// # Errors
    /// The database can't be reached, or its tables are another cluster's or another version's.
    pub fn open<T>(
        runtime: &Handle,
        config: &Config,
        tls: T,
        (cluster, me): (ClusterId, NodeId),
    ) -> Result<Shared, StoreError>
    where
        T: MakeTlsConnect<Socket> + Send,
        T::Stream: Send + 'static,
    {
        let (client, statements) = runtime.block_on(async {
            let connected = tokio::time::timeout(PATIENCE, config.connect(tls)).await;
            let connected = connected.map_err(|_| SharedError::Silent)?;
            let (client, connection) = connected.map_err(|error| SharedError::Unreachable(whole(&error)))?;
            runtime.spawn(connection);
            patiently(prepare(&client, cluster)).await.map(|statements| (client, statements))
        })?;
        Ok(Shared {
            runtime: runtime.clone(),
            client,
            statements,
            me: me.to_string(),
            held: BTreeMap::new(),
            changed: BTreeSet::new(),
            began: (0, BTreeSet::new()),
        })
    }

    fn take(&mut self, homes: &[i32], living: &[String]) -> Result<Adopted, StoreError> {
        let (client, statements, me) = (&self.client, &self.statements, &self.me);
        let rows =
            self.runtime.block_on(patiently(client.query(&statements.take, &[&homes, me, &living])))?;
        let read = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
        let taken = rows.iter().map(read).collect::<Result<Vec<(i32, i64, i64)>, Error>>()?;
        let taken_homes: Vec<i32> = taken.iter().map(|(home, ..)| *home).collect();
        let instances = if taken.is_empty() { Vec::new() } else { self.load_all(&taken_homes)? };
        self.held.extend(taken.iter().map(|(home, generation, _)| (*home, *generation)));
        Ok(Adopted {
            homes: taken_homes.iter().filter_map(|home| usize::try_from(*home).ok()).collect(),
            instances,
            epoch: taken.iter().filter_map(|(.., epoch)| u64::try_from(*epoch).ok()).max().unwrap_or(0),
        })
    }

    /// All instances of these homes. Nobody else can write them any more, so that a later statement than the one that took them
    /// sees all that there is.
    fn load_all(&self, homes: &[i32]) -> Result<Vec<Instance>, StoreError> {
        let rows: Vec<Vec<u8>> = self.runtime.block_on(async {
            let parameters: [&(dyn ToSql + Sync); 1] = [&homes];
            let rows = patiently(self.client.query_raw(&self.statements.load, parameters)).await?;
            let mut rows = std::pin::pin!(rows);
            let mut read = Vec::new();
            while let Some(row) = patiently(rows.try_next()).await? {
                read.push(row.try_get(0)?);
            }
            Ok::<_, StoreError>(read)
        })?;
        let mut instances = Vec::with_capacity(rows.len());
        for bytes in rows {
            let instance = Instance::decode(&bytes)?;
            if !homes.contains(&home_number(&instance.name)) {
                return Err(SharedError::Misplaced(instance.name).into());
            }
            instances.push(instance);
        }
        Ok(instances)
    }

    /// Writes everything in one transaction, all of it sent at once: it takes effect as long as each home is held.
    fn write(&mut self, episodes: &Episodes) -> Result<(), StoreError> {
        let changes = Changes::of(std::mem::take(&mut self.changed), episodes);
        let touched: BTreeSet<i32> = changes.homes();
        let generations = |homes: Vec<i32>| -> (Vec<i32>, Vec<i64>) {
            // What is not held has no generation that any row could have.
            let of = |home: &i32| self.held.get(home).copied().unwrap_or(-1);
            let numbers = homes.iter().map(of).collect();
            (homes, numbers)
        };
        let (written, written_at) = generations(touched.iter().copied().collect());
        let (others, others_at) =
            generations(self.held.keys().copied().filter(|home| !touched.contains(home)).collect());
        let (epoch, began) = std::mem::take(&mut self.began);
        let (epoch, began) =
            (i64::try_from(epoch).unwrap_or(i64::MAX), began.into_iter().collect::<Vec<_>>());
        let (client, statements) = (&self.client, &self.statements);
        let mut steps: Vec<BoxFuture<'_, Result<(), Error>>> = Vec::new();
        if touched.is_empty() {
            if !others.is_empty() {
                steps.push(run(client, &statements.held, vec![&others, &others_at]));
            }
        } else {
            steps.push(client.batch_execute("begin").boxed());
            steps.push(run(client, &statements.fence, vec![&written, &written_at]));
            steps.push(run(client, &statements.held, vec![&others, &others_at]));
            if !began.is_empty() {
                steps.push(run(client, &statements.raise, vec![&began, &epoch]));
            }
            for Put { homes, names, bytes } in &changes.puts {
                steps.push(run(client, &statements.put, vec![homes, names, bytes]));
            }
            if !changes.removes.0.is_empty() {
                steps.push(run(client, &statements.remove, vec![&changes.removes.0, &changes.removes.1]));
            }
            steps.push(client.batch_execute("commit").boxed());
        }
        self.runtime.block_on(all_of(steps))
    }
}

impl Store for Shared {
    fn load(&mut self, _: &mut Episodes) -> Result<(), StoreError> {
        Ok(())
    }

    fn append(&mut self, record: &Record) -> Result<(), StoreError> {
        if let Record::Began { name, epoch, .. } = record {
            self.began.0 = self.began.0.max(*epoch);
            self.began.1.insert(home_number(name));
        }
        self.changed.insert(record.name().clone());
        Ok(())
    }

    fn commit(&mut self, episodes: &Episodes) -> Result<(), StoreError> {
        self.write(episodes)
    }

    fn rest(&mut self) -> Result<(), StoreError> {
        self.check()
    }

    fn check(&mut self) -> Result<(), StoreError> {
        let (homes, generations): (Vec<i32>, Vec<i64>) =
            self.held.iter().map(|(home, generation)| (*home, *generation)).unzip();
        let held = &self.statements.held;
        self.runtime.block_on(patiently(self.client.execute(held, &[&homes, &generations])))?;
        Ok(())
    }

    fn end(&mut self, episodes: &Episodes) -> Result<(), StoreError> {
        self.write(episodes)?;
        self.release(&episodes.adopted_homes())
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn adopt(&mut self, homes: &BTreeSet<usize>, living: &BTreeSet<NodeId>) -> Result<Adopted, StoreError> {
        let homes = numbers(homes);
        let living: Vec<String> = living.iter().map(NodeId::to_string).collect();
        self.take(&homes, &living)
    }

    fn release(&mut self, homes: &BTreeSet<usize>) -> Result<(), StoreError> {
        let given = numbers(homes).into_iter().filter_map(|home| Some((home, self.held.remove(&home)?)));
        let (homes, generations): (Vec<i32>, Vec<i64>) = given.unzip();
        let give_back = &self.statements.give_back;
        self.runtime.block_on(patiently(self.client.execute(give_back, &[&homes, &generations])))?;
        Ok(())
    }
}

/// What a commit writes.
#[derive(Debug, Default)]
struct Changes {
    puts: Vec<Put>,
    removes: (Vec<i32>, Vec<String>),
}

/// What one statement writes.
#[derive(Debug, Default)]
struct Put {
    homes: Vec<i32>,
    names: Vec<String>,
    bytes: Vec<Vec<u8>>,
}

impl Changes {
    fn of(names: BTreeSet<Name>, episodes: &Episodes) -> Changes {
        let mut changes = Changes::default();
        let mut room = 0_usize;
        for name in names {
            let (home, text) = (home_number(&name), name.as_str().to_owned());
            let Some(instance) = episodes.instance(&name) else {
                changes.removes.0.push(home);
                changes.removes.1.push(text);
                continue;
            };
            let bytes = instance.encode();
            if changes.puts.is_empty() || room < bytes.len() {
                changes.puts.push(Put::default());
                room = STATEMENT_BYTES;
            }
            room = room.saturating_sub(bytes.len());
            if let Some(put) = changes.puts.last_mut() {
                put.homes.push(home);
                put.names.push(text);
                put.bytes.push(bytes);
            }
        }
        changes
    }

    fn homes(&self) -> BTreeSet<i32> {
        let put = self.puts.iter().flat_map(|put| &put.homes);
        put.chain(&self.removes.0).copied().collect()
    }
}

/// Carries the steps of a transaction out: without waiting for one before the next is sent, unless it is long.
async fn all_of(steps: Vec<BoxFuture<'_, Result<(), Error>>>) -> Result<(), StoreError> {
    if steps.len() <= AT_ONCE_MAX {
        // What came after the first that failed only says so.
        let all = async { join_all(steps).await.into_iter().collect::<Result<(), Error>>() };
        return patiently(all).await;
    }
    for step in steps {
        patiently(step).await?;
    }
    Ok(())
}

/// One statement of a transaction; it is sent when this is first polled, without waiting for those before it.
fn run<'a>(
    client: &'a Client,
    statement: &'a Statement,
    parameters: Vec<&'a (dyn ToSql + Sync)>,
) -> BoxFuture<'a, Result<(), Error>> {
    async move { client.execute(statement, &parameters).await.map(|_| ()) }.boxed()
}

/// Gives an answer that takes too long up.
async fn patiently<T, E>(work: impl Future<Output = Result<T, E>>) -> Result<T, StoreError>
where
    StoreError: From<E>,
{
    let answered = tokio::time::timeout(PATIENCE, work).await.map_err(|_| SharedError::Silent)?;
    Ok(answered?)
}

/// Makes or checks the tables, and has the server read all statements once.
async fn prepare(client: &Client, cluster: ClusterId) -> Result<Statements, StoreError> {
    client.batch_execute(SESSION).await?;
    let homes = i32::try_from(HOMES).expect("64 is an i32");
    if !client.query_one(IS_THERE, &[]).await?.try_get::<_, bool>(0)? {
        client.batch_execute(MAKE).await?;
        client.execute(NOTE, &[&VERSION, &cluster.to_string(), &homes]).await?;
        client.execute(FILL, &[&homes]).await?;
        client.batch_execute("commit").await?;
    }
    let row = client.query_one(READ, &[]).await?;
    let (version, owner, count) =
        (row.try_get::<_, i32>(0)?, row.try_get::<_, String>(1)?, row.try_get::<_, i32>(2)?);
    if owner != cluster.to_string() {
        return Err(SharedError::OtherCluster(owner).into());
    }
    if version != VERSION || count != homes {
        return Err(SharedError::Version(version, count).into());
    }
    Ok(Statements {
        take: client.prepare(TAKE).await?,
        load: client.prepare(LOAD).await?,
        give_back: client.prepare(GIVE_BACK).await?,
        fence: client.prepare(FENCE).await?,
        held: client.prepare(HELD).await?,
        raise: client.prepare(RAISE).await?,
        put: client.prepare(PUT).await?,
        remove: client.prepare(REMOVE).await?,
    })
}

fn home_number(name: &Name) -> i32 {
    i32::try_from(home_of(name, HOMES)).unwrap_or(-1)
}

fn numbers(homes: &BTreeSet<usize>) -> Vec<i32> {
    homes.iter().filter_map(|home| i32::try_from(*home).ok()).collect()
}
