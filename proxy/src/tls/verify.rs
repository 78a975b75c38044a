//! Whether a chain is to be trusted, and whom it names.
//!
//! **In** a chain as a peer presented it, the roots and CRLs of the [`Credentials`], the time. **Out** an [`Identity`].
//! **Refuses**, each with its [`Reason`]: unknown roots, expired, not yet valid and revoked certificates, wrong purposes,
//! and certificates that name nobody or somebody else. The same check serves handshakes in both directions, the
//! gateway's own chain, and connections that live on after the roots or CRLs have changed.
//! (RFC 5280 §6; Linkerd wire document §1.5: the first usable SAN names a client, any SAN may name a server.)

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::{CertificateError, DistinguishedName};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};

use super::inspect::Signed;
use super::provider::provider;
use super::{Credentials, Der, inspect};
use crate::identity::Identity;

/// Why a chain is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Reason {
    /// Not a certificate, or one that breaks the rules that certificates have.
    #[error("the certificate is not acceptable: {0}")]
    BadCertificate(Box<str>),
    /// The CRL that would tell is past its next update, and such CRLs are refused.
    #[error("the CRL of its issuer was due for renewal at {}", inspect::rfc3339(*.next_update))]
    CrlExpired {
        /// When the next CRL was due.
        next_update: SystemTime,
    },
    /// A certificate of the chain is past its end.
    #[error("expired at {}", inspect::rfc3339(*.not_after))]
    Expired {
        /// The end.
        not_after: SystemTime,
    },
    /// The server is somebody else.
    #[error("it names {}, not '{expected}'", list(found))]
    Identity {
        /// Whom we wanted.
        expected: Identity,
        /// Whom the certificate names.
        found: Box<[Identity]>,
    },
    /// No subject alternative name is usable as an identity.
    #[error("no subject alternative name is usable as an identity (a DNS name or a URI)")]
    NoIdentity,
    /// A certificate of the chain is not valid yet.
    #[error("not valid before {}", inspect::rfc3339(*.not_before))]
    NotYetValid {
        /// The beginning.
        not_before: SystemTime,
    },
    /// A root of the right name is trusted, and its key did not sign this.
    #[error("a trusted root has its issuer's name, but another key: the two sides have roots of the same name")]
    OtherKey,
    /// No CRL tells, and silence is refused.
    #[error("no CRL tells whether it is revoked")]
    RevocationUnknown,
    /// A CRL revokes it, or a CA above it.
    #[error("revoked")]
    Revoked,
    /// No trusted root signed it.
    #[error("no trusted root leads to it")]
    Untrusted,
    /// Its extended key usage does not allow what it was presented for.
    #[error("its extended key usage does not allow this use")]
    WrongPurpose,
}

impl Reason {
    /// Whether the chain is refused for its age alone.
    pub const fn is_expiry(&self) -> bool {
        matches!(self, Self::Expired { .. })
    }

    /// The code of a refusal of a client's certificate.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadCertificate(_) | Self::WrongPurpose => "tls.bad_certificate",
            Self::CrlExpired { .. } => "tls.crl_expired",
            Self::Expired { .. } => "tls.expired",
            Self::Identity { .. } | Self::NoIdentity => "tls.no_identity",
            Self::NotYetValid { .. } => "tls.not_yet_valid",
            Self::OtherKey | Self::Untrusted => "tls.untrusted",
            Self::RevocationUnknown => "tls.revocation_unknown",
            Self::Revoked => "tls.revoked",
        }
    }

    /// The code of a refusal of an upstream's certificate.
    pub const fn upstream_code(&self) -> &'static str {
        match self {
            Self::BadCertificate(_) | Self::WrongPurpose => "tls.upstream_bad_certificate",
            Self::CrlExpired { .. } => "tls.upstream_crl_expired",
            Self::Expired { .. } => "tls.upstream_expired",
            Self::Identity { .. } | Self::NoIdentity => "tls.upstream_identity",
            Self::NotYetValid { .. } => "tls.upstream_not_yet_valid",
            Self::OtherKey | Self::Untrusted => "tls.upstream_untrusted",
            Self::RevocationUnknown => "tls.upstream_revocation_unknown",
            Self::Revoked => "tls.upstream_revoked",
        }
    }

    fn from_webpki(error: &webpki::Error) -> Self {
        use webpki::Error;
        match error {
            Error::CertExpired { not_after, .. } => Self::Expired { not_after: system_time(*not_after) },
            Error::CertNotValidYet { not_before, .. } => Self::NotYetValid { not_before: system_time(*not_before) },
            Error::CertRevoked => Self::Revoked,
            Error::CrlExpired { next_update, .. } => Self::CrlExpired { next_update: system_time(*next_update) },
            Error::EmptyEkuExtension | Error::RequiredEkuNotFoundContext(_) => Self::WrongPurpose,
            Error::InvalidSignatureForPublicKey | Error::SignatureAlgorithmMismatch => Self::OtherKey,
            Error::InvalidCrlSignatureForPublicKey | Error::IssuerNotCrlSigner | Error::UnknownRevocationStatus => {
                Self::RevocationUnknown
            }
            Error::UnknownIssuer => Self::Untrusted,
            other => Self::BadCertificate(other.to_string().into()),
        }
    }

    /// What the library shall make of it: this decides the alert that the peer sees (RFC 8446 §6.2).
    pub(super) fn to_rustls(&self) -> rustls::Error {
        rustls::Error::InvalidCertificate(match self {
            Self::BadCertificate(_) => CertificateError::BadEncoding,
            Self::CrlExpired { .. } | Self::RevocationUnknown => CertificateError::UnknownRevocationStatus,
            Self::Expired { .. } => CertificateError::Expired,
            Self::Identity { .. } | Self::NoIdentity => CertificateError::NotValidForName,
            Self::NotYetValid { .. } => CertificateError::NotValidYet,
            Self::OtherKey | Self::Untrusted => CertificateError::UnknownIssuer,
            Self::Revoked => CertificateError::Revoked,
            Self::WrongPurpose => CertificateError::InvalidPurpose,
        })
    }
}

/// Checks the chain of a client that is connected, with the very checks of the handshake. To be asked of every live
/// connection when the roots or the CRLs have changed, and as time goes by.
pub fn recheck(credentials: &Credentials, chain: &[Der], now: SystemTime) -> Result<(), Reason> {
    credentials.trust().check(chain, Side::Client, now)
}

/// Checks the chain of an upstream that is connected, with the very checks of the handshake.
pub fn recheck_upstream(
    credentials: &Credentials,
    chain: &[Der],
    expected: &Identity,
    now: SystemTime,
) -> Result<(), Reason> {
    credentials.trust().check_server(chain, expected, now)
}

/// When each certificate of a chain ends, the leaf's end first. What cannot be read has no end: it was not accepted.
pub fn ends(chain: &[Der]) -> Vec<SystemTime> {
    chain.iter().filter_map(|der| inspect::certificate(der).ok()).map(|certificate| certificate.not_after).collect()
}

/// Who a client is by its leaf: the first subject alternative name that is usable. Only to be asked of a chain that
/// was accepted.
pub(super) fn identity(leaf: &[u8]) -> Option<Identity> {
    inspect::identities(leaf).into_iter().next()
}

/// Which side presents a certificate: the extended key usage must allow it, where there is one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The one that connects.
    Client,
    /// The one that accepts.
    Server,
}

/// A root: as it is in the bundle, and as the library wants it.
pub(super) struct Root {
    pub(super) der: Der,
    pub(super) anchor: TrustAnchor<'static>,
}

/// A CRL: as it is in its file, and as the library wants it.
pub(super) struct RevocationList {
    pub(super) der: Vec<u8>,
    pub(super) list: CertRevocationList<'static>,
}

/// Roots, CRLs, and what is made of silence.
pub(super) struct Trust {
    /// Beside `anchors`, place by place.
    roots: Vec<Der>,
    anchors: Vec<TrustAnchor<'static>>,
    crls: Vec<RevocationList>,
    /// Shown to clients, so that one with several certificates can choose (RFC 8446 §4.2.4).
    pub(super) root_names: Vec<DistinguishedName>,
    expiration: ExpirationPolicy,
    unknown: UnknownStatusPolicy,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("roots", &self.roots.len()).field("crls", &self.crls.len()).finish()
    }
}

impl Trust {
    /// Of several CRLs of one CA the first one is asked, so the newest must stand first.
    pub(super) fn new(
        roots: Vec<Root>,
        crls: Vec<RevocationList>,
        refuse_expired_crls: bool,
        refuse_unknown_revocation: bool,
    ) -> Self {
        let (roots, anchors): (Vec<_>, Vec<_>) = roots.into_iter().map(|root| (root.der, root.anchor)).unzip();
        let root_names = anchors.iter().map(|root| DistinguishedName::in_sequence(root.subject.as_ref())).collect();
        let expiration = if refuse_expired_crls { ExpirationPolicy::Enforce } else { ExpirationPolicy::Ignore };
        let unknown = if refuse_unknown_revocation { UnknownStatusPolicy::Deny } else { UnknownStatusPolicy::Allow };
        Self { roots, anchors, crls, root_names, expiration, unknown }
    }

    /// Checks that `chain` leads from its leaf to a root, and that everything on the way is in order at `now`.
    pub(super) fn check(&self, chain: &[CertificateDer<'_>], side: Side, now: SystemTime) -> Result<(), Reason> {
        self.path(chain, side, now).map(drop)
    }

    /// As `check`, and gives the way that was found, from the leaf to the root.
    pub(super) fn path(&self, chain: &[CertificateDer<'_>], side: Side, now: SystemTime) -> Result<Vec<Der>, Reason> {
        let (leaf, others) = chain.split_first().ok_or(Reason::Untrusted)?;
        let leaf = EndEntityCert::try_from(leaf).map_err(|error| Reason::from_webpki(&error))?;
        let usage = match side {
            Side::Client => KeyUsage::client_auth(),
            Side::Server => KeyUsage::server_auth(),
        };
        let now = unix_time(now);
        let algorithms = provider().signature_verification_algorithms.all;
        let all: Vec<&CertRevocationList<'_>> = self.crls.iter().map(|crl| &crl.list).collect();
        let by_name =
            || leaf.verify_for_usage(algorithms, &self.anchors, others, now, usage, self.revocation(&all), None);
        // Several CAs of one name are the rule, not the exception: each cluster's issuer is called the same. The library
        // takes a CRL by its issuer's name alone and gives up when another key signed it; so look again, way by way,
        // with those CRLs only that a CA on this way has signed.
        let by_key = |way: &VerifiedPath<'_>| {
            let certificates = self.certificates(way);
            let ours: Vec<&CertRevocationList<'_>> = self
                .crls
                .iter()
                .filter(|crl| {
                    let signed = |ca: &Der| inspect::crl_signed(&crl.der, ca);
                    // What is unclear stays in, for the library to judge: leaving it out could let a revoked one pass.
                    certificates.iter().map(signed).any(|signed| matches!(signed, Signed::ByKey | Signed::Unclear))
                })
                .map(|crl| &crl.list)
                .collect();
            let between: Vec<CertificateDer<'_>> = way.intermediate_certificates().map(|cert| cert.der()).collect();
            let anchor = [way.anchor().clone()];
            if ours.is_empty() && self.unknown == UnknownStatusPolicy::Deny {
                return Err(webpki::Error::UnknownRevocationStatus);
            }
            let revocation = self.revocation(&ours);
            way.end_entity().verify_for_usage(algorithms, &anchor, &between, now, usage, revocation, None).map(drop)
        };
        if self.crls.is_empty() && self.unknown == UnknownStatusPolicy::Deny {
            return Err(Reason::RevocationUnknown); // the library would not ask at all
        }
        match by_name() {
            // Whatever the error: with namesakes about, the one that is told need not be the one that counts.
            Err(_) if !self.crls.is_empty() => {
                leaf.verify_for_usage(algorithms, &self.anchors, others, now, usage, None, Some(&by_key))
            }
            found => found,
        }
        .map(|way| self.certificates(&way))
        .map_err(|error| Reason::from_webpki(&error))
    }

    /// The certificates of a way, from the leaf to the root.
    fn certificates(&self, way: &VerifiedPath<'_>) -> Vec<Der> {
        let root = self.anchors.iter().position(|anchor| std::ptr::eq(anchor, way.anchor()));
        std::iter::once(way.end_entity().der().into_owned())
            .chain(way.intermediate_certificates().map(|cert| cert.der().into_owned()))
            .chain(root.and_then(|place| self.roots.get(place)).cloned())
            .collect()
    }

    fn revocation<'a>(&self, crls: &'a [&'a CertRevocationList<'a>]) -> Option<RevocationOptions<'a>> {
        let options = RevocationOptionsBuilder::new(crls).ok()?;
        Some(
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(self.unknown)
                .with_expiration_policy(self.expiration)
                .build(),
        )
    }

    /// Checks a server's chain, and that some name in its leaf is the one expected.
    pub(super) fn check_server(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &Identity,
        now: SystemTime,
    ) -> Result<(), Reason> {
        self.check(chain, Side::Server, now)?;
        let found = inspect::identities(chain.first().map_or(&[][..], |leaf| leaf));
        match found.contains(expected) {
            true => Ok(()),
            false if found.is_empty() => Err(Reason::NoIdentity),
            false => Err(Reason::Identity { expected: expected.clone(), found: found.into() }),
        }
    }
}

fn unix_time(time: SystemTime) -> UnixTime {
    // Before 1970 nothing is valid, at its very beginning neither.
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(super) fn system_time(time: UnixTime) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs())).unwrap_or(UNIX_EPOCH)
}

fn list(identities: &[Identity]) -> String {
    identities.iter().take(4).map(|identity| format!("'{identity}'")).collect::<Vec<_>>().join(", ")
}
