//! The group's row: where its list of members is agreed on.
//!
//! Decides how the row is written (a version byte and postcard) and how a compare-and-set on its view becomes one on
//! the catalog's version. Must never report a swap as refused that may have happened: that is `Unknown`.

use std::sync::Arc;

use steadfast_proto::catalog::Key;
use steadfast_proto::group::{Member, Row, Swapped};
use steadfast_proto::ids::ViewId;

use crate::catalog::{BoxFuture, Catalog, CatalogError, Txn, VALUE_BYTES_MAX};

const ROW_VERSION: u8 = 1;

/// Holds one group's row.
pub trait Register: Send + Sync + 'static {
    /// The row as of now, or `None` before the group was founded.
    fn read(&self) -> BoxFuture<'_, Result<Option<Row>, RegisterError>>;

    /// The row, and what else whoever keeps it knows of the group; asked again and again.
    fn look(&self) -> BoxFuture<'_, Result<Seen, RegisterError>> {
        Box::pin(async { Ok(Seen { row: self.read().await?, ..Seen::default() }) })
    }

    /// Writes `next` if the row still has the view and renewal `expected`.
    fn swap(&self, expected: (ViewId, u64), next: Row) -> BoxFuture<'_, Swapped>;
}

/// What is known of a group where its row is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The row, or `None` before the group was founded.
    pub row: Option<Row>,
    /// The candidate that an operator asked for; it passes, and no longer once it stands here no more.
    pub promote: Option<Member>,
    /// Full members that failed, for good.
    pub failed: Vec<Member>,
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
    /// Whoever keeps the row refuses, and will again.
    #[error("{0}")]
    Refused(String),
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

/// A row as text, for a request or an answer.
pub fn row_to_text(row: &Row) -> String {
    encode_row(row).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The row behind such text.
///
/// # Errors
/// It is not hexadecimal, or no row.
pub fn row_from_text(text: &str) -> Result<Row, RowError> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(pair).collect();
    let error = || RowError { bytes: text.len(), why: "it is no pairs of hexadecimal digits".to_owned() };
    decode_row(&bytes.ok_or_else(error)?)
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
        CatalogRegister { catalog, key: Key::Group(name.to_owned()).encode() }
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
        assert_eq!(decode_row(&bytes), Ok(row.clone()));
        for wrong in [&[][..], &[9, 0, 0], &bytes[..bytes.len() - 1]] {
            assert!(decode_row(wrong).is_err());
        }
        assert_eq!(row_from_text(&row_to_text(&row)), Ok(row));
        for wrong in ["", "0", "0g", "01ü", "zz"] {
            assert!(row_from_text(wrong).is_err());
        }
    }
}
