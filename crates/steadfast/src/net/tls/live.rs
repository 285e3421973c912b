//! What of a node's TLS changes while it runs: its own certificate, and which of its peers' are worth nothing.
//!
//! It decides at each handshake which certificate is shown, and refuses one that was revoked. Connections that are
//! open already are not its matter: whoever revokes closes them. Read next: `tls` (who issues certificates).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use steadfast_proto::ids::NodeId;

use super::{node_of, serial_of};

/// Shared by all configurations of one node.
#[derive(Debug)]
pub(super) struct Live {
    own: RwLock<Arc<CertifiedKey>>,
    /// Certificates of these nodes up to these serials are refused.
    revoked: RwLock<BTreeMap<NodeId, u64>>,
    /// Those whose attempts were logged: they come back again and again.
    logged: Mutex<BTreeSet<NodeId>>,
}

impl Live {
    pub(super) fn new(own: CertifiedKey) -> Self {
        Self { own: RwLock::new(Arc::new(own)), revoked: RwLock::default(), logged: Mutex::default() }
    }

    pub(super) fn replace(&self, own: CertifiedKey) {
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(own);
    }

    pub(super) fn set_revoked(&self, revoked: BTreeMap<NodeId, u64>) {
        *self.revoked.write().unwrap_or_else(PoisonError::into_inner) = revoked;
    }

    pub(super) fn own(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.own.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        if revoked.is_empty() {
            return Ok(());
        }
        let Some(node) = node_of(certificate) else { return Err(CertificateError::BadEncoding.into()) };
        match revoked.get(&node) {
            Some(last) if serial_of(certificate) <= *last => {
                self.log(node);
                Err(CertificateError::Revoked.into())
            }
            Some(_) | None => Ok(()),
        }
    }

    fn log(&self, node: NodeId) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.insert(node) {
            tracing::warn!(%node, "a certificate that was revoked is refused");
        }
    }
}

/// Shows the certificate that the node has now.
#[derive(Debug)]
pub(super) struct Shown(pub(super) Arc<Live>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.own())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.own())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Accepts callers of the cluster that are not revoked.
#[derive(Debug)]
pub(super) struct Callers {
    pub(super) inner: Arc<dyn ClientCertVerifier>,
    pub(super) live: Arc<Live>,
}

impl ClientCertVerifier for Callers {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        self.live.check(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Accepts called nodes of the cluster that are not revoked.
#[derive(Debug)]
pub(super) struct Called {
    pub(super) inner: Arc<WebPkiServerVerifier>,
    pub(super) live: Arc<Live>,
}

impl ServerCertVerifier for Called {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        self.live.check(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
