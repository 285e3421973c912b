//! What the catalog says of episodes: programs with their versions, the bytes of modules, and who keeps which home.
//!
//! `episode/program/NAME` has a program, `episode/module/DIGEST` the bytes of a module, each once however often it is
//! deployed, and `episode/homes` the node of each home, which is made with the first program and stays. `episode/sharing` has
//! the nodes that reach the shared store, `episode/mirroring` those that keep mirrored instances; who of them should keep which
//! home follows from that and the view. Who does keep mirrored ones, and where their copies are, is `episode/mirrored`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use steadfast::catalog::VALUE_BYTES_MAX;
use steadfast_proto::episode::{Mode, Program};
use steadfast_proto::ids::NodeId;

use crate::api::episode_types as types;
use crate::episodes::programs::Source;

/// All rows of episodes begin so.
pub(super) const ALL: &str = "episode/";
/// The rows of programs begin so.
pub(super) const PROGRAMS: &str = "episode/program/";
/// Who keeps which home.
pub(super) const HOMES: &str = "episode/homes";
/// Who keeps mirrored homes, and where their copies are.
pub(super) const MIRRORED: &str = "episode/mirrored";
/// The rows of modules begin so.
const MODULES: &str = "episode/module/";
/// How many homes there are.
pub(super) const HOMES_COUNT: usize = 64;
/// The largest module, in bytes: a row of the catalog.
pub(super) const MODULE_BYTES_MAX: usize = VALUE_BYTES_MAX;

/// Where instances are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Kind {
    /// On the disk of one node each, for good.
    #[default]
    Local,
    /// On the disks of two nodes.
    Mirror,
    /// In a database that nodes reach.
    Shared,
}

impl Kind {
    pub(super) const ALL: [Kind; 3] = [Kind::Local, Kind::Mirror, Kind::Shared];
    /// Those whose homes move from node to node.
    pub(super) const MOVING: [Kind; 2] = [Kind::Mirror, Kind::Shared];
    pub(super) const WORDS: [&str; 3] = ["local", "mirror", "shared"];

    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::Local => "local",
            Kind::Mirror => "mirror",
            Kind::Shared => "shared",
        }
    }

    /// The kind of that word.
    pub(super) fn of(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// The row of the nodes among which its homes move.
    pub(super) fn sharing(self) -> Option<&'static str> {
        match self {
            Kind::Local => None,
            Kind::Mirror => Some("episode/mirroring"),
            Kind::Shared => Some("episode/sharing"),
        }
    }
}

/// Who keeps which home, by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HomesRow {
    pub(super) nodes: Vec<NodeId>,
}

/// The nodes among which homes move.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SharingRow {
    pub(super) nodes: BTreeSet<NodeId>,
}

/// A program that was deployed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProgramRow {
    pub(super) name: String,
    /// The version that new instances run.
    pub(super) current: u32,
    pub(super) is_pipelined: bool,
    /// Where its instances are; never changes.
    pub(super) store: Kind,
    pub(super) versions: BTreeMap<u32, VersionRow>,
}

/// One version of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VersionRow {
    pub(super) source: SourceRow,
    pub(super) deployed_unix_ms: u64,
}

/// What is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SourceRow {
    /// The module with this BLAKE3 digest.
    Wasm {
        digest: [u8; 32],
        bytes: u64,
    },
    Http {
        url: String,
    },
    Command {
        argv: Vec<String>,
    },
}

impl HomesRow {
    /// These nodes in turn.
    pub(super) fn of(nodes: &[NodeId]) -> HomesRow {
        HomesRow { nodes: nodes.iter().copied().cycle().take(HOMES_COUNT).collect() }
    }
}

impl ProgramRow {
    /// What the machine knows of it.
    pub(super) fn program(&self) -> Program {
        let versions = self.versions.keys().copied().collect();
        Program { current: self.current, versions, mode: mode(self.is_pipelined) }
    }

    /// What people are shown.
    pub(super) fn shown(&self) -> types::Program {
        let versions = self.versions.iter().map(|(version, row)| types::ProgramVersion {
            version: *version,
            source: row.source.kind().to_owned(),
            what: row.source.words(),
            deployed_unix_ms: row.deployed_unix_ms,
        });
        types::Program {
            name: self.name.clone(),
            current: self.current,
            mode: mode_word(mode(self.is_pipelined)).to_owned(),
            store: self.store.word().to_owned(),
            versions: versions.collect(),
            unaware: Vec::new(),
        }
    }
}

impl SourceRow {
    /// The row of a source, and that of its module if it is one.
    pub(super) fn of(source: &Source) -> (SourceRow, Option<(String, Bytes)>) {
        match source {
            Source::Wasm(bytes) => {
                let digest = *blake3::hash(bytes).as_bytes();
                let row = SourceRow::Wasm { digest, bytes: bytes.len() as u64 };
                (row, Some((module_key(&digest), Bytes::copy_from_slice(bytes))))
            }
            Source::Http { url } => (SourceRow::Http { url: url.clone() }, None),
            Source::Command { argv } => (SourceRow::Command { argv: argv.clone() }, None),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            SourceRow::Wasm { .. } => "wasm",
            SourceRow::Http { .. } => "http",
            SourceRow::Command { .. } => "command",
        }
    }

    fn words(&self) -> String {
        match self {
            SourceRow::Wasm { digest, bytes } => {
                format!("{} of {bytes} bytes", HEXLOWER.encode(digest.get(..8).unwrap_or_default()))
            }
            SourceRow::Http { url } => url.clone(),
            SourceRow::Command { argv } => argv.join(" "),
        }
    }
}

/// Where the bytes of a module are.
pub(super) fn module_key(digest: &[u8; 32]) -> String {
    format!("{MODULES}{}", HEXLOWER.encode(digest))
}

fn mode(is_pipelined: bool) -> Mode {
    if is_pipelined { Mode::Pipelined } else { Mode::Strict }
}

/// The word of a mode.
pub(super) fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Strict => "strict",
        Mode::Pipelined => "pipelined",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_go_round_the_members_in_order() {
        let homes = HomesRow::of(&[NodeId(1), NodeId(2), NodeId(3)]);
        assert_eq!(homes.nodes.len(), HOMES_COUNT);
        assert_eq!(homes.nodes[..4], [NodeId(1), NodeId(2), NodeId(3), NodeId(1)]);
    }
}
