//! The catalog's engine as the agent holds it: the nodes' own, or an etcd beside them.
//!
//! Whoever reads and writes rows uses the trait and need not know which it is. Here is what only one of them has: votes and elections are
//! the embedded engine's, and with etcd nobody is admitted to anything. It never decides who belongs to the cluster.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use steadfast::catalog::{
    Backup, Catalog, CatalogError, CatalogStatus, Embedded, Etcd, EtcdConfig, EtcdOpenError, EtcdTls,
    MembershipError, RaftNodeId,
};
use steadfast_proto::catalog::{ClusterRow, Key, decode_row};
use steadfast_proto::ids::{ClusterId, NodeId};

use super::rows;
use super::state::engine_id;
use crate::codes::Code;
use crate::config::catalog::EtcdSettings;
use crate::failure::{Failure, disk};

/// How long a request waits for etcd.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a start waits for the rows in etcd; it goes on without them, as it would without a majority.
const FILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest file that is read as a certificate or key, in bytes.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// One of the two.
#[derive(Clone, Debug)]
pub(crate) enum Engine {
    /// This node takes part in keeping it.
    Embedded(Embedded),
    /// It is asked.
    Etcd(Etcd, EtcdSettings),
}

impl Engine {
    /// What all of them have in common.
    pub(crate) fn catalog(&self) -> Arc<dyn Catalog> {
        match self {
            Engine::Embedded(embedded) => Arc::new(embedded.clone()),
            Engine::Etcd(etcd, _) => Arc::new(etcd.clone()),
        }
    }

    /// The engine in which this node has a part, if it has.
    pub(crate) fn embedded(&self) -> Option<&Embedded> {
        match self {
            Engine::Embedded(embedded) => Some(embedded),
            Engine::Etcd(..) => None,
        }
    }

    /// How etcd is reached, if it is etcd.
    pub(crate) fn etcd(&self) -> Option<&EtcdSettings> {
        match self {
            Engine::Embedded(_) => None,
            Engine::Etcd(_, settings) => Some(settings),
        }
    }

    pub(crate) fn status(&self) -> CatalogStatus {
        self.catalog().status()
    }

    pub(crate) async fn shutdown(&self) {
        match self {
            Engine::Embedded(embedded) => embedded.shutdown().await,
            Engine::Etcd(etcd, _) => etcd.shutdown().await,
        }
    }

    /// The catalog as of now, for a file.
    pub(crate) async fn backup(
        &self,
        cluster: ClusterId,
        node: NodeId,
        now_unix_ms: u64,
    ) -> Result<Backup, CatalogError> {
        match self {
            Engine::Embedded(embedded) => embedded.backup(now_unix_ms).await,
            Engine::Etcd(etcd, _) => {
                let rows = etcd.range(String::new()).await?;
                Ok(Backup::of(cluster.0, engine_id(node), now_unix_ms, rows))
            }
        }
    }

    /// Elects another leader in the place of one that is dead; an etcd does that by itself.
    pub(crate) async fn campaign(&self) {
        let Some(embedded) = self.embedded() else { return };
        let Some(dead) = embedded.leader() else { return };
        embedded.campaign(dead).await;
    }

    /// Takes a node's vote or copy away for good.
    pub(crate) async fn remove(&self, node: RaftNodeId) -> Result<(), MembershipError> {
        let Some(embedded) = self.embedded() else { return Ok(()) };
        let engine = embedded.status();
        if engine.voters.contains_key(&node) || engine.learners.contains_key(&node) {
            embedded.remove(node).await?;
        }
        Ok(())
    }
}

/// Begins to follow the etcd of these settings, and waits a moment for its rows.
pub(super) async fn open_etcd(
    settings: &EtcdSettings,
    cluster: ClusterId,
    node: NodeId,
) -> Result<Etcd, Failure> {
    let etcd = connect(settings, engine_id(node))?;
    match etcd.wait_filled(FILL_TIMEOUT).await {
        Ok(()) => check_owner(&etcd, settings, cluster)?,
        Err(error) => tracing::warn!(%error, "starting without the catalog's rows"),
    }
    Ok(etcd)
}

/// Refuses rows of another cluster.
pub(super) fn check_owner(etcd: &Etcd, settings: &EtcdSettings, cluster: ClusterId) -> Result<(), Failure> {
    let Some(row) = etcd.get_stale(&Key::Cluster.encode()).1 else { return Ok(()) };
    let row: ClusterRow = decode_row(&row.value).map_err(|error| {
        Failure::new(Code::StateCorrupt, format!("what lies in etcd under {:?}: {error}", settings.prefix))
    })?;
    if row.id == cluster {
        return Ok(());
    }
    Err(holds_another(settings, &row))
}

/// Refuses to found a cluster where something lies already, or where nothing answers.
pub(super) async fn check_free(settings: &EtcdSettings) -> Result<(), Failure> {
    let etcd = connect(settings, 0)?;
    let found = etcd.range(String::new()).await;
    etcd.shutdown().await;
    let rows: BTreeMap<_, _> = found
        .map_err(|error| {
            let failure = rows::catalog_failure(&error);
            Failure::new(failure.code, format!("{}; nothing was made", failure.message))
        })?
        .rows
        .into_iter()
        .collect();
    let Some(row) = rows.get(&Key::Cluster.encode()) else {
        if rows.is_empty() {
            return Ok(());
        }
        return Err(Failure::new(
            Code::AlreadyMember,
            format!(
                "etcd holds {} rows under {:?} that belong to no cluster; empty it, or give another catalog.prefix",
                rows.len(),
                settings.prefix
            ),
        ));
    };
    match decode_row::<ClusterRow>(&row.value) {
        Ok(row) => Err(holds_another(settings, &row)),
        Err(error) => Err(Failure::new(
            Code::StateCorrupt,
            format!("what lies in etcd under {:?} can't be read: {error}", settings.prefix),
        )),
    }
}

pub(super) fn holds_another(settings: &EtcdSettings, row: &ClusterRow) -> Failure {
    Failure::new(
        Code::WrongCluster,
        format!(
            "etcd holds cluster {} ({}) under {:?} already; give this one another catalog.prefix",
            row.name, row.id, settings.prefix
        ),
    )
}

fn connect(settings: &EtcdSettings, node: RaftNodeId) -> Result<Etcd, Failure> {
    let tls = match &settings.tls {
        None => None,
        Some(files) => Some(EtcdTls {
            ca: read_pem(&files.ca)?,
            client: match &files.client {
                None => None,
                Some((certificate, key)) => Some((read_pem(certificate)?, read_pem(key)?)),
            },
        }),
    };
    let config = EtcdConfig {
        endpoints: settings.endpoints.clone(),
        prefix: settings.prefix.clone(),
        tls,
        node,
        request_timeout: REQUEST_TIMEOUT,
    };
    Etcd::open(config).map_err(|error: EtcdOpenError| Failure::new(Code::ConfigInvalid, error.to_string()))
}

fn read_pem(path: &Path) -> Result<Vec<u8>, Failure> {
    let size = std::fs::metadata(path).map_err(|error| disk("read", path, &error))?.len();
    if size > PEM_BYTES_MAX {
        let message = format!("{} is larger than 1 MiB; name a PEM file", path.display());
        return Err(Failure::new(Code::ConfigInvalid, message));
    }
    std::fs::read(path).map_err(|error| disk("read", path, &error))
}
