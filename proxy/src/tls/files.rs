//! Reads the files that credentials are made of.
//!
//! **In** the contents of a file and its name. **Out** certificates, roots, CRLs, a key. **Refuses** what is wanting or
//! wrong, with a [`CredentialsError`] that names the file, the reason, and what would be right.

use std::fmt;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use webpki::OwnedCertRevocationList;

use super::pem::{self, Block};
use super::provider::provider;
use super::verify::{Reason, RevocationList, Root};
use super::{Der, inspect};

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
    Unreadable(#[from] pem::Unreadable),
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

pub(super) fn at(file: &File, problem: Problem) -> CredentialsError {
    CredentialsError { file: file.name.clone(), problem }
}

/// All certificates in a PEM file, at least one.
pub(super) fn certificates(file: &File) -> Result<Vec<Der>, CredentialsError> {
    let blocks = pem::blocks(&file.contents).map_err(|error| at(file, error.into()))?;
    let certificates: Vec<Der> = blocks
        .into_iter()
        .filter_map(|block| match block {
            Block::Certificate(der) => Some(der),
            _ => None,
        })
        .collect();
    if certificates.is_empty() { Err(at(file, Problem::NoCertificate)) } else { Ok(certificates) }
}

pub(super) fn certified_key(file: &File, chain_file: &File, chain: &[Der]) -> Result<CertifiedKey, CredentialsError> {
    let key = PrivateKeyDer::from_pem_slice(&file.contents).map_err(|error| {
        let encrypted = file.contents.windows(b"ENCRYPTED".len()).any(|window| window == b"ENCRYPTED");
        at(
            file,
            match error {
                _ if encrypted => Problem::EncryptedKey,
                rustls_pki_types::pem::Error::NoItemsFound => Problem::NoKey,
                other => Problem::UnusableKey(other.to_string()),
            },
        )
    })?;
    CertifiedKey::from_der(chain.to_vec(), key, provider()).map_err(|error| {
        at(
            file,
            match error {
                rustls::Error::InconsistentKeys(_) => Problem::KeyMismatch(chain_file.name.clone()),
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
            .map_err(|error| at(file, pem::Unreadable::new(format!("'{}': {error}", info.subject)).into()))?
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
                at(file, pem::Unreadable::new(format!("a CRL that cannot be used: {error}")).into())
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
    let blocks = pem::blocks(&file.contents).map_err(|error| at(file, error.into()))?;
    let ders: Vec<Vec<u8>> = blocks
        .into_iter()
        .filter_map(|block| match block {
            Block::Crl(der) => Some(der),
            _ => None,
        })
        .collect();
    if ders.is_empty() { Err(at(file, Problem::NoCrl)) } else { Ok(ders) }
}

/// Whose certificate it is, for a message: the subject, or else a name.
pub(super) fn whose(certificate: &inspect::Certificate) -> String {
    if certificate.subject.is_empty() { certificate.names.join(", ") } else { certificate.subject.clone() }
}
