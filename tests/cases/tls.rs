//! `tls`: who gets in, and what those hear who do not. (Linkerd wire document §1.)

use std::sync::Arc;
use std::time::Duration;

use isthmus::tls::{ALPN_H2, ALPN_HTTP11, ALPN_TRANSPORT_HEADER, client};
use isthmus_tests::peer::{Dribble, Peer, listen};
use isthmus_tests::pki::{GATEWAY, Pki, SHOP, expired, pair};
use isthmus_tests::wire::{Http1, tls12_hello};
use isthmus_tests::world::{Setup, World};
use isthmus_tests::{soon, spawn, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn bare() -> World {
    Setup::new().start().await
}

async fn with_web() -> World {
    let web = upstream::http().await;
    Setup::new().service("web", 80, "as_client", &[web.addr]).start().await
}

/// Sends bytes without TLS and gives what comes back.
async fn raw(world: &World, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(world.addrs.gateway).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut back = Vec::new();
    // A reset is an end too: what counts is that not a byte came.
    let _ = soon(socket.read_to_end(&mut back)).await;
    back
}

#[tokio::test]
async fn plaintext_is_closed_without_a_byte() {
    let world = bare().await;
    for bytes in
        [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".as_slice(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\0\0\0\0\0"]
    {
        assert_eq!(raw(&world, bytes).await, b"");
    }
    let line = world.refused("tls.plaintext").await;
    assert_eq!(line["kind"], "connection");
    world.counted("isthmus_tls_handshakes_total", &[("result", "tls.plaintext")], 3.0).await;
    world.counted("isthmus_refusals_total", &[("code", "tls.plaintext"), ("fault", "client")], 3.0).await;
}

#[tokio::test]
async fn a_foreign_name_is_closed_without_a_byte() {
    let world = bare().await;
    let refused = world.shop().try_connect("elsewhere.example", &[ALPN_H2]).await.unwrap_err();
    assert!(matches!(refused, client::Error::Io(_)), "{refused:?}");
    world.refused("tls.foreign_sni").await;
    // And down to the bytes, with a hello of another make.
    assert_eq!(raw(&world, &tls12_hello("elsewhere.example")).await, b"");
}

#[tokio::test]
async fn no_name_is_closed_without_a_byte() {
    let world = bare().await;
    let hello = tls12_hello("x");
    // Without the first extension (server_name: 4 bytes of head, 6 of body) all lengths above it shrink by ten.
    let at = hello.windows(4).position(|window| window == [0, 0, 0, 6]).unwrap();
    let mut nameless = hello.clone();
    nameless.drain(at..at + 10);
    for length in [at - 2, 7, 3] {
        let shorter = u16::from_be_bytes([nameless[length], nameless[length + 1]]) - 10;
        nameless[length..length + 2].copy_from_slice(&shorter.to_be_bytes());
    }
    assert_eq!(raw(&world, &nameless).await, b"");
    world.refused("tls.no_sni").await;
}

#[tokio::test]
async fn an_upper_case_name_is_the_same_name() {
    let world = with_web().await;
    let stream = world.shop().try_connect(&GATEWAY.to_ascii_uppercase(), &[ALPN_HTTP11]).await.unwrap();
    assert_eq!(Http1::new(stream).get("web", "/").await.status(), 200);
}

#[tokio::test]
async fn tls12_is_answered_with_protocol_version() {
    let world = bare().await;
    let back = raw(&world, &tls12_hello(GATEWAY)).await;
    assert_eq!(back, [21, 3, 3, 0, 2, 2, 70], "a fatal alert, protocol_version");
    world.refused("tls.protocol_version").await;
}

#[tokio::test]
async fn no_protocol_in_common_is_answered_with_an_alert() {
    let world = bare().await;
    let refused = world.shop().try_connect(GATEWAY, &[b"h3", b"spdy/1"]).await.unwrap_err();
    assert!(matches!(&refused, client::Error::Alert(alert) if alert == "NoApplicationProtocol"), "{refused:?}");
    world.refused("tls.alpn").await;
}

#[tokio::test]
async fn the_transport_header_is_preferred() {
    let world = bare().await;
    let stream = world.shop().connect(&[ALPN_H2, ALPN_TRANSPORT_HEADER]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(ALPN_TRANSPORT_HEADER));
}

#[tokio::test]
async fn without_a_certificate_the_handshake_completes_and_then_it_ends() {
    let world = bare().await;
    for alpn in [ALPN_TRANSPORT_HEADER, ALPN_H2, ALPN_HTTP11] {
        let mut stream = world.peer(None).connect(&[alpn]).await;
        assert_eq!(listen(&mut stream).await, (Vec::new(), None), "an orderly end and no alert");
    }
    let line = world.refused("tls.no_client_certificate").await;
    assert!(line["client_identity"].is_null());
}

#[tokio::test]
async fn a_strangers_certificate_is_an_unknown_ca() {
    let world = bare().await;
    let stranger = pair(&Pki::get().foreign, &[SHOP]);
    let mut stream = world.peer(Some(&stranger)).connect(&[ALPN_H2]).await;
    assert_eq!(listen(&mut stream).await, (Vec::new(), Some("UnknownCA".to_owned())));
    world.refused("tls.untrusted").await;
    world.counted("isthmus_tls_handshakes_total", &[("result", "tls.untrusted")], 1.0).await;
}

#[tokio::test]
async fn an_expired_certificate_is_told_so() {
    let world = bare().await;
    let old = expired(&Pki::get().west, &[SHOP]);
    let mut stream = world.peer(Some(&old)).connect(&[ALPN_H2]).await;
    assert_eq!(listen(&mut stream).await, (Vec::new(), Some("CertificateExpired".to_owned())));
    world.refused("tls.expired").await;
}

#[tokio::test]
async fn hellos_may_come_in_any_pieces() {
    let world = with_web().await;
    for piece_bytes in [1, 700, 1400] {
        let socket = Dribble::connect(world.addrs.gateway, piece_bytes).await;
        let stream = world.shop().shake(socket, GATEWAY, &[ALPN_HTTP11]).await.unwrap();
        assert_eq!(Http1::new(stream).get("web", "/").await.status(), 200, "pieces of {piece_bytes} bytes");
    }
}

#[tokio::test]
async fn a_hello_of_sixteen_kilobytes_is_answered_and_a_larger_one_is_not() {
    let world = with_web().await;
    let offers =
        |count: u8| -> Vec<Vec<u8>> { (0..count).map(|n| vec![n | 0x80; 250]).chain([ALPN_HTTP11.to_vec()]).collect() };
    let large = offers(57);
    let large: Vec<&[u8]> = large.iter().map(Vec::as_slice).collect();
    let stream = world.shop().connect(&large).await;
    assert_eq!(Http1::new(stream).get("web", "/").await.status(), 200);
    let huge = offers(90);
    let huge: Vec<&[u8]> = huge.iter().map(Vec::as_slice).collect();
    let refused = world.shop().try_connect(GATEWAY, &huge).await.unwrap_err();
    assert!(matches!(refused, client::Error::Io(_)), "{refused:?}");
    world.refused("tls.hello_too_large").await;
}

#[tokio::test]
async fn a_slow_hello_is_closed_at_the_deadline() {
    let world = Setup::new().set("tls", "handshake_timeout", "200ms").start().await;
    let mut socket = TcpStream::connect(world.addrs.gateway).await.unwrap();
    socket.write_all(&tls12_hello(GATEWAY)[..40]).await.unwrap();
    let mut back = Vec::new();
    let _ = soon(socket.read_to_end(&mut back)).await;
    assert_eq!(back, b"");
    world.refused("tls.handshake_timeout").await;
}

#[tokio::test]
async fn two_anchors_stand_side_by_side() {
    let pki = Pki::get();
    let web = upstream::http().await;
    let both = pki.anchor.cert_pem() + &pki.next.cert_pem();
    let world = Setup::new().bundle(both).service("web", 80, "as_client", &[web.addr]).start().await;
    let next = pair(&pki.west_next, &[SHOP]);
    for pair in [&pki.shop, &next] {
        assert_eq!(world.peer(Some(pair)).h1().await.get("web", "/").await.status(), 200);
    }
    let roots = world.state().await["identity"]["roots"].as_array().unwrap().len();
    assert_eq!(roots, 2);
    let soon = world.count("isthmus_tls_leaf_expiry_timestamp_seconds", &[]).await;
    assert!(soon > 1.7e9, "{soon}");
    assert!(world.count("isthmus_tls_root_expiry_timestamp_seconds", &[]).await > 2.0 * soon);
}

#[tokio::test]
async fn the_first_usable_name_is_the_identity() {
    let world = with_web().await;
    let spiffe = "spiffe://west.example/ns/prod/sa/shop";
    for (names, identity) in
        [(vec![spiffe, "second.example"], spiffe), (vec!["First.Example", spiffe], "first.example")]
    {
        let pair = pair(&Pki::get().west, &names);
        assert_eq!(world.peer(Some(&pair)).h1().await.get("web", "/").await.status(), 200);
        world.logged(|line| line["kind"] == "request" && line["client_identity"] == identity).await;
    }
}

#[tokio::test]
async fn old_linkerd_peers_offer_only_chacha20_and_x25519() {
    use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
    use rustls_pki_types::pem::PemObject;
    let world = with_web().await;
    let mut provider = default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
    provider.kx_groups = vec![kx_group::X25519];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(Pki::get().anchor.der().clone()).unwrap();
    let shop = &Pki::get().shop;
    let chain = rustls_pki_types::CertificateDer::pem_slice_iter(shop.chain.as_bytes()).map(Result::unwrap).collect();
    let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(shop.key.as_bytes()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![ALPN_HTTP11.to_vec()];
    let socket = TcpStream::connect(world.addrs.gateway).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = soon(connector.connect(GATEWAY.try_into().unwrap(), socket)).await.unwrap();
    let suite = stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    assert_eq!(Http1::new(stream).get("web", "/").await.status(), 200);
}

#[tokio::test]
async fn any_name_is_answered_where_the_operator_says_so() {
    let web = upstream::http().await;
    let world = Setup::new().set("tls", "sni", "any").service("web", 80, "as_client", &[web.addr]).start().await;
    let stream = world.shop().try_connect("gateway.example.com", &[ALPN_HTTP11]).await.unwrap();
    assert_eq!(Http1::new(stream).get("web", "/").await.status(), 200);
}

#[tokio::test]
async fn a_peer_that_trusts_another_anchor_says_so() {
    let world = bare().await;
    let suspicious = Peer::new(&Pki::get().foreign.cert_pem(), Some(&Pki::get().shop), GATEWAY, world.addrs.gateway);
    assert!(suspicious.try_connect(GATEWAY, &[ALPN_H2]).await.is_err());
    world.refused("tls.alert").await;
}

#[tokio::test]
async fn slow_handshakes_do_not_hold_up_others() {
    let world = with_web().await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut socket = TcpStream::connect(world.addrs.gateway).await.unwrap();
        socket.write_all(&tls12_hello(GATEWAY)[..20]).await.unwrap();
        slow.push(socket);
    }
    let shop = world.shop();
    let asked = spawn(async move { shop.h1().await.get("web", "/").await.status() });
    assert_eq!(tokio::time::timeout(Duration::from_secs(2), asked).await.unwrap().unwrap(), 200);
    drop(slow);
}
