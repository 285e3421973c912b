//! Backups of the catalog, and the two ways back: `catalog restore` and `catalog recover`.
//!
//! A restore into another cluster takes over what people made (containers, their names, the names of devices) and leaves out what names
//! machines: those are not there. A restore into the cluster it was taken from, and a recovery, take over everything. Neither runs beside an agent: the data folder is
//! locked. What a store then looks like is decided by `steadfast::catalog`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Serialize;
use steadfast::catalog::{self, Backup, BackupError, RescueError, StoreError, Survivor, Versioned};
use steadfast::identity::Membership;
use steadfast_proto::catalog::{ContainerRow, ContainerState, Key, View, decode_row};
use steadfast_proto::devices::DeviceKey;
use steadfast_proto::ids::NodeId;

use super::state::{self, engine_id};
use super::{Agent, rows};
use crate::api::convert::now_unix_ms;
use crate::codes::Code;
use crate::config::Config;
use crate::config::catalog::CatalogConfig;
use crate::failure::Failure;

/// What a restore made.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// The cluster it belongs to now.
    pub cluster: String,
    /// Rows that were taken over.
    pub rows: usize,
    /// Rows of the backup that were left out.
    pub left_out: usize,
    /// When the backup was taken, in milliseconds since 1970.
    pub taken_unix_ms: u64,
}

/// What a recovery made.
#[derive(Clone, Debug, Serialize)]
pub struct Recovered {
    /// Rows of the catalog.
    pub rows: usize,
    /// How many voters don't belong to it any more.
    pub lost: usize,
    /// Changes at the end of this node's log that it did not know to be committed; they are kept.
    pub uncertain: u64,
    /// Where the catalog is kept as it was.
    pub kept: Option<PathBuf>,
}

impl Agent {
    /// The catalog as of now, as the bytes of a backup.
    pub(crate) async fn backup_catalog(&self) -> Result<Vec<u8>, Failure> {
        let backup = self.engine.backup(self.inviter.cluster(), self.id, now_unix_ms()).await;
        let backup = backup.map_err(|error| rows::catalog_failure(&error))?;
        tokio::task::spawn_blocking(move || backup.encode())
            .await
            .map_err(|error| Failure::new(Code::Internal, format!("the backup broke off: {error}")))
    }
}

/// Checks the bytes of a backup and writes them to a file; gives its revision and how many rows it has.
pub fn store_backup(bytes: &[u8], file: &Path) -> Result<(u64, usize), Failure> {
    let backup = Backup::decode(bytes);
    let backup = backup
        .map_err(|what| Failure::new(Code::Internal, format!("the agent's backup is not whole: {what}")))?;
    backup.write(file).map_err(|error| backup_failure(&error))?;
    Ok((backup.revision(), backup.rows().len()))
}

/// Makes this node's catalog from a backup; it must not have started with one yet.
pub fn restore(config: &Config, file: &Path) -> Result<Restored, Failure> {
    refuse_etcd(config, "it is restored with `etcdctl snapshot restore`, while no agent runs")?;
    let mut backup = Backup::read(file).map_err(|error| backup_failure(&error))?;
    let identity = state::open(&config.data)?;
    let membership = member(identity.membership(), config)?;
    let all = backup.rows().len();
    if backup.cluster() != membership.cluster {
        backup.rewrite(adopted).map_err(|what| unreadable(file, &what))?;
    }
    catalog::restore(
        &dir(config),
        membership.cluster,
        engine_id(identity.node()),
        addresses(config),
        &backup,
    )
    .map_err(|error| rescue_failure(&error))?;
    Ok(Restored {
        cluster: membership.cluster_name.clone(),
        rows: backup.rows().len(),
        left_out: all - backup.rows().len(),
        taken_unix_ms: backup.taken_unix_ms(),
    })
}

/// Makes this node the only voter of its catalog and the only member of the next view.
pub fn recover(config: &Config, lost: usize) -> Result<Recovered, Failure> {
    refuse_etcd(config, "a majority of etcd that is lost for good is replaced by etcd's own means")?;
    let identity = state::open(&config.data)?;
    let membership = member(identity.membership(), config)?;
    let node = identity.node();
    let mut survivor = Survivor::open(&dir(config), membership.cluster, engine_id(node), lost)
        .map_err(|error| rescue_failure(&error))?;
    if let Some(view) = survivor.row(&Key::View.encode()) {
        let (view, _): (View, u64) = rows::decode(&Key::View.encode(), view)?;
        let next = alone(&view, node);
        let (record, _) = next.record(BTreeMap::new(), now_unix_ms());
        survivor.put(Key::View.encode(), rows::encode(&next)?);
        survivor.put(Key::ViewRecord(next.id).encode(), rows::encode(&record)?);
    }
    let recovered = survivor.recover(addresses(config)).map_err(|error| rescue_failure(&error))?;
    Ok(Recovered {
        rows: recovered.rows,
        lost: recovered.lost.len(),
        uncertain: recovered.uncertain,
        kept: recovered.kept,
    })
}

/// The next view, with `node` as its only member and grantor: the word of the person who recovers stands for the missing majority.
fn alone(view: &View, node: NodeId) -> View {
    let others = view.members.keys().filter(|member| **member != node);
    let accused = others.map(|member| (*member, BTreeSet::from([node]))).collect();
    let next = view.remove(accused, node);
    View { grantors: BTreeSet::from([node]), grantors_since: next.id, ..next }
}

/// What another cluster takes over of a row; `None` leaves it out.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "what is not listed belongs to the machines of the other cluster"
)]
fn adopted(key: &str, row: &Versioned) -> Result<Option<Bytes>, String> {
    match Key::decode(key) {
        Some(Key::Name(_)) => Ok(Some(row.value.clone())),
        Some(Key::Container(_)) => {
            let mut container: ContainerRow =
                decode_row(&row.value).map_err(|error| format!("its row {key}: {error}"))?;
            // The machines that held its checkpoints are of another cluster.
            container.state =
                ContainerState::Lost("it was restored from a backup of another cluster".to_owned());
            (container.latest, container.parent, container.restore_number) = (None, None, None);
            rows::encode(&container).map(Some).map_err(|failure| failure.message)
        }
        Some(_) => Ok(None),
        None => Ok(match DeviceKey::decode(key) {
            Some(DeviceKey::Naming | DeviceKey::Device(_) | DeviceKey::Name(_)) => Some(row.value.clone()),
            Some(DeviceKey::Seen(_) | DeviceKey::Proof(_)) | None => None,
        }),
    }
}

/// What lies in etcd is etcd's to bring back.
fn refuse_etcd(config: &Config, instead: &str) -> Result<(), Failure> {
    match &config.catalog {
        CatalogConfig::Embedded => Ok(()),
        CatalogConfig::Etcd(_) => Err(Failure::new(
            Code::BadRequest,
            format!("this cluster's catalog is in etcd: {instead}; see docs/operations/catalog.md"),
        )),
    }
}

fn dir(config: &Config) -> PathBuf {
    config.data.join("catalog")
}

fn addresses(config: &Config) -> Vec<String> {
    config.addresses().into_iter().map(|(_, address)| address.to_string()).collect()
}

fn member<'a>(membership: Option<&'a Membership>, config: &Config) -> Result<&'a Membership, Failure> {
    membership.ok_or_else(|| {
        Failure::new(
            Code::NotConfigured,
            format!("{} belongs to no cluster; make one first: steadfast init NAME", config.data.display()),
        )
    })
}

fn unreadable(file: &Path, what: &str) -> Failure {
    Failure::new(Code::BadRequest, format!("{}: this backup can't be restored: {what}", file.display()))
}

fn backup_failure(error: &BackupError) -> Failure {
    let code = match error {
        BackupError::Io { .. } => Code::DiskFailed,
        BackupError::Unusable { .. } => Code::BadRequest,
    };
    Failure::new(code, error.to_string())
}

fn rescue_failure(error: &RescueError) -> Failure {
    let code = match error {
        RescueError::Exists { .. } => Code::AlreadyMember,
        RescueError::Absent { .. } => Code::NotConfigured,
        RescueError::NoVoter { .. } => Code::NotAllowed,
        RescueError::Others { .. } => Code::BadRequest,
        RescueError::Store(StoreError::InUse { .. }) => Code::StateInUse,
        RescueError::Store(StoreError::Corrupt { .. } | StoreError::Foreign { .. }) => Code::StateCorrupt,
        RescueError::Store(
            StoreError::Io { .. } | StoreError::NoSpace { .. } | StoreError::Closed { .. },
        ) => Code::DiskFailed,
    };
    Failure::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::agent::found;
    use crate::config::{EXAMPLE, check_text};

    fn config(data: &Path) -> Config {
        Config { data: data.to_path_buf(), ..check_text("example", EXAMPLE, |_| None).unwrap() }
    }

    #[test]
    fn another_cluster_takes_over_names_and_nothing_that_a_machine_said() {
        let row = Versioned { value: Bytes::from_static(b"row"), version: 1 };
        for (key, kept) in [
            (Key::Name("cache".to_owned()).encode(), true),
            (DeviceKey::Naming.encode(), true),
            (DeviceKey::Device("wwn:1".parse().unwrap()).encode(), true),
            (DeviceKey::Name("data1".parse().unwrap()).encode(), true),
            (DeviceKey::Seen(NodeId(1)).encode(), false),
            (DeviceKey::Proof("wwn:1".parse().unwrap()).encode(), false),
            (Key::Node(NodeId(1)).encode(), false),
            (Key::View.encode(), false),
            ("keys".to_owned(), false),
        ] {
            assert_eq!(adopted(&key, &row).unwrap().is_some(), kept, "{key}");
        }
    }

    #[test]
    fn a_restore_needs_a_cluster_without_a_catalog_and_a_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(&folder.path().join("data"));
        let file = folder.path().join("backup");
        let missing = restore(&config, &file).unwrap_err();
        assert_eq!(missing.code, Code::DiskFailed, "{missing}");
        std::fs::write(&file, b"SFCATBAK and nothing else").unwrap();
        let damaged = restore(&config, &file).unwrap_err();
        assert_eq!(damaged.code, Code::BadRequest, "{damaged}");
        assert!(!config.data.exists(), "nothing was made");
        crate::commands::block_on(found::init(&config, "home", Duration::from_secs(1))).unwrap().unwrap();
        let nothing = recover(&config, 2).unwrap_err();
        assert!(nothing.message.contains("no catalog here"), "{nothing}");
    }
}
