//! Makes certificates: anchors, issuers, leaves, signing requests and revocation lists.
//!
//! **In** names and validities. **Out** PEM and DER as Linkerd's identity controller and the installation guide's
//! commands make them: ECDSA P-256, PKCS#8, key identifiers, key usages, bounded path lengths, and an empty subject on
//! leaves, since identities are longer than the 64 characters that a common name may have.
//! Serves the demo, the tests and `isthmus certs`; the gateway itself signs nothing. (RFC 5280 §4, RFC 2986.)

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::{Der, inspect, pem};
use crate::identity::Identity;

/// The most characters that a common name may have (RFC 5280, appendix A.1).
const MAX_COMMON_NAME_CHARS: usize = 64;

/// From when to when.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last one.
    pub not_after: SystemTime,
}

impl Validity {
    /// From a little before `now`, for the sake of clocks that run behind, for `length`.
    pub fn from_now(now: SystemTime, length: Duration) -> Self {
        /// What Linkerd's identity controller allows for clock skew.
        const SKEW: Duration = Duration::from_secs(10);
        Self { not_before: now - SKEW, not_after: now + length }
    }
}

/// What a leaf may be used for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Usage {
    /// Both sides, as workloads need.
    #[default]
    Both,
    /// Connecting only.
    Client,
    /// Accepting only.
    Server,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The certificate that should sign is no CA's.
    #[error("'{0}' is no CA's certificate: it cannot sign")]
    NotCa(String),
    /// The key belongs to another certificate.
    #[error("the private key does not belong to the CA's certificate")]
    KeyMismatch,
    /// The CA may have no CA below it.
    #[error("'{0}' allows no CA below it (path length 0): have an issuer signed by the anchor itself")]
    PathLen(String),
    /// A common name that is empty or too long.
    #[error("a common name has 1 to 64 characters, this one has {0}")]
    CommonName(usize),
    /// Names that cannot stand in a certificate, or none.
    #[error("no name that can stand in a certificate")]
    NoName,
    /// A time that certificates cannot carry, or an end before the beginning.
    #[error("the validity ends before it begins, or lies outside the years that certificates can carry")]
    Validity,
    /// The CA's name has parts that would not come out the same.
    #[error("the CA's name '{0}' cannot be written as it stands: its certificates would not be found to be its own")]
    IssuerName(String),
    /// A piece is not what it should be.
    #[error(transparent)]
    Unreadable(#[from] pem::Unreadable),
    /// The library says no.
    #[error("{0}")]
    Library(#[from] rcgen::Error),
}

/// A CA: what signs.
pub struct Authority {
    der: Der,
    about: inspect::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authority").field(&self.about.subject).finish()
    }
}

/// A certificate, and its key where that was made here.
#[derive(Clone, Eq, PartialEq)]
pub struct Leaf {
    /// The certificate.
    pub der: Der,
    /// The private key as PKCS#8 in PEM; empty where a request was signed.
    pub key_pem: String,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Leaf").field(&inspect::describe(&self.der)).finish()
    }
}

impl Leaf {
    /// The certificate in PEM.
    pub fn cert_pem(&self) -> String {
        pem::section("CERTIFICATE", &self.der)
    }
}

/// A signing request and its key.
#[derive(Clone, Eq, PartialEq)]
pub struct Request {
    /// The request.
    pub der: Vec<u8>,
    /// The private key as PKCS#8 in PEM.
    pub key_pem: String,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Request")
    }
}

impl Request {
    /// The request in PEM.
    pub fn pem(&self) -> String {
        pem::section("CERTIFICATE REQUEST", &self.der)
    }
}

impl Authority {
    /// Takes a CA from its certificate and key, both in PEM.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, MintError> {
        let blocks = pem::blocks(certificate.as_bytes())?;
        let der = blocks.into_iter().find_map(|block| match block {
            pem::Block::Certificate(der) => Some(der),
            _ => None,
        });
        let der = der.ok_or_else(|| pem::Unreadable::new("holds no certificate"))?;
        Self::new(der, KeyPair::from_pem(key)?)
    }

    fn new(der: Der, key: KeyPair) -> Result<Self, MintError> {
        let about = inspect::certificate(&der)?;
        if !about.is_ca {
            return Err(MintError::NotCa(about.subject));
        }
        if inspect::key_fingerprint(&pem::public_key(&key.public_key_pem())?) != about.key_fingerprint {
            return Err(MintError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { der, about, issuer })
    }

    /// The certificate.
    pub fn der(&self) -> &Der {
        &self.der
    }

    /// What stands in the certificate.
    pub fn about(&self) -> &inspect::Certificate {
        &self.about
    }

    /// The certificate in PEM.
    pub fn cert_pem(&self) -> String {
        pem::section("CERTIFICATE", &self.der)
    }

    /// The private key as PKCS#8 in PEM.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    fn sign(&self, params: &CertificateParams, key: &impl rcgen::PublicKeyData) -> Result<Der, MintError> {
        let der: Der = params.signed_by(key, &self.issuer)?.into();
        // The library writes the issuer's name anew; were it not the same byte for byte, nobody could follow it.
        if !inspect::is_issued_under_name_of(&der, &self.der) {
            return Err(MintError::IssuerName(self.about.subject.clone()));
        }
        Ok(der)
    }
}

/// Makes a trust anchor, below which one level of issuers may stand.
pub fn anchor(common_name: &str, validity: Validity) -> Result<Authority, MintError> {
    let key = new_key()?;
    let params = ca_params(common_name, validity, 1)?;
    let der: Der = params.self_signed(&key)?.into();
    Authority::new(der, key)
}

/// Makes an issuer, below which `path_len` levels of further CAs may stand; 0 for one that signs leaves.
pub fn issuer(parent: &Authority, common_name: &str, validity: Validity, path_len: u8) -> Result<Authority, MintError> {
    if parent.about.path_len.is_some_and(|max| u32::from(path_len) >= max) {
        return Err(MintError::PathLen(parent.about.subject.clone()));
    }
    let key = new_key()?;
    let der = parent.sign(&ca_params(common_name, validity, path_len)?, &key)?;
    Authority::new(der, key)
}

/// Makes a leaf with these names.
pub fn leaf(parent: &Authority, names: &[Identity], validity: Validity, usage: Usage) -> Result<Leaf, MintError> {
    let key = new_key()?;
    let der = parent.sign(&leaf_params(names, validity, usage)?, &key)?;
    Ok(Leaf { der, key_pem: key.serialize_pem() })
}

/// Makes a signing request for these names.
pub fn request(names: &[Identity]) -> Result<Request, MintError> {
    let key = new_key()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = alternative_names(names)?;
    let request = params.serialize_request(&key)?;
    Ok(Request { der: request.der().to_vec(), key_pem: key.serialize_pem() })
}

/// Signs a request. Its key and its names are taken, everything else is as in every [`leaf`]: what a request asks for
/// besides (to be a CA, say) is not for it to decide.
pub fn sign_request(parent: &Authority, der: &[u8], validity: Validity, usage: Usage) -> Result<Leaf, MintError> {
    let request = CertificateSigningRequestParams::from_der(&der.into())?;
    let mut names = Vec::new();
    for name in &request.params.subject_alt_names {
        let name = match name {
            SanType::DnsName(name) => Identity::from_dns(name.as_str()),
            SanType::URI(uri) => Identity::from_uri(uri.as_str()),
            _ => return Err(MintError::NoName),
        };
        names.push(name.map_err(|_| MintError::NoName)?);
    }
    let der = parent.sign(&leaf_params(&names, validity, usage)?, &request.public_key)?;
    Ok(Leaf { der, key_pem: String::new() })
}

/// Makes the revocation list of a CA, in DER: these serial numbers (as bytes) with the time of each revocation, made and
/// due at these times. The number must grow from one list to the next; the time of making in seconds does.
pub fn crl(
    authority: &Authority,
    revoked: &[(Vec<u8>, SystemTime)],
    this_update: SystemTime,
    next_update: SystemTime,
) -> Result<Vec<u8>, MintError> {
    let made = offset_date_time(this_update)?;
    let number = u64::try_from(made.unix_timestamp()).map_err(|_| MintError::Validity)?;
    let key_id = authority.about.key_id.as_deref().and_then(inspect::unhex);
    let mut revoked_certs = Vec::new();
    for (serial, since) in revoked {
        revoked_certs.push(RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: offset_date_time(*since)?,
            reason_code: None,
            invalidity_date: None,
        });
    }
    let params = CertificateRevocationListParams {
        this_update: made,
        next_update: offset_date_time(next_update)?,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: key_id.map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified),
    };
    let list = params.signed_by(&authority.issuer)?;
    Ok(list.der().to_vec())
}

fn new_key() -> Result<KeyPair, MintError> {
    Ok(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?)
}

fn ca_params(common_name: &str, validity: Validity, path_len: u8) -> Result<CertificateParams, MintError> {
    let chars = common_name.chars().count();
    if chars == 0 || chars > MAX_COMMON_NAME_CHARS {
        return Err(MintError::CommonName(chars));
    }
    let mut params = params(validity)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(names: &[Identity], validity: Validity, usage: Usage) -> Result<CertificateParams, MintError> {
    let mut params = params(validity)?;
    params.subject_alt_names = alternative_names(names)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = match usage {
        Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
    };
    Ok(params)
}

fn params(validity: Validity) -> Result<CertificateParams, MintError> {
    let mut params = CertificateParams::default();
    params.not_before = offset_date_time(validity.not_before)?;
    params.not_after = offset_date_time(validity.not_after)?;
    if params.not_after <= params.not_before {
        return Err(MintError::Validity);
    }
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(serial_number());
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// 127 random bits, positive, and never with a leading zero byte, which some readers strip (RFC 5280 §4.1.2.2).
fn serial_number() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn alternative_names(names: &[Identity]) -> Result<Vec<SanType>, MintError> {
    if names.is_empty() {
        return Err(MintError::NoName);
    }
    let name = |identity: &Identity| {
        Ok(match identity {
            Identity::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            Identity::Uri(uri) => SanType::URI(uri.as_ref().try_into()?),
        })
    };
    names.iter().map(name).collect()
}

fn offset_date_time(time: SystemTime) -> Result<OffsetDateTime, MintError> {
    let seconds = time.duration_since(UNIX_EPOCH).map_err(|_| MintError::Validity)?.as_secs();
    let seconds = i64::try_from(seconds).map_err(|_| MintError::Validity)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| MintError::Validity)
}
