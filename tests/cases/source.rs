//! Linkerd's proxies in front of the gateway: what they were seen to send, byte for byte, and what has to come back.
//! (Linkerd wire document §3.2, §4.5, §4.8, §8.1, §11.3.)

use std::sync::Arc;
use std::time::Duration;

use http::Version;
use isthmus::tls::ALPN_TRANSPORT_HEADER;
use isthmus::wire::transport_header::Protocol;
use isthmus_tests::h2raw::{Frames, HEADERS, PING, SETTINGS};
use isthmus_tests::peer::{Tls, empty, h2_request, header, listen};
use isthmus_tests::pki::{GATEWAY, Pki, SHOP};
use isthmus_tests::upstream::{self, Upstream, accept_key};
use isthmus_tests::wire::Http1;
use isthmus_tests::world::{Setup, World};
use isthmus_tests::{soon, spawn, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

const HOST: &str = "web.ns.svc.cluster.local:8080";
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The services `web:8080` and `plain:80`, both of them the same endpoint.
async fn world() -> (World, Upstream) {
    let web = upstream::http().await;
    let setup = Setup::new().service("web", 8080, "as_client", &[web.addr]);
    (setup.service("plain", 80, "as_client", &[web.addr]).start().await, web)
}

/// The header of a captured session: its length, and the protobuf.
fn captured(proto: &[u8]) -> Vec<u8> {
    let length = u32::try_from(proto.len()).unwrap().to_be_bytes();
    [b"transport.l5d.io/v1\r\n\r\n", &length[..], proto].concat()
}

const H2: &[u8] = b"\x08\x90\x3f\x12\x18web.ns.svc.cluster.local\x1a\x02\x12\x00";
const H1: &[u8] = b"\x08\x90\x3f\x12\x18web.ns.svc.cluster.local\x1a\x02\x0a\x00";
const OPAQUE: &[u8] = b"\x08\x90\x3f\x12\x18web.ns.svc.cluster.local";

/// A session that begins with these bytes, in one record with the captured header.
async fn session(world: &World, proto: &[u8], first: &[u8]) -> Tls {
    let mut stream = world.shop().connect(&[ALPN_TRANSPORT_HEADER]).await;
    stream.write_all(&[&captured(proto)[..], first].concat()).await.unwrap();
    stream
}

/// What a source's HTTP/2 client writes at once: the preface, SETTINGS without push, with a window of 65 535 and a header
/// list of 16 KiB, and one MiB for the connection.
fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 18, SETTINGS, 0, 0, 0, 0, 0]);
    for (id, value) in [(2_u16, 0_u32), (4, 65_535), (6, 16_384)] {
        bytes.extend(id.to_be_bytes());
        bytes.extend(value.to_be_bytes());
    }
    bytes.extend([0, 0, 4, 8, 0, 0, 0, 0, 0]);
    bytes.extend(983_041_u32.to_be_bytes());
    bytes
}

/// A request without body on stream 1, each field literal and never indexed.
fn request(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x10);
        for text in [name, value] {
            assert!(text.len() < 127, "a longer one has a length of two bytes");
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    let mut frame = u32::try_from(block.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([HEADERS, 0x5, 0, 0, 0, 1]);
    frame.extend(block);
    frame
}

/// The status that an answer's block begins with: those of the static table, or a literal.
fn status(block: &[u8]) -> u16 {
    match block.first() {
        Some(0x88) => 200,
        Some(0x8d) => 404,
        Some(0x8e) => 500,
        other => panic!("{other:?}"),
    }
}

/// The fields of a head as it stood on the wire, sorted.
fn fields(head: &str) -> Vec<String> {
    let mut fields: Vec<_> = head.trim_end().lines().skip(1).map(str::to_owned).collect();
    fields.sort_unstable();
    fields
}

fn forwarded(host: &str) -> String {
    format!("by={GATEWAY};for={SHOP};host={host};proto=https")
}

/// Suites, groups and signature schemes as a source of today offers them: no RSA-PSS among them.
#[tokio::test]
async fn the_handshake_of_a_source_of_today() {
    use rustls::SignatureScheme as Scheme;
    use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
    use rustls_pki_types::pem::PemObject;
    let (world, _) = world().await;
    let mut provider = default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    let offered = [
        Scheme::ECDSA_NISTP384_SHA384,
        Scheme::ECDSA_NISTP256_SHA256,
        Scheme::ECDSA_NISTP521_SHA512,
        Scheme::ED25519,
        Scheme::RSA_PKCS1_SHA512,
        Scheme::RSA_PKCS1_SHA384,
        Scheme::RSA_PKCS1_SHA256,
    ];
    let known = provider.signature_verification_algorithms.mapping.iter();
    let schemes: Vec<_> = known.filter(|(scheme, _)| offered.contains(scheme)).copied().collect();
    provider.signature_verification_algorithms.mapping = Vec::leak(schemes);
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
    config.alpn_protocols = vec![ALPN_TRANSPORT_HEADER.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    let socket = TcpStream::connect(world.addrs.gateway).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = soon(connector.connect(GATEWAY.try_into().unwrap(), socket)).await.unwrap();
    let agreed = stream.get_ref().1;
    assert_eq!(agreed.alpn_protocol(), Some(ALPN_TRANSPORT_HEADER));
    assert_eq!(agreed.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(agreed.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    stream.write_all(&[&captured(H1)[..], b"GET / HTTP/1.1\r\n\r\n"].concat()).await.unwrap();
    assert_eq!(Http1::new(stream).response(false).await.status(), 200);
}

#[tokio::test]
async fn the_first_flight_of_a_source_and_what_an_unmeshed_backend_sees_of_it() {
    let (addr, heads) = upstream::scripted("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let world = Setup::new().service("web", 8080, "as_client", &[addr]).start().await;
    // Carried by HTTP/2: the hint is the default, so this is what a gateway gets most of.
    let carried = request(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", HOST),
        (":path", "/one"),
        ("user-agent", "curl/7.88.1"),
        ("accept", "*/*"),
        ("l5d-orig-proto", "HTTP/1.1"),
    ]);
    let mut frames = Frames(session(&world, H2, &[preface(), carried].concat()).await);
    let head = frames.find(HEADERS).await;
    assert_eq!((head.stream, status(&head.payload)), (1, 200));
    // And without the hint, on HTTP/1: no host at all.
    let plain = b"GET /one HTTP/1.1\r\nuser-agent: curl/7.88.1\r\naccept: */*\r\n\r\n";
    let mut http = Http1::new(session(&world, H1, plain).await);
    assert_eq!(http.response(false).await.status(), 200);
    let heads = heads.lock().clone();
    for head in &heads {
        assert_eq!(head.lines().next(), Some("GET /one HTTP/1.1"));
        let want = [
            "accept: */*".to_owned(),
            format!("forwarded: {}", forwarded(HOST)),
            format!("host: {HOST}"),
            format!("l5d-client-id: {SHOP}"),
            format!("l5d-dst-canonical: {HOST}"),
            "user-agent: curl/7.88.1".to_owned(),
        ];
        assert_eq!(fields(head), want, "nothing more and nothing less");
    }
    assert_eq!(heads.len(), 2);
}

#[tokio::test]
async fn the_fields_of_a_request() {
    let (world, web) = world().await;
    let h2 = world.shop().header_h2("plain", 80).await;
    let own = "by=other.gateway;for=app.ns;host=x;proto=https";
    for carried in [false, true] {
        let mut request = h2_request("GET", "elsewhere:1234", "/")
            .header("l5d-client-id", "admin.ns.example")
            .header("l5d-dst-canonical", "admin:1")
            .header("forwarded", own)
            .header("l5d-remote-ip", "192.0.2.1")
            .header("l5d-server-id", "app.ns.example")
            .header("via", "1.1 app")
            .header("x-own", "1");
        if carried {
            request = request.header("l5d-orig-proto", "HTTP/1.1");
        }
        assert_eq!(h2.ask(request.body(empty()).unwrap()).await.status, 200);
        let seen = web.last();
        assert_eq!(seen.all("l5d-client-id"), [SHOP], "replaced, never appended");
        assert_eq!(seen.all("l5d-dst-canonical"), ["plain.ns.svc.cluster.local:80"], "the port always");
        // A line of our own behind those that were there; of what the client says only who relayed is carried on.
        assert_eq!(seen.all("forwarded"), ["by=other.gateway", &forwarded("plain.ns.svc.cluster.local")]);
        for (name, value) in
            [("l5d-remote-ip", "192.0.2.1"), ("l5d-server-id", "app.ns.example"), ("via", "1.1 app"), ("x-own", "1")]
        {
            assert_eq!(seen.all(name), [value], "{name}");
        }
        if carried {
            assert_eq!((seen.version, seen.uri.as_str()), (Version::HTTP_11, "/"));
            assert_eq!(seen.field("host"), "plain.ns.svc.cluster.local", "80 is not written");
        } else {
            let authority = "http://elsewhere.ns.svc.cluster.local:1234/";
            assert_eq!((seen.version, seen.uri.as_str()), (Version::HTTP_2, authority), ":authority stays");
            assert!(!seen.headers.contains_key("host"));
        }
    }
    // On real HTTP/1 the mark is a field like any other.
    let mut http = world.shop().header_h1("web", 8080).await;
    http.ask("GET / HTTP/1.1\r\nhost: elsewhere\r\nl5d-orig-proto: HTTP/9\r\n\r\n").await;
    assert_eq!((web.last().field("l5d-orig-proto").as_str(), web.last().field("host").as_str()), ("HTTP/9", HOST));
}

#[tokio::test]
async fn the_fields_of_a_response() {
    let script = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nl5d-proxy-error: 10.0.0.1:80: broken\r\nl5d-proxy-connection: close\r\n\
                  l5d-remote-ip: 192.0.2.1\r\nl5d-server-id: app\r\nl5d-orig-proto: HTTP/9\r\nvia: 1.1 app\r\n\
                  transfer-encoding-x: 1\r\nkeep-alive: timeout=5\r\n\r\n";
    let (addr, _) = upstream::scripted(script).await;
    let world = Setup::new().service("web", 8080, "as_client", &[addr]).start().await;
    let mut http = world.shop().header_h1("web", 8080).await;
    let answer = http.ask("GET / HTTP/1.1\r\n\r\n").await;
    let mut names: Vec<_> = answer.fields.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let want =
        ["content-length", "date", "l5d-orig-proto", "l5d-remote-ip", "l5d-server-id", "transfer-encoding-x", "via"];
    assert_eq!(names, want);
    let h2 = world.shop().header_h2("web", 8080).await;
    let carried = h2_request("GET", "web:8080", "/").header("l5d-orig-proto", "HTTP/1.1").body(empty()).unwrap();
    let answer = h2.ask(carried).await;
    assert_eq!(answer.field("l5d-orig-proto"), "HTTP/1.1", "replaced: it is this hop's");
    assert!(!answer.headers.contains_key("l5d-proxy-error") && !answer.headers.contains_key("l5d-proxy-connection"));
}

#[tokio::test]
async fn an_absolute_form_stays_one() {
    let (addr, heads) = upstream::scripted("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let world = Setup::new().service("web", 8080, "as_client", &[addr]).start().await;
    let first = format!("GET http://{HOST}/abs?q=1 HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let mut http = Http1::new(session(&world, H1, first.as_bytes()).await);
    assert_eq!(http.response(false).await.status(), 200);
    let h2 = world.shop().header_h2("web", 8080).await;
    let carried = h2_request("GET", "web:8080", "/abs?q=1").header("l5d-orig-proto", "HTTP/1.1; absolute-form");
    assert_eq!(h2.ask(carried.body(empty()).unwrap()).await.status, 200);
    for head in heads.lock().iter() {
        assert_eq!(head.lines().next().unwrap(), format!("GET http://{HOST}/abs?q=1 HTTP/1.1"));
        assert!(head.contains(&format!("\r\nhost: {HOST}\r\n")), "{head}");
    }
}

#[tokio::test]
async fn every_shape_that_a_source_sends_is_served() {
    let (world, web) = world().await;
    // One connection for each request, without a host.
    for path in ["/a", "/b", "/c"] {
        let first = format!("GET {path} HTTP/1.1\r\nuser-agent: curl/7.88.1\r\naccept: */*\r\n\r\n");
        let mut http = Http1::new(session(&world, H1, first.as_bytes()).await);
        assert_eq!(http.response(false).await.status(), 200, "{path}");
    }
    // HTTP/1.0, on HTTP/1 and carried.
    let mut http = Http1::new(session(&world, H1, b"GET / HTTP/1.0\r\n\r\n").await);
    assert_eq!(http.response(false).await.status(), 200);
    assert_eq!(http.rest().await, b"", "and then the end");
    let h2 = world.shop().header_h2("web", 8080).await;
    let old = h2_request("GET", "web:8080", "/").header("l5d-orig-proto", "HTTP/1.0").body(empty()).unwrap();
    assert_eq!(h2.ask(old).await.field("l5d-orig-proto"), "HTTP/1.0");
    // WebSocket on a connection of its own.
    let upgrade = format!(
        "GET /ws HTTP/1.1\r\nsec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n"
    );
    let mut socket = Http1::new(session(&world, H1, upgrade.as_bytes()).await);
    let head = socket.head().await;
    assert_eq!(
        (head.status(), head.field("sec-websocket-accept")),
        (101, accept_key(KEY.as_bytes()).to_str().unwrap())
    );
    socket.send("frame").await;
    assert_eq!(socket.exactly(5).await, b"frame");
    // gRPC and HTTP/2 as they are.
    let call =
        h2_request("POST", "web:8080", "/echo").header("content-type", "application/grpc").header("te", "trailers");
    assert_eq!(h2.ask(call.body(empty()).unwrap()).await.status, 200);
    assert_eq!((web.last().version, web.last().field("te").as_str()), (Version::HTTP_2, "trailers"));
}

#[tokio::test]
async fn connect_is_for_the_proxy_that_the_session_names() {
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    let proxy = upstream::tcp(move |mut socket, _| {
        let told = told.clone();
        async move {
            let head = upstream::read_head(&mut socket).await;
            let refuse = head.contains("x-refuse");
            told.send(head).unwrap();
            if refuse {
                let no = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno";
                socket.write_all(no).await.unwrap();
                return;
            }
            socket.write_all(b"HTTP/1.1 200 Connected\r\nvia: 1.1 squid\r\n\r\n").await.unwrap();
            let (mut read, mut write) = socket.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    })
    .await;
    let world = Setup::new().service("web", 8080, "as_client", &[proxy]).start().await;
    let mut http = Http1::new(session(&world, H1, format!("CONNECT {HOST} HTTP/1.1\r\n\r\n").as_bytes()).await);
    let head = http.head().await;
    assert_eq!((head.status(), head.field("via")), (200, "1.1 squid"), "the proxy's own answer");
    let seen = soon(tells.recv()).await.unwrap();
    assert!(seen.starts_with(&format!("CONNECT {HOST} HTTP/1.1\r\n")), "{seen}");
    assert!(seen.contains(&format!("host: {HOST}\r\n")) && seen.contains("l5d-client-id: "), "{seen}");
    http.send("ahoy").await;
    assert_eq!(http.exactly(4).await, b"ahoy");
    let refused = format!("CONNECT {HOST} HTTP/1.1\r\nx-refuse: 1\r\n\r\n");
    let mut http = Http1::new(session(&world, H1, refused.as_bytes()).await);
    let answer = http.response(false).await;
    assert_eq!((answer.status(), answer.text().as_str()), (403, "no"));
}

#[tokio::test]
async fn an_opaque_session_begins_before_the_application_has_spoken() {
    let greets = upstream::tcp(|mut socket, _| async move {
        let _ = socket.write_all(b"220 ready\r\n").await;
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
        let _ = socket.write_all(&rest).await;
    });
    let world = Setup::new().service("web", 8080, "opaque", &[greets.await]).start().await;
    let mut stream = session(&world, OPAQUE, b"").await;
    let mut greeting = [0; 11];
    soon(stream.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    // Bytes, although they look like HTTP/2; and each side ends for itself.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(listen(&mut stream).await.0, b"PRI * HTTP/2.0\r\n\r\n");
}

/// A refusal is a head and nothing else: `content-length: 0` and the end of the stream in one frame.
#[tokio::test]
async fn refusals_are_one_frame() {
    let setup = Setup::new().service("web", 8080, "http1", &[upstream::nobody()]).set("http", "max_retries", "0");
    let world = setup.set("balance", "max_connect_failures", "100").start().await;
    for kind in ["text/plain", "application/grpc", "application/grpc+proto"] {
        let fields =
            [(":method", "POST"), (":scheme", "http"), (":authority", HOST), (":path", "/"), ("content-type", kind)];
        let mut frames = Frames(session(&world, H2, &[preface(), request(&fields)].concat()).await);
        let head = frames.find(HEADERS).await;
        assert_eq!(head.flags & 0x5, 0x5, "END_STREAM and END_HEADERS");
        let grpc = kind.starts_with("application/grpc");
        assert_eq!(head.payload.first() == Some(&0x88), grpc, "gRPC is 200 and says more in its own status");
        // The session goes on: a PING is answered and no GOAWAY comes.
        frames.send(PING, 0, 0, b"12345678").await;
        let pong = frames.find(PING).await;
        assert_eq!((pong.flags & 1, &pong.payload[..]), (1, &b"12345678"[..]));
    }
    let h2 = world.shop().header_h2("web", 8080).await;
    // Carried over HTTP/2, gRPC is HTTP/2 as the wire has it.
    for (mark, status) in [(None, 200), (Some("HTTP/1.1"), 200)] {
        let mut call = h2_request("POST", "web:8080", "/").header("content-type", "application/grpc");
        if let Some(mark) = mark {
            call = call.header("l5d-orig-proto", mark);
        }
        let answer = h2.ask(call.body(empty()).unwrap()).await;
        assert_eq!((answer.status, answer.field("grpc-status"), answer.field("content-length")), (status, "14", "0"));
        assert!(!answer.headers.contains_key("l5d-orig-proto"), "the source takes the version of its request");
    }
    // On HTTP/1 there is no gRPC, whatever the type says.
    let call = "POST / HTTP/1.1\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
    let answer = world.shop().header_h1("web", 8080).await.ask(call).await;
    assert_eq!((answer.status(), answer.field("content-length"), answer.has("grpc-status")), (502, "0", false));
}

/// A DNS server that takes questions and never answers.
async fn silence() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

#[tokio::test]
async fn while_discovery_hangs_the_session_lives_and_each_request_gets_its_answer() {
    let dns = silence().await;
    let setup = Setup::new().silent_dns(dns.local_addr().unwrap()).set("route", "discovery_timeout", "700ms");
    let world = setup.start().await;
    let asked = request(&[(":method", "GET"), (":scheme", "http"), (":authority", HOST), (":path", "/")]);
    let mut frames = Frames(session(&world, H2, &[preface(), asked].concat()).await);
    let first = frames.next().await.unwrap();
    assert_eq!((first.kind, first.stream), (SETTINGS, 0), "at once");
    frames.send(PING, 0, 0, b"12345678").await;
    let pong = loop {
        let frame = frames.next().await.unwrap();
        assert_ne!(frame.kind, HEADERS, "the answer to the PING does not wait for the answer to the request");
        if frame.kind == PING && frame.flags & 1 == 1 {
            break frame;
        }
        frames.acknowledge(&frame).await;
    };
    assert_eq!(pong.payload, b"12345678");
    assert_eq!(frames.find(HEADERS).await.stream, 1);
    let h2 = world.shop().header_h2("web", 8080).await;
    let answer = h2.get("web:8080", "/").await;
    assert_eq!((answer.status, answer.field("l5d-proxy-error")), (504, "service discovery timed out"));
    let call = h2_request("POST", "web:8080", "/").header("content-type", "application/grpc").body(empty()).unwrap();
    assert_eq!(h2.ask(call).await.field("grpc-status"), "14");
    assert!(!h2.is_closed());
    let mut opaque = session(&world, OPAQUE, b"hello").await;
    assert_eq!(listen(&mut opaque).await.0, b"", "bytes have no words for it");
    world.refused("route.discovery_timeout").await;
}

#[tokio::test]
async fn a_client_that_leaves_during_discovery_is_noticed_and_holds_up_no_drain() {
    let dns = silence().await;
    let setup = Setup::new().silent_dns(dns.local_addr().unwrap()).set("route", "discovery_timeout", "120s");
    let world = setup.start().await;
    let get = request(&[(":method", "GET"), (":scheme", "http"), (":authority", HOST), (":path", "/")]);
    let sessions = [
        (H2, [preface(), get].concat(), 1.0),
        (H1, b"GET / HTTP/1.1\r\n\r\n".to_vec(), 1.0),
        (OPAQUE, b"".to_vec(), 0.0),
    ];
    for (proto, first, requests) in &sessions {
        let stream = session(&world, proto, first).await;
        world.counted("isthmus_relay_open_requests", &[], *requests).await;
        world.counted("isthmus_accept_open_connections", &[], 1.0).await;
        drop(stream);
        // Long before discovery gives up.
        world.counted("isthmus_accept_open_connections", &[], 0.0).await;
        world.counted("isthmus_relay_open_requests", &[], 0.0).await;
    }
    world.refused("relay.client_reset").await;
    let mut left = Vec::new();
    for (proto, first, _) in &sessions {
        left.push(session(&world, proto, first).await);
    }
    world.counted("isthmus_accept_open_connections", &[], 3.0).await;
    drop(left);
    let drained = soon(world.drain(Duration::ZERO, Duration::from_secs(60))).await;
    assert_eq!(drained.cut, 0, "{drained:?}");
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_though_discovery_hangs() {
    let dns = silence().await;
    let setup = Setup::new().silent_dns(dns.local_addr().unwrap()).set("route", "discovery_timeout", "120s");
    let world = setup.start().await;
    let stream = session(&world, OPAQUE, b"hello").await;
    world.counted("isthmus_accept_open_connections", &[], 1.0).await;
    let drained = soon(world.drain(Duration::ZERO, Duration::from_millis(300))).await;
    assert_eq!(drained.cut, 1, "{drained:?}");
    drop(stream);
}

#[tokio::test]
async fn the_probe_of_a_mirror_as_its_proxy_sends_it() {
    let (world, _) = world().await;
    // The server name is the gateway's identity, no application protocol, and HTTP/1 carried by HTTP/2.
    let mirror = world.shop().at(world.addrs.probe);
    for path in ["/ready", "/health"] {
        let mut stream = mirror.try_connect(GATEWAY, &[]).await.unwrap();
        let probe = request(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "probe-gateway-east.linkerd-multicluster.svc.cluster.local:4191"),
            (":path", path),
            ("user-agent", "Go-http-client/1.1"),
            ("accept-encoding", "gzip"),
            ("l5d-orig-proto", "HTTP/1.1"),
        ]);
        stream.write_all(&[preface(), probe].concat()).await.unwrap();
        assert_eq!(status(&Frames(stream).find(HEADERS).await.payload), 200, "{path}");
    }
}

#[tokio::test]
async fn many_streams_of_one_source_are_normal() {
    let (world, web) = world().await;
    let h2 = world.shop().header_h2("web", 8080).await;
    let calls: Vec<_> = (0..500)
        .map(|_| {
            let h2 = h2.clone();
            spawn(async move { h2.get("web:8080", "/slow").await.status })
        })
        .collect();
    for call in calls {
        assert_eq!(soon(call).await.unwrap(), 200);
    }
    until(|| web.seen().len() == 500).await;
}

/// Bytes that come with the header in one record, and a header that names what is to be had by nobody.
#[tokio::test]
async fn a_header_that_cannot_be_served_is_closed_and_nothing_is_said() {
    let (world, _) = world().await;
    let preface = preface();
    for proto in [
        &b"\x08\x90\x3f\x12\x10intranet.example\x1a\x02\x12\x00"[..], // outside the suffixes
        b"\x08\x90\x3f\x12\x03a b\x1a\x02\x12\x00",                   // no DNS name
        b"\x08\x00\x12\x18web.ns.svc.cluster.local\x1a\x02\x12\x00",  // no port
        b"\x08\x90\x3f\x1a\x02\x12\x00",                              // a port of the gateway itself
    ] {
        let mut stream = session(&world, proto, &preface).await;
        assert_eq!(listen(&mut stream).await.0, b"", "{proto:?}");
    }
    let mut stream = world.shop().connect(&[ALPN_TRANSPORT_HEADER]).await;
    // A trailing dot is the same name, and an empty message of the protocol is none.
    stream.write_all(&captured(b"\x08\x90\x3f\x12\x19web.ns.svc.cluster.local.\x1a\x02\x12\x00")).await.unwrap();
    let h2 = isthmus_tests::peer::H2::new(stream).await;
    assert_eq!(h2.get("web:8080", "/").await.status, 200);
    assert_eq!(header("web", 8080, Some(Protocol::Http2))[..], captured(H2)[..]);
}
