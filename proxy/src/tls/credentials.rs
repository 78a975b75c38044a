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
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use webpki::OwnedCertRevocationList;

use super::inspect::{self, Block};
use super::provider::{VERSIONS, provider};
use super::verify::{ClientVerifier, Reason, RevocationList, Root, ServerVerifier, Side, Trust};
use super::{ALPN_H2, ALPN_HTTP11, ALPN_TRANSPORT_HEADER, Chain, Der};
use crate::addr::Name;
use crate::identity::Identity;

/// The contents of a file, and its name for messages.
#[derive(Clone, Eq, PartialEq)]
pub struct File {
    /// Where the bytes came from: a path, or a word for what is no file.
    pub name: String,
    /// The bytes.
    pub contents: Vec<u8>,
}

impl File {
    /// Puts the two together.
    pub fn new(name: impl Into<String>, contents: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), contents: contents.into() }
    }
}

/// Shows the name only: the contents may be a key.
impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}

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

/// Why credentials are not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct CredentialsError {
    /// The file that is to be put right.
    pub file: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a file of credentials, and what would be right.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Problem {
    /// A CA stands where the leaf should.
    #[error(
        "the first certificate, '{0}', is a CA's: the gateway's own certificate must come first, its issuers after it"
    )]
    CaFirst(String),
    /// The private key is encrypted.
    #[error("the private key is encrypted: store it decrypted (openssl pkey -in … -out …) and guard the file instead")]
    EncryptedKey,
    /// The key is for another certificate.
    #[error(
        "the private key does not belong to the first certificate in {0}: key and certificate must be replaced together"
    )]
    KeyMismatch(String),
    /// No certificate in a file that must have some.
    #[error("holds no certificate: expected sections that begin with -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    /// No CRL in a file that must have one.
    #[error("holds no CRL: expected -----BEGIN X509 CRL-----, or DER")]
    NoCrl,
    /// The leaf names nobody.
    #[error("the first certificate names nobody: it needs a subject alternative name that is a DNS name or a URI")]
    NoIdentity,
    /// No private key in a file that must have one.
    #[error("holds no private key: expected -----BEGIN PRIVATE KEY----- (PKCS#8) or -----BEGIN EC PRIVATE KEY-----")]
    NoKey,
    /// A certificate among the roots is no CA's.
    #[error(
        "certificate {place}, '{subject}', is no CA's (basicConstraints does not say CA): a bundle holds trust anchors only, \
         no leaf certificates"
    )]
    NotCa {
        /// Counted from 1.
        place: usize,
        /// Whose it is.
        subject: String,
    },
    /// The chain does not lead to the roots, or is out of date.
    #[error("the gateway's own certificate would be refused by its peers, judged by the roots in {bundle}: {reason}")]
    NotTrusted {
        /// The file with the roots.
        bundle: String,
        /// Why it would be refused.
        reason: Reason,
    },
    /// Not what it should be.
    #[error("{0}")]
    Unreadable(#[from] inspect::Unreadable),
    /// The key is of a kind that cannot be used.
    #[error("the private key cannot be used ({0}): an ECDSA key on P-256 is right")]
    UnusableKey(String),
}

/// A trusted root.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootInfo {
    /// Its name.
    pub subject: String,
    /// Its beginning.
    pub not_before: SystemTime,
    /// Its end. Roots are believed past it, as elsewhere; it is worth an alert all the same.
    pub not_after: SystemTime,
    /// SHA-256 of the certificate in hexadecimal digits.
    pub fingerprint: String,
    /// Its subject key identifier in hexadecimal digits.
    pub key_id: Option<String>,
}

/// A certificate revocation list in use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CrlInfo {
    /// The file that it came from.
    pub file: String,
    /// What stands in it.
    pub crl: inspect::Crl,
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
        let chain = certificates(&pem.chain)?;
        let leaf = inspect::certificate(&chain[0]).map_err(|error| at(&pem.chain, error.into()))?;
        if leaf.is_ca {
            return Err(at(&pem.chain, Problem::CaFirst(leaf.subject)));
        }
        let identity = leaf.identities.first().cloned().ok_or_else(|| at(&pem.chain, Problem::NoIdentity))?;
        let key = certified_key(pem, &chain)?;
        let (anchors, roots) = roots(&pem.bundle)?;
        let (revoking, crls) = crls(&pem.crls)?;
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

fn at(file: &File, problem: Problem) -> CredentialsError {
    CredentialsError { file: file.name.clone(), problem }
}

/// All certificates in a PEM file, at least one.
pub(super) fn certificates(file: &File) -> Result<Vec<Der>, CredentialsError> {
    let blocks = inspect::pem_blocks(&file.contents).map_err(|error| at(file, error.into()))?;
    let certificates: Vec<Der> = blocks
        .into_iter()
        .filter_map(|block| match block {
            Block::Certificate(der) => Some(der),
            _ => None,
        })
        .collect();
    if certificates.is_empty() { Err(at(file, Problem::NoCertificate)) } else { Ok(certificates) }
}

fn certified_key(pem: &Pem, chain: &[Der]) -> Result<CertifiedKey, CredentialsError> {
    let key = PrivateKeyDer::from_pem_slice(&pem.key.contents).map_err(|error| {
        let encrypted = pem.key.contents.windows(b"ENCRYPTED".len()).any(|window| window == b"ENCRYPTED");
        at(
            &pem.key,
            match error {
                _ if encrypted => Problem::EncryptedKey,
                rustls_pki_types::pem::Error::NoItemsFound => Problem::NoKey,
                other => Problem::UnusableKey(other.to_string()),
            },
        )
    })?;
    CertifiedKey::from_der(chain.to_vec(), key, provider()).map_err(|error| {
        at(
            &pem.key,
            match error {
                rustls::Error::InconsistentKeys(_) => Problem::KeyMismatch(pem.chain.name.clone()),
                other => Problem::UnusableKey(other.to_string()),
            },
        )
    })
}

/// The roots, each key and name once. Old and new ones may stand side by side.
pub(super) fn roots(file: &File) -> Result<(Vec<Root>, Vec<RootInfo>), CredentialsError> {
    let mut roots: Vec<Root> = Vec::new();
    let mut infos = Vec::new();
    for (index, der) in certificates(file)?.into_iter().enumerate() {
        let info = inspect::certificate(&der).map_err(|error| at(file, error.into()))?;
        if !info.is_ca {
            return Err(at(file, Problem::NotCa { place: index + 1, subject: whose(&info) }));
        }
        let anchor = webpki::anchor_from_trusted_cert(&der)
            .map_err(|error| at(file, inspect::Unreadable::new(format!("'{}': {error}", info.subject)).into()))?
            .to_owned();
        if roots.iter().all(|root| root.anchor != anchor) {
            roots.push(Root { der, anchor });
            infos.push(RootInfo {
                subject: info.subject,
                not_before: info.not_before,
                not_after: info.not_after,
                fingerprint: info.fingerprint,
                key_id: info.key_id,
            });
        }
    }
    Ok((roots, infos))
}

/// The CRLs, the newest first. One that no CA at hand has signed is taken all the same: the CA may be another cluster's,
/// of which nobody here has a copy, and may have the very name of ours.
pub(super) fn crls(files: &[File]) -> Result<(Vec<RevocationList>, Vec<CrlInfo>), CredentialsError> {
    let mut found = Vec::new();
    for file in files {
        for der in crl_ders(file)? {
            let info = inspect::crl(&der).map_err(|error| at(file, error.into()))?;
            let list = OwnedCertRevocationList::from_der(&der).map_err(|error| {
                at(file, inspect::Unreadable::new(format!("a CRL that cannot be used: {error}")).into())
            })?;
            found.push((RevocationList { der, list: list.into() }, CrlInfo { file: file.name.clone(), crl: info }));
        }
    }
    found.sort_by_key(|(_, info)| std::cmp::Reverse(info.crl.this_update));
    Ok(found.into_iter().unzip())
}

fn crl_ders(file: &File) -> Result<Vec<Vec<u8>>, CredentialsError> {
    const SEQUENCE: u8 = 0x30;
    if file.contents.first() == Some(&SEQUENCE) {
        return Ok(vec![file.contents.clone()]);
    }
    let blocks = inspect::pem_blocks(&file.contents).map_err(|error| at(file, error.into()))?;
    let ders: Vec<Vec<u8>> = blocks
        .into_iter()
        .filter_map(|block| match block {
            Block::Crl(der) => Some(der),
            _ => None,
        })
        .collect();
    if ders.is_empty() { Err(at(file, Problem::NoCrl)) } else { Ok(ders) }
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

/// Whose certificate it is, for a message: the subject, or else a name.
pub(super) fn whose(certificate: &inspect::Certificate) -> String {
    if certificate.subject.is_empty() { certificate.names.join(", ") } else { certificate.subject.clone() }
}
