//! TLS for browsers: this node's own certificate, and none asked for.
//!
//! It decides that a browser gets TLS 1.3 and HTTP/1.1. Who is behind it is not its matter: whoever serves it asks for a
//! token. The certificate is the cluster's, which no browser knows: people compare its fingerprint. Read next: `tls`.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::tls::{Credentials, TlsError};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Takes connections of browsers.
#[derive(Clone)]
pub struct BrowserTls {
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for BrowserTls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("BrowserTls").finish_non_exhaustive()
    }
}

impl BrowserTls {
    /// Shows the certificate of this node, at each handshake the one that it has then.
    ///
    /// # Errors
    /// The TLS library refuses its own provider, which no configuration can cause.
    pub fn new(credentials: &Credentials) -> Result<BrowserTls, TlsError> {
        Ok(BrowserTls { acceptor: TlsAcceptor::from(Arc::new(credentials.browser_server()?)) })
    }

    /// The handshake; `None` when it failed, which whoever connects to any open port can cause.
    pub async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await;
        match handshake {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a browser's handshake failed");
                None
            }
            Err(_) => None,
        }
    }
}
