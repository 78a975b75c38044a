//! What the library calls in the middle of a handshake: `verify`, in the shape that it wants.
//!
//! **In** a peer's chain. **Out** yes, or an alert. The library passes on no more than that, so the [`Reason`] and what the
//! certificate says of itself are left in [`REFUSED`] for the handshake that is under way, and a client's CAs in
//! [`AUTHORITIES`].

use std::cell::Cell;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::provider::{provider, sha256};
use super::verify::{Reason, Side, Trust, system_time};
use super::{Chain, Der, Fingerprint, inspect};
use crate::identity::Identity;

/// A certificate that was refused: why, and what it said of itself.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) reason: Reason,
    pub(super) presented: String,
    pub(super) chain: Chain,
}

tokio::task_local! {
    /// Where a verifier leaves its reason for the handshake that it is called from: the library passes on an alert only.
    pub(super) static REFUSED: Cell<Option<Refused>>;

    /// Where the verifier of clients leaves the CAs that it went by, from the issuer to the root.
    pub(super) static AUTHORITIES: Cell<Box<[Fingerprint]>>;
}

/// Leaves the reason behind and gives the library what it needs.
fn refuse(leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>], reason: Reason) -> rustls::Error {
    let error = reason.to_rustls();
    let chain = std::iter::once(leaf).chain(others).map(|der| der.clone().into_owned()).collect();
    let refused = Refused { reason, presented: inspect::describe(leaf), chain };
    // Outside a handshake of ours there is nobody to tell.
    let _ = REFUSED.try_with(|slot| slot.set(Some(refused)));
    error
}

/// Verifies clients. Those without a certificate pass here, so that they are told no in an orderly way afterwards.
#[derive(Debug)]
pub(super) struct ClientVerifier(pub(super) Arc<Trust>);

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.0.root_names
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match self.0.path(&whole(leaf, others), Side::Client, system_time(now)) {
            Ok(way) => {
                // What a peer presents may hold more than the way to its root, so only the way itself counts.
                let fingerprint = |ca: &Der| Fingerprint::try_from(sha256(ca)).ok();
                let authorities = way.iter().skip(1).filter_map(fingerprint).collect();
                let _ = AUTHORITIES.try_with(|slot| slot.set(authorities));
                Ok(ClientCertVerified::assertion())
            }
            Err(reason) => Err(refuse(leaf, others, reason)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies one upstream: its chain, and that some name in its leaf is the one expected. The name sent as SNI is not
/// looked for: the two differ with SPIFFE identities.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) trust: Arc<Trust>,
    pub(super) expected: Identity,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.trust.check_server(&whole(leaf, others), &self.expected, system_time(now)) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(reason) => Err(refuse(leaf, others, reason)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The chain in one piece, without copying what is in it.
fn whole<'a>(leaf: &'a CertificateDer<'_>, others: &'a [CertificateDer<'_>]) -> Vec<CertificateDer<'a>> {
    std::iter::once(leaf).chain(others).map(|der| CertificateDer::from(der.as_ref())).collect()
}
