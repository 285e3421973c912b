//! `[catalog]`: which engine keeps the catalog, and how etcd is reached when it is that one.
//!
//! The default needs no key at all: the nodes keep the catalog themselves. A key that would have no effect, or a
//! combination that would ask without TLS where TLS was meant, is refused with the relation that is broken. It never reads the
//! certificates' files nor asks etcd: the agent does. What an engine promises is said in `docs/operations/catalog.md`.

use std::path::PathBuf;

use super::source::{Given, Problems, Section};
use super::{absolute, choice};

/// Where rows lie in etcd when the file says nothing.
const PREFIX_DEFAULT: &str = "steadfast";
/// Most addresses of etcd's members.
const ENDPOINTS_MAX: usize = 16;
/// Longest prefix, in bytes.
const PREFIX_BYTES_MAX: usize = 128;
/// etcd's own port for clients.
const ETCD_PORT: u16 = 2379;

/// Who keeps the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CatalogConfig {
    /// The nodes themselves, by a majority of up to five of them.
    #[default]
    Embedded,
    /// An etcd that is there already.
    Etcd(EtcdSettings),
}

impl CatalogConfig {
    /// What this cluster's keys in etcd begin with, if they are there.
    pub fn etcd_prefix(&self) -> Option<String> {
        match self {
            CatalogConfig::Embedded => None,
            CatalogConfig::Etcd(settings) => Some(settings.prefix.clone()),
        }
    }
}

/// How etcd is reached. The same on every node, but for the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdSettings {
    /// Its members' addresses for clients, each with `http://` or `https://`.
    pub endpoints: Vec<String>,
    /// What this cluster's keys begin with.
    pub prefix: String,
    /// With TLS: whom to believe and how to be known.
    pub tls: Option<EtcdTlsFiles>,
}

/// PEM files for TLS with etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTlsFiles {
    /// The authority that etcd's certificates are checked against.
    pub ca: PathBuf,
    /// This node's certificate and its key, where etcd asks for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What was given.
#[derive(Debug, Default)]
pub(super) struct RawCatalog {
    engine: Option<Given>,
    endpoints: Option<Vec<Given>>,
    prefix: Option<Given>,
    ca: Option<Given>,
    certificate: Option<Given>,
    key: Option<Given>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Engine {
    Embedded,
    Etcd,
}

impl RawCatalog {
    /// Reads the section.
    pub(super) fn read(mut section: Section<'_>, problems: &mut Problems) -> RawCatalog {
        let raw = RawCatalog {
            engine: section.text("engine", problems),
            endpoints: section.texts("endpoints", problems),
            prefix: section.text("prefix", problems),
            ca: section.text("ca", problems),
            certificate: section.text("certificate", problems),
            key: section.text("key", problems),
        };
        section.finish(problems);
        raw
    }

    /// Checks each value, then how they stand to each other.
    pub(super) fn check(&self, problems: &mut Problems) -> Option<CatalogConfig> {
        let engine =
            self.engine.as_ref().map_or(Some(Engine::Embedded), |given| problems.check(given, engine))?;
        match engine {
            Engine::Embedded => {
                self.refuse_etcd_keys(problems);
                Some(CatalogConfig::Embedded)
            }
            Engine::Etcd => self.check_etcd(problems).map(CatalogConfig::Etcd),
        }
    }

    fn refuse_etcd_keys(&self, problems: &mut Problems) {
        let singles = [&self.prefix, &self.ca, &self.certificate, &self.key].into_iter().flatten();
        let first_endpoint = self.endpoints.iter().filter_map(|endpoints| endpoints.first());
        for given in first_endpoint.chain(singles) {
            problems.refuse(
                given,
                "it says how etcd is reached, and the engine is \"embedded\"; remove the key, or write engine = \"etcd\"",
            );
        }
    }

    fn check_etcd(&self, problems: &mut Problems) -> Option<EtcdSettings> {
        let tls = self.check_tls(problems);
        let endpoints = self.check_endpoints(matches!(tls, Some(Some(_))), problems);
        let prefix = match &self.prefix {
            Some(given) => problems.check(given, prefix),
            None => Some(PREFIX_DEFAULT.to_owned()),
        };
        Some(EtcdSettings { endpoints: endpoints?, prefix: prefix?, tls: tls? })
    }

    fn check_tls(&self, problems: &mut Problems) -> Option<Option<EtcdTlsFiles>> {
        let mut path = |given: &Option<Given>| match given {
            Some(given) => problems.check(given, absolute).map(Some),
            None => Some(None),
        };
        let (ca, certificate, key) = (path(&self.ca), path(&self.certificate), path(&self.key));
        for (given, other, name) in
            [(&self.certificate, &self.key, "key"), (&self.key, &self.certificate, "certificate")]
        {
            if let (Some(given), None) = (given, other) {
                problems.refuse(given, format!("`{name}` is missing beside it; give both or neither"));
                return None;
            }
        }
        if let (Some(given), None) = (&self.certificate, &self.ca) {
            problems
                .refuse(given, "`ca` is missing beside it: without it nothing says which etcd to believe");
            return None;
        }
        Some(ca?.map(|ca| EtcdTlsFiles { ca, client: certificate.flatten().zip(key.flatten()) }))
    }

    fn check_endpoints(&self, has_ca: bool, problems: &mut Problems) -> Option<Vec<String>> {
        let given = self.endpoints.as_deref().unwrap_or_default();
        if given.is_empty() {
            let message = "etcd needs `endpoints`, its members' addresses for clients; write endpoints = [\"10.0.1.21:2379\"]";
            match &self.engine {
                Some(engine) => problems.refuse(engine, message),
                None => problems.missing(message),
            }
            return None;
        }
        let mut endpoints = Vec::new();
        let mut whole = true;
        for (index, given) in given.iter().enumerate() {
            if index >= ENDPOINTS_MAX {
                problems.refuse(given, format!("more than {ENDPOINTS_MAX} endpoints; remove some"));
                return None;
            }
            match problems.check(given, |text| endpoint(text, has_ca)) {
                Some(endpoint) if endpoints.contains(&endpoint) => {
                    problems.refuse(given, format!("{endpoint} is given twice; remove one"));
                    whole = false;
                }
                Some(endpoint) => endpoints.push(endpoint),
                None => whole = false,
            }
        }
        whole.then_some(endpoints)
    }
}

fn engine(text: &str) -> Result<Engine, String> {
    choice(text, &[("embedded", Engine::Embedded), ("etcd", Engine::Etcd)])
}

/// One address with its scheme: the one that `ca` calls for where none is written.
fn endpoint(text: &str, has_ca: bool) -> Result<String, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (Some(scheme), rest),
        Some((scheme, _)) => {
            return Err(format!("{scheme:?} is not a way to reach etcd; write http:// or https://"));
        }
        None => (None, text),
    };
    match (scheme, has_ca) {
        (Some("http"), true) => {
            return Err("http:// would ask without TLS although `ca` is given; write https://".to_owned());
        }
        (Some("https"), false) => {
            return Err(
                "https:// needs `ca`, the authority that etcd's certificates are checked against".to_owned()
            );
        }
        _ => {}
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let right = format!("{text:?} is not an address of etcd; write for example \"10.0.1.21:{ETCD_PORT}\"");
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !rest.ends_with(']') => {
            let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(|| right.clone())?;
            (host, port)
        }
        _ => (rest, ETCD_PORT),
    };
    let is_bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    let is_name = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte));
    if !is_bracketed && !is_name {
        return Err(right);
    }
    let scheme = if has_ca { "https" } else { "http" };
    Ok(format!("{scheme}://{host}:{port}"))
}

fn prefix(text: &str) -> Result<String, String> {
    let trimmed = text.trim_matches('/');
    let is_plain = !trimmed.is_empty()
        && trimmed.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
        && !trimmed.contains("//");
    if !is_plain || trimmed.len() > PREFIX_BYTES_MAX {
        return Err(format!(
            "{text:?} can't begin this cluster's keys; write 1 to {PREFIX_BYTES_MAX} letters, digits, `-`, `_`, `.`, with `/` between them, as \"steadfast/home\""
        ));
    }
    Ok(trimmed.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, check_text};

    fn read(catalog: &str) -> Result<Config, String> {
        let text = format!(
            "[node]\nname=\"a\"\n[[network]]\nname=\"a\"\naddress=\"10.0.0.1\"\n[catalog]\n{catalog}\n"
        );
        check_text("node.toml", &text, |_| None).map_err(|failure| failure.message)
    }

    fn etcd(catalog: &str) -> EtcdSettings {
        match read(&format!("engine = \"etcd\"\n{catalog}")).unwrap().catalog {
            CatalogConfig::Etcd(settings) => settings,
            CatalogConfig::Embedded => panic!("embedded"),
        }
    }

    #[test]
    fn the_nodes_keep_the_catalog_unless_told_otherwise() {
        assert_eq!(read("").unwrap().catalog, CatalogConfig::Embedded);
        assert_eq!(read("engine = \"embedded\"").unwrap().catalog, CatalogConfig::Embedded);
        assert!(read("engine = \"etc\"").unwrap_err().contains("did you mean \"etcd\"?"));
    }

    #[test]
    fn addresses_get_a_port_and_the_scheme_that_the_authority_calls_for() {
        let plain = etcd("endpoints = [\"10.0.1.21\", \"etcd-2:2380\", \"http://[fd00::1]:2379/\"]");
        assert_eq!(plain.endpoints, ["http://10.0.1.21:2379", "http://etcd-2:2380", "http://[fd00::1]:2379"]);
        assert_eq!((plain.prefix.as_str(), plain.tls), ("steadfast", None));
        let with_tls = etcd(
            "endpoints = [\"10.0.1.21\"]\nprefix = \"/site/a/\"\nca = \"/e/ca\"\ncertificate = \"/e/c\"\nkey = \"/e/k\"",
        );
        assert_eq!(with_tls.endpoints, ["https://10.0.1.21:2379"]);
        assert_eq!(with_tls.prefix, "site/a");
        let client = Some((PathBuf::from("/e/c"), PathBuf::from("/e/k")));
        assert_eq!(with_tls.tls, Some(EtcdTlsFiles { ca: "/e/ca".into(), client }));
    }

    #[test]
    fn what_contradicts_itself_is_refused_naming_the_relation() {
        let refused = |catalog: &str, expected: &str| {
            let message = read(catalog).unwrap_err();
            assert!(message.contains(expected), "{catalog}: {message}");
        };
        let here = "endpoints = [\"10.0.1.21:2379\"]";
        refused(here, "catalog.endpoints[0]: it says how etcd is reached, and the engine is \"embedded\"");
        refused("prefix = \"x\"", "node.toml:7: catalog.prefix: it says how etcd is reached");
        refused("engine = \"etcd\"", "catalog.engine: etcd needs `endpoints`");
        refused("engine = \"etcd\"\nendpoints = []", "catalog.engine: etcd needs `endpoints`");
        let with = |rest: &str| format!("engine = \"etcd\"\n{here}\n{rest}");
        refused(&with("certificate = \"/c\"\nca = \"/a\""), "catalog.certificate: `key` is missing");
        refused(&with("key = \"/k\"\nca = \"/a\""), "catalog.key: `certificate` is missing");
        refused(&with("certificate = \"/c\"\nkey = \"/k\""), "catalog.certificate: `ca` is missing");
        refused(&with("ca = \"etcd/ca.pem\""), "catalog.ca: \"etcd/ca.pem\" is not a whole path");
        refused(&with("prefix = \"//\""), "catalog.prefix:");
        refused(
            "engine = \"etcd\"\nca = \"/a\"\nendpoints = [\"http://10.0.1.21\"]",
            "http:// would ask without TLS although `ca` is given",
        );
        refused("engine = \"etcd\"\nendpoints = [\"https://10.0.1.21\"]", "https:// needs `ca`");
        refused("engine = \"etcd\"\nendpoints = [\"10.0.1.21\", \"10.0.1.21:2379\"]", "is given twice");
        for wrong in ["10.0.1.21:port", "10.0.1.21:0", "", "a b", "ftp://a", "fd00::1"] {
            refused(&format!("engine = \"etcd\"\nendpoints = [\"{wrong}\"]"), "catalog.endpoints[0]:");
        }
        let many: Vec<String> = (0..17).map(|number| format!("\"10.0.1.{number}\"")).collect();
        refused(&format!("engine = \"etcd\"\nendpoints = [{}]", many.join(",")), "more than 16 endpoints");
    }
}
