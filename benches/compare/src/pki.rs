//! Certificates as two clusters have them: an anchor, an issuer under it, leaves under that. All keys are on P-256.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use time::{Duration, OffsetDateTime};

/// The gateway's name.
pub(crate) const GATEWAY: &str = "gateway.bench.serviceaccount.identity.linkerd.cluster.local";
/// The client's name.
pub(crate) const CLIENT: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

/// A chain and its key.
#[derive(Debug)]
pub(crate) struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    /// Both as text.
    pem: (String, String),
}

/// All that is needed.
#[derive(Debug)]
pub(crate) struct Pki {
    anchor: CertificateDer<'static>,
    /// Whom the gateways let in.
    pub(crate) client: Leaf,
    /// The same name, from an anchor that nobody knows.
    pub(crate) stranger: Leaf,
    /// The same name, out of date.
    pub(crate) expired: Leaf,
}

struct Authority {
    anchor: rcgen::Certificate,
    issuer: rcgen::Certificate,
    signer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> Result<Authority> {
    let make = |name: String| -> Result<CertificateParams> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(params)
    };
    let (root, middle) = (make(format!("root.{name}"))?, make(format!("identity.{name}"))?);
    let root_key = KeyPair::generate()?;
    let anchor = root.self_signed(&root_key)?;
    let middle_key = KeyPair::generate()?;
    let issuer = middle.signed_by(&middle_key, &Issuer::from_params(&root, &root_key))?;
    Ok(Authority { anchor, issuer, signer: Issuer::new(middle, middle_key) })
}

impl Authority {
    fn leaf(&self, name: &str, from: Duration, until: Duration) -> Result<Leaf> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        let now = OffsetDateTime::now_utc();
        params.not_before = now + from;
        params.not_after = now + until;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.signer)?;
        Ok(Leaf {
            chain: vec![leaf.der().clone(), self.issuer.der().clone()],
            key: key.serialize_der(),
            pem: (leaf.pem() + &self.issuer.pem(), key.serialize_pem()),
        })
    }
}

impl Pki {
    /// Makes all, and puts into `folder` what gateways read: `gateway.crt`, `gateway.key`, both in `gateway.pem`, and
    /// `anchor.crt`.
    pub(crate) fn make(folder: &Path) -> Result<Self> {
        let ours = authority("linkerd.cluster.local")?;
        let theirs = authority("linkerd.cluster.local")?;
        let (past, future) = (Duration::days(-2), Duration::days(30));
        let gateway = ours.leaf(GATEWAY, past, future)?;
        let (chain, key) = &gateway.pem;
        fs::write(folder.join("gateway.crt"), chain)?;
        fs::write(folder.join("gateway.key"), key)?;
        fs::write(folder.join("gateway.pem"), chain.clone() + key)?;
        fs::write(folder.join("anchor.crt"), ours.anchor.pem())?;
        Ok(Self {
            anchor: ours.anchor.der().clone(),
            client: ours.leaf(CLIENT, past, future)?,
            stranger: theirs.leaf(CLIENT, past, future)?,
            expired: ours.leaf(CLIENT, past, Duration::days(-1))?,
        })
    }

    /// A client of the load: its server's certificate is not verified, which is the client's cost and not the gateway's.
    pub(crate) fn quick(&self, alpn: Option<&[u8]>, resume: bool) -> Result<Arc<ClientConfig>> {
        self.config(Some(&self.client), alpn, resume, false)
    }

    /// A client that verifies, with this certificate or with none.
    pub(crate) fn careful(&self, leaf: Option<&Leaf>, alpn: Option<&[u8]>) -> Result<Arc<ClientConfig>> {
        self.config(leaf, alpn, false, true)
    }

    /// A client that does not verify, with this certificate or with none.
    pub(crate) fn unverified(&self, leaf: Option<&Leaf>, alpn: Option<&[u8]>) -> Result<Arc<ClientConfig>> {
        self.config(leaf, alpn, false, false)
    }

    fn config(
        &self,
        leaf: Option<&Leaf>,
        alpn: Option<&[u8]>,
        resume: bool,
        verify: bool,
    ) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(pinned());
        let mut roots = RootCertStore::empty();
        roots.add(self.anchor.clone())?;
        let verifier: Arc<dyn ServerCertVerifier> = if verify {
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?
        } else {
            Arc::new(Anyone)
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match leaf {
            Some(leaf) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key.clone()));
                builder.with_client_auth_cert(leaf.chain.clone(), key)?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
        config.resumption = if resume { Resumption::in_memory_sessions(256) } else { Resumption::disabled() };
        Ok(Arc::new(config))
    }
}

/// One key exchange and one cipher, so that every gateway does the same work.
pub(crate) fn pinned() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    }
}

/// Takes every server's word.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
