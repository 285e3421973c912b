//! How a program comes into the catalog: checked here, committed with everything it needs, then known to all.
//!
//! A version never changes once it is there, since instances go on with the one that they began with. A refused deployment
//! changes nothing.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use steadfast::catalog::Txn;
use steadfast_proto::exchange::Name;
use steadfast_proto::ids::NodeId;

use super::super::Agent;
use super::super::rows::{self as typed, catalog_failure};
use super::rows::{HOMES, HomesRow, Kind, MODULE_BYTES_MAX, PROGRAMS, ProgramRow, SourceRow, VersionRow};
use super::{Aware, Room};
use crate::api::convert::now_unix_ms;
use crate::api::episode_types::{DeployRequest, Program};
use crate::codes::Code;
use crate::episodes::programs::{Limits, Prepared, Source};
use crate::failure::{Failure, did_you_mean};

/// Most programs in one cluster.
const PROGRAMS_MAX: usize = 1_024;
/// Most versions of one program.
const VERSIONS_MAX: usize = 64;

impl Agent {
    /// Every program.
    pub(crate) async fn shown_programs(&self) -> Result<Vec<Program>, Failure> {
        let rows = match self.rows.all::<ProgramRow>(PROGRAMS).await {
            Err(failure) if failure.code == Code::NoQuorum => self.rows.all_stale(PROGRAMS),
            rows => rows?,
        };
        Ok(rows.into_iter().map(|(row, _)| row.shown()).collect())
    }

    /// Deploys a version of a program; answers when all nodes that answer know it.
    pub(crate) async fn deploy(&self, name: &str, asked: DeployRequest) -> Result<Program, Failure> {
        checked_name(name)?;
        let mode = one_of("mode", asked.mode.as_deref(), &["strict", "pipelined"])?;
        let is_pipelined = mode.map(|mode| mode == "pipelined");
        let store = one_of("store", asked.store.as_deref(), &Kind::WORDS)?.and_then(Kind::of);
        if store == Some(Kind::Shared) {
            let refused = |why: String| format!("program {name} can not be given to the shared store: {why}");
            let tried = self.episodes.try_shared().await;
            tried.map_err(|why| Failure::new(Code::SharedStore, refused(why)))?;
        }
        let source = source(&asked)?;
        let (source_row, module) = SourceRow::of(&source);
        let prepared = tokio::task::spawn_blocking(move || Prepared::new(source, Limits::default())).await;
        let prepared = prepared.map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
        prepared.map_err(|error| Failure::new(Code::ProgramRefused, format!("program {name}: {error}")))?;
        let wanted = Wanted { name, source: source_row, is_pipelined, store, version: asked.version };
        let (row, revision) = loop {
            let found = self.rows.get_at::<ProgramRow>(&key(name)).await?;
            let row = wanted.row(found.as_ref().map(|(row, _)| row))?;
            let homes = self.rows.get_at::<HomesRow>(HOMES).await?;
            if let Some((found, revision)) = &found
                && *found == row
                && homes.is_some()
            {
                break (row, *revision);
            }
            if found.is_none() && self.rows.all::<ProgramRow>(PROGRAMS).await?.len() >= PROGRAMS_MAX {
                let message = format!("{PROGRAMS_MAX} programs are deployed, which is the limit");
                return Err(Failure::new(Code::ProgramRefused, message));
            }
            let mut txn = Txn::compare_and_set(
                key(name),
                found.map_or(0, |(_, version)| version),
                typed::encode(&row)?,
            );
            if let Some((key, bytes)) = &module {
                txn.puts.push((key.clone(), Some(bytes.clone())));
            }
            if homes.is_none() {
                let first = HomesRow::of(&self.those_who_keep().await?);
                txn.compare.push((HOMES.to_owned(), 0));
                txn.puts.push((HOMES.to_owned(), Some(typed::encode(&first)?)));
            }
            let reply = self.rows.catalog().txn(txn).await.map_err(|error| catalog_failure(&error))?;
            if reply.succeeded {
                tracing::info!(name, version = row.current, "a program was deployed");
                break (row, reply.revision);
            }
        };
        Ok(Program { unaware: self.unaware(revision).await?, ..row.shown() })
    }

    /// The members that can keep instances; those that don't answer are thought to.
    async fn those_who_keep(&self) -> Result<Vec<NodeId>, Failure> {
        let members = self.members().await?;
        let asked =
            members.into_iter().map(|node| async move { (node, self.episodes.ask_aware(node, 0).await) });
        let answers = futures_util::future::join_all(asked).await;
        let able: Vec<NodeId> =
            answers.into_iter().filter(|(_, aware)| *aware != Aware::Never).map(|(node, _)| node).collect();
        if able.is_empty() {
            let message = "no member of this cluster keeps instances: all observe or are witnesses";
            return Err(Failure::new(Code::ProgramRefused, message));
        }
        Ok(able)
    }

    /// The names of the members that do not know yet what the catalog says.
    async fn unaware(&self, revision: u64) -> Result<Vec<String>, Failure> {
        let asked = self
            .members()
            .await?
            .into_iter()
            .map(|node| async move { (node, self.episodes.ask_aware(node, revision).await) });
        let answers = futures_util::future::join_all(asked).await;
        let silent = answers.into_iter().filter(|(_, aware)| *aware == Aware::Silent);
        Ok(silent.map(|(node, _)| self.node_name(node)).collect())
    }

    async fn members(&self) -> Result<Vec<NodeId>, Failure> {
        let status = self.status().await?;
        let view = status.view.ok_or_else(|| {
            Failure::new(Code::NoQuorum, "this node has not received the list of members yet")
        })?;
        Ok(view.members.keys().copied().collect())
    }
}

impl Room {
    /// Refuses a program that is not deployed, with the nearest one that is.
    pub(super) fn no_program(&self, name: &str) -> Failure {
        let all = self.programs();
        let hint = did_you_mean(name, all.iter().map(|row| row.name.as_str()));
        let message = format!("no program {name} is deployed{hint}; `steadfast episode deploy` deploys one");
        Failure::new(Code::ProgramNotFound, message)
    }
}

/// What somebody wants to be deployed.
struct Wanted<'a> {
    name: &'a str,
    source: SourceRow,
    is_pipelined: Option<bool>,
    store: Option<Kind>,
    version: Option<u32>,
}

impl Wanted<'_> {
    /// The program's row with it.
    fn row(&self, found: Option<&ProgramRow>) -> Result<ProgramRow, Failure> {
        let mut row = found.cloned().unwrap_or_else(|| ProgramRow {
            name: self.name.to_owned(),
            current: 0,
            is_pipelined: false,
            store: self.store.unwrap_or_default(),
            versions: BTreeMap::new(),
        });
        if self.store.is_some_and(|store| store != row.store) {
            // An instance that began meanwhile would be left where nobody looks for it.
            let message = format!(
                "the instances of program {} are in the store `{}`, which never changes; deploy it under another name",
                self.name,
                row.store.word()
            );
            return Err(Failure::new(Code::ProgramTaken, message));
        }
        row.is_pipelined = self.is_pipelined.unwrap_or(row.is_pipelined);
        let last = row.versions.keys().next_back().copied().unwrap_or_default();
        let is_current = row.versions.get(&row.current).is_some_and(|version| version.source == self.source);
        let version = match self.version {
            Some(0) => {
                return Err(Failure::new(
                    Code::BadRequest,
                    "version: 0 is out of range; versions count from 1",
                ));
            }
            Some(version) => version,
            None if is_current => row.current,
            None => last.saturating_add(1),
        };
        match row.versions.get(&version) {
            Some(there) if there.source != self.source => {
                let message = format!(
                    "program {} has another version {version} already, which never changes; leave the version out, or give one above {last}",
                    self.name
                );
                return Err(Failure::new(Code::ProgramTaken, message));
            }
            Some(_) => {}
            None if row.versions.len() >= VERSIONS_MAX => {
                let message =
                    format!("program {} has {VERSIONS_MAX} versions, which is the limit", self.name);
                return Err(Failure::new(Code::ProgramRefused, message));
            }
            None => {
                let deployed = VersionRow { source: self.source.clone(), deployed_unix_ms: now_unix_ms() };
                row.versions.insert(version, deployed);
            }
        }
        row.current = version;
        Ok(row)
    }
}

fn key(name: &str) -> String {
    format!("{PROGRAMS}{name}")
}

fn checked_name(name: &str) -> Result<(), Failure> {
    // The core alone knows what a program may be called.
    let parsed = Name::parse(&format!("{name}/1"));
    let is_taken = [Name::OUTSIDE, Name::EFFECT].contains(&name);
    let message = match parsed {
        Ok(_) if is_taken => format!("{name:?} names parties that are no instances; choose another name"),
        Ok(parsed) if parsed.program() == name => return Ok(()),
        Ok(_) => format!("{name:?} is no name of a program: it has a slash"),
        Err(error) => error.to_string(),
    };
    Err(Failure::new(Code::InstanceNameInvalid, message))
}

/// The word that was given, which must be one of these.
fn one_of<'a>(
    field: &str,
    given: Option<&'a str>,
    words: &[&'static str],
) -> Result<Option<&'a str>, Failure> {
    match given {
        Some(other) if !words.contains(&other) => {
            let hint = did_you_mean(other, words.iter().copied());
            let message = format!("{field}: {other:?} is none{hint}; possible are {}", words.join(", "));
            Err(Failure::new(Code::BadRequest, message))
        }
        given => Ok(given),
    }
}

/// The source that is asked for.
fn source(asked: &DeployRequest) -> Result<Source, Failure> {
    let source = match (&asked.wasm, &asked.http, &asked.command) {
        (Some(text), None, None) => {
            let bytes = BASE64.decode(text.as_bytes()).map_err(|error| {
                Failure::new(Code::BadRequest, format!("wasm: this is no base64 text: {error}"))
            })?;
            if bytes.len() > MODULE_BYTES_MAX {
                let message = format!(
                    "the module has {} bytes; {MODULE_BYTES_MAX} are possible, which is a row of the catalog; leave out debug information and names (wasm-opt -Oz --strip-debug), or offer it over HTTP",
                    bytes.len()
                );
                return Err(Failure::new(Code::ProgramRefused, message));
            }
            Source::Wasm(bytes)
        }
        (None, Some(url), None) => Source::Http { url: url.clone() },
        (None, None, Some(argv)) => Source::Command { argv: argv.clone() },
        _ => {
            let message = "give one of `wasm`, `http` and `command`: what is to be run";
            return Err(Failure::new(Code::BadRequest, message));
        }
    };
    Ok(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(url: &str, version: Option<u32>) -> Wanted<'static> {
        Wanted {
            name: "order",
            source: SourceRow::Http { url: url.to_owned() },
            is_pipelined: None,
            store: None,
            version,
        }
    }

    #[test]
    fn a_program_keeps_its_store() {
        let shared = Wanted { store: Some(Kind::Shared), ..wanted("http://a/1", None) };
        let first = shared.row(None).unwrap();
        assert_eq!(first.store, Kind::Shared);
        let next = wanted("http://a/2", None).row(Some(&first)).unwrap();
        assert_eq!(next.store, Kind::Shared, "as it was when nothing is said");
        let local = Wanted { store: Some(Kind::Local), ..wanted("http://a/2", None) };
        let refused = local.row(Some(&first)).unwrap_err();
        assert_eq!(refused.code, Code::ProgramTaken);
        assert!(refused.message.contains("in the store `shared`"), "{}", refused.message);
    }

    #[test]
    fn versions_count_up_and_never_change() {
        let first = wanted("http://a/1", None).row(None).unwrap();
        assert_eq!((first.current, first.versions.len()), (1, 1));
        let again = wanted("http://a/1", None).row(Some(&first)).unwrap();
        assert_eq!(again, first, "the same once more changes nothing");
        let second = wanted("http://a/2", None).row(Some(&first)).unwrap();
        assert_eq!((second.current, second.versions.len()), (2, 2));
        let back = wanted("http://a/1", Some(1)).row(Some(&second)).unwrap();
        assert_eq!((back.current, back.versions.len()), (1, 2));
        let refused = wanted("http://a/3", Some(1)).row(Some(&second)).unwrap_err();
        assert_eq!(refused.code, Code::ProgramTaken);
        assert_eq!(wanted("http://a/3", Some(0)).row(None).unwrap_err().code, Code::BadRequest);
    }

    #[test]
    fn one_source_is_wanted_and_a_program_has_a_name_of_its_own() {
        let none = DeployRequest::default();
        assert!(source(&none).unwrap_err().message.contains("`wasm`"));
        let large = DeployRequest { wasm: Some(BASE64.encode(&vec![0; MODULE_BYTES_MAX + 1])), ..none };
        assert!(source(&large).unwrap_err().message.contains("1048576"), "the limit is told");
        for name in ["outside", "effect", "a/b", "Order", ""] {
            assert_eq!(checked_name(name).unwrap_err().code, Code::InstanceNameInvalid, "{name}");
        }
        checked_name("order-2").unwrap();
    }
}
