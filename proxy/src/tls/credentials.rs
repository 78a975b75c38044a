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
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
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

/// Whom a gateway believes.
#[derive(Clone)]
struct Anchors {
    bundle: String,
    roots: Arc<[RootInfo]>,
    crls: Arc<[CrlInfo]>,
    trust: Arc<Trust>,
    settings: Settings,
}

impl Anchors {
    fn from_pem(bundle: &File, crls: &[File], settings: &Settings) -> Result<Self, CredentialsError> {
        let (anchors, roots) = files::roots(bundle)?;
        let (revoking, crls) = files::crls(crls)?;
        let trust = Trust::new(anchors, revoking, settings.refuse_expired_crls, settings.refuse_unknown_revocation);
        let (roots, crls, trust) = (roots.into(), crls.into(), Arc::new(trust));
        Ok(Self { bundle: bundle.name.clone(), roots, crls, trust, settings: settings.clone() })
    }
}

/// What a gateway is and whom it believes, at one moment. A gateway that is still to get its certificate believes already.
#[derive(Clone)]
pub struct Credentials {
    identity: Identity,
    server_names: Vec<Name>,
    not_before: SystemTime,
    expires: SystemTime,
    chain: Chain,
    warnings: Vec<String>,
    anchors: Anchors,
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
            .field("roots", &self.anchors.roots)
            .field("crls", &self.anchors.crls)
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
        let leaf = leaf(&pem.chain, &chain)?;
        let key = files::certified_key(&pem.key, &pem.chain, &chain)?;
        Self::build(
            &pem.chain,
            (chain, leaf),
            (key, &pem.key),
            Anchors::from_pem(&pem.bundle, &pem.crls, settings)?,
            now,
        )
    }

    /// A gateway that will be `identity` and has no certificate yet: it believes the roots of `bundle`, connects as nobody,
    /// and answers no handshake.
    pub fn awaiting(
        identity: Identity,
        bundle: &File,
        crls: &[File],
        settings: &Settings,
    ) -> Result<Self, CredentialsError> {
        Ok(Self::without_certificate(identity, Anchors::from_pem(bundle, crls, settings)?))
    }

    /// As [`awaiting`](Self::awaiting), where the roots are still to come too.
    pub fn believing_nobody(identity: Identity, settings: &Settings) -> Self {
        let trust =
            Trust::new(Vec::new(), Vec::new(), settings.refuse_expired_crls, settings.refuse_unknown_revocation);
        let anchors = Anchors {
            bundle: String::new(),
            roots: Arc::new([]),
            crls: Arc::new([]),
            trust: Arc::new(trust),
            settings: settings.clone(),
        };
        Self::without_certificate(identity, anchors)
    }

    fn without_certificate(identity: Identity, anchors: Anchors) -> Self {
        let settings = &anchors.settings;
        let dns = match &identity {
            Identity::Dns(name) => Some(name.clone()),
            Identity::Uri(_) => None,
        };
        Self {
            server_names: settings.server_names.iter().cloned().chain(dns).collect(),
            not_before: SystemTime::UNIX_EPOCH,
            expires: SystemTime::UNIX_EPOCH,
            chain: Arc::new([]),
            warnings: Vec::new(),
            server: Arc::new(server_config(&anchors.trust, Arc::new(NoCertificate), Vec::new())),
            server_without_alpn: Arc::new(server_config(&anchors.trust, Arc::new(NoCertificate), Vec::new())),
            client: Arc::new(client_config(&anchors.trust, None, &identity)),
            signer: None,
            identity,
            anchors,
        }
    }

    /// The same roots and CRLs with this chain and key. Refused where they do not fit each other now.
    pub fn with_certificate(&self, chain: &File, key: &File) -> Result<Self, CredentialsError> {
        let certificates = files::certificates(chain)?;
        let leaf = leaf(chain, &certificates)?;
        let certified = files::certified_key(key, chain, &certificates)?;
        Self::build(chain, (certificates, leaf), (certified, key), self.anchors.clone(), SystemTime::now())
    }

    fn build(
        file: &File,
        (chain, leaf): (Vec<Der>, inspect::Certificate),
        (key, key_file): (CertifiedKey, &File),
        anchors: Anchors,
        now: SystemTime,
    ) -> Result<Self, CredentialsError> {
        let trust = &anchors.trust;
        trust
            .check(&chain, Side::Server, now)
            .map_err(|reason| at(file, Problem::NotTrusted { bundle: anchors.bundle.clone(), reason }))?;
        let mut certificates = Vec::new();
        for der in &chain {
            certificates.push(inspect::certificate(der).map_err(|error| at(file, error.into()))?);
        }
        let mut server_names: Vec<Name> = anchors.settings.server_names.clone();
        server_names.extend(leaf.identities.iter().filter_map(|identity| match identity {
            Identity::Dns(name) => Some(name.clone()),
            Identity::Uri(_) => None,
        }));
        let identity = leaf.identities.first().cloned().ok_or_else(|| at(file, Problem::NoIdentity))?;
        let warnings = warnings(&file.name, &anchors, &chain, &certificates, &server_names, now);
        let key = Arc::new(SingleCertAndKey::from(key));
        let every_alpn = [ALPN_TRANSPORT_HEADER, ALPN_H2, ALPN_HTTP11].map(<[u8]>::to_vec).to_vec();
        Ok(Self {
            signer: Signer::first(key_file).map(Arc::new),
            server: Arc::new(server_config(trust, Arc::<SingleCertAndKey>::clone(&key), every_alpn)),
            server_without_alpn: Arc::new(server_config(trust, Arc::<SingleCertAndKey>::clone(&key), Vec::new())),
            client: Arc::new(client_config(trust, Some(key), &identity)),
            not_before: certificates.iter().map(|certificate| certificate.not_before).max().unwrap_or(leaf.not_before),
            expires: certificates.iter().map(|certificate| certificate.not_after).min().unwrap_or(leaf.not_after),
            chain: chain.into(),
            identity,
            server_names,
            warnings,
            anchors,
        })
    }

    /// Whether there is a certificate to show; without one no handshake is answered.
    pub fn has_certificate(&self) -> bool {
        !self.chain.is_empty()
    }

    /// Who the gateway is: the first usable name in its leaf; before it has one, who it will be.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The server names that are the gateway's own.
    pub fn server_names(&self) -> &[Name] {
        &self.server_names
    }

    /// When the youngest certificate of the own chain began; the epoch where there is none.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When the first certificate of the own chain ends; the epoch where there is none.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// The own chain, the leaf first.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Whom the gateway believes.
    pub fn roots(&self) -> &[RootInfo] {
        &self.anchors.roots
    }

    /// The CRLs in use.
    pub fn crls(&self) -> &[CrlInfo] {
        &self.anchors.crls
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
        &self.anchors.trust
    }

    pub(super) fn server_config(&self, alpn: bool) -> &Arc<ServerConfig> {
        if alpn { &self.server } else { &self.server_without_alpn }
    }

    /// The client's side, for a server of this identity. A clone is a dozen reference counts, which is little next to
    /// a handshake, and saves a cache that would have to be bounded.
    pub(super) fn client_config(&self, expected: &Identity) -> ClientConfig {
        let mut config = ClientConfig::clone(&self.client);
        let verifier = ServerVerifier { trust: Arc::clone(&self.anchors.trust), expected: expected.clone() };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        config
    }
}

/// The leaf, which must be somebody's and no CA's.
fn leaf(file: &File, chain: &[Der]) -> Result<inspect::Certificate, CredentialsError> {
    let leaf = inspect::certificate(&chain[0]).map_err(|error| at(file, error.into()))?;
    match leaf {
        leaf if leaf.is_ca => Err(at(file, Problem::CaFirst(leaf.subject))),
        leaf if leaf.identities.is_empty() => Err(at(file, Problem::NoIdentity)),
        leaf => Ok(leaf),
    }
}

/// Where there is nothing to show yet.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

fn server_config(trust: &Arc<Trust>, key: Arc<dyn ResolvesServerCert>, alpn: Vec<Vec<u8>>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(VERSIONS)
        .expect("the provider speaks TLS 1.3")
        .with_client_cert_verifier(Arc::new(ClientVerifier(Arc::clone(trust))))
        .with_cert_resolver(key);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn;
    config
}

fn client_config(trust: &Arc<Trust>, key: Option<Arc<SingleCertAndKey>>, expected: &Identity) -> ClientConfig {
    let verifier = ServerVerifier { trust: Arc::clone(trust), expected: expected.clone() };
    let config = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(VERSIONS)
        .expect("the provider speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match key {
        Some(key) => config.with_client_cert_resolver(key),
        None => config.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config
}

/// What keeps nothing from working, and should be known.
fn warnings(
    name: &str,
    anchors: &Anchors,
    chain: &[Der],
    certificates: &[inspect::Certificate],
    server_names: &[Name],
    now: SystemTime,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let Anchors { trust, roots, crls, .. } = anchors;
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
        warnings.push(format!("{}: root '{}' expired at {ended}, and is believed on", anchors.bundle, root.subject));
    }
    for crl in crls.iter().filter(|info| info.crl.next_update.is_some_and(|next| next < now)) {
        warnings.push(format!("{}: the CRL of '{}' is past its next update", crl.file, crl.crl.issuer));
    }
    warnings
}
