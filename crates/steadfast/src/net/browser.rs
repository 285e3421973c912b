//! TLS for people and programs from outside: this node's own certificate, and theirs if they have one.
//!
//! It decides that they get TLS 1.3 and HTTP/1.1, and that whoever shows a certificate has its key. Whether anybody knows
//! that certificate is not its matter: whoever serves the connection asks. Such a certificate is signed by itself and
//! known by its digest, so that none that is meant for people can ever pass for a node's. Read next: `tls`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::tls::{Credentials, TlsError, fingerprint};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether there is any certificate to ask for; it is asked at each handshake.
pub type AsksCertificate = Arc<dyn Fn() -> bool + Send + Sync>;

/// Takes connections from outside.
#[derive(Clone)]
pub struct BrowserTls {
    acceptor: TlsAcceptor,
}

impl fmt::Debug for BrowserTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BrowserTls").finish_non_exhaustive()
    }
}

impl BrowserTls {
    /// Shows the certificate of this node, at each handshake the one that it has then.
    ///
    /// # Errors
    /// The TLS library refuses its own provider, which no configuration can cause.
    pub fn new(credentials: &Credentials, asks: AsksCertificate) -> Result<BrowserTls, TlsError> {
        let verifier = |provider| Arc::new(AnyWithKey { asks, provider }) as Arc<dyn ClientCertVerifier>;
        Ok(BrowserTls { acceptor: TlsAcceptor::from(Arc::new(credentials.browser_server(verifier)?)) })
    }

    /// The handshake; `None` when it failed, which whoever connects to any open port can cause.
    pub async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await;
        match handshake {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a handshake from outside failed");
                None
            }
            Err(_) => None,
        }
    }
}

/// The SHA-256 of the certificate that the other side has shown, and whose key it has.
#[must_use]
pub fn shown_certificate(stream: &TlsStream<TcpStream>) -> Option<[u8; 32]> {
    let (_, connection) = stream.get_ref();
    connection.peer_certificates()?.first().map(|certificate| fingerprint(certificate))
}

/// A new key with a certificate over it for somebody from outside.
#[derive(Clone)]
pub struct ClientCertificate {
    /// The certificate and its private key, as PEM: a secret.
    pub pem: String,
    /// The SHA-256 of the certificate.
    pub sha256: [u8; 32],
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ClientCertificate").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

/// Makes a certificate whose subject is `name`.
///
/// # Errors
/// This machine gives no random numbers, or the name can't stand in a certificate.
pub fn client_certificate(name: &str) -> Result<ClientCertificate, TlsError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.self_signed(&key)?;
    let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
    Ok(ClientCertificate { pem, sha256: fingerprint(certificate.der()) })
}

/// Takes any certificate whose key the other side has, and does without one.
struct AnyWithKey {
    asks: AsksCertificate,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for AnyWithKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AnyWithKey").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for AnyWithKey {
    fn offer_client_auth(&self) -> bool {
        // Browsers bother people who have some other certificate, so none is asked for in vain.
        (self.asks)()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_for_people_names_no_node() {
        let made = client_certificate("ann").unwrap();
        assert!(made.pem.contains("BEGIN CERTIFICATE") && made.pem.contains("BEGIN PRIVATE KEY"));
        let again = client_certificate("ann").unwrap();
        assert_ne!(made.sha256, again.sha256);
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }
}
