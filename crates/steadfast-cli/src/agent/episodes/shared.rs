//! The store of shared instances on PostgreSQL, as this node reaches it.
//!
//! It decides nothing about episodes; `steadfast::episodes::shared` says why two nodes that both believe that they keep a home are
//! harmless. Read next: `moving`.

use std::io;

use steadfast::episodes::{Shared, SharedError, StoreError};
use steadfast_proto::ids::{ClusterId, NodeId};
use tokio_postgres::NoTls;

use super::Room;
use super::carrier::keeper_id;
use super::rows::Kind;
use crate::config::episodes::PostgresqlConfig;
use crate::episodes::tls::Sealing;
use crate::events::sinks::connect::Trust;

/// The store that nodes share, as this node reaches it.
#[derive(Clone, Debug)]
pub(super) struct SharedStore {
    config: PostgresqlConfig,
    cluster: ClusterId,
}

impl SharedStore {
    pub(super) fn new(config: PostgresqlConfig, cluster: ClusterId) -> SharedStore {
        SharedStore { config, cluster }
    }

    /// Connects; blocks.
    pub(super) fn open(&self, runtime: &tokio::runtime::Handle, me: NodeId) -> Result<Shared, StoreError> {
        let unread = |what: &dyn std::fmt::Display, error: &dyn std::fmt::Display| {
            SharedError::Unreachable(format!("{what}: {error}"))
        };
        let mut config = self.config.address.0.clone();
        config.application_name("steadfast");
        if let Some(path) = &self.config.password_file {
            let password = std::fs::read_to_string(path);
            let password = password.map_err(|error: io::Error| unread(&path.display(), &error))?;
            config.password(password.trim_end_matches(['\r', '\n']));
        }
        let own = (self.cluster, me);
        match &self.config.ca {
            None => Shared::open(runtime, &config, NoTls, own),
            Some(path) => {
                let trust = Trust::load(Some(path)).map_err(|error| unread(&path.display(), &error))?;
                Shared::open(runtime, &config, Sealing(trust), own)
            }
        }
    }
}

impl Room {
    /// Tries whether a program can be given to the shared store.
    pub(super) async fn try_shared(&self) -> Result<(), String> {
        let Some(store) = self.inner.shared.clone() else {
            return Err("this node's configuration has no [episodes.shared]".to_owned());
        };
        let (runtime, me) = (self.inner.runtime.clone(), keeper_id(self.inner.me, Kind::Shared));
        let opened = tokio::task::spawn_blocking(move || store.open(&runtime, me).map(drop)).await;
        opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}
