//! Handshakes over an in-memory pipe, between every kind of client and the gateway.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsConnector;

use super::credentials::{self, Pem};
use super::files::Problem;
use super::mint::{self, Authority, Leaf, Usage, Validity};
use super::verifier::ServerVerifier;
use super::verify::Reason;
use super::*;
use crate::endpoint::UpstreamTls;
use crate::fault::{Fault, Refusal};
use crate::identity::Identity;

const DAY: Duration = Duration::from_secs(86_400);
const GATEWAY: &str = "gateway.multicluster.serviceaccount.identity.linkerd.cluster.local";
const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

fn valid() -> Validity {
    Validity::from_now(SystemTime::now(), DAY)
}

fn id(text: &str) -> Identity {
    Identity::parse(text).expect("an identity")
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// An anchor and an issuer below it.
struct Ca {
    anchor: Authority,
    issuer: Authority,
}

impl Ca {
    fn new(common_name: &str) -> Self {
        let anchor = mint::anchor(common_name, valid()).expect("an anchor");
        let issuer = mint::issuer(&anchor, "identity.linkerd.cluster.local", valid(), 0).expect("an issuer");
        Self { anchor, issuer }
    }

    fn leaf(&self, names: &[&str]) -> Leaf {
        let names: Vec<Identity> = names.iter().map(|text| id(text)).collect();
        mint::leaf(&self.issuer, &names, valid(), Usage::Both).expect("a leaf")
    }

    fn pem(&self, leaf: &Leaf, bundle: &[&Authority]) -> Pem {
        Pem {
            chain: File::new("tls.crt", leaf.cert_pem() + &self.issuer.cert_pem()),
            key: File::new("tls.key", leaf.key_pem.clone()),
            bundle: File::new("ca.crt", bundle.iter().map(|root| root.cert_pem()).collect::<String>()),
            crls: Vec::new(),
        }
    }

    fn credentials(&self, names: &[&str]) -> Arc<Credentials> {
        load(&self.pem(&self.leaf(names), &[&self.anchor]))
    }
}

fn load(pem: &Pem) -> Arc<Credentials> {
    Arc::new(Credentials::from_pem(pem, &credentials::Settings::default()).expect("credentials"))
}

fn crl(ca: &Authority, revoked: &Der) -> File {
    let serial = inspect::unhex(&inspect::certificate(revoked).expect("readable").serial).expect("digits");
    let now = SystemTime::now();
    File::new("crl.pem", mint::crl(ca, &[(serial, now - DAY)], now - DAY, now + DAY).expect("a CRL"))
}

fn upstream() -> UpstreamTls {
    UpstreamTls { identity: id(GATEWAY), server_name: name(GATEWAY) }
}

type Served = Result<server::Accepted<DuplexStream>, server::Error>;

/// Both sides at once; the client's side first.
async fn meet(
    client: &Arc<Credentials>,
    gateway: &Arc<Credentials>,
) -> (Result<client::Connected<DuplexStream>, client::Error>, Served) {
    let (near, far) = duplex(1 << 16);
    let upstream = upstream();
    let settings = Settings::default();
    let connecting = async {
        let mut connected = client::connect(near, client, &upstream, &[ALPN_TRANSPORT_HEADER, ALPN_H2]).await?;
        // The server's verdict on a client comes with the first read.
        let _ = connected
            .stream
            .read(&mut [0; 1])
            .await
            .map_err(|error| client::Error::Alert(alert_in(&error).unwrap_or_default()))?;
        Ok(connected)
    };
    let accepting = async {
        let mut accepted = server::accept(far, gateway, &settings).await?;
        accepted.stream.write_all(b"!").await.expect("writes");
        accepted.stream.flush().await.expect("flushes");
        Ok(accepted)
    };
    tokio::join!(connecting, accepting)
}

/// A client built by hand.
async fn meet_raw(
    config: ClientConfig,
    server_name: &str,
    gateway: &Arc<Credentials>,
    settings: &Settings,
) -> (Result<tokio_rustls::client::TlsStream<DuplexStream>, std::io::Error>, Served) {
    let (near, far) = duplex(1 << 16);
    let name = ServerName::try_from(server_name.to_owned()).expect("a name");
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, near);
    tokio::join!(connecting, server::accept(far, gateway, settings))
}

fn anonymous(gateway: &Credentials, provider: rustls::crypto::CryptoProvider) -> ClientConfig {
    let verifier = ServerVerifier { trust: Arc::clone(gateway.trust()), expected: id(GATEWAY) };
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(provider::VERSIONS)
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth()
}

fn code(served: &Served) -> &'static str {
    served.as_ref().expect_err("refused").code()
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let ca = Ca::new("root.linkerd.cluster.local");
    let gateway = ca.credentials(&[GATEWAY]);
    let (connected, accepted) = meet(&ca.credentials(&[WEB]), &gateway).await;
    let (connected, accepted) = (connected.expect("connected"), accepted.expect("accepted"));
    assert_eq!(accepted.peer.identity, id(WEB));
    assert_eq!(accepted.sni, Some(name(GATEWAY)));
    assert_eq!((accepted.alpn, connected.alpn), (Alpn::TransportHeader, Alpn::TransportHeader));
    assert_eq!((accepted.peer.chain.len(), connected.chain.len()), (2, 2));
    let now = SystemTime::now();
    assert_eq!(verify::recheck(&gateway, &accepted.peer.chain, now), Ok(()));
    let later = verify::recheck(&gateway, &accepted.peer.chain, now + 2 * DAY).expect_err("over");
    assert_eq!(later.code(), "tls.expired");
    assert_eq!(verify::recheck_upstream(&gateway, &connected.chain, &id(GATEWAY), now), Ok(()));
}

#[tokio::test]
async fn the_first_usable_name_is_the_client_and_any_name_may_be_the_server() {
    let ca = Ca::new("root");
    let gateway = ca.credentials(&["spiffe://east.example/ns/mc/sa/gateway", GATEWAY]);
    let (_, accepted) = meet(&ca.credentials(&["spiffe://west.example/ns/shop/sa/web", WEB]), &gateway).await;
    assert_eq!(accepted.expect("accepted").peer.identity, id("spiffe://west.example/ns/shop/sa/web"));
    assert_eq!(gateway.identity(), &id("spiffe://east.example/ns/mc/sa/gateway"));
}

#[tokio::test]
async fn strangers_get_an_alert_and_a_reason() {
    let (ours, theirs) = (Ca::new("root.linkerd.cluster.local"), Ca::new("root.other"));
    let gateway = ours.credentials(&[GATEWAY]);
    let stranger = load(&theirs.pem(&theirs.leaf(&[WEB]), &[&theirs.anchor, &ours.anchor]));
    let (connected, accepted) = meet(&stranger, &gateway).await;
    assert_eq!(code(&accepted), "tls.untrusted");
    let error = accepted.expect_err("refused");
    let presented = error.presented().expect("described");
    assert!(presented.contains(WEB) && presented.contains("identity.linkerd.cluster.local"), "{presented}");
    assert!(matches!(connected, Err(client::Error::Alert(alert)) if alert == "UnknownCA"));
}

#[tokio::test]
async fn a_root_of_the_same_name_is_told_apart() {
    let (ours, theirs) = (Ca::new("root.linkerd.cluster.local"), Ca::new("root.linkerd.cluster.local"));
    let gateway = ours.credentials(&[GATEWAY]);
    let stranger = load(&theirs.pem(&theirs.leaf(&[WEB]), &[&theirs.anchor, &ours.anchor]));
    let (_, accepted) = meet(&stranger, &gateway).await;
    assert_eq!(code(&accepted), "tls.untrusted");
    assert!(matches!(accepted, Err(server::Error::Certificate { reason: Reason::OtherKey, .. })));
    // Seen from the client, it is the upstream that is not trusted.
    let (connected, _) = meet(&theirs.credentials(&[WEB]), &gateway).await;
    let error = connected.expect_err("refused");
    assert_eq!((error.code(), error.fault()), ("tls.upstream_untrusted", Fault::Upstream));
}

#[tokio::test]
async fn both_roots_of_a_rotation_are_trusted() {
    let (old, new) = (Ca::new("root.linkerd.cluster.local"), Ca::new("root.linkerd.cluster.local"));
    let both = [&old.anchor, &new.anchor, &old.anchor];
    let gateway = load(&old.pem(&old.leaf(&[GATEWAY]), &both));
    assert_eq!(gateway.roots().len(), 2, "duplicates count once");
    for ca in [&old, &new] {
        let client = load(&ca.pem(&ca.leaf(&[WEB]), &both));
        assert!(meet(&client, &gateway).await.1.is_ok());
    }
    // A connection of the new root does not outlive that root's removal.
    let (_, accepted) = meet(&load(&new.pem(&new.leaf(&[WEB]), &both)), &gateway).await;
    let without = old.credentials(&[GATEWAY]);
    let reason = verify::recheck(&without, &accepted.expect("accepted").peer.chain, SystemTime::now());
    assert_eq!(reason, Err(Reason::OtherKey));
}

#[tokio::test]
async fn expired_and_early_certificates_are_refused() {
    let ca = Ca::new("root");
    let gateway = ca.credentials(&[GATEWAY]);
    let now = SystemTime::now();
    for (from, to, want) in [(now - 2 * DAY, now - DAY, "tls.expired"), (now + DAY, now + 2 * DAY, "tls.not_yet_valid")]
    {
        let validity = Validity { not_before: from, not_after: to };
        let leaf = mint::leaf(&ca.issuer, &[id(WEB)], validity, Usage::Both).expect("a leaf");
        let (_, accepted) = meet_with(&ca, &leaf, &gateway).await;
        assert_eq!(code(&accepted), want);
    }
    let leaf = mint::leaf(&ca.issuer, &[id(WEB)], valid(), Usage::Server).expect("a leaf");
    let (_, accepted) = meet_with(&ca, &leaf, &gateway).await;
    assert_eq!(code(&accepted), "tls.bad_certificate", "a server's certificate does not serve a client");
}

/// A client whose certificate our own loader would not take.
async fn meet_with(
    ca: &Ca,
    leaf: &Leaf,
    gateway: &Arc<Credentials>,
) -> (Result<tokio_rustls::client::TlsStream<DuplexStream>, std::io::Error>, Served) {
    let verifier = ServerVerifier { trust: Arc::clone(gateway.trust()), expected: id(GATEWAY) };
    let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).expect("a key");
    let config = ClientConfig::builder_with_provider(Arc::clone(provider::provider()))
        .with_protocol_versions(provider::VERSIONS)
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(vec![leaf.der.clone(), ca.issuer.der().clone()], key)
        .expect("a chain and its key");
    meet_raw(config, GATEWAY, gateway, &Settings::default()).await
}

#[tokio::test]
async fn revoked_certificates_are_refused_and_live_connections_found() {
    let ca = Ca::new("root");
    let leaf = ca.leaf(&[WEB]);
    let client = load(&ca.pem(&leaf, &[&ca.anchor]));
    let (_, accepted) = meet(&client, &ca.credentials(&[GATEWAY])).await;
    let live = accepted.expect("accepted").peer.chain;
    // The leaf by its issuer, and the whole issuer by its anchor: then with a gateway of another issuer.
    let other = mint::issuer(&ca.anchor, "other issuer", valid(), 0).expect("an issuer");
    let other =
        Ca { anchor: Authority::from_pem(&ca.anchor.cert_pem(), &ca.anchor.key_pem()).expect("loads"), issuer: other };
    for file in [crl(&ca.issuer, &leaf.der), crl(&ca.anchor, ca.issuer.der())] {
        let mut pem = other.pem(&other.leaf(&[GATEWAY]), &[&ca.anchor]);
        pem.crls = vec![file];
        let gateway = load(&pem);
        assert_eq!(gateway.crls()[0].crl.revoked, 1);
        assert_eq!(code(&meet(&client, &gateway).await.1), "tls.revoked");
        assert_eq!(verify::recheck(&gateway, &live, SystemTime::now()), Err(Reason::Revoked));
    }
}

#[tokio::test]
async fn crls_of_namesakes_do_not_meddle() {
    // Every cluster calls its root and its issuer the same: the default of the installation guide.
    let (east, west) = (Ca::new("root.linkerd.cluster.local"), Ca::new("root.linkerd.cluster.local"));
    let bundle = [&east.anchor, &west.anchor];
    let (good, bad) = (west.leaf(&[WEB]), west.leaf(&[WEB]));
    let mut pem = east.pem(&east.leaf(&[GATEWAY]), &bundle);
    for refuse_unknown_revocation in [false, true] {
        let settings = credentials::Settings { refuse_unknown_revocation, ..Default::default() };
        let nobody = |ca: &Authority| crl(ca, east.anchor.der());
        pem.crls = vec![nobody(&east.issuer), crl(&west.issuer, &bad.der), nobody(&west.anchor), nobody(&east.anchor)];
        for _ in 0..pem.crls.len() {
            pem.crls.rotate_left(1);
            let gateway = Arc::new(Credentials::from_pem(&pem, &settings).expect("credentials"));
            let (_, accepted) = meet(&load(&west.pem(&good, &bundle)), &gateway).await;
            assert_eq!(accepted.expect("accepted").peer.identity, id(WEB));
            let (_, accepted) = meet(&load(&west.pem(&bad, &bundle)), &gateway).await;
            assert_eq!(code(&accepted), "tls.revoked");
        }
        // Only the namesake's CRL: what that says of others is nothing.
        pem.crls = vec![nobody(&east.issuer), nobody(&east.anchor)];
        let gateway = Arc::new(Credentials::from_pem(&pem, &settings).expect("credentials"));
        let (_, accepted) = meet(&load(&west.pem(&bad, &bundle)), &gateway).await;
        assert_eq!(accepted.is_ok(), !refuse_unknown_revocation);
        if refuse_unknown_revocation {
            assert_eq!(code(&accepted), "tls.revocation_unknown");
        }
    }
}

#[tokio::test]
async fn expired_crls_refuse_or_warn() {
    let ca = Ca::new("root");
    let now = SystemTime::now();
    let list = mint::crl(&ca.issuer, &[], now - 2 * DAY, now - DAY).expect("a CRL");
    let other = mint::issuer(&ca.anchor, "other issuer", valid(), 0).expect("an issuer");
    let anchor = Authority::from_pem(&ca.anchor.cert_pem(), &ca.anchor.key_pem()).expect("loads");
    let other = Ca { anchor, issuer: other };
    let mut pem = other.pem(&other.leaf(&[GATEWAY]), &[&ca.anchor]);
    pem.crls = vec![File::new("crl.pem", pem::section("X509 CRL", &list))];
    let client = ca.credentials(&[WEB]);
    let (_, accepted) = meet(&client, &load(&pem)).await;
    let error = accepted.expect_err("refused");
    assert_eq!((error.code(), error.fault()), ("tls.crl_expired", Fault::Ours));
    let lenient = credentials::Settings { refuse_expired_crls: false, ..Default::default() };
    let gateway = Arc::new(Credentials::from_pem(&pem, &lenient).expect("credentials"));
    assert!(gateway.warnings().iter().any(|warning| warning.contains("past its next update")));
    assert!(meet(&client, &gateway).await.1.is_ok());
}

#[tokio::test]
async fn anonymous_clients_are_told_goodbye() {
    let ca = Ca::new("root");
    let gateway = ca.credentials(&[GATEWAY]);
    let config = || anonymous(&gateway, (**provider::provider()).clone());
    let (client, accepted) = meet_raw(config(), GATEWAY, &gateway, &Settings::default()).await;
    assert_eq!(code(&accepted), "tls.no_client_certificate");
    let mut rest = Vec::new();
    client.expect("the handshake completes").read_to_end(&mut rest).await.expect("a clean end, not a cut");
    assert!(rest.is_empty());
    let (near, far) = duplex(1 << 16);
    let connector = TlsConnector::from(Arc::new(config()));
    let connecting = connector.connect(ServerName::try_from(GATEWAY).expect("a name"), near);
    let settings = Settings { alpn: false, ..Settings::default() };
    let (client, accepted) = tokio::join!(connecting, server::accept_anyone(far, &gateway, &settings));
    assert!(client.is_ok() && accepted.expect("accepted").peer.is_none());
}

#[tokio::test]
async fn old_peers_and_odd_offers() {
    let ca = Ca::new("root");
    let gateway = ca.credentials(&[GATEWAY]);
    let old = rustls::crypto::CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
        kx_groups: vec![kx_group::X25519],
        ..(**provider::provider()).clone()
    };
    let (client, _) = meet_raw(anonymous(&gateway, old), GATEWAY, &gateway, &Settings::default()).await;
    assert!(client.is_ok(), "a proxy of before mid-2025");
    let mut config = anonymous(&gateway, (**provider::provider()).clone());
    config.alpn_protocols = vec![b"spdy/3".to_vec()];
    let (client, accepted) = meet_raw(config, GATEWAY, &gateway, &Settings::default()).await;
    assert_eq!(code(&accepted), "tls.alpn");
    assert_eq!(alert_in(&client.expect_err("refused")).as_deref(), Some("NoApplicationProtocol"));
    let mut config = anonymous(&gateway, (**provider::provider()).clone());
    config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_TRANSPORT_HEADER.to_vec()];
    let (client, _) = meet_raw(config, GATEWAY, &gateway, &Settings::default()).await;
    assert_eq!(client.expect("connected").get_ref().1.alpn_protocol(), Some(ALPN_TRANSPORT_HEADER));
}

/// What a raw peer sees: every byte until the end.
async fn answer(bytes: &[u8], pieces: usize, gateway: &Arc<Credentials>, settings: &Settings) -> (Vec<u8>, Served) {
    let (mut near, far) = duplex(1 << 16);
    let writing = async {
        for piece in bytes.chunks(pieces) {
            if near.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut seen = Vec::new();
        near.read_to_end(&mut seen).await.expect("reads");
        seen
    };
    tokio::join!(writing, server::accept(far, gateway, settings))
}

/// The hello of a real client.
fn hello(config: ClientConfig, server_name: &str) -> Vec<u8> {
    let name = ServerName::try_from(server_name.to_owned()).expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("writes");
    bytes
}

#[tokio::test(start_paused = true)]
async fn what_is_not_for_us_sees_no_byte() {
    let ca = Ca::new("root");
    let gateway = ca.credentials(&[GATEWAY]);
    let config = || anonymous(&gateway, (**provider::provider()).clone());
    let mut nameless = config();
    nameless.enable_sni = false;
    let long = [b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc".to_vec(), vec![0; 17_000]].concat();
    for (bytes, want) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "tls.plaintext"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "tls.plaintext"),
        (hello(config(), "elsewhere.example"), "tls.foreign_sni"),
        (hello(nameless, GATEWAY), "tls.no_sni"),
        (long, "tls.hello_too_large"),
        (hello(config(), GATEWAY)[..100].to_vec(), "tls.handshake_timeout"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00".to_vec(), "tls.malformed"),
    ] {
        let (seen, accepted) = answer(&bytes, 4096, &gateway, &Settings::default()).await;
        assert_eq!((code(&accepted), seen), (want, Vec::new()));
    }
    let (near, far) = duplex(64);
    drop(near);
    let error = server::accept(far, &gateway, &Settings::default()).await.expect_err("nothing came");
    assert!(error.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn hellos_come_in_pieces_and_other_names_by_leave() {
    let ca = Ca::new("root");
    let gateway = ca.credentials(&[GATEWAY]);
    let config = || anonymous(&gateway, (**provider::provider()).clone());
    let bytes = hello(config(), &GATEWAY.to_ascii_uppercase());
    assert!(bytes.len() > 1400, "a hello of today is larger than a segment");
    for pieces in [1, 700, 1400] {
        // The server answers, and then waits for the rest of the handshake.
        let (seen, accepted) = answer(&bytes, pieces, &gateway, &Settings::default()).await;
        assert_eq!((code(&accepted), seen[0]), ("tls.handshake_timeout", 22));
    }
    let leave =
        Settings { sni: Sni::OwnOr(vec!["svc.cluster.local".parse().expect("a suffix")]), ..Settings::default() };
    for (name, settings, want) in [
        ("web.shop.svc.cluster.local", &leave, "tls.no_client_certificate"),
        ("web.shop.svc.cluster.local.evil.example", &leave, "tls.foreign_sni"),
        ("anything.example", &Settings { sni: Sni::Any, ..Settings::default() }, "tls.no_client_certificate"),
    ] {
        assert_eq!(code(&meet_raw(config(), name, &gateway, settings).await.1), want);
    }
}

#[tokio::test]
async fn older_versions_get_the_alert_that_says_so() {
    let ca = Ca::new("root");
    let gateway = ca.credentials(&[GATEWAY]);
    let vector = |data: &[u8]| [&u16::try_from(data.len()).expect("short").to_be_bytes()[..], data].concat();
    let names = vector(&[&[0][..], &vector(GATEWAY.as_bytes())].concat());
    let extensions = [&[0, 0][..], &vector(&names), &[0, 13], &vector(&vector(&[4, 3]))].concat();
    let body = [&[3, 3][..], &[9; 32], &[0], &vector(&[0xc0, 0x2b]), &[1, 0], &vector(&extensions)].concat();
    let message = [&[1, 0][..], &vector(&body)].concat();
    let bytes = [&[22, 3, 1][..], &vector(&message)].concat();
    let (seen, accepted) = answer(&bytes, 4096, &gateway, &Settings::default()).await;
    assert_eq!((code(&accepted), seen), ("tls.protocol_version", vec![21, 3, 3, 0, 2, 2, 70]));
}

#[tokio::test]
async fn certificates_that_name_nobody_are_no_identity() {
    let ca = Ca::new("root");
    let gateway = ca.credentials(&[GATEWAY]);
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    let ca_key = rcgen::KeyPair::from_pem(&ca.issuer.key_pem()).expect("a key");
    let issuer = rcgen::Issuer::from_ca_cert_der(ca.issuer.der(), ca_key).expect("an issuer");
    for (names, want) in [
        (vec![], None),
        (vec!["rfc822:web@shop.example", "dns:10.0.0.1", "dns:*.shop.example"], None),
        (vec!["rfc822:web@shop.example", "dns:Second.Example.COM", "dns:third.example"], Some("second.example.com")),
    ] {
        // The common name is nobody's identity, however much it looks like one.
        params.distinguished_name.push(rcgen::DnType::CommonName, "web.shop.example");
        params.subject_alt_names = names
            .iter()
            .filter_map(|name| name.split_once(':'))
            .map(|(kind, name)| match (kind, name.try_into().expect("ASCII")) {
                ("dns", name) => rcgen::SanType::DnsName(name),
                (_, name) => rcgen::SanType::Rfc822Name(name),
            })
            .collect();
        let der = params.signed_by(&key, &issuer).expect("signs").der().clone();
        let leaf = Leaf { der, key_pem: key.serialize_pem() };
        let (client, accepted) = meet_with(&ca, &leaf, &gateway).await;
        assert!(client.is_ok(), "the handshake itself completes");
        match want {
            Some(identity) => assert_eq!(accepted.expect("accepted").peer.identity, id(identity)),
            None => assert_eq!(code(&accepted), "tls.no_identity"),
        }
    }
}

#[tokio::test]
async fn servers_that_are_somebody_else_are_refused() {
    let ca = Ca::new("root");
    let (near, far) = duplex(1 << 16);
    let (client, gateway) = (ca.credentials(&[WEB]), ca.credentials(&[GATEWAY]));
    let wanted = UpstreamTls { identity: id("db.shop.example"), server_name: name(GATEWAY) };
    let settings = Settings::default();
    let (connected, accepted) =
        tokio::join!(client::connect(near, &client, &wanted, &[]), server::accept(far, &gateway, &settings));
    let error = connected.expect_err("refused");
    assert_eq!(error.code(), "tls.upstream_identity");
    assert!(error.to_string().contains("db.shop.example") && error.to_string().contains(GATEWAY), "{error}");
    assert_eq!(code(&accepted), "tls.alert");
}

#[test]
fn credentials_say_which_file_is_wrong_and_why() {
    let (ca, other) = (Ca::new("root"), Ca::new("other"));
    let (leaf, second) = (ca.leaf(&[GATEWAY]), ca.leaf(&[GATEWAY]));
    let good = ca.pem(&leaf, &[&ca.anchor]);
    let change = |change: &dyn Fn(&mut Pem)| {
        let mut pem = good.clone();
        change(&mut pem);
        Credentials::from_pem(&pem, &credentials::Settings::default()).expect_err("refused")
    };
    let error = change(&|pem| pem.key.contents = second.key_pem.clone().into());
    assert_eq!((error.file.as_str(), error.problem), ("tls.key", Problem::KeyMismatch("tls.crt".into())));
    let error = change(&|pem| pem.key.contents = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n".to_vec());
    assert_eq!(error.problem, Problem::EncryptedKey);
    let error = change(&|pem| pem.key.contents.clear());
    assert_eq!(error.problem, Problem::NoKey);
    let error = change(&|pem| pem.bundle.contents = b"no PEM here".to_vec());
    assert_eq!((error.file.as_str(), error.problem), ("ca.crt", Problem::NoCertificate));
    let error = change(&|pem| pem.bundle.contents.extend(leaf.cert_pem().bytes()));
    assert!(matches!(error.problem, Problem::NotCa { place: 2, .. }));
    let error = change(&|pem| pem.bundle.contents = other.anchor.cert_pem().into());
    assert!(matches!(&error.problem, Problem::NotTrusted { reason: Reason::Untrusted, .. }));
    let error = change(&|pem| pem.chain.contents = leaf.cert_pem().into());
    assert!(matches!(&error.problem, Problem::NotTrusted { .. }), "the issuer is missing");
    let error = change(&|pem| pem.chain.contents = (ca.issuer.cert_pem() + &leaf.cert_pem()).into());
    assert!(matches!(error.problem, Problem::CaFirst(_)));
    let error = change(&|pem| pem.chain.contents.truncate(100));
    assert!(error.to_string().contains("cut off"), "{error}");
    let strict = credentials::Settings { refuse_unknown_revocation: true, ..Default::default() };
    let error = Credentials::from_pem(&good, &strict).expect_err("no CRL tells of anybody");
    assert!(matches!(error.problem, Problem::NotTrusted { reason: Reason::RevocationUnknown, .. }));
    let late = SystemTime::now() + 2 * DAY;
    let error = Credentials::from_pem_at(&good, &credentials::Settings::default(), late).expect_err("expired");
    assert!(error.to_string().contains("expired at"), "{error}");
    assert!(!format!("{good:?}").contains("BEGIN"), "keys never show");
}

#[test]
fn keys_are_read_in_every_common_shape() {
    let ca = Ca::new("root");
    let leaf = ca.leaf(&[GATEWAY]);
    let mut pem = ca.pem(&leaf, &[&ca.anchor]);
    let output = openssl(&["ec"], leaf.key_pem.as_bytes());
    assert!(output.starts_with(b"-----BEGIN EC PRIVATE KEY-----"));
    pem.key.contents = output;
    assert!(Credentials::from_pem(&pem, &credentials::Settings::default()).is_ok());
}

/// What openssl makes of its standard input.
fn openssl(args: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut child = Command::new("openssl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is installed");
    child.stdin.take().expect("a pipe").write_all(input).expect("writes");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "openssl {args:?}");
    output.stdout
}

#[tokio::test]
async fn a_client_is_vouched_for_by_the_way_that_was_verified_and_not_by_what_it_presents() {
    let (west, north) = (Ca::new("root"), Ca::new("elsewhere"));
    let gateway = load(&west.pem(&west.leaf(&[GATEWAY]), &[&west.anchor, &north.anchor]));
    // A client of west that adds north's issuer, which anybody can have a copy of.
    let leaf = west.leaf(&[WEB]);
    let mut pem = west.pem(&leaf, &[&west.anchor]);
    pem.chain = File::new("tls.crt", leaf.cert_pem() + &north.issuer.cert_pem() + &west.issuer.cert_pem());
    let (_, served) = meet(&load(&pem), &gateway).await;
    let fingerprint = |ca: &Authority| ca.about().fingerprint.clone();
    let hex = |one: &Fingerprint| one.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let authorities: Vec<String> = served.expect("accepted").peer.authorities.iter().map(hex).collect();
    assert_eq!(authorities, [fingerprint(&west.issuer), fingerprint(&west.anchor)]);
}

#[test]
fn subjects_hold_nothing_that_means_something_elsewhere() {
    for (common_name, want) in [
        ("gateway", "CN=gateway"),
        ("a,b=c;d\"e\\", "CN=a\\2Cb\\3Dc\\3Bd\\22e\\5C"),
        (" x ", "CN=\\20x\\20"),
        ("\u{e9}", "CN=\\C3\\A9"),
    ] {
        let anchor = mint::anchor(common_name, valid()).expect("an anchor");
        assert_eq!(inspect::subject(anchor.der()), want);
    }
    assert_eq!(inspect::subject(&Ca::new("root").leaf(&[WEB]).der), "", "as workloads have it");
    assert_eq!(inspect::subject(b"nonsense"), "");
}
