//! A key-value program that is mirrored: one process for each member, and one that keeps the group's row.
//!
//! ```text
//! mirrored_kv register DIR PORT NODE,NODE              keeps the row in a real catalog under DIR, prints each view
//! mirrored_kv member NODE INCARNATION PORTS ROLE       PORTS: of the register, then two for each node: peers, people
//!     ROLE: founder | add | replace:NODE/INCARNATION
//! mirrored_kv member NODE INCARNATION BOOK ROLE --agent SOCKET
//!     keeps the row in the catalog of a running cluster; BOOK: NODE=ADDRESS:PORT,.. of peers, people on the next port
//!     ROLE: found:NODE,NODE | add | replace:NODE/INCARNATION | standby (until `steadfast replace --group kv` names it)
//! ```
//! People connect to a member's second port and write lines: `PUT KEY VALUE`, `GET KEY`, `VIEW`, `FENCED NODE/INCARNATION`
//! (that process has ended for good), `PASS NODE/INCARNATION` (that candidate may be promoted).
//! The tests `group_processes` and, on a cluster of agents, `groups` run it, replace members and kill processes.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steadfast::catalog::{
    BoxFuture, Embedded, EmbeddedConfig, RaftNodeId, Timings, Transport, TransportError, WatchItem,
};
use steadfast::group::{
    AgentRegister, CatalogRegister, GroupConfig, GroupHandle, Register, RegisterError, Settled, decode_row,
};
use steadfast_proto::group::{
    Application, Group, Intent, Member, Outcome, Reason, RestoreError, Row, Settings, Standing, Swapped,
};
use steadfast_proto::ids::{Incarnation, NodeId, ViewId};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

type Failure = Box<dyn Error + Send + Sync>;

const USAGE: &str = "usage: mirrored_kv register DIR PORT NODE,NODE | member NODE INCARNATION PORTS founder|add|replace:NODE/INCARNATION | member NODE INCARNATION NODE=ADDRESS:PORT,.. found:NODE,..|add|replace:NODE/INCARNATION|standby --agent SOCKET";
const GROUP: &str = "kv";
const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["register", dir, port, founders] => keep(dir.into(), port.parse()?, founders).await,
        ["member", node, incarnation, ports, role] => {
            let ports = ports.split(',').map(str::parse).collect::<Result<Vec<u16>, _>>()?;
            let me = Member { node: NodeId(node.parse()?), incarnation: Incarnation(incarnation.parse()?) };
            take_part(me, ports, role).await
        }
        ["member", node, incarnation, book, role, "--agent", socket] => {
            let me = Member { node: node.parse()?, incarnation: Incarnation(incarnation.parse()?) };
            let book = book.split(',').map(entry).collect::<Result<BTreeMap<_, _>, _>>()?;
            take_part_in_cluster(me, book, role, AgentRegister::new(socket, GROUP)).await
        }
        _ => Err(USAGE.into()),
    }
}

/// The mirrored program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table(BTreeMap<String, String>);

impl Application for Table {
    fn apply(&mut self, record: &[u8]) -> Vec<u8> {
        if let Ok((key, value)) = postcard::from_bytes(record) {
            self.0.insert(key, value);
        }
        Vec::new()
    }

    fn snapshot(&self) -> Vec<u8> {
        postcard::to_allocvec(&self.0).expect("text is written")
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let error = |cause: postcard::Error| RestoreError { bytes: snapshot.len(), why: cause.to_string() };
        self.0 = postcard::from_bytes(snapshot).map_err(error)?;
        Ok(())
    }
}

/// What a member asks of the process that keeps the row.
#[derive(Serialize, Deserialize)]
enum Question {
    Read,
    Swap((ViewId, u64), Row),
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Row(Option<Row>),
    Done,
    Conflict(Row),
    Unknown,
}

struct Alone;

impl Transport for Alone {
    fn call(&self, to: RaftNodeId, _: Bytes, _: Duration) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move { Err(TransportError::Unreachable { to, reason: "there is no other".into() }) })
    }
}

/// Keeps the row in a catalog with one voter, answers members, and prints every view.
async fn keep(dir: PathBuf, port: u16, founders: &str) -> Result<(), Failure> {
    let (transport, timings) = (Arc::new(Alone), Timings::default());
    let catalog = Embedded::open(EmbeddedConfig { dir, node: 1, cluster_id: 1, transport, timings }).await?;
    catalog.initialize(vec!["127.0.0.1:1".into()]).await?;
    let founders = founders.split(',').map(|node| -> Result<Member, Failure> {
        Ok(Member { node: NodeId(node.parse()?), incarnation: Incarnation(1) })
    });
    let catalog: Arc<dyn steadfast::catalog::Catalog> = Arc::new(catalog);
    let register = CatalogRegister::new(Arc::clone(&catalog), GROUP);
    register.found(&Row::founded(founders.collect::<Result<_, _>>()?)).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let mut watch = catalog.watch("group/".into(), 0);
    tokio::spawn(async move {
        let mut last = ViewId(0);
        while let Ok(item) = watch.next().await {
            let rows = match item {
                WatchItem::Changed(watched) => watched.changes,
                WatchItem::Resync { rows, .. } => {
                    rows.into_iter().map(|(key, row)| (key, Some(row))).collect()
                }
            };
            for row in rows.into_iter().filter_map(|(_, row)| decode_row(&row?.value).ok()) {
                // A renewal changes no member.
                if row.view.id > last {
                    last = row.view.id;
                    println!("VIEW {last} {} {}", word(&row.view.reason), list(&row));
                }
            }
        }
    });
    loop {
        let (stream, _) = listener.accept().await?;
        let register = register.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &register).await {
                eprintln!("a member went away: {error}");
            }
        });
    }
}

async fn answer(mut stream: TcpStream, register: &CatalogRegister) -> Result<(), Failure> {
    let answer = match receive(&mut stream).await? {
        Question::Read => Answer::Row(register.read().await?),
        Question::Swap(expected, next) => match register.swap(expected, next).await {
            Swapped::Done => Answer::Done,
            Swapped::Conflict(row) => Answer::Conflict(row),
            Swapped::Unknown => Answer::Unknown,
        },
    };
    transmit(&mut stream, &answer).await
}

async fn transmit(stream: &mut TcpStream, what: &impl Serialize) -> Result<(), Failure> {
    let body = postcard::to_allocvec(what)?;
    stream.write_u32(u32::try_from(body.len())?).await?;
    Ok(stream.write_all(&body).await?)
}

async fn receive<T: serde::de::DeserializeOwned>(stream: &mut TcpStream) -> Result<T, Failure> {
    let length = stream.read_u32().await?;
    let mut body = Vec::new();
    stream.take(u64::from(length.min(1 << 20))).read_to_end(&mut body).await?;
    Ok(postcard::from_bytes(&body)?)
}

/// The row, asked of the process that keeps it.
struct Remote(SocketAddr);

impl Remote {
    async fn ask(&self, question: &Question) -> Result<Answer, RegisterError> {
        let asked = async {
            let mut stream = TcpStream::connect(self.0).await?;
            transmit(&mut stream, question).await?;
            receive(&mut stream).await
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(RegisterError::Unreachable(error.to_string())),
            Err(_) => Err(RegisterError::Unreachable("it did not answer".into())),
        }
    }
}

impl Register for Remote {
    fn read(&self) -> BoxFuture<'_, Result<Option<Row>, RegisterError>> {
        Box::pin(async {
            match self.ask(&Question::Read).await? {
                Answer::Row(row) => Ok(row),
                Answer::Done | Answer::Conflict(_) | Answer::Unknown => {
                    Err(RegisterError::Unreachable("it answered something else".into()))
                }
            }
        })
    }

    fn swap(&self, expected: (ViewId, u64), next: Row) -> BoxFuture<'_, Swapped> {
        Box::pin(async move {
            match self.ask(&Question::Swap(expected, next)).await {
                Ok(Answer::Done) => Swapped::Done,
                Ok(Answer::Conflict(row)) => Swapped::Conflict(row),
                Ok(Answer::Row(_) | Answer::Unknown) | Err(_) => Swapped::Unknown,
            }
        })
    }
}

/// Runs one member until it is killed.
async fn take_part(me: Member, ports: Vec<u16>, role: &str) -> Result<(), Failure> {
    let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let port_of = move |ports: &[u16], member: Member, which: usize| {
        let node = usize::try_from(member.node.0).ok().filter(|node| *node > 0)?;
        ports.get(node * 2 - 1 + which).copied()
    };
    let register = Remote(local(*ports.first().ok_or(USAGE)?));
    let peers = TcpListener::bind(local(port_of(&ports, me, 0).ok_or(USAGE)?)).await?;
    let people = TcpListener::bind(local(port_of(&ports, me, 1).ok_or(USAGE)?)).await?;
    let (settings, table) = (Settings::default(), Table::default());
    let group = match role {
        "founder" => {
            let row = register.read().await?.ok_or("the group is not founded yet")?;
            Group::founder(me, settings, table, row)
        }
        "add" => Group::candidate(me, settings, table, Intent::Add),
        _ => {
            let victim = member(role.strip_prefix("replace:").ok_or(USAGE)?)?;
            Group::candidate(me, settings, table, Intent::Replace(victim))
        }
    };
    let known = ports.clone();
    let addresses = Arc::new(move |member| port_of(&known, member, 0).map(local));
    let config = GroupConfig { listener: peers, addresses, register: Arc::new(register) };
    let handle = GroupHandle::spawn(group, config);
    println!("READY");
    answer_people(&people, &handle).await
}

/// Runs one process of a group whose row lies in a cluster's catalog, until it is killed.
async fn take_part_in_cluster(
    mut me: Member,
    book: BTreeMap<NodeId, SocketAddr>,
    role: &str,
    register: AgentRegister,
) -> Result<(), Failure> {
    let own = *book.get(&me.node).ok_or(USAGE)?;
    let people = SocketAddr::new(own.ip(), own.port().checked_add(1).ok_or(USAGE)?);
    let (peers, people) = (std::net::TcpListener::bind(own)?, TcpListener::bind(people).await?);
    peers.set_nonblocking(true)?;
    let book = Arc::new(book);
    let spawn = |group: Group<Table>| -> Result<GroupHandle<Table>, Failure> {
        let book = Arc::clone(&book);
        let config = GroupConfig {
            listener: TcpListener::from_std(peers.try_clone()?)?,
            addresses: Arc::new(move |member: Member| book.get(&member.node).copied()),
            register: Arc::new(register.clone()),
        };
        Ok(GroupHandle::spawn(group, config))
    };
    let (settings, table) = (Settings::default(), Table::default());
    println!("READY");
    let group = match (role, role.strip_prefix("found:"), role.strip_prefix("replace:")) {
        (_, Some(founders), _) => {
            let founders = founders.split(',').map(|node| -> Result<Member, Failure> {
                Ok(Member { node: node.parse()?, incarnation: Incarnation(1) })
            });
            let row = register.found(&Row::founded(founders.collect::<Result<_, _>>()?)).await?;
            if row.view.id != ViewId(1) || !row.view.has(me) {
                return Err("the group was founded before this process: let it come as a standby".into());
            }
            Group::founder(me, settings, table, row)
        }
        (_, _, Some(victim)) => Group::candidate(me, settings, table, Intent::Replace(member(victim)?)),
        ("add", ..) => Group::candidate(me, settings, table, Intent::Add),
        ("standby", ..) => loop {
            let Some(victim) = register.named(me).await? else {
                me.incarnation = me.incarnation.next();
                continue;
            };
            let handle = spawn(Group::candidate(me, settings, table.clone(), Intent::Replace(victim)))?;
            tokio::select! {
                settled = register.settled(me) => match settled {
                    Settled::Promoted => return answer_people(&people, &handle).await,
                    Settled::Withdrawn => me.incarnation = me.incarnation.next(),
                },
                ended = answer_people(&people, &handle) => return ended,
            }
        },
        _ => return Err(USAGE.into()),
    };
    answer_people(&people, &spawn(group)?).await
}

/// A line of the book: where a node's member listens.
fn entry(text: &str) -> Result<(NodeId, SocketAddr), Failure> {
    let (node, address) = text.split_once('=').ok_or(USAGE)?;
    Ok((node.parse()?, address.parse()?))
}

/// Answers until it is dropped, and everybody's connection with it.
async fn answer_people(people: &TcpListener, handle: &GroupHandle<Table>) -> Result<(), Failure> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = people.accept().await?;
        let handle = handle.clone();
        connections.spawn(async move {
            // People come and go.
            let _ = serve(stream, handle).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

fn member(text: &str) -> Result<Member, Failure> {
    let (node, incarnation) = text.split_once('/').ok_or("a member is written NODE/INCARNATION")?;
    Ok(Member { node: node_id(node)?, incarnation: Incarnation(incarnation.parse()?) })
}

/// A number, or the id of a cluster's node.
fn node_id(text: &str) -> Result<NodeId, Failure> {
    match text.parse() {
        Ok(number) => Ok(NodeId(number)),
        Err(_) => Ok(text.parse()?),
    }
}

async fn serve(stream: TcpStream, handle: GroupHandle<Table>) -> Result<(), Failure> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[..] {
            ["PUT", key, value] => match handle.write(postcard::to_allocvec(&(key, value))?).await? {
                Outcome::Done { at, .. } => format!("DONE {}", at.0),
                Outcome::NotLeader(Some(leader)) => format!("LEADER {}", leader.node.0),
                Outcome::NotLeader(None) | Outcome::Busy | Outcome::TooLarge | Outcome::Unknown => {
                    "RETRY".into()
                }
            },
            ["GET", key] => {
                let key = key.to_owned();
                let value = handle.look(move |group| group.application().0.get(&key).cloned()).await?;
                value.map_or_else(|| "NONE".into(), |value| format!("VALUE {value}"))
            }
            ["VIEW"] => handle.look(describe).await?,
            ["FENCED", who] => {
                handle.fenced(member(who)?).await?;
                "OK".into()
            }
            ["PASS", who] => {
                handle.evidence(member(who)?, Standing::Pass).await?;
                "OK".into()
            }
            _ => {
                "WRONG: PUT KEY VALUE, GET KEY, VIEW, FENCED NODE/INCARNATION or PASS NODE/INCARNATION".into()
            }
        };
        write.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

/// The view's number, the full members in order, and how many records there are.
fn describe(group: &Group<Table>) -> String {
    let Some(row) = group.row() else { return "NONE".into() };
    format!("VIEW {} {} {}", row.view.id, list(row), group.last().0)
}

fn list(row: &Row) -> String {
    let full = row.view.full.iter().map(|member| format!("{}/{}", member.node.0, member.incarnation));
    full.collect::<Vec<_>>().join(",")
}

fn word(reason: &Reason) -> &'static str {
    match reason {
        Reason::Founded => "founded",
        Reason::Added(_) => "added",
        Reason::Replaced { .. } => "replaced",
        Reason::Failed(_) => "failed",
    }
}
