//! The group's row: where its list of members is agreed on.
//!
//! Decides how the row is written (a version byte and postcard) and how a compare-and-set on its view becomes one on
//! the catalog's version. Must never report a swap as refused that may have happened: that is `Unknown`.

use std::sync::Arc;

use steadfast_proto::group::{Row, Swapped};
use steadfast_proto::ids::ViewId;

use crate::catalog::{BoxFuture, Catalog, CatalogError, Txn, VALUE_BYTES_MAX};

const ROW_VERSION: u8 = 1;

/// Holds one group's row.
pub trait Register: Send + Sync + 'static {
    /// The row as of now, or `None` before the group was founded.
    fn read(&self) -> BoxFuture<'_, Result<Option<Row>, RegisterError>>;

    /// Writes `next` if the row still has the view and renewal `expected`.
    fn swap(&self, expected: (ViewId, u64), next: Row) -> BoxFuture<'_, Swapped>;
}

/// Why the row was not read. Nothing changed; it may be asked again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The catalog did not answer.
    #[error("the group's row can't be read: {0}")]
    Catalog(#[from] CatalogError),
    /// What is there is no row of a group.
    #[error("the group's row can't be read: {0}")]
    Row(#[from] RowError),
    /// Whoever keeps the row can't be reached.
    #[error("the group's row can't be read: {0}")]
    Unreachable(String),
}

/// The bytes are no row of a group, or one of another version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{bytes} bytes are no row of a group: {why}; expected version {ROW_VERSION} and at most {VALUE_BYTES_MAX} bytes"
)]
pub struct RowError {
    bytes: usize,
    why: String,
}

/// A row as bytes.
pub fn encode_row(row: &Row) -> Vec<u8> {
    postcard::to_extend(row, vec![ROW_VERSION]).expect("a row has no part that postcard can't write")
}

/// The row behind bytes.
///
/// # Errors
/// They are cut short, too long, or of another version.
pub fn decode_row(bytes: &[u8]) -> Result<Row, RowError> {
    let error = |why: String| RowError { bytes: bytes.len(), why };
    match bytes.split_first() {
        Some((&ROW_VERSION, row)) if bytes.len() <= VALUE_BYTES_MAX => {
            postcard::from_bytes(row).map_err(|cause| error(cause.to_string()))
        }
        Some((version, _)) => Err(error(format!("it begins with {version}"))),
        None => Err(error("it is empty".to_owned())),
    }
}

/// A group's row in the catalog.
#[derive(Clone)]
pub struct CatalogRegister {
    catalog: Arc<dyn Catalog>,
    key: String,
}

impl std::fmt::Debug for CatalogRegister {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CatalogRegister").field("key", &self.key).finish_non_exhaustive()
    }
}

impl CatalogRegister {
    /// The row of the group of this name.
    pub fn new(catalog: Arc<dyn Catalog>, name: &str) -> CatalogRegister {
        CatalogRegister { catalog, key: format!("group/{name}") }
    }

    /// Writes the first row, unless there is one, and returns the row that is there.
    ///
    /// # Errors
    /// The catalog did not answer; the row may have been written.
    pub async fn found(&self, first: &Row) -> Result<Row, RegisterError> {
        let found = Txn::compare_and_set(self.key.clone(), 0, encode_row(first));
        if self.catalog.txn(found).await?.succeeded {
            return Ok(first.clone());
        }
        let there = self.versioned().await?;
        there
            .map(|(row, _)| row)
            .ok_or_else(|| RegisterError::Unreachable("it was deleted meanwhile".to_owned()))
    }

    async fn versioned(&self) -> Result<Option<(Row, u64)>, RegisterError> {
        let Some(found) = self.catalog.get(self.key.clone()).await? else { return Ok(None) };
        Ok(Some((decode_row(&found.value)?, found.version)))
    }

    async fn try_swap(&self, expected: (ViewId, u64), next: &Row) -> Result<Option<Swapped>, RegisterError> {
        let Some((row, version)) = self.versioned().await? else { return Ok(None) };
        if row.key() != expected {
            return Ok(Some(if row == *next { Swapped::Done } else { Swapped::Conflict(row) }));
        }
        let swap = Txn::compare_and_set(self.key.clone(), version, encode_row(next));
        if self.catalog.txn(swap).await?.succeeded {
            return Ok(Some(Swapped::Done));
        }
        Ok(self.versioned().await?.map(|(row, _)| Swapped::Conflict(row)))
    }
}

impl Register for CatalogRegister {
    fn read(&self) -> BoxFuture<'_, Result<Option<Row>, RegisterError>> {
        Box::pin(async { Ok(self.versioned().await?.map(|(row, _)| row)) })
    }

    fn swap(&self, expected: (ViewId, u64), next: Row) -> BoxFuture<'_, Swapped> {
        Box::pin(async move {
            match self.try_swap(expected, &next).await {
                Ok(Some(outcome)) => outcome,
                Ok(None) => Swapped::Unknown,
                Err(error) => {
                    tracing::warn!(%error, "it is not known whether the group's row was changed");
                    Swapped::Unknown
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_and_other_bytes_are_refused() {
        let row = Row::founded(Vec::new());
        let bytes = encode_row(&row);
        assert_eq!(decode_row(&bytes), Ok(row));
        for wrong in [&[][..], &[9, 0, 0], &bytes[..bytes.len() - 1]] {
            assert!(decode_row(wrong).is_err());
        }
    }
}
