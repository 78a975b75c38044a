//! Before anybody has said who they are: hellos, handshakes, certificates, and what comes right behind them.

use std::sync::Arc;
use std::time::Duration;

use isthmus::tls::{ALPN_H2, ALPN_HTTP11};
use isthmus_tests::pki::{GATEWAY, Pair, Pki};
use isthmus_tests::soon;
use isthmus_tests::wire::{Http1, tls12_hello};
use isthmus_tests::world::{Setup, World};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SignatureAlgorithm, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::others::are_served;
use crate::{ended, mallory, socket, world};

/// Few places for handshakes, and a short time for them.
fn narrow() -> Setup {
    Setup::new().set("tls", "max_handshakes", "8").set("tls", "max_handshakes_per_network", "4").set(
        "tls",
        "handshake_timeout",
        "800ms",
    )
}

/// A client of rustls' own, with what it shows and its cache of sessions.
fn config(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> ClientConfig {
    let mut config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots())
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![ALPN_HTTP11.to_vec()];
    config
}

fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(Pki::get().anchor.der().clone()).unwrap();
    roots
}

fn chain(pair: &Pair) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pair.chain.as_bytes()).map(Result::unwrap).collect()
}

fn key(pair: &Pair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap()
}

async fn shake(world: &World, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = socket(world, 1).await;
    soon(TlsConnector::from(Arc::new(config)).connect(GATEWAY.try_into().unwrap(), socket)).await
}

/// A ClientHello as rustls sends it.
fn hello() -> Vec<u8> {
    let config = Arc::new(config(chain(mallory()), key(mallory())));
    let mut client = rustls::ClientConnection::new(config, GATEWAY.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn slow_hellos_from_some_networks_hold_up_no_other() {
    let (world, _) = world(narrow()).await;
    let bytes = hello();
    // Two networks could hold all eight places if nobody's share were bounded; three hold four each, and wait.
    are_served(&world, "a hello byte by byte", 12, || async {
        let mut socket = socket(&world, 1).await;
        for byte in &bytes[..60] {
            if socket.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(ended(&mut socket).await, b"", "closed without a byte");
    })
    .await;
    world.refused("tls.handshake_timeout").await;
}

#[tokio::test]
async fn the_silent_take_no_place_and_have_a_share() {
    let setup = narrow().set("accept", "max_unidentified_per_network", "20");
    let (world, _) = world(setup).await;
    are_served(&world, "connections that say nothing", 40, || async {
        let mut socket = socket(&world, 2).await;
        assert_eq!(ended(&mut socket).await, b"");
    })
    .await;
    let line = world.refused("accept.network_unidentified").await;
    assert!(line["client_addr"].as_str().unwrap().starts_with("127.9.2."), "{line}");
    world.refused("tls.handshake_timeout").await;
}

#[tokio::test]
async fn hello_floods() {
    let (world, _) = world(narrow()).await;
    let bytes = hello();
    are_served(&world, "hellos, and gone at the answer", 6, || async {
        let mut socket = socket(&world, 3).await;
        socket.write_all(&bytes).await.unwrap();
        let _ = soon(socket.read_u8()).await;
    })
    .await;
    world.refused("tls.io").await;
}

#[tokio::test]
async fn garbage_wrong_versions_and_odd_hellos() {
    let (world, _) = world(narrow()).await;
    let hello = hello();
    // The handshake message in records of a byte each.
    let fragments: Vec<u8> = hello[5..].iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
    // A hello of 64 KiB, and one that announces 16 MiB, in full records.
    let mut huge = Vec::new();
    for announced in [[0u8, 0xff, 0xff], [0xff, 0xff, 0xff]] {
        let mut bytes = vec![22, 3, 1, 0x40, 0, 1];
        bytes.extend(announced);
        bytes.resize(5 + 0x4000, 0);
        huge.push(bytes.repeat(4));
    }
    let attacks: [(&str, Vec<u8>); 7] = [
        ("plain HTTP", b"GET / HTTP/1.1\r\nhost: web\r\n\r\n".to_vec()),
        ("SSL 2", [&[0x80, 0x2e, 1, 0, 2][..], &[7; 60]].concat()),
        ("noise", (0..3000u32).map(|n| u8::try_from(n * 7919 % 251).unwrap()).collect()),
        ("TLS 1.2", tls12_hello(GATEWAY)),
        ("a hello of 64 KiB", huge.remove(0)),
        ("a hello of 16 MiB", huge.remove(0)),
        ("a hello and garbage", [&hello[..], &[0xff; 500]].concat()),
    ];
    are_served(&world, "seven kinds of nonsense", 2, || async {
        for (name, bytes) in &attacks {
            let mut socket = socket(&world, 4).await;
            let _ = socket.write_all(bytes).await;
            let back = ended(&mut socket).await;
            // Nothing, or an alert; behind a good hello the server's flight and then an alert.
            let alert = back.len() == 7 && back[0] == 21;
            assert!(back.is_empty() || alert || *name == "a hello and garbage", "{name}: {back:?}");
        }
        // This one is a hello, however odd its records.
        let mut socket = socket(&world, 4).await;
        let _ = socket.write_all(&fragments).await;
        let mut first = [0; 1];
        let answered = soon(socket.read(&mut first)).await.unwrap_or(0);
        assert!(answered == 0 || first[0] == 22 || first[0] == 21, "{first:?}");
    })
    .await;
    for code in ["tls.plaintext", "tls.protocol_version", "tls.hello_too_large"] {
        world.refused(code).await;
    }
}

#[tokio::test]
async fn after_the_handshake_there_is_no_other() {
    let (world, _) = world(narrow()).await;
    let hello = hello();
    are_served(&world, "renegotiation, garbage and key updates", 2, || async {
        // A second hello in the clear, where TLS 1.2 would have begun to renegotiate; and no record at all.
        for behind in [&hello[..], &[0x17, 3, 3, 0, 40], &[0xff; 100]] {
            let mut stream = shake(&world, config(chain(mallory()), key(mallory()))).await.unwrap();
            let mut padded = behind.to_vec();
            padded.resize(behind.len().max(200), 0xab);
            stream.get_mut().0.write_all(&padded).await.unwrap();
            ended(&mut stream).await;
        }
        // Key updates: each costs two key schedules. The library takes 32 in a row that bring no data.
        let mut stream = shake(&world, config(chain(mallory()), key(mallory()))).await.unwrap();
        for _ in 0..1000 {
            if stream.get_mut().1.refresh_traffic_keys().is_err() || stream.flush().await.is_err() {
                break;
            }
        }
        ended(&mut stream).await;
    })
    .await;
    world.refused("tls.malformed").await;
}

#[tokio::test]
async fn nothing_is_resumed() {
    let (world, _) = world(Setup::new()).await;
    // One configuration, and so one cache: had there been a ticket, the second handshake would use it, and a certificate
    // that was revoked meanwhile would not be looked at again.
    let config = config(chain(mallory()), key(mallory()));
    for _ in 0..3 {
        let stream = shake(&world, config.clone()).await.unwrap();
        let mut http = Http1::new(stream);
        assert_eq!(http.get("web", "/").await.status(), 200);
        let session = http.stream.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
    }
}

/// Signs nothing: it holds no key.
#[derive(Debug)]
struct NoKey(usize);

impl rustls::sign::SigningKey for NoKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        offered
            .contains(&SignatureScheme::RSA_PSS_SHA256)
            .then(|| Box::new(Self(self.0)) as Box<dyn rustls::sign::Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::RSA
    }
}

impl rustls::sign::Signer for NoKey {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Ok(vec![0x42; self.0])
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::RSA_PSS_SHA256
    }
}

/// An RSA public key of so many bits that nobody has the private one of.
struct HugeRsa(Vec<u8>);

impl HugeRsa {
    fn new(bits: usize) -> Self {
        let mut modulus = vec![0xd5; bits / 8];
        modulus.insert(0, 0);
        let integer = |bytes: &[u8]| der(2, bytes);
        Self(der(0x30, &[integer(&modulus), integer(&[1, 0, 1])].concat()))
    }
}

fn der(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let mut out = vec![tag];
    if body.len() < 128 {
        out.push(length[3]);
    } else {
        let zeros = length.iter().take_while(|byte| **byte == 0).count();
        out.push(0x80 | u8::try_from(4 - zeros).unwrap());
        out.extend(&length[zeros..]);
    }
    out.extend(body);
    out
}

impl rcgen::PublicKeyData for HugeRsa {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

/// A client's leaf with what no minting tool would write.
fn leaf(names: impl Iterator<Item = String>, public: &impl rcgen::PublicKeyData) -> CertificateDer<'static> {
    let issuer = &Pki::get().west;
    let signer = rcgen::KeyPair::from_pem(&issuer.key_pem()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(issuer.der(), signer).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = names.map(|name| rcgen::SanType::DnsName(name.try_into().unwrap())).collect();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    params.signed_by(public, &issuer).unwrap().into()
}

#[tokio::test]
async fn monstrous_certificates() {
    let (world, _) = world(narrow()).await;
    let issuer = Pki::get().west.der().clone();
    let mine = chain(mallory());
    // A hundred links, none of which leads anywhere but round in a circle.
    let circle: Vec<_> = std::iter::once(mine[0].clone()).chain(std::iter::repeat_n(issuer.clone(), 99)).collect();
    let foreign: Vec<_> =
        std::iter::once(mine[0].clone()).chain(std::iter::repeat_n(Pki::get().foreign.der().clone(), 99)).collect();
    let huge = vec![leaf([crate::MALLORY.to_owned()].into_iter(), &HugeRsa::new(16_384)), issuer.clone()];
    let crowd_key = rcgen::KeyPair::generate().unwrap();
    let crowd = vec![leaf((0..2000).map(|n| format!("n{n}.crowd.example")), &crowd_key), issuer];
    let crowd_pem = crowd_key.serialize_pem();
    are_served(&world, "chains of 100, RSA-16384, 2000 names", 2, || async {
        // Of the first only the shortest way is gone; the second leads nowhere.
        let stream = shake(&world, config(circle.clone(), key(mallory()))).await.unwrap();
        assert_eq!(Http1::new(stream).get("web", "/circle").await.status(), 200);
        if let Ok(mut stream) = shake(&world, config(foreign.clone(), key(mallory()))).await {
            assert_eq!(ended(&mut stream).await, b"");
        }
        let mut rsa = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(roots())
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                rustls::sign::CertifiedKey::new(huge.clone(), Arc::new(NoKey(2048))),
            )));
        rsa.alpn_protocols = vec![ALPN_H2.to_vec()];
        if let Ok(mut stream) = shake(&world, rsa).await {
            assert_eq!(ended(&mut stream).await, b"", "no session without a key");
        }
        let crowd_key = PrivateKeyDer::from_pem_slice(crowd_pem.as_bytes()).unwrap();
        if let Ok(stream) = shake(&world, config(crowd.clone(), crowd_key)).await {
            assert_eq!(Http1::new(stream).get("web", "/crowd").await.status(), 200);
        }
    })
    .await;
    let line = world.logged(|line| line["path"] == "/crowd").await;
    assert_eq!(line["client_identity"], "n0.crowd.example", "the first name, however many follow");
    let refused = world.lines().iter().filter(|line| line["outcome"] == "refused").count();
    assert!(refused > 0, "nobody was refused");
}
