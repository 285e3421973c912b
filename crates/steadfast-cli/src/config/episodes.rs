//! `[episodes]`: what the effects of episodes on foreign systems need to know, and no program may hold; and the store that nodes share.
//!
//! A program names a connection; where it leads, and with which password, is said here alone. It never connects.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::absolute;
use super::source::{Given, Problems, Section};
use crate::units;

/// Most connections of one node.
const CONNECTIONS_MAX: usize = 64;

/// What was given.
#[derive(Debug, Default)]
pub(super) struct RawEpisodes {
    postgresql: Vec<(Given, RawPostgresql)>,
    shared: Option<(Given, RawPostgresql)>,
}

#[derive(Debug)]
struct RawPostgresql {
    address: Option<Given>,
    password_file: Option<Given>,
    ca: Option<Given>,
}

/// What effects need to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpisodesConfig {
    /// The databases, by the names that programs call them.
    pub postgresql: BTreeMap<String, PostgresqlConfig>,
    /// The database in which instances are that all nodes can go on with.
    pub shared: Option<PostgresqlConfig>,
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresqlConfig {
    /// Where it is, and as whom it is asked.
    pub address: PostgresqlAddress,
    /// The file that holds the password.
    pub password_file: Option<PathBuf>,
    /// The authorities that its certificate is checked against; no TLS without.
    pub ca: Option<PathBuf>,
}

/// Where a database is: what libpq calls a connection string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresqlAddress(pub tokio_postgres::Config);

impl RawEpisodes {
    /// Reads the section.
    pub(super) fn read(mut section: Section<'_>, problems: &mut Problems) -> RawEpisodes {
        let mut raw = RawEpisodes::default();
        for (one, at) in section.named_tables("postgresql", problems) {
            raw.postgresql.push((at, RawPostgresql::read(one, problems)));
        }
        let shared = section.table_at("shared", problems);
        raw.shared = shared.map(|(one, at)| (at, RawPostgresql::read(one, problems)));
        section.finish(problems);
        raw
    }

    /// Checks each database.
    pub(super) fn check(&self, problems: &mut Problems) -> EpisodesConfig {
        let mut config = EpisodesConfig::default();
        if let Some((surplus, _)) = self.postgresql.get(CONNECTIONS_MAX) {
            problems.refuse(surplus, format!("at most {CONNECTIONS_MAX} databases are possible"));
        }
        for (at, raw) in &self.postgresql {
            let name = problems.check(at, units::name);
            if let (Some(name), Some(checked)) = (name, raw.check(at, problems)) {
                config.postgresql.insert(name, checked);
            }
        }
        if let Some((at, raw)) = &self.shared {
            config.shared = raw.check(at, problems);
        }
        config
    }
}

impl RawPostgresql {
    fn read(mut section: Section<'_>, problems: &mut Problems) -> RawPostgresql {
        let read = RawPostgresql {
            address: section.text("address", problems),
            password_file: section.text("password_file", problems),
            ca: section.text("ca", problems),
        };
        section.finish(problems);
        read
    }

    fn check(&self, at: &Given, problems: &mut Problems) -> Option<PostgresqlConfig> {
        let address = match &self.address {
            Some(given) => problems.check(given, address),
            None => {
                problems.refuse(
                    at,
                    "`address` is missing; write address = \"host=db.example dbname=shop user=steadfast\"",
                );
                None
            }
        };
        let ca = self.ca.as_ref().and_then(|given| problems.check(given, absolute));
        let password_file = self.password_file.as_ref().and_then(|given| problems.check(given, absolute));
        let mut address = address?;
        if ca.is_some() {
            address.0.ssl_mode(tokio_postgres::config::SslMode::Require);
        } else {
            address.0.ssl_mode(tokio_postgres::config::SslMode::Disable);
        }
        Some(PostgresqlConfig { address, password_file, ca })
    }
}

fn address(text: &str) -> Result<PostgresqlAddress, String> {
    let config: tokio_postgres::Config = text.parse().map_err(|error: tokio_postgres::Error| {
        let why = std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
        format!("this is no address of a database{why}; write \"host=db.example dbname=shop user=steadfast\"")
    })?;
    if config.get_password().is_some() {
        return Err(
            "it holds a password; put that into a file, and name the file with password_file".to_owned()
        );
    }
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err("it has no host; write host=db.example, or host=/run/postgresql for a socket".to_owned());
    }
    Ok(PostgresqlAddress(config))
}

#[cfg(test)]
mod tests {
    use super::super::check_text;
    use super::*;

    const NODE: &str = "[[network]]\nname = \"front\"\naddress = \"10.0.1.11:7400\"\n";

    fn read(text: &str) -> Result<EpisodesConfig, String> {
        check_text("f", &format!("{NODE}{text}"), |_| None)
            .map(|config| config.episodes)
            .map_err(|failure| failure.message)
    }

    #[test]
    fn a_database_has_a_name_and_no_password_in_the_file() {
        let text = "[episodes.postgresql.shop]\naddress = \"host=db dbname=shop user=sf\"\npassword_file = \"/etc/p\"\n";
        let config = read(text).unwrap();
        let shop = &config.postgresql["shop"];
        assert_eq!((shop.address.0.get_dbname(), shop.ca.is_none()), (Some("shop"), true));
        let shared =
            read("[episodes.shared]\naddress = \"host=db user=sf\"\nca = \"/etc/ca.pem\"\n").unwrap().shared;
        assert_eq!(shared.and_then(|shared| shared.ca), Some("/etc/ca.pem".into()));
        for (text, said) in [
            ("[episodes.postgresql.shop]\n", "`address` is missing"),
            ("[episodes.postgresql.shop]\naddress = \"host=db password=x\"\n", "password_file"),
            ("[episodes.postgresql.shop]\naddress = \"nonsense\"\n", "no address of a database"),
            ("[episodes.postgresql.shop]\naddress = \"dbname=x\"\n", "no host"),
            ("[episodes.postgresql.Shop]\naddress = \"host=db\"\n", "postgresql.Shop"),
            ("[episodes.postgresql]\nshop = 1\n", "is not a table"),
            ("[episodes.shared]\n", "`address` is missing"),
            ("[episodes]\nshared = \"host=db\"\n", "is not a table"),
            ("[episodes.postgresql.shop]\naddress = \"host=db\"\nadress = 1\n", "unknown key"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.contains(said), "{text}: {refused}");
        }
        assert!(
            !read("[episodes.postgresql.shop]\naddress = \"host=db password=secret\"\n")
                .unwrap_err()
                .contains("secret")
        );
    }
}
