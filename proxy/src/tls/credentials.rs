//! Key, chain, roots and CRLs as one value that never changes: what a gateway is, and whom it believes.
//!
//! **In** PEM, each piece with the name of the file that it came from. **Out** [`Credentials`], with everything that a
//! handshake needs built beforehand. **Refuses** the whole set when any piece does not fit the others, naming the file,
//! the reason, and what would be right: a half-written set must leave the old one serving.
//! (RFC 5280; RFC 7468. Session tickets are off: a resumed session would skip the look at roots and CRLs.)

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};

use super::files::{self, CredentialsError, CrlInfo, File, Problem, RootInfo, at};
use super::inspect;
use super::provider::{VERSIONS, provider};
use super::sign::Signer;
use super::verifier::{ClientVerifier, ServerVerifier};
use super::verify::{Side, Trust};
use super::{ALPN_H2, ALPN_HTTP11, ALPN_TRANSPORT_HEADER, Chain, Der};
use crate::addr::Name;
use crate::identity::Identity;

/// Everything that credentials are made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pem {
    /// The leaf, then the CAs between it and a root.
    pub chain: File,
    /// The leaf's private key: PKCS#8, SEC 1 or PKCS#1.
    pub key: File,
    /// The trusted roots, old and new ones side by side.
    pub bundle: File,
    /// Certificate revocation lists, PEM or DER.
    pub crls: Vec<File>,
}

/// What the operator may say about credentials.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// Server names that are ours besides the DNS names in the leaf.
    pub server_names: Vec<Name>,
    /// Whether a CRL past its next update refuses those that it would tell about; else it is believed for longer.
    pub refuse_expired_crls: bool,
    /// Whether certificates are refused whose issuer has given no CRL.
    pub refuse_unknown_revocation: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { server_names: Vec::new(), refuse_expired_crls: true, refuse_unknown_revocation: false }
    }
}

/// What a gateway is and whom it believes, at one moment.
pub struct Credentials {
    identity: Identity,
    server_names: Vec<Name>,
    not_before: SystemTime,
    expires: SystemTime,
    chain: Chain,
    roots: Vec<RootInfo>,
    crls: Vec<CrlInfo>,
    warnings: Vec<String>,
    trust: Arc<Trust>,
    server: Arc<ServerConfig>,
    server_without_alpn: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    signer: Option<Arc<Signer>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("expires", &self.expires)
            .field("roots", &self.roots)
            .field("crls", &self.crls)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads the pieces, checks that they fit each other now, and builds what handshakes need.
    pub fn from_pem(pem: &Pem, settings: &Settings) -> Result<Self, CredentialsError> {
        Self::from_pem_at(pem, settings, SystemTime::now())
    }

    /// As [`from_pem`](Self::from_pem), at the time given.
    pub fn from_pem_at(pem: &Pem, settings: &Settings, now: SystemTime) -> Result<Self, CredentialsError> {
        let chain = files::certificates(&pem.chain)?;
        let leaf = inspect::certificate(&chain[0]).map_err(|error| at(&pem.chain, error.into()))?;
        if leaf.is_ca {
            return Err(at(&pem.chain, Problem::CaFirst(leaf.subject)));
        }
        let identity = leaf.identities.first().cloned().ok_or_else(|| at(&pem.chain, Problem::NoIdentity))?;
        let key = files::certified_key(&pem.key, &pem.chain, &chain)?;
        let (anchors, roots) = files::roots(&pem.bundle)?;
        let (revoking, crls) = files::crls(&pem.crls)?;
        let trust = Trust::new(anchors, revoking, settings.refuse_expired_crls, settings.refuse_unknown_revocation);
        let trust = Arc::new(trust);
        trust
            .check(&chain, Side::Server, now)
            .map_err(|reason| at(&pem.chain, Problem::NotTrusted { bundle: pem.bundle.name.clone(), reason }))?;

        let mut certificates = Vec::new();
        for der in &chain {
            certificates.push(inspect::certificate(der).map_err(|error| at(&pem.chain, error.into()))?);
        }
        let mut server_names: Vec<Name> = settings.server_names.clone();
        server_names.extend(leaf.identities.iter().filter_map(|identity| match identity {
            Identity::Dns(name) => Some(name.clone()),
            Identity::Uri(_) => None,
        }));
        let warnings = warnings(pem, &trust, &chain, &certificates, &roots, &crls, &server_names, now);
        let key = Arc::new(key);
        let every_alpn = [ALPN_TRANSPORT_HEADER, ALPN_H2, ALPN_HTTP11].map(<[u8]>::to_vec).to_vec();
        Ok(Self {
            signer: Signer::first(&pem.key).map(Arc::new),
            server: Arc::new(server_config(&trust, &key, every_alpn)),
            server_without_alpn: Arc::new(server_config(&trust, &key, Vec::new())),
            client: Arc::new(client_config(&trust, &key, &identity)),
            not_before: certificates.iter().map(|certificate| certificate.not_before).max().unwrap_or(leaf.not_before),
            expires: certificates.iter().map(|certificate| certificate.not_after).min().unwrap_or(leaf.not_after),
            chain: chain.into(),
            identity,
            server_names,
            roots,
            crls,
            warnings,
            trust,
        })
    }

    /// Who the gateway is: the first usable name in its leaf.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The server names that are the gateway's own.
    pub fn server_names(&self) -> &[Name] {
        &self.server_names
    }

    /// When the youngest certificate of the own chain began.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When the first certificate of the own chain ends.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// The own chain, the leaf first.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Whom the gateway believes.
    pub fn roots(&self) -> &[RootInfo] {
        &self.roots
    }

    /// The CRLs in use.
    pub fn crls(&self) -> &[CrlInfo] {
        &self.crls
    }

    /// The gateway's key as one that signs; none where it is not on P-256.
    pub fn signer(&self) -> Option<&Arc<Signer>> {
        self.signer.as_ref()
    }

    /// What an operator should know though it keeps nothing from working, each a sentence that names the file.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub(super) fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    pub(super) fn server_config(&self, alpn: bool) -> &Arc<ServerConfig> {
        if alpn { &self.server } else { &self.server_without_alpn }
    }

    /// The client's side, for a server of this identity. A clone is a dozen reference counts, which is little next to
    /// a handshake, and saves a cache that would have to be bounded.
    pub(super) fn client_config(&self, expected: &Identity) -> ClientConfig {
        let mut config = ClientConfig::clone(&self.client);
        let verifier = ServerVerifier { trust: Arc::clone(&self.trust), expected: expected.clone() };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        config
    }
}

fn server_config(trust: &Arc<Trust>, key: &Arc<CertifiedKey>, alpn: Vec<Vec<u8>>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(VERSIONS)
        .expect("the provider speaks TLS 1.3")
        .with_client_cert_verifier(Arc::new(ClientVerifier(Arc::clone(trust))))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(key))));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn;
    config
}

fn client_config(trust: &Arc<Trust>, key: &Arc<CertifiedKey>, expected: &Identity) -> ClientConfig {
    let verifier = ServerVerifier { trust: Arc::clone(trust), expected: expected.clone() };
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(VERSIONS)
        .expect("the provider speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(key))));
    config.resumption = Resumption::disabled();
    config
}

/// What keeps nothing from working, and should be known.
#[expect(clippy::too_many_arguments, reason = "the pieces that were just read, looked at once more")]
fn warnings(
    pem: &Pem,
    trust: &Trust,
    chain: &[Der],
    certificates: &[inspect::Certificate],
    roots: &[RootInfo],
    crls: &[CrlInfo],
    server_names: &[Name],
    now: SystemTime,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let name = &pem.chain.name;
    if let Some(leaf) = certificates.first()
        && leaf.key != "ECDSA P-256"
    {
        warnings.push(format!("{name}: the key is {}, and Linkerd's proxies accept ECDSA P-256 only", leaf.key));
    }
    if let Err(reason) = trust.check(chain, Side::Client, now) {
        warnings.push(format!("{name}: not usable toward upstreams that ask for mutual TLS: {reason}"));
    }
    if server_names.is_empty() {
        warnings.push(format!("{name}: has no DNS name, and none is configured: no server name is answered"));
    }
    for root in roots.iter().filter(|root| root.not_after < now) {
        let ended = inspect::rfc3339(root.not_after);
        warnings.push(format!("{}: root '{}' expired at {ended}, and is believed on", pem.bundle.name, root.subject));
    }
    for crl in crls.iter().filter(|info| info.crl.next_update.is_some_and(|next| next < now)) {
        warnings.push(format!("{}: the CRL of '{}' is past its next update", crl.file, crl.crl.issuer));
    }
    warnings
}
