//! Typed rows over the catalog's bytes.
//!
//! Reads are linearizable unless they say otherwise. A row that can't be read is an error that names its key, never
//! skipped. What may be written is decided by the callers.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use steadfast::catalog::{Catalog, CatalogError, Txn, TxnReply, Versioned};
use steadfast_proto::catalog::{ContainerRow, Key, NameRow, NodeRow, RowError, decode_row, encode_row};

use crate::api::convert::Names;
use crate::codes::Code;
use crate::failure::{Failure, did_you_mean};

/// Rows of one catalog.
#[derive(Clone)]
pub(crate) struct Rows {
    catalog: Arc<dyn Catalog>,
}

impl Rows {
    pub(crate) fn new(catalog: Arc<dyn Catalog>) -> Rows {
        Rows { catalog }
    }

    pub(crate) fn catalog(&self) -> &Arc<dyn Catalog> {
        &self.catalog
    }

    /// A row and its version, if it is there.
    pub(crate) async fn get<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<(T, u64)>, Failure> {
        self.get_at(&key.encode()).await
    }

    /// As [`Rows::get`], for a row that the core does not know.
    pub(crate) async fn get_at<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, u64)>, Failure> {
        let found = self.catalog.get(key.to_owned()).await.map_err(|error| catalog_failure(&error))?;
        found.map(|versioned| decode(key, &versioned)).transpose()
    }

    /// All rows under a prefix with their keys and versions.
    pub(crate) async fn all<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(T, u64)>, Failure> {
        let rows = self.catalog.range(prefix.to_owned()).await.map_err(|error| catalog_failure(&error))?;
        rows.rows.iter().map(|(key, versioned)| decode(key, versioned)).collect()
    }

    /// All rows under a prefix as this node has them; they may be old.
    pub(crate) fn all_stale<T: DeserializeOwned>(&self, prefix: &str) -> Vec<(T, u64)> {
        let rows = self.catalog.range_stale(prefix);
        rows.rows.iter().filter_map(|(key, versioned)| decode(key, versioned).ok()).collect()
    }

    /// A row as this node has it; it may be old.
    pub(crate) fn get_stale<T: DeserializeOwned>(&self, key: &Key) -> Option<(T, u64)> {
        self.get_stale_at(&key.encode())
    }

    /// As [`Rows::get_stale`], for a row that the core does not know.
    pub(crate) fn get_stale_at<T: DeserializeOwned>(&self, key: &str) -> Option<(T, u64)> {
        self.catalog.get_stale(key).1.and_then(|versioned| decode(key, &versioned).ok())
    }

    /// Commits, or says what stood against it.
    pub(crate) async fn commit(&self, txn: Txn) -> Result<TxnReply, Failure> {
        self.catalog.txn(txn).await.map_err(|error| catalog_failure(&error))
    }

    /// The container of a name; a name that is not there gets the nearest one that is.
    pub(crate) async fn container(&self, name: &str) -> Result<(ContainerRow, u64), Failure> {
        let named: Option<(NameRow, u64)> = self.get(&Key::Name(name.to_owned())).await?;
        if let Some((named, _)) = named
            && let Some(found) = self.get(&Key::Container(named.container)).await?
        {
            return Ok(found);
        }
        let all: Vec<(ContainerRow, u64)> = self.all("container/").await?;
        let hint = did_you_mean(name, all.iter().map(|(row, _)| row.spec.name.as_str()));
        Err(Failure::new(Code::ContainerNotFound, format!("there is no container named {name:?}{hint}")))
    }

    /// The container of a name; without a quorum as this node has it, which may be old.
    pub(crate) async fn container_or_stale(&self, name: &str) -> Result<(ContainerRow, u64), Failure> {
        match self.container(name).await {
            Err(failure) if failure.code == Code::NoQuorum => {
                let all = self.all_stale::<ContainerRow>("container/");
                all.into_iter().find(|(row, _)| row.spec.name == name).ok_or(failure)
            }
            outcome => outcome,
        }
    }

    /// The node of a name; a name that is not there gets the nearest one that is.
    pub(crate) async fn node(&self, name: &str) -> Result<NodeRow, Failure> {
        let all: Vec<(NodeRow, u64)> = self.all("node/").await?;
        let hint = did_you_mean(name, all.iter().map(|(row, _)| row.name.as_str()));
        let found =
            all.into_iter().map(|(row, _)| row).find(|row| row.name == name || row.id.to_string() == name);
        found
            .ok_or_else(|| Failure::new(Code::NodeNotFound, format!("there is no node named {name:?}{hint}")))
    }

    /// The nodes' names as this node has them.
    pub(crate) fn names(&self) -> Names {
        self.all_stale::<NodeRow>("node/").into_iter().map(|(row, _)| (row.id, row.name)).collect()
    }
}

/// A row as bytes.
pub(crate) fn encode<T: Serialize>(row: &T) -> Result<Bytes, Failure> {
    encode_row(row).map(Bytes::from).map_err(|error| Failure::new(Code::BadRequest, error.to_string()))
}

pub(crate) fn decode<T: DeserializeOwned>(key: &str, versioned: &Versioned) -> Result<(T, u64), Failure> {
    let row = decode_row(&versioned.value).map_err(|error: RowError| {
        Failure::new(Code::Internal, format!("the catalog's row {key}: {error}"))
    })?;
    Ok((row, versioned.version))
}

/// A refusal of the catalog as people see it.
pub(crate) fn catalog_failure(error: &CatalogError) -> Failure {
    match error {
        CatalogError::NoMajority { .. } => Failure::new(
            Code::NoQuorum,
            "the catalog has no majority of its voters, so nothing was changed; `steadfast status` says who is missing",
        ),
        CatalogError::Unknown { .. } => Failure::new(Code::TimedOut, error.to_string()),
        CatalogError::NotMember { .. } => Failure::new(
            Code::NoQuorum,
            "this node has not been admitted to the catalog yet; is any other node running?",
        ),
        CatalogError::Unreachable { .. } => Failure::new(Code::NoQuorum, error.to_string()),
        CatalogError::Closed { .. } => Failure::new(Code::DiskFailed, error.to_string()),
        CatalogError::Invalid(_)
        | CatalogError::Full { .. }
        | CatalogError::Overloaded { .. }
        | CatalogError::Refused { .. } => Failure::new(Code::BadRequest, error.to_string()),
    }
}
