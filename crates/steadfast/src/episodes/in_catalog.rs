//! The store in the catalog: what the cluster itself does, for one node at a time.
//!
//! It keeps what is: one row per instance, written at each commit in one transaction. The right to write is a row of its own
//! that names the holder: whoever takes it over changes its version, and each commit compares that, so that a holder that does
//! not know yet that it was followed by another commits nothing any more, and lets nothing out. A commit whose answer is lost
//! is made again: it writes the same. It decides nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use steadfast_proto::episode::{Episodes, Instance, Record};
use steadfast_proto::exchange::Name;
use tokio::runtime::Handle;

use super::{Store, StoreError};
use crate::catalog::{Catalog, CatalogError, TXN_BYTES_MAX, TXN_KEYS_MAX, Txn};

/// How soon a commit is made again that the catalog did not answer.
const AGAIN: Duration = Duration::from_millis(200);

/// The instances under one prefix of the catalog's keys, and this node's right to change them.
pub struct InCatalog {
    catalog: Arc<dyn Catalog>,
    runtime: Handle,
    prefix: String,
    /// The holder's row and the version that this node gave it.
    held: (String, u64),
    /// Instances as they were when the right was taken over, until they are loaded.
    found: Vec<Instance>,
    changed: BTreeSet<Name>,
    /// Set when nobody wants the answer of the catalog any more.
    given_up: Arc<AtomicBool>,
}

impl std::fmt::Debug for InCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InCatalog").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl InCatalog {
    /// Takes over the right to change what is under `prefix`, whoever had it, and reads what is there. `holder` is the key of the
    /// row that says whose the right is, and `me` its value. Setting `given_up` ends a commit that the catalog does not answer.
    ///
    /// # Errors
    /// The catalog does not answer, somebody else took the right over at the same time, or a row can't be read.
    pub async fn take_over(
        catalog: Arc<dyn Catalog>,
        prefix: &str,
        (holder, me): (&str, Bytes),
        given_up: Arc<AtomicBool>,
    ) -> Result<InCatalog, StoreError> {
        let before = catalog.get(holder.to_owned()).await?;
        let version = before.map_or(0, |row| row.version);
        let taken = catalog.txn(Txn::compare_and_set(holder, version, me)).await?;
        if !taken.succeeded {
            return Err(StoreError::Fenced);
        }
        let found = catalog.range(prefix.to_owned()).await?;
        let instances = found.rows.iter().map(|(_, row)| Instance::decode(&row.value));
        let instances = instances.collect::<Result<Vec<Instance>, _>>()?;
        Ok(InCatalog {
            catalog,
            runtime: Handle::current(),
            prefix: prefix.to_owned(),
            held: (holder.to_owned(), taken.revision),
            found: instances,
            changed: BTreeSet::new(),
            given_up,
        })
    }

    /// The key of an instance's row.
    fn key(&self, name: &Name) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Transactions that each fit, and write all of these rows. Instances of this store say nothing to each other, so that
    /// a crash between two transactions leaves each instance whole.
    fn transactions(&self, puts: Vec<(String, Option<Bytes>)>) -> Vec<Txn> {
        let compare = vec![self.held.clone()];
        let (mut all, mut bytes) = (Vec::new(), 0);
        let mut next = Txn { compare: compare.clone(), puts: Vec::new() };
        for (key, value) in puts {
            let more = key.len() + value.as_ref().map_or(0, Bytes::len);
            if !next.puts.is_empty() && (next.puts.len() == TXN_KEYS_MAX || bytes + more > TXN_BYTES_MAX / 2)
            {
                let fresh = Txn { compare: compare.clone(), puts: Vec::new() };
                all.push(std::mem::replace(&mut next, fresh));
                bytes = 0;
            }
            bytes += more;
            next.puts.push((key, value));
        }
        all.push(next);
        all
    }

    /// Blocks until the catalog has answered, however often that takes.
    fn write(&self, txn: &Txn) -> Result<(), StoreError> {
        loop {
            match self.runtime.block_on(self.catalog.txn(txn.clone())) {
                Ok(reply) if reply.succeeded => return Ok(()),
                Ok(_) => return Err(StoreError::Fenced),
                Err(
                    error @ (CatalogError::NoMajority { .. }
                    | CatalogError::Unknown { .. }
                    | CatalogError::Unreachable { .. }
                    | CatalogError::Overloaded { .. }),
                ) => {
                    if self.given_up.load(Ordering::Relaxed) {
                        return Err(error.into());
                    }
                    tracing::debug!(%error, "instances are not written to the catalog yet");
                    std::thread::sleep(AGAIN);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Store for InCatalog {
    fn load(&mut self, episodes: &mut Episodes) -> Result<(), StoreError> {
        self.found.drain(..).for_each(|instance| episodes.restore(instance));
        Ok(())
    }

    fn append(&mut self, record: &Record) -> Result<(), StoreError> {
        self.changed.insert(record.name().clone());
        Ok(())
    }

    fn commit(&mut self, episodes: &Episodes) -> Result<(), StoreError> {
        let puts = std::mem::take(&mut self.changed).into_iter().map(|name| {
            let value = episodes.instance(&name).map(|instance| Bytes::from(instance.encode()));
            (self.key(&name), value)
        });
        let puts: Vec<(String, Option<Bytes>)> = puts.collect();
        if puts.is_empty() {
            return Ok(());
        }
        self.transactions(puts).iter().try_for_each(|txn| self.write(txn))
    }

    fn rest(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn end(&mut self, episodes: &Episodes) -> Result<(), StoreError> {
        self.commit(episodes)
    }
}
