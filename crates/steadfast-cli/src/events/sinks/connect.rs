//! Where a sink connects to: addresses with a scheme, plain TCP, and TLS with the machine's or a given authority.
//!
//! It decides which authorities are believed. It must never fall back from TLS to plain text, nor print what stands
//! before an `@`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use hyper::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where systems keep the authorities that they believe, all in one file.
const SYSTEM_FILES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// An address that no sink can connect to; nothing was tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It can't be read at all, or lacks a part.
    #[error("{given:?} is no address; write for example {example}")]
    Unreadable {
        /// What was given, without credentials.
        given: String,
        /// What would be right.
        example: &'static str,
    },
    /// It has another scheme.
    #[error("the address begins with {scheme:?}; {plain}:// and {sealed}:// are possible")]
    Scheme {
        /// What it has.
        scheme: String,
        /// The scheme without TLS.
        plain: &'static str,
        /// The scheme with TLS.
        sealed: &'static str,
    },
    /// Credentials stand where they would end up in logs.
    #[error(
        "the address holds a user or a password before \"@\"; leave them out, the signature says who sends"
    )]
    Credentials,
}

/// Authorities that can't be read; nothing was connected.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// No file of authorities is on this machine.
    #[error("no certificate authorities are at {}; install ca-certificates, or name a file of your own", SYSTEM_FILES.join(", "))]
    Missing,
    /// A file can't be read.
    #[error("the authorities in {path} can't be read: {error}")]
    Unreadable {
        /// Which file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// A file holds no certificates in PEM form.
    #[error("{path} holds no certificate in PEM form that can be believed")]
    Empty {
        /// Which file.
        path: String,
    },
    /// The TLS library refuses its settings.
    #[error("TLS can't be set up: {0}")]
    Library(#[from] rustls::Error),
}

/// Both directions of a connection.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) is_sealed: bool,
    /// What stands before the `@`.
    pub(crate) credentials: Option<String>,
    /// Path and query.
    pub(crate) path: String,
}

impl Address {
    /// Reads an address whose scheme is one of these two.
    pub(crate) fn parse(
        text: &str,
        [plain, sealed]: [(&'static str, u16); 2],
        example: &'static str,
    ) -> Result<Address, AddressError> {
        let unreadable = || {
            let given = text.rsplit('@').next().unwrap_or_default().chars().take(200).collect();
            AddressError::Unreadable { given, example }
        };
        let uri: Uri = text.parse().map_err(|_| unreadable())?;
        let scheme = uri.scheme_str().ok_or_else(unreadable)?;
        let Some((_, port)) = [plain, sealed].into_iter().find(|(name, _)| *name == scheme) else {
            let scheme = scheme.to_owned();
            return Err(AddressError::Scheme { scheme, plain: plain.0, sealed: sealed.0 });
        };
        let authority = uri.authority().ok_or_else(unreadable)?;
        let credentials = authority.as_str().rsplit_once('@').map(|(before, _)| before.to_owned());
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(unreadable());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let port = authority.port_u16().unwrap_or(port);
        Ok(Address { host, port, is_sealed: scheme == sealed.0, credentials, path })
    }

    /// `host:port`, as an HTTP request names it.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub(crate) async fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        // Without it small requests wait for each other's acknowledgements; a failure only costs time.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// TLS over a connection to this host.
    pub(crate) async fn seal<S: Wire + 'static>(
        &self,
        stream: S,
        trust: &Trust,
    ) -> io::Result<Box<dyn Wire>> {
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::clone(&trust.0)).connect(name, stream).await?;
        Ok(Box::new(stream))
    }
}

/// Which authorities are believed.
#[derive(Clone, Debug)]
pub(crate) struct Trust(Arc<ClientConfig>);

impl Trust {
    /// The settings of connections that believe them.
    pub(crate) fn settings(&self) -> &Arc<ClientConfig> {
        &self.0
    }

    /// Those of a file in PEM form, or those of the machine.
    pub(crate) fn load(authority: Option<&Path>) -> Result<Trust, TrustError> {
        let system = || SYSTEM_FILES.into_iter().map(Path::new).find(|path| path.is_file());
        let path = authority.or_else(system).ok_or(TrustError::Missing)?;
        let name = path.display().to_string();
        let pem =
            std::fs::read(path).map_err(|error| TrustError::Unreadable { path: name.clone(), error })?;
        let mut roots = RootCertStore::empty();
        // A machine's file may hold certificates that this library does not take; the others count.
        let (taken, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
        if taken == 0 {
            return Err(TrustError::Empty { path: name });
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Trust(Arc::new(config)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: [(&str, u16); 2] = [("http", 80), ("https", 443)];

    #[test]
    fn an_address_is_read_or_refused_with_what_would_be_right() {
        let parse = |text: &str| Address::parse(text, WEB, "https://example.net/hook");
        let found = parse("https://[::1]:8443/a?b=c").unwrap();
        assert_eq!((found.host.as_str(), found.port, found.is_sealed), ("::1", 8443, true));
        assert_eq!((found.path.as_str(), found.authority().as_str()), ("/a?b=c", "[::1]:8443"));
        assert_eq!(parse("http://host").unwrap().port, 80);
        assert_eq!(parse("http://a:b@host").unwrap().credentials.as_deref(), Some("a:b"));
        assert!(parse("ftp://host").unwrap_err().to_string().contains("http:// and https://"));
        for wrong in ["", "host", "http://", "/path", "http://a b/"] {
            assert!(parse(wrong).unwrap_err().to_string().contains("https://example.net/hook"), "{wrong}");
        }
        assert!(!parse("x y secret@host").unwrap_err().to_string().contains("secret"));
    }

    #[test]
    fn a_file_without_authorities_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty.pem");
        std::fs::write(&path, "nothing").unwrap();
        assert!(Trust::load(Some(&path)).unwrap_err().to_string().contains("no certificate"));
        assert!(
            Trust::load(Some(&folder.path().join("absent")))
                .unwrap_err()
                .to_string()
                .contains("can't be read")
        );
    }
}
