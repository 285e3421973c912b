//! `init`: makes this node the first of a new cluster.
//!
//! Everything is written by one atomic replacement of the membership file, so a crash leaves either no cluster or a
//! whole one. The catalog itself is made from it by the agent's first start (`catalog`), idempotently.

use std::time::Duration;

use serde::Serialize;
use steadfast::identity::{ClusterKey, Membership};
use steadfast::net::tls::{Authority, NodeKey, TlsError};
use steadfast_proto::ids::ClusterId;

use super::engine;
use super::state::{self, Founder, State};
use crate::api::convert::now_unix_ms;
use crate::codes::Code;
use crate::config::Config;
use crate::config::catalog::CatalogConfig;
use crate::failure::Failure;
use crate::units;

/// What `init` made.
#[derive(Clone, Debug, Serialize)]
pub struct Founded {
    /// The cluster's name.
    pub cluster: String,
    /// Its id.
    pub cluster_id: String,
    /// This node's name.
    pub node: String,
    /// Its id.
    pub node_id: String,
}

/// Makes the cluster.
pub async fn init(config: &Config, name: &str, lease: Duration) -> Result<Founded, Failure> {
    let name = units::name(name)
        .map_err(|message| Failure::new(Code::NameInvalid, format!("the cluster's name {message}")))?;
    crate::config::detect::check_lease(&config.detect, lease)
        .map_err(|message| Failure::new(Code::ConfigInvalid, message))?;
    let mut identity = state::open(&config.data)?;
    state::refuse_member(&identity)?;
    if let CatalogConfig::Etcd(settings) = &config.catalog {
        engine::check_free(settings).await?;
    }
    let cluster = ClusterId(uuid::Uuid::new_v4().as_u128());
    let authority = Authority::create(cluster).map_err(|error| tls_failure(&error))?;
    let key = NodeKey::generate().map_err(|error| tls_failure(&error))?;
    let certificate = authority.issue(identity.node(), &key.public()).map_err(|error| tls_failure(&error))?;
    let founder = Founder {
        lease_ms: u32::try_from(lease.as_millis()).unwrap_or(u32::MAX),
        created_unix_ms: now_unix_ms(),
    };
    let membership = Membership {
        cluster: cluster.0,
        cluster_name: name.clone(),
        node_name: config.name.clone(),
        cluster_keys: vec![ClusterKey::generate(1)],
        ca_certificate: authority.certificate().to_vec(),
        ca_key: Some(authority.key_pkcs8()),
        node_certificate: certificate,
        node_key: key.private_pkcs8(),
        extra: State { founder: Some(founder), ..State::default() }.encode()?,
    };
    identity.store_membership(membership).map_err(|error| state::identity_failure(&error))?;
    Ok(Founded {
        cluster: name,
        cluster_id: cluster.to_string(),
        node: config.name.clone(),
        node_id: identity.node().to_string(),
    })
}

pub(crate) fn tls_failure(error: &TlsError) -> Failure {
    Failure::new(Code::Internal, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{EXAMPLE, check_text};

    fn config(data: &std::path::Path) -> Config {
        Config { data: data.to_path_buf(), ..check_text("example", EXAMPLE, |_| None).unwrap() }
    }

    fn init_now(config: &Config, name: &str) -> Result<Founded, Failure> {
        crate::commands::block_on(init(config, name, Duration::from_secs(1))).unwrap()
    }

    #[test]
    fn a_cluster_is_made_once_and_a_second_time_is_refused_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let founded = init_now(&config, "home").unwrap();
        let before = std::fs::read(folder.path().join("membership")).unwrap();
        let refused = init_now(&config, "other").unwrap_err();
        assert_eq!(refused.code, Code::AlreadyMember);
        assert!(refused.message.contains("home"), "{refused}");
        assert_eq!(std::fs::read(folder.path().join("membership")).unwrap(), before);
        assert_eq!(state::open(folder.path()).unwrap().node().to_string(), founded.node_id);
    }

    #[test]
    fn a_wrong_name_is_refused_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let refused = init_now(&config(&data), "My Cluster").unwrap_err();
        assert_eq!(refused.code, Code::NameInvalid);
        assert!(!data.exists());
    }

    #[test]
    fn a_lease_that_heartbeats_cannot_keep_is_refused_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(&folder.path().join("data"));
        config.detect.interval = Duration::from_secs(1);
        let refused = init_now(&config, "home").unwrap_err();
        assert_eq!(refused.code, Code::ConfigInvalid);
        assert!(refused.message.contains("at least 3s") && !config.data.exists(), "{refused}");
    }

    #[test]
    fn a_folder_in_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _open = state::open(folder.path()).unwrap();
        assert_eq!(init_now(&config(folder.path()), "home").unwrap_err().code, Code::StateInUse);
    }
}
