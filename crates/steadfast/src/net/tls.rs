//! Who may open a connection: the cluster's CA, node certificates, and TLS 1.3 configurations.
//!
//! It decides that every connection is TLS 1.3 by a certificate of this cluster, that a peer's node id
//! is the one in its certificate, and that only a join may come without a certificate. It never asks
//! whether a node is still a member: `rpc` asks the catalog's view through a hook, and revocations are told to it.
//! Read next: `live` (what changes while a node runs), `rpc`.

mod live;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    version,
};
use steadfast_proto::ids::{ClusterId, NodeId};

use self::live::{Called, Callers, Live, Shown};

/// How long a node's certificate is valid; a running node takes a new one when [`RENEW_AGE`] is over.
pub const VALIDITY: Duration = Duration::from_secs(398 * 24 * 3600);
/// The age at which a node's certificate is replaced.
pub const RENEW_AGE: Duration = Duration::from_secs(265 * 24 * 3600);

/// Behind a node's id in the name of its certificate.
pub const NAME_SUFFIX: &str = ".node.steadfast";

/// Bytes of an uncompressed P-256 public key.
const PUBLIC_KEY_BYTES: usize = 65;

/// What is spoken on a connection, agreed on in the handshake (ALPN).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Calls between nodes; both sides show a node certificate.
    Rpc,
    /// The HTTP API for other nodes; both sides show a node certificate.
    Api,
    /// One idle connection per watched edge; both sides show a node certificate.
    Watch,
    /// A join; the client has no certificate yet and pins the CA.
    Join,
}

impl Protocol {
    const ALL: [Self; 4] = [Self::Rpc, Self::Api, Self::Watch, Self::Join];

    /// The name in the handshake.
    #[must_use]
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Rpc => b"steadfast-rpc/1",
            Self::Api => b"steadfast-api/1",
            Self::Watch => b"steadfast-watch/1",
            Self::Join => b"steadfast-join/1",
        }
    }

    /// The protocol of a name that the handshake agreed on.
    #[must_use]
    pub fn from_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.alpn() == name)
    }
}

/// Why certificates or keys can't be used. Nothing was sent or stored.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate could not be made.
    #[error("a certificate could not be made: {0}")]
    Issue(#[from] rcgen::Error),
    /// A certificate or key is not accepted by the TLS library.
    #[error("the node's certificate and key can't be used for TLS: {0}")]
    Configure(#[from] rustls::Error),
    /// The CA certificate can't verify clients.
    #[error("the cluster's CA certificate can't be used: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// A joiner's public key is not an uncompressed P-256 point.
    #[error("the public key has {found} bytes, a P-256 key has {PUBLIC_KEY_BYTES} and begins with 4")]
    PublicKey {
        /// Bytes given.
        found: usize,
    },
    /// The certificate is for another node.
    #[error("the certificate is for node {found:?}, this node is {expected}")]
    WrongNode {
        /// Whose certificate it is, if it is a node's at all.
        found: Option<NodeId>,
        /// Whose it should be.
        expected: NodeId,
    },
}

/// A node's private key, made on the node and never sent.
pub struct NodeKey {
    pair: KeyPair,
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}

impl NodeKey {
    /// Draws a key.
    ///
    /// # Errors
    /// The random source failed.
    pub fn generate() -> Result<Self, TlsError> {
        Ok(Self { pair: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)? })
    }

    /// The public half, to be sent to whoever issues the certificate.
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        self.pair.public_key_raw().to_vec()
    }

    /// The private half as PKCS#8 DER, for the state directory only.
    #[must_use]
    pub fn private_pkcs8(&self) -> Vec<u8> {
        self.pair.serialize_der()
    }
}

/// The cluster's CA with its private key, on nodes that may invite.
pub struct Authority {
    cluster: ClusterId,
    pair: KeyPair,
    certificate: Vec<u8>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the CA of a new cluster.
    ///
    /// # Errors
    /// The random source failed.
    pub fn create(cluster: ClusterId) -> Result<Self, TlsError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = authority_params(cluster).self_signed(&pair)?.der().to_vec();
        Ok(Self { cluster, pair, certificate })
    }

    /// Takes the CA from what was stored.
    ///
    /// # Errors
    /// The key is not one that [`Authority::create`] made.
    pub fn load(cluster: ClusterId, certificate: &[u8], key_pkcs8: &[u8]) -> Result<Self, TlsError> {
        let key = PrivatePkcs8KeyDer::from(key_pkcs8);
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)?;
        Ok(Self { cluster, pair, certificate: certificate.to_vec() })
    }

    /// The CA's certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The CA's private key as PKCS#8 DER, for the state directory and for other inviters.
    #[must_use]
    pub fn key_pkcs8(&self) -> Vec<u8> {
        self.pair.serialize_der()
    }

    /// Signs a certificate (DER) for `node` over the public key it sent.
    ///
    /// # Errors
    /// The public key has the wrong form.
    pub fn issue(&self, node: NodeId, public_key: &[u8]) -> Result<Vec<u8>, TlsError> {
        self.issue_from(node, public_key, 0)
    }

    /// As [`Authority::issue`]. The serial is the time of issue in milliseconds since 1970, and at least `serial_min`:
    /// of two certificates of one node the later has the higher one, so a revocation needs only one number.
    ///
    /// # Errors
    /// The public key has the wrong form.
    pub fn issue_from(&self, node: NodeId, public_key: &[u8], serial_min: u64) -> Result<Vec<u8>, TlsError> {
        if public_key.len() != PUBLIC_KEY_BYTES || public_key.first() != Some(&4) {
            return Err(TlsError::PublicKey { found: public_key.len() });
        }
        let issued = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut params = CertificateParams::new(vec![name_of(node)])?;
        let serial = u64::try_from(issued.as_millis()).unwrap_or(u64::MAX).max(serial_min).max(1);
        let digits: Vec<u8> = serial.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
        params.serial_number = Some(SerialNumber::from(digits));
        // A clock that is behind must not refuse its own cluster, so only the end is bounded.
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + issued + VALIDITY;
        params.distinguished_name.push(DnType::CommonName, node.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let authority = authority_params(self.cluster);
        let issuer = Issuer::from_params(&authority, &self.pair);
        let certificate = params.signed_by(&PublicKey { point: public_key }, &issuer)?;
        Ok(certificate.der().to_vec())
    }
}

/// SHA-256 of a CA certificate, as tokens carry it.
#[must_use]
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The node that a certificate names. Trust it only for a certificate that the handshake verified.
#[must_use]
pub fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut ids = parsed.valid_dns_names().filter_map(|name| {
        let id = name.strip_suffix(NAME_SUFFIX)?;
        id.parse::<NodeId>().ok()
    });
    let id = ids.next()?;
    ids.next().is_none().then_some(id)
}

/// The serial of a node's certificate: when it was issued, in milliseconds since 1970. One that was made before
/// serials were times, or can't be read, has 0: it counts as the oldest.
#[must_use]
pub fn serial_of(certificate: &[u8]) -> u64 {
    let certificate = CertificateDer::from(certificate);
    let Ok(parsed) = webpki::EndEntityCert::try_from(&certificate) else { return 0 };
    let significant: Vec<u8> = parsed.serial().iter().copied().skip_while(|byte| *byte == 0).collect();
    if significant.len() > size_of::<u64>() {
        return 0;
    }
    significant.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// What one node needs to accept and open connections. Clones share what changes while it runs.
#[derive(Clone, Debug)]
pub struct Credentials {
    node: NodeId,
    ca: CertificateDer<'static>,
    live: Arc<Live>,
    server: Arc<ServerConfig>,
    rpc: Arc<ClientConfig>,
    api: Arc<ClientConfig>,
    watch: Arc<ClientConfig>,
}

impl Credentials {
    /// Makes the TLS configurations of a member.
    ///
    /// # Errors
    /// Certificate and key don't fit each other, the CA, or this node.
    pub fn new(
        node: NodeId,
        ca_certificate: &[u8],
        node_certificate: &[u8],
        node_key_pkcs8: &[u8],
    ) -> Result<Self, TlsError> {
        let ca = CertificateDer::from(ca_certificate.to_vec());
        let live = Arc::new(Live::new(certified(node, &ca, node_certificate, node_key_pkcs8)?));
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let roots = Arc::new(roots);
        let provider = Arc::new(crypto_provider());
        let callers = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
        let callers = Callers { inner: callers, live: Arc::clone(&live) };
        let called = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
        let called = Called { inner: called, live: Arc::clone(&live) };
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(Arc::new(callers))
            .with_cert_resolver(Arc::new(Shown(Arc::clone(&live))));
        server.alpn_protocols = Protocol::ALL.map(|one| one.alpn().to_vec()).into();
        // A resumed session would stand for the certificates of its beginning, whatever was revoked since.
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(called))
            .with_client_cert_resolver(Arc::new(Shown(Arc::clone(&live))));
        client.resumption = rustls::client::Resumption::disabled();
        let with_alpn = |protocol: Protocol| {
            let mut config = client.clone();
            config.alpn_protocols = vec![protocol.alpn().to_vec()];
            Arc::new(config)
        };
        let (rpc, api) = (with_alpn(Protocol::Rpc), with_alpn(Protocol::Api));
        Ok(Self { node, ca, live, server: Arc::new(server), rpc, api, watch: with_alpn(Protocol::Watch) })
    }

    /// Shows another certificate from now on, in every clone; open connections stay as they are.
    ///
    /// # Errors
    /// Certificate and key don't fit each other or this node; the one before is still shown.
    pub fn replace(&self, node_certificate: &[u8], node_key_pkcs8: &[u8]) -> Result<(), TlsError> {
        self.live.replace(certified(self.node, &self.ca, node_certificate, node_key_pkcs8)?);
        Ok(())
    }

    /// Refuses from now on, in every clone and both directions, certificates of these nodes with these or lower serials.
    pub fn set_revoked(&self, revoked: BTreeMap<NodeId, u64>) {
        self.live.set_revoked(revoked);
    }

    /// This node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// SHA-256 of the certificate that this node shows now, as browsers print it.
    #[must_use]
    pub fn certificate_fingerprint(&self) -> [u8; 32] {
        self.live.own().cert.first().map(|own| fingerprint(own)).unwrap_or_default()
    }

    /// For people and programs from outside: the same certificate, and what this verifier makes of theirs.
    pub(crate) fn browser_server(
        &self,
        verifier: impl FnOnce(Arc<CryptoProvider>) -> Arc<dyn ClientCertVerifier>,
    ) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(crypto_provider());
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier(provider))
            .with_cert_resolver(Arc::new(Shown(Arc::clone(&self.live))));
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(server)
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    pub(crate) fn rpc_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.rpc)
    }

    pub(crate) fn api_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.api)
    }

    pub(crate) fn watch_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.watch)
    }
}

/// A node's certificate with its key, checked to be `node`'s.
fn certified(
    node: NodeId,
    ca: &CertificateDer<'static>,
    node_certificate: &[u8],
    node_key_pkcs8: &[u8],
) -> Result<CertifiedKey, TlsError> {
    let own = CertificateDer::from(node_certificate.to_vec());
    let found = node_of(&own);
    if found != Some(node) {
        return Err(TlsError::WrongNode { found, expected: node });
    }
    let key = PrivatePkcs8KeyDer::from(node_key_pkcs8.to_vec());
    // The CA travels along so that a joiner, who knows only its fingerprint, can pin it.
    let chain = vec![own, ca.clone()];
    Ok(CertifiedKey::from_der(chain, key.into(), &crypto_provider())?)
}

/// The name under which `node` must show a certificate.
pub(crate) fn server_name(node: NodeId) -> ServerName<'static> {
    ServerName::try_from(name_of(node)).expect("a UUID and the suffix make a valid name")
}

/// The configuration of a joiner that knows nothing but the CA's fingerprint from its token.
///
/// # Errors
/// The TLS library refuses its own provider, which no configuration can cause.
pub fn join_client(ca_fingerprint: [u8; 32]) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(crypto_provider());
    let verifier = PinnedAuthority { ca_fingerprint, provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![Protocol::Join.alpn().to_vec()];
    Ok(Arc::new(config))
}

/// Accepts any node of the cluster whose CA has the pinned fingerprint.
#[derive(Debug)]
struct PinnedAuthority {
    ca_fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|one| fingerprint(one) == self.ca_fingerprint);
        let Some(ca) = pinned else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, algorithms)?;
        if node_of(end_entity).is_none() {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

struct PublicKey<'a> {
    point: &'a [u8],
}

impl PublicKeyData for PublicKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn name_of(node: NodeId) -> String {
    format!("{node}{NAME_SUFFIX}")
}

/// The same for the same cluster, so that the CA's names need not be parsed back from its certificate.
fn authority_params(cluster: ClusterId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("steadfast cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// AES-128-GCM first: bulk transfers between nodes are bound by the cipher, and 128 bits are enough.
fn crypto_provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
            provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..provider::default_provider()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(3);
    const NODE: NodeId = NodeId(0xabc);

    #[test]
    fn a_node_certificate_names_its_node() {
        let authority = Authority::create(CLUSTER).unwrap();
        let key = NodeKey::generate().unwrap();
        let certificate = authority.issue(NODE, &key.public()).unwrap();
        assert_eq!(node_of(&CertificateDer::from(certificate.clone())), Some(NODE));
        assert_eq!(node_of(&CertificateDer::from(authority.certificate().to_vec())), None);
        Credentials::new(NODE, authority.certificate(), &certificate, &key.private_pkcs8()).unwrap();
        let error = Credentials::new(NodeId(1), authority.certificate(), &certificate, &key.private_pkcs8());
        assert!(matches!(error, Err(TlsError::WrongNode { found: Some(NODE), .. })));
    }

    #[test]
    fn a_stored_authority_issues_what_the_same_ca_verifies() {
        let created = Authority::create(CLUSTER).unwrap();
        let loaded = Authority::load(CLUSTER, created.certificate(), &created.key_pkcs8()).unwrap();
        let key = NodeKey::generate().unwrap();
        let certificate = CertificateDer::from(loaded.issue(NODE, &key.public()).unwrap());
        let pinned = PinnedAuthority {
            ca_fingerprint: fingerprint(created.certificate()),
            provider: Arc::new(crypto_provider()),
        };
        let chain = [CertificateDer::from(created.certificate().to_vec())];
        let name = ServerName::try_from("anything").unwrap();
        pinned.verify_server_cert(&certificate, &chain, &name, &[], UnixTime::now()).unwrap();
        let other = Authority::create(CLUSTER).unwrap();
        let chain = [CertificateDer::from(other.certificate().to_vec())];
        pinned.verify_server_cert(&certificate, &chain, &name, &[], UnixTime::now()).unwrap_err();
        let foreign = CertificateDer::from(other.issue(NODE, &key.public()).unwrap());
        let chain = [CertificateDer::from(created.certificate().to_vec())];
        pinned.verify_server_cert(&foreign, &chain, &name, &[], UnixTime::now()).unwrap_err();
    }

    fn credentials(authority: &Authority, node: NodeId) -> (Credentials, CertificateDer<'static>) {
        let key = NodeKey::generate().unwrap();
        let certificate = authority.issue(node, &key.public()).unwrap();
        let made = Credentials::new(node, authority.certificate(), &certificate, &key.private_pkcs8());
        (made.unwrap(), CertificateDer::from(certificate))
    }

    /// Whether both sides of a handshake are content, in memory.
    fn meet(caller: &Credentials, called: &Credentials) -> Result<(), rustls::Error> {
        let mut client =
            rustls::ClientConnection::new(caller.rpc_client(), server_name(called.node())).unwrap();
        let mut server = rustls::ServerConnection::new(called.server()).unwrap();
        while client.wants_write() || server.wants_write() {
            let (mut there, mut back) = (Vec::new(), Vec::new());
            while client.wants_write() {
                client.write_tls(&mut there).unwrap();
            }
            while !there.is_empty() {
                let read = server.read_tls(&mut there.as_slice()).unwrap();
                there.drain(..read);
                server.process_new_packets()?;
            }
            while server.wants_write() {
                server.write_tls(&mut back).unwrap();
            }
            while !back.is_empty() {
                let read = client.read_tls(&mut back.as_slice()).unwrap();
                back.drain(..read);
                client.process_new_packets()?;
            }
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(())
    }

    #[test]
    fn a_later_certificate_has_a_higher_serial_and_an_old_one_none() {
        let authority = Authority::create(CLUSTER).unwrap();
        let (_, certificate) = credentials(&authority, NODE);
        let serial = serial_of(&certificate);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        assert!(u128::from(serial) <= now && u128::from(serial) + 600_000 > now, "{serial}");
        // A certificate authority's own serial is random and long, as those of node certificates were.
        assert_eq!(serial_of(authority.certificate()), 0);
    }

    #[test]
    fn a_revoked_certificate_is_refused_in_both_directions_and_a_later_one_is_not() {
        let authority = Authority::create(CLUSTER).unwrap();
        let (alpha, _) = credentials(&authority, NodeId(1));
        let (beta, old) = credentials(&authority, NodeId(2));
        meet(&alpha, &beta).unwrap();
        meet(&beta, &alpha).unwrap();
        alpha.set_revoked(BTreeMap::from([(NodeId(2), serial_of(&old))]));
        for refused in [meet(&alpha, &beta), meet(&beta, &alpha)] {
            assert_eq!(refused, Err(CertificateError::Revoked.into()));
        }
        // Serials are milliseconds: the next one may fall into the same.
        let key = NodeKey::generate().unwrap();
        let later = std::iter::repeat_with(|| authority.issue(NodeId(2), &key.public()).unwrap())
            .find(|later| serial_of(later) > serial_of(&old))
            .unwrap();
        beta.clone().replace(&later, &key.private_pkcs8()).unwrap();
        meet(&alpha, &beta).unwrap();
        meet(&beta, &alpha).unwrap();
        let wrong = beta.replace(alpha.ca.as_ref(), &key.private_pkcs8());
        assert!(matches!(wrong, Err(TlsError::WrongNode { found: None, .. })));
        meet(&alpha, &beta).unwrap();
    }

    #[test]
    fn a_public_key_of_another_form_is_refused() {
        let authority = Authority::create(CLUSTER).unwrap();
        let error = authority.issue(NODE, &[4; 12]).unwrap_err();
        assert!(matches!(error, TlsError::PublicKey { found: 12 }));
    }
}
