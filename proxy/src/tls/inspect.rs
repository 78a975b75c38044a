//! What stands in a certificate, a CRL, a PEM file: plain values for logs, tables and decisions.
//!
//! **In** DER, trusted or not. **Out** [`Certificate`], [`Crl`], [`Request`]. **Refuses** what cannot be parsed.
//! Nothing here says that a certificate is to be trusted: that is `verify`'s word. Text taken from a certificate is
//! shown with its control characters escaped, as a stranger may have written it. (RFC 5280, RFC 2986.)

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::num_bigint::BigUint;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;
use x509_parser::x509::{AttributeTypeAndValue, SubjectPublicKeyInfo, X509Name};

use super::pem::Unreadable;
use super::provider::sha256;
use crate::identity::Identity;

/// What stands in a certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Certificate {
    /// The subject's distinguished name; empty for most workloads.
    pub subject: String,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// The subject alternative names in their order, each with its kind: `dns:web.ns`, `uri:spiffe://…`.
    pub names: Vec<String>,
    /// Those of them that are usable as an identity, in their order. The first is who the holder is.
    pub identities: Vec<Identity>,
    /// The serial number in hexadecimal digits.
    pub serial: String,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid to, inclusive.
    pub not_after: SystemTime,
    /// Whether it may sign certificates.
    pub is_ca: bool,
    /// How many CAs may stand below it, where that is bounded.
    pub path_len: Option<u32>,
    /// The kind of its key: `ECDSA P-256`.
    pub key: String,
    /// SHA-256 of the whole certificate, in hexadecimal digits.
    pub fingerprint: String,
    /// SHA-256 of its public key, in hexadecimal digits.
    pub key_fingerprint: String,
    /// The subject key identifier in hexadecimal digits.
    pub key_id: Option<String>,
    /// The identifier of the key that signed it, in hexadecimal digits.
    pub authority_key_id: Option<String>,
    /// What it may be used for: `server`, `client`, or an OID; empty where anything.
    pub purposes: Vec<String>,
    /// Whether subject and issuer are the same name.
    pub self_issued: bool,
}

/// What stands in a certificate revocation list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Crl {
    /// The name of the CA that made it.
    pub issuer: String,
    /// When it was made.
    pub this_update: SystemTime,
    /// When the next one is due.
    pub next_update: Option<SystemTime>,
    /// Its number, where it has one.
    pub number: Option<String>,
    /// How many certificates it revokes.
    pub revoked: usize,
}

/// Reads a certificate.
pub fn certificate(der: &[u8]) -> Result<Certificate, Unreadable> {
    let (rest, x509) = X509Certificate::from_der(der)
        .map_err(|error| Unreadable::new(format!("not an X.509 certificate: {error}")))?;
    if !rest.is_empty() {
        return Err(Unreadable::new("there are bytes after the certificate's end"));
    }
    let constraints = x509.basic_constraints().ok().flatten().map(|extension| extension.value.clone());
    let mut key_id = None;
    let mut authority_key_id = None;
    for extension in x509.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => key_id = Some(hex(id.0)),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                authority_key_id = id.key_identifier.as_ref().map(|id| hex(id.0));
            }
            _ => {}
        }
    }
    Ok(Certificate {
        subject: name(x509.subject()),
        issuer: name(x509.issuer()),
        names: general_names(&x509).iter().map(general_name).collect(),
        identities: general_names(&x509).iter().filter_map(identity).collect(),
        serial: hex(x509.raw_serial()),
        not_before: system_time(x509.validity().not_before),
        not_after: system_time(x509.validity().not_after),
        is_ca: constraints.as_ref().is_some_and(|constraints| constraints.ca),
        path_len: constraints.and_then(|constraints| constraints.path_len_constraint),
        key: key_kind(x509.public_key()),
        fingerprint: hex(&sha256(der)),
        key_fingerprint: key_fingerprint(x509.public_key().raw),
        key_id,
        authority_key_id,
        purposes: purposes(&x509),
        self_issued: x509.subject().as_raw() == x509.issuer().as_raw(),
    })
}

/// Reads a certificate revocation list.
pub fn crl(der: &[u8]) -> Result<Crl, Unreadable> {
    let (_, crl) = CertificateRevocationList::from_der(der)
        .map_err(|error| Unreadable::new(format!("not a certificate revocation list: {error}")))?;
    Ok(Crl {
        issuer: name(crl.issuer()),
        this_update: system_time(crl.last_update()),
        next_update: crl.next_update().map(system_time),
        number: crl.crl_number().map(BigUint::to_string),
        revoked: crl.iter_revoked_certificates().count(),
    })
}

/// What a certificate, or a CRL, and a CA have to do with each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Signed {
    /// The CA's key signed it.
    ByKey,
    /// It names the CA as its issuer, and another key signed it: a namesake's.
    ByNamesake,
    /// It names another issuer.
    Elsewhere,
    /// It names the CA as its issuer, with a kind of signature that cannot be checked here.
    Unclear,
}

impl Signed {
    fn from_check(same_name: bool, check: impl FnOnce() -> Result<(), X509Error>) -> Self {
        if !same_name {
            return Self::Elsewhere;
        }
        match check() {
            Ok(()) => Self::ByKey,
            Err(X509Error::SignatureVerificationError) => Self::ByNamesake,
            Err(_) => Self::Unclear,
        }
    }
}

/// Whether `ca` signed `crl`.
pub(super) fn crl_signed(crl: &[u8], ca: &[u8]) -> Signed {
    match (CertificateRevocationList::from_der(crl), X509Certificate::from_der(ca)) {
        (Ok((_, crl)), Ok((_, ca))) => {
            let same_name = crl.issuer().as_raw() == ca.subject().as_raw();
            Signed::from_check(same_name, || crl.verify_signature(ca.public_key()))
        }
        _ => Signed::Elsewhere,
    }
}

/// Whether `ca` signed `certificate`.
pub(super) fn certificate_signed(certificate: &[u8], ca: &[u8]) -> Signed {
    match (X509Certificate::from_der(certificate), X509Certificate::from_der(ca)) {
        (Ok((_, certificate)), Ok((_, ca))) => {
            let same_name = certificate.issuer().as_raw() == ca.subject().as_raw();
            Signed::from_check(same_name, || certificate.verify_signature(Some(ca.public_key())))
        }
        _ => Signed::Elsewhere,
    }
}

/// The serial numbers that a CRL revokes, and since when.
pub fn revoked(crl: &[u8]) -> Result<Vec<(Vec<u8>, SystemTime)>, Unreadable> {
    let (_, crl) = CertificateRevocationList::from_der(crl)
        .map_err(|error| Unreadable::new(format!("not a certificate revocation list: {error}")))?;
    Ok(crl
        .iter_revoked_certificates()
        .map(|one| (one.raw_serial().to_vec(), system_time(one.revocation_date)))
        .collect())
}

/// What stands in a signing request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// The subject's distinguished name.
    pub subject: String,
    /// The names that are asked for, each with its kind.
    pub names: Vec<String>,
    /// The kind of its key.
    pub key: String,
}

/// Reads a signing request. That it is signed with its own key is not checked here.
pub fn request(der: &[u8]) -> Result<Request, Unreadable> {
    let (_, request) = X509CertificationRequest::from_der(der)
        .map_err(|error| Unreadable::new(format!("not a certificate signing request: {error}")))?;
    let names = request.requested_extensions().into_iter().flatten().flat_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => names.general_names.iter().map(general_name).collect(),
        _ => Vec::new(),
    });
    let info = &request.certification_request_info;
    Ok(Request { subject: name(&info.subject), names: names.collect(), key: key_kind(&info.subject_pki) })
}

/// Whether `der` says that it was issued by the subject of `issuer`, byte for byte.
pub(super) fn is_issued_under_name_of(der: &[u8], issuer: &[u8]) -> bool {
    match (X509Certificate::from_der(der), X509Certificate::from_der(issuer)) {
        (Ok((_, der)), Ok((_, issuer))) => der.issuer().as_raw() == issuer.subject().as_raw(),
        _ => false,
    }
}

/// The subject of a certificate as RFC 4514 writes it, the last part first, in printable ASCII. Whatever is not a letter, a
/// digit or one of a few harmless marks is written as `\\` and two hexadecimal digits, so that neither a quote nor a comma
/// nor a backslash at the end can mean anything to whoever reads it inside something else. Empty for most workloads, and
/// where it is longer than any honest one.
pub fn subject(der: &[u8]) -> String {
    const MAX_BYTES: usize = 1024;
    let Ok((_, x509)) = X509Certificate::from_der(der) else { return String::new() };
    let attribute = |attribute: &AttributeTypeAndValue<'_>| {
        let oid = attribute.attr_type();
        let kind = oid2abbrev(oid, oid_registry()).map_or_else(|_| oid.to_id_string(), str::to_owned);
        let value = attribute.attr_value().data.iter().fold(String::new(), |mut text, byte| {
            let plain = byte.is_ascii_alphanumeric() || b" -._:/@()*'".contains(byte);
            // A space at either end would be lost on the way.
            let _ = match plain && !(*byte == b' ' && text.is_empty()) {
                true => write!(text, "{}", char::from(*byte)),
                false => write!(text, "\\{byte:02X}"),
            };
            text
        });
        let value = value.strip_suffix(' ').map_or_else(|| value.clone(), |text| format!("{text}\\20"));
        format!("{kind}={value}")
    };
    let mut parts: Vec<String> =
        x509.subject().iter_rdn().map(|rdn| rdn.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.reverse();
    Some(parts.join(",")).filter(|text| text.len() <= MAX_BYTES).unwrap_or_default()
}

/// SHA-256 of a public key, in hexadecimal digits.
pub(super) fn key_fingerprint(der: &[u8]) -> String {
    hex(&sha256(der))
}

/// The names in a leaf that are usable as an identity, in their order. Never the common name.
pub(super) fn identities(leaf: &[u8]) -> Vec<Identity> {
    let Ok((_, x509)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    general_names(&x509).iter().filter_map(identity).collect()
}

/// A certificate in one line for a log: who it says it is and who says so. Bounded, and without control characters.
pub fn describe(der: &[u8]) -> String {
    const MAX_CHARS: usize = 400;
    let text = match certificate(der) {
        Err(error) => error.to_string(),
        Ok(certificate) => {
            let names = match certificate.names.as_slice() {
                [] => "no alternative names".to_owned(),
                names => names.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", "),
            };
            format!(
                "subject '{}', {names}, issuer '{}', serial {}",
                certificate.subject, certificate.issuer, certificate.serial
            )
        }
    };
    if text.chars().count() <= MAX_CHARS { text } else { text.chars().take(MAX_CHARS).chain(['…']).collect() }
}

/// A point in time as RFC 3339 writes it, in UTC and whole seconds.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    };
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| "out of range".into())
}

/// Hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes from hexadecimal digits, with or without colons between them.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let bytes = digits.chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from(high * 16 + low).ok(),
        _ => None,
    });
    bytes.collect::<Option<Vec<u8>>>().filter(|bytes| !bytes.is_empty())
}

fn general_names<'a>(x509: &'a X509Certificate<'_>) -> &'a [GeneralName<'a>] {
    match x509.subject_alternative_name() {
        Ok(Some(extension)) => &extension.value.general_names,
        _ => &[],
    }
}

fn identity(name: &GeneralName<'_>) -> Option<Identity> {
    match name {
        GeneralName::DNSName(text) => Identity::from_dns(text).ok(),
        GeneralName::URI(text) => Identity::from_uri(text).ok(),
        _ => None,
    }
}

fn general_name(name: &GeneralName<'_>) -> String {
    printable(&match name {
        GeneralName::DNSName(text) => format!("dns:{text}"),
        GeneralName::URI(text) => format!("uri:{text}"),
        GeneralName::RFC822Name(text) => format!("email:{text}"),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(four), _) => format!("ip:{}", std::net::Ipv4Addr::from(four)),
            (_, Ok(sixteen)) => format!("ip:{}", std::net::Ipv6Addr::from(sixteen)),
            _ => "ip:?".into(),
        },
        GeneralName::DirectoryName(name) => format!("directory:{name}"),
        _ => "other".into(),
    })
}

fn purposes(x509: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(usage)) = x509.extended_key_usage() else { return Vec::new() };
    let known = [(usage.value.any, "any"), (usage.value.server_auth, "server"), (usage.value.client_auth, "client")];
    let known = known.into_iter().filter(|(set, _)| *set).map(|(_, word)| word.to_owned());
    known.chain(usage.value.other.iter().map(ToString::to_string)).collect()
}

fn key_kind(key: &SubjectPublicKeyInfo<'_>) -> String {
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    match (key.algorithm.algorithm.to_id_string().as_str(), curve.map(|oid| oid.to_id_string()).as_deref()) {
        ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => "ECDSA P-256".into(),
        ("1.2.840.10045.2.1", Some("1.3.132.0.34")) => "ECDSA P-384".into(),
        ("1.2.840.10045.2.1", Some("1.3.132.0.35")) => "ECDSA P-521".into(),
        ("1.2.840.113549.1.1.1", _) => match key.parsed() {
            Ok(key) => format!("RSA {}", key.key_size()),
            Err(_) => "RSA".into(),
        },
        ("1.3.101.112", _) => "Ed25519".into(),
        (oid, _) => oid.to_owned(),
    }
}

fn name(name: &X509Name<'_>) -> String {
    printable(&name.to_string())
}

fn printable(text: &str) -> String {
    // Neither control characters nor invisible ones, with which a stranger could dress up a log line.
    let plain = |c: char| c.is_ascii_graphic() || c == ' ' || c.is_alphanumeric();
    text.chars().flat_map(|c| if plain(c) { vec![c] } else { c.escape_default().collect() }).collect()
}

fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = Duration::from_secs(time.timestamp().unsigned_abs());
    let time = if time.timestamp() < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    time.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn strangers_bytes_never_panic(der in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (certificate(&der), crl(&der), request(&der), revoked(&der), describe(&der), subject(&der));
        }
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(86_400)), "1970-01-02T00:00:00Z");
    }

    #[test]
    fn digits_become_bytes() {
        assert_eq!(unhex("0a:FF"), Some(vec![10, 255]));
        for wrong in ["", "a", "0x1", "zz", ":"] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }
}
